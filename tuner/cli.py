"""The command line: words in, one call, an exit code. It speaks; the rooms keep quiet.

It refuses nothing of its own but unknown commands; a Refusal from a room is printed in full and exits with code 2.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer
from rich.markup import escape

from tuner import cli_chat, cli_evidence, cli_export, cli_lineage, cli_serving, cli_share, cli_store, cli_trust
from tuner.cli_words import AllowChanged, AsJson, BaseFolder, Fresh, Name, Overrides, Profile, RecipeFile, Store, exit_by_verdict, load, store_folder
from tuner.errors import Exit, Refusal, Terminated, refuse
from tuner.safe_text import visible
from tuner.telling import Teller, err, for_terminal, interval_words, minutes, out, say_checked, say_parity, say_plan, say_run, shown_path

if TYPE_CHECKING:
    from tuner.pipeline import Diagnosed, Run
    from tuner.recipe import Recipe

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="One recipe file in, one versioned LoRA adapter out, with its evidence. Exit codes: 0 good, 1 bug, 2 refused input, "
    "3 evaluated and not better (gate: failed), 4 gate undecided, 5 a rank died or hung, 130/143 interrupted.",
)  # fmt: skip

# --- verbs ---------------------------------------------------------------------------------------------------------


@app.command()
def run(
    recipe: RecipeFile, overrides: Overrides = None, profile: Profile = None, store: Store = None,
    reuse: Annotated[bool, typer.Option("--reuse", help="show a finished equal run instead of training again")] = False,
    fresh: Fresh = False, allow_changed: AllowChanged = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="train so many versions that differ in train.seed alone, and say what holds over all of them")] = 1,
) -> None:  # fmt: skip
    """Check, train, publish a version, grade it against the prompted base, write the report. An interrupted run goes on by itself."""
    if reuse and fresh:
        refuse("command line", "--reuse", "--reuse and --fresh", "one of them", "leave one out")
    if seeds > 1:
        _run_seeds(recipe, overrides or [], profile, store, seeds)
        return
    done = _pipeline(load(recipe, overrides, profile), store, reuse=reuse, fresh=fresh, allow_changed=allow_changed)
    if done.version is not None:
        say_run(done)
        exit_by_verdict(done)


@app.command()
def train(
    recipe: RecipeFile, overrides: Overrides = None, profile: Profile = None, store: Store = None, fresh: Fresh = False, allow_changed: AllowChanged = None,
) -> None:  # fmt: skip
    """Check, train and publish a version, without grading it."""
    done = _pipeline(load(recipe, overrides, profile), store, grade_after=False, fresh=fresh, allow_changed=allow_changed)
    if done.version is not None:
        out.print(f"published {done.version.label}  {shown_path(done.version.folder)}", soft_wrap=True)


for command in cli_evidence.COMMANDS:
    app.command()(command)


@app.command()
def check(
    targets: Annotated[list[str], typer.Argument(help="a recipe with its overrides, or files of records (then data.KEY=VALUE may follow)", show_default=False)],
    profile: Profile = None, as_json: AsJson = False,
    findings: Annotated[Path | None, typer.Option(help="also write every finding to this file (JSON)")] = None,
    html: Annotated[Path | None, typer.Option(help="also write a page for the owner of the data")] = None,
    with_base: Annotated[bool, typer.Option("--with-base", help="also load the base model and look for answers that do not belong to their prompts")] = False,
) -> None:  # fmt: skip
    """Read every record, check it, say what was found. Needs no GPU, no torch and no model. Exit 2 when something must be mended."""
    from tuner.data.summary import as_report
    from tuner.durable import json_text, write_text

    _refuse_unwritable(findings, "--findings")
    _refuse_unwritable(html, "--html")
    began = time.monotonic()
    recipe, is_bare = _recipe_or_files(targets, profile, with_base)
    _refuse_overwriting({"--findings": findings, "--html": html}, recipe)
    with Teller() as teller:
        diagnosed = _diagnosed(recipe, is_bare, with_base, teller)
    report = as_report(diagnosed.checked, diagnosed.accounts)
    if findings is not None:
        write_text(findings.resolve(), json_text(report["findings"]))
    if html is not None:
        from tuner.report.data_page import data_page

        write_text(html.resolve(), data_page(diagnosed.checked, report))
    if as_json:
        sys.stdout.write(json_text(report))
    else:
        say_checked(diagnosed, seconds=time.monotonic() - began)
        for path in (findings, html):
            if path is not None:
                out.print(f"written: {shown_path(path)}", markup=False, soft_wrap=True)
    if diagnosed.checked.errors:
        raise typer.Exit(Exit.REFUSED)


def _recipe_or_files(targets: list[str], profile: str | None, with_base: bool) -> tuple[Recipe, bool]:
    """The first target decides: a recipe with overrides, or bare files of records with keys of data. True for bare files."""
    from tuner.recipe import recipe_for_files

    if Path(targets[0]).suffix.lower() in {".yaml", ".yml"}:
        return load(Path(targets[0]), targets[1:], profile), False
    overrides = [t for t in targets if re.match(r"[a-z_]+(\.[A-Za-z0-9_-]+)*=", t)]
    for word, found in (("--with-base", with_base), ("--profile", profile is not None)):
        if found:
            refuse("command line", word, "files without a recipe", "a recipe: it names the base and defines profiles", "write a recipe with base.model")
    for words in overrides:
        if not words.startswith("data."):
            refuse("command line", words.partition("=")[0], "a key that files without a recipe do not have", "keys of data", "write a recipe, or leave it out")
    return recipe_for_files([t for t in targets if t not in overrides], overrides), True


def _diagnosed(recipe: Recipe, is_bare: bool, with_base: bool, teller: Teller) -> Diagnosed:
    from tuner import pipeline

    if is_bare:
        return pipeline.check_files(recipe, teller)
    prepared = pipeline.prepare(recipe, teller, weights=with_base)
    if with_base and prepared.checked.errors:
        err.print("the base was not asked: mend the errors first", markup=False)
    return pipeline.with_base_findings(prepared, teller) if with_base and not prepared.checked.errors else prepared


def _refuse_overwriting(outputs: dict[str, Path | None], recipe: Recipe) -> None:
    """Raises Refusal where an output is a file that is read, no regular file, or another output."""
    from tuner.data.splits import sources_of

    folder = recipe.path.parent
    taken = {(folder / os.path.expanduser(f)).resolve(): "a file that is read" for source in sources_of(recipe.data).values() for f in source.files}
    taken[recipe.path.resolve()] = "the recipe"
    for option, path in outputs.items():
        if path is None:
            continue
        found = taken.get(path.resolve()) or ("no regular file" if path.exists() and not path.is_file() else None)
        if found is not None:
            refuse(path, option, found, "a new file, or one of earlier findings", "choose another name")
        taken[path.resolve()] = "another output"


@app.command()
def select(
    recipe: RecipeFile, overrides: Overrides = None, profile: Profile = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="train records to keep")] = 500,
    drop_worst: Annotated[float, typer.Option(min=0.0, max=0.5, help="largest share of train left out for what the checks found against it")] = 0.05,
    output: Annotated[Path, typer.Option(help="new folder for train.jsonl, reasons.jsonl and recipe.yaml")] = Path("selected"),
) -> None:  # fmt: skip
    """Choose fewer train records that keep its coverage, the worst left out. Writes the records, a reason for each, and a recipe."""
    from tuner import pipeline

    loaded = load(recipe, overrides, profile)
    with Teller() as teller:
        chosen = pipeline.select(loaded, count, drop_worst, output, teller)
    reasons = Counter(c.reason.split(":")[0] if c.rank else "left out: near a chosen one" if "asks nearly" in c.reason else c.reason for c in chosen.choices)
    for reason, number in reasons.most_common(12):
        out.print(f"{number:8} {visible(reason)}", markup=False, soft_wrap=True)
    out.print(f"mean cosine of every train prompt to its nearest chosen one: {chosen.kept_similarity:.3f}; of {count} drawn at random: "
              f"{chosen.random_similarity:.3f}",
              markup=False, soft_wrap=True)  # fmt: skip
    out.print(f"written: {shown_path(output)}/train.jsonl, reasons.jsonl, recipe.yaml", markup=False, soft_wrap=True)


@app.command()
def preview(
    recipe: RecipeFile, overrides: Overrides = None, profile: Profile = None,
    named: Annotated[list[str] | None, typer.Option("--record", metavar="FILE:LINE|RECORD_ID", help="a record, by place or id; repeatable")] = None,
    longest: Annotated[int, typer.Option(min=0, help="so many of the longest records of the split")] = 0,
    at_random: Annotated[int, typer.Option("--random", min=0, help="so many drawn from the split, by the recipe's seed")] = 0,
    count: Annotated[int | None, typer.Option("-n", "--count", min=1, help="so many from the split's beginning; 2 if nothing else is asked")] = None,
    split: Annotated[str, typer.Option(help="train, validation, held_out, or ood.NAME")] = "train",
    html: Annotated[Path | None, typer.Option(help="write a page instead; texts are not masked, so only you may read it")] = None,
) -> None:  # fmt: skip
    """Show records as the model will see them: loss tokens in colour, special tokens visible, counts under each."""
    from tuner import pipeline
    from tuner.catalog import choose
    from tuner.report.preview_page import preview_page, refuse_other_file, write_private
    from tuner.template.preview import FIRST, Wanted, chosen, preview_counts, preview_text

    loaded = load(recipe, overrides, profile)
    _refuse_unwritable(html, "--html")
    _refuse_overwriting({"--html": html}, loaded)
    refuse_other_file(html, "--html")
    prepared = pipeline.prepare(loaded, weights=False)
    records = prepared.splits.records
    among = choose(records, split, recipe.name, "--split")
    first = count if count is not None else 0 if named or longest or at_random else FIRST
    tokens = prepared.checked.context.measures.tokens[prepared.checked.context.ranges[split]].sum(axis=1).tolist()
    every = (record for of_split in records.values() for record in of_split)
    picked = chosen(Wanted(named or (), longest, at_random, first), among, tokens, every, loaded.path.parent, loaded.seed)
    rows = prepared.encoder.rows(choice.record for choice in picked)
    for choice, row in zip(picked, rows, strict=True):
        out.print(f"{visible(row.record.where)}  ({visible(row.record.split)}, {choice.why})", style="bold", markup=False, soft_wrap=True)
        if html is None:
            out.print(preview_text(row, prepared.encoder))
        out.print(f"{preview_counts(row)}{chr(10) if html is None else ''}", style="dim", markup=False, soft_wrap=True)
    if html is None:
        out.print("loss tokens are black on green (specials on yellow); everything else is context", style="dim")
        return
    page = preview_page(loaded.name, prepared.encoder, list(zip(picked, rows, strict=True)), {name: len(of) for name, of in records.items()})
    write_private(html.resolve(), page.html)
    left = f"; {page.left_out} of the records above are not on it, for its size" if page.left_out else ""
    out.print(f"written: {shown_path(html)} (not masked; only you may read it){left}", markup=False, soft_wrap=True)


@app.command()
def plan(
    recipe: RecipeFile, overrides: Overrides = None, profile: Profile = None, store: Store = None, as_json: AsJson = False,
    gpu: Annotated[str | None, typer.Option(help="also say what fits on these, bf16 or nf4, with checkpointing or without: h200,a100-80,l4,4090,cpu …")] = None,
) -> None:  # fmt: skip
    """Say what the run will cost before anything is loaded: steps, tokens, trainable parameters, memory part by part, time, price, energy."""
    from tuner import pipeline
    from tuner.durable import json_text
    from tuner.plan.devices import named
    from tuner.train.ranks import is_main

    if not is_main():
        return  # under a launcher the main rank alone speaks
    devices = [name for name in (gpu or "").split(",") if name]
    named(devices)  # a misspelt device is refused before the work
    loaded = load(recipe, overrides, profile)
    prepared = pipeline.prepare(loaded)
    prepared.checked.raise_if_refused()
    made = pipeline.plan(prepared, store_folder(store or loaded.artifact.store), devices)
    if as_json:
        sys.stdout.write(json_text({**made.plan.as_dict(), "path": made.way.as_dict()}))
        return
    say_plan(made.plan, with_how=True)
    for line in made.way.why:
        out.print(f"picked: {visible(line)}", markup=False, soft_wrap=True)


@app.command()
def curve(
    recipe: RecipeFile, overrides: Overrides = None, profile: Profile = None, store: Store = None,
    fractions: Annotated[str, typer.Option(help="shares of train, several, above 0 and up to 1")] = "0.1,0.25,0.5,1",
    same: Annotated[str, typer.Option(help="what all parts get: epochs (of their own records), or steps (as many as all of train needs)")] = "epochs",
) -> None:  # fmt: skip
    """Does more data help? Trains on nested parts of train, grades each on validation, draws the curve. Finished parts are not trained again."""
    from tuner.catalog import choose
    from tuner.studies import curve as room

    shares = room.fractions_of(fractions)
    choose({"epochs": None, "steps": None}, same, "command line", "--same")
    loaded = load(recipe, overrides, profile)
    with Teller() as teller:
        study = room.Study(loaded, overrides or [], profile, shares, store_folder(store or loaded.artifact.store), teller, cast("room.Same", same))
        left = sum(part.done is None for part in study.parts)
        out.print(f"curve: {len(study.parts)} runs, {left} of them to be trained: about {minutes(study.seconds)} of training by the plan, then grading on "
                  f"{len(study.judge.suite.items)} validation items", soft_wrap=True)  # fmt: skip
        for part in study.parts:
            size = f"{len(part.records):8,} records  about {part.steps:,} steps"
            out.print(f"  {part.fraction:<6g}{size}  {visible(part.recipe.name)}", markup=False, soft_wrap=True)
        found = study.run()
    page = room.write(found, study.folder)
    out.print(f"\n{found.metric} on {found.suite['n']} validation items, with 95 % intervals", style="bold", markup=False)
    for point in found.points:
        out.print(f"  {point.fraction:<6g}{point.records:8,} records  {interval_words(point.value)}  {visible(point.version)}", markup=False, soft_wrap=True)
    out.print(f"  best prompted base     {interval_words(found.base)}  {visible(found.base['way'])}", markup=False, soft_wrap=True)
    out.print(f"{visible(found.answer)}\nwritten: {shown_path(page)}, curve.json", markup=False, soft_wrap=True)


@app.command()
def sweep(
    recipe: RecipeFile,
    varied: Annotated[list[str], typer.Argument(help="key=a,b,c for a list, key=low..high for a range (with --trials), key=value for all", show_default=False)],
    profile: Profile = None, store: Store = None,
    trials: Annotated[int | None, typer.Option(min=1, help="search with Optuna for so many trials instead of trying every combination")] = None,
    objective: Annotated[str, typer.Option(help="validation_loss, or a name from `tuner show metrics`, on validation")] = "validation_loss",
    storage: Annotated[str | None, typer.Option(help="database URL of Optuna's study, so that several machines share it; default: a file")] = None,
) -> None:  # fmt: skip
    """Which settings are better? A grid of lists, or a search by Optuna; each trial is a version of its own. Start it twice to share the work."""
    from tuner.errors import Problem
    from tuner.studies.axes import plain_and_varied
    from tuner.studies.sweep import Sweep, ranked

    plain, lists = plain_and_varied(varied)
    loaded = load(recipe, plain, profile)
    with Teller() as teller:
        study = Sweep(loaded, lists, plain, profile, store_folder(store or loaded.artifact.store), teller, trials=trials, objective=objective, storage=storage)
        done = len(study.done())
        out.print(f"sweep: {study.count} runs, {done} of them done: about {minutes(study.seconds * max(study.count - done, 0) / study.count)} of training "
                  f"by the plan; judged by {objective} on {len(study.judge.suite.items)} validation items", markup=False, soft_wrap=True)  # fmt: skip
        found = ranked(study.run(), study.higher_is_better)
    page = study.write()
    out.print(f"\n{objective}, the best first", style="bold", markup=False)
    for trial in found:
        keys = ", ".join(f"{key} {json.dumps(value)}" for key, value in trial.keys.items())
        value = f"failed: {trial.reason}" if trial.value is None else f"{trial.value:.4f}  {trial.version}"
        out.print(f"  {trial.number + 1:4}  {visible(keys)}  {visible(value)}", markup=False, soft_wrap=True)
    if len(found) < study.count:
        out.print(f"  {study.count - len(found)} more are with other processes; the same command shows them when they are done", soft_wrap=True)
    out.print(f"written: {shown_path(page)}, sweep.json", markup=False, soft_wrap=True)
    if not any(trial.value is not None for trial in found):
        raise Refusal([Problem(str(recipe), f"trial {t.number + 1}", t.reason, "a trial that finishes", "vary other values") for t in found])
    out.print(f"chosen on validation, so it looks better here than it is: tuner evaluate {found[0].version} {visible(str(recipe))} reads held_out, once",
              markup=False, soft_wrap=True)  # fmt: skip


@app.command()
def answer(
    name: Name,
    question: Annotated[str | None, typer.Argument(help="the question; without it, JSON lines are read from --input", show_default=False)] = None,
    input_: Annotated[Path | None, typer.Option("--input", help='JSON lines: {"prompt": …} or {"messages": […]}; - for standard input')] = None,
    output: Annotated[Path | None, typer.Option(help="where answers go, as JSON lines; default: standard output")] = None,
    store: Store = None, base: BaseFolder = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer (tokens)")] = 256,
) -> None:  # fmt: skip
    """Ask a version: one question, or JSON lines in and JSON lines out."""
    from tuner.artifact.adapter import load_adapter

    if (question is None) == (input_ is None):
        refuse("command line", "", "both or neither of a question and --input", "one of them", 'tuner answer NAME "question"')
    _refuse_unwritable(output, "--output")
    rows = [{"prompt": question}] if question is not None else _input_rows(input_)
    adapter = load_adapter(name, store or "adapters", base=base)
    answers = adapter.answer_many([_question_of(row, i) for i, row in enumerate(rows, start=1)], max_new_tokens)
    if question is not None:
        sys.stdout.write(for_terminal(answers[0]) + "\n")
        return
    text = "".join(json.dumps({**row, "answer": a}, ensure_ascii=False) + "\n" for row, a in zip(rows, answers, strict=True))
    if output is None:
        sys.stdout.write(text)
    else:
        from tuner.durable import write_text

        write_text(output, text)


@app.command()
def parity(
    name: Name,
    engine: Annotated[str | None, typer.Option(help="also ask a serving engine: llama_cpp, or vllm (extras llama-cpp, vllm)")] = None,
    weights: Annotated[str, typer.Option(help="precision of the base in the engine: f32, f16, q8_0")] = "f32",
    input_: Annotated[Path | None, typer.Option("--input", help='more conversations, as JSON lines: {"prompt": …} or {"messages": […]}')] = None,
    answers: Annotated[int, typer.Option(min=0, help="with an engine: greedy answers to compare")] = 50,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer (tokens)")] = 32,
    store: Store = None, base: BaseFolder = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Is it asked in production what it was trained on? Compares prompts, token id by token id, through every way to serve it."""
    from datetime import UTC, datetime

    from tuner.artifact.adapter import as_messages, load_adapter
    from tuner.artifact.parity import check_parity, engine_of, probes
    from tuner.artifact.store import add_evaluation
    from tuner.durable import json_text
    from tuner.fingerprint import digest_json

    if engine is not None:
        engine_of(engine, weights)  # a misspelt one is refused before anything is loaded
    given = [tuple(as_messages(_question_of(row, i))) for i, row in enumerate(_input_rows(input_), start=1)] if input_ is not None else []
    adapter = load_adapter(name, store or "adapters", base=base, load="fp32" if engine else None)
    found = check_parity(adapter, adapter.base_folder, [*given, *probes(adapter.encoder)], engine, weights, answers, max_new_tokens)
    facts = {**found.as_dict(), "version": adapter.version.label, "created": datetime.now(UTC).isoformat(timespec="seconds"), "allowed": list(adapter.allowed)}
    label = f"{facts['created'][:10]}-parity-{digest_json(facts)[7:13]}"

    def fill(stage: Path) -> None:
        (stage / "parity.json").write_text(json_text(facts), encoding="utf-8")

    kept = add_evaluation(adapter.version, label, fill)
    if as_json:
        sys.stdout.write(json_text(facts))
    else:
        say_parity(found)
        out.print(f"written: {shown_path(kept / 'parity.json')}", markup=False, soft_wrap=True)
    if not found.holds:
        raise typer.Exit(Exit.NOT_BETTER)


