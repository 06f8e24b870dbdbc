"""The schema of adapter_config.json: what every method of tuner writes is accepted with exactly its tensors; everything else is refused, and quickly."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.artifact.toy import CONFIG, LAYER, SHAPES, safetensors, toy_version
from tuner.artifact.adapter_config import CONFIGS, MOST_BYTES, MOST_RANK, SAVED_AS, AdapterConfig, Problem, read_config
from tuner.artifact.safetensors_header import read_header, tensors_of
from tuner.artifact.strict_json import DEEPEST, Malformed, parse
from tuner.artifact.untrusted import Payload, refuse_unfit, refuse_unsafe
from tuner.base import widen
from tuner.errors import Refusal
from tuner.quantise import load_quantised
from tuner.train import methods
from tuner.train.methods import METHODS, attach
from tuner.train.spec import FIELDS, MethodSpec

BASE = Path(__file__).parent / "releases" / "0.1.0" / "base"
SMALL: dict[str, dict[str, Any]] = {
    "vera": {"rank": 8}, "oft": {"block_size": 8}, "adalora": {"rank": 4, "final_rank": 2}, "eva": {"rank": 4, "rho": 2.0},
    **{kind: {"virtual_tokens": 5} for kind in ("prefix", "prompt", "p_tuning")},
}  # fmt: skip
VARIANTS: dict[str, Callable[[str], dict[str, Any] | None]] = {
    "plain": lambda kind: {},
    "ranks": lambda kind: {"rank_per_layer": {"1": 2, "down_proj": 3}} if "rank_per_layer" in FIELDS[kind] else None,
    "norms": lambda kind: {"modules_to_save": ["norm"]} if METHODS[kind].limits.modules_to_save else None,
    "head": lambda kind: {"modules_to_save": ["embed_tokens"]} if METHODS[kind].limits.new_tokens else None,  # tied: saved with it
    "rows": lambda kind: {} if METHODS[kind].limits.new_tokens else None,
}


def base_for(kind: str, rows: int = 0) -> Any:
    if kind == "loftq":
        model = load_quantised(BASE, "nf4", torch.float32, "cpu", sharded=False, trust_remote_code=False).eval()
    else:
        model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    if rows:
        widen(model, rows)
    return model


def trained(kind: str, variant: str, given: dict[str, Any], folder: Path) -> None:
    """The adapter's files of this kind, as `tuner run` writes them: attached, a few steps where ranks are cut, saved."""
    ids = torch.arange(3, 19)[None].repeat(2, 1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    spec = MethodSpec(**{"kind": kind, **SMALL.get(kind, {"rank": 4} if "rank" in FIELDS[kind] else {}), **given})
    rows = 323 if variant == "rows" else 0
    model = attach(spec, base_for(kind, rows), seed=7, batches=lambda: [batch, batch], new_ids=(321, 322) if rows else ())
    for step in range(1, 7) if kind == "adalora" else ():
        loss = model(**batch).loss
        loss.backward()
        methods.after_step(spec, model, step, 6)
    methods.save(spec, model, folder, "b", None)


def is_unfit(payload: Payload, base: Any) -> bool:
    try:
        refuse_unfit("toy@1", payload, base)
    except Refusal:
        return True
    return False


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_what_every_method_writes_is_accepted_with_exactly_its_tensors_and_fits_its_base(kind: str, tmp_path: Path) -> None:
    made = 0
    for variant, choose in VARIANTS.items():
        given = choose(kind)
        if given is None:
            continue
        folder = tmp_path / variant
        trained(kind, variant, given, folder)
        files = {p.name: p.read_bytes() for p in folder.iterdir()}
        shutil.rmtree(folder)
        manifest = toy_version(folder, json.loads(files["adapter_config.json"]), files["adapter_model.safetensors"], method={"kind": kind})
        payload = refuse_unsafe(folder, manifest)
        assert set(payload.tensors) == set(load_file(folder / "adapter_model.safetensors"))
        base = base_for(kind, 323 if variant == "rows" else 0)
        refuse_unfit("toy@1", payload, base)
        for name in list(payload.tensors)[:: max(1, len(payload.tensors) // 4)]:
            if "norm" not in name and "lm_head" not in name:  # which modules a base has and ties is compared after loading (tuner.artifact.host)
                fewer = {n: t for n, t in payload.tensors.items() if n != name}
                assert list(payload.config.tensor_problems(fewer)) or is_unfit(dataclasses.replace(payload, tensors=fewer), base), name
        extra = {**payload.tensors, "base_model.model.model.layers.0.extra.weight": next(iter(payload.tensors.values()))}
        assert list(payload.config.tensor_problems(extra))
        made += 1
    assert made >= 1 if FIELDS[kind].keys() & {"virtual_tokens"} else made >= 2


def test_every_method_and_every_key_of_the_installed_peft_is_known() -> None:
    """A new PEFT key is a decision to make: add it to tuner.artifact.adapter_config with what it may hold."""
    assert set(SAVED_AS) == set(METHODS) and len(SAVED_AS) == 15
    swept = 0
    for name, kind in CONFIGS.items():
        fields = {f.name for f in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[name])} - {"runtime_config"}
        assert fields <= set(kind.model_fields), f"{name}: {sorted(fields - set(kind.model_fields))}"
        swept += len(fields)
    assert swept >= 150


# --- what is refused -----------------------------------------------------------------------------------------------

EVIL = "(([a-z._0-9])+)+!"  # hangs Python's re on any module name
BAD: tuple[tuple[str, Any], ...] = (
    ("peft_type", "XLORA"), ("peft_type", None), ("peft_type", 3), ("peft_type", "lora"), ("task_type", "SEQ_CLS"), ("task_type", None),
    ("auto_mapping", {"base_model_class": "system", "parent_library": "os"}), ("megatron_core", "os"), ("megatron_config", {"a": 1}),
    ("runtime_config", {"ephemeral_gpu_offload": True}), ("evil", 1), ("__class__", "x"), ("evil", "os.system"), ("parent_library", "os"),
    ("base_model_name_or_path", "/etc"), ("base_model_name_or_path", "../b"), ("base_model_name_or_path", "https://evil.example/b"),
    ("base_model_name_or_path", "b\x1b[2J"), ("base_model_name_or_path", "~/b"), ("base_model_name_or_path", ["b"]), ("base_model_name_or_path", "b" * 600),
    ("revision", "main"), ("revision", "0" * 39), ("inference_mode", False), ("inference_mode", "true"), ("peft_version", "0\n1"), ("peft_version", 0.21),
    ("target_modules", EVIL), ("target_modules", "all-linear"), ("target_modules", "q_proj"), ("target_modules", [EVIL]), ("target_modules", [".*"]),
    ("target_modules", ["q_proj", "q_proj$"]), ("target_modules", []), ("target_modules", None), ("target_modules", [3]), ("target_modules", [""]),
    ("target_modules", ["q_proj."]), ("target_modules", ["q_proj\n"]), ("target_modules", ["a" * 300]), ("target_modules", {"q_proj": 1}),
    ("target_modules", ["q_proj", "k_proj"]), ("target_modules", ["k_proj"]), ("target_modules", ["proj"]),
    ("modules_to_save", EVIL), ("modules_to_save", [EVIL]), ("modules_to_save", ["lm_head"]), ("modules_to_save", []),
    ("exclude_modules", EVIL), ("exclude_modules", ["k_proj"]), ("layers_pattern", EVIL), ("layers_pattern", ["layers"]), ("layers_to_transform", [0]),
    ("target_parameters", ["a"]), ("layer_replication", [[0, 1]]), ("rank_pattern", {EVIL: 2}), ("rank_pattern", {"k_proj": 2}),
    ("rank_pattern", {"q_proj": 2}),
    ("rank_pattern", {"model.layers.0.self_attn.q_proj": 3}), ("rank_pattern", {"model.layers.0.self_attn.q_proj": 10**9}), ("rank_pattern", [2]),
    ("alpha_pattern", {EVIL: 2}), ("alpha_pattern", {"model.layers.0.self_attn.q_proj": 1e12}), ("alpha_pattern", {"q_proj": 2.0}),
    ("r", 10**9), ("r", 0), ("r", -1), ("r", 2.5), ("r", True), ("r", "2"), ("r", None), ("r", 3), ("r", MOST_RANK + 1),
    ("lora_alpha", 1e9), ("lora_alpha", 131_074), ("lora_alpha", 0), ("lora_alpha", -1.0), ("lora_alpha", None), ("lora_alpha", "4"), ("lora_dropout", 1.0),
    ("lora_dropout", -0.1), ("use_dora", True), ("use_dora", 1), ("use_qalora", True), ("use_rslora", "yes"), ("lora_bias", True), ("bias", "all"),
    ("init_lora_weights", False), ("init_lora_weights", "eva"), ("init_lora_weights", "corda"), ("loftq_config", {"loftq_bits": 4}), ("eva_config", {}),
    ("corda_config", {"cache_file": "/tmp/x.pt"}), ("arrow_config", {}), ("alora_invocation_tokens", [1]), ("trainable_token_indices", {EVIL: [1]}),
    ("trainable_token_indices", {"embed_tokens": [-1]}), ("trainable_token_indices", {"embed_tokens": [1]}), ("trainable_token_indices", [1]),
)  # fmt: skip


def problems_of(config: Any, weights: bytes | None = None) -> list[Problem]:
    data = safetensors(SHAPES) if weights is None else weights
    found = read_config(parse(json.dumps(config).encode(), MOST_BYTES))
    if not isinstance(found, AdapterConfig):
        return found
    length = int.from_bytes(data[:8], "little")
    return list(found.tensor_problems(tensors_of(data[8 : 8 + length], len(data))))


def test_what_no_adapter_of_tuners_says_is_refused_within_a_second() -> None:
    assert problems_of(CONFIG) == []
    began = time.process_time()
    for key, value in BAD:
        changed = {**CONFIG, key: value}
        assert problems_of(changed), (key, value)
        assert all(len(p.found) < 400 and "\x1b" not in p.found + p.field for p in problems_of(changed))
    assert len(BAD) >= 90 and time.process_time() - began < 10  # no name was ever taken for a pattern: one alone would hang for ever
    for key in CONFIG.keys() - {"base_model_name_or_path", "inference_mode", "bias"}:
        assert problems_of({k: v for k, v in CONFIG.items() if k != key}), key
    assert [p.field for p in problems_of({**CONFIG, "r": 0, "lora_alpha": -1, "evil": 1, "target_modules": EVIL})].__len__() == 4


def test_options_of_a_later_peft_that_are_off_are_let_through_and_no_others() -> None:
    assert problems_of({**CONFIG, "a_new_option": None, "another": False}) == []
    for value in (True, 0, 1, "", "x", {}, [], 0.0):
        assert [p.field for p in problems_of({**CONFIG, "a_new_option": value})] == ["a_new_option"]


def test_prompt_methods_name_no_tokenizer_and_only_their_one_tensor() -> None:
    config = {
        "peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 3, "token_dim": 4, "num_layers": 2, "num_attention_heads": 2,
    }  # fmt: skip
    weights = safetensors({"prompt_embeddings": [3, 4]})
    assert problems_of(config, weights) == []
    for key, value in (
        ("tokenizer_name_or_path", "evil/tokenizer"), ("prompt_tuning_init", "TEXT"), ("prompt_tuning_init_text", "x"), ("tokenizer_kwargs", {"a": 1}),
        ("num_virtual_tokens", 10**9), ("num_virtual_tokens", 4), ("token_dim", 5), ("token_dim", 10**9), ("num_transformer_submodules", 2), ("num_layers", 0),
    ):  # fmt: skip
        assert problems_of({**config, key: value}, weights), key
    assert problems_of(config, safetensors({"prompt_embeddings": [3, 4], "more": [1]}))


# --- strict JSON ---------------------------------------------------------------------------------------------------

MALFORMED = (
    b"", b"{", b"{}{}", b"nul", b"{'a': 1}", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": -Infinity}', b'{"a": 1e999}', b'{"a": 1, "a": 1}',
    b'{"a": {"b": 1, "b": 2}}',
    b'{"a": ' + b"9" * 65 + b"}", b'{"a": ' + b"9" * 5000 + b"}", b'{"a": 0.' + b"1" * 100 + b"}", b"[" * 33 + b"]" * 33, b"[" * 100_000, b'{"a":' * 50_000,
    b'"' + b'\\"' * 400_000, b'{"a": "\xff"}', b'\xef\xbb\xbf{"a": 1}', '{"a": 1}'.encode("utf-16"), b'{"a": "\\ud800"}', b'{"\\udfff": 1}', b'{"a": "\n"}',
    b'{"a": "' + b"x" * 2**20 + b'"}',
)  # fmt: skip


def test_json_with_two_meanings_or_none_is_refused_within_a_second() -> None:
    began = time.process_time()
    for data in MALFORMED:
        with pytest.raises(Malformed):
            parse(data, 2**20)
    assert len(MALFORMED) >= 25 and time.process_time() - began < 10
    for value in ({}, [], {"a": [1, 2.5, None, True, "é\u2028", {"b": {}}]}, "[[[[" * 20, json.loads("[" * DEEPEST + "]" * DEEPEST)):
        assert parse(json.dumps(value).encode(), 2**20) == value


# --- against the base ----------------------------------------------------------------------------------------------


def test_an_adapter_that_does_not_cover_what_its_targets_mean_is_refused_before_peft_allocates(tmp_path: Path) -> None:
    trained("lora", "plain", {}, tmp_path / "a")
    config, tensors = json.loads((tmp_path / "a" / "adapter_config.json").read_text(encoding="utf-8")), load_file(tmp_path / "a" / "adapter_model.safetensors")

    def refused(tensors: dict[str, torch.Tensor]) -> str:
        save_file(tensors, tmp_path / "w", metadata={"format": "pt"})
        shutil.rmtree(tmp_path / "v", ignore_errors=True)
        payload = refuse_unsafe(tmp_path / "v", toy_version(tmp_path / "v", config, (tmp_path / "w").read_bytes()))
        with pytest.raises(Refusal) as caught:
            refuse_unfit("toy@1", payload, base_for("lora"))
        return str(caught.value)

    first = {n: t for n, t in tensors.items() if ".layers.0." in n}  # the second layer would get new weights of PEFT's own
    assert "model.layers.1.mlp.down_proj" in refused(first)
    more = {n.replace(".layers.1.", ".layers.7."): t.clone() for n, t in tensors.items() if ".layers.1." in n}
    assert "model.layers.7" in refused({**tensors, **more})
    wide = {n: torch.zeros(t.shape[0], t.shape[1] + 1) if n.endswith("lora_A.weight") else t for n, t in tensors.items()}
    assert "the base's" in refused(wide)
    assert set(read_header(tmp_path / "w")) == set(tensors) and LAYER in str(sorted(tensors))


def test_an_adapter_that_reaches_into_another_on_the_same_base_is_refused(tmp_path: Path) -> None:
    """Served beside others, it would change their answers."""
    from peft import LoraConfig, get_peft_model

    def given(rank: int, path: str, inputs: int, outputs: int, **changes: Any) -> Payload:
        shapes = {f"base_model.model.{path}.lora_A.weight": [rank, inputs], f"base_model.model.{path}.lora_B.weight": [outputs, rank]}
        more = {f"base_model.model.{n}": s for n, s in changes.pop("saved", {}).items()}
        shutil.rmtree(tmp_path / "v", ignore_errors=True)
        config = {**CONFIG, "r": rank, "target_modules": [path], **changes}
        return refuse_unsafe(tmp_path / "v", toy_version(tmp_path / "v", config, safetensors(shapes | more)))

    held = {"modules_to_save": ["norm"], "trainable_token_indices": {"embed_tokens": [1]}}
    host = get_peft_model(base_for("lora"), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4, **held)).get_base_model()
    layer = "model.layers.0.self_attn.q_proj"
    refuse_unfit("toy@1", given(2, layer, 32, 32), host)
    refuse_unfit("toy@1", given(2, layer, 32, 32, modules_to_save=["model.norm"], saved={"model.norm.weight": [32]}), host)
    rows = {"trainable_token_indices": {"embed_tokens": [5]}, "saved": {"model.embed_tokens.token_adapter.trainable_tokens_delta": [1, 32]}}
    refuse_unfit("toy@1", given(2, layer, 32, 32, **rows), host)
    for payload in (
        given(2, f"{layer}.base_layer", 32, 32), given(2, f"{layer}.lora_A.default", 32, 4), given(2, "model.norm.original_module", 32, 32),
        given(2, layer, 32, 32, modules_to_save=["lora_A.default"], saved={f"{layer}.lora_A.default.weight": [4, 32]}),
        given(2, layer, 32, 32, modules_to_save=["q_proj.base_layer"], saved={f"{layer}.base_layer.weight": [32, 32]}),
    ):  # fmt: skip
        assert is_unfit(payload, host)
