"""A version on disk: plain PEFT loads it with the same logits, nothing private is in it, and nothing tampered with is loaded."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tuner
from tests.conftest import colours_in
from tuner import pipeline
from tuner.artifact.adapter import as_messages
from tuner.artifact.manifest import LATER, write_manifest
from tuner.errors import Refusal
from tuner.fingerprint import digest_file
from tuner.recipe import load_recipe

TRAINED: dict[Path, Path] = {}  # a store by its base: trained once for all files of tests, each of which has a copy


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(store, version folder) of an adapter trained for real on the tiny base."""
    if tiny_base not in TRAINED:
        folder = tmp_path_factory.mktemp("trained")
        run = pipeline.run(load_recipe(colours_in(folder, tiny_base)), folder / "store", grade_after=False)
        assert run.version is not None and run.evaluation is None
        TRAINED[tiny_base] = folder / "store"
    store = tmp_path_factory.mktemp("copied") / "store"
    shutil.copytree(TRAINED[tiny_base], store)
    return store, store / "colours" / "1"


@pytest.fixture
def copy(trained: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the store that a test may spoil."""
    shutil.copytree(trained[0], tmp_path / "store")
    for path in (tmp_path / "store").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return tmp_path / "store", tmp_path / "store" / "colours" / "1"


def reseal(folder: Path) -> None:
    """Rewrite the manifest's digests, as an attacker who can write the whole folder would. What was added later goes: a manifest lists none of it."""
    for later in LATER:
        shutil.rmtree(folder / later, ignore_errors=True)
    facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").unlink()
    write_manifest(folder, {k: v for k, v in facts.items() if k not in {"files", "digest"}})


def test_plain_peft_gives_the_same_logits_as_tuner(trained: tuple[Path, Path], tiny_base: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = tuner.load_adapter("colours@1", trained[0], base=tiny_base, load="fp32")
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, trained[1]).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained[1])
    messages = [{"role": "system", "content": "Name it."}, {"role": "user", "content": "thing number 3 please"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert adapter.prompt_ids("thing number 3 please") == ids
    with torch.no_grad():
        theirs = plain(torch.tensor([ids])).logits
        ours = adapter.decoder.model(torch.tensor([ids])).logits
        with plain.disable_adapter():
            without = plain(torch.tensor([ids])).logits
    assert torch.equal(ours, theirs)
    assert (ours - without).abs().max() > 0.05  # the adapter does something


def test_answers_are_the_same_one_by_one_and_in_batches_and_the_base_answers_otherwise(trained: tuple[Path, Path], tiny_base: Path) -> None:
    adapter = tuner.load_adapter(str(trained[1]), base=tiny_base, load="fp32")
    questions = [f"thing number {i} please" + " indeed" * (i % 4) for i in range(9)]
    together = adapter.answer_many(questions, 6)
    assert together == [adapter.answer(q, 6) for q in questions]
    with adapter.as_base():
        assert adapter.answer_many(questions, 6) != together
    assert adapter.answer_many(questions, 6) == together


def test_no_local_path_no_pickle_and_no_training_arguments_in_a_version(trained: tuple[Path, Path], tiny_base: Path) -> None:
    swept = 0
    for file in trained[1].rglob("*"):
        assert file.suffix not in {".bin", ".pt", ".pth", ".pkl"}
        text = file.read_bytes()
        if file.name not in {"recipe.yaml", "resolved.yaml"}:  # as the user wrote them: here the base is an absolute path
            for private in (str(tiny_base), str(Path.home()), str(trained[0]), "/site-packages/"):
                assert private.encode() not in text, (file.name, private)
        swept += 1
    assert swept >= 12


def test_a_version_holds_what_the_design_says(trained: tuple[Path, Path]) -> None:
    wanted = {
        "adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "recipe.yaml", "resolved.yaml",
        "findings.json", "records.parquet", "train_log.jsonl", "manifest.json", "README.md",
    }  # fmt: skip
    assert wanted <= {p.name for p in trained[1].iterdir()}
    manifest = json.loads((trained[1] / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["data"]["files"][0]["read"] == 24 == manifest["data"]["trained"]
    assert manifest["base"]["weight_digest"].startswith("sha256:") and manifest["versions"]["trl"]


def test_another_user_can_read_a_version_and_nobody_can_write_its_files(trained: tuple[Path, Path]) -> None:
    mask = os.umask(0)
    os.umask(mask)
    for path in [trained[1], *trained[1].rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o755 if path.is_dir() else 0o444) & ~(mask & 0o555), path.name


def test_records_parquet_names_every_record_and_holds_no_text(trained: tuple[Path, Path]) -> None:
    import pyarrow.parquet as parquet

    table = parquet.read_table(trained[1] / "records.parquet").to_pylist()
    assert [(r["split"], r["line"]) for r in table] == [("train", i) for i in range(1, 25)]
    assert all(r["hash"].startswith("sha256:") for r in table)
    assert b"thing number" not in (trained[1] / "records.parquet").read_bytes()


def test_a_flipped_byte_is_refused_before_anything_is_loaded(copy: tuple[Path, Path], tiny_base: Path) -> None:
    file = copy[1] / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(Refusal, match="differ from the manifest"):
        tuner.load_adapter("colours@1", copy[0], base=tiny_base)


def test_another_base_is_refused(copy: tuple[Path, Path], tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1e-3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refusal, match="the base it was trained on"):
        tuner.load_adapter("colours@1", copy[0], base=other)


def test_a_local_base_must_be_named(copy: tuple[Path, Path]) -> None:
    with pytest.raises(Refusal, match="--base FOLDER"):
        tuner.load_adapter("colours@1", copy[0])


def test_weights_that_are_not_finite_are_refused(copy: tuple[Path, Path], tiny_base: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = copy[1] / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    weights[name][0, 0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    reseal(copy[1])
    with pytest.raises(Refusal, match="not finite"):
        tuner.load_adapter("colours@1", copy[0], base=tiny_base)


def test_a_missing_tensor_is_refused(copy: tuple[Path, Path], tiny_base: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = copy[1] / "adapter_model.safetensors"
    weights = load_file(file)
    weights.pop(sorted(weights)[0])
    save_file(weights, file, metadata={"format": "pt"})
    reseal(copy[1])
    with pytest.raises(Refusal, match="no such tensor"):
        tuner.load_adapter("colours@1", copy[0], base=tiny_base)


def test_another_tokenizer_is_refused(copy: tuple[Path, Path], tiny_base: Path) -> None:
    (copy[1] / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    reseal(copy[1])
    with pytest.raises(Refusal, match="template sha256"):
        tuner.load_adapter("colours@1", copy[0], base=tiny_base)
    assert tuner.load_adapter("colours@1", copy[0], base=tiny_base, allow=["template"]).allowed == ("template",)
    with pytest.raises(Refusal, match="template"):
        tuner.load_adapter("colours@1", copy[0], base=tiny_base, allow=["tokenizer", "base"])
    with pytest.raises(Refusal, match="one of: base, template, tokenizer"):
        tuner.load_adapter("colours@1", copy[0], base=tiny_base, allow=["everything"])


def test_questions_are_checked() -> None:
    assert as_messages("hi")[0].role == "user"
    for bad in ([{"role": "usr", "content": "a"}], [{"role": "user", "content": 3}], [{"role": "assistant", "content": "a"}], [], "half \ud800 of a pair"):
        with pytest.raises(Refusal):
            as_messages(bad)


def test_the_same_recipe_and_seed_give_the_same_adapter_bytes(trained: tuple[Path, Path], recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file())
    digests = []
    for number in (1, 2):
        run = pipeline.run(recipe, tmp_path / "store", grade_after=False)
        assert run.version is not None and run.version.number == number
        digests.append(digest_file(run.version.folder / "adapter_model.safetensors"))
    assert digests[0] == digests[1]
    other: Any = pipeline.run(load_recipe(tmp_path / "recipe.yaml", ["seed=7"]), tmp_path / "store", grade_after=False)
    assert digest_file(other.version.folder / "adapter_model.safetensors") != digests[0]


def test_a_question_that_leaves_no_room_for_an_answer_is_refused(trained: tuple[Path, Path], tiny_base: Path) -> None:
    adapter = tuner.load_adapter("colours@1", trained[0], base=tiny_base)
    with pytest.raises(Refusal, match="at most 1024"):
        adapter.answer("word " * 1020, 64)


def test_divergences_equal_a_full_softmax_of_plain_peft(trained: tuple[Path, Path], tiny_base: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = tuner.load_adapter("colours@1", trained[0], base=tiny_base, load="fp32")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32), trained[1]).eval()
    texts = ["The quick brown fox jumps over it.", "Red and green.", "A text of quite another length, with more words than the first two of them."]
    found = adapter.divergences(texts)
    for text, one in zip(texts, found, strict=True):
        ids = torch.tensor([adapter.encoder.tokenizer.encode(text).ids])
        with torch.no_grad():
            ours = plain(ids).logits[0, :-1].log_softmax(-1)
            with plain.disable_adapter():
                theirs = plain(ids).logits[0, :-1].log_softmax(-1)
        wanted = ids[0, 1:]
        assert one.tokens == len(wanted)
        assert one.base_nats == pytest.approx(-float(sum(theirs[i, t] for i, t in enumerate(wanted))), rel=1e-4)
        assert one.adapter_nats == pytest.approx(-float(sum(ours[i, t] for i, t in enumerate(wanted))), rel=1e-4)
        assert one.kl_nats == pytest.approx(float((theirs.exp() * (theirs - ours)).sum()), rel=1e-3, abs=1e-5)
        assert one.same_first == int((theirs.argmax(-1) == ours.argmax(-1)).sum())
    assert any(one.kl_nats > 1e-4 for one in found)
    questions = ["thing number 3 please", "what colour?"]
    for question, one in zip(questions, adapter.prompt_divergences(questions), strict=True):
        with torch.no_grad():
            ours = plain(torch.tensor([adapter.prompt_ids(question)])).logits[0, -1].log_softmax(-1)
            with plain.disable_adapter():
                theirs = plain(torch.tensor([adapter.prompt_ids(question)])).logits[0, -1].log_softmax(-1)
        assert (one.tokens, one.kl_nats) == (1, pytest.approx(float((theirs.exp() * (theirs - ours)).sum()), rel=1e-3, abs=1e-5))


def test_token_losses_add_up_and_continuations_go_on_from_a_beginning(trained: tuple[Path, Path], tiny_base: Path) -> None:
    adapter = tuner.load_adapter("colours@1", trained[0], base=tiny_base, load="fp32")
    questions, answers = ["thing number 3 please", "thing number 14"], ["red", "a longer green answer"]
    nats = adapter.token_nats(questions, answers)
    assert [len(n) for n in nats] == [len(adapter.completion_ids(q, a)) for q, a in zip(questions, answers, strict=True)]
    assert [sum(n) for n in nats] == pytest.approx([total for total, _ in adapter.losses(questions, answers)])
    whole = adapter.greedy_ids([adapter.prompt_ids(q) for q in questions], 6)
    beginnings = [ids[:1] for ids in whole]
    assert [b + rest for b, rest in zip(beginnings, adapter.continuations(questions, beginnings, 5), strict=True)] == whole


def test_without_system_leaves_out_the_recipes_system_prompt_and_nothing_else(trained: tuple[Path, Path], tiny_base: Path) -> None:
    adapter = tuner.load_adapter("colours@1", trained[0], base=tiny_base, load="fp32")
    said = adapter.encoder.decode(adapter.prompt_ids("hello"))
    with adapter.without_system():
        plain = adapter.encoder.tokenizer.decode(adapter.prompt_ids("hello"), skip_special_tokens=False)
        own = adapter.prompt_ids([{"role": "system", "content": "Sing."}, {"role": "user", "content": "hello"}])
    assert "Name it." in said and "Name it." not in plain and "hello" in plain
    assert adapter.prompt_ids([{"role": "system", "content": "Sing."}, {"role": "user", "content": "hello"}]) == own
    assert "Name it." in adapter.encoder.decode(adapter.prompt_ids("hello"))
