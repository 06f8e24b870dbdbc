"""Grading: the best of the base's ways is the baseline, and every number can be re-computed from the answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from tuner.data.record import Message, Record
from tuner.data.splits import Splits
from tuner.errors import Refusal
from tuner.evaluate.evidence import Material, evidence, metric_names
from tuner.evaluate.spec import EvaluateSpec
from tuner.evaluate.suites import build_suites, few_shot_examples, with_examples

LABELS = ("red", "green", "blue")


def record(i: int, split: str, label: str | None = None) -> Record:
    return Record((Message("user", f"item {i}"), Message("assistant", label or LABELS[i % 3])), f"{split}.jsonl", i + 1, split)


class ByRule:
    """A contestant that answers by a rule on the item's number: the adapter is right but for one in ten, the base for one in two."""

    def __init__(self) -> None:
        self.base = False
        self.asked: list[tuple[bool, int]] = []

    @contextlib.contextmanager
    def as_base(self) -> Iterator[ByRule]:
        self.base = True
        try:
            yield self
        finally:
            self.base = False

    def _right(self, question: Sequence[Message]) -> bool:
        number = int(question[-1].content.split()[1])
        return number % (2 if self.base else 10) != 0

    def answer_many(self, questions: Sequence[Sequence[Message]], max_new_tokens: int, done: Callable[[int], None] | None = None) -> list[str]:
        self.asked += [(self.base, len(q)) for q in questions]
        return [LABELS[int(q[-1].content.split()[1]) % 3] if self._right(q) else "no idea" for q in questions]

    def label_scores(self, questions: Sequence[Sequence[Message]], labels: Sequence[str], done: Callable[[int], None] | None = None) -> Any:
        scores = np.zeros((len(questions), len(labels)))
        for row, question in enumerate(questions):
            number = int(question[-1].content.split()[1])
            right = labels.index(LABELS[number % 3])
            scores[row, right if number % 4 else (right + 1) % len(labels)] = 1
        return scores

    def losses(self, questions: Any, answers: Sequence[str], done: Callable[[int], None] | None = None) -> list[tuple[float, int]]:
        return [(2.0 if self.base else 0.5, 2) for _ in answers]


@pytest.fixture(scope="module")
def graded() -> Any:
    splits = Splits({"train": [record(i, "train") for i in range(900, 930)], "held_out": [record(i, "held_out") for i in range(60)],
                     "ood.far": [record(i, "ood.far", "red") for i in range(300, 320)]}, ())  # fmt: skip
    spec = EvaluateSpec(suites=["held_out", "ood"], few_shot=3, resamples=1000)
    return evidence(ByRule(), Material(build_suites(splits, None, 0), splits["train"], splits["held_out"], "label", 0), spec)


def test_the_best_way_of_the_base_is_the_baseline(graded: Any) -> None:
    values = graded.scores["suites"]["held_out"]["values"]
    assert set(values) == {"base zero_shot", "base zero_shot, labels only", "base few_shot", "base few_shot, labels only", "adapter"}
    difference = graded.scores["suites"]["held_out"]["differences"]["exact_match"]
    assert difference["baseline"].endswith("labels only")
    assert values["base zero_shot"]["exact_match"]["value"] == pytest.approx(0.5)
    assert difference["value"] == pytest.approx(0.9 - 0.75)
    assert graded.verdict == "better"


def test_a_metric_is_compared_with_the_way_that_is_best_at_it(graded: Any) -> None:
    loss = graded.scores["suites"]["held_out"]["differences"]["loss"]
    assert loss["baseline"] in ("base zero_shot", "base few_shot")  # constrained decoding has no loss of its own
    assert loss["value"] == pytest.approx(0.25 - 1.0) and loss["verdict"] == "better"


def test_all_ways_meet_on_held_out_and_the_best_of_them_goes_on(graded: Any) -> None:
    by_suite: dict[str, dict[str, set[int]]] = {}
    for row in graded.answers:
        by_suite.setdefault(row["suite"], {}).setdefault(row["contender"], set()).add(row["item"])
    assert len(by_suite["held_out"]) == 5 and len(graded.answers) == 5 * 60 + 3 * 20
    assert set(by_suite["far"]) == {"base zero_shot", graded.scores["best_base"], "adapter"}
    assert graded.scores["best_base"] == graded.scores["suites"]["held_out"]["differences"]["exact_match"]["baseline"]
    for of in by_suite.values():
        assert all(items == of["adapter"] for items in of.values())


def test_values_can_be_recomputed_from_the_answers(graded: Any) -> None:
    swept = 0
    for suite, found in graded.scores["suites"].items():
        for contender, values in found["values"].items():
            rows = [r for r in graded.answers if r["suite"] == suite and r["contender"] == contender]
            assert values["exact_match"]["value"] == pytest.approx(np.mean([r["scores"]["exact_match"] for r in rows]))
            assert values["exact_match"]["n"] == len(rows)
            if "loss" in values:
                parts = np.array([r["parts"]["loss"] for r in rows]).sum(axis=0)
                assert values["loss"]["value"] == pytest.approx(parts[0] / parts[1])
            swept += 1
    assert swept == 8


def test_several_references_of_one_prompt_are_one_item() -> None:
    pair = [Record((Message("user", "q"), Message("assistant", a)), "f", i, "held_out") for i, a in enumerate(("one", "two", "one"))]
    (suite,) = build_suites(Splits({"held_out": pair}, ()), None, 0)
    assert len(suite.items) == 1 and suite.items[0].references == ("one", "two")


def test_few_shot_examples_cover_the_labels_and_go_after_the_system_turn() -> None:
    train = [record(i, "train") for i in range(30)]
    examples = few_shot_examples(train, 3, True, 0)
    assert {m.content for m in examples if m.role == "assistant"} == set(LABELS)
    assert few_shot_examples(list(reversed(train)), 3, True, 0) == examples  # by content, not by order
    whole = with_examples([Message("system", "s"), Message("user", "q")], examples)
    assert [m.role for m in whole] == ["system", *["user", "assistant"] * 3, "user"]


def test_take_chooses_the_same_items_whatever_their_order() -> None:
    records = [record(i, "held_out") for i in range(50)]
    forward = build_suites(Splits({"held_out": records}, ()), 10, 3)[0]
    backward = build_suites(Splits({"held_out": records[::-1]}, ()), 10, 3)[0]
    assert {i.messages for i in forward.items} == {i.messages for i in backward.items} and len(forward.items) == 10


def test_an_unknown_metric_is_refused_with_its_neighbour() -> None:
    with pytest.raises(Refusal, match="exact_match"):
        metric_names(EvaluateSpec(metrics=["exact_mach"]), "label")


def test_items_of_one_source_are_drawn_together() -> None:
    records = [Record(r.messages, r.file, r.line, r.split, {"customer": f"c{i // 6}"}) for i, r in enumerate(record(i, "held_out") for i in range(60))]
    train = [record(i, "train") for i in range(900, 930)]
    spec = EvaluateSpec(suites=["held_out"], resamples=1000, base_ways=["zero_shot"])
    found = {}
    for column in (None, "customer"):
        suites = build_suites(Splits({"held_out": records}, ()), None, 0, None, column)
        found[column] = evidence(ByRule(), Material(suites, train, records, "label", 0), spec).scores["suites"]["held_out"]
    alone, together = (found[c]["differences"]["exact_match"] for c in (None, "customer"))
    assert "over 10 groups of items" in together["method"] and alone["value"] == together["value"]
    assert found["customer"]["values"]["adapter"]["exact_match"]["n"] == 60
