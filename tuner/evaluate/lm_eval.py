"""Tasks of the lm-evaluation-harness beside our own probes: by name, through its Python API, base and adapter on the same items.

It refuses a task that the harness does not know or whose data is not on this machine, and does nothing at all without the extra `lm-eval`.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tuner.errors import refuse
from tuner.evaluate.intervals import Difference, Estimate, Numbers, difference, estimate
from tuner.evaluate.metric_types import mean
from tuner.evaluate.result import ADAPTER, MetricFacts, Result
from tuner.fingerprint import digest_json
from tuner.safe_text import quoted

SUITE = "lm_eval"
BASE = "base"
_UNFILTERED = "none"  # the harness's name for an answer taken as it is
SMALL_TAKE = 100  # items of each task in the small profile

Rows = list[dict[str, Any]]


def refuse_missing(tasks: Sequence[str], where: object) -> None:
    """Raises Refusal where tasks are named and the harness is not installed."""
    if tasks and importlib.util.find_spec("lm_eval") is None:
        refuse(where, "evaluate.forgetting.tasks", f"{', '.join(tasks)}, but lm-evaluation-harness is not installed", "the extra lm-eval",
               "pip install 'tuner-lora[lm-eval]', or remove the tasks")  # fmt: skip


def lm_eval_tasks(
    model: Any, tokenizer_folder: Path, tasks: Sequence[str], folder: Path | None, take: int | None, batch: int, resamples: int, seed: int
) -> Result:  # fmt: skip
    """The suite `lm_eval`. `model` is the loaded PEFT model; `folder` holds task files of the user's own.

    Every metric that the harness gives for single items is averaged over them; what it computes from all items at once is left out.
    """
    refuse_missing(tasks, "recipe")
    rows: Rows = []
    for contender in (BASE, ADAPTER):
        with model.disable_adapter() if contender == BASE else contextlib.nullcontext():
            rows += _rows(_samples(model, tokenizer_folder, tasks, folder, take, batch, seed), contender)
    return result_of(rows, resamples, seed)


def _samples(
    model: Any, tokenizer_folder: Path, tasks: Sequence[str], folder: Path | None, take: int | None, batch: int, seed: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, dict[str, bool]]]:  # fmt: skip
    """What the harness logged of every item, and which direction each task's metrics have."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    manager = TaskManager(include_path=None if folder is None else str(folder))
    unknown = [t for t in tasks if t not in manager.all_tasks]
    if unknown:
        refuse("recipe", "evaluate.forgetting.tasks", quoted(unknown[0]), f"one of {len(manager.all_tasks)} tasks that the harness knows",
               "run `lm-eval ls tasks`, or name a task of tasks_folder")  # fmt: skip
    try:
        loaded = manager.load(list(tasks))["tasks"]
    except (OSError, ValueError) as error:  # datasets and huggingface_hub raise these where the network would be needed
        refuse("recipe", "evaluate.forgetting.tasks", quoted(str(error).splitlines()[0], 160), "tasks whose file and data are on this machine",
               "load the task's dataset into the local cache once, or point tasks_folder at a task over a local file")  # fmt: skip
    asked = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True), batch_size=batch)
    found = simple_evaluate(
        asked, tasks=list(loaded.values()), task_manager=manager, limit=take, bootstrap_iters=0, log_samples=True,
        random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
    )  # fmt: skip
    return found["samples"], found["higher_is_better"]


def _rows(samples: tuple[dict[str, list[dict[str, Any]]], dict[str, dict[str, bool]]], contender: str) -> Rows:
    """One row a question: the harness logs a question once for each way of filtering its answer, and each way's metrics are metrics of their own."""
    items, directions = samples
    rows: Rows = []
    for task in sorted(items):
        own: dict[int, dict[str, Any]] = {}
        for one in sorted(items[task], key=lambda s: int(s["doc_id"])):
            row = own.setdefault(int(one["doc_id"]), {
                "suite": SUITE, "item": f"{task}:{one['doc_id']}", "contender": contender, "probe": task, "where": f"{task}:{one['doc_id']}",
                "question": one["doc_hash"], "reference": str(one["target"]), "answer": None, "higher_is_better": {}, "scores": {}, "parts": {},
            })  # fmt: skip
            for metric, up in directions.get(task, {}).items():
                if isinstance(one.get(metric), (int, float, bool)):
                    name = f"{task}.{metric}" + ("" if one.get("filter", _UNFILTERED) == _UNFILTERED else f".{one['filter']}")
                    row["higher_is_better"][name], row["scores"][name] = up, float(one[metric])
        rows += own.values()
    return rows


def result_of(rows: Rows, resamples: int, seed: int) -> Result:
    """Values and paired differences, from the rows alone. A metric's name is TASK.METRIC, with .FILTER where the task filters its answers."""
    directions = {name: up for row in rows for name, up in row["higher_is_better"].items()}
    metrics = {name: MetricFacts(f"mean of {name.partition('.')[2]} as lm-evaluation-harness gives it for each item", up) for name, up in directions.items()}
    values: dict[str, dict[str, Estimate]] = {BASE: {}, ADAPTER: {}}
    differences: dict[str, Difference] = {}
    for name, up in directions.items():
        base, ours = (_numbers(rows, contender, name) for contender in (BASE, ADAPTER))
        binary = bool(np.isin(np.concatenate([base, ours])[:, 0], (0, 1)).all())
        for contender, own in ((BASE, base), (ADAPTER, ours)):
            values[contender][name] = estimate(own, mean, binary, resamples, seed)
        differences[name] = difference(ours, base, mean, binary=binary, higher_is_better=up, baseline=BASE, resamples=resamples, seed=seed)
    asked = sorted({(row["item"], row["question"], row["reference"]) for row in rows})
    worse = [f"forgot: {name} {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" for name, d in differences.items() if d.verdict == "worse"]
    return Result(SUITE, "forgetting", len(asked), digest_json(asked), metrics, values, differences, {"flags": worse, "version": _version()}, rows)


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("lm-eval")
    except metadata.PackageNotFoundError:
        return "not installed"


def _numbers(rows: Rows, contender: str, metric: str) -> Numbers:
    return np.array([[row["scores"][metric], 1.0] for row in rows if row["contender"] == contender and metric in row["scores"]], dtype=np.float64).reshape(
        -1, 2
    )
