"""The checks of characters find what a reader cannot see, say it in visible characters, and leave ordinary text of many scripts alone."""

from __future__ import annotations

import json
import unicodedata

import pytest

from tuner.data.checks.text import TEXT, is_blank
from tuner.data.findings import Finding, Scene
from tuner.data.record import Message, Record
from tuner.data.spec import DataSpec

Pair = tuple[str, str]  # prompt, completion

SPECIAL = frozenset({"<|end|>", "<|im_start|>", "<|im_end|>", "[INST]", "</s>", *(f"<unused{n}>" for n in range(6000))})


def record(prompt: str, completion: str) -> Record:
    return Record((Message("user", prompt), Message("assistant", completion)), "train.jsonl", 7, "train")


def scene(task: str = "text") -> Scene:
    return Scene(DataSpec.model_validate({"train": "train.jsonl", "task": task}), control_texts=SPECIAL)


def found(check: str, example: Record, task: str = "text") -> list[Finding]:
    each = TEXT[check].each
    assert each is not None
    return list(each(example, scene(task)))


# check: (task, records with the fault and the (code, field) of each finding, records without it)
SAMPLES: dict[str, tuple[str, list[tuple[Pair, list[tuple[str, str]]]], list[Pair]]] = {
    "empty_completion": ("text", [(("a", ""), [("EMPTY", "completion")]), (("a", " \n\t"), [("EMPTY", "completion")]),
                                  (("a", "\u200b\ufeff\u00a0"), [("EMPTY", "completion")]), (("a", "\u3164\u2800"), [("EMPTY", "completion")])],
                         [("a", "."), ("", "x"), ("a", "\u3000你"), ("a", "0")]),
    "empty_prompt": ("text", [(("", "x"), [("EMPTY", "messages[0]")]), (("\u00a0\u2060", "x"), [("EMPTY", "messages[0]")]),
                              (("\n \n", "x"), [("EMPTY", "messages[0]")])], [("?", "x"), ("a", ""), ("\u200bא", "x")]),
    "json_completion": ("json", [(("a", x), [("NOT_JSON", "completion")]) for x in ("[1]", "{", "{} {}", "null", "[" * 100_000, '{"n": ' + "9" * 5000 + "}")],
                        [("a", "{}"), ("a", '{"x": "\\u00e9"}'), ("a", ' {"x": [1, 2]}\n')]),
    "padded_label": ("label", [(("a", x), [("PADDED", "completion")]) for x in (" yes", "yes\n", "\u00a0yes", "yes\t")],
                     [("a", "yes"), ("a", "very good"), (" a ", "no"), ("a", "  ")]),
    "padded_completion": ("text", [(("a", x), [("PADDED", "completion")]) for x in (" yes", "yes ", "yes\n\n", "\nyes", "yes \n", "yes\u3000")],
                          [("a", "yes"), ("a", "yes\n"), (" a ", "two\n\nlines"), ("a", "  ")]),
    "control_tokens": ("text", [(("a <|end|> b", "x"), [("CONTROL_TEXT", "messages[0]")]), (("a", "x</s>"), [("CONTROL_TEXT", "messages[1]")]),
                                (("<unused5999>", "<<|im_end|>"), [("CONTROL_TEXT", "messages[0]"), ("CONTROL_TEXT", "messages[1]")])],
                       [("a < b | c > d", "<|end|"), ("<unused6000>", "<|IM_END|>"), ("array[INS]", "< /s>")]),
    "html_entities": ("text", [(("Johnson &amp; Johnson?", "x"), [("ENTITY", "messages[0]")]), (("a", "It&#39;s 5&nbsp;km"), [("ENTITY", "messages[1]")]),
                               (("a", "2 &lt; 3"), [("ENTITY", "messages[1]")]), (("a", "a&#x27;b"), [("ENTITY", "messages[1]")])],
                      [("How do I escape & in HTML?", "Write &amp;."), ("a", "```\n&amp;\n```"), ("a", "f(&num); x = &sum;"), ("a", "a & b;")]),
    "mojibake": ("text", [(("a", "It’s".encode().decode("cp1252")), [("MOJIBAKE", "messages[1]")]), (("CafÃ© Zürich", "x"), [("MOJIBAKE", "messages[0]")]),
                          (("a", "naïve – déjà vu".encode().decode("cp1252")), [("MOJIBAKE", "messages[1]")])],
                 [("Où est le café ?", "À côté – là-bas…"), ("你好，世界", "¿Qué tal?"), ("Привет, мир", "‘quoted’ — “so”"), ("plain", "ascii")]),
    "hidden_characters": ("text", [(("a\x00b", "x"), [("CONTROL", "messages[0]")]), (("a", "x\x1b[31m"), [("CONTROL", "messages[1]")]),
                                   (("a", "user\u202etxt.exe"), [("BIDI", "messages[1]")]), (("a", "\u2066x\u2069"), [("BIDI", "messages[1]")]),
                                   (("a", "pass\u200bword"), [("ZERO_WIDTH", "messages[1]")]), (("a", "in\u00advisible"), [("ZERO_WIDTH", "messages[1]")]),
                                   (("a", "x\ufeffy\u200c"), [("ZERO_WIDTH", "messages[1]")]), (("a", "caf\ufffd"), [("UNDECODED", "messages[1]")]),
                                   (("a", "hi\U000e0068\U000e0069"), [("TAG", "messages[1]")]), (("a", "a\ufe01\ufe02"), [("ZERO_WIDTH", "messages[1]")]),
                                   (("a", "x" + "\u0326" * 9), [("STACKED_MARKS", "messages[1]")]),
                                   (("a", "\u200ex \u200b"), [("BIDI", "messages[1]"), ("ZERO_WIDTH", "messages[1]")])],
                          [("tabs\tand\r\nlines", "x"), ("👩‍💻 ❤️ 1️⃣ ☁️ 👍🏽", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"),
                           ("می‌خواهم", "क्‍ष"),
                           ("\u200fשלום abc", "‏مرحبا"), ("ខ្ញុំ\u200bទៅ", "Tiếng Việt".replace("ế", "ê\u0301")), ("㊗️ 〰️", "葛\U000e0100城")]),
}  # fmt: skip


def test_every_check_of_characters_finds_its_fault_and_spares_good_records() -> None:
    swept = 0
    for check, (task, bad, good) in SAMPLES.items():
        assert len(bad) >= 3 and len(good) >= 3
        for pair, expected in bad:
            assert sorted((f.code, f.field) for f in found(check, record(*pair), task)) == sorted(expected), (check, pair)
        for pair in good:
            assert found(check, record(*pair), task) == [], (check, pair)
        swept += 1
    assert swept == len(TEXT) == 9


def test_findings_carry_no_control_bidi_or_invisible_character() -> None:
    seen = 0
    for check, (task, bad, _) in SAMPLES.items():
        for pair, _expected in bad:
            for f in found(check, record(*pair), task):
                assert not {unicodedata.category(c) for c in f.found + f.accepted + f.fix} & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}, (check, pair)
                assert f.line == 7 and f.file == "train.jsonl" and len(f.found) < 400
                seen += 1
    assert seen >= 40


