"""The only file that imports TRL's SFTTrainer: it is handed finished rows, a loaded model and copies of every config.

It refuses a trainer whose rows differ from those it was given, and stops at the first loss, gradient or weight that is not a
finite number, naming the records of that step.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig, SFTTrainer

from tuner.base import Precision
from tuner.catalog import choose
from tuner.errors import refuse
from tuner.template.tokens import IGNORED, Row
from tuner.train.loss import completion_loss
from tuner.train.methods import METHODS
from tuner.train.spec import MethodSpec, TrainSpec

SHORT_ROW_TOKENS = 192


@dataclass(frozen=True)
class Trained:
    """What training gave. Losses are nats a token; `peak_bytes` is resident memory on a CPU, device memory on a GPU."""

    model: PeftModel
    is_main: bool
    steps: int
    tokens: int
    completion_tokens: int
    seconds: float
    first_loss: float
    last_loss: float
    peak_bytes: int
    log: tuple[dict[str, Any], ...]

    def summary(self) -> dict[str, Any]:
        kept = ("steps", "tokens", "completion_tokens", "seconds", "first_loss", "last_loss", "peak_bytes")
        return {k: getattr(self, k) for k in kept} | {"tokens_per_second": self.tokens / max(self.seconds, 1e-9)}


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a run after a step, for whoever shows it."""

    step: int
    steps: int
    loss: float | None
    tokens_per_second: float
    seconds_left: float


def as_dataset(rows: Sequence[Row]) -> datasets.Dataset:
    """Finished rows in the form TRL takes: input_ids and labels, and the row's number so that records can be named."""
    return datasets.Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows], "row": list(range(len(rows)))})


@dataclass(frozen=True)
class PaddedBatch:
    """Collator: rows padded on the right to the longest of the batch. Adds attention_mask (B, T)."""

    pad_id: int

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(e["input_ids"]) for e in examples)

        def padded(key: str, filler: int) -> torch.Tensor:
            return torch.tensor([list(e[key]) + [filler] * (longest - len(e[key])) for e in examples])

        lengths = torch.tensor([len(e["input_ids"]) for e in examples])
        return {
            "input_ids": padded("input_ids", self.pad_id),
            "labels": padded("labels", IGNORED),
            "attention_mask": (torch.arange(longest)[None, :] < lengths[:, None]).long(),
            "row": torch.tensor([e["row"] for e in examples]),
        }


class CompletionTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with our loss, through its public method `compute_loss`; nothing else of it is changed."""

    rows: Sequence[Row]
    recent: deque[int]
    tokens_seen: int = 0

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        inputs = dict(inputs)
        numbers = inputs.pop("row").tolist()
        unwrapped = self.accelerator.unwrap_model(model)
        training = model.training
        loss = completion_loss(model, unwrapped, inputs, num_items_in_batch if training else None)
        if training:
            self.recent.extend(numbers)
            self.tokens_seen += int(inputs["attention_mask"].sum())
            if not bool(torch.isfinite(loss)):
                self.stop_at("loss", float(loss))
            if num_items_in_batch is not None and self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes  # DDP averages gradients; the count is of all ranks
        return (loss, None) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None

    def stop_at(self, what: str, value: float) -> None:
        """Refuse to go on, naming the records of the step. Nothing is published after this."""
        records = [self.rows[i].record for i in dict.fromkeys(self.recent)]
        places = ", ".join(r.where for r in records[:64]) + (f" and {len(records) - 64} more" if len(records) > 64 else "")
        refuse(f"step {self.state.global_step + 1}", what, value, "finite numbers",
               f"look at these records of the step: {places}; or lower train.peak_learning_rate")  # fmt: skip


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Checks that gradients and weights are finite, writes train_log.jsonl, and reports progress."""

    def __init__(self, log_path: Path | None, show: Callable[[Progress], None] | None):
        self.trainer: CompletionTrainer | None = None
        self.log: list[dict[str, Any]] = []
        self.log_path, self.show = log_path, show
        self.began = time.monotonic()
        self.loss: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.monotonic()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._check("gradient", [p.grad for p in given["model"].parameters() if p.grad is not None])

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._check("weight", [p.detach() for p in given["model"].parameters() if p.requires_grad])
        assert self.trainer is not None
        self.trainer.recent.clear()
        if self.show is not None:
            spent = time.monotonic() - self.began
            left = spent / max(state.global_step, 1) * (state.max_steps - state.global_step)
            self.show(Progress(state.global_step, state.max_steps, self.loss, self.trainer.tokens_seen / max(spent, 1e-9), left))

    def _check(self, what: str, tensors: list[torch.Tensor]) -> None:
        norms = torch._foreach_norm([t.detach() for t in tensors], ord=float("inf")) if tensors else []
        if norms and not bool(torch.isfinite(torch.stack([n.float() for n in norms])).all()):
            assert self.trainer is not None
            self.trainer.stop_at(what, math.nan)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        assert self.trainer is not None
        entry = _log_entry(logs or {}, state.global_step, self.trainer.tokens_seen, time.monotonic() - self.began)
        if entry is None:
            return
        self.loss = entry.get("loss", self.loss)
        self.log.append(entry)
        if self.log_path is not None:
            with open(self.log_path, "a", encoding="utf-8") as out:
                out.write(json.dumps(entry, sort_keys=True) + "\n")


