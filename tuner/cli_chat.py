"""The command that talks to a version in the terminal: chat.

It refuses nothing while it talks: what cannot be asked is shown as a refusal, and the conversation goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli_words import BaseFolder, Name, Store
from tuner.errors import Exit, Refusal
from tuner.telling import err, for_terminal, out

if TYPE_CHECKING:
    from tuner.artifact.adapter import Adapter
    from tuner.artifact.stream import Stream

LEAST_COLUMNS = 100  # a terminal that is narrower shows base and adapter one after the other
HELP = "/new  forget the conversation    /system TEXT  begin anew under this system prompt    /quit  leave (or Ctrl-D)    Ctrl-C  stop an answer"


@dataclass
class Voice:
    """One of those who answer: the adapter or the bare base, each with its own conversation."""

    name: str
    ask: Callable[[list[dict[str, str]]], Stream]
    said: list[dict[str, str]] = field(default_factory=list)

    def begin(self, system: str | None, question: str) -> Stream:
        """An answer under way, to the whole conversation. Raises Refusal where it no longer fits."""
        told = [{"role": "system", "content": system}] if system is not None else []
        return self.ask([*told, *self.said, {"role": "user", "content": question}])

    def keep(self, question: str, answer: str) -> None:
        if answer:
            self.said += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@dataclass
class Conversation:
    """What was said since it began, by everybody who is asked."""

    voices: list[Voice]
    system: str | None
    was_refused: bool = False

    def forget(self) -> None:
        for voice in self.voices:
            voice.said.clear()

    def ask(self, question: str) -> None:
        """Show every voice's answer as it comes. Ctrl-C stops the answers and keeps what was said; a refused question is forgotten."""
        with ExitStack() as open_streams:
            try:
                streams = [open_streams.enter_context(voice.begin(self.system, question)) for voice in self.voices]
            except Refusal as refusal:
                self.was_refused = True
                err.print(for_terminal(str(refusal)), markup=False, soft_wrap=True)
                err.print("this question was left out; /new begins a conversation that is shorter", markup=False, soft_wrap=True)
                return
            told = [""] * len(streams)
            try:
                _show([voice.name for voice in self.voices], streams, told)
            except KeyboardInterrupt:
                out.print("\n(stopped)", style="dim", markup=False)
        for voice, answer in zip(self.voices, told, strict=True):
            voice.keep(question, answer)


# --- shown ---------------------------------------------------------------------------------------------------------


def _show(names: list[str], streams: list[Stream], told: list[str]) -> None:
    """Write the answers, and into `told` what was said so far."""
    if len(streams) > 1 and out.is_terminal and out.width >= LEAST_COLUMNS:
        _side_by_side(names, streams, told)
        return
    for at, (name, stream) in enumerate(zip(names, streams, strict=True)):
        if len(streams) > 1:
            _write(f"[{name}] ")
        for piece in stream:
            told[at] += piece
            _write(for_terminal(piece))
        _write("\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _side_by_side(names: list[str], streams: list[Stream], told: list[str]) -> None:
    """Two columns that grow together; once both are whole, or were stopped, they stay as they are."""
    from rich.live import Live

    try:
        with Live(console=out, transient=True, auto_refresh=False, vertical_overflow="ellipsis") as live:
            for at, piece in _in_turn(streams):
                told[at] += piece
                live.update(_columns(names, told), refresh=True)
    finally:
        out.print(_columns(names, told))


def _in_turn(streams: list[Stream]) -> Iterator[tuple[int, str]]:
    """A piece of each, again and again: (whose, what)."""
    going = dict(enumerate(streams))
    while going:
        for at, stream in list(going.items()):
            piece = next(stream, None)
            if piece is None:
                del going[at]
            else:
                yield at, piece


def _columns(names: list[str], told: list[str]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, expand=True, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, ratio=1, header_style="dim")
    table.add_row(*(Text(for_terminal(text)) for text in told))
    return table


# --- heard ---------------------------------------------------------------------------------------------------------


def _lines(is_terminal: bool) -> Iterator[str]:
    """What is typed, a line at a time. Ctrl-C at the prompt takes the line back; Ctrl-D, or the end of a pipe, ends it."""
    if not is_terminal:
        for line in sys.stdin.buffer:
            yield line.decode("utf-8", "replace").strip()
        return
    with ExitStack() as kept:
        _edit_lines(kept)
        while True:
            try:
                yield input("> ").strip()
            except EOFError:
                _write("\n")
                return
            except KeyboardInterrupt:
                _write("\n")


def _edit_lines(kept: ExitStack) -> None:
    """Arrow keys and the lines before, where Python has readline: `input` uses it once it is there."""
    try:
        import readline
    except ImportError:  # Windows, and Pythons built without it
        return
    readline.set_auto_history(True)
    kept.callback(readline.clear_history)


def _heed(line: str, conversation: Conversation) -> bool:
    """Do what a line says. False when it says to leave."""
    word, _, rest = line.partition(" ")
    if word == "/quit":
        return False
    if word == "/new":
        conversation.forget()
        err.print("a new conversation", style="dim", markup=False)
    elif word == "/system":
        conversation.system = rest.strip() or None
        conversation.forget()
        said = "the recipe's own system prompt" if conversation.system is None else f"system prompt: {for_terminal(conversation.system)}"
        err.print(f"a new conversation, {said}", style="dim", markup=False, soft_wrap=True)
    elif word.startswith("/"):
        err.print(HELP, markup=False, soft_wrap=True)
    elif line:
        conversation.ask(line)
    return True


# --- the command ---------------------------------------------------------------------------------------------------


def chat(
    name: Name,
    compare: Annotated[bool, typer.Option("--compare", help="the bare base answers too, beside the adapter and through the same template")] = False,
    system: Annotated[str | None, typer.Option(help="system prompt; default: the recipe's own")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer (tokens)")] = 512,
    store: Store = None, base: BaseFolder = None,
) -> None:  # fmt: skip
    """Talk to a version. /new forgets, /system TEXT sets a prompt, /quit leaves, Ctrl-C stops an answer. From a pipe: one question a line."""
    from tuner.artifact.adapter import load_adapter

    with load_adapter(name, store or "adapters", base=base) as adapter:
        conversation = Conversation(_voices(adapter, compare, max_new_tokens), system)
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            err.print(f"{adapter.version.label} on {adapter.manifest['base']['name']}\n{HELP}", style="dim", markup=False, soft_wrap=True)
        for line in _lines(is_terminal):
            if not _heed(line, conversation):
                break
    if conversation.was_refused and not is_terminal:
        raise typer.Exit(Exit.REFUSED)


def _voices(adapter: Adapter, compare: bool, max_new_tokens: int) -> list[Voice]:
    def by_adapter(messages: list[dict[str, str]]) -> Stream:
        return adapter.stream(messages, max_new_tokens)

    def by_base(messages: list[dict[str, str]]) -> Stream:
        with adapter.as_base():
            return adapter.stream(messages, max_new_tokens)

    own = Voice(adapter.version.label, by_adapter)
    return [Voice(f"base {adapter.manifest['base']['name']}", by_base), own] if compare else [own]


COMMANDS = (chat,)
