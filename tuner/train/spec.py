"""The recipe's `method:` and `train:` sections: which adapter is trained, and how."""

from __future__ import annotations

from copy import deepcopy
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tuner.section import Section

Kind = Literal[
    "lora", "rslora", "dora", "lora_plus", "pissa", "olora", "loftq", "eva", "adalora", "ia3", "vera", "oft", "prefix", "prompt", "p_tuning"
]  # fmt: skip

_UPDATE: dict[str, Any] = {"rank": 16, "alpha": 32.0, "targets": "all-linear", "rank_per_layer": {}, "modules_to_save": []}
_LORA = _UPDATE | {"dropout": 0.0}
_PLACED: dict[str, Any] = {"targets": "all-linear", "modules_to_save": []}

# What each kind uses, with its default; any other field is refused when it is set.
FIELDS: dict[str, dict[str, Any]] = {
    "lora": _LORA,
    "rslora": _LORA,
    "dora": _LORA,
    "lora_plus": _LORA | {"learning_rate_ratio": 16.0},
    "pissa": _UPDATE,
    "olora": _UPDATE,
    "loftq": _UPDATE,
    "eva": {"rank": 16, "alpha": 32.0, "dropout": 0.0, **_PLACED, "rho": 2.0},
    "adalora": {"rank": 16, "alpha": 32.0, "dropout": 0.0, **_PLACED, "final_rank": 8, "orthogonality": 0.5},
    "ia3": _PLACED,
    "vera": _PLACED | {"rank": 256, "dropout": 0.0},
    "oft": _PLACED | {"block_size": 32, "dropout": 0.0},
    "prefix": {"virtual_tokens": 20, "init_text": None},
    "prompt": {"virtual_tokens": 20, "init_text": None},
    "p_tuning": {"virtual_tokens": 20, "encoder_width": 128},
}
# Kinds that continue an adapter, and what of it they may still choose: its shape and scale are the parent's.
CONTINUES: dict[str, frozenset[str]] = {
    "lora": frozenset({"dropout"}),
    "rslora": frozenset({"dropout"}),
    "dora": frozenset({"dropout"}),
    "lora_plus": frozenset({"dropout", "learning_rate_ratio"}),
    "ia3": frozenset(),
    "vera": frozenset({"dropout"}),
    "oft": frozenset({"dropout"}),
    "prefix": frozenset(),
    "prompt": frozenset(),
}


def _own(description: str, **limits: Any) -> Any:
    return Field(None, description=description, **limits)


