"""Reading at its limits: block boundaries, cut and hostile packing, lines without end, bytes that are not text; and the fast path is the strict one."""

from __future__ import annotations

import gzip
import io
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

import tuner.data.files as files
from tests.conftest import BAD, SAMPLES, colour_rows
from tuner.data.files import Faults, Line, Stream
from tuner.data.parse import BadJson, decode, json_line, line_text
from tuner.data.record import Record
from tuner.data.shapes import Shaper, plain_record
from tuner.data.sources import Limits, Reading, read_source
from tuner.data.spec import Shape, SourceSpec

GOOD = b'{"prompt": "a", "completion": "b"}'


def read(path: Path, **limits: int) -> Reading:
    return read_source(SourceSpec(files=[path.name]), "train", path.parent, 1, Limits(**limits))


def read_bytes(folder: Path, name: str, data: bytes, **limits: int) -> Reading:
    (folder / name).write_bytes(data)
    return read(folder / name, **limits)


def codes(reading: Reading) -> list[tuple[int, str, str]]:
    return [(f.line, f.check, f.code) for f in reading.findings]


def is_lawful(reading: Reading) -> bool:
    """read = kept + rejected."""
    return all(a.read == len(reading.records) + a.rejected and a.rejected >= 0 for a in reading.accounts)


def zstd(data: bytes) -> bytes:
    sink = arrow.BufferOutputStream()
    with arrow.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return bytes(sink.getvalue())


def stream(path: Path) -> Stream:
    return Stream(path, Faults(path.name, "train"), 1 << 20, 1 << 32)


# --- the right line, however far down ----------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 2, 4095, 4096, 4097, 100_001])
@pytest.mark.parametrize(
    ("mark", "end", "gap"), [(b"", b"\n", b""), (b"\xef\xbb\xbf", b"\r\n", b""), (b"", b"\n", b" \t"), (b"\xef\xbb\xbf", b"\r\n", b"\r\n\r\n")]
)
def test_a_fault_is_named_by_its_line_whatever_stands_above_it(tmp_path: Path, at: int, mark: bytes, end: bytes, gap: bytes) -> None:
    above = gap + end if gap else b""
    per = above.count(b"\n") + 1  # lines a record takes with the blank ones above it
    data = mark + (above + GOOD + end) * (at - 1) + above + b'{"prompt": "a", "completion": 5}' + end + above + GOOD
    reading = read_bytes(tmp_path, "a.jsonl", data)
    assert codes(reading) == [(at * per, "structure", "TYPE")]
    assert reading.findings[0].where == f"a.jsonl:{at * per}"
    assert [r.line for r in reading.records[-2:]] == [n * per for n in (at - 1, at + 1) if n]
    assert reading.accounts[0].read == at + 1 and is_lawful(reading)


def test_five_different_faults_far_apart_in_a_long_file_are_all_found_in_one_pass(tmp_path: Path) -> None:
    lines = [GOOD] * 120_000
    faults = {
        3: (b'{"prompt": "a", "completion": ', "unreadable", "BROKEN_JSON"),
        50_001: (b'{"prompt": "a", "prompt": "b", "completion": "c"}', "unreadable", "DUPLICATE_KEY"),
        77_777: (b'{"prompt": "caf\xe9", "completion": "b"}', "unreadable", "ENCODING"),
        100_001: (b'{"promt": "a", "completion": "b"}', "structure", "SHAPE"),
        120_000: (b'{"messages": []}', "structure", "MIXED_SHAPES"),
    }
    for number, (line, _, _) in faults.items():
        lines[number - 1] = line
    reading = read_bytes(tmp_path, "a.jsonl", b"\n".join(lines))
    assert codes(reading) == [(number, check, code) for number, (_, check, code) in faults.items()]
    offset = sum(len(line) + 1 for line in lines[:77_776]) + lines[77_776].index(b"\xe9")
    assert f"byte 0xe9 at offset {offset} of the file" in reading.findings[2].found
    assert reading.accounts[0].read == 120_000 and reading.accounts[0].rejected == 5 and is_lawful(reading)


def test_lines_and_offsets_are_plain_integers_so_the_second_gigabyte_is_as_the_first(tmp_path: Path) -> None:
    """Python's int has no width; a numpy or C integer would wrap at 2^31 or 2^32. Past both, a finding still names the true place."""
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbfa\n\nb" + b"x" * 2000)
    for line in Stream(tmp_path / "a.jsonl", Faults("a.jsonl", "train"), 1000, 10_000).lines():
        assert [type(v) for v in (line.number, line.offset, line.size)] == [int] * 3
    far = stream(tmp_path / "a.jsonl")
    assert line_text(far, Line(3_000_000_001, 5_000_000_000, b"abc\xff", 4, True)) is None
    assert far.faults.found[0].where == "a.jsonl:3000000001" and "at offset 5000000003 " in far.faults.found[0].found


