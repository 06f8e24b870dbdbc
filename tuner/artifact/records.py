"""records.parquet: every record a version used, by file, line, split and hashes; never its text, unless the recipe asks for that.

It refuses a file that is not what `write_records` makes: columns of other types, hashes that are none, lines below 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from tuner.artifact.near_copies import SCHEME, VALUES, Signatures, prompt_digest, signatures
from tuner.data.record import Record
from tuner.errors import refuse

if TYPE_CHECKING:
    from tuner.template.tokens import Row

RECORDS = "records.parquet"
MOST_ROWS = 20_000_000
MOST_BYTES = 8 << 30  # unpacked
_SCHEME_KEY = b"tuner.near_copies"
_HEX = 64


@dataclass(frozen=True)
class Table:
    """The records of a version as columns of N rows. `split` and `file` index `splits` and `files`; `line` counts from 1.

    `hash` and `prompt` are 32 bytes each, `near` is (N, 64); where `has_near` is false, prompt and near are zeros.
    """

    splits: list[str]
    files: list[str]
    split: NDArray[np.uint16]
    file: NDArray[np.uint32]
    line: NDArray[np.uint32]
    hash: NDArray[np.uint8]
    prompt: NDArray[np.uint8]
    near: Signatures
    has_near: bool
    has_text: bool

    def __len__(self) -> int:
        return len(self.line)


def write_records(path: Path, rows: Mapping[str, Sequence[Row]], keep_text: bool = False) -> None:
    """One row a record, in the order they were read, with its token counts; with `keep_text` its messages as JSON besides."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    every = [(split, row) for split, of in rows.items() for row in of]
    questions = [row.record.question for _, row in every]
    text, number = arrow.string(), arrow.int64()
    columns: dict[str, Any] = {
        "split": arrow.array([split for split, _ in every], text), "file": arrow.array([r.record.file for _, r in every], text),
        "line": arrow.array([r.record.line for _, r in every], number), "hash": arrow.array([r.record.hash for _, r in every], text),
        "prompt_tokens": arrow.array([r.prompt_tokens for _, r in every], number),
        "row_tokens": arrow.array([len(r.input_ids) for _, r in every], number),
        "loss_tokens": arrow.array([r.completion_tokens for _, r in every], number),
        "prompt_hash": arrow.array([prompt_digest(q) for q in questions], text),
        "near": arrow.array([bytes(s) if s.any() else None for s in signatures(questions)], arrow.binary(VALUES)),
    }  # fmt: skip
    if keep_text:
        columns["text"] = arrow.array([_text(row.record) for _, row in every], text)
    table = arrow.table(columns).replace_schema_metadata({_SCHEME_KEY: str(SCHEME).encode()})
    parquet.write_table(table, path, compression="zstd")


def _text(record: Record) -> str:
    tools = {} if record.tools is None else {"tools": json.loads(record.tools)}
    return json.dumps({"messages": [m.as_written() for m in record.messages], **tools}, ensure_ascii=False)


