"""The runs of a study: each a normal run of the recipe with a few keys set, under a name of its own, published as a normal version.

Refuses to run under a launcher with several processes: start its runs one by one there, and the study takes them up as finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuner import pipeline
from tuner.artifact.adapter import Adapter, open_adapter
from tuner.artifact.manifest import read_manifest
from tuner.artifact.remote import beside
from tuner.artifact.store import Version, find, versions
from tuner.errors import refuse
from tuner.fingerprint import library_versions
from tuner.recipe import NAME, Recipe, load_recipe
from tuner.train.ranks import world_size

MOST_NAME = 64


def folder_of(store: Path, name: str) -> Path:
    """Where a study of this name is kept: `studies/NAME`, beside the store."""
    return beside(store).absolute().parent / "studies" / name


def refuse_ranks(what: str) -> None:
    if world_size() > 1:
        refuse("command line", what, f"{world_size()} processes of one launch", "one process: it starts the runs itself, one after another",
               "train each run with `accelerate launch -m tuner train …` as the study prints them; it takes up finished ones")  # fmt: skip


def name_of(recipe: Recipe, ending: str) -> str:
    """The name of a run: the recipe's own and what it is. Raises Refusal when it grows too long for a name."""
    name = f"{recipe.name}.{ending}"
    if len(name) > MOST_NAME:
        refuse(recipe.at("name"), "name", f"{name}, {len(name)} characters", f"at most {MOST_NAME} ({NAME})", "give the recipe a shorter name")
    return name


def words_of(keys: Mapping[str, Any]) -> list[str]:
    """Overrides as the command line takes them; JSON is YAML."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()]


def recipe_with(recipe: Recipe, overrides: list[str], profile: str | None, keys: Mapping[str, Any]) -> Recipe:
    """The same file with these keys set as well. Raises Refusal naming each that is not accepted."""
    return load_recipe(recipe.path, [*overrides, *words_of(keys)], profile)


def finished(store: Path, recipe: Recipe, records: Mapping[str, str]) -> Version | None:
    """The newest version of this very recipe, made by these library versions from `records` (digest by split), if there is one."""
    version: Version
    for version, manifest in reversed(versions(store)):
        if manifest is not None and manifest.get("recipe_digest") == recipe.digest and version.name == recipe.name:
            splits = manifest["data"]["splits"]
            same = all(splits.get(split, {}).get("digest") == digest for split, digest in records.items())
            if same and manifest["versions"] == library_versions():
                return find(store, version.label)  # whole, where the store is a remote one
    return None


def digest_of(version: Version) -> str:
    return str(read_manifest(version.folder)["digest"])


def opened(version: Version, prepared: pipeline.Prepared) -> Adapter:
    """The version as it will be served, on the study's base."""
    from tuner.artifact.manifest import verify

    return open_adapter(version, verify(version.folder), prepared.base, None, None, prepared.recipe.evaluate.batch)


def training_of(version: Version) -> dict[str, Any]:
    """What training measured, from the manifest."""
    return dict(read_manifest(version.folder)["training"])
