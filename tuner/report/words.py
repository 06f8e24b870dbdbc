"""The words and the order that all sections of a report share: verdicts, names of contenders, suites by role, commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuner.report.gather import ANSWERED, ROLES

Report = Mapping[str, Any]
View = dict[str, Any]

ADAPTER = "adapter"
BASE = "base "
WORDS = {"better": ("better", "▲"), "worse": ("worse", "▼"), "no difference seen": ("same", "●")}


def word(verdict: str) -> View:
    """A verdict's word with its class and sign; an unknown one is shown as it is, without colour."""
    kind, sign = WORDS.get(verdict, ("same", "●"))
    return {"said": verdict, "kind": kind, "sign": sign}


def way(contender: str) -> str:
    """How the base was prompted, without the word base; a contender that is the base alone keeps its name."""
    return contender.removeprefix(BASE)


def ordered(report: Report) -> list[tuple[str, Mapping[str, Any]]]:
    """Suites as they are read: held_out first, then by role, then by name."""
    return sorted(report["suites"].items(), key=lambda kv: (ROLES.index(kv[1]["role"]), kv[0]))


def of_role(report: Report, role: str) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, suite) for name, suite in ordered(report) if suite["role"] == role]


def worse_elsewhere(report: Report) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Suite, metric and difference wherever the adapter is worse on a metric that its suite is not judged by; transforms last, since they are many."""
    suites = sorted(ordered(report), key=lambda named: named[1]["role"] == "transform")
    return [(name, metric, found) for name, suite in suites if suite["role"] in ANSWERED
            for metric, found in suite["differences"].items() if metric != suite["lead"] and found["verdict"] == "worse"]  # fmt: skip


def flagged(report: Report) -> set[str]:
    """Suites that a flag is about: what their leading metric says is not all there is to say."""
    return {f["suite"] for f in report["flags"] or [] if f.get("suite")}


ASKED = (  # what the items of forgetting are, counted by the first metric that every one of them has
    (("choice_nats", "overall"), "choice questions"), (("instructions_followed",), "simple instructions"), (("gsm8k_loss",), "word problems"),
    (("text_loss",), "passages of neutral text"), (("prompt_kl",), "everyday questions"),
)  # fmt: skip


def kinds_asked(suite: Mapping[str, Any]) -> str:
    """What the items of forgetting are; nothing where there are others among them."""
    sizes = {m: e["n"] for values in suite["values"].values() for m, e in values.items()}
    found = [(next((sizes[m] for m in names if m in sizes), 0), what) for names, what in ASKED]
    if sum(n for n, _ in found) != suite["n"]:
        return ""
    *first, last = [f"{n:,} {what}" for n, what in found if n]
    return f"{', '.join(first)} and {last}" if first else last


def metrics_of(suite: Mapping[str, Any], first: str | None) -> list[str]:
    """The metrics a suite has values of, the leading one first."""
    measured = {m for values in suite["values"].values() for m in values}
    return sorted(measured, key=lambda m: (m != first, m))
