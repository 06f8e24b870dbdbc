"""Where an adapter goes: which layers are adapted and at which rank, which modules and embedding rows are trained whole.

It refuses names that the base does not have, a rank key that reaches no adapted layer, and rotated blocks that do not divide a layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tuner.catalog import nearest
from tuner.errors import refuse
from tuner.safe_text import quoted
from tuner.train.spec import MethodSpec

if TYPE_CHECKING:
    import torch

RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def linear_layers(model: Any) -> dict[str, torch.nn.Module]:
    """Every linear layer but the LM head by its path: nn.Linear, its quantised kin, and the transposed Conv1D of GPT-2."""
    import torch
    from transformers.pytorch_utils import Conv1D

    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if callable(find_head) else None
    return {name: m for name, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and m is not head}


def is_transposed(model: Any, names: Sequence[str]) -> bool:
    """Are all adapted layers GPT-2's Conv1D, which holds its weight as (in, out)?"""
    import torch

    return not any(isinstance(m, torch.nn.Linear) for path, m in linear_layers(model).items() if _matches(path, names))


def target_modules(spec: MethodSpec, model: Any) -> list[str]:
    """Names of the layers to adapt, sorted, each the shortest end of a path that means no other layer. Raises Refusal for an unknown name."""
    paths = list(linear_layers(model))
    if spec.targets == "all-linear":
        return sorted({_last(path) for path in paths})
    if spec.targets == "attention":
        return _attention_names(model, paths)
    wanted = [spec.targets] if isinstance(spec.targets, str) else list(spec.targets or ())
    for name in wanted:
        if not any(_matches(path, [name]) for path in paths):
            known = sorted({_last(path) for path in paths})
            near = nearest(name, [*known, *paths])
            refuse("recipe", "method.targets", quoted(name), "all-linear, attention, or names among: " + ", ".join(known),
                   f"write {near}" if near else "use all-linear")  # fmt: skip
    if not wanted:
        refuse("recipe", "method.targets", "no names", "at least one module name", "use all-linear")
    return sorted(set(wanted))


def _attention_names(model: Any, paths: Sequence[str]) -> list[str]:
    """Linear layers inside modules whose class is an attention by transformers' own naming, such as LlamaAttention or GPT2Attention."""
    blocks = [name for name, m in model.named_modules() if "attention" in type(m).__name__.lower()]
    inside = [path for path in paths if any(path.startswith(f"{block}.") for block in blocks)]
    if not inside:
        refuse("recipe", "method.targets", "attention", "a base whose attention has linear layers of its own", "name the layers: targets: [...]")
    others = {_last(path) for path in set(paths) - set(inside)}
    return sorted({_last(path) if _last(path) not in others else ".".join(path.split(".")[-2:]) for path in inside})


def adapted_layers(model: Any, names: Sequence[str]) -> dict[str, Any]:
    """The layers that `names` mean, by path."""
    return {path: m for path, m in linear_layers(model).items() if _matches(path, names)}


def ranks(spec: MethodSpec, model: Any, names: Sequence[str]) -> dict[str, int]:
    """Rank of every adapted layer whose rank is not `method.rank`, by full path. Raises Refusal for a key that reaches no adapted layer."""
    wanted = spec.rank_per_layer or {}
    paths = list(adapted_layers(model, names))
    for key in wanted:
        if not any(_reaches(key, path) for path in paths):
            known = sorted({_last(p) for p in paths})
            near = nearest(key, [*known, *paths])
            refuse("recipe", f"method.rank_per_layer.{key}", quoted(key), f"a layer number, a range such as 0-7, or an adapted module: {', '.join(known)}",
                   f"write {near}" if near else "remove it")  # fmt: skip
    chosen = {path: _rank_of(path, wanted) for path in paths}
    return {path: rank for path, rank in chosen.items() if rank is not None and rank != spec.rank}


def _rank_of(path: str, wanted: Mapping[str, int]) -> int | None:
    named = [key for key in wanted if _matches(path, [key])]
    numbered = [key for key in wanted if key not in named and _reaches(key, path)]
    if len({wanted[key] for key in numbered}) > 1 and not named:
        refuse("recipe", "method.rank_per_layer", f"{' and '.join(numbered)} both mean {path}", "one rank a layer", "let the ranges not overlap")
    keys = [max(named, key=len)] if named else numbered
    return wanted[keys[0]] if keys else None


