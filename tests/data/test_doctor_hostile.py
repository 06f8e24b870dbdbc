"""What a hostile reader of `tuner check` and `tuner select` found: each claim is one that the doctor makes; those not yet true are marked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MAIL = "maria.fernandez77@gmail.com"
KEY = "sk-proj-Ab3dEf6hIj9kLm2nOp5qRs8tUv1wXy4z7A"


def tuner(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tuner", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120, check=False, env=os.environ | environment)


def pair(prompt: str, completion: str, **rest: object) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **rest}


GOOD = [
    pair(f"How do I {verb} my {thing}?", f"To {verb} your {thing}, open settings and choose {verb} under {thing}.")
    for verb in ("reset", "renew", "cancel", "print", "move")
    for thing in ("card", "ticket", "lease", "router", "badge")
]


def lines(path: Path, rows: list[object]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows), encoding="utf-8")
    return path


def files_of(run: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return json.loads(run.stdout)["files"]  # type: ignore[no-any-return]


def recipe(folder: Path, base: Path, data: str) -> None:
    (folder / "recipe.yaml").write_text(f"name: x\nbase:\n  model: {base}\n  sanity: warn\ndata:\n{data}\n", encoding="utf-8")


def test_two_records_on_one_line_of_an_array_can_be_dropped_one_by_one(tmp_path: Path) -> None:
    a, b = (json.dumps(row) for row in GOOD[:2])
    (tmp_path / "array.json").write_text(f"[\n{a}, {json.dumps(pair('x y z', ''))},\n{b}\n]", encoding="utf-8")
    run = tuner(tmp_path, "check", "array.json", "data.checks.empty_completion=drop", "--json")
    assert run.returncode == 0, run.stderr
    assert [(f["read"], f["kept"], f["dropped"]) for f in files_of(run)] == [(3, 2, 1)]


def test_of_two_equal_records_on_one_line_of_an_array_one_is_kept(tmp_path: Path) -> None:
    a, b, c = (json.dumps(row) for row in GOOD[:3])
    (tmp_path / "array.json").write_text(f"[\n{a}, {a},\n{b}, {c}]", encoding="utf-8")
    run = tuner(tmp_path, "check", "array.json", "data.checks.exact_duplicates=drop", "--json")
    assert [(f["read"], f["kept"], f["dropped"]) for f in files_of(run)] == [(4, 3, 1)]


@pytest.mark.parametrize("other", ["data.held_out=rows.jsonl", "data.production=rows.jsonl"])
def test_reasons_add_up_to_dropped_where_one_file_feeds_two_splits(tmp_path: Path, other: str) -> None:
    lines(tmp_path / "rows.jsonl", [*GOOD[:5], pair("hello there", "")])
    run = tuner(tmp_path, "check", "rows.jsonl", other, "data.checks={empty_completion: drop, overlap: off, near_overlap: off}", "--json")
    assert all(sum(f["reasons"].values()) == f["dropped"] for f in files_of(run)), files_of(run)


def test_a_long_override_after_a_file_is_read_as_an_override(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", GOOD)
    names = "empty_completion padded_completion overlap repeated_ids near_duplicates contradictions placeholders boilerplate echo languages stale provenance"
    off = "{" + ", ".join(f"{name}: warn" for name in names.split()) + "}"
    run = tuner(tmp_path, "check", "rows.jsonl", f"data.checks={off}")
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("option", ["--html", "--findings"])
def test_no_output_is_written_over_a_file_of_records(tmp_path: Path, option: str) -> None:
    rows = lines(tmp_path / "rows.jsonl", GOOD[:3])
    before = rows.read_bytes()
    run = tuner(tmp_path, "check", "rows.jsonl", option, "rows.jsonl")
    assert (run.returncode, rows.read_bytes()) == (2, before)


def test_an_output_never_replaces_what_is_no_plain_file(tmp_path: Path) -> None:
    """As root, `--html /dev/stdout` turned the link /dev/stdout into a file, and `--findings /dev/full` a device."""
    lines(tmp_path / "rows.jsonl", GOOD[:3])
    os.mkfifo(tmp_path / "pipe")
    tuner(tmp_path, "check", "rows.jsonl", "--findings", "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_one_path_for_two_outputs_is_refused(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", GOOD[:3])
    assert tuner(tmp_path, "check", "rows.jsonl", "--html", "out", "--findings", "out").returncode == 2


BROKEN = ['{"prompt":"a","completion":"b"} my mail is ' + MAIL, '{"prompt": "my mail is ' + MAIL + '", "completion": x}']


def test_a_refused_cut_masks_what_reading_quotes(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", [*GOOD[:3], *BROKEN])
    run = tuner(tmp_path, "check", "rows.jsonl", "data.cut={validation: 0.1, group_by: customer}")
    assert run.returncode == 2
    assert "fernandez" not in run.stdout + run.stderr


def test_half_a_key_beside_a_break_is_not_shown(tmp_path: Path) -> None:
    """The quote round a break is cut out first and masked second: half a key is not recognised as one."""
    lines(tmp_path / "rows.jsonl", ['{"prompt": "key ' + KEY + '"xxxxx}', GOOD[0]])
    run = tuner(tmp_path, "check", "rows.jsonl")
    assert run.returncode == 2
    assert not any(KEY[i : i + 8] in run.stdout for i in range(8, len(KEY) - 8))


def test_half_an_address_at_the_end_of_a_quote_is_not_shown(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", ['{"prompt":"x","completion":"y"} ' + "w" * 20 + " " + MAIL, GOOD[0]])
    run = tuner(tmp_path, "check", "rows.jsonl")
    assert "maria.f" not in run.stdout


def test_a_header_that_holds_personal_data_is_masked_in_what_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"prompt,completion,{MAIL}\na b,c d,e\n1,2\n", encoding="utf-8")
    run = tuner(tmp_path, "check", "rows.csv", "--json")
    assert "fernandez" not in run.stdout


@pytest.mark.parametrize("languages", ["[englisch]", "[EN]", "[xx]"])
def test_a_language_that_does_not_exist_is_refused(tmp_path: Path, languages: str) -> None:
    lines(tmp_path / "rows.jsonl", GOOD)
    assert tuner(tmp_path, "check", "rows.jsonl", f"data.languages={languages}").returncode == 2


def test_a_group_column_that_no_record_has_is_refused(tmp_path: Path) -> None:
    """A mistyped column would switch off group_overlap without a word."""
    lines(tmp_path / "train.jsonl", [row | {"customer": 1} for row in GOOD])
    lines(tmp_path / "held_out.jsonl", [pair("a wholly other thing", "never seen before", customer=1)])
    run = tuner(tmp_path, "check", "train.jsonl", "data.held_out=held_out.jsonl", "data.cut.group_by=custmer")
    assert run.returncode == 2


@pytest.mark.parametrize("completion", ['{"a": NaN}', '{"a": 1, "a": 2}'])
def test_a_json_completion_is_strict_json(tmp_path: Path, completion: str) -> None:
    lines(tmp_path / "rows.jsonl", [*(pair(row["prompt"], '{"a": 1}') for row in GOOD[:3]), pair("another one", completion)])
    assert tuner(tmp_path, "check", "rows.jsonl", "data.task=json").returncode == 2


def test_two_spellings_in_unicode_of_one_label_are_similar(tmp_path: Path) -> None:
    labels = ["R\u00fcckerstattung", "Ru\u0308ckerstattung"]
    lines(tmp_path / "rows.jsonl", [pair(row["prompt"], labels[i % 2]) for i, row in enumerate(GOOD)])
    run = tuner(tmp_path, "check", "rows.jsonl", "data.task=label")
    assert "similar_labels" in run.stdout


def test_a_semicolon_file_is_told_by_its_delimiter(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("\ufeffprompt;completion\r\nWo ist es?;Dort, links\r\n", encoding="utf-8")
    assert "semicolon" in tuner(tmp_path, "check", "rows.csv").stdout


def test_text_that_a_terminal_cannot_show_is_escaped_not_a_crash(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", [pair(f"退款 {i}", f"标签{i}") for i in range(3)])
    run = tuner(tmp_path, "check", "rows.jsonl", "data.task=label", PYTHONIOENCODING="latin-1")
    assert run.returncode == 0, run.stderr


def test_redact_takes_the_word_all(tmp_path: Path) -> None:
    """The README says `(or `all`)`."""
    lines(tmp_path / "rows.jsonl", GOOD)
    assert tuner(tmp_path, "check", "rows.jsonl", "data.redact=all").returncode == 0


def test_select_of_fewer_records_than_labels_ends_well(tmp_path: Path, tiny_base: Path) -> None:
    lines(tmp_path / "rows.jsonl", [pair(row["prompt"], f"label {i % 5}") for i, row in enumerate(GOOD)])
    recipe(tmp_path, tiny_base, "  train: rows.jsonl\n  task: label")
    run = tuner(tmp_path, "select", "recipe.yaml", "-n", "3")
    assert run.returncode in (0, 2), run.stderr


def test_select_writes_records_whose_columns_are_named_like_its_own(tmp_path: Path, tiny_base: Path) -> None:
    (tmp_path / "rows.csv").write_text("frage,antwort,messages\n" + "".join(f'"{r["prompt"]}","{r["completion"]}",note\n' for r in GOOD), encoding="utf-8")
    recipe(tmp_path, tiny_base, "  train:\n    files: [rows.csv]\n    columns: {prompt: frage, completion: antwort}")
    assert tuner(tmp_path, "select", "recipe.yaml", "-n", "5").returncode == 0
    written = [json.loads(line) for line in (tmp_path / "selected" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(isinstance(row["messages"], list) for row in written)


def test_select_writes_no_value_that_the_recipe_redacts(tmp_path: Path, tiny_base: Path) -> None:
    lines(tmp_path / "rows.jsonl", [row | {"customer": MAIL} for row in GOOD])
    recipe(tmp_path, tiny_base, "  train: rows.jsonl\n  redact: [email]")
    assert tuner(tmp_path, "select", "recipe.yaml", "-n", "5").returncode == 0
    assert MAIL not in (tmp_path / "selected" / "train.jsonl").read_text(encoding="utf-8")


def test_a_folder_or_a_pipe_is_said_to_be_one_and_never_waited_for(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, word in (("rows.jsonl", "a folder"), ("pipe.jsonl", "a pipe or device")):
        done = tuner(tmp_path, "check", name)
        assert done.returncode == 2 and word in done.stdout, done.stdout + done.stderr


def test_a_wrong_format_and_a_missing_file_are_said_together_by_line(recipe_file: Any) -> None:
    path = recipe_file(template={"format": "chatlm"}, data={"task": "label", "train": "nowhere.jsonl"})
    run = tuner(path.parent, "plan", path.name)
    assert run.returncode == 2 and "write chatml" in run.stderr and "nowhere.jsonl" in run.stderr
    assert f"{path.name}:" in run.stderr.splitlines()[0], run.stderr


def test_a_run_that_is_refused_says_each_fault_once(recipe_file: Any) -> None:
    path = recipe_file()
    lines(path.parent / "train.jsonl", [pair("a colour", "")])
    run = tuner(path.parent, "run", path.name)
    assert run.returncode == 2 and (run.stdout + run.stderr).count("text with at least one visible character") == 1
