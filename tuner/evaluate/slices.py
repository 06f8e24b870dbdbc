"""Slices: the same paired comparison on parts of a suite, worst first, corrected for how many parts were looked at.

It refuses to slice by a column that no item has; slices of too few items are counted, not tabled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tuner.catalog import suggestion
from tuner.errors import refuse
from tuner.evaluate.intervals import LEVEL, Groups, Numbers, difference, estimate, sources
from tuner.evaluate.metrics import Metric
from tuner.evaluate.multiplicity import holm
from tuner.evaluate.suites import Item

FEWEST_VALUES, MOST_VALUES = 2, 20
MOST_LABELS = 200
Column = list[str | None]  # one value an item, None where it has none


def slices(
    items: Sequence[Item], ours: Numbers, theirs: Numbers, metric: Metric, *,
    suite: str, name: str, baseline: str, asked: Sequence[str] | None, smallest: int, resamples: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """`ours` and `theirs` are the metric's parts (n, k) of adapter and baseline, item by item.

    Items of one source are drawn together, as in the suite.
    A slice's interval is its own; its verdict uses p after Holm's correction over all slices of at least `smallest` items, whatever their field.
    """
    rows, too_few, groups = [], 0, sources([item.group for item in items])
    for field, value, chosen in _groups(slice_fields(items, asked)):
        if len(chosen) < smallest:
            too_few += 1
            continue
        own = None if groups is None else [groups[i] for i in chosen]
        rows.append({"field": field, "value": value, **_row(ours[chosen], theirs[chosen], metric, baseline, own, resamples, seed)})
    _correct(rows)
    sign = 1.0 if metric.higher_is_better else -1.0
    rows.sort(key=lambda r: (sign * r["difference"]["value"], sign * r["adapter"]["value"], r["field"], r["value"]))
    corrected = f"Holm 1979 over {len(rows)} slices"
    return {"suite": suite, "metric": name, "baseline": baseline, "corrected": corrected, "smallest": smallest, "too_few": too_few, "rows": rows}


def _row(
    ours: Numbers, theirs: Numbers, metric: Metric, baseline: str, groups: Groups | None, resamples: int, seed: int
) -> dict[str, Any]:  # fmt: skip
    found = difference(ours, theirs, metric.combine, binary=metric.binary, higher_is_better=metric.higher_is_better, baseline=baseline,
                       resamples=resamples, seed=seed, groups=groups, bounds=metric.bounds)  # fmt: skip
    own, other = (estimate(p, metric.combine, metric.binary, resamples, seed, groups=groups, bounds=metric.bounds) for p in (ours, theirs))
    return {"n": len(ours), "adapter": own.as_dict(), "baseline": other.as_dict(), "difference": found.as_dict()}


def _correct(rows: Sequence[dict[str, Any]]) -> None:
    """Adds `p_corrected` to each difference and takes back the verdicts that do not stand after it."""
    for row, p in zip(rows, holm([r["difference"]["p"] for r in rows]), strict=True):
        row["difference"]["p_corrected"] = p
        if p >= 1 - LEVEL:
            row["difference"]["verdict"] = "no difference seen"


def _groups(fields: dict[str, Column]) -> Iterator[tuple[str, str, list[int]]]:
    for field, column in fields.items():
        for value in dict.fromkeys(v for v in column if v is not None):
            yield field, value, [i for i, v in enumerate(column) if v == value]


def slice_fields(items: Sequence[Item], asked: Sequence[str] | None, where: str = "recipe") -> dict[str, Column]:
    """The columns to slice by: those `asked` for, or label, length, and every trait of 2 to 20 values.

    `label` is the single reference where answers repeat as labels do, `length` thirds of the items by the characters of the question.
    """
    known = _known(items)
    if asked is None:
        return {name: column for name, column in known.items() if name == "label" or FEWEST_VALUES <= _distinct(column) <= MOST_VALUES}
    for index, name in enumerate(asked):
        if name not in known:
            refuse(where, f"evaluate.slices.{index}", repr(name), "a column of the items: " + ", ".join(sorted(known)), suggestion(name, known))
    return {name: known[name] for name in asked}


def _known(items: Sequence[Item]) -> dict[str, Column]:
    known: dict[str, Column] = {}
    labels = _labels(items)
    if labels is not None:
        known["label"] = labels
    known["length"] = _lengths(items)
    for name in dict.fromkeys(name for item in items for name in item.traits):
        column: Column = [item.traits.get(name) for item in items]
        known.setdefault(name, column)
    return known


def _labels(items: Sequence[Item]) -> Column | None:
    """None where an item has several references or none, or answers repeat too little to be labels: then they are texts."""
    if any(len(item.references) != 1 for item in items):
        return None
    labels: Column = [item.references[0] for item in items]
    return labels if FEWEST_VALUES <= _distinct(labels) <= min(MOST_LABELS, len(items) // 2) else None


def _lengths(items: Sequence[Item]) -> Column:
    """Thirds by length; equal lengths stay together, so that a third may be larger, or missing."""
    lengths = [sum(len(m.text) for m in item.messages if m.role != "system") for item in items]
    ranked = sorted(lengths)
    cuts = sorted({ranked[(len(ranked) * third - 1) // 3] for third in (1, 2, 3)})
    starts = [0, *(cut + 1 for cut in cuts[:-1])]
    names = [f"question {start}-{end} characters" for start, end in zip(starts, cuts, strict=True)]
    return [next(name for name, cut in zip(names, cuts, strict=True) if length <= cut) for length in lengths]


def _distinct(column: Column) -> int:
    return len({v for v in column if v is not None})
