"""Who is asked, and exactly what they are given: system prompts, worked examples, labels, renamed labels, questions without their context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.evaluate.scripted import Scripted
from tuner.data.record import Message, Record
from tuner.evaluate.contenders import ask, contenders, fitted, label_names
from tuner.evaluate.spec import EvaluateSpec
from tuner.evaluate.suites import Item, suite_of


def record(question: str, answer: str, system: str | None = None) -> Record:
    head = () if system is None else (Message("system", system),)
    return Record((*head, Message("user", question), Message("assistant", answer)), "train.jsonl", 1, "train")


TRAIN = [record(f"thing {i}", ("red", "green", "blue")[i % 3], "Name it." if i % 2 else None) for i in range(12)]
OWN = Item((Message("system", "Own words."), Message("user", "what is it")), ("red",), "held_out.jsonl:1")
BARE = Item((Message("user", "what is that"),), ("green", "dark green"), "held_out.jsonl:2")


class Witness(Scripted):
    """A contestant that notes what it is given; losses are the characters of question and answer, so that sums can be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[str, bool, list[Message], Any]] = []

    def _note(self, what: str, questions: Sequence[list[Message]], of: Any) -> None:
        self.given += [(what, self.base, q, o) for q, o in zip(questions, of, strict=True)]

    def answer_many(self, questions: Sequence[list[Message]], max_new_tokens: int, done: Any = None) -> list[str]:
        self._note("answer", questions, [max_new_tokens] * len(questions))
        if done is not None:
            done(len(questions))
        return [f"to {q[-1].content}" for q in questions]

    def label_scores(self, questions: Sequence[list[Message]], labels: Sequence[str], done: Any = None) -> Any:
        self._note("labels", questions, [tuple(labels)] * len(questions))
        return np.array([[-float(abs(len(label) - len(q[0].content))) for label in labels] for q in questions])

    def losses(self, questions: Sequence[list[Message]], answers: Sequence[str], done: Any = None) -> list[tuple[float, int]]:
        self._note("loss", questions, answers)
        return [(float(sum(len(m.content) for m in q) + len(a)), 1) for q, a in zip(questions, answers, strict=True)]


def named(name: str, spec: EvaluateSpec, task: str = "label") -> Any:
    return next(c for c in contenders(TRAIN, spec, task, 0) if c.name == name)


def test_the_base_is_asked_in_every_way_of_the_recipe_and_the_adapter_last() -> None:
    spec = EvaluateSpec(prompts={"short": "One word."}, few_shot=2)
    ways = ["base zero_shot", "base few_shot", "base prompt short"]
    assert [c.name for c in contenders(TRAIN, spec, "text", 0)] == [*ways, "adapter"]
    constrained = [c.name for c in contenders(TRAIN, spec, "label", 0)]
    assert constrained == [name for way in ways for name in (way, f"{way}, labels only")] + ["adapter"]
    assert [c.is_base for c in contenders(TRAIN, spec, "text", 0)] == [True, True, True, False]
    assert [c.name for c in contenders(TRAIN, EvaluateSpec(base_ways=["few_shot", "few_shot"]), "json", 0)] == ["base few_shot", "adapter"]


def test_worked_examples_are_left_out_where_no_record_fits_as_one() -> None:
    turns = tuple(Message(role, f"{role} {i}") for i in range(2) for role in ("user", "assistant"))
    long = [Record(turns, "train.jsonl", 1, "train")]
    assert [c.name for c in contenders(long, EvaluateSpec(), "text", 0)] == ["base zero_shot", "adapter"]


def test_a_prompt_of_the_recipe_replaces_the_records_own() -> None:
    prompted = named("base prompt short", EvaluateSpec(prompts={"short": "One word."}))
    assert [(m.role, m.content) for m in prompted.question(OWN)] == [("system", "One word."), ("user", "what is it")]
    assert [(m.role, m.content) for m in prompted.question(BARE)] == [("system", "One word."), ("user", "what is that")]
    plain = named("base zero_shot", EvaluateSpec())
    assert plain.question(OWN) == list(OWN.messages) and plain.question(BARE) == list(BARE.messages)


def test_worked_examples_stand_between_the_system_turn_and_the_question_and_bring_no_system_turn_of_their_own() -> None:
    few = named("base few_shot", EvaluateSpec(few_shot=3))
    asked = few.question(OWN)
    assert [m.role for m in asked] == ["system", *["user", "assistant"] * 3, "user"] and asked[0].content == "Own words."
    assert {m.content for m in asked if m.role == "assistant"} == {"red", "green", "blue"}
    assert [m.role for m in few.question(BARE)] == [*["user", "assistant"] * 3, "user"]


def test_labels_are_those_of_train_and_only_a_label_task_has_them() -> None:
    assert label_names(TRAIN, "label") == ("blue", "green", "red") and label_names(TRAIN, "text") == label_names(TRAIN, "json") == ()


def test_the_base_is_asked_as_the_base_and_the_adapter_as_itself() -> None:
    suite, spec = suite_of("held_out", "held_out", [OWN, BARE]), EvaluateSpec(max_new_tokens=7, few_shot=1)
    for contender in contenders(TRAIN, spec, "label", 0):
        witness, counted = Witness(), []
        ask(witness, contender, suite, spec, counted.append)
        assert {is_base for _, is_base, _, _ in witness.given} == {contender.is_base} and sum(counted) == 2
        assert {n for what, _, _, n in witness.given if what == "answer"} <= {7}
        assert all(list(q) == contender.question(item) for what, _, q, _ in witness.given if what == "answer"
                   for item in suite.items if item.messages[-1] == q[-1])  # fmt: skip
        assert witness.base is False


