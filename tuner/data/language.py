"""Which language and script a text is in: py3langid over forty languages, offline, and Unicode ranges for scripts.

It refuses to guess: text of fewer than twenty letters, or between two languages, has no language.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from functools import lru_cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from tuner.data.record import Record

LANGUAGES: tuple[str, ...] = (
    "", "ar", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "he", "hi", "hr", "hu", "id", "it", "ja", "ko", "lt", "lv",
    "nl", "no", "pl", "pt", "ro", "ru", "sk", "sl", "sr", "sv", "sw", "ta", "th", "tr", "uk", "ur", "vi", "zh",
)  # fmt: skip
LEAST_LETTERS = 20
LEAST_SHARE = 0.5  # of the probability. English alpaca answers (3,518): 14 called another language, 204 undecided; at 0.7 9 and 285, at 0.3 19 and 140
_READ = 200  # characters that are looked at: 400 decide no more of them

_CODE = {name: code for code, name in enumerate(LANGUAGES)}
_NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|https?://\S+|<[^<>\n]{1,200}>|\S+@\S+", re.DOTALL)
_SYLLABLES = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
_LETTER = re.compile(r"[^\W\d_]")

_STARTS: tuple[tuple[int, str], ...] = (
    (0x0000, "Latin"), (0x0370, "Greek"), (0x0400, "Cyrillic"), (0x0530, "Armenian"), (0x0590, "Hebrew"), (0x0600, "Arabic"), (0x0700, "Other"),
    (0x0750, "Arabic"), (0x0780, "Other"), (0x08A0, "Arabic"), (0x0900, "Devanagari"), (0x0980, "Bengali"), (0x0A00, "Gurmukhi"), (0x0A80, "Gujarati"),
    (0x0B00, "Oriya"), (0x0B80, "Tamil"), (0x0C00, "Telugu"), (0x0C80, "Kannada"), (0x0D00, "Malayalam"), (0x0D80, "Sinhala"), (0x0E00, "Thai"),
    (0x0E80, "Lao"), (0x0F00, "Tibetan"), (0x1000, "Myanmar"), (0x10A0, "Georgian"), (0x1100, "Hangul"), (0x1200, "Ethiopic"), (0x13A0, "Other"),
    (0x1780, "Khmer"), (0x1800, "Other"), (0x1C80, "Cyrillic"), (0x1C90, "Georgian"), (0x1CC0, "Other"), (0x1D00, "Latin"), (0x1F00, "Greek"),
    (0x2000, "Other"), (0x2C60, "Latin"), (0x2C80, "Other"), (0x2DE0, "Cyrillic"), (0x2E00, "Other"), (0x3040, "Kana"), (0x3100, "Other"), (0x3130, "Hangul"),
    (0x3190, "Other"), (0x31F0, "Kana"), (0x3200, "Other"), (0x3400, "Han"), (0xA000, "Other"), (0xA640, "Cyrillic"), (0xA6A0, "Other"), (0xA720, "Latin"),
    (0xA800, "Other"), (0xAC00, "Hangul"), (0xD800, "Other"), (0xF900, "Han"), (0xFB00, "Latin"), (0xFB1D, "Hebrew"), (0xFB50, "Arabic"), (0xFE00, "Other"),
    (0xFE70, "Arabic"), (0xFF00, "Latin"), (0xFF66, "Kana"), (0xFFA0, "Hangul"), (0xFFE0, "Other"), (0x20000, "Han"), (0x323B0, "Other"),
)  # fmt: skip
_FIRST = [first for first, _ in _STARTS]


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    """The model that py3langid ships (4.6 MB, half a second to unpack), restricted to LANGUAGES."""
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([name for name in LANGUAGES if name])
    return identifier


def language_of(text: str) -> tuple[str, float]:
    """ISO 639-1 code of the likeliest language of LANGUAGES, and its probability; ("", 0.0) for too few letters of prose."""
    if "`" in text or "://" in text or "<" in text or "@" in text:
        text = _NOT_PROSE.sub(" ", text[: 4 * _READ])
    text = text[:_READ]
    if len(_LETTER.findall(text, 0, 60)) < LEAST_LETTERS and len(_LETTER.findall(text)) < _least_letters(text):
        return "", 0.0
    name, share = _identifier().classify(text)
    return name, share


def _least_letters(text: str) -> int:
    """Twenty; eight where a sign is a syllable or a word."""
    return LEAST_LETTERS if text.isascii() or not _SYLLABLES.search(text) else 8


def language_code(record: Record) -> int:
    """Index into LANGUAGES of what the record is answered in; where the answer is short, undecided or JSON, of what it asks; else 0."""
    for text in (record.messages[-1].content, record.question):
        if text[:1] not in ("{", "["):
            name, share = language_of(text)
            if share >= LEAST_SHARE:
                return _CODE[name]
    return 0


def script_of(char: str) -> str:
    """The script of a letter, by its code point."""
    return _STARTS[bisect_right(_FIRST, ord(char)) - 1][1]


def script_shares(text: str) -> dict[str, float]:
    """Share of each script among the letters of `text`, largest first; empty without a letter."""
    letters = _LETTER.findall(text)
    if not letters:
        return {}
    if text.isascii():
        return {"Latin": 1.0}
    counts: Counter[str] = Counter()
    for char, times in Counter(letters).items():
        counts[script_of(char)] += times
    return {script: n / len(letters) for script, n in counts.most_common()}
