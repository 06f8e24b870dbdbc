"""Checks that look at one record at a time: empty turns, answers that are not what the task says, control tokens in text."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator

from tuner.data.findings import Check, Context, Finding
from tuner.data.record import Record
from tuner.safe_text import quoted


def _every(context: Context) -> Iterator[Record]:
    for records in context.splits.records.values():
        yield from records


def _blank(text: str) -> bool:
    """No visible character: white space, control and zero-width characters alone."""
    return all(unicodedata.category(c) in {"Cc", "Cf", "Zs", "Zl", "Zp"} for c in text)


def empty_completion(context: Context) -> Iterator[Finding]:
    """A completion without a visible character teaches the model to say nothing."""
    for record in _every(context):
        if _blank(record.completion):
            yield context.found(record, "EMPTY", "completion", quoted(record.completion), "text with at least one visible character",
                                f"delete line {record.line}, or set data.checks.empty_completion: drop")  # fmt: skip


def empty_prompt(context: Context) -> Iterator[Finding]:
    """A user turn without a visible character."""
    for record in _every(context):
        for index, message in enumerate(record.prompt):
            if message.role == "user" and _blank(message.content):
                yield context.found(record, "EMPTY", f"messages[{index}]", quoted(message.content), "text with at least one visible character",
                                    f"delete line {record.line}, or set data.checks.empty_prompt: drop")  # fmt: skip


def json_completion(context: Context) -> Iterator[Finding]:
    """For data.task json: a completion that is not one JSON object."""
    if context.task != "json":
        return
    for record in _every(context):
        try:
            value = json.loads(record.completion)
        except (ValueError, RecursionError):  # ValueError: broken JSON, or a number of more than 4,300 digits
            value = None
        if not isinstance(value, dict):
            yield context.found(record, "NOT_JSON", "completion", quoted(record.completion), "one JSON object", f"mend or delete line {record.line}")


def control_tokens(context: Context) -> Iterator[Finding]:
    """Text that spells a special token of the tokenizer. It is encoded as plain text and never becomes one."""
    for record in _every(context):
        for index, message in enumerate(record.messages):
            spelt = sorted(t for t in context.control_texts if t in message.content)
            if spelt:
                yield context.found(record, "CONTROL_TEXT", f"messages[{index}]", ", ".join(quoted(t) for t in spelt[:3]),
                                    "text that spells no special token", "nothing is needed: it stays text; delete it if it came by accident")  # fmt: skip


def padded_label(context: Context) -> Iterator[Finding]:
    """For data.task label: white space around a label makes it another label."""
    if context.task != "label":
        return
    for record in _every(context):
        if record.completion.strip() and record.completion != record.completion.strip():
            yield context.found(record, "PADDED", "completion", quoted(record.completion), quoted(record.completion.strip()), "remove the white space")


CONTENT: dict[str, Check] = {
    "empty_completion": Check("a completion without visible text", empty_completion, "refuse"),
    "empty_prompt": Check("a user turn without visible text", empty_prompt, "refuse"),
    "json_completion": Check("task json: a completion that is not one JSON object", json_completion, "refuse"),
    "padded_label": Check("task label: white space around a label", padded_label, "refuse"),
    "control_tokens": Check("text that spells a special token (it stays text)", control_tokens, "warn"),
}
