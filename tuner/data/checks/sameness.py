"""Checks that compare records: copies, one prompt with several answers, what stands in two splits.

They show what differs and never call a near copy a copy: two records at similarity 0.8 may differ in the one word that matters.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tuner.catalog import suggestion
from tuner.data.disagree import Answer, disagreement
from tuner.data.findings import Check, Finding, finding, remark
from tuner.data.measure import Context, positions_by
from tuner.data.near import COPY, gives_away
from tuner.data.personal import hide, masked_quote
from tuner.data.record import Record, normalised
from tuner.data.shingles import Hashes, difference, grams, hashed_words, jaccard, shingle_set, words
from tuner.data.splits import OOD
from tuner.data.workers import spread
from tuner.safe_text import quoted, visible

LEAK_WORDS, GRADE_WORDS = 13, 8  # a run of 13 words is no accident; the share of runs of 8 says how much of an item leaked
MOST_SHARED = 0.5  # share of an item's runs of 8 words that may stand in one train record
COMMON_RUN = 5  # train records; a run that stands in more is a phrase of the template
_FILTER_BITS = 24  # of a run's hash, in the table that says whether it may be wanted: 16 MB
_FILTER_MASK = np.uint64((1 << _FILTER_BITS) - 1)
MOST_ANSWERS = 30  # different answers to one prompt compared with each other
MOST_IN_GROUP = 200  # records of one prompt compared with each other
MOST_IN_CLUSTER, MOST_OF_PROMPT = 50, 20  # train prompts of a cluster, and records of a prompt, that a graded prompt is compared with


def exact_duplicates(context: Context) -> Iterator[Finding]:
    """Records of one split with the same messages. The first stays; each later one is a finding."""
    for among in context.ranges.values():
        for group in positions_by(context.measures.exact, among):
            first = context.records[group[0]]
            for position in group[1:]:
                record = context.records[position]
                yield finding(record, "DUPLICATE", "messages", f"the same as {first.where}", "each record once",
                              f"delete line {record.line}, or set data.checks.exact_duplicates: drop")  # fmt: skip


def near_duplicates(context: Context) -> Iterator[Finding]:
    """Records of one split that differ in case, punctuation or a few words only, prompt and completion alike."""
    reported: set[int] = set()
    for among in context.ranges.values():
        for group in positions_by(context.measures.prompt, among):
            yield from _copies(context, group.tolist()[:MOST_IN_GROUP], reported)
    sharers = _sharers(context)
    near = context.near
    for one, other, similarity in zip(near.first.tolist(), near.second.tolist(), near.jaccard.tolist(), strict=True):
        if similarity >= COPY:
            for split in sharers[one].keys() & sharers[other].keys():
                yield from _copies(context, sorted([*sharers[one][split][:MOST_IN_GROUP], *sharers[other][split][:MOST_IN_GROUP]]), reported)


def _sharers(context: Context) -> dict[int, dict[str, list[int]]]:
    """For every prompt that has a near copy: the positions that have this prompt, by split."""
    wanted = set(context.near.first.tolist()) | set(context.near.second.tolist())
    sharers: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, representative in enumerate(context.near.representative.tolist()):
        if representative in wanted:
            sharers[representative][context.split_of[position]].append(position)
    return sharers


def _copies(context: Context, group: Sequence[int], reported: set[int]) -> Iterator[Finding]:
    """One finding for each record whose completion is that of an earlier one in the group, word for word or nearly."""
    seen: list[tuple[int, frozenset[str]]] = []
    exact: set[int] = set()
    for position in group:
        record = context.records[position]
        own = shingle_set(record.completion)
        if int(context.measures.exact[position]) in exact or position in reported:
            continue  # an exact duplicate is its own finding
        exact.add(int(context.measures.exact[position]))
        for earlier, theirs in seen:
            other = context.records[earlier]
            if jaccard(own, theirs) < COPY or not _alike(_setting(record), _setting(other)):
                continue
            ours, others = ([_setting(r), r.question, r.completion] for r in (record, other))
            same = [words(text) for text in ours] == [words(text) for text in others]
            differs = difference(hide(" ".join(ours)), hide(" ".join(others)))
            reported.add(position)
            yield finding(record, "SAME_WORDS" if same else "NEAR", "messages",
                          f"nearly the same as {other.where}; differs in: {quoted(differs, 120)}", "records that differ in what they teach",
                          "look at what differs: keep both if it matters, else delete one")  # fmt: skip
            break
        seen.append((position, own))


def _setting(record: Record) -> str:
    """The system prompt: one question under two of them is two questions."""
    return record.messages[0].content if record.messages[0].role == "system" else ""


def _alike(one: str, other: str) -> bool:
    """The same text, or the same but for a few words."""
    return one == other or jaccard(shingle_set(one), shingle_set(other)) >= COPY


def contradictions(context: Context) -> Iterator[Finding]:
    """One prompt with different completions in the same split, where a prompt has one: those that disagree, and those that only differ in words."""
    one, why = context.one_reference
    any_difference = context.task != "text" or context.scene.spec.references == "one"
    for among in context.ranges.values() if one else ():
        for group in positions_by(context.measures.prompt, among):
            if len(np.unique(context.measures.completion[group])) < 2:
                continue
            rows = [context.records[i] for i in group]
            answers: dict[str, list[Record]] = defaultdict(list)
            for record in rows:
                answers[normalised(record.completion)].append(record)
            guilty = {} if any_difference else _disagreeing(answers)
            asked, table = masked_quote(rows[0].question, 60), _table(answers)
            for record in rows:
                about = guilty.get(normalised(record.completion))
                code = "CONTRADICTION" if any_difference or about is not None else "DIFFERENT_ANSWERS"
                yield finding(record, code, "completion",
                              f"{len(answers)} answers to {asked}{f' ({about})' if about else ''}: {table}",
                              f"one answer a prompt ({why})",
                              "keep the right one; set data.references: many if all are; or data.checks.contradictions: drop to leave out all of "
                              "them")  # fmt: skip


def _disagreeing(answers: dict[str, list[Record]]) -> dict[str, str]:
    """Of the different answers to one prompt, those that contradict another one, and about what."""
    guilty: dict[str, str] = {}
    parsed = {key: Answer.of(of[0].completion) for key, of in list(answers.items())[:MOST_ANSWERS]}
    keys = list(parsed)
    for index, key in enumerate(keys):
        for other in keys[:index]:
            about = disagreement(parsed[other], parsed[key])
            if about is not None:
                guilty.setdefault(other, about)
                guilty.setdefault(key, about)
    return guilty


def _table(answers: dict[str, list[Record]]) -> str:
    """Every answer with its places: the table a person decides from."""
    parts = []
    for of in list(answers.values())[:6]:
        places = ", ".join(str(r.line) for r in of[:5]) + (f" and {len(of) - 5} more" if len(of) > 5 else "")
        parts.append(f"{of[0].file}:{places} {'says' if len(of) == 1 else 'say'} {masked_quote(of[0].completion, 40)}")
    return "; ".join(parts) + (f"; and {len(answers) - 6} more" if len(answers) > 6 else "")


def near_contradictions(context: Context) -> Iterator[Finding]:
    """Two prompts of one split that are nearly the same, with different labels; in text only where the recipe says that a prompt has one answer."""
    if context.task != "label" and context.scene.spec.references != "one":
        return
    sharers = _sharers(context)
    near = context.near
    reported: set[int] = set()
    for one, other, similarity in zip(near.first.tolist(), near.second.tolist(), near.jaccard.tolist(), strict=True):
        if similarity < COPY:
            continue
        for split in sharers[one].keys() & sharers[other].keys():
            a, b = context.records[sharers[one][split][0]], context.records[sharers[other][split][0]]
            if normalised(a.completion) == normalised(b.completion) or sharers[other][split][0] in reported:
                continue
            if jaccard(shingle_set(a.completion), shingle_set(b.completion)) >= COPY or not _alike(_setting(a), _setting(b)):
                continue
            reported.add(sharers[other][split][0])
            yield finding(b, "NEAR_CONTRADICTION", "completion",
                          f"{masked_quote(b.completion, 40)}, but {a.where} says {masked_quote(a.completion, 40)} to nearly the same prompt; "
                          f"the prompts differ in: {quoted(difference(hide(b.question), hide(a.question)), 100)}",
                          "one answer to one question", "if the difference does not justify two answers, mend one of them")  # fmt: skip


def overlap(context: Context) -> Iterator[Finding]:
    """A prompt of train in any other split, or of validation or held_out in one read after it. Every record on the earlier side is a finding."""
    prompts = context.measures.prompt
    names = list(context.ranges)
    for index, split in enumerate(names):
        if split.startswith(OOD):
            continue
        for other in names[index + 1 :]:
            here, there = context.ranges[split], context.ranges[other]
            own, theirs = prompts[here.start : here.stop], prompts[there.start : there.stop]
            shared = np.isin(own, theirs)
            first = {int(h): p for p, h in reversed(list(enumerate(theirs.tolist())))} if shared.any() else {}
            for position in np.flatnonzero(shared).tolist():
                record, twin = context.records[here.start + position], context.records[there.start + first[int(own[position])]]
                yield finding(record, "OVERLAP", "prompt", f"the same prompt in {split} ({record.where}) and {other} ({twin.where})",
                              "each prompt in one split", f"delete {record.where}, or set data.checks.overlap: drop")  # fmt: skip


def near_overlap(context: Context) -> Iterator[Finding]:
    """A train prompt that is a graded one but for a few words, with nearly the same completion: a finding for each such train record."""
    train = context.ranges.get("train", range(0))
    prompts = set(np.unique(context.measures.prompt[train.start : train.stop]).tolist())
    sharers = _sharers(context)
    reported: set[int] = set()
    for members in context.near.clusters.values():
        ours = [m for m in members if "train" in sharers[m]][:MOST_IN_GROUP]
        for member in (m for m in members if int(context.measures.prompt[m]) not in prompts):
            copies = [p for m in ours if jaccard(_set(context, member), _set(context, m)) >= COPY for p in sharers[m]["train"] if p not in reported]
            for split, positions in sharers[member].items():
                for position in (p for p in copies if p not in reported):
                    record = context.records[position]
                    twin = next((t for t in (context.records[i] for i in positions[:20]) if gives_away(record.completion, t.completion)), None)
                    if twin is None:
                        continue
                    reported.add(position)
                    yield finding(record, "NEAR_OVERLAP", "prompt",
                                  f"nearly the same prompt in train ({record.where}) and {split} ({twin.where}), and nearly the same completion; the prompts "
                                  f"differ in: {quoted(difference(hide(record.question), hide(twin.question)), 100)}",
                                  "graded prompts that train has not seen", f"delete {record.where}, or set data.checks.near_overlap: drop")  # fmt: skip


def _set(context: Context, position: int) -> frozenset[str]:
    return shingle_set(context.records[position].question)


def leakage(context: Context) -> Iterator[Finding]:
    """A run of 13 words of an evaluation record, prompt and completion, that also stands in train; graded by its runs of 8 words."""
    train = context.ranges.get("train", range(0))
    graded = [i for split, among in context.ranges.items() if split != "train" for i in among]
    if not graded or not train:
        return
    wanted, owners = _runs([context.records[i] for i in graded], LEAK_WORDS)
    if not len(wanted):
        return
    places: dict[int, list[int]] = defaultdict(list)

    likely = np.zeros(1 << _FILTER_BITS, dtype=bool)
    likely[wanted & _FILTER_MASK] = True
    in_order = np.unique(wanted)

    def look(start: int, stop: int) -> list[tuple[int, int]]:
        runs, own = _runs([context.records[train.start + i] for i in range(start, stop)], LEAK_WORDS)
        hits = _found_in(runs, in_order, likely)
        return list(dict.fromkeys((int(runs[h]), train.start + start + int(own[h])) for h in hits.tolist()))

    for part in spread(look, len(train)):
        for run, position in part:
            places[run].append(position)
    telling = {run: of for run, of in places.items() if len(of) <= COMMON_RUN}  # a run that many records share is a template, not a leak
    hits = np.flatnonzero(np.isin(wanted, np.fromiter(telling, dtype=np.uint64, count=len(telling))))
    sources: dict[int, Counter[int]] = defaultdict(Counter)
    for run, owner in zip(wanted[hits].tolist(), owners[hits].tolist(), strict=True):
        sources[owner].update(telling[run])
    for item, of in sources.items():
        position = of.most_common(1)[0][0]  # the train record that most of its runs stand in
        record, source = context.records[graded[item]], context.records[position]
        if int(context.measures.prompt[graded[item]]) == int(context.measures.prompt[position]):
            continue  # the same prompt is `overlap`
        share = _share_known(record, source)
        if share < MOST_SHARED:
            continue
        yield finding(record, "LEAK", "messages",
                      f"{LEAK_WORDS} words in a row that also stand in train ({source.where}); {share:.0%} of its runs of {GRADE_WORDS} words do",
                      "graded records that train has not seen", f"compare the two; delete {source.where} if it is a copy")  # fmt: skip


def _found_in(runs: Hashes, in_order: Hashes, likely: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Positions in `runs` of hashes that are among `in_order`; the table `likely` of their low bits spares looking most of them up."""
    maybe = np.flatnonzero(likely[runs & _FILTER_MASK])
    nearest = np.minimum(np.searchsorted(in_order, runs[maybe]), len(in_order) - 1)
    found: NDArray[np.int64] = maybe[in_order[nearest] == runs[maybe]]
    return found


