"""Exchanged answers among toy records whose questions and answers share topics; the share of misfits against a loop."""

from __future__ import annotations

import numpy as np
import pytest

from tuner.data import answer_fit as module
from tuner.data.answer_fit import GAIN, MISFIT, answer_fit
from tuner.data.embedding import centred_on_mean, static_encoder

TEXT = "a long enough answer with several different words"


def toy(n: int, seed: int, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Raw question and answer vectors (n, 256): a topic of their own each, noise, and a large part in common."""
    chance = np.random.default_rng(seed)
    topics = chance.normal(size=(n, 256))
    question, answer = (topics + noise * chance.normal(size=(n, 256)) + shift for shift in (3, -2))
    return question.astype(np.float32), answer.astype(np.float32)


def test_exchanged_answers_are_suspects_and_their_homes_are_named() -> None:
    question, answer = toy(400, 0)
    moved = np.arange(400)
    moved[[10, 50, 90, 120]] = [50, 90, 10, 300]
    moved[300] = 120
    found = answer_fit(question, answer[moved], [TEXT] * 400, seed=0)
    assert dict(zip(found.rows.tolist(), found.homes.tolist(), strict=True)) == {10: 50, 50: 90, 90: 10, 120: 300, 300: 120}


def test_matching_answers_raise_no_suspects() -> None:
    found = answer_fit(*toy(400, 1), [TEXT] * 400, seed=0)
    assert not len(found.rows) and not found.is_unrelated and found.misfit_share < 0.02


def test_unlike_answers_without_a_home_raise_no_suspects() -> None:
    question, answer = toy(400, 2)
    answer[:40] = np.random.default_rng(3).normal(size=(40, 256)) - 2
    found = answer_fit(question, answer, [TEXT] * 400, seed=0)
    assert not len(found.rows) and (found.misfit[:40] > MISFIT).mean() > 0.5


def test_an_answer_whose_right_question_is_answered_rightly_too_is_no_suspect() -> None:
    question, answer = toy(400, 4)
    answer[7] = answer[8]
    assert not len(answer_fit(question, answer, [TEXT] * 400, seed=0).rows)


def test_short_answers_are_ranked_but_no_suspects() -> None:
    question, answer = toy(400, 5)
    answer[[3, 4]] = answer[[4, 3]]
    texts = [TEXT] * 400
    texts[3] = "12 is a no 7"
    found = answer_fit(question, answer, texts, seed=0)
    assert found.rows.tolist() == [4] and found.misfit[3] > MISFIT


def test_a_shifted_column_is_unrelated() -> None:
    question, answer = toy(400, 6)
    found = answer_fit(question, np.roll(answer, 1, axis=0), [TEXT] * 400, seed=0)
    assert found.is_unrelated and found.misfit_share > 0.8
    assert (found.homes == (found.rows - 1) % 400).mean() > 0.95


def test_misfit_is_the_share_of_strangers_that_fit_better() -> None:
    question, answer = toy(120, 7, noise=2)
    cosines = centred_on_mean(question) @ centred_on_mean(answer).T
    expected = [min((cosines[i] > cosines[i, i] + 1e-5).mean(), (cosines[:, i] > cosines[i, i] + 1e-5).mean()) for i in range(120)]
    np.testing.assert_allclose(answer_fit(question, answer, [TEXT] * 120, seed=0).misfit, expected, atol=0.01)


def test_every_suspect_meets_every_condition_of_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRANGERS", 200)
    question, answer = toy(600, 8, noise=0.8)
    swapped = np.random.default_rng(9).choice(600, 60, replace=False)
    answer[swapped] = answer[np.roll(swapped, 1)]
    found = answer_fit(question, answer, [TEXT] * 600, seed=1)
    q, a = centred_on_mean(question), centred_on_mean(answer)
    assert len(found.rows) > 10 and len(set(found.homes.tolist())) == len(found.homes)
    gains = []
    for row, home in zip(found.rows, found.homes, strict=True):
        gains.append(a[row] @ q[home] - max(a[row] @ q[row], a[home] @ q[home]))
        assert row != home and gains[-1] > GAIN and min(found.misfit[row], found.misfit[home]) > MISFIT
        assert ((a[row] @ q.T) > a[row] @ q[home] + 1e-6).sum() <= 3
    assert (np.diff(gains) <= 1e-5).all() and set(found.rows.tolist()) <= set(swapped.tolist())


def test_real_sentences_given_each_others_answers_are_found() -> None:
    pairs = {
        "How do I bake sourdough bread at home?": "Mix flour, water and starter, let the bread dough rise overnight, then bake it in a hot oven.",
        "Why do planes leave white trails in the sky?": "Aircraft engines emit water vapour that freezes in cold air and leaves white contrails behind planes.",
        "What does a plumber do about a leaking pipe?": "The plumber shuts off the water, cuts out the leaking section of pipe and solders in a new one.",
        "Which vitamins are found in oranges?": "Oranges hold much vitamin C, some folate and vitamin B, and a little potassium.",
        "How can I train my puppy to sit?": "Hold a treat above the puppy's nose, say sit, and reward the dog as soon as it sits down.",
        "How does the stock market crash?": "Stock prices crash when investors panic and sell shares faster than the market finds buyers.",
        "What is the capital city of France known for?": "Paris, the capital of France, is known for the Eiffel Tower, museums and cafes of the city.",
        "How do volcanoes erupt?": "Volcanoes erupt when magma and gas pressure rise underground until lava breaks through the crust.",
    }
    fillers = [
        f"{verb} the {thing}" for thing in ("violin", "tent", "camera", "garden", "bicycle") for verb in ("clean", "repair", "paint", "sell", "carry", "store")
    ]
    questions = [*pairs, *(f"How should I {f} properly?" for f in fillers)]
    answers = [*pairs.values(), *(f"To {f}, first prepare your tools, then carefully {f} step by step." for f in fillers)]
    answers[2], answers[5] = answers[5], answers[2]
    encode = static_encoder().encode
    found = answer_fit(encode(questions)[0], encode(answers)[0], answers, seed=0)
    assert sorted(found.rows.tolist()) == [2, 5] and found.homes[found.rows == 2].tolist() == [5]


def test_no_records_and_one_record_are_no_misfits() -> None:
    for n in (0, 1):
        question, answer = toy(n, 10)
        found = answer_fit(question, answer, [TEXT] * n, seed=0)
        assert len(found.misfit) == n and not len(found.rows) and found.misfit_share == 0
