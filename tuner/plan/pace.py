"""How long a training step takes: timed on slices of the base where the device is here, by arithmetic where it is not.

A slice is the base's own architecture with one decoder layer, or two, and random weights, loaded and adapted as the base will be. It refuses nothing.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tuner.base import Base, Precision, load_model
from tuner.plan.devices import Device
from tuner.plan.memory import Adapt, Micro, Shape, Way

TIMED_SECONDS = 2.0  # for all repeats together, and no more than a fiftieth of the run; at least REPEATS of each depth are timed
REPEATS = 3
SLICE_WORDS = 64  # rows of a slice's embedding: looking up is not what takes time


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of the parts of a run. The layers' are of a computed token through all of them, `head_token` of a labelled one."""

    token: float
    forward_token: float
    head_token: float
    each_pass: float
    each_step: float
    how: str

    def seconds(self, load: Load) -> float:
        """Of the whole run, validation included."""
        fitted = load.computed_tokens * self.token + load.loss_tokens * self.head_token + load.passes * self.each_pass
        return fitted + load.steps * self.each_step + load.watched_tokens * self.forward_token


@dataclass(frozen=True, slots=True)
class Load:
    """What one rank has to compute in the whole run. `watched_tokens`: computed tokens of all passes over validation."""

    steps: int
    passes: float
    computed_tokens: float
    loss_tokens: float
    watched_tokens: float = 0.0


def by_arithmetic(shape: Shape, micro: Micro, device: Device, way: Way, quantised: bool) -> Pace:
    """FLOP over the rate the device is expected to reach.

    Frozen weights cost 2 FLOP a token forward and 2 backward (no weight gradient), adapter weights 2 and 4 (Kaplan et al. 2020, arXiv 2001.08361,
    table 1), attention 2 · 2 · T/2 · width a head forward and two and a half times that backward (arXiv 2307.08691, section 3.1); checkpointing
    computes the forward part twice.
    """
    weights = 2.0 * shape.linear + 2.0 * shape.trainable
    attention = 2.0 * micro.width * shape.heads * shape.head_width * shape.layers
    forward = weights + attention
    flop = forward * (2 if way.checkpointing else 1) + 2.0 * shape.linear + 4.0 * shape.trainable + 2.5 * attention
    head = 4.0 * shape.head
    update = 28.0 * shape.trainable / max(device.bandwidth, 1.0)  # weight, gradient and two moments in fp32, read, and three of them written
    how = (
        f"{flop:.3g} FLOP a token through the layers and {head:.3g} a labelled one through the LM head, at {device.share:.0%} of {device.flops:.3g} FLOP/s "
        f"({device.name}, data sheet; share {device.share_how})" + ("; unpacking rounded weights not counted" if quantised else "")
    )
    rate = max(device.rate, 1.0)
    return Pace(flop / rate, forward / rate, head / rate, 0.0, update, how)


def timed(
    base: Base, adapt: Adapt, prepare: Callable[[Any], None], inputs: dict[str, Any], shape: Shape, precision: Precision, way: Way, passes: float = 1e9
) -> Pace:
    """The real thing on this device. `inputs` is a collated micro-batch of usual size (labels are ignored), `prepare(model)` switches a slice's
    kernels as those of the base will be, `adapt` attaches the adapter. Seconds are medians; depths take turns, so that a busy moment hits both."""
    tokens = int(inputs["input_ids"].numel())
    with tempfile.TemporaryDirectory(prefix="tuner-plan-") as folder:
        slices = [_slice(base, adapt, prepare, precision, way, depth, Path(folder)) for depth in (1, 2)]
    device = torch.device(precision.device)
    given = {
        k: v.to(device) % SLICE_WORDS if k == "input_ids" else v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items() if k != "labels"
    }
    seen: list[list[tuple[float, float]]] = [[], []]
    for model in slices:
        _once(model, given, precision)  # memory pools fill and kernels are chosen
    began = time.perf_counter()
    while len(seen[0]) < REPEATS or time.perf_counter() - began < min(TIMED_SECONDS, passes * shape.layers / 2 * seen[1][0][0] / 50):
        for times, model in zip(seen, slices, strict=True):
            times.append(_once(model, given, precision))
    one, two = ([statistics.median(part) for part in zip(*times, strict=True)] for times in seen)
    layer, forward_layer = (max(two[i] - one[i], two[i] / 4) for i in (0, 1))
    rest = one[0] - layer  # below zero where embeddings are frozen: the first layer passes no gradient on
    head, update = head_seconds(shape, precision, way.loss_chunk), update_seconds(shape, precision, way)
    how = (
        f"timed here, {len(seen[0])} times each: a slice of one layer and one of two, forward and backward, {tokens} computed tokens of the planned kind; "
        f"{layer * 1e3:.1f} ms a layer times {shape.layers}, {rest * 1e3:.1f} ms besides a pass, "
        f"{head * 1e3:.3f} ms a labelled token, {update * 1e3:.1f} ms an update"
    )
    return Pace(layer * shape.layers / tokens, forward_layer * shape.layers / tokens, head, rest, update, how)


