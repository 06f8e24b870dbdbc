"""The store: immutable numbered versions of named adapters, and evaluations added beside them.

It refuses names that could leave the store, versions that do not exist, and to write over anything published.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.artifact.manifest import MANIFEST, read_manifest
from tuner.catalog import suggestion
from tuner.durable import locked, seal, staging
from tuner.errors import Refusal, refuse
from tuner.safe_text import quoted

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # the same as recipe.NAME; holds no slash, so it cannot leave the store
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Version:
    """One published version. `folder` holds its files."""

    name: str
    number: int
    folder: Path

    @property
    def label(self) -> str:
        return f"{self.name}@{self.number}"


def publish(store: Path, name: str, fill: Callable[[Path, int], None]) -> Version:
    """Make the next version of `name`: `fill(stage, number)` writes its files, the manifest last; then one rename.

    Under a lock, so that two writers never get the same number. A failure leaves the store as it was.
    """
    home = _home(store, name)
    with locked(home, name), staging(home) as stage:
        number = max((int(p.name) for p in home.iterdir() if _NUMBER.fullmatch(p.name)), default=0) + 1  # a number once given is never given again
        fill(stage, number)
        if not (stage / MANIFEST).is_file():
            raise RuntimeError("a version needs its manifest before it can be published")
        seal(stage, home / str(number))
    return Version(name, number, home / str(number))


def add_evaluation(version: Version, label: str, fill: Callable[[Path], None]) -> Path:
    """Add a folder under the version's evaluations/; never replaces one. Returns the folder."""
    home = version.folder / "evaluations"
    with staging(home) as stage:
        fill(stage)
        taken = {p.name for p in home.iterdir()}
        name = next(n for n in (label, *(f"{label}-{i}" for i in range(2, 10_000))) if n not in taken)
        seal(stage, home / name)
    return home / name


def find(store: Path, wanted: str) -> Version:
    """`NAME@N`, or `NAME` for its latest version. Raises Refusal naming what there is."""
    name, at, number = wanted.partition("@")
    home = _home(store, name)
    numbers = _numbers(home)
    if not numbers:
        names = [n for n in _names(store) if _numbers(store / n)]
        refuse(store, wanted, f"no adapter {quoted(name)}", "one of: " + (", ".join(names) or "none yet"),
               suggestion(name, names) if names else "train one with `tuner run RECIPE`")  # fmt: skip
    if at and (not _NUMBER.fullmatch(number) or int(number) not in numbers):
        refuse(store, wanted, f"no version {quoted(number)} of {name}", "one of: " + ", ".join(map(str, numbers)), f"use {name}@{numbers[-1]}")
    chosen = int(number) if at else numbers[-1]
    return Version(name, chosen, home / str(chosen))


def version_at(folder: Path) -> Version | None:
    """The version whose folder this is, or None."""
    return Version(folder.parent.name, int(folder.name), folder) if _NUMBER.fullmatch(folder.name) and (folder / MANIFEST).is_file() else None


def versions(store: Path) -> list[tuple[Version, dict[str, Any] | None]]:
    """Every version of every name with its manifest, by name and number; None for one whose manifest is broken."""
    found = [Version(name, number, store / name / str(number)) for name in _names(store) for number in _numbers(store / name)]
    return [(v, _manifest_or_none(v)) for v in found]


def _manifest_or_none(version: Version) -> dict[str, Any] | None:
    try:
        return read_manifest(version.folder)
    except Refusal:
        return None


def latest_evaluation(version: Version) -> Path | None:
    """The evaluation written last, or None."""
    return next(iter(evaluations(version)), None)


def evaluations(version: Version) -> list[Path]:
    """Every evaluation of a version, the one written last first."""
    home = version.folder / "evaluations"
    done = [p for p in home.iterdir() if (p / "scores.json").is_file()] if home.is_dir() else []
    return sorted(done, key=lambda p: ((p / "scores.json").stat().st_mtime_ns, p.name), reverse=True)


def _home(store: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        refuse(store, "adapter name", quoted(name), "1 to 64 of a-z 0-9 . _ -, starting with a letter or digit", "use NAME or NAME@VERSION")
    return store / name


def _names(store: Path) -> list[str]:
    return sorted(p.name for p in store.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)) if store.is_dir() else []


def _numbers(home: Path) -> list[int]:
    if not home.is_dir():
        return []
    return sorted(int(p.name) for p in home.iterdir() if _NUMBER.fullmatch(p.name) and (p / MANIFEST).is_file())
