"""Everything a report says, gathered from finished files into one JSON value. Nobody writes to it while working."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

SCHEMA = 1
EXAMPLES = 20


def gather(version_folder: Path, evaluation_folder: Path) -> dict[str, Any]:
    """The content of report.json: what was trained, what was found in the data, every value and difference, chosen examples."""
    manifest = _json(version_folder / "manifest.json")
    scores = _json(evaluation_folder / "scores.json")
    answers = _lines(evaluation_folder / "answers.jsonl")
    return {
        "schema": SCHEMA,
        "name": manifest["name"],
        "version": manifest["version"],
        "verdict": scores["verdict"],
        "primary": scores["primary"],
        "metrics": scores["metrics"],
        "suites": scores["suites"],
        "contenders": scores["contenders"],
        "evaluation": {k: scores[k] for k in ("seed", "settings", "created", "precision")},
        "training": manifest["training"],
        "train_log": _lines(version_folder / "train_log.jsonl"),
        "method": manifest["method"],
        "base": {k: manifest["base"][k] for k in ("name", "origin", "revision", "weight_digest")},
        "base_loss": manifest["base_loss"],
        "data": manifest["data"],
        "findings": _grouped(_json(version_folder / "findings.json")),
        "template": {"system": manifest["template"]["spec"]["system"], "digest": manifest["template"]["digest"]},
        "examples": {suite: _examples(answers, suite, scores) for suite in scores["suites"]},
        "changes": {suite: _changes(answers, suite, scores) for suite in scores["suites"]},
        "recipe": (version_folder / "recipe.yaml").read_text(encoding="utf-8"),
        "recipe_digest": manifest["recipe_digest"],
        "seed": manifest["seed"],
        "code": manifest["code"],
        "versions": manifest["versions"],
        "hardware": manifest["hardware"],
        "created": manifest["created"],
        "adapter_digest": manifest["files"]["adapter_model.safetensors"]["digest"],
    }


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _grouped(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Findings by check: how many, and the first ten."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for finding in findings:
        groups[finding["check"], finding["severity"]].append(finding)
    return [{"check": check, "severity": severity, "count": len(of), "first": of[:10]} for (check, severity), of in groups.items()]


def _examples(answers: list[dict[str, Any]], suite: str, scores: dict[str, Any]) -> list[dict[str, Any]]:
    """At most EXAMPLES items: losses and gains in turn, a loss first; then more losses, a few both got wrong, more gains; no item twice.

    The greatest change on the primary metric comes first. Items that both got right are never chosen.
    """
    rows = _paired(answers, suite, scores)
    won = sorted((r for r in rows if r["change"] == "won"), key=lambda r: -abs(r["gain"]))
    lost = sorted((r for r in rows if r["change"] == "lost"), key=lambda r: -abs(r["gain"]))
    wrong = [r for r in rows if r["change"] == "both wrong"]
    few = EXAMPLES // 3
    in_turn = [r for pair in zip(lost, won, strict=False) for r in pair]
    order = [*in_turn, *lost[len(won) :], *wrong[:few], *won[len(lost) :], *wrong[few:]]
    return order[:EXAMPLES]


def _changes(answers: list[dict[str, Any]], suite: str, scores: dict[str, Any]) -> dict[str, int]:
    """How many of all the suite's items were won, lost, and so on: what the chosen examples are drawn from."""
    return dict(Counter(r["change"] for r in _paired(answers, suite, scores)))


def _paired(answers: list[dict[str, Any]], suite: str, scores: dict[str, Any]) -> list[dict[str, Any]]:
    """Every item of a suite with the adapter's answer and that of its baseline on the primary metric."""
    primary = scores["primary"]
    difference = scores["suites"][suite]["differences"].get(primary)
    if difference is None:
        return []
    sides = {"adapter": "adapter", difference["baseline"]: "baseline"}
    by_item: dict[int, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in answers:
        if row["suite"] == suite and row["contender"] in sides:
            by_item[row["item"]][sides[row["contender"]]] = row
    sign = 1 if scores["metrics"][primary]["higher_is_better"] else -1
    return [_example(item, pair, primary, sign) for item, pair in by_item.items()]


def _example(item: int, pair: dict[str, dict[str, Any]], primary: str, sign: int) -> dict[str, Any]:
    ours, theirs = pair["adapter"], pair["baseline"]
    scored = ours["scores"].get(primary) is not None
    mine = ours["scores"][primary] if scored else float(ours["answer"] in ours["references"])
    other = theirs["scores"][primary] if scored else float(theirs["answer"] in theirs["references"])
    gain = sign * (mine - other)
    change = "won" if gain > 0 else "lost" if gain < 0 else "both wrong" if mine < 1 and sign > 0 else "both right"
    return {
        "item": item, "where": ours["where"], "question": ours["question"][-1]["content"], "references": ours["references"],
        "adapter": ours["answer"], "baseline": theirs["answer"], "adapter_score": mine, "baseline_score": other, "gain": gain, "change": change,
    }  # fmt: skip
