"""Answers in a flight, whatever joins and leaves beside them, against Decoder.greedy, transformers' generate and its own top-p."""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig
from transformers.generation.logits_process import TopPLogitsWarper

from tuner.artifact.decode import Decoder
from tuner.artifact.flight import Flight, Sampling, common_tokens, probabilities
from tuner.errors import Refusal

VOCABULARY = 49152
STOPS = frozenset(range(0, VOCABULARY, 13))  # so many that answers of an untrained model end at different lengths


@pytest.fixture(scope="module")
def decoder(tiny_base: Path) -> Decoder:
    return Decoder(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval(), 2, STOPS, batch=8)


def prompts_of(draw: random.Random, count: int) -> list[list[int]]:
    """Half of them begin with the same twenty tokens."""
    common = [draw.randrange(3, VOCABULARY) for _ in range(20)]
    return [(common if i % 2 else []) + [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, 40))] for i in range(count)]


def flown(decoder: Decoder, prompts: list[list[int]], tokens: list[int], draw: random.Random, leaving: Collection[int] = ()) -> dict[int, list[int]]:
    """Every prompt's answer; prompts join between steps at random, and those in `leaving` leave once they have said two tokens."""
    flight, waiting = Flight(decoder), list(range(len(prompts)))
    answers: dict[Any, list[int]] = {i: [] for i in waiting}
    ended: set[Any] = set()
    draw.shuffle(waiting)
    while waiting or len(flight):
        for _ in range(min(len(waiting), draw.choice([0, 0, 1, 1, 2, 4]))):
            row = waiting.pop()
            flight.join(row, prompts[row], tokens[row])
        for key, token in flight.step():
            assert key not in ended
            if token is None:
                ended.add(key)
            else:
                answers[key].append(token)
        for key in leaving:
            if len(answers[key]) >= 2:
                flight.leave(key)
                ended.add(key)
    assert len(ended) == len(prompts)
    return answers


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_join_and_leave_at_random_say_what_greedy_says_for_each(decoder: Decoder, seed: int) -> None:
    draw = random.Random(seed)
    prompts = prompts_of(draw, 24)
    tokens = [draw.randint(1, 30) for _ in prompts]
    leaving = set(draw.sample(range(24), 6))
    wanted = [decoder.greedy([p], n)[0] for p, n in zip(prompts, tokens, strict=True)]
    found = flown(decoder, prompts, tokens, draw, leaving)
    for row, answer in enumerate(wanted):
        assert found[row] == (answer[:2] if row in leaving else answer)
    assert len({len(a) for a in wanted}) > 4  # lengths do differ


def test_one_row_says_what_generate_says(decoder: Decoder) -> None:
    prompt = [5, 900, 31, 7]
    whole = decoder.model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 4), max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=2
    )
    flight = Flight(Decoder(decoder.model, 2, frozenset()))
    flight.join("only", prompt, 9)
    said = [token for _ in range(9) for _, token in flight.step()]
    assert said == [*whole[0, 4:].tolist(), None] and len(flight) == 0 and flight.step() == []


def test_a_step_after_others_left_is_no_wider_than_the_longest_row_needs(decoder: Decoder) -> None:
    flight = Flight(Decoder(decoder.model, 2, frozenset()))
    flight.join("long", list(range(3, 203)), 50)
    flight.join("short", [5, 6, 7], 50)
    flight.step()
    flight.leave("long")
    flight.leave("never there")
    flight.step()
    (group,) = flight._groups
    assert group.asked.mask.shape == (1, 4) and {layer.keys.shape[2] for layer in group.asked.cache.layers} == {4}


def test_a_beginning_that_prompts_share_is_run_once(decoder: Decoder) -> None:
    system = list(range(100, 140))
    runs: list[int] = []
    hook = decoder.model.get_input_embeddings().register_forward_hook(lambda _module, inputs, _out: runs.append(inputs[0].numel()))
    try:
        flight = Flight(decoder)
        for tail in range(5):
            flight.join(tail, [*system, 300 + tail, 301], 1)
            flight.step()
    finally:
        hook.remove()
    assert runs == [42, 40, 2, 2, 2, 2]  # the second finds out that it begins as the first did


