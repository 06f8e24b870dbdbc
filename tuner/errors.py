"""The one error a user sees: a Refusal, which names where, what was found, what would be accepted and what to try.

It refuses to be vague: every problem carries all five fields, and several problems are reported together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import NoReturn

SHOWN_PROBLEMS = 10


class Exit(IntEnum):
    """Process exit codes, documented in README.md."""

    GOOD = 0
    BUG = 1
    REFUSED = 2
    NOT_BETTER = 3
    UNDECIDED = 4
    RANK_LOST = 5
    INTERRUPTED = 130
    TERMINATED = 143


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing a user can mend: `where` is file:line or a path, `field` the key inside it (may be empty)."""

    where: str
    field: str
    found: str
    accepted: str
    try_: str

    def lines(self) -> str:
        head = f"{self.where}  {self.field}".rstrip()
        return f"{head}\n  found     {self.found}\n  accepted  {self.accepted}\n  try       {self.try_}"


class Refusal(Exception):
    """Input that cannot be used as it stands. Survives pickling (worker processes) and exits with code 2."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        shown = [p.lines() for p in self.problems[:SHOWN_PROBLEMS]]
        rest = len(self.problems) - len(shown)
        if rest > 0:
            shown.append(f"... and {rest} more of the same run ({len(self.problems)} in all)")
        return "\n".join(shown)


class Terminated(BaseException):
    """SIGTERM arrived. Not an Exception: cleaning code runs, but nothing may swallow it on the way out."""


def refuse(where: object, field: str, found: object, accepted: str, try_: str) -> NoReturn:
    """Raise a Refusal with a single problem."""
    raise Refusal([Problem(str(where), field, str(found), accepted, try_)])


class Collector:
    """Gathers problems so that the user sees all of them at once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def add(self, where: object, field: str, found: object, accepted: str, try_: str) -> None:
        self.problems.append(Problem(str(where), field, str(found), accepted, try_))

    def raise_if_any(self) -> None:
        if self.problems:
            raise Refusal(self.problems)