def _log_entry(logs: dict[str, Any], step: int, tokens: int, seconds: float) -> dict[str, Any] | None:
    """One line of train_log.jsonl. Names are ours: loss, validation_loss, learning_rate, gradient_norm."""
    names = {"loss": "loss", "eval_loss": "validation_loss", "learning_rate": "learning_rate", "grad_norm": "gradient_norm", "epoch": "epoch"}
    entry = {names[k]: float(v) for k, v in logs.items() if k in names}
    if "loss" not in entry and "validation_loss" not in entry:
        return None
    return entry | {"step": step, "tokens": tokens, "seconds": round(seconds, 3)}


@dataclass(frozen=True)
class Job:
    """Everything one training run needs, finished: rows, recipe sections, precision, where to keep its scratch files."""

    train: Sequence[Row]
    validation: Sequence[Row]
    method: MethodSpec
    spec: TrainSpec
    precision: Precision
    seed: int
    pad_id: int
    scratch: Path
    new_ids: tuple[int, ...] = ()
    log_path: Path | None = None
    show: Callable[[Progress], None] | None = None


def train(job: Job, model: Any, tokenizer: PreTrainedTokenizerBase) -> Trained:
    """Fit an adapter on `model`. Raises Refusal when anything stops being a finite number."""
    watch = _Watch(job.log_path, job.show)
    trainer = _trainer(job, model, tokenizer, watch)
    _same_rows(trainer, job)
    _reset_peak()
    began = time.monotonic()
    with attention_on(job.precision.device, max(len(r.input_ids) for r in job.train)):
        trainer.train()
    seconds = time.monotonic() - began
    losses = [e["loss"] for e in watch.log if "loss" in e]
    completion = sum(r.completion_tokens for r in job.train)
    tokens = _over_ranks(trainer, trainer.tokens_seen)
    return Trained(
        model=trainer.accelerator.unwrap_model(trainer.model),
        is_main=trainer.accelerator.is_main_process,
        steps=trainer.state.global_step,
        tokens=tokens,
        completion_tokens=round(completion * float(trainer.state.epoch or 0)),
        seconds=seconds,
        first_loss=losses[0] if losses else math.nan,
        last_loss=losses[-1] if losses else math.nan,
        peak_bytes=peak_bytes(),
        log=tuple(watch.log),
    )


def attention_on(device: str, longest: int) -> AbstractContextManager[Any]:
    """On a CPU, PyTorch's plain attention for short rows: its flash kernel's backward pass is slower up to about 190 tokens.

    Measured forward and backward, bf16, 9 heads of 64, 512 tokens a batch: 3.0 against 4.9 ms at 64 tokens, 4.1 against 6.3 at
    128, but 8.4 against 6.5 at 256 (recipes/LOG.md, 2026-11-20).
    """
    return sdpa_kernel(SDPBackend.MATH) if is_short(device, longest) else nullcontext()


def is_short(device: str, longest: int) -> bool:
    """Are the rows short enough for plain attention to win on this device?"""
    return device == "cpu" and longest <= SHORT_ROW_TOKENS


def _over_ranks(trainer: CompletionTrainer, count: int) -> int:
    total = trainer.accelerator.reduce(torch.tensor(count, device=trainer.accelerator.device), reduction="sum")
    return int(total)


