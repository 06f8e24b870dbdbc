"""The store: numbers without gap or double, nothing half-published, nothing overwritten, every changed byte found."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults import scratch
from tuner.artifact.history import append, state
from tuner.artifact.manifest import LATER, MANIFEST, SCHEMA, read_manifest, verify, write_manifest
from tuner.artifact.remote import store_folder
from tuner.artifact.store import Version, add_evaluation, add_later, evaluations, find, home_of, latest_evaluation, publish, read_scores, versions
from tuner.durable import json_text
from tuner.errors import Refusal
from tuner.fingerprint import digest_file, digest_text
from tuner.recipe import NAME


def small(stage: Path, number: int) -> None:
    """A version of a few hundred bytes: two files, one of them below, and the manifest."""
    (stage / "adapter.bin").write_bytes(bytes([0, number, 255]))
    (stage / "sub").mkdir()
    (stage / "sub" / "note.txt").write_text("é\r\n\n", encoding="utf-8")
    write_manifest(stage, {"version": number, "loss": 0.1, "tags": (1, 2), "by_line": {10: "a", 9: "b"}})


def thawed(version: Version) -> Path:
    """The folder of a version, made writable again: what an owner can do, and what a bad disk does without asking."""
    for path in [version.folder, *version.folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return version.folder


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(Refusal) as caught:
        call()
    return str(caught.value)


# --- publishing ----------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from tuner.artifact.manifest import write_manifest
from tuner.artifact.store import publish

def fill(stage, number):
    (stage / "a.txt").write_text(f"{sys.argv[2]} wrote {number}\\n")
    write_manifest(stage, {"version": number, "writer": sys.argv[2]})

sys.stdin.readline()
print(*(publish(Path(sys.argv[1]), "busy", fill).number for _ in range(200)))
"""


def test_sixteen_processes_of_200_publishes_give_versions_1_to_3200_each_intact() -> None:
    with scratch() as store:
        command = [sys.executable, "-c", WRITER, str(store)]
        writers = [subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for i in range(16)]
        for writer in writers:  # all start together
            assert writer.stdin is not None
            writer.stdin.write("\n")
            writer.stdin.flush()
        said = {i: [int(n) for n in writer.communicate(timeout=240)[0].split()] for i, writer in enumerate(writers)}
        assert [w.returncode for w in writers] == [0] * 16
        assert sorted(n for numbers in said.values() for n in numbers) == list(range(1, 3201))
        assert set(os.listdir(store / "busy")) == {".lock", *map(str, range(1, 3201))}
        for i, numbers in said.items():
            assert numbers == sorted(numbers) and len(numbers) == 200
            for number in numbers:
                folder = store / "busy" / str(number)
                assert verify(folder)["writer"] == str(i) and (folder / "a.txt").read_text(encoding="utf-8") == f"{i} wrote {number}\n"
        assert find(store, "busy").number == 3200


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_a_fill_that_fails_leaves_the_store_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    def fails(stage: Path, number: int) -> None:
        small(stage, number)
        raise error

    with pytest.raises(error):
        publish(tmp_path, "a", fails)
    assert [p.name for p in (tmp_path / "a").iterdir()] == [".lock"]
    assert publish(tmp_path, "a", small) == Version("a", 1, tmp_path / "a" / "1")
    with pytest.raises(error):
        publish(tmp_path, "a", fails)
    assert publish(tmp_path, "a", small).number == 2 and sorted(p.name for p in (tmp_path / "a").iterdir()) == [".lock", "1", "2"]


def test_a_version_without_a_manifest_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="needs its manifest"):
        publish(tmp_path, "a", lambda stage, _: (stage / "x").write_bytes(b"") and None)
    assert [p.name for p in (tmp_path / "a").iterdir()] == [".lock"]


