"""Checks for personal data and secrets in the messages of a record.

They refuse to repeat what they find: a finding carries masks and counts, never a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from tuner.data.findings import Check, Finding, Scene, finding
from tuner.data.personal import KINDS, Group, find, masked
from tuner.data.record import Message, Record

SHOWN = 3  # masks a finding lists; the rest is counted


@lru_cache(maxsize=2)  # both checks see a record one after the other: the second takes what the first has found
def _masks(messages: tuple[Message, ...]) -> tuple[dict[str, list[str]], ...]:
    """For each message: kind -> the masks of its hits."""
    return tuple(_by_kind("\n".join(part for part in (message.text, message.name, message.tools) if part)) for message in messages)


def _by_kind(text: str) -> dict[str, list[str]]:
    masks: dict[str, list[str]] = {}
    for hit in find(text):
        masks.setdefault(hit.kind, []).append(masked(text, hit))
    return masks


def _counted(masks: list[str]) -> str:
    shown = ", ".join(masks[:SHOWN])
    return shown if len(masks) == 1 else f"{len(masks)} times: {shown}{', …' if len(masks) > SHOWN else ''}"


def _of_group(group: Group, record: Record) -> Iterator[Finding]:
    for index, masks in enumerate(_masks(record.messages)):
        for kind, shown in masks.items():
            if KINDS[kind].group == group:
                yield finding(record, kind.upper(), f"messages[{index}]", _counted(shown), f"text without {KINDS[kind].what}",
                              f"set data.redact: [{kind}], or delete line {record.line}")  # fmt: skip


def personal_data(record: Record, scene: Scene) -> Iterator[Finding]:
    """Addresses and numbers that belong to a person."""
    return _of_group("personal", record)


def secrets(record: Record, scene: Scene) -> Iterator[Finding]:
    """Keys, tokens and passwords: whoever has the adapter may get the model to say them."""
    return _of_group("secret", record)


PERSONAL: dict[str, Check] = {
    "personal_data": Check("e-mail, phone, card, bank, identity numbers and public IP addresses in a message", "warn", each=personal_data),
    "secrets": Check("keys, tokens, passwords and URLs with a password in a message", "refuse", each=secrets),
}
