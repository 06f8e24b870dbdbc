"""A file's bytes as numbered lines: unpacked, limited, hashed and decoded while they stream past, a block at a time.

It refuses what is not what its name says, what unpacks without end, and text that is not UTF-8; the line and byte offset are always right.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tuner.catalog import nearest
from tuner.data.findings import Finding
from tuner.data.personal import hide
from tuner.safe_text import quoted

BLOCK = 1 << 20  # bytes read at a time
FREE_BYTES = 1 << 26  # an unpacked size below this is never called a bomb
MOST_RATIO = 250  # unpacked bytes per packed byte; text packs 3 to 50 times, deflate at most 1,032
MOST_FAULTS = 1_000_000  # kept of one file
MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
LONGEST_MARK = 4  # bytes


class Line(NamedTuple):
    """A line without its line feed. `data` is None where the line was longer than a record may be; `size` is its true length (bytes)."""

    number: int
    offset: int
    data: bytes | None
    size: int
    ended: bool


class Unreadable(Exception):
    """The file cannot be read further. The finding that says why is already among the file's faults."""


@dataclass
class Faults:
    """The findings of one file, as they are met."""

    file: str
    split: str
    found: list[Finding] = field(default_factory=list)

    def add(self, check: str, code: str, line: int, field_: str, found: str, accepted: str, fix: str) -> None:
        """Raises Unreadable at the fault that is one too many: a packed file of a few kilobytes can hold millions."""
        if len(self.found) >= MOST_FAULTS:
            check, code, field_, found = "files", "TOO_MANY", "", f"more than {MOST_FAULTS} faults; the rest of the file was not read"
            accepted, fix = "a file of records", "look at the first few, and convert the file"
        self.found.append(Finding(check, code, "error", self.file, line, "", hide(field_), hide(found), hide(accepted), hide(fix), self.split))
        if code == "TOO_MANY":
            raise Unreadable

    def stop(self, code: str, found: str, accepted: str, fix: str, line: int = 0) -> Unreadable:
        """A fault of the whole file, to be raised."""
        self.add("files", code, line, "", found, accepted, fix)
        return Unreadable()


