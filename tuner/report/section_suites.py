"""The suites one by one: all their numbers, and what forgetting, memorisation, abstention, cost and power have to say.

It refuses to leave a measured number out: whatever a suite measured stands in its table, known to this file or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tuner.report import charts
from tuner.report.words import ADAPTER, Report, View, kinds_asked, metrics_of, of_role, ordered, way, word

MOST_ROWS = 60
OVERALL = "overall"


def tables(report: Report) -> View:
    """Answer suites with a table each; transforms apart, since there are many. `metrics` says what each column means."""
    every = {m: facts for _, suite in reversed(ordered(report)) for m, facts in suite["metrics"].items()} | dict(report["metrics"])
    of_answers = [m for _, s in ordered(report) if s["role"] in ("held_out", "ood", "transform") for m in metrics_of(s, report["primary"])]
    names = sorted(dict.fromkeys(of_answers), key=lambda m: m != report["primary"])
    return {
        "metrics": {m: every[m] for m in names if m in every},
        "suites": [table(report, name) for name, s in ordered(report) if s["role"] in ("held_out", "ood")],
        "transforms": [table(report, name) for name, _ in of_role(report, "transform")],
    }


def table(report: Report, name: str) -> View:
    """One suite's contenders × metrics, the adapter last, then the paired differences."""
    suite = report["suites"][name]
    metrics = metrics_of(suite, suite["lead"])
    found = suite["differences"]
    contenders = [c for c in suite["values"] if c != ADAPTER] + [c for c in suite["values"] if c == ADAPTER]
    rows = [
        {
            "name": way(contender),
            "adapter": contender == ADAPTER,
            "cells": [_cell(suite["values"][contender].get(m), suite["n"], contender == found.get(m, {}).get("baseline")) for m in metrics],
        }
        for contender in contenders
    ]
    heads = [{"name": m, "higher": suite["metrics"][m]["higher_is_better"], "primary": m == report["primary"]} for m in metrics]
    methods = sorted({e["method"] for values in suite["values"].values() for e in values.values()} | {d["method"] for d in found.values()})
    return {
        "key": key_of(report, name), "name": name, "role": suite["role"], "n": suite["n"], "digest": suite["digest"], "heads": heads, "rows": rows,
        "differences": [None if m not in found else {**found[m], "word": word(found[m]["verdict"])} for m in metrics], "methods": methods,
        "what": [{"name": m, **suite["metrics"][m]} for m in metrics], "has_own_n": any(c and c["n"] is not None for r in rows for c in r["cells"]),
    }  # fmt: skip


def measures(report: Report, name: str) -> View:
    """One suite's metrics × contenders, for suites of many metrics: a row each, with what it means."""
    suite = report["suites"][name]
    chances, uncounted = chances_of(suite), _uncounted(suite)
    contenders = sorted(suite["values"], key=lambda c: (c == ADAPTER, c))
    rows = []
    for metric in metrics_of(suite, suite["lead"]):
        found, difference = [suite["values"][c].get(metric) for c in contenders], suite["differences"].get(metric)
        sizes = sorted({e["n"] for e in found if e})
        rows.append({
            "name": metric, "what": suite["metrics"][metric]["what"], "higher": suite["metrics"][metric]["higher_is_better"], "sizes": sizes,
            "cells": [_cell(e, e["n"] if e and len(sizes) == 1 else -1, False) for e in found],
            "difference": difference, "word": word(difference["verdict"]) if difference else None,
            "chance": chances.get(metric), "counted": metric not in uncounted,
        })  # fmt: skip
    baselines = {d["baseline"] for d in suite["differences"].values()}
    methods = table(report, name)["methods"] + sorted({f"p of {m}: {d['test']}" for m, d in suite["differences"].items()})
    return {"key": key_of(report, name), "name": name, "n": suite["n"], "digest": suite["digest"], "contenders": contenders, "rows": rows,
            "against": baselines.pop() if len(baselines) == 1 else "base", "methods": methods}  # fmt: skip


def key_of(report: Report, name: str) -> str:
    """The place in the page where a suite's table stands."""
    return f"suite-{[n for n, _ in ordered(report)].index(name)}"


def _cell(estimate: Mapping[str, Any] | None, n: int, baseline: bool) -> View | None:
    """A value in the table; its n is printed in the cell only where it is not the suite's."""
    return None if estimate is None else {"estimate": estimate, "n": estimate["n"] if estimate["n"] != n else None, "baseline": baseline}


