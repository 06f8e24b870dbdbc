"""Every figure against a naive second computation; levels on free and filled-in text."""

from __future__ import annotations

import gzip
import math
import random
from collections import Counter

import pytest

from tuner.data.templateness import SAMPLE_BYTES, template_likeness

WORDS = [f"{a}{b}{c}" for a in ("ba", "ke", "lo", "mi", "tu") for b in ("ran", "sel", "tor", "vim", "zud") for c in ("a", "en", "is", "o", "us", "")]


def free(n: int, seed: int, words: int = 20) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choice(WORDS) + str(chance.randrange(1000)) for _ in range(words)) for _ in range(n)]


def filled(n: int) -> list[str]:
    return [f"please write a short friendly description of the restaurant called {WORDS[i % 150]} in the city centre today" for i in range(n)]


def test_every_figure_is_that_of_a_loop() -> None:
    texts = filled(40) + free(60, 1) + ["", "Two words", "one"]
    found = template_likeness(texts, seed=0)
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    joined = "\n".join(texts[i] for i in order).encode()
    assert found.gzip_ratio == pytest.approx(len(joined) / len(gzip.compress(joined, 9)))
    assert found.texts == len(texts) and found.bytes == sum(len(t.encode()) for t in texts)
    split = [t.lower().split() for t in texts]
    for n in (1, 2, 3, 4):
        grams = [tuple(w[i : i + n]) for w in split for i in range(len(w) - n + 1)]
        assert found.distinct[n - 1] == pytest.approx(len(set(grams)) / len(grams))
    assert found.diversity == pytest.approx(sum(found.distinct))
    openings = Counter(tuple(w[:3]) for w in split if w)
    total = sum(openings.values())
    assert found.opening_bits == pytest.approx(-sum(c / total * math.log2(c / total) for c in openings.values()))
    assert found.opening_most == pytest.approx(max(openings.values()) / total)
    holders = Counter(g for w in split for g in {tuple(w[i : i + 6]) for i in range(len(w) - 5)})
    inside = sum(any(holders[tuple(w[i : i + 6])] >= 3 for i in range(max(0, p - 5), min(p, len(w) - 6) + 1)) for w in split for p in range(len(w)))
    assert found.common_six == pytest.approx(inside / sum(map(len, split))) and 0.2 < found.common_six < 0.8


def test_filled_in_templates_are_strong_and_free_text_is_not() -> None:
    template, text = template_likeness(filled(4000), seed=0), template_likeness(free(4000, 2), seed=0)
    assert template.level == "strong" and template.gzip_ratio > 8 and template.common_six > 0.6 and template.diversity < 1
    assert text.level == "free" and text.gzip_ratio < 4 and text.common_six == 0 and text.opening_bits > 8


def test_the_figure_does_not_grow_with_the_set() -> None:
    small, large = template_likeness(filled(3000), seed=0), template_likeness(filled(30_000), seed=0)
    assert small.bytes == large.bytes == SAMPLE_BYTES
    assert small.gzip_ratio == pytest.approx(large.gzip_ratio, rel=0.05)


def test_little_text_has_figures_but_no_level() -> None:
    found = template_likeness(filled(50), seed=0)
    assert found.level == "unknown" and found.gzip_ratio > 1


def test_no_text_and_half_a_surrogate_are_counted_not_raised() -> None:
    nothing = template_likeness([], seed=0)
    assert (nothing.texts, nothing.gzip_ratio, nothing.diversity, nothing.level) == (0, 0, 0, "unknown")
    assert template_likeness(["a \ud800 b"], seed=0).texts == 1


def test_a_character_is_not_cut_in_half_at_the_limit() -> None:
    found = template_likeness(["ü" * (SAMPLE_BYTES // 2 - 1) + "€€"], seed=0)
    assert found.bytes == SAMPLE_BYTES and found.texts == 1
