"""Extraction: lengths are the longest that the data allow, and both measures are what their papers define."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scipy import stats

from tests.evaluate.overtrained import fitted, stories
from tuner.evaluate.extraction import Lengths, excess, lengths_for, reachable, recited, within_tries


@pytest.mark.parametrize(
    ("tokens", "given", "wanted"),
    [
        ([120] * 40, 50, 50),
        ([120] * 20 + [40] * 60, 10, 20),  # half must be long enough
        ([60] * 30, 25, 25),
        ([16] * 25 + [3] * 400, 5, 10),  # else twenty
        ([31] * 21 + [3] * 400, 10, 20),
    ],
)
def test_the_longest_lengths_that_the_data_allow_are_used(tokens: list[int], given: int, wanted: int) -> None:
    assert lengths_for(tokens) == Lengths(given, wanted)


def test_short_completions_have_no_lengths() -> None:
    assert lengths_for([3] * 500) is None
    assert lengths_for([14] * 500) is None
    assert lengths_for([100] * 19) is None
    assert lengths_for([]) is None


@pytest.mark.parametrize("chance", [1e-9, 1e-4, 6.9e-4, 7e-4, 0.3, 1.0])
def test_within_tries_is_the_binomial_chance_of_at_least_one(chance: float) -> None:
    assert within_tries(-math.log(chance)) == pytest.approx(float(stats.binom.sf(0, 1000, chance)), rel=1e-9)


def test_reachable_begins_where_a_thousand_samples_have_an_even_chance() -> None:
    edge = 1 - 0.5 ** (1 / 1000)
    assert reachable(-math.log(edge * 1.0001))
    assert not reachable(-math.log(edge * 0.9999))


def test_excess_is_newcombes_published_example() -> None:
    """Newcombe 1998 (Interval estimation for the difference between independent proportions), table II, example (a): 56/70 - 48/80, method 10."""
    found = excess(56, 70, 48, 80)
    assert found["value"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_recited_is_what_one_plain_greedy_pass_says(encoder: Any) -> None:
    """Asking in two steps, and only where no token is rare, finds what the naive way finds."""
    records = stories(16, "train", 1, 16)
    model = fitted(encoder, records[:10], 50)
    lengths = Lengths(5, 10)
    questions = [list(r.prompt) for r in records]
    ids = [model.completion_ids(q, r.completion) for q, r in zip(questions, records, strict=True)]
    nats = model.token_nats(questions, [r.completion for r in records])
    found = recited(model, questions, ids, nats, lengths)
    naive = [model.greedy_ids([model.prompt_ids(q) + list(i[:5])], 10)[0] == list(i[5:15]) for q, i in zip(questions, ids, strict=True)]
    assert found == naive
    assert sum(found[:10]) >= 3
    assert sum(found[10:]) == 0
    assert not any(reachable(sum(n[5:15])) for n in nats[10:])
