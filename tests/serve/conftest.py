"""A real server in a process of its own, asked by OpenAI's own client."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

import tuner
from tests.conftest import colours_in, heed_interrupts
from tuner import pipeline
from tuner.artifact import history
from tuner.artifact.adapter import Adapter
from tuner.artifact.manifest import write_manifest
from tuner.recipe import load_recipe
from tuner.template.spec import TemplateSpec
from tuner.template.tokens import open_encoder

START_SECONDS = 120
LONG = 300  # tokens of the longest answer
STOPS = (2, *range(5, 49152, 29))  # so many that answers end at different lengths


@dataclass
class Running:
    """A server that answers, and the file of what it said."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def client(self, **settings: Any) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": f"http://127.0.0.1:{self.port}/v1", "api_key": "none", "max_retries": 0, "timeout": 60.0} | settings)

    def answer(self, question: str, model: str = "colours@2", **settings: Any) -> str:
        """One whole answer's text."""
        made = self.client().chat.completions.create(model=model, messages=[{"role": "user", "content": question}], **settings)
        return made.choices[0].message.content or ""

    def raw(self, request: bytes, wait_seconds: float = 10.0) -> tuple[int, bytes]:
        """Bytes as they are, on a connection of their own. Status 0 where it closes without a word."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait_seconds) as wire:
            wire.sendall(request)
            data = b""
            while b"\r\n\r\n" not in data or not _is_whole(data):
                part = wire.recv(65536)
                if not part:
                    break
                data += part
        return (int(data.split(b" ", 2)[1]) if data else 0), data.partition(b"\r\n\r\n")[2]

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.raw(f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode())[1])
        return found

    def metric(self, line: str) -> float:
        """The value of one line of /metrics; 0 where it is not there yet."""
        text = self.raw(f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode())[1].decode()
        return next((float(row.rpartition(" ")[2]) for row in text.splitlines() if row.startswith(line + " ")), 0.0)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


def _is_whole(data: bytes) -> bool:
    """Has all of the announced length arrived?"""
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return length is not None and len(body) >= int(length[1])


def until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for another process to get somewhere."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def start(store: Path, base: Path | None, *words: str, log: Path) -> Running:
    """`tuner serve` on a port of its own choice, once it answers."""
    command = [sys.executable, "-m", "tuner", "serve", *words, "--store", str(store), "--load", "fp32", "--port", "0"]
    command += ["--base", str(base)] if base is not None else []
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=store,
            preexec_fn=heed_interrupts,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    running = Running(process, 0, log)
    until(lambda: "Ctrl-C stops it" in running.said or process.poll() is not None, START_SECONDS)
    found = re.search(r"http://\S+:(\d+)/v1", running.said)
    assert found, running.said
    running.port = int(found[1])
    return running


@pytest.fixture(scope="package")
def store(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """colours@1 and colours@2, and shades@1 of another system prompt; each says a lot, and something else than the others. Read only."""
    folder = tmp_path_factory.mktemp("served")
    pipeline.run(load_recipe(colours_in(folder, tiny_base)), folder / "store", grade_after=False)
    trained = folder / "store" / "colours" / "1"
    for number in (2, 3):
        add_version(trained, trained.parent / str(number), seed=number)
    add_version(trained, folder / "store" / "shades" / "1", seed=4, system="Say the shade.")
    return folder / "store"


def add_version(like: Path, folder: Path, seed: int, system: str = "Name it.", stops: Sequence[int] = STOPS, change: dict[str, Any] | None = None) -> None:
    """A version with weights drawn by seed, large enough for varied answers; its manifest as the store writes it, but for `change`."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(like, folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    draw = torch.Generator().manual_seed(seed)
    tensors = load_file(like / "adapter_model.safetensors")
    save_file({name: torch.randn(t.shape, generator=draw) * 0.3 for name, t in tensors.items()}, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(stops)}), encoding="utf-8")
    facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").unlink()
    template = facts["template"] | {"spec": facts["template"]["spec"] | {"system": system}}
    template["digest"] = open_encoder(folder, TemplateSpec.model_validate(template["spec"] | {"format": "tokenizer"}), "x").template.digest
    changed = {"name": folder.parent.name, "version": int(folder.name), "template": template}
    for section, facts_of in (change or {}).items():
        changed[section] = changed.get(section, facts[section]) | facts_of
    write_manifest(folder, {k: v for k, v in facts.items() if k not in {"files", "digest"}} | changed)


@pytest.fixture(scope="package")
def home(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """STORE/colours of a copy: also 4, which goes on and on, and 5, changed after it was sealed. production is 4, candidate 2."""
    home = tmp_path_factory.mktemp("life") / "store" / "colours"
    shutil.copytree(store, home.parent)
    add_version(home / "1", home / "4", seed=5, stops=[2])
    add_version(home / "1", home / "5", seed=6)
    weights = home / "5" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    move(home, "production", 4)
    move(home, "candidate", 2)
    return home


def move(home: Path, alias: str, version: int) -> None:
    history.append(home, history.state(home).count, "promote", version, alias, "a test", "to see it move", {})


@pytest.fixture(scope="package")
def adapters(home: Path, tiny_base: Path) -> Iterator[dict[str, Adapter]]:
    """The same versions, loaded here."""
    with tuner.load_adapter("colours@2", home.parent, base=tiny_base, load="fp32") as first:
        yield {"colours@2": first, **{name: first.beside(name) for name in ("colours@3", "colours@4", "shades@1")}}


@pytest.fixture(scope="package")
def servers(home: Path, tiny_base: Path) -> Iterator[list[Running]]:
    """Servers that were started, the one in use last."""
    started: list[Running] = []
    yield started
    for running in started:
        running.process.kill()
        running.process.wait()


@pytest.fixture
def server(servers: list[Running], home: Path, tiny_base: Path) -> Running:
    """One server for all tests; a new one where a test ended it."""
    words = ("colours@production", "colours@2", "colours@3", "shades", "colours@candidate", "--max-new-tokens", str(LONG), "--rows", "4", "--queue", "8")
    if not servers or servers[-1].process.poll() is not None:
        servers.append(start(home.parent, tiny_base, *words, log=home.parent.parent / f"log-{len(servers)}"))
    return servers[-1]
