"""Tasks of the lm-evaluation-harness: the real one over a local task file, against likelihoods computed by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import jsonl
from tests.evaluate.test_forgetting import TASK, logits_of, train, wrapped
from tuner.base import BaseSpec, resolve_base
from tuner.errors import Refusal
from tuner.evaluate.lm_eval import _rows, lm_eval_tasks, refuse_missing, result_of

QUESTIONS = [{"question": f"{a} and {b} make", "choices": [str(a + b), str(a + b + 1), str(a + b + 2)], "right": 0} for a in range(2, 6) for b in range(2, 5)]
TASK_FILE = """
task: little_sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{right}}}}"
metric_list:
  - metric: acc
"""


def test_named_tasks_without_the_harness_are_refused_with_what_to_install() -> None:
    refuse_missing([], "recipe")
    if importlib.util.find_spec("lm_eval") is not None:
        pytest.skip("the harness is installed here")
    with pytest.raises(Refusal, match=r"tuner-lora\[lm-eval\]"):
        refuse_missing(["hellaswag"], "recipe")


def test_a_local_task_is_scored_for_base_and_adapter_as_a_pass_for_each_choice_scores_it(tiny_base: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "little_sums.yaml").write_text(TASK_FILE.format(file=jsonl(tmp_path / "sums.jsonl", QUESTIONS)), encoding="utf-8")
    adapter = wrapped(resolve_base(BaseSpec(model=str(tiny_base), sanity="off"), Path()))
    train(adapter, TASK, 30, 1e-2)
    result = lm_eval_tasks(adapter.decoder.model, tiny_base, ["little_sums"], tmp_path / "tasks", None, 4, 1000, 0)
    assert result.n == len(QUESTIONS) == 12
    encode = adapter.encoder.tokenizer.encode
    for contender in ("base", "adapter"):
        right = []
        for asked in QUESTIONS:
            prompt = encode(asked["question"]).ids
            scores = []
            for choice in asked["choices"]:
                ids = encode(f"{asked['question']} {choice}").ids
                table = logits_of(adapter, ids, contender == "base")
                scores.append(sum(float(table[i - 1, ids[i]]) for i in range(len(prompt), len(ids))))
            right.append(float(scores.index(max(scores)) == asked["right"]))
        own: list[dict[str, Any]] = [r for r in result.rows if r["contender"] == contender]
        assert [r["scores"]["little_sums.acc"] for r in own] == right
        assert result.values[contender]["little_sums.acc"].value == pytest.approx(sum(right) / 12)
    with pytest.raises(Refusal, match="no_such_task"):
        lm_eval_tasks(adapter.decoder.model, tiny_base, ["no_such_task"], tmp_path / "tasks", None, 4, 1000, 0)


def logged(filters: tuple[str, ...], right: float) -> tuple[dict[str, list[dict[str, Any]]], dict[str, dict[str, bool]]]:
    """What the harness logs of five questions: each once a filter."""
    items = [{"doc_id": i, "doc_hash": f"h{i}", "target": "1", "filter": f, "metrics": ["exact_match"], "exact_match": float(f == filters[-1]) * right}
             for f in filters for i in range(5)]  # fmt: skip
    return {"gsm8k": items}, {"gsm8k": {"exact_match": True}}


def test_each_filter_of_a_task_is_a_metric_of_its_own_on_the_same_questions() -> None:
    filters = ("strict-match", "flexible-extract")
    result = result_of([*_rows(logged(filters, 0.0), "base"), *_rows(logged(filters, 1.0), "adapter")], 1000, 0)
    assert result.n == 5 and len(result.rows) == 10
    ours = {name: (found.value, found.n) for name, found in result.values["adapter"].items()}
    assert ours == {"gsm8k.exact_match.strict-match": (0.0, 5), "gsm8k.exact_match.flexible-extract": (1.0, 5)}
    assert result.differences["gsm8k.exact_match.flexible-extract"].value == 1.0 and result.metrics["gsm8k.exact_match.strict-match"].higher_is_better
    assert set(result_of([*_rows(logged(("none",), 0.0), "base"), *_rows(logged(("none",), 1.0), "adapter")], 1000, 0).metrics) == {"gsm8k.exact_match"}


def test_a_task_whose_data_is_not_here_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "far.yaml").write_text(TASK_FILE.format(file=tmp_path / "nothing.jsonl").replace("little_sums", "far_sums"), encoding="utf-8")
    adapter = wrapped(resolve_base(BaseSpec(model=str(tiny_base), sanity="off"), Path()))
    with pytest.raises(Refusal, match="on this machine"):
        lm_eval_tasks(adapter.decoder.model, tiny_base, ["far_sums"], tmp_path, None, 4, 1000, 0)
