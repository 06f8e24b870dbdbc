"""Checkpoints on real files: every changed byte is found, every fault leaves the old state or the new, every changed choice is named."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.faults import KILLED, OS_ERROR, REFUSED, swept
from tuner.errors import Refusal
from tuner.train.checkpoint import CHANGEABLE, LOCK, MANIFEST, WATCH_ONLY, Fingerprint, Resume, RunFolder, fingerprint, open_run, why_not

FACTS = Fingerprint({"seed": "42", "method.rank": "16", "train.peak_learning_rate": "0.0002", "world_size": "1"})


def payload(step: int) -> dict[str, bytes]:
    """What a checkpoint of `step` holds, small; its bytes say the step."""
    return {
        "adapter_model.safetensors": bytes([step]) * 700,
        "optimizer.pt": bytes([step, 255]) * 300,
        "trainer_state.json": json.dumps({"step": step}).encode(),
        "state/rng_state_0.pth": bytes([step]) * 9,
        "empty": b"",
    }


def fill(step: int) -> Callable[[Path], None]:
    def write(stage: Path) -> None:
        for name, data in payload(step).items():
            (stage / name).parent.mkdir(exist_ok=True)
            with open(stage / name, "wb", buffering=0) as out:
                out.write(data[: len(data) // 2])
                out.write(data[len(data) // 2 :])

    return write


def held(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != MANIFEST}


@contextmanager
def opened(runs: Path, facts: Fingerprint = FACTS, **choices: Any) -> Iterator[tuple[RunFolder, Resume | None]]:
    run, resume = open_run(runs, "colours", facts, **choices)
    with run:
        yield run, resume


def interrupted(runs: Path, steps: tuple[int, ...] = (4, 8), facts: Fingerprint = FACTS) -> Path:
    """A run that was left after these steps."""
    with opened(runs, facts, keep=9) as (run, resume):
        assert resume is None
        for step in steps:
            run.save(step, fill(step))
        return run.path


def changed(**fields: str) -> Fingerprint:
    return Fingerprint({**FACTS.fields, **{k.replace("__", "."): v for k, v in fields.items()}})


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(Refusal) as caught:
        call()
    return str(caught.value)


# --- writing and reading back --------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_from_its_newest_checkpoint_with_every_byte(tmp_path: Path) -> None:
    path = interrupted(tmp_path)
    with opened(tmp_path) as (run, resume):
        assert resume is not None and resume.checkpoint.step == 8 and resume.skipped == () and resume.changed == ()
        assert held(resume.checkpoint.path) == payload(8) and run.path == path
        assert any("going on from step 8" in note for note in run.notes)
        assert resume.checkpoint.bytes == sum(map(len, payload(8).values()))


def test_a_manifest_holds_size_and_sha256_of_every_file(tmp_path: Path) -> None:
    import hashlib

    said = json.loads((interrupted(tmp_path) / "step-8" / MANIFEST).read_bytes())
    assert said["files"] == {n: {"bytes": len(d), "digest": "sha256:" + hashlib.sha256(d).hexdigest()} for n, d in payload(8).items()}
    assert said["step"] == 8 and said["fingerprint"] == dict(FACTS.fields)


def test_older_checkpoints_go_but_never_the_newest_nor_the_best(tmp_path: Path) -> None:
    for keep, best, left in ((1, None, {8}), (2, None, {8, 6}), (1, 2, {8, 2}), (2, 2, {8, 6, 2})):
        with opened(tmp_path / f"{keep}{best}", keep=keep) as (run, _):
            for step in (2, 4, 6, 8):
                run.save(step, fill(step), best_step=best)
            assert {int(p.name[5:]) for p in run.checkpoints()} == left
            assert {p.name for p in run.path.iterdir()} == {LOCK, *(f"step-{s}" for s in left)}


def test_rotation_and_discard_leave_what_is_not_ours(tmp_path: Path) -> None:
    path = interrupted(tmp_path)
    (path / "step-4" / "my_notes.txt").write_text("mine")
    (path / "step-999").mkdir()
    (path / "step-999" / "thesis.tex").write_text("mine")
    shutil.copytree(path / "step-8", path / "step-2")
    other = json.loads((path / "step-2" / MANIFEST).read_text())
    (path / "step-3").symlink_to(path / "step-4")
    with opened(tmp_path, keep=1) as (run, resume):
        assert resume is not None and resume.checkpoint.step == 8
        assert [(p.name, reason) for p, reason in resume.skipped] == [("step-999", "it has no manifest, so it was never finished")]
        run.save(12, fill(12))
        assert (path / "step-4" / "my_notes.txt").is_file() and (path / "step-999" / "thesis.tex").is_file() and not (path / "step-8").exists()
        assert other["step"] == 8
        run.discard()
    assert sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()) == [LOCK, "step-4/my_notes.txt", "step-999/thesis.tex"]


def test_a_published_run_leaves_nothing(tmp_path: Path) -> None:
    interrupted(tmp_path)
    with opened(tmp_path) as (run, _):
        run.save(12, fill(12))
        run.discard()
    assert list(tmp_path.iterdir()) == []
    with opened(tmp_path) as (_, resume):
        assert resume is None


def test_a_rank_that_only_joined_removes_nothing(tmp_path: Path) -> None:
    path = interrupted(tmp_path)
    RunFolder.joined(path, "0123abcd", FACTS).discard()
    assert len(RunFolder(path, FACTS).checkpoints()) == 2


def test_the_same_step_twice_is_written_once(tmp_path: Path) -> None:
    path = interrupted(tmp_path)
    before = (path / "step-8" / MANIFEST).stat().st_ino

    def never(_: Path) -> None:
        raise AssertionError("written again")

    with opened(tmp_path) as (run, _):
        assert run.save(8, never) == path / "step-8" and (path / "step-8" / MANIFEST).stat().st_ino == before


def test_a_damaged_checkpoint_is_set_aside_when_its_step_comes_again(tmp_path: Path) -> None:
    path = interrupted(tmp_path)
    (path / "step-8" / "optimizer.pt").write_bytes(b"")
    with opened(tmp_path, keep=1) as (run, resume):
        assert resume is not None and resume.checkpoint.step == 4
        run.save(6, fill(6))  # keeps 6 although the damaged 8 has the higher number
        assert (path / "step-6").is_dir()
        run.save(8, fill(8))
        assert run.newest_verified()[0] is not None and held(path / "step-8") == payload(8)
        run.discard()
    assert not path.exists()


def test_work_that_fails_for_another_reason_leaves_no_stage_and_is_not_hidden(tmp_path: Path) -> None:
    for error in (ValueError("a bug"), RuntimeError("CUDA out of memory"), KeyboardInterrupt()):
        calls = []

        def broken(stage: Path, error: BaseException = error, calls: list[int] = calls) -> None:
            calls.append(1)
            fill(8)(stage)
            raise error

        with opened(tmp_path) as (run, _):
            with pytest.raises(type(error)):
                run.save(8, broken)
            assert [p.name for p in run.path.iterdir()] == [LOCK] and len(calls) == 1


# --- damage --------------------------------------------------------------------------------------------------------


def test_every_flipped_byte_every_cut_and_every_missing_or_added_file_is_found(tmp_path: Path) -> None:
    path = interrupted(tmp_path, (8,)) / "step-8"
    run = RunFolder(path.parent, FACTS)
    assert run.newest_verified()[0] is not None
    flips = cuts = files = 0
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        data = file.read_bytes()
        for index in range(len(data)):
            file.write_bytes(data[:index] + bytes([data[index] ^ (1 << index % 8)]) + data[index + 1 :])
            assert run.newest_verified()[0] is None, (file.name, index)
            file.write_bytes(data[:index])
            assert run.newest_verified()[0] is None, (file.name, index)
            flips, cuts = flips + 1, cuts + 1
        file.write_bytes(data + b"\0")
        assert run.newest_verified()[0] is None
        file.unlink()
        assert run.newest_verified()[0] is None
        file.symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").write_bytes(data)
        assert run.newest_verified()[0] is None
        file.unlink()
        file.write_bytes(data)
        files += 1
    for extra in ("scaler.pt", "state/more", "pytorch_model.bin"):
        (path / extra).write_bytes(b"x")
        assert run.newest_verified()[0] is None
        (path / extra).unlink()
    assert run.newest_verified()[0] is not None and flips == cuts > 2000 and files == 6


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b'"a"', b"{}", b"\xff", b"[" * 100_000, b'{"schema": NaN}', b'{"digest": 1, "schema": 1, "files": []}']
)
def test_a_manifest_of_any_shape_is_damage_and_no_traceback(tmp_path: Path, content: bytes) -> None:
    path = interrupted(tmp_path)
    (path / "step-8" / MANIFEST).write_bytes(content)
    with opened(tmp_path) as (run, resume):
        assert resume is not None and resume.checkpoint.step == 4 and len(resume.skipped) == 1
        assert any("step-8 is not used: its manifest" in note for note in run.notes)


def test_a_checkpoint_of_another_run_or_step_is_not_used(tmp_path: Path) -> None:
    path, other = interrupted(tmp_path / "a"), interrupted(tmp_path / "b", facts=changed(seed="7"))
    shutil.copytree(other / "step-8", path / "step-10")
    shutil.copytree(path / "step-4", path / "step-12")
    run = RunFolder(path, FACTS)
    checkpoint, skipped = run.newest_verified()
    assert checkpoint is not None and checkpoint.step == 8
    assert [(p.name, r) for p, r in skipped] == [
        ("step-12", f"it belongs to run {path.name}, step 4"),
        ("step-10", f"it belongs to run {other.name}, step 8"),
    ]


def test_a_run_whose_checkpoints_are_all_damaged_starts_again_and_says_so(tmp_path: Path) -> None:
    path = interrupted(tmp_path)
    for step in (4, 8):
        (path / f"step-{step}" / "optimizer.pt").unlink()
    with opened(tmp_path) as (run, resume):
        assert resume is None and [n for n in run.notes if "starting again from step 0" in n]
        assert len([n for n in run.notes if "optimizer.pt is missing" in n]) == 2
        run.save(2, fill(2))
    with opened(tmp_path) as (_, resume):
        assert resume is not None and resume.checkpoint.step == 2


# --- faults at every I/O call --------------------------------------------------------------------------------------


def before(root: Path) -> None:
    interrupted(root, (4,))


def work(root: Path) -> None:
    with opened(root, keep=1) as (run, _):
        run.save(8, fill(8))


def after(root: Path, mode: str, status: int) -> None:
    """Old or new, whole; nothing half-done left; the run goes on."""
    assert status in {0, KILLED} if mode in ("kill", "torn", "power_loss") else status in {0, REFUSED, OS_ERROR}
    with opened(root, keep=1) as (run, resume):
        assert resume is not None and resume.checkpoint.step in ({8} if status == 0 else {4, 8})
        assert held(resume.checkpoint.path) == payload(resume.checkpoint.step)
        assert resume.skipped == ()
        run.save(12, fill(12))
        assert {p.name for p in run.path.iterdir()} <= {LOCK, "step-12", "step-8", "step-4"}
        run.save(16, fill(16))
        assert {p.name for p in run.path.iterdir()} == {LOCK, "step-16"}


def test_a_fault_at_every_io_call_of_a_save_leaves_the_old_checkpoint_or_the_new() -> None:
    found = swept("tests.train.test_checkpoint")
    assert found["failures"] == []
    assert len(found["calls"]) > 40
    assert set(found["statuses"]) == {"kill", "full", "error", "torn", "full_once", "power_loss"}
    assert found["statuses"]["kill"] == found["statuses"]["power_loss"] == {str(KILLED): len(found["calls"])}
    assert found["statuses"]["error"]["0"] > 0.7 * len(found["calls"])  # one I/O error is tried again
    assert found["statuses"]["full"][str(REFUSED)] > 20


def test_no_room_for_a_checkpoint_is_refused_before_it_is_written_with_needed_and_free(tmp_path: Path) -> None:
    interrupted(tmp_path, (4,))
    with opened(tmp_path) as (run, _):
        assert run.newest_verified()[0] is not None
        manifest = run.path / "step-4" / MANIFEST
        said = json.loads(manifest.read_text())
        said["files"]["optimizer.pt"]["bytes"] = 10**18  # the checkpoint before was an exabyte
        from tuner.durable import json_text
        from tuner.fingerprint import digest_text

        manifest.write_text(json_text({**said, "digest": digest_text(json_text({k: v for k, v in said.items() if k != "digest"}))}))
        calls: list[Path] = []
        text = refused(lambda: run.save(8, calls.append))
        assert re.search(r"the disk is full.*\([\d,]+ bytes free\)", text) and "1,000,000,000,000,0" in text and str(run.path) in text
        assert calls == [] and [p.name for p in run.checkpoints()] == ["step-4"]


@pytest.mark.parametrize(
    ("error", "times", "says"),
    [
        (RuntimeError("[enforce fail at inline_container.cc:827] . PytorchStreamWriter failed writing file data/0: file write failed"), 1, None),
        (RuntimeError("basic_ios::clear: iostream error"), 9, "writing failed twice"),
        (OSError(5, "Input/output error"), 1, None),
        (OSError(28, "No space left on device"), 1, "the disk is full"),
    ],
)
def test_what_torch_says_of_a_failing_disk_is_tried_again_once(tmp_path: Path, error: Exception, times: int, says: str | None) -> None:
    failures = [error] * times

    def flaky(stage: Path) -> None:
        fill(8)(stage)
        if failures:
            raise failures.pop()

    with opened(tmp_path) as (run, _):
        if says is None:
            run.save(8, flaky)
            assert held(run.path / "step-8") == payload(8)
        else:
            text = refused(lambda: run.save(8, flaky))
            assert says in text and f"room for {sum(map(len, payload(8).values())) + 1:,} bytes or more" in text
            assert [p.name for p in run.path.iterdir()] == [LOCK]


# --- several ranks -------------------------------------------------------------------------------------------------


class Ranks:
    """`worst` for threads that stand for ranks."""

    def __init__(self, world: int):
        self.codes = [0] * world
        self.gate = threading.Barrier(world, timeout=20)

    def worst(self, rank: int) -> Callable[[int], int]:
        def together(code: int) -> int:
            self.codes[rank] = code
            self.gate.wait()
            found = max(self.codes)
            self.gate.wait()
            return found

        return together


def save_on_ranks(main: RunFolder, fails: dict[int, list[Exception]]) -> list[str]:
    """What became of each of 3 ranks that save step 8: `saved` or its refusal."""
    ranks, said = Ranks(3), [""] * 3
    folders = [main, *(RunFolder.joined(main.path, main.session, main.fingerprint) for _ in range(2))]

    def one(rank: int) -> None:
        def write(stage: Path) -> None:
            if fails.get(rank):
                raise fails[rank].pop()
            if rank == 0:
                fill(8)(stage)
            (stage / f"rng_state_{rank}.pth").write_bytes(bytes([rank]))

        try:
            folders[rank].save(8, write, rank=rank, world=3, worst=ranks.worst(rank))
            said[rank] = "saved"
        except Refusal as refusal:
            said[rank] = str(refusal)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return said


def test_every_rank_fills_the_stage_and_the_main_rank_seals_it(tmp_path: Path) -> None:
    with opened(tmp_path) as (run, _):
        assert save_on_ranks(run, {}) == ["saved"] * 3
        assert save_on_ranks(run, {}) == ["saved"] * 3  # the second time nothing is written, on any rank
        checkpoint, _ = run.newest_verified()
        assert checkpoint is not None and {f"rng_state_{r}.pth" for r in range(3)} < set(checkpoint.files)


def test_a_disk_that_fails_on_one_rank_fails_on_all_or_is_tried_again_by_all(tmp_path: Path) -> None:
    with opened(tmp_path) as (run, _):
        assert save_on_ranks(run, {1: [OSError(5, "I/O"), OSError(5, "I/O")], 2: [OSError(5, "I/O")]})[0].startswith(str(run.path))
        assert [p.name for p in run.path.iterdir()] == [LOCK]
        said = save_on_ranks(run, {2: [OSError(28, "No space left on device")]})
        assert all("the disk is full" in text for text in said) and "on another rank" in said[0]
        assert save_on_ranks(run, {0: [], 2: [OSError(5, "I/O")]}) == ["saved"] * 3
        checkpoint, _ = run.newest_verified()
        assert checkpoint is not None and len(checkpoint.files) == 8


GLOO = """
import os, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from tests.train.test_checkpoint import FACTS, fill
from tuner.errors import Refusal
from tuner.train.checkpoint import RunFolder, open_run
from tuner.train.stopping import Heartbeat
folder, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
told = [None]
if rank == 0:
    run, _ = open_run(folder, "colours", FACTS)
    told = [(str(run.path), run.session)]
