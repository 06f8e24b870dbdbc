"""Records from files and hub datasets, each with its file and line, read strictly and in one pass.

It refuses what a lenient parser would let through in silence: repeated keys, NaN, wrong types, mixed shapes, unknown roles,
text that is not UTF-8. Every problem of every file is reported at once.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from tuner.catalog import nearest, suggestion
from tuner.data.record import ROLES, SHAREGPT_ROLES, Message, Record, Role
from tuner.data.spec import Columns, Shape, SourceSpec
from tuner.errors import Collector, Problem, Refusal, refuse
from tuner.fingerprint import digest_bytes, digest_json
from tuner.safe_text import quoted, visible

Raw = tuple[int, Mapping[str, Any]]  # (line or row, the object as written)


@dataclass(frozen=True, slots=True)
class FileAccount:
    """What one file held: `read` records, `rejected` that could not be used, `not_taken` that `take` left aside. read = kept + dropped + rejected."""

    file: str
    split: str
    digest: str
    bytes: int
    read: int
    rejected: int
    not_taken: int = 0


@dataclass(frozen=True)
class Reading:
    """Records of one split and the account of its files, with the problems found on the way."""

    records: list[Record]
    accounts: list[FileAccount]
    problems: list[Problem]


class _Reader:
    """One file's bytes and limits, and the collector its problems go to."""

    def __init__(self, path: Path, shown: str, spec_limits: tuple[int, int], collector: Collector):
        self.path, self.shown, self.collector = path, shown, collector
        self.max_record_bytes, self.max_file_bytes = spec_limits

    def problem(self, line: int, field: str, found: object, accepted: str, try_: str) -> None:
        self.collector.add(f"{self.shown}:{line}", field, found, accepted, try_)


def read_source(spec: SourceSpec, split: str, folder: Path, seed: int, max_record_bytes: int = 1 << 20, max_file_bytes: int = 1 << 32) -> Reading:
    """Read one source. Problems are returned, not raised, so that the caller can gather those of every split."""
    collector = Collector()
    records: list[Record] = []
    accounts: list[FileAccount] = []
    if spec.hub is not None:
        part, account = _from_rows(_hub_rows(spec), _hub_name(spec), split, spec.columns, collector)
        records, accounts = part, [account]
    for position, name in enumerate(spec.files):
        before = len(collector.problems)
        if spec.files.index(name) < position:
            collector.add(name, "", "the same file twice in one source", "each file once", "name it once")
            continue
        shown = os.path.relpath(name, folder) if os.path.isabs(name) else name  # no path of one machine reaches an artifact
        part, account = _read_file(folder / os.path.expanduser(name), shown, split, spec, (max_record_bytes, max_file_bytes), collector)
        accounts.append(account)
        records.extend(part)
        if account.read == 0 and len(collector.problems) == before:
            collector.add(name, "", "no records", "at least one record", "remove the file from the recipe, or fill it")
    taken = _take(records, spec.take, seed)
    aside = Counter(r.file for r in records)
    aside.subtract(r.file for r in taken)
    return Reading(taken, [replace(a, not_taken=aside[a.file]) for a in accounts], collector.problems)


def _take(records: list[Record], count: int | None, seed: int) -> list[Record]:
    """`count` records chosen by seed and content, in the order they were read: the same ones whatever their order."""
    if count is None or count >= len(records):
        return records
    ranked = sorted(range(len(records)), key=lambda i: (hashlib.sha256(f"{seed}:{records[i].hash}".encode()).digest(), i))
    return [records[i] for i in sorted(ranked[:count])]


def _read_file(path: Path, shown: str, split: str, spec: SourceSpec, limits: tuple[int, int], collector: Collector) -> tuple[list[Record], FileAccount]:
    reader = _Reader(path, shown, limits, collector)
    try:
        kind, data = _open(reader)
        return _from_rows(READERS[kind](reader, data), shown, split, spec.columns, collector, digest_bytes(data), len(data))
    except Refusal as refusal:
        collector.problems.extend(refusal.problems)
        return [], FileAccount(shown, split, "", 0, 0, 0)


