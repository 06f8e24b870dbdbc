"""Aliases that move while a server runs: looked at every second, their new versions loaded beside the old ones.

It refuses nothing itself: a version that does not verify or load is not taken, is said once, and stands in /health until the alias moves on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from tuner.artifact.remote import remote_of
from tuner.serve.fleet import NOT_TAKEN, Fleet, Loaded, Model
from tuner.serve.meters import Meters
from tuner.serve.pilot import Pilot

SECONDS = 1.0
REMOTE_SECONDS = 30.0  # between two looks at a store that is not on this machine


class Watch(threading.Thread):
    """Runs until `stop`."""

    def __init__(self, fleet: Fleet, pilot: Pilot, meters: Meters, say: Callable[[str], None]):
        super().__init__(name="watch", daemon=True)
        self._fleet, self._pilot, self._meters, self._say = fleet, pilot, meters, say
        self._remote = remote_of(fleet.store)
        self._stopping = threading.Event()
        self._unread = ""  # why the log could not be read, so that it is said once

    def run(self) -> None:
        while not self._stopping.wait(SECONDS if self._remote is None else REMOTE_SECONDS):
            self.look()

    def stop(self) -> None:
        self._stopping.set()

    @property
    def sees(self) -> bool:
        """Would a moved alias be noticed? Not while the log cannot be read, nor once this thread has died."""
        return self.is_alive() and not self._unread

    def look(self) -> None:
        """Take what the aliases point at now."""
        try:
            if self._remote is not None:
                for name in {m.loaded.adapter.version.name for m in self._fleet.models if m.alias}:
                    self._remote.refresh(name)
            self._fleet.settle()
            moved = self._fleet.moved()
        except NOT_TAKEN as error:
            why = str(error) or type(error).__name__
            if why != self._unread:
                self._say(f"the store cannot be read; what is loaded goes on answering\n{why}")
            self._unread = why
            return
        self._unread = ""
        for model, number in moved:
            self._take(model, number)

    def _take(self, model: Model, number: int) -> None:
        try:
            olds = self._fleet.take(model, number)
        except NOT_TAKEN as error:
            self._meters.add("tuner_reloads_total", model.name, "refused")
            self._say(f"{model.name}: version {number} was not taken; {model.loaded.label} goes on answering\n{error}")
            return
        self._meters.add("tuner_reloads_total", model.name, "taken")
        self._say(f"{model.name}: answers by version {number} from now on; it was {model.loaded.label}")
        closing = _Closing(olds)
        for old in olds:
            self._pilot.retire(old, closing.dropping(old))


class _Closing:
    """Closes an adapter once all that answers through it is dropped: itself, and perhaps the base."""

    def __init__(self, olds: list[Loaded]):
        self._left = list(olds)

    def dropping(self, old: Loaded) -> Callable[[], None]:
        def dropped() -> None:
            self._left.remove(old)
            if not self._left:
                old.adapter.close()

        return dropped
