"""The number an answer gives, against the reference's.

It refuses to guess units: 5 km and 5 m are the same number here. A comma is a thousands separator and never a decimal sign.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

from tuner.evaluate.metric_types import Answer

# A sign counts only where no word or closing bracket stands before it, so 5-3 holds 5 and 3. Three digits of exponent keep Decimal finite and cheap.
_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>(?:(?<![)\]%])[-+\u2212])?)(?:[$€£¥]\s?)?"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?P<power>[eE][-+]?\d{1,3}(?!\w))?\s?(?P<percent>%)?",
    re.ASCII,
)
_FINAL = "####"  # GSM8K's mark of the final answer (Cobbe et al. 2021, arXiv 2110.14168)
MOST_DIGITS = 400


def numbers(text: str) -> list[tuple[Decimal, bool]]:
    """Every number of a text in order, each with whether a percent sign follows; longer ones than 400 characters are left out."""
    found = []
    for match in _NUMBER.finditer(text.replace("\u2212", "-")):
        written = match["sign"] + match["digits"].replace(",", "") + (match["power"] or "")
        if len(written) <= MOST_DIGITS:
            found.append((Decimal(written), match["percent"] is not None))
    return found


def final_number(text: str) -> tuple[Decimal, bool] | None:
    """The number after the last ####, if there is one; else the last number of the text."""
    head, mark, tail = text.rpartition(_FINAL)
    after = numbers(tail) if mark else []
    if after:
        return after[0]
    return next(reversed(numbers(head if mark else text)), None)


def has_number(answer: Answer) -> bool:
    """Can the item be graded: does a reference hold a number?"""
    return any(final_number(r) is not None for r in answer.references)


def numeric_score(absolute: float, relative: float) -> Callable[[Answer], float]:
    """A score that is 1 where the answer's final number lies within max(absolute, relative · |reference|) of a reference's.

    12 % equals 0.12, and also 12: a reference often leaves the sign to the question.
    """
    margin, share = Decimal(str(absolute)), Decimal(str(relative))

    def near(said: Decimal, wanted: Decimal) -> bool:
        return said == wanted or abs(said - wanted) <= max(margin, share * abs(wanted))

    def score(answer: Answer) -> float:
        said = final_number(answer.text or "")
        wanted = [w for r in answer.references if (w := final_number(r)) is not None]
        return float(said is not None and any(_same(said, w, near) for w in wanted))

    return score


def _same(said: tuple[Decimal, bool], wanted: tuple[Decimal, bool], near: Callable[[Decimal, Decimal], bool]) -> bool:
    if near(said[0], wanted[0]):
        return True
    if said[1] == wanted[1]:
        return False
    return near(said[0] / 100 if said[1] else said[0], wanted[0] / 100 if wanted[1] else wanted[0])
