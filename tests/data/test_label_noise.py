"""Softmax regression against sklearn, agreement against a loop, and suspects on toy texts whose wrong labels are known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from tuner.data import label_noise
from tuner.data.label_noise import ALIKE, FOLDS, L2, MIN_RECORDS, fit_softmax, suspects


def toy(per_label: int, n_labels: int, seed: int, spread: float = 0.6) -> tuple[np.ndarray, list[str]]:
    """Clusters of vectors with a large part in common, as raw text vectors have; one cluster a label."""
    chance = np.random.default_rng(seed)
    middles = chance.normal(size=(n_labels, 32))
    labels = np.repeat(np.arange(n_labels), per_label)
    vectors = middles[labels] + spread * chance.normal(size=(len(labels), 32)) + 4
    return vectors.astype(np.float32), [f"label {k}" for k in labels]


def flipped(labels: list[str], share: float, seed: int) -> tuple[list[str], np.ndarray]:
    chance = np.random.default_rng(seed)
    names = sorted(set(labels))
    wrong = chance.random(len(labels)) < share
    moved = [names[(names.index(x) + chance.integers(1, len(names))) % len(names)] if w else x for x, w in zip(labels, wrong, strict=True)]
    return moved, wrong


def test_the_fit_has_the_probabilities_of_sklearns() -> None:
    vectors, labels = toy(40, 4, 0, spread=2)
    codes = np.array([int(x.split()[1]) for x in labels])
    vectors = (vectors - vectors.mean(axis=0)) / 5
    weights, biases = fit_softmax(vectors, codes, 4)
    scores = np.exp(vectors @ weights + biases)
    theirs = LogisticRegression(C=1 / (L2 * len(codes)), max_iter=5000, tol=1e-8).fit(vectors, codes).predict_proba(vectors)
    np.testing.assert_allclose(scores / scores.sum(axis=1, keepdims=True), theirs, atol=0.02)


def test_planted_wrong_labels_rank_first_and_their_right_labels_are_named() -> None:
    vectors, labels = toy(60, 8, 1)
    given, wrong = flipped(labels, 0.05, 2)
    found = suspects(vectors, given, seed=0)
    assert found is not None and found.judged == len(labels)
    assert roc_auc_score(wrong, -found.given) > 0.99
    assert wrong[found.rows].mean() > 0.9 and wrong[found.rows].sum() > 0.6 * wrong.sum()
    assert np.mean([labels[row] == right for row, right in zip(found.rows, found.predicted, strict=True)]) > 0.9
    assert found.accuracy == pytest.approx(1 - wrong.mean(), abs=0.03) and 0.7 <= found.precision <= 1


def test_clean_labels_raise_no_suspects() -> None:
    found = suspects(*toy(60, 8, 3), seed=0)
    assert found is not None and not len(found.rows) and np.isnan(found.precision)


def test_labels_that_do_not_follow_from_the_text_raise_no_suspects() -> None:
    vectors, labels = toy(200, 3, 4)
    shuffled = np.random.default_rng(5).permutation(labels).tolist()
    found = suspects(vectors, shuffled, seed=0)
    assert found is not None and not len(found.rows)


def test_two_labels_whose_difference_is_the_first_principal_component_are_told_apart() -> None:
    vectors, labels = toy(50, 2, 6)
    given = list(labels)
    given[7] = "label 1"
    found = suspects(vectors, given, seed=0)
    assert found is not None and found.rows.tolist() == [7] and found.predicted == ("label 0",)


def test_a_record_is_judged_by_a_fit_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = toy(20, 3, 7)
    seen: list[int] = []
    real = label_noise.fit_softmax

    def watched(rows: np.ndarray, codes: np.ndarray, n_labels: int) -> tuple[np.ndarray, np.ndarray]:
        seen.append(len(rows))
        assert np.bincount(codes, minlength=n_labels).tolist() == [16, 16, 16]
        return real(rows, codes, n_labels)

    monkeypatch.setattr(label_noise, "fit_softmax", watched)
    assert suspects(vectors, labels, seed=0) is not None
    assert seen == [48] * FOLDS


def test_above_the_limit_each_fit_sees_a_share_that_keeps_rare_labels_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = toy(200, 3, 8)
    labels = ["rare" if i < 15 else x for i, x in enumerate(labels)]
    sizes: list[list[int]] = []
    real = label_noise.fit_softmax
    monkeypatch.setattr(label_noise, "MAX_FITTED", 120)
    monkeypatch.setattr(label_noise, "fit_softmax", lambda v, y, k: sizes.append(np.bincount(y, minlength=k).tolist()) or real(v, y, k))
    found = suspects(vectors, labels, seed=0)
    assert found is not None and found.judged == len(labels)
    assert all(sum(size) == 120 and size[-1] == 12 for size in sizes)


def test_rare_labels_are_not_judged_and_one_label_cannot_be() -> None:
    vectors, labels = toy(MIN_RECORDS, 3, 9)
    found = suspects(vectors[1:], labels[1:], seed=0)
    assert found is not None and np.isnan(found.given[: MIN_RECORDS - 1]).all() and not np.isnan(found.given[MIN_RECORDS - 1 :]).any()
    assert suspects(vectors, ["same"] * len(labels), seed=0) is None
    assert suspects(vectors[:0], [], seed=0) is None


def test_the_same_seed_gives_the_same_answer() -> None:
    vectors, labels = toy(30, 4, 10, spread=2)
    one, two = suspects(vectors, labels, seed=3), suspects(vectors, labels, seed=3)
    assert one is not None and two is not None
    np.testing.assert_array_equal(one.given, two.given)


def test_agreement_is_the_share_among_records_predicted_alike() -> None:
    chance = np.random.default_rng(11)
    predicted, labels = chance.integers(3, size=400), chance.integers(3, size=400)
    best = chance.permutation(400).astype(np.float32)
    found = label_noise._agreement(predicted, best, labels)
    for row in range(400):
        alike = sorted(np.flatnonzero(predicted == predicted[row]), key=lambda r: -best[r])
        start = min(max(0, alike.index(row) - ALIKE // 2), max(0, len(alike) - ALIKE))
        window = alike[start : start + ALIKE]
        assert found[row] == pytest.approx(np.mean([labels[r] == predicted[row] for r in window]))
