"""A segment: one file of the index of records, sorted where it is searched, with a checksum of every block that is read.

A head (JSON) and the checksums, then columns. A segment is never changed: it is written aside and renamed. It refuses nothing by itself; one that
is not as it was written raises Broken, and whoever asked makes it again.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from tuner.artifact.near_copies import BANDS, NEAR, bands, estimated_jaccard
from tuner.artifact.records import Table

SUFFIX = ".records"
ASIDE = ".part-"
SCHEMA = 1
MAGIC = b"tuner records\n"
BLOCK_BYTES = 32_768  # that one checksum covers
ALIGNED = 64
EXACT, SAME_PROMPT, NEAR_COPY = "exact", "same prompt", "near copy"
_CONTENT = ("hash", "prompt", "near")
_SORTED = frozenset({"hash", "prompts", *(f"band{band}" for band in range(BANDS))})

Stamp = tuple[int, int, int, int]  # bytes and mtime_ns of manifest.json and of records.parquet: what a version's rows were read from


class Broken(Exception):
    """A segment that is not as it was written. Its argument is the path."""


class Source(msgspec.Struct, frozen=True):
    """A version that a segment holds, and what its manifest says of where it comes from. `digest` is that of its manifest."""

    name: str
    number: int
    stamp: Stamp
    digest: str
    parent: str | None
    has_near: bool
    has_text: bool
    rows: int

    @property
    def key(self) -> tuple[str, int, Stamp]:
        return self.name, self.number, self.stamp


class Place(msgspec.Struct, frozen=True):
    """A split and file of a source. Every row stands at a line of a place."""

    source: int
    split: str
    file: str


class Column(msgspec.Struct, frozen=True):
    """Where a column lies: `width` items of `dtype` a row, its first byte, and its first checksum; `fences` are its sorted values at each block's start."""

    dtype: str
    width: int
    rows: int
    offset: int
    sums: int
    fences: list[int] = []

    @property
    def row_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * self.width

    @property
    def block_rows(self) -> int:
        return BLOCK_BYTES // self.row_bytes


class Head(msgspec.Struct, frozen=True):
    """What a segment holds. `sums` is how many checksums follow."""

    schema: int
    sources: list[Source]
    places: list[Place]
    columns: dict[str, Column]
    sums: int


@dataclass(frozen=True)
class Row:
    """One record of one version, as the index knows it."""

    source: Source
    split: str
    file: str
    line: int
    hash: str
    how: str
    jaccard: float


@dataclass(frozen=True)
class Wanted:
    """What is looked for: the hex digits that a content hash starts with, a prompt's digest, a signature; None where it is not asked."""

    prefix: str | None = None
    prompt: bytes | None = None
    near: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Content:
    """A record's content, as far as it is known without its text."""

    hash: str
    prompt: bytes | None
    near: NDArray[np.uint8] | None


