"""Bytes that survive a crash: the old state or the new one, nothing between, and nothing left lying about for long."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import KILLED, OS_ERROR, swept
from tuner.artifact.manifest import verify, write_manifest
from tuner.artifact.store import publish, versions
from tuner.durable import (
    STAGE_PREFIX,
    Claim,
    boot_id,
    claim,
    ensure_folder,
    ensure_own_folder,
    ensure_shared_folder,
    is_alive,
    json_text,
    locked,
    move_away,
    require_space,
    seal,
    staging,
    try_claim,
    write_bytes,
    write_json,
    write_new,
    write_text,
)
from tuner.errors import Refusal


@contextmanager
def process(code: str, *words: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process of its own, which has printed one line; killed at the end."""
    command = [sys.executable, "-c", f"import sys, time\nfrom pathlib import Path\nfrom tuner.durable import *\n{code}", *map(str, words)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.wait(timeout=30)
        if child.stdout is not None:
            child.stdout.close()


def dead_pid() -> int:
    """The id of a process that has ended and was waited for."""
    done = subprocess.Popen(["true"])
    done.wait(timeout=30)
    return done.pid


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


# --- single files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_content_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException) -> None:
    file = tmp_path / "a.json"
    write_bytes(file, b"old")

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(type(error)):
        write_bytes(file, b"new")
    monkeypatch.undo()
    assert file.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    write_bytes(file, b"new")
    assert file.read_bytes() == b"new" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_reader_sees_the_old_bytes_or_the_new_and_never_a_part(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    size, stop, seen = 200_000, threading.Event(), set()
    write_bytes(file, b"0" * size)

    def watch() -> None:
        while not stop.is_set():
            data = file.read_bytes()
            seen.add((len(data), len(set(data))))

    reader = threading.Thread(target=watch)
    reader.start()
    for number in range(60):
        write_bytes(file, str(number % 10).encode() * size)
    stop.set()
    reader.join()
    assert seen == {(size, 1)}


def test_files_are_readable_as_the_umask_allows(tmp_path: Path) -> None:
    for mask in (0o022, 0o027, 0o077, 0o002):
        with umask(mask):
            write_text(tmp_path / f"{mask:o}", "é\n")
        assert stat.S_IMODE((tmp_path / f"{mask:o}").stat().st_mode) == 0o666 & ~mask
    assert (tmp_path / "22").read_bytes() == "é\n".encode()


def test_a_frozen_file_is_written_by_nobody_and_replaced_by_its_owner(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with umask(0o027):
            write_text(tmp_path / "report.md", text, frozen=True)
        assert (tmp_path / "report.md").read_text() == text and stat.S_IMODE((tmp_path / "report.md").stat().st_mode) == 0o440
    assert [p.name for p in tmp_path.iterdir()] == ["report.md"]


def test_json_is_sorted_utf_8_and_holds_no_nan(tmp_path: Path) -> None:
    assert json_text({"b": 1, "a": "é"}) == '{\n  "a": "é",\n  "b": 1\n}\n'
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            write_json(tmp_path / "a.json", {"a": number})
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_is_written_once_read_only_and_never_over_another(tmp_path: Path) -> None:
    for mask in (0o022, 0o077, 0o002):
        with umask(mask):
            assert write_new(tmp_path / "log" / f"{mask:o}", b"first") and not write_new(tmp_path / "log" / f"{mask:o}", b"second")
        assert (tmp_path / "log" / f"{mask:o}").read_bytes() == b"first"
        assert stat.S_IMODE((tmp_path / "log" / f"{mask:o}").stat().st_mode) == 0o444 & ~mask
    assert sorted(p.name for p in (tmp_path / "log").iterdir()) == ["2", "22", "77"]


@pytest.mark.parametrize(("number", "error"), [(errno.EPERM, Refusal), (errno.ENOTSUP, Refusal), (errno.EIO, OSError), (errno.ENOSPC, OSError)])
def test_a_file_system_without_hard_links_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def link(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(error) as caught:
        write_new(tmp_path / "a", b"x")
    assert list(tmp_path.iterdir()) == [] and ("file system with hard links" in str(caught.value)) == (error is Refusal)


# --- staging -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_staging_folder_is_private_and_removed_on_every_way_out(tmp_path: Path, error: type[BaseException]) -> None:
    with staging(tmp_path / "home") as stage:
        assert stat.S_IMODE(stage.stat().st_mode) == 0o700 and stage.parent == tmp_path / "home"
    with pytest.raises(error), staging(tmp_path / "home") as stage:
        (stage / "deep" / "er").mkdir(parents=True)
        (stage / "deep" / "er" / "file").write_bytes(b"x")
        raise error
    assert list((tmp_path / "home").iterdir()) == []


def test_staging_sweeps_what_dead_processes_left_and_nothing_else(tmp_path: Path) -> None:
    host, gone, parent = socket.gethostname(), dead_pid(), os.getppid()
    (tmp_path / "elsewhere").mkdir()
    home = tmp_path / "home"
    swept = [f"{STAGE_PREFIX}{host}-{gone}-0123abcd", f"{STAGE_PREFIX}{host}-{gone}-ffffffff"]
    kept = [
        f"{STAGE_PREFIX}{host}-{parent}-0123abcd",  # its process lives
        f"{STAGE_PREFIX}{host}-1-0123abcd",
        f"{STAGE_PREFIX}other-host-{gone}-0123abcd",  # who knows
        f"{STAGE_PREFIX}{host}-{gone}-7-0123abcd",  # of a host called like ours with a number behind
        f"{STAGE_PREFIX}{host}-{gone}",
        f"{STAGE_PREFIX}{host}-x-0123abcd",
        "1",
    ]
    for name in swept + kept:
        (home / name / "inner").mkdir(parents=True)
        (home / name / "inner" / "file").write_bytes(b"x")
    (home / f"{STAGE_PREFIX}{host}-{gone}-11111111").symlink_to(tmp_path / "elsewhere")
    with staging(home) as stage:
        assert {p.name for p in home.iterdir()} == {*kept, stage.name, f"{STAGE_PREFIX}{host}-{gone}-11111111"}
    assert (tmp_path / "elsewhere").is_dir() and len(swept) == 2 and len(kept) == 7
    assert all((home / name / "inner" / "file").is_file() for name in kept)


def test_what_a_killed_process_left_is_removed_by_the_next_staging(tmp_path: Path) -> None:
    code = "with staging(Path(sys.argv[1])) as stage:\n    (stage / 'half').write_bytes(b'x')\n    print('ready', flush=True)\n    time.sleep(60)"
    with process(code, tmp_path) as child:
        with staging(tmp_path):
            assert len(list(tmp_path.glob(f"{STAGE_PREFIX}*/half"))) == 1  # it still lives, so it is left alone
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=30)
    assert len(list(tmp_path.iterdir())) == 1
    with staging(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_moved_away_leaves_its_place_at_once_and_its_files_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "1" / "sub").mkdir(parents=True)
    (tmp_path / "1" / "sub" / "a").write_bytes(b"x")
    seen: list[tuple[bool, int]] = []
    real = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **words: (seen.append(((tmp_path / "1").exists(), len(list(path.rglob("a"))))), real(path, **words)))
    move_away(tmp_path / "1")
    assert seen == [(False, 1)] and list(tmp_path.iterdir()) == []
    move_away(tmp_path / "1")  # gone already
    assert list(tmp_path.iterdir()) == []


# --- sealing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_sealed_files_are_readable_by_another_user_as_the_umask_allows(tmp_path: Path, mask: int) -> None:
    with umask(0o077), staging(tmp_path) as stage:
        (stage / "sub").mkdir()
        for name in ("a", "sub/b"):
            (stage / name).write_bytes(b"x")
            (stage / name).chmod(0o600)
        with umask(mask):
            seal(stage, tmp_path / "1")
    found = {p.relative_to(tmp_path).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    assert found == {"1": 0o777 & ~mask, "1/sub": 0o777 & ~mask, "1/a": 0o666 & ~mask, "1/sub/b": 0o666 & ~mask}


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002, 0o077, 0o000])
def test_frozen_files_are_written_by_nobody_and_frozen_folders_by_their_owner_alone(tmp_path: Path, mask: int) -> None:
    with umask(0o077), staging(tmp_path) as stage:
        (stage / "sub").mkdir()
        for name in ("a", "sub/b"):
            (stage / name).write_bytes(b"x")
        with umask(mask):
            seal(stage, tmp_path / "1", frozen=True)
    found = {p.relative_to(tmp_path).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    assert found == {"1": 0o755 & ~mask, "1/sub": 0o755 & ~mask, "1/a": 0o444 & ~mask, "1/sub/b": 0o444 & ~mask}


@pytest.mark.parametrize("filled", [True, False])
def test_sealing_never_overwrites(tmp_path: Path, filled: bool) -> None:
    (tmp_path / "1").mkdir()
    if filled:
        (tmp_path / "1" / "a").write_bytes(b"old")
    with pytest.raises(FileExistsError), staging(tmp_path) as stage:
        (stage / "a").write_bytes(b"new")
        seal(stage, tmp_path / "1")
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "1").iterdir()} == ({"a": b"old"} if filled else {})


