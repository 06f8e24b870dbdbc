"""The data page's pictures: histograms, bars and a map as SVG, in percent of their frame like those of charts.py.

They refuse an axis that hides its end: what lies beyond it is counted in the last bar, and the words beside the picture say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from tuner.data.embedding import Indices
from tuner.report.charts import Axis, axis
from tuner.safe_text import visible

BINS = 40
LONG_TAIL = 3.0  # times the 99th percentile; beyond that the longest go into the last bar
COLOURS = 8


@dataclass(frozen=True)
class Length:
    """The scale that the histograms of one quantity share. `limit` is drawn where it lies on the scale."""

    scale: Axis
    edges: NDArray[np.float64]
    cut: bool

    @classmethod
    def of(cls, columns: Sequence[NDArray[np.int64]], limit: int | None) -> Length:
        every = np.concatenate([*columns, np.zeros(1, dtype=np.int64)])
        longest, usual = int(every.max()), float(np.quantile(every, 0.99))
        cut = longest > LONG_TAIL * usual and usual > 0
        top = usual * 1.5 if cut else float(max(longest, 1))
        scale = axis([max(top, limit) if limit is not None and limit <= 2 * top else top])
        if scale.high <= BINS:  # a bar a length, with its tick in the middle
            scale = Axis(-0.5, scale.high + 0.5, tuple(t for t in scale.ticks if t == round(t)))
        return cls(scale, np.linspace(scale.low, scale.high, int(min(BINS, scale.high - scale.low)) + 1), cut)


def histogram(key: str, title: str, lengths: NDArray[np.int64], on: Length, limit: int | None) -> Markup:
    """One split's lengths as bars whose heights are shares of the split; a line at `limit`."""
    counts, _ = np.histogram(np.minimum(lengths, on.scale.high), on.edges)
    most = max(int(counts.max()), 1) if len(counts) else 1
    width = 100 / max(len(counts), 1)
    bars = Markup("").join(
        Markup('<rect class="bar" x="{:.2f}%" y="{:.1f}%" width="{:.2f}%" height="{:.1f}%"/>').format(n * width, 100 - h, width * 0.9, h)
        for n, c in enumerate(counts.tolist()) if c and (h := max(100 * c / most, 3.0))
    )  # fmt: skip
    at = (
        Markup("")
        if limit is None or limit > on.scale.high
        else Markup('<line class="limit" x1="{x}" x2="{x}" y1="-4" y2="100%"/>').format(x=on.scale.at(limit))
    )
    told = "none" if not len(lengths) else "median {:,}, 95 % up to {:,}, longest {:,}".format(*_quantiles(lengths))
    return Markup(
        '<svg class="hist" width="100%" height="44" role="img" aria-labelledby="{key}-t {key}-d"><title id="{key}-t">{title}</title>'
        '<desc id="{key}-d">{told}</desc>'
        '{bars}<line class="floor" x1="0" x2="100%" y1="100%" y2="100%"/>{at}</svg>'
    ).format(key=key, title=visible(title), told=told, bars=bars, at=at)  # fmt: skip


def _quantiles(lengths: NDArray[np.int64]) -> tuple[int, int, int]:
    median, most, longest = np.quantile(lengths, (0.5, 0.95, 1.0)).round().astype(int).tolist()
    return median, most, longest


def share_bar(part: float, whole: float) -> Markup:
    """A bar for a table cell. Hidden from screen readers: its number stands beside it."""
    return Markup('<svg class="share" width="100%" height="10" aria-hidden="true"><rect width="{:.2f}%" height="10" rx="2"/></svg>').format(
        100 * part / whole if whole else 0
    )


@dataclass(frozen=True)
class Dots:
    """Points (N, 2) in the map's own units, what each says on hover, and its colour: 0 to 7, or -1 for all others."""

    points: NDArray[np.float64]
    titles: Sequence[str]
    colours: Indices


def scatter(train: Dots, covered: Dots, uncovered: Dots, middles: Dots, told: str) -> Markup:
    """Train as small discs, production as hollow squares, what is not covered as filled diamonds, cluster middles as numbers."""
    every = np.concatenate([train.points, covered.points, uncovered.points, middles.points])
    low, high = every.min(axis=0), every.max(axis=0)
    span = np.maximum(high - low, 1e-9)

    def at(points: NDArray[np.float64]) -> list[tuple[float, float]]:
        scaled = 2.5 + 95 * (points - low) / span
        return [(x, 100 - y) for x, y in scaled.tolist()]

    discs = Markup("").join(
        Markup('<circle class="{}" cx="{:.1f}%" cy="{:.1f}%" r="3.5">{}</circle>').format(colour(c), x, y, _title(t))
        for (x, y), t, c in zip(at(train.points), train.titles, train.colours.tolist(), strict=True)
    )
    squares = Markup("").join(
        Markup('<rect class="seen" x="{:.1f}%" y="{:.1f}%" width="7" height="7" transform="translate(-3.5 -3.5)">{}</rect>').format(x, y, _title(t))
        for (x, y), t in zip(at(covered.points), covered.titles, strict=True)
    )
    diamonds = Markup("").join(
        Markup('<rect class="missed" x="{:.1f}%" y="{:.1f}%" width="9" height="9">{}</rect>').format(x, y, _title(t))
        for (x, y), t in zip(at(uncovered.points), uncovered.titles, strict=True)
    )
    numbers = Markup("").join(
        Markup(
            '<g class="middle"><circle cx="{:.1f}%" cy="{:.1f}%" r="9">{}</circle><text x="{:.1f}%" y="{:.1f}%" dy="4" text-anchor="middle">{}</text></g>'
        ).format(x, y, _title(t), x, y, n + 1)
        for n, ((x, y), t) in enumerate(zip(at(middles.points), middles.titles, strict=True))
    )
    return Markup(
        '<svg class="map" width="100%" role="img" aria-labelledby="map-t map-d"><title id="map-t">Map of the training records</title>'
        '<desc id="map-d">{told}</desc>'
        "{discs}{squares}{diamonds}{numbers}</svg>"
    ).format(told=told, discs=discs, squares=squares, diamonds=diamonds, numbers=numbers)


def colour(number: int) -> str:
    """The class of a colour."""
    return f"c{number}" if 0 <= number < COLOURS else "cx"


def _title(said: str) -> Markup:
    return Markup("<title>{}</title>").format(visible(said)) if said else Markup("")
