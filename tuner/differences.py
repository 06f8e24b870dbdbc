"""Two versions beside each other, whole: recipe key by key, records, base, template, surroundings, and scores with paired intervals.

It refuses nothing by itself; where the two were not asked a question in common, that is said in place of scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuner.artifact.difference import changes, difference
from tuner.artifact.store import Version, latest_evaluation, read_scores
from tuner.errors import Refusal, refuse
from tuner.evaluate.compare import compare
from tuner.recipe import parse_yaml


def whole_difference(old: Version, new: Version) -> dict[str, Any]:
    """What differs between two versions; `scores` is what tuner.evaluate.compare finds, None with `scores_why` where nothing can be compared."""
    scores, why = _scores(old, new)
    return {**difference(old, new), "recipe": recipe_changes(old, new), "scores": scores, "scores_why": why}


def recipe_changes(old: Version, new: Version) -> list[dict[str, Any]]:
    """Each key of the recipes, with every default filled in, that is not the same; `profiles` decide nothing by themselves."""
    a, b = (parse_yaml((v.folder / "resolved.yaml").read_text(encoding="utf-8"), f"{v.label} resolved.yaml").value for v in (old, new))
    return [c for c in changes(a, b) if c["key"].partition(".")[0] != "profiles"]


def _scores(old: Version, new: Version) -> tuple[dict[str, Any] | None, str]:
    folders = [(v, latest_evaluation(v)) for v in (old, new)]
    missing = [v.label for v, folder in folders if folder is None]
    if missing:
        return None, f"{' and '.join(missing)} not evaluated: tuner evaluate {missing[0]}"
    (a, b) = (folder for _, folder in folders if folder is not None)
    try:
        return compared(a, b, old.label, new.label), ""
    except Refusal as refusal:
        problem = refusal.problems[0]
        return None, f"{problem.found}; {problem.try_}"


def compared(folder_a: Path, folder_b: Path, name_a: str, name_b: str) -> dict[str, Any]:
    """Two evaluations on the items both were asked. Raises Refusal where they have none in common."""
    scores_a, scores_b = (read_scores(folder) for folder in (folder_a, folder_b))
    facts = {**metric_facts(scores_a), **metric_facts(scores_b)}
    return compare(_rows(folder_a), _rows(folder_b), facts, name_a=name_a, name_b=name_b, seed=scores_a["seed"], resamples=scores_a["settings"]["resamples"])


def metric_facts(scores: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What each metric is, by suite.metric."""
    known = scores["metrics"]
    return {f"{suite}.{name}": facts for suite, found in scores["suites"].items() for name, facts in (found.get("metrics") or known).items()}


def refuse_without_answers(folder: Path) -> None:
    """Raises Refusal for an evaluation that came without its answers."""
    if not (folder / "answers.jsonl").is_file():
        refuse(
            folder,
            "answers.jsonl",
            "no answers",
            "an evaluation with its answers",
            "it was pushed without them: evaluate the version here, or push with --answers",
        )


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    refuse_without_answers(folder)
    with (folder / "answers.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
