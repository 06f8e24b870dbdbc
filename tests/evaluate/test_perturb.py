"""Changed questions keep what their answers depend on, whatever the text; the same seed gives the same change, and a heavier severity changes more."""

from __future__ import annotations

import json
import random
import re
from collections import Counter

import pytest
from rapidfuzz.distance import Levenshtein

from tests.evaluate.hostile import hostile_strings
from tests.evaluate.ood_samples import BANKING, SYSTEM, asked
from tuner.data.record import Message
from tuner.evaluate.perturb import SEVERITIES, TRANSFORMS, Asked, perturbed
from tuner.evaluate.perturb_spans import copied_values, shield

SETS = ("clinc150", "multidogo", "e2e", "e2e_json")
NUMBERS = re.compile(r"\d+")


def changed(text: str, family: str, severity: int = 2, **more: object) -> str | None:
    found = perturbed(Asked((Message("user", text),), **more), family, severity)  # type: ignore[arg-type]
    return None if found is None else found[-1].content


def whole(messages: tuple[Message, ...]) -> str:
    return "\x1e".join(m.content for m in messages)


def edits(question: Asked, family: str, severity: int) -> int:
    """Characters changed (Levenshtein), the instruction counted only where the family changes it."""
    after = perturbed(question, family, severity)
    if after is None:
        return 0
    before = question.with_system(SYSTEM["clinc150"]) if after[0].role == "system" else question.messages
    return int(Levenshtein.distance(whole(before), whole(after)))


# --- what survives -------------------------------------------------------------------------------------------------


def naive_leaves(value: object) -> list[str]:
    if isinstance(value, dict):
        return [leaf for v in value.values() for leaf in naive_leaves(v)]
    if isinstance(value, list):
        return [leaf for v in value for leaf in naive_leaves(v)]
    return [value] if isinstance(value, str) else []


def must_survive(name: str, question: Asked) -> list[str]:
    """By other means than the code's: JSON leaves in the question, bracketed values, and for labels nothing but digits."""
    text = question.messages[-1].content
    found = re.findall(r"\[([^\]]+)\]", text) if name == "e2e" else []
    if name == "multidogo":
        found = [v for v in naive_leaves(json.loads(question.references[0])) if v and v in text]
    if name == "e2e_json":
        found = naive_leaves(json.loads(text))
    return found


def test_digits_addresses_and_copied_values_survive_every_family_and_severity() -> None:
    swept = made = values = 0
    for name in SETS:
        for question in asked(name):
            kept = must_survive(name, question)
            numbers = Counter(NUMBERS.findall(question.messages[-1].content))
            for family in TRANSFORMS:
                for severity in SEVERITIES:
                    swept += 1
                    after = perturbed(question, family, severity)
                    if after is None:
                        continue
                    made += 1
                    text = after[-1].content
                    assert Counter(NUMBERS.findall(text)) == numbers, (family, severity, text)
                    assert all(v in text for v in kept), (family, severity, kept, text)
                    values += len(kept)
    assert swept == (140 + 200 + 100 + 60) * 12 * 3
    assert made > 10_000 and values > 10_000


PROTECTED = (
    "see https://a.example/x?y=1 or write to jo.ann@mail.example about order AB-1234, run `tuner check x` with {name}, [slot] and <b>bold</b> parts please"
)


@pytest.mark.parametrize("family", [f for f in TRANSFORMS if f not in ("unseen_labels",)])
def test_addresses_code_placeholders_and_tags_stand_unchanged(family: str) -> None:
    spans = ("https://a.example/x?y=1", "jo.ann@mail.example", "AB-1234", "`tuner check x`", "{name}", "[slot]", "<b>", "</b>")
    found = [changed(PROTECTED, family, s, system="Answer {x} with 3 words.") for s in SEVERITIES]
    assert any(f is not None for f in found) or family == "field_order"
    for text in found:
        assert text is None or all(span in text for span in spans)


def test_a_quoted_label_name_survives_and_an_ordinary_word_does_not_have_to() -> None:
    text = 'please do not file this under "transfer" or pay_bill'
    assert '"transfer"' in (changed(text, "casing", 3, labels=BANKING) or "") and "pay_bill" in (changed(text, "casing", 3, labels=BANKING) or "")
    assert changed("please transfer money", "casing", 3, labels=BANKING) == "PLEASE TRANSFER MONEY"


