"""Metrics of answers about a retrieved context, without a judge: is every sentence grounded in it, and is it used at all?

They see what came from nowhere: numbers, names and words that neither context nor question holds. They do not see what was mixed up, so the
word is grounded, never faithful. Measured on the 434 items of dolly-15k's closed_qa, information_extraction and summarization in a 3,000-record
sample, human answers, 2026-11: of sentences written about their own context 61 % are grounded (people add what they know), about another item's
1 % (AUC by answer .98; context_use .97); one number changed to one that is nowhere is seen in 70 % of answers, one name exchanged for another
of the same context in 1 %.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from tuner.evaluate.metric_numeric import numbers
from tuner.evaluate.metric_text import words
from tuner.evaluate.metric_types import Answer
from tuner.evaluate.spec import MetricOptions

SUPPORTED_SHARE = 0.5  # of a sentence's content words
_STEM = 5  # characters: "painted", "painting" and "painter" are one word
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[。！？])")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+")
_NAME = re.compile(r"[^\W\d_][\w]*(?:['’-]\w+)*")
_FUNCTION_WORDS = """
a about above after again all also am an and any are as at be because been before being below between both but by can could did do does doing down
during each either etc few for from further had has have having he her here hers him his how i if in into is it its itself just me more most my no nor
not of off on once one only or other our out over own per same shall she should since so some such than that the their them then there these they this
those through thus to too under until up upon us very was we were what when where which while who whom why will with within without would yes you your
"""
_STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
_COUNT = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty
"""
_SPELLED = {word: Decimal(i) for i, word in enumerate(_COUNT.split())}


@dataclass(frozen=True)
class Source:
    """What an answer may draw on, once read: numbers, and the stems of words."""

    numbers: frozenset[Decimal]
    stems: frozenset[str]


def has_context(answer: Answer) -> bool:
    """Can the item be graded: was something retrieved for it?"""
    return bool((answer.context or "").strip())


def context_of(question: str, extra: Mapping[str, object], options: MetricOptions) -> tuple[str, str] | None:
    """An item's context and the question without it; None where it has none.

    Read from the record's column `context_field`, else from between the texts `context_start` and `context_end` of the question (to its end where the
    latter is None or missing).
    """
    field, start, end = options.context_field, options.context_start, options.context_end
    if field is not None:
        value = extra.get(field)
        if not isinstance(value, str) or not value.strip():
            return None
        return value, question.replace(value, " ")
    if start is None or start not in question:
        return None
    before, _, rest = question.partition(start)
    inside, _, after = rest.partition(end) if end else (rest, "", "")
    return (inside, f"{before}\n{after}") if inside.strip() else None


def sentences(text: str) -> list[str]:
    """Sentences and lines that hold a word, without list marks. Abbreviations end a sentence here too, which splits it and loses nothing."""
    lines = (_BULLET.sub("", line) for line in text.splitlines())
    return [part.strip() for line in lines for part in _SENTENCE.split(line) if words(part)]


def grounded_sentences(answer: Answer) -> tuple[float, float]:
    """Sentences of the answer that context or question ground, and all of them; an empty answer counts as one that they do not."""
    source = _source(answer)
    said = sentences(answer.text or "")
    return float(sum(not _ungrounded(s, source) for s in said)), float(max(len(said), 1))


def ungrounded(answer: Answer) -> list[tuple[str, list[str]]]:
    """Each sentence that is not grounded, with what of it came from nowhere: what a report marks."""
    source = _source(answer)
    found = ((s, _ungrounded(s, source)) for s in sentences(answer.text or ""))
    return [(s, why) for s, why in found if why]


def context_use(answer: Answer) -> tuple[float, float]:
    """Of the answer's content words that the question does not hold: how many the context does, and how many there are.

    An answer that says nothing beyond the question adds (0, 0); an empty one (0, 1).
    """
    asked, given = _stems(answer.question or ""), _stems(answer.context or "")
    beyond = _content(answer.text or "").keys() - asked
    return float(len(beyond & given)), float(len(beyond) if (answer.text or "").strip() else 1)


def _source(answer: Answer) -> Source:
    text = f"{answer.context or ''}\n{answer.question or ''}"
    return Source(frozenset(_amounts(text)), frozenset(_stems(text)))


def _ungrounded(sentence: str, source: Source) -> list[str]:
    """Its numbers and names that the source lacks; if fewer than half of its content words are there, those that are not."""
    amounts = [str(n) for n in sorted(_amounts(sentence, spelled=False) - source.numbers)]
    names = [n for n in _names(sentence) if not _stems(n) <= source.stems]
    content = _content(sentence)
    missing = [word for stem, word in content.items() if stem not in source.stems]
    lost = missing if len(missing) > (1 - SUPPORTED_SHARE) * len(content) else []
    return list(dict.fromkeys([*amounts, *names, *lost]))


def _amounts(text: str, spelled: bool = True) -> set[Decimal]:
    """Its numbers without sign (a dash is often no minus), and with `spelled` the small ones written as words."""
    found = {abs(n) for n, _ in numbers(text)}
    return found | {_SPELLED[w] for w in words(text) if w in _SPELLED} if spelled else found


def _names(sentence: str) -> list[str]:
    """Words with a capital or a digit inside the sentence: its first word has a capital anyway."""
    found = list(_NAME.finditer(sentence))
    inside = (m[0] for m in found if (m.start() > 0 and m[0][0].isupper()) or any(c.isdigit() for c in m[0]))
    return [name for name in inside if name.lower() not in _STOP_WORDS]


def _content(text: str) -> dict[str, str]:
    """Words that carry content, by stem: no stop words, no single Latin letter, no bare number."""
    return {w[:_STEM]: w for w in words(text) if w not in _STOP_WORDS and not w.isdecimal() and (len(w) > 1 or not w.isascii())}


def _stems(text: str) -> set[str]:
    """Stems of all words: where a word of the answer may come from."""
    return {w[:_STEM] for w in words(text)}
