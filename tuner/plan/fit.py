"""What memory decides where the recipe says auto: tokens of a forward pass, checkpointing, offload; and what to change when memory ran out.

It refuses nothing: where nothing fits it takes the smallest, and says that it does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

MICRO_TOKENS = (16384, 8192, 4096, 2048, 1024, 512)
CPU_MICRO_TOKENS = 2048
ROOM = 0.9  # of the device's memory: the rest is for what fragments, and for what others hold

Peak = Callable[[int, bool, bool], int]  # (micro_tokens, checkpointing, offload) -> bytes


@dataclass(frozen=True, slots=True)
class Choice:
    """What was picked. `why` says it in words, one line a choice."""

    micro_tokens: int
    checkpointing: bool
    offload: bool
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the recipe says of it: None where it says auto."""

    micro_tokens: int | None = None
    checkpointing: bool | None = None
    offload: bool | None = None


def choose(peak: Peak, memory_bytes: int, asked: Asked, tokens_per_rank: int, longest_row: int, cpu: bool) -> Choice:
    """The fastest that fits in 90 % of the memory: without checkpointing in the largest micro-batch, then with it, at last with offload.

    `tokens_per_rank` are the tokens of a step that one rank computes: a larger micro-batch would never be full. On a CPU larger ones gain nothing.
    """
    sizes = _sizes(asked, tokens_per_rank, longest_row, cpu)
    limit = round(memory_bytes * ROOM)
    for offload in _choices(asked.offload) if not cpu else (False,):
        for checkpointing in _choices(asked.checkpointing):
            for size in sizes:
                needed = peak(size, checkpointing, offload)
                if needed <= limit:
                    return Choice(size, checkpointing, offload, _why(asked, size, checkpointing, offload, needed, memory_bytes))
    last = (sizes[-1], _choices(asked.checkpointing)[-1], False if cpu else _choices(asked.offload)[-1])
    short = f"nothing fits: at least {_gb(peak(*last))} are needed, {_gb(limit)} may be used"
    return Choice(*last, (*_why(asked, *last, peak(*last), memory_bytes), short))


def _sizes(asked: Asked, tokens_per_rank: int, longest_row: int, cpu: bool) -> list[int]:
    if asked.micro_tokens is not None:
        return [asked.micro_tokens]
    largest = CPU_MICRO_TOKENS if cpu else MICRO_TOKENS[0]
    useful = max(longest_row, min(tokens_per_rank, largest))
    return [useful, *(size for size in MICRO_TOKENS if longest_row < size < useful), *([longest_row] if longest_row < useful else [])]


def _choices(asked: bool | None) -> tuple[bool, ...]:
    return (False, True) if asked is None else (asked,)


def _why(asked: Asked, size: int, checkpointing: bool, offload: bool, needed: int, memory_bytes: int) -> tuple[str, ...]:
    of = f"{_gb(needed)} of {_gb(memory_bytes)}"
    tokens = "the recipe says so" if asked.micro_tokens is not None else f"{of} by the plan"
    if asked.checkpointing is not None:
        kept = "the recipe says so"
    else:
        kept = f"without it memory does not suffice; with it {of}" if checkpointing else f"not needed, {of}"
    lines = (f"{size} tokens a forward pass: {tokens}", f"gradient checkpointing {'on' if checkpointing else 'off'}: {kept}")
    return (*lines, "activations offloaded: nothing else fits") if offload and asked.offload is None else lines


# --- memory ran out ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """A recipe key, the value to try, and the bytes that saves by the plan."""

    key: str
    value: str
    saves_bytes: int

    def words(self) -> str:
        return f"{self.key}: {self.value} (saves about {_gb(self.saves_bytes)})"


def relief(now: int, alternatives: Sequence[tuple[str, str, Callable[[], int]]], wanted: int = 3) -> list[Change]:
    """The changes that save most, at most `wanted` of them, each of another key. `now` is the planned peak, each alternative's call gives its own."""
    changes = [Change(key, value, now - peak()) for key, value, peak in alternatives]
    best: dict[str, Change] = {}
    for change in sorted(changes, key=lambda change: -change.saves_bytes):
        if change.saves_bytes > 0:
            best.setdefault(change.key, change)
    return list(best.values())[:wanted]


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
