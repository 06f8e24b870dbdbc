"""Answers for an event loop: the same text as the calls that block, with the model's work in a thread of its own.

It refuses nothing; a task that is cancelled frees what its answer held after the token that is being computed.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from tuner.artifact.stream import Stream

if TYPE_CHECKING:
    from tuner.artifact.adapter import Question

Found = TypeVar("Found")


class Waiting(ABC):
    """The async forms of `answer`, `answer_many` and `stream`. Several may wait at once: each gets its next token in turn."""

    @abstractmethod
    def stream(self, question: Question, max_new_tokens: int = 256) -> Stream:
        """An answer as it comes."""

    @abstractmethod
    def _in_steps(self, questions: Sequence[Question], max_new_tokens: int) -> Iterator[list[str]]:
        """Again and again an empty list, between which others may be answered; then the answers. The state it is asked in is that of this call."""

    @property
    @abstractmethod
    def _worker(self) -> Executor:
        """The one thread in which the model works for event loops."""

    async def answer_async(self, question: Question, max_new_tokens: int = 256) -> str:
        """`answer`, awaited."""
        async with aclosing(self.stream_async(question, max_new_tokens)) as pieces:
            return "".join([piece async for piece in pieces])

    async def answer_many_async(self, questions: Sequence[Question], max_new_tokens: int = 256) -> list[str]:
        """`answer_many`, awaited."""
        found: list[str] = []
        async with aclosing(_in_thread(self._worker, partial(self._in_steps, questions, max_new_tokens))) as steps:
            async for answers in steps:
                found = answers
        return found

    async def stream_async(self, question: Question, max_new_tokens: int = 256) -> AsyncGenerator[str, None]:
        """`stream`, for `async for`. Left before its end, it is best closed with contextlib.aclosing, or its answer goes on until it is collected."""
        async with aclosing(_in_thread(self._worker, partial(self.stream, question, max_new_tokens))) as pieces:
            async for piece in pieces:
                yield piece

    @abstractmethod
    def close(self) -> None:
        """Drop the model."""

    async def close_async(self) -> None:
        """`close`, after everything that was asked before it: answers that have begun end as they would have."""
        await asyncio.get_running_loop().run_in_executor(self._worker, self.close)


async def _in_thread(worker: Executor, begin: Callable[[], Iterator[Found]]) -> AsyncGenerator[Found, None]:
    """What `begin` gives, made in the caller's context and asked for its next in the worker; closed there too, whatever happens."""
    loop, context = asyncio.get_running_loop(), copy_context()
    begun: list[Any] = []

    def start() -> None:
        begun.append(context.run(begin))

    def close() -> None:
        for one in begun:
            one.close()

    try:
        await loop.run_in_executor(worker, start)
        while (found := await loop.run_in_executor(worker, next, begun[0], None)) is not None:
            yield found
    finally:
        await asyncio.shield(loop.run_in_executor(worker, close))  # one thread: it comes after whatever was begun before
