"""Structured input keeps every key and value in any order and any form; the instruction and the labels change by rule."""

from __future__ import annotations

import json

import pytest

from tests.evaluate.ood_samples import BANKING, SYSTEM, asked
from tuner.data.record import Message
from tuner.evaluate.perturb import TRANSFORMS, Asked, perturbed
from tuner.evaluate.perturb_context import label_map
from tuner.evaluate.perturb_forms import find_form, written


def changed(text: str, family: str, severity: int) -> str:
    found = perturbed(Asked((Message("user", text),)), family, severity)
    assert found is not None
    return found[-1].content


JSON = 'Here: {"a": 1.50, "b": "x, \\"y\\"", "c": [1, {"d": null}], "e": "z"} Go.'
MARKDOWN = "Read this.\n| city | sun |\n|---|:---:|\n| Oslo | 7.10 |\n| Rome | 11 |\nWhich is sunnier?"
LINES = "Order:\n- item: lamp\n- colour: light blue\n- pieces: 3"
CSV = "city,sun,rain\nOslo,7.10,3\nRome,11,1"


FORMS = (
    (JSON, "json", ("a", "b", "c", "e")),
    (MARKDOWN, "markdown", ("city", "sun")),
    (LINES, "lines", ("item", "colour", "pieces")),
    (CSV, "csv", ("city", "sun", "rain")),
    ("n[a], m[b, c]", "brackets", ("n", "m")),
)


@pytest.mark.parametrize(("text", "kind", "keys"), FORMS)
def test_a_structure_is_found_and_written_again(text: str, kind: str, keys: tuple[str, ...]) -> None:
    form = find_form(text)
    assert form is not None and form.kind == kind and form.keys == keys
    again = find_form(written(form))
    assert again == form


@pytest.mark.parametrize("text", ["where is it", "note: this is one line", '{"a": 1, "a": 2}', '{"only": 1}', "a,b\nc", "{not json}", '{"a": [1, 2}', "x[y]"])
def test_prose_and_broken_structures_are_no_form(text: str) -> None:
    assert find_form(text) is None


def test_reordered_json_is_the_same_object_with_its_numbers_as_written() -> None:
    for severity in (1, 2, 3):
        after = changed(JSON, "field_order", severity)
        body = after[after.index("{") : after.rindex("}") + 1]
        assert json.loads(body) == json.loads(JSON[JSON.index("{") : JSON.rindex("}") + 1]) and "1.50" in body
        assert after.startswith("Here: ") and after.endswith(" Go.") and list(json.loads(body)) != list("abce")


def test_columns_move_with_their_cells() -> None:
    assert changed(CSV, "field_order", 3) == "rain,sun,city\n3,7.10,Oslo\n1,11,Rome"
    after = changed(MARKDOWN, "field_order", 3)
    assert "| sun | city |" in after and "| 7.10 | Oslo |" in after and after.startswith("Read this.") and after.endswith("sunnier?")


def test_the_same_fields_in_other_forms() -> None:
    text = "name[The Wrestlers], familyFriendly[no], near[Café Rouge]"
    assert changed(text, "surface", 1) == "name: The Wrestlers\nfamilyFriendly: no\nnear: Café Rouge"
    assert json.loads(changed(text, "surface", 2)) == {"name": "The Wrestlers", "familyFriendly": "no", "near": "Café Rouge"}
    assert changed(text, "surface", 3) == "What is known: name is The Wrestlers; family friendly is no; near is Café Rouge."
    assert changed(LINES, "surface", 1) == "Order:\nitem[lamp], colour[light blue], pieces[3]"
    assert json.loads(changed(CSV, "surface", 2)) == [{"city": "Oslo", "sun": "7.10", "rain": "3"}, {"city": "Rome", "sun": "11", "rain": "1"}]


def test_prose_in_an_envelope_is_still_there_word_for_word() -> None:
    text = 'she said "now"\nand left'
    assert json.loads(changed(text, "surface", 3))["text"] == text
    assert changed(text, "surface", 2).endswith('> she said "now"\n> and left')


def test_code_that_an_envelope_would_escape_is_not_put_into_one() -> None:
    question = Asked((Message("user", 'what does `print("x")` do'),))
    assert perturbed(question, "surface", 3) is None and perturbed(question, "surface", 2) is not None


# --- the instruction -----------------------------------------------------------------------------------------------


def test_a_drifted_instruction_keeps_every_label_and_placeholder() -> None:
    swept = 0
    for name in ("clinc150", "multidogo"):
        for question in asked(name)[:50]:
            for severity in (1, 2, 3):
                after = perturbed(question, "system_prompt", severity)
                assert after is not None and after[0].role == "system" and after[1:] == question.messages
                kept = BANKING if name == "clinc150" else ('{"intent": [intents], "slots": {slot name: [values]}}', "changeorder, outofdomain, thankyou", "{}")
                assert all(k in after[0].content for k in kept) and after[0].content != SYSTEM[name]
                swept += 1
    assert swept == 300


def test_new_label_names_are_one_to_one_for_all_items_and_stand_in_the_instruction() -> None:
    for severity in (1, 2, 3):
        names = label_map(BANKING, severity, 0)
        assert set(names) == set(BANKING) and len(set(names.values())) == len(BANKING) and not set(names.values()) & set(BANKING)
        prompts = {m[0].content for q in asked("clinc150") if (m := perturbed(q, "unseen_labels", severity)) is not None}
        (prompt,) = prompts
        assert all(new in prompt for new in names.values())
        assert severity == 1 or all(f"(= {label.replace('_', ' ')})" in prompt for label in BANKING)
        assert not any(label in prompt for label in BANKING if "_" in label)
    assert label_map(BANKING, 2, 0) != label_map(BANKING, 2, 1)


def test_labels_that_do_not_stand_in_the_instruction_cannot_be_renamed() -> None:
    question = Asked((Message("user", "x y"),), ("red",), ("red", "blue"), "Name the colour.")
    assert perturbed(question, "unseen_labels", 2) is None
    assert "system prompt" in (TRANSFORMS["unseen_labels"].applies_to([question]) or "")
    ordinary = Asked((Message("user", "x y"),), ("no",), ("yes", "no"), "Say yes or no. There is no third answer.")
    assert perturbed(ordinary, "unseen_labels", 2) is None


def test_any_number_of_labels_gets_names_of_its_own() -> None:
    many = ["a b", "a_b", *(f"label_{i}" for i in range(700))]
    assert all(len(set(label_map(many, severity, 0).values())) == 702 for severity in (1, 2, 3))
