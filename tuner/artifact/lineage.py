"""Where a version comes from, what came of it, and which versions saw a record: answered from the store alone.

It refuses a place that holds no record and a hash that is none; a version that could not be looked at is named in the answer, never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tuner.artifact import history
from tuner.artifact.manifest import MANIFEST, is_as_written, read_manifest
from tuner.artifact.near_copies import prompt_digest, signatures
from tuner.artifact.record_index import RecordIndex, Unread, open_index
from tuner.artifact.record_segments import EXACT, Broken, Row, Wanted
from tuner.artifact.records import RECORDS, texts_holding
from tuner.artifact.remote import remote_of
from tuner.artifact.store import Version, versions
from tuner.errors import Refusal, refuse
from tuner.safe_text import quoted

MOST_TRIES = 100  # segments found broken, and made again, for one answer
LEAST_DIGITS = 12  # of a hash: as many as findings name a record by
HOLDS = "holds the text"  # how a record is found by a phrase, where texts were kept
ROLES = {"train": "trained on", "rehearsal": "trained on", "canaries": "planted and trained on", "validation": "watched while training"}
GRADED = "only graded on"
TRAINED_ON = frozenset({ROLES["train"], ROLES["canaries"]})

if TYPE_CHECKING:
    from tuner.data.record import Record

T = TypeVar("T")


@dataclass(frozen=True)
class Sought:
    """What somebody asks for: a record's content, a prompt, or a phrase. `said` is how they named it, without the text."""

    said: str
    wanted: tuple[Wanted, ...]
    phrase: str | None = None
    texts: tuple[str, ...] = ()  # the words of the record, where they are known: what files are searched for


@dataclass(frozen=True)
class Use:
    """One record of one version: where it stood, how it was found, and the aliases that point at the version now."""

    version: Version
    split: str
    file: str
    line: int
    hash: str
    how: str
    jaccard: float
    aliases: tuple[str, ...] = ()

    @property
    def role(self) -> str:
        return ROLES.get(self.split, GRADED)

    @property
    def is_trained_on(self) -> bool:
        return self.role in TRAINED_ON

    def as_dict(self) -> dict[str, Any]:
        return {
            "version": self.version.label, "split": self.split, "file": self.file, "line": self.line, "hash": self.hash, "how": self.how,
            "jaccard": round(self.jaccard, 3), "role": self.role, "aliases": list(self.aliases),
        }  # fmt: skip


@dataclass(frozen=True)
class Heir:
    """A version that was not trained on a record itself, but continues one that was."""

    version: Version
    through: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trace:
    """Which versions saw a record. `exact_only` are those whose records have no signatures: there only equal content is found."""

    sought: Sought
    uses: list[Use]
    heirs: list[Heir]
    unread: list[Unread]
    exact_only: list[str]
    versions: int
    records: int
    built: int
    is_kept: bool
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "sought": self.sought.said, "uses": [u.as_dict() for u in self.uses],
            "continued": [{"version": h.version.label, "through": h.through, "aliases": list(h.aliases)} for h in self.heirs],
            "not_looked_at": [{"version": u.version.label, "why": u.why} for u in self.unread], "exact_only": self.exact_only,
            "versions": self.versions, "records": self.records, "notes": self.notes,
        }  # fmt: skip


# --- what is asked for ---------------------------------------------------------------------------------------------------


def sought_record(records: Sequence[Record], said: str) -> Sought:
    """A record, in each of the forms that its recipe may have given it."""
    return Sought(said, tuple(_wanted(r.hash, r.question) for r in records), texts=tuple(dict.fromkeys(r.question for r in records)))


def sought_text(text: str) -> Sought:
    """A whole prompt: the same or nearly. A phrase inside a longer prompt is found only where texts were kept."""
    if prompt_digest(text) is None:
        refuse("command line", "--text", "no words", "the words of a prompt", "write the prompt as a user would have sent it")
    return Sought("a text", (_wanted(None, text),), phrase=text.strip(), texts=(text.strip(),))


