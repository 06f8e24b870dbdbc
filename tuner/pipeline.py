"""The corridor: calls each room once, in order. Read this first.

recipe → data → template → plan → train → artifact → evaluate → report. Under `accelerate launch` the main rank alone reads, checks,
tokenises, plans, prints, publishes and grades; the others train on its rows. It refuses what the rooms refuse.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tuner.artifact.remote import beside, remote_of, store_folder
from tuner.artifact.store import Version
from tuner.base import Base, guard_tokenizer, resolve_base
from tuner.data.canaries import CANARIES, planted
from tuner.data.checks import CHECKS
from tuner.data.doctor import Checked, examine, refuse_wrong_choices
from tuner.data.findings import SEVERITY, Finding, Scene, finding, remark
from tuner.data.record import Message, Record
from tuner.data.spec import CutSpec, SourceSpec
from tuner.data.splits import REHEARSAL, Splits, read_splits, sources_of
from tuner.durable import ensure_folder, ensure_shared_folder, json_text
from tuner.errors import Problem, Refusal, refuse
from tuner.fingerprint import git_state, hardware, library_versions
from tuner.judging import recipe_place
from tuner.judging import refuse_wrong_choices as refuse_wrong_rules
from tuner.recipe import Recipe, recipe_text
from tuner.safe_text import quoted
from tuner.template.conditions import content_conditions
from tuner.template.row_cache import rows_from_main, rows_of, speaking
from tuner.template.tokens import Encoder, Row, open_encoder
from tuner.train import trackers
from tuner.train.ranks import from_each, from_main, is_main, part, watched, world_size

if TYPE_CHECKING:
    from tuner.data.selection import Selection
    from tuner.plan.budget import Plan
    from tuner.planning import Planned
    from tuner.train.checkpoint import Resume, RunFolder
    from tuner.train.sft import Job, Progress, Trained
    from tuner.train.stopping import Stopper
    from tuner.train.trackers import Trackers


class Listener(Protocol):
    """Who is told what a run is doing."""

    def stage(self, name: str, say: str) -> None: ...
    def reading(self, file: str, bytes_read: int) -> None: ...
    def checking(self, what: str, done: int, total: int) -> None: ...
    def checked(self, prepared: Diagnosed) -> None: ...
    def planned(self, plan: Plan) -> None: ...
    def picked(self, why: Sequence[str]) -> None: ...
    def training(self, progress: Progress) -> None: ...
    def grading(self, what: str, done: int, total: int) -> None: ...


class Quiet:
    """A listener that says nothing: the default, and that of every rank but the main one."""

    def stage(self, name: str, say: str) -> None: ...
    def reading(self, file: str, bytes_read: int) -> None: ...
    def checking(self, what: str, done: int, total: int) -> None: ...
    def checked(self, prepared: Diagnosed) -> None: ...
    def planned(self, plan: Plan) -> None: ...
    def picked(self, why: Sequence[str]) -> None: ...
    def training(self, progress: Progress) -> None: ...
    def grading(self, what: str, done: int, total: int) -> None: ...


QUIET = Quiet()


@dataclass(frozen=True)
class Diagnosed:
    """Records read and checked, with an account of every file."""

    recipe: Recipe
    checked: Checked

    @property
    def splits(self) -> Splits:
        return self.checked.splits

    @property
    def accounts(self) -> list[dict[str, Any]]:
        """Per file: read = kept + dropped + rejected, to the record; `reasons` says which check dropped how many."""
        kept = Counter((r.split, r.file) for records in self.splits.records.values() for r in records)
        kept += Counter((r.split, r.file) for r in self.splits.production)
        lines = []
        for account in self.splits.accounts:
            own = {account.split} if account.split != "train" else {"train", *self.cut_splits()}
            left = sum(kept[split, account.file] for split in own)
            reasons = {name: sum(places.get((split, account.file), 0) for split in own) for name, places in self.checked.dropped_in.items()}
            lines.append({
                "file": account.file, "split": account.split, "digest": account.digest, "read": account.read, "kept": left,
                "dropped": account.read - account.rejected - left, "rejected": account.rejected,
                "reasons": {name: count for name, count in reasons.items() if count} | ({"take": account.not_taken} if account.not_taken else {}),
            })  # fmt: skip
        return lines

    def cut_splits(self) -> list[str]:
        """The splits that were cut from train's own files."""
        cut = self.recipe.data.cut
        return [split for split, share in (("validation", cut.validation), ("held_out", cut.held_out)) if share > 0]


@dataclass(frozen=True)
class Prepared(Diagnosed):
    """Records checked on a resolved base. `rows`, made when first asked for, holds what will be trained, watched and graded."""

    base: Base
    encoder: Encoder

    @cached_property
    def rows_and_entry(self) -> tuple[dict[str, list[Row]], Path | None]:
        """Every kept record as tokens, by split, and where they lie for the other ranks (tuner.template.row_cache)."""
        return rows_of(self.encoder, {**self.splits.records, **self.planted}, shared=world_size() > 1)

    @property
    def planted(self) -> dict[str, list[Record]]:
        """The canaries that the recipe asks for, as a split of their own: no check sees them, and no number counts them as data."""
        spec = self.recipe.data.canaries
        return {} if spec is None else {CANARIES: planted(spec, self.recipe.seed, self.splits["train"])}

    @property
    def rows(self) -> dict[str, list[Row]]:
        """Every kept record as tokens, by split."""
        return self.rows_and_entry[0]


