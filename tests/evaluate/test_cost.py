"""What an answer costs: who is timed, against whom, and rows from which every value follows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import tuner
from tests.conftest import colour_rows, jsonl
from tuner import pipeline
from tuner.data.record import Message, Record
from tuner.evaluate.contenders import Contender, contenders
from tuner.evaluate.cost import FACTS, NEW_TOKENS, QUESTIONS, cost, priced
from tuner.evaluate.result import Result, Timed
from tuner.evaluate.spec import EvaluateSpec
from tuner.evaluate.suites import Item, suite_of
from tuner.recipe import load_recipe

TRAIN = [Record((Message("user", f"thing {i}"), Message("assistant", ("red", "blue")[i % 2])), "t", i, "train") for i in range(8)]
SUITE = suite_of("held_out", "held_out", [Item((Message("user", f"thing number {i} please{' now' * (i % 3)}"),), ("red",), f"h:{i}") for i in range(25)])


def names(task: str, **spec: Any) -> list[str]:
    return [c.name for c in priced(contenders(TRAIN, EvaluateSpec(**spec), task, 0))]


def test_the_base_as_it_is_its_longest_prompt_and_the_adapter_are_timed() -> None:
    assert names("text") == ["base zero_shot", "base few_shot", "adapter"]
    assert names("label", prompts={"short": "One word."}) == ["base zero_shot", "base few_shot", "adapter"]  # constrained answers cost about what free ones do
    assert names("label", base_ways=["zero_shot"]) == ["base zero_shot", "adapter"]
    assert names("label", base_ways=["few_shot"]) == ["base few_shot", "adapter"]
    assert priced([Contender("adapter", is_base=False)])[0].name == "adapter"


class Clock:
    """A contestant whose times follow from the question, so that every value can be computed by hand."""

    def __init__(self) -> None:
        self.is_base, self.calls = False, []  # type: tuple[bool, list[tuple[bool, int, int]]]

    @contextlib.contextmanager
    def as_base(self) -> Iterator[Clock]:
        self.is_base = True
        try:
            yield self
        finally:
            self.is_base = False

    def timed(self, questions: Sequence[list[Message]], max_new_tokens: int, done: Any = None) -> list[Timed]:
        self.calls.append((self.is_base, len(questions), max_new_tokens))
        if done is not None:
            done(len(questions))
        size = [sum(len(m.content) for m in q) for q in questions]
        return [Timed(s, s / 1000 + 0.1 * self.is_base, 1 + i % 5, s / 100 + 0.2 * self.is_base) for i, s in enumerate(size)]


def timed(model: Any, profile: str = "small", **spec: Any) -> Result:
    whom = contenders(TRAIN, EvaluateSpec(few_shot=2, **spec), "label", 0)
    return cost(model, whom, SUITE, 4321, {"cores": 2}, profile, 64, 1000, 0, lambda items: None)


@pytest.mark.parametrize("profile", ["small", "full"])
def test_each_is_asked_the_same_first_questions_after_one_that_warms_up(profile: str) -> None:
    clock = Clock()
    found = timed(clock, profile)
    rows = [(row["contender"], row["item"], row["where"]) for row in found.rows]
    items = range(QUESTIONS[profile])
    assert rows == [(c, i, f"h:{i}") for c in ("base zero_shot", "base few_shot", "adapter") for i in items]
    assert clock.calls == [(is_base, n, t) for is_base in (True, True, False) for n, t in ((1, 1), (QUESTIONS[profile], NEW_TOKENS[profile]))]
    assert not clock.is_base and found.n == len(items)


def test_never_more_tokens_are_asked_for_than_the_recipe_allows() -> None:
    clock = Clock()
    cost(clock, contenders(TRAIN, EvaluateSpec(), "text", 0), SUITE, 1, {}, "full", 5, 1000, 0, lambda items: None)
    assert {tokens for _, _, tokens in clock.calls} == {1, 5}


def recomputed(found: Result) -> int:
    """Asserts that each value and difference follows from rows that went through JSON; gives how many did."""
    rows = json.loads(json.dumps(list(found.rows)))
    value: dict[tuple[str, str], float] = {}
    for contender, of in found.values.items():
        own = [r for r in rows if r["contender"] == contender]
        for metric in set(of) - {"adapter_bytes"}:
            if FACTS[metric].form == "mean":
                value[contender, metric] = sum(r["scores"][metric] for r in own) / len(own)
            else:
                value[contender, metric] = sum(r["parts"][metric][0] for r in own) / sum(r["parts"][metric][1] for r in own)
            assert of[metric].value == pytest.approx(value[contender, metric], rel=1e-9) and of[metric].n == len(own)
            assert 0 <= of[metric].low <= of[metric].value <= of[metric].high
    for metric, gap in found.differences.items():
        assert gap.value == pytest.approx(value["adapter", metric] - value[gap.baseline, metric], rel=1e-9)
    return len(value) + len(found.differences)


def test_values_and_differences_follow_from_the_rows() -> None:
    found = timed(Clock())
    assert recomputed(found) == 3 * 4 + 4
    assert {d.baseline for d in found.differences.values()} == {"base few_shot"}
    assert found.differences["prompt_tokens"].verdict == "better"  # worked examples are paid for with every question
    size = found.values["adapter"]["adapter_bytes"]
    assert (size.value, size.low, size.high, size.n) == (4321, 4321, 4321, 1) and "adapter_bytes" not in found.differences
    assert set(found.metrics) == set(FACTS) == set(found.values["adapter"]) and "2 CPU cores" in found.facts["words"]


def test_without_a_way_of_the_base_only_the_adapter_is_timed() -> None:
    found = cost(Clock(), [Contender("adapter", is_base=False)], SUITE, 1, {"gpu": "H200"}, "small", 8, 1000, 0, lambda items: None)
    assert found.differences == {} and set(found.values) == {"adapter"} and "H200" in found.facts["words"]


def test_a_real_adapter_is_timed_in_real_seconds(tiny_base: Path, tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", colour_rows(12))
    recipe = {"name": "colours", "base": {"model": str(tiny_base), "sanity": "off"}, "data": {"task": "label", "train": "train.jsonl"},
              "template": {"max_tokens": 128}, "train": {"max_steps": 1}}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    pipeline.run(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "store", grade_after=False)
    adapter = tuner.load_adapter("colours@1", tmp_path / "store", base=tiny_base)
    found = timed(adapter)
    assert recomputed(found) == 3 * 4 + 4
    first = next(r for r in found.rows if r["contender"] == "adapter" and r["item"] == 0)
    assert first["scores"]["prompt_tokens"] == len(adapter.prompt_ids(list(SUITE.items[0].messages))) and first["scores"]["first_token_seconds"] > 0
    examples = next(r for r in found.rows if r["contender"] == "base few_shot" and r["item"] == 0)
    assert examples["scores"]["prompt_tokens"] > first["scores"]["prompt_tokens"]