def sought_hash(said: str) -> Sought:
    """A content hash, or the beginning of one. Raises Refusal where it is none."""
    digits = said.strip().lower().removeprefix("sha256:")
    if not re.fullmatch(rf"[0-9a-f]{{{LEAST_DIGITS},64}}", digits):
        refuse("command line", "--hash", quoted(said), f"sha256: and {LEAST_DIGITS} to 64 hex digits", "copy it from records.parquet, or the id of a finding")
    return Sought(f"hash {digits[:LEAST_DIGITS]}", (Wanted(prefix=digits),))


def _wanted(content: str | None, question: str) -> Wanted:
    prompt = prompt_digest(question)
    return Wanted(
        None if content is None else content.removeprefix("sha256:"),
        None if prompt is None else bytes.fromhex(prompt.removeprefix("sha256:")),
        None if prompt is None else signatures([question])[0],
    )


# --- who saw it ----------------------------------------------------------------------------------------------------------


def trace(store: Path, sought: Sought) -> Trace:
    """Every version of every name that has this record or a near copy. Raises Refusal where a hash's beginning means several contents."""
    return steady(store, lambda index: _traced(index, sought))


def steady(store: Path, ask: Callable[[RecordIndex], T]) -> T:
    """The answer of an index in which nothing was broken: what is, is made again."""
    _bring(store)
    spoilt: frozenset[Path] = frozenset()
    for _ in range(MOST_TRIES):
        try:
            return ask(open_index(store, spoilt))
        except Broken as broken:
            spoilt |= {broken.args[0]}
    refuse(store, "index of records", f"broken {MOST_TRIES} times, each time made again", "a disk that keeps what is written", "look at the disk")


def _bring(store: Path) -> None:
    """Fetch what a remote store's mirror lacks of manifests, logs and records."""
    remote = remote_of(store)
    if remote is not None:
        for version, _ in versions(store):
            if not (version.folder / RECORDS).is_file():
                remote.fetch(version.name, version.number, only=(RECORDS,))


def _traced(index: RecordIndex, sought: Sought) -> Trace:
    wanted = [w if w.near is not None or w.prefix is None else _known(index, w) for w in sought.wanted]
    rows = [row for w in wanted for row in index.rows(w)]
    named = _Named(index.store)
    uses = _uses(rows, named) + _phrase_uses(index, sought, named)
    strongest: dict[tuple[str, str, str, int], Use] = {}
    for use in uses:
        at = (use.version.label, use.split, use.file, use.line)
        strongest[at] = max(strongest.get(at, use), use, key=lambda u: (u.how == EXACT, u.jaccard))
    found = sorted(strongest.values(), key=_in_order)
    exact_only = sorted(f"{s.name}@{s.number}" for s in index.sources.values() if not s.has_near)
    counts = len(index.sources), sum(s.rows for s in index.sources.values())
    heirs = _heirs(index, {u.version.label for u in found if u.is_trained_on}, named)
    return Trace(sought, found, heirs, index.unread, exact_only, *counts, index.built, index.is_kept, [*_limits(wanted, sought), *named.notes])


def _known(index: RecordIndex, wanted: Wanted) -> Wanted:
    """The same with prompt and signature of the content that the hash means, as far as any version has them."""
    assert wanted.prefix is not None
    contents = index.contents(wanted.prefix)
    if len({c.hash for c in contents}) > 1:
        refuse("command line", "--hash", f"{len(contents)} records whose hash begins so", "the hash of one", "write more of its digits")
    return Wanted(wanted.prefix, contents[0].prompt, contents[0].near) if contents else wanted


def _uses(rows: Iterable[Row], named: _Named) -> list[Use]:
    return [Use(named.version(r.source.name, r.source.number), r.split, r.file, r.line, r.hash, r.how, r.jaccard,
                named.aliases(r.source.name, r.source.number)) for r in rows]  # fmt: skip


