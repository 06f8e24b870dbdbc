"""How far adapter and base are apart on one text: the sensitive measure of what an adapter changed."""

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
