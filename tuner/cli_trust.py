"""The commands about trust: verify says what was checked of a version, in numbers; sign vouches for it with a key.

They refuse a version with a byte changed, content that no adapter holds, a log that does not hang together, and a missing or invalid signature.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli_words import AsJson, Store
from tuner.errors import refuse
from tuner.telling import out, shown_path

if TYPE_CHECKING:
    from tuner.artifact.store import Version
    from tuner.artifact.untrusted import Payload

Verified = Annotated[str, typer.Argument(metavar="NAME@N", help="NAME@VERSION, NAME@ALIAS, NAME for the latest, or a version's folder", show_default=False)]
MaybeName = Annotated[str | None, typer.Argument(metavar="NAME@N", help="NAME@VERSION, NAME@ALIAS, or NAME for the latest", show_default=False)]
PublicKeys = Annotated[list[Path] | None, typer.Option("--key", metavar="PUBLIC.pem", help="a key that must have signed it; repeatable", show_default=False)]
PrivateKeyFile = Annotated[Path | None, typer.Option("--key", metavar="PRIVATE.pem", help="the private key to sign with", show_default=False)]
NewKey = Annotated[Path | None, typer.Option("--new-key", metavar="PATH", help="make an Ed25519 key here (mode 0600), its public half beside it")]


def verify(name: Verified, key: PublicKeys = None, store: Store = None, as_json: AsJson = False) -> None:
    """Check a version: every digest, nothing added, only an adapter's content, the log's chain, its signatures. Exit 2 when anything is wrong."""
    from tuner.artifact.signature import check_signatures, read_public
    from tuner.durable import json_text

    keys = {path: read_public(path) for path in key or ()}
    version, manifest, payload = _checked(name, store)
    facts = {
        "version": version.label, "manifest": manifest["digest"], "files": payload.files, "bytes": payload.bytes, "kind": manifest["method"]["kind"],
        "tensors": len(payload.tensors), "values": payload.values, "log_entries": _log_entries(version),
        "signatures": [{"key": s.key, "named": s.named} for s in check_signatures(version.folder, manifest, keys)],
    }  # fmt: skip
    if as_json:
        sys.stdout.write(json_text(facts))
    else:
        out.print("\n".join(_lines(facts, len(manifest["files"]))), markup=False, soft_wrap=True)


def sign(name: MaybeName = None, key: PrivateKeyFile = None, new_key: NewKey = None, store: Store = None) -> None:
    """Sign a version with a key (Ed25519, or EC on P-256, P-384, P-521), after everything in it was checked; or make a key with --new-key."""
    from tuner.artifact import signature

    if new_key is not None:
        if name is not None or key is not None:
            refuse("command line", "--new-key", "a key to make and a version to sign", "one of them", "make the key first, then sign with --key")
        public, made = signature.make_key(new_key)
        out.print(f"key {made[:16]}…: {shown_path(new_key)} (keep it to yourself), {shown_path(public)} (give it to those who verify)",
                  markup=False, soft_wrap=True)  # fmt: skip
        return
    if name is None or key is None:
        refuse("command line", "NAME@N, --key", "a version or a key is missing", "tuner sign NAME@N --key PRIVATE.pem", "tuner sign --new-key PATH makes a key")
    private = signature.read_private(key)
    version, manifest, _ = _checked(name, store)
    folder = signature.sign(version, manifest, private)
    out.print(f"signed {version.label} by key {folder.name[:16]}…  {shown_path(folder / signature.BUNDLE)}", markup=False, soft_wrap=True)


def _checked(name: str, store: str | None) -> tuple[Version, dict[str, Any], Payload]:
    """A version, its manifest and its adapter, after digests and content were checked. A folder may lie anywhere; a name means what the store says."""
    from tuner.artifact import manifest as manifests
    from tuner.artifact.remote import store_folder
    from tuner.artifact.store import find, version_at
    from tuner.artifact.untrusted import refuse_elsewhere, refuse_unsafe

    version = at = version_at(Path(name))
    if version is None:
        version = find(store_folder(store or "adapters"), name)
    manifest = manifests.verify(version.folder)
    payload = refuse_unsafe(version.folder, manifest)
    if at is None:
        refuse_elsewhere(version.name, version.number, manifest, version.folder)
    return version, manifest, payload


def _log_entries(version: Version) -> int:
    """How many entries the name's log has; all of them hang together."""
    from tuner.artifact.history import check_log

    return len(check_log(version.folder.parent))


def _lines(facts: dict[str, Any], listed: int) -> list[str]:
    signed = facts["signatures"]
    named = [s["key"][:16] + "…" for s in signed if s["named"]]
    others = [s["key"][:16] + "…" for s in signed if not s["named"]]
    lines = [
        f"{facts['version']}: as it was published",
        f"  digests     {listed + 1} of {listed + 1} files (the manifest is one), nothing added among them; manifest {facts['manifest']}",
        f"  content     {facts['files']} files, {facts['bytes']:,} bytes: no link, no pickle, no code",
        f"  adapter     {facts['kind']}: {facts['tensors']:,} tensors, exactly those of its config; {facts['values']:,} numbers, all finite",
        f"  log         {facts['log_entries']} entries" + (", each with the digest of the one before" if facts["log_entries"] else ""),
    ]
    if named:
        lines.append(f"  signatures  valid, by {len(named)} of the keys you named: {', '.join(named)}")
    if others:
        lines.append(f"  signatures  {len(others)} by keys that you did not name, which proves nothing: {', '.join(others)} (--key PUBLIC.pem)")
    return lines if signed else [*lines, "  signatures  none"]


COMMANDS = (verify, sign)
