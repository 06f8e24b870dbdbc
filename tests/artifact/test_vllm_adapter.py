"""vLLM is given the ids of training, or nothing: what it would load as something else is refused, and what it does not answer is asked in transformers."""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.artifact.test_gguf import random_lora
from tuner.artifact.adapter import Adapter
from tuner.artifact.decode import Decoder
from tuner.artifact.engines import VLLM_RANKS
from tuner.artifact.store import Version
from tuner.artifact.vllm_adapter import (
    CHECKED,
    CONTEXT_TOKENS,
    VllmAdapter,
    VllmBatches,
    context_tokens,
    engine_settings,
    fastest,
    refuse_other_answers,
    refuse_unservable,
    sampling_settings,
    unservable,
    until_stop,
)  # fmt: skip
from tuner.base import Precision
from tuner.errors import Refusal
from tuner.template.spec import TemplateSpec
from tuner.template.tokens import open_encoder

HAS_VLLM = importlib.util.find_spec("vllm") is not None
QUESTIONS = ("please put a stop on my bank account", "hi", "i'd like to transfer $400 from household to savings", "and now?")
BF16 = Precision("cpu", "bfloat16", None)


class ByDecoder:
    """Generates with the very model that transformers holds, one prompt at a time; counts what it was asked."""

    def __init__(self, decoder: Decoder, broken: bool = False):
        self.decoder, self.broken = decoder, broken
        self.asked: list[tuple[list[list[int]], int, bool]] = []

    def greedy(self, prompts: Sequence[list[int]], max_new_tokens: int, stop_ids: Collection[int], as_base: bool) -> list[list[int]]:
        self.asked.append(([list(p) for p in prompts], max_new_tokens, as_base))
        assert set(stop_ids) == set(self.decoder.stop_ids)
        alone = [lambda p=p: self.decoder.greedy([p], max_new_tokens)[0] for p in prompts]  # type: ignore[misc]
        if not as_base and not self.broken:
            return [answer() for answer in alone]
        with self.decoder.model.disable_adapter():
            return [answer() for answer in alone]


