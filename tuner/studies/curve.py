"""The learning curve: the recipe trained on nested parts of train, each graded on validation beside the same prompted base.

Refuses fractions that are not several different shares up to 1, and a recipe without validation. held_out is not read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tuner import pipeline
from tuner.artifact.store import Version
from tuner.data.record import Record
from tuner.durable import ensure_folder, json_text, write_text
from tuner.errors import refuse
from tuner.evaluate.evidence import Graded, metric_names
from tuner.evaluate.intervals import Difference, difference
from tuner.evaluate.metrics import METRICS
from tuner.fingerprint import digest_json
from tuner.judging import answers_of
from tuner.recipe import Recipe
from tuner.studies.grading import Judge, adapter_parts, base_of, validation_suite, value_of
from tuner.studies.runs import digest_of, finished, folder_of, name_of, opened, recipe_with, refuse_ranks, training_of

SCHEMA = 1
Same = Literal["epochs", "steps"]


@dataclass(frozen=True)
class Part:
    """A share of train to be trained on: its records and its recipe, with its share of what the plan says of all of train."""

    fraction: float
    records: Sequence[Record]
    recipe: Recipe
    splits: dict[str, str]
    steps: int
    seconds: float
    done: Version | None


@dataclass(frozen=True)
class Point:
    """A trained and graded part."""

    fraction: float
    records: int
    steps: int
    seconds: float
    version: str
    value: dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """What the study found; `as_dict` is curve.json."""

    name: str
    metric: str
    same: Same
    suite: dict[str, Any]
    base: dict[str, Any]
    points: tuple[Point, ...]
    gain: Difference
    answer: str

    def as_dict(self) -> dict[str, Any]:
        found = METRICS[self.metric]
        return {
            "schema": SCHEMA, "name": self.name, "metric": self.metric, "what": found.what, "higher_is_better": found.higher_is_better,
            "share": found.binary, "same": self.same, "suite": self.suite, "base": self.base, "points": [asdict(p) for p in self.points],
            "gain": self.gain.as_dict(), "answer": self.answer, "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip


# --- before the first run ------------------------------------------------------------------------------------------


def fractions_of(words: str) -> list[float]:
    """`0.1,0.25,1` as rising shares. Raises Refusal."""
    try:
        found = sorted({float(word) for word in words.split(",")})
    except ValueError:
        found = []
    if len(found) < 2 or not all(0 < share <= 1 for share in found):
        refuse("command line", "--fractions", words, "two or more different shares of train, above 0 and up to 1", "--fractions 0.1,0.25,0.5,1")
    return found


def nested(records: Sequence[Record], fraction: float, seed: int) -> list[Record]:
    """`fraction` of the records, in their order: those with the lowest hash of seed and content, so that a larger part holds every smaller one."""
    ranked = sorted(range(len(records)), key=lambda i: (digest_json([seed, "curve", records[i].hash]), i))
    return [records[i] for i in sorted(ranked[: max(1, round(fraction * len(records)))])]


class Study:
    """The runs of one curve, planned: nothing was trained yet. `parts` rise."""

    def __init__(
        self,
        recipe: Recipe,
        overrides: list[str],
        profile: str | None,
        fractions: Sequence[float],
        store: Path,
        listener: pipeline.Listener,
        same: Same = "epochs",
    ):
        refuse_ranks("curve")
        self.recipe, self.store, self.same, self.listener = recipe, store, same, listener
        self.overrides, self.profile = overrides, profile
        self.folder = folder_of(store, name_of(recipe, "curve"))
        self.prepared = pipeline.prepare(recipe, listener)
        self.prepared.checked.raise_if_refused()
        self.metric = metric_names(recipe.evaluate, recipe.data.task)[1]
        self.judge = Judge(recipe, validation_suite(self.prepared.splits, recipe), self.prepared.splits["train"], answers_of(store))
        self.plan = pipeline.plan(self.prepared, store).plan
        self.parts = [self._part(share, nested(self.prepared.splits["train"], share, recipe.seed)) for share in fractions]
        sizes = [len(part.records) for part in self.parts]
        if len(set(sizes)) < len(sizes):
            refuse("command line", "--fractions", f"parts of {', '.join(map(str, sizes))} records", "parts of different sizes", "choose shares further apart")

    @property
    def seconds(self) -> float:
        """Training time of the parts that are not trained yet, by the plan."""
        return sum(part.seconds for part in self.parts if part.done is None)

    def _part(self, fraction: float, records: list[Record]) -> Part:
        whole = self.plan.steps
        keys = self._write(fraction, records) | ({"train.max_steps": whole} if self.same == "steps" else {})
        recipe = recipe_with(self.recipe, self.overrides, self.profile, {"name": name_of(self.recipe, f"curve-{fraction:g}"), **keys})
        splits = {"train": digest_json([r.hash for r in records]), "validation": self.prepared.splits.digest("validation")}
        share = 1.0 if recipe.train.max_steps is not None else len(records) / len(self.prepared.splits["train"])
        steps, seconds = math.ceil(whole * share), self.plan.seconds * share
        return Part(fraction, records, recipe, splits, steps, seconds, finished(self.store, recipe, splits))

    def _write(self, fraction: float, records: Sequence[Record]) -> dict[str, Any]:
        """The part as a file, and the keys by which the recipe reads it. Records were checked already: no check may drop more of a part."""
        data = self.recipe.data
        ensure_folder(self.folder / f"{fraction:g}")
        keys: dict[str, Any] = {"data.train": self._file(f"{fraction:g}/train.jsonl", records, data.train)}
        for split in self.prepared.cut_splits():
            keys[f"data.{split}"] = self._file(f"{split}.jsonl", self.prepared.splits[split], data.train)
            keys[f"data.cut.{split}"] = 0
        if data.validation is not None:
            keys["data.validation"] = self._file("validation.jsonl", self.prepared.splits["validation"], data.validation)
        dropping = {check: "warn" for check, action in data.checks.items() if action == "drop"}
        return keys | ({"data.checks": data.checks | dropping} if dropping else {})

    def _file(self, name: str, records: Sequence[Record], source: Any) -> dict[str, Any]:
        path = self.folder / name
        write_text(path, "".join(_line(record) for record in records))
        said = {"source": source.source, "as_of": source.as_of.isoformat() if source.as_of is not None else None}
        return {"files": [os.path.relpath(path, self.recipe.path.parent)]} | {key: value for key, value in said.items() if value is not None}

    # --- the runs

    def run(self) -> Curve:
        """Train and grade what is not there yet, the smallest part first, and say what came of it."""
        found = [self._graded(part) for part in self.parts]
        points = tuple(point for point, _ in found)
        gain = self._gain(found[-1][1], found[-2][1])
        suite = {"name": self.judge.suite.name, "n": len(self.judge.suite.items), "digest": self.judge.suite.digest}
        said = answer(points, gain, self.metric)
        return Curve(self.recipe.name, self.metric, self.same, suite, base_of(found[-1][1], self.metric), points, gain, said)

    def _graded(self, part: Part) -> tuple[Point, Graded]:
        version = part.done or self._trained(part)
        if part.done is not None:
            self.listener.stage("curve", f"{part.fraction:g}: {version.label} is this part of the data, trained already")
        folder = self.folder / f"{part.fraction:g}"
        graded = self.judge.graded(lambda: opened(version, self.prepared), digest_of(version), folder, self.listener.grading)
        training = training_of(version)
        return Point(part.fraction, len(part.records), training["steps"], training["seconds"], version.label, value_of(graded, self.metric)), graded

    def _trained(self, part: Part) -> Version:
        self.listener.stage("curve", f"{part.fraction:g} of train: {len(part.records)} records")
        done = pipeline.run(part.recipe, self.store, self.listener, grade_after=False)
        if done.version is None:
            raise RuntimeError("a single process publishes what it trains")
        return done.version

    def _gain(self, last: Graded, before: Graded) -> Difference:
        metric = METRICS[self.metric]
        return difference(
            adapter_parts(last, self.metric), adapter_parts(before, self.metric), metric.combine, binary=metric.binary,
            higher_is_better=metric.higher_is_better, baseline=f"{self.parts[-2].fraction:g} of train", resamples=self.recipe.evaluate.resamples,
            seed=self.recipe.seed,
        )  # fmt: skip


def _line(record: Record) -> str:
    tools = {} if record.tools is None else {"tools": json.loads(record.tools)}
    return json.dumps({**record.extra, **tools, "messages": [m.as_written() for m in record.messages]}, ensure_ascii=False, sort_keys=True, default=str) + "\n"


# --- what it says --------------------------------------------------------------------------------------------------


def answer(points: Sequence[Point], gain: Difference, metric: str) -> str:
    """Does more data help? In words, read off the interval of the last two parts' paired difference."""
    before, last = points[-2], points[-1]
    moved = f"from {before.records:,} to {last.records:,} records {metric} went from {before.value['value']:.3f} to {last.value['value']:.3f}"
    interval = f"paired difference {gain.value:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}, n {gain.n}, p {gain.p:.2g}"
    if gain.verdict == "better":
        return f"More data helps: {moved} ({interval}). Collect more, and run the curve again."
    if gain.verdict == "worse":
        return f"More data made it worse: {moved} ({interval}). Look at what the added records teach, with tuner check."
    chance = f"With {gain.n} items a change of up to {hidden(gain, metric):.3f} could hide behind chance."
    return f"It cannot be seen that more data helps: {moved} ({interval}). {chance}"


def hidden(gain: Difference, metric: str) -> float:
    """The largest change that these items cannot rule out: the farther end of the interval; for a share at least what none of n items shows.

    Where no item changed, the bootstrap's interval has no width; 1 - 0.05^(1/n) is then the exact 95 % bound (Hanley and Lippman-Hand 1983).
    """
    farther = max(abs(gain.low), abs(gain.high))
    return max(farther, 1 - 0.05 ** (1 / max(gain.n, 1))) if METRICS[metric].binary else farther


def write(curve: Curve, folder: Path) -> Path:
    """curve.json, and the page made from it. Returns the page."""
    from tuner.report.study_page import curve_page

    said = json.loads(json_text(curve.as_dict()))
    write_text(folder / "curve.json", json_text(said))
    write_text(folder / "curve.html", curve_page(said))
    return folder / "curve.html"
