"""A version folder and its evaluation, made without a model: real grading, scripted answers. It refuses to be realistic beyond that."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tuner.data.record import Message, Record
from tuner.durable import json_text
from tuner.evaluate.score import Graded, grade
from tuner.evaluate.spec import EvaluateSpec
from tuner.evaluate.suites import Item, Suite

LABELS = ["transfer", "pay_bill", "freeze_account", "none"]


def draw(*of: object) -> float:
    """A number in [0, 1) that depends on `of` alone."""
    return int.from_bytes(hashlib.sha256(repr(of).encode()).digest()[:6], "big") / 2**48


class Scripted:
    """Answers right with the chance `skill[role][suite]`, the same on every call. It knows the items by their last message."""

    def __init__(self, suites: Sequence[Suite], skill: dict[str, dict[str, float]]):
        self.truth = {item.messages[-1].content: (suite.name, item.references[0]) for suite in suites for item in suite.items}
        self.labels = sorted({reference for _, reference in self.truth.values()})
        self.skill = skill
        self.role = "adapter"

    @contextlib.contextmanager
    def as_base(self) -> Iterator[None]:
        self.role = "base"
        yield
        self.role = "adapter"

    def _right(self, question: Sequence[Message]) -> bool:
        suite, _ = self.truth[question[-1].content]
        return draw(self.role, question[-1].content) < self.skill[self.role][suite]

    def answer_many(self, questions: Any, max_new_tokens: int, done: Any = None) -> list[str]:
        said = []
        for question in questions:
            reference = self.truth[question[-1].content][1]
            others = [label for label in self.labels if label != reference]
            said.append(reference if self._right(question) else others[int(draw(question[-1].content) * len(others))])
        return said

    def label_scores(self, questions: Any, labels: Sequence[str], done: Any = None) -> Any:
        answers = self.answer_many(questions, 1)
        return np.array([[float(label == answer) for label in labels] for answer in answers])

    def losses(self, questions: Any, answers: Sequence[str], done: Any = None) -> list[tuple[float, int]]:
        return [((0.1 if self._right(q) else 3.0) + draw("loss", q[-1].content), 3) for q in questions]


def suite(name: str, rows: Sequence[tuple[str, str]], file: str) -> Suite:
    items = tuple(Item((Message("user", q),), (a,), f"{file}:{i + 1}") for i, (q, a) in enumerate(rows))
    return Suite(name, "held_out" if name == "held_out" else "ood", items, "sha256:" + hashlib.sha256(name.encode()).hexdigest())


def graded(suites: Sequence[Suite], skill: dict[str, dict[str, float]], resamples: int = 1000) -> Graded:
    labels = sorted({item.references[0] for s in suites for item in s.items})
    train = [Record((Message("user", f"train {i}"), Message("assistant", label)), "train.jsonl", i + 1, "train") for i, label in enumerate(labels * 3)]
    return grade(Scripted(suites, skill), suites, train, EvaluateSpec(resamples=resamples), "label", 42)


def toy_suites(sizes: dict[str, int]) -> list[Suite]:
    return [suite(name, [(f"{name} question {i}", LABELS[i % 4]) for i in range(n)], f"data/{name}.jsonl") for name, n in sizes.items()]


def write_evaluation(folder: Path, scores: Graded, name: str = "banking-intents", **manifest: Any) -> tuple[Path, Path]:
    """The files write_report reads: a version folder and an evaluation folder inside it."""
    version, evaluation = folder / "1", folder / "1" / "evaluations" / "one"
    evaluation.mkdir(parents=True)
    facts = {"version": f"{name}@1", "created": "2026-11-20T07:59:52+00:00", "precision": "bfloat16 weights"}
    (evaluation / "scores.json").write_text(json_text({**scores.scores, **facts}), encoding="utf-8")
    (evaluation / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores.answers), encoding="utf-8")
    (version / "manifest.json").write_text(json_text({**MANIFEST, "name": name, **manifest}), encoding="utf-8")
    (version / "findings.json").write_text(json_text(FINDINGS), encoding="utf-8")
    (version / "train_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TRAIN_LOG), encoding="utf-8")
    (version / "recipe.yaml").write_text("# A toy recipe.\nname: banking-intents\n", encoding="utf-8")
    return version, evaluation


def _digest(of: str) -> str:
    return "sha256:" + hashlib.sha256(of.encode()).hexdigest()


def _file(split: str, file: str, read: int, dropped: int = 0, rejected: int = 0) -> dict[str, Any]:
    return {"split": split, "file": file, "digest": _digest(file), "read": read, "kept": read - dropped - rejected, "dropped": dropped, "rejected": rejected}


def _finding(check: str, line: int, severity: str) -> dict[str, Any]:
    return {
        "check": check, "code": check, "severity": severity, "file": "data/train.jsonl", "line": line, "record_id": "0123456789ab", "field": "completion",
        "found": f"found {line}", "accepted": "something else", "fix": f"delete line {line}",
    }  # fmt: skip


FINDINGS = [_finding("exact_duplicate", line, "note") for line in range(3, 27)] + [_finding("placeholder", 9, "warning")]
TRAIN_LOG: list[dict[str, Any]] = [
    *({"step": i, "epoch": i / 38, "loss": round(3.19 * 0.9**i + 0.02, 4), "seconds": i * 1.1, "tokens": i * 580} for i in range(1, 77)),
    {"step": 38, "epoch": 1.0, "seconds": 43.9, "tokens": 21764, "validation_loss": 0.0529},
    {"step": 76, "epoch": 2.0, "seconds": 86.4, "tokens": 43528, "validation_loss": 0.0278},
]
MANIFEST: dict[str, Any] = {
    "version": 1, "seed": 42, "task": "label", "created": "2026-11-20T07:58:30+00:00", "recipe_digest": _digest("recipe"),
    "method": {"kind": "lora", "rank": 16, "alpha": 32.0, "dropout": 0.0, "targets": "all-linear"},
    "base": {"name": "smollm2-135m-instruct", "origin": "a package registry", "revision": _digest("revision"), "weight_digest": _digest("weights")},
    "base_loss": {"limit": 7.562, "plain_text": 3.557, "records": 4.453},
    "data": {
        "dropped": {"exact_duplicate": 24}, "findings": {"error": 0, "warning": 1, "note": 24}, "trained": 276,
        "files": [_file("train", "data/train.jsonl", 300, dropped=24), _file("validation", "data/validation.jsonl", 160),
                  _file("held_out", "data/held_out.jsonl", 141, rejected=1), _file("ood.near", "data/near.jsonl", 96)],
        "splits": {"train": {"records": 276, "digest": _digest("t")}, "held_out": {"records": 140, "digest": _digest("h")}},
    },
    "template": {"spec": {"system": "Sort the sentence into one word.\nAnswer with that word alone."}, "digest": _digest("template")},
    "training": {"steps": 76, "tokens": 43528, "completion_tokens": 2136, "seconds": 86.72, "first_loss": 3.19, "last_loss": 0.001, "peak_bytes": 2931806208,
                 "tokens_per_second": 501.96, "plan": {"steps": 76, "seconds": 98.4, "tokens_per_second": 440.0, "peak_bytes": 3100000000}},
    "code": {"commit": "a120072e", "dirty": True}, "versions": {"peft": "0.21.2", "torch": "2.13.0+cpu", "trl": "1.16.0"},
    "hardware": {"cores": 2, "cpu": "AMD EPYC", "memory_bytes": 25276510208, "system": "Linux"},
    "files": {"adapter_model.safetensors": {"bytes": 19593064, "digest": _digest("adapter")}},
}  # fmt: skip
