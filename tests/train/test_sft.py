"""Training: the loss is the plain definition, the steps are those of the rows, and nothing that is not finite goes on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.train.jobs import Bench, digest
from tuner.errors import Refusal
from tuner.template.tokens import IGNORED
from tuner.train import sft
from tuner.train.loss import LossPath, completion_loss, completion_nats
from tuner.train.rows import Collator
from tuner.train.spec import MethodSpec


def naive_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of whole logits, shifted by one, mean over labels that are not -100."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED)


def padded(trainer: sft.StepTrainer, count: int) -> dict[str, torch.Tensor]:
    return Collator(trainer.job.pad_id, packed=False)(trainer.job.train[:count])


@pytest.mark.parametrize("chunk", [None, 1, 3, 1000])
def test_loss_and_gradients_equal_those_of_whole_logits(chunk: int | None, bench: Bench) -> None:
    trainer = bench.trainer(bench.job())
    batch, model = padded(trainer, 5), trainer.model
    torch.nn.init.normal_(next(p for n, p in model.named_parameters() if "lora_B" in n), std=0.02)
    gradients = []
    for compute in (lambda: completion_loss(model, model, batch, None, LossPath(chunk)), lambda: naive_loss(model, batch)):
        model.zero_grad()
        loss = compute()
        loss.backward()
        gradients.append((float(loss), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-6)
    assert torch.allclose(gradients[0][1], gradients[1][1], rtol=1e-4, atol=1e-6)


def test_loss_equals_trls_own_compute_loss(bench: Bench) -> None:
    from trl import SFTTrainer

    trainer = bench.trainer(bench.job())
    batch = padded(trainer, 8)
    trainer.model.train()
    ours = completion_loss(trainer.model, trainer.model, batch, None, LossPath(4))
    theirs = SFTTrainer.compute_loss(trainer, trainer.model, dict(batch))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_logits_are_never_whole_in_memory(bench: Bench) -> None:
    """With a chunk of one position the head makes one row of logits for each row of the batch, and one at a time of the labelled positions."""
    trainer = bench.trainer(bench.job())
    widest: list[int] = []
    trainer.model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: widest.append(out.shape[1]))
    completion_nats(trainer.model, trainer.model, padded(trainer, 8), LossPath(1))
    assert widest == [1]


def test_the_chunked_loss_is_left_where_the_model_scales_its_logits(bench: Bench) -> None:
    """A head followed by soft-capping (Gemma 2), or one that is trained, gets the model's own logits."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        final_logit_softcapping=0.5, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(200)
    ids = torch.arange(3, 23)[None, :]
    batch = {"input_ids": ids, "labels": ids.clone()}
    assert sft.loss_path(model, batch, 4, 0).chunk is None
    model.config.final_logit_softcapping = None
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert sft.loss_path(model, batch, 4, 0).chunk == 4
    model.lm_head.weight.requires_grad_(True)
    assert sft.loss_path(model, batch, 4, 0).chunk is None


def test_training_is_the_same_bit_for_bit_and_lowers_the_loss(bench: Bench) -> None:
    runs = [bench.train(bench.job(epochs=6.0, peak_learning_rate=2e-2)) for _ in range(2)]
    assert digest(runs[0].state) == digest(runs[1].state) and runs[0].losses == runs[1].losses
    losses = runs[0].losses
    assert len(losses) == 18 and sum(losses[-5:]) < sum(losses[:5]) - 0.5


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_how_a_step_is_cut_changes_no_loss_and_no_gradient(batching: str, bench: Bench) -> None:
    """Steps of 8 records as 1 x 8, 2 x 4 and 8 x 1 forward passes: losses and adapter weights equal to rounding, gradient norms too."""
    longest = max(len(r.input_ids) for r in bench.prepared.rows["train"])
    results = []
    for bound, passes in ((longest * 8, 1), (longest * 4, 2), (longest, 8)):
        job = bench.job(max_steps=2, batching=batching, micro_tokens=bound)
        assert len(sft.plan_steps(job).step(0).ranks[0]) == passes
        trained = bench.train(job)
        weights = torch.cat([t.flatten() for n, t in sorted(trained.state.items()) if "lora_B" in n])
        results.append((trained.losses, [e["gradient_norm"] for e in trained.log if "loss" in e], weights))
    for losses, norms, weights in results[1:]:
        assert losses == pytest.approx(results[0][0], rel=1e-5)
        assert norms == pytest.approx(results[0][1], rel=1e-3)
        assert torch.allclose(weights, results[0][2], atol=2e-5)


