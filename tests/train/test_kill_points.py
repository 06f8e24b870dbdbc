"""A real training run hit by a fault at an I/O call of one of its checkpoints: started again, it publishes the same adapter to the bit.

Each run is the command line itself, in a forked child of one process that has the libraries loaded and the fault shim preloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.faults import KILLED, MODES, arm, disarm, preload, scratch
from tuner.errors import Exit

STEPS, AT_STEP = 6, 4
TRAIN = {
    "epochs": 1, "records_per_step": 4, "peak_learning_rate": 1e-2, "log_every_steps": 1, "checkpoint_every_steps": 2, "keep_checkpoints": 1,
}  # fmt: skip


def train(folder: Path, log: Path, fault: tuple[int, str] | None = None, count: Path | None = None, kill_after: float | None = None) -> int:
    """`tuner train recipe.yaml` in `folder`, in a forked child; its exit status, negative for the signal that ended it.

    `fault` is (point, mode): armed during the save after AT_STEP alone, for calls below the run's folder.
    """
    sys.stdout.flush()
    if pid := os.fork():
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)  # also of a child that has ended and was not waited for
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(folder)
        _arm_one_save(fault, count)
        sys.argv = ["tuner", "train", "recipe.yaml"]
        from tuner.cli import main

        main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _arm_one_save(fault: tuple[int, str] | None, count: Path | None) -> None:
    """In the child: the real save of one step, with the shim armed around it."""
    from tuner.train.checkpoint import RunFolder

    real = RunFolder.save
    point, mode = (-1, 0) if fault is None else (fault[0], MODES[fault[1]])
    notes = -1 if count is None else os.open(count, os.O_WRONLY | os.O_CREAT)

    def save(self: RunFolder, step: int, *given: Any, **named: Any) -> Path:
        if step != AT_STEP or (fault is None and count is None):
            return real(self, step, *given, **named)
        arm(self.path, point, mode, notes)
        try:
            return real(self, step, *given, **named)
        finally:
            disarm()

    RunFolder.save = save  # type: ignore[method-assign]


def outcome(folder: Path) -> dict[str, Any]:
    """What must not depend on a fault: digest of the only version's adapter and config, every logged number but times."""
    versions = sorted(p.name for p in (folder / "adapters" / "colours").iterdir() if p.name[0] != ".")
    version = folder / "adapters" / "colours" / versions[0]
    lines = [json.loads(line) for line in (version / "train_log.jsonl").read_text().splitlines()]
    return {
        "versions": versions,
        "adapter": hashlib.sha256((version / "adapter_model.safetensors").read_bytes()).hexdigest(),
        "config": hashlib.sha256((version / "adapter_config.json").read_bytes()).hexdigest(),
        "log": [{k: v for k, v in line.items() if k != "seconds"} for line in lines],
        "left": sorted(p.name for p in (folder / "runs").rglob("*")),
    }


