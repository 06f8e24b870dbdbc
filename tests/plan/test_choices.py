"""What memory decides, what is said when it ran out, the devices, and what past runs teach: arithmetic, nothing timed."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from tuner.errors import Refusal
from tuner.plan.devices import DEVICES, GIB, known_as, named, usable_memory
from tuner.plan.fit import MICRO_TOKENS, Asked, choose, relief
from tuner.plan.history import Correction, Kind, Past, correction, past_runs

KIND = Kind("H200", "bfloat16 weights, bfloat16 autocast", "lora", False)


def peak(tokens: int, checkpointing: bool, offload: bool) -> int:
    """A made-up device: 10 GB for the base, 1 MB a token, a tenth of it under checkpointing, a hundredth with offload too."""
    return 10_000_000_000 + tokens * (1_000_000 if not checkpointing else 100_000 if not offload else 10_000)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [(30, (16384, False, False)), (21, (8192, False, False)), (12.4, (1024, False, False)), (11.5, (1024, True, False))],
)
def test_the_fastest_that_fits_in_nine_tenths_is_taken(memory: float, expected: tuple[int, bool, bool]) -> None:
    limit = round(memory * 1e9)
    chosen = choose(peak, limit, Asked(), tokens_per_rank=65536, longest_row=1000, cpu=False)
    everything = [(o, c, -m) for o in (False, True) for c in (False, True) for m in (*MICRO_TOKENS[:5], 1000) if peak(m, c, o) <= 0.9 * limit]
    offload, checkpointing, size = min(everything)  # an independent sweep: no offload before offload, no checkpointing before it, then the most tokens
    assert (chosen.micro_tokens, chosen.checkpointing, chosen.offload) == (-size, checkpointing, offload)
    if memory != 11.5:
        assert (chosen.micro_tokens, chosen.checkpointing, chosen.offload) == expected
    assert len(chosen.why) == 2 and all(chosen.why)


def test_offload_is_the_last_resort_and_says_so() -> None:
    chosen = choose(peak, round(10.05e9 / 0.9), Asked(), 4096, 1000, cpu=False)
    assert chosen.offload and chosen.checkpointing and "nothing else fits" in chosen.why[-1]


def test_where_nothing_fits_the_smallest_is_taken_and_the_lack_is_said() -> None:
    chosen = choose(peak, 5_000_000_000, Asked(), 4096, 1000, cpu=False)
    assert (chosen.micro_tokens, chosen.checkpointing, chosen.offload) == (1000, True, True)
    assert chosen.why[-1].startswith("nothing fits: at least 10.01 GB")


def test_a_cpu_gets_small_passes_no_offload_and_checkpointing_only_for_want_of_memory() -> None:
    roomy = choose(peak, round(20e9), Asked(), 65536, 300, cpu=True)
    assert (roomy.micro_tokens, roomy.checkpointing, roomy.offload) == (2048, False, False)
    assert choose(peak, round(1e9), Asked(), 65536, 300, cpu=True).offload is False


def test_what_the_recipe_says_is_not_chosen() -> None:
    chosen = choose(peak, round(500e9), Asked(micro_tokens=777, checkpointing=True, offload=False), 4096, 1000, cpu=False)
    assert (chosen.micro_tokens, chosen.checkpointing, chosen.offload) == (777, True, False)
    assert all("the recipe says so" in line for line in chosen.why)


def test_no_pass_is_larger_than_a_ranks_share_of_a_step_nor_smaller_than_the_longest_row() -> None:
    assert choose(peak, round(500e9), Asked(), 3000, 1000, cpu=False).micro_tokens == 3000
    assert choose(peak, round(500e9), Asked(), 3000, 5000, cpu=False).micro_tokens == 5000


def test_relief_names_three_keys_each_once_with_the_bytes_it_saves() -> None:
    changes = relief(100, [
        ("train.micro_tokens", "4096", lambda: 60), ("train.micro_tokens", "2048", lambda: 50), ("train.gradient_checkpointing", "true", lambda: 40),
        ("base.load", "nf4", lambda: 70), ("method.rank", "8", lambda: 99), ("train.kernels.loss_chunk", "256", lambda: 101),
    ])  # fmt: skip
    assert [(c.key, c.value, c.saves_bytes) for c in changes] == [
        ("train.gradient_checkpointing", "true", 60), ("train.micro_tokens", "2048", 50), ("base.load", "nf4", 30),
    ]  # fmt: skip
    assert changes[0].words() == "train.gradient_checkpointing: true (saves about 0.00 GB)"


def test_every_device_has_memory_rate_bandwidth_power_and_a_word_on_its_share() -> None:
    swept = 0
    for key, device in DEVICES.items():
        assert device.memory_bytes >= 14 * GIB and device.flops >= 1e12 and device.bandwidth >= 1e10 and 0 < device.share < 1, key
        assert device.share_how.startswith(("measured", "assumed")) and (device.watts or key == "cpu"), key
        swept += 1
    assert swept >= 10
    assert {"h200", "h100-80", "a100-40", "a100-80", "l4", "l40s", "4090", "3090", "t4", "cpu"} <= set(DEVICES)


def test_the_drivers_name_finds_the_entry_of_the_nearest_size() -> None:
    assert known_as("NVIDIA A100-SXM4-40GB", 42_300_000_000) == "a100-40"
    assert known_as("NVIDIA A100-SXM4-80GB", 85_000_000_000) == "a100-80"
    assert known_as("NVIDIA H200", 150_000_000_000) == "h200"
    assert known_as("NVIDIA GeForce RTX 4090", 25_000_000_000) == "4090"
    assert known_as("NVIDIA L40S", 48_000_000_000) == "l40s"
    assert known_as("NVIDIA L4", 24_000_000_000) == "l4"
    assert known_as("Some Other GPU", 24_000_000_000) is None


def test_an_unknown_device_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(Refusal, match="write h200"):
        named(["h20"])
    assert [d.name for d in named(["H200", " cpu"])] == [DEVICES["h200"].name, DEVICES["cpu"].name]


def test_usable_memory_is_some_of_what_is_there() -> None:
    assert 2**28 < usable_memory() < 2**45


# --- past runs -----------------------------------------------------------------------------------------------------


def manifest(store: Path, number: int, peak_ratio: float, seconds_ratio: float, **plan: object) -> None:
    held = {
        "device": KIND.device, "precision": KIND.precision, "method": KIND.method, "checkpointing": KIND.checkpointing, "steps": 10,
        "uncorrected": {"peak_bytes": 1000, "seconds": 50.0}, **plan,
    }  # fmt: skip
    folder = store / "name" / str(number)
    folder.mkdir(parents=True)
    measured = {"peak_bytes": 1000 * peak_ratio, "seconds": 50.0 * seconds_ratio, "steps": 10, "plan": held}
    (folder / "manifest.json").write_text(json.dumps({"training": measured}), encoding="utf-8")


def test_past_runs_of_the_same_kind_correct_by_their_median(tmp_path: Path) -> None:
    ratios = [(1.1, 1.3), (1.2, 0.9), (1.05, 1.2)]
    for number, (memory, seconds) in enumerate(ratios, 1):
        manifest(tmp_path, number, memory, seconds)
    manifest(tmp_path, 4, 2.0, 2.0, device="L4")
    manifest(tmp_path, 5, 2.0, 2.0, method="ia3")
    manifest(tmp_path, 6, 1.0, 40.0)
    (tmp_path / "name" / "7").mkdir()
    (tmp_path / "name" / "7" / "manifest.json").write_text("{", encoding="utf-8")
    (tmp_path / "name" / "8").mkdir()
    (tmp_path / "name" / "8" / "manifest.json").write_text('{"training": {"plan": {"steps": 3}}}', encoding="utf-8")
    runs = past_runs(tmp_path)
    assert len(runs) == 6
    found = correction(runs, KIND)
    assert found.runs == 3
    assert found.peak == pytest.approx(statistics.median(m for m, _ in ratios)) and found.seconds == pytest.approx(statistics.median(s for _, s in ratios))
    assert "times 1.10" in found.words("peak") and "3 past runs" in found.words("peak") and "times 1.20" in found.words("seconds")


def test_without_past_runs_nothing_is_corrected_or_said() -> None:
    assert correction([], KIND) == Correction(1.0, 1.0, 0) and Correction().words("peak") == ""
    assert correction([Past(KIND, 1.1, 1.1)], Kind("other", "", "", False)).runs == 0


def test_a_run_that_stopped_early_is_compared_with_its_part_of_the_plan(tmp_path: Path) -> None:
    manifest(tmp_path, 1, 1.0, 0.5, steps=20)  # 10 of 20 steps in half the time: as planned
    assert past_runs(tmp_path)[0].seconds == pytest.approx(1.0)
