"""The catalogue of checks, one family a file. Each has a default a careful person would choose; the recipe may set another."""

from __future__ import annotations

from tuner.data.checks.answers import ANSWERS
from tuner.data.checks.coverage import COVERAGE
from tuner.data.checks.fit import FIT
from tuner.data.checks.formats import FORMATS
from tuner.data.checks.labels import LABELS
from tuner.data.checks.language import LANGUAGE
from tuner.data.checks.length import LENGTH
from tuner.data.checks.personal import PERSONAL
from tuner.data.checks.provenance import PROVENANCE
from tuner.data.checks.sameness import SAMENESS
from tuner.data.checks.text import TEXT
from tuner.data.findings import Check

READING: dict[str, Check] = {
    "files": Check("a file that cannot be read as what its name says: missing, empty, packed wrongly, not UTF-8, too large", "refuse", actions=("refuse",)),
    "unreadable": Check(
        "a line or row that is not one strict object: broken, cut, repeated keys, NaN, too long, too deep, not UTF-8", "refuse", actions=("refuse", "drop")
    ),
    "boundary": Check("a tokenizer that merges prompt and answer: the prompt that is served decides where the answer starts", "warn", actions=("warn", "off")),
    "structure": Check(
        "a record of no known or of another shape; roles, types and order of turns; tool calls without results", "refuse", actions=("refuse", "drop")
    ),
    "template": Check("a record that the chat template cannot render, or after which it never stops", "refuse", actions=("refuse", "drop")),
}

WITH_BASE: dict[str, Check] = {
    "base_misfits": Check("check --with-base: an answer that its prompt makes no likelier to the base model, and that is unlike it in words", "warn",
                          actions=("refuse", "warn", "off"), needs_base=True),
}  # fmt: skip

CHECKS: dict[str, Check] = {
    **READING, **TEXT, **LENGTH, **SAMENESS, **LABELS, **PERSONAL, **LANGUAGE, **ANSWERS, **FIT, **FORMATS, **PROVENANCE, **COVERAGE, **WITH_BASE
}  # fmt: skip