# --- what the base could do before -----------------------------------------------------------------------------------


def forgetting(report: Report) -> View | None:
    """Probes base beside adapter on a scale from 0 to 1, `overall` first and then the worst; and the measures that are no share of right answers."""
    found = of_role(report, "forgetting")
    if not found:
        return None
    name, suite = found[0]
    probes = [m for m in suite["differences"] if _is_share(suite, m)]
    probes.sort(key=lambda m: (m != OVERALL, suite["differences"][m]["value"] or 0.0))
    scale = charts.axis([], share=True)
    chances, uncounted = chances_of(suite), _uncounted(suite)
    return {
        "name": name,
        "n": suite["n"],
        "kinds": kinds_asked(suite),
        "chance": max(chances.values(), default=None),
        "uncounted": uncounted,
        "further": [measures(report, other) for other, _ in found[1:]],
        "rows": [
            {"metric": m, "n": suite["values"][ADAPTER][m]["n"], "difference": suite["differences"][m], "word": word(suite["differences"][m]["verdict"]),
             "chance": chances.get(m), "counted": m not in uncounted,
             "svg": charts.suite_row(f"probe-{i}", f"{name}: {m}", scale, _two(suite, m), chances.get(m))}
            for i, m in enumerate(probes[:MOST_ROWS])
        ],
        "ticks": charts.ticks_below(scale),
        "measures": [_measure(i, name, suite, m) for i, m in enumerate(sorted(_measured(suite) - set(probes), key=_by_sense))],
        "table": measures(report, name),
        "words": [*words(suite["facts"].get("words")), *(f for f in suite["facts"].get("flags", []) if isinstance(f, str))],
        "facts": facts_tables(suite["facts"]),
    }  # fmt: skip


def rehearsal(found: Mapping[str, Any] | None) -> View | None:
    """What general records mixed into training bought: a sentence, and differences to a version without where there is one."""
    if not found:
        return None
    differences = found.get("differences", {})
    sentences = words(found.get("words")) or [f"{found['verdict']}, on {found['items']} items that both versions were asked"]
    return {"words": sentences, "rows": [{"metric": m, "difference": d, "word": word(d["verdict"])} for m, d in sorted(differences.items())]}


ANSWERED_FREELY = ("instructions_followed", "gsm8k_exact", "prompt_same_first")  # shares without answers to choose from: no chance


def chances_of(suite: Mapping[str, Any]) -> dict[str, float]:
    """What blind choice gives, by metric: `chance` of the facts is one number for all probes that are a choice, or one for each."""
    chance = suite["facts"].get("chance")
    if isinstance(chance, Mapping):
        return {m: float(c) for m, c in chance.items() if m in suite["metrics"]}
    return {} if chance is None else {m: float(chance) for m in suite["differences"] if _is_share(suite, m) and m not in ANSWERED_FREELY}


def _uncounted(suite: Mapping[str, Any]) -> list[str]:
    """Families that the suite's verdict leaves out; none where it does not say which it counts."""
    counted = suite["facts"].get("counted")
    return [] if counted is None else [m for m in chances_of(suite) if m != OVERALL and m not in counted]


SENSITIVE = ("text_loss", "kl_base")  # what moves first, and so stands first


def _by_sense(metric: str) -> tuple[int, str]:
    return (SENSITIVE.index(metric) if metric in SENSITIVE else len(SENSITIVE), metric)


def _is_share(suite: Mapping[str, Any], metric: str) -> bool:
    both = [values[metric] for values in suite["values"].values() if metric in values]
    inside = all(e["value"] is not None and 0 <= e["value"] <= 1 for e in both)
    return len(both) > 1 and metric in suite["values"].get(ADAPTER, {}) and suite["metrics"][metric]["higher_is_better"] and inside


def _measured(suite: Mapping[str, Any]) -> set[str]:
    return {m for values in suite["values"].values() for m in values}


def _two(suite: Mapping[str, Any], metric: str) -> list[charts.Mark]:
    baseline = suite["differences"][metric]["baseline"] if metric in suite["differences"] else "base"
    base = suite["values"].get(baseline, {}).get(metric)
    ours = suite["values"].get(ADAPTER, {}).get(metric)
    return [charts.Mark(kind, what, e) for kind, what, e in (("base", baseline, base), ("adapter", ADAPTER, ours)) if e is not None and e["value"] is not None]


