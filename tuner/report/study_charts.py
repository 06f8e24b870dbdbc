"""The picture of a learning curve: score over examples with 95 % whiskers, the prompted base as a band across.

It refuses what charts.py refuses: no axis that starts above zero, no smoothing, no point moved off its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tuner.report import numbers
from tuner.report.charts import Axis, _steps_axis, _ticks_left, axis, ticks_below


@dataclass(frozen=True)
class CurvePlot:
    """The frame and its two axes, to be laid out side by side."""

    frame: Markup
    left: Markup
    below: Markup


def curve_plot(key: str, title: str, points: Sequence[Mapping[str, Any]], base: Mapping[str, Any], share: bool) -> CurvePlot:
    """`points` hold `records` and `value` (an estimate); the base is a dashed line in the band of its interval."""
    across = _steps_axis(float(max(p["records"] for p in points)))
    every = [p["value"][bound] for p in points for bound in ("value", "low", "high")]
    up = axis([*every, *(base[bound] for bound in ("value", "low", "high"))], share=share, parts=4)
    grid = Markup("").join(Markup('<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>').format(y=up.from_top(t)) for t in up.ticks)
    drawn = Markup("").join(_point(p, across, up) for p in points)
    told = "; ".join(f"{p['records']:,} records {numbers.value(p['value']['value'])} {numbers.interval(p['value'])}" for p in points)
    told += f"; best prompted base {numbers.value(base['value'])} {numbers.interval(base)}"
    frame = Markup(
        '<svg class="frame" width="100%" height="240" role="img" aria-labelledby="{key}-t {key}-d"><title id="{key}-t">{title}</title>'
        '<desc id="{key}-d">{told}</desc>{grid}<g class="base">{band}</g><g class="adapter track">{line}{drawn}</g></svg>'
    ).format(key=key, title=title, told=told, grid=grid, band=_band(base, up), line=_line(points, across, up), drawn=drawn)
    return CurvePlot(frame, _ticks_left(up), ticks_below(across))


def _band(base: Mapping[str, Any], up: Axis) -> Markup:
    height = f"{up.percent(base['high']) - up.percent(base['low']):.3f}%"
    return Markup(
        '<rect class="band" x="0" width="100%" y="{top}" height="{height}"/><line class="level" x1="0" x2="100%" y1="{y}" y2="{y}"/>'
    ).format(top=up.from_top(base["high"]), height=height, y=up.from_top(base["value"]))  # fmt: skip


def _line(points: Sequence[Mapping[str, Any]], across: Axis, up: Axis) -> Markup:
    said = " ".join(f"{10 * across.percent(p['records']):.2f},{1000 - 10 * up.percent(p['value']['value']):.2f}" for p in points)
    return Markup(
        '<svg width="100%" height="100%" viewBox="0 0 1000 1000" preserveAspectRatio="none" overflow="visible">'
        '<polyline class="training" points="{said}" vector-effect="non-scaling-stroke"/></svg>'
    ).format(said=said)  # fmt: skip


def _point(point: Mapping[str, Any], across: Axis, up: Axis) -> Markup:
    """A dot with its whisker, and its value beside it: left of the last ones, which stand at the edge."""
    value, x = point["value"], across.at(point["records"])
    right = across.percent(point["records"]) < 85
    low, high = up.from_top(value["low"]), up.from_top(value["high"])
    caps = Markup("").join(
        Markup('<rect class="cap" x="{x}" y="{y}" width="9" height="2" transform="translate(-4.5 -1)"/>').format(x=x, y=y) for y in (low, high)
    )
    return Markup(
        '<line class="whisker" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>{caps}<circle class="mark" cx="{x}" cy="{y}" r="5.5"/>'
        '<text x="{x}" y="{y}" dx="{dx}" dy="16" text-anchor="{anchor}">{said}</text>'
    ).format(x=x, low=low, high=high, y=up.from_top(value["value"]), caps=caps, dx=9 if right else -9, anchor="start" if right else "end",
             said=numbers.value(value["value"]))  # fmt: skip
