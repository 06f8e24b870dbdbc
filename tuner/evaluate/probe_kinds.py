"""What every family of probes draws: a question, its answer, and three others of the same form."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Draft:
    """A probe before its options are shuffled. `others` are three wrong answers, all different, of about the answer's length."""

    question: str
    answer: str
    others: tuple[str, str, str]


def drafted(question: str, answer: str, wrong: Iterable[str], draw: random.Random, reply: str = "{}") -> Draft:
    """A draft with three of the `wrong` answers, drawn among those that are not the answer. `reply` is the sentence that each stands in.

    Whole sentences are asked for because a chat model answers with them: of bare words it finds all unlikely.
    """
    left = [w for w in dict.fromkeys(wrong) if w != answer]
    first, second, third = draw.sample(left, 3)
    return Draft(question, reply.format(answer), (reply.format(first), reply.format(second), reply.format(third)))


def far(answer: int, draw: random.Random) -> list[str]:
    """Three numbers with as many digits as the answer has, anywhere."""
    low, high = (0, 9) if answer < 10 else (10 ** (len(str(answer)) - 1), 10 ** len(str(answer)) - 1)
    return [str(n) for n in draw.sample([n for n in range(low, min(high, low + 2000) + 1) if n != answer], 3)]


def near(answer: int, draw: random.Random, steps: Iterable[int] = (1, 2, 3, 10)) -> list[str]:
    """Numbers near the answer with as many digits, so that length does not give it away; at least three."""
    found = [n for step in steps for n in (answer - step, answer + step) if n >= 0 and len(str(n)) == len(str(answer))]
    further = (n for n in range(answer + 1, answer + 20) if n not in found)
    while len(found) < 3:
        found.append(next(further))
    draw.shuffle(found)
    return [str(n) for n in found]
