"""report.json obeys its schema; report.md, the gate and a comparison of versions say their numbers as text."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.report.made import ADAPTER, first_schema, made, write_evaluation
from tests.report.made_numbers import difference, estimate
from tuner.evaluate.compare import compare
from tuner.report.compare_text import compare_text
from tuner.report.gate_text import gate_text
from tuner.report.markdown import markdown
from tuner.report.write import write_report

SCHEMA = Path(__file__).parents[2] / "tuner" / "report" / "report.schema.json"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    version, evaluation = write_evaluation(tmp_path_factory.mktemp("text"), made(items=60, transformed=12, probes=42))
    write_report(version, evaluation)
    return evaluation


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return loaded


# --- report.json ---------------------------------------------------------------------------------------------------


def test_report_json_obeys_its_schema_and_has_every_documented_key(report: dict[str, Any], schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(report, schema, jsonschema.Draft202012Validator)
    assert report.keys() == schema["properties"].keys() and len(report) == 35


def test_a_report_of_the_first_schema_obeys_it_too(schema: dict[str, Any], tmp_path: Path) -> None:
    version, evaluation = write_evaluation(tmp_path, first_schema(made(items=30, transformed=6, probes=21)))
    write_report(version, evaluation)
    written = json.loads((evaluation / "report.json").read_text(encoding="utf-8"))
    jsonschema.validate(written, schema, jsonschema.Draft202012Validator)
    assert written["gate"] is None and written["verdict"]["word"] in ("better", "worse", "no difference seen")


@pytest.mark.parametrize("broken", ["verdict", "suites.held_out.values.adapter.exact_match.low", "examples.0.change", "gate.rules.0.needed"])
def test_the_schema_notices_what_is_missing(report: dict[str, Any], schema: dict[str, Any], broken: str) -> None:
    changed = copy.deepcopy(report)
    *way, last = broken.split(".")
    place: Any = changed
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    del place[last]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed, schema, jsonschema.Draft202012Validator)


def documented(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, of in schema.items():
        if key in ("properties", "$defs"):
            for name, inner in of.items():
                yield name, inner
                yield from documented(inner)
        elif isinstance(of, dict):
            yield from documented(of)


def test_every_key_of_the_schema_is_described(schema: dict[str, Any]) -> None:
    every = list(documented(schema))
    assert len(every) > 120
    assert [name for name, of in every if not of.get("description")] == []


# --- report.md -----------------------------------------------------------------------------------------------------


def test_markdown_begins_with_verdict_gate_and_flags_and_names_every_suite_that_is_not_better(report: dict[str, Any], folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert text == markdown(report)
    heads = re.findall(r"^#+ .*", text, re.MULTILINE)
    assert heads == ["# banking-intents@1: better than the prompted base; gate: fail", "## Gate: fail", "## To know before relying on it", "## Suites",
                     "## What else was looked at", "## Data", "## How it was made"]  # fmt: skip
    for rule in report["gate"]["rules"]:
        assert f"| {rule['outcome']} | {rule['words']} |" in text
    for name, one in report["suites"].items():
        if one["lead"] and (one["role"] != "transform" or one["differences"][one["lead"]]["verdict"] != "better"):
            d = one["differences"][one["lead"]]
            row = next(line for line in text.split("\n") if line.startswith(f"| {name} | {d['n']} | {one['lead']} |"))
            flagged = "; flagged above" if name in {f["suite"] for f in report["flags"]} else ""
            assert f"{d['value']:+.3f}".replace("-", "−") in row and row.endswith(f"| {d['p']:.2g} | {d['verdict']}{flagged} |")
    assert all(f"- {role}" in text for role in ("transforms: ", "forgetting (", "memorisation: ", "abstention: ")) and report["looks"]["words"] in text


def test_markdown_that_is_worse_on_no_leading_metric_names_the_other_metrics_it_is_worse_on(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    for one in changed["suites"].values():
        if one["lead"]:
            one["differences"][one["lead"]]["verdict"] = "better"
    d = changed["suites"]["forgetting"]["differences"]["text_loss"]
    said = f"forgetting text_loss {d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}] (n {d['n']})"
    line = next(line for line in markdown(changed).replace("−", "-").split("\n") if line.startswith("The adapter is worse than the base"))
    assert line.startswith("The adapter is worse than the base on the leading metric of none of 36 suites. **Worse on other metrics: ")
    assert d["verdict"] == "worse" and said in line


def test_markdown_says_what_is_flagged_of_forgetting_after_its_leading_difference(report: dict[str, Any]) -> None:
    (flag,) = (f["words"] for f in report["flags"] if f["suite"] == "forgetting")
    line = next(line for line in markdown(report).split("\n") if line.startswith("- forgetting ("))
    assert line.startswith("- forgetting (42 choice questions and 24 passages of neutral text): overall ") and ", n 42: " in line
    assert line.replace("\\", "").endswith(f"; {flag}")
    changed = copy.deepcopy(report)
    changed["suites"]["forgetting"]["facts"]["words"] = "it forgot arithmetic"
    assert next(line for line in markdown(changed).split("\n") if line.startswith("- forgetting (")).endswith("neutral text): it forgot arithmetic")


def test_the_seed_that_trained_is_said_and_not_the_recipes(tmp_path: Path) -> None:
    version, evaluation = write_evaluation(tmp_path, made(items=12, transformed=6, probes=7), training_seed=43)
    write_report(version, evaluation)
    assert "seed 43" in (evaluation / "report.md").read_text(encoding="utf-8")
    assert "training 43, evaluation 42" in (evaluation / "report.html").read_text(encoding="utf-8")


def test_markdown_of_the_first_schema_says_what_was_not_measured(tmp_path: Path) -> None:
    version, evaluation = write_evaluation(tmp_path, first_schema(made(items=30, transformed=6, probes=21)))
    write_report(version, evaluation)
    text = (evaluation / "report.md").read_text(encoding="utf-8")
    line = next(line for line in text.split("\n") if line.startswith("- not measured: "))
    assert sorted(line.removeprefix("- not measured: ").split(", ")) == ["abstention", "cost", "forgetting", "memorisation", "transform"]
    assert "gate" not in text.lower()


# --- the gate ------------------------------------------------------------------------------------------------------


def test_gate_lines_say_rule_found_needed_and_how_many_more_items(report: dict[str, Any]) -> None:
    text = gate_text(report["gate"] | {"left_out": ["memorisation.reachable: nothing to measure it on"]})
    lines = text.split("\n")
    first = report["gate"]["rules"][0]["found"]
    assert lines[0] == "✓ pass       held_out.exact_match gains"
    assert lines[1] == f"  found      {first['value']:.3f} [{first['low']:.3f}, {first['high']:.3f}], n {first['n']}"
    assert "  more       about 1,400 more items would decide" in lines and "  found      7 of 100, 95 % interval [3.4, 13.8]" in lines
    assert lines[-2] == "  left out   memorisation.reachable: nothing to measure it on"
    assert lines[-1] == "gate: fail  (a rule does not hold: this version may not be promoted)"


def test_gate_lines_show_control_characters_and_what_was_not_measured() -> None:
    rule = {"words": "a\x1b[31m\nb", "found": None, "needed": "at most 0", "outcome": "undecided", "more_items": None, "why": "not measured"}
    text = gate_text({"outcome": "undecided", "rules": [rule]})
    assert "a\\x1b[31m\\nb" in text and "found      not measured" in text and text.count("\n") == 4 and "\x1b" not in text


# --- two versions --------------------------------------------------------------------------------------------------


def test_a_comparison_of_two_versions_is_printed_with_both_values_and_the_paired_difference() -> None:
    whole = made(items=60, transformed=6, probes=21)
    ours = [r for r in whole.answers if r["suite"] in ("held_out", "near") and r["contender"] == ADAPTER]
    older = [{**r, "scores": {"exact_match": r["scores"]["exact_match"] * (r["item"] % 3 > 0)}, "parts": {}} for r in ours if r["item"] < 50]
    compared = compare(
        older, ours, {"exact_match": {"what": "share", "higher_is_better": True, "form": "mean"}}, name_a="x@1", name_b="x@2", seed=1, resamples=1000
    )
    text = compare_text(compared)
    for suite in ("held_out", "near"):
        found = compared["suites"][suite]["metrics"]["exact_match"]
        a, b, d = found["values"]["x@1"], found["values"]["x@2"], found["difference"]
        assert f"{suite}: {compared['suites'][suite]['n']} common items" in text
        row = next(line for line in text.split(f"{suite}: ")[1].split("\n") if line.startswith("  exact_match"))
        wanted = [f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]" for e in (a, b)]
        wanted.append(f"{d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]".replace("-", "−"))
        assert re.split(r"\s{2,}", row.strip())[1:4] == wanted and f"p {d['p']:.2g}, n {d['n']}" in row and row.endswith("better")
    assert "10 only in x@2" in text and text.endswith("not corrected for their number")


def test_a_comparison_names_what_it_left_out_and_shows_control_characters() -> None:
    each = [float(i % 2) for i in range(20)]
    metric = {"values": {"a\x1b": estimate(each), "b": estimate(each)}, "difference": difference(each, each, "a\x1b", True)}
    suite = {
        "n": 20,
        "only in a\x1b": 2,
        "only in b": 0,
        "metrics": {"m\n": metric},
        "left_out": {f"auc {i}": "auc: not a value of single items" for i in range(5)},
    }
    text = compare_text({"a": "a\x1b", "b": "b", "contender": "adapter", "seed": 1, "suites": {"s": suite, "empty": {"n": 0, "metrics": {}, "left_out": {}}}})
    assert "\x1b" not in text and "m\\n" in text and "2 only in a\\x1b" in text and "only in b" not in text
    assert "not compared: auc 0 (auc: not a value of single items)" in text and "not compared: 2 more" in text and "nothing to compare" in text
