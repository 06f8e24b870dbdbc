"""Versions on the Hugging Face Hub: `push` makes one commit of a whole version, `pull` brings one into a store as it was.

It refuses to send a secret, to make public what was not asked to be, to touch files that no version put there, and to keep anything of a repository
that is not exactly what its manifest lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from tuner.artifact import history
from tuner.artifact.backends import BACKENDS, HubStore, reaching
from tuner.artifact.manifest import LATER, MANIFEST, read_manifest, verify
from tuner.artifact.remote import MANIFEST_BYTES, checked_manifest, remote_of
from tuner.artifact.store import NAME, NUMBER, Version, add_later, latest_evaluation
from tuner.artifact.untrusted import adopted_note, refuse_unsafe
from tuner.durable import ensure_own_folder, ensure_shared_folder, json_text, locked, require_space, seal, staging, write_bytes
from tuner.errors import Collector, Refusal, refuse
from tuner.fingerprint import digest_file
from tuner.safe_text import quoted

MOST_FILES = 1000
MOST_EVALUATION_BYTES = 256 << 20  # of one file that lies beside a version
# What a version is made of. Never a pickle (.bin, .pt, .pkl), an archive or code, and a page is code.
SUFFIXES = frozenset({".safetensors", ".json", ".jsonl", ".yaml", ".md", ".parquet", ".jinja", ".txt", ".model"})
EVALUATION_FILES = ("scores.json", "report.json", "report.md")
PAGE = "report.html"  # sent, for people to look at; never brought in
PULLED = "pulled.json"  # in an evaluation that came from elsewhere
ANSWERS = "answers.jsonl"  # texts of the data
OF_THE_HUB = frozenset({".gitattributes", "README.md"})  # what the hub puts into a new repository
_SOURCE = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Pushed:
    """What arrived: the commit, and its files."""

    repo: str
    commit: str
    tag: str
    private: bool
    files: tuple[str, ...]


def push(
    version: Version, to: str, *, public: bool = False, revision: str = "main", answers: bool = False, allow_personal: bool = False,
    endpoint: str | None = None,
) -> Pushed:  # fmt: skip
    """Make one commit of a version, with the report of its latest evaluation, to a repository of models, which is made private unless `public`.

    `to` is hub:ORG/REPO. The commit is tagged NAME-N. `answers` sends the evaluation's answers too. Raises Refusal before anything is sent where a
    file differs from the manifest, a secret is found, the repository is public and `public` was not said, or holds files that no version put there.
    """
    repo, named = _parsed(to)
    if named is not None:
        refuse(to, "", f"a revision, {quoted(named)}", "hub:ORG/REPO", "name the branch with --revision")
    manifest = verify(version.folder)
    files = _leaving(version, manifest, answers)
    from tuner.artifact.leaks import refuse_leaks

    refuse_leaks(version.folder, files, allow_personal)
    hub = _hub(repo, revision, endpoint)
    with reaching(f"hub:{repo}", f"pushing {version.label}"):
        return _pushed(hub, version, manifest, files, public)


def _leaving(version: Version, manifest: dict[str, Any], answers: bool) -> list[str]:
    """Files of the version and of its latest evaluation that are to be sent, relative to its folder."""
    evaluation = latest_evaluation(version)
    wanted = (*EVALUATION_FILES, PAGE, *([ANSWERS] if answers else []))
    beside = [f"evaluations/{evaluation.name}/{file}" for file in wanted if (evaluation / file).is_file()] if evaluation else []
    return [*manifest["files"], MANIFEST, *beside]


def _pushed(hub: HubStore, version: Version, manifest: dict[str, Any], files: list[str], public: bool) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    hub.api.create_repo(hub.repo, private=not public, exist_ok=True)
    private = bool(hub.api.repo_info(hub.repo).private)
    if not private and not public:
        refuse(f"hub:{hub.repo}", "", "a public repository", "a private one, or --public", "repeat with --public if everybody may read it")
    if hub.branch != "main":
        hub.api.create_branch(hub.repo, branch=hub.branch, exist_ok=True)
    head = hub.head()
    tag = f"{version.name}-{version.number}"
    _refuse_other_tag(hub, tag, manifest)
    gone = _left_by_another_version(hub, manifest, set(files))
    changes = [*(CommitOperationAdd(file, str(version.folder / file)) for file in files), *(CommitOperationDelete(file) for file in gone)]
    said = f"{version.label} {manifest['digest']}"
    commit = hub.committed(changes, said, head)
    _refuse_missing(hub, commit, version.folder, files)
    hub.api.create_tag(hub.repo, tag=tag, revision=commit, tag_message=said, exist_ok=True)
    return Pushed(hub.repo, commit, tag, private, tuple(files))


def _left_by_another_version(hub: HubStore, manifest: dict[str, Any], files: set[str]) -> list[str]:
    """Files on the branch that the version there brought and this one has not. Raises Refusal where others lie there."""
    there = hub.files("")
    found = checked_manifest(hub.read(MANIFEST, MANIFEST_BYTES), f"hub:{hub.repo}/{MANIFEST}") if MANIFEST in there else {"files": {}}
    if found.get("digest") == manifest["digest"]:
        return []  # this version again: what was added beside it stays
    own = {MANIFEST, *found["files"]} if MANIFEST in there else set()
    others = [file for file in there if file not in own and file not in OF_THE_HUB and file.split("/")[0] not in LATER]
    if others:
        refuse(f"hub:{hub.repo}@{hub.branch}", "", f"{len(others):,} files that no version put there, such as {quoted(sorted(others)[0])}",
               "a new repository, or one that holds versions alone", "name another repository, or another branch with --revision")  # fmt: skip
    return sorted(there.keys() - files - OF_THE_HUB)


def _refuse_other_tag(hub: HubStore, tag: str, manifest: dict[str, Any]) -> None:
    for found in hub.api.list_repo_refs(hub.repo).tags:
        if found.name == tag:
            tagged = HubStore(hub.url, hub.kind, f"{hub.repo}@{found.target_commit}", hub.api.endpoint)
            there = tagged.read(MANIFEST, MANIFEST_BYTES) if MANIFEST in tagged.files("") else b"{}"
            if f'"{manifest["digest"]}"'.encode() not in there:
                refuse(f"hub:{hub.repo}", tag, "another version of this name and number", "the version that the tag names", "push to another repository")


def _refuse_missing(hub: HubStore, commit: str, folder: Path, files: list[str]) -> None:
    """The hub leaves out what a .gitignore in the repository names, and says nothing."""
    there = HubStore(hub.url, hub.kind, f"{hub.repo}@{commit}", hub.api.endpoint).files("")
    collector = Collector()
    for file in files:
        if there.get(file) != (size := (folder / file).stat().st_size):
            collector.add(f"hub:{hub.repo}@{commit[:12]}/{file}", "", "not there" if file not in there else f"{there[file]:,} bytes", f"{size:,} bytes",
                          "look at .gitignore in the repository, then push again")  # fmt: skip
    collector.raise_if_any()


# --- pull ----------------------------------------------------------------------------------------------------------


def pull(source: str, store: Path, *, as_name: str | None = None, endpoint: str | None = None) -> tuple[Version, bool]:
    """Bring a version into `store` under the name and number that its manifest says, or under the name `as_name`. False where it was there already.

    `source` is hub:ORG/REPO[@REVISION]. Every file is checked against the manifest before any of them is in the store, and nothing else of the
    repository is read. Raises Refusal, with the store as it was, for a file that is missing, changed, oversized or of a kind no version is made of,
    and where another version has this name and number.
    """
    repo, revision = _parsed(source)
    hub = _hub(repo, revision or "main", endpoint)
    with reaching(source, "pulling"):
        place = f"hub:{repo}@{(commit := hub.head())}"
        pinned = HubStore(hub.url, hub.kind, f"{repo}@{commit}", hub.api.endpoint)
        there = pinned.files("")
        if MANIFEST not in there:
            refuse(source, MANIFEST, "no manifest", "a repository that `tuner push` wrote", "name its branch, tag or commit: hub:ORG/REPO@REVISION")
        manifest = checked_manifest(pinned.read(MANIFEST, MANIFEST_BYTES), f"{source}/{MANIFEST}")
        _refuse_unlike_a_version(manifest, there, source)
        name, number = as_name or str(manifest.get("name")), manifest.get("version")
        if not NAME.fullmatch(name) or not NUMBER.fullmatch(str(number)):
            refuse(source, "name", quoted(f"{name}@{number}"), "a name and number as tuner gives them", "give it a name with --as NAME")
        version = Version(name, int(str(number)), store / name / str(number))
        if _is_there(store, version, manifest):
            _pull_evaluations(pinned, there, version, place)  # made since, or cut short the last time
            return version, False
        _adopt(store, version, manifest, place, lambda stage: _fetch(pinned, manifest, stage, source))
        _pull_evaluations(pinned, there, version, place)
        return version, True


def _refuse_unlike_a_version(manifest: dict[str, Any], there: dict[str, int], source: str) -> None:
    collector = Collector()
    files: dict[str, Any] = manifest["files"]
    if len(files) > MOST_FILES:
        collector.add(f"{source}/{MANIFEST}", "files", f"{len(files):,} files", f"at most {MOST_FILES:,}", "do not use it")
    for file, facts in files.items():
        if PurePosixPath(file).suffix not in SUFFIXES:
            collector.add(f"{source}/{file}", "", f"a file of kind {quoted(PurePosixPath(file).suffix)}", "one of: " + ", ".join(sorted(SUFFIXES)),
                          "do not use it: tuner writes no pickle, archive or code")  # fmt: skip
        elif there.get(file) != facts["bytes"]:
            collector.add(f"{source}/{file}", "", "no such file" if file not in there else f"{there[file]:,} bytes", f"{facts['bytes']:,} bytes",
                          "pull another revision, or push the version again")  # fmt: skip
    for file in sorted(there.keys() - files.keys() - OF_THE_HUB - {MANIFEST}):
        if file.split("/")[0] not in LATER:
            collector.add(f"{source}/{file}", "", "a file that the manifest does not list", "the files as pushed", "pull the tag NAME-N, or remove it there")
    collector.raise_if_any()


def _is_there(store: Path, version: Version, manifest: dict[str, Any]) -> bool:
    """Has the store this very version already? Raises Refusal where the number is another's."""
    remote = remote_of(store)
    if remote is not None:
        remote.refresh(version.name)
    if (version.folder / MANIFEST).is_file():
        found = read_manifest(version.folder)["digest"]
        return True if found == manifest["digest"] else _refuse_taken(store, version, f"another version, {found}")
    if version.number in history.state(store / version.name).removed:
        _refuse_taken(store, version, "the number of a version that was removed")
    return False


