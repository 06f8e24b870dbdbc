"""The equivalence number says what it says: against scipy and naive loops, and what is beyond a tolerance is refused."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuner.artifact.equivalence import Equivalence, Reference, Said, Tolerance, compare, kl_nats, logit_differences, refuse_beyond, tolerance_of
from tuner.errors import Refusal

GOOD = Equivalence("an engine", 3, 3, 3, None, 12, 1e-5, 1e-4, 1e-9, 1e-8, [])


def test_kl_is_that_of_scipy_at_every_position_and_zero_for_equal_logits() -> None:
    from scipy.special import rel_entr, softmax

    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0, 5, (7, 50)).astype(np.float32), rng.normal(0, 5, (7, 50)).astype(np.float32)
    expected = [rel_entr(softmax(a.astype(float)), softmax(b.astype(float))).sum() for a, b in zip(ours, theirs, strict=True)]
    assert np.allclose(kl_nats(ours, theirs), expected, rtol=1e-9)
    assert (kl_nats(ours, ours) == 0).all() and np.allclose(kl_nats(ours, ours + 3), 0, atol=1e-9)  # a shift changes no probability


def test_logit_differences_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(size=(4, 9)), rng.normal(size=(4, 9))
    for row, (mean, largest) in enumerate(logit_differences(ours, theirs)):
        apart = [abs(a - b) for a, b in zip(ours[row], theirs[row], strict=True)]
        assert math.isclose(mean, sum(apart) / 9) and math.isclose(largest, max(apart))


def test_an_engine_with_more_unused_rows_is_compared_on_those_both_have() -> None:
    ours = np.zeros((2, 5))
    assert kl_nats(ours, np.zeros((2, 8))).tolist() == [0, 0] and logit_differences(ours, np.zeros((2, 8))).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_counts_as_infinitely_far(bad: float) -> None:
    theirs = np.zeros((1, 4))
    theirs[0, 2] = bad
    assert logit_differences(np.zeros((1, 4)), theirs)[0, 1] == math.inf
    assert kl_nats(np.zeros((1, 4)), theirs)[0] == math.inf
    with pytest.raises(Refusal):
        refuse_beyond(replace(GOOD, largest_kl=math.inf), Tolerance(1, 1), "x")
    with pytest.raises(Refusal):
        refuse_beyond(replace(GOOD, mean_kl=math.nan), Tolerance(1, 1), "x")


class Scripted:
    """A way whose next token is written down: after n tokens in all, the n-th."""

    engine = "a script"

    def __init__(self, tokens: Sequence[int], shift: int = 0):
        self.tokens, self.shift = tokens, shift

    def prompt_ids(self, conversations: Sequence[Any]) -> list[list[int]]:
        return [[1 + self.shift] * 3 for _ in conversations]

    def greedy(self, prompt_ids: list[int], max_new_tokens: int, stop_ids: Collection[int]) -> list[int]:
        answer = []
        for token in self.tokens[:max_new_tokens]:
            if token in stop_ids:
                break
            answer.append(token)
        return answer

    def along(self, prompt_ids: list[int], answer_ids: list[int]) -> np.ndarray:
        logits = np.zeros((len(answer_ids) + 1, 10), dtype=np.float32)
        for row in range(len(logits)):
            logits[row, self.tokens[row]] = 4.0
        return logits


def reference(folder: Path, tokens: Sequence[int], answer: list[int]) -> Reference:
    np.save(folder / "0.npy", Scripted(tokens).along([], answer))
    return Reference([()], [Said([1, 1, 1], answer, folder / "0.npy")], 4, frozenset({0, 9}), None, "float32 weights")  # type: ignore[arg-type]


def test_an_answer_that_parts_is_shown_with_how_sure_the_artifact_was(tmp_path: Path) -> None:
    ours = reference(tmp_path, [5, 6, 7, 0], [5, 6, 7])
    same = compare(ours, Scripted([5, 6, 7, 0]))
    assert (same.answers_identical, same.prompts_equal, same.positions, same.largest_kl, same.divergent) == (1, 1, 4, 0, [])
    other = compare(ours, Scripted([5, 2, 7, 0]))
    (parted,) = other.divergent
    assert (parted.position, parted.ours, parted.theirs, parted.margin) == (1, 6, 2, 4.0) and other.first_difference == 1
    assert other.largest_logit_difference == 4.0 and other.mean_logit_difference == pytest.approx(8 / 40) and other.largest_kl > 1
    short = compare(ours, Scripted([5, 6, 9, 0]))
    assert (short.divergent[0].position, short.divergent[0].ours, short.divergent[0].theirs) == (2, 7, None)


def test_other_prompt_ids_are_refused_whatever_the_tolerance(tmp_path: Path) -> None:
    found = compare(reference(tmp_path, [5, 0], [5]), Scripted([5, 0], shift=1))
    assert found.prompts_equal == 0 and found.largest_kl == 0
    with pytest.raises(Refusal, match="token ids"):
        refuse_beyond(found, Tolerance(1e9, 1e9), "x as y")


def test_both_limits_hold_and_both_are_named() -> None:
    refuse_beyond(GOOD, Tolerance(1e-9, 1e-8), "x as y")
    for worse, named in ((replace(GOOD, mean_kl=2e-9), "mean KL"), (replace(GOOD, largest_kl=2e-8), "largest KL")):
        with pytest.raises(Refusal) as refused:
            refuse_beyond(worse, Tolerance(1e-9, 1e-8), "x as y")
        assert [p.field for p in refused.value.problems] == [named]


def test_a_tolerance_is_read_or_refused() -> None:
    assert tolerance_of("0.01") == Tolerance(0.01, 0.5) and tolerance_of("0.01,0.2") == Tolerance(0.01, 0.2)
    for words in ("", "a", "1,2,3", "-1", "nan", "inf", "0.1,nan"):
        with pytest.raises(Refusal, match="MEAN"):
            tolerance_of(words)
