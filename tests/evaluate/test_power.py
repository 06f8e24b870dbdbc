"""Power: what a suite could have seen, by formula and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tuner.errors import Refusal
from tuner.evaluate.intervals import mcnemar_mid_p
from tuner.evaluate.metrics import METRICS
from tuner.evaluate.power import items_needed, smallest_difference

MEAN = METRICS["exact_match"].combine


def parted(scores: np.ndarray) -> np.ndarray:
    return np.column_stack([scores, np.ones(len(scores))]).astype(float)


def pair(n: int, gained: int, lost: int) -> tuple[np.ndarray, np.ndarray]:
    ours, theirs = np.ones(n), np.ones(n)
    theirs[:gained], ours[gained : gained + lost] = 0, 0
    return parted(ours), parted(theirs)


@pytest.mark.parametrize(
    ("differ", "wanted", "items"), [(0.1, 0.05, 307), (0.1, 0.03, 865), (0.1, 0.02, 1955), (0.2, 0.05, 621), (0.2, 0.03, 1737), (0.2, 0.02, 3917)]
)
def test_items_needed_are_those_of_the_published_formula(differ: float, wanted: float, items: int) -> None:
    ours, theirs = pair(100_000, round(100_000 * differ / 2), round(100_000 * differ / 2))
    assert items_needed(ours, theirs, MEAN, wanted, binary=True) == pytest.approx(items, rel=2e-3)


@pytest.mark.parametrize(("n", "gained", "lost"), [(100, 8, 6), (300, 20, 20), (1000, 60, 40)])
def test_a_difference_of_the_stated_size_is_seen_in_80_percent_of_suites(n: int, gained: int, lost: int) -> None:
    """Shares with the discordance of the suite at hand, McNemar's mid-p: 2,000 simulated suites, ± 4 points of formula and chance."""
    found = smallest_difference(*pair(n, gained, lost), MEAN, binary=True)
    delta, differ, rng = found["smallest_difference"], (gained + lost + 1) / (n + 2), np.random.default_rng(n)
    tables = rng.multinomial(n, [(differ + delta) / 2, (differ - delta) / 2, 1 - differ], size=2000)
    assert np.mean([mcnemar_mid_p(int(b), int(c)) < 0.05 for b, c, _ in tables]) == pytest.approx(0.8, abs=0.04)


def test_a_difference_of_means_of_the_stated_size_is_seen_in_80_percent_of_suites() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.beta(2, 2, 150)
    ours = np.clip(theirs + rng.normal(0, 0.2, 150), 0, 1)
    found = smallest_difference(parted(ours), parted(theirs), MEAN, binary=False)
    spread = float((ours - theirs).std(ddof=1))
    seen = [stats.ttest_1samp(rng.normal(found["smallest_difference"], spread, 150), 0).pvalue < 0.05 for _ in range(2000)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.03) and found["n"] == 150 and found["power"] == 0.8


def test_a_suite_without_any_difference_could_still_miss_one() -> None:
    """Forty items that all agree: at least eight of them must truly differ before 80 % of such suites say so."""
    found = smallest_difference(*pair(40, 0, 0), MEAN, binary=True)["smallest_difference"]
    assert 0.13 < found < 0.2
    chance = sum(stats.binom.pmf(k, 40, found) for k in range(41) if mcnemar_mid_p(k, 0) < 0.05)
    assert 0.6 < chance < 0.9


def test_four_times_the_items_see_half_the_difference() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(200), rng.random(200)
    small = smallest_difference(parted(ours), parted(theirs), MEAN, binary=False)["smallest_difference"]
    large = smallest_difference(parted(np.tile(ours, 4)), parted(np.tile(theirs, 4)), MEAN, binary=False)["smallest_difference"]
    assert large == pytest.approx(small / 2, rel=0.01)
    assert items_needed(parted(ours), parted(theirs), MEAN, small, binary=False) in (200, 201)


def test_a_wanted_difference_of_nothing_is_refused() -> None:
    with pytest.raises(Refusal, match="above 0"):
        items_needed(*pair(10, 1, 1), MEAN, 0.0, binary=True)
    assert math.isfinite(items_needed(*pair(10, 0, 0), MEAN, 0.1, binary=True))


def test_items_of_one_source_see_no_more_than_their_sources() -> None:
    """Twenty sources of ten equal answers: a difference of the stated size is called in 80 % of such suites, and not one of what 200 items would see."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(20), 10)
    ours, theirs = (np.repeat(rng.random(20) < p, 10).astype(float) for p in (0.6, 0.4))
    by_source = smallest_difference(parted(ours), parted(theirs), MEAN, binary=True, groups=groups.tolist())
    alone = smallest_difference(parted(ours), parted(theirs), MEAN, binary=True)
    gaps = (ours - theirs)[::10]
    assert by_source["smallest_difference"] == pytest.approx((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * gaps.std(ddof=1) / math.sqrt(20), rel=1e-6)
    assert by_source["n"] == 200 and "20 groups" in by_source["how"] and by_source["smallest_difference"] > 2.5 * alone["smallest_difference"]


def test_sources_that_all_agree_could_still_miss_one() -> None:
    same = parted(np.ones(40))
    assert smallest_difference(same, same, MEAN, binary=True, groups=[i // 4 for i in range(40)])["smallest_difference"] > 0.2
