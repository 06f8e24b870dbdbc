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
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tuner.errors import refuse

STAGE_PREFIX = ".stage-"
FROZEN_FILE, FROZEN_FOLDER = 0o444, 0o755  # before the umask: nobody writes the one, and only its owner adds to the other
NAMED_WITHIN_SECONDS = 0.5  # a holder writes its name right after it got the lock


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes, frozen: bool = False) -> None:
    """Write `data` to `path` so that a reader sees the old content or the new, never a part of it. A `frozen` file can be replaced, not written."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(aside, "xb") as out:
            out.write(data)
            out.flush()
            if frozen:
                os.chmod(out.fileno(), FROZEN_FILE & ~umask())
            os.fsync(out.fileno())
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        raise
    _sync(path.parent)


def write_text(path: Path, text: str, frozen: bool = False) -> None:
    write_bytes(path, text.encode("utf-8"), frozen)


def write_new(path: Path, data: bytes) -> bool:
    """Write `data` to `path`, read-only, where nothing is there yet: whole or not at all. False where somebody was first.

    Of several processes exactly one gets True. Raises Refusal on a file system without hard links, which cannot promise that.
    """
    with staging(path.parent) as stage:
        aside = stage / path.name
        with open(aside, "xb") as out:
            out.write(data)
            out.flush()
            os.chmod(out.fileno(), FROZEN_FILE & ~umask())
            os.fsync(out.fileno())
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
                raise
            refuse(path, "", f"cannot be linked: {error.strerror}", "a file system with hard links", "choose a folder on another file system")
    _sync(path.parent)
    return True


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
    for left in left_behind(parent):
        shutil.rmtree(left, ignore_errors=True)


def left_behind(parent: Path) -> list[Path]:
    """Staging folders in `parent` of this host whose process no longer runs, by name. `staging` removes them."""
    mine = f"{STAGE_PREFIX}{socket.gethostname()}-"
    found = []
    with readable(parent):
        listed = sorted(name for name in os.listdir(parent) if name.startswith(mine))
    for name in listed:
        owner = re.fullmatch(r"([0-9]{1,9})-[0-9a-f]{8}", name.removeprefix(mine))
        if owner and not is_alive(int(owner[1])) and (left := parent / name).is_dir() and not left.is_symlink():
            found.append(left)
    return found


def umask() -> int:
    """The bits that new files of this process go without."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def is_alive(pid: int) -> bool:
    """Does process `pid` of this machine run? One that has ended and was not yet waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True


def seal(stage: Path, folder: Path, frozen: bool = False) -> None:
    """Flush every file of `stage` to disk, make it readable as the umask allows, and rename it to `folder`.

    `frozen` files can be written by nobody, and frozen folders by their owner alone, whatever the umask allows.
    Raises FileExistsError when `folder` is taken: what was published is never overwritten.
    """
    mask = umask()
    file_mode, folder_mode = (FROZEN_FILE & ~mask, FROZEN_FOLDER & ~mask) if frozen else (0o666 & ~mask, 0o777 & ~mask)
    for path in sorted(stage.rglob("*")):
        os.chmod(path, folder_mode if path.is_dir() else file_mode)
        _sync(path)
    os.chmod(stage, folder_mode)
    _sync(stage)
    if folder.exists():
        raise FileExistsError(errno.EEXIST, "already published", str(folder))
    os.rename(stage, folder)
    _sync(folder.parent)


def move_away(folder: Path) -> None:
    """Delete a folder: it leaves its place in one step, then its files go. A crash leaves a staging folder that the next `staging` there removes."""
    with staging(folder.parent) as stage:
        if folder.exists():  # a staging folder may just have been swept
            os.rename(folder, stage / folder.name)
            _sync(folder.parent)


# --- locks ---------------------------------------------------------------------------------------------------------

_HELD: set[int] = set()


def _let_go_in_child() -> None:
    """A forked worker must not keep its parent's locks: it may outlive a parent that was killed."""
    for handle in _HELD:
        os.close(handle)
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@dataclass(frozen=True)
class Claim:
    """An exclusive lock that this process holds until `release`, or until it ends, however it ends.

    The kernel decides who holds it; the file only says who that is. `abandoned_by` names a process that ended without
    releasing it (killed, or the machine went down), and is empty otherwise.
    """

    path: Path
    handle: int
    abandoned_by: str

    def release(self) -> None:
        if self.handle in _HELD:
            _HELD.discard(self.handle)
            with contextlib.suppress(OSError):
                os.ftruncate(self.handle, 0)
            os.close(self.handle)


