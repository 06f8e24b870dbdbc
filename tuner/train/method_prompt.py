"""Prompt learning: trained tokens, or their keys and values, before every prompt. No weight of the base is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tuner.train.method_kind import NOT_LORA, Limits, Method
from tuner.train.spec import MethodSpec

if TYPE_CHECKING:
    from peft import PeftConfig

    from tuner.train.method_start import Batches


_TOKENS_BEFORE = {
    "packs": "the virtual tokens come before the first row of a sequence only",
    "merges": "it trains tokens, not weights",
    "new_tokens": "PEFT trains no embedding rows beside it",
    "modules_to_save": "PEFT trains no other modules beside it",
    **NOT_LORA,
}
_PROMPTS = Limits(packs=False, merges=False, vllm=False, gguf=False, new_tokens=False, modules_to_save=False, reasons=_TOKENS_BEFORE)


class Prompt(Method):
    """Prompt tuning: trained embeddings before every prompt (arXiv 2104.08691)."""

    what = "trained embeddings before every prompt: a few thousand weights"
    limits = _PROMPTS

    def config(self, spec: MethodSpec, model: Any, new_ids: Sequence[int] = ()) -> PeftConfig:
        return self._config_class()(task_type="CAUSAL_LM", num_virtual_tokens=spec.virtual_tokens, **self._options(spec))

    def start(self, spec: MethodSpec, model: Any, batches: Batches | None) -> None:
        from tuner.train.method_start import start_from_words

        start_from_words(spec, model)

    def _options(self, spec: MethodSpec) -> dict[str, Any]:
        return {}

    def _config_class(self) -> type:
        from peft import PromptTuningConfig

        return PromptTuningConfig  # type: ignore[no-any-return]


class PTuning(Prompt):
    """P-tuning: the virtual tokens' embeddings come from a small network, which is left behind after training (arXiv 2103.10385)."""

    what = "embeddings before every prompt, made by a small network that is left behind after training"

    def start(self, spec: MethodSpec, model: Any, batches: Batches | None) -> None:
        """The network's own random start."""

    def _options(self, spec: MethodSpec) -> dict[str, Any]:
        return {"encoder_hidden_size": spec.encoder_width}

    def _config_class(self) -> type:
        from peft import PromptEncoderConfig

        return PromptEncoderConfig  # type: ignore[no-any-return]


class Prefix(Prompt):
    """Prefix tuning: trained keys and values before every prompt in every layer (arXiv 2101.00190)."""

    what = "trained keys and values before every prompt, in every layer"
    limits = replace(_PROMPTS, checkpoints=False, reasons={**_TOKENS_BEFORE, "checkpoints": "its keys come as a cache, which checkpointing drops"})

    def start(self, spec: MethodSpec, model: Any, batches: Batches | None) -> None:
        from tuner.train.method_start import start_from_keys_of_words

        start_from_keys_of_words(spec, model)

    def _config_class(self) -> type:
        from peft import PrefixTuningConfig

        return PrefixTuningConfig  # type: ignore[no-any-return]
