"""Fewer records that teach as much: chosen by gain, label by label, the worst left out, every record with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import SAMPLES, jsonl, tuner
from tuner import pipeline
from tuner.data.selection import _quotas, facility_location, select
from tuner.errors import Refusal
from tuner.recipe import load_recipe, recipe_for_files

TRAIN = SAMPLES / "clinc150" / "train.jsonl"


def around(centres: int, each: int, seed: int, spread: float = 0.05) -> np.ndarray:
    chance = np.random.default_rng(seed)
    vectors = np.repeat(chance.normal(size=(centres, 16)), each, axis=0) + spread * chance.normal(size=(centres * each, 16))
    unit: np.ndarray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def test_one_row_of_every_cluster_is_chosen_first() -> None:
    assert sorted(row // 30 for row in facility_location(around(10, 30, 1), 10, seed=0)) == list(range(10))


def test_each_step_takes_the_row_with_the_largest_gain_when_all_are_tried() -> None:
    vectors = around(5, 8, 2, spread=0.8)
    found = facility_location(vectors, 6, seed=3)
    cosines = vectors @ vectors.T
    closest = np.full(len(vectors), -1.0)
    tried = max(8, int(len(vectors) / 6 * np.log(10)))
    chance = np.random.default_rng(3)  # the naive loop draws what the product draws, then looks at every row by itself
    free = list(range(len(vectors)))
    for row in found:
        drawn = chance.choice(np.array(free), min(tried, len(free)), replace=False).tolist()
        gains = [sum(max(0.0, float(cosines[j, i]) - closest[i]) for i in range(len(vectors))) for j in drawn]
        assert gains[drawn.index(row)] == pytest.approx(max(gains), abs=1e-5)
        closest = np.maximum(closest, cosines[row])
        free.remove(row)


def test_no_row_is_chosen_twice_and_all_can_be() -> None:
    assert sorted(facility_location(around(2, 10, 4), 20, seed=0)) == list(range(20))


def test_quotas_add_up_stay_within_their_groups_and_leave_no_label_out() -> None:
    chance = np.random.default_rng(5)
    for _ in range(300):
        sizes = chance.integers(1, 60, size=chance.integers(1, 12)).tolist()
        count = int(chance.integers(len(sizes), sum(sizes) + 1))
        quotas = _quotas(sizes, count)
        assert sum(quotas) == count and all(1 <= q <= size for q, size in zip(quotas, sizes, strict=True))


def test_a_selection_beats_as_many_records_drawn_at_random_and_explains_every_record() -> None:
    checked = pipeline.check_files(recipe_for_files([str(TRAIN)], ["data.task=label"])).checked
    found = select(checked, 80, 0.0, seed=1)
    assert found.kept_similarity > found.random_similarity + 0.02
    assert len(found.choices) == 300 and len(found.chosen) == 80 and sorted(c.rank for c in found.chosen) == list(range(1, 81))
    assert {c.record.completion for c in found.chosen} == {r.completion for r in checked.splits["train"]}
    for choice in found.choices:
        assert choice.reason.startswith("chosen" if choice.rank else "left out:") and -1 <= choice.similarity <= 1.0001


def test_records_with_findings_against_them_are_left_out_first_and_never_more_than_the_share(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in TRAIN.read_text().splitlines()][:60]
    for row in rows[:4]:
        row["completion"] = "As an AI language model, I cannot help with that."
    rows[4]["completion"] = "n/a"
    path = jsonl(tmp_path / "train.jsonl", rows)
    checked = pipeline.check_files(recipe_for_files([str(path)], ["data.checks.label_task=off"])).checked
    out = {c.record.line: c.reason for c in select(checked, 20, 0.1, seed=1).choices if "boilerplate" in c.reason or "near_empty" in c.reason}
    assert out.keys() == {1, 2, 3, 4, 5}
    assert sum("asks nearly" not in c.reason and not c.rank for c in select(checked, 20, 0.05, seed=1).choices) == 3


def test_more_records_than_there_are_is_refused() -> None:
    checked = pipeline.check_files(recipe_for_files([str(TRAIN)], ["data.task=label"])).checked
    with pytest.raises(Refusal, match="at most 300"):
        select(checked, 301, 0.0, seed=1)


def test_the_command_writes_records_reasons_and_a_recipe_that_checks(tmp_path: Path, recipe_file: Any) -> None:
    rows = [json.loads(line) for line in TRAIN.read_text().splitlines()]
    jsonl(tmp_path / "all.jsonl", rows)
    recipe = recipe_file(data={"task": "label", "train": "all.jsonl", "cut": {"held_out": 0.2, "stratify": True}})
    done = tuner("select", recipe, "-n", "40", "--output", tmp_path / "deep" / "chosen")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "deep" / "chosen"
    assert {p.name for p in folder.iterdir()} == {"train.jsonl", "held_out.jsonl", "reasons.jsonl", "recipe.yaml"}
    written = load_recipe(folder / "recipe.yaml")
    assert written.data.cut.held_out == 0 and written.data.task == "label"
    before, after = pipeline.prepare(load_recipe(recipe)), pipeline.prepare(written)
    assert len(after.splits["train"]) == 40
    assert {r.hash for r in after.splits["train"]} <= {r.hash for r in before.splits["train"]}
    assert [r.hash for r in after.splits["held_out"]] == [r.hash for r in before.splits["held_out"]]
    reasons = [json.loads(line) for line in (folder / "reasons.jsonl").read_text().splitlines()]
    assert len(reasons) == len(before.splits["train"]) and sum(r["chosen"] for r in reasons) == 40
    again = tuner("select", recipe, "-n", "40", "--output", folder)
    assert again.returncode == 2 and "a folder that exists" in again.stderr
