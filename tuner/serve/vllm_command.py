"""The same models served by vLLM, for real load: the command, and starting it in this process's place.

It refuses what vLLM cannot serve as it was trained: see artifact/vllm_adapter.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tuner.artifact.adapter import Adapter
from tuner.artifact.engines import VLLM_RANKS
from tuner.artifact.vllm_adapter import unservable
from tuner.errors import Collector, refuse
from tuner.serve.fleet import BASE, Fleet


def vllm_words(fleet: Fleet, host: str, port: int) -> list[str]:
    """vLLM's own server with these adapters under these names, on the base's folder.

    Its requests take the chat template of the first adapter, without the recipe's system prompt: clients send that themselves.
    """
    adapters = {model.name: model.loaded.adapter for model in fleet.models if model.name != BASE}
    first = fleet.first
    rank = max(_rank(adapter) for adapter in adapters.values())
    return [
        "vllm", "serve", str(first.base_folder.resolve()), "--served-model-name", BASE, "--host", host, "--port", str(port),
        "--dtype", "bfloat16", "--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(next((r for r in VLLM_RANKS if r >= rank), rank)),
        "--tokenizer", str(first.version.folder.resolve()), *_template(first.version.folder), "--generation-config", "vllm",
        "--lora-modules", *(f"{name}={adapter.version.folder.resolve()}" for name, adapter in adapters.items()),
    ]  # fmt: skip


def vllm_line(fleet: Fleet, host: str, port: int) -> str:
    """The command as a shell takes it, or why there is none."""
    collector = hindrances(fleet, bf16=True)
    if collector.problems:
        problem = collector.problems[0]
        return f"not by vLLM: {problem.where} {problem.field}: {problem.found}"
    return shlex.join(vllm_words(fleet, host, port))


def hindrances(fleet: Fleet, bf16: bool) -> Collector:
    """Everything that keeps vLLM from serving these. With `bf16`, fp32 here is none: vLLM would be told its own dtype."""
    collector = Collector()
    models = [model for model in fleet.models if model.name != BASE]
    for model in models:
        for problem in unservable(model.loaded.adapter).problems:
            if not (bf16 and problem.field == "base.load" and problem.found == "float32"):
                collector.problems.append(problem)
    if len({model.loaded.adapter.encoder.template.source for model in models}) > 1:
        collector.add(models[-1].name, "chat template", "another than that of " + models[0].name, "one chat template: vLLM takes one",
                      "serve them by themselves")  # fmt: skip
    return collector


def exec_vllm(fleet_words: Sequence[str], key: str | None) -> NoReturn:
    """Become vLLM's server. The key goes through the environment, where other users do not see it."""
    program = shutil.which(fleet_words[0])
    if program is None:
        refuse("command line", "--engine", "vllm, which is not installed here", "an installed vllm and a GPU", "pip install 'tuner-lora[vllm]'")
    os.execve(program, list(fleet_words), os.environ | ({"VLLM_API_KEY": key} if key else {}))


def refuse_without_vllm() -> None:
    """Before anything is loaded. Raises Refusal without vLLM or without a GPU."""
    import torch

    if importlib.util.find_spec("vllm") is None:
        refuse("command line", "--engine", "vllm, which is not installed here", "an installed vllm and a GPU", "pip install 'tuner-lora[vllm]'")
    if not torch.cuda.is_available():
        refuse("command line", "--engine", "vllm without a GPU", "a CUDA GPU", "leave --engine out: transformers answers on this machine")


def _rank(adapter: Adapter) -> int:
    config = json.loads((adapter.version.folder / "adapter_config.json").read_text(encoding="utf-8"))
    return int(config.get("r") or 0)


def _template(folder: Path) -> list[str]:
    file = folder / "chat_template.jinja"
    return ["--chat-template", str(file.resolve())] if file.is_file() else []
