"""A server from its first word to its last: what it is given, the socket, the threads, and the way it ends.

It refuses to listen beyond this machine without a key, and libraries that are not installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import logging
import re
import socket
import stat
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.artifact.remote import store_folder
from tuner.errors import refuse
from tuner.safe_text import quoted

if TYPE_CHECKING:
    from tuner.serve.fleet import Fleet

NEEDED = ("fastapi", "uvicorn")
LEAST_KEY = 16  # characters
_HOST = re.compile(r"([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


@dataclass(frozen=True)
class Settings:
    """`rows` answers are under way at once; `queue` more requests wait. Running answers get `grace_seconds` to end when the server stops."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    rows: int = 16
    queue: int = 64
    max_new_tokens: int = 1024
    timeout_seconds: float = 120.0
    grace_seconds: int = 20
    engine: str = "transformers"


@dataclass(frozen=True)
class Source:
    """Where the models come from, as load_adapter takes it."""

    names: tuple[str, ...]
    store: str = "adapters"
    base: str | None = None
    device: str | None = None
    load: str | None = None


def serve(source: Source, settings: Settings, say: Callable[[str], None]) -> None:
    """Answer requests until a signal. `say` is given what a person at the terminal should know; never a prompt, an answer or the key.

    Raises Refusal before the first request; afterwards SIGTERM and Ctrl-C take the way they take everywhere, once running answers have ended.
    """
    refuse_missing()
    key = api_key(settings)
    allowed_hosts(settings)
    if settings.engine == "vllm":
        from tuner.serve.vllm_command import refuse_without_vllm

        refuse_without_vllm()
    from tuner.serve.fleet import open_fleet

    listening = _listen(settings)
    with contextlib.closing(listening):
        fleet = open_fleet(source.names, store_folder(source.store), source.base, source.device, source.load, settings.rows)
        if settings.engine == "vllm":
            _hand_over(fleet, settings, key, listening)
        _run(fleet, settings, key, listening, say)


def _run(fleet: Fleet, settings: Settings, key: str | None, listening: socket.socket, say: Callable[[str], None]) -> None:
    import uvicorn

    from tuner.serve.endpoint import Endpoint, Limits, application
    from tuner.serve.guard import Guard
    from tuner.serve.meters import Meters
    from tuner.serve.pilot import Pilot
    from tuner.serve.watch import Watch

    port = listening.getsockname()[1]
    meters = Meters()
    pilot = Pilot(settings.rows, settings.queue, meters, lambda: setattr(server, "should_exit", True))
    watch = Watch(fleet, pilot, meters, say)
    endpoint = Endpoint(fleet, pilot, meters, Limits(settings.max_new_tokens, settings.timeout_seconds), watch)
    app = Guard(application(endpoint), hosts_of(settings, port), key, allowed_hosts(settings))
    server: Any = uvicorn.Server(uvicorn.Config(
        app, http="h11", ws="none", loop="asyncio", lifespan="off", log_config=None, access_log=False, server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=settings.grace_seconds,
    ))  # fmt: skip
    for line in start_lines(fleet, settings, port, key is not None):
        say(line)
    pilot.start()
    watch.start()
    try:
        with _short_faults(say):
            server.run(sockets=[listening])
    finally:
        watch.stop()
        pilot.stop()
        pilot.join(settings.grace_seconds)
    if not server._captured_signals:
        raise RuntimeError("the thread that answers has died")


def refuse_missing() -> None:
    """Raises Refusal with the pip command where the server's libraries are not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        refuse("command line", "serve", f"{' and '.join(missing)} not installed", "the libraries of the serve extra", "pip install 'tuner-lora[serve]'")


# --- the address ---------------------------------------------------------------------------------------------------


def is_of_this_machine(host: str) -> bool:
    """Does only this machine reach it? A name other than localhost may be anybody's."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def api_key(settings: Settings) -> str | None:
    """The key of --api-key-file. Raises Refusal where one is needed, or where it could be read or guessed by others."""
    file = settings.api_key_file
    if file is None:
        if not is_of_this_machine(settings.host):
            refuse("command line", "--host", quoted(settings.host), "127.0.0.1, or a key that every request must carry", "add --api-key-file FILE")
        return None
    try:
        text, mode = file.read_text(encoding="utf-8").strip(), file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        refuse(file, "--api-key-file", f"unreadable: {quoted(type(error).__name__)}", "a file of one line, the key",
               f"python -c 'import secrets; print(secrets.token_urlsafe(32))' > {file.name}; chmod 600 {file.name}")  # fmt: skip
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        refuse(file, "--api-key-file", f"mode {stat.S_IMODE(mode):04o}: others can read it", "mode 0600", f"chmod 600 {file}")
    if len(text) < LEAST_KEY or not text.isascii() or any(c.isspace() for c in text):
        refuse(
            file, "--api-key-file", f"{len(text)} characters", f"one word of at least {LEAST_KEY} ASCII characters", "make one with secrets.token_urlsafe(32)"
        )
    return text


