"""Runs that end before their time: real processes, real signals, real ranks that hang or die."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tuner.errors import Exit
from tuner.train.stopping import Stopper

# A run of steps of 0.1 s that "saves" by printing; stopped like the trainer stops, and out by the exit codes of the command line.
RUN = """
import os, sys, threading, time
from tests.conftest import heed_interrupts
from tuner.errors import Exit, Terminated
from tuner.train.stopping import Stopper
heed_interrupts()
def say(text):
    print(text, flush=True)
def train(step):
    with Stopper(say, within_seconds=float(sys.argv[1])) as stopper:
        say("ready")
        for number in range(1, 1000):
            try:
                step(number)
            except StopIteration:
                say("published")
                break
            if stopper.wanted is not None:
                say(f"saved {number}")
                stopper.leave()
def short(number):
    time.sleep(0.1)
def waiting(number):
    import ctypes
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)  # in C for ever, like a collective whose other rank is gone; other threads run
def last(number):
    time.sleep(2)
    if number == 1:
        raise StopIteration
def python(number):
    while True:
        pass
try:
    train(globals()[sys.argv[2]])
except KeyboardInterrupt:
    say("interrupted"); sys.exit(130)
except Terminated:
    say("terminated"); sys.exit(143)
"""


@contextmanager
def run(kind: str, within_seconds: float = 30, **env: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", RUN, str(within_seconds), kind], cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, **env}, start_new_session=True
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.communicate(timeout=30)


def said(child: subprocess.Popen[str]) -> list[str]:
    assert child.stdout is not None
    lines = child.stdout.read().splitlines()
    child.wait(timeout=30)
    return lines


# --- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGTERM, Exit.TERMINATED, "terminated"), (signal.SIGINT, Exit.INTERRUPTED, "interrupted")])
def test_the_first_signal_lets_the_step_finish_and_save_and_exits_by_its_code(number: signal.Signals, code: Exit, word: str) -> None:
    with run("short") as child:
        child.send_signal(number)
        lines = said(child)
        assert child.returncode == code
        assert lines[0] == f"{number.name}: finishing this step, then saving a checkpoint; once more to leave at once"
        assert re.fullmatch(r"saved \d+", lines[1]) and lines[2:] == ["stopped after this step; a checkpoint of it is kept", word]


@pytest.mark.parametrize("kind", ["python", "waiting"])
@pytest.mark.parametrize(("first", "second", "code"), [(signal.SIGINT, signal.SIGINT, 130), (signal.SIGTERM, signal.SIGTERM, 143)])
def test_the_second_signal_leaves_at_once_without_saving_also_when_the_main_thread_cannot_hear(
    kind: str, first: signal.Signals, second: signal.Signals, code: int
) -> None:
    with run(kind) as child:
        assert child.stdout is not None
        child.send_signal(first)
        assert "finishing this step" in child.stdout.readline()
        child.send_signal(second)
        lines = said(child)
        assert child.returncode == code and not any("saved" in line for line in lines)


@pytest.mark.parametrize("kind", ["python", "waiting"])
def test_a_step_that_takes_too_long_is_left_without_saving(kind: str) -> None:
    with run(kind, within_seconds=2.5) as child:
        child.send_signal(signal.SIGTERM)
        lines = said(child)
        assert child.returncode == Exit.TERMINATED and any("takes longer than 2 s: leaving without saving" in line for line in lines)
        assert not any("saved" in line for line in lines)


def test_a_signal_while_the_result_is_published_ends_the_process_after_it() -> None:
    with run("last") as child:
        child.send_signal(signal.SIGTERM)
        lines = said(child)
        assert child.returncode == Exit.TERMINATED and lines[-2:] == ["published", "terminated"]


def test_two_signals_of_one_keypress_under_torchrun_count_as_one() -> None:
    with run("short", TORCHELASTIC_RUN_ID="x") as child:
        for _ in range(3):
            child.send_signal(signal.SIGINT)
        lines = said(child)
        assert child.returncode == Exit.INTERRUPTED and any(line.startswith("saved") for line in lines)


FORKING = RUN.replace("train(globals()[sys.argv[2]])", """
    def with_worker(number):
        if number == 1 and os.fork() == 0:
            for _ in range(20):
                time.sleep(0.1)
            say("worker done"); os._exit(0)
        time.sleep(1.0)
    train(with_worker)
""".strip())  # fmt: skip


def test_a_worker_hears_the_same_ctrl_c_and_neither_dies_nor_counts_as_the_second() -> None:
    child = subprocess.Popen([sys.executable, "-c", FORKING, "30", "x"], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    time.sleep(0.3)  # the worker is there
    os.killpg(child.pid, signal.SIGINT)
    lines = said(child)
    assert child.returncode == Exit.INTERRUPTED and "worker done" in lines and any(line.startswith("saved") for line in lines)
    assert sum("finishing this step" in line for line in lines) == 1


def test_handlers_come_back_and_a_thread_changes_nothing() -> None:
    import threading

    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with Stopper(print) as stopper:
        assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] != before and stopper.wanted is None
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before

    found: list[int | None] = []

    def elsewhere() -> None:
        with Stopper(print) as stopper:
            found.append(stopper.wanted)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [None] and [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


# --- ranks ---------------------------------------------------------------------------------------------------------

# One rank: waits for a file of each other rank at every step, as a collective would; `fault` happens to a rank in step 3.
RANK = """
import ctypes, os, sys, time
from pathlib import Path
from tuner.train.stopping import Heartbeat
folder, rank, world, fault, hang = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], float(sys.argv[5])
victim = int(sys.argv[6]) if len(sys.argv) > 6 else 1
def say(text):
    print(f"[{rank}] {text}", flush=True)
