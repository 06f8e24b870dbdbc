"""Which version an alias stands for: only what the gate passed or somebody answers for, one mover at a time, and a way back."""

from __future__ import annotations

import getpass
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import KILLED, OS_ERROR, swept
from tuner import promotion
from tuner.artifact.history import append, check_log, entries, state
from tuner.artifact.manifest import write_manifest
from tuner.artifact.store import Version, add_evaluation, find, latest_evaluation, publish
from tuner.errors import Refusal
from tuner.fingerprint import digest_file
from tuner.promotion import promote, restore, retire, rollback, ruling

PASS, FAIL, UNDECIDED = (0.9, 0.8, 0.95), (0.2, 0.1, 0.3), (0.6, 0.4, 0.8)  # value and 95 % interval of a metric whose lower bound must reach 0.5
RULE = {"suite": "held_out", "metric": "exact_match", "of": "value", "at_least": 0.5}


def recipe(rule: dict[str, Any]) -> str:
    return json.dumps({"name": "a", "base": {"model": "tiny"}, "data": {"task": "label", "train": "train.jsonl"}, "gate": {"rules": [rule]}})


def graded(store: Path, found: tuple[float, float, float] | None = PASS, name: str = "a") -> Version:
    """A version of a few bytes with a real recipe in it and, where something was `found`, an evaluation."""

    def fill(stage: Path, number: int) -> None:
        (stage / "resolved.yaml").write_text(recipe(RULE), encoding="utf-8")
        write_manifest(stage, {"name": name, "version": number})

    version = publish(store, name, fill)
    if found is not None:
        evaluated(version, found)
    return version


def evaluated(version: Version, found: tuple[float, float, float]) -> Path:
    value = dict(zip(("value", "low", "high"), found, strict=True)) | {"n": 100, "method": "Wilson"}
    facts = {"exact_match": {"higher_is_better": True, "form": "mean"}}
    suite = {"role": "held_out", "values": {"adapter": {"exact_match": value}}, "differences": {}, "metrics": facts}
    scores = {"primary": "exact_match", "suites": {"held_out": suite}, "metrics": facts, "verdict": None}
    return add_evaluation(version, "e", lambda stage: (stage / "scores.json").write_text(json.dumps(scores), encoding="utf-8") and None)  # type: ignore[arg-type]


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(Refusal) as caught:
        call()
    return str(caught.value)


def forced(store: Path, number: int, alias: str = "production") -> None:
    promote(store, f"a@{number}", alias, override=True, by="ann", why="for the test")


# --- the gate ------------------------------------------------------------------------------------------------------


def test_a_version_whose_gate_passes_is_promoted_and_the_log_says_what_was_known(tmp_path: Path) -> None:
    version = graded(tmp_path)
    done = promote(tmp_path, "a@1")
    assert done.entry is not None and (done.before, done.alias, done.version) == (None, "production", version)
    assert (done.entry.by, done.entry.why) == (getpass.getuser(), "the gate passes on e")
    gate = done.entry.facts["gate"]
    assert (gate["outcome"], gate["evaluation"], gate["rules_of"]) == ("pass", "e", "the version's own recipe")
    assert gate["scores_digest"] == digest_file(version.folder / "evaluations" / "e" / "scores.json") and len(gate["rules"]) == 1
    assert find(tmp_path, "a@production") == version and check_log(tmp_path / "a") == [done.entry]


@pytest.mark.parametrize(("found", "outcome"), [(FAIL, "fail"), (UNDECIDED, "undecided")])
def test_a_gate_that_does_not_pass_moves_nothing_until_somebody_answers_for_it(tmp_path: Path, found: Any, outcome: str) -> None:
    graded(tmp_path)
    promote(tmp_path, "a@1")
    graded(tmp_path, found)
    held = promote(tmp_path, "a@2", by="bob", why="please")
    assert held.entry is None and held.ruled is not None and held.ruled.outcome == outcome and held.before == 1
    assert state(tmp_path / "a").aliases == {"production": 1} and state(tmp_path / "a").count == 1
    for half in ({"by": "bob"}, {"why": "urgent"}, {}, {"by": "", "why": ""}):
        assert "who overrides the gate, and why" in refusal(lambda half=half: promote(tmp_path, "a@2", override=True, **half))  # type: ignore[misc]
    done = promote(tmp_path, "a@2", override=True, by="bob", why="urgent")
    assert done.entry is not None and (done.entry.by, done.entry.why, done.entry.facts["override"], done.entry.facts["from"]) == ("bob", "urgent", True, 1)
    assert done.entry.facts["gate"]["outcome"] == outcome and done.entry.facts["gate"]["rules"][0]["outcome"] == outcome
    assert find(tmp_path, "a@production").number == 2