class MethodSpec(Section):
    """The adapter. QLoRA is not a method: it is a quantised `base.load` with `kind: lora`. A field the kind does not use is null, and refused if set."""

    kind: Kind = Field("lora", description="adapter family; `tuner show methods` lists them")
    continue_from: str | None = Field(
        None, min_length=1, description="train this adapter further, recorded as parent: NAME@N of the store, or a version's folder; its shape stays"
    )
    rank: int | None = _own(
        "rank r of the update B·A (Hu et al. 2021, arXiv 2106.09685, eq. 3); adalora: before it is cut; vera: of the shared projections", ge=1, le=1024
    )
    alpha: float | None = _own("scaling numerator: the update is multiplied by alpha / rank (rslora: by alpha / sqrt(rank))", gt=0, le=65536)
    dropout: float | None = _own("dropout on the adapter's input while training (share; oft: share of blocks left alone)", ge=0, lt=1)
    targets: str | list[str] | None = _own(
        "`all-linear` (all but the LM head), `attention` (its linear layers), or exact module names such as [q_proj, v_proj]"
    )
    rank_per_layer: dict[str, Annotated[int, Field(ge=1, le=1024)]] | None = _own(
        "other ranks by layer number (`3`), range (`0-7`) or module name (`down_proj`, `layers.3.mlp.down_proj`; a name beats a number, a longer "
        "name a shorter); alpha / rank stays what it is (rslora: alpha stays)",
    )
    modules_to_save: list[str] | None = _own("modules trained and saved whole, such as [lm_head, embed_tokens]")
    learning_rate_ratio: float | None = _own("lora_plus: learning rate of B over that of A (arXiv 2402.12354, section 4)", ge=1)
    rho: float | None = _own("eva: a layer gets at most rho·rank, ranks go where they explain most variance; 1 = equal ranks (arXiv 2410.07170)", ge=1, le=16)
    final_rank: int | None = _own("adalora: mean rank that is left at the end (arXiv 2303.10512, eq. 12)", ge=1, le=1024)
    orthogonality: float | None = _own("adalora: weight of the orthogonality of its factors in the loss (arXiv 2303.10512, eq. 4)", ge=0)
    block_size: int | None = _own("oft: side of the rotated blocks; divides the input width of every target (arXiv 2306.07280)", ge=2, le=1024)
    virtual_tokens: int | None = _own("prefix, prompt, p_tuning: trained tokens before every prompt", ge=1, le=4096)
    init_text: str | None = _own(
        "prefix, prompt: text the virtual tokens start from, repeated until they are filled; default: random words of the vocabulary", min_length=1
    )
    encoder_width: int | None = _own("p_tuning: hidden width of the network that makes the virtual tokens", ge=1, le=16384)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, given: Any) -> Any:
        """Fields left out get the kind's default; with `continue_from` only those the parent does not decide."""
        if not isinstance(given, dict) or not isinstance(kind := given.get("kind", "lora"), str) or kind not in FIELDS:
            return given
        left = CONTINUES.get(kind, frozenset()) if given.get("continue_from") is not None else FIELDS[kind].keys()
        return {**{name: deepcopy(value) for name, value in FIELDS[kind].items() if name in left}, **given}

    @model_validator(mode="after")
    def _only_what_the_kind_uses(self) -> MethodSpec:
        unused = sorted(n for n in type(self).model_fields.keys() - {"kind", "continue_from"} if getattr(self, n) is not None and n not in FIELDS[self.kind])
        if unused:
            raise ValueError(f"kind: {self.kind} does not use {', '.join(unused)}; it uses {', '.join(FIELDS[self.kind])}: remove the rest")
        missing = sorted(n for n, default in FIELDS[self.kind].items() if default is not None and getattr(self, n) is None and self.continue_from is None)
        if missing:
            raise ValueError(f"kind: {self.kind} needs {', '.join(missing)}: give a value, or leave the key out for its default")
        if self.final_rank is not None and self.rank is not None and self.final_rank >= self.rank:
            raise ValueError(f"final_rank {self.final_rank} must be below rank {self.rank}, which adalora starts from")
        return self

    @model_validator(mode="after")
    def _the_parent_decides(self) -> MethodSpec:
        if self.continue_from is None:
            return self
        if self.kind not in CONTINUES:
            raise ValueError(f"kind: {self.kind} cannot continue an adapter: {NO_CONTINUATION[self.kind]}")
        given = sorted(n for n in type(self).model_fields.keys() - {"kind", "continue_from", *CONTINUES[self.kind]} if getattr(self, n) is not None)
        if given:
            raise ValueError(f"{', '.join(given)}: with continue_from these are the parent's; remove them")
        return self


_STARTS_ANEW = "it is a way to start one; what it gave is LoRA, so write kind: lora"
NO_CONTINUATION = {
    "pissa": _STARTS_ANEW,
    "olora": _STARTS_ANEW,
    "loftq": _STARTS_ANEW,
    "eva": _STARTS_ANEW,
    "adalora": "its ranks are already cut; train a new one",
    "p_tuning": "a saved one holds the virtual tokens, not the network that made them; train a new one, or use kind: prompt",
}


