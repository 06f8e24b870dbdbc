"""The recipe's `evaluate:` and `gate:` sections: which suites, metrics and ways of prompting the base, how large, and what decides promotion."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tuner.section import Section

Way = Literal["zero_shot", "few_shot"]
Kind = Literal["held_out", "ood", "transforms", "abstention", "forgetting", "memorisation", "cost"]
KINDS: tuple[Kind, ...] = ("held_out", "ood", "transforms", "abstention", "forgetting", "memorisation", "cost")
Profile = Literal["small", "full"]
Asks = Literal["gain", "drop", "value", "count"]


class MetricOptions(Section):
    """What single metrics need to know."""

    pattern: str | None = Field(None, description="`regex`: the pattern an answer must match somewhere")
    absolute_tolerance: float = Field(0.0, ge=0, description="`numeric`: how far from the reference's number is still right")
    relative_tolerance: float = Field(0.0, ge=0, le=1, description="`numeric`: the same as a share of the reference's number; the wider of the two holds")
    json_schema: str | None = Field(None, description="`schema_valid`: a JSON Schema file, relative to the recipe")
    bertscore_model: str | None = Field(None, description="`bertscore_*`: a folder with an encoder (config, safetensors, tokenizer), relative to the recipe")
    bertscore_layer: int | None = Field(None, ge=1, description="`bertscore_*`: the hidden layer compared; default: three quarters up, 9 of BERT's 12")
    context_field: str | None = Field(None, description="`grounded_sentences`, `context_use`, `context_gain`: the record's column with what was retrieved")
    context_start: str | None = Field(None, min_length=1, description="the same, where it stands in the question: the text just before it")
    context_end: str | None = Field(None, min_length=1, description="with `context_start`: the text just after it; default: to the end of the question")


class JudgeSpec(Section):
    """Another model as judge, opt-in: asked in both orders which of two answers is better. Nothing else of an evaluation leaves the machine."""

    endpoint: str = Field(description="base URL of an OpenAI-compatible API, such as http://127.0.0.1:8000/v1; only https carries a key to another machine")
    model: str = Field(min_length=1, description="the judge's name at the endpoint")
    key_file: str | None = Field(None, description="a file that holds the API key, relative to the recipe; the key is kept nowhere else")
    instruction: str = Field(
        "Which answer is more correct, complete and to the point?", min_length=1, max_length=4000, description="what `better` means, in words for the judge"
    )
    take: int = Field(100, ge=1, description="items judged, chosen by seed and content; each costs two requests")
    parallel: int = Field(4, ge=1, le=64, description="requests under way together")
    timeout_seconds: float = Field(60.0, gt=0, description="longest wait for one reply")
    retries: int = Field(2, ge=0, le=10, description="further tries after a timeout, a lost connection, or HTTP 429 and 5xx")
    temperature: float | None = Field(0.0, ge=0, le=2, description="sent to the endpoint; null: not sent, for models that take none")


class TransformsSpec(Section):
    """Built-in changes of held_out's questions that should not change the answers."""

    families: list[str] | None = Field(None, description="names from `tuner show transforms`; default: all that apply to the records")
    severities: list[Literal[1, 2, 3]] | None = Field(
        None, min_length=1, description="1 mild, 2 plain, 3 heavy; default: 2 in the small profile, all three in the full one"
    )
    take: int | None = Field(None, ge=1, description="items of held_out that are changed; default: 40 small, 200 full")


class AbstentionSpec(Section):
    """Questions that have no answer: does the adapter say so, or invent one?"""

    label: str | None = Field(None, description="the label that means `none of these`; default: none, other, unknown or out_of_scope where train has it")
    take: int | None = Field(None, ge=1, description="items; default: 40 small, 200 full")
    confident: float = Field(0.5, gt=0, lt=1, description="an invented answer counts as confident above this probability of its tokens (geometric mean)")


class ForgettingSpec(Section):
    """General ability of the base that the adapter should keep."""

    probes: int | None = Field(None, ge=21, le=1000, description="generated choice questions in all; default: 300 small, 1,000 full")
    instructions: int | None = Field(None, ge=7, le=100, description="generated instructions that are answered and checked; default: 28 small, 70 full")
    problems: int | None = Field(None, ge=4, le=200, description="word problems of GSM8K's train part; default: 32 small, 200 full (which also solves them)")
    passages: int | None = Field(None, ge=4, le=100, description="passages of neutral text; default: 24 small, 100 full")
    tasks: list[str] = Field(default_factory=list, description="lm-evaluation-harness tasks besides, by name (extra lm-eval; their data must be local)")
    tasks_folder: str | None = Field(None, description="folder of task files (YAML) of your own, relative to the recipe file")
    tasks_take: int | None = Field(None, ge=1, description="items of each task; default: 100 small, all full")