@pytest.mark.slow
def test_a_fault_behind_two_gigabytes_is_found_at_its_line_and_offset(tmp_path: Path) -> None:
    """A sparse file: the hole reads as one line of 2.2 GB of null bytes, which is refused without being kept."""
    hole = 2_200_000_000
    with open(tmp_path / "a.jsonl", "wb") as out:
        out.write(GOOD + b"\n")
        out.seek(hole, 1)
        out.write(b"\n" + GOOD + b'\n{"prompt": "\xff", "completion": "b"}\n')
    reading = read(tmp_path / "a.jsonl")
    assert codes(reading) == [(2, "unreadable", "TOO_LONG"), (4, "unreadable", "ENCODING")]
    assert reading.findings[0].found == f"a record of {hole} bytes"
    assert f"at offset {len(GOOD) + 1 + hole + 1 + len(GOOD) + 1 + 12} " in reading.findings[1].found
    assert [r.line for r in reading.records] == [1, 3] and is_lawful(reading)


# --- block boundaries --------------------------------------------------------------------------------------------------

LINES = (
    b"\xef\xbb\xbf"
    + GOOD
    + b"\r\n\n"
    + '{"prompt": "é€😀", "completion": "ü"}'.encode()
    + b"\n"
    + b'{"prompt": "\xe2\x82", "completion": 1}\n5\n  \n'
    + GOOD
    + b'\n{"prompt": "c'
)
ARRAY = b'\xef\xbb\xbf\n [' + GOOD + ',\n\n{"prompt": "é€😀\\ud83d\\ude00", "completion": "ü", "n": [1234567890123, -1.5e3, true, null]},\n'.encode() + (
    b'12345,\n{"x": {"a": 1, "a": 2}, "prompt": "p", "completion": "c"},\n{"n": -Infinity,   "prompt": "p"},\n'
    b'{"n": 1234567890123456789012345, "m": false},\n{"prompt":  7}  ,\n"text", ' + GOOD + b"\n]\n \n"
)  # fmt: skip
TABLE = '\ufeffprompt,completion\r\n"é\r\n€","😀 ""q"""\r\n\r\nx,y,z\r\n'.encode() + b'caf\xe9,"\xff\nb"\nc,d\n"e\n,f'
PACKED = gzip.compress(LINES, mtime=0)
SMALL: dict[str, bytes] = {
    "a.jsonl": LINES, "a.json": ARRAY, "a.csv": TABLE, "a.tsv": TABLE.replace(b",", b"\t"), "a.jsonl.gz": PACKED, "two.jsonl.gz": PACKED + gzip.compress(GOOD),
    "cut.jsonl.gz": PACKED[:-9], "a.jsonl.zst": zstd(LINES), "bad_byte.json": ARRAY.replace(b'"text"', b'"te\xc3(t"'), "cut.json": ARRAY[:-30],
    "cut_in_a_character.json": ARRAY[: ARRAY.index("€".encode()) + 2], "line.json": json.dumps([*colour_rows(3), 5, {"n": 1}]).encode(),
    "mark.jsonl": b"\xef\xbb\xbf", "gzip.jsonl": PACKED, "wide.jsonl": LINES.decode("utf-8", "replace").encode("utf-16"), "zeros.jsonl": b"\x00\x00" + GOOD,
    "after.json": b"[" + GOOD + b"] \n x",
    "deep.json": b"[" + b"[" * 80 + b"]" * 80 + b"," + GOOD + b"]", "zip.csv": b"PK\x03\x04abc", "empty.json": b"  [ \n ] ",
    "numbers.json": b"[-1.5e+3, 12E5,0.25,\n7 ,-0]", "behind.json": b"[" + GOOD + b"] 0123456789" * 9,
    "object.json": b' \n{"data": [1, 2, 3, 4, 5, 6, 7, 8, 9]}',
}  # fmt: skip


def seen(reading: Reading) -> list[Any]:
    (account,) = reading.accounts
    records = [(r.line, r.messages, r.extra) for r in reading.records]
    return [records, reading.findings, account.read, account.rejected]


@pytest.mark.parametrize("name", sorted(SMALL))
def test_records_findings_and_accounts_are_the_same_for_every_block_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    whole = read_bytes(tmp_path, name, SMALL[name])
    assert is_lawful(whole) and (whole.records or whole.findings)
    for size in range(1, 65):
        monkeypatch.setattr(files, "BLOCK", size)
        part = read(tmp_path / name)
        if name == "cut.jsonl.gz":  # smaller blocks reach further into what is left; the rest is the same
            assert codes(part) == [*codes(whole)[: len(codes(part)) - 1], (0, "files", "BROKEN_PACKING")] or part.findings[-1].code == "BROKEN_PACKING"
            assert is_lawful(part)
            continue
        assert seen(part) == seen(whole), size
        if not any(f.check == "files" for f in whole.findings):
            assert part.accounts == whole.accounts, size