dist.broadcast_object_list(told)
if rank == 1:
    run = RunFolder.joined(Path(told[0][0]), told[0][1], FACTS)
def write(stage):
    if rank == 0:
        fill(8)(stage)
    (stage / f"rng_state_{rank}.pth").write_bytes(b"x")
run.save(8, write, rank=rank, world=2)
def broken(stage):
    write(stage)
    if rank == 1:
        raise OSError(28, "No space left on device")
try:
    run.save(12, broken, rank=rank, world=2)
except Refusal as refusal:
    print(f"[{rank}] refused {refusal.problems[0].field}", flush=True)
with Heartbeat(run.heartbeat, rank, 2, 2.0, lambda text: print(text, flush=True), poll_seconds=0.2) as heart:
    heart.beat(13)
    if rank == 1:
        time.sleep(60)
    heart.tick()
    dist.all_reduce(torch.ones(1))
"""


def test_two_gloo_ranks_save_together_are_refused_together_and_a_hanging_one_ends_both(tmp_path: Path) -> None:
    command = [sys.executable, "-c", GLOO, str(tmp_path)]
    children = [subprocess.Popen([*command, str(r)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for r in range(2)]
    try:
        said = [child.communicate(timeout=120)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [f"[{r}] refused checkpoint" in said[r] for r in range(2)] == [True, True], said
    assert children[0].returncode == 5 and re.search(r"rank 1 .*no progress for 2 s; its last finished step is 13", said[0])
    with opened(tmp_path) as (run, resume):
        assert resume is not None and resume.checkpoint.step == 8 and {"rng_state_0.pth", "rng_state_1.pth"} < set(resume.checkpoint.files)
        assert {p.name for p in run.path.iterdir()} == {LOCK, "step-8"}


# --- two processes -------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from tests.train.test_checkpoint import FACTS, fill
from tuner.errors import Refusal
from tuner.train.checkpoint import open_run
sys.stdin.readline()
began = time.monotonic()
try:
    run, resume = open_run(Path(sys.argv[1]), "colours", FACTS)
except Refusal as refusal:
    print(f"refused after {time.monotonic() - began:.3f} s: {refusal}".replace("\\n", " "), flush=True)
    sys.exit(2)
run.save(12, fill(12))
if len(sys.argv) > 2:
    import os
    if os.fork() > 0:
        time.sleep(60)
print("holding", flush=True)  # with a word more: said by a worker, which outlives its parent
time.sleep(60)
"""


