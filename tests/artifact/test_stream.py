"""Answers in pieces and answers awaited: the same text as the call that blocks, others answered meanwhile, and nothing held by who has left."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models

import tuner
from tests.artifact.test_adapter import trained  # noqa: F401 (a fixture)
from tests.artifact.test_swap import like_first
from tuner.artifact.adapter import Adapter
from tuner.artifact.stream import Pieces, Stream
from tuner.errors import Refusal

QUESTIONS = [f"thing number {i} please" + " indeed" * (i % 4) for i in range(5)]
HALF = "\N{REPLACEMENT CHARACTER}"
TEXTS = (
    "plain words, two  blanks and\n\na line", "héé 🤹🏽‍♀️ 汉字 ไทย 👩‍👩‍👧‍👦 مرحبا", f"{HALF} left {HALF}{HALF}",
    " ", "", "don 't , no .", "a🤹",
)  # fmt: skip


class ByDecoder:
    """An encoder that decodes with a tokenizer of one's own."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def said(encoder: Any, ids: list[int]) -> list[str]:
    pieces = Pieces(encoder)
    return [*(pieces.add(token) for token in ids), pieces.end()]


def test_the_pieces_of_any_text_join_to_the_whole_and_no_half_character_is_shown(encoder: Any) -> None:
    swept = 0
    for text in TEXTS:
        ids = encoder.tokenizer.encode(text, add_special_tokens=False).ids
        for cut in range(len(ids) + 1):  # an answer may end in the middle of a character
            pieces = said(encoder, ids[:cut])
            assert "".join(pieces) == encoder.decode(ids[:cut])
            assert not any(piece.endswith(HALF) for piece in pieces[:-1])
            swept += 1
    assert swept > 60
    flags = said(encoder, encoder.tokenizer.encode("one two three four", add_special_tokens=False).ids)
    assert sum(bool(piece) for piece in flags) == 4  # word by word, not at the end


@pytest.mark.parametrize(
    ("decoder", "words", "steady"),
    [
        (decoders.WordPiece(), ["do", "n", "'", "t", "##s", "."], False),
        (decoders.BPEDecoder(), ["he", "llo</w>", "world</w>"], False),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
         ["▁he", "llo", "<0xF0>", "<0x9F>", "<0xA4>", "<0xB9>", "▁end"], True),
        (decoders.Metaspace(), ["▁he", "llo", "▁world"], True),
    ],
)  # fmt: skip
def test_pieces_join_to_the_whole_whatever_the_decoder_does_to_words(decoder: Any, words: list[str], steady: bool) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.decoder = decoder
    encoder: Any = ByDecoder(tokenizer)
    ids = list(range(len(words)))
    pieces = said(encoder, ids)
    assert "".join(pieces) == encoder.decode(ids)
    assert any(pieces[:-1]) == steady


# --- streams -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(trained: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    import shutil

    place = tmp_path_factory.mktemp("streams") / "store"
    (place / "colours").mkdir(parents=True)
    shutil.copytree(trained[1], place / "colours" / "1")
    like_first(trained[1], place / "colours" / "2", seed=2)
    return place


@pytest.fixture(scope="module")
def adapter(store: Path, tiny_base: Path) -> Adapter:
    return tuner.load_adapter("colours@1", store, base=tiny_base, load="fp32")


def under_way(adapter: Adapter) -> int:
    return adapter._seat.answers_under_way


def test_a_stream_says_what_answer_says_as_adapter_and_as_base(adapter: Adapter) -> None:
    for question in QUESTIONS:
        assert "".join(adapter.stream(question, 8)) == adapter.answer(question, 8)
    with adapter.as_base():
        stream = adapter.stream(QUESTIONS[0], 8)
        bare = adapter.answer(QUESTIONS[0], 8)
    assert "".join(stream) == bare != adapter.answer(QUESTIONS[0], 8)  # asked as the base, said as the base
    assert under_way(adapter) == 0


def test_streams_and_answers_interleave(adapter: Adapter) -> None:
    wanted = [adapter.answer(q, 8) for q in QUESTIONS]
    streams = [adapter.stream(q, 8) for q in QUESTIONS]
    found = [""] * len(streams)
    while any(stream._is_open for stream in streams):
        for at, stream in enumerate(streams):
            found[at] += next(stream, "")
            with adapter.as_base():
                adapter.answer("something else", 1)
    assert found == wanted


@pytest.mark.parametrize("how", ["close", "with", "forget", "never begun", "refused"])
def test_a_stream_that_is_left_frees_what_it_held(how: str, adapter: Adapter) -> None:
    def use() -> None:
        if how == "refused":
            with pytest.raises(Refusal, match="at most"):
                adapter.stream("word " * 1020, 64)
            return
        stream = adapter.stream(QUESTIONS[0], 8)
        if how != "never begun":
            next(stream)
        assert under_way(adapter) == 1
        if how == "close":
            stream.close()
            stream.close()
            assert list(stream) == []
        if how == "with":
            with stream:
                pass

    use()
    gc.collect()
    assert under_way(adapter) == 0