@dataclass
class Stream:
    """One file being read: its faults, limits, and what has been seen of it so far."""

    path: Path
    faults: Faults
    max_record_bytes: int
    max_file_bytes: int
    by_number: bool = False
    size: int = 0
    _hash: object = field(default_factory=hashlib.sha256)

    @property
    def digest(self) -> str:
        """Digest of the unpacked bytes read so far."""
        return "sha256:" + self._hash.hexdigest()  # type: ignore[attr-defined, no-any-return]

    def kind(self, kinds: tuple[str, ...]) -> str:
        """What the file's name says it holds. Raises Unreadable."""
        suffixes = [s.lower() for s in self.path.suffixes]
        if suffixes and suffixes[-1] in UNPACKERS:
            suffixes.pop()
        kind = suffixes[-1].lstrip(".") if suffixes else ""
        if kind not in kinds and not self.path.exists():
            raise self._missing()
        if kind not in kinds and self.path.is_dir():
            raise self.faults.stop("NOT_A_FILE", "a folder", "a file", "name the files in it")
        if kind not in kinds:
            raise self.faults.stop(
                "SUFFIX", f"a file ending in {quoted(''.join(self.path.suffixes) or self.path.name)}",
                "one of: " + ", ".join(f".{k}" for k in kinds) + ", each also .gz or .zst", "rename it to what it is, or convert it")  # fmt: skip
        return kind

    @property
    def packed(self) -> str:
        """`.gz`, `.zst` or nothing."""
        return self.path.suffix.lower() if self.path.suffix.lower() in UNPACKERS else ""

    def blocks(self) -> Iterator[bytes]:
        """The unpacked bytes, a block at a time, counted and hashed. Raises Unreadable."""
        try:
            if self.path.exists() and not self.path.is_file():
                raise self.faults.stop("NOT_A_FILE", "a folder" if self.path.is_dir() else "a pipe or device", "a file", "name the files themselves")
            packed_bytes = self.path.stat().st_size
            if packed_bytes > self.max_file_bytes:
                raise self._too_large(f"{packed_bytes} bytes")
            with open(self.path, "rb") as raw:
                yield from self._counted(_with_head(self._unpacked(raw)), packed_bytes)
        except FileNotFoundError:
            raise self._missing() from None
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            raise self.faults.stop(
                "UNREADABLE", getattr(error, "strerror", None) or str(error), "a readable file", "check the path and its permissions"
            ) from None
        if not self.size:
            raise self.faults.stop("EMPTY", "0 bytes", "at least one record", "remove the file from the recipe, or fill it")

    def _unpacked(self, raw: BinaryIO) -> Iterator[bytes]:
        if self.packed:
            yield from UNPACKERS[self.packed](self, raw)
            return
        while block := raw.read(BLOCK):
            yield block

    def _counted(self, blocks: Iterator[bytes], packed_bytes: int) -> Iterator[bytes]:
        limit = self.max_file_bytes if not self.packed else min(self.max_file_bytes, max(FREE_BYTES, packed_bytes * MOST_RATIO))
        for block in blocks:
            if not self.size:
                self._refuse_other_kinds(block)
            self.size += len(block)
            if self.size > limit:
                raise self._too_large(f"more than {limit} bytes unpacked from {packed_bytes}")
            self._hash.update(block)  # type: ignore[attr-defined]
            yield block

    def _too_large(self, found: str) -> Unreadable:
        return self.faults.stop("TOO_LARGE", found, f"at most {self.max_file_bytes} bytes, and {MOST_RATIO} times its packed size",
                                "split it, or raise data.max_file_bytes")  # fmt: skip

    def _refuse_other_kinds(self, block: bytes) -> None:
        for mark, name in MARKS:
            if block.startswith(mark):
                raise self.faults.stop("ENCODING", f"{name} text", "UTF-8 text", f"convert it: iconv -f {name} -t UTF-8")
        if self.path.suffix.lower() in {".parquet"} or self.kind(TEXT_KINDS_AND_PARQUET) == "parquet":
            return
        for magic, name in ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstandard"), (b"PAR1", "parquet"), (b"PK\x03\x04", "zip")):
            if block.startswith(magic):
                raise self.faults.stop(
                    "OTHER_KIND",
                    f"{name} data under the name {quoted(self.path.name)}",
                    "a file named after what it holds",
                    "rename it to what it is, or unpack it",
                )
        if b"\x00" in block[:4]:
            raise self.faults.stop("ENCODING", "null bytes at the start, as in UTF-16 or UTF-32 text", "UTF-8 text", "convert it: iconv -f UTF-16 -t UTF-8")

    def _missing(self) -> Unreadable:
        folder = self.path.parent
        near = nearest(self.path.name, (p.name for p in folder.iterdir() if p.exists())) if folder.is_dir() else None
        return self.faults.stop("MISSING", f"no such file (looked in {folder.name or '.'}/)", "an existing file",
                                f"did you mean {near}?" if near else "paths in a recipe start at the recipe's folder")  # fmt: skip

    def lines(self) -> Iterator[Line]:
        """Every line, blank ones too, without byte order mark and line feed. A line longer than a record may be comes without its data."""
        number, offset, rest, skipped, first = 1, 0, b"", 0, True
        for block in self.blocks():
            if first and block.startswith(codecs.BOM_UTF8):
                block = block[3:]
                offset = 3
            first = False
            parts = block.split(b"\n")
            for part in parts[:-1]:
                size = skipped + len(rest) + len(part)
                data = None if skipped or size > self.max_record_bytes else rest + part if rest else part
                yield Line(number, offset, data, size, True)
                number, offset, rest, skipped = number + 1, offset + size + 1, b"", 0
            rest += parts[-1]
            if len(rest) > self.max_record_bytes:
                skipped, rest = skipped + len(rest), b""
        if rest or skipped:
            yield Line(number, offset, None if skipped else rest, skipped + len(rest), False)


def _with_head(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes, the first block long enough to hold any mark: what is unpacked may begin with a block of one byte."""
    head = b""
    for block in blocks:
        head += block
        if len(head) >= LONGEST_MARK:
            break
    if head:
        yield head
    yield from blocks


def _gunzip(stream: Stream, raw: BinaryIO) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=raw) as packed:
            while block := packed.read(BLOCK):
                yield block
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise stream.faults.stop("BROKEN_PACKING", f"a broken gzip file: {error}", "a whole gzip file", "copy or pack it again") from None


def _unzstd(stream: Stream, raw: BinaryIO) -> Iterator[bytes]:
    import pyarrow as arrow

    try:
        with arrow.CompressedInputStream(arrow.PythonFile(raw), "zstd") as packed:
            while block := packed.read(BLOCK):
                yield block
    except (arrow.ArrowException, OSError) as error:
        raise stream.faults.stop("BROKEN_PACKING", f"a broken zstandard file: {quoted(error, 80)}", "a whole zstandard file", "copy or pack it again") from None


UNPACKERS: dict[str, Callable[[Stream, BinaryIO], Iterator[bytes]]] = {".gz": _gunzip, ".zst": _unzstd}
TEXT_KINDS_AND_PARQUET = ("jsonl", "json", "csv", "tsv", "parquet")


def shown_path(name: str, folder: Path) -> str:
    """A path as findings and artifacts show it: relative to the recipe's folder, so that no path of one machine gets out."""
    return os.path.relpath(name, folder) if os.path.isabs(name) else name
