"""Packing: logits and loss of every packed row equal those of the row alone, by every attention; what would leak is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.jobs import FP32, Bench
from tuner.base import load_model
from tuner.errors import Refusal
from tuner.train import sft
from tuner.train.kernels import Fits, attention_lacks, choose_path, refuse_leaks, refuse_other_logits, set_attention, varlen_attention
from tuner.train.loss import LossPath, completion_nats
from tuner.train.rows import Collator
from tuner.train.spec import TrainSpec

ATTENTIONS = [
    "sdpa",
    "varlen",
    pytest.param("flex", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="flex has no backward pass on a CPU")]),
]


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def model_inputs(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_packed_row_has_the_logits_and_the_loss_of_the_row_alone(attention: str, bench: Bench, device: str) -> None:
    """24 rows of SmolLM2's tokens in three sequences, against each row by itself in a plain causal model that knows nothing of packing."""
    rows = bench.prepared.rows["train"]
    plain = load_model(bench.prepared.base, FP32).to(device)
    model = load_model(bench.prepared.base, FP32).to(device)
    if attention == "varlen" and device == "cuda":
        plain, model = plain.to(torch.bfloat16), model.to(torch.bfloat16)
    set_attention(model, attention)
    tolerance = 2e-2 if next(model.parameters()).dtype == torch.bfloat16 else 2e-5
    swept = 0
    for start in range(0, 24, 8):
        pack = rows[start : start + 8]
        batch = model_inputs(Collator(2, packed=True)(pack), device)
        with torch.no_grad():
            logits = model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).logits[0].float()
            nats = float(completion_nats(model, model, batch, LossPath(4)))
        alone, expected = [], 0.0
        for row in pack:
            ids = torch.tensor([row.input_ids], device=device)
            with torch.no_grad():
                own = plain(input_ids=ids, use_cache=False).logits[0].float()
            labels = torch.tensor(row.labels, device=device)
            alone.append(own)
            expected += float(torch.nn.functional.cross_entropy(own[:-1], labels[1:], ignore_index=-100, reduction="sum"))
            swept += 1
        assert float((logits - torch.cat(alone)).abs().max()) < tolerance
        assert nats == pytest.approx(expected, rel=max(tolerance, 1e-5))
    assert swept == 24


def test_a_pack_without_row_starts_leaks_and_is_refused(bench: Bench) -> None:
    """The same two rows under one causal mask, as an all-ones mask or the wrapped strategy give: the probe sees it."""
    model, rows = load_model(bench.prepared.base, FP32), bench.prepared.rows["train"][:2]
    packed, alone = Collator(2, packed=True)(rows), [Collator(2, packed=True)([row]) for row in rows]
    assert refuse_leaks(model, packed, alone, "recipe") < 1e-4
    wrapped = {"input_ids": packed["input_ids"], "position_ids": torch.arange(packed["input_ids"].shape[1])[None, :]}
    masked = {**packed, "attention_mask": torch.ones_like(packed["input_ids"])}
    for leaking in (wrapped, masked):
        with pytest.raises(Refusal, match="packed rows see each other"):
            refuse_leaks(model, leaking, alone, "recipe")


def test_a_base_that_carries_state_from_row_to_row_is_refused_when_packed(bench: Bench, tmp_path: Path) -> None:
    """A recurrent base (Mamba) ignores positions: packed rows would see each other, and no list of architectures says so."""
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=49152, hidden_size=32, num_hidden_layers=2, state_size=8, pad_token_id=2)).eval()
    rows = bench.prepared.rows["train"][:2]
    batches = [Collator(2, packed=True)(rows), *[Collator(2, packed=True)([row]) for row in rows]]
    kept = [{k: v for k, v in b.items() if k == "input_ids"} for b in batches]
    with pytest.raises(Refusal, match="packed rows see each other"):
        refuse_leaks(model, kept[0], kept[1:], "recipe")


def test_varlen_equals_attention_under_a_block_mask() -> None:
    """With grouped heads, against PyTorch's attention under the mask written out."""
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 12, 8), torch.randn(1, 2, 12, 8), torch.randn(1, 2, 12, 8)
    starts = torch.tensor([0, 5, 6, 12], dtype=torch.int32)
    found, weights = varlen_attention(torch.nn.Identity(), query, key, value, None, 0.3, cu_seq_lens_q=starts, max_length_q=6)
    row = torch.bucketize(torch.arange(12), starts[1:], right=True)
    mask = (row[:, None] == row[None, :]) & (torch.arange(12)[:, None] >= torch.arange(12)[None, :])
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True)
    assert weights is None and torch.allclose(found, wanted.transpose(1, 2), atol=1e-6)


