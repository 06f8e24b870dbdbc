"""Copies, contradictions and overlap against naive loops; shingles, MinHash and the spreading of work against their definitions."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT, heed_interrupts
from tests.conftest import SAMPLES as FOLDER
from tests.data.samples import Row, Sample, chat, count_words, examined, pair, places, written
from tuner.data import shingles
from tuner.data.checks import CHECKS, READING
from tuner.data.checks.sameness import COPY
from tuner.data.doctor import Checked, examine
from tuner.data.findings import Finding, Scene
from tuner.data.measure import positions_by
from tuner.data.near import NEAR, near_prompts
from tuner.data.record import Message, Record
from tuner.data.shingles import BANDS, ROWS, boilerplate, difference, grams, hashed_words, minhash_bands, shingled
from tuner.data.spec import DataSpec
from tuner.data.splits import read_splits
from tuner.data.workers import spread

LONG = (
    "the harbour master wrote every arrival into a heavy green book before the evening bell rang over the frozen quay "
    "and then walked home through the narrow lanes behind the old fish market without speaking to anyone at all"
)  # 40 words; one of them changed: 35 of 41 shingles shared
LONG_EDITED = LONG.replace("green", "brown")


def found(name: str, splits: dict[str, list[Row]], folder: Path, **data: Any) -> list[Finding]:
    return examined(name, Sample(splits, [], {}, data), splits, folder).findings


def dropped(names: list[str], splits: dict[str, list[Row]], folder: Path, **data: Any) -> Checked:
    """What is left when these checks drop, and nothing else looks."""
    spec, read = written(splits, {**data, "checks": dict.fromkeys(names, "drop")}, folder)
    return examine(read, Scene(spec), READING | {name: CHECKS[name] for name in names}, count_words)


# --- what a finding tells ------------------------------------------------------------------------------------------


def test_a_finding_names_the_other_record(tmp_path: Path) -> None:
    (copy,) = found("exact_duplicates", {"train": [pair("a", "x"), pair("b", "x"), pair("a", "x")]}, tmp_path)
    assert copy.found == "the same as train.jsonl:1" and (copy.line, copy.field) == (3, "messages")
    (leak,) = found("overlap", {"train": [pair("b", "x"), pair("a", "x")], "held_out": [pair("A ", "y")]}, tmp_path)
    assert "train (train.jsonl:2)" in leak.found and "held_out (held_out.jsonl:1)" in leak.found
    (again,) = found("repeated_ids", {"train": [pair("b", "x", id="k"), pair("a", "x", id="k")]}, tmp_path)
    assert "'k'" in again.found and "train.jsonl:1" in again.found
    (group,) = found("group_overlap", {"train": [pair("b", "x", who="ann")], "held_out": [pair("a", "x", who="ann")]}, tmp_path, cut={"group_by": "who"})
    assert "'ann'" in group.found and "train.jsonl:1" in group.found and group.split == "held_out" and group.field == "who"
    (leaked,) = found("leakage", {"train": [pair("tell me", LONG)], "held_out": [pair("say it", LONG)]}, tmp_path)
    assert "train.jsonl:1" in leaked.found and "94%" in leaked.found  # 31 of its 33 runs of 8 words hold neither "say" nor "it"


def test_a_finding_shows_the_words_that_differ(tmp_path: Path) -> None:
    (near,) = found("near_duplicates", {"train": [pair(LONG, "yes"), pair(LONG_EDITED, "yes")]}, tmp_path)
    assert near.code == "NEAR" and near.found == "nearly the same as train.jsonl:1; differs in: 'brown / green'"
    (same,) = found("near_duplicates", {"train": [pair(LONG, "yes"), pair(LONG.title() + ".", "Yes!")]}, tmp_path)
    assert same.code == "SAME_WORDS" and "case, punctuation or order of words" in same.found
    (near,) = found("near_contradictions", {"train": [pair(LONG, "yes"), pair(LONG_EDITED, "no")]}, tmp_path, references="one")
    assert "'no', but train.jsonl:1 says 'yes'" in near.found and "'brown / green'" in near.found
    (near,) = found("near_overlap", {"train": [pair("b", "no"), pair(LONG, "yes")], "held_out": [pair(LONG_EDITED, "yes")]}, tmp_path)
    assert "train (train.jsonl:2) and held_out (held_out.jsonl:1)" in near.found and "'green / brown'" in near.found
    assert (near.split, near.line) == ("train", 2)


def test_a_contradiction_is_a_table_of_its_answers(tmp_path: Path) -> None:
    rows = [pair("is it open", "yes"), pair("Is it  open", "No"), pair("is it open", "no"), pair("is it open", "perhaps")]
    findings = found("contradictions", {"train": rows}, tmp_path, references="one")
    assert [f.line for f in findings] == [1, 2, 3, 4] and {f.found for f in findings} == {
        "3 answers to 'is it open': train.jsonl:1 says 'yes'; train.jsonl:2, 3 say 'No'; train.jsonl:4 says 'perhaps'"
    }
    many = [pair("q", f"answer {i}") for i in range(9)]
    (shown,) = {f.found for f in found("contradictions", {"train": many}, tmp_path, references="one")}
    assert shown.startswith("9 answers") and shown.endswith("'answer 5'; and 3 more")
    repeated = [pair("q", "yes") for _ in range(8)] + [pair("q", "no")]
    (shown,) = {f.found for f in found("contradictions", {"train": repeated}, tmp_path, references="one")}
    assert "train.jsonl:1, 2, 3, 4, 5 and 3 more say 'yes'" in shown


def test_difference_lists_both_sides() -> None:
    assert difference("a red car", "a blue car") == "red / blue"
    assert difference("a car", "a blue car") == "nothing / blue"
    assert difference("one two three four five six seven eight", "x") == "one, two, three, four, five, six … / x"
    assert difference("A car!", "car, a") == "case, punctuation or order of words"
    assert difference("👍", "👎") == "👍 / 👎"


# --- one answer or many --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "repeats", "one", "why"),
    [
        ({"references": "one"}, 50, True, "data.references: one"),
        ({"references": "many", "task": "label"}, 0, False, "data.references: many"),
        ({"task": "label"}, 50, True, "data.task: label"),
        ({"task": "json"}, 50, True, "data.task: json"),
        ({}, 0, True, "0% of the train prompts have several completions"),
        ({}, 9, True, "9% of the train prompts have several completions"),
        ({}, 10, False, "10% of the train prompts have several completions"),
    ],
)
def test_a_prompt_has_one_answer_where_recipe_task_or_train_says_so(data: dict[str, Any], repeats: int, one: bool, why: str, tmp_path: Path) -> None:
    rows = [pair(f"question {i}", f"{i}") for i in range(100)] + [pair(f"Question {i}", "other") for i in range(repeats)]
    spec, splits = written({"train": [*rows, *rows[:30]], "held_out": [pair("q", "x"), pair("q", "y")]}, data, tmp_path)  # a repeated pair is no second answer
    checked = examine(splits, Scene(spec), READING | {"contradictions": CHECKS["contradictions"]})
    assert checked.context.one_reference == (one, why)
    assert len([f for f in checked.findings if f.split == "held_out"]) == (2 if one else 0)
    for finding in checked.findings:
        assert finding.accepted == f"one answer a prompt ({why})"


# --- what drop leaves ----------------------------------------------------------------------------------------------


def test_dropping_duplicates_keeps_the_first_and_dropping_contradictions_keeps_none(tmp_path: Path) -> None:
    rows = [pair("a", "x"), pair("b", "y"), pair("a", "x"), pair("a", "x"), pair("a", "z")]
    assert [r.line for r in dropped(["exact_duplicates"], {"train": rows}, tmp_path).splits["train"]] == [1, 2, 5]
    assert [r.line for r in dropped(["contradictions"], {"train": rows}, tmp_path, references="one").splits["train"]] == [2]
    both = dropped(["exact_duplicates", "contradictions"], {"train": rows}, tmp_path, references="one")
    assert [r.line for r in both.splits["train"]] == [2] and {n: c["train.jsonl"] for n, c in both.dropped.items()} == {
        "exact_duplicates": 2,
        "contradictions": 2,
    }


def test_dropping_overlap_clears_train_and_leaves_what_is_graded(tmp_path: Path) -> None:
    splits = {"train": [pair("a", "x"), pair("b", "x"), pair(LONG, "yes")], "held_out": [pair("a", "x"), pair(LONG_EDITED, "yes")], "ood.far": [pair("B", "x")]}
    checked = dropped(["overlap", "near_overlap"], splits, tmp_path)
    assert {split: len(rows) for split, rows in checked.splits.records.items()} == {"train": 0, "held_out": 2, "ood.far": 1}


def test_records_on_one_line_of_an_array_are_dropped_one_by_one(tmp_path: Path) -> None:
    rows = [pair("a", "x"), pair("b", "y"), pair("a", "x"), pair("c", "z")]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    spec = DataSpec.model_validate({"train": "train.json", "checks": {"exact_duplicates": "drop"}})
    checked = examine(read_splits(spec, tmp_path, 0), Scene(spec), READING | {"exact_duplicates": CHECKS["exact_duplicates"]})
    assert [r.question for r in checked.splits["train"]] == ["a", "b", "c"]
    spec = DataSpec.model_validate({"train": "train.json", "cut": {"held_out": 0.34}})
    assert {split: len(of) for split, of in read_splits(spec, tmp_path, 0).records.items()} == {"train": 3, "held_out": 1}


# --- near copies against a naive loop --------------------------------------------------------------------------------


def naive_words(text: str) -> list[str]:
    """Runs of letters and digits in lower case. For texts without combining marks."""
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def naive_set(text: str) -> set[tuple[str, ...]]:
    found = naive_words(text)
    return {tuple(found[i : i + 3]) for i in range(len(found) - 2)} if len(found) > 2 else {tuple(found)}


def naive_jaccard(one: set[Any], other: set[Any]) -> float:
    return len(one & other) / len(one | other)


def texts_with_edits(seed: int = 7) -> list[str]:
    """Some 500 real sentences, most of them long, and copies with one to five words replaced, deleted or added, in random order."""
    with open(FOLDER / "e2e_nlg" / "held_out.csv", encoding="utf-8", newline="") as file:
        refs = sorted({row["ref"] for row in csv.DictReader(file)}, key=lambda ref: (-len(ref), ref))
    asked = [json.loads(line)["prompt"] for line in (FOLDER / "clinc150" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    dice = random.Random(seed)
    real = refs[:200] + asked[:50]
    vocabulary = sorted({word for text in real for word in text.split()})
    copies = []
    for text in real:
        edited = text.split()
        for _ in range(dice.choice((1, 1, 2, 3, 5))):
            place = dice.randrange(len(edited))
            edited[place : place + dice.randint(0, 1)] = dice.sample(vocabulary, dice.randint(0, 1))
            edited = edited or [dice.choice(vocabulary)]
        copies.append(" ".join(edited))
    texts = list(dict.fromkeys(real + copies))
    dice.shuffle(texts)
    return texts


def test_minhash_misses_no_more_than_two_in_a_hundred_near_copies_and_invents_none() -> None:
    texts = texts_with_edits()
    sets = [naive_set(t) for t in texts]
    true = {(i, j): naive_jaccard(sets[i], sets[j]) for i, j in combinations(range(len(texts)), 2)}
    close = {p for p, similarity in true.items() if similarity >= COPY}
    assert len(texts) > 350 and len(close) > 40 and sum(similarity >= NEAR for similarity in true.values()) > 100
    bands = minhash_bands(*shingled(texts), boilerplate(texts))
    candidates = {(i, j) for i, j in close if (bands[i] == bands[j]).any()}
    recall = len(candidates) / len(close)
    print(f"recall of MinHash candidates at Jaccard >= {COPY}: {recall:.3f} of {len(close)} pairs among {len(texts)} texts")
    assert recall >= 0.98
    records = [Record((Message("user", t), Message("assistant", "x")), "a", i, "train") for i, t in enumerate(texts)]
    near = near_prompts(records, np.arange(len(texts), dtype=np.uint64), bands)
    pairs = list(zip(near.first.tolist(), near.second.tolist(), near.jaccard.tolist(), strict=True))
    assert all(i < j and similarity == pytest.approx(true[i, j], abs=1e-6) and similarity >= NEAR for i, j, similarity in pairs)
    joined = {i: home for home, members in near.clusters.items() for i in members}
    assert all(joined[i] == joined[j] <= min(i, j) for i, j, _ in pairs) and all(len(m) > 1 and m == sorted(m) for m in near.clusters.values())


def test_near_duplicates_are_exactly_those_a_naive_loop_finds(tmp_path: Path) -> None:
    texts = texts_with_edits()
    expected: dict[int, int] = {}  # record -> the earlier ones it is nearly the same as, copies of copies left out
    sets = [naive_set(t) for t in texts]
    for j in range(len(texts)):
        if any(i not in expected and naive_jaccard(sets[i], sets[j]) >= COPY for i in range(j)):
            expected[j] = 1
    rows: list[Row] = [pair(text, "the same answer") for text in texts]
    findings = found("near_duplicates", {"train": rows}, tmp_path)
    reported = {f.line - 1 for f in findings}
    print(f"{len(reported)} of {len(expected)} near duplicates found, {len(reported - expected.keys())} not expected")
    assert reported == expected.keys() and len(findings) == len(reported) > 30
    for f in findings:
        other = int(f.found.split(";")[0].rpartition(":")[2]) - 1
        assert other < f.line - 1 and naive_jaccard(sets[other], sets[f.line - 1]) >= COPY
        assert f.code == ("SAME_WORDS" if naive_words(texts[other]) == naive_words(texts[f.line - 1]) else "NEAR")


def test_the_chance_to_become_a_candidate_follows_its_formula() -> None:
    """1 - (1 - J^4)^32 (Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4.2), on sets of random numbers."""
    dice = np.random.default_rng(5)
    trials = 1500
    for shared, own in ((30, 35), (50, 25), (60, 20), (80, 10)):  # of each pair: numbers in both, numbers in one alone
        sets = []
        for _ in range(trials):
            drawn = dice.integers(0, 1 << 63, size=shared + 2 * own, dtype=np.uint64)
            sets += [drawn[: shared + own], np.concatenate([drawn[:shared], drawn[shared + own :]])]
        starts = np.concatenate([[0], np.cumsum([len(s) for s in sets])]).astype(np.int64)
        bands = minhash_bands(np.concatenate(sets), starts, np.zeros(0, dtype=np.uint64))
        met = float((bands[::2] == bands[1::2]).any(axis=1).mean())
        similarity = shared / (shared + 2 * own)
        chance = 1 - (1 - similarity**ROWS) ** BANDS
        assert abs(met - chance) <= 4 * (chance * (1 - chance) / trials) ** 0.5 + 1e-6, (similarity, met, chance)


# --- shingles against their definition -------------------------------------------------------------------------------

TEXTS = [
    "", "one", "one two", "one two three", "Two  words!", "a a a a a a", "Äpfel und Birnen, Äpfel und Birnen", "ＡＢＣ abc ABC x", "今天天气很好",
    "लड़का घर जाता है",
    "👍", "???", " \n", "snake_case is_two_words", "the café's 3.5 stars", "İstanbul'da bir gün geçti", "\ud800 half",
    "one two three four five six seven eight",
]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 8, 13])
def test_grams_are_the_runs_of_words_inside_one_text(size: int) -> None:
    texts = [*TEXTS, *texts_with_edits()[:60], ""]
    flat, offsets = hashed_words(texts)
    runs, starts = grams(flat, offsets, size)
    meaning: dict[int, tuple[str, ...]] = {}
    for number, text in enumerate(texts):
        words = shingles.words(text)
        naive = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
        own = runs[starts[number] : starts[number + 1]].tolist()
        assert len(own) == len(naive)
        for number_of_run, run in zip(own, naive, strict=True):
            assert meaning.setdefault(number_of_run, run) == run  # one hash, one run of words
    assert len(set(meaning.values())) == len(meaning) > 20  # one run of words, one hash


def test_shingled_is_shingle_set_in_numbers() -> None:
    texts = [*TEXTS, *texts_with_edits()[:60]]
    numbers, starts = shingled(texts)
    assert len(starts) == len(texts) + 1 and (np.diff(starts) > 0).all()
    meaning: dict[int, str] = {}
    for i, text in enumerate(texts):
        own, named = numbers[starts[i] : starts[i + 1]].tolist(), shingles.shingle_set(text)
        words = shingles.words(text)
        naive = [" ".join(words[k : k + 3]) for k in range(len(words) - 2)] or [" ".join(words)]
        assert set(naive) == named and len(own) == len(naive)
        for number, name in zip(own, naive, strict=True):
            assert meaning.setdefault(number, name) == name
    assert len(set(meaning.values())) == len(meaning)
    for empty in (np.zeros(0, dtype=np.uint64), shingled([])[0]):
        assert len(empty) == 0


def test_minhash_bands_are_the_least_hashes_of_each_row() -> None:
    texts = [*TEXTS, *texts_with_edits()[:40]]
    numbers, starts = shingled(texts)
    ignored = np.sort(np.unique(np.concatenate([shingled(["one two three four"])[0], shingled(["one"])[0], numbers[starts[20] : starts[20] + 3]])))
    for leave_out in (np.zeros(0, dtype=np.uint64), ignored):
        keys = minhash_bands(numbers, starts, leave_out)
        assert keys.shape == (len(texts), BANDS)
        rows: list[list[tuple[int, ...]]] = []
        for i in range(len(texts)):
            own = numbers[starts[i] : starts[i + 1]].tolist()
            own = [s for s in own if s not in set(leave_out.tolist())] or own
            least = [min(((s * int(m) + int(a)) % 2**64) >> 32 for s in own) for m, a in zip(shingles._MULTIPLIERS, shingles._ADDENDS, strict=True)]
            rows.append([tuple(least[b * ROWS : (b + 1) * ROWS]) for b in range(BANDS)])
        for band in range(BANDS):
            meaning: dict[int, tuple[int, ...]] = {}
            for i in range(len(texts)):
                assert meaning.setdefault(int(keys[i, band]), rows[i][band]) == rows[i][band]
            assert len(set(meaning.values())) == len(meaning)


def test_boilerplate_is_what_stands_in_more_than_a_fifth_of_the_texts() -> None:
    texts = [f"please sort this ticket number {i} into a class" if i % 3 == 0 else f"question {i} of quite another kind {i * 7}" for i in range(90)]
    counts = Counter(s for text in texts for s in set(naive_set(text)))
    expected = {" ".join(s) for s, n in counts.items() if n > 18}
    names = {n: s for text in texts for n, s in zip(shingled([text])[0].tolist(), [" ".join(w) for w in _runs(text)], strict=True)}
    numbers = boilerplate(texts)
    assert {names[n] for n in numbers.tolist()} == expected and len(expected) > 3 and (np.diff(numbers) > 0).all()
    assert len(boilerplate(texts[:49])) == 0


def _runs(text: str) -> list[list[str]]:
    words = naive_words(text)
    return [words[i : i + 3] for i in range(len(words) - 2)]


def test_words_keep_what_tells_words_apart_in_any_script() -> None:
    assert shingles.words("Don't PANIC, it's snake_case: 3.5") == ["don", "t", "panic", "it", "s", "snake", "case", "3", "5"]
    assert shingles.words("Don’t PANIC, it’s snake_case: 3.5 é") == [*shingles.words("Don't PANIC, it's snake_case: 3.5"), "é"]
    assert shingles.words("की") != shingles.words("का") and shingles.words("घर जाता है") == ["घर", "जाता", "है"]
    assert shingles.words("今天天气") == ["今", "天", "天", "气"] and shingles.words("ｆｕｌｌ Straße") == ["full", "strasse"]
    assert shingles.words("👍") == ["👍"] and shingles.words(" ?? !! ") == ["??", "!!"] and shingles.words(" \n") == []


def test_positions_are_grouped_as_a_dictionary_groups_them() -> None:
    dice = np.random.default_rng(3)
    for count, kinds in ((0, 1), (1, 1), (50, 5), (300, 1000), (300, 40)):
        hashes = dice.integers(0, kinds, size=count, dtype=np.uint64)
        for among in (range(count), range(count // 3, count), range(0)):
            groups: dict[int, list[int]] = defaultdict(list)
            for i in among:
                groups[int(hashes[i])].append(i)
            assert sorted(g.tolist() for g in positions_by(hashes, among)) == sorted(g for g in groups.values() if len(g) > 1)


# --- work on every core ----------------------------------------------------------------------------------------------

SPREAD = """
import json, os, sys, time
from tuner.data.workers import spread
from tuner.errors import Refusal, refuse
numbers = [i * i for i in range(30_001)]
def work(start, stop):
    if start == 4_000: time.sleep(0.2)  # a slow chunk does not lose its place
    return sum(numbers[start:stop]), os.getpid()
