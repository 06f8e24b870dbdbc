"""The commands about descent: lineage, forget, diff.

They refuse more than one way of naming a record, and to mark or write anything that was not asked for with --apply.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli_words import AsJson, Name, Store, load
from tuner.errors import refuse
from tuner.safe_text import visible
from tuner.telling import minutes, out, shown_path

if TYPE_CHECKING:
    from tuner.artifact.lineage import Sought, Trace, Use
    from tuner.erasure import Forgetting

At = Annotated[str | None, typer.Option("--record", metavar="FILE:LINE", help="the record at this line of a file, read as tuner reads it")]
Text = Annotated[str | None, typer.Option("--text", help="the words of a whole prompt; a phrase is found only where artifact.keep_text kept texts")]
Hash = Annotated[str | None, typer.Option("--hash", help="a record's content hash, or its first 12 digits or more (the id in a finding)")]
Recipe = Annotated[Path | None, typer.Option(help="the recipe that reads FILE: its columns and redaction; and where recipes that retrain belong")]

MOST_SHOWN = 5  # uses of each way, shown of a version


def lineage(
    name: Annotated[str | None, typer.Argument(help="NAME@VERSION, or NAME for the latest", show_default=False)] = None,
    record: At = None, text: Text = None, hash_: Hash = None, recipe: Recipe = None, store: Store = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Where a version comes from and what came of it; or, of a record, every version of every name that saw it or a near copy."""
    from tuner.durable import json_text

    place = _place(store)
    if name is not None:
        _refuse_both(record, text, hash_)
        found = _descent(place, name)
        if as_json:
            sys.stdout.write(json_text(found))
        else:
            _say("\n".join(_descent_lines(found)))
        return
    from tuner.artifact.lineage import trace

    traced = trace(place, _sought(record, text, hash_, recipe))
    if as_json:
        sys.stdout.write(json_text(traced.as_dict()))
    else:
        _say("\n".join(_trace_lines(traced)))


def forget(
    record: At = None, text: Text = None, hash_: Hash = None, recipe: Recipe = None,
    output: Annotated[Path | None, typer.Option(help="the recipe that retrains, beside the version's own; default: NAME-without.yaml")] = None,
    near: Annotated[bool, typer.Option("--near", help="its near copies too, and other answers to the same prompt")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="mark the versions and write the recipes; without it, they are only listed")] = False,
    why: Annotated[str | None, typer.Option(help="why; kept in the log for ever, so no personal data")] = None,
    by: Annotated[str | None, typer.Option(metavar="WHO", help="who decides this; default: this system's user")] = None,
    store: Store = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """List the versions trained on a record; with --apply mark them (never promoted again) and write recipes that train without it."""
    from tuner.artifact.lineage import trace
    from tuner.durable import json_text
    from tuner.erasure import WHY, plan_forgetting
    from tuner.erasure import forget as done_so
    from tuner.promotion import user

    place = _place(store)
    plan = plan_forgetting(place, trace(place, _sought(record, text, hash_, recipe)), near, load(recipe, [], None) if recipe else None, output)
    done = done_so(place, plan, by or user(), why or WHY) if apply else []
    if as_json:
        sys.stdout.write(json_text({**plan.as_dict(), "done": done}))
    else:
        _say("\n".join([*_forgetting_lines(plan, apply), *done]))


