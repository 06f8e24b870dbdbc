"""The commands about the store: list, log, promote, rollback, retire, gc, and what `tuner show NAME` prints.

They refuse nothing of their own: what may not be promoted, retired or deleted is decided in tuner.promotion and tuner.artifact.gc.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli_words import AsJson, Name, Store, store_folder
from tuner.errors import Exit, Refusal, refuse
from tuner.safe_text import visible
from tuner.telling import for_terminal, out, shown_path

if TYPE_CHECKING:
    from tuner.artifact.history import Entry, State
    from tuner.artifact.store import Version

Bare = Annotated[str, typer.Argument(metavar="NAME", help="the name, without a version", show_default=False)]
Alias = Annotated[str, typer.Option("--to", metavar="ALIAS", help="the alias to move")]
By = Annotated[str | None, typer.Option(metavar="WHO", help="who decides this; default: this system's user")]
Reason = Annotated[str | None, typer.Option(help="why; kept in the log for ever")]


def list_versions(store: Store = None, as_json: AsJson = False) -> None:
    """List every version in the store: aliases, date, base, verdict, gate, and what is retired."""
    rows = _rows(_place_to_list(store))
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    if not rows:
        out.print("no versions yet; `tuner run RECIPE` makes the first")
    for row in rows:
        aliases = f"  [{', '.join(row['aliases'])}]" if row["aliases"] else ""
        said = f"{row['version']:32} {row['created'][:16]}  {visible(row['base']):28} {_verdict_words(row)}{aliases}{_marks(row)}"
        out.print(visible(said), style="dim" if row["retired"] is not None else None, markup=False, soft_wrap=True)


def _named_place(store: str | None) -> Path:
    """The store. One that was named is refused where nothing lies; the default one may be yet to come."""
    place = store_folder(store or "adapters")
    if store is not None and not place.is_dir():
        refuse(place, "--store", "no such folder", "a folder of versions, or a URL", "name the folder that holds the names; without --store it is ./adapters")
    return place


def _place_to_list(store: str | None) -> Path:
    """The store, its mirror as it is now."""
    from tuner.artifact.remote import remote_of

    place = _named_place(store)
    remote = remote_of(place)
    if remote is not None:
        remote.refresh(None)
    return place


def _rows(place: Path) -> list[dict[str, Any]]:
    """One row a version; one for a name that cannot be looked into."""
    from tuner.artifact.store import names, versions_of

    rows: list[dict[str, Any]] = []
    for name in names(place):
        try:
            found = versions_of(place / name)
        except Refusal as refusal:
            rows.append({**_bare_row(name), "verdict": _broken(refusal.problems[0].found)})
            continue
        now = _state_or_none(place / name) if found else None
        rows += [_row(now, version, manifest) for version, manifest in found]
    return rows


def _bare_row(label: str) -> dict[str, Any]:
    return {"version": label, "created": "", "base": "", "gate": None, "aliases": [], "retired": None, "to_forget": 0, "log": "whole"}


def _broken(why: str) -> dict[str, Any]:
    return {"word": why, "metric": "", "value": 0.0}


def _row(now: State | None, version: Version, manifest: dict[str, Any] | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        **_bare_row(version.label), "aliases": [] if now is None else now.pointing_at(version.number),
        "retired": None if now is None else now.retired.get(version.number), "to_forget": 0 if now is None else len(now.marked.get(version.number, ())),
        "log": "broken: `tuner log NAME` says why" if now is None else "whole",
    }  # fmt: skip
    if manifest is None or "created" not in manifest:
        return {**row, "verdict": _broken("broken: `tuner show` says why")}
    return {**row, "created": manifest["created"], "base": manifest["base"]["name"], **_graded(version)}


def _graded(version: Version) -> dict[str, Any]:
    """The verdict of the latest evaluation, and what its gate said."""
    from tuner.artifact.store import latest_evaluation, read_scores

    try:
        evaluation = latest_evaluation(version)
        scores = read_scores(evaluation) if evaluation else {}
    except Refusal:
        return {"verdict": _broken(f"broken evaluation: `tuner gate {version.label}` says why")}
    return {"verdict": scores.get("verdict"), "gate": (scores.get("gate") or {}).get("outcome")}


def _state_or_none(home: Path) -> State | None:
    from tuner.artifact.history import state

    try:
        return state(home)
    except Refusal:
        return None


def _verdict_words(row: dict[str, Any]) -> str:
    verdict = row["verdict"]
    if verdict is None:
        return "not evaluated"
    if not verdict["metric"]:
        return str(verdict["word"])
    return f"{verdict['word']} ({verdict['metric']} {verdict['value']:+.3f})" + (f", gate: {row['gate']}" if row["gate"] else "")


def _marks(row: dict[str, Any]) -> str:
    retired = f"  retired: {row['retired']}" if row["retired"] is not None else ""
    forget = f"  {row['to_forget']} records to be forgotten" if row["to_forget"] else ""
    return retired + forget + ("" if row["log"] == "whole" else "  its log is broken")


def show_version(name: str, store: str | None, as_json: bool) -> None:
    """What a version is: who stands for it since when and why, its card, and what its latest evaluation found."""
    from tuner.artifact.history import check_log, state
    from tuner.artifact.manifest import verify
    from tuner.artifact.store import find, latest_evaluation
    from tuner.durable import readable

    found = find(store_folder(store or "adapters"), name)
    manifest = verify(found.folder)
    if as_json:
        sys.stdout.write(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        return
    _say_standing(found, state(found.folder.parent), check_log(found.folder.parent))
    card = (found.folder / "README.md").read_text(encoding="utf-8")
    sys.stdout.write(for_terminal(card.removeprefix("---\n").partition("\n---\n")[2].lstrip() if card.startswith("---\n") else card))
    evaluation = latest_evaluation(found)
    if evaluation is None:
        sys.stdout.write(f"\nnot evaluated; `tuner evaluate {found.label}`\n")
    elif not (evaluation / "report.md").is_file():
        sys.stdout.write(f"\nno report.md in {shown_path(evaluation)}; `tuner report {found.label}` writes it\n")
    else:
        with readable(evaluation / "report.md"):
            sys.stdout.write("\n" + for_terminal((evaluation / "report.md").read_text(encoding="utf-8")))


def _say_standing(version: Version, now: State, log: list[Entry]) -> None:
    """The lines above the card: aliases with their last move, retirement, marks."""
    out.print(f"{version.label}  {shown_path(version.folder)}", style="bold", markup=False, soft_wrap=True)
    for alias in now.pointing_at(version.number):
        last = next(e for e in reversed(log) if e.alias == alias)
        out.print(visible(f"{alias} since {_when(last)}, {last.what} by {last.by}: {last.why}"), style="green", markup=False, soft_wrap=True)
    if version.number in now.retired:
        out.print(visible(f"retired: {now.retired[version.number]}"), style="yellow", markup=False, soft_wrap=True)
    if version.number in now.marked:
        out.print(f"trained on {len(now.marked[version.number])} records that are to be forgotten", style="red", markup=False, soft_wrap=True)
    out.print("", markup=False)


# --- the log -------------------------------------------------------------------------------------------------------


def log(name: Bare, store: Store = None, as_json: AsJson = False) -> None:
    """Who moved which alias, retired, marked or removed a version, when and why. The chain of entries is checked first."""
    from dataclasses import asdict

    from tuner.artifact.history import check_log
    from tuner.artifact.store import home_of
    from tuner.durable import json_text

    found = check_log(home_of(store_folder(store or "adapters"), name))
    if as_json:
        sys.stdout.write(json_text([asdict(entry) for entry in found]))
        return
    if not found:
        out.print(f"nothing yet: no alias of {name} was ever moved", markup=False, soft_wrap=True)
    for entry in found:
        out.print(visible(f"{entry.number:4} {_when(entry)}  {_what(name, entry)}  by {entry.by}: {entry.why}"), markup=False, soft_wrap=True)


def _what(name: str, entry: Entry) -> str:
    """`promote production 2 → 3`, with what the gate said where it was overridden."""
    if entry.alias is None:
        return f"{entry.what} {name}@{entry.version}"
    before = entry.facts.get("from")
    gate = f" (gate {entry.facts.get('gate', {}).get('outcome')}, overridden)" if entry.facts.get("override") else ""
    return f"{entry.what} {entry.alias} {'' if before is None else f'{before} '}→ {entry.version}{gate}"


def _when(entry: Entry) -> str:
    return entry.created[:16].replace("T", " ")


# --- moving an alias -----------------------------------------------------------------------------------------------


def promote(
    name: Name,
    recipe: Annotated[Path | None, typer.Argument(help="a recipe whose gate is used; default: the version's own", show_default=False)] = None,
    to: Alias = "production",
    override: Annotated[bool, typer.Option("--override", help="move it whatever the gate says; needs --reason and --by")] = False,
    reason: Reason = None, by: By = None,
    expect: Annotated[int | None, typer.Option(min=0, help="move only if the alias stands for this number now (0: for none)")] = None,
    store: Store = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Let an alias stand for this version, if its gate passes. Exit 0 when it does stand there, 3 when a rule fails, 4 when too few items decide."""
    from tuner import promotion

    done = promotion.promote(store_folder(store or "adapters"), name, to, recipe=recipe, override=override, by=by, why=reason, expect=expect)
    stands = done.entry is not None or done.ruled is None
    if as_json:
        _say_promotion_json(done)
    elif done.entry is not None:
        _say_entry(done.version.name, done.entry)
    elif done.ruled is None:
        out.print(f"{to} stands for {done.version.label} already; nothing was written", markup=False, soft_wrap=True)
    else:
        _say_refused_by_gate(done)
    if not stands and done.ruled is not None:
        raise typer.Exit(Exit.UNDECIDED if done.ruled.outcome == "undecided" else Exit.NOT_BETTER)


