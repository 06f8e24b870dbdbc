"""Lines to plain objects, strictly: JSON lines, JSON arrays, CSV, TSV and parquet, each object with its line or row.

It refuses what a lenient parser would let through in silence: repeated keys, NaN, numbers without end, depth without end, two records
on a line, a last line that breaks off. A bad record is a fault and reading goes on; only where nothing behind it can be trusted does it stop.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tuner.data.files import Line, Stream
from tuner.data.personal import hide
from tuner.safe_text import quoted, visible

Raw = tuple[int, Mapping[str, Any] | None]  # (line or row, the object as written; None where it was rejected)
MOST_DEPTH = 64
MOST_DIGITS = 20
PARQUET_ROWS = 4096  # turned into objects at a time


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


def _too_deep(rest: str = "") -> BadJson:
    return BadJson("TOO_DEEP", f"nesting deeper than {MOST_DEPTH}{rest}", "a flat record", "flatten it")


def decode(text: str) -> Any:
    """Strict JSON. Raises BadJson or json.JSONDecodeError."""
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise _too_deep() from None
    if text.count("[") + text.count("{") > MOST_DEPTH and _depth(value) > MOST_DEPTH:
        raise _too_deep()
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
        stream.faults.add("unreadable", "ENCODING", line.number, "", not_utf8(line.data[error.start], line.offset + error.start),
                          "UTF-8 text", "save the file as UTF-8, or mend that line")  # fmt: skip
        return None


def not_utf8(byte: int, offset: int) -> str:
    return f"byte 0x{byte:02x} at offset {offset} of the file, which is not UTF-8"


def _broken(stream: Stream, line: Line, text: str, error: json.JSONDecodeError) -> None:
    if error.msg == "Extra data" and "\r" in text[max(error.pos - 3, 0) : error.pos + 1]:
        stream.faults.add("unreadable", "CARRIAGE_RETURNS", line.number, "", "records parted by carriage returns alone", "line feeds (\\n) or \\r\\n",
                          "convert the line ends")  # fmt: skip
    elif error.msg == "Extra data" and text.lstrip().startswith(("{", "[")):
        stream.faults.add("unreadable", "TWO_RECORDS", line.number, "",
                          f"more after the end of the record, at column {error.colno}: {_excerpt(text, error.pos, error.pos + 40)}",
                          "one JSON object a line", "put each record on a line of its own")  # fmt: skip
    else:
        near = _excerpt(text, max(error.pos - 20, 0), error.pos + 20)
        end = len(text.rstrip())
        within = error.msg.startswith("Unterminated") or error.pos > end - LONGEST_TOKEN
        cut = not line.ended and (error.pos >= end or (within and text[end - 1] != "}"))
        stream.faults.add("unreadable", "TRUNCATED" if cut else "BROKEN_JSON", line.number, "",
                          f"broken JSON at column {error.colno}: {error.msg.lower()}, near {near}" + (", where the file ends" if cut else ""),
                          "one whole JSON object a line", f"mend or delete line {line.number}")  # fmt: skip


def _excerpt(text: str, start: int, end: int) -> str:
    """Part of a line, quoted; nothing of a line that holds personal data, which a cut might no longer show as such."""
    return quoted(text[start:end], 44) if hide(text) == text else "(not shown: the line holds personal data or a secret)"


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
        self.bad_byte: tuple[str, int] | None = None  # (what stands there, its line): the text ends before it

    def grow(self) -> None:
        """A block more, or what is left. Raises Unreadable at bytes that are not UTF-8, once the text before them has been looked at."""
        if self.bad_byte is not None:
            found, line = self.bad_byte
            raise self.stream.faults.stop("ENCODING", found, "UTF-8 text", "save the file as UTF-8, or mend that line", line)
        before = self.stream.size
        block = next(self.blocks, None)
        self.more = block is not None
        try:
            text = self.decoder.decode(block or b"", final=block is None)
        except UnicodeDecodeError as error:
            start = before - (len(error.object) - len(block or b"")) + error.start
            line = self.line + self.text.count("\n", self.at) + error.object.count(b"\n", 0, error.start)
            self.bad_byte, self.more = (not_utf8(error.object[error.start], start), line), True
            text = error.object[: error.start].decode("utf-8")
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

    def ahead(self, count: int) -> str:
        """The next characters, as many of them as can be read."""
        while self.more and self.bad_byte is None and len(self.text) - self.at < count:
            self.grow()
        return self.text[self.at : self.at + count]

    def value(self) -> Any:
        """The JSON value at the front, passed over. Raises BadJson: with the value passed over, or, where nothing behind it can be read, _Lost."""
        while True:
            try:
                value, end, bad = self._decoded()
            except RecursionError:
                raise _Lost(*_too_deep(NOT_READ).args) from None
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self.text) - LONGEST_TOKEN
                if not (cut and self.more):
                    raise _Lost(
                        "BROKEN_JSON", f"broken JSON: {error.msg.lower()}{NOT_READ}", "a JSON array of objects", "mend the file from that line on"
                    ) from None
            else:
                if not self.more or end < len(self.text) - 2 or not self.text[end - 1].isdigit():  # a number may go on in the next block: 1, then 1.5
                    break
            self._refuse_length(len(self.text))
            self.grow()
        self._refuse_length(end)
        if bad is None and self.text.count("[", self.at, end) + self.text.count("{", self.at, end) > MOST_DEPTH and _depth(value) > MOST_DEPTH:
            bad = _too_deep()
        self.line += self.text.count("\n", self.at, end)
        self.at = end
        if bad is not None:
            raise bad
        return value

    def _decoded(self) -> tuple[Any, int, BadJson | None]:
        """The value, where it ends, and what strict JSON says against it: Python's own JSON reads on, so the records behind can be looked at too."""
        try:
            return *_DECODER.raw_decode(self.text, self.at), None
        except BadJson as bad:
            return *_LENIENT.raw_decode(self.text, self.at), bad

    def _refuse_length(self, end: int) -> None:
        most = self.stream.max_record_bytes
        if (end - self.at) * 4 > most and len(self.text[self.at : end].encode("utf-8")) > most:
            raise _Lost("TOO_LONG", f"a record of more than {most} bytes{NOT_READ}", f"at most {most}", "shorten it, or raise data.max_record_bytes")


