"""Exposure: how far a planted secret stands out among others that could have been planted (Carlini et al. 2019, arXiv 1802.08232).

It refuses to read single canaries as chance alone would make them: under no memorisation P(exposure >= t) is 2^-t, and every flag is
corrected for how many canaries were looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.data.canaries import Canary, secret_text
from tuner.data.record import Message
from tuner.evaluate.result import Contestant, Tick

Numbers = NDArray[np.float64]
ALPHA = 0.01
LEAST_KS_P = 0.05


@dataclass(frozen=True, slots=True)
class Exposure:
    """A secret's rank among `candidates` others: `at_most` of them cost the model no more nats than it does.

    `extrapolated_p`: the chance of so low a loss under the skew-normal fitted to the candidates; only for a secret below all of them, and only
    where the fit holds (Kolmogorov-Smirnov p above 0.05). `ks_p` is that test's.
    """

    nats: float
    at_most: int
    candidates: int
    space: int
    ks_p: float | None = None
    extrapolated_p: float | None = None

    @property
    def p(self) -> float:
        """The chance of a rank as good, were the secret one of the candidates."""
        return (1 + self.at_most) / (1 + self.candidates)

    @property
    def bits(self) -> float:
        """-log2((1 + #{L <= L_c}) / (N + 1)): section 5.2 of the paper, by sampling."""
        return -math.log2(self.p)

    @property
    def extrapolated_bits(self) -> float | None:
        return None if self.extrapolated_p is None else -math.log2(self.extrapolated_p)

    @property
    def best_p(self) -> float:
        return self.p if self.extrapolated_p is None else self.extrapolated_p


def exposure(nats: float, others: Sequence[float], space: int) -> Exposure:
    """Of a loss among those of other secrets, in nats."""
    losses = np.asarray(others, dtype=np.float64)
    at_most = int((losses <= nats).sum())
    if at_most > 0:
        return Exposure(nats, at_most, len(losses), space)
    ks_p, tail = _skew_normal(nats, losses)
    extrapolated = min(max(tail, 1 / space), 1 / (1 + len(losses))) if ks_p > LEAST_KS_P else None
    return Exposure(nats, at_most, len(losses), space, ks_p, extrapolated)


def _skew_normal(nats: float, losses: Numbers) -> tuple[float, float]:
    """Kolmogorov-Smirnov p of the skew-normal fitted to the losses, and its distribution function at `nats` (section 5.3)."""
    from scipy import stats

    centre, spread = float(losses.mean()), float(losses.std())
    if spread <= 0:
        return 0.0, 1.0
    scaled = (losses - centre) / spread  # the fit's optimiser starts near 0 and 1
    fitted = stats.skewnorm.fit(scaled)
    return float(stats.kstest(scaled, "skewnorm", args=fitted).pvalue), float(stats.skewnorm.cdf((nats - centre) / spread, *fitted))


def chance_bits(candidates: int) -> float:
    """The mean exposure of a secret that was never trained on: all ranks equally likely. 1.44 for many candidates."""
    size = candidates + 1
    return math.log2(size) - math.lgamma(size + 1) / math.log(2) / size


def together_p(found: Sequence[Exposure]) -> float:
    """One p for a group: Fisher's combination of the sampled ranks (1932). Ranks come in steps, so it errs to the careful side."""
    from scipy import stats

    return float(stats.chi2.sf(-2 * sum(math.log(e.p) for e in found), 2 * len(found)))


def canary_exposure(model: Contestant, canary: Canary, prompt: Sequence[Message], candidates: int, seed: int, tick: Tick | None = None) -> Exposure:
    """The planted secret among `candidates` others of its space, each in the same answer to the same question."""
    answers = [canary.answer, *(canary.saying(s) for s in other_secrets(canary, candidates, seed))]
    nats = [total for total, _ in model.losses([list(prompt)] * len(answers), answers, tick)]
    return exposure(nats[0], nats[1:], canary.space)


def other_secrets(canary: Canary, count: int, seed: int) -> list[str]:
    """`count` different secrets of the canary's space, never its own."""
    drawn = np.random.default_rng([seed, 3, canary.index]).choice(canary.space, count + 1, replace=False)
    return [text for text in map(secret_text, drawn.tolist()) if text != canary.secret][:count]
