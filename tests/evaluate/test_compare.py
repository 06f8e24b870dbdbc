"""Two versions on the questions both were asked, from rows alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from tuner.errors import Refusal
from tuner.evaluate.compare import compare, read_back
from tuner.evaluate.intervals import difference
from tuner.evaluate.metrics import METRICS, Answer

FORMS = {"exact_match": "mean", "chrf": "mean", "loss": "ratio", "macro_f1": "macro_f1", "perplexity": "perplexity", "bleu": "bleu", "membership_auc": "auc"}
FACTS: dict[str, dict[str, Any]] = {name: {"what": name, "higher_is_better": name not in ("loss", "perplexity"), "form": form} for name, form in FORMS.items()}


def row(item: int, said: str, wanted: str = "yes", suite: str = "held_out", contender: str = "adapter", **more: Any) -> dict[str, Any]:
    return {"suite": suite, "item": item, "contender": contender, "where": f"f:{item}", "question": [{"role": "user", "content": f"q{item}"}],
            "reference": wanted, "references": [wanted], "answer": said, "scores": {"exact_match": float(said == wanted)}, "parts": {}, **more}  # fmt: skip


def compared(a: list[dict[str, Any]], b: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return compare(a, b, FACTS, name_a="old", name_b="new", seed=0, resamples=1000, **more)


def test_the_difference_is_b_minus_a_on_the_common_items_whatever_their_order() -> None:
    a = [row(i, "yes" if i % 2 else "no") for i in range(40)]
    b = [row(i + 500, "yes", question=[{"role": "user", "content": f"q{i}"}]) for i in reversed(range(10, 60))]
    found = compared(a, b)["suites"]["held_out"]
    assert (found["n"], found["only in old"], found["only in new"]) == (30, 10, 20)
    gap = found["metrics"]["exact_match"]["difference"]
    assert gap["value"] == 0.5 and gap["baseline"] == "old" and gap["p"] == pytest.approx(0.5**15) and gap["verdict"] == "better"
    assert found["metrics"]["exact_match"]["values"]["old"]["value"] == 0.5 and found["metrics"]["exact_match"]["values"]["new"]["value"] == 1.0


def test_a_changed_reference_or_suite_is_another_item() -> None:
    a = [row(0, "yes"), row(1, "yes"), row(2, "yes")]
    b = [row(0, "yes", wanted="no"), row(1, "yes", suite="far"), row(2, "yes")]
    found = compared(a, b)["suites"]
    assert (found["held_out"]["n"], found["held_out"]["only in old"], found["held_out"]["only in new"], found["far"]["n"]) == (1, 2, 1, 0)


def test_only_the_adapters_rows_are_compared() -> None:
    a = [row(i, "no", contender="base zero_shot") for i in range(5)] + [row(i, "yes") for i in range(5)]
    assert compared(a, a)["suites"]["held_out"]["metrics"]["exact_match"]["values"]["old"]["value"] == 1.0
    assert compared(a, a, contender="base zero_shot")["suites"]["held_out"]["metrics"]["exact_match"]["values"]["old"]["value"] == 0.0


def test_ratios_are_sums_over_sums() -> None:
    rng = np.random.default_rng(0)
    nats, tokens = rng.random((2, 30)) * 20, rng.integers(2, 30, 30)
    sides = [[row(i, "", parts={"loss": [nats[s, i], int(tokens[i])], "perplexity": [nats[s, i], int(tokens[i])]}) for i in range(30)] for s in (0, 1)]
    found = compared(*sides)["suites"]["held_out"]["metrics"]
    assert found["loss"]["difference"]["value"] == pytest.approx((nats[1].sum() - nats[0].sum()) / tokens.sum())
    assert found["perplexity"]["values"]["old"]["value"] == pytest.approx(np.exp(nats[0].sum() / tokens.sum()))


def test_macro_f1_is_graded_again_from_the_answers_as_sklearn_grades_it() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.choice(["a", "b", "c"], 60)
    said = [np.where(rng.random(60) < p, wanted, rng.choice(["a", "b", "c"], 60)) for p in (0.4, 0.8)]
    sides = [[row(i, str(s[i]), wanted=str(wanted[i]), scores={"macro_f1": None}) for i in range(60)] for s in said]
    found = compared(*sides)["suites"]["held_out"]["metrics"]["macro_f1"]
    assert [found["values"][n]["value"] for n in ("old", "new")] == pytest.approx([f1_score(wanted, s, average="macro") for s in said])


def test_corpus_bleu_is_read_from_its_kept_sums() -> None:
    answers = [Answer(("the cat sat on the mat",), "the cat sat on a mat"), Answer(("a dog ran in the park today",), "a dog ran in the park")]
    parts = METRICS["bleu"].parts(answers)
    rows = [row(i, "", parts={"bleu": p}) for i, p in enumerate(parts.tolist())]
    assert compared(rows, rows)["suites"]["held_out"]["metrics"]["bleu"]["values"]["old"]["value"] == pytest.approx(
        float(METRICS["bleu"].combine(parts.sum(axis=0)))
    )


def test_what_pairing_does_not_fit_is_named_with_the_reason() -> None:
    rows = [row(i, "yes", scores={"membership_auc": 0.1 * i, "own": 1.0}) for i in range(12)]
    left_out = compared(rows, rows)["suites"]["held_out"]["left_out"]
    assert "auc" in left_out["membership_auc"] and left_out["own"] == "not in the metrics of this evaluation"


def test_items_without_a_score_are_left_out_of_that_metric_on_both_sides() -> None:
    a = [row(i, "yes", scores={"exact_match": 1.0, "chrf": None if i == 3 else 0.5}) for i in range(10)]
    b = [row(i, "yes", scores={"exact_match": 1.0, "chrf": None if i == 4 else 0.25}) for i in range(10)]
    found = compared(a, b)["suites"]["held_out"]["metrics"]
    assert found["chrf"]["difference"]["n"] == 8 and found["exact_match"]["difference"]["n"] == 10


def test_the_same_question_twice_is_two_items() -> None:
    a = [row(0, "yes"), row(0, "no"), row(0, "yes")]
    assert compared(a, a[:2])["suites"]["held_out"]["n"] == 2


def test_suites_may_mean_different_things_by_one_name() -> None:
    rows = [row(i, "yes", suite="cost", scores={"seconds": float(i)}) for i in range(5)]
    found = compare(rows, rows, {"cost.seconds": {"what": "s", "higher_is_better": False, "form": "mean"}}, name_a="a", name_b="b", seed=0, resamples=1000)
    assert found["suites"]["cost"]["metrics"]["seconds"]["values"]["a"]["value"] == 2.0


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(Refusal, match="none in common"):
        compared([row(0, "yes")], [row(1, "yes")])


def test_a_continuous_metric_has_scipys_permutation_p() -> None:
    rng = np.random.default_rng(4)
    scores = rng.random((2, 50)) + np.array([[0.0], [0.12]])
    a, b = ([row(i, "", scores={"chrf": s}) for i, s in enumerate(of)] for of in scores)
    found = compare(a, b, FACTS, name_a="a", name_b="b", seed=0, resamples=10_000)["suites"]["held_out"]["metrics"]["chrf"]["difference"]
    permuted = stats.permutation_test((scores[1], scores[0]), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=9_999, random_state=0)
    assert found["p"] == pytest.approx(permuted.pvalue, abs=0.02)


def test_calibration_bins_are_put_back_together() -> None:
    rows = [row(i, "", parts={"ece": [i % 10, 0.05 + 0.1 * (i % 10), float(i % 3 == 0)]}) for i in range(60)]
    read = read_back([rows], "ece", {"form": "ece"})
    naive = sum(abs(sum(r["parts"]["ece"][1] - r["parts"]["ece"][2] for r in rows if r["parts"]["ece"][0] == b)) for b in range(10)) / 60
    assert read is not None and float(read.combine(read.sides[0].sum(axis=0))) == pytest.approx(naive)


def test_items_that_name_their_source_are_drawn_together() -> None:
    """Twenty sources of five equal answers are twenty items; those without a source are each their own."""
    by_source = np.random.default_rng(0).random((2, 20)) < 0.5
    sides = [[row(i, "yes" if of[i // 5] else "no", group=f"s{i // 5}") for i in range(100)] for of in by_source]
    found, wanted = compared(*sides)["suites"]["held_out"]["metrics"]["exact_match"], paired_t(by_source[1] * 1.0, by_source[0] * 1.0)
    assert (found["difference"]["low"], found["difference"]["high"]) == pytest.approx(wanted, abs=1e-9)
    assert "20 groups" in found["difference"]["method"] and "20 groups" in found["values"]["old"]["method"]
    some = [[{**r, "group": None} if r["item"] >= 50 else r for r in side] for side in sides]
    assert "60 groups" in compared(*some)["suites"]["held_out"]["metrics"]["exact_match"]["difference"]["method"]


def paired_t(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Interval of the difference of twenty scores, by the functions that other tests hold against scipy."""
    parts = [np.column_stack([s, np.ones(20)]) for s in (ours, theirs)]
    found = difference(*parts, METRICS["chrf"].combine, binary=False, higher_is_better=True, baseline="b", resamples=1000, seed=0, bounds=(0.0, 1.0))
    return found.low, found.high


def test_what_memorisation_calls_a_group_is_no_source() -> None:
    sides = [[row(i, "", suite="memorisation", group="member", question=None, scores={"exact_match": float(i % n == 0)}) for i in range(30)] for n in (2, 3)]
    assert "groups" not in compared(*sides)["suites"]["memorisation"]["metrics"]["exact_match"]["difference"]["method"]