def test_packed_and_padded_rows_train_the_same_adapter(bench: Bench) -> None:
    runs = [bench.train(bench.job(max_steps=3, **how)) for how in (
        {"batching": "padded", "order": "shuffle"}, {"batching": "packed"}, {"batching": "packed", "kernels": {"attention": "varlen"}},
    )]  # fmt: skip
    for run in runs[1:]:
        assert run.losses == pytest.approx(runs[0].losses, rel=1e-5)
        for name, tensor in run.state.items():
            assert torch.allclose(tensor, runs[0].state[name], atol=5e-5), name


def test_a_loss_that_is_not_finite_stops_at_that_step_and_names_the_records(bench: Bench) -> None:
    job, model = bench.job(), bench.model()
    last = job.train[sft.plan_steps(job).rows(0)[0]].input_ids[-2]
    with torch.no_grad():
        model.get_input_embeddings().weight[last] = math.inf
    with pytest.raises(sft.NotFinite) as refused:
        sft.train(job, model, bench.tokenizer)
    problem = refused.value.problems[0]
    assert problem.where == "step 1" and problem.field == "loss"
    assert problem.try_.count("train.jsonl:") == 8


def test_weights_that_overflow_stop_the_run(bench: Bench) -> None:
    with pytest.raises(Refusal) as refused:
        bench.train(bench.job(peak_learning_rate=1e30, epochs=3.0, warmup_fraction=0.0))
    assert refused.value.problems[0].field in ("loss", "gradient", "weight")
    assert "train.jsonl:" in refused.value.problems[0].try_


