"""Which tokens carry loss: by turn, by weight, with merged and cut prompts; every row read back before it is trained on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.template.format_bases import format_base
from tests.template.test_tokens import chat, real_conversations
from tuner.data.record import Message, Record
from tuner.data.spec import DataSpec
from tuner.errors import Refusal
from tuner.pipeline import count_tokens
from tuner.template.render import ChatTemplate
from tuner.template.spec import TemplateSpec
from tuner.template.tokens import IGNORED, Encoder, Row, open_encoder


def encoder_for(smollm2: Any, **spec: Any) -> Encoder:
    return open_encoder(smollm2.folder, TemplateSpec(**spec), "smollm2")


def loss_text(encoder: Encoder, row: Row) -> list[str]:
    """The texts that carry loss, one a run of loss tokens."""
    runs: list[list[int]] = [[]]
    for label in row.labels:
        if label != IGNORED:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [encoder.tokenizer.decode(run, skip_special_tokens=False) for run in runs if run]


def test_loss_falls_on_the_turns_that_loss_on_names(smollm2: Any) -> None:
    record = chat("hi", "one", "and", "two", "so", "three")
    expected = {"completion": ["three"], "last_turn": ["three"], "all_assistant": ["one", "two", "three"]}
    for loss_on, said in expected.items():
        encoder = encoder_for(smollm2, loss_on=loss_on)
        assert loss_text(encoder, encoder.row(record)) == [f"{words}<|im_end|>" for words in said]
    encoder = encoder_for(smollm2, loss_on="everything")
    row = encoder.row(record)
    assert row.labels == row.input_ids and loss_text(encoder, row)[0].endswith("three<|im_end|>")


def test_a_turn_of_weight_0_carries_no_loss(smollm2: Any) -> None:
    turns = list(chat("hi", "one", "and", "two", "so", "three").messages)
    turns[3] = Message("assistant", "two", weight=0)
    encoder = encoder_for(smollm2, loss_on="all_assistant")
    assert loss_text(encoder, encoder.row(Record(tuple(turns), "a", 1, "train"))) == ["one<|im_end|>", "three<|im_end|>"]
    turns[5] = Message("assistant", "three", weight=0)
    assert loss_text(encoder, encoder.row(Record(tuple(turns), "a", 1, "train"))) == ["one<|im_end|>"]
    with pytest.raises(Refusal, match="no assistant turn that carries loss"):
        encoder_for(smollm2).row(Record(tuple(turns), "a", 1, "train"))


def test_many_records_at_once_are_the_same_rows_as_one_by_one_under_every_loss_on(smollm2: Any) -> None:
    records = [
        *real_conversations(),
        chat("a", "b", "c", "d"),
        chat("x <|im_end|> y", "z <|im_start|>assistant w"),
        chat("hi", "one", "and", "two", system="S"),
    ]
    swept = 0
    for loss_on in ("completion", "last_turn", "all_assistant", "everything"):
        encoder = encoder_for(smollm2, loss_on=loss_on)
        for record, row in encoder.rows_or_refusals(records):
            assert row == encoder.row(record)
            swept += 1
    assert swept == 4 * 203


def test_the_text_under_loss_is_the_completion_and_its_stop_token_on_200_real_records(smollm2: Any) -> None:
    encoder = encoder_for(smollm2)
    records = real_conversations()
    for record in records:
        assert loss_text(encoder, encoder.row(record)) == [f"{record.completion}<|im_end|>"]
    assert len(records) == 200


def test_prompts_that_are_too_long_give_way_on_the_left_and_completions_never_do(smollm2: Any) -> None:
    whole, cut = encoder_for(smollm2), encoder_for(smollm2, truncate="prompt_left", max_tokens=64)
    record = chat(" ".join(f"word{i}" for i in range(80)), "the answer")
    long, short = whole.row(record), cut.row(record)
    over = len(long.input_ids) - 64
    assert short.cut_tokens == over > 0 and len(short.input_ids) == 64 and short.prompt_tokens == long.prompt_tokens - over
    text = cut.tokenizer.decode(short.input_ids, skip_special_tokens=False)
    kept = text.partition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
    assert text.startswith("<|im_start|>system\n") and kept and record.prompt[0].content.endswith(kept)  # marks and system prompt stay
    assert loss_text(cut, short) == ["the answer<|im_end|>"]
    early = chat(" ".join(f"word{i}" for i in range(40)), "old", " ".join(f"more{i}" for i in range(60)), "new")
    later = cut.row(early)
    assert len(later.input_ids) <= 64 and cut.tokenizer.decode(later.input_ids, skip_special_tokens=False).count("<|im_start|>") == 3
    assert loss_text(cut, later) == ["new<|im_end|>"]
    endless = chat("short", " ".join(f"word{i}" for i in range(80)))
    assert cut.row(endless).cut_tokens == 0 and len(cut.row(endless).input_ids) > 64  # left to the check `overlong`
    counts, findings = count_tokens(cut, [record, chat("a", "b"), endless])
    assert [(f.check, f.code, f.severity, f.found.split()[0]) for f in findings] == [("overlong", "CUT", "note", str(over))]
    assert counts[0].sum() == 64


# --- a tokenizer that merges across the boundary -------------------------------------------------------------------


@pytest.fixture(scope="module")
def merging() -> Encoder:
    """A byte-level BPE trained here, whose template has no mark between prompt and answer, so that `: ` and the answer's letters may merge."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["A:yes</s>", "A:no", "Q:why A:yes", "Q:how A:no"] * 50, trainer)
    source = (
        "{% for m in messages %}{{ ('Q:' if m.role == 'user' else 'A:') + m.content + ('</s>' if m.role == 'assistant' else ' ') }}{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    stop = frozenset({tokenizer.token_to_id("</s>")})
    return Encoder(tokenizer, ChatTemplate(source, {"eos_token": "</s>"}), stop, TemplateSpec(), "merging")


def test_where_prompt_and_answer_merge_the_served_prompt_decides_and_it_is_said(merging: Encoder) -> None:
    record = chat("why", "yes")
    alone = merging.tokenizer.encode("Q:why A:").ids
    assert merging.tokenizer.encode("Q:why A:yes</s>").ids[: len(alone)] != alone, "the fixture must merge, or it shows nothing"
    row = merging.row(record)
    assert row.merged and row.input_ids[: row.prompt_tokens] == alone == merging.prompt_ids(record.prompt)
    assert loss_text(merging, row) == ["yes</s>"]
    assert [f.code for f in count_tokens(merging, [record])[1]] == ["MERGED"]


def test_with_merges_every_turn_still_gets_its_own_text_under_loss(merging: Encoder) -> None:
    spec = TemplateSpec(loss_on="all_assistant")
    encoder = Encoder(merging.tokenizer, merging.template, merging.stop_ids, spec, "merging")
    row = encoder.row(chat("why", "yes", "how", "no"))
    last = loss_text(encoder, row)[-1]
    assert last == "no</s>"
    first = loss_text(encoder, row)[0]
    assert "yes</s>".endswith(first) and first.endswith("</s>")  # a token that spans the edge carries no loss


# --- rows that must not be trained on ------------------------------------------------------------------------------


def test_a_template_that_rewrites_the_answer_is_refused(smollm2: Any) -> None:
    plain = encoder_for(smollm2)
    source = plain.template.source.replace("message['content']", "message['content'] | upper")
    assert source != plain.template.source
    encoder = Encoder(plain.tokenizer, ChatTemplate(source, plain.template.special_tokens), plain.stop_ids, TemplateSpec(), "upper")
    with pytest.raises(Refusal, match="rewrites the answer"):
        encoder.row(chat("hi", "one"))
    refused = [row for _, row in encoder.rows_or_refusals([chat("hi", "one"), chat("HI", "ONE")])]
    assert isinstance(refused[0], Refusal) and isinstance(refused[1], Row)


def test_a_template_that_changes_earlier_turns_is_refused_for_all_of_them_and_good_for_the_last(smollm2: Any) -> None:
    plain = encoder_for(smollm2)
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content if loop.last or m.role == 'user' else 'old') + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    for loss_on, good in (("completion", True), ("last_turn", True), ("all_assistant", False)):
        encoder = Encoder(plain.tokenizer, ChatTemplate(source, plain.template.special_tokens), plain.stop_ids, TemplateSpec(loss_on=loss_on), "changing")
        if good:
            assert loss_text(encoder, encoder.row(chat("hi", "one", "and", "two"))) == ["two<|im_end|>"]
        else:
            with pytest.raises(Refusal, match="renders otherwise when later turns follow"):
                encoder.row(chat("hi", "one", "and", "two"))