def test_a_version_that_was_never_evaluated_needs_an_override_that_says_so(tmp_path: Path) -> None:
    graded(tmp_path, None)
    assert "tuner evaluate a@1" in refusal(lambda: promote(tmp_path, "a@1"))
    done = promote(tmp_path, "a@1", override=True, by="bob", why="a demo")
    assert done.entry is not None and done.entry.facts["gate"]["outcome"] == "none" and "a version that was evaluated" in done.entry.facts["gate"]["why"]


def test_a_pulled_evaluation_decides_nothing_until_somebody_answers_for_it(tmp_path: Path) -> None:
    from tuner.artifact.hub import PULLED

    version = graded(tmp_path)
    folder = latest_evaluation(version)
    assert folder is not None
    (folder / PULLED).write_text("{}", encoding="utf-8")
    assert "which was pulled" in refusal(lambda: promote(tmp_path, "a@1"))
    assert state(tmp_path / "a").aliases == {}
    done = promote(tmp_path, "a@1", override=True, by="ana", why="made by our own CI")
    assert done.entry is not None and "which was pulled" in done.entry.facts["gate"]["why"]


def test_the_latest_evaluation_and_the_rules_that_were_named_decide(tmp_path: Path) -> None:
    version = graded(tmp_path)
    strict = tmp_path / "strict.yaml"
    strict.write_text(recipe({**RULE, "at_least": 0.97}), encoding="utf-8")
    assert ruling(version).outcome == "pass" and ruling(version, strict).outcome == "fail"
    held = promote(tmp_path, "a@1", recipe=strict)
    assert held.entry is None and held.ruled is not None and held.ruled.outcome == "fail"
    easy = tmp_path / "easy.yaml"
    easy.write_text(recipe({**RULE, "at_least": 0.1}), encoding="utf-8")
    folder = evaluated(version, UNDECIDED)
    assert ruling(version).evaluation == folder and ruling(version).outcome == "undecided"
    done = promote(tmp_path, "a@1", recipe=easy)
    assert done.entry is not None and done.entry.facts["gate"]["rules_of"] == "easy.yaml" and done.entry.facts["gate"]["rules_digest"] == digest_file(easy)


def test_a_version_that_was_changed_retired_marked_or_removed_is_not_promoted_whoever_asks(tmp_path: Path) -> None:
    for _ in range(4):
        graded(tmp_path)
    home = tmp_path / "a"
    (home / "1" / "resolved.yaml").chmod(0o644)
    (home / "1" / "resolved.yaml").write_text(recipe({**RULE, "at_least": 0.0}), encoding="utf-8")
    retire(tmp_path, "a@2", "slow")
    append(home, 1, "forget", 3, None, "ann", "asked to", {"records": ["sha256:aa"]})
    append(home, 2, "remove", 4, None, "ann", "gc")
    for number, said in ((1, "bytes that differ"), (2, "retired: 'slow'"), (3, "1 records that are to be forgotten"), (4, "it was removed, 'gc'")):
        for words in ({}, {"override": True, "by": "bob", "why": "now"}):
            assert said in refusal(lambda number=number, words=words: promote(tmp_path, f"a@{number}", **words))  # type: ignore[misc]
    assert state(home).aliases == {} and state(home).count == 3


# --- one mover at a time -----------------------------------------------------------------------------------------------


def test_an_alias_that_stands_there_already_writes_nothing_and_asks_no_gate(tmp_path: Path) -> None:
    version = graded(tmp_path)
    promote(tmp_path, "a@1")
    evaluated(version, FAIL)
    again = promote(tmp_path, "a@production")
    assert again.entry is None and again.ruled is None and again.before == 1 and state(tmp_path / "a").count == 1


def test_an_alias_that_is_not_where_it_is_expected_does_not_move(tmp_path: Path) -> None:
    for _ in range(3):
        graded(tmp_path)
    assert "it stands for nothing" in refusal(lambda: promote(tmp_path, "a@1", expect=2))
    assert promote(tmp_path, "a@1", expect=0).entry is not None
    assert "it stands for a@1" in refusal(lambda: promote(tmp_path, "a@2", expect=0))
    assert promote(tmp_path, "a@2", expect=1).entry is not None
    assert "it stands for a@2" in refusal(lambda: promote(tmp_path, "a@3", expect=1))
    assert [e.version for e in entries(tmp_path / "a")] == [1, 2]


