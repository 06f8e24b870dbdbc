"""The bytes the plan foretells, against the real thing: parameters of real models, tensors really saved, memory measured on a GPU."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tuner.base import Base, BaseSpec, Precision, load_model, training_precision
from tuner.plan.memory import Micro, Way, activations, depths, head_bytes, model_shape, skeleton

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FP32 = Precision("cpu", "float32", None)
AUTOCAST = Precision("cpu", "float32", "bfloat16")


def adapt(model: Any, rank: int = 16) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=32, target_modules=LINEAR, task_type="CAUSAL_LM"))


def attention_only(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))


@pytest.fixture(scope="module")
def tiny(tiny_base: Path) -> Base:
    return Base("tiny", tiny_base, "local folder", None, BaseSpec(model=str(tiny_base), sanity="off"))


@pytest.fixture(scope="module")
def eight_billion(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The shape that was measured on an H200: a Llama of 8.03 B parameters, here a config without weights."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("8b")
    LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        tie_word_embeddings=False,
    ).save_pretrained(folder)  # fmt: skip
    return Base("8b", folder, "local folder", None, BaseSpec(model="8b"))


def really_saved(model: Any, micro: Micro, precision: Precision, plain: bool) -> int:
    """Bytes of every storage that autograd keeps of a real forward pass up to the LM head, those of weights left out."""
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)  # else its address may be given again
        return tensor

    ids = torch.randint(10, 1000, (micro.rows, micro.width))
    mask = torch.ones(micro.rows, 1, micro.width, micro.width, dtype=torch.bool).tril()
    body = model.get_base_model().model
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=precision.autocast is not None),
        sdpa_kernel(SDPBackend.MATH) if plain else nullcontext(),
    ):
        top = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    assert top.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize(
    ("precision", "micro", "attention", "rank"),
    [(FP32, Micro(3, 40, 9), "math", 4), (AUTOCAST, Micro(4, 64, 9), "math", 16), (AUTOCAST, Micro(2, 256, 9), "flash", 16)],
    ids=["fp32", "autocast", "autocast, flash"],
)
def test_followed_activations_are_the_bytes_autograd_saves_at_full_depth(smollm2: Base, precision: Precision, micro: Micro, attention: str, rank: int) -> None:
    def with_rank(model: Any) -> Any:
        return adapt(model, rank)

    layers = model_shape(smollm2, with_rank).layers
    assert layers == 30 and depths(smollm2) == (1, 2)
    foretold = activations(smollm2, with_rank, micro, precision, Way(attention, "float32"), layers).kept
    model = with_rank(load_model(smollm2, precision)).train()
    assert foretold == pytest.approx(really_saved(model, micro, precision, attention == "math"), rel=0.02)


def test_checkpointing_keeps_one_hidden_state_a_layer(smollm2: Base) -> None:
    micro = Micro(4, 64, 9)
    plain = activations(smollm2, adapt, micro, FP32, Way("math", "float32"), 30)
    kept = activations(smollm2, adapt, micro, FP32, Way("math", "float32", checkpointing=True), 30)
    per_layer = (kept.kept - activations(smollm2, adapt, micro, FP32, Way("math", "float32", checkpointing=True), 10).kept) / 20
    assert micro.tokens * 576 * 4 <= per_layer <= micro.tokens * 576 * 4 * 1.1
    assert kept.kept < plain.kept / 10
    assert kept.backward_workspace > plain.backward_workspace  # one layer computed again
    assert kept.backward_workspace < plain.kept / 30 * 2


def test_sizes_are_those_of_the_real_models(smollm2: Base, tiny: Base) -> None:
    for base in (smollm2, tiny):
        model = load_model(base, FP32)
        frozen = sum(p.numel() for p in model.parameters())
        head = model.get_output_embeddings()
        linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
        real = adapt(model)
        shape = model_shape(base, adapt)
        assert (shape.parameters, shape.linear, shape.head) == (frozen, linear, head.weight.numel())
        assert shape.trainable == sum(p.numel() for p in real.parameters() if p.requires_grad)
        assert (shape.layers, shape.hidden, shape.vocabulary) == (model.config.num_hidden_layers, model.config.hidden_size, model.config.vocab_size)


@pytest.mark.parametrize("load", ["auto", "bf16", "fp32", "nf4", "fp4", "int8"])
def test_base_bytes_are_those_of_the_loaded_base(smollm2: Base, load: Any) -> None:
    precision = training_precision(load, "cpu")
    assert model_shape(smollm2, adapt).base_bytes(precision) == pytest.approx(_held_bytes(load_model(smollm2, precision)), rel=0.01)


def _held_bytes(model: Any) -> int:
    """Bytes of all weights with the state that bitsandbytes keeps beside rounded ones."""
    whole = 0
    for weight in {id(p): p for p in model.parameters()}.values():
        whole += weight.untyped_storage().nbytes()
        state = getattr(weight, "quant_state", None)
        nested = getattr(state, "state2", None)
        for part in (getattr(state, "absmax", None), getattr(nested, "absmax", None), getattr(weight, "SCB", None)):
            whole += part.untyped_storage().nbytes() if isinstance(part, torch.Tensor) else 0
    return whole


MEASURED_ON_H200 = [  # load, packed tokens, checkpointing, adapters, Liger, GiB at the peak: recipes/LOG.md and the table of the H200 measurements
    ("bf16", 8192, False, "float32", True, 61.6),
    ("bf16", 16384, False, "float32", True, 107.4),
    ("bf16", 8192, True, "float32", True, 19.8),
    ("bf16", 8192, True, "float32", False, 20.2),
    ("nf4", 8192, False, "bfloat16", True, 43.2),
    ("nf4", 8192, True, "bfloat16", True, 9.2),
]


@pytest.mark.parametrize(("load", "tokens", "checkpointing", "adapters", "liger", "gib"), MEASURED_ON_H200)
def test_peaks_measured_on_an_h200_are_foretold_within_a_tenth(
    eight_billion: Base, load: Any, tokens: int, checkpointing: bool, adapters: str, liger: bool, gib: float
) -> None:
    precision, shape = training_precision(load, "cuda:0"), model_shape(eight_billion, adapt)
    way, micro = Way("flash", adapters, liger, checkpointing), Micro(1, tokens, tokens // 2)
    seen = activations(eight_billion, adapt, micro, precision, way, shape.layers)
    width = 4 if adapters == "float32" else 2
    above = max(seen.forward_workspace, seen.backward_workspace, head_bytes(shape, micro, precision, way))
    assert (shape.base_bytes(precision) + 4 * width * shape.trainable + seen.kept + above) / 2**30 == pytest.approx(gib, rel=0.1)


def test_logits_are_never_whole(eight_billion: Base) -> None:
    shape, way, precision = model_shape(eight_billion, adapt), Way("flash", "bfloat16"), training_precision("bf16", "cuda:0")
    few, many = (head_bytes(shape, Micro(1, 16384, labelled), precision, way) for labelled in (1024, 16384))
    assert many - few == 2 * (16384 - 1024) * 4096 * 2  # hidden states and their gradient; the logits are those of one chunk
    assert few >= 1024 * 128256 * 8


def test_layers_of_several_kinds_are_followed_at_full_depth(tmp_path: Path) -> None:
    from transformers import Qwen2Config

    kinds = ["full_attention", "sliding_attention", "full_attention"]
    Qwen2Config(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, layer_types=kinds,
        use_sliding_window=True, sliding_window=16,
    ).save_pretrained(tmp_path)  # fmt: skip
    base = Base("mixed", tmp_path, "local folder", None, BaseSpec(model="mixed"))
    assert depths(base) == (3,)
    seen = activations(base, adapt, Micro(2, 32, 4), FP32, Way("math", "float32"), 3)
    assert seen.kept > 0
    model, _ = skeleton(base, adapt, 2)
    assert model.config.layer_types == kinds[:2]


def test_a_base_that_cannot_be_followed_is_estimated_by_formula(tmp_path: Path) -> None:
    """A mixture of experts whose routing depends on values: no traceback, and the plan says how it was estimated."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                           num_local_experts=4)  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    base = Base("moe", tmp_path / "moe", "local folder", None, BaseSpec(model="moe"))
    found = activations(base, attention_only, Micro(2, 16, 4), FP32, Way("flash", "float32"), 2)
    assert not found.followed and found.kept == 2 * 2 * 34 * 32 * 32