def damaged(dice: random.Random, data: bytes) -> bytes:
    bits = [b",", b"]", b"[", b"{", b"}", b'"', b"\n", b"\r", b"\xff", b"\xc3", b" ", b"1", b"\\", b"-", b"t", b":", b"\x00", "é".encode(), b"\t", b"."]
    for _ in range(dice.randrange(1, 5)):
        start, stop = sorted(dice.randrange(len(data) + 1) for _ in range(2))
        kind = dice.randrange(5)
        if kind == 0:
            data = data[:start] + dice.choice(bits) + data[start:]
        elif kind == 1:
            data = data[:start] + data[start + dice.randrange(1, 5) :]
        elif kind == 2:
            data = data[:stop]
        elif kind == 3:
            data = data[:start] + bytes([dice.randrange(256)]) + data[start + 1 :]
        else:
            data = data[:stop] + data[start:]
    return data


def test_600_damaged_files_are_never_a_traceback_and_read_alike_in_blocks_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(2)
    swept = 0
    while swept < 600:
        source = dice.choice([n for n in SMALL if n.endswith((".jsonl", ".json", ".csv", ".tsv"))])
        data = damaged(dice, SMALL[source])
        if len(data) < 4:
            continue
        (tmp_path / source).write_bytes(data)
        readings = []
        for size in (1 << 20, 1, 3, 17):
            monkeypatch.setattr(files, "BLOCK", size)
            readings.append(read(tmp_path / source))
            assert is_lawful(readings[-1])
        assert all(seen(r) == seen(readings[0]) for r in readings), data
        swept += 1


