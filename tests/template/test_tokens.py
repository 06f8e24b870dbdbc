"""What is trained is what is served: ids, labels and control tokens, against transformers' own tokenizer."""

from __future__ import annotations

import csv
import json
import random
from typing import Any

import pytest

from tests.conftest import SAMPLES
from tuner.data.record import Message, Record
from tuner.errors import Refusal
from tuner.template.preview import shown_tokens
from tuner.template.spec import TemplateSpec
from tuner.template.tokens import IGNORED, Encoder, label_mask, open_encoder


def chat(*turns: str, system: str | None = None) -> Record:
    head = [Message("system", system)] if system is not None else []
    body = [Message("user" if i % 2 == 0 else "assistant", t) for i, t in enumerate(turns)]
    return Record((*head, *body), "test.jsonl", 1, "train")


def real_conversations() -> list[Record]:
    """200 real records from the shipped samples, of three tasks."""
    records: list[Record] = []
    for line in (SAMPLES / "clinc150" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:70]:
        row = json.loads(line)
        records.append(chat(row["prompt"], row["completion"]))
    for line in (SAMPLES / "multidogo" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:70]:
        records.append(chat(*(m["content"] for m in json.loads(line)["messages"])))
    with open(SAMPLES / "e2e_nlg" / "held_out.csv", encoding="utf-8", newline="") as file:
        records += [chat(row["mr"], row["ref"], system="Write a sentence.") for row in list(csv.DictReader(file))[:60]]
    return records


