"""Named formats: rendered as their sources render them, tokenised as they are served, and no template that does not end."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.conftest import ROOT, SAMPLES
from tests.template.format_bases import ANSWER, CASES, FAMILIES, GOLDEN, SYSTEM, USER, format_base, golden, open_format, supported
from tuner.data.record import Message, Record
from tuner.errors import Refusal
from tuner.template.conditions import content_conditions
from tuner.template.formats import FORMATS, SHIPPED_SOURCES, control_texts, parse_format, read_format
from tuner.template.render import ChatTemplate
from tuner.template.sandbox import trial_render
from tuner.template.spec import TemplateSpec
from tuner.template.tokens import IGNORED, Encoder, open_encoder

NAMES = tuple(FORMATS)
PROMISED = {"chatml", "alpaca", "llama-3", "mistral-instruct", "gemma", "phi", "zephyr", "vicuna", "plain"}

# ggml-org/llama.cpp@03f94f19a2c4c9d039fa1a84838fe3e2110cc28d tests/test-chat-template.cpp: the chat it renders and what it expects for each model.
LLAMA_CPP_CHAT = [
    Message("system", "You are a helpful assistant"), Message("user", "Hello"), Message("assistant", "Hi there"), Message("user", "Who are you"),
    Message("assistant", "   I am an assistant   "), Message("user", "Another question"),
]  # fmt: skip
LLAMA_CPP_EXPECTS = {
    "chatml": "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi there<|im_end|>\n"
    "<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\n   I am an assistant   <|im_end|>\n<|im_start|>user\nAnother question<|im_end|>\n"
    "<|im_start|>assistant\n",
    "llama-3": "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHi there<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWho are you<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nI am an assistant<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnother question<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral-instruct": " [INST] You are a helpful assistant\n\nHello [/INST] Hi there</s> [INST] Who are you [/INST]    I am an assistant   </s>"
    " [INST] Another question [/INST]",
    "phi": "<|system|>\nYou are a helpful assistant<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi there<|end|>\n<|user|>\nWho are you<|end|>\n"
    "<|assistant|>\n   I am an assistant   <|end|>\n<|user|>\nAnother question<|end|>\n<|assistant|>\n",
    "gemma": "<start_of_turn>user\nYou are a helpful assistant\nHello<end_of_turn>\n<start_of_turn>model\nHi there<end_of_turn>\n<start_of_turn>user\n"
    "Who are you<end_of_turn>\n<start_of_turn>model\nI am an assistant<end_of_turn>\n<start_of_turn>user\nAnother question<end_of_turn>\n"
    "<start_of_turn>model\n",
}


@pytest.fixture(scope="module")
def bases(smollm2: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a base that fits a format, made once."""
    root = tmp_path_factory.mktemp("bases")
    return lambda name: root / name if (root / name).is_dir() else format_base(name, smollm2.folder, root / name)