def test_bytes_changed_in_a_parquet_file_are_never_a_traceback(tmp_path: Path) -> None:
    dice = random.Random(5)
    sink = io.BytesIO()
    parquet.write_table(
        arrow.Table.from_pylist([{"messages": [{"role": "user", "content": "aé"}, {"role": "assistant", "content": "b"}], "id": i} for i in range(50)]), sink
    )
    found = Counter[str]()
    for _ in range(800):
        data = bytearray(sink.getvalue())
        for _ in range(dice.randrange(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        reading = read_bytes(tmp_path, "a.parquet", bytes(data))
        assert is_lawful(reading)
        found.update({f.code for f in reading.findings})
    assert found["NOT_PARQUET"] > 400 and len(found) > 4


def naive_lines(data: bytes, most: int) -> list[Line]:
    """The same rule, with the whole file in hand."""
    offset, lines = 0, []
    parts = data.split(b"\n")
    for number, part in enumerate(parts, 1):
        ended = number < len(parts)
        start = 3 if number == 1 and part.startswith(b"\xef\xbb\xbf") else 0
        if ended or part[start:]:
            size = len(part) - start
            lines.append(Line(number, offset + start, part[start:] if size <= most else None, size, ended))
        offset += len(part) + 1
    return lines


def test_lines_are_those_of_the_whole_file_for_every_block_size_and_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(7)
    swept = 0
    for number in range(60):
        data = b"".join(dice.choices([b"\n", b"x", b"yy" * 9, b"\r\n", b"\xef\xbb\xbf", b"\x00", "é".encode(), b" "], k=dice.randrange(1, 40)))
        data = b"\xef\xbb\xbf" * dice.randrange(2) + data
        if data[:4].count(0) or data == b"\xef\xbb\xbf":
            continue
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(data)
        for size in (1, 2, 3, 4, 5, 7, 16, 64):
            monkeypatch.setattr(files, "BLOCK", size)
            for most in (1, 5, 20, 1000):
                one = Stream(path, Faults("a", "train"), most, 1 << 20)
                assert list(one.lines()) == naive_lines(data, most), (data, size, most)
                assert one.size == len(data)
                swept += 1
    assert swept > 1000


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_byte_that_is_not_utf8_is_named_by_its_offset_wherever_a_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    swept = 0
    for bad in (b"\xff", b"\xe9 ", b"\xe2\x82 ", b"\xf0\x9f\x98 ", b"\xed\xa0\x80", b"\xc0\xaf"):
        row = {"a.jsonl": b'{"prompt": "%b", "completion": "b"}\n', "a.json": b'{"prompt": "%b", "completion": "b"}', "a.csv": b"%b,b\n"}[name]
        head, joint, tail = {"a.jsonl": (b"", b"", b""), "a.json": (b"[\n", b",\n", b"]\n"), "a.csv": (b"prompt,completion\n", b"", b"")}[name]
        good = row % "é€".encode()
        data = head + good + joint + good + joint + row % (b"ab" + bad) + joint + good + tail
        offset = data.index(bad)
        for size in (1, 2, 3, 5, 8, 13, 1 << 20):
            monkeypatch.setattr(files, "BLOCK", size)
            reading = read_bytes(tmp_path, name, data)
            (finding,) = reading.findings
            assert finding.code == "ENCODING" and finding.line == data.count(b"\n", 0, offset) + 1
            assert f"byte 0x{bad[0]:02x} at offset {offset} of the file" in finding.found, (bad, size)
            assert len(reading.records) == (2 if name == "a.json" else 3) and is_lawful(reading)
            swept += 1
    assert swept == 42


def test_a_line_longer_than_a_block_is_one_line(tmp_path: Path) -> None:
    for size in (files.BLOCK - 1, files.BLOCK, files.BLOCK + 1, 3 * files.BLOCK):
        line = json.dumps({"prompt": "x" * (size - 35), "completion": "é"}, ensure_ascii=False).encode()
        reading = read_bytes(tmp_path, "a.jsonl", GOOD + b"\n" + line + b"\n" + GOOD, record_bytes=4 * files.BLOCK)
        assert reading.findings == [] and [r.line for r in reading.records] == [1, 2, 3]
        reading = read_bytes(tmp_path, "a.json", b"[" + GOOD + b",\n" + line + b",\n" + GOOD + b"]", record_bytes=4 * files.BLOCK)
        assert reading.findings == [] and [r.line for r in reading.records] == [1, 2, 3]


def test_the_limit_of_a_record_is_exact_in_lines_arrays_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(size: int, char: str = "x") -> bytes:
        room = size - len(GOOD) + 1
        return b'{"prompt": "' + (char.encode() * (room // len(char.encode()))).ljust(room, b"y") + b'", "completion": "b"}'

    for block in (7, 1 << 20):
        monkeypatch.setattr(files, "BLOCK", block)
        for char in ("x", "é", "😀"):
            assert len(record(2000, char)) == 2000
            for size, good in ((2000, True), (2001, False)):
                lines = read_bytes(tmp_path, "a.jsonl", GOOD + b"\n" + record(size, char) + b"\n" + GOOD, record_bytes=2000)
                assert codes(lines) == ([] if good else [(2, "unreadable", "TOO_LONG")]) and len(lines.records) == 2 + good
                array = read_bytes(tmp_path, "a.json", b"[" + GOOD + b",\n" + record(size, char) + b",\n" + GOOD + b"]", record_bytes=2000)
                assert codes(array) == ([] if good else [(2, "unreadable", "TOO_LONG")]) and len(array.records) == (3 if good else 1)
                assert is_lawful(lines) and is_lawful(array)


# --- packing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstd), ("a.json.gz", gzip.compress), ("a.csv.zst", zstd)])
def test_a_packed_file_cut_at_any_length_is_a_finding_unless_it_was_read_whole(tmp_path: Path, name: str, pack: Any) -> None:
    rows = colour_rows(12)
    table = "".join(f"{row['prompt']},{row['completion']}\n" for row in rows)
    text = {"jsonl": "".join(json.dumps(r) + "\n" for r in rows), "json": json.dumps(rows), "csv": f"prompt,completion\n{table}"}
    data = text[name.split(".")[1]].encode()
    packed = pack(data)
    whole = 0
    for length in range(len(packed) + 1):
        reading = read_bytes(tmp_path, name, packed[:length])
        assert is_lawful(reading)
        if any(f.check == "files" for f in reading.findings):
            continue
        assert reading.findings == [] and len(reading.records) == 12 and reading.accounts[0].bytes == len(data), length
        whole += 1
    assert 1 <= whole <= 9 and reading.findings == []  # all of the file; a library may not miss a checksum that is cut off


def test_a_parquet_file_cut_at_any_length_is_a_finding(tmp_path: Path) -> None:
    sink = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(colour_rows(3)), sink)
    data = sink.getvalue()
    for length in range(len(data)):
        reading = read_bytes(tmp_path, "a.parquet", data[:length])
        assert [(f.check, f.line) for f in reading.findings] == [("files", 0)] and reading.records == [], length
    assert read_bytes(tmp_path, "a.parquet", data).findings == [] and len(data) > 500


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_members_and_frames_behind_each_other_are_one_file(tmp_path: Path, pack: Any) -> None:
    rows = [json.dumps(r).encode() + b"\n" for r in colour_rows(30)]
    whole = b"".join(rows)
    for cuts in ([10, 20], [1], [29], list(range(1, 30)), []):
        parts = [b"".join(rows[a:b]) for a, b in zip([0, *cuts], [*cuts, 30], strict=True)]
        name = "a.jsonl.gz" if pack is gzip.compress else "a.jsonl.zst"
        reading = read_bytes(tmp_path, name, b"".join(map(pack, parts)))
        assert reading.findings == [] and [r.line for r in reading.records] == list(range(1, 31)), cuts
        assert reading.accounts[0].bytes == len(whole)
    inside = b"".join(pack(whole[i : i + 7]) for i in range(0, len(whole), 7))  # members that end within a line
    assert [r.line for r in read_bytes(tmp_path, name, inside).records] == list(range(1, 31))


def test_bytes_changed_in_a_packed_file_are_never_a_traceback_and_lose_no_account(tmp_path: Path) -> None:
    dice = random.Random(3)
    data = b"".join(json.dumps(r).encode() + b"\n" for r in colour_rows(20))
    swept = 0
    for name, packed in (("a.jsonl.gz", gzip.compress(data)), ("a.jsonl.zst", zstd(data))):
        for _ in range(300):
            broken = bytearray(packed)
            for _ in range(dice.randrange(1, 4)):
                broken[dice.randrange(len(broken))] = dice.randrange(256)
            assert is_lawful(read_bytes(tmp_path, name, bytes(broken)))
            swept += 1
    assert swept == 600


PEAK = """
import resource, sys, time
from pathlib import Path
from tuner.data.sources import read_source
from tuner.data.spec import SourceSpec
small, large = map(Path, sys.argv[1:])
def read(path): return read_source(SourceSpec(files=[path.name]), "train", path.parent, 1)
read(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.monotonic()
reading = read(large)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, time.monotonic() - start, *(f"{f.line}:{f.code}" for f in reading.findings),
      len(reading.records))
"""


def peak(small: Path, large: Path) -> tuple[int, float, list[str]]:
    """(growth of the peak memory in MiB, seconds, findings and count of records) of reading `large` in a process that has read `small`."""
    run = subprocess.run([sys.executable, "-c", PEAK, small, large], capture_output=True, text=True, check=True, timeout=120)
    grown, seconds, *rest = run.stdout.split()
    return int(grown), float(seconds), rest


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "a.csv.gz", "a.json.zst"])
def test_a_bomb_is_refused_in_bounded_memory(tmp_path: Path, name: str) -> None:
    """256 MiB in 256 kB (gzip) or less (zstandard): refused at 64 MiB, and not one of them is kept."""
    pack = gzip.compress if name.endswith(".gz") else zstd
    header = b"prompt,completion\n" if "csv" in name else b""
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / name).write_bytes(pack(header + GOOD))
    (tmp_path / name).write_bytes(pack(header + b" " * (256 << 20)))
    grown, seconds, found = peak(tmp_path / "small" / name, tmp_path / name)
    assert found[-2].endswith(":TOO_LARGE") and found[-1] == "0"
    assert grown < 24 and seconds < 20, (grown, seconds)


