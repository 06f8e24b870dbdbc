"""Every suite of an evaluation, asked in turn, and put into scores.json and answers.jsonl.

held_out comes first: all ways of prompting the base are tried on it, and the best by the primary metric goes on to the other suites. It
refuses a recipe without a split that is read after training.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tuner.catalog import choose
from tuner.data.canaries import Canary
from tuner.data.record import Record
from tuner.errors import refuse
from tuner.evaluate.contenders import LOSS, ZERO_SHOT, Contender, Said, ask, contenders, fitted, label_names
from tuner.evaluate.cost import QUESTIONS, cost, priced
from tuner.evaluate.grading import best_of_base, graded, parts_of
from tuner.evaluate.intervals import Groups, sources
from tuner.evaluate.judge import Judged, Pair, judged
from tuner.evaluate.metric_label import calibration, confusion, has_label_nats
from tuner.evaluate.metrics import DEFAULT_METRICS, METRICS, Metric, catalogue
from tuner.evaluate.power import smallest_difference
from tuner.evaluate.remembered import Remembered
from tuner.evaluate.result import ADAPTER, Contestant, Result, Tick
from tuner.evaluate.slices import slices
from tuner.evaluate.spec import EvaluateSpec, Kind
from tuner.evaluate.suites import Suite, suite_of
from tuner.evaluate.transforms import Transformed, degraded

SCHEMA = 2
Show = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Material:
    """What an evaluation is made from: the suites of the recipe, the records trained on, and what is known of the adapter.

    `trained_on`: whether `train` is what this version was trained on, as far as its manifest says. `harness` runs the tasks of
    lm-evaluation-harness that the recipe names.
    """

    suites: Sequence[Suite]
    train: Sequence[Record]
    held_out: Sequence[Record]
    task: str
    seed: int
    validation: Sequence[Record] = ()
    trained_on: bool = True
    adapter_bytes: int = 0
    machine: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    canaries: Sequence[Canary] = ()
    folder: Path = Path()
    harness: Callable[[], Result] | None = None


@dataclass(frozen=True)
class Graded:
    """The evaluation as data: `scores` for scores.json, `answers` for answers.jsonl, one row an answer."""

    scores: dict[str, Any]
    answers: list[dict[str, Any]]

    @property
    def verdict(self) -> str:
        return str(self.scores["verdict"]["word"])


@dataclass
class Asking:
    """One evaluation under way: what is asked, whom, and what has been found so far."""

    model: Contestant
    material: Material
    spec: EvaluateSpec
    metrics: Mapping[str, Metric]
    primary: str
    everyone: Sequence[Contender]
    show: Show | None = None
    results: dict[str, Result] = field(default_factory=dict)
    said: dict[str, dict[str, Said]] = field(default_factory=dict)
    flags: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    judged: Judged | None = None
    best: str = ZERO_SHOT

    @property
    def anchor(self) -> Suite:
        """held_out, or the first suite where there is none: what the verdict is about, and what other suites are made of."""
        return next((s for s in self.material.suites if s.role == "held_out"), self.material.suites[0])

    def tick(self, what: str, total: int) -> Tick:
        """Counts items of one piece of work."""
        count = 0

        def done(items: int) -> None:
            nonlocal count
            count += items
            if self.show is not None:
                self.show(what, min(count, total), total)

        return done

    @property
    def newly_asked(self) -> int:
        """Questions that no memory knew."""
        return self.model.newly_asked if isinstance(self.model, Remembered) else 0

    def few(self) -> list[Contender]:
        """Who is asked outside held_out: the base as it is, its best way, the adapter."""
        return [c for c in self.everyone if c.name in (ZERO_SHOT, self.best, ADAPTER)]

    def ask(self, suite: Suite, whom: Sequence[Contender], **how: Any) -> dict[str, Said]:
        """What everyone named says to every item of a suite."""
        said = {}
        for contender in whom:
            before = self.newly_asked
            found = ask(self.model, contender, suite, self.spec, self.tick(f"{suite.name}: {contender.name}", len(suite.items)), **how)
            entry = self.asked.setdefault(contender.name, {"seconds": 0.0, "items": 0, "asked": 0, "examples": len(contender.examples) // 2})
            entry["asked"] += self.newly_asked - before if isinstance(self.model, Remembered) else len(suite.items)
            entry["seconds"], entry["items"] = round(entry["seconds"] + found.seconds, 2), entry["items"] + len(suite.items)
            said[contender.name] = found
        self.said[suite.name] = said
        return said

    def put(self, suite: Suite, whom: Sequence[Contender], **how: Any) -> Result:
        """Ask everyone named every item of a suite, and keep the result."""
        return self.keep(graded(suite, self.ask(suite, whom, reading=self.reading, **how), self.metrics, self.spec.resamples, self.material.seed))

    @property
    def reading(self) -> frozenset[str]:
        """Which losses of the references the metrics want; the plain one is always read."""
        return LOSS | {m.of for m in self.metrics.values() if m.of == "context_loss"}

    def as_asked(self, contender: Contender) -> contextlib.AbstractContextManager[Any]:
        """Inside, the model is the base for a contender of the base."""
        return self.model.as_base() if contender.is_base else contextlib.nullcontext()

    def sides(self, suite: str, metric: str, baseline: str) -> tuple[Any, Any, Groups | None] | None:
        """The metric's numbers of adapter and baseline, item by item, and the items' sources; None where the suite was not graded by it."""
        if metric not in self.metrics or suite not in self.said or not {ADAPTER, baseline} <= set(self.said[suite]):
            return None
        only = {metric: self.metrics[metric]}
        both = [parts_of(self.said[suite][c], only).get(metric) for c in (ADAPTER, baseline)]
        if both[0] is None or both[1] is None:
            return None
        rows = [row for row in self.results[suite].rows if row["contender"] == ADAPTER]
        return both[0].numbers, both[1].numbers, sources([rows[at].get("group") for at in both[0].places])

    def keep(self, result: Result) -> Result:
        self.results[result.name] = result
        self.flags += [
            {"suite": result.name, "words": flag} if isinstance(flag, str) else {"suite": result.name, **flag} for flag in result.facts.get("flags", ())
        ]
        return result


def metric_names(spec: EvaluateSpec, task: str, where: str = "recipe") -> tuple[list[str], str]:
    """The metrics of a recipe and the primary one. Raises Refusal on an unknown name."""
    names = list(spec.metrics or DEFAULT_METRICS[task])
    for name in names:
        choose(METRICS, name, where, "evaluate.metrics")
    primary = spec.primary or names[0]
    choose(METRICS, primary, where, "evaluate.primary")
    if METRICS[primary].neutral:
        refuse(where, "evaluate.primary", primary, "a metric of which more or less is better", "choose another; it may stay in evaluate.metrics")
    if METRICS[primary].of == "labels" and task != "label":
        refuse(where, "evaluate.primary", primary, "a metric of what is answered: only data.task label has labels with a likelihood", "choose another")
    return ([primary] if primary not in names else []) + names, primary


def evidence(model: Contestant, material: Material, spec: EvaluateSpec, show: Show | None = None) -> Graded:
    """Run the suites that `spec` names. Raises Refusal where there is nothing to grade on."""
    if not material.suites:
        refuse("recipe", "data", "no held_out and no ood", "at least one split that is read after training", "add data.held_out")
    names, primary = metric_names(spec, material.task)
    everyone, notes = _that_fit(model, contenders(material.train, spec, material.task, material.seed), material.suites, spec.max_new_tokens)
    if not any(c.is_base for c in everyone):
        refuse("recipe", "evaluate.base_ways", "few_shot alone, and no worked example that train has and the context holds", "a way of asking the base",
               "add zero_shot")  # fmt: skip
    asking = Asking(model, material, spec, catalogue(spec.options, material.folder, names), primary, everyone, show, notes=notes)
    _recipe_suites(asking)
    for kind in spec.suites:
        if kind in OTHERS:
            OTHERS[kind](asking)
    return _written(asking)


def _that_fit(
    model: Contestant, everyone: Sequence[Contender], suites: Sequence[Suite], room: int
) -> tuple[list[Contender], dict[str, Any]]:  # fmt: skip
    """The contenders whose prompts fit the base's context with every item, and what had to give way."""
    items = [item for suite in suites for item in suite.items]
    kept: list[Contender] = []
    left_out: dict[str, str] = {}
    for one in everyone:
        fits = fitted(model, one, items, room)
        if fits is not None:
            kept.append(fits)
        if fits is None or len(fits.examples) < len(one.examples):
            left = 0 if fits is None else len(fits.examples) // 2
            left_out[one.name] = f"{left} of {len(one.examples) // 2} worked examples fit the base's context beside the longest question"
    return kept, {"contenders": {"left_out": left_out}} if left_out else {}


