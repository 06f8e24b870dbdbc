"""Samples of the checks: for each check, records with its fault at known places and records without, read from files as a recipe would.

One module a family, each with a table SAMPLES: {check: [Sample, …]}. A sample names every finding it expects, so a check that finds too
little or too much fails. It refuses a check that two modules claim.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.data.checks import CHECKS, READING
from tuner.data.doctor import Checked, examine
from tuner.data.findings import Finding, Scene
from tuner.data.record import Record
from tuner.data.spec import DataSpec
from tuner.data.splits import OOD, Splits, read_splits

Row = Mapping[str, Any]  # an object as it stands in a .jsonl file: prompt + completion or messages, and any other columns
Place = tuple[str, int, str]  # (split, line, code); line 0 where the finding is about a file or a set

CONTROL_TEXTS = frozenset({"<|end|>"})


@dataclass(frozen=True)
class Sample:
    """`data` are keys of the recipe's data section; `splits` hold the fault, `expected` every finding of the check in them, `clean` nothing.

    Splits are named as in Splits: train, validation, held_out, ood.NAME, production. A token is a word (`max_tokens` limits them).
    """

    splits: Mapping[str, list[Row]]
    expected: Iterable[Place]
    clean: Mapping[str, list[Row]]
    data: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None


def pair(prompt: str, completion: str, **columns: Any) -> Row:
    """One question and its answer."""
    return {"prompt": prompt, "completion": completion, **columns}


def chat(*turns: tuple[str, str], **columns: Any) -> Row:
    """(role, content) of every turn."""
    return {"messages": [{"role": role, "content": content} for role, content in turns], **columns}


def written(splits: Mapping[str, list[Row]], data: Mapping[str, Any], folder: Path) -> tuple[DataSpec, Splits]:
    """The splits as files NAME.jsonl in `folder`, and as they are read from there."""
    files: dict[str, Any] = {}
    for split, rows in splits.items():
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        if split.startswith(OOD):
            files.setdefault("ood", {})[split.removeprefix(OOD)] = path.name
        else:
            files[split] = path.name
    spec = DataSpec.model_validate({key: merged(files.get(key), data.get(key)) for key in {**files, **data}})
    return spec, read_splits(spec, folder, seed=0)


def merged(file: Any, said: Any) -> Any:
    """A source's file together with what a sample says of the source (`{"source": "synthetic"}`)."""
    if file is None or said is None:
        return said if file is None else file
    return {"files": file, **said} if isinstance(file, str) else {name: merged(of, said.get(name)) for name, of in file.items()}


def count_words(records: Iterable[Record]) -> tuple[NDArray[np.int32], list[Finding]]:
    """A token is a word: (N, 2), prompt and completion."""
    counts = [(len(" ".join(m.text for m in r.prompt).split()), len(r.completion.split())) for r in records]
    return np.array(counts, dtype=np.int32).reshape(-1, 2), []


def examined(name: str, sample: Sample, splits: Mapping[str, list[Row]], folder: Path, action: str = "warn") -> Checked:
    """What one check says of `splits`, read from files in `folder`."""
    spec, found = written(splits, {**sample.data, "checks": {name: action}}, folder)
    return examine(found, Scene(spec, sample.max_tokens, None, CONTROL_TEXTS), {**READING, name: CHECKS[name]}, count_words)


def places(findings: Iterable[Finding]) -> list[Place]:
    """Where findings are and what they say, in order."""
    return sorted((f.split, f.line, f.code) for f in findings)


def all_samples() -> dict[str, list[Sample]]:
    """The samples of every check, from all modules of this folder."""
    samples: dict[str, list[Sample]] = {}
    for module in pkgutil.iter_modules(__path__):
        for name, of in import_module(f"{__name__}.{module.name}").SAMPLES.items():
            assert name not in samples, f"{name} has samples in two modules"
            samples[name] = of
    return samples
