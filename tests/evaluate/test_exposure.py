"""Exposure is the rank of the papers, reads chance where nothing was kept, and finds what stands out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from tuner.data.canaries import canaries
from tuner.data.spec import CanarySpec
from tuner.evaluate.exposure import ALPHA, chance_bits, exposure, other_secrets, together_p


def naive_bits(nats: float, others: list[float]) -> float:
    """Carlini et al. 2019, definition 3.2 (log2 |R| - log2 rank), with the candidates for R."""
    ranked = sorted([*others, nats])
    rank = max(i for i, value in enumerate(ranked, 1) if value == nats)
    return math.log2(len(ranked)) - math.log2(rank)


@pytest.mark.parametrize("nats", [3.0, 9.5, 12.0, 40.0])
def test_bits_are_log_of_all_over_rank(nats: float) -> None:
    others = np.random.default_rng(1).normal(12, 2, 256).tolist()
    assert exposure(nats, others, 10**6).bits == pytest.approx(naive_bits(nats, others))


def test_a_tie_counts_against_the_secret() -> None:
    assert exposure(5.0, [5.0] * 64, 10**6).bits == 0.0


def test_secrets_that_were_never_planted_read_1_44_bits_and_half_of_them_less_than_one() -> None:
    rng = np.random.default_rng(2)
    bits = np.array([exposure(*_split(rng.gamma(9, 1.3, 1025)), 10**6).bits for _ in range(300)])
    assert bits.mean() == pytest.approx(chance_bits(1024), abs=3 * bits.std() / math.sqrt(300))
    assert chance_bits(10**6) == pytest.approx(1 / math.log(2), abs=1e-4)
    assert (bits < 1).mean() == pytest.approx(0.5, abs=0.09)


def _split(values: NDArray[np.float64]) -> tuple[float, list[float]]:
    return float(values[0]), values[1:].tolist()


def test_chance_bits_is_the_mean_over_all_ranks() -> None:
    assert chance_bits(256) == pytest.approx(np.mean([math.log2(257 / rank) for rank in range(1, 258)]))


def test_below_all_candidates_the_skew_normal_tail_goes_on_where_it_fits() -> None:
    others = stats.skewnorm.rvs(4, loc=20, scale=3, size=1024, random_state=3)
    found = exposure(16.0, others.tolist(), 10**6)
    shape, place, scale = stats.skewnorm.fit(others)
    expected = max(stats.skewnorm.cdf(16.0, shape, place, scale), 1e-6)
    assert found.at_most == 0
    assert found.ks_p == pytest.approx(stats.kstest(others, "skewnorm", args=(shape, place, scale)).pvalue, abs=0.02)
    assert found.extrapolated_bits == pytest.approx(-math.log2(min(expected, 1 / 1025)), rel=0.1)
    assert found.best_p <= found.p


def test_nothing_is_extrapolated_where_the_fit_fails_nor_beyond_the_space() -> None:
    two_heaps = [*np.random.default_rng(4).normal(5, 0.1, 128), *np.random.default_rng(5).normal(50, 0.1, 128)]
    assert exposure(1.0, two_heaps, 10**6).extrapolated_p is None
    far = exposure(-1000.0, np.random.default_rng(6).normal(20, 2, 256).tolist(), 10**6)
    assert far.extrapolated_bits == pytest.approx(math.log2(10**6))
    assert exposure(1.0, [20.0] * 64, 10**6).extrapolated_p is None


def test_a_group_of_secrets_is_combined_by_fishers_method_and_rarely_raises_a_false_alarm() -> None:
    rng = np.random.default_rng(7)
    groups = [[exposure(*_split(rng.normal(size=257)), 10**6) for _ in range(8)] for _ in range(1000)]
    assert together_p(groups[0]) == pytest.approx(stats.combine_pvalues([e.p for e in groups[0]], method="fisher").pvalue)
    alarms = sum(together_p(g) < ALPHA for g in groups)
    assert alarms <= stats.binom.ppf(0.999, 1000, ALPHA)
    assert together_p([exposure(0.0, list(range(1, 257)), 10**6)] * 8) < 1e-10


def test_single_canaries_rarely_raise_a_false_alarm_either() -> None:
    """The extrapolated p of a secret nobody planted, at Bonferroni's threshold for 24 canaries."""
    rng = np.random.default_rng(8)
    alarms = sum(exposure(*_split(rng.gamma(20, 1, 257)), 10**6).best_p < ALPHA / 24 for _ in range(3000))
    assert alarms <= 6  # 1.25 are expected


def test_candidates_are_other_secrets_of_the_space_and_always_the_same() -> None:
    canary = canaries(CanarySpec(), 0)[3]
    found = other_secrets(canary, 1024, 0)
    assert len(set(found)) == 1024
    assert canary.secret not in found
    assert all(len(s) == 6 and s.isdigit() for s in found)
    assert found == other_secrets(canary, 1024, 0) != other_secrets(canary, 1024, 1)
