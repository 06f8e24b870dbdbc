"""Grading: the adapter and every way of prompting the base answer the same items; values, intervals, paired differences.

It refuses unknown metrics. The best of the base's ways is the baseline, chosen per suite and metric on the
very items it is compared on, which favours the base: a gain that remains is not a format effect.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tuner.catalog import choose
from tuner.data.record import Message, Record
from tuner.errors import refuse
from tuner.evaluate.intervals import Estimate, difference, estimate
from tuner.evaluate.metrics import DEFAULT_METRICS, METRICS, Answer, Metric
from tuner.evaluate.spec import EvaluateSpec
from tuner.evaluate.suites import Item, Suite, few_shot_examples, with_examples

ADAPTER = "adapter"
SCHEMA = 1
Parts = Any  # (n, k) array


class Contestant(Protocol):
    """What can be graded: tuner.artifact.adapter.Adapter, or anything with these four."""

    def answer_many(self, questions: Any, max_new_tokens: int, done: Callable[[int], None] | None = None) -> list[str]: ...
    def label_scores(self, questions: Any, labels: Sequence[str], done: Callable[[int], None] | None = None) -> Any: ...
    def losses(self, questions: Any, answers: Sequence[str], done: Callable[[int], None] | None = None) -> list[tuple[float, int]]: ...
    def as_base(self) -> Any: ...


@dataclass(frozen=True)
class Graded:
    """The evaluation as data: `scores` for scores.json, `answers` for answers.jsonl, one row an answer."""

    scores: dict[str, Any]
    answers: list[dict[str, Any]]

    @property
    def verdict(self) -> str:
        return str(self.scores["verdict"]["word"])


@dataclass
class _Contender:
    """One way of answering. `examples` go before the question; with `labels` the likeliest label is the answer."""

    name: str
    examples: list[Message]
    labels: list[str] | None = None
    is_base: bool = True
    seconds: float = 0.0
    answered: int = 0
    texts: dict[str, list[str]] = field(default_factory=dict)
    losses: dict[str, list[Answer]] = field(default_factory=dict)


def metric_names(spec: EvaluateSpec, task: str, where: str = "recipe") -> tuple[list[str], str]:
    """The metrics of a recipe and the primary one. Raises Refusal on an unknown name."""
    names = list(spec.metrics or DEFAULT_METRICS[task])
    for name in names:
        choose(METRICS, name, where, "evaluate.metrics")
    primary = spec.primary or names[0]
    choose(METRICS, primary, where, "evaluate.primary")
    return ([primary] if primary not in names else []) + names, primary


def grade(
    model: Contestant, suites: Sequence[Suite], train: Sequence[Record], spec: EvaluateSpec, task: str, seed: int,
    show: Callable[[str, int, int], None] | None = None,
) -> Graded:  # fmt: skip
    """Ask every contender every item of every suite. `show(what, done, total)` is told of progress in items."""
    if not suites:
        refuse("recipe", "data", "no held_out and no ood", "at least one split that is read after training", "add data.held_out")
    names, primary = metric_names(spec, task)
    contenders = _contenders(train, spec, task, seed)
    total = sum(len(s.items) for s in suites) * sum(2 - bool(c.labels) for c in contenders)
    tick = _Ticker(show, total)
    for contender in contenders:
        for suite in suites:
            _ask(model, contender, suite, spec, tick)
    return _graded(suites, contenders, names, primary, spec, seed)


class _Ticker:
    def __init__(self, show: Callable[[str, int, int], None] | None, total: int):
        self.show, self.total, self.count = show, total, 0

    def on(self, what: str) -> Callable[[int], None]:
        def done(items: int) -> None:
            self.count += items
            if self.show is not None:
                self.show(what, self.count, self.total)

        return done


def _contenders(train: Sequence[Record], spec: EvaluateSpec, task: str, seed: int) -> list[_Contender]:
    """The base's ways and the adapter. Decoding constrained to the labels is tried for each way of a label task."""
    labels = sorted({r.completion for r in train}) if task == "label" else None
    found: list[_Contender] = []
    for way in dict.fromkeys(spec.base_ways):
        examples = few_shot_examples(train, spec.few_shot, task == "label", seed) if way == "few_shot" else []
        if way == "few_shot" and not examples:
            continue
        found.append(_Contender(f"base {way}", examples))
        if labels:
            found.append(_Contender(f"base {way}, labels only", examples, labels))
    return [*found, _Contender(ADAPTER, [], is_base=False)]


def _ask(model: Contestant, contender: _Contender, suite: Suite, spec: EvaluateSpec, tick: _Ticker) -> None:
    questions = [with_examples(i.messages, contender.examples) for i in suite.items]
    done = tick.on(f"{contender.name} on {suite.name}")
    began = time.monotonic()
    if contender.is_base:
        with model.as_base():
            _answers(model, contender, suite, questions, spec, done)
    else:
        _answers(model, contender, suite, questions, spec, done)
    contender.seconds += time.monotonic() - began
    contender.answered += len(questions)