def _runs(records: Sequence[Record], size: int) -> tuple[Hashes, Hashes]:
    """Hashes of every run of `size` words in each record, and the record's index for each."""
    flat, offsets = hashed_words([f"{r.question}\n{r.completion}" for r in records])
    runs, starts = grams(flat, offsets, size)
    return runs, np.repeat(np.arange(len(records), dtype=np.uint64), np.diff(starts))


def _share_known(record: Record, source: Record) -> float:
    ours, _ = _runs([record], GRADE_WORDS)
    theirs, _ = _runs([source], GRADE_WORDS)
    return float(np.isin(ours, theirs).mean()) if len(ours) else 0.0


def group_overlap(context: Context) -> Iterator[Finding]:
    """A customer, conversation or document (data.cut.group_by) with records in train and elsewhere. Every record elsewhere is a finding."""
    column = context.scene.spec.cut.group_by
    if column is None:
        return
    if context.records and not any(column in r.extra for r in context.records):
        columns = sorted({visible(name) for r in context.records[:100] for name in r.extra})
        said = remark(context.file("train"), "NO_GROUP", "data.cut.group_by", f"no record has a column {masked_quote(column, 40)}",
                      "a column of the records", suggestion(column, columns) if columns else "name another column", "train")  # fmt: skip
        yield replace(said, severity="warning")
        return
    home: dict[str, Record] = {}
    for i in context.ranges.get("train", range(0)):
        if (value := context.records[i].extra.get(column)) is not None:
            home.setdefault(str(value), context.records[i])
    for split, among in context.ranges.items():
        for record in (context.records[i] for i in among if split != "train"):
            value = record.extra.get(column)
            if value is not None and str(value) in home:
                yield finding(record, "GROUP", column, f"{column} {masked_quote(value, 40)} in {split} and in train ({home[str(value)].where})",
                              f"each {column} in one split", "move its records to one split, or cut the splits with data.cut")  # fmt: skip


