"""Groundedness and use of a retrieved context: what they see, and what they are known not to see."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tuner.evaluate.metric_context import context_of, sentences, ungrounded
from tuner.evaluate.metrics import METRICS, Answer
from tuner.evaluate.spec import MetricOptions

CONTEXT = "The Vaults is a pub in Leeds, painted red in 1987 by Ann Ward. It serves Chinese food for £20 to £25 and has three rooms."
QUESTION = "What is The Vaults and who painted it?"


def value(name: str, answers: Sequence[Answer]) -> float:
    metric = METRICS[name]
    return float(metric.combine(metric.parts(answers).sum(axis=0)))


def about(said: str) -> Answer:
    return Answer(("x",), said, question=QUESTION, context=CONTEXT)


@pytest.mark.parametrize(("said", "grounded"), [
    ("The Vaults is a pub in Leeds.", 1), ("It was painted in 1987 by Ann Ward.", 1), ("It has 3 rooms.", 1), ("Yes.", 1),
    ("It was painted in 1988 by Ann Ward.", 0), ("It was painted by Bob Stone.", 0), ("Bananas ripen quickly under tropical sunshine.", 0), ("", 0),
    ("It serves food for £20. It was built by Romans.", 0.5), ("1. The Vaults\n2. painted red", 1),
])  # fmt: skip
def test_a_sentence_is_grounded_by_its_numbers_names_and_most_words(said: str, grounded: float) -> None:
    assert value("grounded_sentences", [about(said)]) == grounded


def test_one_value_exchanged_for_another_of_the_context_is_not_seen() -> None:
    """The limit that the docs state."""
    assert value("grounded_sentences", [about("The Vaults serves Chinese food for £25 to £20, painted in Leeds by 1987 Ann Ward.")]) == 1


def test_sentences_are_pooled_over_items_and_an_empty_answer_counts_as_one() -> None:
    assert value("grounded_sentences", [about("It is a pub. It is red. It is in Leeds."), about("")]) == pytest.approx(3 / 4)


def test_what_came_from_nowhere_is_shown() -> None:
    found = ungrounded(about("The Vaults is a pub. It was sold to Zed Corp in 2005."))
    assert [s for s, _ in found] == ["It was sold to Zed Corp in 2005."]
    assert {"2005", "Zed", "Corp"} <= set(found[0][1])


def test_context_use_counts_words_beyond_the_question() -> None:
    assert value("context_use", [about("Ann Ward painted it.")]) == 1  # ann, ward; painted stands in the question
    assert value("context_use", [about("A famous pub in Leeds.")]) == pytest.approx(2 / 3)
    assert value("context_use", [about("The Vaults."), about("")]) == 0
    assert value("context_use", [about("The Vaults."), about("pub")]) == 1


def test_the_context_is_read_from_its_column_or_from_between_marks() -> None:
    column, marks = MetricOptions(context_field="passage"), MetricOptions(context_start="Context:", context_end="Question:")
    assert context_of("Read: Red. Which?", {"passage": "Red."}, column) == ("Red.", "Read:   Which?")
    assert context_of("Which?", {}, column) is None and context_of("Which?", {"passage": 7}, column) is None
    assert context_of("Context: Red.\nQuestion: Which?", {}, marks) == (" Red.\n", "\n Which?")
    assert context_of("Question: Which?", {}, marks) is None
    assert context_of("Which? Context: Red.", {}, MetricOptions(context_start="Context:")) == (" Red.", "Which? \n")


def test_sentences_of_several_scripts_and_lists() -> None:
    assert sentences("One. Two! 三。四。\n- five\n\n...\n2) six") == ["One.", "Two!", "三。", "四。", "five", "six"]
