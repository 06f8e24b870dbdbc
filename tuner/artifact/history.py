"""The log of a name: who moved which alias, retired, restored, marked or removed a version, when and why. One file an entry, each chained to the one before.

The log is the only truth about aliases, and making its next number is the compare-and-swap: an alias moves by its record or not at all. It refuses
an entry whose number somebody else took, and a log with an entry missing or changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from tuner.artifact.manifest import is_as_written, own_digest, read_numbered
from tuner.durable import ensure_shared_folder, json_text, readable, write_new
from tuner.errors import Problem, Refusal, refuse
from tuner.fingerprint import digest_bytes
from tuner.safe_text import quoted

SCHEMA = 1
FOLDER = "log"
ALIAS = r"[a-z][a-z0-9_-]{0,31}"  # starts with a letter, so it is never taken for a number
What = Literal["promote", "rollback", "retire", "restore", "forget", "remove"]
WHATS: tuple[str, ...] = get_args(What)
MOST_TEXT = 2000  # characters of a name or a reason
_FILE = re.compile(r"([0-9]{6,9})\.json")


class Moved(Refusal):
    """Somebody else wrote the entry that was to be written: read again, then decide."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. `previous` is the digest of the bytes of the entry before, empty in the first; `facts` says what else was known when it was written."""

    number: int
    what: str
    version: int | None
    alias: str | None
    by: str
    why: str
    created: str
    facts: dict[str, Any]
    previous: str


@dataclass(frozen=True, slots=True)
class State:
    """What holds after `count` entries. `marked` are hashes of records to be forgotten, `removed` why a version was deleted, by number of version."""

    aliases: dict[str, int] = field(default_factory=dict)
    retired: dict[int, str] = field(default_factory=dict)
    marked: dict[int, list[str]] = field(default_factory=dict)
    removed: dict[int, str] = field(default_factory=dict)
    count: int = 0

    def pointing_at(self, version: int) -> list[str]:
        """The aliases of a version, by name."""
        return sorted(alias for alias, number in self.aliases.items() if number == version)


def state(home: Path) -> State:
    """What holds now, by the newest entry alone. `home` is STORE/NAME. Raises Refusal where an entry is missing or the newest is broken."""
    numbers = _numbers(home)
    if not numbers:
        return State()
    _refuse_gap(home, numbers)
    return _state_said(home, numbers[-1], _read(home, numbers[-1])[0])


def entries(home: Path) -> list[Entry]:
    """Every entry, the oldest first. Raises Refusal where the log is not what was written: see `check_log`."""
    return check_log(home)


def check_log(home: Path) -> list[Entry]:
    """Every entry, held against the chain of digests and against what the entries before it leave. Raises Refusal naming the first that does not fit."""
    numbers = _numbers(home)
    _refuse_gap(home, numbers)
    now, previous, found = State(), "", []
    for number in numbers:
        facts, data = _read(home, number)
        entry = _entry_said(home, number, facts)
        if entry.previous != previous:
            _refuse_changed(home, number, "another entry before it than the one that lies there")
        now = _after(now, entry)
        if _state_said(home, number, facts) != now:
            _refuse_changed(home, number, "aliases or marks that its entries do not lead to")
        previous = digest_bytes(data)
        found.append(entry)
    return found


def append(
    home: Path, after: int, what: What, version: int | None, alias: str | None, by: str, why: str, facts: Mapping[str, Any] | None = None,
) -> Entry:  # fmt: skip
    """Write entry `after` + 1, durably, and with it what holds from then on. Of several writers exactly one is not refused.

    `forget` adds the record hashes of `facts["records"]` to the version's marks. Raises Refusal where the entry exists already: somebody was first.
    """
    _refuse_texts(home, by=by, why=why)
    before, previous = _ending(home, after)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entry = Entry(after + 1, what, version, alias, by, why, now, dict(facts or {}), previous)
    whole = {"schema": SCHEMA, **_entry_dict(entry), **_state_dict(_after(before, entry))}
    if not _created(home, entry.number, json_text({**whole, "digest": own_digest(whole)}).encode("utf-8")):
        _refuse_moved(home, after)
    return entry


