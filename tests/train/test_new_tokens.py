"""New tokens: one id each, only their rows trained, saved in the adapter, and loaded by plain PEFT with equal logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tuner
from tests.conftest import colour_rows, jsonl
from tuner import pipeline
from tuner.base import BaseSpec, Precision, load_model, resolve_base, widen
from tuner.errors import Refusal
from tuner.recipe import load_recipe

TOKENS = ["<ticket>", "<done>"]


def recipe_with_tokens(recipe_file: Callable[..., Path]) -> Path:
    path = recipe_file(template={"new_tokens": TOKENS, "max_tokens": 128}, train={"epochs": 2, "peak_learning_rate": 5e-2})
    rows = [{**row, "prompt": f"<ticket> {row['prompt']}", "completion": f"{row['completion']} <done>"} for row in colour_rows(24)]
    jsonl(path.parent / "train.jsonl", rows)
    return path


@pytest.fixture
def version(recipe_file: Callable[..., Path], tmp_path: Path) -> Path:
    run = pipeline.run(load_recipe(recipe_with_tokens(recipe_file)), tmp_path / "store", grade_after=False)
    assert run.version is not None
    return run.version.folder


def test_only_the_new_rows_are_trained_and_plain_peft_loads_them_with_equal_logits(version: Path, tiny_base: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = tuner.load_adapter(str(version), base=tiny_base, load="fp32")
    ids = adapter.encoder.new_ids
    assert len(ids) == 2 and all(len(adapter.encoder.tokenizer.encode(t, add_special_tokens=False).ids) == 1 for t in TOKENS)
    prompt = adapter.prompt_ids("<ticket> what colour is the sky")
    assert prompt.count(ids[0]) == 1

    tokenizer = AutoTokenizer.from_pretrained(version)
    assert tokenizer.convert_tokens_to_ids(TOKENS) == list(ids)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    before = base.get_input_embeddings().weight.detach().clone()
    base.resize_token_embeddings(len(tokenizer))
    plain = PeftModel.from_pretrained(base, str(version)).eval()
    with torch.no_grad():
        theirs = plain(torch.tensor([prompt])).logits[0, -1]
    ours = adapter.next_logits(prompt)
    assert torch.equal(ours, theirs) or float((ours - theirs).abs().max()) < 1e-5

    known = [t for t in prompt if t not in ids][:20]
    with torch.no_grad():
        rows = plain.get_input_embeddings()(torch.tensor(known))
        new = plain.get_input_embeddings()(torch.tensor(list(ids)))
    assert torch.equal(rows, before[known]), "a row of the base was trained"
    assert float((new - before.float().mean(dim=0)).abs().max()) > 1e-4, "a new row stayed where it began"


def test_an_adapter_that_lost_its_new_rows_is_refused(version: Path, tiny_base: Path) -> None:
    from safetensors.torch import load_file, save_file

    from tests.artifact.test_adapter import reseal

    weights = load_file(version / "adapter_model.safetensors")
    without = {name: tensor for name, tensor in weights.items() if "trainable_tokens" not in name}
    assert 0 < len(without) < len(weights)
    (version / "adapter_model.safetensors").chmod(0o644)
    save_file(without, version / "adapter_model.safetensors")
    reseal(version)
    with pytest.raises(Refusal, match="trainable_tokens_delta"):
        tuner.load_adapter(str(version), base=tiny_base)


def test_new_tokens_are_text_in_every_other_sense(recipe_file: Callable[..., Path]) -> None:
    prepared = pipeline.prepare(load_recipe(recipe_with_tokens(recipe_file)))
    encoder = prepared.encoder
    assert not set(TOKENS) & set(encoder.control_texts)
    row = prepared.rows["train"][0]
    assert encoder.decode(row.input_ids[row.prompt_tokens :]).endswith("<done>")
    assert encoder.new_ids[0] in row.input_ids and encoder.new_ids[1] in [t for t in row.labels if t >= 0]


@pytest.mark.parametrize("wrong", [[" "], ["<a>", "<a>"], [""]])
def test_blank_and_repeated_new_tokens_are_refused(wrong: list[str], recipe_file: Callable[..., Path]) -> None:
    with pytest.raises(Refusal, match="new_tokens"):
        pipeline.prepare(load_recipe(recipe_file(template={"new_tokens": wrong, "max_tokens": 128})))


def test_a_model_grows_the_same_way_every_time_and_never_shrinks(tiny_base: Path) -> None:
    grown = []
    for _ in range(2):
        model = load_model(resolve_base(BaseSpec(model=str(tiny_base)), tiny_base), Precision("cpu", "float32", None))
        rows = model.get_input_embeddings().weight.shape[0]
        widen(model, rows + 3)
        widen(model, 5)
        grown.append(model.get_input_embeddings().weight.detach().clone())
        assert grown[-1].shape[0] == rows + 3
    assert torch.equal(*grown)
