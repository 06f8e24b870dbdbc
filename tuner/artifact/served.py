"""A version answered by another engine than transformers, from tuner's own prompt ids and stop tokens: llama.cpp on CPUs, vLLM on a GPU.

It refuses what an engine cannot serve as it was trained; what it rounds otherwise is said where it is chosen.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tuner.artifact.gguf import Weights, write_lora_gguf, write_model_gguf
from tuner.artifact.opening import Opened
from tuner.artifact.stream import Stream
from tuner.artifact.waiting import Waiting
from tuner.base import Base, cache_folder
from tuner.durable import locked
from tuner.errors import refuse
from tuner.fingerprint import digest_json

if TYPE_CHECKING:
    from tuner.artifact.adapter import Adapter, Question

EngineName = Literal["transformers", "vllm", "llama.cpp"]
CONTEXT_TOKENS = 4096  # longest prompt with its answer in llama.cpp, where the base can do as much: keys and values of so many are reserved
LLAMA_CPP_WEIGHTS: dict[str, Weights] = {"fp32": "f32", "bf16": "f16", "auto": "f16"}  # by `load`


class Sayer(Protocol):
    """What says an answer's tokens, its stop token left out. One call at a time."""

    name: str
    context_tokens: int

    def tokens(self, prompt: list[int], max_new_tokens: int, stop_ids: Collection[int]) -> Iterator[int]: ...

    def close(self) -> None: ...


class ServedAdapter(Waiting):
    """A version with its answers from another engine. It answers and streams; what looks into the model (losses, scores, `as_base`) needs transformers.

    Greedy answers are of the same prompt ids as those of transformers. They differ where two tokens are nearly as likely: engines round otherwise.
    """

    def __init__(self, opened: Opened, sayer: Sayer):
        self.version, self.manifest, self.encoder, self.allowed = opened.version, opened.manifest, opened.encoder, opened.allowed
        self._sayer, self._lock, self._is_open = sayer, threading.RLock(), True
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tuner-answers")

    def __repr__(self) -> str:
        return f"ServedAdapter({self.version.label}, {self._sayer.name})"

    @property
    def engine(self) -> str:
        """The engine and how it holds the weights."""
        return self._sayer.name

    def prompt_ids(self, question: Question) -> list[int]:
        """The token ids the engine is given for a question."""
        from tuner.artifact.adapter import as_messages

        return self.encoder.prompt_ids(as_messages(question))

    def answer(self, question: Question, max_new_tokens: int = 256) -> str:
        """The adapter's greedy answer to one question."""
        with self.stream(question, max_new_tokens) as pieces:
            return "".join(pieces)

    def answer_many(self, questions: Sequence[Question], max_new_tokens: int = 256) -> list[str]:
        """Greedy answers in the order of the questions, one after the other."""
        return [self.answer(question, max_new_tokens) for question in questions]

    def stream(self, question: Question, max_new_tokens: int = 256) -> Stream:
        """The same answer in pieces. Others may be answered between two tokens; llama.cpp then reads what was said before once more."""
        prompt = self.prompt_ids(question)
        limit = self._sayer.context_tokens
        if len(prompt) + max_new_tokens > limit:
            refuse(self.version.label, "prompt", f"{len(prompt)} tokens, and {max_new_tokens} for the answer", f"at most {limit}, the engine's context",
                   "ask a shorter question, or for a shorter answer")  # fmt: skip
        return Stream(self._tokens(prompt, max_new_tokens), self.encoder, lambda: None)

    def _tokens(self, prompt: list[int], max_new_tokens: int) -> Iterator[int]:
        said: Iterator[int] = self._sayer.tokens(prompt, max_new_tokens, self.encoder.stop_ids)
        while True:
            with self._lock:
                self._refuse_closed()
                token = next(said, None)
            if token is None:
                return
            yield token

    def _in_steps(self, questions: Sequence[Question], max_new_tokens: int) -> Iterator[list[str]]:
        answers = []
        for question in questions:
            with self.stream(question, max_new_tokens) as pieces:
                answers.append("".join(pieces))
            yield []
        yield answers

    @property
    def _worker(self) -> Executor:
        self._refuse_closed()
        return self._thread

    def _refuse_closed(self) -> None:
        if not self._is_open:
            refuse(self.version.label, "closed", "an adapter that was closed", "one that is open", "load it again")

    def close(self) -> None:
        """Drop the engine with its weights. What is asked afterwards is refused."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._thread.shutdown(wait=False)
                self._sayer.close()

    def __enter__(self) -> ServedAdapter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- llama.cpp -----------------------------------------------------------------------------------------------------


class LlamaCppSayer:
    """llama.cpp with the base and the adapter as .gguf files, which are made once and kept in the user's cache."""

    def __init__(self, opened: Opened, base: Base, load: str):
        """Raises Refusal for what a LoRA file of llama.cpp cannot hold, and for a base that it does not know."""
        from tuner.artifact.engines import LlamaCpp

        label = opened.version.label
        if load not in LLAMA_CPP_WEIGHTS:
            refuse(label, "load", load, "one of: " + ", ".join(LLAMA_CPP_WEIGHTS), "give load='bf16': 16-bit weights in llama.cpp")
        if opened.encoder.new_ids:
            refuse(label, "template.new_tokens", f"{len(opened.encoder.new_ids)} trained tokens", "the base's own vocabulary", "use engine='transformers'")
        weights = LLAMA_CPP_WEIGHTS[load]
        model, lora = gguf_files(opened, base, weights)
        self.context_tokens = min(base.context_tokens or CONTEXT_TOKENS, CONTEXT_TOKENS)
        self._engine = LlamaCpp(model, lora, self.context_tokens, _threads(), "f16")
        self._evaluated: list[int] = []
        self.name = f"llama.cpp, {weights} weights"

    def tokens(self, prompt: list[int], max_new_tokens: int, stop_ids: Collection[int]) -> Iterator[int]:
        ids = list(prompt)
        for _ in range(max_new_tokens):
            token = int(self._logits(ids).argmax())
            if token in stop_ids:
                return
            ids.append(token)
            yield token

    def _logits(self, ids: list[int]) -> Any:
        """Logits (V,) after `ids`: of the last one alone, where the engine has just read those before it."""
        follows = self._evaluated == ids[:-1]
        found = self._engine._next(ids[-1:]) if follows else self._engine.logits(ids)
        self._evaluated = list(ids)
        return found

    def close(self) -> None:
        self._engine._llama.close()