def _say_promotion_json(done: Any) -> None:
    from dataclasses import asdict

    from tuner.durable import json_text

    gate = None if done.ruled is None else {"evaluation": done.ruled.evaluation.name, **done.ruled.gate}
    entry = None if done.entry is None else asdict(done.entry)
    sys.stdout.write(json_text({"version": done.version.label, "alias": done.alias, "before": done.before, "entry": entry, "gate": gate}))


def _say_refused_by_gate(done: Any) -> None:
    from tuner.report.gate_text import gate_text

    out.print(f"{done.version.label}, evaluation {done.ruled.evaluation.name}\n{gate_text(done.ruled.gate)}", markup=False, soft_wrap=True)
    still = "nothing" if done.before is None else f"{done.version.name}@{done.before}"
    out.print(f"{done.alias} still stands for {still}; `--override --reason \"…\" --by WHO` moves it all the same, and the log keeps this ruling",
              markup=False, soft_wrap=True)  # fmt: skip


def rollback(
    name: Bare,
    to: Annotated[str, typer.Option("--alias", help="the alias to move back")] = "production",
    reason: Reason = None,
    by: By = None,
    store: Store = None,
) -> None:
    """Undo the newest promotion of an alias that was not undone yet. Again: the one before it."""
    from tuner import promotion

    _say_entry(name, promotion.rollback(store_folder(store or "adapters"), name, to, by=by, why=reason))


