"""Runs the catalogue over the splits: what was found, what the recipe says to drop, and an account of every record.

It refuses an action that a check cannot take; a check itself never removes anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from tuner.catalog import choose
from tuner.data.embedding import encoder_named
from tuner.data.findings import SEVERITY, Check, Finding, Scene, Severity
from tuner.data.forget import REASON as FORGOTTEN
from tuner.data.forget import without_forgotten
from tuner.data.language import LANGUAGES
from tuner.data.measure import Context, CountTokens, measure
from tuner.data.personal import Redactor
from tuner.data.redaction import redacted
from tuner.data.spec import DataSpec
from tuner.data.splits import REHEARSAL, Splits
from tuner.errors import Collector, Refusal

Tick = Callable[[str, int, int], None]  # (what, done, of)

# Checks that hold a record against the task, or take every split but train for a graded one: general records answer to neither.
NOT_FOR_REHEARSAL = frozenset({"json_completion", "padded_label", "unseen_label", "similar_labels", "contradictions", "near_contradictions", "leakage"})


@dataclass(frozen=True)
class Checked:
    """The records that are left, every finding, and how many records each check dropped, by (split, file)."""

    context: Context
    findings: list[Finding]
    dropped_in: Mapping[str, Mapping[tuple[str, str], int]]
    redacted: Mapping[str, int] = field(default_factory=dict)

    @property
    def dropped(self) -> dict[str, dict[str, int]]:
        """How many records each check dropped, by file."""
        by_file: dict[str, Counter[str]] = {name: Counter() for name in self.dropped_in}
        for name, places in self.dropped_in.items():
            for (_, file), count in places.items():
                by_file[name][file] += count
        return {name: dict(counts) for name, counts in by_file.items()}

    @property
    def splits(self) -> Splits:
        return self.context.splits

    @property
    def errors(self) -> list[Finding]:
        return [f for f in self.findings if f.severity == "error"]

    def count(self, severity: Severity) -> int:
        return sum(f.severity == severity for f in self.findings)

    def raise_if_refused(self) -> None:
        if self.errors:
            raise Refusal(f.problem() for f in self.errors)


def refuse_wrong_choices(checks: Mapping[str, Check], spec: DataSpec, where: Callable[..., object]) -> None:
    """Raises Refusal for every unknown check, action a check cannot take, language and kind of personal data. `where` places a key of data."""
    collector = Collector()
    for call in (lambda: refuse_wrong_actions(checks, spec, lambda name: where("checks", name)), lambda: _refuse_languages(spec, where("languages")),
                 lambda: Redactor(spec.redact, where("redact")), lambda: encoder_named(spec.embeddings)):  # fmt: skip
        try:
            call()
        except Refusal as refusal:
            collector.problems.extend(refusal.problems)
    collector.raise_if_any()


def _refuse_languages(spec: DataSpec, where: object) -> None:
    if spec.languages:
        known = {code: code for code in LANGUAGES if code}
        for code in spec.languages:
            choose(known, code, where, "data.languages")


def refuse_wrong_actions(checks: Mapping[str, Check], spec: DataSpec, where: Callable[[str], object]) -> None:
    """Raises Refusal for every unknown check, and for an action that a check cannot take."""
    collector = Collector()
    for name, action in spec.checks.items():
        try:
            check = choose(checks, name, where(name), "data.checks")
        except Refusal as refusal:
            collector.problems.extend(refusal.problems)
            continue
        if action not in check.actions:
            collector.add(where(name), f"data.checks.{name}", action, " or ".join(check.actions), f"write {check.actions[0]}")
    collector.raise_if_any()


def examine(splits: Splits, scene: Scene, checks: Mapping[str, Check], count_tokens: CountTokens | None = None, tick: Tick | None = None) -> Checked:
    """Redact what the recipe names, leave out what it says to forget, then run every check that is not off.

    Records that single-record checks drop are gone before records are compared with each other.
    """
    as_read = splits
    splits, hidden = redacted(as_read, scene.spec.redact, scene.task == "json")
    splits, forgotten = without_forgotten(splits, as_read, scene.spec.forget)
    active = {name: check for name, check in checks.items() if check.action(scene.spec, name) != "off"}
    measured = measure(splits, scene, active, count_tokens, None if tick is None else lambda done, of: tick("records", done, of))
    found: dict[str, list[Finding]] = {name: [] for name in checks}
    for finding in splits.findings:
        found[finding.check].append(finding)
    dropped: dict[str, Counter[tuple[str, str]]] = {FORGOTTEN: forgotten} if forgotten else {}
    gone: set[int] = set()

    def leave_out(name: str, positions: Iterable[int]) -> None:
        fresh = set(positions) - gone
        dropped[name] = Counter((context.records[i].split, context.records[i].file) for i in fresh)
        gone.update(fresh)

    context = measured.context
    for name in (name for name in active if name in measured.found):
        hits = [(position, f) for position, f in measured.found[name] if _concerns(name, f)]
        found[name].extend(f for _, f in hits)
        if checks[name].action(scene.spec, name) == "drop":
            leave_out(name, (position for position, f in hits if f.severity != "note"))
    context, gone = context.without(gone), set()
    whole = [(name, check) for name, check in active.items() if check.whole is not None]
    for done, (name, check) in enumerate(whole):
        if tick is not None:
            tick(name, done, len(whole))
        assert check.whole is not None
        told = [f for f in check.whole(context) if _concerns(name, f)]
        found[name].extend(told)
        if check.action(scene.spec, name) == "drop":
            places = {(f.split, f.file, f.line) for f in told if f.severity != "note"}
            leave_out(name, (i for i, r in enumerate(context.records) if (r.split, r.file, r.line) in places))
    context = context.without(gone)
    said = {name: SEVERITY[checks[name].action(scene.spec, name)] for name in found}
    findings = [
        replace(f, check=name, severity="note" if f.severity == "note" else said[name]) for name, of in found.items() for f in _in_order(of, checks[name])
    ]
    return Checked(context, findings + _nothing_left(context, findings), dropped, hidden)


def _concerns(check: str, finding: Finding) -> bool:
    return finding.split != REHEARSAL or check not in NOT_FOR_REHEARSAL


def _nothing_left(context: Context, findings: list[Finding]) -> list[Finding]:
    """An error for every split of which reading and checks left nothing, where no other error says why."""
    if any(f.severity == "error" for f in findings):
        return []
    return [
        Finding("files", "NOTHING_LEFT", "error", context.file(split), 0, "", f"data.{split}", "no records left after checks", "at least one record",
                "look at what the checks dropped, or leave the split out", split)
        for split, records in context.splits.records.items() if not records
    ]  # fmt: skip


def _in_order(findings: list[Finding], check: Check) -> list[Finding]:
    return findings if check.ranked else sorted(findings, key=lambda f: (f.file, f.line))
