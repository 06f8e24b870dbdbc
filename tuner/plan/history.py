"""What earlier runs of a store measured against what their plans had said, and the correction of the next estimate that follows.

It refuses nothing: a manifest that cannot be read, or that has no plan, counts for nothing.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FARTHEST = 3.0  # a ratio beyond this, or below its inverse, is another job (a busy machine, a resumed run) and no lesson


@dataclass(frozen=True, slots=True)
class Kind:
    """What must be equal for one run to say something of another: the device, how the base is held, the adapter's family, checkpointing."""

    device: str
    precision: str
    method: str
    checkpointing: bool


@dataclass(frozen=True, slots=True)
class Past:
    """One finished run: measured over predicted by the model alone, without corrections."""

    kind: Kind
    peak: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Correction:
    """Factors for the next estimate, and from how many runs of the same kind they are; 1.0 from none."""

    peak: float = 1.0
    seconds: float = 1.0
    runs: int = 0

    def words(self, what: str) -> str:
        """For `how`: what was applied. Empty without runs."""
        factor = {"peak": self.peak, "seconds": self.seconds}[what]
        return (
            f"; times {factor:.2f}, the median of measured over predicted in {self.runs} past run{'s' if self.runs > 1 else ''} of this kind"
            if self.runs
            else ""
        )


def past_runs(store: Path) -> list[Past]:
    """Every run of the store whose manifest holds both a plan and what was measured."""
    found = (_past(path) for path in sorted(store.glob("*/[0-9]*/manifest.json")))
    return [past for past in found if past is not None]


def _past(path: Path) -> Past | None:
    try:
        training = json.loads(path.read_text(encoding="utf-8"))["training"]
        plan = training["plan"]
        kind = Kind(plan["device"], plan["precision"], plan["method"], plan["checkpointing"])
        said = plan["uncorrected"]
        steps = training["steps"] / plan["steps"]  # a run that stopped early did a part of what was planned
        return Past(kind, training["peak_bytes"] / said["peak_bytes"], training["seconds"] / (said["seconds"] * steps))
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def correction(runs: Sequence[Past], kind: Kind) -> Correction:
    """Medians over the runs of this kind."""
    same = [run for run in runs if run.kind == kind and all(1 / FARTHEST <= ratio <= FARTHEST for ratio in (run.peak, run.seconds))]
    if not same:
        return Correction()
    return Correction(statistics.median(run.peak for run in same), statistics.median(run.seconds for run in same), len(same))
