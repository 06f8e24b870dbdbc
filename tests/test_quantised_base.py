"""Quantised bases: what is loaded, that evaluating leaves training alone, and that adapters leave them whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

torch = pytest.importorskip("torch")

from tuner import base as bases  # noqa: E402
from tuner.base import (  # noqa: E402
    QUANTISED,
    Base,
    BaseSpec,
    Load,
    Precision,
    guard_loss,
    load_for_merge,
    load_model,
    resolve_base,
    serving_precision,
    training_precision,
    widen,
)
from tuner.errors import Refusal  # noqa: E402
from tuner.fingerprint import digest_file  # noqa: E402
from tuner.quantise import Fp8Linear, dequantised, guard_fp8, guard_merge, in_fp8, in_full, quantised_layers, rows_in_fp8  # noqa: E402

ON_CPU = [kind for kind in QUANTISED if kind != "fp8"]
FP32 = Precision("cpu", "float32", None)


def kl(expected: Any, found: Any) -> float:
    """Mean nats by which the next-token distributions `found` (1, T, V) differ from `expected`."""
    ours, theirs = expected.float().log_softmax(-1), found.float().log_softmax(-1)
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


def logits(model: Any, ids: Any) -> Any:
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def gradients(model: Any, ids: Any) -> dict[str, Any]:
    """Gradients of the trained weights for one pass over `ids`, in training mode."""
    model.train()
    model.zero_grad(set_to_none=True)
    model(input_ids=ids, labels=ids).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return len(left) > 0 and left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def with_lora(model: Any) -> Any:
    """A LoRA that changes the answers already: B is not zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=True))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    return adapted


def stored_bytes(model: Any) -> int:
    """Bytes of every tensor a model keeps, wherever bitsandbytes hides it; each piece of memory once."""
    found: dict[int, int] = {}

    def add(tensor: Any) -> None:
        if isinstance(tensor, torch.Tensor):
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()

    for weight in [*model.parameters(), *model.buffers()]:
        add(weight)
        add(getattr(weight, "SCB", None))
        state = getattr(weight, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            for tensor in vars(part).values() if part is not None else ():
                add(tensor)
    for module in model.modules():
        add(getattr(getattr(module, "state", None), "SCB", None))
    return sum(found.values())


@pytest.fixture(scope="module")
def tiny(tiny_base: Path) -> Base:
    return resolve_base(BaseSpec(model=str(tiny_base), sanity="off"), tiny_base)


@pytest.fixture(scope="module")
def tiny_ids() -> Any:
    torch.manual_seed(0)
    return torch.randint(3, 40000, (2, 24))


# --- SmolLM2: what quantising costs, and what an adapter on it is worth ---------------------------------------------


@dataclass
class Loaded:
    """A quantised SmolLM2 before anything ran on it, with a LoRA; and what plain SmolLM2 says in fp32."""

    kind: str
    base: Base
    precision: Precision
    model: Any
    ids: Any
    fp32: Any


@pytest.fixture(scope="module")
def plain_text(encoder: Any) -> Any:
    return torch.tensor([encoder.tokenizer.encode(" ".join(bases.PLAIN_TEXT), add_special_tokens=False).ids])


@pytest.fixture(scope="module")
def fp32_logits(smollm2: Base, plain_text: Any) -> Any:
    return logits(load_model(smollm2, FP32), plain_text)


@pytest.fixture(scope="module", params=[pytest.param(kind, marks=pytest.mark.slow) if kind == "fp4" else kind for kind in ON_CPU])  # as nf4, other codes
def loaded(request: Any, smollm2: Base, plain_text: Any, fp32_logits: Any) -> Iterator[Loaded]:
    precision = serving_precision(request.param, "cpu")
    yield Loaded(request.param, smollm2, precision, load_model(smollm2, precision), plain_text, fp32_logits)


# Mean nats to fp32, bound and measured: on plain English, SmolLM2-135M (which was rounded to 4 bits once before, for its GGUF file).
KL_BOUND = {"nf4": 0.40, "fp4": 0.80, "int8": 0.03}


def test_a_quantised_base_answers_nearly_as_in_fp32(loaded: Loaded) -> None:
    found = logits(loaded.model, loaded.ids)
    assert bool(torch.isfinite(found).all())
    print(loaded.kind, kl(loaded.fp32, found))
    assert kl(loaded.fp32, found) < KL_BOUND[loaded.kind]


# The 16 numbers of each 4-bit format: nf4 from Dettmers et al. 2023, appendix E; fp4 (e2m1 as bitsandbytes has it) from its functional.py.
LEVELS = {
    "nf4": [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
            0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
            0.7229568362236023, 1.0],
    "fp4": [sign * x / 12 for sign in (1, -1) for x in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)],
}  # fmt: skip


