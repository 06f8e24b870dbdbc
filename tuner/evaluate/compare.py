"""Two versions' answers, compared on the questions both were asked, from the rows of answers.jsonl alone.

It refuses two evaluations that have no question in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tuner.errors import refuse
from tuner.evaluate.intervals import Groups, Numbers, difference, estimate, sources
from tuner.evaluate.jackknife import Combine
from tuner.evaluate.metric_label import BINS
from tuner.evaluate.metric_types import mean, ratio
from tuner.evaluate.metrics import METRICS, Answer
from tuner.evaluate.result import ADAPTER
from tuner.fingerprint import digest_json

Row = Mapping[str, Any]
Facts = Mapping[str, Any]  # {what, higher_is_better, form} of a metric
Key = tuple[str, str, int]  # suite, digest of question and references, how many equal ones came before


@dataclass(frozen=True, slots=True)
class Read:
    """A metric's numbers, read back from rows: (n, k) parts of each side, how their sums become values, and whether it is a share of items.

    `groups` are the sources of the items, where any has one.
    """

    sides: tuple[Numbers, ...]
    combine: Combine
    binary: bool
    groups: Groups | None = None


def compare(
    rows_a: Iterable[Row], rows_b: Iterable[Row], metrics: Mapping[str, Facts], *,
    name_a: str, name_b: str, seed: int, resamples: int, contender: str = ADAPTER,
) -> dict[str, Any]:  # fmt: skip
    """For each suite and metric both values and b minus a, paired on common items; metrics that pairing does not fit are named with the reason.

    `metrics` holds each metric's facts, by name or by "suite.metric" where suites differ.
    """
    a, b = keyed(rows_a, contender), keyed(rows_b, contender)
    common = [key for key in a if key in b]
    if not common:
        refuse(f"{name_a} and {name_b}", "answers.jsonl", f"{len(a)} and {len(b)} items, none in common", "the same questions with the same references in both",
               "evaluate both versions on the same held_out and ood files")  # fmt: skip
    suites = {}
    for suite in dict.fromkeys(key[0] for key in (*a, *b)):
        shared = [key for key in common if key[0] == suite]
        counts = {"n": len(shared), f"only in {name_a}": _alone(a, b, suite), f"only in {name_b}": _alone(b, a, suite)}
        suites[suite] = {**counts, **_compared([a[k] for k in shared], [b[k] for k in shared], suite, metrics, name_a, name_b, seed, resamples)}
    return {"a": name_a, "b": name_b, "contender": contender, "seed": seed, "resamples": resamples, "suites": suites}


def keyed(rows: Iterable[Row], contender: str) -> dict[Key, Row]:
    """The contender's rows by what was asked: not by place, so that a file may be reordered or grow."""
    seen: Counter[tuple[str, str]] = Counter()
    found: dict[Key, Row] = {}
    for row in rows:
        if row["contender"] == contender:
            asked = str(row["suite"]), digest_json([row.get("question"), row.get("references", [row.get("reference")]), *_unasked(row)])
            found[*asked, seen[asked]] = row
            seen[asked] += 1
    return found


def _unasked(row: Row) -> list[Any]:
    """What tells items apart that have no question of their own (passages, records): their place."""
    return [] if row.get("question") else [row.get("item"), row.get("where")]


def _alone(these: Mapping[Key, Row], others: Mapping[Key, Row], suite: str) -> int:
    return sum(key[0] == suite and key not in others for key in these)


def _compared(
    ours: Sequence[Row], theirs: Sequence[Row], suite: str, metrics: Mapping[str, Facts], name_a: str, name_b: str, seed: int, resamples: int
) -> dict[str, Any]:  # fmt: skip
    found: dict[str, Any] = {"metrics": {}, "left_out": {}}
    for name in names_in([*ours, *theirs]):
        facts = facts_of(metrics, suite, name)
        read = read_back([ours, theirs], name, facts) if facts is not None else None
        if facts is None or read is None:
            found["left_out"][name] = "not in the metrics of this evaluation" if facts is None else f"{facts['form']}: not a value of single items, or not kept"
            continue
        a, b = read.sides
        gap = difference(b, a, read.combine, binary=read.binary, higher_is_better=facts["higher_is_better"], baseline=name_a, resamples=resamples, seed=seed,
                         groups=read.groups)  # fmt: skip
        values = {side: estimate(p, read.combine, read.binary, resamples, seed, groups=read.groups).as_dict() for side, p in ((name_a, a), (name_b, b))}
        found["metrics"][name] = {**facts, "values": values, "difference": gap.as_dict()}
    return found


