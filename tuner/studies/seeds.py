"""One recipe under several training seeds: what holds over all of them, and how far they lie apart.

Cuts, suites and few-shot examples keep the recipe's seed, so that all versions are asked the same questions. It refuses versions that were not graded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuner.artifact.store import add_evaluation
from tuner.durable import json_text
from tuner.errors import refuse
from tuner.evaluate.seeds import over_seeds
from tuner.fingerprint import digest_json
from tuner.pipeline import Run
from tuner.recipe import Recipe, load_recipe
from tuner.report.seeds_text import seeds_text

BASE = "base"


def with_seed(path: Path, overrides: Sequence[str], profile: str | None, number: int) -> Recipe:
    """The recipe under its `number`-th training seed; the first is the recipe as it is."""
    recipe = load_recipe(path, overrides, profile)
    return recipe if number == 0 else load_recipe(path, [*overrides, f"train.seed={(recipe.training_seed + number) % 2**32}"], profile)


def over(runs: Sequence[Run]) -> dict[str, Any]:
    """Mean, interval and spread of every suite and metric over graded runs that differ in their seed. Raises Refusal."""
    graded = {run.version.label: run for run in runs if run.version is not None and run.evaluation is not None}
    if len(graded) < len(runs):
        refuse("--seeds", "evaluate", "versions that were not graded", "a recipe with held_out or ood", "add data.held_out")
    first = next(iter(graded.values())).scores
    facts = {f"{suite}.{name}": m for suite, found in first["suites"].items() for name, m in found["metrics"].items()}
    rows = {label: _rows(run.evaluation) for label, run in graded.items() if run.evaluation is not None}
    found = over_seeds(rows, facts, baseline=first["best_base"])
    made = [suite for suite, of in first["suites"].items() if BASE in of["values"]]  # there the base has no ways
    if made:
        beside = over_seeds(rows, facts, baseline=BASE)["suites"]
        found["suites"] |= {suite: beside[suite] for suite in made if suite in beside}
    verdict = found["suites"].get(first["verdict"]["suite"], {}).get("differences", {}).get(first["primary"], {}).get("verdict")
    return {**found, "primary": first["primary"], "metrics": facts, "verdict": verdict}


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").split("\n") if line]


def write(found: dict[str, Any], last: Run) -> Path:
    """Keep seeds.json and seeds.txt beside the last of the versions; gives their folder."""
    assert last.version is not None

    def fill(stage: Path) -> None:
        (stage / "seeds.json").write_text(json_text(found), encoding="utf-8")
        (stage / "seeds.txt").write_text(seeds_text(found) + "\n", encoding="utf-8")

    return add_evaluation(last.version, f"{datetime.now(UTC).date().isoformat()}-seeds-{digest_json(found)[7:13]}", fill)
