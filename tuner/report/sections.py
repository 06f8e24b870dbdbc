"""What each section of report.html says: report.json's values, sorted and put into words and numbers for the template.

It refuses to compute: a value that is not in report.json is not in the page, and a difference keeps the verdict it came with.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from tuner.report import charts, numbers

Report = Mapping[str, Any]
View = dict[str, Any]

ADAPTER = "adapter"
BASE = "base "
WORDS = {"better": ("better", "▲"), "worse": ("worse", "▼"), "no difference seen": ("same", "●")}
TEXT_BUDGET = 250_000  # characters of all examples together: keeps the page below 2 MB whatever the data
TEXT_LIMITS = (4000, 2000, 1000, 500, 250, 120, 60)
MOST_REFERENCES = 3
MOST_FILES = 200
LOSS_ROWS = 40


def view(report: Report) -> View:
    """Everything the template prints, by section."""
    return {
        "label": f"{report['name']}@{report['version']}",
        "report": report,
        "verdict": _verdict(report),
        "weak": _weak(report),
        "plot": _plot(report),
        "suites": [_suite(report, f"suite-{i}", name, suite) for i, (name, suite) in enumerate(report["suites"].items())],
        "metrics": {name: report["metrics"][name] for name in _metrics(report)},
        "loss": _loss(report["train_log"]),
        "data": _data(report["data"]),
        "findings": report["findings"],
        "examples": _examples(report),
        "made": _made(report),
    }


def word(verdict: str) -> View:
    """A verdict's word with its class and sign; an unknown one is shown as it is, without colour."""
    kind, sign = WORDS.get(verdict, ("same", "●"))
    return {"said": verdict, "kind": kind, "sign": sign}


def _metrics(report: Report) -> list[str]:
    """Names, the primary one first."""
    return sorted(report["metrics"], key=lambda m: m != report["primary"])


def way(contender: str) -> str:
    return contender.removeprefix(BASE)


# --- verdict -------------------------------------------------------------------------------------------------------


def _verdict(report: Report) -> View:
    verdict = report["verdict"]
    suite, metric = report["suites"][verdict["suite"]], verdict["metric"]
    return {
        "word": word(verdict["word"]),
        "metric": metric,
        "suite": verdict["suite"],
        "ours": suite["values"][ADAPTER][metric],
        "theirs": suite["values"][verdict["baseline"]][metric],
        "way": way(verdict["baseline"]),
        "ways": sum(metric in values for contender, values in suite["values"].items() if contender != ADAPTER),
        "difference": verdict,
        "test": suite["differences"].get(metric, {}).get("test", ""),
        "higher": report["metrics"][metric]["higher_is_better"],
    }


def _weak(report: Report) -> View:
    """Suites by the verdict on the primary metric, and every other metric on which the adapter is worse."""
    primary = report["primary"]
    by_word: dict[str, list[View]] = {"worse": [], "no difference seen": [], "better": []}
    others: list[View] = []
    for index, (name, suite) in enumerate(report["suites"].items()):
        for metric, found in suite["differences"].items():
            row = {"suite": name, "key": f"suite-{index}", "metric": metric, "difference": found}
            if metric == primary:
                by_word.setdefault(found["verdict"], []).append(row)
            elif found["verdict"] == "worse":
                others.append(row)
    return {"worse": by_word["worse"], "unseen": by_word["no difference seen"], "others": others, "suites": sum(map(len, by_word.values()))}


# --- all suites in one plot, and each in a table ---------------------------------------------------------------------


def _plot(report: Report) -> View:
    """One row a suite on one scale. Suites that lack the primary metric have no row."""
    primary = report["primary"]
    rows = [(i, name, s, s["differences"][primary]) for i, (name, s) in enumerate(report["suites"].items()) if primary in s["differences"]]
    pairs = [(s["values"][d["baseline"]][primary], s["values"][ADAPTER][primary]) for _, _, s, d in rows]
    bounds = [bound for pair in pairs for e in pair for bound in (e["low"], e["high"], e["value"])]
    share = report["metrics"][primary]["higher_is_better"] and all(0 <= b <= 1 for b in bounds)
    scale = charts.axis(bounds, share)
    drawn = [charts.suite_row(f"plot-{i}", f"{name}: {primary}", scale, *pair) for (i, name, _, _), pair in zip(rows, pairs, strict=True)]
    return {
        "primary": primary,
        "higher": report["metrics"][primary]["higher_is_better"],
        "ticks": charts.ticks_below(scale),
        "rows": [
            {"key": f"suite-{i}", "name": name, "role": s["role"], "n": s["n"], "svg": svg, "difference": d, "word": word(d["verdict"])}
            for (i, name, s, d), svg in zip(rows, drawn, strict=True)
        ],
    }


def _suite(report: Report, key: str, name: str, suite: Mapping[str, Any]) -> View:
    """One suite's contenders × metrics, the adapter last, then the paired differences."""
    metrics = [m for m in _metrics(report) if any(m in values for values in suite["values"].values())]
    contenders = [c for c in suite["values"] if c != ADAPTER] + [ADAPTER]
    found = suite["differences"]
    rows = [
        {
            "name": way(contender),
            "adapter": contender == ADAPTER,
            "cells": [_cell(suite["values"][contender].get(m), suite["n"], contender == found.get(m, {}).get("baseline")) for m in metrics],
        }
        for contender in contenders
    ]
    differences = [None if m not in found else {**found[m], "word": word(found[m]["verdict"])} for m in metrics]
    heads = [{"name": m, "higher": report["metrics"][m]["higher_is_better"], "primary": m == report["primary"]} for m in metrics]
    methods = sorted({e["method"] for values in suite["values"].values() for e in values.values()} | {d["method"] for d in found.values()})
    return {"key": key, "name": name, "role": suite["role"], "n": suite["n"], "digest": suite["digest"], "heads": heads, "rows": rows,
            "differences": differences, "methods": methods}  # fmt: skip


