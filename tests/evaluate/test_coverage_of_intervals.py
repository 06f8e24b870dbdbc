"""95 % intervals hold the truth in 95 % of simulated suites: each family of metrics, three sizes, three levels.

`python -m tests.evaluate.test_coverage_of_intervals` prints the whole table (2,000 suites a cell, some minutes).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from tuner.evaluate.intervals import difference, estimate
from tuner.evaluate.membership import auc
from tuner.evaluate.metrics import METRICS
from tuner.evaluate.shares import independent_shares

SIZES, LEVELS = (50, 200, 1000), (0.05, 0.5, 0.95)
LABELS = 6
FREQUENT = np.arange(LABELS, 0, -1) / sum(range(1, LABELS + 1))  # labels are not equally frequent
MEAN, RATIO, F1, MACRO = (METRICS[m].combine for m in ("token_f1", "loss", "json_field_f1", "macro_f1"))
Draw = np.random.Generator
Interval = tuple[float, float]


@dataclass(frozen=True)
class Family:
    """`suite(rng, n, level)` is the interval found on one simulated suite, `truth(level)` what it should hold."""

    suite: Callable[[Draw, int, float], Interval]
    truth: Callable[[float], float]


def parted(scores: np.ndarray) -> np.ndarray:
    return np.column_stack([scores, np.ones(len(scores))]).astype(float)


def value(parts: np.ndarray, combine: Callable, binary: bool = False, groups: list[int] | None = None) -> Interval:
    found = estimate(parts, combine, binary, 1000, 0, groups=groups)
    return found.low, found.high


def gap(ours: np.ndarray, theirs: np.ndarray, combine: Callable, binary: bool = False, groups: list[int] | None = None) -> Interval:
    """Few swaps: the p-value is not what is looked at here."""
    found = difference(ours, theirs, combine, binary=binary, higher_is_better=True, baseline="base", resamples=20, seed=0, groups=groups)
    return found.low, found.high


# --- one suite of each family ----------------------------------------------------------------------------------------


def share(rng: Draw, n: int, level: float) -> Interval:
    return value(parted(rng.random(n) < level), MEAN, binary=True)


def mean(rng: Draw, n: int, level: float) -> Interval:
    return value(parted(rng.beta(2 * level, 2 * (1 - level), n)), MEAN)


def mixed_mean(rng: Draw, n: int, level: float) -> Interval:
    """Half of the scores are exactly 0 or 1, as those of token F1 are."""
    return value(parted(np.where(rng.random(n) < 0.5, rng.random(n) < level, rng.beta(4 * level, 4 * (1 - level), n))), MEAN)


def nats(rng: Draw, n: int, level: float) -> Interval:
    """Nats a token; items differ in length and in how hard they are."""
    tokens = rng.integers(4, 60, n)
    return value(np.column_stack([tokens * rng.gamma(1.5, level / 1.5, n) * rng.gamma(8, 1 / 8, n), tokens]), RATIO)


def fields(wanted: np.ndarray, right: np.ndarray, rng: Draw) -> np.ndarray:
    """2·right and said + wanted of each item, four in five of the wrong fields being said at all."""
    return np.column_stack([2 * right, right + rng.binomial(wanted - right, 0.8) + wanted]).astype(float)


def micro_f1(rng: Draw, n: int, level: float) -> Interval:
    wanted = rng.integers(1, 12, n)
    return value(fields(wanted, rng.binomial(wanted, rng.beta(2 * level, 2 * (1 - level), n)), rng), F1)


def true_micro_f1(level: float) -> float:
    return 2 * level / (2 * level + 1.8 * (1 - level))


def labelled(rng: Draw, wanted: np.ndarray, level: float) -> np.ndarray:
    """What is said: the right label at `level`, else any other."""
    return np.where(rng.random(len(wanted)) < level, wanted, (wanted + rng.integers(1, LABELS, len(wanted))) % LABELS)


def label_counts(wanted: np.ndarray, said: np.ndarray) -> np.ndarray:
    """True positives, false positives, false negatives and occurrences of each label, as METRICS' macro_f1 takes them."""
    items, counts = np.arange(len(wanted)), np.zeros((len(wanted), LABELS, 4))
    counts[items, wanted, 3] = 1
    counts[items, wanted, np.where(said == wanted, 0, 2)] = 1
    wrong = said != wanted
    counts[items[wrong], said[wrong], 1] = 1
    return counts.reshape(len(wanted), -1)


def macro_f1(rng: Draw, n: int, level: float) -> Interval:
    wanted = rng.choice(LABELS, n, p=FREQUENT)
    return value(label_counts(wanted, labelled(rng, wanted, level)), MACRO)


def true_macro_f1(level: float) -> float:
    right, missed, false = FREQUENT * level, FREQUENT * (1 - level), (1 - FREQUENT) * (1 - level) / (LABELS - 1)
    return float(np.mean(2 * right / (2 * right + missed + false)))


def paired_share(rng: Draw, n: int, level: float) -> Interval:
    """A tenth of the items differ, twice as many gained as lost where the level leaves room."""
    return paired_table(rng, n, level, 0.1 if level == 0.5 else 0.06)


