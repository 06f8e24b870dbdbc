"""Metrics of plain text: sameness, n-gram overlap, repetition and length.

An answer is graded against its best reference. Nothing here is specific to one language, but articles and punctuation in
`normalised_match` are English, as SQuAD's are.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from tuner.data.record import normalised
from tuner.errors import refuse
from tuner.evaluate.metric_types import Answer, Sums

PATTERN_SECONDS = 1.0  # a pattern that takes longer on one answer has not matched it
_TRIAL_SECONDS = 0.25
_TRIAL_CHARACTERS = 200  # exponential time explodes here already; the square of it is nothing
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
BLEU_ORDER = 4


def words(text: str) -> list[str]:
    """Runs of letters and digits in lower case; scripts that write no blanks give one word a character.

    On ASCII text these are rouge-score's tokens (google-research/rouge@0.1.2 tokenize.py:50); it drops all other letters, which are words here.
    """
    return _WORDS.findall(text.lower())


# --- sameness --------------------------------------------------------------------------------------------------------


def exact_match(answer: Answer) -> float:
    """1 if the answer equals a reference after NFKC, case folding and collapsing white space."""
    return float(normalised(answer.text or "") in {normalised(r) for r in answer.references})


def normalised_match(answer: Answer) -> float:
    """1 if the answer equals a reference after lower case, no punctuation, no articles (Rajpurkar et al. 2016, evaluate-v1.1.py normalize_answer).

    Where nothing of a reference is left (it is "The", or "!"), it must be given exactly.
    """
    said = _squad(answer.text or "")
    wanted = {_squad(r) for r in answer.references} - {""}
    return float(said in wanted or exact_match(answer) == 1)


def _squad(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def contains(answer: Answer) -> float:
    """1 if a reference occurs in the answer as whole words, both normalised as for exact match. An empty reference wants an empty answer."""
    said = normalised(answer.text or "")
    return float(any(_occurs(normalised(r), said) for r in answer.references))


def _occurs(wanted: str, said: str) -> bool:
    if not wanted:
        return not said
    start = said.find(wanted)
    while start >= 0:
        end = start + len(wanted)
        if not (start and _one_word(said[start - 1], wanted[0])) and not (end < len(said) and _one_word(wanted[-1], said[end])):
            return True
        start = said.find(wanted, start + 1)
    return False


def _one_word(left: str, right: str) -> bool:
    """Do two neighbouring characters belong to one word? Not in scripts that write no blanks."""
    return len(words(left + right)) == 1 and len(words(left)) == 1 and len(words(right)) == 1


def pattern_score(pattern: str, where: str, field: str) -> Callable[[Answer], float]:
    """A score that is 1 where the pattern is found. Raises Refusal on a pattern that does not compile, or that takes exponential time on plain repetitions.

    `re` cannot be interrupted; the `regex` package (which transformers and sacrebleu bring) reads the same patterns and takes a time limit.
    """
    import regex

    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        refuse(where, field, f"{pattern!r}: {error}", "a regular expression", "mend the pattern; quote it in YAML with single quotes")
    try:
        for text in _trials(pattern):
            compiled.search(text, timeout=_TRIAL_SECONDS)
    except TimeoutError:
        refuse(where, field, f"{pattern!r} takes over {_TRIAL_SECONDS} s on {_TRIAL_CHARACTERS:,} characters", "a pattern whose time does not explode",
               "take out a repetition inside a repetition: (a+)+ is a+")  # fmt: skip

    def score(answer: Answer) -> float:
        try:
            return float(compiled.search(answer.text or "", timeout=PATTERN_SECONDS) is not None)
        except TimeoutError:
            return 0.0

    return score


def _trials(pattern: str) -> list[str]:
    """Runs of each character of the pattern, and of a few common ones, with an end that fits nothing."""
    letters = sorted({c for c in pattern if c.isalnum()})[:20]
    runs = [*letters, "a", "0", " ", "a ", "a,", "ab0 "]
    return [(run * _TRIAL_CHARACTERS)[:_TRIAL_CHARACTERS] + "\x00" for run in dict.fromkeys(runs)]


# --- overlap ---------------------------------------------------------------------------------------------------------


def token_f1(answer: Answer) -> float:
    """F1 of the bags of words, best over references (Rajpurkar et al. 2016, SQuAD; words split on white space after normalising)."""
    return max(_bag_f1(normalised(answer.text or "").split(), normalised(r).split()) for r in answer.references)


def _bag_f1(said: list[str], wanted: list[str]) -> float:
    common = sum((Counter(said) & Counter(wanted)).values())
    if not said or not wanted:
        return float(said == wanted)
    return 2 * common / (len(said) + len(wanted))


def rouge_l(answer: Answer) -> float:
    """ROUGE-L F1 = 2PR / (P + R), P = LCS / |said|, R = LCS / |reference| (Lin 2004, eq. 5-7 with beta 1), best over references; no stemming."""
    said = words(answer.text or "")
    return max(_lcs_f1(said, words(r)) for r in answer.references)


def _lcs_f1(said: list[str], wanted: list[str]) -> float:
    from rapidfuzz.distance import LCSseq

    if not said or not wanted:
        return float(said == wanted)
    return 2 * LCSseq.similarity(said, wanted) / (len(said) + len(wanted))


def chrf(answer: Answer) -> float:
    """Sentence chrF (Popović 2015: character 6-grams, beta 2), best over references, by sacrebleu; 0 to 1."""
    return float(_chrf().sentence_score(answer.text or "", list(answer.references)).score) / 100


def bleu_parts(answers: Sequence[Answer]) -> Sums:
    """BLEU's sufficient statistics of each item (n, 10): length said, closest reference length, matches and n-grams of orders 1 to 4, by sacrebleu."""
    found = [_bleu().sentence_score(a.text or "", list(a.references)) for a in answers]
    rows = [[f.sys_len, f.ref_len, *f.counts, *f.totals] for f in found]
    return np.array(rows, dtype=np.float64).reshape(-1, 2 + 2 * BLEU_ORDER)