ticks = []
results = list(spread(work, len(numbers), lambda done, of: ticks.append((done, of))))
def bad(start, stop):
    if start >= 8_000: refuse("place", "field", start, "less", "nothing")
    return start
try:
    list(spread(bad, len(numbers)))
    raised = None
except Refusal as refusal:
    raised = [refusal.problems[0].where, refusal.problems[0].found]
def killed(start, stop):
    if start == 4_000: os.kill(os.getpid(), 9)
try:
    list(spread(killed, len(numbers)))
except Refusal as refusal:
    died = refusal.problems[0].found
again = [s for s, _ in spread(work, len(numbers), chunk=7_000)]
json.dump({"sums": [s for s, _ in results], "others": len({p for _, p in results} - {os.getpid()}), "here": sum(p == os.getpid() for _, p in results),
           "ticks": ticks, "raised": raised, "died": died, "again": again}, sys.stdout)
"""


def test_spread_gives_in_forked_processes_what_it_gives_in_one_in_order() -> None:
    done = subprocess.run([sys.executable, "-c", SPREAD], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    told = json.loads(done.stdout)
    numbers = [i * i for i in range(30_001)]
    ranges = [(start, min(start + 2_000, len(numbers))) for start in range(0, len(numbers), 2_000)]
    assert told["sums"] == [sum(numbers[a:b]) for a, b in ranges] and told["again"] == [sum(numbers[a : a + 7_000]) for a in range(0, 30_001, 7_000)]
    assert told["ticks"] == [[b, len(numbers)] for _, b in ranges]
    assert told["raised"] == ["place", "8000"] and "killed" in told["died"]
    if len(os.sched_getaffinity(0)) > 1:
        assert told["others"] >= 1 and told["here"] == 0


def test_spread_works_in_this_process_where_forking_is_not_worth_it() -> None:
    ticks: list[tuple[int, int]] = []
    results = list(spread(lambda a, b: (a, b, os.getpid()), 5, lambda done, of: ticks.append((done, of)), chunk=2))
    assert results == [(0, 2, os.getpid()), (2, 4, os.getpid()), (4, 5, os.getpid())] and ticks == [(2, 5), (4, 5), (5, 5)]
    assert list(spread(lambda a, b: a, 0)) == []
    with pytest.raises(ZeroDivisionError):
        list(spread(lambda a, b: 1 // a, 5))


def test_an_interrupt_ends_the_workers_too() -> None:
    script = "import time\nfrom tuner.data.workers import spread\nprint(1, flush=True)\nlist(spread(lambda a, b: time.sleep(0.2), 2_000_000))"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, preexec_fn=heed_interrupts
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) != 0
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)  # nobody of its session is left


# --- facts of real data ----------------------------------------------------------------------------------------------


def test_repeated_pairs_of_e2e_are_those_that_a_counter_counts() -> None:
    with gzip.open(FOLDER / "e2e_nlg" / "trainset.csv.gz", "rt", encoding="utf-8", newline="") as file:
        seen = Counter((row["mr"], row["ref"]) for row in csv.DictReader(file))
    spec = DataSpec.model_validate({"train": {"files": "e2e_nlg/trainset.csv.gz", "columns": {"prompt": "mr", "completion": "ref"}}})
    checked = examine(read_splits(spec, FOLDER, 0), Scene(spec), READING | {name: CHECKS[name] for name in ("exact_duplicates", "contradictions")})
    repeats = sum(n - 1 for n in seen.values())
    assert len([f for f in checked.findings if f.check == "exact_duplicates"]) == repeats > 0
    prompts: dict[str, set[str]] = defaultdict(set)
    for prompt, answer in seen:
        prompts[" ".join(prompt.lower().split())].add(" ".join(answer.lower().split()))
    share = sum(len(answers) > 1 for answers in prompts.values()) / len(prompts)
    assert checked.context.one_reference == (False, f"{share:.0%} of the train prompts have several completions") and share > 0.9


def test_repeats_across_splits_of_clinc150_are_those_that_a_loop_counts(tmp_path: Path) -> None:
    rows = {split: [json.loads(line) for line in (FOLDER / "clinc150" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
            for split in ("train", "validation", "held_out", "ood_near")}  # fmt: skip
    dice = random.Random(11)
    train = rows["train"] + [r | {"prompt": r["prompt"].upper()} for r in dice.sample(rows["held_out"], 17)] + dice.sample(rows["ood_near"], 5)
    validation = rows["validation"] + dice.sample(rows["held_out"], 9) + dice.sample(rows["train"], 4)
    splits = {"train": train, "validation": validation, "held_out": rows["held_out"], "ood.near": rows["ood_near"]}
    expected = []
    for one, other in combinations(splits, 2):
        if not one.startswith("ood"):
            theirs = {" ".join(r["prompt"].lower().split()) for r in splits[other]}
            expected += [(one, line, "OVERLAP") for line, r in enumerate(splits[one], 1) if " ".join(r["prompt"].lower().split()) in theirs]
    findings = found("overlap", splits, tmp_path)
    assert places(findings) == sorted(expected) and len(expected) >= 17 + 5 + 9 + 4


def test_two_questions_under_two_system_prompts_are_two_questions(tmp_path: Path) -> None:
    rows = [chat(("system", f"You answer in the manner of {who}, always."), ("user", LONG), ("assistant", "yes")) for who in ("a pirate", "a judge", "a nurse")]
    assert found("near_duplicates", {"train": rows}, tmp_path) == []
    assert found("contradictions", {"train": rows}, tmp_path, references="one") == []


def test_a_graded_record_is_traced_to_the_train_record_that_most_of_it_stands_in(tmp_path: Path) -> None:
    head = " ".join(LONG.split()[:14])
    body = "a very different story of the three brothers who sold their boat and bought a mill that never turned until the river came back one spring"
    train = [pair("first", f"{head} nothing else"), pair("second", f"once upon a time {body} they say")]
    (leak,) = found("leakage", {"train": train, "held_out": [pair("tell", f"{head} {body}")]}, tmp_path)
    assert "train.jsonl:2" in leak.found


def test_near_overlap_finds_a_leak_in_a_cluster_of_hundreds(tmp_path: Path) -> None:
    def prompt(i: int, last: str) -> str:
        about = f"customer {i} who wrote to us about order {i * 7} and parcel {i * 13} because of a {last}"
        return f"please sort the ticket of {about} on monday morning and would like to hear from somebody soon"

    train = [pair(prompt(i, "delay"), f"class {i}") for i in range(400)]
    held_out = [pair(prompt(i, "problem"), f"class {i}") for i in range(0, 400, 8)]
    assert found("near_overlap", {"train": train}, tmp_path) == []
    findings = found("near_overlap", {"train": train, "held_out": held_out}, tmp_path)
    close = [
        (r, h)
        for r in train
        for h in held_out
        if naive_jaccard(naive_set(str(r["prompt"])), naive_set(str(h["prompt"]))) >= COPY and r["completion"] == h["completion"]
    ]
    print(f"{len(findings)} of {len(close)} near overlaps found")
    assert len(findings) == len(close) == 50
