"""Forgetting a record: which versions were trained on it, marks in their logs, and the recipes that train them again without it.

It refuses to write over a recipe, or to put one where its paths would mean other files. No text goes into a log or a recipe, hashes alone.
"""

from __future__ import annotations

import html
import io
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from tuner.artifact import history
from tuner.artifact.lineage import Sought, Trace, Use, sought_record
from tuner.artifact.manifest import read_manifest
from tuner.artifact.record_segments import EXACT, SAME_PROMPT
from tuner.artifact.store import Version, versions
from tuner.data.files import Faults, shown_path
from tuner.data.record import Record
from tuner.data.redaction import redacted
from tuner.data.sources import Limits, read_file
from tuner.data.spec import Columns
from tuner.data.splits import read_splits, sources_of
from tuner.errors import Refusal, refuse
from tuner.recipe import Recipe, load_recipe, recipe_text
from tuner.safe_text import quoted

WHY = "a record that is to be forgotten"
LEFT = (
    "what a version that is in use already says: its weights keep what they learned until another version takes its place",
    "copies outside this store: pushed repositories, exports, backups, merged models, logs of whoever served it",
    "the files of records themselves: delete the record there too",
)  # fmt: skip


@dataclass(frozen=True)
class Concern:
    """A version that learned from the record: itself, or `through` the version that it continues."""

    version: Version
    aliases: tuple[str, ...]
    through: str | None
    is_marked: bool


@dataclass(frozen=True)
class Retraining:
    """A recipe that trains a version again without the records. `after` names the recipe that must be trained first."""

    version: Version
    path: Path
    text: str
    after: str | None = None


@dataclass(frozen=True)
class Forgetting:
    """What would be done, and what forgetting leaves: `quoting` are files of the store that hold the record's text."""

    trace: Trace
    hashes: list[str]
    near: list[Use]
    concerned: list[Concern]
    recipes: list[Retraining]
    notes: list[str] = field(default_factory=list)
    quoting: list[Path] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "hashes": self.hashes, "near_copies_left": [u.as_dict() for u in self.near],
            "concerned": [{"version": c.version.label, "aliases": list(c.aliases), "through": c.through, "marked": c.is_marked} for c in self.concerned],
            "recipes": [{"version": r.version.label, "file": str(r.path), "after": r.after} for r in self.recipes], "notes": self.notes,
            "quoting": [str(p) for p in self.quoting], "left": list(LEFT), "lineage": self.trace.as_dict(),
        }  # fmt: skip


# --- the record ----------------------------------------------------------------------------------------------------------


def sought_at(place: str, recipe: Recipe | None) -> Sought:
    """The record at FILE:LINE. With a recipe it is read by the recipe's columns, and looked for also as the recipe redacts it."""
    if recipe is None:
        return sought_record([record_at(place)], place)
    spec, file = recipe.data, Path(os.path.expanduser(place.rpartition(":")[0])).resolve()
    source = next((s for s in sources_of(spec).values() if any((recipe.path.parent / os.path.expanduser(f)).resolve() == file for f in s.files)), None)
    if source is None:
        refuse(place, "--recipe", f"a file that {recipe.path.name} does not read", "one of its files of records", "leave --recipe out, or name another")
    record = record_at(place, source.columns, Limits(spec.max_record_bytes, spec.max_file_bytes))
    return sought_record([record, *_as_redacted(recipe, record)], place)


def record_at(place: str, columns: Columns | None = None, limits: Limits | None = None) -> Record:
    """The record at FILE:LINE, read as tuner reads it. Raises Refusal where the file cannot be read, or no record stands there."""
    name, _, line = place.rpartition(":")
    if not name or not re.fullmatch(r"[1-9][0-9]{0,9}", line):
        refuse("command line", "--record", quoted(place), "FILE:LINE", "write it as findings do, for example train.jsonl:17")
    path = Path(os.path.expanduser(name))
    if not path.is_file():
        refuse(path, "--record", "no such file", "a file of records", "check the path; without the file ask by --text or --hash")
    faults = Faults(shown_path(name, Path()), "train")
    records, _ = read_file(path, faults, columns, limits or Limits())
    found = next((r for r in records if r.line == int(line)), None)
    if found is None:
        problems = [f.problem() for f in faults.found if f.line in (0, int(line))]
        if problems:
            raise Refusal(problems)
        refuse(place, "--record", "no record there", f"the line of one of its {len(records)} records", "lines count from 1, the header of a table with them")
    return found


