"""PEFT methods, one class and one row each: how the recipe's `method:` becomes a PEFT config.

It refuses targets that the base does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from tuner.catalog import nearest
from tuner.errors import refuse
from tuner.safe_text import quoted
from tuner.train.spec import MethodSpec

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig


class Method(Protocol):
    """What a method must answer."""

    what: str

    def config(self, spec: MethodSpec, model: torch.nn.Module, new_ids: Sequence[int] = ()) -> PeftConfig: ...


class Lora:
    """LoRA: W + (alpha / r) B A, with B zero at the start (Hu et al. 2021, arXiv 2106.09685, section 4.1)."""

    what = "low-rank update B·A of the chosen linear layers"

    def config(self, spec: MethodSpec, model: torch.nn.Module, new_ids: Sequence[int] = ()) -> PeftConfig:
        from peft import LoraConfig, TaskType

        return LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=spec.rank,
            lora_alpha=spec.alpha,
            lora_dropout=spec.dropout,
            target_modules=target_modules(spec, model),
            bias="none",
            trainable_token_indices=token_rows(model, new_ids) if new_ids else None,
        )


def token_rows(model: torch.nn.Module, ids: Sequence[int]) -> dict[str, list[int]]:
    """The embedding rows to train, by the last name of their module; those of an LM head that is not tied to the embeddings too."""
    inward, outward = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    names = {id(m): n.rsplit(".", 1)[-1] for n, m in model.named_modules()}
    tied = inward.weight is outward.weight
    return {names[id(m)]: list(ids) for m in ([inward] if tied else [inward, outward])}


def target_modules(spec: MethodSpec, model: torch.nn.Module) -> list[str]:
    """Exact last names of the modules to adapt, sorted. `all-linear` means every linear layer but the LM head.

    Raises Refusal for a name that no linear layer of the base has.
    """
    import torch

    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if callable(find_head) else None
    names = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head})
    if spec.targets == "all-linear":
        return names
    wanted = [spec.targets] if isinstance(spec.targets, str) else spec.targets
    for name in wanted:
        if name not in names:
            near = nearest(name, names)
            refuse("recipe", "method.targets", quoted(name), "all-linear, or names among: " + ", ".join(names), f"write {near}" if near else "use all-linear")
    return sorted(wanted)


METHODS: dict[str, Method] = {"lora": Lora()}
