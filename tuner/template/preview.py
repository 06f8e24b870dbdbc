"""Records as the model will see them: every token, which of them carry loss, special tokens visible, counts under it."""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text

from tuner.template.tokens import IGNORED, Encoder, Row


@dataclass(frozen=True, slots=True)
class ShownToken:
    text: str
    loss: bool
    special: bool


def shown_tokens(row: Row, encoder: Encoder) -> list[ShownToken]:
    """One entry a token, in order."""
    special = encoder.control_ids | encoder.stop_ids
    pairs = zip(row.input_ids, row.labels, strict=True)
    return [ShownToken(encoder.token_text(token), label != IGNORED, token in special) for token, label in pairs]


def preview_text(row: Row, encoder: Encoder) -> Text:
    """For the terminal: loss tokens on green, special tokens in yellow, everything else dim. Line breaks show as \\n and break."""
    text = Text()
    for token in shown_tokens(row, encoder):
        style = ("bold black on green" if token.loss else "dim") if not token.special else ("bold black on yellow" if token.loss else "yellow")
        text.append(token.text, style=style)
        if token.text.endswith("\\n"):
            text.append("\n")
    return text


def preview_counts(row: Row) -> str:
    total = len(row.input_ids)
    return f"{total} tokens: {row.prompt_tokens} prompt, {total - row.prompt_tokens} completion, {row.completion_tokens} carry loss"
