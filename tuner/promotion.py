"""Which version an alias stands for, and which may still be used: promote, rollback, retire, restore. Each is one entry of the name's log.

It refuses to promote what the gate has not passed (unless somebody overrides it by name and with a reason), what is retired or to be forgotten, what
was changed since it was published, and to move an alias that somebody else moved meanwhile.
"""

from __future__ import annotations

import getpass
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tuner.artifact.history import ALIAS, Entry, Moved, State, append, entries, state
from tuner.artifact.hub import PULLED
from tuner.artifact.manifest import verify
from tuner.artifact.store import Version, find, home_of, latest_evaluation, read_scores
from tuner.artifact.untrusted import refuse_elsewhere
from tuner.errors import Refusal, refuse
from tuner.evaluate.gate import judge
from tuner.fingerprint import digest_file
from tuner.recipe import load_recipe
from tuner.safe_text import quoted

PRODUCTION = "production"
LATEST = "latest"  # what NAME alone means; as an alias it would be another version than its name says
TRIES = 5  # of one move, while others write about other aliases of the same name


@dataclass(frozen=True, slots=True)
class Ruled:
    """What the gate says of a version: the evaluation it looked at, whose rules, and tuner.evaluate.gate.Gate.as_dict()."""

    version: Version
    evaluation: Path
    rules: Path
    gate: dict[str, Any]

    @property
    def outcome(self) -> str:
        return str(self.gate["outcome"])


@dataclass(frozen=True, slots=True)
class Promotion:
    """What came of asking for one. `entry` is None where nothing moved: the alias stood there `before` (`ruled` is None then), or the gate did not pass."""

    version: Version
    alias: str
    before: int | None
    ruled: Ruled | None
    entry: Entry | None


def ruling(version: Version, recipe: Path | None = None) -> Ruled:
    """Hold the version's latest evaluation against the gate of `recipe`, or of its own. Raises Refusal where it was never evaluated."""
    folder = latest_evaluation(version)
    if folder is None:
        refuse(version.label, "evaluations", "none yet", "a version that was evaluated", f"tuner evaluate {version.label}")
    own = recipe if recipe is not None else version.folder / "resolved.yaml"
    return Ruled(version, folder, own, judge(read_scores(folder), load_recipe(own).gate.rules, str(own)).as_dict())


# --- moving an alias -----------------------------------------------------------------------------------------------


def promote(
    store: Path, wanted: str, alias: str = PRODUCTION, *, recipe: Path | None = None, override: bool = False, by: str | None = None, why: str | None = None,
    expect: int | None = None,
) -> Promotion:  # fmt: skip
    """Let `alias` stand for the version `wanted`, where its gate passes or `override` says why not to wait for it.

    `expect` is the number that the alias stands for now (0 for none): where it is another, nothing moves. A gate that does not pass moves nothing
    and is given back; so is an alias that stands there already. Raises Refusal.
    """
    _refuse_alias(alias)
    if override and not (by and why):
        refuse("command line", "--override", "no name and reason", "who overrides the gate, and why", '--override --by NAME --reason "…"')
    version = find(store, wanted)
    home = home_of(store, version.name)
    now = state(home)
    before = now.aliases.get(alias)
    _refuse_unexpected(home, alias, before, expect)
    _refuse_unfit(now, version)
    if before == version.number:
        return Promotion(version, alias, before, None, None)
    manifest = _verified(version)
    ruled = _ruled_or_refused(version, recipe, override)
    kept = ruled if isinstance(ruled, Ruled) else None
    if not override and (kept is None or kept.outcome != "pass"):
        return Promotion(version, alias, before, kept, None)
    facts = {"from": before, "override": override, "manifest_digest": manifest["digest"], "gate": _gate_facts(ruled)}
    said = why or f"the gate passes on {facts['gate']['evaluation']}"
    entry = _moved(home, now, "promote", version.number, alias, by or user(), said, facts)
    return Promotion(version, alias, before, kept, entry)


def _ruled_or_refused(version: Version, recipe: Path | None, override: bool) -> Ruled | Refusal:
    """The ruling; where the gate is overridden anyway, also why there can be none."""
    try:
        ruled = ruling(version, recipe)
        _refuse_pulled(ruled)
        return ruled
    except Refusal as refusal:
        if not override:
            raise
        return refusal


def _refuse_pulled(ruled: Ruled) -> None:
    """Raises Refusal where the evaluation came with a pulled version: its scores are no file of the manifest, so nobody vouches for them."""
    if (ruled.evaluation / PULLED).is_file():
        refuse(ruled.version.label, "evaluations", f"{ruled.evaluation.name}, which was pulled: nobody here made it", "an evaluation made here",
               f"tuner evaluate {ruled.version.label}, or --override with a reason")  # fmt: skip


def _gate_facts(ruled: Ruled | Refusal) -> dict[str, Any]:
    """What the log keeps of a ruling: enough to see years later what was known, without the evaluation."""
    if isinstance(ruled, Refusal):
        return {"outcome": "none", "why": str(ruled)}
    is_own = ruled.rules.parent == ruled.version.folder
    return {
        **ruled.gate, "evaluation": ruled.evaluation.name, "scores_digest": digest_file(ruled.evaluation / "scores.json"),
        "rules_of": "the version's own recipe" if is_own else ruled.rules.name, "rules_digest": digest_file(ruled.rules),
    }  # fmt: skip


