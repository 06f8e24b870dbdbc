"""The recipe's `template:` section: how messages become tokens and which of them carry loss."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tuner.section import Section

LossOn = Literal["completion", "last_turn", "all_assistant", "everything"]


class TemplateSpec(Section):
    """Rendering and masking. What is set here is stored in the artifact and used again at inference."""

    format: str = Field(
        "tokenizer",
        min_length=1,
        description="`tokenizer`: the base's own chat template; the name of a file in tuner/template/formats; or the path of a jinja file beside the recipe",
    )
    system: str | None = Field(None, description="system prompt put before records that have none; without it the template's own default applies and is shown")
    loss_on: LossOn = Field(
        "completion",
        description="tokens that carry loss, stop tokens included: completion (all the assistant says after the last user turn), last_turn (its last "
        "message), all_assistant, everything; a message of weight 0 carries none",
    )
    max_tokens: int = Field(1024, ge=8, description="longest row, prompt and completion together (tokens); never cut in silence")
    truncate: Literal["never", "prompt_left"] = Field(
        "never",
        description="prompt_left: where a row is too long the beginning of the user's words gives way, never the completion; each is counted and listed. "
        "Prompts that are served or graded are never cut",
    )
    content_tokens: list[str] = Field(
        default_factory=list, description="special tokens that text of a record may become (for example <think>); all others stay text"
    )
    new_tokens: list[str] = Field(
        default_factory=list, description="texts that become one token each; only their embedding rows are trained, and saved in the adapter"
    )
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="extra variables handed to the chat template, such as thinking switches")
