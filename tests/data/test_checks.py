"""Every check of the catalogue finds its fault and leaves good records alone; every action does what it says."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import pytest

from tuner.data.checks import CHECKS
from tuner.data.findings import SEVERITY, Checked, Context, run_checks
from tuner.data.record import Message, Record, Role
from tuner.data.spec import Action, DataSpec
from tuner.data.splits import Splits
from tuner.errors import Refusal

Pair = tuple[str, str]  # prompt, completion

GOOD: dict[str, list[Pair]] = {
    "train": [("how are you", "fine"), ("who is it", "me"), ("what now", "fine")],
    "held_out": [("where to", "me")],
}
GOOD_JSON: dict[str, list[Pair]] = {"train": [("a", '{"x": 1}'), ("b", "{}"), ("c", '{"x": "\\u00e9"}')]}

# check: (task, splits with the fault, places of its findings, splits without it)
SAMPLES: dict[str, tuple[str, dict[str, list[Pair]], list[str], dict[str, list[Pair]]]] = {
    "empty_completion": ("text", {"train": [("a", "x"), ("b", ""), ("c", " \n\t"), ("d", "\u200b\ufeff\u00a0"), ("e", "\u3000.")]},
                         ["train:2", "train:3", "train:4"], GOOD),
    "empty_prompt": ("text", {"train": [("a", "x"), ("", "y")], "held_out": [("\u00a0\u2060", "z")]}, ["train:2", "held_out:1"], GOOD),
    "json_completion": ("json", {"train": [("a", "{}"), ("b", "[1]"), ("c", "{"), ("d", "{} {}"), ("e", "null"), ("f", '{"n": ' + "9" * 5000 + "}"),
                                           ("g", "[" * 100_000)], "held_out": [("h", "x")]},
                        [*(f"train:{i}" for i in range(2, 8)), "held_out:1"], GOOD_JSON),
    "padded_label": ("label", {"train": [("a", "yes"), ("b", " yes"), ("c", "yes\n")]}, ["train:2", "train:3"], GOOD),
    "control_tokens": ("text", {"train": [("a <|end|> b", "x"), ("b", "y"), ("c", "<|end|>")]}, ["train:1", "train:3"], GOOD),
    "exact_duplicates": ("text", {"train": [("a", "x"), ("b", "y"), ("a", "x"), ("a", "x"), ("a", "z")], "held_out": [("q", "x"), ("q", "x")]},
                         ["train:3", "train:4", "held_out:2"], GOOD),
    "contradictions": ("text", {"train": [("a", "x"), ("b", "y"), (" A ", "z"), ("a", "X")], "held_out": [("c", "1"), ("b", "2")]},
                       ["train:1", "train:3", "train:4"], GOOD),
    "overlap": ("text", {"train": [("a", "x"), ("b", "y"), ("A", "z")], "validation": [("c", "x")], "held_out": [("a", "x"), ("c", "q"), ("a", "y")],
                         "ood.far": [("d", "x"), ("b", "y")]}, ["train:1", "train:3", "validation:1", "train:2"], GOOD),
    "unseen_label": ("label", {"train": [("a", "x"), ("b", "y")], "held_out": [("c", "x"), ("d", "new"), ("e", "new")], "ood.far": [("f", "new")]},
                     ["held_out:2", "ood.far:1"], GOOD),
    "overlong": ("text", {"train": [("a b c", "d e"), ("a b c", "d e f"), ("a b c d e f", "g")]}, ["train:2", "train:3"], GOOD),
}  # fmt: skip


def context(task: str, splits: dict[str, list[Pair]], max_tokens: int = 5) -> Context:
    """Tokens are words; `<|end|>` is the one special token."""
    records = {
        split: [Record((Message("user", p), Message("assistant", c)), split, line, split) for line, (p, c) in enumerate(pairs, 1)]
        for split, pairs in splits.items()
    }
    tokens = {(r.file, r.line): (len(r.messages[0].content.split()), len(r.completion.split())) for rows in records.values() for r in rows}
    return Context(Splits(records, ()), task, max_tokens, frozenset({"<|end|>"}), tokens)


def run(names: list[str], task: str, splits: dict[str, list[Pair]], **actions: str) -> Checked:
    spec = DataSpec.model_validate({"train": "train", "task": task, "checks": actions})
    return run_checks({name: CHECKS[name] for name in names}, context(task, splits), spec)


def places(checked: Checked) -> list[str]:
    return [f"{f.file}:{f.line}" for f in checked.findings]


def test_every_check_of_the_catalogue_has_a_failing_and_a_passing_sample() -> None:
    assert SAMPLES.keys() == CHECKS.keys() and len(CHECKS) >= 10


@pytest.mark.parametrize("name", SAMPLES)
def test_a_check_finds_its_fault_at_its_places_and_nothing_in_good_records(name: str) -> None:
    task, bad, expected, good = SAMPLES[name]
    found = run([name], task, bad)
    assert sorted(places(found)) == sorted(expected)
    for finding in found.findings:
        assert finding.check == name and finding.code and finding.field and finding.found and finding.accepted and finding.fix
        assert len(finding.record_id) == 12 and finding.problem().where == f"{finding.file}:{finding.line}"
    assert places(run([name], task, good)) == []


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("action", get_args(Action))
def test_an_action_sets_severity_and_only_drop_removes_records(name: str, action: str) -> None:
    task, bad, expected, _ = SAMPLES[name]
    checked = run([name], task, bad, **{name: action})
    before = Counter(f"{split}:{line}" for split, pairs in bad.items() for line in range(1, len(pairs) + 1))
    after = Counter(r.where for rows in checked.splits.records.values() for r in rows)
    dropped = Counter({split: n for by_file in checked.dropped.values() for split, n in by_file.items()})
    if action == "off":
        assert checked.findings == [] and after == before
        return
    severity = {"refuse": "error", "warn": "warning", "drop": "note"}[action]
    assert {f.severity for f in checked.findings} == {severity} and checked.count(severity) == len(expected) == len(checked.findings)  # type: ignore[arg-type]
    assert after == (before - Counter(expected) if action == "drop" else before)
    assert dropped == (Counter(place.rpartition(":")[0] for place in set(expected)) if action == "drop" else {})
    assert before.total() == after.total() + dropped.total()  # read = kept + dropped
    if action == "refuse":
        with pytest.raises(Refusal) as caught:
            checked.raise_if_refused()
        assert [p.where for p in caught.value.problems] == places(checked)
    else:
        checked.raise_if_refused()


def test_every_action_has_a_severity() -> None:
    assert SEVERITY.keys() == set(get_args(Action)) and len(SEVERITY) == 4


def test_a_record_dropped_by_two_checks_is_counted_once() -> None:
    bad: dict[str, list[Pair]] = {"train": [("a", "{}"), ("", ""), ("b", "[]"), ("", "x")]}
    checked = run(["empty_completion", "empty_prompt", "json_completion"], "json", bad, empty_completion="drop", empty_prompt="drop", json_completion="drop")
    assert checked.dropped == {"empty_completion": {"train": 1}, "empty_prompt": {"train": 1}, "json_completion": {"train": 1}}
    assert [r.line for r in checked.splits["train"]] == [1] and len(checked.findings) == 6


def test_dropping_duplicates_keeps_the_first_and_dropping_contradictions_keeps_none() -> None:
    assert [r.line for r in run(["exact_duplicates"], "text", SAMPLES["exact_duplicates"][1], exact_duplicates="drop").splits["train"]] == [1, 2, 5]
    assert [r.line for r in run(["contradictions"], "text", SAMPLES["contradictions"][1], contradictions="drop").splits["train"]] == [2]


def test_defaults_follow_the_task() -> None:
    by_task = {task: {name: check.action(task) for name, check in CHECKS.items()} for task in ("text", "label", "json")}
    assert by_task["text"]["contradictions"] == "warn" and by_task["label"]["contradictions"] == by_task["json"]["contradictions"] == "refuse"
    for name in ("empty_completion", "empty_prompt", "overlap", "overlong"):
        assert {by_task[task][name] for task in by_task} == {"refuse"}
    for name, task in (("json_completion", "json"), ("padded_label", "label"), ("unseen_label", "label")):
        for other in {"text", "label", "json"} - {task}:
            assert places(run([name], other, SAMPLES[name][1])) == []


def test_a_finding_names_the_other_record_or_the_other_answer() -> None:
    found = {name: run([name], SAMPLES[name][0], SAMPLES[name][1]).findings for name in ("exact_duplicates", "contradictions", "overlap")}
    assert found["exact_duplicates"][0].found == "the same as train:1"
    assert "train:1 says 'x'" in found["contradictions"][0].found and "train:3 says 'z'" in found["contradictions"][0].found
    assert found["contradictions"][0].found.startswith("2 answers")  # 'x' and 'X' are one
    assert "train (train:1) and held_out (held_out:1)" in found["overlap"][0].found


def test_a_finding_never_carries_a_raw_control_character() -> None:
    nasty = "\x1b[2J\u202e"
    bad: dict[str, list[Pair]] = {"train": [("a", nasty), ("a", f" {nasty}x "), ("<|end|>", "x")], "held_out": [("a", nasty + "new")]}
    swept = 0
    for task in ("label", "json", "text"):
        for finding in run(list(CHECKS), task, bad).findings:
            assert not {"\x1b", "\u202e"} & set("".join(map(str, finding.as_dict().values())))
            swept += 1
    assert swept >= 15


def test_checks_see_every_turn_and_the_system_prompt() -> None:
    def chat(line: int, *turns: tuple[Role, str]) -> Record:
        return Record(tuple(Message(role, text) for role, text in turns), "a", line, "train")

    rows = [
        chat(1, ("system", "one"), ("user", "q"), ("assistant", "x")),
        chat(2, ("system", "two"), ("user", "q"), ("assistant", "y")),
        chat(3, ("user", "q"), ("assistant", "earlier <|end|>"), ("user", " "), ("assistant", "z")),
        chat(4, ("system", ""), ("user", "r"), ("assistant", "z")),
    ]
    spec: Any = DataSpec.model_validate({"train": "a"})
    found = run_checks(CHECKS, Context(Splits({"train": rows}, ()), "text", 99, frozenset({"<|end|>"})), spec).findings
    assert [(f.check, f.line, f.field) for f in found] == [("empty_prompt", 3, "messages[2]"), ("control_tokens", 3, "messages[1]")]