def _say_entry(name: str, entry: Entry) -> None:
    out.print(visible(f"{_what(name, entry)}  by {entry.by}: {entry.why}  (entry {entry.number} of `tuner log {name}`)"), markup=False, soft_wrap=True)


# --- out of use ----------------------------------------------------------------------------------------------------


def retire(
    name: Annotated[str, typer.Argument(metavar="NAME@N", help="the version", show_default=False)], reason: Reason = None, by: By = None,
    undo: Annotated[bool, typer.Option("--undo", help="take it into use again")] = False, store: Store = None,
) -> None:  # fmt: skip
    """Take a version out of use: NAME alone no longer means it, it cannot be promoted, and `gc` may delete it."""
    from tuner import promotion

    if reason is None:
        refuse("command line", "--reason", "none", "why, in a sentence", f'tuner retire {visible(name)}{" --undo" if undo else ""} --reason "…"')
    change = promotion.restore if undo else promotion.retire
    _say_entry(name.partition("@")[0], change(store_folder(store or "adapters"), name, reason, by=by))


def gc(
    apply: Annotated[bool, typer.Option("--apply", help="delete it; without this, only say what would go")] = False, by: By = None,
    reason: Reason = None, store: Store = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """What may be deleted: retired versions that no alias and no version needs, and what ended processes left. Says so only, unless --apply."""
    from tuner.artifact.gc import collect, garbage
    from tuner.durable import json_text
    from tuner.promotion import user

    place = _named_place(store)
    found = collect(place, by or user(), reason or "gc") if apply else garbage(place)
    if as_json:
        sys.stdout.write(json_text({**found.as_dict(), "applied": apply}))
        return
    for item in found.going:
        out.print(f"{'deleted' if apply else 'would go':9} {item.bytes:14,} bytes  {visible(item.label):32} {visible(item.why)}", markup=False, soft_wrap=True)
    for kept in found.kept:
        if kept.why != "not retired":
            out.print(f"stays     {'':14}        {kept.version.label:32} {visible(kept.why)}", style="dim", markup=False, soft_wrap=True)
    in_use = sum(kept.why == "not retired" for kept in found.kept)
    total = sum(item.bytes for item in found.going)
    say = "deleted" if apply else "may go (`tuner gc --apply` deletes it)"
    out.print(
        f"{total:,} bytes in {len(found.going)} folders {say}; {len(found.kept)} versions stay, {in_use} of them not retired", markup=False, soft_wrap=True
    )


COMMANDS: tuple[Callable[..., None], ...] = (log, promote, rollback, retire, gc)  # and list_versions, as `list`
