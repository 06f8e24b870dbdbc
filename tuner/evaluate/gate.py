"""The gate: rules over suites and metrics, each decided on the interval, never on the point.

It refuses a rule about something that was not measured, and to pass or fail what the items are too few to decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tuner.catalog import suggestion
from tuner.errors import refuse
from tuner.evaluate.result import ADAPTER
from tuner.evaluate.shares import Z
from tuner.evaluate.spec import GateRule

Outcome = Literal["pass", "fail", "undecided"]
Scores = Mapping[str, Any]  # scores.json, read


@dataclass(frozen=True, slots=True)
class Ruling:
    """One rule, decided. `found` is {value, low, high, n}, or None where nothing was measured; `more_items` about how many more would decide."""

    words: str
    found: dict[str, Any] | None
    needed: str
    outcome: Outcome
    more_items: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Gate:
    """`outcome` is fail where any rule fails, else undecided where any is, else pass. `left_out` names defaults that do not apply to this evaluation."""

    outcome: Outcome
    rules: tuple[Ruling, ...]
    left_out: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {"outcome": self.outcome, "rules": [asdict(r) for r in self.rules], "left_out": list(self.left_out)}


@dataclass(frozen=True, slots=True)
class _Found:
    """What a rule is held against. `chosen_from` is how many ways of prompting the base the baseline was picked from on these very items."""

    value: float
    low: float
    high: float
    n: int
    chosen_from: int = 1


def default_rules(primary: str, suite: str = "held_out") -> list[GateRule]:
    """A gain over the best-prompted base, no lost ability, nothing recited.

    0.1 of the probes that the base can do (0.05 of all, where half of them count) and 0.2 nats a token on neutral text are where measured harm began: an
    adapter whose probes stood still had lost 0.33 nats there. No default looks at membership inference: with base and adapter in hand, two ordinary
    epochs already give an AUC of 0.97 (one 0.83, four 0.997), so any ceiling would fail ordinary training and say little of harm. Where records are
    private, write a rule.
    """
    return [
        GateRule(suite=suite, metric=primary, of="gain", at_least=0.0),
        GateRule(suite="forgetting", metric="overall", of="drop", at_most=0.1),
        GateRule(suite="forgetting", metric="text_loss", of="drop", at_most=0.2),
        GateRule(suite="memorisation", metric="extractable", of="count", at_most=0.0),
    ]


def judge(scores: Scores, rules: Sequence[GateRule] | None = None, where: str = "recipe") -> Gate:
    """Hold an evaluation against `rules`, or against the defaults.

    A written rule about a suite or metric that is not there is a Refusal; a default one is undecided where its suite was not run,
    and left out where the suite ran but found nothing to measure. An adapter without effect fails the defaults in at most 5 % of suites: only the first
    rule's bound lies where such an adapter is, at 2.5 %, and it is widened for the choice of the baseline. A written rule whose bound is exactly the
    truth fails wrongly in at most 2.5 % of suites, and passes wrongly as rarely.
    """
    if rules is not None:
        rulings = [_ruling(scores, rule, where, f"gate.rules.{i}") for i, rule in enumerate(rules)]
        return Gate(_overall(rulings), tuple(rulings))
    rulings, left_out = [], []
    for rule in default_rules(str(scores["primary"]), str((scores.get("verdict") or {}).get("suite", "held_out"))):
        if rule.suite not in scores["suites"]:
            rulings.append(Ruling(_words(rule), None, _needed(rule), "undecided", None, f"not measured: the suite {rule.suite} was not run"))
        elif rule.metric not in _names(scores, rule):
            left_out.append(f"{rule.suite}.{rule.metric}: {_why_missing(scores, rule)}")
        elif (said := _follows_from_prompts(scores, rule)) is not None:
            left_out.append(f"{rule.suite}.{rule.metric}: {said}")
        else:
            rulings.append(_ruling(scores, rule, where, "gate.rules"))
    return Gate(_overall(rulings), tuple(rulings), tuple(left_out))


def _follows_from_prompts(scores: Scores, rule: GateRule) -> str | None:
    """Completions of held_out, which was not trained on, are continued word for word too: then the answers follow from their prompts, and a count of
    train's says nothing of recital. None where no completion of held_out is."""
    held_out = scores["suites"][rule.suite]["values"].get(ADAPTER, {}).get(f"{rule.metric}_held_out")
    if held_out is None or held_out["value"] == 0:
        return None
    count = round(held_out["value"] * held_out["n"])
    return f"{count} of {held_out['n']} completions of held_out come word for word too, so they follow from their prompts; look at the difference"


