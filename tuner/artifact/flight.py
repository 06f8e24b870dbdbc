"""A flight: a running batch of answers that requests join and leave between two tokens. Streaming and serving say every token through it.

It refuses settings of sampling that mean nothing, and a key that is in the flight already.
"""

from __future__ import annotations

import secrets
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tuner.artifact.decode import LEAST_SHARED, Decoder, _Asked, _full_attention
from tuner.errors import refuse

Said = tuple[Any, int | None]  # whose row, and its next token; None once: it has ended


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the likeliest at temperature 0, else drawn from the likeliest that make up `top_p` of the probability.

    With a seed, a row's tokens depend on nothing but its prompt, these settings and the weights. Raises Refusal for settings out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 100.0:
            refuse("sampling", "temperature", self.temperature, "0 (the likeliest token) to 100", "use 0 to 1")
        if not 0.0 < self.top_p <= 1.0:
            refuse("sampling", "top_p", self.top_p, "above 0, up to 1", "use 1")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            refuse("sampling", "seed", self.seed, "a whole number of 64 bits", "use a smaller one")


@dataclass(eq=False)
class _Row:
    key: Hashable
    prompt_ids: list[int]
    tokens_left: int
    sampling: Sampling
    draws: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        self.draws.manual_seed(self.sampling.seed if self.sampling.seed is not None else secrets.randbits(63))

    def next_token(self, logits: torch.Tensor, likeliest: int) -> int:
        """From logits (V,): drawn on the CPU by the row's own generator, so that no other row changes what is drawn."""
        if self.sampling.temperature == 0.0:
            return likeliest
        shares = probabilities(logits, self.sampling)
        draw = torch.rand((), generator=self.draws, dtype=torch.float64)
        edges = shares.cumsum(0)
        return int(torch.searchsorted(edges, draw * edges[-1], right=True).clamp(max=int(shares.nonzero()[-1])))


def probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities (V,) in fp64 that a token is drawn with: softmax at the temperature, cut to the nucleus (Holtzman et al. 2020, arXiv 1904.09751, eq. 3).

    The nucleus is the smallest set of likeliest tokens that holds at least `top_p`. They stay in the order of their ids: a rounding that
    exchanges two near equals moves no edge between draws by more than itself.
    """
    scores = logits.double().cpu()
    shares = ((scores - scores.max()) / sampling.temperature).softmax(-1)
    if sampling.top_p < 1.0:
        ordered, ids = shares.sort(descending=True)
        outside = ids[ordered.cumsum(0) - ordered >= sampling.top_p]  # what comes before it is enough already
        shares[outside] = 0.0
    return shares


@dataclass
class _Group:
    """Rows that are run together: their keys and values, and the token each said last."""

    rows: list[_Row]
    asked: _Asked
    said: list[int] = field(default_factory=list)

    def keep(self, kept: list[int]) -> None:
        """Only these rows stay; columns that pad all of them go."""
        self.rows = [self.rows[i] for i in kept]
        self.said = [self.said[i] for i in kept] if self.said else []
        self.asked.keep(torch.tensor(kept, device=self.asked.mask.device))
        padding = int(self.asked.mask.any(dim=0).int().argmax())
        if padding:
            self.asked.mask = self.asked.mask[:, padding:]
            for layer in _filled(self.asked.cache):
                layer.keys, layer.values = layer.keys[..., padding:, :], layer.values[..., padding:, :]

    def take_in(self, other: _Group) -> None:
        """`other`'s rows too, both padded on the left to one length. Logits are those of the rows just run: `said` must be empty in both."""
        width = max(self.asked.mask.shape[1], other.asked.mask.shape[1])
        mine, theirs = self.asked, other.asked
        for ours, added in zip(_filled(mine.cache), _filled(theirs.cache), strict=True):
            ours.keys = torch.cat([_padded(ours.keys, width), _padded(added.keys, width)])
            ours.values = torch.cat([_padded(ours.values, width), _padded(added.values, width)])
        mine.mask = torch.cat([torch.nn.functional.pad(m, (width - m.shape[1], 0)) for m in (mine.mask, theirs.mask)])
        mine.positions = torch.cat([mine.positions, theirs.positions])
        mine.logits = torch.cat([mine.logits, theirs.logits])
        self.rows = self.rows + other.rows


def _filled(cache: Any) -> list[Any]:
    """Layers of a cache that hold keys; a layer that shares another's holds none."""
    return [layer for layer in cache.layers if layer.get_seq_length()]


def _padded(states: torch.Tensor, width: int) -> torch.Tensor:
    """Keys or values (B, H, T, D) with zeros before them up to `width` tokens."""
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[2], 0))


