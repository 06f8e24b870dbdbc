"""The only file that imports TRL's SFTTrainer: it is handed a finished PEFT model and finished optimiser steps, and copies of every config.

It refuses to go on from the first loss, gradient or weight that is not a finite number, naming the records of that step, and a run in which
tokens were not exactly those of its rows.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import datasets
import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig, SFTTrainer

from tuner.base import Precision
from tuner.errors import Problem, Refusal, refuse
from tuner.plan.steps import Batching, Steps, cut, deal
from tuner.template.row_cache import lengths_of
from tuner.template.tokens import Row
from tuner.train import method_files, methods
from tuner.train.checkpoint import RunFolder, apply_rates, rates_of
from tuner.train.kernels import IMPLEMENTATIONS, LIGER, TrainPath, compile_layers, refuse_leaks, refuse_other_logits, set_attention
from tuner.train.loss import LossPath, completion_nats, loss_path
from tuner.train.method_start import starting_factors
from tuner.train.ranks import is_main, rank, world_size
from tuner.train.rows import Collator, StepRows, StepTensors, loss_tokens, passes_of
from tuner.train.spec import MethodSpec, TrainSpec
from tuner.train.stopping import Heartbeat, Stopper
from tuner.train.trackers import Trackers

logger = logging.getLogger("tuner")


@dataclass(frozen=True)
class Trained:
    """What training gave. Losses are nats a token; `peak_bytes` is resident memory on a CPU, device memory on a GPU.

    `state` holds what training changed, gathered from all ranks; `shapes` are those of the tensors that must be saved, as training began;
    `largest_change` is the largest logit difference to the base, seen on one row.
    """

    model: PeftModel
    state: Mapping[str, torch.Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    sharded: bool
    largest_change: float
    is_main: bool
    steps: int
    tokens: int
    completion_tokens: int
    seconds: float
    peak_bytes: int
    log: tuple[dict[str, Any], ...]
    kept_step: int
    resumed_steps: tuple[int, ...] = ()

    @property
    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.log if "loss" in entry]

    def summary(self) -> dict[str, Any]:
        kept = ("steps", "tokens", "completion_tokens", "seconds", "peak_bytes", "kept_step", "resumed_steps", "largest_change")
        first, last = (self.losses[0], self.losses[-1]) if self.losses else (None, None)
        mean = None if not self.losses else sum(self.losses) / len(self.losses)
        return {k: getattr(self, k) for k in kept} | {
            "tokens_per_second": self.tokens / max(self.seconds, 1e-9), "first_loss": first, "last_loss": last, "mean_logged_loss": mean,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a run after a step, for whoever shows it."""

    step: int
    steps: int
    loss: float | None
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Job:
    """Everything one training run needs, finished: rows, recipe sections, precision, the path through it, where it is kept."""

    train: Sequence[Row]
    validation: Sequence[Row]
    method: MethodSpec
    spec: TrainSpec
    precision: Precision
    path: TrainPath
    seed: int
    pad_id: int
    scratch: Path
    new_ids: tuple[int, ...] = ()
    parent: Path | None = None
    run: RunFolder | None = None
    resume: Path | None = None
    stopper: Stopper | None = None
    trackers: Trackers | None = None
    heartbeat: Heartbeat | None = None
    relief: Callable[[], str] | None = None
    show: Callable[[Progress], None] | None = None


@dataclass
class Watched:
    """What is known of a run so far; kept in every checkpoint, so that a resumed run tells the same story as one that was not interrupted."""

    log: list[dict[str, Any]] = field(default_factory=list)
    loss_sum: float = 0.0
    loss_steps: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    best_step: int = 0
    worse_passes: int = 0
    resumed_steps: list[int] = field(default_factory=list)


# --- one optimiser step --------------------------------------------------------------------------------------------


class NotFinite(Refusal):
    """A loss, gradient or weight that is not a finite number: this run cannot be gone on with."""


class StepTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer, one dataset item an optimiser step; changed through methods that Trainer documents for overriding."""

    job: Job
    steps: Steps
    step_rows: StepRows
    loss_path: LossPath
    watched: Watched
    labelled: int = 0
    step_loss: float = 0.0
    gradient_norm: float = 0.0
    best: dict[str, torch.Tensor] | None = None
    shapes: Mapping[str, tuple[int, ...]]
    control: Any

    def get_train_dataloader(self) -> DataLoader[StepTensors]:
        return self.step_rows.loader()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over the method's own parameter groups (LoRA+ has two learning rates)."""
        if self.optimizer is None:
            of = model if model is not None else self.model
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, of)
            groups = methods.parameter_groups(self.job.method, of, self.job.spec.peak_learning_rate, self.job.spec.weight_decay)
            self.optimizer: Any = kind(groups, **settings)
        return self.optimizer  # type: ignore[no-any-return]

    def training_step(self, model: Any, inputs: dict[str, StepTensors], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of this rank's part of a step. The loss is divided by the labelled tokens of all ranks' parts."""
        model.train()
        step = inputs["step"]
        total = torch.zeros((), device=self.args.device)
        for index, batch in enumerate(step.micros):
            last = index == len(step.micros) - 1
            self.labelled += int((batch["labels"][:, 1:] >= 0).sum())
            self.accelerator.gradient_state._set_sync_gradients(last)  # as Trainer itself does between its passes
            shared = nullcontext() if last or self.is_deepspeed_enabled else self.accelerator.no_sync(model)
            with shared, self.maybe_activation_offload_context:
                with self.compute_loss_context_manager():
                    # Every rank divides by the tokens of all; the ranks' mean gradient is then too small by their number.
                    loss = self.nats(model, batch) * (self.accelerator.num_processes / max(step.loss_tokens, 1))
                    extra = methods.extra_loss(self.job.method, self.accelerator.unwrap_model(model)) if last else None
                self.accelerator.backward(loss if extra is None else loss + extra)
            total += loss.detach()
        self.step_loss = float(self.accelerator.reduce(total, reduction="mean"))  # what one rank found must stop all of them
        if not math.isfinite(self.step_loss):
            self.stop_at("loss", self.step_loss, step.number)
        return total

    def nats(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        """Summed nats of one forward pass."""
        if self.job.heartbeat is not None:
            self.job.heartbeat.tick()
        return completion_nats(model, self.accelerator.unwrap_model(model), self._prepare_inputs(batch), self.loss_path)

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        self.gradient_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not math.isfinite(self.gradient_norm):
            self.stop_at("gradient", self.gradient_norm, self.state.global_step)
        return norm

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss (nats a token) over every labelled token of validation, on all ranks together."""
        model, rows = self.model_wrapped, self.job.validation
        batching = self.step_rows.steps.batching
        lengths = np.asarray(lengths_of(rows), dtype=np.int64)
        own = deal(cut(range(len(rows)), lengths, batching), lengths, batching.ranks)[self.accelerator.process_index]
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in passes_of(rows, own, self.step_rows.collator):
                sums += torch.tensor([float(self.nats(model, batch)), float((batch["labels"][:, 1:] >= 0).sum())], dtype=torch.float64)
        model.train()
        nats, count = self.accelerator.reduce(sums.to(self.args.device), reduction="sum").tolist()
        metrics = {"eval_loss": nats / max(count, 1)}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Trainer's own files, and what was watched, through a staged, verified checkpoint; without pickled arguments and tokenizer copies."""
        if self.job.run is None:
            return
        accelerator = self.accelerator

        def fill(stage: Path) -> None:
            folder = folder_in(stage, self.state.global_step)
            folder.mkdir(exist_ok=True)
            self.args.output_dir = str(stage)
            try:
                super(SFTTrainer, self)._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = str(self.job.scratch)
            if accelerator.is_main_process:
                (folder / WATCHED).write_text(json.dumps(asdict(self.watched)), encoding="utf-8")
                if self.best is not None:
                    save_file(self.best, folder / BEST)

        self.job.run.save(self.state.global_step, fill, rank=accelerator.process_index, world=accelerator.num_processes, best_step=self.watched.best_step)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What training changed, by its own names: PEFT's files of some methods cannot be trained further. Sharded models go Trainer's way."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)
            if output_dir is not None:
                (Path(output_dir) / "training_args.bin").unlink(missing_ok=True)
        elif self.accelerator.is_main_process and output_dir is not None:
            state = method_files.training_state(self.accelerator.unwrap_model(self.model))
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, Path(output_dir) / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        kept = Path(resume_from_checkpoint) / TRAINED
        if not kept.is_file():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        method_files.load_training_state(self.accelerator.unwrap_model(self.model), load_file(kept))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As Trainer, but with the recipe's rates, should a change of them have been allowed: Trainer ignores it."""
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        rates = rates_of(self.optimizer)
        super()._load_optimizer_and_scheduler(checkpoint)
        apply_rates(self.optimizer, self.lr_scheduler, rates)

    def stop_at(self, what: str, value: float, number: int) -> NoReturn:
        """Refuse to go on, naming the records of the step on all ranks. Nothing is published after this."""
        records = [self.job.train[i].record for i in self.steps.step(number).rows]
        places = ", ".join(r.where for r in records[:64]) + (f" and {len(records) - 64} more" if len(records) > 64 else "")
        advice = f"look at these records of the step: {places}; or lower train.peak_learning_rate"
        raise NotFinite([Problem(f"step {number + 1}", what, str(value), "finite numbers", advice)])


# --- watching ------------------------------------------------------------------------------------------------------


class _Watch(TrainerCallback):  # type: ignore[misc]
    """After every step: are the weights finite; log, validate, checkpoint and stop at the right ones."""

    def __init__(self, trainer: StepTrainer):
        self.trainer, self.job, self.watched = trainer, trainer.job, trainer.watched
        self.began = time.monotonic() - trainer.watched.seconds
        self.first, self.here = 0, self.began  # step and time at which this process began
        self.rate = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.first, self.here = state.global_step, time.monotonic()
        self.began = self.here - self.watched.seconds

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.rate = float(given["optimizer"].param_groups[0]["lr"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self.trainer
        methods.after_step(self.job.method, trainer.accelerator.unwrap_model(trainer.model), state.global_step + 1, len(trainer.steps))

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        step, watched = state.global_step, self.watched
        state.epoch = self.trainer.steps.epochs_after(step)
        self._refuse_broken_weights(given["model"], step)
        watched.loss_sum, watched.loss_steps, watched.seconds = watched.loss_sum + self.trainer.step_loss, watched.loss_steps + 1, self.seconds
        if step == 1 or step % self.job.spec.log_every_steps == 0 or step == len(self.trainer.steps):
            self._log_loss(step)
        self._decide(step, control)
        if self.job.heartbeat is not None:
            self.job.heartbeat.beat(step)
        self._tell(step)

    def _decide(self, step: int, control: Any) -> None:
        """What happens after this step: validation, a checkpoint, the end."""
        spec, steps = self.job.spec, self.trainer.steps
        every = spec.validate_every_steps
        due = steps.ends_epoch(step) if every is None else step % every == 0 or step == len(steps)
        control.should_evaluate = bool(self.job.validation) and due
        stopped = step < len(steps) and self._stop_wanted()  # after the last step there is nothing left to go on with
        often = checkpoint_interval(spec, len(steps))
        control.should_save = self.job.run is not None and step < len(steps) and (stopped or (often > 0 and step % often == 0))
        control.should_training_stop = control.should_training_stop or stopped or step >= len(steps)

    def _stop_wanted(self) -> bool:
        """Did any rank get a signal? All ranks end after the same step."""
        stopper, accelerator = self.job.stopper, self.trainer.accelerator
        own = 0 if stopper is None or stopper.wanted is None else stopper.wanted
        if accelerator.num_processes > 1:
            own = int(accelerator.gather(torch.tensor([own], device=accelerator.device)).max())
        if own and stopper is not None:
            stopper.agreed = own
        return bool(own)

    def _refuse_broken_weights(self, model: Any, step: int) -> None:
        """Each rank looks at what it holds; what one of them finds stops all."""
        own = [getattr(p, "ds_tensor", p).detach() for p in model.parameters() if p.requires_grad]
        tensors = [t.to_local() if hasattr(t, "to_local") else t for t in own]
        norms = torch._foreach_norm([t for t in tensors if t.numel()], ord=float("inf"))
        broken = bool(norms) and not bool(torch.isfinite(torch.stack([n.float() for n in norms])).all())
        if _over_ranks(self.trainer, int(broken)):
            self.trainer.stop_at("weight", math.nan, step - 1)

    def _log_loss(self, step: int) -> None:
        """A line with the mean loss of the steps since the last one."""
        watched = self.watched
        loss = watched.loss_sum / watched.loss_steps
        watched.loss_sum, watched.loss_steps = 0.0, 0
        self._write(step, {"loss": loss, "learning_rate": self.rate, "gradient_norm": self.trainer.gradient_norm})

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Note a pass over validation: the best weights so far are kept aside; after `patience` passes without a better one, stop."""
        loss, watched, spec = metrics["eval_loss"], self.watched, self.job.spec
        self._write(state.global_step, {"validation_loss": loss})
        better = watched.best_loss is None or loss < watched.best_loss
        watched.worse_passes = 0 if better else watched.worse_passes + 1
        if better:
            watched.best_loss, watched.best_step = loss, state.global_step
            if spec.keep == "best":
                self.trainer.best = adapter_state(self.trainer)
        if spec.patience is not None and watched.worse_passes >= spec.patience:
            control.should_training_stop, control.should_save = True, False  # this is the end, not a place to go on from
            if self.job.stopper is not None:
                self.job.stopper.agreed = None

    def _write(self, step: int, values: dict[str, float]) -> None:
        """One line of train_log.jsonl, and the same to the trackers."""
        trainer = self.trainer
        epoch, tokens = round(trainer.steps.epochs_after(step), 6), trainer.steps.tokens_after(step)
        entry = {**values, "step": step, "epoch": epoch, "tokens": tokens, "seconds": round(self.seconds, 3)}
        self.watched.log.append(entry)
        if self.job.trackers is not None:
            self.job.trackers.log(entry)

    def _tell(self, step: int) -> None:
        if self.job.show is None or not self.trainer.accelerator.is_main_process:
            return
        steps, since = self.trainer.steps, time.monotonic() - self.here
        loss = next((e["loss"] for e in reversed(self.watched.log) if "loss" in e), None)
        tokens = steps.tokens_after(step) - steps.tokens_after(self.first)
        self.job.show(Progress(step, len(steps), loss, tokens / max(since, 1e-9), since / max(step - self.first, 1) * (len(steps) - step)))


WATCHED, BEST, TRAINED = "watched.json", "best.safetensors", "trained.safetensors"


def folder_in(checkpoint: Path, step: int) -> Path:
    """Where Trainer's own files are in a checkpoint."""
    return checkpoint / f"checkpoint-{step}"


def checkpoint_interval(spec: TrainSpec, steps: int) -> int:
    """Steps between two checkpoints; 0: none."""
    return max(1, math.ceil(steps / 10)) if spec.checkpoint_every_steps is None else spec.checkpoint_every_steps


# --- the run -------------------------------------------------------------------------------------------------------


def train(job: Job, model: Any, tokenizer: PreTrainedTokenizerBase) -> Trained:
    """Fit an adapter on `model`, from the beginning or from `job.resume`.

    Raises Refusal when anything stops being a finite number or memory runs out, KeyboardInterrupt or Terminated when a signal ended it
    after a finished, saved step.
    """
    _reset_peak()
    with _memory_refused(job), attention_on(job.path), job.trackers or nullcontext():
        trainer = make_trainer(job, model, tokenizer)
        trainer.loss_path = _loss_path(trainer)
        if job.path.packed:
            _refuse_leaks(trainer)
        trainer.train(resume_from_checkpoint=str(job.resume) if job.resume is not None else None)
        if job.stopper is not None and job.stopper.agreed:
            job.stopper.leave()
        _account(trainer)
        state = trainer.best if job.spec.keep == "best" and trainer.best is not None else adapter_state(trainer)
        if state is trainer.best and not is_sharded(trainer):
            method_files.load_training_state(trainer.accelerator.unwrap_model(trainer.model), state)
        largest_change = _largest_change(trainer)
    watched, steps = trainer.watched, trainer.state.global_step
    return Trained(
        model=trainer.accelerator.unwrap_model(trainer.model), state=state, shapes=trainer.shapes, sharded=is_sharded(trainer),
        largest_change=largest_change, is_main=trainer.accelerator.is_main_process, steps=steps,
        tokens=trainer.steps.tokens_after(steps), completion_tokens=_labelled(trainer, range(steps)), seconds=watched.seconds, peak_bytes=peak_bytes(),
        log=tuple(watched.log), kept_step=watched.best_step if state is trainer.best else steps, resumed_steps=tuple(watched.resumed_steps),
    )  # fmt: skip


def make_trainer(job: Job, model: Any, tokenizer: PreTrainedTokenizerBase) -> StepTrainer:
    """The trainer over a finished PEFT model and finished steps; nothing has run yet."""
    steps = plan_steps(job)
    _switch_attention(job, model)
    adapted = _attach(job, model, steps)
    if job.path.compiled:
        compile_layers(adapted)
    kept = {name: p.data for name, p in adapted.named_parameters() if p.requires_grad}
    trainer = StepTrainer(
        model=adapted, args=_arguments(job, len(steps)), train_dataset=_to_look_at(job.train), processing_class=deepcopy(tokenizer),
        data_collator=_as_given,
    )  # fmt: skip
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            parameter.data = kept[name].to(parameter.device)  # TRL makes adapters over quantised bases bf16; the recipe decides that here
    trainer.job, trainer.steps = job, steps
    trainer.shapes = {name: tuple(t.shape) for name, t in get_peft_model_state_dict(adapted, save_embedding_layers=False).items()}
    trainer.step_rows = StepRows(job.train, steps, Collator(job.pad_id, job.path.packed), trainer.accelerator.process_index)
    trainer.loss_path, trainer.watched = LossPath(None, methods.virtual_tokens(adapted)), _watched(job)
    if job.resume is not None and (job.resume / BEST).is_file():
        trainer.best = load_file(job.resume / BEST)
    trainer.add_callback(_Watch(trainer))
    for name in ("PrinterCallback", "ProgressCallback"):
        for callback in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == name]:
            trainer.remove_callback(callback)
    return trainer


def _switch_attention(job: Job, model: Any) -> None:
    """The path's attention on the base, which must go on giving the logits of its own on a short row."""
    if model.config._attn_implementation == IMPLEMENTATIONS[job.path.attention]:
        return
    batch = Collator(job.pad_id, job.path.packed)([_shortest(job)])
    given = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items() if k != "labels"}
    with torch.no_grad():
        before = model(input_ids=given["input_ids"], use_cache=False).logits
        set_attention(model, job.path.attention)
        refuse_other_logits(before, model(**given, use_cache=False).logits, job.path.attention)


def plan_steps(job: Job) -> Steps:
    """Every optimiser step of the run."""
    spec, path = job.spec, job.path
    batching = Batching(path.packed, path.grouped, path.micro_tokens, spec.tokens_per_step, spec.records_per_step, job.seed, world_size())
    return Steps(lengths_of(job.train), batching, spec.epochs, spec.max_steps)


def _attach(job: Job, model: Any, steps: Steps) -> PeftModel:
    """The adapter on the base, in the precision of the path."""
    collator, alone = Collator(job.pad_id, packed=False), replace(steps.batching, ranks=1)

    def batches() -> Iterator[dict[str, Any]]:
        """All rows on every rank: the adapter must begin the same on all, and as with one rank."""
        for number in range(len(steps)):
            for micro in cut(steps.rows(number), steps.lengths, alone):
                if job.heartbeat is not None:
                    job.heartbeat.tick()
                yield {k: v for k, v in collator([job.train[i] for i in micro]).items() if k != "labels"}

    return methods.attach(job.method, model, seed=job.seed, new_ids=job.new_ids, adapter_dtype=getattr(torch, job.path.adapter_dtype), batches=batches,
                          parent=job.parent)  # fmt: skip


def _to_look_at(rows: Sequence[Row]) -> datasets.Dataset:
    """TRL wants a dataset to look at; what is trained comes from StepRows and is counted (`_account`)."""
    return datasets.Dataset.from_dict({"input_ids": [rows[0].input_ids], "labels": [rows[0].labels]})


def _as_given(examples: list[Any]) -> Any:
    return examples[0]


def _watched(job: Job) -> Watched:
    if job.resume is None:
        return Watched()
    found = Watched(**json.loads((job.resume / WATCHED).read_text(encoding="utf-8")))
    found.resumed_steps.append(int(job.resume.name.removeprefix("checkpoint-")))
    return found


def _loss_path(trainer: StepTrainer) -> LossPath:
    """Chunked cross-entropy where it gives the model's own loss. Where the head will be sharded only the model itself can gather it."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    batch = Collator(trainer.job.pad_id, trainer.job.path.packed)([_shortest(trainer.job)])
    batch["labels"] = batch["input_ids"].clone()  # every position: also those that this row has no loss on
    virtual = methods.virtual_tokens(model)
    if is_sharded(trainer):
        return LossPath(None, virtual)
    training = model.training
    model.eval()  # no dropout between the two that are compared
    with trainer.compute_loss_context_manager():
        path = loss_path(model, trainer._prepare_inputs(batch), trainer.job.spec.kernels.loss_chunk, virtual)
    model.train(training)
    return path


def _shortest(job: Job) -> Row:
    lengths = lengths_of(job.train)
    return job.train[lengths.index(min(lengths))]


def _refuse_leaks(trainer: StepTrainer) -> None:
    """Two short rows packed, and alone."""
    job, model = trainer.job, trainer.accelerator.unwrap_model(trainer.model)
    rows = sorted(job.train, key=lambda r: len(r.input_ids))[:2]
    packed, alone = Collator(job.pad_id, True)(rows), [Collator(job.pad_id, True)([row]) for row in rows]
    training = model.training
    model.eval()
    with trainer.compute_loss_context_manager():
        refuse_leaks(model, trainer._prepare_inputs(packed), [trainer._prepare_inputs(row) for row in alone], "recipe")
    model.train(training)


def attention_on(path: TrainPath) -> AbstractContextManager[Any]:
    """On a CPU, PyTorch's plain attention for short rows: its flash kernel's backward pass is slower up to about 190 tokens.

    Measured forward and backward, bf16, 9 heads of 64, 512 tokens a batch: 3.0 against 4.9 ms at 64 tokens, 4.1 against 6.3 at
    128, but 8.4 against 6.5 at 256 (recipes/LOG.md, 2026-11-20).
    """
    return sdpa_kernel(SDPBackend.MATH) if path.plain else nullcontext()


@contextlib.contextmanager
def _memory_refused(job: Job) -> Iterator[None]:
    """Out of memory becomes a Refusal that names the recipe keys to change, with their effect by the plan."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        _refuse_memory(job, error)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        _refuse_memory(job, error)


def _refuse_memory(job: Job, error: Exception) -> NoReturn:
    relief = job.relief() if job.relief is not None else "lower train.micro_tokens, set train.gradient_checkpointing: true, or base.load: nf4"
    refusal = Refusal([Problem(f"training, rank {rank()}", "memory", str(error).splitlines()[0][:200], "a run that fits", relief)])
    if not is_main():
        logger.error("%s", refusal)  # the main rank, which prints refusals, learns only that this one is gone
    raise refusal from None


def _account(trainer: StepTrainer) -> None:
    """The law that nothing changes in silence: labelled tokens that were trained on are those of the rows, step by step of the plan."""
    resumed = trainer.watched.resumed_steps
    wanted = _labelled(trainer, range(resumed[-1] if resumed else 0, trainer.state.global_step))
    found = _over_ranks(trainer, trainer.labelled)
    if found != wanted:
        refuse("trainer", "train", f"{found} labelled tokens", f"the {wanted} of the rows it was given",
               "this is a fault of tuner or TRL, not of your data: please report it with `tuner version`")  # fmt: skip


def _labelled(trainer: StepTrainer, steps: range) -> int:
    """Loss tokens of all rows of these steps."""
    return sum(loss_tokens(trainer.job.train[i]) for number in steps for i in trainer.steps.rows(number))


def _over_ranks(trainer: StepTrainer, count: int) -> int:
    total = trainer.accelerator.reduce(torch.tensor(count, device=trainer.accelerator.device), reduction="sum")
    return int(total)


def adapter_state(trainer: StepTrainer) -> dict[str, torch.Tensor]:
    """What training changed, whole and on the CPU, by its own names: a collective call where the model is sharded."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    with _gathered([p for p in model.parameters() if p.requires_grad and hasattr(p, "ds_id")]):
        state = method_files.training_state(model)
        whole = {name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for name, tensor in state.items()}
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in whole.items()}


def _gathered(parts: list[Any]) -> AbstractContextManager[Any]:
    """DeepSpeed ZeRO-3 keeps a part of each parameter on each rank; inside, they are whole."""
    if not parts:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parts)  # type: ignore[no-any-return]


def is_sharded(trainer: StepTrainer) -> bool:
    """Does no rank hold the whole model?"""
    return bool(trainer.is_fsdp_enabled or (trainer.is_deepspeed_enabled and trainer.accelerator.deepspeed_plugin.zero_stage == 3))


def _largest_change(trainer: StepTrainer) -> float:
    """Largest logit difference that the adapter makes to the base on the shortest training row. All ranks run it together."""
    job, model = trainer.job, trainer.model_wrapped
    batch = trainer._prepare_inputs(Collator(job.pad_id, job.path.packed)([_shortest(job)]))
    batch.pop("labels")
    model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        adapted = model(**batch, use_cache=False).logits.float()
        with trainer.accelerator.unwrap_model(model).disable_adapter():
            base = model(**batch, use_cache=False).logits.float()
    return float((adapted[:, -base.shape[1] :] - base).abs().max())


def save_adapter(trained: Trained, spec: MethodSpec, folder: Path, base_name: str, revision: str | None) -> None:
    """Write PEFT's own two files and check them: Refusal for an adapter that lost tensors, is not finite, or changes nothing."""
    if trained.sharded:
        buffers = {name: b.detach().cpu() for name, b in trained.model.named_buffers()}
        methods.save(spec, trained.model, folder, base_name, revision, state_dict=buffers | dict(trained.state))
    else:
        method_files.load_training_state(trained.model, trained.state)
        methods.save(spec, trained.model, folder, base_name, revision)
    saved = load_file(folder / "adapter_model.safetensors")
    _refuse_broken_file(saved, _shapes_in_file(trained.model, trained.shapes))
    ups = [tensor for name, tensor in saved.items() if "lora_B" in name]
    if trained.largest_change == 0 or (ups and not any(bool(t.any()) for t in ups)):
        refuse("adapter_model.safetensors", "weights", "an adapter that leaves every logit of the base as it is", "weights that were trained",
               "raise train.peak_learning_rate or train for more steps")  # fmt: skip


def _shapes_in_file(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...] | None]:
    """The shape of every tensor that is written, from those at the beginning of training. None where training chose the rank (AdaLoRA)."""
    wanted: dict[str, tuple[int, ...] | None] = dict(shapes)
    if getattr(model.base_model, "rankallocator", None) is not None:
        wanted |= {name: None for name in shapes if ".lora_" in name}
    for path in starting_factors(model):
        down, up = f"{path}.lora_A.weight", f"{path}.lora_B.weight"
        wanted[down], wanted[up] = (2 * shapes[down][0], *shapes[down][1:]), (shapes[up][0], 2 * shapes[up][1])
    return wanted


