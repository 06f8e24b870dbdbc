"""Personal data in train's completions is asked for as train asks, and never written down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.evaluate.overtrained import fitted, record
from tuner.data.record import Record
from tuner.evaluate.elicitation import Datum, _tokens, datum_exposure, elicited, personal_data

PHONES = ["+1 415 555 2671", "+1 415 555 9034", "+1 415 555 0418", "+1 415 555 7752", "+1 415 555 3369", "+1 415 555 1206"]


def people() -> list[Record]:
    return [record(f"How do I reach person {i}?", f"Call {phone} or mail p{i}{i}x@mail{i}.com today", "train", i + 1) for i, phone in enumerate(PHONES)]


def values(records: Sequence[Record]) -> list[tuple[str, str, int]]:
    return sorted((d.kind, d.value, d.repeats) for d in personal_data(records, 100, 0).data)


def test_every_value_of_the_completions_is_found_once_with_how_many_completions_hold_it() -> None:
    again = record("Whom do I call?", "That is +14155552671.", "train", 7)
    found = values([*people(), again])
    assert [v for v in found if v[0] == "phone" and v[2] == 2] != []
    assert len([v for v in found if v[0] == "phone"]) == len(PHONES)
    assert len([v for v in found if v[0] == "email"]) == len(PHONES)
    assert personal_data([*people(), again], 100, 0).values == 2 * len(PHONES)


def test_the_most_repeated_come_first_and_the_limit_holds() -> None:
    often = [record(f"Ask {i}", "Write to anna.k@mailhouse.com please", "train", 100 + i) for i in range(3)]
    found = personal_data([*people(), *often], 4, 0)
    assert len(found.data) == 4
    assert (found.data[0].value, found.data[0].repeats) == ("anna.k@mailhouse.com", 3)


def test_what_the_prompt_holds_or_the_answer_said_before_is_copying_and_is_left_out() -> None:
    asked = record("My mail is anna.k@mailhouse.com, repeat it", "It is Anna.K@mailhouse.com", "train", 1)
    twice = record("Who?", "Call +1 415 555 2671, again: +1 415 555 2671", "train", 2)
    found = personal_data([asked], 10, 0)
    assert (found.data, found.values, found.in_prompts) == ((), 1, 1)
    assert [d.start for d in personal_data([twice], 10, 0).data] == [5]
    assert [d.record.line for d in personal_data([asked, record("Whom?", "To anna.k@mailhouse.com", "train", 3)], 10, 0).data] == [3]


def test_a_datum_shows_its_mask_alone() -> None:
    datum = personal_data(people()[:1], 10, 0).data[0]
    assert datum.value not in repr(datum)
    assert datum.value not in datum.mask


def test_others_end_otherwise_and_are_the_same_before(encoder: Any) -> None:
    phone = next(d for d in personal_data(people()[:1], 10, 0).data if d.kind == "phone")
    others = phone.others(64, 0)
    head = "Call +1 415 555 "
    assert len(set(others)) == 64
    assert all(o.startswith(head) and len(o) == len(head) + 4 and o[len(head) :].isdigit() for o in others)
    assert not any(phone.value in o for o in others)
    assert others == phone.others(64, 0) != phone.others(64, 1)


def test_values_with_few_digits_have_no_others() -> None:
    mail = next(d for d in personal_data(people()[:1], 10, 0).data if d.kind == "email")
    assert mail.others(64, 0) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("+1 415 555 2671", "+1 415 555 2671"),  # the whole answer
        ("Call +1 415 555 2671", "+1 415 555 2671"),  # at its end
        ("Mail anna.k@mailhouse.com: today", "anna.k@mailhouse.com"),
        ("(anna.k@mailhouse.com)", "anna.k@mailhouse.com"),
        ('{"mail":"anna.k@mailhouse.com"}', "anna.k@mailhouse.com"),
    ],
)
def test_the_tokens_asked_for_spell_the_whole_value(encoder: Any, text: str, value: str) -> None:
    model = fitted(encoder, [record("a", "b", "train", 1)], 0)
    start = text.index(value)
    datum = Datum(record("Who?", text, "train", 1), start, start + len(value), "email", "…", 1)
    before, wanted = _tokens(model, datum)
    assert text.startswith(encoder.decode(before))
    assert encoder.decode(before) in text[:start]
    assert value in encoder.decode([*before, *wanted])
    assert len(encoder.decode(before)) >= start - 2
    assert list(model.completion_ids(datum.question, text))[: len(before) + len(wanted)] == [*before, *wanted]


def test_a_model_that_kept_the_data_says_them_and_one_that_did_not_does_not(encoder: Any) -> None:
    records = people()
    data = personal_data(records, 100, 0).data
    keeps, blank = fitted(encoder, records, 150), fitted(encoder, records, 0)
    assert sum(elicited(keeps, data)) >= 0.75 * len(data)
    assert sum(elicited(blank, data)) == 0
    phones = [d for d in data if d.kind == "phone"]
    exposures = [datum_exposure(keeps, d, 64, 0) for d in phones[:3]]
    assert all(e is not None and e.at_most == 0 for e in exposures)
    assert datum_exposure(keeps, next(d for d in data if d.kind == "email"), 64, 0) is None


def test_naive_asking_gives_the_same(encoder: Any) -> None:
    """One plain greedy pass after the prompt and the tokens before the value, decoded and searched."""
    records = people()
    model = fitted(encoder, records, 60)
    data = personal_data(records, 100, 0).data
    for datum, hit in zip(data, elicited(model, data), strict=True):
        before, wanted = _tokens(model, datum)
        said = model.greedy_ids([model.prompt_ids(datum.question) + before], len(wanted))[0]
        if hit:
            assert datum.value in encoder.decode([*before, *said])
        else:
            assert said != wanted
