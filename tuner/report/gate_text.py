"""The gate's ruling as lines for a terminal: outcome, rule, what was found, what was needed, why, and how many more items would decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuner.report import numbers
from tuner.safe_text import visible

SIGNS = {"pass": "✓", "fail": "✗", "undecided": "?"}
ENDS = {
    "pass": "every rule holds: this version may be promoted",
    "fail": "a rule does not hold: this version may not be promoted",
    "undecided": "no rule is broken, but the items do not suffice to show that all hold: this version may not be promoted yet",
}


def gate_text(gate: Mapping[str, Any]) -> str:
    """Lines without markup, from scores.json's `gate` or tuner.evaluate.gate.Gate.as_dict()."""
    lines = [line for rule in gate["rules"] for line in _rule(rule)]
    lines += [f"  left out   {visible(words)}" for words in gate.get("left_out", ())]
    return "\n".join([*lines, f"gate: {visible(gate['outcome'])}  ({ENDS.get(gate['outcome'], 'unknown outcome')})"])


def _rule(rule: Mapping[str, Any]) -> list[str]:
    outcome = rule["outcome"]
    lines = [
        f"{SIGNS.get(outcome, '●')} {visible(outcome):<10} {visible(rule['words'])}",
        f"  found      {found_text(rule['found'])}",
        f"  needed     {visible(rule['needed'])}",
        f"  why        {visible(rule['why'])}",
    ]
    return [*lines, f"  more       about {rule['more_items']:,} more items would decide"] if rule["more_items"] else lines


def found_text(found: Mapping[str, Any] | None) -> str:
    """The value a rule looked at, its interval and n; a count as the whole number it is."""
    if found is None:
        return "not measured"
    if isinstance(found["value"], int):
        return f"{found['value']:,} of {found['n']:,}, 95 % interval [{found['low']:.1f}, {found['high']:.1f}]"
    return f"{numbers.value(found['value'])} {numbers.interval(found)}, n {found['n']:,}"
