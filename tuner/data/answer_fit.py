"""Answers that belong to another question: they fit their own hardly better than strangers do, and a second such record is their home.

It refuses to call an answer wrong for being unlike its question alone: short answers, poems and lists often are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tuner.data.embedding import Indices, Vectors, centred_on_mean
from tuner.data.neighbours import nearest

MISFIT = 0.05  # share of strangers that fit better, on both sides, above which a pair is a misfit
GAIN = 0.5  # cosine that moving the answer to its home must gain over both records as they stand
HOMES = 3  # nearest questions of an answer among which its home may be
MIN_WORDS = 5  # different words of three letters or more, or an answer is too short to have a home
UNRELATED = 0.5  # share of misfits above which the answers as a whole do not follow the questions
STRANGERS = 1000  # drawn records against which a pair is ranked
_WORD = re.compile(r"[^\W\d_]{3,}")
_BLOCK = 2048


@dataclass(frozen=True)
class AnswerFit:
    """How N answers fit their questions.

    `misfit` (N,) in 0..1: the share of strangers' answers that fit the question better than its own, or of strangers' questions that
    fit the answer better, whichever is less; a third for random pairs: sort by it to review by rank. `rows` (S,) are the suspects,
    the largest gain first, and `homes` (S,) the records to whose question their answers seem to belong.
    """

    misfit: Vectors
    rows: Indices
    homes: Indices

    @property
    def misfit_share(self) -> float:
        """Share of records above .05: .007 in GSM8K, .05 in Dolly, .08 in Alpaca, .93 in each of them after shuffling the answers."""
        return float((self.misfit > MISFIT).mean()) if len(self.misfit) else 0.0

    @property
    def is_unrelated(self) -> bool:
        """Whether most answers fit strangers' questions as well as their own: a shifted or shuffled column."""
        return self.misfit_share > UNRELATED


def answer_fit(questions: Vectors, answers: Vectors, answer_texts: Sequence[str], seed: int) -> AnswerFit:
    """Suspects among records with raw vectors of their questions and answers, (N, 256) each, every side centred on its own mean.

    The rule is ours. Measured 2026-11-20 with 2 % of the answers exchanged among themselves, mean of 3 draws, rows as published last:

    | set (rows)      | AUC of misfit | found | precision | flagged as published |
    | Dolly (2,996)   | .98           | .47   | 1.00      | 0                    |
    | Alpaca (5,000)  | .97           | .31   | .95       | 1                    |
    | Alpaca (52,002) | .97           | .25   | .78       | 65 (.13 %)           |
    | GSM8K (7,473)   | 1.00          | .55   | 1.00      | 0                    |
    | E2E (10,000)    | .99           | .39   | 1.00      | 0                    |

    An answer whose true question is not in the set, or has the right answer there too, is only ranked, never a suspect.
    """
    question, answer = centred_on_mean(questions), centred_on_mean(answers)
    own = (question * answer).sum(axis=1)
    misfit = _misfit(question, answer, own, seed)
    judged = np.flatnonzero(misfit > MISFIT)
    if not len(judged):
        return AnswerFit(misfit, judged, judged)
    cosine, home = nearest(answer[judged], question, HOMES + 1)
    wordy = np.array([len(set(_WORD.findall(answer_texts[row].lower()))) >= MIN_WORDS for row in judged.tolist()])
    gain = cosine - np.maximum(own[judged][:, None], own[home])
    possible = wordy[:, None] & (home != judged[:, None]) & (misfit[home] > MISFIT) & (gain > GAIN)
    # One question that many answers resemble (a list of numbers, say) is the home of at most one of them.
    possible &= judged[:, None] == _fittest(question, answer, judged, home)
    suspect = np.flatnonzero(possible.any(axis=1))
    place = possible[suspect].argmax(axis=1)
    order = np.argsort(-gain[suspect, place], kind="stable")
    return AnswerFit(misfit, judged[suspect[order]], home[suspect, place][order])


def _misfit(question: Vectors, answer: Vectors, own: Vectors, seed: int) -> Vectors:
    """The lesser of both shares (N,), against the same 1,000 drawn records for all; all records where there are fewer."""
    drawn = np.random.default_rng(seed).choice(len(own), min(STRANGERS, len(own)), replace=False)
    misfit = np.empty(len(own), np.float32)
    for start in range(0, len(own), _BLOCK):
        part = slice(start, start + _BLOCK)
        # A record that was drawn meets itself here; the small step keeps rounding from ranking it above itself.
        bar = own[part, None] + 1e-5
        misfit[part] = np.minimum((question[part] @ answer[drawn].T > bar).mean(axis=1), (answer[part] @ question[drawn].T > bar).mean(axis=1))
    return misfit


def _fittest(question: Vectors, answer: Vectors, judged: Indices, homes: Indices) -> Indices:
    """For every possible home (J, H) the misfit record whose answer fits its question best, other than its own; -1 where it is no misfit."""
    place = np.full(len(question), -1, np.int64)
    place[judged] = np.arange(len(judged))
    if len(judged) < 2:
        return np.full(homes.shape, -1, np.int64)
    found = nearest(question[judged], answer[judged], 2)[1]
    first = np.where(found[:, 0] == np.arange(len(judged)), found[:, 1], found[:, 0])
    return np.where(place[homes] >= 0, judged[first[place[homes]]], -1)
