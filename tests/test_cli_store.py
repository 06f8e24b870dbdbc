"""list, show, promote, rollback, retire, log and gc as a user meets them: what they print, what they change, how they end."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.artifact.test_store import shut
from tests.conftest import tuner
from tests.faults import scratch
from tests.test_promotion import FAIL, PASS, RULE, UNDECIDED, recipe
from tuner.artifact.history import append, check_log, state
from tuner.artifact.manifest import write_manifest
from tuner.artifact.store import add_evaluation, publish

FORM = re.compile(r"^\S.*\n  found     .+\n  accepted  .+\n  try       .+", re.MULTILINE)
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
HOSTILE = "evil\x1b[31m\u202e\x07"


def shelved(store: Path, found: tuple[float, float, float] | None) -> None:
    """A version with a card, as a run leaves one, and the evaluation that was `found`."""

    def fill(stage: Path, number: int) -> None:
        (stage / "resolved.yaml").write_text(recipe(RULE), encoding="utf-8")
        (stage / "README.md").write_text(f"---\n{{}}\n---\n\n# a, version {number}\n", encoding="utf-8")
        write_manifest(stage, {"name": "a", "version": number, "created": "2026-01-02T03:04:05+00:00", "base": {"name": "tiny"}})

    version = publish(store, "a", fill)
    if found is None:
        return
    value = dict(zip(("value", "low", "high"), found, strict=True)) | {"n": 100, "method": "Wilson"}
    facts = {"exact_match": {"higher_is_better": True, "form": "mean"}}
    suite = {"role": "held_out", "values": {"adapter": {"exact_match": value}}, "differences": {}, "metrics": facts}
    verdict = {"word": "better", "metric": "exact_match", "value": 0.25}
    outcome = {PASS: "pass", FAIL: "fail", UNDECIDED: "undecided"}[found]
    scores = {"primary": "exact_match", "suites": {"held_out": suite}, "metrics": facts, "verdict": verdict, "gate": {"outcome": outcome, "rules": []}}

    def evaluate(stage: Path) -> None:
        (stage / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
        (stage / "report.md").write_text("# a: better than the prompted base\n", encoding="utf-8")

    add_evaluation(version, "e", evaluate)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions a@1 (passes), a@2 (fails), a@3 (undecided), a@4 (not evaluated)."""
    folder = tmp_path_factory.mktemp("shelf")
    for found in (PASS, FAIL, UNDECIDED, None):
        shelved(folder / "adapters", found)
    return folder


