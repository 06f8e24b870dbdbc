"""The log of a name: each entry written whole by exactly one writer, the state readable from the newest file alone, every change of the past found."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import KILLED, OS_ERROR, swept
from tuner.artifact.history import Entry, Moved, State, append, check_log, entries, numbers_given, state
from tuner.durable import json_text
from tuner.errors import Refusal
from tuner.fingerprint import digest_bytes, digest_text


def moved(home: Path, version: int, alias: str = "production", what: Any = "promote") -> Entry:
    return append(home, state(home).count, what, version, alias, "ann", f"because of {version}", {"n": version})


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(Refusal) as caught:
        call()
    return str(caught.value)


def log_of(home: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((home / "log").iterdir())}


def some(home: Path) -> Path:
    """Six entries, one of each kind that changes something."""
    moved(home, 1)
    moved(home, 2)
    moved(home, 1, what="rollback")
    append(home, 3, "retire", 2, None, "bob", "too slow")
    append(home, 4, "forget", 1, None, "bob", "asked to", {"records": ["sha256:bb", "sha256:aa"]})
    append(home, 5, "remove", 2, None, "bob", "gc")
    return home


def test_a_name_without_a_log_has_nothing_and_one_entry_makes_the_log(tmp_path: Path) -> None:
    assert state(tmp_path / "a") == State() and entries(tmp_path / "a") == []
    entry = moved(tmp_path / "a", 3)
    assert entry.number == 1 and entry.previous == "" and state(tmp_path / "a") == State({"production": 3}, {}, {}, {}, 1)
    assert entries(tmp_path / "a") == [entry]


def test_each_entry_is_one_read_only_file_that_says_by_itself_what_holds(tmp_path: Path) -> None:
    home = some(tmp_path / "a")
    assert [p.name for p in sorted((home / "log").iterdir())] == [f"{n:06}.json" for n in range(1, 7)]
    assert {stat.S_IMODE(p.stat().st_mode) & 0o222 for p in (home / "log").iterdir()} == {0}
    said = json.loads((home / "log" / "000006.json").read_bytes())
    assert {k: said[k] for k in ("schema", "number", "what", "version", "alias", "by", "why")} == {
        "schema": 1, "number": 6, "what": "remove", "version": 2, "alias": None, "by": "bob", "why": "gc",
    }  # fmt: skip
    assert (said["aliases"], said["retired"], said["marked"], said["removed"]) == ({"production": 1}, {}, {"1": ["sha256:aa", "sha256:bb"]}, {"2": "gc"})
    assert said["previous"] == digest_bytes((home / "log" / "000005.json").read_bytes())
    assert state(home) == State({"production": 1}, {}, {1: ["sha256:aa", "sha256:bb"]}, {2: "gc"}, 6)
    assert [e.what for e in entries(home)] == ["promote", "promote", "rollback", "retire", "forget", "remove"] and numbers_given(home) == 2


def test_a_retired_version_is_restored_and_marks_add_up(tmp_path: Path) -> None:
    for after, (what, facts) in enumerate([("retire", {}), ("restore", {}), ("forget", {"records": ["b", "a"]}), ("forget", {"records": ["c", "a"]})]):
        append(tmp_path, after, what, 4, None, "ann", "why", facts)  # type: ignore[arg-type]
    assert state(tmp_path) == State({}, {}, {4: ["a", "b", "c"]}, {}, 4) and len(check_log(tmp_path)) == 4


def test_an_entry_that_somebody_wrote_meanwhile_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    seen = state(tmp_path)
    moved(tmp_path, 1)
    before = log_of(tmp_path)
    for after in (seen.count, 5):
        with pytest.raises(Moved, match="somebody wrote meanwhile"):
            append(tmp_path, after, "promote", 2, "production", "bob", "mine")
    assert log_of(tmp_path) == before and state(tmp_path).aliases == {"production": 1}


RACER = """
import sys
from pathlib import Path
from tuner.artifact.history import append, state
from tuner.errors import Refusal

home, me = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
for line in sys.stdin:
    after = int(line)
    try:
        append(home, after, "promote", me, "production", f"racer {me}", "first")
        print("won", flush=True)
    except Refusal as refusal:
        print("moved" if "somebody wrote meanwhile" in str(refusal) else str(refusal), flush=True)
