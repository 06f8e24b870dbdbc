"""Many processes: real ranks over gloo train what one rank trains, end together, and say which of them was lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT, colour_rows, jsonl
from tests.train.jobs import Bench
from tests.train.rank_processes import Ranks, command_line, ranks
from tuner.base import BaseSpec, Precision, load_model, resolve_base
from tuner.errors import Exit, Refusal
from tuner.train import ranks as together
from tuner.train import sft
from tuner.train.loss import completion_nats
from tuner.train.spec import MethodSpec

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


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
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
            assert all(float((found[n] - expected[n]).abs().max()) < 3e-5 * float(expected[n].abs().max()) for n in expected), cut


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
                                                     pytest.param(signal.SIGKILL, 0, "its process has ended", marks=pytest.mark.slow)])  # fmt: skip
def test_a_rank_that_dies_or_hangs_ends_the_run_and_is_named_with_its_step(fault: signal.Signals, lost: int, says: str, home: Path, tmp_path: Path) -> None:
    folder = copied(home, tmp_path, epochs=1000, hang_seconds=4.0)
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


# --- a base in parts -----------------------------------------------------------------------------------------------

SHARDED = {
    "fp32": Precision("cpu", "float32", None, None, True),
    "bf16 base, fp32 adapter": Precision("cpu", "bfloat16", None, None, True),
    "nf4 base, fp32 adapter": Precision("cpu", "bfloat16", None, "nf4", True),
}


def train_in_parts(recipe: Path, results: Path) -> None:
    """Three steps of a base that PyTorch's own fully_shard cut over the ranks, as accelerate does it on GPUs; then gathered and saved."""
    from torch.distributed.fsdp import fully_shard

    together.meet()
    bench = Bench(recipe, results)
    for number, precision in enumerate(SHARDED.values()):
        trainer = bench.trainer(bench.job(precision, records_per_step=7))
        model: Any = trainer.model
        if together.world_size() > 1:
            for layer in model.base_model.model.model.layers:
                fully_shard(layer)
            fully_shard(model)
        here, of_all = sum(getattr(p, "_local_tensor", p).numel() for p in model.parameters()), sum(p.numel() for p in model.parameters())
        optimizer = trainer.create_optimizer()
        for step in (trainer.step_rows[n] for n in range(3)):
            for batch in step.micros:
                torch.autograd.backward([completion_nats(model, model, batch) * (together.world_size() / step.loss_tokens)])
            optimizer.step()
            optimizer.zero_grad()
        state = sft.adapter_state(trainer)
        logits = model(input_ids=torch.arange(1, 40)[None, :]).logits.detach()
        trained = sft.Trained(model, state, trainer.shapes, True, 1.0, True, 3, 0, 0, 0.0, 0, (), 3)
        if together.is_main():
            sft.save_adapter(trained, trainer.job.method, results / str(number), "tiny", None)
            save_file({"logits": logits, "share": torch.tensor(here / of_all)}, results / f"{number}.logits")
    together.part()