def test_a_stream_that_has_begun_ends_with_the_weights_it_began_with_although_the_adapter_is_swapped(store: Path, tiny_base: Path) -> None:
    adapter = tuner.load_adapter("colours@1", store, base=tiny_base, load="fp32")
    old = adapter.answer(QUESTIONS[0], 8)
    stream, later = adapter.stream(QUESTIONS[0], 8), adapter.stream(QUESTIONS[0], 8)
    first = next(stream)
    adapter.swap("colours@2")
    new = adapter.answer(QUESTIONS[0], 8)
    assert first + "".join(stream) == "".join(later) == old != new
    assert list(adapter.decoder.model.peft_config) == ["seat1"]  # the last stream has ended: the old weights are gone
    assert new == tuner.load_adapter("colours@2", store, base=tiny_base, load="fp32").answer(QUESTIONS[0], 8)


def test_an_error_under_way_reaches_the_reader_and_frees(encoder: Any) -> None:
    released = []

    def broken() -> Iterator[int]:
        yield 42
        raise MemoryError

    stream = Stream(broken(), encoder, lambda: released.append(True))
    with pytest.raises(MemoryError):
        list(stream)
    assert released == [True] and list(stream) == []


# --- awaited -------------------------------------------------------------------------------------------------------


def test_five_calls_at_once_are_each_answered_right_and_the_loop_goes_on(adapter: Adapter) -> None:
    wanted = [adapter.answer(q, 8) for q in QUESTIONS]
    with adapter.as_base():
        bare = adapter.answer(QUESTIONS[1], 8)
    order: list[int] = []

    async def streamed(at: int) -> str:
        text = ""
        async for piece in adapter.stream_async(QUESTIONS[at], 8):
            order.append(at)
            text += piece
        return text

    async def as_base() -> str:
        with adapter.as_base():  # of this task alone
            return await adapter.answer_async(QUESTIONS[1], 8)

    async def all_of_them() -> tuple[list[Any], int]:
        ticks, done = 0, asyncio.Event()

        async def tick() -> None:
            nonlocal ticks
            while not done.is_set():
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        calls = [streamed(0), as_base(), adapter.answer_async(QUESTIONS[2], 8), adapter.answer_many_async(QUESTIONS, 8), streamed(4)]
        found = await asyncio.gather(*calls)
        done.set()
        await ticking
        return found, ticks

    found, ticks = asyncio.run(all_of_them())
    assert found == [wanted[0], bare, wanted[2], wanted, wanted[4]]
    assert ticks > 20, "the event loop stood still"
    assert order.index(4) < len(order) - 1 - order[::-1].index(0), "the streams were said one after the other"
    assert under_way(adapter) == 0


def test_the_loop_is_not_held_up_by_a_thread_that_has_the_model(adapter: Adapter) -> None:
    async def beside_a_turn() -> float:
        loop = asyncio.get_running_loop()
        holding, free = asyncio.Event(), asyncio.Event()

        def hold() -> None:
            with adapter.turn():
                loop.call_soon_threadsafe(holding.set)
                asyncio.run_coroutine_threadsafe(free.wait(), loop).result()

        held = loop.run_in_executor(None, hold)
        await holding.wait()
        waiting = asyncio.create_task(adapter.answer_async(QUESTIONS[0], 4))
        began = time.monotonic()
        await asyncio.sleep(0.05)
        assert not waiting.done()
        waited = time.monotonic() - began
        free.set()
        await held
        assert await waiting == adapter.answer(QUESTIONS[0], 4)
        return waited

    assert asyncio.run(asyncio.wait_for(beside_a_turn(), 30)) < 5


def test_a_cancelled_call_frees_what_it_held_and_the_next_is_answered(adapter: Adapter) -> None:
    async def cancel() -> str:
        for call in (adapter.answer_async(QUESTIONS[0], 500), adapter.answer_many_async(QUESTIONS, 500)):
            task = asyncio.create_task(call)
            while not under_way(adapter):
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert under_way(adapter) == 0
        async with aclosing(adapter.stream_async(QUESTIONS[0], 500)) as pieces:
            async for _ in pieces:
                break
        assert under_way(adapter) == 0
        return await adapter.answer_async(QUESTIONS[1], 8)

    assert asyncio.run(cancel()) == adapter.answer(QUESTIONS[1], 8)


def test_a_refusal_reaches_the_task_that_asked(store: Path, tiny_base: Path) -> None:
    adapter = tuner.load_adapter("colours@1", store, base=tiny_base, load="fp32")

    async def ask() -> None:
        with pytest.raises(Refusal, match="at most"):
            await adapter.answer_async("word " * 1020, 64)
        with pytest.raises(Refusal, match="role"):
            await adapter.answer_many_async([[{"role": "nobody", "content": "a"}]])
        adapter.close()
        with pytest.raises(Refusal, match="closed"):
            await adapter.answer_async("hello")

    asyncio.run(ask())
