"""Checks that compare records: exact duplicates, one prompt with several completions, the same prompt in two splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tuner.data.findings import Check, Context, Finding
from tuner.data.record import Record, normalised
from tuner.data.splits import OOD
from tuner.safe_text import quoted


def _by_prompt(records: list[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.prompt_key].append(record)
    return groups


def exact_duplicates(context: Context) -> Iterator[Finding]:
    """Records of one split with the same messages. The first stays; each later one is a finding."""
    for records in context.splits.records.values():
        first: dict[str, Record] = {}
        for record in records:
            same = first.setdefault(record.hash, record)
            if same is not record:
                yield context.found(record, "DUPLICATE", "messages", f"the same as {same.where}", "each record once",
                                    f"delete line {record.line}, or set data.checks.exact_duplicates: drop")  # fmt: skip


def contradictions(context: Context) -> Iterator[Finding]:
    """One prompt with different completions in the same split. Tasks with several good answers a prompt keep this at warn."""
    for records in context.splits.records.values():
        for group in _by_prompt(records).values():
            answers = {normalised(r.completion): r for r in reversed(group)}
            if len(answers) < 2:
                continue
            say = "; ".join(f"{r.where} says {quoted(r.completion, 40)}" for r in sorted(answers.values(), key=lambda r: r.line)[:4])
            for record in group:
                yield context.found(record, "CONTRADICTION", "completion", f"{len(answers)} answers to one prompt: {say}", "one answer a prompt",
                                    "keep the right one; or set data.checks.contradictions: drop to leave out all of them")  # fmt: skip


def overlap(context: Context) -> Iterator[Finding]:
    """A prompt of train in any other split, or of validation or held_out in one read after it. Every record on the train side is a finding."""
    splits = context.splits
    for index, split in enumerate(list(splits.records)):
        if split.startswith(OOD):
            continue
        for other in list(splits.records)[index + 1 :]:
            theirs = _by_prompt(splits[other])
            for here in splits[split]:
                for there in theirs.get(here.prompt_key, [])[:1]:
                    yield context.found(here, "OVERLAP", "prompt", f"the same prompt in {split} ({here.where}) and {other} ({there.where})",
                                        "each prompt in one split", f"delete {here.where}, or set data.checks.overlap: drop")  # fmt: skip


def unseen_label(context: Context) -> Iterator[Finding]:
    """For data.task label: a label that is graded or watched but never trained on."""
    if context.task != "label":
        return
    known = {r.completion for r in context.splits["train"]}
    for split, records in context.splits.records.items():
        if split == "train":
            continue
        reported: set[str] = set()
        for record in records:
            if record.completion not in known and record.completion not in reported:
                reported.add(record.completion)
                yield context.found(record, "UNSEEN_LABEL", "completion", f"{quoted(record.completion)} in {split}", "labels that occur in train",
                                    "add training records with this label, or leave it out of the suite")  # fmt: skip


SAMENESS: dict[str, Check] = {
    "exact_duplicates": Check("the same record again in a split", exact_duplicates, "warn"),
    "contradictions": Check("one prompt with different completions", contradictions, "warn", {"label": "refuse", "json": "refuse"}),
    "overlap": Check("the same prompt in two splits", overlap, "refuse"),
    "unseen_label": Check("task label: a label that train does not hold", unseen_label, "warn"),
}