@pytest.mark.parametrize("megabytes", [10, 50])
def test_a_line_without_end_is_refused_at_once_and_not_kept(tmp_path: Path, megabytes: int) -> None:
    (tmp_path / "small.jsonl").write_bytes(GOOD)
    (tmp_path / "a.jsonl").write_bytes(GOOD + b'\n{"prompt": "' + b"x" * (megabytes * 1_000_000) + b'"}\n' + GOOD)
    grown, seconds, found = peak(tmp_path / "small.jsonl", tmp_path / "a.jsonl")
    assert found == ["2:TOO_LONG", "2"]
    assert grown < 12 and seconds < 3, (grown, seconds)


def test_a_file_of_nothing_but_faults_ends_at_the_fault_that_is_one_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_FAULTS", 100)
    reading = read_bytes(tmp_path, "a.jsonl", GOOD + b"\n" + b"x\n" * 5000)
    assert Counter(code for _, _, code in codes(reading)) == {"BROKEN_JSON": 100, "TOO_MANY": 1}
    assert codes(reading)[-1] == (102, "files", "TOO_MANY") and is_lawful(reading) and len(reading.records) == 1
    assert Counter(c for _, _, c in codes(read_bytes(tmp_path, "b.jsonl", GOOD + b"\n" + b"x\n" * 100))) == {"BROKEN_JSON": 100}


def test_a_file_larger_than_allowed_is_refused_before_and_after_unpacking(tmp_path: Path) -> None:
    data = (GOOD + b"\n") * 1000
    for name, content in (("a.jsonl", data), ("a.jsonl.gz", gzip.compress(data)), ("a.jsonl.zst", zstd(data))):
        assert read_bytes(tmp_path, name, content, file_bytes=len(data)).findings == []
        assert codes(read_bytes(tmp_path, name, content, file_bytes=len(data) - 1))[-1] == (0, "files", "TOO_LARGE")
    rows = arrow.Table.from_pylist([{"prompt": "a" * 1000, "completion": "b"}] * 500)  # half a megabyte that packs to almost nothing
    parquet.write_table(rows, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 20_000
    assert codes(read(tmp_path / "a.parquet", file_bytes=100_000)) == [(0, "files", "TOO_LARGE")] and read(tmp_path / "a.parquet").findings == []


# --- what no text should hold ------------------------------------------------------------------------------------------


def test_null_bytes_are_refused_where_json_does_and_kept_where_they_are_escaped(tmp_path: Path) -> None:
    lines = [GOOD, b"\x00", b'{"prompt": "a\x00b", "completion": "c"}', b'{"prompt": "a\\u0000b", "completion": "c"}', GOOD + b"\x00"]
    reading = read_bytes(tmp_path, "a.jsonl", b"\n".join(lines))
    assert codes(reading) == [(2, "unreadable", "BROKEN_JSON"), (3, "unreadable", "BROKEN_JSON"), (5, "unreadable", "TWO_RECORDS")]
    assert [r.messages[0].content for r in reading.records] == ["a", "a\0b"] and all("\0" not in f.found for f in reading.findings)
    assert codes(read_bytes(tmp_path, "b.jsonl", b"\x00" * 100)) == [(0, "files", "ENCODING")]


@pytest.mark.parametrize("depth", [10, 64, 65, 500, 1000, 5_000, 100_000])
def test_nesting_is_read_to_a_depth_of_64_and_refused_beyond_it(tmp_path: Path, depth: int) -> None:
    """The record is itself the first level. Nothing overflows, and the records around it are kept where the text can be passed over."""
    inner = depth - 1
    for start, end in ((b"[", b"]"), (b'{"a":', b"}")):
        deep = b'{"prompt": "a", "completion": "b", "x": ' + start * inner + b"1" + end * inner + b"}"
        lines = read_bytes(tmp_path, "a.jsonl", b"\n".join([GOOD, deep, GOOD]))
        assert codes(lines) == ([] if depth <= 64 else [(2, "unreadable", "TOO_DEEP")]) and len(lines.records) == 2 + (depth <= 64)
        array = read_bytes(tmp_path, "a.json", b"[" + b",\n".join([GOOD, deep, GOOD]) + b"]")
        assert codes(array) == codes(lines) and array.records[0].line == 1 and is_lawful(lines) and is_lawful(array)


def test_a_deep_record_leaves_nothing_behind() -> None:
    """The exception was once one object for all: each raise made its traceback longer, and kept every text alive."""

    def frames() -> int:
        with pytest.raises(BadJson) as caught:
            decode("[" * 70 + "]" * 70)
        return len(caught.traceback)

    assert len({frames() for _ in range(20)}) == 1


# --- parquet -----------------------------------------------------------------------------------------------------------


def test_parquet_with_lists_of_structs_gives_messages_and_tool_calls(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"id": 5}'}}
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "é😀"}, {"role": "assistant", "content": None, "tool_calls": [call]},
                      {"role": "tool", "content": "x", "tool_call_id": "c1"}, {"role": "assistant", "content": "b"}]},
    ]  # fmt: skip
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_bytes(b"".join(json.dumps(r).encode() + b"\n" for r in rows))
    table, lines = read(tmp_path / "a.parquet"), read(tmp_path / "a.jsonl")
    assert table.findings == lines.findings == []
    assert [r.messages for r in table.records] == [r.messages for r in lines.records]


