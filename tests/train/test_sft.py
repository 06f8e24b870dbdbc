"""Training: the loss is the plain definition, TRL holds the rows it was given, and nothing that is not finite goes on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tuner import pipeline
from tuner.base import Precision, load_model
from tuner.errors import Refusal
from tuner.recipe import load_recipe
from tuner.template.tokens import IGNORED
from tuner.train import sft
from tuner.train.loss import completion_loss
from tuner.train.spec import MethodSpec, TrainSpec

FP32 = Precision("cpu", "float32", None)


@pytest.fixture
def job(recipe_file: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[sft.Job, Any, Any]]:
    """A job on the tiny base, its model and tokenizer; keyword arguments change the `train:` section."""

    def make(precision: Precision = FP32, **changes: Any) -> tuple[sft.Job, Any, Any]:
        from transformers import AutoTokenizer

        prepared = pipeline.prepare(load_recipe(recipe_file()))
        spec = TrainSpec(**{"epochs": 1.0, "peak_learning_rate": 1e-3, "log_every_steps": 1, **changes})
        made = sft.Job(prepared.rows["train"], prepared.rows["validation"], MethodSpec(rank=4), spec, precision, 42, prepared.encoder.pad_id, tmp_path)
        return made, load_model(prepared.base, precision), AutoTokenizer.from_pretrained(prepared.base.folder)

    return make


def adapter_digest(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if "lora_" in name:
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def naive_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of whole logits, shifted by one, mean over labels that are not -100."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED)


def test_loss_and_gradients_equal_those_of_whole_logits(job: Any) -> None:
    made, model, tokenizer = job()
    trainer = sft._trainer(made, model, tokenizer, sft._Watch(None, None))
    batch = sft.PaddedBatch(made.pad_id)([trainer.train_dataset[i] for i in range(5)])
    batch.pop("row")
    unwrapped = trainer.model
    torch.nn.init.normal_(next(p for n, p in unwrapped.named_parameters() if "lora_B" in n), std=0.02)
    gradients = []
    for compute in (lambda: completion_loss(unwrapped, unwrapped, batch, None), lambda: naive_loss(unwrapped, batch)):
        unwrapped.zero_grad()
        loss = compute()
        loss.backward()
        gradients.append((float(loss), torch.cat([p.grad.flatten() for p in unwrapped.parameters() if p.grad is not None])))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-6)
    assert torch.allclose(gradients[0][1], gradients[1][1], rtol=1e-4, atol=1e-6)


def test_loss_equals_trls_own_compute_loss(job: Any) -> None:
    from trl import SFTTrainer

    made, model, tokenizer = job()
    trainer = sft._trainer(made, model, tokenizer, sft._Watch(None, None))
    batch = sft.PaddedBatch(made.pad_id)([trainer.train_dataset[i] for i in range(8)])
    rows = {k: v for k, v in batch.items() if k != "row"}
    trainer.model.train()
    ours = completion_loss(trainer.model, trainer.model, rows, None)
    theirs = SFTTrainer.compute_loss(trainer, trainer.model, dict(rows))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_the_trainers_own_batches_hold_the_labels_that_were_given(job: Any) -> None:
    made, model, tokenizer = job()
    trainer = sft._trainer(made, model, tokenizer, sft._Watch(None, None))
    swept = 0
    for batch in trainer.get_train_dataloader():
        for number, ids, labels, mask in zip(batch["row"], batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            row = made.train[int(number)]
            length = int(mask.sum())
            assert ids[:length].tolist() == row.input_ids and labels[:length].tolist() == row.labels
            assert set(labels[length:].tolist()) <= {IGNORED}
            swept += 1
    assert swept == 24


def test_a_trainer_that_changed_a_label_is_refused(job: Any) -> None:
    made, model, tokenizer = job()
    trainer = sft._trainer(made, model, tokenizer, sft._Watch(None, None))
    sft._same_rows(trainer, made)
    trainer.train_dataset = trainer.train_dataset.map(lambda e: {"labels": [e["input_ids"][0], *e["labels"][1:]]})
    with pytest.raises(Refusal, match="unchanged"):
        sft._same_rows(trainer, made)


def test_training_is_the_same_bit_for_bit_and_lowers_the_loss(job: Any) -> None:
    digests, losses = [], []
    for _ in range(2):
        made, model, tokenizer = job(epochs=6.0, peak_learning_rate=2e-2)
        trained = sft.train(made, model, tokenizer)
        digests.append(adapter_digest(trained.model))
        losses.append([e["loss"] for e in trained.log if "loss" in e])
    assert digests[0] == digests[1] and losses[0] == losses[1]
    assert len(losses[0]) == 18 and sum(losses[0][-5:]) < sum(losses[0][:5]) - 0.5


def test_micro_batches_change_no_loss_and_no_gradient(job: Any) -> None:
    """One step of 8 records as 1x8, 2x4 and 8x1: losses and adapter weights equal to rounding."""
    results = []
    for size in (8, 4, 1):
        made, model, tokenizer = job(max_steps=2, records_per_step=8, micro_batch=size)
        trained = sft.train(made, model, tokenizer)
        weights = torch.cat([p.detach().flatten() for n, p in trained.model.named_parameters() if "lora_B" in n])
        results.append(([e["loss"] for e in trained.log if "loss" in e], weights))
    for losses, weights in results[1:]:
        assert losses == pytest.approx(results[0][0], rel=1e-4)
        assert torch.allclose(weights, results[0][1], atol=2e-5)


def test_a_loss_that_is_not_finite_stops_at_that_step_and_names_the_records(job: Any) -> None:
    made, model, tokenizer = job()
    with torch.no_grad():
        model.get_input_embeddings().weight[made.train[0].input_ids[-2]] = math.inf
    with pytest.raises(Refusal) as refused:
        sft.train(made, model, tokenizer)
    problem = refused.value.problems[0]
    assert problem.where == "step 1" and problem.field == "loss"
    assert problem.try_.count("train.jsonl:") == 8


def test_weights_that_overflow_stop_the_run(job: Any) -> None:
    made, model, tokenizer = job(peak_learning_rate=1e30, epochs=3.0, warmup_fraction=0.0)
    with pytest.raises(Refusal) as refused:
        sft.train(made, model, tokenizer)
    assert refused.value.problems[0].field in ("loss", "gradient", "weight")
    assert "train.jsonl:" in refused.value.problems[0].try_


def test_a_gradient_that_is_not_finite_stops_the_run(job: Any) -> None:
    made, model, tokenizer = job()

    def poison(_module: Any, _inputs: Any, output: Any) -> Any:
        output.register_hook(lambda grad: grad * math.nan)
        return output

    model.get_input_embeddings().register_forward_hook(lambda m, i, o: o)
    model.model.layers[0].register_forward_hook(lambda m, i, o: poison(m, i, o[0] if isinstance(o, tuple) else o) if torch.is_grad_enabled() else o)
    with pytest.raises(Refusal) as refused:
        sft.train(made, model, tokenizer)
    assert refused.value.problems[0].field == "gradient"


def test_batch_sizes_divide_or_are_refused() -> None:
    assert sft.micro_batch(TrainSpec(records_per_step=8), 1) == (8, 1)
    assert sft.micro_batch(TrainSpec(records_per_step=64), 2) == (8, 4)
    assert sft.micro_batch(TrainSpec(records_per_step=12), 1) == (6, 2)
    assert sft.micro_batch(TrainSpec(records_per_step=7), 1) == (7, 1)
    with pytest.raises(Refusal, match="multiple of the 3 ranks"):
        sft.micro_batch(TrainSpec(records_per_step=8), 3)
    with pytest.raises(Refusal, match="divisor"):
        sft.micro_batch(TrainSpec(records_per_step=8, micro_batch=3), 1)


def test_the_log_has_losses_validation_and_units(job: Any) -> None:
    made, model, tokenizer = job(epochs=2.0)
    trained = sft.train(made, model, tokenizer)
    assert [e["step"] for e in trained.log if "loss" in e] == [1, 2, 3, 4, 5, 6]
    assert len([e for e in trained.log if "validation_loss" in e]) == 2
    assert trained.tokens == 2 * sum(len(r.input_ids) for r in made.train)
    assert trained.completion_tokens == 2 * sum(r.completion_tokens for r in made.train)
    assert json.loads(sft.as_log_lines(trained.log).splitlines()[0])["step"] == 1


def test_targets_that_the_base_lacks_are_refused_with_a_neighbour(job: Any) -> None:
    from tuner.train.methods import target_modules

    _, model, _ = job()
    assert target_modules(MethodSpec(), model) == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    with pytest.raises(Refusal, match="q_proj"):
        target_modules(MethodSpec(targets=["q_porj"]), model)
