"""Records from files: every shape and format with its line, every fault in one pass, and nothing lost on the way."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from tests.conftest import BAD, ROOT, SAMPLES, colour_rows, jsonl
from tuner.data.parse import READERS
from tuner.data.record import Record
from tuner.data.shapes import SHAPE_KEYS
from tuner.data.sources import PRODUCTION, Limits, Reading, read_source
from tuner.data.spec import Columns, DataSpec, SourceSpec
from tuner.data.splits import read_splits
from tuner.recipe import load_recipe


def read(path: Path, columns: dict[str, str] | None = None, take: int | None = None, seed: int = 1, split: str = "train", **limits: int) -> Reading:
    spec = SourceSpec(files=[path.name], columns=Columns(**columns) if columns else None, take=take)
    return read_source(spec, split, path.parent, seed, Limits(**limits))


def read_text(folder: Path, text: str | bytes, name: str = "a.jsonl", **how: Any) -> Reading:
    (folder / name).write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
    return read(folder / name, **how)


def said(reading: Reading) -> list[tuple[str, str]]:
    """(line, field and found and accepted and fix) of every finding."""
    return [(f.where.partition(":")[2], f"{f.field} | {f.found} | {f.accepted} | {f.fix}") for f in reading.findings]


def codes(reading: Reading) -> list[tuple[int, str, str]]:
    return [(f.line, f.check, f.code) for f in reading.findings]


def turns(record: Record) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in record.messages]


def law_holds(reading: Reading) -> bool:
    """read = kept + rejected + not taken, file by file."""
    kept = Counter(r.file for r in reading.records)
    return all(a.read == kept[a.file] + a.rejected + a.not_taken and min(a.read, a.rejected, a.not_taken) >= 0 for a in reading.accounts)


# --- shapes --------------------------------------------------------------------------------------------------------

Q, A = ("user", "hi"), ("assistant", "hello")
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SHAPES: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    ("messages", {"messages": CHAT}, [Q, A]),
    ("messages", {"messages": [{"role": "system", "content": "S"}, *CHAT, *CHAT]}, [("system", "S"), Q, A, Q, A]),
    ("messages", {"messages": [{"role": "user", "content": "hi", "name": None}, CHAT[1]]}, [Q, A]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}, [Q, A]),
    ("sharegpt", {"conversations": [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "hello"}], "system": "S"}, [("system", "S"), Q, A]),
    ("sharegpt", {"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
     [("system", "S"), Q, A]),
    ("sharegpt", {"conversations": CHAT, "system": ""}, [Q, A]),
    ("alpaca", {"instruction": "hi", "output": "hello"}, [Q, A]),
    ("alpaca", {"instruction": "hi", "input": "", "output": "hello"}, [Q, A]),
    ("alpaca", {"instruction": "hi", "input": None, "output": "hello"}, [Q, A]),
    ("alpaca", {"instruction": "hi", "input": "there", "output": "hello"}, [("user", "hi\n\nthere"), A]),
    ("alpaca", {"instruction": "hi", "input": "there", "output": "hello", "system": "S"}, [("system", "S"), ("user", "hi\n\nthere"), A]),
    ("prompt_completion", {"prompt": "hi", "completion": "hello"}, [Q, A]),
    ("prompt_completion", {"prompt": "hi", "completion": "hello", "system": "S"}, [("system", "S"), Q, A]),
    ("prompt_completion", {"prompt": CHAT[:1], "completion": CHAT[1:]}, [Q, A]),
    ("prompt_completion", {"prompt": [{"role": "system", "content": "S"}, *CHAT, CHAT[0]], "completion": CHAT[1:]}, [("system", "S"), Q, A, Q, A]),
    ("prompt_completion", {"prompt": "hi", "completion": CHAT[1:]}, [Q, A]),
]  # fmt: skip


def test_every_shape_becomes_the_same_messages(tmp_path: Path) -> None:
    for number, (_, row, expected) in enumerate(SHAPES):
        reading = read(jsonl(tmp_path / f"{number}.jsonl", [row, row]))
        assert reading.findings == [], row
        assert [turns(r) for r in reading.records] == [expected, expected], row
        assert reading.records[0].prompt == reading.records[0].messages[:-1] and reading.records[0].completion == "hello"
    assert {shape for shape, _, _ in SHAPES} == set(SHAPE_KEYS) and len(SHAPES) == 17


def test_content_identity_does_not_depend_on_shape_place_or_unused_columns(tmp_path: Path) -> None:
    plain = [row for _, row, expected in SHAPES if expected == [Q, A]]
    records = [read(jsonl(tmp_path / f"{i}.jsonl", [{**row, "id": i}])).records[0] for i, row in enumerate(plain)]
    assert len({r.hash for r in records}) == 1 and len({r.prompt_key for r in records}) == 1 and len(records) >= 8
    assert [r.extra["id"] for r in records] == list(range(len(records)))


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "empty list"),
    ({"messages": "hi"}, "the text 'hi'"),
    ({"messages": None}, "null"),
    ({"messages": [["user", "hi"]]}, r"messages\[0\]"),
    ({"messages": [CHAT[0]]}, "no assistant turn"),
    ({"messages": [CHAT[1]]}, "turns assistant"),
    ({"messages": [*CHAT, CHAT[0]]}, "a last turn by user"),
    ({"messages": [CHAT[0], CHAT[0], CHAT[1]]}, "turns user, user, assistant"),
    ({"messages": [CHAT[0], {"role": "system", "content": "S"}, CHAT[1]]}, "turns user, system, assistant"),
    ({"messages": [CHAT[0], {"role": "assistant", "content": None}]}, r"messages\[1\].content \| null"),
    ({"messages": [CHAT[0], {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]}, "a list"),
    ({"messages": [CHAT[0], {"role": "assistant"}]}, "null"),
    ({"messages": [CHAT[0], {"role": "asistant", "content": "x"}]}, "write assistant"),
    ({"messages": [CHAT[0], {"role": ["user"], "content": "x"}]}, "role"),
    ({"messages": [CHAT[0], {"role": "tool", "content": "x"}, CHAT[1]]}, "a tool result"),
    ({"messages": [CHAT[0], {"role": "assistant", "content": "x", "tool_calls": 0}]}, "tool_calls"),
    ({"messages": {"role": "user", "content": "hi"}}, "an object | a list of messages".replace("|", r"\|")),
    ({"messages": [CHAT[0], {"role": "assistant", "content": "half \ud83d"}]}, "surrogate"),
    ({"conversations": [{"from": "humn", "value": "hi"}, {"from": "gpt", "value": "x"}]}, "'humn'"),
    ({"conversations": [{"from": 5, "value": "hi"}, {"from": "gpt", "value": "x"}]}, "'5'"),
    ({"conversations": [{"from": "human", "value": "hi", "content": "other"}, {"from": "gpt", "value": "x"}]}, "role"),
    ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "x"}], "system": 5}, "the number 5"),
    ({"instruction": "hi", "output": 5}, r"output \| the number 5"),
    ({"instruction": None, "output": "x"}, r"instruction \| null"),
    ({"instruction": "hi", "input": 5, "output": "x"}, r"input \| the number 5"),
    ({"instruction": "hi", "input": ["a"], "output": "x"}, r"input \| a list"),
    ({"prompt": "hi", "completion": True}, "the truth value true"),
    ({"prompt": {"a": 1}, "completion": "x"}, "an object"),
    ({"prompt": [], "completion": []}, "empty list"),
    ({"prompt": "hi"}, "add completion"),
    ({"completion": "x"}, "add prompt"),
    ({"instruction": "hi"}, "add output"),
    ({"prompt": "hi", "completoin": "x"}, "rename completoin to completion"),
    ({"text": "hi"}, "columns="),
    ({}, "columns="),
    ({"\x1b[31mred": "hi"}, r"\\x1b\[31mred"),
]


GOOD = {"messages": SHAPES[0][1], "conversations": SHAPES[3][1], "instruction": SHAPES[7][1]}


def test_every_malformed_record_is_rejected_at_its_line_with_a_reason(tmp_path: Path) -> None:
    for row, word in BROKEN:
        good = next((GOOD[key] for key in GOOD if key in row), SHAPES[12][1])
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (good, row, good)), encoding="utf-8")
        reading = read(tmp_path / "a.jsonl")
        assert [r.line for r in reading.records] == [1, 3] and law_holds(reading)
        ((line, text),) = said(reading)
        assert line == "2", row
        assert re.search(word, text), row
        assert "\x1b" not in text
    assert len(BROKEN) == 36


def test_half_of_a_surrogate_pair_is_rejected_and_its_neighbours_are_not(tmp_path: Path) -> None:
    ends = [chr(c) for c in (0xD7FF, 0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xE000)]
    reading = read_text(tmp_path, "".join(json.dumps({"prompt": "a", "completion": end}) + "\n" for end in ends))
    assert [line for line, _ in said(reading)] == ["2", "3", "4", "5"] and [r.line for r in reading.records] == [1, 6]


def test_another_shape_further_down_is_found_on_every_such_line(tmp_path: Path) -> None:
    reading = read(jsonl(tmp_path / "a.jsonl", [SHAPES[12][1], SHAPES[0][1], SHAPES[12][1], SHAPES[7][1]]))
    assert [line for line, _ in said(reading)] == ["2", "4"]
    assert "shaped as messages, in a file of prompt_completion" in said(reading)[0][1] and "alpaca" in said(reading)[1][1]
    assert law_holds(reading) and reading.accounts[0].rejected == 2


def test_the_first_good_record_decides_the_shape_and_not_a_broken_one_before_it(tmp_path: Path) -> None:
    reading = read(jsonl(tmp_path / "a.jsonl", [{"messages": CHAT[:1]}, SHAPES[12][1], {"messages": CHAT}, SHAPES[12][1]]))
    assert codes(reading) == [(1, "structure", "NO_ASSISTANT"), (3, "structure", "MIXED_SHAPES")] and [r.line for r in reading.records] == [2, 4]


def test_a_null_column_of_another_shape_is_not_looked_over(tmp_path: Path) -> None:
    """The fast path once read {"messages": null, "prompt": …} as a prompt; the strict one says messages is null."""
    reading = read(jsonl(tmp_path / "a.jsonl", [{"messages": None, "prompt": "a", "completion": "b"}]))
    assert codes(reading) == [(1, "structure", "TYPE")]


# --- tool calls ----------------------------------------------------------------------------------------------------

CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"id": 5}'}}


def test_calls_and_results_are_kept_as_they_were_written(tmp_path: Path) -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    row = {"messages": [CHAT[0], called, {"role": "tool", "content": "depot", "tool_call_id": "c1", "name": "find"}, CHAT[1]]}
    (record,) = read(jsonl(tmp_path / "a.jsonl", [row])).records
    assert [m.role for m in record.messages] == ["user", "assistant", "tool", "assistant"]
    assert record.messages[1].as_dict() == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert record.messages[2].as_dict() == row["messages"][2] and record.completion == "hello"


def test_arguments_as_text_and_as_an_object_are_both_taken_and_an_empty_list_is_no_call(tmp_path: Path) -> None:
    rows = [{"messages": [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [{"name": "find", "arguments": a}]}]} for a in ({"id": 5}, '{"id": 5}')]
    reading = read(jsonl(tmp_path / "a.jsonl", [*rows, {"messages": [CHAT[0], {**CHAT[1], "tool_calls": []}]}]))
    assert reading.findings == [] and reading.records[2].messages[1].tool_calls is None
    assert all("find" in r.completion for r in reading.records[:2])


def test_every_call_wants_a_result_of_its_own(tmp_path: Path) -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": i} for i in "ab"]}

    def chat(*answered: str | None) -> dict[str, Any]:
        results = [{"role": "tool", "content": "x", **({} if i is None else {"tool_call_id": i})} for i in answered]
        return {"messages": [CHAT[0], called, *results, CHAT[1]]}

    good = [chat("a", "b"), chat("b", "a"), chat(None, None), chat("a", None)]
    bad = [chat("a", "a"), chat("b", "b"), chat("a", "c"), chat("a"), chat(), chat("a", "b", "a"), chat(None, None, None)]
    reading = read(jsonl(tmp_path / "a.jsonl", good + bad))
    assert [r.line for r in reading.records] == [1, 2, 3, 4]
    assert [code for _, _, code in codes(reading)] == ["TOOL_RESULT"] * 3 + ["TOOL_UNANSWERED"] * 2 + ["TOOL_RESULT"] * 2


# --- production inputs ---------------------------------------------------------------------------------------------


def test_a_production_input_needs_no_answer_and_training_data_does(tmp_path: Path) -> None:
    rows = [{"prompt": "hi"}, {"prompt": "hi", "completion": None}, {"question": "hi"}, {"text": "hi"}, {"messages": CHAT[:1]}, {"messages": CHAT},
            {"conversations": [{"from": "human", "value": "hi"}]}, {"instruction": "hi"}, {"prompt": CHAT[:1]},
            {"instruction": "hi", "output": None}]  # fmt: skip
    for number, row in enumerate(rows):
        path = jsonl(tmp_path / f"{number}.jsonl", [row])
        (record,) = read(path, split=PRODUCTION).records
        assert turns(record)[0] == Q and record.completion in ("", "hello"), row
        assert bool(read(path).findings) == (row != {"messages": CHAT})
    (record,) = read(jsonl(tmp_path / "a.jsonl", [{"instruction": "hi", "input": "there"}]), split=PRODUCTION).records
    assert record.question == "hi\n\nthere"
    assert codes(read(jsonl(tmp_path / "a.jsonl", [{"messages": [5]}, {"prompt": 5}, {}]), split=PRODUCTION)) == [
        (1, "structure", "TYPE"), (2, "structure", "TYPE"), (3, "structure", "SHAPE")]  # fmt: skip


# --- explicit columns ----------------------------------------------------------------------------------------------


def test_mapped_columns_are_used_and_every_other_one_is_left_alone(tmp_path: Path) -> None:
    row = {"q": "hi", "a": "hello", "s": "S", "prompt": "no", "completion": "no", "system": "Linux 6.1", "messages": CHAT}
    path = jsonl(tmp_path / "a.jsonl", [row])
    (bare,) = read(path, {"prompt": "q", "completion": "a"}).records
    assert turns(bare) == [Q, A] and bare.extra == {k: v for k, v in row.items() if k not in "qa"}
    (whole,) = read(path, {"prompt": "q", "completion": "a", "system": "s"}).records
    assert turns(whole) == [("system", "S"), Q, A] and "s" not in whole.extra
    (chat,) = read(jsonl(tmp_path / "b.jsonl", [{"dialog": CHAT, "s": "S"}]), {"messages": "dialog", "system": "s"}).records
    assert turns(chat) == [("system", "S"), Q, A] and chat.extra == {}


@pytest.mark.parametrize("columns", [{"prompt": "qq", "completion": "a"}, {"prompt": "q", "completion": "a", "system": "sys"}, {"messages": "mesages"}])
def test_a_mapped_column_that_is_not_there_is_refused(tmp_path: Path, columns: dict[str, str]) -> None:
    reading = read(jsonl(tmp_path / "a.jsonl", [{"q": "hi", "a": "hello", "s": "S", "messages": CHAT}]), columns)
    ((line, text),) = said(reading)
    missing = next(c for c in columns.values() if c not in "qas")
    assert line == "1" and text.startswith(f"{missing} | no such column among q, a, s, messages")


# --- formats and line numbers --------------------------------------------------------------------------------------


def test_blank_lines_crlf_bom_and_a_missing_last_newline_do_not_shift_lines(tmp_path: Path) -> None:
    row = '{"prompt": "p%d", "completion": "c"}'
    text = "\ufeff" + row % 1 + "\r\n\r\n" + row % 3 + "\r\n \t \r\n" + row % 5
    reading = read_text(tmp_path, text)
    assert reading.findings == [] and [(r.line, r.messages[0].content) for r in reading.records] == [(1, "p1"), (3, "p3"), (5, "p5")]
    assert reading.accounts[0].read == 3 and reading.accounts[0].bytes == len(text.encode())
    assert reading.accounts[0].digest == "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\x85", "\u000b", "\x0c", "\x1c", "\x1d", "\x1e"])
def test_only_a_newline_ends_a_line(tmp_path: Path, char: str) -> None:
    inside = char if ord(char) > 0x1F else f"\\u{ord(char):04x}"
    reading = read_text(tmp_path, f'{{"prompt": "a{inside}b", "completion": "c"}}\n{{"prompt": "d", "completion": "e"}}\n')
    assert [(r.line, r.messages[0].content) for r in reading.records] == [(1, f"a{char}b"), (2, "d")]


def test_csv_lines_are_where_rows_start_whatever_their_cells_hold(tmp_path: Path) -> None:
    dice = random.Random(4)
    for delimiter, name in ((",", "a.csv"), ("\t", "a.tsv")):
        cells = [["".join(dice.choices(["x", "é", '"', ",", "\t", "\n", "\r\n", " "], k=dice.randrange(1, 12))) + "." for _ in range(3)] for _ in range(60)]
        starts, text = [], ""
        for row in [["prompt", "note", "completion"], *cells]:
            starts.append(text.count("\n") + 1)
            text += delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) + "\r\n"
            text += "\r\n" * dice.randrange(2)
        reading = read_text(tmp_path, text, name)
        assert reading.findings == [] and len(reading.records) == 60
        assert [(r.line, r.messages[0].content, r.completion, r.extra["note"]) for r in reading.records] == [
            (line, row[0], row[2], row[1]) for line, row in zip(starts[1:], cells, strict=True)
        ]


def test_csv_faults_are_reported_together_and_empty_cells_are_no_blank_line(tmp_path: Path) -> None:
    reading = read_text(tmp_path, 'prompt,completion\na,"x\ny"\nb\n\nc,d,e\n,\nf,g\n', "a.csv")
    assert [line for line, _ in said(reading)] == ["4", "6"]
    assert [(r.line, r.completion) for r in reading.records] == [(2, "x\ny"), (7, ""), (8, "g")]
    assert reading.accounts[0].read == 5 and law_holds(reading)


def test_a_csv_row_with_a_bad_byte_goes_as_a_whole_and_its_other_lines_are_no_rows(tmp_path: Path) -> None:
    reading = read_text(tmp_path, b'prompt,completion\n"caf\xe9\nmore",b\nc,"d\n\xff\nd"\ne,f\n', "a.csv")
    assert codes(reading) == [(2, "unreadable", "ENCODING"), (5, "unreadable", "ENCODING")]
    assert [r.line for r in reading.records] == [7] and reading.accounts[0].read == 3 and law_holds(reading)


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("prompt,prompt\na,b\n", "1", "column names"),
        ("\n\nprompt,\na,b\n", "3", "column names"),
        ('prompt,completion\na,b\nc,"d\n', "3", "broken row"),
        ('prompt,completion\na,"b"c\n', "2", "broken row"),
        ('"prompt"s,completion\na,b\n', "1", "broken header"),
        ("prompt,completion\ra,b\r", "1", "convert the line ends"),
        ("question,answer\na,b\n", "2", "columns"),
        ("prompt,completion\n", "", "no records"),
    ],
)
def test_broken_csv_is_refused(tmp_path: Path, text: str, line: str, word: str) -> None:
    ((at, problem),) = said(read_text(tmp_path, text, "a.csv"))
    assert at == line and word in problem


def test_json_array_records_carry_the_line_on_which_they_start(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": "c\nd", "tags": [i, {"deep": [1]}]} for i in range(5)]
    text = "\n[\n\n" + json.dumps(rows[0]) + ",\n" + json.dumps(rows[1], indent=2) + "\n,\n  " + json.dumps(rows[2]) + ",\n " + json.dumps(rows[3], indent=1)
    text += ",\n\n" + json.dumps(rows[4]) + "\n]\n\n"
    reading = read_text(tmp_path, text, "a.json")
    starts = [text[: text.index(f'"p{i}"')].rindex("{") for i in range(5)]
    assert reading.findings == []
    assert [(r.line, r.messages[0].content) for r in reading.records] == [(text.count("\n", 0, start) + 1, f"p{i}") for i, start in enumerate(starts)]
    shared = read_text(tmp_path, text.replace(",\n {", ", {"), "b.json")
    assert [r.line for r in shared.records] == [1, 2, 3, 4, 5]  # two on a line: they are known by their number instead


def test_records_of_an_array_on_one_line_are_told_apart_by_their_number(tmp_path: Path) -> None:
    """What json.dump writes. Were they all "line 1", dropping one would drop them all, and a cut would put all into one split."""
    rows = [*colour_rows(3), {"prompt": 5, "completion": "b"}, *colour_rows(60, 10)]
    for start in ("", "\ufeff", "  "):
        reading = read_text(tmp_path, start + json.dumps(rows) + "\n", "a.json")
        assert codes(reading) == [(4, "structure", "TYPE")]
        assert [r.line for r in reading.records] == [i for i in range(1, 65) if i != 4]
    splits = read_splits(DataSpec.model_validate({"train": "a.json", "cut": {"held_out": 0.2}}), tmp_path, 1)
    assert {s: len(rows) for s, rows in splits.records.items()} == {"train": 50, "held_out": 13}


def test_json_array_faults_are_reported_together(tmp_path: Path) -> None:
    good = '{"prompt": "a", "completion": "b"}'
    lines = ["[", good + ",", '{"prompt": "a", "completion": NaN},', '{"prompt": 1, "prompt": 2},', "[1],", good + ",", '{"prompt": "a"},',
             f'{{"prompt": "a", "completion": {"9" * 5000}}},', good, "]"]  # fmt: skip
    reading = read_text(tmp_path, "\n".join(lines), "a.json")
    assert [line for line, _ in said(reading)] == ["3", "4", "5", "7", "8"]
    assert [r.line for r in reading.records] == [2, 6, 9] and reading.accounts[0].read == 8 and law_holds(reading)


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ('{"prompt": "a", "completion": "b"}', "1", "rename it to .jsonl"),
        ('"x"', "1", "wrap the records"),
        ("[]", "", "no records"),
        ('[\n{"prompt": "a", "completion": "b"}\n', "2", "no comma or ]"),
        ('[\n{"prompt": "a", "completion": "b"},\n', "3", "broken JSON"),
        ('[\n{"prompt": "a", "completion": "b"},\n]', "3", "broken JSON"),
        ('[\n{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}]', "2", "no comma or ]"),
        ('[\n{"prompt": "a", "completion": "b"}\n]\n\n[{"prompt": "c", "completion": "d"}]', "5", "after the end of the array"),
        ('[{"prompt": "a", "completion": "b"}] x', "1", "after the end of the array"),
        ('[\n\n{"a": 1, "a": 2, "prompt": ', "3", "broken JSON"),
        ('[\n{"b": {"a": 1, "a": 2}, "prompt": ', "2", "broken JSON"),
        ("[" * 100_000, "1", "nesting"),
        ('[{"prompt": "a", "completion": "b"}, {"prompt": "c"}, {"prompt": ', "3", "broken JSON"),
    ],
)
def test_broken_json_arrays_are_refused(tmp_path: Path, text: str, line: str, word: str) -> None:
    found = said(read_text(tmp_path, text, "a.json"))
    assert found[-1][0] == line and word in found[-1][1]


def test_parquet_rows_are_numbered_from_one(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"p{i}"}, {"role": "assistant", "content": "c"}], "id": i} for i in range(5000)]
    rows[4321]["messages"][1]["content"] = None
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    reading = read(tmp_path / "a.parquet")
    assert [(r.line, r.messages[0].content, r.extra["id"]) for r in reading.records] == [(i + 1, f"p{i}", i) for i in range(5000) if i != 4321]
    assert [line for line, _ in said(reading)] == ["4322"] and law_holds(reading)
    ((_, found),) = said(read_text(tmp_path, b"PAR1 no", "b.parquet"))
    assert "not a whole parquet file" in found


@pytest.mark.parametrize("suffix", list(READERS))
def test_every_format_gives_the_same_records_packed_or_not(tmp_path: Path, suffix: str) -> None:
    rows = colour_rows(7)
    if suffix == "parquet":
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
        data = (tmp_path / "a.parquet").read_bytes()
    elif suffix in ("csv", "tsv"):
        mark = "," if suffix == "csv" else "\t"
        data = "".join(mark.join(row) + "\n" for row in [["prompt", "completion"], *map(dict.values, rows)]).encode()
    else:
        data = ("\n".join(map(json.dumps, rows)) if suffix == "jsonl" else json.dumps(rows)).encode()
    plain = read_text(tmp_path, data, f"a.v1.{suffix}")
    sink = arrow.BufferOutputStream()
    with arrow.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    for name, content in ((f"a.v1.{suffix.upper()}.gz", gzip.compress(data)), (f"a.v1.{suffix}.ZST", bytes(sink.getvalue()))):
        packed = read_text(tmp_path, content, name)
        assert [turns(r) for r in plain.records] == [[("user", row["prompt"]), ("assistant", row["completion"])] for row in rows]
        assert [(turns(r), r.line) for r in packed.records] == [(turns(r), r.line) for r in plain.records]
        assert plain.findings == packed.findings == [] and plain.accounts[0].digest == packed.accounts[0].digest
        assert packed.accounts[0].bytes == len(data)


# --- what cannot be read -------------------------------------------------------------------------------------------

GOOD_LINE = '{"prompt": "a", "completion": "b"}'
LINES: list[tuple[str, str]] = [
    ('{"prompt": "a", "completion": "b"', "broken JSON"),
    ('{"prompt": "a", "completion": "b}', "broken JSON"),
    ("{'prompt': 'a', 'completion': 'b'}", "broken JSON"),
    ('{"prompt": "a", "completion": "b",}', "broken JSON"),
    ('{"prompt": "a\tb", "completion": "b"}', "broken JSON"),
    ('{"prompt": "a", "completion": "b"} {"prompt": "a"}', "a line of its own"),
    ("2024-05-02 INFO started", "broken JSON"),
    ('{"prompt": "a", "completion": "b"},', "more after the end"),
    ('{"prompt": "a", "completion": "b", "n": NaN}', "NaN"),
    ('{"prompt": "a", "completion": "b", "n": -Infinity}', "Infinity"),
    ('{"prompt": "a", "completion": "b", "n": 1e999}', "too large"),
    (f'{{"prompt": "a", "completion": "b", "n": {"9" * 5000}}}', "5000 digits"),
    ('{"prompt": "a", "prompt": "b", "completion": "c"}', "'prompt' twice"),
    ('{"prompt": "a", "completion": "c", "n": {"x": 1, "x": 1}}', "'x' twice"),
    ("[" * 100_000 + "]" * 100_000, "nesting"),
    ('["a", "b"]', "a list"), ("5", "the number 5"), ("null", "null"), ('"text"', "the text"), ("true", "the truth value true"),
]  # fmt: skip


def test_all_faults_of_one_file_are_reported_in_one_pass(tmp_path: Path) -> None:
    reading = read_text(tmp_path, "".join(f"{GOOD_LINE}\n{line}\n" for line, _ in LINES))
    found = said(reading)
    assert [line for line, _ in found] == [str(2 * i) for i in range(1, len(LINES) + 1)]
    for (_, text), (_, word) in zip(found, LINES, strict=True):
        assert word in text
    assert [r.line for r in reading.records] == list(range(1, 2 * len(LINES), 2)) and len(LINES) == 20
    assert reading.accounts[0].rejected == 20 and reading.accounts[0].read == 40


def test_a_record_over_the_limit_is_measured_in_bytes(tmp_path: Path) -> None:
    def line(content: str) -> str:
        return json.dumps({"prompt": content, "completion": "b"}, ensure_ascii=False)

    frame = len(line(""))
    texts = ["x" * (2000 - frame), "x" * (2001 - frame), "é" * ((2000 - frame) // 2), "é" * ((2002 - frame) // 2 + 1)]
    expected = [str(i) for i, text in enumerate(texts, 1) if len(line(text).encode()) > 2000]
    reading = read_text(tmp_path, "\n".join(map(line, texts)), record_bytes=2000)
    assert [at for at, _ in said(reading)] == expected == ["2", "4"] and law_holds(reading)


def test_a_file_that_unpacks_to_more_than_allowed_is_refused(tmp_path: Path) -> None:
    data = (GOOD_LINE + "\n").encode() * 1000
    for name, content in (("a.jsonl", data), ("a.jsonl.gz", gzip.compress(data))):
        assert read_text(tmp_path, content, name, file_bytes=len(data)).findings == []
        ((_, text),) = said(read_text(tmp_path, content, name, file_bytes=len(data) - 1))
        assert f"at most {len(data) - 1} bytes" in text


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.txt", b"x", "a file ending in"),
        ("a", b"x", "a file ending in"),
        ("a.gz", b"x", "a file ending in"),
        ("a.jsonl", b"", "0 bytes"),
        ("a.jsonl", b"\n \n\t\n", "no records"),
        ("a.jsonl", b"\xef\xbb\xbf", "no records"),
        ("a.jsonl.gz", b"not gzip", "broken gzip"),
        ("a.jsonl.gz", gzip.compress(b"x" * 5000)[:-9], "broken gzip"),
        ("a.jsonl.gz", gzip.compress(b""), "0 bytes"),
        ("a.jsonl", GOOD_LINE.encode("utf-16"), "UTF-16"),
        ("a.jsonl", GOOD_LINE.encode("utf-16-be"), "null bytes at the start"),
        ("a.jsonl", GOOD_LINE.encode("utf-32"), "UTF-32"),
        ("a.csv", b"prompt,completion\ncaf\xe9,b\n", "byte 0xe9 at offset 21"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str, content: bytes, word: str) -> None:
    reading = read_text(tmp_path, content, name)
    assert word in said(reading)[0][1] and reading.records == []
    assert reading.findings[0].check == "files" or name == "a.csv"


@pytest.mark.parametrize("name", ["trian.jsonl", "folder.jsonl", "~nobody-here/a.jsonl", "a\0.jsonl", "/no/such/a.jsonl"])
def test_a_path_that_cannot_be_read_is_refused_and_not_a_traceback(tmp_path: Path, name: str) -> None:
    jsonl(tmp_path / "train.jsonl", colour_rows(2))
    (tmp_path / "folder.jsonl").mkdir()
    reading = read_source(SourceSpec(files=[name]), "train", tmp_path, 1)
    assert len(reading.findings) == 1 and reading.records == []
    assert ("did you mean train.jsonl" in said(reading)[0][1]) == (name == "trian.jsonl")


@pytest.mark.parametrize("again", ["a.jsonl", "./a.jsonl", "b/../a.jsonl"])
def test_a_file_named_twice_in_one_source_is_refused(tmp_path: Path, again: str) -> None:
    jsonl(tmp_path / "a.jsonl", colour_rows(3))
    (tmp_path / "b").mkdir()
    for second in (again, str(tmp_path / again)):
        reading = read_source(SourceSpec(files=["a.jsonl", second]), "train", tmp_path, 1)
        assert codes(reading) == [(0, "files", "TWICE")] and law_holds(reading) and len(reading.records) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused_and_not_a_traceback(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", colour_rows(3)).chmod(0)
    assert codes(read(tmp_path / "a.jsonl")) == [(0, "files", "UNREADABLE")]


def test_a_path_outside_the_folder_is_shown_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "a.jsonl").write_text("{}\n", encoding="utf-8")
    reading = read_source(SourceSpec(files=[str(tmp_path / "a.jsonl")]), "train", tmp_path / "recipes", 1)
    assert reading.findings[0].file == reading.accounts[0].file == "../a.jsonl"


def test_findings_of_every_split_are_gathered_and_nothing_is_raised(tmp_path: Path) -> None:
    for name in ("train", "held", "far", "real"):
        (tmp_path / f"{name}.jsonl").write_text(f"{GOOD_LINE}\n{{}}\n", encoding="utf-8")
    spec = DataSpec.model_validate(
        {"train": "train.jsonl", "validation": "none.jsonl", "held_out": "held.jsonl", "ood": {"far": "far.jsonl"}, "production": "real.jsonl"}
    )
    splits = read_splits(spec, tmp_path, 1)
    assert [(f.where, f.split, f.severity) for f in splits.findings] == [
        ("train.jsonl:2", "train", "error"), ("none.jsonl", "validation", "error"), ("held.jsonl:2", "held_out", "error"),
        ("far.jsonl:2", "ood.far", "error"), ("real.jsonl:2", "production", "error")]  # fmt: skip
    assert {s: len(rows) for s, rows in splits.records.items()} == {"train": 1, "validation": 0, "held_out": 1, "ood.far": 1}
    assert len(splits.production) == 1 and [a.read for a in splits.accounts] == [2, 0, 2, 2, 2]


def test_the_bytes_read_so_far_are_told_and_end_at_the_size_of_the_file(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", colour_rows(20_000))
    ticks: list[tuple[str, int]] = []
    read_source(SourceSpec(files=["a.jsonl"]), "train", tmp_path, 1, tick=lambda file, seen: ticks.append((file, seen)))
    assert len(ticks) >= 4 and {file for file, _ in ticks} == {"a.jsonl"}
    assert [seen for _, seen in ticks] == sorted(seen for _, seen in ticks) and ticks[-1][1] == path.stat().st_size


# --- take ----------------------------------------------------------------------------------------------------------


def test_take_is_seeded_keeps_order_and_does_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    rows = colour_rows(200)
    shuffled = random.Random(1).sample(rows, len(rows))
    first, again = (read(jsonl(tmp_path / "a.jsonl", rows), take=30) for _ in range(2))
    other = read(jsonl(tmp_path / "b.jsonl", shuffled), take=30)
    assert [r.line for r in first.records] == [r.line for r in again.records] == sorted(r.line for r in first.records)
    assert {r.hash for r in first.records} == {r.hash for r in other.records} and len(first.records) == 30
    assert [r.line for r in other.records] == sorted(r.line for r in other.records)
    assert {r.hash for r in first.records} != {r.hash for r in read(tmp_path / "a.jsonl", take=30, seed=2).records}
    assert first.accounts[0].not_taken == 170 and law_holds(first)
    # A smaller take is part of a larger one: the records are ranked once.
    assert {r.hash for r in read(tmp_path / "a.jsonl", take=10).records} < {r.hash for r in first.records}
    assert len(read(tmp_path / "a.jsonl", take=500).records) == 200


def test_take_over_two_files_is_accounted_file_by_file(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", colour_rows(40))
    jsonl(tmp_path / "b.jsonl", [*colour_rows(20, 100), {"prompt": "x"}])
    reading = read_source(SourceSpec(files=["a.jsonl", "b.jsonl"], take=25), "train", tmp_path, 1)
    assert len(reading.records) == 25 and law_holds(reading)
    assert [a.read for a in reading.accounts] == [40, 21] and [a.rejected for a in reading.accounts] == [0, 1]
    assert sum(a.not_taken for a in reading.accounts) == 35


# --- the samples ---------------------------------------------------------------------------------------------------


def rows_in(path: Path) -> int:
    """How many records a file holds, counted without tuner."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if ".csv" in path.suffixes:
        return sum(bool(row) for row in csv.reader(data.decode("utf-8").splitlines(keepends=True))) - 1
    return sum(bool(line.strip()) for line in data.split(b"\n"))