def _recipe_suites(asking: Asking) -> None:
    """held_out, which is always asked (it names the best way of the base), then the user's own ood suites."""
    first = asking.anchor
    labels = label_names(asking.material.train, asking.material.task) if _wants_labels(asking.metrics) else ()
    result = asking.put(first, asking.everyone, also_labels=labels)
    found = result.differences.get(asking.primary)
    if found is None:
        refuse("recipe", "evaluate.primary", asking.primary, f"a metric of {first.name}: " + ", ".join(result.differences),
               f"choose one of them; no item of {first.name} can be graded by {asking.primary}")  # fmt: skip
    asking.best = found.baseline
    _add_label_facts(asking)
    _ask_judge(asking)
    for suite in asking.material.suites:
        if suite is not first and (suite.role == "held_out" or "ood" in asking.spec.suites):
            asking.put(suite, asking.few(), also_labels=labels)


def _wants_labels(metrics: Mapping[str, Metric]) -> bool:
    return any(m.of == "labels" for m in metrics.values())


def _add_label_facts(asking: Asking) -> None:
    """Of a label task, who was taken for whom and whether the likelihoods mean what they say, for the adapter and the base's best way."""
    if asking.material.task != "label":
        return
    name = asking.anchor.name
    facts: dict[str, Any] = {}
    for contender in (asking.best, ADAPTER):
        answers = asking.said[name][contender].answers
        facts.setdefault("confusion", {})[contender] = confusion(answers).as_dict()
        if all(has_label_nats(a) for a in answers):
            facts.setdefault("calibration", {})[contender] = calibration(answers, asking.material.seed)
    result = asking.results[name]
    asking.results[name] = replace(result, facts={**result.facts, **facts})


