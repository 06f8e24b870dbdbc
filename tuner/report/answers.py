"""Which answers the report shows: the few from which a reader learns most, chosen by a rule that anyone can apply again to answers.jsonl.

It refuses to choose by hand or to hide losses: losses come first, and how many of each kind there are is said beside them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

EXAMPLES = 20
LOST, WON, CHANGED, BOTH_WRONG, BOTH_RIGHT = "lost", "won", "changed", "both wrong", "both right"
IN_TURN = (LOST, WON, CHANGED)
ADAPTER = "adapter"

Example = dict[str, Any]
Suites = Mapping[str, Mapping[str, Any]]


def paired(answers: Iterable[Mapping[str, Any]], suites: Suites) -> dict[str, list[Example]]:
    """Every item that has the adapter's answer and its baseline's, by suite, judged by the suite's leading metric (`lead`).

    Rows that do not carry that metric are about something else. One that carries it without a value (macro-F1 has none for a single item) is judged by
    whether the answer is a reference.
    """
    sides = {name: {ADAPTER: "ours", s["differences"][s["lead"]]["baseline"]: "theirs"} for name, s in suites.items() if s.get("lead")}
    items: dict[str, dict[Any, dict[str, Mapping[str, Any]]]] = {name: defaultdict(dict) for name in sides}
    for row in answers:
        side = sides.get(row["suite"], {}).get(row["contender"])
        if side is not None and isinstance(row.get("answer"), str) and suites[row["suite"]]["lead"] in row["scores"]:
            items[row["suite"]][row["item"]][side] = row
    return {name: [_example(name, item, pair, suites[name]) for item, pair in of.items() if len(pair) == 2] for name, of in items.items()}


def changes(pairs: Mapping[str, Sequence[Example]]) -> dict[str, dict[str, int]]:
    """How many of a suite's items were won, lost, and so on: what the chosen examples are drawn from."""
    return {name: dict(Counter(e["change"] for e in of)) for name, of in pairs.items() if of}


def instructive(pairs: Mapping[str, Sequence[Example]], most: int = EXAMPLES) -> list[Example]:
    """At most `most` examples over all suites: a loss, a gain and a changed answer in turn, then what both got wrong.

    Of each kind the role shown least so far, and of it the suite shown least, gives its greatest change; the same question is not shown in two
    suites while another is left. What both got right is never shown.
    """
    waiting = {kind: {name: _ranked(of, kind) for name, of in pairs.items()} for kind in (*IN_TURN, BOTH_WRONG)}
    chosen: list[Example] = []
    while len(chosen) < most:
        before = len(chosen)
        for kind in IN_TURN:
            chosen += _next(waiting[kind], chosen)
        if len(chosen) == before:
            chosen += _next(waiting[BOTH_WRONG], chosen)
        if len(chosen) == before:
            break
    return chosen[:most]


def _ranked(examples: Sequence[Example], kind: str) -> list[Example]:
    return sorted((e for e in examples if e["change"] == kind), key=lambda e: -abs(e["gain"]))


def _next(waiting: dict[str, list[Example]], chosen: Sequence[Example]) -> list[Example]:
    """The next example of a kind, taken out of `waiting`; none when there is none."""
    shown, roles = Counter(e["suite"] for e in chosen), Counter(e["role"] for e in chosen)
    seen = {e["where"] for e in chosen if e["where"]}
    left = [name for name, of in waiting.items() if of]
    if not left:
        return []
    unseen = {name: next((i for i, e in enumerate(waiting[name]) if e["where"] not in seen), None) for name in left}
    name = min(left, key=lambda n: (unseen[n] is None, roles[waiting[n][0]["role"]], shown[n], left.index(n)))
    return [waiting[name].pop(unseen[name] or 0)]


def _example(suite: str, item: Any, pair: Mapping[str, Mapping[str, Any]], of: Mapping[str, Any]) -> Example:
    ours, theirs, lead = pair["ours"], pair["theirs"], of["lead"]
    references = _references(ours)
    scored = ours["scores"].get(lead) is not None and theirs["scores"].get(lead) is not None
    mine = float(ours["scores"][lead]) if scored else float(ours["answer"] in references)
    other = float(theirs["scores"][lead]) if scored else float(theirs["answer"] in references)
    higher = of["metrics"][lead]["higher_is_better"]
    gain = mine - other if higher else other - mine
    return {
        "suite": suite, "item": item, "where": str(ours.get("where") or ""), "question": _question(ours), "references": references,
        "adapter": ours["answer"], "baseline": theirs["answer"], "baseline_name": theirs["contender"], "adapter_score": mine, "baseline_score": other,
        "role": of["role"], "gain": gain, "metric": lead, "change": _change(gain, mine, ours["answer"] == theirs["answer"], higher),
    }  # fmt: skip


def _change(gain: float, mine: float, same_answer: bool, higher_is_better: bool) -> str:
    if gain:
        return WON if gain > 0 else LOST
    if higher_is_better and mine >= 1:
        return BOTH_RIGHT
    return BOTH_WRONG if same_answer else CHANGED


def _references(row: Mapping[str, Any]) -> list[str]:
    found = row.get("references") or ([row["reference"]] if row.get("reference") is not None else [])
    return [str(r) for r in found]


def _question(row: Mapping[str, Any]) -> str:
    """The last message of a conversation, or the question as it stands."""
    asked = row.get("question") or row.get("prompt") or ""
    return asked if isinstance(asked, str) else str(asked[-1].get("content") or "")
