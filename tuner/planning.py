"""From a recipe's rows to its plan: which way through training is taken where the recipe says auto, and what that will cost.

It loads none of the base's weights. It refuses choices that cannot be had together.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model

from tuner.artifact.store import Version
from tuner.base import Base, Precision, pick_device, training_precision
from tuner.errors import refuse
from tuner.plan.budget import Job as Budget
from tuner.plan.budget import Plan, Rows, combinations, kind_of, largest_micro, library_bytes, make_plan, memory_parts, run_load
from tuner.plan.devices import named, this_machine
from tuner.plan.fit import Asked, choose, relief
from tuner.plan.history import correction, past_runs
from tuner.plan.memory import Micro, Way, model_shape, skeleton
from tuner.plan.pace import Pace, by_arithmetic, timed
from tuner.plan.steps import Batching, Steps
from tuner.recipe import Recipe
from tuner.template.tokens import Row
from tuner.train.kernels import Fits, TrainPath, attention_lacks, choose_path, set_kernels
from tuner.train.methods import METHODS, limits_of, refuse_impossible
from tuner.train.ranks import will_shard, world_size
from tuner.train.rows import Collator, loss_tokens
from tuner.train.sft import attention_on
from tuner.train.spec import MethodSpec

LIBRARIES = 800_000_000  # bytes of libraries, for choosing: what is resident now would make a second run choose otherwise
ADALORA_STEPS = 4
SHARDABLE = ("lora", "rslora", "lora_plus", "dora", "ia3")


def is_sharded_launch() -> bool:
    """Will no rank hold the whole base: FSDP, or DeepSpeed's ZeRO-3?"""
    zero = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true" and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
    return will_shard() or zero


@dataclass(frozen=True)
class Planned:
    """What a run will cost, the way through training that was picked, and the precision it is in."""

    plan: Plan
    way: TrainPath
    precision: Precision
    relief: Callable[[], str]


