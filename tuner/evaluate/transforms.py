"""held_out asked again in changed form: suites of the same items, how far each contender falls, and whether it still says the same.

Every family changes the same items, chosen by seed and content. A family that changes too few of them, or is not for such records, is left out,
with the reason in `left_out`. A sharp drop is named only when interval, size and Holm's correction agree, and laid to the adapter only when the
base does not fall as far.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.catalog import choose
from tuner.data.record import normalised
from tuner.evaluate.intervals import Difference, Estimate, Groups, difference, estimate, sources
from tuner.evaluate.metric_types import ratio
from tuner.evaluate.metrics import parse_object
from tuner.evaluate.multiplicity import holm
from tuner.evaluate.perturb import SEVERITIES, TRANSFORMS, Asked, perturbed
from tuner.evaluate.perturb_context import label_map
from tuner.evaluate.result import ADAPTER, MetricFacts, Result
from tuner.evaluate.spec import TransformsSpec
from tuner.evaluate.suites import Item, Suite, suite_of
from tuner.fingerprint import digest_json

TAKE = {"small": 40, "full": 200}
PLAIN = {"small": (2,), "full": SEVERITIES}
LEAST_CHANGED = 0.25  # of the chosen items: below it a suite would say nothing about its family
SHARP = 0.10  # a smaller drop is not called sharp, however sure
ALPHA = 0.05  # for the whole set of drops looked at (Holm)
CONSISTENCY = "consistency"
UNCHANGED = "the same items, unchanged"
_CONSISTENT = MetricFacts("share of items answered the same before and after the change (normalised text; JSON whatever the order of its keys)", True)
_FORMS = ("mean", "ratio")  # whose value follows from sums over items, so that a drop has an interval
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Transformed:
    """One family at one severity. `origin` is the place in held_out of the item each item came from. `label_map` is old name to new, for unseen_labels.

    `unchanged` of the chosen items are not in the suite: the family had nothing to change in them.
    """

    suite: Suite
    family: str
    severity: int
    origin: tuple[int, ...]
    label_map: Mapping[str, str] | None = None
    unchanged: int = 0

    @property
    def changes_system(self) -> bool:
        """Whether the change is in the instruction: a contender with a system prompt of its own would not see it."""
        return self.family in ("system_prompt", "unseen_labels")


@dataclass(frozen=True)
class _Pair:
    """A contender's numbers of one metric on the items that have it both ways, (n, 2) `now` and `then`, and the items' sources where any has one."""

    now: Numbers
    then: Numbers
    groups: Groups | None


@dataclass(frozen=True)
class Transforms:
    """All changed suites. `left_out` says why by name, a family's or FAMILY.SEVERITY; `chosen` are the places in held_out that were to be changed."""

    made: tuple[Transformed, ...]
    left_out: Mapping[str, str]
    chosen: tuple[int, ...]


# --- making --------------------------------------------------------------------------------------------------------


def families_of(spec: TransformsSpec) -> list[str]:
    """The families a recipe asks for. Raises Refusal on an unknown name."""
    names = list(dict.fromkeys(spec.families)) if spec.families is not None else list(TRANSFORMS)
    for name in names:
        choose(TRANSFORMS, name, "recipe", "evaluate.transforms.families")
    return names


def transformed(
    held_out: Suite, task: str, spec: TransformsSpec, profile: str, seed: int, *, system: str | None = None, labels: Sequence[str] = ()
) -> Transforms:  # fmt: skip
    """The changed suites of held_out.

    `system` is the recipe's prompt, which items do not carry themselves; `labels` are those of train for a label task (default: held_out's own).
    """
    names = families_of(spec)
    known = tuple(sorted(set(labels) or {r for i in held_out.items for r in i.references})) if task == "label" else ()
    chosen = _chosen(held_out, spec.take or TAKE[profile], seed)
    asked = {at: Asked(held_out.items[at].messages, held_out.items[at].references, known, system, seed) for at in chosen}
    made: list[Transformed] = []
    left_out: dict[str, str] = {}
    for family in names:
        reason = TRANSFORMS[family].applies_to(list(asked.values()))
        if reason is not None:
            left_out[family] = reason
            continue
        for severity in sorted(set(spec.severities or PLAIN[profile])):
            found = _suite(held_out, asked, family, severity)
            if len(found.origin) < max(1, LEAST_CHANGED * len(chosen)):
                left_out[f"{family}.{severity}"] = f"it changes {len(found.origin)} of {len(chosen)} items; {LEAST_CHANGED:.0%} are needed"
            else:
                made.append(found)
    return Transforms(tuple(made), left_out, chosen)