app.command("list")(cli_store.list_versions)
for later in (cli_store, cli_trust, cli_lineage, cli_share, cli_export, cli_serving, cli_chat):
    for command in later.COMMANDS:
        app.command()(command)


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, so that editors complete and check them."""
    from tuner.recipe import recipe_schema

    sys.stdout.write(json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n")


@app.command()
def version() -> None:
    """Print the versions of tuner and of the libraries that decide its results."""
    from tuner.fingerprint import library_versions

    for library, number in library_versions().items():
        out.print(f"{library:14} {number}", markup=False)


# --- show ----------------------------------------------------------------------------------------------------------


@app.command()
def show(
    what: Annotated[str, typer.Argument(help="recipe, checks, metrics, transforms, bases, methods, personal, or NAME[@VERSION]", show_default=False)],
    recipe: Annotated[Path | None, typer.Argument(help="with `recipe`: the file", show_default=False)] = None,
    overrides: Overrides = None, profile: Profile = None, store: Store = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Print a recipe with every default filled in, a table of choices, or what a version is."""
    if what == "recipe":
        _showload(recipe, overrides, profile)
    elif what in TABLES:
        for name, line in TABLES[what]():
            out.print(f"{name:20} {line}", markup=False, soft_wrap=True)
    else:
        cli_store.show_version(what, store, as_json)


