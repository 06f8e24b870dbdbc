"""Asking a model many questions at once: greedy answers, likelihoods of given answers, losses, and how far adapter and base are apart.

The tokens that all prompts of a call begin with (system prompt, worked examples) are run once and their keys and values shared; so are
the virtual tokens of prompt learning, after which the bare base goes on.
Answers equal those of transformers' `generate` on one prompt at a time (tests/artifact/test_decode.py, tests/train/test_methods.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from tuner.base import head_on

LEAST_SHARED = 8  # a shorter common beginning is not worth a pass of its own


@dataclass
class _Asked:
    """A batch whose prompts have been run: keys and values, the mask over them, and logits (B, V) of the next token."""

    cache: Any
    mask: torch.Tensor
    positions: torch.Tensor
    logits: torch.Tensor

    def keep(self, rows: torch.Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.mask, self.positions, self.logits = self.mask[rows], self.positions[rows], self.logits[rows]


class Decoder:
    """Batched inference over token ids with one loaded model."""

    def __init__(self, model: Any, pad_id: int, stop_ids: frozenset[int], batch: int = 32):
        self.model, self.pad_id, self.stop_ids, self.batch = model, pad_id, stop_ids, batch
        self.device = next(model.parameters()).device

    @property
    def virtual_tokens(self) -> int:
        """Trained tokens, or keys of them, that come before every prompt: those of prompt learning, while the adapter is on."""
        config = getattr(self.model, "active_peft_config", None)
        if config is None or not config.is_prompt_learning or not self.model.has_active_enabled_adapter:
            return 0
        return int(config.num_virtual_tokens)

    # --- the three questions

    @torch.inference_mode()
    def greedy(self, prompts: Sequence[list[int]], max_new_tokens: int, done: Callable[[int], None] | None = None) -> list[list[int]]:
        """The most likely next token again and again, up to a stop token (left out) or `max_new_tokens`. One answer a prompt."""
        answers: list[list[int]] = [[] for _ in prompts]
        for rows, asked in self._batches(prompts):
            self._continue(rows, asked, answers, max_new_tokens)
            if done is not None:
                done(len(rows))
        return answers

    @torch.inference_mode()
    def likelihoods(self, prompts: Sequence[list[int]], candidates: Sequence[list[int]], done: Callable[[int], None] | None = None) -> torch.Tensor:
        """Log-probability (n, k) in nats of each candidate, all its tokens summed, after each prompt."""
        if not _full_attention(self.model.config):
            pairs = [(p, c) for p in prompts for c in candidates]
            return -torch.tensor(self.losses(pairs, done)).view(len(prompts), len(candidates))
        scores = torch.empty(len(prompts), len(candidates))
        for rows, asked in self._batches(prompts):
            scores[rows] = self._candidate_scores(asked, candidates).cpu()
            if done is not None:
                done(len(rows))
        return scores

    @torch.inference_mode()
    def choices(
        self, prompts: Sequence[list[int]], candidates: Sequence[Sequence[list[int]]], done: Callable[[int], None] | None = None
    ) -> list[list[float]]:  # fmt: skip
        """Log-probability in nats of each of a prompt's own candidates, less that of the tokens these all begin with, which are run once.

        What is left out is the same for all candidates of a prompt: their order and the probabilities among them are those of the whole texts.
        """
        begun = [_common_beginning(of) for of in candidates]
        asked_for = [list(p) + list(of[0][:n]) for p, of, n in zip(prompts, candidates, begun, strict=True)]
        tails = [[list(c[n:]) for c in of] for of, n in zip(candidates, begun, strict=True)]
        if not _full_attention(self.model.config):
            each = iter(self.losses([(p, c) for p, of in zip(asked_for, tails, strict=True) for c in of], done))
            return [[-next(each) for _ in of] for of in tails]
        scores: list[list[float]] = [[] for _ in prompts]
        for rows, asked in self._batches(asked_for):
            for row, found in zip(rows, self._own_scores(asked, [tails[i] for i in rows]), strict=True):
                scores[row] = found
            if done is not None:
                done(len(rows))
        return scores

    def losses(self, pairs: Sequence[tuple[list[int], list[int]]], done: Callable[[int], None] | None = None) -> list[float]:
        """Summed negative log-likelihood (nats) of each completion after its prompt, teacher-forced."""
        return [sum(nats) for nats in self.token_nats(pairs, done)]

    @torch.inference_mode()
    def token_nats(self, pairs: Sequence[tuple[list[int], list[int]]], done: Callable[[int], None] | None = None) -> list[list[float]]:
        """Negative log-likelihood (nats) of each token of each completion after its prompt, teacher-forced."""
        found: list[list[float]] = [[] for _ in pairs]
        prefix = self._common([p for p, _ in pairs])
        cache = self._prefill(prefix)
        for rows in self._rows(_longest_first(pairs)):
            logits, targets, sizes = self._teacher_forced([pairs[i] for i in rows], len(prefix), cache)
            nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none").cpu()
            for row, own in zip(rows, torch.split(nats, sizes), strict=True):
                found[row] = own.tolist()
            if done is not None:
                done(len(rows))
        return found

    @torch.inference_mode()
    def divergences(self, pairs: Sequence[tuple[list[int], list[int]]], done: Callable[[int], None] | None = None) -> list[tuple[float, float, float, int]]:
        """Base against adapter on each completion: summed nats of the base, of the adapter, KL(base ‖ adapter), and tokens on which both put the same first.

        KL is over the whole vocabulary at every position that predicts a completion token, in nats. Batches are small: two (N, V) tables are held.
        """
        found: list[tuple[float, float, float, int]] = [(0.0, 0.0, 0.0, 0)] * len(pairs)
        order = _longest_first(pairs)
        size = min(self.batch, 8)
        for rows in (order[start : start + size] for start in range(0, len(order), size)):
            of = [pairs[i] for i in rows]
            with self.model.disable_adapter():
                theirs, targets, sizes = self._teacher_forced(of, 0, self._prefill([]))
            ours, _, _ = self._teacher_forced(of, 0, self._prefill([]))
            base, adapter = theirs.log_softmax(-1), ours.log_softmax(-1)
            columns = (
                -base.gather(1, targets[:, None])[:, 0], -adapter.gather(1, targets[:, None])[:, 0],
                (base.exp() * (base - adapter)).sum(-1), (base.argmax(-1) == adapter.argmax(-1)).float(),
            )  # fmt: skip
            sums = [[float(part.sum()) for part in torch.split(column.double().cpu(), sizes)] for column in columns]
            for at, row in enumerate(rows):
                found[row] = (sums[0][at], sums[1][at], sums[2][at], int(sums[3][at]))
            if done is not None:
                done(len(rows))
        return found

    # --- batches of prompts

    def _batches(self, prompts: Sequence[list[int]]) -> Iterator[tuple[list[int], _Asked]]:
        """Batches of similar length, longest first, so that memory fails at once or never."""
        prefix = self._common(prompts)
        cache = self._prefill(prefix)
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        for rows in self._rows(order):
            yield rows, self._ask([prompts[i][len(prefix) :] for i in rows], len(prefix), cache)

    def _rows(self, order: list[int]) -> Iterator[list[int]]:
        """`order` in batches; one by one where padding after shared keys would change answers."""
        size = 1 if self.virtual_tokens and not _full_attention(self.model.config) else self.batch
        return (order[start : start + size] for start in range(0, len(order), size))

    def _common(self, prompts: Sequence[list[int]]) -> list[int]:
        """The tokens all prompts begin with, leaving each at least one of its own; empty when sharing does not pay or apply."""
        if len(prompts) < 2 or not _full_attention(self.model.config):
            return []
        first, last = min(prompts), max(prompts)
        limit = min(len(p) for p in prompts) - 1
        length = next((i for i in range(limit) if first[i] != last[i]), limit)
        return list(first[:length]) if length >= LEAST_SHARED else []

    def _prefill(self, prefix: list[int]) -> Any:
        """Keys and values of what comes before every prompt: virtual tokens, then the shared ones. None when there is neither."""
        if not prefix and not self.virtual_tokens:
            return None
        ids = torch.tensor([prefix], device=self.device, dtype=torch.long)
        if not self.virtual_tokens:
            with head_on(self.model, _last(ids)):
                return self.model(input_ids=ids, use_cache=True).past_key_values
        return self._virtual_keys(ids)

    def _virtual_keys(self, ids: torch.Tensor) -> Any:
        """Keys and values of the virtual tokens and then `ids` (1, T), as PEFT's own forward pass makes them (peft@0.21 peft_model.py)."""
        made = self.model.get_prompt(1)
        if not isinstance(made, torch.Tensor):  # a prefix is keys and values already
            if ids.shape[1] == 0:
                return made
            with head_on(self.bare, _last(ids)):
                return self.bare(input_ids=ids, past_key_values=made, use_cache=True).past_key_values
        words = self.bare.get_input_embeddings()(ids)
        vectors = torch.cat([made.to(words.dtype), words], dim=1)
        with head_on(self.bare, _last(vectors[..., 0])):
            return self.bare(inputs_embeds=vectors, use_cache=True).past_key_values

    @property
    def bare(self) -> Any:
        """What is called once keys are shared: the model, or under virtual tokens the base, whose keys already hold them."""
        return self.model.get_base_model() if self.virtual_tokens else self.model

    def _copies(self, cache: Any, count: int) -> Any:
        if cache is None:
            return None
        copied = deepcopy(cache)
        copied.batch_repeat_interleave(count)
        return copied

    def _ask(self, suffixes: list[list[int]], shared: int, cache: Any) -> _Asked:
        """Run the prompts' own tokens, padded on the left, after the shared ones."""
        before = self.virtual_tokens + shared
        longest = max(len(s) for s in suffixes)
        ids = torch.tensor([[self.pad_id] * (longest - len(s)) + s for s in suffixes], device=self.device)
        own = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in suffixes], device=self.device)
        mask = torch.cat([torch.ones(len(suffixes), before, dtype=own.dtype, device=self.device), own], dim=1)
        positions = (before + own.cumsum(1) - 1).clamp(min=0)
        with head_on(self.bare, _last(ids)):
            out = self.bare(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self._copies(cache, len(suffixes)), use_cache=True)
        return _Asked(out.past_key_values, mask, positions[:, -1:], out.logits[0])

    # --- answers

    def _continue(self, rows: list[int], asked: _Asked, answers: list[list[int]], max_new_tokens: int) -> None:
        alive = list(rows)
        for step in range(max_new_tokens):
            tokens = asked.logits.argmax(-1)
            going = [i for i, token in enumerate(tokens.tolist()) if token not in self.stop_ids]
            for i in going:
                answers[alive[i]].append(int(tokens[i]))
            if not going or step == max_new_tokens - 1:
                return
            if len(going) < len(alive):
                kept = torch.tensor(going, device=self.device)
                asked.keep(kept)
                tokens, alive = tokens[kept], [alive[i] for i in going]
            self._step(asked, tokens)

    def _step(self, asked: _Asked, tokens: torch.Tensor) -> None:
        asked.mask = torch.cat([asked.mask, asked.mask.new_ones(len(tokens), 1)], dim=1)
        asked.positions = asked.positions + 1
        ids = tokens[:, None]
        with head_on(self.bare, _last(ids)):
            out = self.bare(input_ids=ids, attention_mask=asked.mask, position_ids=asked.positions, past_key_values=asked.cache, use_cache=True)
        asked.cache, asked.logits = out.past_key_values, out.logits[0]

    def _candidate_scores(self, asked: _Asked, candidates: Sequence[list[int]]) -> torch.Tensor:
        """(B, K) summed log-probabilities. All candidates follow the prompt in one row, none seeing another, each at its own positions."""
        first = asked.logits.float().log_softmax(-1)[:, [c[0] for c in candidates]]
        fed = [token for c in candidates for token in c[:-1]]  # each token is asked for the one after it
        if not fed:
            return first
        size, known = asked.mask.shape
        owner = torch.tensor([k for k, c in enumerate(candidates) for _ in c[:-1]], device=self.device)
        depth = torch.tensor([d for c in candidates for d in range(len(c) - 1)], device=self.device)
        sees = (owner[:, None] == owner[None, :]) & (depth[None, :] <= depth[:, None])
        mask = torch.cat([asked.mask.bool()[:, None, None, :].expand(size, 1, len(fed), known), sees.expand(size, 1, -1, -1)], dim=-1)
        ids = torch.tensor([fed] * size, device=self.device)
        out = self.bare(input_ids=ids, attention_mask=mask, position_ids=asked.positions + 1 + depth[None, :], past_key_values=asked.cache, use_cache=True)
        wanted = torch.tensor([token for c in candidates for token in c[1:]], device=self.device)
        said = out.logits.gather(2, wanted[None, :, None].expand(size, -1, 1))[..., 0].float()
        later = said - torch.stack([row.float().logsumexp(-1) for row in out.logits])  # row by row: (B, T, V) in fp32 is large
        return first.index_add(1, owner, later)

    def _own_scores(self, asked: _Asked, candidates: Sequence[Sequence[list[int]]]) -> list[list[float]]:
        """As `_candidate_scores`, each row with candidates of its own: they follow its prompt one after the other, none seeing another."""
        first = asked.logits.float().log_softmax(-1)
        scores = [[float(first[row, c[0]]) for c in of] for row, of in enumerate(candidates)]
        longest = max(sum(len(c) - 1 for c in of) for of in candidates)
        if not longest:
            return scores
        owner = torch.full((len(candidates), longest), -1)
        depth, ids = torch.zeros_like(owner), torch.full_like(owner, self.pad_id)
        for row, of in enumerate(candidates):
            fed = [(k, d, token) for k, c in enumerate(of) for d, token in enumerate(c[:-1])]
            owner[row, : len(fed)], depth[row, : len(fed)], ids[row, : len(fed)] = torch.tensor(fed).view(-1, 3).unbind(1)
        real = owner >= 0
        owner, depth, ids = owner.to(self.device), depth.to(self.device), ids.to(self.device)
        sees = (owner[:, :, None] == owner[:, None, :]) & (depth[:, None, :] <= depth[:, :, None])
        known = asked.mask.bool()[:, None, None, :].expand(-1, 1, longest, -1)
        mask = torch.cat([known, sees[:, None]], dim=-1)
        with head_on(self.bare, real.to(self.device)):
            out = self.bare(input_ids=ids, attention_mask=mask, position_ids=asked.positions + 1 + depth, past_key_values=asked.cache, use_cache=True)
        wanted = torch.tensor([token for of in candidates for c in of for token in c[1:]], device=self.device)
        nats = torch.nn.functional.cross_entropy(out.logits.squeeze(0).float(), wanted, reduction="none").tolist()
        for (row, place), own in zip(real.nonzero().tolist(), nats, strict=True):
            scores[row][int(owner[row, place])] -= own
        return scores

    def _teacher_forced(self, pairs: list[tuple[list[int], list[int]]], shared: int, cache: Any) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Logits (N, V) in fp32 that predict every completion token, pair after pair; the tokens themselves (N,); how many are each pair's."""
        before = self.virtual_tokens + shared
        rows = [p[shared:] + c for p, c in pairs]
        longest = max(len(r) for r in rows)
        ids = torch.tensor([r + [self.pad_id] * (longest - len(r)) for r in rows], device=self.device)
        own = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows], device=self.device)
        mask = torch.cat([torch.ones(len(rows), before, dtype=own.dtype, device=self.device), own], dim=1)
        positions = (before + own.cumsum(1) - 1).clamp(min=0)
        wanted = torch.zeros_like(ids, dtype=torch.bool)  # position t predicts token t + 1
        for row, (prompt, completion) in enumerate(pairs):
            start = len(prompt) - shared
            wanted[row, start - 1 : start - 1 + len(completion)] = True
        with head_on(self.bare, wanted):
            logits = self.bare(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self._copies(cache, len(rows)), use_cache=cache is not None
            ).logits
        return logits.squeeze(0).float(), ids[:, 1:][wanted[:, :-1]], [len(c) for _, c in pairs]


def _longest_first(pairs: Sequence[tuple[list[int], list[int]]]) -> list[int]:
    return sorted(range(len(pairs)), key=lambda i: -(len(pairs[i][0]) + len(pairs[i][1])))


def _common_beginning(candidates: Sequence[list[int]]) -> int:
    """How many tokens all candidates begin with, leaving each at least one."""
    first, last = min(candidates), max(candidates)
    limit = min(len(c) for c in candidates) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)


def _last(ids: torch.Tensor) -> torch.Tensor:
    """Positions (B, T) that are true at the last token of each row: where the next one is predicted."""
    positions = torch.zeros_like(ids, dtype=torch.bool)
    positions[:, -1] = True
    return positions


def _full_attention(config: Any) -> bool:
    """Does every layer attend to all earlier tokens? Only then do shared keys with padding after them leave answers unchanged."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return all(kind == "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is None and hasattr(config, "num_attention_heads")