def _reaches(key: str, path: str) -> bool:
    """Does a key of `rank_per_layer`, a number, a range or a name, mean the layer at `path`?"""
    numbers = RANGE.fullmatch(key)
    if numbers is None:
        return _matches(path, [key])
    number = next((int(part) for part in path.split(".") if part.isdigit()), None)
    return number is not None and int(numbers[1]) <= number <= int(numbers[2] or numbers[1])


def saved_modules(spec: MethodSpec, model: Any, names: Sequence[str], can_tie: bool) -> list[str]:
    """Names of the modules that are trained whole. Raises Refusal for names the base lacks, layers that are adapted already (`names`)
    or quantised, and a tied embedding that the method cannot keep tied.
    """
    wanted = sorted(set(spec.modules_to_save or ()))
    paths = [name for name, module in model.named_modules() if name and next(module.parameters(), None) is not None]
    for name in wanted:
        if not any(_matches(path, [name]) for path in paths):
            near = nearest(name, sorted({_last(p) for p in paths}))
            refuse("recipe", "method.modules_to_save", quoted(name), "modules of the base that have weights, by their last name",
                   f"write {near}" if near else "remove it")  # fmt: skip
    twice = [path for path in adapted_layers(model, names) if any(_matches(path, [name]) or f".{name}." in f".{path}" for name in wanted)]
    if twice:
        refuse("recipe", "method.modules_to_save", ", ".join(wanted), f"modules that are not adapted too, as {twice[0]} is",
               "leave it out, or name the other layers in method.targets")  # fmt: skip
    rounded = [path for path, m in model.named_modules() if _matches(path, wanted) and not all(p.is_floating_point() for p in m.parameters())]
    if rounded:
        refuse("recipe", "method.modules_to_save", rounded[0], "modules that the quantised base holds in 16 or 32 bits", "leave it out, or set base.load: bf16")
    if not can_tie and saves_tied(wanted, model):
        refuse("recipe", "method.modules_to_save", ", ".join(wanted), f"modules that are not tied, as this base's embeddings are, for {spec.kind}",
               "use kind: lora, which keeps them tied, or leave the embeddings out")  # fmt: skip
    return wanted


def saves_tied(names: Sequence[str], model: Any) -> bool:
    """Do `names` hold an embedding whose weight the LM head shares?"""
    inward, outward = model.get_input_embeddings(), model.get_output_embeddings()
    if outward is None or inward.weight is not outward.weight:
        return False
    return any(_matches(path, names) for path, m in model.named_modules() if m is inward or m is outward)


def token_rows(spec: MethodSpec, model: Any, ids: Sequence[int]) -> dict[str, list[int]] | None:
    """The embedding rows of new tokens to train, by the last name of their module; those of an LM head that is not tied too.

    None where there are no new tokens, or where all rows are trained. Raises Refusal where only one of two untied embeddings is.
    """
    if not ids:
        return None
    inward, outward = model.get_input_embeddings(), model.get_output_embeddings()
    paths = {id(m): n for n, m in model.named_modules()}
    tied = outward is None or inward.weight is outward.weight
    homes = [paths[id(m)] for m in ([inward] if tied else [inward, outward])]
    whole = [path for path in homes if _matches(path, spec.modules_to_save or ())]
    if whole and len(whole) < len(homes):
        left = ", ".join(_last(path) for path in homes if path not in whole)
        refuse("recipe", "method.modules_to_save", f"{', '.join(map(_last, whole))}, but not {left}",
               "with template.new_tokens: both embeddings, or neither (the new rows are trained anyway)", f"add {left}")  # fmt: skip
    return None if whole else {_last(path): list(ids) for path in homes}


def refuse_uneven_blocks(spec: MethodSpec, model: Any, names: Sequence[str]) -> None:
    """OFT rotates blocks of the input: a block size that does not divide a layer's width is refused. PEFT would pick another in silence."""
    size = spec.block_size or 1
    widths = sorted({int(m.in_features) for m in adapted_layers(model, names).values() if hasattr(m, "in_features")})
    odd = [width for width in widths if width % size]
    if odd:
        fitting = max(s for s in range(1, size + 1) if all(width % s == 0 for width in widths))
        refuse("recipe", "method.block_size", size, f"a divisor of the input widths {', '.join(map(str, widths))}", f"set it to {fitting}")


def _matches(path: str, names: Sequence[str]) -> bool:
    """As PEFT matches a list of names: the whole path, or its end after a dot."""
    return any(path == name or path.endswith(f".{name}") for name in names)


def _last(path: str) -> str:
    return path.rsplit(".", 1)[-1]
