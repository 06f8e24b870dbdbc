"""The loss over completion tokens, computed where labels are: the LM head sees only labelled positions.

Without Triton, TRL 1.16 projects every position through the LM head (trl@1.16.0 trainer/utils.py, `add_fused_lm_head`), which was
59 % of a step. A forward pre-hook on the head keeps the labelled positions alone; the loss is the same, and logits are never whole.
"""

from __future__ import annotations

from typing import Any

import torch

from tuner.base import head_on
from tuner.template.tokens import IGNORED


def completion_loss(model: Any, unwrapped: Any, inputs: dict[str, torch.Tensor], token_count: torch.Tensor | int | None) -> torch.Tensor:
    """Mean cross-entropy (nats) over labelled tokens of `inputs` (input_ids, attention_mask, labels: each (B, T)).

    `token_count` divides the sum when given: the labelled tokens of the whole optimiser step, over micro-batches and ranks.
    """
    labels = inputs["labels"]
    # Position t predicts token t + 1: the head is needed where the next label is not ignored.
    predicts = torch.zeros_like(labels, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] != IGNORED
    with head_on(unwrapped, predicts):
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
    targets = labels[:, 1:][predicts[:, :-1]]
    total = torch.nn.functional.cross_entropy(logits.squeeze(0).float(), targets, reduction="sum")
    return total / (token_count if token_count is not None else max(targets.numel(), 1))