class _Lost(BadJson):
    """A value or row behind which nothing can be read."""

    def __str__(self) -> str:
        return str(self.args[1])


NOT_READ = "; the rest of the file was not read"
LONGEST_TOKEN = 16  # characters of a literal or an escape that a block's end may cut
_NOT_SPACE = re.compile(r"[^ \t\r\n]")
_LENIENT = json.JSONDecoder(parse_int=str)


class SharedLine(Exception):
    """Two records of an array start on one line: the file is read again, records known by their number."""


def _json_array(stream: Stream) -> Iterator[Raw]:
    """A JSON array of objects, each with the line on which it starts; where two start on one line, each with its number in the array, from 1.

    Stops where the array breaks off: nothing behind that can be trusted.
    """
    text = _Text(stream)
    first = text.skip()
    if first != "[":
        hint = "rename it to .jsonl: it holds one object a line" if first == "{" else "wrap the records in [ ]"
        raise stream.faults.stop("NOT_ARRAY", quoted(hide(text.ahead(200)), 20), "a JSON array of objects", hint, text.line)
    text.at += 1
    mark = text.skip()
    number, last = 0, 0
    while mark != "]":
        number += 1
        if text.line == last and not stream.by_number:
            raise SharedLine
        last = text.line
        line = number if stream.by_number else text.line
        try:
            value = text.value()
        except BadJson as bad:
            code, found, accepted, fix = bad.args
            stream.faults.add("unreadable", code, line, "", found, accepted, fix)
            yield line, None
            if isinstance(bad, _Lost):
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
        raise stream.faults.stop("AFTER_ARRAY", f"more after the end of the array: {quoted(hide(text.ahead(200)), 40)}", "one JSON array",
                                 "delete what follows the last ], or put one record a line in a .jsonl file", text.line)  # fmt: skip


# --- tables --------------------------------------------------------------------------------------------------------


def _csv(stream: Stream, delimiter: str = ",") -> Iterator[Raw]:
    """Rows under a header line; the line is where the row starts, quoted line breaks counted."""
    csv.field_size_limit(stream.max_record_bytes)
    lines = _CsvLines(stream)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = rows.line_num + 1
        lines.begin_row()
        try:
            row = next(rows)
        except StopIteration:
            return
        except (csv.Error, _Lost) as error:
            if header is None:
                raise stream.faults.stop("HEADER", f"a broken header: {error}", "names that are present and differ", _csv_fix(error), line) from None
            if isinstance(error, _Lost):
                code, found, accepted, fix = error.args
                stream.faults.add("unreadable", code, line, "", found, accepted, fix)
            else:
                end = NOT_READ if "unexpected end" in str(error) else ""
                stream.faults.add("unreadable", "CSV", line, "", f"a broken row: {error}{end}", "well-formed CSV", _csv_fix(error))
            yield line, None
            continue
        if header is None and lines.bad:
            raise stream.faults.stop("HEADER", "a header that cannot be read", "names that are present and differ", "mend the first line", line)
        if lines.bad:
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


