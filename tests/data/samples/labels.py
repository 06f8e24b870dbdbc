"""A closed set of labels."""

from __future__ import annotations

import json

from tests.conftest import SAMPLES as FOLDER
from tests.data.samples import Row, Sample, pair


def real_rows() -> list[Row]:
    """Bank questions with their intents, from CLINC150."""
    return [json.loads(line) for line in (FOLDER / "clinc150" / "train.jsonl").read_text(encoding="utf-8").splitlines()]


def labelled(**counts: int) -> list[Row]:
    """As many records of each label as it says, no prompt twice."""
    return [pair(f"{label} question {i}", label) for label, count in counts.items() for i in range(count)]


def with_wrong_labels(lines: list[int]) -> list[Row]:
    rows = real_rows()
    for line in lines:
        other = "pay_bill" if rows[line - 1]["completion"] != "pay_bill" else "pin_change"
        rows[line - 1] = {**rows[line - 1], "completion": other}
    return rows


SAMPLES: dict[str, list[Sample]] = {
    "rare_labels": [
        Sample({"train": labelled(red=9, blue=4, green=1)}, [*(("train", line, "RARE") for line in range(10, 14)), ("train", 14, "ONCE")],
               {"train": labelled(red=9, blue=5)}, {"task": "label"}),
        Sample({"train": labelled(red=500, blue=10)}, [("train", 0, "IMBALANCE")], {"train": labelled(red=490, blue=10)}, {"task": "label"}),
    ],
    "similar_labels": [
        Sample({"train": labelled(pay_bill=6, Pay_Bills=2, transfer=5, report_fraud=5, report_frayd=1)},
               [("train", 7, "SIMILAR_LABELS"), ("train", 19, "SIMILAR_LABELS")],
               {"train": labelled(pay_bill=3, pay_loan=3, transfer=3, level_1=3, level_2=3)}, {"task": "label"}),
    ],
    "unseen_label": [
        Sample({"train": [pair("a", "x"), pair("b", "y")], "held_out": [pair("c", "x"), pair("d", "new"), pair("e", "new")], "ood.far": [pair("f", "new")]},
               [("held_out", 2, "UNSEEN_LABEL"), ("held_out", 3, "UNSEEN_LABEL"), ("ood.far", 1, "UNSEEN_LABEL")],
               {"train": [pair("a", "x"), pair("b", "y")], "held_out": [pair("c", "y")]}, {"task": "label"}),
    ],
    "suspect_labels": [
        Sample({"train": with_wrong_labels([12, 150])}, [("train", 0, "HOW_SURE"), ("train", 12, "SUSPECT_LABEL"), ("train", 150, "SUSPECT_LABEL")],
               {"train": real_rows()}, {"task": "label"}),
    ],
    "label_task": [
        Sample({"train": labelled(red=60, blue=60)}, [("train", 0, "LOOKS_LIKE_LABELS")],
               {"train": [pair(f"question {i}", f"answer {i}") for i in range(120)]}),
    ],
}  # fmt: skip