@contextmanager
def holders(runs: Path, count: int, *words: str) -> Iterator[list[subprocess.Popen[str]]]:
    command = [sys.executable, "-c", HOLD, str(runs), *words]
    children = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True) for _ in range(count)]
    try:
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        yield children
    finally:
        for child in children:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate(timeout=30)


@pytest.mark.parametrize("begun", [False, True])
def test_of_two_processes_on_one_run_one_is_refused_at_once_naming_pid_and_host_of_the_other(tmp_path: Path, begun: bool) -> None:
    if begun:
        interrupted(tmp_path)
    with holders(tmp_path, 2) as children:
        said = {child.stdout.readline().strip(): child for child in children if child.stdout is not None}
        assert "holding" in said and len(said) == 2
        (refusal,) = said.keys() - {"holding"}
        found = re.match(r"refused after ([0-9.]+) s: .*held by pid (\d+) on (\S+)", refusal)
        assert found and float(found[1]) < 1 and int(found[2]) == said["holding"].pid and found[3] == socket.gethostname()
        assert refused(lambda: open_run(tmp_path, "colours", FACTS)).count(f"pid {found[2]}") == 1
        assert refused(lambda: open_run(tmp_path, "colours", FACTS, fresh=True)).count(f"pid {found[2]}") == 1
        with opened(tmp_path, changed(seed="7")) as (run, resume):  # another run of the same name is none of its business
            assert resume is None
            run.discard()


