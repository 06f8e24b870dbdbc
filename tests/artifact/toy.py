"""A whole version of 3 kB, made by hand: LoRA of rank 2 on one layer, with the manifest that loading expects. Written without tuner's own writers."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from tuner.artifact.manifest import write_manifest

CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "b", "inference_mode": True, "r": 2, "lora_alpha": 4.0,
    "target_modules": ["q_proj"], "bias": "none",
}  # fmt: skip
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
SHAPES = {f"{LAYER}.lora_A.weight": [2, 4], f"{LAYER}.lora_B.weight": [4, 2]}
DIGEST = "sha256:" + "0" * 64
FACTS: dict[str, Any] = {
    "name": "toy", "version": 1, "created": "2026-01-01T00:00:00+00:00", "method": {"kind": "lora"},
    "base": {"name": "b", "origin": "local folder", "load": "fp32", "weight_digest": DIGEST, "spec": {"model": "b", "load": "fp32"}},
    "template": {"spec": {"max_tokens": 8}, "digest": DIGEST, "tokenizer_digest": DIGEST},
}  # fmt: skip


def safetensors(shapes: dict[str, list[int]], fill: float = 0.5, header: dict[str, Any] | None = None) -> bytes:
    """An F32 file by the format's specification. `header` replaces entries of its header."""
    listed: dict[str, Any] = {}
    data = b""
    for name, shape in shapes.items():
        count = 1
        for side in shape:
            count *= side
        listed[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * count]}
        data += struct.pack(f"<{count}f", *[fill] * count)
    text = json.dumps({**listed, **(header or {})}).encode()
    return len(text).to_bytes(8, "little") + text + data


def toy_version(folder: Path, config: dict[str, Any] | None = None, weights: bytes | None = None, **facts: Any) -> dict[str, Any]:
    """Write it into `folder`; parts may be replaced. Returns the manifest."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG if config is None else config), encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(safetensors(SHAPES) if weights is None else weights)
    (folder / "README.md").write_text("# toy\n", encoding="utf-8")
    return seal(folder, FACTS | facts)


def seal(folder: Path, facts: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write the manifest anew over what lies there now, as an attacker would who can write the whole folder. Returns it."""
    file = folder / "manifest.json"
    if facts is None:
        facts = {k: v for k, v in json.loads(file.read_text(encoding="utf-8")).items() if k not in ("files", "digest")}
    file.unlink(missing_ok=True)
    later = {p: p.rename(folder.parent / f".aside-{p.name}") for p in [folder / n for n in ("evaluations", "exports", "signatures")] if p.exists()}
    write_manifest(folder, facts)
    for place, aside in later.items():
        aside.rename(place)
    manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return manifest


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
