"""Changes within words and signs: slips of the finger, case, missing punctuation, casual spelling, another language's keyboard.

Each takes a text whose protected spans are private characters, and makes heavier changes a superset of lighter ones: words are ranked once by
the random stream and a severity takes a longer beginning of that ranking.
"""

from __future__ import annotations

import math
import random
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm"), ("йцукенгшщзхъ", "фывапролджэ", "ячсмитьбю")
_VOWELS = frozenset("aeiouyаеиоуыэюяё")
_WORD = re.compile(r"[^\W\d_]{4,}")
_ANY_WORD = re.compile(r"[^\W\d_]{3,}")
# Words whose loss or change turns the meaning round, and numbers in words: they stay as they are.
_FIXED = (
    "never none nothing nobody neither without except unless against under over before after above below more less least most only "
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty "
    "forty fifty sixty seventy eighty ninety hundred thousand million billion half double first second third fourth fifth once twice "
    "dont cant wont doesnt didnt isnt cannot nein nicht kein keine jamais rien nunca nada sans ohne"
)
FIXED = frozenset(_FIXED.split())
TYPO_SHARE = (0.12, 0.35, 0.70)  # of the words of four letters and more; at least one
DIACRITIC_SHARE = (0.12, 0.30, 0.60)
ARTICLE_SHARE = (0.0, 0.5, 1.0)  # left out; severity 1 leaves none out


def _neighbours() -> dict[str, str]:
    """Each key with those that touch it: its row's neighbours, and the two keys above and below that a slanted row meets.

    A vowel for a vowel is left out: it makes other words too often (bill, ball).
    """
    found: dict[str, str] = {}
    for rows in _ROWS:
        for y, row in enumerate(rows):
            for x, key in enumerate(row):
                near = [row[i] for i in (x - 1, x + 1) if 0 <= i < len(row)]
                near += [rows[y - 1][i] for i in (x, x + 1) if y > 0 and i < len(rows[y - 1])]
                near += [rows[y + 1][i] for i in (x - 1, x) if y + 1 < len(rows) and 0 <= i < len(rows[y + 1])]
                found[key] = "".join(k for k in near if not {k, key} <= _VOWELS)
    return found


KEYBOARD = _neighbours()


def chosen(matches: Sequence[re.Match[str]], rng: random.Random, share: float, at_least: int = 1) -> list[re.Match[str]]:
    """A share of the matches, in order of place; a larger share of the same stream holds the smaller one."""
    ranked = sorted(range(len(matches)), key=lambda _: rng.random())
    return [matches[i] for i in sorted(ranked[: max(at_least, math.ceil(share * len(matches)))])]


def _replaced(text: str, edits: Sequence[tuple[int, int, str]]) -> str:
    pieces, at = [], 0
    for start, stop, new in edits:
        pieces += [text[at:start], new]
        at = stop
    return "".join([*pieces, text[at:]])


def typos(text: str, rng: random.Random, severity: int) -> str:
    """One slip a word inside it: a neighbouring key, two letters swapped, one left out or doubled. First letters, short words and negations stay."""
    words = [m for m in _WORD.finditer(text) if m[0].lower() not in FIXED and m[0][1].lower() != m[0][1].upper()]
    draws = {m.start(): (rng.random(), rng.random(), rng.random()) for m in words}
    ranked = chosen(words, rng, TYPO_SHARE[severity - 1])
    return _replaced(text, [(*m.span(), _slip(m[0], *draws[m.start()])) for m in ranked])


def _slip(word: str, place: float, sort: float, key: float) -> str:
    """`word` with one slip at a place that is neither its first nor its last letter; the draws are from [0, 1)."""
    at = 1 + int(place * (len(word) - 2))
    kind, letter = int(sort * 4), word[at]
    near = KEYBOARD.get(letter.lower())
    if kind == 0 and near:
        other = near[int(key * len(near))]
        return word[:at] + (other.upper() if letter.isupper() else other) + word[at + 1 :]
    if kind == 1 and at < len(word) - 2 and word[at] != word[at + 1]:
        return word[:at] + word[at + 1] + letter + word[at + 2 :]
    return word[:at] + letter + word[at:] if kind == 2 else word[:at] + word[at + 1 :]


# --- case ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _upper(letter: str) -> str:
    """The capital, where it is one character that has this letter as its small form (ß, ŉ and ſ stay)."""
    big = letter.upper()
    return big if len(big) == 1 and big.lower() == letter else letter


