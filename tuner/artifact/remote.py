"""Remote stores: a store behind a URL, and the folder in the user's cache that mirrors it, in which all work is done.

A version is there once its manifest is, and a manifest is sent last. It refuses files that differ from their manifest, a number or log entry that
somebody else took, and to let a secret leave this machine.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuner.artifact import backends
from tuner.artifact.backends import Backend, is_safe, open_backend, reaching
from tuner.artifact.manifest import LATER, MANIFEST, is_as_written
from tuner.artifact.store import NUMBER
from tuner.artifact.untrusted import ADOPTED
from tuner.durable import boot_id, ensure_folder, ensure_own_folder, is_alive, json_text, locked, require_space, write_json, write_new
from tuner.errors import Collector, refuse
from tuner.fingerprint import digest_bytes, digest_file, digest_text

SCHEMA = 1
MARK = ".remote.json"  # in a mirror: the URL it mirrors, and which store was found there
IDENTITY = ".tuner-store.json"  # at the URL: the store's own id, so that a mirror never mixes two stores
NUMBERS = "numbers"  # NAME/numbers/000007.json: who took number 7; kept for ever, so that no number is given twice
CLAIMED = ".claimed"  # in a mirror: numbers that processes of this machine took and have not published yet
SENDING, WHOLE = ".sending.json", ".whole.json"  # around what is added to a version later
SMALL_BYTES = 4 << 20  # of a JSON, Markdown or HTML file that `refresh` brings along
MANIFEST_BYTES, RECORD_BYTES = 64 << 20, 1 << 20


def store_folder(place: str | Path, default: str = "adapters") -> Path:
    """The folder to work in for a store named `place`: itself, or for a URL its mirror in the user's cache. An empty place is `default`.

    Nothing connects yet. Raises Refusal for a URL that no store can lie at.
    """
    named = place if str(place) not in ("", ".") or isinstance(place, Path) else default
    url = backends.url_of(named)
    if url is None:
        return Path(named)
    from tuner.base import cache_folder

    open_backend(url)
    folder = cache_folder() / "stores" / f"{url.partition(':')[0]}-{digest_text(url)[7:23]}"
    if not (folder / MARK).is_file():
        ensure_folder(folder)
        folder.chmod(0o700)  # what lies behind the URL may be private
        write_json(folder / MARK, {"schema": SCHEMA, "url": url, "store": ""})
    return folder


def remote_of(store: Path) -> Remote | None:
    """The remote store that this folder mirrors; None for a plain folder."""
    try:
        facts = json.loads((store / MARK).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        refuse(store / MARK, "", f"unreadable: {error}", "the file that says which URL this folder mirrors", f"remove {store}: it is only a copy")
    return Remote(str(facts["url"]), store, open_backend(str(facts["url"])))


def place_of(store: Path) -> str:
    """The store as a user names it: its URL, or the folder."""
    remote = remote_of(store)
    return remote.url if remote else str(store)


def beside(store: Path) -> Path:
    """The place beside which work that is nobody else's is kept (interrupted runs, studies): the store, or for a mirror its name in the working folder."""
    return Path.cwd() / store.name if remote_of(store) else store


