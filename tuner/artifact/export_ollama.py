"""A chat template as Ollama's own: the text around each turn, read off the chat template by rendering it, and the Modelfile that writes it.

It refuses templates that do more than write fixed text around turns, and texts that a Modelfile cannot hold.
Written against Ollama's sources (template/template.go `Execute`, `collate`; parser/parser.go; server/routes.go `ChatHandler`); Ollama itself was not run.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tuner.data.record import Message
from tuner.errors import Refusal, refuse
from tuner.template.render import ChatTemplate

_MARKS = tuple(chr(0x10FF00 + i) for i in range(8))  # private characters that stand for the words of a turn
_TRIED = ("{mark}", "a {mark}\nb", "{{{{ 7 }}}} {mark}", "<think>\n{mark}</think>\n\nx", "{mark} [INST] ### </s>")
BLANKS = " {mark}\n"
TRIM = "trim"  # what `--allow` calls a template that trims turns
OTHER = "serve it with vllm, merged or gguf, whose servers run the chat template itself"


@dataclass(frozen=True)
class Turns:
    """A prompt as fixed text before, between and after turns.

    `before` is what opens a conversation, by the role of its first turn; `between` by the roles of two turns that follow each other; `after`
    what opens the answer, after a user turn.
    """

    before: dict[str, str]
    between: dict[tuple[str, str], str]
    after: str

    def render(self, conversation: Sequence[Message]) -> str:
        """The prompt. Raises Refusal for turns whose order it does not know."""
        roles = [m.role for m in conversation]
        order = "a system turn or none, then user and assistant in turn"
        try:
            parts = [self.before[roles[0]], *(self.between[pair] for pair in itertools.pairwise(roles))]
        except KeyError:
            refuse("conversation", "messages", f"turns of {', '.join(roles)}", order, "leave this conversation out")
        return "".join(part + m.content for part, m in zip(parts, conversation, strict=True)) + self.after


# --- from a chat template ------------------------------------------------------------------------------------------


def turns_of(template: ChatTemplate, where: str, allow: Sequence[str] = ()) -> Turns:
    """What `template` writes around turns. Raises Refusal where that depends on anything but the roles of a turn and of the one before it."""
    alone, longer, led = _split(template, "user"), _split(template, "user", "assistant", "user", "assistant", "user"), None
    if alone is None or longer is None:
        refuse(where, "template", "a chat template that does not write its turns one after the other", "fixed text around turns", OTHER)
    between = {("user", "assistant"): longer[1], ("assistant", "user"): longer[2]}
    before = {"user": alone[0]}
    if (led := _split(template, "system", "user")) is not None:
        before["system"], between["system", "user"] = led[0], led[1]
    found = Turns(before, between, alone[-1])
    _refuse_other(template, found, where, allow)
    return found


def _split(template: ChatTemplate, *roles: str) -> list[str] | None:
    """The text before, between and after turns of these roles, or None where the template does not render them each once, in order."""
    marks = _MARKS[: len(roles)]
    try:
        text = template.render([Message(role, mark) for role, mark in zip(roles, marks, strict=True)], generation_prompt=True)  # type: ignore[arg-type]
    except Refusal:
        return None
    if any(text.count(mark) != 1 for mark in marks):
        return None
    parts = []
    for mark in marks:
        part, found, text = text.partition(mark)
        if not found:
            return None
        parts.append(part)
    return [*parts, text]


def _refuse_other(template: ChatTemplate, turns: Turns, where: str, allow: Sequence[str]) -> None:
    """Render many conversations both ways: other orders and lengths, words that look like markup, and blanks around them."""
    for text, roles in itertools.product(_TRIED, _orders("system" in turns.before)):
        if not _agrees(template, turns, text, roles):
            refuse(where, "template", f"a chat template that renders {text.format(mark='…')!r} by its words or its place, among turns of {', '.join(roles)}",
                   "fixed text around turns, which is all that a TEMPLATE of Ollama's can write", OTHER)  # fmt: skip
    if TRIM not in allow and not all(_agrees(template, turns, BLANKS, roles) for roles in _orders("system" in turns.before)):
        refuse(where, "template", "a chat template that trims white space around turns", "turns as they are: a TEMPLATE of Ollama's cannot trim",
               "serve it with gguf or vllm, or give --allow trim and send turns without blanks at their ends")  # fmt: skip


def _orders(with_system: bool) -> list[tuple[str, ...]]:
    plain = [("user", *("assistant", "user") * more) for more in range(4)]
    return plain + ([("system", *roles) for roles in plain] if with_system else [])


def _agrees(template: ChatTemplate, turns: Turns, text: str, roles: tuple[str, ...]) -> bool:
    said = [Message(role, text.format(mark=f"m{i}")) for i, role in enumerate(roles)]  # type: ignore[arg-type]
    try:
        return template.render(said, generation_prompt=True) == turns.render(said)
    except Refusal:
        return False


# --- to a Modelfile ------------------------------------------------------------------------------------------------


def go_template(turns: Turns) -> str:
    """The same as a Go template over Ollama's .Messages. Of Go's language: text, range, if/else, eq, ne, one variable."""
    opening = _by_role(turns.before, ".Role")
    cases = [f'if eq $last "" }}}}{opening}']
    for last in ("system", "user", "assistant"):
        following = {role: text for (earlier, role), text in turns.between.items() if earlier == last}
        if following:
            cases.append(f'if eq $last "{last}" }}}}{_by_role(following, ".Role")}')
    choice = "{{ " + "{{ else ".join(cases) + "{{ end }}"
    after = f'{{{{ if ne $last "assistant" }}}}{_literal(turns.after)}{{{{ end }}}}'  # an answer that was begun is gone on with
    return f'{{{{ $last := "" }}}}{{{{ range .Messages }}}}{choice}{{{{ .Content }}}}{{{{ $last = .Role }}}}{{{{ end }}}}{after}'


def _by_role(texts: dict[str, str], role: str) -> str:
    """The text for a turn's role, chosen where there is a choice."""
    if len(set(texts.values())) == 1:
        return _literal(next(iter(texts.values())))
    first, *others = texts.items()
    chosen = f'{{{{ if eq {role} "{first[0]}" }}}}{_literal(first[1])}'
    chosen += "".join(f'{{{{ else if eq {role} "{name}" }}}}{_literal(text)}' for name, text in others)
    return chosen + "{{ end }}"


