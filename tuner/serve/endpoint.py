"""The paths of the server: chat completions, models, health and metrics, in the shapes that OpenAI's clients read.

It refuses what `wire` refuses, unknown models and prompts that leave no room for an answer; it never cuts one.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from tuner.errors import Refusal
from tuner.safe_text import quoted
from tuner.serve.fleet import Fleet, Loaded, Model
from tuner.serve.guard import BODY_BYTES, too_large
from tuner.serve.meters import Meters
from tuner.serve.pilot import Delivered, Failed, Full, Gone, Pilot, Stopped, Ticket
from tuner.serve.stops import Stopping
from tuner.serve.watch import Watch
from tuner.serve.wire import LAST_EVENT, Asked, Heading, Rejected, chunk, completion, event, read_request, usage_chunk, usage_of

RETRY_SECONDS = 1  # said to clients that found the queue full
STOPPED_WAITING = 499  # as nginx counts a client that went away; nobody reads it but /metrics


@dataclass(frozen=True)
class Limits:
    """What one request may take."""

    max_new_tokens: int
    timeout_seconds: float


@dataclass(frozen=True)
class Said:
    """A piece of an answer; the last one has a `finish`, and may be empty."""

    text: str
    tokens: int
    finish: str | None = None


class Endpoint:
    """Answers requests with the fleet's models, through the pilot."""

    def __init__(self, fleet: Fleet, pilot: Pilot, meters: Meters, limits: Limits, watch: Watch | None = None):
        """`watch` moves the aliases; None where none can move."""
        self._watch = watch
        self.fleet, self.pilot, self.meters, self.limits = fleet, pilot, meters, limits
        self._started = int(time.time())
        self._reading = asyncio.Semaphore(2)  # requests whose texts become token ids at once, so that answers under way keep their cores

    # --- chat completions

    async def chat(self, request: Request) -> Response:
        began, model = time.monotonic(), ""
        try:
            asked = read_request(await _body(request))
            model = self._model(asked.model).name
            answer = await self._begin(asked, began)
            return self._streamed(answer) if asked.stream else await self._whole(answer, request)
        except Rejected as rejected:
            self.meters.add("tuner_requests_total", model, str(rejected.status))
            raise

    def _model(self, name: str) -> Model:
        model = self.fleet.get(name)
        if model is None:
            names = ", ".join(m.name for m in self.fleet.models)
            raise Rejected(404, f"no model {quoted(name, 120)}; there are: {names}", "model", "model_not_found")
        return model

    async def _begin(self, asked: Asked, began: float) -> Answer:
        """Queue the request. Raises Rejected where it cannot be answered, or not now."""
        while True:
            try:
                self.pilot.refuse_full()
                loaded = self._model(asked.model).loaded
                async with self._reading:
                    prompt = await asyncio.to_thread(_prompt_ids, loaded, asked)
                return Answer(self, asked, loaded, prompt, self._tokens(asked, loaded, len(prompt)), began)
            except Full:
                raise Rejected(429, "too many requests are waiting; try again", None, "queue_full", {"Retry-After": str(RETRY_SECONDS)}) from None
            except Stopped:
                raise Rejected(503, "the server is stopping", None, "stopping") from None
            except Gone:
                await asyncio.sleep(0)  # the alias moved while the prompt was read: ask the new version

    def _tokens(self, asked: Asked, loaded: Loaded, prompt_tokens: int) -> int:
        """How many tokens the answer may have. Raises Rejected where that is more than there is room for, or than this server says."""
        room, most = loaded.room(prompt_tokens), self.limits.max_new_tokens
        if room is not None and room < max(1, asked.max_tokens or 0):
            wanted = f" and {asked.max_tokens} for the answer" if asked.max_tokens else ""
            raise Rejected(400, f"the prompt takes {prompt_tokens} tokens{wanted}; the model's context is {loaded.context_tokens}",
                           asked.max_tokens_field if room > 0 else "messages", "context_length_exceeded")  # fmt: skip
        if asked.max_tokens is not None and asked.max_tokens > most:
            raise Rejected(400, f"{asked.max_tokens_field}: at most {most} here", asked.max_tokens_field, "invalid_value")
        return asked.max_tokens or (most if room is None else min(most, room))

    async def _whole(self, answer: Answer, request: Request) -> Response:
        collecting = asyncio.create_task(answer.whole())
        leaving = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                answer.left()
                return Response(status_code=STOPPED_WAITING)
            text, last = collecting.result()
            return JSONResponse(completion(answer.heading, text, last.finish or "stop", answer.usage(last.tokens)))
        finally:
            collecting.cancel()
            leaving.cancel()

    def _streamed(self, answer: Answer) -> Response:
        return StreamingResponse(answer.events(), media_type="text/event-stream")

    # --- the rest

    async def models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card(model) for model in self.fleet.models]})

    async def model(self, request: Request) -> Response:
        return JSONResponse(self._card(self._model(request.path_params["name"])))

    def _card(self, model: Model) -> dict[str, Any]:
        return {"id": model.name, "object": "model", "created": self._started, "owned_by": "tuner", "version": model.loaded.label}

    async def health(self, request: Request) -> Response:
        """200 while answers can be given; `degraded` where an alias moved to a version that was not taken, or a move would go unnoticed."""
        running = self.pilot.is_alive()
        is_behind = any(model.held_back for model in self.fleet.models) or (self._watch is not None and not self._watch.sees)
        status = "stopped" if not running else "degraded" if is_behind else "ok"
        said: dict[str, Any] = {"status": status}
        if request.scope.get("tuner.has_key"):
            said["models"] = {m.name: {"version": m.loaded.label, "held_back": m.held_back} for m in self.fleet.models}
        return JSONResponse(said, 200 if running else 503)

    async def metrics(self, _request: Request) -> Response:
        return PlainTextResponse(self.meters.text(), media_type="text/plain; version=0.0.4")

    async def no_completions(self, _request: Request) -> Response:
        raise Rejected(404, "adapters are trained on chats: use /v1/chat/completions", None, "not_found")