def _showload(recipe: Path | None, overrides: list[str] | None, profile: str | None) -> None:
    from tuner.recipe import recipe_text

    if recipe is None:
        refuse("command line", "show recipe", "no file", "a recipe file", "tuner show recipe recipes/quickstart.yaml")
    sys.stdout.write(recipe_text(load(recipe, overrides, profile)))


def _checks() -> Iterator[tuple[str, str]]:
    from tuner.data.checks import CHECKS

    for name, check_ in CHECKS.items():
        default = check_.default + "".join(f", {task}: {action}" for task, action in check_.by_task.items())
        others = [action for action in check_.actions if action != check_.default]
        yield name, f"{check_.what}  [{default}; or {', '.join(others)}]" if others else f"{check_.what}  [{default}]"


def _metrics() -> Iterator[tuple[str, str]]:
    from tuner.evaluate.metrics import METRICS

    for name, metric in METRICS.items():
        direction = "describes" if metric.neutral else "higher is better" if metric.higher_is_better else "lower is better"
        yield name, f"{metric.what}; {direction}"


def _transforms() -> Iterator[tuple[str, str]]:
    from tuner.evaluate.perturb import TRANSFORMS

    for name, transform in TRANSFORMS.items():
        yield name, transform.what


def _bases() -> Iterator[tuple[str, str]]:
    from tuner.base import BASES

    for name, base in BASES.items():
        yield name, f"{base.note}; {base.requirement}, {base.licence}"


