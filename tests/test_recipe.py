"""A recipe file: YAML 1.2 read strictly, every problem at once with its line, and written back without loss."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from tests.conftest import ROOT
from tuner.errors import Refusal
from tuner.recipe import MAX_BYTES, MAX_DEPTH, Recipe, load_recipe, parse_yaml, recipe_schema, recipe_text

SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))
SMALL = "name: a\nbase: {model: m}\ndata: {train: a.jsonl}\n"


def value_of(text: str) -> Any:
    return parse_yaml(text, "r.yaml").value


def oracle(text: str) -> Any:
    """ruamel.yaml's own safe YAML 1.2 loader."""
    return YAML(typ="safe", pure=True).load(text)


def load(folder: Path, text: str, *overrides: str, profile: str | None = None) -> Recipe:
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    return load_recipe(folder / "r.yaml", overrides, profile)


def refused(folder: Path, text: str, *overrides: str, profile: str | None = None) -> dict[str, str]:
    """Problems of a recipe as {"line field": "found | accepted | try"}; places outside the file keep their name."""
    with pytest.raises(Refusal) as caught:
        load(folder, text, *overrides, profile=profile)
    file = str(folder / "r.yaml")
    said = {f"{p.where.removeprefix(file).removeprefix(':')} {p.field}".strip(): f"{p.found} | {p.accepted} | {p.try_}" for p in caught.value.problems}
    assert len(said) == len(caught.value.problems)
    return said


# --- scalars -------------------------------------------------------------------------------------------------------

# By YAML 1.2.2, chapter 10.3.2 (core schema).
SCALARS: dict[str, Any] = {
    "2e-3": 0.002, "5e-4": 0.0005, "1e3": 1000.0, "1E+3": 1000.0, ".5": 0.5, "5.": 5.0, "-.5": -0.5, "+1.5": 1.5, "12e03": 12000.0, "-0.0": -0.0,
    "0": 0, "-0": 0, "+1": 1, "-1": -1, "007": 7, "010": 10, "0x1f": 31, "0xFF": 255, "0o17": 15, "12345678901234567890": 12345678901234567890,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    "null": None, "Null": None, "NULL": None, "~": None, "": None,
    "yes": "yes", "no": "no", "on": "on", "off": "off", "Yes": "Yes", "NO": "NO", "y": "y", "n": "n", "tRUE": "tRUE", "nULL": "nULL",
    "1:30": "1:30", "1:30:00": "1:30:00", "190:20:30.15": "190:20:30.15", "0O17": "0O17", "0X1F": "0X1F", "0xfg": "0xfg", "0o8": "0o8", "0x": "0x",
    "1e": "1e", "e3": "e3", "1.2.3": "1.2.3", "++1": "++1", "1,5": "1,5", "1 000": "1 000", "nan": "nan", "inf": "inf", "None": "None", "٣": "٣",
    '"5"': "5", "'true'": "true", '"1e3"': "1e3", "''": "", '"~"': "~",
}  # fmt: skip

# Where ruamel.yaml's safe loader still follows YAML 1.1, and the core schema does not.
NOT_AS_RUAMEL: dict[str, Any] = {
    "0b1": "0b1",
    "1_000": "1_000",
    "2001-12-14": "2001-12-14",
    "2001-12-14T21:59:43Z": "2001-12-14T21:59:43Z",
    "=": "=",
    "<<": "<<",
}
REFUSED_SCALARS = (".inf", "-.inf", "+.inf", ".Inf", ".INF", ".nan", ".NaN", ".NAN", "1e400", "-1e999", "9" * 21, "0x" + "f" * 5000)


def test_plain_scalars_follow_the_yaml_1_2_core_schema() -> None:
    for text, expected in {**SCALARS, **NOT_AS_RUAMEL}.items():
        got = value_of(f"k: {text}")["k"]
        assert (type(got), repr(got)) == (type(expected), repr(expected)), text
    for text, expected in SCALARS.items():
        assert repr(oracle(f"k: {text}")["k"]) == repr(expected), text
    assert len(SCALARS) >= 60


