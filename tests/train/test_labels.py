"""What the loss is computed on, read from the trainer's own dataloaders, is what the preview shows, token by token.

It refuses to take the rows handed to the trainer for those that come out of it: every batch is read after sampling and collation.
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import SAMPLES
from tuner.base import BaseSpec, Precision, load_model, resolve_base
from tuner.data.record import Message, Record
from tuner.template.preview import shown_tokens
from tuner.template.spec import TemplateSpec
from tuner.template.tokens import IGNORED, Encoder, open_encoder
from tuner.train import sft
from tuner.train.spec import MethodSpec, TrainSpec

FP32 = Precision("cpu", "float32", None)
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


def trainer_for(base: Any, encoder: Encoder, records: list[Record], spec: TrainSpec, scratch: Path) -> sft.CompletionTrainer:
    from transformers import AutoTokenizer

    rows = encoder.rows(records)
    job = sft.Job(rows, rows[:100], MethodSpec(rank=4), spec, FP32, 42, encoder.pad_id, scratch)
    return sft._trainer(job, load_model(base, FP32), AutoTokenizer.from_pretrained(base.folder), sft._Watch(None, None))


@pytest.mark.parametrize("loss_on", ["completion", "last_turn", "all_assistant", "everything"])
@pytest.mark.parametrize("order", ["shuffle", "length_groups"])
def test_labels_that_reach_trl_are_those_of_the_preview_token_by_token(loss_on: str, order: str, tiny_base: Path, tmp_path: Path) -> None:
    base = resolve_base(BaseSpec(model=str(tiny_base), sanity="off"), tmp_path)
    template = TemplateSpec(loss_on=loss_on, max_tokens=1024)
    records = sampled_records(loss_on)
    trainer = trainer_for(base, open_encoder(base.folder, template, base.name), records, TrainSpec(order=order, micro_batch=8), tmp_path)
    encoder = open_encoder(base.folder, template, base.name)  # another one: the preview shares nothing with what was trained
    previews = [shown_tokens(encoder.row(record), encoder) for record in records]
    for loader, wanted in ((trainer.get_train_dataloader(), SAMPLED), (trainer.get_eval_dataloader(), 100)):
        seen: list[int] = []
        padded = loss = silent = 0
        for batch in loader:
            assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
            for number, ids, labels, mask in zip(batch["row"].tolist(), batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
                shown = previews[number]
                size = len(shown)
                assert mask.tolist() == [1] * size + [0] * (len(ids) - size)
                assert ids[:size].tolist() == [t.id for t in shown]
                assert labels[:size].tolist() == [t.id if t.loss else IGNORED for t in shown]
                assert bool(torch.all(labels[size:] == IGNORED))
                seen.append(number)
                padded += len(ids) - size
                loss += sum(t.loss for t in shown)
                silent += sum(not t.loss for t in shown)
        assert sorted(seen) == list(range(wanted))
        assert padded > 0 and loss > 0 and (silent > 0 or loss_on == "everything")


def test_the_sampled_records_hold_what_they_are_to_hold(tiny_base: Path, tmp_path: Path) -> None:
    base = resolve_base(BaseSpec(model=str(tiny_base), sanity="off"), tmp_path)
    records = sampled_records("all_assistant")
    rows = open_encoder(base.folder, TemplateSpec(loss_on="all_assistant"), base.name).rows(records)
    turns = [[m for m in r.messages if m.role == "assistant"] for r in records]
    assert len(rows) == SAMPLED
    assert sum(len(t) > 1 for t in turns) > 200
    assert sum(any(m.weight == 0 for m in t) for t in turns) > 50 and sum(t[-1].weight == 0 for t in turns) > 20
    assert sum(row.merged for row in rows) > 10 and sum("<|im_end|>" in r.question for r in records) > 10
