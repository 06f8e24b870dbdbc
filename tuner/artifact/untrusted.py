"""A version's folder looked at as somebody else's: everything that a library would act on, before any library sees it. No torch is needed.

It refuses links, pickles, code and unknown files, a manifest, config or weights of another form than tuner writes, and what does not fit the base.
Digests say that nothing changed since it was written; this says that what was written can only be an adapter.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tuner.artifact.adapter_config import (
    MOST_BYTES,
    SAVED_AS,
    AdapterConfig,
    LayerConfig,
    PrefixConfig,
    Problem,
    PromptConfig,
    TokenRowsConfig,
    ends,
    read_config,
)
from tuner.artifact.manifest import LATER, MANIFEST
from tuner.artifact.safetensors_header import Tensor, names_not_finite, read_header
from tuner.artifact.strict_json import Malformed, parse
from tuner.errors import Collector, refuse
from tuner.safe_text import quoted, visible

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADOPTED = "adopted"  # STORE/NAME/adopted/N.json: version N was pulled under another name than its own
MOST_TEXT_BYTES = 64 * 2**20
MOST_NOTE_BYTES = 1 << 20
MOST_FILES = 10_000
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,127}){0,7}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_WRAPPED = re.compile(r"\.(?:token_adapter\.)?(?:base_layer|original_module)(?=\.)")  # where PEFT puts the base's own under an adapter
_CODE_KEYS = re.compile(r"auto_map|remote_code|custom_(?:class|code|pipeline|generate)", re.IGNORECASE)
_UNSAFE_ENDINGS = tuple(
    f".{ending}"
    for ending in (
        "bin", "pt", "pth", "pkl", "pickle", "ckpt", "joblib", "dill", "npy", "npz", "h5", "hdf5", "msgpack", "py", "pyc", "pyd", "pyx", "so", "dll",
        "dylib", "exe", "sh", "bat", "ps1", "zip", "tar", "tgz", "gz", "bz2", "xz", "zst", "7z", "whl", "egg",
    )
)  # fmt: skip
_UNSAFE_BEGINNINGS: dict[str, tuple[bytes, ...]] = {
    "a pickle": tuple(b"\x80" + bytes([protocol]) for protocol in range(1, 16)),
    "an archive": (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf"),
    "a program": (b"\x7fELF", b"MZ", b"#!", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe"),
    "arrays that may hold pickles": (b"\x93NUMPY", b"\x89HDF"),
}


@dataclass(frozen=True, slots=True)
class Payload:
    """What was looked at: the adapter's config and tensors, and how many files with how many bytes lie in the folder."""

    config: AdapterConfig
    tensors: dict[str, Tensor]
    files: int
    bytes: int

    @property
    def values(self) -> int:
        """Numbers in all tensors."""
        sizes = {"F32": 4}
        return sum((t.end - t.start) // sizes.get(t.dtype, 2) for t in self.tensors.values())


def refuse_unsafe(folder: Path, manifest: dict[str, Any]) -> Payload:
    """Look at every file of a version whose digests were checked. Raises Refusal with everything that no adapter of tuner's holds."""
    problems = Collector()
    _look_at_manifest(folder, manifest, problems)
    files, size = _look_at_files(folder, manifest, problems)
    problems.raise_if_any()  # what follows opens files by name
    _look_at_tokenizer(folder, problems)
    config, tensors = _look_at_weights(folder, manifest, problems)
    problems.raise_if_any()
    assert config is not None
    return Payload(config, tensors, files, size)


# --- the manifest --------------------------------------------------------------------------------------------------


def refuse_odd_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Refuse a manifest whose facts have other types than loading reads, whatever its digest says: to be called before a base is looked for by it."""
    problems = Collector()
    _look_at_manifest(folder, manifest, problems)
    problems.raise_if_any()


def _look_at_manifest(folder: Path, manifest: dict[str, Any], problems: Collector) -> None:
    """The facts that loading reads have the types that it expects."""
    for place, is_right, accepted in _FACTS:
        value: Any = manifest
        for key in place.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not is_right(value):
            problems.add(folder / MANIFEST, place, quoted(value), accepted, "do not load it: no tuner wrote this manifest")
    files = manifest.get("files")
    for name in files if isinstance(files, dict) else ():
        if not _PLAIN_NAME.fullmatch(name) or ".." in name or name.split("/")[0] in LATER:
            problems.add(folder / MANIFEST, "files", quoted(name), "plain names of files in the version's folder", "do not load it")


def _is_base_spec(value: Any) -> bool:
    from tuner.base import BaseSpec

    return isinstance(value, dict) and _validates(BaseSpec.model_validate, value | {"online": False, "trust_remote_code": False})


def _is_template_spec(value: Any) -> bool:
    from tuner.template.spec import TemplateSpec

    return isinstance(value, dict) and _validates(TemplateSpec.model_validate, value | {"format": "tokenizer"})


def _validates(read: Callable[[Any], object], value: Any) -> bool:
    try:
        read(value)
    except ValidationError:
        return False
    return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 512


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


_FACTS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("name", _is_text, "the adapter's name"),
    ("version", lambda value: type(value) is int and value > 0, "the version's number"),
    ("base.name", _is_text, "the base's name"),
    ("base.origin", _is_text, "where the base came from"),
    ("base.load", _is_text, "how the base was held"),
    ("base.weight_digest", _is_digest, "the digest of the base's weights"),
    ("base.spec", _is_base_spec, "a recipe's base section"),
    ("template.spec", _is_template_spec, "a recipe's template section"),
    ("template.digest", _is_digest, "the template's digest"),
    ("template.tokenizer_digest", _is_digest, "the tokenizer's digest"),
    ("method.kind", lambda value: isinstance(value, str) and value in SAVED_AS, f"one of: {', '.join(SAVED_AS)}"),
    ("files", lambda value: isinstance(value, dict) and {CONFIG, WEIGHTS} <= set(value), f"{CONFIG} and {WEIGHTS} among the files"),
)


# --- the files -----------------------------------------------------------------------------------------------------


def _look_at_files(folder: Path, manifest: dict[str, Any], problems: Collector) -> tuple[int, int]:
    """(files, bytes) of the folder. Listed files are of the kinds a version is made of; those added later are at least no code and no pickles."""
    files = manifest.get("files")
    listed = {*(files if isinstance(files, dict) else ()), MANIFEST}
    count = size = 0
    for path, name in _walk(folder, problems):
        count += 1
        found = _unsafe(path, name, listed)
        if found is not None:
            problems.add(path, "", found, "regular files of data: JSON, YAML, Markdown, Parquet, safetensors", "remove it; do not load it as it is")
        size += path.lstat().st_size
        if count > MOST_FILES:
            problems.add(folder, "", f"more than {MOST_FILES:,} files", "the files of a version", "do not load it")
            break
    return count, size


def _walk(folder: Path, problems: Collector) -> Iterator[tuple[Path, str]]:
    """Everything in the folder but folders, links included and never followed."""
    if folder.is_symlink():
        problems.add(folder, "", "a symbolic link", "the version's own folder", "put a copy in its place")
    for top, folders, files in os.walk(folder, followlinks=False):
        links = [name for name in folders if (Path(top) / name).is_symlink()]
        for name in sorted([*files, *links]):
            path = Path(top) / name
            yield path, path.relative_to(folder).as_posix()


def _unsafe(path: Path, name: str, listed: set[str]) -> str | None:
    """Why this file must not lie here, or None."""
    facts = path.lstat()
    if stat.S_ISLNK(facts.st_mode):
        return "a symbolic link"
    if not stat.S_ISREG(facts.st_mode):
        return "no regular file"
    is_later = name.split("/")[0] in LATER
    if name not in listed and not is_later:
        return "a file that the manifest does not list"
    ending = path.suffix.lower()
    if ending in _UNSAFE_ENDINGS:
        return f"a file of the kind {ending}, which may hold code"
    with open(path, "rb") as file:
        beginning = file.read(512)
    is_right = _BEGINNINGS.get(ending)
    if is_right is not None:  # decided first: the length that a safetensors file begins with can look like anything
        partly_written = is_later and any(part.startswith(".") for part in name.split("/"))
        return None if partly_written or is_right(beginning, path) else f"bytes that are no {ending.removeprefix('.')} file"
    if not is_later:
        return f"a file of the kind {quoted(ending)}"
    return next((f"{what} by its first bytes" for what, marks in _UNSAFE_BEGINNINGS.items() if beginning.startswith(marks)), None)


def _is_text_file(beginning: bytes, path: Path) -> bool:
    """UTF-8 without control characters that no text holds; nothing that a shell would run."""
    if beginning.startswith(b"#!") or path.stat().st_size > MOST_TEXT_BYTES:
        return False
    try:
        return "\0" not in path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False


def _is_safetensors(beginning: bytes, path: Path) -> bool:
    return len(beginning) > 8 and int.from_bytes(beginning[:8], "little") <= 100 * 2**20 and beginning[8:9] == b"{"


def _is_parquet(beginning: bytes, path: Path) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) < 12:  # both marks, and the length of what they enclose
            return False
        file.seek(-4, os.SEEK_END)
        return beginning.startswith(b"PAR1") and file.read(4) == b"PAR1"


_BEGINNINGS: dict[str, Callable[[bytes, Path], bool]] = {
    ".json": lambda beginning, path: beginning.lstrip()[:1] in (b"{", b"["),
    ".jsonl": lambda beginning, path: beginning.lstrip()[:1] in (b"{", b""),
    ".md": _is_text_file,
    ".txt": _is_text_file,
    ".yaml": _is_text_file,
    ".jinja": _is_text_file,
    ".html": _is_text_file,
    ".safetensors": _is_safetensors,
    ".parquet": _is_parquet,
    ".gguf": lambda beginning, path: beginning.startswith(b"GGUF"),
    ".model": lambda beginning, path: re.match(rb"\n|[A-Za-z0-9+/=]+ [0-9]+\n", beginning) is not None,  # SentencePiece's first field, tiktoken's lines
}


# --- tokenizer and template ----------------------------------------------------------------------------------------


def _look_at_tokenizer(folder: Path, problems: Collector) -> None:
    """No class or code to fetch, and the types that reading them expects. The template is rendered in the sandbox alone (tuner.template)."""
    if (folder / "config.json").exists():
        problems.add(folder / "config.json", "", "a model's config, which transformers would act on", "an adapter's files", "remove it")
    for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).is_file():
            _look_at_settings(folder / name, problems)
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file() and tokenizer.stat().st_size > MOST_TEXT_BYTES:
        problems.add(tokenizer, "", f"{tokenizer.stat().st_size:,} bytes", f"at most {MOST_TEXT_BYTES:,}", "do not load it")


def _look_at_settings(file: Path, problems: Collector) -> None:
    try:
        said = parse(file.read_bytes(), 8 * 2**20)
    except Malformed as error:
        problems.add(file, "", str(error), "strict JSON", "restore it from a copy; do not load it as it is")
        return
    if not isinstance(said, dict):
        problems.add(file, "", quoted(said), "a JSON object", "restore it from a copy")
        return
    for key, value in _keys(said):
        if _CODE_KEYS.search(key) and value:
            problems.add(file, visible(key, 80), quoted(value), "no key that names code", "remove the key: it would fetch and run code")
    kind = said.get("tokenizer_class")
    if kind is not None and not (isinstance(kind, str) and re.fullmatch(r"[A-Za-z0-9_]{1,64}", kind)):
        problems.add(file, "tokenizer_class", quoted(kind), "the name of a class of transformers", "restore it from a copy")
    stops = said.get("eos_token_id", [])
    if not all(type(stop) is int for stop in (stops if isinstance(stops, list) else [stops])) and stops is not None:
        problems.add(file, "eos_token_id", quoted(stops), "token ids", "restore it from a copy")


def _keys(said: Any) -> Iterator[tuple[str, Any]]:
    """Every key at every depth with its value."""
    if isinstance(said, dict):
        for key, value in said.items():
            yield key, value
            yield from _keys(value)
    elif isinstance(said, list):
        for value in said:
            yield from _keys(value)


# --- the adapter ---------------------------------------------------------------------------------------------------


def _look_at_weights(folder: Path, manifest: dict[str, Any], problems: Collector) -> tuple[AdapterConfig | None, dict[str, Tensor]]:
    config, tensors = _config_in(folder / CONFIG, problems), _tensors_in(folder / WEIGHTS, problems)
    if config is not None:
        kind = manifest["method"]["kind"]
        saved_as, flags = SAVED_AS[kind]
        if config.peft_type != saved_as or any(getattr(config, flag) is not value for flag, value in flags.items()):
            problems.add(folder / CONFIG, "peft_type", config.peft_type, f"{saved_as}, as kind: {kind} is saved", "do not load it")
        _add_all(folder / WEIGHTS, config.tensor_problems(tensors) if tensors else (), problems)
    for name in names_not_finite(folder / WEIGHTS, tensors):
        problems.add(folder / WEIGHTS, visible(name, 200), "weights that are not finite numbers", "finite weights", "do not serve it; train again")
    return config, tensors


def _config_in(file: Path, problems: Collector) -> AdapterConfig | None:
    try:
        found = read_config(parse(file.read_bytes(), MOST_BYTES))
    except Malformed as error:
        problems.add(file, "", str(error), "strict JSON", "restore it from a copy; do not load it as it is")
        return None
    if isinstance(found, AdapterConfig):
        return found
    _add_all(file, found, problems)
    return None


def _tensors_in(file: Path, problems: Collector) -> dict[str, Tensor]:
    try:
        return read_header(file)
    except Malformed as error:
        problems.add(file, "header", visible(error, 300), "a safetensors file of an adapter", "restore it from a copy; do not load it as it is")
        return {}


def _add_all(file: Path, found: Any, problems: Collector) -> None:
    for problem in found:
        problems.add(file, visible(problem.field, 200), problem.found, problem.accepted, "do not load it as it is; restore it from a copy")


# --- the base ------------------------------------------------------------------------------------------------------


def refuse_unfit(where: str, payload: Payload, model: Any) -> None:
    """Hold the adapter against a loaded base, before PEFT allocates anything: every layer that its targets mean has its tensors, of its sides.

    PEFT itself makes new random weights where tensors are missing, as large as the config says. Raises Refusal.
    """
    problems = Collector()
    for problem in _misfits(payload, model):
        problems.add(where, problem.field, problem.found, problem.accepted, "load it on the base it was trained on")
    problems.raise_if_any()


def _misfits(payload: Payload, model: Any) -> Iterator[Problem]:
    config = payload.config
    if isinstance(config, PromptConfig):
        yield from _prompt_misfits(config, model)
        return
    ours = config.layers(payload.tensors)
    targets = frozenset(getattr(config, "target_modules", ()))
    theirs = {path: _sides(module) for path, module in model.named_modules() if not targets.isdisjoint(ends(path))}
    others = {path for path, module in model.named_modules() if hasattr(module, "base_layer") or hasattr(module, "original_module")}
    for path in sorted(path for path in theirs if _is_inside(path, others)):
        yield Problem(path, "a part of another adapter on this base", "layers of the base itself")
    for path in sorted(set(theirs) ^ set(ours)):
        found, accepted = ("no tensors", "tensors for every layer of the base that is meant") if path in theirs else ("tensors", "layers that the base has")
        yield Problem(path, found, accepted)
    for path in sorted(set(theirs) & set(ours)):
        if None in theirs[path] or any(a is not None and a != b for a, b in zip(ours[path], theirs[path], strict=True)):
            yield Problem(path, f"(inputs, outputs) {ours[path]}", f"{theirs[path]}, the base's")
    if isinstance(config, LayerConfig):
        yield from _whole_misfits(config, payload.tensors, model, others)


def _is_inside(path: str, others: set[str]) -> bool:
    """Does the module at `path` lie below one of `others`?"""
    parts = path.split(".")
    return any(".".join(parts[:n]) in others for n in range(1, len(parts)))


def _whole_misfits(config: LayerConfig, tensors: dict[str, Tensor], model: Any, others: set[str]) -> Iterator[Problem]:
    """Modules saved whole, and rows of embeddings, have the shapes of the base's own; `others` are layers that an adapter sits on already."""
    own = {name: tensor for name, tensor in model.state_dict().items() if _WRAPPED.search(name) or not _is_inside(name, others)}
    shapes = {_WRAPPED.sub("", name): tuple(tensor.shape) for name, tensor in own.items()}
    for name, tensor in config.saved_whole(tensors).items():
        if shapes.get(name) != tensor.shape:
            yield Problem(name, f"shape {list(tensor.shape)}", f"{shapes.get(name, 'nothing')}, the base's")
    for name, (highest, width) in config.token_rows(tensors).items() if isinstance(config, TokenRowsConfig) else ():
        shape = shapes.get(name, ())
        if len(shape) != 2 or highest >= shape[0] or width != shape[1]:
            yield Problem(name, f"row {highest} of width {width}", f"rows of {shape or 'nothing'}, the base's")


def _sides(module: Any) -> tuple[int | None, int | None]:
    """(inputs, outputs) of a linear layer, quantised or transposed; None for other modules."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    weight = getattr(module, "weight", None)
    return (int(weight.shape[0]), int(weight.shape[1])) if weight is not None and len(weight.shape) == 2 and hasattr(module, "nf") else (None, None)


def _prompt_misfits(config: PromptConfig, model: Any) -> Iterator[Problem]:
    facts = model.config.get_text_config()
    if config.num_layers != facts.num_hidden_layers:
        yield Problem("num_layers", str(config.num_layers), f"{facts.num_hidden_layers}, the base's")
    width = int(model.get_input_embeddings().weight.shape[1])
    if not isinstance(config, PrefixConfig) and config.token_dim != width:
        yield Problem("token_dim", str(config.token_dim), f"{width}, the base's")


def refuse_elsewhere(name: str, number: int, manifest: Mapping[str, Any], where: Path) -> None:
    """Refuse a version that lies under another name or number than it was published as: an older one put in its place is valid by itself.

    One that was pulled under another name is in its place: the note beside it says so, by the digest of its manifest, which must have been verified.
    """
    if (manifest.get("name"), manifest.get("version")) != (name, number) and not _is_adopted(where, manifest):
        refuse(where / MANIFEST, "name", f"{quoted(manifest.get('name'))} version {quoted(manifest.get('version'))}", f"{name} version {number}",
               "do not use it: somebody put another version in its place")  # fmt: skip


def adopted_note(folder: Path) -> Path:
    """Where it stands that the version in `folder` came from elsewhere under another name. Outside of it, for its files are sealed."""
    return folder.parent / ADOPTED / f"{folder.name}.json"


def _is_adopted(folder: Path, manifest: Mapping[str, Any]) -> bool:
    try:
        note = parse(adopted_note(folder).read_bytes(), MOST_NOTE_BYTES)
    except (OSError, Malformed):  # none, or none that we wrote
        return False
    return isinstance(note, dict) and isinstance(note.get("manifest_digest"), str) and note["manifest_digest"] == manifest.get("digest")
