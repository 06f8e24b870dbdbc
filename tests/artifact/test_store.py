"""The store: numbers without gap or double, nothing half-published, nothing overwritten, every changed byte found."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuner.artifact.manifest import MANIFEST, SCHEMA, read_manifest, verify, write_manifest
from tuner.artifact.store import Version, add_evaluation, find, latest_evaluation, publish, versions
from tuner.errors import Refusal
from tuner.fingerprint import digest_file
from tuner.recipe import NAME


def small(stage: Path, number: int) -> None:
    """A version of a few hundred bytes: two files, one of them below, and the manifest."""
    (stage / "adapter.bin").write_bytes(bytes([0, number, 255]))
    (stage / "sub").mkdir()
    (stage / "sub" / "note.txt").write_text("é\r\n\n", encoding="utf-8")
    write_manifest(stage, {"version": number, "loss": 0.1, "tags": (1, 2), "by_line": {10: "a", 9: "b"}})


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(Refusal) as caught:
        call()
    return str(caught.value)


# --- publishing ----------------------------------------------------------------------------------------------------

WRITER = """
import os, sys
from pathlib import Path
from tuner.artifact.manifest import write_manifest
from tuner.artifact.store import publish

def fill(stage, number):
    (stage / "a.txt").write_text(f"{sys.argv[2]} wrote {number}\\n" * 50)
    write_manifest(stage, {"version": number, "writer": sys.argv[2]})

sys.stdin.readline()
for _ in range(10):
    print(publish(Path(sys.argv[1]), "busy", fill).number, flush=True)
"""


def test_eight_processes_of_ten_publishes_give_versions_1_to_80_each_intact(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for i in range(8)
    ]
    for writer in writers:  # all start together
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    said = {i: [int(n) for n in writer.communicate(timeout=120)[0].split()] for i, writer in enumerate(writers)}
    assert [w.returncode for w in writers] == [0] * 8
    assert sorted(n for numbers in said.values() for n in numbers) == list(range(1, 81))
    assert {p.name for p in (tmp_path / "busy").iterdir()} == {".lock", *map(str, range(1, 81))}
    for i, numbers in said.items():
        assert numbers == sorted(numbers) and len(numbers) == 10
        for number in numbers:
            version = find(tmp_path, f"busy@{number}")
            assert verify(version.folder)["writer"] == str(i)
            assert (version.folder / "a.txt").read_text(encoding="utf-8") == f"{i} wrote {number}\n" * 50
    assert [v.number for v, _ in versions(tmp_path)] == list(range(1, 81))


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


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_published_files_are_readable_by_another_user(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        version = publish(tmp_path, "a", small)
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in [version.folder, *version.folder.rglob("*")]}
    assert modes == {"1": 0o777 & ~mask, "sub": 0o777 & ~mask, **dict.fromkeys(("adapter.bin", "note.txt", MANIFEST), 0o666 & ~mask)}


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
    for folder in ("intents/12", "intents/x", "intents/.stage-x", "empty"):
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


def test_an_unknown_name_is_refused_with_the_nearest(store: Path) -> None:
    said = refusal(lambda: find(store, "intnets"))
    assert "no adapter 'intnets'" in said and "one of: intents, tickets" in said and "try       write intents" in said
    assert "one of: intents, tickets" in refusal(lambda: find(store, "empty"))
    for nothing in (store / "no-such-store", store / "empty"):
        said = refusal(lambda nothing=nothing: find(nothing, "intents"))  # type: ignore[misc]
        assert "none yet" in said and "tuner run RECIPE" in said
        assert versions(nothing) == []


# --- evaluations beside a version ----------------------------------------------------------------------------------


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
    folder = publish(tmp_path, "a", small).folder
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
    folder = publish(tmp_path, "a", small).folder
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
    folder = publish(tmp_path, "a", small).folder
    (folder / "adapter.bin").unlink()
    (folder / "sub" / "note.txt").write_bytes(b"other")
    (folder / "sub" / "more.txt").write_bytes(b"")
    (folder / "evil.py").symlink_to("/nowhere")
    (folder / "elsewhere").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    with pytest.raises(Refusal) as caught:
        verify(folder)
    assert {(Path(p.where).relative_to(folder).as_posix(), p.found) for p in caught.value.problems} == {
        ("adapter.bin", "no such file"),
        ("sub/note.txt", "bytes that differ from the manifest"),
        *((name, "a file that the manifest does not list") for name in ("sub/more.txt", "evil.py", "elsewhere", "pipe")),
    }


def test_a_manifest_rewritten_with_other_facts_is_caught(tmp_path: Path) -> None:
    folder = publish(tmp_path, "a", small).folder
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
    folder = publish(tmp_path, "a", small).folder
    (folder / MANIFEST).unlink()
    if text is not None:
        (folder / MANIFEST).write_text(text, encoding="utf-8")
    assert word in refusal(lambda: verify(folder))