@pytest.mark.parametrize("text", REFUSED_SCALARS, ids=lambda t: t[:12])
def test_numbers_that_are_not_finite_or_absurdly_long_are_refused_by_line(text: str) -> None:
    with pytest.raises(Refusal) as caught:
        value_of(f"a: 1\nk: {text}\n")
    (problem,) = caught.value.problems
    assert problem.where == "r.yaml:2" and problem.field == "k"


def test_a_number_of_thousands_of_digits_is_refused_and_does_not_crash_the_message(tmp_path: Path) -> None:
    said = refused(tmp_path, SMALL + "seed: 0x" + "f" * 5000 + "\n")
    assert said.keys() == {"4 seed"}


def block_scalars(count: int) -> Iterator[str]:
    """Random folded and literal scalars: blank lines, more-indented lines, every chomping mark."""
    dice = random.Random(11)
    for _ in range(count):
        lines = []
        for _ in range(dice.randrange(1, 9)):
            words = " ".join(dice.choices(["one", "two:", "#three", "- four", "5", "'six'", "é😀", "{7}"], k=dice.randrange(1, 6)))
            lines.append(dice.choice(["", "", "  ", "    "]) + words if dice.random() < 0.75 else "")
        lines[0] = lines[0].strip() or "first"
        mark = dice.choice(">|") + dice.choice(["", "-", "+"])
        yield f"k: {mark}\n" + "".join(f"  {line}\n" if line else "\n" for line in lines) + dice.choice(["", "\n", "\n\n"]) + "after: 1\n"


def test_folded_and_literal_scalars_equal_ruamels_own_and_carry_no_fold_mark() -> None:
    swept = 0
    for text in block_scalars(300):
        got = value_of(text)
        assert got == oracle(text), text
        assert "\a" not in got["k"]
        swept += 1
    assert swept == 300


def test_a_folded_scalar_is_one_line() -> None:
    assert value_of("k: >-\n  Sort the sentence\n  into one of: a, b.\n\n  Answer.\n") == {"k": "Sort the sentence into one of: a, b.\nAnswer."}
    assert value_of("k: >\n  a\n  b\n") == {"k": "a b\n"} and value_of("k: |-\n  a\n  b\n") == {"k": "a\nb"}


def test_quoted_text_keeps_json_escapes_and_characters_beyond_16_bits() -> None:
    texts = ["a\tb\\c\"d'", "\x1b[31m", "\x00\x7f\x85", "\u2028\u2029", "\ufeff", "😀", "日本\u200b", "\U0010fffd"]
    for text in texts:
        assert value_of("k: " + json.dumps(text)) == {"k": text}
    assert len(texts) == 8
    with pytest.raises(Refusal, match="half of a surrogate pair"):
        value_of('k: "\\ud83d"')


def test_json_is_a_recipe_too(tmp_path: Path) -> None:
    as_json = json.dumps({"name": "a", "base": {"model": "m"}, "data": {"train": ["a.jsonl"]}, "template": {"system": "😀 é"}}, indent=1)
    assert load(tmp_path, as_json).template.system == "😀 é"


# --- what a file may not hold --------------------------------------------------------------------------------------


