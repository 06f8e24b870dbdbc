"""Answers kept on disk: they are those of the bare adapter, nothing is asked twice, and no model's answers are taken for another's."""

from __future__ import annotations

import contextlib
import inspect
import json
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tuner
from tests.conftest import ROOT, colours_in
from tuner import pipeline
from tuner.artifact.adapter import Adapter
from tuner.errors import Refusal
from tuner.evaluate import remembered
from tuner.evaluate.remembered import CHUNK_BATCHES, Remembered
from tuner.evaluate.result import Contestant, Divergence
from tuner.recipe import load_recipe

QUESTIONS = [f"thing number {i} please{' indeed' * (i % 4)}" for i in range(11)]
TEXTS = [f"The {word} stood by the old gate and waited." for word in ("horse", "postman", "sister of the king")]
SAID = [f"answer {i}" for i in range(len(QUESTIONS))]
BEGINNINGS = [[10 + i, 300 + i] for i in range(len(QUESTIONS))]


class Counted:
    """The real decoder, and what it was given: (question of it, token ids) in order."""

    def __init__(self, decoder: Any):
        self.decoder, self.given = decoder, []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.decoder, name)
        if name not in ("greedy", "likelihoods", "token_nats", "choices", "divergences"):
            return found

        def asked(prompts: Any, *rest: Any, **named: Any) -> Any:
            self.given += [(name, json.dumps(p)) for p in prompts]
            return found(prompts, *rest, **named)

        return asked


