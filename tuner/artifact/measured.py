"""What was measured of one text or question: how far adapter and base are apart on it, and how long the answer took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Divergence:
    """One text read by base and adapter.

    `tokens` were predicted; `base_nats` and `adapter_nats` are their summed negative log-likelihoods; `kl_nats` is KL(base ‖ adapter)
    over the vocabulary, summed over the tokens; `same_first` counts tokens for which both put the same one first.
    """

    tokens: int
    base_nats: float
    adapter_nats: float
    kl_nats: float
    same_first: int


@dataclass(frozen=True, slots=True)
class Timed:
    """One question asked alone: tokens of its prompt, seconds to the first token, tokens of the answer, seconds in all."""

    prompt_tokens: int
    first_token_seconds: float
    tokens: int
    seconds: float
