"""What a metric is: an answer becomes a few numbers, and a suite's value is a function of their totals.

So a resample of items is a weighted sum, every metric gets its interval the same way, and anyone can re-compute it from
answers.jsonl. It refuses nothing; what a single metric cannot grade says its `applies`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tuner.evaluate.result import MetricFacts

Sums = NDArray[np.float64]
Of = Literal["text", "loss", "labels", "context_loss"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one contender said to one item, and what is known of the item.

    `nats`, `tokens` and `bytes` are those of the references, summed over them. `label_nats` is the log-likelihood (≤ 0) of each label as the whole
    answer. `context` is what was retrieved for the item, `question` what was asked without it, `nats_without_context` the references' when it is left out.
    """

    references: tuple[str, ...]
    text: str | None = None
    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0
    label_nats: Mapping[str, float] | None = None
    question: str | None = None
    context: str | None = None
    nats_without_context: float | None = None


def always(answer: Answer) -> bool:
    """Every item can be graded."""
    return True


@dataclass(frozen=True)
class Metric:
    """One row of the catalogue.

    `parts(answers)` gives (n, k) numbers; `combine` maps their sums (..., k) to values (...). `of` says what of an answer it needs: its text, the loss
    of the references, the likelihoods of the labels, or the loss with and without context. A `binary` metric is a share of items. `best` is the value of
    a perfect answer. `form` names how the value follows from rows, see FORMS. `applies` says whether an item can be graded at all; it looks at the item
    alone, never at what was said, so it is the same for every contender; the numbers of an item it cannot grade are all 0. A `neutral` metric describes:
    neither more nor less of it is better.
    """

    what: str
    parts: Callable[[Sequence[Answer]], Sums]
    combine: Callable[[Sums], Sums]
    of: Of = "text"
    higher_is_better: bool = True
    binary: bool = False
    best: float = 1.0
    form: str = "mean"
    signature: Callable[[], str] | None = None
    applies: Callable[[Answer], bool] = always
    neutral: bool = False

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Least and largest value; None where neither is known."""
        if self.neutral:
            return 0.0, math.inf
        if self.higher_is_better:
            return (0.0, 1.0) if self.best == 1.0 else None
        return self.best, math.inf

    def facts(self) -> MetricFacts:
        """The metric as scores.json keeps it; the signature of the library or model that computes it belongs to what it is."""
        what = self.what if self.signature is None else f"{self.what} [{self.signature()}]"
        return MetricFacts(what, self.higher_is_better, self.form)


@dataclass(frozen=True)
class Form:
    """What answers.jsonl keeps of one item's numbers: its `score` alone, and the `parts` the value is computed from; None where there is none."""

    value: str
    score: Callable[[list[float]], float | None]
    parts: Callable[[list[float]], list[float] | None]


def mean(sums: Sums) -> Sums:
    """Sum of scores / number of items; the last column counts items."""
    return ratio(sums)


def ratio(sums: Sums) -> Sums:
    """First column / second column, 0 where there is nothing to divide by."""
    return _divided(sums, 0.0)


def ratio_or_one(sums: Sums) -> Sums:
    """First column / second column, 1 where nothing was wanted and nothing said."""
    return _divided(sums, 1.0)


def _divided(sums: Sums, empty: float) -> Sums:
    over = sums[..., 1]
    return np.where(over > 0, sums[..., 0] / np.where(over > 0, over, 1.0), empty)


def only(applies: Callable[[Answer], bool], parts: Callable[[Sequence[Answer]], Sums]) -> Callable[[Sequence[Answer]], Sums]:
    """The same parts, all 0 for items that cannot be graded: they add nothing to a sum, and nothing to its n."""

    def spread(answers: Sequence[Answer]) -> Sums:
        fit = np.array([applies(a) for a in answers], dtype=bool)
        found = parts([a for a, f in zip(answers, fit, strict=True) if f])
        whole = np.zeros((len(answers), found.shape[1]))
        whole[fit] = found
        return whole

    return spread


def per_item(score: Callable[[Answer], float]) -> Callable[[Sequence[Answer]], Sums]:
    """The parts of a mean: each item's score, and 1."""
    return lambda answers: np.array([[score(a), 1.0] for a in answers], dtype=np.float64).reshape(-1, 2)


def per_pair(pair: Callable[[Answer], tuple[float, float]]) -> Callable[[Sequence[Answer]], Sums]:
    """The parts of a ratio: each item's numerator and denominator."""
    return lambda answers: np.array([pair(a) for a in answers], dtype=np.float64).reshape(-1, 2)


def occupied_bins(numbers: list[float]) -> list[float] | None:
    """[bin, confidence, correct] from an item's (bins · 3) numbers, of which one bin's are set."""
    found = next((i for i in range(2, len(numbers), 3) if numbers[i] > 0), None)
    return None if found is None else [float(found // 3), numbers[found - 2], numbers[found - 1]]


def _first_over_second(numbers: list[float]) -> float | None:
    return numbers[0] / numbers[1] if numbers[1] > 0 else None


def _exponential(numbers: list[float]) -> float | None:
    return math.exp(min(numbers[0] / numbers[1], 700.0)) if numbers[1] > 0 else None


def _none(numbers: list[float]) -> None:
    return None


def _list(numbers: list[float]) -> list[float]:
    return list(numbers)


FORMS: dict[str, Form] = {
    "mean": Form("mean of scores", _first_over_second, _none),
    "ratio": Form("sum of parts[0] / sum of parts[1]", _first_over_second, _list),
    "perplexity": Form("exp(sum of parts[0] / sum of parts[1])", _exponential, _list),
    "macro_f1": Form("from answers and references: mean over labels of 2tp / (2tp + fp + fn)", _none, _none),
    "bleu": Form("from sums of parts [said length, reference length, matches 1-4, n-grams 1-4], Papineni et al. 2002", _none, _list),
    "ece": Form("sum over bins parts[0] of |sum(parts[1]) - sum(parts[2])| / items", _none, occupied_bins),
}
