"""A run that was stopped and went on ends in the same bytes and the same log as one that was not, however it trains."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.train.jobs import Bench, digest
from tuner.errors import Refusal, Terminated
from tuner.train import sft
from tuner.train.checkpoint import Fingerprint, open_run
from tuner.train.spec import MethodSpec
from tuner.train.stopping import Stopper

WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "mid-epoch": {"epochs": 3.0, "stop": 5},
    "several passes a step": {"micro_tokens": 40},
    "packed": {"batching": "packed"},
    "packed, row by row": {"batching": "packed", "kernels": {"attention": "varlen"}},
    "tokens a step": {"records_per_step": None, "tokens_per_step": 60},
    "shuffled": {"order": "shuffle"},
    "lines of the log across the stop": {"log_every_steps": 4, "epochs": 3.0, "stop": 6},
    "best weights kept": {"keep": "best", "validate_every_steps": 1, "epochs": 2.0},
    "checkpointing": {"gradient_checkpointing": True},
    "bf16 adapter": {"adapter_precision": "bf16"},
    "dropout": {"method": {"rank": 4, "dropout": 0.2}},
    "constant rate": {"schedule": "constant", "weight_decay": 0.1},
    "adalora": {"method": {"kind": "adalora"}, "epochs": 3.0, "stop": 5},
    **{kind: {"method": {"kind": kind}} for kind in ("dora", "lora_plus", "pissa", "olora", "ia3", "vera", "prompt", "p_tuning", "prefix")},
}


def without_seconds(log: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in log]


def stopped_after(job: sft.Job, step: int) -> sft.Job:
    """The job, which gets a SIGTERM while it does this step."""
    stopper = Stopper(lambda _words: None)

    def show(progress: sft.Progress) -> None:
        if progress.step == step - 1:
            stopper.wanted = signal.SIGTERM

    return replace(job, stopper=stopper, show=show)


@pytest.mark.parametrize("way", list(WAYS))
def test_a_stopped_run_goes_on_to_the_same_adapter_and_the_same_log(way: str, bench: Bench, tmp_path: Path) -> None:
    changes = dict(WAYS[way])
    stop, method = changes.pop("stop", 2), MethodSpec(**changes.pop("method", {"rank": 4}))
    if method.kind in ("prompt", "p_tuning", "prefix"):
        changes["batching"] = "padded"
    job = bench.job(method=method, **{"epochs": 1.0, "checkpoint_every_steps": 0, **changes})
    whole = bench.train(job)
    assert whole.steps > stop

    mark = Fingerprint({"run": way})
    run, resume = open_run(tmp_path / "runs", "r", mark)
    assert resume is None
    with run, pytest.raises(Terminated):
        bench.train(stopped_after(replace(job, run=run), stop))
    run, resume = open_run(tmp_path / "runs", "r", mark)
    assert resume is not None and resume.checkpoint.step == stop
    with run:
        again = bench.train(replace(job, run=run, resume=sft.folder_in(resume.checkpoint.path, stop)))
    assert digest(again.state) == digest(whole.state)
    assert without_seconds(again.log) == without_seconds(whole.log)
    assert again.resumed_steps == (stop,) and again.tokens == whole.tokens and again.completion_tokens == whole.completion_tokens
    assert again.kept_step == whole.kept_step


def test_the_ways_were_swept() -> None:
    assert len(WAYS) == 23


def test_a_changed_learning_rate_applies_from_the_checkpoint_on(bench: Bench, tmp_path: Path) -> None:
    """Trainer ignores it: an adapter of the old recipe, byte for byte. Here the steps after have the new rate, by its schedule."""
    job = bench.job(epochs=2.0, checkpoint_every_steps=0)
    mark = Fingerprint({"train.peak_learning_rate": "0.001"})
    run, _ = open_run(tmp_path / "runs", "r", mark)
    with run, pytest.raises(Terminated):
        bench.train(stopped_after(replace(job, run=run), 3))
    other = Fingerprint({"train.peak_learning_rate": "0.01"})
    with pytest.raises(Refusal, match=r"train\.peak_learning_rate"):
        open_run(tmp_path / "runs", "r", other)
    run, resume = open_run(tmp_path / "runs", "r", other, allow_changed=["train.peak_learning_rate"])
    assert resume is not None and [c.field for c in resume.changed] == ["train.peak_learning_rate"]
    with run:
        faster = replace(job, run=run, spec=job.spec.model_copy(update={"peak_learning_rate": 1e-2}), resume=sft.folder_in(resume.checkpoint.path, 3))
        again = bench.train(faster)
    rates = [e["learning_rate"] for e in again.log if "loss" in e]
    assert [r * 10 for r in rates[:3]] == pytest.approx([e["learning_rate"] * 10 for e in bench.train(job).log if "loss" in e][:3])
    assert rates[3:] == pytest.approx([10 * e["learning_rate"] for e in bench.train(job).log if "loss" in e][3:])


def test_checkpoints_come_at_their_steps_and_hold_no_pickled_arguments(bench: Bench, tmp_path: Path) -> None:
    run, _ = open_run(tmp_path / "runs", "r", Fingerprint({"a": "b"}), keep=2)
    with run:
        bench.train(bench.job(epochs=3.0, checkpoint_every_steps=2, parts={"run": run}))
        assert [p.name for p in run.checkpoints()] == ["step-8", "step-6"]
        names = {p.name for p in run.checkpoints()[0].rglob("*") if p.is_file()}
    assert "training_args.bin" not in names and not any(n.startswith("tokenizer") for n in names)
    assert {"trained.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "watched.json", "MANIFEST.json"} <= names


def test_a_run_that_ran_out_of_patience_is_over_and_leaves_nothing_to_go_on_with(bench: Bench, tmp_path: Path) -> None:
    rows = bench.prepared.rows["validation"]
    wrong = [replace(r, input_ids=[5000 if x >= 0 else i for i, x in zip(r.input_ids, r.labels, strict=True)],
                     labels=[5000 if x >= 0 else x for x in r.labels]) for r in rows]  # fmt: skip
    run, _ = open_run(tmp_path / "runs", "r", Fingerprint({"a": "b"}))
    with run:
        trained = bench.train(bench.job(epochs=4.0, peak_learning_rate=2e-2, warmup_fraction=0.0, validate_every_steps=1, patience=2, checkpoint_every_steps=1,
                                        parts={"run": run, "validation": wrong}))  # fmt: skip
        assert trained.steps < 12 and max(int(p.name[5:]) for p in run.checkpoints()) < trained.steps


def test_a_signal_in_the_last_step_publishes_what_is_finished(bench: Bench, tmp_path: Path) -> None:
    run, _ = open_run(tmp_path / "runs", "r", Fingerprint({"a": "b"}))
    with run:
        job = bench.job(checkpoint_every_steps=0, parts={"run": run})
        assert bench.train(stopped_after(job, 3)).steps == 3
