"""A contestant whose answers are kept on disk: what was asked once is not asked again, in this run or a later one.

So an interrupted evaluation goes on where it stopped, and a second look at the same version costs no generation. It refuses to mix
answers of different models: every file belongs to one model in one state, one kind of question and one setting, by digest.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tuner.data.record import Message
from tuner.durable import ensure_folder
from tuner.errors import refuse
from tuner.evaluate.result import Contestant, Divergence, Tick, Timed
from tuner.fingerprint import digest_json, library_versions

if TYPE_CHECKING:
    from tuner.artifact.adapter import Adapter
    from tuner.artifact.vllm_adapter import VllmAdapter

CHUNK_BATCHES = 4  # batches asked between two writes: what an interruption can cost


class Remembered:
    """`model` with a memory in `folder`. `marks` are the digests of all that decides what the adapter, and what the base, will say."""

    def __init__(self, model: Contestant, folder: Path, adapter_mark: str, base_mark: str, batch: int):
        self.model, self.folder, self.chunk = model, folder, batch * CHUNK_BATCHES
        self._marks = {"adapter": adapter_mark, "base": base_mark}
        self._state, self._plain = "adapter", False
        self._files: dict[str, dict[str, Any]] = {}
        self.newly_asked = 0  # questions answered by the model itself, losses not counted
        ensure_folder(folder)

    @classmethod
    def of(cls, adapter: Adapter | VllmAdapter, folder: Path, batch: int) -> Remembered:
        """An adapter with its memory: what it says depends on its version, on base, template, tokenizer and precision, and on the libraries."""
        manifest = adapter.manifest
        opened = [str(adapter.base_folder), adapter.encoder.tokenizer_digest, adapter.encoder.template.digest] if adapter.allowed else []
        base = [manifest["base"]["weight_digest"], manifest["template"], str(adapter.precision), list(adapter.allowed), opened, library_versions()]
        return cls(adapter, folder, digest_json([*base, manifest["digest"]]), digest_json(base), batch)

    # --- the questions of Contestant

    def answer_many(self, questions: Any, max_new_tokens: int, done: Tick | None = None) -> list[str]:
        return self._each(["answer", max_new_tokens], _keys(questions), lambda at, tick: self.model.answer_many(_at(questions, at), max_new_tokens, tick), done)

    def label_scores(self, questions: Any, labels: Sequence[str], done: Tick | None = None) -> Any:
        def ask(at: list[int], tick: Tick) -> list[list[float]]:
            return [[float(score) for score in row] for row in self.model.label_scores(_at(questions, at), labels, tick)]

        return np.array(self._each(["labels", list(labels)], _keys(questions), ask, done), dtype=np.float64).reshape(len(questions), len(labels))

    def choice_nats(self, questions: Any, answers: Sequence[Sequence[str]], done: Tick | None = None) -> list[list[float]]:
        keys = _keys(questions, [list(of) for of in answers])
        return self._each(["choices"], keys, lambda at, tick: self.model.choice_nats(_at(questions, at), _at(answers, at), tick), done)

    def losses(self, questions: Any, answers: Sequence[str], done: Tick | None = None) -> list[tuple[float, int]]:
        found = self._each(
            ["losses"], _keys(questions, answers), lambda at, tick: [list(one) for one in self.model.losses(_at(questions, at), _at(answers, at), tick)], done
        )
        return [(nats, tokens) for nats, tokens in found]

    def token_nats(self, questions: Any, answers: Sequence[str], done: Tick | None = None) -> list[list[float]]:
        return self._each(["tokens"], _keys(questions, answers), lambda at, tick: self.model.token_nats(_at(questions, at), _at(answers, at), tick), done)

    def continuations(self, questions: Any, beginnings: Sequence[Sequence[int]], new_tokens: int, done: Tick | None = None) -> list[list[int]]:
        keys = _keys(questions, [list(b) for b in beginnings])
        ask = lambda at, tick: self.model.continuations(_at(questions, at), _at(beginnings, at), new_tokens, tick)  # noqa: E731
        return self._each(["continue", new_tokens], keys, ask, done)

    def divergences(self, texts: Sequence[str], done: Tick | None = None) -> list[Divergence]:
        return self._divergences("divergences", list(texts), lambda at, tick: self.model.divergences(_at(texts, at), tick), done)

    def prompt_divergences(self, questions: Any, done: Tick | None = None) -> list[Divergence]:
        return self._divergences("prompt divergences", _keys(questions), lambda at, tick: self.model.prompt_divergences(_at(questions, at), tick), done)

    def _divergences(self, what: str, keys: list[Any], ask: Callable[[list[int], Tick], list[Divergence]], done: Tick | None) -> list[Divergence]:
        def numbers(at: list[int], tick: Tick) -> list[list[float]]:
            return [[d.tokens, d.base_nats, d.adapter_nats, d.kl_nats, d.same_first] for d in ask(at, tick)]

        found = self._each([what, self._marks], keys, numbers, done)  # both models, in either state
        return [Divergence(int(tokens), ours, theirs, apart, int(same)) for tokens, ours, theirs, apart, same in found]

    def timed(self, questions: Any, max_new_tokens: int, done: Tick | None = None) -> list[Timed]:
        """Measured times are never remembered as answers are: they are of this machine, now."""
        return self.model.timed(questions, max_new_tokens, done)

    def fits(self, questions: Any, room: int) -> list[bool]:
        return self.model.fits(questions, room)

    def completion_ids(self, question: Any, answer: str) -> list[int]:
        return self.model.completion_ids(question, answer)

    @contextlib.contextmanager
    def as_base(self) -> Iterator[Remembered]:
        self._state = "base"
        try:
            with self.model.as_base():
                yield self
        finally:
            self._state = "adapter"

    @contextlib.contextmanager
    def without_system(self) -> Iterator[Remembered]:
        self._plain = True
        try:
            with self.model.without_system():
                yield self
        finally:
            self._plain = False

    # --- memory

    def _each(self, how: list[Any], keys: list[Any], ask: Callable[[list[int], Tick], Sequence[Any]], done: Tick | None) -> list[Any]:
        """One value a key: remembered, or asked for in chunks that are written down before the next begins."""
        tick = done or (lambda _items: None)
        file = digest_json([self._marks[self._state], self._plain, *how]).removeprefix("sha256:")[:32]
        known = self._known(file)
        digests = [digest_json(key) for key in keys]
        first = {digest: at for at, digest in reversed(list(enumerate(digests))) if digest not in known}
        missing = sorted(first.values(), key=lambda at: -len(json.dumps(keys[at])))  # of similar length together
        tick(len(keys) - len(missing))
        for start in range(0, len(missing), self.chunk):
            at = missing[start : start + self.chunk]
            found = dict(zip((digests[i] for i in at), ask(at, tick), strict=True))
            self.newly_asked += len(at) if how[0] in ("answer", "labels") else 0
            self._refuse_not_finite(how[0], found)
            self._write(file, found)
            known |= found
        return [known[digest] for digest in digests]

    def _refuse_not_finite(self, how: str, found: dict[str, Any]) -> None:
        """A model that gives NaN has said nothing that could be graded, and no number may be made of it."""
        numbers = [x for value in found.values() for x in _numbers(value)]
        if not all(math.isfinite(x) for x in numbers):
            odd = sum(not math.isfinite(x) for x in numbers)
            refuse(f"the {self._state}", how, f"{odd} of {len(numbers)} numbers that are not finite", "finite log-likelihoods",
                   "do not serve it: its weights, or the base at this precision, overflow; try base.load: fp32, or train again at a lower rate")  # fmt: skip

    def _known(self, file: str) -> dict[str, Any]:
        if file not in self._files:
            self._files[file] = _read(self.folder / f"{file}.jsonl")
        return self._files[file]

    def _write(self, file: str, found: dict[str, Any]) -> None:
        """One write of whole lines, synced; it starts on a line of its own, should the last one have been torn."""
        text = "\n" + "".join(json.dumps([digest, value]) + "\n" for digest, value in found.items())
        handle = os.open(self.folder / f"{file}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(handle, text.encode("ascii"))
            os.fsync(handle)
        finally:
            os.close(handle)


def _read(path: Path) -> dict[str, Any]:
    """What a file holds, line by line; a line that was torn is left out, and so asked again."""
    known: dict[str, Any] = {}
    try:
        lines = path.read_bytes().decode("ascii", "replace").split("\n")
    except FileNotFoundError:
        return known
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str):
                known[entry[0]] = entry[1]
    return known


def _numbers(value: Any) -> Iterator[float]:
    """Every number in a remembered value."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _numbers(inner)


def _keys(questions: Any, *others: Sequence[Any]) -> list[Any]:
    """What tells one question from another: its messages, and what is asked of it."""
    return [[_words(q), *(o[i] for o in others)] for i, q in enumerate(questions)]


def _words(question: Any) -> Any:
    if isinstance(question, str):
        return question
    return [[m.as_dict(), m.tools] if isinstance(m, Message) else dict(m) for m in question]


def _at(values: Any, places: list[int]) -> list[Any]:
    return [values[i] for i in places]
