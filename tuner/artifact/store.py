"""The store: immutable numbered versions of named adapters, and evaluations added beside them.

It refuses names that could leave the store, versions that do not exist, and to write over anything published.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tuner.artifact import history
from tuner.artifact.manifest import LATER, MANIFEST, read_manifest
from tuner.catalog import nearest, suggestion
from tuner.durable import ensure_own_folder, ensure_shared_folder, locked, readable, seal, staging
from tuner.errors import Refusal, refuse
from tuner.safe_text import quoted

if TYPE_CHECKING:
    from tuner.artifact.remote import Remote

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # the same as recipe.NAME; holds no slash, so it cannot leave the store
SCORES = "scores.json"
NUMBER = re.compile(r"[1-9][0-9]{0,8}")


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
    home, remote = _home(store, name), _remote(store)
    ensure_shared_folder(store)
    ensure_shared_folder(home)
    with locked(home, name), staging(home) as stage:
        number = _next_number(home) if remote is None else remote.claim(name, _next_number(home) - 1)
        fill(stage, number)
        if not (stage / MANIFEST).is_file():
            raise RuntimeError("a version needs its manifest before it can be published")
        if remote is not None:
            remote.send(name, number, stage)  # before it lies here: what is in a mirror was there
        seal(stage, home / str(number), frozen=True)
    return Version(name, number, home / str(number))


def _next_number(home: Path) -> int:
    """A number once given is never given again: not that of a spoilt version, nor that of a removed one."""
    return max(history.numbers_given(home), max((int(p) for p in os.listdir(home) if NUMBER.fullmatch(p)), default=0)) + 1


def add_evaluation(version: Version, label: str, fill: Callable[[Path], None]) -> Path:
    """Add a folder under the version's evaluations/; never replaces one. Returns the folder."""
    return add_later(version, "evaluations", label, fill)


def add_later(version: Version, kind: str, label: str, fill: Callable[[Path], None]) -> Path:
    """Add a folder of read-only files under the version's `kind`, one of manifest.LATER; never replaces one. Returns the folder."""
    home, remote = version.folder / kind, _remote(version.folder.parent.parent)
    if kind not in LATER:
        raise ValueError(f"{kind!r} is no folder that may be added to a version later")
    ensure_own_folder(home)
    with staging(home) as stage:
        fill(stage)
        taken = _taken(home, remote)
        name = next(n for n in (label, *(f"{label}-{i}" for i in range(2, 10_000))) if n not in taken)
        if remote is None:
            seal(stage, home / name, frozen=True)
        else:
            _send_then_seal(remote, stage, home / name)
    return home / name


def _taken(home: Path, remote: Remote | None) -> set[str]:
    """Names in a folder of additions, and those at the URL: also of what was begun there and never ended."""
    here = {p.name for p in home.iterdir()}
    if remote is None:
        return here
    from tuner.artifact.backends import reaching

    with reaching(remote.url, "reading"):
        return here | remote.backend.children(home.relative_to(remote.folder).as_posix())


def _send_then_seal(remote: Remote, stage: Path, folder: Path) -> None:
    """Before it lies here it is there: an evaluation that nobody else can see decides nothing."""
    remote.send_later(stage, folder)
    try:
        seal(stage, folder, frozen=True)
    except FileExistsError:  # another process of this machine saw it there meanwhile, and brought its small files
        remote.fetch_later(folder)


def find(store: Path, wanted: str) -> Version:
    """`NAME@N`, `NAME@ALIAS`, or `NAME` for its highest version that is not retired. Raises Refusal naming what there is."""
    name, at, which = wanted.partition("@")
    home, remote = _home(store, name), _remote(store)
    if remote is not None:
        remote.refresh(name)
    now = history.state(home)
    numbers = [n for n in _numbers(home) if n not in now.removed]
    if not numbers:
        _refuse_unknown(store, wanted, name)
    number = _latest(store, wanted, numbers, now) if not at else _number_said(store, wanted, which, numbers, now)
    if remote is not None:
        remote.fetch(name, number)
    return Version(name, number, home / str(number))


def _refuse_unknown(store: Path, wanted: str, name: str) -> NoReturn:
    remote = _remote(store)
    if remote is not None:
        remote.refresh(None)
    known = [known for known in names(store) if _has_versions(store / known)]
    if known:
        refuse(store, wanted, f"no adapter {quoted(name)}", "one of: " + ", ".join(known), suggestion(name, known))
    if _has_versions(store):
        refuse(store, wanted, f"no versions in this folder: it is itself the name {quoted(store.name)}", "the store, one folder above",
               f"--store {store.parent}")  # fmt: skip
    refuse(store, wanted, f"no adapter {quoted(name)}: no versions in this folder", "one of: none yet",
           "train one with `tuner run RECIPE`, or name the store with --store")  # fmt: skip


def _has_versions(home: Path) -> bool:
    """Also where they cannot be looked at, False."""
    try:
        return bool(_standing(home))
    except Refusal:
        return False


def _latest(store: Path, wanted: str, numbers: list[int], now: history.State) -> int:
    kept = [n for n in numbers if n not in now.retired]
    if not kept:
        refuse(
            store,
            wanted,
            "every version is retired: " + ", ".join(map(str, numbers)),
            "a name with a version in use",
            f'tuner retire --undo {wanted}@{numbers[-1]} --reason "…"',
        )
    return kept[-1]


