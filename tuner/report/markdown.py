"""report.md: the verdict, the gate and the numbers that decide, for a pull request or a terminal.

It refuses to let a name of the data be anything but text in a table cell: what Markdown would read is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tuner.report import numbers
from tuner.report.words import ADAPTER, flagged, kinds_asked, of_role, ordered, worse_elsewhere
from tuner.safe_text import visible

Report = Mapping[str, Any]
MOST_SUITES = 60
MOST_NAMED = 12
LINE = 400  # characters of a sentence taken from elsewhere
SENTENCES = 1200  # of a suite's own verdict, which is several


def markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown."""
    parts = [
        [f"# {_cell(report['name'])}@{report['version']}: {headline(report)}", "", sentence(report), "", weakness(report)],
        _gate(report["gate"]),
        _flags(report["flags"]),
        ["## Suites", "", *_suites(report)],
        ["## What else was looked at", "", *(f"- {line}" for line in _lines(report))],
        ["## Data", "", f"{report['data']['trained']:,} records trained on; {_findings(report)}."],
        ["## How it was made", "", _made(report), f"Adapter {_cell(report['adapter_digest'])}. Every answer is in answers.jsonl, every number in report.json."],
    ]
    return "\n".join("\n".join(part) + "\n" for part in parts if part)


def headline(report: Report) -> str:
    """The verdict in a few words, and the gate's."""
    said = {"better": "better than the prompted base", "worse": "worse than the prompted base"}.get(report["verdict"]["word"], "no difference seen")
    return said if report["gate"] is None else f"{said}; gate: {_cell(report['gate']['outcome'])}"


def sentence(report: Report) -> str:
    """The verdict with its number: metric, both values, the paired difference and its interval."""
    verdict = report["verdict"]
    values = report["suites"][verdict["suite"]]["values"]
    metric = verdict["metric"]
    ours, theirs = values[ADAPTER][metric]["value"], values[verdict["baseline"]][metric]["value"]
    return (
        f"On {verdict['n']} {_cell(verdict['suite'])} items the adapter's {_cell(metric)} is {numbers.value(ours)}; the best prompted base "
        f"({_cell(verdict['baseline'])}) has {numbers.value(theirs)}. Difference {numbers.signed(verdict['value'])}, 95 % interval "
        f"{numbers.signed_interval(verdict)}, p = {numbers.p_value(verdict['p'])}."
    )


def weakness(report: Report) -> str:
    """The suites on which the adapter is worse than the base on the metric they are judged by, or that there are none; then the other metrics."""
    found = {name: suite["differences"][suite["lead"]] for name, suite in ordered(report) if suite["lead"]}
    worse = [f"{_cell(name)} {numbers.signed(d['value'])} {numbers.signed_interval(d)}" for name, d in found.items() if d["verdict"] == "worse"]
    if not worse:
        return f"The adapter is worse than the base on the leading metric of none of {len(found)} suites.{_elsewhere(report)}"
    return f"**The adapter is worse than the base on the leading metric of {len(worse)} of {len(found)} suites: {', '.join(worse)}.**{_elsewhere(report)}"


def _elsewhere(report: Report) -> str:
    others = [f"{_cell(name)} {_cell(m)} {numbers.signed(d['value'])} {numbers.signed_interval(d)} (n {d['n']:,})" for name, m, d in worse_elsewhere(report)]
    more = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
    return f" **Worse on other metrics: {', '.join(others[:MOST_NAMED])}{more}.**" if others else ""


def _gate(gate: Mapping[str, Any] | None) -> list[str]:
    if gate is None:
        return []
    lines = [f"## Gate: {_cell(gate['outcome'])}", "", "| outcome | rule | found | needed | why |", "|---|---|---|---|---|"]
    for rule in gate["rules"]:
        found = "not measured" if rule["found"] is None else f"{_value(rule['found'])} (n {rule['found']['n']:,})"
        more = f"; about {rule['more_items']:,} more items would decide" if rule["more_items"] else ""
        lines.append(f"| {_cell(rule['outcome'])} | {_cell(rule['words'])} | {found} | {_cell(rule['needed'])} | {_cell(rule['why'])}{more} |")
    left_out = gate.get("left_out", [])
    return [*lines, "", f"Left out: {'; '.join(map(_cell, left_out))}."] if left_out else lines


def _flags(flags: list[Mapping[str, Any]] | None) -> list[str]:
    return ["## To know before relying on it", "", *(f"- {_cell(f.get('suite') or '')}: {_cell(f['words'])}" for f in flags)] if flags else []


