"""A version in the form that other programs take: PEFT's own files, merged weights, GGUF, Ollama, vLLM, mlx-lm. Each is asked again before it is kept.

It refuses methods a form cannot hold, a merge into rounded weights, an export that answers otherwise than its tolerance lets through, and to overwrite.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tuner.artifact.adapter import Adapter, load_adapter
from tuner.artifact.engines import VLLM_RANKS
from tuner.artifact.equivalence import Equivalence, Reference, Tolerance, Way, compare, reference_of, refuse_beyond
from tuner.artifact.export_mlx import write_mlx_adapter
from tuner.artifact.export_ollama import Turns, modelfile, turns_of
from tuner.artifact.export_ways import ByLlamaCpp, ByMlx, ByOllama, ByTransformers
from tuner.artifact.gguf import QUANTISED as K_QUANTS
from tuner.artifact.gguf import Weights, quantise_gguf, write_lora_gguf, write_model_gguf
from tuner.artifact.manifest import read_manifest
from tuner.artifact.opening import base_of
from tuner.artifact.parity import Conversation, probes
from tuner.artifact.remote import store_folder
from tuner.artifact.store import Version, add_later, find, version_at
from tuner.artifact.vllm_adapter import unservable_files
from tuner.base import QUANTISED, Base, load_for_merge, load_model, quiet_libraries, widen
from tuner.catalog import choose
from tuner.durable import json_text, seal, staging
from tuner.errors import Collector, refuse
from tuner.fingerprint import digest_file, library_versions
from tuner.template.tokens import TOKENIZER_FILES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPTS = 50  # asked of artifact and export
MAX_NEW_TOKENS = 32
OLLAMA_CONTEXT = 8192  # most that a Modelfile asks Ollama to reserve keys and values for


@dataclass(frozen=True)
class Source:
    """What is exported: a loaded artifact (a writer may merge its model in place), the base's folder, and how it is wanted.

    `weights` is the precision of what is written; `shard` the largest safetensors file (as transformers reads it); `allow` opens refusals.
    """

    adapter: Adapter
    base: Base
    weights: str
    shard: str = "5GB"
    allow: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.adapter.version.folder

    @property
    def file_name(self) -> str:
        return f"{self.adapter.version.name}-{self.adapter.version.number}-{self.weights}.gguf"


@dataclass(frozen=True)
class Place:
    """Where an export is asked again: its folder, a folder for files that only the asking needs, and room for the longest prompt and answer (tokens)."""

    folder: Path
    aside: Path
    context_tokens: int


@dataclass(frozen=True)
class Export:
    """A form of export. `tolerances` by --weights, the first of them the default; `needs` a module without which it cannot be asked again."""

    what: str
    guard: Callable[[Version, Mapping[str, Any]], Collector]
    write: Callable[[Source, Path], dict[str, Any]]
    reopen: Callable[[Source, Place], Way]
    tolerances: Mapping[str, Tolerance]
    needs: str | None = None
    takes_tools: bool = False
    note: str = ""


@dataclass(frozen=True)
class Exported:
    """A finished export, and what asking it again found; None where it was not asked."""

    folder: Path
    target: str
    weights: str
    tolerance: Tolerance
    equivalence: Equivalence | None
    not_checked: str = ""


@dataclass(frozen=True)
class Check:
    """How an export is asked again. Without conversations, the parity probes; `tolerance` in place of the form's own."""

    conversations: Sequence[Conversation] | None = None
    prompts: int = PROMPTS
    max_new_tokens: int = MAX_NEW_TOKENS
    tolerance: Tolerance | None = None
    unchecked: bool = False
    done: Callable[[str, int, int], None] = field(default=lambda what, done, total: None)