def _methods() -> Iterator[tuple[str, str]]:
    from tuner.train.methods import METHODS

    for name, method in METHODS.items():
        yield name, method.what


def _personal() -> Iterator[tuple[str, str]]:
    from tuner.data.personal import KINDS

    for name, kind in KINDS.items():
        yield name, f"{kind.what}  [{kind.group}]"


TABLES: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "checks": _checks,
    "metrics": _metrics,
    "transforms": _transforms,
    "bases": _bases,
    "methods": _methods,
    "personal": _personal,
}


# --- reading what the user gave ------------------------------------------------------------------------------------


def _input_rows(path: Path | None) -> list[dict[str, Any]]:
    try:
        text = sys.stdin.read() if str(path) == "-" else Path(str(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        refuse(path, "--input", getattr(error, "strerror", None) or "not UTF-8 text", "a readable file of JSON lines", "check the path")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not ("prompt" in row or "messages" in row):
            refuse(f"{path}:{number}", "", visible(line, 60), 'a JSON object with "prompt" or "messages"', f"mend or delete line {number}")
        rows.append(row)
    if not rows:
        refuse(path, "--input", "no questions", "at least one line", "add a line")
    return rows


def _refuse_unwritable(path: Path | None, option: str) -> None:
    """Say so before the work, not after it."""
    if path is not None and (path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK)):
        refuse(path, option, "a place that cannot be written", "a file in a folder this user may write", "make the folder, or choose another place")


def _question_of(row: dict[str, Any], number: int) -> Any:
    question = row.get("messages", row.get("prompt"))
    if isinstance(question, str) and question and (row.get("system") or row.get("tools")):
        question = [{"role": "user", "content": question}]
    if isinstance(question, list) and question and isinstance(question[0], dict):
        if row.get("system") and question[0].get("role") != "system":
            question = [{"role": "system", "content": row["system"]}, *question]
        if row.get("tools"):
            question = [{**question[0], "tools": row["tools"]}, *question[1:]]
    if not isinstance(question, (str, list)) or not question:
        refuse(f"line {number}", "prompt", visible(question, 60), "text, or a list of messages", f"mend line {number}")
    return question


def _run_seeds(path: Path, overrides: list[str], profile: str | None, store: str | None, count: int) -> None:
    """One version a seed; those that are there already are not trained again. Then the mean over seeds and items."""
    from tuner.report.seeds_text import seeds_text
    from tuner.studies.seeds import over, with_seed, write
    from tuner.train.ranks import is_main

    runs = []
    for number in range(count):
        done = _pipeline(with_seed(path, overrides, profile, number), store, reuse=True)
        if done.version is not None:
            say_run(done)
            runs.append(done)
    if is_main():
        found = over(runs)
        out.print(f"\n{seeds_text(found)}\nwritten: {shown_path(write(found, runs[-1]))}", markup=False, soft_wrap=True)
        if found["verdict"] != "better":
            raise typer.Exit(Exit.NOT_BETTER)


# --- running ------------------------------------------------------------------------------------------------------------


def _pipeline(
    recipe: Recipe, store: str | None, grade_after: bool = True, reuse: bool = False, fresh: bool = False, allow_changed: list[str] | None = None
) -> Run:
    from tuner import pipeline
    from tuner.train.ranks import is_main

    _note_single_process()
    how: dict[str, Any] = {"grade_after": grade_after, "reuse": reuse, "restart": pipeline.Restart(fresh, tuple(allow_changed or ()))}
    if not is_main():
        return pipeline.run(recipe, store_folder(store) if store else None, **how)
    with Teller() as teller:
        return pipeline.run(recipe, store_folder(store) if store else None, teller, **how)


def _note_single_process() -> None:
    """`accelerate launch --num_processes N` on a machine without GPUs starts one process unless it is also given --multi_gpu."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        err.print("note: accelerate started one process although several were asked for. On CPUs write `accelerate launch --multi_gpu "
                  "--num_processes N -m tuner …` (its name for torchrun). Going on with one; the result is the same, slower.", markup=False)  # fmt: skip


# --- the way out ---------------------------------------------------------------------------------------------------


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C does, so that staging folders are removed and nothing half-done is published."""

    def terminated(_number: int, _frame: Any) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


AGAIN = ". The same command goes on from the last checkpoint, and asks again only what was not answered yet"
GO_ON = ("run", "train", "evaluate", "curve", "sweep")


def main() -> None:
    """Run the command line and exit with a documented code."""
    # Waiting threads spin briefly, then sleep: beside another busy process libgomp's long spinning made training 3x slower (LOG.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character shows its code
    try:
        with _signals():
            code = app(standalone_mode=False)
        if code == Exit.INTERRUPTED:  # typer turns Ctrl-C into this code
            raise KeyboardInterrupt
    except Refusal as refusal:
        code = _refused(refusal)
    except (KeyboardInterrupt, typer.Abort):
        _say_ended("interrupted")
        code = Exit.INTERRUPTED
    except Terminated:
        _say_ended("terminated")
        code = Exit.TERMINATED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            err.print(f"no space left to write: {error.strerror}. What was published before stays whole.", markup=False)
            code = Exit.REFUSED
        elif hasattr(error, "format_message"):  # click's own usage errors
            err.print(f"{error.format_message()}\ntry `tuner --help`", markup=False, soft_wrap=True)
            code = Exit.REFUSED
        else:
            traceback.print_exc()
            err.print(escape("this is a bug in tuner, not in your data; please report the lines above with `tuner version`"))
            code = Exit.BUG
    sys.exit(int(code or 0))


def _say_ended(how: str) -> None:
    from tuner.train.ranks import is_main

    if is_main():
        again = AGAIN if sys.argv[1:2] and sys.argv[1] in GO_ON else ""
        err.print(f"{how}; nothing half-done was published{again}", markup=False)


def _refused(refusal: Refusal) -> Exit:
    from tuner.train.ranks import is_main

    if is_main():
        for line in str(refusal).split("\n"):
            err.print(visible(line), markup=False, soft_wrap=True)
    return Exit.REFUSED
