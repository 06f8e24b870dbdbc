"""A sheet: items, a row for each contender of each, and the values that follow from the rows' scores.

For suites whose items are of several groups and carry different scores. It refuses to hold a value that is not in the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tuner.evaluate.intervals import Difference, Estimate, difference, estimate
from tuner.evaluate.membership import auc, tpr_at_fpr
from tuner.evaluate.metric_types import mean
from tuner.evaluate.result import ADAPTER, MetricFacts, Result, Role
from tuner.fingerprint import digest_json

BASE = "base"


@dataclass
class Sheet:
    """Rows of scores that the measures fill in; every value is then taken from the rows, as a reader would."""

    name: str
    role: Role
    resamples: int
    seed: int
    items: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[tuple[int, str], dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, MetricFacts] = field(default_factory=dict)
    values: dict[str, dict[str, Estimate]] = field(default_factory=lambda: {BASE: {}, ADAPTER: {}})
    differences: dict[str, Difference] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    invalid: list[dict[str, str]] = field(default_factory=list)
    not_measured: list[dict[str, str]] = field(default_factory=list)
    flags: list[dict[str, str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def item(self, identity: object, group: str, where: str, reference: str, **more: Any) -> int:
        """A new item with a row for each contender."""
        index = len(self.items)
        self.items.append({"identity": identity, "group": group})
        for contender in (ADAPTER, BASE):
            self.rows[index, contender] = {"suite": self.name, "item": index, "contender": contender, "group": group, "where": where, "reference": reference,
                                           "answer": "", "scores": {}, "parts": {}, **more}  # fmt: skip
        return index

    def score(self, item: int, contender: str, metric: str, value: float) -> None:
        self.rows[item, contender]["scores"][metric] = float(value)

    def scores(self, contender: str, metric: str, group: str | None = None) -> list[float]:
        rows = (self.rows[i, contender] for i in range(len(self.items)))
        return [r["scores"][metric] for r in rows if metric in r["scores"] and group in (None, r["group"])]

    def share(self, metric: str, what: str) -> None:
        """A share of items, for each contender that has it; paired difference where both have."""
        self._mean(metric, what, binary=True)

    def mean(self, metric: str, what: str, largest: float) -> None:
        """A mean of scores from 0 to `largest`, likewise."""
        self._mean(metric, what, binary=False, largest=largest)

    def _mean(self, metric: str, what: str, binary: bool, largest: float = 1.0) -> None:
        self.metrics[metric] = MetricFacts(what, higher_is_better=False)
        parts = {c: np.array([[s, 1.0] for s in found]) for c in (BASE, ADAPTER) if (found := self.scores(c, metric))}
        for contender, numbers in parts.items():
            self.values[contender][metric] = estimate(numbers, mean, binary, self.resamples, self.seed, bounds=(0.0, largest))
        if len(parts) == 2:
            self.differences[metric] = difference(parts[ADAPTER], parts[BASE], mean, binary=binary, higher_is_better=False, baseline=BASE,
                                                  resamples=self.resamples, seed=self.seed, bounds=(0.0, largest))  # fmt: skip

    def auc(self, metric: str, contender: str, first: str, second: str, what: str) -> Estimate:
        """The chance that a row of group `first` scores above one of `second`."""
        self.metrics[metric] = MetricFacts(f"{what}: the chance that a {first} row's score is above a {second} row's, ties counting half", False, "auc")
        self.values[contender][metric] = found = auc(self.scores(contender, metric, first), self.scores(contender, metric, second))
        return found

    def true_positives(self, metric: str, first: str, second: str, what: str) -> Estimate:
        """The share of the adapter's rows of group `first` that score above what 1 % of group `second` exceed."""
        self.metrics[metric] = MetricFacts(f"{what}: share of {first} rows above the score that at most 1 % of {second} rows exceed", False, "tpr_at_fpr")
        groups = self.scores(ADAPTER, metric, first), self.scores(ADAPTER, metric, second)
        self.values[ADAPTER][metric] = found = tpr_at_fpr(*groups, self.resamples, self.seed)
        return found

    def flag(self, code: str, metric: str, words: str) -> None:
        self.flags.append({"code": code, "metric": metric, "words": words})

    def skip(self, measure: str, words: str) -> None:
        self.not_measured.append({"measure": measure, "words": words})

    def result(self, facts: Mapping[str, Any]) -> Result:
        rows = [row for row in self.rows.values() if row["scores"]]
        table = [{"measure": metric, "contender": contender, **of[metric].as_dict(), "what": self.metrics[metric].what}
                 for metric in self.metrics for contender, of in self.values.items() if metric in of]  # fmt: skip
        whole = {**facts, **self.facts, "table": table, "flags": self.flags, "invalid": self.invalid, "not_measured": self.not_measured, "words": self._words()}
        values = {c: of for c, of in self.values.items() if of}
        return Result(self.name, self.role, len(self.items), digest_json(self.items), self.metrics, values, self.differences, whole, rows)

    def _words(self) -> str:
        """What was tried and how often it worked. What was not tried is said too."""
        missing = [f"not measured: {n['measure']} ({n['words']})" for n in self.not_measured]
        return ". ".join(s[0].upper() + s[1:] for s in [*self.said, *missing]) + "."
