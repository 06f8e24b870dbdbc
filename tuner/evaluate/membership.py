"""Membership: can one who holds base and adapter tell train records from held_out ones by how much better the adapter knows them?

The reference attack of Watson et al. 2021 (arXiv 2111.08440): nats a token under the base less nats a token under the adapter. It refuses to be
read where the base alone tells the two groups apart already: then they differ in what they are, not in what was trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tuner.evaluate.intervals import LEVEL, Estimate, wilson

Numbers = NDArray[np.float64]
LEAST = 20  # records of each group, below which no AUC is given
FALSE_POSITIVES = 0.01
LEAST_FOR_TPR = 300  # non-members: with fewer, 1 % of them is a matter of two or three
Z = 1.959963984540054
_CHUNK = 500


def gains(base_nats: Sequence[float], adapter_nats: Sequence[float], tokens: Sequence[int]) -> tuple[Numbers, Numbers]:
    """Nats a token that the adapter saves on each completion, and the same as a share of the base's nats."""
    base, adapter = np.asarray(base_nats), np.asarray(adapter_nats)
    return (base - adapter) / np.asarray(tokens), (base - adapter) / np.maximum(base, 1e-9)


def auc(members: Sequence[float] | Numbers, others: Sequence[float] | Numbers) -> Estimate:
    """The chance that a member scores above another, ties counting half (Mann and Whitney 1947).

    Interval: DeLong's variance (1988, eq. 5) on the logit scale; where the groups do not overlap it has none, and Newcombe's method 5
    (2006, part 2) stands in.
    """
    x, y = np.asarray(members, dtype=np.float64), np.asarray(others, dtype=np.float64)
    above_others, above_members = _placements(x, y)
    value = float(above_others.mean())
    variance = float(above_others.var(ddof=1) / len(x) + above_members.var(ddof=1) / len(y))
    if variance <= 0 or not 0 < value < 1:
        low, high = _newcombe(value, len(x), len(y))
        return Estimate(value, len(x) + len(y), low, high, "Newcombe 2006, method 5, 95 %")
    half = Z * math.sqrt(variance) / (value * (1 - value))
    middle = math.log(value / (1 - value))
    return Estimate(value, len(x) + len(y), _logistic(middle - half), _logistic(middle + half), "DeLong on the logit scale, 95 %")


def _placements(x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
    """For each of `x` the share of `y` below it, and for each of `y` the share of `x` above it; ties count half."""
    ranked_y, ranked_x = np.sort(y), np.sort(x)
    below = (np.searchsorted(ranked_y, x, "left") + np.searchsorted(ranked_y, x, "right")) / (2 * len(y))
    above = 1 - (np.searchsorted(ranked_x, y, "left") + np.searchsorted(ranked_x, y, "right")) / (2 * len(x))
    return below, above


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _newcombe(value: float, m: int, n: int) -> tuple[float, float]:
    """The AUCs whose own standard error, in Hanley and McNeil's form, puts `value` 1.96 of it away."""
    from scipy.optimize import brentq

    def away(of: float) -> float:
        size = (m + n) / 2 - 1
        variance = of * (1 - of) * (1 + size * (1 - of) / (2 - of) + size * of / (1 + of)) / (m * n)
        return (value - of) ** 2 - Z**2 * variance

    middle = min(max(value, 1e-9), 1 - 1e-9)
    low = 0.0 if value <= 0 else float(brentq(away, 1e-12, middle))
    high = 1.0 if value >= 1 else float(brentq(away, middle, 1 - 1e-12))
    return low, high


def tpr_at_fpr(members: Sequence[float] | Numbers, others: Sequence[float] | Numbers, resamples: int, seed: int, fpr: float = FALSE_POSITIVES) -> Estimate:
    """Share of members above the score that at most `fpr` of the others exceed (Carlini et al. 2021, arXiv 2112.03570).

    Interval: both groups resampled, so that the threshold moves too; never narrower than Wilson's at the threshold found.
    """
    x, y = np.asarray(members, dtype=np.float64), np.asarray(others, dtype=np.float64)
    caught = x > _threshold(y, fpr)
    rng = np.random.default_rng([seed, 2])
    values: list[float] = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        thresholds = np.sort(rng.choice(y, (size, len(y))), axis=1)[:, len(y) - 1 - int(fpr * len(y))]
        values += (rng.choice(x, (size, len(x))) > thresholds[:, None]).mean(axis=1).tolist()
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    least, most = wilson(float(caught.sum()), len(x))
    method = f"percentile bootstrap over both groups, {resamples} resamples, seed {seed}, at least as wide as Wilson's, 95 %"
    return Estimate(float(caught.mean()), len(x) + len(y), float(min(low, least)), float(max(high, most)), method)


def _threshold(others: Numbers, fpr: float) -> float:
    return float(np.sort(others)[len(others) - 1 - int(fpr * len(others))])