def _refuse_taken(store: Path, version: Version, found: str) -> NoReturn:
    refuse(store, version.label, found, "a number that nobody has", "bring it in under another name: --as NAME")


def _adopt(store: Path, version: Version, manifest: dict[str, Any], place: str, fill: Callable[[Path], None]) -> None:
    """Publish a version under its own number: nothing is there, or all of it.

    Under another name than its manifest says it is refused wherever it is opened, but for a note beside it: written first, so that no version lacks it.
    """
    home, remote = store / version.name, remote_of(store)
    ensure_shared_folder(store)
    ensure_shared_folder(home)
    with locked(home, version.name), staging(home) as stage:
        fill(stage)
        note = (
            None
            if manifest["name"] == version.name
            else json_text(
                {"schema": 1, "manifest_digest": manifest["digest"], "from": place, "name": manifest["name"], "version": manifest["version"]}
            ).encode()
        )
        if remote is not None:
            if not remote.take(version.name, version.number):
                _refuse_taken(store, version, "a number that was given")
            if note is not None:
                remote.send_note(adopted_note(version.folder), note)
            remote.send(version.name, version.number, stage, allow_personal=True)
        if version.folder.exists():
            _refuse_taken(store, version, "another version, published meanwhile")
        if note is not None:
            ensure_own_folder(adopted_note(version.folder).parent)
            write_bytes(adopted_note(version.folder), note, frozen=True)  # over one that a pull left which ended here: no version had it
        try:
            seal(stage, version.folder, frozen=True)
        except FileExistsError:
            _refuse_taken(store, version, "another version, published meanwhile")


