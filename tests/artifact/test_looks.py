"""How often held_out was opened: counted by its records and by adapters, whatever happened to the file."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

from tuner.artifact.looks import LOOKS, look, looks
from tuner.artifact.store import versions

DAY = "2026-11-20T10:00:00+00:00"


def test_looks_are_counted_by_the_digest_of_the_records_and_by_adapter(tmp_path: Path) -> None:
    assert look(tmp_path, "sha256:a", "colours@1", "m1", DAY) == looks(tmp_path, "sha256:a")
    look(tmp_path, "sha256:a", "colours@1", "m1", DAY)
    other = look(tmp_path, "sha256:b", "colours@1", "m1", DAY)
    third = look(tmp_path, "sha256:a", "colours@2", "m2", DAY)
    assert (other["count"], other["versions"]) == (1, ["colours@1"])
    assert (third["count"], third["versions"], third["digest"]) == (3, ["colours@1", "colours@2"], "sha256:a")
    assert looks(tmp_path, "sha256:c") == {"digest": "sha256:c", "count": 0, "versions": [], "words": looks(tmp_path, "sha256:c")["words"]}


def test_two_adapters_of_one_label_are_two_and_one_adapter_under_two_labels_is_one(tmp_path: Path) -> None:
    """A store may have been emptied and filled again: the manifest's digest says which adapter it was."""
    look(tmp_path, "d", "colours@1", "m1", DAY)
    assert len(look(tmp_path, "d", "colours@1", "m2", DAY)["versions"]) == 2
    assert len(look(tmp_path, "d", "shades@1", "m2", DAY)["versions"]) == 2


def test_the_sentence_warns_only_when_versions_were_compared(tmp_path: Path) -> None:
    alone = look(tmp_path, "d", "colours@1", "m1", DAY)["words"]
    again = look(tmp_path, "d", "colours@1", "m1", DAY)["words"]
    assert "1 time in this store, for this version alone" in alone and "2 times in this store, for this version alone" in again
    words = look(tmp_path, "d", "colours@2", "m2", DAY)["words"]
    assert "3 times" in words and "2 versions (colours@1, colours@2)" in words and "flatter" in words


def test_wherever_the_file_was_torn_whole_looks_before_and_after_count(tmp_path: Path) -> None:
    for number in range(3):
        look(tmp_path, "d", f"colours@{number}", f"m{number}", DAY)
    whole = (tmp_path / LOOKS).read_bytes()
    for cut in range(len(whole)):
        (tmp_path / LOOKS).write_bytes(whole[:cut])
        kept = sum(line.endswith(b"}") for line in whole[:cut].split(b"\n"))
        assert look(tmp_path, "d", "colours@9", "m9", DAY)["count"] == kept + 1, cut
    assert len(whole) > 300


def test_lines_that_are_no_looks_count_as_none(tmp_path: Path) -> None:
    junk = ["{", "null", "[]", '{"digest": "d"}', '{"digest": "d", "version": "x@1"}', "\x00", "[" * 5000]
    (tmp_path / LOOKS).write_bytes("\n".join(junk).encode() + b"\xff\xfe")
    assert look(tmp_path, "d", "colours@1", "m1", DAY)["count"] == 1


def _look_often(store: str, process: int) -> None:
    for number in range(20):
        look(Path(store), "d", f"colours@{process}", f"m{process}", f"{number}")


def test_eight_processes_lose_no_look(tmp_path: Path) -> None:
    processes = [multiprocessing.get_context("fork").Process(target=_look_often, args=(str(tmp_path), number)) for number in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * 8
    found = looks(tmp_path, "d")
    assert found["count"] == 160 and len(found["versions"]) == 8
    lines = [json.loads(line) for line in (tmp_path / LOOKS).read_text(encoding="utf-8").split("\n") if line]
    assert len({(line["version"], line["created"]) for line in lines}) == 160


def test_a_store_with_looks_holds_no_version_more(tmp_path: Path) -> None:
    look(tmp_path / "adapters", "d", "colours@1", "m1", DAY)
    assert versions(tmp_path / "adapters") == []
