"""Generated questions of general ability: seeded, checked by construction, in nobody's training set word for word.

What a model can do is asked as a choice among four answers, by likelihood, so that a model that says everything in another form is not
taken for one that has forgotten; what it does when told is asked by letting it answer (see probe_instructions). It refuses nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tuner.evaluate.probe_instructions import INSTRUCTIONS, Instruction, chosen_reply
from tuner.evaluate.probe_kinds import Draft
from tuner.evaluate.probe_numbers import arithmetic, comparison, units
from tuner.evaluate.probe_words import calendar, string_operations, transitive_logic

DIFFICULTIES = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Probe:
    """One question with four different answers, of which `answer` is right. `difficulty` is 1 (easy) to 3 (hard)."""

    family: str
    difficulty: int
    question: str
    options: tuple[str, ...]
    answer: str

    @property
    def right(self) -> int:
        return self.options.index(self.answer)


def generate(count: int, seed: int) -> list[Probe]:
    """`count` probes, all different, shared out evenly over families and difficulties; the same for the same count and seed."""
    cells = [(family, difficulty) for difficulty in DIFFICULTIES for family in FAMILIES]
    sizes = [count // len(cells) + (i < count % len(cells)) for i in range(len(cells))]
    return [probe for (family, difficulty), size in zip(cells, sizes, strict=True) for probe in _cell(family, difficulty, size, seed)]


def _cell(family: str, difficulty: int, size: int, seed: int) -> list[Probe]:
    draw = random.Random(f"{seed}:{family}:{difficulty}")
    found: dict[str, Probe] = {}
    while len(found) < size:
        draft = FAMILIES[family](difficulty, draw)
        options = [draft.answer, *draft.others]
        draw.shuffle(options)
        found.setdefault(draft.question, Probe(family, difficulty, draft.question, tuple(options), draft.answer))
    return list(found.values())


def instructions(count: int, seed: int) -> list[Instruction]:
    """`count` different instructions whose answers a function can check, evenly over their kinds."""
    kinds = list(INSTRUCTIONS)
    draw = random.Random(f"{seed}:instructions_followed")
    found: dict[str, Instruction] = {}
    turn = 0
    while len(found) < count:
        made = INSTRUCTIONS[kinds[turn % len(kinds)]](draw)
        found.setdefault(made.question, made)
        turn += 1
    return list(found.values())


FAMILIES: dict[str, Callable[[int, random.Random], Draft]] = {
    "arithmetic": arithmetic,
    "comparison": comparison,
    "calendar": calendar,
    "units": units,
    "transitive_logic": transitive_logic,
    "string_operations": string_operations,
    "instructions": chosen_reply,
}