@lru_cache(maxsize=4096)
def _lower(letter: str) -> str:
    small = letter.lower()
    return small if len(small) == 1 and small.upper() == letter else letter


def lowered(text: str) -> str:
    return text.lower() if text.isascii() else "".join(map(_lower, text))


def _raised(text: str) -> str:
    return text.upper() if text.isascii() else "".join(map(_upper, text))


_SENTENCE = re.compile(r"(?:^|(?<=[.!?\n])\s+)[^\W\d_]")
_INITIAL = re.compile(r"(?<![\w'’])[^\W\d_]")


def casing(text: str, _rng: random.Random, severity: int) -> str:
    """1: no capitals (or, where there are none, sentence capitals); 2: Title Case; 3: ALL CAPITALS. Text in capitals goes the other way."""
    capitals = sum(c.isupper() for c in text)
    if capitals > sum(c.islower() for c in text):
        if severity == 1:
            return _INITIAL.sub(lambda m: _lower(m[0]), text)
        small = lowered(text)
        return small if severity == 3 else _INITIAL.sub(lambda m: _upper(m[0]), small)
    if severity == 1:
        return lowered(text) if capitals else _SENTENCE.sub(lambda m: m[0][:-1] + _upper(m[0][-1]), text)
    return _raised(text) if severity == 3 else _INITIAL.sub(lambda m: _upper(m[0]), text)


# --- punctuation ---------------------------------------------------------------------------------------------------

_FINAL = re.compile(r"[.?!…。？！]+(?=\s*$)")
_SIGNS = re.compile(r"""[.,;:!?…"“”'’‘。？！，；：¿¡]""")
_JOINS = re.compile(r"[-–—/()]|[^\S ]+")


def no_punctuation(text: str, _rng: random.Random, severity: int) -> str:
    """1: no sign at the end; 2: no signs, apostrophes among them; 3: brackets, dashes and line breaks become blanks too."""
    if severity == 1:
        return _FINAL.sub("", text)
    bare = _SIGNS.sub("", text)
    return bare if severity == 2 else re.sub(r" {2,}", " ", _JOINS.sub(" ", bare)).strip()


# --- casual --------------------------------------------------------------------------------------------------------

_CASUAL: dict[str, tuple[int, str]] = {
    "i am": (1, "im"), "i'm": (1, "im"), "do not": (1, "dont"), "don't": (1, "dont"), "can't": (1, "cant"), "cannot": (1, "cant"),
    "does not": (1, "doesnt"), "doesn't": (1, "doesnt"), "did not": (1, "didnt"), "didn't": (1, "didnt"), "is not": (1, "isnt"), "isn't": (1, "isnt"),
    "will not": (1, "wont"), "won't": (1, "wont"), "i have not": (1, "i havent"), "haven't": (1, "havent"), "what is": (1, "whats"), "what's": (1, "whats"),
    "that is": (1, "thats"), "that's": (1, "thats"), "i've": (1, "ive"), "where is": (1, "wheres"), "where's": (1, "wheres"), "okay": (1, "ok"),
    "i would like to": (1, "i wanna"), "i'd like to": (1, "i wanna"), "it's": (1, "its"), "how is": (1, "hows"), "who is": (1, "whos"),
    "please": (2, "pls"), "thank you": (2, "thx"), "thanks": (2, "thx"), "because": (2, "cuz"), "you": (2, "u"), "your": (2, "ur"), "you are": (2, "ur"),
    "you're": (2, "ur"), "want to": (2, "wanna"), "going to": (2, "gonna"), "got to": (2, "gotta"), "have to": (2, "gotta"), "give me": (2, "gimme"),
    "let me": (2, "lemme"), "kind of": (2, "kinda"), "yes": (2, "yep"), "i do not know": (2, "dunno"), "i don't know": (2, "dunno"), "though": (2, "tho"),
    "are": (3, "r"), "about": (3, "abt"), "people": (3, "ppl"), "with": (3, "w/"), "really": (3, "rly"), "message": (3, "msg"), "account": (3, "acct"),
    "tomorrow": (3, "tmrw"), "minutes": (3, "mins"), "minute": (3, "min"), "information": (3, "info"), "and": (3, "n"), "could": (3, "cud"),
    "would": (3, "wud"), "should": (3, "shud"), "something": (3, "smth"), "tonight": (3, "tonite"), "through": (3, "thru"),
    "probably": (3, "prolly"), "picture": (3, "pic"), "love": (3, "luv"),
}  # fmt: skip
_SLANG = re.compile(r"(?<![\w'’/_-])(?:" + "|".join(map(re.escape, sorted(_CASUAL, key=len, reverse=True))) + r")(?![\w'’/_-])", re.IGNORECASE)
_TO_CAME = re.compile(r"\b(go|going|come|came|went|got|have)\s+to\s+(the|a|an|my|your|our)\b", re.IGNORECASE)
FILLERS = ("um ", "so ", "uh ", "well ", "um so ", "so like ")  # no greeting, thanks, yes, no or request: those are answers of some label sets


