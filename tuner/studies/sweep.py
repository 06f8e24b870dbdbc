"""The sweep: a grid, or a search by Optuna, over settings of a recipe. Each trial is a normal run with a name and a version of its own.

Judged on validation, by its loss or by a metric; held_out is not read. Refuses values that the recipe does not accept, all at once,
before the first trial. A trial that fails is recorded with its reason, and the sweep goes on.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuner import pipeline
from tuner.artifact.store import Version
from tuner.catalog import choose
from tuner.durable import Claim, ensure_folder, json_text, try_claim, write_text
from tuner.errors import Problem, Refusal
from tuner.evaluate.evidence import Graded
from tuner.evaluate.metrics import METRICS
from tuner.fingerprint import digest_json
from tuner.judging import answers_of
from tuner.recipe import Recipe
from tuner.studies.axes import Axis, axes_of, corners, grid
from tuner.studies.grading import Judge, base_of, validation_suite, value_of
from tuner.studies.runs import digest_of, finished, folder_of, name_of, opened, recipe_with, refuse_ranks, training_of
from tuner.studies.search import Asked, Search, optuna_of

SCHEMA = 1
LOSS = "validation_loss"
MOST_PLANNED = 24  # combinations whose time is planned one by one


@dataclass(frozen=True)
class Trial:
    """One run of the sweep. `value` is None where it failed, and `reason` says why."""

    number: int
    keys: dict[str, Any]
    value: float | None
    version: str | None = None
    low: float | None = None
    high: float | None = None
    seconds: float | None = None
    reason: str = ""


class Sweep:
    """A planned sweep; nothing was trained yet. With `trials` it is a search of that many, without a grid."""

    def __init__(
        self, recipe: Recipe, words: Sequence[str], overrides: list[str], profile: str | None, store: Path, listener: pipeline.Listener, *,
        trials: int | None = None, objective: str = LOSS, storage: str | None = None,
    ):  # fmt: skip
        refuse_ranks("sweep")
        choose({LOSS: None, **METRICS}, objective, "command line", "--objective")
        self.overrides = overrides
        self.recipe, self.profile, self.store, self.listener, self.objective, self.trials = recipe, profile, store, listener, objective, trials
        self.axes: list[Axis] = axes_of(words, recipe, objective)
        self.combinations = grid(self.axes) if trials is None else []
        if trials is not None:
            optuna_of()
        self.storage = storage
        self._refuse_wrong_values()
        self.prepared = pipeline.prepare(recipe, listener)
        self.prepared.checked.raise_if_refused()
        self.judge = Judge(recipe, validation_suite(self.prepared.splits, recipe), self.prepared.splits["train"], answers_of(store))
        self.records = {split: self.prepared.splits.digest(split) for split in ("train", "validation")}
        said = [recipe.digest, self.records, objective, [asdict(axis) for axis in self.axes]]
        self.id = digest_json(said).removeprefix("sha256:")[:6]
        self.name = name_of(recipe, f"sweep-{self.id}")
        self.folder = folder_of(store, self.name)
        self.seconds = self._seconds()
        self.search: Search | None = None

    @property
    def count(self) -> int:
        return len(self.combinations) if self.trials is None else self.trials

    @property
    def higher_is_better(self) -> bool:
        return self.objective != LOSS and METRICS[self.objective].higher_is_better

    # --- before the first trial

    def _refuse_wrong_values(self) -> None:
        """Raises Refusal with every value that the recipe does not accept, each once."""
        problems: dict[tuple[str, str], Problem] = {}
        for keys in self.combinations or corners(self.axes):
            try:
                recipe_with(self.recipe, self.overrides, self.profile, keys)
            except Refusal as refusal:
                for problem in refusal.problems:
                    problems.setdefault((problem.field, problem.found), problem)
        if problems:
            raise Refusal(problems.values())

    def _seconds(self) -> float:
        """Training time of all trials by the plan; of a search, and of a large grid, from some of them."""
        every = self.combinations or corners(self.axes)
        some = every[:: max(1, len(every) // MOST_PLANNED)]
        return sum(self._planned_seconds(keys) for keys in some) / len(some) * self.count

    def _planned_seconds(self, keys: Mapping[str, Any]) -> float:
        try:
            return float(pipeline.plan(replace(self.prepared, recipe=recipe_with(self.recipe, self.overrides, self.profile, keys))).plan.seconds)
        except Refusal as refusal:
            told = ", ".join(f"{key}={json.dumps(value)}" for key, value in keys.items())
            raise Refusal([replace(p, found=f"{p.found} (with {told})") for p in refusal.problems]) from None

    # --- the trials

    def run(self) -> list[Trial]:
        """Run what is not there yet. Returns every trial that is done, in the order of their numbers, others' too."""
        ensure_folder(self.folder / "trials")
        if self.trials is None:
            for number, keys in enumerate(self.combinations):
                with self._held(number) as is_ours:
                    if is_ours:
                        self._tried(Asked(number, keys))
        else:
            self._search(self.trials)
        return self.done()

    def _search(self, trials: int) -> None:
        search = self.search = Search(self.name, self.axes, self.higher_is_better, self.folder, self.storage, self.recipe.seed)
        while True:
            with search.next(trials) as asked:
                if asked is None:
                    return
                made = self._tried(asked)
                search.tell(asked, made.value, asdict(made))

    @contextlib.contextmanager
    def _held(self, number: int) -> Iterator[bool]:
        """Is the trial ours? Another process with the same command may be at it."""
        ensure_folder(self._place(number))
        held = try_claim(self._place(number) / ".lock", f"trial {number}")
        try:
            yield isinstance(held, Claim)
        finally:
            if isinstance(held, Claim):
                held.release()

    def _place(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:03d}"

    def _tried(self, asked: Asked) -> Trial:
        """The trial of these settings: kept from before, or run now. A Refusal of the run is its result; an interruption is not."""
        if (kept := self._kept(asked)) is not None:
            return kept
        told = ", ".join(f"{key}={json.dumps(value)}" for key, value in asked.keys.items())
        self.listener.stage("sweep", f"trial {asked.number + 1} of {self.count}: {told}")
        try:
            made = self._made(asked)
        except Refusal as refusal:
            problem = refusal.problems[0]
            made = Trial(asked.number, asked.keys, None, reason=f"{problem.where}: {problem.field} {problem.found}")
            self.listener.stage("sweep", f"trial {asked.number + 1} failed: {made.reason}")
        write_text(self._place(asked.number) / "trial.json", json_text(asdict(made)))
        return made

    def _kept(self, asked: Asked) -> Trial | None:
        found = _read(self._place(asked.number) / "trial.json")
        return found if found is not None and found.keys == asked.keys else None

    def _made(self, asked: Asked) -> Trial:
        recipe = recipe_with(self.recipe, self.overrides, self.profile, {**asked.keys, "name": f"{self.name}-{asked.number:03d}"})
        version = finished(self.store, recipe, self.records) or pipeline.run(recipe, self.store, self.listener, grade_after=False).version
        if version is None:
            raise RuntimeError("a single process publishes what it trains")
        training = training_of(version)
        if self.objective == LOSS:
            return Trial(asked.number, asked.keys, logged_loss(version, training["kept_step"]), version.label, seconds=training["seconds"])
        adapter = lambda: opened(version, replace(self.prepared, recipe=recipe))  # noqa: E731
        graded = self.judge.graded(adapter, digest_of(version), self._place(asked.number), self.listener.grading)
        value = value_of(graded, self.objective)
        return Trial(asked.number, asked.keys, value["value"], version.label, value["low"], value["high"], training["seconds"])

    def done(self) -> list[Trial]:
        """Every trial that is done: of the study, whichever machine ran it, and of this folder."""
        found = [_read(path) for path in sorted((self.folder / "trials").glob("*/trial.json"))]
        here = {trial.number: trial for trial in found if trial is not None}
        there = {said["number"]: Trial(**said) for said in (self.search.told() if self.search is not None else [])}
        return [trial for _, trial in sorted({**here, **there}.items())]

    def base(self) -> dict[str, Any] | None:
        """The best of the base's prompts, as the trials were compared with it; None where the objective is a loss in training."""
        for path in sorted((self.folder / "trials").glob("*/scores.json")) if self.objective != LOSS else []:
            return base_of(Graded(json.loads(path.read_text(encoding="utf-8")), []), self.objective)
        return None

    # --- what it says

    def as_dict(self) -> dict[str, Any]:
        """sweep.json: every trial, the best first among `order`, failed ones last."""
        trials = self.done()
        return {
            "schema": SCHEMA, "name": self.recipe.name, "id": self.id, "objective": self.objective, "higher_is_better": self.higher_is_better,
            "what": OBJECTIVE if self.objective == LOSS else METRICS[self.objective].what, "axes": [str(axis) for axis in self.axes],
            "how": "grid" if self.trials is None else "Optuna, tree-structured Parzen estimator", "planned": self.count,
            "n": len(self.judge.suite.items), "trials": [asdict(t) for t in trials], "order": [t.number for t in ranked(trials, self.higher_is_better)],
            "base": self.base(), "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip

    def write(self) -> Path:
        """sweep.json, and the page made from it. Returns the page."""
        from tuner.report.study_page import sweep_page

        said = json.loads(json_text(self.as_dict()))
        write_text(self.folder / "sweep.json", json_text(said))
        write_text(self.folder / "sweep.html", sweep_page(said))
        return self.folder / "sweep.html"


OBJECTIVE = "mean loss over the labelled tokens of validation, at the step whose weights were published (nats a token)"


def ranked(trials: Sequence[Trial], higher_is_better: bool) -> list[Trial]:
    """The best first, failed ones last; equal ones by number."""
    sign = -1 if higher_is_better else 1
    return sorted(trials, key=lambda t: (t.value is None, sign * (t.value or 0.0), t.number))


def logged_loss(version: Version, step: int) -> float:
    """Validation loss at this step, from the version's own log."""
    lines = (version.folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    found = [entry["validation_loss"] for entry in map(json.loads, lines) if entry["step"] == step and "validation_loss" in entry]
    if not found:
        raise Refusal([Problem(version.label, LOSS, f"no pass over validation at step {step}", "one at the step that is kept",
                               "set train.validate_every_steps, or --objective")])  # fmt: skip
    return float(found[-1])


def _read(path: Path) -> Trial | None:
    try:
        return Trial(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
