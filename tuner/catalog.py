"""Looking a name up in a table of choices, with one wording for "unknown, did you mean".

It refuses a name that the table does not hold and offers the nearest one that it does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from tuner.errors import refuse

Choice = TypeVar("Choice")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when nothing is close enough to be a slip of the finger."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """A `try` line for an unknown name."""
    names = sorted(known)
    near = nearest(name, names)
    return f"write {near}" if near else f"use one of: {', '.join(names)}"


def choose(table: Mapping[str, Choice], name: str, where: object, field: str) -> Choice:
    """The entry called `name`. Raises Refusal naming the accepted names and the nearest match."""
    if name not in table:
        refuse(where, field, repr(name), "one of: " + ", ".join(sorted(table)), suggestion(name, table))
    return table[name]
