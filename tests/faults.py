"""Faults at every I/O call of one piece of work: killed, half a write, power loss, disk full, one I/O error.

The work runs in forked children of a process that has tests/fault_shim.c preloaded, so a fault is a real one of the C library.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

MODES = {"kill": 1, "full": 2, "error": 3, "torn": 4, "full_once": 5, "power_loss": 6}
REFUSED, OS_ERROR, BUG, KILLED = 2, 5, 1, -9


def preload(folder: Path) -> dict[str, str]:
    """The environment of a process with the shim preloaded. Skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: faults cannot be injected")
    library = folder / "fault_shim.so"
    if not library.exists():
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-w", "-o", str(library), str(ROOT / "tests" / "fault_shim.c"), "-ldl"], check=True, timeout=60)
    return {**os.environ, "LD_PRELOAD": str(library)}


def swept(module: str, modes: Sequence[str] = tuple(MODES), pick: int = 1, timeout: float = 300) -> dict[str, Any]:
    """Run `sweep` over `module`'s `before`, `work` and `after` in a preloaded process. `pick` takes every so-manieth point only."""
    with scratch() as folder:
        return _swept(folder, module, modes, pick, timeout)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of real flushes take minutes, and the faults are made above the file system."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def _swept(folder: Path, module: str, modes: Sequence[str], pick: int, timeout: float) -> dict[str, Any]:
    code = (
        f"import json, sys, tests.faults as f, {module} as m\n"
        f"print(json.dumps(f.sweep(m.before, m.work, m.after, f.Path(sys.argv[1]), {list(modes)!r}, {pick})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=preload(folder), cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def sweep(
    before: Callable[[Path], None], work: Callable[[Path], None], after: Callable[[Path, str, int], None], folder: Path, modes: Iterable[str], pick: int
) -> dict[str, Any]:
    """For each mode and point: `before(root)`, `work(root)` with the fault in a forked child, then `after(root, mode, status)`.

    Returns the I/O calls of an undisturbed `work`, how often each status came by mode, and every failure of `after`.
    """
    calls = counted(before, work, folder / "count")
    found: dict[str, Any] = {"calls": calls, "statuses": {}, "failures": []}
    for mode in modes:
        for point in range(1, len(calls) + 1, pick):
            root = folder / f"{mode}-{point}"
            root.mkdir(parents=True)
            before(root)
            status = forked(work, root, point, MODES[mode])
            tally = found["statuses"].setdefault(mode, {})
            tally[str(status)] = tally.get(str(status), 0) + 1
            try:
                after(root, mode, status)
            except Exception:  # noqa: BLE001 - a failure of one point must not hide the others
                found["failures"].append(f"{mode} at {calls[point - 1]}: status {status}\n{traceback.format_exc(limit=-3)}")
            shutil.rmtree(root, ignore_errors=True)
    return found


def counted(before: Callable[[Path], None], work: Callable[[Path], None], root: Path) -> list[str]:
    """The I/O calls of an undisturbed `work`, as the shim notes them: number, call, path, bytes."""
    root.mkdir(parents=True)
    before(root)
    log = root.with_suffix(".log")
    with open(log, "wb") as out:
        assert forked(work, root, -1, 0, out.fileno()) == 0
    lines = log.read_text(errors="replace").splitlines()
    shutil.rmtree(root)
    return lines


def forked(work: Callable[[Path], None], root: Path, point: int, mode: int, log: int = -1) -> int:
    """The exit status of a child that does `work(root)` with the shim armed; negative for the signal that ended it."""
    from tuner.errors import Refusal

    sys.stdout.flush()
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = BUG
    try:
        arm(root, point, mode, log)
        work(root)
        status = 0
    except Refusal:
        status = REFUSED
    except OSError:
        status = OS_ERROR
    finally:
        os._exit(status)  # a child never comes back into its parent's code


def arm(root: Path, point: int, mode: int, log: int = -1) -> None:
    ctypes.CDLL(None).fi_arm(str(root).encode(), ctypes.c_long(point), mode, log)


def disarm() -> int:
    return int(ctypes.CDLL(None).fi_disarm())