def export(
    name: str, target: str, store: str | Path = "adapters", *, base: str | Path | None = None, output: str | Path | None = None, keep: bool = False,
    weights: str | None = None, shard: str = "5GB", allow: Collection[str] = (), check: Check | None = None,
) -> Exported:  # fmt: skip
    """Write version `name` as `target` (a name of EXPORTS) into a new folder: ./exports/NAME-N-TARGET, `output`, or with `keep` beside the version.

    Asked again before it takes its name; beyond the tolerance, or where anything else fails, nothing is left. Raises Refusal.
    """
    row = choose(EXPORTS, target, "command line", "TARGET")
    version = version_at(Path(name)) or find(store_folder(store), name)
    destination = _destination(version, target, output, keep)
    precision = choose({w: w for w in row.tolerances}, weights, "command line", "--weights") if weights else next(iter(row.tolerances))
    check = check or Check()
    manifest = read_manifest(version.folder)
    row.guard(version, manifest).raise_if_any()
    missing = _not_checkable(row, target, check.unchecked)
    adapter = load_adapter(str(version.folder), store, base=base, load=None if manifest["base"]["load"] in QUANTISED else "fp32")
    source = Source(adapter, base_of(manifest, base), precision, shard, tuple(allow))
    return export_as(row, target, source, None if keep else destination, check, missing)


def export_as(row: Export, target: str, source: Source, destination: Path | None, check: Check, missing: str = "") -> Exported:
    """Write, ask again, judge, and only then rename to `destination`, or to a folder beside the version where there is none."""
    tolerance = check.tolerance or row.tolerances[source.weights]
    found: list[Equivalence] = []

    def fill(stage: Path) -> None:
        facts = _facts(source, target)  # before a writer merges its model
        with tempfile.TemporaryDirectory(prefix="tuner-export-") as aside:
            judged = _written(row, target, source, stage, Path(aside), check, tolerance, missing, facts)
        found.extend(judged)

    if destination is None:
        destination = add_later(source.adapter.version, "exports", target, fill)
    else:
        with staging(destination.parent) as stage:
            fill(stage)
            seal(stage, destination)
    return Exported(destination, target, source.weights, tolerance, found[0] if found else None, missing)


def _written(
    row: Export, target: str, source: Source, stage: Path, aside: Path, check: Check, tolerance: Tolerance, missing: str, facts: dict[str, Any]
) -> list[Equivalence]:
    """The export in `stage` with equivalence.json and export.json; what asking it found, or nothing. Raises Refusal beyond the tolerance."""
    reference = None if missing else _reference(row, source, check, aside)
    settings = row.write(source, stage)
    found = None
    if reference is not None:
        place = Place(stage, aside, max(len(s.prompt_ids) for s in reference.said) + check.max_new_tokens + 8)
        found = compare(reference, row.reopen(source, place), lambda n: check.done("asking the export", n, len(reference.said)))
        refuse_beyond(found, tolerance, f"{source.adapter.version.label} as {target}")
    _write(stage / "equivalence.json", _judged(row, source.weights, tolerance, reference, found, missing))
    _write(stage / "export.json", {**facts, "settings": {"weights": source.weights, **settings}, "files": _files(stage)})
    return [found] if found is not None else []


# --- before --------------------------------------------------------------------------------------------------------


def _destination(version: Version, target: str, output: str | Path | None, keep: bool) -> Path:
    if keep and output is not None:
        refuse("command line", "--keep", "--keep and --output", "one of them", "leave one out")
    folder = version.folder / "exports" / target if keep else Path(output or Path("exports") / f"{version.name}-{version.number}-{target}")
    if folder.exists() or folder.is_symlink():
        refuse(folder, "", "something is there already", "a new folder: nothing is overwritten", "remove it yourself, or give --output another one")
    return folder


def _not_checkable(row: Export, target: str, unchecked: bool) -> str:
    """Why the export cannot be asked again, or nothing. Raises Refusal unless that is accepted."""
    if row.needs is None or importlib.util.find_spec(row.needs) is not None:
        return ""
    engine, extra = ENGINE_OF[row.needs]
    if not unchecked:
        refuse("command line", target, f"{engine} is not installed, so the export could not be asked again", f"an installed {engine}, or --unchecked",
               f"pip install 'tuner-lora[{extra}]'")  # fmt: skip
    return f"not checked: {engine} is not installed"


