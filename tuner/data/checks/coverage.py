"""Checks of what train teaches against what production asks: inputs with no near example, and records that teach nothing new.

They speak only where the embeddings know the words, and say "not available" where they do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tuner.data.coverage import MIN_TRAIN, MIN_UNCOVERED, REDUNDANT, regions
from tuner.data.coverage import coverage as cover
from tuner.data.coverage import redundancy as redundant_rows
from tuner.data.embedding import MAX_UNKNOWN, Centring, Vectors, available, centred, encoder_named
from tuner.data.findings import Check, Finding, finding, remark
from tuner.data.measure import Context
from tuner.data.personal import masked_quote
from tuner.data.record import Record

SHOWN_CLUSTERS = 20
MOST_TRAIN = 200_000  # train records compared with production, evenly drawn beyond that
ENOUGH = 30  # held_out records that can say what is usual for fresh inputs
OFTEN = 2.0  # times as large a share of train as of production, its whole interval: over-represented


def questions(records: Sequence[Record], embeddings: str) -> tuple[Vectors, bool]:
    """Vectors (N, d) of what the records ask, and whether the embeddings know enough of the words."""
    vectors, unknown = encoder_named(embeddings).encode([r.question for r in records])
    return vectors, len(records) > 0 and available(unknown)


def coverage(context: Context) -> Iterator[Finding]:
    """Clusters of production inputs that no train record is near, the share of production that is covered, and what train has too much of."""
    production = list(context.splits.production)
    if not production:
        return
    train = drawn([context.records[i] for i in context.ranges.get("train", range(0))], MOST_TRAIN)
    ours, known = questions(train, context.scene.spec.embeddings)
    theirs, known_too = questions(production, context.scene.spec.embeddings)
    file = production[0].file
    if not (known and known_too):
        yield remark(file, "NOT_AVAILABLE", "messages", "more of the words are unknown to the embeddings than may be",
                     f"at most {MAX_UNKNOWN:.0%}: they are English",
                     "compare by hand", "production")  # fmt: skip
        return
    middle = Centring.fit(ours)
    ours, theirs = middle.apply(ours), middle.apply(theirs)
    held_out = [context.records[i] for i in context.ranges.get("held_out", range(0))]
    found = cover(ours, theirs, middle.apply(questions(held_out, context.scene.spec.embeddings)[0]) if len(held_out) >= ENOUGH else None)
    if found is None:
        yield remark(file, "TOO_FEW", "messages", f"{len(train)} train records", f"at least {MIN_TRAIN} different ones, or nothing can be said",
                     "collect more before asking what they cover", "production")  # fmt: skip
        return
    low, high = found.interval
    yield remark(file, "COVERED", "messages", f"{found.share:.1%} [{low:.1%}, {high:.1%}] of {len(production)} production inputs have near training examples "
                 f"(p {found.p_value:.2g} that this is chance)", f"less than {MIN_UNCOVERED:.0%} not covered",
                 "annotate the uncovered ones below, the first first", "production")  # fmt: skip
    for cluster in found.clusters[:SHOWN_CLUSTERS] if found.is_short else ():
        medoid = production[cluster.medoid]
        yield finding(medoid, "UNCOVERED", "messages",
                      f"{len(cluster.rows)} production inputs ({len(cluster.rows) / len(production):.1%}) like {masked_quote(medoid.question, 80)} have no "
                      f"near training example",
                      "a training example near every production input", "collect or annotate some of these")  # fmt: skip
    for region in regions(ours, theirs):
        if region.interval[0] > OFTEN:
            example = train[int(region.rows[0])]
            yield finding(example, "OVER_REPRESENTED", "messages",
                          f"records like {masked_quote(example.question, 80)} are {region.ratio:.1f} times as frequent in train ({region.in_train}) as in "
                          f"production ({region.in_production})",
                          "shares like those of production", "nothing if it is meant; else keep fewer of them (tuner select)")  # fmt: skip


def redundancy(context: Context) -> Iterator[Finding]:
    """The share of train records whose prompt is nearly, in meaning, that of an earlier one: fewer would teach as much."""
    train = [context.records[i] for i in context.ranges.get("train", range(0))]
    if len(train) < 100:
        return
    train = drawn(train, 50_000)
    vectors, known = questions(train, context.scene.spec.embeddings)
    if not known:
        return
    found = redundant_rows(centred(vectors))
    if found.share > 0.1:
        low, high = found.interval
        yield remark(context.file("train"), "REDUNDANT", "messages",
                     f"{found.share:.0%} [{low:.0%}, {high:.0%}] of train asks nearly what an earlier record asks (cosine {REDUNDANT} or more)",
                     "records that teach something new", f"try `tuner select` with about {round(len(train) * (1 - found.share), -1)} records",
                     "train")  # fmt: skip


def drawn(records: list[Record], most: int) -> list[Record]:
    """At most `most` records, evenly spread over the list."""
    return records if len(records) <= most else [records[i] for i in np.linspace(0, len(records) - 1, most).astype(int).tolist()]


COVERAGE: dict[str, Check] = {
    "coverage": Check(
        "production inputs (data.production) without a near training example, and what train has too much of",
        "warn",
        whole=coverage,
        actions=("refuse", "warn", "off"),
        ranked=True,
    ),
    "redundancy": Check("train records that ask nearly the same as earlier ones", "warn", whole=redundancy, actions=("warn", "off")),
}
