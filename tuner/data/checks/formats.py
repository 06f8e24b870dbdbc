"""Checks of consistency over a whole split: system prompts, answer formats, languages, columns that nothing uses.

A habit of nearly all records makes the exceptions findings; where records differ as a rule, nothing is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from tuner.data.findings import Check, Finding, finding, remark
from tuner.data.language import LANGUAGES
from tuner.data.measure import Context
from tuner.data.personal import masked_quote
from tuner.data.record import Record
from tuner.data.shingles import words

HABIT = 0.9  # share of a split from which the rest are exceptions
ENOUGH = 20  # records from which a habit can be told
KNOWN_COLUMNS = frozenset({"id", "source", "as_of", "category", "domain", "topic"})


def system_prompts(context: Context) -> Iterator[Finding]:
    """A system prompt that few records have, or lack, where nearly all of the split share one."""
    for split, among in context.ranges.items():
        systems = Counter(_system(context.records[i]) for i in among)
        if len(among) < ENOUGH or len(systems) < 2:
            continue
        common, count = systems.most_common(1)[0]
        if count < HABIT * len(among):
            if len(systems) <= 20:
                yield remark(context.file(split), "SYSTEM_PROMPTS", "system",
                             f"{len(systems)} system prompts, the commonest on {count / len(among):.0%} of {split}",
                             "one system prompt, or as many as production uses", "make them one, unless production sends them all", split)  # fmt: skip
            continue
        for i in among:
            own = _system(context.records[i])
            if own != common:
                yield finding(context.records[i], "SYSTEM_PROMPT", "system", "no system prompt" if own is None else masked_quote(own, 60),
                              f"{'none' if common is None else masked_quote(common, 60)}, as on {count} of {len(among)} records",
                              "use the same system prompt")  # fmt: skip


def _system(record: Record) -> str | None:
    return record.messages[0].content if record.messages[0].role == "system" else None


def answer_formats(context: Context) -> Iterator[Finding]:
    """Prose where nearly all answers of the split are JSON, and JSON where nearly none are and the prompt does not ask for it."""
    if context.task != "text":
        return
    for among in context.ranges.values():
        if len(among) < ENOUGH:
            continue
        are_json = np.fromiter((_looks_like_json(context.records[i].completion) for i in among), dtype=bool, count=len(among))
        share = float(are_json.mean())
        if share in (0.0, 1.0) or 1 - HABIT < share < HABIT:
            continue
        for place in np.flatnonzero(are_json != (share >= HABIT)).tolist():
            record = context.records[among[place]]
            if share < HABIT and "json" in record.question.casefold():
                continue
            yield finding(record, "PROSE" if share >= HABIT else "JSON", "completion", masked_quote(record.completion, 60),
                          f"{'JSON' if share >= HABIT else 'prose'}, as on {max(share, 1 - share):.0%} of the split", "use one format of answer")  # fmt: skip


def _looks_like_json(text: str) -> bool:
    inner = text.strip()
    return len(inner) > 1 and (inner[0] + inner[-1]) in ("{}", "[]") and ((inner[0] == "{" and (inner == "{}" or '"' in inner)) or inner[1:2] in '{["')


def token_tags(context: Context) -> Iterator[Finding]:
    """A completion whose tags do not number the words of its prompt, where nearly all of the split have one tag a word."""
    for split, among in context.ranges.items():
        if len(among) < ENOUGH:
            continue
        asked = np.fromiter((len(context.records[i].question.split()) for i in among), dtype=np.int64, count=len(among))
        tagged = np.fromiter((len(context.records[i].completion.split()) for i in among), dtype=np.int64, count=len(among))
        longer = asked > 2
        if longer.sum() < ENOUGH or float((asked == tagged)[longer].mean()) < HABIT or _has_sentences(context, among):
            continue
        for place in np.flatnonzero(asked != tagged).tolist():
            yield finding(context.records[among[place]], "MISALIGNED", "completion", f"{tagged[place]} tags for {asked[place]} words",
                          f"one tag a word, as on nearly all records of {split}", "mend the tags, or delete the record")  # fmt: skip


def _has_sentences(context: Context, among: range) -> bool:
    """Whether completions are words of their own rather than tags out of a small set."""
    step = max(len(among) // 2000, 1)
    found = [w for i in among[::step] for w in context.records[i].completion.split()]
    return len(set(found)) > max(200, len(found) // 20)


def languages(context: Context) -> Iterator[Finding]:
    """A record in another language than the recipe expects, or than nearly all of its split where the recipe expects none."""
    wanted = {LANGUAGES.index(code) for code in context.scene.spec.languages if code in LANGUAGES}
    for split, among in context.ranges.items():
        codes = context.measures.language[among.start : among.stop]
        told = Counter(codes[codes > 0].tolist())
        if not told:
            continue
        common, count = told.most_common(1)[0]
        expected = wanted or ({common} if count >= HABIT * told.total() else set())
        if not expected and told.total() >= ENOUGH:
            shares = ", ".join(f"{LANGUAGES[code]} {n / told.total():.0%}" for code, n in told.most_common(6))
            yield remark(context.file(split), "LANGUAGES", "messages", f"{split} is in {shares}", "data.languages",
                         "name the languages you expect in data.languages",
                         split)  # fmt: skip
        names = ", ".join(LANGUAGES[code] for code in sorted(expected))
        for place in np.flatnonzero((codes > 0) & ~np.isin(codes, list(expected))).tolist() if expected else ():
            record = context.records[among[place]]
            if _could_be_english(record) and any(LANGUAGES[code] == "en" for code in expected):
                continue
            yield finding(record, "LANGUAGE", "messages", f"{LANGUAGES[int(codes[place])]}: {masked_quote(record.question, 60)}", names,
                          "delete it, translate it, or add the language to data.languages")  # fmt: skip


_ENGLISH_WORDS = (
    "the a an of to in and or is are was were be what which who how why when where do does did can could would should will i you he she it we they me my "
    "your his her its our their this that these those for with from on at by as not no if give list name tell find some any have has had"
)
_ENGLISH = frozenset(_ENGLISH_WORDS.split())


def _could_be_english(record: Record) -> bool:
    """A fifth of the words of its question are English function words: a sentence about pizzerias in Rio is not Portuguese."""
    found = words(record.question)[:100]
    return len(found) > 0 and sum(w in _ENGLISH for w in found) >= 0.2 * len(found)


def unused_columns(context: Context) -> Iterator[Finding]:
    """Columns of a file that no part of the recipe uses: what they hold is not trained on."""
    spec = context.scene.spec
    known = KNOWN_COLUMNS | ({spec.cut.group_by} if spec.cut.group_by else set())
    for split, among in context.ranges.items():
        unused = Counter(name for i in among for name, value in context.records[i].extra.items() if value is not None)
        for name, count in unused.items():
            if name not in known:
                yield remark(context.file(split), "UNUSED", masked_quote(name, 40),
                             f"the column {masked_quote(name, 40)} has a value on {count} of {len(among)} records of {split}",
                             "columns the recipe uses", "nothing is needed if the model does not need it; else put it into the prompt", split)  # fmt: skip


FORMATS: dict[str, Check] = {
    "system_prompts": Check("another system prompt than nearly all records of the split", "warn", whole=system_prompts),
    "answer_formats": Check("JSON among prose answers, or prose among JSON", "warn", whole=answer_formats),
    "token_tags": Check("another number of tags than words, where nearly all records of the split have one tag a word", "refuse", whole=token_tags),
    "languages": Check("another language than data.languages, or than nearly all records of the split", "warn", whole=languages),
    "unused_columns": Check("columns that nothing uses", "warn", whole=unused_columns, actions=("warn", "off")),
}