@dataclass(frozen=True)
class Planner:
    """A recipe on its base and rows, with the version it continues, about to be planned."""

    recipe: Recipe
    base: Base
    train: Sequence[Row]
    validation: Sequence[Row]
    pad_id: int
    new_ids: Sequence[int] = ()
    parent: Version | None = None

    @cached_property
    def precision(self) -> Precision:
        return training_precision(self.recipe.base.load, pick_device(), will_shard())

    @cached_property
    def rows(self) -> Rows:
        watched = sum(len(r.input_ids) for r in self.validation)
        return Rows([len(r.input_ids) for r in self.train], [loss_tokens(r) for r in self.train], watched)

    def way(self) -> TrainPath:
        """The path through training. Raises Refusal for what cannot be had together."""
        recipe, spec = self.recipe, self.recipe.train
        checkpointing = None if spec.gradient_checkpointing == "auto" else spec.gradient_checkpointing
        packed = None if spec.batching == "auto" else spec.batching == "packed"
        refuse_impossible(recipe.method, lambda key: recipe.at(*key.split(".")), load=recipe.base.load, packed=packed, checkpointing=checkpointing,
                          new_tokens=bool(self.new_ids))  # fmt: skip
        if is_sharded_launch() and recipe.method.kind not in SHARDABLE:
            refuse(recipe.at("method", "kind"), "method.kind", f"{recipe.method.kind} with a sharded base", "one of: " + ", ".join(SHARDABLE),
                   "use one of these, or train with DDP: the rest need whole weights or gradients on every rank")  # fmt: skip
        if not self.validation and (spec.keep == "best" or spec.patience is not None or spec.validate_every_steps is not None):
            refuse(recipe.at("train"), "train.keep, patience, validate_every_steps", "no validation split", "data.validation, or data.cut.validation",
                   "give a validation split, or leave these keys out")  # fmt: skip
        limits = limits_of(recipe.method, bool(self.new_ids))
        cannot_pack = None if limits.packs else limits.reasons["packs"]
        return choose_path(spec, self.precision, max(self.rows.lengths), cannot_pack, self._fits(limits.checkpoints), lambda key: recipe.at("train", key),
                           attention_lacks(skeleton(self.base, lambda model: model, 1)[0]))  # fmt: skip

    def plan(self, store: Path | None = None, devices: Sequence[str] = ()) -> Planned:
        """The estimates, corrected by the past runs of `store`; with `devices`, what fits on those too."""
        libraries = library_bytes(self.precision.device)
        way = self.way()
        job, steps = self._budget(way), self._steps(way)
        if self.recipe.method.kind == "adalora" and len(steps) < ADALORA_STEPS:
            refuse(self.recipe.at("method", "kind"), "method.kind", f"adalora for {len(steps)} steps", f"at least {ADALORA_STEPS}: ranks are cut on the way",
                   "train longer, or use kind: lora")  # fmt: skip
        counts = steps.counts()
        validations = self._validations(steps)
        epochs = steps.epochs_after(len(steps))
        load = run_load(counts, self.rows, epochs, validations, world_size())
        past = correction(past_runs(store), kind_of(job)) if store is not None else correction([], kind_of(job))
        made = make_plan(job, self.rows, counts, load, epochs, self._pace(job, way, steps), libraries, past, self.recipe.plan)
        if devices:
            made = replace(made, combinations=combinations(job, named(devices), largest_micro(counts, self.rows), load, self.recipe.plan))
        return Planned(made, way, self.precision, lambda: self._relief(way))

    # --- parts

    def _adapt(self, model: Any) -> Any:
        """The adapter's shape on `model`; where it starts is left out, so that it can be done without memory."""
        return self._with(model, self.recipe.method, self.new_ids)

    def _adapt_slice(self, model: Any) -> Any:
        """The same on a model of a layer or two and few words: ranks of single layers and rows of new tokens are left out."""
        method = self.recipe.method
        return self._with(model, method.model_copy(update={"rank_per_layer": {}}) if method.rank_per_layer else method, ())

    def _with(self, model: Any, method: MethodSpec, new_ids: Sequence[int]) -> Any:
        config = METHODS[method.kind].config(method, model, new_ids) if self.parent is None else PeftConfig.from_pretrained(str(self.parent.folder))
        config.inference_mode = False
        return get_peft_model(model, config, autocast_adapter_dtype=False)

    def _steps(self, way: TrainPath) -> Steps:
        spec = self.recipe.train
        batching = Batching(way.packed, way.grouped, way.micro_tokens, spec.tokens_per_step, spec.records_per_step, self.recipe.training_seed, world_size())
        return Steps(self.rows.lengths, batching, spec.epochs, spec.max_steps)

    def _validations(self, steps: Steps) -> int:
        """Passes over validation in the whole run."""
        every = self.recipe.train.validate_every_steps
        if not self.validation:
            return 0
        return len(steps.starts) if every is None else math.ceil(len(steps) / every)

    def _budget(self, way: TrainPath, precision: Precision | None = None) -> Budget:
        precision = precision or self.precision
        attention = "eager" if way.attention == "eager" else "math" if way.plain else "flash"
        held = Way(attention, way.adapter_dtype, way.liger, way.checkpointing, way.offload, self.recipe.train.kernels.loss_chunk)
        return Budget(self.base, self._adapt_slice, self._shape, precision, held, this_machine(precision.device), self.recipe.method.kind, self._traces)

    @cached_property
    def _traces(self) -> dict[Any, Any]:
        return {}

    @cached_property
    def _shape(self) -> Any:
        return model_shape(self.base, self._adapt)

    def _peak(self, way: TrainPath, precision: Precision | None = None) -> int:
        """Bytes needed at the worst moment."""
        parts, _ = memory_parts(self._budget(way, precision), self._micro(way), LIBRARIES)
        return sum(parts.values())

    def _micro(self, way: TrainPath) -> Micro:
        return largest_micro(self._steps(replace(way, micro_tokens=way.micro_tokens)).counts(), self.rows)

    def _fits(self, can_checkpoint: bool) -> Callable[[TrainPath], Fits]:
        """What memory decides for a path (tuner.plan.fit)."""
        spec = self.recipe.train
        asked = Asked(
            spec.micro_tokens, False if not can_checkpoint else None if spec.gradient_checkpointing == "auto" else spec.gradient_checkpointing,
            {"auto": None, "on": True, "off": False}[spec.kernels.offload],
        )  # fmt: skip
        cpu = self.precision.device == "cpu"
        longest = max(self.rows.lengths)
        of_step = spec.tokens_per_step if spec.records_per_step is None else spec.records_per_step * longest

        def decide(path: TrainPath) -> Fits:
            @lru_cache
            def peak(size: int, checkpointing: bool, offload: bool) -> int:
                return self._peak(replace(path, micro_tokens=size, checkpointing=checkpointing, offload=offload))

            found = choose(peak, this_machine(self.precision.device).memory_bytes, asked, math.ceil(of_step / world_size()), longest, cpu)
            return Fits(found.micro_tokens, found.checkpointing, found.offload, found.why)

        return decide

    def _pace(self, job: Budget, way: TrainPath, steps: Steps) -> Pace:
        """Timed on a micro-batch of the middle of the run."""
        micros = [m for m in steps.step(len(steps) // 2).ranks[0] if m]
        if not micros:
            return by_arithmetic(job.shape, self._micro(way), job.device, job.way, self.precision.quantised is not None)
        usual = Collator(self.pad_id, way.packed)([self.train[i] for i in micros[len(micros) // 2]])
        with attention_on(way), torch.random.fork_rng():
            return timed(self.base, self._adapt_slice, lambda model: set_kernels(model, way), usual, job.shape, self.precision, job.way, len(steps))

    def _relief(self, way: TrainPath) -> str:
        """The recipe keys that save most memory, with how much by the plan."""
        smaller = max(max(self.rows.lengths), way.micro_tokens // 2)
        limits, method = limits_of(self.recipe.method, bool(self.new_ids)), self.recipe.method
        options: list[tuple[str, str, Callable[[], int]]] = [("train.micro_tokens", str(smaller), lambda: self._peak(replace(way, micro_tokens=smaller)))]
        if limits.checkpoints:
            options.append(("train.gradient_checkpointing", "true", lambda: self._peak(replace(way, checkpointing=True))))
        if "nf4" in limits.quantized:
            options.append(("base.load", "nf4", lambda: self._peak(way, training_precision("nf4", self.precision.device))))
        if method.rank and method.rank > 1 and self.parent is None and method.kind != "adalora":
            half = method.model_copy(update={"rank": method.rank // 2})
            thinner = replace(self, recipe=self.recipe.model_copy(update={"method": half}))
            options.append(("method.rank", str(half.rank), lambda: thinner._peak(way)))
        found = relief(self._peak(way), options)
        return "; ".join(change.words() for change in found) or "a machine with more memory: no key of the recipe saves any"