def test_a_killed_holder_leaves_its_run_free_also_when_its_workers_live_on(tmp_path: Path) -> None:
    with holders(tmp_path, 1, "worker") as (child,):
        assert child.stdout is not None and child.stdout.readline() == "holding\n"
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=30)
        os.killpg(child.pid, 0)  # the worker lives
        with opened(tmp_path) as (run, resume):
            assert resume is not None and resume.checkpoint.step == 12
            assert any(f"pid {child.pid} on {socket.gethostname()}" in note and "without releasing" in note for note in run.notes)


def test_a_lock_left_by_another_boot_or_host_is_free(tmp_path: Path) -> None:
    path = interrupted(tmp_path)
    for left in (
        "pid 1 on here\nboot 00000000-0000-0000-0000-000000000000\n",
        f"pid {os.getpid()} on {socket.gethostname()}\nboot other\n",
        "garbage \x1b[2J",
        "",
    ):
        (path / LOCK).write_text(left)
        with opened(tmp_path) as (run, resume):
            assert resume is not None and resume.checkpoint.step == 8
            assert "\x1b" not in "".join(run.notes)
    assert (path / LOCK).read_text() == ""


def test_stages_of_a_killed_process_are_gone_when_the_run_goes_on(tmp_path: Path) -> None:
    path = interrupted(tmp_path)
    (path / ".stage-deadbeef-12").mkdir()
    (path / ".stage-deadbeef-12" / "half").write_bytes(b"x")
    (path / "heartbeat").mkdir()
    (path / "heartbeat" / "rank-0").write_bytes(b"old")
    with opened(tmp_path) as (run, _):
        assert {p.name for p in run.path.iterdir()} == {LOCK, "step-4", "step-8"}


