"""Characters: the table of tests/data/test_text_checks.py, as files."""

from __future__ import annotations

from tests.data.samples import Sample, pair
from tests.data.test_text_checks import SAMPLES as TABLE

IN_SAMPLES = {"control_tokens"}  # its table spells special tokens of its own; the catalogue's sweep knows <|end|> alone

SAMPLES: dict[str, list[Sample]] = {
    name: [
        Sample({"train": [pair(*row) for row, _ in bad]}, [("train", line, code) for line, (_, found) in enumerate(bad, 1) for code, _ in found],
               {"train": [pair(*row) for row in good]}, {"task": task})
    ]
    for name, (task, bad, good) in TABLE.items()
    if name not in IN_SAMPLES
} | {
    "control_tokens": [
        Sample({"train": [pair("a <|end|> b", "x"), pair("b", "y"), pair("c", "<|end|>")]}, [("train", 1, "CONTROL_TEXT"), ("train", 3, "CONTROL_TEXT")],
               {"train": [pair("a <| end |> b", "<|END|>")]})
    ]
}  # fmt: skip
