"""What every scripted contestant of these tests has: it knows whether the base is asked, and every prompt fits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Self


class Scripted:
    """`base` is true while the base is asked."""

    def __init__(self) -> None:
        self.base = False

    def fits(self, questions: Any, room: int) -> list[bool]:
        return [True] * len(questions)

    @contextlib.contextmanager
    def as_base(self) -> Iterator[Self]:
        self.base = True
        try:
            yield self
        finally:
            self.base = False
