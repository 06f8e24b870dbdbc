"""The chosen answers, side by side, cut so that the page stays below 2 MB whatever the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuner.report.answers import BOTH_RIGHT, BOTH_WRONG, IN_TURN
from tuner.report.words import Report, View, ordered, way

TEXT_BUDGET = 150_000  # characters of all examples together
TEXT_LIMITS = (4000, 2000, 1000, 500, 250, 120, 60)
MOST_REFERENCES = 3
KINDS = {"won": ("won", "▲"), "lost": ("lost", "▼"), "changed": ("changed", "◆"), "both wrong": ("wrong", "●")}


def examples(report: Report) -> View:
    """The items, the suites they are from, and how many of each kind there are among all items."""
    chosen = report["examples"]
    named = {name: i for i, (name, _) in enumerate(ordered(report))}
    items = [_item(e, named) for e in chosen]
    texts = [t for e in items for t in (e["question"], e["baseline"], e["adapter"], *e["references"])]
    return {
        "items": items,
        "count": len(items),
        "kinds": [kind for kind in KINDS if any(e["change"] == kind for e in items)],
        "classes": {kind: KINDS[kind][0] for kind in KINDS},
        "suites": [{"index": i, "name": name} for name, i in named.items() if any(e["suite"] == name for e in items)],
        "limit": _text_limit(texts),
        "columns": (*IN_TURN, BOTH_WRONG, BOTH_RIGHT),
        "changes": [{"name": name, "key": f"suite-{i}", "metric": report["suites"][name]["lead"], "of": report["changes"][name]}
                    for name, i in named.items() if name in report["changes"]],
    }  # fmt: skip


def _item(example: Mapping[str, Any], named: Mapping[str, int]) -> View:
    kind, sign = KINDS.get(example["change"], ("other", "●"))
    references = example["references"]
    return {**example, "index": named[example["suite"]], "kind": kind, "sign": sign, "way": way(example["baseline_name"]),
            "references": references[:MOST_REFERENCES], "more": max(0, len(references) - MOST_REFERENCES)}  # fmt: skip


def _text_limit(texts: list[str]) -> int:
    """The longest limit (characters of one text) under which all texts together stay within TEXT_BUDGET."""
    return next((limit for limit in TEXT_LIMITS if sum(min(len(t), limit) for t in texts) <= TEXT_BUDGET), TEXT_LIMITS[-1])
