"""Records whose label the rest of the data would not give: a softmax regression that has never seen the record is sure of another one.

It refuses to judge what it cannot learn: labels with fewer than 10 records, sets with more than 500 labels, and confident
predictions that the data's own labels do not bear out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from tuner.data.embedding import Indices, Mask, Vectors, centred_on_mean

FOLDS = 5
L2 = 1e-4  # half the squared norm of the weights times this is added to the mean loss (nats)
MIN_RECORDS = 10  # of a label, or its records are not judged
MAX_LABELS = 500
MAX_FITTED = 40_000  # records one fold is fitted to, evenly over the labels; so above 50,000 records not all teach, but all are judged
SURE = 0.02  # a record is suspect where the given label has less than this part of the probability of the best one
AGREEMENT = 0.7  # ... and at least this share of the records predicted alike carry the predicted label
ALIKE = 50  # records with the same prediction and the nearest probability
MAX_ROUNDS = 100  # of L-BFGS; 27 to 60 were needed
_BLOCK = 8192


@dataclass(frozen=True)
class LabelSuspects:
    """What out-of-fold prediction says of N records: one that it was not fitted to is predicted by four fifths of the others.

    `given` (N,) is the probability of the record's own label, NaN where it is not judged: sort by it to review by rank.
    `rows` (S,) are the suspects, most certain first, `predicted` their better labels, `agreement` (S,) the share of records predicted
    alike that carry that label. `accuracy` is the share of judged records whose label is the predicted one.
    """

    given: Vectors
    rows: Indices
    predicted: tuple[str, ...]
    agreement: Vectors
    accuracy: float

    @property
    def judged(self) -> int:
        return int((~np.isnan(self.given)).sum())

    @property
    def precision(self) -> float:
        """Share of the suspects that is expected to be labelled wrongly: their mean agreement. NaN without suspects.

        It holds if the model is as right about suspects as about other records it is equally sure of. Noise lowers it, so it errs low.
        """
        return float(self.agreement.mean()) if len(self.rows) else float("nan")


def suspects(vectors: Vectors, labels: Sequence[str], seed: int) -> LabelSuspects | None:
    """Suspects among records with raw vectors (N, 256) and N labels; None where fewer than 2 or more than 500 labels can be judged.

    Vectors are only centred on their mean: between two labels the first principal component, which `centred` drops, is the difference.
    The ranking is Northcutt 2019 (arXiv 1911.00068), self-confidence; the cut is ours, and stricter than confident learning (0.5 % of clean
    CLINC150). Measured 2026-11-20 on one core, CLINC150 (150 labels, 15,000 records, 5 s): with 5 % random labels AUC .999, 87 % of them
    are suspects, and 99 % of the suspects were planted; of the untouched records 10 (.07 %) are, 8 of them wrong by eye. Multidogo, Dolly
    categories as published: 0.9 to 1.0 %, most of them wrong by eye. Labels mistaken for the likeliest other one: 8 % are found.
    """
    names = sorted(set(labels))
    place = {name: code for code, name in enumerate(names)}
    codes = np.fromiter((place[label] for label in labels), np.int64, len(labels))
    enough = np.bincount(codes, minlength=len(names)) >= MIN_RECORDS
    if not 2 <= int(enough.sum()) <= MAX_LABELS:
        return None
    judged = np.flatnonzero(enough[codes])
    kept = [name for name, is_enough in zip(names, enough, strict=True) if is_enough]
    own = (np.cumsum(enough) - 1)[codes[judged]]
    given, best, predicted = _out_of_fold(centred_on_mean(vectors[judged]), own, len(kept), seed)
    agreement = _agreement(predicted, best, own)
    suspect = np.flatnonzero((predicted != own) & (given < SURE * best) & (agreement >= AGREEMENT))
    suspect = suspect[np.argsort(given[suspect] / best[suspect], kind="stable")]
    of_all = np.full(len(vectors), np.nan, np.float32)
    of_all[judged] = given
    return LabelSuspects(of_all, judged[suspect], tuple(kept[code] for code in predicted[suspect]), agreement[suspect], float((predicted == own).mean()))


def fit_softmax(vectors: Vectors, labels: Indices, n_labels: int) -> tuple[Vectors, Vectors]:
    """Weights (d, K) and free biases (K,) with the least mean cross-entropy (nats) + L2/2 |weights|^2, for labels (N,) in 0..K-1. L-BFGS from zero."""
    n, d = vectors.shape
    rows = np.arange(n)

    def loss(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        weights = flat.reshape(d + 1, n_labels).astype(np.float32)
        scores = _scores(vectors, weights[:-1], weights[-1])
        own = scores[rows, labels]
        np.exp(scores, out=scores)
        total = scores.sum(axis=1)
        mean_loss = float(np.mean(np.log(total) - own, dtype=np.float64))
        scores /= total[:, None] * n
        scores[rows, labels] -= 1 / n
        slope = np.vstack([vectors.T @ scores + L2 * weights[:-1], scores.sum(axis=0)])
        return mean_loss + L2 / 2 * float(np.square(weights[:-1], dtype=np.float64).sum()), slope.ravel().astype(np.float64)

    found = minimize(loss, np.zeros((d + 1) * n_labels), jac=True, method="L-BFGS-B", options={"maxiter": MAX_ROUNDS})
    weights = found.x.reshape(d + 1, n_labels).astype(np.float32)
    return weights[:-1], weights[-1]


def _scores(vectors: Vectors, weights: Vectors, biases: Vectors) -> Vectors:
    """Logits (N, K) less the row's highest, so that their exponentials do not overflow."""
    scores: Vectors = vectors @ weights + biases
    scores -= scores.max(axis=1, keepdims=True)
    return scores


