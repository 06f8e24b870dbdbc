"""Engines that serve a version in place of transformers, asked through one small interface, so that what they compute can be compared.

It refuses an engine that is not installed, and a prompt that does not fit its context.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import jinja2

from tuner.artifact.gguf import Weights, write_lora_gguf, write_model_gguf
from tuner.errors import refuse
from tuner.safe_text import quoted

if TYPE_CHECKING:
    import numpy as np

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Served:
    """What an engine is to serve. `base` is a model folder, or for llama.cpp also a .gguf file; files are made in `aside` if they must be.

    `weights` is the precision of the base in the engine; a .gguf file keeps its own. `cache` is that of keys and values; servers keep f16.
    """

    base: Path
    adapter: Path | None
    aside: Path
    weights: Weights = "f32"
    cache: Literal["f32", "f16"] = "f16"
    context_tokens: int = 2048
    threads: int = 1


class Engine(Protocol):
    """What an engine must answer. Token ids are its own: nothing of tuner's tokenizer or template is used."""

    name: str

    def tokenize_chat(self, messages: Messages) -> list[int]:
        """Ids a server of this engine would give the model for a chat, up to and with the words that open the assistant's turn."""

    def tokenize(self, text: str) -> list[int]:
        """Ids of plain text: nothing added, and no text of it taken for a control token."""

    def greedy(self, prompt_ids: Sequence[int], max_new_tokens: int, stop_ids: Collection[int]) -> list[int]:
        """The most likely next token again and again, up to a stop token (left out) or `max_new_tokens`."""

    def logits(self, prompt_ids: Sequence[int]) -> np.ndarray:
        """Logits (V,) of the token that follows the prompt, in float32."""

    def along(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> np.ndarray:
        """Logits (T + 1, V) in float32: of the token after the prompt, and after each of the T tokens of a given answer."""


# --- llama.cpp -----------------------------------------------------------------------------------------------------


class LlamaCpp:
    """llama.cpp through its Python binding, llama-cpp-python, whose server answers chats by the same calls."""

    name = "llama.cpp"

    def __init__(self, model: Path, lora: Path | None, context_tokens: int, threads: int, cache: Literal["f32", "f16"]):
        """Load `model` and `lora`, both .gguf files. Raises Refusal when llama.cpp cannot."""
        self._binding = _imported("llama_cpp", "llama-cpp-python", "llama-cpp")
        kind = {"f32": self._binding.GGML_TYPE_F32, "f16": self._binding.GGML_TYPE_F16}[cache]
        try:
            self._llama = self._binding.Llama(
                model_path=str(model), lora_path=str(lora) if lora else None, n_ctx=context_tokens, n_threads=threads, n_threads_batch=threads,
                type_k=kind, type_v=kind, verbose=False,
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:
            refuse(model, "", f"llama.cpp: {quoted(error, 160)}", "a model, and an adapter of it, that llama.cpp loads", "see why with llama-cli -m")
        if lora is not None and not self._llama._lora_adapter:  # the binding (0.3.36) misses a null pointer, and would serve the bare base
            refuse(lora, "", "llama.cpp did not take this adapter", "a LoRA file made for the base it is served on", f"write it again for {model.name}")

    @classmethod
    def serve(cls, served: Served) -> LlamaCpp:
        """Write what is not a .gguf file yet, then load it."""
        _imported("llama_cpp", "llama-cpp-python", "llama-cpp")
        model, lora = served.base, None
        if served.base.is_dir():
            model = served.aside / f"base-{served.weights}.gguf"
            write_model_gguf(served.base, model, served.weights)
        if served.adapter is not None:
            lora = served.aside / "adapter.gguf"
            write_lora_gguf(served.adapter, served.base, lora)
        return cls(model, lora, served.context_tokens, served.threads, served.cache)

    def tokenize_chat(self, messages: Messages) -> list[int]:
        """As above. A control token spelt out in a message does become that token: so does it in a llama.cpp server."""
        asked = _Asked(self._llama)
        llama = self._llama
        handler = llama.chat_handler or llama._chat_handlers.get(llama.chat_format) or self._chat_handler(llama.chat_format)
        try:
            handler(llama=asked, messages=[dict(m) for m in messages])
        except _Captured as captured:
            return captured.prompt
        except (ValueError, jinja2.TemplateError) as error:
            refuse(
                self.name, "messages", quoted(error, 120), "turns that the model's chat template can render", "leave out what it cannot, such as a system turn"
            )
        raise RuntimeError("llama-cpp-python answered a chat without asking its model")

    def tokenize(self, text: str) -> list[int]:
        ids: list[int] = self._llama.tokenize(text.encode("utf-8"), add_bos=False, special=False)
        return ids

    def greedy(self, prompt_ids: Sequence[int], max_new_tokens: int, stop_ids: Collection[int]) -> list[int]:
        _refuse_too_long(self.name, prompt_ids, max_new_tokens, self._llama.n_ctx())
        answer: list[int] = []
        following = self.logits(prompt_ids)
        while len(answer) < max_new_tokens and (token := int(following.argmax())) not in stop_ids:
            answer.append(token)
            if len(answer) < max_new_tokens:
                following = self._next([token])
        return answer

    def logits(self, prompt_ids: Sequence[int]) -> np.ndarray:
        _refuse_too_long(self.name, prompt_ids, 0, self._llama.n_ctx())
        self._llama.reset()
        return self._next(prompt_ids)

    def along(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> np.ndarray:
        import numpy as np

        _refuse_too_long(self.name, prompt_ids, len(answer_ids), self._llama.n_ctx())
        return np.stack([self.logits(prompt_ids), *(self._next([token]) for token in answer_ids)])  # one by one, as a server generates

    def tokenize_text(self, text: str) -> list[int]:
        """Ids of a rendered prompt as a llama.cpp server reads it: control texts become tokens, and what the file says to begin with is put first."""
        ids: list[int] = self._llama.tokenize(text.encode("utf-8"), add_bos=True, special=True)
        return ids

    def _next(self, ids: Sequence[int]) -> np.ndarray:
        """Logits (V,) after `ids`, which follow what was asked since the last reset."""
        import numpy as np

        self._llama.eval(list(ids))
        last = self._binding.llama_get_logits_ith(self._llama.ctx, -1)
        return np.array(np.ctypeslib.as_array(last, shape=(self._llama.n_vocab(),)), dtype=np.float32)

    def _chat_handler(self, chat_format: str) -> Callable[..., Any]:
        found: Callable[..., Any] = self._binding.llama_chat_format.get_chat_completion_handler(chat_format)
        return found


class _Captured(Exception):
    """The prompt that a chat handler was about to have completed."""

    def __init__(self, prompt: list[int]):
        self.prompt = prompt


class _Asked:
    """Stands before a Llama while a chat handler prepares its prompt: everything is the Llama's own, but nothing is generated."""

    def __init__(self, llama: Any):
        self._llama = llama

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llama, name)

    def create_completion(self, prompt: list[int], **_: Any) -> None:
        raise _Captured(list(prompt))


# --- vLLM ----------------------------------------------------------------------------------------------------------


class Vllm:
    """vLLM with the PEFT folder as it is. Written against vllm 0.11's documented interface; not run by our tests, which have no GPU."""

    name = "vLLM"

    def __init__(self, model: Path, adapter: Path | None, context_tokens: int, weights: Weights):
        vllm = _imported("vllm", "vllm", "vllm")
        if weights == "q8_0" or not model.is_dir():
            refuse(model, "weights", weights if model.is_dir() else "a file", "a folder of safetensors, as f32 or f16", "serve GGUF files with llama_cpp")
        rank = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"] if adapter else 1
        self._vllm = vllm
        self._context_tokens = context_tokens
        self._llm = vllm.LLM(
            model=str(model), tokenizer=str(adapter or model), dtype={"f32": "float32", "f16": "float16"}[weights], max_model_len=context_tokens,
            enable_lora=adapter is not None, max_lora_rank=next((r for r in VLLM_RANKS if r >= rank), rank), max_logprobs=-1, logprobs_mode="raw_logits",
            generation_config="vllm",
        )  # fmt: skip
        self._lora = importlib.import_module("vllm.lora.request").LoRARequest("adapter", 1, str(adapter)) if adapter else None

    @classmethod
    def serve(cls, served: Served) -> Vllm:
        return cls(served.base, served.adapter, served.context_tokens, served.weights)

    def tokenize_chat(self, messages: Messages) -> list[int]:
        tokenizer = self._llm.get_tokenizer()
        return list(tokenizer.apply_chat_template([dict(m) for m in messages], add_generation_prompt=True, tokenize=True, return_dict=False))

    def tokenize(self, text: str) -> list[int]:
        return list(self._llm.get_tokenizer().encode(text, add_special_tokens=False, split_special_tokens=True))

    def greedy(self, prompt_ids: Sequence[int], max_new_tokens: int, stop_ids: Collection[int]) -> list[int]:
        _refuse_too_long(self.name, prompt_ids, max_new_tokens, self._context_tokens)
        answer: list[int] = list(self._completed(prompt_ids, max_tokens=max_new_tokens, stop_token_ids=sorted(stop_ids), ignore_eos=True).token_ids)
        return answer[:-1] if answer and answer[-1] in stop_ids else answer

    def logits(self, prompt_ids: Sequence[int]) -> np.ndarray:
        import numpy as np

        _refuse_too_long(self.name, prompt_ids, 1, self._context_tokens)
        first = self._completed(prompt_ids, max_tokens=1, logprobs=-1).logprobs[0]
        found = np.full(max(first) + 1, -np.inf, dtype=np.float32)
        for token, value in first.items():
            found[token] = value.logprob
        return found

    def along(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> np.ndarray:
        import numpy as np

        return np.stack([self.logits([*prompt_ids, *answer_ids[:length]]) for length in range(len(answer_ids) + 1)])

    def _completed(self, prompt_ids: Sequence[int], **sampling: Any) -> Any:
        chosen = self._vllm.SamplingParams(temperature=0.0, detokenize=False, **sampling)
        return self._llm.generate({"prompt_token_ids": list(prompt_ids)}, chosen, lora_request=self._lora, use_tqdm=False)[0].outputs[0]


VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


# --- what all need -------------------------------------------------------------------------------------------------


def _imported(module: str, package: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        refuse("engine", module, f"not installed: {quoted(error, 80)}", package, f"pip install 'tuner-lora[{extra}]'")


def _refuse_too_long(name: str, prompt_ids: Sequence[int], room: int, limit: int) -> None:
    if not prompt_ids or len(prompt_ids) + room > limit:
        refuse(name, "prompt", f"{len(prompt_ids)} tokens, and {room} for the answer", f"1 to {limit}, the engine's context", "raise context_tokens")


ENGINES: dict[str, Callable[[Served], Engine]] = {"llama_cpp": LlamaCpp.serve, "vllm": Vllm.serve}