def _number_said(store: Path, wanted: str, which: str, numbers: list[int], now: history.State) -> int:
    """The number that the word after `@` means: a number itself, or an alias."""
    name = wanted.partition("@")[0]
    if NUMBER.fullmatch(which) and int(which) in numbers:
        return int(which)
    if which in now.aliases:
        if now.aliases[which] not in numbers:
            refuse(store, wanted, f"version {now.aliases[which]}, which does not lie there", _one_of(numbers, now), f"restore it from a copy, or move {which}")
        return now.aliases[which]
    if NUMBER.fullmatch(which) and int(which) in now.removed:
        refuse(
            store,
            wanted,
            f"no version {which} of {name}: it was removed, {quoted(now.removed[int(which)])}",
            _one_of(numbers, now),
            f"use {name}@{numbers[-1]}",
        )
    is_alias = re.fullmatch(history.ALIAS, which) is not None
    what = f"no version nor alias {quoted(which)} of {name}" if is_alias else f"no version {quoted(which)} of {name}"
    refuse(store, wanted, what, _one_of(numbers, now), f"use {name}@{(nearest(which, now.aliases) if is_alias else None) or numbers[-1]}")


def _one_of(numbers: list[int], now: history.State) -> str:
    aliases = ", ".join(f"{alias} ({number})" for alias, number in sorted(now.aliases.items()))
    return "one of: " + ", ".join(map(str, numbers)) + (f"; or an alias: {aliases}" if aliases else "")


def version_at(folder: Path) -> Version | None:
    """The version whose folder this is, or None."""
    return Version(folder.parent.name, int(folder.name), folder) if NUMBER.fullmatch(folder.name) and (folder / MANIFEST).is_file() else None


def versions(store: Path) -> list[tuple[Version, dict[str, Any] | None]]:
    """Every version of every name with its manifest, by name and number; None for one whose manifest is broken."""
    remote = _remote(store)
    if remote is not None:
        remote.refresh(None)
    return [found for name in names(store) for found in versions_of(store / name)]


def versions_of(home: Path) -> list[tuple[Version, dict[str, Any] | None]]:
    """Those of one name, as `versions` gives them; of a remote store, those that its mirror has. Raises Refusal where this user may not look."""
    found = [Version(home.name, number, home / str(number)) for number in _standing(home)]
    return [(v, _manifest_or_none(v)) for v in found]


def _standing(home: Path) -> list[int]:
    """Numbers of the versions that are there and were not removed: a removal may have been cut short after it was decided."""
    try:
        removed = history.state(home).removed
    except Refusal:  # a broken log hides no version
        removed = {}
    return [n for n in _numbers(home) if n not in removed]


def _manifest_or_none(version: Version) -> dict[str, Any] | None:
    try:
        return read_manifest(version.folder)
    except Refusal:
        return None


def latest_evaluation(version: Version) -> Path | None:
    """The evaluation written last, or None."""
    return next(iter(evaluations(version)), None)


def evaluations(version: Version) -> list[Path]:
    """Every evaluation of a version, the one written last first: by the time in its scores, which a copy keeps and `touch` does not change."""
    home = version.folder / "evaluations"
    with readable(home):
        done = [p for p in home.iterdir() if (p / SCORES).is_file()] if home.is_dir() else []
    with readable(home):
        return done if len(done) < 2 else sorted(done, key=lambda p: (_written(p), p.name), reverse=True)


def _written(folder: Path) -> float:
    """When an evaluation was made, in seconds since 1970: as its scores say, or where they do not, the time of the file."""
    try:
        said = datetime.fromisoformat(str(read_scores(folder).get("created")))
    except (Refusal, ValueError):
        return (folder / SCORES).stat().st_mtime
    return (said if said.tzinfo else said.replace(tzinfo=UTC)).timestamp()


def read_scores(folder: Path) -> dict[str, Any]:
    """scores.json of an evaluation of a version. Raises Refusal where it is not what was written."""
    found = "no table of scores"
    try:
        scores = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        scores, found = None, f"unreadable: {error.strerror if isinstance(error, OSError) else error}"
    if not isinstance(scores, dict):
        of = folder.parent.parent
        refuse(folder / SCORES, "", found, "the scores as they were written", f"tuner evaluate {of.parent.name}@{of.name}")
    return scores


def _remote(store: Path) -> Remote | None:
    """What a mirror's folder mirrors. Imported where it is needed: most stores are plain folders."""
    from tuner.artifact.remote import remote_of

    return remote_of(store)


def home_of(store: Path, name: str) -> Path:
    """The folder of a name that has versions, its log as it is now. Raises Refusal."""
    bare, at, _ = name.partition("@")
    if at:
        refuse(store, "adapter name", quoted(name), "NAME alone", f"use {quoted(bare)}")
    home, remote = _home(store, name), _remote(store)
    if remote is not None:
        remote.refresh(name)
    if not _numbers(home):
        _refuse_unknown(store, name, name)
    return home


def _home(store: Path, name: str) -> Path:
    if not NAME.fullmatch(name):
        refuse(store, "adapter name", quoted(name), "1 to 64 of a-z 0-9 . _ -, starting with a letter or digit", "use NAME or NAME@VERSION")
    return store / name


def names(store: Path) -> list[str]:
    """Every name that has a folder in the store, also one without versions."""
    with readable(store):
        return sorted(p.name for p in store.iterdir() if p.is_dir() and NAME.fullmatch(p.name)) if store.is_dir() else []


def _numbers(home: Path) -> list[int]:
    with readable(home):
        return sorted(int(p.name) for p in home.iterdir() if NUMBER.fullmatch(p.name) and _has_manifest(p)) if home.is_dir() else []


def _has_manifest(folder: Path) -> bool:
    """True also where this user may not look: that one is a version which is refused, and none that the version before it stands in for."""
    try:
        return (folder / MANIFEST).is_file()
    except PermissionError:
        return True