def records_hashes(path: Path, splits: Sequence[str]) -> frozenset[str]:
    """Content hashes of the records of these splits."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(path, columns=["split", "hash"])
    return frozenset(h for split, h in zip(table["split"].to_pylist(), table["hash"].to_pylist(), strict=True) if split in splits)


def read_records(path: Path) -> Table:
    """The records of a version. Raises Refusal where the file is absent, broken, or not what `write_records` makes."""
    table, names = _columns(path, ("split", "file", "line", "hash"), ("prompt_hash", "near"))
    splits, split = _named(table, "split", path)
    files, file = _named(table, "file", path)
    lines = np.asarray(table["line"].to_numpy())
    if len(lines) and (lines.min() < 1 or lines.max() >= 1 << 32):
        _refuse(path, "line", "numbers that are no lines")
    has_text = "text" in names
    has_near = "near" in table.column_names and "prompt_hash" in table.column_names
    prompt, near = np.zeros((len(lines), 32), dtype=np.uint8), np.zeros((len(lines), VALUES), dtype=np.uint8)
    if has_near:
        prompt = _digests(table["prompt_hash"].to_pylist(), path, "prompt_hash", may_miss=True)
        near = _fixed(table["near"].to_pylist(), path)
    return Table(splits, files, split.astype(np.uint16), file.astype(np.uint32), lines.astype(np.uint32),
                 _digests(table["hash"].to_pylist(), path, "hash"), prompt, near, has_near, has_text)  # fmt: skip


def texts_holding(path: Path, phrase: str) -> Iterator[tuple[str, str, int, str]]:
    """(split, file, line, hash) of every record whose kept text holds `phrase`, whatever the case; nothing where no text was kept."""
    import pyarrow.compute as compute

    table, _ = _columns(path, ("split", "file", "line", "hash"), ("text",))
    if "text" not in table.column_names:
        return
    inside = json.dumps(phrase, ensure_ascii=False)[1:-1]
    found = table.filter(compute.match_substring(table["text"], inside, ignore_case=True))
    for row in found.to_pylist():
        yield row["split"], row["file"], row["line"], row["hash"]


# --- a file that anybody may have written ------------------------------------------------------------------------------


def _columns(path: Path, wanted: Sequence[str], if_there: Sequence[str]) -> tuple[Any, list[str]]:
    """The columns as an Arrow table, each of its own type and, but for those that may be missing, without empty cells; and the names of all there are."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    types = {"line": arrow.types.is_int64, "near": lambda of: of == arrow.binary(VALUES)}
    try:
        file = parquet.ParquetFile(path)
        facts = file.metadata
        unpacked = sum(facts.row_group(i).total_byte_size for i in range(facts.num_row_groups))
        if facts.num_rows > MOST_ROWS or unpacked > MOST_BYTES:
            _refuse(path, "", f"{facts.num_rows:,} rows, {unpacked:,} bytes unpacked")
        names = [n for n in (*wanted, *if_there) if n in file.schema_arrow.names]
        if (file.schema_arrow.metadata or {}).get(_SCHEME_KEY) != str(SCHEME).encode():  # signatures of another scheme are not comparable
            names = [n for n in names if n != "near"]
        table = file.read(columns=names)
    except FileNotFoundError:
        refuse(path, "", "no such file", "the records of this version", "restore the version from a copy, or fetch it")
    except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:
        _refuse(path, "", f"unreadable: {str(error).splitlines()[0][:160]}")
    for name in (*wanted, *(n for n in if_there if n in names)):
        is_right = types.get(name, lambda of: arrow.types.is_string(of) or arrow.types.is_large_string(of))
        if name not in table.column_names or not is_right(table.schema.field(name).type):
            _refuse(path, name, "no such column" if name not in table.column_names else f"a column of {table.schema.field(name).type}")
        if name in wanted and table[name].null_count:
            _refuse(path, name, f"{table[name].null_count} empty cells")
    return table, file.schema_arrow.names


def _named(table: Any, column: str, path: Path) -> tuple[list[str], NDArray[np.int64]]:
    """The different values of a column, and (N,) which of them each row has."""
    coded = table[column].combine_chunks().dictionary_encode()
    names, codes = coded.dictionary.to_pylist(), np.asarray(coded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
    if len(names) > 60_000:
        _refuse(path, column, f"{len(names):,} different values")
    return names, codes


def _digests(values: list[str | None], path: Path, column: str, may_miss: bool = False) -> NDArray[np.uint8]:
    """(N, 32) of `sha256:` and 64 hex digits; zeros where one is missing and may be."""
    present = [v for v in values if v is not None]
    if any(len(v) != 7 + _HEX or not v.startswith("sha256:") for v in present) or (len(present) < len(values) and not may_miss):
        _refuse(path, column, "a value that is no sha256 digest")
    try:
        found = np.frombuffer(bytes.fromhex("".join(v[7:] for v in present)), dtype=np.uint8)
    except ValueError:
        _refuse(path, column, "a value that is no sha256 digest")
    if found.size != 32 * len(present):  # white space, which fromhex passes over
        _refuse(path, column, "a value that is no sha256 digest")
    return _spread(values, found.reshape(-1, 32))


def _fixed(values: list[bytes | None], path: Path) -> Signatures:
    joined = b"".join(v for v in values if v is not None)
    return _spread(values, np.frombuffer(joined, dtype=np.uint8).reshape(-1, VALUES))


def _spread(values: Sequence[object], present: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows for every value, zeros where it is missing."""
    if len(present) == len(values):
        return present
    made = np.zeros((len(values), present.shape[1]), dtype=np.uint8)
    made[[i for i, v in enumerate(values) if v is not None]] = present
    return made


def _refuse(path: Path, column: str, found: str) -> NoReturn:
    refuse(path, column, found, "the table as tuner writes it: hashes, files and lines", "restore the version from a copy")
