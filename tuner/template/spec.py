"""The recipe's `template:` section: how messages become tokens and which of them carry loss."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tuner.section import Section


class TemplateSpec(Section):
    """Rendering and masking. What is set here is stored in the artifact and used again at inference."""

    format: Literal["tokenizer"] = Field("tokenizer", description="`tokenizer`: the base's own chat template")
    system: str | None = Field(None, description="system prompt put before records that have none; without it the template's own default applies and is shown")
    loss_on: Literal["completion", "all_assistant"] = Field(
        "completion", description="tokens that carry loss: the last assistant turn, or every assistant turn; stop token included"
    )
    max_tokens: int = Field(1024, ge=8, description="longest row, prompt and completion together (tokens); never cut in silence")
    content_tokens: list[str] = Field(
        default_factory=list, description="special tokens that text of a record may become (for example <think>); all others stay text"
    )
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="extra variables handed to the chat template, such as thinking switches")
