"""What must not leave this machine: secrets, personal data and home folders in the text files of a version, looked for before anything is sent.

It refuses every secret; personal data and home folders where nobody allowed them. A find is shown by file, line and kind, never by its value.
"""

from __future__ import annotations

import html
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tuner.data import personal
from tuner.errors import Collector, refuse

HOME_PATH = "home_path"
WEIGHTS = frozenset({".safetensors", ".gguf", ".bin", ".npz"})
# A vocabulary holds pieces of every kind of text and nothing that anybody wrote for this adapter.
VOCABULARIES = frozenset({"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"})
HEADER_BYTES = 100 << 20  # the limit of safetensors itself
# These hold texts of the data, so personal data is looked for; in the others an address is the author's own business.
_OF_DATA = re.compile(r"findings\.json|records\.parquet|train_log\.jsonl|(?:evaluations|exports)/.*")
_NOBODY = r"(?!(?:user(?:name)?|you|yourname|example|shared|public)\b)"  # as documentation writes it
_HOMES = rf"(?<![\w.~-])(?:/home/|/Users/|(?i:[a-z]:(?:\\{{1,2}}|/)users(?:\\{{1,2}}|/))){_NOBODY}[\w.-]+|(?<![\w.~-])/root(?=/)"
_ESCAPED = re.compile(r'"(?:[^"\\\n]|\\.)*\\(?:[^"\\\n]|\\.)*"')  # a JSON string that reads differently when decoded


@dataclass(frozen=True, slots=True)
class Leak:
    """A find: `kind` is one of personal.KINDS or `home_path`, `shown` its mask."""

    file: str
    line: int
    kind: str
    what: str
    shown: str

    @property
    def is_secret(self) -> bool:
        return self.kind != HOME_PATH and personal.KINDS[self.kind].group == "secret"


def refuse_leaks(folder: Path, names: Iterable[str], allow_personal: bool = False) -> None:
    """Raises Refusal with every find in these files of `folder`. `allow_personal` lets personal data and home folders pass, never a secret."""
    collector = Collector()
    for leak in scan(folder, names):
        if leak.is_secret:
            collector.add(f"{folder / leak.file}:{leak.line}", leak.kind, f"{leak.what}: {leak.shown}", "no secret in anything that leaves this machine",
                          "revoke it, take it out of recipe and data, and train again")  # fmt: skip
        elif not allow_personal:
            collector.add(f"{folder / leak.file}:{leak.line}", leak.kind, f"{leak.what}: {leak.shown}", "no personal data and no home folder in what leaves",
                          "leave the file out, redact (data.redact), name files relative to the recipe; or --allow-personal")  # fmt: skip
    collector.raise_if_any()


def refuse_leaking_texts(texts: Mapping[str, str], where: object) -> None:
    """Raises Refusal with every secret and home folder in texts that will be files of a version, by their name there."""
    collector = Collector()
    for leak in (leak for name, text in texts.items() for leak in scan_text(text, name)):
        collector.add(where, f"{leak.kind} in {leak.file}:{leak.line}", f"{leak.what}: {leak.shown}", "nothing of the kind in a version for a remote store",
                      "take it out of the recipe, name files relative to it, or publish into a local store")  # fmt: skip
    collector.raise_if_any()


def scan(folder: Path, names: Iterable[str]) -> list[Leak]:
    """What is found in the files `names` of `folder`, by file and line: secrets and home folders everywhere, personal data where texts of the data are."""
    return [leak for name in sorted(set(names)) for leak in _in_file(folder / name, name)]


def scan_text(text: str, name: str) -> list[Leak]:
    """The same of a text that would be the file `name`."""
    return _once(_in_text(text, name, _OF_DATA.fullmatch(name) is not None))


def _in_file(path: Path, name: str) -> list[Leak]:
    of_data = _OF_DATA.fullmatch(name) is not None
    if path.name in VOCABULARIES:
        return []
    if path.suffix == ".parquet":
        return _once(leak for line, text in _cells(path) for leak in _in_text(text, name, of_data, line))
    if path.suffix == ".safetensors":
        return _once(_in_text(_header(path), name, of_data))
    if path.suffix in WEIGHTS:
        return []
    return _once(_in_text(path.read_bytes().decode("utf-8", "replace"), name, of_data))


def _once(leaks: Iterable[Leak]) -> list[Leak]:
    return sorted(set(leaks), key=lambda leak: (leak.file, leak.line, leak.kind, leak.shown))


def _in_text(text: str, name: str, of_data: bool, line: int | None = None) -> Iterator[Leak]:
    """`line`: of the whole text; else each find's own."""
    yield from _found(text, name, of_data, line, text, 0)
    if name.endswith((".json", ".jsonl", ".html", ".safetensors", ".ipynb")):
        for match in _ESCAPED.finditer(text):
            yield from _found(_decoded(match[0]), name, of_data, line, text, match.start())
    if name.endswith((".html", ".md")) and "&" in text:
        start = 0
        for written in text.splitlines(keepends=True):
            if "&" in written:
                yield from _found(html.unescape(written), name, of_data, line, text, start)
            start += len(written)


def _found(text: str, name: str, of_data: bool, line: int | None, whole: str, at: int) -> Iterator[Leak]:
    """Finds in `text`, which stands in `whole` from `at` on (there perhaps spelt otherwise)."""

    def line_of(start: int) -> int:
        return line if line is not None else whole.count("\n", 0, at + (start if text is whole else 0)) + 1

    for hit in personal.find(text):
        kind = personal.KINDS[hit.kind]
        if kind.group == "secret" or of_data:
            yield Leak(name, line_of(hit.start), hit.kind, kind.what, personal.masked(text, hit))
    for match in _home_paths(str(Path.home())).finditer(text):
        yield Leak(name, line_of(match.start()), HOME_PATH, "an absolute path below a home folder", f"…({len(match[0])} characters)/…")


@cache
def _home_paths(own: str) -> re.Pattern[str]:
    """Home folders as they are called on Linux, macOS and Windows, and this user's, wherever it is."""
    return re.compile(_HOMES + (rf"|(?<![\w.~-]){re.escape(own)}(?=[/\\])" if len(own) > 2 else ""))


def _decoded(literal: str) -> str:
    try:
        return str(json.loads(literal))
    except ValueError:
        return ""


def _header(path: Path) -> str:
    """The JSON at the head of a safetensors file; tensors hold no text. Raises Refusal where there is none."""
    with open(path, "rb") as file:
        head = file.read(8)
        size = struct.unpack("<Q", head)[0] if len(head) == 8 else HEADER_BYTES + 1
        if size > HEADER_BYTES:
            refuse(path, "", "no safetensors header", "weights as safetensors writes them", "export the adapter again")
        return file.read(size).decode("utf-8", "replace")


def _cells(path: Path) -> Iterator[tuple[int, str]]:
    """Row number, from 1, and text of every string in a table, nested ones too."""
    import pyarrow.parquet as parquet

    row = 0
    for batch in parquet.ParquetFile(path).iter_batches():
        for cells in batch.to_pylist():
            row += 1
            yield from ((row, text) for text in _strings(cells.values()))
    for key, value in (parquet.read_schema(path).metadata or {}).items():
        yield 1, f"{key.decode('utf-8', 'replace')}: {value.decode('utf-8', 'replace')}"


def _strings(values: Iterable[object]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from _strings([*value.keys(), *value.values()])
        elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
            yield from _strings(value)
        elif isinstance(value, bytes | bytearray):
            yield bytes(value).decode("utf-8", "replace")