def test_nothing_published_is_ever_overwritten_nor_its_number_given_again(tmp_path: Path) -> None:
    first = publish(tmp_path, "a", small)
    before = {p: digest_file(p) for p in first.folder.rglob("*") if p.is_file()}
    publish(tmp_path, "a", small)
    (tmp_path / "a" / "2" / MANIFEST).unlink()  # a spoilt version keeps its number
    (tmp_path / "a" / "7").mkdir()
    assert publish(tmp_path, "a", small).number == 8
    assert {p: digest_file(p) for p in first.folder.rglob("*") if p.is_file()} == before and len(before) == 3
    assert [v.number for v, _ in versions(tmp_path)] == [1, 8]


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder.parent).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002, 0o000])
def test_published_files_are_written_by_nobody_and_read_as_the_umask_allows(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        version = publish(tmp_path / "store", "a", small)
        add_evaluation(version, "e", lambda stage: (stage / "scores.json").write_text("{}") and None)
    files, folders = 0o444 & ~mask, 0o755 & ~mask
    assert modes(version.folder) == {
        **dict.fromkeys(("1", "1/sub", "1/evaluations", "1/evaluations/e"), folders),
        **dict.fromkeys(("1/adapter.bin", "1/sub/note.txt", f"1/{MANIFEST}", "1/evaluations/e/scores.json"), files),
    }


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o027, 0o750), (0o077, 0o700), (0o002, 0o1775), (0o000, 0o1777)])
def test_where_others_may_publish_they_may_not_rename_what_is_there(tmp_path: Path, mask: int, mode: int) -> None:
    with umask(mask):
        publish(tmp_path / "store", "a", small)
        publish(tmp_path / "store", "a", small)
    assert [stat.S_IMODE((tmp_path / p).stat().st_mode) for p in ("store", "store/a")] == [mode, mode]


STRANGER = """
import os, sys
from pathlib import Path
from tuner.artifact import remote  # imported before this process loses its rights: nobody may be unable to read the program itself
from tuner.artifact.history import append, state
from tuner.artifact.manifest import verify
from tuner.artifact.store import add_evaluation, find, publish, versions
from tuner.errors import Refusal

store = Path(sys.argv[1])
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
version = find(store, "a@production")
assert verify(version.folder)["version"] == 1 and [v.number for v, _ in versions(store)] == [1]
folder, home = version.folder, version.folder.parent
attempts = {
    "write": lambda: (folder / "adapter.bin").write_bytes(b"x"),
    "append": lambda: (folder / "manifest.json").open("ab"),
    "replace": lambda: os.replace(folder / "adapter.bin", folder / "manifest.json"),
    "rename a file": lambda: (folder / "adapter.bin").rename(folder / "b.bin"),
    "delete a file": lambda: (folder / "sub" / "note.txt").unlink(),
    "add a file": lambda: (folder / "sub" / "new.txt").write_bytes(b""),
    "make writable": lambda: (folder / "adapter.bin").chmod(0o666),
    "rename the version": lambda: folder.rename(home / "2"),
    "rename the name": lambda: home.rename(store / "b"),
    "delete an entry": lambda: (home / "log" / "000001.json").unlink(),
    "write an entry": lambda: (home / "log" / "000001.json").write_bytes(b"x"),
    "evaluate": lambda: add_evaluation(version, "e", lambda stage: None),
    "change an evaluation": lambda: (folder / "evaluations" / "e" / "scores.json").write_bytes(b"x"),
}
if not home.stat().st_mode & 0o002:
    attempts["publish"] = lambda: publish(store, "a", lambda stage, number: None)
    attempts["promote"] = lambda: append(home, 1, "promote", 1, "staging", "nobody", "why")
done = []
for name, attempt in attempts.items():
    try:
        attempt()
        done.append(name)
    except (PermissionError, Refusal):
        pass
verify(folder)
print(len(attempts), done)
"""


