"""The catalogue of checks, one family a file. Each has a default a careful person would choose; the recipe may set another."""

from __future__ import annotations

from tuner.data.checks.content import CONTENT
from tuner.data.checks.length import LENGTH
from tuner.data.checks.sameness import SAMENESS
from tuner.data.findings import Check

CHECKS: dict[str, Check] = {**CONTENT, **SAMENESS, **LENGTH}
