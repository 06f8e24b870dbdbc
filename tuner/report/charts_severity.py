"""How answers worsen as the input changes: one small plot a family of transforms, all on one scale, base beside adapter.

They refuse to join what was not measured: a line runs from the unchanged input, where the drop is zero by definition, through the severities that were run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tuner.report import numbers
from tuner.report.charts import MARKS, Axis, at_point
from tuner.safe_text import visible

HEIGHT = 132  # pixels
LEFT, RIGHT = 8.0, 92.0  # percent of the frame: where severity 0 and the heaviest stand
APART = 2.2  # percent between the two contenders of a severity, so that their whiskers do not cover each other


@dataclass(frozen=True)
class Drops:
    """One contender's drops by severity, `kind` as in charts.MARKS."""

    kind: str
    what: str
    found: Mapping[int, Mapping[str, Any]]


def severity_plot(key: str, title: str, up: Axis, severities: Sequence[int], contenders: Sequence[Drops]) -> Markup:
    """Paired changes against the same items unchanged, with their 95 % whiskers."""
    told = "; ".join(f"{c.what} at severity {s}: {numbers.signed(d['value'])} {numbers.signed_interval(d)}" for c in contenders for s, d in c.found.items())
    grid = Markup("").join(Markup('<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>').format(y=up.from_top(t)) for t in up.ticks)
    drawn = Markup("").join(_contender(up, severities[-1], c, (i - (len(contenders) - 1) / 2) * APART) for i, c in enumerate(contenders))
    return Markup(
        '<svg class="severity" width="100%" height="{height}" role="img" aria-labelledby="{key}-t {key}-d"><title id="{key}-t">{title}</title>'
        '<desc id="{key}-d">{told}</desc>{grid}<line class="zero" x1="0" x2="100%" y1="{zero}" y2="{zero}"/>{drawn}</svg>'
    ).format(key=key, title=visible(title), told=visible(told), grid=grid, zero=up.from_top(0.0), drawn=drawn, height=HEIGHT)


def _contender(up: Axis, heaviest: int, drops: Drops, shift: float) -> Markup:
    points = [(_across(0, heaviest) + shift, 0.0), *((_across(s, heaviest) + shift, float(d["value"])) for s, d in drops.found.items())]
    line = " ".join(f"{10 * x:.2f},{1000 - 10 * up.percent(y):.2f}" for x, y in points)
    marks = Markup("").join(_mark(up, drops.kind, _across(s, heaviest) + shift, d) for s, d in drops.found.items())
    return Markup(
        '<g class="{kind}"><svg width="100%" height="100%" viewBox="0 0 1000 1000" preserveAspectRatio="none" overflow="visible">'
        '<polyline class="path-line" points="{line}" vector-effect="non-scaling-stroke"/></svg>{marks}</g>'
    ).format(kind=drops.kind, line=line, marks=marks)


def _mark(up: Axis, kind: str, x: float, found: Mapping[str, Any]) -> Markup:
    bar = Markup("")
    if found["low"] is not None and found["high"] is not None:
        bar = Markup('<line class="whisker" x1="{x:.3f}%" x2="{x:.3f}%" y1="{a}" y2="{b}"/>').format(
            x=x, a=up.from_top(found["low"]), b=up.from_top(found["high"])
        )
    return bar + at_point(MARKS[kind], f"{x:.3f}%", up.from_top(found["value"]))


def _across(severity: int, heaviest: int) -> float:
    return LEFT + (RIGHT - LEFT) * severity / max(heaviest, 1)


def severities_below(severities: Sequence[int]) -> Markup:
    """The severities under a plot; 0 is the unchanged input. Hidden from screen readers: the table says them."""
    labels = Markup("").join(
        Markup('<text x="{x:.3f}%" y="13" text-anchor="middle">{said}</text>').format(x=_across(s, severities[-1]), said=s) for s in (0, *severities)
    )
    return Markup('<svg class="ticks" width="100%" height="18" aria-hidden="true">{labels}</svg>').format(labels=labels)


def drops_left(up: Axis) -> Markup:
    labels = Markup("").join(
        Markup('<text x="100%" y="{y}" dy="4" text-anchor="end">{said}</text>').format(y=up.from_top(t), said=numbers.tick(t)) for t in up.ticks
    )
    return Markup('<svg class="ticks" width="100%" height="{height}" aria-hidden="true">{labels}</svg>').format(labels=labels, height=HEIGHT)