def names_in(rows: Iterable[Row]) -> list[str]:
    """The metrics that rows carry, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for of in ("scores", "parts") for name in row.get(of) or {}))


def facts_of(metrics: Mapping[str, Facts], suite: str, name: str) -> Facts | None:
    return metrics.get(f"{suite}.{name}", metrics.get(name))


def read_back(sides: Sequence[Sequence[Row]], name: str, facts: Facts) -> Read | None:
    """The numbers of a metric for each side, over the items that all sides have it for; None where its form cannot be read from single rows."""
    form = str(facts.get("form", "mean"))
    reader = READERS.get(form)
    if reader is None:
        return None
    kept = [rows for rows in zip(*sides, strict=True) if all(_has(row, name, form) for row in rows)]
    read = reader(list(zip(*kept, strict=True)), name) if kept else None
    return None if read is None else replace(read, groups=sources([_source(rows[0]) for rows in kept]))


def _has(row: Row, name: str, form: str) -> bool:
    scores = row.get("scores") or {}
    return scores.get(name) is not None if form == "mean" else name in scores or name in (row.get("parts") or {})


def _source(row: Row) -> str | None:
    """The item's source. Rows of memorisation call another thing by that name: which records an item is one of."""
    return None if row["suite"] == "memorisation" else row.get("group")


def _read_mean(sides: Sequence[Sequence[Row]], name: str) -> Read:
    scores = np.array([[row["scores"][name] for row in rows] for rows in sides], dtype=np.float64)
    binary = all(bool(np.isin(s, (0.0, 1.0)).all()) for s in scores)
    return Read(tuple(np.column_stack([s, np.ones(len(s))]) for s in scores), mean, binary)


def _read_sums(sides: Sequence[Sequence[Row]], name: str) -> Read | None:
    """Parts as kept. A metric outside the catalogue is the plain ratio of the first to the second."""
    if any(name not in row["parts"] for rows in sides for row in rows):
        return None
    combine: Combine = METRICS[name].combine if name in METRICS else ratio
    return Read(tuple(np.array([row["parts"][name] for row in rows], dtype=np.float64) for rows in sides), combine, False)


def _read_bins(sides: Sequence[Sequence[Row]], name: str) -> Read | None:
    """[bin, confidence, correct] of each item, in the bins of its own evaluation."""
    if any(name not in row["parts"] for rows in sides for row in rows):
        return None
    return Read(tuple(_binned([row["parts"][name] for row in rows]) for rows in sides), METRICS["ece"].combine, False)


def _binned(kept: Sequence[Sequence[float]]) -> Numbers:
    parts = np.zeros((len(kept), BINS, 3))
    for item, (place, confidence, correct) in enumerate(kept):
        parts[item, int(place)] = confidence, correct, 1.0
    return parts.reshape(len(kept), 3 * BINS)


def _read_answers(sides: Sequence[Sequence[Row]], name: str) -> Read | None:
    """Graded again from answer and references, all sides at once so that they share their labels."""
    if name not in METRICS or METRICS[name].of != "text":
        return None
    parts = METRICS[name].parts([Answer(tuple(row["references"]), row["answer"]) for rows in sides for row in rows])
    return Read(tuple(np.split(parts, len(sides))), METRICS[name].combine, METRICS[name].binary)


READERS: dict[str, Callable[[Sequence[Sequence[Row]], str], Read | None]] = {
    "mean": _read_mean,
    "ratio": _read_sums,
    "perplexity": _read_sums,
    "bleu": _read_sums,
    "ece": _read_bins,
    "macro_f1": _read_answers,
}
