"""The bench that tests of training work on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train.jobs import Bench


@pytest.fixture
def bench(recipe_file: Callable[..., Path], tmp_path: Path) -> Bench:
    return Bench(recipe_file(), tmp_path)
