"""Which turns carry loss, and where they stand in the rendered text: found by rendering prefixes, so no {% generation %} markers are needed.

It refuses a template whose earlier turns change when later ones follow: nobody could say which of its words a turn is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tuner.data.record import Message
from tuner.errors import refuse
from tuner.safe_text import quoted
from tuner.template.spec import LossOn

Span = tuple[int, int]  # characters of the rendered text, end excluded
Render = Callable[[Sequence[Message], bool], str]  # (messages, with the words that open the assistant's turn)


def turns_with_loss(messages: Sequence[Message], loss_on: LossOn) -> list[int]:
    """Indices of the assistant turns that carry loss: those of weight 0 never do.

    `completion` is everything the model says after the last user turn, tool calls included; `last_turn` only its last message.
    """
    assistants = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if loss_on == "last_turn":
        chosen = assistants[-1:]
    elif loss_on == "completion":
        last_user = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
        chosen = [i for i in assistants if i > last_user]
    else:
        chosen = assistants
    return [i for i in chosen if messages[i].weight != 0]


def turn_spans(where: str, messages: Sequence[Message], turns: Sequence[int], whole: str, render: Render) -> list[Span]:
    """The characters of `whole` that each turn adds to the prompt before it. Raises Refusal naming the first turn that cannot be placed."""
    spans = []
    for turn in turns:
        before, after = render(messages[:turn], True), render(messages[: turn + 1], False)
        if not (whole.startswith(before) and after.startswith(before) and whole.startswith(after)):
            shared = next((i for i, (a, b) in enumerate(zip(whole, after, strict=False)) if a != b), min(len(whole), len(after)))
            refuse(where, f"messages[{turn}]", f"a turn that renders otherwise when later turns follow, from {quoted(whole[shared : shared + 30])}",
                   "a chat template whose turns stay as they are", "set template.loss_on: last_turn, or use another format")  # fmt: skip
        spans.append((len(before), len(after)))
    return spans
