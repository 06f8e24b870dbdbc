"""Rows made once and kept: flat arrays in the user's cache, named by everything that decides what is in them, for other ranks and later runs.

It trusts no byte that is not as it was written: an entry that is damaged is made again, and nothing in it is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from tuner.base import cache_folder
from tuner.data.record import Record
from tuner.data.splits import REHEARSAL
from tuner.durable import ensure_folder, seal, staging
from tuner.errors import refuse
from tuner.fingerprint import digest_file, digest_json, library_versions
from tuner.template.tokens import IGNORED, Encoder, Row

SCHEMA = 1
ABOUT = "entry.json"
ARRAYS = ("tokens", "loss", "facts")  # every token (T,) int32; does it carry loss (T,) bool; a line of FACTS for each row (N,) int64
FACTS = ("end", "split", "file", "line", "prompt_tokens", "cut_tokens", "merged")
WORTH_KEEPING = 10_000  # records; fewer are tokenised again before a cache would have been looked at
KEPT_ENTRIES, KEPT_BYTES = 16, 20_000_000_000  # those used last stay

Rows = Mapping[str, Sequence[Row]]


class Damaged(Exception):
    """An entry that is not as it was written."""


@dataclass(frozen=True)
class CachedRows(Sequence[Row]):
    """The rows of one split, in their order, read from the mapped arrays when asked for.

    Without `records` a row's record holds its place and no words: enough to name it.
    """

    tokens: NDArray[np.int32]
    loss: NDArray[np.bool_]
    facts: NDArray[np.int64]
    first_token: int
    split: str
    files: Sequence[str]
    records: Sequence[Record] | None = None

    def __len__(self) -> int:
        return len(self.facts)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        end, _, file, line, prompt_tokens, cut_tokens, merged = self.facts[index].tolist()
        begin = int(self.facts[index - 1, 0]) if index else self.first_token
        ids = self.tokens[begin:end]
        labels = np.where(self.loss[begin:end], ids, IGNORED)
        record = self.records[index] if self.records is not None else Record((), self.files[file], line, self.split)
        return Row(ids.tolist(), labels.tolist(), prompt_tokens, record, cut_tokens, bool(merged))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every row (N,)."""
        return np.diff(self.facts[:, 0], prepend=self.first_token)


# --- asked for by whoever has the records ----------------------------------------------------------------------------


def rows_of(encoder: Encoder, records: Mapping[str, Sequence[Record]], *, shared: bool = False) -> tuple[dict[str, list[Row]], Path | None]:
    """Every record's row by split, and the cache's entry that holds them. Raises Refusal with the records that cannot become rows.

    Read from the cache if they are there, else made; kept if other ranks will read them (`shared`) or if there are many.
    """
    keep = shared or sum(map(len, records.values())) >= WORTH_KEEPING
    entry = rows_folder() / rows_key(encoder, records).removeprefix("sha256:")
    if keep and entry.exists():
        try:
            kept = read_rows(entry, records)
        except Damaged:
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.utime(entry)
            return {split: list(rows) for split, rows in kept.items()}, entry
    made = {split: speaking(encoder, split).rows(of) for split, of in records.items()}
    if shared:
        write_rows(entry, made)
    elif keep:
        with contextlib.suppress(OSError):  # a full or read-only disk: these rows are not needed there
            write_rows(entry, made)
    return made, entry if shared else None


def speaking(encoder: Encoder, split: str) -> Encoder:
    """The encoder of a split: general records are rehearsed as they would be asked elsewhere, without the recipe's system prompt."""
    return encoder.without_system() if split == REHEARSAL else encoder


def rows_folder() -> Path:
    """$XDG_CACHE_HOME/tuner/rows, or ~/.cache/tuner/rows: only this user may look into it, since rows are the data."""
    return cache_folder() / "rows"


def rows_key(encoder: Encoder, records: Mapping[str, Sequence[Record]]) -> str:
    """Digest of everything that decides the rows: the records that the checks left, by split, content and place, and what turns them into tokens.

    The checks' settings decide nothing else, so they are in it through the records. A template that writes the date has other rows every day.
    """
    found = hashlib.sha256()
    for split, of in records.items():
        found.update(digest_json([split, len(of)]).encode())
        for record in of:
            found.update(digest_json([record.hash, record.file, record.line]).encode())
    versions = library_versions()
    how = {
        "schema": SCHEMA, "encoder": encoder.digest, "stops": sorted(encoder.stop_ids), "template": encoder.spec.model_dump(mode="json"),
        "versions": {name: versions[name] for name in ("tuner", "tokenizers")}, "code": _code_digest(),
        "day": date.today().isoformat() if "strftime_now" in encoder.template.source else None,
    }  # fmt: skip
    return digest_json([found.hexdigest(), how])


