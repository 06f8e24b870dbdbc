"""Batched answers, likelihoods and losses, against transformers' generate and a naive loop, on the real SmolLM2 in fp32."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests.conftest import SAMPLES
from tuner.artifact.decode import Decoder
from tuner.base import Precision, load_model
from tuner.data.record import Message

SYSTEM = Message("system", "You sort bank requests. Answer with one word.")


@pytest.fixture(scope="module")
def model(smollm2: Any) -> Any:
    return load_model(smollm2, Precision("cpu", "float32", None))


@pytest.fixture(scope="module")
def prompts(encoder: Any) -> list[list[int]]:
    """Real questions of different lengths under one system prompt, so that a beginning is shared."""
    lines = (SAMPLES / "clinc150" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()[:7]
    texts = [json.loads(line)["prompt"] for line in lines] + ["hi", "one two three four five six seven eight nine ten " * 4]
    return [encoder.prompt_ids([SYSTEM, Message("user", t)]) for t in texts]


@pytest.fixture(scope="module")
def decoder(model: Any, encoder: Any) -> Decoder:
    return Decoder(model, encoder.pad_id, encoder.stop_ids, batch=4)


def naive_losses(model: Any, prompt: list[int], completion: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].float().log_softmax(-1)
    return -sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(completion))


def test_greedy_answers_equal_those_of_generate_one_prompt_at_a_time(decoder: Decoder, model: Any, prompts: list[list[int]], encoder: Any) -> None:
    ours = decoder.greedy(prompts, max_new_tokens=12)
    for prompt, answer in zip(prompts, ours, strict=True):
        whole = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=12, do_sample=False, pad_token_id=2
        )
        theirs = whole[0, len(prompt) :].tolist()
        stop = next((i for i, t in enumerate(theirs) if t in encoder.stop_ids), len(theirs))
        assert answer == theirs[:stop]
    assert len(ours) == 9


def test_likelihoods_of_labels_equal_a_pass_for_each(decoder: Decoder, model: Any, prompts: list[list[int]], encoder: Any) -> None:
    candidates = [encoder.completion_ids([Message("user", "x")], label) for label in ("pin_change", "none", "transfer", "freeze_account")]
    assert len({len(c) for c in candidates}) > 1
    ours = decoder.likelihoods(prompts, candidates)
    assert ours.shape == (9, 4)
    for row, prompt in enumerate(prompts):
        for column, candidate in enumerate(candidates):
            assert float(ours[row, column]) == pytest.approx(-naive_losses(model, prompt, candidate), abs=2e-3)


def test_single_token_candidates_need_no_second_pass(decoder: Decoder, model: Any, prompts: list[list[int]]) -> None:
    ours = decoder.likelihoods(prompts[:3], [[5], [700]])
    assert float(ours[1, 1]) == pytest.approx(-naive_losses(model, prompts[1], [700]), abs=2e-3)


def test_losses_equal_a_pass_for_each(decoder: Decoder, model: Any, prompts: list[list[int]], encoder: Any) -> None:
    answers = [encoder.completion_ids([Message("user", "x")], f"answer number {i} " * (i + 1)) for i in range(len(prompts))]
    ours = decoder.losses(list(zip(prompts, answers, strict=True)))
    for prompt, answer, found in zip(prompts, answers, ours, strict=True):
        assert found == pytest.approx(naive_losses(model, prompt, answer), rel=1e-4, abs=2e-3)


def test_without_a_shared_beginning_answers_are_the_same(model: Any, encoder: Any, prompts: list[list[int]]) -> None:
    mixed = [prompts[0], encoder.prompt_ids([Message("system", "Sing."), Message("user", "la")]), [1, 9690]]
    apart = Decoder(model, encoder.pad_id, encoder.stop_ids, batch=2)
    assert apart._common(mixed) == []
    alone = [apart.greedy([p], 8)[0] for p in mixed]
    assert apart.greedy(mixed, 8) == alone


def test_a_model_with_a_sliding_window_shares_nothing_and_still_scores(tiny_base: Any, encoder: Any) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(1)
    small = MistralConfig(
        vocab_size=49152, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, sliding_window=16
    )
    mistral = MistralForCausalLM(small).eval()
    decoder = Decoder(mistral, encoder.pad_id, encoder.stop_ids, batch=3)
    prompts = [encoder.prompt_ids([SYSTEM, Message("user", t)]) for t in ("hello there", "a much longer question than that one", "x")]
    assert decoder._common(prompts) == []
    candidates = [[5, 6, 7], [8, 9]]
    ours = decoder.likelihoods(prompts, candidates)
    for row, prompt in enumerate(prompts):
        for column, candidate in enumerate(candidates):
            assert float(ours[row, column]) == pytest.approx(-naive_losses(mistral, prompt, candidate), abs=2e-3)


def test_answers_end_at_the_stop_token_and_at_the_limit(decoder: Decoder, prompts: list[list[int]], encoder: Any) -> None:
    for answer in decoder.greedy(prompts, max_new_tokens=3):
        assert len(answer) <= 3
        assert not encoder.stop_ids.intersection(answer)


def test_a_prompt_s_own_choices_are_as_far_apart_as_a_pass_for_each_says(decoder: Decoder, model: Any, prompts: list[list[int]], encoder: Any) -> None:
    texts = [[f"The answer is {w}." for w in ("ten", "eleven thousand", f"{row} hundred and one", "no")][: 2 + row % 3] for row in range(len(prompts))]
    texts[0] = ["a", "b"]  # one token and the stop: nothing in common
    candidates = [[encoder.completion_ids([Message("user", "x")], t) for t in of] for of in texts]
    for prompt, of, found in zip(prompts, candidates, decoder.choices(prompts, candidates), strict=True):
        wanted = [-naive_losses(model, prompt, c) for c in of]
        assert [f - found[0] for f in found] == pytest.approx([w - wanted[0] for w in wanted], abs=2e-3)
    assert len({len(of) for of in candidates}) == 3