def _chosen(held_out: Suite, take: int, seed: int) -> tuple[int, ...]:
    """Places of the items that are changed, the same for every family: the first by a hash of seed and question."""
    ranked = sorted(range(len(held_out.items)), key=lambda i: digest_json([seed, "transforms", [m.as_dict() for m in held_out.items[i].messages]]))
    return tuple(sorted(ranked[:take]))


def _suite(held_out: Suite, asked: Mapping[int, Asked], family: str, severity: int) -> Transformed:
    items: list[Item] = []
    origin: list[int] = []
    names: dict[str, str] | None = None
    for at, question in asked.items():
        messages = perturbed(question, family, severity)
        if messages is None:
            continue
        references = held_out.items[at].references
        if not TRANSFORMS[family].keeps_answer:
            names = names or label_map(question.labels, severity, question.seed)
            if any(r not in names for r in references):
                continue
            references = tuple(names[r] for r in references)
        items.append(replace(held_out.items[at], messages=messages, references=references))
        origin.append(at)
    unchanged = len(asked) - len(items)
    facts = {"family": family, "severity": severity, "of": held_out.name, "what": TRANSFORMS[family].what, "unchanged": unchanged}
    suite = suite_of(f"{family}.{severity}", "transform", items, **facts)
    return Transformed(suite, family, severity, tuple(origin), names, unchanged)


# --- what it did ---------------------------------------------------------------------------------------------------


def degraded(after: Result, before: Result, made: Transformed, resamples: int, seed: int) -> Result:
    """The graded changed suite with a consistency score on each row and, in `facts`, each contender's paired drops.

    `before` is held_out's result. `drops` by contender and metric is changed minus unchanged on the same items, for metrics that are means or ratios of
    sums; `excess` by metric is the adapter's drop minus that of the base's best way (by its unchanged value on these items).
    """
    rows = _with_consistency(after.rows, before.rows, made)
    pairs = _pairs(rows, before.rows, made)
    metrics = {name: m for name, m in after.metrics.items() if m.form in _FORMS and name != CONSISTENCY}
    drops: dict[str, dict[str, Any]] = {}
    excess: dict[str, Any] = {}
    for name, facts in metrics.items():
        numbers = {c: found for c, of in pairs.items() if (found := _numbers(of, name, made.suite)) is not None}
        for contender, pair in numbers.items():
            drops.setdefault(contender, {})[name] = _drop(pair, facts, resamples, seed).as_dict()
        further = _excess(numbers, facts, resamples, seed)
        if further is not None:
            excess[name] = further.as_dict()
    values, differences = _consistency(after, rows, made.suite, resamples, seed)
    return replace(
        after, rows=rows, metrics={**after.metrics, CONSISTENCY: _CONSISTENT}, values=values, differences=differences,
        facts={**after.facts, "drops": drops, "excess": excess},
    )  # fmt: skip


def _with_consistency(rows: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]], made: Transformed) -> list[dict[str, Any]]:
    said = {(r["contender"], r["item"]): r["answer"] for r in before}
    found = []
    for row in rows:
        then = said.get((row["contender"], made.origin[row["item"]]))
        if then is None or row["answer"] is None:
            found.append(dict(row))
        else:
            same = float(_form(then, None) == _form(row["answer"], made.label_map))
            found.append({**row, "of": made.origin[row["item"]], "scores": {**row["scores"], CONSISTENCY: same}})
    return found


