"""Slices: worst first, corrected for how many were looked at, nothing left out in silence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tuner.data.record import Message
from tuner.errors import Refusal
from tuner.evaluate.intervals import difference
from tuner.evaluate.metrics import METRICS
from tuner.evaluate.slices import slice_fields, slices
from tuner.evaluate.suites import Item

EXACT, LOSS = METRICS["exact_match"], METRICS["loss"]


def item(question: str, *references: str, **traits: str) -> Item:
    return Item((Message("system", "a long system prompt that does not count"), Message("user", question)), references, "f:1", traits)


def parted(scores: np.ndarray) -> np.ndarray:
    return np.column_stack([scores, np.ones(len(scores))]).astype(float)


def sliced(items: list[Item], ours: np.ndarray, theirs: np.ndarray, metric: object = EXACT, asked: list[str] | None = None, smallest: int = 10) -> dict:
    return slices(items, ours, theirs, metric, suite="held_out", name="m", baseline="base few_shot", asked=asked, smallest=smallest, resamples=1000, seed=0)  # type: ignore[arg-type]


@pytest.fixture
def shops() -> list[Item]:
    """Three sources of 40 and one of 5; two labels."""
    return [item(f"q{i}", ("yes", "no")[i % 2], shop=("north", "south", "east")[i % 3] if i < 120 else "west") for i in range(125)]


def test_the_slice_that_lost_comes_first_with_its_own_paired_numbers(shops: list[Item]) -> None:
    south = np.array([i.traits["shop"] == "south" for i in shops])
    rng = np.random.default_rng(0)
    theirs = (rng.random(125) < 0.6).astype(float)
    ours = np.where(south, 0.0, np.maximum(theirs, rng.random(125) < 0.5))
    found = sliced(shops, parted(ours), parted(theirs), asked=["shop", "label"])
    first = found["rows"][0]
    alone = difference(
        parted(ours[south]), parted(theirs[south]), EXACT.combine, binary=True, higher_is_better=True, baseline="base few_shot", resamples=1000, seed=0
    )
    assert (first["field"], first["value"], first["n"], first["difference"]["verdict"]) == ("shop", "south", 40, "worse")
    assert {k: first["difference"][k] for k in ("value", "low", "high", "p")} == {k: getattr(alone, k) for k in ("value", "low", "high", "p")}
    assert first["adapter"]["value"] == 0 and first["adapter"]["high"] > 0 and first["baseline"]["value"] == pytest.approx(theirs[south].mean())
    values = [r["difference"]["value"] for r in found["rows"]]
    assert values == sorted(values)


def test_small_slices_are_counted_and_not_tabled(shops: list[Item]) -> None:
    found = sliced(shops, parted(np.ones(125)), parted(np.ones(125)), asked=["shop"])
    assert sorted(r["value"] for r in found["rows"]) == ["east", "north", "south"] and found["too_few"] == 1 and found["corrected"] == "Holm 1979 over 3 slices"


def test_where_lower_is_better_the_slice_that_rose_is_worst() -> None:
    items = [item(f"q{i}", f"a{i}", kind=("a", "b")[i % 2]) for i in range(60)]
    theirs = np.column_stack([np.full(60, 20.0), np.full(60, 10.0)])
    ours = theirs + np.column_stack([np.where(np.arange(60) % 2, 3.0, -3.0) + np.random.default_rng(0).normal(0, 0.1, 60), np.zeros(60)])
    assert [(r["value"], r["difference"]["verdict"]) for r in sliced(items, ours, theirs, LOSS, ["kind"])["rows"]] == [("b", "worse"), ("a", "better")]


def test_hundreds_of_looks_at_nothing_call_a_slice_in_at_most_one_suite_of_twenty() -> None:
    """200 suites of 20 slices without any true difference; uncorrected, more than a third of them would name one."""
    rng, called, uncorrected = np.random.default_rng(1), 0, 0
    items = [item(f"q{i}", f"a{i}", group=str(i % 20)) for i in range(400)]
    for _ in range(200):
        hard = rng.random(400)
        found = sliced(items, parted(rng.random(400) < hard), parted(rng.random(400) < hard), asked=["group"])
        assert len(found["rows"]) == 20
        called += any(r["difference"]["verdict"] != "no difference seen" for r in found["rows"])
        uncorrected += any(r["difference"]["p"] < 0.05 for r in found["rows"])
    assert called <= 20 and uncorrected >= 60


def test_thirds_by_length_are_named_and_hold_every_item_once() -> None:
    items = [item("x" * length, f"a{length}") for length in range(1, 91)]
    column = slice_fields(items, ["length"])["length"]
    assert {v: column.count(v) for v in column} == {"question 0-30 characters": 30, "question 31-60 characters": 30, "question 61-90 characters": 30}


def test_equal_lengths_stay_together() -> None:
    column = slice_fields([item("x" * (5 if i else 9), f"a{i}") for i in range(30)], ["length"])["length"]
    assert {v: column.count(v) for v in column} == {"question 0-5 characters": 29, "question 6-9 characters": 1}


def test_labels_are_answers_that_repeat_and_texts_are_not_sliced_by(shops: list[Item]) -> None:
    assert set(slice_fields(shops, None)) == {"label", "length", "shop"}
    assert "label" not in slice_fields([item(f"q{i}", f"answer {i}") for i in range(50)], None)
    assert "label" not in slice_fields([item(f"q{i}", "yes", "no") for i in range(50)], None)


def test_columns_of_one_value_or_of_many_are_only_taken_when_asked_for() -> None:
    items = [item(f"q{i}", f"a{i}", id=str(i), model="one", source=("s", "t")[i % 2]) for i in range(40)]
    assert "id" not in slice_fields(items, None) and "model" not in slice_fields(items, None) and "source" in slice_fields(items, None)
    assert set(slice_fields(items, ["model"])) == {"model"}


def test_an_item_without_the_column_is_in_no_slice() -> None:
    items = [item(f"q{i}", f"a{i}", **({"kind": "a"} if i < 15 else {})) for i in range(40)]
    found = sliced(items, parted(np.ones(40)), parted(np.zeros(40)), asked=["kind"])
    assert [(r["value"], r["n"]) for r in found["rows"]] == [("a", 15)]


def test_an_unknown_column_is_refused_with_those_there_are(shops: list[Item]) -> None:
    with pytest.raises(Refusal) as caught:
        slice_fields(shops, ["label", "shp"])
    problem = caught.value.problems[0]
    assert problem.field == "evaluate.slices.1" and "shop" in problem.accepted and problem.try_ == "write shop"


def test_items_of_one_source_are_drawn_together_in_a_slice_too() -> None:
    rng = np.random.default_rng(0)
    own, other = (np.repeat(rng.random(30) < p, 4).astype(float) for p in (0.7, 0.4))
    items = [replace(item(f"q{i}", f"a{i}", kind=("a", "b")[i // 4 % 2]), group=f"source {i // 4}") for i in range(120)]
    for row in sliced(items, parted(own), parted(other), asked=["kind"])["rows"]:
        chosen = np.array([i.traits["kind"] == row["value"] for i in items])
        groups = [i.group for i in items if i.traits["kind"] == row["value"]]
        alone = difference(parted(own[chosen]), parted(other[chosen]), EXACT.combine, binary=True, higher_is_better=True, baseline="base few_shot",
                           resamples=1000, seed=0, groups=groups)  # fmt: skip
        assert (row["difference"]["low"], row["difference"]["high"], row["difference"]["p"]) == (alone.low, alone.high, alone.p)
        assert all("15 groups" in row[which]["method"] for which in ("adapter", "baseline", "difference"))
