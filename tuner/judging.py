"""Judging a published version: every suite asked, the gate held against what was found, and the report written beside the version.

It knows no training. It refuses what the rooms refuse; what was answered before is remembered in the store and not asked again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tuner.artifact.looks import look
from tuner.artifact.records import records_hashes
from tuner.artifact.remote import beside
from tuner.artifact.store import Version, add_evaluation, evaluations, read_scores, versions
from tuner.artifact.vllm_adapter import fastest
from tuner.data.canaries import Canary, canaries
from tuner.data.spec import CanarySpec
from tuner.data.splits import Splits
from tuner.durable import json_text
from tuner.errors import Problem, Refusal, refuse
from tuner.evaluate.evidence import Graded, Material, evidence, metric_names
from tuner.evaluate.forgetting import bought
from tuner.evaluate.gate import judge
from tuner.evaluate.judge import open_judge
from tuner.evaluate.lm_eval import SMALL_TAKE, lm_eval_tasks, refuse_missing
from tuner.evaluate.lm_eval import SUITE as HARNESS
from tuner.evaluate.metrics import METRICS, catalogue
from tuner.evaluate.perturb import SEVERITIES, TRANSFORMS
from tuner.evaluate.remembered import Remembered
from tuner.evaluate.result import Result
from tuner.evaluate.spec import KINDS
from tuner.evaluate.suites import build_suites
from tuner.evaluate.transforms import families_of
from tuner.fingerprint import digest_json, hardware
from tuner.recipe import Recipe, load_recipe
from tuner.report.write import write_report

if TYPE_CHECKING:
    from tuner.artifact.adapter import Adapter

WEIGHTS = "adapter_model.safetensors"
TRAINED = ("train", "rehearsal")  # the splits of records.parquet that were fitted


class Listener(Protocol):
    """Who is told how far the judging is."""

    def stage(self, name: str, say: str) -> None: ...
    def grading(self, what: str, done: int, total: int) -> None: ...


def answers_of(store: Path) -> Path:
    """Where a store keeps what models answered, so that an equal question is not asked again. May be deleted at any time."""
    return store.resolve() / ".answers"


def judged(recipe: Recipe, adapter: Adapter, splits: Splits, version: Version, listener: Listener) -> tuple[Path, dict[str, Any]]:
    """Ask every suite of the recipe, add scores and answers beside the version in one step, write the report; gives the folder and the scores."""
    store = version.folder.parent.parent
    refuse_trained(version, adapter.manifest, splits)
    asked = fastest(adapter)
    model = Remembered.of(asked, answers_of(store), recipe.evaluate.batch)
    graded = evidence(model, _material(recipe, adapter, splits, version), recipe.evaluate, listener.grading)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    facts: dict[str, Any] = {
        "version": version.label, "created": created, "precision": str(asked.precision), "allowed": list(adapter.allowed), "recipe_digest": recipe.digest,
        "looks": _look(store, splits, version, adapter.manifest, created),
    }  # fmt: skip
    if recipe.data.rehearsal is not None and "forgetting" in graded.scores["suites"]:
        facts["rehearsal"] = _bought(recipe, version, graded)
    scores, broken_rule = _gated({**graded.scores, **facts}, recipe)
    listener.stage("report", "writing the report")
    evaluation = _kept(version, scores, graded)
    if broken_rule is not None:
        raise broken_rule
    return evaluation, scores


def _material(recipe: Recipe, adapter: Adapter, splits: Splits, version: Version) -> Material:
    return Material(
        suites=build_suites(splits, recipe.evaluate.take, recipe.seed, recipe.evaluate.options,
                            recipe.evaluate.group_by or recipe.data.cut.group_by),
        train=splits["train"], held_out=splits["held_out"], validation=splits["validation"],
        task=recipe.data.task, seed=recipe.seed, adapter_bytes=(version.folder / WEIGHTS).stat().st_size, machine=_machine(adapter),
        system=recipe.template.system, trained_on=_is_trained_on(splits, adapter.manifest), canaries=_planted(adapter.manifest), folder=recipe.path.parent,
        harness=_harness(recipe, adapter),
    )  # fmt: skip


def refuse_trained(version: Version, manifest: Mapping[str, Any], splits: Splits) -> None:
    """Raises Refusal where a record of held_out or ood is one that this version was trained on: a number made of it would be no evidence."""
    trained = records_hashes(version.folder / "records.parquet", TRAINED)
    problems = []
    for split in splits.suites:
        if splits.digest(split) == manifest["data"]["splits"].get(split, {}).get("digest"):
            continue  # as it was at training, where the recipe's checks decided about what is in both
        known = [record for record in splits[split] if record.hash in trained]
        if known:
            problems.append(Problem(known[0].where, split, f"{len(known)} of {len(splits[split])} records that {version.label} was trained on",
                                    "records that it has not seen", "grade it on the splits it was trained with (same data, same seed)"))  # fmt: skip
    if problems:
        raise Refusal(problems)


def _is_trained_on(splits: Splits, manifest: Mapping[str, Any]) -> bool:
    """Is train what the version was trained on, by digest?"""
    return bool(manifest["data"]["splits"]["train"]["digest"] == splits.digest("train"))


def _planted(manifest: Mapping[str, Any]) -> Sequence[Canary]:
    """The canaries that this version was trained on, whatever the recipe says now."""
    found = manifest["data"].get("canaries")
    return canaries(CanarySpec.model_validate({k: v for k, v in found.items() if k != "seed"}), found["seed"]) if found else ()


def _harness(recipe: Recipe, adapter: Adapter) -> Callable[[], Result] | None:
    """lm-evaluation-harness over the loaded model, where the recipe names tasks of it."""
    spec = recipe.evaluate
    asked = spec.forgetting
    if not asked.tasks:
        return None
    folder = None if asked.tasks_folder is None else recipe.path.parent / asked.tasks_folder
    take = asked.tasks_take or (SMALL_TAKE if spec.profile == "small" else None)
    return lambda: lm_eval_tasks(adapter.decoder.model, adapter.version.folder, asked.tasks, folder, take, spec.batch, spec.resamples, recipe.seed)


def _machine(adapter: Adapter) -> dict[str, Any]:
    """Where times are taken: the processor, and the device where it is another."""
    device = adapter.precision.device
    if device.startswith("cuda"):
        import torch

        return {**hardware(), "gpu": torch.cuda.get_device_name(device)}
    return hardware()


def _look(store: Path, splits: Splits, version: Version, manifest: Mapping[str, Any], created: str) -> dict[str, Any] | None:
    """held_out was read again: noted in the store, by the digest of its records."""
    if not splits["held_out"]:
        return None
    digest = digest_json(sorted(record.hash for record in splits["held_out"]))  # whatever their order
    return look(store, digest, version.label, manifest["digest"], created)


# --- what rehearsal bought -----------------------------------------------------------------------------------------

_TRAINING = ("seed", "base", "data", "template", "method", "train")  # the sections that decide an adapter


def _bought(recipe: Recipe, version: Version, graded: Graded) -> dict[str, Any]:
    """Forgetting beside that of the version that differs in data.rehearsal alone; where there is none, how to make it."""
    twin = _twin(recipe, version)
    if twin is None:
        how = f"tuner run {recipe.path.name} data.rehearsal=null"
        return {"words": f"what the general records bought was not measured: no version of {version.name} differs in data.rehearsal alone ({how})"}
    other, folder = twin
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").split("\n") if '"suite": "forgetting"' in line]
    found = bought([r for r in graded.answers if r["suite"] == "forgetting"], rows, recipe.evaluate.resamples, recipe.seed)
    text = found["differences"].get("text_loss")
    said = "" if text is None else f"; neutral text costs {text['value']:+.3f} [{text['low']:+.3f}, {text['high']:+.3f}] nats a token more than without them"
    return {
        **found,
        "without": other.label,
        "words": f"general records against {other.label}, which had none: {found['verdict']} on {found['items']} items{said}",
    }


def _twin(recipe: Recipe, version: Version) -> tuple[Version, Path] | None:
    """The newest version of the same name that was trained by the same choices without general records, and its newest evaluation of forgetting."""
    wanted = _choices(recipe)
    for other, manifest in reversed(versions(version.folder.parent.parent)):
        if other.name != version.name or manifest is None or "rehearsal" in manifest["data"]["splits"]:
            continue
        try:
            same = _choices(load_recipe(other.folder / "resolved.yaml")) == wanted
        except Refusal:  # written by a version with other keys: no twin
            continue
        if not same:
            continue
        for folder in evaluations(other):
            with contextlib.suppress(Refusal):  # a broken evaluation of another version ends no run
                if "forgetting" in read_scores(folder)["suites"]:
                    return other, folder
    return None


def _choices(recipe: Recipe) -> dict[str, Any]:
    """What decides an adapter, general records left out."""
    whole = recipe.model_dump(mode="json", include=set(_TRAINING))
    return {**whole, "data": {k: v for k, v in whole["data"].items() if k != "rehearsal"}}


# --- the gate, and what is kept ------------------------------------------------------------------------------------


def _gated(scores: dict[str, Any], recipe: Recipe) -> tuple[dict[str, Any], Refusal | None]:
    """The scores with the gate's ruling. A rule that names what is not there costs no answer: it is refused once everything is written."""
    try:
        return {**scores, "gate": judge(scores, recipe.gate.rules, recipe.at("gate", "rules")).as_dict()}, None
    except Refusal as refusal:
        return {**scores, "gate": None}, refusal


