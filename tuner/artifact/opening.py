"""Opening a version: everything that must hold before its weights are asked, for the first on a base and for those that join it.

It refuses bytes that changed, another base, tokenizer or template than it was trained with, and a newcomer that would not be what it is when loaded alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tuner.artifact.host import FIRST, WEIGHTS, Host, Loading, Seat, check_weights
from tuner.artifact.manifest import verify
from tuner.artifact.store import Version, find, version_at
from tuner.base import Base, BaseSpec, Precision, load_for_merge, load_model, pick_device, quiet_libraries, resolve_base, serving_precision, widen
from tuner.catalog import choose
from tuner.errors import Problem, Refusal, refuse
from tuner.safe_text import quoted
from tuner.template.spec import TemplateSpec
from tuner.template.tokens import TOKENIZER_FILES, Encoder, open_encoder

if TYPE_CHECKING:
    from tuner.artifact.untrusted import Payload

ALLOWED = ("base", "tokenizer", "template")


Known = tuple[dict[str, Any], Encoder]  # a manifest, and the encoder that was read from its files


@dataclass(frozen=True, slots=True)
class Opened:
    """A version whose files are as they were published, and hold nothing but an adapter.

    `allowed`: what differs from the training and was let through. `payload`: what was found in its files.
    """

    version: Version
    manifest: dict[str, Any]
    payload: Payload
    encoder: Encoder
    allowed: tuple[str, ...]


def verified(name: str, store: str | Path) -> tuple[Version, dict[str, Any]]:
    """The version that NAME, NAME@N, NAME@ALIAS or a version's folder names, and its manifest, every digest of which holds. Raises Refusal."""
    from tuner.artifact.remote import store_folder
    from tuner.artifact.untrusted import refuse_elsewhere, refuse_odd_manifest

    at = version_at(Path(name))
    version = at or find(store_folder(store), name)
    manifest = verify(version.folder)
    refuse_odd_manifest(version.folder, manifest)
    if at is None:
        refuse_elsewhere(version.name, version.number, manifest, version.folder)
    return version, manifest


def opened(version: Version, manifest: dict[str, Any], base: Base, allow: Collection[str], known: Known | None = None) -> Opened:
    """The version's encoder, after base, tokenizer and template were compared with the manifest. Raises Refusal with all that differs.

    A tokenizer takes longer to read than an adapter: where `known` is of the same files, by their digests, its encoder is taken.
    """
    from tuner.artifact.untrusted import refuse_unsafe

    for word in allow:
        choose({name: name for name in ALLOWED}, word, "load_adapter", "allow")
    payload = refuse_unsafe(version.folder, manifest)
    spec = TemplateSpec.model_validate(manifest["template"]["spec"] | {"format": "tokenizer"})
    is_known = known is not None and known[1].spec == spec and _tokenizer_of(known[0]) == _tokenizer_of(manifest)
    encoder = known[1] if known is not None and is_known else open_encoder(version.folder, spec, version.label)
    differences = _differences(manifest, base, encoder)
    refused = [problem for name, problem in differences.items() if name not in allow]
    if refused:
        raise Refusal(replace(problem, where=version.label) for problem in refused)
    return Opened(version, manifest, payload, encoder, tuple(differences))


def _tokenizer_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return {name: facts["digest"] for name, facts in manifest["files"].items() if name in (*TOKENIZER_FILES, "generation_config.json")}


def _differences(manifest: dict[str, Any], base: Base, encoder: Encoder) -> dict[str, Problem]:
    """What is not as it was when the adapter was trained, by name."""
    wanted, template = manifest["base"], manifest["template"]
    found: dict[str, Problem] = {}
    tokenizer = _tokenizer_digest(encoder)
    if base.weight_digest != wanted["weight_digest"]:
        ours, theirs = base.weight_digest[:19], wanted["weight_digest"][:19]
        found["base"] = Problem("", "base", f"{base.name} with weights {ours}…", f"{wanted['name']} with weights {theirs}…",
                                "load it on the base it was trained on")  # fmt: skip
    if tokenizer != template["tokenizer_digest"]:
        found["tokenizer"] = Problem("", "tokenizer", f"tokenizer {tokenizer[:19]}…", f"tokenizer {template['tokenizer_digest'][:19]}…",
                                     "restore tokenizer.json from a copy of the version")  # fmt: skip
    if encoder.template.digest != template["digest"]:
        found["template"] = Problem("", "template", f"template {encoder.template.digest[:19]}…", f"template {template['digest'][:19]}…",
                                    "restore chat_template.jinja and tokenizer_config.json from a copy of the version")  # fmt: skip
    return found


