"""The reference attack's numbers equal those of scikit-learn, and its intervals cover what they claim."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve  # type: ignore[import-untyped]

from tuner.evaluate.membership import auc, gains, tpr_at_fpr

Numbers = NDArray[np.float64]


def groups(seed: int, m: int, n: int, shift: float) -> tuple[Numbers, Numbers]:
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1, m), rng.normal(0, 1, n)


def truth(m: int, n: int) -> Numbers:
    return np.concatenate([np.ones(m), np.zeros(n)])


@pytest.mark.parametrize("shift", [0.0, 0.7, 2.0, -1.0])
@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_auc_equals_scikit_learn_with_and_without_ties(shift: float, decimals: int) -> None:
    x, y = (np.round(g, decimals) for g in groups(3, 60, 45, shift))
    assert auc(x, y).value == pytest.approx(roc_auc_score(truth(60, 45), np.r_[x, y]))
    assert auc(x, y).value == pytest.approx(stats.mannwhitneyu(x, y).statistic / (60 * 45))


def naive_delong_variance(x: Numbers, y: Numbers) -> float:
    """DeLong, DeLong and Clarke-Pearson 1988, by the double loop of their definition."""
    wins = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in y] for a in x])
    v10, v01, theta = wins.mean(axis=1), wins.mean(axis=0), wins.mean()
    return float(((v10 - theta) ** 2).sum() / (len(x) - 1) / len(x) + ((v01 - theta) ** 2).sum() / (len(y) - 1) / len(y))


@pytest.mark.parametrize("shift", [0.0, 1.0, -1.5])
def test_the_interval_is_delongs_on_the_logit_scale(shift: float) -> None:
    x, y = (np.round(g, 1) for g in groups(5, 30, 40, shift))
    found = auc(x, y)
    half = 1.959963984540054 * np.sqrt(naive_delong_variance(x, y)) / (found.value * (1 - found.value))
    middle = np.log(found.value / (1 - found.value))
    assert (found.low, found.high) == pytest.approx((1 / (1 + np.exp(half - middle)), 1 / (1 + np.exp(-half - middle))))


@pytest.mark.parametrize("true_auc", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("size", [50, 100, 300])
def test_auc_intervals_cover_93_to_97_percent_of_simulated_suites(true_auc: float, size: int) -> None:
    rng = np.random.default_rng(int(1000 * true_auc) + size)
    shift = np.sqrt(2) * stats.norm.ppf(true_auc)
    covered = 0
    for _ in range(2000):
        found = auc(rng.normal(shift, 1, size), rng.normal(0, 1, size))
        covered += found.low <= true_auc <= found.high
    assert 0.93 <= covered / 2000 <= 0.975


def test_groups_that_do_not_overlap_still_have_an_interval() -> None:
    apart = auc(np.arange(20.0, 40), np.arange(20.0))
    assert (apart.value, apart.high) == (1.0, 1.0)
    assert 0.8 < apart.low < 0.95
    mirrored = auc(np.arange(20.0), np.arange(20.0, 40))
    assert (mirrored.low, mirrored.high) == pytest.approx((0.0, 1 - apart.low))
    same = auc(np.ones(30), np.ones(30))
    assert same.value == 0.5
    assert same.low < 0.4 < 0.6 < same.high


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_true_positives_equal_those_of_scikit_learns_curve(decimals: int) -> None:
    x, y = (np.round(g, decimals) for g in groups(7, 350, 420, 1.2))
    fpr, tpr, _ = roc_curve(truth(350, 420), np.r_[x, y], drop_intermediate=False)
    found = tpr_at_fpr(x, y, 1000, 0)
    assert found.value == pytest.approx(tpr[fpr <= 0.01].max())
    assert found.low <= found.value <= found.high


def test_true_positive_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    real = stats.norm.sf(stats.norm.isf(0.01) - 1.5)
    covered = 0
    for seed in range(200):
        found = tpr_at_fpr(rng.normal(1.5, 1, 400), rng.normal(0, 1, 400), 200, seed)
        covered += found.low <= real <= found.high
    assert covered / 200 >= 0.92


def test_gains_are_nats_a_token_and_shares_of_the_base() -> None:
    a_token, share = gains([10.0, 4.0], [5.0, 6.0], [5, 2])
    assert a_token.tolist() == [1.0, -1.0]
    assert share.tolist() == [0.5, -0.5]