def casual(text: str, rng: random.Random, severity: int) -> str:
    """1: no capitals, no full stop, contractions without apostrophe; 2: `u`, `pls`, `wanna` and a filler before; 3: clipped words and dots after."""
    lead, tail = rng.choice(FILLERS), rng.choice(("..", "...", " ..", " ..."))
    small = _FINAL.sub("", lowered(text)) if severity > 0 else text
    places = {m.start() for m in _TO_CAME.finditer(small)}  # "going to the bank" is no "gonna"
    plain = _SLANG.sub(lambda m: _clipped(m, severity, places), small)
    if severity == 1:
        return plain
    return lead + plain if severity == 2 else lead + plain.rstrip() + tail


def _clipped(match: re.Match[str], severity: int, places: set[int]) -> str:
    level, short = _CASUAL[match[0].lower().replace("’", "'")]
    return match[0] if level > severity or match.start() in places else short


# --- another language's keyboard -----------------------------------------------------------------------------------

_LAYOUTS = (
    str.maketrans("eacuo", "éàçùô"),
    str.maketrans("aeioun", "áéíóúñ"),
    str.maketrans("aou", "äöü"),
    str.maketrans("aocei", "ãõçêí"),
    str.maketrans("aceszl", "ąćęśżł"),
)
_ARTICLE = re.compile(r"(?<!\w)(?:the|a|an) (?=[^\W\d_]{3,})", re.IGNORECASE)
_BEFORE_SIGN = re.compile(r"(?<=\w)(?=[?!;:](?:\s|$))")
_AFTER_COMMA = re.compile(r"(?<=[,.]) (?=\w)")


def accents(text: str, rng: random.Random, severity: int) -> str:
    """Typed on another language's keyboard: letters with its diacritics (or, where the text has some, without), a blank before ? and !, then lost
    articles and double blanks.
    """
    layout = rng.choice(_LAYOUTS)
    words = [m for m in _ANY_WORD.finditer(text) if m[0].lower() not in FIXED and m[0].lower() != "the"]
    marked = [m for m in words if not m[0].isascii() and _without_marks(m[0]) != m[0]]
    if marked:
        share = (0.34, 0.67, 1.0)[severity - 1]
        return _replaced(text, [(*m.span(), _without_marks(m[0])) for m in chosen(marked, rng, share)])
    able = [m for m in words if m[0][1:].translate(layout) != m[0][1:]]
    typed = _replaced(text, [(*m.span(), _accented(m[0], layout)) for m in chosen(able, rng, DIACRITIC_SHARE[severity - 1])])
    if severity == 1:
        return typed
    articles = chosen(list(_ARTICLE.finditer(typed)), rng, ARTICLE_SHARE[severity - 1])
    spaced = _BEFORE_SIGN.sub(" ", _replaced(typed, [(*m.span(), "") for m in articles]))
    return _AFTER_COMMA.sub("  ", spaced) if severity == 3 else spaced


def _accented(word: str, layout: dict[int, int]) -> str:
    """The first letter after the beginning that the layout offers with a mark, with it."""
    at = next(i for i, c in enumerate(word) if i and ord(c) in layout)
    return word[:at] + word[at].translate(layout) + word[at + 1 :]


def _without_marks(word: str) -> str:
    """Latin letters without their marks; letters of other scripts keep theirs, where a mark makes another letter (й)."""
    return "".join(_bare(c) for c in word)


@lru_cache(maxsize=4096)
def _bare(letter: str) -> str:
    base = unicodedata.normalize("NFD", letter)
    return base[0] if len(base) > 1 and base[0].isascii() and all(unicodedata.combining(c) for c in base[1:]) else letter
