"""Records from files and hub datasets, each with its file and line, in one pass over every file, however large.

It refuses nothing by itself: what cannot be used becomes a finding, and the account of the file says how many records that were.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from tuner.data.files import Faults, Stream, Unreadable, shown_path
from tuner.data.findings import Finding
from tuner.data.parse import READERS, Raw, SharedLine, json_line
from tuner.data.record import Record
from tuner.data.shapes import Shaper, plain_record
from tuner.data.spec import Columns, SourceSpec
from tuner.errors import refuse
from tuner.fingerprint import digest_json
from tuner.safe_text import quoted

Tick = Callable[[str, int], None]  # (file, bytes read so far)


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
    """Records of one split and the account of its files, with what was found on the way."""

    records: list[Record]
    accounts: list[FileAccount]
    findings: list[Finding]


@dataclass(frozen=True)
class Limits:
    """What a record and a file may hold (bytes)."""

    record_bytes: int = 1 << 20
    file_bytes: int = 1 << 32


def no_tick(_file: str, _bytes: int) -> None:
    """Tells nobody."""


def read_source(spec: SourceSpec, split: str, folder: Path, seed: int, limits: Limits | None = None, tick: Tick = no_tick) -> Reading:
    """Read one source to its end. What cannot be used is returned as findings, so that the caller can gather those of every split."""
    limits = limits or Limits()
    records: list[Record] = []
    accounts: list[FileAccount] = []
    findings: list[Finding] = []
    if spec.hub is not None:
        faults = Faults(_hub_name(spec), split)
        part, read = _shaped(_hub_rows(spec), faults, spec.columns, split == PRODUCTION)
        digest = digest_json([r.hash for r in part])
        records, accounts, findings = part, [FileAccount(faults.file, split, digest, 0, read, read - len(part))], faults.found
    seen: list[str] = []
    for name in spec.files:
        faults = Faults(shown_path(name, folder), split)
        path = folder / os.path.expanduser(name)
        plain = os.path.normpath(path)
        if plain in seen:
            faults.stop("TWICE", "the same file twice in one source", "each file once", "name it once")
        else:
            seen.append(plain)
            part, account = read_file(path, faults, spec.columns, limits, tick)
            accounts.append(account)
            records.extend(part)
        findings += faults.found
    taken = _take(records, spec.take, seed)
    aside = Counter(r.file for r in records)
    aside.subtract(r.file for r in taken)
    return Reading(taken, [replace(a, not_taken=aside[a.file]) for a in accounts], findings)


PRODUCTION = "production"


def _take(records: list[Record], count: int | None, seed: int) -> list[Record]:
    """`count` records chosen by seed and content, in the order they were read: the same ones whatever their order."""
    if count is None or count >= len(records):
        return records
    ranked = sorted(range(len(records)), key=lambda i: (hashlib.sha256(f"{seed}:{records[i].hash}".encode()).digest(), i))
    return [records[i] for i in sorted(ranked[:count])]


def read_file(
    path: Path, faults: Faults, columns: Columns | None, limits: Limits, tick: Tick = no_tick, by_number: bool = False
) -> tuple[list[Record], FileAccount]:
    """Every record of one file, and its account. read = records + rejected, also where the file breaks off."""
    stream = Stream(path, faults, limits.record_bytes, limits.file_bytes, by_number)
    records: list[Record] = []
    read = 0
    try:
        kind = stream.kind(tuple(READERS))
        rows = _jsonl_records if kind == "jsonl" else _table_records
        for record in rows(stream, columns, faults.split == PRODUCTION, kind):
            read += 1
            if record is not None:
                records.append(record)
            if not read & 4095:
                tick(faults.file, stream.size)
        if read == 0:
            faults.stop("EMPTY", "no records", "at least one record", "remove the file from the recipe, or fill it")
    except Unreadable:
        pass
    except SharedLine:
        faults.found.clear()
        return read_file(path, faults, columns, limits, tick, by_number=True)
    tick(faults.file, stream.size)
    return records, FileAccount(faults.file, faults.split, stream.digest if stream.size else "", stream.size, read, read - len(records))


def _jsonl_records(stream: Stream, columns: Columns | None, questions_only: bool, _kind: str) -> Iterator[Record | None]:
    """The records of a JSONL file: the common forms straight from their bytes, all others the strict way."""
    shaper = Shaper(stream.faults, columns, questions_only)
    quick = columns is None and not questions_only
    faults = stream.faults
    for line in stream.lines():
        data = line.data
        if quick and data is not None:
            plain = plain_record(data, line.number, faults, shaper.shape)
            if plain is not None:
                shaper.shape = plain[0]
                yield plain[1]
                continue
        if data is None or data.strip():
            table = json_line(stream, line)
            yield None if table is None else shaper.record(line.number, table)


def _table_records(stream: Stream, columns: Columns | None, questions_only: bool, kind: str) -> Iterator[Record | None]:
    shaper = Shaper(stream.faults, columns, questions_only)
    for line, table in READERS[kind](stream):
        yield None if table is None else shaper.record(line, table)


def _shaped(rows: Iterable[Raw], faults: Faults, columns: Columns | None, questions_only: bool) -> tuple[list[Record], int]:
    shaper = Shaper(faults, columns, questions_only)
    read, records = 0, []
    with suppress(Unreadable):  # one fault too many
        for line, table in rows:
            read += 1
            record = None if table is None else shaper.record(line, table)
            if record is not None:
                records.append(record)
    return records, read


def _hub_name(spec: SourceSpec) -> str:
    return f"hub:{spec.hub}@{(spec.revision or '')[:12]}/{spec.hub_split}"


def _hub_rows(spec: SourceSpec) -> Iterator[Raw]:
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