def _kept(version: Version, scores: dict[str, Any], graded: Graded) -> Path:
    def fill(stage: Path) -> None:
        (stage / "scores.json").write_text(json_text(scores), encoding="utf-8")
        (stage / "answers.jsonl").write_text("".join(_line(row) for row in graded.answers), encoding="utf-8")
        write_report(version.folder, stage)  # should it fail, no answer is lost: they are remembered

    return add_evaluation(version, f"{scores['created'][:10]}-{digest_json(scores)[7:13]}", fill)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, sort_keys=True, default=str) + "\n"


# --- before the work -----------------------------------------------------------------------------------------------


def refuse_wrong_choices(recipe: Recipe) -> None:
    """Raises Refusal with every metric and gate rule of the recipe that names what cannot be there: before the training, not after it."""
    spec, folder = recipe.evaluate, recipe.path.parent
    names, _ = metric_names(spec, recipe.data.task, recipe.at("evaluate", "metrics"))
    catalogue(spec.options, folder, names, recipe.at("evaluate", "options"))
    families_of(spec.transforms)
    refuse_missing(spec.forgetting.tasks, recipe.at("evaluate", "forgetting", "tasks"))
    if spec.judge is not None:
        open_judge(spec.judge, folder, recipe.at("evaluate", "judge"))
    problems = [*_taken_names(recipe), *_wrong_rules(recipe, names)]
    if problems:
        raise Refusal(problems)


