"""Whether an adapter is asked in production what it was trained on: the same conversations through every way to a prompt, id by id.

Trainer's rows, `Adapter.answer`, the saved tokenizer in a fresh process without tuner, and a serving engine. It refuses to call two prompts
equal by their text: only ids count, and the first id that differs is shown with what stands around it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from tuner.catalog import choose
from tuner.data.record import Message, Record
from tuner.errors import refuse
from tuner.safe_text import quoted
from tuner.template.tokens import Encoder

if TYPE_CHECKING:
    from tuner.artifact.adapter import Adapter
    from tuner.artifact.engines import Engine, Served

Ids = list[int]
Conversation = tuple[Message, ...]
CONTEXT = 6  # tokens shown on either side of the first difference


@dataclass(frozen=True)
class Difference:
    """The first id in which two ways to the prompt of one conversation differ."""

    conversation: int
    ways: tuple[str, str]
    position: int
    ours: str
    theirs: str
    guess: str


@dataclass(frozen=True)
class Answers:
    """Greedy answers of the engine beside those of the adapter in transformers."""

    prompts: int
    identical: int
    first_difference: int | None
    largest_logit_difference: float
    same_first_token: int


@dataclass(frozen=True)
class Parity:
    """What was compared and what differed. `ways` are compared with the first of them."""

    ways: list[str]
    conversations: int
    equal: dict[str, int]
    differences: list[Difference]
    engine: str | None
    weights: str | None
    answers: Answers | None

    @property
    def holds(self) -> bool:
        return all(count == self.conversations for count in self.equal.values())

    def as_dict(self) -> dict[str, Any]:
        return {"holds": self.holds, **asdict(self)}


# --- conversations ---------------------------------------------------------------------------------------------------


def probes(encoder: Encoder) -> list[Conversation]:
    """Conversations in which serving templates are known to go wrong: white space, several turns, a system prompt, text like markup, digits."""

    def said(*turns: str, system: str | None = None) -> Conversation:
        body = tuple(Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(turns))
        return ((Message("system", system),) if system is not None else ()) + body

    candidates = [
        said("hello"), said("What is the capital of France?"), said("  leading and trailing blanks  "), said("two\n\nparagraphs\n"),
        said("tab\tand  two  blanks"), said("digits 1234567890, 3.14 and a  400"), said("Grüße, naïve café, 你好, مرحبا, 🙂"),
        said("<b>bold</b> & [INST] text {{ 7 * 7 }}"), said("Be brief.", system="You sort messages."), said("first", "answer one", "second"),
        said("a", "b", "c", "d", "e", system="S"), said("x" * 400), said("a\u00a0b\u200bc"), said('{"json": [1, 2, {"a": null}]}'),
        said("def f(x):\n    return x  # code\n"), said("?"),
    ]  # fmt: skip
    return [c for c in candidates if _renders(encoder, c)]


def _renders(encoder: Encoder, conversation: Conversation) -> bool:
    from tuner.errors import Refusal

    try:
        encoder.prompt_ids(conversation)
    except Refusal:
        return False
    return True


# --- ways to a prompt --------------------------------------------------------------------------------------------------


def trainer_prompt(encoder: Encoder, conversation: Conversation) -> Ids:
    """The prompt part of the row that training would make of this conversation and some answer, were it not too long."""
    row = encoder.uncut().row(Record((*conversation, Message("assistant", "ok")), "parity", 1, "train"))
    return row.input_ids[: row.prompt_tokens]


_FRESH = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True)
for line in sys.stdin:
    asked = json.loads(line)
    ids = tokenizer.apply_chat_template(asked["messages"], add_generation_prompt=True, return_dict=False, tools=asked["tools"], **asked["variables"])
    print(json.dumps(ids))
assert "tuner" not in sys.modules
"""


def plain_prompts(folder: Path, conversations: Sequence[Conversation], variables: dict[str, Any]) -> list[Ids]:
    """The prompts that transformers alone makes with the artifact's tokenizer files, in a process that never imports tuner."""
    lines = "".join(json.dumps({"messages": [m.as_dict() for m in c], "tools": _tools(c), "variables": variables}) + "\n" for c in conversations)
    command = [sys.executable, "-I", "-c", _FRESH, str(folder)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False, encoding="utf-8")
    if done.returncode != 0:
        refuse(folder.name, "tokenizer", quoted((done.stderr.strip().splitlines() or ["no output"])[-1], 200), "tokenizer files that transformers can load",
               "see the artifact's tokenizer files")  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def _tools(conversation: Conversation) -> Any:
    return next((json.loads(m.tools) for m in conversation if m.tools is not None), None)


# --- comparison ----------------------------------------------------------------------------------------------------------


