"""Where answers break: each family of transforms by severity, the adapter's drop beside the base's on the same items.

It refuses to name a drop that its interval does not show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuner.report import charts, charts_severity
from tuner.report.words import ADAPTER, Report, View, of_role, way, word

CONSISTENCY = "consistency"
MOST_FAMILIES = 24
MOST_SHARP = 8
SEVERITIES = 3  # of every family, where all are asked


def family_of(name: str, suite: Mapping[str, Any]) -> tuple[str, int]:
    """The transform's family and severity."""
    facts = suite["facts"]
    family, _, severity = name.rpartition(".")
    return str(facts.get("family", family or name)), int(facts.get("severity", severity if severity.isdigit() else 0))


def robustness(report: Report) -> View | None:
    """None where no transform was run."""
    rows = [_row(report, name, suite) for name, suite in of_role(report, "transform")]
    if not rows:
        return None
    families: dict[str, list[View]] = {}
    for row in sorted(rows, key=lambda r: (r["family"], r["severity"])):
        families.setdefault(row["family"], []).append(row)
    return {
        "primary": report["primary"],
        "rows": [row for of in families.values() for row in of],
        "plots": _plots(families),
        "sharp": sorted((r for r in rows if r["drop"] and r["drop"]["verdict"] == "worse"), key=lambda r: r["order"])[:MOST_SHARP],
        "count": len(rows),
    }


def _row(report: Report, name: str, suite: Mapping[str, Any]) -> View:
    family, severity = family_of(name, suite)
    metric = suite["lead"] or report["primary"]
    difference = suite["differences"].get(metric)
    baseline = difference["baseline"] if difference else None
    drops = suite["facts"].get("drops", {})
    drop = _measured(drops.get(ADAPTER, {}).get(metric))
    sign = 1 if suite["metrics"].get(metric, {"higher_is_better": True})["higher_is_better"] else -1
    return {
        "name": name, "family": family, "severity": severity, "n": suite["n"], "metric": metric, "baseline": way(baseline or ""),
        "ours": suite["values"].get(ADAPTER, {}).get(metric), "theirs": suite["values"].get(baseline, {}).get(metric),
        "difference": difference, "word": word(difference["verdict"]) if difference else None,
        "drop": drop, "base_drop": _measured(drops.get(baseline, {}).get(metric)), "order": sign * drop["value"] if drop else 0.0,
        "excess": suite["facts"].get("excess", {}).get(metric), "what": str(suite["facts"].get("what", "")),
        "same": suite["values"].get(ADAPTER, {}).get(CONSISTENCY), "base_same": suite["values"].get(baseline, {}).get(CONSISTENCY),
    }  # fmt: skip


def _measured(found: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """None too where there is a difference without a value."""
    return found if found is not None and found["value"] is not None else None


def _sizes(rows: list[View]) -> str:
    sizes = sorted({r["drop"]["n"] for r in rows})
    return f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"


def _all(severities: Sequence[int]) -> str:
    return " and ".join(map(str, severities))


def _plots(families: Mapping[str, list[View]]) -> View | None:
    """A small plot a family, the one with the adapter's greatest drop first; all on one scale."""
    dropped = {family: [r for r in rows if r["drop"]] for family, rows in families.items()}
    dropped = {family: rows for family, rows in dropped.items() if rows}
    if not dropped:
        return None
    every = [d for rows in dropped.values() for r in rows for d in (r["drop"], r["base_drop"]) if d]
    up = charts.axis([b for d in every for b in (d["value"], d["low"], d["high"]) if b is not None], parts=4)
    severities = sorted({r["severity"] for rows in dropped.values() for r in rows})
    worst = sorted(dropped, key=lambda f: min(r["order"] for r in dropped[f]))
    shown = worst[:MOST_FAMILIES]
    svgs = [charts_severity.severity_plot(f"severity-{i}", f"{f}: change by severity", up, severities, _contenders(dropped[f])) for i, f in enumerate(shown)]
    return {
        "families": [{"name": f, "what": dropped[f][0]["what"], "n": _sizes(dropped[f]), "svg": svg} for f, svg in zip(shown, svgs, strict=True)],
        "left": charts_severity.drops_left(up),
        "below": charts_severity.severities_below(severities),
        "more": max(0, len(worst) - MOST_FAMILIES),
        "some": "" if len(severities) >= SEVERITIES else f"severity {severities[0]} alone" if len(severities) == 1 else f"severities {_all(severities)}",
    }


def _contenders(rows: list[View]) -> list[charts_severity.Drops]:
    base = {r["severity"]: r["base_drop"] for r in rows if r["base_drop"]}
    return [
        *([charts_severity.Drops("base", "best prompted base", base)] if base else []),
        charts_severity.Drops("adapter", ADAPTER, {r["severity"]: r["drop"] for r in rows}),
    ]