def _ask_judge(asking: Asking) -> None:
    """The opt-in judge compares the adapter's answers to held_out with the best base way's."""
    spec, name = asking.spec.judge, asking.anchor.name
    if spec is None:
        return
    rows = {(r["contender"], r["item"]): r for r in asking.results[name].rows}
    pairs = []
    for at, item in enumerate(asking.anchor.items):
        ours, theirs = rows[ADAPTER, at], rows[asking.best, at]
        scores = ours["scores"].get(asking.primary), theirs["scores"].get(asking.primary)
        pairs.append(Pair(at, item.messages[-1].content, item.references, ours["answer"] or "", theirs["answer"] or "", *scores))
    done = asking.tick("the judge", min(spec.take, len(pairs)))
    asking.judged = judged(pairs, spec, asking.material.folder, baseline=asking.best, seed=asking.material.seed, resamples=asking.spec.resamples, done=done)


# --- the suites that are made ---------------------------------------------------------------------------------------


def _transforms(asking: Asking) -> None:
    """held_out asked in other forms; what it did to each contender beside what the same items gave unchanged."""
    from tuner.evaluate.transforms import sharp_drops, transformed

    material, spec, seed = asking.material, asking.spec, asking.material.seed
    labels = label_names(material.train, material.task)
    made = transformed(asking.anchor, material.task, spec.transforms, spec.profile, seed, system=material.system, labels=labels)
    left_out = dict(made.left_out)
    for one in made.made:
        whom = [c for c in asking.few() if not (one.changes_system and c.system is not None)]
        one = _fitting(asking, one, whom)
        if not one.suite.items:
            left_out[one.suite.name] = "no question fits the base's context any more"
            continue
        said = asking.ask(one.suite, whom, renamed=one.label_map, reading=asking.reading if asking.metrics[asking.primary].of != "text" else frozenset())
        plain = graded(one.suite, said, asking.metrics, spec.resamples, seed)
        asking.keep(degraded(plain, asking.results[asking.anchor.name], one, spec.resamples, seed))
    asking.notes["transforms"] = {"left_out": left_out}
    asking.flags += sharp_drops(list(asking.results.values()), asking.primary)


