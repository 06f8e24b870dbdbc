"""Requests that are wrong, or meant to be: each is refused with the status it should, in OpenAI's shape, and nothing of this machine leaks."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.serve.conftest import LONG, Running
from tuner.serve.guard import BODY_BYTES

USER = {"role": "user", "content": "hello"}
GOOD: dict[str, Any] = {"model": "colours@2", "messages": [USER], "max_tokens": 2}


def request(port: int, body: bytes, path: str = "/v1/chat/completions", method: str = "POST", **headers: str | None) -> bytes:
    """The bytes of a request; a header of None is left out, `_` stands for `-`."""
    given = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json", "Content-Length": str(len(body))}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}  # type: ignore[misc]
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value is not None)
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


def refused(server: Running, data: bytes) -> tuple[int, dict[str, Any]]:
    """Status and error of a request as it is."""
    status, body = server.raw(data)
    assert b"/tmp" not in body and b"Traceback" not in body and b".py" not in body
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return status, error


# --- who asks --------------------------------------------------------------------------------------------------------

HOSTS = (
    "evil.example", "evil.example:{port}", "localhost", "127.0.0.1", "127.0.0.1:1", "localhost:{port}.evil.example", "127.0.0.1.evil.example:{port}",
    "localhost.:{port}", "127.0.0.1:{port}0", "127.1:{port}", "2130706433:{port}", "0x7f000001:{port}", "0.0.0.0:{port}", "[::]:{port}", "[::1%lo]:{port}",
    "::1:{port}", "user@127.0.0.1:{port}", "127.0.0.1:{port}@evil.example", "127.0.0.1:{port}/", "http://127.0.0.1:{port}", "127.0.0.1:{port},evil.example",
    "127.0.0.2:{port}", "localhost:{port}#", "*", "null",
)  # fmt: skip


def test_twenty_five_hostile_hosts_are_misdirected_on_every_path(server: Running) -> None:
    seen = 0
    for host in HOSTS:
        for method, path in (("GET", "/health"), ("POST", "/v1/chat/completions")):
            status, error = refused(server, request(server.port, json.dumps(GOOD).encode(), path, method, Host=host.format(port=server.port)))
            assert (status, error["code"]) == (421, "misdirected_request"), host
            seen += 1
    assert seen == 50 and len(set(HOSTS)) == 25


def test_its_own_names_are_answered(server: Running) -> None:
    for host in ("127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}", "LOCALHOST:{port}"):
        assert server.raw(request(server.port, json.dumps(GOOD).encode(), Host=host.format(port=server.port)))[0] == 200


def test_a_missing_or_repeated_host_and_a_whole_url_are_refused(server: Running) -> None:
    assert server.raw(b"GET /health HTTP/1.0\r\n\r\n")[0] == 421
    assert server.raw(b"GET /health HTTP/1.1\r\n\r\n")[0] == 400
    own = f"Host: 127.0.0.1:{server.port}\r\n".encode()
    assert server.raw(b"GET /health HTTP/1.1\r\n" + own + b"Host: evil.example\r\n\r\n")[0] == 400
    assert server.raw(b"GET http://evil.example/health HTTP/1.1\r\n" + own + b"\r\n")[0] == 421


ORIGINS = (
    "http://evil.example", "https://127.0.0.1:{port}", "http://127.0.0.1", "http://127.0.0.1:3000", "http://localhost:3000", "null", "file://",
    "http://127.0.0.1:{port}.evil.example", "http://localhost:{port}/",
)  # fmt: skip


def test_pages_of_other_origins_are_forbidden_on_every_path_and_never_told_that_they_may(server: Running) -> None:
    paths = (("GET", "/health"), ("GET", "/metrics"), ("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("OPTIONS", "/v1/chat/completions"))
    for origin in ORIGINS:
        for method, path in paths:
            status, _ = refused(server, request(server.port, json.dumps(GOOD).encode(), path, method, Origin=origin.format(port=server.port)))
            assert status == 403, (origin, path)
    for site in ("cross-site", "same-site"):
        assert refused(server, request(server.port, b"", "/v1/models", "GET", Sec_Fetch_Site=site))[0] == 403
    own = request(server.port, json.dumps(GOOD).encode(), Origin=f"http://127.0.0.1:{server.port}", Sec_Fetch_Site="same-origin")
    assert server.raw(own)[0] == 200
    assert len(ORIGINS) * len(paths) == 45


def test_no_answer_carries_a_cors_header_or_the_servers_name(server: Running) -> None:
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{server.port}/v1/models") as answer:
        names = {name.lower() for name in answer.headers}
    assert not any(name.startswith("access-control") for name in names) and "server" not in names
    assert {"x-content-type-options", "cache-control"} <= names


# --- paths, types, sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/docs", 404), ("GET", "/redoc", 404), ("GET", "/openapi.json", 404), ("GET", "/v1/../../etc/passwd", 404),
     ("GET", "/v1/models/..%2f..%2fetc", 404), ("GET", "/v1/chat/completions", 405), ("DELETE", "/v1/models", 405), ("PUT", "/health", 405),
     ("POST", "/v1/completions", 404), ("POST", "/v1/embeddings", 404), ("POST", "/metrics", 405)],
)  # fmt: skip
def test_paths_that_are_not_there_say_so_in_openais_shape(server: Running, method: str, path: str, status: int) -> None:
    assert refused(server, request(server.port, b"{}", path, method))[0] == status


@pytest.mark.parametrize(
    "headers",
    [{"Content_Type": None}, {"Content_Type": "text/plain"}, {"Content_Type": "application/x-www-form-urlencoded"}, {"Content_Type": "multipart/form-data"},
     {"Content_Type": "application/json; charset=utf-16"}, {"Content_Type": "application/jsonp"}, {"Content_Encoding": "gzip"}],
)  # fmt: skip
def test_a_body_that_is_not_plain_json_is_an_unsupported_type(server: Running, headers: dict[str, str | None]) -> None:
    assert refused(server, request(server.port, json.dumps(GOOD).encode(), **headers))[0] == 415


def test_a_body_over_the_cap_is_refused_with_and_without_its_length(server: Running) -> None:
    assert refused(server, request(server.port, b"", Content_Length=str(BODY_BYTES + 1)))[0] == 413
    assert refused(server, request(server.port, b"", Content_Length="9" * 19))[0] == 413
    head = request(server.port, b"", Content_Length=None, Transfer_Encoding="chunked")
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert refused(server, head + chunk * 17)[0] == 413
    padded = json.dumps(GOOD).encode() + b" " * (BODY_BYTES - 200)
    assert server.raw(request(server.port, padded))[0] == 200


# --- what is asked ---------------------------------------------------------------------------------------------------

BODIES: tuple[tuple[bytes, str], ...] = (
    (b"", "not JSON"), (b"{", "not JSON"), (b"[]", "not a JSON object"), (b"null", "not a JSON object"), (b'"x"', "not a JSON object"),
    (b"\xff\xfe", "not UTF-8"), (b'\xef\xbb\xbf{"model": "x"}', "not JSON"), (b'{"model": "a", "model": "b"}', "twice"), (b'{"temperature": NaN}', "NaN"),
    (b'{"temperature": 1e999}', "too large"), (b'{"seed": ' + b"9" * 5000 + b"}", "digits"), (b"[" * 100_000, "deep"),
    (b'{"messages": ' + b"[" * 70 + b"]" * 70 + b"}", "deep"), (b'{"model": "x"} {}', "not JSON"), (b"{'model': 'x'}", "not JSON"),
)  # fmt: skip


@pytest.mark.parametrize(("body", "said"), BODIES, ids=range(len(BODIES)))
def test_bodies_that_lenient_parsers_let_through_are_refused(server: Running, body: bytes, said: str) -> None:
    status, error = refused(server, request(server.port, body))
    assert status == 400 and said in error["message"] and error["code"] == "invalid_json"


# A change to a good request, and the field that the refusal must name.
WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"model": None}, "model"), ({"model": 3}, "model"), ({"model": "\ud800"}, "model"), ({"model": "../colours@2"}, "model"),
    ({"model": "colours@1"}, "model"),
    ({"messages": None}, "messages"), ({"messages": []}, "messages"), ({"messages": "hi"}, "messages"), ({"messages": [3]}, "messages[0]"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"), ({"messages": [{"role": "developer", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"), ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "messages"), ({"messages": [{**USER, "weight": 0}]}, "messages[0].weight"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://evil.example/x.png"}}]}]}, "messages[0].content[0]"),
    ({"messages": [{**USER, "tool_calls": [{}]}]}, "messages[0].tool_calls"), ({"messages": [{"role": "user", "content": "word " * 1100}]}, "messages"),
    ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": True}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": LONG + 1}, "max_tokens"), ({"max_tokens": 10**6}, "max_tokens"),
    ({"max_tokens": None, "max_completion_tokens": LONG + 1}, "max_completion_tokens"),
    ({"max_completion_tokens": 3}, "max_tokens"), ({"temperature": -0.1}, "temperature"), ({"temperature": 2.1}, "temperature"),
    ({"temperature": "0"}, "temperature"), ({"temperature": True}, "temperature"), ({"top_p": 0}, "top_p"), ({"top_p": 1.1}, "top_p"), ({"seed": 1.5}, "seed"),
    ({"seed": 2**63}, "seed"), ({"stop": ""}, "stop"), ({"stop": ["a"] * 5}, "stop"), ({"stop": [1]}, "stop"), ({"stop": "x" * 201}, "stop"),
    ({"stream": "yes"}, "stream"), ({"stream": 1}, "stream"), ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"), ({"user": 3}, "user"), ({"n": 2}, "n"), ({"n": True}, "n"),
    ({"logprobs": True}, "logprobs"), ({"top_logprobs": 3}, "top_logprobs"), ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"), ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"presence_penalty": 0.5}, "presence_penalty"), ({"frequency_penalty": -1}, "frequency_penalty"), ({"tool_choice": "required"}, "tool_choice"),
    ({"parallel_tool_calls": True}, "parallel_tool_calls"), ({"functions": [{"name": "f"}]}, "functions"), ({"store": True}, "store"),
    ({"metadata": {"a": "b"}}, "metadata"), ({"modalities": ["audio"]}, "modalities"), ({"audio": {}}, "audio"), ({"prediction": {}}, "prediction"),
    ({"reasoning_effort": "low"}, "reasoning_effort"), ({"service_tier": "flex"}, "service_tier"), ({"web_search_options": {}}, "web_search_options"),
    ({"top_k": 3}, "top_k"), ({"repetition_penalty": 1.1}, "repetition_penalty"), ({"best_of": 1}, "best_of"), ({"__proto__": {}}, "__proto__"),
    ({"tools": {}}, "tools"), ({"tools": [{"type": "function"}]}, "tools[0]"), ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
)  # fmt: skip


def test_every_field_that_is_wrong_or_not_done_here_is_refused_by_name(server: Running) -> None:
    for change, field in WRONG:
        status, error = refused(server, request(server.port, json.dumps(GOOD | change).encode()))
        assert status == (404 if field == "model" and isinstance(change["model"], str) else 400), change
        assert error["param"] == field and error["type"] == "invalid_request_error", (change, error)
    assert len(WRONG) == 71


def test_fields_that_ask_for_nothing_are_taken(server: Running) -> None:
    idle = {
        "n": 1, "logprobs": False, "presence_penalty": 0, "frequency_penalty": 0.0, "response_format": {"type": "text"}, "logit_bias": {}, "user": "u-1",
        "stop": None, "tools": None, "stream": None, "temperature": None, "seed": None, "tool_choice": "auto", "store": False, "metadata": None, "top_p": 1,
    }  # fmt: skip
    plain = json.loads(server.raw(request(server.port, json.dumps(GOOD).encode()))[1])["choices"]
    assert json.loads(server.raw(request(server.port, json.dumps(GOOD | idle).encode()))[1])["choices"] == plain


def test_every_field_of_the_official_client_is_either_done_or_refused_knowingly() -> None:
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
    from typing_extensions import get_type_hints

    from tuner.serve.wire import FIELDS, NEUTRAL

    theirs = set(get_type_hints(CompletionCreateParamsNonStreaming)) - {"stream"}
    assert len(theirs) > 30 and theirs <= FIELDS.keys() | NEUTRAL.keys()


def test_errors_become_the_clients_own_exceptions(server: Running) -> None:
    client = server.client()
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", messages=[USER])  # type: ignore[list-item]
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="base", messages=[{"role": "user", "content": "word " * 1100}])
    assert long.value.code == "context_length_exceeded"


def test_after_all_that_it_still_answers_and_its_log_holds_nothing_of_it(server: Running) -> None:
    secret = "xyzzy-plugh"
    answered = server.answer(secret, max_tokens=8)
    server.raw(request(server.port, json.dumps(GOOD | {"messages": [{"role": "user", "content": [secret]}]}).encode()))
    assert server.health()["status"] == "ok"
    assert secret not in server.said and (answered or "?") not in server.said and "Traceback" not in server.said
