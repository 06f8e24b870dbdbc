"""What each section of report.html says: report.json's values, sorted and put into words and numbers for the template.

It refuses to compute: a value that is not in report.json is not in the page, and a difference keeps the verdict it came with.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from tuner.report import charts, section_answers, section_made, section_robustness, section_slices, section_suites
from tuner.report.gather import ROLES
from tuner.report.words import ADAPTER, Report, View, flagged, ordered, way, word, worse_elsewhere

MOST_FLAGS = 40
MOST_NAMED = 12
OUTCOMES = {"pass": ("better", "✓"), "fail": ("worse", "▼"), "undecided": ("unsure", "?")}


def view(report: Report) -> View:
    """Everything the template prints, by section."""
    label = f"{report['name']}@{report['version']}"
    return {
        "label": label,
        "report": report,
        "verdict": _verdict(report),
        "gate": _gate(report["gate"]),
        "flags": _flags(report),
        "weak": _weak(report),
        "absent_commands": {
            role: f"tuner evaluate {shlex.quote(label)} --suite {report['missing'][role]}" if role in report["missing"] else None for role in ROLES
        },
        "left_out": {kind: _left_out(report, kind) for kind in ("contenders", "transforms", "abstention", "memorisation")},
        "plot": _plot(report),
        "tables": section_suites.tables(report),
        "slices": section_slices.slices(report),
        "robustness": section_robustness.robustness(report),
        "forgetting": section_suites.forgetting(report),
        "memorisation": section_suites.memorisation(report),
        "abstention": section_suites.abstention(report),
        "cost": section_suites.cost(report),
        "power": section_suites.power(report),
        "looks": report["looks"],
        "rehearsal": section_suites.rehearsal(report["rehearsal"]),
        "loss": section_made.loss(report["train_log"]),
        "data": section_made.data(report["data"]),
        "findings": report["findings"],
        "examples": section_answers.examples(report),
        "made": section_made.made(report),
    }


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
        "higher": suite["metrics"][metric]["higher_is_better"],
    }


def _gate(gate: Mapping[str, Any] | None) -> View | None:
    if gate is None:
        return None
    rules = [{**rule, "outcome": _outcome(rule["outcome"]), "counted": _is_count(rule["found"])} for rule in gate["rules"]]
    return {"outcome": _outcome(gate["outcome"]), "rules": rules, "left_out": gate.get("left_out", [])}


def _is_count(found: Mapping[str, Any] | None) -> bool:
    """Whether a rule counted items: its value is a whole number, and says so by its type."""
    return found is not None and isinstance(found["value"], int)


def _outcome(said: str) -> View:
    kind, sign = OUTCOMES.get(said, ("same", "●"))
    return {"said": said, "kind": kind, "sign": sign}


def _flags(report: Report) -> View | None:
    """What is wrong, in the words of the parts that found it; None where the evaluation looked for nothing."""
    flags = report["flags"]
    return (
        None
        if flags is None
        else {
            "rows": [{"suite": f.get("suite"), "kind": _kind_of(f), "words": f["words"]} for f in flags[:MOST_FLAGS]],
            "more": max(0, len(flags) - MOST_FLAGS),
            "count": len(flags),
        }
    )


def _kind_of(flag: Mapping[str, Any]) -> str:
    """What kind of flag it is, where its own words do not begin with that."""
    kind = str(flag.get("kind") or flag.get("code") or "")
    return "" if flag["words"].startswith(kind) else kind


def _left_out(report: Report, kind: str) -> list[str]:
    """What a kind of suite could not be made of, each with the reason."""
    noted = (report["notes"] or {}).get(kind, {})
    return [f"{name}: {why}" for name, why in list(noted.get("left_out", {}).items())[:MOST_NAMED]] if isinstance(noted, Mapping) else []


def _weak(report: Report) -> View:
    """Suites by the verdict on their leading metric, and every other metric on which the adapter is worse."""
    by_word: dict[str, list[View]] = {"worse": [], "no difference seen": [], "better": []}
    keys = {name: f"suite-{i}" for i, (name, _) in enumerate(ordered(report))}
    for name, suite in ordered(report):
        if suite["lead"]:
            found = suite["differences"][suite["lead"]]
            by_word.setdefault(found["verdict"], []).append({"suite": name, "key": keys[name], "metric": suite["lead"], "difference": found})
    others = [{"suite": name, "key": keys[name], "metric": metric, "difference": found} for name, metric, found in worse_elsewhere(report)]
    return {
        "worse": _first(by_word["worse"]), "unseen": _first(by_word["no difference seen"]), "others": _first(others),
        "suites": sum(map(len, by_word.values())), "primary": report["primary"],
    }  # fmt: skip


def _first(rows: list[View]) -> View:
    return {"rows": rows[:MOST_NAMED], "count": len(rows), "more": max(0, len(rows) - MOST_NAMED)}


# --- all suites in one plot -------------------------------------------------------------------------------------------


def _plot(report: Report) -> View:
    """One row a suite on one scale; of a family of transforms the heaviest severity. Suites whose answers are not right or wrong have no row.

    Where not all are shares, only suites judged by the primary metric have one: nats and shares have no scale in common.
    """
    primary = report["primary"]
    judged = [(i, name, s) for i, (name, s) in enumerate(ordered(report)) if s["lead"] and not _is_lighter(name, s, report) and _has_value(s)]
    share = all(s["metrics"][s["lead"]]["higher_is_better"] and all(0 <= b <= 1 for b in _bounds(s)) for _, _, s in judged)
    chosen = judged if share else [(i, name, s) for i, name, s in judged if s["lead"] == primary]
    marks, noted = [_marks(s) for _, _, s in chosen], flagged(report)
    scale = charts.axis([b for _, _, s in chosen for b in _bounds(s)], share)
    rows = [
        {
            "key": f"suite-{i}", "name": name, "role": ROLES_SAID[s["role"]], "n": s["differences"][s["lead"]]["n"],
            "metric": None if s["lead"] == primary else s["lead"],
            "svg": charts.suite_row(f"plot-{i}", f"{name}: {s['lead']}", scale, row),
            "difference": s["differences"][s["lead"]], "word": word(s["differences"][s["lead"]]["verdict"]), "flagged": name in noted,
        }
        for (i, name, s), row in zip(chosen, marks, strict=True)
    ]  # fmt: skip
    return {
        "primary": primary, "higher": report["metrics"][primary]["higher_is_better"], "ticks": charts.ticks_below(scale), "rows": rows,
        "lighter": sum(_is_lighter(name, s, report) for name, s in report["suites"].items()), "has_plain": any(len(row) > 2 for row in marks),
        "apart": len(judged) - len(chosen),
    }  # fmt: skip


ROLES_SAID = {**{role: role for role in ROLES}, "ood": "out of distribution"}


def _marks(suite: Mapping[str, Any]) -> list[charts.Mark]:
    """The unprompted base where it is not the best one, the best base, the adapter."""
    lead = suite["lead"]
    best = suite["differences"][lead]["baseline"]
    plain = suite["values"].get("base zero_shot", {}).get(lead) if best != "base zero_shot" else None
    first = [charts.Mark("plain", "base zero_shot", plain)] if plain is not None else []
    return [
        *first,
        charts.Mark("base", f"best prompted base, {way(best)}", suite["values"][best][lead]),
        charts.Mark("adapter", ADAPTER, suite["values"][ADAPTER][lead]),
    ]


def _bounds(suite: Mapping[str, Any]) -> list[float]:
    return [b for m in _marks(suite) for b in (m.estimate["low"], m.estimate["high"], m.estimate["value"]) if b is not None]


def _has_value(suite: Mapping[str, Any]) -> bool:
    return all(m.estimate["value"] is not None for m in _marks(suite))


def _is_lighter(name: str, suite: Mapping[str, Any], report: Report) -> bool:
    """Whether this transform was also run at a heavier severity."""
    if suite["role"] != "transform":
        return False
    family, severity = section_robustness.family_of(name, suite)
    return any(s["role"] == "transform" and section_robustness.family_of(n, s) > (family, severity) and section_robustness.family_of(n, s)[0] == family
               for n, s in report["suites"].items())  # fmt: skip
