"""Changes of a question that should not change its answer, each with three severities: TRANSFORMS at the foot.

A change is a pure function of the seed, the question and the family; a heavier one uses the same draws, so it holds the lighter one. Only user turns
are edited (the system turn by system_prompt and unseen_labels), and what `perturb_spans` protects survives or the change is not made.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tuner.data.record import Message
from tuner.evaluate.perturb_context import distractor, in_prompt, label_map, relabelled, reworded
from tuner.evaluate.perturb_forms import field_order, find_form, surface
from tuner.evaluate.perturb_phrases import ENGLISH_SHARE, english_share, paraphrase, verbose
from tuner.evaluate.perturb_spans import copied_values, occurrences, shield, special_tokens
from tuner.evaluate.perturb_words import accents, casing, casual, no_punctuation, typos

SEVERITIES = (1, 2, 3)  # mild, plain, heavy
Edit = Callable[[str, random.Random, int], str | None]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with what its answer depends on. `labels` are all labels of a label task; `system` is the recipe's prompt for questions without one."""

    messages: tuple[Message, ...]
    references: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    system: str | None = None
    seed: int = 0

    def system_text(self) -> str | None:
        first = self.messages[0] if self.messages else None
        return first.content if first is not None and first.role == "system" else self.system

    def with_system(self, content: str) -> tuple[Message, ...]:
        """The question under another instruction."""
        first = self.messages[0]
        if first.role == "system":
            return (first.saying(content, first.tool_calls, first.tools), *self.messages[1:])
        return (Message("system", content), *self.messages)


Applied = Callable[[Asked, random.Random, int], tuple[Message, ...] | None]


def _always(_asked: Sequence[Asked]) -> str | None:
    return None


@dataclass(frozen=True)
class Transform:
    """One row of the table.

    `apply` gives the changed question, or None where it does not apply. `keeps_answer` is False when the references change with the question (by
    `label_map`). `applies_to` says in words why a whole set of questions is not for it, or None.
    """

    what: str
    apply: Applied
    keeps_answer: bool = True
    applies_to: Callable[[Sequence[Asked]], str | None] = field(default=_always)


def perturbed(asked: Asked, family: str, severity: int) -> tuple[Message, ...] | None:
    """The question changed by one family; None where the family does not apply to it, would change nothing, or would break what it must keep."""
    if not any(m.role == "user" and m.content.strip() for m in asked.messages):
        return None
    changed = TRANSFORMS[family].apply(asked, _stream(asked, family), severity)
    if changed is None or [m.content for m in changed] == [m.content for m in asked.messages]:
        return None
    return changed if _sound(asked.messages, changed) else None


def _stream(asked: Asked, family: str) -> random.Random:
    """Random draws from seed, question and family; the severity is left out, so that severities nest."""
    digest = hashlib.blake2b(f"{asked.seed}\x1f{family}".encode(), digest_size=8)
    for message in asked.messages:
        digest.update(f"\x1e{message.role}\x1f{message.content}".encode("utf-8", "surrogatepass"))
    return random.Random(int.from_bytes(digest.digest(), "big"))


def _sound(before: Sequence[Message], after: Sequence[Message]) -> bool:
    """No turn became empty, and no template's token came or went."""
    if any(not m.content.strip() for m in after if m.role == "user"):
        return False
    old = sorted(t for m in before if m.role == "user" for t in special_tokens(m.content))
    return old == sorted(t for m in after if m.role == "user" for t in special_tokens(m.content))


# --- which turns an edit sees --------------------------------------------------------------------------------------


def _prose(edit: Edit, *, last: bool = False, structured: bool = True, whole: bool = False) -> Applied:
    """The edit on every user turn, or the last one, with protected spans lifted out. `structured` False leaves fields and tables alone; `whole` edits
    only add text around the turn, so that nothing has to be lifted out.
    """

    def apply(asked: Asked, rng: random.Random, severity: int) -> tuple[Message, ...] | None:
        users = [i for i, m in enumerate(asked.messages) if m.role == "user" and m.content.strip()]
        turns = list(asked.messages)
        for index in users[-1:] if last else users:
            turn = turns[index]
            if not structured and find_form(turn.content) is not None:
                continue
            new = edit(turn.content, rng, severity) if whole else _shielded(edit, turn.content, asked, rng, severity)
            if new is None:
                return None
            turns[index] = turn.saying(new, turn.tool_calls, turn.tools)
        return tuple(turns)

    return apply


def _shielded(edit: Edit, text: str, asked: Asked, rng: random.Random, severity: int) -> str | None:
    shielded = shield(text, copied_values(text, asked.references, asked.labels))
    if shielded is None:
        return None
    edited = edit(shielded.text, rng, severity)
    return None if edited is None else shielded.restored(edited)


