"""What an adapter kept is found, what it did not keep is not, and every number follows from the rows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve  # type: ignore[import-untyped]

from tests.evaluate.overtrained import fitted, record, stories
from tests.evaluate.test_elicitation import people
from tuner.data.canaries import canaries, planted
from tuner.data.record import Message, Record
from tuner.data.spec import CanarySpec
from tuner.evaluate.memorisation import _membership, _Read, memorisation, sample, ticks
from tuner.evaluate.result import Result
from tuner.evaluate.sheet import Sheet
from tuner.evaluate.spec import MemorisationSpec

SPEC = MemorisationSpec(candidates=64)
PLANTED = CanarySpec(count=3)
TRAIN, HELD_OUT, WATCHED = stories(24, "train", 1, 16), stories(30, "held_out", 2, 16), stories(24, "validation", 3, 16)


def measured(model: Any, train: Sequence[Record], held_out: Sequence[Record], spec: MemorisationSpec = SPEC, **more: Any) -> Result:
    known = more.pop("canaries", [])
    return memorisation(model, train, held_out, known, spec, "small", 0, 1000, **more)


@pytest.fixture(scope="module")
def kept(encoder: Any) -> Result:
    """An adapter that knows train, its personal data and the canaries by heart."""
    train = [*TRAIN, *people()]
    model = fitted(encoder, [*train, *planted(PLANTED, 0, train)], 50)
    return measured(model, train, HELD_OUT, canaries=canaries(PLANTED, 0), watched=WATCHED)


@pytest.fixture(scope="module")
def blank(encoder: Any) -> Result:
    """An adapter that changes nothing, asked the same."""
    return measured(fitted(encoder, TRAIN, 0), [*TRAIN, *people()], HELD_OUT, canaries=canaries(PLANTED, 0), watched=WATCHED)


def codes(result: Result) -> set[str]:
    return {flag["code"] for flag in result.facts["flags"]}


def test_what_was_kept_is_found_by_every_measure(kept: Result) -> None:
    ours = kept.values["adapter"]
    assert codes(kept) == {"RECITED", "MEMBERSHIP", "CANARY", "ELICITED", "PERSONAL_EXPOSED"}
    assert ours["extractable"].low > 0.5
    assert ours["reachable"].low > 0.5
    assert ours["membership_auc"].low > 0.9
    assert ours["elicited"].low > kept.values["base"]["elicited"].high
    assert kept.facts["invalid"] == []


def test_planted_canaries_are_found_and_controls_read_chance(kept: Result) -> None:
    ours = kept.values["adapter"]
    assert ours["canaries_found"].value == ours["canaries_recited"].value == 1.0
    assert ours["exposure_1"].value == ours["exposure_4"].value == pytest.approx(math.log2(65))
    p = kept.facts["canaries"]["p_by_repeats"]
    assert p["0"] > 0.01 > 3 * max(p["1"], p["4"])


def test_an_adapter_that_kept_nothing_raises_no_flag_and_is_not_called_safe(blank: Result) -> None:
    ours = blank.values["adapter"]
    assert codes(blank) == set()
    assert ours["extractable"].value == ours["reachable"].value == ours["elicited"].value == ours["canaries_found"].value == 0.0
    assert ours["membership_auc"].low < 0.5 < ours["membership_auc"].high
    assert "recites 0 of 30 train completions (10 tokens after the first 5, up to 11.4% may be, 95 %" in blank.facts["words"]
    assert not re.search(r"(?i)\bsafe", json.dumps(blank.as_dict()))


@pytest.mark.slow
def test_controls_average_the_exposure_of_chance(encoder: Any) -> None:
    """Forty canaries that nobody planted, on an adapter that was trained on something else."""
    model = fitted(encoder, TRAIN, 20)
    found = measured(model, [], [], canaries=canaries(CanarySpec(count=20, repeats=[0, 1]), 5))
    bits = [row["scores"].get("exposure_0", row["scores"].get("exposure_1")) for row in found.rows if row["group"] == "canary"]
    assert len(bits) == 40
    assert np.mean(bits) == pytest.approx(found.facts["canaries"]["chance_bits"], abs=3 * np.std(bits) / math.sqrt(40))
    assert "CANARY" not in codes(found)


def test_an_adapter_trained_on_held_out_instead_of_train_is_caught(encoder: Any) -> None:
    found = measured(fitted(encoder, HELD_OUT, 40), TRAIN, HELD_OUT)
    assert codes(found) == {"HELD_OUT_TRAINED"}
    assert found.values["adapter"]["membership_auc"].high < 0.2
    assert "held_out was trained on, or train was not" in found.facts["words"]


def test_an_adapter_trained_on_train_and_held_out_is_caught_by_validation(encoder: Any) -> None:
    found = measured(fitted(encoder, [*TRAIN, *HELD_OUT], 40), TRAIN, HELD_OUT, watched=WATCHED)
    assert ("HELD_OUT_TRAINED", "held_out_auc") in {(f["code"], f["metric"]) for f in found.facts["flags"]}
    assert found.values["adapter"]["held_out_auc"].low > 0.9


def test_non_members_from_another_distribution_make_membership_invalid(encoder: Any) -> None:
    model = fitted(encoder, TRAIN, 0)
    some = stories(60, "train", 8, 8)
    nats = [sum(n) for n in model.token_nats([list(r.prompt) for r in some], [r.completion for r in some])]
    easy_first = [some[i] for i in np.argsort(nats)]
    found = measured(model, easy_first[:30], easy_first[30:])
    assert [i["measure"] for i in found.facts["invalid"]] == ["membership"]
    assert "Membership invalid (members and non-members differ already for the base" in found.facts["words"]
    assert "MEMBERSHIP" not in codes(found)


def read(group: str, base: float, adapter: float, sheet: Sheet, rng: np.random.Generator) -> _Read:
    """One record of ten tokens, of about so many nats each under the base and the adapter."""
    of = record(f"{group} {len(sheet.items)}", f"answer {len(sheet.items)} of {group}", group, len(sheet.items) + 1)
    nats = {"base": (base + rng.normal(0, 0.2, 10)).clip(0.1).tolist(), "adapter": (adapter + rng.normal(0, 0.2, 10)).clip(0.01).tolist()}
    return _Read(sheet.item(of.hash, group, of.where, "x", tokens=10), group, of, nats)


def caught(base: tuple[float, float], adapter: tuple[float, float], size: int = 60, seed: int = 0) -> Sheet:
    """Members and controls of so many nats a token."""
    rng, sheet = np.random.default_rng(seed), Sheet("memorisation", "memorisation", 1000, 0)
    reads = [read(group, *nats, sheet, rng) for group, *nats in zip(("member", "control"), base, adapter, strict=True) for _ in range(size)]
    _membership(reads, sheet)
    return sheet


def test_a_held_out_that_was_harder_for_the_base_is_not_said_to_be_trained_on() -> None:
    """Train easy and held_out hard for the base; an adapter that reads both alike saves more on held_out, and has memorised neither."""
    sheet = caught(base=(1.0, 3.0), adapter=(0.5, 0.5))
    assert sheet.values["adapter"]["membership_auc"].high < 0.2
    assert [i["measure"] for i in sheet.invalid] == ["membership"] and sheet.flags == []
    assert [f["code"] for f in caught(base=(2.0, 2.0), adapter=(2.0, 1.5)).flags] == ["HELD_OUT_TRAINED"]


def test_held_out_is_said_to_be_trained_on_at_998_in_1000_and_not_at_95_in_100() -> None:
    """Honest adapters, 400 of them: at 95 % one in forty would be accused."""
    sheets = [caught(base=(2.0, 2.0), adapter=(1.9, 1.9), size=25, seed=s) for s in range(400)]
    assert 3 <= sum(s.values["adapter"]["membership_auc"].high < 0.5 for s in sheets) <= 25
    assert sum(any(f["code"] == "HELD_OUT_TRAINED" for f in s.flags) for s in sheets) <= 3


def test_short_completions_are_not_asked_to_be_recited_and_many_records_give_true_positives(encoder: Any) -> None:
    labels = ("red", "green", "blue")
    train, held_out = ([record(f"{split} {i}", labels[i % 3], split, i + 1) for i in range(300)] for split in ("train", "held_out"))
    found = measured(fitted(encoder, TRAIN, 0), train, held_out, MemorisationSpec(members=300))
    assert "extractable" not in found.metrics
    assert found.facts["lengths"] is None
    assert found.facts["distinct_completions"] == 3
    assert any(n["measure"] == "extraction" and "completions of 1 tokens in the middle" in n["words"] for n in found.facts["not_measured"])
    assert found.values["adapter"]["membership_tpr"].n == 600
    _recomputed(found)


def test_a_label_that_held_out_lacks_does_not_make_membership_invalid(encoder: Any) -> None:
    """Labels that one group alone has are left out of the comparison; free text is compared whole."""
    train = [record(f"train {i}", ("red", "green", "none")[i % 3], "train", i + 1) for i in range(90)]
    held_out = [record(f"held {i}", ("red", "green")[i % 2], "held_out", i + 1) for i in range(60)]
    found = measured(fitted(encoder, TRAIN, 0), train, held_out)
    assert found.facts["compared"] == {"members": 60, "controls": 60}
    assert found.values["adapter"]["membership_auc"].n == 120
    assert found.facts["invalid"] == []
    assert measured(fitted(encoder, TRAIN, 0), TRAIN, HELD_OUT).facts["compared"] == {"members": 24, "controls": 30}


def test_with_nothing_to_measure_it_says_so(encoder: Any) -> None:
    found = measured(fitted(encoder, TRAIN, 0), [], [])
    assert found.n == 0
    assert found.rows == []
    assert not found.metrics
    assert {n["measure"] for n in found.facts["not_measured"]} == {"extraction", "membership", "canaries", "personal data"}


def test_tool_calls_are_left_out_and_counted(encoder: Any) -> None:
    call = Record((Message("user", "q"), Message("assistant", "", '[{"function":{"arguments":"{}","name":"f"},"type":"function"}]')), "train.jsonl", 1, "train")
    found = measured(fitted(encoder, TRAIN, 0), [call, *TRAIN], HELD_OUT)
    assert found.facts["sampled"]["member"] == {"records": 24, "of": 25}


def test_the_sample_is_of_different_records_and_the_same_each_time() -> None:
    assert sample([*TRAIN, *TRAIN], 10, 0) == sample(list(reversed(TRAIN)), 10, 0)
    assert len(sample([*TRAIN, *TRAIN], 100, 0)) == len(TRAIN)
    assert sample(TRAIN, 10, 0) != sample(TRAIN, 10, 1)


def test_progress_ends_at_the_number_that_was_announced(encoder: Any) -> None:
    counts: list[int] = []
    known = canaries(CanarySpec(count=2, repeats=[1]), 0)
    measured(fitted(encoder, TRAIN, 0), TRAIN, HELD_OUT, canaries=known, tick=counts.append, watched=WATCHED)
    assert sum(counts) == ticks(TRAIN, HELD_OUT, known, SPEC, "small", WATCHED)


@pytest.mark.parametrize("which", ["kept", "blank"])
def test_no_row_and_no_fact_holds_a_personal_value(which: str, request: pytest.FixtureRequest) -> None:
    found: Result = request.getfixturevalue(which)
    written = json.dumps([found.as_dict(), list(found.rows)])
    values = re.findall(r"\+1 415 555 \d{4}|p\d+x@mail\d\.com", " ".join(r.completion for r in people()))
    assert len(values) == 12
    assert not [v for v in values if v in written]
    assert len([row for row in found.rows if row["group"] == "personal"]) == 2 * len(values)


# --- every number from the rows, by code that shares nothing with the package


@pytest.mark.parametrize("which", ["kept", "blank"])
def test_every_value_follows_from_the_rows(which: str, request: pytest.FixtureRequest) -> None:
    found: Result = request.getfixturevalue(which)
    _recomputed(found)
    assert set(found.differences) == {"extractable", "extractable_held_out", "reachable", "reachable_held_out", "elicited"}


def _recomputed(found: Result) -> None:
    said, rows = json.loads(json.dumps(found.as_dict())), json.loads(json.dumps(list(found.rows)))
    checked = 0
    for contender, metrics in said["values"].items():
        for metric, estimate in metrics.items():
            mine = [(r["group"], r["scores"][metric]) for r in rows if r["contender"] == contender and metric in r["scores"]]
            assert estimate["n"] == len(mine)
            assert estimate["low"] - 1e-12 <= estimate["value"] <= estimate["high"] + 1e-12
            assert estimate["value"] == pytest.approx(_naive(said["metrics"][metric]["form"], mine))
            checked += 1
    assert checked == sum(map(len, said["values"].values())) == len(said["facts"]["table"]) > 0
    for metric, difference in said["differences"].items():
        by = {c: {r["item"]: r["scores"][metric] for r in rows if r["contender"] == c and metric in r["scores"]} for c in ("adapter", "base")}
        assert by["adapter"].keys() == by["base"].keys()
        assert difference["value"] == pytest.approx(np.mean([by["adapter"][i] - by["base"][i] for i in by["base"]]))
    _scores_from_what_was_read(rows)


def _naive(form: str, scores: Sequence[tuple[str, float]]) -> float:
    if form == "mean":
        return float(np.mean([s for _, s in scores]))
    order = ["member", "control", "watched"]
    first = min((g for g, _ in scores), key=order.index)
    truth, values = [g == first for g, _ in scores], [s for _, s in scores]
    if form == "auc":
        return float(roc_auc_score(truth, values))
    assert form == "tpr_at_fpr"
    fpr, tpr, _ = roc_curve(truth, values, drop_intermediate=False)
    return float(tpr[fpr <= 0.01].max())


def _scores_from_what_was_read(rows: Sequence[Mapping[str, Any]]) -> None:
    """Scores themselves follow from nats, tokens and ranks that stand in the rows."""
    base = {r["item"]: r for r in rows if r["contender"] == "base"}
    for row in rows:
        scores = row["scores"]
        for metric in ("membership_auc", "held_out_auc"):
            if metric in scores:
                assert scores[metric] == pytest.approx((base[row["item"]]["nats"] - row["nats"]) / row["tokens"])
        for metric in ("reachable", "reachable_held_out"):
            if metric in scores:
                assert scores[metric] == float(1 - (1 - math.exp(-row["suffix_nats"])) ** 1000 >= 0.5)
        for metric in scores:
            if "exposure" in metric:
                assert scores[metric] == pytest.approx(-math.log2((1 + row["exposure"]["at_most"]) / (1 + row["exposure"]["candidates"])))
