"""Metrics of one label an answer: macro-F1, the confusion table, and how far the likelihoods of labels can be trusted.

A calibration error is never shown without its null: of a perfectly calibrated model, a small suite reads far from 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuner.data.record import normalised
from tuner.evaluate.metric_types import Answer, Sums

BINS = 10


def label_parts(answers: Sequence[Answer]) -> Sums:
    """For each label that occurs among the references: true positives, false positives, false negatives, occurrences."""
    labels = sorted({normalised(a.references[0]) for a in answers})
    column = {label: i for i, label in enumerate(labels)}
    parts = np.zeros((len(answers), 4 * len(labels)))
    for row, answer in enumerate(answers):
        wanted, said = column[normalised(answer.references[0])], column.get(normalised(answer.text or ""))
        parts[row, 4 * wanted + 3] = 1
        parts[row, 4 * wanted + (0 if said == wanted else 2)] = 1
        if said is not None and said != wanted:
            parts[row, 4 * said + 1] = 1
    return parts


def macro_f1(sums: Sums) -> Sums:
    """Mean over labels of 2tp / (2tp + fp + fn), over the labels whose references occur in the (re)sample."""
    by_label = sums.reshape(*sums.shape[:-1], -1, 4)
    tp, fp, fn, count = (by_label[..., i] for i in range(4))
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(count > 0, 2 * tp / (2 * tp + fp + fn), np.nan)
    return np.asarray(np.nanmean(f1, axis=-1))


@dataclass(frozen=True)
class Confusion:
    """`counts[i][j]`: items of label i that were answered with label j; `elsewhere[i]`: answered with what is no label of the references."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    elsewhere: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"labels": list(self.labels), "counts": [list(row) for row in self.counts], "elsewhere": list(self.elsewhere)}


def confusion(answers: Sequence[Answer]) -> Confusion:
    """Who was taken for whom: labels as the references write them first, compared as exact_match compares; the first reference counts."""
    shown: dict[str, str] = {}
    for answer in answers:
        shown.setdefault(normalised(answer.references[0]), answer.references[0])
    order = {label: i for i, label in enumerate(sorted(shown))}
    counts = np.zeros((len(order), len(order) + 1), dtype=np.int64)
    for answer in answers:
        counts[order[normalised(answer.references[0])], order.get(normalised(answer.text or ""), len(order))] += 1
    table = counts.tolist()
    return Confusion(tuple(shown[label] for label in order), tuple(tuple(row[:-1]) for row in table), tuple(row[-1] for row in table))


# --- calibration -----------------------------------------------------------------------------------------------------


def has_label_nats(answer: Answer) -> bool:
    """Can the item be graded: were its labels' likelihoods asked for?"""
    return bool(answer.label_nats)


def probabilities(label_nats: Mapping[str, float]) -> dict[str, float]:
    """Softmax of the labels' log-likelihoods: their probabilities given that the answer is one of them. Labels as exact_match compares them."""
    top = max(label_nats.values())
    odds = {label: math.exp(nats - top) for label, nats in label_nats.items()}
    total = sum(odds.values())
    share: dict[str, float] = {}
    for label, odd in odds.items():
        share[normalised(label)] = share.get(normalised(label), 0.0) + odd / total
    return share


def confidence(answer: Answer) -> tuple[float, float]:
    """The likeliest label's probability, and 1 if it is right."""
    share = probabilities(answer.label_nats or {"": 0.0})
    label = max(share, key=lambda name: share[name])
    return share[label], float(label in {normalised(r) for r in answer.references})


def brier(answer: Answer) -> float:
    """Σ over labels of (probability - whether it is the one)², 0 to 2 (Brier 1950, eq. 2).

    A reference that is none of the labels adds the 1 its probability 0 is wrong by; of several references, the likeliest is the one.
    """
    share = probabilities(answer.label_nats or {"": 0.0})
    wanted = max((normalised(r) for r in answer.references), key=lambda label: share.get(label, 0.0))
    return sum((p - (label == wanted)) ** 2 for label, p in share.items()) + float(wanted not in share)


def bin_parts(answers: Sequence[Answer]) -> Sums:
    """For each of 10 bins of equal mass: summed confidence, how many right, how many; an item stands in one bin.

    Bins are cut on the whole suite, once for each contender, so a resample is a weighted sum.
    """
    found = np.array([confidence(a) for a in answers], dtype=np.float64).reshape(-1, 2)
    parts = np.zeros((len(found), BINS, 3))
    where = _equal_mass(found[:, 0])
    parts[np.arange(len(found)), where] = np.column_stack([found, np.ones(len(found))])
    return parts.reshape(len(found), 3 * BINS)


def _equal_mass(confidences: Any) -> Any:
    """The bin of each item: ranks cut into 10 runs of the same length, give or take one; equal confidences keep the order of items."""
    rank = np.empty(len(confidences), dtype=np.int64)
    rank[np.argsort(confidences, kind="stable")] = np.arange(len(confidences))
    return rank * BINS // max(len(confidences), 1)


def ece(sums: Sums) -> Sums:
    """Σ_b n_b/n · |accuracy_b - confidence_b| (Guo et al. 2017, arXiv 1706.04599, eq. 3)."""
    by_bin = sums.reshape(*sums.shape[:-1], BINS, 3)
    gap = np.abs(by_bin[..., 0] - by_bin[..., 1]).sum(axis=-1)
    return np.asarray(gap / np.maximum(by_bin[..., 2].sum(axis=-1), 1))


def ece_null(answers: Sequence[Answer], seed: int, resamples: int = 2000) -> tuple[float, float]:
    """Mean and 95th percentile of the error that these confidences would show if they were exact: right ~ Bernoulli(confidence) (Bröcker and Smith 2007)."""
    parts = bin_parts(answers).reshape(len(answers), BINS, 3)
    shares = parts[..., 0].sum(axis=1)
    where = parts[..., 2]
    drawn = np.random.default_rng([seed, 2]).random((resamples, len(answers))) < shares
    gaps = np.abs((drawn - shares) @ where).sum(axis=-1) / max(len(answers), 1)
    return float(gaps.mean()), float(np.percentile(gaps, 95))


def calibration(answers: Sequence[Answer], seed: int) -> dict[str, Any]:
    """The calibration error beside its null, the Brier score and the bins, for the report; `beyond_chance` only above the null's 95th percentile."""
    parts = bin_parts(answers)
    found = float(ece(parts.sum(axis=0)))
    null_mean, null_95 = ece_null(answers, seed)
    sums = parts.sum(axis=0).reshape(BINS, 3)
    bins = [{"n": int(n), "confidence": c / n, "accuracy": right / n} for c, right, n in sums.tolist() if n]
    return {
        "n": len(answers), "ece": found, "null_mean": null_mean, "null_95": null_95, "beyond_chance": found > null_95,
        "brier": float(np.mean([brier(a) for a in answers])), "bins": bins,
        "method": f"{BINS} bins of equal mass, null of 2000 resamples, seed {seed}",
    }  # fmt: skip
