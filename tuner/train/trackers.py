"""Trackers of a run: TensorBoard, Weights & Biases, MLflow and Trackio get the numbers of train_log.jsonl, and nothing they were not handed.

Each is written to through its own public calls, not through transformers' callbacks, which also send training arguments, the model's
config, paths and tags taken from the environment. Refuses a tracker that is not installed. Without settings of the tracker's own that
name a server, everything stays in files: nothing here opens a connection.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, get_origin

from pydantic import BaseModel

from tuner.data.personal import hide
from tuner.errors import Problem, Refusal

Value = str | int | float | bool | None
PROJECT = "tuner"
ARTIFACTS = "mlflow-artifacts:/"  # wherever a server keeps them; none are written
# What a line of train_log.jsonl is called by transformers' own integrations: dashboards made for Trainer go on working.
NAMES = {
    "loss": "train/loss",  # nats a token, mean over the steps since the last line
    "learning_rate": "train/learning_rate",
    "gradient_norm": "train/grad_norm",
    "validation_loss": "eval/loss",  # nats a token
    "epoch": "train/epoch",  # passes over the training rows, as a fraction
    "tokens": "train/num_tokens",  # trained so far, padding left out
}
STEP = "train/global_step"


# --- what is sent --------------------------------------------------------------------------------------------------


def choices(section: BaseModel, above: str = "") -> dict[str, Value]:
    """A recipe section as flat settings: numbers, switches, and words out of a fixed list.

    Free text (prompts, paths, names of files and modules) may hold anything, so it is left out, not searched for secrets.
    """
    found: dict[str, Value] = {}
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{above}{name}"
        if isinstance(value, BaseModel):
            found |= choices(value, f"{key}.")
        elif value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and value in _fixed_words(field.annotation)):
            found[key] = value
    return found


def _fixed_words(annotation: Any) -> set[str]:
    """The words that the type allows by name."""
    if get_origin(annotation) is Literal:
        return {word for word in get_args(annotation) if isinstance(word, str)}
    return {word for part in get_args(annotation) for word in _fixed_words(part)}


# --- where ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tracked:
    """A run as trackers see it: `label` names it, `folder` is where local files of all runs go, `resumed_step` is 0 at its beginning."""

    label: str
    folder: Path
    config: Mapping[str, Value]
    resumed_step: int = 0

    @property
    def shown(self) -> dict[str, Value]:
        """The config as it is sent: should a name hold personal data or a secret all the same, it is masked."""
        return {key: hide(value) if isinstance(value, str) else value for key, value in self.config.items()}


def folder_of(store: Path) -> Path:
    """Where local trackers write: `trackers`, beside the store, for all runs together, so that they can be compared."""
    return store.absolute().parent / "trackers"


def label_of(folder: Path, name: str, run: str, resumed_step: int = 0) -> str:
    """`NAME-RUN`, and `-2`, `-3`, … where a run from the beginning finds that taken: `--fresh` trains the same run again."""
    label, number = f"{name}-{run}", 1
    while resumed_step == 0 and (folder / _numbered(label, number)).exists():
        number += 1
    while resumed_step > 0 and (folder / _numbered(label, number + 1)).exists():
        number += 1
    return _numbered(label, number)


def _numbered(label: str, number: int) -> str:
    return label if number == 1 else f"{label}-{number}"


# --- one class a tracker -------------------------------------------------------------------------------------------


class Tracker(Protocol):
    """What every tracker does. `faults` are the errors by which it says that it cannot take more; they never end a run."""

    faults: tuple[type[Exception], ...]

    def begin(self, run: Tracked) -> None: ...
    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def end(self, finished: bool) -> None: ...


class TensorBoard:
    """Event files in trackers/LABEL: `tensorboard --logdir trackers`."""

    faults: tuple[type[Exception], ...] = (OSError,)

    def begin(self, run: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        again = run.resumed_step + 1 if run.resumed_step else None  # what an interrupted process wrote past its checkpoint is not shown
        self.writer = SummaryWriter(str(run.folder / run.label), purge_step=again)
        if not run.resumed_step:
            self.writer.add_text("recipe", "\n".join(f"    {key}: {value}" for key, value in run.shown.items()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def end(self, finished: bool) -> None:
        self.writer.close()


class WeightsAndBiases:
    """Online where WANDB_MODE or WANDB_API_KEY ask for it; else offline files in trackers/LABEL/wandb, for `wandb sync`."""

    faults: tuple[type[Exception], ...] = (OSError,)

    def begin(self, run: Tracked) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.faults = (OSError, wandb.Error)
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        # Everything W&B would find out by itself is off: host, command line, git remote, packages, code, console, machine.
        settings = wandb.Settings(
            host="", console="off", save_code=False, disable_git=True, disable_job_creation=True, silent=True, x_disable_meta=True,
            x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
        )  # fmt: skip
        project = None if os.environ.get("WANDB_PROJECT") else PROJECT
        self.place = run.folder / run.label
        self.run = wandb.init(
            project=project, name=run.label, id=run.label, dir=str(self.place), mode=mode, config=run.shown, resume="allow", settings=settings
        )  # fmt: skip
        self.run.define_metric(STEP)
        self.run.define_metric("*", step_metric=STEP)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({**values, STEP: step})

    def end(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)
        for logs in self.place.glob("wandb/*/logs"):  # W&B's own debug logs, which name every folder
            shutil.rmtree(logs, ignore_errors=True)


class MLflow:
    """The server of MLFLOW_TRACKING_URI where that is set; else trackers/mlflow.db: `mlflow ui --backend-store-uri sqlite:///trackers/mlflow.db`."""

    faults: tuple[type[Exception], ...] = (OSError,)

    def begin(self, run: Tracked) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self.faults = (OSError, MlflowException)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or _mlflow_database(run.folder)
        self.client = MlflowClient(tracking_uri=uri)  # the fluent calls would add tags: user, script, git commit
        self.run = self._found(run) or self._new(run)

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self.client.get_experiment_by_name(name)
        place = None if os.environ.get("MLFLOW_TRACKING_URI") else f"{ARTIFACTS}{PROJECT}"
        return str(self.client.create_experiment(name, artifact_location=place) if found is None else found.experiment_id)

    def _found(self, run: Tracked) -> str | None:
        """The run that is gone on with."""
        if not run.resumed_step:
            return None
        runs = self.client.search_runs([self._experiment()], f"tags.`tuner.run` = '{run.label}'", max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _new(self, run: Tracked) -> str:
        made = self.client.create_run(self._experiment(), run_name=run.label, tags={"tuner.run": run.label})
        for key, value in run.shown.items():
            self.client.log_param(made.info.run_id, key, value)
        return str(made.info.run_id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run, name, value, step=step)

    def end(self, finished: bool) -> None:
        self.client.set_terminated(self.run, status="FINISHED" if finished else "FAILED")


def _mlflow_database(folder: Path) -> str:
    """A local database whose artifact places name no folder of this machine, as MLflow's own default would."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder.mkdir(parents=True, exist_ok=True)
    uri = f"sqlite:///{(folder / 'mlflow.db').absolute()}"
    SqlAlchemyStore(uri, ARTIFACTS)
    return uri


