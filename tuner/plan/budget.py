"""What a run will cost, from the rows it will train on: steps, tokens, trainable parameters, memory and time.

It loads no weights: shapes come from the base's config on the meta device, speed from a matrix product timed on this machine.
Every estimate says how it was computed. It refuses nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tuner.base import Base, Precision
from tuner.plan.spec import PlanSpec

# Share of the timed matrix rate that a whole training step reaches, and resident bytes of Python with its libraries.
# Both measured on the quickstart recipe, 2 CPU cores, 2026-11-20 (recipes/LOG.md).
STEP_EFFICIENCY = {"cpu": 0.30, "cuda": 0.45}
LIBRARY_BYTES = {"cpu": 700_000_000, "cuda": 600_000_000}
ACTIVATION_COPIES = 11.5  # kept activations, in units of (hidden + intermediate) · layers · tokens, each of the compute dtype's size
ATTENTION_BYTES = 12  # plain attention keeps scores and weights: bytes per head · layer · row · token²
LOGIT_BYTES = 16  # logits in the compute dtype, in fp32, their log-softmax and gradient


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Token counts of the training rows, as far as the plan needs them: all tokens, and those that carry loss, of each row."""

    lengths: Sequence[int]
    loss_lengths: Sequence[int]

    @property
    def loss_tokens(self) -> int:
        return sum(self.loss_lengths)


@dataclass(frozen=True)
class Plan:
    """The estimates. Bytes, seconds and tokens are spelt out in the names; `how` says where each came from."""

    records: int
    tokens_per_epoch: int
    loss_tokens_per_epoch: int
    longest_row_tokens: int
    epochs: float
    steps: int
    records_per_step: int
    micro_batch: int
    trainable_parameters: int
    base_parameters: int
    precision: str
    memory_bytes: dict[str, int]
    tokens_per_second: float
    seconds: float
    cost: float | None
    how: dict[str, str]

    @property
    def peak_bytes(self) -> int:
        return sum(self.memory_bytes.values())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"peak_bytes": self.peak_bytes}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes read off the base and the adapter without weights."""

    parameters: int
    linear_parameters: int
    head_parameters: int
    trainable: int
    layers: int
    hidden: int
    intermediate: int
    heads: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """The part of the recipe's `train:` section the plan needs, as plain numbers."""

    epochs: float
    max_steps: int | None
    records_per_step: int
    micro_batch: int
    plain_attention: bool

    def steps_per_epoch(self, records: int) -> int:
        """Optimiser steps of one pass: the last may be smaller."""
        return max(1, math.ceil(records / self.records_per_step))

    def steps(self, records: int) -> int:
        """Optimiser steps of the whole run."""
        by_epochs = math.ceil(self.steps_per_epoch(records) * self.epochs)
        return by_epochs if self.max_steps is None else self.max_steps


def model_shape(base: Base, adapt: Any) -> Shape:
    """Sizes of the base, and of the adapter that `adapt(model)` puts on it, on the meta device (no memory)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base.folder, local_files_only=True, trust_remote_code=base.spec.trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=base.spec.trust_remote_code)
        head = model.get_output_embeddings()
        total = sum(p.numel() for p in model.parameters())
        linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
        adapted = adapt(model)
    text = config.get_text_config()
    return Shape(
        parameters=total,
        linear_parameters=linear,
        head_parameters=head.weight.numel() if head is not None else 0,
        trainable=sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        layers=getattr(text, "num_hidden_layers", 1),
        hidden=getattr(text, "hidden_size", 1),
        intermediate=getattr(text, "intermediate_size", None) or 4 * getattr(text, "hidden_size", 1),
        heads=getattr(text, "num_attention_heads", 1),
    )


def matrix_rate(precision: Precision, hidden: int, intermediate: int, rows: int) -> float:
    """FLOP a second of this machine on one matrix product of the base's own shape, in the precision of training."""
    import torch

    kind = getattr(torch, precision.autocast or precision.weights)
    left = torch.randn(max(rows, 8), hidden, device=precision.device).to(kind)
    right = torch.randn(hidden, intermediate, device=precision.device).to(kind)
    flop = 2 * left.shape[0] * hidden * intermediate
    repeats = max(3, min(200, int(2e9 / flop)))

    def once() -> float:
        began = time.perf_counter()
        for _ in range(repeats):
            left @ right
        if precision.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    return flop * repeats / min(once() for _ in range(3))