def naively_rounded(kind: str, weight: Any) -> Any:
    """Weights rounded by the definition: rows to 8 bits for int8; blocks of 64 to the nearest level for 4 bits, scales not rounded again."""
    if kind == "int8":
        scale = weight.abs().amax(1, keepdim=True) / 127
        return torch.round(weight / scale) * scale
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(LEVELS[kind])
    return (levels[((blocks / scale)[..., None] - levels).abs().argmin(-1)] * scale).reshape(weight.shape)


def test_the_rounded_weights_are_those_of_the_format(loaded: Loaded) -> None:
    plain = load_model(loaded.base, FP32)
    name = "model.layers.7.self_attn.v_proj"
    weight, held = plain.get_submodule(name).weight.detach(), dequantised(loaded.model.get_submodule(name))
    expected = naively_rounded(loaded.kind, weight)
    assert float((held - expected).norm() / weight.norm()) < 0.03  # scales rounded to 8 bits, weights read in bf16
    assert float((held - weight).norm()) == pytest.approx(float((expected - weight).norm()), rel=0.05)


def test_every_linear_layer_but_the_head_is_quantised(loaded: Loaded) -> None:
    linear = [n for n, m in loaded.model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) == 211
    assert set(linear) - set(quantised_layers(loaded.model)) == {"lm_head"}
    head, embeddings = loaded.model.get_output_embeddings().weight, loaded.model.get_input_embeddings().weight
    assert head is embeddings and head.dtype == getattr(torch, loaded.precision.weights)


def test_the_bytes_of_a_weight_are_those_in_memory(loaded: Loaded) -> None:
    plain = load_model(loaded.base, FP32)
    head = plain.get_output_embeddings()
    linear = sum(m.weight.numel() for m in plain.modules() if isinstance(m, torch.nn.Linear) and m is not head)
    other = sum(p.numel() for p in plain.parameters()) - linear
    assert stored_bytes(plain) == pytest.approx(linear * FP32.bytes_per_linear_weight + other * FP32.bytes_per_other_weight, rel=0.02)
    said = linear * loaded.precision.bytes_per_linear_weight + other * loaded.precision.bytes_per_other_weight
    assert said == pytest.approx(stored_bytes(loaded.model), rel=0.02)


def test_an_adapter_survives_evaluation_saving_and_merging(loaded: Loaded, tmp_path: Path) -> None:
    from peft import PeftModel

    layer = loaded.model.model.layers[3].mlp.up_proj
    weights = dequantised(layer)
    adapted = with_lora(load_model(loaded.base, loaded.precision))
    before = gradients(adapted, loaded.ids)
    answer = logits(adapted, loaded.ids)
    after = gradients(adapted, loaded.ids)
    assert same(before, after) and len(before) == 180
    assert torch.equal(logits(adapted.train(), loaded.ids), answer)
    assert torch.equal(dequantised(adapted.base_model.model.model.layers[3].mlp.up_proj), weights)

    adapted.save_pretrained(tmp_path)
    assert "quant" not in (tmp_path / "adapter_config.json").read_text(encoding="utf-8").replace("qalora", "").replace("loftq", "")
    reloaded = PeftModel.from_pretrained(loaded.model, tmp_path)
    assert torch.equal(logits(reloaded, loaded.ids), answer)
    merged = PeftModel.from_pretrained(load_for_merge(loaded.base), tmp_path).merge_and_unload()
    print(loaded.kind, "merged", kl(logits(merged, loaded.ids), answer))
    assert kl(logits(merged, loaded.ids), answer) < KL_BOUND[loaded.kind]
    with pytest.raises(Refusal, match="load_for_merge"):
        guard_merge(reloaded, "export")
    reloaded.unload()
    guard_merge(merged, "export")
    full = load_for_merge(loaded.base, loaded.precision)
    assert quantised_layers(full) == [] and {p.dtype for p in full.parameters()} == {torch.float32}
    same_function = PeftModel.from_pretrained(full, tmp_path).merge_and_unload()
    assert kl(logits(same_function, loaded.ids), answer) < 0.01  # what bf16 rounds; the rest of the distance to fp32 is what 4 and 8 bits cost


