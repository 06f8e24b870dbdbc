"""What train teaches against what production asks; answers that belong to other questions. Real questions, so that the embeddings know the words."""

from __future__ import annotations

import csv
import itertools
import json
import random

from tests.conftest import SAMPLES as FOLDER
from tests.data.planter import made_pair
from tests.data.samples import Row, Sample, pair


def asked(*files: str) -> list[Row]:
    return [json.loads(line) for name in files for line in (FOLDER / "clinc150" / name).read_text(encoding="utf-8").splitlines()]


def restaurants(count: int) -> list[Row]:
    """Sentences about restaurants, none of which a bank's customer would say."""
    with open(FOLDER / "e2e_nlg" / "held_out.csv", encoding="utf-8", newline="") as file:
        return [{"prompt": row["ref"]} for row in itertools.islice(csv.DictReader(file), count)]


def made(count: int) -> list[Row]:
    """Questions and answers about the same things, no two alike."""
    dice = random.Random(count)
    return [pair(*made_pair(dice)) for _ in range(count)]


def exchanged(rows: list[Row], one: int, other: int) -> list[Row]:
    """The rows, with the answers on two lines exchanged."""
    rows = list(rows)
    a, b = rows[one - 1], rows[other - 1]
    rows[one - 1], rows[other - 1] = {**a, "completion": b["completion"]}, {**b, "completion": a["completion"]}
    return rows


MEDOIDS = (3, 8, 10, 11, 13, 14, 16, 17, 19, 20, 21, 23, 24, 25, 35, 48, 49, 58, 71, 127)  # of what a bank is not asked, from far to near, first 20 clusters

SAMPLES: dict[str, list[Sample]] = {
    "coverage": [
        Sample({"train": [row for row in asked("train.jsonl") if row["completion"] != "none"],
                "production": [*asked("ood_out_of_scope.jsonl"), *restaurants(60)]},
               [("production", 0, "COVERED"), ("train", 27, "OVER_REPRESENTED"), *(("production", line, "UNCOVERED") for line in MEDOIDS)],
               {"train": asked("train.jsonl", "validation.jsonl")}),
    ],
    "redundancy": [
        Sample({"train": [*asked("train.jsonl"), *({**row, "prompt": f"{row['prompt']} please"} for row in asked("train.jsonl")[:100])]},
               [("train", 0, "REDUNDANT")], {"train": asked("train.jsonl")}),
    ],
    "wrong_answers": [
        Sample({"train": exchanged(made(150), 20, 90)}, [("train", 20, "WRONG_ANSWER"), ("train", 90, "WRONG_ANSWER")], {"train": made(150)}),
        Sample({"train": [{**row, "completion": other["completion"]} for row, other in zip(made(150), made(151), strict=False)]}, [("train", 0, "UNRELATED")],
               {"train": made(90)}),
    ],
}  # fmt: skip
