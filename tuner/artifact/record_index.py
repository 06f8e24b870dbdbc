"""The index STORE/.records: which record stands in which version, by content, prompt and near copy. Made of every version's records.parquet.

It may be deleted at any time: what is missing, stale or broken is made again from the versions. It refuses nothing; a version whose records
cannot be read is named in every answer. A new segment takes in those no larger than itself, so there are few, and a search reads a few blocks of each.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.artifact.manifest import MANIFEST, read_manifest
from tuner.artifact.record_segments import ASIDE, SUFFIX, Broken, Content, Row, Rows, Segment, Source, Stamp, Wanted, exact, matches, rows_in, write_segment
from tuner.artifact.records import RECORDS, Table, read_records
from tuner.artifact.store import Version, names
from tuner.durable import locked
from tuner.errors import Refusal, refuse
from tuner.fingerprint import digest_file

FOLDER = ".records"
MOST_ROWS = 1 << 20  # rows that smaller segments are joined up to
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_CANNOT_WRITE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.ENOTDIR, errno.EEXIST})


@dataclass(frozen=True)
class Unread:
    """A version whose records are not known, and why."""

    version: Version
    why: str
    digest: str | None = None
    parent: str | None = None


@dataclass(frozen=True)
class RecordIndex:
    """Every record of every version that is there now. `built` counts the versions read for this answer; `is_kept` is false where nothing could be written."""

    store: Path
    sources: dict[tuple[str, int], Source]
    unread: list[Unread]
    segments: list[Segment]
    built: int = 0
    is_kept: bool = True

    def rows(self, wanted: Wanted) -> list[Row]:
        """Every row that is meant, by the strongest way it was found. Raises Broken."""
        found: list[Row] = []
        taken: set[tuple[str, int]] = set()
        for segment in self.segments:
            own = {i: (s.name, s.number) for i, s in enumerate(segment.head.sources) if self.sources.get((s.name, s.number)) == s}
            own = {i: key for i, key in own.items() if key not in taken}  # a writer that was killed left a version in two segments
            taken |= set(own.values())
            found += rows_in(segment, own, matches(segment, wanted))
        return found

    def contents(self, prefix: str) -> list[Content]:
        """Every different content whose hash starts with these hex digits. Raises Broken."""
        found: dict[bytes, Content] = {}
        for segment in self.segments:
            for entry, digest in exact(segment, prefix):
                prompt, near = segment.between("prompt", entry, entry + 1)[0], segment.between("near", entry, entry + 1)[0]
                if digest not in found or near.any():
                    found[digest] = Content(digest.hex(), bytes(prompt) if prompt.any() else None, near if near.any() else None)
        return list(found.values())


def open_index(store: Path, spoilt: frozenset[Path] = frozenset()) -> RecordIndex:
    """The index of a store, brought up to what lies there now. `spoilt` segments are left out, and made again.

    Where the store cannot be written, what is missing is made for this answer alone.
    """
    wanted = _stamps(store)
    segments = _opened(store / FOLDER, spoilt)
    covered = _covered(segments, wanted)
    if len(covered) == len(wanted):
        return RecordIndex(store, covered, [], segments)
    try:
        (store / FOLDER).mkdir(exist_ok=True)
        with locked(store / FOLDER, "the index of records"):
            return _grown(store, store / FOLDER, spoilt, keep=True)
    except Refusal:  # the folder cannot be written, or is locked for good
        pass
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
    with tempfile.TemporaryDirectory(prefix="tuner-records-") as scratch:  # its files stay open, so they can be read when it is gone
        return _grown(store, Path(scratch), spoilt, keep=False)


def _grown(store: Path, folder: Path, spoilt: frozenset[Path], keep: bool) -> RecordIndex:
    """Read the versions that no segment holds, and write them with the segments that are no larger. Call it under the lock where `keep`."""
    wanted = _stamps(store)
    segments = _opened(store / FOLDER, spoilt, mend=keep)
    covered = _covered(segments, wanted)
    unread: list[Unread] = []
    built, rows = 0, Rows()
    for name, number in [key for key in wanted if key not in covered]:
        version = Version(name, number, store / name / str(number))
        try:
            source, table = _source(version, wanted[name, number])
        except Refusal as refusal:
            unread.append(_unread(version, refusal))
            continue
        rows.add(source, table)
        covered[name, number] = source
        built += 1
        if rows.count >= MOST_ROWS:
            segments, rows = _joined(folder, segments, rows, covered, keep), Rows()
    if rows.sources:
        segments = _joined(folder, segments, rows, covered, keep)
    return RecordIndex(store, covered, unread, segments, built, keep)


def _joined(folder: Path, segments: list[Segment], rows: Rows, covered: Mapping[tuple[str, int], Source], keep: bool) -> list[Segment]:
    """The segments with one more, which takes in those no larger than itself: of N rows there are log2(N) at most, each row written that often."""
    left = sorted(segments, key=lambda s: s.rows)
    gone = []
    while keep and left and left[0].rows <= rows.count and left[0].rows + rows.count <= MOST_ROWS:
        taken = {(s.name, s.number) for s in rows.sources}
        own = {s for s in left[0].head.sources if covered.get((s.name, s.number)) == s and (s.name, s.number) not in taken}
        try:
            rows.absorb(left[0], own)
        except Broken:  # whoever asks next finds it so, and makes it again
            break
        gone.append(left.pop(0))
    made = Segment(write_segment(folder, rows))
    for segment in gone:
        if segment.path != made.path:
            segment.path.unlink(missing_ok=True)
    return [made, *left]


def _opened(folder: Path, spoilt: frozenset[Path], mend: bool = False) -> list[Segment]:
    """Every segment with a whole head, the largest first. With `mend`, under the lock, the others are removed, and what killed writers left."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        segment = _segment_or_none(path) if path.suffix == SUFFIX and path not in spoilt else None
        if segment is not None:
            found.append(segment)
        elif mend and (path.suffix == SUFFIX or path.name.startswith(ASIDE)):
            path.unlink(missing_ok=True)
    return sorted(found, key=lambda s: (-s.rows, s.path.name))


