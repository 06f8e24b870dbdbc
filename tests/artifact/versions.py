"""Versions made by hand on one trained by tuner: the same files, with an adapter of any PEFT method whose weights are drawn at random."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.artifact.test_adapter import reseal
from tuner.train.methods import attach, save
from tuner.train.spec import FIELDS, MethodSpec

SMALL: dict[str, dict[str, Any]] = {
    "vera": {"rank": 32}, "oft": {"block_size": 16}, "adalora": {"rank": 4, "final_rank": 2}, "eva": {"rank": 4, "rho": 2.0},
    "olora": {"rank": 4, "alpha": 8.0}, **{kind: {"virtual_tokens": 5} for kind in ("prefix", "prompt", "p_tuning")},
}  # fmt: skip


def small(kind: str, **changes: Any) -> MethodSpec:
    return MethodSpec(**{"kind": kind, **SMALL.get(kind, {"rank": 4} if "rank" in FIELDS[kind] else {}), **changes})


def with_adapter(trained: Path, folder: Path, base: Path, spec: MethodSpec, seed: int, spread: float = 0.3, start: int | None = None) -> Path:
    """A copy of the version `trained` at `folder`, whose adapter is a fresh one of `spec`, begun from `start` or `seed`, with noise on every trained weight."""
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(trained, folder)
    model = attach(
        spec, AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), seed=seed if start is None else start, batches=lambda: [_batch(seed)] * 2
    )
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draws) * spread)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / name).chmod(0o644)
    save(spec, model, folder, "tiny-llama", None)
    renumbered(folder, spec.kind)
    return folder


def _batch(seed: int) -> dict[str, Any]:
    import torch

    ids = torch.randint(0, 1000, (4, 12), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def renumbered(folder: Path, kind: str | None = None) -> None:
    """The manifest says the number of the folder, the kind of method, and the digests of what now lies in it."""
    folder.chmod(0o755)
    manifest = folder / "manifest.json"
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.unlink()
    facts["method"] |= {"kind": kind} if kind else {}
    manifest.write_text(json.dumps(facts | {"version": int(folder.name)}), encoding="utf-8")
    reseal(folder)