def _out_of_fold(vectors: Vectors, labels: Indices, n_labels: int, seed: int) -> tuple[Vectors, Vectors, Indices]:
    """Probability of the given label, of the likeliest one, and which that is, (N,) each, from a fit without the record's fold."""
    chance = np.random.default_rng(seed)
    place = _place_in_label(labels, chance)
    fold = place % FOLDS
    given, best, predicted = np.empty(len(labels), np.float32), np.empty(len(labels), np.float32), np.empty(len(labels), np.int64)
    for left_out in range(FOLDS):
        weights, biases = fit_softmax(*_at_most(vectors, labels, place, fold != left_out), n_labels)
        asked = np.flatnonzero(fold == left_out)
        for start in range(0, len(asked), _BLOCK):
            rows = asked[start : start + _BLOCK]
            scores = np.exp(_scores(vectors[rows], weights, biases))
            scores /= scores.sum(axis=1, keepdims=True)
            given[rows], best[rows], predicted[rows] = scores[np.arange(len(rows)), labels[rows]], scores.max(axis=1), scores.argmax(axis=1)
    return given, best, predicted


def _place_in_label(labels: Indices, chance: np.random.Generator) -> Indices:
    """A random place 0, 1, 2 ... of each record among those of its label: folds cut by it are stratified."""
    place = np.empty(len(labels), np.int64)
    shuffled = chance.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    starts = np.searchsorted(labels[order], labels[order])
    place[order] = np.arange(len(labels)) - starts
    return place


def _at_most(vectors: Vectors, labels: Indices, place: Indices, allowed: Mask) -> tuple[Vectors, Indices]:
    """The allowed records; where they are too many, the first of every label, as many of each as fit, so that rare labels stay whole."""
    rows = np.flatnonzero(allowed)
    if len(rows) > MAX_FITTED:
        rows = np.sort(rows[np.argsort(place[rows], kind="stable")[:MAX_FITTED]])
    return vectors[rows], labels[rows]


def _agreement(predicted: Indices, best: Vectors, labels: Indices) -> Vectors:
    """Of the 50 records with the same prediction and the nearest probability, the share whose label it is (N,)."""
    agreement = np.empty(len(labels), np.float32)
    for label in np.unique(predicted):
        rows = np.flatnonzero(predicted == label)
        rows = rows[np.argsort(-best[rows], kind="stable")]
        agrees = np.concatenate([[0], np.cumsum(labels[rows] == label)])
        start = np.clip(np.arange(len(rows)) - ALIKE // 2, 0, max(0, len(rows) - ALIKE))
        end = np.minimum(start + ALIKE, len(rows))
        agreement[rows] = (agrees[end] - agrees[start]) / (end - start)
    return agreement
