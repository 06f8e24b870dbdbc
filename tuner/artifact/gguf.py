"""A base or an adapter as a GGUF file, the format llama.cpp serves: the same numbers and the same token ids in another container.

It refuses architectures, tokenizers and kinds of adapter whose meaning would change on the way.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import logging
import math
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tuner.catalog import choose
from tuner.durable import staging
from tuner.errors import Collector, refuse
from tuner.safe_text import quoted

if TYPE_CHECKING:
    import gguf
    import numpy as np

Weights = Literal["f32", "f16", "q8_0"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How llama.cpp names an architecture of transformers, and whether it holds the rows of q and k in its own order."""

    name: str
    interleaves_heads: bool


# --- the adapter ---------------------------------------------------------------------------------------------------


def write_lora_gguf(adapter_folder: Path, base: Path, target: Path, weights: Literal["f32", "f16"] = "f32") -> None:
    """Write a PEFT LoRA adapter as a LoRA file of llama.cpp. Of the base, a model folder or a .gguf file, only the configuration is read.

    As ggml-org/llama.cpp (as in llama_cpp_python 0.3.36), convert_lora_to_gguf.py. Raises Refusal for anything but plain LoRA or rsLoRA
    on linear layers.
    """
    import gguf

    config = _config_of_gguf(base) if base.suffix == ".gguf" else _json_object(base / "config.json")
    lora = _json_object(adapter_folder / "adapter_config.json")
    architecture = _architecture(config, base)
    refuse_other_than_lora(lora, adapter_folder / "adapter_config.json")
    pairs = lora_pairs(adapter_folder / "adapter_model.safetensors", lora["r"])
    names = _TensorNames(config, architecture, adapter_folder / "adapter_model.safetensors")
    with _written(target, architecture) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, llama_cpp_alpha(lora))
        for module, (a, b) in pairs.items():
            name = names.of(f"{module}.weight")
            _add_tensor(writer, f"{name}.lora_a", a, weights)
            _add_tensor(writer, f"{name}.lora_b", names.reordered(f"{module}.weight", b), weights)


def llama_cpp_alpha(lora: dict[str, Any]) -> float:
    """The alpha with which llama.cpp's alpha / rank is PEFT's scale: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732, eq. 2).

    llama.cpp's scale: src/llama-adapter.h, `llama_adapter_lora_weight::get_scale`, where an alpha of zero means a scale of one.
    """
    return float(lora["lora_alpha"]) * (math.sqrt(lora["r"]) if lora.get("use_rslora") else 1.0)