def _open(reader: _Reader) -> tuple[str, bytes]:
    """The kind of file by its suffix, and its bytes, unpacked when it ends in .gz."""
    suffixes = [s.lower() for s in reader.path.suffixes]
    packed = bool(suffixes) and suffixes[-1] == ".gz"
    kind = (suffixes[-2] if packed and len(suffixes) > 1 else suffixes[-1] if suffixes else "").lstrip(".")
    if kind not in READERS:
        refuse(reader.shown, "", f"a file ending in {quoted(''.join(suffixes) or reader.path.name)}",
               "one of: " + ", ".join(f".{k}" for k in READERS) + ", each also .gz", "rename it to what it is, or convert it")  # fmt: skip
    try:
        size = reader.path.stat().st_size
        if size > reader.max_file_bytes:
            refuse(reader.shown, "", f"{size} bytes", f"at most {reader.max_file_bytes} bytes", "split it, or raise data.max_file_bytes")
        data = _unpack(reader) if packed else reader.path.read_bytes()
    except FileNotFoundError:
        near = nearest(reader.path.name, (p.name for p in reader.path.parent.iterdir())) if reader.path.parent.is_dir() else None
        refuse(reader.shown, "", f"no such file (looked in {reader.path.parent.name or '.'}/)", "an existing file",
               f"did you mean {near}?" if near else "paths in a recipe start at the recipe's folder")  # fmt: skip
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        refuse(reader.shown, "", getattr(error, "strerror", None) or str(error), "a readable file", "check the path and its permissions")
    if not data:
        refuse(reader.shown, "", "0 bytes", "at least one record", "remove the file from the recipe, or fill it")
    return kind, data


