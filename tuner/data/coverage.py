"""How far train reaches: which production inputs lie outside it, which parts of it production hardly asks for, what adds nothing new.

It refuses to call a share a finding without its interval, and to count copies of one text as support for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np
from scipy.special import gammaln

from tuner.data.embedding import Indices, Mask, Vectors
from tuner.data.neighbours import centres, nearest, nearest_in_itself

NEIGHBOURS = 5
QUANTILE = 0.05  # of train, leave-one-out: what lies below it is not covered
MIN_TRAIN = 50  # different texts of train; below, the quantile says nothing
ALPHA = 0.01
MIN_UNCOVERED = 0.10  # share of production below which nothing is worth a warning, however certain
REDUNDANT = 0.95  # cosine to an earlier record from which a record teaches nothing new
_THRESHOLD_ROWS = 10_000  # of train, drawn to set the threshold
_CLUSTERED_ROWS = 5_000  # of what is not covered, drawn for clustering
_JUDGED_ROWS = 20_000  # drawn for `redundancy`
_CELL_ROWS, _MAX_CELLS = 50, 60  # records a cell of train has on average, and the most cells
_BLOCK = 1024
_Z95, _Z99 = 1.959964, 2.575829


@dataclass(frozen=True)
class Cluster:
    """Rows of production that lie together (`rows`, the `medoid` first, then from near to far from it): one thing train does not teach."""

    medoid: int
    rows: Indices


@dataclass(frozen=True)
class Coverage:
    """What train covers of production (P rows).

    `similarity` (P,) is the mean cosine to the 5 nearest different texts of train, `uncovered` (P,) where that is below `threshold`;
    `share` of production is covered, with its 95 % Wilson `interval`. `p_value` is Fisher's, one-sided: is production uncovered more
    often than the reference (`reference_uncovered` of `reference_rows`)? `clusters` are from large to small; `annotate` are rows of
    production in the order in which labelling them helps most: the medoids first, then what is farthest from each.
    """

    threshold: float
    similarity: Vectors
    uncovered: Mask
    share: float
    interval: tuple[float, float]
    reference_uncovered: int
    reference_rows: int
    p_value: float
    clusters: tuple[Cluster, ...]
    annotate: Indices

    @property
    def is_short(self) -> bool:
        """Whether production leaves train: p < .01 and more than a tenth of it is not covered."""
        return self.p_value < ALPHA and 1 - self.share > MIN_UNCOVERED


@dataclass(frozen=True)
class Region:
    """One k-means cell of train: its rows nearest the centre first, counts in train and production, and train share / production share.

    `interval` is the ratio's at 99 % (Katz 1978, half a record added to each count), as there are many cells.
    """

    rows: Indices
    in_train: int
    in_production: int
    ratio: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Redundancy:
    """`share` of records that have an earlier one within cosine .95, with its 95 % Wilson `interval`.

    Of the `judged` rows (all, or a seeded draw of 20,000), `rows` are the redundant ones and `earlier` the most similar record before each.
    """

    share: float
    interval: tuple[float, float]
    judged: int
    rows: Indices
    earlier: Indices


def coverage(train: Vectors, production: Vectors, reference: Vectors | None = None, seed: int = 0) -> Coverage | None:
    """Coverage of centred unit vectors (P, d) by train (N, d); `reference` (H, d), best held_out, says what is usual for fresh inputs.

    None where train has fewer than 50 different texts or production none. Score: deep nearest neighbours, Sun et al. 2022
    (arXiv 2204.06507), with the mean of 5; the threshold is the 5 % quantile of train against the rest of itself, on at most 10,000
    rows. Without a reference those train rows are it, and fresh inputs of the same source come out a little worse than they
    (CLINC150: 7 % uncovered, out of scope 81 %). Clusters join what lies within the threshold of a medoid: with the banking, travel or home
    domain of CLINC150 left out of train, two thirds of it were not covered, and 12 of the first 15 medoids were different new intents.
    """
    texts = train[_first_of_each(train)]
    if len(texts) < MIN_TRAIN or not len(production):
        return None
    chance = np.random.default_rng(seed)
    fitted = _left_out(texts, _draw(len(texts), _THRESHOLD_ROWS, chance))
    threshold = float(np.quantile(fitted, QUANTILE))
    similarity = _support(production, texts)
    uncovered = similarity < threshold
    usual = fitted < threshold if reference is None or not len(reference) else _support(reference, texts) < threshold
    missed, ordinary = int(uncovered.sum()), int(usual.sum())
    low, high = wilson(missed, len(uncovered))
    rows = np.flatnonzero(uncovered)
    clusters = _clusters(production, rows[_draw(len(rows), _CLUSTERED_ROWS, chance)], threshold)
    p_value = fisher_greater(missed, len(uncovered), ordinary, len(usual))
    share = 1 - missed / len(uncovered)
    return Coverage(threshold, similarity, uncovered, share, (1 - high, 1 - low), ordinary, len(usual), p_value, clusters, _to_annotate(clusters))


def regions(train: Vectors, production: Vectors, seed: int = 0) -> list[Region]:
    """Cells of train (N, d) with the share each has of train and of production (P, d), most over-represented first.

    Spherical k-means, a cell for every 50 records up to 60. A region is over-represented where the interval's low end is above 1.
    """
    if not len(train) or not len(production):
        return []
    middle = centres(train, min(_MAX_CELLS, max(1, len(train) // _CELL_ROWS)), seed)
    nearness, home = nearest(train, middle, 1)
    asked = np.bincount(nearest(production, middle, 1)[1][:, 0], minlength=len(middle))
    found = []
    for cell in range(len(middle)):
        rows = np.flatnonzero(home[:, 0] == cell)
        if len(rows):
            rows = rows[np.argsort(-nearness[rows, 0], kind="stable")]
            ratio, interval = _ratio(len(rows), len(train), int(asked[cell]), len(production))
            found.append(Region(rows, len(rows), int(asked[cell]), ratio, interval))
    return sorted(found, key=lambda r: -r.interval[0])


def redundancy(train: Vectors, seed: int = 0) -> Redundancy:
    """How many of the unit vectors (N, d) have an earlier one within cosine .95. Exact for each row judged; above 20,000 rows a draw is judged."""
    judged = _draw(len(train), _JUDGED_ROWS, np.random.default_rng(seed))
    cosine, earlier = np.full(len(judged), -1, np.float32), np.zeros(len(judged), np.int64)
    for start in range(0, len(judged), _BLOCK):
        asked = judged[start : start + _BLOCK]
        for c in range(0, int(asked[-1]), 8 * _BLOCK):
            others = np.arange(c, min(c + 8 * _BLOCK, int(asked[-1])))
            cosines = np.where(others < asked[:, None], train[asked] @ train[others].T, -1)
            place = cosines.argmax(axis=1)
            value = cosines[np.arange(len(asked)), place]
            better = np.flatnonzero(value > cosine[start : start + _BLOCK])
            cosine[start + better], earlier[start + better] = value[better], others[place[better]]
    hit = cosine >= REDUNDANT
    return Redundancy(float(hit.mean()) if len(hit) else 0.0, wilson(int(hit.sum()), len(hit)), len(judged), judged[hit], earlier[hit])


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, _Z95**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def fisher_greater(hits: int, n: int, reference_hits: int, reference_n: int) -> float:
    """Fisher's exact one-sided p: of n + m rows with hits + reference_hits in all, the chance that these n hold at least `hits`."""
    total = hits + reference_hits
    at = np.arange(hits, min(n, total) + 1)
    at = at[total - at <= reference_n]
    chances = np.exp(_ways(n, at) + _ways(reference_n, total - at) - _ways(n + reference_n, np.array([total])))
    return float(min(1.0, chances.sum()))


