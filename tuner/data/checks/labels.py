"""Checks of a closed set of labels: rare ones, names that are nearly the same, labels never trained on, labels the rest of the data denies.

They refuse to judge a record by its neighbours where the data is too small or its language unknown to the embeddings, and say so.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from tuner.data.embedding import MAX_UNKNOWN, available, encoder_named
from tuner.data.findings import Check, Finding, finding, remark
from tuner.data.label_noise import suspects
from tuner.data.measure import Context
from tuner.data.personal import masked_quote
from tuner.data.record import Record, normalised

FEW = 5  # records of a label below which it is rare
SHARP = 50  # times as many records of the commonest label as of the rarest
MOST_LABELS = 200  # distinct completions up to which a text task looks like a label task
LONG_NAME = 8  # letters from which one changed letter makes two label names suspiciously alike


def rare_labels(context: Context) -> Iterator[Finding]:
    """A label that occurs once in train, or fewer than five times; and how unevenly labels are spread."""
    if context.task != "label":
        return
    counts, _ = _labels(context, "train")
    for record in (context.records[i] for i in context.ranges.get("train", range(0))):
        count = counts[record.completion]
        if count < FEW:
            yield finding(record, "ONCE" if count == 1 else "RARE", "completion",
                          f"label {masked_quote(record.completion, 40)} on {count} of {counts.total()} train records",
                          f"at least {FEW} records a label", "collect more, or merge it with another label")  # fmt: skip
    if counts and max(counts.values()) >= SHARP * min(counts.values()):
        (common, most), (rare, least) = counts.most_common()[0], counts.most_common()[-1]
        yield remark(context.file("train"), "IMBALANCE", "completion",
                     f"{masked_quote(common, 40)} on {most} train records, {masked_quote(rare, 40)} on {least}",
                     f"less than {SHARP} times as many of one as of another", "collect more of the rare ones; read each label's score in the report",
                     "train")  # fmt: skip


def similar_labels(context: Context) -> Iterator[Finding]:
    """Two label names that differ in case, punctuation, plural, order of words or one letter: usually one label written twice."""
    if context.task != "label":
        return
    counts: Counter[str] = Counter()
    first: dict[str, Record] = {}
    for split in context.ranges:
        own, places = _labels(context, split)
        counts += own
        first = places | first
    groups: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        groups[_bare(label)].append(label)
    pairs = [(same[0], other) for same in groups.values() for other in same[1:]]
    pairs += [(groups[a][0], groups[b][0]) for a, b in _one_letter_apart([g for g in groups if len(g) >= LONG_NAME])]
    for one, other in pairs:
        common, rare = sorted((one, other), key=lambda label: -counts[label])
        yield finding(first[rare], "SIMILAR_LABELS", "completion",
                      f"{masked_quote(rare, 40)} ({counts[rare]} records) beside {masked_quote(common, 40)} ({counts[common]})",
                      "one spelling a label", f"rename one of them, if both mean {masked_quote(common.strip(), 40)}")  # fmt: skip


def _bare(label: str) -> str:
    """Letters and digits of the words in alphabetical order, plurals cut."""
    found = re.findall(r"[^\W_]+", normalised(label))
    return " ".join(sorted(w.removesuffix("s") if len(w) > 3 else w for w in found)) or label


def _one_letter_apart(names: list[str]) -> Iterator[tuple[str, str]]:
    """Pairs of names at edit distance 1, found by what is left when one letter is taken out."""
    without: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        for shorter in {name} | {name[:i] + "\0" + name[i + 1 :] for i in range(len(name))} | {name[:i] + name[i + 1 :] for i in range(len(name))}:
            without[shorter].append(name)
    seen: set[tuple[str, str]] = set()
    for shorter, of in without.items():
        for a, b in pairwise(of):
            near = abs(len(a) - len(b)) <= 1 and ("\0" in shorter or shorter in (a, b))
            if a != b and near and (a, b) not in seen and not _differ_in_digits(a, b):
                seen.add((a, b))
                yield a, b


def _differ_in_digits(one: str, other: str) -> bool:
    return re.sub(r"\d", "", one) == re.sub(r"\d", "", other)


def unseen_label(context: Context) -> Iterator[Finding]:
    """A label that is graded or watched but never trained on."""
    if context.task != "label":
        return
    known = set(_labels(context, "train")[0])
    for split, among in context.ranges.items():
        counts, _ = _labels(context, split)
        for record in (context.records[i] for i in among):
            if record.completion not in known:
                yield finding(record, "UNSEEN_LABEL", "completion",
                              f"{masked_quote(record.completion, 60)} on {counts[record.completion]} records of {split}", "labels that occur in train",
                              "add training records with this label, or leave it out of the suite")  # fmt: skip


def suspect_labels(context: Context) -> Iterator[Finding]:
    """A label that a model fitted to the other records is sure is another one (out-of-fold softmax regression on static embeddings)."""
    if context.task != "label":
        return
    among = context.ranges.get("train", range(0))
    records = [context.records[i] for i in among]
    vectors, unknown = encoder_named(context.scene.spec.embeddings).encode([r.question for r in records])
    if not len(records) or not available(unknown):
        if records:
            yield remark(context.file("train"), "NOT_AVAILABLE", "messages", f"{float(np.mean(unknown)):.0%} of the words are unknown to the embeddings",
                         f"at most {MAX_UNKNOWN:.0%}: they are English", "review labels by hand", "train")  # fmt: skip
        return
    judged = suspects(vectors, [r.completion for r in records], seed=0)
    if judged is None:
        return
    if len(judged.rows):
        yield remark(context.file("train"), "HOW_SURE", "completion",
                     f"{len(judged.rows)} suspects among {judged.judged} judged records; about {judged.precision:.0%} of them should be wrong "
                     f"(out-of-fold predictions are right on {judged.accuracy:.0%})",
                     "suspects that a person has looked at", "look at each; correct the label where it is wrong", "train")  # fmt: skip
    for rank, row in enumerate(judged.rows.tolist()):
        record = records[row]
        yield finding(record, "SUSPECT_LABEL", "completion",
                      f"{masked_quote(record.completion, 40)} on {masked_quote(record.question, 80)}; the other records say "
                      f"{masked_quote(judged.predicted[rank], 40)} "
                      f"(right on {judged.agreement[rank]:.0%} of those predicted alike)",
                      "the label that alike records carry", "look at it; correct the label if it is wrong")  # fmt: skip


def label_task(context: Context) -> Iterator[Finding]:
    """A text task whose completions are a small closed set: the label checks would apply."""
    among = context.ranges.get("train", range(0))
    if context.task != "text" or len(among) < 100:
        return
    distinct = len(np.unique(context.measures.completion[among.start : among.stop]))
    short = sum(len(context.records[i].completion) <= 40 for i in among[:: max(len(among) // 1000, 1)])
    if distinct <= min(MOST_LABELS, len(among) // 5) and short >= 0.95 * len(among[:: max(len(among) // 1000, 1)]):
        yield remark(context.file("train"), "LOOKS_LIKE_LABELS", "completion", f"{distinct} different completions on {len(among)} records", "data.task: label",
                     "set data.task: label, so that labels are checked and graded as labels", "train")  # fmt: skip


def _labels(context: Context, split: str) -> tuple[Counter[str], dict[str, Record]]:
    """How often each completion occurs in a split, and the first record that has it."""
    counts: Counter[str] = Counter()
    first: dict[str, Record] = {}
    for i in context.ranges.get(split, range(0)):
        record = context.records[i]
        counts[record.completion] += 1
        first.setdefault(record.completion, record)
    return counts, first


LABELS: dict[str, Check] = {
    "rare_labels": Check("task label: a label on fewer than five train records; very uneven labels", "warn", whole=rare_labels),
    "similar_labels": Check("task label: two label names that are nearly the same", "warn", whole=similar_labels, actions=("refuse", "warn", "off")),
    "unseen_label": Check("task label: a label that train does not hold", "warn", whole=unseen_label),
    "suspect_labels": Check("task label: a label that the other records deny (out-of-fold prediction)", "warn", whole=suspect_labels, ranked=True),
    "label_task": Check("task text whose completions are a small closed set", "warn", whole=label_task, actions=("warn", "off")),
}
