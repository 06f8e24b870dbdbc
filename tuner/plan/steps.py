"""Which rows make which optimiser step, and how a step is cut into forward passes: from row lengths alone, the same on every rank.

The rows of a step depend on seed, order and batch size, never on how many ranks share it or how it is cut: those change no result.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

GROUP_STEPS = 50  # rows of so many steps are sorted by length together: near lengths, still far from one order for the whole epoch

Micro = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batching:
    """How rows become steps. `micro_tokens` bounds one forward pass of one rank, padding counted; a longer row goes alone."""

    packed: bool
    grouped: bool
    micro_tokens: int
    tokens_per_step: int
    records_per_step: int | None
    seed: int
    ranks: int = 1


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step: for every rank the row numbers of each forward pass. All ranks have equally many; a filler has no rows."""

    ranks: tuple[tuple[Micro, ...], ...]

    @property
    def rows(self) -> list[int]:
        return [row for micros in self.ranks for micro in micros for row in micro]


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What the plan needs of the first epoch. `computed_tokens` counts padding; `largest_rows` x `largest_tokens` is the forward pass
    that needs most memory: rows and width where rows are padded, one sequence of that length where they are packed."""

    steps: int
    tokens: int
    computed_tokens: int
    passes: int
    largest_rows: int
    largest_tokens: int
    largest_members: Micro

    @property
    def padding(self) -> float:
        """Share of the computed tokens that is padding."""
        return 1 - self.tokens / max(self.computed_tokens, 1)


@dataclass(frozen=True, slots=True)
class _Epoch:
    """Row numbers in the order of one pass (N,), and where in it every step begins and ends."""

    order: NDArray[np.int64]
    bounds: list[tuple[int, int]]

    def rows(self, step: int) -> list[int]:
        first, last = self.bounds[step]
        return [int(row) for row in self.order[first:last]]


class Steps:
    """All optimiser steps of a run, found by number. `lengths` (N,) are the rows' tokens."""

    def __init__(self, lengths: Sequence[int], batching: Batching, epochs: float = 1.0, max_steps: int | None = None):
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batching = batching
        self._epoch = lru_cache(maxsize=2)(self._build)
        self._tokens = [0]
        self.starts: list[int] = []  # the number of the first step of every epoch
        self.count = 0
        while self.count < max_steps if max_steps is not None else len(self.starts) < epochs:
            share = 1.0 if max_steps is not None else min(1.0, epochs - len(self.starts))
            self.starts.append(self.count)
            self.count += math.ceil(round(len(self._epoch(len(self.starts) - 1).bounds) * share, 6))
        self.count = self.count if max_steps is None else max_steps

    def __len__(self) -> int:
        return self.count

    def rows(self, number: int) -> list[int]:
        """Row numbers of a step, from 0, in the order they were drawn."""
        epoch = self._epoch_of(number)
        return self._epoch(epoch).rows(number - self.starts[epoch])

    def step(self, number: int) -> Step:
        """The step of this number, from 0, cut into forward passes and dealt to ranks."""
        return Step(deal(cut(self.rows(number), self.lengths, self.batching), self.lengths, self.batching.ranks))

    def epochs_after(self, steps: int) -> float:
        """Passes over the rows done after so many steps."""
        epoch = self._epoch_of(max(steps - 1, 0))
        return epoch + (steps - self.starts[epoch]) / len(self._epoch(epoch).bounds)

    def tokens_after(self, steps: int) -> int:
        """Tokens of the first so many steps, padding left out."""
        while len(self._tokens) <= steps:
            self._tokens.append(self._tokens[-1] + int(self.lengths[self.rows(len(self._tokens) - 1)].sum()))
        return self._tokens[steps]

    def ends_epoch(self, steps: int) -> bool:
        """Is a pass over the rows complete after so many steps, or the run?"""
        return steps == self.count or steps in self.starts[1:]

    def counts(self) -> StepCounts:
        """Figures of the whole run, by its first epoch."""
        of_epoch = [cut(self._epoch(0).rows(i), self.lengths, self.batching) for i in range(len(self._epoch(0).bounds))]
        micros = [micro for step in of_epoch for micro in step]
        sizes = [_size(micro, self.lengths, self.batching.packed) for micro in micros]
        computed = sum(rows * width for rows, width in sizes)
        heaviest = max(range(len(micros)), key=lambda i: _cost(*sizes[i]), default=None)
        rows, width = (0, 0) if heaviest is None else sizes[heaviest]
        return StepCounts(
            steps=self.count, tokens=int(self.lengths.sum()), computed_tokens=computed, passes=len(micros), largest_rows=rows, largest_tokens=width,
            largest_members=() if heaviest is None else micros[heaviest],
        )  # fmt: skip

    def _epoch_of(self, number: int) -> int:
        return bisect_right(self.starts, number) - 1

    def _build(self, epoch: int) -> _Epoch:
        """One pass: order, steps, and in the first pass the step that needs most memory at the front."""
        chance = np.random.default_rng([self.batching.seed, epoch])
        order = chance.permutation(len(self.lengths))
        if self.batching.grouped:
            order = _by_length(order, self.lengths, self._rows_per_step() * GROUP_STEPS)
        bounds = self._bounds(order)
        if self.batching.grouped:
            bounds = [bounds[i] for i in chance.permutation(len(bounds))]
        if epoch == 0 and bounds:
            weights = [self._weight(self.lengths[order[a:b]]) for a, b in bounds]
            bounds.insert(0, bounds.pop(weights.index(max(weights))))
        return _Epoch(order, bounds)

    def _weight(self, lengths: NDArray[np.int64]) -> tuple[int, int]:
        """Orders steps by the memory of one pass over all their rows, the longest row second. A smaller `micro_tokens` cuts all of them to its own
        size, so that passes differ by less than a row; it must not decide the order."""
        longest, total = int(lengths.max()), int(lengths.sum())
        return (total if self.batching.packed else longest * len(lengths)), longest

    def _rows_per_step(self) -> int:
        if self.batching.records_per_step is not None:
            return self.batching.records_per_step
        return max(1, round(self.batching.tokens_per_step / max(float(self.lengths.mean()) if len(self.lengths) else 1.0, 1.0)))

    def _bounds(self, order: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Where steps begin and end in `order`: so many records, or as many as fit into tokens_per_step, at least one."""
        each = self.batching.records_per_step
        if each is not None:
            return [(a, min(a + each, len(order))) for a in range(0, len(order), each)]
        after = np.concatenate([[0], np.cumsum(self.lengths[order])])
        found, first = [], 0
        while first < len(order):
            last = max(first + 1, int(np.searchsorted(after, after[first] + self.batching.tokens_per_step, side="right")) - 1)
            found.append((first, last))
            first = last
        return found


def _by_length(order: NDArray[np.int64], lengths: NDArray[np.int64], window: int) -> NDArray[np.int64]:
    """`order`, each window of it sorted by length, longest first."""
    windows = [order[a : a + window] for a in range(0, len(order), window)]
    return np.concatenate([w[np.argsort(-lengths[w], kind="stable")] for w in windows]) if windows else order


def cut(rows: Sequence[int], lengths: NDArray[np.int64], batching: Batching) -> list[Micro]:
    """The rows of one step as forward passes of at most `micro_tokens`; with several ranks, as evenly sized as they can be dealt."""
    by_length = sorted(rows, key=lambda row: -lengths[row])
    made = _packed if batching.packed else _padded
    micros = made(by_length, lengths, batching.micro_tokens)
    if batching.ranks == 1:
        return micros
    wanted = math.ceil(len(micros) / batching.ranks) * batching.ranks
    low, high = 1, batching.micro_tokens  # the smallest bound that still needs no more passes than every rank makes anyway
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(made(by_length, lengths, middle)) <= wanted else (middle + 1, high)
    return made(by_length, lengths, low)


def _padded(by_length: Sequence[int], lengths: NDArray[np.int64], bound: int) -> list[Micro]:
    """Rows of near length side by side, each padded to the longest: rows x longest stays within `bound`."""
    micros, first = [], 0
    while first < len(by_length):
        count = max(1, bound // max(int(lengths[by_length[first]]), 1))
        micros.append(tuple(by_length[first : first + count]))
        first += count
    return micros


def _packed(by_length: Sequence[int], lengths: NDArray[np.int64], bound: int) -> list[Micro]:
    """Best-fit decreasing: each row into the sequence that it fills most (Johnson 1973), a new one where none has room."""
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, pack), sorted
    for row in by_length:
        need = int(lengths[row])
        at = bisect_left(room, (need, -1))
        left, pack = room.pop(at) if at < len(room) else (max(bound, need), len(packs))
        if pack == len(packs):
            packs.append([])
        packs[pack].append(row)
        insort(room, (left - need, pack))
    return [tuple(pack) for pack in packs]


def deal(micros: Sequence[Micro], lengths: NDArray[np.int64], ranks: int) -> tuple[tuple[Micro, ...], ...]:
    """Forward passes to ranks: the heaviest first, each to the rank with least to do, equally many for all; fillers make up the number."""
    if ranks == 1:
        return (tuple(micros),)
    each = math.ceil(len(micros) / ranks)
    shares: list[list[Micro]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for micro in sorted(micros, key=lambda m: -int(sum(lengths[r] for r in m))):
        rank = min((r for r in range(ranks) if len(shares[r]) < each), key=lambda r: (loads[r], r))
        shares[rank].append(micro)
        loads[rank] += int(sum(lengths[r] for r in micro))
    return tuple(tuple(share + [()] * (each - len(share))) for share in shares)


def _size(micro: Micro, lengths: NDArray[np.int64], packed: bool) -> tuple[int, int]:
    """(rows, width) of what is computed: packed rows are one sequence."""
    widths = [int(lengths[row]) for row in micro]
    return (1, sum(widths)) if packed else (len(widths), max(widths))


def _cost(rows: int, width: int) -> tuple[int, int]:
    """What orders forward passes by the memory they need: tokens computed, then the width of attention."""
    return rows * width, width
