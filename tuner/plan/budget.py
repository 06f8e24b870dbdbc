"""What a run will cost, from the rows it will train on: steps, tokens, memory part by part, time, energy and price, on this device or a named one.

It loads none of the base's weights. Every estimate says how it was computed. It refuses nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from typing import Any

from tuner.base import Base, Precision, training_precision
from tuner.plan.devices import Device
from tuner.plan.fit import ROOM
from tuner.plan.history import Correction, Kind
from tuner.plan.memory import Adapt, Micro, Shape, Trace, Way, activations, head_bytes
from tuner.plan.pace import Load, Pace, by_arithmetic
from tuner.plan.spec import PlanSpec
from tuner.plan.steps import StepCounts

CUDA_CONTEXT_BYTES = 600_000_000  # assumed: no GPU was to hand
LATER_LIBRARY_BYTES = 60_000_000  # what training imports after the plan was made; assumed, not measured
# glibc's heap, beside the bytes alive: holes that later requests do not fit, as a share of what a forward pass without checkpointing would keep.
# Over some twenty runs of SmolLM2 (glibc 2.36, 2026-11-20) it varied from 0.3 to 0.8 without checkpointing and from 0.3 to 0.55 with it. With blocks
# mapped one by one (MALLOC_MMAP_THRESHOLD_) there are none, and the bytes alive are the peak within 2 %, but a step takes 2.3 times the CPU time.
HEAP_HOLES = {False: 0.60, True: 0.35}
ROUNDED_HEAP_HOLES = 0.40  # more where rounded weights are unpacked layer by layer: 0.9 to 1.13 in all, four runs
GPU_SLACK = 0.03  # blocks of the caching allocator that no request fits, as a share of what is allocated; assumed
PARTS = ("base", "adapters", "gradients", "optimizer", "activations", "logits", "workspace", "allocator", "libraries")


@dataclass(frozen=True, slots=True)
class Rows:
    """Lengths in tokens of the training rows (N,), their labelled tokens (N,), and the computed tokens of one pass over validation."""

    lengths: Sequence[int]
    loss_lengths: Sequence[int]
    watched_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """What is planned: a base with an adapter, held and computed in one way on one device."""

    base: Base
    adapt: Adapt
    shape: Shape
    precision: Precision
    way: Way
    device: Device
    method: str
    traces: dict[tuple[Micro, Precision, Way], Trace] = field(default_factory=dict, compare=False)  # passes followed already

    def traced(self, micro: Micro, way: Way) -> Trace:
        """What a pass holds (tuner.plan.memory), followed once."""
        key = (micro, self.precision, way)
        if key not in self.traces:
            self.traces[key] = activations(self.base, self.adapt, micro, self.precision, way, self.shape.layers)
        return self.traces[key]


@dataclass(frozen=True)
class Plan:
    """The estimates. Bytes, seconds and tokens are spelt out in the names; `how` says where each came from.

    `peak_bytes` is what the run will report: resident memory on a CPU, allocated device memory on a GPU. `needed_bytes` is what the device must
    have, with libraries and allocator. `uncorrected` holds both figures before past runs corrected them.
    """

    records: int
    tokens_per_epoch: int
    loss_tokens_per_epoch: int
    computed_tokens_per_epoch: int
    padding: float
    longest_row_tokens: int
    epochs: float
    steps: int
    tokens: int
    passes_per_epoch: int
    largest_rows: int
    largest_tokens: int
    trainable_parameters: int
    base_parameters: int
    precision: str
    device: str
    device_bytes: int
    method: str
    attention: str
    checkpointing: bool
    adapter_dtype: str
    memory_bytes: dict[str, int]
    peak_bytes: int
    needed_bytes: int
    fits: bool
    tokens_per_second: float
    seconds: float
    cost: float | None
    energy_kwh: float | None
    energy_cost: float | None
    uncorrected: dict[str, float]
    past_runs: int
    how: dict[str, str]
    combinations: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, held: dict[str, Any]) -> Plan:
        return cls(**{f.name: held[f.name] for f in fields(cls)})


def largest_micro(counts: StepCounts, rows: Rows) -> Micro:
    """The forward pass that needs most memory."""
    return Micro(counts.largest_rows, counts.largest_tokens, sum(rows.loss_lengths[row] for row in counts.largest_members))


def run_load(counts: StepCounts, rows: Rows, epochs: float, validations: int, ranks: int = 1) -> Load:
    """What one rank computes in the whole run: `counts` are of one epoch over all ranks, `epochs` passes are made."""
    tokens, loss = counts.computed_tokens * epochs / ranks, sum(rows.loss_lengths) * epochs / ranks
    return Load(counts.steps, counts.passes * epochs / ranks, tokens, loss, rows.watched_tokens * validations / ranks)


def memory_parts(job: Job, micro: Micro, libraries: int) -> tuple[dict[str, int], dict[str, str]]:
    """Bytes of each part at the peak of a step, and how each was found."""
    shape, way, precision = job.shape, job.way, job.precision
    cpu = precision.device == "cpu"
    width = 4 if way.adapter_dtype == "float32" else 2
    seen = job.traced(micro, way)
    kept = 2 * seen.kept // max(shape.layers, 1) if way.offload else seen.kept
    logits = head_bytes(shape, micro, precision, way)
    parts = {
        "base": shape.base_bytes(precision),
        "adapters": shape.trainable * width,
        "gradients": shape.trainable * width,
        "optimizer": shape.trainable * width * 2,
        "activations": kept,
        "logits": logits,
        "workspace": max(0, max(seen.forward_workspace, seen.backward_workspace) - logits),
    }
    unkept = seen.kept if not way.checkpointing or not cpu else _unchecked(job, micro)
    parts["allocator"] = round(_holes(job) * unkept) if cpu else round(GPU_SLACK * sum(parts.values()))
    parts["libraries"] = libraries
    return parts, _how_memory(job, micro, parts)


def _holes(job: Job) -> float:
    return HEAP_HOLES[job.way.checkpointing] + (ROUNDED_HEAP_HOLES if job.precision.quantised else 0.0)


def _unchecked(job: Job, micro: Micro) -> int:
    return job.traced(micro, replace(job.way, checkpointing=False)).kept


def _how_memory(job: Job, micro: Micro, parts: dict[str, int]) -> dict[str, str]:
    shape, way, precision = job.shape, job.way, job.precision
    cpu = precision.device == "cpu"
    followed = "followed tensor by tensor over layers without memory" if job.traced(micro, way).followed else "by formula: this base cannot be followed"
    cast = " with the frozen weights as autocast casts them" if precision.autocast and precision.autocast != precision.weights and not way.checkpointing else ""
    return {
        "base": f"{shape.linear:,} weights of linear layers at {precision.bytes_per_linear_weight:.4g} bytes, {shape.parameters - shape.linear:,} others at "
        f"{precision.bytes_per_other_weight}",
        "adapters": f"{shape.trainable:,} trainable weights in {way.adapter_dtype}",
        "gradients": "one for each trainable weight, of its kind",
        "optimizer": "two AdamW moments for each trainable weight, of its kind",
        "activations": f"what a pass over {micro.rows} x {micro.width} tokens keeps for the backward pass{cast}, {followed}: "
        f"attention {way.attention}, checkpointing {'on' if way.checkpointing else 'off'}, Liger {'on' if way.liger else 'off'}"
        + ("; two layers of it: the rest is offloaded" if way.offload else ""),
        "logits": f"{min(micro.labelled, way.loss_chunk)} of {micro.labelled} labelled positions at a time x {shape.vocabulary:,} words, in fp32 twice",
        "workspace": "what the largest moment of a pass holds above that" + ("" if parts["workspace"] else ": less than the logits, which are gone by then"),
        "allocator": f"holes in the heap, {_holes(job):.0%} of what a pass without checkpointing keeps, measured on SmolLM2" if cpu
        else f"{GPU_SLACK:.0%}: blocks of the caching allocator that no request fits, assumed",
        "libraries": "resident now, after imports, and what training still imports" if cpu else "the CUDA context, assumed",
    }  # fmt: skip


def library_bytes(device: str) -> int:
    """Resident bytes of this process as it is, with what is still to be imported; on a GPU its context's."""
    if device != "cpu":
        return CUDA_CONTEXT_BYTES
    try:
        with open("/proc/self/statm", encoding="ascii") as pages:
            return int(pages.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") + LATER_LIBRARY_BYTES
    except OSError:
        return 500_000_000 + LATER_LIBRARY_BYTES


def make_plan(job: Job, rows: Rows, counts: StepCounts, load: Load, epochs: float, pace: Pace, libraries: int, past: Correction, spec: PlanSpec) -> Plan:
    """Put the estimates together. `libraries` is `library_bytes`, taken before anything was timed."""
    micro = largest_micro(counts, rows)
    parts, how = memory_parts(job, micro, libraries)
    cpu = job.precision.device == "cpu"
    reported = sum(parts.values()) if cpu else sum(parts.values()) - parts["libraries"] - parts["allocator"]
    seconds = pace.seconds(load)
    corrected, hours = seconds * past.seconds, seconds * past.seconds / 3600
    peak = round(reported * past.peak)
    needed = peak if cpu else peak + parts["libraries"] + parts["allocator"]
    watts = spec.watts or job.device.watts
    energy = None if watts is None else hours * watts / 1000
    tokens = round(counts.tokens * epochs)
    return Plan(
        records=len(rows.lengths), tokens_per_epoch=counts.tokens, loss_tokens_per_epoch=sum(rows.loss_lengths),
        computed_tokens_per_epoch=counts.computed_tokens, padding=counts.padding, longest_row_tokens=max(rows.lengths, default=0),
        epochs=round(epochs, 3), steps=counts.steps, tokens=tokens, passes_per_epoch=counts.passes, largest_rows=counts.largest_rows,
        largest_tokens=counts.largest_tokens, trainable_parameters=job.shape.trainable, base_parameters=job.shape.parameters,
        precision=str(job.precision), device=job.device.name, device_bytes=job.device.memory_bytes, method=job.method, attention=job.way.attention,
        checkpointing=job.way.checkpointing, adapter_dtype=job.way.adapter_dtype, memory_bytes=parts, peak_bytes=peak, needed_bytes=needed,
        fits=needed <= ROOM * job.device.memory_bytes, tokens_per_second=tokens / max(corrected, 1e-9), seconds=corrected,
        cost=None if spec.price_per_hour is None else hours * spec.price_per_hour, energy_kwh=energy,
        energy_cost=None if energy is None or spec.price_per_kwh is None else energy * spec.price_per_kwh,
        uncorrected={"peak_bytes": reported, "seconds": seconds}, past_runs=past.runs,
        how={**how, **_how_rest(job, counts, pace, past, watts, spec)},
    )  # fmt: skip


def _how_rest(job: Job, counts: StepCounts, pace: Pace, past: Correction, watts: float | None, spec: PlanSpec) -> dict[str, str]:
    what = "resident memory of the process" if job.precision.device == "cpu" else "memory allocated on the device, without libraries and allocator"
    said = {
        "steps": "the steps themselves, made from the row lengths",
        "padding": f"{counts.computed_tokens:,} tokens computed for {counts.tokens:,} of the rows",
        "trainable_parameters": "the adapter, attached to the base without memory",
        "peak_bytes": f"the parts' sum, as {what}{past.words('peak')}",
        "seconds": f"{pace.how}{past.words('seconds')}",
        "fits": f"within {ROOM:.0%} of {job.device.memory_bytes / 1e9:.1f} GB ({job.device.name})",
    }
    if spec.price_per_hour is not None:
        said["cost"] = f"{spec.price_per_hour:g} an hour, as plan.price_per_hour says"
    if watts is not None:
        said["energy_kwh"] = f"{watts:.0f} W, " + ("as plan.watts says" if spec.watts else "the board's limit in its data sheet")
    return said


def kind_of(job: Job) -> Kind:
    """What past runs must share with this one."""
    return Kind(job.device.name, str(job.precision), job.method, job.way.checkpointing)


# --- other devices -------------------------------------------------------------------------------------------------


def combinations(job: Job, devices: Sequence[Device], micro: Micro, load: Load, spec: PlanSpec) -> list[dict[str, Any]]:
    """For each device bf16 and nf4, without checkpointing and with it: does it fit, its peak (bytes), time (s) and cost. Times are by arithmetic."""
    parts = cache(lambda place, held, checkpointing: _parts_as(job, micro, place, held, checkpointing))
    return [_combination(job, device, held, on, parts, micro, load, spec) for device in devices for held in ("bf16", "nf4") for on in (False, True)]


def _as(job: Job, place: str, held: Any, checkpointing: bool) -> Job:
    """The job on another kind of device: `place` is cpu or cuda:0."""
    precision = training_precision(held, place) if place != "cpu" or held != "bf16" else training_precision("auto", place)
    flash = "flash" if place != "cpu" else job.way.attention
    adapters = job.way.adapter_dtype if place == job.precision.device else "bfloat16" if place != "cpu" else "float32"
    way = replace(job.way, attention=flash, adapter_dtype=adapters, checkpointing=checkpointing, offload=False)
    return replace(job, precision=precision, way=way)


def _parts_as(job: Job, micro: Micro, place: str, held: Any, checkpointing: bool) -> tuple[Job, dict[str, int]]:
    other = _as(job, place, held, checkpointing)
    return other, memory_parts(other, micro, library_bytes(place))[0]


def _combination(job: Job, device: Device, held: str, checkpointing: bool, parts: Any, micro: Micro, load: Load, spec: PlanSpec) -> dict[str, Any]:
    other, found = parts("cpu" if device.name.startswith("cpu") else "cuda:0", held, checkpointing)
    pace = by_arithmetic(job.shape, micro, device, other.way, held == "nf4")
    needed, seconds = sum(found.values()), pace.seconds(load)
    return {
        "device": device.name, "load": held, "checkpointing": checkpointing, "fits": needed <= ROOM * device.memory_bytes, "needed_bytes": needed,
        "device_bytes": device.memory_bytes, "seconds": seconds, "cost": None if spec.price_per_hour is None else seconds / 3600 * spec.price_per_hour,
        "how": pace.how,
    }  # fmt: skip