def _fitting(asking: Asking, made: Transformed, whom: Sequence[Contender]) -> Transformed:
    """The changed suite without questions that grew beyond the base's context for any of those asked; how many is in its facts."""
    items = made.suite.items
    fits = [asking.model.fits([c.question(item) for item in items], asking.spec.max_new_tokens) for c in whom]
    kept = [at for at in range(len(items)) if all(of[at] for of in fits)]
    if len(kept) == len(items):
        return made
    facts = {**made.suite.facts, "too_long": len(items) - len(kept)}
    suite = suite_of(made.suite.name, made.suite.role, [items[at] for at in kept], **facts)
    return replace(made, suite=suite, origin=tuple(made.origin[at] for at in kept))


def _abstention(asking: Asking) -> None:
    """Questions without an answer, and how sure of itself each contender was in what it said; against the base's best way that may say anything."""
    from tuner.evaluate.abstention import abstention_result, abstention_suite, confidences

    material, spec = asking.material, asking.spec
    made = abstention_suite(material.train, asking.anchor, material.task, spec.abstention, spec.profile, material.seed)
    if not made.suite.items:
        asking.notes["abstention"] = {"left_out": dict(made.left_out)}
        return
    texts: dict[str, list[str]] = {}
    sure: dict[str, list[float]] = {}
    values = asking.results[asking.anchor.name].values
    free = {c.name: values[c.name] for c in asking.everyone if c.is_base and not c.labels and c.name in values}
    baseline = best_of_base(free, asking.primary, asking.metrics[asking.primary].higher_is_better) or ZERO_SHOT
    for contender in (c for c in asking.everyone if c.name in (ZERO_SHOT, baseline, ADAPTER)):
        said = asking.ask(made.suite, [contender], reading=frozenset())[contender.name]
        texts[contender.name] = [answer.text or "" for answer in said.answers]
        questions = [contender.question(item) for item in made.suite.items]
        with asking.as_asked(contender):
            sure[contender.name] = confidences(asking.model, questions, texts[contender.name])
    rows = asking.results[asking.anchor.name].rows
    asking.keep(abstention_result(made, texts, sure, spec.abstention, rows, baseline, spec.resamples, material.seed))


def _forgetting(asking: Asking) -> None:
    from tuner.evaluate.forgetting import forgetting, ticks

    spec, seed = asking.spec, asking.material.seed
    tick = asking.tick("forgetting", ticks(spec.forgetting, spec.profile))
    asking.keep(forgetting(asking.model, spec.forgetting, spec.profile, seed, spec.resamples, tick))
    if asking.material.harness is not None:
        asking.keep(asking.material.harness())


