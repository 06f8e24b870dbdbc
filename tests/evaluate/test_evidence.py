"""Grading: the best of the base's ways is the baseline, and every number can be re-computed from the answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tuner
from tests.conftest import colour_rows, jsonl
from tests.evaluate.recompute import value
from tests.evaluate.scripted import Scripted
from tests.evaluate.test_judge import serving
from tuner import pipeline
from tuner.artifact.adapter import Adapter
from tuner.data.record import Message, Record
from tuner.data.splits import Splits
from tuner.durable import json_text
from tuner.errors import Refusal
from tuner.evaluate.evidence import Material, evidence, metric_names
from tuner.evaluate.metrics import DEFAULT_METRICS, METRICS, NEEDS
from tuner.evaluate.remembered import Remembered
from tuner.evaluate.spec import AbstentionSpec, EvaluateSpec, JudgeSpec, MetricOptions, TransformsSpec
from tuner.evaluate.suites import build_suites, few_shot_examples, with_examples
from tuner.recipe import load_recipe

LABELS = ("red", "green", "blue")


def record(i: int, split: str, label: str | None = None) -> Record:
    return Record((Message("user", f"item {i}"), Message("assistant", label or LABELS[i % 3])), f"{split}.jsonl", i + 1, split)


class ByRule(Scripted):
    """A contestant that answers by a rule on the item's number: the adapter is right but for one in ten, the base for one in two."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[bool, int]] = []

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


# --- which way of the base, and which suites ---------------------------------------------------------------------------


class Prompted(ByRule):
    """The base is right only under the prompt `One word.`; every question is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.questions: list[tuple[bool, list[Message]]] = []

    def _right(self, question: Sequence[Message]) -> bool:
        return not self.base or question[0].content == "One word."

    def answer_many(self, questions: Sequence[Sequence[Message]], max_new_tokens: int, done: Callable[[int], None] | None = None) -> list[str]:
        self.questions += [(self.base, list(q)) for q in questions]
        return super().answer_many(questions, max_new_tokens, done)


def label_material(without: Sequence[str] = (), **changes: Any) -> Material:
    """30 train and 30 held_out records with a system prompt of their own, and 12 of ood."""

    def own(i: int, split: str) -> Record:
        return Record((Message("system", "Their own words."), *record(i, split).messages), f"{split}.jsonl", i, split)

    splits = {"train": [own(i, "train") for i in range(900, 930)], "held_out": [own(i, "held_out") for i in range(30)],
              "ood.far": [own(i, "ood.far") for i in range(300, 312)]}  # fmt: skip
    taken = {k: v for k, v in splits.items() if k not in without}
    facts = {"train": splits["train"], "held_out": taken.get("held_out", []), "task": "label", "seed": 0} | changes
    return Material(build_suites(Splits(taken, ()), None, 0), **facts)


def test_a_prompt_of_the_recipe_replaces_the_records_own_and_the_best_goes_on_to_other_suites() -> None:
    model = Prompted()
    spec = EvaluateSpec(suites=["held_out", "ood"], resamples=1000, few_shot=3, prompts={"short": "One word.", "long": "At length."})
    found = evidence(model, label_material(), spec)
    assert found.scores["best_base"] == "base prompt short"
    far = {row["contender"] for row in found.answers if row["suite"] == "far"}
    assert far == {"base zero_shot", "base prompt short", "adapter"}
    asked = {(is_base, q[0].content, int(q[-1].content.split()[1]) >= 300) for is_base, q in model.questions}
    assert asked == {(True, "Their own words.", False), (True, "One word.", False), (True, "At length.", False), (False, "Their own words.", False),
                     (True, "Their own words.", True), (True, "One word.", True), (False, "Their own words.", True)}  # fmt: skip
    assert all([m.role for m in q].count("system") == 1 for _, q in model.questions)
    assert found.scores["suites"]["held_out"]["differences"]["exact_match"]["baseline"] == "base prompt short"


def test_a_suite_that_is_left_out_is_not_asked() -> None:
    """ByRule has no answer to what other suites ask; ood's questions would be seen."""
    model = Prompted()
    found = evidence(model, label_material(), EvaluateSpec(suites=["held_out"], resamples=1000))
    assert set(found.scores["suites"]) == {"held_out"} and {row["suite"] for row in found.answers} == {"held_out"}
    assert max(int(q[-1].content.split()[1]) for is_base, q in model.questions if not is_base) < 300
    for kind in ("forgetting", "memorisation", "cost"):
        with pytest.raises(AttributeError):
            evidence(ByRule(), label_material(), EvaluateSpec(suites=[kind], resamples=1000))