def refuse_other_than_lora(lora: dict[str, Any], where: Path) -> None:
    """A key that is neither known to leave the answer alone nor empty may change what the adapter computes: DoRA, saved modules, patterns, …"""
    collector = Collector()
    for key, accepted in {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": PLAIN_STARTS}.items():
        if key in lora and lora[key] not in accepted:
            collector.add(where, key, quoted(lora[key]), " or ".join(map(str, accepted)), UNSERVED)
    if not isinstance(lora.get("r"), int) or not isinstance(lora.get("lora_alpha"), int | float) or not lora["lora_alpha"]:
        collector.add(where, "r, lora_alpha", quoted([lora.get("r"), lora.get("lora_alpha")]), "a whole rank and an alpha other than zero", UNSERVED)
    for key in sorted(set(lora) - NEUTRAL_KEYS - {"peft_type", "bias", "init_lora_weights", "r", "lora_alpha", "use_rslora"}):
        if lora[key]:
            collector.add(where, key, quoted(lora[key]), "nothing here: a LoRA file holds two matrices a layer and one alpha", UNSERVED)
    collector.raise_if_any()


def lora_pairs(file: Path, rank: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By module of the base, A (r, in) and B (out, r) in float32. Raises Refusal when a half is missing or a number is not finite."""
    import numpy as np

    halves: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in _tensors([file]):
        module, dot, half = name.removeprefix("base_model.model.").rpartition(".lora_")
        if not dot or half not in {"A.weight", "B.weight"}:
            refuse(file, name, "neither lora_A.weight nor lora_B.weight", "the two matrices of adapted linear layers", UNSERVED)
        if not np.isfinite(tensor).all():
            refuse(file, name, "weights that are not finite numbers", "finite weights", "do not serve it; train again")
        halves.setdefault(module, {})[half[0]] = tensor
    for module, pair in halves.items():
        if set(pair) != {"A", "B"} or pair["A"].shape[0] != rank or pair["B"].shape[1] != rank:
            found = ", ".join(f"{half} {tensor.shape}" for half, tensor in pair.items())
            refuse(file, module, found, f"A ({rank}, in) and B (out, {rank})", "restore the adapter from a copy")
    if not halves:
        refuse(file, "", "no tensors", "the two matrices of adapted linear layers", "restore the adapter from a copy")
    return {module: (pair["A"], pair["B"]) for module, pair in halves.items()}


# --- the base ------------------------------------------------------------------------------------------------------


def write_model_gguf(base_folder: Path, target: Path, weights: Weights = "f32") -> None:
    """Write a base of safetensors with its tokenizer and chat template as a GGUF file.

    As ggml-org/llama.cpp (as in llama_cpp_python 0.3.36), conversion/llama.py `LlamaModel` and conversion/base.py `_set_vocab_gpt2`. Norms and
    biases stay f32; q8_0 rows that are no multiple of 32 become f16. Raises Refusal for an architecture or tokenizer it does not know.
    """
    config = _json_object(base_folder / "config.json")
    architecture = _architecture(config, base_folder)
    names = _TensorNames(config, architecture, base_folder)
    files = sorted(base_folder.glob("*.safetensors"))
    if not files:
        refuse(base_folder, "*.safetensors", "no such file", "weights as safetensors", "convert the weights to safetensors first")
    with _written(target, architecture) as writer:
        _add_hyperparameters(writer, config, base_folder, weights)
        _add_tokenizer(writer, base_folder, config["vocab_size"])
        _add_rope_factors(writer, config)
        for name, tensor in _tensors(files):
            if name.endswith(".rotary_emb.inv_freq") or (name == "lm_head.weight" and config.get("tie_word_embeddings")):
                continue
            _add_tensor(writer, names.of(name), names.reordered(name, tensor), weights)


def _add_hyperparameters(writer: gguf.GGUFWriter, config: dict[str, Any], folder: Path, weights: Weights) -> None:
    import gguf

    for key, computed in {"hidden_act": "silu", "sliding_window": None}.items():
        if config.get(key, computed) != computed:
            refuse(folder / "config.json", key, quoted(config[key]), f"{computed}: what llama.cpp computes for it", UNSERVED_BASE)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(folder.name)
    writer.add_file_type(_file_types()[weights])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(_kv_heads(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(_head_dim(config))
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    rope = _rope(config)
    if rope["rope_type"] not in {"default", "llama3"}:
        refuse(folder / "config.json", "rope_scaling", quoted(rope["rope_type"]), "default or llama3", UNSERVED_BASE)
    writer.add_rope_freq_base(rope["rope_theta"])


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Position settings, from where transformers 5 (rope_parameters) or 4 (rope_theta, rope_scaling) keeps them."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found.setdefault("rope_type", found.get("type", "default"))
    found.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    return found


def _add_rope_factors(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """Llama 3's stretched positions: one divisor a frequency. As llama.cpp's conversion/llama.py, `generate_extra_tensors`."""
    import numpy as np

    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    trained_on = rope["original_max_position_embeddings"]
    size = _head_dim(config)
    turns = trained_on * rope["rope_theta"] ** -(np.arange(0, size, 2, dtype=np.float64) / size) / (2 * np.pi)  # waves in the first training context
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    writer.add_tensor("rope_freqs.weight", (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32))


# --- the tokenizer -------------------------------------------------------------------------------------------------


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, vocab_size: int) -> None:
    """A byte-level BPE tokenizer: its tokens, merges, splitting, special ids and chat template."""
    import gguf
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    settings = _json_object(file)
    splitting = _splitting(settings, file)
    tokenizer = Tokenizer.from_file(str(file))
    tokens, types = _tokens(tokenizer, file, vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_add_space_prefix(False)
    special = gguf.SpecialVocab(folder, load_merges=True)
    bare, dressed = (tokenizer.encode("a", add_special_tokens=added).ids for added in (False, True))
    special.add_special_token = {"bos": dressed[0] != bare[0], "eos": dressed[-1] != bare[-1]}
    special.add_to_gguf(writer, quiet=True)


def _splitting(settings: dict[str, Any], file: Path) -> str:
    """llama.cpp's name (tokenizer.ggml.pre) for how this tokenizer cuts text before merging. Raises Refusal when it has none here.

    Read off tokenizer.json itself, where llama.cpp's converter compares a digest of one text's ids: the same ids on one text prove less.
    """
    model = settings.get("model") or {}
    plain = model.get("type") == "BPE" and not any(model.get(k) for k in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "dropout"))
    if not plain or settings.get("normalizer") is not None or (settings.get("decoder") or {}).get("type") != "ByteLevel":
        refuse(file, "model", quoted([model.get("type"), settings.get("normalizer")]), "byte-level BPE without a normalizer", OTHER_TOKENIZER)
    steps = (*_steps(settings.get("pre_tokenizer")), *(["merges ignored for whole words"] if model.get("ignore_merges") else []))
    if steps not in SPLITTINGS:
        refuse(file, "pre_tokenizer", quoted(" then ".join(steps), 160), "one of: " + ", ".join(SPLITTINGS.values()), OTHER_TOKENIZER)
    return SPLITTINGS[steps]


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[str]:
    """What a pre-tokenizer does, step by step, in words that can be looked up."""
    kind = (pre_tokenizer or {}).get("type")
    if pre_tokenizer is None or kind is None:
        return ["nothing"]
    if kind == "Sequence":
        return [step for part in pre_tokenizer["pretokenizers"] for step in _steps(part)]
    if kind == "ByteLevel" and not pre_tokenizer.get("add_prefix_space"):
        return ["GPT-2 words, bytes"] if pre_tokenizer.get("use_regex", True) else ["bytes"]
    if kind == "Digits" and pre_tokenizer.get("individual_digits"):
        return ["single digits"]
    if kind == "Split" and pre_tokenizer.get("behavior") == "Isolated" and not pre_tokenizer.get("invert"):
        return [str(pre_tokenizer["pattern"].get("Regex"))]
    return [json.dumps(pre_tokenizer)]


def _tokens(tokenizer: Any, file: Path, vocab_size: int) -> tuple[list[str], list[int]]:
    """Every token's text and kind, by id, filled up to the rows of the embedding."""
    import gguf

    texts = {i: text for text, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    added = tokenizer.get_added_tokens_decoder()
    if max(texts) >= vocab_size:
        refuse(file, "vocab", f"token id {max(texts)}", f"ids below {vocab_size}, the rows of the embedding", "use the tokenizer that belongs to the model")
    for token in added.values():
        if token.single_word or token.lstrip or token.rstrip:
            refuse(file, "added_tokens", quoted(token.content), "added tokens without single_word, lstrip or rstrip", OTHER_TOKENIZER)
    kind = gguf.TokenType
    kinds = {i: kind.CONTROL if token.special else kind.USER_DEFINED for i, token in added.items()}
    every = range(vocab_size)
    return [texts.get(i, f"[PAD{i}]") for i in every], [int(kinds.get(i, kind.NORMAL if i in texts else kind.UNUSED)) for i in every]


# --- tensors -------------------------------------------------------------------------------------------------------


class _TensorNames:
    """llama.cpp's name for a tensor of transformers, and its rows in llama.cpp's order."""

    def __init__(self, config: dict[str, Any], architecture: Architecture, where: Path):
        import gguf

        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        self.map = gguf.get_tensor_name_map(kinds[architecture.name], config["num_hidden_layers"])
        self.config, self.architecture, self.where = config, architecture, where

    def of(self, name: str) -> str:
        found = self.map.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None or (found == "output.weight" and self.config.get("tie_word_embeddings")):
            why = "a head of its own, which a base with tied embeddings does not have" if found else "no tensor of this architecture"
            refuse(self.where, name, why, f"tensors that llama.cpp knows in {self.architecture.name}", UNSERVED)
        return found

    def reordered(self, name: str, tensor: np.ndarray) -> np.ndarray:
        """Rows (out, …) of q and k as llama.cpp's rotary embedding wants them; every other tensor as it is."""
        layer = name.rpartition(".")[0]
        if not self.architecture.interleaves_heads or not layer.endswith(("q_proj", "k_proj")):
            return tensor
        heads = self.config["num_attention_heads"] if layer.endswith("q_proj") else _kv_heads(self.config)
        if tensor.shape[0] != heads * _head_dim(self.config):
            refuse(self.where, name, f"{tensor.shape[0]} rows", f"{heads} heads of {_head_dim(self.config)} rows", "use the base it was trained on")
        return interleaved(tensor, heads)


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows (heads * d, …) where row i of a head's first half and row i of its second come to stand side by side.

    transformers turns dimension i with i + d/2, llama.cpp with its neighbour. As llama.cpp's conversion/llama.py, `LlamaModel.permute`.
    """
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _add_tensor(writer: gguf.GGUFWriter, name: str, tensor: np.ndarray, weights: Weights) -> None:
    import gguf
    import numpy as np

    if tensor.ndim < 2 or weights == "f32":
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    elif weights == "q8_0" and tensor.shape[-1] % 32 == 0:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, tensor.astype(np.float16))


def _tensors(files: Sequence[Path]) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of some safetensors files in float32, one at a time."""
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in sorted(opened.keys()):
                    yield name, opened.get_tensor(name).float().numpy()
        except (SafetensorError, OSError) as error:
            refuse(file, "", f"unreadable: {quoted(error, 80)}", "a safetensors file", "restore it from a copy")


@contextlib.contextmanager
def _written(target: Path, architecture: Architecture) -> Iterator[gguf.GGUFWriter]:
    """A GGUF file in the making. It takes its name only when it is whole; on any failure nothing is left."""
    import gguf

    with staging(target.parent) as stage:
        writer = gguf.GGUFWriter(stage / target.name, architecture.name, use_temp_file=True)
        try:
            yield writer
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        (stage / target.name).replace(target)


# --- fewer bits ----------------------------------------------------------------------------------------------------


def quantise_gguf(model: Path, target: Path, weights: str, threads: int = 1) -> None:
    """Write a GGUF model in one of QUANTISED's precisions, by llama.cpp's own quantiser. Raises Refusal where there is none.

    llama-cpp-python's binding of `llama_model_quantize` where it is installed, else the program llama-quantize.
    """
    choose({name: name for name in QUANTISED}, weights, "command line", "--weights")
    program = shutil.which("llama-quantize")
    if importlib.util.find_spec("llama_cpp") is None and program is None:
        refuse(model.name, "--weights", f"{weights}, and neither llama-cpp-python nor llama-quantize", "llama.cpp's quantiser",
               "pip install 'tuner-lora[llama-cpp]', or export f16 or q8_0")  # fmt: skip
    with staging(target.parent) as stage:
        made = stage / target.name
        bound = importlib.util.find_spec("llama_cpp") is not None
        said = _quantised_by_binding(model, made, weights, threads) if bound else _quantised_by(str(program), model, made, weights)
        if said or not made.is_file():
            refuse(model.name, "--weights", f"llama.cpp could not write {weights}: {quoted(said, 120)}", "a model it can quantise", "export f16 or q8_0")
        made.replace(target)


def _quantised_by_binding(model: Path, target: Path, weights: str, threads: int) -> str:
    """What went wrong, or nothing."""
    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)  # its binding would write a line for each tensor to the terminal
    llama = importlib.import_module("llama_cpp")
    settings = llama.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = int(getattr(llama, f"LLAMA_FTYPE_MOSTLY_{weights.upper()}")), threads
    code = llama.llama_model_quantize(str(model).encode(), str(target).encode(), settings)
    return f"code {code}" if code else ""


def _quantised_by(program: str, model: Path, target: Path, weights: str) -> str:
    """What went wrong, or nothing."""
    done = subprocess.run([program, str(model), str(target), weights.upper()], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no output"])[-1]


# --- configurations ------------------------------------------------------------------------------------------------


def _json_object(file: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        refuse(file, "", f"unreadable: {quoted(error, 80)}", "a JSON object", "copy the folder again")
    if not isinstance(loaded, dict):
        refuse(file, "", quoted(loaded, 40), "a JSON object", "copy the folder again")
    return loaded


def _config_of_gguf(file: Path) -> dict[str, Any]:
    """What config.json would say, read off a GGUF file of llama's architecture. Raises Refusal for others."""
    import gguf

    try:
        opened = gguf.GGUFReader(file)
    except (OSError, ValueError, IndexError) as error:
        refuse(file, "", f"unreadable: {quoted(error, 80)}", "a GGUF file", "copy the file again")
    found = {name: field.contents() for name, field in opened.fields.items() if name.startswith("llama.")}
    if not found:
        refuse(file, "general.architecture", "another architecture", "llama", "give the base's folder of safetensors")
    config = {ours: found[theirs] for ours, theirs in GGUF_KEYS.items() if theirs in found}
    tied = not any(tensor.name == "output.weight" for tensor in opened.tensors)
    return {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": tied, **config}


def _architecture(config: dict[str, Any], where: Path) -> Architecture:
    named = config.get("architectures") or [None]
    if named[0] not in ARCHITECTURES:
        refuse(where, "architectures", quoted(named[0]), "one of: " + ", ".join(ARCHITECTURES), UNSERVED_BASE)
    missing = [key for key in SIZES if not config.get(key)]
    if missing:
        refuse(where, ", ".join(missing), "not there", "the sizes of the model", "copy the model folder again")
    return ARCHITECTURES[named[0]]


def _kv_heads(config: dict[str, Any]) -> int:
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _file_types() -> dict[Weights, int]:
    import gguf

    return {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}


UNSERVED = "serve this adapter with transformers and PEFT, or merge it into its base"
UNSERVED_BASE = "convert the base with llama.cpp's own convert_hf_to_gguf.py"
OTHER_TOKENIZER = "convert the base with llama.cpp's own convert_hf_to_gguf.py, and give that .gguf file as the engine's base"

PLAIN_STARTS = (True, False, "gaussian", "orthogonal")  # others (pissa, olora, loftq, corda, lora_ga) change the base's weights too
NEUTRAL_KEYS = frozenset({
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "target_modules", "task_type",
})  # fmt: skip

QUANTISED = ("q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k")  # what llama.cpp's quantiser is asked for

LLAMA_3_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITTINGS: dict[tuple[str, ...], str] = {
    ("GPT-2 words, bytes",): "gpt-2",
    ("single digits", "GPT-2 words, bytes"): "smollm",
    (LLAMA_3_WORDS, "bytes", "merges ignored for whole words"): "llama-bpe",
}

GGUF_KEYS = {
    "vocab_size": "llama.vocab_size",
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
    "max_position_embeddings": "llama.context_length",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "head_dim": "llama.attention.key_length",
}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "rms_norm_eps")
ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": Architecture("llama", interleaves_heads=True),
    "MistralForCausalLM": Architecture("llama", interleaves_heads=True),
}
