"""A suite: a named, hashed set of items, each a question with all its references.

It refuses nothing itself; records that share a prompt become one item with several references.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from tuner.data.record import Message, Record
from tuner.data.splits import OOD, Splits
from tuner.evaluate.metric_context import context_of
from tuner.evaluate.result import Role
from tuner.evaluate.spec import MetricOptions
from tuner.fingerprint import digest_json

LONGEST_TRAIT = 60  # characters; a longer value is a text, not a group


@dataclass(frozen=True, slots=True)
class Item:
    """One question. `where` is the place of the first record that asks it, and `traits` are that record's columns, to slice by.

    `context` is what was retrieved for it, where the recipe says how to find that, and `asked` its question without the context. Items of one `group`
    have one source: what one of them shows, the others partly show again.
    """

    messages: tuple[Message, ...]
    references: tuple[str, ...]
    where: str
    traits: Mapping[str, str] = field(default_factory=dict)
    context: str | None = None
    asked: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Suite:
    """`digest` identifies questions and references; `facts` is what else is known of it, as JSON."""

    name: str
    role: Role
    items: tuple[Item, ...]
    digest: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def build_suites(splits: Splits, take: int | None, seed: int, options: MetricOptions | None = None, group_by: str | None = None) -> list[Suite]:
    """A suite of every split that is read after training, in the recipe's order.

    `options` say where an item's context stands, `group_by` names the column that says which items have one source.
    """
    return [_suite(name, splits[name], take, seed, options or MetricOptions(), group_by) for name in splits.suites if splits[name]]


def _suite(name: str, records: Sequence[Record], take: int | None, seed: int, options: MetricOptions, group_by: str | None) -> Suite:
    groups: dict[tuple[Message, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(record.prompt, []).append(record)
    items = [_item(group, options, group_by) for group in groups.values()]
    if take is not None and take < len(items):
        ranked = sorted(items, key=lambda i: digest_json([seed, [m.as_dict() for m in i.messages]]))
        chosen = {id(i) for i in ranked[:take]}
        items = [i for i in items if id(i) in chosen]
    return suite_of(name.removeprefix(OOD), "ood" if name.startswith(OOD) else "held_out", items)


def _item(group: Sequence[Record], options: MetricOptions, group_by: str | None) -> Item:
    """Records that share a prompt, as one question with all their completions as references."""
    first = group[0]
    source = None if group_by is None or first.extra.get(group_by) is None else str(first.extra[group_by])
    context, asked = context_of(first.question, first.extra, options) or (None, first.question)
    return Item(first.prompt, tuple(dict.fromkeys(r.completion for r in group)), first.where, traits(first), context, asked, source)


def suite_of(name: str, role: Role, items: Sequence[Item], **facts: Any) -> Suite:
    """A suite of these items, with the digest of what they ask and accept."""
    digest = digest_json([[[m.as_dict() for m in i.messages], list(i.references)] for i in items])
    return Suite(name, role, tuple(items), digest, facts)


def traits(record: Record) -> dict[str, str]:
    """The record's file and its further columns that hold one short value: what a table of slices can be made of."""
    own = {"file": PurePath(record.file).name}
    return own | {name: str(value) for name, value in record.extra.items() if isinstance(value, (str, int, float)) and len(str(value)) <= LONGEST_TRAIT}


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
