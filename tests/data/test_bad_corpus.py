"""The corpus of bad and clean files: reading says exactly what the table says, at the right line, and loses no record.

`data_samples/bad/expected.json` is {file: [{line, check, code}]}. Entries of other checks may stand there too; this sweep looks at
those of READING only. What would be large or is made by a library (parquet, bombs, long lines) is made here, under MADE.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from tests.conftest import BAD, ROOT, SAMPLES
from tuner.data.files import FREE_BYTES, MOST_RATIO
from tuner.data.findings import Finding
from tuner.data.sources import Reading, read_source
from tuner.data.spec import SourceSpec

READING = {"files", "unreadable", "structure"}
CLEAN = SAMPLES / "clean"
Place = tuple[int, str, str]  # line, check, code
TABLE: dict[str, list[Place]] = {
    name: sorted((e["line"], e["check"], e["code"]) for e in entries if e["check"] in READING)
    for name, entries in json.loads((BAD / "expected.json").read_text(encoding="utf-8")).items()
}


def read(path: Path) -> Reading:
    return read_source(SourceSpec(files=[path.name]), "train", path.parent, 1)


def places(reading: Reading) -> list[Place]:
    return sorted((f.line, f.check, f.code) for f in reading.findings)


def corpus(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.suffix != ".md" and p.name != "expected.json"}


def is_accounted_for(reading: Reading) -> bool:
    """read = kept + rejected; no record is both kept and found fault with; a rejected record has a finding of its own."""
    (account,) = reading.accounts
    kept = {r.line for r in reading.records}
    faulty = {f.line for f in reading.findings if f.check != "files"}
    stopped = any(f.check == "files" for f in reading.findings)
    return (
        account.read == len(reading.records) + account.rejected
        and len(kept) == len(reading.records)
        and kept.isdisjoint(faulty)
        and (account.rejected == len(faulty) or (stopped and account.rejected <= len(faulty)))
    )


def speaks_plainly(finding: Finding) -> bool:
    """Nothing is left open, and nothing in it could move a cursor or hide text."""
    said = (finding.found, finding.accepted, finding.fix)
    return all(said) and not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co"} for c in "".join((*said, finding.field))) and max(map(len, said)) < 600


# --- files made here -------------------------------------------------------------------------------------------------

LINE = b'{"prompt": "a", "completion": "b"}\n'
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def zstd(data: bytes) -> bytes:
    sink = arrow.BufferOutputStream()
    with arrow.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return bytes(sink.getvalue())


def table(rows: list[dict[str, Any]] | arrow.Table) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(rows if isinstance(rows, arrow.Table) else arrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def far_date() -> bytes:
    return table(arrow.table({"prompt": ["a", "b"], "completion": ["c", "d"], "at": arrow.array([0, 2**60], arrow.timestamp("us"))}))


def latin1_column() -> bytes:
    cells = arrow.Array.from_buffers(
        arrow.string(), 3, [None, arrow.py_buffer(b"".join(n.to_bytes(4, "little") for n in range(4))), arrow.py_buffer(b"a\xe9c")]
    )
    return table(arrow.table({"prompt": ["a", "b", "c"], "completion": cells}))


def twin_columns() -> bytes:
    return table(arrow.Table.from_arrays([arrow.array(["a"])] * 3, names=["prompt", "completion", "completion"]))


def dated_call() -> bytes:
    import datetime

    call = {"name": "f", "arguments": {"day": datetime.date(2024, 5, 2)}}
    return table([{"messages": [{**CHAT[0], "tool_calls": None}, {"role": "assistant", "content": None, "tool_calls": [call]}]}])


BOMB = max(FREE_BYTES, 2 << 20) + MOST_RATIO
MADE: dict[str, tuple[Callable[[], bytes], list[Place]]] = {
    "line_of_10_mb.jsonl": (lambda: LINE + b'{"prompt": "' + b"x" * 10_000_000 + b'", "completion": "b"}\n' + LINE, [(2, "unreadable", "TOO_LONG")]),
    "line_of_50_mb.jsonl": (lambda: LINE + b"y" * 50_000_000 + b"\n" + LINE, [(2, "unreadable", "TOO_LONG")]),
    "record_of_2_mb.json": (lambda: b"[\n" + LINE + b',{"prompt": "' + b"x" * 2_000_000 + b'", "completion": "b"}\n]', [(3, "unreadable", "TOO_LONG")]),
    "line_of_2_mb.csv": (lambda: b"prompt,completion\na,b\n" + b"x" * 2_000_000 + b",y\nc,d\n", [(3, "unreadable", "TOO_LONG")]),
    "row_of_2_mb.csv": (lambda: b'prompt,completion\na,b\n"' + b"x\n" * 1_000_000 + b'",y\nc,d\n', [(3, "unreadable", "TOO_LONG")]),
    "cells_of_2_mb.csv": (lambda: b"prompt,completion\na,b\n" + b'"\n",' * 500_000 + b"y\nc,d\n", [(3, "unreadable", "TOO_LONG")]),
    "brackets_100k.jsonl": (lambda: LINE + b"[" * 100_000 + b"]" * 100_000 + b"\n" + LINE, [(2, "unreadable", "TOO_DEEP")]),
    "objects_100k.jsonl": (lambda: b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n" + LINE, [(1, "unreadable", "TOO_DEEP")]),
    "brackets_100k.json": (lambda: b"[\n" + LINE + b"," + b"[" * 100_000 + b"]" * 100_000 + b"]", [(3, "unreadable", "TOO_DEEP")]),
    "open_brackets_100k.json": (lambda: b"[" * 100_000, [(1, "unreadable", "TOO_DEEP")]),
    "zeros.jsonl.gz": (lambda: gzip.compress(bytes(BOMB), 9), [(0, "files", "ENCODING")]),
    "blanks.jsonl.gz": (lambda: gzip.compress(b" " * BOMB, 9), [(0, "files", "TOO_LARGE")]),
    "blanks.jsonl.zst": (lambda: zstd(b" " * BOMB), [(0, "files", "TOO_LARGE")]),
    "blanks.json.gz": (lambda: gzip.compress(b" " * BOMB, 9), [(0, "files", "TOO_LARGE")]),
    "quote.csv.gz": (lambda: gzip.compress(b'prompt,completion\na,"' + b"x" * BOMB, 9), [(0, "files", "TOO_LARGE")]),
    "blanks.parquet.gz": (lambda: gzip.compress(b" " * BOMB, 9), [(0, "files", "TOO_LARGE")]),
    "cut.jsonl.zst": (lambda: zstd(LINE * 50)[:-3], [(0, "files", "BROKEN_PACKING")]),
    "cut.parquet": (lambda: table([{"prompt": "a", "completion": "b"}])[:-5], [(0, "files", "NOT_PARQUET")]),
    "only_marks.parquet": (lambda: b"PAR1PAR1", [(0, "files", "NOT_PARQUET")]),
    "no_rows.parquet": (lambda: table(arrow.table({"prompt": arrow.array([], arrow.string()), "completion": arrow.array([], arrow.string())})),
                        [(0, "files", "EMPTY")]),
    "twin_columns.parquet": (twin_columns, [(0, "files", "HEADER")]),
    "wrong_columns.parquet": (lambda: table([{"promt": "a", "completion": "b"}]), [(1, "structure", "SHAPE")]),
    "numbers.parquet": (lambda: table([{"prompt": "a", "completion": 5}, {"prompt": "b", "completion": None}]),
                        [(1, "structure", "TYPE"), (2, "structure", "NULL")]),
    "bytes.parquet": (lambda: table([{"prompt": b"a", "completion": "b"}]), [(1, "structure", "TYPE")]),
    "lists.parquet": (lambda: table([{"prompt": "a", "completion": ["b"]}]), [(1, "structure", "TYPE")]),
    "texts_for_messages.parquet": (lambda: table([{"messages": "a"}]), [(1, "structure", "TYPE")]),
    "null_content.parquet": (lambda: table([{"messages": CHAT}, {"messages": [CHAT[0], {"role": "assistant", "content": None}]}, {"messages": None}]),
                             [(2, "structure", "NULL"), (3, "structure", "TYPE")]),
    "far_date.parquet": (far_date, [(2, "unreadable", "VALUE")]),
    "latin1.parquet": (latin1_column, [(2, "unreadable", "ENCODING")]),
    "dated_call.parquet": (dated_call, [(1, "structure", "TOOL_CALL")]),
}  # fmt: skip


# --- the sweeps ------------------------------------------------------------------------------------------------------


def test_the_table_names_every_file_of_the_corpus_and_no_other() -> None:
    assert set(TABLE) == corpus(BAD)
    assert all(entry["check"] and entry["code"] and entry["line"] >= 0 for of in json.loads((BAD / "expected.json").read_text()).values() for entry in of)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_bad_record_is_found_with_its_code_and_line_and_no_other(name: str) -> None:
    reading = read_source(SourceSpec(files=[name]), "train", BAD, 1)
    assert places(reading) == TABLE[name]
    assert is_accounted_for(reading) and all(speaks_plainly(f) for f in reading.findings)


@pytest.mark.parametrize("name", sorted(MADE))
def test_every_bad_file_made_here_is_found_with_its_code_and_line_and_no_other(name: str, tmp_path: Path) -> None:
    make, expected = MADE[name]
    (tmp_path / name).write_bytes(make())
    reading = read(tmp_path / name)
    assert places(reading) == expected
    assert is_accounted_for(reading) and all(speaks_plainly(f) for f in reading.findings)


def test_the_corpus_is_as_large_as_we_say_and_holds_every_code_that_reading_can_give() -> None:
    swept = Counter(code for of in [*TABLE.values(), *(e for _, e in MADE.values())] for _, _, code in of)
    assert sum(swept.values()) >= 490 and len(TABLE) + len(MADE) >= 140
    source = "".join((ROOT / "tuner" / "data" / f"{module}.py").read_text(encoding="utf-8") for module in ("files", "parse", "shapes", "sources"))
    codes = set(re.findall(r'"([A-Z]+(?:_[A-Z]+)*)"', re.sub(r'""".*?"""', "", source, flags=re.S)))
    codes -= {"UTF", "PAR"}  # parts of other words
    elsewhere = {"MISSING", "UNREADABLE", "TWICE", "TOO_MANY", "NOT_A_FILE"}  # of paths and of counts, in test_sources and test_reading_limits
    assert codes - elsewhere == set(swept), (codes - elsewhere) ^ set(swept)


@pytest.mark.parametrize("name", sorted(corpus(CLEAN)))
def test_nothing_is_said_of_a_clean_file(name: str) -> None:
    reading = read(CLEAN / name)
    assert reading.findings == [] and is_accounted_for(reading)
    assert len(reading.records) == reading.accounts[0].read == records_in(CLEAN / name) > 0


def records_in(path: Path) -> int:
    """How many records a clean file holds, counted without tuner."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    elif path.suffix == ".zst":
        data = {"packed.jsonl.zst": LINE * 4, "two_frames.jsonl.zst": LINE * 4, "packed.json.zst": b"[1,2,3,4]"}[path.name]
    kinds = {s.lower() for s in path.suffixes}
    if ".json" in kinds:
        return len(json.loads(data.decode("utf-8-sig")))
    if kinds & {".csv", ".tsv"}:
        return sum(bool(row) for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter="\t" if ".tsv" in kinds else ",")) - 1
    return sum(bool(line.strip()) for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"))


def test_there_are_forty_clean_files_with_150_records() -> None:
    names = corpus(CLEAN)
    assert len(names) >= 40 and sum(len(read(CLEAN / name).records) for name in names) >= 150


@pytest.mark.parametrize("name", sorted(n for n, of in TABLE.items() if n.endswith(".jsonl") and not any(check == "files" for _, check, _ in of)))
def test_every_line_that_is_not_blank_is_read_once_and_kept_or_rejected(name: str) -> None:
    reading = read_source(SourceSpec(files=[name]), "train", BAD, 1)
    lines = {number for number, line in enumerate((BAD / name).read_bytes().split(b"\n"), 1) if line.strip()}
    assert {r.line for r in reading.records} | {f.line for f in reading.findings} == lines
    assert reading.accounts[0].read == len(lines)


@pytest.mark.parametrize(
    ("slip", "hint"),
    [
        ('{"mesages": []}', "rename mesages to messages"),
        ('{"conversation": []}', "rename conversation to conversations"),
        ('{"instructoin": "a", "output": "b"}', "rename instructoin to instruction"),
        ('{"instruction": "a", "outputs": "b"}', "rename outputs to output"),
        ('{"promt": "a", "completion": "b"}', "rename promt to prompt"),
        ('{"prompt": "a", "completoin": "b"}', "rename completoin to completion"),
        ('{"prompt": "a"}', "add completion"),
        ('{"output": "a"}', "add instruction"),
        ('{"question": "a", "answer": "b"}', "say which columns hold what: data.train.columns={prompt: question, completion: …}"),
        ('{"messages": [{"role": "asistant", "content": "a"}]}', "write assistant"),
        ('{"messages": [{"role": "sytem", "content": "a"}]}', "write system"),
    ],
)
def test_a_slip_of_the_finger_is_answered_with_the_nearest_name(tmp_path: Path, slip: str, hint: str) -> None:
    (tmp_path / "a.jsonl").write_text(slip + "\n", encoding="utf-8")
    (finding,) = read(tmp_path / "a.jsonl").findings
    assert finding.fix == hint


def test_a_bad_file_among_good_ones_costs_no_record_of_theirs(tmp_path: Path) -> None:
    for name in ("a.jsonl", "c.jsonl"):
        (tmp_path / name).write_bytes(LINE * 3)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(LINE * 500)[:-10])
    reading = read_source(SourceSpec(files=["a.jsonl", "b.jsonl.gz", "c.jsonl"]), "train", tmp_path, 1)
    assert Counter(r.file for r in reading.records).keys() >= {"a.jsonl", "c.jsonl"}
    assert [(f.file, f.code) for f in reading.findings] == [("b.jsonl.gz", "BROKEN_PACKING")]
    assert [a.read for a in reading.accounts][::2] == [3, 3] and all(a.rejected == 0 for a in reading.accounts)