@lru_cache(maxsize=8)
def _tokenizer_digest(encoder: Encoder) -> str:
    """Kept: it takes as long as all the files of an adapter."""
    return encoder.tokenizer_digest


def base_of(manifest: dict[str, Any], given: str | Path | None) -> Base:
    """The base a version was trained on. `given` is its folder where it was a local one."""
    facts = manifest["base"]
    if given is None and facts["origin"].startswith(("local folder", "GGUF file")):
        refuse(f"{manifest['name']}@{manifest['version']}", "base", f"trained on a {facts['origin']}, {quoted(facts['name'])}, whose place is not stored",
               "that folder or file", "give base=FOLDER (on the command line --base FOLDER)")  # fmt: skip
    closed = {"online": False, "trust_remote_code": False}  # an artifact is data: it opens neither the network nor code
    spec = BaseSpec.model_validate(json.loads(json.dumps(facts["spec"])) | closed | ({"model": str(given)} if given is not None else {}))
    return resolve_base(spec, Path.cwd(), "base")


# --- on a base of its own ------------------------------------------------------------------------------------------


def host_for(version: Opened, base: Base, device: str | None, load: str | None, merge: bool) -> tuple[Seat, Precision]:
    """The base in memory with this adapter on it, or with `merge` in it; where the adapter sits, and how both are held."""
    from tuner.artifact.untrusted import refuse_unfit

    precision = serving_precision(cast(Any, load or version.manifest["base"]["load"]), device or pick_device())
    quiet_libraries()
    if merge:
        _refuse_unmergeable(version.version, precision)
    model = load_for_merge(base) if merge else load_model(base, precision)
    loading = Loading(base, precision, load, device, model.get_input_embeddings().weight.shape[0])
    if version.encoder.new_ids:
        widen(model, version.encoder.vocabulary)
    refuse_unfit(version.version.label, version.payload, model)
    adapted = _with_adapter(version.version, model)
    parameters = check_weights(version.version, adapted)
    if merge:
        return Host(_merged(adapted, precision), loading).first(), precision
    return Host(adapted.eval(), loading).first(parameters), precision


def _with_adapter(version: Version, model: Any) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(version.folder.resolve()), FIRST, local_files_only=True, autocast_adapter_dtype=False)
    except KeyError as missing:  # rows of new tokens that adapter_config.json names and the weights lack
        refuse(version.label, WEIGHTS, f"no tensor {quoted(missing.args[0], 120)}: the weights do not match the model",
               "exactly the adapter's tensors", "restore the version from a copy")  # fmt: skip


def _refuse_unmergeable(version: Version, precision: Precision) -> None:
    from peft import PeftConfig

    if precision.quantised:
        refuse(version.label, "merge", f"a base in {precision.quantised}, where the sum would be rounded away", "a base in 16 or 32 bits",
               "give load='bf16' or 'fp32', or leave merge out")  # fmt: skip
    config = PeftConfig.from_pretrained(str(version.folder.resolve()))
    if config.is_prompt_learning:
        refuse(
            version.label, "merge", f"{config.peft_type.value}: trained tokens before the prompt", "a method that adds to the base's weights", "leave merge out"
        )


def _merged(adapted: Any, precision: Precision) -> Any:
    """The sum in fp32, then rounded once."""
    import torch

    return adapted.merge_and_unload().to(precision.device, getattr(torch, precision.weights)).eval()


# --- on a base that is loaded --------------------------------------------------------------------------------------


def newcomer(name: str, store: str | Path, host: Host, known: Known, allow: Collection[str]) -> Opened:
    """Another version that would be the same on this host as when it is loaded alone. Raises Refusal where it would not."""
    version, manifest = verified(name, store)
    if host.loading is None:
        refuse(version.label, "base", "a model that was not loaded by load_adapter", "one that was", "load both with load_adapter")
    if host.is_merged:
        refuse(version.label, "merge", "an adapter that was merged into the base", "a base as it was", AGAIN)
    found = opened(version, manifest, host.loading.base, allow, known)
    wanted = serving_precision(cast(Any, host.loading.load or manifest["base"]["load"]), host.loading.device or pick_device())
    if wanted != host.loading.precision:
        refuse(version.label, "base.load", f"{wanted} wanted, {host.loading.precision} loaded", "the precision it is served in when loaded alone", AGAIN)
    rows = max(host.loading.rows, found.encoder.vocabulary if found.encoder.new_ids else 0)
    loaded = host.model.get_input_embeddings().weight.shape[0]
    if rows != loaded:
        refuse(version.label, "template.new_tokens", f"{rows} embedding rows wanted, {loaded} loaded", "the same vocabulary", AGAIN)
    return found


AGAIN = "load it anew with load_adapter"