def _reference(row: Export, source: Source, check: Check, aside: Path) -> Reference:
    """The artifact's own answers. Left out: turns that spell control tokens, which only tuner keeps as text, and tools where a form takes none."""
    encoder = source.adapter.encoder
    given = check.conversations if check.conversations is not None else probes(encoder)
    known = [c for c in given if not any(text in m.content for m in c for text in encoder.control_texts)]
    asked = [c for c in known if row.takes_tools or not any(m.tools or m.tool_calls or m.role == "tool" for m in c)][: check.prompts]
    if not asked:
        refuse("command line", "--prompts", f"{len(given)} conversations, none of which can be asked both ways", "at least one plain question", "give others")
    check.done("asking the artifact", 0, len(asked))
    return reference_of(source.adapter, asked, check.max_new_tokens, aside)


# --- after ---------------------------------------------------------------------------------------------------------


def _facts(source: Source, target: str) -> dict[str, Any]:
    """What an export is of, readable without tuner."""
    adapter, manifest = source.adapter, source.adapter.manifest
    return {
        "schema": 1, "target": target, "version": adapter.version.label, "manifest_digest": manifest["digest"],
        "base": {key: manifest["base"][key] for key in ("name", "origin", "revision", "weight_digest", "load")},
        "system": adapter.encoder.template.system, "chat_template_kwargs": adapter.encoder.template.variables, "allowed": [*adapter.allowed, *source.allow],
        "created": datetime.now(UTC).isoformat(timespec="seconds"), "versions": library_versions(),
    }  # fmt: skip


def _judged(row: Export, weights: str, tolerance: Tolerance, reference: Reference | None, found: Equivalence | None, missing: str) -> dict[str, Any]:
    shared = {"schema": 1, "weights": weights, "tolerance": asdict(tolerance), "note": row.note}
    if found is None or reference is None:
        return {**shared, "checked": missing}
    return {**shared, "checked": "asked again", "artifact": reference.precision, "max_new_tokens": reference.max_new_tokens, **found.as_dict()}


def _files(folder: Path) -> dict[str, Any]:
    """Size and digest of every file of an export but export.json."""
    every = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "digest": digest_file(p)} for p in every}


def _write(path: Path, facts: object) -> None:
    path.write_text(json_text(facts), encoding="utf-8")


# --- PEFT's own files ----------------------------------------------------------------------------------------------


def _takes_all(_version: Version, _manifest: Mapping[str, Any]) -> Collector:
    return Collector()


def _write_peft(source: Source, stage: Path) -> dict[str, Any]:
    for name in ("adapter_config.json", "adapter_model.safetensors", *TOKENIZER_FILES):
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, stage / name)
    return {}


def _by_peft(source: Source, place: Place) -> Way:
    """Plain PEFT on the base as the recipe loads it, from the exported folder alone."""
    quiet_libraries()
    base = load_model(source.base, source.adapter.precision)
    if source.adapter.encoder.new_ids:
        widen(base, source.adapter.encoder.vocabulary)
    return ByTransformers.peft(base, place.folder, source.adapter.encoder.template.variables)


# --- merged --------------------------------------------------------------------------------------------------------


def _can_merge(version: Version, manifest: Mapping[str, Any]) -> Collector:
    collector = Collector()
    kind = manifest["method"]["kind"]
    if kind in UNMERGEABLE:
        collector.add(version.label, "method.kind", kind, "a method that changes weights of the base: " + UNMERGEABLE[kind], "export it as peft")
    return collector