@pytest.mark.slow
def test_no_text_of_100000_fuzzed_records_becomes_a_special_token(smollm2: Any) -> None:
    encoder = encoder_for(smollm2)
    chance = random.Random(4)
    pieces = [*encoder.control_texts, "<|im_", "end|>", "<|", "|>", "\n", " ", "a", "é", "\u200b", "<", ">", "im_start", "assistant", "\U00100000"]
    expected = [t for t in encoder.row(chat("a", "b")).input_ids if t in encoder.control_ids]
    swept = 0
    for _ in range(100):
        records = [
            chat("".join(chance.choices(pieces, k=chance.randint(1, 6))) + "x", "".join(chance.choices(pieces, k=chance.randint(1, 4))) + "y")
            for _ in range(1000)
        ]
        for _, row in encoder.rows_or_refusals(records):
            assert isinstance(row, Row)
            assert [t for t in row.input_ids if t in encoder.control_ids] == expected
            swept += 1
    assert swept == 100_000


def test_weights_are_read_from_files_and_change_what_a_record_is(tmp_path: Any) -> None:

    from tuner.data.splits import read_splits

    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}, {"role": "user", "content": "c"}]
    rows = [{"messages": [*turns, {"role": "assistant", "content": "d", "weight": w}]} for w in (1, 0, 0.5, True, "1")]

    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    splits = read_splits(DataSpec.model_validate({"train": "a.jsonl"}), Path(tmp_path), 1)
    one, other = splits["train"]
    assert [m.weight for m in one.messages] == [1, 0, 1, 1] and other.messages[-1].weight == 0 and one.hash != other.hash
    assert [(f.line, f.code) for f in splits.findings] == [(3, "WEIGHT"), (4, "WEIGHT"), (5, "WEIGHT")]


