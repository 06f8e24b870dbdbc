"""evaluate, gate, compare, report and run --seeds through the real command line, on two versions of a tiny real model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from tests.conftest import graded_colours_in, jsonl, tuner, writable_copy
from tuner.evaluate.spec import EvaluateSpec, GateSpec
from tuner.recipe import load_recipe

FORM = re.compile(r"^\S.*\n  found     .+\n  accepted  .+\n  try       .+", re.MULTILINE)
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
HOSTILE = "evil\x1b[31m\u202e\x07\x9b2J"
RULES = {
    0: [{"suite": "held_out", "metric": "loss", "of": "value", "at_most": 100.0}],
    3: [{"suite": "held_out", "metric": "loss", "of": "value", "at_most": 100.0}, {"suite": "far", "metric": "loss", "of": "value", "at_least": 100.0}],
    4: [{"suite": "held_out", "metric": "loss", "of": "value", "at_most": 100.0}, {"suite": "held_out", "metric": "exact_match", "at_least": 0.0001}],
}


def written(folder: Path, file: str = "recipe.yaml", **sections: Any) -> Path:
    """The folder's recipe with these sections instead of its own, in `file`."""
    (folder / file).write_text(json.dumps(json.loads((folder / "recipe.yaml").read_text(encoding="utf-8")) | sections, indent=1), encoding="utf-8")
    return folder / file


@pytest.fixture(scope="module")
def seeds(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[subprocess.CompletedProcess[str]]]:
    """(folder, processes) of `tuner run recipe.yaml --seeds 2`, twice."""
    folder = tmp_path_factory.mktemp("seeds")
    few = {"probes": 21, "instructions": 7, "problems": 4, "passages": 4}
    evaluate = {"suites": ["held_out", "ood", "cost"], "few_shot": 3, "max_new_tokens": 4, "resamples": 1000, "forgetting": few}
    graded_colours_in(folder, tiny_base, 12, train={"max_steps": 2, "peak_learning_rate": 2e-2}, evaluate=evaluate, gate={"rules": RULES[0]})
    return folder, [tuner("run", "recipe.yaml", "--seeds", "2", cwd=folder) for _ in range(2)]