def merged_model(source: Source) -> PreTrainedModel:
    """The base in fp32 with the adapter merged into it; the adapter's own model is used up. A quantised base counts as the weights it rounds to."""
    from peft import PeftModel

    from tuner.quantise import guard_merge

    adapter = source.adapter
    model = adapter.decoder.model
    if adapter.precision.quantised:
        grown = load_for_merge(source.base, adapter.precision)
        if adapter.encoder.new_ids:
            widen(grown, adapter.encoder.vocabulary)
        model = PeftModel.from_pretrained(grown, str(source.folder), local_files_only=True)
    guard_merge(model, adapter.version.label)
    merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    return merged


def _write_merged(source: Source, stage: Path) -> dict[str, Any]:
    import torch

    model = merged_model(source)
    kind = _stored_dtype(source.base) if source.weights == "stored" else DTYPES[source.weights]
    model.to(getattr(torch, kind))
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        refuse(source.adapter.version.label, "--weights", f"numbers that {kind} cannot hold", "finite weights", "export bf16 or f32")
    model.save_pretrained(stage, max_shard_size=source.shard)
    for name in TOKENIZER_FILES:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, stage / name)
    _write(stage / "generation_config.json", _generation_config(source))
    return {"dtype": kind, "max_shard_size": source.shard}


def _stored_dtype(base: Base) -> str:
    """The precision the base's weights lie in, float32 where its config does not say one of ours."""
    said = str(base.config.get("dtype") or base.config.get("torch_dtype")).removeprefix("torch.")
    return said if said in DTYPES.values() else "float32"


def _generation_config(source: Source) -> dict[str, Any]:
    """Greedy, and ended by every token that ends the artifact's answers."""
    encoder = source.adapter.encoder
    own = {"bos_token_id": encoder.begin_id} if encoder.begin_id is not None else {}
    return {**own, "do_sample": False, "eos_token_id": sorted(encoder.stop_ids), "pad_token_id": encoder.pad_id}


def _by_transformers(source: Source, place: Place) -> Way:
    return ByTransformers.merged(place.folder, source.adapter.encoder.template.variables)


# --- GGUF ----------------------------------------------------------------------------------------------------------


def _write_gguf(source: Source, stage: Path) -> dict[str, Any]:
    """Merged in fp32, written from there: what is rounded is rounded once. Files that the conversion alone needs lie beside, then go."""
    with staging(stage) as aside:
        _write_merged(Source(source.adapter, source.base, "f32"), aside / "merged")
        if source.weights in K_QUANTS:
            write_model_gguf(aside / "merged", aside / "f32.gguf", "f32")
            quantise_gguf(aside / "f32.gguf", stage / source.file_name, source.weights)
        else:
            write_model_gguf(aside / "merged", stage / source.file_name, cast("Weights", source.weights))
    return {"file": source.file_name}


def _by_llama_cpp(source: Source, place: Place) -> Way:
    return ByLlamaCpp(place.folder / source.file_name, None, place.context_tokens)


def _write_gguf_lora(source: Source, stage: Path) -> dict[str, Any]:
    write_lora_gguf(source.folder, source.base.folder, stage / "adapter.gguf", cast("Any", source.weights))
    return {"file": "adapter.gguf", "serve": "llama-server -m BASE.gguf --lora adapter.gguf"}


def _by_llama_cpp_with_lora(source: Source, place: Place) -> Way:
    """On the base as its folder holds it, in f32: what a user's own base file rounds is not the adapter's doing."""
    write_model_gguf(source.base.folder, place.aside / "base.gguf", "f32")
    return ByLlamaCpp(place.aside / "base.gguf", place.folder / "adapter.gguf", place.context_tokens)


# --- Ollama --------------------------------------------------------------------------------------------------------


def _write_ollama(source: Source, stage: Path) -> dict[str, Any]:
    """A merged model: Ollama takes no LoRA files since 0.34.1 (server/create.go, errAdaptersUnsupported)."""
    encoder = source.adapter.encoder
    turns = _ollama_turns(source)
    context = min(source.base.context_tokens or OLLAMA_CONTEXT, OLLAMA_CONTEXT)
    stops = [str(encoder.tokenizer.id_to_token(i)) for i in sorted(encoder.stop_ids)]
    text = modelfile(source.file_name, turns, encoder.template.system, stops, context)
    settings = _write_gguf(source, stage)
    (stage / "Modelfile").write_text(text, encoding="utf-8")
    return {**settings, "create": f"ollama create {source.adapter.version.name} -f Modelfile", "context_tokens": context}


