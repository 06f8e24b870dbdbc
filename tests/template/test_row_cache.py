"""The cache of rows: the same rows to the token, found again only when nothing that decides them has changed, never trusted unread."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuner.data.record import Message, Record
from tuner.errors import Refusal
from tuner.fingerprint import digest_file, digest_json
from tuner.template import row_cache
from tuner.template.spec import TemplateSpec
from tuner.template.tokens import Encoder, open_encoder

Records = dict[str, list[Record]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tuner" / "rows"


def record(number: int, split: str = "train", answer: str = "red", weight: int = 1) -> Record:
    turns = (Message("user", f"thing {number} " + "very " * (number % 7)), Message("assistant", "well", weight=weight), Message("user", "and now?"))
    return Record((*turns, Message("assistant", answer)), f"{split}.jsonl", number + 1, split)


@pytest.fixture
def records() -> Records:
    return {"train": [record(i) for i in range(9)], "validation": [record(i, "validation", "blue") for i in range(4)], "ood.far": [record(3, "ood.far")]}


def test_rows_read_from_the_cache_are_those_that_were_made(encoder: Encoder, records: Records) -> None:
    made, entry = row_cache.rows_of(encoder, records, shared=True)
    assert entry is not None and made == {split: encoder.rows(of) for split, of in records.items()}
    for kept in (row_cache.rows_of(encoder, records, shared=True)[0], {s: list(rows) for s, rows in row_cache.read_rows(entry, records).items()}):
        assert kept == made
    swept = 0
    for split, rows in row_cache.rows_from_main(entry).items():
        assert len(rows) == len(made[split]) and row_cache.lengths_of(rows) == [len(r.input_ids) for r in made[split]]
        for mapped, row in zip(rows, made[split], strict=True):
            assert (mapped.input_ids, mapped.labels, mapped.prompt_tokens) == (row.input_ids, row.labels, row.prompt_tokens)
            assert (mapped.record.where, mapped.record.split, mapped.record.messages) == (row.record.where, row.record.split, ())
            swept += 1
        assert rows[-1].input_ids == made[split][-1].input_ids and rows[:2] == list(rows)[:2]
        with pytest.raises(IndexError):
            rows[len(rows)]
    assert swept == 14


def test_cut_tokens_and_loss_on_several_turns_come_back(smollm2: Any, records: Records) -> None:
    spec = TemplateSpec(max_tokens=40, truncate="prompt_left", loss_on="all_assistant")
    encoder = open_encoder(smollm2.folder, spec, smollm2.name)
    long = {"train": [Record((Message("user", "word " * 60), Message("assistant", "red")), "train.jsonl", 1, "train"), *records["train"]]}
    made, entry = row_cache.rows_of(encoder, long, shared=True)
    assert entry is not None and made["train"][0].cut_tokens > 0
    assert list(row_cache.read_rows(entry, long)["train"]) == made["train"]


def arrays(entry: Path) -> list[Path]:
    return sorted(entry.iterdir())


@pytest.mark.parametrize("name", ["tokens.npy", "loss.npy", "facts.npy", "entry.json"])
@pytest.mark.parametrize("damage", ["a flipped byte", "cut short", "gone", "a pickle"])
def test_a_damaged_entry_is_refused_to_others_and_made_again(name: str, damage: str, encoder: Encoder, records: Records) -> None:
    made, entry = row_cache.rows_of(encoder, records, shared=True)
    assert entry is not None and [p.name for p in arrays(entry)] == ["entry.json", "facts.npy", "loss.npy", "tokens.npy"]
    before = {p.name: p.read_bytes() for p in arrays(entry)}
    file = entry / name
    content = bytearray(before[name])
    content[len(content) // 2] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"a flipped byte": bytes(content), "cut short": before[name][:-3], "a pickle": pickle.dumps([1, 2])}[damage])
    with pytest.raises(Refusal, match="XDG_CACHE_HOME"):
        row_cache.rows_from_main(entry)
    again, same = row_cache.rows_of(encoder, records, shared=True)
    assert again == made and same == entry and {p.name: p.read_bytes() for p in arrays(entry)} == before


def test_an_array_of_objects_is_never_unpickled(encoder: Encoder, records: Records, tmp_path: Path) -> None:
    """Even with a digest that fits: whoever can write both still runs no code."""
    _, entry = row_cache.rows_of(encoder, records, shared=True)
    assert entry is not None
    flag = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (flag,))

    np.save(entry / "facts.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    about = row_cache._about(entry)
    about["digests"]["facts"] = digest_file(entry / "facts.npy")
    whole = {k: v for k, v in about.items() if k != "digest"}
    (entry / "entry.json").write_text(json.dumps({**whole, "digest": digest_json(whole)}))
    with pytest.raises(row_cache.Damaged):
        row_cache.read_rows(entry)
    assert not flag.exists()


def test_the_key_changes_with_everything_that_decides_a_row(smollm2: Any, encoder: Encoder, records: Records) -> None:
    def changed(split: str, at: int, **parts: Any) -> Records:
        old = records[split][at]
        new = Record(parts.get("messages", old.messages), parts.get("file", old.file), parts.get("line", old.line), old.split)
        return {**records, split: [*records[split][:at], new, *records[split][at + 1 :]]}

    def other(**spec: Any) -> Encoder:
        return open_encoder(smollm2.folder, TemplateSpec(**{**encoder.spec.model_dump(), **spec}), smollm2.name)

    words = (*records["train"][2].messages[:-1], Message("assistant", "green"))
    weight = (records["train"][2].messages[0], Message("assistant", "well", weight=0), *records["train"][2].messages[2:])
    others = [
        changed("train", 2, messages=words), changed("train", 2, messages=weight), changed("validation", 0, line=99), changed("train", 0, file="other.jsonl"),
        {**records, "train": records["train"][::-1]}, {**records, "train": records["train"][:-1]}, {s: records[s] for s in ("train", "validation")},
    ]  # fmt: skip
    encoders = [other(system="Say it."), other(max_tokens=99), other(loss_on="everything"), other(new_tokens=["<x>"])]
    keys = [row_cache.rows_key(encoder, r) for r in (records, *others)] + [row_cache.rows_key(e, records) for e in encoders]
    assert len(set(keys)) == len(keys) == 12
    assert row_cache.rows_key(other(), records) == keys[0]


def test_few_records_of_one_process_leave_nothing_behind_and_many_are_kept(
    encoder: Encoder, records: Records, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert row_cache.rows_of(encoder, records)[1] is None and not own_cache.exists()
    monkeypatch.setattr(row_cache, "WORTH_KEEPING", 10)
    made, _ = row_cache.rows_of(encoder, records)
    assert len(list(own_cache.iterdir())) == 1 and row_cache.rows_of(encoder, records)[0] == made


def test_rows_are_for_the_eyes_of_their_user(encoder: Encoder, records: Records, own_cache: Path) -> None:
    row_cache.rows_of(encoder, records, shared=True)
    assert own_cache.stat().st_mode & 0o777 == 0o700


def test_the_cache_is_bounded_and_keeps_what_was_used_last(encoder: Encoder, records: Records, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def entry(count: int) -> Path:
        _, made = row_cache.rows_of(encoder, {"train": records["train"][:count]}, shared=True)
        assert made is not None
        return made

    monkeypatch.setattr(row_cache, "KEPT_ENTRIES", 3)
    made = [entry(n) for n in (1, 2, 3)]
    for age, path in enumerate(made):
        os.utime(path, (1_000_000 + age, 1_000_000 + age))
    assert entry(1) == made[0]  # used again: now the youngest
    made.append(entry(4))
    assert {p.name for p in own_cache.iterdir()} == {made[0].name, made[2].name, made[3].name}
    monkeypatch.setattr(row_cache, "KEPT_BYTES", 1)
    last = entry(5)
    assert [p.name for p in own_cache.iterdir()] == [last.name]


def test_a_record_that_cannot_become_a_row_is_refused_by_place_and_nothing_is_kept(encoder: Encoder, records: Records, own_cache: Path) -> None:
    silent: Sequence[Record] = [Record((Message("user", "a"), Message("assistant", "b", weight=0)), "train.jsonl", 7, "train")]
    with pytest.raises(Refusal, match=r"train\.jsonl:7"):
        row_cache.rows_of(encoder, {"train": [*records["train"], *silent]}, shared=True)
    assert not own_cache.exists()