def _memorisation(asking: Asking) -> None:
    from tuner.evaluate.memorisation import memorisation, ticks

    m, spec = asking.material, asking.spec
    if not m.trained_on:
        words = "the recipe reads other train records than this version was trained on"
        asking.notes["memorisation"] = {"left_out": {"memorisation": words}}
        return
    tick = asking.tick("memorisation", ticks(m.train, m.held_out, m.canaries, spec.memorisation, spec.profile, m.validation))
    found = memorisation(asking.model, m.train, m.held_out, m.canaries, spec.memorisation, spec.profile, m.seed, spec.resamples, tick, m.validation)
    if ADAPTER in found.values:
        asking.keep(found)
    else:
        asking.notes["memorisation"] = {"left_out": {"memorisation": str(found.facts["words"])}}


def _cost(asking: Asking) -> None:
    spec, material = asking.spec, asking.material
    tick = asking.tick("cost of an answer", len(priced(asking.everyone)) * min(QUESTIONS[spec.profile], len(asking.anchor.items)))
    asking.keep(
        cost(asking.model, asking.everyone, asking.anchor, material.adapter_bytes, material.machine, spec.profile, spec.max_new_tokens, spec.resamples,
             material.seed, tick)
    )  # fmt: skip


OTHERS: dict[Kind, Callable[[Asking], None]] = {
    "transforms": _transforms,
    "abstention": _abstention,
    "forgetting": _forgetting,
    "memorisation": _memorisation,
    "cost": _cost,
}


# --- writing it down ------------------------------------------------------------------------------------------------


def _written(asking: Asking) -> Graded:
    """scores.json and the rows of answers.jsonl."""
    results = asking.results
    scores: dict[str, Any] = {
        "schema": SCHEMA,
        "seed": asking.material.seed,
        "profile": asking.spec.profile,
        "primary": asking.primary,
        "metrics": {name: m.facts().as_dict() for name, m in asking.metrics.items()},
        "contenders": asking.asked,
        "best_base": asking.best,
        "settings": asking.spec.model_dump(mode="json"),
        "suites": {name: {**result.as_dict(), "power": _power(asking, name)} for name, result in results.items()},
        "slices": _slices(asking),
        "flags": asking.flags,
        "notes": asking.notes,
        "judge": None if asking.judged is None else asking.judged.facts,
        "verdict": _verdict(results[asking.anchor.name], asking.primary),
    }
    rows = [row for result in results.values() for row in result.rows]
    return Graded(json.loads(json.dumps(scores)), [*rows, *(asking.judged.rows if asking.judged is not None else ())])


def _power(asking: Asking, suite: str) -> dict[str, Any]:
    """By metric, the smallest difference from its baseline that a suite of these items could have seen."""
    found = {}
    for name, difference in asking.results[suite].differences.items():
        sides = asking.sides(suite, name, difference.baseline)
        if sides is not None:
            ours, theirs, groups = sides
            found[name] = smallest_difference(ours, theirs, asking.metrics[name].combine, binary=asking.metrics[name].binary, groups=groups)
    return found


def _slices(asking: Asking) -> dict[str, Any] | None:
    """Gains and losses by the columns of held_out's records; None where the primary metric has no baseline there."""
    suite, name, spec = asking.anchor, asking.primary, asking.spec
    difference = asking.results[suite.name].differences.get(name)
    sides = asking.sides(suite.name, name, difference.baseline) if difference is not None else None
    if difference is None or sides is None or len(sides[0]) != len(suite.items):
        return None
    return slices(
        suite.items, *sides[:2], asking.metrics[name], suite=suite.name, name=name, baseline=difference.baseline, asked=spec.slices,
        smallest=spec.smallest_slice, resamples=spec.resamples, seed=asking.material.seed,
    )  # fmt: skip


def _verdict(anchor: Result, primary: str) -> dict[str, Any]:
    """The word about the primary metric on held_out (or the first suite, when there is no held_out)."""
    found = anchor.differences[primary]
    return {"word": found.verdict, "suite": anchor.name, "metric": primary, "value": found.value, "low": found.low, "high": found.high, "p": found.p,
            "n": found.n, "baseline": found.baseline}  # fmt: skip