def _literal(text: str) -> str:
    if "{{" in text:
        refuse("Modelfile", "TEMPLATE", "a chat template that writes two opening braces", "text without them", OTHER)
    return text


def modelfile(model: str, turns: Turns, system: str | None, stops: Sequence[str], context_tokens: int) -> str:
    """The Modelfile: the model's file, the template, the recipe's system prompt, and greedy decoding that ends where the artifact's does."""
    lines = [f"FROM ./{model}", f"TEMPLATE {_quoted(go_template(turns), 'TEMPLATE')}"]
    if system is not None:
        lines.append(f"SYSTEM {_quoted(system, 'SYSTEM')}")
    lines += [f"PARAMETER stop {_quoted(stop, 'stop')}" for stop in stops]
    lines += ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1", f"PARAMETER num_ctx {context_tokens}"]
    return "\n".join(lines) + "\n"


def _quoted(text: str, field: str) -> str:
    """Text between three quotation marks, as Ollama's parser reads them: it knows no escapes, and drops what Go calls unprintable."""
    odd = next((c for c in text if not (c.isprintable() or c in "\n\t") or c in "\u00a0\u3000"), None)
    if '"""' in text or text.endswith('"') or odd is not None:
        found = f"a character that it drops, {odd!r}" if odd is not None else "three quotation marks, or one at the end"
        refuse("Modelfile", field, found, "printable text without them: a Modelfile has no escapes", OTHER)
    return f'"""{text}"""'
