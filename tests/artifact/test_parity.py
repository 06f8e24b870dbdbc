"""What is trained is what is served: equal ids by every way to a prompt, and every known way of getting it wrong is shown with a guess."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tuner
from tests.artifact.test_adapter import reseal, trained  # noqa: F401 (a fixture)
from tests.conftest import tuner as command
from tests.conftest import writable_copy
from tuner import pipeline
from tuner.artifact.parity import check_parity, compare, plain_prompts, probes
from tuner.data.record import Message
from tuner.recipe import load_recipe

WITH_LLAMA = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed (extra serve)")


def test_the_prompts_of_a_new_version_are_equal_by_every_way(trained: tuple[Path, Path], tiny_base: Path) -> None:  # noqa: F811
    adapter = tuner.load_adapter("colours@1", trained[0], base=tiny_base)
    found = check_parity(adapter, adapter.base_folder, probes(adapter.encoder), None, "f32", 0, 8)
    assert found.holds and found.ways == ["trainer's rows", "Adapter.answer", "transformers alone"] and found.conversations >= 15
    assert found.equal == {"Adapter.answer": found.conversations, "transformers alone": found.conversations} and not found.differences


@pytest.mark.parametrize("name", ["chatml", *(pytest.param(name, marks=pytest.mark.slow) for name in ("alpaca", "plain"))])
def test_a_named_format_travels_with_the_artifact_and_plain_transformers_renders_it(
    name: str, recipe_file: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    path = recipe_file(template={"format": name, "max_tokens": 128}, train={"max_steps": 2}, evaluate={"base_ways": ["zero_shot"]})
    run = pipeline.run(load_recipe(path), tmp_path / "store", grade_after=False)
    assert run.version is not None
    adapter = tuner.load_adapter(run.version.label, tmp_path / "store", base=tiny_base)
    found = check_parity(adapter, adapter.base_folder, probes(adapter.encoder), None, "f32", 0, 8)
    assert found.holds and found.conversations >= 10
    assert (run.version.folder / "chat_template.jinja").read_text(encoding="utf-8") == adapter.encoder.template.source


@WITH_LLAMA
def test_a_new_version_is_served_by_llama_cpp_with_equal_prompts_and_answers(trained: tuple[Path, Path], tiny_base: Path) -> None:  # noqa: F811
    done = command(
        "parity", "colours@1", "--store", trained[0], "--base", tiny_base, "--engine", "llama_cpp", "--answers", "10", "--max-new-tokens", "8", "--json"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout)
    assert facts["holds"] and facts["equal"]["llama_cpp"] == facts["conversations"] and facts["answers"]["prompts"] == 10
    assert facts["answers"]["identical"] == facts["answers"]["same_first_token"] == 10
    kept = [json.loads(p.read_text()) for p in (trained[1] / "evaluations").glob("*-parity-*/parity.json")]
    assert facts in kept


def test_a_changed_serving_template_is_shown_with_what_it_usually_is(trained: tuple[Path, Path], tiny_base: Path, tmp_path: Path) -> None:  # noqa: F811
    adapter = tuner.load_adapter("colours@1", trained[0], base=tiny_base)
    encoder = adapter.encoder
    asked = [tuple(encoder.template.with_system(c)) for c in probes(encoder)]
    ours = [encoder.prompt_ids(c) for c in asked]
    served = tmp_path / "served"
    writable_copy(trained[1], served)
    source = (served / "chat_template.jinja").read_text(encoding="utf-8")
    begin = [encoder.begin_id] if encoder.begin_id is not None else []
    cases: dict[str, tuple[list[list[int]], str]] = {
        "a doubled begin": ([[*begin, *begin, *ids] for ids in ours], "begin-of-text"),
        "a missing end": ([ids[:-1] for ids in ours], "the end is missing"),
        "something more": ([[*ids, ids[-1]] for ids in ours], "something more at the end"),
    }
    (served / "chat_template.jinja").write_text(source.replace("assistant\n", "assistant"), encoding="utf-8")
    cases["a template without its last line break"] = (plain_prompts(served, asked, {}), "the end is missing")
    for theirs, guess in cases.values():
        equal, differences = compare(encoder, asked, {"ours": ours, "theirs": theirs})
        assert equal == {"theirs": 0} and len(differences) == len(asked)
        assert all(guess in d.guess for d in differences), differences[0]
        assert all(d.ours != d.theirs for d in differences)
    assert len(cases) == 4


def test_parity_of_a_version_whose_template_was_changed_is_refused_first(trained: tuple[Path, Path], tiny_base: Path, tmp_path: Path) -> None:  # noqa: F811
    writable_copy(trained[0], tmp_path / "store")
    folder = tmp_path / "store" / "colours" / "1"
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    reseal(folder)
    done = command("parity", "colours@1", "--store", tmp_path / "store", "--base", tiny_base)
    assert done.returncode == 2 and "template sha256" in done.stderr


def test_an_unknown_engine_or_precision_is_refused_by_name(trained: tuple[Path, Path], tiny_base: Path) -> None:  # noqa: F811
    for words, expected in ((("--engine", "lama_cpp"), "llama_cpp"), (("--engine", "llama_cpp", "--weights", "q4"), "f32")):
        done = command("parity", "colours@1", "--store", trained[0], "--base", tiny_base, *words)
        assert done.returncode == 2 and expected in done.stderr, done.stderr


def test_probes_leave_out_what_the_template_cannot_render(encoder: Any) -> None:
    from tuner.template.render import ChatTemplate
    from tuner.template.tokens import Encoder

    source = "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}{{ messages[0].content }}\n"
    one_turn = Encoder(encoder.tokenizer, ChatTemplate(source, encoder.template.special_tokens), encoder.stop_ids, encoder.spec, "one turn")
    assert 0 < len(probes(one_turn)) < len(probes(encoder)) and all(len(c) == 1 for c in probes(one_turn))
    assert all(isinstance(m, Message) for c in probes(encoder) for m in c)
