"""General records mixed into training: how many, which, and that they are trained on and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.conftest import jsonl
from tuner.data.checks import CHECKS
from tuner.data.doctor import NOT_FOR_REHEARSAL, examine
from tuner.data.findings import Scene
from tuner.data.spec import DataSpec
from tuner.data.splits import REHEARSAL, Splits, read_splits
from tuner.errors import Refusal

LABELS = ("red", "green", "blue")
NOUNS = ("river", "mountain", "violin", "harbour", "lantern", "meadow", "compass", "orchard", "glacier", "sparrow")
VERBS = ("describe", "explain", "compare", "translate", "summarise", "praise", "question", "recall", "sketch", "rename")


def labels(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"{VERBS[i % 10]} colour of {NOUNS[i // 10 % 10]} number {i}", "completion": LABELS[i % 3]} for i in range(start, start + count)]


def general(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Please {VERBS[i // 10 % 10]} the {NOUNS[i % 10]} in a few words, variant {i}.", "completion": f"The {NOUNS[i % 10]} is old; story {i}."}
        for i in range(count)
    ]


def data(folder: Path, **more: Any) -> DataSpec:
    jsonl(folder / "train.jsonl", labels(90))
    jsonl(folder / "held_out.jsonl", labels(12, 500))
    jsonl(folder / "general.jsonl", general(60))
    return DataSpec.model_validate({"task": "label", "train": "train.jsonl", "held_out": "held_out.jsonl", **more}, strict=False)


def read(folder: Path, seed: int = 0, **more: Any) -> Splits:
    return read_splits(data(folder, **more), folder, seed)


def test_a_tenth_of_what_is_trained_on_is_general_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    for given, wanted in (("general.jsonl", 10), ({"files": "general.jsonl", "share": 0.25}, 30), ({"files": "general.jsonl", "take": 7}, 7)):
        splits = read(tmp_path, rehearsal=given)
        assert len(splits["train"]) == 90
        assert len(splits[REHEARSAL]) == wanted
        account = next(a for a in splits.accounts if a.split == REHEARSAL)
        assert (account.read, account.rejected, account.not_taken) == (60, 0, 60 - wanted)
        assert {r.split for r in splits[REHEARSAL]} == {REHEARSAL}
        assert splits.suites == ["held_out"]


def test_the_share_is_of_what_is_left_of_train_after_cutting(tmp_path: Path) -> None:
    splits = read_splits(data(tmp_path, rehearsal={"files": "general.jsonl", "share": 0.2}).model_copy(
        update={"held_out": None, "cut": DataSpec.model_fields["cut"].get_default(call_default_factory=True).model_copy(update={"held_out": 0.2})}
    ), tmp_path, 0)  # fmt: skip
    assert list(splits.records)[:2] == ["train", REHEARSAL]
    assert len(splits[REHEARSAL]) == round(len(splits["train"]) / 4)
    assert not {r.file for r in splits["held_out"]} & {"general.jsonl"}


def test_which_records_is_decided_by_seed_and_content_not_by_their_order(tmp_path: Path) -> None:
    first = read(tmp_path, rehearsal="general.jsonl")[REHEARSAL]
    again = read(tmp_path, rehearsal="general.jsonl")[REHEARSAL]
    other = read(tmp_path, seed=1, rehearsal="general.jsonl")[REHEARSAL]
    spec = data(tmp_path, rehearsal="general.jsonl")
    jsonl(tmp_path / "general.jsonl", general(60)[::-1])
    turned = read_splits(spec, tmp_path, 0)[REHEARSAL]
    assert [r.hash for r in first] == [r.hash for r in again]
    assert {r.hash for r in first} == {r.hash for r in turned}
    assert {r.hash for r in first} != {r.hash for r in other}


def test_too_few_general_records_are_refused_and_never_fewer_trained_on_in_silence(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="60 general records") as told:
        read(tmp_path, rehearsal={"files": "general.jsonl", "share": 0.5})
    assert told.value.problems[0].accepted == "at least 90, beside 90 of train"
    with pytest.raises(ValidationError, match="either `share` or `take`"):
        data(tmp_path, rehearsal={"files": "general.jsonl", "share": 0.5, "take": 3})


def test_the_checks_of_a_label_task_do_not_hold_general_records_against_it(tmp_path: Path) -> None:
    spec = data(tmp_path, rehearsal="general.jsonl")
    checked = examine(read_splits(spec, tmp_path, 0), Scene(spec), CHECKS)
    about = {f.check for f in checked.findings if f.split == REHEARSAL}
    assert set(CHECKS) >= NOT_FOR_REHEARSAL
    assert not about & NOT_FOR_REHEARSAL
    assert not checked.errors
    assert len(checked.splits[REHEARSAL]) == 10


def test_a_general_record_that_asks_a_held_out_question_is_refused_with_both_places(tmp_path: Path) -> None:
    spec = data(tmp_path, rehearsal={"files": "general.jsonl", "take": 60})
    asked = labels(12, 500)[3]["prompt"]
    jsonl(tmp_path / "general.jsonl", [*general(59), {"prompt": asked, "completion": "It is a colour."}])
    errors = examine(read_splits(spec, tmp_path, 0), Scene(spec), CHECKS).errors
    assert [(f.check, f.file, f.line) for f in errors] == [("overlap", "general.jsonl", 60)]
    assert "held_out.jsonl:4" in errors[0].found


def test_a_general_record_that_stands_in_train_is_refused(tmp_path: Path) -> None:
    spec = data(tmp_path, rehearsal={"files": "general.jsonl", "take": 60})
    jsonl(tmp_path / "general.jsonl", [*general(59), labels(90)[5]])
    errors = examine(read_splits(spec, tmp_path, 0), Scene(spec), CHECKS).errors
    assert {f.check for f in errors} == {"overlap"}
    assert "general.jsonl:60" in errors[0].found
