"""Personal data out of every record, before anything else looks at it: typed placeholders, the same for the same value everywhere.

It changes nothing that the recipe did not name under data.redact, and counts every replacement.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tuner.data.personal import Redactor
from tuner.data.record import Message, Record
from tuner.data.splits import Splits


def redacted(splits: Splits, kinds: Sequence[str]) -> tuple[Splits, Counter[str]]:
    """The splits without values of these kinds, and how many of each kind were replaced. Numbering follows the order of reading."""
    counts: Counter[str] = Counter()
    if not kinds:
        return splits, counts
    redactor = Redactor(kinds)
    records = {split: [_record(r, redactor, counts) for r in of] for split, of in splits.records.items()}
    production = [_record(r, redactor, counts) for r in splits.production]
    return replace(splits, records=records, production=production), counts


def _record(record: Record, redactor: Redactor, counts: Counter[str]) -> Record:
    messages = tuple(_message(m, redactor, counts) for m in record.messages)
    extra = {key: _value(of, redactor, counts) for key, of in record.extra.items()}
    return Record(messages, record.file, record.line, record.split, extra)


def _message(message: Message, redactor: Redactor, counts: Counter[str]) -> Message:
    content, found = redactor.redact(message.content)
    counts.update(found)
    calls = message.tool_calls
    if calls is not None:
        calls = json.dumps(_value(json.loads(calls), redactor, counts), ensure_ascii=False, sort_keys=True)
    return message.saying(content, calls, message.tools)


def _value(value: Any, redactor: Redactor, counts: Counter[str]) -> Any:
    """Texts inside a tool call's arguments; the JSON round them stays JSON."""
    if isinstance(value, str):
        text, found = redactor.redact(value)
        counts.update(found)
        return text
    if isinstance(value, dict):
        return {key: _value(of, redactor, counts) for key, of in value.items()}
    return [_value(of, redactor, counts) for of in value] if isinstance(value, list) else value