def test_without_held_out_the_first_ood_suite_is_what_the_verdict_is_about() -> None:
    spec = EvaluateSpec(suites=["held_out", "ood", "transforms"], resamples=1000, transforms=TransformsSpec(families=["casing"]))
    found = evidence(ByRule(), label_material(without=("held_out",)), spec)
    assert found.scores["verdict"]["suite"] == "far" and found.scores["verdict"]["n"] == 12 and found.scores["slices"]["suite"] == "far"
    assert set(found.scores["suites"]["far"]["values"]) >= {"base few_shot", "base few_shot, labels only", "adapter"}
    assert all(of["facts"]["of"] == "far" for of in found.scores["suites"].values() if of["role"] == "transform")
    with pytest.raises(Refusal, match="at least one split"):
        evidence(ByRule(), label_material(without=("held_out", "ood.far")), spec)


class AnyQuestion(ByRule):
    """Says the last word of the question, or of its system prompt; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.questions: list[list[Message]] = []

    def answer_many(self, questions: Sequence[Sequence[Message]], max_new_tokens: int, done: Callable[[int], None] | None = None) -> list[str]:
        self.questions += [list(q) for q in questions]
        return [q[-1].content.split()[-1] for q in questions]

    def label_scores(self, questions: Sequence[Sequence[Message]], labels: Sequence[str], done: Callable[[int], None] | None = None) -> Any:
        return np.tile(-np.arange(1.0, len(labels) + 1), (len(questions), 1))


def test_under_unseen_labels_worked_examples_bear_the_new_names_and_prompts_of_the_recipe_are_not_asked() -> None:
    system = "Answer with red, green or blue."
    train, held_out = ([record(i, split) for i in of] for split, of in (("train", range(900, 930)), ("held_out", range(30))))
    material = Material(build_suites(Splits({"held_out": held_out}, ()), None, 0), train, held_out, "label", 0, system=system)
    spec = EvaluateSpec(suites=["transforms"], resamples=1000, few_shot=3, base_ways=["few_shot"], prompts={"short": "One word."},
                        transforms=TransformsSpec(families=["unseen_labels"], severities=[2]))  # fmt: skip
    model = AnyQuestion()
    found = evidence(model, material, spec)
    suite = found.scores["suites"]["unseen_labels.2"]
    assert "base prompt short" not in suite["values"] and {"base few_shot", "adapter"} & set(suite["values"])
    new = {row["reference"] for row in found.answers if row["suite"] == "unseen_labels.2"}
    assert len(new) == 3 and not new & set(LABELS)
    renamed = [q for q in model.questions if q[0].role == "system" and q[0].content not in (system, "One word.")]
    assert renamed and all({m.content for m in q if m.role == "assistant"} in (new, set()) for q in renamed)
    assert any(m.role == "assistant" for q in renamed for m in q) == ("base few_shot" in suite["values"])


def test_calibration_is_measured_on_ood_too() -> None:
    far = evidence(ByRule(), label_material(), EvaluateSpec(suites=["held_out", "ood"], resamples=1000)).scores["suites"]["far"]
    assert {"ece", "brier"} <= set(far["values"]["adapter"]) and {"ece", "brier"} <= set(far["differences"])


def test_who_was_taken_for_whom_and_how_sure_follow_from_the_rows(graded: Any) -> None:
    facts = graded.scores["suites"]["held_out"]["facts"]
    for contender in (graded.scores["best_base"], "adapter"):
        rows = [r for r in graded.answers if r["suite"] == "held_out" and r["contender"] == contender]
        table = facts["confusion"][contender]
        assert table["labels"] == sorted(LABELS)
        for label, counts, elsewhere in zip(table["labels"], table["counts"], table["elsewhere"], strict=True):
            own = [r["answer"] for r in rows if r["reference"] == label]
            assert counts == [own.count(said) for said in table["labels"]] and elsewhere == len(own) - sum(counts)
        calibration = facts["calibration"][contender]
        assert calibration["n"] == 60 == sum(b["n"] for b in calibration["bins"])
        gaps = sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in calibration["bins"])
        assert calibration["ece"] == pytest.approx(gaps / 60)
        assert calibration["brier"] == pytest.approx(np.mean([r["scores"]["brier"] for r in rows]))


# --- metrics that not every item has ----------------------------------------------------------------------------------


class Counter(ByRule):
    """Says the number of the question, and the base one more; every third time in words."""

    def answer_many(self, questions: Sequence[Sequence[Message]], max_new_tokens: int, done: Callable[[int], None] | None = None) -> list[str]:
        numbers = [int(q[-1].content.split()[1]) + self.base * (int(q[-1].content.split()[1]) % 2) for q in questions]
        return [f"it is {n}" if n % 3 else "many" for n in numbers]


def test_a_metric_that_some_items_lack_keeps_rows_n_and_values_right() -> None:
    def one(i: int) -> Record:
        return Record((Message("user", f"item {i}"), Message("assistant", f"it is {i}" if i % 4 else "nobody knows")), "held_out.jsonl", i + 1, "held_out")

    held_out = [one(i) for i in range(40)]
    material = Material(build_suites(Splits({"held_out": held_out}, ()), None, 0), [record(900, "train")], held_out, "text", 0)
    found = evidence(Counter(), material, EvaluateSpec(suites=["held_out"], metrics=["chrf", "numeric"], resamples=1000, base_ways=["zero_shot"]))
    suite = found.scores["suites"]["held_out"]
    for contender in ("base zero_shot", "adapter"):
        rows = [r for r in found.answers if r["contender"] == contender]
        assert [r["item"] for r in rows if "numeric" in r["scores"]] == [i for i in range(40) if i % 4]
        right = [float(r["answer"] == r["reference"]) for r in rows if r["item"] % 4]
        assert [r["scores"]["numeric"] for r in rows if "numeric" in r["scores"]] == right
        value = suite["values"][contender]["numeric"]
        assert value["n"] == 30 and value["value"] == pytest.approx(np.mean(right)) and suite["values"][contender]["chrf"]["n"] == 40
    gap = suite["differences"]["numeric"]
    assert gap["n"] == 30 and gap["value"] == pytest.approx(
        suite["values"]["adapter"]["numeric"]["value"] - suite["values"]["base zero_shot"]["numeric"]["value"]
    )


@pytest.mark.parametrize(("primary", "task"), [("numeric", "label"), ("context_use", "text")])
def test_a_primary_metric_that_no_item_has_is_refused_with_those_that_there_are(primary: str, task: str) -> None:
    options = MetricOptions(context_field="passage") if primary == "context_use" else MetricOptions()
    with pytest.raises(Refusal) as caught:
        evidence(ByRule(), label_material(task=task), EvaluateSpec(suites=["held_out"], primary=primary, options=options, resamples=1000))
    (problem,) = caught.value.problems
    assert problem.field == "evaluate.primary" and primary in problem.found and "exact_match" in problem.accepted


def test_a_primary_metric_of_labels_is_refused_where_there_are_none() -> None:
    with pytest.raises(Refusal, match=r"data\.task label"):
        metric_names(EvaluateSpec(primary="ece"), "json")
    assert metric_names(EvaluateSpec(primary="ece"), "label")[1] == "ece"


def test_a_recipe_without_any_way_of_asking_the_base_is_refused_before_anyone_is_asked() -> None:
    turns = tuple(Message(role, f"{role} {i}") for i in range(2) for role in ("user", "assistant"))
    model = ByRule()
    with pytest.raises(Refusal, match="zero_shot"):
        evidence(model, label_material(train=[Record(turns, "t", 1, "train")], task="text"), EvaluateSpec(base_ways=["few_shot"]))
    assert model.asked == []


def test_too_few_questions_without_an_answer_are_no_suite_and_the_reason_is_kept() -> None:
    spec = EvaluateSpec(suites=["held_out", "abstention"], abstention=AbstentionSpec(take=5), resamples=1000)
    found = evidence(ByRule(), label_material(), spec)
    assert set(found.scores["suites"]) == {"held_out"} and "at least 10" in found.scores["notes"]["abstention"]["left_out"]["abstention"]


def test_a_judge_over_http_compares_the_adapter_with_the_best_way_of_the_base() -> None:
    def right(asked: dict[str, Any]) -> str:
        one, two = (asked[f"answer_{n}"] in asked["reference_answers"] for n in (1, 2))
        return json.dumps({"better": "tie" if one == two else "1" if one else "2"})

    with serving(right) as server:
        spec = EvaluateSpec(suites=["held_out"], resamples=1000, judge=JudgeSpec(endpoint=server.url, model="judge-1", take=20))
        found = evidence(ByRule(), label_material(), spec)
    facts, rows = found.scores["judge"], [r for r in found.answers if r["suite"] == "judge"]
    said = {(r["contender"], r["item"]): r for r in found.answers if r["suite"] == "held_out"}
    assert facts["n"] == len(rows) == 20 and facts["baseline"] == found.scores["best_base"]
    for row in rows:
        ours, theirs = (said[c, row["item"]]["scores"]["exact_match"] for c in ("adapter", facts["baseline"]))
        assert row["outcome"] == ("same" if ours == theirs == 1 else "tie" if ours == theirs else "win" if ours > theirs else "loss")
        assert row["primary"] == [ours, theirs]
    assert facts["win_share"]["value"] == sum(r["outcome"] == "win" for r in rows) / 20
    asked = {json.loads(body["messages"][-1]["content"])["request"] for body in server.bodies}
    assert asked == {said["adapter", r["item"]]["question"][-1]["content"] for r in rows if r["outcome"] != "same"}
    assert "judge" not in found.scores["suites"]


# --- a real adapter ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """An adapter trained for real, a little, on the tiny base."""
    folder = tmp_path_factory.mktemp("tiny_adapter")
    jsonl(folder / "train.jsonl", colour_rows(24))
    recipe = {"name": "colours", "base": {"model": str(tiny_base), "sanity": "off"}, "data": {"task": "label", "train": "train.jsonl"},
              "template": {"max_tokens": 256}, "train": {"max_steps": 2, "peak_learning_rate": 2e-2}}  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    pipeline.run(load_recipe(folder / "recipe.yaml"), folder / "store", grade_after=False)
    return tuner.load_adapter("colours@1", folder / "store", base=tiny_base, load="fp32")


def sentence(i: int) -> Record:
    messages = (Message("user", f"Where does the painter number {i} live, and what did they paint there?"), Message("assistant", f"In town {i}, a red barn."))
    extra = {"passage": f"Painter {i} lives in town {i} and painted a red barn there."} if i % 3 else {}
    question = f"{messages[0].content} Notes: {extra['passage']} END." if extra else messages[0].content
    return Record((Message("user", question), messages[1]), "held_out.jsonl", i + 1, "held_out", extra)


def ticket(i: int) -> Record:
    answer = json.dumps({"colour": LABELS[i % 3], "size": i, "parts": ["a", "b"]})
    return Record(
        (Message("user", f"colour: {LABELS[i % 3]}\nsize: {i}\nwish: please send it soon"), Message("assistant", answer)), "h.jsonl", i + 1, "held_out"
    )


def all_follow_from_rows(found: Any) -> int:
    """Asserts that each value and difference follows from the rows as they are written; gives how many did."""
    rows = [json.loads(json.dumps(row)) for row in found.answers]
    checked = 0
    for name, suite in found.scores["suites"].items():
        got: dict[tuple[str, str], float | None] = {}
        for contender, of in suite["values"].items():
            own = [r for r in rows if r["suite"] == name and r["contender"] == contender]
            for metric, stated in of.items():
                got[contender, metric] = value(metric, suite["metrics"][metric], own)
                if got[contender, metric] is not None and metric != "adapter_bytes":
                    assert got[contender, metric] == pytest.approx(stated["value"], rel=1e-6, abs=1e-9), (name, contender, metric)
                    checked += 1
        for metric, gap in suite["differences"].items():
            ours, theirs = got["adapter", metric], got[gap["baseline"], metric]
            if ours is not None and theirs is not None:
                assert gap["value"] == pytest.approx(ours - theirs, rel=1e-6, abs=1e-9), (name, metric)
                checked += 1
    return checked


@pytest.mark.parametrize("task", ["text", "json"])
def test_a_text_and_a_json_task_are_graded_by_their_own_metrics_on_every_suite_of_answers(task: str, tiny: Adapter) -> None:
    make = sentence if task == "text" else ticket
    held_out, train = [make(i) for i in range(12)], [make(i) for i in range(100, 110)]
    far = [make(i) for i in range(200, 206)]
    material = Material(build_suites(Splits({"held_out": held_out, "ood.far": far}, ()), None, 0), train, held_out, task, 0, adapter_bytes=5)
    spec = EvaluateSpec(
        suites=["held_out", "ood", "transforms", "abstention", "cost"], resamples=1000, max_new_tokens=4, few_shot=2, abstention=AbstentionSpec(take=12),
        transforms=TransformsSpec(families=["casing", "typos", "system_prompt"], take=8),
    )  # fmt: skip
    found = evidence(tiny, material, spec)
    assert {s["role"] for s in found.scores["suites"].values()} == {"held_out", "ood", "transform", "abstention", "cost"}
    assert set(found.scores["suites"]["held_out"]["values"]["adapter"]) == set(DEFAULT_METRICS[task])
    assert found.scores["primary"] == DEFAULT_METRICS[task][0] and "confusion" not in found.scores["suites"]["held_out"]["facts"]
    assert not any("labels only" in name for name in found.scores["contenders"])
    assert all_follow_from_rows(found) > 80


@pytest.mark.parametrize("options", [{"context_field": "passage"}, {"context_start": "Notes:", "context_end": "END."}])
def test_a_context_of_the_recipe_reaches_the_metrics_about_it(options: dict[str, str], tiny: Adapter) -> None:
    held_out = [sentence(i) for i in range(9)]
    suites = build_suites(Splits({"held_out": held_out}, ()), None, 0, MetricOptions(**options))
    names = ["chrf", "grounded_sentences", "context_use", "context_gain"]
    spec = EvaluateSpec(suites=["held_out"], metrics=names, options=MetricOptions(**options), resamples=1000, max_new_tokens=4, base_ways=["zero_shot"])
    found = evidence(tiny, Material(suites, [sentence(100)], held_out, "text", 0), spec)
    values = found.scores["suites"]["held_out"]["values"]
    assert {name: values["adapter"][name]["n"] for name in names} == {"chrf": 9, "grounded_sentences": 6, "context_use": 6, "context_gain": 6}
    rows = [r for r in found.answers if r["contender"] == "adapter"]
    assert [r["item"] for r in rows if "context_gain" in r["scores"]] == [1, 2, 4, 5, 7, 8]
    whole = [r for r in held_out if r.extra]
    by_column = "context_field" in options
    bare = [r.question.replace(r.extra["passage"], " ") if by_column else f"{r.question.split('Notes:')[0]}\n" for r in whole]
    answers = [r.completion for r in whole]
    with_it, without = (tiny.losses([[{"role": "user", "content": q}] for q in of], answers) for of in ([r.question for r in whole], bare))
    gained = (sum(nats for nats, _ in without) - sum(nats for nats, _ in with_it)) / sum(tokens for _, tokens in with_it)
    assert values["adapter"]["context_gain"]["value"] == pytest.approx(gained, rel=1e-3)
    assert all_follow_from_rows(found) == 2 * 4 + 4


def test_an_interrupted_evaluation_goes_on_and_ends_as_one_that_was_not(tiny: Adapter, tmp_path: Path) -> None:
    material, spec = label_material(), EvaluateSpec(suites=["held_out", "ood"], resamples=1000, max_new_tokens=3, few_shot=2)
    wanted = evidence(tiny, material, spec)

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "far: adapter":
            raise KeyboardInterrupt

    asked: list[int] = []
    answer_many = tiny.answer_many

    def counted(questions: Any, *rest: Any) -> list[str]:
        asked.append(len(questions))
        return answer_many(questions, *rest)

    tiny.answer_many = counted  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            evidence(Remembered.of(tiny, tmp_path, 2), material, spec, interrupt)
        before = sum(asked)
        asked.clear()
        found = evidence(Remembered.of(tiny, tmp_path, 2), material, spec)
    finally:
        tiny.answer_many = answer_many  # type: ignore[method-assign]
    assert before >= 90 and sum(asked) <= 24
    assert [(r["suite"], r["item"], r["contender"], r["answer"]) for r in found.answers] == [
        (r["suite"], r["item"], r["contender"], r["answer"]) for r in wanted.answers]  # fmt: skip
    assert found.scores["verdict"] == wanted.scores["verdict"]


class Degenerate(AnyQuestion):
    """Says next to nothing: empty answers, one number, half an object; equal likelihoods."""

    def answer_many(self, questions: Sequence[Sequence[Message]], max_new_tokens: int, done: Callable[[int], None] | None = None) -> list[str]:
        return [("", "red", "no", '{"a": 1}', "7")[(len(q[-1].content) + self.base) % 5] for q in questions]

    def token_nats(self, questions: Any, answers: Sequence[str], done: Callable[[int], None] | None = None) -> list[list[float]]:
        return [[0.0] for _ in answers]


@pytest.mark.parametrize("task", ["label", "text", "json"])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_of_one_item_or_of_answers_without_content_every_number_is_one(task: str, n: int) -> None:
    swept = 0
    for references in (["red"], ["red", "green"], ['{"a": 1}'], ["7"], ["", " "]):
        records = [Record((Message("user", f"item {i}"), Message("assistant", references[i % len(references)])), "h", i, "held_out") for i in range(n)]
        spec = EvaluateSpec(suites=["held_out", "ood", "transforms", "abstention"], resamples=1000, few_shot=2, options=MetricOptions(context_start="item"),
                            metrics=[name for name in METRICS if name == "grounded_sentences" or name not in NEEDS])  # fmt: skip
        suites = build_suites(Splits({"held_out": records, "ood.far": records[:1]}, ()), None, 0, spec.options)
        found = evidence(Degenerate(), Material(suites, records, records, task, 0), spec)
        assert json_text(found.scores) and found.verdict in ("better", "worse", "no difference seen")
        swept += len(found.scores["suites"]["held_out"]["values"]["adapter"])
    assert swept >= 5 * 15
