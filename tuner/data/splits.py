"""The four splits by their exact names: train is fitted, validation watched, held_out and ood read once afterwards.

It refuses to guess: a split is a source of its own, or a stated share cut from train by seed, content and group.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuner.data.findings import Finding
from tuner.data.near import edited_copies
from tuner.data.record import Record
from tuner.data.sources import PRODUCTION, FileAccount, Limits, Tick, no_tick, read_source
from tuner.data.spec import CutSpec, DataSpec, RehearsalSpec, SourceSpec
from tuner.errors import Refusal, refuse
from tuner.fingerprint import digest_json

OOD = "ood."
REHEARSAL = "rehearsal"
USUAL_SHARE = 0.1  # of the records trained on that are general ones, where data.rehearsal does not say


@dataclass(frozen=True)
class Splits:
    """Records by split name (`train`, `validation`, `held_out`, `ood.<name>`), the account of every file read, and what reading found.

    `rehearsal` holds general records that are trained on together with train's, and are never watched or graded.

    `production` holds real inputs, never trained on or graded: what train is compared with.
    """

    records: Mapping[str, list[Record]]
    accounts: tuple[FileAccount, ...]
    findings: tuple[Finding, ...] = ()
    production: Sequence[Record] = ()

    def __getitem__(self, split: str) -> list[Record]:
        return self.records.get(split, [])

    @property
    def suites(self) -> list[str]:
        """The splits that are read once after training, in the order of the recipe."""
        return [s for s in self.records if s == "held_out" or s.startswith(OOD)]

    def digest(self, split: str) -> str:
        return digest_json([r.hash for r in self[split]])

    def without(self, dropped: set[tuple[str, str, int]]) -> Splits:
        """The same splits less the records at these (split, file, line)."""
        if not dropped:
            return self
        kept = {split: [r for r in rows if (r.split, r.file, r.line) not in dropped] for split, rows in self.records.items()}
        return replace(self, records=kept)


def read_splits(spec: DataSpec, folder: Path, seed: int, tick: Tick | None = None) -> Splits:
    """Read every split the recipe names. What cannot be used is among the findings; splits that are cut from nothing stay empty."""
    records: dict[str, list[Record]] = {}
    accounts: list[FileAccount] = []
    findings: list[Finding] = []
    limits = Limits(spec.max_record_bytes, spec.max_file_bytes)
    for split, source in sources_of(spec).items():
        if split == REHEARSAL:
            continue  # how many are taken depends on what is left of train
        reading = read_source(source, split, folder, seed, limits, tick or no_tick)
        records[split] = reading.records
        accounts += reading.accounts
        findings += reading.findings
    production = records.pop(PRODUCTION, [])
    if (spec.cut.validation or spec.cut.held_out) and records["train"]:
        try:
            records = _with_cuts(records, spec.cut, seed)
        except Refusal as refusal:  # what could not be read comes first: it may be why too little is left to cut
            raise Refusal([*(f.problem() for f in findings), *refusal.problems]) from None
    if spec.rehearsal is not None:
        reading = read_source(_sized(spec.rehearsal, len(records["train"])), REHEARSAL, folder, seed, limits, tick or no_tick)
        accounts += reading.accounts
        findings += reading.findings
        records = _in_order({**records, REHEARSAL: reading.records})
        if not reading.findings:
            _refuse_too_few(spec.rehearsal, len(records["train"]), len(reading.records))
    return Splits(records, tuple(accounts), tuple(findings), production)


def _sized(spec: RehearsalSpec, train: int) -> SourceSpec:
    """The source, taking as many records as make its share of all that is trained on."""
    return spec if spec.take is not None else spec.model_copy(update={"take": _wanted(spec, train)})


def _wanted(spec: RehearsalSpec, train: int) -> int:
    share = spec.share if spec.share is not None else USUAL_SHARE
    return max(1, round(train * share / (1 - share)))


def _refuse_too_few(spec: RehearsalSpec, train: int, given: int) -> None:
    wanted = spec.take if spec.take is not None else _wanted(spec, train)
    if given < wanted:
        refuse("data.rehearsal", "take" if spec.take is not None else "share", f"{given} general records", f"at least {wanted}, beside {train} of train",
               "give more general records, or ask for fewer")  # fmt: skip


def _in_order(records: dict[str, list[Record]]) -> dict[str, list[Record]]:
    """What is trained on comes first: of two splits that share a prompt, the earlier one's record is the finding."""
    first = [split for split in ("train", REHEARSAL) if split in records]
    return {split: records[split] for split in [*first, *(s for s in records if s not in first)]}


