"""Lines to plain objects, strictly: JSON lines, JSON arrays, CSV, TSV and parquet, each object with its line or row.

It refuses what a lenient parser would let through in silence: repeated keys, NaN, numbers without end, depth without end, two records
on a line, a last line that breaks off. A bad record is a fault and reading goes on; only where nothing behind it can be trusted does it stop.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tuner.data.files import Line, Stream
from tuner.safe_text import quoted

Raw = tuple[int, Mapping[str, Any] | None]  # (line or row, the object as written; None where it was rejected)
MOST_DEPTH = 64
MOST_DIGITS = 20


# --- JSON, strictly ------------------------------------------------------------------------------------------------


class BadJson(ValueError):
    """A value that JSON parsers let through and we do not. Arguments: code, found, accepted, fix."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [k for k, _ in pairs]
        again = next(k for k in keys if keys.count(k) > 1)
        raise BadJson("DUPLICATE_KEY", f"the key {quoted(again)} twice in one object", "each key once", "delete one of the two")
    return table


def _no_constant(word: str) -> Any:
    raise BadJson("NOT_FINITE", f"the number {word}", "finite numbers", "write null, or a number")


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise BadJson("BIG_NUMBER", f"a whole number of {len(digits)} digits", f"at most {MOST_DIGITS} digits", "write it as text")
    return int(digits)


def _real(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise BadJson("NOT_FINITE", f"the number {quoted(digits, 30)}, which is too large", "finite numbers", "write a smaller number")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_no_constant, parse_int=_whole, parse_float=_real)
_TOO_DEEP = BadJson("TOO_DEEP", f"nesting deeper than {MOST_DEPTH}", "a flat record", "flatten it")


def decode(text: str) -> Any:
    """Strict JSON. Raises BadJson or json.JSONDecodeError."""
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise _TOO_DEEP from None
    if text.count("[") + text.count("{") > MOST_DEPTH and _depth(value) > MOST_DEPTH:
        raise _TOO_DEEP
    return value


def _depth(value: Any) -> int:
    deepest, level, layer = 0, 0, [value]
    while layer:
        deepest, level = level, level + 1
        layer = [v for item in layer for v in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())]
    return deepest


def _jsonl(stream: Stream) -> Iterator[Raw]:
    """One object a line; blank lines are not records."""
    for line in stream.lines():
        if line.data is None or line.data.strip():
            yield line.number, json_line(stream, line)


def json_line(stream: Stream, line: Line) -> Mapping[str, Any] | None:
    """The object on one line, or None with its fault recorded."""
    text = line_text(stream, line)
    if text is None:
        return None
    text = text.removesuffix("\r")
    try:
        value = decode(text)
    except BadJson as bad:
        code, found, accepted, fix = bad.args
        stream.faults.add("unreadable", code, line.number, "", found, accepted, fix)
        return None
    except json.JSONDecodeError as error:
        _broken(stream, line, text, error)
        return None
    return _as_object(stream, line.number, value)


def line_text(stream: Stream, line: Line) -> str | None:
    """The line as text; None with its fault recorded where it is too long or not UTF-8."""
    if line.data is None:
        stream.faults.add("unreadable", "TOO_LONG", line.number, "", f"a record of {line.size} bytes", f"at most {stream.max_record_bytes}",
                          "shorten it, or raise data.max_record_bytes")  # fmt: skip
        return None
    try:
        return line.data.decode("utf-8")
    except UnicodeDecodeError as error:
        stream.faults.add("unreadable", "ENCODING", line.number, "",
                          f"byte 0x{line.data[error.start]:02x} at offset {line.offset + error.start} of the file, which is not UTF-8",
                          "UTF-8 text", "save the file as UTF-8, or mend that line")  # fmt: skip
        return None


