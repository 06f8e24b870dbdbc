"""The whole corridor through the real command line, on a tiny real model: run, evaluate, answer, and what the answers add up to."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, graded_colours_in, heed_interrupts, tuner
from tuner import pipeline
from tuner.recipe import load_recipe


@pytest.fixture(scope="module")
def done(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """(folder, process) of one `tuner run`."""
    folder = tmp_path_factory.mktemp("run")
    evaluate = {"few_shot": 3, "max_new_tokens": 4, "resamples": 1000}
    graded_colours_in(folder, tiny_base, 24, train={"epochs": 2, "peak_learning_rate": 2e-2}, evaluate=evaluate)
    return folder, tuner("run", "recipe.yaml", cwd=folder)


def evaluation(folder: Path) -> Path:
    (found,) = (folder / "adapters" / "colours" / "1" / "evaluations").iterdir()
    return found


def test_a_run_ends_with_a_version_a_report_and_an_honest_exit_code(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, process = done
    scores = json.loads((evaluation(folder) / "scores.json").read_text(encoding="utf-8"))
    assert process.returncode == (0 if scores["verdict"]["word"] == "better" else 3), process.stderr
    assert "Traceback" not in process.stderr
    assert {p.name for p in evaluation(folder).iterdir()} == {"scores.json", "answers.jsonl", "report.json", "report.md", "report.html"}
    assert "read 24 = kept 24 + dropped 0 + rejected 0" in process.stdout
    assert f"verdict: {scores['verdict']['word']}" in process.stdout
    assert not list((folder / "adapters" / "colours").glob(".stage-*"))


def test_every_value_and_difference_of_the_report_can_be_recomputed_by_forty_three_lines_that_know_nothing_of_tuner(
    done: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    from tests.evaluate.recompute import differing

    folder, _ = done
    report = json.loads((evaluation(folder) / "report.json").read_text(encoding="utf-8"))
    assert {s["role"] for s in report["suites"].values()} == {"held_out", "ood", "transform", "abstention", "forgetting", "memorisation", "cost"}
    every = report["suites"].values()
    stated = sum(
        len(of) for s in every for of in [*s["values"].values(), s["differences"], *s["facts"].get("drops", {}).values(), s["facts"].get("excess", {})]
    )
    stated += 3 * len((report["slices"] or {"rows": []})["rows"])
    checked, wrong = differing(evaluation(folder))
    assert not wrong
    assert checked == stated - 1  # adapter_bytes is the size of a file
    assert "import tuner" not in (ROOT / "tests" / "evaluate" / "recompute.py").read_text(encoding="utf-8")


def test_what_is_graded_is_what_is_served(done: tuple[Path, subprocess.CompletedProcess[str]], tiny_base: Path) -> None:
    """`tuner answer`, JSON lines in and out, gives the answers that were graded."""
    folder, _ = done
    rows = [json.loads(line) for line in (evaluation(folder) / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    graded = [r["answer"] for r in rows if r["contender"] == "adapter" and r["suite"] == "held_out"]
    asked = "".join(json.dumps({"prompt": r["question"][-1]["content"], "id": r["item"]}) + "\n" for r in rows
                    if r["contender"] == "adapter" and r["suite"] == "held_out")  # fmt: skip
    (folder / "questions.jsonl").write_text(asked, encoding="utf-8")
    process = tuner("answer", "colours@1", "--input", "questions.jsonl", "--output", "said.jsonl", "--base", tiny_base, "--max-new-tokens", "4", cwd=folder)
    assert process.returncode == 0, process.stderr
    said = [json.loads(line) for line in (folder / "said.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [s["answer"] for s in said] == graded and [s["id"] for s in said] == list(range(24))
    one = tuner("answer", "colours", rows[0]["question"][-1]["content"], "--base", tiny_base, cwd=folder)
    assert one.returncode == 0 and one.stdout.endswith("\n")


def test_an_equal_finished_run_is_shown_and_not_repeated(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, first = done
    process = tuner("run", "recipe.yaml", "--reuse", cwd=folder)
    assert process.returncode == first.returncode
    assert "nothing to do" in process.stderr
    assert [p.name for p in (folder / "adapters" / "colours").iterdir() if p.name.isdigit()] == ["1"]


def test_an_evaluation_is_added_and_never_replaces_one(done: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    import shutil

    folder, _ = done
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    process = tuner("evaluate", "colours@1", "recipe.yaml", "evaluate.take=6", cwd=copy)
    assert process.returncode in (0, 3), process.stderr
    found = list((copy / "adapters" / "colours" / "1" / "evaluations").iterdir())
    assert len(found) == 2
    again = tuner("list", "--json", cwd=copy)
    assert json.loads(again.stdout)[0]["version"] == "colours@1"


def test_two_ranks_publish_one_version_with_the_losses_of_one_rank(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    """accelerate's own launcher, two gloo processes on CPU; the global batch is the recipe's, so the losses agree."""
    recipe_file(evaluate={"suites": ["held_out", "ood"], "max_new_tokens": 2, "resamples": 1000, "base_ways": ["zero_shot"]})
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0",
              "-m", "tuner", "run", "recipe.yaml", "--store", "two"]  # fmt: skip
    process = subprocess.run(launch, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert list((tmp_path / "two" / "colours").glob("[0-9]*")) == [tmp_path / "two" / "colours" / "1"], process.stderr[-3000:]
    assert len(list((tmp_path / "two" / "colours" / "1" / "evaluations").iterdir())) == 1
    assert process.stdout.count("published colours@1") == 1
    alone = tuner("train", "recipe.yaml", "--store", "one", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    logs = []
    for store in ("one", "two"):
        lines = (tmp_path / store / "colours" / "1" / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
        logs.append([json.loads(line) for line in lines])
    one, two = ([e["loss"] for e in log if "loss" in e] for log in logs)
    assert len(one) == 3 and two == pytest.approx(one, rel=2e-3)
    assert logs[0][-1]["step"] == logs[1][-1]["step"]


@pytest.mark.parametrize(("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)])
def test_a_signal_while_training_publishes_nothing_and_exits_with_its_code(
    number: signal.Signals, code: int, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe_file(train={"epochs": 1000, "log_every_steps": 1, "records_per_step": 8})
    process = subprocess.Popen(
        [sys.executable, "-m", "tuner", "run", "recipe.yaml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "training" in line:
            break
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "nothing half-done was published" in said and "Traceback" not in said
    home = tmp_path / "adapters" / "colours"
    assert [p.name for p in home.iterdir() if p.name != ".lock"] == []


@pytest.mark.slow
def test_a_cut_recipe_trains_without_split_files(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe_file(data={"task": "label", "train": "train.jsonl", "cut": {"validation": 0.2, "held_out": 0.2, "stratify": True}})
    process = tuner("run", "recipe.yaml", "train.max_steps=1", cwd=tmp_path)
    assert process.returncode in (0, 3), process.stderr
    manifest = json.loads((tmp_path / "adapters" / "colours" / "1" / "manifest.json").read_text(encoding="utf-8"))
    counts = {split: facts["records"] for split, facts in manifest["data"]["splits"].items()}
    assert sum(counts.values()) == 24 and set(counts) == {"train", "validation", "held_out"}


def test_importing_the_doors_loads_no_heavy_library() -> None:
    doors = "tuner, tuner.cli, tuner.recipe, tuner.data.checks, tuner.data.sources, tuner.report.write, tuner.template.tokens"
    code = f"import sys; import {doors}; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for heavy in ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes"):
        assert f"'{heavy}'" not in loaded


def test_help_loads_next_to_nothing() -> None:
    code = "import sys; from tuner.cli import app; print(len(sys.modules), 'pydantic' in sys.modules, 'tokenizers' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert said[1:] == ["False", "False"]


def test_every_shipped_recipe_plans_and_trains_two_steps_on_a_tiny_model(tiny_base: Path, tmp_path: Path) -> None:
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    small = [f"base.model={tiny_base}", "base.sanity=off", "data.train.take=20", "data.validation.take=4", "train.max_steps=2", "train.records_per_step=4"]
    for file in recipes:
        recipe = load_recipe(file, small)
        assert pipeline.plan(pipeline.prepare(recipe)).plan.steps == 2
        run = pipeline.run(recipe, tmp_path, grade_after=False)
        assert run.version is not None and (run.version.folder / "manifest.json").is_file()
    assert len(recipes) == 3


def test_a_killed_run_leaves_only_what_the_next_one_removes(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe_file(train={"epochs": 1000, "log_every_steps": 1})
    process = subprocess.Popen(
        [sys.executable, "-m", "tuner", "run", "recipe.yaml"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "training" in line:
            break
    time.sleep(0.5)
    process.kill()
    process.wait()
    again = tuner("train", "recipe.yaml", "train.max_steps=1", "--fresh", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert sorted(p.name for p in (tmp_path / "adapters" / "colours").iterdir()) == [".lock", "1"]


def test_a_run_that_ended_before_grading_goes_on_with_it(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe_file(evaluate={"suites": ["held_out", "ood"], "max_new_tokens": 2, "resamples": 1000, "base_ways": ["zero_shot"]})
    assert tuner("train", "recipe.yaml", cwd=tmp_path).returncode == 0
    done = tuner("run", "recipe.yaml", cwd=tmp_path)
    home = tmp_path / "adapters" / "colours"
    assert done.returncode in (0, 3) and "not graded yet" in done.stderr, done.stderr
    assert sorted(p.name for p in home.iterdir()) == [".lock", "1"] and len(list((home / "1" / "evaluations").iterdir())) == 1


def test_what_only_validation_decides_is_refused_without_it(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe_file(data={"task": "label", "train": "train.jsonl"})
    refused = tuner("plan", "recipe.yaml", "train.keep=best", cwd=tmp_path)
    assert refused.returncode == 2 and "no validation split" in refused.stderr


@pytest.mark.slow
def test_a_run_that_ended_between_publishing_and_tidying_publishes_nothing_twice(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    """The checkpoints of a run killed after its version was renamed into place, put back as they were: the next run only removes them."""
    recipe_file(train={"epochs": 400, "records_per_step": 8, "checkpoint_every_steps": 5, "log_every_steps": 1})
    process = subprocess.Popen(
        [sys.executable, "-m", "tuner", "train", "recipe.yaml"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while not list((tmp_path / "runs").glob("colours/*/step-5")) and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    kept = shutil.copytree(tmp_path / "runs", tmp_path / "kept", copy_function=shutil.copy2)
    first = tuner("train", "recipe.yaml", cwd=tmp_path)
    assert first.returncode == 0 and not list((tmp_path / "runs").glob("colours/*/step-*")), first.stderr
    shutil.copytree(kept, tmp_path / "runs", copy_function=shutil.copy2, dirs_exist_ok=True)
    again = tuner("train", "recipe.yaml", cwd=tmp_path)
    assert again.returncode == 0 and "only its checkpoints were left" in again.stderr, again.stderr
    assert sorted(p.name for p in (tmp_path / "adapters" / "colours").iterdir()) == [".lock", "1"]
    assert not list((tmp_path / "runs").glob("colours/*/step-*"))