def _ollama_turns(source: Source) -> Turns:
    """The template's turns; a beginning that the model file has llama.cpp write by itself is left out."""
    encoder = source.adapter.encoder
    turns = turns_of(encoder.template, source.adapter.version.label, source.allow)
    begins = encoder.tokenizer.encode("a").ids[:1] == [encoder.begin_id] != encoder.tokenizer.encode("a", add_special_tokens=False).ids[:1]
    begin = encoder.template.special_tokens.get("bos_token", "") if begins else ""
    return Turns({role: text.removeprefix(begin) for role, text in turns.before.items()}, turns.between, turns.after)


def _by_ollama(source: Source, place: Place) -> Way:
    return ByOllama(place.folder / source.file_name, _ollama_turns(source), place.context_tokens)


# --- vLLM ----------------------------------------------------------------------------------------------------------


def _vllm_serves(version: Version, manifest: Mapping[str, Any]) -> Collector:
    collector = unservable_files(version.folder, version.label)
    load, tokens = manifest["base"]["load"], manifest["template"]["spec"].get("new_tokens")
    if load in QUANTISED:
        collector.add(version.label, "base.load", load, "weights in 16 bits: vLLM rounds a quantised base otherwise", "export it as merged, and serve that")
    if tokens:
        collector.add(version.label, "template.new_tokens", f"{len(tokens)} trained tokens", "the base's own vocabulary", "export it as merged, and serve that")
    return collector


def _write_vllm(source: Source, stage: Path) -> dict[str, Any]:
    settings = _write_peft(source, stage)
    command = vllm_command(source)
    (stage / "serve.sh").write_text(f"#!/bin/sh\n# run in this folder; {BASE_FOLDER} is the base's\n{command}\n", encoding="utf-8")
    return {**settings, "serve": command}