def _cell(estimate: Mapping[str, Any] | None, n: int, baseline: bool) -> View | None:
    """A value in the table; its n is printed in the cell only where it is not the suite's."""
    return None if estimate is None else {"estimate": estimate, "n": estimate["n"] if estimate["n"] != n else None, "baseline": baseline}


# --- training and data ---------------------------------------------------------------------------------------------


def _loss(log: list[Mapping[str, Any]]) -> View | None:
    """The loss curve, and its points as a table: every validation loss, and at most LOSS_ROWS training losses evenly spaced."""
    training = [(float(r["step"]), float(r["loss"])) for r in log if r.get("loss") is not None]
    validation = [(float(r["step"]), float(r["validation_loss"])) for r in log if r.get("validation_loss") is not None]
    if not training and not validation:
        return None
    stride = -(-len(training) // LOSS_ROWS) or 1
    spaced = [*training[::stride], *(training[-1:] if (len(training) - 1) % stride else [])]
    watched = charts.thinned(validation, 2 * LOSS_ROWS)
    rows = sorted([(step, loss, None) for step, loss in spaced] + [(step, None, loss) for step, loss in watched], key=lambda r: (r[0], r[1] is None))
    return {
        "plot": charts.loss_plot("loss", training, validation),
        "validation": validation,
        "training": training,
        "rows": rows,
        "all": len(spaced) + len(watched) == len(training) + len(validation),
        "thinned": len(training) > charts.MOST_POINTS,
    }


def _data(data: Mapping[str, Any]) -> View:
    files = [{**f, "adds_up": f["read"] == f["kept"] + f["dropped"] + f["rejected"]} for f in data["files"]]
    sums = {k: sum(f[k] for f in files) for k in ("read", "kept", "dropped", "rejected")}
    return {"files": files[:MOST_FILES], "more": max(0, len(files) - MOST_FILES), "sums": sums, "dropped": data.get("dropped", {}),
            "splits": data.get("splits", {}), "trained": data["trained"]}  # fmt: skip


# --- examples ------------------------------------------------------------------------------------------------------


def _examples(report: Report) -> View:
    """Chosen items by suite, with how many there are of each kind among all the suite's items."""
    suites = [
        {"index": i, "name": name, "n": report["suites"][name]["n"], "way": way(report["suites"][name]["differences"][report["primary"]]["baseline"]),
         "changes": report.get("changes", {}).get(name, {}), "items": [_item(e) for e in chosen]}
        for i, (name, chosen) in enumerate(report["examples"].items()) if chosen
    ]  # fmt: skip
    texts = [t for s in suites for e in s["items"] for t in (e["question"], e["baseline"], e["adapter"], *e["references"])]
    return {"suites": suites, "limit": _text_limit(texts), "count": sum(len(s["items"]) for s in suites)}


def _item(example: Mapping[str, Any]) -> View:
    kind = {"won": "won", "lost": "lost", "both wrong": "wrong"}.get(example["change"], "other")
    sign = {"won": "▲", "lost": "▼"}.get(kind, "●")
    references = example["references"]
    return {**example, "kind": kind, "sign": sign, "references": references[:MOST_REFERENCES], "more": max(0, len(references) - MOST_REFERENCES)}


def _text_limit(texts: list[str]) -> int:
    """The longest limit (characters of one text) under which all texts together stay within TEXT_BUDGET."""
    return next((limit for limit in TEXT_LIMITS if sum(min(len(t), limit) for t in texts) <= TEXT_BUDGET), TEXT_LIMITS[-1])


# --- how it was made -----------------------------------------------------------------------------------------------


def _made(report: Report) -> View:
    label = shlex.quote(f"{report['name']}@{report['version']}")
    digest = str(report["adapter_digest"])
    return {
        "commands": f"tuner run recipe.yaml\ntuner evaluate {label} recipe.yaml\nsha256sum adapter_model.safetensors   # {digest.removeprefix('sha256:')}",
        "planned": _planned(report["training"]),
        "has_plan": bool(report["training"].get("plan")),
        "method": dict(sorted(report["method"].items(), key=lambda kv: (kv[0] != "kind", kv[0]))),
        "hardware": _hardware(report.get("hardware", {})),
        "contenders": [{"name": name, **facts} for name, facts in report["contenders"].items()],
        "precision": report["evaluation"].get("precision"),
        "settings": {k: v for k, v in report["evaluation"].get("settings", {}).items() if v is not None},
    }


QUANTITIES = {
    "steps": ("steps", numbers.count),
    "tokens": ("tokens", numbers.count),
    "seconds": ("time of training", numbers.seconds),
    "tokens_per_second": ("tokens a second", numbers.count),
    "peak_bytes": ("peak memory", numbers.size),
}


def _planned(training: Mapping[str, Any]) -> list[View]:
    """Measured quantities beside what the plan said before step 1, where it is recorded under training.plan."""
    plan = training.get("plan") or {}
    rows = []
    for key, (what, say) in QUANTITIES.items():
        planned, measured = plan.get(key), training.get(key)
        if planned is None and measured is None:
            continue
        rows.append({
            "what": what,
            "planned": None if planned is None else say(planned),
            "measured": None if measured is None else say(measured),
            "ratio": f"{measured / planned:.2f} ×" if planned and measured is not None else None,
        })  # fmt: skip
    return rows


def _hardware(found: Mapping[str, Any]) -> dict[str, Any]:
    return {("memory" if k == "memory_bytes" else k): numbers.size(v) if k == "memory_bytes" else v for k, v in found.items()}
