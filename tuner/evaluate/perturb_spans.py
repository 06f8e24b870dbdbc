"""What a change of wording must not touch: digits, addresses, code, placeholders, special tokens, copied values and quoted label names.

Such spans are lifted out of the text and put back afterwards. An edit that lost, doubled or made one is no edit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.evaluate.metrics import parse_object

_FIRST, _ROOM = 0xF0000, 65_000  # plane 15: private characters that stand for spans, none of them a letter, a space or a mark
_STAND_IN = re.compile("[\U000f0000-\U000ffffd]")
_SPAN = re.compile(r"```.*?```|`[^`\n]*`|\[[^\[\]]*\]|\{[^{}]*\}|<[^<>\s]{1,40}>|<[|｜][^<>]{0,40}[|｜]>|[\U000f0000-\U000ffffd]", re.DOTALL)
_SPECIAL = re.compile(r"<[|｜][^<>]{0,40}[|｜]>|<[/\w]{1,24}>|\[/?[A-Z_]{2,24}\]|<<[^<>]{1,24}>>")
_TOKEN = re.compile(r"\S+")
_DIGIT = re.compile(r"\d")
_EDGE = ".,;:!?\"'()"
_NAME = re.compile(r"[A-Z][\w'’-]*")
_PARTS = re.compile(r"\s*[,;\n|]\s*")
_PLAIN_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Shielded:
    """`text` with one private character for each protected span, in order."""

    text: str
    spans: tuple[str, ...]

    def restored(self, edited: str) -> str | None:
        """The edited text with its spans back; None where a span got lost or doubled."""
        if not self.spans:
            return None if _STAND_IN.search(edited) else edited
        found = _STAND_IN.findall(edited)
        if len(found) != len(self.spans) or len(set(found)) != len(found):
            return None
        return _STAND_IN.sub(lambda m: self.spans[ord(m[0]) - _FIRST], edited)


def shield(text: str, kept: Iterable[str] = ()) -> Shielded | None:
    """The text without what must not change; None where it holds more such spans than there are private characters."""
    spans = [m.span() for m in _SPAN.finditer(text)] + _tokens(text)
    for value in kept:
        spans += occurrences(text, value)
    if not spans:
        return Shielded(text, ())
    merged = _merged(spans)
    if len(merged) > _ROOM:
        return None
    pieces, at = [], 0
    for number, (start, stop) in enumerate(merged):
        pieces += [text[at:start], chr(_FIRST + number)]
        at = stop
    return Shielded("".join([*pieces, text[at:]]), tuple(text[start:stop] for start, stop in merged))


def _tokens(text: str) -> list[tuple[int, int]]:
    """Words that hold a digit, and addresses, without the punctuation around them."""
    if not (_DIGIT.search(text) or "@" in text or "://" in text or "www." in text):
        return []
    found = []
    for match in _TOKEN.finditer(text):
        word = match[0]
        if _DIGIT.search(word) or "://" in word or word.startswith("www.") or "@" in word[1:-1]:
            bare = word.strip(_EDGE)
            start = match.start() + word.find(bare)
            found.append((start, start + len(bare)))
    return found


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(s for s in spans if s[1] > s[0]):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def occurrences(text: str, value: str) -> list[tuple[int, int]]:
    """Where a value stands in the text, in any case; as a word of its own, or within words when it never stands alone."""
    if not value:
        return []
    low, wanted = text.lower(), value.lower()
    if len(low) != len(text):
        low, wanted = text, value
    if wanted not in low:
        return []
    found = [m.span() for m in re.finditer(re.escape(wanted), low)]
    alone = [(a, b) for a, b in found if not (low[a - 1 : a] + wanted[0]).isalnum() or a == 0]
    alone = [(a, b) for a, b in alone if not (wanted[-1] + low[b : b + 1]).isalnum() or b == len(low)]
    return alone or found


def special_tokens(text: str) -> list[str]:
    """What looks like a token of some chat template."""
    return sorted(_SPECIAL.findall(text)) if "<" in text or "[" in text else []


# --- what of a question the answer depends on ----------------------------------------------------------------------


def copied_values(question: str, references: Sequence[str], labels: Sequence[str] = ()) -> tuple[str, ...]:
    """Parts of the references that the question holds word for word, longest first: the leaves of a JSON answer, a whole short answer or its
    listed parts, and names written with a capital. Where a reference is one of `labels`, only labels in quotes or with `_` or `-` count, since
    `transfer` in a question is an ordinary word.
    """
    if labels:
        return tuple(sorted({form for label in labels for form in _label_forms(label) if form.lower() in question.lower()}, key=lambda v: (-len(v), v)))
    found: set[str] = set()
    low = question.lower()
    for reference in references:
        table = parse_object(reference)
        if table is not None:
            found |= {v for v in leaves(table) if v.lower() in low}
        else:
            found |= {p for p in (reference.strip(), *_PARTS.split(reference.strip())) if len(p) > 2 and len(p) <= len(question) and p.lower() in low}
            said = set(_PLAIN_WORD.findall(reference))
            found |= {n for n in _NAME.findall(question) if n in said and n.lower() not in said}
    return tuple(sorted(found - {""}, key=lambda v: (-len(v), v)))


def _label_forms(label: str) -> tuple[str, ...]:
    quoted = (f'"{label}"', f"'{label}'", f"“{label}”", f"‘{label}’")
    return quoted if label.isalnum() else (label, *quoted)


def leaves(value: Any) -> set[str]:
    """Every leaf of a JSON value as text; the texts of true, false and null are none."""
    found: set[str] = set()
    level = [value]
    while level:
        inner = level.pop()
        if isinstance(inner, Mapping):
            level += inner.values()
        elif isinstance(inner, list):
            level += inner
        elif isinstance(inner, str):
            found.add(inner.strip())
        elif inner is not None and not isinstance(inner, bool):
            found.add(json.dumps(inner))
    return found
