"""p-values that were looked at together, corrected for how many there were."""

from __future__ import annotations

from collections.abc import Sequence


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p-values that hold the chance of even one false call (Holm 1979): in their order, times how many are left, never falling."""
    count, adjusted, running = len(ps), [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(count), key=ps.__getitem__)):
        running = max(running, min(1.0, (count - rank) * ps[index]))
        adjusted[index] = running
    return adjusted


def bh(ps: Sequence[float]) -> list[float]:
    """Adjusted p-values that hold the expected share of false calls among all calls (Benjamini and Hochberg 1995)."""
    count, adjusted, running = len(ps), [0.0] * len(ps), 1.0
    for rank, index in sorted(enumerate(sorted(range(count), key=ps.__getitem__)), reverse=True):
        running = min(running, count * ps[index] / (rank + 1))
        adjusted[index] = running
    return adjusted
