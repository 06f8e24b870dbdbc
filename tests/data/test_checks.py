"""Every check of the catalogue finds its fault and leaves good records alone; every action does what it says. Samples: tests/data/samples."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.data.samples import CONTROL_TEXTS, Row, Sample, all_samples, chat, count_words, examined, pair, places, written
from tuner.data.checks import CHECKS, READING
from tuner.data.checks.sameness import SAMENESS
from tuner.data.doctor import Checked, examine, refuse_wrong_actions
from tuner.data.findings import SEVERITY, Scene, Severity
from tuner.data.spec import Action, DataSpec
from tuner.data.splits import read_splits
from tuner.errors import Refusal

SAMPLES = all_samples()
EACH_SAMPLE = [pytest.param(name, sample, id=f"{name}-{number}") for name, of in sorted(SAMPLES.items()) for number, sample in enumerate(of, 1)]
NASTY = "\x1b[2J\u202e\x9b\u200b\n"


def test_every_check_of_the_catalogue_has_a_failing_and_a_passing_sample() -> None:
    looking = {name for name, check in CHECKS.items() if check.each is not None or check.whole is not None}
    without, unknown = ", ".join(sorted(looking - SAMPLES.keys())), ", ".join(sorted(SAMPLES.keys() - looking))
    assert not without, f"checks without a sample in tests/data/samples: {without}"
    assert not unknown, f"samples of checks that are not in the catalogue: {unknown}"
    assert all(of and all(list(s.expected) and s.clean for s in of) for of in SAMPLES.values()) and len(looking) >= 10
    assert {name for name, check in CHECKS.items() if check.each is None and check.whole is None and not check.needs_base} == READING.keys()


@pytest.mark.parametrize(("name", "sample"), EACH_SAMPLE)
def test_a_check_finds_its_fault_at_its_places_and_nothing_in_good_records(name: str, sample: Sample, tmp_path: Path) -> None:
    checked = examined(name, sample, sample.splits, tmp_path)
    assert places(checked.findings) == sorted(sample.expected)
    for finding in checked.findings:
        assert finding.check == name and finding.severity == ("warning" if finding.line else "note")  # what is said of a file refuses nothing
        assert finding.code.isupper() and finding.field and finding.found and finding.accepted and finding.fix
        assert len(finding.record_id) == (12 if finding.line else 0)
        assert finding.problem().where == (f"{finding.file}:{finding.line}" if finding.line else finding.file)
    assert examined(name, sample, sample.clean, tmp_path).findings == []


@pytest.mark.parametrize(("name", "sample", "action"), [(*p.values, action) for p in EACH_SAMPLE for action in CHECKS[str(p.values[0])].actions])
def test_an_action_sets_severity_and_only_drop_removes_records(name: str, sample: Sample, action: Action, tmp_path: Path) -> None:
    checked = examined(name, sample, sample.splits, tmp_path, action)
    expected = sorted(sample.expected) if action != "off" else []
    emptied = {split for split, records in checked.splits.records.items() if not records}
    assert {f.split for f in checked.findings if f.code == "NOTHING_LEFT" and f.severity == "error"} == emptied
    told = [f for f in checked.findings if f.code != "NOTHING_LEFT"]
    assert places(told) == expected
    assert all(f.severity == (SEVERITY[action] if f.line else "note") for f in told)
    marked = Counter({(split, line) for split, line, _ in expected if line}) if action == "drop" else Counter()
    before = Counter((split, line) for split, rows in sample.splits.items() if split != "production" for line in range(1, len(rows) + 1))
    after = Counter((r.split, r.line) for rows in checked.splits.records.values() for r in rows)
    assert after == before - marked
    _assert_accounted(checked)
    refused = [place for place in expected if place[1]]
    if action == "refuse" and refused:
        with pytest.raises(Refusal) as caught:
            checked.raise_if_refused()
        assert len(caught.value.problems) == len(refused)
    elif emptied:
        with pytest.raises(Refusal, match="no records left after checks"):
            checked.raise_if_refused()
    else:
        checked.raise_if_refused()


def _assert_accounted(checked: Checked) -> None:
    """read = kept + dropped + rejected, of every file; and the context tells the same of every record that was kept."""
    dropped: Counter[str] = Counter()
    for by_file in checked.dropped.values():
        dropped.update(by_file)
    for account in checked.splits.accounts:
        kept = sum(r.file == account.file for r in checked.splits[account.split])
        if account.split != "production":
            assert account.read == kept + dropped.pop(account.file, 0) + account.rejected
    assert not +dropped
    context = checked.context
    assert list(context.records) == [r for rows in checked.splits.records.values() for r in rows]
    assert len(context.measures.exact) == len(context.measures.bands) == len(context.measures.tokens) == len(context.records)
    assert context.split_of == [r.split for r in context.records]


@pytest.mark.parametrize(("name", "sample"), [p for p in EACH_SAMPLE if "drop" in CHECKS[str(p.values[0])].actions])
def test_what_drop_leaves_passes_the_same_check(name: str, sample: Sample, tmp_path: Path) -> None:
    kept = examined(name, sample, sample.splits, tmp_path, "drop").splits
    spec = DataSpec.model_validate({"train": "train.jsonl", **{k: v for k, v in sample.data.items() if k not in kept.records}, "checks": {name: "warn"}})
    again = examine(kept, Scene(spec, sample.max_tokens, None, CONTROL_TEXTS), {**READING, name: CHECKS[name]}, count_words)
    assert [f for f in again.findings if f.line] == []


def test_every_action_has_a_severity() -> None:
    assert SEVERITY.keys() == set(get_args(Action)) and len(SEVERITY) == 4 and set(SEVERITY.values()) == set(get_args(Severity))


def test_a_record_dropped_by_two_checks_is_counted_once(tmp_path: Path) -> None:
    rows = [pair("a", "x", id=1), pair("a", "x", id=1), pair("a", "x y z", id=1), pair("b", "x", id=2)]
    names = ("exact_duplicates", "contradictions", "repeated_ids", "overlong")
    spec, splits = written({"train": rows}, {"references": "one", "checks": dict.fromkeys(names, "drop")}, tmp_path)
    checked = examine(splits, Scene(spec, 3), CHECKS, count_words)
    own = [f for f in checked.findings if f.severity == "note"]
    assert Counter(f.check for f in own) == {"exact_duplicates": 1, "contradictions": 3, "repeated_ids": 2, "overlong": 1}
    assert {name: dict(by_file) for name, by_file in checked.dropped.items() if by_file} == {
        "overlong": {"train.jsonl": 1}, "exact_duplicates": {"train.jsonl": 1}, "contradictions": {"train.jsonl": 1}
    }  # fmt: skip
    assert checked.dropped["repeated_ids"] == {}  # line 2 was gone, line 3 too
    assert [r.line for r in checked.splits["train"]] == [4]
    _assert_accounted(checked)


def test_a_record_that_a_check_of_single_records_drops_is_not_compared_with_others(tmp_path: Path) -> None:
    rows = [pair("q\u202e", "x"), pair("q\u202e", "x"), pair("r", "x"), pair("r", "x")]
    spec, splits = written({"train": rows}, {"checks": {"hidden_characters": "drop", "exact_duplicates": "drop"}}, tmp_path)
    checked = examine(splits, Scene(spec), CHECKS)
    assert checked.dropped["hidden_characters"] == {"train.jsonl": 2} and checked.dropped["exact_duplicates"] == {"train.jsonl": 1}
    assert [r.line for r in checked.splits["train"]] == [3]


def test_an_action_that_a_check_cannot_take_is_refused() -> None:
    """What nobody could read cannot be kept; a finding that stands for many records drops none; a mere note refuses nothing."""
    refused = 0
    for name, check in CHECKS.items():
        for action in get_args(Action):
            spec = DataSpec.model_validate({"train": "a", "checks": {name: action}})
            if action in check.actions:
                refuse_wrong_actions(CHECKS, spec, lambda name: f"recipe:{name}")
                continue
            with pytest.raises(Refusal) as caught:
                refuse_wrong_actions(CHECKS, spec, lambda name: f"recipe:{name}")
            (problem,) = caught.value.problems
            assert (problem.where, problem.field, problem.found) == (f"recipe:{name}", f"data.checks.{name}", action)
            refused += 1
    assert refused == 3 + 3 * 2 + 5 * 2 + 3
    assert CHECKS["files"].actions == ("refuse",) and all(CHECKS[name].actions == ("refuse", "drop") for name in READING if name not in {"files", "boundary"})
    assert all(check.default in check.actions and set(check.by_task.values()) <= set(check.actions) for check in CHECKS.values())


def test_unknown_checks_are_refused_all_at_once_and_the_nearest_name_is_offered() -> None:
    spec = DataSpec.model_validate({"train": "a", "checks": {"exact_duplicate": "drop", "files": "off", "nonsense": "warn"}})
    with pytest.raises(Refusal) as caught:
        refuse_wrong_actions(CHECKS, spec, lambda name: f"recipe:{name}")
    assert [p.where for p in caught.value.problems] == ["recipe:exact_duplicate", "recipe:files", "recipe:nonsense"]
    assert "exact_duplicates" in caught.value.problems[0].try_


def test_records_that_cannot_be_read_are_dropped_or_refused_and_counted_either_way(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "x"}\n{"prompt": "b"\n{"prompt": "c", "completion": 3}\n', encoding="utf-8")
    for action in ("refuse", "drop"):
        spec = DataSpec.model_validate({"train": "train.jsonl", "checks": {"unreadable": action, "structure": action}})
        checked = examine(read_splits(spec, tmp_path, 0), Scene(spec), CHECKS)
        assert [(f.check, f.line, f.severity) for f in checked.findings] == [("unreadable", 2, SEVERITY[action]), ("structure", 3, SEVERITY[action])]
        assert [(a.read, a.rejected) for a in checked.splits.accounts] == [(3, 2)] and len(checked.splits["train"]) == 1


def test_a_finding_never_carries_a_raw_control_character(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    for number, (name, sample) in enumerate((name, sample) for name, of in SAMPLES.items() for sample in of):
        nasty = {split: [_with_control_characters(row) for row in rows] for split, rows in sample.splits.items()}
        folder = tmp_path / str(number)
        folder.mkdir()
        cheap = {n for n, check in CHECKS.items() if check.each is not None} | SAMENESS.keys() | {name}
        spec, splits = written(nasty, {**sample.data, "checks": {n: "warn" if n in cheap else "off" for n in CHECKS.keys() - READING.keys()}}, folder)
        for finding in examine(splits, Scene(spec, sample.max_tokens, None, CONTROL_TEXTS), CHECKS, count_words).findings:
            raw = [c for value in finding.as_dict().values() for c in str(value) if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}]
            assert raw == [], (name, finding)
            seen[finding.check] += 1
    assert len(seen) >= len(SAMPLES) // 2 and seen.total() > 100


def test_a_finding_never_shows_a_persons_data(tmp_path: Path) -> None:
    values = ("anna.kowalska@brandtmail.net", "4539 1488 0343 6467", "ASIAQ4GW5JTXM2RLK7BZ")
    seen: Counter[str] = Counter()
    for number, value in enumerate(values):
        rows: list[Row] = [
            pair(f"card or key {value}", f"it is {value}"), pair(f"card or key {value}", f"it is not {value}"), pair(f"card or key {value}!", f"it is {value}"),
            pair(f"card or key <|end|> {value}", f" key {value} "), pair("CafÃ© Zürich", f"the café’s key {value}".encode().decode("cp1252")),
            pair(f"say {value}\u200b", "."), pair(f"A &amp; B {value}", f"AT&amp;T {value}"), pair("a", "x", id=f"card {value}"),
            pair("b", "x", id=f"card {value}"), pair("c", "x", source=f"card {value}"), pair("d", "x", as_of=f"key {value}"),
            pair(f"card {value}\n\nnoinput", f"As an AI language model, card {value}"),
            chat(("system", f"key {value} <|end|>"), ("user", f"card {value}"), ("assistant", f"key {value}")),
        ]  # fmt: skip
        folder = tmp_path / str(number)
        folder.mkdir()
        held_out = [pair(f"card or key {value}", "x"), pair(f"card {value}", f"label {value}")]
        for task in ("label", "text", "json"):
            data = {"task": task, "references": "one", "checks": dict.fromkeys(CHECKS.keys() - READING.keys() - {"suspect_labels"}, "warn")}
            spec, splits = written({"train": rows, "held_out": held_out}, data, folder)
            for finding in examine(splits, Scene(spec, 3, None, CONTROL_TEXTS), CHECKS, count_words).findings:
                assert not any(value in str(of) for of in finding.as_dict().values()), (finding.check, finding)
                seen[finding.check] += 1
    assert len(seen) >= 15


def _with_control_characters(row: Row) -> dict[str, Any]:
    """The row with nasty characters behind every text, its columns' names and its values; what decides its meaning stays."""
    shape = {"prompt", "completion", "messages"}
    dirty: dict[str, Any] = {k: f"{v}{NASTY}" if isinstance(v, str) and k in {"prompt", "completion"} else v for k, v in row.items()}
    dirty = {k: f"{v}{NASTY}" if k not in shape and isinstance(v, str) and k not in {"source", "as_of"} else v for k, v in dirty.items()}
    if "messages" in dirty:
        dirty["messages"] = [{**m, "content": f"{m['content']}{NASTY}"} if m.get("content") else m for m in dirty["messages"]]
    return dirty | {f"column {NASTY}": NASTY}