# --- the tiny model: what must be equal to the last bit -------------------------------------------------------------


@pytest.mark.parametrize("kind", ON_CPU)
def test_checking_the_bases_loss_first_changes_no_gradient(kind: str, tiny: Base, tiny_ids: Any) -> None:
    precision = training_precision(kind, "cpu")
    untouched, asked = with_lora(load_model(tiny, precision)), load_model(tiny, precision)
    guard_loss(tiny, asked, tiny_ids.tolist() * 3, "cpu")
    assert same(gradients(untouched, tiny_ids), gradients(with_lora(asked), tiny_ids))


@pytest.mark.parametrize("kind", ON_CPU)
def test_an_adapter_that_reads_the_weights_starts_from_the_same_ones_after_a_forward(kind: str, tiny: Base, tiny_ids: Any) -> None:
    """DoRA reads every weight's norm; bitsandbytes' int8 layers lost their scales to it once anything had run."""
    from peft import LoraConfig, get_peft_model

    found = []
    for asked_first in (False, True):
        model = load_model(tiny, training_precision(kind, "cpu"))
        if asked_first:
            logits(model, tiny_ids)
        torch.manual_seed(1)
        found.append(gradients(get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], use_dora=True)), tiny_ids))
    assert same(*found)


@pytest.mark.parametrize("kind", ON_CPU)
def test_training_mode_and_answering_mode_give_the_same_logits(kind: str, tiny: Base, tiny_ids: Any) -> None:
    model = load_model(tiny, training_precision(kind, "cpu"))
    answering = logits(model, tiny_ids)
    with torch.no_grad():
        training = model.train()(input_ids=tiny_ids).logits
    assert torch.equal(answering, training)


@pytest.mark.parametrize("kind", ON_CPU)
def test_checkpointing_gives_the_same_gradients(kind: str, tiny: Base, tiny_ids: Any) -> None:
    adapted = with_lora(load_model(tiny, training_precision(kind, "cpu")))
    plain = gradients(adapted, tiny_ids)
    adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert same(plain, gradients(adapted, tiny_ids))


@pytest.mark.parametrize("kind", ON_CPU)
def test_new_tokens_on_a_quantised_base_start_as_on_a_plain_one(kind: str, tiny: Base, tiny_ids: Any) -> None:
    precision = training_precision(kind, "cpu")
    plain, quantised = load_model(tiny, Precision("cpu", precision.weights, None)), load_model(tiny, precision)
    before = logits(quantised, tiny_ids)
    for model in (plain, quantised):
        widen(model, 49160)
    assert torch.equal(plain.get_input_embeddings().weight, quantised.get_input_embeddings().weight)
    assert quantised.get_output_embeddings().weight is quantised.get_input_embeddings().weight
    assert torch.equal(logits(quantised, tiny_ids)[..., :49152], before)
    assert len(quantised_layers(quantised)) == 14


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bytes_that_fsdp_can_shard_give_the_same_logits_and_gradients(kind: str, tiny: Base, tiny_ids: Any) -> None:
    alone, sharded = training_precision(kind, "cpu"), training_precision(kind, "cpu", sharded=True)
    models = [with_lora(load_model(tiny, precision)) for precision in (alone, sharded)]
    assert [m.base_model.model.model.layers[0].mlp.up_proj.weight.dtype for m in models] == [torch.uint8, getattr(torch, sharded.weights)]
    assert torch.equal(*(logits(m, tiny_ids) for m in models))
    assert same(*(gradients(m, tiny_ids) for m in models))


