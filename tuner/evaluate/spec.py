"""The recipe's `evaluate:` section: which metrics, which ways of prompting the base, how many resamples."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tuner.section import Section

Way = Literal["zero_shot", "few_shot"]


class EvaluateSpec(Section):
    """Evaluation after training, on held_out and every ood suite."""

    metrics: list[str] | None = Field(None, description="names from `tuner show metrics`; default: those that fit data.task")
    primary: str | None = Field(None, description="the metric the verdict is about; default: the first of `metrics`")
    base_ways: list[Way] = Field(
        default_factory=lambda: list[Way](("zero_shot", "few_shot")),
        min_length=1,
        description="how the base is prompted; for data.task label each is also tried with answers constrained to the labels",
    )
    few_shot: int = Field(8, ge=1, le=64, description="worked examples in the few-shot prompt, taken from train")
    max_new_tokens: int = Field(64, ge=1, description="longest answer (tokens)")
    batch: int = Field(32, ge=1, description="prompts answered together")
    resamples: int = Field(10_000, ge=1000, description="bootstrap resamples behind each interval")
    take: int | None = Field(None, ge=1, description="grade at most this many items of each suite, chosen by seed and content hash")
