"""The command that serves adapters over HTTP: serve.

It refuses to listen beyond this machine without a key.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tuner.cli_words import BaseFolder, Store
from tuner.errors import Exit, Terminated
from tuner.telling import err

Names = Annotated[
    list[str], typer.Argument(metavar="NAME[@VERSION|@ALIAS]...", help="adapters of one base; each answers under the name given", show_default=False)
]


def serve(
    names: Names, store: Store = None, base: BaseFolder = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda:N; default: a GPU where there is one")] = None,
    load: Annotated[str | None, typer.Option(help="auto, bf16 or fp32; default: the recipe's")] = None,
    host: Annotated[str, typer.Option(help="address to listen on; other than this machine's own only with --api-key-file")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one and says which")] = 8000,
    api_key_file: Annotated[Path | None, typer.Option(help="file (mode 0600) of the key that every request must carry as its bearer token")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(metavar="NAME[:PORT]", help="another host that clients name; alone: any port; repeatable")] = None,
    rows: Annotated[int, typer.Option(min=1, max=1024, help="answers under way at once, over all models")] = 16,
    queue: Annotated[int, typer.Option(min=0, max=100_000, help="requests that may wait besides; further ones get 429")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer a client may ask for, and gets by default")] = 1024,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds a request may take, waiting included")] = 120.0,
    grace: Annotated[int, typer.Option(min=0, help="seconds that running answers get to end when the server stops")] = 20,
    engine: Annotated[str, typer.Option(help="transformers; or vllm: its own server takes over (needs a GPU)")] = "transformers",
) -> None:  # fmt: skip
    """Answer OpenAI's chat completions on http://127.0.0.1:8000/v1, several adapters on one base. For small use; it prints the vLLM command for more."""
    from tuner.catalog import choose
    from tuner.serve.server import Settings, Source
    from tuner.serve.server import serve as room

    choose({"transformers": None, "vllm": None}, engine, "command line", "--engine")
    settings = Settings(host, port, api_key_file, tuple(allow_host or ()), rows, queue, max_new_tokens, timeout, grace, engine)
    source = Source(tuple(names), store or "adapters", base, device, load)
    try:
        room(source, settings, lambda line: err.print(line, markup=False, soft_wrap=True, highlight=False))
    except (KeyboardInterrupt, Terminated) as ended:  # said here: what other commands say of checkpoints is not true of a server
        err.print("the server has stopped", markup=False)
        sys.exit(Exit.INTERRUPTED if isinstance(ended, KeyboardInterrupt) else Exit.TERMINATED)


COMMANDS = (serve,)
