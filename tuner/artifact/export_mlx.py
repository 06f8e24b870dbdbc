"""A LoRA adapter in mlx-lm's own format: adapters.safetensors and an adapter_config.json of mlx-lm's.

It refuses what the GGUF writer refuses, for the same reason: two matrices a layer and one scale are all that the format holds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tuner.artifact.gguf import lora_pairs, refuse_other_than_lora


def write_mlx_adapter(adapter_folder: Path, layers: int, folder: Path) -> dict[str, Any]:
    """Write the two files into `folder`; gives what adapter_config.json says. As ml-explore/mlx-lm (0.32), tuner/utils.py `load_adapters`.

    mlx-lm multiplies x (n, in) · lora_a (in, r) · lora_b (r, out) and then by `scale`, where PEFT's is alpha / r, or alpha / sqrt(r) for rsLoRA.
    """
    import numpy as np
    from safetensors.numpy import save_file

    from tuner.artifact.gguf import llama_cpp_alpha

    lora = json.loads((adapter_folder / "adapter_config.json").read_text(encoding="utf-8"))
    refuse_other_than_lora(lora, adapter_folder / "adapter_config.json")
    pairs = lora_pairs(adapter_folder / "adapter_model.safetensors", lora["r"])
    tensors = {}
    for module, (a, b) in pairs.items():
        tensors[f"{module}.lora_a"], tensors[f"{module}.lora_b"] = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    settings = {"rank": lora["r"], "scale": llama_cpp_alpha(lora) / lora["r"], "dropout": 0.0, "keys": sorted({_within_layer(m) for m in pairs})}
    config = {"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": settings}
    save_file(tensors, folder / "adapters.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config


def _within_layer(module: str) -> str:
    """`self_attn.q_proj` of `model.layers.3.self_attn.q_proj`: mlx-lm names modules from the layer on."""
    return module.split(".", 3)[3] if module.startswith("model.layers.") else module