def _suites(report: Report) -> list[str]:
    """One row a suite, by the metric it is judged by; of transforms only those that say anything but better."""
    lines = ["| suite | n | metric | base (best way) | adapter | difference, 95 % | p | |", "|---|---|---|---|---|---|---|---|"]
    noted = flagged(report)
    judged = [(name, s) for name, s in ordered(report) if s["lead"]]
    shown = [(name, s) for name, s in judged if s["role"] != "transform" or s["differences"][s["lead"]]["verdict"] != "better"]
    for name, suite in shown[:MOST_SUITES]:
        found = suite["differences"][suite["lead"]]
        base, ours = suite["values"][found["baseline"]][suite["lead"]], suite["values"][ADAPTER][suite["lead"]]
        lines.append(
            f"| {_cell(name)} | {found['n']:,} | {_cell(suite['lead'])} | {_value(base)} ({_cell(found['baseline'].removeprefix('base '))}) | {_value(ours)} "
            f"| {numbers.signed(found['value'])} {numbers.signed_interval(found)} | {numbers.p_value(found['p'])} "
            f"| {_cell(found['verdict'])}{'; flagged above' if name in noted else ''} |"
        )
    lines += ["", "Better and worse are said only where interval and test agree."]
    left = len(judged) - len(shown[:MOST_SUITES])
    return [*lines, "", f"{left} more suites are in report.html."] if left else lines


def _lines(report: Report) -> list[str]:
    """One line each: drops, forgetting, memorisation, abstention, power, looks; what was not measured too."""
    lines = [_drops(report), *(_said(report, role) for role in ("forgetting", "memorisation", "abstention")), _power(report)]
    if report["looks"]:
        lines.append(_cell(report["looks"]["words"]))
    if report["rehearsal"]:
        lines.append(f"rehearsal: {_cell(report['rehearsal'].get('words') or report['rehearsal'].get('verdict', ''))}")
    if report["missing"]:
        lines.append(f"not measured: {', '.join(report['missing'])}")
    return [line for line in lines if line]


def _drops(report: Report) -> str:
    found = [(name, s["facts"].get("drops", {}).get(ADAPTER, {}).get(s["lead"])) for name, s in of_role(report, "transform")]
    worse = sorted((d["value"], name, d) for name, d in found if d and d["verdict"] == "worse")
    if not found:
        return ""
    said = ", ".join(f"{_cell(name)} {numbers.signed(d['value'])} {numbers.signed_interval(d)}" for _, name, d in worse[:3])
    return f"transforms: {len(worse)} of {len(found)} lower the adapter's score" + (f"; {said}" if said else "")


def _said(report: Report, role: str) -> str:
    """A suite's own words, or its leading difference and what is flagged; nothing where it was not run."""
    for name, suite in of_role(report, role):
        kinds = kinds_asked(suite) if role == "forgetting" else ""
        said = f"{_cell(name)} ({kinds})" if kinds else _cell(name)
        words = suite["facts"].get("words")
        if isinstance(words, str) and words:
            return f"{said}: {_cell(words, SENTENCES)}"
        if suite["lead"]:
            d = suite["differences"][suite["lead"]]
            found = f"{_cell(suite['lead'])} {numbers.signed(d['value'])} {numbers.signed_interval(d)}, n {d['n']:,}: {_cell(d['verdict'])}"
            return "; ".join([f"{said}: {found}", *(_cell(f["words"]) for f in report["flags"] or [] if f.get("suite") == name)])
    return ""


def _power(report: Report) -> str:
    verdict = report["verdict"]
    found = (report["suites"][verdict["suite"]].get("power") or {}).get(verdict["metric"])
    if not found:
        return ""
    return f"with n = {found['n']:,}, {_cell(verdict['suite'])} could have seen a difference of {numbers.value(found['smallest_difference'])}"


def _value(estimate: Mapping[str, Any]) -> str:
    if isinstance(estimate["value"], int):
        return f"{estimate['value']} [{estimate['low']:.1f}, {estimate['high']:.1f}]"
    return f"{numbers.value(estimate['value'])} {numbers.interval(estimate)}"


def _made(report: Report) -> str:
    base, method, training = report["base"], report["method"], report["training"]
    rank = f" rank {method['rank']}" if "rank" in method else ""
    loss = f", loss {training['first_loss']:.3f} to {training['last_loss']:.3f}" if training.get("last_loss") is not None else ""
    kind = _cell(method.get("kind", "unknown method"))
    return f"Base {_cell(base['name'])} ({_cell(base['origin'])}), {kind}{rank}, {training.get('steps', 0)} steps, seed {report['seed']}{loss}."


def _findings(report: Report) -> str:
    said = [f"{_cell(g['check'])}: {g['count']} ({g['severity']})" for g in report["findings"]]
    return "checks found nothing" if not said else "checks found " + ", ".join(said)


def _cell(text: object, limit: int = LINE) -> str:
    """`text` on one line, with what Markdown or HTML would read escaped."""
    return re.sub(r"([\\`*\[\]<>|~&])", r"\\\1", visible(text, limit))
