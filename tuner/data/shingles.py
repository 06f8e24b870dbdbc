"""Texts as sets of word n-grams: hashes for a whole batch at once, MinHash bands to find near copies, the true Jaccard to confirm them.

Sources: Broder 1997 (MinHash); Lee et al. 2021, arXiv 2107.06499 (near copies in training data); GPT-3 appendix C, arXiv 2005.14165 (13-grams).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Offsets = NDArray[np.int64]

SHINGLE = 3  # words
BANDS, ROWS = 32, 4  # Pr[candidate] = 1 - (1 - J^4)^32: 0.87 at J 0.5, 1.00 at J 0.7
_TO_SPACE = str.maketrans({c: " " for c in map(chr, range(128)) if not c.isalnum()})
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # scripts without spaces
_MARKS = "".join(chr(c) for c in range(0x300, 0x12000) if unicodedata.category(chr(c))[0] == "M") + "\u200c\u200d"
_WORD = re.compile(r"[^\W_]+")
_WORD_WITH_MARKS = re.compile(rf"[{_UNSPACED}][{_MARKS}]*|(?:[^\W_{_UNSPACED}][{_MARKS}]*)+")
_NEEDS_MARKS = re.compile(rf"[{_MARKS}{_UNSPACED}]")
_MULTIPLIERS = np.random.default_rng(20261120).integers(1, 1 << 63, size=BANDS * ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_ADDENDS = np.random.default_rng(20261121).integers(0, 1 << 63, size=BANDS * ROWS, dtype=np.uint64)
_STEP = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """Letters and digits in lower case, in order: what two texts are compared by. A text without any is parted at its spaces.

    Vowel signs belong to their letter (Hindi की and का differ); where a script has no spaces, each letter is a word.
    """
    if text.isascii():
        found = text.lower().translate(_TO_SPACE).split()
    else:
        folded = unicodedata.normalize("NFKC", text).casefold()
        found = (_WORD_WITH_MARKS if _NEEDS_MARKS.search(folded) else _WORD).findall(folded)
    return found or text.split()


class _WordHashes(dict[str, int]):
    """xxh3-64 of every word met, remembered up to a bound."""

    def __missing__(self, word: str) -> int:
        if len(self) > 500_000:
            self.clear()
        self[word] = number = xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))
        return number


_word_hashes = _WordHashes()


def hashed_words(texts: Sequence[str]) -> tuple[Hashes, Offsets]:
    """Word hashes of all texts, one after the other (W,), and where each text starts (N + 1,)."""
    known = _word_hashes
    lists = [[known[w] for w in words(text)] for text in texts]
    offsets = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum([len(of) for of in lists], out=offsets[1:])
    flat = np.fromiter((h for of in lists for h in of), dtype=np.uint64, count=int(offsets[-1]))
    return flat, offsets


def grams(flat: Hashes, offsets: Offsets, size: int) -> tuple[Hashes, Offsets]:
    """Hashes of every run of `size` words inside one text, and where each text's runs start. A text shorter than `size` has none."""
    lengths = np.maximum(np.diff(offsets) - size + 1, 0)
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    if not starts[-1]:
        return np.zeros(0, dtype=np.uint64), starts
    with np.errstate(over="ignore"):
        rolled = np.zeros(len(flat) - size + 1, dtype=np.uint64)
        for place in range(size):
            rolled = (rolled ^ flat[place : len(flat) - size + 1 + place]) * _STEP
            rolled ^= rolled >> np.uint64(29)
    inside = np.arange(starts[-1]) - np.repeat(starts[:-1] - offsets[:-1], lengths)
    return rolled[inside], starts


def shingled(texts: Sequence[str]) -> tuple[Hashes, Offsets]:
    """The 3-word shingles of every text; a text of one or two words is one shingle, an empty one has a shingle of its own kind."""
    flat, offsets = hashed_words(texts)
    found, starts = grams(flat, offsets, SHINGLE)
    short = np.flatnonzero(np.diff(starts) == 0)
    if not len(short):
        return found, starts
    with np.errstate(over="ignore"):
        whole = np.array([_joined(flat[offsets[i] : offsets[i + 1]]) for i in short], dtype=np.uint64)
    lengths = np.diff(starts)
    lengths[short] = 1
    moved = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=moved[1:])
    merged = np.empty(int(moved[-1]), dtype=np.uint64)
    is_short = np.zeros(len(merged), dtype=bool)
    is_short[moved[:-1][short]] = True
    merged[is_short] = whole
    merged[~is_short] = found
    return merged, moved


def _joined(hashes: Hashes) -> int:
    return int(xxhash.xxh3_64_intdigest(hashes.tobytes()))


def minhash_bands(shingles: Hashes, starts: Offsets, ignored: Hashes) -> NDArray[np.uint32]:
    """Band keys (N, 32): texts that share one are candidates for near copies. `ignored` (sorted) are shingles of boilerplate."""
    if len(ignored):
        keep = ~np.isin(shingles, ignored)
        left = np.add.reduceat(keep.astype(np.int64), starts[:-1])
        keep |= np.repeat(left == 0, np.diff(starts))  # nothing but boilerplate: all of it is kept
        counts = np.add.reduceat(keep.astype(np.int64), starts[:-1])
        shingles, starts = shingles[keep], np.concatenate([[0], np.cumsum(counts)])
    texts = len(starts) - 1
    keys = np.empty((texts, BANDS), dtype=np.uint32)
    with np.errstate(over="ignore"):
        for band in range(BANDS):
            key = np.full(texts, np.uint64(band + 1))
            for row in range(band * ROWS, (band + 1) * ROWS):
                key = (key ^ np.minimum.reduceat((shingles * _MULTIPLIERS[row] + _ADDENDS[row]) >> np.uint64(32), starts[:-1])) * _STEP
                key ^= key >> np.uint64(31)
            keys[:, band] = (key >> np.uint64(32)).astype(np.uint32)
    return keys


def boilerplate(texts: Sequence[str], share: float = 0.2) -> Hashes:
    """Shingles that stand in more than `share` of the texts (sorted): a common header makes unlike texts look alike."""
    if len(texts) < 50:
        return np.zeros(0, dtype=np.uint64)
    shingles, starts = shingled(texts)
    owners = np.repeat(np.arange(len(texts)), np.diff(starts))
    order = np.lexsort((owners, shingles))
    shingles, owners = shingles[order], owners[order]
    first = np.ones(len(shingles), dtype=bool)
    first[1:] = (shingles[1:] != shingles[:-1]) | (owners[1:] != owners[:-1])
    found, counts = np.unique(shingles[first], return_counts=True)
    return found[counts > share * len(texts)]


def shingle_set(text: str) -> frozenset[str]:
    """The 3-word shingles of a text in words, as `shingled` hashes them."""
    found = words(text)
    if len(found) < SHINGLE:
        return frozenset([" ".join(found)])
    return frozenset(" ".join(found[i : i + SHINGLE]) for i in range(len(found) - SHINGLE + 1))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """|A and B| / |A or B|."""
    both = len(one & other)
    return both / (len(one) + len(other) - both) if both else 0.0


def difference(one: str, other: str, most: int = 6) -> str:
    """The words that one text has and the other has not, in both directions: "blue, 5 / red, 1"."""
    ours, theirs = words(one), words(other)
    only = [w for w in dict.fromkeys(ours) if w not in set(theirs)], [w for w in dict.fromkeys(theirs) if w not in set(ours)]
    if not only[0] and not only[1]:
        return "case, punctuation or order of words"
    return " / ".join(", ".join(side[:most]) + (" …" if len(side) > most else "") or "nothing" for side in only)
