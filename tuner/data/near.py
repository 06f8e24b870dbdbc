"""Prompts that are near copies: candidates by MinHash, each pair confirmed by its true Jaccard, joined into clusters.

It never decides what a near copy means: two prompts at Jaccard 0.76 may differ only in a rating of 5 or 1, so the checks show what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.data.record import Record
from tuner.data.shingles import BANDS, Hashes, jaccard, shingle_set
from tuner.data.workers import spread

NEAR = 0.5  # Jaccard of 3-word shingles from which two prompts are joined
MOST_PAIRS = 3_000_000  # beyond this, pairs that share one band of 32 alone are not looked at


@dataclass(frozen=True)
class NearPrompts:
    """Pairs of positions with different prompts, first < second, and their Jaccard. `cluster` maps a position to its cluster's first position."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    jaccard: NDArray[np.float32]
    representative: NDArray[np.int64]
    clusters: dict[int, list[int]]


def near_prompts(records: Sequence[Record], prompts: Hashes, bands: NDArray[np.uint32]) -> NearPrompts:
    """Near copies among the different prompts of `records`. Each prompt is looked at once, at the first position that has it."""
    _, firsts, inverse = np.unique(prompts, return_index=True, return_inverse=True)
    representative = firsts[inverse]
    distinct = np.sort(firsts)
    one, other = _candidates(bands[distinct])
    one, other = distinct[one], distinct[other]
    found = list(spread(lambda start, stop: _true_jaccards(records, one[start:stop], other[start:stop]), len(one)))
    true = np.concatenate(found) if found else np.zeros(0, dtype=np.float32)
    keep = true >= NEAR
    one, other, true = one[keep], other[keep], true[keep]
    return NearPrompts(one, other, true, representative, _clusters(one, other))


def _candidates(bands: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of rows, first < second, that stand next to each other in a bucket of some band: linear in the rows, whatever the buckets' sizes."""
    rows = np.int64(len(bands))
    codes: list[NDArray[np.int64]] = []
    for band in range(BANDS if len(bands) > 1 else 0):
        keys = bands[:, band]
        order = np.argsort(keys, kind="stable").astype(np.int64)
        same = keys[order[1:]] == keys[order[:-1]]
        codes.append(order[:-1][same] * rows + order[1:][same])  # a stable sort keeps rows of a bucket in order
    found, shared = np.unique(np.concatenate(codes), return_counts=True) if codes else (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    least = 1
    while np.count_nonzero(shared >= least) > MOST_PAIRS:
        least += 1
    found = found[shared >= least]
    return found // max(rows, 1), found % max(rows, 1)


def _true_jaccards(records: Sequence[Record], one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float32]:
    sets: dict[int, frozenset[str]] = {}

    def of(position: int) -> frozenset[str]:
        if position not in sets:
            if len(sets) > 20_000:
                sets.clear()
            sets[position] = shingle_set(records[position].question)
        return sets[position]

    return np.array([jaccard(of(a), of(b)) for a, b in zip(one.tolist(), other.tolist(), strict=True)], dtype=np.float32)


def _clusters(one: NDArray[np.int64], other: NDArray[np.int64]) -> dict[int, list[int]]:
    """Members of every cluster in order, by its first member."""
    root: dict[int, int] = {}

    def find(position: int) -> int:
        while root.setdefault(position, position) != position:
            root[position] = position = root[root[position]]
        return position

    for a, b in zip(one.tolist(), other.tolist(), strict=True):
        low, high = sorted((find(a), find(b)))
        root[high] = low
    clusters: dict[int, list[int]] = {}
    for position in sorted(root):
        clusters.setdefault(find(position), []).append(position)
    return clusters
