"""A version whose answers vLLM generates, from the token ids it was trained with; everything else is asked of the adapter in transformers.

It refuses what vLLM cannot load, and what it would load as something else: an adapter is served as it was trained, or not by vLLM.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tuner.artifact.engines import VLLM_RANKS
from tuner.artifact.measured import Divergence, Timed
from tuner.base import Precision
from tuner.errors import Collector, Refusal, refuse
from tuner.safe_text import quoted

if TYPE_CHECKING:
    from tuner.artifact.adapter import Adapter, Done, Question

logger = logging.getLogger("tuner")

CONTEXT_TOKENS = 8192  # longest prompt with its answer in vLLM: keys and values of one such are reserved. Longer ones are asked in transformers
MEMORY_SHARE = 0.6  # of the GPU's free memory; the rest is for batches of the same model in transformers
CHECKED_TOKENS = 6  # beginnings of answers that both must give before vLLM is believed
CHECKED_SHARE = 0.5  # of CHECKED. A mistaken adapter changes nearly all; rounding in bf16 changed 2 of 8 within 8 tokens, between two batch sizes of an
# untrained SmolLM2 (2026-11-20)
CHECKED = (
    "What is the capital of France?", "Please cancel my order.", "How do I change my PIN?", "Write one line about rain.", "2 + 2 =",
    "My laptop does not start any more.", "Thank you, that is all.", "List three colours.",
)  # fmt: skip


@dataclass(frozen=True)
class ServedPrecision(Precision):
    """As Precision, and which engine answered: rounding differs between engines, so answers of two are never taken for one another's."""

    engine: str = ""

    def __str__(self) -> str:
        return f"{super().__str__()}, answers by {self.engine}"


class Batches(Protocol):
    """What generates: greedy answers to many prompts at once, without their stop tokens, by the adapter or by the bare base."""

    def greedy(self, prompts: Sequence[list[int]], max_new_tokens: int, stop_ids: Collection[int], as_base: bool) -> list[list[int]]: ...


# --- what vLLM serves as it was trained ----------------------------------------------------------------------------

# Settings of PEFT's LoraConfig that vLLM reads, and those that say nothing about what the saved matrices mean. Any other that is set is refused,
# so that one which a later PEFT adds is not ignored: vLLM itself reads only what it knows (vllm@0.33.0 vllm/lora/peft_helper.py).
READ = frozenset({"r", "lora_alpha", "use_rslora", "target_modules", "peft_type", "bias", "init_lora_weights"})
SILENT = frozenset({
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "task_type",
})  # fmt: skip
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # ways to start a LoRA that leave the base as it is
UNEVEN = {"rank_pattern": "one rank for all layers", "alpha_pattern": "one alpha for all layers"}  # vllm@0.11.0 reads neither, and scales all alike
SERVED = "plain LoRA: kinds lora and rslora"


def refuse_unservable(adapter: Adapter) -> None:
    """Raises Refusal with everything that keeps vLLM from serving this adapter as it was trained. Needs neither vLLM nor a GPU."""
    unservable(adapter).raise_if_any()


def unservable(adapter: Adapter) -> Collector:
    """Everything that keeps vLLM from serving this adapter as it was trained."""
    collector = Collector()
    where, precision = adapter.version.label, adapter.precision
    if precision.quantised:
        collector.add(where, "base.load", precision.quantised, "weights in 16 bits: vLLM rounds a quantised base otherwise", "answer from transformers")
    elif precision.weights not in ("bfloat16", "float16"):
        collector.add(where, "base.load", precision.weights, "bf16: vLLM's LoRA kernels multiply in 16 bits only", "load it with bf16")
    if adapter.encoder.new_ids:
        collector.add(where, "template.new_tokens", f"{len(adapter.encoder.new_ids)} trained tokens", "the base's own vocabulary", "answer from transformers")
    collector.problems += unservable_files(adapter.version.folder, where).problems
    return collector