"""


def test_of_eight_processes_that_race_for_an_entry_exactly_one_writes_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACER, str(tmp_path)]
    racers = [subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for i in range(1, 9)]
    said = dict.fromkeys(range(1, 9), "")
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for round_ in range(20):
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write(f"{round_}\n")
            racer.stdin.flush()
        for number, racer in enumerate(racers, start=1):
            assert racer.stdout is not None
            said[number] = racer.stdout.readline().strip()
        winners = [number for number, word in said.items() if word == "won"]
        assert len(winners) == 1 and set(said.values()) == {"won", "moved"}
        assert state(tmp_path).aliases == {"production": winners[0]} and state(tmp_path).count == round_ + 1
    for racer in racers:
        racer.communicate(timeout=60)
    assert [e.number for e in check_log(tmp_path)] == list(range(1, 21))


def test_every_flipped_byte_and_every_missing_entry_of_a_log_is_found(tmp_path: Path) -> None:
    home = some(tmp_path / "a")
    whole, flipped = log_of(home), 0
    for name, data in whole.items():
        path = home / "log" / name
        path.chmod(0o644)
        for place in range(0, len(data), 7):
            path.write_bytes(data[:place] + bytes([data[place] ^ 0x01]) + data[place + 1 :])
            refusal(lambda: check_log(home))
            flipped += 1
        path.unlink()
        if name != sorted(whole)[-1]:
            assert "no such entry" in refusal(lambda: check_log(home)) and "no such entry" in refusal(lambda: state(home))
            assert "no such entry" in refusal(lambda: append(home, 6, "retire", 1, None, "a", "b"))
        path.write_bytes(data)
    assert len(check_log(home)) == 6 and flipped > 300


def rewritten(path: Path, **changes: Any) -> None:
    """An entry forged with care: other facts, and its own digest as it would be."""
    said = {**json.loads(path.read_bytes()), **changes}
    said = {k: v for k, v in said.items() if v is not None and k != "digest"}
    path.unlink()
    path.write_text(json_text({**said, "digest": digest_text(json_text(said))}), encoding="utf-8")


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "unreadable"), (b"{", "unreadable"), (b"[" * 100_000, "unreadable"), (b"[]", "no schema number"), (b'{"schema": 2}', "upgrade tuner"),
        (b'{"schema": 1}', "changed after it was written"), (b'{"schema": 1, "by": NaN}', "changed after it was written"),
    ],
)  # fmt: skip
def test_a_newest_entry_that_is_broken_or_of_a_newer_tuner_is_refused_and_its_numbers_stay_given(tmp_path: Path, data: bytes, word: str) -> None:
    moved(tmp_path, 7)
    (tmp_path / "log" / "000002.json").write_bytes(data)
    assert word in refusal(lambda: state(tmp_path)) and word in refusal(lambda: append(tmp_path, 2, "retire", 1, None, "a", "b"))
    assert numbers_given(tmp_path) == 7


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"aliases": {"production": 2}}, "do not lead to"), ({"retired": {"1": "x"}}, "do not lead to"), ({"version": 2}, "do not lead to"),
        ({"number": 2}, "number '2'"), ({"what": "sell"}, "'sell'"), ({"previous": "sha256:00"}, "another entry before it"), ({"by": None}, "no by"),
        ({"aliases": {"1": 2}}, "no alias can have"), ({"aliases": {"a": "x"}}, "no table"), ({"removed": None}, "no table"), ({"marked": [1]}, "no table"),
    ],
)  # fmt: skip
def test_a_carefully_forged_entry_is_found(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    moved(tmp_path, 1)
    rewritten(tmp_path / "log" / "000001.json", **changes)
    assert word in refusal(lambda: check_log(tmp_path))


@pytest.mark.parametrize("text", ["", "  ", "x" * 2001, "half \ud83d"])
def test_a_name_or_reason_that_says_nothing_or_cannot_be_written_is_refused(tmp_path: Path, text: str) -> None:
    assert "characters of text" in refusal(lambda: append(tmp_path, 0, "retire", 1, None, "ann", text))
    assert "characters of text" in refusal(lambda: append(tmp_path, 0, "retire", 1, None, text, "why"))
    assert not (tmp_path / "log").exists()


def test_other_files_in_the_log_are_no_entries(tmp_path: Path) -> None:
    moved(tmp_path, 1)
    for name in ("1.json", "000002.json.bak", ".000002.json", "0000002", "٠٠٠٠٠٢.json"):
        (tmp_path / "log" / name).write_bytes(b"x")
    assert state(tmp_path).count == 1 and len(check_log(tmp_path)) == 1
    assert moved(tmp_path, 2).number == 2


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o002, 0o1775), (0o077, 0o700)])
def test_a_log_that_a_group_may_write_lets_nobody_rename_anothers_entries(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        moved(tmp_path, 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "log" / "000001.json").stat().st_mode) == 0o444 & ~mask


# --- faults at every I/O call of an append -------------------------------------------------------------------------


def before(root: Path) -> None:
    work(root)


def work(root: Path) -> None:
    moved(root / "a", state(root / "a").count + 1)


def after(root: Path, mode: str, status: int) -> None:
    """One entry or two, each whole, the alias where the newest says; the next append works and sweeps."""
    home = root / "a"
    assert status in {0, KILLED} if mode in ("kill", "torn", "power_loss") else status in {0, OS_ERROR}
    count = len(check_log(home))
    assert count in ((2,) if status == 0 else (1, 2)) and state(home).aliases == {"production": count}
    work(root)
    assert len(check_log(home)) == count + 1 and state(home).aliases == {"production": count + 1}
    assert sorted(p.name for p in (home / "log").iterdir()) == [f"{n:06}.json" for n in range(1, count + 2)]


def test_a_fault_at_every_io_call_of_an_append_leaves_whole_entries_only() -> None:
    found = swept("tests.artifact.test_history")
    assert found["failures"] == []
    assert len(found["calls"]) >= 7 and any("link" in call for call in found["calls"])
    assert found["statuses"]["kill"] == found["statuses"]["power_loss"] == {str(KILLED): len(found["calls"])}
    assert found["statuses"]["full"][str(OS_ERROR)] >= 3 and found["statuses"]["error"][str(OS_ERROR)] >= 4
