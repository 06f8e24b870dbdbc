"""The learning curve trains nested parts, grades them on validation against one base, and says in words what its interval says.

It refuses to trust its own figures: the paired comparison is made again here, from the answers it kept.
"""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import colour_rows, heed_interrupts, jsonl, tuner
from tests.report.page import Page, nothing_points_outside, usable_pictures
from tuner.data.record import Message, Record
from tuner.errors import Refusal
from tuner.evaluate.intervals import Difference
from tuner.pipeline import QUIET
from tuner.recipe import load_recipe
from tuner.report.study_page import curve_page
from tuner.studies.curve import Point, Same, Study, answer, fractions_of, nested, write

ENV = {"OMP_NUM_THREADS": "1"}


def records(count: int) -> list[Record]:
    return [Record((Message("user", f"q {i}"), Message("assistant", f"a {i}")), "train.jsonl", i + 1, "train") for i in range(count)]


# --- parts ---------------------------------------------------------------------------------------------------------


def test_a_larger_part_holds_every_smaller_one() -> None:
    every = records(200)
    parts = [{r.hash for r in nested(every, share, 42)} for share in (0.1, 0.25, 0.5, 1.0)]
    assert [len(part) for part in parts] == [20, 50, 100, 200]
    assert all(small < large for small, large in itertools.pairwise(parts))


def test_a_part_is_the_same_records_whatever_their_order_and_other_records_under_another_seed() -> None:
    every = records(100)
    assert {r.hash for r in nested(every, 0.3, 42)} == {r.hash for r in nested(every[::-1], 0.3, 42)} != {r.hash for r in nested(every, 0.3, 43)}
    assert nested(every, 0.3, 42) == sorted(nested(every, 0.3, 42), key=lambda r: r.line)


@pytest.mark.parametrize("words", ["1", "0,1", "0.5,1.5", "a,b", "", "0.5,0.5", "nan,1", "-0.1,1"])
def test_fractions_that_are_not_several_shares_are_refused(words: str) -> None:
    with pytest.raises(Refusal) as refused:
        fractions_of(words)
    assert refused.value.problems[0].field == "--fractions"


def test_fractions_are_sorted_whatever_their_order() -> None:
    assert fractions_of("1,0.1,0.5") == [0.1, 0.5, 1.0]


# --- words ---------------------------------------------------------------------------------------------------------


def said(value: float, low: float, high: float, p: float, verdict: str, n: int = 100) -> str:
    points = [Point(f, int(f * 100), 1, 1.0, "x@1", {"value": v, "low": 0.0, "high": 1.0}) for f, v in ((0.5, 0.6), (1.0, 0.6 + value))]
    return answer(points, Difference(value, low, high, p, n, "half", "bootstrap", "test", verdict), "exact_match")


def test_the_answer_in_words_follows_the_verdict_and_names_both_sizes() -> None:
    assert said(0.1, 0.04, 0.16, 0.001, "better").startswith("More data helps: from 50 to 100 records exact_match went from 0.600 to 0.700")
    assert said(-0.1, -0.16, -0.04, 0.001, "worse").startswith("More data made it worse")
    unseen = said(0.02, -0.05, 0.09, 0.6, "no difference seen")
    assert unseen.startswith("It cannot be seen that more data helps") and "up to 0.090 could hide" in unseen


def test_items_of_which_none_changed_still_leave_room_for_a_change() -> None:
    assert "up to 0.221 could hide" in said(0.0, 0.0, 0.0, 1.0, "no difference seen", n=12)  # 1 - 0.05 ** (1 / 12)


# --- the command ---------------------------------------------------------------------------------------------------


def study_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "studies" / "colours.curve" / "curve.json").read_text()))