def _fetch(hub: HubStore, manifest: dict[str, Any], stage: Path, source: str) -> None:
    """Every listed file into `stage`, checked; then what adapters from elsewhere must hold."""
    require_space(stage, sum(facts["bytes"] for facts in manifest["files"].values()), f"pulling {source}")
    collector = Collector()
    for file, facts in manifest["files"].items():
        to = stage / file
        to.parent.mkdir(parents=True, exist_ok=True)
        hub.download(file, to, facts["bytes"])
        if to.stat().st_size != facts["bytes"] or digest_file(to) != facts["digest"]:
            collector.add(f"{source}/{file}", "", "bytes that differ from the manifest", facts["digest"], "do not use it; pull another revision")
    collector.raise_if_any()
    (stage / MANIFEST).write_bytes(hub.read(MANIFEST, MANIFEST_BYTES))
    try:
        refuse_unsafe(stage, verify(stage))
    except Refusal as refusal:  # the stage is gone when it is read
        raise Refusal(replace(p, where=p.where.replace(str(stage), source)) for p in refusal.problems) from None


def _pull_evaluations(hub: HubStore, there: dict[str, int], version: Version, place: str) -> None:
    """Evaluations that lie beside the version: no manifest vouches for them, so only data files of the known names, and never over one that is there.

    Each gets a file that says where it came from: nobody here made it.
    """
    found = sorted({file.split("/")[1] for file in there if re.fullmatch(r"evaluations/[\w-][\w.-]*/scores\.json", file, re.ASCII)})
    for label in found:
        files = {file: there[at] for file in (*EVALUATION_FILES, ANSWERS) if (at := f"evaluations/{label}/{file}") in there}
        if max(files.values()) <= MOST_EVALUATION_BYTES and not (version.folder / "evaluations" / label).exists():
            add_later(version, "evaluations", label, partial(_fetch_evaluation, hub, f"evaluations/{label}", files, place))


def _fetch_evaluation(hub: HubStore, home: str, files: dict[str, int], place: str, stage: Path) -> None:
    require_space(stage, sum(files.values()), f"pulling {home}")
    for file, size in files.items():
        hub.download(f"{home}/{file}", stage / file, size)
    (stage / PULLED).write_text(json_text({"schema": 1, "from": place}), encoding="utf-8")


def _parsed(source: str) -> tuple[str, str | None]:
    match = _SOURCE.fullmatch(source)
    if match is None or ".." in source:
        refuse("command line", "", quoted(source), "hub:ORG/REPO, or to pull, hub:ORG/REPO@REVISION", "name the repository like hub:my-team/support-intents")
    return match["repo"], match["revision"]


def _hub(repo: str, revision: str, endpoint: str | None) -> HubStore:
    return HubStore(f"hub:{repo}", BACKENDS["hf"], f"{repo}@{revision}", endpoint)