class Trackio:
    """The Space or server of TRACKIO_SPACE_ID or TRACKIO_SERVER_URL where one is set; else trackers/trackio, or the folder of TRACKIO_DIR.

    Trackio reads its folder once a process: a second store in the same process shares the first one's.
    """

    faults: tuple[type[Exception], ...] = (OSError, ValueError)

    def begin(self, run: Tracked) -> None:
        os.environ.setdefault("TRACKIO_DIR", str((run.folder / "trackio").absolute()))
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            self.run = trackio.init(
                project=PROJECT, name=run.label, config=run.shown, resume="allow" if run.resumed_step else "never", auto_log_gpu=False, auto_log_cpu=False,
                embed=False,
            )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def end(self, finished: bool) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.run.finish()


# --- all of a run's ------------------------------------------------------------------------------------------------


class Trackers:
    """The trackers of one run, from `with` to its end. Nothing on a rank other than the main one, or without names.

    A tracker that fails is told of once through `say` and left out from then on; the run goes on.
    """

    def __init__(self, names: Sequence[str], run: Tracked, say: Callable[[str], None], is_main: bool = True):
        self.run, self.say = run, say
        self.live: dict[str, Tracker] = {name: TRACKERS[name]() for name in dict.fromkeys(names) if is_main}

    def __enter__(self) -> Trackers:
        self._each(self._begin)
        return self

    def _begin(self, tracker: Tracker) -> None:
        (self.run.folder / self.run.label).mkdir(parents=True, exist_ok=True)  # also where nothing is written there: it takes the label
        tracker.begin(self.run)

    def log(self, entry: Mapping[str, float]) -> None:
        """A line of train_log.jsonl."""
        values = {NAMES[key]: float(value) for key, value in entry.items() if key in NAMES}
        self._each(lambda tracker: tracker.log(int(entry["step"]), values))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends them as finished or failed; the error itself is not sent, since its words may quote records and paths."""
        self._each(lambda tracker: tracker.end(kind is None))
        self.live = {}

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.live.items()):
            try:
                tell(tracker)
            except tracker.faults as error:
                del self.live[name]
                self.say(f"{name} takes no more ({type(error).__name__}); training goes on, and train_log.jsonl has everything")


def refuse_missing(names: Sequence[str], where: object = "recipe") -> None:
    """Raises Refusal for trackers that are not installed. Loads none of them."""
    missing = [name for name in dict.fromkeys(names) if find_spec(name) is None]
    if missing:
        raise Refusal(
            Problem(str(where), "train.trackers", f"{name}, which is not installed", "an installed tracker, or none",
                    f"pip install {name}, or all of them: pip install 'tuner-lora[trackers]'") for name in missing
        )  # fmt: skip


TRACKERS: dict[str, Callable[[], Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow, "trackio": Trackio}