def make_plan(shape: Shape, rows: RowCounts, schedule: Schedule, precision: Precision, rate: float, spec: PlanSpec) -> Plan:
    """Put the estimates together."""
    records, tokens = len(rows.lengths), sum(rows.lengths)
    steps = schedule.steps(records)
    share_of_epochs = steps / schedule.steps_per_epoch(records)
    place = "cpu" if precision.device == "cpu" else "cuda"
    flop = _flop_per_epoch(shape, tokens, rows.loss_tokens) * share_of_epochs
    seconds = flop / (rate * STEP_EFFICIENCY[place])
    return Plan(
        records=records,
        tokens_per_epoch=tokens,
        loss_tokens_per_epoch=rows.loss_tokens,
        longest_row_tokens=max(rows.lengths, default=0),
        epochs=round(share_of_epochs, 3),
        steps=steps,
        records_per_step=schedule.records_per_step,
        micro_batch=schedule.micro_batch,
        trainable_parameters=shape.trainable,
        base_parameters=shape.parameters,
        precision=str(precision),
        memory_bytes=_memory(shape, rows, schedule, precision, place),
        tokens_per_second=tokens * share_of_epochs / max(seconds, 1e-9),
        seconds=seconds,
        cost=None if spec.price_per_hour is None else seconds / 3600 * spec.price_per_hour,
        how={
            "steps": "records / records_per_step, rounded up, times epochs",
            "seconds": f"{flop:.3g} FLOP (4 per linear weight and token, 6 per adapter weight and token, 4 per LM head weight and loss token) "
            f"at {STEP_EFFICIENCY[place]:.0%} of {rate:.3g} FLOP/s, timed on this machine; evaluation not included",
            "memory_bytes": "base weights as loaded; adapter weights, gradients and two AdamW moments in fp32; activations of the longest micro-batch",
        },
    )


def _flop_per_epoch(shape: Shape, tokens: int, loss_tokens: int) -> float:
    """Frozen weights cost 2 FLOP forward and 2 backward (no weight gradient); adapter weights 2 and 4 (Kaplan et al. 2020, table 1)."""
    return 4.0 * shape.linear_parameters * tokens + 6.0 * shape.trainable * tokens + 4.0 * shape.head_parameters * loss_tokens


def _memory(shape: Shape, rows: RowCounts, schedule: Schedule, precision: Precision, place: str) -> dict[str, int]:
    wide = 4 if precision.weights == "float32" else 2
    narrow = 2 if "bfloat16" in (precision.autocast, precision.weights) else 4
    longest = max(rows.lengths, default=0)
    units = (shape.hidden + shape.intermediate) * shape.layers * schedule.micro_batch * longest
    scores = schedule.micro_batch * shape.heads * shape.layers * longest**2 if schedule.plain_attention else 0
    head_positions = schedule.micro_batch * max(rows.loss_lengths, default=0)
    vocabulary = shape.head_parameters // max(shape.hidden, 1)
    return {
        "libraries": LIBRARY_BYTES[place],
        "base": shape.parameters * wide,
        "base_as_cast": shape.linear_parameters * 2 if precision.autocast and wide == 4 else 0,
        "adapter": shape.trainable * 4,
        "gradients": shape.trainable * 4,
        "optimizer": shape.trainable * 8,
        "activations": int(units * ACTIVATION_COPIES * narrow),
        "attention": scores * ATTENTION_BYTES,
        "logits": head_positions * vocabulary * LOGIT_BYTES,
    }