def test_everything_is_flushed_before_the_rename_and_its_folder_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real_sync = os.fsync

    def noted_sync(handle: int) -> None:
        calls.append("flush " + Path(os.readlink(f"/proc/self/fd/{handle}")).name.split(".json.")[0].lstrip("."))
        real_sync(handle)

    for name in ("rename", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda a, b, real=real: (calls.append(f"rename to {Path(b).name}"), real(a, b)))
    monkeypatch.setattr(os, "fsync", noted_sync)
    home = tmp_path / "home"
    home.mkdir()
    write_bytes(home / "a.json", b"x")
    assert calls == ["flush a", "rename to a.json", "flush home"]
    calls.clear()
    with staging(home) as stage:
        (stage / "sub").mkdir()
        (stage / "sub" / "b").write_bytes(b"x")
        (stage / "c").write_bytes(b"x")
        seal(stage, home / "1")
    assert sorted(calls[:-2]) == sorted(["flush sub", "flush b", "flush c", f"flush {stage.name.lstrip('.')}"])
    assert calls[-2:] == ["rename to 1", "flush home"]


# --- locks ---------------------------------------------------------------------------------------------------------

HOLD = "with locked(Path(sys.argv[1]), 'x'):\n    print('ready', flush=True)\n    time.sleep(60)"


