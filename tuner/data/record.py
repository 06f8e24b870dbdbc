"""A record: one example with its place of origin, whatever shape its file was written in.

It refuses to hold anything but messages with known roles; shapes are turned into messages in shapes.py and nowhere else.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import msgspec

from tuner.fingerprint import digest_json

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}

_SPACES = re.compile(r"\s+")
_ID = 12  # hex digits of a record's hash that name it in a finding


class Message(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One turn. `tool_calls` is the canonical JSON text of an assistant's calls; `tool_call_id` names the call a tool turn answers.

    `weight` 0 takes the turn's loss away; it is 1 otherwise. `tools`, on a conversation's first turn, is the canonical JSON text of the functions
    it offers.
    """

    role: Role
    content: str
    tool_calls: str | None = None
    tool_call_id: str | None = None
    name: str | None = None
    weight: int = 1
    tools: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The message as chat templates take it; absent parts are left out."""
        plain: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls is not None:
            plain["tool_calls"] = json.loads(self.tool_calls)
        if self.tool_call_id is not None:
            plain["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            plain["name"] = self.name
        return plain

    def as_written(self) -> dict[str, Any]:
        """The message as a file holds it: what templates see, and its weight where it is not 1."""
        return self.as_dict() if self.weight == 1 else {**self.as_dict(), "weight": self.weight}

    def saying(self, content: str, tool_calls: str | None, tools: str | None) -> Message:
        """The same turn in other words."""
        return Message(self.role, content, tool_calls, self.tool_call_id, self.name, self.weight, tools)

    @property
    def text(self) -> str:
        """All the words of the turn: its content, then its tool calls."""
        return self.content if self.tool_calls is None else f"{self.content}\n{self.tool_calls}".lstrip("\n")


class Record(msgspec.Struct, frozen=True, dict=True):
    """One example. `line` is 1-based: the line of a text file, or the row of a table. `extra` holds unused columns."""

    messages: tuple[Message, ...]
    file: str
    line: int
    split: str
    extra: Mapping[str, Any] = msgspec.field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.messages, self.file, self.line, self.split))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and (self.messages, self.file, self.line, self.split) == (other.messages, other.file, other.line, other.split)

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the last assistant turn: what the model is given."""
        return self.messages[:-1]

    @property
    def completion(self) -> str:
        """The last assistant turn: what the model is asked for."""
        return self.messages[-1].text

    @property
    def question(self) -> str:
        """The words of the prompt without system turns, one turn a paragraph: what is compared and embedded."""
        turns = self.messages[:-1]
        return turns[0].content if len(turns) == 1 and turns[0].role != "system" else "\n\n".join(m.text for m in turns if m.role != "system")

    @cached_property
    def hash(self) -> str:
        """Content identity: equal messages have equal hashes, whatever file or line they stand on."""
        turns = [m.as_written() for m in self.messages]
        return digest_json(turns if self.tools is None else [turns, json.loads(self.tools)])

    @property
    def id(self) -> str:
        """The start of the content hash: how findings name the record."""
        return self.hash.removeprefix("sha256:")[:_ID]

    @property
    def prompt_key(self) -> str:
        """The prompt without its case, width and spacing: what counts as the same question."""
        turns = "\x1e".join(f"{m.role}\x1f{normalised(m.text)}" for m in self.prompt)
        return turns if self.tools is None else f"{turns}\x1d{self.tools}"

    @property
    def tools(self) -> str | None:
        """The functions the conversation offers, as canonical JSON text."""
        return self.messages[0].tools

    def moved(self, split: str) -> Record:
        """The same record in another split."""
        return Record(self.messages, self.file, self.line, split, self.extra)


def normalised(text: str) -> str:
    """NFKC, case-folded, runs of white space as one blank: the form in which texts are compared for sameness."""
    if text.isascii():
        return " ".join(text.lower().split())
    return _SPACES.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
