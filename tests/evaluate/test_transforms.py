"""Changed suites hold the same items for every family; drops, consistency and flags follow from rows by a naive loop."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.evaluate.ood_samples import BANKING, SYSTEM, TASK, held_out
from tuner.errors import Refusal
from tuner.evaluate.perturb import SEVERITIES, TRANSFORMS
from tuner.evaluate.result import ADAPTER, MetricFacts, Result
from tuner.evaluate.spec import TransformsSpec
from tuner.evaluate.suites import suite_of
from tuner.evaluate.transforms import Transformed, Transforms, degraded, sharp_drops, transformed

ZERO, BEST = "base zero_shot", "base few_shot"
METRICS = {"exact_match": MetricFacts("share equal", True), "json_field_f1": MetricFacts("ratio", True, "ratio"), "loss": MetricFacts("nats", False, "ratio"),
           "macro_f1": MetricFacts("not from sums", True, "macro_f1")}  # fmt: skip


def made(name: str = "clinc150", profile: str = "small", **spec: Any) -> Transforms:
    labels = BANKING if name == "clinc150" else ()
    return transformed(held_out(name), TASK[name], TransformsSpec(**spec), profile, 0, system=SYSTEM[name], labels=labels)


# --- making --------------------------------------------------------------------------------------------------------


def test_the_small_profile_changes_the_same_forty_items_once_in_every_family() -> None:
    found = made()
    assert [t.suite.name for t in found.made] == [f"{f}.2" for f in TRANSFORMS if f not in found.left_out and f"{f}.2" not in found.left_out]
    assert len(found.chosen) == 40 and all(set(t.origin) <= set(found.chosen) for t in found.made)
    assert all(len(t.origin) + t.unchanged == 40 and len(t.suite.items) == len(t.origin) for t in found.made)
    items = held_out("clinc150").items
    for t in found.made:
        assert t.suite.role == "transform" and t.suite.facts["family"] == t.family and t.suite.facts["severity"] == 2
        for item, at in zip(t.suite.items, t.origin, strict=True):
            assert item.where == items[at].where and item.messages != items[at].messages
            assert t.label_map is not None or item.references == items[at].references


def test_the_full_profile_has_three_severities_and_all_items_there_are() -> None:
    found = made(profile="full")
    assert len(found.chosen) == 140
    assert {t.severity for t in found.made} == set(SEVERITIES)
    assert sum(t.family == "typos" for t in found.made) == 3


def test_families_that_have_nothing_to_change_are_left_out_with_the_reason() -> None:
    label, fields = made(), made("e2e")
    assert label.left_out["field_order"] == "no question is JSON, a list of fields or a table"
    assert fields.left_out["unseen_labels"] == "the task has no labels" and "sentences" in fields.left_out["verbose"]
    assert fields.left_out["no_punctuation.2"].startswith("it changes 0 of 40 items")
    assert {t.family for t in fields.made} == {"typos", "casing", "field_order", "surface", "distractor", "system_prompt"}
    assert set(label.left_out) | {t.family for t in label.made} >= set(TRANSFORMS)


def test_the_same_items_are_chosen_whatever_their_order() -> None:
    suite = held_out("clinc150")
    backward = suite_of("held_out", "held_out", suite.items[::-1])
    one = transformed(suite, "label", TransformsSpec(families=["typos"]), "small", 3, labels=BANKING)
    other = transformed(backward, "label", TransformsSpec(families=["typos"]), "small", 3, labels=BANKING)
    assert {i.messages for i in one.made[0].suite.items} == {i.messages for i in other.made[0].suite.items}
    assert {suite.items[i].messages for i in one.chosen} == {backward.items[i].messages for i in other.chosen}


def test_renamed_labels_rename_the_references() -> None:
    (found,) = made(families=["unseen_labels"]).made
    assert found.label_map is not None and found.changes_system
    for item, at in zip(found.suite.items, found.origin, strict=True):
        assert item.references == tuple(found.label_map[r] for r in held_out("clinc150").items[at].references)
        assert item.references[0] in item.messages[0].content


def test_an_unknown_family_is_refused_with_its_neighbour() -> None:
    with pytest.raises(Refusal, match="typos"):
        made(families=["typo"])


# --- what it did ---------------------------------------------------------------------------------------------------

Right = Callable[[str, int, bool], bool]  # contender, place in held_out, after the change


def result(
    name: str, role: Any, places: list[int], references: list[str], right: Right, after: bool, names: dict[str, str] | None = None, suite: Any = None
) -> Result:
    rows = []
    for contender in (ZERO, BEST, ADAPTER):
        for index, (place, reference) in enumerate(zip(places, references, strict=True)):
            good = right(contender, place, after)
            answer = reference if good else (names or {}).get("none", "none")
            scores = {"exact_match": float(answer == reference), "json_field_f1": None, "loss": 0.5 + 0.1 * index, "macro_f1": None}
            parts = {"json_field_f1": [float(good), 1.0 + index % 2], "loss": [1.0 + 2.0 * (not good), 2.0]}
            rows.append({"suite": name, "item": index, "contender": contender, "where": f"w:{place}", "question": [],
                         "reference": reference, "references": [reference], "answer": answer, "scores": scores, "parts": parts})  # fmt: skip
    return Result(name, role, len(places), "sha256:0", METRICS, {c: {} for c in (ZERO, BEST, ADAPTER)}, {}, dict(suite.facts) if suite else {}, rows)


def references_of(suite: Any) -> list[str]:
    return [i.references[0] for i in suite.items]


def before(right: Right) -> Result:
    suite = held_out("clinc150")
    return result("held_out", "held_out", list(range(len(suite.items))), references_of(suite), right, False)


def after(t: Transformed, right: Right, metrics: tuple[str, ...] = tuple(METRICS)) -> Result:
    raw = result(t.suite.name, "transform", list(t.origin), references_of(t.suite), right, True, dict(t.label_map or {}), t.suite)
    return degraded(replace(raw, metrics={m: METRICS[m] for m in metrics}), before(right), t, 1000, 0)


def chance(share: float, *seed: Any) -> bool:
    return random.Random(repr(seed)).random() < share


def planted(falls: dict[str, float], of_base: dict[str, float] | None = None) -> Callable[[str], Right]:
    """The adapter is right on nine in ten and falls by `falls[family]`; the base by `of_base` of seven in ten."""

    def for_family(family: str) -> Right:
        def right(contender: str, place: int, changed: bool) -> bool:
            share = 0.9 if contender == ADAPTER else 0.7
            loss = (falls if contender == ADAPTER else of_base or {}).get(family, 0.0) if changed else 0.0
            return chance(share - loss, contender, place)

        return right

    return for_family


def test_drops_and_consistency_follow_from_rows_by_a_naive_loop() -> None:
    swept = 0
    for t in made(profile="full").made:
        right = planted({t.family: 0.3}, {t.family: 0.1})(t.family)
        found, then = after(t, right), before(right)
        old = {(r["contender"], r["item"]): r for r in then.rows}
        for contender in (ZERO, BEST, ADAPTER):
            rows = [r for r in found.rows if r["contender"] == contender]
            fall = sum(r["scores"]["exact_match"] - old[contender, t.origin[r["item"]]]["scores"]["exact_match"] for r in rows) / len(rows)
            assert found.facts["drops"][contender]["exact_match"]["value"] == pytest.approx(fall, abs=1e-12)
            new_f1 = sum(r["parts"]["json_field_f1"][0] for r in rows) / sum(r["parts"]["json_field_f1"][1] for r in rows)
            pair = [old[contender, t.origin[r["item"]]]["parts"]["json_field_f1"] for r in rows]
            old_f1 = sum(p[0] for p in pair) / sum(p[1] for p in pair)
            assert found.facts["drops"][contender]["json_field_f1"]["value"] == pytest.approx(new_f1 - old_f1, abs=1e-12)
            back = {new: label for label, new in (t.label_map or {}).items()}
            same = [float(back.get(r["answer"], r["answer"]) == old[contender, t.origin[r["item"]]]["answer"]) for r in rows]
            assert [r["scores"]["consistency"] for r in rows] == same
            assert found.values[contender]["consistency"].value == pytest.approx(np.mean(same))
            assert found.values[contender]["consistency"].n == len(rows)
            assert "macro_f1" not in found.facts["drops"][contender]
            swept += 1
        ours, theirs = (found.facts["drops"][c]["exact_match"]["value"] for c in (ADAPTER, found.facts["excess"]["exact_match"]["baseline"]))
        assert found.facts["excess"]["exact_match"]["value"] == pytest.approx(ours - theirs, abs=1e-12)
    assert swept >= 3 * 25


def test_a_contender_that_was_asked_one_of_the_two_has_no_drop() -> None:
    (t,) = made(families=["typos"]).made
    right = planted({})("typos")
    full = before(right)
    some = Result(full.name, full.role, full.n, full.digest, full.metrics, full.values, full.differences, {}, [r for r in full.rows if r["contender"] != ZERO])
    raw = result(t.suite.name, "transform", list(t.origin), references_of(t.suite), right, True, None, t.suite)
    found = degraded(raw, some, t, 1000, 0)
    assert set(found.facts["drops"]) == {BEST, ADAPTER}
    assert all(("consistency" in r["scores"]) == (r["contender"] != ZERO) for r in found.rows)


def test_the_old_name_of_a_renamed_label_is_not_the_same_answer() -> None:
    (t,) = made(families=["unseen_labels"]).made
    names = dict(t.label_map or {})

    def right(contender: str, place: int, changed: bool) -> bool:
        return True

    raw = result(t.suite.name, "transform", list(t.origin), references_of(t.suite), right, True, names, t.suite)
    old = {new: label for label, new in names.items()}
    memorised = Result(raw.name, raw.role, raw.n, raw.digest, raw.metrics, raw.values, {}, raw.facts, [{**r, "answer": old[r["answer"]]} for r in raw.rows])
    assert degraded(raw, before(right), t, 1000, 0).values[ADAPTER]["consistency"].value == 1.0
    assert degraded(memorised, before(right), t, 1000, 0).values[ADAPTER]["consistency"].value == 0.0


def test_json_answers_are_the_same_whatever_the_order_of_keys() -> None:
    from tuner.evaluate.transforms import _form

    assert _form(json.dumps({"a": 1, "b": 2}), None) == _form(json.dumps({"b": 2, "a": 1}), None)
    assert _form(" Yes,  it IS ", None) == _form("yes, it is", None)


def test_items_of_one_source_are_drawn_together_in_drops_excess_and_consistency() -> None:
    (t,) = made(families=["casual"]).made
    grouped = replace(t, suite=replace(t.suite, items=tuple(replace(i, group=f"s{at // 4}") for at, i in enumerate(t.suite.items))))
    right = planted({"casual": 0.3}, {"casual": 0.1})("casual")
    found, alone = after(grouped, right), after(t, right)
    units = f"{-(-len(t.origin) // 4)} groups"
    for metric in ("exact_match", "json_field_f1"):
        own, plain = found.facts["drops"][ADAPTER][metric], alone.facts["drops"][ADAPTER][metric]
        assert units in own["method"] and units in found.facts["excess"][metric]["method"] and own["value"] == plain["value"] and own["low"] != plain["low"]
    assert units in found.values[ADAPTER]["consistency"].method and units in found.differences["consistency"].method


# --- flags ---------------------------------------------------------------------------------------------------------


def flagged(falls: dict[str, float], of_base: dict[str, float] | None = None, profile: str = "full", **spec: Any) -> list[dict[str, Any]]:
    rule = planted(falls, of_base)
    return sharp_drops([after(t, rule(t.family)) for t in made(profile=profile, **spec).made], "exact_match")


def test_planted_drops_are_flagged_in_words_and_nothing_else_is() -> None:
    flags = flagged({"casual": 0.35, "surface": 0.6})
    assert [f["family"] for f in flags] == ["surface", "casual"]
    assert all(f["kind"] == "over-fitted to format" and f["holm_p"] < 0.05 and f["high"] < 0 and f["value"] <= -0.1 for f in flags)
    single = flagged({"casual": 0.35}, severities=[2])
    (flag,) = single
    assert flag["words"] == f"over-fitted to format: {flag['value']:.2f} [{flag['low']:.2f}, {flag['high']:.2f}] under `casual`"
    assert flags[0]["words"].endswith(f"under `surface.{flags[0]['severity']}`")


def test_a_drop_that_the_base_shares_is_hard_for_the_base_too() -> None:
    (flag,) = flagged({"typos": 0.4}, {"typos": 0.4})
    assert flag["kind"] == "hard for the base too" and flag["words"].startswith("hard for the base too: -0.") and "; base -0." in flag["words"]


def test_a_drop_that_cannot_be_laid_to_anybody_is_only_called_sharp() -> None:
    """The adapter loses every fifth item it had; the base's answers are drawn anew, so that 40 items say little about its drop."""
    (t,) = made(families=["typos"]).made

    def right(contender: str, place: int, changed: bool) -> bool:
        if contender == ADAPTER:
            return chance(0.9, place) and not (changed and chance(0.2, "lost", place))
        return chance(0.45 if changed else 0.5, contender, place, changed)

    (flag,) = sharp_drops([after(t, right)], "exact_match")
    assert flag["kind"] == "sharp drop" and flag["words"].endswith("too few items to say whose it is")
    assert flag["excess"]["low"] < 0 <= flag["excess"]["high"] and flag["base"]["high"] >= 0


def redrawn(run: int, made_suite: Transformed) -> Right:
    """Each answer right with the same chance before and after the change, drawn anew."""
    return lambda contender, place, changed: chance(0.8, run, made_suite.suite.name if changed else "", contender, place)


def test_no_flag_when_nothing_was_changed_but_noise() -> None:
    """A/A: over 30 evaluations of all families, at most 1 in 20 may flag anything (Holm)."""
    suites = made().made
    flags = [sharp_drops([after(t, redrawn(run, t), ("exact_match",)) for t in suites], "exact_match") for run in range(30)]
    assert len(suites) >= 10 and sum(map(bool, flags)) <= 1


def test_a_small_or_unsure_drop_is_not_sharp() -> None:
    assert flagged({"casual": 0.04}) == []
    assert flagged({"casual": 0.12}, take=12) == []


def test_more_loss_counts_as_a_fall() -> None:
    rule = planted({"casing": 0.5})
    flags = sharp_drops([after(t, rule(t.family)) for t in made(profile="full").made], "loss")
    assert [f["family"] for f in flags] == ["casing"] and flags[0]["value"] < -0.1