def test_folders_of_runs_that_never_reached_a_checkpoint_are_removed_when_old(tmp_path: Path) -> None:
    with opened(tmp_path) as (old, _), opened(tmp_path, changed(seed="7")) as (young, _):
        pass
    os.utime(old.path, (1, 1))
    with opened(tmp_path, changed(seed="8")):
        assert not old.path.exists() and young.path.exists()
    assert time.time() - young.path.stat().st_mtime < 3000


# --- what was changed ----------------------------------------------------------------------------------------------


def recipe(**train: Any) -> dict[str, Any]:
    return {
        "name": "colours", "seed": 42, "base": {"model": "m", "load": "auto", "online": False, "sanity": "off"}, "data": {"task": "label"},
        "template": {"format": "tokenizer", "max_tokens": 128}, "method": {"kind": "lora", "rank": 16, "alpha": 32.0, "targets": ["q", "v"]},
        "train": {"peak_learning_rate": 2e-4, "tokens_per_step": 4096, "log_every_steps": 5, "kernels": {"attention": "auto"}, **train},
        "evaluate": {"few_shot": 3},
    }  # fmt: skip


def facts_of(dump: dict[str, Any], **other: Any) -> Fingerprint:
    facts = {"data": {"digest": "sha256:1", "order": "sha256:2"}, "base": {"digest": "sha256:3"}, "versions": {"torch": "2.13"}, "world_size": 1}
    return fingerprint(dump, **{**facts, **other})


