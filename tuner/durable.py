"""The one way bytes become durable: written aside, flushed to disk, then renamed into place in one step.

It refuses to leave anything half-written under a final name: a crash leaves either the old state or the new one, and a
staging folder that the next run removes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tuner.errors import refuse

STAGE_PREFIX = ".stage-"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old content or the new, never a part of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(aside, "xb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        raise
    _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def json_text(value: object) -> str:
    """The JSON every file of ours is written in: sorted keys, two spaces, UTF-8, no NaN."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: object) -> None:
    write_text(path, json_text(value))


@contextlib.contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A private folder beside the final place. It is removed on any way out unless it was renamed away.

    A folder left by a killed process is removed by the next `staging` in the same place, once its owner is gone.
    """
    ensure_folder(parent)
    _sweep(parent)
    stage = parent / f"{STAGE_PREFIX}{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    stage.mkdir(mode=0o700)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove staging folders of this host whose process no longer runs."""
    mine = f"{STAGE_PREFIX}{socket.gethostname()}-"
    for left in parent.glob(f"{mine}*"):
        owner = re.fullmatch(r"([0-9]{1,9})-[0-9a-f]{8}", left.name.removeprefix(mine))
        if owner and not _alive(int(owner[1])) and left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def seal(stage: Path, folder: Path) -> None:
    """Flush every file of `stage` to disk, make it readable as the umask allows, and rename it to `folder`.

    Raises FileExistsError when `folder` is taken: what was published is never overwritten.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in sorted(stage.rglob("*")):
        os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~mask)
        _sync(path)
    os.chmod(stage, 0o777 & ~mask)
    _sync(stage)
    if folder.exists():
        raise FileExistsError(errno.EEXIST, "already published", str(folder))
    os.rename(stage, folder)
    _sync(folder.parent)


def _opened(path: Path, what: str) -> IO[str]:
    try:
        return open(path, "a+", encoding="utf-8")
    except OSError as error:
        refuse(path, what, f"cannot be opened: {error.strerror}", "a lock file this user may write", "mend its permissions, or use another store")


@contextlib.contextmanager
def locked(folder: Path, what: str, wait_seconds: float = 600.0) -> Iterator[None]:
    """Hold the exclusive lock of `folder`. The kernel releases it when the process ends, however it ends.

    Raises Refusal naming the holder when it cannot be had within `wait_seconds`.
    """
    ensure_folder(folder)
    path = folder / ".lock"
    with _opened(path, what) as handle:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    handle.seek(0)
                    refuse(path, what, f"held by {handle.read().strip() or 'another process'}", "a free lock",
                           "wait for the other run to end, or stop it")  # fmt: skip
                time.sleep(0.05)
        handle.seek(0)
        handle.truncate()
        handle.write(f"pid {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        yield


def ensure_folder(folder: Path) -> None:
    """Make `folder`. Raises Refusal when it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse(folder, "", f"cannot be made: {error.strerror}", "a folder this user may write",
               "choose another place, or mend its permissions")  # fmt: skip
    if not os.access(folder, os.W_OK | os.X_OK):
        refuse(folder, "", "not writable by this user", "a folder this user may write",
               "choose another place, or mend its permissions")  # fmt: skip
