"""Answers to a file of questions, JSON lines in and JSON lines out, in order; started again it goes on after the last whole line.

    python recipes/inference/batch_job.py banking-intents@production questions.jsonl answers.jsonl

A question is {"prompt": …} or {"messages": […]}; its other keys are kept. Every row says its line and the version that answered. A question that
cannot be asked gets an "error" instead of an answer; the exit code is then 3. Another version, or other questions, are refused: give another output.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from tuner import Refusal, load_adapter


def answered_before(output: Path, questions: Path, version: str) -> int:
    """How many lines of `output` are whole and belong to these questions and this version. What a kill left of a line is cut off."""
    if not output.exists():
        return 0
    whole = output.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    if len(kept) < len(whole):
        os.truncate(output, len(kept))
    rows = [json.loads(line) for line in kept.splitlines()]
    for number, (row, line) in enumerate(zip_longest(rows, islice(lines_of(questions), len(rows))), start=1):
        if line is None or row["line"] != number or row.get("version") != version or not line_is_of(line, row):
            sys.exit(f"{output}:{number} is not an answer of {version} to {questions}:{number}; give another output")
    return len(rows)


def line_is_of(line: str, row: dict[str, Any]) -> bool:
    return parsed(line).items() <= row.items() if isinstance(parsed(line), dict) else "error" in row


def lines_of(questions: Path) -> Iterator[str]:
    with questions.open(encoding="utf-8") as lines:
        yield from lines


def parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def rows_of(adapter: Any, numbered: list[tuple[int, str]], max_new_tokens: int) -> list[dict[str, Any]]:
    """The finished rows of a batch of lines."""
    rows, asked = [], []
    for number, line in numbered:
        said = parsed(line)
        row = {**(said if isinstance(said, dict) else {}), "line": number, "version": adapter.version.label}
        question = row.get("messages") or row.get("prompt")
        try:
            if not adapter.fits([question or []], max_new_tokens)[0]:
                raise ValueError("too long for the base's context")
            asked.append((row, question))
        except (Refusal, ValueError, TypeError, AttributeError) as error:
            row["error"] = " ".join(str(error).split())
        rows.append(row)
    answers = adapter.answer_many([question for _, question in asked], max_new_tokens)
    for (row, _), answer in zip(asked, answers, strict=True):
        row["answer"] = answer
    return rows


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("name", help="NAME, NAME@3 or NAME@alias")
    words.add_argument("questions", type=Path)
    words.add_argument("answers", type=Path)
    words.add_argument("--store", type=Path, default=Path("adapters"))
    words.add_argument("--base", type=Path, help="folder of the base, when it was a local one")
    words.add_argument("--rows", type=int, default=256, help="rows between two writes: what a kill can cost")
    words.add_argument("--max-new-tokens", type=int, default=256)
    given = words.parse_args()
    adapter = load_adapter(given.name, given.store, base=given.base)
    before = answered_before(given.answers, given.questions, adapter.version.label)
    done = errors = 0
    numbered = islice(enumerate(lines_of(given.questions), start=1), before, None)
    with given.answers.open("a", encoding="utf-8") as out:
        while batch := list(islice(numbered, given.rows)):
            rows = rows_of(adapter, batch, given.max_new_tokens)
            out.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            out.flush()
            os.fsync(out.fileno())
            done, errors = done + len(rows), errors + sum("error" in row for row in rows)
    said = f"{before + done} lines: {before} answered before, {done - errors} answered now, {errors} in error, by {adapter.version.label}"
    sys.stdout.write(said + "\n")
    sys.exit(3 if errors else 0)


if __name__ == "__main__":
    main()
