"""Near copies without text: a MinHash signature of a prompt's words, 64 bytes a record, small enough to keep for ever.

It refuses nothing; a prompt without words has no signature, and one of one or two words is hashed whole, so who tries texts can guess it.

Source: Broder 1997 (MinHash); Li and König 2010, arXiv 0910.3349 (b-bit minwise hashing, of whose 8 bits equation 6 takes chance out).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tuner.data.record import normalised
from tuner.data.shingles import shingled, words
from tuner.fingerprint import digest_text

Signatures = NDArray[np.uint8]  # (N, VALUES)

SCHEME = 1  # of the signature: one of another scheme is not compared
VALUES = 64  # smallest hashes kept of each prompt, a byte of each: the estimate is off by 0.06 (root mean square)
BANDS, ROWS = 12, 4  # Pr[candidate] = 1 - (1 - J^4)^12: 1.00 at J 0.8, 0.96 at J 0.7
NEAR = 0.7  # estimated Jaccard from which two prompts are called near copies: finds 99.5 % of the pairs whose true one is 0.8 or more
CHANCE = 1 / 256  # of two bytes of unlike prompts to be equal
TEXTS_AT_ONCE = 20_000
_MIX = np.uint64(0x9E3779B97F4A7C15)


def _constants() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Odd multipliers and addends, of SHA-256: signatures are kept, so they must not hang on a library's random numbers."""
    data = b"".join(hashlib.sha256(f"tuner near copies {SCHEME} {i}".encode()).digest()[:16] for i in range(VALUES))
    pairs = np.frombuffer(data, dtype="<u8").reshape(VALUES, 2)
    return pairs[:, 0] | np.uint64(1), pairs[:, 1]


_MULTIPLIERS, _ADDENDS = _constants()


def prompt_digest(question: str) -> str | None:
    """Identity of a prompt but for case, width and spacing, without its system turns; None for one without words."""
    return digest_text(normalised(question)) if words(question) else None


def signatures(questions: Sequence[str]) -> Signatures:
    """(N, 64) of the prompts' 3-word shingles. Zeros for a prompt without words: compare none of those."""
    made = np.zeros((len(questions), VALUES), dtype=np.uint8)
    for start in range(0, len(questions), TEXTS_AT_ONCE):
        made[start : start + TEXTS_AT_ONCE] = _signed(questions[start : start + TEXTS_AT_ONCE])
    made[[i for i, q in enumerate(questions) if not words(q)]] = 0
    return made


def _signed(questions: Sequence[str]) -> Signatures:
    shingles, starts = shingled(questions)
    made = np.empty((len(questions), VALUES), dtype=np.uint8)
    with np.errstate(over="ignore"):
        for value in range(VALUES):
            hashed = shingles * _MULTIPLIERS[value] + _ADDENDS[value]
            hashed = (hashed ^ (hashed >> np.uint64(32))) * _MIX
            made[:, value] = ((np.minimum.reduceat(hashed, starts[:-1]) >> np.uint64(20)) & np.uint64(255)).astype(np.uint8)
    return made


def bands(of: Signatures) -> NDArray[np.uint32]:
    """(N, 12) keys: prompts that share one are candidates for near copies."""
    return np.ascontiguousarray(of[:, : BANDS * ROWS]).view("<u4").astype(np.uint32)


def estimated_jaccard(of: Signatures, wanted: Signatures) -> NDArray[np.float64]:
    """(N,) of each signature with the one wanted (64,)."""
    same: NDArray[np.float64] = (of == wanted).mean(axis=1)
    return np.maximum((same - CHANCE) / (1 - CHANCE), 0.0)
