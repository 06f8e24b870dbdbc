"""Checks of scripts: letters of two alphabets in one word, spoofed or typed on two keyboards."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tuner.data.findings import Check, Finding, Scene, finding
from tuner.data.language import script_of
from tuner.data.personal import masked_quote
from tuner.data.record import Record

_CYRILLIC_TWINS = "асеорхуіјѕһԁԛԝАВЕЅІЈКМНОРСТХУҮЗ"  # look like Latin letters
_GREEK_TWINS = "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧνοϲι"
_LATIN_TWINS = "aceopxyijshdqwABCEHIJKMOPSTXYZNv"
_MIXED = re.compile(r"[A-Za-z\u00c0-\u024f][\u0370-\u03ff\u0400-\u04ff]|[\u0370-\u03ff\u0400-\u04ff][A-Za-z\u00c0-\u024f]")
_WORD = re.compile(r"[A-Za-z\u00c0-\u024f\u0370-\u03ff\u0400-\u04ff]+")


def mixed_scripts(record: Record, scene: Scene) -> Iterator[Finding]:
    """A word that looks like one script and holds letters of another (`pаypal` with a Cyrillic а): spoofed, or typed on two keyboards."""
    for index, message in enumerate(record.messages):
        text = message.content
        if text.isascii() or not _MIXED.search(text):
            continue
        words = [w for w in dict.fromkeys(_WORD.findall(text)) if _MIXED.search(w) and _is_disguised(w)]
        if words:
            strangers = ", ".join(f"U+{ord(c):04X}" for c in _minority(words[0])[:3])
            yield finding(record, "HOMOGLYPH", f"messages[{index}]", f"{masked_quote(words[0], 40)} with {strangers} ({len(words)} in all)",
                          "words written in one script", f"retype the word in line {record.line}")  # fmt: skip


def _minority(word: str) -> str:
    """The letters of the scarcer script."""
    latin = "".join(c for c in word if script_of(c) == "Latin")
    other = "".join(c for c in word if script_of(c) != "Latin")
    return latin if len(latin) < len(other) else other


def _is_disguised(word: str) -> bool:
    """Three letters or more, and every letter of the scarcer script has a twin in the other: `Δx`, `μm` and `SMSка` are not disguised."""
    minority = _minority(word)
    if len(word) < 3:
        return False
    if script_of(minority[0]) == "Latin":
        return all(c in _LATIN_TWINS for c in minority) and any(script_of(c) == "Cyrillic" for c in word)
    return all(c in _CYRILLIC_TWINS or c in _GREEK_TWINS for c in minority)


LANGUAGE: dict[str, Check] = {
    "mixed_scripts": Check("letters of two scripts in one word", "warn", each=mixed_scripts),
}