def numbers_given(home: Path) -> int:
    """The highest version number that the log names, also where it is broken: training is not lost for it. 0 where it names none."""
    highest = 0
    for number in _numbers(home):
        try:
            said = json.loads(_path(home, number).read_bytes())["version"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        highest = max(highest, said if isinstance(said, int) else 0)
    return highest


# --- one entry -----------------------------------------------------------------------------------------------------


def _created(home: Path, number: int, data: bytes) -> bool:
    """True for the one writer that made this entry."""
    from tuner.artifact.remote import remote_of

    remote = remote_of(home.parent)
    if remote is not None:
        return remote.append(home.name, number, data)
    ensure_shared_folder(home / FOLDER)
    return write_new(_path(home, number), data)


def _ending(home: Path, after: int) -> tuple[State, str]:
    """What holds after entry `after`, and the digest of its bytes. Raises Refusal where there are more entries, or fewer."""
    numbers = _numbers(home)
    _refuse_gap(home, numbers)
    if len(numbers) != after:
        _refuse_moved(home, after)
    if after == 0:
        return State(), ""
    facts, data = _read(home, after)
    return _state_said(home, after, facts), digest_bytes(data)


def _after(now: State, entry: Entry) -> State:
    """What holds once `entry` was added."""
    aliases, retired, marked, removed = dict(now.aliases), dict(now.retired), dict(now.marked), dict(now.removed)
    version = entry.version
    if entry.what in ("promote", "rollback") and entry.alias is not None and version is not None:
        aliases[entry.alias] = version
    elif version is not None and entry.what == "retire":
        retired[version] = entry.why
    elif version is not None and entry.what == "restore":
        retired.pop(version, None)
    elif version is not None and entry.what == "forget":
        marked[version] = sorted({*marked.get(version, ()), *entry.facts.get("records", ())})
    elif version is not None and entry.what == "remove":
        removed[version] = entry.why
        retired.pop(version, None)
    return State(aliases, retired, marked, removed, entry.number)


def _entry_dict(entry: Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in Entry.__slots__}


def _state_dict(now: State) -> dict[str, Any]:
    return {"aliases": now.aliases, "retired": _by_text(now.retired), "marked": _by_text(now.marked), "removed": _by_text(now.removed)}


def _by_text(of: Mapping[int, Any]) -> dict[str, Any]:
    return {str(number): said for number, said in of.items()}


# --- what lies there -----------------------------------------------------------------------------------------------


def _path(home: Path, number: int) -> Path:
    return home / FOLDER / f"{number:06}.json"


def _numbers(home: Path) -> list[int]:
    folder = home / FOLDER
    with readable(folder):
        found = [_FILE.fullmatch(p.name) for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in found if match)


def _refuse_gap(home: Path, numbers: Iterable[int]) -> None:
    for wanted, number in enumerate(numbers, start=1):
        if number != wanted:
            refuse(_path(home, wanted), "", "no such entry, and later ones lie there", "every entry from the first on", "restore the log from a copy")


def _read(home: Path, number: int) -> tuple[dict[str, Any], bytes]:
    said, data = read_numbered(_path(home, number), SCHEMA, "entry", "restore the log from a copy")
    if not is_as_written(said, data):
        _refuse_changed(home, number, "an entry that was changed after it was written")
    return said, data


def _entry_said(home: Path, number: int, said: Mapping[str, Any]) -> Entry:
    try:
        entry = Entry(**{name: said[name] for name in Entry.__slots__})
    except KeyError as error:
        _refuse_changed(home, number, f"no {error.args[0]}")
    if entry.number != number or entry.what not in WHATS:
        _refuse_changed(home, number, f"number {quoted(entry.number)}, {quoted(entry.what)}")
    return entry


def _state_said(home: Path, number: int, said: Mapping[str, Any]) -> State:
    """The tables of one entry. Raises Refusal where they are not what `append` writes."""
    try:
        aliases = {str(alias): int(at) for alias, at in said["aliases"].items()}
        retired, marked, removed = ({int(n): v for n, v in said[table].items()} for table in ("retired", "marked", "removed"))
    except (KeyError, TypeError, ValueError, AttributeError):
        _refuse_changed(home, number, "no table of aliases, retired, marked and removed versions")
    if not all(re.fullmatch(ALIAS, alias) for alias in aliases):
        _refuse_changed(home, number, "a name that no alias can have")
    return State(aliases, retired, marked, removed, number)


def _refuse_changed(home: Path, number: int, found: str) -> NoReturn:
    refuse(_path(home, number), "", found, "the entry as it was written", "restore the log from a copy; who moved what is not certain any more")


def _refuse_moved(home: Path, after: int) -> NoReturn:
    where, accepted = str(home / FOLDER), f"entry {after + 1} as the next"
    raise Moved([Problem(where, "", "another entry: somebody wrote meanwhile", accepted, f"look again (`tuner log {home.name}`), then decide")])


def _refuse_texts(home: Path, **texts: str) -> None:
    for name, text in texts.items():
        if not text.strip() or len(text) > MOST_TEXT or not _is_unicode(text):
            refuse(home / FOLDER, name, quoted(text), f"1 to {MOST_TEXT:,} characters of text", f"say {name}, in a sentence")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
