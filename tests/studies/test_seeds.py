"""Several training seeds of one recipe: what differs between the recipes, what is said over the versions, and where it is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuner.artifact.store import Version, evaluations
from tuner.errors import Refusal
from tuner.pipeline import Run
from tuner.recipe import load_recipe
from tuner.report.seeds_text import seeds_text
from tuner.studies.seeds import over, with_seed, write

FACTS = {"exact_match": {"what": "e", "higher_is_better": True, "form": "mean"}, "loss": {"what": "l", "higher_is_better": False, "form": "ratio"}}


def test_the_first_seed_is_the_recipe_as_it_is_and_the_others_differ_in_the_training_seed_alone(recipe_file: Callable[..., Path]) -> None:
    path = recipe_file(seed=7)
    plain = load_recipe(path)
    made = [with_seed(path, [], None, number) for number in range(4)]
    assert made[0].digest == plain.digest and [r.training_seed for r in made] == [7, 8, 9, 10] and {r.seed for r in made} == {7}
    assert len({r.digest for r in made}) == 4
    rest = [r.model_dump(exclude={"train": {"seed"}}) for r in made]
    assert all(r == rest[0] for r in rest)


def test_overrides_and_a_profile_hold_for_every_seed_and_a_training_seed_of_the_recipe_is_counted_on_from(recipe_file: Callable[..., Path]) -> None:
    path = recipe_file(profiles={"quick": {"train": {"epochs": 5}}})
    made = [with_seed(path, ["train.seed=100", "evaluate.take=3"], "quick", number) for number in range(3)]
    assert [r.training_seed for r in made] == [100, 101, 102] and {r.seed for r in made} == {42}
    assert {r.train.epochs for r in made} == {5} and {r.evaluate.take for r in made} == {3}
    last = with_seed(path, [f"train.seed={2**32 - 1}"], None, 2)
    assert last.training_seed == 1  # the largest seed is followed by 0


def graded(folder: Path, number: int, table: dict[str, Any], judged: bool = False) -> Run:
    """A version's evaluation on disk: `table` holds each suite's exact matches (adapter, base) by item; losses follow from the number."""
    home = folder / "colours" / str(number) / "evaluations" / "first"
    home.mkdir(parents=True)
    rows = []
    for suite, (ours, theirs) in table.items():
        for contender, of in (("adapter", ours), ("base few_shot", theirs)):
            for item, score in enumerate(of):
                rows.append({"suite": suite, "item": item, "contender": contender, "question": [{"role": "user", "content": f"{suite} {item}\u2028?"}],
                             "references": ["x"], "scores": {"exact_match": float(score)}, "parts": {"loss": [number + item, 2]}})  # fmt: skip
    if judged:
        rows.append({"suite": "judge", "item": 0, "contender": "adapter", "baseline": "base few_shot", "outcome": "win", "scores": {"win": 1.0, "loss": 0.0}})
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    (home / "answers.jsonl").write_text(text, encoding="utf-8")
    suites = {suite: {"metrics": FACTS, "values": {"adapter": {}, "base few_shot": {}}} for suite in table}
    verdict = {"word": "better", "suite": next(iter(table))}
    scores = {"suites": suites, "best_base": "base few_shot", "primary": "exact_match", "verdict": verdict}
    (home / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    return Run(Version("colours", number, folder / "colours" / str(number)), home, scores)


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    rng = np.random.default_rng(0)
    theirs = rng.integers(0, 2, 20)
    return [graded(tmp_path, n, {"held_out": (rng.integers(0, 2, 20), theirs), "far": (rng.integers(0, 2, 6), theirs[:6])}, judged=True) for n in (1, 2, 3)]


def test_the_mean_is_over_versions_and_the_difference_over_each_ones_own_baseline(runs: list[Run]) -> None:
    found = over(runs)
    assert found["versions"] == ["colours@1", "colours@2", "colours@3"] and found["baseline"] == "base few_shot" and found["primary"] == "exact_match"
    for suite, n in (("held_out", 20), ("far", 6)):
        ours, theirs = [], []
        for run in runs:
            rows = [json.loads(line) for line in (run.evaluation or Path()).joinpath("answers.jsonl").read_text(encoding="utf-8").split("\n") if line]
            for contender, into in (("adapter", ours), ("base few_shot", theirs)):
                into.append(np.mean([r["scores"]["exact_match"] for r in rows if r["suite"] == suite and r["contender"] == contender]))
        value, gap = found["suites"][suite]["values"]["exact_match"], found["suites"][suite]["differences"]["exact_match"]
        assert value["value"] == pytest.approx(np.mean(ours)) and value["spread"]["values"] == pytest.approx(ours) and value["n"] == n
        assert gap["value"] == pytest.approx(np.mean(ours) - np.mean(theirs)) and value["low"] < value["value"] < value["high"]
    losses = [sum(n + item for item in range(20)) / 40 for n in (1, 2, 3)]
    assert found["suites"]["held_out"]["values"]["loss"]["value"] == pytest.approx(np.mean(losses))
    assert "judge" not in found["suites"] or found["suites"]["judge"]["values"] == {}


def test_a_version_that_was_not_graded_is_refused(runs: list[Run]) -> None:
    with pytest.raises(Refusal, match="not graded"):
        over([*runs, Run(Version("colours", 4, Path()))])
    with pytest.raises(Refusal, match="at least two versions"):
        over(runs[:1])


def test_versions_that_were_asked_other_questions_are_refused(tmp_path: Path) -> None:
    one, two = graded(tmp_path, 1, {"held_out": ([1, 0, 1], [0, 0, 1])}), graded(tmp_path, 2, {"other": ([1, 0, 1], [0, 0, 1])})
    with pytest.raises(Refusal, match="no item in common"):
        over([one, two])


def test_one_item_and_versions_that_agree_on_everything_are_still_numbers(tmp_path: Path) -> None:
    """What is written is JSON without NaN, and an interval keeps a width."""
    runs = [graded(tmp_path, n, {"held_out": ([1], [1]), "far": ([1] * 9, [1] * 9)}) for n in (1, 2)]
    found = over(runs)
    json.dumps(found, allow_nan=False)
    whole = found["suites"]["far"]["values"]["exact_match"]
    assert whole["value"] == 1 and whole["low"] < 1 and found["suites"]["far"]["differences"]["exact_match"]["verdict"] == "no difference seen"


def test_it_is_kept_beside_the_last_version_never_replaced_and_is_no_evaluation(runs: list[Run]) -> None:
    found = over(runs)
    first, second = write(found, runs[-1]), write(found, runs[-1])
    assert first != second and first.parent == second.parent and first.parents[1].name == "3"
    for folder in (first, second):
        assert json.loads((folder / "seeds.json").read_text(encoding="utf-8")) == json.loads(json.dumps(found))
        assert (folder / "seeds.txt").read_text(encoding="utf-8") == seeds_text(found) + "\n"
    version = runs[-1].version
    assert version is not None and evaluations(version) == [runs[-1].evaluation]


def test_the_text_names_versions_means_intervals_and_each_seed(runs: list[Run]) -> None:
    found = over(runs)
    lines = seeds_text(found).split("\n")
    assert "3 training seeds (colours@1, colours@2, colours@3)" in lines[0]
    (held_out,) = [line for line in lines if line.strip().startswith("held_out")]
    value = found["suites"]["held_out"]["values"]["exact_match"]
    assert f"{value['value']:.3f}" in held_out and all(f"{v:.3f}" in held_out for v in value["spread"]["values"]) and "base few_shot" in held_out


def test_a_hostile_name_reaches_the_text_only_as_visible_text(runs: list[Run]) -> None:
    found = over(runs)
    found["suites"]["far\x1b[31m\u202e\x07"] = found["suites"].pop("far")
    text = seeds_text(found)
    assert "\x1b" not in text and "\u202e" not in text and "\x07" not in text and "\\x1b" in text
