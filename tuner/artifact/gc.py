"""What may be deleted from a store: retired versions that nothing needs, and what processes that ended left half-made.

It refuses remote stores, and to delete what an alias stands for, what a version that stays was continued from, or anything while a manifest or a
log cannot be read: what that one needs is not known then. A deleted number is kept in the log and never given again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.artifact import history
from tuner.artifact.manifest import LATER, read_manifest
from tuner.artifact.store import NUMBER, Version, names
from tuner.durable import left_behind, locked, move_away, readable
from tuner.errors import Refusal, refuse
from tuner.safe_text import quoted

Key = tuple[str, int]  # name, number


@dataclass(frozen=True, slots=True)
class Going:
    """What may be deleted: a version, or a staging folder (`version` is None)."""

    folder: Path
    version: Version | None
    bytes: int
    why: str

    @property
    def label(self) -> str:
        return self.version.label if self.version is not None else f"{self.folder.parent.name}/{self.folder.name}"


@dataclass(frozen=True, slots=True)
class Kept:
    """A version that stays, and what for."""

    version: Version
    why: str


@dataclass(frozen=True, slots=True)
class Garbage:
    """Everything of a store, as `gc` sees it."""

    going: tuple[Going, ...]
    kept: tuple[Kept, ...]

    def as_dict(self) -> dict[str, Any]:
        going = [{"what": g.label, "bytes": g.bytes, "why": g.why} for g in self.going]
        return {"going": going, "bytes": sum(g.bytes for g in self.going), "kept": [{"what": k.version.label, "why": k.why} for k in self.kept]}


def garbage(store: Path) -> Garbage:
    """What may go and what stays, and why. Deletes nothing. Raises Refusal for a remote store."""
    from tuner.artifact.remote import place_of, remote_of

    if remote_of(store) is not None:
        refuse(place_of(store), "gc", "a remote store", "a local one: there a version is renamed aside before its first file goes",
               "delete the folder of a retired version with the store's own tools")  # fmt: skip
    known = {v.key: v for v in _known(store)}
    stays = _staying(known)
    going = [Going(v.folder, v.version, _bytes(v.folder), v.why_going) for key, v in known.items() if key not in stays]
    kept = [Kept(known[key].version, why) for key, why in stays.items()]
    left = [Going(folder, None, _bytes(folder), "left half-made by a process that ended") for folder in _left(store)]
    return Garbage(tuple(sorted(going, key=lambda g: g.label) + left), tuple(sorted(kept, key=lambda k: (k.version.name, k.version.number))))


def collect(store: Path, by: str, why: str = "gc") -> Garbage:
    """Delete what may go; gives what went. Every name that something goes from is locked meanwhile, so that nothing is published on top of it.

    First the log says that the version is removed, then it leaves its place in one step, then its files are deleted: a process that ends in between
    leaves no half of a version in sight, and the next `gc` goes on with it. Raises Refusal where an alias was moved meanwhile.
    """
    with ExitStack() as held:
        found = garbage(store)
        homes = _homes(store, found)
        for name in homes:
            held.enter_context(locked(store / name, name))
        found = garbage(store) if homes else found
        _refuse_unlocked(store, found, homes)
        _refuse_foreign(found)
        for item in found.going:
            if item.version is not None:
                _note_removal(item, by, why)
            move_away(item.folder)
    return found


def _homes(store: Path, found: Garbage) -> list[str]:
    """The names that something goes from."""
    return sorted({item.folder.relative_to(store).parts[0] for item in found.going if item.folder.parent != store})


def _refuse_unlocked(store: Path, found: Garbage, locked_names: list[str]) -> None:
    """Raises Refusal, before anything is written, where by now something goes from another name too."""
    for name in _homes(store, found):
        if name not in locked_names:
            refuse(store / name, "gc", "more to delete than a moment ago: somebody wrote meanwhile", "a store at rest", "run gc again")


def _note_removal(item: Going, by: str, why: str) -> None:
    version, home = item.version, item.folder.parent
    assert version is not None
    now = history.state(home)
    if version.number in now.removed:  # noted before a removal that was cut short
        return
    if now.pointing_at(version.number) or version.number not in now.retired:
        refuse(version.label, "gc", "in use again: somebody wrote meanwhile", "a retired version", "run gc again")
    facts = {"manifest_digest": _manifest(version).get("digest"), "bytes": item.bytes, "retired": now.retired[version.number]}
    history.append(home, now.count, "remove", version.number, None, by, why, facts)


def _refuse_foreign(found: Garbage) -> None:
    """Raises Refusal, before anything is written, where a folder that should go belongs to another user."""
    for item in found.going:
        if os.geteuid() not in (0, item.folder.stat().st_uid):
            refuse(item.folder, "gc", "a folder of another user", "folders of this user", "let its owner run gc")


# --- what needs what -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Known:
    """A version's folder with what decides about it. `manifest` is None where it cannot be read; `stays_for` is empty where it may go by itself."""

    version: Version
    manifest: dict[str, Any] | None
    stays_for: str
    why_going: str

    @property
    def folder(self) -> Path:
        return self.version.folder

    @property
    def key(self) -> Key:
        return self.version.name, self.version.number


