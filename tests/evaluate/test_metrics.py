"""The catalogue: every row of the table is swept, options are bound or asked for, and rows give back every value."""

from __future__ import annotations

import json
import math
import random
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.test_metric_bertscore import tiny_encoder
from tuner.errors import Refusal
from tuner.evaluate.metric_types import FORMS
from tuner.evaluate.metrics import DEFAULT_METRICS, METRICS, NEEDS, Answer, Metric, catalogue, row_parts, row_score
from tuner.evaluate.spec import MetricOptions

WANTED = ('{"intent": ["a b c 7"], "slots": {}}', '{"intent": ["d e f 8"], "slots": {"x": ["1"]}}')
HOSTILE_STRINGS = 1000


def value(metric: Metric, answers: Sequence[Answer]) -> float:
    return float(metric.combine(metric.parts(answers).sum(axis=0)))


def answer(wanted: str, said: str, sure: bool = True) -> Answer:
    """An answer with all that any metric asks for; `sure` of the right label, without loss."""
    likely = {w: 0.0 if (w == wanted) == sure else -800.0 for w in WANTED}
    return Answer((wanted,), said, 0.0 if sure else 9.0, 3, len(wanted), likely, "What is asked?", f"It says {wanted}.", 12.0)


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Metric]:
    """Every metric of the table with options that fit WANTED."""
    folder = tmp_path_factory.mktemp("options")
    (folder / "schema.json").write_text(json.dumps({"type": "object", "required": ["intent"], "properties": {"intent": {"type": "array"}}}))
    tiny_encoder(folder / "encoder")
    options = MetricOptions(pattern=r'^\{"intent"', json_schema="schema.json", bertscore_model="encoder", context_field="context")
    return catalogue(options, folder, METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_answer_scores_best_and_an_empty_one_does_not_crash(name: str, bound: dict[str, Metric]) -> None:
    metric = bound[name]
    perfect, empty = [answer(w, w) for w in WANTED], [answer(w, "", sure=False) for w in WANTED]
    best, worse = value(metric, perfect), value(metric, empty)
    if math.isfinite(metric.best):
        assert best == pytest.approx(metric.best, abs=1e-6)
    assert worse != best and (metric.neutral or (best > worse) == metric.higher_is_better)


def test_the_whole_table_was_swept_and_every_default_exists(bound: dict[str, Metric]) -> None:
    assert len(METRICS) == 29 and list(bound) == list(METRICS)
    assert {m.form for m in METRICS.values()} == set(FORMS)
    assert sum(m.of == "text" for m in METRICS.values()) == 23
    assert all(name in METRICS for names in DEFAULT_METRICS.values() for name in names)
    assert all(getattr(MetricOptions(), option) is None for needed in NEEDS.values() for option in needed)


def _hostile(rng: random.Random) -> str:
    pieces = ["\x00", "\ud800", "￿", "{", "[" * 500, '{"a":', "####", "1e999", "-", "9" * 5000, "%", "\u202e", "a\u0301" * 50, "🏳️‍🌈", "东京", "ไทย", "\\", '"',
              "</script>", "(" * 50, "1,234,5", "....", "\n" * 20, "NaN", "Infinity", "\u2212", "''", string.printable]  # fmt: skip
    return "".join(rng.choice(pieces) for _ in range(rng.randint(0, 6)))


@pytest.mark.parametrize("name", METRICS)
def test_a_thousand_hostile_answers_and_references_crash_nothing_and_stay_in_range(name: str, bound: dict[str, Metric]) -> None:
    rng = random.Random(name)
    metric = bound[name]
    count = 40 if name.startswith("bertscore") else HOSTILE_STRINGS  # of thousands of tokens each, all through the encoder
    answers = [_given(_hostile(rng), _hostile(rng)) for _ in range(count)]
    parts = metric.parts(answers)
    assert len(parts) == count and np.isfinite(parts).all()
    found = value(metric, answers)
    unbounded = metric.neutral or name in ("loss", "perplexity", "bits_per_byte", "context_gain")
    assert math.isfinite(found) and (unbounded or -1e-6 <= found <= (2 if name == "brier" else 1 + 1e-6))


def _given(said: str, wanted: str) -> Answer:
    return Answer((wanted,), said, 3.0, 2, len(wanted.encode("utf-8", "replace")), {wanted: -1.0, "x": -2.0}, said, wanted, 4.0)


@pytest.mark.parametrize("name", [n for n, m in METRICS.items() if m.binary])
def test_a_binary_metric_is_0_or_1_of_each_item(name: str, bound: dict[str, Metric]) -> None:
    rng = random.Random(name)
    parts = bound[name].parts([answer(WANTED[0], rng.choice([WANTED[0], WANTED[1], "x", ""])) for _ in range(50)])
    assert set(parts[:, 0].tolist()) <= {0.0, 1.0} and (parts[:, 1] == 1).all()


# --- rows ------------------------------------------------------------------------------------------------------------


def mixed(rng: random.Random, count: int) -> list[Answer]:
    made = []
    for _ in range(count):
        wanted = rng.choice(WANTED)
        nats = {w: -5 * rng.random() for w in WANTED}
        said = rng.choice([wanted, WANTED[0], "not that", "", wanted[:20]])
        made.append(Answer((wanted,), said, 5 * rng.random(), rng.randint(1, 9), rng.randint(1, 30), nats, "What?", f"It says {wanted}.", 7.0))
    return made


def from_rows(form: str, rows: list[tuple[Answer, float | None, list[float] | None]]) -> float:
    """The value again, from what answers.jsonl keeps and from nothing of the package."""
    if form == "mean":
        return sum(s for _, s, _ in rows if s is not None) / sum(s is not None for _, s, _ in rows)
    if form == "macro_f1":
        from sklearn.metrics import f1_score

        wanted = [a.references[0] for a, _, _ in rows]
        return float(f1_score(wanted, [a.text for a, _, _ in rows], labels=sorted(set(wanted)), average="macro", zero_division=0))
    kept = [p for _, _, p in rows if p]
    if form == "ece":
        gaps = {b: sum(p[1] - p[2] for p in kept if p[0] == b) for b in {p[0] for p in kept}}
        return sum(map(abs, gaps.values())) / len(kept)
    sums = [sum(column) for column in zip(*kept, strict=True)]
    if form == "bleu":
        from sacrebleu.metrics import BLEU

        return BLEU.compute_bleu([int(x) for x in sums[2:6]], [int(x) for x in sums[6:]], int(sums[0]), int(sums[1]), "exp").score / 100
    return math.exp(sums[0] / sums[1]) if form == "perplexity" else sums[0] / sums[1]


@pytest.mark.parametrize("name", METRICS)
def test_every_value_follows_from_its_rows(name: str, bound: dict[str, Metric]) -> None:
    answers = mixed(random.Random(name), 60)
    answers[7] = Answer(("nothing to grade",), "1 thing", 1.0, 2, 16)  # no number, no labels, no context
    metric = bound[name]
    numbers = metric.parts(answers).tolist()
    rows = [(a, row_score(name, n), row_parts(name, n)) for a, n in zip(answers, numbers, strict=True)]
    json.dumps([row[1:] for row in rows], allow_nan=False)
    assert from_rows(metric.form, rows) == pytest.approx(value(metric, answers), abs=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_a_resample_is_a_weighted_sum(name: str, bound: dict[str, Metric]) -> None:
    if name == "ece":
        pytest.skip("bins are cut once, on the whole suite")
    answers = mixed(random.Random(1), 12)
    weights = np.array([3, 0, 1, 0, 2, 1, 1, 0, 0, 2, 1, 1])
    metric = bound[name]
    repeated = [a for a, w in zip(answers, weights, strict=True) for _ in range(w)]
    assert float(metric.combine(weights @ metric.parts(answers))) == pytest.approx(value(metric, repeated))


def test_facts_carry_the_signature_and_the_table_prints_one_line_a_metric() -> None:
    assert "tok:13a|smooth:exp|version:" in METRICS["bleu"].facts().what
    assert "rapidfuzz" in METRICS["rouge_l"].facts().what and METRICS["loss"].facts().form == "ratio"
    assert all("\n" not in m.what and len(m.what) < 160 for m in METRICS.values())


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEEDS)
def test_a_metric_whose_option_is_missing_is_refused_with_the_field_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refusal:
        catalogue(MetricOptions(), tmp_path, [name])
    assert refusal.value.problems[0].field == f"evaluate.options.{NEEDS[name][0]}"
    if NEEDS[name][0] != "context_field":  # those need nothing to compute, only a context to be found
        with pytest.raises(Refusal):
            METRICS[name].parts([Answer(("a",), "a")])


def test_an_unknown_metric_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="write rouge_l"):
        catalogue(MetricOptions(), tmp_path, ["rougel"])