def _as_redacted(recipe: Recipe, record: Record) -> Iterator[Record]:
    """The record as the recipe's redaction leaves it: placeholders are numbered over all records, so all are read."""
    if recipe.data.redact:
        splits = read_splits(recipe.data, recipe.path.parent, recipe.seed)
        hidden, _ = redacted(splits, recipe.data.redact, recipe.data.task == "json")
        for split, records in splits.records.items():
            yield from (now for now, before in zip(hidden[split], records, strict=True) if before.hash == record.hash and now.hash != record.hash)


# --- the plan ------------------------------------------------------------------------------------------------------------


def plan_forgetting(store: Path, trace: Trace, near: bool, recipe: Recipe | None = None, output: Path | None = None) -> Forgetting:
    """What forgetting the traced record means. With `near`, its near copies too. Nothing is written. Raises Refusal for an `output` that cannot be."""
    sure = EXACT if any(w.prefix for w in trace.sought.wanted) else SAME_PROMPT  # who asks by a text has no hash
    meant = [u for u in trace.uses if near or u.how in (EXACT, sure)]
    hashes = sorted({u.hash for u in meant})
    left = [u for u in trace.uses if u.is_trained_on and u.hash not in hashes]
    concerned = _concerned(store, {u.version.label for u in meant if u.is_trained_on}, hashes)
    notes: list[str] = []
    recipes = list(_recipes(store, concerned, hashes, recipe, output, notes))
    folders = dict.fromkeys([*(u.version.folder for u in trace.uses), *(c.version.folder for c in concerned), store / ".answers"])
    quoting = sorted(_quoting(_forms(trace.sought.texts), folders))
    return Forgetting(trace, hashes, left, concerned, recipes, notes, quoting)


def _concerned(store: Path, trained: set[str], hashes: Sequence[str]) -> list[Concern]:
    """The versions trained on the records, and all that continue one of those: parents before children."""
    if not trained:
        return []
    everyone = [(v, m) for v, m in versions(store) if m is not None]
    labels = {m.get("digest"): v.label for v, m in everyone}
    parents = {v.label: labels.get(_parent_digest(m)) for v, m in everyone}
    chains = {v.label: _chain(v.label, parents) for v, _ in everyone}
    found = [v for v, _ in everyone if trained & {v.label, *chains[v.label]}]
    found.sort(key=lambda v: (len(chains[v.label]), v.name, v.number))
    return [_concern(store, v, None if v.label in trained else parents[v.label], hashes) for v in found]


def _parent_digest(manifest: Mapping[str, Any]) -> str | None:
    digest = ((manifest.get("lineage") or {}).get("parent") or {}).get("manifest_digest")
    return None if digest is None else str(digest)


def _chain(label: str, parents: Mapping[str, str | None]) -> list[str]:
    """The versions that this one continues, the nearest first."""
    chain: list[str] = []
    above = parents.get(label)
    while above is not None and above not in chain:
        chain.append(above)
        above = parents.get(above)
    return chain


def _concern(store: Path, version: Version, through: str | None, hashes: Sequence[str]) -> Concern:
    now = history.state(store / version.name)
    return Concern(version, tuple(now.pointing_at(version.number)), through, set(hashes) <= set(now.marked.get(version.number, ())))


# --- what quotes it ------------------------------------------------------------------------------------------------------


