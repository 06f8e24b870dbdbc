"""What every suite gives, whatever it asks: values with intervals, paired differences, and the rows behind each number.

A number that cannot be computed again from the rows has no place here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from tuner.artifact.measured import Divergence, Timed
from tuner.evaluate.intervals import Difference, Estimate

Role = Literal["held_out", "validation", "ood", "transform", "abstention", "forgetting", "memorisation", "cost"]
ADAPTER = "adapter"
__all__ = ["ADAPTER", "Contestant", "Difference", "Divergence", "Estimate", "MetricFacts", "Result", "Role", "Tick", "Timed"]
Tick = Callable[[int], None]  # told how many more items are done


@dataclass(frozen=True, slots=True)
class MetricFacts:
    """What a metric is, and how its value follows from rows.

    `form`: mean (of `scores[metric]` over the contender's rows that have it), ratio (sum of `parts[metric][0]` over sum of `parts[metric][1]`),
    or the name of a rule that its `what` states (macro_f1, auc, …).
    """

    what: str
    higher_is_better: bool
    form: str = "mean"

    def as_dict(self) -> dict[str, Any]:
        return {"what": self.what, "higher_is_better": self.higher_is_better, "form": self.form}


@dataclass(frozen=True)
class Result:
    """One suite, graded. `values` by contender and metric; `differences` adapter minus its baseline on the same items, by metric.

    `version` is raised whenever what a made suite asks or counts changes: numbers of two versions are not of one suite.
    `rows` are lines of answers.jsonl: {suite, item, contender, reference, answer, scores, parts, …}. `facts` is what else this role has to say, as JSON.
    """

    name: str
    role: Role
    n: int
    digest: str
    metrics: Mapping[str, MetricFacts]
    values: Mapping[str, Mapping[str, Estimate]]
    differences: Mapping[str, Difference]
    facts: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[dict[str, Any]] = ()
    version: int = 1

    def as_dict(self) -> dict[str, Any]:
        """The suite's entry in scores.json."""
        return {
            "role": self.role, "version": self.version, "n": self.n, "digest": self.digest,
            "metrics": {name: m.as_dict() for name, m in self.metrics.items()},
            "values": {c: {name: e.as_dict() for name, e in of.items()} for c, of in self.values.items()},
            "differences": {name: d.as_dict() for name, d in self.differences.items()},
            "facts": dict(self.facts),
        }  # fmt: skip


class Contestant(Protocol):
    """What can be graded: tuner.artifact.adapter.Adapter, or anything with these.

    Inside `as_base` the same calls ask the untouched base; inside `without_system` the recipe's system prompt is not put before questions.
    """

    def answer_many(self, questions: Any, max_new_tokens: int, done: Tick | None = None) -> list[str]: ...
    def label_scores(self, questions: Any, labels: Sequence[str], done: Tick | None = None) -> Any: ...
    def choice_nats(self, questions: Any, answers: Sequence[Sequence[str]], done: Tick | None = None) -> list[list[float]]: ...
    def losses(self, questions: Any, answers: Sequence[str], done: Tick | None = None) -> list[tuple[float, int]]: ...
    def token_nats(self, questions: Any, answers: Sequence[str], done: Tick | None = None) -> list[list[float]]: ...
    def continuations(self, questions: Any, beginnings: Sequence[Sequence[int]], new_tokens: int, done: Tick | None = None) -> list[list[int]]: ...
    def completion_ids(self, question: Any, answer: str) -> list[int]: ...
    def divergences(self, texts: Sequence[str], done: Tick | None = None) -> list[Divergence]: ...
    def prompt_divergences(self, questions: Any, done: Tick | None = None) -> list[Divergence]: ...
    def timed(self, questions: Any, max_new_tokens: int, done: Tick | None = None) -> list[Timed]: ...
    def fits(self, questions: Any, room: int) -> list[bool]: ...
    def as_base(self) -> Any: ...
    def without_system(self) -> Any: ...