# dotted key of the recipe or fact -> another value: at least the twenty of goal G16
TWENTY: dict[str, Any] = {
    "seed": 43, "base.model": "n", "base.load": "bf16", "base.digest": "x", "template.format": "other", "template.max_tokens": 64, "method.kind": "dora",
    "method.rank": 8, "method.alpha": 64.0, "method.targets": ["q"], "train.peak_learning_rate": 1e-4, "train.tokens_per_step": 512,
    "train.kernels.attention": "sdpa", "train.weight_decay": 0.1, "train.epochs": 2.0, "train.order": "shuffle", "data.digest": "x", "data.order": "x",
    "versions.torch": "2.14", "versions.peft": "1", "world_size": 2,
}  # fmt: skip


@pytest.mark.parametrize("name", TWENTY)
def test_each_changed_choice_is_refused_by_name_with_was_and_now(tmp_path: Path, name: str) -> None:
    first = facts_of(recipe())
    now = Fingerprint({**first.fields, name: TWENTY[name] if isinstance(TWENTY[name], str) else json.dumps(TWENTY[name])})
    interrupted(tmp_path, facts=first)
    text = refused(lambda: open_run(tmp_path, "colours", now))
    assert len(TWENTY) >= 20 and re.search(rf"  {re.escape(name)}$", text, re.MULTILINE)
    assert now.fields[name] in text and first.fields.get(name, "absent") in text and "--fresh" in text
    assert ("--allow-changed " + name in text) == (why_not(name) is None)
    with opened(tmp_path, first) as (_, resume):
        assert resume is not None  # a refusal has taken nothing away


