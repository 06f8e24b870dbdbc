"""scripts/bench_train: the others get tuner's rows in tuner's order, and no figure is judged that must not be. Nothing is timed here."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, colour_rows, jsonl
from tests.train.jobs import Bench


@pytest.fixture(scope="module")
def script() -> Any:
    """The script as a module; it has no .py in its name."""
    loader = importlib.machinery.SourceFileLoader("bench_train", str(ROOT / "scripts" / "bench_train"))
    spec = importlib.util.spec_from_loader("bench_train", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_train"] = module
    loader.exec_module(module)
    yield module
    del sys.modules["bench_train"]


def asked(recipe: Path, **changes: Any) -> dict[str, Any]:
    return {"recipe": str(recipe), "steps": 5, "gpu": False, "fp32": True, "base": "tiny", "keep_base": None, "tokens_per_step": 512, **changes}


def run_of(script: Any, system: str, losses: list[float], **changes: Any) -> Any:
    same = {"wall": 1.0, "cpu": 1.0, "other_cores": 0.0, "peak_bytes": 1, "whole_wall": 1.0, "whole_cpu": 1.0, "load_average": 0.0}
    return script.Run(system=system, losses=losses, rates=[1e-3] * len(losses), seen=[100.0 * (i + 1) for i in range(len(losses))], **{**same, **changes})


def test_the_others_read_the_rows_that_tuners_trainer_draws_step_by_step(script: Any, recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    from pyarrow import parquet

    recipe = recipe_file()
    jsonl(tmp_path / "train.jsonl", colour_rows(45))  # five steps of 8 and five rows over
    folder = tmp_path / "job"
    folder.mkdir()
    script.prepare(folder, asked(recipe))
    read = parquet.read_table(folder / "rows" / "train.parquet").to_pydict()
    job = json.loads((folder / "job.json").read_text())
    assert "data.train.take=40" in job["overrides"]
    taken = recipe_file(data={"task": "label", "train": {"files": ["train.jsonl"], "take": 40}, "validation": "validation.jsonl"})
    jsonl(tmp_path / "train.jsonl", colour_rows(45))
    trainer = Bench(taken, tmp_path / "scratch")
    items = trainer.trainer(trainer.job(epochs=1.0)).step_rows
    for number in range(5):
        drawn = [tuple(ids[: int(mask.sum())].tolist()) for m in items[number].micros for ids, mask in zip(m["input_ids"], m["attention_mask"], strict=True)]
        assert sorted(map(tuple, read["input_ids"][8 * number : 8 * number + 8])) == sorted(drawn)


def test_rows_of_letters_have_the_lengths_that_were_drawn_and_every_byte_a_token(script: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    base.mkdir()
    script.put_tokenizer(base, None)
    script.write_rows(tmp_path / "rows.jsonl", base, 4000)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    said = [{"role": "user", "content": rows[0]["prompt"]}, {"role": "assistant", "content": rows[0]["completion"]}]
    assert len(tokenizer.apply_chat_template(said, tokenize=True)["input_ids"]) == len(rows[0]["prompt"]) + len(rows[0]["completion"]) + script.MARKS
    lengths = [len(row["prompt"]) + len(row["completion"]) + script.MARKS for row in rows]
    assert max(lengths) <= script.MOST_TOKENS and abs(sum(lengths) / len(lengths) - script.MEAN_TOKENS) < 10


def test_of_rivals_only_the_fastest_is_held_to_the_bar_and_a_noisy_run_to_none(script: Any) -> None:
    systems = [*script.GPU_PEERS["unsloth"], script.TUNER]
    facts = {"gpu": True, "body_weights": 10, "head_weights": 1, "completion_tokens": 1, "tokens": 2, "matmul_rate": 1e9}
    walls = {script.TUNER.name: 1.0, systems[0].name: 4.0, systems[1].name: 1.4, systems[2].name: 1.6, systems[3].name: 1.0}
    runs = [run_of(script, name, [1.0, 1.0, 1.0], wall=wall) for name, wall in walls.items()]
    found = {entry["over"]: entry for entry in script.ratios(systems, [script.line(s, runs, facts) for s in systems])}
    assert [found[s.name]["met"] for s in systems[:4]] == [None, False, None, None]
    assert found[systems[1].name]["wall"] == pytest.approx(1.4)
    noisy = [run_of(script, name, [1.0, 1.0, 1.0], other_cores=0.5) for name in (script.TUNER.name, script.BEST_SWITCHES.name)]
    pair = [script.BEST_SWITCHES, script.TUNER]
    assert [e["met"] for e in script.ratios(pair, [script.line(s, noisy, facts | {"gpu": False}) for s in pair])] == [None]


def test_fp32_curves_may_differ_by_what_four_printed_digits_hide_and_no_more(script: Any) -> None:
    pair = [script.BEST_SWITCHES, script.TUNER]

    def agree(theirs: float, ours: float) -> bool:
        runs = [run_of(script, script.BEST_SWITCHES.name, [theirs]), run_of(script, script.TUNER.name, [ours])]
        return bool(script.compare_losses(pair, runs, [], autocast=False).agree)

    assert agree(2.904, 2.9046) and agree(10.80, 10.8048) and agree(0.5, 0.5005)
    assert not agree(2.904, 2.9052) and not agree(10.80, 10.807) and not agree(0.5, 0.5008)
