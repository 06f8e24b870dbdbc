"""What clients get: the adapter's own answers, whole or in pieces, alone or beside others, from every model that is served."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.conftest import colour_rows
from tests.serve.conftest import Running
from tuner.artifact.adapter import Adapter

QUESTIONS = [row["prompt"] for row in colour_rows(6, 200)] + ["Tell me more about the sea, please.", "é ü 漢字 🙂 what is it?"]


def messages(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


def test_every_model_answers_as_its_version_does_in_python(server: Running, adapters: dict[str, Adapter]) -> None:
    said = {}
    for model, adapter in (("colours@2", adapters["colours@2"]), ("colours@3", adapters["colours@3"]), ("shades", adapters["shades@1"])):
        said[model] = [server.answer(q, model, max_tokens=12) for q in QUESTIONS]
        assert said[model] == adapter.answer_many(QUESTIONS, 12)
    with adapters["colours@4"].as_base() as base:  # the template and stop tokens of the first model, colours@production
        said["base"] = [server.answer(q, "base", max_tokens=12) for q in QUESTIONS]
        assert said["base"] == base.answer_many(QUESTIONS, 12)
    assert len({tuple(s) for s in said.values()}) == 4  # no two models say the same


@pytest.mark.parametrize("model", ["colours@2", "shades"])
def test_pieces_of_a_stream_join_to_the_whole_answer(server: Running, model: str) -> None:
    client, finishes, most_pieces = server.client(), set(), 0
    for question in QUESTIONS:
        whole = client.chat.completions.create(model=model, messages=messages(question), max_tokens=25)
        stream = client.chat.completions.create(model=model, messages=messages(question), max_tokens=25, stream=True, stream_options={"include_usage": True})
        first, *pieces, last, counted = list(stream)
        assert first.choices[0].delta.role == "assistant" and {c.id for c in pieces} <= {first.id}
        assert "".join(c.choices[0].delta.content or "" for c in pieces) == whole.choices[0].message.content
        assert last.choices[0].finish_reason == whole.choices[0].finish_reason
        assert counted.choices == [] and counted.usage == whole.usage
        finishes.add(whole.choices[0].finish_reason)
        most_pieces = max(most_pieces, len(pieces))
    assert finishes == {"stop", "length"} and most_pieces > 15


def test_usage_counts_the_prompt_as_the_model_saw_it_and_the_tokens_said(server: Running, adapters: dict[str, Adapter]) -> None:
    for question in QUESTIONS:
        made = server.client().chat.completions.create(model="colours@2", messages=messages(question), max_tokens=25)
        prompt = adapters["colours@2"].prompt_ids(question)
        said = len(adapters["colours@2"].greedy_ids([prompt], 25)[0])
        assert made.usage is not None and made.usage.prompt_tokens == len(prompt)
        assert made.usage.completion_tokens == said and made.usage.total_tokens == len(prompt) + said
        assert made.choices[0].finish_reason == ("length" if said == 25 else "stop")
        assert made.object == "chat.completion" and made.model == "colours@2"
        assert (made.system_fingerprint or "").startswith("colours@2 sha256:")


def test_a_stream_without_usage_ends_with_its_finish_reason(server: Running) -> None:
    chunks = list(server.client().chat.completions.create(model="shades", messages=messages(QUESTIONS[0]), stream=True))
    assert chunks[-1].choices[0].finish_reason == "stop" and all(c.usage is None for c in chunks)


def test_eight_clients_at_once_get_what_one_after_the_other_get(server: Running) -> None:
    asked = [(model, q) for q in QUESTIONS[4:] for model in ("colours@2", "colours@3", "shades", "base")]
    one_by_one = [server.answer(q, m, max_tokens=15) for m, q in asked]
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(lambda a: server.answer(a[1], a[0], max_tokens=15), asked))
    assert at_once == one_by_one and len(asked) == 16


def test_a_stop_text_ends_the_answer_before_it_in_both_ways(server: Running) -> None:
    whole = server.answer(QUESTIONS[6], "shades", max_tokens=30)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 4]
    cut = whole[: whole.index(stop)]
    client = server.client()
    made = client.chat.completions.create(model="shades", messages=messages(QUESTIONS[6]), max_tokens=30, stop=["never said", stop])
    assert made.choices[0].message.content == cut and made.choices[0].finish_reason == "stop"
    chunks = client.chat.completions.create(model="shades", messages=messages(QUESTIONS[6]), max_tokens=30, stop=stop, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == cut


def test_sampling_repeats_with_its_seed_and_varies_without(server: Running) -> None:
    def said(seed: int | None) -> str:
        return server.answer(QUESTIONS[6], "shades", max_tokens=12, temperature=1.5, top_p=0.9, seed=seed)

    with ThreadPoolExecutor(6) as pool:
        again = list(pool.map(said, [7, 7, 7, 8, None, None]))
    assert len(set(again[:3])) == 1 and len(set(again)) == 4


def test_a_system_prompt_of_the_client_takes_the_place_of_the_recipes(server: Running, adapters: dict[str, Adapter]) -> None:
    chat: list[Any] = [{"role": "system", "content": "Speak up."}, *messages(QUESTIONS[6])]
    made = server.client().chat.completions.create(model="shades", messages=chat, max_tokens=12)
    assert made.choices[0].message.content == adapters["shades@1"].answer(chat, 12) != adapters["shades@1"].answer(QUESTIONS[6], 12)
    parts: list[Any] = [{"role": "user", "content": [{"type": "text", "text": QUESTIONS[6][:9]}, {"type": "text", "text": QUESTIONS[6][9:]}]}]
    made = server.client().chat.completions.create(model="shades", messages=parts, max_completion_tokens=12)
    assert made.choices[0].message.content == adapters["shades@1"].answer(QUESTIONS[6], 12)


def test_models_are_listed_under_the_names_they_were_asked_for(server: Running) -> None:
    client = server.client()
    assert [m.id for m in client.models.list()] == ["colours@production", "colours@2", "colours@3", "shades", "colours@candidate", "base"]
    assert client.models.retrieve("colours@2").id == "colours@2"
    with pytest.raises(openai.NotFoundError, match="there are: colours@production"):
        client.models.retrieve("colour")


def test_the_async_client_is_answered_too(server: Running) -> None:
    import asyncio

    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(model="colours@2", messages=messages(QUESTIONS[0]), stream=True)
            return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

    assert asyncio.run(ask()) == server.answer(QUESTIONS[0])


def test_metrics_count_requests_and_tokens_by_model(server: Running) -> None:
    requests, tokens = 'tuner_requests_total{model="shades",status="200"}', 'tuner_completion_tokens_total{model="shades"}'
    before = server.metric(requests), server.metric(tokens), server.metric('tuner_request_seconds_count{model="shades"}')
    made = server.client().chat.completions.create(model="shades", messages=messages(QUESTIONS[0]), max_tokens=5)
    assert made.usage is not None
    after = server.metric(requests), server.metric(tokens), server.metric('tuner_request_seconds_count{model="shades"}')
    assert after == (before[0] + 1, before[1] + made.usage.completion_tokens, before[2] + 1)
    assert server.metric('tuner_request_seconds_bucket{model="shades",le="+Inf"}') == after[2]
