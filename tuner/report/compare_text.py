"""Two versions beside each other, as text for a terminal: per suite and metric both values and their paired difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuner.report import numbers
from tuner.report.words import WORDS
from tuner.safe_text import visible

MOST_LEFT_OUT = 3


def compare_text(compared: Mapping[str, Any]) -> str:
    """Lines without markup, from what tuner.evaluate.compare.compare gives. Differences are b minus a on the items both were asked."""
    a, b = visible(compared["a"]), visible(compared["b"])
    blocks = [_suite(name, suite, compared["a"], compared["b"]) for name, suite in compared["suites"].items()]
    lines = [f"{b} minus {a}, paired on common items; {visible(compared['contender'])}, 95 % intervals, seed {compared['seed']}"]
    return "\n".join([*lines, *(line for block in blocks for line in ["", *block]), "", _verdicts(compared["suites"], a, b)])


def _suite(name: str, suite: Mapping[str, Any], a: str, b: str) -> list[str]:
    head = f"{visible(name)}: {suite['n']:,} common items"
    alone = [f"{suite[key]:,} {visible(key)}" for key in (f"only in {a}", f"only in {b}") if suite.get(key)]
    rows = [["", visible(a), visible(b), "difference", "", ""], *(_row(metric, found, a, b) for metric, found in suite.get("metrics", {}).items())]
    table = _aligned(rows) if len(rows) > 1 else ["  nothing to compare"]
    return [", ".join([head, *alone]), *table, *_left_out(suite.get("left_out", {}))]


def _row(metric: str, found: Mapping[str, Any], a: str, b: str) -> list[str]:
    d, sign = found["difference"], WORDS.get(found["difference"]["verdict"], ("", "●"))[1]
    values = [f"{numbers.quantity(metric, e['value'])} [{numbers.quantity(metric, e['low'])}, {numbers.quantity(metric, e['high'])}]"
              for e in (found["values"][a], found["values"][b])]  # fmt: skip
    bounds = f"[{numbers.signed_quantity(metric, d['low'])}, {numbers.signed_quantity(metric, d['high'])}]"
    gap = f"{numbers.signed_quantity(metric, d['value'])} {bounds}"
    return [visible(metric), *values, gap, f"p {numbers.p_value(d['p'])}, n {d['n']:,}", f"{sign} {visible(d['verdict'])}"]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _left_out(left_out: Mapping[str, str]) -> list[str]:
    shown = [f"  not compared: {visible(metric)} ({visible(why)})" for metric, why in list(left_out.items())[:MOST_LEFT_OUT]]
    more = len(left_out) - len(shown)
    return [*shown, f"  not compared: {more} more"] if more else shown


def _verdicts(suites: Mapping[str, Any], a: str, b: str) -> str:
    """How many of the differences say what; how many were looked at is said with it."""
    said = [found["difference"]["verdict"] for suite in suites.values() for found in suite.get("metrics", {}).values()]
    return f"of {len(said)} differences {b} is better in {said.count('better')}, worse in {said.count('worse')} than {a}; not corrected for their number"
