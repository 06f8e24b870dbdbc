"""What a sweep varies: `key=a,b,c` is a list of values, `key=low..high` a range. Reads them from the command line, by YAML's rules.

Refuses keys that would change what is graded, values that are none, and ranges that are upside down.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.errors import Collector, refuse
from tuner.recipe import Recipe, parse_yaml

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})")
_WHOLE = re.compile(r"[-+]?\d+")
LOG_FROM = 10.0  # a range whose ends are this many times apart is searched by order of magnitude
FIXED = {
    "name": "runs get names of their own", "data": "runs on other records cannot be compared", "evaluate": "runs graded in another way cannot be compared",
    "artifact": "all runs go into one store", "plan": "it changes no run", "profiles": "choose one with --profile",
}  # fmt: skip


@dataclass(frozen=True)
class Values:
    """A key and the values it takes."""

    key: str
    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that must be accepted before anything is started: all."""
        return self.values

    def __str__(self) -> str:
        return f"{self.key} {', '.join(json.dumps(v, ensure_ascii=False) for v in self.values)}"


@dataclass(frozen=True)
class Range:
    """A key and the interval it is searched in, ends included; `log`: by order of magnitude."""

    key: str
    low: float
    high: float
    log: bool
    whole: bool

    @property
    def ends(self) -> tuple[Any, ...]:
        return (self.low, self.high)

    def __str__(self) -> str:
        return f"{self.key} {self.low:g}..{self.high:g}{' (log)' if self.log else ''}"


Axis = Values | Range


def axis_of(words: str) -> Axis:
    """One `key=…` of the command line. Raises Refusal."""
    key, equals, text = words.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z0-9_.-]+", key) or not text:
        refuse("command line", "", words, "key.path=a,b,c or key.path=low..high", "for example train.peak_learning_rate=1e-4,1e-3")
    if found := _RANGE.fullmatch(text):
        low, high = float(found[1]), float(found[2])
        whole = all(_WHOLE.fullmatch(end) for end in found.groups())
        if not low < high or not math.isfinite(high):
            refuse("command line", key, text, "a range from a smaller to a larger number", f"{key}={found[2]}..{found[1]}")
        return Range(key, int(low) if whole else low, int(high) if whole else high, low > 0 and high / low >= LOG_FROM, whole)
    values = tuple(parse_yaml(part, f"command line, {key}").value for part in _parts(text))
    if len({json.dumps(v, sort_keys=True) for v in values}) < len(values):
        refuse("command line", key, text, "each value once", "remove the repeated one")
    return Values(key, values)


def plain_and_varied(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What has one value is an override of every run; the rest is varied."""
    varied = [word for word in words if len(set(map(str, axis_of(word).ends))) > 1]
    return [word for word in words if word not in varied], varied


def _parts(text: str) -> Iterator[str]:
    """The text between commas that stand outside of brackets and quotes."""
    depth, quote, start = 0, "", 0
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth == 0:
            yield text[start:at].strip()
            start = at + 1
    yield text[start:].strip()


def axes_of(words: Sequence[str], recipe: Recipe, objective: str) -> list[Axis]:
    """All of them. Raises Refusal with every key that cannot be swept."""
    if not words:
        refuse("command line", "", "nothing to vary", "key=a,b,c or key=low..high", "tuner sweep RECIPE train.peak_learning_rate=1e-4,1e-3")
    axes = [axis_of(word) for word in words]
    problems = Collector()
    cut = recipe.data.cut.validation > 0 or recipe.data.cut.held_out > 0
    for number, axis in enumerate(axes):
        section = axis.key.partition(".")[0]
        if axis.key in {other.key for other in axes[:number]}:
            problems.add("command line", axis.key, "the key again", "each key once", "put all its values into one list")
        elif section in FIXED:
            problems.add("command line", axis.key, "a key that stays the same in a sweep", FIXED[section], "sweep method, train, base.load, seed or template")
        elif section == "seed" and cut:
            problems.add("command line", axis.key, "the seed, by which validation is cut from train", "runs on the same records", "give validation as a file")
        elif objective == "validation_loss" and (section == "template" or (section == "base" and axis.key != "base.load")):
            problems.add("command line", axis.key, "losses over other tokens, which cannot be compared", "a metric of answers",
                         "add --objective with a name from `tuner show metrics`")  # fmt: skip
    problems.raise_if_any()
    return axes


def grid(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Every combination, the last key varying fastest. Raises Refusal on a range."""
    for axis in axes:
        if isinstance(axis, Range):
            refuse("command line", axis.key, f"the range {axis.low:g}..{axis.high:g} in a grid", "a list of values, or a number of trials", "add --trials 20")
    return [dict(zip([a.key for a in axes], chosen, strict=True)) for chosen in itertools.product(*(a.values for a in axes if isinstance(a, Values)))]


def corners(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """For every end of every key, the others at their first one: what is checked before a search."""
    first = {axis.key: axis.ends[0] for axis in axes}
    found = [first, *(first | {axis.key: end} for axis in axes for end in axis.ends[1:])]
    return [*found, {axis.key: axis.ends[-1] for axis in axes}]
