"""Optimiser steps from row lengths: every row once an epoch, the same steps whatever the ranks and cuts, near nothing wasted."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest

from tuner.plan.steps import Batching, Steps

LENGTHS = np.random.default_rng(0).integers(20, 400, 1000).tolist()


def steps_of(packed: bool = False, grouped: bool = False, micro: int = 2048, records: int | None = None, ranks: int = 1, **run: float) -> Steps:
    return Steps(LENGTHS, Batching(packed, grouped, micro, 4096, records, 42, ranks), **run)  # type: ignore[arg-type]


def test_every_row_is_in_exactly_one_step_of_every_epoch() -> None:
    swept = 0
    for packed, grouped, records, ranks in product((False, True), (False, True), (None, 7), (1, 2, 3)):
        steps = steps_of(packed, grouped, records=records, ranks=ranks, epochs=2.0)
        assert len(steps.starts) == 2
        for first, last in ((0, steps.starts[1]), (steps.starts[1], len(steps))):
            seen = Counter(row for n in range(first, last) for row in steps.step(n).rows)
            assert seen == Counter(range(1000))
        swept += 1
    assert swept == 24


def test_ranks_and_cuts_change_no_step() -> None:
    wanted = [sorted(steps_of().rows(n)) for n in range(len(steps_of()))]
    for ranks, micro in ((1, 512), (2, 2048), (4, 1024)):
        steps = steps_of(micro=micro, ranks=ranks)
        found = [sorted(steps.step(n).rows) for n in range(len(steps))]
        assert found == wanted


def test_every_rank_makes_equally_many_passes_within_the_bound() -> None:
    for packed, ranks in product((False, True), (1, 2, 4)):
        steps = steps_of(packed, ranks=ranks, micro=1500)
        for n in range(len(steps)):
            shares = steps.step(n).ranks
            assert len(shares) == ranks and len({len(s) for s in shares}) == 1
            for micro in (m for s in shares for m in s if m):
                widths = [LENGTHS[r] for r in micro]
                assert (sum(widths) if packed else len(widths) * max(widths)) <= 1500


def test_steps_are_as_full_as_tokens_per_step_allows() -> None:
    steps = steps_of()
    sizes = [sum(LENGTHS[r] for r in steps.rows(n)) for n in range(len(steps))]
    assert max(sizes) <= 4096 and sum(s < 4096 - 400 for s in sizes) <= 1
    assert {len(steps_of(records=8).rows(n)) for n in range(125)} == {8}


def test_best_fit_wastes_little() -> None:
    """Sequences needed against the least possible, total tokens over the bound: first-fit in order, the naive way, needs more."""
    needed = sum(len(steps_of(packed=True, micro=1024, records=100).step(n).ranks[0]) for n in range(10))
    naive = 0
    for n in range(10):
        room = 0
        for row in steps_of(records=100).rows(n):
            if LENGTHS[row] > room:
                naive, room = naive + 1, 1024
            room -= LENGTHS[row]
    least = sum(-(-sum(LENGTHS[r] for r in steps_of(records=100).rows(n)) // 1024) for n in range(10))
    assert least <= needed <= 1.03 * least < naive


def test_grouping_by_length_saves_padding() -> None:
    shuffled, grouped = steps_of(records=8).counts(), steps_of(records=8, grouped=True).counts()
    assert shuffled.tokens == grouped.tokens == sum(LENGTHS)
    assert grouped.padding < 0.05 < shuffled.padding


def test_ranks_get_even_work() -> None:
    steps = steps_of(packed=True, ranks=4)
    loads = [[sum(LENGTHS[r] for m in share for r in m) for share in steps.step(n).ranks] for n in range(len(steps) - 1)]
    assert np.mean([max(x) / np.mean(x) for x in loads]) < 1.05


@pytest.mark.parametrize(
    ("run", "count"), [({"epochs": 1.0}, 125), ({"epochs": 1.5}, 188), ({"epochs": 0.1}, 13), ({"max_steps": 300}, 300), ({"max_steps": 3, "epochs": 9.0}, 3)]
)
def test_fractions_of_epochs_and_limits_are_counted_in_steps(run: dict[str, float], count: int) -> None:
    steps = steps_of(records=8, **run)
    assert len(steps) == count
    assert steps.epochs_after(count) == pytest.approx(count / 125) and steps.ends_epoch(count)
    assert [n for n in range(1, count) if steps.ends_epoch(n)] == list(range(125, count, 125))
    assert steps.tokens_after(count) == sum(LENGTHS[r] for n in range(count) for r in steps.rows(n))


def test_epochs_differ_in_order_and_seeds_too() -> None:
    steps = steps_of(records=8, epochs=2.0)
    assert steps.rows(0) != steps.rows(125)
    other = Steps(LENGTHS, Batching(False, False, 2048, 4096, 8, 43))
    assert other.rows(1) != steps.rows(1)
    assert [steps_of(records=8, epochs=2.0).rows(n) for n in range(250)] == [steps.rows(n) for n in range(250)]


def test_a_row_longer_than_the_bound_goes_alone() -> None:
    for packed in (False, True):
        steps = Steps([5000, 10, 10], Batching(packed, False, 100, 64, None, 42, 2))
        assert sorted(r for n in range(len(steps)) for r in steps.step(n).rows) == [0, 1, 2]
        assert (0,) in [m for s in steps.step(0).ranks for m in s]
