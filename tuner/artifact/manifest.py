"""The manifest: what a version is made of, with the digest of every file. A version without one is not a version.

It refuses a folder whose files differ from their digests, and a schema newer than this program.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tuner.durable import json_text
from tuner.errors import Collector, refuse
from tuner.fingerprint import digest_file

SCHEMA = 1
MANIFEST = "manifest.json"
LATER = "evaluations"  # added beside a version after it was sealed


def write_manifest(stage: Path, facts: dict[str, Any]) -> None:
    """Write manifest.json over everything now in `stage`. Must be the last file written there."""
    files = {p.relative_to(stage).as_posix(): {"bytes": p.stat().st_size, "digest": digest_file(p)} for p in sorted(stage.rglob("*")) if p.is_file()}
    (stage / MANIFEST).write_text(json_text({"schema": SCHEMA, "status": "complete", **facts, "files": files}), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a version. Raises Refusal when it is absent, broken, or of a later schema."""
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        refuse(folder, MANIFEST, "no manifest", "a version written by tuner", "name an adapter as NAME@VERSION; `tuner list` shows them")
    except (OSError, ValueError) as error:
        refuse(file, "", f"unreadable: {error}", "the manifest as it was written", "restore the folder from a copy")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        refuse(file, "schema", "no schema number", f"schema {SCHEMA}", "restore the folder from a copy")
    if manifest["schema"] > SCHEMA:
        refuse(file, "schema", manifest["schema"], f"at most {SCHEMA}", "this version was written by a newer tuner: upgrade tuner")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """Check every file against its digest, and that nothing was added. Returns the manifest; raises Refusal with all differences."""
    manifest = read_manifest(folder)
    collector = Collector()
    listed: dict[str, Any] = manifest.get("files", {})
    for name, facts in listed.items():
        path = folder / name
        if not path.is_file():
            collector.add(path, "", "no such file", "the file as it was published", "restore the version from a copy")
        elif path.stat().st_size != facts["bytes"] or digest_file(path) != facts["digest"]:
            collector.add(path, "", "bytes that differ from the manifest", facts["digest"], "restore the version from a copy; do not serve it")
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in listed and name != MANIFEST and not name.startswith(f"{LATER}/"):
            collector.add(path, "", "a file that the manifest does not list", "the files as published", "remove it")
    collector.raise_if_any()
    return manifest
