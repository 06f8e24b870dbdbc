"""The loss over completion tokens, computed where labels are: the LM head sees only labelled positions, and only some at a time.

Without Triton, TRL 1.16 projects every position through the LM head (trl@1.16.0 trainer/utils.py, `add_fused_lm_head`), which was
59 % of a step. Hooks on the head, PyTorch's own registration point, take the hidden states of labelled positions out of the forward
pass; their loss and its gradient are then computed chunk by chunk, so that logits are never whole in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tuner.base import head_on
from tuner.template.tokens import IGNORED


@dataclass(frozen=True, slots=True)
class LossPath:
    """How nats are computed. `chunk` labelled positions at a time, or None: all at once, through the model's own head.

    `virtual_tokens` are those that prompt learning puts before every row: hidden states have so many more positions than labels.
    """

    chunk: int | None = None
    virtual_tokens: int = 0


WHOLE = LossPath()


def completion_nats(model: Any, unwrapped: Any, inputs: dict[str, torch.Tensor], path: LossPath = WHOLE) -> torch.Tensor:
    """Summed cross-entropy (nats) over labelled tokens of `inputs`: input_ids, labels and what the model takes besides, each (B, T)."""
    inputs = dict(inputs)
    labels = inputs.pop("labels")
    # Position t predicts token t + 1: the head is needed where the next label is not ignored.
    predicts = torch.zeros_like(labels, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] != IGNORED
    targets = labels[:, 1:][predicts[:, :-1]]
    at = torch.nn.functional.pad(predicts, (path.virtual_tokens, 0)) if path.virtual_tokens else predicts
    if path.chunk is None:
        with head_on(unwrapped, at):
            logits = model(**inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.squeeze(0).float(), targets, reduction="sum")
    head = unwrapped.get_output_embeddings()
    with _hidden_before(head, at) as kept:
        model(**inputs, use_cache=False)
    nats: torch.Tensor = ChunkedNats.apply(kept[0], head.weight, head.bias, targets, path.chunk)  # type: ignore[no-untyped-call]
    return nats


def completion_loss(
    model: Any, unwrapped: Any, inputs: dict[str, torch.Tensor], token_count: torch.Tensor | int | None, path: LossPath = WHOLE
) -> torch.Tensor:
    """Mean cross-entropy (nats a token). `token_count` divides the sum when given: the labelled tokens of the whole optimiser step."""
    count = token_count if token_count is not None else (inputs["labels"][:, 1:] != IGNORED).sum().clamp(min=1)
    return completion_nats(model, unwrapped, inputs, path) / count


@contextmanager
def _hidden_before(head: torch.nn.Module, at: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """While open, the hidden states (N, H) of the true positions `at` (B, T) are kept, and the head itself sees one position of each row."""
    kept: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        kept.append(inputs[0][at])
        return (inputs[0][:, :1], *inputs[1:])

    hook = head.register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        hook.remove()


class ChunkedNats(torch.autograd.Function):
    """Summed cross-entropy of a frozen linear head, and the gradient of its input, `chunk` positions at a time.

    The gradient is computed with the loss (softmax minus one at the target, times the weight), so that no logits wait for the backward pass:
    the idea of Liger's fused linear cross-entropy (linkedin/Liger-Kernel@v0.8.5, ops/fused_linear_cross_entropy.py), without Triton.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, chunk: int) -> torch.Tensor:
        wide = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else weight.dtype
        weight = weight.to(wide)
        gradient = torch.empty_like(hidden)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for first in range(0, len(targets), chunk):
            part = slice(first, first + chunk)
            scores = torch.nn.functional.linear(hidden[part].to(wide), weight, bias).float()
            wanted = targets[part, None]
            log_sum = torch.logsumexp(scores, dim=1, keepdim=True)
            total += (log_sum - scores.gather(1, wanted)).sum()
            share = scores.sub_(log_sum).exp_()
            share.scatter_add_(1, wanted, torch.full_like(log_sum, -1.0))
            gradient[part] = share.to(wide) @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None, None, None


def loss_path(model: Any, inputs: dict[str, torch.Tensor], chunk: int, virtual_tokens: int) -> LossPath:
    """Chunks where they give the model's own loss: not where the head is trained, sharded, or followed by more (scaling, soft-capping).

    Measured on `inputs`, a forward pass or two without gradient: no list of architectures decides.
    """
    whole = LossPath(None, virtual_tokens)
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.weight.requires_grad or type(head.weight.data) is not torch.Tensor or head.weight.device.type == "meta":
        return whole
    chunked = LossPath(chunk, virtual_tokens)
    with torch.no_grad():
        expected, found = (float(completion_loss(model, model, inputs, None, path)) for path in (whole, chunked))
    return chunked if abs(expected - found) <= 1e-3 * max(1.0, abs(expected)) else whole
