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
FIRST_Y, LINE_Y = 17, 22  # pixels from the top of a suite's row
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


# --- contenders, one line each, one row a suite ----------------------------------------------------------------------

MARKS = {  # three shapes and fills: the colour is never the only sign
    "plain": Markup('<path class="mark" d="M0 -6L6 5L-6 5Z"/>'),
    "base": Markup('<rect class="mark" x="-5" y="-5" width="10" height="10"/>'),
    "adapter": Markup('<circle class="mark" r="5.5"/>'),
}


@dataclass(frozen=True)
class Mark:
    """One contender in a row: `kind` of MARKS, what it is called aloud, and its estimate."""

    kind: str
    what: str
    estimate: Mapping[str, Any]


def suite_row(key: str, title: str, scale: Axis, marks: Sequence[Mark], chance: float | None = None) -> Markup:
    """Each contender on its own line with its 95 % whisker, all on one scale; a dashed line where blind choice stands."""
    told = "; ".join(f"{m.what} {numbers.value(m.estimate['value'])} {numbers.interval(m.estimate)}" for m in marks)
    told += "" if chance is None else f"; chance {numbers.value(chance)}"
    dashed = Markup("") if chance is None else Markup('<line class="chance" x1="{x}" x2="{x}" y1="0" y2="100%"/>').format(x=scale.at(chance))
    lines = Markup("").join(_line_of(scale, m, FIRST_Y + LINE_Y * i) for i, m in enumerate(marks))
    return Markup(
        '<svg class="track" width="100%" height="{height}" role="img" aria-labelledby="{key}-t {key}-d">'
        '<title id="{key}-t">{title}</title><desc id="{key}-d">{told}</desc>{grid}{dashed}{lines}</svg>'
    ).format(key=key, title=visible(title), told=visible(told), lines=lines, height=LINE_Y * len(marks) + 12, grid=grid_lines(scale), dashed=dashed)


def _line_of(scale: Axis, mark: Mark, y: int) -> Markup:
    return Markup('<g class="{kind}">{whisker}{mark}{said}</g>').format(
        kind=mark.kind, whisker=whisker(scale, mark.estimate, y), mark=at_point(MARKS[mark.kind], scale.at(mark.estimate["value"]), str(y)),
        said=_printed(scale, mark.estimate, y),
    )  # fmt: skip


def at_point(shape: Markup, x: str, y: str) -> Markup:
    """A shape drawn around a point given in percent; an inner svg carries it there, since a path knows no percent."""
    return Markup('<svg x="{x}" y="{y}" width="1" height="1">{shape}</svg>').format(x=x, y=y, shape=shape)


def grid_lines(scale: Axis) -> Markup:
    return Markup("").join(_grid_line(scale, t) for t in scale.ticks)


def difference_row(key: str, title: str, scale: Axis, found: Mapping[str, Any], kind: str) -> Markup:
    """One paired difference with its 95 % whisker beside the line of no difference. `kind`: better, worse or same."""
    told = f"difference {numbers.signed(found['value'])} {numbers.signed_interval(found)}"
    return Markup(
        '<svg class="track" width="100%" height="28" role="img" aria-labelledby="{key}-t {key}-d">'
        '<title id="{key}-t">{title}</title><desc id="{key}-d">{told}</desc>{grid}<line class="zero" x1="{zero}" x2="{zero}" y1="0" y2="100%"/>'
        '<g class="{kind}">{whisker}{mark}</g></svg>'
    ).format(
        key=key, title=visible(title), told=told, grid=grid_lines(scale), zero=scale.at(0.0), kind=kind,
        whisker=whisker(scale, found, 14), mark=at_point(_DIAMOND, scale.at(found["value"]), "14"),
    )  # fmt: skip


_DIAMOND = Markup('<path class="mark" d="M0 -6L6 0L0 6L-6 0Z"/>')


def _grid_line(scale: Axis, number: float) -> Markup:
    return Markup('<line class="grid" x1="{x}" x2="{x}" y1="0" y2="100%"/>').format(x=scale.at(number))


def whisker(scale: Axis, estimate: Mapping[str, Any], y: int) -> Markup:
    """The interval with its two ends; nothing where there is none."""
    if estimate["low"] is None or estimate["high"] is None:
        return Markup("")
    low, high = scale.at(estimate["low"]), scale.at(estimate["high"])
    return Markup(
        '<line class="whisker" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/><line class="whisker" x1="{low}" x2="{low}" y1="{top}" y2="{foot}"/>'
        '<line class="whisker" x1="{high}" x2="{high}" y1="{top}" y2="{foot}"/>'
    ).format(low=low, high=high, y=y, top=y - 4, foot=y + 4)


def _printed(scale: Axis, estimate: Mapping[str, Any], y: int) -> Markup:
    """The value, where there is room: right of the whisker, left of it, else above the dot."""
    if estimate["low"] is None or estimate["high"] is None:
        x, anchor, dx, dy = scale.at(estimate["value"]), "start", 9, 4
    elif scale.percent(estimate["high"]) <= 100 - ROOM:
        x, anchor, dx, dy = scale.at(estimate["high"]), "start", 10, 4
    elif scale.percent(estimate["low"]) >= ROOM:
        x, anchor, dx, dy = scale.at(estimate["low"]), "end", -10, 4
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
