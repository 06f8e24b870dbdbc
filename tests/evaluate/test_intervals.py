"""Intervals and tests against scipy, and by simulation: they cover what they say, and do not cry wolf."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tuner.evaluate.intervals import difference, estimate, mcnemar_mid_p, wilson
from tuner.evaluate.metrics import METRICS


def as_parts(scores: np.ndarray) -> np.ndarray:
    return np.column_stack([scores, np.ones(len(scores))]).astype(float)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (137, 140), (1, 1)])
def test_wilson_equals_scipy(successes: int, n: int) -> None:
    theirs = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 1), (12, 12), (30, 10), (0, 9)])
def test_mcnemar_mid_p_equals_its_definition(gained: int, lost: int) -> None:
    n, k = gained + lost, min(gained, lost)
    naive = 1.0 if n == 0 else min(1.0, 2 * (stats.binom.cdf(k, n, 0.5) - 0.5 * stats.binom.pmf(k, n, 0.5)))
    assert mcnemar_mid_p(gained, lost) == pytest.approx(naive)


def test_the_bootstrap_interval_of_a_mean_equals_scipys() -> None:
    scores = np.random.default_rng(0).gamma(2.0, size=120)
    ours = estimate(as_parts(scores), METRICS["token_f1"].combine, False, 10_000, 0)
    theirs = stats.bootstrap((scores,), np.mean, n_resamples=10_000, method="percentile", random_state=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert ours.value == pytest.approx(scores.mean()) and ours.n == 120


def test_a_paired_difference_equals_scipys_bootstrap_of_the_differences() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.random(90), rng.random(90)
    mean = METRICS["token_f1"].combine
    found = difference(as_parts(ours), as_parts(theirs), mean, binary=False, higher_is_better=True, baseline="b", resamples=10_000, seed=0)
    wanted = stats.bootstrap((ours - theirs,), np.mean, n_resamples=10_000, method="percentile", random_state=2).confidence_interval
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.01)
    permuted = stats.permutation_test((ours, theirs), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=9_999, random_state=3)
    assert found.p == pytest.approx(permuted.pvalue, abs=0.03)


def test_resampling_is_the_same_for_the_same_seed_and_not_for_another() -> None:
    parts = as_parts(np.random.default_rng(2).random(40))
    first, again, other = (estimate(parts, METRICS["token_f1"].combine, False, 1000, seed) for seed in (5, 5, 6))
    assert first == again and first.low != other.low


def test_lower_is_better_turns_the_verdict_round() -> None:
    low, high = np.full(50, 0.2), np.full(50, 0.9) + np.random.default_rng(0).normal(0, 0.01, 50)
    mean = METRICS["token_f1"].combine
    worse = difference(as_parts(low), as_parts(high), mean, binary=False, higher_is_better=True, baseline="b", resamples=1000, seed=0)
    better = difference(as_parts(low), as_parts(high), mean, binary=False, higher_is_better=False, baseline="b", resamples=1000, seed=0)
    assert (worse.verdict, better.verdict) == ("worse", "better")


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_paired_interval_covers_the_truth_and_rarely_cries_wolf(share: float) -> None:
    """400 simulated suites of 150 items with no true difference: at most 8 % are called better or worse (nominal 5 %)."""
    rng = np.random.default_rng(11)
    called = 0
    for trial in range(400):
        shared = rng.random(150) < 0.6  # items on which both contenders agree by nature
        common = rng.random(150) < share
        ours = np.where(shared, common, rng.random(150) < share).astype(float)
        theirs = np.where(shared, common, rng.random(150) < share).astype(float)
        found = difference(
            as_parts(ours), as_parts(theirs), METRICS["exact_match"].combine, binary=True, higher_is_better=True, baseline="b", resamples=1000, seed=trial
        )
        called += found.verdict != "no difference seen"
    assert called / 400 <= 0.08


@pytest.mark.parametrize(("n", "verdict"), [(1, "no difference seen"), (4, "no difference seen"), (6, "better")])
def test_a_few_items_all_gained_are_not_enough(n: int, verdict: str) -> None:
    """The bootstrap's interval is [1, 1] whatever n; the mid-p is 2^-n."""
    found = difference(
        as_parts(np.ones(n)), as_parts(np.zeros(n)), METRICS["exact_match"].combine, binary=True, higher_is_better=True, baseline="b", resamples=1000, seed=0
    )
    assert (found.low, found.high) == (1.0, 1.0) and found.p == pytest.approx(0.5**n) and found.verdict == verdict
