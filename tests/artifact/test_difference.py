"""What differs between two versions' records, held against lists of texts compared by hand."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

from tests.artifact.test_record_index import Texts, published
from tuner.artifact.difference import changes, records_difference
from tuner.artifact.records import read_records


def differing(folder: Path, old: Texts, new: Texts) -> dict[str, Any]:
    tables = [read_records(published(folder, label, texts) / "records.parquet") for label, texts in (("a@1", old), ("a@2", new))]
    return records_difference(*tables)


def counts(found: dict[str, Any]) -> dict[str, int]:
    return {key: found[key]["count"] for key in ("added", "removed", "changed", "moved_here")} | {"same": found["same"]}


def test_records_are_added_removed_changed_or_moved(tmp_path: Path) -> None:
    old = {"train": [("one two three", "red"), ("four five six", "red"), ("seven eight nine", "red"), ("ten eleven", "red")], "held_out": [("other", "red")]}
    new = {"train": [("one two three", "red"), ("four five six", "blue"), ("seven eight NINE ten", "red"), ("other", "red"), ("fresh", "red")],
           "held_out": [("quite new", "red"), ("Ten  Eleven", "blue")]}  # fmt: skip
    found = differing(tmp_path, old, new)
    assert counts(found["train"]) == {"added": 1, "removed": 1, "changed": 2, "moved_here": 1, "same": 1}
    assert found["train"]["changed"]["places"] == [
        {"old": "train.jsonl:2", "new": "train.jsonl:2", "by": "same place"}, {"old": "train.jsonl:3", "new": "train.jsonl:3", "by": "same place"}]  # fmt: skip
    assert found["train"]["moved_here"]["places"] == [{"new": "train.jsonl:4", "from": "held_out"}]
    assert found["train"]["added"]["places"] == ["train.jsonl:5"] and found["train"]["removed"]["places"] == ["train.jsonl:4"]
    assert counts(found["held_out"]) == {"added": 2, "removed": 0, "changed": 0, "moved_here": 0, "same": 0}


def test_an_answer_that_changed_on_another_line_is_a_changed_record(tmp_path: Path) -> None:
    old = {"train": [("first of them", "red"), ("second of them", "red")]}
    new = {"train": [("second of them", "red"), ("First  of them", "blue")]}
    found = differing(tmp_path, old, new)["train"]
    assert counts(found) == {"added": 0, "removed": 0, "changed": 1, "moved_here": 0, "same": 1}
    assert found["changed"]["places"] == [{"old": "train.jsonl:1", "new": "train.jsonl:2", "by": "same prompt"}]


def test_what_stayed_came_and_went_adds_up_for_any_two_versions(tmp_path: Path) -> None:
    dice = random.Random(11)
    for swept in range(25):
        pair = [{split: [(f"sentence number {dice.randrange(12)}", dice.choice(("red", "blue"))) for _ in range(dice.randrange(1, 15))]
                 for split in ("train", "held_out")} for _ in range(2)]  # fmt: skip
        found = differing(tmp_path / str(swept), *pair)
        for split in ("train", "held_out"):
            told = counts(found[split])
            both = sum((Counter(pair[0][split]) & Counter(pair[1][split])).values())
            assert told["same"] == both
            assert told["same"] + told["added"] + told["changed"] + told["moved_here"] == found[split]["new"] == len(pair[1][split])
        left = sum(counts(of)["same"] + counts(of)["removed"] + counts(of)["changed"] + counts(of)["moved_here"] for of in found.values())
        assert left == sum(len(rows) for rows in pair[0].values())


def test_nested_keys_are_named_by_their_path() -> None:
    old, new = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [2]}, "e": None, "d": {"x": 1}}
    assert changes(old, new) == [{"key": "a.c", "old": [1], "new": [2]}, {"key": "d", "old": 2, "new": {"x": 1}}]
    assert changes(old, old) == []