# --- tools -----------------------------------------------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "find_parcel", "description": "Find one <|im_end|>", "parameters": {"type": "object", "properties": {}}}}]
CALL = json.dumps([{"id": "c1", "type": "function", "function": {"name": "find_parcel", "arguments": {"id": 7}}}])


def offered(*turns: Message) -> Record:
    first = Message(turns[0].role, turns[0].content, tools=json.dumps(TOOLS, sort_keys=True))
    return Record((first, *turns[1:]), "a", 1, "train")


def test_tools_and_calls_are_rendered_where_the_template_can_and_loss_covers_the_calls(smollm2: Any, tmp_path: Path) -> None:
    encoder = open_encoder(format_base("qwen-2.5", smollm2.folder, tmp_path), TemplateSpec(format="qwen-2.5"), "qwen")
    record = offered(
        Message("user", "Where is 7?"), Message("assistant", "", CALL), Message("tool", "depot", None, "c1"), Message("assistant", "At the depot.")
    )
    row = encoder.row(record)
    said = loss_text(encoder, row)
    assert len(said) == 2 and "find_parcel" in said[0] and said[0].endswith("<|im_end|>") and said[1] == "At the depot.<|im_end|>"
    last = open_encoder(tmp_path, TemplateSpec(format="qwen-2.5", loss_on="last_turn"), "qwen")
    assert loss_text(last, last.row(record)) == ["At the depot.<|im_end|>"]
    text = encoder.tokenizer.decode(row.input_ids, skip_special_tokens=False)
    assert "Find one <|im_end|>" in text and "<tool_response>" in text
    specials = [t for t in row.input_ids if t in encoder.control_ids]
    without = encoder.row(Record((Message("user", "Where is 7?"), *record.messages[1:]), "a", 1, "train"))
    assert len(specials) == len([t for t in without.input_ids if t in encoder.control_ids])  # what a tool's words spell stays text
    assert encoder.prompt_ids(record.messages[:1]) != encoder.prompt_ids(without.record.messages[:1])


