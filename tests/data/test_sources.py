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
    ({"messages": [CHAT[0], {"role": "tool", "content": "x"}, CHAT[1]]}, "'tool'"),
    ({"messages": [CHAT[0], {"role": "assistant", "content": "x", "tool_calls": []}]}, "tool_calls"),
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
    ({"text": "hi"}, "columns:"),
    ({}, "columns:"),
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
    assert len(BROKEN) == 35


def test_half_of_a_surrogate_pair_is_rejected_and_its_neighbours_are_not(tmp_path: Path) -> None:
    ends = [chr(c) for c in (0xD7FF, 0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xE000)]
    reading = read_text(tmp_path, "".join(json.dumps({"prompt": "a", "completion": end}) + "\n" for end in ends))
    assert [line for line, _ in said(reading)] == ["2", "3", "4", "5"] and [r.line for r in reading.records] == [1, 6]


def test_another_shape_further_down_is_a_problem_on_every_such_line(tmp_path: Path) -> None:
    reading = read(jsonl(tmp_path / "a.jsonl", [SHAPES[12][1], SHAPES[0][1], SHAPES[12][1], SHAPES[7][1]]))
    assert [line for line, _ in said(reading)] == ["2", "4"]
    assert "shaped as messages, in a file of prompt_completion" in said(reading)[0][1] and "alpaca" in said(reading)[1][1]
    assert law_holds(reading) and reading.accounts[0].rejected == 2


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


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("prompt,prompt\na,b\n", "1", "column names"),
        ("\n\nprompt,\na,b\n", "3", "column names"),
        ('prompt,completion\na,b\nc,"d\n', "3", "broken row"),
        ('prompt,completion\na,"b"c\n', "2", "broken row"),
        ("question,answer\na,b\n", "2", "columns"),
        ("prompt,completion\n", "", "no records"),
    ],
)
def test_broken_csv_is_refused(tmp_path: Path, text: str, line: str, word: str) -> None:
    ((at, problem),) = said(read_text(tmp_path, text, "a.csv"))
    assert at == line and word in problem


def test_json_array_records_carry_the_line_on_which_they_start(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": "c\nd", "tags": [i, {"deep": [1]}]} for i in range(5)]
    text = "\n[\n\n" + json.dumps(rows[0]) + ",\n" + json.dumps(rows[1], indent=2) + "\n,\n  " + json.dumps(rows[2]) + ", " + json.dumps(rows[3], indent=1)
    text += ",\n\n" + json.dumps(rows[4]) + "\n]\n\n"
    reading = read_text(tmp_path, text, "a.json")
    starts = [text[: text.index(f'"p{i}"')].rindex("{") for i in range(5)]
    assert reading.findings == []
    assert [(r.line, r.messages[0].content) for r in reading.records] == [(text.count("\n", 0, start) + 1, f"p{i}") for i, start in enumerate(starts)]


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
    ],
)
def test_broken_json_arrays_are_refused(tmp_path: Path, text: str, line: str, word: str) -> None:
    problems = said(read_text(tmp_path, text, "a.json"))
    assert problems[-1][0] == line and word in problems[-1][1]


def test_parquet_rows_are_numbered_from_one(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"p{i}"}, {"role": "assistant", "content": "c"}], "id": i} for i in range(5000)]
    rows[4321]["messages"][1]["content"] = None
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    reading = read(tmp_path / "a.parquet")
    assert [(r.line, r.messages[0].content, r.extra["id"]) for r in reading.records] == [(i + 1, f"p{i}", i) for i in range(5000) if i != 4321]
    assert [line for line, _ in said(reading)] == ["4322"] and law_holds(reading)
    ((_, problem),) = said(read_text(tmp_path, b"PAR1 no", "b.parquet"))
    assert "not a parquet file" in problem


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
    packed = read_text(tmp_path, gzip.compress(data), f"a.v1.{suffix.upper()}.gz")
    assert [turns(r) for r in plain.records] == [[("user", row["prompt"]), ("assistant", row["completion"])] for row in rows]
    assert [(turns(r), r.line) for r in packed.records] == [(turns(r), r.line) for r in plain.records]
    assert plain.findings == packed.findings == [] and plain.accounts[0].digest == packed.accounts[0].digest


# --- what cannot be read -------------------------------------------------------------------------------------------

