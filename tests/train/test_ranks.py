"""Many processes: real ranks over gloo train what one rank trains, end together, and say which of them was lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import colour_rows, jsonl
from tests.train.jobs import Bench
from tests.train.rank_processes import Ranks, command_line, ranks
from tuner.errors import Exit
from tuner.train import ranks as together
from tuner.train import sft

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ranks are forked from a server")

JOBS: dict[str, dict[str, Any]] = {
    "padded, records": {"records_per_step": 7},
    "packed, records": {"records_per_step": 7, "batching": "packed"},
    "padded, tokens": {"records_per_step": None, "tokens_per_step": 300},
    "packed, tokens": {"records_per_step": None, "tokens_per_step": 300, "batching": "packed"},
    "log every 3": {"records_per_step": 5, "log_every_steps": 3, "schedule": "constant"},
}
# Forward passes x rows of the same step of 8: cut by the tokens that one pass may hold. Rows have at most 70.
CUTS = {"1x8": 8 * 70, "2x4": 4 * 70, "8x1": 1}


def uneven_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Records of 24 to about 50 tokens."""
    return [{**row, "prompt": row["prompt"] + " very" * (i * 5 % 23)} for i, row in enumerate(colour_rows(count, start))]


@pytest.fixture(scope="module")
def home(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and its data: 25 records, so that no step of 7 is whole at the end."""
    folder = tmp_path_factory.mktemp("ranks")
    jsonl(folder / "train.jsonl", uneven_rows(25))
    jsonl(folder / "validation.jsonl", uneven_rows(7, 100))
    recipe = {
        "name": "colours", "base": {"model": str(tiny_base), "sanity": "off", "load": "fp32"}, "method": {"rank": 4},
        "data": {"task": "label", "train": "train.jsonl", "validation": "validation.jsonl"}, "template": {"system": "Name the colour.", "max_tokens": 128},
        "train": {"epochs": 2, "peak_learning_rate": 1e-3, "log_every_steps": 1, "records_per_step": 5, "checkpoint_every_steps": 2},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return folder


def copied(home: Path, folder: Path, **train: Any) -> Path:
    """A folder of its own with the same recipe, but for these keys of `train`."""
    for file in home.glob("*.jsonl"):
        shutil.copyfile(file, folder / file.name)
    recipe = json.loads((home / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["train"] |= train
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return folder


def launched(folder: Path, world: int, *words: str, output: str = "said") -> Any:
    """`tuner WORDS` on so many ranks, with a cache of its own."""
    return ranks(world, command_line, folder, *words, output=folder / output, env={"XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"})


# --- what is trained -----------------------------------------------------------------------------------------------


def train_all(recipe: Path, results: Path) -> None:
    """On one rank of several: every job, then the gradients of every cut of one step."""
    together.meet()
    bench = Bench(recipe, results)
    found: dict[str, Any] = {}
    for number, (name, changes) in enumerate(JOBS.items()):
        trained = bench.train(bench.job(**changes))
        if together.is_main():
            found[name] = trained.log
            save_file(dict(trained.state), results / f"{number}.safetensors")
    for name, micro_tokens in CUTS.items():
        gradients = first_gradients(bench, bench.job(records_per_step=8, max_steps=1, micro_tokens=micro_tokens, max_gradient_norm=1e9, order="shuffle"))
        if together.is_main():
            save_file(gradients, results / f"{name}.safetensors")
    if together.is_main():
        (results / "logs.json").write_text(json.dumps(found), encoding="utf-8")
    together.part()


def first_gradients(bench: Bench, job: sft.Job) -> dict[str, torch.Tensor]:
    """The gradients before the first update, from an adapter whose B is not zero."""
    from transformers import TrainerCallback

    found: dict[str, torch.Tensor] = {}

    class Keep(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
            found.update({name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    trainer = bench.trainer(job)
    torch.manual_seed(1)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    trainer.add_callback(Keep())
    trainer.train()
    return found


@pytest.fixture(scope="module", params=[2, 4])
def worlds(request: pytest.FixtureRequest, home: Path, alone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(results of one rank, results of several)."""
    return alone, results_of(home, request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def alone(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return results_of(home, 1, tmp_path_factory)


def results_of(home: Path, world: int, folders: pytest.TempPathFactory) -> Path:
    results = folders.mktemp(f"world-{world}")
    with ranks(world, train_all, home / "recipe.yaml", results, output=results / "said", env={"XDG_CACHE_HOME": str(results / "cache")}) as running:
        assert running.codes() == [0] * world, running.said[-3000:]
    return results


def test_several_ranks_train_what_one_trains(worlds: tuple[Path, Path]) -> None:
    one, several = (json.loads((folder / "logs.json").read_text(encoding="utf-8")) for folder in worlds)
    for number, name in enumerate(JOBS):
        for key in ("loss", "gradient_norm", "validation_loss"):
            expected, found = ([e[key] for e in logs[name] if key in e] for logs in (one, several))
            assert expected and found == pytest.approx(expected, rel=1e-5 if key != "gradient_norm" else 1e-4), (name, key)
        assert [(e["step"], e["tokens"]) for e in one[name]] == [(e["step"], e["tokens"]) for e in several[name]]
        weights = [load_file(folder / f"{number}.safetensors") for folder in worlds]
        assert weights[0].keys() == weights[1].keys()
        moved = max(float(t.abs().max()) for n, t in weights[0].items() if "lora_B" in n)
        assert moved > 1e-4 and all(torch.allclose(weights[0][n], weights[1][n], rtol=1e-3, atol=moved * 1e-3) for n in weights[0]), name


def test_gradients_depend_neither_on_the_cut_of_a_step_nor_on_ranks(worlds: tuple[Path, Path]) -> None:
    expected = load_file(worlds[0] / "1x8.safetensors")
    assert len(expected) == 28 and all(float(t.abs().max()) > 0 for t in expected.values())
    for folder in worlds:
        for cut in CUTS:
            found = load_file(folder / f"{cut}.safetensors")
            assert found.keys() == expected.keys()
            assert all(torch.allclose(found[n], expected[n], rtol=1e-4, atol=1e-7) for n in expected), cut


# --- through the command line --------------------------------------------------------------------------------------

AUDIT = """
import os, sys
def note(event, given):
    if event == "open" and isinstance(given[0], str) and given[0].endswith((".jsonl", ".npy")):
        with open(os.environ["OPENED"] + os.environ.get("RANK", "0"), "a") as out:
            out.write(given[0] + chr(10))
"""


def audited(folder: Path, *words: str) -> None:
    """The command line, noting which files of data each rank opens."""
    namespace: dict[str, Any] = {}
    exec(AUDIT, namespace)
    sys.addaudithook(namespace["note"])
    os.environ["OPENED"] = str(folder / "opened-")
    command_line(folder, *words)


@pytest.fixture(scope="module")
def done(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two ranks."""
    folder = copied(home, tmp_path_factory.mktemp("two"))
    with ranks(2, audited, folder, "train", "recipe.yaml", output=folder / "said", env={"XDG_CACHE_HOME": str(folder / "cache")}) as running:
        assert running.codes() == [0, 0], running.said[-3000:]
    return folder


def adapter_digest(folder: Path, store: str = "adapters") -> str:
    manifest = json.loads((folder / store / "colours" / "1" / "manifest.json").read_text(encoding="utf-8"))
    return str(manifest["files"]["adapter_model.safetensors"])


def losses(folder: Path, store: str = "adapters") -> list[tuple[int, float]]:
    lines = (folder / store / "colours" / "1" / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [(e["step"], e.get("loss", e.get("validation_loss"))) for e in map(json.loads, lines)]


def test_two_ranks_publish_one_version_and_speak_once(done: Path) -> None:
    assert [p.name for p in (done / "adapters" / "colours").iterdir() if p.name != ".lock"] == ["1"]
    said = (done / "said").read_text(encoding="utf-8")
    assert said.count("published colours@1") == said.count("read 25 = kept 25") == said.count("picked: rows") == 1 and "Traceback" not in said
    assert not (done / "runs").exists() or not list((done / "runs").rglob("step-*"))


def test_only_the_main_rank_reads_data_and_the_others_map_its_rows(done: Path) -> None:
    main, other = ((done / f"opened-{rank}").read_text(encoding="utf-8").split("\n") for rank in (0, 1))
    assert any(name.endswith("train.jsonl") for name in main) and not any(name.endswith(".jsonl") for name in other)
    assert sum(name.endswith("tokens.npy") for name in other) > 0
    assert len(list((done / "cache" / "tuner" / "rows").iterdir())) == 1


def test_a_refusal_of_the_main_rank_ends_all_with_its_code_and_is_printed_once(home: Path, tmp_path: Path) -> None:
    folder = copied(home, tmp_path)
    with open(folder / "train.jsonl", "a", encoding="utf-8") as out:
        out.write('{"prompt": "no answer here"}\n')
    with launched(folder, 2, "train", "recipe.yaml") as running:
        assert running.codes() == [Exit.REFUSED, Exit.REFUSED], running.said
        assert running.said.count("train.jsonl:26") >= 1 and running.said.count("  try  ") == 1


def test_a_refusal_of_another_rank_ends_all_too(home: Path, tmp_path: Path) -> None:
    """Another machine without the base: its rank cannot load what the main rank loads."""
    folder = copied(home, tmp_path)
    with ranks(2, without_base, folder, output=folder / "said", env={"XDG_CACHE_HOME": str(folder / "cache")}) as running:
        assert running.codes() == [Exit.REFUSED, Exit.REFUSED], running.said
        assert "base.model" in running.said and running.said.count("  try  ") == 1


def without_base(folder: Path) -> None:
    words = ["train", "recipe.yaml"]
    if not together.is_main():
        words += [f"base.model={folder / 'nowhere'}"]
    command_line(folder, *words)


def test_a_killed_run_of_two_ranks_goes_on_to_the_same_bits(home: Path, done: Path, tmp_path: Path) -> None:
    folder = copied(home, tmp_path)
    with launched(folder, 2, "train", "recipe.yaml") as running:
        wait_for_step(folder, 4, running)
        running.signal(signal.SIGKILL)
        assert running.codes() == [-signal.SIGKILL] * 2
    assert not (folder / "adapters" / "colours" / "1").exists()
    with launched(folder, 2, "train", "recipe.yaml", output="again") as running:
        assert running.codes() == [0, 0], running.said[-3000:]
        assert "going on from step" in running.said
    assert adapter_digest(folder) == adapter_digest(done) and losses(folder) == losses(done)


def wait_for_step(folder: Path, step: int, running: Ranks) -> None:
    """Until a checkpoint of this step or a later one is there."""
    deadline = time.monotonic() + 100
    while not any(int(p.name[5:]) >= step for p in (folder / "runs").rglob("step-*") if (p / "MANIFEST.json").is_file()):
        assert time.monotonic() < deadline and any(p.is_alive() for p in running.processes), running.said[-3000:]
        time.sleep(0.02)


def test_a_signal_stops_all_ranks_after_the_same_step_and_the_run_goes_on(home: Path, done: Path, tmp_path: Path) -> None:
    folder = copied(home, tmp_path, checkpoint_every_steps=0)
    with launched(folder, 2, "train", "recipe.yaml") as running:
        running.wait_for("training 1/")
        running.signal(signal.SIGTERM, 1)  # one rank hears it, both stop
        assert running.codes(40) == [Exit.TERMINATED] * 2, running.said
        assert "Traceback" not in running.said
    (saved,) = (folder / "runs").rglob("step-*")
    with launched(folder, 2, "train", "recipe.yaml", output="again") as running:
        assert running.codes() == [0, 0], running.said[-3000:]
        assert f"going on from step {saved.name.removeprefix('step-')}" in running.said
    assert adapter_digest(folder) == adapter_digest(done) and losses(folder) == losses(done)


@pytest.mark.parametrize(("fault", "lost", "says"), [(signal.SIGKILL, 1, "its process has ended"), (signal.SIGSTOP, 1, "no progress for 4 s"),
                                                     (signal.SIGKILL, 0, "its process has ended")])  # fmt: skip
def test_a_rank_that_dies_or_hangs_ends_the_run_and_is_named_with_its_step(fault: signal.Signals, lost: int, says: str, home: Path, tmp_path: Path) -> None:
    folder = copied(home, tmp_path, epochs=4000, hang_seconds=4.0)
    with launched(folder, 2, "train", "recipe.yaml") as running:
        wait_for_step(folder, 2, running)
        running.signal(fault, lost)
        codes = running.codes(40)
        assert codes[1 - lost] == Exit.RANK_LOST and codes[lost] == -signal.SIGKILL, (codes, running.said[-3000:])
        told = re.search(rf"rank {lost} \(process \d+ on \S+\): {says}; its last finished step is (\d+)", running.said)
        assert told and int(told[1]) >= 2 and "it goes on from the last good checkpoint" in running.said and "Traceback" not in running.said, running.said[
            -3000:
        ]
    assert list((folder / "runs").rglob("step-*"))


def test_a_loss_that_is_not_finite_on_one_rank_ends_all_and_names_the_records_once(home: Path, tiny_base: Path, tmp_path: Path) -> None:
    """One word of one record has an embedding that is not a number: only the rank whose forward pass holds it sees that."""
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    folder, base = copied(home, tmp_path), tmp_path / "broken"
    shutil.copytree(tiny_base, base)
    (word,) = Tokenizer.from_file(str(base / "tokenizer.json")).encode(" zebra", add_special_tokens=False).ids
    model = AutoModelForCausalLM.from_pretrained(base)
    head = model.lm_head.weight.detach().clone()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head)
    with torch.no_grad():
        model.model.embed_tokens.weight[word] = float("nan")
    model.save_pretrained(base)
    rows = [*uneven_rows(24), {"prompt": "a zebra and more words than the others have, so that it is not the shortest", "completion": "red"}]
    jsonl(folder / "train.jsonl", rows)
    with launched(folder, 2, "train", "recipe.yaml", f"base.model={base}", "train.max_gradient_norm=1") as running:
        assert running.codes() == [Exit.REFUSED] * 2, running.said[-3000:]
        assert "train.jsonl:25" in running.said and running.said.count("  try  ") == 1 and "Traceback" not in running.said
        (step,) = re.findall(r"^step (\d+)  loss$", running.said, re.MULTILINE)
        assert 1 <= int(step) <= 5
    assert not (folder / "adapters" / "colours" / "1").exists()
