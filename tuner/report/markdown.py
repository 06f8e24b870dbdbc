"""report.md: the verdict and the numbers, for a pull request or a terminal."""

from __future__ import annotations

from typing import Any


def markdown(report: dict[str, Any]) -> str:
    """The report as GitHub-flavoured Markdown."""
    lines = [f"# {_cell(report['name'])}@{report['version']}: {headline(report)}", "", sentence(report), "", weakness(report), ""]
    for name, suite in report["suites"].items():
        lines += [f"## {_cell(name)} ({suite['role']}, {suite['n']} items)", "", *_table(report, suite), ""]
    lines += ["## Data", "", f"{report['data']['trained']:,} records trained on; {_findings(report)}.", ""]
    lines += ["## How it was made", "", _made(report), f"Adapter `{report['adapter_digest']}`. Every answer is in answers.jsonl.", ""]
    return "\n".join(lines)


def headline(report: dict[str, Any]) -> str:
    """The verdict in a few words."""
    return {"better": "better than the prompted base", "worse": "worse than the prompted base"}.get(report["verdict"]["word"], "no difference seen")


def sentence(report: dict[str, Any]) -> str:
    """The verdict with its number: metric, both values, the paired difference and its interval."""
    verdict = report["verdict"]
    values = report["suites"][verdict["suite"]]["values"]
    metric = verdict["metric"]
    ours, theirs = values["adapter"][metric]["value"], values[verdict["baseline"]][metric]["value"]
    return (
        f"On {verdict['n']} {verdict['suite']} items the adapter's {metric} is {ours:.3f}; the best prompted base ({verdict['baseline']}) has {theirs:.3f}. "
        f"Difference {verdict['value']:+.3f}, 95 % interval [{verdict['low']:+.3f}, {verdict['high']:+.3f}], p = {verdict['p']:.2g}."
    )


def weakness(report: dict[str, Any]) -> str:
    """The suites on which the adapter is worse than the base on the primary metric, or that there are none."""
    primary = report["primary"]
    found = {name: suite["differences"][primary] for name, suite in report["suites"].items() if primary in suite["differences"]}
    worse = [f"{_cell(name)} {d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]" for name, d in found.items() if d["verdict"] == "worse"]
    if not worse:
        return f"On {primary} the adapter is worse than the base on none of {len(found)} suites."
    return f"**On {primary} the adapter is worse than the base on {len(worse)} of {len(found)} suites: {', '.join(worse)}.**"


def _table(report: dict[str, Any], suite: dict[str, Any]) -> list[str]:
    lines = ["| metric | base (best way) | adapter | difference, 95 % | |", "|---|---|---|---|---|"]
    for metric, found in suite["differences"].items():
        base, ours = suite["values"][found["baseline"]][metric], suite["values"]["adapter"][metric]
        lines.append(
            f"| {metric} | {_interval(base)} ({found['baseline'].removeprefix('base ')}) | {_interval(ours)} "
            f"| {found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}] | {found['verdict']} |"
        )
    return lines


def _interval(estimate: dict[str, Any]) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _made(report: dict[str, Any]) -> str:
    base, method, training = report["base"], report["method"], report["training"]
    return (
        f"Base {base['name']} ({base['origin']}), {method['kind']} rank {method['rank']}, "
        f"{training['steps']} steps, seed {report['seed']}, loss {training['first_loss']:.3f} to {training['last_loss']:.3f}."
    )


def _findings(report: dict[str, Any]) -> str:
    said = [f"{g['check']}: {g['count']} ({g['severity']})" for g in report["findings"]]
    return "checks found nothing" if not said else "checks found " + ", ".join(said)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