def test_a_repeated_key_is_refused_with_both_lines(tmp_path: Path) -> None:
    said = refused(tmp_path, SMALL + "train:\n  epochs: 1\n  order: shuffle\n  epochs: 2\nseed: 1\nseed: 2\n")
    assert said.keys() == {"7 train.epochs", "9 seed"}
    assert "first on line 5" in said["7 train.epochs"] and "first on line 8" in said["9 seed"]


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("a: 1\nb: &x 2\n", 2, "anchor"),
        ("a: 1\nb: *x\n", 2, "alias"),
        ("a: 1\nb: !!str 2\n", 2, "tag"),
        ("a: 1\nb: ! 2\n", 2, "tag"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", 2, "tag"),
        ("a: 1\n&x b: 2\n", 2, "anchor or tag on a key"),
        ("a: 1\n!!str b: 2\n", 2, "anchor or tag on a key"),
        ("a: 1\n? [b]\n: 2\n", 2, "a key that is not text"),
        ("a: 1\n---\nb: 2\n", 3, "second YAML document"),
        ("a: 1\nb: 'x\n", 3, "end of stream"),
        ("a: 1\n\tb: 2\n", 2, "tab|'\\\\t'"),
        ("a: 1\nb: [1, 2\n", 3, "expected"),
        ("a: 1\nb: x\x07y\n", 2, "control character U\\+0007"),
        ('a: 1\nb: "\\UFFFFFFFF"\n', 2, "not YAML"),
        ("%YAML 1.5\n---\na: 1\n", 1, "not YAML"),
        ("%YAML 2.0\n---\na: 1\n", 1, "incompatible"),
    ],
)
def test_yaml_beyond_plain_data_is_refused_by_line(text: str, line: int, word: str) -> None:
    with pytest.raises(Refusal, match=word) as caught:
        value_of(text)
    assert caught.value.problems[0].where == f"r.yaml:{line}"


def test_a_merge_key_is_an_unknown_key(tmp_path: Path) -> None:
    assert "<<" in refused(tmp_path, SMALL + "<<: {seed: 1}\n")["4 <<"]


def test_depth_32_is_read_and_33_is_refused() -> None:
    assert MAX_DEPTH == 32
    deep: Any = value_of("[" * 32 + "]" * 32)
    for _ in range(31):
        (deep,) = deep
    assert deep == []
    with pytest.raises(Refusal, match="nesting deeper than 32"):
        value_of("a: 1\nb: " + "[" * 32 + "]" * 32)
    with pytest.raises(Refusal, match="nesting deeper than 32"):
        value_of("".join("  " * i + "k:\n" for i in range(40)))


HOSTILE = {
    "alias bomb": "a: &a [x, x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(20)),
    "aliases": "a: &a x\nb: [" + "*a, " * 50_000 + "x]\n",
    "brackets": "[" * 250_000,
    "braces": "{" * 250_000,
    "dashes": "- " * 120_000,
    "question marks": "? " * 120_000,
    "brackets by line": "[\n" * 120_000,
    "indentation": "".join(" " * i + "k:\n" for i in range(700)),
    "digits": "k: " + "9" * 250_000,
    "hex digits": "k: 0x" + "f" * 250_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bomb_is_refused_within_seconds(name: str) -> None:
    assert len(HOSTILE[name]) <= MAX_BYTES
    began = time.process_time()
    with pytest.raises(Refusal) as caught:
        value_of(HOSTILE[name])
    assert time.process_time() - began < 5  # 3,000 open brackets once took 4 s, 250,000 would have taken hours
    assert len(str(caught.value)) < 5000


def test_nothing_but_a_refusal_comes_out_of_broken_yaml() -> None:
    seeds = [file.read_text(encoding="utf-8") for file in SHIPPED] + ['a: "\\x41\\U0001F600"\nb: |2+\n  x\n? g\n: [1, {e: f}]\n%YAML 1.2\n--- !!str x\n']
    signs = "\\\"'%!&*|>-+?:,[]{}#\n\t ~@`0123456789xuULP_\x85\u2028\ufeff\x07é"
    dice = random.Random(3)
    ended = {"read": 0, "refused": 0}
    for _ in range(2000):
        chars = list(dice.choice(seeds))
        start = dice.randrange(len(chars))
        chars = chars[start : start + dice.randrange(5, 200)]
        for _ in range(dice.randrange(1, 6)):
            place = dice.randrange(len(chars) + 1)
            chars[place : place + dice.randrange(3)] = dice.choices(signs, k=dice.randrange(4))
        try:
            value_of("".join(chars))
            ended["read"] += 1
        except Refusal:
            ended["refused"] += 1
    assert sum(ended.values()) == 2000 and min(ended.values()) > 100


def test_a_file_over_256_kib_is_refused_and_one_of_256_kib_is_read(tmp_path: Path) -> None:
    assert MAX_BYTES == 256 * 1024
    padding = "#" * (MAX_BYTES - len(SMALL) - 1) + "\n"
    assert load(tmp_path, SMALL + padding).name == "a"
    assert "262145 bytes | at most 262144 bytes" in refused(tmp_path, SMALL + "#" + padding)[""]


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"- a\n- b\n", b"just text\n", b"name: caf\xe9\n", "name: a\n".encode("utf-16")])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(Refusal):
        load_recipe(tmp_path / "r.yaml")


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text(SMALL, encoding="utf-8")
    with pytest.raises(Refusal, match=r"write quickstart\.yaml"):
        load_recipe(tmp_path / "quickstrat.yaml")
    with pytest.raises(Refusal):
        load_recipe(tmp_path)