def test_values_copied_into_a_json_answer_are_found_in_any_case() -> None:
    reference = json.dumps({"slots": {"name": ["Anna Lind"], "count": 3, "sure": True}})
    assert copied_values("anna lind wants 3 of them", (reference,)) == ("Anna Lind", "3")


def test_names_and_listed_parts_of_a_text_answer_are_kept() -> None:
    kept = copied_values("Ask Marta about flight, hotel", ("flight, hotel",))
    assert "flight, hotel" in kept and "flight" in kept
    assert copied_values("Ask Marta about it", ("Marta said yes.",)) == ("Marta",)


def test_an_edit_that_loses_or_doubles_a_span_is_no_edit() -> None:
    shielded = shield("call 112 or 911 now")
    assert shielded is not None and shielded.spans == ("112", "911")
    assert shielded.restored(shielded.text) == "call 112 or 911 now"
    assert shielded.restored("call now") is None
    assert shielded.restored(shielded.text + shielded.text[5]) is None


def test_only_user_turns_are_edited_and_the_system_turn_by_its_own_families_alone() -> None:
    turns = (
        Message("system", "Be Brief."),
        Message("user", "where is my parcel please"),
        Message("assistant", "Which one?"),
        Message("user", "please, the large one"),
    )
    swept = 0
    for family in TRANSFORMS:
        for severity in SEVERITIES:
            after = perturbed(Asked(turns, ("At the depot.",)), family, severity)
            swept += 1
            if after is None:
                continue
            assert [m.role for m in after] == [m.role for m in turns]
            assert after[2] == turns[2]
            assert (after[0] == turns[0]) == (family != "system_prompt")
    assert swept == 36


# --- the same again ------------------------------------------------------------------------------------------------


def test_a_change_depends_on_seed_question_family_and_severity_alone() -> None:
    questions = asked("clinc150")
    forward = [perturbed(q, f, s) for q in questions for f in TRANSFORMS for s in SEVERITIES]
    shuffled = [(i, q, f, s) for i, (q, f, s) in enumerate((q, f, s) for q in questions for f in TRANSFORMS for s in SEVERITIES)]
    random.Random(1).shuffle(shuffled)
    again = {i: perturbed(q, f, s) for i, q, f, s in shuffled}
    assert [again[i] for i in range(len(forward))] == forward
    other = [perturbed(q, "typos", 2) for q in asked("clinc150", seed=1)]
    assert sum(a != b for a, b in zip(other, (perturbed(q, "typos", 2) for q in questions), strict=True)) > 100


def test_a_heavier_severity_changes_more_characters_on_real_records() -> None:
    measured = 0
    for name in SETS:
        questions = asked(name)
        for family in TRANSFORMS:
            if family in ("field_order", "unseen_labels") or TRANSFORMS[family].applies_to(questions) is not None:
                continue  # fields are counted by their places below; a label's new name is longer or shorter by chance
            found = [[edits(q, family, s) for s in SEVERITIES] for q in questions]
            rising = sum(a <= b <= c for a, b, c in found)
            assert rising >= 0.99 * len(found), (name, family, rising)
            assert sum(a for a, _, _ in found) <= sum(b for _, b, _ in found) <= sum(c for _, _, c in found)
            measured += any(c for _, _, c in found)  # some families find nothing in some samples: multidogo has no punctuation
    assert measured == 27


def inversions(before: list[str], after: list[str]) -> int:
    places = [before.index(x) for x in after]
    return sum(a > b for i, a in enumerate(places) for b in places[i + 1 :])


def test_fields_move_further_with_severity() -> None:
    for question in asked("e2e"):
        text = question.messages[-1].content
        names = re.findall(r"(\w[\w ]*)\[", text)
        moved = [inversions(names, re.findall(r"(\w[\w ]*)\[", changed(text, "field_order", s) or text)) for s in SEVERITIES]
        assert moved[0] == 1 and moved[0] <= moved[1] <= moved[2] == len(names) * (len(names) - 1) // 2


def test_a_heavier_typo_severity_holds_the_slips_of_a_lighter_one() -> None:
    text = "could somebody please explain where the yellow bicycle disappeared yesterday evening"
    before = text.split()
    hit = [{i for i, (a, b) in enumerate(zip(before, (changed(text, "typos", s) or "").split(), strict=True)) if a != b} for s in SEVERITIES]
    assert hit[0] < hit[1] < hit[2]


# --- what single families do ---------------------------------------------------------------------------------------


