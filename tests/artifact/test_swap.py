"""Several versions on one loaded base: each answers as it does when it is loaded alone, and what cannot is refused and changes nothing."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tuner
from tests.artifact.test_adapter import reseal, trained  # noqa: F401 (a fixture)
from tests.artifact.versions import renumbered, small, with_adapter
from tests.conftest import colours_in
from tuner import pipeline
from tuner.artifact.adapter import Adapter
from tuner.artifact.host import REFILLED
from tuner.base import fast_bf16_cpu
from tuner.errors import Refusal
from tuner.recipe import load_recipe
from tuner.train.methods import METHODS

QUESTIONS = [f"thing number {i} please" + " indeed" * (i % 4) for i in range(6)]
KINDS = sorted(set(METHODS) - {"loftq"})  # starts from a base in 4 bits, and is saved as plain LoRA
QUICK = {"dora", "ia3", "prefix"}


@pytest.fixture(scope="module")
def store(trained: tuple[Path, Path], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """colours 1 as trained; 2 and 3 of its settings with other weights; 4 of another rank and other layers; 5 with a saved LM head."""
    place = tmp_path_factory.mktemp("swaps") / "store"
    home = place / "colours"
    home.mkdir(parents=True)
    shutil.copytree(trained[1], home / "1")
    for number in (2, 3):
        like_first(home / "1", home / str(number), seed=number)
    with_adapter(home / "1", home / "4", tiny_base, small("lora", rank=6, alpha=3.0, targets=["q_proj", "down_proj"]), seed=4, spread=2.0)
    with_adapter(home / "1", home / "5", tiny_base, small("lora", modules_to_save=["lm_head"]), seed=5, spread=0.05)
    return place


def like_first(first: Path, folder: Path, seed: int) -> None:
    """A copy whose adapter has the same settings and other weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(first, folder)
    draws = torch.Generator().manual_seed(seed)
    weights = {name: t + torch.randn(t.shape, generator=draws) * 0.3 for name, t in load_file(folder / "adapter_model.safetensors").items()}
    (folder / "adapter_model.safetensors").unlink()
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    renumbered(folder)


def alone(store: Path, name: str, base: Path) -> Adapter:
    return tuner.load_adapter(name, store, base=base, load="fp32")


def logits(adapter: Adapter) -> torch.Tensor:
    """Logits (n, V) after each question."""
    return torch.stack([adapter.next_logits(adapter.prompt_ids(q)) for q in QUESTIONS])


@pytest.fixture
def first(store: Path, tiny_base: Path) -> Adapter:
    return alone(store, "colours@1", tiny_base)


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_a_swapped_adapter_has_the_logits_of_one_loaded_alone_and_so_has_the_first_after_the_way_back(
    number: int, store: Path, tiny_base: Path, first: Adapter
) -> None:
    wanted, before = logits(alone(store, f"colours@{number}", tiny_base)), logits(first)
    with first.as_base():
        base = logits(first)
    first.swap(f"colours@{number}")
    assert first.version.label == f"colours@{number}" and first.manifest["version"] == number
    assert torch.equal(logits(first), wanted) and not torch.equal(wanted, before)
    with first.as_base():
        assert torch.equal(logits(first), base)
    first.swap("colours@1")
    assert torch.equal(logits(first), before)


