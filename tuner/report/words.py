"""The words and the order that all sections of a report share: verdicts, names of contenders, suites by role, commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuner.report.gather import ROLES

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


def metrics_of(suite: Mapping[str, Any], first: str | None) -> list[str]:
    """The metrics a suite has values of, the leading one first."""
    measured = {m for values in suite["values"].values() for m in values}
    return sorted(measured, key=lambda m: (m != first, m))