def sample_files() -> list[Path]:
    """The samples that are whole by design; bad/ and clean/ are swept in test_bad_corpus.py."""
    return sorted(p for p in SAMPLES.rglob("*") if {".jsonl", ".csv"} & set(p.suffixes) and p.relative_to(SAMPLES).parts[0] in WHOLE)


WHOLE = ("clinc150", "multidogo", "e2e_nlg")


def test_every_record_of_every_sample_is_accounted_for() -> None:
    counted = 0
    for path in sample_files():
        columns = {"prompt": "mr", "completion": "ref"} if path.parent.name == "e2e_nlg" else None
        reading = read(path, columns)
        assert reading.findings == [] and law_holds(reading), path.name
        assert reading.accounts[0].read == len(reading.records) == rows_in(path), path.name
        if path.suffix != ".gz":  # once is enough for 42,061 records
            taken = read(path, columns, take=5)
            assert law_holds(taken) and taken.accounts[0].not_taken == len(reading.records) - 5
        counted += 1
    assert counted == 14


@pytest.mark.parametrize("recipe", ["quickstart", "ticket_json"])
def test_nothing_is_found_while_reading_the_sample_recipes(recipe: str) -> None:
    spec = load_recipe(ROOT / "recipes" / f"{recipe}.yaml")
    splits = read_splits(spec.data, ROOT / "recipes", spec.seed)
    assert splits.findings == () and all(splits.records.values())
    used = {Path(a.file).name for a in splits.accounts}
    (folder,) = {Path(a.file).parent.name for a in splits.accounts}
    assert folder in WHOLE and used == {p.name for p in (SAMPLES / folder).glob("*.jsonl")}


