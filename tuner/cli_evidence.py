"""The commands that judge a version: evaluate, gate, compare, report.

They refuse to judge what was not measured: a gate without an evaluation is refused, a rule without its suite is undecided.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli_words import AsJson, Name, Profile, Store, exit_by_verdict, load, store_folder
from tuner.errors import Exit, refuse
from tuner.telling import Teller, err, out, say_run, shown_path

if TYPE_CHECKING:
    from tuner.artifact.store import Version
    from tuner.evaluate.spec import Kind
    from tuner.recipe import Recipe

Suites = Annotated[list[str] | None, typer.Option("--suite", help="run these alone (held_out is always asked); repeatable: ood, transforms, abstention, …")]
Words = Annotated[list[str] | None, typer.Argument(metavar="[RECIPE] [OVERRIDES]...", help="default: the recipe it was trained by", show_default=False)]


def evaluate(name: Name, words: Words = None, suite: Suites = None, profile: Profile = None, store: Store = None) -> None:
    """Ask every suite of a recipe, and add the evaluation and its report beside the version. What was answered before is not asked again."""
    from tuner import pipeline

    version, loaded = _version_and_recipe(name, words or [], profile, store)
    if suite:
        loaded = loaded.with_evaluate(suites=_kinds(suite))
    with Teller() as teller:
        teller.stage("data", "reading and checking records")
        prepared = pipeline.prepare(loaded)
        prepared.checked.raise_if_refused()
        done = pipeline.evaluate(prepared, version, teller)
    say_run(done, published=False)
    exit_by_verdict(done)


def _version_and_recipe(name: str, words: list[str], profile: str | None, store: str | None) -> tuple[Version, Recipe]:
    """The version, and the recipe to grade it by: the one named, or its own where that still lies."""
    from tuner.artifact.manifest import read_manifest
    from tuner.artifact.store import find
    from tuner.judging import recipe_of

    if words and not _is_override(words[0]):
        loaded = load(Path(words[0]), words[1:], profile)
        return find(store_folder(store or loaded.artifact.store), name), loaded
    version = find(store_folder(store or "adapters"), name)
    manifest = read_manifest(version.folder)
    loaded = load(recipe_of(version, manifest), words, profile)
    if not words and profile is None and loaded.digest != manifest["recipe_digest"]:
        is_as_kept = loaded.text.encode() == (version.folder / "recipe.yaml").read_bytes()
        what = "was trained with overrides or a profile besides" if is_as_kept else "was trained by it before it was changed"
        err.print(f"note: {shown_path(loaded.path)}: {version.label} {what}; graded by the file as it is now", markup=False, soft_wrap=True)
    return version, loaded


def _is_override(word: str) -> bool:
    return "=" in word and not Path(word).is_file()


def _kinds(names: list[str]) -> list[Kind]:
    from tuner.catalog import choose
    from tuner.evaluate.spec import KINDS

    return [choose({kind: kind for kind in KINDS}, name, "command line", "--suite") for name in names]


def gate(
    name: Name,
    recipe: Annotated[Path | None, typer.Argument(help="a recipe whose gate is used; default: the version's own", show_default=False)] = None,
    store: Store = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """May it ship? Each rule, what was found, what was needed. Exit 0 when all hold, 3 when one fails, 4 when too few items decide."""
    from tuner.artifact.store import find
    from tuner.durable import json_text
    from tuner.promotion import ruling
    from tuner.report.gate_text import gate_text

    ruled = ruling(find(store_folder(store or "adapters"), name), recipe)
    if as_json:
        sys.stdout.write(json_text({"version": ruled.version.label, "evaluation": ruled.evaluation.name, **ruled.gate}))
    else:
        out.print(f"{ruled.version.label}, evaluation {ruled.evaluation.name}\n{gate_text(ruled.gate)}", markup=False, soft_wrap=True)
    code = {"pass": Exit.GOOD, "fail": Exit.NOT_BETTER, "undecided": Exit.UNDECIDED}[ruled.outcome]
    if code:
        raise typer.Exit(code)


def compare(
    first: Name, second: Name, store: Store = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Two versions on the items both were asked: each suite and metric, the paired difference and its interval."""
    from tuner.differences import compared
    from tuner.durable import json_text
    from tuner.report.compare_text import compare_text

    (a, folder_a), (b, folder_b) = _evaluated(first, store), _evaluated(second, store)
    found = compared(folder_a, folder_b, a.label, b.label)
    if as_json:
        sys.stdout.write(json_text(found))
    else:
        out.print(compare_text(found), markup=False, soft_wrap=True)


def report(name: Name, store: Store = None) -> None:
    """Write the report of the latest evaluation again from its files, and print it as Markdown."""
    from tuner.artifact.store import read_scores
    from tuner.differences import refuse_without_answers
    from tuner.durable import ensure_folder
    from tuner.report.write import write_report
    from tuner.telling import for_terminal

    version, folder = _evaluated(name, store)
    read_scores(folder)
    refuse_without_answers(folder)
    ensure_folder(folder)
    write_report(version.folder, folder)
    sys.stdout.write(for_terminal((folder / "report.md").read_text(encoding="utf-8")))
    err.print(f"written: {shown_path(folder / 'report.html')}, report.md, report.json", markup=False, soft_wrap=True)


def _evaluated(name: str, store: str | None) -> tuple[Version, Path]:
    """A version and its latest evaluation. Raises Refusal where it has none."""
    from tuner.artifact.store import find, latest_evaluation

    version = find(store_folder(store or "adapters"), name)
    folder = latest_evaluation(version)
    if folder is None:
        refuse(version.label, "evaluations", "none yet", "a version that was evaluated", f"tuner evaluate {version.label}")
    return version, folder


COMMANDS = (evaluate, gate, compare, report)
