"""How the version was made and how its report can be made again: training, data, commands."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from tuner.report import charts, numbers
from tuner.report.words import ADAPTER, Report, View

MOST_FILES = 200
LOSS_ROWS = 40


def loss(log: list[Mapping[str, Any]]) -> View | None:
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


def data(found: Mapping[str, Any]) -> View:
    files = [{**f, "adds_up": f["read"] == f["kept"] + f["dropped"] + f["rejected"]} for f in found["files"]]
    sums = {k: sum(f[k] for f in files) for k in ("read", "kept", "dropped", "rejected")}
    return {"files": files[:MOST_FILES], "more": max(0, len(files) - MOST_FILES), "sums": sums, "dropped": found.get("dropped", {}),
            "splits": found.get("splits", {}), "trained": found["trained"]}  # fmt: skip


# --- how it was made -----------------------------------------------------------------------------------------------


def made(report: Report) -> View:
    return {
        "commands": _commands(report),
        "gate_command": f"tuner gate {_label(report)}",
        "recompute": _recompute(report),
        "planned": _planned(report["training"]),
        "has_plan": bool(report["training"].get("plan")),
        "method": {k: v for k, v in sorted(report["method"].items(), key=lambda kv: (kv[0] != "kind", kv[0])) if v not in (None, [], {})},
        "hardware": _hardware(report.get("hardware", {})),
        "contenders": [{"name": name, **facts, "took": _took(facts)} for name, facts in report["contenders"].items()],
        "precision": report["evaluation"].get("precision"),
        "profile": report["evaluation"].get("profile"),
        "settings": _flat(report["evaluation"].get("settings") or {}),
    }


def _took(facts: Mapping[str, Any]) -> str:
    """How long it took to ask what was really asked; what an earlier look had asked already is remembered and took none."""
    asked, items = facts.get("asked", facts["items"]), facts["items"]
    if asked >= items:
        return numbers.seconds(facts["seconds"])
    return f"{numbers.seconds(facts['seconds'])} for {asked:,}, {items - asked:,} remembered" if asked else "remembered"


def _label(report: Report) -> str:
    return shlex.quote(f"{report['name']}@{report['version']}")


def _commands(report: Report) -> str:
    label = _label(report)
    digest = str(report["adapter_digest"]).removeprefix("sha256:")
    return f"tuner run recipe.yaml\ntuner evaluate {label}\ntuner gate {label}\ntuner report {label}\nsha256sum adapter_model.safetensors   # {digest}"


RECOMPUTE = """import json
rows = [json.loads(line) for line in open("answers.jsonl", encoding="utf-8")]
rows = [r for r in rows if r["suite"] == {suite} and r["contender"] == {contender} and r["scores"].get({metric}) is not None]
print(sum(r["scores"][{metric}] for r in rows) / len(rows), "n", len(rows))"""


def _recompute(report: Report) -> View | None:
    """A command, with no part of tuner in it, that gives one value of the verdict's suite again; None where no metric of it is a mean of its items."""
    suite = report["suites"][report["verdict"]["suite"]]
    means = [m for m in suite["values"][ADAPTER] if suite["metrics"][m].get("form", "mean") == "mean"]
    metric = next((m for m in (report["verdict"]["metric"], *means) if m in means), None)
    if metric is None:
        return None
    said = {"suite": json.dumps(report["verdict"]["suite"]), "contender": json.dumps(ADAPTER), "metric": json.dumps(metric)}
    script = re.sub(r"\{(suite|contender|metric)\}", lambda found: said[found[1]], RECOMPUTE)  # not format(): a name may hold braces
    return {"command": f"python3 -c {shlex.quote(script)}", "metric": metric, "suite": report["verdict"]["suite"], "estimate": suite["values"][ADAPTER][metric]}


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings by dotted name, those that are not set or are empty left out."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{key}.")
        elif value not in (None, []):
            found[before + key] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return found


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
