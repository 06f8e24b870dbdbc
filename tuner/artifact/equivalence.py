"""How far an exported model is from the artifact it was made of: prompts, greedy answers, logits and KL divergence on the same questions.

It refuses to call an export equal by what was meant: the exported files are opened again as their users open them, and asked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tuner.errors import Collector, refuse
from tuner.template.tokens import Encoder

if TYPE_CHECKING:
    import numpy as np

    from tuner.artifact.adapter import Adapter
    from tuner.artifact.parity import Conversation

Ids = list[int]
SHOWN = 20  # answers that differ, written out with their margin


class Way(Protocol):
    """An exported model, opened as its users open it."""

    engine: str

    def prompt_ids(self, conversations: Sequence[Conversation]) -> list[Ids]:
        """The ids its own tokenizer and template make of each conversation, which has its system prompt already."""

    def greedy(self, prompt_ids: Ids, max_new_tokens: int, stop_ids: Collection[int]) -> Ids:
        """The most likely next token again and again, up to a stop token (left out)."""

    def along(self, prompt_ids: Ids, answer_ids: Ids) -> np.ndarray:
        """Logits (T + 1, V) in float32: of the token after the prompt, and after each of the T tokens of a given answer."""


@dataclass(frozen=True)
class Tolerance:
    """KL(artifact ‖ export) in nats that is let through: its mean over all positions, and at the worst of them."""

    mean_kl: float
    largest_kl: float

    def __str__(self) -> str:
        return f"{self.mean_kl:g} nats in the mean, {self.largest_kl:g} at any position"


@dataclass(frozen=True)
class Divergent:
    """An answer that is not the artifact's: `margin` is by how much the artifact preferred its own token (logits) where they part."""

    prompt: int
    position: int
    ours: int | None
    theirs: int | None
    margin: float


@dataclass(frozen=True)
class Equivalence:
    """What was compared. Logits and KL are over the next token after the prompt and along the artifact's own answer: `positions` in all."""

    engine: str
    prompts: int
    prompts_equal: int
    answers_identical: int
    first_difference: int | None
    positions: int
    mean_logit_difference: float
    largest_logit_difference: float
    mean_kl: float
    largest_kl: float
    divergent: list[Divergent]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# --- what the artifact says ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """The artifact's greedy answer to one prompt, and the file with its logits (T + 1, V) along it."""

    prompt_ids: Ids
    answer_ids: Ids
    logits: Path


@dataclass(frozen=True)
class Reference:
    """What an artifact says to some conversations, written aside so that its model can be let go of."""

    conversations: list[Conversation]
    said: list[Said]
    max_new_tokens: int
    stop_ids: frozenset[int]
    encoder: Encoder
    precision: str


def reference_of(adapter: Adapter, conversations: Sequence[Conversation], max_new_tokens: int, aside: Path) -> Reference:
    """Ask the artifact. Its system prompt is put where a conversation has none, as `Adapter.answer` does."""
    import numpy as np

    asked = [tuple(adapter.encoder.template.with_system(c)) for c in conversations]
    prompts = [adapter.prompt_ids(c) for c in asked]
    said = []
    for number, (prompt, answer) in enumerate(zip(prompts, adapter.greedy_ids(prompts, max_new_tokens), strict=True)):
        file = aside / f"{number}.npy"
        np.save(file, decoder_logits(adapter.decoder, prompt, answer))
        said.append(Said(prompt, answer, file))
    return Reference(asked, said, max_new_tokens, adapter.encoder.stop_ids, adapter.encoder, str(adapter.precision))


