"""How much of a set of texts is one template filled in again and again: gzip ratio, n-gram diversity, common 6-grams, first words.

It refuses to compare sets of different sizes: every figure is taken from the same 200 kB of shuffled text.
"""

from __future__ import annotations

import gzip
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

SAMPLE_BYTES = 200_000  # gzip-9 finds more repetition in longer text, so the size is fixed
ENOUGH_BYTES = 50_000  # with less text the ratio reads low (at 50 kB by 4 to 20 %), so no level is given
WARN, STRONG = 4.0, 8.0  # gzip ratios; free text 2.4 to 2.9, CLINC150 prompts 3.2, E2E answers 5.2, E2E prompts 15.6
COMMON = 0.01  # a 6-gram is common if at least this share of the texts, and at least 3, hold it
_N = 6


@dataclass(frozen=True)
class TemplateLikeness:
    """Figures of one sample of `texts` texts and `bytes` UTF-8 bytes.

    `gzip_ratio`: bytes / gzip-9 bytes (Shaib 2024, arXiv 2403.00553). `distinct` 1..4: unique / total n-grams (Li 2016, arXiv 1510.03055);
    their sum is `diversity` (arXiv 2309.05196; 0..4, below 1.5 is low). `common_six`: share of words inside a 6-gram that 1 % of the
    texts share. `opening_bits`: entropy of the first three words (bits); `opening_most`: share of the most frequent opening.
    """

    texts: int
    bytes: int
    gzip_ratio: float
    distinct: tuple[float, float, float, float]
    common_six: float
    opening_bits: float
    opening_most: float

    @property
    def diversity(self) -> float:
        return sum(self.distinct)

    @property
    def level(self) -> Literal["free", "warn", "strong", "unknown"]:
        """By gzip ratio: from 4 `warn`, from 8 `strong`; `unknown` below 50 kB of text."""
        if self.bytes < ENOUGH_BYTES:
            return "unknown"
        return "strong" if self.gzip_ratio >= STRONG else "warn" if self.gzip_ratio >= WARN else "free"


def template_likeness(texts: Sequence[str], seed: int) -> TemplateLikeness:
    """Figures of `texts`, shuffled by `seed` and cut after 200,000 bytes; 0.1 s however many there are."""
    sample, size = _sample(texts, seed)
    words = [text.lower().split() for text in sample]
    joined = "\n".join(sample).encode("utf-8", "replace")
    openings = Counter(" ".join(w[:3]) for w in words if w)
    opened = sum(openings.values())
    return TemplateLikeness(
        texts=len(sample),
        bytes=size,
        gzip_ratio=len(joined) / len(gzip.compress(joined, 9, mtime=0)) if joined else 0.0,
        distinct=(_distinct(words, 1), _distinct(words, 2), _distinct(words, 3), _distinct(words, 4)),
        common_six=_common_share(words),
        opening_bits=-sum(c / opened * math.log2(c / opened) for c in openings.values()) if opened else 0.0,
        opening_most=max(openings.values()) / opened if opened else 0.0,
    )


def _sample(texts: Sequence[str], seed: int) -> tuple[list[str], int]:
    """Texts in shuffled order up to 200,000 bytes, the last one cut to fit, and their bytes without the line ends between them."""
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    sample: list[str] = []
    size = 0
    for index in order:
        if size >= SAMPLE_BYTES:
            break
        raw = texts[index].encode("utf-8", "replace")[: SAMPLE_BYTES - size]
        sample.append(raw.decode("utf-8", "ignore"))
        size += len(raw)
    return sample, size


def _grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def _distinct(texts: list[list[str]], n: int) -> float:
    grams = list(chain.from_iterable(_grams(words, n) for words in texts))
    return len(set(grams)) / len(grams) if grams else 0.0


def _common_share(texts: list[list[str]]) -> float:
    """Share of all words that lie inside a 6-gram held by 1 % of the texts, at least by 3."""
    grams = [_grams(words, _N) for words in texts]
    holders = Counter(chain.from_iterable(set(g) for g in grams))
    least = max(3, math.ceil(COMMON * len(texts)))
    inside = 0
    for of_text in grams:
        covered = 0
        for place, gram in enumerate(of_text):
            if holders[gram] >= least:
                inside += place + _N - max(place, covered)
                covered = place + _N
    total = sum(map(len, texts))
    return inside / total if total else 0.0