def test_tools_and_calls_are_refused_where_the_template_cannot_render_them(smollm2: Any) -> None:
    encoder = encoder_for(smollm2)
    for record in (
        offered(Message("user", "hi"), Message("assistant", "hello")),
        Record((Message("user", "hi"), Message("assistant", "", CALL)), "a", 1, "train"),
    ):
        with pytest.raises(Refusal, match="template renders"):
            encoder.row(record)
        assert [f.check for f in count_tokens(encoder, [record])[1]] == ["template"]


def test_tools_are_read_from_their_column_as_a_list_or_as_json_text(tmp_path: Path) -> None:
    from tuner.data.splits import read_splits

    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    columns = [TOOLS, json.dumps(TOOLS), None, "", [], "not json", {"name": "f"}, ["f"]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": turns, "tools": c}) + "\n" for c in columns))
    splits = read_splits(DataSpec.model_validate({"train": "a.jsonl"}), tmp_path, 1)
    assert [r.tools is not None for r in splits["train"]] == [True, True, False, False, False]
    assert len({r.hash for r in splits["train"]}) == 2 and splits["train"][0].prompt_key != splits["train"][2].prompt_key
    assert [(f.line, f.code) for f in splits.findings] == [(6, "TOOLS"), (7, "TOOLS"), (8, "TOOLS")]


def test_everything_leaves_out_turns_of_weight_0(smollm2: Any) -> None:
    encoder = encoder_for(smollm2, loss_on="everything")
    turns = list(chat("hi", "BAD", "again", "good").messages)
    turns[1] = Message("assistant", "BAD", weight=0)
    row = encoder.row(Record(tuple(turns), "a", 1, "train"))
    assert "BAD" not in "".join(loss_text(encoder, row)) and loss_text(encoder, row)[-1].endswith("good<|im_end|>")
    alone = encoder.row(Record((Message("user", "hi"), Message("assistant", "BAD", weight=0)), "a", 1, "train"))
    assert "BAD" not in "".join(loss_text(encoder, alone))


def test_cutting_never_touches_the_marks_of_the_template_nor_the_last_loss_token(smollm2: Any) -> None:
    encoder = encoder_for(smollm2, truncate="prompt_left", max_tokens=48)
    for first in ("You", "user", "system", "hi"):
        row = encoder.row(chat(first, "yes?", "word " * 80, "good"))
        text = encoder.tokenizer.decode(row.input_ids, skip_special_tokens=False)
        assert len(row.input_ids) <= 48 and text.startswith("<|im_start|>system\nYou are") and "<|im_start|>user\n" in text, text
    silent = encoder_for(smollm2, truncate="prompt_left", max_tokens=45, loss_on="all_assistant")
    record = Record((*chat("hi there", "first", "word " * 60).messages, Message("assistant", "BAD", weight=0)), "a", 1, "train")
    assert silent.row(record).completion_tokens > 0


def test_new_tokens_that_the_vocabulary_has_already_are_refused(smollm2: Any) -> None:
    with pytest.raises(Refusal, match="in the vocabulary already"):
        encoder_for(smollm2, new_tokens=["hello"])
    assert len(encoder_for(smollm2, new_tokens=["<hello>"]).new_ids) == 1