class Answer:
    """One answer under way. It holds a place of the pilot's until it has ended, was given up, or its time is over."""

    def __init__(self, endpoint: Endpoint, asked: Asked, loaded: Loaded, prompt: list[int], max_new_tokens: int, began: float):
        """Raises Full, Stopped or Gone."""
        self._endpoint, self._asked, self._loaded, self._began = endpoint, asked, loaded, began
        self._arriving: asyncio.Queue[Delivered] = asyncio.Queue()
        self._prompt_tokens, self._most = len(prompt), max_new_tokens
        self._ended = False
        self.heading = Heading(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), asked.model, loaded.fingerprint)
        loop = asyncio.get_running_loop()

        def deliver(what: Delivered) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(self._arriving.put_nowait, what)

        self._ticket = Ticket(loaded, prompt, max_new_tokens, asked.sampling, deliver)
        endpoint.pilot.submit(self._ticket)

    def usage(self, tokens: int) -> dict[str, int]:
        return usage_of(self._prompt_tokens, tokens)

    async def whole(self) -> tuple[str, Said]:
        """The text, and the last piece. Raises Rejected where it broke off."""
        texts, last = [], Said("", 0)
        async for last in self._pieces():
            texts.append(last.text)
        self._count(200)
        return "".join(texts), last

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events. What breaks off is said as an event: the status has been sent."""
        include_usage = self._asked.include_usage
        status = STOPPED_WAITING
        try:
            yield event(chunk(self.heading, {"role": "assistant", "content": ""}, None, include_usage))
            async for said in self._pieces():
                if said.text:
                    yield event(chunk(self.heading, {"content": said.text}, None, include_usage))
                if said.finish:
                    yield event(chunk(self.heading, {}, said.finish, include_usage))
                    if include_usage:
                        yield event(usage_chunk(self.heading, self.usage(said.tokens)))
            yield LAST_EVENT
            status = 200
        except Rejected as rejected:
            status = rejected.status
            yield event(rejected.body)
        finally:
            if status == STOPPED_WAITING:
                self.left()
            else:
                self._count(status)

    def left(self) -> None:
        """The client went away: its place is given back."""
        self._give_up()
        self._endpoint.meters.add("tuner_disconnects_total", self._asked.model)
        self._count(STOPPED_WAITING)

    async def _pieces(self) -> AsyncIterator[Said]:
        text, tokens = Stopping(self._loaded.adapter.encoder, self._asked.stop), 0
        try:
            while isinstance(token := await self._next(), int):
                tokens += 1
                if tokens == 1:
                    self._observe("tuner_first_token_seconds")
                yield Said(text.add(token), tokens)
                if text.stopped:
                    break
        finally:
            self._give_up()
        if isinstance(token, Failed):
            raise Rejected(500, token.why, None, "answer_failed")
        yield Said(text.end(), tokens, "stop" if text.stopped or tokens < self._most else "length")
        self._endpoint.meters.add("tuner_completion_tokens_total", self._asked.model, by=tokens)

    async def _next(self) -> Delivered:
        """Raises Rejected once the request has taken too long."""
        seconds_left = self._endpoint.limits.timeout_seconds - (time.monotonic() - self._began)
        try:
            async with asyncio.timeout(seconds_left):
                return await self._arriving.get()
        except TimeoutError:
            raise Rejected(504, f"no answer within {self._endpoint.limits.timeout_seconds:g} s", None, "timeout") from None

    def _give_up(self) -> None:
        if not self._ended:
            self._ended = True
            self._endpoint.pilot.leave(self._ticket)

    def _observe(self, name: str) -> None:
        self._endpoint.meters.observe(name, self._asked.model, seconds=time.monotonic() - self._began)

    def _count(self, status: int) -> None:
        meters = self._endpoint.meters
        meters.add("tuner_requests_total", self._asked.model, str(status))
        if status == 200:
            meters.add("tuner_prompt_tokens_total", self._asked.model, by=self._prompt_tokens)
            self._observe("tuner_request_seconds")


# --- requests ------------------------------------------------------------------------------------------------------


async def _body(request: Request) -> bytes:
    """Raises Rejected (413) as soon as it is too large, whatever length was announced."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > BODY_BYTES:
            raise too_large()
    return bytes(data)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _prompt_ids(loaded: Loaded, asked: Asked) -> list[int]:
    """Raises Rejected where the template cannot take these messages, or has no place for the tools."""
    messages = asked.messages
    try:
        ids = loaded.prompt_ids(messages)
        if "tools" in messages[0] and ids == loaded.prompt_ids([{k: v for k, v in messages[0].items() if k != "tools"}, *messages[1:]]):
            raise Rejected(400, "tools: this model's chat template has no place for them", "tools", "unsupported_parameter")
    except Refusal as refusal:
        problem = refusal.problems[0]
        field = "tools" if problem.field == "tools" else "messages"
        raise Rejected(400, f"{problem.field}: {problem.found}; accepted: {problem.accepted}", field, "invalid_value") from None
    return ids


