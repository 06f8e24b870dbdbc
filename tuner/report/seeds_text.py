"""Several seeds of one recipe as text: mean over seeds with its interval, what each seed gave, and the difference from the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuner.report import numbers
from tuner.safe_text import visible


def seeds_text(found: Mapping[str, Any]) -> str:
    """Lines without markup, from tuner.evaluate.seeds.over_seeds, the primary metric's suites first."""
    primary = found["primary"]
    labels = [visible(label) for label in found["versions"]]
    lines = [f"over {len(labels)} training seeds ({', '.join(labels)}), 95 % intervals over seeds and items:"]
    lines += [_line(suite, primary, of) for suite, of in found["suites"].items() if primary in of["values"]]
    others = [(suite, name, of) for suite, of in found["suites"].items() if primary not in of["values"] for name in of["values"]]
    lines += [_line(suite, name, of) for suite, name, of in others if name in ("overall", "text_loss", "abstained", "confident_wrong")]
    return "\n".join(lines)


def _line(suite: str, metric: str, of: Mapping[str, Any]) -> str:
    value, difference = of["values"][metric], of["differences"].get(metric)
    each = ", ".join(numbers.value(one) for one in value["spread"]["values"])
    words = f"  {visible(suite):16} {visible(metric)} {numbers.value(value['value'])} {numbers.interval(value)}, by seed {each}"
    if difference is None:
        return words
    gap = f"{numbers.signed(difference['value'])} {numbers.signed_interval(difference)}"
    return f"{words}; against {visible(difference['baseline'])} {gap}, {visible(difference['verdict'])}"
