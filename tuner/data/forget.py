"""Records that somebody asked to be forgotten, left out of every split before any check sees them, known by their content hashes alone.

It refuses nothing; a hash that no record has is said in a note, since a changed text has another hash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tuner.data.findings import Finding, remark
from tuner.data.record import Record
from tuner.data.splits import Splits

REASON = "forget"  # under which they are counted


def without_forgotten(splits: Splits, as_read: Splits, hashes: Sequence[str]) -> tuple[Splits, Counter[tuple[str, str]]]:
    """The splits less every record with one of these hashes, as it is now or as it was read, and how many that were by (split, file).

    Splits keep their other records: what was cut or taken before is not drawn again, so two versions differ in these records alone.
    """
    wanted, left_out, met = frozenset(hashes), Counter[tuple[str, str]](), set[str]()
    if not wanted:
        return splits, left_out

    def kept(now: Iterable[Record], before: Iterable[Record]) -> list[Record]:
        stays = []
        for record, original in zip(now, before, strict=True):
            own = wanted & {record.hash, original.hash}
            met.update(own)
            if own:
                left_out[record.split, record.file] += 1
            else:
                stays.append(record)
        return stays

    records = {split: kept(of, as_read.records[split]) for split, of in splits.records.items()}
    production = kept(splits.production, as_read.production)
    said = _not_met(sorted(wanted - met))
    return replace(splits, records=records, production=production, findings=(*splits.findings, *said)), left_out


def _not_met(hashes: Sequence[str]) -> list[Finding]:
    if not hashes:
        return []
    return [replace(remark("data.forget", "NOT_THERE", "data.forget", f"{len(hashes)} hashes that no record has, the first {hashes[0][:19]}…",
                           "hashes of records as they are", "nothing is needed where the record is gone; where it was edited, look for its near copies",
                           ""), check="files")]  # fmt: skip
