"""The search of a sweep: Optuna proposes the next trial, and its own storage keeps every trial, so that several processes share one study.

Refuses to search without Optuna (extra `sweep`), and a storage that cannot be opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.durable import Claim, ensure_folder, locked, try_claim
from tuner.errors import refuse
from tuner.studies.axes import Axis, Range


@dataclass(frozen=True)
class Asked:
    """A trial to be run: its number and what it sets. `trial` is Optuna's own, in a search."""

    number: int
    keys: dict[str, Any]
    trial: Any = None


def optuna_of(where: str = "--trials") -> Any:
    """The library. Raises Refusal with its pip line."""
    try:
        import optuna
    except ModuleNotFoundError:
        refuse("command line", where, "a search, and no Optuna", "a grid of lists, or Optuna installed", "pip install 'tuner-lora[sweep]'")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Search:
    """A study of Optuna's. `folder` holds a folder for each trial, whose lock says which process is at it."""

    def __init__(self, name: str, axes: Sequence[Axis], maximise: bool, folder: Path, storage: str | None, seed: int):
        self.optuna = optuna_of()
        self.axes, self.folder, self.seed, self.own = axes, folder, seed, storage is None
        ensure_folder(folder / "trials")
        url = storage or f"sqlite:///{(folder / 'optuna.db').absolute()}"
        with locked(folder, "sweep"):  # two processes that make the tables at once fail
            self.study = self._opened(url, name, maximise)

    def _opened(self, url: str, name: str, maximise: bool) -> Any:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return self.optuna.create_study(storage=url, study_name=name, direction="maximize" if maximise else "minimize", load_if_exists=True)
        except (SQLAlchemyError, ImportError, ValueError, self.optuna.exceptions.StorageInternalError) as error:
            refuse("command line", "--storage", f"a storage that cannot be opened ({type(error).__name__})", "an URL of SQLAlchemy's that can be reached",
                   "sqlite:///FILE, postgresql+psycopg://USER:PASSWORD@HOST/DATABASE, with its driver installed")  # fmt: skip

    @contextmanager
    def next(self, trials: int) -> Iterator[Asked | None]:
        """The next trial, held by this process while inside; None when the study has as many as it should."""
        with locked(self.folder, "sweep"):
            asked, held = self._next(trials)
        try:
            yield asked
        finally:
            if held is not None:
                held.release()

    def _next(self, trials: int) -> tuple[Asked | None, Claim | None]:
        states = self.optuna.trial.TrialState
        for left in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            if (self.own or self.place(left.number).is_dir()) and (held := self._claimed(left.number)) is not None:
                return Asked(left.number, self._keys(left.params), self.optuna.Trial(self.study, left._trial_id)), held  # begun by a process that is gone
        every = self.study.get_trials(deepcopy=False)
        if len(every) >= trials:
            return None, None
        # A sampler a trial: which settings come next depends on the study alone, not on which process asks.
        self.study.sampler = self.optuna.samplers.TPESampler(seed=(self.seed * 1_000_003 + len(every)) % 2**32, constant_liar=True)
        trial = self.study.ask(self._distributions())
        return Asked(trial.number, self._keys(trial.params), trial), self._claimed(trial.number)

    def _claimed(self, number: int) -> Claim | None:
        ensure_folder(self.place(number))
        held = try_claim(self.place(number) / ".lock", f"trial {number}")
        return held if isinstance(held, Claim) else None

    def place(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:03d}"

    def _distributions(self) -> dict[str, Any]:
        return {axis.key: self._distribution(axis) for axis in self.axes}

    def _distribution(self, axis: Axis) -> Any:
        """Values of a list are kept as JSON: Optuna takes no lists among them."""
        kinds = self.optuna.distributions
        if not isinstance(axis, Range):
            return kinds.CategoricalDistribution([json.dumps(value, sort_keys=True) for value in axis.values])
        return kinds.IntDistribution(int(axis.low), int(axis.high), log=axis.log) if axis.whole else kinds.FloatDistribution(axis.low, axis.high, log=axis.log)

    def _keys(self, params: dict[str, Any]) -> dict[str, Any]:
        return {axis.key: params[axis.key] if isinstance(axis, Range) else json.loads(params[axis.key]) for axis in self.axes}

    def tell(self, asked: Asked, value: float | None, whole: dict[str, Any]) -> None:
        """What came of a trial; None: it failed. `whole` is kept beside it, for the other processes."""
        asked.trial.set_user_attr(WHOLE, json.dumps(whole))
        self.study.tell(asked.number, value, state=self.optuna.trial.TrialState.FAIL if value is None else None)

    def told(self) -> list[dict[str, Any]]:
        """What was kept of every trial that is done, by whichever process."""
        return [
            json.loads(trial.user_attrs[WHOLE]) for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished() and WHOLE in trial.user_attrs
        ]


WHOLE = "tuner"