def _quoting(forms: Sequence[bytes], folders: Iterable[Path]) -> Iterator[Path]:
    """Files of text under these folders that hold one of these forms of the record's words."""
    for folder in folders:
        for path in folder.rglob("*") if folder.is_dir() else ():
            if path.suffix in _QUOTING and path.is_file() and not path.is_symlink():
                data = path.read_bytes()
                if any(form in data for form in forms):
                    yield path


_QUOTING = frozenset({".json", ".jsonl", ".md", ".html", ".txt", ".csv", ".yaml"})
_LEAST_QUOTED = 8  # characters: a shorter text stands in files that do not mean the record


def _forms(texts: Iterable[str]) -> list[bytes]:
    """A text as files write it: as it is, in JSON, in HTML."""
    written = (f for t in texts if len(t) >= _LEAST_QUOTED
               for f in (t, json.dumps(t, ensure_ascii=False)[1:-1], json.dumps(t)[1:-1], html.escape(t), html.escape(t, quote=False)))  # fmt: skip
    return [form.encode("utf-8", "surrogatepass") for form in dict.fromkeys(written)]


# --- training again without it -------------------------------------------------------------------------------------------


def _recipes(
    store: Path, concerned: Sequence[Concern], hashes: Sequence[str], recipe: Recipe | None, output: Path | None, notes: list[str]
) -> list[Retraining]:  # fmt: skip
    """A recipe for the newest concerned version of each name and for every concerned version that one continues; parents before children."""
    wanted = _to_retrain(store, concerned, hashes, notes)
    _refuse_output(output, wanted)
    made: dict[str, Retraining] = {}
    for version in wanted:
        manifest = read_manifest(version.folder)
        folder = _folder(version, manifest, recipe)
        if folder is None:
            notes.append(f"no recipe was written for {version.label}: where its own lay is not known; say it with --recipe RECIPE.yaml")
            continue
        parent = next((c.version.label for c in concerned if read_manifest(c.version.folder)["digest"] == _parent_digest(manifest)), None)
        after = made.get(parent or "")
        path = _free(folder, version.name, {r.path for r in made.values()}) if output is None else _beside(output, folder)
        made[version.label] = Retraining(version, path, without(version, hashes, after), None if after is None else after.path.name)
    return list(made.values())


def _to_retrain(store: Path, concerned: Sequence[Concern], hashes: Sequence[str], notes: list[str]) -> list[Version]:
    """The newest concerned version of each name that has none yet without these records, and the concerned ones above those."""
    by_digest = {read_manifest(c.version.folder)["digest"]: c.version for c in concerned}
    newest = {c.version.name: c.version for c in sorted(concerned, key=lambda c: c.version.number)}
    wanted: set[str] = set()
    for name, version in newest.items():
        done = _already(store, name, {c.version.label for c in concerned}, hashes)
        if done is not None:
            notes.append(f"{done} was trained without it already")
            continue
        above: Version | None = version
        while above is not None and above.label not in wanted:
            wanted.add(above.label)
            above = by_digest.get(_parent_digest(read_manifest(above.folder)))
    return [c.version for c in concerned if c.version.label in wanted]


def _already(store: Path, name: str, concerned: set[str], hashes: Sequence[str]) -> str | None:
    """A version of this name whose recipe forgets these records, if there is one."""
    others = [v for v, m in versions(store) if v.name == name and v.label not in concerned and m is not None]
    return next((v.label for v in reversed(others) if set(hashes) <= set(_forgotten_by(v))), None)


def _forgotten_by(version: Version) -> list[str]:
    try:
        return load_recipe(version.folder / "resolved.yaml").data.forget
    except Refusal:  # a recipe of another release
        return []


def _folder(version: Version, manifest: Mapping[str, Any], recipe: Recipe | None) -> Path | None:
    """The folder that the paths of a version's recipe start at."""
    if recipe is not None and recipe.name == version.name:
        return recipe.path.parent
    place = manifest.get("recipe_file")
    folder = None if place is None else (version.folder.parent.parent.resolve().parent / place).parent
    return folder if folder is not None and folder.is_dir() else None


