"""What was found, in the order in which it matters: groups of findings, the few to look at first, and the figures of each split.

It adds nothing to the findings; terminal, JSON and page all speak from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuner.data.doctor import Checked
from tuner.data.findings import Finding, Severity

SCHEMA = 1
RANK: Mapping[Severity, int] = {"error": 0, "warning": 1, "note": 2}
QUANTILES = (0.5, 0.95, 1.0)


@dataclass(frozen=True)
class Group:
    """The findings of one check with one code."""

    check: str
    code: str
    severity: Severity
    findings: list[Finding]

    @property
    def count(self) -> int:
        return len(self.findings)

    def as_dict(self) -> dict[str, Any]:
        first = self.findings[0]
        return {
            "check": self.check, "code": self.code, "severity": self.severity, "count": self.count,
            "where": first.where, "found": first.found, "accepted": first.accepted, "fix": first.fix,
        }  # fmt: skip


def groups(findings: list[Finding]) -> list[Group]:
    """Findings by check, code and severity: errors before warnings before notes, the most frequent first."""
    by_kind: dict[tuple[str, str, Severity], list[Finding]] = {}
    for finding in findings:
        by_kind.setdefault((finding.check, finding.code, finding.severity), []).append(finding)
    made = [Group(*kind, of) for kind, of in by_kind.items()]
    return sorted(made, key=lambda g: (RANK[g.severity], -g.count))


def summary(checked: Checked) -> dict[str, Any]:
    """The first thing to read: records by split, counts by severity, the five groups that matter most, tokens by split."""
    records = {split: len(of) for split, of in checked.splits.records.items()}
    return {
        "records": records | ({"production": len(checked.splits.production)} if checked.splits.production else {}),
        "errors": checked.count("error"),
        "warnings": checked.count("warning"),
        "notes": checked.count("note"),
        "matters": [g.as_dict() for g in groups(checked.findings)[:5]],
        "tokens": _tokens(checked),
        "redacted": dict(checked.redacted),
    }  # fmt: skip


def _tokens(checked: Checked) -> dict[str, dict[str, list[int]]]:
    """Median, 95th percentile and largest number of prompt and completion tokens, by split; empty where none were counted."""
    found = {}
    tokens = checked.context.measures.tokens
    for split, among in checked.context.ranges.items():
        own = tokens[among.start : among.stop]
        if own.any():
            found[split] = {name: [int(q) for q in np.quantile(own[:, i], QUANTILES)] for i, name in enumerate(("prompt", "completion"))}
    return found


def as_report(checked: Checked, accounts: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON that `tuner check --json` prints: summary, accounts of every file, and every finding."""
    return {"schema": SCHEMA, "summary": summary(checked), "files": accounts, "findings": [f.as_dict() for f in checked.findings]}