def decoder_logits(decoder: Any, prompt: Ids, answer: Ids) -> np.ndarray:
    """Logits (T + 1, V) of the artifact after a prompt and along an answer, virtual tokens of prompt learning left out."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([[*prompt, *answer]], device=decoder.device)
        found: np.ndarray = decoder.model(ids, use_cache=False).logits[0, -len(answer) - 1 :].float().cpu().numpy()
    return found


# --- the comparison ------------------------------------------------------------------------------------------------


def compare(reference: Reference, way: Way, done: Callable[[int], None] | None = None) -> Equivalence:
    """Ask an exported model what the artifact was asked, through its own tokenizer and template; `done` is told how many prompts were."""
    import numpy as np

    prompts = way.prompt_ids(reference.conversations)
    differences, kls, divergent, identical = [], [], [], 0
    for number, (said, prompt) in enumerate(zip(reference.said, prompts, strict=True)):
        ours = np.load(said.logits, mmap_mode="r")
        theirs = way.along(prompt, said.answer_ids)
        differences.append(logit_differences(ours, theirs))
        kls.append(kl_nats(ours, theirs))
        answer = way.greedy(prompt, reference.max_new_tokens, reference.stop_ids)
        if answer == said.answer_ids:
            identical += 1
        else:
            divergent.append(_divergence(number, said.answer_ids, answer, ours, reference.stop_ids))
        if done is not None:
            done(number + 1)
    return _summed(way.engine, reference, prompts, identical, divergent, differences, kls)


def _summed(
    engine: str, reference: Reference, prompts: list[Ids], identical: int, divergent: list[Divergent], differences: list[np.ndarray], kls: list[np.ndarray]
) -> Equivalence:  # fmt: skip
    import numpy as np

    apart, kl = np.concatenate(differences), np.concatenate(kls)
    return Equivalence(
        engine=engine, prompts=len(prompts), prompts_equal=sum(p == s.prompt_ids for p, s in zip(prompts, reference.said, strict=True)),
        answers_identical=identical, first_difference=min((d.position for d in divergent), default=None), positions=len(kl),
        mean_logit_difference=float(apart[:, 0].mean()), largest_logit_difference=float(apart[:, 1].max()),
        mean_kl=float(kl.mean()), largest_kl=float(kl.max()), divergent=divergent[:SHOWN],
    )  # fmt: skip


def logit_differences(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """(T, 2): the mean and the largest absolute difference of the logits at each position, infinite where a number is not finite."""
    import numpy as np

    width = min(ours.shape[1], theirs.shape[1])  # engines differ in how many unused rows they keep
    apart = np.abs(ours[:, :width].astype(np.float64) - theirs[:, :width])
    found: np.ndarray = np.nan_to_num(np.stack([apart.mean(axis=1), apart.max(axis=1)], axis=1), nan=np.inf, posinf=np.inf)
    return found


def kl_nats(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """KL(ours ‖ theirs) (T,) in nats over the vocabulary at each position, infinite where a number is not finite."""
    import numpy as np

    width = min(ours.shape[1], theirs.shape[1])
    with np.errstate(invalid="ignore"):  # an infinite logit gives no number here, and counts as infinitely far below
        a, b = _log_softmax(ours[:, :width]), _log_softmax(theirs[:, :width])
        kl = (np.exp(a) * (a - b)).sum(axis=1)
    found: np.ndarray = np.nan_to_num(np.maximum(kl, 0.0), nan=np.inf, posinf=np.inf)
    return found


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    import numpy as np

    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    found: np.ndarray = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return found


def _divergence(number: int, ours: Ids, theirs: Ids, logits: np.ndarray, stop_ids: Collection[int]) -> Divergent:
    """Where two answers part, and how far apart the artifact's own logits were there of what each said. An end counts as the likeliest stop token."""
    position = next(i for i, (a, b) in enumerate(itertools.zip_longest(ours, theirs)) if a != b)
    row = logits[position]
    stop = max(stop_ids, key=lambda token: row[token])
    said = [answer[position] if position < len(answer) else None for answer in (ours, theirs)]
    first, second = (row[stop if token is None else token] for token in said)
    return Divergent(number, position, said[0], said[1], float(first - second))


# --- the verdict ---------------------------------------------------------------------------------------------------


def refuse_beyond(found: Equivalence, tolerance: Tolerance, where: str) -> None:
    """Raises Refusal where an export asks other token ids, or is further from the artifact than its tolerance."""
    collector = Collector()
    if found.prompts_equal < found.prompts:
        collector.add(where, "prompts", f"{found.prompts_equal} of {found.prompts} with the artifact's token ids ({found.engine})", "all of them",
                      "the export's tokenizer or chat template is not the artifact's: do not serve it")  # fmt: skip
    for field, value, limit in (("mean KL", found.mean_kl, tolerance.mean_kl), ("largest KL", found.largest_kl, tolerance.largest_kl)):
        if not value <= limit:
            collector.add(where, field, f"{value:.3g} nats over {found.positions} positions ({found.engine})", f"at most {limit:g} nats",
                          "export with more precise --weights, or judge it yourself and give --tolerance")  # fmt: skip
    collector.raise_if_any()


def tolerance_of(words: str) -> Tolerance:
    """`MEAN` or `MEAN,LARGEST` in nats; without a largest it is 50 times the mean. Raises Refusal."""
    try:
        numbers = [float(word) for word in words.split(",")]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 2 or not all(0 <= n < float("inf") for n in numbers):
        refuse("command line", "--tolerance", words, "MEAN or MEAN,LARGEST: KL in nats, zero or more", "give for example 0.01 or 0.01,0.5")
    return Tolerance(numbers[0], numbers[1] if len(numbers) == 2 else 50 * numbers[0])