def naive_greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_base_with_sliding_layers_is_run_one_row_at_a_time_and_says_the_same() -> None:
    torch.manual_seed(1)
    config = Gemma3TextConfig(
        vocab_size=500, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        sliding_window=6, layer_types=["sliding_attention", "full_attention", "sliding_attention"], max_position_embeddings=128,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval()
    draw = random.Random(3)
    prompts = [[draw.randrange(3, 500) for _ in range(length)] for length in (3, 20, 9)]
    found = flown(Decoder(model, 0, frozenset()), prompts, [12] * 3, draw)
    with torch.inference_mode():
        assert [found[i] for i in range(3)] == [naive_greedy(model, p, 12) for p in prompts]


def test_virtual_tokens_come_before_every_row(tiny_base: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    torch.manual_seed(2)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
    decoder = Decoder(model, 2, frozenset())
    prompts = prompts_of(random.Random(5), 4)
    found = flown(decoder, prompts, [6] * 4, random.Random(6))
    with torch.inference_mode():
        assert [found[i] for i in range(4)] == [naive_greedy(model, p, 6) for p in prompts]


# --- sampling --------------------------------------------------------------------------------------------------------


def test_sampled_rows_depend_on_their_seed_alone_whatever_else_flies(decoder: Decoder) -> None:
    prompts = prompts_of(random.Random(7), 6)
    sampling = [Sampling(0.9, 0.8, seed) for seed in (1, 2, 3, 4, 5, 1)]
    prompts[5] = prompts[0]

    def answers(together: bool) -> list[list[int]]:
        said: list[list[int]] = [[] for _ in prompts]
        flight = Flight(Decoder(decoder.model, 2, frozenset()))
        for i, prompt in enumerate(prompts):
            flight.join(i, prompt, 8, sampling[i])
            while not together and len(flight):
                for key, token in flight.step():
                    said[key] += [] if token is None else [token]
        while len(flight):
            for key, token in flight.step():
                said[key] += [] if token is None else [token]
        return said

    alone = answers(together=False)
    assert answers(together=True) == alone
    assert alone[5] == alone[0] and len({tuple(a) for a in alone}) == 5


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9), (1.5, 0.5), (0.01, 0.3)])
def test_probabilities_are_those_of_transformers_own_temperature_and_top_p(temperature: float, top_p: float) -> None:
    torch.manual_seed(4)
    logits = torch.randn(300) * 3
    theirs = (
        TopPLogitsWarper(top_p)(torch.zeros(1, 1), logits[None].double() / temperature).softmax(-1)[0]
        if top_p < 1
        else (logits.double() / temperature).softmax(-1)
    )
    ours = probabilities(logits, Sampling(temperature, top_p))
    torch.testing.assert_close(ours / ours.sum(), theirs, atol=1e-12, rtol=1e-9)


def test_draws_follow_the_probabilities(decoder: Decoder) -> None:
    from tuner.artifact.flight import _Row

    row = _Row("x", [1], 1, Sampling(1.0, 1.0, seed=0))
    shares = torch.tensor([0.5, 0.0, 0.3, 0.2])
    counts = torch.bincount(torch.tensor([row.next_token(shares.log(), 0) for _ in range(4000)]), minlength=4) / 4000
    assert counts[1] == 0 and float((counts - shares).abs().max()) < 4 * (0.25 / 4000) ** 0.5  # four standard errors


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"seed": 2**63}])
def test_sampling_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        Sampling(**wrong)


def test_common_tokens_leave_each_prompt_one_of_its_own() -> None:
    assert [common_tokens(p) for p in ([[1, 2, 3], [1, 2, 4]], [[1, 2], [1, 2]], [[1], [2]], [[1, 2, 3]])] == [2, 1, 0, 2]