def claim(path: Path, what: str) -> Claim:
    """Lock the file `path` at once. Raises Refusal naming the holder's process and host when it is held."""
    found = try_claim(path, what)
    return found if isinstance(found, Claim) else _held(path, what, found)


def try_claim(path: Path, what: str) -> Claim | str:
    """The lock, or who holds it. Raises Refusal where files cannot be locked."""
    while True:
        handle = _opened(path, what)
        try:
            if not _flocked(path, what, handle):
                return _name_of_holder(handle)
            if _is_still(path, handle):
                return _signed(path, handle)
        finally:
            if handle not in _HELD:
                os.close(handle)


def _opened(path: Path, what: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOENT):
            raise
        try_ = "allow more open files (ulimit -n)" if error.errno in (errno.EMFILE, errno.ENFILE) else "mend its permissions, or use another store"
        refuse(path, what, f"cannot be opened: {error.strerror}", "a lock file this user may write", try_)


def _flocked(path: Path, what: str, handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        refuse(path, what, f"cannot be locked: {error.strerror}", "a file system with locks (flock)", "choose a folder on another file system")
    return True


def _is_still(path: Path, handle: int) -> bool:
    """Is the locked file the one at `path`? The last holder may have removed it between our opening and locking it."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _signed(path: Path, handle: int) -> Claim:
    before = _record(handle)
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"pid {os.getpid()} on {socket.gethostname()}\nboot {boot_id()}\n".encode(), 0)
    _HELD.add(handle)
    return Claim(path, handle, before)


def _name_of_holder(handle: int) -> str:
    deadline = time.monotonic() + NAMED_WITHIN_SECONDS
    while not (said := _record(handle)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return said or "another process"


def _record(handle: int) -> str:
    """`pid N on HOST`, as the holder wrote it; empty after a release."""
    return os.pread(handle, 400, 0).decode("utf-8", "replace").partition("\n")[0].strip()


def boot_id() -> str:
    """An id that changes whenever the machine starts; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _held(path: Path, what: str, holder: str) -> NoReturn:
    refuse(path, what, f"held by {holder}", "a free lock", "wait for the other run to end, or stop it")


@contextlib.contextmanager
def locked(folder: Path, what: str, wait_seconds: float = 600.0) -> Iterator[None]:
    """Hold the exclusive lock of `folder`. The kernel releases it when the process ends, however it ends.

    Raises Refusal naming the holder when it cannot be had within `wait_seconds`.
    """
    ensure_folder(folder)
    path = folder / ".lock"
    deadline = time.monotonic() + wait_seconds
    while not isinstance(found := try_claim(path, what), Claim):
        if time.monotonic() > deadline:
            _held(path, what, found)
        time.sleep(0.05)
    try:
        yield
    finally:
        found.release()


# --- places --------------------------------------------------------------------------------------------------------


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raises Refusal with needed and free bytes when the file system of `folder` has less than `needed_bytes` for `what`."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        refuse(folder, what, f"{free:,} bytes free", f"{needed_bytes:,} bytes needed", "free some space, or choose a folder on another disk")


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turns what the system says against looking into `folder` into a Refusal."""
    try:
        yield
    except OSError as error:
        refuse(folder, "", f"unreadable: {error.strerror}", "a folder this user may read", "mend its permissions")


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


def ensure_shared_folder(folder: Path) -> None:
    """Make `folder` for several writers: where the umask lets a group write into it, nobody renames or removes there what another user put there."""
    if not folder.is_dir():
        ensure_folder(folder.parent)
        with contextlib.suppress(OSError):  # made meanwhile, or not to be made: the next line says which
            folder.mkdir(mode=0o777 if umask() & 0o022 == 0o022 else 0o1777)
    ensure_folder(folder)


def ensure_own_folder(folder: Path) -> None:
    """Make `folder` so that its owner alone adds to it, whatever the umask allows."""
    with contextlib.suppress(OSError):
        folder.mkdir(mode=FROZEN_FOLDER)
    ensure_folder(folder)
