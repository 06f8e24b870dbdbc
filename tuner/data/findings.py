"""A finding: what a check says of a record or a set, in one form for terminal, JSON and report.

It refuses to be anonymous: every finding names its check, code, place, what was found, what is accepted and a fix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from tuner.data.record import Record
from tuner.data.spec import Action, DataSpec
from tuner.data.splits import Splits
from tuner.errors import Problem, Refusal

Severity = Literal["error", "warning", "note"]
SEVERITY: dict[Action, Severity] = {"refuse": "error", "warn": "warning", "drop": "note", "off": "note"}


@dataclass(frozen=True, slots=True)
class Finding:
    """`line` is the record's line or row; `record_id` the start of its content hash."""

    check: str
    code: str
    severity: Severity
    file: str
    line: int
    record_id: str
    field: str
    found: str
    accepted: str
    fix: str
    split: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def problem(self) -> Problem:
        return Problem(f"{self.file}:{self.line}", self.field, self.found, self.accepted, self.fix)


@dataclass(frozen=True)
class Context:
    """What a check may look at. `row_tokens` maps (file, line) to (prompt, completion) token counts, once rows are encoded."""

    splits: Splits
    task: str
    max_tokens: int
    control_texts: frozenset[str] = frozenset()
    row_tokens: Mapping[tuple[str, int], tuple[int, int]] = field(default_factory=dict)

    def found(self, record: Record, code: str, field_: str, found: str, accepted: str, fix: str) -> Finding:
        """A finding about `record`; the table of checks fills in its name and severity."""
        return Finding("", code, "note", record.file, record.line, record.hash.removeprefix("sha256:")[:12], field_, found, accepted, fix, record.split)


@dataclass(frozen=True)
class Check:
    """One row of the catalogue. `default` may depend on data.task."""

    what: str
    run: Callable[[Context], Iterable[Finding]]
    default: Action
    by_task: Mapping[str, Action] = field(default_factory=dict)

    def action(self, task: str) -> Action:
        return self.by_task.get(task, self.default)


@dataclass(frozen=True)
class Checked:
    """The splits that are left, every finding, and how many records each check dropped, by file."""

    splits: Splits
    findings: list[Finding]
    dropped: Mapping[str, Mapping[str, int]]

    @property
    def errors(self) -> list[Finding]:
        return [f for f in self.findings if f.severity == "error"]

    def count(self, severity: Severity) -> int:
        return sum(f.severity == severity for f in self.findings)

    def raise_if_refused(self) -> None:
        if self.errors:
            raise Refusal(f.problem() for f in self.errors)


def run_checks(checks: Mapping[str, Check], context: Context, spec: DataSpec) -> Checked:
    """Run every check that is not off; drop what the recipe says to drop, and count it."""
    findings: list[Finding] = []
    dropped: set[tuple[str, str, int]] = set()
    counts: dict[str, Counter[str]] = {}
    for name, check in checks.items():
        action = spec.checks.get(name, check.action(context.task))
        if action == "off":
            continue
        own = [replace(f, check=name, severity=SEVERITY[action]) for f in check.run(context)]
        findings += own
        if action == "drop":
            places = {(f.split, f.file, f.line) for f in own} - dropped
            counts[name] = Counter(file for _, file, _ in places)
            dropped |= places
    splits = context.splits.without(dropped) if dropped else context.splits
    return Checked(splits, findings, counts)
