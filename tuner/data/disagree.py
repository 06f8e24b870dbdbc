"""Whether two answers to one prompt contradict each other, or only say it in other words: yes and no, another number, a "not" more.

It refuses to guess from meaning: answers that share too few words to be compared are called different, not contradictory.
Measured on model answers to GSM8K: the last number differs on all wrong and on none of 2,001 right ones.
"""

from __future__ import annotations

import re

from tuner.data.shingles import words

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_NEGATION = re.compile(r"\b(?:not|never|cannot|without|nor)\b|n['’]t\b")
_POLES = {"yes": "yes", "yeah": "yes", "true": "yes", "correct": "yes", "no": "no", "nope": "no", "false": "no", "incorrect": "no"}
_NUMBER_WORDS = {w: str(i) for i, w in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())}
SHORT = 12  # words up to which an answer's last number is the answer
ALIKE, NEARLY = 0.5, 0.7  # Jaccard of the words besides numbers, or negations


def disagreement(one: str, other: str) -> str | None:
    """What the answers disagree about, in a few words, or None."""
    ours, theirs = words(one), words(other)
    poles = _POLES.get(ours[0] if ours else ""), _POLES.get(theirs[0] if theirs else "")
    if None not in poles and poles[0] != poles[1]:
        return f"{ours[0]} against {theirs[0]}"
    numbers = _numbers(one), _numbers(other)
    plain = [{w for w in side if not w.isdigit() and w not in _NUMBER_WORDS} for side in (ours, theirs)]
    if all(numbers) and numbers[0][-1] != numbers[1][-1]:
        marked = "####" in one and "####" in other
        short = len(ours) <= SHORT and len(theirs) <= SHORT and not plain[0] ^ plain[1]
        if marked or short or (_overlap(*plain) >= ALIKE and sorted(numbers[0]) != sorted(numbers[1])):
            return f"{numbers[0][-1]} against {numbers[1][-1]}"
    negations = len(_NEGATION.findall(one.lower())), len(_NEGATION.findall(other.lower()))
    if negations[0] % 2 != negations[1] % 2 and _overlap(*({w for w in side if w not in _NEGATORS} for side in (set(ours), set(theirs)))) >= NEARLY:
        return "a negation in one of them"
    return None


_NEGATORS = frozenset({"not", "never", "cannot", "without", "nor", "can", "don", "t", "doesn", "isn", "won", "didn", "aren", "wasn", "do", "does", "did"})


def _numbers(text: str) -> list[str]:
    """Every number of the text, without separators; number words up to twelve count where no digits stand."""
    found = [n.replace(",", "").rstrip(".") for n in _NUMBER.findall(text)]
    found = [n.rstrip("0").rstrip(".") if "." in n else n for n in found]
    return found or [_NUMBER_WORDS[w] for w in words(text) if w in _NUMBER_WORDS]


def _overlap(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other) if one or other else 1.0