def unservable_files(folder: Path, where: str) -> Collector:
    """Everything in a PEFT folder that keeps vLLM from serving it as it was trained, whatever base it is on."""
    collector = Collector()
    _add_settings(collector, where, json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")))
    _add_tensors(collector, where, folder / "adapter_model.safetensors")
    return collector


def _add_settings(collector: Collector, where: str, config: Mapping[str, Any]) -> None:
    """What adapter_config.json asks for beyond plain LoRA."""
    if config.get("peft_type") != "LORA":
        collector.add(where, "peft_type", config.get("peft_type"), SERVED, "answer from transformers")
        return
    if config["r"] > max(VLLM_RANKS):
        collector.add(where, "r", config["r"], f"rank {max(VLLM_RANKS)} at most", "answer from transformers")
    if config.get("bias", "none") != "none":
        collector.add(where, "bias", quoted(config["bias"]), SERVED, "answer from transformers")
    if config.get("init_lora_weights", True) not in PLAIN_STARTS:
        collector.add(where, "init_lora_weights", quoted(config["init_lora_weights"]), "a start that leaves the base as it is", "answer from transformers")
    for name in sorted(config.keys() - READ - SILENT):
        if config[name]:
            collector.add(where, name, quoted(config[name], 80), UNEVEN.get(name, SERVED), "answer from transformers")


def _add_tensors(collector: Collector, where: str, weights: Path) -> None:
    """Matrices on embeddings or the LM head, which vLLM treats apart."""
    from safetensors import safe_open

    with safe_open(weights, framework="np") as saved:
        odd = [name for name in saved.keys() if not name.endswith((".lora_A.weight", ".lora_B.weight")) or "lm_head" in name or "embed" in name]  # noqa: SIM118
    if odd:
        collector.add(where, weights.name, f"{len(odd)} tensors such as {odd[0]}", "LoRA of linear layers inside the decoder", "answer from transformers")


# --- vLLM ----------------------------------------------------------------------------------------------------------


def engine_settings(adapter: Adapter, free_bytes: int, total_bytes: int) -> dict[str, Any]:
    """Arguments of vllm.LLM for this adapter on a GPU with so much memory.

    gpu_memory_utilization is a share of all memory, of which so much must be free when vLLM starts.
    """
    rank = json.loads((adapter.version.folder / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    return {
        "model": str(adapter.base_folder), "tokenizer": str(adapter.version.folder), "dtype": adapter.precision.weights,
        "max_model_len": context_tokens(adapter), "enable_lora": True, "max_loras": 1, "max_lora_rank": next(r for r in VLLM_RANKS if r >= rank),
        "gpu_memory_utilization": round(MEMORY_SHARE * free_bytes / total_bytes, 3), "generation_config": "vllm", "seed": 0,
    }  # fmt: skip


def context_tokens(adapter: Adapter) -> int:
    """Longest prompt with its answer that vLLM is asked."""
    limit = getattr(adapter.decoder.model.config, "max_position_embeddings", None)
    return min(limit, CONTEXT_TOKENS) if limit else CONTEXT_TOKENS


def sampling_settings(max_new_tokens: int, stop_ids: Collection[int]) -> dict[str, Any]:
    """Arguments of vllm.SamplingParams: greedy, stopped by tuner's stop tokens and by nothing else, and token ids alone wanted."""
    return {"temperature": 0.0, "max_tokens": max_new_tokens, "stop_token_ids": sorted(stop_ids), "ignore_eos": True, "detokenize": False}


def until_stop(ids: Sequence[int], stop_ids: Collection[int]) -> list[int]:
    """Ids up to the first stop token, which vLLM gives back as the last one."""
    return list(ids[: next((at for at, token in enumerate(ids) if token in stop_ids), len(ids))])


class VllmBatches:
    """vllm.LLM with one adapter. Written against the sources of vllm 0.11.0 and 0.33.0."""

    def __init__(self, adapter: Adapter):
        """Load base and adapter beside those of transformers. Raises Refusal when vLLM cannot."""
        import torch

        vllm = importlib.import_module("vllm")
        torch.cuda.empty_cache()
        settings = engine_settings(adapter, *torch.cuda.mem_get_info(adapter.precision.device))
        try:
            self._llm = vllm.LLM(**settings)
        except (ValueError, RuntimeError, OSError) as error:
            refuse(adapter.version.label, "vllm", quoted(error, 160), "a base and an adapter that vLLM loads, and room on the GPU", "answer from transformers")
        self._sampling = vllm.SamplingParams
        self._lora = importlib.import_module("vllm.lora.request").LoRARequest("adapter", 1, str(adapter.version.folder.resolve()))
        self.name = f"vLLM {vllm.__version__}"

    def greedy(self, prompts: Sequence[list[int]], max_new_tokens: int, stop_ids: Collection[int], as_base: bool) -> list[list[int]]:
        """vLLM batches by itself, and shares what prompts begin with."""
        chosen = self._sampling(**sampling_settings(max_new_tokens, stop_ids))
        asked = [{"prompt_token_ids": list(p)} for p in prompts]
        given = self._llm.generate(asked, chosen, lora_request=None if as_base else self._lora, use_tqdm=False)
        return [until_stop(one.outputs[0].token_ids, stop_ids) for one in given]


# --- the contestant ------------------------------------------------------------------------------------------------


class VllmAdapter:
    """`adapter` with its answers generated by `batches`: a tuner.evaluate.result.Contestant. All other questions are asked in transformers."""

    def __init__(self, adapter: Adapter, batches: Batches, engine: str):
        self.adapter, self.batches = adapter, batches
        self.version, self.manifest, self.encoder, self.allowed = adapter.version, adapter.manifest, adapter.encoder, adapter.allowed
        self.precision = ServedPrecision(**{f.name: getattr(adapter.precision, f.name) for f in fields(Precision)}, engine=engine)
        self.base_folder = adapter.base_folder
        self._as_base = False

    def __repr__(self) -> str:
        return f"VllmAdapter({self.adapter!r})"

    def answer_many(self, questions: Sequence[Question], max_new_tokens: int = 256, done: Done | None = None) -> list[str]:
        """Greedy answers in the order of the questions. Those that do not fit vLLM's context are asked in transformers."""
        prompts = [self.adapter.prompt_ids(q) for q in questions]
        room = context_tokens(self.adapter) - max_new_tokens
        short = [at for at, prompt in enumerate(prompts) if len(prompt) <= room]
        long = [at for at, prompt in enumerate(prompts) if len(prompt) > room]
        answers = dict(zip(long, self.adapter.answer_many([questions[at] for at in long], max_new_tokens, done), strict=True)) if long else {}
        ids = self.batches.greedy([prompts[at] for at in short], max_new_tokens, self.encoder.stop_ids, self._as_base) if short else []
        answers |= {at: self.encoder.decode(one) for at, one in zip(short, ids, strict=True)}
        if done is not None and short:
            done(len(short))
        return [answers[at] for at in range(len(questions))]

    @contextlib.contextmanager
    def as_base(self) -> Iterator[VllmAdapter]:
        """Inside, the same calls ask the untouched base: vLLM is not given the adapter."""
        self._as_base = True
        try:
            with self.adapter.as_base():
                yield self
        finally:
            self._as_base = False

    @contextlib.contextmanager
    def without_system(self) -> Iterator[VllmAdapter]:
        with self.adapter.without_system():
            yield self

    # --- asked in transformers

    def label_scores(self, questions: Sequence[Question], labels: Sequence[str], done: Done | None = None) -> Any:
        return self.adapter.label_scores(questions, labels, done)

    def choice_nats(self, questions: Sequence[Question], answers: Sequence[Sequence[str]], done: Done | None = None) -> list[list[float]]:
        return self.adapter.choice_nats(questions, answers, done)

    def losses(self, questions: Sequence[Question], answers: Sequence[str], done: Done | None = None) -> list[tuple[float, int]]:
        return self.adapter.losses(questions, answers, done)

    def token_nats(self, questions: Sequence[Question], answers: Sequence[str], done: Done | None = None) -> list[list[float]]:
        return self.adapter.token_nats(questions, answers, done)

    def continuations(
        self, questions: Sequence[Question], beginnings: Sequence[Sequence[int]], new_tokens: int, done: Done | None = None
    ) -> list[list[int]]:  # fmt: skip
        return self.adapter.continuations(questions, beginnings, new_tokens, done)

    def divergences(self, texts: Sequence[str], done: Done | None = None) -> list[Divergence]:
        return self.adapter.divergences(texts, done)

    def prompt_divergences(self, questions: Sequence[Question], done: Done | None = None) -> list[Divergence]:
        return self.adapter.prompt_divergences(questions, done)

    def timed(self, questions: Sequence[Question], max_new_tokens: int, done: Done | None = None) -> list[Timed]:
        return self.adapter.timed(questions, max_new_tokens, done)

    def fits(self, questions: Sequence[Question], room: int) -> list[bool]:
        return self.adapter.fits(questions, room)

    def completion_ids(self, question: Question, answer: str) -> list[int]:
        return self.adapter.completion_ids(question, answer)


# --- chosen --------------------------------------------------------------------------------------------------------


def fastest(adapter: Adapter) -> Adapter | VllmAdapter:
    """The same version, answered by vLLM where it is installed, the adapter is on a GPU and vLLM says the same; else the adapter itself."""
    if not adapter.precision.device.startswith("cuda") or importlib.util.find_spec("vllm") is None:
        return adapter
    try:
        refuse_unservable(adapter)
        if adapter.precision.device not in ("cuda", "cuda:0"):
            refuse(adapter.version.label, "device", adapter.precision.device, "cuda:0, the one vLLM takes", "show this process one GPU alone")
        batches = VllmBatches(adapter)
        served = VllmAdapter(adapter, batches, batches.name)
        refuse_other_answers(served)
    except Refusal as refusal:
        logger.warning("answers come from transformers, not from vLLM:\n%s", refusal)
        return adapter
    return served


def refuse_other_answers(served: VllmAdapter) -> None:
    """Ask both for the beginnings of a few answers, as adapter and as base. Raises Refusal where they are not nearly always the same."""
    own = served.adapter
    prompts = [own.prompt_ids(text) for text in CHECKED]
    for state, as_base in (("adapter", False), ("base", True)):
        with own.as_base() if as_base else contextlib.nullcontext():
            wanted = own.greedy_ids(prompts, CHECKED_TOKENS)
        found = served.batches.greedy(prompts, CHECKED_TOKENS, served.encoder.stop_ids, as_base)
        same = sum(a == b for a, b in zip(found, wanted, strict=True))
        if same < CHECKED_SHARE * len(prompts):
            refuse(own.version.label, "answers", f"{same} of {len(prompts)} beginnings as transformers gives them ({state})",
                   f"{CHECKED_SHARE:.0%} at least", "answer from transformers, and see why with `tuner parity --engine vllm`")  # fmt: skip