def _broken(stream: Stream, line: Line, text: str, error: json.JSONDecodeError) -> None:
    if error.msg == "Extra data" and "\r" in text[max(error.pos - 3, 0) : error.pos + 1]:
        stream.faults.add("unreadable", "CARRIAGE_RETURNS", line.number, "", "records parted by carriage returns alone", "line feeds (\\n) or \\r\\n",
                          "convert the line ends")  # fmt: skip
    elif error.msg == "Extra data":
        stream.faults.add("unreadable", "TWO_RECORDS", line.number, "",
                          f"more after the end of the record, at column {error.colno}: {quoted(text[error.pos : error.pos + 40], 40)}",
                          "one JSON object a line", "put each record on a line of its own")  # fmt: skip
    else:
        near = quoted(text[max(error.pos - 20, 0) : error.pos + 20], 44)
        cut = not line.ended and error.pos >= len(text.rstrip()) - 1 or (not line.ended and error.msg.startswith("Unterminated"))
        stream.faults.add("unreadable", "TRUNCATED" if cut else "BROKEN_JSON", line.number, "",
                          f"broken JSON at column {error.colno}: {error.msg.lower()}, near {near}" + (", where the file ends" if cut else ""),
                          "one whole JSON object a line", f"mend or delete line {line.number}")  # fmt: skip


def _as_object(stream: Stream, number: int, value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, dict):
        return value
    stream.faults.add("unreadable", "NOT_OBJECT", number, "", kind_of(value), 'a JSON object, as {"prompt": …, "completion": …}',
                      f"mend or delete line {number}")  # fmt: skip
    return None


# --- a JSON array --------------------------------------------------------------------------------------------------


