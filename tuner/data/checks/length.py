"""Checks that need token counts: rows longer than the recipe's limit. Nothing is ever cut to fit."""

from __future__ import annotations

from collections.abc import Iterator

from tuner.data.findings import Check, Context, Finding


def overlong(context: Context) -> Iterator[Finding]:
    """A row longer than template.max_tokens, prompt and completion together."""
    for records in context.splits.records.values():
        for record in records:
            prompt, completion = context.row_tokens.get((record.file, record.line), (0, 0))
            if prompt + completion > context.max_tokens:
                yield context.found(record, "OVERLONG", "messages", f"{prompt + completion} tokens ({prompt} prompt, {completion} completion)",
                                    f"at most {context.max_tokens} (template.max_tokens)",
                                    "raise template.max_tokens, shorten the record, or set data.checks.overlong: drop")  # fmt: skip


LENGTH: dict[str, Check] = {"overlong": Check("a row longer than template.max_tokens", overlong, "refuse")}
