"""The command that turns a version into what other programs take: export.

It refuses what the rooms refuse; an export beyond its tolerance leaves nothing behind.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli_words import AsJson, BaseFolder, Name, Store, store_folder
from tuner.errors import Refusal, refuse
from tuner.safe_text import quoted, visible
from tuner.telling import Teller, err, out, shown_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.artifact.export import Exported
    from tuner.artifact.parity import Conversation
    from tuner.artifact.store import Version

HELD_OUT = 50  # prompts asked unless --prompts says otherwise
MAX_PROMPTS_BYTES = 64 * 1024 * 1024


def export(
    name: Name,
    target: Annotated[str, typer.Argument(help="peft, merged, gguf, gguf-lora, ollama, vllm or mlx", show_default=False)],
    output: Annotated[Path | None, typer.Option(help="new folder; default: ./exports/NAME-N-TARGET")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="put it beside the version, under its exports/")] = False,
    weights: Annotated[str | None, typer.Option(help="f32, bf16, f16, q8_0, q6_k, q5_k_m, q4_k_m …: as the target takes them; default: its first")] = None,
    tolerance: Annotated[str | None, typer.Option(help="most KL(artifact ‖ export) in nats: MEAN or MEAN,LARGEST; default: the target's own")] = None,
    prompts: Annotated[str | None, typer.Option(metavar="FILE|N", help="what both are asked: JSON lines, or how many of held_out (50)")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer compared (tokens)")] = 32,
    shard: Annotated[str, typer.Option(help="largest safetensors file of merged weights: 5GB, 500MB …")] = "5GB",
    unchecked: Annotated[bool, typer.Option("--unchecked", help="write it also where the engine to ask it again is not installed")] = False,
    allow: Annotated[list[str] | None, typer.Option(help="open a refusal: trim (ollama: a template that trims turns); repeatable; recorded")] = None,
    store: Store = None, base: BaseFolder = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Write a version for another program, ask it again as its users will, and keep it only if it answers as the artifact does."""
    from tuner.artifact.equivalence import tolerance_of
    from tuner.artifact.export import Check
    from tuner.artifact.export import export as exported
    from tuner.artifact.store import find, version_at

    limit = tolerance_of(tolerance) if tolerance is not None else None
    version = version_at(Path(name)) or find(store_folder(store or "adapters"), name)
    asked, source = _conversations(version, prompts)
    with Teller() as teller:
        teller.stage("export", f"{version.label} as {target}")
        check = Check(asked, len(asked) if asked else HELD_OUT, max_new_tokens, limit, unchecked, teller.grading)
        done = exported(name, target, store or "adapters", base=base, output=output, keep=keep, weights=weights, shard=shard, allow=allow or (), check=check)
    if as_json:
        sys.stdout.write((done.folder / "equivalence.json").read_text(encoding="utf-8"))
    else:
        _say(done, source)


def _say(done: Exported, source: str) -> None:
    """What was written, how far it is from the artifact, and how it is served."""
    found = done.equivalence
    if found is None:
        err.print(f"{done.not_checked}: whether it answers as the artifact does is not known", markup=False, soft_wrap=True)
    else:
        out.print(f"{found.answers_identical} of {found.prompts} greedy answers identical, prompts from {source}, asked by {found.engine}", markup=False,
                  soft_wrap=True)  # fmt: skip
        out.print(f"KL(artifact ‖ export) {found.mean_kl:.2g} nats in the mean, {found.largest_kl:.2g} at worst of {found.positions} positions (tolerance "
                  f"{done.tolerance.mean_kl:g}, {done.tolerance.largest_kl:g}); logits differ by {found.mean_logit_difference:.2g}, at most "
                  f"{found.largest_logit_difference:.2g}", markup=False, soft_wrap=True)  # fmt: skip
    settings = json.loads((done.folder / "export.json").read_text(encoding="utf-8"))["settings"]
    for key in ("create", "serve"):
        if key in settings:
            out.print(f"in that folder: {visible(settings[key])}", markup=False, soft_wrap=True)
    out.print(f"written: {shown_path(done.folder)}, with export.json and equivalence.json", markup=False, soft_wrap=True)


# --- what both are asked -------------------------------------------------------------------------------------------


def _conversations(version: Version, wanted: str | None) -> tuple[Sequence[Conversation] | None, str]:
    """Questions and where they are from. None: the parity probes, where the data of held_out no longer lie or were changed."""
    if wanted is not None and not wanted.isdecimal():
        return _of_file(Path(wanted)), Path(wanted).name
    count = int(wanted) if wanted is not None else HELD_OUT
    if count == 0:
        refuse("command line", "--prompts", wanted, "a file, or a number above zero", "an export is asked at least one question")
    try:
        found = _held_out(version)
    except Refusal:
        found = []
    return (found[:count], "held_out") if found else (None, "the parity probes (held_out is not where it was)")


def _held_out(version: Version) -> list[Conversation]:
    """The prompts of held_out as the version was trained beside them; none where its files or its digest are not the same."""
    from tuner.artifact.manifest import read_manifest
    from tuner.data.splits import read_splits
    from tuner.judging import recipe_of
    from tuner.recipe import load_recipe

    manifest = read_manifest(version.folder)
    recipe = load_recipe(recipe_of(version, manifest), [], None)
    splits = read_splits(recipe.data, recipe.path.parent, recipe.seed)
    known = manifest["data"]["splits"].get("held_out", {}).get("digest")
    return [r.prompt for r in splits["held_out"]] if "held_out" in splits.records and splits.digest("held_out") == known else []


def _of_file(path: Path) -> list[Conversation]:
    from tuner.artifact.adapter import as_messages

    try:
        if path.stat().st_size > MAX_PROMPTS_BYTES:
            refuse(path, "--prompts", f"{path.stat().st_size:,} bytes", f"at most {MAX_PROMPTS_BYTES:,}", "ask fewer questions")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        refuse(path, "--prompts", f"unreadable: {quoted(error, 80)}", 'JSON lines: {"prompt": …} or {"messages": […]}', "mend the file")
    return [tuple(as_messages(_question(path, number, line))) for number, line in enumerate(lines, start=1) if line.strip()]


def _question(path: Path, number: int, line: str) -> Any:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    question = (row.get("messages") or row.get("prompt")) if isinstance(row, dict) else None
    if not isinstance(question, (str, list)):
        refuse(f"{path}:{number}", "", quoted(line, 60), '{"prompt": …} or {"messages": […]}', "mend the line")
    return question


COMMANDS = (export,)
