"""Messages to text with a chat template, in jinja2's sandbox, exactly as transformers renders it.

It refuses templates that fail, and never lets text of a record act as a template or as a special token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tuner.data.record import Message
from tuner.errors import refuse
from tuner.fingerprint import digest_json
from tuner.safe_text import quoted
from tuner.template.spec import TemplateSpec


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with everything its rendering depends on: special tokens, the recipe's system prompt, extra variables.

    Source of the environment's settings: transformers@5.23.0 utils/chat_template_utils.py, `_compile_jinja_template`.
    """

    source: str
    special_tokens: dict[str, str]
    system: str | None = None
    variables: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Identity of the rendering: template text, special tokens, system prompt and variables."""
        return digest_json([self.source, self.special_tokens, self.system, self.variables])

    @cached_property
    def _compiled(self) -> jinja2.Template:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            return environment.from_string(self.source)
        except jinja2.TemplateError as error:
            refuse("chat template", "template.format", quoted(error, 160), "a chat template that compiles", "mend the base's chat template")

    def with_system(self, messages: Sequence[Message]) -> list[Message]:
        """The messages, with the recipe's system prompt put first where they have none of their own."""
        if self.system is None or (messages and messages[0].role == "system"):
            return list(messages)
        return [Message("system", self.system), *messages]

    def render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        """The text the model sees. `messages` must already carry their system prompt (see `with_system`)."""
        try:
            return self._compiled.render(
                messages=[m.as_dict() for m in messages],
                tools=None,
                documents=None,
                add_generation_prompt=generation_prompt,
                **self.special_tokens,
                **self.variables,
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(m.role for m in messages)
            refuse("chat template", "messages", f"{quoted(error, 120)} for turns {roles}", "turns this template can render",
                   "leave out what it cannot, such as a system turn, or use another base")  # fmt: skip


class _Generation(Extension):
    """{% generation %} … {% endgeneration %}: marks that some templates put round assistant text. The text inside is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own interface)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def read_template(folder: Path, spec: TemplateSpec) -> ChatTemplate:
    """The base's own chat template, from chat_template.jinja or tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        refuse(path, "", f"unreadable: {quoted(error, 80)}", "the model's own tokenizer_config.json", "copy the model's tokenizer files again")
    return ChatTemplate(_template_source(folder, config), _special_tokens(config), spec.system, dict(spec.chat_template_kwargs))


def _template_source(folder: Path, config: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        found = next((t.get("template") for t in found if t.get("name") == "default"), None)
    if not isinstance(found, str):
        refuse(folder.name, "template.format", "a base without a chat template", "a base with one (usually the -instruct model)", "use the instruct model")
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