def _why_missing(scores: Scores, rule: GateRule) -> str:
    """What the suite itself says of a metric that it could not measure."""
    told = scores["suites"][rule.suite].get("facts", {}).get("not_measured") or ()
    return next((str(one["words"]) for one in told if one["measure"] == rule.metric), "this evaluation had nothing to measure it on")


def _overall(rulings: Sequence[Ruling]) -> Outcome:
    outcomes = {r.outcome for r in rulings}
    return "fail" if "fail" in outcomes else "undecided" if "undecided" in outcomes or not rulings else "pass"


def _ruling(scores: Scores, rule: GateRule, where: str, field: str) -> Ruling:
    found = _looked_up(scores, rule, where, field)
    if rule.asks == "count":
        return _counted(rule, found)
    shown = {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
    if not all(math.isfinite(x) for x in (found.value, found.low, found.high)):
        return Ruling(_words(rule), shown, _needed(rule), "undecided", None, "the interval cannot be computed from these items")
    outcome, why = _held_against(rule, found)
    return Ruling(_words(rule), shown, _needed(rule), outcome, _more_items(rule, found) if outcome == "undecided" else None, why)


def _held_against(rule: GateRule, found: _Found) -> tuple[Outcome, str]:
    if rule.at_least is not None:
        near, far, bound, side = found.low, found.high, rule.at_least, "lower"
        passes, fails = near >= bound, _widened(found, far) < bound
    else:
        near, far, bound, side = found.high, found.low, rule.at_most or 0.0, "upper"
        passes, fails = near <= bound, _widened(found, far) > bound
    of = f"{found.value:.4g} on {found.n} items, 95 % interval {found.low:.4g} to {found.high:.4g}"
    if passes:
        return "pass", f"{of}: the {side} bound {near:.4g} is on the right side of {bound:.4g}"
    if fails:
        return "fail", f"{of}: the whole interval is on the wrong side of {bound:.4g}"
    clear = (far < bound) if rule.at_least is not None else (far > bound)
    chosen = f", but the baseline is the best of {found.chosen_from} ways on these very items, and allowing for that choice" if clear else ""
    return "undecided", f"{of}{chosen or ':'} it could be on either side of {bound:.4g}"


def _widened(found: _Found, bound: float) -> float:
    """The bound that a rule fails by, with Bonferroni's correction for how many ways the baseline was chosen from on the same items.

    Without it an adapter no better and no worse than six ways is called worse than the luckiest of them in 10 % of suites of 50 to 200 items.
    """
    if found.chosen_from == 1:
        return bound
    from scipy.special import ndtri

    return found.value + (bound - found.value) * float(ndtri(1 - 0.025 / found.chosen_from)) / Z


def _counted(rule: GateRule, found: _Found) -> Ruling:
    """A count is exact: it passes or fails as it stands, with what the share could be beside it."""
    count = round(found.value * found.n)
    passes = count >= rule.at_least if rule.at_least is not None else count <= (rule.at_most or 0.0)
    shown = {"value": count, "low": found.low * found.n, "high": found.high * found.n, "n": found.n}
    why = f"{count} of {found.n}; the true share may be up to {100 * found.high:.1f} %"
    return Ruling(_words(rule), shown, _needed(rule), "pass" if passes else "fail", None, why)


def _more_items(rule: GateRule, found: _Found) -> int | None:
    """How many more items would decide if the value stayed: an interval's half narrows with the root of n. None where the value is the bound itself."""
    bound = rule.at_least if rule.at_least is not None else rule.at_most or 0.0
    gap = found.value - bound
    if gap == 0:
        return None
    near = found.low if gap > 0 else found.high
    fails = (gap < 0) == (rule.at_least is not None)
    towards = found.value - (_widened(found, near) if fails else near)
    return max(1, math.ceil(found.n * (towards / gap) * (towards / gap) - found.n))


# --- what a rule is about ---------------------------------------------------------------------------------------------


def _looked_up(scores: Scores, rule: GateRule, where: str, field: str) -> _Found:
    suites = scores["suites"]
    if rule.suite not in suites:
        refuse(where, f"{field}.suite", repr(rule.suite), "a suite that was run: " + ", ".join(sorted(suites)), suggestion(rule.suite, suites))
    names = _names(scores, rule)
    if rule.metric not in names:
        what = {"value": "a metric", "count": "a metric", "gain": "a difference", "drop": "a difference"}[rule.asks]
        refuse(where, f"{field}.metric", repr(rule.metric), f"{what} of {rule.suite}: " + (", ".join(sorted(names)) or "none was measured"),
               suggestion(rule.metric, names) if names else "take the rule out")  # fmt: skip
    suite = suites[rule.suite]
    if rule.asks == "count":
        _refuse_uncounted(scores, rule, names[rule.metric], where, field)
    if rule.asks in ("value", "count"):
        return _found(names[rule.metric], 1.0)
    sign = _direction(scores, rule) * (1.0 if rule.asks == "gain" else -1.0)
    return _found(names[rule.metric], sign, 1 if _against_itself(suite, rule) else _ways(suite, rule.metric))


def _refuse_uncounted(scores: Scores, rule: GateRule, entry: Mapping[str, Any], where: str, field: str) -> None:
    """Only a share of items, each of them right or wrong by itself, is a number of items."""
    form, method = _facts(scores, rule).get("form", "mean"), str(entry.get("method", ""))
    if form == "mean" and method.startswith("Wilson"):
        return
    what = f"of form {form}" if form != "mean" else "graded by source" if "groups" in method else "a mean of scores"
    refuse(where, f"{field}.of", "count", f"a metric that is a share of single items; {rule.suite}.{rule.metric} is {what}", "write of: value")


def _names(scores: Scores, rule: GateRule) -> Mapping[str, Any]:
    """The adapter's values, or its differences; a transform's drop is the adapter's own, against the unchanged questions."""
    suite = scores["suites"][rule.suite]
    if rule.asks in ("value", "count"):
        return dict(suite["values"].get(ADAPTER, {}))
    if _against_itself(suite, rule):
        return dict(suite["facts"]["drops"].get(ADAPTER, {}))
    return dict(suite["differences"])


def _against_itself(suite: Mapping[str, Any], rule: GateRule) -> bool:
    return rule.asks == "drop" and suite["role"] == "transform" and "drops" in suite.get("facts", {})


def _ways(suite: Mapping[str, Any], metric: str) -> int:
    return max(1, sum(1 for name, of in suite["values"].items() if name != ADAPTER and metric in of))


def _direction(scores: Scores, rule: GateRule) -> float:
    return 1.0 if _facts(scores, rule)["higher_is_better"] else -1.0


def _facts(scores: Scores, rule: GateRule) -> Mapping[str, Any]:
    return dict(scores["suites"][rule.suite].get("metrics", {}).get(rule.metric) or scores["metrics"][rule.metric])


def _found(entry: Mapping[str, Any], sign: float, chosen_from: int = 1) -> _Found:
    """The entry in the rule's own direction: with the sign turned, low and high change places."""
    value, low, high = (math.nan if entry[k] is None else float(entry[k]) for k in ("value", "low", "high"))
    if sign < 0:
        value, low, high = -value, -high, -low
    return _Found(value, low, high, int(entry["n"]), chosen_from)


def _words(rule: GateRule) -> str:
    return f"{rule.suite}.{rule.metric} {rule.asks}, {_needed(rule)}"


def _needed(rule: GateRule) -> str:
    name = {True: "at least", False: "at most"}[rule.at_least is not None]
    bound = rule.at_least if rule.at_least is not None else rule.at_most
    if rule.asks == "count":
        return f"{name} {bound:g}"
    side = "lower" if rule.at_least is not None else "upper"
    return f"{side} bound {name} {bound:g}"