def _trainer(job: Job, model: Any, tokenizer: PreTrainedTokenizerBase, watch: _Watch) -> CompletionTrainer:
    method = choose(METHODS, job.method.kind, "recipe", "method.kind")
    trainer = CompletionTrainer(
        model=model,
        args=_arguments(job),
        train_dataset=as_dataset(job.train),
        eval_dataset=as_dataset(job.validation) if job.validation else None,
        processing_class=deepcopy(tokenizer),
        data_collator=PaddedBatch(job.pad_id),
        peft_config=deepcopy(method.config(job.method, model, job.new_ids)),
        callbacks=[watch],
    )
    trainer.rows, trainer.recent = job.train, deque()
    watch.trainer = trainer
    for name in ("PrinterCallback", "ProgressCallback"):
        for callback in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == name]:
            trainer.remove_callback(callback)
    return trainer


def micro_batch(spec: TrainSpec, world_size: int) -> tuple[int, int]:
    """(records of one rank in one forward pass, passes a step) so that passes x ranks x records = records_per_step."""
    if spec.records_per_step % world_size:
        refuse("recipe", "train.records_per_step", spec.records_per_step, f"a multiple of the {world_size} ranks",
               f"set it to {world_size * max(1, round(spec.records_per_step / world_size))}")  # fmt: skip
    share = spec.records_per_step // world_size
    if spec.micro_batch is not None:
        if share % spec.micro_batch:
            refuse("recipe", "train.micro_batch", spec.micro_batch, f"a divisor of {share}, one rank's records in a step", "set it to a divisor")
        return spec.micro_batch, share // spec.micro_batch
    size = next(n for n in range(min(share, 8), 0, -1) if share % n == 0)
    return size, share // size


def _arguments(job: Job) -> SFTConfig:
    spec, world = job.spec, _world_size()
    size, passes = micro_batch(spec, world)
    steps = math.ceil(math.ceil(len(job.train) / spec.records_per_step) * spec.epochs)
    return SFTConfig(
        output_dir=str(job.scratch),
        seed=job.seed,
        data_seed=job.seed,
        use_cpu=job.precision.device == "cpu",
        bf16=job.precision.autocast == "bfloat16",
        num_train_epochs=spec.epochs,
        max_steps=spec.max_steps if spec.max_steps is not None else -1,
        per_device_train_batch_size=size,
        per_device_eval_batch_size=size,
        gradient_accumulation_steps=passes,
        learning_rate=spec.peak_learning_rate,
        lr_scheduler_type=spec.schedule if spec.schedule != "constant" else "constant_with_warmup",
        warmup_steps=round(spec.warmup_fraction * min(steps, spec.max_steps or steps)),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_gradient_norm,
        gradient_checkpointing=spec.gradient_checkpointing,
        train_sampling_strategy="group_by_length" if spec.order == "length_groups" else "random",
        logging_steps=spec.log_every_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="epoch" if job.validation else "no",
        prediction_loss_only=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def _world_size() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else _launched_ranks()


def _launched_ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _same_rows(trainer: CompletionTrainer, job: Job) -> None:
    """The law that nothing changes in silence, checked on what the trainer holds: rows, tokens, labels, one by one."""
    for name, rows, held in (("train", job.train, trainer.train_dataset), ("validation", job.validation, trainer.eval_dataset)):
        if not rows:
            continue
        count, tokens, digest = 0, 0, hashlib.sha256()
        for example in held:
            count += 1
            tokens += len(example["input_ids"])
            digest.update(json.dumps([example["input_ids"], example["labels"]]).encode())
        wanted = hashlib.sha256()
        for row in rows:
            wanted.update(json.dumps([row.input_ids, row.labels]).encode())
        if count != len(rows) or tokens != sum(len(r.input_ids) for r in rows) or digest.digest() != wanted.digest():
            refuse("trainer", name, f"{count} rows, {tokens} tokens, or other labels", f"the {len(rows)} rows it was given, unchanged",
                   "this is a fault of tuner or TRL, not of your data: please report it with `tuner version`")  # fmt: skip


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Peak device memory on a GPU; on a CPU the peak resident set of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def save_adapter(model: PeftModel, folder: Path, base_name: str, revision: str | None) -> None:
    """Write PEFT's own two files, without PEFT's card, local paths or any pickle."""
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = base_name, revision
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def as_log_lines(log: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in log)