def test_all_changed_choices_are_named_at_once(tmp_path: Path) -> None:
    interrupted(tmp_path)
    with pytest.raises(Refusal) as caught:
        open_run(tmp_path, "colours", changed(seed="7", method__rank="8", world_size="2"))
    assert [p.field for p in caught.value.problems] == ["method.rank", "seed", "world_size"]


def test_an_allowed_change_is_recorded_in_every_later_checkpoint_and_need_not_be_allowed_again(tmp_path: Path) -> None:
    path, now = interrupted(tmp_path), changed(train__peak_learning_rate="0.0001", versions__torch="2.14")
    assert "versions.torch" in refused(lambda: open_run(tmp_path, "colours", now, allow_changed=["train.peak_learning_rate"]))
    with opened(tmp_path, now, allow_changed=["train.peak_learning_rate", "versions"]) as (run, resume):
        assert resume is not None and run.path == path and resume.checkpoint.step == 8
        assert [(c.field, c.was, c.now, c.step) for c in resume.changed] == [
            ("train.peak_learning_rate", "0.0002", "0.0001", 8),
            ("versions.torch", "absent", "2.14", 8),
        ]
        run.save(12, fill(12))
    with opened(tmp_path, now) as (_, again):
        assert again is not None and again.checkpoint.step == 12 and again.changed == resume.changed
    assert "train.peak_learning_rate" in refused(lambda: open_run(tmp_path, "colours", FACTS))  # and back is a change too
    (path / "step-12" / "empty").unlink()
    assert "train.peak_learning_rate" in refused(lambda: open_run(tmp_path, "colours", now))  # step 8 is from before the change
    with opened(tmp_path, FACTS, fresh=True) as (run, resume):
        assert resume is None and run.path.name == FACTS.id


@pytest.mark.parametrize("name", ["world_size", "seed", "method.rank", "train.tokens_per_step", "data.digest", "base.digest", "template.format"])
def test_what_cannot_change_in_a_run_cannot_be_allowed(tmp_path: Path, name: str) -> None:
    assert "cannot" in refused(lambda: open_run(tmp_path, "colours", facts_of(recipe()), allow_changed=[name]))
    assert why_not(name)


def test_an_unknown_name_to_allow_is_refused_with_the_nearest(tmp_path: Path) -> None:
    assert "write train.peak_learning_rate" in refused(lambda: open_run(tmp_path, "colours", FACTS, allow_changed=["train.peek_learning_rate"]))
    with opened(tmp_path, allow_changed=list(CHANGEABLE)):
        pass


def test_fresh_removes_interrupted_runs_of_the_name_and_of_no_other(tmp_path: Path) -> None:
    first, second = interrupted(tmp_path), interrupted(tmp_path / "x", facts=changed(seed="7"))
    shutil.move(second, first.parent / second.name)
    with opened(tmp_path / "y"):
        pass
    other = interrupted(tmp_path / "other")
    with opened(tmp_path, fresh=True) as (run, resume):
        assert resume is None and len(run.notes) == 2 and all("removed the interrupted run" in note for note in run.notes)
        assert [p.name for p in first.parent.iterdir()] == [run.path.name] and run.checkpoints() == []
    assert other.is_dir()