def tied_share(rng: Draw, n: int, level: float) -> Interval:
    """Two in a hundred items differ."""
    return paired_table(rng, n, level, 0.02)


def paired_table(rng: Draw, n: int, level: float, differ: float) -> Interval:
    both = max(0.0, level - differ)
    cells = rng.choice(4, n, p=[both, differ * 2 / 3, differ / 3, 1 - both - differ])
    return gap(parted(cells < 2), parted((cells == 0) | (cells == 2)), MEAN, binary=True)


def paired_mean(rng: Draw, n: int, level: float) -> Interval:
    return changed_mean(rng, n, level, 0.0)


def tied_mean(rng: Draw, n: int, level: float) -> Interval:
    """Nine in ten answers are the same."""
    return changed_mean(rng, n, level, 0.9)


def changed_mean(rng: Draw, n: int, level: float, same: float) -> Interval:
    theirs, shifted = rng.beta(3 * level, 3 * (1 - level), n), level + shift(level)
    ours = np.where(rng.random(n) < same, theirs, rng.beta(3 * shifted, 3 * (1 - shifted), n))
    return gap(parted(ours), parted(theirs), MEAN)


def moved_alike(rng: Draw, n: int, level: float) -> Interval:
    """Every answer moves by about the same, `level`: half of a standard deviation, five, nine and a half."""
    return alike(rng, n, level, 1.0)


def mostly_moved_alike(rng: Draw, n: int, level: float) -> Interval:
    """One answer in five stays as it was."""
    return alike(rng, n, level, 0.8)


def alike(rng: Draw, n: int, level: float, moving: float) -> Interval:
    theirs = rng.normal(2.0, 1.0, n)
    return gap(parted(theirs + np.where(rng.random(n) < moving, rng.normal(level, 0.1, n), 0.0)), parted(theirs), MEAN)


def shift(level: float) -> float:
    return 0.02 if level < 0.9 else -0.02


def paired_nats(rng: Draw, n: int, level: float) -> Interval:
    tokens = rng.integers(4, 60, n)
    rate = tokens * rng.gamma(1.5, level / 1.5, n)
    ours, theirs = (np.column_stack([rate * rng.gamma(8, 1 / 8, n) * times, tokens]) for times in (1.05, 1.0))
    return gap(ours, theirs, RATIO)


def paired_micro_f1(rng: Draw, n: int, level: float) -> Interval:
    wanted, skill, same = rng.integers(1, 12, n), rng.beta(2 * level, 2 * (1 - level), n), rng.random(n) < 0.5
    theirs, ours = (fields(wanted, rng.binomial(wanted, skill + (1 - skill) * more), rng) for more in (0.0, 0.1))
    return gap(np.where(same[:, None], theirs, ours), theirs, F1)


def paired_macro_f1(rng: Draw, n: int, level: float) -> Interval:
    wanted, same = rng.choice(LABELS, n, p=FREQUENT), rng.random(n) < 0.5
    theirs = labelled(rng, wanted, level)
    ours = np.where(same, theirs, labelled(rng, wanted, level + shift(level)))
    return gap(label_counts(wanted, ours), label_counts(wanted, theirs), MACRO)


def two_groups_auc(rng: Draw, n: int, level: float) -> Interval:
    """Members' scores spread half as much again as the others'."""
    found = auc(rng.normal(_probit(level) * math.sqrt(1 + 1.5**2), 1.5, n), rng.normal(0, 1, n))
    return found.low, found.high


def _probit(level: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(level))


def two_shares(rng: Draw, n: int, level: float) -> Interval:
    return independent_shares(rng.binomial(n, level), n, rng.binomial(n, 0.05), n)


