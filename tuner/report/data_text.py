"""Record text as the data page shows it: personal data masked first, hidden characters visible, the part that matters marked.

It refuses to cut before it has masked: half a card number is not recognised as one, and would be shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from tuner.data.personal import find, hide
from tuner.safe_text import visible

MOST_READ = 200_000  # characters of one text that are looked at
MARGIN = 400  # of a longer text, the characters before the cut that are not shown: a value may be cut in two there
MOST_TOKENS = 600  # words of the differing middle of two texts that are compared one by one
LONG_WORD = 6  # letters from which a word outside a quote is taken to be the record's, where it is one of its values
CONTEXT = 60  # characters kept on either side of a difference

_TOKEN = re.compile(r"\w+|\s+|[^\w\s]+")
_WORD = re.compile(r"\w{3,}")
_CUT_WORD = re.compile(r"[\s\d().+/-]*[^\s']*…(?=')")  # the half word at which `quoted` cut a text, and digits before it
_LONG_QUOTE = re.compile(r"'.{12,}'", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


class Segment(NamedTuple):
    """A part of a text, and whether it is the part to look at."""

    text: str
    marked: bool = False


def seen(text: str) -> str:
    """The text as it may be shown: every piece of personal data masked, then every hidden character written out; line ends stay."""
    masked = hide(text[:MOST_READ]) if len(text) <= MOST_READ else hide(text[:MOST_READ])[:-MARGIN]
    return "\n".join(visible(line) for line in masked.split("\n"))


def values_in(texts: Iterable[str]) -> list[str]:
    """The letters and digits of every piece of personal data in the texts: what no excerpt of them may show."""
    return ["".join(c for c in text[hit.start : hit.end].casefold() if c.isalnum()) for text in texts for hit in find(text[:MOST_READ])]


def said(text: str, values: Sequence[str] = (), places: Sequence[str] = (), known: bool = True) -> str:
    """A finding's own words, which may quote a record in parts: without quoted half words, and without quoted words of `values`.

    `places` (file names with lines) stay as they are. Where the record is not `known`, its values are not either: then no long quote
    keeps its first or last word, at which it may have been cut.
    """
    masked = _CUT_WORD.sub(" …", text)
    masked = hide(masked if known else _LONG_QUOTE.sub(_inner_words, masked))
    if values:
        kept = sorted({p for p in places if p in masked}, key=len, reverse=True)
        first, last = masked.find("'"), masked.rfind("'")
        spans = [m.span() for place in kept for m in re.finditer(re.escape(place), masked)]

        def hidden(match: re.Match[str]) -> str:
            spoken = any(low <= match.start() < high for low, high in spans) or not (first <= match.start() < last or len(match[0]) >= LONG_WORD)
            return match[0] if spoken or not any(match[0].casefold() in v for v in values) else "…"

        masked = _WORD.sub(hidden, masked)
    return visible(masked)


def _inner_words(quote: re.Match[str]) -> str:
    words = re.sub(r"^[\d\s().+/-]*\S+\s|[\s\d().+/-]*\s\S+$", " … ", quote[0][1:-1])
    return f"'{words.strip()}'"


def excerpt(text: str, limit: int, found: str = "", escapes: bool = False) -> list[Segment]:
    """At most about `limit` characters of a text from `seen`, about the first place that `found` quotes; all such places are marked."""
    spans = [m.span() for m in _ESCAPE.finditer(text)] if escapes else _quoted_spans(text, found)
    start = 0
    if spans and spans[0][0] > limit * 2 // 3:
        start = max(0, spans[0][0] - limit // 3)
    stop = min(len(text), start + limit)
    parts = [Segment("… ")] if start else []
    at = start
    for low, high in spans:
        if low < at or low >= stop:
            continue
        parts += [Segment(text[at:low]), Segment(text[low : min(high, stop)], True)]
        at = min(high, stop)
    parts.append(Segment(text[at:stop]))
    if stop < len(text):
        parts.append(Segment(f"… ({len(text):,} characters in all)"))
    return [p for p in parts if p.text]


def _quoted_spans(text: str, found: str) -> list[tuple[int, int]]:
    """Where in the text stands what `found` quotes, or one of the masks it lists; the longest quote that occurs."""
    ticks = [i for i, c in enumerate(found) if c == "'"][:10]
    quotes = [found[a + 1 : b].strip(" …") for n, a in enumerate(ticks) for b in ticks[n + 1 :]]
    masks = [part.strip() for part in found.partition(": ")[2].split(", ") or []] + [part.strip() for part in found.split(", ")]
    for wanted in [*sorted(quotes, key=len, reverse=True), *(m for m in masks if "…" in m)]:
        if len(wanted) >= 3 and len(wanted) < len(text):
            spans = [m.span() for m in re.finditer(re.escape(wanted), text)]
            if spans:
                return spans[:20]
    return []


def differing(one: str, other: str, limit: int) -> tuple[list[Segment], list[Segment]]:
    """Two texts from `seen` with the words that differ marked; what both have between two differences is shortened."""
    ours, theirs = _TOKEN.findall(one), _TOKEN.findall(other)
    head = _common(ours, theirs)
    tail = _common(ours[head:][::-1], theirs[head:][::-1])
    middle, counter = ours[head : len(ours) - tail], theirs[head : len(theirs) - tail]
    left, right = [Segment("".join(ours[:head]))], [Segment("".join(theirs[:head]))]
    if max(len(middle), len(counter)) > MOST_TOKENS:
        steps = [("replace", 0, len(middle), 0, len(counter))]
    else:
        steps = list(SequenceMatcher(None, middle, counter, autojunk=False).get_opcodes())
    for kind, a, b, c, d in steps:
        left.append(Segment("".join(middle[a:b]), kind != "equal"))
        right.append(Segment("".join(counter[c:d]), kind != "equal"))
    end = Segment("".join(ours[len(ours) - tail :]))
    return _shortened([*left, end], limit), _shortened([*right, end], limit)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _shortened(segments: list[Segment], limit: int) -> list[Segment]:
    """Where all is longer than `limit`: of what is equal only what stands beside a difference, and of all that the first `limit` characters."""
    segments = [s for s in segments if s.text]
    if sum(len(s.text) for s in segments) > limit:
        segments = [s if s.marked else Segment(_near(s.text, n == 0, n == len(segments) - 1)) for n, s in enumerate(segments)]
    parts: list[Segment] = []
    left = limit
    for segment in segments:
        if left <= 0:
            return [*parts, Segment("…")]
        parts.append(Segment(segment.text[:left], segment.marked))
        left -= len(segment.text)
    return parts if left >= 0 else [*parts, Segment("…")]


def _near(text: str, first: bool, last: bool) -> str:
    if len(text) <= 2 * CONTEXT + 3:
        return text
    before, after = "" if first else text[:CONTEXT], "" if last else text[-CONTEXT:]
    return f"{before} … {after}" if before or after else text
