"""Cutting splits by seed and content, and finding what two splits share."""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import colour_rows, jsonl
from tuner.data.checks import CHECKS
from tuner.data.doctor import examine
from tuner.data.findings import Scene
from tuner.data.record import Message, Record, normalised
from tuner.data.spec import CutSpec, DataSpec, SourceSpec
from tuner.data.splits import Splits, cut_records, read_splits
from tuner.errors import Refusal

SPLITS = ("held_out", "validation", "train")  # in the order of rank: the lowest ranks are held out


def record(prompt: str, completion: str = "x", line: int = 1, split: str = "train", file: str = "a.jsonl", **extra: Any) -> Record:
    return Record((Message("user", prompt), Message("assistant", completion)), file, line, split, extra)


def random_records(seed: int, count: int, prompts: int, labels: int = 3, start: int = 1) -> list[Record]:
    dice = random.Random(seed)
    numbers = [dice.randrange(prompts) for _ in range(count)]
    return [record(f"question {n}", f"label{n % labels}", start + i, customer=f"c{n % 7}") for i, n in enumerate(numbers)]


def homes(parts: dict[str, list[Record]]) -> dict[str, str]:
    return {r.where: split for split, rows in parts.items() for r in rows}


# --- cutting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stratify", [False, True])
@pytest.mark.parametrize("group_by", [None, "customer"])
def test_held_out_validation_and_train_are_all_records_once_in_order(stratify: bool, group_by: str | None) -> None:
    swept = 0
    for seed in range(10):
        records = random_records(seed, 300, 80)
        cut = CutSpec(validation=0.1, held_out=0.2, stratify=stratify, group_by=group_by)
        parts = cut_records(records, cut, seed)
        assert sorted(r.line for rows in parts.values() for r in rows) == list(range(1, 301))
        for split, rows in parts.items():
            assert rows and all(r.split == split for r in rows)
            assert [r.line for r in rows] == sorted(r.line for r in rows)
        swept += 1
    assert swept == 10


def test_groups_never_straddle() -> None:
    swept = 0
    for seed in range(20):
        parts = cut_records(random_records(seed, 200, 60), CutSpec(validation=0.2, held_out=0.2, group_by="customer"), seed)
        of_customer = defaultdict(set)
        for split, rows in parts.items():
            for r in rows:
                of_customer[r.extra["customer"]].add(split)
        assert all(len(splits) == 1 for splits in of_customer.values())
        swept += len(of_customer)
    assert swept == 140


def test_two_answers_to_one_prompt_stay_together_whatever_its_case_width_or_spacing() -> None:
    forms = ("What is it {}?", "what  is IT {}?", "\tWhat is it {}?\n", "Ｗｈａｔ is it {}?")
    records = [record(form.format(i), f"answer {j}", 4 * i + j + 1) for i in range(50) for j, form in enumerate(forms)]
    where = homes(cut_records(records, CutSpec(validation=0.2, held_out=0.3), 1))
    assert [len({where[f"a.jsonl:{4 * i + j + 1}"] for j in range(4)}) for i in range(50)] == [1] * 50
    assert Counter(where.values()) == {"held_out": 60, "validation": 40, "train": 100}


def naive_homes(records: list[Record], cut: CutSpec, seed: int) -> dict[str, str]:
    """The rule said again, for records with one completion a prompt: rank every prompt by sha256, count from the front."""
    home = {}
    strata = {r.completion if cut.stratify else "" for r in records}
    for stratum in strata:
        members = [r for r in records if not cut.stratify or r.completion == stratum]
        keys = {f"user\x1f{' '.join(r.messages[0].content.lower().split())}" for r in members}
        ranked = sorted(keys, key=lambda key: hashlib.sha256(f"{seed}\x1f{key}".encode()).hexdigest())
        counts = [round(s * len(ranked)) if len(ranked) < 3 or s == 0 else max(1, round(s * len(ranked))) for s in (cut.held_out, cut.validation)]
        for r in members:
            rank = ranked.index(f"user\x1f{r.messages[0].content}")
            home[r.where] = "held_out" if rank < counts[0] else "validation" if rank < sum(counts) else "train"
    return home


@pytest.mark.parametrize("stratify", [False, True])
def test_the_cut_is_the_stated_rule(stratify: bool) -> None:
    for seed in range(12):
        records = random_records(seed, 150, 70, labels=5)
        cut = CutSpec(validation=0.1, held_out=0.25, stratify=stratify)
        assert homes(cut_records(records, cut, seed)) == naive_homes(records, cut, seed)


def test_stratified_shares_hold_within_every_label() -> None:
    sizes = {"red": 100, "green": 40, "blue": 11, "rare": 3, "pair": 2, "single": 1}
    records = [record(f"{label} {i}", label) for label, size in sizes.items() for i in range(size)]
    records = [record(r.messages[0].content, r.completion, line) for line, r in enumerate(records, 1)]
    parts = cut_records(records, CutSpec(validation=0.1, held_out=0.2, stratify=True), 3)
    counts = {split: Counter(r.completion for r in rows) for split, rows in parts.items()}
    assert counts["held_out"] == {"red": 20, "green": 8, "blue": 2, "rare": 1}
    assert counts["validation"] == {"red": 10, "green": 4, "blue": 1, "rare": 1}
    assert counts["train"] == {"red": 70, "green": 28, "blue": 8, "rare": 1, "pair": 2, "single": 1}