@pytest.mark.parametrize("pattern", ["(", "[z-a]", "(?<n>a)(?<"])
def test_a_pattern_that_does_not_compile_is_refused(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"evaluate\.options\.pattern"):
        catalogue(MetricOptions(pattern=pattern), tmp_path, ["regex"])


def test_a_pattern_of_exponential_time_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="whose time does not explode"):
        catalogue(MetricOptions(pattern="(a|aa)+$"), tmp_path, ["regex"])


def test_a_pattern_that_explodes_on_an_answer_counts_as_no_match(tmp_path: Path) -> None:
    """No trial foresees every input; the search itself is bounded too."""
    metric = catalogue(MetricOptions(pattern=r"^(qz|qzqz)+$"), tmp_path, ["regex"])["regex"]
    assert value(metric, [Answer(("",), "qz" * 3000 + "!")]) == 0
    assert value(metric, [Answer(("",), "qzqzqz")]) == 1


def test_the_schema_and_the_tolerance_of_the_recipe_hold(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"type": "array", "items": {"type": "integer"}}')
    found = catalogue(MetricOptions(json_schema="s.json", relative_tolerance=0.1), tmp_path, ["schema_valid", "numeric"])
    assert value(found["schema_valid"], [Answer(("",), t) for t in ("[1, 2]", '["a"]', "{}", "[1")]) == 0.25
    assert value(found["numeric"], [Answer(("100",), t) for t in ("109", "110", "111", "90")]) == 0.75
    assert "0.1" in found["numeric"].facts().what


