"""A finding: what a check says of a record or a set, in one form for terminal, JSON and report.

It refuses to be anonymous: every finding names its check, code, place, what was found, what is accepted and a fix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tuner.data.record import Record
from tuner.data.spec import Action, DataSpec
from tuner.errors import Problem

if TYPE_CHECKING:
    from tuner.data.measure import Context

Severity = Literal["error", "warning", "note"]
SEVERITY: dict[Action, Severity] = {"refuse": "error", "warn": "warning", "drop": "note", "off": "note"}


@dataclass(frozen=True, slots=True)
class Finding:
    """`line` is the record's line or row, 0 where the whole file is meant; `record_id` the start of its content hash."""

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

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    def problem(self) -> Problem:
        return Problem(self.where, self.field, self.found, self.accepted, self.fix)


def finding(record: Record, code: str, field_: str, found: str, accepted: str, fix: str) -> Finding:
    """A finding about `record`; the table of checks fills in its name and severity."""
    return Finding("", code, "warning", record.file, record.line, record.id, field_, found, accepted, fix, record.split)


def remark(file: str, code: str, field_: str, found: str, accepted: str, fix: str, split: str) -> Finding:
    """Something to know about a whole split. It stays a note whatever the recipe says of its check, and drops no record."""
    return Finding("", code, "note", file, 0, "", field_, found, accepted, fix, split)


@dataclass(frozen=True)
class Scene:
    """What a check may know besides the records: the recipe's data section, and the limits that base and template set.

    `max_tokens` and `context_tokens` are None, and `control_texts` empty, where files are checked without a recipe.
    """

    spec: DataSpec
    max_tokens: int | None = None
    context_tokens: int | None = None
    control_texts: frozenset[str] = field(default_factory=frozenset)

    @property
    def task(self) -> str:
        return self.spec.task


RecordCheck = Callable[[Record, Scene], Iterable[Finding]]
SetCheck = Callable[["Context"], Iterable[Finding]]


@dataclass(frozen=True)
class Check:
    """One row of the catalogue: `each` sees one record at a time, in any process; `whole` sees all records and their measures.

    `default` is what the check does unless the recipe says otherwise; it may depend on data.task. `actions` are those that make sense: a
    record nobody could read cannot be kept, and a finding about many records drops none. A check with neither function names what
    reading itself finds, or what the base model finds where it `needs_base`.
    The findings of a `ranked` check come with the most important first, all others in order of file and line.
    """

    what: str
    default: Action
    each: RecordCheck | None = None
    whole: SetCheck | None = None
    by_task: Mapping[str, Action] = field(default_factory=dict)
    actions: tuple[Action, ...] = ("refuse", "warn", "drop", "off")
    needs_base: bool = False
    ranked: bool = False

    def action(self, spec: DataSpec, name: str) -> Action:
        return spec.checks.get(name, self.by_task.get(spec.task, self.default))
