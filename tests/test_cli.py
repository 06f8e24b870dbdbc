"""The command line as a user meets it: every mistake is said in one form, exits 2, and shows no traceback."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import BAD, ROOT, tuner

FORM = re.compile(r"^\S.*\n  found     .+\n  accepted  .+\n  try       .+", re.MULTILINE)
HOSTILE = "evil\x1b[31m\u202e\x07"


def edited(path: Path, *changes: tuple[str, str]) -> Path:
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text, encoding="utf-8")
    return path


# (what is wrong, words of the command after the recipe was made, what is said)
MISTAKES: dict[str, tuple[list[str], str]] = {
    "a recipe that does not exist": (["run", "recipes.yaml"], "no such file"),
    "a data file that does not exist": (["run", "recipe.yaml", "data.train=trian.jsonl"], "did you mean train.jsonl?"),
    "an empty data file": (["run", "recipe.yaml", f"data.train={BAD / 'empty.jsonl'}"], "0 bytes"),
    "a broken line 37": (["run", "recipe.yaml", f"data.train={BAD / 'broken_line_37.jsonl'}"], "broken_line_37.jsonl:37"),
    "a wrong key": (["run", "recipe.yaml", "train.learning_rate=1e-4"], "peak_learning_rate"),
    "a wrong type": (["run", "recipe.yaml", "train.epochs=many"], "train.epochs"),
    "a base that does not exist": (["run", "recipe.yaml", "base.model=smolm2-135m-instruct"], "write smollm2-135m-instruct"),
    "a version that does not exist": (["answer", "colours@7", "hi"], "no adapter 'colours'"),
    "a name that could leave the store": (["answer", "../x", "hi"], "adapter name"),
    "no question": (["answer", "colours"], "a question"),
    "an unknown check": (["check", "recipe.yaml", "data.checks={duplicate: drop}"], "exact_duplicates"),
    "an unknown metric": (["run", "recipe.yaml", "evaluate.metrics=[exact_mach]"], "exact_match"),
    "an unknown profile": (["check", "recipe.yaml", "--profile", "gpu"], "no profile 'gpu'"),
    "an override without a value": (["check", "recipe.yaml", "train.epochs"], "key.path=value"),
    "an unknown split": (["preview", "recipe.yaml", "--split", "test"], "held_out"),
    "rows longer than the limit": (["run", "recipe.yaml", "template.max_tokens=16"], "template.max_tokens"),
    "an attention that the rows do not fit": (["plan", "recipe.yaml", "train.batching=padded", "train.kernels.attention=varlen"], "packed rows"),
    "kernels of another device": (["plan", "recipe.yaml", "train.kernels.liger=on"], "train.kernels.liger"),
    "a method that cannot be packed": (["plan", "recipe.yaml", "method.kind=prefix", "train.batching=packed"], "train.batching"),
    "an unknown device": (["plan", "recipe.yaml", "--gpu", "h20"], "h200"),
    "nothing to show": (["show", "recipe"], "no file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_in_the_house_form(mistake: str, recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe_file()
    words, said = MISTAKES[mistake]
    process = tuner(*words, cwd=tmp_path)
    assert process.returncode == 2, process.stderr
    assert said in process.stderr and FORM.search(process.stderr), process.stderr
    assert "Traceback" not in process.stderr + process.stdout
    assert not list(tmp_path.glob("adapters/*/[0-9]*"))


def test_the_table_of_mistakes_was_swept() -> None:
    assert len(MISTAKES) == 21


def test_a_repeated_key_names_both_lines(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    edited(recipe_file(), ('"name": "colours",', '"name": "colours",\n"name": "shades",'))
    process = tuner("run", "recipe.yaml", cwd=tmp_path)
    assert process.returncode == 2 and "recipe.yaml:3" in process.stderr and "first on line 2" in process.stderr


def test_a_store_that_cannot_be_written_is_refused_before_anything_is_read(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe_file()
    (tmp_path / "taken").write_text("a file, not a folder", encoding="utf-8")
    process = tuner("run", "recipe.yaml", "--store", "taken/store", cwd=tmp_path)
    assert process.returncode == 2 and FORM.search(process.stderr) and "a folder this user may write" in process.stderr
    if os.geteuid() != 0:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        process = tuner("run", "recipe.yaml", "--store", "locked", cwd=tmp_path)
        assert process.returncode == 2 and "not writable" in process.stderr


def test_an_unknown_command_or_option_exits_with_2() -> None:
    for words in (["rnu", "recipe.yaml"], ["run", "--frsh", "x"], ["answer", "x", "y", "--max-new-tokens", "none"]):
        process = tuner(*words)
        assert process.returncode == 2 and "Traceback" not in process.stderr


def test_hostile_text_of_a_record_reaches_the_terminal_only_as_visible_text(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe_file()
    rows = [{"prompt": HOSTILE, "completion": "red"}, {"prompt": HOSTILE, "completion": HOSTILE}, {"prompt": "x", "completion": "blue"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    process = tuner("check", "recipe.yaml", cwd=tmp_path)
    assert process.returncode == 2 and "contradictions" in process.stdout
    shown = tuner("preview", "recipe.yaml", "data.checks={contradictions: warn}", cwd=tmp_path)
    for text in (process.stdout, process.stderr, shown.stdout):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    assert "\\x1b" in process.stdout and "\\x1b" in shown.stdout


def test_check_says_all_of_it_as_json(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe_file()
    process = tuner("check", "recipe.yaml", "--json", "--findings", "found.json", cwd=tmp_path)
    report = json.loads(process.stdout)
    assert process.returncode == 0
    assert [f["read"] for f in report["files"]] == [24, 6, 12, 6]
    assert all(f["read"] == f["kept"] + f["dropped"] + f["rejected"] for f in report["files"])
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8")) == report["findings"] == []


def test_show_prints_every_table_from_the_code() -> None:
    from tuner.base import BASES
    from tuner.data.checks import CHECKS
    from tuner.evaluate.metrics import METRICS
    from tuner.evaluate.perturb import TRANSFORMS
    from tuner.train.methods import METHODS

    for table, rows in {"checks": CHECKS, "metrics": METRICS, "transforms": TRANSFORMS, "methods": METHODS, "bases": BASES}.items():
        process = tuner("show", table)
        assert process.returncode == 0
        assert all(name in process.stdout for name in rows)


def test_every_command_stands_in_the_readme_with_every_exit_code() -> None:
    from typer.main import get_command

    from tuner.cli import app
    from tuner.errors import Exit

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = sorted(get_command(app).commands)  # type: ignore[attr-defined]
    assert len(commands) == 33
    for name in commands:
        assert f"`tuner {name}" in readme, name
    assert all(re.search(rf"\b{int(code)}\b", readme) for code in Exit)


def test_every_metric_transform_and_suite_stands_in_the_readme() -> None:
    from tuner.evaluate.metrics import METRICS
    from tuner.evaluate.perturb import TRANSFORMS
    from tuner.evaluate.spec import KINDS

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    names = [*METRICS, *TRANSFORMS, *KINDS]
    assert len(names) == 29 + 12 + 7 and not [name for name in names if f"`{name}`" not in readme]
    for transform, row in TRANSFORMS.items():
        assert f"| `{transform}` | {row.what}" in readme


def test_the_recipe_in_the_readme_is_the_one_that_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8").strip() in readme


def test_light_commands_of_the_readme_run(smollm2: object) -> None:
    recipe = "recipes/quickstart.yaml"
    for line in (f"check {recipe}", f"preview {recipe}", f"show recipe {recipe}", "schema", "version", "list"):
        process = tuner(*shlex.split(line), cwd=ROOT)
        assert process.returncode == 0, process.stderr


def test_a_broken_version_hides_no_other_and_says_why(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe_file()
    broken = tmp_path / "adapters" / "older" / "1"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text('{"schema": 1}', encoding="utf-8")
    listed = tuner("list", cwd=tmp_path)
    assert listed.returncode == 0 and "older@1" in listed.stdout and "broken" in listed.stdout
    shown = tuner("show", "older", cwd=tmp_path)
    assert shown.returncode == 2 and FORM.search(shown.stderr)


def test_problems_of_base_data_and_choices_come_together(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe_file()
    wrong = ["base.model=smolm2", "data.train=nowhere.jsonl", "data.checks={duplicates: drop}", "evaluate.primary=acuracy"]
    process = tuner("run", "recipe.yaml", *wrong, cwd=tmp_path)
    assert process.returncode == 2 and len(FORM.findall(process.stderr)) == 4


def test_output_that_cannot_be_written_is_refused_before_the_work(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe_file()
    for words in (["check", "recipe.yaml", "--findings", "no/such/x.json"], ["answer", "x", "hi", "--output", "no/such/x.jsonl"]):
        process = tuner(*words, cwd=tmp_path)
        assert process.returncode == 2 and "cannot be written" in process.stderr and "Traceback" not in process.stderr


def test_the_table_of_checks_in_the_readme_is_the_catalogue() -> None:
    from tuner.data.checks import CHECKS

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [f"| `{n}` | {c.what} | {c.default}{''.join(f'; {task}: {action}' for task, action in c.by_task.items())} |" for n, c in CHECKS.items()]
    assert len(rows) >= 50
    assert [row for row in rows if row not in readme] == []
    assert readme.count("\n| `") >= len(rows)


def test_bare_files_are_checked_without_a_recipe_and_data_keys_may_follow(tmp_path: Path) -> None:
    rows = [{"asked": f"what is the colour of thing {i}", "said": "blue" if i % 2 else "red", "id": i} for i in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"asked": "x", "asked": "y", "said": "z"}\n', encoding="utf-8")
    done = tuner("check", "a.jsonl", "data.train.columns={prompt: asked, completion: said}", "data.task=label", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert done.returncode == 2 and report["files"][0]["read"] == 31 and report["files"][0]["rejected"] == 1 and report["files"][0]["kept"] == 30
    assert [(f["check"], f["code"], f["line"]) for f in report["findings"] if f["severity"] == "error"] == [("unreadable", "DUPLICATE_KEY", 31)]
    keys = {"check", "code", "severity", "file", "line", "record_id", "field", "found", "accepted", "fix", "split"}
    assert report["findings"] and all(f.keys() == keys for f in report["findings"])
    dropped = tuner("check", "a.jsonl", "data.train.columns={prompt: asked, completion: said}", "data.task=label", "data.checks.unreadable=drop", cwd=tmp_path)
    assert dropped.returncode == 0 and "read 31 = kept 30 + dropped 0 + rejected 1" in dropped.stdout


def test_a_date_in_a_recipe_is_read_as_one_and_other_forms_are_refused(recipe_file: Callable[..., Path]) -> None:
    path = recipe_file()
    assert tuner("show", "recipe", path, "data.fresh_since=2024-05-01").stdout.count('fresh_since: "2024-05-01"') == 1
    for wrong in ("20240501", "2024-13-01", "yesterday", "1714521600"):
        done = tuner("show", "recipe", path, f"data.fresh_since={wrong}")
        assert done.returncode == 2 and "data.fresh_since" in done.stderr, wrong