def sweep(recipe: Path, work: Path, points: int | None) -> dict[str, Any]:
    """Every point in every mode, or `points` of them spread over the save, the modes in turn. Run in a preloaded process."""
    import peft  # noqa: F401 (loaded once here, used in the children)
    import torch  # noqa: F401
    import transformers  # noqa: F401

    import tuner.pipeline
    import tuner.train.sft  # noqa: F401

    def fresh(name: str) -> Path:
        return Path(shutil.copytree(recipe, work / name))

    reference = fresh("reference")
    assert train(reference, work / "log", count=work / "calls") == 0, (work / "log").read_text()[-3000:]
    wanted, calls = outcome(reference), (work / "calls").read_text(errors="replace").splitlines()
    chosen = [(point, mode) for point in range(1, len(calls) + 1) for mode in MODES]
    if points is not None:
        chosen = [(1 + k * (len(calls) - 1) // (points - 1), list(MODES)[k % len(MODES)]) for k in range(points)]
    found: dict[str, Any] = {"calls": calls, "statuses": {}, "failures": [], "wanted": wanted, "tried": len(chosen)}
    for point, mode in chosen:
        folder, log = fresh("run"), work / "log"
        log.unlink()
        status = train(folder, log, (point, mode))
        found["statuses"].setdefault(mode, []).append(status)
        try:
            _check(folder, log, mode, status, wanted)
        except Exception:  # noqa: BLE001 - a failure of one point must not hide the others
            found["failures"].append(f"{mode} at {calls[point - 1]}: status {status}\n{traceback.format_exc(limit=-2)}\n{log.read_text()[-1500:]}")
        shutil.rmtree(folder)
    return found


def _check(folder: Path, log: Path, mode: str, status: int, wanted: dict[str, Any]) -> None:
    assert status in {0, KILLED} if mode in ("kill", "torn", "power_loss") else status in {0, Exit.REFUSED}
    if status == Exit.REFUSED:
        assert "bytes free" in log.read_text() and "Traceback" not in log.read_text()
    if status != 0:
        assert train(folder, log) == 0
        said = log.read_text()
        assert "going on from step 2" in said or "going on from step 4" in said
    assert outcome(folder) == wanted


def killed_at_random(recipe: Path, work: Path, kills: int) -> dict[str, Any]:
    """Runs killed at random moments and started again until they publish, over and over until `kills` have hit. In a preloaded process."""
    import torch  # noqa: F401

    import tuner.pipeline
    import tuner.train.sft  # noqa: F401

    dice, log, hit, ends = random.Random(5), work / "log", 0, []
    reference = Path(shutil.copytree(recipe, work / "reference"))
    began = time.monotonic()
    assert train(reference, log) == 0, log.read_text()[-3000:]
    whole = time.monotonic() - began
    while hit < kills:
        folder = Path(shutil.copytree(recipe, work / "run"))
        while True:
            status = train(folder, log, kill_after=dice.uniform(0.2, 1.1) * whole)
            assert status in {0, KILLED}, log.read_text()[-3000:]
            hit += status == KILLED
            if status == 0:
                break
        ends.append(outcome(folder))
        shutil.rmtree(folder)
    return {"wanted": outcome(reference), "ends": ends, "kills": hit}


def plain(recipe: Callable[..., Path]) -> Path:
    """The recipe of all of these runs: dropout, so that random states matter; one split, so that nothing else takes time."""
    path = recipe(train=TRAIN, method={"kind": "lora", "rank": 4, "dropout": 0.1}, evaluate=None)
    for name in ("held_out.jsonl", "far.jsonl", "validation.jsonl"):
        (path.parent / name).unlink()
    text = json.loads(path.read_text())
    text["data"] = {"task": "label", "train": "train.jsonl"}
    path.write_text(json.dumps(text))
    return path


def swept(recipe: Callable[..., Path], points: int | None, timeout: float, work: str = "sweep") -> dict[str, Any]:
    """What `work(recipe, folder, points)` of this module found, in a process with the shim preloaded."""
    path = plain(recipe)
    with scratch() as folder:
        code = f"import json, sys, tests.train.test_kill_points as t\nprint(json.dumps(t.{work}(t.Path(sys.argv[1]), t.Path(sys.argv[2]), {points})))"
        env = {**preload(folder), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(
            [sys.executable, "-c", code, str(path.parent), str(folder)], env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
        )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["wanted"]["left"] == [] and len(found["wanted"]["log"]) == STEPS and found["wanted"]["versions"] == ["1"]
    return found


@pytest.mark.slow
def test_a_run_hit_at_sampled_points_of_a_checkpoint_publishes_the_same_adapter(recipe_file: Callable[..., Path]) -> None:
    found = swept(recipe_file, 6, 300)
    assert found["failures"] == [] and found["tried"] == 6
    assert len(found["calls"]) > 40 and {mode: len(statuses) for mode, statuses in found["statuses"].items()} == dict.fromkeys(MODES, 1)
    assert found["statuses"]["kill"] == found["statuses"]["power_loss"] == [KILLED]


@pytest.mark.slow
def test_a_run_hit_at_every_point_of_a_checkpoint_publishes_the_same_adapter(recipe_file: Callable[..., Path]) -> None:
    found = swept(recipe_file, None, 3600)
    assert found["failures"] == [] and found["tried"] == len(MODES) * len(found["calls"]) > 240
    assert set(found["statuses"]["kill"]) == set(found["statuses"]["power_loss"]) == {KILLED}
    assert Exit.REFUSED in found["statuses"]["full"]


@pytest.mark.slow
def test_a_run_killed_at_random_moments_until_it_is_done_publishes_the_same_adapter(recipe_file: Callable[..., Path]) -> None:
    found = swept(recipe_file, 40, 1800, "killed_at_random")
    assert found["kills"] >= 40 and len(found["ends"]) > 5
    assert [end for end in found["ends"] if end != found["wanted"]] == []


@pytest.mark.slow
def test_sigterm_finishes_the_step_saves_and_exits_143_and_the_next_run_publishes_the_same_adapter(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    path = plain(recipe_file)
    path.write_text(path.read_text().replace('"epochs": 1', '"epochs": 10'))  # long enough for the signal to come in time
    folders = [Path(shutil.copytree(path.parent, tmp_path / name, ignore=shutil.ignore_patterns("stopped", "whole"))) for name in ("stopped", "whole")]
    command = [sys.executable, "-m", "tuner", "train", "recipe.yaml"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, cwd=folders[0], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    while "train: loading" not in (line := child.stderr.readline()):
        assert line, "it ended before it trained"
    child.send_signal(signal.SIGTERM)
    said = child.stderr.read()
    assert child.wait(timeout=60) == Exit.TERMINATED and "finishing this step" in said
    (saved,) = sorted(p.name for p in (folders[0] / "runs" / "colours").glob("*/step-*"))
    assert not (folders[0] / "adapters" / "colours" / "1").exists()
    for folder in folders:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0 and (f"going on from step {saved[5:]} " in done.stderr) == (folder.name == "stopped"), done.stderr
    assert outcome(folders[0]) == outcome(folders[1])


@pytest.mark.slow
def test_a_signal_to_one_of_two_ranks_stops_both_after_one_step_and_they_resume_to_the_same_adapter(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    path = plain(recipe_file)
    path.write_text(path.read_text().replace('"epochs": 1', '"epochs": 20'))
    folders = [Path(shutil.copytree(path.parent, tmp_path / name, ignore=shutil.ignore_patterns("stopped", "whole"))) for name in ("stopped", "whole")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tuner", "train", "recipe.yaml"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, cwd=folders[0], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    while "train: loading" not in (line := child.stderr.readline()):
        assert line, "it ended before it trained"
    ranks = [int(pid) for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()]
    second = next(pid for pid in ranks if "RANK=1" in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    os.kill(second, signal.SIGTERM)
    said = child.communicate(timeout=120)[1]
    (saved,) = (folders[0] / "runs" / "colours").glob("*/step-*")
    assert len(list(saved.rglob("rng_state_*.pth"))) == 2, said
    for folder in folders:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0 and (f"going on from step {saved.name[5:]} " in done.stderr) == (folder.name == "stopped"), done.stderr
    assert outcome(folders[0]) == outcome(folders[1])