def _refuse_output(output: Path | None, wanted: Sequence[Version]) -> None:
    if output is None:
        return
    if len(wanted) > 1:
        refuse(output, "--output", f"{len(wanted)} recipes to write", "one file for one recipe", "leave --output out: each gets a name of its own")
    if output.exists():
        refuse(output, "--output", "a file that exists", "a new file", "choose another name")


def _beside(output: Path, folder: Path) -> Path:
    if output.resolve().parent != folder.resolve():
        refuse(output, "--output", "a folder other than the recipe's", f"a file in {folder}", "paths in a recipe start at its folder, so it must lie there")
    return output.resolve()


def _free(folder: Path, name: str, taken: set[Path]) -> Path:
    tried = (folder / f"{name}-without{number}.yaml" for number in ("", *(f"-{n}" for n in range(2, 10_000))))
    return next(path for path in tried if path not in taken and not path.exists())


def without(version: Version, hashes: Sequence[str], after: Retraining | None) -> str:
    """The recipe that trains a version again without these records: its own words and comments, and the overrides it was trained with written in."""
    resolved = load_recipe(version.folder / "resolved.yaml")
    forget = sorted({*resolved.data.forget, *hashes})
    changed: dict[str, Any] = {"data": resolved.data.model_copy(update={"forget": forget})}
    if after is not None:  # the newest version of the parent's name: the one trained by the recipe before
        changed["method"] = resolved.method.model_copy(update={"continue_from": after.version.name})
    wanted = resolved.model_copy(update=changed)
    text = _edited(version.folder / "recipe.yaml", wanted)
    return recipe_text(wanted, comments=False) if text is None else text


def _edited(file: Path, wanted: Recipe) -> str | None:
    """The file with every value that `wanted` has otherwise written in; None where it cannot be edited so that it says exactly that."""
    try:
        before = load_recipe(file).model_dump(mode="json", exclude={"profiles"})
    except Refusal:
        return None
    editor = YAML()
    editor.preserve_quotes, editor.width = True, 1 << 20
    document = editor.load(file.read_text(encoding="utf-8-sig"))
    _write_in(document, before, wanted.model_dump(mode="json", exclude={"profiles"}))
    out = io.StringIO()
    editor.dump(document, out)
    return out.getvalue() if _says(out.getvalue(), wanted) else None


def _write_in(node: CommentedMap, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for key, value in after.items():
        if before.get(key) == value and key in before:
            continue
        if isinstance(value, dict) and isinstance(before.get(key), dict) and isinstance(node.get(key, CommentedMap()), CommentedMap):
            if key not in node:
                node[key] = CommentedMap()
            _write_in(node[key], before[key], value)
        else:
            node[key] = value


def _says(text: str, wanted: Recipe) -> bool:
    """Does this text load as the recipe that is wanted?"""
    with tempfile.TemporaryDirectory(prefix="tuner-recipe-") as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(text, encoding="utf-8")
        try:
            return load_recipe(file).digest == wanted.digest
        except Refusal:
            return False


# --- doing it ------------------------------------------------------------------------------------------------------------


def forget(store: Path, plan: Forgetting, by: str, why: str) -> list[str]:
    """Mark every version concerned that is not marked yet, then write the recipes. Gives what was done, in words."""
    done = []
    for concern in plan.concerned:
        if not concern.is_marked:
            home = store / concern.version.name
            facts = {"records": plan.hashes, "through": concern.through}
            history.append(home, history.state(home).count, "forget", concern.version.number, None, by, why, facts)
            done.append(f"marked {concern.version.label}")
    for recipe in plan.recipes:
        try:
            with recipe.path.open("x", encoding="utf-8") as out:
                out.write(recipe.text)
        except FileExistsError:
            refuse(recipe.path, "", "a file that came to be meanwhile", "a free name", "run the command again")
        done.append(f"written {recipe.path}")
    return done
