"""A suite: a named, hashed set of items, each a question with all its references.

It refuses nothing itself; records that share a prompt become one item with several references.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuner.data.record import Message, Record
from tuner.data.splits import OOD, Splits
from tuner.fingerprint import digest_json


@dataclass(frozen=True, slots=True)
class Item:
    """One question. `where` is the place of the first record that asks it."""

    messages: tuple[Message, ...]
    references: tuple[str, ...]
    where: str


@dataclass(frozen=True, slots=True)
class Suite:
    """`role` is held_out or ood; `digest` identifies questions and references."""

    name: str
    role: str
    items: tuple[Item, ...]
    digest: str


def build_suites(splits: Splits, take: int | None, seed: int) -> list[Suite]:
    """A suite of every split that is read after training, in the recipe's order."""
    return [_suite(name, splits[name], take, seed) for name in splits.suites if splits[name]]


def _suite(name: str, records: Sequence[Record], take: int | None, seed: int) -> Suite:
    groups: dict[tuple[Message, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(record.prompt, []).append(record)
    items = [Item(prompt, tuple(dict.fromkeys(r.completion for r in group)), group[0].where) for prompt, group in groups.items()]
    if take is not None and take < len(items):
        ranked = sorted(items, key=lambda i: digest_json([seed, [m.as_dict() for m in i.messages]]))
        chosen = {id(i) for i in ranked[:take]}
        items = [i for i in items if id(i) in chosen]
    digest = digest_json([[[m.as_dict() for m in i.messages], list(i.references)] for i in items])
    return Suite(name.removeprefix(OOD), "ood" if name.startswith(OOD) else "held_out", tuple(items), digest)


def few_shot_examples(train: Sequence[Record], count: int, by_completion: bool, seed: int) -> list[Message]:
    """`count` records of train as user and assistant turns, chosen by seed and content; for labels, one of each in turn."""
    ranked = sorted((r for r in train if len(r.messages) - (r.messages[0].role == "system") == 2), key=lambda r: digest_json([seed, r.hash]))
    if by_completion:
        seen: dict[str, int] = {}
        rounds = []
        for record in ranked:
            rounds.append(seen.get(record.completion, 0))
            seen[record.completion] = rounds[-1] + 1
        ranked = [r for _, _, r in sorted(zip(rounds, range(len(ranked)), ranked, strict=True))]
    turns: list[Message] = []
    for record in ranked[:count]:
        turns += [m.saying(m.content, m.tool_calls, None) for m in record.messages if m.role != "system"]
    return turns


def with_examples(messages: Sequence[Message], examples: Sequence[Message]) -> list[Message]:
    """The question with worked examples put after its system turn, if it has one."""
    head = 1 if messages and messages[0].role == "system" else 0
    return [*messages[:head], *examples, *messages[head:]]