@pytest.fixture
def folder(seeds: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return writable_copy(seeds[0], tmp_path / "copy")


def evaluations(folder: Path, number: int) -> list[Path]:
    home = folder / "adapters" / "colours" / str(number) / "evaluations"
    return sorted((p for p in home.iterdir() if (p / "scores.json").is_file()), key=lambda p: (p / "scores.json").stat().st_mtime_ns)


def scores(evaluation: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((evaluation / "scores.json").read_text(encoding="utf-8"))
    return found


def answered(folder: Path) -> dict[str, bytes]:
    """Everything that models were asked and said, as the store remembers it."""
    return {p.name: p.read_bytes() for p in (folder / "adapters" / ".answers").iterdir()}


# --- several seeds -----------------------------------------------------------------------------------------------------


def test_two_seeds_give_two_versions_that_differ_in_their_training_seed_alone_and_what_holds_over_both(seeds: Any) -> None:
    folder, (first, _) = seeds
    assert first.returncode == 3, first.stderr  # a tiny random base learns nothing in two steps
    one, two = (load_recipe(folder / "adapters" / "colours" / n / "resolved.yaml") for n in ("1", "2"))
    assert (one.training_seed, two.training_seed) == (42, 43) and one.seed == two.seed
    assert one.model_dump(exclude={"train": {"seed"}}) == two.model_dump(exclude={"train": {"seed"}})
    weights = [(folder / "adapters" / "colours" / n / "adapter_model.safetensors").read_bytes() for n in ("1", "2")]
    assert weights[0] != weights[1]
    kept = list((folder / "adapters" / "colours" / "2" / "evaluations").glob("*seeds*"))
    found = json.loads((kept[0] / "seeds.json").read_text(encoding="utf-8"))
    assert found["versions"] == ["colours@1", "colours@2"] and set(found["suites"]) == {"held_out", "far", "cost"}
    by_seed = [scores(evaluations(folder, n)[0])["suites"]["held_out"]["values"]["adapter"]["exact_match"]["value"] for n in (1, 2)]
    exact = found["suites"]["held_out"]["values"]["exact_match"]
    assert exact["spread"]["values"] == pytest.approx(by_seed) and exact["value"] == pytest.approx(sum(by_seed) / 2) and exact["low"] <= exact["value"]
    assert "over 2 training seeds (colours@1, colours@2)" in first.stdout
    assert (kept[0] / "seeds.txt").read_text(encoding="utf-8").strip() in first.stdout


def test_seeds_that_are_there_already_are_not_trained_again(seeds: Any) -> None:
    folder, (first, second) = seeds
    assert second.returncode == 3 and "training" not in second.stderr.replace("training seeds", "") and second.stderr.count("nothing to do") == 2
    assert sorted(p.name for p in (folder / "adapters" / "colours").iterdir() if p.name.isdigit()) == ["1", "2"]
    assert [len(evaluations(folder, n)) for n in (1, 2)] == [1, 1]
    assert second.stdout.split("over 2 training seeds")[1].split("written")[0] == first.stdout.split("over 2 training seeds")[1].split("written")[0]


# --- evaluate ----------------------------------------------------------------------------------------------------------


def bare(found: dict[str, Any]) -> dict[str, Any]:
    """Scores without what an hour, another look, or a busy machine changes."""
    left = {k: v for k, v in found.items() if k not in ("created", "looks")}
    contenders = {name: {k: v for k, v in of.items() if k not in ("seconds", "asked")} for name, of in found["contenders"].items()}
    return {**left, "contenders": contenders, "suites": {name: of for name, of in found["suites"].items() if of["role"] != "cost"}}


def test_a_second_evaluation_finds_the_recipe_asks_the_models_nothing_and_finds_the_same(folder: Path) -> None:
    before = answered(folder)
    done = tuner("evaluate", "colours@1", cwd=folder)
    assert done.returncode in (0, 3) and "note:" not in done.stderr, done.stderr
    first, second = evaluations(folder, 1)
    assert answered(folder) == before and len(before) >= 6
    assert bare(scores(first)) == bare(scores(second))
    assert {of["asked"] for of in scores(second)["contenders"].values()} == {0} < {of["asked"] for of in scores(first)["contenders"].values()}
    rows = [[r for r in map(json.loads, (e / "answers.jsonl").open(encoding="utf-8")) if r["suite"] != "cost"] for e in (first, second)]
    assert rows[0] == rows[1] and len(rows[0]) > 60
    assert scores(second)["looks"]["count"] == 3 and scores(second)["looks"]["versions"] == ["colours@1", "colours@2"]
    assert "opened 3 times" in done.stdout


def test_suites_named_on_the_command_line_are_run_with_held_out_and_no_other_and_overrides_of_the_training_are_said(folder: Path) -> None:
    done = tuner("evaluate", "colours@2", "--suite", "forgetting", cwd=folder)
    assert done.returncode in (0, 3) and "colours@2 was trained with overrides" in done.stderr, done.stderr
    assert set(scores(evaluations(folder, 2)[-1])["suites"]) == {"held_out", "forgetting"}


def test_an_unknown_suite_is_refused_with_its_neighbour(seeds: Any) -> None:
    done = tuner("evaluate", "colours@1", "--suite", "forgeting", cwd=seeds[0])
    assert done.returncode == 2 and FORM.search(done.stderr) and "forgetting" in done.stderr and len(evaluations(seeds[0], 1)) == 1


def test_a_recipe_that_was_changed_since_is_graded_as_it_is_now_and_said(folder: Path) -> None:
    changed = json.loads((folder / "recipe.yaml").read_text(encoding="utf-8"))["evaluate"] | {"suites": ["held_out"], "take": 5}
    written(folder, evaluate=changed)
    done = tuner("evaluate", "colours@1", cwd=folder)
    assert done.returncode in (0, 3) and "trained by it before it was changed" in done.stderr, done.stderr
    assert scores(evaluations(folder, 1)[-1])["suites"]["held_out"]["n"] == 5


def test_a_recipe_that_is_gone_is_asked_for_with_the_command_to_type(folder: Path) -> None:
    (folder / "recipe.yaml").unlink()
    done = tuner("evaluate", "colours@1", cwd=folder)
    assert done.returncode == 2 and FORM.search(done.stderr) and "tuner evaluate colours@1 RECIPE.yaml" in done.stderr and "Traceback" not in done.stderr


# --- gate --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", RULES)
def test_the_gate_exits_by_its_outcome_and_shows_each_rule(code: int, folder: Path) -> None:
    ruled = tuner("gate", "colours@1", written(folder, "gate.yaml", gate={"rules": RULES[code]}), cwd=folder)
    assert ruled.returncode == code, ruled.stdout + ruled.stderr
    assert ruled.stdout.count("  needed ") == len(RULES[code]) and f"gate: { {0: 'pass', 3: 'fail', 4: 'undecided'}[code] }" in ruled.stdout


def test_the_gate_of_a_version_is_its_own_recipes_and_speaks_json(seeds: Any) -> None:
    done = tuner("gate", "colours@1", "--json", cwd=seeds[0])
    said = json.loads(done.stdout)
    assert done.returncode == 0 and said["version"] == "colours@1" and said["outcome"] == "pass" and said["evaluation"] == evaluations(seeds[0], 1)[0].name
    (rule,) = said["rules"]
    found = scores(evaluations(seeds[0], 1)[0])
    assert rule["found"]["value"] == found["suites"]["held_out"]["values"]["adapter"]["loss"]["value"] and found["gate"]["rules"] == [rule]


def test_wrong_rules_and_taken_names_are_refused_before_training_with_their_lines(folder: Path) -> None:
    jsonl(folder / "cost.jsonl", [{"prompt": f"what else {i}", "completion": "red"} for i in range(6)])
    data = json.loads((folder / "recipe.yaml").read_text(encoding="utf-8"))["data"]
    rules = [{"suite": "held_ot", "metric": "loss", "at_least": 0.0}, {"suite": "held_out", "metric": "chrf", "at_least": 0.0},
             {"suite": "held_out", "metric": "loss", "at_least": 0.0}]  # fmt: skip
    path = written(folder, "wrong.yaml", name="wrong", gate={"rules": rules}, data=data | {"ood": {"cost": "cost.jsonl"}})
    done = tuner("run", path.name, cwd=folder)
    assert done.returncode == 2 and len(FORM.findall(done.stderr)) == 3 and "Traceback" not in done.stderr, done.stderr
    lines = path.read_text(encoding="utf-8").splitlines()
    opening = [number for number, words in enumerate(lines) if '"suite":' in words]  # the line of a rule's brace, counted from 1
    name = next(number for number, words in enumerate(lines, 1) if '"cost":' in words)
    for line, field in ((opening[0], "gate.rules[0].suite"), (opening[1], "gate.rules[1].metric"), (name, "data.ood.cost")):
        assert re.search(rf"wrong\.yaml:{line}\s+{re.escape(field)}", done.stderr), (line, field, done.stderr)
    assert not list(folder.glob("adapters/wrong/[0-9]*"))


def test_a_version_that_was_not_evaluated_is_refused_with_the_command_to_type(folder: Path) -> None:
    shutil.rmtree(folder / "adapters" / "colours" / "1" / "evaluations")
    done = tuner("gate", "colours@1", cwd=folder)
    assert done.returncode == 2 and FORM.search(done.stderr) and "tuner evaluate colours@1" in done.stderr


# --- compare and report ------------------------------------------------------------------------------------------------


def test_two_versions_are_compared_on_the_items_both_were_asked(seeds: Any) -> None:
    folder = seeds[0]
    done = tuner("compare", "colours@1", "colours@2", "--json", cwd=folder)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and set(found["suites"]) == {"held_out", "far", "cost"}
    one, two = (scores(evaluations(folder, n)[0])["suites"]["held_out"]["values"]["adapter"]["loss"]["value"] for n in (1, 2))
    gap = found["suites"]["held_out"]["metrics"]["loss"]["difference"]
    assert gap["value"] == pytest.approx(two - one) and gap["n"] == 12 and gap["baseline"] == "colours@1" and gap["low"] <= gap["value"] <= gap["high"]


def test_versions_without_a_common_item_are_refused_and_those_with_some_compared_on_them(folder: Path) -> None:
    for number, rename in ((1, "thing"), (2, "matter")):
        file = evaluations(folder, number)[0] / "answers.jsonl"
        rows = [json.loads(line) for line in file.open(encoding="utf-8")]
        file.write_text("".join(json.dumps(r).replace("thing", rename) + "\n" for r in rows if r["suite"] == "held_out"), encoding="utf-8")
    done = tuner("compare", "colours@1", "colours@2", cwd=folder)
    assert done.returncode == 2 and FORM.search(done.stderr) and "none in common" in done.stderr and "Traceback" not in done.stderr


def test_the_report_is_written_again_byte_for_byte(folder: Path) -> None:
    (evaluation,) = evaluations(folder, 1)
    before = {p.name: p.read_bytes() for p in evaluation.iterdir()}
    for name in ("report.html", "report.md", "report.json"):
        (evaluation / name).unlink()
    done = tuner("report", "colours@1", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert {p.name: p.read_bytes() for p in evaluation.iterdir()} == before and len(before) == 5
    assert done.stdout.strip() == before["report.md"].decode().strip() and "report.html" in done.stderr


def poisoned(value: Any) -> Any:
    """Every text that came from data or a model, with what a terminal would obey."""
    if isinstance(value, dict):
        return {k: poisoned(v) for k, v in value.items()}
    return [poisoned(v) for v in value] if isinstance(value, list) else value + HOSTILE if isinstance(value, str) else value


def test_hostile_text_of_answers_and_data_reaches_the_terminal_only_as_visible_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tuner.telling import say_scores

    for number in (1, 2):
        (evaluation,) = evaluations(folder, number)
        found = scores(evaluation)
        rows = [json.loads(line) for line in (evaluation / "answers.jsonl").open(encoding="utf-8")]
        data = ("answer", "reference", "references", "where", "question", "traits")
        rows = [{k: poisoned(v) if k in data else v for k, v in r.items()} for r in rows]
        rows = [{**r, "question": [{**m, "role": "user"} for m in r["question"]]} if "question" in r else r for r in rows]
        rows = [{**r, "suite": f"far{HOSTILE}"} if r["suite"] == "far" else r for r in rows]
        (evaluation / "answers.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        found["suites"][f"far{HOSTILE}"] = found["suites"].pop("far")
        found["flags"] = [{"suite": f"far{HOSTILE}", "words": HOSTILE}]
        found["suites"]["held_out"]["facts"]["words"] = found["looks"]["words"] = HOSTILE
        found["looks"]["count"] = 5
        for part in found["gate"]["rules"]:
            part["words"] = part["why"] = HOSTILE
        (evaluation / "scores.json").write_text(json.dumps(found), encoding="utf-8")
        say_scores(found)
    told = [capsys.readouterr().out]
    for words in (["report", "colours@1"], ["gate", "colours@1"], ["compare", "colours@1", "colours@2"]):
        done = tuner(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
        told += [done.stdout, done.stderr]
    assert sum("\\x1b" in text for text in told) == 3  # say_scores, report and compare; what the gate says it computes anew
    assert [text for text in told if RAW.search(text)] == []


# --- every key of evaluate and gate ------------------------------------------------------------------------------------

RULE = {"suite": "held_out", "metric": "loss", "of": "value", "at_most": 2.0}
VALUES: dict[str, Any] = {
    "evaluate.suites": ["held_out", "cost"], "evaluate.profile": "full", "evaluate.metrics": ["chrf"], "evaluate.primary": "chrf",
    "evaluate.options.pattern": "a+", "evaluate.options.absolute_tolerance": 0.5, "evaluate.options.relative_tolerance": 0.25,
    "evaluate.options.json_schema": "s.json", "evaluate.options.bertscore_model": "bert", "evaluate.options.bertscore_layer": 3,
    "evaluate.options.context_field": "passage", "evaluate.options.context_start": "Notes:", "evaluate.options.context_end": "END",
    "evaluate.base_ways": ["few_shot"], "evaluate.label_answers": "likeliest",
    "evaluate.prompts": {"short": "One word."}, "evaluate.few_shot": 3, "evaluate.max_new_tokens": 9,
    "evaluate.batch": 5, "evaluate.resamples": 2000, "evaluate.take": 50, "evaluate.judge.endpoint": "http://127.0.0.1:9/v1",
    "evaluate.judge.model": "judge-1", "evaluate.judge.key_file": "key", "evaluate.judge.instruction": "Which?", "evaluate.judge.take": 9,
    "evaluate.judge.parallel": 2, "evaluate.judge.timeout_seconds": 3.5, "evaluate.judge.retries": 1, "evaluate.judge.temperature": 0.5,
    "evaluate.transforms.families": ["casing"], "evaluate.transforms.severities": [1, 3], "evaluate.transforms.take": 11,
    "evaluate.abstention.label": "none", "evaluate.abstention.take": 12, "evaluate.abstention.confident": 0.75,
    "evaluate.forgetting.probes": 70, "evaluate.forgetting.instructions": 14, "evaluate.forgetting.problems": 8, "evaluate.forgetting.passages": 6,
    "evaluate.forgetting.tasks": ["arc_easy"], "evaluate.forgetting.tasks_folder": "tasks", "evaluate.forgetting.tasks_take": 13,
    "evaluate.memorisation.members": 30, "evaluate.memorisation.personal": 4, "evaluate.memorisation.candidates": 128,
    "evaluate.group_by": "customer", "evaluate.slices": ["source"], "evaluate.smallest_slice": 5, "gate.rules": [RULE],
}  # fmt: skip
RULE_KEYS = {"suite": "far", "metric": "chrf", "of": "drop", "at_least": 0.125, "at_most": 0.25}


def leaves(model: type[BaseModel], path: str) -> Iterator[tuple[str, str]]:
    """Every key under a section, with its description; a list of sections counts as one."""
    for name, field in model.model_fields.items():
        assert (field.description or "").strip(), f"{path}.{name}"
        kinds = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)
        below = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if below is None:
            yield f"{path}.{name}", field.description or ""
        else:
            yield from leaves(below, f"{path}.{name}")


def nested(path: str, value: Any) -> dict[str, Any]:
    first, dot, rest = path.partition(".")
    return {first: nested(rest, value) if dot else value}


def at(recipe: Any, path: str) -> Any:
    for name in path.split("."):
        recipe = getattr(recipe, name)
    return recipe


@pytest.mark.parametrize("path", VALUES)
def test_a_key_of_a_recipe_file_reaches_its_section(path: str, recipe_file: Callable[..., Path]) -> None:
    section = nested(path, VALUES[path])
    if path.startswith("evaluate.judge."):
        section["evaluate"]["judge"] = {"endpoint": "http://127.0.0.1:8/v1", "model": "other"} | section["evaluate"]["judge"]
    written_as, plain = load_recipe(recipe_file(**section)), load_recipe(recipe_file(evaluate={}))
    found = at(written_as, path)
    assert (found[0].model_dump(exclude_none=True) if path == "gate.rules" else found) == (RULE if path == "gate.rules" else VALUES[path])
    if not path.startswith("evaluate.judge."):
        assert at(plain, path) != found  # the value is not the default
    assert load_recipe(recipe_file(evaluate={}), [f"{path.split('.')[0]}={json.dumps(section[path.split('.')[0]])}"]).digest != plain.digest


def test_every_key_of_evaluate_and_gate_was_swept_and_says_what_it_is() -> None:
    swept = dict([*leaves(EvaluateSpec, "evaluate"), *leaves(GateSpec, "gate")])
    assert set(swept) == set(VALUES) and len(swept) == 50
    from tuner.evaluate.spec import GateRule

    assert set(GateRule.model_fields) == set(RULE_KEYS) and all(f.description for f in GateRule.model_fields.values())


@pytest.mark.parametrize("key", RULE_KEYS)
def test_a_key_of_a_rule_reaches_it(key: str, recipe_file: Callable[..., Path]) -> None:
    rule = {k: v for k, v in (RULE | {key: RULE_KEYS[key]}).items() if not (k == "at_most" and key == "at_least")}
    (found,) = load_recipe(recipe_file(gate={"rules": [rule]})).gate.rules or ()
    assert getattr(found, key) == RULE_KEYS[key] and found.model_dump(exclude_none=True) == rule