def _phrase_uses(index: RecordIndex, sought: Sought, named: _Named) -> list[Use]:
    """Records whose kept text holds the phrase."""
    if sought.phrase is None:
        return []
    keeping = [named.version(s.name, s.number) for s in index.sources.values() if s.has_text]
    return [Use(v, *found, HOLDS, 0.0, named.aliases(v.name, v.number)) for v in keeping for found in texts_holding(v.folder / RECORDS, sought.phrase)]


def _in_order(use: Use) -> tuple[Any, ...]:
    roles = [*dict.fromkeys(ROLES.values()), GRADED]
    return use.version.name, use.version.number, roles.index(use.role), use.how != EXACT, -use.jaccard, use.file, use.line


def _heirs(index: RecordIndex, trained: set[str], named: _Named) -> list[Heir]:
    """Versions that continue one of these, or one that does, but were not trained on the record themselves."""
    made: dict[str, list[tuple[str, int, str]]] = {}
    digests = {f"{s.name}@{s.number}": s.digest for s in index.sources.values()}
    digests |= {u.version.label: u.digest for u in index.unread if u.digest}
    for name, number, digest, parent in [*((s.name, s.number, s.digest, s.parent) for s in index.sources.values()),
                                         *((u.version.name, u.version.number, u.digest or "", u.parent) for u in index.unread)]:  # fmt: skip
        if parent:
            made.setdefault(parent, []).append((name, number, digest))
    found: dict[str, Heir] = {}
    queue = sorted(trained & digests.keys())
    while queue:
        through = queue.pop(0)
        for name, number, _ in made.get(digests[through], ()):
            label = f"{name}@{number}"
            if label not in found and label not in trained:
                found[label] = Heir(named.version(name, number), through, named.aliases(name, number))
                queue.append(label)
    return sorted(found.values(), key=lambda h: (h.version.name, h.version.number))


class _Named:
    """Versions and the aliases that point at them, each name's log read once. `notes` say which could not be read."""

    def __init__(self, store: Path):
        self.store, self.states, self.notes = store, dict[str, history.State](), list[str]()

    def version(self, name: str, number: int) -> Version:
        return Version(name, number, self.store / name / str(number))

    def state(self, name: str) -> history.State:
        if name not in self.states:
            try:
                self.states[name] = history.state(self.store / name)
            except Refusal as refusal:
                self.notes.append(f"the log of {name} cannot be read, so its aliases are not known: {refusal.problems[0].found}")
                self.states[name] = history.State()
        return self.states[name]

    def aliases(self, name: str, number: int) -> tuple[str, ...]:
        return tuple(self.state(name).pointing_at(number))


def _limits(wanted: Sequence[Wanted], sought: Sought) -> list[str]:
    """What this question could not find."""
    said = []
    if sought.phrase is not None:
        said.append("a text is held against whole prompts: the same one, or one that differs in a few words; a phrase inside a longer prompt is found "
                    "only in versions trained with artifact.keep_text, and a text that stands in answers alone only there")  # fmt: skip
    if all(w.near is None for w in wanted):
        said.append("no version has a signature of this record, so near copies were not looked for: ask by --record or --text")
    return said


# --- where a version comes from ------------------------------------------------------------------------------------------


