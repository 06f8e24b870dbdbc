"""data.forget: records left out of every split by their hashes, before any check, counted to the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.conftest import colour_rows, jsonl
from tuner.data.checks import CHECKS
from tuner.data.doctor import Checked, examine
from tuner.data.findings import Scene
from tuner.data.record import Message, Record
from tuner.data.spec import DataSpec
from tuner.data.splits import read_splits
from tuner.pipeline import Diagnosed
from tuner.recipe import Recipe


def content(prompt: str, completion: str) -> str:
    return Record((Message("user", prompt), Message("assistant", completion)), "", 1, "").hash


def examined(folder: Path, **more: Any) -> tuple[Checked, list[dict[str, Any]]]:
    """What the checks leave of 30 records, and the account of every file."""
    jsonl(folder / "train.jsonl", colour_rows(30))
    spec = DataSpec.model_validate({"train": "train.jsonl", "task": "label", **more})
    checked = examine(read_splits(spec, folder, 1), Scene(spec), CHECKS)
    recipe = Recipe.model_validate({"name": "a", "base": {"model": "m"}, "data": spec.model_dump()})
    return checked, Diagnosed(recipe, checked).accounts


def test_a_record_to_be_forgotten_is_in_no_split_and_every_account_adds_up(tmp_path: Path) -> None:
    jsonl(tmp_path / "held_out.jsonl", colour_rows(5, 100))
    jsonl(tmp_path / "far.jsonl", colour_rows(5, 200))
    jsonl(tmp_path / "real.jsonl", [{"prompt": "thing number 4 please"}, {"prompt": "another"}])
    gone = [content(r["prompt"], r["completion"]) for r in (colour_rows(30)[4], colour_rows(30)[17], *colour_rows(1, 102), *colour_rows(1, 203))]
    checked, accounts = examined(tmp_path, held_out="held_out.jsonl", ood={"far": "far.jsonl"}, production="real.jsonl", forget=gone)
    left = {split: [r.hash for r in of] for split, of in checked.splits.records.items()}
    assert {split: len(of) for split, of in left.items()} == {"train": 28, "held_out": 4, "ood.far": 4}
    assert not set(gone) & {h for of in left.values() for h in of}
    assert [(a["read"], a["kept"], a["dropped"], a["rejected"], a["reasons"]) for a in accounts] == [
        (30, 28, 2, 0, {"forget": 2}), (5, 4, 1, 0, {"forget": 1}), (5, 4, 1, 0, {"forget": 1}), (2, 2, 0, 0, {})]  # fmt: skip
    assert not any("thing number 4 please" in str(f) or "thing number 17 please" in str(f) for f in checked.findings)


def test_what_is_cut_or_taken_stays_the_same_but_for_the_record(tmp_path: Path) -> None:
    more: dict[str, Any] = {"train": {"files": "train.jsonl", "take": 24}, "cut": {"validation": 0.2, "held_out": 0.2}}
    before, _ = examined(tmp_path, **more)
    for split in ("train", "validation", "held_out"):
        gone = before.splits[split][0].hash
        after, accounts = examined(tmp_path, **more, forget=gone)
        assert {s: [r.hash for r in of] for s, of in after.splits.records.items()} == {
            s: [r.hash for r in of if r.hash != gone] for s, of in before.splits.records.items()
        }
        (account,) = accounts
        assert account["read"] == account["kept"] + account["dropped"] and account["reasons"] == {"forget": 1, "take": 6} and account["kept"] == 23


def test_a_redacted_record_is_left_out_by_its_hash_before_or_after_and_the_numbers_of_others_stay(tmp_path: Path) -> None:
    rows = [{"prompt": f"write to person{i}@mailbox.org about number {i}", "completion": "red"} for i in range(5)]
    jsonl(tmp_path / "mails.jsonl", rows)
    before, _ = examined(tmp_path, train="mails.jsonl", redact=["email"])
    third = before.splits["train"][2]
    assert "person2" not in third.question
    for gone in (third.hash, content(rows[2]["prompt"], "red")):
        after, accounts = examined(tmp_path, train="mails.jsonl", redact=["email"], forget=[gone])
        assert [r.hash for r in after.splits["train"]] == [r.hash for r in before.splits["train"] if r.hash != third.hash]
        assert accounts[0]["reasons"] == {"forget": 1}


def test_a_hash_that_no_record_has_is_said_in_a_note(tmp_path: Path) -> None:
    checked, accounts = examined(tmp_path, forget=["sha256:" + "ab" * 32])
    (note,) = [f for f in checked.findings if f.code == "NOT_THERE"]
    assert note.severity == "note" and "sha256:abababababab" in note.found and accounts[0]["kept"] == 30


def test_nothing_is_said_or_counted_where_nothing_is_to_be_forgotten(tmp_path: Path) -> None:
    checked, accounts = examined(tmp_path)
    assert "forget" not in checked.dropped and accounts[0]["reasons"] == {} and not [f for f in checked.findings if f.code == "NOT_THERE"]


@pytest.mark.parametrize("wrong", ["abc", "sha256:abc", "sha256:" + "A" * 64, "the text itself", 5])
def test_what_is_no_content_hash_is_no_forget_value(tmp_path: Path, wrong: object) -> None:
    with pytest.raises(ValidationError):
        DataSpec.model_validate({"train": "a.jsonl", "forget": [wrong]})