def test_a_lock_of_a_living_process_is_refused_with_its_pid_and_one_of_a_dead_process_is_free(tmp_path: Path) -> None:
    with process(HOLD, tmp_path) as child:
        began = time.monotonic()
        with pytest.raises(Refusal) as caught, locked(tmp_path, "colours", wait_seconds=0.3):
            raise AssertionError("two holders")
        assert 0.3 <= time.monotonic() - began < 10
        (problem,) = caught.value.problems
        assert problem.where == str(tmp_path / ".lock") and problem.field == "colours"
        assert problem.found == f"held by pid {child.pid} on {socket.gethostname()}"
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=30)
        with locked(tmp_path, "colours", wait_seconds=0.3):
            assert (tmp_path / ".lock").read_text(encoding="utf-8").splitlines()[0] == f"pid {os.getpid()} on {socket.gethostname()}"


def test_a_lock_is_free_again_after_any_way_out(tmp_path: Path) -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), locked(tmp_path, "x"):
            raise error
    with locked(tmp_path, "x", wait_seconds=0), pytest.raises(Refusal, match=f"pid {os.getpid()}"), locked(tmp_path, "x", wait_seconds=0):
        pass


def test_a_place_that_cannot_be_written_is_refused_and_not_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(Refusal, match="cannot be made"):
            ensure_folder(place)
    (tmp_path / "home" / ".lock").mkdir(parents=True)
    with pytest.raises(Refusal, match="cannot be opened"), locked(tmp_path / "home", "x"):
        pass


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o000, 0o077])
def test_folders_for_several_writers_are_sticky_and_folders_of_one_are_written_by_it_alone(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        for _ in range(2):
            ensure_shared_folder(tmp_path / "store" / "a")
            ensure_own_folder(tmp_path / "own")
    found = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("store/a", "own")]
    assert found == [0o777 & ~mask | (0o1000 if mask & 0o022 != 0o022 else 0), 0o755 & ~mask]
    (tmp_path / "own").chmod(0o777)
    ensure_own_folder(tmp_path / "own")
    ensure_shared_folder(tmp_path / "own")
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o777  # what its owner chose stays
    (tmp_path / "file").write_bytes(b"")
    for ensure in (ensure_shared_folder, ensure_own_folder):
        with pytest.raises(Refusal, match="cannot be made"):
            ensure(tmp_path / "file" / "below")


def test_a_claim_is_had_at_once_or_refused_at_once(tmp_path: Path) -> None:
    code = "held = claim(Path(sys.argv[1]) / 'run.lock', 'x')\nprint('ready', flush=True)\ntime.sleep(60)"
    with process(code, tmp_path) as child:
        began = time.monotonic()
        with pytest.raises(Refusal, match=f"held by pid {child.pid} on {socket.gethostname()}"):
            claim(tmp_path / "run.lock", "colours")
        assert time.monotonic() - began < 1
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=30)
        held = claim(tmp_path / "run.lock", "colours")
        assert held.abandoned_by == f"pid {child.pid} on {socket.gethostname()}"
        assert (tmp_path / "run.lock").read_text() == f"pid {os.getpid()} on {socket.gethostname()}\nboot {boot_id()}\n"
        held.release()
        held.release()  # a second time changes nothing
        again = claim(tmp_path / "run.lock", "colours")
        assert again.abandoned_by == ""
        again.release()


