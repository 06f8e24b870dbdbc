"""Intervals and tests against scipy and independent implementations; which of them cover is in test_coverage_of_intervals."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize, stats

from tuner.errors import Refusal
from tuner.evaluate.intervals import Difference, Estimate, difference, estimate, mcnemar_mid_p, wilson
from tuner.evaluate.metrics import METRICS
from tuner.evaluate.multiplicity import bh, holm
from tuner.evaluate.shares import independent_shares, tango

MEAN = METRICS["token_f1"].combine


def as_parts(scores: np.ndarray) -> np.ndarray:
    return np.column_stack([scores, np.ones(len(scores))]).astype(float)


def paired(ours: np.ndarray, theirs: np.ndarray, binary: bool = False, seed: int = 0, higher_is_better: bool = True, **more: object) -> Difference:
    return difference(
        as_parts(ours), as_parts(theirs), MEAN, binary=binary, higher_is_better=higher_is_better, baseline="b", resamples=10_000, seed=seed, **more
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (137, 140), (1, 1)])
def test_wilson_equals_scipy(successes: int, n: int) -> None:
    theirs = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 1), (12, 12), (30, 10), (0, 9), (700, 640)])
def test_mcnemar_mid_p_equals_its_definition(gained: int, lost: int) -> None:
    n, k = gained + lost, min(gained, lost)
    naive = 1.0 if n == 0 else min(1.0, 2 * (stats.binom.cdf(k, n, 0.5) - 0.5 * stats.binom.pmf(k, n, 0.5)))
    assert mcnemar_mid_p(gained, lost) == pytest.approx(naive)


def inverted(score: Callable[[float], float], value: float) -> tuple[float, float]:
    """Where the score statistic is ±z, by brentq: the definition of a score interval."""
    z = stats.norm.ppf(0.975)
    return optimize.brentq(lambda d: score(d) - z, -1 + 1e-9, value), optimize.brentq(lambda d: score(d) + z, value, 1 - 1e-9)


@pytest.mark.parametrize(("gained", "lost", "n"), [(1, 7, 21), (9, 2, 50), (0, 3, 40), (0, 0, 30), (25, 24, 200), (50, 0, 60)])
def test_tango_inverts_the_score_test_at_the_likeliest_table(gained: int, lost: int, n: int) -> None:
    """The restricted likelihood is maximised numerically here, where the code has the closed root."""

    def score(d: float) -> float:
        def unlikely(only_lost: float) -> float:
            only_gained, same = only_lost + d, 1 - 2 * only_lost - d
            return -sum(k * math.log(max(p, 1e-300)) for k, p in ((gained, only_gained), (lost, only_lost), (n - gained - lost, same)) if k)

        found = optimize.minimize_scalar(unlikely, bounds=(max(0.0, -d), (1 - d) / 2), method="bounded", options={"xatol": 1e-13})
        return float((gained - lost - n * d) / math.sqrt(max(n * (2 * found.x + d * (1 - d)), 1e-12)))

    assert tango(gained, lost, n) == pytest.approx(inverted(score, (gained - lost) / n), abs=2e-4)


@pytest.mark.parametrize(("ours", "n_ours", "theirs", "n_theirs"), [(10, 50, 3, 60), (0, 40, 0, 40), (0, 30, 5, 90), (90, 100, 20, 25)])
def test_independent_shares_invert_the_score_test_at_the_likeliest_shares(ours: int, n_ours: int, theirs: int, n_theirs: int) -> None:
    def score(d: float) -> float:
        def unlikely(second: float) -> float:
            return -float(stats.binom.logpmf(ours, n_ours, second + d) + stats.binom.logpmf(theirs, n_theirs, second))

        second = optimize.minimize_scalar(unlikely, bounds=(max(0.0, -d), min(1.0, 1 - d)), method="bounded", options={"xatol": 1e-13}).x
        total, first = n_ours + n_theirs, second + d
        variance = (first * (1 - first) / n_ours + second * (1 - second) / n_theirs) * total / (total - 1)
        return float((ours / n_ours - theirs / n_theirs - d) / math.sqrt(max(variance, 1e-14)))

    assert independent_shares(ours, n_ours, theirs, n_theirs) == pytest.approx(inverted(score, ours / n_ours - theirs / n_theirs), abs=2e-4)


def test_a_long_skewless_mean_has_the_interval_of_scipys_bootstrap_and_t() -> None:
    scores = np.random.default_rng(0).normal(3.0, 1.0, size=400)
    ours = estimate(as_parts(scores), MEAN, False, 10_000, 0)
    bootstrapped = stats.bootstrap((scores,), np.mean, n_resamples=10_000, method="BCa", random_state=1).confidence_interval
    student = stats.t.interval(0.95, 399, scores.mean(), stats.sem(scores))
    assert (ours.low, ours.high) == pytest.approx((bootstrapped.low, bootstrapped.high), abs=0.01) and (ours.low, ours.high) == pytest.approx(student, abs=0.01)
    assert ours.value == pytest.approx(scores.mean()) and ours.n == 400


def test_the_bootstrap_t_of_a_skewed_mean_equals_the_naive_loop() -> None:
    scores = np.random.default_rng(3).gamma(0.5, size=60)
    rng, ts = np.random.default_rng(8), []
    for _ in range(20_000):
        drawn = rng.choice(scores, 60)
        ts.append((drawn.mean() - scores.mean()) / drawn.std())
    low, high = np.percentile(ts, [2.5, 97.5])
    ours = estimate(as_parts(scores), MEAN, False, 10_000, 0)
    assert (ours.low, ours.high) == pytest.approx((scores.mean() - high * scores.std(), scores.mean() - low * scores.std()), rel=0.04)


def test_anyone_can_compute_the_bootstrap_t_again_from_its_seed() -> None:
    """A ratio of sums, in the plainest words: leave one out, draw with the seed named, studentise."""
    rng = np.random.default_rng(6)
    tokens = rng.integers(3, 40, 70)
    nats, seed, resamples = tokens * rng.gamma(1.0, size=70), 12, 2000
    ours = estimate(np.column_stack([nats, tokens]), METRICS["loss"].combine, False, resamples, seed)
    value = nats.sum() / tokens.sum()
    pseudo = np.array([70 * value - 69 * (nats.sum() - nats[i]) / (tokens.sum() - tokens[i]) for i in range(70)])
    drawn = pseudo[np.random.default_rng([seed, 0]).integers(0, 70, size=(resamples, 70))]
    low, high = np.percentile((drawn.mean(axis=1) - pseudo.mean()) / drawn.std(axis=1), [2.5, 97.5])
    assert (ours.low, ours.high) == pytest.approx((value - high * pseudo.std(), value - low * pseudo.std()), rel=1e-4)


def with_two_added(gaps: np.ndarray) -> tuple[float, float]:
    size = np.sqrt((gaps[gaps != 0] ** 2).mean())
    held = np.append(gaps, [size, -size])
    low, high = stats.t.interval(0.95, len(gaps) + 1, held.mean(), held.std() / np.sqrt(len(gaps) + 2))
    return float(low), float(high)


@pytest.mark.parametrize("same", [90, 45])
def test_where_at_most_half_of_the_items_move_a_difference_is_scipys_t_interval_with_one_gained_and_one_lost_item_added(same: int) -> None:
    rng = np.random.default_rng(1)
    theirs = rng.random(100)
    ours = np.where(np.arange(100) < max(same, 50), theirs, rng.random(100))
    found = paired(ours, theirs)
    assert (found.low, found.high) == pytest.approx(with_two_added(ours - theirs), abs=1e-9)
    assert "one gained and one lost item added" in found.method


def test_where_all_items_move_a_difference_is_scipys_t_interval_and_in_between_it_goes_over() -> None:
    rng = np.random.default_rng(1)
    theirs = rng.random(100)
    moved = rng.random(100)
    found = paired(moved, theirs)
    student = stats.ttest_rel(moved, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((student.low, student.high), abs=1e-9) and found.method == "paired jackknife t interval, 95 %"
    mostly = np.where(np.arange(100) < 20, theirs, moved)
    plain, added = stats.ttest_rel(mostly, theirs).confidence_interval(0.95), with_two_added(mostly - theirs)
    between = paired(mostly, theirs)
    assert (between.low, between.high) == pytest.approx([0.36 * p + 0.64 * a for p, a in zip(plain, added, strict=True)], abs=1e-9)
    assert "64.0% of the way" in between.method


@pytest.mark.parametrize(("noise", "low", "high"), [(1.0, -183.2, -180.8), (0.0, -255.0, -109.0)])
def test_a_shift_of_all_items_is_as_sure_as_their_spread_says(noise: float, low: float, high: float) -> None:
    """Six questions that cost 182 tokens less each; where they do exactly, as sure as six that agree can be."""
    theirs = np.array([252.0, 250, 255, 248, 253, 255])
    ours = theirs - 182 + noise * np.array([1.0, -1, 1, -1, 1, -1])
    found = paired(ours, theirs, bounds=(0.0, math.inf), higher_is_better=False)
    assert low <= found.low < -182 < found.high <= high and (found.low + found.high) / 2 == pytest.approx(-182)
    assert noise or found.method.startswith("all 6 agree")


def test_the_interval_of_two_contenders_is_close_to_the_bootstraps() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.random(90), rng.random(90)
    found, gaps = paired(ours, theirs), ours - theirs
    bootstrapped = stats.bootstrap((gaps,), np.mean, n_resamples=10_000, method="percentile", random_state=2).confidence_interval
    assert (found.low, found.high) == pytest.approx((bootstrapped.low, bootstrapped.high), abs=0.01)


def test_approximate_randomisation_equals_scipys_permutation_test() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.random(90), rng.random(90) - 0.06
    permuted = stats.permutation_test((ours, theirs), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=9_999, random_state=3)
    assert paired(ours, theirs).p == pytest.approx(permuted.pvalue, abs=0.02)


def test_tied_items_do_not_change_the_p_of_the_others() -> None:
    rng = np.random.default_rng(5)
    ours, theirs, same = rng.random(40), rng.random(40) - 0.1, rng.random(60)
    assert paired(np.append(ours, same), np.append(theirs, same)).p == pytest.approx(paired(ours, theirs).p, abs=0.01)


def test_resampling_is_the_same_for_the_same_seed_and_not_for_another() -> None:
    parts = as_parts(np.random.default_rng(2).random(40))
    first, again, other = (estimate(parts, MEAN, False, 1000, seed) for seed in (5, 5, 6))
    assert first == again and first.low != other.low and "seed 5" in first.method


def test_lower_is_better_turns_the_verdict_round() -> None:
    low, high = np.full(50, 0.2), np.full(50, 0.9) + np.random.default_rng(0).normal(0, 0.01, 50)
    assert (paired(low, high).verdict, paired(low, high, higher_is_better=False).verdict) == ("worse", "better")


@pytest.mark.parametrize(("n", "verdict"), [(1, "no difference seen"), (4, "no difference seen"), (6, "better")])
def test_a_few_items_all_gained_are_not_enough_and_leave_a_width(n: int, verdict: str) -> None:
    found = paired(np.ones(n), np.zeros(n), binary=True)
    assert found.p == pytest.approx(0.5**n) and found.verdict == verdict and found.low < 0.999 < found.high <= 1.0


@pytest.mark.parametrize(
    ("scores", "bounds"), [(np.ones(40), (0.0, 1.0)), (np.zeros(40), (0.0, 1.0)), (np.full(40, 0.3), (0.0, 1.0)), (np.full(40, 2.5), None)]
)
def test_items_that_all_agree_leave_wilsons_doubt(scores: np.ndarray, bounds: tuple[float, float] | None) -> None:
    found = estimate(as_parts(scores), MEAN, False, 1000, 0, bounds=bounds)
    doubt = stats.binomtest(0, 40).proportion_ci(method="wilson").high
    reach = 2.5 * 2 if bounds is None else 1.0
    assert found.high - found.low == pytest.approx(doubt * reach) and found.low <= found.value <= found.high


@pytest.mark.parametrize("binary", [True, False])
def test_two_contenders_that_never_differ_leave_a_width_and_p_of_one(binary: bool) -> None:
    same = (np.random.default_rng(0).random(60) < 0.4).astype(float)
    found = paired(same, same, binary=binary)
    assert found.low < 0 < found.high and found.p == 1.0 and found.verdict == "no difference seen"


def test_one_item_has_an_interval() -> None:
    for found in (estimate(as_parts(np.array([0.4])), MEAN, False, 1000, 0), paired(np.array([0.4]), np.array([0.1]))):
        assert math.isfinite(found.low) and math.isfinite(found.high) and found.low < found.value < found.high


def test_no_item_is_refused() -> None:
    with pytest.raises(Refusal, match="0 items"):
        estimate(np.zeros((0, 2)), MEAN, False, 1000, 0)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.0, math.inf)])
@pytest.mark.parametrize("score", [0.0, 0.2, 1.0])
def test_one_item_stays_inside_what_the_metric_can_be(score: float, bounds: tuple[float, float]) -> None:
    alone = estimate(as_parts(np.array([score])), MEAN, False, 1000, 0, bounds=bounds)
    assert bounds[0] <= alone.low <= score <= alone.high <= bounds[1] and alone.low < alone.high
    gap = paired(np.array([score]), np.array([0.5]), bounds=bounds)
    assert bounds[0] - bounds[1] <= gap.low < gap.high <= bounds[1] - bounds[0]


def test_an_interval_stays_inside_what_the_metric_can_be() -> None:
    scores = np.append(np.ones(19), 0.2)
    bounded, free = (estimate(as_parts(scores), MEAN, False, 1000, 0, bounds=b) for b in ((0.0, 1.0), None))
    assert bounded.high <= 1.0 and bounded.low == free.low


def test_items_of_one_source_count_as_one() -> None:
    """Forty sources of five equal items are forty items: twice as wide or more than two hundred."""
    by_source = np.random.default_rng(0).random(40)
    items, groups = np.repeat(by_source, 5), np.repeat(np.arange(40), 5).tolist()
    grouped, alone = estimate(as_parts(items), MEAN, False, 5000, 0, groups=groups), estimate(as_parts(by_source), MEAN, False, 5000, 0)
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high), abs=1e-9)
    assert grouped.n == 200 and "40 groups" in grouped.method
    other = np.clip(by_source + np.random.default_rng(1).normal(0.05, 0.1, 40), 0, 1)
    of_groups, of_sources = paired(np.repeat(other, 5), items, groups=groups), paired(other, by_source)
    assert (of_groups.low, of_groups.high, of_groups.p) == pytest.approx((of_sources.low, of_sources.high, of_sources.p), abs=1e-9)


def test_a_method_names_what_is_needed_to_compute_it_again() -> None:
    found: Estimate = estimate(as_parts(np.random.default_rng(0).random(30)), MEAN, False, 2000, 9)
    assert "bootstrap-t" in found.method and "2000 resamples" in found.method and "seed 9" in found.method
    assert "seed 4" in paired(np.random.default_rng(0).random(30), np.random.default_rng(1).random(30), seed=4).test


@pytest.mark.parametrize("ps", [[0.01, 0.04, 0.03, 0.005], [0.5], [0.2, 0.2, 0.9, 1e-6, 0.049], []])
def test_corrections_equal_their_definitions(ps: list[float]) -> None:
    """Holm: largest of (m - j) p_(j) over those as small; Benjamini and Hochberg: scipy."""
    ranked = sorted(ps)
    naive = [min(1.0, max((len(ps) - j) * q for j, q in enumerate(ranked) if q <= p)) for p in ps]
    assert holm(ps) == pytest.approx(naive)
    assert bh(ps) == pytest.approx(stats.false_discovery_control(ps).tolist() if ps else [])