@dataclass(frozen=True, slots=True)
class Remote:
    """The store at `url`, mirrored in `folder`."""

    url: str
    folder: Path
    backend: Backend

    # --- reading ---------------------------------------------------------------------------------------------------

    def refresh(self, name: str | None = None) -> None:
        """Bring what is new of one name, or of all, into the mirror: manifests, logs, small files of evaluations and signatures.

        A version that is gone there goes here. A folder that has its manifest alone is a version whose files `fetch` brings.
        """
        with reaching(self.url, "reading"):
            self._same_store()
            here = self._mirrored(name)  # listed before the other side: what is missing there afterwards was removed there
            there = self.backend.files(name or "")
            for path in here - there.keys():
                shutil.rmtree((self.folder / path).parent, ignore_errors=True)
            for path, size in there.items():
                parts = path.split("/")
                if len(parts) == 3 and parts[1] in ("log", ADOPTED):
                    self._bring_entry(path, size)
                elif len(parts) == 3 and NUMBER.fullmatch(parts[1]) and parts[2] == MANIFEST:
                    self._bring_manifest(path)
                elif len(parts) == 5 and parts[2] in LATER and parts[4] == WHOLE and f"{parts[0]}/{parts[1]}/{MANIFEST}" in there:
                    self._bring_later(path, whole=False)

    def fetch(self, name: str, number: int, only: Iterable[str] | None = None) -> Path:
        """Every file of a version and of what was added to it (exports aside), in the mirror; or of its files those in `only`. Returns its folder.

        What is there already is not brought again. Each file's size, then digest, is checked before any is put where the version lies: raises Refusal
        naming every file that differs, and keeps those that did not for the next attempt.
        """
        home, folder = f"{name}/{number}", self.folder / name / str(number)
        with reaching(self.url, "reading"):
            self._same_store()
            manifest = self._manifest(home)
            wanted = manifest["files"] if only is None else {file: manifest["files"][file] for file in only if file in manifest["files"]}
            self._bring_files(home, wanted)
            if only is None:
                for path in self.backend.files(home):
                    parts = path.split("/")
                    if len(parts) == 5 and parts[2] in LATER and parts[2] != "exports" and parts[4] == WHOLE:
                        self._bring_later(path, whole=True)
        return folder

    def fetch_later(self, folder: Path) -> None:
        """Every file of a folder that was added to a version: an evaluation, an export, a signature."""
        with reaching(self.url, "reading"):
            self._bring_later(f"{folder.relative_to(self.folder).as_posix()}/{WHOLE}", whole=True)

    def _mirrored(self, name: str | None) -> set[str]:
        """Manifests in the mirror, as paths below it."""
        homes = [self.folder / name] if name else [p for p in self.folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
        folders = [p for home in homes if home.is_dir() for p in home.iterdir() if NUMBER.fullmatch(p.name)]
        return {f"{p.parent.name}/{p.name}/{MANIFEST}" for p in folders if (p / MANIFEST).is_file()}

    def _bring_entry(self, path: str, size: int) -> None:
        here = self.folder / path
        if here.is_file() and here.stat().st_size == size:
            return
        if here.is_file():
            refuse(
                f"{self.url}/{path}",
                "",
                "other than what was read here before",
                "an entry as it was written",
                "somebody changed the log: look who writes there",
            )
        self._keep(path, self.backend.read(path, RECORD_BYTES))

    def _bring_manifest(self, path: str) -> None:
        if not (self.folder / path).is_file() and not self._is_being_published(path.rpartition("/")[0]):
            self._keep(path, self.backend.read(path, MANIFEST_BYTES))

    def _manifest(self, home: str) -> dict[str, Any]:
        """The manifest there, held against the one that was read here before. Raises Refusal where either was changed."""
        where = f"{self.url}/{home}/{MANIFEST}"
        try:
            data = self.backend.read(f"{home}/{MANIFEST}", MANIFEST_BYTES)
        except FileNotFoundError:
            refuse(where, "", "no manifest", "a version that is there whole", "`tuner list` shows what there is")
        manifest = checked_manifest(data, where)
        here = self.folder / home / MANIFEST
        if not here.is_file():
            self._keep(f"{home}/{MANIFEST}", data)
        elif here.read_bytes() != data:
            refuse(where, "digest", "another manifest than was read here before", "a version that is never changed",
                   f"look who writes there; to trust the new one, remove {here.parent}")  # fmt: skip
        return manifest

    def _bring_files(self, home: str, wanted: dict[str, Any]) -> None:
        """Files of one folder, by their size and digest. Verified ones wait aside until all of them are there."""
        folder, aside = self.folder / home, self.folder / ".fetched" / home
        if all(_has(folder / file, facts["bytes"]) for file, facts in wanted.items()):
            return
        with locked(aside, home):
            missing = {file: facts for file, facts in wanted.items() if not _has(folder / file, facts["bytes"])}
            require_space(self.folder, sum(facts["bytes"] for facts in missing.values()), f"fetching {home}")
            there, collector = self.backend.files(home), Collector()
            for file, facts in missing.items():
                if not _has(aside / file, facts["bytes"]) or digest_file(aside / file) != facts["digest"]:
                    self._bring_file(f"{home}/{file}", facts, there.get(f"{home}/{file}"), aside / file, collector)
            collector.raise_if_any()
            ensure_folder(folder.parent)
            ensure_own_folder(folder)
            for file in missing:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(aside / file, folder / file)
            shutil.rmtree(aside, ignore_errors=True)

    def _bring_file(self, path: str, facts: dict[str, Any], size: int | None, to: Path, collector: Collector) -> None:
        """One file to `to`, read-only, if it is what `facts` say; else a problem. `size` is what is listed there."""
        where, accepted, try_ = f"{self.url}/{path}", f"{facts['bytes']:,} bytes, {facts['digest']}", "restore it from a copy; do not serve this version"
        if size != facts["bytes"]:
            collector.add(where, "", "no such file" if size is None else f"{size:,} bytes", accepted, try_)
            return
        part = to.with_name(f".{to.name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        self.backend.download(path, part, facts["bytes"])
        if not _has(part, facts["bytes"]) or (found := digest_file(part)) != facts["digest"]:
            collector.add(where, "", f"bytes that differ from the manifest: {found if _has(part, facts['bytes']) else 'fewer'}", accepted, try_)
            part.unlink()
            return
        part.chmod(0o444)
        os.replace(part, to)

    def _bring_later(self, path: str, whole: bool) -> None:
        """A folder that was added to a version, as its list says; without `whole` its small files alone."""
        home = path.rpartition("/")[0]
        if (self.folder / home).is_dir() and not whole:
            return
        facts = json.loads(self.backend.read(path, MANIFEST_BYTES))
        files = {file: said for file, said in facts["files"].items() if whole or _is_small(home, file, said["bytes"])}
        refuse_names(facts["files"], f"{self.url}/{path}")
        self._bring_files(home, files)
        for file in files:  # "the evaluation written last" is asked of the file's own time
            os.utime(self.folder / home / file, ns=(facts["written_ns"], facts["written_ns"]))

    def _keep(self, path: str, data: bytes) -> None:
        ensure_folder((self.folder / path).parent)
        write_new(self.folder / path, data)

    # --- writing ---------------------------------------------------------------------------------------------------

    def ready(self) -> None:
        """Can this user write there, and does the storage keep its promise? Asked before hours of training. Raises Refusal."""
        with reaching(self.url, "writing"):
            self._same_store(make=True)

    def claim(self, name: str, above: int = 0) -> int:
        """The next number of a name, taken exclusively and never given again; it is above `above` and every number seen there."""
        with reaching(self.url, "taking a number"):
            self._same_store(make=True)
            self._sweep(name)
            number = max([above, *self._numbers(name)]) + 1
            while not self._create(f"{name}/{NUMBERS}/{number:06}.json", json_text(_holder()).encode()):
                number += 1
        self._note_claim(name, number)
        return number

    def take(self, name: str, number: int) -> bool:
        """Take this very number. False where it was given before."""
        with reaching(self.url, "taking a number"):
            self._same_store(make=True)
            if number in self._numbers(name) or not self._create(f"{name}/{NUMBERS}/{number:06}.json", json_text(_holder()).encode()):
                return False
        self._note_claim(name, number)
        return True

    def _note_claim(self, name: str, number: int) -> None:
        ensure_folder(self.folder / CLAIMED)
        write_json(self._claimed(f"{name}/{number}"), _holder())

    def send(self, name: str, number: int, folder: Path | None = None, allow_personal: bool = False) -> None:
        """Upload a claimed version: its files, then its manifest. `folder` is where it was made (a stage); without it, where it lies in the mirror.

        Send a stage before it is put into the mirror: then nothing here was never there. Raises Refusal, with nothing visible there, where a secret
        would leave, the storage cannot be reached, or a version of this number is there.
        """
        folder = folder or self.folder / name / str(number)
        data = (folder / MANIFEST).read_bytes()
        files = checked_manifest(data, folder / MANIFEST)["files"]
        from tuner.artifact.leaks import refuse_leaks

        refuse_leaks(folder, [*files, MANIFEST], allow_personal)
        home = f"{name}/{number}"
        with reaching(self.url, f"uploading {name}@{number}"):
            self._same_store(make=True)
            what = f"{name}@{number} {digest_bytes(data)}"
            if not self.backend.upload({f"{home}/{file}": folder / file for file in files}, f"{home}/{MANIFEST}", data, what):
                refuse(f"{self.url}/{home}", "", "a version of this number", "a number that nobody used", "publish again: it gets the next number")

    def send_later(self, folder: Path, to: Path | None = None, allow_personal: bool = True) -> None:
        """Upload a folder that is added to a version: an evaluation, an export, a signature. Its list goes last. `to` is its place in the mirror, where it is
        made elsewhere.

        Answers hold texts of the data, which go to the store that was chosen for them. Raises Refusal where another folder of this name is there.
        """
        from tuner.artifact.leaks import refuse_leaks

        home = (to or folder).relative_to(self.folder).as_posix()
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        refuse_leaks(folder, names, allow_personal)
        files = {name: {"bytes": (folder / name).stat().st_size, "digest": digest_file(folder / name)} for name in names}
        listed = json_text({"schema": SCHEMA, "files": files, "written_ns": max((folder / name).stat().st_mtime_ns for name in names)}).encode()
        with reaching(self.url, f"uploading {home}"):
            last = f"{home}/{WHOLE}"
            if self._create(f"{home}/{SENDING}", listed) and (
                self.backend.upload({f"{home}/{name}": folder / name for name in names}, last, listed, home)
                or self.backend.read(last, MANIFEST_BYTES) == listed
            ):
                return
        refuse(f"{self.url}/{home}", "", "another folder of this name", "a name that nobody used", "look again (`tuner show`), then repeat")

    def send_note(self, note: Path, data: bytes) -> None:
        """Make a note of the mirror there, before the version is sent that it is about. Its number was taken, so that nobody else writes it."""
        with reaching(self.url, f"uploading {note.relative_to(self.folder).as_posix()}"):
            self._same_store(make=True)
            self._create(note.relative_to(self.folder).as_posix(), data)

    def append(self, name: str, number: int, data: bytes) -> bool:
        """Make entry `number` of the name's log, there and then here. False where somebody was first; the mirror then has that one."""
        path = f"{name}/log/{number:06}.json"
        with reaching(self.url, "writing the log"):
            self._same_store(make=True)
            made = self._create(path, data)
            if made:
                self._keep(path, data)
            else:
                self.refresh(name)
            return made

    def _claimed(self, home: str) -> Path:
        return self.folder / CLAIMED / home.replace("/", "@")

    def _is_being_published(self, home: str) -> bool:
        """Is a process of this machine about to put this version into the mirror itself? Then nobody else may, or its rename would fail."""
        claimed = self._claimed(home)
        if not claimed.is_file():
            return False
        if not (self.folder / home / MANIFEST).is_file() and not _is_dead(json.loads(claimed.read_text(encoding="utf-8"))):
            return True
        claimed.unlink(missing_ok=True)
        return False

    def _create(self, path: str, data: bytes) -> bool:
        """Exclusive creation. An answer that was lost and asked for again looks as if another had won: the same bytes there mean that it was us."""
        return self.backend.create(path, data) or self.backend.read(path, MANIFEST_BYTES) == data

    def _numbers(self, name: str) -> set[int]:
        """Every number there that was claimed or published."""
        found = (path.split("/") for path in self.backend.files(name))
        said = ((parts[2].removesuffix(".json").lstrip("0") if parts[1] == NUMBERS else parts[1]) for parts in found if len(parts) > 2)
        return {int(number) for number in said if NUMBER.fullmatch(number)}

    def _sweep(self, name: str) -> None:
        """Remove files of uploads that died: versions without manifest whose number a process of this machine took that no longer runs."""
        there = self.backend.files(name)
        for number in self.backend.children(name):
            claimed = f"{name}/{NUMBERS}/{number:0>6}.json"
            is_begun = NUMBER.fullmatch(number) and f"{name}/{number}/{MANIFEST}" not in there and claimed in there
            if is_begun and _is_dead(json.loads(self.backend.read(claimed, RECORD_BYTES))):
                self.backend.remove(f"{name}/{number}", MANIFEST, f"remove what is left of {name}@{number}")

    def _same_store(self, make: bool = False) -> None:
        """Is the store at the URL the one that was mirrored here? Where it is another one (another endpoint, a new bucket) the mirror is emptied."""
        try:
            found = str(json.loads(self.backend.read(IDENTITY, RECORD_BYTES))["id"])
        except FileNotFoundError:
            found = ""
            if make:
                self.backend.create(IDENTITY, json_text({"schema": SCHEMA, "id": secrets.token_hex(16)}).encode())
                found = str(json.loads(self.backend.read(IDENTITY, RECORD_BYTES))["id"])
        known = json.loads((self.folder / MARK).read_text(encoding="utf-8"))
        if known["store"] == found:
            return
        if known["store"]:
            for left in self.folder.iterdir():
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
        write_json(self.folder / MARK, {**known, "store": found})


def checked_manifest(data: bytes, where: object) -> dict[str, Any]:
    """A manifest that came from elsewhere, as it was written. Raises Refusal where it was changed, is too new, or names files that could leave a folder."""
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        refuse(where, "", f"unreadable: {error}", "the manifest as it was written", "restore it from a copy")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict) or not is_as_written(manifest, data):
        refuse(where, "digest", "a manifest that was changed after it was written", "the manifest as it was written", "restore it from a copy; do not serve it")
    refuse_names(manifest["files"], where)
    return manifest


def refuse_names(files: dict[str, Any], where: object) -> None:
    """Raises Refusal for every name that could leave its folder, every size that is none, and every digest of another form."""
    collector = Collector()
    for name, facts in files.items():
        size = facts.get("bytes") if isinstance(facts, dict) else None
        if not is_safe(name) or name == MANIFEST or name.split("/")[0] in LATER:
            collector.add(where, "files", repr(name)[:200], "a relative path inside the version", "do not use it: tuner never writes such a name")
        elif not isinstance(size, int) or size < 0 or not re.fullmatch(r"sha256:[0-9a-f]{64}", str(facts.get("digest"))):
            collector.add(where, f"files.{name}", repr(facts)[:200], "bytes and a sha256 digest", "do not use it: tuner never writes such an entry")
    collector.raise_if_any()


def _has(path: Path, size: int) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size == size


def _is_small(home: str, file: str, size: int) -> bool:
    return size <= SMALL_BYTES and ("signatures" in home.split("/") or file.endswith((".json", ".md", ".html")))


def _holder() -> dict[str, Any]:
    """Who takes a number: a process of a machine, without either's name."""
    return {
        "schema": SCHEMA,
        "machine": _machine(),
        "process": os.getpid(),
        "token": secrets.token_hex(8),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _machine() -> str:
    return digest_text(f"{socket.gethostname()} {boot_id()}")[7:39]


def _is_dead(holder: dict[str, Any]) -> bool:
    return holder.get("machine") == _machine() and not is_alive(int(holder["process"]))