def diff(
    first: Name, second: Name, store: Store = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """What differs between two versions: recipe, records, base, template, libraries, machine, sizes, and scores with paired intervals."""
    from tuner.artifact.store import find
    from tuner.differences import whole_difference
    from tuner.durable import json_text

    place = _place(store)
    found = whole_difference(find(place, first), find(place, second))
    if as_json:
        sys.stdout.write(json_text(found))
    else:
        _say("\n".join(_difference_lines(found)))


def _place(store: str | None) -> Path:
    """The folder of the store: a local one itself, a remote one's mirror."""
    from tuner.artifact.remote import store_folder

    return store_folder(store or "adapters")


def _say(lines: str) -> None:
    out.print("\n".join(visible(line) for line in lines.split("\n")), markup=False, soft_wrap=True)


# --- the record ----------------------------------------------------------------------------------------------------------


def _refuse_both(*ways: str | None) -> None:
    if any(way is not None for way in ways):
        refuse("command line", "", "a version and a record", "one of them", "tuner lineage NAME@N, or tuner lineage --record FILE:LINE")


def _sought(record: str | None, text: str | None, hash_: str | None, recipe: Path | None) -> Sought:
    from tuner.artifact.lineage import sought_hash, sought_text

    if sum(way is not None for way in (record, text, hash_)) != 1:
        refuse("command line", "", "none or several of --record, --text and --hash", "one of them", "name the record: --record FILE:LINE")
    if record is not None:
        from tuner.erasure import sought_at

        return sought_at(record, load(recipe, [], None) if recipe is not None else None)
    return sought_text(text) if text is not None else sought_hash(hash_ or "")


def _trace_lines(trace: Trace) -> list[str]:
    """Versions with what they did with it, a few places of each."""
    looked = f"{trace.versions:,} version{'' if trace.versions == 1 else 's'}, {trace.records:,} records"
    if not trace.uses:
        lines = [f"no version saw it ({looked})"]
    else:
        names = dict.fromkeys(u.version.label for u in trace.uses)
        trained = len({u.version.label for u in trace.uses if u.is_trained_on})
        lines = [f"{len(names)} of {looked}: {trained} trained on it or a near copy"]
        for label in names:
            lines += _version_lines(label, [u for u in trace.uses if u.version.label == label])
    lines += [f"{h.version.label}{_pointed(h.aliases)}  not trained on it, but continues {h.through}, which was" for h in trace.heirs]
    return lines + _not_looked_at(trace)


def _version_lines(label: str, uses: Sequence[Use]) -> list[str]:
    lines = [f"{label}{_pointed(uses[0].aliases)}"]
    shown: Counter[tuple[str, str]] = Counter()
    for use in uses:
        kind = use.role, use.how
        shown[kind] += 1
        if shown[kind] <= MOST_SHOWN:
            how = f"{use.how}, Jaccard about {use.jaccard:.2f}" if use.how == "near copy" else use.how
            lines.append(f"  {use.role} ({use.split}): {use.file}:{use.line}  {how}  {use.hash[:19]}")
    lines += [f"  … {count - MOST_SHOWN} more: {role}, {how}" for (role, how), count in shown.items() if count > MOST_SHOWN]
    return lines


def _pointed(aliases: Sequence[str]) -> str:
    return f"  [{', '.join(aliases)}]" if aliases else ""


def _not_looked_at(trace: Trace) -> list[str]:
    """What the answer does not cover."""
    lines = [f"NOT LOOKED AT: {u.version.label}: {u.why}" for u in trace.unread]
    if trace.exact_only:
        shown = ", ".join(trace.exact_only[:MOST_SHOWN]) + (f" and {len(trace.exact_only) - MOST_SHOWN} more" if len(trace.exact_only) > MOST_SHOWN else "")
        lines.append(f"only equal content is found in {shown}: trained before signatures were kept")
    if not trace.is_kept:
        lines.append("the index could not be written beside the store: it was made for this answer alone")
    return lines + [f"note: {note}" for note in trace.notes]


def _forgetting_lines(plan: Forgetting, apply: bool) -> list[str]:
    from tuner.erasure import LEFT

    if not plan.concerned:
        seen = len({u.version.label for u in plan.trace.uses})
        lines = ["no version was trained on it" + (f"; {seen} saw it otherwise (tuner lineage says how)" if seen else ""), *_not_looked_at(plan.trace)]
        return [*lines, *_near_left(plan), *(f"quoted in {shown_path(path)}" for path in plan.quoting)]
    lines = [f"{len(plan.hashes)} record{'' if len(plan.hashes) == 1 else 's'}: {', '.join(h[:19] for h in plan.hashes)}"]
    for concern in plan.concerned:
        how = "trained on it" if concern.through is None else f"continues {concern.through}"
        lines.append(f"{concern.version.label}{_pointed(concern.aliases)}  {how}{', marked already' if concern.is_marked else ''}")
    lines += [*_near_left(plan), *_not_looked_at(plan.trace), *(f"note: {note}" for note in plan.notes)]
    for recipe in plan.recipes:
        order = f", after {recipe.after}" if recipe.after else ""
        lines.append(f"trains {recipe.version.name} without it: tuner run {shown_path(recipe.path)}{order}{'' if apply else ' (not written yet)'}")
    lines += ["forgetting does not reach:", *(f"  {what}" for what in LEFT)]
    if plan.trace.sought.texts:
        lines += [f"  {shown_path(path)}, which quotes it" for path in plan.quoting] or ["  (no file of these versions quotes it word for word)"]
    else:
        lines.append("  findings.json and evaluations of these versions, where they quote it: asked by --record or --text, they are searched")
    return lines if apply else [*lines, "nothing was changed: --apply marks these versions and writes the recipes"]


def _near_left(plan: Forgetting) -> list[str]:
    others = len({u.hash for u in plan.near})
    return [f"{others} near cop{'y' if others == 1 else 'ies'} or other answers to the same prompt are not meant: --near takes them too"] if others else []


# --- a version -----------------------------------------------------------------------------------------------------------


def _descent(store: Path, name: str) -> dict[str, Any]:
    from tuner.artifact.lineage import lineage as of_version
    from tuner.artifact.store import find

    return of_version(store, find(store, name))


def _descent_lines(found: Mapping[str, Any]) -> list[str]:
    base, code, seconds = found["base"], found["code"], found["seconds"]
    splits = [f"  {name}: {s['records']:,} records, {s['digest'][7:19]}" for name, s in found["data"]["splits"].items()]
    files = [f"  {f['file']}: {f.get('digest', '')[7:19]}, read {f['read']:,}, kept {f['kept']:,}" for f in found["data"]["files"]]
    dirty = {True: ", with uncommitted changes", None: ", not known whether changed"}.get(code["dirty"], "")
    took = "" if seconds["training"] is None else f", {minutes(seconds['training'])} of training"
    lines = [
        f"{found['version']}{_pointed(found['aliases'])}  {found['created']}, manifest {found['manifest_digest'][7:19]}",
        *(f"continues {p['version']}: {p['state']}" for p in found["parents"]), *([] if found["parents"] else ["continues nothing: trained from the base"]),
        f"continued by {', '.join(found['children']) or 'nothing'}",
        f"base: {base['name']}, {base['origin']}, revision {base['revision'] or 'none'}, weights {base['weight_digest'][7:19]}",
        f"recipe: {found['recipe']['digest'][7:19]}, {found['recipe']['file'] or 'its place was not kept'}; template {found['template'][7:19]}",
        f"code: commit {code['commit'] or 'not known'}{dirty}; seed {found['seed']}, training seed {found['training_seed']}",
        "data:", *splits, *files, *([f"  the same records in {', '.join(found['data']['same_data'])}"] if found["data"]["same_data"] else []),
        f"machine: {_machine(found['hardware'])}{took}", "libraries: " + ", ".join(f"{n} {v}" for n, v in found["versions"].items()),
    ]  # fmt: skip
    if found["retired"] is not None:
        lines.append(f"retired: {found['retired']}")
    if found["to_forget"]:
        lines.append(f"trained on {len(found['to_forget'])} records that are to be forgotten")
    return lines + [f"log {e['number']}: {e['created'][:16]} {e['what']}{' ' + e['alias'] if e['alias'] else ''} {e['by']}: {e['why']}" for e in found["log"]]


def _machine(hardware: Mapping[str, Any]) -> str:
    gpu = f", {hardware['gpus']} x {hardware['gpu']}" if hardware.get("gpu") else ""
    return f"{hardware.get('cpu')}, {hardware.get('cores')} cores, {(hardware.get('memory_bytes') or 0) / 1e9:.0f} GB{gpu}"


# --- two versions --------------------------------------------------------------------------------------------------------

SECTIONS = {
    "recipe": "recipe", "base": "base", "template": "template", "parent": "parent", "sizes": "sizes", "code": "code", "versions": "libraries",
    "hardware": "machine",
}  # fmt: skip


def _difference_lines(found: Mapping[str, Any]) -> list[str]:
    from tuner.report.compare_text import compare_text

    lines = [f"{found['b']} beside {found['a']}"]
    for key, title in SECTIONS.items():
        lines += [f"{title}: {'' if found[key] else 'the same'}".rstrip(), *(_changed(c) for c in found[key])]
    lines.append("records:")
    for split, of in found["records"].items():
        lines += _split_lines(split, of)
    if found["scores"] is None:
        return [*lines, f"scores: {found['scores_why']}"]
    return [*lines, "scores:", compare_text(found["scores"])]


def _changed(change: Mapping[str, Any]) -> str:
    return f"  {change['key']}: {_short(change['old'])} → {_short(change['new'])}"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"


def _split_lines(split: str, of: Mapping[str, Any]) -> list[str]:
    counts = {what: of[what]["count"] for what in ("added", "removed", "changed", "moved_here")}
    if not any(counts.values()):
        return [f"  {split}: {of['new']:,}, the same"]
    said = ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in counts.items() if count)
    lines = [f"  {split}: {of['old']:,} → {of['new']:,}: {said}"]
    lines += [f"    {what}: {', '.join(of[what]['places'])}{_rest(of[what])}" for what in ("added", "removed") if counts[what]]
    lines += [f"    changed: {p['old']} → {p['new']} ({p['by']})" for p in of["changed"]["places"]]
    return lines + [f"    moved here: {p['new']}, from {p['from']}" for p in of["moved_here"]["places"]]


def _rest(of: Mapping[str, Any]) -> str:
    left = of["count"] - len(of["places"])
    return f" and {left:,} more" if left else ""


COMMANDS = (lineage, forget, diff)
