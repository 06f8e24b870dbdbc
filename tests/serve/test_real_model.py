"""The quickstart's real base, served: minutes, so it is not in the short suite."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tuner
from tests.conftest import SAMPLES, colour_rows, jsonl
from tests.serve.conftest import start
from tuner import pipeline
from tuner.recipe import load_recipe

pytestmark = pytest.mark.slow


def test_a_real_adapter_answers_eight_clients_as_it_answers_in_python_and_ctrl_c_ends_it(smollm2: Any, tmp_path: Path) -> None:
    import json

    jsonl(tmp_path / "train.jsonl", colour_rows(24))
    recipe = {
        "name": "colours", "base": {"model": "smollm2-135m-instruct"}, "data": {"task": "label", "train": "train.jsonl"},
        "template": {"system": "Name it.", "max_tokens": 128}, "train": {"epochs": 2, "peak_learning_rate": 1e-3},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    pipeline.run(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "store", grade_after=False)
    lines = (SAMPLES / "clinc150" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    questions = [row["prompt"] for row in colour_rows(12, 300)] + [json.loads(line)["prompt"] for line in lines]
    with tuner.load_adapter("colours@1", tmp_path / "store", load="fp32") as adapter:
        wanted = adapter.answer_many(questions, 16)
    running = start(tmp_path / "store", None, "colours@1", log=tmp_path / "log")
    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda q: running.answer(q, "colours@1", max_tokens=16), questions)) == wanted
        made = running.client().chat.completions.create(model="colours@1", messages=[{"role": "user", "content": questions[0]}])
        assert made.choices[0].finish_reason == "stop"
        assert running.stop(signal.SIGINT) == 130
    finally:
        running.process.kill()
        running.process.wait()
