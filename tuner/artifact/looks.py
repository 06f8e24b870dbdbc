"""How often each set of held-out records was opened in a store: the more versions are compared on it, the more its best number flatters.

An append-only file beside the versions. It refuses nothing; a line that cannot be read counts as no look.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from tuner.durable import ensure_folder, locked

LOOKS = "looks.jsonl"


def look(store: Path, digest: str, version: str, manifest_digest: str, created: str) -> dict[str, Any]:
    """Note that `version` is graded on the records with this digest, and say how often that was done before, this time included."""
    ensure_folder(store)
    with locked(store, LOOKS):
        _append(store / LOOKS, {"digest": digest, "version": version, "manifest_digest": manifest_digest, "created": created})
        return looks(store, digest)


def looks(store: Path, digest: str) -> dict[str, Any]:
    """The looks at the records with this digest: how many, for how many different adapters, and a sentence."""
    of = [entry for entry in _read(store / LOOKS) if entry.get("digest") == digest]
    labels = list({entry["manifest_digest"]: entry["version"] for entry in of}.values())
    return {"digest": digest, "count": len(of), "versions": labels, "words": _words(len(of), labels)}


def _words(count: int, labels: list[str]) -> str:
    if len(labels) <= 1:
        return f"held_out was opened {count} time{'s' if count != 1 else ''} in this store, for this version alone"
    return (
        f"held_out was opened {count} times in this store, for {len(labels)} versions ({', '.join(labels[-5:])}): "
        f"had the best of them been chosen by it, its number would flatter; a fresh held_out is the remedy"
    )


def _append(path: Path, entry: dict[str, Any]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, ("\n" + json.dumps(entry, sort_keys=True)).encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return found
    for line in text.split("\n"):
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and {"digest", "version", "manifest_digest"} <= set(entry):
                found.append(entry)
    return found
