"""Ranks as real processes, forked from one that has everything imported: seconds instead of half a minute each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import trl  # noqa: F401 (the forked processes need it)

import tuner.pipeline
import tuner.planning
import tuner.train.sft  # noqa: F401
from tuner.cli import main

WITHIN_SECONDS = 120.0  # a run that hangs fails


@dataclass
class Ranks:
    """The processes of one launch; `said` is what they printed, all in one file."""

    processes: list[BaseProcess]
    output: Path

    @property
    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def codes(self, within_seconds: float = WITHIN_SECONDS) -> list[int | None]:
        """Exit codes of all, once they have ended. None for one that has not: it hangs."""
        deadline = time.monotonic() + within_seconds
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0.1))
        return [process.exitcode for process in self.processes]

    def wait_for(self, text: str, within_seconds: float = WITHIN_SECONDS) -> None:
        """Until one of them has printed `text`."""
        deadline = time.monotonic() + within_seconds
        while text not in self.said:
            assert time.monotonic() < deadline and any(p.is_alive() for p in self.processes), f"never said {text!r}:\n{self.said[-3000:]}"
            time.sleep(0.02)

    def signal(self, number: int, *ranks: int) -> None:
        """To these ranks; to all, if none is named."""
        for rank in ranks or range(len(self.processes)):
            pid = self.processes[rank].pid
            assert pid is not None
            os.kill(pid, number)


@contextlib.contextmanager
def ranks(world: int, work: Callable[..., object], *given: Any, output: Path, env: Mapping[str, str] | None = None) -> Iterator[Ranks]:
    """`work(*given)` in `world` processes, under the environment that torchrun gives; all are gone afterwards."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.rank_processes"])
    port = free_port()
    launched = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    output.write_bytes(b"")
    own = [{**launched, **(env or {}), "RANK": str(r), "LOCAL_RANK": str(r)} if world > 1 else dict(env or {}) for r in range(world)]
    processes = [context.Process(target=_begin, args=(of, output, work, given)) for of in own]
    for process in processes:
        process.start()
    try:
        yield Ranks(list(processes), output)
    finally:
        for process in processes:
            process.kill()
            process.join(30)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _begin(env: Mapping[str, str], output: Path, work: Callable[..., object], given: Sequence[Any]) -> None:
    """In the forked process: its own environment, everything it prints into one file, and Ctrl-C heeded."""
    import torch

    handle = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    work(*given)


def command_line(folder: Path, *words: str) -> None:
    """`tuner WORDS` in `folder`."""
    from rich.console import Console

    import tuner.cli
    import tuner.telling

    for module in (tuner.cli, tuner.telling):
        module.out, module.err = Console(highlight=False, width=200), Console(file=sys.stderr, highlight=False, width=200)
    os.chdir(folder)
    sys.argv = ["tuner", *words]
    main()