class MemorisationSpec(Section):
    """What of the training records can be got out of the adapter."""

    members: int | None = Field(None, ge=20, description="train records tried, and as many of held_out; default: 100 small, 1,000 full")
    personal: int | None = Field(None, ge=0, description="values of personal data in train's completions that are asked for; default: 20 small, 200 full")
    candidates: int | None = Field(None, ge=64, le=10_000, description="other secrets each canary is compared with; default: 256 small, 1,024 full")


class EvaluateSpec(Section):
    """Evaluation after training: every suite for the base, the best-prompted base and the adapter, on the same items."""

    suites: list[Kind] = Field(default_factory=lambda: list[Kind](KINDS), min_length=1, description="which suites are run")
    profile: Profile = Field("small", description="how large suites are that are generated: small (minutes on a CPU) or full")
    metrics: list[str] | None = Field(None, description="names from `tuner show metrics`; default: those that fit data.task")
    primary: str | None = Field(None, description="the metric the verdict is about; default: the first of `metrics`")
    options: MetricOptions = Field(default_factory=MetricOptions, description="what single metrics need to know")
    base_ways: list[Way] = Field(
        default_factory=lambda: list[Way](("zero_shot", "few_shot")),
        min_length=1,
        description="how the base is prompted; for data.task label each is also tried with answers constrained to the labels",
    )
    prompts: dict[str, str] = Field(
        default_factory=dict, description="further system prompts the base is tried with, by name; the best on held_out is the baseline"
    )
    label_answers: Literal["free", "likeliest"] = Field(
        "free", description="how the adapter answers a label task: freely, as it is served, or with the likeliest label (then it has no loss of its own)"
    )
    few_shot: int = Field(8, ge=1, le=64, description="worked examples in the few-shot prompt, taken from train")
    max_new_tokens: int = Field(64, ge=1, description="longest answer (tokens)")
    batch: int = Field(32, ge=1, description="prompts answered together")
    resamples: int = Field(10_000, ge=1000, description="bootstrap resamples behind each interval, and random swaps behind each p")
    take: int | None = Field(None, ge=1, description="grade at most this many items of each suite, chosen by seed and content hash")
    judge: JudgeSpec | None = Field(None, description="another model as judge of held_out's answers, opt-in: what is judged leaves this machine")
    transforms: TransformsSpec = Field(default_factory=TransformsSpec, description="built-in changes of held_out")
    abstention: AbstentionSpec = Field(default_factory=AbstentionSpec, description="questions without an answer")
    forgetting: ForgettingSpec = Field(default_factory=ForgettingSpec, description="what the base could do before")
    memorisation: MemorisationSpec = Field(default_factory=MemorisationSpec, description="what can be got out again")
    group_by: str | None = Field(
        None, description="record column: items of one value have one source and are drawn together in every interval; default: data.cut.group_by"
    )
    slices: list[str] | None = Field(None, description="record columns to slice held_out by; default: label, source, length, and columns of 2 to 20 values")
    smallest_slice: int = Field(10, ge=2, description="slices of fewer items are not tabled")


class GateRule(Section):
    """One rule. It passes or fails by the interval, never by the point; an interval with the bound inside decides nothing."""

    suite: str = Field(description="held_out, an ood suite, a transform such as casual.2, forgetting, memorisation, abstention, cost")
    metric: str = Field(description="a metric of that suite")
    of: Asks | None = Field(
        None,
        description="gain: over the best-prompted base, in the metric's good direction; drop: its opposite; value: the adapter's own; "
        "count: how many items, of a share of items; default: gain with `at_least`, drop with `at_most`",
    )
    at_least: float | None = Field(
        None, allow_inf_nan=False, description="passes when the interval's lower bound reaches this, fails when the upper one does not"
    )
    at_most: float | None = Field(
        None, allow_inf_nan=False, description="passes when the interval's upper bound is not above this, fails when the lower one is"
    )

    @property
    def asks(self) -> Asks:
        """What is held against the bound: `of`, or what that bound is usually about."""
        return self.of or ("gain" if self.at_least is not None else "drop")

    @model_validator(mode="after")
    def _one_bound(self) -> GateRule:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give either `at_least` or `at_most`")
        bound = self.at_least if self.at_least is not None else self.at_most
        if self.of == "count" and bound is not None and bound != int(bound):
            raise ValueError(f"a count is a whole number of items, not {bound:g}; for a share write of: value")
        return self


class GateSpec(Section):
    """What must hold before a version may be promoted."""

    rules: list[GateRule] | None = Field(None, description="default: a gain on held_out, no lost ability, nothing recited (`tuner gate` prints them)")
