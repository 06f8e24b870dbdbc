"""How a run ends before its time: a signal that lets the step finish, and a watch over ranks that hang or are gone.

It refuses to wait for ever: a stop takes at most its stated seconds, and a rank without progress ends the run, named with its
last step and its stack.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from tuner.durable import boot_id, ensure_folder, is_alive
from tuner.errors import Exit, Terminated

STOP_WITHIN_SECONDS = 30.0
LAST_SECONDS = 2.0  # between asking the main thread to leave and ending the process
ONE_KEYPRESS_SECONDS = 2.0
SIGN_BYTES = 512
DEATH_SEEN_SECONDS = 3.0
GO_ON = "the run ends; run the same command again: it goes on from the last good checkpoint"
SIGNALS = (signal.SIGTERM, signal.SIGINT)


# --- signals -------------------------------------------------------------------------------------------------------


_ACTIVE: set[Stopper] = set()


class Stopper:
    """SIGTERM and Ctrl-C while a run trains: the first asks it to stop after this step, a second leaves at once.

    `wanted` is the first signal's number. With several ranks the trainer agrees on it each step and writes the result to `agreed`,
    so that all end after the same step; then `leave()`. When that takes longer than `within_seconds`, or on a second signal, the
    process ends without saving, also when its main thread is stuck in a kernel or waits for another rank.
    """

    def __init__(self, say: Callable[[str], None], within_seconds: float = STOP_WITHIN_SECONDS):
        self.say, self.within_seconds = say, within_seconds
        self.wanted: int | None = None
        self.agreed: int | None = None
        # torchrun passes on what a terminal has already sent to the whole group: two signals of one Ctrl-C.
        self._one_keypress = ONE_KEYPRESS_SECONDS if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
        self._first_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopper:
        """The handlers that were there come back at the end. Elsewhere than in the main thread signals cannot be heard: nothing is changed."""
        if threading.current_thread() is not threading.main_thread():
            return self
        self._before = {number: signal.signal(number, self._heard) for number in SIGNALS}
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="tuner-stopper", daemon=True)
        self._watcher.start()
        _ACTIVE.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """A signal that nobody has answered ends the process now: what was being finished is finished."""
        if self not in _ACTIVE:
            return
        _ACTIVE.discard(self)
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._ended.set()
        os.write(self._writer, b"\0")
        self._watcher.join(timeout=5)
        os.close(self._reader)
        os.close(self._writer)
        if kind is None and self.wanted is not None:
            _raise_for(self.wanted)

    def leave(self) -> NoReturn:
        """End a run that was stopped and has saved, by the way out of its signal: exit code 143 or 130."""
        self.say("stopped after this step; a checkpoint of it is kept")
        _raise_for(self.agreed or self.wanted or signal.SIGTERM)

    def _heard(self, number: int, _frame: Any) -> None:
        """In the main thread, between two of its instructions."""
        if self.wanted is None:
            self.wanted, self._first_at = number, time.monotonic()
        elif time.monotonic() - self._first_at >= self._one_keypress:
            _raise_for(number)

    def _watch(self) -> None:
        """In a thread of its own, which hears of a signal (PEP 475's wakeup pipe) also while the main thread cannot."""
        first, deadline, asked = 0.0, None, False
        number = signal.SIGTERM
        while not self._ended.is_set():
            ready, _, _ = select.select([self._reader], [], [], None if deadline is None else max(deadline - time.monotonic(), 0))
            for byte in os.read(self._reader, 64) if ready else b"":
                if byte not in SIGNALS:
                    continue
                now = time.monotonic()
                if deadline is None:
                    first, number = now, signal.Signals(byte)
                    deadline = first + max(self.within_seconds - LAST_SECONDS, 0.0)
                    self.say(f"{number.name}: finishing this step, then saving a checkpoint; once more to leave at once")
                elif not asked and now - first >= self._one_keypress:
                    asked, deadline = True, now + LAST_SECONDS  # the main thread's own handler has raised, if it can
                    self.say(f"{number.name} again: leaving at once; the last checkpoint stays")
            if deadline is None or time.monotonic() < deadline or self._ended.is_set():
                continue
            if asked:
                _end(128 + number)
            asked, deadline = True, time.monotonic() + LAST_SECONDS
            self.say(f"this step takes longer than {self.within_seconds:.0f} s: leaving without saving; the last checkpoint stays")
            self._one_keypress = 0.0
            os.kill(os.getpid(), number)


def _raise_for(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated


def _end(code: int) -> NoReturn:
    """Out, whatever other threads do: nothing is flushed to disk, nothing half-done gets a final name."""
    sys.stderr.flush()
    os._exit(code)


def _unhear_in_child() -> None:
    """A forked worker hears Ctrl-C too. It must go on until its parent has finished the step, and say nothing to the parent's watcher."""
    if _ACTIVE:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _ACTIVE.clear()


os.register_at_fork(after_in_child=_unhear_in_child)


# --- ranks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sign:
    """A rank's last sign of life: `step` is the last it finished, `ticks` counts smaller pieces of work since, `turns` those of its thread."""

    rank: int
    pid: int
    host: str
    boot: str
    step: int
    ticks: int
    turns: int
    done: bool


class Heartbeat:
    """Ends the run when a rank has made no progress for `hang_seconds`, or when its process is gone.

    Every rank keeps a file in `folder` (shared by all ranks, empty at the start) and a thread that reads all of them: gloo ignores
    the process group's timeout on CPUs, and a rank that waits for another cannot say so itself. The run ends with exit code 5.
    """

    def __init__(
        self, folder: Path, rank: int, world: int, hang_seconds: float, say: Callable[[str], None], poll_seconds: float = 1.0
    ):  # fmt: skip
        self.folder, self.rank, self.world, self.hang_seconds, self.say = folder, rank, world, hang_seconds, say
        self.poll_seconds = min(poll_seconds, hang_seconds / 4)
        self.step, self.ticks, self.turns, self.done = 0, 0, 0, False
        self._boot = boot_id()
        self._spread = int(os.environ.get("LOCAL_WORLD_SIZE", world)) < world  # as torchrun says
        self._progress: dict[int, _Since] = {}
        self._turning: dict[int, _Since] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="tuner-heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        ensure_folder(self.folder)
        self._own = os.open(self._file(self.rank), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._publish()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """This rank has nothing more to do with the others. After an error it is not done: the others must not wait for it."""
        self._stop.set()
        self._thread.join(timeout=10)
        if kind is not None and issubclass(kind, RuntimeError) and self.world > 1:
            self._blame_the_dead()
        faulthandler.cancel_dump_traceback_later()
        self.done = kind is None or not issubclass(kind, Exception)
        self._publish()
        os.close(self._own)

    def beat(self, step: int) -> None:
        """This rank has finished `step`."""
        self.step, self.ticks = step, 0
        self._publish()

    def tick(self) -> None:
        """Progress within a step: a forward pass, a batch of validation. Tells who waits from who is waited for."""
        self.ticks += 1
        self._publish()

    # --- the thread

    def _watch(self) -> None:
        self._progress = {rank: _Since() for rank in range(self.world)}
        self._turning = {rank: _Since() for rank in range(self.world)}
        while not self._stop.wait(self.poll_seconds):
            self.turns += 1
            self._publish()
            if self._spread:
                with contextlib.suppress(OSError):
                    os.fsync(self._own)  # to the file server, where other machines read it
            # Twice: ranks that end together do not end in the same instant.
            if self._lost(self._signs()) and not self._stop.wait(self.poll_seconds) and (lost := self._lost(signs := self._signs())):
                self._end_run(signs, lost)

    def _publish(self) -> None:
        """Into the page cache, at the cost of one system call: what a process wrote there outlives it."""
        sign = Sign(self.rank, os.getpid(), socket.gethostname(), self._boot, self.step, self.ticks, self.turns, self.done)
        with contextlib.suppress(OSError):  # a broken disk must not end the run here; the checkpoint will say so
            os.pwrite(self._own, json.dumps(asdict(sign)).ljust(SIGN_BYTES).encode(), 0)

    def _file(self, rank: int, suffix: str = "") -> Path:
        return self.folder / f"rank-{rank}{suffix}"

    def _signs(self) -> list[Sign | None]:
        return [self._sign(rank) for rank in range(self.world)]

    def _sign(self, rank: int) -> Sign | None:
        try:
            return Sign(**json.loads(self._file(rank).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _lost(self, signs: Sequence[Sign | None]) -> dict[int, str]:
        """rank: what became of it. Of ranks that stand still together, those that got least far: the others wait for them."""
        for rank, sign in enumerate(signs):
            moved = self._progress[rank].now(None if sign is None else (sign.step, sign.ticks, sign.done))
            self._turning[rank].now(None if sign is None else sign.turns)
            if moved and rank == self.rank:
                faulthandler.dump_traceback_later(self.hang_seconds + 60, exit=True)  # if even this thread cannot run
        running = [rank for rank, sign in enumerate(signs) if sign is None or not sign.done]
        if gone := [rank for rank in running if (sign := signs[rank]) is not None and _ended(sign)]:
            return dict.fromkeys(gone, "its process has ended")
        still = [rank for rank in running if self._progress[rank].seconds > self.hang_seconds]
        first = self._mute(still) or self._least_far(still, signs)
        return dict.fromkeys(first, f"no progress for {self.hang_seconds:g} s")

    def _mute(self, ranks: Sequence[int]) -> list[int]:
        """Of these, the ranks whose thread does not run either: stopped, on a machine that is gone, or holding the interpreter's lock."""
        return [rank for rank in ranks if self._turning[rank].seconds > self.hang_seconds / 2]

    def _least_far(self, ranks: Sequence[int], signs: Sequence[Sign | None]) -> list[int]:
        places = {rank: (-1, -1) if (sign := signs[rank]) is None else (sign.step, sign.ticks) for rank in ranks}
        return [rank for rank, place in places.items() if place == min(places.values())]

    def _end_run(self, signs: Sequence[Sign | None], lost: dict[int, str]) -> NoReturn:
        """Every rank writes its stack; one tells of the lost ones; all end."""
        self._dump_stack()
        others = [s for s in signs if s is not None and s.rank != self.rank and not s.done and not _ended(s)]
        mute = self._mute([s.rank for s in others])
        if self.rank in lost and others:
            time.sleep(2 * self.poll_seconds)  # the others tell it better: they end the ones that cannot end themselves
        if self._is_first_to_tell():
            self._wait_for_stacks([s.rank for s in others if s.rank in lost and s.rank not in mute])
            for rank, what in lost.items():
                self.say(self._told(rank, signs[rank], what))
            self.say(GO_ON)
            _kill_here(others)
        else:
            time.sleep(max(5.0, 3 * self.poll_seconds))
        _end(Exit.RANK_LOST)

    def _blame_the_dead(self) -> None:
        """A collective fails when another rank dies. Then that rank is the news, not this one's traceback: end as if it had hung."""
        deadline = time.monotonic() + DEATH_SEEN_SECONDS
        while time.monotonic() < deadline:
            others = [s for s in self._signs() if s is not None and s.rank != self.rank and not s.done]
            if gone := [s for s in others if _ended(s)]:
                if self._is_first_to_tell():
                    for sign in gone:
                        self.say(self._told(sign.rank, sign, "its process has ended"))
                    self.say(GO_ON)
                self.done = True  # gone on purpose: not the news
                self._publish()
                _end(Exit.RANK_LOST)
            time.sleep(0.05)

    def _is_first_to_tell(self) -> bool:
        """Every rank finds out; the user hears it once."""
        try:
            os.close(os.open(self.folder / "told", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
        except FileExistsError:
            return False
        except OSError:
            return True
        return True

    def _dump_stack(self) -> None:
        with open(self._file(self.rank, ".stack"), "w", encoding="utf-8") as out:
            faulthandler.dump_traceback(out, all_threads=True)

    def _wait_for_stacks(self, ranks: Sequence[int]) -> None:
        """The other ranks find out in their own time; one that holds the interpreter's lock never does."""
        deadline = time.monotonic() + 2 * self.poll_seconds + 0.5
        while time.monotonic() < deadline and not all(self._file(r, ".stack").is_file() for r in ranks):
            time.sleep(0.05)

    def _told(self, rank: int, sign: Sign | None, what: str) -> str:
        if sign is None:
            return f"rank {rank}: {what}, and it never started"
        try:
            stack = self._file(rank, ".stack").read_text(encoding="utf-8")
        except OSError:
            stack = ""
        said = f"rank {rank} (process {sign.pid} on {sign.host}): {what}; its last finished step is {sign.step}"
        return f"{said}\n{stack.strip()}" if stack.strip() else f"{said}; it left no stack"


class _Since:
    """How long a value has been what it is, by this process's clock."""

    def __init__(self) -> None:
        self.value: object = None
        self.at = time.monotonic()

    def now(self, value: object) -> bool:
        """Note the value; True when it is another one."""
        if value == self.value:
            return False
        self.value, self.at = value, time.monotonic()
        return True

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.at


def _ended(sign: Sign) -> bool:
    """Is its process gone? Only known on the machine it ran on, since that was last started."""
    return sign.host == socket.gethostname() and sign.boot == boot_id() and not is_alive(sign.pid)


def _kill_here(signs: Sequence[Sign]) -> None:
    """End the ranks of this machine: one that hangs may be past ending itself. Those of other machines end themselves."""
    for sign in signs:
        if sign.host == socket.gethostname() and sign.boot == boot_id() and is_alive(sign.pid):
            os.kill(sign.pid, signal.SIGKILL)
