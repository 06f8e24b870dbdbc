"""Rows as tensors: what one rank computes in one optimiser step, padded or packed.

It changes no row: the tests rebuild every row from these tensors, and the trainer counts tokens and loss tokens against the rows it was given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from tuner.plan.steps import Micro, Steps
from tuner.template.tokens import IGNORED, Row


@dataclass(frozen=True)
class StepTensors:
    """One rank's part of an optimiser step. `loss_tokens` counts those of all ranks, `row_tokens` this rank's tokens without padding."""

    number: int
    micros: list[dict[str, Any]]
    loss_tokens: int
    row_tokens: int


@dataclass(frozen=True)
class Collator:
    """Rows of one forward pass to tensors. A filler, which has no rows, becomes one pad token without a label."""

    pad_id: int
    packed: bool

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        if not rows:
            rows = [_Filler(self.pad_id)]  # type: ignore[list-item]
        return self._pack(rows) if self.packed else self._pad(rows)

    def _pad(self, rows: Sequence[Row]) -> dict[str, Any]:
        """input_ids, labels, attention_mask (B, T): padded on the right to the longest."""
        longest = max(len(r.input_ids) for r in rows)
        lengths = torch.tensor([len(r.input_ids) for r in rows])
        return {
            "input_ids": torch.tensor([list(r.input_ids) + [self.pad_id] * (longest - len(r.input_ids)) for r in rows]),
            "labels": torch.tensor([list(r.labels) + [IGNORED] * (longest - len(r.labels)) for r in rows]),
            "attention_mask": (torch.arange(longest)[None, :] < lengths[:, None]).long(),
        }

    def _pack(self, rows: Sequence[Row]) -> dict[str, Any]:
        """input_ids, labels, position_ids (1, T), and where rows begin. A row's first token is predicted by nothing: its label is ignored."""
        lengths = torch.tensor([len(r.input_ids) for r in rows])
        starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        labels = torch.tensor([label for r in rows for label in r.labels])
        labels[starts[:-1]] = IGNORED
        edges, longest = starts.to(torch.int32), int(lengths.max())
        return {
            "input_ids": torch.tensor([[token for r in rows for token in r.input_ids]]),
            "labels": labels[None, :],
            "position_ids": torch.cat([torch.arange(int(n)) for n in lengths])[None, :],
            "cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": longest, "max_length_k": longest,
        }  # fmt: skip


class _Filler:
    """A row of one pad token that carries no loss: what a rank computes when it has nothing left to do in a step."""

    def __init__(self, pad_id: int):
        self.input_ids, self.labels = [pad_id], [IGNORED]


def loss_tokens(row: Row) -> int:
    """Labelled tokens that something predicts: all but the first of the row."""
    return sum(label != IGNORED for label in row.labels[1:])


class StepRows(Dataset):  # type: ignore[type-arg]
    """The optimiser steps of a run as a map-style dataset: item n is this rank's part of step n, made when asked for."""

    def __init__(self, rows: Sequence[Row], steps: Steps, collator: Collator, rank: int):
        self.rows, self.steps, self.collator, self.rank = rows, steps, collator, rank

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, number: int) -> StepTensors:
        step = self.steps.step(number)
        own = step.ranks[self.rank]
        return StepTensors(
            number, [self.collator([self.rows[i] for i in micro]) for micro in own],
            sum(loss_tokens(self.rows[i]) for i in step.rows), sum(len(self.rows[i].input_ids) for micro in own for i in micro),
        )  # fmt: skip

    def loader(self) -> DataLoader[StepTensors]:
        """One item a time, in order, under the key `step`: Trainer looks for keys in what a loader gives."""
        return DataLoader(self, batch_size=1, shuffle=False, collate_fn=_only)


def _only(items: list[StepTensors]) -> dict[str, StepTensors]:
    return {"step": items[0]}


def passes_of(rows: Sequence[Row], micros: Sequence[Micro], collator: Collator) -> Iterator[dict[str, Any]]:
    """The tensors of forward passes over `rows`."""
    for micro in micros:
        yield collator([rows[i] for i in micro])
