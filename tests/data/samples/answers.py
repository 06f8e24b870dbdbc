"""What an answer says: the table of tests/data/test_answer_checks.py, as files."""

from __future__ import annotations

from tests.data.samples import Sample, pair
from tests.data.test_answer_checks import SAMPLES as TABLE

SAMPLES: dict[str, list[Sample]] = {
    name: [
        Sample({"train": [pair(*row) for row, _, _ in bad]}, [("train", line, code) for line, (_, code, _) in enumerate(bad, 1)],
               {"train": [pair(*row) for row in good]})
    ]
    for name, (bad, good) in TABLE.items()
}  # fmt: skip