def test_a_lock_file_that_was_removed_under_a_waiting_process_is_not_the_lock(tmp_path: Path) -> None:
    """Its holder removes it before releasing it: whoever opened the old file must not think that it holds the new one."""
    path, taken = tmp_path / "run.lock", []
    for _ in range(20):
        held, started = claim(path, "x"), threading.Event()

        def take(started: threading.Event = started) -> None:
            started.set()
            while not isinstance(found := try_claim(path, "x"), Claim):
                pass
            taken.append(os.path.samestat(os.fstat(found.handle), path.stat()))
            found.release()

        thread = threading.Thread(target=take)
        thread.start()
        started.wait()
        path.unlink()
        held.release()
        thread.join(timeout=30)
    assert taken == [True] * 20


def test_a_forked_worker_does_not_keep_its_parents_locks(tmp_path: Path) -> None:
    code = (
        "held = claim(Path(sys.argv[1]) / 'run.lock', 'x')\nimport os\nread, write = os.pipe()\n"
        "if os.fork() == 0:\n    os.write(write, b'x')\n    os.close(1)\n    time.sleep(3)\n    os._exit(0)\n"
        "os.read(read, 1)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    with process(code, tmp_path) as child:
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=30)
        found = claim(tmp_path / "run.lock", "x")
        assert f"pid {child.pid} " in found.abandoned_by
        found.release()


def test_a_process_that_ended_and_was_not_waited_for_is_not_alive() -> None:
    child = subprocess.Popen(["true"])
    deadline = time.monotonic() + 30
    while is_alive(child.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(child.pid) and is_alive(os.getpid()) and is_alive(1) and not is_alive(dead_pid())
    child.wait(timeout=30)


def test_too_little_space_is_refused_with_needed_and_free_bytes(tmp_path: Path) -> None:
    require_space(tmp_path, 1, "a checkpoint")
    with pytest.raises(Refusal, match=r"a checkpoint\n.*found +[\d,]+ bytes free\n.*accepted +1,000,000,000,000,000,000 bytes needed"):
        require_space(tmp_path, 10**18, "a checkpoint")


# --- faults at every I/O call of a publish -------------------------------------------------------------------------


def before(root: Path) -> None:
    work(root)


def work(root: Path) -> None:
    """Publish the next version of `colours`."""

    def fill(stage: Path, number: int) -> None:
        for name in ("adapter_model.safetensors", "adapter_config.json", "sub/note.txt"):
            (stage / name).parent.mkdir(exist_ok=True)
            with open(stage / name, "wb", buffering=0) as out:
                out.write(bytes([number]) * 100)
                out.write(bytes([number]) * 100)
        write_manifest(stage, {"version": number})

    publish(root / "store", "colours", fill)


def after(root: Path, mode: str, status: int) -> None:
    """One version or two, each whole; nothing half-done under a version's name; the next publish works and sweeps."""
    assert status in {0, KILLED} if mode in ("kill", "torn", "power_loss") else status in {0, OS_ERROR}
    found = versions(root / "store")
    assert [v.number for v, _ in found] in ([[1, 2]] if status == 0 else [[1], [1, 2]])
    assert all(verify(v.folder)["version"] == v.number for v, _ in found)
    assert {p.name for p in (root / "store" / "colours").iterdir() if not p.name.startswith(".")} == {str(v.number) for v, _ in found}
    work(root)
    later = versions(root / "store")
    assert [v.number for v, _ in later] == [1, 2, 3][: len(found) + 1]
    assert {p.name for p in (root / "store" / "colours").iterdir()} == {".lock", *(str(v.number) for v, _ in later)}
    assert all(verify(v.folder)["version"] == v.number for v, _ in later)


def test_a_fault_at_every_io_call_of_a_publish_leaves_whole_versions_only() -> None:
    found = swept("tests.test_durable")
    assert found["failures"] == []
    assert len(found["calls"]) > 25 and found["statuses"]["kill"] == found["statuses"]["power_loss"] == {str(KILLED): len(found["calls"])}
    assert found["statuses"]["full"][str(OS_ERROR)] > 15 and found["statuses"]["error"][str(OS_ERROR)] > 15