def _measure(index: int, name: str, suite: Mapping[str, Any], metric: str) -> View:
    """One measure on its own scale, from zero."""
    marks = _two(suite, metric)
    scale = charts.axis([b for m in marks for b in (m.estimate["value"], m.estimate["low"], m.estimate["high"]) if b is not None], parts=4)
    difference = suite["differences"].get(metric)
    return {
        "metric": metric, "what": suite["metrics"][metric]["what"], "higher": suite["metrics"][metric]["higher_is_better"],
        "n": max((m.estimate["n"] for m in marks), default=suite["n"]), "svg": charts.suite_row(f"measure-{index}", f"{name}: {metric}", scale, marks),
        "ticks": charts.ticks_below(scale), "difference": difference, "word": word(difference["verdict"]) if difference else None,
    }  # fmt: skip


# --- what can be got out, what is invented, what it costs --------------------------------------------------------------


def memorisation(report: Report) -> View | None:
    return _with_words(report, "memorisation")


def abstention(report: Report) -> View | None:
    return _with_words(report, "abstention")


def cost(report: Report) -> View | None:
    return _with_words(report, "cost")


def _with_words(report: Report, role: str) -> View | None:
    """The suites of a role with the words and tables that their facts hold; None where none was run."""
    found = of_role(report, role)
    if not found:
        return None
    return {
        "suites": [
            {
                "table": measures(report, name),
                "words": words(s["facts"].get("words")),
                "invalid": words(s["facts"].get("invalid")),
                "facts": facts_tables(s["facts"]),
            }
            for name, s in found
        ]
    }


def words(said: Any) -> list[str]:
    """Sentences of a fact that may be absent, one text, or several, each with the measure it is about."""
    if not said:
        return []
    if isinstance(said, Mapping):
        return [f"{said['measure']}: {said['words']}" if said.get("measure") else str(said.get("words", said))]
    return [sentence for s in said for sentence in words(s)] if isinstance(said, list) else [str(said)]


def facts_tables(facts: Mapping[str, Any]) -> list[View]:
    """Every fact that is a list of like rows, as a table of at most MOST_ROWS rows; not those that are said elsewhere in words or are the suite's values."""
    found = {name: rows for name, rows in facts.items()
             if isinstance(rows, list) and rows and all(isinstance(r, Mapping) and not _is_said(r) for r in rows)}  # fmt: skip
    return [_facts_table(name, rows) for name, rows in sorted(found.items())]


def _is_said(row: Mapping[str, Any]) -> bool:
    return "words" in row or {"measure", "contender"} <= row.keys()


FIRST_COLUMNS = ("test", "measure", "name", "family", "label", "field", "value")


def _facts_table(name: str, rows: list[Mapping[str, Any]]) -> View:
    heads = sorted(dict.fromkeys(k for r in rows for k in r), key=lambda k: FIRST_COLUMNS.index(k) if k in FIRST_COLUMNS else len(FIRST_COLUMNS))
    return {"name": name, "heads": heads, "rows": [[fact(r.get(h)) for h in heads] for r in rows[:MOST_ROWS]], "count": len(rows)}


def fact(value: Any) -> Any:
    """A fact as the template prints it: an estimate or a difference stays one, everything else becomes text."""
    if isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys():
        return {"kind": "difference" if "baseline" in value else "estimate", "of": value}
    if isinstance(value, Mapping):
        return {"kind": "text", "of": "; ".join(f"{k} {_plain(v)}" for k, v in value.items())}
    return {"kind": "text", "of": _plain(value)}


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return ", ".join(map(_plain, value)) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else str(value)


# --- what could have been seen ---------------------------------------------------------------------------------------


def power(report: Report) -> View:
    """The smallest difference each suite could have seen on its leading metric; transforms apart."""
    rows = list(_power_rows(report))
    return {
        "rows": [r for r in rows if r["role"] != "transform"][:MOST_ROWS],
        "transforms": [r for r in rows if r["role"] == "transform"][:MOST_ROWS],
    }


def _power_rows(report: Report) -> Iterable[View]:
    for name, suite in ordered(report):
        metric = suite["lead"]
        found = (suite.get("power") or {}).get(metric)
        if metric and found:
            yield {"how": "", **found, "suite": name, "role": suite["role"], "metric": metric, "difference": suite["differences"][metric],
                   "word": word(suite["differences"][metric]["verdict"])}  # fmt: skip