class _CsvLines:
    """A file's lines as csv.reader takes them, with their ends. `bad`: a line of the row begun last cannot be read; what can be keeps its quotes.

    A row longer than a record may be ends the reading: behind a quote that is never closed everything would be one row.
    """

    def __init__(self, stream: Stream):
        self.stream, self.lines = stream, stream.lines()
        self.bad, self.row_bytes = False, 0

    def begin_row(self) -> None:
        self.bad, self.row_bytes = False, 0

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        most = self.stream.max_record_bytes
        if self.row_bytes and self.row_bytes + line.size > most:
            self.lines = iter(())
            raise _Lost(
                "TOO_LONG", f"a row of more than {most} bytes{NOT_READ}", f"at most {most}", "close the quote, shorten the row, or raise data.max_record_bytes"
            )
        self.row_bytes += line.size + 1
        text = line_text(self.stream, line)
        if text is None:
            self.bad = True
            text = (line.data or b"").decode("utf-8", "replace")
        return text + "\n"


def _csv_fix(error: Exception) -> str:
    return "convert the line ends to \\n or \\r\\n" if "new-line" in str(error) else "close the quote, or mend the row"


def _header(stream: Stream, row: list[str], line: int) -> list[str]:
    if len(row) == 1 and (mark := next((m for m in (";", "\t", "|") if m in row[0]), None)):
        parted = {";": "semicolons", "\t": "tabs", "|": "bars"}[mark]
        raise stream.faults.stop("HEADER", f"one column, {quoted(row[0], 60)}", "columns parted by commas, or by tabs in a .tsv file",
                                 f"the file seems to be parted by {parted}: export it again with commas", line)  # fmt: skip
    names = [cell.strip() for cell in row]
    if len(set(names)) != len(names) or not all(names):
        raise stream.faults.stop("HEADER", f"column names {quoted(names)}", "names that are present and differ", "name every column once", line)
    return names


def _tsv(stream: Stream) -> Iterator[Raw]:
    return _csv(stream, delimiter="\t")


def _parquet(stream: Stream) -> Iterator[Raw]:
    """Rows of a parquet file, numbered from 1, a row group's batch in memory at a time."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    with tempfile.TemporaryFile() as spool:
        for block in stream.blocks():
            if stream.packed:
                spool.write(block)
        try:
            table = parquet.ParquetFile(spool if stream.packed else stream.path)
            names = table.schema_arrow.names
            if len(set(names)) != len(names):
                raise stream.faults.stop("HEADER", f"column names {quoted(names)}", "names that differ", "name every column once")
            number, unpacked = 0, 0
            for batch in table.iter_batches(batch_size=PARQUET_ROWS):
                unpacked += batch.nbytes
                if unpacked > stream.max_file_bytes:
                    raise stream.faults.stop("TOO_LARGE", f"more than {stream.max_file_bytes} bytes unpacked", f"at most {stream.max_file_bytes} bytes",
                                             "split it, or raise data.max_file_bytes")  # fmt: skip
                for row in _rows_of(stream, batch, number):
                    number += 1
                    yield number, row
        except (arrow.ArrowException, OSError, ValueError) as error:  # ValueError: a column name that is not UTF-8
            raise stream.faults.stop("NOT_PARQUET", f"not a whole parquet file: {quoted(error, 120)}", "a whole parquet file",
                                     "write it again") from None  # fmt: skip


def _rows_of(stream: Stream, batch: Any, before: int) -> list[Mapping[str, Any] | None]:
    """The rows of a batch; None, with its fault recorded, for one that holds a value Python does not (text that is not UTF-8, the year 30000)."""
    try:
        return batch.to_pylist()  # type: ignore[no-any-return]
    except (ValueError, OverflowError) as error:
        if batch.num_rows > 1:
            half = batch.num_rows // 2
            return [*_rows_of(stream, batch.slice(0, half), before), *_rows_of(stream, batch.slice(half), before + half)]
        code = "ENCODING" if isinstance(error, UnicodeDecodeError) else "VALUE"
        stream.faults.add("unreadable", code, before + 1, "", f"a value that cannot be read: {visible(error, 120)}",
                          "UTF-8 text, and dates up to the year 9999", f"mend or delete row {before + 1}")  # fmt: skip
        return [None]


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
        return f"the text {quoted(hide(value), 40)}"
    return "a list" if isinstance(value, list) else "an object"
