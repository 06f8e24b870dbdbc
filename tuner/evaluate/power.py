"""Power: the smallest difference a suite of this size could have seen, and how many items a wanted difference needs.

"No difference seen" says nothing without it. It refuses a wanted difference of nothing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tuner.errors import refuse
from tuner.evaluate.jackknife import Combine, Groups, Numbers, by_group, pseudo_values

POWER = 0.8
_Z_TEST = 1.959963984540054  # two-sided 5 %
_Z_POWER = 0.8416212335729143  # 80 %
_SHARES = (_Z_TEST + _Z_POWER) ** 2


def smallest_difference(ours: Numbers, theirs: Numbers, combine: Combine, *, binary: bool, groups: Groups | None = None) -> dict[str, Any]:
    """The true difference that a suite of these n items would have called at p < 0.05 in 80 % of cases.

    0/1 metrics: n = (z.975 + z.8)² · (d - δ²) / δ², d the share of items on which the two differ (Connor 1987, Biometrics 43:207, paired shares),
    solved for δ; d is taken with one more item that differs, and is at least δ. Otherwise δ = (z.975 + z.8) · sd / √n, sd that of the
    jackknife pseudo-values of the difference. With `groups` (see intervals.difference) the sources are the items of the latter, whatever the metric.
    """
    n = len(ours)
    if binary and groups is None:
        differ = _discordance(ours, theirs)
        found = max(math.sqrt(_SHARES * differ / (n + _SHARES)), _SHARES / (n + _SHARES))
        how = f"McNemar's test at p < 0.05, {differ:.3f} of the items differ"
    else:
        one, other = by_group(ours, groups), by_group(theirs, groups)
        spread = _spread(one, other, combine, binary)
        found = math.sqrt(_SHARES / len(one)) * spread
        of = "an item" if groups is None else f"one of {len(one)} groups of items"
        how = f"paired test at p < 0.05, standard deviation of the difference of {of} {spread:.3g}"
    return {"n": n, "smallest_difference": found, "power": POWER, "how": how}


def items_needed(ours: Numbers, theirs: Numbers, combine: Combine, wanted: float, *, binary: bool) -> int:
    """How many items a suite like this one needs to see a true difference of `wanted` at p < 0.05 in 80 % of cases."""
    if wanted == 0:
        refuse("power", "wanted", "0", "a difference above 0", "ask for the smallest difference that would matter to you")
    if binary:
        differ = max(_discordance(ours, theirs), abs(wanted))
        return math.ceil(_SHARES * (differ - wanted**2) / wanted**2)
    return math.ceil(_SHARES * (_spread(ours, theirs, combine, binary) / wanted) ** 2)


def _discordance(ours: Numbers, theirs: Numbers) -> float:
    """Share of items on which the two differ, as if one more had: none seen is not none."""
    return (float(((ours[:, 0] > 0) != (theirs[:, 0] > 0)).sum()) + 1) / (len(ours) + 2)


def _spread(ours: Numbers, theirs: Numbers, combine: Combine, binary: bool) -> float:
    """Standard deviation of the pseudo-values; of a share at least as if one more source had changed wholly: none seen is not none."""
    columns = ours.shape[1]
    pseudo = pseudo_values(np.hstack([ours, theirs]), lambda sums: combine(sums[..., :columns]) - combine(sums[..., columns:]))
    found = float(pseudo.std(ddof=1)) if len(pseudo) > 1 else 0.0
    return max(found, 1 / math.sqrt(len(pseudo) + 2)) if binary else found