def test_one_row_of_parquet_that_cannot_be_read_costs_no_other(tmp_path: Path) -> None:
    count = 9000
    at = [0] * count
    at[4500], at[8999] = 2**60, 2**60  # microseconds: the year 38,000
    text = [f"p{i}" for i in range(count)]
    table = arrow.table({"prompt": text, "completion": text, "at": arrow.array(at, arrow.timestamp("us"))})
    parquet.write_table(table, tmp_path / "a.parquet")
    reading = read(tmp_path / "a.parquet")
    assert codes(reading) == [(4501, "unreadable", "VALUE"), (9000, "unreadable", "VALUE")] and is_lawful(reading)
    assert [r.line for r in reading.records] == [i for i in range(1, count + 1) if i not in (4501, 9000)]


def test_parquet_columns_of_every_type_are_extra_or_a_finding_and_never_a_traceback(tmp_path: Path) -> None:
    import datetime
    import decimal

    day = datetime.datetime(2024, 5, 2, 10, 11, 12)
    values: list[tuple[Any, arrow.DataType | None]] = [
        (5, arrow.int8()), (2**63, arrow.uint64()), (0.5, arrow.float16()), (float("nan"), arrow.float64()), (True, None), (b"\xff", arrow.binary()),
        (day, None), (day.date(), None), (day.time(), None), (datetime.timedelta(1), None), (decimal.Decimal("1.5"), None), ([1, None], None),
        ({"a": [1]}, None), (None, arrow.null()), ([("k", 1)], arrow.map_(arrow.string(), arrow.int32())),
        ("x", arrow.dictionary(arrow.int8(), arrow.string())), ("x", arrow.large_string()), (b"abcd", arrow.binary(4)),
    ]  # fmt: skip
    text = arrow.array(["t"])
    for value, kind in values:
        column = arrow.array(["x"]).dictionary_encode() if kind is not None and arrow.types.is_dictionary(kind) else arrow.array([value], kind)
        for name, columns in {"extra": [text, text, column], "prompt": [column, text, text], "completion": [text, column, text]}.items():
            parquet.write_table(arrow.table(dict(zip(("prompt", "completion", "x"), columns, strict=True))), tmp_path / "a.parquet")
            reading = read(tmp_path / "a.parquet")
            good = name == "extra" or value == "x"
            assert is_lawful(reading) and len(reading.records) == good and (good or reading.findings[0].code in {"TYPE", "NULL"}), (value, kind, name)


# --- the fast path is the strict one -----------------------------------------------------------------------------------


def strictly(data: bytes, number: int, shape: Shape | None) -> tuple[Shape | None, Record | None, list[str]]:
    """The shape, the record and the codes of its faults, without the fast path."""
    one = stream(Path("a.jsonl"))
    shaper = Shaper(one.faults, None)
    shaper.shape = shape
    table = json_line(one, Line(number, 0, data, len(data), True))
    record = None if table is None else shaper.record(number, table)
    return shaper.shape, record, [f.code for f in one.faults.found]