def repeated_ids(context: Context) -> Iterator[Finding]:
    """An `id` that two records of one file share: corrections and deletions by id would hit the wrong one."""
    seen: dict[tuple[str, str], Record] = {}
    for record in context.records:
        if (value := record.extra.get("id")) is None:
            continue
        first = seen.setdefault((record.file, str(value)), record)
        if first is not record:
            yield finding(
                record, "REPEATED_ID", "id", f"id {masked_quote(value, 40)} again, as in {first.where}", "each id once", "give the record an id of its own"
            )


SAMENESS: dict[str, Check] = {
    "exact_duplicates": Check("the same record again in a split", "warn", whole=exact_duplicates),
    "near_duplicates": Check("a record that differs from another of its split in a few words only, or in case and punctuation", "warn", whole=near_duplicates),
    "contradictions": Check("one prompt with different completions, where a prompt has one (data.references)", "warn", whole=contradictions,
                            by_task={"label": "refuse", "json": "refuse"}),
    "near_contradictions": Check("task label, or references one: nearly the same prompt with different completions", "warn", whole=near_contradictions),
    "overlap": Check("the same prompt in two splits", "refuse", whole=overlap),
    "near_overlap": Check("a prompt of train that is nearly one of a split that is graded", "refuse", whole=near_overlap),
    "leakage": Check("a graded record of which 13 words in a row, and half of its runs of 8 words, stand in one record of train", "warn", whole=leakage),
    "group_overlap": Check("a group (data.cut.group_by) in train and in another split", "refuse", whole=group_overlap),
    "repeated_ids": Check("an id that two records of a file share", "warn", whole=repeated_ids),
}  # fmt: skip
