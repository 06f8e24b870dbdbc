"""The recipe's `data:` section: where each split comes from, how records are read, and what each check may do."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from tuner.section import Section

Action = Literal["refuse", "warn", "drop", "off"]
Shape = Literal["messages", "sharegpt", "alpaca", "prompt_completion"]
Origin = Literal["human", "synthetic", "production"]


class Columns(Section):
    """Which columns hold what, for files whose own names are not recognised."""

    messages: str | None = Field(None, description="column holding the list of messages")
    system: str | None = Field(None, description="column holding the system prompt")
    prompt: str | None = Field(None, description="column holding the prompt")
    completion: str | None = Field(None, description="column holding the completion")

    @model_validator(mode="after")
    def _whole(self) -> Columns:
        chat, half, pair = self.messages is not None, self.prompt is not None or self.completion is not None, None not in (self.prompt, self.completion)
        if chat == pair or (chat and half):
            raise ValueError("name either `messages`, or both `prompt` and `completion`")
        return self


def _date(value: object) -> object:
    """YAML hands over text: nothing but YYYY-MM-DD is a date here."""
    if isinstance(value, str) and len(value) == 10:
        try:
            return datetime.date.fromisoformat(value)
        except ValueError:
            pass
    return value


Date = Annotated[datetime.date, BeforeValidator(_date, json_schema_input_type=str)]


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_one_or_many, json_schema_input_type=str | list[str])]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Digests = Annotated[list[Digest], BeforeValidator(_one_or_many, json_schema_input_type=Digest | list[Digest])]


def _path_alone(value: object) -> object:
    return {"files": value} if isinstance(value, (str, list)) else value


class SourceSpec(Section):
    """One source of records: local files, or a dataset of the Hugging Face Hub pinned to a commit."""

    files: Annotated[list[str], BeforeValidator(_one_or_many, json_schema_input_type=str | list[str])] = Field(
        default_factory=list, description="paths, relative to the recipe file; .jsonl .json .csv .tsv .parquet, each also .gz or .zst"
    )
    hub: str | None = Field(None, description="dataset id on the Hugging Face Hub, as org/name")
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$", description="commit of the hub dataset, 40 hex digits")
    subset: str | None = Field(None, description="configuration name of the hub dataset")
    hub_split: str = Field("train", description="split name of the hub dataset")
    online: bool = Field(False, description="may the hub be contacted; otherwise only its local cache is read")
    columns: Columns | None = Field(None, description="explicit column mapping; without it the shape is recognised per file")
    take: int | None = Field(None, ge=1, description="use only this many records, chosen by the recipe's seed and content hash")
    source: Origin | None = Field(None, description="who made the records; a column named `source` says it record by record")
    as_of: Date | None = Field(None, description="date the records were true (YYYY-MM-DD); a column named `as_of` says it record by record")

    @model_validator(mode="after")
    def _one_origin(self) -> SourceSpec:
        if bool(self.files) == (self.hub is not None):
            raise ValueError("name either `files` or `hub`")
        if self.hub is not None and self.revision is None:
            raise ValueError("a hub dataset needs `revision`: the 40-digit commit it is pinned to")
        return self


Source = Annotated[SourceSpec, BeforeValidator(_path_alone, json_schema_input_type=str | list[str] | SourceSpec)]


class RehearsalSpec(SourceSpec):
    """General records mixed into training, so that the adapter keeps what it is not trained for. They are read without template.system."""

    share: float | None = Field(
        None, gt=0, le=0.9, description="share of all records trained on that are general, chosen by seed and content; default: 0.1, or what `take` says"
    )

    @model_validator(mode="after")
    def _one_size(self) -> RehearsalSpec:
        if self.share is not None and self.take is not None:
            raise ValueError("give either `share` or `take`")
        return self


Rehearsal = Annotated[RehearsalSpec, BeforeValidator(_path_alone, json_schema_input_type=str | list[str] | RehearsalSpec)]


class CutSpec(Section):
    """Cutting validation and held_out from the training source, when they are not given as files."""

    validation: float = Field(0.0, ge=0.0, lt=0.9, description="share of groups cut off for validation")
    held_out: float = Field(0.0, ge=0.0, lt=0.9, description="share of groups cut off for held_out")
    group_by: str | None = Field(None, description="column whose equal values stay together (customer, conversation, document)")
    stratify: bool = Field(False, description="cut the same share of every completion; for label tasks")


class CanarySpec(Section):
    """Made-up records with a random secret, planted in train to measure how much the adapter keeps by heart."""

    count: int = Field(8, ge=2, le=64, description="canaries for each number of repeats")
    repeats: list[int] = Field(
        default_factory=lambda: [0, 1, 4], min_length=1, max_length=6, description="how often each is planted; 0: never, the control that shows chance"
    )

    @model_validator(mode="after")
    def _some_planted(self) -> CanarySpec:
        if len(set(self.repeats)) < len(self.repeats) or not all(0 <= times <= 1000 for times in self.repeats) or max(self.repeats) == 0:
            raise ValueError("`repeats` takes different numbers from 0 to 1000, at least one above 0")
        return self


class DataSpec(Section):
    """Splits have exact names: train is fitted, validation is watched, held_out and ood are read once afterwards."""

    task: Literal["label", "json", "text"] = Field("text", description="what a completion is: one of a closed set of labels, a JSON object, or free text")
    train: Source = Field(description="records the adapter is fitted to")
    validation: Source | None = Field(None, description="records watched while fitting; settings are chosen on these")
    held_out: Source | None = Field(None, description="same source as train, read once after training")
    rehearsal: Rehearsal | None = Field(None, description="general records mixed into training against forgetting; default: none")
    ood: dict[str, Source] = Field(default_factory=dict, description="named out-of-distribution suites, read once after training")
    production: Source | None = Field(None, description="a sample of real inputs, answered or not: coverage of train is measured against it")
    cut: CutSpec = Field(default_factory=lambda: CutSpec(), description="how to cut splits that are not given as files")
    references: Literal["auto", "one", "many"] = Field(
        "auto", description="completions a prompt may have; auto: one for labels and JSON, many where a tenth of the prompts have several"
    )
    embeddings: Literal["static", "minilm"] = Field(
        "static", description="what semantic checks of prompts compare by: static (shipped) or minilm (extra semantic: better, 25 times as slow)"
    )
    languages: Names = Field(default_factory=list, description="languages expected, as ISO 639-1 codes; empty: whatever most records are in")
    fresh_since: Date | None = Field(None, description="records whose as_of date is older are stale (YYYY-MM-DD)")
    canaries: CanarySpec | None = Field(None, description="plant made-up secrets in train, to measure memorisation; default: none")
    redact: Names = Field(
        default_factory=list, description="kinds of personal data and secrets to replace by typed placeholders, or [all]; see `tuner show personal`"
    )
    forget: Digests = Field(
        default_factory=list, description="content hashes (sha256:…) of records left out of every split and counted as `forget`; see `tuner forget`"
    )
    checks: dict[str, Action] = Field(default_factory=dict, description="what each check may do: refuse, warn, drop (counted) or off; see `tuner show checks`")
    max_record_bytes: int = Field(1_048_576, ge=1024, description="a longer line is refused (bytes)")
    max_file_bytes: int = Field(4_294_967_296, ge=1024, description="a file that unpacks to more is refused (bytes)")

    @model_validator(mode="after")
    def _splits_once(self) -> DataSpec:
        for split in ("validation", "held_out"):
            if getattr(self, split) is not None and getattr(self.cut, split) > 0:
                raise ValueError(f"`{split}` is given both as a source and in `cut`: keep one")
        if self.cut.validation + self.cut.held_out >= 1:
            raise ValueError("`cut` leaves nothing to train on")
        return self