def test_every_hostile_file_of_the_first_set_is_documented() -> None:
    readme = (BAD / "README.md").read_text(encoding="utf-8")
    files = {p.name for p in BAD.iterdir() if p.is_file() and p.suffix != ".md" and p.name != "expected.json"}
    assert {name for name in files if f"| `{name}` |" in readme} == files and len(files) == 24


# File: (words said at each line), for the faults of the first set that reading itself finds.
SAID: dict[str, dict[str, str]] = {
    "empty.jsonl": {"": "at least one record"},
    "broken_line_37.jsonl": {"37": "unterminated string"},
    "duplicate_key_line_3.jsonl": {"3": "'completion' twice"},
    "nan_line_2.jsonl": {"2": "NaN"},
    "not_object_line_4.jsonl": {"4": "a list"},
    "mixed_shapes_line_6.jsonl": dict.fromkeys(("6", "7", "8"), "one shape a file"),
    "unknown_role_line_2.jsonl": {"2": "write assistant"},
    "no_assistant_line_3.jsonl": {"3": "no assistant turn"},
    "null_content_line_2.jsonl": {"2": "messages[1].content | null"},
    "number_content_line_3.jsonl": {"3": "messages[0].content | the number 4711"},
    "invalid_utf8_line_3.jsonl": {"3": "byte 0xe9"},
    "utf16.jsonl": {"": "UTF-16"},
    "two_records_line_2.jsonl": {"2": "a line of its own"},
    "missing_field_line_5.jsonl": {"5": "add completion"},
    "wrong_columns.jsonl": dict.fromkeys(map(str, range(1, 9)), "rename mesages to messages"),
    "bad_cell.csv": {"4": "4 cells"},
}


@pytest.mark.parametrize("name", SAID)
def test_what_is_said_of_a_hostile_file_names_the_fault(name: str) -> None:
    found = said(read(BAD / name))
    assert [line for line, _ in found] == list(SAID[name])
    assert all(SAID[name][line] in text for line, text in found)


def test_blank_lines_are_no_records_and_shift_no_line() -> None:
    reading = read(BAD / "blank_lines.jsonl")
    assert len(reading.records) == reading.accounts[0].read == 8
    assert [r.line for r in reading.records] == [1, 2, 4, 5, 7, 8, 9, 10]
