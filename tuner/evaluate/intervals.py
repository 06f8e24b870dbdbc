"""Intervals and paired tests: every value with its n and 95 % interval, every comparison on the same items.

It refuses to call a difference better than it is: a verdict needs the interval and the test. No interval is without width. Which
method covers where is measured by tests/evaluate/test_coverage_of_intervals.py, whose table is what each choice below rests on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tuner.errors import refuse
from tuner.evaluate.jackknife import LEVEL, Combine, Groups, Numbers, bootstrap_t, by_group, flat, pseudo_values, steadied_t, unanimous
from tuner.evaluate.shares import mcnemar_mid_p, tango, wilson

__all__ = ["LEVEL", "Difference", "Estimate", "Groups", "Numbers", "difference", "estimate", "mcnemar_mid_p", "sources", "verdict_of", "wilson"]
_CHUNK = 500  # swaps held in memory at once
_SWAPPED_NUMBERS = 2_000_000_000  # multiplications a randomisation test may cost; long suites get fewer swaps, and say so


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


def estimate(
    parts: Numbers, combine: Combine, binary: bool, resamples: int, seed: int,
    *, groups: Groups | None = None, bounds: tuple[float, float] | None = None,
) -> Estimate:  # fmt: skip
    """A suite's value with its interval: Wilson's for a share, bootstrap-t over items otherwise.

    `groups` names the source of each item: items of one source are drawn together (Miller 2024, arXiv 2411.00640).
    `bounds` are the metric's least and largest value: the interval stays inside.

    Measured coverage over 2,000 suites (nominal 95 %): 93 to 97 % for shares, means, ratios and micro-F1 of 50 items on, and for all of 1,000;
    macro-F1 is on the wide side below that (98 % at 200 items, 99 % at 50). Too narrow where the few items that decide may all be missing:
    91 % for 50 scores of mean 0.05 that are half of the time exactly 0 or 1, and with 40 labels at an accuracy of 0.95, most of them seen once
    or twice, 79 % at 50 items and 92 % at 200. Shares by source: 98 % at 40 sources, 99.6 % at 10.
    """
    _check(parts)
    value, n = float(combine(parts.sum(axis=0))), len(parts)
    if binary and groups is None:
        low, high = wilson(float(parts[:, 0].sum()), n)
        return Estimate(value, n, low, high, "Wilson score interval, 95 %")
    units = by_group(parts, groups)
    pseudo = pseudo_values(units, combine)
    least, largest = (0.0, 1.0) if binary else bounds or (-np.inf, np.inf)
    if flat(pseudo):
        low, high, method = unanimous(value, len(units), (least, largest))
    else:
        low, high, method = bootstrap_t(value, pseudo, resamples, seed)
    return Estimate(value, n, max(low, least), min(high, largest), _named(method, groups, len(units)))


def difference(
    ours: Numbers, theirs: Numbers, combine: Combine, *, binary: bool, higher_is_better: bool, baseline: str, resamples: int, seed: int,
    groups: Groups | None = None, bounds: tuple[float, float] | None = None,
) -> Difference:  # fmt: skip
    """Paired difference on the same items: Tango's interval and McNemar's mid-p for 0/1 metrics.

    Otherwise Student's t over jackknife pseudo-values, where few items differ with two items added (jackknife.steadied_t), and approximate
    randomisation: each item's answers swapped at random (Noreen 1989); with `groups`, whole sources are swapped. Where all items differ by the same,
    up to Wilson's bound of "0 of n" of the population may not, by as much as the metric can (or by that difference itself).

    Measured coverage over 2,000 suites (nominal 95 %): 93.6 to 97 % from 50 items on, whatever the size of the shift; 98 % for macro-F1 at
    an accuracy of 0.95, 92.8 % for ten skewed sources. With few items that differ it says more than it holds, or less than it could: 0/1 metrics
    97 % at four such items and 100 % at one; means 91 % at five, 85 % at two, 92 % at six among 200.
    """
    _check(ours)
    n, value = len(ours), float(combine(ours.sum(axis=0)) - combine(theirs.sum(axis=0)))
    if binary and groups is None:
        gained, lost = _flips(ours, theirs)
        low, high = tango(gained, lost, n)
        p, test = mcnemar_mid_p(gained, lost), f"McNemar mid-p, {gained} gained, {lost} lost"
        return Difference(value, low, high, p, n, baseline, "Tango score interval, 95 %", test, verdict_of(low, high, p, higher_is_better))
    one, other = by_group(ours, groups), by_group(theirs, groups)
    low, high, method = _paired_interval(one, other, combine, (0.0, 1.0) if binary else bounds)
    swaps = _affordable(resamples, one)
    p, test = _randomisation_p(one, other, combine, swaps, seed), f"approximate randomisation, {swaps} swaps, seed {seed}"
    return Difference(value, low, high, p, n, baseline, _named(method, groups, len(one)), test, verdict_of(low, high, p, higher_is_better))


def sources(named: Sequence[str | None]) -> list[str | int] | None:
    """The source of each item, from the name that some give it: one without is its own. None where no item has one."""
    return [name if name is not None else at for at, name in enumerate(named)] if any(name is not None for name in named) else None


def verdict_of(low: float, high: float, p: float, higher_is_better: bool) -> str:
    """Both must say so: the interval lies on one side of 0, and the test agrees."""
    if (low > 0 or high < 0) and p < 1 - LEVEL:
        return "better" if (low > 0) == higher_is_better else "worse"
    return "no difference seen"


def _check(parts: Numbers) -> None:
    if not len(parts):
        refuse("evaluation", "items", "0 items", "at least one graded item", "give the suite items, or leave it out of evaluate.suites")


def _flips(ours: Numbers, theirs: Numbers) -> tuple[int, int]:
    right, was_right = ours[:, 0] > 0, theirs[:, 0] > 0
    return int((right & ~was_right).sum()), int((~right & was_right).sum())


def _named(method: str, groups: Groups | None, units: int) -> str:
    return method if groups is None else method.replace("over items ", "").removesuffix(", 95 %") + f", over {units} groups of items, 95 %"


def _paired_interval(ours: Numbers, theirs: Numbers, combine: Combine, bounds: tuple[float, float] | None) -> tuple[float, float, str]:
    columns = ours.shape[1]
    pseudo = pseudo_values(np.hstack([ours, theirs]), lambda sums: combine(sums[..., :columns]) - combine(sums[..., columns:]))
    most, moved = bounds[1] - bounds[0] if bounds else np.inf, (ours != theirs).any(axis=1)
    if moved.all() and flat(pseudo):
        return unanimous(float(pseudo.mean()), len(pseudo), (-most, most))
    reach = most if np.isfinite(most) else abs(float(combine(theirs.sum(axis=0)))) or 1.0
    low, high, method = steadied_t(pseudo, moved, reach)
    return max(low, -most), min(high, most), method


def _affordable(swaps: int, parts: Numbers) -> int:
    return min(swaps, max(1000, _SWAPPED_NUMBERS // max(parts.size, 1)))


def _randomisation_p(ours: Numbers, theirs: Numbers, combine: Combine, swaps: int, seed: int) -> float:
    """(1 + swaps at least as far apart) / (1 + swaps); items on which both are equal are not swapped, as nothing would change."""
    gap, total_ours, total_theirs = theirs - ours, ours.sum(axis=0), theirs.sum(axis=0)
    rows, columns = gap.any(axis=1), gap.any(axis=0)
    if not rows.any():
        return 1.0
    observed = abs(float(combine(total_ours) - combine(total_theirs)))
    rng = np.random.default_rng([seed, 1])
    moves, as_large = np.ascontiguousarray(gap[rows][:, columns]), 0
    for start in range(0, swaps, _CHUNK):
        size = min(_CHUNK, swaps - start)
        swapped = np.zeros((size, gap.shape[1]))
        swapped[:, columns] = rng.integers(0, 2, size=(size, len(moves))).astype(np.float64) @ moves
        found = combine(total_ours + swapped) - combine(total_theirs - swapped)
        as_large += int((np.abs(found) >= observed - 1e-12).sum())
    return (1 + as_large) / (1 + swaps)