def _form(answer: str, names: Mapping[str, str] | None) -> str:
    """What two answers are compared by. Under renamed labels a new name counts as its label, and an old name as nothing that was said before."""
    table = parse_object(answer)
    if table is not None:
        return json.dumps(table, sort_keys=True, ensure_ascii=False)
    said = normalised(answer)
    if names is None:
        return said
    old = {normalised(new): normalised(label) for label, new in names.items()}
    if said in old:
        return old[said]
    return f"\x00{said}" if said in old.values() else said


def _pairs(rows: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]], made: Transformed) -> dict[str, list[tuple[dict[str, Any], dict[str, Any]]]]:
    """For each contender that answered both, its rows after and before the change, in the order of items."""
    then = {(r["contender"], r["item"]): r for r in before}
    pairs: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for row in sorted(rows, key=lambda r: int(r["item"])):
        old = then.get((row["contender"], made.origin[row["item"]]))
        if old is not None:
            pairs.setdefault(row["contender"], []).append((row, old))
    return pairs


def _numbers(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], metric: str, suite: Suite) -> _Pair | None:
    """The sums after and before of the items that have both; None where none has."""
    both = [(new["item"], a, b) for new, old in pairs if (a := _part(new, metric)) is not None and (b := _part(old, metric)) is not None]
    if not both:
        return None
    now, then = (np.array([each[side] for each in both], dtype=np.float64) for side in (1, 2))
    return _Pair(now, then, sources([suite.items[at].group for at, _, _ in both]))


