"""What OpenAI's chat completions endpoint takes and gives: a request's bytes into what is asked, and answers and errors in its shapes.

It refuses whatever this server would not do, naming the field: nothing a client asks for is left out in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tuner.artifact.flight import Sampling
from tuner.data.parse import BadJson, decode
from tuner.data.record import ROLES
from tuner.errors import Refusal
from tuner.safe_text import quoted

MOST_STOPS = 4
MOST_STOP_CHARACTERS = 200


class Rejected(Exception):
    """A request that is not answered, in OpenAI's terms: status, what is wrong, which field (`param`), and a code that programs can read."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, headers: Mapping[str, str] | None = None):
        super().__init__(status, message, param, code)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True)
class Asked:
    """A chat completion request. `max_tokens` is None where the client leaves it to the server."""

    model: str
    messages: tuple[dict[str, Any], ...]
    max_tokens: int | None
    max_tokens_field: str
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def read_request(data: bytes) -> Asked:
    """Raises Rejected (400) naming the first field that is missing, mistyped, unknown, or asks for what is not done here."""
    given = _object(data)
    for name, value in given.items():
        if name not in FIELDS:
            _reject_unsupported(name, value)
    read = {name: reader(name, given.get(name)) for name, reader in FIELDS.items()}
    tokens, field = _one_of(read, "max_tokens", "max_completion_tokens")
    if read["stream_options"] and not read["stream"]:
        _reject("stream_options", "only allowed together with stream: true")
    sampling = _sampling({name: read[name] for name in ("temperature", "top_p", "seed") if read[name] is not None})
    messages = read["messages"]
    if read["tools"]:
        messages = ({**messages[0], "tools": read["tools"]}, *messages[1:])
    return Asked(read["model"], messages, tokens, field, sampling, read["stop"], read["stream"], read["stream_options"])


def _object(data: bytes) -> dict[str, Any]:
    try:
        given = decode(data.decode("utf-8"))
    except UnicodeDecodeError:
        _reject(None, "the body is not UTF-8", "invalid_json")
    except BadJson as error:
        _reject(None, f"the body has {error.args[1]}; accepted: {error.args[2]}", "invalid_json")
    except json.JSONDecodeError as error:
        _reject(None, f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}", "invalid_json")
    if not isinstance(given, dict):
        _reject(None, "the body is not a JSON object", "invalid_json")
    return given


def _reject(field: str | None, message: str, code: str | None = "invalid_value") -> NoReturn:
    raise Rejected(400, f"{field}: {message}" if field else message, field, code)


def _reject_unsupported(name: str, value: Any) -> None:
    """Nothing, where the value asks for nothing."""
    if name not in NEUTRAL:
        _reject(quoted(name, 60).strip("'\""), "unknown field", "unknown_parameter")
    neutral = NEUTRAL[name]
    if value is None or any(type(value) is type(n) and value == n for n in neutral):
        return
    or_send = f" or send {json.dumps(neutral[0])}" if neutral else ""
    _reject(name, f"{quoted(json.dumps(value), 60)} is not supported here; leave it out{or_send}", "unsupported_parameter")


# --- one field each ------------------------------------------------------------------------------------------------


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        _reject(name, "a text is required", "missing_required_parameter" if value is None else "invalid_type")
    return value


def _ignored_text(name: str, value: Any) -> None:
    """Who the end user is changes no answer, and is kept nowhere."""
    if value is not None and not isinstance(value, str):
        _reject(name, "a text is required", "invalid_type")