class _Text:
    """The stream as text that grows at the end and is let go of at the front, with the line the front stands on."""

    def __init__(self, stream: Stream):
        self.stream = stream
        self.blocks = stream.blocks()
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.line, self.at, self.more = "", 1, 0, True

    def grow(self) -> None:
        """A block more, or what is left. Raises Unreadable at bytes that are not UTF-8."""
        before = self.stream.bytes
        block = next(self.blocks, None)
        self.more = block is not None
        try:
            text = self.decoder.decode(block or b"", final=block is None)
        except UnicodeDecodeError as error:
            start = before - (len(error.object) - len(block or b"")) + error.start
            line = self.line + self.text.count("\n", self.at) + error.object.count(b"\n", 0, error.start)
            raise self.stream.faults.stop("ENCODING", f"byte 0x{error.object[error.start]:02x} at offset {start} of the file, which is not UTF-8",
                                          "UTF-8 text", "save the file as UTF-8, or mend that line", line) from None  # fmt: skip
        self.text = self.text[self.at :] + text
        self.at = 0

    def skip(self) -> str:
        """Passes white space; the character that follows, or nothing at the end."""
        while True:
            found = _NOT_SPACE.search(self.text, self.at)
            end = found.start() if found else len(self.text)
            self.line += self.text.count("\n", self.at, end)
            self.at = end
            if found or not self.more:
                return self.text[end : end + 1]
            self.grow()

    def value(self) -> Any:
        """The JSON value at the front. Raises BadJson, with the value passed over, or json.JSONDecodeError."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except BadJson as bad:  # Python's own JSON reads it, so the records behind it can be looked at too
                self._passed(json.JSONDecoder(parse_int=str).raw_decode(self.text, self.at)[1])
                raise bad from None
            except json.JSONDecodeError:
                if not self.more or len(self.text) - self.at > self.stream.max_record_bytes:
                    raise
                self.grow()
            else:
                self._passed(end)
                return value

    def _passed(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.at = end


_NOT_SPACE = re.compile(r"[^ \t\r\n]")


def _json_array(stream: Stream) -> Iterator[Raw]:
    """A JSON array of objects, each with the line on which it starts. Stops where the array breaks off: nothing behind that can be trusted."""
    text = _Text(stream)
    first = text.skip()
    if first != "[":
        hint = "rename it to .jsonl: it holds one object a line" if first == "{" else "wrap the records in [ ]"
        raise stream.faults.stop("NOT_ARRAY", quoted(text.text[:20]), "a JSON array of objects", hint, text.line)
    text.at += 1
    mark = text.skip()
    while mark != "]":
        line = text.line
        try:
            value = text.value()
        except BadJson as bad:
            code, found, accepted, fix = bad.args
            stream.faults.add("unreadable", code, line, "", found, accepted, fix)
            yield line, None
        except (json.JSONDecodeError, RecursionError) as error:
            stream.faults.add("unreadable", "TOO_DEEP" if isinstance(error, RecursionError) else "BROKEN_JSON", line, "",
                              f"broken JSON: {getattr(error, 'msg', 'nesting too deep').lower()}; the rest of the file was not read",
                              "a JSON array of objects", "mend the file from that line on")  # fmt: skip
            yield line, None
            return
        else:
            yield line, _as_object(stream, line, value)
        mark = text.skip()
        if mark not in {",", "]"}:
            raise stream.faults.stop("BROKEN_ARRAY", "no comma or ] after a record", "a JSON array of objects", "mend the file from that line on", line)
        if mark == ",":
            text.at += 1
            text.skip()
    text.at += 1
    if text.skip():
        raise stream.faults.stop("AFTER_ARRAY", f"more after the end of the array: {quoted(text.text[text.at : text.at + 40], 40)}", "one JSON array",
                                 "delete what follows the last ], or put one record a line in a .jsonl file", text.line)  # fmt: skip


# --- tables --------------------------------------------------------------------------------------------------------


def _csv(stream: Stream, delimiter: str = ",") -> Iterator[Raw]:
    """Rows under a header line; the line is where the row starts, quoted line breaks counted."""
    csv.field_size_limit(stream.max_record_bytes)
    bad_lines: set[int] = set()
    rows = csv.reader(_decoded(stream, bad_lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            stop = "unexpected end" in str(error) or "field limit" in str(error)
            stream.faults.add("unreadable", "CSV", line, "", f"a broken row: {error}" + ("; the rest of the file was not read" if stop else ""), "well-formed CSV",
                              "close the quote, or mend the row")  # fmt: skip
            yield line, None
            if stop:
                return
            continue
        if not bad_lines.isdisjoint(range(line, rows.line_num + 1)):
            yield line, None  # its fault was recorded with its bytes
        elif len(row) < 2 and not "".join(row).strip():
            continue
        elif header is None:
            header = _header(stream, row, line)
        elif len(row) != len(header):
            stream.faults.add("unreadable", "CELLS", line, "", f"{len(row)} cells", f"{len(header)}, as in the header: {quoted(', '.join(header))}",
                              "quote cells that hold the delimiter")  # fmt: skip
            yield line, None
        else:
            yield line, dict(zip(header, row, strict=True))


def _decoded(stream: Stream, bad_lines: set[int]) -> Iterator[str]:
    """Lines as text with their ends; a line that cannot be read stands as an empty one, its number in `bad_lines`."""
    for line in stream.lines():
        faults = len(stream.faults.found)
        text = line_text(stream, line)
        if len(stream.faults.found) > faults:
            bad_lines.add(line.number)
        yield (text or "") + "\n"


def _header(stream: Stream, row: list[str], line: int) -> list[str]:
    names = [cell.strip() for cell in row]
    if len(set(names)) != len(names) or not all(names):
        raise stream.faults.stop("HEADER", f"column names {quoted(names)}", "names that are present and differ", "name every column once", line)
    return names


def _tsv(stream: Stream) -> Iterator[Raw]:
    return _csv(stream, delimiter="\t")


def _parquet(stream: Stream) -> Iterator[Raw]:
    """Rows of a parquet file, numbered from 1, a row group's batch in memory at a time."""
    import io

    import pyarrow as arrow
    import pyarrow.parquet as parquet

    spool: Any = io.BytesIO()
    for block in stream.blocks():
        if stream.packed:
            spool.write(block)
    try:
        table = parquet.ParquetFile(spool if stream.packed else stream.path)
        unpacked = sum(table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups))
        if unpacked > stream.max_file_bytes:
            raise stream.faults.stop("TOO_LARGE", f"{unpacked} bytes unpacked", f"at most {stream.max_file_bytes} bytes", "split it, or raise data.max_file_bytes")
        number = 0
        for batch in table.iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise stream.faults.stop("NOT_PARQUET", f"not a whole parquet file: {quoted(str(error).splitlines()[0], 120)}", "a whole parquet file",
                                 "write it again") from None  # fmt: skip


READERS: dict[str, Callable[[Stream], Iterator[Raw]]] = {"jsonl": _jsonl, "json": _json_array, "csv": _csv, "tsv": _tsv, "parquet": _parquet}


def kind_of(value: Any) -> str:
    """What a value is, in words, for a finding."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {quoted(value, 40)}"
    return "a list" if isinstance(value, list) else "an object"