def test_a_constrained_answer_is_the_likeliest_label_and_has_no_loss() -> None:
    spec = EvaluateSpec()
    witness = Witness()
    said = ask(witness, named("base zero_shot, labels only", spec), suite_of("s", "held_out", [OWN, BARE]), spec, lambda items: None)
    assert [a.text for a in said.answers] == ["green", "green"]  # of blue, green and red the longest is nearest to the questions' length
    assert said.has == {"text", "labels"} and [a.tokens for a in said.answers] == [0, 0] and {what for what, *_ in witness.given} == {"labels"}
    assert [set(a.label_nats or {}) for a in said.answers] == [{"red", "green", "blue"}] * 2


def test_the_losses_of_all_references_of_an_item_are_summed() -> None:
    spec = EvaluateSpec()
    said = ask(Witness(), named("adapter", spec), suite_of("s", "held_out", [OWN, BARE]), spec, lambda items: None)
    assert said.has == {"text", "loss"}
    one, two = said.answers
    assert (one.nats, one.tokens, one.bytes) == (len("Own words.what is it") + len("red"), 1, 3)
    assert (two.nats, two.tokens, two.bytes) == (2 * len("what is that") + len("greendark green"), 2, len("greendark green"))


def test_nothing_is_read_that_was_not_asked_for() -> None:
    witness, spec = Witness(), EvaluateSpec()
    said = ask(witness, named("adapter", spec), suite_of("s", "abstention", [BARE]), spec, lambda items: None, reading=frozenset())
    assert {what for what, *_ in witness.given} == {"answer"} and said.has == {"text"}


def test_under_other_label_names_worked_examples_and_labels_are_renamed_and_questions_stay() -> None:
    names = {"red": "K1", "green": "K2", "blue": "K3"}
    spec, witness = EvaluateSpec(few_shot=3), Witness()
    for way in ("base few_shot", "base few_shot, labels only"):
        ask(witness, named(way, spec), suite_of("unseen_labels.2", "transform", [OWN]), spec, lambda items: None, renamed=names)
    free = next(q for what, _, q, _ in witness.given if what == "answer")
    constrained = next(q for what, _, q, _ in witness.given if what == "labels")
    for asked in (free, constrained):
        assert sorted(m.content for m in asked if m.role == "assistant") == ["K1", "K2", "K3"]
        assert all(m.content.startswith(("thing", "what")) for m in asked if m.role == "user")
    assert next(labels for what, _, _, labels in witness.given if what == "labels") == ("K3", "K2", "K1")
    plain = ask(Witness(), named("adapter", spec), suite_of("s", "held_out", [OWN]), spec, lambda items: None, also_labels=("red", "blue"))
    assert set(plain.answers[0].label_nats or {}) == {"red", "blue"} and plain.has == {"text", "loss", "labels"}


def test_what_the_context_saves_is_read_on_the_same_question_without_it() -> None:
    question = "Who painted it? Context: Frida painted it in 1932."
    held = Item((Message("user", question),), ("Frida",), "h:1", context="Frida painted it in 1932.", asked="Who painted it? Context: ")
    without = Item((Message("user", "Who are you?"),), ("Nobody",), "h:2")
    spec, witness = EvaluateSpec(), Witness()
    said = ask(witness, named("adapter", spec, "text"), suite_of("s", "held_out", [held, without]), spec, lambda items: None,
               reading=frozenset({"loss", "context_loss"}))  # fmt: skip
    one, two = said.answers
    assert one.nats_without_context == pytest.approx(one.nats - len("Frida painted it in 1932.")) and two.nats_without_context is None
    assert (one.context, one.question, two.context) == (held.context, held.asked, None)


class Room(Witness):
    """A context of 60 words."""

    def fits(self, questions: Sequence[list[Message]], room: int) -> list[bool]:
        return [sum(len(m.content.split()) for m in q) + room <= 60 for q in questions]


def test_as_many_worked_examples_are_kept_as_fit_beside_the_longest_question() -> None:
    few = named("base few_shot", EvaluateSpec(few_shot=8))  # three words an example: question of two, answer of one
    items = [Item((Message("user", "word " * n),), ("red",), f"h:{n}") for n in (3, 40)]
    for room, kept in ((0, 6), (2, 6), (3, 5), (14, 2), (17, 1)):
        found = fitted(Room(), few, items, room)
        assert found is not None and len(found.examples) == 2 * kept and found.examples == few.examples[: 2 * kept], room
    assert fitted(Room(), few, items, 18) is None
    plain = named("base zero_shot", EvaluateSpec())
    assert fitted(Room(), plain, items, 100) == plain  # a question alone that does not fit is refused when it is asked


def test_the_adapter_answers_with_the_likeliest_label_where_the_recipe_says_so() -> None:
    labels = label_names(TRAIN, "label")
    chosen = contenders(TRAIN, EvaluateSpec(label_answers="likeliest"), "label", 0)[-1]
    assert (chosen.name, chosen.labels, chosen.is_base) == ("adapter", labels, False) and labels
    assert contenders(TRAIN, EvaluateSpec(label_answers="likeliest"), "text", 0)[-1].labels == ()
    assert contenders(TRAIN, EvaluateSpec(), "label", 0)[-1].labels == ()
