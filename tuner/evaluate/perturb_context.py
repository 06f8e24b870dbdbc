"""What stands around a question: long irrelevant notes, another instruction frame, other names for the labels.

The notes are our own and hold no question, request, number or name of a business matter. The task's own words survive every rewording.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path

from tuner.evaluate.perturb_phrases import FUNCTION_WORDS
from tuner.evaluate.perturb_spans import occurrences

OOD = Path(__file__).parent / "data" / "ood"
PASSAGES = (1, 3, 7)  # of about 45 words each


@lru_cache(maxsize=8)
def listed(name: str) -> tuple[str, ...]:
    """The lines of a list in data/ood; `#` begins a note."""
    return tuple(line for line in (OOD / name).read_text(encoding="utf-8").splitlines() if line and not line.startswith("#"))


def distractor(text: str, rng: random.Random, severity: int) -> str:
    """Notes marked as unrelated, before or after the question: one, three or seven of them."""
    passages = rng.sample(listed("passages.txt"), PASSAGES[-1])
    first = rng.random() < 0.5
    notes = "(Unrelated notes)\n" + "\n".join(passages[: PASSAGES[severity - 1]]) + "\n(End of the unrelated notes)"
    return f"{notes}\n\n{text}" if first else f"{text}\n\n{notes}"


# --- the instruction -----------------------------------------------------------------------------------------------

_REWORDED: tuple[tuple[re.Pattern[str], str], ...] = tuple((re.compile(p, re.IGNORECASE), new) for p, new in (
    (r"\byour task is to (?=[a-z])", "what you have to do is "),
    (r"\byou must\b", "it is required that you"),
    (r"\banswer with (?=(?:that|one|the|a|an|only)\b)", "reply with "),
    (r"\brespond with (?=(?:that|one|the|a|an|only)\b)", "reply with "),
    (r"\breply with (?=(?:that|one|the|a|an|only)\b)", "answer with "),
    (r"\binto one of\b", "into exactly one of"),
    (r"\bone of the following\b", "one of these"),
    (r"\bwith that word alone\b", "with that word and nothing else"),
    (r"\bone or two sentences\b", "a sentence or two"),
    (r"\bdo not\b", "you should not"),
    (r"\bdon't\b", "you should not"),
    (r"\bread the\b", "look at the"),
    (r"\bfor example\b", "for instance"),
    (r"\bexactly what\b", "precisely what"),
    (r"\bsay exactly\b", "say precisely"),
    (r"\bcopied from the\b", "taken word for word from the"),
    (r"\buse only\b", "make use of only"),
))  # fmt: skip
_HEADINGS = ("Task", "Instructions", "What to do", "Assignment")
_POLITE = ("Please follow this carefully.", "Please keep to this.", "Please do exactly this.")
_ROLES = ("You are an assistant who follows instructions to the letter.", "You work as a careful assistant.", "Your role: a reliable assistant.")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\U000f0000-\U000ffffd])")


def reworded(text: str, rng: random.Random, severity: int) -> str:
    """The instruction, 1: under a heading, with a polite line; 2: in other words too, after a role line; 3: as a list of points in sections too."""
    heading, polite, role = rng.choice(_HEADINGS), rng.choice(_POLITE), rng.choice(_ROLES)
    if severity == 1:
        return f"# {heading}\n{text}\n\n{polite}"
    body = text
    for pattern, new in _REWORDED:
        match = pattern.search(body)
        if match is not None:
            written = new[:1].upper() + new[1:] if match[0][:1].isupper() else new
            body = body[: match.start()] + written + body[match.end() :]
    if severity == 2:
        return f"{role}\n\n# {heading}\n{body}\n\n{polite}"
    points = [body] if "\n" in body else _SENTENCE_END.split(body)
    return f"## Role\n{role}\n\n## {heading}\n" + "\n".join(f"- {p}" for p in points) + f"\n\n## Input\nThe user's message comes next.\n\n## Manner\n{polite}"


# --- the labels' names ---------------------------------------------------------------------------------------------

_SYLLABLES = ("zel", "dov", "mip", "tar", "gub", "nex", "lor", "kav", "pin", "rud", "fam", "wok", "bes", "jol", "hin", "vut")
_WORD_EDGE = re.compile(r"[\s_\-]+")


def label_map(labels: Sequence[str], severity: int, seed: int) -> dict[str, str]:
    """Label to new name, one to one. 1: the same words, otherwise written; 2: `option_a`, …; 3: words without a meaning.

    The same for every item: which new name a label gets depends on the seed alone.
    """
    names = sorted(set(labels))
    if severity == 1:
        spelled = ["about-" + "-".join(_WORD_EDGE.split(label.strip().lower())) for label in names]
        alike = len(set(spelled)) < len(spelled)  # `a b` beside `a_b`
        return {label: f"{new}-{_letters(i)}" if alike else new for i, (label, new) in enumerate(zip(names, spelled, strict=True))}
    pool = [f"option_{_letters(i)}" for i in range(len(names))] if severity == 2 else _made_up(len(names))
    random.Random(f"{seed}:labels:{severity}").shuffle(pool)
    return dict(zip(names, pool, strict=False))


def _made_up(least: int) -> list[str]:
    """At least so many words without a meaning, of as few syllables as that takes, two or more."""
    syllables = 2
    while len(_SYLLABLES) ** syllables < least:
        syllables += 1
    return ["".join(parts) for parts in product(_SYLLABLES, repeat=syllables)]


def _letters(number: int) -> str:
    """0 a, 25 z, 26 aa, …"""
    found = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        found = chr(97 + rest) + found
    return found


def in_prompt(system: str, labels: Sequence[str]) -> bool:
    """Whether every label stands in the instruction as a word of its own; one that is an ordinary word (yes, no) only once, or it may not be the label."""
    places = {label: len(_alone(system, label)) for label in labels}
    return bool(places) and all(count and (count == 1 or label.lower() not in FUNCTION_WORDS) for label, count in places.items())


def _alone(text: str, label: str) -> list[tuple[int, int]]:
    return [(a, b) for a, b in occurrences(text, label) if not text[a - 1 : a].isalnum() or a == 0 if not text[b : b + 1].isalnum()]


def relabelled(system: str, names: dict[str, str], severity: int) -> str:
    """The instruction with every label under its new name; names without a meaning are explained where they first stand: `option_a (freeze account)`."""
    spans: list[tuple[int, int, str]] = []
    for label in sorted(names, key=len, reverse=True):
        spans += [(a, b, label) for a, b in _alone(system, label) if not any(a < y and x < b for x, y, _ in spans)]
    pieces, at = [], 0
    explained: set[str] = set()
    for start, stop, label in sorted(spans):
        gloss = f" (= {' '.join(_WORD_EDGE.split(label))})" if severity > 1 and label not in explained else ""
        explained.add(label)
        pieces += [system[at:start], names[label] + gloss]
        at = stop
    return "".join([*pieces, system[at:]])