class Flight:
    """Answers under way on one decoder, each a row with a key of the caller's. Used from one thread, with the model always in the same state.

    Bases with sliding or recurrent layers and adapters with virtual tokens are run one row after the other: padding would change them.
    """

    def __init__(self, decoder: Decoder):
        self._decoder = decoder
        self._waiting: list[_Row] = []
        self._groups: list[_Group] = []
        self._last: list[int] = []  # the prompt that joined last
        self._shared: list[int] = []  # what prompts begin with, run once, and its keys
        self._shared_keys: Any = None

    def __len__(self) -> int:
        return len(self._waiting) + sum(len(group.rows) for group in self._groups)

    def join(self, key: Hashable, prompt_ids: Sequence[int], max_new_tokens: int, sampling: Sampling = Sampling()) -> None:
        """Answer this prompt from the next step on, with at most `max_new_tokens` tokens."""
        if not prompt_ids or max_new_tokens < 1:
            raise ValueError("a row needs a token to begin with, and room for one")
        if any(row.key == key for row in self._rows()):
            raise ValueError(f"a row with key {key!r} is in the flight")
        self._waiting.append(_Row(key, list(prompt_ids), max_new_tokens, sampling))

    def leave(self, key: Hashable) -> None:
        """Say no more of this row. A key that is not there (it has just ended) is no fault."""
        self._waiting = [row for row in self._waiting if row.key != key]
        for group in self._groups:
            kept = [i for i, row in enumerate(group.rows) if row.key != key]
            if len(kept) < len(group.rows):
                self._keep(group, kept)
                return

    @torch.inference_mode()
    def step(self) -> list[Said]:
        """The next token of every row. Of a row that ends: its last token, if it may say no more, and then None."""
        for group in self._groups:
            self._decoder._step(group.asked, torch.tensor(group.said, device=self._decoder.device))
            group.said = []
        self._board()
        said: list[Said] = []
        for group in list(self._groups):
            said += self._speak(group)
        return said

    def _rows(self) -> Iterator[_Row]:
        yield from self._waiting
        for group in self._groups:
            yield from group.rows

    # --- rows that join

    def _board(self) -> None:
        """Run the prompts of those who wait, and let them into the batch."""
        rows, self._waiting = sorted(self._waiting, key=lambda r: -len(r.prompt_ids)), []
        together = self._is_batched()
        size = self._decoder.batch if together else 1
        for group in (self._run(rows[i : i + size], together) for i in range(0, len(rows), size)):
            if together and self._groups:
                self._groups[0].take_in(group)
            else:
                self._groups.append(group)

    def _is_batched(self) -> bool:
        return not self._decoder.virtual_tokens and _full_attention(self._decoder.model.config)

    def _run(self, rows: list[_Row], together: bool) -> _Group:
        prompts = [row.prompt_ids for row in rows]
        shared = self._share(prompts) if together else 0
        keys = self._shared_keys if shared else self._decoder._prefill([])
        return _Group(rows, self._decoder._ask([p[shared:] for p in prompts], shared, keys))

    def _share(self, prompts: list[list[int]]) -> int:
        """How many tokens that all prompts begin with have been run before, or are now that the prompt before began with them too.

        Requests to one adapter mostly share its system prompt: only what differs is then run for each.
        """
        if not self._shared or common_tokens([*prompts, [*self._shared, -1]]) < len(self._shared):
            length = common_tokens([*prompts, *([self._last] if self._last else [])]) if len(prompts) > 1 or self._last else 0
            self._shared = prompts[0][:length] if length >= LEAST_SHARED else []
            self._shared_keys = self._decoder._prefill(self._shared) if self._shared else None
        self._last = prompts[-1]
        return len(self._shared)

    # --- what they say

    def _speak(self, group: _Group) -> list[Said]:
        said: list[Said] = []
        likeliest, going = group.asked.logits.argmax(-1).tolist(), []
        for index, row in enumerate(group.rows):
            token = row.next_token(group.asked.logits[index], likeliest[index])
            row.tokens_left -= 1
            group.said.append(token)
            stops = token in self._decoder.stop_ids
            if not stops:
                said.append((row.key, token))
            if stops or not row.tokens_left:
                said.append((row.key, None))
            else:
                going.append(index)
        if len(going) < len(group.rows):
            self._keep(group, going)
        return said

    def _keep(self, group: _Group, kept: list[int]) -> None:
        if kept:
            group.keep(kept)
        else:
            self._groups.remove(group)


def common_tokens(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with, leaving each at least one of its own."""
    limit = min(len(p) for p in prompts) - 1
    first, last = min(prompts), max(prompts)
    return next((i for i in range(limit) if first[i] != last[i]), limit)
