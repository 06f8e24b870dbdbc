"""Which versions saw a record: the index against brute force over the texts, deleted, damaged, stale, raced for, and fed with hostile files."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from tests.conftest import ROOT
from tuner.artifact import record_index
from tuner.artifact.lineage import GRADED, Trace, sought_hash, sought_record, sought_text, trace
from tuner.artifact.manifest import MANIFEST, write_manifest
from tuner.artifact.near_copies import bands, estimated_jaccard, prompt_digest, signatures
from tuner.artifact.records import read_records, write_records
from tuner.data.record import Message, Record, normalised
from tuner.data.shingles import jaccard, shingle_set
from tuner.errors import Refusal
from tuner.template.tokens import Row

Texts = Mapping[str, Sequence[tuple[str, str]]]  # (prompt, completion) by split
Place = tuple[str, str, int, str]  # version, split, line, how it was found


def record(prompt: str, completion: str, line: int = 1, split: str = "train") -> Record:
    return Record((Message("system", "Answer."), Message("user", prompt), Message("assistant", completion)), f"{split}.jsonl", line, split)


def published(
    store: Path, label: str, texts: Texts, *, keep_text: bool = False, parent: Path | None = None, spoil: Callable[[Path], None] | None = None
) -> Path:
    """A version with these records and no weights; `spoil` may change its table before the manifest lists it."""
    name, _, number = label.partition("@")
    folder = store / name / number
    folder.mkdir(parents=True)
    rows = {split: [Row([1, 2], [-100, 2], 1, record(p, c, i, split)) for i, (p, c) in enumerate(of, start=1)] for split, of in texts.items()}
    write_records(folder / "records.parquet", rows, keep_text)
    if spoil is not None:
        spoil(folder / "records.parquet")
    said = None if parent is None else json.loads((parent / MANIFEST).read_text(encoding="utf-8"))
    above = None if said is None else {"name": said["name"], "version": said["version"], "manifest_digest": said["digest"]}
    write_manifest(folder, {"name": name, "version": int(number), "created": "2026-11-20T00:00:00+00:00", "lineage": {"parent": above}})
    return folder


def found(told: Trace) -> set[Place]:
    return {(u.version.label, u.split, u.line, u.how) for u in told.uses}


def by_hand(stores: Mapping[str, Texts], prompt: str, completion: str | None) -> tuple[set[Place], set[Place], set[Place]]:
    """(what equality says, near copies that must be found, those that may be) over the texts themselves."""
    sure: set[Place] = set()
    must: set[Place] = set()
    may: set[Place] = set()
    for label, texts in stores.items():
        for split, rows in texts.items():
            for line, (p, c) in enumerate(rows, start=1):
                if (p, c) == (prompt, completion):
                    sure.add((label, split, line, "exact"))
                elif normalised(p) == normalised(prompt):
                    sure.add((label, split, line, "same prompt"))
                elif (j := jaccard(shingle_set(p), shingle_set(prompt))) >= 0.5:
                    (must if j >= 0.85 else may).add((label, split, line, "near copy"))
    return sure, must, may


WORDS = [f"{a}{b}" for a in ("mon", "tal", "rip", "sed", "ku", "fen") for b in ("der", "ma", "lo", "qua", "ri", "sten", "by")]


def made_stores(versions: int, seed: int = 5) -> dict[str, Texts]:
    """Texts of several names and versions, with equal, edited and unlike records."""
    dice = random.Random(seed)
    pool = [" ".join(dice.choices(WORDS, k=dice.choice((1, 2, 3, 8, 30, 50)))) for _ in range(24)]
    stores: dict[str, Texts] = {}
    for number in range(versions):
        texts: dict[str, list[tuple[str, str]]] = {}
        for split, count in (("train", 30), ("validation", 5), ("held_out", 6), ("ood.far", 3)):
            rows = []
            for _ in range(count):
                said = dice.choice(pool).split()
                if dice.random() < 0.4:
                    said[dice.randrange(len(said))] = dice.choice(WORDS)
                prompt = " ".join(said)
                rows.append((prompt.upper() if dice.random() < 0.1 else prompt, dice.choice(("red", "blue"))))
            texts[split] = rows
        stores[f"{('alpha', 'beta', 'gamma')[number % 3]}@{number // 3 + 1}"] = texts
    return stores


@pytest.fixture
def stores() -> dict[str, Texts]:
    return made_stores(9)


@pytest.fixture
def store(tmp_path: Path, stores: dict[str, Texts]) -> Path:
    for label, texts in stores.items():
        published(tmp_path / "store", label, texts)
    return tmp_path / "store"


def asked(stores: Mapping[str, Texts]) -> list[tuple[str, str]]:
    """Records to ask for: some that are there, some that are not."""
    there = [row for texts in stores.values() for rows in texts.values() for row in rows][::30]
    return [*there, ("nobody ever asked for this at all", "red"), ("monder talma riplo sedqua kuri fensten", "blue")]


def answers(store: Path, stores: Mapping[str, Texts]) -> list[set[Place]]:
    return [found(trace(store, sought_record([record(*row)], "x"))) for row in asked(stores)]


# --- what is found -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most_rows", [1 << 20, 50], ids=["one segment", "many segments"])
def test_equal_records_and_near_copies_are_those_that_brute_force_over_the_texts_finds(
    store: Path, stores: dict[str, Texts], most_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_index, "MOST_ROWS", most_rows)
    swept = near = 0
    for prompt, completion in asked(stores):
        told = trace(store, sought_record([record(prompt, completion)], "x"))
        sure, must, may = by_hand(stores, prompt, completion)
        places = found(told)
        assert {p for p in places if p[3] != "near copy"} == sure
        assert must <= places and {p for p in places if p[3] == "near copy"} <= must | may
        assert (told.versions, told.records, told.unread, told.exact_only) == (9, 9 * 44, [], [])
        swept, near = swept + len(sure), near + len(must)
    assert swept > 40 and near > 10
    assert len(list((store / ".records").glob("*.records"))) == (1 if most_rows > 50 else 5)


def test_a_text_finds_its_prompt_and_a_hash_or_its_beginning_finds_what_its_record_finds(store: Path, stores: dict[str, Texts]) -> None:
    prompt, completion = stores["beta@2"]["train"][3]
    by_record = found(trace(store, sought_record([record(prompt, completion)], "x")))
    content = record(prompt, completion).hash
    assert found(trace(store, sought_hash(content))) == found(trace(store, sought_hash(content[7:19].upper()))) == by_record
    as_text = found(trace(store, sought_text(f"  {prompt.upper()} ")))
    assert as_text == {(*p[:3], "same prompt" if p[3] == "exact" else p[3]) for p in by_record} and len(as_text) > 2
    assert found(trace(store, sought_hash("ab" * 32))) == set()


def test_a_use_says_whether_the_record_was_trained_on_watched_or_only_graded(store: Path, stores: dict[str, Texts]) -> None:
    swept = set()
    for label, texts in stores.items():
        for split, rows in texts.items():
            told = trace(store, sought_record([record(*rows[0])], "x"))
            use = next(u for u in told.uses if (u.version.label, u.split, u.line) == (label, split, 1))
            assert use.role == {"train": "trained on", "validation": "watched while training"}.get(split, GRADED)
            assert use.is_trained_on == (split == "train") and use.file == f"{split}.jsonl" and use.hash == record(*rows[0]).hash
            swept.add(split)
    assert len(swept) == 4


def test_a_version_that_continues_one_is_named_also_two_steps_down(tmp_path: Path) -> None:
    row = {"train": [("mine is the secret of the old lamp", "red")]}
    other = {"train": [("nothing to do with it, whatever it may be", "blue")]}
    first = published(tmp_path, "a@1", row)
    second = published(tmp_path, "a@2", other, parent=first)
    published(tmp_path, "b@1", other, parent=second)
    published(tmp_path, "c@1", other)
    told = trace(tmp_path, sought_record([record(*row["train"][0])], "x"))
    assert [(h.version.label, h.through) for h in told.heirs] == [("a@2", "a@1"), ("b@1", "a@2")]


def test_texts_are_kept_only_where_asked_and_then_a_phrase_inside_a_prompt_is_found(tmp_path: Path) -> None:
    long = "please tell me everything that happened to Amalia Grünwald in the winter of that year, in order and without haste"
    published(tmp_path, "silent@1", {"train": [(long, "red")]})
    published(tmp_path, "spoken@1", {"train": [("hello there, my friend", "blue"), (long, "red")]}, keep_text=True)
    assert b"Amalia" not in (tmp_path / "silent/1/records.parquet").read_bytes()
    told = trace(tmp_path, sought_text("amalia grünwald"))
    assert found(told) == {("spoken@1", "train", 2, "holds the text")} and "phrase" in told.notes[0]
    assert found(trace(tmp_path, sought_text(long))) == {("silent@1", "train", 1, "same prompt"), ("spoken@1", "train", 2, "same prompt")}
    (kept,) = [r for r in parquet.read_table(tmp_path / "spoken/1/records.parquet").to_pylist() if r["line"] == 2]
    assert json.loads(kept["text"]) == {"messages": [m.as_written() for m in record(long, "red").messages]}


def test_a_prompt_without_words_is_nobodys_near_copy(tmp_path: Path) -> None:
    published(tmp_path, "a@1", {"train": [("", "once upon a time"), ("  ", "there was"), ("?!", "a king")]})
    assert found(trace(tmp_path, sought_record([record("", "once upon a time")], "x"))) == {("a@1", "train", 1, "exact")}
    with pytest.raises(Refusal, match="no words"):
        sought_text("  ")


@pytest.mark.parametrize("said", ["", "abc", "sha256:xyz", "g" * 64, "a" * 65, "sha512:" + "a" * 64])
def test_what_is_no_hash_is_refused(said: str) -> None:
    with pytest.raises(Refusal, match="12 to 64 hex digits"):
        sought_hash(said)


# --- records of other releases -----------------------------------------------------------------------------------------


def without_signatures(path: Path) -> None:
    """As tables were before signatures were kept."""
    parquet.write_table(parquet.read_table(path).drop_columns(["prompt_hash", "near"]).replace_schema_metadata(None), path)


def other_scheme(path: Path) -> None:
    table = parquet.read_table(path)
    parquet.write_table(table.replace_schema_metadata({b"tuner.near_copies": b"2"}), path)


@pytest.mark.parametrize("older", [without_signatures, other_scheme])
def test_a_table_without_comparable_signatures_is_found_by_equal_content_alone_and_the_answer_says_so(
    tmp_path: Path, older: Callable[[Path], None]
) -> None:  # fmt: skip
    row, edited = ("where is the money that I sent to my aunt last week", "red"), ("where is the money that I sent to my uncle last week", "red")
    published(tmp_path, "old@1", {"train": [row, edited]}, spoil=older)
    published(tmp_path, "new@1", {"train": [row]})
    told = trace(tmp_path, sought_record([record(*row)], "x"))
    assert found(told) == {("old@1", "train", 1, "exact"), ("new@1", "train", 1, "exact")} and told.exact_only == ["old@1"]


def test_the_signature_of_a_text_is_the_same_for_ever() -> None:
    made = signatures(["where is the money that I sent to my aunt last week", "ok"])
    assert made.shape == (2, 64) and made[0].tobytes().hex()[:32] == GOLDEN[0] and made[1].tobytes().hex()[:32] == GOLDEN[1]
    assert prompt_digest("  Où est\tl'ARGENT ") == prompt_digest("où est l'argent") != prompt_digest("où est l'argent?")


GOLDEN = ("7c3b00a5c2fdaa2407f74ff8710c83ff", "61d7ccb57310ebca1b88d99fb344f7ae")


def test_the_estimate_is_near_the_true_jaccard() -> None:
    dice = random.Random(3)
    errors = []
    for _ in range(300):
        one = [dice.choice(WORDS) for _ in range(30)]
        other = [dice.choice(WORDS) if dice.random() < 0.1 else w for w in one]
        made = signatures([" ".join(one), " ".join(other)])
        errors.append(estimated_jaccard(made[:1], made[1])[0] - jaccard(shingle_set(" ".join(one)), shingle_set(" ".join(other))))
    assert abs(sum(errors) / 300) < 0.01 and (sum(e * e for e in errors) / 300) ** 0.5 < 0.065
    assert bands(signatures(["a b c d"])).shape == (1, 12)


# --- an index that may be deleted, broken or old -------------------------------------------------------------------------


def test_the_index_may_be_deleted_at_any_time_and_grows_with_what_is_new(tmp_path: Path, stores: dict[str, Texts]) -> None:
    at_once, one_by_one = tmp_path / "a", tmp_path / "b"
    for count, (label, texts) in enumerate(stores.items(), start=1):
        published(at_once, label, texts)
        published(one_by_one, label, texts)
        assert trace(one_by_one, sought_hash("ab" * 6)).built == 1
        assert trace(one_by_one, sought_hash("ab" * 6)).built == 0
        assert len(list((one_by_one / ".records").glob("*.records"))) <= count.bit_length()
    wanted = answers(at_once, stores)
    assert answers(one_by_one, stores) == wanted
    shutil.rmtree(at_once / ".records")
    assert answers(at_once, stores) == wanted and any(wanted)


def test_a_version_that_changed_or_went_is_answered_as_it_is_now(store: Path, stores: dict[str, Texts]) -> None:
    trace(store, sought_hash("ab" * 6))
    gone, other = stores["alpha@1"]["train"][0], ("an entirely new sentence about boats", "red")
    shutil.rmtree(store / "alpha" / "1")
    assert not any(p[0] == "alpha@1" for p in found(trace(store, sought_record([record(*gone)], "x"))))
    published(store, "alpha@1", {"train": [other]})
    assert found(trace(store, sought_record([record(*other)], "x"))) == {("alpha@1", "train", 1, "exact")}


def test_no_flipped_byte_cut_or_foreign_file_of_the_index_changes_an_answer(tmp_path: Path) -> None:
    stores, store = made_stores(2), tmp_path
    for label, texts in stores.items():
        published(store, label, texts)
    row = stores["beta@1"]["train"][7]
    ask: Callable[[], set[Place]] = lambda: found(trace(store, sought_record([record(*row)], "x")))  # noqa: E731
    wanted, dice, rebuilt = ask(), random.Random(7), 0
    (segment,) = (store / ".records").glob("*.records")
    whole = segment.read_bytes()
    for swept in range(100):
        data = bytearray(whole)
        at = dice.randrange(len(data)) if swept % 3 else dice.randrange(4000)
        data[at] ^= 1 << dice.randrange(8)
        for path in (store / ".records").glob("*.records"):
            path.unlink()
        segment.write_bytes([bytes(data), whole[:at], b"", os.urandom(500), whole + b"x"][swept % 5 if swept > 75 else 0])
        assert ask() == wanted, at
        rebuilt += segment.read_bytes() == whole
    assert rebuilt > 40  # the others lie in blocks that this question does not read


def test_what_a_killed_writer_left_is_swept_and_a_version_in_two_segments_counts_once(store: Path, stores: dict[str, Texts], tmp_path: Path) -> None:
    wanted = answers(store, stores)
    (segment,) = (store / ".records").glob("*.records")
    kept = segment.read_bytes()
    (store / ".records" / ".part-1-dead").write_bytes(b"half")
    published(store, "delta@1", {"train": [("some new words here", "red")]})
    trace(store, sought_hash("ab" * 6))
    (store / ".records" / segment.name).write_bytes(kept)  # as if the writer was killed before it removed what it had joined
    assert answers(store, stores) == wanted and not list((store / ".records").glob(".part-*"))


def test_an_index_that_cannot_be_kept_is_made_for_the_answer_alone(store: Path, stores: dict[str, Texts]) -> None:
    wanted = answers(store, stores)
    shutil.rmtree(store / ".records")
    (store / ".records").write_text("in the way")
    told = trace(store, sought_record([record(*asked(stores)[0])], "x"))
    assert found(told) == wanted[0] and not told.is_kept


ASK = """
import sys
from pathlib import Path
from tuner.artifact.lineage import sought_hash, trace
for digest in sys.argv[2:]:
    print(sorted((u.version.label, u.split, u.line, u.how) for u in trace(Path(sys.argv[1]), sought_hash(digest)).uses))