@pytest.mark.parametrize("task", ["text", "label", "json"])
def test_a_good_record_of_each_task_passes_every_check_of_characters(task: str) -> None:
    completion = {"text": "Paris.", "label": "geography", "json": '{"city": "Paris"}'}[task]
    assert [f for name in TEXT for f in found(name, record("What is the capital of France?", completion), task)] == []


def test_an_empty_earlier_assistant_turn_is_refused_but_a_tool_call_is_not_empty() -> None:
    call = json.dumps([{"name": "time", "arguments": {}}])
    chat = Record((Message("user", "a"), Message("assistant", " "), Message("user", "b"), Message("assistant", "", tool_calls=call)), "f", 1, "train")
    assert [(f.code, f.field) for f in found("empty_completion", chat)] == [("EMPTY", "messages[1]")]


def test_mojibake_shows_the_repaired_text() -> None:
    [f] = found("mojibake", record("a", "The price isn’t fixed – ask.".encode().decode("cp1252")))
    assert "isnâ€™t" in f.found and "isn’t" in f.accepted


def test_refusals_are_the_checks_without_which_nothing_can_be_learned() -> None:
    assert {name for name, check in TEXT.items() if check.default == "refuse"} == {"empty_completion", "empty_prompt", "json_completion", "padded_label"}
    assert len(TEXT) == 9


@pytest.mark.parametrize(("text", "blank"), [("", True), (" \u200b", True), ("\u2800\u3164", True), ("a", False), (" .", False), ("\u0301", False)])
def test_blank_means_no_visible_character(text: str, blank: bool) -> None:
    assert is_blank(text) is blank


def test_hostile_text_is_checked_in_time_linear_in_its_length() -> None:
    for hostile in ("\u200f" * 50_000, "\U000e0041" * 50_000, "&" * 50_000 + ";", "<" * 50_000, "Ã" * 20_000, " " * 50_000):
        for name in TEXT:
            found(name, record(hostile, hostile))
