"""A tiny model and adapters on it that were fitted until they know their records by heart: real parts, in seconds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tuner.artifact.adapter import Adapter
from tuner.artifact.decode import Decoder
from tuner.artifact.store import Version
from tuner.base import Precision
from tuner.data.record import Message, Record

WORDS = [
    "apple", "river", "stone", "cloud", "paper", "window", "garden", "music", "silver", "bridge", "forest", "candle", "market", "winter", "summer",
    "letter", "doctor", "bottle", "kitchen", "mirror", "pocket", "ribbon", "saddle", "temple", "valley", "walnut", "yellow", "anchor", "basket",
    "camera", "desert", "engine", "finger", "guitar", "hammer", "island", "jacket", "ladder", "magnet", "needle",
]  # fmt: skip
SCALE = 10.0  # of the head


def record(text: str, answer: str, split: str, line: int) -> Record:
    return Record((Message("user", text), Message("assistant", answer)), f"{split}.jsonl", line, split)


def stories(count: int, split: str, seed: int, words: int = 20, of: Sequence[str] = WORDS) -> list[Record]:
    """Questions with answers of random words: nothing in one tells of another."""
    rng = np.random.default_rng(seed)
    return [record(f"Story {seed}-{i}?", " ".join(rng.choice(of, words)), split, i + 1) for i in range(count)]


SIZE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}


@lru_cache(maxsize=1)
def _base_model() -> Any:
    """A random Llama with SmolLM2's vocabulary, its embeddings long enough that it can be sure of a token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=49152, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=False, **SIZE)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(SCALE)
    return model


def fitted(encoder: Any, records: Sequence[Record], epochs: int, rate: float = 3e-3, seed: int = 0) -> Adapter:
    """An adapter on the tiny base, trained on the completions of these records; 0 epochs: one that changes nothing."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = get_peft_model(copy.deepcopy(_base_model()), LoraConfig(r=32, lora_alpha=32, target_modules="all-linear"))
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    rows = encoder.rows(records)
    order = np.random.default_rng(seed)
    for _ in range(epochs):
        for some in np.array_split(order.permutation(len(rows)), max(1, len(rows) // 16)):
            _step(model, optimiser, [rows[i] for i in some], encoder.pad_id)
    decoder = Decoder(model.eval(), encoder.pad_id, encoder.stop_ids, 32)
    return Adapter(Version("toy", 1, Path("toy")), {"base": {"name": "tiny"}}, encoder, decoder, Precision("cpu", "fp32", None), Path("toy"))


def _step(model: Any, optimiser: Any, rows: Sequence[Any], pad: int) -> None:
    """One step on the completion tokens, against 2,000 other tokens drawn anew: the whole vocabulary would take ten times as long."""
    import torch

    longest = max(len(r.input_ids) for r in rows)
    ids = torch.tensor([list(r.input_ids) + [pad] * (longest - len(r.input_ids)) for r in rows])
    mask = torch.tensor([[1] * len(r.input_ids) + [0] * (longest - len(r.input_ids)) for r in rows])
    wanted = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        wanted[i, row.prompt_tokens - 1 : len(row.input_ids) - 1] = True
    base = model.get_base_model()
    hidden = base.model(input_ids=ids, attention_mask=mask).last_hidden_state[wanted]
    targets = torch.cat([torch.tensor(list(r.input_ids)[r.prompt_tokens :]) for r in rows])
    tokens, places = torch.unique(torch.cat([targets, torch.randint(base.config.vocab_size, (2000,))]), return_inverse=True)
    loss = torch.nn.functional.cross_entropy(hidden @ base.lm_head.weight[tokens].T, places[: len(targets)])
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
