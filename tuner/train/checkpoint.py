"""Checkpoints of a run: staged, flushed, listed by digest, renamed into place; and the run found again after an interruption.

It refuses a folder that another process writes, a run that was begun with other choices (naming each), and a disk that is full.
A checkpoint that lost, gained or changed a single byte is never used.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError

from tuner.catalog import suggestion
from tuner.durable import STAGE_PREFIX, Claim, claim, ensure_folder, json_text, seal, try_claim
from tuner.errors import Problem, Refusal, refuse
from tuner.fingerprint import digest_file, digest_json, digest_text
from tuner.safe_text import quoted, visible

SCHEMA = 1
MANIFEST = "MANIFEST.json"
LOCK = ".lock"
HEARTBEAT = "heartbeat"
ASIDE = "aside-"
EMPTY_FOR_SECONDS = 3600.0

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # the same as recipe.NAME; holds no slash, so it cannot leave `runs`
_STEP = re.compile(r"step-(0|[1-9][0-9]{0,9})")


# --- what a run was begun with -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fingerprint:
    """Everything that decides what a run computes, as named facts. Two runs with equal fingerprints train the same adapter."""

    fields: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        return digest_json(dict(self.fields))

    @property
    def id(self) -> str:
        """Twelve hex digits: the name of the run's folder."""
        return self.digest.removeprefix("sha256:")[:12]

    def differences(self, other: Fingerprint) -> list[tuple[str, str, str]]:
        """(name, was, now) of every fact that differs, by name; `absent` where one of the two does not have it."""
        names = sorted({*self.fields, *other.fields})
        both = [(n, self.fields.get(n, "absent"), other.fields.get(n, "absent")) for n in names]
        return [(n, was, now) for n, was, now in both if was != now]


def fingerprint(recipe: Mapping[str, Any], **facts: Any) -> Fingerprint:
    """The fingerprint of a recipe (`model_dump(mode="json")`) and of what it does not say: digests, row order, versions, ranks.

    Taken from the recipe: seed, base, template, method and train, but for the keys that change no weight (`WATCH_ONLY`).
    A fact that is a mapping gives a name for each of its keys: versions={"torch": "2.13"} is `versions.torch`.
    """
    sections = {name: recipe[name] for name in ("seed", "base", "template", "method", "train") if name in recipe}
    named = {**dict(_flat(sections)), **dict(_flat(facts))}
    return Fingerprint({name: value for name, value in sorted(named.items()) if name not in WATCH_ONLY})