@pytest.mark.slow
def test_curve_trains_each_part_once_grades_it_on_validation_and_never_reads_held_out(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe = recipe_file()
    words = ["curve", recipe, "--fractions", "0.5,1", "train.records_per_step=8"]
    first = tuner(*words, cwd=tmp_path, env=ENV)
    assert first.returncode == 0, first.stderr
    assert "curve: 2 runs, 2 of them to be trained: about" in first.stdout
    study = study_of(tmp_path)
    assert [(p["records"], p["version"]) for p in study["points"]] == [(12, "colours.curve-0.5@1"), (24, "colours.curve-1@1")]
    assert [p["steps"] for p in study["points"]] == [2, 3] and study["suite"]["n"] == 6

    folder = tmp_path / "studies" / "colours.curve"
    answers = [[json.loads(line) for line in (folder / part / "answers.jsonl").read_text().splitlines()] for part in ("0.5", "1")]
    bases = [[(r["contender"], r["item"], r["answer"]) for r in rows if r["contender"] != "adapter"] for rows in answers]
    assert bases[0] == bases[1] and bases[0]  # one base, asked the same
    hits = [[r["answer"] == r["references"][0] for r in rows if r["contender"] == "adapter"] for rows in answers]
    assert study["gain"]["value"] == pytest.approx((sum(hits[1]) - sum(hits[0])) / 6)
    assert {r["suite"] for rows in answers for r in rows} == {"validation"}
    assert not list((tmp_path / "adapters").glob("*/*/evaluations"))
    assert "number 2" not in "".join(json.dumps(rows) for rows in answers)  # held_out's prompts are numbered from 200

    again = tuner(*words, cwd=tmp_path, env=ENV)
    assert again.returncode == 0 and "0 of them to be trained" in again.stdout and "training " not in again.stderr and "grading" not in again.stderr
    assert study_of(tmp_path)["points"] == study["points"]

    listed = tuner("list", cwd=tmp_path)
    assert "colours.curve-0.5@1" in listed.stdout and "colours.curve-1@1" in listed.stdout


@pytest.mark.slow
def test_an_interrupted_curve_goes_on_without_training_a_finished_part_again(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe = recipe_file()
    command = [sys.executable, "-m", "tuner", "curve", str(recipe), "--fractions", "0.25,1", "train.epochs=40", "train.records_per_step=2"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=heed_interrupts)
    deadline = time.monotonic() + 120
    while not (tmp_path / "runs" / "colours.curve-1").is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    before = (tmp_path / "adapters" / "colours.curve-0.25" / "1" / "manifest.json").read_bytes()
    done = tuner(*command[3:], cwd=tmp_path, env=ENV)
    assert done.returncode == 0, done.stderr
    assert "2 runs, 1 of them to be trained" in done.stdout
    assert [p["version"] for p in study_of(tmp_path)["points"]] == ["colours.curve-0.25@1", "colours.curve-1@1"]
    assert (tmp_path / "adapters" / "colours.curve-0.25" / "1" / "manifest.json").read_bytes() == before


def planned(recipe: Path, fractions: list[float], same: Same = "epochs", overrides: tuple[str, ...] = ()) -> Study:
    return Study(load_recipe(recipe, overrides), list(overrides), None, fractions, recipe.parent / "adapters", QUIET, same)


def test_same_steps_and_a_validation_that_is_cut_from_train(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    data = {"task": "label", "train": "train.jsonl", "cut": {"validation": 0.25}}
    made = planned(recipe_file(data=data, name="cut-colours"), [0.5, 1.0], "steps", ("train.records_per_step=4",))
    write(made.run(), made.folder)
    study = json.loads((tmp_path / "studies" / "cut-colours.curve" / "curve.json").read_text())
    assert study["points"][0]["steps"] == study["points"][1]["steps"] and study["same"] == "steps"
    assert [p["records"] for p in study["points"]] == [9, 18] and study["suite"]["n"] == 6
    parts = [{json.loads(line)["messages"][0]["content"] for line in (tmp_path / "studies" / "cut-colours.curve" / part).read_text().splitlines()}
             for part in ("0.5/train.jsonl", "1/train.jsonl", "validation.jsonl")]  # fmt: skip
    assert parts[0] < parts[1] and not parts[1] & parts[2]


def test_a_curve_without_validation_is_refused_and_points_away_from_held_out(recipe_file: Callable[..., Path]) -> None:
    with pytest.raises(Refusal, match=r"(?s)data\.validation.*never held_out"):
        planned(recipe_file(data={"task": "label", "train": "train.jsonl", "held_out": "held_out.jsonl"}), [0.5, 1.0])


def test_parts_of_one_size_are_refused(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe = recipe_file()
    jsonl(tmp_path / "train.jsonl", colour_rows(6))
    with pytest.raises(Refusal, match="parts of 1, 1, 6 records"):
        planned(recipe, [0.1, 0.2, 1.0])


# --- the page ------------------------------------------------------------------------------------------------------


def page_of(name: str = "colours", verdict: str = "better") -> str:
    estimates = [{"value": v, "low": v - 0.05, "high": v + 0.05} for v in (0.5, 0.7)]
    points = [{"fraction": f, "records": n, "steps": 3, "seconds": 4.0, "version": f"{name}@1", "value": e}
              for f, n, e in zip((0.5, 1.0), (50, 100), estimates, strict=True)]  # fmt: skip
    return curve_page({
        "name": name, "metric": "exact_match", "what": "share", "higher_is_better": True, "share": True, "same": "epochs", "points": points,
        "suite": {"name": "validation", "n": 40, "digest": "sha256:abc"}, "base": {"way": "base zero_shot", **estimates[0]},
        "gain": {"value": 0.2, "low": 0.1, "high": 0.3, "p": 0.01, "n": 40, "verdict": verdict, "method": "bootstrap", "test": "McNemar"},
        "answer": "", "created": "2026-11-20T12:00:00+00:00",
    })  # fmt: skip


def test_the_page_shows_every_point_with_its_interval_and_leads_nowhere_else() -> None:
    page = Page(page_of())
    assert nothing_points_outside(page) >= 3 and usable_pictures(page) == 1 and not page.of("script")
    text = page.text(" ")
    for number in ("0.500", "0.700", "[0.450, 0.550]", "[0.650, 0.750]", "+0.200", "+0.100", "+0.300"):
        assert number in text
    assert "More data helps" in text and "It cannot be seen" in Page(page_of(verdict="no difference seen")).text()


def test_a_hostile_name_stays_text_on_the_page() -> None:
    hostile = '<script>alert(1)</script>"><img src=x onerror=alert(1)>\u202e'
    clean, page = Page(page_of()), Page(page_of(hostile))
    assert page.tree == clean.tree
    assert "\u202e" not in page.source
