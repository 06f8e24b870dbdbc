"""What the adapter gained and lost by slice of the items: worst first, corrected for how many were looked at."""

from __future__ import annotations

from typing import Any

from tuner.report import charts
from tuner.report.words import Report, View, word

MOST_ROWS = 60
PLOTTED = 24


def slices(report: Report) -> View | None:
    """None where the evaluation has no slices."""
    found = report["slices"]
    if not found or not found.get("rows"):
        return None
    rows = sorted((r for r in found["rows"] if r["difference"]["value"] is not None), key=lambda r: _gain(report, found, r))
    shown = rows[:MOST_ROWS]
    bounds = [b for r in shown[:PLOTTED] for b in (r["difference"]["value"], r["difference"]["low"], r["difference"]["high"]) if b is not None]
    scale = charts.axis(bounds)
    return {
        **{k: found[k] for k in ("suite", "metric", "corrected")},
        "too_few": found.get("too_few", 0),
        "smallest": found.get("smallest", 0),
        "rows": [{**r, "word": word(r["difference"]["verdict"])} for r in shown],
        "plotted": [_plotted(i, r, scale) for i, r in enumerate(shown[:PLOTTED])],
        "ticks": charts.ticks_below(scale),
        "count": len(rows),
        "worse": sum(r["difference"]["verdict"] == "worse" for r in rows),
        "better": sum(r["difference"]["verdict"] == "better" for r in rows),
    }


def _gain(report: Report, found: Any, row: Any) -> float:
    """The difference in the metric's good direction, so that the worst slice comes first."""
    metrics = report["suites"].get(found["suite"], {}).get("metrics", report["metrics"])
    higher = metrics.get(found["metric"], {"higher_is_better": True})["higher_is_better"]
    return float(row["difference"]["value"]) * (1 if higher else -1)


def _plotted(index: int, row: Any, scale: charts.Axis) -> View:
    said = word(row["difference"]["verdict"])
    title = f"{row['field']} = {row['value']}"
    return {**row, "word": said, "svg": charts.difference_row(f"slice-{index}", title, scale, row["difference"], said["kind"])}
