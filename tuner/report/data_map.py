"""What the records are about: topics of train, a map of them, and what production asks beside it, all by the shipped word vectors.

It refuses to draw what the vectors cannot read, and says how much of the differences between prompts the map can hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from tuner.data.checks.coverage import ENOUGH, MOST_TRAIN, drawn, questions
from tuner.data.coverage import Coverage, coverage
from tuner.data.doctor import Checked
from tuner.data.embedding import Centring, Indices, Vectors
from tuner.data.neighbours import centres, nearest
from tuner.data.personal import hide
from tuner.data.record import Record
from tuner.data.shingles import words
from tuner.report.data_charts import COLOURS

MOST_CLUSTERED = 5_000  # prompts of train that are sorted into topics, evenly drawn
MOST_DOTS, MOST_OVERLAID = 1_000, 500  # of train and of production on the map
MOST_TOPICS, PER_TOPIC = 16, 25  # topics, and records a topic has at least on average
LEAST = 10  # train records below which there is nothing to sort
EXAMPLES = 3
TYPICAL = 6
READ = 2_000  # characters of a prompt that typical words are counted in
SEED = 0
# the vectors know English, so its function words are enough
FUNCTION_WORDS = frozenset({
    "a", "about", "all", "am", "an", "and", "any", "are", "as", "at", "be", "been", "but", "by", "can", "could", "did", "do", "does", "for", "from",
    "get", "had", "has", "have", "he", "her", "his", "how", "i", "if", "in", "into", "is", "it", "its", "let", "me", "my", "no", "not", "of", "on", "or",
    "our", "out", "over", "please", "should", "so", "some", "tell", "than", "that", "the", "their", "them", "then", "there", "they", "this", "to", "up",
    "us", "was", "we", "were", "what", "when", "where", "which", "who", "why", "will", "with", "would", "you", "your",
})  # fmt: skip


@dataclass(frozen=True)
class Topic:
    """Rows of the sample that lie together, the most central first; `typical` are the words that set them apart."""

    rows: Indices
    typical: list[str]
    labels: list[tuple[str, int]]


@dataclass(frozen=True)
class Landscape:
    """`sample` of train in topics; `points` (S, 2) of it, the share of all differences they hold, and production (P, 2) with what is not covered."""

    train: int
    sample: list[Record]
    topics: list[Topic]
    points: NDArray[np.float64]
    explained: float
    production: list[Record]
    production_points: NDArray[np.float64]
    found: Coverage | None
    train_dots: Indices
    production_dots: Indices
    labels: list[str]
    colours: Indices


def landscape(checked: Checked) -> Landscape | str:
    """Topics, map and coverage of the kept records; or why there are none. The same records as the coverage check looks at."""
    context = checked.context
    every = [context.records[i] for i in context.ranges.get("train", range(0))]
    if len(every) < LEAST:
        return f"With {len(every)} training records there is nothing to sort by topic."
    train = drawn(every, MOST_TRAIN)
    raw, known = questions(train, context.scene.spec.embeddings)
    if not known:
        return "Most of the words are unknown to the word vectors that come with tuner: they know English. Topics and map would be guesses, so none are shown."
    middle = Centring.fit(raw)
    ours = middle.apply(raw)
    rows = evenly(len(train), MOST_CLUSTERED)
    sample, vectors = [train[i] for i in rows.tolist()], ours[rows]
    axes, explained = _plane(vectors)
    production = list(context.splits.production)
    theirs = np.zeros((0, ours.shape[1]), dtype=np.float32)
    found = None
    if production:
        asked, known_too = questions(production, context.scene.spec.embeddings)
        if known_too:
            theirs = middle.apply(asked)
            held_out = [context.records[i] for i in context.ranges.get("held_out", range(0))]
            found = coverage(ours, theirs, middle.apply(questions(held_out, context.scene.spec.embeddings)[0]) if len(held_out) >= ENOUGH else None)
        else:
            production = []
    labels, colours = _colours(sample, context.task)
    return Landscape(
        len(every), sample, topics(sample, vectors, context.task), vectors @ axes, explained, production, theirs @ axes, found,
        evenly(len(sample), MOST_DOTS if production else MOST_DOTS + MOST_OVERLAID), evenly(len(production), MOST_OVERLAID), labels, colours,
    )  # fmt: skip


def evenly(n: int, most: int) -> Indices:
    """Rows 0 to n, or `most` of them evenly spread: the sample that the page names."""
    return np.arange(n, dtype=np.int64) if n <= most else np.linspace(0, n - 1, most).astype(np.int64)


def _plane(vectors: Vectors) -> tuple[NDArray[np.float64], float]:
    """The two principal components (256, 2) of unit vectors (N, 256), and the share of the variance they hold."""
    moved = vectors - vectors.mean(axis=0)
    values, axes = np.linalg.eigh((moved.T @ moved).astype(np.float64))
    total = float(values.clip(min=0).sum())
    return axes[:, [-1, -2]], float(values[-2:].sum()) / total if total > 0 else 0.0


def topics(sample: Sequence[Record], vectors: Vectors, task: str) -> list[Topic]:
    """Spherical k-means, a topic for every 25 records up to 16, from large to small."""
    middles = centres(vectors, min(MOST_TOPICS, max(1, len(sample) // PER_TOPIC)), SEED)
    nearness, home = nearest(vectors, middles, 1)
    groups = [np.flatnonzero(home[:, 0] == n) for n in range(len(middles))]
    groups = sorted((g[np.argsort(-nearness[g, 0], kind="stable")] for g in groups if len(g)), key=len, reverse=True)
    told = typical_words([r.question for r in sample], groups)
    return [Topic(g, w, Counter(sample[i].completion for i in g.tolist()).most_common(2) if task == "label" else []) for g, w in zip(groups, told, strict=True)]


def typical_words(texts: Sequence[str], groups: Sequence[Indices]) -> list[list[str]]:
    """For each group the words, in three texts of it at least, that are most over-represented: frequency there times log of the ratio to all texts."""
    held = [{w for w in words(hide(t[:READ])) if len(w) > 1 and not w.isnumeric() and w not in FUNCTION_WORDS} for t in texts]
    all_over = Counter(w for own in held for w in own)
    said = []
    for rows in groups:
        inside = Counter(w for i in rows.tolist() for w in held[i])
        score = {w: n / len(rows) * log((n / len(rows)) / (all_over[w] / len(texts))) for w, n in inside.items() if n >= min(3, len(rows))}
        said.append([w for w in sorted(score, key=lambda w: (-score[w], w)) if score[w] > 0][:TYPICAL])
    return said


def _colours(sample: Sequence[Record], task: str) -> tuple[list[str], Indices]:
    """The commonest labels, and for each record the place of its own among them; -1 where it has none."""
    if task != "label":
        return [], np.full(len(sample), -1, dtype=np.int64)
    counts = Counter(r.completion for r in sample)
    labels = [label for label, _ in counts.most_common(COLOURS)]
    place = {label: n for n, label in enumerate(labels)}
    return labels, np.array([place.get(r.completion, -1) for r in sample], dtype=np.int64)
