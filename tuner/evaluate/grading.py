"""From what was said to what it is worth: values with intervals, paired differences against the best of the base's ways, and the rows of answers.jsonl.

The baseline is chosen per metric on the very items it is compared on, which favours the base: a gain that remains is not a format effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuner.evaluate.contenders import Said
from tuner.evaluate.intervals import Difference, Estimate, difference, estimate
from tuner.evaluate.metrics import Metric, row_parts, row_score
from tuner.evaluate.result import ADAPTER, Result
from tuner.evaluate.suites import Suite


@dataclass(frozen=True)
class Parts:
    """One contender's numbers of one metric: `numbers` (m, k) of the items at `places`, those that the metric applies to."""

    places: tuple[int, ...]
    numbers: Any


def graded(suite: Suite, said: Mapping[str, Said], metrics: Mapping[str, Metric], resamples: int, seed: int) -> Result:
    """A suite's result: every metric of every contender that has it."""
    parts = {name: parts_of(one, metrics) for name, one in said.items()}
    values = {c: {m: valued(suite, p, metrics[m], resamples, seed) for m, p in of.items()} for c, of in parts.items()}
    differences = {}
    for name, metric in metrics.items():
        baseline = best_of_base(values, name, metric.higher_is_better)
        if baseline is not None and name in parts.get(ADAPTER, {}) and not metric.neutral:
            differences[name] = paired(suite, parts[ADAPTER][name], parts[baseline][name], metric, baseline, resamples, seed)
    found = {name: m.facts() for name, m in metrics.items() if any(name in of for of in parts.values())}
    return Result(suite.name, suite.role, len(suite.items), suite.digest, found, values, differences, dict(suite.facts), answer_rows(suite, said, parts))


def valued(suite: Suite, parts: Parts, metric: Metric, resamples: int, seed: int) -> Estimate:
    """A contender's value with its interval."""
    return estimate(parts.numbers, metric.combine, metric.binary, resamples, seed, groups=sources(suite, parts), bounds=metric.bounds)


def paired(suite: Suite, ours: Parts, theirs: Parts, metric: Metric, baseline: str, resamples: int, seed: int) -> Difference:
    """The adapter's numbers against a baseline's, item by item."""
    return difference(
        ours.numbers, theirs.numbers, metric.combine, binary=metric.binary, higher_is_better=metric.higher_is_better, baseline=baseline,
        resamples=resamples, seed=seed, groups=sources(suite, ours), bounds=metric.bounds,
    )  # fmt: skip


def sources(suite: Suite, parts: Parts) -> list[str] | None:
    """The source of each item that has numbers; one without a group is its own. None where no item has a group."""
    found = [suite.items[at].group for at in parts.places]
    return [g if g is not None else f"item {at}" for g, at in zip(found, parts.places, strict=True)] if any(g is not None for g in found) else None


def parts_of(said: Said, metrics: Mapping[str, Metric]) -> dict[str, Parts]:
    """The numbers of each metric; metrics that this contender's answers, or these items, cannot have are left out."""
    found = {}
    for name, metric in metrics.items():
        places = tuple(i for i, answer in enumerate(said.answers) if metric.applies(answer)) if metric.of in said.has else ()
        if places:
            found[name] = Parts(places, metric.parts([said.answers[i] for i in places]))
    return found


def best_of_base(values: Mapping[str, Mapping[str, Estimate]], metric: str, higher_is_better: bool) -> str | None:
    """The contender of the base with the best value; None when none has the metric."""
    ways = [c for c in values if c != ADAPTER and metric in values[c]]
    sign = 1 if higher_is_better else -1
    return max(ways, key=lambda c: sign * values[c][metric].value, default=None)


def answer_rows(suite: Suite, said: Mapping[str, Said], parts: Mapping[str, Mapping[str, Parts]]) -> list[dict[str, Any]]:
    """One row an answer, with the numbers each metric is computed from."""
    rows = []
    for contender, one in said.items():
        at = {name: dict(zip(p.places, np.asarray(p.numbers).tolist(), strict=True)) for name, p in parts[contender].items()}
        for index, (item, answer) in enumerate(zip(suite.items, one.answers, strict=True)):
            numbers = {name: of[index] for name, of in at.items() if index in of}
            kept = {name: row_parts(name, n) for name, n in numbers.items()}
            rows.append({
                "suite": suite.name, "item": index, "where": item.where, "contender": contender,
                "question": [m.as_dict() for m in item.messages], "reference": item.references[0] if item.references else None,
                "references": list(item.references), "answer": answer.text,
                "scores": {name: row_score(name, n) for name, n in numbers.items()},
                "parts": {name: p for name, p in kept.items() if p is not None},
                **({"traits": dict(item.traits)} if item.traits else {}),
                **({"group": item.group} if item.group is not None else {}),
            })  # fmt: skip
    return rows