@pytest.fixture
def folder(shelf: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shelf, tmp_path / "copy"))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`tuner WORDS` as its entry point runs it, in this process: fifty of them cost a second instead of twenty."""
    from tuner.cli import main

    def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["tuner", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(words, int(ended.value.code or 0), printed.out, printed.err)

    return run


Said = Callable[..., subprocess.CompletedProcess[str]]


def test_a_promotion_ends_0_when_the_gate_passes_3_when_it_fails_and_4_when_it_is_undecided(folder: Path, said: Said) -> None:
    done = tuner("promote", "a@1", "--by", "ann", cwd=folder)  # a real process
    assert done.returncode == 0 and "promote production → 1  by ann: the gate passes on e" in done.stdout, done.stderr
    for number, code, sign in ((2, 3, "✗ fail"), (3, 4, "? undecided")):
        done = said("promote", f"a@{number}", cwd=folder)
        assert done.returncode == code and sign in done.stdout and "production still stands for a@1" in done.stdout and "--override" in done.stdout
        assert said("gate", f"a@{number}", cwd=folder).returncode == code
    done = said("promote", "a@4", cwd=folder)
    assert done.returncode == 2 and FORM.search(done.stderr) and "tuner evaluate a@4" in done.stderr
    assert state(folder / "adapters" / "a").aliases == {"production": 1} and state(folder / "adapters" / "a").count == 1


def test_the_whole_life_of_an_alias_is_told_by_list_show_and_log(folder: Path, said: Said) -> None:
    words: list[tuple[list[str], int]] = [
        (["promote", "a@1", "--to", "canary"], 0),
        (["promote", "a@2", "--override", "--reason", "the old one is down", "--by", "ann"], 0),
        (["promote", "a@2", "--override", "--reason", "the old one is down", "--by", "ann"], 0),  # again: nothing to move
        (["promote", "a@3", "--override", "--by", "ann"], 2),
        (["promote", "a@3", "--override", "--reason", "better", "--by", "bob", "--expect", "2"], 0),
        (["rollback", "a", "--reason", "complaints", "--by", "bob"], 0),
        (["rollback", "a"], 2),
        (["retire", "a@2", "--reason", "slow"], 2),
        (["retire", "a@3", "--reason", "worse on cards"], 0),
        (["retire", "a@4"], 2),
    ]
    for command, code in words:
        done = said(*command, cwd=folder)
        assert done.returncode == code and "Traceback" not in done.stderr, (command, done.stderr)
        assert (FORM.search(done.stderr) is not None) == (code == 2)
    home = folder / "adapters" / "a"
    assert [(e.what, e.alias, e.version) for e in check_log(home)] == [
        ("promote", "canary", 1), ("promote", "production", 2), ("promote", "production", 3), ("rollback", "production", 2), ("retire", None, 3),
    ]  # fmt: skip

    listed = said("list", cwd=folder).stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["a@1", "a@2", "a@3", "a@4"]
    assert "better (exact_match +0.250), gate: pass  [canary]" in listed[0] and "gate: fail  [production]" in listed[1]
    assert "retired: worse on cards" in listed[2] and "not evaluated" in listed[3] and "tiny" in listed[0] and "2026-01-02T03:04" in listed[0]
    rows = json.loads(said("list", "--json", cwd=folder).stdout)
    assert [(r["version"], r["aliases"], r["gate"], r["retired"]) for r in rows] == [
        ("a@1", ["canary"], "pass", None), ("a@2", ["production"], "fail", None), ("a@3", [], "undecided", "worse on cards"), ("a@4", [], None, None),
    ]  # fmt: skip

    shown = said("show", "a@production", cwd=folder).stdout
    assert shown.startswith("a@2  ") and "production since " in shown and "rollback by bob: complaints" in shown
    assert "# a, version 2" in shown and "# a: better than the prompted base" in shown and "---" not in shown
    assert "not evaluated" in said("show", "a", cwd=folder).stdout  # the latest in use is a@4

    told = said("log", "a", cwd=folder).stdout.splitlines()
    assert len(told) == 5 and "promote production → 2 (gate fail, overridden)  by ann: the old one is down" in told[1]
    assert "rollback production 3 → 2  by bob: complaints" in told[3] and "retire a@3" in told[4]
    entries = json.loads(said("log", "a", "--json", cwd=folder).stdout)
    assert [e["number"] for e in entries] == [1, 2, 3, 4, 5] and entries[1]["facts"]["gate"]["outcome"] == "fail"


def test_gc_says_first_and_deletes_only_when_told_to(folder: Path, said: Said) -> None:
    home = folder / "adapters" / "a"
    for number, version in enumerate((2, 3)):
        append(home, number, "retire", version, None, "ann", "worse")
    append(home, 2, "promote", 3, "canary", "ann", "still")
    first = said("gc", cwd=folder)
    assert first.returncode == 0 and "would go" in first.stdout and "canary stands for it" in first.stdout and (home / "2").is_dir()
    told = json.loads(said("gc", "--json", cwd=folder).stdout)
    size = sum(p.stat().st_size for p in (home / "2").rglob("*") if p.is_file())
    assert [(g["what"], g["bytes"]) for g in told["going"]] == [("a@2", size)] and told["bytes"] == size and told["applied"] is False
    done = said("gc", "--apply", "--by", "bob", cwd=folder)
    assert done.returncode == 0 and f"{size:,} bytes in 1 folders deleted" in done.stdout and not (home / "2").exists() and (home / "3").is_dir()
    assert check_log(home)[-1].by == "bob"
    gone = said("show", "a@2", cwd=folder)
    assert gone.returncode == 2 and "it was removed" in gone.stderr


def test_a_log_that_was_changed_is_refused_and_hides_no_version(folder: Path, said: Said) -> None:
    home = folder / "adapters" / "a"
    append(home, 0, "promote", 1, "production", "ann", "good")
    path = home / "log" / "000001.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"production": 1', b'"production": 2'))
    for words in (["log", "a"], ["promote", "a@1"], ["rollback", "a"], ["show", "a@1"]):
        done = said(*words, cwd=folder)
        assert done.returncode == 2 and "changed after it was written" in done.stderr and FORM.search(done.stderr)
    listed = said("list", cwd=folder)
    assert listed.returncode == 0 and listed.stdout.count("its log is broken") == 4


def test_hostile_text_in_a_log_reaches_the_terminal_only_as_visible_text(folder: Path, said: Said) -> None:
    home = folder / "adapters" / "a"
    facts: dict[str, Any] = {"override": True, "gate": {"outcome": HOSTILE}}
    append(home, 0, "promote", 1, "production", f"ann {HOSTILE}", f"good {HOSTILE}", facts)
    append(home, 1, "retire", 2, None, HOSTILE, HOSTILE)
    for words in (["log", "a"], ["list"], ["show", "a@production"], ["show", "a@2"], ["gc"]):
        done = said(*words, cwd=folder)
        assert done.returncode == 0 and "\\x1b" in done.stdout and not RAW.search(done.stdout), done.stdout


def test_an_empty_store_says_so(tmp_path: Path, said: Said) -> None:
    assert "no versions yet" in said("list", cwd=tmp_path).stdout
    assert "0 bytes in 0 folders may go" in said("gc", cwd=tmp_path).stdout
    for words in (["log", "a"], ["promote", "a"], ["rollback", "a"], ["retire", "a@1", "--reason", "x"]):
        done = said(*words, cwd=tmp_path)
        assert done.returncode == 2 and "none yet" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_one_broken_evaluation_is_a_row_of_the_list_and_refused_by_what_needs_it(folder: Path, said: Said) -> None:
    for number in (1, 2):
        scores = folder / "adapters" / "a" / str(number) / "evaluations" / "e" / "scores.json"
        scores.chmod(0o644)
        scores.write_text('{"suites": ' if number == 1 else "[]", encoding="utf-8")
    for words in (["gate", "a@1"], ["promote", "a@1"], ["report", "a@1"], ["compare", "a@1", "a@3"], ["gate", "a@2"]):
        done = said(*words, cwd=folder)
        assert done.returncode == 2 and FORM.search(done.stderr) and "scores.json" in done.stderr and f"tuner evaluate {words[1]}" in done.stderr
    listed = said("list", cwd=folder)
    assert listed.returncode == 0 and listed.stdout.count("broken evaluation") == 2 and "gate: undecided" in listed.stdout
    done = said("report", "a@3", cwd=folder)
    assert done.returncode == 2 and "no answers" in done.stderr
    (folder / "adapters" / "a" / "3" / "evaluations" / "e").chmod(0o755)
    (folder / "adapters" / "a" / "3" / "evaluations" / "e" / "report.md").unlink()
    assert "tuner report a@3" in said("show", "a@3", cwd=folder).stdout


def test_what_this_user_may_not_read_is_a_row_of_the_list_and_a_refusal_elsewhere(shelf: Path, said: Said) -> None:
    asked = [["list"], ["gc"], ["log", "a"], ["show", "a@1"], ["verify", "a@1"]]
    with scratch() as place:
        shutil.copytree(shelf, place, dirs_exist_ok=True)
        place.chmod(0o755)
        evaluation = place / "adapters" / "a" / "1" / "evaluations" / "e"
        (evaluation / "answers.jsonl").write_bytes(b"")
        for words in [*asked, ["report", "a@1"]]:  # what they import lies where not everybody may read
            said(*words, cwd=place)
        for what, row in (("a", "unreadable: Permission denied"), ("a/log", "its log is broken"), ("a/1/evaluations", "broken evaluation")):
            (place / "adapters" / "a" / "log").mkdir(exist_ok=True)
            with shut(place / "adapters" / what):
                listed = said("list", cwd=place)
                assert listed.returncode == 0 and row in listed.stdout, listed.stderr
                for words in asked[1:]:
                    done = said(*words, cwd=place)
                    assert done.returncode in (0, 2) and "Traceback" not in done.stderr and (done.returncode == 2) == bool(FORM.search(done.stderr))
        evaluation.chmod(0o555)
        with shut(place / "adapters" / "a" / "2"):  # another version: nothing but the mode of this one stands in the way
            done = said("report", "a@1", cwd=place)
        evaluation.chmod(0o755)
        assert done.returncode == 2 and "not writable by this user" in done.stderr


def test_every_try_line_of_the_store_is_a_command_that_works(folder: Path, said: Said) -> None:
    home = folder / "adapters" / "a"
    for number, version in enumerate((1, 2, 3, 4)):
        append(home, number, "retire", version, None, "ann", "worse")
    for words in (["show", "a"], ["promote", "a@4"]):
        try_ = said(*words, cwd=folder).stderr.partition("  try       tuner ")[2].splitlines()[0]
        assert try_ == 'retire --undo a@4 --reason "…"'
    assert said(*shlex.split(try_), cwd=folder).returncode == 0
    again = said(*shlex.split(try_), cwd=folder)
    assert again.returncode == 2 and "accepted  a retired version" in again.stderr
    for words in (["rollback", "a@1"], ["log", "a@1"]):
        done = said(*words, cwd=folder)
        assert done.returncode == 2 and "NAME alone" in done.stderr and "use 'a'" in done.stderr
    for words in (["list"], ["gc", "--apply"]):
        gone = said(*words, "--store", str(folder / "nowhere"), cwd=folder)
        assert gone.returncode == 2 and "no such folder" in gone.stderr