def _segment_or_none(path: Path) -> Segment | None:
    try:
        return Segment(path)
    except (Broken, OSError):  # one that was joined to another is gone since the folder was listed; a folder is no segment
        return None


def _covered(segments: Iterable[Segment], wanted: Mapping[tuple[str, int], Stamp]) -> dict[tuple[str, int], Source]:
    """The sources that are as their versions are now."""
    return {(s.name, s.number): s for segment in reversed([*segments]) for s in segment.head.sources if wanted.get((s.name, s.number)) == s.stamp}


def _stamps(store: Path) -> dict[tuple[str, int], Stamp]:
    """Every version with a manifest; zeros for records that are not there."""
    found = {}
    for name in names(store):
        with os.scandir(store / name) as inside:
            numbers = sorted((int(p.name), p.path) for p in inside if _NUMBER.fullmatch(p.name))
        for number, folder in numbers:
            manifest, records = _stat(f"{folder}/{MANIFEST}"), _stat(f"{folder}/{RECORDS}")
            if manifest is not None:
                found[name, number] = (*manifest, *(records or (0, 0)))
    return found


def _stat(path: str) -> tuple[int, int] | None:
    try:
        facts = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return facts.st_size, facts.st_mtime_ns


def _source(version: Version, stamp: Stamp) -> tuple[Source, Table]:
    """A version's records, checked against its manifest. Raises Refusal."""
    manifest = read_manifest(version.folder)
    path = version.folder / RECORDS
    table = read_records(path)
    if _said(manifest, "files", RECORDS, "digest") != digest_file(path):
        refuse(path, "", "bytes that differ from the manifest", "the file as it was published", "restore the version from a copy")
    digest, parent = _descent(manifest)
    return Source(version.name, version.number, stamp, digest, parent, table.has_near, table.has_text, len(table)), table


def _descent(manifest: Mapping[str, Any]) -> tuple[str, str | None]:
    """A manifest's digest and that of its parent's, as far as it says so."""
    parent = _said(manifest, "lineage", "parent", "manifest_digest")
    return str(manifest.get("digest", "")), None if parent is None else str(parent)


def _said(facts: object, *keys: str) -> object:
    """What lies under these keys; None where one is missing."""
    for key in keys:
        facts = facts.get(key) if isinstance(facts, Mapping) else None
    return facts


def _unread(version: Version, refusal: Refusal) -> Unread:
    found = f"{refusal.problems[0].field} {refusal.problems[0].found}".strip()
    try:
        return Unread(version, found, *_descent(read_manifest(version.folder)))
    except Refusal:
        return Unread(version, found)