# --- problems of the content ---------------------------------------------------------------------------------------


def test_an_unknown_key_is_refused_with_the_nearest_known_one_and_its_line(tmp_path: Path) -> None:
    text = SMALL + "train:\n  epochs: 1\n  peak_learning_rat: 1e-3\nmehtod: {rank: 4}\n"
    said = refused(tmp_path, text)
    assert said.keys() == {"6 train.peak_learning_rat", "7 mehtod"}
    assert said["6 train.peak_learning_rat"].endswith("| write peak_learning_rate")
    assert "one of: artifact, base, data" in said["7 mehtod"] and said["7 mehtod"].endswith("| write method")


def test_five_faults_in_five_sections_are_five_problems_with_their_lines(tmp_path: Path) -> None:
    text = (
        "# a comment\nname: a\nbase:\n  model: m\n  revison: abc\ndata:\n  train: a.jsonl\n  task: lable\n"
        "template:\n  max_tokens: many\nmethod:\n  rank: 0\n\ntrain:\n  epochs:\n    - 3\n"
    )
    said = refused(tmp_path, text)
    assert said.keys() == {"5 base.revison", "8 data.task", "10 template.max_tokens", "12 method.rank", "15 train.epochs"}
    assert said["5 base.revison"].endswith("| write revision") and said["8 data.task"].endswith("| write label")
    assert "valid integer" in said["10 template.max_tokens"] and "greater than or equal to 1" in said["12 method.rank"]
    assert "valid number" in said["15 train.epochs"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("train: {epochs: '3'}", "4 train.epochs"),
        ("train: {epochs: yes}", "4 train.epochs"),
        ("train: {max_steps: 1.5}", "4 train.max_steps"),
        ("train: {records_per_step: true}", "4 train.records_per_step"),
        ("train: {gradient_checkpointing: 1}", "4 train.gradient_checkpointing"),
        ("train: {gradient_checkpointing: on}", "4 train.gradient_checkpointing"),
        ("train: 5", "4 train"),
        ("train:", "4 train"),
        ("plan: []", "4 plan"),
        ("seed: -1", "4 seed"),
        ("seed: 4294967296", "4 seed"),
        ("template: {system: 5}", "4 template.system"),
        ("template: {content_tokens: x}", "4 template.content_tokens"),
        ("template: {content_tokens: [x, 5]}", "4 template.content_tokens[1]"),
        ("evaluate:\n  base_ways: [zero_shot, three_shot]", "5 evaluate.base_ways[1]"),
        ("evaluate:\n  base_ways: []", "5 evaluate.base_ways"),
        ("profiles: {cpu: 1}", "4 profiles.cpu"),
        ("method: {dropout: 1}", "4 method.dropout"),
        ("artifact:\n\n  store: 7", "6 artifact.store"),
    ],
)
def test_a_mistyped_value_is_refused_at_its_key(tmp_path: Path, text: str, place: str) -> None:
    assert refused(tmp_path, f"{SMALL}{text}\n").keys() == {place}


