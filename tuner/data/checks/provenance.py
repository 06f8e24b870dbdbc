"""Checks of where records come from and when they were true: synthetic grades, stale facts, answers written from a template.

They go by what the recipe (`source`, `as_of`) or a column of that name says; where neither says anything, nothing is guessed.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import get_args

from tuner.data.findings import Check, Finding, finding, remark
from tuner.data.measure import Context
from tuner.data.personal import masked_quote
from tuner.data.record import Record
from tuner.data.spec import Origin
from tuner.data.templateness import WARN, template_likeness

_DATE = re.compile(r"\b((?:19|20)\d\d)-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])\b")
_AS_OF = re.compile(
    r"(?i)\b(?:as of|updated(?: on)?|last updated|currently \(|valid (?:until|till|through)|effective)\s*:?\s*"
    r"(?:in\s+)?(?:[a-z]+\.?\s+)?(?:\d{1,2},?\s+)?((?:19|20)\d\d)\b"
)
ENOUGH = 50  # answers from which a template can be told


def synthetic_grades(context: Context) -> Iterator[Finding]:
    """A graded record that a model wrote, while real ones exist: a score on synthetic records flatters itself."""
    real = bool(context.splits.production) or any(_source(context, r) == "production" for r in context.records)
    for split in context.splits.suites:
        synthetic = [context.records[i] for i in context.ranges[split] if _source(context, context.records[i]) == "synthetic"]
        if real:
            for record in synthetic:
                yield finding(record, "SYNTHETIC_GRADES", "source", f"a synthetic record in {split}, while production records exist",
                              "graded records that are real",
                              "grade on production or human records; keep synthetic ones in train")  # fmt: skip
        elif synthetic:
            share = len(synthetic) / len(context.ranges[split])
            yield remark(context.file(split), "SYNTHETIC", "source", f"{share:.0%} of {split} is synthetic", "graded records that are real",
                         "collect some real ones: a score on synthetic records flatters itself", split)  # fmt: skip


def templates(context: Context) -> Iterator[Finding]:
    """Answers that compress as if written from a template: train as a whole, or the synthetic part of it beside the human part."""
    if context.task != "text":
        return
    records = [context.records[i] for i in context.ranges.get("train", range(0))]
    parts = {name: [r.completion for r in records if _source(context, r) == name] for name in ("synthetic", "human", "production")}
    told = {name: texts for name, texts in parts.items() if len(texts) >= ENOUGH} or {"all": [r.completion for r in records]}
    likeness = {name: template_likeness(texts, seed=0) for name, texts in told.items() if len(texts) >= ENOUGH}
    for name, found in likeness.items():
        if found.level in ("warn", "strong"):
            level = "strongly" if found.level == "strong" else "somewhat"
            yield remark(context.file("train"), "TEMPLATE", "completion",
                         f"{name} completions of train compress {found.gzip_ratio:.1f} times: {level} like a template ({found.common_six:.0%} of their "
                         f"words stand in common phrases)",
                         f"free text compresses 2.5 to 3 times; less than {WARN:g}", "vary them, unless production answers are as uniform",
                         "train")  # fmt: skip
    if "synthetic" in told:
        share = len(parts["synthetic"]) / len(records)
        figures = "; ".join(f"{name} answers compress {of.gzip_ratio:.1f} times, n-gram diversity {of.diversity:.1f} of 4" for name, of in likeness.items())
        yield remark(context.file("train"), "SYNTHETIC_SHARE", "source", f"{share:.0%} of train is synthetic. {figures}", "a share you chose",
                     "compare scores on real records", "train")  # fmt: skip


def stale(context: Context) -> Iterator[Finding]:
    """A record older than data.fresh_since, an answer that speaks as of an older year, or a date in it that lies after its own as_of."""
    horizon = context.scene.spec.fresh_since
    for split, among in context.ranges.items():
        dated = [when for when in (_as_of(context, context.records[i]) for i in among) if when is not None]
        old = sum(horizon is not None and when < horizon for when in dated)
        if old:
            yield remark(context.file(split), "STALE_SHARE", "as_of",
                         f"{old / len(dated):.0%} of the {len(dated)} dated records of {split} are older than {horizon}",
                         "records that are true now (data.fresh_since)", "renew them, or keep what changes out of training", split)  # fmt: skip
    for record in context.records:
        as_of = _as_of(context, record)
        if horizon is not None and as_of is not None and as_of < horizon:
            yield finding(record, "STALE", "as_of", f"as of {as_of}", f"{horizon} or later (data.fresh_since)", "renew the answer, or delete the record")
        text = record.completion
        if horizon is not None and (said := _AS_OF.search(text)) and int(said[1]) < horizon.year:
            yield finding(record, "STALE_TEXT", "completion", masked_quote(text[max(said.start() - 20, 0) : said.end() + 10], 60),
                          f"facts of {horizon} or later (data.fresh_since)",
                          "renew the answer, or delete the record")  # fmt: skip
        if as_of is not None and (later := next((d for d in map(_date, _DATE.finditer(text)) if d is not None and d > as_of), None)):
            yield finding(record, "LATER_DATE", "completion", f"the date {later}, in a record as of {as_of}", "dates up to as_of", "correct as_of, or the date")


def _date(found: re.Match[str]) -> datetime.date | None:
    try:
        return datetime.date(int(found[1]), int(found[2]), int(found[3]))
    except ValueError:
        return None


def _source(context: Context, record: Record) -> str | None:
    own = record.extra.get("source")
    found = own if own in get_args(Origin) else context.source(record.split, "source")
    return found if isinstance(found, str) else None


def _as_of(context: Context, record: Record) -> datetime.date | None:
    own = record.extra.get("as_of")
    if isinstance(own, datetime.datetime):
        return own.date()
    if isinstance(own, datetime.date):
        return own
    if isinstance(own, str) and (found := _DATE.match(own.strip())):
        return _date(found)
    given = context.source(record.split, "as_of")
    return given if isinstance(given, datetime.date) else None


def wrong_provenance(context: Context) -> Iterator[Finding]:
    """A `source` or `as_of` column that says nothing we know: provenance would be ignored in silence."""
    for record in context.records:
        own = record.extra.get("source")
        said = set(get_args(Origin))
        if isinstance(own, str) and own.casefold() in said and own not in said:
            yield finding(record, "SOURCE", "source", masked_quote(own, 40), "human, synthetic or production", f"write {own.casefold()}")
        when = record.extra.get("as_of")
        if isinstance(when, str) and when.strip() and not ((found := _DATE.match(when.strip())) and _date(found)):
            yield finding(record, "AS_OF", "as_of", masked_quote(when, 40), "a date as YYYY-MM-DD", "write the date in this form")


PROVENANCE: dict[str, Check] = {
    "synthetic_grades": Check("a synthetic record among the graded ones, while production records exist", "refuse", whole=synthetic_grades),
    "templates": Check("answers that compress as if written from a template; the share of synthetic records", "warn", whole=templates, actions=("warn", "off")),
    "stale": Check("a record older than data.fresh_since, or dates that contradict its as_of", "warn", whole=stale),
    "provenance": Check("a source or as_of that cannot be read", "warn", whole=wrong_provenance),
}
