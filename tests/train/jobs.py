"""Jobs on the tiny base, as the pipeline makes them: shared by the tests of training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tuner import pipeline
from tuner.base import Precision, load_model
from tuner.recipe import load_recipe
from tuner.template.tokens import Row
from tuner.train import sft
from tuner.train.kernels import Fits, choose_path
from tuner.train.spec import MethodSpec, TrainSpec

FP32 = Precision("cpu", "float32", None)


def job_of(
    rows: Sequence[Row], spec: TrainSpec, scratch: Path, pad_id: int, validation: Sequence[Row] = (), method: MethodSpec | None = None,
    precision: Precision = FP32, seed: int = 42, **parts: Any,
) -> sft.Job:  # fmt: skip
    fits = Fits(spec.micro_tokens or 2048, spec.gradient_checkpointing is True, False)
    path = choose_path(spec, precision, max(len(r.input_ids) for r in rows), None, lambda _: fits, lambda key: f"recipe {key}")
    return sft.Job(rows, validation, method or MethodSpec(rank=4), spec, precision, path, seed, pad_id, scratch, **parts)


class Bench:
    """A recipe's rows and base, prepared once; every job on them gets a fresh model."""

    def __init__(self, recipe: Path, scratch: Path):
        self.prepared = pipeline.prepare(load_recipe(recipe))
        self.scratch = scratch

    def job(self, precision: Precision = FP32, method: MethodSpec | None = None, parts: Mapping[str, Any] | None = None, **changes: Any) -> sft.Job:
        """A job whose `train:` section has `changes`; `parts` are other fields of the job."""
        spec = TrainSpec(**{"epochs": 1.0, "peak_learning_rate": 1e-3, "log_every_steps": 1, "records_per_step": 8, **changes})
        rows = self.prepared.rows
        made = job_of(rows["train"], spec, self.scratch, self.prepared.encoder.pad_id, rows["validation"], method, precision)
        return replace(made, **(parts or {}))

    def model(self, precision: Precision = FP32) -> Any:
        return load_model(self.prepared.base, precision)

    @property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.prepared.base.folder)

    def trainer(self, job: sft.Job) -> sft.StepTrainer:
        return sft.make_trainer(job, self.model(job.precision), self.tokenizer)

    def train(self, job: sft.Job) -> sft.Trained:
        return sft.train(job, self.model(job.precision), self.tokenizer)


def digest(state: Mapping[str, torch.Tensor]) -> str:
    """Digest of an adapter's tensors by name."""
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(name.encode() + tensor.contiguous().float().numpy().tobytes())
    return found.hexdigest()
