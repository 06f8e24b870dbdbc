"""Prompts that are near copies: candidates by MinHash, each pair confirmed by its true Jaccard, joined into clusters.

It never decides what a near copy means: two prompts at Jaccard 0.76 may differ only in a rating of 5 or 1, so the checks show what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from tuner.data.record import Record, normalised
from tuner.data.shingles import BANDS, Hashes, boilerplate, jaccard, minhash_bands, shingle_set, shingled
from tuner.data.workers import spread

COPY = 0.8  # Jaccard from which two texts count as the same text, edited
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
    rows = max(len(bands), 1)
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
    return found // rows, found % rows


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


def edited_copies(records: Sequence[Record]) -> dict[str, str]:
    """Prompt keys that belong together, each with the key that stands for its group: nearly the same prompt with nearly the same completion."""
    keys = [r.prompt_key for r in records]
    hashes = np.array([xxhash.xxh3_64_intdigest(k.encode("utf-8", "surrogatepass")) for k in keys], dtype=np.uint64)
    questions = [r.question for r in records]
    step = max(len(questions) // 2_000, 1)
    near = near_prompts(records, hashes, minhash_bands(*shingled(questions), boilerplate(questions[::step][:2_000])))
    pairs = [(a, b) for a, b, j in zip(near.first.tolist(), near.second.tolist(), near.jaccard.tolist(), strict=True) if j >= COPY]
    wanted = {p for pair in pairs for p in pair}
    answers: dict[int, list[str]] = {}
    for position, representative in enumerate(near.representative.tolist()):
        if representative in wanted:
            answers.setdefault(representative, []).append(records[position].completion)
    same = [(a, b) for a, b in pairs if any(gives_away(x, y) for x in answers[a][:20] for y in answers[b][:20])]
    one, other = (np.array(side, dtype=np.int64) for side in zip(*same, strict=True)) if same else (np.zeros(0, np.int64), np.zeros(0, np.int64))
    return {keys[member]: keys[first] for first, members in _clusters(one, other).items() for member in members}


def gives_away(one: str, other: str) -> bool:
    """Whether one completion is the other, but for case, spacing or a few words."""
    return normalised(one) == normalised(other) or jaccard(shingle_set(one), shingle_set(other)) >= COPY
