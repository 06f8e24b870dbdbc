"""The recipes for code of one's own run as they stand, each in a process of its own, and answer as the adapter does."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tuner
from tests.artifact.test_adapter import trained  # noqa: F401 (a fixture)
from tests.artifact.test_swap import like_first
from tests.conftest import ROOT, jsonl
from tuner.artifact.adapter import Adapter

INFERENCE = ROOT / "recipes" / "inference"
LONG = "word " * 1100


@pytest.fixture(scope="module")
def store(trained: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    place = tmp_path_factory.mktemp("inference") / "store"
    (place / "colours").mkdir(parents=True)
    shutil.copytree(trained[1], place / "colours" / "1")
    return place


@pytest.fixture(scope="module")
def adapter(store: Path, tiny_base: Path) -> Adapter:
    return tuner.load_adapter("colours@1", store, base=tiny_base)


def run(*words: object, **given: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=200, check=False, cwd=ROOT, **given)


def test_every_recipe_is_tested() -> None:
    assert {p.name for p in INFERENCE.iterdir() if p.suffix != ".md" and p.is_file()} == {"fastapi_app.py", "batch_job.py", "plain_peft.py"}


@pytest.mark.slow
def test_plain_peft_answers_as_tuner_where_tuner_cannot_be_imported(store: Path, tiny_base: Path) -> None:
    question = "thing number 3 please"
    without = (
        f"import sys, runpy; sys.modules['tuner'] = None; sys.argv = sys.argv[1:]; runpy.run_path({str(INFERENCE / 'plain_peft.py')!r}, run_name='__main__')"
    )
    done = run("-c", without, "plain_peft.py", store / "colours" / "1", tiny_base, question)
    assert done.returncode == 0, done.stderr
    alone = tuner.load_adapter("colours@1", store, base=tiny_base, load="fp32")
    assert done.stdout == alone.answer(question) + "\n" != "\n"


# --- the batch job -------------------------------------------------------------------------------------------------


def test_a_batch_job_keeps_order_counts_errors_and_goes_on_after_a_torn_line(store: Path, tiny_base: Path, adapter: Adapter, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = [{"id": i, "prompt": f"thing number {i} please"} for i in range(5)]
    asked.insert(2, {"id": "long", "prompt": LONG})
    asked.append({"messages": [{"role": "system", "content": "Sing."}, {"role": "user", "content": "thing"}]})
    asked.append({"id": "empty"})
    questions, answers = jsonl(tmp_path / "questions.jsonl", asked), tmp_path / "answers.jsonl"
    with questions.open("a", encoding="utf-8") as more:
        more.write("no JSON\n")
    words = (INFERENCE / "batch_job.py", "colours@1", questions, answers, "--store", store, "--base", tiny_base, "--rows", 3, "--max-new-tokens", 4)
    assert here(words) == (3, "9 lines: 0 answered before, 6 answered now, 3 in error, by colours@1\n")
    whole = answers.read_bytes()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert [row["line"] for row in rows] == list(range(1, 10)) and {row["version"] for row in rows} == {"colours@1"}
    assert [row["line"] for row in rows if "error" in row] == [3, 8, 9]
    for row in rows:
        if "answer" in row:
            assert row["answer"] == adapter.answer(row.get("messages") or row["prompt"], 4)
    lines = whole.splitlines(keepends=True)
    answers.write_bytes(b"".join(lines[:4]) + lines[4][:20])  # a kill in the middle of a line
    assert here(words) == (3, "9 lines: 4 answered before, 3 answered now, 2 in error, by colours@1\n")
    assert answers.read_bytes() == whole
    other = jsonl(tmp_path / "other.jsonl", [*asked[:3], {"id": 3, "prompt": "another question"}, *asked[4:]])
    newer = whole.replace(b"colours@1", b"colours@7")
    for source, before, wrong in ((other, whole, 4), (questions, newer, 1), (jsonl(tmp_path / "fewer.jsonl", asked[:5]), whole, 6)):
        answers.write_bytes(before)
        code, _ = here((words[0], words[1], source, *words[3:]))
        assert isinstance(code, str) and f":{wrong} is not an answer of colours@1" in code and answers.read_bytes() == before


@pytest.mark.slow
def test_a_batch_job_runs_in_a_process_of_its_own_and_loses_nothing_to_a_kill(store: Path, tiny_base: Path, tmp_path: Path) -> None:
    questions = jsonl(tmp_path / "questions.jsonl", [{"prompt": f"thing number {i} please"} for i in range(40)])
    words = [INFERENCE / "batch_job.py", "colours@1", questions, tmp_path / "whole.jsonl", "--store", store, "--base", tiny_base, "--rows", 2]
    assert run(*words).returncode == 0
    answers = tmp_path / "answers.jsonl"
    words[3] = answers
    killed = subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT)
    while not answers.exists() or answers.read_bytes().count(b"\n") < 4:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert run(*words).returncode == 0 and answers.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def here(words: tuple[object, ...]) -> tuple[Any, str]:
    """The recipe run in this process, to save the start of another: its exit code or last words, and what it printed."""
    said, before = io.StringIO(), sys.argv
    sys.argv = [str(word) for word in words]
    try:
        with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as left:
            runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.argv = before
    return left.value.code, said.getvalue()


# --- the web app ---------------------------------------------------------------------------------------------------


@pytest.fixture
def address(store: Path, tiny_base: Path, tmp_path: Path) -> Iterator[str]:
    """Where the app listens: `colours`, whose latest version is 1 when it starts."""
    words = [sys.executable, str(INFERENCE / "fastapi_app.py"), "colours", "--store", str(store), "--base", str(tiny_base), "--port", "0"]
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, cwd=ROOT)
        try:
            while not (found := re.search(r"running on (http://\S+)", (tmp_path / "log").read_text(encoding="utf-8"))):
                assert process.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
                time.sleep(0.05)
            yield found[1]
        finally:
            process.terminate()
            process.wait(30)


def test_the_app_answers_streams_refuses_and_takes_up_a_new_version(address: str, store: Path, tiny_base: Path, adapter: Adapter) -> None:
    import asyncio

    httpx = pytest.importorskip("httpx")
    questions = [f"thing number {i} please" for i in range(4)]

    async def use() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=100) as client:
            found = await asyncio.gather(*(client.post("/answer", json={"question": q, "max_new_tokens": 6}) for q in questions))
            assert [f.json() for f in found] == [{"answer": adapter.answer(q, 6), "version": "colours@1"} for q in questions]
            async with client.stream("POST", "/stream", json={"question": questions[0], "max_new_tokens": 6}) as response:
                assert "".join([piece async for piece in response.aiter_text()]) == adapter.answer(questions[0], 6)
            refused = await client.post("/answer", json={"question": LONG})
            assert refused.status_code == 422 and "at most 1024" in refused.text
            like_first(store / "colours" / "1", store / "colours" / "2", seed=2)
            assert (await client.post("/reload")).json() == {"version": "colours@2"}
            later = (await client.post("/answer", json={"question": questions[0], "max_new_tokens": 6})).json()
            newer = tuner.load_adapter("colours@2", store, base=tiny_base)
            assert later == {"answer": newer.answer(questions[0], 6), "version": "colours@2"} and later["answer"] != adapter.answer(questions[0], 6)

    asyncio.run(use())