def test_problems_inside_sources_and_named_suites_have_their_lines(tmp_path: Path) -> None:
    text = (
        "name: a\nbase: {model: m}\ndata:\n  train:\n    file: a.jsonl\n    take: 0\n  validation: {hub: x/y}\n"
        "  ood:\n    far:\n      files: b.jsonl\n      columns: {prompt: q}\n    near: 5\n    odd: {files: c.jsonl, hub: x/y}\n"
        "  checks: {overlap: dorp}\n"
    )
    said = refused(tmp_path, text)
    assert said.keys() == {"5 data.train.file", "6 data.train.take", "7 data.validation", "11 data.ood.far.columns", "12 data.ood.near",
                           "13 data.ood.odd", "14 data.checks.overlap"}  # fmt: skip
    assert "revision" in said["7 data.validation"] and "both `prompt` and `completion`" in said["11 data.ood.far.columns"]
    assert "either `files` or `hub`" in said["13 data.ood.odd"] and said["14 data.checks.overlap"].endswith("| write drop")


def test_help_inside_a_named_suite_is_that_of_its_own_keys(tmp_path: Path) -> None:
    text = "name: a\nbase: {model: m}\ndata:\n  train: a\n  ood:\n    far:\n      files: b\n      colums: {}\n      take: 0\n      columns: {promt: x}\n"
    said = refused(tmp_path, text)
    assert said.keys() == {"8 data.ood.far.colums", "9 data.ood.far.take", "10 data.ood.far.columns.promt"}
    assert said["8 data.ood.far.colums"].endswith("| write columns") and said["10 data.ood.far.columns.promt"].endswith("| write prompt")
    assert "use only this many records" in said["9 data.ood.far.take"]


def test_missing_keys_are_named(tmp_path: Path) -> None:
    said = refused(tmp_path, "seed: 1\n")
    assert {key.split()[-1] for key in said} == {"name", "base", "data"}
    assert refused(tmp_path, "name: a\nbase: {}\ndata:\n  task: text\n").keys() == {"2 base.model", "3 data.train"}


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", ".a", "../a", "a/b", "ä", "a" * 65, '"a\\n"', '"a\\0"'])
def test_an_adapter_name_that_could_not_be_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    said = refused(tmp_path, SMALL.replace("name: a", f"name: {name}"))
    assert said.keys() == {"1 name"}


def test_a_control_character_in_a_key_is_shown_as_an_escape(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as caught:
        load(tmp_path, SMALL + '"\\e[31mred\\e[0m": 1\n')
    assert "\x1b" not in str(caught.value) and "\\x1b[31mred" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("data: {train: {files: a, hub: b/c}}", "either `files` or `hub`"),
        ("data: {train: {hub: b/c}}", "needs `revision`"),
        ("data: {train: {hub: b/c, revision: main}}", "pattern"),
        ("data: {train: []}", "either `files` or `hub`"),
        ("data: {train: a, held_out: b, cut: {held_out: 0.1}}", "given both as a source and in `cut`"),
        ("data: {train: a, cut: {held_out: 0.5, validation: 0.5}}", "leaves nothing to train on"),
        ("data: {train: {files: a, columns: {prompt: b}}}", "both `prompt` and `completion`"),
        ("data: {train: {files: a, columns: {messages: b, prompt: c}}}", "either `messages`"),
        ("data: {train: {files: a, columns: {messages: b, prompt: c, completion: d}}}", "either `messages`"),
    ],
)
def test_sections_that_contradict_themselves_are_refused(tmp_path: Path, text: str, word: str) -> None:
    (said,) = refused(tmp_path, f"name: a\nbase: {{model: m}}\n{text}\n").values()
    assert word in said
    with pytest.raises(Refusal, match="trust_remote_code needs `revision`"):
        load(tmp_path, "name: a\nbase: {model: m, trust_remote_code: true}\ndata: {train: a}\n")


# --- sources, overrides, profiles ----------------------------------------------------------------------------------