@pytest.fixture(scope="module")
def artifacts(bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What an artifact holds of the template: the base's tokenizer files, and the format as chat_template.jinja."""
    root = tmp_path_factory.mktemp("artifacts")

    def made(name: str) -> Path:
        folder = root / name
        if not folder.is_dir():
            folder.mkdir()
            for file in ("tokenizer.json", "tokenizer_config.json"):
                (folder / file).write_bytes((bases(name) / file).read_bytes())
            (folder / "chat_template.jinja").write_bytes(open_format(name, bases(name))[0].source.encode())
        return folder

    return made


def real_records() -> list[Record]:
    """340 real records of three tasks: one question, several turns, a system prompt."""

    def chat(*turns: str, system: str | None = None) -> Record:
        head = [Message("system", system)] if system is not None else []
        return Record((*head, *(Message("user" if i % 2 == 0 else "assistant", t) for i, t in enumerate(turns))), "test.jsonl", 1, "train")

    records: list[Record] = []
    for line in (SAMPLES / "clinc150" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:140]:
        row = json.loads(line)
        records.append(chat(row["prompt"], row["completion"]))
    for line in (SAMPLES / "multidogo" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:100]:
        records.append(chat(*(m["content"] for m in json.loads(line)["messages"])))
    with open(SAMPLES / "e2e_nlg" / "held_out.csv", encoding="utf-8", newline="") as file:
        records += [chat(row["mr"], row["ref"], system="Write a sentence.") for row in list(csv.DictReader(file))[:100]]
    return records


def kept(name: str) -> dict[str, Any]:
    """The golden file of a format."""
    found: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return found


def takes(name: str, record: Record) -> bool:
    """What the header of a format says of a record."""
    turns = [m for m in record.messages if m.role != "system"]
    return (FORMATS[name].system != "no" or len(turns) == len(record.messages)) and (FORMATS[name].multi_turn or len(turns) == 2)


# --- the files -------------------------------------------------------------------------------------------------------


def test_every_format_is_one_file_with_a_source_and_one_golden_file() -> None:
    assert set(FORMATS) >= PROMISED
    assert sorted(p.stem for p in GOLDEN.glob("*.json")) == sorted(FORMATS)
    for name, fmt in FORMATS.items():
        assert fmt.sources and fmt.stop and fmt.needs is not None, name
        assert all(re.search(r"@[0-9a-f]{40}\b", s) or s.startswith("this project") for s in fmt.sources), name
        assert set(control_texts(fmt.text)) <= set(fmt.needs) or name == "zephyr", name


@pytest.mark.parametrize("name", NAMES)
def test_text_and_ids_are_those_of_the_golden_file(name: str, bases: Callable[[str], Path]) -> None:
    assert golden(name, bases(name)) == kept(name)
    assert {"prompt", "single turn"} <= set(kept(name)["cases"])


@pytest.mark.parametrize("name", NAMES)
def test_what_a_header_calls_unsupported_is_refused_and_the_rest_renders(name: str, bases: Callable[[str], Path]) -> None:
    encoder = open_encoder(bases(name), TemplateSpec(format=name), name)
    refused = 0
    for case, (messages, _) in CASES.items():
        if case == "prompt":
            continue
        if supported(name, case):
            encoder.row(Record(messages, "test.jsonl", 1, "train"))
            continue
        refused += 1
        with pytest.raises(Refusal):
            encoder.row(Record(messages, "test.jsonl", 1, "train"))
    assert refused == 3 - (FORMATS[name].system != "no") - FORMATS[name].multi_turn - FORMATS[name].tools


@pytest.mark.parametrize("name", LLAMA_CPP_EXPECTS)
def test_a_format_renders_what_llama_cpp_expects_of_its_family(name: str) -> None:
    template = ChatTemplate(FORMATS[name].text, {"bos_token": "", "eos_token": "</s>"})
    chat = LLAMA_CPP_CHAT
    if name == "gemma":  # llama.cpp puts the system prompt before the first question by itself, with one line break
        chat = [Message("user", f"{chat[0].content}\n{chat[1].content}"), *chat[2:]]
    assert template.render(chat, generation_prompt=True) == LLAMA_CPP_EXPECTS[name]


def test_alpaca_reads_as_the_readme_of_stanford_alpaca_prints_it() -> None:
    readme = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
    readme += "### Response:\n{output}"  # tatsu-lab/stanford_alpaca@000109ff README.md
    text = ChatTemplate(FORMATS["alpaca"].text, {"eos_token": "</s>"}).render([USER, ANSWER], generation_prompt=False)
    assert text == readme.replace("{instruction}", USER.content).replace("{output}", ANSWER.content) + "</s>"


def test_vicuna_reads_as_a_naive_loop_over_fastchats_separators() -> None:
    """lm-sys/FastChat@2e7855bb fastchat/conversation.py: system + sep, then role: message + seps[i % 2]."""
    for chat in ([SYSTEM, USER], [SYSTEM, USER, ANSWER], [SYSTEM, USER, ANSWER, USER], [SYSTEM, USER, ANSWER, USER, ANSWER]):
        expected = chat[0].content + " "
        for index, message in enumerate(chat[1:]):
            expected += ("USER", "ASSISTANT")[index % 2] + ": " + message.content + (" ", "</s>")[index % 2]
        asked = chat[-1].role == "user"
        text = ChatTemplate(FORMATS["vicuna"].text, {"eos_token": "</s>"}).render(chat, generation_prompt=asked)
        assert text == expected + ("ASSISTANT:" if asked else "")


# --- against transformers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_text_and_ids_are_those_of_transformers_with_the_stored_template(name: str, artifacts: Callable[[str], Path]) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(artifacts(name), local_files_only=True)
    ours = open_encoder(artifacts(name), TemplateSpec(), name)
    swept = 0
    for case, (messages, more) in CASES.items():
        if not supported(name, case):
            continue
        plain = [m.as_dict() for m in messages]
        text = ours.template.render(messages, more)
        assert text == theirs.apply_chat_template(plain, tokenize=False, add_generation_prompt=more)
        ids = ours.tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == theirs.apply_chat_template(plain, add_generation_prompt=more, return_dict=False)
        swept += 1
    assert swept == len(kept(name)["cases"])


def test_plain_transformers_in_a_fresh_process_renders_the_stored_templates(artifacts: Callable[[str], Path]) -> None:
    code = (
        "import json, sys\nfrom transformers import AutoTokenizer\n"
        "for folder, chat in json.load(sys.stdin):\n"
        "    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)\n"
        "    print(json.dumps(tokenizer.apply_chat_template(chat, tokenize=False)))\n"
    )
    chat = [USER.as_dict(), ANSWER.as_dict()]
    asked = json.dumps([[str(artifacts(name)), chat] for name in NAMES])
    done = subprocess.run([sys.executable, "-c", code], input=asked, capture_output=True, text=True, timeout=300, check=True)
    texts = [json.loads(line) for line in done.stdout.splitlines()]
    assert texts == [kept(name)["cases"]["single turn"]["text"] for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_an_artifacts_encoder_gives_the_rows_of_the_format_itself(name: str, bases: Callable[[str], Path], artifacts: Callable[[str], Path]) -> None:
    trained, served = open_encoder(bases(name), TemplateSpec(format=name), name), open_encoder(artifacts(name), TemplateSpec(), name)
    record = Record((USER, ANSWER), "test.jsonl", 1, "train")
    assert served.stop_ids == trained.stop_ids and served.digest == trained.digest
    assert served.row(record) == trained.row(record)


# --- rows of real records --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_loss_covers_exactly_the_completion_and_its_stop_on_at_least_200_real_records(name: str, bases: Callable[[str], Path]) -> None:
    encoder = open_encoder(bases(name), TemplateSpec(format=name), name)
    lead, stop = kept(name)["answer"]
    swept = refused = 0
    records = real_records()
    for record, row in encoder.rows_or_refusals(records):
        if not takes(name, record):
            assert isinstance(row, Refusal)
            refused += 1
            continue
        assert not isinstance(row, Refusal), row
        said = record.completion.strip() if FORMATS[name].trims else record.completion
        loss = [label for label in row.labels if label != IGNORED]
        assert encoder.tokenizer.decode(loss, skip_special_tokens=False) == lead + said + stop
        assert row.labels == [IGNORED] * row.prompt_tokens + row.input_ids[row.prompt_tokens :]
        assert encoder.prompt_ids(record.prompt) == row.input_ids[: row.prompt_tokens]
        assert encoder.completion_ids(record.prompt, record.completion) == row.input_ids[row.prompt_tokens :]
        swept += 1
    assert swept + refused == 340 and swept >= 200


@pytest.mark.parametrize("name", NAMES)
def test_prompt_ids_and_completion_ids_are_the_ids_of_the_whole_text(name: str, bases: Callable[[str], Path]) -> None:
    """But where a tokenizer merges across the boundary, as SmolLM2's does with line breaks: there the prompt as it is served decides."""
    encoder = open_encoder(bases(name), TemplateSpec(format=name), name)
    stop = kept(name)["answer"][1]
    swallows = any(t.rstrip for t in encoder.tokenizer.get_added_tokens_decoder().values())  # Phi-3's control tokens eat what follows them
    swept = 0
    for record in real_records():
        if not takes(name, record):
            continue
        row, text = encoder.row(record), encoder.template.render(record.messages, generation_prompt=False)
        text = text[: text.rindex(stop) + len(stop)]
        whole = encoder.tokenizer.encode(text, add_special_tokens=False).ids
        prompt = encoder.prompt_ids(record.prompt)
        assert (row.input_ids == whole) == (whole[: len(prompt)] == prompt)
        assert swallows or encoder.tokenizer.decode(row.input_ids, skip_special_tokens=False) == text
        swept += 1
    assert swept >= 200


# --- vocabulary, stop and beginning-of-text token --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemma", "llama-3", "phi"])
def test_a_format_is_refused_on_a_base_without_its_control_tokens(name: str, smollm2: Any) -> None:
    with pytest.raises(Refusal) as refused:
        open_encoder(smollm2.folder, TemplateSpec(format=name), "smollm2")
    needs = FORMATS[name].needs
    assert needs is not None and len(refused.value.problems) == len(needs)
    assert "alpaca, chatml" in refused.value.problems[0].try_ and name not in refused.value.problems[0].try_


def test_the_stop_of_a_format_ends_an_answer_where_the_base_ends_with_another(smollm2: Any, tmp_path: Path) -> None:
    """ChatML on a base whose eos_token is <|endoftext|>, as pretrained bases have it."""
    folder = format_base("chatml", smollm2.folder, tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|endoftext|>"}), encoding="utf-8")
    encoder = open_encoder(folder, TemplateSpec(format="chatml"), "base")
    assert encoder.stop_ids == {encoder.tokenizer.token_to_id(t) for t in ("<|im_end|>", "<|endoftext|>")}
    row = encoder.row(Record((USER, ANSWER), "test.jsonl", 1, "train"))
    assert row.input_ids[-1] == encoder.tokenizer.token_to_id("<|im_end|>")


def test_text_formats_begin_with_bos_exactly_where_the_bases_tokenizer_does(bases: Callable[[str], Path]) -> None:
    with_bos, without = bases("vicuna"), bases("chatml")
    for name in ("alpaca", "plain", "vicuna"):
        assert open_format(name, with_bos)[0].render([USER], True).startswith("<s>")
        assert not open_format(name, without)[0].render([USER], True).startswith("<|im_start|>")
        assert open_format(name, with_bos)[0].source in SHIPPED_SOURCES


def test_a_format_without_eos_token_is_refused_on_a_base_that_names_none(bases: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((bases("chatml") / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(Refusal, match="names no eos_token"):
        open_encoder(tmp_path, TemplateSpec(format="alpaca"), "bare")


# --- system prompts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_templates_own_system_prompt_is_found_and_only_where_it_has_one(name: str, bases: Callable[[str], Path]) -> None:
    own = open_format(name, bases(name))[0].own_system
    assert (own is not None) == (FORMATS[name].system == "own default")
    assert own is None or own in FORMATS[name].text


@pytest.mark.parametrize("name", NAMES)
def test_whether_a_template_takes_several_turns_is_what_its_header_says(name: str, bases: Callable[[str], Path]) -> None:
    assert open_format(name, bases(name))[0].multi_turn == FORMATS[name].multi_turn


def test_a_template_of_one_turn_is_known_as_one() -> None:
    assert not ChatTemplate("{{ raise_exception('one turn') if messages | length > 2 else messages[0]['content'] }}", {}).multi_turn
    assert not ChatTemplate("{{ messages[0]['content'] }}", {}).multi_turn


def test_the_system_prompt_of_the_quickstarts_base_is_shown(encoder: Encoder) -> None:
    assert encoder.template.own_system == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


# --- a user's own file -----------------------------------------------------------------------------------------------


def test_a_users_jinja_file_is_read_beside_the_recipe(smollm2: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text(FORMATS["chatml"].text.replace("\n", "\r\n"), encoding="utf-8")
    mine = open_encoder(smollm2.folder, TemplateSpec(format="mine.jinja"), "smollm2", tmp_path)
    assert mine.template.source == FORMATS["chatml"].text
    with pytest.raises(Refusal, match=r"write mine\.jinja"):
        open_encoder(smollm2.folder, TemplateSpec(format="mien.jinja"), "smollm2", tmp_path)


def test_an_unknown_format_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(Refusal, match="write chatml"):
        read_format("chatlm", ROOT)
    with pytest.raises(Refusal, match=r"end the file's name in \.jinja"):
        read_format("templates/mine.txt", ROOT)


def test_a_users_control_like_texts_must_be_tokens_unless_its_header_says_they_are_text(smollm2: Any, tmp_path: Path) -> None:
    body = "{{- '<|ask|>' + messages[0]['content'] + '<|tell|>' -}}{%- if messages | length > 1 -%}{{- messages[1]['content'] + eos_token -}}{%- endif -%}"
    (tmp_path / "bare.jinja").write_text(body, encoding="utf-8")
    (tmp_path / "text.jinja").write_text("{#- tuner format\nneeds: none\n-#}\n" + body, encoding="utf-8")
    with pytest.raises(Refusal) as refused:
        open_encoder(smollm2.folder, TemplateSpec(format="bare.jinja"), "smollm2", tmp_path)
    assert ["<|ask|>" in refused.value.problems[0].found, "<|tell|>" in refused.value.problems[1].found] == [True, True]
    row = open_encoder(smollm2.folder, TemplateSpec(format="text.jinja"), "smollm2", tmp_path).row(Record((USER, ANSWER), "test.jsonl", 1, "train"))
    assert row.completion_tokens == 2


def test_a_header_line_that_is_not_one_is_refused_with_its_line() -> None:
    with pytest.raises(Refusal) as refused:
        parse_format("mine", "{#- tuner format\nstop: </s>\nbos: maybe\nsistem: yes\n-#}\n", "mine.jinja")
    assert [p.where for p in refused.value.problems] == ["mine.jinja:3", "mine.jinja:4"]


# --- templates that do harm ------------------------------------------------------------------------------------------

BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "repetition": "{{ 'a' * 10**9 }}",
    "recursion": "{% macro f(x) %}{{ f(x + 1) }}{{ f(x + 1) }}{% endmacro %}{{ f(0) }}",
    "recursion that branches": "{% macro f(x) %}{% if x < 60 %}{{ f(x + 1) }}{{ f(x + 1) }}{% endif %}{% endmacro %}{{ f(0) }}",
    "range": "{{ range(10**12) | list | length }}",
    "doubling": "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x | length }}",
    "constant folded while compiling": "{{ 'a' | center(10**10) }}",
    "power": "{{ 9**9**9**9 }}",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_template_that_does_not_end_is_refused_before_it_is_rendered_here(bomb: str, smollm2: Any, tmp_path: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((smollm2.folder / file).read_bytes())
    (tmp_path / "chat_template.jinja").write_text(BOMBS[bomb], encoding="utf-8")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom tuner.errors import Refusal\nfrom tuner.template.spec import TemplateSpec\n"
        "from tuner.template.render import read_template\n"
        "try:\n    read_template(Path(sys.argv[1]), TemplateSpec())\nexcept Refusal as refusal:\n    print(refusal.problems[0].found)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)
    assert done.stdout.startswith("tokenizer: "), done.stdout + done.stderr


@pytest.mark.parametrize("bomb", ["nested loops", "repetition", "recursion that branches", "doubling", "power"])
def test_a_bomb_that_waits_for_a_word_ends_when_it_meets_it(bomb: str) -> None:
    """Its trial passes, since only a record holds the word; the counters of the rendering itself end it."""
    source = "{% if 'now' in messages[0]['content'] %}" + BOMBS[bomb] + "{% endif %}ok"
    assert trial_render(source) is None
    template = ChatTemplate(source, {})
    assert template.render([Message("user", "later")], True) == "ok"
    with pytest.raises(Refusal):
        template.render([Message("user", "now")], True)


def test_a_template_that_only_refuses_its_turns_passes_the_trial() -> None:
    assert trial_render("{{ raise_exception('never') }}") is None
    assert trial_render("{{ 1 // 0 }}") is None
    assert trial_render("{% if %}") is None  # does not compile: refused where it is compiled


@pytest.mark.parametrize(
    "source", ["{{ 1 // 0 }}", "{{ messages[9]['x']['y'] }}", "{{ [][3].x }}", "{{ '%d' % 'a' }}", "{% include 'x' %}", "{{ messages | nope }}", "{% if"]
)
def test_every_fault_of_a_template_is_a_refusal(source: str) -> None:
    with pytest.raises(Refusal):
        ChatTemplate(source, {}).render([USER], True)


def _conditions() -> Iterator[tuple[str, int]]:
    yield "{% if 'trigger' in messages[0].content %}x{% endif %}", 1
    yield "{% if message.content is string %}{% endif %}{% if message.content %}{% endif %}{% if message.content != '' %}{% endif %}", 0
    yield "{% set c = message['content'] | trim %}\n{{ 'x' if c.startswith('evil') else '' }}", 1
    yield "{{ message.content.replace('a', 'b') }}", 1
    yield "{{ {'a': 'b'}[message.content] }}", 1
    yield "{% for m in messages | selectattr('content', 'equalto', 'x') %}{% endfor %}", 1
    yield "{% macro f(t) %}{% if t == 'k' %}{% endif %}{% endmacro %}{{ f(message.content) }}", 1
    yield "{% set ns.c = message.content %}{% if 'z' in ns.c %}{% endif %}", 1
    yield "{% for m in messages if 'z' in m.content %}{% endfor %}", 1
    yield "{% set x %}{{ message.content }}{% endset %}{% if 'q' in x %}{% endif %}", 1
    yield "{{ messages | map(attribute='content') | join }}", 0
    yield "{% if message.role == 'user' and message == messages[-1] %}{% endif %}", 0


def test_conditions_on_content_are_listed_and_harmless_questions_about_it_are_not() -> None:
    cases = list(_conditions())
    assert [(len(content_conditions(source)), source) for source, _ in cases] == [(count, source) for source, count in cases]
    assert len(cases) == 12
    assert content_conditions(cases[2][0]) == ["line 2: content is searched: startswith with 'evil'"]
    assert [name for name, fmt in FORMATS.items() if content_conditions(fmt.text)] == []


def test_every_family_that_needs_control_tokens_gets_them_in_the_tests(bases: Callable[[str], Path]) -> None:
    for name in NAMES:
        tokenizer = Tokenizer.from_file(str(bases(name) / "tokenizer.json"))
        assert all(tokenizer.token_to_id(t) is not None for t in (*(FORMATS[name].needs or ()), *FAMILIES.get(name, ((), "", ""))[0]))


def test_a_changed_header_changes_the_digest_of_the_template() -> None:
    template = ChatTemplate(FORMATS["chatml"].text, {})
    assert template.stop == "<|im_end|>" and ChatTemplate(FORMATS["alpaca"].text, {}).stop == ""
    assert replace(template, source=template.source.replace("stop: <|im_end|>", "stop: <|endoftext|>")).digest != template.digest
