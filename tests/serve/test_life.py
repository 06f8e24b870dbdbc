"""A server over time: aliases that move under it, versions that do not verify, clients that leave, and its end."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.serve.conftest import LONG, Running, move, until
from tests.serve.test_answers import QUESTIONS, messages
from tests.serve.test_hostile import GOOD, request
from tuner.artifact.adapter import Adapter


def test_a_moved_alias_is_taken_for_new_requests_while_running_answers_end_on_the_old_one(home: Path, server: Running, adapters: dict[str, Adapter]) -> None:
    client, question = server.client(), QUESTIONS[6]
    stream = client.chat.completions.create(model="colours@production", messages=messages(question), max_tokens=LONG, stream=True)
    base = client.chat.completions.create(model="base", messages=messages(question), max_tokens=LONG, stream=True)
    begun = [next(stream), next(base)]
    move(home, "production", 3)
    until(lambda: server.health()["models"]["colours@production"]["version"] == "colours@3")
    new = server.answer(question, "colours@production", max_tokens=20)
    old = "".join(c.choices[0].delta.content or "" for c in [begun[0], *stream])
    untouched = "".join(c.choices[0].delta.content or "" for c in [begun[1], *base])
    assert new == adapters["colours@3"].answer(question, 20)
    assert old == adapters["colours@4"].answer(question, LONG) and len(old) > 500
    with adapters["colours@4"].as_base() as old_base, adapters["colours@3"].as_base() as new_base:  # each through its own template and stop tokens
        assert untouched == old_base.answer(question, LONG)
        assert server.answer(question, "base", max_tokens=20) == new_base.answer(question, 20)
    assert server.answer(question, "colours@candidate", max_tokens=20) == adapters["colours@2"].answer(question, 20)
    assert server.metric('tuner_reloads_total{model="colours@production",outcome="taken"}') == 1
    assert "answers by version 3 from now on; it was colours@4" in server.said


def test_a_version_that_does_not_verify_is_not_taken_and_health_says_so_until_the_alias_moves_on(
    home: Path, server: Running, adapters: dict[str, Adapter]
) -> None:
    move(home, "candidate", 5)
    until(lambda: server.health()["status"] == "degraded")
    candidate = server.health()["models"]["colours@candidate"]
    assert candidate["version"] == "colours@2" and "colours@5 was not taken" in candidate["held_back"] and str(home) not in candidate["held_back"]
    assert server.answer(QUESTIONS[6], "colours@candidate", max_tokens=20) == adapters["colours@2"].answer(QUESTIONS[6], 20)
    assert server.metric('tuner_reloads_total{model="colours@candidate",outcome="refused"}') == 1
    move(home, "candidate", 3)
    until(lambda: server.health()["models"]["colours@candidate"] == {"version": "colours@3", "held_back": None})
    assert server.health()["status"] == "ok"
    assert server.said.count("version 5 was not taken") == 1
    move(home, "production", 4)
    until(lambda: server.health()["models"]["colours@production"]["version"] == "colours@4")


def test_a_client_that_leaves_frees_its_place_in_both_ways(server: Running) -> None:
    left = server.metric('tuner_disconnects_total{model="colours@production"}')
    stream = server.client().chat.completions.create(model="colours@production", messages=messages(QUESTIONS[6]), max_tokens=LONG, stream=True)
    next(stream)
    stream.close()
    with socket.create_connection(("127.0.0.1", server.port)) as wire:
        wire.sendall(request(server.port, json.dumps(GOOD | {"model": "colours@production", "max_tokens": LONG}).encode()))
        until(lambda: server.metric("tuner_answers_running") >= 1)
    until(lambda: server.metric('tuner_disconnects_total{model="colours@production"}') == left + 2)
    until(lambda: server.metric("tuner_answers_running") == 0)
    assert server.metric('tuner_requests_total{model="colours@production",status="499"}') == left + 2


def test_more_requests_than_the_queue_holds_are_told_when_to_come_back(server: Running) -> None:
    client = server.client()
    settings: Any = {"model": "colours@production", "max_tokens": LONG, "stream": True}
    streams = [client.chat.completions.create(messages=messages(QUESTIONS[i % 8]), **settings) for i in range(12)]  # 4 rows and 8 that wait
    with pytest.raises(openai.RateLimitError) as full:
        server.answer("one more", "base", max_tokens=1)
    assert full.value.code == "queue_full" and full.value.response.headers["retry-after"] == "1"
    for stream in streams:
        stream.close()
    until(lambda: server.metric("tuner_answers_running") + server.metric("tuner_queue_length") == 0)
    assert server.answer(QUESTIONS[0], "base", max_tokens=1) is not None


def test_at_sigterm_running_answers_end_new_ones_are_not_taken_and_the_exit_code_says_terminated(server: Running, adapters: dict[str, Adapter]) -> None:
    question = QUESTIONS[7]
    stream = server.client().chat.completions.create(model="colours@production", messages=messages(question), max_tokens=LONG, stream=True)
    first = next(stream)
    server.process.send_signal(signal.SIGTERM)
    said = "".join(c.choices[0].delta.content or "" for c in [first, *stream])
    assert said == adapters["colours@4"].answer(question, LONG)
    assert server.process.wait(30) == 143
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))
    assert question not in server.said and said[:40] not in server.said and "Traceback" not in server.said
    assert server.said.rstrip().endswith("the server has stopped") and "checkpoint" not in server.said