def parts(record: Record) -> tuple[Any, ...]:
    """All of a record, so that 1, 1.0 and true differ and the order of columns counts."""
    return record.messages, record.file, record.line, record.split, [(k, type(v), repr(v)) for k, v in record.extra.items()]


def disagreement(data: bytes) -> tuple[str, int]:
    """What the fast path says otherwise than the strict one (nothing, we hope), and whether it said anything."""
    said = 0
    for shape in (None, "messages", "prompt_completion", "alpaca"):
        plain = plain_record(data, 7, Faults("a.jsonl", "train"), shape)  # type: ignore[arg-type]
        if plain is None:
            continue
        said += 1
        found, record, faults = strictly(data, 7, shape)  # type: ignore[arg-type]
        if faults or record is None or found != plain[0] or parts(record) != parts(plain[1]):
            return f"{data!r} as {shape}: fast {plain}, strict {record} {faults}", said
    return "", said


def corpus_lines() -> Iterator[bytes]:
    for folder in ("bad", "clean", "clinc150", "multidogo"):
        for path in sorted((SAMPLES / folder).rglob("*.jsonl")):
            yield from path.read_bytes().split(b"\n")


def test_the_fast_path_agrees_with_the_strict_one_on_every_line_of_the_samples() -> None:
    lines = list(corpus_lines())
    answers = [disagreement(line) for line in lines]
    assert [text for text, _ in answers if text] == []
    assert len(lines) > 2000 and sum(bool(said) for _, said in answers) > 1000 and (BAD / "expected.json").is_file()


SPELT = r"""
0 -0 7 -1 01 1.0 1. .5 1e5 1E400 -1e-400 NaN -Infinity true false null tru "" "x" "\u0070" "a\"b\":c" "\ud83d" "\ud83d\ude00" "\udc00\ud800"
"\u0000" "\x" "\/" [] [1,[2]] {} {"a":1} {"a":1,"a":2} 'x' "user" "assistant" "system" "tool" "User" ["user"] {"role":"user","content":"c"}
[{"role":"user","content":"c"},{"role":"assistant","content":"d"}]
"""
TOKENS = [*SPELT.split(), "1" * 18, "1" * 19, "9" * 20, "9" * 21, "\x00"]
KEYS = [
    "prompt",
    "completion",
    "messages",
    "conversations",
    "instruction",
    "output",
    "input",
    "system",
    "role",
    "content",
    "name",
    "tool_calls",
    "id",
    "tags",
    "",
    "é",
    'a"b',
    "a:b",
    "\\",
]


SWAPS = [
    ("user", "User"), ("assistant", "user"), ("role", "from"), ("content", "value"), ("prompt", "messages"), ("user", "tool"), ("system", "user"),
    ("completion", "prompt"), ("content", "role"), ("messages", "prompt"), ("assistant", "system"),
]  # fmt: skip


def base_line(dice: random.Random) -> str:
    text = [
        "a",
        "b c",
        "what: now",
        "é😀",
        "{}",
        "\\",
        "\u2028",
        "x" * 40,
        "",
        " ",
        "\n",
        "\x7f",
        "ab\ufeff",
        'say "no"',
        dice.choice(['a "no": b', '"messages": [']),
    ]
    if dice.random() < 0.5:
        row: dict[str, Any] = {"prompt": dice.choice(text), "completion": dice.choice(text)}
    else:
        turns = [{"role": r, "content": dice.choice(text)} for r in ["user", "assistant"] * dice.randrange(1, 4)]
        row = {"messages": [{"role": "system", "content": dice.choice(text)}, *turns] if dice.random() < 0.3 else turns}
    for _ in range(dice.choice([0, 0, 0, 1, 3])):
        row[dice.choice(KEYS)] = dice.choice([1, -5, 10**17, 10**18, 10**19, 0.5, True, None, "x", [], {}, [1], {"a": 1}, "system", "\ud800"])
    rows = list(row.items())
    dice.shuffle(rows)
    return json.dumps(
        dict(rows),
        ensure_ascii=dice.random() < 0.4,
        separators=dice.choice([*[None, (",", ":"), (",\t", ":  ")] * 3, (" , ", " : "), (",", "\t:"), (",\r", ":\r"), ("\v,", ":")]),
    )


