"""Versions that differ in their seed: the interval holds both kinds of chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from tuner.errors import Refusal
from tuner.evaluate.seeds import over_seeds

FACTS = {"chrf": {"what": "c", "higher_is_better": True, "form": "mean"}, "exact_match": {"what": "e", "higher_is_better": True, "form": "mean"},
         "loss": {"what": "l", "higher_is_better": False, "form": "ratio"}}  # fmt: skip


def rows(scores: np.ndarray, metric: str = "chrf", contender: str = "adapter") -> list[dict[str, Any]]:
    return [{"suite": "held_out", "item": i, "contender": contender, "question": [{"role": "user", "content": f"q{i}"}], "references": ["x"],
             "scores": {metric: float(s)}, "parts": {}} for i, s in enumerate(scores)]  # fmt: skip


def found(table: np.ndarray, metric: str = "chrf") -> dict[str, Any]:
    """`table` is (seeds, items)."""
    return over_seeds({f"v{s}": rows(of, metric) for s, of in enumerate(table)}, FACTS)["suites"]["held_out"]["values"][metric]


def crossed(rng: np.random.Generator, seeds: int, items: int, between_seeds: float) -> np.ndarray:
    return 0.5 + rng.normal(0, between_seeds, (seeds, 1)) + rng.normal(0, 1, (1, items)) + rng.normal(0, 0.5, (seeds, items))


def test_the_mean_is_over_seeds_and_the_spread_stands_apart() -> None:
    of = found(np.array([[0.2, 0.4, 0.6], [0.3, 0.5, 0.7], [0.1, 0.3, 0.8]]))
    means = [0.4, 0.5, 0.4]
    assert of["value"] == pytest.approx(np.mean(means)) and of["n"] == 3 and of["spread"]["values"] == pytest.approx(means)
    deviation = np.std(means, ddof=1)
    wanted = deviation * np.sqrt(2 / stats.chi2.ppf([0.975, 0.025], 2))
    assert (of["spread"]["deviation"], of["spread"]["low"], of["spread"]["high"]) == pytest.approx((deviation, *wanted))


def test_the_interval_is_that_of_the_mean_squares_of_a_crossed_design() -> None:
    table = crossed(np.random.default_rng(0), 4, 30, 0.3)
    seeds, items, grand = table.mean(1), table.mean(0), table.mean()
    of_seeds, of_items = 30 * np.var(seeds, ddof=1), 4 * np.var(items, ddof=1)
    of_rest = sum((table[s, i] - seeds[s] - items[i] + grand) ** 2 for s in range(4) for i in range(30)) / (3 * 29)
    whole = max(of_seeds + of_items - of_rest, of_seeds, of_items)
    degrees = max(whole**2 / (of_seeds**2 / 3 + of_items**2 / 29 + of_rest**2 / 87), 3)
    wanted = stats.t.interval(0.95, degrees, grand, np.sqrt(whole / 120))
    of = found(table)
    assert (of["low"], of["high"]) == pytest.approx(wanted)


@pytest.mark.parametrize(("seeds", "between", "least", "most"), [(3, 0.0, 0.93, 0.98), (3, 0.5, 0.90, 0.97), (5, 0.1, 0.93, 0.97), (5, 0.5, 0.91, 0.97)])
def test_the_interval_holds_the_truth_over_new_seeds_and_new_items(seeds: int, between: float, least: float, most: float) -> None:
    """400 simulated studies of 50 items; ± 3.3 binomial standard errors. Three seeds that differ much cover 92 to 94 %, and the docstring says so."""
    rng, doubt = np.random.default_rng(seeds), 3.3 * np.sqrt(0.05 * 0.95 / 400)
    held = [(f := found(crossed(rng, seeds, 50, between)))["low"] <= 0.5 <= f["high"] for _ in range(400)]
    assert least - doubt <= np.mean(held) <= most + doubt


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "least"), [(2, 0.85), (3, 0.91), (5, 0.92), (10, 0.93)])
@pytest.mark.parametrize("items", [50, 200])
@pytest.mark.parametrize("between", [0.0, 0.05, 0.5])
def test_2000_studies_are_covered(seeds: int, least: float, items: int, between: float) -> None:
    rng = np.random.default_rng([seeds, items])
    held = [(f := found(crossed(rng, seeds, items, between)))["low"] <= 0.5 <= f["high"] for _ in range(2000)]
    assert least <= np.mean(held) <= 0.985


def test_differences_are_paired_with_each_runs_own_baseline() -> None:
    rng = np.random.default_rng(0)
    base = (rng.random(80) < 0.4).astype(float)
    runs = {f"v{s}": rows(np.maximum(base, rng.random(80) < 0.4), "exact_match") + rows(base, "exact_match", "base few_shot") for s in range(3)}
    gap = over_seeds(runs, FACTS, baseline="base few_shot")["suites"]["held_out"]["differences"]["exact_match"]
    gains = [np.mean([r["scores"]["exact_match"] for r in of[:80]]) - base.mean() for of in runs.values()]
    assert gap["value"] == pytest.approx(np.mean(gains)) and gap["spread"]["values"] == pytest.approx(gains)
    assert gap["verdict"] == "better" and gap["p"] < 0.01 and gap["baseline"] == "base few_shot" and gap["low"] > 0


def test_seeds_that_disagree_are_not_called_better() -> None:
    """Each of three seeds alone would be; together they are +0.3, +0.3 and -0.3."""
    base = np.tile([0.0, 1.0], 50)
    tables = [np.where(np.arange(100) < 60, 1.0, base), np.where(np.arange(100) < 60, 1.0, base), np.where(np.arange(100) < 60, 0.0, base)]
    runs = {f"v{s}": rows(of, "exact_match") + rows(base, "exact_match", "base") for s, of in enumerate(tables)}
    gap = over_seeds(runs, FACTS, baseline="base")["suites"]["held_out"]["differences"]["exact_match"]
    assert gap["value"] == pytest.approx(0.1) and gap["verdict"] == "no difference seen" and gap["spread"]["deviation"] > 0.3


def test_only_items_that_all_versions_answered_count() -> None:
    table = np.arange(20.0).reshape(2, 10) / 20
    assert over_seeds({"a": rows(table[0]), "b": rows(table[1][:7])}, FACTS)["suites"]["held_out"]["n"] == 7


def test_versions_that_never_differ_leave_a_width() -> None:
    of = found(np.ones((3, 40)), "exact_match")
    assert of["value"] == 1.0 and of["low"] < 0.95 and of["high"] == 1.0


def test_ratios_are_taken_per_seed_over_all_items() -> None:
    tokens = np.arange(5, 25)
    nats = np.random.default_rng(0).random((2, 20)) * tokens
    runs = {f"v{s}": [{**r, "scores": {}, "parts": {"loss": [float(nats[s, i]), int(tokens[i])]}} for i, r in enumerate(rows(np.zeros(20)))] for s in (0, 1)}
    assert over_seeds(runs, FACTS)["suites"]["held_out"]["values"]["loss"]["spread"]["values"] == pytest.approx((nats.sum(1) / tokens.sum()).tolist())


def test_one_version_and_versions_with_nothing_in_common_are_refused() -> None:
    with pytest.raises(Refusal, match="at least two"):
        over_seeds({"a": rows(np.ones(3))}, FACTS)
    with pytest.raises(Refusal, match="no item in common"):
        over_seeds({"a": rows(np.ones(3)), "b": [{**r, "suite": "other"} for r in rows(np.ones(3))]}, FACTS)


def test_items_of_one_source_count_as_one() -> None:
    table = crossed(np.random.default_rng(0), 3, 20, 0.1)
    grouped = {f"v{s}": [{**r, "group": f"s{i // 4}"} for i, r in enumerate(rows(np.repeat(of, 4)))] for s, of in enumerate(table)}
    of, alone = over_seeds(grouped, FACTS)["suites"]["held_out"]["values"]["chrf"], found(table)
    assert (of["value"], of["low"], of["high"]) == pytest.approx((alone["value"], alone["low"], alone["high"]))
    assert of["n"] == 80 and "20 groups of items" in of["method"]