def _unpack(reader: _Reader) -> bytes:
    try:
        with gzip.open(reader.path) as packed:
            data = packed.read(reader.max_file_bytes + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        refuse(reader.shown, "", f"a broken gzip file: {error}", "a whole gzip file", "copy or pack it again")
    if len(data) > reader.max_file_bytes:
        refuse(reader.shown, "", "more than it may unpack to", f"at most {reader.max_file_bytes} bytes unpacked", "split it, or raise data.max_file_bytes")
    return data


def _text(reader: _Reader, data: bytes) -> str:
    """UTF-8 text without its byte order mark. Raises Refusal naming line and byte offset, or the other encoding."""
    for mark, name in ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16")):
        if data.startswith(mark):
            refuse(reader.shown, "", f"{name} text", "UTF-8 text", f"convert it: iconv -f {name} -t UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        refuse(f"{reader.shown}:{line}", "", f"byte 0x{data[error.start]:02x} at offset {error.start}, which is not UTF-8",
               "UTF-8 text", "save the file as UTF-8, or mend that line")  # fmt: skip


# --- JSON, strictly ------------------------------------------------------------------------------------------------


class _BadJson(ValueError):
    """A value that JSON parsers let through and we do not. Message: (found, accepted, try)."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [k for k, _ in pairs]
        again = next(k for k in keys if keys.count(k) > 1)
        raise _BadJson(f"the key {quoted(again)} twice in one object", "each key once", "delete one of the two")
    return table


def _no_constant(word: str) -> Any:
    raise _BadJson(f"the number {word}", "finite numbers", "write null, or a number")


def _whole(digits: str) -> int:
    if len(digits) > 20:
        raise _BadJson(f"a whole number of {len(digits)} digits", "at most 20 digits", "write it as text")
    return int(digits)


def _real(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise _BadJson(f"the number {digits}, which is too large", "finite numbers", "write a smaller number")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_no_constant, parse_int=_whole, parse_float=_real)


def _decode(text: str) -> Any:
    """Strict JSON. Raises _BadJson or json.JSONDecodeError."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise _BadJson("nesting deeper than a record needs", "a flat record", "flatten it") from None


def _jsonl(reader: _Reader, data: bytes) -> Iterator[Raw | None]:
    """One object a line. None stands for a line that was rejected; blank lines are not records."""
    text = _text(reader, data)
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        size = len(line) if line.isascii() else len(line.encode("utf-8"))
        if size > reader.max_record_bytes:
            reader.problem(number, "", f"a record of {size} bytes", f"at most {reader.max_record_bytes}",
                           "shorten it, or raise data.max_record_bytes")  # fmt: skip
            yield None
            continue
        yield _object(reader, number, line)


def _object(reader: _Reader, number: int, line: str) -> Raw | None:
    try:
        value = _decode(line)
    except _BadJson as bad:
        reader.problem(number, "", *bad.args)
        return None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            reader.problem(number, "", f"more after the end of the record, at column {error.colno}: {quoted(line[error.pos:], 40)}",
                           "one JSON object a line", "put each record on a line of its own")  # fmt: skip
        else:
            near = quoted(line[max(error.pos - 20, 0) : error.pos + 20], 44)
            reader.problem(number, "", f"broken JSON at column {error.colno}: {error.msg.lower()}, near {near}",
                           "one whole JSON object a line", f"mend or delete line {number}")  # fmt: skip
        return None
    return _as_object(reader, number, value)


def _as_object(reader: _Reader, number: int, value: Any) -> Raw | None:
    if not isinstance(value, dict):
        reader.problem(number, "", f"{_kind(value)}", 'a JSON object, as {"prompt": …, "completion": …}', f"mend or delete line {number}")
        return None
    return number, value


def _json_array(reader: _Reader, data: bytes) -> Iterator[Raw | None]:
    """A JSON array of objects, each with the line on which it starts."""
    text = _text(reader, data)
    position, line, last = _skip(text, 0), 1, 0
    if text[position : position + 1] != "[":
        hint = "rename it to .jsonl: it holds one object a line" if text[position : position + 1] == "{" else "wrap the records in [ ]"
        refuse(f"{reader.shown}:1", "", quoted(text[position : position + 20]), "a JSON array of objects", hint)
    position = _skip(text, position + 1)
    more = text[position : position + 1] != "]"
    while more:
        line += text.count("\n", last, position)
        last = position
        row, end = _item(reader, text, position, line)
        yield row
        position = _skip(text, end)
        more = text[position : position + 1] == ","
        if not more and text[position : position + 1] != "]":
            refuse(f"{reader.shown}:{line}", "", "no comma or ] after a record", "a JSON array of objects", "mend the file from that line on")
        position = _skip(text, position + more)
    position = _skip(text, position + 1)
    if position < len(text):
        refuse(f"{reader.shown}:{text.count(chr(10), 0, position) + 1}", "", f"more after the end of the array: {quoted(text[position:], 40)}",
               "one JSON array", "delete what follows the last ], or put one record a line in a .jsonl file")  # fmt: skip


def _item(reader: _Reader, text: str, position: int, line: int) -> tuple[Raw | None, int]:
    """The array's record at `position`, and where it ends. Raises Refusal where the array breaks off: nothing after that can be read."""
    try:
        try:
            value, end = _DECODER.raw_decode(text, position)
            return _as_object(reader, line, value), end
        except _BadJson as bad:  # Python's own JSON reads it, so the records behind it can be looked at too
            reader.problem(line, "", *bad.args)
            return None, json.JSONDecoder(parse_int=str).raw_decode(text, position)[1]
    except (json.JSONDecodeError, RecursionError) as error:
        refuse(f"{reader.shown}:{line}", "", f"broken JSON: {getattr(error, 'msg', 'nesting too deep').lower()}", "a JSON array of objects",
               "mend the file from that line on")  # fmt: skip


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


# --- tables --------------------------------------------------------------------------------------------------------


def _csv(reader: _Reader, data: bytes, delimiter: str = ",") -> Iterator[Raw | None]:
    """Rows under a header line; `line` is where the row starts, quoted line breaks counted."""
    csv.field_size_limit(reader.max_record_bytes)
    rows = csv.reader(io.StringIO(_text(reader, data), newline=""), delimiter=delimiter, strict=True)
    start = 1
    header: list[str] | None = None
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            refuse(f"{reader.shown}:{start}", "", f"a broken row: {error}", "well-formed CSV", "close the quote, or mend the row")
        line, start = start, rows.line_num + 1
        if len(row) < 2 and not "".join(row).strip():
            continue
        if header is None:
            header = _header(reader, row, line)
        elif len(row) != len(header):
            reader.problem(line, "", f"{len(row)} cells", f"{len(header)}, as in the header: {', '.join(header)}", "quote cells that hold the delimiter")
            yield None
        else:
            yield line, dict(zip(header, row, strict=True))


def _header(reader: _Reader, row: list[str], line: int) -> list[str]:
    names = [cell.strip() for cell in row]
    if len(set(names)) != len(names) or not all(names):
        refuse(f"{reader.shown}:{line}", "", f"column names {quoted(names)}", "names that are present and differ", "name every column once")
    return names


def _tsv(reader: _Reader, data: bytes) -> Iterator[Raw | None]:
    return _csv(reader, data, delimiter="\t")


def _parquet(reader: _Reader, data: bytes) -> Iterator[Raw | None]:
    """Rows of a parquet file, numbered from 1."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.ParquetFile(io.BytesIO(data))
        number = 0
        for batch in table.iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (arrow.ArrowInvalid, arrow.ArrowException, OSError) as error:
        refuse(reader.shown, "", f"not a parquet file: {quoted(str(error).splitlines()[0], 120)}", "a whole parquet file", "write it again")


def _hub_name(spec: SourceSpec) -> str:
    return f"hub:{spec.hub}@{(spec.revision or '')[:12]}/{spec.hub_split}"


def _hub_rows(spec: SourceSpec) -> Iterator[Raw | None]:
    """Rows of a hub dataset at a pinned commit, numbered from 1."""
    import datasets
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(spec.hub, repo_type="dataset", revision=spec.revision, local_files_only=not spec.online)
        rows = datasets.load_dataset(folder, spec.subset, split=spec.hub_split)
    except (OSError, ValueError, RuntimeError) as error:
        cause = quoted(str(error).splitlines()[0], 160)
        refuse(_hub_name(spec), "", cause, "a dataset in the local cache, or reachable with online: true", "set online: true for this source, or give files")
    for number, row in enumerate(rows, start=1):
        yield number, cast(Mapping[str, Any], row)


READERS: dict[str, Callable[[_Reader, bytes], Iterator[Raw | None]]] = {
    "jsonl": _jsonl,
    "json": _json_array,
    "csv": _csv,
    "tsv": _tsv,
    "parquet": _parquet,
}


# --- shapes --------------------------------------------------------------------------------------------------------


def _from_rows(
    rows: Iterator[Raw | None], shown: str, split: str, columns: Columns | None, collector: Collector, digest: str = "", size: int = 0
) -> tuple[list[Record], FileAccount]:
    """Records of one file. The first good row decides the file's shape; another shape further down is a problem."""
    records: list[Record] = []
    read = rejected = 0
    shape: Shape | None = None
    for row in rows:
        read += 1
        if row is None:
            rejected += 1
            continue
        line, table = row
        known = len(collector.problems)
        at = f"{shown}:{line}"
        found = _shape(table, columns)
        if found is None:
            _unknown_shape(at, table, columns, collector)
        elif shape is not None and found != shape:
            collector.add(at, "", f"a record shaped as {found}, in a file of {shape}", "one shape a file", "split the file by shape")
        else:
            shape = found
            record = _record(table, found, columns, shown, line, split, collector)
            if record is not None:
                records.append(record)
        rejected += len(collector.problems) > known
    return records, FileAccount(shown, split, digest or digest_json([r.hash for r in records]), size, read, rejected)


def _shape(table: Mapping[str, Any], columns: Columns | None) -> Shape | None:
    if columns is not None:
        return ("messages" if columns.messages else "prompt_completion") if all(n in table for n in _named(columns)) else None
    for shape, keys in SHAPE_KEYS.items():
        if all(key in table for key in keys):
            return shape
    return None


def _named(columns: Columns) -> list[str]:
    return [c for c in (columns.messages, columns.system, columns.prompt, columns.completion) if c]


def _unknown_shape(at: str, table: Mapping[str, Any], columns: Columns | None, collector: Collector) -> None:
    keys = [visible(k) for k in table]
    if columns is not None:
        wanted = _named(columns)
        missing = next(c for c in wanted if c not in table)
        collector.add(at, missing, f"no such column among {', '.join(keys)}", f"columns {', '.join(wanted)}", suggestion(missing, keys))
        return
    accepted = "; ".join(f"{shape}: {' + '.join(names)}" for shape, names in SHAPE_KEYS.items())
    strange = [k for k in keys if not any(k in names for names in SHAPE_KEYS.values())]
    for names in SHAPE_KEYS.values():
        for name in names:
            slip = nearest(name, strange)
            if slip:
                collector.add(at, slip, f"keys {', '.join(keys)}", accepted, f"rename {slip} to {name}")
                return
    present = [n for names in SHAPE_KEYS.values() for n in names if n in table]
    absent = next((n for names in SHAPE_KEYS.values() if present and present[0] in names for n in names if n not in table), "")
    collector.add(at, absent, f"keys {', '.join(keys)}", accepted, f"add {absent}" if absent else "name the columns under `columns:` in the recipe")


def _record(table: Mapping[str, Any], shape: Shape, columns: Columns | None, shown: str, line: int, split: str, collector: Collector) -> Record | None:
    at = f"{shown}:{line}"
    used, raw = _raw_messages(table, shape, columns)
    messages = _messages(raw, at, collector)
    if messages is None or not _order_is_right(messages, at, collector):
        return None
    extra = {str(k): v for k, v in table.items() if k not in used}
    return Record(tuple(messages), shown, line, split, extra)


def _raw_messages(table: Mapping[str, Any], shape: Shape, columns: Columns | None) -> tuple[set[str], list[tuple[str, Any]]]:
    """The columns used, and (path, message object) for every message, whatever the shape."""
    if shape == "messages":
        name, system = (columns.messages or "", columns.system or "") if columns else ("messages", "")
        return {name, system}, _system(table.get(system) if system else None, system) + _listed(table[name], name)
    if shape == "sharegpt":
        return {"conversations", "system"}, _system(table.get("system"), "system") + _listed(table["conversations"], "conversations", SHAREGPT_ROLES)
    if shape == "alpaca":
        asked, given = table["instruction"], table.get("input")
        given_is_text = given is None or isinstance(given, str)
        text = f"{asked}\n\n{given}" if isinstance(asked, str) and given_is_text and given else asked
        pair = [("instruction", {"role": "user", "content": text}), ("output", {"role": "assistant", "content": table["output"]})]
        if not given_is_text:
            pair.insert(1, ("input", {"role": "user", "content": given}))  # refused by its type
        return {"instruction", "input", "output", "system"}, _system(table.get("system"), "system") + pair
    names = (columns.prompt, columns.completion, columns.system) if columns else ("prompt", "completion", "system")
    prompt, completion, system = (name or "" for name in names)
    body = _turn(table[prompt], prompt, "user") + _turn(table[completion], completion, "assistant")
    return {prompt, completion, system}, _system(table.get(system) if system else None, system) + body


def _system(value: Any, path: str) -> list[tuple[str, Any]]:
    return [] if value is None or value == "" else [(path, {"role": "system", "content": value})]


def _turn(value: Any, path: str, role: str) -> list[tuple[str, Any]]:
    """A prompt or completion column: text, or (TRL's conversational form) a list of messages."""
    return _listed(value, path) if isinstance(value, list) else [(path, {"role": role, "content": value})]


def _listed(value: Any, path: str, roles: Mapping[str, str] | None = None) -> list[tuple[str, Any]]:
    if not isinstance(value, list):
        return [(path, value)]
    if roles is None:
        return [(f"{path}[{i}]", item) for i, item in enumerate(value)]
    return [(f"{path}[{i}]", _renamed(item, roles)) for i, item in enumerate(value)]


def _renamed(item: Any, roles: Mapping[str, str]) -> Any:
    if isinstance(item, dict) and {"from", "value"} <= set(item) and not {"role", "content"} & set(item):
        rest = {k: v for k, v in item.items() if k not in {"from", "value"}}
        return {"role": roles.get(item["from"], item["from"]) if isinstance(item["from"], str) else item["from"], "content": item["value"], **rest}
    return item


def _messages(raw: list[tuple[str, Any]], at: str, collector: Collector) -> list[Message] | None:
    messages: list[Message] = []
    for path, item in raw:
        message = _message(path, item, at, collector)
        if message is None:
            return None
        messages.append(message)
    if not messages:
        collector.add(at, "messages", "an empty list", "at least one user and one assistant turn", "delete the record")
        return None
    return messages


def _message(path: str, item: Any, at: str, collector: Collector) -> Message | None:
    if not isinstance(item, dict):
        collector.add(at, path, _kind(item), 'a message, as {"role": "user", "content": "…"}', "mend the record")
        return None
    role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        collector.add(at, f"{path}.role", quoted(role), "one of: " + ", ".join(ROLES), suggestion(str(role), ROLES))
        return None
    other = sorted(k for k, v in item.items() if k not in {"role", "content"} and v is not None)
    if other:
        collector.add(at, path, f"the key {quoted(other[0])}", "role and content", "remove it: tool calls and other parts are not trained on yet")
        return None
    if not isinstance(content, str):
        collector.add(at, path if "[" not in path else f"{path}.content", _kind(content), "text", "write the text, or delete the record")
        return None
    if any(0xD800 <= ord(c) <= 0xDFFF for c in content):
        collector.add(at, path, "half of a surrogate pair, which is no character", "Unicode text", "mend or delete the record")
        return None
    return Message(cast(Role, role), content)


def _order_is_right(messages: list[Message], at: str, collector: Collector) -> bool:
    """[system] then user and assistant in turn, the last an assistant: what every chat template can render."""
    roles = [m.role for m in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    wanted = ["user", "assistant"] * (len(turns) // 2)
    if turns == wanted and turns:
        return True
    if "assistant" not in roles:
        collector.add(at, "messages", "no assistant turn", "a last turn by the assistant", "add the answer, or delete the record")
    elif roles[-1] != "assistant":
        collector.add(at, "messages", f"a last turn by {roles[-1]}", "a last turn by the assistant", "add the answer, or delete the last turn")
    else:
        collector.add(at, "messages", "turns " + ", ".join(roles[:8]), "an optional system turn, then user and assistant in turn", "mend the order of turns")
    return False


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {quoted(value, 40)}"
    return "a list" if isinstance(value, list) else "an object"


SHAPE_KEYS: dict[Shape, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
}
assert set(SHAPE_KEYS) == set(get_args(Shape))
