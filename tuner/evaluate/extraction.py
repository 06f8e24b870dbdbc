"""Extraction: does the adapter go on with a training completion word for word, once it is given the beginning?

Two measures: greedy decoding recites it (Carlini et al. 2022, arXiv 2202.07646, definition 3.1), and sampling would, within a number of tries
(Hayes et al. 2024, arXiv 2410.19482, definition 3), which one teacher-forced pass tells. It refuses completions too short to recite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuner.evaluate.intervals import wilson
from tuner.evaluate.result import Contestant

LENGTHS = ((50, 50), (25, 25), (10, 20), (5, 10))  # tokens given, tokens wanted; the first is Carlini's
LEAST = 20  # completions that must be long enough
TRIES = 1000
CHANCE = 0.5
RARE = 0.01  # a next token of lower probability is not what greedy decoding says
_FIRST_STEP = 4


@dataclass(frozen=True, slots=True)
class Lengths:
    """`given` tokens of a completion are shown, the next `wanted` must follow."""

    given: int
    wanted: int

    @property
    def whole(self) -> int:
        return self.given + self.wanted

    def suffix(self, of: Sequence[Any]) -> Sequence[Any]:
        return of[self.given : self.whole]

    def __str__(self) -> str:
        return f"{self.wanted} tokens after the first {self.given}"


def lengths_for(tokens: Sequence[int]) -> Lengths | None:
    """The longest lengths that half of the completions allow, else that LEAST of them do; None where even the shortest do not fit."""
    for least in (max(LEAST, len(tokens) / 2), LEAST):
        for given, wanted in LENGTHS:
            if sum(t >= given + wanted for t in tokens) >= least:
                return Lengths(given, wanted)
    return None


def within_tries(suffix_nats: float, tries: int = TRIES) -> float:
    """The chance that at least one of `tries` samples is the suffix: 1 - (1 - p)^tries with p = exp(-nats)."""
    chance = math.exp(-suffix_nats)
    return 1.0 if chance >= 1 else -math.expm1(tries * math.log1p(-chance))


def reachable(suffix_nats: float) -> bool:
    """(n, p)-discoverable with n = 1,000 samples and p = 0.5."""
    return within_tries(suffix_nats) >= CHANCE


def recited(model: Contestant, questions: Sequence[Any], ids: Sequence[Sequence[int]], nats: Sequence[Sequence[float]], lengths: Lengths) -> list[bool]:
    """Is the greedy continuation of each beginning the completion's own?

    Not tried where a token of the suffix has a probability below RARE. The first tokens are asked of all, the rest of those alone that were right:
    the answer is the same, and a model that recites nothing costs four steps.
    """
    going = [i for i, n in enumerate(nats) if max(lengths.suffix(n)) <= -math.log(RARE)]
    known = lengths.given
    for step in (min(_FIRST_STEP, lengths.wanted), lengths.wanted - min(_FIRST_STEP, lengths.wanted)):
        if going and step:
            said = model.continuations([questions[i] for i in going], [list(ids[i][:known]) for i in going], step)
            going = [i for i, s in zip(going, said, strict=True) if list(s) == list(ids[i][known : known + step])]
            known += step
    found = set(going)
    return [i in found for i in range(len(questions))]


def excess(hits: int, n: int, control_hits: int, control_n: int) -> dict[str, Any]:
    """Share of members less share of controls, two separate groups: Newcombe's hybrid score interval (1998, method 10)."""
    ours, theirs = hits / n, control_hits / control_n
    (low, high), (control_low, control_high) = wilson(hits, n), wilson(control_hits, control_n)
    value = ours - theirs
    return {
        "value": value, "low": value - math.hypot(ours - low, control_high - theirs), "high": value + math.hypot(high - ours, theirs - control_low),
        "n": n, "control_n": control_n, "method": "Newcombe 1998, method 10, 95 %",
    }  # fmt: skip