def test_an_adapter_gathered_from_parts_is_that_of_one_whole_base(home: Path, tiny_base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    for world in (1, 2):
        (tmp_path / f"{world}").mkdir()
        with ranks(world, train_in_parts, home / "recipe.yaml", tmp_path / f"{world}", output=tmp_path / f"said-{world}") as running:
            assert running.codes() == [0] * world, running.said[-3000:]
    for number, (name, precision) in enumerate(SHARDED.items()):
        whole, parts = (load_file(tmp_path / f"{world}" / str(number) / "adapter_model.safetensors") for world in (1, 2))
        moved = max(float(t.abs().max()) for n, t in whole.items() if "lora_B" in n)
        close = 1e-3 if precision.weights == "float32" else 0.2
        assert moved > 1e-4 and whole.keys() == parts.keys() and all(torch.allclose(whole[n], parts[n], atol=close * moved) for n in whole), name
        seen = load_file(tmp_path / "2" / f"{number}.logits")
        assert float(seen["share"]) == pytest.approx(1 / 2, abs=0.01)
        base = load_model(resolve_base(BaseSpec(model=str(tiny_base)), tiny_base), replace(precision, sharded=False))
        plain = PeftModel.from_pretrained(base, tmp_path / "2" / str(number))
        found = plain(input_ids=torch.arange(1, 40)[None, :]).logits
        assert torch.allclose(found.float(), seen["logits"].float(), atol=1e-4 if precision.weights == "float32" else 3e-2), name


@pytest.mark.parametrize(("what", "says"), [
    ("a missing tensor", "1 missing or unknown"), ("another shape", "1 of another shape"), ("an empty tensor", "1 empty or not finite"),
    ("not a number", "1 empty or not finite"), ("B all zero", "leaves every logit"), ("a part of a tensor", "1 of another shape"),
])  # fmt: skip
@pytest.mark.parametrize("sharded", [True, False])
def test_what_sharding_can_do_to_an_adapter_is_refused_when_it_is_saved(what: str, says: str, sharded: bool, bench: Bench, tmp_path: Path) -> None:
    trained = bench.train(bench.job(max_steps=2))
    state, name = dict(trained.state), next(name for name in trained.state if "lora_A" in name)
    if what == "a missing tensor":
        del state[name]
    elif what == "B all zero":
        state |= {n: torch.zeros_like(t) for n, t in state.items() if "lora_B" in n}
    else:
        whole = state[name]
        state[name] = {"another shape": whole.T.contiguous(), "an empty tensor": whole.new_empty(0), "not a number": whole * float("nan"),
                       "a part of a tensor": whole[: len(whole) // 2].clone()}[what]  # fmt: skip
    if sharded:
        with pytest.raises(Refusal, match=says):
            sft.save_adapter(replace(trained, state=state, sharded=True), MethodSpec(rank=4), tmp_path / "saved", "tiny", None)
    elif what in ("not a number", "B all zero"):  # a whole model takes no other tensors
        with pytest.raises(Refusal, match=says):
            sft.save_adapter(replace(trained, state=state), MethodSpec(rank=4), tmp_path / "saved", "tiny", None)


# --- accelerate's configurations -----------------------------------------------------------------------------------


CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))


def launcher_arguments(config: Path, folder: Path) -> tuple[Any, Any]:
    """What accelerate's own launcher makes of a file: its arguments and the configuration."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    given = launch_command_parser().parse_args(["--config_file", str(config), "-m", "tuner", "train", str(folder / "recipe.yaml")])
    arguments, configuration, _ = _validate_launch_command(given)
    return arguments, configuration


def launcher_environment(config: Path, folder: Path) -> dict[str, str]:
    """The variables that accelerate's launcher would start ranks with, but for those of the place."""
    from accelerate.utils import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

    arguments, _ = launcher_arguments(config, folder)
    arguments.main_process_port, arguments.num_machines = None, 1  # no port of this machine is looked at
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = "zero_stage"
        _, env = prepare_deepspeed_cmd_env(arguments)
    elif arguments.use_fsdp or arguments.multi_gpu:
        env = prepare_multi_gpu_env(arguments)
    else:
        _, env = prepare_simple_launcher_cmd_env(arguments)
    return {name: value for name, value in env.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def plan_and_train(folder: Path, *overrides: str) -> None:
    """`tuner plan`, then two steps of `tuner train`, on one rank."""
    for words in (["plan", "recipe.yaml", "--json"], ["train", "recipe.yaml"]):
        try:
            command_line(folder, *words, *overrides)
        except SystemExit as out:
            if out.code:
                raise


def test_every_shipped_configuration_has_its_launch_line_and_the_keys_of_this_accelerate(tmp_path: Path) -> None:
    found = {}
    for config in CONFIGS:
        head = config.read_text(encoding="utf-8").split("compute_environment")[0]
        assert f"accelerate launch --config_file recipes/accelerate/{config.name}" in head and "-m tuner run" in head
        arguments, configuration = launcher_arguments(config, tmp_path)  # unknown keys raise here
        unknown = [k for k in {**configuration.fsdp_config, **configuration.deepspeed_config} if not hasattr(arguments, k)]
        assert not unknown and arguments.mixed_precision == "no", (config.name, unknown)
        found[config.stem] = (str(configuration.distributed_type.value), arguments.fsdp_version if arguments.use_fsdp else arguments.zero_stage)
    assert found == {
        "cpu": ("MULTI_GPU", None), "ddp": ("MULTI_GPU", None), "ddp_nodes": ("MULTI_GPU", None), "fsdp2": ("FSDP", 2), "fsdp2_nf4": ("FSDP", 2),
        "one_gpu": ("NO", None), "zero2": ("DEEPSPEED", 2), "zero3": ("DEEPSPEED", 3),
    }  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_plans_and_trains_two_steps(config: Path, home: Path, tmp_path: Path) -> None:
    """On CPUs accelerate shards nothing: under FSDP's configuration each rank holds a whole base. DeepSpeed is tried where it is installed."""
    folder = copied(home, tmp_path, max_steps=2)
    env = {**launcher_environment(config, folder), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    world = 1 if config.stem == "one_gpu" else 2
    deepspeed = "ACCELERATE_USE_DEEPSPEED" in env
    if deepspeed and find_spec("deepspeed") is None:
        with ranks(1, command_line, folder, "plan", "recipe.yaml", output=folder / "said", env=env) as running:
            assert running.codes() == [0] and "trainable beside" in running.said, running.said[-3000:]
        pytest.skip("planned only: deepspeed is not installed")
    overrides = ["base.load=nf4"] if "nf4" in config.stem else []
    with ranks(world, plan_and_train, folder, *overrides, output=folder / "said", env=env) as running:
        assert running.codes() == [0] * world, running.said[-3000:]
    assert len(losses(folder)) == 3 and list((folder / "adapters" / "colours").glob("[0-9]*")) == [folder / "adapters" / "colours" / "1"]


# --- through the launcher ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_under_accelerates_launcher_a_lost_rank_is_named_and_the_run_goes_on(home: Path, tmp_path: Path) -> None:
    folder = copied(home, tmp_path, epochs=1000)
    config = ROOT / "recipes" / "accelerate" / "cpu.yaml"
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "-m", "tuner", "train", "recipe.yaml"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    with open(folder / "said", "w", encoding="utf-8") as out:
        launcher = subprocess.Popen(words, cwd=folder, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not list((folder / "runs").rglob("MANIFEST.json")):
            assert time.monotonic() < deadline and launcher.poll() is None, (folder / "said").read_text(encoding="utf-8")[-3000:]
            time.sleep(0.05)
        os.kill(ranks_of(launcher.pid)[1], signal.SIGKILL)
        assert launcher.wait(60) == 1  # accelerate's own code, whatever its ranks end with
    finally:
        launcher.kill()
    said = (folder / "said").read_text(encoding="utf-8")
    assert re.search(r"rank 1 \(process \d+ on \S+\): its process has ended; its last finished step is \d+", said), said[-3000:]
    assert re.search(r"rank +: 0 .*\n +exitcode +: 5 ", said), said[-3000:]
    with launched(folder, 2, "train", "recipe.yaml", "train.max_steps=2", "--fresh", output="again") as running:
        assert running.codes() == [0, 0], running.said[-3000:]


def ranks_of(launcher: int) -> dict[int, int]:
    """Process of every rank that this launcher started."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
            own = (stat.parent / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        numbers = [int(v[5:]) for v in own if v.startswith(b"RANK=")]
        if parent == launcher and numbers:
            found[numbers[0]] = int(stat.parent.name)
    return found