GOOD_LINE = '{"prompt": "a", "completion": "b"}'
LINES: list[tuple[str, str]] = [
    ('{"prompt": "a", "completion": "b"', "broken JSON"),
    ('{"prompt": "a", "completion": "b}', "broken JSON"),
    ("{'prompt': 'a', 'completion': 'b'}", "broken JSON"),
    ('{"prompt": "a", "completion": "b",}', "broken JSON"),
    ('{"prompt": "a\tb", "completion": "b"}', "broken JSON"),
    ('{"prompt": "a", "completion": "b"} {"prompt": "a"}', "a line of its own"),
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
    problems = said(reading)
    assert [line for line, _ in problems] == [str(2 * i) for i in range(1, len(LINES) + 1)]
    for (_, text), (_, word) in zip(problems, LINES, strict=True):
        assert word in text
    assert [r.line for r in reading.records] == list(range(1, 2 * len(LINES), 2)) and len(LINES) == 19
    assert reading.accounts[0].rejected == 19 and reading.accounts[0].read == 38


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
        ("a.jsonl", GOOD_LINE.encode("utf-16-be"), "broken JSON"),
        ("a.jsonl", GOOD_LINE.encode("utf-32"), "UTF-32"),
        ("a.csv", b"prompt,completion\ncaf\xe9,b\n", "byte 0xe9 at offset 21"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str, content: bytes, word: str) -> None:
    problems = said(read_text(tmp_path, content, name))
    assert word in problems[0][1]


@pytest.mark.parametrize("name", ["trian.jsonl", "folder.jsonl", "~nobody-here/a.jsonl", "a\0.jsonl", "/no/such/a.jsonl"])
def test_a_path_that_cannot_be_read_is_refused_and_not_a_traceback(tmp_path: Path, name: str) -> None:
    jsonl(tmp_path / "train.jsonl", colour_rows(2))
    (tmp_path / "folder.jsonl").mkdir()
    reading = read_source(SourceSpec(files=[name]), "train", tmp_path, 1)
    assert len(reading.findings) == 1 and reading.records == []
    assert ("did you mean train.jsonl" in said(reading)[0][1]) == (name == "trian.jsonl")


def test_a_file_named_twice_in_one_source_is_refused(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", colour_rows(3))
    reading = read_source(SourceSpec(files=["a.jsonl", "a.jsonl"]), "train", tmp_path, 1)
    assert "the same file twice" in said(reading)[0][1] and law_holds(reading)


def test_problems_of_every_split_are_raised_together(tmp_path: Path) -> None:
    for name in ("train", "held", "far"):
        (tmp_path / f"{name}.jsonl").write_text(f"{GOOD_LINE}\n{{}}\n", encoding="utf-8")
    spec = DataSpec.model_validate({"train": "train.jsonl", "validation": "none.jsonl", "held_out": "held.jsonl", "ood": {"far": "far.jsonl"}})
    with pytest.raises(Refusal) as caught:
        read_splits(spec, tmp_path, 1)
    assert [p.where for p in caught.value.problems] == ["train.jsonl:2", "none.jsonl", "held.jsonl:2", "far.jsonl:2"]


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
    return sorted(p for p in SAMPLES.rglob("*") if {".jsonl", ".csv"} & set(p.suffixes))


def test_every_record_of_every_sample_is_accounted_for() -> None:
    counted = 0
    for path in sample_files():
        columns = {"prompt": "mr", "completion": "ref"} if path.parent.name == "e2e_nlg" else None
        reading = read(path, columns)
        if not reading.accounts[0].digest:
            assert path.name in {"empty.jsonl", "invalid_utf8_line_3.jsonl", "utf16.jsonl"} and reading.problems
            continue
        assert reading.accounts[0].read == rows_in(path), path.name
        assert law_holds(reading) and reading.accounts[0].rejected == len(reading.problems)
        if path.suffix != ".gz":  # once is enough for 42,061 records
            taken = read(path, columns, take=5)
            assert law_holds(taken) and taken.accounts[0].not_taken == max(len(reading.records) - 5, 0)
        counted += 1
    assert counted >= 34 and counted == len(sample_files()) - 3


CLEAN = ("clinc150", "multidogo")


@pytest.mark.parametrize("recipe", ["quickstart", "ticket_json"])
def test_the_clean_samples_give_no_problem_and_no_finding(recipe: str) -> None:
    spec = load_recipe(ROOT / "recipes" / f"{recipe}.yaml")
    splits = read_splits(spec.data, ROOT / "recipes", spec.seed)
    assert checked(splits, spec.data, spec.template.max_tokens) == []
    used = {Path(a.file).name for a in splits.accounts}
    (folder,) = {Path(a.file).parent.name for a in splits.accounts}
    assert folder in CLEAN and used == {p.name for p in (SAMPLES / folder).glob("*.jsonl")}


def checked(splits: Splits, spec: DataSpec, max_tokens: int = 1024) -> list[tuple[str, str]]:
    """Findings as (place, text). Tokens are counted as words; no tokenizer is needed for what the samples hold."""
    tokens = {(r.file, r.line): (sum(len(m.content.split()) for m in r.prompt), len(r.completion.split())) for rows in splits.records.values() for r in rows}
    context = Context(splits, spec.task, max_tokens, frozenset({"<|im_start|>", "<|im_end|>"}), tokens)
    return [(f"{f.file}:{f.line}", f"{f.check} {f.field} {f.found}") for f in run_checks(CHECKS, context, spec).findings]


# File: (places, words of the messages there), from data_samples/bad/README.md. A place is a line, or FILE:LINE where it is in another file.
EXPECTED: dict[str, dict[str, str]] = {
    "empty.jsonl": {"": "at least one record"},
    "blank_lines.jsonl": {},
    "broken_line_37.jsonl": {"37": "unterminated string"},
    "duplicate_key_line_3.jsonl": {"3": "'completion' twice"},
    "nan_line_2.jsonl": {"2": "NaN"},
    "not_object_line_4.jsonl": {"4": "a list"},
    "mixed_shapes_line_6.jsonl": dict.fromkeys(("6", "7", "8"), "one shape a file"),
    "unknown_role_line_2.jsonl": {"2": "write assistant"},
    "no_assistant_line_3.jsonl": {"3": "no assistant turn"},
    "null_content_line_2.jsonl": {"2": "messages[1].content | null"},
    "number_content_line_3.jsonl": {"3": "messages[0].content | the number 4711"},
    "empty_completion_line_4.jsonl": {"4": "empty_completion completion"},
    "invalid_utf8_line_3.jsonl": {"3": "byte 0xe9"},
    "utf16.jsonl": {"": "UTF-16"},
    "two_records_line_2.jsonl": {"2": "a line of its own"},
    "exact_duplicates_lines_2_5.jsonl": {"5": "exact_duplicates_lines_2_5.jsonl:2"},
    "contradiction_lines_1_4.jsonl": dict.fromkeys(("1", "4"), "contradiction_lines_1_4.jsonl:4 says"),
    "special_token_in_content_line_2.jsonl": {"2": "'<|im_end|>', '<|im_start|>'"},
    "too_long_line_2.jsonl": {"2": "overlong"},
    "missing_field_line_5.jsonl": {"5": "add completion"},
    "wrong_columns.jsonl": dict.fromkeys(map(str, range(1, 9)), "rename mesages to messages"),
    "bad_cell.csv": {"3": "empty_completion", "4": "4 cells"},
    "overlap_train.jsonl": {"4": "overlap_held_out.jsonl:2"},
    "overlap_held_out.jsonl": {"overlap_train.jsonl:4": "overlap_held_out.jsonl:2"},
}


def test_every_hostile_file_is_expected_and_documented() -> None:
    files = {p.name for p in BAD.iterdir() if p.suffix != ".md"}
    readme = (BAD / "README.md").read_text(encoding="utf-8")
    assert files == EXPECTED.keys() and len(files) == 24
    assert {name for name in files if f"| `{name}` |" in readme} == files


@pytest.mark.parametrize("name", EXPECTED)
def test_every_hostile_file_is_caught_at_its_lines_and_nowhere_else(name: str) -> None:
    train = "overlap_train.jsonl" if name.startswith("overlap") else name
    splits = {"train": read(BAD / train)}
    if name.startswith("overlap"):
        splits["held_out"] = read(BAD / "overlap_held_out.jsonl")
    caught = [problem for reading in splits.values() for problem in said(reading)]
    records = {split: reading.records for split, reading in splits.items()}
    caught += [(where.removeprefix(f"{name}:"), text) for where, text in checked(Splits(records, ()), DataSpec(train=SourceSpec(files=[name])))]
    assert sorted(line for line, _ in caught) == sorted(EXPECTED[name])
    for line, text in caught:
        assert EXPECTED[name][line] in text


def test_blank_lines_are_no_records_and_shift_no_line() -> None:
    reading = read(BAD / "blank_lines.jsonl")
    assert len(reading.records) == reading.accounts[0].read == 8
    assert [r.line for r in reading.records] == [1, 2, 4, 5, 7, 8, 9, 10]