def opened(base: Path, lora: Path, precision: Precision = BF16, spec: TemplateSpec | None = None) -> Adapter:
    """An adapter as load_adapter opens it, of a folder that PEFT saved."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    encoder = open_encoder(base, spec or TemplateSpec(system="Answer."), "tiny")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), lora).eval()
    decoder = Decoder(model, encoder.pad_id, encoder.stop_ids, batch=2)
    return Adapter(Version("tiny", 1, lora), {"base": {"name": "tiny"}}, encoder, decoder, precision, base)


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return opened(tiny_base, random_lora(tiny_base, tmp_path_factory.mktemp("lora")))


@pytest.fixture
def changed(adapter: Adapter, tmp_path: Path) -> Callable[..., Adapter]:
    """The adapter with other words in its adapter_config.json; `saved` are the tensors of its file where they change."""
    import shutil

    from safetensors.torch import load_file, save_file

    def change(rename: Callable[[str], str] = lambda name: name, **settings: Any) -> Adapter:
        folder = Path(shutil.copytree(adapter.version.folder, tmp_path / "changed"))
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        (folder / "adapter_config.json").write_text(json.dumps(config | settings), encoding="utf-8")
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file({rename(name): tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
        return Adapter(Version("tiny", 1, folder), adapter.manifest, adapter.encoder, adapter.decoder, BF16, adapter.base_folder)

    return change


def served(adapter: Adapter, broken: bool = False) -> tuple[VllmAdapter, ByDecoder]:
    batches = ByDecoder(adapter.decoder, broken)
    return VllmAdapter(adapter, batches, "vLLM 0"), batches


# --- what is refused


def test_plain_lora_as_peft_saves_it_is_served(adapter: Adapter, changed: Callable[..., Adapter]) -> None:
    assert unservable(adapter).problems == []
    assert unservable(changed(use_rslora=True, r=8, init_lora_weights="gaussian")).problems == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_dora", True), ("rank_pattern", {"q_proj": 4}), ("alpha_pattern", {"q_proj": 4}), ("modules_to_save", ["lm_head"]), ("lora_bias", True),
        ("bias", "all"), ("trainable_token_indices", [5]), ("target_parameters", ["experts.gate_up_proj"]), ("layer_replication", [[0, 1]]),
        ("use_qalora", True), ("alora_invocation_tokens", [1]), ("use_bdlora", {"a": 1}), ("init_lora_weights", "pissa"), ("fan_in_fan_out", True),
        ("r", 1024), ("peft_type", "IA3"), ("peft_type", "PROMPT_TUNING"), ("a_setting_of_a_later_peft", 3),
    ],
)  # fmt: skip
def test_what_vllm_does_not_read_is_refused_by_name(changed: Callable[..., Adapter], name: str, value: Any) -> None:
    with pytest.raises(Refusal) as refused:
        refuse_unservable(changed(**{name: value}))
    assert [p.field for p in refused.value.problems] == [name]


def test_every_setting_that_peft_writes_for_plain_lora_is_known(adapter: Adapter) -> None:
    """A setting that is set by default and not listed would refuse every adapter."""
    from peft import LoraConfig

    saved = json.loads((adapter.version.folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert set(LoraConfig().to_dict()) <= set(saved)
    refuse_unservable(adapter)


def test_tensors_of_embeddings_and_head_are_refused(changed: Callable[..., Adapter]) -> None:
    with pytest.raises(Refusal, match="lm_head"):
        refuse_unservable(changed(rename=lambda name: name.replace("layers.0.self_attn.q_proj", "lm_head")))


@pytest.mark.parametrize(("precision", "found"), [(Precision("cuda:0", "float32", None), "float32"), (Precision("cuda:0", "bfloat16", None, "nf4"), "nf4")])
def test_quantised_and_fp32_bases_are_refused(adapter: Adapter, precision: Precision, found: str) -> None:
    other = Adapter(adapter.version, adapter.manifest, adapter.encoder, adapter.decoder, precision, adapter.base_folder)
    with pytest.raises(Refusal, match=found):
        refuse_unservable(other)


def test_trained_tokens_are_refused(adapter: Adapter, tiny_base: Path) -> None:
    encoder = open_encoder(tiny_base, TemplateSpec(new_tokens=["<ticket>"]), "tiny")
    other = Adapter(adapter.version, adapter.manifest, encoder, adapter.decoder, BF16, adapter.base_folder)
    with pytest.raises(Refusal, match=r"template\.new_tokens"):
        refuse_unservable(other)


def test_all_reasons_are_given_at_once(changed: Callable[..., Adapter]) -> None:
    with pytest.raises(Refusal) as refused:
        refuse_unservable(changed(use_dora=True, r=1024, modules_to_save=["lm_head"]))
    assert {p.field for p in refused.value.problems} == {"use_dora", "r", "modules_to_save"}


# --- what is asked


def test_vllm_is_given_the_prompt_ids_of_training_and_answers_come_in_order(adapter: Adapter) -> None:
    model, batches = served(adapter)
    ticks: list[int] = []
    answers = model.answer_many(QUESTIONS, 6, ticks.append)
    assert answers == adapter.answer_many(QUESTIONS, 6)
    assert batches.asked == [([adapter.prompt_ids(q) for q in QUESTIONS], 6, False)]
    assert sum(ticks) == len(QUESTIONS)


def test_as_base_asks_without_the_adapter_and_without_system_leaves_the_system_prompt_out(adapter: Adapter) -> None:
    model, batches = served(adapter)
    tuned = model.answer_many(QUESTIONS, 6)
    with model.as_base(), adapter.as_base():
        assert model.answer_many(QUESTIONS, 6) == adapter.answer_many(QUESTIONS, 6) != tuned
    with model.without_system():
        model.answer_many(QUESTIONS, 6)
        bare = [adapter.prompt_ids(q) for q in QUESTIONS]
    assert [as_base for _, _, as_base in batches.asked] == [False, True, False]
    assert batches.asked[-1][0] == bare != batches.asked[0][0]
    assert model.answer_many(QUESTIONS, 6) == tuned


def test_a_prompt_that_does_not_fit_vllm_is_asked_in_transformers(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [len(adapter.prompt_ids(q)) for q in QUESTIONS]
    monkeypatch.setattr("tuner.artifact.vllm_adapter.CONTEXT_TOKENS", max(lengths) + 5)
    model, batches = served(adapter)
    ticks: list[int] = []
    assert model.answer_many(QUESTIONS, 6, ticks.append) == adapter.answer_many(QUESTIONS, 6)
    assert [len(p) for p in batches.asked[0][0]] == [n for n in lengths if n < max(lengths)]
    assert sum(ticks) == len(QUESTIONS)


def test_likelihoods_and_divergences_are_those_of_transformers(adapter: Adapter) -> None:
    model, batches = served(adapter)
    assert model.token_nats(QUESTIONS, ["yes"] * 4) == adapter.token_nats(QUESTIONS, ["yes"] * 4)
    assert model.losses(QUESTIONS[:1], ["no"]) == adapter.losses(QUESTIONS[:1], ["no"])
    assert torch.equal(model.label_scores(QUESTIONS, ["a", "b"]), adapter.label_scores(QUESTIONS, ["a", "b"]))
    assert model.choice_nats(QUESTIONS[:1], [["a", "b"]]) == adapter.choice_nats(QUESTIONS[:1], [["a", "b"]])
    assert model.continuations(QUESTIONS, [[5]] * 4, 3) == adapter.continuations(QUESTIONS, [[5]] * 4, 3)
    assert model.divergences(["two words"]) == adapter.divergences(["two words"])
    assert model.prompt_divergences(QUESTIONS[:2]) == adapter.prompt_divergences(QUESTIONS[:2])
    assert model.fits(QUESTIONS, 400) == adapter.fits(QUESTIONS, 400)
    assert model.completion_ids(QUESTIONS[0], "a") == adapter.completion_ids(QUESTIONS[0], "a")
    assert not batches.asked


def test_it_has_every_question_of_a_contestant() -> None:
    from tuner.evaluate.result import Contestant

    for name in (n for n in vars(Contestant) if not n.startswith("_")):
        assert list(inspect.signature(getattr(VllmAdapter, name)).parameters) == list(inspect.signature(getattr(Adapter, name)).parameters), name


def test_answers_of_vllm_are_remembered_apart_from_those_of_transformers(adapter: Adapter) -> None:
    model, _ = served(adapter)
    assert str(model.precision) == "bfloat16 weights, answers by vLLM 0" != str(adapter.precision)
    assert model.precision.device == adapter.precision.device


def test_an_engine_that_leaves_the_adapter_out_is_refused(adapter: Adapter) -> None:
    model, batches = served(adapter)
    refuse_other_answers(model)
    assert [as_base for _, _, as_base in batches.asked] == [False, True] and len(batches.asked[0][0]) == len(CHECKED)
    with pytest.raises(Refusal, match=r"of 8 beginnings .* \(adapter\)"):
        refuse_other_answers(served(adapter, broken=True)[0])


# --- settings


def test_settings_hold_the_folder_the_rank_that_vllm_allows_and_a_share_of_the_free_memory(adapter: Adapter, changed: Callable[..., Adapter]) -> None:
    settings = engine_settings(changed(r=3), free_bytes=60 * 2**30, total_bytes=80 * 2**30)
    assert settings["max_lora_rank"] == min(VLLM_RANKS) and settings["enable_lora"] is True
    assert settings["gpu_memory_utilization"] == pytest.approx(0.6 * 60 / 80)
    assert settings["model"] == str(adapter.base_folder) and settings["dtype"] == "bfloat16"
    limit = adapter.decoder.model.config.max_position_embeddings
    assert settings["max_model_len"] == context_tokens(adapter) == min(limit, CONTEXT_TOKENS)


def test_answers_end_before_the_first_stop_token() -> None:
    assert until_stop([5, 6, 2], {2}) == [5, 6] == until_stop([5, 6], {2}) == until_stop([5, 6, 2, 7, 2], {2})
    assert until_stop([2], {2}) == []


def test_without_a_gpu_the_adapter_itself_answers(adapter: Adapter) -> None:
    assert fastest(adapter) is adapter


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_without_vllm_the_adapter_itself_answers(adapter: Adapter) -> None:
    on_gpu = Adapter(adapter.version, adapter.manifest, adapter.encoder, adapter.decoder, replace(BF16, device="cuda:0"), adapter.base_folder)
    assert fastest(on_gpu) is on_gpu


# --- with vLLM


@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed: pip install 'tuner-lora[vllm]'")
def test_vllm_knows_every_setting(adapter: Adapter) -> None:
    import vllm
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora.request import LoRARequest

    known = set(inspect.signature(vllm.LLM).parameters) | set(inspect.signature(EngineArgs).parameters)
    assert set(engine_settings(adapter, 1, 2)) <= known
    chosen = vllm.SamplingParams(**sampling_settings(7, {3, 2}))
    assert (chosen.max_tokens, chosen.temperature, chosen.stop_token_ids, chosen.ignore_eos, chosen.detokenize) == (7, 0.0, [2, 3], True, False)
    assert LoRARequest("adapter", 1, "/there").lora_int_id == 1


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed: pip install 'tuner-lora[vllm]'")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_vllm_says_what_transformers_says(smollm2: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lora = random_lora(smollm2.folder, tmp_path / "lora", std=0.03, r=8)
    open_adapter = opened(smollm2.folder, lora, Precision("cuda:0", "bfloat16", None))
    open_adapter.decoder.model.to("cuda:0", torch.bfloat16)
    open_adapter.decoder.device = torch.device("cuda:0")
    with caplog.at_level(logging.WARNING, logger="tuner"):
        found = fastest(open_adapter)
    assert isinstance(found, VllmAdapter) and isinstance(found.batches, VllmBatches), caplog.text
    ours, theirs = found.answer_many(QUESTIONS, 16), open_adapter.answer_many(QUESTIONS, 16)
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= len(QUESTIONS) - 1  # rounding differs
