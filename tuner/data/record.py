"""A record: one example with its place of origin, whatever shape its file was written in.

It refuses to hold anything but messages with known roles; shapes are turned into messages here and nowhere else.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from tuner.fingerprint import digest_json

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
SHAREGPT_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}

_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Record:
    """One example. `line` is 1-based: the line of a text file, or the row of a table. `extra` holds unused columns."""

    messages: tuple[Message, ...]
    file: str
    line: int
    split: str
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)

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
        return self.messages[-1].content

    @cached_property
    def hash(self) -> str:
        """Content identity: equal messages have equal hashes, whatever file or line they stand on."""
        return digest_json([m.as_dict() for m in self.messages])

    @cached_property
    def prompt_key(self) -> str:
        """The prompt without its case, width and spacing: what counts as the same question."""
        return "\x1e".join(f"{m.role}\x1f{normalised(m.content)}" for m in self.prompt)


def normalised(text: str) -> str:
    """NFKC, case-folded, runs of white space as one blank: the form in which texts are compared for sameness."""
    return _SPACES.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
