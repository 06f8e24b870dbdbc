"""Checks that need token counts: rows longer than the recipe's limit or the base's context. Nothing is ever cut to fit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tuner.data.findings import Check, Finding, finding
from tuner.data.measure import Context


def overlong(context: Context) -> Iterator[Finding]:
    """A row longer than template.max_tokens or the base's context, prompt and completion together."""
    limits = [limit for limit in (context.scene.max_tokens, context.scene.context_tokens) if limit is not None]
    if not limits:
        return
    most = min(limits)
    name = "template.max_tokens" if most == context.scene.max_tokens else "the base's context"
    for position in np.flatnonzero(context.measures.tokens.sum(axis=1) > most).tolist():
        record = context.records[position]
        prompt, completion = context.measures.tokens[position].tolist()
        code = "PROMPT_OVERLONG" if prompt >= most else "OVERLONG"
        said = "the prompt alone fills it" if prompt >= most else f"{prompt + completion - most} of the completion's would be cut"
        yield finding(record, code, "messages", f"{prompt + completion} tokens ({prompt} prompt, {completion} completion): {said}",
                      f"at most {most} ({name})", "raise template.max_tokens, shorten the record, or set data.checks.overlong: drop")  # fmt: skip


LENGTH: dict[str, Check] = {"overlong": Check("a row longer than template.max_tokens or the base's context", "refuse", whole=overlong)}
