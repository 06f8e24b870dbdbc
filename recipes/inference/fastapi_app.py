"""One adapter inside a FastAPI app of one's own: answers, streams, and takes up what an alias points to now without a restart.

    python recipes/inference/fastapi_app.py banking-intents@production --port 8001
    curl -s localhost:8001/answer -H 'content-type: application/json' -d '{"question": "I lost my card"}'

For an endpoint that OpenAI's clients understand, `tuner serve` is ready made. Whoever may call /reload chooses nothing: it only looks at the alias again.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from tuner import Refusal, load_adapter


class Asked(BaseModel):
    question: str = Field(min_length=1, max_length=20_000)
    max_new_tokens: int = Field(256, ge=1, le=1024)


def make_app(name: str, store: Path, base: Path | None = None) -> FastAPI:
    """The app around one adapter, which is loaded when the server starts and dropped when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.adapter = await asyncio.to_thread(load_adapter, name, store, base=base)
        yield
        app.state.adapter.close()

    app = FastAPI(lifespan=lifespan)

    @app.exception_handler(Refusal)
    async def refused(_request: Request, refusal: Refusal) -> JSONResponse:
        return JSONResponse({"refused": [{"field": p.field, "found": p.found, "accepted": p.accepted} for p in refusal.problems]}, status_code=422)

    @app.post("/answer")
    async def answer(asked: Asked) -> dict[str, Any]:
        adapter = app.state.adapter  # once: a reload may come between
        return {"answer": await adapter.answer_async(asked.question, asked.max_new_tokens), "version": adapter.version.label}

    @app.post("/stream")
    async def stream(asked: Asked) -> StreamingResponse:
        async def pieces() -> AsyncIterator[str]:
            async with aclosing(app.state.adapter.stream_async(asked.question, asked.max_new_tokens)) as said:  # a client that leaves ends the answer
                async for piece in said:
                    yield piece

        return StreamingResponse(pieces(), media_type="text/plain; charset=utf-8")

    @app.post("/reload")
    async def reload() -> dict[str, str]:
        """Answers that have begun end with the weights they began with; a version that is refused leaves the old one answering."""
        old = app.state.adapter
        app.state.adapter = await asyncio.to_thread(old.beside, name, store)  # on the base that is loaded
        await old.close_async()
        return {"version": app.state.adapter.version.label}

    return app


def main() -> None:
    import uvicorn

    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("name", help="NAME, NAME@3 or NAME@alias")
    words.add_argument("--store", type=Path, default=Path("adapters"))
    words.add_argument("--base", type=Path, help="folder of the base, when it was a local one")
    words.add_argument("--port", type=int, default=8001)
    given = words.parse_args()
    uvicorn.run(make_app(given.name, given.store, given.base), host="127.0.0.1", port=given.port)


if __name__ == "__main__":
    main()
