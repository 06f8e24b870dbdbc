"""Personal data out of every record, before anything else looks at it: typed placeholders, the same for the same value everywhere.

It changes nothing that the recipe did not name under data.redact, and counts every replacement.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuner.data.personal import Redactor
from tuner.data.record import Message, Record
from tuner.data.splits import Splits


def redacted(splits: Splits, kinds: Sequence[str], json_answers: bool = False) -> tuple[Splits, Counter[str]]:
    """The splits without values of these kinds, and how many of each kind were replaced. Numbering follows the order of reading.

    With `json_answers` an answer that is JSON stays JSON: a number in it gives way to a placeholder in quotes.
    """
    counts: Counter[str] = Counter()
    if not kinds:
        return splits, counts
    pen = _Pen(Redactor(kinds), counts, json_answers)
    records = {split: [pen.record(r) for r in of] for split, of in splits.records.items()}
    return replace(splits, records=records, production=[pen.record(r) for r in splits.production]), counts


@dataclass(frozen=True)
class _Pen:
    """Redacts whatever a record is made of, and counts."""

    redactor: Redactor
    counts: Counter[str]
    json_answers: bool

    def record(self, record: Record) -> Record:
        extra = {self.text(key): self.value(of) for key, of in record.extra.items()}
        return Record(tuple(self.message(m) for m in record.messages), record.file, record.line, record.split, extra)

    def message(self, message: Message) -> Message:
        is_json = self.json_answers and message.role == "assistant"
        return Message(
            message.role, self.nested(message.content) if is_json else self.text(message.content), self.json_text(message.tool_calls),
            message.tool_call_id, None if message.name is None else self.text(message.name), message.weight, self.json_text(message.tools),
        )  # fmt: skip

    def json_text(self, text: str | None) -> str | None:
        return None if text is None else json.dumps(self.value(json.loads(text)), ensure_ascii=False, sort_keys=True)

    def text(self, text: str) -> str:
        said, found = self.redactor.redact(text)
        self.counts.update(found)
        return said

    def nested(self, text: str) -> str:
        """A text that may itself be JSON, as the arguments of a tool call are: then its values are redacted and it stays JSON."""
        if text.lstrip()[:1] not in ("{", "["):
            return self.text(text)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return self.text(text)
        hidden = self.value(value)
        return text if hidden == value else json.dumps(hidden, ensure_ascii=False)

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.nested(value)
        if isinstance(value, int) and not isinstance(value, bool):
            said = self.text(str(value))
            return value if said == str(value) else said
        if isinstance(value, dict):
            return {self.text(str(key)): self.value(of) for key, of in value.items()}
        return [self.value(of) for of in value] if isinstance(value, list) else value
