"""The manifest: what a version is made of, with the digest of every file and its own. A version without one is not a version.

It refuses a folder whose files differ from their digests, and a schema newer than this program.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuner.durable import json_text, readable
from tuner.errors import Collector, refuse
from tuner.fingerprint import digest_file, digest_text
from tuner.safe_text import quoted

SCHEMA = 1
MANIFEST = "manifest.json"
LATER = ("evaluations", "exports", "signatures")  # folders added inside a version after it was sealed
_LATER = tuple(f"{folder}/" for folder in LATER)


def write_manifest(stage: Path, facts: dict[str, Any]) -> None:
    """Write manifest.json over everything now in `stage`. Must be the last file written there."""
    files = {p.relative_to(stage).as_posix(): {"bytes": p.stat().st_size, "digest": digest_file(p)} for p in sorted(stage.rglob("*")) if p.is_file()}
    whole = json.loads(json_text({"schema": SCHEMA, "status": "complete", **facts, "files": files}))  # as it will be read back
    (stage / MANIFEST).write_text(json_text({**whole, "digest": own_digest(whole)}), encoding="utf-8")


def own_digest(manifest: Mapping[str, Any]) -> str:
    """Digest of a manifest, or of an entry of the log, without its own digest."""
    return digest_text(json_text({k: v for k, v in manifest.items() if k != "digest"}))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a version. Raises Refusal when it is absent, broken, or of a later schema."""
    try:
        (folder / MANIFEST).stat()
    except FileNotFoundError:
        refuse(folder, MANIFEST, "no manifest", "a version written by tuner", "name an adapter as NAME@VERSION; `tuner list` shows them")
    except OSError:
        pass  # reading it says why
    return read_numbered(folder / MANIFEST, SCHEMA, "version", "restore the folder from a copy")[0]


def read_numbered(file: Path, schema: int, what: str, remedy: str) -> tuple[dict[str, Any], bytes]:
    """A JSON object with a schema number, at most `schema`, and its bytes. Raises Refusal where it is broken or newer."""
    try:
        data = file.read_bytes()
        said = json.loads(data)
    except PermissionError as error:
        refuse(file, "", f"unreadable: {error.strerror}", "a file this user may read", "mend its permissions")
    except (OSError, ValueError, RecursionError) as error:
        refuse(file, "", f"unreadable: {error}", f"the {what} as it was written", remedy)
    if not isinstance(said, dict) or not isinstance(said.get("schema"), int):
        refuse(file, "schema", "no schema number", f"schema {schema}", remedy)
    if said["schema"] > schema:
        refuse(file, "schema", said["schema"], f"at most {schema}", f"this {what} was written by a newer tuner: upgrade tuner")
    return said, data


def is_as_written(manifest: Mapping[str, Any], data: bytes) -> bool:
    """Is `data` byte for byte what was written for these facts, which hold their own digest?"""
    try:
        return bool(manifest.get("digest") == own_digest(manifest) and json_text(manifest).encode("utf-8") == data)
    except ValueError:  # NaN, or half of a surrogate pair: never written by us
        return False


def verify(folder: Path) -> dict[str, Any]:
    """Check every file against its digest, and that nothing was added. Returns the manifest; raises Refusal with all differences."""
    manifest = read_manifest(folder)
    with readable(folder / MANIFEST):
        data = (folder / MANIFEST).read_bytes()
    if not is_as_written(manifest, data):
        refuse(folder / MANIFEST, "digest", "a manifest that was changed after it was written", "the manifest as it was written",
               "restore the version from a copy; do not serve it")  # fmt: skip
    collector = Collector()
    listed = _listed(folder, manifest)
    for name, facts in listed.items():
        try:
            _compare(folder / name, facts, collector)
        except OSError as error:
            collector.add(folder / name, "", f"unreadable: {error.strerror}", "a file this user may read", "mend its permissions")
    with readable(folder):
        _find_unlisted(folder, listed, collector)
    collector.raise_if_any()
    return manifest


def _compare(path: Path, facts: dict[str, Any], collector: Collector) -> None:
    """One file against its entry in the manifest."""
    if path.is_symlink() or not path.is_file():
        collector.add(path, "", "a link" if path.is_symlink() else "no such file", "the file as it was published", "restore the version from a copy")
    elif path.stat().st_size != facts["bytes"] or digest_file(path) != facts["digest"]:
        collector.add(path, "", "bytes that differ from the manifest", facts["digest"], "restore the version from a copy; do not serve it")


def _find_unlisted(folder: Path, listed: dict[str, Any], collector: Collector) -> None:
    """What lies there and is in no manifest; and folders that this user cannot look into, which rglob passes over in silence."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name.startswith(_LATER):
            continue
        if path.is_symlink() or not path.is_dir():
            if name not in listed and name != MANIFEST:
                collector.add(path, "", "a file that the manifest does not list", "the files as published", "remove it")
        elif name not in LATER and not os.access(path, os.R_OK | os.X_OK):
            collector.add(path, "", "unreadable: Permission denied", "a folder this user may read", "mend its permissions")


def _listed(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The files of a manifest, which may come from anywhere. Raises Refusal where a name could leave the folder, or an entry is not bytes and a digest."""
    listed = manifest.get("files")
    collector = Collector()
    for name, facts in listed.items() if isinstance(listed, dict) else (("files", None),):
        is_entry = isinstance(facts, dict) and isinstance(facts.get("bytes"), int) and isinstance(facts.get("digest"), str)
        if not is_entry or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
            collector.add(folder / MANIFEST, "files", quoted(name), "a relative path with bytes and digest", "do not use it: tuner never writes such an entry")
    collector.raise_if_any()
    return dict(listed or {})