def test_the_cut_depends_on_seed_and_content_and_not_on_the_order_of_the_file() -> None:
    records = random_records(1, 200, 100)
    cut = CutSpec(validation=0.1, held_out=0.2, stratify=True)
    first = homes(cut_records(records, cut, 1))
    assert homes(cut_records(records, cut, 1)) == first
    assert homes(cut_records(random.Random(3).sample(records, 200), cut, 1)) == first
    assert homes(cut_records(records, cut, 2)) != first


def test_added_records_never_reorder_the_old_ones() -> None:
    """What holds when m prompts are added to a stratum: every other stratum stays as it was; of two old prompts, the one in the
    earlier split (held_out, validation, train) never ends in a later one than the other; at most 2 m old prompts move."""
    swept = moved = 0
    for seed in range(30):
        dice = random.Random(seed)
        old = [record(f"old {i}", dice.choice(["a", "b"]), i + 1) for i in range(80)]
        more = [record(f"new {i}", "a", 100 + i) for i in range(dice.randrange(1, 30))]
        cut = CutSpec(validation=0.15, held_out=0.25, stratify=True)
        before, after = homes(cut_records(old, cut, seed)), homes(cut_records(old + more, cut, seed))
        assert all(before[r.where] == after[r.where] for r in old if r.completion == "b")
        pairs = [(SPLITS.index(before[r.where]), SPLITS.index(after[r.where])) for r in old if r.completion == "a"]
        assert not [1 for b1, a1 in pairs for b2, a2 in pairs if b1 < b2 and a1 > a2]
        assert sum(b != a for b, a in pairs) <= 2 * len(more)
        moved += sum(b != a for b, a in pairs)
        swept += 1
    assert swept == 30 and moved > 0


def test_another_answer_to_an_old_prompt_moves_nothing_and_joins_it() -> None:
    old = random_records(4, 100, 100)
    more = [record(r.messages[0].content.upper(), "another", 500 + r.line) for r in old[::3]]
    before, after = (homes(cut_records(rows, CutSpec(validation=0.2, held_out=0.2), 1)) for rows in (old, old + more))
    assert all(after[where] == split for where, split in before.items())
    assert all(after[f"a.jsonl:{500 + r.line}"] == before[r.where] for r in old[::3]) and len(more) == 34


def test_a_cut_without_its_group_column_or_without_anything_left_is_refused() -> None:
    records = [record("a", line=1, customer="x"), record("b", line=2)]
    with pytest.raises(Refusal, match=r"a\.jsonl:2  customer"):
        cut_records(records, CutSpec(held_out=0.5, group_by="customer"), 1)
    with pytest.raises(Refusal, match="something left to train on"):
        cut_records([record(str(i), line=i) for i in range(3)], CutSpec(held_out=0.5, validation=0.4), 1)


def test_a_cut_that_cannot_be_made_is_refused_together_with_what_could_not_be_read(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [*colour_rows(1), {"prompt": "x"}, {"completion": "y"}])
    spec = DataSpec.model_validate({"train": "a.jsonl", "cut": {"held_out": 0.5}})
    with pytest.raises(Refusal) as caught:
        read_splits(spec, tmp_path, 1)
    assert [p.where for p in caught.value.problems] == ["a.jsonl:2", "a.jsonl:3", "data.cut"]


def test_a_train_file_that_cannot_be_read_is_a_finding_and_its_cut_is_left_alone(tmp_path: Path) -> None:
    spec = DataSpec.model_validate({"train": "none.jsonl", "cut": {"held_out": 0.5}})
    splits = read_splits(spec, tmp_path, 1)
    assert [f.code for f in splits.findings] == ["MISSING"] and splits.records == {"train": []}


def test_records_that_share_a_line_are_still_cut_one_by_one() -> None:
    parts = cut_records([record(f"question {i}", line=1) for i in range(50)], CutSpec(held_out=0.2), 1)
    assert len(parts["held_out"]) == 10 and len(parts["train"]) == 40
    assert len({r.messages[0].content for rows in parts.values() for r in rows}) == 50


def test_a_group_value_that_is_half_a_character_can_still_be_ranked() -> None:
    records = [record(str(i), line=i, customer=f"\ud83d{i}") for i in range(10)]
    assert len(cut_records(records, CutSpec(held_out=0.3, group_by="customer"), 1)["held_out"]) == 3


