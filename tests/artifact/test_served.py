"""Other ways to hold a version: merged into its base, and answered by other engines. Each says the adapter's own answers, or refuses."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import pytest
import torch

import tuner
from tests.artifact.test_adapter import trained  # noqa: F401 (a fixture)
from tests.artifact.versions import small, with_adapter
from tuner.artifact.adapter import Adapter
from tuner.errors import Refusal

QUESTIONS = [f"thing number {i} please" + " indeed" * (i % 4) for i in range(4)]
Trained = tuple[Path, Path]


@pytest.fixture(scope="module")
def adapter(trained: Trained, tiny_base: Path) -> Adapter:  # noqa: F811
    return tuner.load_adapter("colours@1", trained[0], base=tiny_base, load="fp32")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- merged --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "ia3", "dora"])
def test_a_merged_adapter_answers_as_it_does_unmerged(kind: str, trained: Trained, tiny_base: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = with_adapter(trained[1], tmp_path / "colours" / "2", tiny_base, small(kind), seed=2)
    apart = tuner.load_adapter(str(folder), base=tiny_base, load="fp32")
    merged = tuner.load_adapter(str(folder), base=tiny_base, load="fp32", merge=True)
    assert not hasattr(merged.decoder.model, "peft_config")
    for question in QUESTIONS:
        ours, theirs = (a.next_logits(a.prompt_ids(question)) for a in (merged, apart))
        assert float((ours - theirs).abs().max()) < 1e-3 * float(theirs.abs().max())
    assert merged.answer_many(QUESTIONS, 6) == apart.answer_many(QUESTIONS, 6)
    assert "".join(merged.stream(QUESTIONS[0], 6)) == merged.answer(QUESTIONS[0], 6)


def test_a_merged_adapter_has_no_base_and_no_neighbours(trained: Trained, tiny_base: Path) -> None:  # noqa: F811
    merged = tuner.load_adapter("colours@1", trained[0], base=tiny_base, load="bf16", merge=True)
    assert next(merged.decoder.model.parameters()).dtype == torch.bfloat16
    for attempt in (
        lambda: merged.beside("colours@1"),
        lambda: merged.swap("colours@1"),
        lambda: merged.as_base().__enter__(),
        lambda: merged.divergences(["Some text."]),
    ):
        with pytest.raises(Refusal, match="merge"):
            attempt()
    assert merged.answer(QUESTIONS[0], 4)
    merged.close()
    with pytest.raises(Refusal, match="closed"):
        merged.answer(QUESTIONS[0], 4)


def test_what_cannot_be_merged_is_refused(trained: Trained, tiny_base: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = with_adapter(trained[1], tmp_path / "colours" / "2", tiny_base, small("prompt"), seed=2)
    with pytest.raises(Refusal, match="PROMPT_TUNING: trained tokens before the prompt"):
        tuner.load_adapter(str(folder), base=tiny_base, merge=True)
    with pytest.raises(Refusal, match="a base in int8"):
        tuner.load_adapter("colours@1", trained[0], base=tiny_base, device="cpu", load="int8", merge=True)


# --- other engines -------------------------------------------------------------------------------------------------


def test_an_engine_is_chosen_by_its_name(trained: Trained, tiny_base: Path) -> None:  # noqa: F811
    with pytest.raises(Refusal, match=r"llama\.cpp, transformers, vllm"):
        tuner.load_adapter("colours@1", trained[0], base=tiny_base, engine="llama")  # type: ignore[call-overload]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_that_is_not_installed_is_refused_with_the_way_to_install_it(trained: Trained, tiny_base: Path) -> None:  # noqa: F811
    with pytest.raises(Refusal, match=r"pip install 'tuner-lora\[vllm\]'"):
        tuner.load_adapter("colours@1", trained[0], base=tiny_base, engine="vllm")


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama.cpp is not installed: pip install 'tuner-lora[llama-cpp]'")
def test_llama_cpp_says_the_adapters_answers_in_every_way_it_is_asked(adapter: Adapter, trained: Trained, tiny_base: Path, cache: Path) -> None:  # noqa: F811
    wanted = adapter.answer_many(QUESTIONS, 6)
    with tuner.load_adapter("colours@1", trained[0], base=tiny_base, load="fp32", engine="llama.cpp") as served:
        assert served.engine == "llama.cpp, f32 weights" and served.prompt_ids(QUESTIONS[0]) == adapter.prompt_ids(QUESTIONS[0])
        assert served.answer_many(QUESTIONS, 6) == wanted
        streams, found = [served.stream(q, 6) for q in QUESTIONS], [""] * len(QUESTIONS)
        while any(stream._is_open for stream in streams):  # interleaved: each is read again from its beginning
            found = [text + next(stream, "") for text, stream in zip(found, streams, strict=True)]
        assert found == wanted

        async def at_once() -> list[object]:
            return await asyncio.gather(served.answer_many_async(QUESTIONS, 6), *(served.answer_async(q, 6) for q in QUESTIONS))

        assert asyncio.run(at_once()) == [wanted, *wanted]
        with pytest.raises(Refusal, match="at most 1024"):
            served.answer("word " * 1020, 64)
    with pytest.raises(Refusal, match="closed"):
        served.answer(QUESTIONS[0])
    files = {p.name: p.stat().st_mtime_ns for p in (cache / "tuner" / "gguf").glob("*.gguf")}
    assert len(files) == 2
    tuner.load_adapter("colours@1", trained[0], base=tiny_base, load="fp32", engine="llama.cpp").close()
    assert {p.name: p.stat().st_mtime_ns for p in (cache / "tuner" / "gguf").glob("*.gguf")} == files  # made once


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama.cpp is not installed: pip install 'tuner-lora[llama-cpp]'")
def test_what_llama_cpp_would_serve_as_something_else_is_refused(trained: Trained, tiny_base: Path, cache: Path, tmp_path: Path) -> None:  # noqa: F811
    for number, (kind, reason) in enumerate((("ia3", "peft_type"), ("dora", "use_dora")), start=2):
        folder = with_adapter(trained[1], tmp_path / "colours" / str(number), tiny_base, small(kind), seed=2)
        with pytest.raises(Refusal, match=reason):
            tuner.load_adapter(str(folder), base=tiny_base, engine="llama.cpp")
    for given in ({"load": "int8"}, {"merge": True}):
        with pytest.raises(Refusal, match=next(iter(given))):
            tuner.load_adapter("colours@1", trained[0], base=tiny_base, engine="llama.cpp", **given)  # type: ignore[call-overload]
    assert not list(cache.rglob("*.gguf"))
