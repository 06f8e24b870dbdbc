"""A Modelfile asks what the chat template asks: its TEMPLATE, read by a small evaluation of Go's language, gives the same ids on many conversations."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.template.format_bases import FAMILIES, format_base
from tuner.artifact.export_ollama import TRIM, Turns, go_template, modelfile, turns_of
from tuner.data.record import Message
from tuner.errors import Refusal
from tuner.template.formats import FORMATS
from tuner.template.render import ChatTemplate
from tuner.template.spec import TemplateSpec
from tuner.template.tokens import Encoder, open_encoder

WORDS = (
    "hello", "two\n\nparagraphs\n", "  blanks  ", "tab\tand 1234567890", "Grüße 你好 🙂", "{{ 7 * 7 }} {% if x %}", "### Instruction: [/INST] USER:", "x" * 300,
    '{"json": "a \\"b\\""}', "{{ .System }}", "a\u00a0b\u200bc", "?",
)  # fmt: skip
TRIMMING = {"gemma", "llama-3"}
WITHOUT_SYSTEM = {"gemma"}


# --- Go's text/template, as much of it as is written, after https://pkg.go.dev/text/template


def go_render(source: str, messages: Sequence[Message]) -> str:
    parts = re.split(r"\{\{(.*?)\}\}", source, flags=re.DOTALL)
    tokens = [(i % 2 == 1, part.strip() if i % 2 else part) for i, part in enumerate(parts)]
    variables: dict[str, str] = {}
    out: list[str] = []

    def value(word: str, dot: Any) -> Any:
        if word.startswith('"'):
            return word[1:-1]
        return variables[word] if word.startswith("$") else {".Role": dot.role, ".Content": dot.content}[word]

    def holds(words: list[str], dot: Any) -> bool:
        assert words[0] in ("eq", "ne") and len(words) == 3, words
        return bool((value(words[1], dot) == value(words[2], dot)) == (words[0] == "eq"))

    def run(at: int, dot: Any, alive: bool) -> int:
        """Runs up to the `end` or `else` that closes this level; gives its place."""
        while at < len(tokens):
            is_code, text = tokens[at]
            words = text.split()
            if not is_code:
                out.append(text if alive else "")
            elif words[0] in ("end", "else"):
                return at
            elif words[0] == "range":
                assert words[1:] == [".Messages"]
                end = run(at + 1, messages[0], False)
                for item in messages if alive else ():
                    run(at + 1, item, True)
                at = end
            elif words[0] == "if":
                at = branches(at, dot, alive)
            elif words[1:2] in (["="], [":="]):
                if alive:
                    variables[words[0]] = value(words[2], dot)
            else:
                assert words == [".Content"], words
                out.append(dot.content if alive else "")
            at += 1
        return at

    def branches(at: int, dot: Any, alive: bool) -> int:
        done = False
        while True:
            words = tokens[at][1].removeprefix("else").split()
            now = alive and not done and (not words or holds(words[1:], dot))
            done = done or now
            at = run(at + 1, dot, now)
            if tokens[at][1] == "end":
                return at

    assert run(0, None, True) == len(tokens)
    return "".join(out)


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Commands of a Modelfile, rune by rune as ollama/ollama parser/parser.go does: a value ends at the first line break at which it is a whole one."""
    commands, at = [], 0
    while at < len(text):
        head = re.compile(r"([A-Za-z]+) (?:([a-z_]+) )?").match(text, at)
        assert head
        name, parameter = head[1].lower(), head[2]
        if name != "parameter":
            head = re.compile(r"([A-Za-z]+) ").match(text, at)
            assert head
        end = head.end()
        while True:
            end = text.index("\n", end)
            value = text[head.end() : end].strip(" \t\n\r")
            if value.startswith('"""'):
                if len(value) >= 6 and value.endswith('"""'):
                    commands.append((parameter or name, value[3:-3]))
                    break
            elif not value.startswith('"'):
                commands.append((parameter or name, value))
                break
            end += 1
        at = end + 1
    return commands


# --- conversations


def conversations(with_system: bool) -> Iterator[list[Message]]:
    for turns, start, led in itertools.product((1, 3, 5, 7), range(len(WORDS)), (False, True) if with_system else (False,)):
        words = itertools.islice(itertools.cycle(WORDS), start, None)
        roles = [*(["system"] if led else []), *(["user", "assistant"] * 4)[:turns]]
        yield [Message(role, next(words)) for role in roles]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def templates(encoder: Any) -> dict[str, ChatTemplate]:
    """Every format with its family's own beginning and end, and SmolLM2's own template."""
    ends = {name: FAMILIES.get(name, ((), "<|im_start|>", "<|im_end|>"))[1:] for name in FORMATS}
    made = {name: ChatTemplate(FORMATS[name].text, {"bos_token": bos, "eos_token": eos}) for name, (bos, eos) in ends.items()}
    return {**made, "its own": encoder.template}


@pytest.fixture(scope="module")
def encoders(smollm2: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoder]:
    home = tmp_path_factory.mktemp("formats")
    made = {name: open_encoder(format_base(name, smollm2.folder, home / name), TemplateSpec(format=name), name) for name in FORMATS}
    return {**made, "its own": open_encoder(smollm2.folder, TemplateSpec(), "smollm2")}


