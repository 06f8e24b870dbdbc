"""Which code computes a run: packed or padded rows, the attention, checkpointing, the precision of the adapter, each with its reason.

It refuses combinations that would be wrong or cannot run here, before anything is loaded; and, once the base is loaded, packing
through which one row would see another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from tuner.base import Precision
from tuner.errors import refuse
from tuner.train.spec import TrainSpec

LIGER = {"rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False}  # the loss is ours
VARLEN = "tuner_varlen"  # our name in transformers' table of attentions
SHORT_ROW_TOKENS = 192
IMPLEMENTATIONS = {"sdpa": "sdpa", "eager": "eager", "varlen": VARLEN, "flex": "flex_attention"}


@dataclass(frozen=True, slots=True)
class TrainPath:
    """What was picked. `why` says it in words, one line a choice."""

    packed: bool
    grouped: bool
    attention: str
    plain: bool
    liger: bool
    compiled: bool
    offload: bool
    checkpointing: bool
    adapter_dtype: str
    micro_tokens: int
    why: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Fits:
    """What memory decides (tuner.plan.fit)."""

    micro_tokens: int
    checkpointing: bool
    offload: bool
    why: tuple[str, ...] = ()


def choose_path(
    spec: TrainSpec, precision: Precision, longest: int, can_pack: str | None, fits: Callable[[TrainPath], Fits], at: Callable[[str], str]
) -> TrainPath:
    """The way through training. `can_pack`: why the method cannot be packed, or None. `fits` decides what memory must, for a path.

    Raises Refusal for a choice of the recipe that cannot be had.
    """
    _refuse_impossible(spec, precision.device, can_pack, at)
    packed, batching = _batching(spec, precision.device, can_pack)
    attention, why_attention = _attention(spec, precision, packed)
    plain = precision.device == "cpu" and attention == "sdpa" and not packed and longest <= SHORT_ROW_TOKENS
    liger, why_liger = _liger(spec, precision.device)
    narrow = precision.weights == "bfloat16" and precision.device != "cpu"
    dtype = {"auto": "bfloat16" if narrow else "float32", "bf16": "bfloat16", "fp32": "float32"}[spec.adapter_precision]
    grouped = not packed if spec.order == "auto" else spec.order == "length_groups"
    path = TrainPath(packed, grouped, attention, plain, liger, spec.kernels.compile == "layers", False, False, dtype, spec.micro_tokens or 0)
    memory = fits(path)
    why = (
        batching,
        why_attention + (", plain for rows this short" if plain else ""),
        why_liger,
        f"adapter weights in {dtype}" + (": half the bytes, no casts beside bf16 weights" if dtype == "bfloat16" else ""),
        *memory.why,
    )
    return replace(path, micro_tokens=memory.micro_tokens, checkpointing=memory.checkpointing, offload=memory.offload, why=why)


def _refuse_impossible(spec: TrainSpec, device: str, can_pack: str | None, at: Callable[[str], str]) -> None:
    if spec.batching == "packed" and can_pack is not None:
        refuse(at("batching"), "train.batching", "packed", "padded", f"write padded, or leave it out: {can_pack}")
    wanted = spec.kernels.attention
    if wanted == "flex" and device == "cpu":
        refuse(at("kernels"), "train.kernels.attention", wanted, "sdpa, eager or varlen on a CPU", "leave it to auto: flex has no backward pass on a CPU")
    if wanted in ("varlen", "flex") and can_pack is not None:
        refuse(at("kernels"), "train.kernels.attention", wanted, "sdpa or eager", f"leave it to auto: {can_pack}")
    if spec.kernels.liger == "on" and (device == "cpu" or find_spec("liger_kernel") is None):
        refuse(at("kernels"), "train.kernels.liger", "on", "off or auto here", "it needs a CUDA device and `pip install tuner-lora[gpu]`")
    if spec.kernels.offload == "on" and device == "cpu":
        refuse(at("kernels"), "train.kernels.offload", "on", "off or auto on a CPU", "activations are in the machine's memory already")


def _batching(spec: TrainSpec, device: str, can_pack: str | None) -> tuple[bool, str]:
    if spec.batching != "auto":
        return spec.batching == "packed", f"rows {spec.batching}: the recipe says so"
    if can_pack is not None:
        return False, f"rows padded: {can_pack}"
    if device == "cpu":
        return False, "rows padded, near lengths together: on a CPU that is faster than packing (recipes/LOG.md)"
    return True, "rows packed: no padding, and no row attends to another"


def _attention(spec: TrainSpec, precision: Precision, packed: bool) -> tuple[str, str]:
    if spec.kernels.attention != "auto":
        return spec.kernels.attention, f"attention {spec.kernels.attention}: the recipe says so"
    if packed and precision.device != "cpu":
        narrow = "bfloat16" in (precision.weights, precision.autocast)
        if narrow and torch.cuda.get_device_capability() >= (8, 0):
            return "varlen", "attention varlen: PyTorch's flash attention over rows of any length"
        return "sdpa", "attention sdpa under a block mask: varlen needs bf16 and compute capability 8.0"
    return "sdpa", "attention sdpa"


def _liger(spec: TrainSpec, device: str) -> tuple[bool, str]:
    if device == "cpu":
        return False, "no Liger kernels: they need CUDA"
    installed = find_spec("liger_kernel") is not None
    if spec.kernels.liger == "off":
        return False, "no Liger kernels: the recipe says so"
    return installed, "Liger kernels for norm, rotary and MLP" if installed else "no Liger kernels: liger-kernel is not installed (extra gpu)"


# --- attention over packed rows ------------------------------------------------------------------------------------


def varlen_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, scaling: float | None = None,
    dropout: float = 0.0, sliding_window: int | None = None, cu_seq_lens_q: torch.Tensor | None = None, max_length_q: int | None = None, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention (B, T, H, D) of packed rows from query (B, H, T, D), key and value (B, Hkv, T, D), by PyTorch's own variable-length kernel.

    `cu_seq_lens_q` (rows + 1,) int32 are the rows' starts and the end, `max_length_q` the longest: the collator gives both, so that no layer
    asks the device. A causal window of W tokens is (W - 1, 0), an unbounded one (-1, 0).
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise RuntimeError("varlen attention was called without the starts of the packed rows")
    batch, heads, tokens, width = query.shape
    if query.device.type == "cpu" and sliding_window is None:
        return _row_by_row(query, key, value, scaling, cu_seq_lens_q.tolist()), None
    query, key, value = (x.transpose(1, 2).reshape(batch * tokens, -1, width) for x in (query, key, value))
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    out = varlen_attn(
        query, key, value, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling, window_size=window, enable_gqa=key.shape[1] != heads
    )
    assert isinstance(out, torch.Tensor)
    return out.reshape(batch, tokens, heads, width), None


def _row_by_row(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, starts: list[int]) -> torch.Tensor:
    """The same on a CPU, which has no variable-length kernel: PyTorch's attention on each row of the sequence by itself."""
    many = key.shape[1] != query.shape[1]
    parts = [
        torch.nn.functional.scaled_dot_product_attention(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], is_causal=True, scale=scaling, enable_gqa=many)
        for a, b in pairwise(starts)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2)