@dataclass(frozen=True)
class Handed:
    """What a rank other than the main one trains on: the rows that the main rank made. No file of data was read for it."""

    recipe: Recipe
    base: Base
    encoder: Encoder
    rows: Mapping[str, Sequence[Row]]


@dataclass(frozen=True)
class Run:
    """What a run gave: the version, and where its evaluation and report are. Ranks other than the main one get no version."""

    version: Version | None
    evaluation: Path | None = None
    scores: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str | None:
        return self.scores["verdict"]["word"] if self.scores else None


TRAINED = ("train", REHEARSAL, CANARIES)  # the splits whose rows are fitted, in this order


def trained_rows(rows: Mapping[str, Sequence[Row]]) -> Sequence[Row]:
    """Every row that is fitted: train's, general records rehearsed, canaries planted."""
    more = [rows[split] for split in TRAINED[1:] if rows.get(split)]
    return rows["train"] if not more else [row for of in (rows["train"], *more) for row in of]


# --- data and template ---------------------------------------------------------------------------------------------


def prepare(recipe: Recipe, listener: Listener = QUIET, weights: bool = True) -> Prepared:
    """Read and check every split. Findings that refuse are kept in `checked`; the caller decides when to raise.

    Without `weights` the base's tokenizer is enough: what is prepared can be looked at, but not trained.
    """
    base, splits = _base_and_splits(recipe, listener, weights)
    encoder = _encoder_of(recipe, base, splits)
    if "few_shot" in recipe.evaluate.base_ways and not encoder.template.multi_turn:
        refuse(recipe.at("template", "format"), "template.format", "a template of one turn", "one that renders few-shot examples",
               "use another format, or set evaluate.base_ways: [zero_shot]")  # fmt: skip
    guard_tokenizer(encoder.tokenizer, base.name)
    if base.context_tokens is not None and recipe.template.max_tokens > base.context_tokens:
        refuse(
            recipe.at("template", "max_tokens"),
            "template.max_tokens",
            recipe.template.max_tokens,
            f"at most {base.context_tokens}, the base's context",
            "lower it",
        )
    splits = replace(splits, findings=(*splits.findings, *_said_of_template(encoder)))
    scene = Scene(recipe.data, recipe.template.max_tokens, base.context_tokens, frozenset(encoder.control_texts))
    checked = examine(splits, scene, CHECKS, lambda records: count_tokens(encoder, records), listener.checking)
    return Prepared(recipe, checked, base, encoder)


def _encoder_of(recipe: Recipe, base: Base, splits: Splits) -> Encoder:
    """The encoder of the base and the recipe's template. Raises Refusal with its problems, by line, and what reading the files found."""
    try:
        return open_encoder(base.folder, recipe.template, base.name, recipe.path.parent)
    except Refusal as refusal:
        placed = [replace(p, where=recipe.at(*p.field.split("."))) if p.where == "recipe" else p for p in refusal.problems]
        raise Refusal([*placed, *(f.problem() for f in splits.findings)]) from None


def _said_of_template(encoder: Encoder) -> list[Finding]:
    """Notes on what the chat template does by itself: a system prompt of its own, turns it treats by their words."""
    said = []
    if encoder.spec.system is None and encoder.template.own_system is not None:
        said.append(remark(encoder.name, "OWN_SYSTEM", "template.system",
                           f"the template writes {quoted(encoder.template.own_system, 120)} before records without a system prompt",
                           "a system prompt you chose", "set template.system, unless this one is served too", "train"))  # fmt: skip
    if "strftime_now" in encoder.template.source:
        said.append(remark(encoder.name, "DATED", "template.format", "the template writes the day on which it is rendered",
                           "a prompt that is the same on every day", "set a date through template.chat_template_kwargs, if the template takes one",
                           "train"))  # fmt: skip
    for condition in content_conditions(encoder.template.source):
        said.append(remark(encoder.name, "CONTENT_CONDITION", "template.format", f"the template decides by the words of a message: {quoted(condition, 100)}",
                           "a template that treats all words alike",
                           "read the template: what it does for some words is trained and served", "train"))  # fmt: skip
    return [replace(f, check="template") for f in said]


def check_files(recipe: Recipe, listener: Listener = QUIET) -> Diagnosed:
    """Read and check the recipe's data alone: no base, no template, so no token is counted."""
    refuse_wrong_choices(CHECKS, recipe.data, lambda *place: recipe.at("data", *place))
    splits = read_splits(recipe.data, recipe.path.parent, recipe.seed, listener.reading)
    checked = examine(splits, Scene(recipe.data), CHECKS, tick=listener.checking)
    return Diagnosed(recipe, checked)


