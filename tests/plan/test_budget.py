"""The plan as a whole on a tiny base: its sums, its time by arithmetic, other devices, and its way through JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.plan.test_memory import adapt
from tuner.base import Base, BaseSpec, Precision
from tuner.plan.budget import PARTS, Job, Plan, Rows, combinations, kind_of, largest_micro, make_plan, memory_parts, run_load
from tuner.plan.devices import DEVICES
from tuner.plan.history import Correction
from tuner.plan.memory import Micro, Way, model_shape
from tuner.plan.pace import Load, Pace, by_arithmetic
from tuner.plan.spec import PlanSpec
from tuner.plan.steps import Batching, StepCounts, Steps

PACE = Pace(token=1e-3, forward_token=3e-4, head_token=1e-4, each_pass=0.1, each_step=0.5, how="made up")
ROWS = Rows([30, 40, 50, 20, 45, 35, 25, 10], [5, 5, 5, 5, 5, 5, 5, 5], watched_tokens=100)


@pytest.fixture(scope="module")
def job(tiny_base: Path) -> Job:
    base = Base("tiny", tiny_base, "local folder", None, BaseSpec(model=str(tiny_base), sanity="off"))
    precision = Precision("cpu", "float32", "bfloat16")
    return Job(base, adapt, model_shape(base, adapt), precision, Way("math", "float32"), DEVICES["cpu"], "lora")


@pytest.fixture(scope="module")
def counts() -> StepCounts:
    return Steps(ROWS.lengths, Batching(False, True, 128, 128, None, 0), epochs=2).counts()


def planned(job: Job, counts: StepCounts, spec: PlanSpec | None = None, past: Correction | None = None) -> Plan:
    load = run_load(counts, ROWS, epochs=2, validations=2)
    return make_plan(job, ROWS, counts, load, 2, PACE, 400_000_000, past or Correction(), spec or PlanSpec())


def test_every_part_has_its_bytes_and_every_estimate_says_how(job: Job, counts: StepCounts) -> None:
    plan = planned(job, counts, PlanSpec(price_per_hour=2.0, price_per_kwh=0.3, watts=200.0))
    assert set(plan.memory_bytes) == set(PARTS) and all(size >= 0 for size in plan.memory_bytes.values())
    assert plan.peak_bytes == sum(plan.memory_bytes.values()) == plan.needed_bytes
    told = {*PARTS, "steps", "padding", "trainable_parameters", "peak_bytes", "seconds", "fits", "cost", "energy_kwh"}
    assert told == set(plan.how) and all(plan.how.values())


def test_a_plan_comes_back_from_json_as_it_was(job: Job, counts: StepCounts) -> None:
    plan = replace(planned(job, counts), combinations=combinations(job, [DEVICES["l4"]], largest_micro(counts, ROWS), Load(1, 1, 1, 1), PlanSpec()))
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan


def test_bytes_of_adapter_gradients_and_moments_go_by_the_adapters_precision(job: Job) -> None:
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        parts, _ = memory_parts(replace(job, way=Way("math", dtype)), Micro(2, 30, 5), 0)
        size = job.shape.trainable * width
        assert (parts["adapters"], parts["gradients"], parts["optimizer"]) == (size, size, 2 * size)
    assert job.shape.trainable == sum(2 * 16 * (a + b) for a, b in ((64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)))


def test_time_is_the_sum_of_its_parts(job: Job, counts: StepCounts) -> None:
    plan = planned(job, counts)
    expected = 2 * counts.computed_tokens * 1e-3 + 2 * 40 * 1e-4 + 2 * counts.passes * 0.1 + counts.steps * 0.5 + 2 * 100 * 3e-4
    assert plan.seconds == pytest.approx(expected) and plan.tokens == 2 * sum(ROWS.lengths)
    assert plan.tokens_per_second == pytest.approx(plan.tokens / expected)


def test_price_and_energy_follow_from_the_hours(job: Job, counts: StepCounts) -> None:
    plan = planned(job, counts, PlanSpec(price_per_hour=3.6, price_per_kwh=0.5, watts=1000.0))
    assert plan.cost == pytest.approx(plan.seconds / 3600 * 3.6)
    assert plan.energy_kwh == pytest.approx(plan.seconds / 3600) and plan.energy_cost == pytest.approx(plan.seconds / 7200)
    free = planned(job, counts)
    assert free.cost is None and free.energy_kwh is None and free.energy_cost is None  # nobody said what a CPU draws


def test_past_runs_correct_peak_and_time_and_the_uncorrected_figures_stay(job: Job, counts: StepCounts) -> None:
    plain, corrected = planned(job, counts), planned(job, counts, past=Correction(1.1, 0.8, 3))
    assert corrected.peak_bytes == pytest.approx(plain.peak_bytes * 1.1) and corrected.seconds == pytest.approx(plain.seconds * 0.8)
    assert corrected.uncorrected == plain.uncorrected == {"peak_bytes": plain.peak_bytes, "seconds": plain.seconds}
    assert "3 past runs" in corrected.how["peak_bytes"] and "3 past runs" in corrected.how["seconds"] and corrected.past_runs == 3
    assert kind_of(job).precision == corrected.precision and kind_of(job).device == corrected.device


def test_the_largest_pass_carries_the_labels_of_its_own_rows(counts: StepCounts) -> None:
    micro = largest_micro(counts, ROWS)
    assert micro.labelled == 5 * len(counts.largest_members) and micro.tokens <= 128
    assert micro.width == max(ROWS.lengths[i] for i in counts.largest_members)


def test_ranks_share_what_is_computed() -> None:
    counts = StepCounts(steps=4, tokens=100, computed_tokens=120, passes=8, largest_rows=1, largest_tokens=30, largest_members=(0,))
    load = run_load(counts, Rows([50, 50], [10, 10], 40), epochs=3, validations=2, ranks=2)
    assert load == Load(steps=4, passes=12, computed_tokens=180, loss_tokens=30, watched_tokens=40)


def test_named_devices_go_by_flop_over_their_rate(job: Job) -> None:
    micro, device = Micro(1, 64, 8), DEVICES["a100-40"]
    pace = by_arithmetic(job.shape, micro, device, Way("flash", "bfloat16"), False)
    weights, trained = job.shape.linear, job.shape.trainable
    attention = 2 * (4 * 64 / 2 * 16 * 4) * 1  # two layers, four heads 16 wide, half of 64 x 64 scores: two products of 2 FLOP each, a token
    expected = 4 * weights + 6 * trained + 3.5 * attention
    assert pace.token == pytest.approx(expected / (312e12 * 0.43))
    assert pace.forward_token == pytest.approx((2 * weights + 2 * trained + attention) / (312e12 * 0.43))
    again = by_arithmetic(job.shape, micro, device, Way("flash", "bfloat16", checkpointing=True), False)
    assert again.token - pace.token == pytest.approx(pace.forward_token)
    assert "312" in pace.how.replace("3.12e+14", "312") and "assumed" in pace.how


def test_combinations_cover_devices_loads_and_checkpointing(job: Job) -> None:
    devices = [DEVICES[key] for key in ("h200", "l4", "cpu")]
    rows = combinations(job, devices, Micro(4, 64, 20), Load(10, 10, 2560, 200), PlanSpec(price_per_hour=3.6))
    assert len(rows) == 3 * 2 * 2 and {(r["device"], r["load"], r["checkpointing"]) for r in rows} == {
        (d.name, held, on) for d in devices for held in ("bf16", "nf4") for on in (False, True)
    }
    assert all(r["fits"] and r["needed_bytes"] > 0 and r["cost"] == pytest.approx(r["seconds"] / 1000) and r["how"] for r in rows)
    small = combinations(job, [replace(devices[1], memory_bytes=500_000_000)], Micro(4, 64, 20), Load(10, 10, 2560, 200), PlanSpec())
    assert not any(r["fits"] for r in small)