def _form(edit: Edit) -> Applied:
    """The edit on the last user turn as it stands. What a reference copies from it must still be there, and in prose every protected span, word for word
    (a JSON envelope escapes quotes: code that holds them is not put into one).
    """

    def apply(asked: Asked, rng: random.Random, severity: int) -> tuple[Message, ...] | None:
        index = max(i for i, m in enumerate(asked.messages) if m.role == "user" and m.content.strip())
        turn = asked.messages[index]
        new = edit(turn.content, rng, severity)
        if new is None or any(not occurrences(new, v) for v in copied_values(turn.content, asked.references, asked.labels)):
            return None
        if find_form(turn.content) is None and any(span not in new for span in _spans(turn.content)):
            return None
        return (*asked.messages[:index], turn.saying(new, turn.tool_calls, turn.tools), *asked.messages[index + 1 :])

    return apply


def _spans(text: str) -> tuple[str, ...]:
    shielded = shield(text)
    return () if shielded is None else shielded.spans


def _instruction(asked: Asked, rng: random.Random, severity: int) -> tuple[Message, ...] | None:
    """system_prompt: labels, copied values and all protected spans of the instruction stay word for word."""
    system = asked.system_text()
    if system is None or not system.strip():
        return None
    shielded = shield(system, (*asked.labels, *(r for r in asked.references if len(r) <= len(system))))
    if shielded is None:
        return None
    edited = shielded.restored(reworded(shielded.text, rng, severity))
    return None if edited is None else asked.with_system(edited)


def _renamed(asked: Asked, _rng: random.Random, severity: int) -> tuple[Message, ...] | None:
    """unseen_labels: the instruction under new names; None for a question that says a label's name itself."""
    system = asked.system_text()
    if system is None or not in_prompt(system, asked.labels):
        return None
    if any(copied_values(m.content, asked.references, asked.labels) for m in asked.messages if m.role != "system"):
        return None
    return asked.with_system(relabelled(system, label_map(asked.labels, severity, asked.seed), severity))


# --- which sets of questions a family is for ------------------------------------------------------------------------


def _english_only(asked: Sequence[Asked]) -> str | None:
    texts = [m.content for a in asked for m in a.messages if m.role == "user" and find_form(m.content) is None]
    if not texts:
        return "every question is fields or a table, not sentences"
    share = english_share(texts)
    return (
        None if share >= ENGLISH_SHARE else f"its words are English; {share:.0%} of the questions' words are English function words, {ENGLISH_SHARE:.0%} needed"
    )


def _with_instruction(asked: Sequence[Asked]) -> str | None:
    return None if any(a.system_text() for a in asked) else "the questions have no system prompt"


def _labels_in_instruction(asked: Sequence[Asked]) -> str | None:
    if not any(a.labels for a in asked):
        return "the task has no labels"
    shown = any((system := a.system_text()) is not None and in_prompt(system, a.labels) for a in asked)
    return None if shown else "the labels do not all stand in the system prompt"


def _structured(asked: Sequence[Asked]) -> str | None:
    found = any(find_form(m.content) is not None for a in asked for m in a.messages if m.role == "user")
    return None if found else "no question is JSON, a list of fields or a table"


TRANSFORMS: dict[str, Transform] = {
    "typos": Transform("slips on the keyboard in a tenth, a quarter, half of the longer words", _prose(typos)),
    "casing": Transform("no capitals; Title Case; ALL CAPITALS", _prose(casing)),
    "no_punctuation": Transform("no final sign; no signs; no signs, dashes and line breaks", _prose(no_punctuation, structured=False)),
    "casual": Transform("lower case and loose contractions; u, pls and fillers; clipped words", _prose(casual, structured=False), applies_to=_english_only),
    "verbose": Transform("one, three, seven sentences beside the point", _prose(verbose, last=True), applies_to=_english_only),
    "paraphrase": Transform("other frames; synonyms too; order of clauses and a formal opening too", _prose(paraphrase, last=True, structured=False),
                            applies_to=_english_only),
    "field_order": Transform("fields in another order: two swapped, halves swapped, reversed", _form(field_order), applies_to=_structured),
    "surface": Transform("fields as lines, JSON, prose (JSON as lines, prose, a table); prose in quotes, forwarded, in a JSON field", _form(surface)),
    "distractor": Transform("one, three, seven unrelated notes of 45 words before or after", _prose(distractor, last=True, whole=True)),
    "accents": Transform("another language's keyboard: diacritics, blanks before signs, lost articles", _prose(accents, structured=False)),
    "system_prompt": Transform("the instruction under a heading; reworded with a role; as sections and points", _instruction, applies_to=_with_instruction),
    "unseen_labels": Transform("labels under other names: respelled, options, meaningless words", _renamed, keeps_answer=False,
                               applies_to=_labels_in_instruction),
}  # fmt: skip