def _ways(n: int, k: Indices) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Logarithm of n over k."""
    ways: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return ways


def _ratio(first: int, of_first: int, second: int, of_second: int) -> tuple[float, tuple[float, float]]:
    a, n, b, m = first + 0.5, of_first + 0.5, second + 0.5, of_second + 0.5
    ratio = (a / n) / (b / m)
    spread = _Z99 * sqrt(max(0.0, 1 / a - 1 / n + 1 / b - 1 / m))
    return ratio, (exp(log(ratio) - spread), exp(log(ratio) + spread))


def _draw(n: int, most: int, chance: np.random.Generator) -> Indices:
    """All of n rows, or a random `most` of them, in order."""
    return np.arange(n) if n <= most else np.sort(chance.choice(n, most, replace=False))


def _first_of_each(vectors: Vectors) -> Indices:
    """The first row of every different text: equal to three decimals, zero vectors (nothing known) left out."""
    rows = np.flatnonzero(vectors.any(axis=1))
    short = np.ascontiguousarray(np.round(vectors[rows] * 1000).astype(np.int16))
    keys = short.view(np.dtype((np.void, short.itemsize * short.shape[1]))).ravel()
    return rows[np.sort(np.unique(keys, return_index=True)[1])]


def _support(vectors: Vectors, texts: Vectors) -> Vectors:
    return _mean(nearest(vectors, texts, NEIGHBOURS)[0])


def _left_out(texts: Vectors, rows: Indices) -> Vectors:
    """Support (n,) of these rows of `texts` by the other texts."""
    if len(rows) == len(texts):
        return _mean(nearest_in_itself(texts, NEIGHBOURS)[0])
    cosines, found = nearest(texts[rows], texts, NEIGHBOURS + 1)
    itself = found == rows[:, None]
    itself[~itself.any(axis=1), -1] = True  # rounding may rank a near copy first; then the farthest is left out
    return _mean(cosines[~itself].reshape(len(rows), NEIGHBOURS))


def _mean(cosines: Vectors) -> Vectors:
    of_row: Vectors = cosines.mean(axis=1)
    return of_row


def _clusters(vectors: Vectors, rows: Indices, link: float) -> tuple[Cluster, ...]:
    """Butina 1999: the row with most unclustered rows within cosine `link` becomes a medoid and takes them, until none is left."""
    near = np.zeros((len(rows), len(rows)), np.bool_)
    for start in range(0, len(rows), _BLOCK):
        near[start : start + _BLOCK] = vectors[rows[start : start + _BLOCK]] @ vectors[rows].T >= link
    np.fill_diagonal(near, True)
    count = near.sum(axis=1)
    free = np.ones(len(rows), np.bool_)
    found = []
    while free.any():
        medoid = int(np.where(free, count, -1).argmax())
        members = np.flatnonzero(near[medoid] & free)
        free[members] = False
        count -= near[:, members].sum(axis=1)
        others = members[members != medoid]
        others = others[np.argsort(-(vectors[rows[others]] @ vectors[rows[medoid]]), kind="stable")]
        found.append(Cluster(int(rows[medoid]), rows[np.concatenate([[medoid], others])]))
    return tuple(found)


def _to_annotate(clusters: tuple[Cluster, ...]) -> Indices:
    """Round and round the clusters from large to small: every medoid, then of each the row farthest from it, and so on inwards."""
    turns = [(turn, place, row) for place, c in enumerate(clusters) for turn, row in enumerate([c.rows[0], *c.rows[:0:-1]])]
    return np.array([row for _, _, row in sorted(turns)], np.int64)