_CHANGED = frozenset(f"{family}.{severity}" for family in TRANSFORMS for severity in SEVERITIES)
_MADE = frozenset({*KINDS, HARNESS, "judge"} - {"held_out", "ood", "transforms"})  # suites that no file gives


def _taken_names(recipe: Recipe) -> Iterator[Problem]:
    """A suite of the user's under the name of another would take its place in every table."""
    for name in recipe.data.ood:
        if name in _MADE | _CHANGED | {"held_out"}:
            yield Problem(recipe.at("data", "ood", name), f"data.ood.{name}", repr(name), "a name that no other suite has", f"write {name}_cases")


def _wrong_rules(recipe: Recipe, names: Sequence[str]) -> Iterator[Problem]:
    """Rules about suites that this recipe cannot have, and about metrics that its own suites are not graded by."""
    own = {*recipe.data.ood, *(["held_out"] if recipe.data.held_out is not None or recipe.data.cut.held_out > 0 else [])}
    known = own | _MADE - {"judge"}
    for index, rule in enumerate(recipe.gate.rules or ()):
        at, field = recipe.at("gate", "rules", index), f"gate.rules[{index}]"
        graded = [n for n in names if rule.of in ("value", "count") or not METRICS[n].neutral]
        if rule.suite not in known | _CHANGED:
            yield Problem(at, f"{field}.suite", repr(rule.suite), "one of: " + ", ".join(sorted(known)) + ", or a transform such as casual.2",
                          "write a suite that this recipe runs")  # fmt: skip
        elif rule.suite in own and rule.metric not in graded:
            yield Problem(at, f"{field}.metric", repr(rule.metric), "one of: " + ", ".join(graded), "add it to evaluate.metrics")


# --- a version's own recipe ----------------------------------------------------------------------------------------


def recipe_place(recipe: Recipe, store: Path) -> str | None:
    """Where the recipe lies as seen from the store's parent; None where it lies outside: no path of a machine goes into an artifact."""
    home = beside(store).resolve().parent
    return recipe.path.relative_to(home).as_posix() if recipe.path.is_relative_to(home) else None


def recipe_of(version: Version, manifest: Mapping[str, Any]) -> Path:
    """The recipe file that a version was trained by, where it still lies. Raises Refusal where its place is not known or empty."""
    place: str | None = manifest.get("recipe_file")
    path = None if place is None else beside(version.folder.parent.parent).resolve().parent / place
    if path is None or not path.is_file():
        refuse(version.label, "RECIPE", "no recipe file where it was at training" if place else "a recipe whose place was not kept", "the recipe to grade by",
               f"tuner evaluate {version.label} RECIPE.yaml")  # fmt: skip
    return path