def _known(store: Path) -> Iterator[_Known]:
    for name in names(store):
        home = store / name
        with readable(home):
            numbers = sorted(int(p) for p in os.listdir(home) if NUMBER.fullmatch(p))
        for number in numbers:
            version = Version(name, number, home / str(number))
            yield _Known(version, _manifest(version) or None, *_fate(home, number))


def _fate(home: Path, number: int) -> tuple[str, str]:
    """(what it stays for, why it may go), one of them empty, parents left aside."""
    try:
        now = history.state(home)
    except Refusal:
        return "the log of its name cannot be read", ""
    if number in now.removed:
        return "", f"its removal was cut short: {quoted(now.removed[number])}"
    aliases = now.pointing_at(number)
    if aliases:
        return f"{', '.join(aliases)} stands for it", ""
    return ("", f"retired: {quoted(now.retired[number])}") if number in now.retired else ("not retired", "")


def _staying(known: Mapping[Key, _Known]) -> dict[Key, str]:
    """Every version that stays, with the reason: those that do by themselves, and whatever they were continued from, however far back."""
    stays = {key: v.stays_for for key, v in known.items() if v.stays_for}
    digests: dict[Any, list[Key]] = {}
    for key, v in known.items():
        digests.setdefault((v.manifest or {}).get("digest"), []).append(key)
    unread = next((v.version.label for key, v in known.items() if key in stays and v.manifest is None), None)
    if unread is not None:
        return {key: v.stays_for or f"{unread} cannot be read, so what it was continued from is not known" for key, v in known.items()}
    waiting = list(stays)
    while waiting:
        child = known[waiting.pop()]
        for parent in _parents(child.manifest or {}, digests):
            if parent in known and parent not in stays:
                stays[parent] = f"{child.version.label} was continued from it"
                waiting.append(parent)
    return stays


def _parents(manifest: Mapping[str, Any], digests: Mapping[Any, list[Key]]) -> list[Key]:
    """The versions that a manifest may mean by its parent: the one of that name and number, and any with that digest under another."""
    said = (manifest.get("lineage") or {}).get("parent") or {}
    named = [(str(said["name"]), int(said["version"]))] if "name" in said and "version" in said else []
    return named + (digests.get(said["manifest_digest"], []) if said.get("manifest_digest") else [])


def _manifest(version: Version) -> dict[str, Any]:
    """The manifest, empty where it cannot be read."""
    try:
        return read_manifest(version.folder)
    except Refusal:
        return {}


# --- what lies about -----------------------------------------------------------------------------------------------


def _left(store: Path) -> list[Path]:
    """Staging folders of processes that ended: of versions, of log entries, and of what was being added to a version."""
    homes = [store / name for name in names(store)]
    with readable(store):
        later = [folder / kind for home in homes for folder in home.iterdir() if NUMBER.fullmatch(folder.name) for kind in LATER]
        places = [place for place in (store, *homes, *(home / history.FOLDER for home in homes), *later) if place.is_dir()]
    return [left for place in places for left in left_behind(place)]


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_symlink() or path.is_file())