def _part(row: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    """[numerator, denominator] of one item: its parts, or its score and 1."""
    parts, score = row.get("parts", {}).get(metric), row["scores"].get(metric)
    if parts is not None:
        return float(parts[0]), float(parts[1])
    return None if score is None else (float(score), 1.0)


def _fall(sums: Numbers) -> Numbers:
    """Columns: numerator and denominator after, then before."""
    return ratio(sums[..., :2]) - ratio(sums[..., 2:])


def _drop(pair: _Pair, facts: MetricFacts, resamples: int, seed: int) -> Difference:
    binary = facts.form == "mean" and bool(np.isin(np.concatenate([pair.now, pair.then])[:, 0], (0.0, 1.0)).all())
    return difference(pair.now, pair.then, ratio, binary=binary, higher_is_better=facts.higher_is_better, baseline=UNCHANGED, resamples=resamples, seed=seed,
                      groups=pair.groups)  # fmt: skip


def _excess(numbers: Mapping[str, _Pair], facts: MetricFacts, resamples: int, seed: int) -> Difference | None:
    """The adapter's drop minus the base's, resampled together: negative (for a metric where more is better) means that the adapter falls further."""
    if ADAPTER not in numbers:
        return None
    own = numbers[ADAPTER]
    sign = 1 if facts.higher_is_better else -1
    ways = {c: float(ratio(pair.then.sum(axis=0))) for c, pair in numbers.items() if c != ADAPTER and len(pair.then) == len(own.then)}
    if not ways:
        return None
    baseline = max(ways, key=lambda c: sign * ways[c])
    ours, theirs = np.hstack([own.now, own.then]), np.hstack([numbers[baseline].now, numbers[baseline].then])
    return difference(ours, theirs, _fall, binary=False, higher_is_better=facts.higher_is_better, baseline=baseline, resamples=resamples, seed=seed,
                      groups=own.groups)  # fmt: skip


def _consistency(
    after: Result, rows: Sequence[dict[str, Any]], suite: Suite, resamples: int, seed: int
) -> tuple[dict[str, dict[str, Estimate]], dict[str, Difference]]:  # fmt: skip
    """Each contender's consistency beside its other values, and the adapter's against the base way that is most consistent."""
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        if CONSISTENCY in row["scores"]:
            scores.setdefault(row["contender"], {})[row["item"]] = row["scores"][CONSISTENCY]
    numbers = {c: np.array([[s, 1.0] for s in found.values()]) for c, found in scores.items()}
    groups = {c: sources([suite.items[at].group for at in found]) for c, found in scores.items()}
    values = {c: dict(of) for c, of in after.values.items()}
    for contender, found in numbers.items():
        values.setdefault(contender, {})[CONSISTENCY] = estimate(found, ratio, True, resamples, seed, groups=groups[contender])
    ways = [c for c in numbers if c != ADAPTER and list(scores[c]) == list(scores.get(ADAPTER, ()))]
    differences = dict(after.differences)
    if ways:
        baseline = max(ways, key=lambda c: values[c][CONSISTENCY].value)
        differences[CONSISTENCY] = difference(
            numbers[ADAPTER], numbers[baseline], ratio, binary=True, higher_is_better=True, baseline=baseline, resamples=resamples, seed=seed,
            groups=groups[ADAPTER],
        )  # fmt: skip
    return values, differences


# --- sharp drops ---------------------------------------------------------------------------------------------------


def sharp_drops(results: Sequence[Result], primary: str) -> list[dict[str, Any]]:
    """What has to be said about the adapter's drops in the primary metric, the largest first; of each family its worst severity.

    A drop is sharp when its 95 % interval excludes 0, it is at least SHARP, and its p survives Holm over all suites looked at. It is the adapter's own
    ("over-fitted to format") when `excess`, the adapter's drop minus the base's, is below 0 with its whole interval; "hard for the base too" when it is not
    and the base's own drop is below 0 with its whole interval; otherwise just a "sharp drop", of which these items cannot say whose it is.
    A base that is as wrong before as after cannot fall: then the adapter's fall is its own.
    """
    looked = [r for r in results if r.role == "transform" and primary in r.facts.get("drops", {}).get(ADAPTER, {})]
    adjusted = holm([r.facts["drops"][ADAPTER][primary]["p"] for r in looked])
    several = {r.facts["family"] for r in looked if sum(o.facts["family"] == r.facts["family"] for o in looked) > 1}
    worst: dict[str, dict[str, Any]] = {}
    for result, p in zip(looked, adjusted, strict=True):
        flag = _flag(result, primary, p, len(looked), result.facts["family"] in several)
        family = str(result.facts["family"])
        if flag is not None and (family not in worst or flag["value"] < worst[family]["value"]):
            worst[family] = flag
    return sorted(worst.values(), key=lambda f: float(f["value"]))


def _flag(result: Result, primary: str, holm_p: float, looks: int, several: bool) -> dict[str, Any] | None:
    sign = 1 if result.metrics[primary].higher_is_better else -1
    drop = _signed(result.facts["drops"][ADAPTER][primary], sign)
    if drop["high"] >= 0 or drop["value"] > -SHARP or holm_p >= ALPHA:
        return None
    more = result.facts["excess"].get(primary)
    base = None if more is None else _signed(result.facts["drops"][more["baseline"]][primary], sign)
    kind = "over-fitted to format"
    if more is not None and base is not None and _signed(more, sign)["high"] >= 0:
        kind = "hard for the base too" if base["high"] < 0 else "sharp drop"
    under = f"{result.facts['family']}.{result.facts['severity']}" if several else str(result.facts["family"])
    words = f"{kind}: {_shown(drop)} under `{under}`"
    if kind != "over-fitted to format" and base is not None:
        words += f"; base {_shown(base)}" + (", too few items to say whose it is" if kind == "sharp drop" else "")
    return {
        "kind": kind, "words": words, "suite": result.name, "family": result.facts["family"], "severity": result.facts["severity"], "metric": primary, **drop,
        "holm_p": holm_p, "looks": looks, "base": base, "excess": more,
    }  # fmt: skip


def _signed(found: Mapping[str, Any], sign: int) -> dict[str, float]:
    """In the metric's good direction: a fall is negative."""
    low, high = sorted((sign * float(found["low"]), sign * float(found["high"])))
    return {"value": sign * float(found["value"]), "low": low, "high": high, "p": float(found["p"])}


def _shown(found: Mapping[str, float]) -> str:
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
