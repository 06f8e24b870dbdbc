"""An adapter as files and as the state of a run: PEFT's two files that load on the untouched base, and the raw tensors of a checkpoint.

It refuses a parent adapter of another kind, or whose tensors are not exactly those of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from tuner.errors import refuse
from tuner.safe_text import quoted
from tuner.train.method_start import ADAPTER, Factors, starting_factors

RANKS, AVERAGES = "adalora.kept.", ("exp_avg_ipt", "exp_avg_unc")


def save(model: Any, folder: Path, base_name: str, revision: str | None, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write adapter_model.safetensors and adapter_config.json: no card, no local paths, no pickle.

    `state_dict` is the whole model's where the caller gathered it from shards. An adapter whose start was taken out of the base's weights
    is written as its difference from that start, of twice the rank, which is what it adds to the untouched base.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    tensors = get_peft_model_state_dict(model, state_dict=state_dict, save_embedding_layers=False)
    config = deepcopy(model.peft_config[ADAPTER])
    if starts := starting_factors(model):
        tensors = _difference(tensors, starts)
        _double_ranks(config)
    config.base_model_name_or_path, config.revision, config.inference_mode = base_name, revision, True
    for name, value in vars(config).items():
        if isinstance(value, set):
            setattr(config, name, sorted(value))  # a set's order changes from process to process; equal adapters have equal files
    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def _difference(tensors: Mapping[str, torch.Tensor], starts: Mapping[str, Factors]) -> dict[str, torch.Tensor]:
    """B·A - B0·A0 = [B | -B0] · [A; A0]: what was added since the start, as LoRA of rank 2r; other tensors as they are."""
    changed = dict(tensors)
    for path, (a, b) in starts.items():
        down, up = f"{path}.lora_A.weight", f"{path}.lora_B.weight"
        changed[down] = torch.cat([tensors[down].detach().cpu(), a], dim=0)
        changed[up] = torch.cat([tensors[up].detach().cpu(), -b], dim=1)
    return changed


def _double_ranks(config: Any) -> None:
    """Twice the rank and twice alpha: the scale alpha / rank stays."""
    config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
    config.rank_pattern = {k: 2 * v for k, v in config.rank_pattern.items()}
    config.alpha_pattern = {k: 2 * v for k, v in config.alpha_pattern.items()}


# --- checkpoints ---------------------------------------------------------------------------------------------------


def training_state(model: Any) -> dict[str, torch.Tensor]:
    """Everything of the adapter that training changed: trained weights by their own names, and AdaLoRA's running importances.

    Not PEFT's adapter state: that of p_tuning is the finished tokens without the network, that of AdaLoRA is already cut.
    """
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if (allocator := getattr(model.base_model, "rankallocator", None)) is None:
        return state
    for average in AVERAGES:
        state |= {f"adalora.{average}.{name}": tensor for name, tensor in getattr(allocator, average).items()}
    kept = model.peft_config[ADAPTER].rank_pattern or {}
    return state | {f"{RANKS}{name}": torch.tensor(flags, dtype=torch.uint8) for name, flags in kept.items()}


@torch.no_grad()
def load_training_state(model: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Put a `training_state` back into a model that `attach` made with the same recipe, seed and batches."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    odd = sorted(set(own) ^ {name for name in state if not name.startswith("adalora.")})
    if odd:
        refuse("checkpoint", "adapter", f"{len(odd)} tensors that do not match the model, such as {quoted(odd[0])}", "the tensors of this recipe's adapter",
               "start over without the checkpoint")  # fmt: skip
    for name, parameter in own.items():
        parameter.copy_(state[name])
    if (allocator := getattr(model.base_model, "rankallocator", None)) is None:
        return
    for average in AVERAGES:
        prefix = f"adalora.{average}."
        setattr(allocator, average, {n.removeprefix(prefix): t.to(next(iter(own.values())).device) for n, t in state.items() if n.startswith(prefix)})
    allocator.ipt = {name: torch.zeros_like(t) for name, t in allocator.exp_avg_ipt.items()}
    kept = {n.removeprefix(RANKS): t.bool().tolist() for n, t in state.items() if n.startswith(RANKS)}
    model.peft_config[ADAPTER].rank_pattern = kept or None


# --- a parent ------------------------------------------------------------------------------------------------------


def continued(model: Any, parent: Path, config: Any, new_ids: Sequence[int], as_peft_casts: bool) -> Any:
    """`model` with the adapter in `parent`, to be trained further under `config`. Raises Refusal unless every tensor of the file found its place."""
    from peft import get_peft_model_state_dict
    from peft.utils.error import NoMatchingPeftModuleError
    from safetensors import safe_open

    rows = getattr(config, "trainable_token_indices", None) or {}
    parents_ids = sorted({i for ids in (rows.values() if isinstance(rows, dict) else [rows]) for i in ids})
    if parents_ids != sorted(new_ids):
        refuse("recipe", "method.continue_from", f"{len(parents_ids)} trained embedding rows in the parent, {len(new_ids)} new tokens in the recipe",
               "the parent's own template.new_tokens", "copy template.new_tokens from the parent's recipe")  # fmt: skip
    try:
        adapted = _with_weights(model, parent, config, as_peft_casts)
    except (NoMatchingPeftModuleError, RuntimeError) as error:  # RuntimeError: tensors of other shapes
        refuse("recipe", "method.continue_from", quoted(str(error), 160), "an adapter of this base", "continue it on the base it was trained on")
    held = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    with safe_open(parent / "adapter_model.safetensors", framework="pt") as saved:
        odd = sorted(set(held) ^ set(saved.keys()))
    if odd:
        refuse("recipe", "method.continue_from", f"{len(odd)} tensors that do not match the base, such as {quoted(odd[0])}",
               "an adapter of this base", "continue it on the base it was trained on")  # fmt: skip
    return adapted


def _with_weights(model: Any, parent: Path, config: Any, as_peft_casts: bool) -> Any:
    """PEFT loads no prompt learning for training, so its tokens are put into a new adapter."""
    from peft import PeftModel, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    if not config.is_prompt_learning:
        return PeftModel.from_pretrained(model, str(parent), is_trainable=True, config=config, autocast_adapter_dtype=as_peft_casts, local_files_only=True)
    adapted = get_peft_model(model, config, autocast_adapter_dtype=as_peft_casts)
    set_peft_model_state_dict(adapted, load_file(parent / "adapter_model.safetensors"))
    return adapted
