"""Metrics against the libraries that define them; every row of the table scores a perfect answer best."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from sklearn.metrics import f1_score

from tuner.evaluate.metrics import DEFAULT_METRICS, METRICS, Answer, Metric


def value(metric: Metric, answers: list[Answer]) -> float:
    return float(metric.combine(metric.parts(answers).sum(axis=0)))


TEXT = [name for name, m in METRICS.items() if m.of == "text"]


@pytest.mark.parametrize("name", TEXT)
def test_a_perfect_answer_scores_best_and_an_empty_one_does_not_crash(name: str) -> None:
    wanted = ['{"intent": ["a"], "slots": {}}', '{"intent": ["b"], "slots": {"x": ["1"]}}']
    perfect = [Answer((w,), w) for w in wanted]
    empty = [Answer((w,), "") for w in wanted]
    assert value(METRICS[name], perfect) == pytest.approx(METRICS[name].best)
    assert value(METRICS[name], empty) < METRICS[name].best


def test_the_table_was_swept_and_every_default_exists() -> None:
    assert len(TEXT) == 7 and len(METRICS) == 9
    assert all(name in METRICS for names in DEFAULT_METRICS.values() for name in names)


def test_macro_f1_equals_sklearn_on_random_labels() -> None:
    rng = random.Random(3)
    for _ in range(50):
        labels = ["a", "b", "c", "d"][: rng.randint(2, 4)]
        wanted = [rng.choice(labels) for _ in range(30)]
        said = [rng.choice([*labels, "other", ""]) for _ in range(30)]
        ours = value(METRICS["macro_f1"], [Answer((w,), s) for w, s in zip(wanted, said, strict=True)])
        theirs = f1_score(wanted, said, labels=sorted(set(wanted)), average="macro", zero_division=0)
        assert ours == pytest.approx(theirs)


def test_exact_match_ignores_case_width_and_spacing_only() -> None:
    exact = METRICS["exact_match"]
    assert value(exact, [Answer(("pin change",), "  PIN\u00a0Change\n")]) == 1
    assert value(exact, [Answer(("pin_change",), "pin_change.")]) == 0
    assert value(exact, [Answer(("a", "b"), "b")]) == 1


def test_json_field_f1_equals_a_naive_count() -> None:
    rng = random.Random(5)

    def leaves(text: str) -> list[tuple[str, str]]:
        try:
            found = json.loads(text)
        except ValueError:
            return []
        return [(k, json.dumps(v)) for k, vs in found.items() for v in vs] if isinstance(found, dict) else []

    answers, both, said_count, wanted_count = [], 0, 0, 0
    for _ in range(60):
        wanted = json.dumps({k: [rng.choice("xyz") for _ in range(rng.randint(0, 3))] for k in "ab"})
        said = rng.choice([json.dumps({k: [rng.choice("xyz")] for k in "ab"}), "not json", wanted, "[1]"])
        answers.append(Answer((wanted,), said))
        left = leaves(wanted)
        wanted_count += len(left)
        for leaf in leaves(said):
            said_count += 1
            if leaf in left:
                left.remove(leaf)
                both += 1
    assert value(METRICS["json_field_f1"], answers) == pytest.approx(2 * both / (said_count + wanted_count))


def test_json_exact_ignores_key_order_and_json_valid_wants_an_object_alone() -> None:
    reference = '{"a": 1, "b": [2]}'
    assert value(METRICS["json_exact"], [Answer((reference,), '{"b": [2], "a": 1}')]) == 1
    assert value(METRICS["json_valid"], [Answer((reference,), text) for text in ('{"a": 1}', "[1]", '{"a": 1} ok', "")]) == 0.25


def test_bits_per_byte_and_loss_are_ratios_of_sums() -> None:
    answers = [Answer(("ab",), None, nats=3.0, tokens=2, bytes=2), Answer(("c",), None, nats=1.0, tokens=3, bytes=4)]
    assert value(METRICS["loss"], answers) == pytest.approx(4 / 5)
    assert value(METRICS["bits_per_byte"], answers) == pytest.approx(4 / math.log(2) / 6)
    assert not METRICS["loss"].higher_is_better


def test_chrf_is_sacrebleus_sentence_score() -> None:
    from sacrebleu.metrics import CHRF

    answers = [Answer(("The Vaults is a pub.", "A pub called The Vaults."), "The Vaults, a pub"), Answer(("x",), "y")]
    theirs = np.mean([CHRF().sentence_score(a.text or "", list(a.references)).score / 100 for a in answers])
    assert value(METRICS["chrf"], answers) == pytest.approx(float(theirs))


def test_json_that_is_nested_without_end_or_says_a_key_twice_is_no_object_and_true_is_not_one() -> None:
    deep = '{"a":' + "[" * 900 + "]" * 900 + "}"
    for text in (deep, '{"a": 1, "a": 2}', '{"a": NaN}'):
        assert value(METRICS["json_valid"], [Answer(('{"a": 1}',), text)]) == 0
        assert value(METRICS["json_field_f1"], [Answer(('{"a": 1}',), text)]) == 0
    assert value(METRICS["json_exact"], [Answer(('{"a": 1}',), '{"a": true}')]) == 0
