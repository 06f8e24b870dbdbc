"""Questions without an answer: what counts as declining, what as a confident invention, and that refusing everything does not win."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.evaluate.ood_samples import held_out, records
from tuner.data.record import Message, Record
from tuner.errors import Refusal
from tuner.evaluate.abstention import DOCUMENT_SILENT, FROM_THE_TEXT, abstention_result, abstention_suite, confidences, document_and_question
from tuner.evaluate.abstention_phrases import empty_object, says_nothing
from tuner.evaluate.perturb_context import listed
from tuner.evaluate.result import ADAPTER
from tuner.evaluate.spec import AbstentionSpec
from tuner.evaluate.suites import Item, Suite, suite_of

ZERO = "base zero_shot"


def label_records(labels: Sequence[str]) -> list[Record]:
    return [Record((Message("user", f"thing number {i}"), Message("assistant", labels[i % len(labels)])), "train.jsonl", i + 1, "train") for i in range(30)]


def held(items: Sequence[tuple[str, str]]) -> Suite:
    return suite_of("held_out", "held_out", [Item((Message("user", q),), (a,), f"h:{i}") for i, (q, a) in enumerate(items)])


# --- what declining looks like -------------------------------------------------------------------------------------

DECLINED = (
    "I don't know.", "I do not know what you had for breakfast.", "The document does not say.", "The passage doesn't mention her shoe size.",
    "I'm sorry, but I cannot answer that.", "Sorry, I can't tell from this text.", "I have no way of knowing that.",
    "There is no information about this in the text.", "It is not stated.", "This cannot be determined from the context.", "unknown", "N/A", "None.",
    "Not specified", "Nobody can know that.", "I am unable to answer this question.", "That is outside of my knowledge.",
    "The text says nothing about it.", "I’m afraid I don’t have enough information to say.", "The question cannot be answered.", " ",
)  # fmt: skip
ANSWERED = (
    "The Eagle is a coffee shop near Burger King.", "She did not attend the meeting.", "It is not known for its food but it is cheap.",
    "The answer is no.", "No.", "The shop does not provide delivery.", "I am sorry to hear that. Your parcel arrives tomorrow.",
    "He says that he could not find his keys.", "None of the three rooms is free.", "Unknown Pleasures is an album by Joy Division.",
    "You had toast and eggs for breakfast.", "The information desk is on the left.", "There is no coffee shop here that is not child friendly.",
)  # fmt: skip


def test_declining_in_many_words_is_seen() -> None:
    assert [a for a in DECLINED if not says_nothing(a, "text")] == []


def test_answers_are_not_taken_for_declining() -> None:
    assert [a for a in ANSWERED if says_nothing(a, "text")] == []
    real = [r.completion for name in ("e2e",) for r in records(name, "validation")]
    assert len(real) > 500 and not [a for a in real if says_nothing(a, "text")]
    labels = {r.completion for r in records("clinc150", "train")}
    assert {label for label in labels if says_nothing(label, "label", "none")} == {"none"}


def test_a_json_answer_declines_when_it_says_nothing_but_that_no_label_fits() -> None:
    nothing = (
        "{}",
        '{"intent": [], "slots": {}}',
        '{"intent": ["outofdomain"], "slots": {}}',
        '{"label": "None of the above"}',
        "null",
        '{"a": null, "b": ""}',
        "I don't know.",
    )
    something = (
        '{"intent": ["thankyou"], "slots": {}}',
        '{"intent": ["outofdomain"], "slots": {"item": ["lamp"]}}',
        '{"n": 0}',
        '{"intent": ["out',
        "thankyou",
    )
    assert all(says_nothing(a, "json") for a in nothing)
    assert not any(says_nothing(a, "json") for a in something)
    real = [r.completion for r in records("multidogo", "train")]
    wanted = sum(json.loads(a)["intent"] == ["outofdomain"] and not json.loads(a)["slots"] for a in real)
    assert sum(empty_object(a) for a in real) == wanted > 50


def test_declining_later_on_in_a_long_answer_is_not_declining() -> None:
    assert not says_nothing("Berlin is the capital of Germany. " * 8 + "I don't know more.", "text")


# --- which questions -----------------------------------------------------------------------------------------------


def test_there_are_enough_questions_and_none_twice() -> None:
    everyday, unknowable = listed("everyday.txt"), listed("unknowable.txt")
    assert len(set(everyday)) == len(everyday) >= 200 and len(set(unknowable)) == len(unknowable) >= 60
    assert not any(c.isdigit() for q in (*everyday, *unknowable) for c in q)


def test_a_label_task_gets_everyday_questions_whose_answer_is_its_none_label() -> None:
    made = abstention_suite(records("clinc150", "train"), held_out("clinc150"), "label", AbstentionSpec(), "small", 0)
    assert made.label == "none" and made.possible and len(made.suite.items) == 40 and set(made.kinds) == {"out_of_scope"}
    assert all(i.references == ("none",) and i.messages[0].content in listed("everyday.txt") for i in made.suite.items)
    full = abstention_suite(records("clinc150", "train"), held_out("clinc150"), "label", AbstentionSpec(), "full", 0)
    assert len(full.suite.items) == 200 and full.left_out["near_train"].startswith("3 of 230")  # `freeze`, `change`: words of labels


def test_questions_near_a_training_question_or_of_a_labels_words_are_dropped() -> None:
    train = [*label_records(("bird_sounds", "none")), Record((Message("user", "Why do stars TWINKLE?"), Message("assistant", "none")), "t", 9, "train")]
    asked = {i.messages[0].content for i in abstention_suite(train, held([("x", "none")]), "label", AbstentionSpec(take=230), "full", 0).suite.items}
    assert "why do stars twinkle" not in asked and len(asked) > 200
    assert not any("bird" in q.split() or "birds" in q.split() for q in asked)


@pytest.mark.parametrize("label", ["other", "Out-of-Scope", "out of scope", "unknown", "OutOfDomain", "none_of_the_above", "N/A"])
def test_the_none_label_is_found_by_its_name(label: str) -> None:
    made = abstention_suite(label_records(("red", label, "blue")), held([("x", "red")]), "label", AbstentionSpec(), "small", 0)
    assert made.label == label and made.possible


def test_a_label_the_recipe_names_must_be_one_of_train() -> None:
    train = label_records(("red", "misfit"))
    assert abstention_suite(train, held([]), "label", AbstentionSpec(label="misfit"), "small", 0).label == "misfit"
    with pytest.raises(Refusal, match=r"evaluate\.abstention\.label"):
        abstention_suite(train, held([]), "label", AbstentionSpec(label="mistfit"), "small", 0)


def test_a_json_task_wants_its_own_empty_object() -> None:
    made = abstention_suite(records("multidogo", "train"), held_out("multidogo"), "json", AbstentionSpec(), "small", 0)
    assert {i.references[0] for i in made.suite.items} == {'{"intent": ["outofdomain"], "slots": {}}'}
    bare = abstention_suite([Record((Message("user", "q"), Message("assistant", '{"a": 1}')), "t", 1, "train")], held([]), "json", AbstentionSpec(), "small", 0)
    assert {i.references[0] for i in bare.suite.items} == {"{}"}


def test_items_carry_the_system_turn_that_held_out_carries() -> None:
    suite = suite_of("held_out", "held_out", [Item((Message("system", "Be brief."), Message("user", "q")), ("a",), "h")])
    made = abstention_suite(label_records(("red", "none")), suite, "text", AbstentionSpec(), "small", 0)
    assert all(i.messages[0] == Message("system", "Be brief.") for i in made.suite.items) and set(made.kinds) == {"unknowable"}


# --- the document does not say -------------------------------------------------------------------------------------

TOPICS = (
    "lighthouse keeper",
    "bakery oven",
    "mountain railway",
    "glass harp",
    "beehive inspector",
    "paper kite",
    "salt mine",
    "river ferry",
    "clock tower",
    "wool market",
    "tin whistle",
    "rose garden",
)


def document(topic: str) -> str:
    return f"The {topic} stands at the heart of this story. " + f"Everybody who has ever seen the {topic} tells the next person about it. " * 4


def questions_about(form: str) -> list[tuple[str, str]]:
    return [(form.format(document=document(t), question=f"Who first described the {t}?"), f"Person {i} of the {t}") for i, t in enumerate(TOPICS)]


@pytest.mark.parametrize("form", ["{question}\n\n{document}", "{document}\n\n{question}", "Context: {document}\n\nQuestion: {question}\nAnswer:"])
def test_a_question_is_put_to_a_document_that_does_not_answer_it(form: str) -> None:
    items = questions_about(form)
    made = abstention_suite([], held(items), "text", AbstentionSpec(take=20), "small", 0)
    silent = [i for i, kind in zip(made.suite.items, made.kinds, strict=True) if kind == "document_silent"]
    assert len(silent) == 10 and all(i.references == (DOCUMENT_SILENT,) for i in silent)
    for item in silent:
        turn = item.messages[0].content
        (asked,) = [t for t in TOPICS if f"Who first described the {t}?" in turn]
        (shown,) = [t for t in TOPICS if f"The {t} stands" in turn]
        assert asked != shown and turn.endswith(FROM_THE_TEXT)


def test_turns_without_a_document_or_about_any_document_are_not_paired() -> None:
    assert document_and_question("Where is my parcel?") is None
    assert document_and_question("Where is it?\n\nshort note") is None
    anything = [(f"Can you summarize the text on the {t}?\n\n{document(t)}", "s") for t in TOPICS]
    made = abstention_suite([], held(anything), "text", AbstentionSpec(), "small", 0)
    assert set(made.kinds) == {"unknowable"} and "document" in made.left_out["document_silent"]


# --- what is measured ----------------------------------------------------------------------------------------------


def held_out_rows(answers: dict[str, list[str]], references: list[str]) -> list[dict[str, Any]]:
    return [
        {"suite": "held_out", "item": i, "contender": c, "where": f"h:{i}", "question": [], "references": [reference], "answer": answer, "scores": {}}
        for c, of in answers.items() for i, (answer, reference) in enumerate(zip(of, references, strict=True))
    ]  # fmt: skip


def test_every_number_follows_from_the_rows() -> None:
    train = label_records(("red", "blue", "none"))
    made = abstention_suite(train, held([("x", "red")]), "label", AbstentionSpec(confident=0.6), "small", 0)
    texts = {ADAPTER: ["none" if i % 4 == 0 else "red" for i in range(40)], ZERO: ["I do not know" if i % 2 else "blue" for i in range(40)]}
    sure = {ADAPTER: [0.9 if i % 3 else 0.3 for i in range(40)], ZERO: [0.5] * 40}
    rows = held_out_rows({ADAPTER: ["red", "none", "none", "red"], ZERO: ["red"] * 4, "base few_shot": ["none"] * 4}, ["red", "red", "none", "blue"])
    found = abstention_result(made, texts, sure, AbstentionSpec(confident=0.6), rows, ZERO, 1000, 0)
    for contender in (ADAPTER, ZERO):
        declined = [t == "none" or "not know" in t for t in texts[contender]]
        wrong = [not d and s > 0.6 for d, s in zip(declined, sure[contender], strict=True)]
        assert found.values[contender]["abstained"].value == pytest.approx(sum(declined) / 40)
        assert found.values[contender]["confident_wrong"].value == pytest.approx(sum(wrong) / 40)
        for metric in found.metrics:
            scores = [r["scores"][metric] for r in found.rows if r["contender"] == contender and metric in r["scores"]]
            assert found.values[contender][metric].value == pytest.approx(sum(scores) / len(scores)) and found.values[contender][metric].n == len(scores)
    assert found.values[ADAPTER]["over_refusal"].n == 3 and found.values[ADAPTER]["over_refusal"].value == pytest.approx(1 / 3)  # "none" was right once
    assert found.values[ZERO]["over_refusal"].value == 0.0
    assert found.differences["abstained"].value == pytest.approx(10 / 40 - 20 / 40) and found.differences["abstained"].baseline == ZERO
    assert found.n == 40 and found.role == "abstention" and "base few_shot" not in {r["contender"] for r in found.rows}
    assert json.dumps(found.as_dict()) and "of 40 questions without an answer" in found.facts["words"]
    assert len({(r["contender"], r["item"]) for r in found.rows}) == len(found.rows) == 2 * 43


def test_refusing_everything_is_worse_in_over_refusal() -> None:
    made = abstention_suite(label_records(("red", "blue", "none")), held([("x", "red")]), "label", AbstentionSpec(), "small", 0)
    rows = held_out_rows({ADAPTER: ["none"] * 30, ZERO: ["red"] * 30}, ["red"] * 30)
    found = abstention_result(
        made, {ADAPTER: ["none"] * 40, ZERO: ["red"] * 40}, {ADAPTER: [1.0] * 40, ZERO: [1.0] * 40}, AbstentionSpec(), rows, ZERO, 1000, 0
    )
    assert found.differences["abstained"].verdict == "better" and found.differences["confident_wrong"].verdict == "better"
    assert found.differences["over_refusal"].verdict == "worse"


def test_a_label_set_without_a_none_label_cannot_abstain_and_says_so() -> None:
    made = abstention_suite(label_records(("red", "blue")), held([("x", "red")]), "label", AbstentionSpec(), "small", 0)
    assert not made.possible and made.label is None
    found = abstention_result(made, {ADAPTER: ["red"] * 40}, {ADAPTER: [0.99] * 40}, AbstentionSpec(), [], ZERO, 1000, 0)
    assert found.facts["words"].startswith("Cannot abstain") and found.values[ADAPTER]["confident_wrong"].value == 1.0
    assert found.differences == {} and "over_refusal" not in found.metrics


class Sure:
    """A contestant of which only the loss is asked."""

    @contextlib.contextmanager
    def as_base(self) -> Iterator[Sure]:
        yield self

    def losses(self, questions: Any, answers: Sequence[str], done: Any = None) -> list[tuple[float, int]]:
        return [(float(len(a)), 2) for a in answers]


def test_confidence_is_the_geometric_mean_of_the_answers_token_probabilities() -> None:
    assert confidences(Sure(), ["q", "q"], ["", "abcd"]) == pytest.approx([1.0, math.exp(-4 / 2)])  # type: ignore[arg-type]


def test_answerable_questions_of_one_source_are_drawn_together() -> None:
    made = abstention_suite(label_records(("red", "blue", "none")), held([("x", "red")]), "label", AbstentionSpec(), "small", 0)
    said = {ADAPTER: ["none" if i // 5 % 3 == 0 else "red" for i in range(60)], ZERO: ["red"] * 60}
    rows = [{**r, "group": f"s{r['item'] // 5}"} for r in held_out_rows(said, ["red"] * 60)]
    texts, sure = {c: ["none"] * 40 for c in said}, {c: [1.0] * 40 for c in said}
    found = abstention_result(made, texts, sure, AbstentionSpec(), rows, ZERO, 1000, 0)
    assert "12 groups" in found.values[ADAPTER]["over_refusal"].method and "12 groups" in found.differences["over_refusal"].method
    assert "groups" not in found.values[ADAPTER]["abstained"].method
    assert {r["group"] for r in found.rows if r["kind"] == "in_scope"} == {f"s{i}" for i in range(12)}


def test_a_question_put_to_another_document_keeps_its_source() -> None:
    items = [replace(i, group=f"book {at // 2}") for at, i in enumerate(held(questions_about("{question}\n\n{document}")).items)]
    made = abstention_suite([], suite_of("held_out", "held_out", items), "text", AbstentionSpec(take=20), "small", 0)
    assert all((i.group is not None) == (kind == "document_silent") for i, kind in zip(made.suite.items, made.kinds, strict=True))
    texts, sure = {ADAPTER: ["I do not know."] * 20}, {ADAPTER: [1.0] * 20}
    found = abstention_result(made, texts, sure, AbstentionSpec(), [], ZERO, 1000, 0)
    assert "groups" in found.values[ADAPTER]["abstained"].method