def register_attentions() -> None:
    """Put varlen into transformers' public tables of attentions and masks."""
    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionMaskInterface.register(VARLEN, lambda *_args, **_given: None)


def set_attention(model: Any, attention: str) -> None:
    """Switch a loaded base to an attention of the recipe's words."""
    register_attentions()
    model.set_attn_implementation(IMPLEMENTATIONS[attention])


def compile_layers(model: Any) -> int:
    """torch.compile of every decoder layer by itself, in place; how many there were. A whole model with a fused loss fails in Dynamo (LOG.md)."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)


def set_kernels(model: Any, path: TrainPath) -> None:
    """A loaded base as the path computes it: for timing it before the trainer, which switches Liger on by itself."""
    set_attention(model, path.attention)
    if path.liger:
        from transformers.integrations.liger import apply_liger_kernel

        apply_liger_kernel(model, LIGER)
    if path.compiled:
        compile_layers(model)


def refuse_leaks(model: Any, packed: dict[str, torch.Tensor], alone: list[dict[str, torch.Tensor]], where: str) -> float:
    """Largest logit difference between rows packed into one sequence and the same rows alone; Refusal where a row saw another.

    The tolerance is what rounding may do: 2 % of the logits' range in half precision, 1e-3 of it in fp32. A leak was 18.8 on SmolLM2.
    """
    with torch.no_grad():
        together = model(**{k: v for k, v in packed.items() if k != "labels"}, use_cache=False).logits[0].float()
        single = [model(**{k: v for k, v in row.items() if k != "labels"}, use_cache=False).logits[0].float() for row in alone]
    apart = torch.cat(single)
    share = 1e-3 if next(model.parameters()).dtype == torch.float32 and not torch.is_autocast_enabled(together.device.type) else 2e-2
    worst, allowed = float((together - apart).abs().max()), share * float(apart.max() - apart.min())
    if not worst <= allowed:
        refuse(where, "train.batching", f"packed rows see each other with this base: logits {worst:.3g} apart", f"at most {allowed:.3g}",
               "write batching: padded, or another kernels.attention")  # fmt: skip
    return worst
