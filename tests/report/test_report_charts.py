"""The report's pictures show the numbers where they are. It refuses to trust the drawing: it reads the coordinates."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from tests.report.made import made, write_evaluation
from tuner.report import charts
from tuner.report.write import write_report


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    version, folder = write_evaluation(tmp_path_factory.mktemp("charts"), made(items=60, transformed=12, probes=42))
    write_report(version, folder)
    return json.loads((folder / "report.json").read_text(encoding="utf-8")), (folder / "report.html").read_text(encoding="utf-8")


def tracks(source: str) -> dict[str, str]:
    found = re.findall(r'<svg class="track".*?<title[^>]*>([^<]*)</title>(.*?</g></svg>)(?=\s*<p|<svg class="ticks")', source, re.DOTALL)
    return dict(found)


def test_every_answer_suite_has_one_row_with_dots_and_whiskers_at_its_values(drawn: tuple[dict[str, Any], str]) -> None:
    report, source = drawn
    rows, swept = tracks(source), 0
    shown = [n for n, s in report["suites"].items() if s["lead"] and (s["role"] != "transform" or n.endswith(".3"))]
    for name in shown:
        one, lead = report["suites"][name], report["suites"][name]["lead"]
        row = rows[f"{name}: {lead}"]
        best = one["differences"][lead]["baseline"]
        sides = {"base": one["values"][best][lead], "adapter": one["values"]["adapter"][lead]}
        sides |= {"plain": one["values"]["base zero_shot"][lead]} if "base zero_shot" in one["values"] and best != "base zero_shot" else {}
        assert row.count("<g class=") == len(sides)
        for group, e in sides.items():
            said = re.search(rf'<g class="{group}">.*?</g>', row, re.DOTALL)
            assert said is not None and f'<svg x="{100 * e["value"]:.3f}%"' in said[0]
            assert f'x1="{100 * e["low"]:.3f}%" x2="{100 * e["high"]:.3f}%"' in said[0]
            swept += 1
    assert len(shown) == 4 + 10 + 1 + 1 and swept > 2 * len(shown)


def test_a_slices_difference_stands_at_its_value_and_the_line_of_no_difference_at_zero(drawn: tuple[dict[str, Any], str]) -> None:
    report, source = drawn
    rows = tracks(source)
    bounds = [r["difference"][k] for r in report["slices"]["rows"] for k in ("value", "low", "high")]
    scale = charts.axis(bounds)
    for r in report["slices"]["rows"]:
        row = rows[f"{r['field']} = {r['value']}"]
        assert f'<svg x="{scale.at(r["difference"]["value"])}"' in row and f'class="zero" x1="{scale.at(0.0)}"' in row
    assert len(report["slices"]["rows"]) == 11


def test_loss_curve_passes_through_every_logged_loss(drawn: tuple[dict[str, Any], str]) -> None:
    report, source = drawn
    points = re.search(r'<polyline class="training" points="([^"]*)"', source)
    assert points is not None
    logged = [r for r in report["train_log"] if "loss" in r]
    line = [tuple(map(float, p.split(","))) for p in points[1].split()]
    labels = source.split('<figure class="loss">')[1].split('class="frame-grid"')[1].split("</svg>")[0]
    top = max(float(t) for t in re.findall(r'text-anchor="end">([\d.]+)</text>', labels))
    assert len(line) == len(logged) == 76
    for (x, y), row in zip(line, logged, strict=True):
        assert x == pytest.approx(1000 * row["step"] / 76, abs=0.01)
        assert y == pytest.approx(1000 * (1 - row["loss"] / top), abs=0.01)


def test_axis_holds_every_value_and_zero() -> None:
    random.seed(0)
    for _ in range(500):
        values = [random.uniform(-1, 1) * 10 ** random.uniform(-6, 6) for _ in range(random.randint(1, 6))]
        scale = charts.axis(values)
        slack = 1e-8 * (scale.high - scale.low)
        assert scale.low <= min(0.0, *values, 0.0) + slack and scale.high >= max(0.0, *values, 0.0) - slack
        assert 2 <= len(scale.ticks) <= 9 and scale.ticks[0] == pytest.approx(scale.low) and scale.ticks[-1] == pytest.approx(scale.high)


def test_a_thinned_curve_keeps_its_ends_and_its_extremes() -> None:
    random.seed(1)
    points = [(float(i), random.random()) for i in range(20_000)]
    kept = charts.thinned(points)
    assert len(kept) <= charts.MOST_POINTS + 4
    assert kept[0] == points[0] and kept[-1] == points[-1] and set(kept) <= set(points) and kept == sorted(kept)
    assert {min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])} <= set(kept)


def test_an_estimate_without_an_interval_is_drawn_without_whiskers() -> None:
    row = charts.suite_row("k", "t", charts.axis([1.0]), [charts.Mark("adapter", "adapter", {"value": 0.5, "low": None, "high": None})])
    assert "whisker" not in row and "none" in row and 'x="50.000%"' in row