def test_defaults_follow_the_task() -> None:
    by_task = {task: DataSpec.model_validate({"train": "a", "task": task}) for task in ("text", "label", "json")}
    assert CHECKS["contradictions"].action(by_task["text"], "contradictions") == "warn"
    assert {CHECKS["contradictions"].action(by_task[task], "contradictions") for task in ("label", "json")} == {"refuse"}
    said = DataSpec.model_validate({"train": "a", "task": "label", "checks": {"contradictions": "off"}})
    assert CHECKS["contradictions"].action(said, "contradictions") == "off"
    for name in ("overlap", "near_overlap", "overlong", *(READING.keys() - {"boundary"})):
        assert {CHECKS[name].action(spec, name) for spec in by_task.values()} == {"refuse"}


def test_findings_stand_by_check_in_the_order_of_the_catalogue_and_by_line(tmp_path: Path) -> None:
    rows = [pair("b", "x", id=1), pair("a", "x", id=1), pair("a", "x", id=2), pair("b", "x", id=2), chat(("user", "q"), ("assistant", "x"))]
    _, splits = written({"train": rows[:4]}, {}, tmp_path)
    spec = DataSpec.model_validate({"train": "train.jsonl"})
    found = [(f.check, f.line) for f in examine(splits, Scene(spec), CHECKS).findings if f.check in {"exact_duplicates", "repeated_ids"}]
    assert found == [("exact_duplicates", 3), ("exact_duplicates", 4), ("repeated_ids", 2), ("repeated_ids", 4)]
