"""Garbage: retired versions that nothing needs, and nothing else; a removal that ends anywhere leaves no half of a version in sight."""

from __future__ import annotations

import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import KILLED, OS_ERROR, REFUSED, scratch, swept
from tests.test_durable import dead_pid
from tuner.artifact.gc import collect, garbage
from tuner.artifact.history import append, check_log, state
from tuner.artifact.manifest import MANIFEST, read_manifest, verify, write_manifest
from tuner.artifact.remote import store_folder
from tuner.artifact.store import Version, find, publish, versions
from tuner.durable import STAGE_PREFIX, locked
from tuner.errors import Refusal


def made(store: Path, name: str = "a", parent: Version | None = None, by_name: bool = True) -> Version:
    """A version of a few bytes, continued from `parent`; its parent is said by its digest alone without `by_name`."""
    said = None
    if parent is not None:
        digest = read_manifest(parent.folder)["digest"]
        said = {"name": parent.name, "version": parent.number, "manifest_digest": digest} if by_name else {"manifest_digest": digest}

    def fill(stage: Path, number: int) -> None:
        (stage / "weights").write_bytes(b"x" * 100)
        write_manifest(stage, {"name": name, "version": number, "lineage": {"parent": said}})

    return publish(store, name, fill)


def note(store: Path, what: Any, version: Version, alias: str | None = None) -> None:
    home = store / version.name
    append(home, state(home).count, what, version.number, alias, "ann", f"{what} it")


def labels(store: Path) -> list[str]:
    return [v.label for v, _ in versions(store)]


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(Refusal) as caught:
        call()
    return str(caught.value)


def test_a_retired_version_goes_with_the_bytes_said_before_and_its_number_stays_taken(tmp_path: Path) -> None:
    one, two = made(tmp_path), made(tmp_path)
    note(tmp_path, "retire", two)
    size = sum(p.stat().st_size for p in two.folder.iterdir())
    told = garbage(tmp_path)
    assert [(g.label, g.bytes, g.why) for g in told.going] == [("a@2", size, "retired: 'retire it'")]
    assert [(k.version.label, k.why) for k in told.kept] == [("a@1", "not retired")]
    assert labels(tmp_path) == ["a@1", "a@2"] and verify(two.folder)  # saying is not doing
    assert collect(tmp_path, "bob", "disk full") == told
    assert labels(tmp_path) == ["a@1"] and not two.folder.exists() and verify(one.folder)
    last = check_log(tmp_path / "a")[-1]
    assert (last.what, last.version, last.by, last.why, last.facts["bytes"]) == ("remove", 2, "bob", "disk full", size)
    assert made(tmp_path).number == 3 and garbage(tmp_path).going == ()


def test_what_an_alias_stands_for_or_a_version_was_continued_from_stays(tmp_path: Path) -> None:
    grandparent = made(tmp_path, "base")
    parent = made(tmp_path, "a", grandparent)
    made(tmp_path, "b", parent, by_name=False)  # stays by itself
    lone = made(tmp_path, "b")
    served = made(tmp_path, "b")
    note(tmp_path, "promote", served, "staging")
    for version in (grandparent, parent, lone, served):
        note(tmp_path, "retire", version)
    told = garbage(tmp_path)
    assert [g.label for g in told.going] == ["b@2"]
    assert {k.version.label: k.why for k in told.kept} == {
        "a@1": "b@1 was continued from it", "b@1": "not retired", "b@3": "staging stands for it", "base@1": "a@1 was continued from it",
    }  # fmt: skip
    collect(tmp_path, "bob")
    assert labels(tmp_path) == ["a@1", "b@1", "b@3", "base@1"]


def test_a_family_that_is_retired_as_a_whole_goes_as_a_whole(tmp_path: Path) -> None:
    parent = made(tmp_path)
    child = made(tmp_path, "b", parent)
    note(tmp_path, "retire", parent)
    note(tmp_path, "retire", child)
    collect(tmp_path, "bob")
    assert labels(tmp_path) == []


@pytest.mark.parametrize("spoil", ["manifest", "no manifest", "log"])
def test_while_something_cannot_be_read_nothing_goes_that_it_might_need(tmp_path: Path, spoil: str) -> None:
    one, other = made(tmp_path), made(tmp_path, "b")
    note(tmp_path, "retire", one)
    note(tmp_path, "promote", other, "production")
    file = {"manifest": other.folder / MANIFEST, "no manifest": other.folder / MANIFEST, "log": tmp_path / "a" / "log" / "000001.json"}[spoil]
    file.unlink()
    if spoil != "no manifest":
        file.write_bytes(b"{")
    told = collect(tmp_path, "bob")
    assert told.going == () and one.folder.is_dir()
    said = {k.version.label: k.why for k in told.kept}["a@1"]
    assert said == ("the log of its name cannot be read" if spoil == "log" else "b@1 cannot be read, so what it was continued from is not known")


def test_what_ended_processes_left_goes_and_what_lives_stays(tmp_path: Path) -> None:
    version = made(tmp_path)
    note(tmp_path, "promote", version, "production")
    places = [tmp_path, tmp_path / "a", tmp_path / "a" / "log", version.folder / "evaluations", version.folder / "exports"]
    mine, host = os.getpid(), os.uname().nodename
    for place in places:
        for pid in (dead_pid(), mine):
            (place / f"{STAGE_PREFIX}{host}-{pid}-0123abcd").mkdir(parents=True)
            (place / f"{STAGE_PREFIX}{host}-{pid}-0123abcd" / "half").write_bytes(b"12345")
    (tmp_path / "notes").mkdir()
    (tmp_path / "a" / "notes.txt").write_bytes(b"mine")
    found = collect(tmp_path, "bob")
    assert [(g.folder.parent, g.bytes, g.version) for g in found.going] == [(place, 5, None) for place in places]
    left = list(tmp_path.rglob(f"{STAGE_PREFIX}*"))
    assert sorted(p.parent for p in left) == sorted(places) and all(f"-{mine}-" in p.name for p in left)
    assert (tmp_path / "notes").is_dir() and (tmp_path / "a" / "notes.txt").is_file() and verify(version.folder)