def rollback(store: Path, name: str, alias: str = PRODUCTION, *, by: str | None = None, why: str | None = None) -> Entry:
    """Undo the newest promotion of `alias` that was not undone yet: it stands again for the version before it.

    So a rollback after a rollback goes one promotion further back, never forth again; what was rolled back comes back by `promote` alone.
    Raises Refusal where nothing lies before, or where that version is retired, to be forgotten or gone.
    """
    _refuse_alias(alias)
    home = home_of(store, name)
    now, stood = state(home), stack(entries(home), alias)
    if len(stood) < 2:
        found = f"{name}@{stood[0]}, the first it stood for" if stood else "an alias that was never promoted"
        refuse(f"{name}@{alias}", "rollback", found, "an alias that was promoted twice", f"tuner promote {name}@N --to {alias}")
    target = find(store, f"{name}@{stood[-2]}")
    _refuse_unfit(now, target)
    facts = {"from": stood[-1], "override": False, "manifest_digest": _verified(target)["digest"]}
    return _moved(home, now, "rollback", target.number, alias, by or user(), why or f"back from {name}@{stood[-1]}", facts)


def _verified(version: Version) -> dict[str, Any]:
    """The manifest of a version that is as it was published, and is the one of this name and number. Raises Refusal."""
    manifest = verify(version.folder)
    refuse_elsewhere(version.name, version.number, manifest, version.folder)
    return manifest


def stack(log: list[Entry], alias: str) -> list[int]:
    """The versions that an alias stood for, the present one last, without those that were rolled back."""
    stood: list[int] = []
    for entry in log:
        if entry.alias == alias and entry.version is not None:
            if entry.what == "promote":
                stood.append(entry.version)
            elif entry.what == "rollback":
                del stood[-1:]
    return stood


def _moved(home: Path, seen: State, what: Any, number: int, alias: str, by: str, why: str, facts: dict[str, Any]) -> Entry:
    """The entry that moves the alias, if it still stands where it was `seen`: entries about other things may come between."""
    now = seen
    for _ in range(TRIES):
        try:
            return append(home, now.count, what, number, alias, by, why, facts)
        except Moved:
            now = state(home)
            _refuse_unexpected(home, alias, now.aliases.get(alias), seen.aliases.get(alias, 0))
            _refuse_unfit(now, Version(home.name, number, home / str(number)))
    refuse(home, alias, f"{TRIES} other entries while this one was written", "a log that is not being written", "try again")


# --- taking a version out of use -----------------------------------------------------------------------------------


def retire(store: Path, wanted: str, why: str, *, by: str | None = None) -> Entry:
    """Take NAME@N out of use: it is no longer the latest, cannot be promoted, and `gc` may delete it. Raises Refusal while an alias stands for it."""
    return _marked(store, wanted, "retire", by or user(), why)


def restore(store: Path, wanted: str, why: str, *, by: str | None = None) -> Entry:
    """Undo `retire`. Raises Refusal where the version is not retired."""
    return _marked(store, wanted, "restore", by or user(), why)


def _marked(store: Path, wanted: str, what: Any, by: str, why: str) -> Entry:
    if not re.fullmatch(r"[^@]*@[0-9]+", wanted):
        refuse(store, wanted, "no number", "NAME@N", "say which version; `tuner list` shows them")
    version = find(store, wanted)
    home = home_of(store, version.name)
    for _ in range(TRIES):
        now = state(home)
        _refuse_pointless(now, version, what)
        try:
            return append(home, now.count, what, version.number, None, by, why, {})
        except Moved:
            continue
    refuse(home, wanted, f"{TRIES} other entries while this one was written", "a log that is not being written", "try again")


def _refuse_pointless(now: State, version: Version, what: str) -> None:
    """Raises Refusal where the version is in use, or is what is asked for already."""
    aliases = now.pointing_at(version.number)
    if what == "retire" and aliases:
        refuse(version.label, "retire", f"what {', '.join(aliases)} stands for", "a version that no alias stands for",
               f"tuner promote {version.name}@N --to {aliases[0]}, then retire this one")  # fmt: skip
    if (version.number in now.retired) == (what == "retire"):
        found, accepted = ("retired already", "a version in use") if what == "retire" else ("a version that is not retired", "a retired version")
        refuse(version.label, what, found, accepted, f"tuner log {version.name}")


# --- who, and what may not be ---------------------------------------------------------------------------------------


def user() -> str:
    """The name of the user that runs this process, or its number where the system knows no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry in passwd
        return f"user {os.getuid()}"


def _refuse_alias(alias: str) -> None:
    if not re.fullmatch(ALIAS, alias) or alias == LATEST:
        refuse("command line", "alias", quoted(alias), "1 to 32 of a-z 0-9 _ -, starting with a letter; not latest, which NAME alone means", "write production")


def _refuse_unexpected(home: Path, alias: str, before: int | None, expected: int | None) -> None:
    """Raises Refusal where the alias does not stand for `expected`; 0 is none, None is not to ask."""
    if expected is not None and (before or 0) != expected:
        _refuse_moved(home, alias, before, expected)


def _refuse_moved(home: Path, alias: str, before: int | None, expected: int) -> NoReturn:
    words = ["nothing" if not number else f"{home.name}@{number}" for number in (before, expected)]
    refuse(f"{home.name}@{alias}", "expect", f"it stands for {words[0]}", words[1], f"somebody moved it: look at `tuner log {home.name}`, then decide again")


def _refuse_unfit(now: State, version: Version) -> None:
    """Raises Refusal where nothing should come to stand for this version."""
    number = version.number
    if number in now.removed:
        refuse(version.label, "version", f"removed: {quoted(now.removed[number])}", "a version that is there", f"tuner list; tuner log {version.name}")
    if number in now.retired:
        refuse(version.label, "version", f"retired: {quoted(now.retired[number])}", "a version in use", f'tuner retire --undo {version.label} --reason "…"')
    if number in now.marked:
        refuse(version.label, "version", f"trained on {len(now.marked[number])} records that are to be forgotten", "a version trained without them",
               f"train it again without them (tuner log {version.name} says which), then promote that one")  # fmt: skip
