"""A thousand faults of twelve kinds planted in a hundred thousand records: all are found where they are, and nothing else is."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.data.planter import FAULTS, as_line, made_pair, plant
from tuner.data.checks import CHECKS
from tuner.data.doctor import examine
from tuner.data.findings import Scene
from tuner.data.spec import DataSpec
from tuner.data.splits import read_splits


def examined(folder: Path, records: int, faults: int) -> dict[str, Any]:
    """In a process of its own, where torch is not loaded, so that the doctor forks as it does for a user."""
    command = [sys.executable, "-m", "tests.data.planter", str(folder), str(records), str(faults)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=240, capture_output=True)
    told: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return told


def test_made_records_without_faults_give_no_finding(tmp_path: Path) -> None:
    told = examined(tmp_path, 10_000, 0)
    assert told["found"] == told["expected"] == []
    assert told["accounts"] == [["train.jsonl", 10_000, 10_000, 0], ["held_out.jsonl", 200, 200, 0]]


@pytest.mark.slow
def test_a_thousand_planted_faults_are_found_at_their_lines_and_nothing_else_is(tmp_path: Path) -> None:
    told = examined(tmp_path, 100_000, 1_000)
    expected, found = (Counter(map(tuple, told[name])) for name in ("expected", "found"))
    missed, false = expected - found, found - expected
    print(f"{1000 - missed.total()} of 1000 found, {false.total()} false, in {told['seconds']:.1f} s")
    assert not missed, sorted(missed)[:10]
    assert not false, sorted(false)[:10]
    kinds = Counter((check, code) for _, _, check, code in expected)
    assert len(FAULTS) == 12 and len(kinds) == 13 and expected.total() == 1_000 + kinds["contradictions", "CONTRADICTION"] // 2
    assert min(kinds.values()) > 20  # e-mail addresses and card numbers share their kind; a contradiction shows both its sides
    rejected = sum(n for (check, _), n in kinds.items() if check in {"unreadable", "structure"})
    assert told["accounts"] == [["train.jsonl", 100_000, 100_000 - rejected, rejected], ["held_out.jsonl", 2_000, 2_000, 0]]


def test_planting_is_the_same_every_time_and_differs_by_seed() -> None:
    one, again, other = plant(600, 60, seed=1), plant(600, 60, seed=1), plant(600, 60, seed=2)
    assert one == again and one.train != other.train and len(one.train) == 600 and len(one.held_out) == 12
    assert len(set(one.expected)) == len(one.expected) == 65


@pytest.mark.parametrize("action", ["warn", "drop"])
def test_overlong_records_are_found_by_the_real_tokenizer(encoder: Any, tmp_path: Path, action: str) -> None:
    from tuner.pipeline import count_tokens
    from tuner.template.tokens import Row

    dice = random.Random(4)
    pairs = [made_pair(dice) for _ in range(1_500)]
    bad = sorted(dice.sample(range(1_500), 40))
    for number, place in enumerate(bad):
        question, answer = pairs[place]
        more = " ".join(made_pair(dice)[0] for _ in range(5))
        pairs[place] = (f"{question} {more}", answer) if number % 2 else (question, f"{answer} {more}")
    (tmp_path / "train.jsonl").write_bytes(b"\n".join(map(as_line, pairs)) + b"\n")
    spec = DataSpec.model_validate({"train": "train.jsonl", "checks": {"overlong": action}})
    checked = examine(read_splits(spec, tmp_path, 0), Scene(spec, 256, 2048), {n: CHECKS[n] for n in ("overlong",)}, lambda of: count_tokens(encoder, of))
    assert [(f.line, f.code) for f in checked.findings] == [(p + 1, "PROMPT_OVERLONG" if n % 2 else "OVERLONG") for n, p in enumerate(bad)]
    kept = checked.splits["train"]
    assert len(kept) == (1_460 if action == "drop" else 1_500)
    if action == "warn":
        for (prompt, completion), (record, row) in zip(checked.context.measures.tokens.tolist(), encoder.rows_or_refusals(kept[:200]), strict=False):
            assert isinstance(row, Row) and (prompt, prompt + completion) == (row.prompt_tokens, len(row.input_ids)), record.where
        first = checked.findings[0]
        prompt, completion = checked.context.measures.tokens[bad[0]].tolist()
        assert first.found.startswith(f"{prompt + completion} tokens ({prompt} prompt, {completion} completion)") and "at most 256" in first.accepted