def vllm_command(source: Source) -> str:
    """The command line that serves the exported folder from within it."""
    rank = json.loads((source.folder / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    base, hub = source.base, source.base.origin.startswith("hub ")
    words = ["vllm", "serve", base.name if hub else BASE_FOLDER, *(["--revision", str(base.revision)] if hub else [])]
    words += ["--tokenizer", ".", "--chat-template", "chat_template.jinja", "--dtype", "bfloat16", "--generation-config", "vllm"]
    variables = source.adapter.encoder.template.variables
    words += ["--default-chat-template-kwargs", json.dumps(variables)] if variables else []
    return shlex.join([*words, "--enable-lora", "--max-lora-rank", str(next(r for r in VLLM_RANKS if r >= rank)),
                       "--lora-modules", f"{source.adapter.version.name}=."])  # fmt: skip


# --- mlx-lm --------------------------------------------------------------------------------------------------------


def _write_mlx(source: Source, stage: Path) -> dict[str, Any]:
    config = write_mlx_adapter(source.folder, source.base.config["num_hidden_layers"], stage)
    for name in TOKENIZER_FILES:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, stage / name)
    said = {"base_config": mlx_rope(source.base.config)} if "rope_theta" not in source.base.config else {}
    return {"lora_parameters": config["lora_parameters"], "serve": f"mlx_lm.server --model {BASE_FOLDER} --adapter-path .", **said}


def mlx_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The position settings where mlx-lm 0.32 looks for them: it takes 10,000 for rope_theta where only transformers 5's rope_parameters say otherwise."""
    rope = dict(config.get("rope_parameters") or {})
    theta = {"rope_theta": rope.pop("rope_theta")} if "rope_theta" in rope else {}
    return {**theta, **({"rope_scaling": rope} if rope.get("rope_type", "default") != "default" else {})}


def _by_mlx(source: Source, place: Place) -> Way:
    """On the base's own files, with config.json as mlx-lm reads it."""
    base = place.aside / "base"
    base.mkdir()
    for file in source.base.folder.iterdir():
        if file.name != "config.json":
            (base / file.name).symlink_to(file)
    _write(base / "config.json", {**source.base.config, **mlx_rope(source.base.config)})
    return ByMlx(base, place.folder, source.adapter.encoder.template.variables)


# --- the table -----------------------------------------------------------------------------------------------------

BASE_FOLDER = "BASE_FOLDER"
DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_TOKENS = "it trains tokens before every prompt"
UNMERGEABLE = {
    "prompt": _TOKENS, "p_tuning": _TOKENS, "prefix": _TOKENS,
    "loftq": "it corrects the error of a 4-bit base, which weights in 16 or 32 bits do not have",
}  # fmt: skip
ENGINE_OF = {"llama_cpp": ("llama.cpp", "llama-cpp"), "mlx_lm": ("mlx-lm", "mlx")}

# KL(artifact ‖ export) in nats, mean and largest, that is let through. Measured with the quickstart's adapter on SmolLM2-135M (2026-11-20), the greater of
# held_out and the 16 parity probes, which are off its task; larger models show less. Merged in f32 3e-12 and 6e-11 (the same sums in another order);
# llama.cpp with keys and values in f16 5e-7 and 1e-5; weights in f16 5e-6 and 2e-4, bf16 4e-5 and 6e-4; q8_0 and q6_k 3e-3 and 0.05: ten times that or more.
# q5_k_m 0.09 and 1.9, q4_k_m 0.03 and 0.5, q3_k_m 0.08 and 1.4, q2_k 0.16 and 2.1: more would be another model, so these have less room.
EXACT = Tolerance(1e-9, 1e-6)
CACHE = Tolerance(1e-5, 1e-3)
HALF = Tolerance(1e-4, 5e-3)
ROUGH_HALF = Tolerance(1e-3, 2e-2)
EIGHT = Tolerance(2e-2, 0.5)
GGUF = {"f16": HALF, "f32": CACHE, "q8_0": EIGHT, **dict.fromkeys(K_QUANTS, Tolerance(0.2, 5.0)), "q6_k": EIGHT}
EXPORTS: dict[str, Export] = {
    "peft": Export("exactly PEFT's files and the tokenizer", _takes_all, _write_peft, _by_peft, {"stored": EXACT}, takes_tools=True),
    "merged": Export("the base with the adapter in it, as transformers loads it", _can_merge, _write_merged, _by_transformers,
                     {"stored": EXACT, "f32": EXACT, "bf16": ROUGH_HALF, "f16": HALF}, takes_tools=True),
    "gguf-lora": Export("a LoRA file for llama.cpp, beside a base in GGUF", _takes_all, _write_gguf_lora, _by_llama_cpp_with_lora,
                        {"f32": CACHE, "f16": CACHE}, "llama_cpp"),
    "gguf": Export("the base with the adapter in it, for llama.cpp", _can_merge, _write_gguf, _by_llama_cpp, GGUF, "llama_cpp"),
    "ollama": Export("a GGUF model and a Modelfile", _can_merge, _write_ollama, _by_ollama, GGUF, "llama_cpp",
                     note="Ollama itself was not run: llama.cpp was asked with the prompts that the Modelfile's TEMPLATE makes"),
    "vllm": Export("the folder vLLM's --lora-modules takes, and the command", _vllm_serves, _write_vllm, _by_peft, {"stored": EXACT}, takes_tools=True,
                   note="vLLM itself was not run: the folder was asked by plain PEFT"),
    "mlx": Export("an adapter folder of mlx-lm's", _takes_all, _write_mlx, _by_mlx, {"stored": EXACT}, "mlx_lm"),
}  # fmt: skip
