"""PEFT methods, one class and one row each: how the recipe's `method:` becomes trained weights around a frozen base, and files again.

It refuses, before anything is loaded, what a method cannot do: be packed, sit on a quantised base, live with checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.errors import Collector, refuse
from tuner.safe_text import quoted
from tuner.train.method_kind import QUANTIZED, Limits, Method
from tuner.train.method_lora import AdaLora, Dora, Eva, Loftq, Lora, LoraPlus, Olora, Pissa, RsLora
from tuner.train.method_prompt import Prefix, Prompt, PTuning
from tuner.train.method_targets import target_modules
from tuner.train.method_vectors import Ia3, Oft, Vera
from tuner.train.spec import CONTINUES, MethodSpec

if TYPE_CHECKING:
    import torch

    from tuner.train.method_start import Batches

__all__ = [
    "METHODS",
    "Limits",
    "after_step",
    "attach",
    "extra_loss",
    "limits_of",
    "parameter_groups",
    "refuse_impossible",
    "save",
    "target_modules",
    "virtual_tokens",
]


def limits_of(spec: MethodSpec, new_tokens: bool = False) -> Limits:
    """What this adapter can do: the kind's limits, and those of what it trains besides or of ranks that differ."""
    limits = METHODS[spec.kind].limits
    uneven = bool(spec.rank_per_layer) or (spec.kind == "eva" and (spec.rho or 1.0) > 1)
    besides = {"modules saved whole": bool(spec.modules_to_save), "embedding rows of new tokens": new_tokens, "ranks that differ by layer": uneven}
    for reason in (words for words, holds in besides.items() if holds):
        closed = {name: f"it does not read {reason}" for name in ("vllm", "gguf") if name not in limits.reasons}
        limits = replace(limits, vllm=False, gguf=False, reasons={**limits.reasons, **closed})
    return limits


def refuse_impossible(spec: MethodSpec, where: Callable[[str], str], *, load: str, packed: bool | None, checkpointing: bool | None, new_tokens: bool) -> None:
    """Refuse, with every reason at once, what the method cannot do. `where` places a recipe key; None means the choice is ours, so no fault."""
    limits, problems = METHODS[spec.kind].limits, Collector()
    if spec.kind == "loftq" and load not in limits.quantized:
        problems.add(where("base.load"), "base.load", load, "nf4 or fp4 with kind: loftq, which corrects the error of a 4-bit base", "set base.load: nf4")
    elif load in QUANTIZED - limits.quantized:
        others = ", ".join(sorted(limits.quantized)) or "bf16 or fp32"
        problems.add(where("base.load"), "base.load", load, f"{others} with kind: {spec.kind}: {limits.reasons['quantized']}",
                     f"set base.load: {others.split(',')[0].split(' ')[0]}, or method.kind: lora")  # fmt: skip
    if packed and not limits.packs:
        problems.add(where("train.batching"), "train.batching", "packed", f"padded with kind: {spec.kind}: {limits.reasons['packs']}",
                     "set train.batching: padded")  # fmt: skip
    if checkpointing and not limits.checkpoints:
        problems.add(where("train.gradient_checkpointing"), "train.gradient_checkpointing", "true",
                     f"false with kind: {spec.kind}: {limits.reasons['checkpoints']}", "set train.gradient_checkpointing: false")  # fmt: skip
    if new_tokens and not limits.new_tokens:
        problems.add(where("template.new_tokens"), "template.new_tokens", "new tokens", f"none with kind: {spec.kind}: {limits.reasons['new_tokens']}",
                     "use kind: lora, or remove the new tokens")  # fmt: skip
    problems.raise_if_any()


