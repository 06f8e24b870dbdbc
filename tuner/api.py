"""The door for Python: the command line's verbs as functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tuner import pipeline
from tuner.recipe import Recipe, load_recipe


def _as_recipe(recipe: str | Path | Recipe, overrides: Sequence[str], profile: str | None) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides, profile)


def run(recipe: str | Path | Recipe, *, overrides: Sequence[str] = (), profile: str | None = None, store: str | Path | None = None) -> pipeline.Run:
    """Check, train, publish, grade and report. Returns the version, its evaluation folder and scores. Raises Refusal."""
    return pipeline.run(_as_recipe(recipe, overrides, profile), Path(store) if store is not None else None)


def check(recipe: str | Path | Recipe, *, overrides: Sequence[str] = (), profile: str | None = None) -> pipeline.Prepared:
    """Read, check and tokenise; `.checked.findings` holds what was found. Raises Refusal for input that cannot be read at all."""
    return pipeline.prepare(_as_recipe(recipe, overrides, profile), weights=False)


def evaluate(
    name: str, recipe: str | Path | Recipe, *, overrides: Sequence[str] = (), profile: str | None = None, store: str | Path | None = None
) -> pipeline.Run:
    """Grade a published version on the suites of a recipe, and add the evaluation beside it. Raises Refusal."""
    from tuner.artifact.store import find

    prepared = pipeline.prepare(_as_recipe(recipe, overrides, profile))
    prepared.checked.raise_if_refused()
    return pipeline.evaluate(prepared, find(Path(store or prepared.recipe.artifact.store), name))