def test_an_alias_that_comes_between_saves_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its promotion was written after gc had looked, and before gc wrote."""
    import tuner.artifact.gc as room

    version = made(tmp_path)
    note(tmp_path, "retire", version)
    real = room._refuse_foreign

    def meanwhile(found: Any) -> None:
        note(tmp_path, "restore", version)
        note(tmp_path, "promote", version, "production")
        real(found)

    monkeypatch.setattr(room, "_refuse_foreign", meanwhile)
    assert "in use again" in refusal(lambda: collect(tmp_path, "bob"))
    assert find(tmp_path, "a@production") == version and verify(version.folder)


def test_a_remote_store_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / ".remote.json").write_text('{"schema": 1, "url": "s3://bucket/shelf", "store": ""}', encoding="utf-8")
    pytest.importorskip("s3fs")
    for call in (lambda: garbage(tmp_path), lambda: collect(tmp_path, "bob")):
        assert "a remote store" in refusal(call)


# --- against a naive oracle ----------------------------------------------------------------------------------------


def may_go(families: dict[str, str | None], retired: set[str], aliased: set[str]) -> set[str]:
    """Spelt out: whoever is retired and not pointed at, unless one that does not go has it among its ancestors."""
    going = {label for label in families if label in retired and label not in aliased}
    while True:
        needed = {parent for label, parent in families.items() if label not in going and parent is not None}
        if not going & needed:
            return going
        going -= needed


def test_over_random_stores_exactly_what_the_oracle_says_goes() -> None:
    rng = random.Random(7)
    gone = kept_for_others = 0
    with scratch() as folder:
        for trial in range(25):
            store = folder / str(trial)
            families: dict[str, str | None] = {}
            made_so_far: list[Version] = []
            for _ in range(rng.randint(1, 10)):
                parent = rng.choice(made_so_far) if made_so_far and rng.random() < 0.6 else None
                version = made(store, rng.choice("abc"), parent, by_name=rng.random() < 0.5)
                families[version.label] = parent.label if parent else None
                made_so_far.append(version)
            aliased = {v.label for v in made_so_far if rng.random() < 0.2}
            retired = {v.label for v in made_so_far if rng.random() < 0.7}
            for version in made_so_far:
                if version.label in aliased:
                    note(store, "promote", version, f"to-{version.number}")
                if version.label in retired:
                    note(store, "retire", version)
            wanted = may_go(families, retired, aliased)
            assert {g.label for g in garbage(store).going} == wanted
            collect(store, "bob")
            assert set(labels(store)) == set(families) - wanted and all(verify(v.folder) for v, _ in versions(store))
            gone += len(wanted)
            kept_for_others += len(retired - aliased - wanted)
    assert gone > 20 and kept_for_others > 10


# --- faults at every I/O call of a removal ---------------------------------------------------------------------------


def before(root: Path) -> None:
    store = root / "store"
    parent = made(store)
    made(store, "b", parent)
    for version in (parent, made(store), made(store)):
        note(store, "retire", version)


def work(root: Path) -> None:
    collect(root / "store", "bob")


def after(root: Path, mode: str, status: int) -> None:
    """a@2 and a@3 are whole or out of sight; a@1, the parent, is whole; the next gc removes them and all that was left; no number comes again."""
    store = root / "store"
    assert status in {0, KILLED} if mode in ("kill", "torn", "power_loss") else status in {0, OS_ERROR, REFUSED}
    standing = labels(store)
    assert standing in (["a@1", "a@2", "a@3", "b@1"], ["a@1", "a@3", "b@1"], ["a@1", "b@1"])
    assert all(verify(v.folder) for v, _ in versions(store)) and len(check_log(store / "a")) == 3 + (6 - len(standing) - 2)
    work(root)
    assert labels(store) == ["a@1", "b@1"] and set(os.listdir(store / "a")) == {".lock", "log", "1"}
    assert [e.version for e in check_log(store / "a") if e.what == "remove"] == [2, 3]
    assert made(store).number == 4
    shutil.rmtree(store)


def test_a_fault_at_every_io_call_of_a_removal_leaves_no_half_of_a_version_in_sight() -> None:
    found = swept("tests.artifact.test_gc", pick=2)
    assert found["failures"] == []
    points = (len(found["calls"]) + 1) // 2
    assert points > 15 and found["statuses"]["kill"] == found["statuses"]["power_loss"] == {str(KILLED): points}
    assert found["statuses"]["error"][str(OS_ERROR)] >= 3


def test_only_names_that_something_goes_from_are_locked(tmp_path: Path) -> None:
    for number in range(40):
        made(tmp_path, f"n{number}")
    note(tmp_path, "retire", made(tmp_path, "a"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 16, hard))
    try:
        with locked(tmp_path / "n7", "n7"):  # somebody trains
            assert [g.label for g in collect(tmp_path, "ann").going] == ["a@1"]
        for number in range(40):
            note(tmp_path, "retire", find(tmp_path, f"n{number}@1"))
        assert "ulimit -n" in refusal(lambda: collect(tmp_path, "ann"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(collect(tmp_path, "ann").going) == 40


def test_a_remote_store_is_refused_by_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said = refusal(lambda: garbage(store_folder(f"file://{tmp_path}/far")))
    assert f"file://{tmp_path}/far" in said and "cache" not in said