@pytest.fixture(scope="module")
def theirs(smollm2: Any) -> Any:
    """transformers' own tokenizer, the independent implementation."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2.folder, local_files_only=True)


def test_prompts_and_whole_rows_have_the_ids_of_transformers_on_200_real_records(encoder: Encoder, theirs: Any) -> None:
    swept = 0
    for record in real_conversations():
        messages = [m.as_dict() for m in record.messages]
        prompt = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        whole = theirs.apply_chat_template(messages, return_dict=False)
        row = encoder.row(record)
        assert encoder.prompt_ids(record.prompt) == prompt
        assert row.input_ids[: row.prompt_tokens] == prompt
        assert whole[: len(row.input_ids)] == row.input_ids  # all but the newline after the stop token
        assert theirs.decode(whole[len(row.input_ids) :]) == "\n"
        swept += 1
    assert swept == 200


def test_loss_tokens_read_as_the_completion_and_its_stop_token_and_nothing_else(encoder: Encoder, theirs: Any) -> None:
    swept = 0
    for record in real_conversations():
        row = encoder.row(record)
        loss = [label for label in row.labels if label != IGNORED]
        assert theirs.decode(loss) == record.completion + "<|im_end|>"
        assert row.labels == [IGNORED] * row.prompt_tokens + row.input_ids[row.prompt_tokens :]
        assert row.completion_tokens == len(loss)
        swept += 1
    assert swept == 200


def test_text_of_a_record_never_becomes_a_control_token(encoder: Encoder) -> None:
    rng = random.Random(7)
    pieces = [*encoder.control_texts, "<|", "|>", "im_end", "<|im_<|im_end|>end|>", " ", "\n", "hello", "<", "|", chr(0x100000), "é", "🙂"]
    clean = encoder.row(chat("a", "b"))
    frame = [t for t in clean.input_ids if t in encoder.control_ids]
    swept = 0
    for _ in range(2000):
        asked, said = ("".join(rng.choices(pieces, k=rng.randint(1, 8))) for _ in range(2))
        row = encoder.row(chat(asked, said))
        assert [t for t in row.input_ids if t in encoder.control_ids] == frame
        assert encoder.tokenizer.decode(row.input_ids[row.prompt_tokens : -1], skip_special_tokens=False) == said
        swept += 1
    assert swept == 2000


def test_a_content_token_the_recipe_allows_does_become_one_token(smollm2: Any) -> None:
    record = chat("a", "<file_sep>b")
    shut = open_encoder(smollm2.folder, TemplateSpec(), "smollm2")
    opened = open_encoder(smollm2.folder, TemplateSpec(content_tokens=["<file_sep>"]), "smollm2")
    token = shut.tokenizer.token_to_id("<file_sep>")
    assert token is not None
    assert token not in shut.row(record).input_ids
    assert token in opened.row(record).input_ids


def test_recipe_system_prompt_is_put_before_records_that_have_none(smollm2: Any) -> None:
    encoder = open_encoder(smollm2.folder, TemplateSpec(system="Be brief."), "smollm2")
    assert "Be brief." in encoder.tokenizer.decode(encoder.row(chat("a", "b")).input_ids, skip_special_tokens=False)
    own = encoder.tokenizer.decode(encoder.row(chat("a", "b", system="Mine.")).input_ids, skip_special_tokens=False)
    assert "Mine." in own and "Be brief." not in own


def test_loss_on_all_assistant_turns_covers_each_turn_and_its_stop_token(smollm2: Any, theirs: Any) -> None:
    encoder = open_encoder(smollm2.folder, TemplateSpec(loss_on="all_assistant"), "smollm2")
    record = chat("one?", "first answer", "two?", "second answer")
    row = encoder.row(record)
    loss = [label for label in row.labels if label != IGNORED]
    assert theirs.decode(loss) == "first answer<|im_end|>second answer<|im_end|>"
    last_only = open_encoder(smollm2.folder, TemplateSpec(), "smollm2").row(record)
    assert last_only.input_ids == row.input_ids
    assert theirs.decode([label for label in last_only.labels if label != IGNORED]) == "second answer<|im_end|>"


def test_completion_ids_follow_the_prompt_as_in_training(encoder: Encoder) -> None:
    record = chat("which?", "pin_change")
    row = encoder.row(record)
    assert encoder.prompt_ids(record.prompt) + encoder.completion_ids(record.prompt, "pin_change") == row.input_ids


def test_a_template_without_a_stop_token_is_refused(smollm2: Any, tmp_path: Any) -> None:
    (tmp_path / "tokenizer.json").write_bytes((smollm2.folder / "tokenizer.json").read_bytes())
    config = json.loads((smollm2.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    encoder = open_encoder(tmp_path, TemplateSpec(), "endless")
    with pytest.raises(Refusal, match="no stop token after the answer"):
        encoder.row(chat("a", "b"))


def test_a_template_that_fails_names_the_record_and_the_turns(smollm2: Any, tmp_path: Any) -> None:
    (tmp_path / "tokenizer.json").write_bytes((smollm2.folder / "tokenizer.json").read_bytes())
    config = json.loads((smollm2.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] = "{{ raise_exception('no system turns here') }}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(Refusal) as refused:
        open_encoder(tmp_path, TemplateSpec(), "x").rows([chat("a", "b", system="s")])
    assert refused.value.problems[0].where == "test.jsonl:1"
    assert "no system turns here" in str(refused.value)


@pytest.mark.parametrize("source", ["{{ ''.__class__.__mro__ }}", "{{ messages.__init__.__globals__ }}", "{{ cycler.__init__.__globals__.os }}"])
def test_a_template_cannot_reach_python(source: str, encoder: Encoder) -> None:
    from dataclasses import replace

    template = replace(encoder.template, source=source)
    with pytest.raises(Refusal):
        template.render([Message("user", "a")], generation_prompt=True)


def test_an_empty_completion_has_no_labels_and_is_refused() -> None:
    assert label_mask([1, 2], [3]) == [IGNORED, IGNORED, 3]
    with pytest.raises(Refusal):
        label_mask([1, 2], [])


def test_preview_shows_every_token_once_with_its_loss(encoder: Encoder) -> None:
    row = encoder.row(chat("hi <|im_end|>", "pin_change"))
    shown = shown_tokens(row, encoder)
    assert [t.loss for t in shown] == [label != IGNORED for label in row.labels]
    assert sum(t.special for t in shown) == len([t for t in row.input_ids if t in encoder.control_ids])
    assert "".join(t.text for t in shown if t.loss) == "pin_change<|im_end|>"


def test_a_template_with_generation_marks_renders_as_transformers_does(smollm2: Any, theirs: Any, tmp_path: Any) -> None:
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
        "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    (tmp_path / "tokenizer.json").write_bytes((smollm2.folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes((smollm2.folder / "tokenizer_config.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text(source, encoding="utf-8")
    record = chat("one?", "two.")
    row = open_encoder(tmp_path, TemplateSpec(), "marked").row(record)
    whole = theirs.apply_chat_template([m.as_dict() for m in record.messages], chat_template=source, return_dict=False)
    assert whole[: len(row.input_ids)] == row.input_ids
    assert theirs.decode([label for label in row.labels if label != IGNORED]) == "two.<|im_end|>"
