"""The report's pictures: SVG as text, drawn in percent of its frame, so that it fits a phone and prints sharp.

They refuse to show what is not in the report: no smoothing, no axis that starts above zero, no point moved off its value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from tuner.report import numbers
from tuner.safe_text import visible

MOST_POINTS = 600
BASE_Y, ADAPTER_Y = 17, 39  # pixels from the top of a suite's row
ROOM = 15.0  # percent of the frame a printed value needs beside its whisker

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high` with round `ticks`."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def percent(self, number: float) -> float:
        return 100 * (number - self.low) / (self.high - self.low)

    def at(self, number: float) -> str:
        """Where `number` lies, for an SVG attribute."""
        return f"{self.percent(number):.3f}%"

    def from_top(self, number: float) -> str:
        return f"{100 - self.percent(number):.3f}%"


def axis(values: Sequence[float], share: bool = False, parts: int = 5) -> Axis:
    """The axis that holds zero and every value; a share's is 0 to 1."""
    if share:
        return Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
    low, high = min(0.0, *values, 0.0), max(0.0, *values, 0.0)
    if low == high:
        high = low + 1.0
    step = _round_step((high - low) / parts)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, tuple(round(i * step, 12) for i in range(first, last + 1)))


def _round_step(rough: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(k * power for k in (1.0, 2.0, 2.5, 5.0, 10.0) if k * power >= rough * (1 - 1e-9))


# --- base and adapter, one row a suite -----------------------------------------------------------------------------


def suite_row(key: str, title: str, scale: Axis, base: Mapping[str, Any], ours: Mapping[str, Any]) -> Markup:
    """Two dots with their 95 % whiskers on one scale: the best prompted base above (hollow square), the adapter below (filled circle)."""
    grid = Markup("").join(_grid_line(scale, t) for t in scale.ticks)
    told = f"best prompted base {numbers.value(base['value'])} {numbers.interval(base)}; adapter {numbers.value(ours['value'])} {numbers.interval(ours)}"
    return Markup(
        '<svg class="track" width="100%" height="56" role="img" aria-labelledby="{key}-t {key}-d">'
        '<title id="{key}-t">{title}</title><desc id="{key}-d">{told}</desc>{grid}'
        '<g class="base">{whisker_b}<rect class="mark" x="{xb}" y="{yb}" width="10" height="10" transform="translate(-5 -5)"/>{text_b}</g>'
        '<g class="adapter">{whisker_a}<circle class="mark" cx="{xa}" cy="{ya}" r="5.5"/>{text_a}</g></svg>'
    ).format(
        key=key, title=visible(title), told=told, grid=grid, xb=scale.at(base["value"]), yb=BASE_Y, xa=scale.at(ours["value"]), ya=ADAPTER_Y,
        whisker_b=_whisker(scale, base, BASE_Y), whisker_a=_whisker(scale, ours, ADAPTER_Y),
        text_b=_printed(scale, base, BASE_Y), text_a=_printed(scale, ours, ADAPTER_Y),
    )  # fmt: skip


def _grid_line(scale: Axis, number: float) -> Markup:
    return Markup('<line class="grid" x1="{x}" x2="{x}" y1="0" y2="100%"/>').format(x=scale.at(number))


def _whisker(scale: Axis, estimate: Mapping[str, Any], y: int) -> Markup:
    low, high = scale.at(estimate["low"]), scale.at(estimate["high"])
    return Markup(
        '<line class="whisker" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/><line class="whisker" x1="{low}" x2="{low}" y1="{top}" y2="{foot}"/>'
        '<line class="whisker" x1="{high}" x2="{high}" y1="{top}" y2="{foot}"/>'
    ).format(low=low, high=high, y=y, top=y - 4, foot=y + 4)


def _printed(scale: Axis, estimate: Mapping[str, Any], y: int) -> Markup:
    """The value, where there is room: right of the whisker, left of it, else above the dot."""
    if scale.percent(estimate["high"]) <= 100 - ROOM:
        x, anchor, dx, dy = scale.at(estimate["high"]), "start", 7, 4
    elif scale.percent(estimate["low"]) >= ROOM:
        x, anchor, dx, dy = scale.at(estimate["low"]), "end", -7, 4
    else:
        x, anchor, dx, dy = scale.at(estimate["value"]), "middle", 0, -7
    return Markup('<text x="{x}" y="{y}" dx="{dx}" dy="{dy}" text-anchor="{anchor}">{said}</text>').format(
        x=x, y=y, dx=dx, dy=dy, anchor=anchor, said=numbers.value(estimate["value"])
    )


def ticks_below(scale: Axis) -> Markup:
    """Tick labels under a plot. Hidden from screen readers: every value is in a table too."""
    last = len(scale.ticks) - 1
    labels = Markup("").join(
        Markup('<text x="{x}" y="14" text-anchor="{anchor}">{said}</text>').format(
            x=scale.at(t), anchor="start" if i == 0 else "end" if i == last and scale.percent(t) > 97 else "middle", said=numbers.tick(t)
        )
        for i, t in enumerate(scale.ticks)
    )
    return Markup('<svg class="ticks" width="100%" height="20" aria-hidden="true">{labels}</svg>').format(labels=labels)


# --- loss over steps -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossPlot:
    """The frame and its two axes, to be laid out side by side."""

    frame: Markup
    left: Markup
    below: Markup


def loss_plot(key: str, training: Sequence[Point], validation: Sequence[Point]) -> LossPlot:
    """Training loss as a line, validation loss as a dashed line with squares, over steps."""
    every = [*training, *validation]
    across = _steps_axis(max(x for x, _ in every))
    up = axis([y for _, y in every], parts=4)
    lines = Markup("").join(Markup('<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>').format(y=up.from_top(t)) for t in up.ticks)
    told = f"{_told('training loss', training)}; {_told('validation loss', validation)}"
    frame = Markup(
        '<svg class="frame" width="100%" height="240" role="img" aria-labelledby="{key}-t {key}-d">'
        '<title id="{key}-t">Training and validation loss over steps</title><desc id="{key}-d">{told}</desc>{lines}'
        '<svg width="100%" height="100%" viewBox="0 0 1000 1000" preserveAspectRatio="none" overflow="visible">{train}{watch}</svg>{squares}{alone}</svg>'
    ).format(
        key=key, told=told, lines=lines, train=_line("training", thinned(training), across, up),
        watch=_line("validation", thinned(validation), across, up),
        squares=_squares(thinned(validation), across, up), alone=_dots(training, across, up) if len(training) == 1 else Markup(""),
    )  # fmt: skip
    return LossPlot(frame, _ticks_left(up), ticks_below(across))


def _steps_axis(last: float) -> Axis:
    """Steps from 0 to the last one, so that the curve fills the frame; ticks at round steps."""
    scale = axis([last])
    return Axis(0.0, max(last, 1.0), tuple(t for t in scale.ticks if t <= max(last, 1.0)))


def _told(what: str, points: Sequence[Point]) -> str:
    if not points:
        return f"no {what}"
    return f"{what} {numbers.value(points[0][1])} at step {points[0][0]:g}, {numbers.value(points[-1][1])} at step {points[-1][0]:g}"


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about `most` of the points: of every run of neighbours the lowest and the highest, the ends always."""
    if len(points) <= most:
        return list(points)
    width = math.ceil(2 * len(points) / most)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), width):
        run = range(start, min(start + width, len(points)))
        kept |= {min(run, key=lambda i: points[i][1]), max(run, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def _line(name: str, points: Sequence[Point], across: Axis, up: Axis) -> Markup:
    said = " ".join(f"{10 * across.percent(x):.2f},{1000 - 10 * up.percent(y):.2f}" for x, y in points)
    return Markup('<polyline class="{name}" points="{said}" vector-effect="non-scaling-stroke"/>').format(name=name, said=said)


def _squares(points: Sequence[Point], across: Axis, up: Axis) -> Markup:
    return Markup("").join(
        Markup('<rect class="validation" x="{x}" y="{y}" width="8" height="8" transform="translate(-4 -4)"/>').format(x=across.at(x), y=up.from_top(y))
        for x, y in points
    )


def _dots(points: Sequence[Point], across: Axis, up: Axis) -> Markup:
    return Markup("").join(Markup('<circle class="training" cx="{x}" cy="{y}" r="4"/>').format(x=across.at(x), y=up.from_top(y)) for x, y in points)


def _ticks_left(scale: Axis) -> Markup:
    labels = Markup("").join(Markup('<text x="100%" y="{y}" dy="4" text-anchor="end">{said}</text>').format(y=scale.from_top(t), said=escape(numbers.tick(t)))
                             for t in scale.ticks)  # fmt: skip
    return Markup('<svg class="ticks" width="100%" height="240" aria-hidden="true">{labels}</svg>').format(labels=labels)