def bleu(sums: Sums) -> Sums:
    """Corpus BLEU, 0 to 1, from summed statistics (Papineni et al. 2002, §2.3), unmatched orders smoothed as by mteval-v13a (Chen and Cherry 2014, method 3).

    Equals sacrebleu@2.6.0 bleu.py:compute_bleu with smooth_method exp, for many resamples at once.
    """
    said, wanted = sums[..., 0], sums[..., 1]
    correct, total = sums[..., 2 : 2 + BLEU_ORDER], sums[..., 2 + BLEU_ORDER :]
    missing = correct == 0
    halvings = 2.0 ** np.cumsum(missing, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(missing, 1 / (halvings * total), correct / total)
        brevity = np.where(said < wanted, np.exp(1 - wanted / said), 1.0)
        value = brevity * np.exp(np.log(precision).mean(axis=-1))
    return np.where((total > 0).all(axis=-1) & (correct > 0).any(axis=-1), value, 0.0)


@cache
def _chrf():  # type: ignore[no-untyped-def]  # sacrebleu has no types
    from sacrebleu.metrics import CHRF

    return CHRF()


@cache
def _bleu():  # type: ignore[no-untyped-def]
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)  # only its counts are used: they do not depend on this, but it warns without


def bleu_signature() -> str:
    """What sacrebleu prints beside the value, so that another's figure can be compared."""
    return f"sacrebleu nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:{_sacrebleu_version()}"


def chrf_signature() -> str:
    """What sacrebleu prints beside a sentence's chrF."""
    return f"sacrebleu nrefs:var|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{_sacrebleu_version()}"


def rouge_signature() -> str:
    """Which longest common subsequence was computed."""
    from importlib.metadata import version

    return f"rapidfuzz LCSseq {version('rapidfuzz')}, words of letters and digits, no stemming"


def _sacrebleu_version() -> str:
    from importlib.metadata import version

    return version("sacrebleu")


# --- repetition and length -------------------------------------------------------------------------------------------


def distinct(order: int) -> Callable[[Answer], float]:
    """Share of an answer's n-grams of words that are different: Li et al. 2016 (arXiv 1510.03055, §5.2), within each answer.

    Over a whole suite the share falls with its size and is no sum of items, so it would have no honest interval. An answer too short for one
    n-gram repeats nothing and has 1, an empty one 0.
    """

    def score(answer: Answer) -> float:
        said = words(answer.text or "")
        grams = [tuple(said[i : i + order]) for i in range(len(said) - order + 1)]
        return len(set(grams)) / len(grams) if grams else float(bool(said))

    return score


def lengths(answer: Answer) -> tuple[float, float]:
    """Characters said, and characters of the reference whose length is nearest in ratio."""
    said = len(answer.text or "")
    options = [max(len(r), 1) for r in answer.references]
    return float(said), float(min(options, key=lambda wanted: abs(math.log(max(said, 1) / wanted))))
