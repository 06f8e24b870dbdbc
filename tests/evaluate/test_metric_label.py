"""Label metrics against scikit-learn; the calibration error against its definition and its null."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, brier_score_loss, confusion_matrix, f1_score

from tuner.evaluate.metric_label import calibration, confidence, confusion, ece_null, probabilities
from tuner.evaluate.metrics import METRICS, Answer

LABELS = ("a", "b", "c", "d")


def value(name: str, answers: Sequence[Answer]) -> float:
    metric = METRICS[name]
    return float(metric.combine(metric.parts(answers).sum(axis=0)))


def test_macro_f1_and_accuracy_equal_sklearn_on_random_labels() -> None:
    rng = random.Random(3)
    for _ in range(50):
        labels = LABELS[: rng.randint(2, 4)]
        wanted = [rng.choice(labels) for _ in range(30)]
        said = [rng.choice([*labels, "other", ""]) for _ in range(30)]
        answers = [Answer((w,), s) for w, s in zip(wanted, said, strict=True)]
        theirs = f1_score(wanted, said, labels=sorted(set(wanted)), average="macro", zero_division=0)
        assert value("macro_f1", answers) == pytest.approx(theirs)
        assert value("accuracy", answers) == pytest.approx(accuracy_score(wanted, said))


def test_confusion_equals_sklearn_and_counts_every_item_once() -> None:
    rng = random.Random(5)
    wanted = [rng.choice(LABELS) for _ in range(80)]
    said = [rng.choice([*LABELS, "zzz"]) for _ in range(80)]
    found = confusion([Answer((w.upper(),), f" {s}") for w, s in zip(wanted, said, strict=True)])
    theirs = confusion_matrix(wanted, said, labels=[*LABELS, "zzz"])
    assert found.labels == ("A", "B", "C", "D")
    assert np.array_equal(np.array(found.counts), theirs[:4, :4]) and list(found.elsewhere) == theirs[:4, 4].tolist()
    assert np.array(found.counts).sum() + sum(found.elsewhere) == 80
    assert found.as_dict()["counts"][0] == list(found.counts[0])


def calibrated(rng: random.Random, count: int, temperature: float = 1.0) -> list[Answer]:
    """Labels drawn from the probabilities themselves; a temperature below 1 then makes the stated ones too sure."""
    made = []
    for _ in range(count):
        odds = [rng.gauss(0, 1.5) for _ in LABELS]
        shares = np.exp(odds) / np.exp(odds).sum()
        wanted = rng.choices(LABELS, shares)[0]
        made.append(Answer((wanted,), wanted, label_nats={label: 7 + odd / temperature for label, odd in zip(LABELS, odds, strict=True)}))
    return made


def naive_ece(answers: Sequence[Answer], bins: int = 10) -> float:
    found = sorted((confidence(a) for a in answers), key=lambda pair: pair[0])
    total = 0.0
    for b in range(bins):
        inside = [pair for rank, pair in enumerate(found) if rank * bins // len(found) == b]
        if inside:
            total += len(inside) / len(found) * abs(sum(r for _, r in inside) / len(inside) - sum(c for c, _ in inside) / len(inside))
    return total


@pytest.mark.parametrize("count", [1, 7, 10, 95, 400])
def test_ece_equals_a_naive_loop_over_bins_of_equal_mass(count: int) -> None:
    answers = calibrated(random.Random(count), count)
    assert value("ece", answers) == pytest.approx(naive_ece(answers))


def test_probabilities_are_a_softmax_of_log_likelihoods_however_small() -> None:
    found = probabilities({"A": -5000.0, "b": -5000.0 + math.log(3)})
    assert found == pytest.approx({"a": 0.25, "b": 0.75})


def test_brier_equals_sklearn() -> None:
    answers = calibrated(random.Random(8), 200)
    shares = [[probabilities(a.label_nats or {})[label] for label in LABELS] for a in answers]
    theirs = brier_score_loss([a.references[0] for a in answers], np.array(shares), labels=list(LABELS), scale_by_half=False)
    assert value("brier", answers) == pytest.approx(theirs)


def test_brier_of_a_reference_that_is_no_label_counts_it_as_a_label_of_probability_0() -> None:
    assert value("brier", [Answer(("z",), "a", label_nats={"a": 0.0, "b": 0.0})]) == pytest.approx(0.25 + 0.25 + 1)


def test_the_null_is_what_calibrated_models_show_and_far_from_0_on_few_items() -> None:
    """Measured against 200 simulated suites each: their mean and 95th percentile."""
    for count in (100, 400):
        rng = random.Random(count)
        shown = [value("ece", calibrated(rng, count)) for _ in range(200)]
        mean, top = np.mean([ece_null(calibrated(rng, count), 1, 300) for _ in range(20)], axis=0)
        assert mean == pytest.approx(np.mean(shown), rel=0.1)
        assert top == pytest.approx(np.percentile(shown, 95), rel=0.12)
        assert mean > 0.03


def test_a_calibrated_model_is_rarely_called_otherwise_and_an_overconfident_one_is() -> None:
    rng = random.Random(11)
    assert sum(calibration(calibrated(rng, 200), 1)["beyond_chance"] for _ in range(60)) <= 9  # 3 expected; P(more than 9) < 0.001
    assert all(calibration(calibrated(rng, 200, temperature=0.4), 1)["beyond_chance"] for _ in range(10))


def test_calibrations_bins_give_the_error_back() -> None:
    answers = calibrated(random.Random(13), 123)
    found = calibration(answers, 3)
    assert sum(b["n"] * abs(b["confidence"] - b["accuracy"]) for b in found["bins"]) / 123 == pytest.approx(found["ece"])
    assert found["n"] == sum(b["n"] for b in found["bins"]) == 123 and found["null_mean"] < found["null_95"]
    assert calibration(answers, 3) == found