# --- the application -----------------------------------------------------------------------------------------------


def application(endpoint: Endpoint) -> FastAPI:
    """Its paths, and errors in OpenAI's shape. No pages, no schema, no telemetry: FastAPI would read an environment variable to send that."""
    quiet: dict[str, Any] = {"telemetry": {"tracing": False, "metrics": False, "logs": False}}
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, **quiet)
    for method, path, answer in (
        ("POST", "/v1/chat/completions", endpoint.chat),
        ("POST", "/v1/completions", endpoint.no_completions),
        ("GET", "/v1/models", endpoint.models),
        ("GET", "/v1/models/{name:path}", endpoint.model),
        ("GET", "/health", endpoint.health),
        ("GET", "/metrics", endpoint.metrics),
    ):
        app.add_route(path, answer, methods=[method])
    app.add_exception_handler(Rejected, _rejected)
    app.add_exception_handler(HTTPException, _not_found)
    app.add_exception_handler(Exception, _bug)
    return app


async def _rejected(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Rejected)
    return JSONResponse(error.body, error.status, error.headers)


async def _not_found(request: Request, error: Exception) -> Response:
    """404 and 405, in the same shape as everything else."""
    assert isinstance(error, HTTPException)
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    rejected = Rejected(error.status_code, f"no {request.method} of {quoted(request.url.path, 120)}", None, code, error.headers)
    return await _rejected(request, rejected)


async def _bug(request: Request, _error: Exception) -> Response:
    """What went wrong is in the server's own log, by place and kind, and not in the answer."""
    return await _rejected(request, Rejected(500, "the server failed on this request", None, "internal_error"))