def test_keys_that_change_no_weight_are_not_in_the_fingerprint() -> None:
    base = facts_of(recipe())
    for name in WATCH_ONLY:
        section, key = name.split(".")
        dump = recipe()
        dump[section] = {**dump[section], key: "something else"}
        assert facts_of(dump) == base, name
    assert not {n for n in base.fields if n.startswith(("evaluate", "name", "data.task"))}
    assert base.fields["base.digest"] == "sha256:3" and base.fields["base.model"] == "m" and base.fields["train.kernels.attention"] == "auto"
    assert base.differences(facts_of(recipe(peak_learning_rate=1e-4))) == [("train.peak_learning_rate", "0.0002", "0.0001")]


def test_every_key_of_the_recipe_that_is_exempt_or_changeable_exists() -> None:
    from tuner.base import BaseSpec
    from tuner.train.kernels import TrainPath
    from tuner.train.spec import MethodSpec, TrainSpec

    specs = {name: set(spec.model_fields) for name, spec in (("base", BaseSpec), ("train", TrainSpec), ("method", MethodSpec))}
    specs["way"] = {field.name for field in fields(TrainPath)}
    named = [n.split(".") for n in (*WATCH_ONLY, *CHANGEABLE) if "." in n]
    assert len(named) > 15
    for section, key in named:
        assert key in specs[section], f"{section}.{key}"


def test_a_name_that_leaves_the_folder_of_runs_is_refused(tmp_path: Path) -> None:
    for name in ("../x", "", "a/b", ".x"):
        assert "name" in refused(lambda name=name: open_run(tmp_path / "runs", name, FACTS))  # type: ignore[misc]


# --- a learning rate that really changes ---------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant_with_warmup"])
def test_rates_put_back_after_a_resume_give_the_updates_of_the_new_recipe(schedule: str) -> None:
    """Against a second implementation: one optimiser that is told the new rate by hand, without any checkpoint."""
    import torch
    from transformers import get_scheduler

    from tuner.train.checkpoint import apply_rates, rates_of

    def made(rate: float, decay: float) -> tuple[torch.nn.Parameter, Any, Any]:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(5))
        optimizer = torch.optim.AdamW([{"params": [weight], "weight_decay": decay}], lr=rate)
        return weight, optimizer, get_scheduler(schedule, optimizer, num_warmup_steps=2, num_training_steps=10)

    def steps(weight: torch.nn.Parameter, optimizer: Any, scheduler: Any, count: int) -> None:
        for _ in range(count):
            (weight**2).sum().backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    old, old_optimizer, old_scheduler = made(1e-1, 0.0)
    steps(old, old_optimizer, old_scheduler, 4)
    kept = deepcopy([old_optimizer.state_dict(), old_scheduler.state_dict(), old.detach()])
    new, optimizer, scheduler = made(3e-2, 0.5)
    rates = rates_of(optimizer)
    optimizer.load_state_dict(kept[0])
    scheduler.load_state_dict(kept[1])
    new.data.copy_(kept[2])
    assert optimizer.param_groups[0]["weight_decay"] == 0.0  # what a checkpoint brings with it
    apply_rates(optimizer, scheduler, rates)
    shape = scheduler.lr_lambdas[0]
    for step in range(4, 8):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(3e-2 * shape(step), rel=1e-12)
        group = old_optimizer.param_groups[0]
        group["lr"], group["weight_decay"] = 3e-2 * shape(step), 0.5
        (old**2).sum().backward()
        old_optimizer.step()
        old_optimizer.zero_grad()
        steps(new, optimizer, scheduler, 1)
        assert torch.equal(old, new)


def test_rates_that_did_not_change_are_put_back_to_the_bit() -> None:
    import torch
    from transformers import get_scheduler

    from tuner.train.checkpoint import apply_rates, rates_of

    weight = torch.nn.Parameter(torch.randn(5))
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=3, num_training_steps=17)
    rates = rates_of(optimizer)
    for _ in range(9):
        optimizer.step()
        scheduler.step()
        before = json.dumps([optimizer.state_dict()["param_groups"], scheduler.state_dict()], default=str)
        apply_rates(optimizer, scheduler, rates)
        assert json.dumps([optimizer.state_dict()["param_groups"], scheduler.state_dict()], default=str) == before