def grouped_share(rng: Draw, n: int, level: float) -> Interval:
    """Sources of five questions that are hard or easy together."""
    sources = np.repeat(np.arange(n // 5), 5)
    return value(parted(rng.random(n) < rng.beta(4 * level, 4 * (1 - level), n // 5)[sources]), MEAN, binary=True, groups=sources.tolist())


def grouped_gap(rng: Draw, n: int, level: float) -> Interval:
    sources = np.repeat(np.arange(n // 5), 5)
    chance = rng.beta(4 * level, 4 * (1 - level), n // 5)[sources]
    gained = rng.beta(2, 8, n // 5)[sources]
    ours, theirs = rng.random(n) < chance + (1 - chance) * gained, rng.random(n) < chance
    return gap(parted(ours), parted(theirs), MEAN, binary=True, groups=sources.tolist())


FAMILIES: dict[str, Family] = {
    "share": Family(share, lambda p: p),
    "mean": Family(mean, lambda p: p),
    "mixed mean": Family(mixed_mean, lambda p: p),
    "nats a token": Family(nats, lambda p: p),
    "micro-F1": Family(micro_f1, true_micro_f1),
    "macro-F1": Family(macro_f1, true_macro_f1),
    "paired share": Family(paired_share, lambda p: (0.1 if p == 0.5 else 0.06) / 3),
    "paired share, 2 % differ": Family(tied_share, lambda p: 0.02 / 3),
    "paired mean": Family(paired_mean, shift),
    "paired mean, 90 % ties": Family(tied_mean, lambda p: 0.1 * shift(p)),
    "paired mean, all moved": Family(moved_alike, lambda p: p),
    "paired mean, 80 % moved": Family(mostly_moved_alike, lambda p: 0.8 * p),
    "paired nats a token": Family(paired_nats, lambda p: 0.05 * p),
    "paired micro-F1": Family(paired_micro_f1, lambda p: true_micro_f1(p + (1 - p) * 0.05) - true_micro_f1(p)),
    "paired macro-F1": Family(paired_macro_f1, lambda p: true_macro_f1(p + shift(p) / 2) - true_macro_f1(p)),
    "AUC of two groups": Family(two_groups_auc, lambda p: p),
    "independent shares": Family(two_shares, lambda p: p - 0.05),
    "share by source": Family(grouped_share, lambda p: p),
    "paired share by source": Family(grouped_gap, lambda p: (1 - p) * 0.2),
}


# Cells measured outside 93 to 97 % (2,000 suites, a standard error of 0.2 to 0.6 points), in per cent by (family, n): level.
# Below: the few items that decide may all be missing from the suite. Above: fewer than about three items differ, or a label is seen once or twice.
OUTSIDE: dict[tuple[str, int], dict[float, float]] = {
    ("mixed mean", 50): {0.05: 91.0, 0.95: 92.4},
    ("macro-F1", 50): {0.05: 99.0, 0.95: 99.1},
    ("macro-F1", 200): {0.05: 98.0, 0.95: 97.5},
    ("paired share", 50): {0.95: 97.3},
    ("paired share, 2 % differ", 50): {0.05: 100.0, 0.5: 100.0, 0.95: 99.9},
    ("paired mean, 90 % ties", 50): {0.05: 91.1, 0.5: 99.4, 0.95: 92.0},
    ("paired micro-F1", 50): {0.95: 99.1},
    ("paired macro-F1", 50): {0.5: 97.2, 0.95: 98.4},
    ("paired macro-F1", 200): {0.95: 97.9},
    ("share by source", 50): {0.05: 99.6, 0.95: 99.7},
    ("share by source", 200): {0.05: 98.0, 0.95: 97.5},
    ("paired share by source", 50): {0.05: 92.8, 0.95: 100.0},
    ("paired share by source", 200): {0.95: 97.1},
}


def coverage(family: str, n: int, level: float, suites: int) -> tuple[float, float]:
    """Share of simulated suites whose interval holds the truth, and the mean width."""
    of, truth = FAMILIES[family], FAMILIES[family].truth(level)
    rng = np.random.default_rng([n, round(100 * level), *family.encode()])
    found = np.array([of.suite(rng, n, level) for _ in range(suites)])
    assert (found[:, 1] > found[:, 0]).all(), "an interval without width"
    return float(((found[:, 0] <= truth) & (truth <= found[:, 1])).mean()), float((found[:, 1] - found[:, 0]).mean())


def print_table(suites: int = 2000, families: tuple[str, ...] = tuple(FAMILIES)) -> None:
    """One line a family and size: coverage in per cent and mean width at each level."""
    print(f"{'family':26s} {'n':>5s}   " + "   ".join(f"at {level:<12g}" for level in LEVELS))
    for family in families:
        for n in SIZES:
            cells = (coverage(family, n, level, suites) for level in LEVELS)
            print(f"{family:26s} {n:5d}   " + "   ".join(f"{100 * c:5.1f} (w {w:.4f})" for c, w in cells), flush=True)


def off_the_mark(family: str, n: int, suites: int) -> dict[float, float]:
    """The coverage of each level that is not within 93 to 97 %, or at the figure known for it, up to 3.3 binomial standard errors of this many suites."""
    found = {}
    for level in LEVELS:
        known = OUTSIDE.get((family, n), {}).get(level)
        least, most = (0.93, 0.97) if known is None else (known / 100, known / 100)
        doubt = 3.3 * math.sqrt(0.05 * 0.95 / suites)
        covered, _ = coverage(family, n, level, suites)
        if not least - doubt <= covered <= most + doubt:
            found[level] = covered
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_intervals_of_200_items_hold_the_truth_as_often_as_they_say(family: str) -> None:
    assert off_the_mark(family, 200, suites=250) == {}


@pytest.mark.slow
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_2000_suites_of_each_size_and_level_are_covered(family: str, n: int) -> None:
    assert off_the_mark(family, n, suites=2000) == {}


def test_every_family_is_swept_and_every_exception_exists() -> None:
    assert len(FAMILIES) * len(SIZES) * len(LEVELS) == 171
    assert all(family in FAMILIES and n in SIZES and set(of) <= set(LEVELS) for (family, n), of in OUTSIDE.items())


if __name__ == "__main__":
    print_table(*(int(a) for a in sys.argv[1:2]))