def hosts_of(settings: Settings, port: int) -> set[str]:
    """Values of the Host header that are this server's own, lower case."""
    names = {"127.0.0.1", "localhost", "[::1]", _bracketed(settings.host)} - {"0.0.0.0", "[::]"}
    return {f"{name.lower()}:{port}" for name in names} | ({name.lower() for name in names} if port == 80 else set())


def allowed_hosts(settings: Settings) -> set[str]:
    """What --allow-host says, lower case: NAME:PORT, or NAME for itself with any port or none, as behind a proxy or a tunnel. Raises Refusal."""
    allowed = {_bracketed(host) if host.count(":") > 1 else host for host in map(str.lower, settings.allowed_hosts)}
    for host in sorted(allowed):
        if not _HOST.fullmatch(host):
            refuse("command line", "--allow-host", quoted(host), "NAME or NAME:PORT, as the client's Host header has it", "leave out https:// and any path")
    return allowed


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _listen(settings: Settings) -> socket.socket:
    """A bound socket, before minutes are spent on loading. Raises Refusal where the port is taken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        refuse("command line", "--port", f"{settings.host}:{settings.port}: {error.strerror or error}", "an address of this machine that is free",
               "choose another --port, or 0 for any")  # fmt: skip
    return listening


# --- what is said --------------------------------------------------------------------------------------------------


def start_lines(fleet: Fleet, settings: Settings, port: int, has_key: bool) -> list[str]:
    """Where it answers, what, and how the same is served under real load."""
    from tuner.serve.vllm_command import vllm_line

    first = fleet.first
    models = ", ".join(f"{m.name} ({m.loaded.label})" if m.name != m.loaded.label else m.name for m in fleet.models)
    url = f"http://{_bracketed(settings.host)}:{port}/v1"
    lines = [
        f"serving {url}  models: {models}",
        f"base {first.manifest['base']['name']}, {first.precision}, on {first.precision.device}; {settings.rows} answers at once, {settings.queue} may wait; "
        f"up to {settings.max_new_tokens} tokens and {settings.timeout_seconds:g} s each; {'with' if has_key else 'no'} API key",
        f"for real load: {vllm_line(fleet, settings.host, port)}",
    ]  # fmt: skip
    if any(m.loaded.adapter.encoder.template.system for m in fleet.models):
        lines.append("(vLLM does not add the recipe's system prompt: send it as the first message)")
    return [*lines, f"Ctrl-C stops it; running answers get {settings.grace_seconds} s to end"]


@contextlib.contextmanager
def _short_faults(say: Callable[[str], None]) -> Iterator[None]:
    """Inside, what uvicorn logs is said in a line, and a fault by its kind and place alone: its message may hold somebody's text."""

    class Short(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            error = record.exc_info[1] if record.exc_info else None
            frames = traceback.extract_tb(error.__traceback__)[-1:] if error else []
            say(record.getMessage().strip() + "".join(f": {type(error).__name__} at {Path(f.filename).name}:{f.lineno}" for f in frames))

    log, short = logging.getLogger("uvicorn.error"), Short(logging.WARNING)
    log.addHandler(short)
    before, log.propagate = log.propagate, False
    try:
        yield
    finally:
        log.removeHandler(short)
        log.propagate = before


def _hand_over(fleet: Fleet, settings: Settings, key: str | None, listening: socket.socket) -> None:
    from tuner.serve.vllm_command import exec_vllm, hindrances, vllm_words

    hindrances(fleet, bf16=False).raise_if_any()
    port = listening.getsockname()[1]
    listening.close()
    exec_vllm(vllm_words(fleet, settings.host, port), key)