def _code_digest() -> str:
    """Digest of the code that makes rows: its version number does not change while it is being worked on."""
    return digest_json({p.name: digest_file(p) for p in sorted(Path(__file__).parent.rglob("*.py"))})


# --- an entry --------------------------------------------------------------------------------------------------------


def write_rows(entry: Path, rows: Rows) -> None:
    """Put an entry into the cache, whole or not at all, and remove those that were not used for longest. Leaves one that is there as it is."""
    ensure_folder(entry.parent)
    entry.parent.chmod(0o700)
    with staging(entry.parent) as stage:
        files = sorted({r.record.file for of in rows.values() for r in of})
        for name, array in zip(ARRAYS, _arrays(rows, files), strict=True):
            np.save(stage / f"{name}.npy", np.asarray(array), allow_pickle=False)
        digests = {name: digest_file(stage / f"{name}.npy") for name in ARRAYS}
        about = {"schema": SCHEMA, "key": entry.name, "splits": list(rows), "files": files, "digests": digests}
        (stage / ABOUT).write_text(json.dumps({**about, "digest": digest_json(about)}), encoding="utf-8")
        with contextlib.suppress(FileExistsError):  # another run made the same at the same time
            seal(stage, entry)
    _remove_unused(entry)


def _arrays(rows: Rows, files: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64]]:
    number, every = {file: i for i, file in enumerate(files)}, [(s, r) for s, of in enumerate(rows.values()) for r in of]
    lengths = np.asarray([len(r.input_ids) for _, r in every], dtype=np.int64)
    tokens, loss = np.empty(lengths.sum(), dtype=np.int32), np.empty(lengths.sum(), dtype=np.bool_)
    facts, end = np.empty((len(every), len(FACTS)), dtype=np.int64), 0
    for i, (split, row) in enumerate(every):
        begin, end = end, end + len(row.input_ids)
        tokens[begin:end], loss[begin:end] = row.input_ids, np.not_equal(row.labels, IGNORED)
        facts[i] = end, split, number[row.record.file], row.record.line, row.prompt_tokens, row.cut_tokens, row.merged
    return tokens, loss, facts


def _remove_unused(newest: Path) -> None:
    """Keep at most KEPT_ENTRIES and KEPT_BYTES. A rank that has mapped an entry keeps what it mapped."""
    entries = [p for p in newest.parent.iterdir() if p.is_dir() and (p / ABOUT).is_file() and p != newest]
    left = [newest, *sorted(entries, key=lambda p: p.stat().st_mtime, reverse=True)]
    size = 0
    for count, path in enumerate(left):
        size += sum(f.stat().st_size for f in path.iterdir())
        if count >= KEPT_ENTRIES or (count and size > KEPT_BYTES):
            shutil.rmtree(path, ignore_errors=True)


def read_rows(entry: Path, records: Mapping[str, Sequence[Record]] | None = None) -> dict[str, CachedRows]:
    """The rows of every split, mapped into memory after every byte was compared with its digest. Raises Damaged."""
    about = _about(entry)
    try:
        if any(digest_file(entry / f"{name}.npy") != about["digests"][name] for name in ARRAYS):
            raise Damaged("its arrays are not as they were written")
        tokens, loss, facts = (np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS)
    except (OSError, ValueError, KeyError) as error:
        raise Damaged(str(error)) from None
    first = 0
    found: dict[str, CachedRows] = {}
    for number, split in enumerate(about["splits"]):
        last = int(np.searchsorted(facts[:, 1], number, side="right"))
        begin = int(facts[first - 1, 0]) if first else 0
        found[split] = CachedRows(tokens, loss, facts[first:last], begin, split, about["files"], None if records is None else records[split])
        first = last
    return found


def _about(entry: Path) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads((entry / ABOUT).read_text(encoding="utf-8"))
        whole = {k: v for k, v in said.items() if k != "digest"}
        if said["digest"] != digest_json(whole) or said["schema"] != SCHEMA or said["key"] != entry.name:
            raise Damaged("what it says of itself was changed")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(str(error)) from None
    return said


def rows_from_main(entry: Path) -> dict[str, CachedRows]:
    """What the main rank put into the cache, on another rank. Raises Refusal where it is not to be had whole."""
    try:
        return read_rows(entry)
    except Damaged as damaged:
        refuse(entry, "rows", str(damaged), "the rows that the main rank wrote, in a cache that every machine of the run sees",
               "set XDG_CACHE_HOME to a folder that all machines share")  # fmt: skip


def lengths_of(rows: Sequence[Row]) -> list[int]:
    """Tokens of every row, without making rows that are only mapped."""
    return rows.lengths.tolist() if isinstance(rows, CachedRows) else [len(row.input_ids) for row in rows]
