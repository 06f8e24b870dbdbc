"""`tuner chat` in a process of its own, through a pipe and in a real terminal: what is shown is what the adapter answers to the whole conversation."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

import tuner
from tests.artifact.test_adapter import trained  # noqa: F401 (a fixture)
from tuner.artifact.adapter import Adapter


def command(store: Path, base: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "tuner", "chat", "colours@1", "--store", str(store), "--base", str(base), "--max-new-tokens", "6", *more]


@pytest.fixture(scope="module")
def adapter(trained: tuple[Path, Path], tiny_base: Path) -> Adapter:  # noqa: F811
    return tuner.load_adapter("colours@1", trained[0], base=tiny_base)


def conversation(adapter: Adapter, questions: list[str], system: str | None = None) -> list[str]:
    """Answers of a second implementation: the messages written out, one `answer` a turn."""
    messages = [{"role": "system", "content": system}] if system else []
    found = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        found.append(adapter.answer(messages, 6))
        messages.append({"role": "assistant", "content": found[-1]})
    return found


def shown(text: str) -> str:
    return text.replace("\t", "\\t")


def test_a_pipe_asks_a_question_a_line_and_the_conversation_goes_on_until_it_is_forgotten(
    adapter: Adapter,
    trained: tuple[Path, Path],  # noqa: F811
    tiny_base: Path,
) -> None:
    first, second = "thing number 3 please", "and thing number 4?"
    lines = [first, second, "/new", second, "", "/system Sing.", first, "word " * 1100, first, "/what", "/quit", "never asked"]
    done = subprocess.run(
        command(trained[0], tiny_base, "--compare"), input="\n".join(lines).encode(), capture_output=True, timeout=200, check=False
    )  # fmt: skip
    with adapter.as_base():
        bare = [*conversation(adapter, [first, second]), *conversation(adapter, [second]), *conversation(adapter, [first, first], "Sing.")]
    ours = [*conversation(adapter, [first, second]), *conversation(adapter, [second]), *conversation(adapter, [first, first], "Sing.")]
    base = adapter.manifest["base"]["name"]
    wanted = "".join(f"[base {base}] {shown(b)}\n[colours@1] {shown(o)}\n" for b, o in zip(bare, ours, strict=True))
    assert done.stdout.decode() == wanted and ours != bare
    said = done.stderr.decode()
    assert "at most 1024" in said and "/new begins a conversation" in said and "/quit  leave" in said and "Traceback" not in said
    assert done.returncode == 2  # a question of the pipe was refused


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, words: list[str], columns: int):
        self.pid, self.handle = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm", COLUMNS=str(columns), HF_HUB_OFFLINE="1")
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.execv(words[0], words)
        fcntl.ioctl(self.handle, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.seen = ""

    def until(self, pattern: str, seconds: float = 120) -> str:
        """Everything shown up to and with the pattern."""
        ends = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            if not select.select([self.handle], [], [], max(0.0, ends - time.monotonic()))[0]:
                raise AssertionError(f"no {pattern!r} in {self.seen!r}")
            self.seen += os.read(self.handle, 65536).decode("utf-8", "replace")
        shown, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return shown

    def type(self, text: str) -> None:
        os.write(self.handle, text.encode())

    def ended(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.slow
def test_in_a_terminal_ctrl_c_stops_the_answer_ctrl_d_leaves_and_two_columns_are_shown(
    adapter: Adapter,
    trained: tuple[Path, Path],  # noqa: F811
    tiny_base: Path,
) -> None:
    question = "thing number 3 please"
    terminal = Terminal([*command(trained[0], tiny_base, "--compare"), "--max-new-tokens", "900"], columns=140)
    try:
        terminal.until(r"> ")
        terminal.type(question + "\n")
        terminal.until(r"\[\d+A|\[2K")  # the columns are drawn again: an answer is under way
        terminal.type("\x03")
        stopped = terminal.until(r"\(stopped\)[^>]*> ")
        kept = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stopped[stopped.rindex("[2K") :])
        assert re.search(rf"base {adapter.manifest['base']['name']} +colours@1", kept) and "red" in kept
        terminal.type("half a ques\x03")
        terminal.until(r"> ")
        terminal.type("/new\n")
        terminal.until(r"a new conversation[^>]*> ")
        terminal.type("\x04")
        assert terminal.ended() == 0
    finally:
        os.close(terminal.handle)
