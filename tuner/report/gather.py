"""Everything a report says, gathered from finished files into one JSON value. Nobody writes to it while working.

It reads evaluations of both schemas: the first had answer suites alone, and what it lacks is said to be missing, never guessed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tuner.report import answers

SCHEMA = 2
ROLES = ("held_out", "ood", "transform", "abstention", "forgetting", "memorisation", "cost")
ANSWERED = ROLES[:5]  # roles whose items have an answer that is right or wrong
ASKED_FOR = {"transform": "transforms"}  # what `--suite` calls a role, where it is not the role's own name
GRADED = ("seed", "settings", "created", "precision", "version", "recipe_digest", "allowed", "best_base", "profile")
SEVERITIES = ("error", "warning", "note")
FIRST = 10


def gather(version_folder: Path, evaluation_folder: Path) -> dict[str, Any]:
    """The content of report.json (report.schema.json): what was trained, what was found in the data, every value and difference, chosen examples."""
    manifest = _json(version_folder / "manifest.json")
    scores = _json(evaluation_folder / "scores.json")
    suites = _suites(scores)
    pairs = answers.paired(_lines(evaluation_folder / "answers.jsonl"), suites)
    return {
        "schema": SCHEMA,
        "name": manifest["name"],
        "version": manifest["version"],
        "verdict": scores["verdict"],
        "primary": scores["primary"],
        "metrics": scores["metrics"],
        "suites": suites,
        "missing": _missing(suites),
        "contenders": scores["contenders"],
        "evaluation": {k: scores.get(k) for k in GRADED},
        "training": manifest["training"],
        "train_log": list(_lines(version_folder / "train_log.jsonl")),
        "method": manifest["method"],
        "base": {k: manifest["base"][k] for k in ("name", "origin", "revision", "weight_digest")},
        "base_loss": manifest["base_loss"],
        "data": manifest["data"],
        "findings": _grouped(_json(version_folder / "findings.json")),
        "template": {"system": manifest["template"]["spec"]["system"], "digest": manifest["template"]["digest"]},
        "examples": answers.instructive(pairs),
        "changes": answers.changes(pairs),
        "recipe": (version_folder / "recipe.yaml").read_text(encoding="utf-8"),
        "recipe_digest": manifest["recipe_digest"],
        "seed": manifest.get("training_seed", manifest["seed"]),
        "code": manifest["code"],
        "versions": manifest["versions"],
        "hardware": manifest["hardware"],
        "created": manifest["created"],
        "adapter_digest": manifest["files"]["adapter_model.safetensors"]["digest"],
    } | {k: scores.get(k) for k in ("slices", "looks", "flags", "notes", "gate", "rehearsal", "judge")}


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        yield from (json.loads(line) for line in file if line.strip())


def _suites(scores: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Suites in the order they are read, each with its metrics, facts and leading metric, whatever schema they were written in."""
    ordered = sorted(scores["suites"], key=lambda name: (ROLES.index(scores["suites"][name]["role"]), name))
    return {name: _suite(scores["suites"][name], scores) for name in ordered}


def _suite(suite: Mapping[str, Any], scores: Mapping[str, Any]) -> dict[str, Any]:
    measured = {m for values in suite["values"].values() for m in values}
    metrics = suite.get("metrics") or {m: {"form": "mean", **facts} for m, facts in scores["metrics"].items() if m in measured}
    filled = {"facts": {}, "power": {}, **suite, "metrics": metrics}
    return {**filled, "lead": _lead(filled, scores["primary"])}


def _lead(suite: Mapping[str, Any], primary: str) -> str | None:
    """The metric a suite is judged by: the primary one; else `overall`; else its first that is compared. None where no answer is right or wrong."""
    if suite["role"] not in ANSWERED:
        return None
    return next((m for m in (primary, "overall", *suite["metrics"]) if m in suite["differences"]), None)


def _missing(suites: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Roles that were not run, with the name `tuner evaluate --suite` knows them by."""
    run = {suite["role"] for suite in suites.values()}
    return {role: ASKED_FOR.get(role, role) for role in ROLES if role not in run}


def _grouped(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Findings by check, errors first and the most frequent first: how many, and the first ten."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for finding in findings:
        groups[finding["check"], finding["severity"]].append(finding)
    found = [{"check": check, "severity": severity, "count": len(of), "first": of[:FIRST]} for (check, severity), of in groups.items()]
    return sorted(found, key=lambda g: (SEVERITIES.index(g["severity"]), -g["count"]))