def sleeping_in_the_third_step():
    time.sleep(100)
def happens():
    if fault == "hangs":
        sleeping_in_the_third_step()
    if fault == "holds the lock":
        ctypes.PyDLL(None).sleep(100)
    if fault.startswith("dies"):
        os.kill(os.getpid(), 9)
    if fault == "is stopped":
        os.kill(os.getpid(), 19)
    if fault == "fails":
        raise ValueError("a bug")
with Heartbeat(folder / "beats", rank, world, hang, say, poll_seconds=0.2) as heart:
    for step in range(1, 6):
        if rank == victim and step == 3:
            happens()
        if fault != "is stopped":
            heart.tick()
        (folder / f"{rank}-{step}").touch()
        while not all((folder / f"{r}-{step}").exists() for r in range(world)):
            time.sleep(0.01)
            if fault == "dies, the others notice" and step == 3:
                raise RuntimeError("Connection closed by peer")
        heart.beat(step)
say("done")
"""


def ranks(folder: Path, world: int, fault: str, hang_seconds: float, victim: int = 1) -> tuple[list[int], str, float]:
    """Exit codes of all ranks, what they said, and how long it took (s)."""
    command = [sys.executable, "-c", RANK, str(folder)]
    began = time.monotonic()
    children = [
        subprocess.Popen(
            [*command, str(rank), str(world), fault, str(hang_seconds), str(victim)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in range(world)
    ]
    try:
        out = "".join(child.communicate(timeout=60)[0] for child in children)
    finally:
        for child in children:
            child.kill()
    return [child.returncode for child in children], out, time.monotonic() - began


def test_ranks_that_go_on_are_left_alone(tmp_path: Path) -> None:
    codes, out, _ = ranks(tmp_path, 3, "nothing", 2.0)
    assert codes == [0, 0, 0] and sorted(out.split("\n")) == ["", "[0] done", "[1] done", "[2] done"]


def test_a_rank_that_hangs_ends_all_and_is_named_with_step_and_stack(tmp_path: Path) -> None:
    codes, out, seconds = ranks(tmp_path, 3, "hangs", 2.0)
    assert Exit.RANK_LOST in codes and set(codes) <= {Exit.RANK_LOST, -signal.SIGKILL} and seconds < 30
    (told,) = re.findall(r"^\[(\d)\] rank (\d) \(process \d+ on \S+\): no progress for 2 s; its last finished step is (\d)$", out, re.MULTILINE)
    assert told[1:] == ("1", "2") and "in sleeping_in_the_third_step" in out and "run the same command again" in out


def test_a_rank_that_holds_the_interpreter_is_ended_by_the_others(tmp_path: Path) -> None:
    codes, out, _ = ranks(tmp_path, 2, "holds the lock", 2.0)
    assert codes == [Exit.RANK_LOST, -signal.SIGKILL]
    assert re.search(r"\[0\] rank 1 .*no progress for 2 s; its last finished step is 2; it left no stack", out)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_is_told_from_those_that_wait_for_it_and_ended(tmp_path: Path, victim: int) -> None:
    codes, out, _ = ranks(tmp_path, 2, "is stopped", 2.0, victim)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == Exit.RANK_LOST
    assert re.findall(r"^\[(\d)\] rank (\d) .*no progress for 2 s; its last finished step is (\d)", out, re.MULTILINE) == [(str(1 - victim), str(victim), "2")]


def test_a_rank_whose_collective_fails_because_another_died_names_the_dead_one(tmp_path: Path) -> None:
    codes, out, seconds = ranks(tmp_path, 3, "dies, the others notice", 50.0)
    assert codes == [Exit.RANK_LOST, -signal.SIGKILL, Exit.RANK_LOST] and seconds < 20
    assert re.findall(r"^\[[02]\] rank (\d) .*its process has ended; its last finished step is 2", out, re.MULTILINE) == ["1"]
    assert "Traceback" not in out


@pytest.mark.parametrize("fault", ["dies", "fails"])
def test_a_rank_that_is_gone_ends_the_others_long_before_they_would_hang(tmp_path: Path, fault: str) -> None:
    codes, out, seconds = ranks(tmp_path, 3, fault, 50.0)
    assert codes[1] in {-signal.SIGKILL, 1} and set(codes[::2]) <= {Exit.RANK_LOST, -signal.SIGKILL} and seconds < 20
    assert re.search(r"\[[02]\] rank 1 .*its process has ended; its last finished step is 2", out)


def test_a_single_process_that_hangs_ends_itself_with_its_stack(tmp_path: Path) -> None:
    code = RANK.replace("rank == victim and", "")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "0", "1", "hangs", "1.5"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == Exit.RANK_LOST and "last finished step is 2" in done.stdout and "in sleeping_in_the_third_step" in done.stdout


def test_a_rank_that_never_starts_ends_the_others(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", RANK, str(tmp_path), "0", "2", "x", "1.5"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == Exit.RANK_LOST and "rank 1: no progress for 1.5 s, and it never started" in done.stdout
