"""Trackers get the numbers of train_log.jsonl under the right names, steps and epochs, and nothing else: no secret, no path, no error text.

It refuses to trust settings: every file that a tracker left is searched byte by byte, and connections are counted by a listening proxy.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import pytest

from tests.conftest import colour_rows, jsonl, tuner
from tuner.errors import Refusal
from tuner.train.spec import MethodSpec, TrainSpec
from tuner.train.trackers import NAMES, TRACKERS, Tracked, Trackers, choices, folder_of, label_of, refuse_missing

HERE = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed: what it is sent was not checked"))
    for name in TRACKERS
]

# What must never be sent: by where it is planted.
PLANTED = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567", "HF_TOKEN": "hf_PLANTEDabcdefghijklmnopqrstuvwxyzAB",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiPLANTEDKEY0", "OPENAI_API_KEY": "sk-proj-PLANTED0123456789abcdefghijklmnopqrstuv",
    "GITHUB_TOKEN": "ghp_PLANTED0123456789abcdefghijklmnopqrs", "DATABASE_URL": "postgres://alice:planted-password@db.example/x",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password", "system prompt": "xoxb-PLANTED-slack-0123456789", "profile": "glpat-PLANTED0123456789ab",
    "comment": "AIzaSyPLANTED0123456789abcdefghijklmnopq", "record": "planted-word-of-a-record", "path and file name": "planted-folder-of-alice",
}  # fmt: skip
ENVIRONMENT = {name: secret for name, secret in PLANTED.items() if name.isupper()}


class Proxy:
    """Listens where HTTP(S)_PROXY point, and counts who comes."""

    def __enter__(self) -> Self:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.calls: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.calls.append(connection.recv(200))
            connection.close()

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @property
    def environment(self) -> dict[str, str]:
        address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        return dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), address)


INSTALLED = [name for name in TRACKERS if find_spec(name) is not None]


@dataclass(frozen=True)
class Left:
    """What a good run and a failed one left, with every installed tracker: their folder, the log of the good one, who called the proxy."""

    trackers: Path
    label: str
    log: list[dict[str, float]]
    calls: list[bytes]

    def files_of(self, tracker: str) -> list[Path]:
        """The files that only this tracker can have written."""
        every = [p for p in self.trackers.rglob("*") if p.is_file()]
        marks = {"tensorboard": "events.out", "wandb": "/wandb/", "mlflow": "mlflow.db", "trackio": "/trackio/"}
        return [p for p in every if marks[tracker] in str(p)]


@pytest.fixture(scope="module")
def left(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Left:
    """Two real runs from a folder with a secret name, with a secret file name, record, system prompt, profile and comment."""
    if not INSTALLED:
        pytest.skip("no tracker is installed: what they are sent was not checked")
    folder = tmp_path_factory.mktemp("left") / PLANTED["path and file name"]
    folder.mkdir()
    recipe = planted_recipe(folder, tiny_base)
    broken = ["name=broken", "train.peak_learning_rate=1e30", "train.max_gradient_norm=1e30"]
    with Proxy() as proxy:
        env = {**ENVIRONMENT, **proxy.environment, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
        words = ["train", recipe, f"train.trackers=[{', '.join(INSTALLED)}]"]
        good, failed = tuner(*words, cwd=folder, env=env), tuner(*words, *broken, cwd=folder, env=env)
    assert good.returncode == 0, good.stdout + good.stderr
    assert "finite numbers" in failed.stderr and PLANTED["path and file name"] in failed.stderr  # the error itself does quote it
    log = (folder / "adapters" / "colours" / "1" / "train_log.jsonl").read_text().splitlines()
    (label,) = {p.name for p in (folder / "trackers").iterdir() if p.name.startswith("colours-")}
    return Left(folder / "trackers", label, [json.loads(line) for line in log], proxy.calls)


def planted_recipe(folder: Path, base: Path) -> Path:
    rows = colour_rows(24)
    rows[3]["prompt"] = f"{PLANTED['record']} please"
    jsonl(folder / f"{PLANTED['path and file name']}.jsonl", rows)
    jsonl(folder / "validation.jsonl", colour_rows(6, 100))
    recipe = {
        "name": "colours", "base": {"model": str(base), "sanity": "off"},
        "data": {"task": "label", "train": f"{PLANTED['path and file name']}.jsonl", "validation": "validation.jsonl"},
        "template": {"system": PLANTED["system prompt"], "max_tokens": 128},
        "train": {"epochs": 1.5, "records_per_step": 4, "validate_every_steps": 2, "log_every_steps": 1, "peak_learning_rate": 1e-3},
        "profiles": {"secret": {"template.system": PLANTED["profile"]}},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(f"# {PLANTED['comment']}\n" + json.dumps(recipe, indent=2), encoding="utf-8")
    return path


@pytest.mark.parametrize("tracker", HERE)
def test_none_of_twelve_planted_secrets_reaches_a_tracker(left: Left, tracker: str) -> None:
    files = left.files_of(tracker)
    assert len(PLANTED) == 12 and files
    assert [(kind, path.name) for path in files for kind, secret in PLANTED.items() if secret.encode() in path.read_bytes()] == []
    assert any(b"peak_learning_rate" in path.read_bytes() for path in files)  # the search does find what was sent


def test_no_file_of_any_tracker_holds_a_planted_secret(left: Left) -> None:
    files = [p for p in left.trackers.rglob("*") if p.is_file()]
    assert files and [(kind, path.name) for path in files for kind, secret in PLANTED.items() if secret.encode() in path.read_bytes()] == []


def test_no_connection_is_tried_without_a_server_in_a_tracker_s_own_settings(left: Left) -> None:
    assert left.calls == []


# --- names, steps, epochs ------------------------------------------------------------------------------------------


def in_tensorboard(folder: Path, label: str) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / label))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def in_mlflow(folder: Path, label: str) -> dict[str, list[tuple[int, float]]]:
    with sqlite3.connect(folder / "mlflow.db") as database:
        rows = database.execute(
            "select m.key, m.step, m.value from metrics m join runs r on r.run_uuid = m.run_uuid where r.name = ? order by m.step", [label]
        ).fetchall()
    return series(rows)


def in_trackio(folder: Path, label: str) -> dict[str, list[tuple[int, float]]]:
    with sqlite3.connect(folder / "trackio" / "tuner.db") as database:
        rows = database.execute("select step, metrics from metrics where run_name = ? order by step, id", [label]).fetchall()
    return series([(name, step, value) for step, said in rows for name, value in json.loads(said).items()])


def in_wandb(folder: Path, label: str) -> dict[str, list[tuple[int, float]]]:
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in (record for file in (folder / label).rglob("*.wandb") for record in leveldb_records(file.read_bytes())):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        said = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        rows += [(name, said["train/global_step"], value) for name, value in said.items() if not name.startswith("_") and name != "train/global_step"]
    return series(rows)


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of LevelDB's log format: blocks of 32 KiB, each chunk with a checksum, a length and a type; the file begins with 7 bytes of W&B's."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        left_in_block = 32768 - at % 32768
        if left_in_block < 7:
            at += left_in_block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield whole
            whole = b""


def series(rows: list[tuple[str, int, float]]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for name, step, value in rows:
        found.setdefault(name, []).append((int(step), value))
    return found


READERS = {"tensorboard": in_tensorboard, "wandb": in_wandb, "mlflow": in_mlflow, "trackio": in_trackio}


def wanted(log: list[dict[str, float]]) -> dict[str, list[tuple[int, float]]]:
    """The log as a tracker should show it: one series a name, a point a line."""
    return series([(NAMES[key], int(entry["step"]), value) for entry in log for key, value in entry.items() if key in NAMES])


@pytest.mark.parametrize("tracker", HERE)
def test_a_tracker_shows_every_number_of_the_log_at_its_step_and_epoch(left: Left, tracker: str) -> None:
    found, expected = READERS[tracker](left.trackers, left.label), wanted(left.log)
    assert set(found) == set(NAMES.values()) == set(expected)
    for name, points in expected.items():
        assert dict(found[name]) == pytest.approx(dict(points), rel=1e-6), name
    assert max(found["train/epoch"])[1] == pytest.approx(1.5)  # 24 rows in steps of 4: not the one epoch that the trainer believes in


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
def test_a_failed_run_is_marked_as_failed(left: Left) -> None:
    with sqlite3.connect(left.trackers / "mlflow.db") as database:
        rows = database.execute("select substr(name, 1, instr(name, '-') - 1), status from runs").fetchall()
    assert sorted(rows) == [("broken", "FAILED"), ("colours", "FINISHED")]


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_a_resumed_run_goes_on_under_its_label_and_hides_what_was_past_its_checkpoint(tmp_path: Path) -> None:
    config = {"seed": 1}
    with Trackers(["tensorboard"], Tracked(label_of(tmp_path, "colours", "abc"), tmp_path, config), pytest.fail) as first:
        for step in (1, 2, 3):
            first.log({"step": step, "loss": float(step)})
    again = label_of(tmp_path, "colours", "abc", resumed_step=2)
    with Trackers(["tensorboard"], Tracked(again, tmp_path, config, resumed_step=2), pytest.fail) as second:
        second.log({"step": 3, "loss": 30.0})
    assert again == "colours-abc"
    assert in_tensorboard(tmp_path, again)["train/loss"] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_the_same_run_trained_afresh_gets_a_label_of_its_own(tmp_path: Path) -> None:
    labels = []
    for _ in range(3):
        labels.append(label_of(tmp_path, "colours", "abc"))
        (tmp_path / labels[-1]).mkdir()
    assert labels == ["colours-abc", "colours-abc-2", "colours-abc-3"]
    assert label_of(tmp_path, "colours", "abc", resumed_step=5) == "colours-abc-3"


# --- refusals and faults -------------------------------------------------------------------------------------------


def test_a_tracker_that_is_not_installed_is_refused_with_its_pip_line_before_anything_is_read(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe = recipe_file()
    (tmp_path / "train.jsonl").unlink()  # would be refused, had anything been read
    program = "import sys; sys.modules['wandb'] = None; from tuner.cli import main; main()"
    command = [sys.executable, "-c", program, "train", str(recipe), "train.trackers=[wandb]"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ), check=False)
    assert done.returncode == 2
    assert "train.trackers" in done.stderr and "pip install wandb" in done.stderr and "tuner-lora[trackers]" in done.stderr
    assert "train.jsonl" not in done.stderr and not (tmp_path / "trackers").exists()


def test_all_missing_trackers_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TRACKERS:
        monkeypatch.setitem(sys.modules, name, None)  # Python's own way of saying that a module cannot be imported
    with pytest.raises(Refusal) as refused:
        refuse_missing(["wandb", "mlflow", "wandb"])
    assert [p.found for p in refused.value.problems] == ["wandb, which is not installed", "mlflow, which is not installed"]


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_a_tracker_that_cannot_write_is_told_of_once_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "trackers").write_text("a file where the folder should be")
    said: list[str] = []
    with Trackers(["tensorboard"], Tracked("colours-abc", tmp_path / "trackers", {}), said.append) as trackers:
        trackers.log({"step": 1, "loss": 1.0})
    assert len(said) == 1 and said[0].startswith("tensorboard takes no more")


def test_ranks_other_than_the_main_one_send_nothing(tmp_path: Path) -> None:
    with Trackers(list(TRACKERS), Tracked("colours-abc", tmp_path / "trackers", {}), pytest.fail, is_main=False) as trackers:
        trackers.log({"step": 1, "loss": 1.0})
    assert not (tmp_path / "trackers").exists()


# --- what is sent --------------------------------------------------------------------------------------------------


def test_only_numbers_switches_and_words_of_a_fixed_list_are_sent() -> None:
    method = MethodSpec(kind="prompt", init_text="sk-PLANTED")
    sent = choices(method, "method.") | choices(TrainSpec(trackers=["wandb"]), "train.")
    assert sent["method.kind"] == "prompt" and sent["train.schedule"] == "cosine" and sent["train.kernels.liger"] == "auto"
    assert sent["train.gradient_checkpointing"] == "auto" and sent["train.max_steps"] is None
    assert "method.init_text" not in sent and "method.targets" not in choices(MethodSpec(targets=["/home/alice/secret"]))
    assert list(strings_of(sent)) and all(" " not in word and "/" not in word for word in strings_of(sent))


def strings_of(sent: Mapping[str, Any]) -> Iterator[str]:
    yield from (value for value in sent.values() if isinstance(value, str))


def test_a_secret_in_a_name_is_masked_all_the_same(tmp_path: Path) -> None:
    secret = PLANTED["GITHUB_TOKEN"]
    assert secret not in str(Tracked("x", tmp_path, {"base.name": f"llama {secret}", "seed": 1}).shown)


def test_local_trackers_write_beside_the_store(tmp_path: Path) -> None:
    assert folder_of(tmp_path / "adapters") == tmp_path / "trackers"
