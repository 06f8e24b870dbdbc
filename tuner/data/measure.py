"""What the checks look at: every record of every split in one list, and measures of each in columns of the same order.

Measures are taken once, by every core, together with the checks that see one record at a time. It refuses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from tuner.data.findings import Check, Finding, Scene
from tuner.data.language import language_code
from tuner.data.near import NearPrompts, near_prompts
from tuner.data.record import Record, normalised
from tuner.data.shingles import BANDS, Hashes, boilerplate, minhash_bands, shingled
from tuner.data.splits import Splits, sources_of
from tuner.data.workers import Tick, no_tick, spread

CountTokens = Callable[[Sequence[Record]], tuple[NDArray[np.int32], list[Finding]]]

SAMPLE = 2_000  # prompts looked at to find boilerplate


@dataclass(frozen=True)
class Measures:
    """One entry a record. Hashes are xxh3-64; `tokens` is (N, 2): prompt and completion, 0 where nothing was counted;
    `language` an index into LANGUAGES, 0 where undecided."""

    exact: Hashes
    prompt: Hashes
    completion: Hashes
    bands: NDArray[np.uint32]
    tokens: NDArray[np.int32]
    language: NDArray[np.uint8]

    def __getitem__(self, chosen: Any) -> Measures:
        return Measures(*(getattr(self, f.name)[chosen] for f in fields(self)))


@dataclass(frozen=True)
class Context:
    """What a check of the whole may look at. `records` are those of `splits`, one split after the other; `measures` stand in that order."""

    splits: Splits
    scene: Scene
    records: Sequence[Record]
    measures: Measures

    @cached_property
    def ranges(self) -> dict[str, range]:
        """Positions of every split's records."""
        ranges: dict[str, range] = {}
        start = 0
        for split, records in self.splits.records.items():
            ranges[split] = range(start, start + len(records))
            start += len(records)
        return ranges

    @cached_property
    def split_of(self) -> list[str]:
        """The split of every position."""
        return [split for split, among in self.ranges.items() for _ in among]

    @cached_property
    def near(self) -> NearPrompts:
        """Prompts that are near copies of each other."""
        return near_prompts(self.records, self.measures.prompt, self.measures.bands)

    @property
    def task(self) -> str:
        return self.scene.task

    def file(self, split: str) -> str:
        """The first file of a split; train's, where the split was cut from train."""
        files = {a.split: a.file for a in reversed(self.splits.accounts)}
        return files.get(split, files.get("train", ""))

    def source(self, split: str, key: str) -> object:
        """What the recipe says of a split's source (`source`, `as_of`); train's, where the split was cut from train."""
        sources = sources_of(self.scene.spec)
        return getattr(sources.get(split, sources["train"]), key)

    @cached_property
    def one_reference(self) -> tuple[bool, str]:
        """May a prompt have one completion only, and why: the recipe says so, or the task, or the train split itself."""
        said = self.scene.spec.references
        if said != "auto":
            return said == "one", f"data.references: {said}"
        if self.task != "text":
            return True, f"data.task: {self.task}"
        train = self.ranges.get("train", range(0))
        pairs = np.stack([self.measures.prompt[train.start : train.stop], self.measures.completion[train.start : train.stop]], axis=1)
        _, completions = np.unique(np.unique(pairs, axis=0)[:, 0], return_counts=True)
        share = float(np.mean(completions > 1)) if len(completions) else 0.0
        return share < 0.1, f"{share:.0%} of the train prompts have several completions"

    def without(self, dropped: set[int]) -> Context:
        """The context less the records at these positions."""
        if not dropped:
            return self
        keep = np.ones(len(self.records), dtype=bool)
        keep[sorted(dropped)] = False
        gone = {(r.split, r.file, r.line) for r in (self.records[i] for i in dropped)}
        records = [r for r, kept in zip(self.records, keep, strict=True) if kept]
        return Context(self.splits.without(gone), self.scene, records, self.measures[keep])


@dataclass(frozen=True)
class Measured:
    """A context, and what the checks of single records found, as (position, finding) by check."""

    context: Context
    found: Mapping[str, list[tuple[int, Finding]]]


def measure(splits: Splits, scene: Scene, checks: Mapping[str, Check], count_tokens: CountTokens | None, tick: Tick | None = None) -> Measured:
    """Measure every record and run the checks that see one at a time, on all cores. `count_tokens` may add findings of its own."""
    records = [r for of in splits.records.values() for r in of]
    each = {name: check.each for name, check in checks.items() if check.each is not None}
    step = max(len(records) // SAMPLE, 1)
    common = boilerplate([r.question for r in records[::step][:SAMPLE]])

    def work(start: int, stop: int) -> tuple[Measures, dict[str, list[tuple[int, Finding]]]]:
        part = records[start:stop]
        found: dict[str, list[tuple[int, Finding]]] = {}
        for name, check in each.items():
            hits = [(start + i, f) for i, record in enumerate(part) for f in check(record, scene)]
            if hits:
                found[name] = hits
        tokens = np.zeros((len(part), 2), dtype=np.int32)
        if count_tokens is not None:
            tokens, refused = count_tokens(part)
            position = {(r.split, r.file, r.line): start + i for i, r in enumerate(part)}
            for finding in refused:
                found.setdefault(finding.check, []).append((position[finding.split, finding.file, finding.line], finding))
        return _measured(part, common, tokens), found

    parts: list[Measures] = []
    found: dict[str, list[tuple[int, Finding]]] = {}
    for measures, hits in spread(work, len(records), tick or no_tick):
        parts.append(measures)
        for name, of in hits.items():
            found.setdefault(name, []).extend(of)
    return Measured(Context(splits, scene, records, _joined(parts)), found)


def _measured(records: Sequence[Record], common: Hashes, tokens: NDArray[np.int32]) -> Measures:
    questions = [r.question for r in records]
    hashes = np.array([_hashes(r) for r in records], dtype=np.uint64).reshape(-1, 3)
    language = np.fromiter((language_code(r) for r in records), dtype=np.uint8, count=len(records))
    return Measures(hashes[:, 0], hashes[:, 1], hashes[:, 2], minhash_bands(*shingled(questions), common), tokens, language)


def _hashes(record: Record) -> tuple[int, int, int]:
    number = xxhash.xxh3_64_intdigest
    whole = "\x1e".join(f"{m.role}\x1f{m.content}\x1f{m.tool_calls or ''}{'' if m.weight else '0'}" for m in record.messages)
    if record.tools is not None:
        whole += f"\x1d{record.tools}"
    return number(_bytes(whole)), number(_bytes(record.prompt_key)), number(_bytes(normalised(record.completion)))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _joined(parts: list[Measures]) -> Measures:
    if not parts:
        none = np.zeros(0, dtype=np.uint64)
        return Measures(none, none, none, np.zeros((0, BANDS), dtype=np.uint32), np.zeros((0, 2), dtype=np.int32), np.zeros(0, dtype=np.uint8))
    return Measures(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Measures)))


def positions_by(hashes: Hashes, among: range) -> Iterator[NDArray[np.int64]]:
    """Positions in `among` that share a hash, two or more at a time, each group in order of reading."""
    own = hashes[among.start : among.stop]
    order = np.argsort(own, kind="stable")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(own[order])) + 1]) if len(own) else np.zeros(0, dtype=np.int64)
    sizes = np.diff(np.append(starts, len(own)))
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        yield order[start : start + size] + among.start
