"""A GGUF file says what its folder says: names, shapes, rows in llama.cpp's order, metadata. What would change meaning is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tuner.artifact.gguf import interleaved, llama_cpp_alpha, write_lora_gguf, write_model_gguf
from tuner.errors import Refusal

HEADS, KV_HEADS, HEAD_DIM, LAYERS, RANK = 4, 2, 16, 2, 4  # of tests/conftest.py, tiny_base
OURS = {  # transformers' name: llama.cpp's, written out by hand from llama.cpp's docs (src/llama-arch.cpp)
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def random_lora(base: Path, folder: Path, std: float = 0.3, **settings: Any) -> Path:
    """An adapter saved by PEFT itself, both matrices random."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(**{"r": RANK, "lora_alpha": 12, "target_modules": [n.split(".")[1] for n in OURS], "task_type": "CAUSAL_LM"} | settings),
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lora(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_lora(tiny_base, tmp_path_factory.mktemp("lora"))


@pytest.fixture
def spoilt(lora: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the adapter whose adapter_config.json says something else."""

    def copy(**settings: Any) -> Path:
        folder = Path(shutil.copytree(lora, tmp_path / "spoilt"))
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        (folder / "adapter_config.json").write_text(json.dumps(config | settings), encoding="utf-8")
        return folder

    return copy


def read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}


def naive_order(heads: int, size: int) -> list[int]:
    """Row of the folder for each row of the file: within a head, 0, d/2, 1, d/2 + 1, …"""
    order = []
    for head in range(heads):
        for i in range(size // 2):
            order += [head * size + i, head * size + size // 2 + i]
    return order


def test_rows_are_interleaved_head_by_head_as_a_naive_loop_does() -> None:
    rows = np.random.default_rng(0).normal(size=(6 * 8, 3))
    assert np.array_equal(interleaved(rows, 6), rows[naive_order(6, 8)])
    assert np.array_equal(interleaved(rows[:, 0], 6), rows[naive_order(6, 8), 0])  # a bias


def test_a_lora_file_holds_every_matrix_under_llama_cpps_name(lora: Path, tiny_base: Path, tmp_path: Path) -> None:
    write_lora_gguf(lora, tiny_base, tmp_path / "a.gguf")
    fields, tensors = read(tmp_path / "a.gguf")
    assert (fields["general.type"], fields["general.architecture"], fields["adapter.type"]) == ("adapter", "llama", "lora")
    assert fields["adapter.lora.alpha"] == 12
    saved = load_file(lora / "adapter_model.safetensors")
    assert len(tensors) == len(saved) == LAYERS * len(OURS) * 2
    for layer in range(LAYERS):
        for theirs, ours in OURS.items():
            a, b = (saved[f"base_model.model.model.layers.{layer}.{theirs}.lora_{half}.weight"].numpy() for half in "AB")
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(ours)
            assert np.array_equal(tensors[f"blk.{layer}.{ours}.weight.lora_a"], a)
            assert np.array_equal(tensors[f"blk.{layer}.{ours}.weight.lora_b"], b if heads is None else b[naive_order(heads, HEAD_DIM)])


def test_half_precision_rounds_and_changes_nothing_else(lora: Path, tiny_base: Path, tmp_path: Path) -> None:
    write_lora_gguf(lora, tiny_base, tmp_path / "full.gguf")
    write_lora_gguf(lora, tiny_base, tmp_path / "half.gguf", "f16")
    full, half = read(tmp_path / "full.gguf")[1], read(tmp_path / "half.gguf")[1]
    assert all(np.array_equal(full[name].astype(np.float16), half[name]) for name in full) and set(full) == set(half)


def test_alpha_gives_llama_cpp_the_scale_that_peft_computes(tiny_base: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    for rank, alpha, stabilised in ((4, 12, False), (8, 32, True), (3, 5, True)):
        folder = random_lora(tiny_base, tmp_path / f"{rank}", r=rank, lora_alpha=alpha, use_rslora=stabilised)
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), folder)
        scale = next(m.scaling["default"] for n, m in model.named_modules() if n.endswith("q_proj"))
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        assert math.isclose(llama_cpp_alpha(config) / rank, scale, rel_tol=1e-12)
        write_lora_gguf(folder, tiny_base, tmp_path / f"{rank}.gguf")
        assert math.isclose(read(tmp_path / f"{rank}.gguf")[0]["adapter.lora.alpha"] / rank, scale, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"use_dora": True}, "use_dora"), ({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"bias": "all"}, "bias"), ({"lora_bias": True}, "lora_bias"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"), ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"), ({"peft_type": "IA3"}, "peft_type"),
        ({"lora_alpha": 0}, "lora_alpha"), ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"a_key_of_tomorrow": 1}, "a_key_of_tomorrow"), ({"r": 8}, "layers.0"),
    ],
)  # fmt: skip
def test_an_adapter_that_is_not_plain_lora_is_refused_and_nothing_is_written(
    spoilt: Callable[..., Path], tiny_base: Path, tmp_path: Path, settings: dict[str, Any], field: str
) -> None:
    with pytest.raises(Refusal) as refused:
        write_lora_gguf(spoilt(**settings), tiny_base, tmp_path / "out" / "a.gguf")
    assert any(field in p.field for p in refused.value.problems)
    assert not list(tmp_path.rglob("*.gguf"))


def test_real_dora_and_a_saved_head_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    for settings in ({"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["embed_tokens", "q_proj"]}):
        with pytest.raises(Refusal):
            write_lora_gguf(random_lora(tiny_base, tmp_path / "a", **settings), tiny_base, tmp_path / "a.gguf")
        shutil.rmtree(tmp_path / "a")


def test_a_head_of_its_own_on_tied_embeddings_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="tied"):
        write_lora_gguf(random_lora(tiny_base, tmp_path / "a", target_modules=["lm_head", "q_proj"]), tiny_base, tmp_path / "a.gguf")


def test_weights_that_are_not_finite_or_a_missing_half_are_refused(spoilt: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> None:
    folder = spoilt()
    saved = load_file(folder / "adapter_model.safetensors")
    name = sorted(saved)[0]
    save_file({k: v for k, v in saved.items() if k != name}, folder / "adapter_model.safetensors")
    with pytest.raises(Refusal, match=r"B \("):
        write_lora_gguf(folder, tiny_base, tmp_path / "a.gguf")
    saved[name][0, 0] = float("inf")
    save_file(saved, folder / "adapter_model.safetensors")
    with pytest.raises(Refusal, match="not finite"):
        write_lora_gguf(folder, tiny_base, tmp_path / "a.gguf")


def base_copy(tiny_base: Path, folder: Path, **settings: Any) -> Path:
    shutil.copytree(tiny_base, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"architectures": ["GPTBigCodeForCausalLM"]}, {"architectures": []}, {"hidden_act": "gelu"}, {"sliding_window": 4096}, {"rms_norm_eps": None},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, {"vocab_size": 1000}, {"num_attention_heads": 8},
    ],
)  # fmt: skip
def test_a_base_that_llama_cpp_would_compute_otherwise_is_refused(tiny_base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        write_model_gguf(base_copy(tiny_base, tmp_path / "base", **settings), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists() and not list(tmp_path.glob(".stage-*"))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("normalizer", {"type": "NFC"}), ("pre_tokenizer", {"type": "Whitespace"}), ("pre_tokenizer", None), ("decoder", None),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}),
    ],
)  # fmt: skip
def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(tiny_base: Path, tmp_path: Path, part: str, value: Any) -> None:
    folder = base_copy(tiny_base, tmp_path / "base")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {part: value}), encoding="utf-8")
    with pytest.raises(Refusal, match="convert_hf_to_gguf"):
        write_model_gguf(folder, tmp_path / "m.gguf")


def test_a_base_file_holds_weights_sizes_and_tokenizer(tiny_base: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    write_model_gguf(tiny_base, tmp_path / "m.gguf")
    fields, tensors = read(tmp_path / "m.gguf")
    saved = {name: t.numpy() for name, t in load_file(tiny_base / "model.safetensors").items()}
    assert np.array_equal(tensors["token_embd.weight"], saved["model.embed_tokens.weight"]) and "output.weight" not in tensors
    q, k = (saved[f"model.layers.1.self_attn.{n}_proj.weight"] for n in "qk")
    assert np.array_equal(tensors["blk.1.attn_q.weight"], q[naive_order(HEADS, HEAD_DIM)])
    assert np.array_equal(tensors["blk.1.attn_k.weight"], k[naive_order(KV_HEADS, HEAD_DIM)])
    assert np.array_equal(tensors["blk.0.ffn_down.weight"], saved["model.layers.0.mlp.down_proj.weight"])
    sizes = {"block_count": 2, "context_length": 1024, "embedding_length": 64, "feed_forward_length": 128, "attention.head_count": 4}
    sizes |= {"attention.head_count_kv": 2, "rope.dimension_count": 16, "vocab_size": 49152}
    assert {name: fields[f"llama.{name}"] for name in sizes} == sizes
    tokenizer = Tokenizer.from_file(str(tiny_base / "tokenizer.json"))
    assert fields["tokenizer.ggml.tokens"] == [tokenizer.id_to_token(i) for i in range(49152)]
    assert fields["tokenizer.ggml.token_type"] == [3] * 17 + [1] * (49152 - 17)
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]) == (1, 2)
    assert fields["tokenizer.ggml.add_bos_token"] is False and fields["tokenizer.ggml.add_space_prefix"] is False
    assert fields["tokenizer.chat_template"] == (tiny_base / "chat_template.jinja").read_text(encoding="utf-8")


@pytest.mark.slow
def test_eight_bits_stay_within_half_a_step_of_each_block_of_32(tiny_base: Path, tmp_path: Path) -> None:
    write_model_gguf(tiny_base, tmp_path / "f.gguf")
    write_model_gguf(tiny_base, tmp_path / "q.gguf", "q8_0")
    full, eight = read(tmp_path / "f.gguf")[1], read(tmp_path / "q.gguf")[1]
    for name, exact in full.items():
        if exact.ndim == 1:
            assert np.array_equal(exact, eight[name])
            continue
        blocks = exact.reshape(-1, 32)
        step = np.abs(blocks).max(1, keepdims=True) / 127
        assert (np.abs(blocks - eight[name].reshape(-1, 32)) <= step * 0.57).all()  # half a step, and the rounding of the step itself to f16


def test_llama_3_positions_are_those_of_transformers(tiny_base: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    stretched = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512,
    }  # fmt: skip
    folder = base_copy(tiny_base, tmp_path / "base", rope_parameters=stretched)
    write_model_gguf(folder, tmp_path / "m.gguf")
    fields, tensors = read(tmp_path / "m.gguf")
    theirs = LlamaRotaryEmbedding(AutoConfig.from_pretrained(folder)).inv_freq.numpy()
    plain = fields["llama.rope.freq_base"] ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    assert np.allclose(plain / tensors["rope_freqs.weight"], theirs, rtol=1e-5)
    assert tensors["rope_freqs.weight"].max() > 7.9 and tensors["rope_freqs.weight"].min() == 1.0


def test_a_gguf_file_can_stand_for_the_base_of_an_adapter(lora: Path, tiny_base: Path, tmp_path: Path) -> None:
    write_model_gguf(tiny_base, tmp_path / "m.gguf", "q8_0")
    write_lora_gguf(lora, tiny_base, tmp_path / "by_folder.gguf")
    write_lora_gguf(lora, tmp_path / "m.gguf", tmp_path / "by_file.gguf")
    assert (tmp_path / "by_folder.gguf").read_bytes() == (tmp_path / "by_file.gguf").read_bytes()
    with pytest.raises(Refusal, match=r"unreadable|another architecture"):
        (tmp_path / "no.gguf").write_bytes(b"GGUF")
        write_lora_gguf(lora, tmp_path / "no.gguf", tmp_path / "a.gguf")
