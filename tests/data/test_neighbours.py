"""The nearest rows against a full sort of the whole similarity matrix, and against sklearn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from tuner.data import neighbours
from tuner.data.neighbours import centres, nearest, nearest_in_itself


def unit_rows(n: int, d: int, seed: int, clusters: int = 0) -> np.ndarray:
    chance = np.random.default_rng(seed)
    rows = chance.normal(size=(n, d))
    if clusters:
        rows = 0.5 * rows + 2 * chance.normal(size=(clusters, d))[chance.integers(clusters, size=n)]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def full_sort(queries: np.ndarray, corpus: np.ndarray, k: int, itself: bool) -> tuple[np.ndarray, np.ndarray]:
    cosines = queries @ corpus.T
    if itself:
        np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, order, axis=1), order


@pytest.mark.parametrize(("queries", "rows", "k"), [(1, 1, 1), (7, 3, 2), (50, 500, 5), (300, 1000, 1), (20, 30, 30)])
def test_the_nearest_are_those_of_a_full_sort(queries: int, rows: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_QUERIES", 16)
    monkeypatch.setattr(neighbours, "_CORPUS", 64)
    asked, corpus = unit_rows(queries, 24, 1), unit_rows(rows, 24, 2)
    cosines, found = nearest(asked, corpus, k)
    expected, order = full_sort(asked, corpus, k, itself=False)
    np.testing.assert_allclose(cosines, expected, atol=1e-6)
    np.testing.assert_array_equal(found, order)


def test_the_nearest_are_sklearns() -> None:
    asked, corpus = unit_rows(40, 32, 3), unit_rows(900, 32, 4)
    distance, order = NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute").fit(corpus).kneighbors(asked)
    cosines, found = nearest(asked, corpus, 6)
    np.testing.assert_array_equal(found, order)
    np.testing.assert_allclose(cosines, 1 - distance, atol=1e-5)


def test_a_row_never_finds_itself_but_finds_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_QUERIES", 16)
    monkeypatch.setattr(neighbours, "_CORPUS", 32)
    corpus = unit_rows(200, 16, 5)
    corpus[150] = corpus[3]
    cosines, found = nearest_in_itself(corpus, 4)
    expected, order = full_sort(corpus, corpus, 4, itself=True)
    np.testing.assert_allclose(cosines, expected, atol=1e-6)
    others = [i for i in range(200) if i not in (3, 150)]  # which of two equal rows comes first is a matter of rounding
    found_once, order_once = (np.sort(np.where(of == 150, 3, of)[others], axis=1) for of in (found, order))
    np.testing.assert_array_equal(found_once, order_once)
    assert found[3, 0] == 150 and found[150, 0] == 3 and not (found == np.arange(200)[:, None]).any()


def test_of_equal_cosines_the_lower_row_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_CORPUS", 4)
    corpus = np.tile(np.eye(2, dtype=np.float32)[0], (12, 1))
    assert nearest(corpus[:1], corpus, 3)[1].tolist() == [[0, 1, 2]]
    assert nearest_in_itself(corpus, 3)[1][1].tolist() == [0, 2, 3]


def test_k_is_cut_to_what_is_there() -> None:
    corpus = unit_rows(3, 8, 6)
    assert nearest(corpus, corpus, 10)[1].shape == (3, 3) and nearest_in_itself(corpus, 10)[1].shape == (3, 2)
    assert nearest(corpus[:0], corpus, 2)[1].shape == (0, 2) or nearest(corpus[:0], corpus, 2)[1].shape[0] == 0
    assert nearest_in_itself(corpus[:1], 5)[1].shape == (1, 0) and nearest(corpus, corpus[:0], 5)[1].shape == (3, 0)


@pytest.mark.parametrize("itself", [False, True])
def test_cells_find_nearly_all_and_never_a_wrong_cosine(itself: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = unit_rows(6000, 16, 7, clusters=60)
    asked = corpus if itself else unit_rows(500, 16, 7, clusters=60)
    _, truth = full_sort(asked, corpus, 5, itself)
    monkeypatch.setattr(neighbours, "EXACT_PAIRS", 100_000)
    monkeypatch.setattr(neighbours, "_CELL", 50)
    monkeypatch.setattr(neighbours, "_PROBES", 20)
    cosines, found = nearest_in_itself(corpus, 5) if itself else nearest(asked, corpus, 5)
    np.testing.assert_allclose(cosines, np.take_along_axis(asked @ corpus.T, found, axis=1), atol=1e-5)
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found.tolist(), truth.tolist(), strict=True)]) > 0.97
    assert not itself or not (found == np.arange(len(corpus))[:, None]).any()


def test_with_every_cell_looked_into_cells_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = unit_rows(1500, 12, 8, clusters=9)
    exact = nearest_in_itself(corpus, 6)
    monkeypatch.setattr(neighbours, "EXACT_PAIRS", 20_000)
    monkeypatch.setattr(neighbours, "_PROBES", 10_000)
    np.testing.assert_array_equal(nearest_in_itself(corpus, 6)[1], exact[1])


def test_centres_are_unit_rows_near_the_clusters_and_the_same_each_time() -> None:
    corpus = unit_rows(2000, 16, 9, clusters=8)
    found = centres(corpus, 24, 0)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found, centres(corpus, 24, 0))
    assert np.mean((corpus @ found.T).max(axis=1)) > 0.9