@pytest.mark.parametrize(("meanwhile", "moves"), [("production", False), ("staging", True), ("retire", False)])
def test_what_others_write_between_reading_and_moving_is_heeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str, moves: bool) -> None:
    for _ in range(3):
        graded(tmp_path)
    promote(tmp_path, "a@1")
    real = promotion.verify

    def slow(folder: Path) -> dict[str, Any]:
        if meanwhile == "retire":
            append(tmp_path / "a", 1, "retire", 2, None, "eve", "bad")
        else:
            append(tmp_path / "a", 1, "promote", 3, meanwhile, "eve", "mine")
        return real(folder)

    monkeypatch.setattr(promotion, "verify", slow)
    if moves:
        assert promote(tmp_path, "a@2").entry is not None and state(tmp_path / "a").aliases == {"production": 2, "staging": 3}
    else:
        said = refusal(lambda: promote(tmp_path, "a@2"))
        assert ("it stands for a@3" in said and "somebody moved it") if meanwhile == "production" else "retired: 'bad'" in said
        assert state(tmp_path / "a").count == 2


RACER = """
import sys
from pathlib import Path
from tuner.errors import Refusal
from tuner.promotion import promote

store, me, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
for line in sys.stdin:
    try:
        promote(store, f"a@{me}", override=True, by=f"racer {me}", why="first", expect=int(line))
        print("won", flush=True)
    except Refusal as refusal:
        print("moved" if "it stands for" in str(refusal) else str(refusal), flush=True)
"""


