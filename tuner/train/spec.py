"""The recipe's `method:` and `train:` sections: which adapter is trained, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tuner.section import Section


class MethodSpec(Section):
    """The adapter. QLoRA is not a method: it is a quantised `base.load` with `kind: lora`."""

    kind: Literal["lora"] = Field("lora", description="adapter family; `tuner show methods` lists them")
    rank: int = Field(16, ge=1, le=1024, description="rank r of the update B·A (Hu et al. 2021, arXiv 2106.09685, eq. 3)")
    alpha: float = Field(32.0, gt=0, le=65536, description="scaling numerator: the update is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input while training (share)")
    targets: str | list[str] = Field("all-linear", description="`all-linear` (all but the LM head), or exact module names such as [q_proj, v_proj]")


class TrainSpec(Section):
    """Optimisation. Batch size is in records per optimiser step, over all ranks."""

    epochs: float = Field(1.0, gt=0, le=1000, description="passes over the training rows")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimiser steps, whatever `epochs` says")
    records_per_step: int = Field(8, ge=1, description="records in one optimiser step, summed over ranks and micro-batches")
    micro_batch: int | None = Field(None, ge=1, description="records of one rank in one forward pass; default: as many as the step needs, at most 8")
    peak_learning_rate: float = Field(2e-4, gt=0, description="learning rate after warm-up")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="how the learning rate falls after warm-up")
    warmup_fraction: float = Field(0.03, ge=0, lt=1, description="share of steps in which the learning rate rises from 0")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    max_gradient_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    order: Literal["shuffle", "length_groups"] = Field("shuffle", description="row order: seeded shuffle, or shuffled groups of similar length (less padding)")
    log_every_steps: int = Field(5, ge=1, description="steps between two lines of train_log.jsonl")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass: less memory, more time")