def _answers(model: Contestant, contender: _Contender, suite: Suite, questions: list[list[Message]], spec: EvaluateSpec, done: Callable[[int], None]) -> None:
    if contender.labels is not None:
        best = model.label_scores(questions, contender.labels, done).argmax(-1).tolist()
        contender.texts[suite.name] = [contender.labels[i] for i in best]
        return
    contender.texts[suite.name] = model.answer_many(questions, spec.max_new_tokens, done)
    asked = [(q, r) for q, item in zip(questions, suite.items, strict=True) for r in item.references]
    each = iter(model.losses([q for q, _ in asked], [r for _, r in asked]))
    contender.losses[suite.name] = [_loss_answer(item, each) for item in suite.items]
    done(len(suite.items))


def _loss_answer(item: Item, each: Any) -> Answer:
    found = [next(each) for _ in item.references]
    size = sum(len(r.encode()) for r in item.references)
    return Answer(item.references, None, sum(n for n, _ in found), sum(t for _, t in found), size)


# --- from answers to scores ----------------------------------------------------------------------------------------


def _graded(suites: Sequence[Suite], contenders: list[_Contender], names: list[str], primary: str, spec: EvaluateSpec, seed: int) -> Graded:
    scores: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for suite in suites:
        parts = {c.name: _parts(suite, c, names) for c in contenders}
        scores[suite.name] = _suite_scores(suite, parts, names, spec.resamples, seed)
        rows += _answer_rows(suite, contenders, parts)
    ways = {c.name: {"seconds": round(c.seconds, 2), "items": c.answered, "examples": len(c.examples) // 2} for c in contenders}
    whole = {
        "schema": SCHEMA,
        "seed": seed,
        "primary": primary,
        "metrics": {n: {"what": METRICS[n].what, "higher_is_better": METRICS[n].higher_is_better} for n in names},
        "contenders": ways,
        "settings": spec.model_dump(mode="json"),
        "suites": scores,
        "verdict": _verdict(scores, primary),
    }
    return Graded(json.loads(json.dumps(whole)), rows)


def _parts(suite: Suite, contender: _Contender, names: list[str]) -> dict[str, Parts]:
    """The numbers of each metric for each item; metrics that this contender cannot have are left out."""
    found: dict[str, Parts] = {}
    texts = contender.texts[suite.name]
    for name in names:
        metric = METRICS[name]
        if metric.of == "loss":
            if suite.name in contender.losses:
                found[name] = metric.parts(contender.losses[suite.name])
        else:
            found[name] = metric.parts([Answer(i.references, t) for i, t in zip(suite.items, texts, strict=True)])
    return found


def _suite_scores(suite: Suite, parts: Mapping[str, Mapping[str, Parts]], names: list[str], resamples: int, seed: int) -> dict[str, Any]:
    values: dict[str, dict[str, Estimate]] = {name: {} for name in parts}
    for contender, of in parts.items():
        for name, numbers in of.items():
            values[contender][name] = estimate(numbers, METRICS[name].combine, METRICS[name].binary, resamples, seed)
    differences = {}
    for name in names:
        baseline = _best_of_base(values, name, METRICS[name])
        if baseline is not None and name in parts[ADAPTER]:
            metric = METRICS[name]
            differences[name] = difference(
                parts[ADAPTER][name], parts[baseline][name], metric.combine, binary=metric.binary, higher_is_better=metric.higher_is_better,
                baseline=baseline, resamples=resamples, seed=seed,
            ).as_dict()  # fmt: skip
    return {
        "role": suite.role,
        "n": len(suite.items),
        "digest": suite.digest,
        "values": {c: {n: e.as_dict() for n, e in of.items()} for c, of in values.items()},
        "differences": differences,
    }


def _best_of_base(values: Mapping[str, Mapping[str, Estimate]], name: str, metric: Metric) -> str | None:
    ways = [c for c in values if c != ADAPTER and name in values[c]]
    sign = 1 if metric.higher_is_better else -1
    return max(ways, key=lambda c: sign * values[c][name].value, default=None)


def _verdict(scores: Mapping[str, Any], primary: str) -> dict[str, Any]:
    """The word about the primary metric on held_out (or the first suite, when there is no held_out)."""
    suite = next((s for s, v in scores.items() if v["role"] == "held_out"), next(iter(scores)))
    found = scores[suite]["differences"][primary]
    return {"word": found["verdict"], "suite": suite, "metric": primary, **{k: found[k] for k in ("value", "low", "high", "p", "n", "baseline")}}


def _answer_rows(suite: Suite, contenders: list[_Contender], parts: Mapping[str, Mapping[str, Parts]]) -> list[dict[str, Any]]:
    rows = []
    for contender in contenders:
        for index, item in enumerate(suite.items):
            numbers = {n: np.asarray(p[index]).tolist() for n, p in parts[contender.name].items()}
            scores = {n: _item_score(n, p) for n, p in numbers.items()}
            rows.append({
                "suite": suite.name, "item": index, "where": item.where, "contender": contender.name,
                "question": [m.as_dict() for m in item.messages], "references": list(item.references),
                "answer": contender.texts[suite.name][index], "scores": scores, "parts": _kept_parts(numbers),
            })  # fmt: skip
    return rows


def _item_score(name: str, numbers: list[float]) -> float | None:
    """The metric of this one item alone; macro-F1 has none."""
    if name == "macro_f1":
        return None
    return float(METRICS[name].combine(np.array(numbers)))


def _kept_parts(numbers: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """What is needed to re-compute metrics that are not means of item scores."""
    return {n: p for n, p in numbers.items() if METRICS[n].of == "loss" or n == "json_field_f1"}