def gguf_files(opened: Opened, base: Base, weights: Weights) -> tuple[Path, Path]:
    """The base and the adapter as .gguf files in the user's cache, named by what they were made of; made if they are not there."""
    of_base = digest_json([base.weight_digest, base.config])
    home = cache_folder() / "gguf"
    model = home / f"base-{of_base[7:23]}-{weights}.gguf"
    lora = home / f"adapter-{opened.manifest['digest'][7:23]}-{of_base[7:15]}.gguf"
    home.mkdir(parents=True, exist_ok=True)
    with locked(home, "gguf"):
        if not lora.is_file():  # the small one first: it is what is refused
            write_lora_gguf(opened.version.folder.resolve(), base.folder, lora)
        if not model.is_file():
            write_model_gguf(base.folder, model, weights)
    return model, lora


def _threads() -> int:
    """Half the cores, as llama-cpp-python does: its threads wait for each other busily, and one that shares its core holds up all."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // 2, 1)


# --- vLLM ----------------------------------------------------------------------------------------------------------


class VllmSayer:
    """vLLM with base and adapter as they are, through tuner.artifact.vllm_adapter. It says an answer when it has the whole of it."""

    def __init__(self, adapter: Adapter):
        """Raises Refusal for what vLLM would serve as something else."""
        from tuner.artifact.vllm_adapter import VllmBatches, context_tokens, refuse_unservable

        refuse_unservable(adapter)
        self.context_tokens = context_tokens(adapter)
        self._batches = VllmBatches(adapter)
        self.name = self._batches.name

    def tokens(self, prompt: list[int], max_new_tokens: int, stop_ids: Collection[int]) -> Iterator[int]:
        yield from self._batches.greedy([prompt], max_new_tokens, stop_ids, as_base=False)[0]

    def close(self) -> None:
        del self._batches


def refuse_without_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        refuse("load_adapter", "engine", "vllm is not installed", "vllm, on a machine with a GPU", "pip install 'tuner-lora[vllm]'")


@contextlib.contextmanager
def lent(adapter: Adapter) -> Iterator[Adapter]:
    """An adapter whose facts an engine is started by, and whose weights it does not need."""
    try:
        yield adapter
    finally:
        adapter.close()