def _base_and_splits(recipe: Recipe, listener: Listener, weights: bool) -> tuple[Base, Splits]:
    """The base and the records. Raises Refusal with the problems of base and named choices together."""
    problems: list[Problem] = []

    def gathered(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Refusal as refusal:
            problems.extend(refusal.problems)

    gathered(lambda: refuse_wrong_choices(CHECKS, recipe.data, lambda *place: recipe.at("data", *place)))
    gathered(lambda: refuse_wrong_rules(recipe))
    base = gathered(lambda: resolve_base(recipe.base, recipe.path.parent, recipe.at("base", "model"), weights))
    splits = gathered(lambda: read_splits(recipe.data, recipe.path.parent, recipe.seed, listener.reading))
    if problems:
        found = [f.problem() for f in splits.findings] if splits is not None else []
        raise Refusal([*problems, *found])
    return base, splits


def count_tokens(encoder: Encoder, records: Sequence[Record]) -> tuple[NDArray[np.int32], list[Finding]]:
    """(N, 2) tokens of prompt and completion as they will be trained, and a finding for each record that cannot be rendered."""
    counts = np.zeros((len(records), 2), dtype=np.int32)
    refused: list[Finding] = []
    general = [r.split == REHEARSAL for r in records]
    encoded = _encoded(encoder, records) if any(general) else encoder.rows_or_refusals(records)
    for index, (record, row) in enumerate(encoded):
        if not isinstance(row, Row):
            problem = row.problems[0]
            refused.append(replace(finding(record, "NOT_RENDERED", problem.field, problem.found, problem.accepted, problem.try_), check="template"))
            continue
        counts[index] = row.prompt_tokens, len(row.input_ids) - row.prompt_tokens
        if row.cut_tokens:
            cut = finding(record, "CUT", "messages", f"{row.cut_tokens} tokens were taken from the beginning of the prompt", "rows that fit",
                          "nothing is needed if template.truncate: prompt_left is meant")  # fmt: skip
            refused.append(replace(cut, check="overlong", severity="note"))
        if row.merged:
            merged = finding(record, "MERGED", "completion", "the tokenizer joins the end of the prompt with the beginning of the answer",
                             "an answer that starts with a token of its own",
                             "nothing is needed: the prompt that is served decides, in training too")  # fmt: skip
            refused.append(replace(merged, check="boundary"))
    return counts, refused


def _encoded(encoder: Encoder, records: Sequence[Record]) -> Iterator[tuple[Record, Row | Refusal]]:
    """Each record with its row or refusal, in their order, each split by its own encoder."""
    by_split = {split: iter(list(speaking(encoder, split).rows_or_refusals([r for r in records if r.split == split]))) for split in {r.split for r in records}}
    return (next(by_split[record.split]) for record in records)


def with_base_findings(prepared: Prepared, listener: Listener = QUIET) -> Prepared:
    """The same, and what the base model itself says of train's answers (see tuner.data.difficulty). Loads torch and the base."""
    from tuner.artifact.decode import Decoder
    from tuner.base import load_model, pick_device, quiet_libraries, training_precision
    from tuner.data.difficulty import CHECK, misfits, sampled

    quiet_libraries()
    precision = training_precision(prepared.recipe.base.load, pick_device())
    rows = sampled(prepared.rows["train"])
    listener.stage("base", f"{prepared.base.name} reads {len(rows)} train answers with and without their prompts")
    encoder = prepared.encoder
    decoder = Decoder(load_model(prepared.base, precision).to(precision.device), encoder.pad_id, encoder.stop_ids)
    empty = encoder.prompt_ids([Message("user", "")])
    pairs = [(r.input_ids[: r.prompt_tokens], r.input_ids[r.prompt_tokens :]) for r in rows] + [(empty, r.input_ids[r.prompt_tokens :]) for r in rows]
    seen = 0

    def count(done: int) -> None:
        nonlocal seen
        seen += done
        listener.grading("answers", seen, len(pairs))

    losses = decoder.losses(pairs, count)
    action = prepared.recipe.data.checks.get(CHECK, "warn")
    findings = misfits([r.record for r in rows], losses[: len(rows)], losses[len(rows) :], SEVERITY[action]) if action != "off" else []
    return replace(prepared, checked=replace(prepared.checked, findings=[*prepared.checked.findings, *findings]))


# --- select --------------------------------------------------------------------------------------------------------


def select(recipe: Recipe, count: int, drop_worst: float, folder: Path, listener: Listener = QUIET) -> Selection:
    """Choose `count` train records, and write them, the reason for every record, and a recipe that uses them, into a new folder."""
    from tuner.data.selection import select as choose_records
    from tuner.durable import seal, staging

    if folder.exists():
        refuse(folder, "--output", "a folder that exists", "a new folder", "choose another name, or remove it")
    prepared = prepare(recipe, listener, weights=False)
    prepared.checked.raise_if_refused()
    listener.stage("select", f"choosing {count} of {len(prepared.splits['train'])} records")
    chosen = choose_records(prepared.checked, count, drop_worst, recipe.seed)
    files = {"train": [c.record for c in sorted(chosen.chosen, key=lambda c: c.rank)]} | {s: prepared.splits[s] for s in prepared.cut_splits()}
    ensure_folder(folder.absolute().parent)
    with staging(folder.absolute().parent) as stage:
        for split, records in files.items():
            (stage / f"{split}.jsonl").write_text("".join(_line(_as_written(r)) for r in records), encoding="utf-8")
        (stage / "reasons.jsonl").write_text("".join(_line(c.as_dict()) for c in chosen.choices), encoding="utf-8")
        (stage / "recipe.yaml").write_text(recipe_text(_with_files(recipe, files, folder.absolute()), comments=False), encoding="utf-8")
        seal(stage, folder.absolute())
    return chosen


def _as_written(record: Record) -> dict[str, Any]:
    tools = {} if record.tools is None else {"tools": json.loads(record.tools)}
    return {**record.extra, **tools, "messages": [m.as_written() for m in record.messages]}


def _with_files(recipe: Recipe, files: Mapping[str, object], folder: Path) -> Recipe:
    """The recipe with these splits in files beside it, and every other path as seen from `folder`."""
    own = {split: SourceSpec(files=[f"{split}.jsonl"], source=_origin(recipe, split)[0], as_of=_origin(recipe, split)[1]) for split in files}
    data = recipe.data
    elsewhere = {
        REHEARSAL: _rebased(data.rehearsal, recipe.path.parent, folder),
        "validation": _rebased(data.validation, recipe.path.parent, folder),
        "held_out": _rebased(data.held_out, recipe.path.parent, folder),
        "production": _rebased(data.production, recipe.path.parent, folder),
        "ood": {name: _rebased(source, recipe.path.parent, folder) for name, source in data.ood.items()},
        "cut": CutSpec(group_by=data.cut.group_by),
    }
    base = recipe.base
    if (recipe.path.parent / base.model).exists():
        base = base.model_copy(update={"model": os.path.relpath(recipe.path.parent / base.model, folder)})
    template = recipe.template
    if template.format.endswith((".jinja", ".j2")):
        template = template.model_copy(update={"format": os.path.relpath(recipe.path.parent / template.format, folder)})
    return recipe.model_copy(update={"data": data.model_copy(update={**elsewhere, **own}), "base": base, "template": template})


def _origin(recipe: Recipe, split: str) -> tuple[Any, Any]:
    source = sources_of(recipe.data).get(split, recipe.data.train)
    return source.source, source.as_of


def _rebased(source: SourceSpec | None, old: Path, new: Path) -> SourceSpec | None:
    return None if source is None else source.model_copy(update={"files": [os.path.relpath(old / os.path.expanduser(f), new) for f in source.files]})


# --- plan ----------------------------------------------------------------------------------------------------------


def plan(prepared: Prepared, store: Path | None = None, devices: Sequence[str] = ()) -> Planned:
    """Cost of the run and the way through it, before step 1. Loads torch, but none of the base's weights. `devices` are planned for besides."""
    from tuner.base import quiet_libraries

    quiet_libraries()
    from tuner.planning import Planner

    rows, encoder = prepared.rows, prepared.encoder
    parent = _parent(prepared, store or store_folder(prepared.recipe.artifact.store))
    planner = Planner(prepared.recipe, prepared.base, trained_rows(rows), rows.get("validation", []), encoder.pad_id, encoder.new_ids, parent)
    return planner.plan(store, devices)


# --- run -----------------------------------------------------------------------------------------------------------


def run(
    recipe: Recipe, store: Path | None = None, listener: Listener = QUIET, *, grade_after: bool = True, reuse: bool = False, restart: Restart | None = None
) -> Run:
    """The whole job. With `grade_after` false it stops at the published version; with `reuse` a finished equal run is returned instead.

    An interrupted run of the same recipe goes on from its newest whole checkpoint, or with grading what it published, unless `restart` says otherwise.
    """
    restart = restart or GO_ON
    trackers.refuse_missing(recipe.train.trackers, recipe.at("train", "trackers"))
    store = store or store_folder(recipe.artifact.store)
    ready = _ready(recipe, store, listener, reuse, grade_after and not restart.fresh)
    if isinstance(ready, Run):
        return ready
    planned = _planned(ready, store, listener)
    version = _train_and_publish(ready, planned, store, listener, restart)
    if version is None or not isinstance(ready, Prepared) or not grade_after or not ready.splits.suites:
        return Run(version)
    gc.collect()  # the trainer holds itself in cycles; its weights must go before the adapter is loaded as it will be served
    return evaluate(ready, version, listener)


def _ready(recipe: Recipe, store: Path, listener: Listener, reuse: bool, grade_left: bool) -> Prepared | Handed | Run:
    """What this rank works on: the main rank reads, checks and tokenises for all, before it loads torch, and the others map its rows.

    A Run where there is nothing to do. Raises the main rank's Refusal on every rank.
    """
    made: list[Prepared | Run] = []

    def entry() -> Path | None:
        made.append(_prepared_or_finished(recipe, store, listener, reuse, grade_left))
        return made[0].rows_and_entry[1] if isinstance(made[0], Prepared) else None

    rows = from_main(entry)
    return from_each(lambda: made[0] if made else Run(None) if rows is None else _handed(recipe, rows))


def _prepared_or_finished(recipe: Recipe, store: Path, listener: Listener, reuse: bool, grade_left: bool) -> Prepared | Run:
    ensure_shared_folder(store)
    ensure_shared_folder(store / recipe.name)
    _refuse_unpublishable(recipe, store)
    listener.stage("data", "reading and checking records")
    prepared = prepare(recipe, listener)
    listener.checked(prepared)
    prepared.checked.raise_if_refused()
    finished = find_finished(prepared, store) if reuse else None
    if finished is not None:
        listener.stage("reuse", f"{finished.version.label if finished.version else ''} is this recipe on this data, already graded: nothing to do")
        return finished
    left = find_ungraded(prepared, store) if grade_left and prepared.splits.suites else None
    if left is not None:
        listener.stage("run", f"{left.label} was trained by this recipe and not graded yet: grading it (--fresh trains anew)")
        return evaluate(prepared, left, listener)
    return prepared


def _refuse_unpublishable(recipe: Recipe, store: Path) -> None:
    """Before hours of training: can a remote store be written, and may the recipe leave this machine?"""
    from tuner.artifact.leaks import refuse_leaking_texts

    remote = remote_of(store)
    if remote is not None:
        remote.ready()
        refuse_leaking_texts({"recipe.yaml": recipe.text, "resolved.yaml": recipe_text(recipe, comments=False)}, recipe.path)


def _handed(recipe: Recipe, rows: Path) -> Handed:
    base = resolve_base(recipe.base, recipe.path.parent, recipe.at("base", "model"))
    return Handed(recipe, base, open_encoder(base.folder, recipe.template, base.name, recipe.path.parent), rows_from_main(rows))


def _planned(ready: Prepared | Handed, store: Path, listener: Listener) -> Planned:
    """The main rank's plan on every rank, each on its own device: what `auto` picks by measuring must not differ between ranks."""
    from tuner.base import pick_device
    from tuner.planning import Planned

    made: list[Planned] = []

    def told() -> tuple[Any, Any, Any]:
        assert isinstance(ready, Prepared)
        made.append(plan(ready, store))
        listener.planned(made[0].plan)
        listener.picked(made[0].way.why)
        return made[0].plan, made[0].way, made[0].precision

    found, way, precision = from_main(told)
    return made[0] if made else Planned(found, way, replace(precision, device=pick_device()), lambda: "what the plan of the main rank says")


@dataclass(frozen=True)
class Restart:
    """What to do with an interrupted run of this name: go on with it (the default), also if `allow_changed` keys differ, or start `fresh`."""

    fresh: bool = False
    allow_changed: tuple[str, ...] = ()


GO_ON = Restart()


def find_finished(prepared: Prepared, store: Path) -> Run | None:
    """The latest graded version of the same recipe, data, base, parent and library versions, if there is one."""
    from tuner.artifact.store import evaluations, read_scores, versions

    wanted = _identity(prepared, store)
    for version, manifest in reversed(versions(store)):
        for evaluation in evaluations(version) if _identity_said(manifest) == wanted else ():
            scores = read_scores(evaluation)
            if scores["recipe_digest"] == prepared.recipe.digest:
                return Run(version, evaluation, scores)
    return None


def find_ungraded(prepared: Prepared, store: Path) -> Version | None:
    """The latest version of this name, where this recipe trained it and nothing has graded it: a run that ended between the two."""
    from tuner.artifact.store import evaluations, find, versions

    own = [(version, manifest) for version, manifest in versions(store) if version.name == prepared.recipe.name]
    if not own or evaluations(own[-1][0]) or _identity_said(own[-1][1]) != _identity(prepared, store):
        return None
    return find(store, own[-1][0].label)  # whole, where the store is a remote one


def _identity(prepared: Prepared, store: Path) -> dict[str, Any]:
    """What an adapter comes of, as a manifest says it."""
    parent = _lineage(prepared, store)
    return {
        "recipe_digest": prepared.recipe.digest, "name": prepared.recipe.name, "splits": {s: prepared.splits.digest(s) for s in prepared.splits.records},
        "versions": library_versions(), "base": prepared.base.weight_digest, "parent": parent and parent["manifest_digest"],
    }  # fmt: skip


def _identity_said(manifest: dict[str, Any] | None) -> dict[str, Any] | None:
    if manifest is None or "recipe_digest" not in manifest:
        return None
    parent = manifest.get("lineage", {}).get("parent")
    return {
        "recipe_digest": manifest["recipe_digest"], "name": manifest["name"],
        "splits": {s: facts["digest"] for s, facts in manifest["data"]["splits"].items()},
        "versions": manifest["versions"], "base": manifest["base"]["weight_digest"], "parent": parent and parent["manifest_digest"],
    }  # fmt: skip


def _train_and_publish(prepared: Prepared | Handed, planned: Planned, store: Path, listener: Listener, restart: Restart) -> Version | None:
    """Train in a folder of its own, from the beginning or from where an interrupted run was, and publish. Ranks but the main one get None."""
    from tuner.base import quiet_libraries
    from tuner.train.stopping import Stopper

    quiet_libraries()
    run, resume = _open_run(prepared, planned, store, restart)
    for note in run.notes:
        listener.stage("run", note)
    if resume is not None:
        done: Version | None = from_main(lambda: _published_since(run, resume, store, prepared.recipe.name))
        if done is not None:
            listener.stage("run", f"{done.label} was published by it before it ended: only its checkpoints were left")
            if is_main():
                run.discard()
            return done if is_main() else None
    with run, Stopper(lambda words: listener.stage("stop", words)) as stopper, tempfile.TemporaryDirectory(prefix="tuner-run-") as scratch:
        job = _job(prepared, planned, store, Path(scratch), run, resume, stopper, listener)
        version = _trained_version(prepared, planned, job, run, store, listener)
        if version is not None:
            run.discard()
        return version


def _published_since(run: RunFolder, resume: Resume, store: Path, name: str) -> Version | None:
    """The version that this very run published after its last checkpoint: it ended before it had removed them."""
    from tuner.artifact.store import versions

    saved = (resume.checkpoint.path / "MANIFEST.json").stat().st_mtime_ns
    found: list[tuple[Version, dict[str, Any] | None]] = versions(store)
    for version, manifest in reversed(found):
        own = version.name == name and manifest is not None and manifest.get("lineage", {}).get("run") == run.path.name
        if own and (version.folder / "manifest.json").stat().st_mtime_ns > saved:
            return Version(version.name, version.number, version.folder)
    return None


def _open_run(prepared: Prepared | Handed, planned: Planned, store: Path, restart: Restart) -> tuple[RunFolder, Resume | None]:
    """The run's folder beside the store, held by the main rank and joined by the others, and the checkpoint to go on from."""
    from tuner.train.checkpoint import RunFolder, open_run

    recipe, spec = prepared.recipe, prepared.recipe.train
    held: list[RunFolder] = []

    def opened() -> tuple[Path, str, Any, Any, Any]:
        mark = _fingerprint(prepared, planned, store)
        folder, resume = open_run(runs_of(store), recipe.name, mark, fresh=restart.fresh, allow_changed=restart.allow_changed,
                                   keep=spec.keep_checkpoints)  # fmt: skip
        held.append(folder)
        return folder.path, folder.session, mark, folder.changed, resume

    path, session, mark, changed, resume = from_main(opened)
    if held:
        return held[0], resume
    joined = RunFolder.joined(path, session, mark)
    joined.changed = changed
    return joined, resume


def runs_of(store: Path) -> Path:
    """Where interrupted runs are kept: beside the store, apart from those of other stores there."""
    whole = beside(store).resolve()
    return whole.parent / "runs" if whole.name == "adapters" else whole.parent / "runs" / whole.name


def _fingerprint(prepared: Prepared | Handed, planned: Planned, store: Path) -> Any:
    """Everything that decides which adapter comes out, to the bit."""
    parent = _lineage(prepared, store)
    from tuner.train.checkpoint import fingerprint

    versions = {name: number for name, number in library_versions().items() if name not in ("datasets", "bitsandbytes") or prepared.recipe.base.load != "auto"}
    return fingerprint(
        prepared.recipe.model_dump(mode="json"),
        data={"train": _rows_digest(trained_rows(prepared.rows)), "validation": _rows_digest(prepared.rows.get("validation", []))},
        base={"weights": prepared.base.weight_digest}, tokenizer=prepared.encoder.tokenizer_digest, versions=versions, world_size=world_size(),
        hardware={"device": planned.precision.device.partition(":")[0], "precision": str(planned.precision)},
        way={k: v for k, v in planned.way.as_dict().items() if k != "why"}, parent="none" if parent is None else parent["manifest_digest"],
    )  # fmt: skip


def _rows_digest(rows: Sequence[Row]) -> str:
    """Digest of the rows' tokens and labels, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.asarray([len(row.input_ids), *row.input_ids, *row.labels], dtype=np.int64).tobytes())
    return "sha256:" + digest.hexdigest()


def _job(
    prepared: Prepared | Handed, planned: Planned, store: Path, scratch: Path, run: RunFolder, resume: Resume | None, stopper: Stopper, listener: Listener
) -> Job:  # fmt: skip
    """What the training room is handed."""
    from tuner.train.sft import Job, folder_in

    recipe = prepared.recipe
    parent = from_main(lambda: _parent(prepared, store))
    return Job(
        train=trained_rows(prepared.rows), validation=prepared.rows.get("validation", []), method=recipe.method, spec=recipe.train,
        precision=planned.precision, path=planned.way, seed=recipe.training_seed,
        pad_id=prepared.encoder.pad_id, scratch=scratch, new_ids=prepared.encoder.new_ids,
        parent=None if parent is None else parent.folder, run=run,
        resume=None if resume is None else folder_in(resume.checkpoint.path, resume.checkpoint.step), stopper=stopper,
        trackers=_trackers(prepared, store, run, resume, listener),
        relief=planned.relief, show=listener.training if is_main() else None,
    )  # fmt: skip


def _trackers(prepared: Prepared | Handed, store: Path, run: RunFolder, resume: Resume | None, listener: Listener) -> Trackers | None:
    """What watches this run besides train_log.jsonl, or None."""
    recipe, step = prepared.recipe, 0 if resume is None else resume.checkpoint.step
    if not recipe.train.trackers or not is_main():
        return None
    config = {
        "seed": recipe.seed, "base.name": prepared.base.name, "base.load": recipe.base.load, "recipe_digest": recipe.digest,
        **{f"records.{split}": len(rows) for split, rows in prepared.rows.items()},
        **trackers.choices(recipe.template, "template."), **trackers.choices(recipe.method, "method."), **trackers.choices(recipe.train, "train."),
        **{f"versions.{name}": number for name, number in library_versions().items()},
    }  # fmt: skip
    folder = trackers.folder_of(beside(store))
    tracked = trackers.Tracked(trackers.label_of(folder, recipe.name, run.path.name, step), folder, config, step)
    return trackers.Trackers(recipe.train.trackers, tracked, lambda words: listener.stage("trackers", words))


def _parent(prepared: Prepared | Handed, store: Path) -> Version | None:
    """The version that `method.continue_from` names, verified. Raises Refusal when it was trained on another base, or on records to be forgotten."""
    from tuner.artifact.history import state
    from tuner.artifact.manifest import verify
    from tuner.artifact.store import find, version_at

    named = prepared.recipe.method.continue_from
    if named is None:
        return None
    version = version_at(prepared.recipe.path.parent / named) or find(store, named)
    marked = state(version.folder.parent).marked.get(version.number)
    if marked:
        refuse(prepared.recipe.at("method", "continue_from"), "method.continue_from", f"{version.label}, trained on records that are to be forgotten",
               "a version trained without them", f"train {version.name} without them first: `tuner forget` writes the recipe")  # fmt: skip
    if verify(version.folder)["base"]["weight_digest"] != prepared.base.weight_digest:
        refuse(prepared.recipe.at("method", "continue_from"), "method.continue_from", f"{version.label}, trained on another base",
               f"an adapter of {prepared.base.name}", "name the base that it was trained on in base.model")  # fmt: skip
    return version


def _trained_version(prepared: Prepared | Handed, planned: Planned, job: Job, run: RunFolder, store: Path, listener: Listener) -> Version | None:
    """Load the base, train under the eyes of the other ranks, publish."""
    from transformers import AutoTokenizer

    from tuner.artifact.store import publish
    from tuner.train.sft import train

    base = prepared.base
    listener.stage("train", f"loading {base.name}")
    model = from_each(lambda: _loaded(prepared, planned))
    sanity = from_main(lambda: _guarded(prepared, planned, model))
    began = time.monotonic()
    with watched(run.heartbeat, prepared.recipe.train.hang_seconds, lambda words: listener.stage("ranks", words)) as heart:
        trained = train(replace(job, heartbeat=heart), model, AutoTokenizer.from_pretrained(base.folder, local_files_only=True))
    part()
    if not isinstance(prepared, Prepared):
        return None
    measured = {**trained.summary(), "wall_seconds": round(time.monotonic() - began, 3), "plan": planned.plan.as_dict(), "path": planned.way.as_dict()}
    lineage = {"parent": _lineage(prepared, store), "changed": [asdict(change) for change in run.changed], "run": run.path.name}
    facts = {**_facts(prepared), "recipe_file": recipe_place(prepared.recipe, store), "training": measured, "base_loss": sanity, "lineage": lineage}
    return publish(store, prepared.recipe.name, lambda stage, number: _fill(stage, number, prepared, trained, facts))


def _loaded(prepared: Prepared | Handed, planned: Planned) -> Any:
    """The base, with rows for the recipe's new tokens."""
    from tuner.base import load_model, widen

    model = load_model(prepared.base, planned.precision)
    if prepared.recipe.template.new_tokens:
        widen(model, prepared.encoder.vocabulary)
    return model


def _guarded(prepared: Prepared | Handed, planned: Planned, model: Any) -> dict[str, float]:
    """The base's loss on plain text and on the first records. Raises Refusal where it does not know its own tokens."""
    from tuner.base import PLAIN_TEXT, guard_loss

    texts = [prepared.encoder.tokenizer.encode(t, add_special_tokens=False).ids for t in PLAIN_TEXT]
    return guard_loss(prepared.base, model, [*texts, *(r.input_ids for r in prepared.rows["train"][:20])], planned.precision.device)


def _lineage(prepared: Prepared | Handed, store: Path) -> dict[str, Any] | None:
    """The parent of a continued adapter: its name, number and manifest digest."""
    from tuner.artifact.manifest import read_manifest

    parent = _parent(prepared, store)
    return None if parent is None else {"name": parent.name, "version": parent.number, "manifest_digest": read_manifest(parent.folder)["digest"]}


def _fill(stage: Path, number: int, prepared: Prepared, trained: Trained, facts: dict[str, Any]) -> None:
    """Write every file of a version into `stage`, the manifest last."""
    from tuner.artifact.card import card
    from tuner.artifact.manifest import write_manifest
    from tuner.artifact.records import write_records
    from tuner.base import without_place_or_code
    from tuner.template.tokens import tokenizer_files
    from tuner.train.sft import as_log_lines, save_adapter

    recipe, base = prepared.recipe, prepared.base
    save_adapter(trained, recipe.method, stage, base.name, base.revision if base.origin.startswith("hub ") else None)
    for name in tokenizer_files(base.folder):
        shutil.copyfile(base.folder / name, stage / name)
    if (stage / "tokenizer_config.json").is_file():
        without_place_or_code(stage / "tokenizer_config.json")
    if recipe.template.new_tokens:
        prepared.encoder.tokenizer.save(str(stage / "tokenizer.json"))
        _refuse_unsaved_rows(stage, recipe.template.new_tokens)
    if recipe.template.format != "tokenizer":
        (stage / "chat_template.jinja").write_bytes(prepared.encoder.template.source.encode("utf-8"))
    if (base.folder / "generation_config.json").is_file():
        shutil.copyfile(base.folder / "generation_config.json", stage / "generation_config.json")
    (stage / "recipe.yaml").write_text(recipe.text, encoding="utf-8")
    (stage / "resolved.yaml").write_text(recipe_text(recipe, comments=False), encoding="utf-8")
    (stage / "findings.json").write_text(json_text([f.as_dict() for f in prepared.checked.findings]), encoding="utf-8")
    (stage / "train_log.jsonl").write_text(as_log_lines(trained.log), encoding="utf-8")
    write_records(stage / "records.parquet", prepared.rows, recipe.artifact.keep_text)
    whole = {**facts, "version": number, "created": datetime.now(UTC).isoformat(timespec="seconds")}
    whole["template"]["files"] = tokenizer_files(stage)
    (stage / "README.md").write_text(card(whole), encoding="utf-8")
    write_manifest(stage, whole)


def _refuse_unsaved_rows(stage: Path, new_tokens: Sequence[str]) -> None:
    """Raises Refusal where the adapter would leave its new tokens' rows behind: whoever loads it would get untrained ones."""
    from safetensors import safe_open

    with safe_open(stage / "adapter_model.safetensors", framework="np") as saved:
        if not any("trainable_tokens" in name for name in saved.keys()):  # noqa: SIM118 (not a mapping)
            refuse("adapter_model.safetensors", "template.new_tokens", f"no rows for {len(new_tokens)} new tokens", "the rows that were trained",
                   "use a method that trains token rows (lora)")  # fmt: skip


def _facts(prepared: Prepared) -> dict[str, Any]:
    """What the manifest says of the run, besides training figures and file digests."""
    recipe, base, splits = prepared.recipe, prepared.base, prepared.splits
    counts = Counter(f.severity for f in prepared.checked.findings)
    return {
        "name": recipe.name,
        "seed": recipe.seed,
        "training_seed": recipe.training_seed,
        "task": recipe.data.task,
        "recipe_digest": recipe.digest,
        "method": recipe.method.model_dump(mode="json"),
        "base": {
            "name": base.name, "origin": base.origin, "revision": base.revision, "weight_digest": base.weight_digest,
            "load": recipe.base.load, "spec": _portable(base),
        },
        "data": {
            "splits": {s: {"records": len(splits[s]), "digest": splits.digest(s)} for s in splits.records},
            "files": prepared.accounts,
            "dropped": _dropped(prepared),
            "redacted": dict(prepared.checked.redacted),
            "findings": {severity: counts[severity] for severity in ("error", "warning", "note")},
            "trained": len(trained_rows(prepared.rows)),
            "keep_text": recipe.artifact.keep_text,
            "canaries": None if recipe.data.canaries is None else {**recipe.data.canaries.model_dump(mode="json"), "seed": recipe.seed},
        },
        "template": {
            "spec": recipe.template.model_dump(mode="json"),
            "digest": prepared.encoder.template.digest,
            "tokenizer_digest": prepared.encoder.tokenizer_digest,
        },
        "code": git_state(Path(__file__).parent),
        "versions": library_versions(),
        "hardware": hardware() | _gpu(),
    }  # fmt: skip


def _dropped(prepared: Prepared) -> dict[str, int]:
    """Records left out, by reason: a check's name, or `take`."""
    by_check = {name: sum(by_file.values()) for name, by_file in prepared.checked.dropped.items()}
    not_taken = sum(account.not_taken for account in prepared.splits.accounts)
    return by_check | ({"take": not_taken} if not_taken else {})


def _portable(base: Base) -> dict[str, Any]:
    """The base's section without a path of this machine: a local base is named, not located."""
    spec = base.spec.model_dump(mode="json")
    return spec | {"model": base.name} if base.origin == "local folder" or base.origin.startswith("GGUF") else spec


def _gpu() -> dict[str, Any]:
    import torch

    return {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count()} if torch.cuda.is_available() else {}


# --- evaluate and report -------------------------------------------------------------------------------------------


def evaluate(prepared: Prepared, version: Version, listener: Listener = QUIET) -> Run:
    """Load the published version, grade it against the prompted base, add the evaluation beside it, write the report."""
    from tuner.artifact.adapter import open_adapter
    from tuner.artifact.manifest import verify
    from tuner.judging import judged

    recipe = prepared.recipe
    listener.stage("evaluate", f"loading {version.label} as it will be served")
    adapter = open_adapter(version, verify(version.folder), prepared.base, None, None, recipe.evaluate.batch)
    evaluation, scores = judged(recipe, adapter, prepared.splits, version, listener)
    return Run(version, evaluation, scores)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, sort_keys=True, default=str) + "\n"
