"""Intervals and paired tests: every value with its n and 95 % interval, every comparison on the same items.

It refuses to call a difference better than it is: a verdict is read off the interval, never off the point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
LEVEL = 0.95
_CHUNK = 500  # resamples held in memory at once


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float
    n: int
    low: float
    high: float
    method: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Difference:
    """Adapter minus baseline on the same items. `p` is two-sided; `better` follows the metric's direction."""

    value: float
    low: float
    high: float
    p: float
    n: int
    baseline: str
    method: str
    test: str
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927; Brown, Cai and DasGupta 2001, eq. 4)."""
    if n == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def estimate(parts: Numbers, combine: Callable[[Numbers], Numbers], binary: bool, resamples: int, seed: int) -> Estimate:
    """A suite's value with its interval: Wilson's for a share, the percentile bootstrap over items otherwise."""
    n = len(parts)
    value = float(combine(parts.sum(axis=0)))
    if binary:
        low, high = wilson(float(parts[:, 0].sum()), n)
        return Estimate(value, n, low, high, "Wilson score interval, 95 %")
    values = np.concatenate([combine(w @ parts) for w in _weights(n, resamples, seed)])
    low, high = _percentiles(values)
    return Estimate(value, n, low, high, f"percentile bootstrap over items, {resamples} resamples, seed {seed}, 95 %")


def difference(
    ours: Numbers, theirs: Numbers, combine: Callable[[Numbers], Numbers], *, binary: bool, higher_is_better: bool,
    baseline: str, resamples: int, seed: int,
) -> Difference:  # fmt: skip
    """Paired difference: items are resampled once for both (Koehn 2004), so what is hard for both cancels.

    p is McNemar's mid-p for 0/1 metrics (Fagerland, Lydersen and Laake 2013), else by approximate randomisation: each item's
    answers swapped at random (Noreen 1989).
    """
    n = len(ours)
    value = float(combine(ours.sum(axis=0)) - combine(theirs.sum(axis=0)))
    values = np.concatenate([combine(w @ ours) - combine(w @ theirs) for w in _weights(n, resamples, seed)])
    low, high = _percentiles(values)
    if binary:
        gained = int(((ours[:, 0] > 0) & (theirs[:, 0] <= 0)).sum())
        lost = int(((ours[:, 0] <= 0) & (theirs[:, 0] > 0)).sum())
        p, test = mcnemar_mid_p(gained, lost), f"McNemar mid-p, {gained} gained, {lost} lost"
    else:
        p, test = _randomisation_p(ours, theirs, combine, resamples, seed), f"approximate randomisation, {resamples} swaps"
    method = f"paired percentile bootstrap over items, {resamples} resamples, seed {seed}, 95 %"
    return Difference(value, low, high, p, n, baseline, method, test, _verdict(low, high, p, higher_is_better))


def _verdict(low: float, high: float, p: float, higher_is_better: bool) -> str:
    """Both must say so: with few items, all of them gained, the bootstrap's interval has no width and only the test knows better."""
    if (low > 0 or high < 0) and p < 1 - LEVEL:
        return "better" if (low > 0) == higher_is_better else "worse"
    return "no difference seen"


def mcnemar_mid_p(gained: int, lost: int) -> float:
    """Two-sided mid-p: twice the binomial tail of the smaller count, less half its own probability, at most 1."""
    total, fewer = gained + lost, min(gained, lost)
    if total == 0:
        return 1.0
    mass = [math.comb(total, i) * 0.5**total for i in range(fewer + 1)]
    return min(1.0, 2 * sum(mass) - mass[-1])


def _randomisation_p(ours: Numbers, theirs: Numbers, combine: Callable[[Numbers], Numbers], swaps: int, seed: int) -> float:
    observed = abs(float(combine(ours.sum(axis=0)) - combine(theirs.sum(axis=0))))
    rng = np.random.default_rng([seed, 1])
    gap = theirs - ours
    as_large = 0
    for start in range(0, swaps, _CHUNK):
        swapped = rng.integers(0, 2, size=(min(_CHUNK, swaps - start), len(ours))).astype(np.float64) @ gap
        found = combine(ours.sum(axis=0) + swapped) - combine(theirs.sum(axis=0) - swapped)
        as_large += int((np.abs(found) >= observed - 1e-12).sum())
    return (1 + as_large) / (1 + swaps)


def _weights(n: int, resamples: int, seed: int) -> list[Numbers]:
    """Multinomial counts, (resamples, n) in chunks: how often each item is drawn."""
    rng = np.random.default_rng([seed, 0])
    sizes = [min(_CHUNK, resamples - start) for start in range(0, resamples, _CHUNK)]
    return [rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64) for size in sizes]


def _percentiles(values: Numbers) -> tuple[float, float]:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)
