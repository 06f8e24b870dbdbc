"""Exported models opened as their users open them: transformers alone, plain PEFT, llama.cpp, Ollama's prompt in llama.cpp, mlx-lm.

They refuse what the library itself cannot open; none of them uses tuner's tokenizer, template or decoding.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.artifact.engines import LlamaCpp
from tuner.errors import refuse
from tuner.safe_text import quoted

if TYPE_CHECKING:
    import numpy as np

    from tuner.artifact.export_ollama import Turns
    from tuner.artifact.parity import Conversation

Ids = list[int]


class ByTransformers:
    """A causal model of transformers with the tokenizer files of `folder`: a merged folder, or a base under plain PEFT."""

    def __init__(self, model: Any, folder: Path, variables: dict[str, Any], engine: str, stops_itself: bool):
        """`variables` are those of the chat template; `stops_itself`: the folder's own generation_config says where answers end."""
        from transformers import AutoTokenizer

        self.engine = engine
        self._model, self._variables, self._stops_itself = model.eval(), variables, stops_itself
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    @classmethod
    def merged(cls, folder: Path, variables: dict[str, Any]) -> ByTransformers:
        """What `AutoModelForCausalLM.from_pretrained(folder)` gives, in the precision it is stored in."""
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
        return cls(model, folder, variables, f"transformers {transformers.__version__}, {model.dtype}".replace("torch.", ""), True)

    @classmethod
    def peft(cls, base: Any, folder: Path, variables: dict[str, Any]) -> ByTransformers:
        """The adapter of `folder` put on a loaded base by PEFT itself."""
        import peft

        model = peft.PeftModel.from_pretrained(base, str(folder), local_files_only=True)
        return cls(model, folder, variables, f"PEFT {peft.__version__} on transformers", False)

    def prompt_ids(self, conversations: Sequence[Conversation]) -> list[Ids]:
        return [self._prompt(c) for c in conversations]

    def _prompt(self, conversation: Conversation) -> Ids:
        tools = next((json.loads(m.tools) for m in conversation if m.tools is not None), None)
        asked = [m.as_dict() for m in conversation]
        return list(self._tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False, tools=tools, **self._variables))

    def greedy(self, prompt_ids: Ids, max_new_tokens: int, stop_ids: Collection[int]) -> Ids:
        import torch

        ids = torch.tensor([prompt_ids], device=self._model.device)
        stops = {} if self._stops_itself else {"eos_token_id": sorted(stop_ids), "pad_token_id": min(stop_ids)}
        out = self._model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False, **stops)
        answer: Ids = out[0, len(prompt_ids) :].tolist()
        return answer[:-1] if answer and answer[-1] in stop_ids else answer

    def along(self, prompt_ids: Ids, answer_ids: Ids) -> np.ndarray:
        import torch

        with torch.inference_mode():
            ids = torch.tensor([[*prompt_ids, *answer_ids]], device=self._model.device)
            found: np.ndarray = self._model(input_ids=ids, use_cache=False).logits[0, -len(answer_ids) - 1 :].float().cpu().numpy()
        return found


class ByLlamaCpp:
    """llama.cpp with a model file, and a LoRA file beside it or none. Keys and values in f16, as its servers keep them."""

    def __init__(self, model: Path, lora: Path | None, context_tokens: int):
        import torch

        self._llama = LlamaCpp(model, lora, context_tokens, torch.get_num_threads(), "f16")
        self.engine = f"llama.cpp (llama-cpp-python {importlib.import_module('llama_cpp').__version__})"

    def prompt_ids(self, conversations: Sequence[Conversation]) -> list[Ids]:
        return [self._llama.tokenize_chat([m.as_dict() for m in c]) for c in conversations]

    def greedy(self, prompt_ids: Ids, max_new_tokens: int, stop_ids: Collection[int]) -> Ids:
        return self._llama.greedy(prompt_ids, max_new_tokens, stop_ids)

    def along(self, prompt_ids: Ids, answer_ids: Ids) -> np.ndarray:
        return self._llama.along(prompt_ids, answer_ids)


class ByOllama(ByLlamaCpp):
    """llama.cpp, which Ollama runs, asked with the text that Ollama's TEMPLATE makes and read as Ollama reads it. Ollama itself is not asked."""

    def __init__(self, model: Path, turns: Turns, context_tokens: int):
        super().__init__(model, None, context_tokens)
        self._turns = turns
        self.engine += ", prompts by the Modelfile's TEMPLATE"

    def prompt_ids(self, conversations: Sequence[Conversation]) -> list[Ids]:
        return [self._llama.tokenize_text(self._turns.render(c)) for c in conversations]


class ByMlx:
    """mlx-lm with a base folder and an adapter folder in its own format."""

    def __init__(self, base: Path, folder: Path, variables: dict[str, Any]):
        try:
            mlx_lm = importlib.import_module("mlx_lm")
        except ImportError as error:
            refuse("engine", "mlx_lm", f"not installed: {quoted(error, 80)}", "mlx-lm", "pip install 'tuner-lora[mlx]'")
        self._mx = importlib.import_module("mlx.core")
        self._cache = importlib.import_module("mlx_lm.models.cache")
        self.engine = f"mlx-lm {importlib.import_module('importlib.metadata').version('mlx-lm')}"
        try:
            self._model, _ = mlx_lm.load(str(base), adapter_path=str(folder))
            self._tokenizer = importlib.import_module("mlx_lm.tokenizer_utils").load(folder)
        except (ValueError, OSError, KeyError) as error:
            refuse(folder.name, "mlx-lm", quoted(error, 160), "a base and an adapter that mlx-lm loads", "serve it with another target")
        self._variables = variables

    def prompt_ids(self, conversations: Sequence[Conversation]) -> list[Ids]:
        return [
            list(self._tokenizer.apply_chat_template([m.as_dict() for m in c], add_generation_prompt=True, return_dict=False, **self._variables))
            for c in conversations
        ]

    def greedy(self, prompt_ids: Ids, max_new_tokens: int, stop_ids: Collection[int]) -> Ids:
        cache, given = self._cache.make_prompt_cache(self._model), list(prompt_ids)
        answer: Ids = []
        while len(answer) < max_new_tokens:
            token = int(self._mx.argmax(self._model(self._mx.array([given]), cache=cache)[0, -1]).item())
            if token in stop_ids:
                break
            answer.append(token)
            given = [token]
        return answer

    def along(self, prompt_ids: Ids, answer_ids: Ids) -> np.ndarray:
        import numpy as np

        logits = self._model(self._mx.array([[*prompt_ids, *answer_ids]]))[0, -len(answer_ids) - 1 :]
        return np.array(logits.astype(self._mx.float32))