def test_of_eight_processes_that_promote_from_the_same_state_exactly_one_moves_the_alias(tmp_path: Path) -> None:
    for _ in range(9):
        graded(tmp_path, None)
    command = [sys.executable, "-c", RACER, str(tmp_path)]
    racers = {i: subprocess.Popen([*command, str(i), "3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for i in range(1, 9)}
    for racer in racers.values():
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    forced(tmp_path, 9)
    for round_ in range(1, 6):
        for racer in racers.values():
            assert racer.stdin is not None
            racer.stdin.write("9\n")
            racer.stdin.flush()
        said = {}
        for number, racer in racers.items():
            assert racer.stdout is not None
            said[number] = racer.stdout.readline().strip()
        (winner,) = (number for number, word in said.items() if word == "won")
        assert set(said.values()) == {"won", "moved"} and state(tmp_path / "a").aliases == {"production": winner}
        assert state(tmp_path / "a").count == 2 * round_
        forced(tmp_path, 9)
    for racer in racers.values():
        racer.communicate(timeout=60)
    assert [e.number for e in check_log(tmp_path / "a")] == list(range(1, 12))


# --- the way back --------------------------------------------------------------------------------------------------


def test_rollbacks_undo_promotions_one_by_one_and_never_ping_pong(tmp_path: Path) -> None:
    for _ in range(5):
        graded(tmp_path)
    for number in (1, 2, 4):
        forced(tmp_path, number)
        forced(tmp_path, number, "staging")
    assert [rollback(tmp_path, "a", why="errors").version for _ in range(2)] == [2, 1]
    assert "a@1, the first it stood for" in refusal(lambda: rollback(tmp_path, "a"))
    assert find(tmp_path, "a@staging").number == 4  # another alias, another history
    forced(tmp_path, 5)
    forced(tmp_path, 2)
    assert [rollback(tmp_path, "a").version for _ in range(2)] == [5, 1]
    last = check_log(tmp_path / "a")[-1]
    assert (last.what, last.alias, last.version, last.facts["from"], last.by, last.why) == ("rollback", "production", 1, 5, getpass.getuser(), "back from a@5")


def test_a_rollback_to_a_version_that_is_retired_marked_changed_or_gone_is_refused(tmp_path: Path) -> None:
    for _ in range(3):
        graded(tmp_path)
    home = tmp_path / "a"
    assert "never promoted" in refusal(lambda: rollback(tmp_path, "a"))
    forced(tmp_path, 1)
    forced(tmp_path, 2)
    retire(tmp_path, "a@1", "slow")
    assert "retired: 'slow'" in refusal(lambda: rollback(tmp_path, "a"))
    restore(tmp_path, "a@1", "not so slow")
    (home / "1" / "resolved.yaml").chmod(0o644)
    (home / "1" / "resolved.yaml").write_bytes((home / "1" / "resolved.yaml").read_bytes() + b" ")
    assert "bytes that differ" in refusal(lambda: rollback(tmp_path, "a"))
    append(home, state(home).count, "forget", 1, None, "ann", "asked to", {"records": ["sha256:aa"]})
    assert "to be forgotten" in refusal(lambda: rollback(tmp_path, "a"))
    append(home, state(home).count, "remove", 1, None, "ann", "gc")
    assert "it was removed" in refusal(lambda: rollback(tmp_path, "a"))
    assert find(tmp_path, "a@production").number == 2


# --- out of use ----------------------------------------------------------------------------------------------------


def test_a_version_is_retired_and_restored_unless_an_alias_stands_for_it(tmp_path: Path) -> None:
    for _ in range(2):
        graded(tmp_path)
    promote(tmp_path, "a@2", "canary")
    assert "what canary stands for" in refusal(lambda: retire(tmp_path, "a@2", "slow"))
    entry = retire(tmp_path, "a@1", "slow", by="bob")
    assert (entry.what, entry.version, entry.by, entry.why) == ("retire", 1, "bob", "slow") and state(tmp_path / "a").retired == {1: "slow"}
    assert "retired already" in refusal(lambda: retire(tmp_path, "a@1", "again"))
    assert restore(tmp_path, "a@1", "needed").what == "restore" and state(tmp_path / "a").retired == {}
    assert "not retired" in refusal(lambda: restore(tmp_path, "a@1", "again"))


@pytest.mark.parametrize("wanted", ["a", "a@canary", "a@"])
def test_only_a_number_says_what_to_retire(tmp_path: Path, wanted: str) -> None:
    graded(tmp_path)
    assert "say which version" in refusal(lambda: retire(tmp_path, wanted, "slow"))


@pytest.mark.parametrize("alias", ["", "latest", "1", "Production", "-x", "a b", "é", "a" * 33, "a/b", "prod\n"])
def test_a_word_that_cannot_be_an_alias_is_refused(tmp_path: Path, alias: str) -> None:
    graded(tmp_path)
    for call in (lambda: promote(tmp_path, "a@1", alias), lambda: rollback(tmp_path, "a", alias)):
        assert "starting with a letter" in refusal(call)
    assert not (tmp_path / "a" / "log").exists()


# --- faults at every I/O call of an alias move -----------------------------------------------------------------------


def before(root: Path) -> None:
    for _ in range(2):
        graded(root / "store")
    promote(root / "store", "a@1")


def work(root: Path) -> None:
    promote(root / "store", "a@2")


def after(root: Path, mode: str, status: int) -> None:
    """The alias stands for the old version or the new one, with its record or without; the next move works."""
    store = root / "store"
    assert status in {0, KILLED} if mode in ("kill", "torn", "power_loss") else status in {0, OS_ERROR}
    number = find(store, "a@production").number
    assert number in ((2,) if status == 0 else (1, 2)) and [e.version for e in check_log(store / "a")] == [1, 2][:number]
    work(root)
    assert find(store, "a@production").number == 2 and rollback(store, "a").version == 1
    assert sorted(p.name for p in (store / "a" / "log").iterdir()) == ["000001.json", "000002.json", "000003.json"]


def test_a_fault_at_every_io_call_of_an_alias_move_leaves_it_at_the_old_version_or_the_new() -> None:
    found = swept("tests.test_promotion")
    assert found["failures"] == []
    assert len(found["calls"]) >= 7 and found["statuses"]["kill"] == found["statuses"]["power_loss"] == {str(KILLED): len(found["calls"])}
    assert found["statuses"]["full"][str(OS_ERROR)] >= 3 and found["statuses"]["error"][str(OS_ERROR)] >= 4


def test_another_version_put_in_its_place_is_neither_promoted_nor_rolled_back_to(tmp_path: Path) -> None:
    for _ in range(3):
        graded(tmp_path)
    forced(tmp_path, 1)
    forced(tmp_path, 2)
    for number in (1, 3):
        (tmp_path / "a" / str(number)).rename(tmp_path / f"aside-{number}")
        shutil.copytree(tmp_path / "a" / "2", tmp_path / "a" / str(number))
    for move in (lambda: rollback(tmp_path, "a"), lambda: promote(tmp_path, "a@3"), lambda: forced(tmp_path, 3)):
        assert "put another version in its place" in refusal(move)
    assert state(tmp_path / "a").aliases == {"production": 2} and state(tmp_path / "a").count == 2
