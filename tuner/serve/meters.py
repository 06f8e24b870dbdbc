"""What a server counts about itself, as Prometheus reads it (text format 0.0.4).

It refuses a number that METERS does not list, so that every one has its help and its labels.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)  # upper edges of a histogram's buckets


@dataclass(frozen=True)
class Meter:
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str


class Meters:
    """Used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, tuple[str, ...]], float] = {}
        self._buckets: dict[tuple[str, tuple[str, ...]], list[int]] = {}

    def add(self, name: str, *labels: str, by: float = 1.0) -> None:
        """Count up."""
        key = self._key(name, labels)
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + by

    def set(self, name: str, *labels: str, to: float) -> None:
        key = self._key(name, labels)
        with self._lock:
            self._values[key] = to

    def observe(self, name: str, *labels: str, seconds: float) -> None:
        """One more duration of a histogram."""
        key = self._key(name, labels)
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + seconds
            self._buckets.setdefault(key, [0] * (len(SECONDS) + 1))[bisect_left(SECONDS, seconds)] += 1

    def text(self) -> str:
        with self._lock:
            return "".join(line + "\n" for name, meter in METERS.items() for line in self._lines(name, meter))

    def _lines(self, name: str, meter: Meter) -> Iterator[str]:
        yield f"# HELP {name} {meter.help}"
        yield f"# TYPE {name} {meter.kind}"
        for (of, labels), value in sorted(self._values.items()):
            if of != name:
                continue
            pairs = [f'{label}="{_escaped(text)}"' for label, text in zip(meter.labels, labels, strict=True)]
            if meter.kind == "histogram":
                yield from _bucket_lines(name, pairs, self._buckets[of, labels], value)
            else:
                yield f"{name}{_braced(pairs)} {value:.12g}"

    def _key(self, name: str, labels: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        if len(METERS[name].labels) != len(labels):
            raise ValueError(f"{name} has the labels {METERS[name].labels}")
        return name, labels


def _bucket_lines(name: str, pairs: list[str], counts: list[int], total: float) -> Iterator[str]:
    below = 0
    for edge, count in zip([f"{e:g}" for e in SECONDS] + ["+Inf"], counts, strict=True):
        below += count
        le = f'le="{edge}"'
        yield f"{name}_bucket{_braced([*pairs, le])} {below}"
    yield f"{name}_sum{_braced(pairs)} {total:.9g}"
    yield f"{name}_count{_braced(pairs)} {below}"


def _braced(pairs: list[str]) -> str:
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


METERS: dict[str, Meter] = {
    "tuner_requests_total": Meter("counter", ("model", "status"), "Chat completion requests by HTTP status; model is empty where none of ours was named."),
    "tuner_prompt_tokens_total": Meter("counter", ("model",), "Tokens of the prompts that were answered."),
    "tuner_completion_tokens_total": Meter("counter", ("model",), "Tokens said."),
    "tuner_answers_running": Meter("gauge", (), "Answers under way now."),
    "tuner_queue_length": Meter("gauge", (), "Requests that wait for a place now."),
    "tuner_request_seconds": Meter("histogram", ("model",), "From a request's arrival to the end of its answer."),
    "tuner_first_token_seconds": Meter("histogram", ("model",), "From a request's arrival to the first token of its answer."),
    "tuner_disconnects_total": Meter("counter", ("model",), "Clients that left before their answer ended."),
    "tuner_reloads_total": Meter("counter", ("model", "outcome"), "Moves of an alias that were taken, or refused because the version did not load."),
}