@pytest.fixture(scope="module")
def store(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions on one base: 1 and 2 differ in their training seed, 3 in its system prompt."""
    folder = tmp_path_factory.mktemp("versions")
    recipe = colours_in(folder, tiny_base)
    for changes in ([], ["train.seed=7"], ["template.system=Say the colour."]):
        pipeline.run(load_recipe(recipe, changes), folder / "store", grade_after=False)
    return folder / "store"


@pytest.fixture(scope="module")
def opened(store: Path, tiny_base: Path) -> Callable[..., Adapter]:
    """Versions as they are served, each loaded once; their decoders count."""
    loaded: dict[tuple[int, str], Adapter] = {}

    def of(number: int, load: str = "fp32") -> Adapter:
        if (number, load) not in loaded:
            adapter = tuner.load_adapter(f"colours@{number}", store, base=tiny_base, load=load)
            adapter.decoder = Counted(adapter.decoder)  # type: ignore[assignment]
            loaded[number, load] = adapter
        return loaded[number, load]

    return of


def given(adapter: Adapter) -> list[tuple[str, str]]:
    """What the decoder was given since this was last asked."""
    counted: Any = adapter.decoder
    found, counted.given = counted.given, []
    return found


# Every question of Contestant that has an answer to remember.
ASK: dict[str, Callable[[Any], Any]] = {
    "answer_many": lambda model: model.answer_many(QUESTIONS, 5),
    "label_scores": lambda model: np.asarray(model.label_scores(QUESTIONS, ["red", "green", "dark blue"])).tolist(),
    "choice_nats": lambda model: model.choice_nats(QUESTIONS, [["red", f"number {i}"][: 1 + i % 2] for i in range(len(QUESTIONS))]),
    "losses": lambda model: model.losses(QUESTIONS, SAID),
    "token_nats": lambda model: model.token_nats(QUESTIONS, SAID),
    "continuations": lambda model: model.continuations(QUESTIONS, BEGINNINGS, 4),
    "divergences": lambda model: [[d.tokens, d.base_nats, d.adapter_nats, d.kl_nats, d.same_first] for d in model.divergences(TEXTS)],
    "prompt_divergences": lambda model: [[d.tokens, d.base_nats, d.adapter_nats, d.kl_nats, d.same_first] for d in model.prompt_divergences(QUESTIONS)],
}
NOT_REMEMBERED = {"completion_ids", "fits", "timed", "as_base", "without_system"}


def near(found: Any, wanted: Any) -> bool:
    """Equal texts and ids; numbers of another batch to rounding."""
    if isinstance(wanted, (list, tuple)):
        return len(found) == len(wanted) and all(near(a, b) for a, b in zip(found, wanted, strict=True))
    return found == (pytest.approx(wanted, rel=1e-4, abs=1e-5) if isinstance(wanted, float) else wanted)


def states(model: Any) -> Iterator[str]:
    """The four states that questions are asked in."""
    for is_base in (False, True):
        for is_plain in (False, True):
            with model.as_base() if is_base else contextlib.nullcontext(), model.without_system() if is_plain else contextlib.nullcontext():
                yield f"{'base' if is_base else 'adapter'}{', plain' if is_plain else ''}"


@pytest.mark.parametrize("method", ASK)
def test_answers_are_those_of_the_bare_adapter_in_every_state_and_are_asked_once(method: str, opened: Any, tmp_path: Path) -> None:
    adapter = opened(1)
    wanted = {state: ASK[method](adapter) for state in states(adapter)}
    if method in ("label_scores", "choice_nats", "losses", "token_nats"):
        assert len({json.dumps(of) for of in wanted.values()}) == 4  # the states do differ; a tiny model's greedy answers need not
    given(adapter)
    memory = Remembered.of(adapter, tmp_path, batch=2)
    assert all(near(ASK[method](memory), wanted[state]) for state in states(memory))
    assert given(adapter)
    again = Remembered.of(adapter, tmp_path, batch=5)
    assert all(near(ASK[method](again), wanted[state]) for state in states(again))
    assert given(adapter) == []


def test_every_question_of_a_contestant_was_swept() -> None:
    public = {name for name, _ in inspect.getmembers(Contestant, inspect.isfunction) if not name.startswith("_")}
    assert public == set(ASK) | NOT_REMEMBERED and len(ASK) == 8


def test_what_is_counted_is_not_remembered_but_the_adapters_own(opened: Any, tmp_path: Path) -> None:
    adapter = opened(1)
    memory = Remembered.of(adapter, tmp_path, 2)
    assert memory.completion_ids(QUESTIONS[0], "dark blue") == adapter.completion_ids(QUESTIONS[0], "dark blue")
    sizes = [len(adapter.prompt_ids(q)) for q in QUESTIONS]
    assert memory.fits(QUESTIONS, 1024 - max(sizes)) == [True] * len(QUESTIONS)
    assert memory.fits(QUESTIONS, 1025 - max(sizes)) == [size < max(sizes) for size in sizes] and list(tmp_path.iterdir()) == []


def test_a_question_asked_twice_in_one_call_is_asked_once(opened: Any, tmp_path: Path) -> None:
    adapter = opened(1)
    given(adapter)
    counted: list[int] = []
    memory = Remembered.of(adapter, tmp_path, 2)
    said = memory.answer_many([QUESTIONS[0], QUESTIONS[1], QUESTIONS[0]], 3, counted.append)
    assert said[0] == said[2] and len(given(adapter)) == 2 and sum(counted) == 3


def test_another_length_other_labels_and_other_beginnings_are_other_questions(opened: Any, tmp_path: Path) -> None:
    adapter = opened(1)
    memory = Remembered.of(adapter, tmp_path, 4)
    for ask in (lambda: memory.answer_many(QUESTIONS, 3), lambda: memory.answer_many(QUESTIONS, 4), lambda: memory.label_scores(QUESTIONS, ["red", "green"]),
                lambda: memory.label_scores(QUESTIONS, ["green", "red"]), lambda: memory.continuations(QUESTIONS, BEGINNINGS, 2),
                lambda: memory.continuations(QUESTIONS, BEGINNINGS[::-1], 2)):  # fmt: skip
        given(adapter)
        ask()
        assert len(given(adapter)) >= len(QUESTIONS) - 1  # of an odd number of beginnings turned round, the middle one stays
        ask()
        assert not given(adapter)


def test_measured_times_are_never_remembered(opened: Any, tmp_path: Path) -> None:
    adapter = opened(1)
    memory = Remembered.of(adapter, tmp_path, 2)
    first = memory.timed(QUESTIONS[:2], 3)
    given(adapter)
    again = memory.timed(QUESTIONS[:2], 3)
    assert len(given(adapter)) == 4 and [t.prompt_tokens for t in first] == [t.prompt_tokens for t in again] and list(tmp_path.iterdir()) == []


# --- whose answers -----------------------------------------------------------------------------------------------------


def test_two_versions_share_what_the_base_said_and_nothing_else(opened: Any, tmp_path: Path) -> None:
    one, two = opened(1), opened(2)
    for method in ASK:
        given(one)
        given(two)
        first, second = (Remembered.of(a, tmp_path / method, 4) for a in (one, two))
        of_one = ASK[method](first)
        of_two = ASK[method](second)
        assert len(given(two)) == len(given(one)) > 0
        assert method in ("answer_many", "continuations") or not near(of_two, of_one)  # two tiny models may answer alike
        with first.as_base():
            ours = ASK[method](first)
        with second.as_base():
            theirs = ASK[method](second)
        if "divergences" in method:
            assert not near(ours, theirs)  # they are about the adapter in either state
        else:
            assert ours == theirs and given(one) and given(two) == []


def test_another_template_is_asked_anew_even_for_the_base(opened: Any, tmp_path: Path) -> None:
    one, other = opened(1), opened(3)
    given(other)
    with (first := Remembered.of(one, tmp_path, 4)).as_base():
        first.answer_many(QUESTIONS, 3)
    with (second := Remembered.of(other, tmp_path, 4)).as_base():
        second.answer_many(QUESTIONS, 3)
    assert len(given(other)) == len(QUESTIONS)


def test_another_precision_is_asked_anew(opened: Any, tmp_path: Path) -> None:
    one, coarse = opened(1), opened(1, "bf16")
    assert str(one.precision) != str(coarse.precision)
    given(coarse)
    for adapter in (one, coarse):
        memory = Remembered.of(adapter, tmp_path, 4)
        memory.losses(QUESTIONS, SAID)
        with memory.as_base():
            memory.losses(QUESTIONS, SAID)
    assert len(given(coarse)) == 2 * len(QUESTIONS)


@pytest.mark.parametrize("library", ["torch", "transformers", "peft", "tuner", "python"])
def test_another_version_of_a_library_is_asked_anew(library: str, opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = opened(1)
    with (memory := Remembered.of(adapter, tmp_path, 4)).as_base():
        memory.answer_many(QUESTIONS, 3)
    versions = remembered.library_versions()
    monkeypatch.setattr(remembered, "library_versions", lambda: versions | {library: "0.0.1"})
    given(adapter)
    with (later := Remembered.of(adapter, tmp_path, 4)).as_base():
        later.answer_many(QUESTIONS, 3)
    assert library in versions and len(given(adapter)) == len(QUESTIONS)


def test_another_base_that_was_let_through_has_answers_of_its_own(store: Path, tiny_base: Path, tmp_path: Path) -> None:
    """`allow: base` opens a version on weights that its manifest does not know."""
    from safetensors.torch import load_file, save_file

    found = []
    for scale in (1.5, 3.0):
        base = Path(shutil.copytree(tiny_base, tmp_path / f"base {scale}"))
        weights = load_file(base / "model.safetensors")
        save_file(weights | {"model.norm.weight": weights["model.norm.weight"] * scale}, base / "model.safetensors", metadata={"format": "pt"})
        adapter = tuner.load_adapter("colours@1", store, base=base, load="fp32", allow=["base"])
        with (memory := Remembered.of(adapter, tmp_path / "answers", 4)).as_base():
            found.append((memory.losses(QUESTIONS[:2], SAID[:2]), adapter.losses(QUESTIONS[:2], SAID[:2])))
    assert all(near(ours, theirs) for ours, theirs in found) and found[0] != found[1]


# --- interruptions -----------------------------------------------------------------------------------------------------


def test_an_exception_in_the_middle_costs_one_chunk_at_most(opened: Any, tmp_path: Path) -> None:
    adapter, batch = opened(1), 1
    questions = [f"what is thing {i}" for i in range(20)]
    wanted = adapter.answer_many(questions, 3)

    def interrupt(items: int) -> None:
        counted.append(items)
        if sum(counted) > 10:
            raise KeyboardInterrupt

    counted: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        Remembered.of(adapter, tmp_path, batch).answer_many(questions, 3, interrupt)
    given(adapter)
    assert Remembered.of(adapter, tmp_path, batch).answer_many(questions, 3) == wanted
    assert len(given(adapter)) == 20 - 2 * CHUNK_BATCHES * batch  # two chunks of four batches were whole


KILLED = """
import os, signal, sys
import tuner
from tuner.evaluate.remembered import Remembered
store, base, folder = sys.argv[1:]
asked = 0
def kill(items):
    global asked
    asked += items
    if asked > 10:
        os.kill(os.getpid(), signal.SIGKILL)
model = Remembered.of(tuner.load_adapter("colours@1", store, base=base, load="fp32"), __import__("pathlib").Path(folder), 1)
with model.as_base():
    model.answer_many([f"what is thing {i}" for i in range(20)], 3, kill)
"""


def test_a_killed_process_leaves_what_it_was_told(store: Path, tiny_base: Path, opened: Any, tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", KILLED, store, tiny_base, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    adapter = opened(2)  # the base's answers serve another version too
    questions = [f"what is thing {i}" for i in range(20)]
    with adapter.as_base():
        wanted = adapter.answer_many(questions, 3)
    given(adapter)
    with (memory := Remembered.of(adapter, tmp_path, 1)).as_base():
        assert memory.answer_many(questions, 3) == wanted
    assert len(given(adapter)) == 20 - 2 * CHUNK_BATCHES


# --- files -------------------------------------------------------------------------------------------------------------


class Echo:
    """Answers with what it was asked, and counts. What is remembered of it is written and read by the real memory."""

    def __init__(self, say: Callable[[str], str] = lambda question: f"said {question}", nats: float = 0.0):
        self.say, self.nats, self.asked = say, nats, []

    def answer_many(self, questions: Sequence[str], max_new_tokens: int, done: Any = None) -> list[str]:
        self.asked += questions
        return [self.say(q) for q in questions]

    def divergences(self, texts: Sequence[str], done: Any = None) -> list[Divergence]:
        self.asked += texts
        return [Divergence(1, float(len(t)), self.nats, self.nats, 0) for t in texts]

    def fits(self, questions: Any, room: int) -> list[bool]:
        return [True] * len(questions)

    @contextlib.contextmanager
    def as_base(self) -> Iterator[Echo]:
        yield self


def memory_of(model: Any, folder: Path, batch: int = 1) -> Remembered:
    return Remembered(model, folder, "adapter 1", "base 1", batch)


HOSTILE = ["", "\n", 'a "quoted"\r\nline', "\x00\x1b[31m\x7f", "  ", "naïve 😀 日本", '["x", "y"]\n["', "\ud800 alone", "\\", "null"]


def test_any_text_is_remembered_as_it_was_said(tmp_path: Path) -> None:
    wanted = memory_of(Echo(lambda q: HOSTILE[int(q)]), tmp_path).answer_many([str(i) for i in range(len(HOSTILE))], 9)
    silent = Echo()
    assert memory_of(silent, tmp_path).answer_many([str(i) for i in range(len(HOSTILE))], 9) == wanted == HOSTILE
    assert silent.asked == []


def test_a_model_whose_numbers_are_not_finite_is_refused_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    for nats in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(Refusal, match="not finite"):
            memory_of(Echo(nats=nats), tmp_path).divergences(["ab"])
    assert not list(tmp_path.iterdir())
    found = memory_of(Echo(nats=0.5), tmp_path).divergences(["ab"])
    silent = Echo()
    assert memory_of(silent, tmp_path).divergences(["ab"]) == found and silent.asked == []


def test_wherever_a_file_was_torn_the_lost_answers_are_asked_again_and_nothing_after_them_is_lost(tmp_path: Path) -> None:
    questions = [f"q{i} é" for i in range(6)]
    memory_of(Echo(), tmp_path / "whole", 100).answer_many(questions, 9)
    (file,) = (tmp_path / "whole").iterdir()
    whole = file.read_bytes()
    cuts = range(len(whole))
    for cut in cuts:
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / file.name).write_bytes(whole[:cut])
        kept = sum(line.endswith(b'"]') for line in whole[:cut].split(b"\n"))
        again = Echo()
        assert memory_of(again, folder).answer_many([*questions, "new"], 9) == [f"said {q}" for q in [*questions, "new"]]
        assert len(again.asked) == 7 - kept, cut
        silent = Echo()
        memory_of(silent, folder).answer_many([*questions, "new"], 9)
        assert silent.asked == [], cut
    assert len(cuts) > 300


def test_lines_that_are_no_answers_are_passed_over(tmp_path: Path) -> None:
    memory_of(Echo(), tmp_path).answer_many(["a"], 9)
    (file,) = tmp_path.iterdir()
    junk = b'\n{"a": 1}\n[]\n["one"]\n[1, 2]\n["a", "b", "c"]\nnull\n\xff\xfe\x00\n' + b"[" * 5000 + b"\n"
    file.write_bytes(junk + file.read_bytes() + junk)
    silent = Echo()
    assert memory_of(silent, tmp_path).answer_many(["a"], 9) == ["said a"] and silent.asked == []


def _ask_half(folder: str, start: int) -> None:
    memory_of(Echo(), Path(folder)).answer_many([f"question {i} {'x' * 3000}" for i in range(start, start + 60)], 9)


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    processes = [multiprocessing.get_context("fork").Process(target=_ask_half, args=(str(tmp_path), start)) for start in (0, 30, 60, 90)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * 4
    silent, questions = Echo(), [f"question {i} {'x' * 3000}" for i in range(150)]
    assert memory_of(silent, tmp_path).answer_many(questions, 9) == [f"said {q}" for q in questions] and silent.asked == []


def test_what_was_asked_and_said_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        memory_of(Echo(), tmp_path / "answers").answer_many(["a"], 9)
    finally:
        os.umask(mask)
    (file,) = (tmp_path / "answers").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
