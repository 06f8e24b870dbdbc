"""Checks of a record's characters: blank turns, padding, broken encodings, invisible characters, spelt control tokens.

They judge how text is written, never what it says; the repaired text is shown, the data is never changed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from html import unescape
from html.entities import html5

from ftfy import fix_encoding
from ftfy.badness import is_bad

from tuner.data.findings import Check, Finding, Scene, finding
from tuner.data.parse import decode
from tuner.data.personal import masked_quote
from tuner.data.record import Record

_UNSEEN = {"Cc", "Cf", "Zs", "Zl", "Zp"}
_BLANK_LETTERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufe0e\ufe0f"  # letters and marks that draw nothing

_ENTITY = re.compile(r"(?<![=(,])(?<![=(,] )&(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_ABOUT_MARKUP = re.compile(r"html|xml|entit|escap|encod|decod|web ?page|website|markup|\bsvg|\bphp|\brss\b|javascript|\bcss\b|\burl")

_TWO_BEYOND_ASCII = re.compile("[^\x00-\x7f]{2}|[\xc2\xc3] ")  # what any mojibake holds: one letter became two or three

_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_STACKED = re.compile("[\u0300-\u036f]{5,}")  # Vietnamese and IPA stack three marks at most
_SUSPECTS = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff9-\uffff\U000e0000-\U000e01ef]"
)
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_JOINING = re.compile("[\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u17ff\u1800-\u18af\ufb50-\ufdff\ufe70-\ufefc]")  # scripts that ZWJ and ZWNJ shape
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u0f00-\u0fff]")  # scripts without spaces: ZWSP marks where a line may break

CONTROL, BIDI, ZERO_WIDTH, UNDECODED, TAG = "CONTROL", "BIDI", "ZERO_WIDTH", "UNDECODED", "TAG"


def is_blank(text: str) -> bool:
    """No visible character: white space, control, zero-width and blank filler characters alone."""
    return all(c in _BLANK_LETTERS or unicodedata.category(c) in _UNSEEN for c in text)


def empty_completion(record: Record, scene: Scene) -> Iterator[Finding]:
    """An assistant turn without a visible character teaches the model to say nothing."""
    last = len(record.messages) - 1
    for index, message in enumerate(record.messages):
        if message.role == "assistant" and is_blank(message.text):
            yield finding(record, "EMPTY", "completion" if index == last else f"messages[{index}]", masked_quote(message.text),
                          "text with at least one visible character", f"delete line {record.line}, or set data.checks.empty_completion: drop")  # fmt: skip


def empty_prompt(record: Record, scene: Scene) -> Iterator[Finding]:
    """A user turn without a visible character."""
    for index, message in enumerate(record.messages):
        if message.role == "user" and is_blank(message.content):
            yield finding(record, "EMPTY", f"messages[{index}]", masked_quote(message.content), "text with at least one visible character",
                          f"delete line {record.line}, or set data.checks.empty_prompt: drop")  # fmt: skip


def json_completion(record: Record, scene: Scene) -> Iterator[Finding]:
    """For data.task json: a completion that is not one JSON object."""
    if scene.task != "json":
        return
    try:
        value = decode(record.completion)
    except ValueError:  # broken JSON, or what parsers let through: repeated keys, NaN, endless numbers
        value = None
    if not isinstance(value, dict):
        yield finding(record, "NOT_JSON", "completion", masked_quote(record.completion), "one JSON object", f"mend or delete line {record.line}")


def padded_label(record: Record, scene: Scene) -> Iterator[Finding]:
    """For data.task label: white space around a label makes it another label."""
    if scene.task == "label":
        label = record.completion.strip()
        if label and label != record.completion:
            yield finding(record, "PADDED", "completion", masked_quote(record.completion), masked_quote(label), "remove the white space")


def padded_completion(record: Record, scene: Scene) -> Iterator[Finding]:
    """For data.task text: white space before the answer, or after it more than one final newline."""
    text = record.messages[-1].content
    if scene.task != "text" or (not text[:1].isspace() and not text[-1:].isspace()):
        return
    answer = text.strip()
    if answer and text not in (answer, answer + "\n"):
        start = text[:1].isspace()
        shown = masked_quote(text, 40) if start else masked_quote(text[-40:], 44)
        yield finding(record, "PADDED", "completion", f"white space at the {'start' if start else 'end'}: {shown}",
                      "an answer that starts and ends with a visible character", "remove the white space")  # fmt: skip


def control_tokens(record: Record, scene: Scene) -> Iterator[Finding]:
    """Text that spells a special token of the tokenizer. It is encoded as plain text and never becomes one."""
    if not scene.control_texts:
        return
    spelling = _any_of(scene.control_texts)
    for index, message in enumerate(record.messages):
        spelt = sorted(set(spelling.findall(message.content)))
        if spelt:
            yield finding(record, "CONTROL_TEXT", f"messages[{index}]", ", ".join(masked_quote(t) for t in spelt[:3]),
                          "text that spells no special token", "nothing is needed: it stays text; delete it if it came by accident")  # fmt: skip


@lru_cache(maxsize=8)
def _any_of(texts: frozenset[str]) -> re.Pattern[str]:
    """A pattern for any of `texts`, longest first; a failed place costs its matching letters, not the number of texts (Gemma has 6,000)."""
    return re.compile(_branches(texts - {""}))


def _branches(texts: Iterable[str]) -> str:
    tails: dict[str, list[str]] = {}
    for text in texts:
        if text:
            tails.setdefault(text[0], []).append(text[1:])
    branches = [re.escape(head) + _branches(rest) for head, rest in sorted(tails.items())]
    if "" in texts:
        return f"(?:{'|'.join(branches)})?" if branches else ""
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def html_entities(record: Record, scene: Scene) -> Iterator[Finding]:
    """`&amp;` and its like where no HTML is taught: text that was scraped and never unescaped."""
    for index, message in enumerate(record.messages):
        text = message.content
        if "&" not in text or ";" not in text:
            continue
        entities = [m[0] for m in _ENTITY.finditer(text) if m[1][0] == "#" or f"{m[1]};" in html5]
        if entities and not _holds_code(text) and not any(_ABOUT_MARKUP.search(m.content.lower()) for m in record.prompt):
            names = list(dict.fromkeys(entities))[:3]
            yield finding(record, "ENTITY", f"messages[{index}]", f"{', '.join(masked_quote(e, 20) for e in names)} ({len(entities)} in all)",
                          ", ".join(masked_quote(unescape(e), 20) for e in names), f"unescape line {record.line} with html.unescape")  # fmt: skip


def _holds_code(text: str) -> bool:
    return "```" in text or "</" in text or "#include" in text or "&&" in text


def mojibake(record: Record, scene: Scene) -> Iterator[Finding]:
    """Text decoded with the wrong encoding (`â€™` for `’`): judged by ftfy, and only where ftfy can restore it."""
    for index, message in enumerate(record.messages):
        text = message.content
        if not text.isascii() and _TWO_BEYOND_ASCII.search(text) and is_bad(text):
            mended = fix_encoding(text)
            if mended != text:
                at = next((i for i, (a, b) in enumerate(zip(text, mended, strict=False)) if a != b), 0)
                start = max(at - 15, 0)
                yield finding(record, "MOJIBAKE", f"messages[{index}]", masked_quote(text[start : at + 30], 50), masked_quote(mended[start : at + 25], 50),
                              f"decode the file as UTF-8, or mend line {record.line} with ftfy.fix_encoding")  # fmt: skip


def hidden_characters(record: Record, scene: Scene) -> Iterator[Finding]:
    """Characters a reader cannot see and a tokenizer does: controls, bidi overrides, zero-width, tags, U+FFFD, piled-up marks."""
    for index, message in enumerate(record.messages):
        text = message.content
        if text.isascii() and (text.isprintable() or not _CONTROLS.search(text)):
            continue
        places: dict[str, list[int]] = {}
        for match in _SUSPECTS.finditer(text):
            code = _hidden(text, match.start())
            if code:
                places.setdefault(code, []).append(match.start())
        for code, found_at in places.items():
            yield finding(record, code, f"messages[{index}]", _listed(text, found_at), "text that a reader sees whole", f"delete them from line {record.line}")
        pile = _STACKED.search(text)
        if pile:
            yield finding(record, "STACKED_MARKS", f"messages[{index}]", f"{len(pile[0])} combining marks on one letter, at character {pile.start()}",
                          "at most four combining marks on a letter", f"delete them from line {record.line}")  # fmt: skip


def _listed(text: str, places: list[int]) -> str:
    kinds = Counter(text[i] for i in places)
    names = ", ".join(f"{n} x U+{ord(c):04X}" for c, n in kinds.most_common(3))
    return f"{names}, first in {masked_quote(text[max(places[0] - 12, 0) : places[0] + 13], 60)}"


def _hidden(text: str, at: int) -> str:
    """The code under which the character at `at` is reported; empty where it does what it is for."""
    char = text[at]
    for low, high, judge in _JUDGES:
        if low <= char <= high:
            return judge(text, at)
    return ZERO_WIDTH


def _neighbours(text: str, at: int) -> str:
    return text[max(at - 2, 0) : at] + text[at + 1 : at + 3]


def _joiner(text: str, at: int) -> str:
    """ZWJ and ZWNJ shape Arabic and Indic letters; ZWJ binds emoji."""
    near = _neighbours(text, at)
    emoji = text[at] == "\u200d" and any(unicodedata.category(c) in {"So", "Sk", "Sm"} for c in near)
    return "" if emoji or _JOINING.search(near) else ZERO_WIDTH


def _direction_mark(text: str, at: int) -> str:
    return "" if _RIGHT_TO_LEFT.search(text, max(at - 100, 0), at + 100) else BIDI


def _line_break(text: str, at: int) -> str:
    return "" if _UNSPACED.search(_neighbours(text, at)) else ZERO_WIDTH


def _selector(text: str, at: int) -> str:
    """A variation selector belongs behind one symbol, digit of a keycap, or ideograph; behind letters or each other they smuggle bytes."""
    before = text[at - 1] if at else " "
    return "" if before in "0123456789\u2139" or unicodedata.category(before) in {"So", "Sm", "Sk", "Po", "Pd", "Lo"} else ZERO_WIDTH


def _tag(text: str, at: int) -> str:
    """Tag characters spell a flag behind U+1F3F4 and nothing else."""
    start = at
    while start and at - start < 16 and "\U000e0020" <= text[start - 1] <= "\U000e007f":
        start -= 1
    return "" if start and text[start - 1] == "\U0001f3f4" else TAG


_JUDGES: tuple[tuple[str, str, Callable[[str, int], str]], ...] = (
    ("\x00", "\x9f", lambda text, at: CONTROL),
    ("\u061c", "\u061c", _direction_mark),
    ("\u200b", "\u200b", _line_break),
    ("\u200c", "\u200d", _joiner),
    ("\u200e", "\u200f", _direction_mark),
    ("\u202a", "\u202e", lambda text, at: BIDI),
    ("\u2066", "\u2069", lambda text, at: BIDI),
    ("\ud800", "\udfff", lambda text, at: UNDECODED),
    ("\ufe00", "\ufe0f", _selector),
    ("\ufff9", "\ufffb", lambda text, at: CONTROL),
    ("\ufffc", "\uffff", lambda text, at: UNDECODED),
    ("\U000e0000", "\U000e00ff", _tag),
    ("\U000e0100", "\U000e01ef", _selector),
)

TEXT: dict[str, Check] = {
    "empty_completion": Check("an assistant turn without visible text", "refuse", each=empty_completion),
    "empty_prompt": Check("a user turn without visible text", "refuse", each=empty_prompt),
    "json_completion": Check("task json: a completion that is not one JSON object", "refuse", each=json_completion),
    "padded_label": Check("task label: white space around a label", "refuse", each=padded_label),
    "padded_completion": Check("task text: white space around an answer", "warn", each=padded_completion),
    "control_tokens": Check("text that spells a special token (it stays text)", "warn", each=control_tokens),
    "html_entities": Check("HTML entities in text that is not about HTML", "warn", each=html_entities),
    "mojibake": Check("text decoded with the wrong encoding", "warn", each=mojibake),
    "hidden_characters": Check("control, bidi, zero-width and undecoded characters", "warn", each=hidden_characters),
}
