"""The models a server answers for: adapters by the names they were asked for, all on one base in memory, and the base itself.

It refuses adapters that do not belong on one base, and a name twice. An alias that moves takes its new version only once that version has loaded.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.artifact import history
from tuner.artifact.adapter import Adapter, load_adapter
from tuner.artifact.store import find
from tuner.errors import Refusal, refuse
from tuner.safe_text import quoted

if TYPE_CHECKING:
    from tuner.artifact.decode import Decoder

NOT_TAKEN = (Refusal, OSError, RuntimeError)  # what keeps a newer version out: that it is wrong, that its files cannot be read, or torch's memory
BASE = "base"  # the name under which the untouched base answers


class Loaded:
    """One version in memory, or the base as its first adapter's template asks it. Answers that have begun hold on to theirs."""

    def __init__(self, adapter: Adapter, is_base: bool = False):
        self.adapter, self.is_base = adapter, is_base
        self.label: str = BASE if is_base else adapter.version.label
        digest: str = adapter.manifest["base"]["weight_digest"] if is_base else adapter.manifest["digest"]
        self.fingerprint = f"{self.label} {digest[:19]}"
        config = adapter.decoder.model.config
        self.context_tokens: int | None = getattr(config, "max_position_embeddings", None)
        with self.turn():
            self.virtual_tokens = adapter.decoder.virtual_tokens

    @property
    def decoder(self) -> Decoder:
        return self.adapter.decoder

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, the model is in the state this version answers in, and nobody else asks it."""
        with self.adapter.as_base() if self.is_base else contextlib.nullcontext(), self.adapter.turn():
            yield

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a chat, with the recipe's system prompt where it has none. Raises Refusal."""
        return self.adapter.prompt_ids(messages)

    def room(self, prompt_tokens: int) -> int | None:
        """How many tokens the base's context leaves for an answer; None without a limit."""
        return None if self.context_tokens is None else self.context_tokens - self.virtual_tokens - prompt_tokens


@dataclass(frozen=True)
class Model:
    """A name clients ask for, what answers under it now, and why a newer version was not taken, if one was not."""

    name: str
    loaded: Loaded
    alias: str | None = None
    held_back: str | None = None


class Fleet:
    """The models by name. Read from any thread; changed by the watcher alone."""

    def __init__(self, models: Sequence[Model], store: Path):
        self.store = store
        self._models = {model.name: model for model in models}
        self._refused: dict[str, int] = {}  # by name of model, a version of its alias that did not load
        self._lock = threading.Lock()

    @property
    def models(self) -> list[Model]:
        return list(self._models.values())

    def get(self, name: str) -> Model | None:
        return self._models.get(name)

    @property
    def first(self) -> Adapter:
        return self.models[0].loaded.adapter

    # --- an alias moves

    def moved(self) -> list[tuple[Model, int]]:
        """Models whose alias points at another version than the one that answers, and that version. Raises Refusal or OSError where a log cannot be read."""
        found = []
        for model in self.models:
            if model.alias is None:
                continue
            name = model.loaded.adapter.version.name
            number = history.state(self.store / name).aliases.get(model.alias)
            if number is not None and number != model.loaded.adapter.version.number and self._refused.get(model.name) != number:
                found.append((model, number))
        return found

    def take(self, model: Model, number: int) -> list[Loaded]:
        """Load a version beside the one that answers, and answer with it from now on. Returns what the old one answered as, which may still go on.

        Raises one of NOT_TAKEN where it does not verify, load or belong on this base: the old one goes on answering.
        """
        label = f"{model.loaded.adapter.version.name}@{number}"
        try:
            new = Loaded(model.loaded.adapter.beside(label, self.store))
        except NOT_TAKEN as error:
            self._refused[model.name] = number
            why = _without_paths(error) if isinstance(error, Refusal) else type(error).__name__
            self._become(replace(model, held_back=f"{label} was not taken: {why}"))
            raise
        self._refused.pop(model.name, None)
        self._become(replace(model, loaded=new, held_back=None))
        return [model.loaded, *self._rebase(model.loaded, new)]

    def settle(self) -> None:
        """Forget refusals of versions that no alias points at any more."""
        for name, number in list(self._refused.items()):
            model = self._models[name]
            pointed = history.state(self.store / model.loaded.adapter.version.name).aliases.get(model.alias or "")
            if pointed != number:
                del self._refused[name]
                self._become(replace(model, held_back=None))

    def _rebase(self, old: Loaded, new: Loaded) -> list[Loaded]:
        """The base answers through an adapter that stays."""
        base = self._models[BASE]
        if base.loaded.adapter is not old.adapter:
            return []
        self._become(replace(base, loaded=Loaded(new.adapter, is_base=True)))
        return [base.loaded]

    def _become(self, model: Model) -> None:
        with self._lock:
            self._models = {**self._models, model.name: model}


def open_fleet(names: Sequence[str], store: Path, base: str | None, device: str | None, load: str | None, batch: int) -> Fleet:
    """Load the first name's base, and every name's version on it. Raises Refusal with the reason where one does not belong on that base."""
    for name in names:
        if name == BASE or names.count(name) > 1:
            refuse("command line", name, "a name that is taken" if name == BASE else "twice", "each adapter once; `base` is the base itself", "leave it out")
    first = load_adapter(names[0], store, base=base, device=device, load=load, batch=batch)
    models = [Model(names[0], Loaded(first), _alias_of(names[0]))]
    for name in names[1:]:
        models.append(Model(name, Loaded(_seated(name, store, first)), _alias_of(name)))
    return Fleet([*models, Model(BASE, Loaded(first, is_base=True))], store)


def _seated(name: str, store: Path, first: Adapter) -> Adapter:
    """A version beside the first. Raises Refusal, saying why both cannot share a base."""
    version = find(store, name)
    adapter = first.beside(version.label, store)
    if adapter.encoder.tokenizer_digest != first.encoder.tokenizer_digest:
        refuse(version.label, "tokenizer", "another tokenizer than that of " + first.version.label, "adapters of one base and tokenizer", "serve it by itself")
    return adapter


def _alias_of(name: str) -> str | None:
    """The alias in NAME@ALIAS; None for a number, which never moves, and for NAME, which stays the version it was at the start."""
    _, _, at = name.partition("@")
    return at if at and not at.isdigit() else None


def _without_paths(refusal: Refusal) -> str:
    """What /health says of a refusal: it is read from elsewhere, so the places on this machine stay out of it."""
    first = refusal.problems[0]
    more = f", and {len(refusal.problems) - 1} more" if len(refusal.problems) > 1 else ""
    file = Path(first.where).name
    return f"{quoted(file, 80)[1:-1]} {first.field}: {first.found}".replace(" :", ":") + more