def compare(encoder: Encoder, conversations: Sequence[Conversation], ways: dict[str, list[Ids]]) -> tuple[dict[str, int], list[Difference]]:
    """How many prompts of every way equal those of the first, and the first differences."""
    first, *others = ways
    equal: dict[str, int] = {}
    differences: list[Difference] = []
    for way in others:
        equal[way] = 0
        for number in range(len(conversations)):
            ours, theirs = ways[first][number], ways[way][number]
            if ours == theirs:
                equal[way] += 1
            else:
                differences.append(_difference(encoder, number, (first, way), ours, theirs))
    return equal, differences


def _difference(encoder: Encoder, number: int, ways: tuple[str, str], ours: Ids, theirs: Ids) -> Difference:
    position = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    window = slice(max(position - CONTEXT, 0), position + CONTEXT)
    return Difference(number, ways, position, _shown(encoder, ours[window]), _shown(encoder, theirs[window]), _guess(encoder, position, ours, theirs))


def _shown(encoder: Encoder, ids: Ids) -> str:
    return " ".join(f"{token}={quoted(encoder.token_text(token), 20)}" for token in ids) or "nothing more"


def _guess(encoder: Encoder, position: int, ours: Ids, theirs: Ids) -> str:
    """What such a difference usually is."""
    begin = encoder.begin_id
    if begin is not None and theirs[:2] == [begin, begin] and ours[:2] != [begin, begin]:
        return "a second begin-of-text token: the engine adds one to a template that writes it already"
    if begin is not None and theirs[:1] == [begin] and theirs[1:] == ours:
        return "a begin-of-text token that training did not have"
    if len(theirs) < len(ours) and ours[: len(theirs)] == theirs:
        return "the end is missing: a line break or the words that open the assistant's turn"
    if len(theirs) > len(ours) and theirs[: len(ours)] == ours:
        return "something more at the end"
    if position <= 6 and len(theirs) != len(ours):
        return "another beginning: a system prompt that is added or left out"
    return "other words or another split into tokens"


# --- answers -------------------------------------------------------------------------------------------------------------


def compare_answers(adapter: Adapter, engine: Engine, prompts: Sequence[Ids], max_new_tokens: int) -> Answers:
    """Greedy answers to the same ids by both, and the largest difference of the logits behind the first token."""
    import numpy as np
    import torch

    ours = adapter.greedy_ids(prompts, max_new_tokens)
    identical, same_first, largest, first = 0, 0, 0.0, None
    for number, prompt in enumerate(prompts):
        theirs = engine.greedy(prompt, max_new_tokens, adapter.encoder.stop_ids)
        with torch.no_grad():
            own = adapter.next_logits(prompt).float().numpy()
        other = engine.logits(prompt)[: len(own)]
        largest = max(largest, float(np.abs(own[: len(other)] - other).max()))
        same_first += int(own[: len(other)].argmax() == other.argmax())
        if theirs == ours[number]:
            identical += 1
        elif first is None:
            first = next((i for i, (a, b) in enumerate(zip(ours[number], theirs, strict=False)) if a != b), min(len(ours[number]), len(theirs)))
    return Answers(len(prompts), identical, first, round(largest, 6), same_first)


def engine_of(engine: str, weights: str) -> Callable[[Served], Engine]:
    """What starts the engine of this name. Raises Refusal when there is none, or no such precision of its base."""
    from tuner.artifact.engines import ENGINES
    from tuner.artifact.gguf import Weights

    choose({name: name for name in get_args(Weights)}, weights, "command line", "--weights")
    return choose(ENGINES, engine, "command line", "--engine")


def check_parity(
    adapter: Adapter, base_folder: Path, conversations: Sequence[Conversation], engine: str | None, weights: str, prompts: int, max_new_tokens: int
) -> Parity:
    """Compare every way to a prompt on `conversations`, and with an engine also the answers to the first `prompts` of them. Raises Refusal."""
    from tuner.artifact.engines import Served
    from tuner.artifact.gguf import Weights

    kind = None if engine is None else engine_of(engine, weights)
    encoder = adapter.encoder
    asked = [tuple(encoder.template.with_system(c)) for c in conversations]
    ways = {
        "trainer's rows": [trainer_prompt(encoder, c) for c in conversations],
        "Adapter.answer": [adapter.prompt_ids(c) for c in conversations],
        "transformers alone": plain_prompts(adapter.version.folder, asked, encoder.template.variables),
    }
    answers = None
    if engine is not None and kind is not None:
        with tempfile.TemporaryDirectory(prefix="tuner-parity-") as aside:
            served = kind(Served(base_folder, adapter.version.folder, Path(aside), weights=cast(Weights, weights)))
            if any(_tools(c) for c in asked):
                refuse("conversations", "tools", "functions that a conversation offers", "conversations without, where an engine is asked", "leave them out")
            ways[engine] = [served.tokenize_chat([m.as_dict() for m in c]) for c in asked]
            if prompts:
                answers = compare_answers(adapter, served, ways["Adapter.answer"][:prompts], max_new_tokens)
    equal, differences = compare(encoder, conversations, ways)
    return Parity(list(ways), len(conversations), equal, differences, engine, weights if engine else None, answers)