def attach(
    spec: MethodSpec,
    model: Any,
    *,
    seed: int,
    new_ids: Sequence[int] = (),
    adapter_dtype: torch.dtype | None = None,
    batches: Batches | None = None,
    parent: Path | None = None,
) -> Any:
    """The PeftModel to train: `model` itself, changed. The same seed (and batches, for eva) give the same weights.

    `adapter_dtype` None: what is trained is fp32 where the base is narrower, as PEFT does for autocast. `parent`: a folder of adapter files
    to continue from. On the meta device (a plan; a rank that is handed its weights later) only shapes are made, and eva's ranks are not yet
    moved. Raises Refusal when the base cannot take the adapter.
    """
    import torch
    from peft import get_peft_model

    from tuner.train.method_files import continued

    torch.manual_seed(seed)
    config = METHODS[spec.kind].config(spec, model, new_ids) if parent is None else _parents_config(spec, parent)
    if next(model.parameters()).device.type == "meta":
        return get_peft_model(model, config)
    if parent is not None:
        adapted = continued(model, parent, config, new_ids, adapter_dtype is None)
    else:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=adapter_dtype is None)
        _cast(adapted, adapter_dtype)
        METHODS[spec.kind].start(spec, adapted, batches)
    _cast(adapted, adapter_dtype)
    return adapted


def _parents_config(spec: MethodSpec, parent: Path) -> Any:
    """The parent's own config, with the dropout of this run. Raises Refusal for an adapter of another kind."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(parent), local_files_only=True)
    if not METHODS[spec.kind].continues(config):
        found = next((kind for kind, method in METHODS.items() if kind in CONTINUES and method.continues(config)), None)
        refuse("recipe", "method.continue_from", f"an adapter of PEFT type {quoted(str(config.peft_type.value))}", f"one of kind: {spec.kind}",
               f"set method.kind: {found}" if found else "start a new adapter")  # fmt: skip
    for name in ("lora_dropout", "vera_dropout", "module_dropout"):
        if hasattr(config, name):
            setattr(config, name, spec.dropout or 0.0)
    config.inference_mode = False
    return config


def _cast(model: Any, dtype: torch.dtype | None) -> None:
    """Trained weights in `dtype`; None: half precision becomes fp32, the rest stays."""
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad and (dtype is not None or parameter.dtype in (torch.bfloat16, torch.float16)):
            parameter.data = parameter.data.to(dtype or torch.float32)


def parameter_groups(spec: MethodSpec, model: Any, peak_learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Trained weights for AdamW, by learning rate and by whether they decay: biases and norms do not (transformers' Trainer, same names)."""
    from torch import nn
    from transformers.trainer_pt_utils import get_parameter_names

    kept = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    decaying = set(get_parameter_names(model, [nn.LayerNorm], kept))
    groups: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (METHODS[spec.kind].rate(spec, name) * peak_learning_rate, weight_decay if name in decaying else 0.0)
            groups.setdefault(key, []).append(parameter)
    return [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()]


def extra_loss(spec: MethodSpec, model: Any) -> torch.Tensor | None:
    """What the method adds to the mean loss of an optimiser step, or None."""
    return METHODS[spec.kind].extra_loss(spec, model)


def after_step(spec: MethodSpec, model: Any, step: int, steps: int) -> None:
    """To be called after the optimiser's step number `step` (from 1) of `steps`, before gradients are cleared."""
    METHODS[spec.kind].after_step(spec, model, step, steps)


def save(spec: MethodSpec, model: Any, folder: Path, base_name: str, revision: str | None, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
    """PEFT's two files, which load on the untouched base (tuner.train.method_files)."""
    from tuner.train.method_files import save as write

    write(model, folder, base_name, revision, state_dict)


def virtual_tokens(model: Any) -> int:
    """Positions that the adapter puts before each row's hidden states: none for a prefix, whose keys come as a cache."""
    config = model.peft_config["default"]
    return int(config.num_virtual_tokens) if config.is_prompt_learning and str(config.peft_type.value) != "PREFIX_TUNING" else 0


METHODS: dict[str, Method] = {
    "lora": Lora(),
    "rslora": RsLora(),
    "dora": Dora(),
    "lora_plus": LoraPlus(),
    "pissa": Pissa(),
    "olora": Olora(),
    "loftq": Loftq(),
    "eva": Eva(),
    "adalora": AdaLora(),
    "ia3": Ia3(),
    "vera": Vera(),
    "oft": Oft(),
    "prefix": Prefix(),
    "prompt": Prompt(),
    "p_tuning": PTuning(),
}