def _flat(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{above}{key}.")
        else:
            yield f"{above}{key}", inner if isinstance(inner, str) else json.dumps(inner, sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Change:
    """A fact that was allowed to change at a resume: the steps after `step` were trained with `now`."""

    field: str
    was: str
    now: str
    step: int


# --- one checkpoint ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: `step` optimiser steps were done. `files` maps each name to its bytes and digest."""

    path: Path
    step: int
    run: str
    fingerprint: Fingerprint
    changed: tuple[Change, ...]
    files: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        return sum(int(facts["bytes"]) for facts in self.files.values())


class Damaged(Exception):
    """A checkpoint that is not as it was written; the text says how."""


def write_manifest(stage: Path, facts: Mapping[str, Any]) -> None:
    """Write MANIFEST.json over everything now in `stage`: the last file of a checkpoint."""
    files = {p.relative_to(stage).as_posix(): {"bytes": p.stat().st_size, "digest": digest_file(p)} for p in sorted(stage.rglob("*")) if p.is_file()}
    whole = {"schema": SCHEMA, **facts, "files": files}
    (stage / MANIFEST).write_text(json_text({**whole, "digest": digest_text(json_text(whole))}), encoding="utf-8")


def read_manifest(path: Path) -> Checkpoint:
    """What the manifest of a checkpoint says; the files themselves are not looked at. Raises Damaged."""
    try:
        data = (path / MANIFEST).read_bytes()
        said = json.loads(data)
        whole = {k: v for k, v in said.items() if k != "digest"}
        if json_text(said).encode() != data or digest_text(json_text(whole)) != said["digest"]:
            raise Damaged("its manifest was changed after it was written")
        if said["schema"] != SCHEMA:
            raise Damaged(f"its manifest has schema {said['schema']}, not {SCHEMA}")
        changed = tuple(Change(**c) for c in said["changed"])
        files = {str(name): {"bytes": int(f["bytes"]), "digest": str(f["digest"])} for name, f in said["files"].items()}
        return Checkpoint(path, int(said["step"]), str(said["run"]), Fingerprint(dict(said["fingerprint"])), changed, files)
    except FileNotFoundError:
        raise Damaged("it has no manifest, so it was never finished") from None
    except OSError as error:
        raise Damaged(f"its manifest cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        raise Damaged("its manifest is broken") from None


def verified(path: Path) -> Checkpoint:
    """The checkpoint in `path`, every byte of which is as it was written. Raises Damaged saying what is not."""
    if path.is_symlink() or (path / MANIFEST).is_symlink():
        raise Damaged("it is a link")
    checkpoint = read_manifest(path)
    found = _names_below(path) - {MANIFEST}
    for name in sorted(found ^ checkpoint.files.keys()):
        raise Damaged(f"{visible(name)} is missing" if name in checkpoint.files else f"{visible(name)} is not one of its files")
    for name, facts in checkpoint.files.items():
        try:
            status = (path / name).lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_size != facts["bytes"] or digest_file(path / name) != facts["digest"]:
                raise Damaged(f"{visible(name)} is not as it was written")
        except OSError as error:
            raise Damaged(f"{visible(name)} cannot be read: {error.strerror}") from None
    return checkpoint


def _names_below(folder: Path) -> set[str]:
    """Every file and link below `folder`; a link is never one that we wrote."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}


# --- the folder of a run -------------------------------------------------------------------------------------------

_FINE, _AGAIN, _FULL = 0, 1, 2


class RunFolder:
    """runs/NAME/ID: the checkpoints of one run. Held by one process from `open_run` to `close`; its other ranks have joined it.

    `notes` is what the user should be told of how it was found.
    """

    def __init__(self, path: Path, fingerprint: Fingerprint, *, held: Claim | None = None, keep: int = 2, session: str | None = None):
        self.path, self.fingerprint, self.keep = path, fingerprint, keep
        self.session = session or secrets.token_hex(4)
        self.changed: tuple[Change, ...] = ()
        self.notes: list[str] = []
        self._held = held
        self._newest: Checkpoint | None = None

    @classmethod
    def joined(cls, path: Path, session: str, fingerprint: Fingerprint) -> RunFolder:
        """The same folder for a rank other than the main one, which was told `path` and `session` by the main rank."""
        return cls(path, fingerprint, session=session)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the folder."""
        if self._held is not None:
            self._held.release()
            self._held = None

    @property
    def heartbeat(self) -> Path:
        """Where the ranks of this launch leave their signs of life: empty when the folder was opened."""
        return self.path / HEARTBEAT

    def checkpoints(self) -> list[Path]:
        """The folders named like a checkpoint, the newest first; nothing is said of what they hold."""
        return sorted((p for p in _listed(self.path) if _STEP.fullmatch(p.name)), key=lambda p: int(p.name[5:]), reverse=True)

    def newest_verified(self) -> tuple[Checkpoint | None, list[tuple[Path, str]]]:
        """The newest checkpoint of this run that is whole, and those passed over with the reason."""
        skipped: list[tuple[Path, str]] = []
        for path in self.checkpoints():
            try:
                return self._own(path), skipped
            except Damaged as damaged:
                skipped.append((path, str(damaged)))
        return None, skipped

    def _own(self, path: Path) -> Checkpoint:
        checkpoint = verified(path)
        if checkpoint.run != self.path.name or checkpoint.step != int(path.name[5:]):
            raise Damaged(f"it belongs to run {visible(checkpoint.run)}, step {checkpoint.step}")
        return checkpoint

    # --- writing

    def save(
        self, step: int, fill: Callable[[Path], None], *, rank: int = 0, world: int = 1, worst: Callable[[int], int] | None = None, best_step: int | None = None
    ) -> Path:
        """Keep the state after `step` steps, as `fill(stage)` writes it; then remove older checkpoints, but `best_step`. Returns its folder.

        Every rank calls it and fills the same stage; the main rank alone seals it. `fill` may be called twice: a fault of the disk
        is tried again once. Raises Refusal on every rank when the disk is full or fails again; the last good checkpoint stays.
        """
        worst = worst or (worst_over_ranks if world > 1 else _alone)
        target, stage = self.path / f"step-{step}", self.path / f"{STAGE_PREFIX}{self.session}-{step}"
        if worst(int(rank == 0 and self._is_saved(target))):
            return target
        work = (
            lambda: self._begin(stage) if rank == 0 else None,
            lambda: fill(stage),
            lambda: self._finish(stage, target, step) if rank == 0 else None,
        )
        for attempt in (1, 2):
            try:
                fault = _in_turn(work, worst)
                written = _bytes_below(stage) if rank == 0 else 0  # others would look while it is removed
            finally:
                if rank == 0:
                    shutil.rmtree(stage, ignore_errors=True)
            if fault.code == _FINE:
                break
            if fault.code == _FULL or attempt == 2:
                self._refuse_storage(fault, written)
        if rank == 0:
            self._rotate(step, best_step)
        return target

    def _is_saved(self, target: Path) -> bool:
        """Is this very state there already? What is there under its name but is damaged or not ours is set aside."""
        if not target.exists():
            return False
        try:
            if self._own(target).fingerprint == self.fingerprint:
                return True
        except Damaged:
            pass
        target.rename(target.with_name(f"{ASIDE}{target.name}-{secrets.token_hex(4)}"))
        return False

    def _begin(self, stage: Path) -> None:
        if self._newest is None and (older := self.checkpoints()):
            with contextlib.suppress(Damaged):
                self._newest = read_manifest(older[0])
        if self._newest is not None:
            _require_room(self.path, self._newest.bytes)
        stage.mkdir(mode=0o700)

    def _finish(self, stage: Path, target: Path, step: int) -> None:
        changed = [asdict(change) for change in self.changed]
        write_manifest(stage, {"run": self.path.name, "step": step, "fingerprint": dict(self.fingerprint.fields), "changed": changed})
        seal(stage, target)
        self._newest = read_manifest(target)

    def _refuse_storage(self, fault: _Fault, written: int) -> NoReturn:
        needed = self._newest.bytes if self._newest is not None else written + 1
        free = shutil.disk_usage(self.path).free
        what = "the disk is full" if fault.code == _FULL else "writing failed twice"
        refuse(self.path, "checkpoint", f"{what}: {fault.text or 'on another rank'} ({free:,} bytes free)", f"room for {needed:,} bytes or more",
               "free some space or choose a folder on another disk, then run the same command: it goes on from the last good checkpoint")  # fmt: skip

    def _rotate(self, step: int, best_step: int | None) -> None:
        """Keep the one just written, the `keep` - 1 before it and the best. What cannot be removed now is removed after the next save."""
        older = [p for p in self.checkpoints() if int(p.name[5:]) < step]
        for path in older[max(self.keep, 1) - 1 :]:
            if path.name != f"step-{best_step}":
                with contextlib.suppress(OSError):
                    self._remove(path)

    def _remove(self, path: Path) -> None:
        """Delete a checkpoint of this run: the files that its manifest lists, and nothing else."""
        try:
            checkpoint = read_manifest(path)
        except Damaged:
            return
        if checkpoint.run != self.path.name or path.is_symlink():
            return
        if _names_below(path) <= {*checkpoint.files, MANIFEST}:
            gone = path.with_name(f"{STAGE_PREFIX}{self.session}-gone-{path.name}")
            path.rename(gone)  # at once: a half-deleted folder never carries a checkpoint's name
            shutil.rmtree(gone)
        else:
            for name in (MANIFEST, *checkpoint.files):
                (path / name).unlink(missing_ok=True)

    # --- the end

    def discard(self) -> None:
        """The run is published: delete its checkpoints, and its folder unless somebody else put something there. Releases it.

        Does nothing on a rank that only joined.
        """
        if self._held is None:
            return
        for path in [*(p for p in _listed(self.path) if p.name.startswith(ASIDE)), *reversed(self.checkpoints())]:  # the newest last
            self._remove(path)
        self.sweep()
        if {p.name for p in _listed(self.path)} <= {LOCK}:
            (self.path / LOCK).unlink(missing_ok=True)
            self.close()
            with contextlib.suppress(OSError):  # somebody else's files, or another run of this name
                self.path.rmdir()
                self.path.parent.rmdir()
        self.close()

    def sweep(self) -> None:
        """Remove what earlier processes left half-done. Only for the holder: nobody else can be writing here."""
        for left in _listed(self.path):
            if (left.name.startswith(STAGE_PREFIX) or left.name == HEARTBEAT) and left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)


def _bytes_below(folder: Path) -> int:
    return sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file())


def _require_room(path: Path, needed_bytes: int) -> None:
    """Raises the disk's own error before anything is written, so that all ranks learn of it in one way."""
    if shutil.disk_usage(path).free < needed_bytes:
        raise OSError(errno.ENOSPC, "the last checkpoint was larger than what is free")


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


@dataclass(frozen=True, slots=True)
class _Fault:
    """How far the ranks got together: the worst code of any of them, and this rank's own words."""

    code: int
    text: str = ""


def _in_turn(work: Sequence[Callable[[], object]], worst: Callable[[int], int]) -> _Fault:
    """Each piece of work on every rank; the next only when all ranks did well."""
    for piece in work:
        fault = _tried(piece)
        if agreed := worst(fault.code):
            return _Fault(agreed, fault.text)
    return _Fault(_FINE)


def _tried(piece: Callable[[], object]) -> _Fault:
    try:
        piece()
    except (OSError, RuntimeError, SafetensorError) as error:
        code = _storage_code(error)
        if code == _FINE:
            raise
        return _Fault(code, visible(error, 200))
    return _Fault(_FINE)


# What torch and safetensors say when a write fails: they do not raise OSError (measured with torch 2.13, safetensors 0.8).
_TOLD = re.compile(r"iostream error|unexpected pos|PytorchStreamWriter failed|File .* cannot be opened|Input/output error|os error 5\b|code: 5\b")
_TOLD_FULL = re.compile(r"No space left|os error (28|122)\b|code: (28|122)\b")


def _storage_code(error: Exception) -> int:
    """Full, a fault worth one more try, or neither: a bug that must be seen."""
    if isinstance(error, OSError):
        return _FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else _AGAIN
    said = str(error)
    return _FULL if _TOLD_FULL.search(said) else _AGAIN if _TOLD.search(said) else _FINE


def _alone(code: int) -> int:
    return code


def worst_over_ranks(code: int) -> int:
    """The largest `code` of all ranks; each waits here for the others."""
    import torch
    import torch.distributed as ranks

    device = "cuda" if ranks.get_backend() == "nccl" else "cpu"
    largest = torch.tensor(code, device=device)
    ranks.all_reduce(largest, op=ranks.ReduceOp.MAX)
    return int(largest)


# --- finding a run again -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resume:
    """Where a run goes on: from `checkpoint`. `changed` lists every allowed change since step 0; `skipped` the checkpoints not used, and why."""

    checkpoint: Checkpoint
    changed: tuple[Change, ...]
    skipped: tuple[tuple[Path, str], ...]


def open_run(
    runs: Path, name: str, fingerprint: Fingerprint, *, fresh: bool = False, allow_changed: Sequence[str] = (), keep: int = 2
) -> tuple[RunFolder, Resume | None]:
    """The folder of this run, held, and where to go on if it was interrupted. `fresh` removes interrupted runs of this name first.

    Raises Refusal when another process holds the run; when an interrupted run of this name was begun with other choices that
    `allow_changed` does not name; and when it names what cannot be changed. Runs of this name that are being trained now are left alone.
    """
    home = _home(runs, name)
    _refuse_unchangeable(allow_changed, fingerprint)
    _remove_empty(home)
    notes: list[str] = []
    interrupted = [(p, c) for p in _runs_in(home) if (c := _newest_said(p)) is not None]
    same = [p for p, checkpoint in interrupted if checkpoint.fingerprint == fingerprint]
    if fresh:
        notes = _remove_interrupted(same, [p for p, _ in interrupted if p not in same])
    elif same:
        return _continued(same[0], fingerprint, (), keep)
    elif (other := _last_abandoned(interrupted)) is not None:
        return _continued(other, fingerprint, allow_changed, keep)
    folder = _new_folder(home, fingerprint, keep)
    folder.notes = [*notes, *folder.notes]
    return folder, None


def _home(runs: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        refuse(runs, "name", quoted(name), "1 to 64 of a-z 0-9 . _ -, starting with a letter or digit", "rename the recipe")
    ensure_folder(runs / name)
    return runs / name


def _runs_in(home: Path) -> list[Path]:
    return sorted(p for p in _listed(home) if re.fullmatch(r"[0-9a-f]{12}(-[0-9]{1,3})?", p.name) and p.is_dir() and not p.is_symlink())


def _remove_empty(home: Path) -> None:
    """Folders of runs that ended before their first checkpoint, unless they are so young that somebody may be about to lock them."""
    for path in _runs_in(home):
        if {p.name for p in _listed(path)} <= {LOCK, HEARTBEAT} and path.stat().st_mtime < time.time() - EMPTY_FOR_SECONDS:
            held = try_claim(path / LOCK, path.name)
            if isinstance(held, Claim):
                RunFolder(path, Fingerprint({}), held=held).discard()


def _newest_said(path: Path) -> Checkpoint | None:
    """The newest checkpoint with a readable manifest, without reading its files."""
    for folder in RunFolder(path, Fingerprint({})).checkpoints():
        with contextlib.suppress(Damaged):
            return read_manifest(folder)
    return None


def _remove_interrupted(same: Sequence[Path], others: Sequence[Path]) -> list[str]:
    """`fresh`: interrupted runs go. The same run must not be in other hands; others that are being trained stay."""
    notes = []
    for path in (*same, *others):
        held = try_claim(path / LOCK, path.name) if path in others else claim(path / LOCK, path.name)
        if not isinstance(held, Claim):
            continue
        with RunFolder(path, Fingerprint({}), held=held) as old:
            steps = [p.name for p in old.checkpoints()]
            old.discard()
            left = "; files that are not ours stay" if path.exists() else ""
            notes.append(f"removed the interrupted run {path} ({', '.join(steps)}){left}")
    return notes


def _last_abandoned(interrupted: Sequence[tuple[Path, Checkpoint]]) -> Path | None:
    """The run that was written last, of those that nobody is training now."""
    for path, _ in sorted(interrupted, key=lambda pair: (pair[1].path / MANIFEST).stat().st_mtime_ns, reverse=True):
        held = try_claim(path / LOCK, path.name)
        if isinstance(held, Claim):
            held.release()
            return path
    return None


def _continued(path: Path, fingerprint: Fingerprint, allow_changed: Sequence[str], keep: int) -> tuple[RunFolder, Resume | None]:
    """The interrupted run in `path`, held, from its newest whole checkpoint; from step 0 when none is whole."""
    folder = RunFolder(path, fingerprint, held=_claimed(path), keep=keep)
    try:
        return folder, _resume(folder, allow_changed)
    except BaseException:
        folder.close()
        raise


def _resume(folder: RunFolder, allow_changed: Sequence[str]) -> Resume | None:
    _note_abandoned(folder)
    folder.sweep()
    checkpoint, skipped = folder.newest_verified()
    folder.notes += [f"{path} is not used: {reason}" for path, reason in skipped]
    if checkpoint is None:
        folder.notes.append(f"no checkpoint in {folder.path} is whole: starting again from step 0")
        return None
    differences = checkpoint.fingerprint.differences(folder.fingerprint)
    _refuse_changes(folder.path, checkpoint.step, differences, allow_changed)
    new = [Change(name, was, now, checkpoint.step) for name, was, now in differences]
    folder.changed = (*checkpoint.changed, *new)
    folder.notes.append(f"going on from step {checkpoint.step} of the interrupted run in {folder.path}")
    folder.notes += [f"changed after step {c.step}: {c.field}, was {_short(c.was)}, now {_short(c.now)}" for c in folder.changed]
    return Resume(checkpoint, folder.changed, tuple(skipped))


def _note_abandoned(folder: RunFolder) -> None:
    if folder._held is not None and folder._held.abandoned_by:
        folder.notes.append(f"the process that trained it before ({visible(folder._held.abandoned_by)}) ended without releasing it")


def _claimed(path: Path) -> Claim:
    """The folder's lock, and the folder, which a run that just ended may be removing."""
    while True:
        ensure_folder(path)
        with contextlib.suppress(FileNotFoundError):
            return claim(path / LOCK, path.name)


def _new_folder(home: Path, fingerprint: Fingerprint, keep: int) -> RunFolder:
    """A folder without checkpoints, held. One with our id may be the beginning of another run that was changed since: then a number follows."""
    for name in (fingerprint.id, *(f"{fingerprint.id}-{n}" for n in range(2, 1000))):
        path = home / name
        folder = RunFolder(path, fingerprint, held=_claimed(path), keep=keep)
        said = _newest_said(path)
        if said is None or said.fingerprint == fingerprint:
            folder.sweep()
            return folder
        folder.close()
    refuse(home, "", "a thousand runs of one fingerprint", "fewer", "remove old runs")


# --- what may change -----------------------------------------------------------------------------------------------

WATCH_ONLY = frozenset({
    "train.log_every_steps", "train.trackers", "train.hang_seconds", "train.checkpoint_every_steps", "train.keep_checkpoints", "base.online", "base.sanity",
})  # fmt: skip

# Facts that may be changed at a resume, and how the new value comes to apply. A name stands for every name below it.
CHANGEABLE: dict[str, str] = {
    "base.model": "only the name or path; the digest of the weights must be the same",
    "hardware": "the steps after are computed there",
    "method.dropout": "read at every step",
    "train.gradient_checkpointing": "read when the model is loaded",
    "train.kernels": "read when the model is loaded",
    "train.max_gradient_norm": "read at every step",
    "train.micro_tokens": "read when a step is cut into passes",
    "train.patience": "read after every pass over validation",
    "train.peak_learning_rate": "put into the restored optimiser and schedule (apply_rates)",
    "train.schedule": "the schedule is made anew and goes on at the step reached",
    "train.validate_every_steps": "read at every step",
    "train.warmup_fraction": "the schedule is made anew and goes on at the step reached",
    "train.weight_decay": "put into the restored optimiser (apply_rates)",
    "versions": "the code that runs now computes the steps after",
    **{f"way.{name}": "follows from train and the machine; read when the model is loaded"
       for name in ("attention", "checkpointing", "compiled", "liger", "micro_tokens", "offload", "plain")},
}  # fmt: skip

_WHY_NOT: dict[str, str] = {
    "world_size": "each rank has its own random state in the checkpoint and its own share of every step",
    "seed": "the order of rows and every random state follow from it",
    "data": "the steps before were trained on other rows, and no list of records would be true of the adapter",
    "base": "the adapter so far belongs to the other weights",
    "template": "the rows before were other tokens",
    "tokenizer": "the rows before were other tokens",
    "method": "the weights so far have another shape or scale",
    "way": "the steps before were cut, ordered or kept in another way",
    "train": "the steps before were cut or ordered by the other value, so rows would be repeated or left out",
}


def why_not(field: str) -> str | None:
    """Why `field` cannot be changed at a resume; None when it can."""
    if _stands_for(CHANGEABLE, field) is not None:
        return None
    named = _stands_for(_WHY_NOT, field)
    return _WHY_NOT[named] if named else "an adapter of two halves would be of neither recipe"


def _stands_for(table: Mapping[str, object], field: str) -> str | None:
    """The name in `table` that is `field` or stands above it."""
    parts = field.split(".")
    return next((n for n in (".".join(parts[:k]) for k in range(len(parts), 0, -1)) if n in table), None)


def _refuse_unchangeable(allow_changed: Sequence[str], fingerprint: Fingerprint) -> None:
    for given in allow_changed:
        below = [n for n in fingerprint.fields if n == given or n.startswith(f"{given}.")]
        if not below and _stands_for(CHANGEABLE, given) is None:
            refuse("command line", "--allow-changed", quoted(given), "one of: " + ", ".join(CHANGEABLE), suggestion(given, CHANGEABLE))
        if _stands_for(CHANGEABLE, given) is None:
            refuse("command line", "--allow-changed", quoted(given), f"a choice that can change in a run; this cannot: {why_not(given)}",
                   "change it back, or start over with --fresh")  # fmt: skip


def _refuse_changes(path: Path, step: int, differences: Sequence[tuple[str, str, str]], allow_changed: Sequence[str]) -> None:
    """Raises Refusal with every difference, when one of them is not named in `allow_changed`."""
    left = [d for d in differences if _stands_for(dict.fromkeys(allow_changed, ""), d[0]) is None]
    if left:
        raise Refusal([_changed_problem(path, step, *difference) for difference in left])


def _changed_problem(path: Path, step: int, name: str, was: str, now: str) -> Problem:
    reason = why_not(name)
    way = f"--allow-changed {name} to go on with it (it is recorded)" if reason is None else f"it cannot change in a run: {reason}"
    return Problem(str(path), name, f"now {_short(now)}; the interrupted run (step {step}) has {_short(was)}", _short(was), f"--fresh to start over; {way}")


def _short(value: str) -> str:
    return quoted(value, 80)


# --- a learning rate that really changes ---------------------------------------------------------------------------


def rates_of(optimizer: Any) -> list[dict[str, float]]:
    """Peak learning rate and weight decay of each parameter group, as the recipe set them: call it before a checkpoint is loaded."""
    return [{"rate": float(g.get("initial_lr", g["lr"])), "weight_decay": float(g["weight_decay"])} for g in optimizer.param_groups]


def apply_rates(optimizer: Any, scheduler: Any, rates: Sequence[Mapping[str, float]]) -> None:
    """Put `rates` back after a checkpoint was loaded, at the step it has reached.

    A restored optimiser and LambdaLR bring their old rates with them, so that Trainer ignores a changed one
    (measured with transformers 5.23: the adapter is the old recipe's, byte for byte).
    """
    inner = getattr(scheduler, "scheduler", scheduler)  # accelerate wraps it
    inner.base_lrs = [r["rate"] for r in rates]
    now = [r["rate"] * shape(inner.last_epoch) for r, shape in zip(rates, inner.lr_lambdas, strict=True)]
    for group, given, rate in zip(optimizer.param_groups, rates, now, strict=True):
        group["initial_lr"], group["weight_decay"], group["lr"] = given["rate"], given["weight_decay"], rate
    inner._last_lr = now