class Segment:
    """One file of the index, open for searching. Raises Broken where it is not as it was written."""

    def __init__(self, path: Path):
        self.path = path
        self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.head, self.sums, self.start = _head(path, self.handle)
        except BaseException:
            os.close(self.handle)
            raise
        self.blocks: dict[tuple[str, int], NDArray[Any]] = {}

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.handle)

    @property
    def rows(self) -> int:
        return self.head.columns["line"].rows

    def block(self, name: str, number: int) -> NDArray[Any]:
        """The rows of one block, checked once."""
        found = self.blocks.get((name, number))
        if found is None:
            column = self.head.columns[name]
            count = min(column.block_rows, column.rows - number * column.block_rows)
            data = os.pread(self.handle, count * column.row_bytes, self.start + column.offset + number * column.block_rows * column.row_bytes)
            if xxhash.xxh3_64_intdigest(data) != self.sums[column.sums + number]:
                raise Broken(self.path)
            found = np.frombuffer(data, dtype=column.dtype).reshape((count, column.width) if column.width > 1 else count)
            self.blocks[name, number] = found
        return found

    def between(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows start to stop."""
        size = self.head.columns[name].block_rows
        parts = [self.block(name, b)[max(start - b * size, 0) : stop - b * size] for b in range(start // size, -(-stop // size))]
        return np.concatenate(parts) if parts else self.none(name)

    def none(self, name: str) -> NDArray[Any]:
        column = self.head.columns[name]
        return np.zeros((0, column.width) if column.width > 1 else 0, dtype=column.dtype)

    def whole(self, name: str) -> NDArray[Any]:
        return self.between(name, 0, self.head.columns[name].rows)

    def at(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The rows at these places, which must rise."""
        if not len(rows):
            return self.none(name)
        size = self.head.columns[name].block_rows
        numbers, firsts = np.unique(rows // size, return_index=True)
        ends = [*firsts[1:].tolist(), len(rows)]
        parts = [self.block(name, b)[rows[first:end] - b * size] for b, first, end in zip(numbers.tolist(), firsts.tolist(), ends, strict=True)]
        return np.concatenate(parts)

    def equal(self, name: str, low: int, high: int) -> tuple[int, int]:
        """Start and stop of the rows of a sorted column whose value is from `low` to `high`."""
        column = self.head.columns[name]
        fences, size = np.array(column.fences, dtype=np.uint64), column.block_rows
        first = max(int(np.searchsorted(fences, np.uint64(low), "left")) - 1, 0)
        last = int(np.searchsorted(fences, np.uint64(high), "right")) - 1
        if last < 0:
            return 0, 0
        return (first * size + int(np.searchsorted(_sorted_by(self.block(name, first)), np.uint64(low), "left")),
                last * size + int(np.searchsorted(_sorted_by(self.block(name, last)), np.uint64(high), "right")))  # fmt: skip


def _sorted_by(rows: NDArray[Any]) -> NDArray[Any]:
    """What a column is sorted by: its numbers, or the first eight bytes of a digest."""
    return np.ascontiguousarray(rows[:, :8]).view(">u8")[:, 0].astype(np.uint64) if rows.ndim > 1 else rows


def _head(path: Path, handle: int) -> tuple[Head, list[int], int]:
    """Head, checksums, and where the columns start. The line under the magic says how long head and checksums are, and their checksum."""
    first = os.pread(handle, 80, 0)
    said = re.match(MAGIC + rb"([0-9]{1,10}) ([0-9]{1,10}) ([0-9a-f]{16})\n", first)
    if said is None:
        raise Broken(path)
    length, sums = int(said[1]), int(said[2])
    data = os.pread(handle, length + sums * 8, said.end())
    if xxhash.xxh3_64_hexdigest(data) != said[3].decode():
        raise Broken(path)
    try:
        head = msgspec.json.decode(data[:length], type=Head)
    except msgspec.DecodeError:
        raise Broken(path) from None
    start = -(-(said.end() + len(data)) // ALIGNED) * ALIGNED
    end = max((c.offset + c.rows * c.row_bytes for c in head.columns.values()), default=0)
    if head.schema != SCHEMA or os.fstat(handle).st_size != start + end:
        raise Broken(path)
    return head, np.frombuffer(data[length:], dtype="<u8").tolist(), start


# --- searching -----------------------------------------------------------------------------------------------------------


def exact(segment: Segment, prefix: str) -> list[tuple[int, bytes]]:
    """(entry, hash) of the contents whose hash starts so."""
    first = prefix[:16]
    start, stop = segment.equal("hash", int(first.ljust(16, "0"), 16), int(first.ljust(16, "f"), 16))
    digests = [bytes(h) for h in segment.between("hash", start, stop)]
    return [(start + i, digest) for i, digest in enumerate(digests) if digest.hex().startswith(prefix)]


def matches(segment: Segment, wanted: Wanted) -> dict[int, tuple[str, float]]:
    """How each entry that is meant was found, and its Jaccard: estimated for a near copy."""
    found: dict[int, tuple[str, float]] = {}
    if wanted.near is not None:
        ranges = [(band, *segment.equal(f"band{band}", key, key)) for band, key in enumerate(bands(wanted.near[None])[0].tolist())]
        candidates = np.unique(np.concatenate([segment.between(f"band{band}_entry", start, stop) for band, start, stop in ranges])).astype(np.int64)
        estimates = estimated_jaccard(segment.at("near", candidates), wanted.near)
        close = estimates >= NEAR
        found |= {entry: (NEAR_COPY, estimate) for entry, estimate in zip(candidates[close].tolist(), estimates[close].tolist(), strict=True)}
    if wanted.prompt is not None:
        key = int.from_bytes(wanted.prompt[:8], "big")
        entries = np.sort(segment.between("prompts_entry", *segment.equal("prompts", key, key))).astype(np.int64)
        same = (segment.at("prompt", entries) == np.frombuffer(wanted.prompt, dtype=np.uint8)).all(axis=1)
        found |= dict.fromkeys(entries[same].tolist(), (SAME_PROMPT, 1.0))
    return found | ({} if wanted.prefix is None else {entry: (EXACT, 1.0) for entry, _ in exact(segment, wanted.prefix)})


def rows_in(segment: Segment, own: Mapping[int, tuple[str, int]], matches: Mapping[int, tuple[str, float]]) -> Iterator[Row]:
    """Every row of the sources `own` that has one of these contents."""
    head = segment.head
    for entry in sorted(matches):
        how, jaccard = matches[entry]
        start, stop = segment.between("starts", entry, entry + 2).tolist()
        digest = "sha256:" + bytes(segment.between("hash", entry, entry + 1)[0]).hex()
        for place, line in zip(segment.between("place", start, stop).tolist(), segment.between("line", start, stop).tolist(), strict=True):
            at = head.places[place]
            if at.source in own:
                yield Row(head.sources[at.source], at.split, at.file, line, digest, how, jaccard)


# --- making segments ---------------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """Rows of several versions, not sorted yet: their contents, and where each stands."""

    sources: list[Source] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    parts: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    count: int = 0

    def add(self, source: Source, table: Table) -> None:
        codes = table.split.astype(np.int64) * max(len(table.files), 1) + table.file
        used, place = np.unique(codes, return_inverse=True)
        first = len(self.places)
        self.places += [Place(len(self.sources), table.splits[c // len(table.files)], table.files[c % len(table.files)]) for c in used.tolist()]
        self.sources.append(source)
        self._keep({"hash": table.hash, "prompt": table.prompt, "near": table.near, "place": (place + first).astype(np.uint32), "line": table.line})

    def absorb(self, segment: Segment, kept: Collection[Source]) -> None:
        """Add the rows of a segment that belong to these of its sources. Raises Broken."""
        moved = {i: s for i, s in enumerate(segment.head.sources) if s in kept}
        at = {i: len(self.sources) + n for n, i in enumerate(moved)}
        new_place = np.full(len(segment.head.places) + 1, -1, dtype=np.int64)
        for i, place in enumerate(segment.head.places):
            if place.source in at:
                new_place[i] = len(self.places)
                self.places.append(Place(at[place.source], place.split, place.file))
        self.sources += moved.values()
        starts = segment.whole("starts").astype(np.int64)
        entry = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        places = new_place[segment.whole("place").astype(np.int64)]
        stays = places >= 0
        content = {name: segment.whole(name)[entry[stays]] for name in _CONTENT}
        self._keep({**content, "place": places[stays].astype(np.uint32), "line": segment.whole("line")[stays]})

    def _keep(self, part: dict[str, NDArray[Any]]) -> None:
        self.parts.append(part)
        self.count += len(part["line"])

    def columns(self) -> dict[str, NDArray[Any]]:
        """Every different content once, sorted by its hash, with the rows that have it, and what prompts and bands are found by."""
        joined = {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        order = np.lexsort([_sorted_by(joined[name]) for name in ("near", "prompt", "hash")])
        joined = {name: of[order] for name, of in joined.items()}
        is_new = np.ones(len(order), dtype=bool)
        if len(order):
            is_new[1:] = np.logical_or.reduce([(joined[name][1:] != joined[name][:-1]).any(axis=1) for name in _CONTENT])
        firsts = np.flatnonzero(is_new)
        content = {name: joined[name][firsts] for name in _CONTENT}
        starts = np.append(firsts, len(order)).astype(np.uint32)
        return {**content, "starts": starts, "place": joined["place"], "line": joined["line"], **_searched(content["prompt"], content["near"])}


def _searched(prompt: NDArray[np.uint8], near: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Sorted keys of prompts and of each band, with the entry of each; entries without a prompt or signature are left out."""
    made: dict[str, NDArray[Any]] = {}
    with_prompt, with_near = (np.flatnonzero(of.any(axis=1)).astype(np.uint32) for of in (prompt, near))
    keys = {"prompts": (_sorted_by(prompt[with_prompt]), with_prompt)}
    banded = bands(near[with_near])
    keys |= {f"band{band}": (banded[:, band], with_near) for band in range(BANDS)}
    for name, (values, entries) in keys.items():
        order = np.argsort(values, kind="stable")
        made[name], made[f"{name}_entry"] = values[order], entries[order]
    return made


def write_segment(folder: Path, rows: Rows) -> Path:
    """Write a segment aside and rename it. Not flushed to disk: a torn one is found by its checksums and made again."""
    columns, arrays = {}, rows.columns()
    offset, sums = 0, list[int]()
    for name, array in arrays.items():
        array = arrays[name] = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<")))
        column = Column(array.dtype.str, array.shape[1] if array.ndim > 1 else 1, len(array), offset, len(sums))
        fences = _sorted_by(array[:: column.block_rows]).tolist() if name in _SORTED else []
        columns[name] = msgspec.structs.replace(column, fences=fences)
        data = array.tobytes()
        sums += [xxhash.xxh3_64_intdigest(data[at : at + column.block_rows * column.row_bytes])
                 for at in range(0, array.nbytes, column.block_rows * column.row_bytes)]  # fmt: skip
        offset += -(-array.nbytes // ALIGNED) * ALIGNED
    last = next(reversed(columns.values()))
    head = msgspec.json.encode(Head(SCHEMA, rows.sources, rows.places, columns, len(sums))) + np.array(sums, dtype="<u8").tobytes()
    first = MAGIC + f"{len(head) - len(sums) * 8} {len(sums)} {xxhash.xxh3_64_hexdigest(head)}\n".encode()
    aside = folder / f"{ASIDE}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with open(aside, "xb") as out:
            out.write(first + head)
            out.write(b"\0" * (-(len(first) + len(head)) % ALIGNED))
            start = out.tell()
            for name, array in arrays.items():
                out.seek(start + columns[name].offset)
                out.write(array.data)
            out.truncate(start + last.offset + last.rows * last.row_bytes)
        path = folder / f"{xxhash.xxh3_64_hexdigest(head)}{SUFFIX}"
        os.replace(aside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
    return path