def test_short_and_long_forms_of_a_source_are_the_same_recipe(tmp_path: Path) -> None:
    forms = ("a.jsonl", "[a.jsonl]", "{files: a.jsonl}", "{files: [a.jsonl]}", "\n    files:\n    - a.jsonl")
    recipes = [load(tmp_path, f"name: a\nbase: {{model: m}}\ndata:\n  train: {form}\n  ood: {{x: b.jsonl}}\n") for form in forms]
    assert {r.digest for r in recipes} == {recipes[0].digest}
    assert [r.data.train.files for r in recipes] == [["a.jsonl"]] * len(forms)
    assert recipes[0].data.ood["x"].files == ["b.jsonl"]


def test_overrides_set_any_key_from_the_command_line(tmp_path: Path) -> None:
    text = SMALL + "train: {epochs: 1, order: shuffle}\ntemplate:\n"
    r = load(tmp_path, text, "train.epochs=3", "train.peak_learning_rate=2e-3", "template.system=Be brief.", "seed=7", "evaluate.metrics=[exact_match]",
             "data.ood.far=far.jsonl", "data.ood.far.take=5", "train.max_steps=")  # fmt: skip
    assert (r.train.epochs, r.train.peak_learning_rate, r.train.order, r.train.max_steps) == (3.0, 0.002, "shuffle", None)
    assert (r.template.system, r.seed, r.evaluate.metrics) == ("Be brief.", 7, ["exact_match"])
    assert (r.data.ood["far"].files, r.data.ood["far"].take) == (["far.jsonl"], 5)


@pytest.mark.parametrize("short", ["a.jsonl", "[a.jsonl]", "{files: a.jsonl}"])
@pytest.mark.parametrize("split", ["train", "validation", "held_out", "ood.far"])
def test_an_override_reaches_inside_a_source_in_short_form(tmp_path: Path, short: str, split: str) -> None:
    inner = f"ood: {{far: {short}}}" if split == "ood.far" else "" if split == "train" else f"{split}: {short}"
    r = load(tmp_path, f"name: a\nbase: {{model: m}}\ndata:\n  train: {short}\n  {inner}\n", f"data.{split}.take=5")
    source = r.data.ood["far"] if split == "ood.far" else getattr(r.data, split)
    assert (source.files, source.take) == (["a.jsonl"], 5)


@pytest.mark.parametrize(
    ("override", "place", "word"),
    [
        ("train", "command line", "key.path=value"),
        ("=5", "command line", "key.path=value"),
        ("tr ain=5", "command line", "key.path=value"),
        ("train.epohs=3", "command line train.epohs", "write epochs"),
        ("train.epochs=many", "command line train.epochs", "valid number"),
        ("evaluate.batch=0", "command line evaluate.batch", "greater than or equal to 1"),
        ("data.cut={validation: 2}", "command line data.cut.validation", "less than 0.9"),
        ("name.x=1", "command line name.x", "name is not a section"),
        ("train.epochs.x=1", "command line train.epochs.x", "train.epochs is not a section"),
        ("train.schedule.x=1", "command line train.schedule", "cosine, linear or constant"),
        ("train.epochs=[1", "command line, train.epochs:1", "YAML"),
        ("train.epochs=&a 1", "command line, train.epochs:1", "anchor"),
        ("..=1", "command line", "unknown key"),
    ],
)
def test_a_bad_override_is_refused_as_from_the_command_line(tmp_path: Path, override: str, place: str, word: str) -> None:
    said = refused(tmp_path, SMALL + "train: {epochs: 1}\n", override)
    assert said.keys() == {place} and word in said[place]


def test_a_profile_is_applied_and_overrides_come_after_it(tmp_path: Path) -> None:
    text = SMALL + "train: {epochs: 1}\nprofiles:\n  cpu: {data.train.take: 600, train.epochs: 2, train.order: length_groups}\n  gpu: {}\n"
    assert load(tmp_path, text).train.epochs == 1.0
    r = load(tmp_path, text, "train.epochs=3", profile="cpu")
    assert (r.train.epochs, r.train.order, r.data.train.take) == (3.0, "length_groups", 600)
    assert load(tmp_path, text, profile="gpu").digest == load(tmp_path, text).digest


