"""Which answers are shown: losses are never hidden behind gains, none is invented or shown twice. Outcomes are made at random."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from tests.report.made import made
from tuner.report.answers import EXAMPLES, changes, instructive, paired

ANSWERS = {"right": "yes", "wrong": "no", "other": "maybe"}
KINDS = {
    ("right", "wrong"): "won",
    ("wrong", "right"): "lost",
    ("wrong", "wrong"): "both wrong",
    ("wrong", "other"): "changed",
    ("right", "right"): "both right",
}


def answered(outcomes: dict[str, list[tuple[str, str]]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Answers and suites from (adapter, baseline) by item."""
    rows = [
        {"suite": suite, "item": i, "where": f"{suite}:{i}", "contender": contender, "question": [{"role": "user", "content": f"q{i}"}], "references": ["yes"],
         "answer": ANSWERS[said], "scores": {"exact_match": float(said == "right")}}
        for suite, of in outcomes.items() for i, pair in enumerate(of) for contender, said in zip(("adapter", "base zero_shot"), pair, strict=True)
    ]  # fmt: skip
    rows += [{**row, "contender": "base few_shot", "answer": "never shown"} for row in rows]
    suites = {
        name: {"role": "held_out" if name == "held_out" else "ood", "lead": "exact_match", "metrics": {"exact_match": {"higher_is_better": True}},
               "differences": {"exact_match": {"baseline": "base zero_shot"}}}
        for name in outcomes
    }  # fmt: skip
    return rows, suites


def test_losses_come_first_in_every_stretch_and_none_is_invented_or_shown_twice() -> None:
    random.seed(2)
    for _ in range(200):
        weights = [random.random() ** 3 for _ in KINDS]
        outcomes = {name: random.choices(list(KINDS), weights, k=random.randint(1, 40)) for name in ("held_out", "near", "far")}
        pairs = paired(*answered(outcomes))
        chosen, counts = instructive(pairs), Counter(KINDS[o] for of in outcomes.values() for o in of)
        kinds = [e["change"] for e in chosen]
        assert len({(e["suite"], e["item"]) for e in chosen}) == len(chosen) <= EXAMPLES
        assert all(e["change"] == KINDS[outcomes[e["suite"]][e["item"]]] and e["question"] == f"q{e['item']}" for e in chosen)
        assert all((e["adapter"], e["baseline"]) == tuple(ANSWERS[o] for o in outcomes[e["suite"]][e["item"]]) for e in chosen)
        assert "both right" not in kinds
        assert len(chosen) == min(EXAMPLES, sum(n for kind, n in counts.items() if kind != "both right"))
        for shown in range(1, len(kinds) + 1):
            seen = Counter(kinds[:shown])
            assert seen["lost"] >= min(max(seen["won"], seen["changed"]), counts["lost"]), kinds
        assert sum((Counter(of) for of in changes(pairs).values()), Counter()) == counts


def test_every_suite_with_losses_is_shown_before_one_is_shown_twice() -> None:
    lost = ("wrong", "right")
    chosen = instructive(paired(*answered({name: [lost] * 30 for name in ("held_out", "near", "far", "branches")})))
    assert {e["suite"] for e in chosen[:4]} >= {"held_out", "near"} and max(Counter(e["suite"] for e in chosen).values()) <= EXAMPLES // 2


def test_one_question_is_not_shown_under_many_transforms_while_others_are_left() -> None:
    whole = made(items=60, transformed=30, probes=42)
    suites = {name: {**s, "lead": next(m for m in ("exact_match", "overall", "abstained", *s["differences"]) if m in s["differences"])}
              for name, s in whole.scores["suites"].items() if s["role"] not in ("memorisation", "cost")}  # fmt: skip
    chosen = instructive(paired(whole.answers, suites))
    places = Counter(e["where"] for e in chosen)
    assert len(chosen) == EXAMPLES and max(places.values()) == 1
    assert {e["role"] for e in chosen} == {"held_out", "ood", "transform", "abstention", "forgetting"}


def test_rows_that_do_not_carry_the_leading_metric_are_not_examples() -> None:
    rows, suites = answered({"held_out": [("wrong", "right")]})
    rows += [{**r, "item": 9, "scores": {"over_refusal": 1.0}} for r in rows[:2]]
    assert [e["item"] for e in instructive(paired(rows, suites))] == [0]


def test_an_item_without_a_score_of_its_own_is_judged_by_its_answer() -> None:
    rows, suites = answered({"held_out": [("wrong", "right"), ("right", "wrong")]})
    chosen = instructive(paired([{**r, "scores": {"exact_match": None}} for r in rows], suites))
    assert [(e["change"], e["adapter_score"]) for e in chosen] == [("lost", 0.0), ("won", 1.0)]


def test_a_suite_without_a_leading_metric_has_no_examples() -> None:
    rows, suites = answered({"held_out": [("right", "wrong")]})
    suites["held_out"]["lead"] = None
    assert paired(rows, suites) == {}


def test_a_metric_that_is_better_when_lower_turns_the_gain() -> None:
    rows, suites = answered({"held_out": [("right", "wrong")]})
    suites["held_out"]["metrics"]["exact_match"]["higher_is_better"] = False
    assert [e["change"] for e in instructive(paired(rows, suites))] == ["lost"]
