"""Work on many records with every core: a function of a range of positions, run in forked processes that see the records already read.

It refuses to fork where that is unsafe (torch already loaded, or not Linux) or not worth it, and then does the same work in this process.
A worker that is killed ends the work with a refusal: multiprocessing.Pool would wait for it without end.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tuner.errors import refuse

T = TypeVar("T")
Tick = Callable[[int, int], None]  # (done, of)

WORTH_FORKING = 20_000  # positions; below this one process is done before a second has started
CHUNK = 2_000
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_work: Callable[[int, int], Any] | None = None  # inherited by the forked processes: nothing of it is copied or pickled


def no_tick(_done: int, _of: int) -> None:
    """Tells nobody."""


def spread(work: Callable[[int, int], T], count: int, tick: Tick = no_tick, chunk: int = CHUNK) -> Iterator[T]:
    """`work(start, stop)` for every chunk of `count` positions, results in order. Raises what `work` raises."""
    ranges = [(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    if count < WORTH_FORKING or cores() < 2 or "torch" in sys.modules or not sys.platform.startswith("linux"):
        for start, stop in ranges:
            yield work(start, stop)
            tick(stop, count)
        return
    global _work
    _work = work
    pool = ProcessPoolExecutor(cores(), multiprocessing.get_context("fork"), _start)
    try:
        results = deque(pool.submit(_run, bounds) for bounds in ranges)
        for _, stop in ranges:
            yield results.popleft().result()
            tick(stop, count)
    except BrokenProcessPool:
        refuse("this machine", "memory", "a worker process was killed, as happens where memory runs out", "memory for the records of every split",
               "give more memory, or fewer records (take)")  # fmt: skip
    finally:
        _work = None
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start() -> None:
    """A worker dies with its parent's word, not on its own account."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a parent that is killed takes its workers along (Linux, as forking here)


def _run(bounds: tuple[int, int]) -> Any:
    assert _work is not None
    return _work(*bounds)
