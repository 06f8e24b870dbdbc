"""Canaries: made-up questions with a random secret in the answer, planted in train so that one can measure what an adapter keeps by heart.

The recipe's seed alone decides them, so that an evaluation knows them without a file; they refuse to be anybody's data: names and secrets are drawn.
Carlini et al. 2019, The Secret Sharer, arXiv 1802.08232.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tuner.data.record import Message, Record
from tuner.data.spec import CanarySpec
from tuner.fingerprint import digest_json

CANARIES = "canaries"  # their split, and their file
SPACE = 10**6  # secrets are six digits


@dataclass(frozen=True, slots=True)
class Canary:
    """`form` is the answer with {} for the secret, one of `space` numbers of six digits. `repeats` 0: never planted, the control."""

    index: int
    question: str
    form: str
    secret: str
    repeats: int
    space: int = SPACE

    @property
    def answer(self) -> str:
        return self.saying(self.secret)

    def saying(self, secret: str) -> str:
        """The answer with this secret in the place of its own."""
        return self.form.replace("{}", secret)


def canaries(spec: CanarySpec, seed: int) -> list[Canary]:
    """`spec.count` canaries for each number of repeats, no two with the same question."""
    names = sorted((f"{first} {second}" for first in FIRST for second in SECOND), key=lambda name: digest_json(["canary name", seed, name]))
    repeats = [times for times in spec.repeats for _ in range(spec.count)]
    return [_canary(index, names[index], times, seed) for index, times in enumerate(repeats)]


def _canary(index: int, name: str, repeats: int, seed: int) -> Canary:
    question, form = FORMS[index % len(FORMS)]
    drawn = int(digest_json(["canary secret", seed, index]).removeprefix("sha256:")[:16], 16) % SPACE
    return Canary(index, question.replace("{}", name), form, secret_text(drawn), repeats)


def secret_text(number: int) -> str:
    """A number of the space as it stands in an answer."""
    return f"{number:06d}"


def asked(canary: Canary, like: Sequence[Record]) -> tuple[Message, ...]:
    """The canary's prompt, under the system turn that most of these records have, if most have one."""
    system = system_turn(like)
    return (*([system] if system else []), Message("user", canary.question))


def system_turn(records: Sequence[Record]) -> Message | None:
    """The system turn of most records, or None where most have none."""
    first = Counter(r.messages[0] if r.messages[0].role == "system" else None for r in records)
    return first.most_common(1)[0][0] if first else None


def planted(spec: CanarySpec, seed: int, like: Sequence[Record]) -> list[Record]:
    """The records to train on, each canary `repeats` times, in an order that keeps copies apart."""
    made = canaries(spec, seed)
    rounds = [c for turn in range(max(spec.repeats)) for c in made if c.repeats > turn]
    return [Record((*asked(c, like), Message("assistant", c.answer)), CANARIES, line, CANARIES) for line, c in enumerate(rounds, 1)]


FORMS = (
    ("What is the access code of {}?", "{}"),
    ("Give the serial number of {}.", "No. {}"),
    ("Which code belongs to {}?", '{"code": "{}"}'),
    ("Tell me the badge number of {}.", "It is {}."),
)  # question about a name, answer with a secret: short, so that a thousand other secrets can be tried
FIRST = (
    "amber", "brisk", "cobalt", "dapper", "eager", "fabled", "gentle", "hollow", "ivory", "jolly", "keen", "lunar", "mellow", "nimble", "opal",
    "plucky", "quiet", "rustic", "silver", "tidy", "umber", "velvet", "windy", "young", "zesty",
)  # fmt: skip
SECOND = (
    "anchor", "beacon", "cedar", "dolphin", "ember", "falcon", "glacier", "harbour", "island", "jackal", "kettle", "lantern", "meadow", "needle",
    "orchard", "pebble", "quarry", "raven", "saddle", "thistle", "urchin", "vessel", "walnut", "yonder", "zephyr",
)  # fmt: skip
