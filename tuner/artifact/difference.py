"""What differs between two versions, from their folders alone: records by split, base, template, libraries, code, machine and sizes.

It refuses nothing by itself; where a version's records cannot be read, the reader's refusal says so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tuner.artifact.manifest import read_manifest
from tuner.artifact.records import RECORDS, Table, read_records
from tuner.artifact.store import Version

MOST_PLACES = 10  # shown of each kind

Place = tuple[str, int]  # file, line
Change = dict[str, Any]  # {key, old, new}


def difference(old: Version, new: Version) -> dict[str, Any]:
    """What `new` has that `old` has not, and the other way round; whole manifests are compared, so only what differs is named."""
    a, b = read_manifest(old.folder), read_manifest(new.folder)
    return {
        "a": old.label, "b": new.label,
        "records": records_difference(read_records(old.folder / RECORDS), read_records(new.folder / RECORDS)),
        "base": changes(_base(a), _base(b)), "template": changes(_template(a), _template(b)), "versions": changes(a["versions"], b["versions"]),
        "hardware": changes(a["hardware"], b["hardware"]), "code": changes(a["code"], b["code"]), "parent": changes(_parent(a), _parent(b)),
        "sizes": changes(_sizes(a), _sizes(b)),
    }  # fmt: skip


def changes(old: Mapping[str, Any], new: Mapping[str, Any], above: str = "") -> list[Change]:
    """Key by key, nested ones by their dotted path, in the order of the first. A key that one lacks is None there."""
    found: list[Change] = []
    for key in [*old, *(k for k in new if k not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += changes(before, after, f"{above}{key}.")
        elif before != after:
            found.append({"key": f"{above}{key}", "old": before, "new": after})
    return found


def _base(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: manifest["base"].get(key) for key in ("name", "origin", "revision", "weight_digest", "load")}


def _template(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The digest, and each part that may be why it differs."""
    found = manifest["template"]
    return {key: found.get(key) for key in ("digest", "tokenizer_digest", "spec", "files")}


def _parent(manifest: Mapping[str, Any]) -> dict[str, Any]:
    found = (manifest.get("lineage") or {}).get("parent")
    return {"continued from": f"{found['name']}@{found['version']}" if found else None}


def _sizes(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes of the weights, and what they hold."""
    training = manifest["training"]
    weights = {name: facts["bytes"] for name, facts in manifest["files"].items() if name.endswith(".safetensors")}
    plan = training.get("plan") or {}
    return {"bytes": weights, "trainable_parameters": plan.get("trainable_parameters"), "steps": training.get("steps"),
            "records_trained": manifest["data"].get("trained"), "seconds": training.get("seconds")}  # fmt: skip


# --- records -------------------------------------------------------------------------------------------------------------


def records_difference(old: Table, new: Table) -> dict[str, Any]:
    """By split: how many records stayed, were added, removed, changed (same place or same prompt, other content) or came from another split."""
    before, after = _by_split(old), _by_split(new)
    arrived = {split: _left(rows, before.get(split, ())) for split, rows in after.items()}
    gone = {split: _left(rows, after.get(split, ())) for split, rows in before.items()}
    moved = _moved(arrived, gone)
    return {split: _of_split(len(before.get(split, ())), len(after.get(split, ())), arrived.get(split, []), gone.get(split, []), moved.get(split, []))
            for split in sorted({*before, *after}, key=lambda s: (s != "train", s))}  # fmt: skip


def _of_split(old: int, new: int, arrived: list[Known], gone: list[Known], moved: list[tuple[Known, str]]) -> dict[str, Any]:
    changed, added, removed = _changed(arrived, gone)
    pairs = [{"old": _where(r), "new": _where(a), "by": by} for r, a, by in changed[:MOST_PLACES]]
    came = [{"new": _where(row), "from": split} for row, split in moved[:MOST_PLACES]]
    return {
        "old": old, "new": new, "same": new - len(arrived) - len(moved), "added": _told(added), "removed": _told(removed),
        "changed": {"count": len(changed), "places": pairs}, "moved_here": {"count": len(moved), "places": came},
    }  # fmt: skip


def _moved(arrived: dict[str, list[Known]], gone: dict[str, list[Known]]) -> dict[str, list[tuple[Known, str]]]:
    """By split, the records that left another one for it; they are taken out of both lists."""
    moved: dict[str, list[tuple[Known, str]]] = defaultdict(list)
    taken: set[int] = set()
    left = {row[0]: (split, row) for split, rows in gone.items() for row in rows}
    for split, rows in arrived.items():
        for row in [r for r in rows if r[0] in left and left[r[0]][0] != split]:
            origin, away = left.pop(row[0], (None, None))
            if origin is not None and away is not None:
                moved[split].append((row, origin))
                taken |= {id(row), id(away)}
    for rows in (*arrived.values(), *gone.values()):
        rows[:] = [row for row in rows if id(row) not in taken]
    return moved


Known = tuple[bytes, bytes, Place]  # content, prompt, place


def _by_split(table: Table) -> dict[str, list[Known]]:
    rows: dict[str, list[Known]] = defaultdict(list)
    for split, file, line, content, prompt in zip(table.split.tolist(), table.file.tolist(), table.line.tolist(), table.hash, table.prompt, strict=True):
        rows[table.splits[split]].append((content.tobytes(), prompt.tobytes(), (table.files[file], line)))
    return rows


def _left(these: Sequence[Known], others: Sequence[Known]) -> list[Known]:
    """What these have more than the others, equal ones counted."""
    there = Counter(h for h, _, _ in others)
    left = []
    for row in these:
        if there[row[0]] > 0:
            there[row[0]] -= 1
        else:
            left.append(row)
    return left


_SAME: dict[str, Callable[[Known], Any]] = {"same place": lambda row: row[2], "same prompt": lambda row: row[1] if any(row[1]) else None}


def _changed(added: list[Known], removed: list[Known]) -> tuple[list[tuple[Known, Known, str]], list[Known], list[Known]]:
    """Pairs of one removed and one added that are the same record edited, and what is left of both."""
    pairs: list[tuple[Known, Known, str]] = []
    for by, key in _SAME.items():
        waiting: dict[Any, list[Known]] = defaultdict(list)
        for row in removed:
            waiting[key(row)].append(row)
        matched = [(waiting[key(row)].pop(0), row, by) for row in added if key(row) is not None and waiting[key(row)]]
        used = {id(r) for pair in matched for r in pair[:2]}
        added, removed = [r for r in added if id(r) not in used], [r for r in removed if id(r) not in used]
        pairs += matched
    return pairs, added, removed


def _told(rows: Sequence[Known]) -> dict[str, Any]:
    return {"count": len(rows), "places": [_where(r) for r in rows[:MOST_PLACES]]}


def _where(row: Known) -> str:
    return f"{row[2][0]}:{row[2][1]}"
