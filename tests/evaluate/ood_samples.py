"""The shipped samples as questions that can be changed: labels (clinc150), JSON (multidogo), fields and JSON fields (e2e_nlg)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.conftest import SAMPLES
from tuner.data.record import Message, Record
from tuner.evaluate.perturb import Asked
from tuner.evaluate.suites import Item, Suite, suite_of

BANKING = ("freeze_account", "pin_change", "pay_bill", "interest_rate", "transfer", "order_checks", "report_fraud", "none")
SYSTEM = {
    "clinc150": f"Sort the customer's sentence into one of: {', '.join(BANKING)}. Answer with that word alone.",
    "multidogo": 'Read the customer\'s message and answer with one JSON object: {"intent": [intents], "slots": {slot name: [values]}}. '
    "Intents: changeorder, outofdomain, thankyou. Values are copied from the message. No slots: {}.",
    "e2e": "Write one or two sentences that say exactly what the attributes say.",
    "e2e_json": "Write one or two sentences that say exactly what the attributes say.",
}
TASK = {"clinc150": "label", "multidogo": "json", "e2e": "text", "e2e_json": "text"}


def _rows(name: str, split: str) -> Iterator[tuple[str, str, Path, int]]:
    if name.startswith("e2e"):
        path = SAMPLES / "e2e_nlg" / ("ood_json.csv" if name == "e2e_json" else f"{split}.csv")
        with open(path, encoding="utf-8", newline="") as handle:
            yield from ((row["mr"], row["ref"], path, line) for line, row in enumerate(csv.DictReader(handle), 2))
        return
    path = SAMPLES / name / f"{split}.jsonl"
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        row: Any = json.loads(text)
        turns = row.get("messages") or [{"content": row["prompt"]}, {"content": row["completion"]}]
        yield turns[0]["content"], turns[-1]["content"], path, line


def records(name: str, split: str) -> list[Record]:
    return [Record((Message("user", q), Message("assistant", a)), str(path), line, split) for q, a, path, line in _rows(name, split)]


@lru_cache(maxsize=8)
def held_out(name: str) -> Suite:
    groups: dict[str, list[str]] = {}
    for question, answer, _, _ in _rows(name, "held_out"):
        groups.setdefault(question, []).append(answer)
    items = [Item((Message("user", q),), tuple(answers), f"{name}:{i}") for i, (q, answers) in enumerate(groups.items())]
    return suite_of("held_out", "held_out", items)


def asked(name: str, seed: int = 0) -> list[Asked]:
    labels = BANKING if name == "clinc150" else ()
    return [Asked(i.messages, i.references, labels, SYSTEM[name], seed) for i in held_out(name).items]