def test_every_format_is_written_and_its_template_gives_the_text_of_training(templates: dict[str, ChatTemplate]) -> None:
    swept = 0
    for name, template in templates.items():
        turns = turns_of(template, name, (TRIM,))
        written = dict(read_modelfile(modelfile("m.gguf", turns, None, ["<end>"], 512)))
        for conversation in conversations(name not in WITHOUT_SYSTEM):
            asked = [m.saying(m.content.strip(), m.tool_calls, m.tools) for m in conversation] if name in TRIMMING else conversation
            assert go_render(written["template"], asked) == turns.render(asked) == template.render(asked, generation_prompt=True), (name, asked)
            swept += 1
    assert len(templates) == 11 and swept == 11 * 96 - 48


def test_the_text_of_smollm2s_own_template_has_the_ids_of_training(encoder: Any) -> None:
    written = go_template(turns_of(encoder.template, "its own"))
    swept = [(go_render(written, c), encoder.prompt_ids(c)) for c in conversations(True)]
    assert len(swept) == 96 and all(encoder.tokenizer.encode(text, add_special_tokens=False).ids == ids for text, ids in swept)


@pytest.mark.slow
def test_every_format_on_a_tokenizer_of_its_family_gives_the_ids_of_training(encoders: dict[str, Encoder]) -> None:
    swept = 0
    for name, encoder in encoders.items():
        turns = turns_of(encoder.template, name, (TRIM,))
        written = dict(read_modelfile(modelfile("m.gguf", turns, None, ["<end>"], 512)))
        for conversation in conversations(name not in WITHOUT_SYSTEM):
            if name in TRIMMING:
                conversation = [m.saying(m.content.strip(), m.tool_calls, m.tools) for m in conversation]
            rendered = go_render(written["template"], conversation)
            assert rendered == turns.render(conversation)
            assert encoder.tokenizer.encode(rendered, add_special_tokens=False).ids == encoder.prompt_ids(conversation), (name, conversation)
            swept += 1
    assert len(encoders) == 11 and swept == 11 * 96 - 48 and set(FAMILIES) <= set(encoders)


def test_a_template_that_trims_is_refused_unless_that_is_allowed(templates: dict[str, ChatTemplate]) -> None:
    refused = set()
    for name, template in templates.items():
        try:
            turns_of(template, name)
        except Refusal as refusal:
            assert "cannot trim" in str(refusal) and "--allow trim" in str(refusal)
            refused.add(name)
    assert refused == TRIMMING


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}",
        "{% for m in messages %}{{ m.role }}{{ loop.index }}: {{ m.content }}\n{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {% if 'think' in m.content %}!{% endif %}{{ m.content }}\n{% endfor %}",
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}\n{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if messages | length > 4 %} {% endif %}\n{% endfor %}",
        "{{ messages[-1].content }}", "{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "{{ raise_exception('no') }}",
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
    ],
)  # fmt: skip
def test_a_template_that_does_more_than_write_text_around_turns_is_refused(source: str) -> None:
    with pytest.raises(Refusal, match="fixed text around turns"):
        turns_of(ChatTemplate(source, {}), "it")


def test_a_text_that_a_modelfile_cannot_hold_is_refused() -> None:
    turns = Turns({"user": "u"}, {("user", "assistant"): "a", ("assistant", "user"): "u"}, "go")
    assert read_modelfile(modelfile("m.gguf", turns, 'say "hi" there', ["<e>"], 9))[2] == ("system", 'say "hi" there')
    for system in ('three """ marks', 'one at the end"', "a\u00a0b", "a\u200bb", "a\x07b"):
        with pytest.raises(Refusal, match="SYSTEM"):
            modelfile("m.gguf", turns, system, ["<e>"], 9)
    with pytest.raises(Refusal, match="braces"):
        go_template(Turns({"user": "{{"}, {}, ""))


def test_the_modelfile_is_greedy_and_ends_where_the_artifact_does() -> None:
    turns = Turns({"user": "u"}, {("user", "assistant"): "a", ("assistant", "user"): "u"}, "go")
    commands = read_modelfile(modelfile("m.gguf", turns, "S", ["<a>", "<b>"], 4096))
    assert [c for c in commands if c[0] != "template"] == [
        ("from", "./m.gguf"), ("system", "S"), ("stop", "<a>"), ("stop", "<b>"), ("temperature", "0"), ("repeat_penalty", "1"), ("num_ctx", "4096"),
    ]  # fmt: skip


def test_an_answer_that_was_begun_is_gone_on_with(templates: dict[str, ChatTemplate]) -> None:
    template = go_template(turns_of(templates["chatml"], "chatml"))
    assert go_render(template, [Message("user", "q"), Message("assistant", "beg")]).endswith("<|im_start|>assistant\nbeg")


def test_turns_in_an_order_it_does_not_know_are_refused(templates: dict[str, ChatTemplate]) -> None:
    turns = turns_of(templates["gemma"], "gemma", (TRIM,))
    for roles in (("system", "user"), ("user", "user"), ("assistant", "user")):
        with pytest.raises(Refusal, match="in turn"):
            turns.render([Message(role, "x") for role in roles])


def test_the_sources_of_the_evaluation_are_few() -> None:
    """The evaluator above knows what it must and nothing else: a construct it does not know fails a test instead of passing it."""
    for odd in ("{{ .Prompt }}", "{{ with .System }}x{{ end }}", "{{ range $i, $m := .Messages }}{{ end }}"):
        with pytest.raises((AssertionError, KeyError, AttributeError, IndexError)):
            go_render(odd, [Message("user", "x")])
    assert Path(__file__).name.startswith("test_export")
