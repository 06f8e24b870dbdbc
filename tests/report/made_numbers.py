"""Numbers of a made evaluation, by a few lines of their own: means with normal intervals, paired differences, macro-F1.

They refuse to be exact: what a report shows is compared with what was put in, not with what is right.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

WHAT = {
    "exact_match": ("share of answers equal to a reference after trimming", True, "mean"),
    "macro_f1": ("mean over labels of the F1 of each", True, "macro_f1"),
    "bits_per_byte": ("bits the model needs for a byte of the reference", False, "ratio"),
    "consistency": ("share of items answered as before the change", True, "mean"),
    "abstained": ("share of questions without an answer that it declined", True, "mean"),
    "confident_wrong": ("share answered with an invention it was confident of", False, "mean"),
    "overall": ("share of all probes answered rightly", True, "mean"),
    "text_loss": ("nats a token on neutral text", False, "ratio"),
    "kl_base": ("KL(base, adapter) in nats a token on neutral text", False, "ratio"),
    "extractable": ("share of training completions recited from their beginning", False, "mean"),
    "membership_auc": ("area under the curve of the reference attack", False, "auc"),
    "tokens_per_second": ("generated tokens a second", True, "mean"), "first_token_seconds": ("time to the first token", False, "mean"),
    "prompt_tokens": ("length of the prompt", False, "mean"), "adapter_bytes": ("what is added to the base on disk", False, "mean"),
}  # fmt: skip


def draw(*of: object) -> float:
    """A number in [0, 1) that depends on `of` alone."""
    return int.from_bytes(hashlib.sha256(repr(of).encode()).digest()[:6], "big") / 2**48


def what(name: str) -> dict[str, Any]:
    said, higher, form = WHAT.get(name, (f"share of {name} probes answered rightly", True, "mean"))
    return {"what": said, "higher_is_better": higher, "form": form}


def estimate(each: Sequence[float], value: float | None = None) -> dict[str, Any]:
    """The mean with an interval from the normal distribution; `value` where the metric is no mean."""
    mean, half = statistics.fmean(each), 1.96 * math.sqrt(statistics.pvariance(each) / len(each) + 0.25 / len(each) ** 2)
    share = all(0 <= x <= 1 for x in each)
    centre = mean if value is None else value
    low, high = (max(0.0, centre - half), min(1.0, centre + half)) if share else (centre - half, centre + half)
    return {"value": centre, "n": len(each), "low": low, "high": high, "method": "normal approximation, 95 %"}


def difference(ours: Sequence[float], theirs: Sequence[float], baseline: str, higher: bool, value: float | None = None) -> dict[str, Any]:
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    centre = statistics.fmean(gaps) if value is None else value
    error = math.sqrt(statistics.pvariance(gaps) / len(gaps) + 1e-4 / len(gaps))
    low, high, p = centre - 1.96 * error, centre + 1.96 * error, max(math.erfc(abs(centre) / error / math.sqrt(2)), 1e-12)
    word = "no difference seen" if low <= 0 <= high else "better" if (low > 0) == higher else "worse"
    return {"value": centre, "low": low, "high": high, "p": p, "n": len(gaps), "baseline": baseline, "method": "paired normal approximation, 95 %",
            "test": "two-sided z test of paired differences", "verdict": word}  # fmt: skip


def macro_f1(rows: Sequence[Mapping[str, Any]]) -> float:
    found = []
    for label in {r["reference"] for r in rows}:
        right = sum(r["answer"] == r["reference"] == label for r in rows)
        found.append(2 * right / (sum(r["answer"] == label for r in rows) + sum(r["reference"] == label for r in rows)))
    return statistics.fmean(found)


def value_of(metric: str, rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], float]:
    """What each row gives to a metric, and the metric over all: how anyone reads answers.jsonl."""
    form = what(metric)["form"]
    if form == "ratio":
        parts = [r["parts"][metric] for r in rows if metric in r["parts"]]
        return [a / b for a, b in parts], sum(a for a, _ in parts) / sum(b for _, b in parts)
    each = [r["scores"][metric] for r in rows if r["scores"].get(metric) is not None]
    if form == "macro_f1":
        return [float(r["answer"] == r["reference"]) for r in rows], macro_f1(rows)
    return each, statistics.fmean(each)
