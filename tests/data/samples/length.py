"""Rows longer than they may be; a token is a word here."""

from __future__ import annotations

from tests.data.samples import Sample, pair

SAMPLES: dict[str, list[Sample]] = {
    "overlong": [
        Sample({"train": [pair("a b c", "d e"), pair("a b c", "d e f"), pair("a b c d e", "f")], "held_out": [pair("a", "b c d e f g")]},
               [("train", 2, "OVERLONG"), ("train", 3, "PROMPT_OVERLONG"), ("held_out", 1, "OVERLONG")],
               {"train": [pair("a b c", "d e"), pair("a", "b c d e")]}, max_tokens=5),
    ],
}  # fmt: skip
