"""Metrics of likelihood: what the references cost the model, in nats, bits and perplexity.

They need no answer at all, so they see a change long before an answer flips. Perplexity compares only models of one tokenizer.
"""

from __future__ import annotations

import math

import numpy as np

from tuner.evaluate.metric_types import Answer, Sums, ratio


def nats_and_tokens(answer: Answer) -> tuple[float, float]:
    """The parts of loss (nats a token) and of perplexity."""
    return answer.nats, float(answer.tokens)


def bits_and_bytes(answer: Answer) -> tuple[float, float]:
    """Nats / ln 2, and UTF-8 bytes: comparable between tokenizers (Gao et al. 2020, The Pile, arXiv 2101.00027)."""
    return answer.nats / math.log(2), float(answer.bytes)


def perplexity(sums: Sums) -> Sums:
    """exp(nats / tokens); capped at e^700, below the largest double."""
    return np.exp(np.minimum(ratio(sums), 700.0))


def nats_gained(answer: Answer) -> tuple[float, float]:
    """Nats that the context saves on the references, and their tokens."""
    return (answer.nats_without_context or 0.0) - answer.nats, float(answer.tokens)


def has_both(answer: Answer) -> bool:
    """Can the item be graded: was it asked without its context as well?"""
    return answer.nats_without_context is not None
