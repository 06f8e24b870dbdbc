"""Where records come from and when they were true."""

from __future__ import annotations

import datetime
import random

from tests.data.samples import Row, Sample, pair


def written_from_one_template(count: int) -> list[Row]:
    return [pair(f"question {i}", f"Thank you for writing to us about order {i}. We are glad to tell you that it was sent on monday.") for i in range(count)]


def written_freely() -> list[Row]:
    """Letters in any order: nothing repeats."""
    dice = random.Random(1)
    return [pair(f"question {i}", "".join(dice.choices("abcdefghijklmnopqrstuvwxyz ", k=200))) for i in range(100)]


SAMPLES: dict[str, list[Sample]] = {
    "synthetic_grades": [
        Sample({"train": [pair("a", "x", source="production")],
                "held_out": [pair("b", "x", source="synthetic"), pair("c", "x", source="human"), pair("d", "x")]},
               [("held_out", 1, "SYNTHETIC_GRADES")],
               {"train": [pair("a", "x", source="synthetic"), pair("b", "x", source="production")], "held_out": [pair("c", "x", source="human")]}),
        Sample({"train": [pair("a", "x")], "held_out": [pair("b", "x", source="human"), pair("c", "x")], "production": [pair("d", "")]},
               [("held_out", 2, "SYNTHETIC_GRADES")],
               {"train": [pair("a", "x")], "held_out": [pair("b", "x", source="human")], "production": [pair("d", "")]}, {"held_out": {"source": "synthetic"}}),
        Sample({"train": [pair("a", "x")], "held_out": [pair("b", "x", source="synthetic"), pair("c", "x")]}, [("held_out", 0, "SYNTHETIC")],
               {"train": [pair("a", "x", source="synthetic")], "held_out": [pair("c", "x")]}),
    ],
    "templates": [
        Sample({"train": written_from_one_template(700)}, [("train", 0, "TEMPLATE")], {"train": written_freely()}),
        Sample({"train": [{**row, "source": "synthetic"} for row in written_freely()]}, [("train", 0, "SYNTHETIC_SHARE")],
               {"train": [{**row, "source": "human"} for row in written_freely()]}),
    ],
    "stale": [
        Sample({"train": [pair("a", "x", as_of="2023-05-01"), pair("b", "x", as_of="2025-05-01"), pair("c", "As of 2022 it was so."),
                          pair("d", "It was sent on 2025-06-01.", as_of="2025-05-01")]},
               [("train", 0, "STALE_SHARE"), ("train", 1, "STALE"), ("train", 3, "STALE_TEXT"), ("train", 4, "LATER_DATE")],
               {"train": [pair("a", "x", as_of="2025-05-01"), pair("b", "As of 2025 it is so."), pair("c", "It was sent on 2025-04-01.", as_of="2025-05-01"),
                          pair("d", "x")]}, {"fresh_since": datetime.date(2025, 1, 1)}),
        Sample({"train": [pair("a", "x"), pair("b", "x", as_of="2025-02-01")]}, [("train", 0, "STALE_SHARE"), ("train", 1, "STALE")],
               {"train": [pair("b", "x", as_of="2025-02-01")]}, {"fresh_since": datetime.date(2025, 1, 1), "train": {"as_of": datetime.date(2024, 12, 31)}}),
    ],
    "provenance": [
        Sample({"train": [pair("a", "x", source="Synthetic"), pair("b", "x", as_of="01.02.2025"), pair("c", "x", as_of="2025-02-30")]},
               [("train", 1, "SOURCE"), ("train", 2, "AS_OF"), ("train", 3, "AS_OF")],
               {"train": [pair("a", "x", source="synthetic", as_of="2025-02-01"), pair("b", "x", source="a book", as_of=""), pair("c", "x", as_of=None)]}),
    ],
}  # fmt: skip