@pytest.mark.parametrize("kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_versions_of_every_method_sit_beside_each_other_and_change_places(kind: str, trained: tuple[Path, Path], tiny_base: Path, tmp_path: Path) -> None:  # noqa: F811
    home = tmp_path / "colours"
    home.mkdir()
    for number in (1, 2):
        with_adapter(trained[1], home / str(number), tiny_base, small(kind), seed=number, start=7)  # VeRA draws its shared matrices from the start
    wanted = {number: logits(alone(tmp_path, f"colours@{number}", tiny_base)) for number in (1, 2)}
    assert not torch.equal(wanted[1], wanted[2])
    a = alone(tmp_path, "colours@1", tiny_base)
    with a.as_base():
        base = logits(a)
    b = a.beside("colours@2")
    for adapter, number in ((b, 2), (a, 1), (b, 2)):
        assert torch.equal(logits(adapter), wanted[number])
        with adapter.as_base():
            assert torch.equal(logits(adapter), base)
    b.close()
    a.swap("colours@2")
    assert torch.equal(logits(a), wanted[2])


def test_answers_asked_from_threads_are_those_of_each_adapter_asked_alone(store: Path, tiny_base: Path, first: Adapter) -> None:
    names = ["colours@1", "colours@2", "colours@4", "colours@5"]
    wanted = [alone(store, name, tiny_base).answer_many(QUESTIONS, 6) for name in names]
    with first.as_base():
        bare = first.answer_many(QUESTIONS, 6)
    assert len({tuple(answers) for answers in [*wanted, bare]}) == 5
    adapters = [first, *(first.beside(name) for name in names[1:])]
    assert all(adapter.lock is first.lock for adapter in adapters)
    wrong: list[Any] = []

    def ask(adapter: Adapter, answers: list[str]) -> None:
        for turn in range(6):
            if turn % 3 == 2:
                with adapter.as_base():
                    found, expected = adapter.answer_many(QUESTIONS, 6), bare
            else:
                found, expected = [adapter.answer(q, 6) for q in QUESTIONS], answers
            if found != expected:
                wrong.append((adapter, turn, found))

    threads = [threading.Thread(target=ask, args=pair) for pair in zip(adapters, wanted, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def held_floats(adapter: Adapter) -> dict[str, int]:
    """How many numbers each tensor of the loaded model holds."""
    return {name: t.numel() for name, t in adapter.decoder.model.state_dict().items()}


@pytest.mark.parametrize("number", [2, 4, 5])
def test_nothing_of_the_old_weights_stays_in_memory(number: int, store: Path, tiny_base: Path, first: Adapter) -> None:
    old = [p for name, p in first.decoder.model.named_parameters() if "lora_" in name]
    marked = {p.data_ptr() for p in old}
    assert len(marked) == len(old) > 4
    del old
    first.swap(f"colours@{number}")
    gc.collect()
    held = {t.data_ptr() for t in gc.get_objects() if isinstance(t, torch.Tensor) and t.numel() and t.data_ptr() in marked}
    lora = [p for name, p in first.decoder.model.named_parameters() if "lora_" in name]
    fresh = [p for name, p in alone(store, f"colours@{number}", tiny_base).decoder.model.named_parameters() if "lora_" in name]
    assert [tuple(p.shape) for p in lora] == [tuple(p.shape) for p in fresh]
    assert all(torch.equal(a, b) for a, b in zip(lora, fresh, strict=True))
    assert not held or all(any(p.data_ptr() == at for p in lora) for at in held)  # an address may be in use again, by the new weights alone


def test_a_closed_neighbour_leaves_the_first_as_it_was_and_is_refused(store: Path, first: Adapter) -> None:
    before, names, model = logits(first), set(held_floats(first)), first.decoder.model
    second = first.beside("colours@5")
    third = first.beside("colours@2")
    second.close()
    second.close()
    with pytest.raises(Refusal, match="closed"):
        second.answer("thing number 3 please")
    assert torch.equal(logits(first), before)
    third.close()
    assert {n for n in held_floats(first) if "seat" in n} == set() and len(held_floats(first)) <= len(names) + 1
    with first:
        assert torch.equal(logits(first), before)
    calls: list[Callable[[], Any]] = [
        lambda: first.answer("thing"), lambda: first.stream("thing"), lambda: first.swap("colours@2"), lambda: first.beside("colours@2"),
        lambda: first.fits(["thing"], 4), lambda: logits(first),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(Refusal, match="closed"):
            call()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None, "the model is still in memory"


def test_the_first_may_leave_before_the_others(store: Path, tiny_base: Path, first: Adapter) -> None:
    wanted = logits(alone(store, "colours@4", tiny_base))
    second = first.beside("colours@4")
    first.close()
    assert torch.equal(logits(second), wanted)
    second.swap("colours@5")
    assert torch.equal(logits(second), logits(alone(store, "colours@5", tiny_base)))


# --- refused -------------------------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(store: Path, tmp_path: Path) -> Callable[[Callable[[Path], None]], Path]:
    """A store with versions 1 and 2, and a version 9 made of 2 by what is done to it."""
    place = tmp_path / "store"

    def spoil(change: Callable[[Path], None]) -> Path:
        for number in (1, 2, 9):
            folder = place / "colours" / str(number)
            if number == 9 or not folder.exists():
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(store / "colours" / str(min(number, 2)), folder)
                for path in [folder, *folder.rglob("*")]:
                    path.chmod(0o755 if path.is_dir() else 0o644)
        renumbered(folder)
        change(folder)
        return place

    return spoil


def flipped(folder: Path) -> None:
    data = bytearray((folder / "adapter_model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(data)


def with_weights(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "adapter_model.safetensors")
        change(weights)
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        reseal(folder)

    return do


def with_facts(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        change(facts)
        (folder / "manifest.json").write_text(json.dumps(facts), encoding="utf-8")
        reseal(folder)

    return do


def with_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    reseal(folder)


def with_rank(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": config["r"] // 2}), encoding="utf-8")
    reseal(folder)


def not_finite(weights: dict[str, Any]) -> None:
    next(iter(weights.values()))[0, 0] = float("nan")


def without_one(weights: dict[str, Any]) -> None:
    weights.pop(sorted(weights)[0])


def shorter(weights: dict[str, Any]) -> None:
    name = sorted(weights)[0]
    weights[name] = weights[name][:1].clone()


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped byte": (flipped, "differ from the manifest"),
    "not finite": (with_weights(not_finite), "not finite"),
    "a missing tensor": (with_weights(without_one), "tensor"),
    "another shape": (with_weights(shorter), "lora_A"),
    "another rank than its tensors": (with_rank, "lora_A"),
    "another template": (with_template, "template"),
    "another base": (with_facts(lambda facts: facts["base"].update(weight_digest="sha256:" + "0" * 64)), "the base it was trained on"),
    "another tokenizer": (with_facts(lambda facts: facts["template"].update(tokenizer_digest="sha256:" + "0" * 64)), "tokenizer sha256"),
    "another version in its place": (with_facts(lambda facts: facts.update(version=2)), "in its place"),
}


def test_a_newcomer_that_may_not_be_loaded_is_refused_and_changes_nothing(spoilt: Callable[..., Path], tiny_base: Path) -> None:
    adapter = alone(spoilt(flipped), "colours@1", tiny_base)
    before, answers = {n: t.clone() for n, t in adapter.decoder.model.state_dict().items()}, adapter.answer_many(QUESTIONS, 6)
    swept = 0
    for change, reason in SPOILT.values():
        place = spoilt(change)
        for attempt in (adapter.swap, adapter.beside):
            with pytest.raises(Refusal, match=reason):
                attempt("colours@9")
            after = adapter.decoder.model.state_dict()
            assert set(after) == set(before) and all(torch.equal(after[n], t) for n, t in before.items())
            assert adapter.version.label == "colours@1" and adapter.answer_many(QUESTIONS, 6) == answers
        swept += 1
    assert swept == 9
    adapter.swap("colours@2")
    assert torch.equal(logits(adapter), logits(alone(place, "colours@2", tiny_base)))


def test_a_version_served_in_another_precision_is_refused(spoilt: Callable[..., Path], tiny_base: Path) -> None:
    other = "fp32" if fast_bf16_cpu() else "bf16"
    place = spoilt(with_facts(lambda facts: facts["base"].update(load=other)))
    adapter = tuner.load_adapter("colours@1", place, base=tiny_base, device="cpu")
    for attempt in (adapter.swap, adapter.beside):
        with pytest.raises(Refusal, match="load it anew"):
            attempt("colours@9")
    alone(place, "colours@1", tiny_base).swap("colours@9")  # asked for in fp32: then both are


@pytest.mark.parametrize("kind", ["ia3", "prefix"])
def test_another_kind_of_method_is_refused_with_the_reason(kind: str, trained: tuple[Path, Path], tiny_base: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "colours").mkdir()
    shutil.copytree(trained[1], tmp_path / "colours" / "1")
    with_adapter(trained[1], tmp_path / "colours" / "2", tiny_base, small(kind), seed=2)
    for name, other in (("colours@1", "colours@2"), ("colours@2", "colours@1")):
        adapter = alone(tmp_path, name, tiny_base)
        before = logits(adapter)
        for attempt in (adapter.swap, adapter.beside):
            with pytest.raises(Refusal, match="load it anew"):
                attempt(other)
        assert torch.equal(logits(adapter), before)


@pytest.mark.slow
def test_new_tokens_are_each_versions_own_and_another_vocabulary_is_refused(trained: tuple[Path, Path], tiny_base: Path, tmp_path: Path) -> None:  # noqa: F811
    template = {"system": "Name it.", "max_tokens": 128, "new_tokens": ["<ticket>", "<done>"]}
    recipe = colours_in(tmp_path, tiny_base, template=template)
    version = pipeline.run(load_recipe(recipe), tmp_path / "store", grade_after=False).version
    assert version is not None
    like_first(version.folder, version.folder.parent / "2", seed=2)
    shutil.copytree(trained[1], version.folder.parent / "3")
    renumbered(version.folder.parent / "3")
    wanted = {number: logits(alone(tmp_path / "store", f"colours@{number}", tiny_base)) for number in (1, 2)}
    assert not torch.equal(wanted[1], wanted[2])
    a = alone(tmp_path / "store", "colours@1", tiny_base)
    b = a.beside("colours@2")
    assert torch.equal(logits(a), wanted[1]) and torch.equal(logits(b), wanted[2]) and torch.equal(logits(a), wanted[1])
    for attempt in (a.swap, a.beside):
        with pytest.raises(Refusal, match=r"tokenizer|new_tokens"):
            attempt("colours@3")
    a.swap("colours@2")
    assert torch.equal(logits(a), wanted[2])
    grown = alone(tmp_path / "store", "colours@3", tiny_base)
    with pytest.raises(Refusal, match="embedding rows"):
        grown.beside("colours@1")


def test_every_method_of_the_table_was_tried_and_those_that_refill_are_known() -> None:
    assert len(KINDS) == 14 and set(REFILLED) == {"LORA", "IA3"}
