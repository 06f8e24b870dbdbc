"""What every PEFT method answers, and what its limits are: the base of the classes in method_lora, method_vectors and method_prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tuner.train.method_targets import is_transposed, saved_modules, saves_tied, token_rows
from tuner.train.spec import MethodSpec

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig

    from tuner.train.method_start import Batches

QUANTIZED = frozenset({"nf4", "fp4", "int8", "fp8"})
BITSANDBYTES = frozenset({"nf4", "fp4", "int8"})
FOUR_BIT = frozenset({"nf4", "fp4"})


@dataclass(frozen=True)
class Limits:
    """What a method can do. `reasons`: why not, by the name of the limit."""

    packs: bool = True  # rows can share a sequence
    checkpoints: bool = True  # gradient checkpointing works
    quantized: frozenset[str] = QUANTIZED  # of `base.load`
    merges: bool = True  # into 16-bit or 32-bit weights of the base
    vllm: bool = True
    gguf: bool = True
    new_tokens: bool = True
    modules_to_save: bool = True
    reasons: Mapping[str, str] = field(default_factory=dict)


NOT_LORA = {"vllm": "vLLM serves LoRA only", "gguf": "a LoRA file of llama.cpp holds LoRA only"}


class Method:
    """What a method answers: its config, its start, and where it differs from others while training."""

    what: str
    limits: Limits

    def config(self, spec: MethodSpec, model: Any, new_ids: Sequence[int] = ()) -> PeftConfig:
        raise NotImplementedError

    def continues(self, config: Any) -> bool:
        """Can an adapter of this PEFT config be trained further as this kind?"""
        return type(config) is self._config_class()

    def start(self, spec: MethodSpec, model: Any, batches: Batches | None) -> None:
        """Change the adapter that PEFT has initialised, where the method starts elsewhere."""

    def rate(self, spec: MethodSpec, parameter: str) -> float:
        """Learning rate of a parameter over the recipe's."""
        return 1.0

    def extra_loss(self, spec: MethodSpec, model: Any) -> torch.Tensor | None:
        return None

    def after_step(self, spec: MethodSpec, model: Any, step: int, steps: int) -> None:
        """Called after the optimiser's step, while gradients are there."""

    def _config_class(self) -> type:
        raise NotImplementedError


def scaled_rank(spec: MethodSpec, model: Any, names: Sequence[str]) -> dict[str, Any]:
    """What LoRA and AdaLoRA configs share."""
    return {"r": spec.rank, "lora_alpha": spec.alpha, "lora_dropout": spec.dropout or 0.0, "bias": "none"}


def placed(spec: MethodSpec, model: Any, names: Sequence[str], new_ids: Sequence[int] | None = None) -> dict[str, Any]:
    """Where an adapter sits. With `new_ids`, for configs that know how to train embedding rows and to keep tied embeddings tied."""
    placed: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": list(names), "fan_in_fan_out": is_transposed(model, names)}
    saved = saved_modules(spec, model, names, can_tie=new_ids is not None)
    if new_ids is not None:
        placed |= {"trainable_token_indices": token_rows(spec, model, new_ids), "ensure_weight_tying": saves_tied(saved, model)}
    return placed | {"modules_to_save": saved or None}
