"""The words that several commands share: their arguments and options, the recipe they name, and the exit code of a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.errors import Exit

if TYPE_CHECKING:
    from tuner.pipeline import Run
    from tuner.recipe import Recipe

RecipeFile = Annotated[Path, typer.Argument(help="recipe file (YAML)", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="overrides, as key.path=value", show_default=False)]
Profile = Annotated[str | None, typer.Option(help="a set of overrides the recipe defines under `profiles:`")]
Store = Annotated[str | None, typer.Option(help="folder of versions, or a URL (s3, gs, hf, file); default: the recipe's artifact.store, or ./adapters")]
BaseFolder = Annotated[str | None, typer.Option("--base", help="folder of the base model, when it was a local one")]
Name = Annotated[str, typer.Argument(help="NAME@VERSION, or NAME for the latest", show_default=False)]
Fresh = Annotated[bool, typer.Option("--fresh", help="remove an interrupted run of this name and start over")]
AllowChanged = Annotated[
    list[str] | None, typer.Option(metavar="KEY", help="go on with an interrupted run although this key was changed; repeatable; recorded")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]


def load(path: Path, overrides: list[str] | None, profile: str | None) -> Recipe:
    """The recipe at `path`, with overrides and a profile. Raises Refusal."""
    from tuner.recipe import load_recipe

    return load_recipe(path, overrides or [], profile)


def store_folder(place: str) -> Path:
    """The folder to work in for a store: itself, or for a URL its mirror. Raises Refusal for a URL that no store can lie at."""
    from tuner.artifact.remote import store_folder

    return store_folder(place)


def exit_by_verdict(done: Run) -> None:
    """Leave with NOT_BETTER where a run was graded and not found better than the prompted base."""
    if done.scores and done.verdict != "better":
        raise typer.Exit(Exit.NOT_BETTER)
