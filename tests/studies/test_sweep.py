"""A sweep tries every combination or what Optuna proposes, each trial a version, refuses wrong values before the first, survives failed ones.

It refuses mocks of sharing: two real processes work on one study.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import heed_interrupts, tuner
from tests.report.page import Page, nothing_points_outside
from tuner.errors import Refusal
from tuner.recipe import load_recipe
from tuner.report.study_page import sweep_page
from tuner.studies.axes import Range, Values, axes_of, axis_of, corners, grid, plain_and_varied
from tuner.studies.search import Search
from tuner.studies.sweep import Trial, ranked

ENV = {"OMP_NUM_THREADS": "1"}
needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason="optuna is not installed (extra sweep): searching was not checked")


# --- what is varied ------------------------------------------------------------------------------------------------


def test_lists_are_split_at_their_outer_commas_and_read_as_yaml() -> None:
    assert axis_of("method.rank=4,8") == Values("method.rank", (4, 8))
    assert axis_of("method.targets=[q_proj, v_proj],all-linear") == Values("method.targets", (["q_proj", "v_proj"], "all-linear"))
    assert axis_of("train.max_steps=null,3") == Values("train.max_steps", (None, 3))
    assert axis_of('method.init_text="a, b",c') == Values("method.init_text", ("a, b", "c"))


def test_a_range_is_searched_by_order_of_magnitude_where_its_ends_are_ten_times_apart() -> None:
    assert axis_of("a=1e-4..1e-3") == Range("a", 1e-4, 1e-3, log=True, whole=False)
    assert axis_of("a=0.1..0.5") == Range("a", 0.1, 0.5, log=False, whole=False)
    assert axis_of("a=4..64") == Range("a", 4, 64, log=True, whole=True)
    assert axis_of("a=0..9") == Range("a", 0, 9, log=False, whole=True)


@pytest.mark.parametrize("words", ["rank", "=4", "rank=", "a=3..1", "a=2..2", "a=4,4", "a b=1,2"])
def test_words_that_vary_nothing_are_refused(words: str) -> None:
    with pytest.raises(Refusal):
        axis_of(words)


def test_a_grid_is_every_combination_and_a_search_checks_every_end() -> None:
    axes = [Values("a", (1, 2)), Values("b", ("x", "y", "z"))]
    assert grid(axes) == [{"a": a, "b": b} for a in (1, 2) for b in "xyz"]
    ends = corners([Range("r", 1, 9, False, True), *axes])
    assert {(key, value) for keys in ends for key, value in keys.items()} == {("r", 1), ("r", 9), ("a", 1), ("a", 2), ("b", "x"), ("b", "y"), ("b", "z")}
    with pytest.raises(Refusal, match="trials"):
        grid([Range("r", 1, 9, False, True)])


def test_a_key_with_one_value_is_an_override() -> None:
    assert plain_and_varied(["a=1", "b=1,2", "c=1..2", "d=[x,y]"]) == (["a=1", "d=[x,y]"], ["b=1,2", "c=1..2"])


def test_keys_that_make_runs_incomparable_are_refused_all_at_once(recipe_file: Callable[..., Path]) -> None:
    recipe = load_recipe(recipe_file())
    with pytest.raises(Refusal) as refused:
        axes_of(["data.train.take=4,8", "name=a,b", "template.max_tokens=64,128", "method.rank=4,8", "method.rank=2,3"], recipe, "validation_loss")
    assert [p.field for p in refused.value.problems] == ["data.train.take", "name", "template.max_tokens", "method.rank"]
    assert len(axes_of(["template.max_tokens=64,128", "seed=1,2", "base.load=auto,fp32"], recipe, "exact_match")) == 3


def test_the_best_comes_first_and_failed_trials_last() -> None:
    trials = [Trial(0, {}, 0.5), Trial(1, {}, None, reason="nan"), Trial(2, {}, 0.2), Trial(3, {}, 0.5)]
    assert [t.number for t in ranked(trials, higher_is_better=False)] == [2, 0, 3, 1]
    assert [t.number for t in ranked(trials, higher_is_better=True)] == [0, 3, 2, 1]


# --- the command ---------------------------------------------------------------------------------------------------


def studies(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("studies/*/sweep.json"))]


def test_every_wrong_value_is_refused_with_its_key_before_the_first_trial(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    done = tuner("sweep", recipe_file(), "method.rank=4,0,eight", "train.schedule=cosine,sine", "train.nothing=1,2", cwd=tmp_path, env=ENV)
    assert done.returncode == 2
    for words in ("method.rank", "eight", "'sine'", "train.nothing"):
        assert words in done.stderr
    assert not (tmp_path / "adapters").exists() and not (tmp_path / "studies").exists()


@pytest.mark.slow
def test_a_grid_publishes_a_version_a_trial_records_failed_ones_and_runs_none_twice(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    words = ["sweep", recipe_file(), "train.peak_learning_rate=1e-3,1e30", "method.rank=2,4", "train.max_gradient_norm=1e30", "train.epochs=2",
             "train.records_per_step=8"]  # fmt: skip
    first = tuner(*words, cwd=tmp_path, env=ENV)
    assert first.returncode == 0, first.stderr
    assert "sweep: 4 runs, 0 of them done: about" in first.stdout and "reads held_out, once" in first.stdout
    (study,) = studies(tmp_path)
    by_keys = {(t["keys"]["train.peak_learning_rate"], t["keys"]["method.rank"]): t for t in study["trials"]}
    assert set(by_keys) == {(rate, rank) for rate in (1e-3, 1e30) for rank in (2, 4)}
    for (rate, rank), trial in by_keys.items():
        if rate > 1:
            assert trial["value"] is None and "nan" in trial["reason"] and trial["version"] is None
            continue
        name, number = trial["version"].split("@")
        version = tmp_path / "adapters" / name / number
        log = [json.loads(line) for line in (version / "train_log.jsonl").read_text().splitlines()]
        assert trial["value"] == [entry["validation_loss"] for entry in log if "validation_loss" in entry][-1]
        assert json.loads((version / "adapter_config.json").read_text())["r"] == rank
    assert study["base"] is None and not list((tmp_path / "adapters").glob("*/*/evaluations"))
    again = tuner(*words, cwd=tmp_path, env=ENV)
    assert "4 of them done" in again.stdout and "training" not in again.stderr
    assert studies(tmp_path)[0]["trials"] == study["trials"]


@pytest.mark.slow
@needs_optuna
def test_two_processes_share_one_study_and_together_run_each_trial_once(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    command = [sys.executable, "-m", "tuner", "sweep", str(recipe_file()), "train.peak_learning_rate=1e-4..1e-2", "method.rank=2,4", "--trials", "5",
               "--objective", "exact_match", "--storage", storage]  # fmt: skip
    both = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **ENV}) for _ in range(2)]
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    done = tuner(*command[3:], cwd=tmp_path, env=ENV)
    assert done.returncode == 0 and "training" not in done.stderr
    (study,) = studies(tmp_path)
    assert [t["number"] for t in study["trials"]] == [0, 1, 2, 3, 4] and len({t["keys"]["train.peak_learning_rate"] for t in study["trials"]}) == 5
    assert all(1e-4 <= t["keys"]["train.peak_learning_rate"] <= 1e-2 and t["low"] <= t["value"] <= t["high"] for t in study["trials"])
    assert len(list((tmp_path / "adapters").glob("colours.sweep-*/*/manifest.json"))) == 5
    assert study["base"]["way"].startswith("base ")
    with sqlite3.connect(tmp_path / "shared.db") as database:
        assert database.execute("select state, count(*) from trials group by state").fetchall() == [("COMPLETE", 5)]


@pytest.mark.slow
@needs_optuna
def test_a_trial_whose_process_was_killed_is_taken_up_again_with_its_settings(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tuner", "sweep", str(recipe_file()), "train.peak_learning_rate=1e-4..1e-2", "--trials", "2", "train.epochs=30",
               "train.records_per_step=2"]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=heed_interrupts)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/*/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    (database,) = tmp_path.glob("studies/*/optuna.db")
    with sqlite3.connect(database) as opened:
        (asked,) = opened.execute("select param_value from trial_params").fetchone()
    done = tuner(*command[3:], cwd=tmp_path, env=ENV)
    assert done.returncode == 0, done.stderr
    (study,) = studies(tmp_path)
    assert [t["number"] for t in study["trials"]] == [0, 1] and study["trials"][0]["keys"]["train.peak_learning_rate"] == asked
    assert "from step" in done.stderr or "step-" in done.stderr  # it went on from its checkpoint


def test_a_search_without_optuna_is_refused_with_its_pip_line(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    program = "import sys; sys.modules['optuna'] = None; from tuner.cli import main; main()"
    command = [sys.executable, "-c", program, "sweep", str(recipe_file()), "method.rank=2,4", "--trials", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2 and "tuner-lora[sweep]" in done.stderr


@needs_optuna
def test_a_storage_that_cannot_be_opened_is_refused_and_its_password_not_shown(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refused:
        Search("colours.sweep", [Values("method.rank", (2, 4))], False, tmp_path, "nothing://alice:planted-password@host/db", 42)
    assert refused.value.problems[0].field == "--storage" and "planted-password" not in str(refused.value)


# --- the page ------------------------------------------------------------------------------------------------------


def page_of(word: str = "train.peak_learning_rate", base: dict[str, Any] | None = None) -> Page:
    trial = {"keys": {word: 0.001}, "value": 0.5, "version": "a@1", "low": 0.4, "high": 0.6, "seconds": 3.0, "reason": ""}
    failed = {**trial, "number": 1, "value": None, "version": None, "low": None, "high": None, "seconds": None, "reason": f"{word} nan"}
    return Page(sweep_page({
        "name": word, "id": "abc", "objective": "exact_match", "higher_is_better": True, "what": "share", "axes": [word], "how": "grid", "planned": 2, "n": 9,
        "trials": [{**trial, "number": 0}, failed], "order": [0, 1], "base": base, "created": "2026-11-20T12:00:00+00:00",
    }))  # fmt: skip


def test_the_page_shows_the_best_the_failed_and_a_warning_and_leads_nowhere_else() -> None:
    page = page_of(base={"way": "base zero_shot", "value": 0.3, "low": 0.2, "high": 0.4})
    assert nothing_points_outside(page) >= 2 and not page.of("script")
    text = page.text(" ")
    for words in ("0.500", "[0.400, 0.600]", "0.300", "failed", "looks better here than it is"):
        assert words in text


def test_hostile_words_stay_text_on_the_page() -> None:
    assert page_of('<b onclick="x">&"\'</b>').tree == page_of().tree