@pytest.mark.parametrize(("mask", "count"), [(0o022, 15), (0o000, 13)])
def test_another_user_reads_and_verifies_a_version_and_can_change_nothing_in_it(mask: int, count: int) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can act as another user")
    with scratch() as folder:
        folder.chmod(0o755)
        with umask(mask):
            version = publish(folder / "store", "a", small)
            add_evaluation(version, "e", lambda stage: (stage / "scores.json").write_text("{}") and None)
            append(version.folder.parent, 0, "promote", 1, "production", "ann", "good")
        before = {p: p.read_bytes() for p in version.folder.parent.rglob("*") if p.is_file()}
        done = subprocess.run([sys.executable, "-c", STRANGER, str(folder / "store")], capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout == f"{count} []\n", done.stderr
        assert {p: p.read_bytes() for p in version.folder.parent.rglob("*") if p.is_file()} == before


def test_with_a_private_umask_another_user_does_not_even_read(tmp_path: Path) -> None:
    with umask(0o077):
        version = publish(tmp_path / "store", "a", small)
        append(version.folder.parent, 0, "promote", 1, "production", "ann", "good")
    assert all(mode & 0o077 == 0 for mode in modes(version.folder.parent).values()) and len(modes(version.folder.parent)) == 9


# --- names ---------------------------------------------------------------------------------------------------------

BAD_NAMES = (
    "", ".", "..", "../a", "a/../b", "/etc", "/", "a/b", "a\\b", "./a", "~", "~root", "a\0", "a\n", "\na", "a b", " a", "a ", "A", "aB", "-a", "--help",
    ".a", "_a", "a*", "a?", "$HOME", "a;b", "a|b", "é", "ａ", "a\u200b", "a" * 65, "%2e%2e", "con:", "\x1b[31m", "a,b", "a'b", "٣",
)  # fmt: skip
GOOD_NAMES = ("a", "0", "a" * 64, "support-intents", "v1.2_x", "a..b", "a-", "1.", "9-9")


def test_names_that_could_leave_the_store_are_refused_everywhere(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    for name in BAD_NAMES:
        for call in (lambda name=name: publish(store, name, small), lambda name=name: find(store, name), lambda name=name: find(store, f"{name}@1")):
            said = refusal(call)
            assert "adapter name" in said and "1 to 64 of a-z 0-9 . _ -" in said and "\x1b" not in said, name
        assert not re.match(NAME + r"\Z", name) or name.endswith("\n")
    assert list(store.iterdir()) == [] and [p.name for p in tmp_path.iterdir()] == ["store"]
    assert len(BAD_NAMES) >= 30


def test_a_name_that_a_recipe_accepts_can_be_published(tmp_path: Path) -> None:
    for name in GOOD_NAMES:
        assert re.match(NAME, name)
        assert publish(tmp_path, name, small).folder == tmp_path / name / "1" == find(tmp_path, name).folder
    assert {v.name for v, _ in versions(tmp_path)} == set(GOOD_NAMES)


# --- finding -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """intents@1..11, tickets@1, and things that are no versions. Read only."""
    tmp_path = tmp_path_factory.mktemp("store")
    for _ in range(11):
        publish(tmp_path, "intents", small)
    publish(tmp_path, "tickets", small)
    for folder in ("intents/12", "intents/x", "intents/log", "intents/.stage-x", "empty"):
        (tmp_path / folder).mkdir()
    for odd in ("01", "²", "٣", "0", "-1", "9" * 30):
        shutil.copytree(tmp_path / "intents" / "1", tmp_path / "intents" / odd)
    (tmp_path / "file").write_bytes(b"")
    return tmp_path


def test_a_name_finds_its_latest_version_and_a_number_that_very_one(store: Path) -> None:
    assert find(store, "intents") == Version("intents", 11, store / "intents" / "11")
    assert find(store, "intents@2") == Version("intents", 2, store / "intents" / "2") and find(store, "intents@2").label == "intents@2"
    assert [v.label for v, _ in versions(store)] == [*(f"intents@{i}" for i in range(1, 12)), "tickets@1"]
    assert [m["version"] for _, m in versions(store) if m is not None] == [*range(1, 12), 1]


@pytest.mark.parametrize("number", ["", "0", "12", "01", "-1", "+1", "1.0", " 1", "1 ", "²", "٣", "x", "latest", "1@1", "9" * 30, "9" * 5000])
def test_a_version_that_is_not_there_is_refused_with_those_that_are(store: Path, number: str) -> None:
    said = refusal(lambda: find(store, f"intents@{number}"))
    assert "no version" in said and "one of: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11" in said and "use intents@11" in said


def moved(home: Path, what: Any, number: int, alias: str | None = None, why: str = "because") -> None:
    append(home, state(home).count, what, number, alias, "ann", why)


def test_an_alias_finds_the_version_that_it_stands_for_and_a_name_the_highest_in_use(tmp_path: Path) -> None:
    for _ in range(4):
        publish(tmp_path, "a", small)
    home = tmp_path / "a"
    moved(home, "promote", 2, "production")
    moved(home, "promote", 3, "candidate-1")
    assert [find(tmp_path, f"a@{w}").number for w in ("production", "candidate-1", "4")] == [2, 3, 4]
    moved(home, "retire", 4, why="slow")
    assert find(tmp_path, "a").number == 3 and find(tmp_path, "a@4").number == 4  # by its number it is still there
    assert [v.number for v, _ in versions(tmp_path)] == [1, 2, 3, 4]
    said = refusal(lambda: find(tmp_path, "a@producton"))
    assert "no version nor alias 'producton' of a" in said and "one of: 1, 2, 3, 4; or an alias: candidate-1 (3), production (2)" in said
    assert "use a@production" in said
    for number in (1, 2, 3):
        moved(home, "retire", number)
    assert "every version is retired: 1, 2, 3, 4" in refusal(lambda: find(tmp_path, "a")) and find(tmp_path, "a@production").number == 2


def test_a_removed_version_is_not_found_not_listed_and_its_number_not_given_again(tmp_path: Path) -> None:
    for _ in range(3):
        publish(tmp_path, "a", small)
    moved(tmp_path / "a", "promote", 2, "production")
    moved(tmp_path / "a", "remove", 3, why="gc")
    assert [v.number for v, _ in versions(tmp_path)] == [1, 2] and find(tmp_path, "a").number == 2  # also before its folder is gone
    assert "it was removed, 'gc'" in refusal(lambda: find(tmp_path, "a@3"))
    shutil.rmtree(tmp_path / "a" / "3")
    assert publish(tmp_path, "a", small).number == 4
    shutil.rmtree(tmp_path / "a" / "2")
    assert "version 2, which does not lie there" in refusal(lambda: find(tmp_path, "a@production"))
    (tmp_path / "a" / "log" / "000002.json").chmod(0o644)
    (tmp_path / "a" / "log" / "000002.json").write_bytes(b"broken")
    assert "unreadable" in refusal(lambda: find(tmp_path, "a")) and [v.number for v, _ in versions(tmp_path)] == [1, 4]
    assert publish(tmp_path, "a", small).number == 5  # a broken log costs no training


def test_an_unknown_name_is_refused_with_the_nearest(store: Path) -> None:
    said = refusal(lambda: find(store, "intnets"))
    assert "no adapter 'intnets'" in said and "one of: intents, tickets" in said and "try       write intents" in said
    assert "one of: intents, tickets" in refusal(lambda: find(store, "empty"))
    for nothing in (store / "no-such-store", store / "empty"):
        said = refusal(lambda nothing=nothing: find(nothing, "intents"))  # type: ignore[misc]
        assert "none yet" in said and "tuner run RECIPE" in said
        assert versions(nothing) == []


# --- evaluations beside a version ----------------------------------------------------------------------------------


def test_only_folders_that_the_manifest_leaves_out_are_added_to_a_version(tmp_path: Path) -> None:
    version = publish(tmp_path, "a", small)
    for kind in LATER:
        folder = add_later(version, kind, "x", lambda stage: (stage / "f").write_bytes(b"1") and None)
        assert folder == version.folder / kind / "x" and verify(version.folder)["version"] == 1
    with pytest.raises(ValueError, match="no folder"):
        add_later(version, "sub", "x", lambda stage: None)
    assert LATER == ("evaluations", "exports", "signatures")
    (version.folder / "exports").rename(version.folder / "signatures" / "aside")
    (version.folder / "exports").symlink_to(version.folder / "signatures")
    assert "does not list" in refusal(lambda: verify(version.folder))
    (version.folder / "exports").unlink()
    (version.folder / "exported").mkdir()
    (version.folder / "exported" / "f").write_bytes(b"")
    assert "does not list" in refusal(lambda: verify(version.folder))


def test_evaluations_are_added_and_never_replaced(tmp_path: Path) -> None:
    version = publish(tmp_path, "a", small)
    assert latest_evaluation(version) is None
    folders = []
    for number in range(3):
        folders.append(add_evaluation(version, "2026-01-01-abc", lambda stage, n=number: (stage / "scores.json").write_text(str(n)) and None))  # type: ignore[misc]
        os.utime(folders[-1] / "scores.json", ns=(number, number))
    assert [f.name for f in folders] == ["2026-01-01-abc", "2026-01-01-abc-2", "2026-01-01-abc-3"]
    assert [(f / "scores.json").read_text(encoding="utf-8") for f in folders] == ["0", "1", "2"]
    assert latest_evaluation(version) == folders[2] and verify(version.folder)["version"] == 1
    with pytest.raises(ValueError, match="no"):
        add_evaluation(version, "x", lambda _: (_ for _ in ()).throw(ValueError("no")))
    assert len(list((version.folder / "evaluations").iterdir())) == 3


def test_the_evaluation_made_last_is_the_latest_whatever_touch_and_copies_do_to_its_files(tmp_path: Path) -> None:
    version = publish(tmp_path, "a", small)
    times = {"z": "2026-01-01T00:00:00+00:00", "m": "2026-03-01T00:30:00+01:00", "b": "2026-03-01T00:00:00+00:00", "a": "2026-03-01T00:00:00+00:00"}
    for number, (label, created) in enumerate(times.items()):
        folder = add_evaluation(version, label, lambda stage, c=created: (stage / "scores.json").write_text(json.dumps({"created": c})) and None)  # type: ignore[misc]
        os.utime(folder / "scores.json", (2e9 - number, 2e9 - number))  # the other way round
    assert [p.name for p in evaluations(version)] == ["b", "a", "m", "z"]
    copy = Path(shutil.copytree(tmp_path / "a", tmp_path / "b"))
    assert [p.name for p in evaluations(Version("b", 1, copy / "1"))] == ["b", "a", "m", "z"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\udcff", "[" * 100_000])
def test_scores_that_are_not_as_written_are_refused_by_their_file_and_do_not_hide_behind_older_ones(tmp_path: Path, text: str) -> None:
    version = publish(tmp_path, "a", small)
    for label, said in (("first", b"{}"), ("last", text.encode("utf-8", "surrogateescape"))):
        add_evaluation(version, label, lambda stage, s=said: (stage / "scores.json").write_bytes(s) and None)  # type: ignore[misc]
        os.utime(version.folder / "evaluations" / label / "scores.json", (1e9, 1e9 + (label == "last")))
    folder = latest_evaluation(version)
    assert folder is not None and folder.name == "last" and read_scores(folder.parent / "first") == {}
    told = refusal(lambda: read_scores(folder))
    assert "last/scores.json" in told and "tuner evaluate a@1" in told


def test_an_evaluation_that_could_not_be_sent_does_not_stay_here_and_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = store_folder(f"file://{tmp_path}/far")
    version = publish(store, "a", small)
    there = tmp_path / "far" / "a" / "1" / "evaluations" / "e"
    there.parent.write_bytes(b"")  # a file where a folder should come: a storage that fails

    def fill(stage: Path) -> None:
        (stage / "scores.json").write_text("{}", encoding="utf-8")

    refusal(lambda: add_evaluation(version, "e", fill))
    assert latest_evaluation(version) is None and list((version.folder / "evaluations").iterdir()) == []
    there.parent.unlink()
    there.mkdir(parents=True)
    (there / ".sending.json").write_bytes(b"{}")  # begun by somebody, never ended
    assert add_evaluation(version, "e", fill).name == "e-2" and (there.parent / "e-2" / "scores.json").read_bytes() == b"{}"


# --- what this user may not read -----------------------------------------------------------------------------------


@contextmanager
def shut(path: Path) -> Iterator[None]:
    """Nobody may read `path`, not even root: this process is somebody else meanwhile."""
    mode, is_root = stat.S_IMODE(path.stat().st_mode), os.geteuid() == 0
    path.chmod(0)
    if is_root:
        os.setresuid(65534, 65534, 0)  # the real user too: os.access asks for that one
    try:
        yield
    finally:
        if is_root:
            os.setresuid(0, 0, 0)
        path.chmod(mode)


@pytest.mark.parametrize(
    "what", ["a", "a/1", f"a/1/{MANIFEST}", "a/1/adapter.bin", "a/1/sub", "a/1/sub/note.txt", "a/log", "a/log/000001.json", "a/1/evaluations"]
)
def test_what_this_user_may_not_read_is_refused_by_name_never_passed_over(what: str) -> None:
    with scratch() as folder:
        folder.chmod(0o755)
        version = publish(folder, "a", small)
        add_evaluation(version, "e", lambda stage: (stage / "scores.json").write_text("{}") and None)  # type: ignore[arg-type]
        append(folder / "a", 0, "promote", 1, "production", "ann", "good")

        def everything() -> None:
            verify(find(folder, "a@1").folder)
            latest_evaluation(version)

        everything()
        with shut(folder / what):
            said = refusal(everything)
            assert "unreadable: Permission denied" in said and what in said and "mend its permissions" in said
            if what == "a":
                refusal(lambda: versions(folder))
            if what in ("a", "a/log", "a/log/000001.json"):
                refusal(lambda: state(folder / "a"))


def test_a_version_where_a_name_alone_is_wanted_is_told_the_name(tmp_path: Path) -> None:
    publish(tmp_path, "a", small)
    said = refusal(lambda: home_of(tmp_path, "a@1"))
    assert "NAME alone" in said and "use 'a'" in said
    said = refusal(lambda: find(tmp_path / "a", "a@1"))
    assert "no versions in this folder" in said and f"--store {tmp_path}" in said
    assert "no versions in this folder" in refusal(lambda: find(tmp_path / "b", "a@1"))


# --- the manifest --------------------------------------------------------------------------------------------------


def test_a_manifest_lists_every_file_with_its_digest(tmp_path: Path) -> None:
    version = publish(tmp_path, "a", small)
    manifest = verify(version.folder)
    assert manifest == json.loads((version.folder / MANIFEST).read_bytes()) == read_manifest(version.folder)
    assert manifest["schema"] == SCHEMA == 1 and manifest["status"] == "complete" and manifest["version"] == 1
    assert manifest["files"] == {
        name: {"bytes": (version.folder / name).stat().st_size, "digest": digest_file(version.folder / name)} for name in ("adapter.bin", "sub/note.txt")
    }


def test_every_flipped_byte_of_every_file_is_caught(tmp_path: Path) -> None:
    folder = thawed(publish(tmp_path, "a", small))
    flipped = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        for place in range(len(data)):
            for bits in (0x01, 0x07, 0x20, 0xFF):  # 0x07 turns a line feed into a carriage return, 0x20 changes case
                path.write_bytes(data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :])
                with pytest.raises(Refusal):
                    verify(folder)
                flipped += 1
        path.write_bytes(data)
        verify(folder)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert flipped == 4 * size and 400 < size < 1000


def test_a_shortened_or_lengthened_file_is_caught(tmp_path: Path) -> None:
    folder = thawed(publish(tmp_path, "a", small))
    cuts = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        for spoilt in [*(data[:n] for n in range(len(data))), data + b"\n", data + b" ", b" " + data, data + data]:
            path.write_bytes(spoilt)
            with pytest.raises(Refusal):
                verify(folder)
            cuts += 1
        path.write_bytes(data)
    verify(folder)
    assert cuts > 400


def test_removed_and_added_files_are_all_named(tmp_path: Path) -> None:
    folder = thawed(publish(tmp_path, "a", small))
    (folder / "adapter.bin").unlink()
    (folder / "sub" / "note.txt").write_bytes(b"other")
    (folder / "sub" / "more.txt").write_bytes(b"")
    (folder / "evil.py").symlink_to("/nowhere")
    (folder / "elsewhere").symlink_to(tmp_path)
    (folder / "sub" / "same.txt").symlink_to(tmp_path / "a" / ".lock")
    os.mkfifo(folder / "pipe")
    with pytest.raises(Refusal) as caught:
        verify(folder)
    assert {(Path(p.where).relative_to(folder).as_posix(), p.found) for p in caught.value.problems} == {
        ("adapter.bin", "no such file"),
        ("sub/note.txt", "bytes that differ from the manifest"),
        *((name, "a file that the manifest does not list") for name in ("sub/more.txt", "evil.py", "sub/same.txt", "elsewhere", "pipe")),
    }


def test_a_manifest_rewritten_with_other_facts_is_caught(tmp_path: Path) -> None:
    folder = thawed(publish(tmp_path, "a", small))
    manifest = read_manifest(folder)
    edits: list[dict[str, Any]] = [
        {"loss": 0.01},
        {"status": "broken"},
        {"files": {}},
        {"digest": None},
        {"more": 1},
        {"loss": float("nan")},
        {"loss": "\ud83d"},
    ]
    for edit in edits:
        (folder / MANIFEST).write_text(json.dumps({**manifest, **edit}, indent=2, sort_keys=True), encoding="utf-8")
        assert "changed after it was written" in refusal(lambda: verify(folder)), edit
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")  # the same facts in other bytes
    assert "changed after it was written" in refusal(lambda: verify(folder))


@pytest.mark.parametrize(
    "files",
    [
        {"../b": {"bytes": 1, "digest": "x"}}, {"/etc/passwd": {"bytes": 1, "digest": "x"}}, {"a/../b": {"bytes": 1, "digest": "x"}},
        {"": {"bytes": 1, "digest": "x"}}, {"a": None}, {"a": {"bytes": "1", "digest": "x"}},
        {"a": {"bytes": 1}}, {"a\0": {"bytes": 1, "digest": "x"}}, [], None, "a",
    ],
)  # fmt: skip
def test_a_manifest_forged_with_care_names_no_file_outside_its_folder(tmp_path: Path, files: Any) -> None:
    whole = {"schema": SCHEMA, "status": "complete", "files": files}
    (tmp_path / MANIFEST).write_text(json_text({**whole, "digest": digest_text(json_text(whole))}), encoding="utf-8")
    assert "a relative path with bytes and digest" in refusal(lambda: verify(tmp_path))


def test_a_file_replaced_by_a_link_to_the_same_bytes_is_caught(tmp_path: Path) -> None:
    folder = thawed(publish(tmp_path, "a", small))
    (folder / "adapter.bin").rename(tmp_path / "elsewhere.bin")
    (folder / "adapter.bin").symlink_to(tmp_path / "elsewhere.bin")
    assert "a link" in refusal(lambda: verify(folder))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (None, "no manifest"),
        ("", "unreadable"),
        ("{", "unreadable"),
        ("[" * 100_000, "unreadable"),
        ("[]", "no schema number"),
        ("{}", "no schema number"),
        ('{"schema": "1"}', "no schema number"),
        ('{"schema": 2, "files": "in another form"}', "upgrade tuner"),
        ('{"schema": 1}', "changed after it was written"),
    ],
)
def test_an_absent_broken_or_newer_manifest_is_refused(tmp_path: Path, text: str | None, word: str) -> None:
    folder = thawed(publish(tmp_path, "a", small))
    (folder / MANIFEST).unlink()
    if text is not None:
        (folder / MANIFEST).write_text(text, encoding="utf-8")
    assert word in refusal(lambda: verify(folder))