def test_a_cut_beside_given_files_leaves_those_as_they_are(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", colour_rows(50))
    jsonl(tmp_path / "held_out.jsonl", colour_rows(9, 100))
    jsonl(tmp_path / "far.jsonl", colour_rows(4, 200))
    spec = DataSpec.model_validate({"train": "train.jsonl", "held_out": "held_out.jsonl", "ood": {"far": "far.jsonl"}, "cut": {"validation": 0.2}})
    splits = read_splits(spec, tmp_path, 1)
    assert {s: len(rows) for s, rows in splits.records.items()} == {"train": 40, "validation": 10, "held_out": 9, "ood.far": 4}
    assert splits.suites == ["held_out", "ood.far"] and splits["ood.none"] == []
    assert {r.file for r in splits["held_out"]} == {"held_out.jsonl"} and {r.file for r in splits["validation"]} == {"train.jsonl"}
    assert sum(a.read for a in splits.accounts) == 63 == sum(map(len, splits.records.values()))


def test_a_split_digest_is_of_content_in_order() -> None:
    rows = random_records(1, 10, 100)
    moved = [record(r.messages[0].content, r.completion, r.line + 50, file="b.jsonl") for r in rows]
    digest = Splits({"train": rows}, ()).digest("train")
    assert Splits({"train": moved}, ()).digest("train") == digest
    assert Splits({"train": rows[::-1]}, ()).digest("train") != digest and Splits({"train": rows[1:]}, ()).digest("train") != digest


# --- overlap -------------------------------------------------------------------------------------------------------

ALL = ("train", "validation", "held_out", "ood.far", "ood.near")


def random_splits(seed: int) -> Splits:
    """Five splits whose prompts often meet, spelt with other case, spacing and width."""
    dice = random.Random(seed)
    forms = (str, str.upper, str.title, lambda t: f"  {t.replace(' ', '   ')}\n", lambda t: t.replace("what", "ｗｈａｔ"), lambda t: t.replace(" ", "\u00a0"))
    records = {}
    for split in ALL:
        prompts = [dice.choice(forms)(f"what is thing {dice.randrange(40)} straße") for _ in range(dice.randrange(1, 25))]
        records[split] = [record(p, str(dice.randrange(3)), i, split, f"{split}.jsonl") for i, p in enumerate(prompts, 1)]
    return Splits(records, ())


def same_prompt(one: Record, other: Record) -> bool:
    words = [unicodedata.normalize("NFKC", r.messages[0].content).casefold().split() for r in (one, other)]
    return words[0] == words[1]


def naive_overlap(splits: Splits) -> set[tuple[str, str, str]]:
    """(record, other split, first record of it with the same prompt), by comparing every record with every other."""
    found = set()
    for index, split in enumerate(ALL):
        for other in ALL[index + 1 :] if not split.startswith("ood") else ():
            for here in splits[split]:
                for there in splits[other]:
                    if same_prompt(here, there):
                        found.add((here.where, other, there.where))
                        break
    return found


def overlap_findings(splits: Splits, action: str) -> tuple[set[tuple[str, str, str]], Splits]:
    spec = DataSpec.model_validate({"train": "train.jsonl", "checks": {"overlap": action}})
    checked = examine(splits, Scene(spec), {"overlap": CHECKS["overlap"]})
    said = set()
    told = [f for f in checked.findings if f.code != "NOTHING_LEFT"]
    for f in told:
        match = re.fullmatch(r"the same prompt in (\S+) \((\S+)\) and (\S+) \((\S+)\)", f.found)
        assert match and match[2] == f"{f.file}:{f.line}"
        said.add((match[2], match[3], match[4]))
    assert len(said) == len(told)
    return said, checked.splits


def test_overlap_between_splits_is_found_with_both_lines_as_by_comparing_all_pairs() -> None:
    swept = 0
    for seed in range(60):
        splits = random_splits(seed)
        said, _ = overlap_findings(splits, "refuse")
        assert said == naive_overlap(splits)
        swept += len(said)
    assert swept > 500


def test_after_dropping_overlap_none_is_left() -> None:
    dropped = 0
    for seed in range(60):
        splits = random_splits(seed)
        _, left = overlap_findings(splits, "drop")
        assert naive_overlap(left) == set()
        assert left["ood.far"] + left["ood.near"] == splits["ood.far"] + splits["ood.near"]
        dropped += sum(map(len, splits.records.values())) - sum(map(len, left.records.values()))
    assert dropped > 500


def test_a_held_out_row_in_train_is_refused_with_both_line_numbers(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", colour_rows(8))
    jsonl(tmp_path / "held_out.jsonl", [*colour_rows(3, 100), {"prompt": " THING number 5  please ", "completion": "green"}])
    spec = DataSpec(train=SourceSpec(files=["train.jsonl"]), held_out=SourceSpec(files=["held_out.jsonl"]))
    only = {name: CHECKS[name] for name in ("files", "unreadable", "structure", "overlap")}
    checked = examine(read_splits(spec, tmp_path, 1), Scene(spec), only)
    with pytest.raises(Refusal) as caught:
        checked.raise_if_refused()
    (problem,) = caught.value.problems
    assert problem.where == "train.jsonl:6" and "held_out.jsonl:4" in problem.found


def test_the_compared_form_of_a_text_ignores_case_width_and_spacing_only() -> None:
    assert normalised(" Ｗhat\u00a0\tIS\n straße ") == normalised("what is STRASSE") == "what is strasse"
    assert len({normalised(t) for t in ("a b", "ab", "a-b", "a b.", "á b", "a b c")}) == 6
