"""The door for Python: the command line's verbs as functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tuner import pipeline
from tuner.artifact.remote import store_folder
from tuner.evaluate.spec import Kind
from tuner.recipe import Recipe, load_recipe


def _as_recipe(recipe: str | Path | Recipe, overrides: Sequence[str], profile: str | None) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides, profile)


def run(recipe: str | Path | Recipe, *, overrides: Sequence[str] = (), profile: str | None = None, store: str | Path | None = None) -> pipeline.Run:
    """Check, train, publish, grade and report. Returns the version, its evaluation folder and scores. Raises Refusal."""
    return pipeline.run(_as_recipe(recipe, overrides, profile), store_folder(store) if store is not None else None)


def check(recipe: str | Path | Recipe, *, overrides: Sequence[str] = (), profile: str | None = None) -> pipeline.Prepared:
    """Read, check and tokenise; `.checked.findings` holds what was found. Raises Refusal for input that cannot be read at all."""
    return pipeline.prepare(_as_recipe(recipe, overrides, profile), weights=False)


def evaluate(
    name: str,
    recipe: str | Path | Recipe | None = None,
    *,
    suites: Sequence[Kind] | None = None,
    overrides: Sequence[str] = (),
    profile: str | None = None,
    store: str | Path | None = None,
) -> pipeline.Run:
    """Ask a published version the suites of a recipe (default: the one it was trained by), and add the evaluation beside it. Raises Refusal.

    `suites` names some of tuner.evaluate.spec.KINDS; held_out is always asked.
    """
    from tuner.artifact.manifest import read_manifest
    from tuner.artifact.store import find
    from tuner.judging import recipe_of

    if recipe is None:
        version = find(store_folder(store or "adapters"), name)
        recipe = recipe_of(version, read_manifest(version.folder))
    loaded = _as_recipe(recipe, overrides, profile)
    prepared = pipeline.prepare(loaded if suites is None else loaded.with_evaluate(suites=list(suites)))
    prepared.checked.raise_if_refused()
    return pipeline.evaluate(prepared, find(store_folder(store or loaded.artifact.store), name))
