"""Messages to text with a chat template, in jinja2's sandbox, exactly as transformers renders it.

It refuses templates that fail or do not end, and never lets text of a record act as a template or as a special token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

from tuner.data.record import Message
from tuner.errors import Refusal, refuse
from tuner.fingerprint import digest_json, digest_text
from tuner.safe_text import quoted
from tuner.template.formats import SHIPPED_SOURCES, TOKENIZER, Format, read_format, stop_of
from tuner.template.sandbox import FAULTS, Sandbox, trial_render
from tuner.template.spec import TemplateSpec

# Templates that are known to end and need no trial: the quickstart's base. Shipped formats are known by their text.
_KNOWN = frozenset({"sha256:872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"})
_SYSTEM, _QUESTION = "\U0010fff1", "\U0010fff2"  # private characters that stand for a system prompt and a question


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with everything its rendering depends on: special tokens, the recipe's system prompt, extra variables."""

    source: str
    special_tokens: dict[str, str]
    system: str | None = None
    variables: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Identity of the rendering: template text, special tokens, system prompt and variables."""
        return digest_json([self.source, self.special_tokens, self.system, self.variables])

    @property
    def stop(self) -> str:
        """The text its header names as the end of an answer, besides the base's own; empty where it names none."""
        return stop_of(self.source)

    @cached_property
    def own_system(self) -> str | None:
        """The system prompt the template writes by itself where a chat has none; None where it writes none.

        Found by rendering with and without one: what stands in its place. Shown wherever a recipe sets none of its own.
        """
        try:
            given = self.render([Message("system", _SYSTEM), Message("user", _QUESTION)], generation_prompt=True)
            alone = self.render([Message("user", _QUESTION)], generation_prompt=True)
        except Refusal:
            return None
        before, _, between = given.partition(_QUESTION)[0].partition(_SYSTEM)
        own, asked, _ = alone.partition(_QUESTION)
        fits = asked and len(own) > len(before + between) and own.startswith(before) and own.endswith(between)
        return own[len(before) : len(own) - len(between)] if fits else None

    @cached_property
    def multi_turn(self) -> bool:
        """Whether it renders a question after an answer, as chats of several turns and few-shot examples need. Found by rendering one."""
        try:
            asked = self.render([Message("user", "a"), Message("assistant", "b"), Message("user", _QUESTION)], generation_prompt=True)
        except Refusal:
            return False
        return _QUESTION in asked

    @cached_property
    def _sandbox(self) -> Sandbox:
        return Sandbox()

    @cached_property
    def _compiled(self) -> jinja2.Template:
        try:
            return self._sandbox.compiled(self.source)
        except FAULTS as error:
            refuse("chat template", "template.format", quoted(error, 160), "a chat template that compiles", "mend the base's chat template")

    def with_system(self, messages: Sequence[Message]) -> list[Message]:
        """The messages, with the recipe's system prompt put first where they have none of their own."""
        if self.system is None or (messages and messages[0].role == "system"):
            return list(messages)
        return [Message("system", self.system), *messages]

    def render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        """The text the model sees. `messages` must already carry their system prompt (see `with_system`)."""
        template = self._compiled
        given = {
            "messages": [m.as_dict() for m in messages],
            "tools": next((json.loads(m.tools) for m in messages if m.tools is not None), None),
            "documents": None,
            "add_generation_prompt": generation_prompt,
            **self.special_tokens,
            **self.variables,
        }
        try:
            return self._sandbox.rendered(template, given)
        except FAULTS as error:
            roles = ", ".join(m.role for m in messages)
            refuse("chat template", "messages", f"{quoted(error, 120)} for turns {roles}", "turns this template can render",
                   "leave out what it cannot, such as a system turn, or use another template.format or base")  # fmt: skip


def read_template(folder: Path, spec: TemplateSpec, tokenizer: Tokenizer | None = None, recipe_folder: Path = Path()) -> ChatTemplate:
    """The chat template the recipe names: the base's own, from chat_template.jinja or tokenizer_config.json, or a format.

    A format needs the base's `tokenizer`, whose vocabulary is checked for the format's control texts. Raises Refusal, also for a template
    that does not end: one that is new is tried first in a process of its own.
    """
    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        refuse(path, "", f"unreadable: {quoted(error, 80)}", "the model's own tokenizer_config.json", "copy the model's tokenizer files again")
    special_tokens = _special_tokens(config)
    if spec.format == TOKENIZER:
        source = _template_source(folder, config)
    else:
        source = _format_source(read_format(spec.format, recipe_folder), folder, special_tokens, tokenizer)
    template = ChatTemplate(source, special_tokens, spec.system, dict(spec.chat_template_kwargs))
    _refuse_endless(template, spec.format)
    return template


def _format_source(chosen: Format, folder: Path, special_tokens: dict[str, str], tokenizer: Tokenizer | None) -> str:
    tokenizer = tokenizer if tokenizer is not None else Tokenizer.from_file(str(folder / "tokenizer.json"))
    chosen.refuse_other_vocabulary(tokenizer, special_tokens, folder.name)
    return chosen.source_for(tokenizer, special_tokens)


def _refuse_endless(template: ChatTemplate, name: str) -> None:
    if template.source in SHIPPED_SOURCES or digest_text(template.source) in _KNOWN:
        return
    fault = trial_render(template.source, json.dumps({**template.special_tokens, **template.variables}, sort_keys=True))
    if fault is not None:
        refuse("chat template", "template.format", f"{name}: {fault}", "a template that renders a short chat within 1 s and 512 MB",
               "do not use this template; if it came with a base, do not trust that base")  # fmt: skip


def _template_source(folder: Path, config: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        found = next((t.get("template") for t in found if t.get("name") == "default"), None)
    if not isinstance(found, str):
        refuse(folder.name, "template.format", "a base without a chat template", "a base with one (usually the -instruct model), or a named format",
               "use the instruct model, or write template.format: plain")  # fmt: skip
    return found


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and the like, as the template's variables."""
    tokens: dict[str, str] = {}
    for key in ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"):
        value = config.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[key] = text
    return tokens
