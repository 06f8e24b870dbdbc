"""What the loss is computed on, read from the trainer's own dataloaders, is what the preview shows, token by token.

It refuses to take the rows handed to the trainer for those that come out of it: every batch is read after sampling and collation.
"""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import SAMPLES
from tests.train.jobs import FP32, job_of
from tuner.base import BaseSpec, load_model, resolve_base
from tuner.data.record import Message, Record
from tuner.template.preview import shown_tokens
from tuner.template.spec import TemplateSpec
from tuner.template.tokens import IGNORED, Encoder, open_encoder
from tuner.train import sft
from tuner.train.spec import TrainSpec

SAMPLED = 500


def pairs() -> list[tuple[str, str]]:
    """Real questions with their answers, of three tasks."""
    found = []
    for line in (SAMPLES / "clinc150" / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.append((row["prompt"], row["completion"]))
    for line in (SAMPLES / "multidogo" / "train.jsonl").read_text(encoding="utf-8").splitlines():
        found.append(tuple(m["content"] for m in json.loads(line)["messages"]))
    with open(SAMPLES / "e2e_nlg" / "held_out.csv", encoding="utf-8", newline="") as file:
        found += [(row["mr"], row["ref"]) for row in csv.DictReader(file)]
    return found


def sampled_records(loss_on: str) -> list[Record]:
    """500 records by seed: one to four real turns each, with and without a system prompt, some turns of weight 0, control texts, merged boundaries.

    The last turn has weight 0 only where an earlier one may carry the loss instead.
    """
    dice = random.Random(f"labels {loss_on}")
    source = pairs()
    records = []
    for number in range(1, SAMPLED + 1):
        chosen = dice.sample(source, dice.choice((1, 1, 2, 3, 4)))
        turns = [Message("system", "Answer with one label.")] if dice.random() < 0.3 else []
        for place, (prompt, answer) in enumerate(chosen):
            is_last = place == len(chosen) - 1
            may_rest = loss_on == "all_assistant" and place > 0 if is_last else loss_on in ("all_assistant", "everything")
            if dice.random() < 0.05:
                prompt, answer = f"{prompt} <|im_end|>\n<|im_start|>assistant", f"\n\n{answer} <|im_end|> 東京 😀"
            first_rests = place == 0 and len(chosen) == 1
            turns += [Message("user", prompt), Message("assistant", answer, weight=0 if may_rest and not first_rests and dice.random() < 0.25 else 1)]
        if not any(m.weight for m in turns if m.role == "assistant"):
            turns[-1] = Message("assistant", turns[-1].content)
        records.append(Record(tuple(turns), "sampled.jsonl", number, "train"))
    return records


def trainer_for(base: Any, encoder: Encoder, records: list[Record], spec: TrainSpec, scratch: Path) -> sft.StepTrainer:
    from transformers import AutoTokenizer

    rows = encoder.rows(records)
    return sft.make_trainer(job_of(rows, spec, scratch, encoder.pad_id), load_model(base, FP32), AutoTokenizer.from_pretrained(base.folder))


def unbatched(batch: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of every row of a forward pass, found by its mask where rows are padded and by its positions where they are packed."""
    ids, labels = batch["input_ids"], batch["labels"]
    assert ids.shape == labels.shape
    if "attention_mask" in batch:
        for row, mask in zip(labels, batch["attention_mask"], strict=True):
            assert bool(torch.all(row[mask == 0] == IGNORED)) and mask.tolist() == sorted(mask.tolist(), reverse=True)
        return [(i[m == 1].tolist(), x[m == 1].tolist()) for i, x, m in zip(ids, labels, batch["attention_mask"], strict=True)]
    starts = [i for i, position in enumerate(batch["position_ids"][0].tolist()) if position == 0]
    ends = [*starts[1:], ids.shape[1]]
    assert batch["cu_seq_lens_q"].tolist() == [*starts, ids.shape[1]] and batch["max_length_q"] == max(b - a for a, b in zip(starts, ends, strict=True))
    return [(ids[0, a:b].tolist(), labels[0, a:b].tolist()) for a, b in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("loss_on", ["completion", "last_turn", "all_assistant", "everything"])
@pytest.mark.parametrize("how", [{"order": "shuffle"}, {"order": "length_groups"}, {"batching": "packed"}], ids=["shuffle", "length_groups", "packed"])
def test_labels_that_reach_the_loss_are_those_of_the_preview_token_by_token(loss_on: str, how: dict[str, Any], tiny_base: Path, tmp_path: Path) -> None:
    base = resolve_base(BaseSpec(model=str(tiny_base), sanity="off"), tmp_path)
    template = TemplateSpec(loss_on=loss_on, max_tokens=1024)
    records = sampled_records(loss_on)
    trainer = trainer_for(base, open_encoder(base.folder, template, base.name), records, TrainSpec(micro_tokens=1024, **how), tmp_path)
    encoder = open_encoder(base.folder, template, base.name)  # another one: the preview shares nothing with what was trained
    previews = [shown_tokens(encoder.row(record), encoder) for record in records]
    wanted = Counter((tuple(t.id for t in shown), tuple(t.id if t.loss else IGNORED for t in shown)) for shown in previews)
    found: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    passes = 0
    for batch in (micro for item in trainer.get_train_dataloader() for micro in item["step"].micros):
        passes += 1
        for ids, labels in unbatched(batch):
            if "position_ids" in batch and loss_on == "everything":
                assert labels[0] == IGNORED  # nothing predicts the first token of a packed row
                labels = [ids[0], *labels[1:]]
            found[tuple(ids), tuple(labels)] += 1
    assert found == wanted and sum(found.values()) == SAMPLED and passes > 50


def test_the_sampled_records_hold_what_they_are_to_hold(tiny_base: Path, tmp_path: Path) -> None:
    base = resolve_base(BaseSpec(model=str(tiny_base), sanity="off"), tmp_path)
    records = sampled_records("all_assistant")
    rows = open_encoder(base.folder, TemplateSpec(loss_on="all_assistant"), base.name).rows(records)
    turns = [[m for m in r.messages if m.role == "assistant"] for r in records]
    assert len(rows) == SAMPLED
    assert sum(len(t) > 1 for t in turns) > 200
    assert sum(any(m.weight == 0 for m in t) for t in turns) > 50 and sum(t[-1].weight == 0 for t in turns) > 20
    assert sum(row.merged for row in rows) > 10 and sum("<|im_end|>" in r.question for r in records) > 10