def sources_of(spec: DataSpec) -> dict[str, SourceSpec]:
    """The source of every split that has one of its own, and of the production sample."""
    named: dict[str, SourceSpec | None] = {"train": spec.train, REHEARSAL: spec.rehearsal, "validation": spec.validation, "held_out": spec.held_out}
    ood = {OOD + name: s for name, s in spec.ood.items()}
    return {split: s for split, s in (named | ood | {PRODUCTION: spec.production}).items() if s is not None}


def _with_cuts(records: dict[str, list[Record]], cut: CutSpec, seed: int) -> dict[str, list[Record]]:
    parts = cut_records(records["train"], cut, seed)
    order = ["train", "validation", "held_out"]
    merged = {split: parts.get(split) or records.get(split, []) for split in order}
    rest = {split: rows for split, rows in records.items() if split not in order}
    return {split: rows for split, rows in merged.items() if rows} | rest


def cut_records(records: list[Record], cut: CutSpec, seed: int) -> dict[str, list[Record]]:
    """train, validation and held_out from one list, whole groups at a time, chosen by a hash of seed and group.

    A group is the value of `group_by`, or else the normalised prompt with its edited copies, so that two answers to one question stay
    together, and so does a record that was changed by a few words.
    With `stratify` the shares hold within every completion (of a group's first record).
    """
    groups_of: dict[str, list[int]] = defaultdict(list)
    copies = edited_copies(records) if cut.group_by is None else {}
    for position, record in enumerate(records):
        group = _group(record, cut.group_by)
        groups_of[copies.get(group, group)].append(position)
    strata: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for group, members in groups_of.items():
        strata[records[members[0]].completion if cut.stratify else ""][group] = members
    home: dict[int, str] = {}
    for groups in strata.values():
        ranked = sorted(groups, key=lambda g: hashlib.sha256(f"{seed}\x1f{g}".encode("utf-8", "surrogatepass")).digest())
        held_out = _share(cut.held_out, len(ranked))
        validation = _share(cut.validation, len(ranked))
        for index, group in enumerate(ranked):
            split = "held_out" if index < held_out else "validation" if index < held_out + validation else "train"
            home.update(dict.fromkeys(groups[group], split))
    parts: dict[str, list[Record]] = {"train": [], "validation": [], "held_out": []}
    for position, record in enumerate(records):
        split = home[position]
        parts[split].append(record if record.split == split else record.moved(split))
    for split, share in (("validation", cut.validation), ("held_out", cut.held_out)):
        if share > 0 and not parts[split]:
            refuse("data.cut", split, f"{len(home)} records in too few groups", f"at least one group for {split}", "cut a larger share, or give more data")
    if not parts["train"]:
        refuse("data.cut", "data.train", f"{len(records)} records in too few groups", "something left to train on", "cut less, or give more data")
    return parts


def _share(share: float, groups: int) -> int:
    return max(1, round(share * groups)) if share > 0 and groups > 2 else round(share * groups)


def _group(record: Record, column: str | None) -> str:
    if column is None:
        return record.prompt_key
    value: Any = record.extra.get(column)
    if value is None:
        refuse(record.where, column, "no value", "a value of the group column in every record", "fill it, or remove data.cut.group_by")
    return str(value)
