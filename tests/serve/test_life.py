"""A server over time: aliases that move under it, versions that do not verify, clients that leave, and its end. The tests follow one another."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

import tuner
from tests.serve.conftest import Running, add_version, start, until
from tests.serve.test_answers import QUESTIONS, messages
from tests.serve.test_hostile import GOOD, request
from tuner.artifact import history
from tuner.artifact.adapter import Adapter

LONG = 300  # tokens, of an adapter that hardly ever stops


@pytest.fixture(scope="module")
def home(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of colours: 2 and 3, 4 that goes on and on, and 5 whose weights were changed after it was sealed. production is 4, candidate 2."""
    home = tmp_path_factory.mktemp("life") / "store" / "colours"
    shutil.copytree(store / "colours", home)
    add_version(home / "1", home / "4", seed=5, stops=[2])
    add_version(home / "1", home / "5", seed=6)
    weights = home / "5" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    move(home, "production", 4)
    move(home, "candidate", 2)
    return home


def move(home: Path, alias: str, version: int) -> None:
    history.append(home, history.state(home).count, "promote", version, alias, "a test", "to see it move", {})


@pytest.fixture(scope="module")
def adapters(home: Path, tiny_base: Path) -> Iterator[dict[int, Adapter]]:
    with tuner.load_adapter("colours@2", home.parent, base=tiny_base, load="fp32") as first:
        yield {2: first, 3: first.beside("colours@3"), 4: first.beside("colours@4")}


@pytest.fixture(scope="module")
def living(home: Path, tiny_base: Path) -> Iterator[Running]:
    words = ("colours@production", "colours@candidate", "--max-new-tokens", str(LONG), "--rows", "4", "--queue", "2")
    running = start(home.parent, tiny_base, *words, log=home.parent.parent / "log")
    yield running
    running.process.kill()
    running.process.wait()


def test_a_moved_alias_is_taken_for_new_requests_while_running_answers_end_on_the_old_one(home: Path, living: Running, adapters: dict[int, Adapter]) -> None:
    client, question = living.client(), QUESTIONS[6]
    stream = client.chat.completions.create(model="colours@production", messages=messages(question), max_tokens=LONG, stream=True)
    base = client.chat.completions.create(model="base", messages=messages(question), max_tokens=LONG, stream=True)
    begun = [next(stream), next(base)]
    move(home, "production", 3)
    until(lambda: living.health()["models"]["colours@production"]["version"] == "colours@3")
    new = living.answer(question, "colours@production", max_tokens=20)
    old = "".join(c.choices[0].delta.content or "" for c in [begun[0], *stream])
    untouched = "".join(c.choices[0].delta.content or "" for c in [begun[1], *base])
    assert new == adapters[3].answer(question, 20)
    assert old == adapters[4].answer(question, LONG) and len(old) > 500
    with adapters[4].as_base() as old_base, adapters[3].as_base() as new_base:  # each through its own template and stop tokens
        assert untouched == old_base.answer(question, LONG)
        assert living.answer(question, "base", max_tokens=20) == new_base.answer(question, 20)
    assert living.answer(question, "colours@candidate", max_tokens=20) == adapters[2].answer(question, 20)
    assert living.metric('tuner_reloads_total{model="colours@production",outcome="taken"}') == 1
    assert "answers by version 3 from now on; it was colours@4" in living.said


def test_a_version_that_does_not_verify_is_not_taken_and_health_says_so_until_the_alias_moves_on(
    home: Path, living: Running, adapters: dict[int, Adapter]
) -> None:
    move(home, "candidate", 5)
    until(lambda: living.health()["status"] == "degraded")
    candidate = living.health()["models"]["colours@candidate"]
    assert candidate["version"] == "colours@2" and "colours@5 was not taken" in candidate["held_back"] and str(home) not in candidate["held_back"]
    assert living.answer(QUESTIONS[6], "colours@candidate", max_tokens=20) == adapters[2].answer(QUESTIONS[6], 20)
    assert living.metric('tuner_reloads_total{model="colours@candidate",outcome="refused"}') == 1
    move(home, "candidate", 3)
    until(lambda: living.health() == {"status": "ok", "models": {
        "colours@production": {"version": "colours@3", "held_back": None}, "colours@candidate": {"version": "colours@3", "held_back": None},
        "base": {"version": "base", "held_back": None},
    }})  # fmt: skip
    assert living.said.count("version 5 was not taken") == 1
    move(home, "production", 4)
    until(lambda: living.health()["models"]["colours@production"]["version"] == "colours@4")


def test_a_client_that_leaves_frees_its_place_in_both_ways(living: Running) -> None:
    stream = living.client().chat.completions.create(model="colours@production", messages=messages(QUESTIONS[6]), max_tokens=LONG, stream=True)
    next(stream)
    stream.close()
    with socket.create_connection(("127.0.0.1", living.port)) as wire:
        wire.sendall(request(living.port, json.dumps(GOOD | {"model": "colours@production", "max_tokens": LONG}).encode()))
        until(lambda: living.metric("tuner_answers_running") >= 1)
    until(lambda: living.metric('tuner_disconnects_total{model="colours@production"}') == 2)
    until(lambda: living.metric("tuner_answers_running") == 0)
    assert living.metric('tuner_requests_total{model="colours@production",status="499"}') == 2


def test_more_requests_than_the_queue_holds_are_told_when_to_come_back(living: Running) -> None:
    client = living.client()
    streams = [
        client.chat.completions.create(model="colours@production", messages=messages(QUESTIONS[i]), max_tokens=LONG, stream=True) for i in range(6)
    ]  # fmt: skip
    with pytest.raises(openai.RateLimitError) as full:
        living.answer("one more", "base", max_tokens=1)
    assert full.value.code == "queue_full" and full.value.response.headers["retry-after"] == "1"
    for stream in streams:
        stream.close()
    until(lambda: living.metric("tuner_answers_running") + living.metric("tuner_queue_length") == 0)
    assert living.answer(QUESTIONS[0], "base", max_tokens=1) is not None


def test_at_sigterm_running_answers_end_new_ones_are_not_taken_and_the_exit_code_says_terminated(living: Running, adapters: dict[int, Adapter]) -> None:
    question = QUESTIONS[7]
    stream = living.client().chat.completions.create(model="colours@production", messages=messages(question), max_tokens=LONG, stream=True)
    first = next(stream)
    living.process.send_signal(signal.SIGTERM)
    said = "".join(c.choices[0].delta.content or "" for c in [first, *stream])
    assert said == adapters[4].answer(question, LONG)
    assert living.process.wait(30) == 143
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", living.port))
    assert question not in living.said and said[:40] not in living.said and "Traceback" not in living.said