def _bool(name: str, value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        _reject(name, "true or false is required", "invalid_type")
    return bool(value)


def _whole(name: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        _reject(name, "a whole number is required", "invalid_type")
    return value


def _tokens(name: str, value: Any) -> int | None:
    number = _whole(name, value)
    if number is not None and number < 1:
        _reject(name, "at least 1 is required")
    return number


def _real(name: str, value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        _reject(name, "a number is required", "invalid_type")
    return None if value is None else float(value)


def _temperature(name: str, value: Any) -> float | None:
    number = _real(name, value)
    if number is not None and not 0.0 <= number <= 2.0:
        _reject(name, "0 to 2 is required")
    return number


def _stops(name: str, value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or len(texts) > MOST_STOPS or not all(isinstance(t, str) and 0 < len(t) <= MOST_STOP_CHARACTERS for t in texts):
        _reject(name, f"a text, or a list of up to {MOST_STOPS}, of 1 to {MOST_STOP_CHARACTERS} characters is required")
    return tuple(texts)


def _stream_options(name: str, value: Any) -> bool:
    """Whether usage is wanted at the end of a stream."""
    if value is None:
        return False
    if not isinstance(value, dict):
        _reject(name, "an object is required", "invalid_type")
    for key, wanted in value.items():
        if key != "include_usage" and wanted not in (None, False):
            _reject(f"{name}.{quoted(key, 40)[1:-1]}", "not supported here; leave it out", "unsupported_parameter")
    return _bool(f"{name}.include_usage", value.get("include_usage"))


def _tools(name: str, value: Any) -> list[dict[str, Any]]:
    """The functions offered, which the template writes into the prompt. Calls come back as the text the model says."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(t, dict) for t in value):
        _reject(name, "a list of objects is required", "invalid_type")
    for index, tool in enumerate(value):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict) or not isinstance(function.get("name"), str):
            _reject(f"{name}[{index}]", "an object of type function, with function.name, is required")
    return value


def _messages(name: str, value: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not value:
        _reject(name, "a list of at least one message is required", "missing_required_parameter" if value is None else "invalid_value")
    return tuple(_message(f"{name}[{index}]", message) for index, message in enumerate(value))


def _message(where: str, message: Any) -> dict[str, Any]:
    """A message as templates take it."""
    if not isinstance(message, dict):
        _reject(where, "an object is required", "invalid_type")
    role = message.get("role")
    if role not in ROLES:
        _reject(f"{where}.role", f"one of {', '.join(ROLES)} is required")
    for key, value in message.items():
        if key not in _OF_MESSAGE and value is not None:
            _reject(f"{where}.{quoted(key, 40)[1:-1]}", "not supported here; leave it out", "unsupported_parameter")
    plain = {"role": role, "content": _content(f"{where}.content", message.get("content"), bool(message.get("tool_calls")))}
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None:
            plain[key] = _text(f"{where}.{key}", message[key])
    calls = message.get("tool_calls")
    if calls:
        if role != "assistant" or not isinstance(calls, list) or not all(isinstance(c, dict) for c in calls):
            _reject(f"{where}.tool_calls", "a list of objects, in an assistant's message, is required")
        plain["tool_calls"] = calls
    return plain


_OF_MESSAGE = frozenset({"role", "content", "name", "tool_call_id", "tool_calls"})


def _content(where: str, content: Any, may_be_absent: bool) -> str:
    """Text, or the texts of a list of text parts."""
    if content is None and may_be_absent:
        return ""
    if isinstance(content, list) and content:
        for index, part in enumerate(content):
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                _reject(f"{where}[{index}]", "a part of type text is required: this base reads text alone", "unsupported_parameter")
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        _reject(where, "a text is required", "invalid_type")
    return content


def _one_of(read: Mapping[str, Any], old: str, new: str) -> tuple[int | None, str]:
    """Two names of one setting."""
    if read[old] is not None and read[new] is not None and read[old] != read[new]:
        _reject(old, f"differs from {new}: send one of them")
    return (read[new], new) if read[new] is not None else (read[old], old)


def _sampling(settings: dict[str, Any]) -> Sampling:
    """Greedy unless the client asks otherwise: what was graded is what is served."""
    try:
        return Sampling(**settings)
    except Refusal as refusal:
        (problem,) = refusal.problems
        _reject(problem.field, f"{problem.found} is out of range; accepted: {problem.accepted}")


# --- shapes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heading:
    """What every object of one answer carries. `fingerprint` names the version that answers."""

    id: str
    created: int
    model: str
    fingerprint: str


def completion(heading: Heading, text: str, finish: str, usage: dict[str, int]) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, "refusal": None}, "logprobs": None, "finish_reason": finish}
    return {**_head(heading, "chat.completion"), "choices": [choice], "usage": usage}


def chunk(heading: Heading, delta: dict[str, Any], finish: str | None, include_usage: bool) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {**_head(heading, "chat.completion.chunk"), "choices": [choice], **({"usage": None} if include_usage else {})}


def usage_chunk(heading: Heading, usage: dict[str, int]) -> dict[str, Any]:
    """The last one of a stream whose client asked for usage: no choice in it."""
    return {**_head(heading, "chat.completion.chunk"), "choices": [], "usage": usage}


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens of the prompt as the model saw it, and those it said up to its stop token, which is not counted."""
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": prompt_tokens + completion_tokens}


def _head(heading: Heading, kind: str) -> dict[str, Any]:
    return {"id": heading.id, "object": kind, "created": heading.created, "model": heading.model, "system_fingerprint": heading.fingerprint}


def event(value: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


LAST_EVENT = "data: [DONE]\n\n"

FIELDS: dict[str, Callable[[str, Any], Any]] = {
    "model": _text, "messages": _messages, "max_tokens": _tokens, "max_completion_tokens": _tokens, "temperature": _temperature, "top_p": _real,
    "seed": _whole, "stop": _stops, "stream": _bool, "stream_options": _stream_options, "tools": _tools, "user": _ignored_text,
}  # fmt: skip
# Fields that are known and not done here, with the values that ask for nothing.
NEUTRAL: dict[str, Sequence[Any]] = {
    "audio": (), "frequency_penalty": (0, 0.0), "function_call": ("none",), "functions": ([],), "logit_bias": ({},), "logprobs": (False,), "metadata": ({},),
    "modalities": (["text"],), "moderation": (), "n": (1,), "parallel_tool_calls": (), "prediction": (), "presence_penalty": (0, 0.0),
    "prompt_cache_key": (), "prompt_cache_options": (), "prompt_cache_retention": (), "reasoning_effort": (), "response_format": ({"type": "text"},),
    "safety_identifier": (), "service_tier": ("auto", "default"), "store": (False,), "tool_choice": ("auto",),
    "top_logprobs": (0,), "verbosity": (), "web_search_options": (),
}  # fmt: skip
