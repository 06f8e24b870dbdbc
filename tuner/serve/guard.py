"""Who may talk to the server at all: checked before anything of a request is read, on every path.

It refuses other hosts than its own (DNS rebinding), pages of other origins, requests without the key where there is one, and bodies that are
too large or no JSON.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from tuner.serve.wire import Rejected

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES = 2**20
OPEN_PATH = "/health"  # answers without the key, and then says nothing but whether it runs
_JSON = re.compile(r"application/json\s*(;\s*charset=\"?utf-8\"?\s*)?", re.IGNORECASE)
_PORT = re.compile(r":[0-9]{1,5}\Z")
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


class Guard:
    """ASGI middleware. `hosts` are the accepted values of the Host header, lower case, with their port.

    So are those of `allowed`; one without a port stands for itself with any port or none. What stands before the server may speak TLS, so that pages
    of such a host, and of no other port of it than they ask, may come by either scheme.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], key: str | None, allowed: Collection[str] = ()):
        self._app, self._hosts, self._allowed = app, frozenset(hosts), frozenset(allowed)
        self._origins = frozenset(f"http://{host}" for host in hosts)
        self._key = None if key is None else _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            self._check(scope)
        except Rejected as rejected:
            await _say(rejected, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self._app(scope, receive, marked)

    def _check(self, scope: Scope) -> None:
        """Raises Rejected."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        given: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            given.setdefault(name.lower(), []).append(value)
        self._check_host(given.get(b"host", []), scope["raw_path"])
        self._check_origin(given)
        scope["tuner.has_key"] = self._check_key(given.get(b"authorization", []), scope["path"])
        if scope["method"] == "POST":
            _check_body(given)

    def _check_host(self, values: list[bytes], raw_path: bytes) -> None:
        host = values[0].decode("latin-1").lower() if len(values) == 1 else ""
        if not (host in self._hosts or self._is_allowed(host)) or not raw_path.startswith(b"/"):
            raise Rejected(421, "this server does not answer for that host", None, "misdirected_request")

    def _is_allowed(self, host: str) -> bool:
        return host in self._allowed or _PORT.sub("", host) in self._allowed

    def _check_origin(self, given: Mapping[bytes, list[bytes]]) -> None:
        origins = [value.decode("latin-1").lower() for value in given.get(b"origin", [])]
        host = given[b"host"][0].decode("latin-1").lower()
        own = self._origins | ({f"http://{host}", f"https://{host}"} if self._is_allowed(host) else set())
        sites = {value.lower() for value in given.get(b"sec-fetch-site", [])}
        if any(origin not in own for origin in origins) or sites & {b"cross-site", b"same-site"}:
            raise Rejected(403, "pages of other origins may not ask this server", None, "foreign_origin")

    def _check_key(self, values: list[bytes], path: str) -> bool:
        """Whether the request carries the key, or there is none to carry. Compared in constant time, by digests of one length."""
        if self._key is None:
            return True
        scheme, _, token = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        right = hmac.compare_digest(_digest(token.strip()), self._key) and scheme.lower() == b"bearer"
        if not right and path != OPEN_PATH:
            raise Rejected(401, "the API key is missing or wrong", None, "invalid_api_key", {"WWW-Authenticate": "Bearer"})
        return right


def _check_body(given: Mapping[bytes, list[bytes]]) -> None:
    types = [value.decode("latin-1") for value in given.get(b"content-type", [])]
    if len(types) != 1 or not _JSON.fullmatch(types[0].strip()) or b"content-encoding" in given:
        raise Rejected(415, "the body must be plain JSON: Content-Type: application/json", None, "unsupported_media_type")
    length = given.get(b"content-length", [b"0"])[0]
    if not length.isdigit() or int(length) > BODY_BYTES:
        raise too_large()


def too_large() -> Rejected:
    return Rejected(413, f"the body is larger than {BODY_BYTES:,} bytes", None, "request_too_large", {"Connection": "close"})


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


async def _say(rejected: Rejected, send: Send) -> None:
    body = json.dumps(rejected.body).encode()
    headers = [(name.lower().encode(), value.encode()) for name, value in rejected.headers.items()]
    shape = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": rejected.status, "headers": [*shape, *headers, *_HEADERS]})
    await send({"type": "http.response.body", "body": body})