def _refuse_broken_file(saved: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...] | None]) -> None:
    """Raises Refusal for tensors that are missing, unknown, empty, not finite, or of another shape than in training (None: any)."""
    hollow = (n for n, t in saved.items() if not t.numel() and shapes.get(n, ()) is not None)
    endless = (n for n, t in saved.items() if not bool(torch.isfinite(t.float()).all()))
    found = {
        "missing or unknown": sorted(set(shapes) ^ set(saved)),
        "empty or not finite": sorted({*hollow, *endless}),
        "of another shape": sorted(name for name, shape in shapes.items() if name in saved and shape not in (None, tuple(saved[name].shape))),
    }
    for what, names in found.items():
        if names:
            refuse("adapter_model.safetensors", "tensors", f"{len(names)} {what}, such as {names[0]}", "every tensor of the adapter, whole and finite",
                   "this is a fault of tuner or of the sharding, not of your data: please report it with `tuner version`")  # fmt: skip


def _arguments(job: Job, steps: int) -> SFTConfig:
    spec, path = job.spec, job.path
    pure = path.adapter_dtype == "bfloat16" and job.precision.weights == "bfloat16"  # nothing is left to cast
    return SFTConfig(
        output_dir=str(job.scratch),
        seed=job.seed,
        data_seed=job.seed,
        use_cpu=job.precision.device == "cpu",
        bf16=job.precision.autocast == "bfloat16" and not pure,
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        optim="adamw_torch_fused",
        learning_rate=spec.peak_learning_rate,
        lr_scheduler_type=spec.schedule if spec.schedule != "constant" else "constant_with_warmup",
        warmup_steps=round(spec.warmup_fraction * steps),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_gradient_norm,
        gradient_checkpointing=path.checkpointing,
        activation_offloading=path.offload,
        use_liger_kernel=path.liger,
        liger_kernel_config=LIGER if path.liger else None,
        torch_compile=False,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="no",
        prediction_loss_only=True,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Peak device memory on a GPU; on a CPU the peak resident set of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def as_log_lines(log: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in log)
