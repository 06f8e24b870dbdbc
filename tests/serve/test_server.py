"""What a server refuses to start with, how it counts and cuts text, and what one request may take: asked inside this process."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from tests.conftest import tuner as command_line
from tests.serve.conftest import add_version, move, until
from tuner.errors import Refusal
from tuner.serve.endpoint import Endpoint, Limits, application
from tuner.serve.fleet import BASE, Fleet, Loaded, Model, open_fleet
from tuner.serve.guard import Guard
from tuner.serve.meters import METERS, Meters
from tuner.serve.pilot import Pilot
from tuner.serve.server import Settings, Source, allowed_hosts, api_key, hosts_of, refuse_missing, serve
from tuner.serve.stops import Stopping
from tuner.serve.vllm_command import vllm_line, vllm_words
from tuner.serve.watch import Watch

KEY = "k" * 32


@pytest.fixture(scope="module")
def fleet(store: Path, tiny_base: Path) -> Iterator[Fleet]:
    fleet = open_fleet(["colours@2", "shades"], store, str(tiny_base), "cpu", "fp32", 4)
    yield fleet
    for model in fleet.models:
        if model.name != BASE:
            model.loaded.adapter.close()


def asked(fleet: Fleet, body: dict[str, Any], limits: Limits, key: str | None = None, **headers: str) -> httpx.Response:
    """One request to an application of its own, with its own pilot."""

    async def ask() -> httpx.Response:
        meters = Meters()
        pilot = Pilot(4, 4, meters, lambda: None)
        app = Guard(application(Endpoint(fleet, pilot, meters, limits)), {"here:1"}, key)
        pilot.start()
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here:1") as client:
                if not body:
                    return await client.get("/health", headers=headers)
                return await client.post("/v1/chat/completions", json=body, headers=headers)
        finally:
            pilot.stop()
            pilot.join(10)

    return asyncio.run(ask())


QUESTION: dict[str, Any] = {"model": "colours@2", "messages": [{"role": "user", "content": "thing number 201 please"}]}


def test_an_answer_that_takes_too_long_is_cut_off_in_both_ways(fleet: Fleet) -> None:
    limits = Limits(max_new_tokens=40, timeout_seconds=0.001)
    late = asked(fleet, QUESTION, limits)
    assert late.status_code == 504 and late.json()["error"]["code"] == "timeout"
    events = asked(fleet, QUESTION | {"stream": True}, limits).text.strip().split("\n\n")
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout" and "[DONE]" not in events[-1]


def test_without_the_key_nothing_but_life_is_told(fleet: Fleet) -> None:
    limits = Limits(40, 60.0)
    for wrong in ({}, {"Authorization": "Bearer nope"}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"Authorization": f"Bearer {KEY}x"}):
        answer = asked(fleet, QUESTION, limits, KEY, **wrong)
        assert answer.status_code == 401 and KEY not in answer.text and answer.headers["www-authenticate"] == "Bearer"
        assert asked(fleet, {}, limits, KEY, **wrong).json() == {"status": "ok"}
    assert asked(fleet, QUESTION, limits, KEY, Authorization=f"Bearer {KEY}").status_code == 200
    assert "models" in asked(fleet, {}, limits, KEY, Authorization=f"bearer {KEY}").json()


def test_a_model_that_fails_fails_its_own_answers_and_goes_on(fleet: Fleet) -> None:
    shades = fleet.get("shades")
    assert shades is not None
    hook = shades.loaded.decoder.model.get_input_embeddings().register_forward_hook(_out_of_memory)
    try:
        failed = asked(fleet, QUESTION, Limits(40, 60.0))
    finally:
        hook.remove()
    assert failed.status_code == 500 and failed.json()["error"] == {
        "message": "the model failed on this answer", "type": "server_error", "param": None, "code": "answer_failed",
    }  # fmt: skip
    assert asked(fleet, QUESTION, Limits(40, 60.0)).status_code == 200


def _out_of_memory(*_: object) -> None:
    import torch

    raise torch.OutOfMemoryError("secret words of a prompt")


# --- what it starts with -----------------------------------------------------------------------------------------------


def test_adapters_that_do_not_belong_on_one_base_are_refused_with_the_reason(store: Path, tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store")
    trained = tmp_path / "store" / "colours" / "1"
    for number, change in (("2", {"base": {"weight_digest": "sha256:" + "0" * 64}}), ("3", {"template": {"tokenizer_digest": "sha256:" + "0" * 64}})):
        folder = tmp_path / "store" / "colours" / number
        shutil.rmtree(folder)
        add_version(trained, folder, int(number), change=change)
    for name, field in (("colours@2", "base"), ("colours@3", "tokenizer"), ("colours@9", "colours@9")):
        with pytest.raises(Refusal) as refused:
            open_fleet(["shades", name], tmp_path / "store", str(tiny_base), "cpu", "fp32", 4)
        assert refused.value.problems[0].field == field
    for names in (["shades", "shades"], ["shades", "base"]):
        with pytest.raises(Refusal):
            open_fleet(names, tmp_path / "store", str(tiny_base), "cpu", "fp32", 4)


def test_it_listens_beyond_this_machine_only_with_a_key_that_others_cannot_read(tmp_path: Path) -> None:
    file = tmp_path / "key"
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org", "127.0.0.1.example.org"):
        with pytest.raises(Refusal, match="--api-key-file"):
            api_key(Settings(host=host))
    assert api_key(Settings(host="127.0.0.9")) is None and api_key(Settings(host="::1")) is None
    for text, mode in ((KEY, 0o644), (KEY, 0o640), ("short", 0o600), ("", 0o600), (f"two {KEY}", 0o600), ("ü" * 32, 0o600)):
        file.write_text(text, encoding="utf-8")
        file.chmod(mode)
        with pytest.raises(Refusal) as refused:
            api_key(Settings(host="0.0.0.0", api_key_file=file))
        assert not text or text not in str(refused.value)
    file.write_text(KEY + "\n", encoding="utf-8")
    file.chmod(0o600)
    assert api_key(Settings(host="0.0.0.0", api_key_file=file)) == KEY


def test_hosts_are_its_own_names_and_those_given() -> None:
    own = {"127.0.0.1:80", "localhost:80", "[::1]:80"}
    assert hosts_of(Settings(), 8000) == {h.replace(":80", ":8000") for h in own}
    assert hosts_of(Settings(host="0.0.0.0"), 80) == own | {"127.0.0.1", "localhost", "[::1]"}
    assert "[::2]:9" in hosts_of(Settings(host="::2"), 9) and "[::]:9" not in hosts_of(Settings(host="::"), 9)


def status(host: str, allowed: tuple[str, ...], **headers: str) -> int:
    """What the guard says to a request for `host` on port 8000; 200 where it lets it through."""

    async def inside(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask() -> int:
        settings = Settings(allowed_hosts=allowed)
        app = Guard(inside, hosts_of(settings, 8000), None, allowed_hosts(settings))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            return (await client.get("http://x/health", headers={"Host": host, **headers})).status_code

    return asyncio.run(ask())


def test_a_host_that_was_allowed_answers_on_any_port_or_on_the_one_named() -> None:
    named = ("Tuner.example.org", "localhost", "box:9000", "fe80::1", "[::1]:7")
    for host in ("tuner.example.org", "tuner.EXAMPLE.org:443", "localhost:9000", "localhost", "box:9000", "[fe80::1]:5", "[::1]:7", "127.0.0.1:8000"):
        assert status(host, named) == 200, host
    for host in ("box", "box:8000", "127.0.0.1:9000", "[::1]:8", "evil.example", "tuner.example.org.evil.example", "tuner.example.org:", "tuner.example.org:4x",
                 "tuner.example.org:1:2", "tuner.example.org:123456", "a.tuner.example.org", "@tuner.example.org"):  # fmt: skip
        assert status(host, named) == 421, host
    assert status("localhost:9000", ()) == status("localhost", ()) == status("tuner.example.org", ()) == 421


def test_pages_of_an_allowed_host_may_ask_that_host_alone() -> None:
    for origin, said in (("https://a.example", 200), ("http://a.example", 200), ("https://a.example:8443", 403), ("https://b.example", 403), ("null", 403)):
        assert status("a.example", ("a.example", "b.example"), Origin=origin) == said, origin
    assert status("localhost:8000", ("a.example",), Origin="https://localhost:8000") == 403


def test_a_host_to_allow_is_a_name_and_no_url() -> None:
    for odd in ("https://tuner.example.org", "a.example/v1", "*", "", "a b", "a.example:x"):
        with pytest.raises(Refusal, match="--allow-host"):
            allowed_hosts(Settings(allowed_hosts=(odd,)))


# --- what happens to the store meanwhile -------------------------------------------------------------------------------


def test_a_store_that_cannot_be_read_degrades_health_until_it_can_and_the_watch_lives_on(
    store: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.serve.watch.SECONDS", 0.02)
    shutil.copytree(store, tmp_path / "store")
    home, said = tmp_path / "store" / "colours", list[str]()
    move(home, "production", 2)
    move(home, "candidate", 2)
    fleet = open_fleet(["colours@production", "colours@candidate"], home.parent, str(tiny_base), "cpu", "fp32", 4)
    pilot = Pilot(4, 4, Meters(), lambda: None)
    watch = Watch(fleet, pilot, Meters(), said.append)
    health = Endpoint(fleet, pilot, Meters(), Limits(40, 60.0), watch).health
    pilot.start()

    def now() -> str:
        return str(json.loads(bytes(asyncio.run(health(Request({"type": "http", "tuner.has_key": True}))).body))["status"])

    assert now() == "degraded"  # nobody watches yet
    watch.start()
    assert now() == "ok"
    newest = max((home / "log").glob("*.json"))
    newest.rename(tmp_path / "aside")
    newest.mkdir()  # even root cannot read it as a file
    until(lambda: now() == "degraded")
    newest.rmdir()
    (tmp_path / "aside").rename(newest)
    until(lambda: now() == "ok")
    weights = home / "3" / "adapter_model.safetensors"
    weights.unlink()
    weights.symlink_to(weights)
    move(home, "production", 3)
    until(lambda: now() == "degraded")
    move(home, "production", 1)
    until(lambda: now() == "ok" and fleet.models[0].loaded.label == "colours@1")
    for thread in (watch, pilot):
        thread.stop()
        thread.join(10)
    assert now() == "stopped" and sum("cannot be read" in line for line in said) == 1


def test_a_version_whose_loading_breaks_off_is_held_back_without_its_paths(fleet: Fleet, store: Path) -> None:
    class Broken:
        version = fleet.first.version

        def __init__(self, error: Exception) -> None:
            self.error = error

        def beside(self, *_: object) -> None:
            raise self.error

    for error in (PermissionError(13, "Permission denied", str(store)), RuntimeError("CUDA out of memory")):
        model = Model("m", SimpleNamespace(adapter=Broken(error), label="colours@2"), "production")  # type: ignore[arg-type]
        torn = Fleet([model], store)
        meters, said = Meters(), list[str]()
        Watch(torn, Pilot(1, 1, meters, lambda: None), meters, said.append)._take(model, 3)
        assert torn.models[0].held_back == f"colours@3 was not taken: {type(error).__name__}" and len(said) == 1


def test_a_taken_port_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(Refusal, match="--port"):
        serve(Source(("nobody",), str(tmp_path)), Settings(port=taken.getsockname()[1]), print)


def test_without_its_libraries_the_pip_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.serve.server.NEEDED", ("fastapi", "no_such_library"))
    with pytest.raises(Refusal, match=re.escape("pip install 'tuner-lora[serve]'")) as refused:
        refuse_missing()
    assert "no_such_library" in str(refused.value) and "fastapi" not in str(refused.value)


# --- vLLM ----------------------------------------------------------------------------------------------------------------


def test_the_vllm_command_names_base_adapters_rank_and_template(fleet: Fleet, store: Path, tiny_base: Path) -> None:
    words = vllm_words(fleet, "127.0.0.1", 8123)
    assert words[:3] == ["vllm", "serve", str(tiny_base.resolve())]
    config = json.loads((store / "shades" / "1" / "adapter_config.json").read_text(encoding="utf-8"))
    assert words[words.index("--max-lora-rank") + 1] == str(config["r"]) and words[words.index("--max-loras") + 1] == "2"
    assert words[words.index("--lora-modules") + 1 :] == [f"colours@2={store / 'colours' / '2'}", f"shades={store / 'shades' / '1'}"]
    assert Path(words[words.index("--chat-template") + 1]).is_file() and words[words.index("--port") + 1] == "8123"
    assert vllm_line(fleet, "127.0.0.1", 8123).startswith("vllm serve ")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_the_vllm_engine_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="--engine"):
        serve(Source(("nobody",), str(tmp_path)), Settings(port=0, engine="vllm"), print)


# --- text and numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [[], ["lo wo"], ["d!", "o w"], ["xyz"], ["漢字"], ["🙂"], ["Hello"], ["!?"]])
def test_pieces_never_give_away_a_stop_text_and_join_to_what_comes_before_it(encoder: Any, stops: list[str]) -> None:
    whole = "Hello, hello world! 漢字 and 🙂🙂 é end!"
    ids = encoder.tokenizer.encode(whole).ids
    ends = [whole.find(stop) for stop in stops if stop in whole]
    text, said = Stopping(encoder, stops), ""
    for token in ids:
        said += text.add(token)
        assert whole.startswith(said)
        if text.stopped:
            break
    said += text.end()
    assert said == whole[: min(ends, default=len(whole))] and text.stopped == bool(ends)


def test_metrics_are_text_that_prometheus_reads_every_meter_with_its_help() -> None:
    meters = Meters()
    meters.add("tuner_requests_total", 'a"b\\c\nd', "200")
    meters.set("tuner_queue_length", to=3)
    for seconds in (0.01, 0.3, 500.0):
        meters.observe("tuner_request_seconds", "m", seconds=seconds)
    lines = meters.text().splitlines()
    assert 'tuner_requests_total{model="a\\"b\\\\c\\nd",status="200"} 1' in lines and "tuner_queue_length 3" in lines
    buckets = [line for line in lines if line.startswith("tuner_request_seconds_bucket")]
    counts = [int(line.rpartition(" ")[2]) for line in buckets]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == 3 and 'le="+Inf"' in buckets[-1]
    assert 'tuner_request_seconds_sum{model="m"} 500.31' in lines and sum(line.startswith("# HELP") for line in lines) == len(METERS) == 9
    with pytest.raises(ValueError, match="labels"):
        meters.add("tuner_requests_total", "too few")


def test_base_and_adapter_under_one_name_space_are_different_states(fleet: Fleet) -> None:
    colours, base = fleet.get("colours@2"), fleet.get(BASE)
    assert isinstance(colours, Model) and isinstance(base, Model) and isinstance(base.loaded, Loaded)
    assert base.loaded.adapter is colours.loaded.adapter and base.loaded.fingerprint.startswith("base sha256:")


def test_the_command_line_refuses_with_a_sentence(tmp_path: Path) -> None:
    done = command_line("serve", "nobody@1", "--store", tmp_path / "none", "--port", "0")
    assert done.returncode == 2 and "no adapter 'nobody'" in done.stderr and "Traceback" not in done.stderr
