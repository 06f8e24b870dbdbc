"""Grading the runs of a study on validation, beside the prompted base, whose answers are remembered and asked for once.

Refuses a recipe without validation: held_out is read once, when the choice is made, and a study is how a choice is made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tuner.data.record import Record
from tuner.data.splits import Splits
from tuner.durable import ensure_folder, json_text, write_text
from tuner.errors import refuse
from tuner.evaluate.evidence import Graded, Material, evidence
from tuner.evaluate.metrics import METRICS, Answer
from tuner.evaluate.remembered import Remembered
from tuner.evaluate.result import ADAPTER
from tuner.evaluate.suites import Suite, build_suites
from tuner.fingerprint import digest_json
from tuner.recipe import Recipe

if TYPE_CHECKING:
    from tuner.artifact.adapter import Adapter

SUITE = "validation"
Show = Callable[[str, int, int], None]


def validation_suite(splits: Splits, recipe: Recipe) -> Suite:
    """Validation as a suite. Raises Refusal when the recipe has none."""
    if not splits[SUITE]:
        refuse(recipe.at("data"), "data.validation", "no validation records", "records to compare the runs of a study on (never held_out)",
               "add data.validation, or data.cut.validation: 0.1")  # fmt: skip
    (made,) = build_suites(Splits({"held_out": splits[SUITE]}, ()), recipe.evaluate.take, recipe.seed)
    return replace(made, name=SUITE, role="validation")


@dataclass(frozen=True)
class Judge:
    """Grades adapters of one study: the same suite, the same few-shot examples, one base. `memory` is the folder of what was answered."""

    recipe: Recipe
    suite: Suite
    examples: Sequence[Record]
    memory: Path

    @property
    def mark(self) -> str:
        """Digest of everything that decides a grade but the adapter."""
        settings = [self.suite.digest, self.recipe.evaluate.model_dump(mode="json"), self.recipe.data.task, self.recipe.seed]
        return digest_json([*settings, [r.hash for r in self.examples]])

    def grade(self, adapter: Adapter, show: Show | None = None) -> Graded:
        spec = self.recipe.evaluate.model_copy(update={"suites": ["held_out"]})
        material = Material([self.suite], self.examples, (), self.recipe.data.task, self.recipe.seed, folder=self.recipe.path.parent)
        return evidence(Remembered.of(adapter, self.memory, spec.batch), material, spec, show)

    def graded(self, adapter: Callable[[], Adapter], version: str, folder: Path, show: Show | None = None) -> Graded:
        """The grade kept in `folder` for exactly this version and suite; else a new one, kept there. `version` is its manifest's digest."""
        mark = digest_json([self.mark, version])
        if (found := _kept(folder, mark)) is not None:
            return found
        made = self.grade(adapter(), show)
        ensure_folder(folder)
        write_text(folder / "answers.jsonl", "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in made.answers))
        write_text(folder / "scores.json", json_text({**made.scores, "mark": mark}))
        return made


def _kept(folder: Path, mark: str) -> Graded | None:
    try:
        scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        if scores.get("mark") != mark:
            return None
        rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    except (FileNotFoundError, ValueError):
        return None
    return Graded(scores, rows)


def adapter_parts(graded: Graded, metric: str) -> Any:
    """The adapter's numbers of a metric, item by item, from its answers."""
    rows = sorted((r for r in graded.answers if r["contender"] == ADAPTER), key=lambda r: r["item"])
    if METRICS[metric].of == "loss":
        return np.array([r["parts"][metric] for r in rows], dtype=np.float64)
    return METRICS[metric].parts([Answer(tuple(r["references"]), r["answer"]) for r in rows])


def base_of(graded: Graded, metric: str) -> dict[str, Any]:
    """The best of the base's ways on this metric, with its value and interval."""
    suite: Mapping[str, Any] = graded.scores["suites"][SUITE]
    way = suite["differences"][metric]["baseline"]
    return {"way": way, **suite["values"][way][metric]}


def value_of(graded: Graded, metric: str) -> dict[str, Any]:
    """The adapter's value and interval."""
    return dict(graded.scores["suites"][SUITE]["values"][ADAPTER][metric])