def _slice(base: Base, adapt: Adapt, prepare: Callable[[Any], None], precision: Precision, way: Way, depth: int, folder: Path) -> Any:
    """The base's architecture with `depth` layers, random, loaded from a folder as the base itself will be, so that it is rounded likewise."""
    config = deepcopy(AutoConfig.from_pretrained(base.folder, local_files_only=True, trust_remote_code=base.spec.trust_remote_code))
    text = config.get_text_config()
    text.num_hidden_layers, text.vocab_size = depth, SLICE_WORDS
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(text, name, None)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:depth]
    place = folder / str(depth)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(place)
    loaded = load_model(replace(base, folder=place), precision)
    prepare(loaded)
    adapted = adapt(loaded)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(device=precision.device, dtype=getattr(torch, way.adapter_dtype))
    if way.checkpointing:
        loaded.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        loaded.enable_input_require_grads()
    return adapted.train()


def _once(model: Any, inputs: dict[str, Any], precision: Precision) -> tuple[float, float]:
    """Seconds of one forward and backward pass up to the LM head, and of its forward part."""
    hidden: list[torch.Tensor] = []

    def keep(_module: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden.append(given[0])
        return (given[0][:, :1], *given[1:])

    kind = precision.device.split(":")[0]
    narrow = getattr(torch, precision.autocast) if precision.autocast else torch.bfloat16
    handle = model.get_base_model().get_output_embeddings().register_forward_pre_hook(keep)
    began = _now(precision)
    with torch.autocast(kind, narrow, enabled=precision.autocast is not None):
        model(**inputs, use_cache=False)
    forward = _now(precision)
    handle.remove()
    top = hidden.pop()
    torch.autograd.backward(top, torch.ones_like(top))
    ended = _now(precision)
    model.zero_grad(set_to_none=True)
    return ended - began, forward - began


def _now(precision: Precision) -> float:
    if precision.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def head_seconds(shape: Shape, precision: Precision, chunk: int) -> float:
    """Seconds a labelled token takes in the LM head and the loss: one chunk of at most 256 positions, timed."""
    count = min(chunk, 256)
    kind = getattr(torch, precision.autocast or precision.weights)
    weight = torch.zeros(shape.vocabulary, shape.hidden, dtype=kind, device=precision.device)
    hidden = torch.zeros(count, shape.hidden, dtype=kind, device=precision.device)

    def once() -> float:
        began = _now(precision)
        scores = (hidden @ weight.t()).float()
        scores.sub_(torch.logsumexp(scores, dim=1, keepdim=True)).exp_().to(kind) @ weight
        return _now(precision) - began

    once()
    return statistics.median(once() for _ in range(REPEATS)) / count


def update_seconds(shape: Shape, precision: Precision, way: Way) -> float:
    """Seconds of one AdamW step over all trainable weights, from a step over at most five million."""
    count = max(1, min(shape.trainable, 5_000_000))
    weight = torch.nn.Parameter(torch.zeros(count, dtype=getattr(torch, way.adapter_dtype), device=precision.device))
    weight.grad = torch.ones_like(weight)
    update = torch.optim.AdamW([weight])

    def once() -> float:
        began = _now(precision)
        update.step()
        return _now(precision) - began

    once()
    return statistics.median(once() for _ in range(REPEATS)) * shape.trainable / count