def lineage(store: Path, version: Version) -> dict[str, Any]:
    """Everything the store knows of a version's descent: parents to the root, children, data, base, code, machine, and what was decided about it."""
    manifest = read_manifest(version.folder)
    everyone = [(v, m) for v, m in versions(store) if m is not None]
    data, training = manifest["data"], manifest["training"]
    return {
        "version": version.label, "created": manifest["created"], "manifest_digest": manifest["digest"],
        "parents": _parents(manifest, everyone, store), "children": _children(manifest["digest"], everyone),
        "data": {"splits": data["splits"], "files": data["files"], "dropped": data["dropped"], "same_data": _same_data(version, data, everyone)},
        "base": {key: manifest["base"].get(key) for key in ("name", "origin", "revision", "weight_digest", "load")},
        "recipe": {"digest": manifest["recipe_digest"], "file": manifest.get("recipe_file")}, "template": manifest["template"]["digest"],
        "code": manifest["code"], "versions": manifest["versions"], "hardware": manifest["hardware"], "seed": manifest["seed"],
        "training_seed": manifest.get("training_seed", manifest["seed"]),
        "seconds": {"training": training.get("seconds"), "with_saving": training.get("wall_seconds")}, "run": (manifest.get("lineage") or {}).get("run"),
        "changed_on_resume": (manifest.get("lineage") or {}).get("changed", []), **_decided(store / version.name, version.number),
    }  # fmt: skip


def _parents(manifest: Mapping[str, Any], everyone: Sequence[tuple[Version, dict[str, Any]]], store: Path) -> list[dict[str, Any]]:
    """The chain of versions that were continued, the nearest first, each checked by the digest that its child recorded."""
    by_label = {v.label: m for v, m in everyone}
    by_digest = {m.get("digest"): v.label for v, m in everyone}
    chain: list[dict[str, Any]] = []
    said = (manifest.get("lineage") or {}).get("parent")
    while said and said["manifest_digest"] not in {p["manifest_digest"] for p in chain}:
        label = f"{said['name']}@{said['version']}"
        other = by_label.get(label)
        if other is not None and other.get("digest") == said["manifest_digest"]:
            state = _checked(store / said["name"] / str(said["version"]), other)
        elif said["manifest_digest"] in by_digest:
            label, state = by_digest[said["manifest_digest"]], f"there, under another name than {label}"
            other = by_label[label]
        elif other is not None:
            other, state = None, "another version lies there: its digest is not the one that was recorded"
        else:
            state = _gone(store / said["name"], said["version"])
        chain.append({"version": label, "manifest_digest": said["manifest_digest"], "state": state, "is_there": other is not None})
        said = (other.get("lineage") or {}).get("parent") if other is not None else None
    return chain


def _checked(folder: Path, manifest: dict[str, Any]) -> str:
    is_whole = is_as_written(manifest, (folder / MANIFEST).read_bytes())
    return "there, with the digest that was recorded" if is_whole else "there, but its manifest was changed after it was written"


def _gone(home: Path, number: int) -> str:
    try:
        why = history.state(home).removed.get(number)
    except Refusal:
        why = None
    return "missing from this store" if why is None else f"removed: {why}"


def _children(digest: str, everyone: Sequence[tuple[Version, dict[str, Any]]]) -> list[str]:
    return [v.label for v, m in everyone if ((m.get("lineage") or {}).get("parent") or {}).get("manifest_digest") == digest]


def _same_data(version: Version, data: Mapping[str, Any], everyone: Sequence[tuple[Version, dict[str, Any]]]) -> list[str]:
    """Other versions whose every split holds the same records."""
    own = {split: facts["digest"] for split, facts in data["splits"].items()}
    return [v.label for v, m in everyone
            if v.label != version.label and {s: f.get("digest") for s, f in (m.get("data") or {}).get("splits", {}).items()} == own]  # fmt: skip


def _decided(home: Path, number: int) -> dict[str, Any]:
    """What the log says of a version: aliases it has and had, whether it is retired, and the records it is marked for."""
    now = history.state(home)
    told, holder = [], dict[str, int | None]()
    for entry in history.entries(home):
        moved_away = entry.alias is not None and holder.get(entry.alias) == number != entry.version
        if entry.version == number or moved_away:
            told.append({key: getattr(entry, key) for key in ("number", "what", "version", "alias", "by", "why", "created")})
        if entry.alias is not None and entry.what in ("promote", "rollback"):
            holder[entry.alias] = entry.version
    return {"aliases": now.pointing_at(number), "retired": now.retired.get(number), "to_forget": now.marked.get(number, []), "log": told}