def test_items_that_a_metric_cannot_grade_are_told_by_the_item_alone() -> None:
    assert not METRICS["numeric"].applies(Answer(("none",), "7")) and METRICS["numeric"].applies(Answer(("7",), "none"))
    assert not METRICS["ece"].applies(Answer(("a",), "a")) and not METRICS["context_use"].applies(Answer(("a",), "a", context=" "))
    assert not METRICS["context_gain"].applies(Answer(("a",), "a", context="b"))
    mixed_up = [Answer(("7",), "7"), Answer(("none",), "7")]
    assert METRICS["numeric"].parts(mixed_up).tolist() == [[1, 1], [0, 0]]
    assert value(METRICS["numeric"], mixed_up) == 1 and row_score("numeric", [0.0, 0.0]) is None
    assert all(
        m.applies(Answer(("a",), None)) for n, m in METRICS.items() if n not in ("numeric", "ece", "brier") and "context" not in n and "grounded" not in n
    )


# --- likelihood ------------------------------------------------------------------------------------------------------


def test_loss_perplexity_and_bits_per_byte_are_functions_of_sums() -> None:
    answers = [Answer(("ab",), None, nats=3.0, tokens=2, bytes=2), Answer(("c",), None, nats=1.0, tokens=3, bytes=4)]
    assert value(METRICS["loss"], answers) == pytest.approx(4 / 5)
    assert value(METRICS["perplexity"], answers) == pytest.approx(math.exp(4 / 5))
    assert value(METRICS["bits_per_byte"], answers) == pytest.approx(4 / math.log(2) / 6)
    assert not METRICS["loss"].higher_is_better


def test_context_gain_is_what_the_context_saves_a_token() -> None:
    answers = [Answer(("a",), None, nats=2.0, tokens=4, nats_without_context=6.0), Answer(("b",), None, nats=3.0, tokens=1, nats_without_context=2.0)]
    assert value(METRICS["context_gain"], answers) == pytest.approx((4 - 1) / 5)
