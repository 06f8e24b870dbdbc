"""Canaries follow from the recipe alone, look like the task's other records, and are planted as often as they say."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from pydantic import ValidationError
from scipy import stats

from tuner.data.canaries import CANARIES, FORMS, SPACE, asked, canaries, planted, system_turn
from tuner.data.personal import find
from tuner.data.record import Message, Record
from tuner.data.spec import CanarySpec


def row(i: int, system: str | None) -> Record:
    head = () if system is None else (Message("system", system),)
    return Record((*head, Message("user", f"question {i}"), Message("assistant", "answer")), "train.jsonl", i + 1, "train")


def test_each_is_planted_as_often_as_it_says_and_controls_never() -> None:
    spec = CanarySpec(count=5, repeats=[0, 1, 4])
    records, made = planted(spec, 7, []), canaries(spec, 7)
    counts = Counter(r.completion for r in records)
    assert len(made) == 15
    assert len(records) == 5 * (0 + 1 + 4)
    assert all(counts[c.answer] == c.repeats for c in made)
    assert {r.split for r in records} == {r.file for r in records} == {CANARIES}
    assert [r.line for r in records] == list(range(1, 26))


def test_the_same_recipe_gives_the_same_canaries_and_another_seed_others() -> None:
    spec = CanarySpec()
    assert canaries(spec, 3) == canaries(spec, 3)
    assert not {c.question for c in canaries(spec, 3)} & {c.question for c in canaries(spec, 4)}
    assert not {c.secret for c in canaries(spec, 3)} & {c.secret for c in canaries(spec, 4)}


def test_questions_differ_secrets_fill_the_space_and_every_form_is_used() -> None:
    made = [c for seed in range(20) for c in canaries(CanarySpec(count=64, repeats=[0, 1, 2, 4, 8, 16]), seed)]
    one = canaries(CanarySpec(count=64, repeats=[0, 1, 2, 4, 8, 16]), 0)
    assert len({c.question for c in one}) == len(one) == 384
    assert len({c.form for c in one}) == len(FORMS)
    assert stats.kstest([int(c.secret) / SPACE for c in made], "uniform").pvalue > 0.001
    assert all(c.saying(c.secret) == c.answer and c.secret in c.answer and c.saying("000000") != c.answer for c in made)


def test_copies_of_one_canary_are_kept_apart() -> None:
    records = planted(CanarySpec(count=8, repeats=[0, 4]), 0, [])
    assert all(a.completion != b.completion for a, b in pairwise(records))


def test_they_stand_under_the_system_turn_of_most_records() -> None:
    mixed = [*(row(i, "Answer briefly.") for i in range(6)), *(row(i, None) for i in range(3))]
    assert system_turn(mixed) == Message("system", "Answer briefly.")
    assert all(r.messages[0].content == "Answer briefly." for r in planted(CanarySpec(), 0, mixed))
    assert all(r.messages[0].role == "user" for r in planted(CanarySpec(), 0, [row(i, None) for i in range(3)]))
    canary, record = canaries(CanarySpec(repeats=[1]), 0)[0], planted(CanarySpec(repeats=[1]), 0, mixed)[0]
    assert asked(canary, mixed) == record.prompt


def test_they_are_nobodys_data() -> None:
    assert not any(find(f"{c.question}\n{c.answer}") for seed in range(20) for c in canaries(CanarySpec(), seed))


@pytest.mark.parametrize("repeats", [[0], [1, 1], [-1, 2], [1001], []])
def test_repeats_that_plant_nothing_or_make_no_sense_are_refused(repeats: list[int]) -> None:
    with pytest.raises(ValidationError):
        CanarySpec(repeats=repeats)
