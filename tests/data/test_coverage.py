"""Coverage against plain loops, Fisher's test and Wilson's interval against scipy, k-center against the textbook loop."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, fisher_exact

from tuner.data import coverage as module
from tuner.data.coverage import MIN_TRAIN, coverage, fisher_greater, redundancy, regions, wilson


def around(middle: int, n: int, seed: int, d: int = 16, spread: float = 0.15) -> np.ndarray:
    """Unit rows (n, d) about the axis `middle`."""
    rows = np.eye(d)[middle] + spread * np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


TRAIN = np.vstack([around(0, 80, 1), around(1, 80, 2)])


@pytest.mark.parametrize(("a", "n", "b", "m"), [(0, 10, 0, 10), (7, 50, 3, 40), (30, 500, 25, 500), (10, 10, 0, 5), (81, 100, 7, 3000), (0, 5, 4, 4)])
def test_fisher_equals_scipys(a: int, n: int, b: int, m: int) -> None:
    assert fisher_greater(a, n, b, m) == pytest.approx(fisher_exact([[a, n - a], [b, m - b]], alternative="greater").pvalue, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (3, 10), (5, 5), (70, 1000)])
def test_wilson_equals_scipys(k: int, n: int) -> None:
    interval = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_similarity_and_threshold_are_those_of_a_loop() -> None:
    production = np.vstack([around(0, 20, 3), around(5, 10, 4)])
    found = coverage(TRAIN, production)
    assert found is not None
    left_out = [np.sort(np.delete(TRAIN, i, axis=0) @ TRAIN[i])[-5:].mean() for i in range(len(TRAIN))]
    support = [np.sort(TRAIN @ row)[-5:].mean() for row in production]
    assert found.threshold == pytest.approx(np.quantile(left_out, 0.05), abs=1e-5)
    np.testing.assert_allclose(found.similarity, support, atol=1e-5)
    assert (found.reference_uncovered, found.reference_rows) == (int(np.sum(left_out < np.quantile(left_out, 0.05))), 160)


def test_new_traffic_is_uncovered_and_old_is_not() -> None:
    new = coverage(TRAIN, np.vstack([around(0, 60, 5), around(7, 40, 6)]), reference=np.vstack([around(0, 50, 7), around(1, 50, 8)]))
    assert new is not None and new.is_short and new.uncovered[60:].all() and new.uncovered[:60].mean() < 0.2
    old = coverage(TRAIN, np.vstack([around(0, 50, 9), around(1, 50, 10)]), reference=np.vstack([around(0, 50, 7), around(1, 50, 8)]))
    assert old is not None and not old.is_short and old.interval[0] < old.share < old.interval[1]


def test_copies_in_train_do_not_support_each_other() -> None:
    copied = np.repeat(TRAIN, 8, axis=0)
    once, often = coverage(TRAIN, TRAIN[:30]), coverage(copied, TRAIN[:30])
    assert once is not None and often is not None
    assert often.threshold == pytest.approx(once.threshold, abs=1e-5)
    np.testing.assert_allclose(often.similarity, once.similarity, atol=1e-5)


def test_a_drawn_threshold_is_near_that_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = coverage(TRAIN, TRAIN[:5])
    monkeypatch.setattr(module, "_THRESHOLD_ROWS", 120)
    drawn = coverage(TRAIN, TRAIN[:5])
    assert whole is not None and drawn is not None
    assert drawn.threshold == pytest.approx(whole.threshold, abs=0.05) and drawn.reference_rows == 120


def test_clusters_part_the_uncovered_rows_and_their_medoids_are_annotated_first() -> None:
    production = np.vstack([around(0, 30, 11), around(7, 12, 12, spread=0.02), around(8, 5, 13, spread=0.02), around(9, 1, 14)])
    found = coverage(TRAIN, production)
    assert found is not None
    of_new = [c for c in found.clusters if c.medoid >= 30]
    assert [len(c.rows) for c in of_new[:2]] == [12, 5] and set(of_new[0].rows.tolist()) == set(range(30, 42))
    assert all(c.rows[0] == c.medoid for c in found.clusters)
    assert sorted(found.annotate.tolist()) == np.flatnonzero(found.uncovered).tolist()
    assert found.annotate[: len(found.clusters)].tolist() == [c.medoid for c in found.clusters]
    nearness = production[of_new[0].rows] @ production[of_new[0].medoid]
    assert (np.diff(nearness[1:]) <= 1e-6).all()


def test_too_little_train_or_no_production_is_not_judged() -> None:
    assert coverage(TRAIN[: MIN_TRAIN - 1], TRAIN) is None
    assert coverage(np.repeat(TRAIN[: MIN_TRAIN - 1], 3, axis=0), TRAIN) is None
    assert coverage(TRAIN, TRAIN[:0]) is None


def test_everything_covered_leaves_no_clusters() -> None:
    found = coverage(TRAIN, TRAIN[:80].mean(axis=0, keepdims=True) / np.linalg.norm(TRAIN[:80].mean(axis=0)))
    assert found is not None and found.share == 1 and found.clusters == () and len(found.annotate) == 0 and not found.is_short


def test_a_region_that_production_does_not_ask_for_comes_first() -> None:
    train = np.vstack([around(0, 300, 15), around(1, 100, 16), around(2, 100, 17)])
    production = np.vstack([around(0, 4, 18), around(1, 98, 19), around(2, 98, 20)])
    found = regions(train, production)
    assert sum(r.in_train for r in found) == 500 and sum(r.in_production for r in found) == 200
    assert sorted(np.concatenate([r.rows for r in found]).tolist()) == list(range(500))
    assert (found[0].rows < 300).all() and found[0].interval[0] > 1 and found[0].interval[0] < found[0].ratio < found[0].interval[1]
    assert regions(train[:0], production) == [] and regions(train, production[:0]) == []


def test_redundant_rows_are_those_with_an_earlier_one_that_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 16)
    train = np.vstack([around(0, 60, 21, spread=0.07), around(3, 60, 22, spread=0.4)])
    found = redundancy(train)
    expected = [(i, int((train[:i] @ train[i]).argmax())) for i in range(1, 120) if (train[:i] @ train[i]).max() >= 0.95]
    assert list(zip(found.rows.tolist(), found.earlier.tolist(), strict=True)) == expected and 0 < len(expected) < 120
    assert found.share == pytest.approx(len(expected) / 120) and found.judged == 120


def test_a_drawn_redundancy_is_near_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    train = np.repeat(around(3, 300, 23, spread=1), 2, axis=0)
    monkeypatch.setattr(module, "_JUDGED_ROWS", 200)
    found = redundancy(train)
    assert found.judged == 200 and found.interval[0] < 0.5 < found.interval[1]
    assert (train[found.rows] * train[found.earlier]).sum(axis=1).min() > 0.94 and (found.earlier < found.rows).all()
