"""What an adapter forgot: numbers against naive loops, flags on adapters that were really trained, and everything again from the rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tuner.artifact.adapter import Adapter
from tuner.artifact.decode import Decoder
from tuner.artifact.store import Version
from tuner.base import BaseSpec, Precision, load_model, resolve_base
from tuner.evaluate.forgetting import BINARY, METRICS, _counted, _last_number, _numbered, bought, everyday_prompts, forgetting, result_of, ticks, verdict
from tuner.evaluate.intervals import Difference
from tuner.evaluate.probes import FAMILIES, generate
from tuner.evaluate.result import Result
from tuner.evaluate.spec import ForgettingSpec
from tuner.template.spec import TemplateSpec
from tuner.template.tokens import Encoder, open_encoder

FP32 = Precision("cpu", "float32", None)
FEW = ForgettingSpec(probes=63, instructions=7, problems=6, passages=8)
SEED, RESAMPLES = 0, 1000
TASK = [("Which colour is the sky?", "blue"), ("Which colour is grass?", "green"), ("Which colour is blood?", "red"), ("Which colour is snow?", "white")]


def wrapped(base: Any, rank: int = 8, system: str | None = "Name the colour.") -> Adapter:
    """A fresh adapter on a base, as it would be loaded. Its second matrix is zero: it is the base until it is trained."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    encoder = open_encoder(base.folder, TemplateSpec(system=system), base.name)
    model = get_peft_model(load_model(base, FP32), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    decoder = Decoder(model.eval(), encoder.pad_id, encoder.stop_ids, 16)
    return Adapter(Version("colours", 1, Path()), {"base": {"name": base.name}}, encoder, decoder, FP32, base.folder)


def train(adapter: Adapter, pairs: list[tuple[str, str]], steps: int, learning_rate: float) -> None:
    """A bare loop: one record a step, in turn, loss on the answer."""
    model = adapter.decoder.model
    steered = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    for step in range(steps):
        question, answer = pairs[step % len(pairs)]
        prompt, completion = adapter.prompt_ids(question), adapter.completion_ids(question, answer)
        labels = torch.tensor([[-100] * len(prompt) + completion])
        model(input_ids=torch.tensor([prompt + completion]), labels=labels).loss.backward()
        steered.step()
        steered.zero_grad()


@pytest.fixture(scope="module")
def tiny(tiny_base: Path) -> Any:
    return resolve_base(BaseSpec(model=str(tiny_base), sanity="off"), Path())


@pytest.fixture(scope="module")
def spoilt(tiny: Any) -> tuple[Adapter, Result]:
    """Trained at 100 times a usual rate on one record again and again."""
    adapter = wrapped(tiny)
    train(adapter, TASK[:1], 40, 100 * 2e-4)
    return adapter, forgetting(adapter, FEW, "small", SEED, RESAMPLES)


@pytest.fixture(scope="module")
def gentle(tiny: Any) -> tuple[Adapter, Result]:
    adapter = wrapped(tiny)
    train(adapter, TASK, 8, 2e-4)
    return adapter, forgetting(adapter, FEW, "small", SEED, RESAMPLES)


def logits_of(adapter: Adapter, ids: list[int], base: bool) -> torch.Tensor:
    """(T, V) log-probabilities by one plain forward pass, no cache and no batch."""
    import contextlib

    model = adapter.decoder.model
    with torch.no_grad(), model.disable_adapter() if base else contextlib.nullcontext():
        found: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return found


def rows_of(result: Result, contender: str, metric: str) -> list[dict[str, Any]]:
    return [r for r in result.rows if r["contender"] == contender and (metric in r["scores"] or metric in r["parts"])]


# --- numbers -------------------------------------------------------------------------------------------------------


def test_loss_and_kl_on_neutral_text_are_those_of_a_loop_over_the_whole_softmax(spoilt: tuple[Adapter, Result]) -> None:
    adapter, result = spoilt
    for row, base_row in list(zip(rows_of(result, "adapter", "text_loss"), rows_of(result, "base", "text_loss"), strict=True))[:3]:
        ids = adapter.encoder.tokenizer.encode(row["question"]).ids
        base, ours = logits_of(adapter, ids, True), logits_of(adapter, ids, False)
        nats = [[-float(table[t, ids[t + 1]]) for t in range(len(ids) - 1)] for table in (base, ours)]
        kl = sum(float(math.exp(base[t, v]) * (base[t, v] - ours[t, v])) for t in range(1) for v in range(base.shape[1]))
        kl += sum(float((base[t].exp() * (base[t] - ours[t])).sum()) for t in range(1, len(ids) - 1))
        assert base_row["parts"]["text_loss"] == [pytest.approx(sum(nats[0]), rel=1e-4), len(ids) - 1]
        assert row["parts"]["text_loss"] == [pytest.approx(sum(nats[1]), rel=1e-4), len(ids) - 1]
        assert row["parts"]["kl_base"][0] == pytest.approx(kl, rel=1e-3)
        assert row["parts"]["same_first"] == [int((base[:-1].argmax(-1) == ours[:-1].argmax(-1)).sum()), len(ids) - 1]


def test_the_chosen_option_is_the_likeliest_by_a_pass_for_each_without_the_task_s_system_prompt(spoilt: tuple[Adapter, Result]) -> None:
    adapter, result = spoilt
    plain = Encoder(adapter.encoder.tokenizer, open_encoder(adapter.base_folder, TemplateSpec(), "plain").template, adapter.encoder.stop_ids,
                    TemplateSpec(), "plain")  # fmt: skip
    from tuner.data.record import Message

    for contender in ("base", "adapter"):
        for row in [r for r in result.rows if r["contender"] == contender and r["probe"] in FAMILIES][::9]:
            asked = [Message("user", row["question"])]
            prompt = plain.prompt_ids(asked)
            nats = []
            for option in row["options"]:
                completion = plain.completion_ids(asked, option)
                table = logits_of(adapter, prompt + completion, contender == "base")
                nats.append(-sum(float(table[len(prompt) - 1 + i, t]) for i, t in enumerate(completion)))
            right = row["options"].index(row["reference"])
            shares = [math.exp(min(nats) - n) for n in nats]
            assert row["answer"] == row["options"][nats.index(min(nats))]
            shared = min(nats) - min(row["option_nats"])  # tokens that all four begin with, or the one that ends them
            assert row["option_nats"] == pytest.approx([n - shared for n in nats], abs=1e-3)
            assert row["scores"][row["probe"]] == row["scores"].get("overall", row["scores"][row["probe"]]) == float(row["answer"] == row["reference"])
            if "overall" in row["scores"]:
                assert row["scores"]["choice_nats"] == pytest.approx(-math.log(max(shares[right] / sum(shares), 1e-6)), abs=1e-3)


def test_a_fresh_adapter_is_its_base_in_every_number(tiny: Any) -> None:
    result = forgetting(wrapped(tiny), FEW, "small", SEED, RESAMPLES)
    assert set(result.differences) == set(METRICS) - {"gsm8k_exact", "kl_base", "same_first", "prompt_kl", "prompt_same_first"}
    assert all(d.value == pytest.approx(0, abs=1e-6) for d in result.differences.values())
    assert result.values["adapter"]["kl_base"].value == pytest.approx(0, abs=1e-6)
    assert result.values["adapter"]["same_first"].value == result.values["adapter"]["prompt_same_first"].value == 1
    assert result.facts["verdict"] == "none seen"
    assert result.facts["flags"] == []


def test_every_value_and_difference_follows_from_the_rows(spoilt: tuple[Adapter, Result]) -> None:
    _, result = spoilt
    seen = 0
    kept = [json.loads(json.dumps(row)) for row in result.rows]  # as answers.jsonl has them
    for name, facts in result.metrics.items():
        for contender in ("base", "adapter"):
            own = [r for r in kept if r["contender"] == contender]
            if facts.form == "ratio":
                parts = [r["parts"][name] for r in own if name in r["parts"]]
                value = sum(p[0] for p in parts) / sum(p[1] for p in parts) if parts else None
            else:
                scores = [r["scores"][name] for r in own if name in r["scores"]]
                value = sum(scores) / len(scores) if scores else None
            if value is None:
                assert name not in result.values[contender]
                continue
            seen += 1
            assert result.values[contender][name].value == pytest.approx(value, abs=1e-9)
        if name in result.differences:
            assert result.differences[name].value == pytest.approx(result.values["adapter"][name].value - result.values["base"][name].value, abs=1e-9)
    assert seen == 2 * len(result.differences) + 4
    again = result_of(kept, RESAMPLES, SEED)
    assert again.digest == result.digest
    assert {k: asdict(v) for k, v in again.differences.items()} == {k: asdict(v) for k, v in result.differences.items()}


def test_both_contenders_were_asked_the_same_and_items_are_numbered_once(spoilt: tuple[Adapter, Result]) -> None:
    _, result = spoilt
    base = {(r["item"], r["question"]) for r in result.rows if r["contender"] == "base"}
    ours = {(r["item"], r["question"]) for r in result.rows if r["contender"] == "adapter"}
    assert base < ours
    assert {q for _, q in ours - base} == set(everyday_prompts())
    assert len({i for i, _ in ours}) == len(ours) == result.n == 63 + 7 + 6 + 8 + 32
    assert {r["suite"] for r in result.rows} == {"forgetting"}


def test_the_tick_hears_of_every_item(tiny: Any) -> None:
    heard: list[int] = []
    spec = ForgettingSpec(probes=21, instructions=7, problems=4, passages=4)
    forgetting(wrapped(tiny), spec, "small", SEED, RESAMPLES, heard.append)
    assert sum(heard) == ticks(spec, "small")


def test_the_full_profile_solves_the_problems_too(tiny: Any) -> None:
    result = forgetting(wrapped(tiny), ForgettingSpec(probes=21, instructions=7, problems=4, passages=4), "full", SEED, RESAMPLES)
    assert result.differences["gsm8k_exact"].n == 4
    assert all(isinstance(r["answer"], str) for r in result.rows if r["probe"] == "gsm8k")
    assert [_last_number(t) for t in ("#### 1,200", "It is 3.5 kg, not 4.", "none", "-7")] == [1200, 4, None, -7]


# --- flags ---------------------------------------------------------------------------------------------------------


def test_an_adapter_trained_gently_is_not(gentle: tuple[Adapter, Result]) -> None:
    _, result = gentle
    assert result.facts["verdict"] == "none seen"
    assert 0 < result.values["adapter"]["kl_base"].value < 0.05  # it was trained: it is not the base


def test_an_adapter_that_answers_everything_as_its_one_record_says_something_else_first(spoilt: tuple[Adapter, Result]) -> None:
    """The tiny base is random: it has no ability to lose, but what it would say first is changed for every question."""
    _, result = spoilt
    assert result.values["adapter"]["prompt_same_first"].value == 0
    assert result.values["adapter"]["prompt_kl"].value > 100 * 5e-5


@pytest.mark.slow
def test_on_a_real_base_the_spoilt_adapter_is_flagged_and_the_benign_one_is_not(smollm2: Any) -> None:
    verdicts = {}
    for name, pairs, steps, rate in (("spoilt", TASK[:1], 40, 100 * 2e-4), ("benign", TASK, 40, 2e-4)):
        adapter = wrapped(smollm2)
        train(adapter, pairs, steps, rate)
        verdicts[name] = forgetting(adapter, FEW, "small", SEED, RESAMPLES)
    spoilt, benign = verdicts["spoilt"], verdicts["benign"]
    assert spoilt.facts["verdict"] == "forgot"
    assert spoilt.differences["text_loss"].low > 1
    assert benign.facts["verdict"] == "none seen"
    assert benign.differences["text_loss"].value < 0.05 and benign.differences["text_loss"].high < 0.1  # eight passages
    assert spoilt.differences["overall"].verdict == "worse" and spoilt.differences["choice_nats"].low > 0.5 > benign.differences["choice_nats"].high
    assert 0.3 < benign.values["base"]["overall"].value < 0.9  # neither at chance nor at its ceiling
    assert bought(benign.rows, spoilt.rows, RESAMPLES, SEED)["verdict"] == "kept more"
    assert benign.values["base"]["text_loss"].value < 4  # nats a token: the passages are English that the base can read


def difference_of(value: float, low: float, high: float, p: float = 0.001, word: str | None = None) -> Difference:
    return Difference(value, low, high, p, 40, "base", "made", "made", word or ("worse" if high < 0 else "no difference seen"))


def test_flags_are_read_off_intervals_never_off_points() -> None:
    calm = {"overall": difference_of(-0.01, -0.03, 0.01), **{f: difference_of(0, -0.1, 0.1, 0.9) for f in FAMILIES}}
    for low, word in ((0.21, "forgot"), (0.19, "drifted"), (0.051, "drifted"), (0.049, "none seen")):
        text = difference_of(0.5, low, 0.9, word="worse")
        assert verdict({**calm, "text_loss": text})["verdict"] == word
    still = difference_of(0.0, -0.01, 0.01)
    assert verdict({**calm, "text_loss": still, "overall": difference_of(-0.1, -0.2, -0.01)})["verdict"] == "forgot"
    alone = {**calm, "text_loss": still, "units": difference_of(-0.3, -0.5, -0.1, 0.01)}
    assert verdict(alone)["verdict"] == "none seen"  # one of seven at p = 0.01: Holm asks for 0.05 / 7
    assert verdict({**alone, "units": difference_of(-0.3, -0.5, -0.1, 0.005)})["verdict"] == "drifted"
    told = verdict({**calm, "text_loss": still, "instructions_followed": difference_of(-0.4, -0.6, -0.2)})
    assert told["verdict"] == "none seen"
    assert [flag.split(":")[0] for flag in told["flags"]] == ["behaviour"]


# --- which probes count ----------------------------------------------------------------------------------------------


def asked_rows(base: dict[str, list[bool]], ours: dict[str, list[bool]]) -> list[dict[str, Any]]:
    """Rows of choice probes that base and adapter answer rightly or not, and two passages."""
    rows = [
        {"item": 1000 * place + i, "contender": contender, "probe": family, "question": f"{family} {i}", "reference": "a", "options": list("abcd"),
         "option_nats": [0.5, 1.0, 2.0, None] if right else [1.0, 0.5, 2.0, None], "scores": {family: float(right)}}
        for contender, of in (("base", base), ("adapter", ours)) for place, family in enumerate(of) for i, right in enumerate(of[family])
    ]  # fmt: skip
    passages = [{"item": i, "contender": c, "probe": "text", "question": f"p{i}", "reference": None, "scores": {}, "parts": {"text_loss": [30.0 + i, 10]}}
                for c in ("base", "adapter") for i in (0, 1)]  # fmt: skip
    return _numbered(_counted([*rows, *passages]))


def dealt(share: float, n: int = 40) -> list[bool]:
    """`share` of n right, spread evenly."""
    return [int((i + 1) * share) > int(i * share) for i in range(n)]


def test_probes_that_the_base_answers_by_chance_do_not_hide_what_was_lost() -> None:
    """Arithmetic is lost and calendar, where the base was below chance, rises to chance: over all of them nothing would be seen."""
    base = {"arithmetic": dealt(0.8), "calendar": dealt(0.1), "units": dealt(0.25)}
    found = result_of(asked_rows(base, {"arithmetic": dealt(0.4), "calendar": dealt(0.4), "units": dealt(0.35)}), RESAMPLES, SEED)
    assert found.differences["overall"].n == found.differences["choice_nats"].n == 40
    assert found.differences["overall"].value == pytest.approx(-0.4) and found.facts["verdict"] == "forgot"
    assert {f: of["counted"] for f, of in found.facts["families"].items()} == {"arithmetic": 40, "calendar": 0, "units": 0}
    assert found.facts["chance"] == 0.25 and "chance 0.25" in found.metrics["overall"].what and found.version == 2
    text, probes = (f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" for d in (found.differences[m] for m in ("text_loss", "overall")))
    told = f"{text} nats a token on 2 neutral passages, {probes} of the 40 general questions that the base can do."
    assert found.facts["words"] == f"The adapter forgot: {told}"


def test_what_counts_depends_on_the_base_alone_and_not_on_the_item_itself() -> None:
    rng = np.random.default_rng(0)
    base = {f: (rng.random(43) < p).tolist() for f, p in zip(FAMILIES, (0.7, 0.2, 0.45, 0.5, 0.4, 0.3, 0.9), strict=True)}
    counted = [{r["question"] for r in asked_rows(base, ours) if "overall" in r["scores"]} for ours in (base, {f: [False] * 43 for f in FAMILIES})]
    assert counted[0] == counted[1]
    for family in FAMILIES:
        for at in range(43):
            others = [right for i, right in enumerate(base[family]) if i % 5 != at % 5]
            low = stats.binomtest(sum(others), len(others)).proportion_ci(method="wilson").low
            assert (f"{family} {at}" in counted[0]) == (low > 0.25)


def test_an_adapter_of_the_same_ability_is_not_called_worse_because_the_base_was_lucky() -> None:
    """Three in ten answers afresh: counting whole families by their own items calls 7 % of such adapters worse."""
    rng, worse = np.random.default_rng(0), []
    for _ in range(150):
        base = {f: rng.random(43) < 0.35 for f in FAMILIES}
        ours = {f: np.where(rng.random(43) < 0.3, rng.random(43) < 0.35, of).tolist() for f, of in base.items()}
        rows = [r for r in asked_rows({f: of.tolist() for f, of in base.items()}, ours) if "overall" in r["scores"]]
        own, other = ([r["scores"]["overall"] for r in rows if r["contender"] == c] for c in ("adapter", "base"))
        worse.append(bool(own) and float(np.mean(own)) - float(np.mean(other)))
    assert abs(np.mean(worse)) < 3.3 * np.std(worse) / math.sqrt(150)


def test_a_base_that_knows_nothing_has_nothing_to_forget_and_that_is_said() -> None:
    base = {f: dealt(0.25) for f in FAMILIES}
    found = result_of(asked_rows(base, base), RESAMPLES, SEED)
    assert "overall" not in found.metrics and "choice_nats" not in found.differences
    assert [n["measure"] for n in found.facts["not_measured"]] == ["overall"] and "7 families" in found.facts["not_measured"][0]["words"]
    assert found.facts["words"].endswith("no probe that the base can do.")


def test_right_answers_that_became_much_dearer_are_a_drift() -> None:
    base = {"arithmetic": dealt(0.8)}
    rows = asked_rows(base, base)
    for row in rows:
        if row["contender"] == "adapter" and "choice_nats" in row["scores"]:
            row["scores"]["choice_nats"] += 0.8 + 0.01 * (row["item"] % 7)
    found = result_of(rows, RESAMPLES, SEED)
    assert found.facts["verdict"] == "drifted" and "the right answers of these 40 cost +0.8" in found.facts["flags"][0]


def test_text_that_cannot_be_read_at_all_is_not_called_unforgotten() -> None:
    assert verdict({"text_loss": difference_of(math.nan, math.nan, math.nan, 1.0, "no difference seen")})["verdict"] == "forgot"


# --- what rehearsal bought -----------------------------------------------------------------------------------------


def test_what_rehearsal_bought_is_a_paired_difference_between_two_adapters(spoilt: tuple[Adapter, Result], gentle: tuple[Adapter, Result]) -> None:
    found = bought(gentle[1].rows, spoilt[1].rows, RESAMPLES, SEED)
    assert found["items"] == 63 + 7 + 6 + 8 + 32
    for name, told in found["differences"].items():
        kept, lost = (result.values["adapter"][name].value for _, result in (gentle, spoilt))
        assert told["value"] == pytest.approx(kept - lost, abs=1e-9)
        assert told["baseline"] == "adapter without rehearsal"
    assert found["differences"]["kl_base"]["verdict"] == "better"
    assert found["differences"]["kl_base"]["n"] == 8
    assert set(found["differences"]) == set(METRICS) - {"gsm8k_exact"}
    assert bought(gentle[1].rows, gentle[1].rows, RESAMPLES, SEED)["verdict"] == "no difference seen"


def test_versions_that_were_asked_different_questions_are_compared_on_those_both_were_asked(gentle: tuple[Adapter, Result], tiny: Any) -> None:
    other = forgetting(gentle[0], ForgettingSpec(probes=42, instructions=7, problems=4, passages=5), "small", SEED, RESAMPLES)
    shared = {p.question for p in generate(42, SEED)} & {p.question for p in generate(63, SEED)}
    found = bought(gentle[1].rows, other.rows, RESAMPLES, SEED)
    assert found["differences"]["text_loss"]["n"] == 5
    assert sum(found["differences"][family]["n"] for family in FAMILIES) == len(shared) >= 21


# --- shipped texts -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> Iterator[dict[str, list[dict[str, Any]]]]:
    from tuner.evaluate.forgetting import DATA

    yield {n: [json.loads(line) for line in (DATA / n).read_text(encoding="utf-8").splitlines()] for n in ("neutral_text.jsonl", "gsm8k_train_slice.jsonl")}


def test_shipped_texts_are_as_many_as_said_all_different_with_their_licences(shipped: dict[str, list[dict[str, Any]]], encoder: Any) -> None:
    from tuner.evaluate.forgetting import DATA

    passages, problems = shipped["neutral_text.jsonl"], shipped["gsm8k_train_slice.jsonl"]
    lengths = [len(encoder.tokenizer.encode(p["text"]).ids) for p in passages]
    assert len(passages) == len({p["text"] for p in passages}) == 100
    assert 110 <= min(lengths) <= max(lengths) <= 170
    assert all(p["source"] for p in passages)
    assert len(problems) == len({p["question"] for p in problems}) == 200
    assert all("<<" not in p["answer"] and "####" in p["answer"] for p in problems)
    assert len(everyday_prompts()) == len(set(everyday_prompts())) == 32
    notes = (DATA / "LICENCE.md").read_text(encoding="utf-8")
    assert "MIT License" in notes
    assert "out of copyright" in notes


def test_metrics_that_are_shares_are_zero_or_one_an_item(spoilt: tuple[Adapter, Result]) -> None:
    counted = 0
    for row in spoilt[1].rows:
        for name, score in row["scores"].items():
            if name in BINARY:
                counted += 1
                assert score in (0.0, 1.0)
    assert counted == 2 * (63 + 7) + 32 + sum("overall" in row["scores"] for row in spoilt[1].rows)
    assert np.isfinite([v for r in spoilt[1].rows for v in r["scores"].values()]).all()