class KernelSpec(Section):
    """Which code computes what. `auto` picks by device and base, and the run prints what it picked and why."""

    attention: Literal["auto", "sdpa", "eager", "varlen", "flex"] = Field(
        "auto", description="attention: varlen is PyTorch's variable-length flash attention (CUDA), flex its compiled one (CUDA), sdpa runs everywhere"
    )
    liger: Literal["auto", "on", "off"] = Field("auto", description="Liger's norm, rotary and MLP kernels (CUDA; extra `gpu`)")
    compile: Literal["off", "layers"] = Field("off", description="torch.compile of each decoder layer; off until it was shown to help")
    offload: Literal["auto", "on", "off"] = Field("auto", description="kept activations in the machine's memory instead of the GPU's: slower, the last resort")
    loss_chunk: int = Field(1024, ge=1, description="labelled positions whose logits are held at a time (tokens)")


class TrainSpec(Section):
    """Optimisation. The batch is in tokens per optimiser step, over all ranks; how it is cut into forward passes changes no result."""

    seed: int | None = Field(None, ge=0, le=2**32 - 1, description="seed of the initial weights, the order of rows and dropout; default: the recipe's seed")
    epochs: float = Field(1.0, gt=0, le=1000, description="passes over the training rows")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimiser steps, whatever `epochs` says")
    tokens_per_step: int = Field(4096, ge=1, description="tokens in one optimiser step, padding left out, summed over ranks and micro-batches")
    records_per_step: int | None = Field(None, ge=1, description="instead of tokens_per_step: exactly so many records in one optimiser step")
    micro_tokens: int | None = Field(
        None, ge=1, description="tokens of one rank in one forward pass, padding counted; default: what the plan says fits, at most 16384"
    )
    batching: Literal["auto", "packed", "padded"] = Field(
        "auto", description="packed: several rows in one sequence, none attending to another; padded: a row each. auto: packed on a GPU, padded on a CPU"
    )
    order: Literal["auto", "shuffle", "length_groups"] = Field(
        "auto", description="row order: seeded shuffle, or shuffled groups of similar length (less padding). auto: groups where rows are padded"
    )
    peak_learning_rate: float = Field(2e-4, gt=0, description="learning rate after warm-up")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="how the learning rate falls after warm-up")
    warmup_fraction: float = Field(0.03, ge=0, lt=1, description="share of steps in which the learning rate rises from 0")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    max_gradient_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    adapter_precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="precision of the trained weights; auto: bf16 on a GPU, fp32 on a CPU")
    gradient_checkpointing: Literal["auto"] | bool = Field(
        "auto", description="recompute activations in the backward pass: less memory, more time. auto: only if the plan says that memory needs it"
    )
    kernels: KernelSpec = Field(default_factory=lambda: KernelSpec(), description="which code computes what; `auto` for all of it")
    log_every_steps: int = Field(5, ge=1, description="steps between two lines of train_log.jsonl")
    validate_every_steps: int | None = Field(None, ge=1, description="steps between two passes over validation; default: after every epoch")
    patience: int | None = Field(None, ge=1, description="stop after so many passes over validation in a row without a lower loss; default: never")
    keep: Literal["last", "best"] = Field("last", description="the weights that are published: the last, or those with the lowest validation loss")
    checkpoint_every_steps: int | None = Field(None, ge=0, description="steps between two checkpoints; default: a tenth of the run; 0: none but when stopped")
    keep_checkpoints: int = Field(2, ge=1, description="checkpoints kept while training; the newest that verifies is always kept")
    hang_seconds: float = Field(600.0, gt=0, description="a rank that finishes no step for so long ends the run, naming rank and step (s)")
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        [], description="also report to these, with secrets redacted; train_log.jsonl is always written"
    )

    @field_validator("kernels", mode="before")
    @classmethod
    def _one_word(cls, value: Any) -> Any:
        return {} if value == "auto" else value

    @model_validator(mode="after")
    def _makes_sense(self) -> TrainSpec:
        if self.kernels.attention in ("varlen", "flex") and self.batching == "padded":
            raise ValueError(f"kernels.attention: {self.kernels.attention} is for packed rows; write batching: packed, or attention: sdpa")
        if self.kernels.attention == "eager" and self.batching == "packed":
            raise ValueError("packed rows need kernels.attention sdpa, varlen or flex")
        return self