"""


def test_processes_that_build_the_index_at_once_all_answer_the_same(store: Path, stores: dict[str, Texts]) -> None:
    hashes = [record(*row).hash for row in asked(stores)]
    command = [sys.executable, "-c", ASK, str(store), *hashes]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120) for process in running]
    assert [p.returncode for p in running] == [0] * 3, said
    assert {out for out, _ in said} == {"".join(f"{sorted(found(trace(store, sought_hash(h))))}\n" for h in hashes)}
    assert [p.suffix for p in (store / ".records").iterdir() if p.name != ".lock"] == [".records"]


# --- hostile tables ------------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, (str(Path("/tmp") / f"tuner-evil-{os.getpid()}"),)


def evil_extension(table: arrow.Table) -> arrow.Table:
    """A column whose type is a pickle: pyarrow before 14.0.1 ran it (CVE-2023-47248)."""
    field = arrow.field(
        "hash", arrow.string(), metadata={b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(Evil())}
    )
    return table.cast(arrow.schema([field if f.name == "hash" else f for f in table.schema]))


def replaced(name: str, values: Any) -> Callable[[arrow.Table], arrow.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, values)


HOSTILE: dict[str, Callable[[arrow.Table], arrow.Table]] = {
    "no hash": lambda t: t.drop_columns(["hash"]),
    "numbers for hashes": replaced("hash", arrow.array([1, 2])),
    "short hash": replaced("hash", arrow.array(["sha256:ab", "sha256:" + "a" * 64])),
    "white space for digits": replaced("hash", arrow.array(["sha256:" + " " * 64, "sha256:" + "a" * 64])),
    "no digits": replaced("hash", arrow.array(["sha256:" + "z" * 64, "sha256:" + "a" * 64])),
    "empty hash": replaced("hash", arrow.array([None, "sha256:" + "a" * 64])),
    "line 0": replaced("line", arrow.array([0, 1])),
    "line -1": replaced("line", arrow.array([-1, 1])),
    "line too large": replaced("line", arrow.array([1 << 40, 1])),
    "line a word": replaced("line", arrow.array(["one", "two"])),
    "signature of 4 bytes": replaced("near", arrow.array([b"abcd", b"abcd"], arrow.binary(4))),
    "signature a text": replaced("near", arrow.array(["abcd", "abcd"])),
    "prompt hash a word": replaced("prompt_hash", arrow.array(["mine", None])),
    "split nested": replaced("split", arrow.array([["train"], ["train"]])),
}  # fmt: skip


def change_table(change: Callable[[arrow.Table], arrow.Table]) -> Callable[[Path], None]:
    return lambda path: parquet.write_table(change(parquet.read_table(path)), path)


TWO = {"train": [("the first of two sentences", "red"), ("the second of two sentences", "blue")]}
SPOILT: dict[str, Callable[[Path], None]] = {
    **{name: change_table(change) for name, change in HOSTILE.items()},
    "no file": lambda path: path.unlink(),
    "empty file": lambda path: path.write_bytes(b"") and None,
    "not parquet": lambda path: path.write_bytes(b"PAR1" + os.urandom(200) + b"PAR1") and None,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]) and None,
    "a folder": lambda path: path.unlink() or path.mkdir(),  # type: ignore[func-returns-value]
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_a_version_whose_records_cannot_be_read_is_named_with_the_reason_and_the_others_are_answered(tmp_path: Path, name: str) -> None:
    published(tmp_path, "good@1", TWO)
    published(tmp_path, "evil@1", TWO, spoil=SPOILT[name])
    for _ in range(2):  # the second time from the index
        told = trace(tmp_path, sought_record([record(*TWO["train"][0])], "x"))
        assert found(told) >= {("good@1", "train", 1, "exact")} and [u.version.label for u in told.unread] == ["evil@1"]
        assert told.unread[0].why and told.versions == 1


def test_a_table_that_is_not_the_one_that_was_published_is_named(tmp_path: Path) -> None:
    folder = published(tmp_path, "a@1", TWO)
    change_table(lambda t: t.slice(1))(folder / "records.parquet")
    (unread,) = trace(tmp_path, sought_hash("ab" * 6)).unread
    assert "differ from the manifest" in unread.why


def test_a_pickle_inside_a_table_is_not_run(tmp_path: Path) -> None:
    folder = published(tmp_path, "a@1", TWO, spoil=change_table(evil_extension))
    assert len(read_records(folder / "records.parquet")) == 2
    trace(tmp_path, sought_hash("ab" * 6))
    assert not (Path("/tmp") / f"tuner-evil-{os.getpid()}").exists()


def test_a_broken_manifest_or_log_is_said_and_no_traceback(tmp_path: Path) -> None:
    published(tmp_path, "good@1", TWO)
    spoilt = {"a": b"{", "b": b"[]", "c": b'{"schema": 1, "files": [], "lineage": 3, "digest": {}}', "d": b'{"schema": 99}'}
    for name, manifest in spoilt.items():
        (published(tmp_path, f"{name}@1", TWO) / MANIFEST).write_bytes(manifest)
    (tmp_path / "good" / "log").mkdir()
    (tmp_path / "good" / "log" / "000001.json").write_text("{")
    told = trace(tmp_path, sought_record([record(*TWO["train"][0])], "x"))
    assert found(told) == {("good@1", "train", 1, "exact")} and sorted(u.version.name for u in told.unread) == ["a", "b", "c", "d"]
    assert any("log of good" in note for note in told.notes)