def shard(rank: int, folder: Path, meeting: Path, ids: Any) -> None:
    """One of two ranks: the mean gradients of both halves of `ids` under FSDP2 equal those of the whole on one rank, evaluation in between."""
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    base, precision = resolve_base(BaseSpec(model=str(folder)), folder), training_precision("nf4", "cpu", sharded=True)
    expected = gradients(with_lora(load_model(base, precision)), ids)
    adapted = with_lora(load_model(base, precision))
    init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    for layer in adapted.base_model.model.model.layers:
        fully_shard(layer)
    fully_shard(adapted)
    weight = adapted.base_model.model.model.layers[0].mlp.up_proj.weight
    assert weight.to_local().numel() * 2 == weight.numel() == 64 * 128 // 4
    mine = ids[rank : rank + 1]
    gradients(adapted, mine)
    logits(adapted, mine)
    found = {n: g.full_tensor() for n, g in gradients(adapted, mine).items()}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)
    meeting.with_name(f"equal-{rank}").write_text(str(len(found)), encoding="utf-8")
    destroy_process_group()


def test_two_ranks_share_one_nf4_base_with_the_gradients_of_one(tiny_base: Path, tiny_ids: Any, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(shard, args=(tiny_base, tmp_path / "meeting", tiny_ids), nprocs=2)
    equal = [int((tmp_path / f"equal-{rank}").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert equal == [12, 12]  # three adapted modules in each of two layers, two matrices each


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_eight_bits_under_fsdp_are_refused(kind: str) -> None:
    with pytest.raises(Refusal, match="under FSDP"):
        training_precision(kind, "cuda:0", sharded=True)


def test_loading_quantised_leaves_the_folder_as_it_was(tiny: Base) -> None:
    before = {p.name: digest_file(p) for p in sorted(tiny.folder.iterdir())}
    for kind in ON_CPU:
        load_model(tiny, training_precision(kind, "cpu"))
    assert {p.name: digest_file(p) for p in sorted(tiny.folder.iterdir())} == before
    assert "quantization_config" not in json.loads((tiny.folder / "config.json").read_text(encoding="utf-8"))


def test_a_base_whose_weights_are_quantised_already_is_refused(tiny: Base, tmp_path: Path) -> None:
    """Nothing could be merged into it, and bitsandbytes would load it without what load_model mends."""
    folder = tmp_path / "rounded"
    shutil.copytree(tiny.folder, folder)
    (folder / "config.json").write_text(json.dumps(tiny.config | {"quantization_config": {"quant_method": "bitsandbytes"}}), encoding="utf-8")
    with pytest.raises(Refusal, match="quantised already"):
        resolve_base(BaseSpec(model=str(folder)), tmp_path)


def test_a_recipe_may_ask_for_every_quantised_load() -> None:
    asked = [BaseSpec.model_validate({"model": "x", "load": load}).load for load in (*QUANTISED, "auto", "bf16", "fp32")]
    assert sorted(asked) == sorted(get_args(Load)) and len(asked) == 7


@pytest.mark.parametrize("fast", [True, False])
def test_a_quantised_base_is_served_as_it_is_trained(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "fast_bf16_cpu", lambda: fast)
    for kind in ON_CPU:
        training, serving = training_precision(kind, "cpu"), serving_precision(kind, "cpu")
        assert (training.quantised, training.weights) == (serving.quantised, serving.weights) == (kind, "bfloat16" if fast else "float32")
        assert training.autocast == ("bfloat16" if fast else None) and serving.autocast is None
    assert serving_precision("bf16", "cpu").quantised is None
    assert str(training_precision("nf4", "cuda:1")) == "nf4 linear weights, bfloat16 otherwise, bfloat16 autocast"


def test_4_bits_compute_in_fp32_where_bf16_is_slow(tiny: Base, tiny_ids: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "fast_bf16_cpu", lambda: False)
    adapted = with_lora(load_model(tiny, training_precision("nf4", "cpu")))
    before = gradients(adapted, tiny_ids)
    assert logits(adapted, tiny_ids).dtype == torch.float32
    assert same(before, gradients(adapted, tiny_ids))


# --- fp8 -----------------------------------------------------------------------------------------------------------


def test_fp8_on_a_cpu_is_refused_with_the_reason() -> None:
    for asked in (training_precision, serving_precision):
        with pytest.raises(Refusal, match=r"compute capability 8\.9"):
            asked("fp8", "cpu")
    with pytest.raises(Refusal, match=r"compute capability 8\.9"):
        guard_fp8("cpu")


def to_e4m3(values: Any) -> Any:
    """fp32 rounded to the numbers e4m3 has, by their definition: 3 bits of mantissa, smallest exponent -6, largest number 448."""
    exponent = torch.floor(torch.log2(values.abs().clamp(min=1e-30))).clamp(min=-6)
    step = torch.exp2(exponent - 3)
    return (torch.round(values / step) * step).clamp(-448, 448)


def imitated(values: Any) -> Any:
    """Each row rounded to e4m3 with its largest magnitude at 448, and scaled back."""
    scale = values.abs().amax(1, keepdim=True) / 448
    return to_e4m3(values / scale) * scale


def test_an_fp8_layer_is_the_product_of_the_rounded_factors_both_ways() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 48, dtype=torch.bfloat16)
    layer = Fp8Linear(plain, "cpu")
    weight, x = plain.weight.detach().float(), torch.randn(2, 5, 64, dtype=torch.bfloat16, requires_grad=True)
    out = layer(x)
    expected = imitated(x.detach().float().reshape(-1, 64)) @ imitated(weight).t() + plain.bias.detach().float()
    torch.testing.assert_close(out.detach().float().reshape(-1, 48), expected, rtol=0.01, atol=0.02)

    incoming = torch.randn(2, 5, 48, dtype=torch.bfloat16)
    out.backward(incoming)
    scales = weight.abs().amax(1) / 448
    rounded = to_e4m3(weight / scales[:, None])
    expected = imitated(incoming.float().reshape(-1, 48) * scales) @ rounded
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(x.grad.float().reshape(-1, 64), expected, rtol=0.01, atol=0.02)
    exact = incoming.float().reshape(-1, 48) @ weight
    assert float(torch.cosine_similarity(exact, x.grad.float().reshape(-1, 64), dim=1).min()) > 0.99


def test_rows_of_zeros_and_of_large_numbers_survive_fp8() -> None:
    rows = torch.tensor([[0.0, 0.0], [3e38, -1.5e38], [1e-30, 1e-31]])
    held, scales = rows_in_fp8(rows)
    assert bool(torch.isfinite(held.float()).all()) and bool(torch.isfinite(scales).all())
    assert held.float()[1].tolist() == [448, -224] and held.float()[0].tolist() == [0, 0]


def test_an_adapter_on_an_fp8_base_learns_and_reloads(tiny: Base, tiny_ids: Any, tmp_path: Path) -> None:
    """The layer's arithmetic also runs on a CPU, where a recipe may not ask for it."""
    from peft import PeftModel

    def fresh() -> Any:
        return in_fp8(load_model(tiny, Precision("cpu", "bfloat16", None)), "cpu")

    adapted = with_lora(fresh())
    assert len(quantised_layers(adapted)) == 14
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    before = gradients(adapted, tiny_ids)
    logits(adapted, tiny_ids)
    assert same(before, gradients(adapted, tiny_ids))
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = adapted.train()(input_ids=tiny_ids, labels=tiny_ids).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.1
    adapted.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(fresh(), tmp_path), tiny_ids), logits(adapted, tiny_ids))
    with pytest.raises(Refusal, match="load_for_merge"):
        guard_merge(adapted, "export")
    answer = logits(adapted, tiny_ids)
    with pytest.raises(RuntimeError):  # PEFT cannot do it in silence either
        adapted.merge_and_unload()
    merged = PeftModel.from_pretrained(in_full(fresh()), tmp_path).merge_and_unload()
    assert kl(logits(merged, tiny_ids), answer) < 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_quantised_base_trains_on_a_gpu_as_it_answers(smollm2: Base, plain_text: Any, fp32_logits: Any) -> None:
    ids, swept = plain_text.cuda(), 0
    for kind in QUANTISED:
        if kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
            continue
        adapted = with_lora(load_model(smollm2, training_precision(kind, "cuda:0")))
        before = gradients(adapted, ids)
        logits(adapted, ids)
        assert same(before, gradients(adapted, ids)), kind
        with adapted.disable_adapter():
            assert kl(fp32_logits, logits(adapted, ids).cpu()) < KL_BOUND.get(kind, 0.1), kind
        swept += 1
    assert swept >= 3
