"""The one thread that asks the model: requests wait in a bounded queue, board flights, and are answered a token at a time, each model in its turn.

It refuses requests while the queue is full. A model that fails in the middle fails the answers of that flight alone.
"""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tuner.artifact.flight import Flight, Sampling
from tuner.serve.fleet import Loaded
from tuner.serve.meters import Meters

logger = logging.getLogger("tuner")

_numbers = itertools.count()


@dataclass(frozen=True)
class Failed:
    """Delivered in place of a token: the answer breaks off."""

    why: str


Delivered = int | None | Failed  # a token, the end, or a failure


@dataclass(frozen=True, eq=False)
class Ticket:
    """One request: what it asks of which version, and where its tokens go. `deliver` is called in the pilot's thread and must not block."""

    loaded: Loaded
    prompt_ids: list[int]
    max_new_tokens: int
    sampling: Sampling
    deliver: Callable[[Delivered], None]
    number: int = field(default_factory=_numbers.__next__)


class Full(Exception):
    """The queue has no place left."""


class Gone(Exception):
    """The version was exchanged for a newer one meanwhile."""


class Stopped(Exception):
    """No new answer begins."""


class Pilot(threading.Thread):
    """Flies until `stop`, then calls `ended`. `rows` answers are under way at once, over all models; `queue` more requests may wait."""

    def __init__(self, rows: int, queue: int, meters: Meters, ended: Callable[[], None]):
        super().__init__(name="pilot", daemon=True)
        self.rows, self.queue = rows, queue
        self._meters, self._ended = meters, ended
        self._flights: dict[Loaded, Flight] = {}
        self._flying: dict[int, Ticket] = {}
        self._waiting: dict[Loaded, deque[Ticket]] = {}
        self._left: set[int] = set()  # numbers of tickets whose clients went away
        self._retired: dict[Loaded, Callable[[], None]] = {}
        self._gone: weakref.WeakSet[Loaded] = weakref.WeakSet()
        self._stopping = False
        self._awake = threading.Condition()

    # --- called from other threads

    def submit(self, ticket: Ticket) -> None:
        """Raises Full, Stopped, or Gone where the version has been dropped."""
        with self._awake:
            self._refuse_full()
            if ticket.loaded in self._gone:
                raise Gone
            self._waiting.setdefault(ticket.loaded, deque()).append(ticket)
            self._awake.notify()

    def refuse_full(self) -> None:
        """Before work is spent on a request. Raises Full or Stopped."""
        with self._awake:
            self._refuse_full()

    def leave(self, ticket: Ticket) -> None:
        """Nobody waits for this answer any more: its row is free before the next token."""
        with self._awake:
            self._left.add(ticket.number)
            self._awake.notify()

    def retire(self, loaded: Loaded, dropped: Callable[[], None]) -> None:
        """Once its last answer has ended, call `dropped`."""
        with self._awake:
            self._retired[loaded] = dropped
            self._awake.notify()

    def stop(self) -> None:
        with self._awake:
            self._stopping = True
            self._awake.notify()

    def _refuse_full(self) -> None:
        if self._stopping:
            raise Stopped
        free = self.rows - len(self._flying)
        if sum(map(len, self._waiting.values())) >= self.queue + max(free, 0):
            raise Full

    # --- the thread

    def run(self) -> None:
        try:
            while self._ready():
                for loaded in list(self._flights):
                    self._step(loaded)
                    self._board()
        finally:
            with self._awake:
                self._stopping = True
            for ticket in [*self._flying.values(), *(t for waiting in self._waiting.values() for t in waiting)]:
                ticket.deliver(Failed("the server is stopping"))
            self._ended()

    def _ready(self) -> bool:
        """Wait for something to do. False once it is to stop."""
        with self._awake:
            while not (self._stopping or self._flying or self._waiting or self._left or self._retired):
                self._awake.wait()
            if self._stopping:
                return False
        self._board()
        return True

    def _board(self) -> None:
        """Let those go who left, take in who waits, one of each model in turn, and drop versions that nobody asks any more."""
        with self._awake:
            left, self._left = self._left, set()
            self._waiting = {loaded: deque(t for t in waiting if t.number not in left) for loaded, waiting in self._waiting.items()}
            boarding = self._taken(self.rows - len(self._flying) + len(left & self._flying.keys()))
        for number in left & self._flying.keys():
            self._end(self._flying[number])
        for ticket in boarding:
            flight = self._flights.setdefault(ticket.loaded, Flight(ticket.loaded.decoder))
            flight.join(ticket.number, ticket.prompt_ids, ticket.max_new_tokens, ticket.sampling)
            self._flying[ticket.number] = ticket
        self._drop()
        self._meters.set("tuner_answers_running", to=len(self._flying))
        self._meters.set("tuner_queue_length", to=sum(map(len, self._waiting.values())))

    def _taken(self, places: int) -> list[Ticket]:
        taken: list[Ticket] = []
        while len(taken) < places and any(self._waiting.values()):
            for waiting in self._waiting.values():
                if waiting and len(taken) < places:
                    taken.append(waiting.popleft())
        self._waiting = {loaded: waiting for loaded, waiting in self._waiting.items() if waiting}
        return taken

    def _drop(self) -> None:
        with self._awake:
            idle = [loaded for loaded in self._retired if not self._is_asked(loaded)]
            dropping = [self._retired.pop(loaded) for loaded in idle]
            self._gone.update(idle)
        for loaded in [loaded for loaded, flight in self._flights.items() if loaded in self._gone and not len(flight)]:
            del self._flights[loaded]
        for dropped in dropping:
            dropped()

    def _is_asked(self, loaded: Loaded) -> bool:
        return bool(self._waiting.get(loaded)) or any(t.loaded is loaded for t in self._flying.values())

    def _step(self, loaded: Loaded) -> None:
        """One token for each answer of one model."""
        flight = self._flights.get(loaded)
        if flight is None or not len(flight):
            return
        try:
            with loaded.turn():
                said = flight.step()
        except RuntimeError as error:  # torch: out of memory, a device that fell off
            logger.error("%s: the model failed: %s", loaded.label, type(error).__name__)
            self._fail(loaded)
            return
        for key, token in said:
            ticket = self._flying[key]
            if token is None:
                self._flying.pop(ticket.number)
            ticket.deliver(token)

    def _fail(self, loaded: Loaded) -> None:
        del self._flights[loaded]
        for ticket in [t for t in self._flying.values() if t.loaded is loaded]:
            self._flying.pop(ticket.number)
            ticket.deliver(Failed("the model failed on this answer"))

    def _end(self, ticket: Ticket) -> None:
        self._flights[ticket.loaded].leave(ticket.number)
        self._flying.pop(ticket.number)