def mutated(dice: random.Random, line: str) -> str:
    kind = dice.randrange(11)
    spot = dice.randrange(len(line) + 1)
    if kind == 0:  # a key again, perhaps escaped or with a spaced colon
        key = dice.choice(KEYS[:10])
        letters = "".join("\\u" + format(ord(c), "04x") if dice.random() < 0.3 else c for c in key)
        pair = '"' + letters + '"' + dice.choice(["", " ", "\t", "\r", " \t", "\n"]) + ":" + dice.choice(TOKENS)
        places = [i + 1 for i, c in enumerate(line) if c in "{,"] or [0]
        spot = dice.choice(places)
        return line[:spot] + pair + "," + line[spot:]
    if kind == 1:  # another value behind some colon
        colons = [i + 1 for i, c in enumerate(line) if c == ":"] or [0]
        spot = dice.choice(colons)
        return line[:spot] + dice.choice(TOKENS) + line[spot:].lstrip(' "')[dice.randrange(6) :]
    if kind == 2:
        return (
            line[:spot]
            + dice.choice([" ", "\t", "\r", "\v", "\f", "\u00a0", "\ufeff", "\x00", "\x1f", ",", ":", '"', "\\", "{", "}", "[", "]", "é"])
            + line[spot:]
        )
    if kind == 3:
        return line[:spot] + line[spot + dice.randrange(1, 4) :]
    if kind == 4:
        return line[:spot]
    if kind == 5:
        return dice.choice([" ", "\t", "\r", "\ufeff", "", "\v"]) + line + dice.choice([" ", "\r", "\t \r", "x", "\x00", ",", line])
    if kind == 6:  # letters of the text as escapes
        return "".join("\\u" + format(ord(c), "04x") if c.isalpha() and c.isascii() and dice.random() < 0.2 else c for c in line)
    if kind == 7:
        return line.replace(*dice.choice(SWAPS), dice.choice([1, -1]))
    if kind == 8:
        return line.replace('":', dice.choice(['" :', '"\t:', '"\r:', '":\t', '" \r\t:']), dice.choice([1, 2, -1]))
    if kind == 9:
        end = line.rfind("}")
        return line[:end] + f', "{dice.choice(KEYS)}": {dice.choice(TOKENS)}' + line[end:]
    other = dice.randrange(len(line) + 1)
    return line[: min(spot, other)] + line[min(spot, other) : max(spot, other)] * 2 + line[max(spot, other) :]


def fuzzed(count: int, seed: int) -> Iterator[bytes]:
    dice = random.Random(seed)
    for _ in range(count):
        line = base_line(dice)
        for _ in range(dice.choice([0, 1, 1, 1, 1, 2, 3])):
            line = mutated(dice, line)
        data = line.encode("utf-8", "surrogatepass")
        if dice.random() < 0.1 and data:
            spot = dice.randrange(len(data))
            data = data[:spot] + bytes([dice.randrange(256)]) + data[spot + dice.randrange(2) :]
        yield data


def test_the_fast_path_agrees_with_the_strict_one_on_25000_mutated_lines() -> None:
    """Whenever it gives a record, the strict path gives the same one and finds no fault. It is also used: else this would say nothing."""
    used = Counter[bool]()
    for data in fuzzed(25_000, 11):
        if b"\n" in data:
            data = data.replace(b"\n", b"\r")
        text, said = disagreement(data)
        assert text == ""
        used[bool(said)] += 1
    assert used[True] > 2500 and used[False] > 10_000, used


@pytest.mark.parametrize(
    "line",
    [
        '{"messages": null, "prompt": "a", "completion": "b"}',
        '{"messages": [{"role": ["user"], "content": "a"}, {"role": "assistant", "content": "b"}]}',
        '{"messages": [{"role": {}, "content": "a"}, {"role": "assistant", "content": "b"}]}',
        '{"prompt": "a", "\\u0070rompt": "b", "completion": "c"}',
        '{"prompt": "a", "prompt"\t: "b", "completion": "c:\\":"}',
        '{"": 1, "prompt": "a", "completion": "b"}',
        '{"prompt": "a", "completion": "b", "n": 1000000000000000000}',
        '{"prompt": "a", "completion": "b", "n": -0}',
        '{"prompt": "a", "completion": "b", "system": "S"}',
        '{"prompt": "a", "completion": "b", "output": "c", "instruction": "d"}',
    ],
)
def test_lines_that_once_told_the_two_paths_apart_or_might_are_read_alike(line: str) -> None:
    assert disagreement(line.encode())[0] == ""


def test_the_whole_reader_gives_the_same_with_the_fast_path_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where shapes meet in one file: the fast path must not change which shape the file has."""
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(data.replace(b"\n", b"") for data in fuzzed(3000, 5)))
    (tmp_path / "b.jsonl").write_bytes(b"\n".join(data.replace(b"\n", b"") for data in fuzzed(3000, 6)))
    for name in ("a.jsonl", "b.jsonl"):
        fast = read(tmp_path / name)
        monkeypatch.setattr("tuner.data.sources.plain_record", lambda *_: None)
        slow = read(tmp_path / name)
        monkeypatch.undo()
        assert [parts(r) for r in fast.records] == [parts(r) for r in slow.records]
        assert fast.findings == slow.findings and fast.accounts == slow.accounts and is_lawful(fast)


def test_a_large_good_file_is_read_at_more_than_20000_records_a_second(tmp_path: Path) -> None:
    """Measured on one core: 230,000 a second, and 90,000 the strict way. The bound is loose, against a fast path that has come undone."""
    (tmp_path / "a.jsonl").write_bytes(
        b"".join(
            json.dumps({"messages": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": "a"}]}).encode() + b"\n" for i in range(40_000)
        )
    )
    start = time.process_time()
    assert len(read(tmp_path / "a.jsonl").records) == 40_000
    assert time.process_time() - start < 2
