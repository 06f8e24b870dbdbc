"""One browser for all tests of a page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.browser import CHROMIUM, Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(CHROMIUM or "chromium") as opened:
        yield opened


@pytest.fixture(scope="module")
def report(evaluation: Path) -> dict[str, Any]:
    """report.json of the module's own `evaluation`."""
    loaded: dict[str, Any] = json.loads((evaluation / "report.json").read_text(encoding="utf-8"))
    return loaded