def test_an_unknown_profile_and_a_fault_inside_one_are_refused_by_line(tmp_path: Path) -> None:
    text = SMALL + "train: {epochs: 1}\nprofiles:\n  cpu:\n    train.epochs: many\n    seed: 2\n"
    assert "write cpu" in refused(tmp_path, text, profile="cpuu")["5 profiles"]
    assert refused(tmp_path, text, profile="cpu").keys() == {"7 train.epochs"}
    assert "none defined" in next(iter(refused(tmp_path, SMALL, profile="cpu").values()))


# --- written back, digest, schema ----------------------------------------------------------------------------------


@pytest.mark.parametrize("comments", [True, False])
def test_shipped_recipes_written_back_are_the_same_recipes(tmp_path: Path, comments: bool) -> None:
    for file in SHIPPED:
        before = load_recipe(file)
        text = recipe_text(before, comments)
        after = load(tmp_path, text)
        assert after.model_dump() == before.model_dump() and after.digest == before.digest
        assert recipe_text(after, comments) == text
        assert oracle(text) == value_of(text)  # another reader reads the same file
        assert ("# " in text) == comments or "#" in (before.template.system or "")
    assert len(SHIPPED) >= 3


@pytest.mark.parametrize("comments", [True, False])
def test_any_text_written_back_is_the_same_text(tmp_path: Path, comments: bool) -> None:
    dice = random.Random(2)
    signs = "ab:#-&*!|>'\"%@`{}[],? \n\t\r\\\x00\x07\x1b\x7f\x80\x85\x9f\xa0é\u2028\u2029\ufeff\ufffe\uffff日😀\U0010ffff"
    base = load(tmp_path, SMALL).model_dump()
    swept = 0
    for _ in range(60):
        words = ["".join(dice.choices(signs, k=dice.randrange(0, 12))) for _ in range(6)]
        base["template"] |= {
            "system": words[0],
            "content_tokens": words[1:3],
            "chat_template_kwargs": {words[3]: words[4], "on": {"yes": [words[5], None, 1e-5]}},
        }
        base["data"]["ood"] = {words[3] or "x": base["data"]["train"]}
        before = Recipe.model_validate(base)
        after = load(tmp_path, recipe_text(before, comments))
        assert after.model_dump() == before.model_dump(), words
        swept += 1
    assert swept == 60


def test_every_default_is_written_and_every_key_explained(tmp_path: Path) -> None:
    bare, explained = recipe_text(load(tmp_path, SMALL), comments=False), recipe_text(load(tmp_path, SMALL))
    written = value_of(bare)
    keys = 0
    for section, model in sections(Recipe):
        if section.startswith("data.cut") or section.count(".") < 1:
            table = written
            for part in filter(None, section.split(".")):
                table = table[part]
            assert list(table) == list(model.model_fields), section
            keys += len(table)
    assert keys > 50
    assert len([line for line in explained.splitlines() if line.lstrip().startswith("#")]) > 50


def test_the_digest_ignores_comments_order_profiles_and_written_defaults(tmp_path: Path) -> None:
    same = [
        SMALL,
        "# note\n" + SMALL,
        "data: {train: a.jsonl}\nbase: {model: m}\nname: a\n",
        SMALL + "seed: 42\ntrain: {epochs: 1.0, order: auto, kernels: auto}\nmethod: {alpha: 32}\n",
        SMALL + "profiles: {cpu: {seed: 3}}\n",
        recipe_text(load(tmp_path, SMALL)),
        '{"name": "a", "base": {"model": "m"}, "data": {"train": "a.jsonl"}}',
    ]
    other = [SMALL + "seed: 43\n", SMALL.replace("a.jsonl", "b.jsonl"), SMALL + "method: {rank: 8}\n", SMALL + "template: {system: ''}\n"]
    digests = [load(tmp_path, text).digest for text in same]
    assert len(set(digests)) == 1
    assert len({load(tmp_path, text).digest for text in other} | set(digests)) == 1 + len(other)