def test_a_gradient_that_is_not_finite_stops_the_run(bench: Bench) -> None:
    model = bench.model()

    def poison(_module: Any, _inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(lambda grad: grad * math.nan)

    model.model.layers[0].register_forward_hook(poison)
    with pytest.raises(Refusal) as refused:
        sft.train(bench.job(), model, bench.tokenizer)
    assert refused.value.problems[0].field == "gradient"


def test_the_log_has_losses_validation_and_units(bench: Bench) -> None:
    job = bench.job(epochs=2.0)
    trained = bench.train(job)
    assert [e["step"] for e in trained.log if "loss" in e] == [1, 2, 3, 4, 5, 6]
    assert [(e["step"], e["epoch"]) for e in trained.log if "validation_loss" in e] == [(3, 1.0), (6, 2.0)]
    assert trained.tokens == 2 * sum(len(r.input_ids) for r in job.train) == trained.log[-1]["tokens"]
    assert trained.completion_tokens == 2 * sum(r.completion_tokens for r in job.train)
    assert json.loads(sft.as_log_lines(trained.log).splitlines()[0])["step"] == 1


def test_validation_loss_is_the_mean_over_every_labelled_token(bench: Bench) -> None:
    """Against one row at a time with whole logits: rows of different length weigh by their tokens, not by their batch."""
    job = bench.job(max_steps=1, validate_every_steps=1)
    trained = bench.train(job)
    model = trained.model.eval()
    nats = tokens = 0.0
    with torch.no_grad():
        for row in job.validation:
            batch = Collator(job.pad_id, packed=False)([row])
            count = int((batch["labels"][:, 1:] != IGNORED).sum())
            nats, tokens = nats + float(naive_loss(model, batch)) * count, tokens + count
    assert trained.log[-1]["validation_loss"] == pytest.approx(nats / tokens, rel=1e-5)


def test_a_line_of_the_log_is_the_mean_of_its_steps(bench: Bench) -> None:
    each = bench.train(bench.job(max_steps=6)).losses
    some = [e for e in bench.train(bench.job(max_steps=6, log_every_steps=4)).log if "loss" in e]
    assert [e["step"] for e in some] == [1, 4, 6]
    assert [e["loss"] for e in some] == pytest.approx([each[0], sum(each[1:4]) / 3, sum(each[4:6]) / 2], rel=1e-9)


def test_the_best_weights_are_kept_and_training_stops_without_patience(bench: Bench) -> None:
    """Validation asks for words that training makes unlikely: the first pass is the best, its weights are published, and the run ends early."""
    rows = bench.prepared.rows["validation"]
    wrong = [replace(r, input_ids=[5000 if label >= 0 else i for i, label in zip(r.input_ids, r.labels, strict=True)],
                     labels=[5000 if label >= 0 else label for label in r.labels]) for r in rows]  # fmt: skip
    common = {"epochs": 4.0, "peak_learning_rate": 2e-2, "warmup_fraction": 0.0, "validate_every_steps": 1, "parts": {"validation": wrong}}
    trained = bench.train(bench.job(**common, keep="best", patience=3))
    passes = [(e["validation_loss"], e["step"]) for e in trained.log if "validation_loss" in e]
    best = min(passes)[1]
    assert trained.kept_step == best and trained.steps == best + 3 < 12
    last = bench.train(bench.job(**common, patience=3))
    assert last.kept_step == last.steps == trained.steps and digest(last.state) != digest(trained.state)
    assert digest(bench.train(bench.job(**common, max_steps=12, keep="best", patience=3)).state) == digest(trained.state)


def test_the_first_step_needs_most_memory(bench: Bench) -> None:
    for changes in ({}, {"order": "shuffle"}, {"batching": "packed"}, {"records_per_step": None, "tokens_per_step": 200}):
        job = bench.job(**changes)
        steps = sft.plan_steps(job)
        widths = [[len(job.train[i].input_ids) for i in steps.rows(n)] for n in range(len(steps))]
        needed = [sum(w) if job.path.packed else len(w) * max(w) for w in widths]
        assert needed[0] == max(needed) and len(needed) > 1, changes


def test_an_adapter_that_changes_nothing_is_refused(bench: Bench, tmp_path: Any) -> None:
    trained = bench.train(bench.job(max_steps=2))
    sft.save_adapter(trained, MethodSpec(rank=4), tmp_path / "good", "tiny", None)
    still = {name: torch.zeros_like(t) if "lora_B" in name else t for name, t in trained.state.items()}
    with pytest.raises(Refusal, match="leaves every logit"):
        sft.save_adapter(replace(trained, state=still), MethodSpec(rank=4), tmp_path / "still", "tiny", None)
    broken = {name: t.clone() for name, t in trained.state.items()}
    next(iter(broken.values()))[0, 0] = math.nan
    with pytest.raises(Refusal, match="not finite"):
        sft.save_adapter(replace(trained, state=broken), MethodSpec(rank=4), tmp_path / "broken", "tiny", None)
    with pytest.raises(Refusal, match="missing or unknown"):
        sft.save_adapter(replace(trained, shapes={**trained.shapes, "another": (1,)}), MethodSpec(rank=4), tmp_path / "lost", "tiny", None)
    name = next(iter(trained.shapes))
    with pytest.raises(Refusal, match="another shape"):
        sft.save_adapter(replace(trained, shapes={**trained.shapes, name: (3, 3)}), MethodSpec(rank=4), tmp_path / "shape", "tiny", None)


def test_memory_that_runs_out_names_the_keys_to_change(bench: Bench) -> None:
    job, model = bench.job(), bench.model()

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    model.model.layers[1].register_forward_hook(full)
    with pytest.raises(Refusal) as refused:
        sft.train(job, model, bench.tokenizer)
    problem = refused.value.problems[0]
    assert problem.field == "memory" and "20.00 GiB" in problem.found
    assert all(key in problem.try_ for key in ("train.micro_tokens", "train.gradient_checkpointing", "base.load"))


def test_gradient_checkpointing_changes_no_gradient(bench: Bench) -> None:
    runs = [bench.train(bench.job(max_steps=2, gradient_checkpointing=on)) for on in (False, True)]
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-6)
    assert [e["gradient_norm"] for e in runs[0].log if "loss" in e] == pytest.approx([e["gradient_norm"] for e in runs[1].log if "loss" in e], rel=1e-4)


def test_an_adapter_in_bf16_is_saved_in_bf16_and_learns(bench: Bench) -> None:
    trained = bench.train(bench.job(epochs=6.0, peak_learning_rate=2e-2, adapter_precision="bf16"))
    assert {t.dtype for t in trained.state.values()} == {torch.bfloat16}
    assert sum(trained.losses[-5:]) < sum(trained.losses[:5]) - 0.5