def path(bench: Bench, **changes: Any) -> Any:
    spec = TrainSpec(**changes)
    return choose_path(spec, FP32, 100, changes.pop("cannot", None), lambda _: Fits(2048, False, False), lambda key: f"r:{key}")


def test_on_a_cpu_auto_pads_and_says_why(bench: Bench) -> None:
    way = path(bench)
    assert not way.packed and way.grouped and way.attention == "sdpa" and way.plain and not way.liger and way.adapter_dtype == "float32"
    assert len(way.why) == 4 and any("faster than packing" in line for line in way.why)
    assert not path(bench, batching="packed").plain and path(bench, batching="packed").packed
    assert path(bench, order="shuffle").grouped is False and path(bench, adapter_precision="bf16").adapter_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"kernels": {"attention": "flex"}}, "attention"), ({"kernels": {"liger": "on"}}, "liger"), ({"kernels": {"offload": "on"}}, "offload")],
)
def test_kernels_that_cannot_run_here_are_refused_with_the_reason(changes: dict[str, Any], key: str, bench: Bench) -> None:
    with pytest.raises(Refusal, match=f"train.kernels.{key}"):
        path(bench, **changes)


@pytest.mark.parametrize("wrong", [{"batching": "padded", "kernels": {"attention": "varlen"}}, {"batching": "packed", "kernels": {"attention": "eager"}}])
def test_an_attention_that_the_rows_do_not_fit_is_refused_by_the_recipe(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="packed"):
        TrainSpec(**wrong)


def test_what_cannot_be_packed_is_padded_by_auto_and_refused_on_request() -> None:
    reason = "its virtual tokens stand before every row"
    fits: Callable[[Any], Fits] = lambda _: Fits(2048, False, False)  # noqa: E731
    assert not choose_path(TrainSpec(), FP32, 100, reason, fits, str).packed
    with pytest.raises(Refusal, match="virtual tokens"):
        choose_path(TrainSpec(batching="packed"), FP32, 100, reason, fits, str)


def test_packing_is_checked_on_the_base_before_the_first_step(bench: Bench) -> None:
    """The trainer itself runs the probe: a base whose attention ignores row starts stops there."""
    job, model = bench.job(batching="packed"), bench.model()
    forward = model.forward
    model.forward = lambda *a, position_ids=None, **k: forward(*a, **k)
    with pytest.raises(Refusal, match="packed rows see each other"):
        sft.train(job, model, bench.tokenizer)


@pytest.fixture
def gemma(bench: Bench) -> Any:
    """A tiny Gemma 2: it caps its attention scores, and has no sdpa by its own class."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=49152, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                          head_dim=16, attn_logit_softcapping=0.05, pad_token_id=2)  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


def test_a_base_that_does_more_in_its_attention_keeps_its_own(gemma: Any, bench: Bench) -> None:
    """Varlen would leave the capping out: auto takes eager, and asking for varlen is refused, by the class, by the call and by the logits."""
    lacks = attention_lacks(gemma)
    assert set(lacks) >= {"sdpa", "varlen"} and attention_lacks(bench.model()) == {}
    choose = lambda spec: choose_path(spec, FP32, 100, None, lambda _: Fits(2048, False, False), str, lacks)  # noqa: E731
    way = choose(TrainSpec())
    assert way.attention == "eager" and not way.packed and not way.plain
    with pytest.raises(Refusal, match="caps its attention"):
        choose(TrainSpec(kernels={"attention": "varlen"}))
    with pytest.raises(Refusal, match="softcap"):
        varlen_attention(torch.nn.Identity(), *[torch.randn(1, 2, 4, 8)] * 3, None, cu_seq_lens_q=torch.tensor([0, 4], dtype=torch.int32), max_length_q=4,
                         softcap=0.05)  # fmt: skip
    job = bench.job(batching="packed", kernels={"attention": "sdpa"})
    with pytest.raises(Refusal, match=r"kernels\.attention"):
        sft.make_trainer(job, gemma, bench.tokenizer)


def test_a_switched_attention_that_gives_other_logits_is_refused() -> None:
    before = torch.randn(1, 5, 100)
    refuse_other_logits(before, before + 1e-5, "varlen")
    with pytest.raises(Refusal, match="apart from the base's own"):
        refuse_other_logits(before, before + 0.1 * torch.randn_like(before), "varlen")


@pytest.mark.parametrize(("attention", "packed"), [("varlen", True), ("eager", False), ("sdpa", False)])
def test_an_attention_by_name_decides_the_batching_that_goes_with_it(attention: str, packed: bool, bench: Bench) -> None:
    assert path(bench, kernels={"attention": attention}).packed is packed