def test_slips_are_one_edit_inside_a_word_and_never_in_a_negation_or_number() -> None:
    text = "never cancel seventeen bookings without asking somebody twice"
    for severity in SEVERITIES:
        after = (changed(text, "typos", severity) or "").split()
        for old, new in zip(text.split(), after, strict=True):
            assert new[0] == old[0] and new[-1] == old[-1]
            assert old == new or (
                old not in ("never", "seventeen", "without", "twice") and Levenshtein.distance(old, new) <= 2 and abs(len(old) - len(new)) <= 1
            )


def test_case_changes_are_undone_by_folding() -> None:
    for question in asked("clinc150"):
        for severity in SEVERITIES:
            after = changed(question.messages[-1].content, "casing", severity)
            assert after is not None and after.casefold() == question.messages[-1].content.casefold()
    assert changed("Größe ŉ ß ﬁ İstanbul", "casing", 3) == "GRÖSSE".replace("SS", "ß") + " ŉ ß ﬁ İSTANBUL"
    assert changed("WHERE IS IT", "casing", 3) == "where is it"


def test_fillers_and_added_sentences_hold_no_greeting_thanks_request_or_number() -> None:
    from tuner.evaluate.perturb_context import listed
    from tuner.evaluate.perturb_phrases import AFTERS, LEADS
    from tuner.evaluate.perturb_words import FILLERS

    said = (*LEADS, *AFTERS, *FILLERS, *listed("passages.txt"))
    wrong = re.compile(r"\b(?:hi|hello|hey|thanks?|thx|please|yes|no|ok|okay|bye|help|order|account|bank|card|bill|pay|cancel|sorry)\b|\d|\?", re.IGNORECASE)
    assert len(said) > 35 and not [s for s in said if wrong.search(s)]


def test_going_to_a_place_is_no_gonna() -> None:
    assert "gonna pay" in (changed("i am going to pay it tomorrow", "casual") or "")
    assert "going to the" in (changed("i am going to the branch because you are there", "casual") or "")


def test_a_paraphrase_rule_is_not_undone_by_its_opposite() -> None:
    assert "purchase" in (changed("i would like it if we were to buy a lamp", "paraphrase") or "")
    assert "a purchase" in (changed("there is a purchase i don't know", "paraphrase") or "")


def test_english_families_say_why_they_leave_other_languages_out() -> None:
    german = [Asked((Message("user", "Wo finde ich meine letzte Rechnung, und wie kann ich die Adresse für das Paket ändern?"),))] * 5
    for family in ("casual", "verbose", "paraphrase"):
        assert "English" in (TRANSFORMS[family].applies_to(german) or "")
        assert TRANSFORMS[family].applies_to(asked("clinc150")) is None
    assert "sentences" in (TRANSFORMS["casual"].applies_to(asked("e2e")) or "")


# --- hostile text --------------------------------------------------------------------------------------------------

SPECIAL = ("<|im_start|>", "<|im_end|>", "</s>", "<s>", "[INST]", "[/INST]", "<<SYS>>", "<start_of_turn>", "<｜User｜>")


def test_no_hostile_text_crashes_a_family_empties_a_question_or_makes_a_token() -> None:
    texts = hostile_strings(10_000)
    tried: Counter[str] = Counter()
    made: Counter[str] = Counter()
    references = (("transfer",), ('{"a": ["x", "12:30", "Straße"], "b": {"c": 3}}',), ("the Größe, naïve",), ("",))
    for number, text in enumerate(texts):
        labels = ("transfer", "freeze_account", "pay_bill") if number % 4 == 0 else ()
        system = f"Sort into transfer, freeze_account, pay_bill. {texts[-number]}" if number % 3 else None
        question = Asked((Message("user", text),), references[number % 4], labels, system, number)
        before = [text.count(t) for t in SPECIAL]
        for at, family in enumerate(TRANSFORMS):
            tried[family] += 1
            after = perturbed(question, family, 1 + (number + at) % 3)
            if after is None:
                continue
            made[family] += 1
            said = after[-1].content
            assert said.strip() and after[-1].role == "user"
            assert [said.count(t) for t in SPECIAL] == before, (family, text, said)
            assert after != question.messages
    assert set(tried.values()) == {10_000} and len(tried) == 12
    assert all(made[family] > 1_000 for family in TRANSFORMS), made


def test_a_question_without_a_visible_character_is_left_alone() -> None:
    assert all(perturbed(Asked((Message("user", text),), system="x"), f, 3) is None for text in ("", " \n\t") for f in TRANSFORMS)
