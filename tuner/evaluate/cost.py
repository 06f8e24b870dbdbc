"""What an answer costs at inference: prompt tokens, time to the first token, tokens a second, the adapter's size.

Questions are asked one at a time, as one user waits. The adapter is set against the base with worked examples, whose longer prompt is
paid for with every question. It refuses nothing; times are of the machine that measured them, and say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tuner.evaluate.contenders import ZERO_SHOT, Contender
from tuner.evaluate.intervals import Difference, Estimate, difference, estimate
from tuner.evaluate.metric_types import ratio
from tuner.evaluate.result import ADAPTER, Contestant, MetricFacts, Result, Tick, Timed
from tuner.evaluate.suites import Item, Suite, suite_of

QUESTIONS = {"small": 6, "full": 20}  # of fewer than six paired items no test can say p < 0.05
NEW_TOKENS = {"small": 16, "full": 64}
POSITIVE = (0.0, math.inf)
FACTS = {
    "prompt_tokens": MetricFacts("mean tokens of a question as it is asked", False),
    "first_token_seconds": MetricFacts("mean seconds until the first token of an answer, one question at a time", False),
    "answer_seconds": MetricFacts("mean seconds until an answer ends, or has as many tokens as are allowed, one question at a time", False),
    "tokens_per_second": MetricFacts("tokens of answers over the seconds they took, one question at a time", True, "ratio"),
    "adapter_bytes": MetricFacts("size of adapter_model.safetensors", False, "file size"),
}  # fmt: skip


def priced(contenders: Sequence[Contender]) -> list[Contender]:
    """Who is timed: the base as it is, the base with its longest prompt, the adapter. Constrained answers cost about what free ones do."""
    free = [c for c in contenders if c.is_base and not c.labels]
    longest = max(free, key=lambda c: len(c.examples), default=None)
    chosen = [c for c in free if c.name == ZERO_SHOT or (c is longest and c.examples)]
    return [*chosen, *(c for c in contenders if c.name == ADAPTER)]


def cost(
    model: Contestant, contenders: Sequence[Contender], asked: Suite, adapter_bytes: int, machine: Mapping[str, Any], profile: str, max_new_tokens: int,
    resamples: int, seed: int, tick: Tick,
) -> Result:  # fmt: skip
    """Time the first questions of a suite. `machine` says where the times were taken."""
    items = asked.items[: QUESTIONS[profile]]
    new_tokens = min(max_new_tokens, NEW_TOKENS[profile])
    times = {c.name: _timed(model, c, items, new_tokens, tick) for c in priced(contenders)}
    parts = {c: _parts(of) for c, of in times.items()}
    values = {c: {m: estimate(p, ratio, False, resamples, seed, bounds=POSITIVE) for m, p in of.items()} for c, of in parts.items()}
    values[ADAPTER]["adapter_bytes"] = Estimate(float(adapter_bytes), 1, float(adapter_bytes), float(adapter_bytes), "the size of one file")
    rows = [_row(i, item, c, of[i]) for c, of in times.items() for i, item in enumerate(items)]
    facts = {"of": asked.name, "max_new_tokens": new_tokens, "machine": dict(machine), "words": f"one question at a time on {_where(machine)}"}
    return Result("cost", "cost", len(items), suite_of("cost", "cost", items).digest, FACTS, values, _differences(parts, resamples, seed), facts, rows)


def _timed(model: Contestant, contender: Contender, items: Sequence[Item], new_tokens: int, tick: Tick) -> list[Timed]:
    questions = [contender.question(item) for item in items]
    if not contender.is_base:
        model.timed(questions[:1], 1)  # the first call of a process also pays for what later ones find ready
        return model.timed(questions, new_tokens, tick)
    with model.as_base():
        model.timed(questions[:1], 1)
        return model.timed(questions, new_tokens, tick)


def _parts(times: Sequence[Timed]) -> dict[str, Any]:
    """(n, 2) numerators and denominators of every metric."""
    one = np.ones(len(times))
    return {
        "prompt_tokens": np.column_stack([[float(t.prompt_tokens) for t in times], one]),
        "first_token_seconds": np.column_stack([[t.first_token_seconds for t in times], one]),
        "answer_seconds": np.column_stack([[t.seconds for t in times], one]),
        "tokens_per_second": np.array([[float(t.tokens), t.seconds] for t in times]),
    }


def _differences(parts: Mapping[str, Mapping[str, Any]], resamples: int, seed: int) -> dict[str, Difference]:
    """The adapter against the base's longest prompt."""
    others = [c for c in parts if c != ADAPTER]
    if not others:
        return {}
    baseline = others[-1]
    return {
        metric: difference(numbers, parts[baseline][metric], ratio, binary=False, higher_is_better=FACTS[metric].higher_is_better, baseline=baseline,
                           resamples=resamples, seed=seed, bounds=POSITIVE)
        for metric, numbers in parts[ADAPTER].items()
    }  # fmt: skip


def _row(index: int, item: Item, contender: str, time: Timed) -> dict[str, Any]:
    scores = {"prompt_tokens": time.prompt_tokens, "first_token_seconds": time.first_token_seconds, "answer_seconds": time.seconds}
    return {
        "suite": "cost", "item": index, "where": item.where, "contender": contender, "reference": None, "answer": None, "scores": scores,
        "parts": {"tokens_per_second": [time.tokens, time.seconds]},
    }  # fmt: skip


def _where(machine: Mapping[str, Any]) -> str:
    return str(machine.get("gpu") or f"{machine.get('cores', '?')} CPU cores")
