"""Who is asked: the base in every way the recipe names, and the adapter; and what each said to the items of one suite.

A way of prompting is a system prompt, worked examples, or answers constrained to the labels. It refuses nothing: a way that the records
do not allow (worked examples without records that fit) is left out.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tuner.data.record import Message, Record
from tuner.evaluate.metrics import Answer
from tuner.evaluate.result import ADAPTER, Contestant, Tick
from tuner.evaluate.spec import EvaluateSpec
from tuner.evaluate.suites import Item, Suite, few_shot_examples, with_examples

ZERO_SHOT = "base zero_shot"
LOSS = frozenset({"loss"})
LONGEST_TRIED = 8  # items whose prompts are counted: the longest by characters are not always the longest in tokens


@dataclass(frozen=True)
class Contender:
    """One way of answering. `examples` go before the question; `system` replaces the recipe's; with `labels` the likeliest is the answer."""

    name: str
    examples: tuple[Message, ...] = ()
    system: str | None = None
    labels: tuple[str, ...] = ()
    is_base: bool = True

    def question(self, item: Item) -> list[Message]:
        """The item's messages as this contender is asked them."""
        messages = list(item.messages)
        if self.system is not None:
            messages = [Message("system", self.system), *(m for m in messages if m.role != "system")]
        return with_examples(messages, self.examples)


@dataclass
class Said:
    """What one contender said to every item of a suite; `has` names what its answers hold: text, loss, labels."""

    contender: Contender
    answers: list[Answer]
    has: frozenset[str]
    seconds: float = field(default=0.0, compare=False)


def contenders(train: Sequence[Record], spec: EvaluateSpec, task: str, seed: int) -> list[Contender]:
    """The base's ways, then the adapter. Decoding constrained to the labels is tried for each way of a label task."""
    labels = label_names(train, task)
    ways: list[Contender] = []
    for way in dict.fromkeys(spec.base_ways):
        examples = tuple(few_shot_examples(train, spec.few_shot, task == "label", seed)) if way == "few_shot" else ()
        if way == "zero_shot" or examples:
            ways.append(Contender(f"base {way}", examples))
    ways += [Contender(f"base prompt {name}", system=system) for name, system in spec.prompts.items()]
    found: list[Contender] = []
    for one in ways:
        found += [one, Contender(f"{one.name}, labels only", one.examples, one.system, labels)] if labels else [one]
    return [*found, Contender(ADAPTER, labels=labels if spec.label_answers == "likeliest" else (), is_base=False)]


def fitted(model: Contestant, contender: Contender, items: Sequence[Item], room: int) -> Contender | None:
    """The contender with as many of its worked examples as leave `room` tokens beside the longest of these items; None where not one does."""
    longest = sorted(items, key=lambda i: -sum(len(m.text) for m in i.messages))[:LONGEST_TRIED]
    while contender.examples:
        if all(model.fits([contender.question(item) for item in longest], room)):
            return contender
        contender = replace(contender, examples=contender.examples[:-2])
        if not contender.examples:
            return None
    return contender


def label_names(train: Sequence[Record], task: str) -> tuple[str, ...]:
    """The labels of a label task; none for other tasks."""
    return tuple(sorted({r.completion for r in train})) if task == "label" else ()


def ask(
    model: Contestant, contender: Contender, suite: Suite, spec: EvaluateSpec, tick: Tick, *,
    renamed: Mapping[str, str] | None = None, also_labels: tuple[str, ...] = (), reading: frozenset[str] = LOSS,
) -> Said:  # fmt: skip
    """Put every item of a suite to one contender.

    `renamed` maps labels to the names they have in this suite. `also_labels` asks for the likelihood of each label beside a free answer;
    `reading` says whether the references are read: "loss", also "context_loss", or nothing.
    """
    began = time.monotonic()
    if renamed:
        contender = replace(contender, examples=tuple(_renamed(m, renamed) for m in contender.examples))
    labels = tuple((renamed or {}).get(label, label) for label in contender.labels or also_labels)
    questions = [contender.question(item) for item in suite.items]
    has = frozenset({"text"} | ({"labels"} if labels else set()) | (set() if contender.labels else reading))
    with model.as_base() if contender.is_base else contextlib.nullcontext():
        answers = _answers(model, contender, suite, questions, labels, has, spec, tick)
    return Said(contender, answers, has, time.monotonic() - began)


def _answers(
    model: Contestant, contender: Contender, suite: Suite, questions: list[list[Message]], labels: tuple[str, ...], wanted: frozenset[str], spec: EvaluateSpec,
    tick: Tick,
) -> list[Answer]:  # fmt: skip
    """Everything `wanted` of every item: text, the likelihood of labels, the loss of the references with and without their context."""
    likely = _likely(model, questions, labels)
    if contender.labels:
        texts = [max(scores, key=scores.__getitem__) for scores in likely]
        tick(len(questions))
    else:
        texts = model.answer_many(questions, spec.max_new_tokens, tick)
    read = _reading(model, questions, suite.items) if "loss" in wanted else [(0.0, 0)] * len(questions)
    bare = _reading(model, [_without_context(q, i) for q, i in zip(questions, suite.items, strict=True)], suite.items) if "context_loss" in wanted else None
    return [
        Answer(item.references, text, nats, tokens, _size(item) if tokens else 0, scores or None, item.asked, item.context,
               bare[at][0] if bare is not None and item.context else None)
        for at, (item, text, scores, (nats, tokens)) in enumerate(zip(suite.items, texts, likely, read, strict=True))
    ]  # fmt: skip


def _reading(model: Contestant, questions: Sequence[list[Message]], items: Sequence[Item]) -> list[tuple[float, int]]:
    """(nats, tokens) of each item's references, summed over them."""
    asked = [(q, r) for q, item in zip(questions, items, strict=True) for r in item.references]
    each = iter(model.losses([q for q, _ in asked], [r for _, r in asked]))
    found = [[next(each) for _ in item.references] for item in items]
    return [(sum(nats for nats, _ in of), sum(tokens for _, tokens in of)) for of in found]


def _size(item: Item) -> int:
    """UTF-8 bytes of the references."""
    return sum(len(r.encode("utf-8", "surrogatepass")) for r in item.references)


def _without_context(question: list[Message], item: Item) -> list[Message]:
    """The question with its context left out of the last turn."""
    if not item.context or item.asked is None:
        return question
    last = question[-1]
    return [*question[:-1], last.saying(item.asked, last.tool_calls, last.tools)]


def _renamed(message: Message, names: Mapping[str, str]) -> Message:
    """A worked example's answer by its new name."""
    return message.saying(names.get(message.content, message.content), message.tool_calls, message.tools) if message.role == "assistant" else message


def _likely(model: Contestant, questions: list[list[Message]], labels: tuple[str, ...]) -> list[dict[str, float]]:
    """Of each question the log-likelihood of every label as the whole answer; nothing where no labels are asked for."""
    if not labels or not questions:
        return [{} for _ in questions]
    return [dict(zip(labels, map(float, row), strict=True)) for row in model.label_scores(questions, labels)]