def test_the_schema_is_valid_accepts_the_shipped_recipes_and_refuses_an_unknown_key() -> None:
    schema = json.loads(json.dumps(recipe_schema()))
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    validator = Draft202012Validator(schema)
    for file in SHIPPED:
        recipe = value_of(file.read_text(encoding="utf-8"))
        assert list(validator.iter_errors(recipe)) == [], file.name
        refused_keys = 0
        for section in (None, "base", "data", "template", "train"):
            spoilt = json.loads(json.dumps(recipe))
            (spoilt if section is None else spoilt[section])["no_such_key"] = 1
            refused_keys += not validator.is_valid(spoilt)
        assert refused_keys == 5
    assert len(SHIPPED) >= 3


def test_the_schema_and_the_reader_agree_on_what_is_well_typed(tmp_path: Path) -> None:
    good = ("seed: 1", "train: {epochs: 2}", "train: {epochs: 0.5}", "method: {targets: [q_proj]}", "method: {targets: all-linear}",
            "evaluate: {take: null}", "data: {train: [a, b]}", "data: {train: {files: a, take: 3}}", "data: {train: a, ood: {x: b}}",
            "profiles: {cpu: {seed: 1}}")  # fmt: skip
    bad = ("seed: '1'", "seed: -1", "train: {epochs: 0}", "train: {epochs: x}", "train: {order: sorted}", "method: {targets: 5}", "evaluate: {take: 0}",
           "evaluate: {base_ways: []}",
           "data: {train: 5}", "data: {train: {files: a, tak: 3}}", "data: {train: a, ood: [b]}", "name: A", "data: {}")  # fmt: skip
    validator = Draft202012Validator(recipe_schema())
    for line in good + bad:
        key = line.split(":")[0]
        text = "".join(part + "\n" for part in SMALL.splitlines() if not part.startswith(f"{key}:")) + line + "\n"
        assert validator.is_valid(value_of(text)) == (line in good), line
        try:
            load(tmp_path, text)
            assert line in good, line
        except Refusal:
            assert line in bad, line
    assert len(good) + len(bad) == 23


def sections(model: type[BaseModel], at: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section of the recipe by its dotted place, found by walking the annotations."""
    yield at, model
    for name, info in model.model_fields.items():
        for inner in models_in(info.annotation):
            yield from sections(inner, f"{at}.{name}".lstrip("."))


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from models_in(part)


def test_every_key_of_every_section_is_described_in_one_line() -> None:
    swept = set()
    for at, model in sections(Recipe):
        assert (model.__doc__ or "").strip(), model.__name__
        assert model.model_config["extra"] == "forbid" and model.model_config["frozen"] and model.model_config["strict"]
        for name, info in model.model_fields.items():
            assert info.description and info.description == info.description.strip() and "\n" not in info.description, f"{at}.{name}"
            swept.add((model, name))
    assert len(swept) > 50
    assert len({at for at, _ in sections(Recipe)}) >= 12


def test_a_recipe_is_frozen(tmp_path: Path) -> None:
    recipe = load(tmp_path, SMALL)
    swept = 0
    for name in Recipe.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(recipe, name, None)
        section = getattr(recipe, name)
        for key in type(section).model_fields if isinstance(section, BaseModel) else ():
            with pytest.raises(ValidationError, match="frozen"):
                setattr(section, key, None)
            swept += 1
    assert swept > 40


def test_the_recipe_remembers_its_file_and_text_as_written(tmp_path: Path) -> None:
    text = "# why\n" + SMALL
    recipe = load(tmp_path, text, "seed=7")
    assert recipe.path == (tmp_path / "r.yaml").resolve() and recipe.text == text


def test_reading_recipes_and_data_loads_no_heavy_library() -> None:
    heavy = ("torch", "transformers", "peft", "trl", "datasets", "pyarrow")
    code = f"import sys, tuner, tuner.recipe, tuner.data.splits, tuner.data.checks, tuner.artifact.store; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
