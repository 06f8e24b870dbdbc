"""Which code computes a run: packed or padded rows, the attention, checkpointing, the precision of the adapter, each with its reason.

It refuses combinations that would be wrong or cannot run here, before anything is loaded; and, once the base is loaded, packing
through which one row would see another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from tuner.safe_text import quoted
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
    spec: TrainSpec, precision: Precision, longest: int, can_pack: str | None, fits: Callable[[TrainPath], Fits], at: Callable[[str], str],
    lacks: Mapping[str, str] | None = None,
) -> TrainPath:  # fmt: skip
    """The way through training. `can_pack`: why the method cannot be packed, or None. `fits` decides what memory must, for a path.
    `lacks`: the attentions that the base cannot have, with the reason (`attention_lacks`).

    Raises Refusal for a choice of the recipe that cannot be had.
    """
    lacks = lacks or {}
    _refuse_impossible(spec, precision, can_pack, at, lacks)
    packed, batching = _batching(spec, precision.device, can_pack, lacks)
    attention, why_attention = _attention(spec, precision, packed, lacks)
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


def attention_lacks(model: Any) -> dict[str, str]:
    """Attentions that would compute another model than this base's own, as its class and configuration say."""
    text = model.config.get_text_config()
    found = {} if getattr(model, "_supports_sdpa", True) else {"sdpa": "this base has none by its own class"}
    if getattr(text, "attn_logit_softcapping", None) is not None:
        found["varlen"] = "this base caps its attention scores, which the kernel does not"
    elif "sdpa" in found:
        found["varlen"] = "this base computes more than plain attention"
    if not getattr(model, "_supports_flex_attn", True):
        found["flex"] = "this base has none by its own class"
    return found


def _runs_varlen(precision: Precision) -> bool:
    """Does PyTorch's variable-length kernel run here? On a CPU ours goes row by row."""
    narrow = "bfloat16" in (precision.weights, precision.autocast)
    return precision.device == "cpu" or (narrow and torch.cuda.get_device_capability() >= (8, 0))


def _refuse_impossible(spec: TrainSpec, precision: Precision, can_pack: str | None, at: Callable[[str], str], lacks: Mapping[str, str]) -> None:
    device = precision.device
    if spec.batching == "packed" and can_pack is not None:
        refuse(at("batching"), "train.batching", "packed", "padded", f"write padded, or leave it out: {can_pack}")
    wanted = spec.kernels.attention
    if wanted in lacks:
        refuse(at("kernels"), "train.kernels.attention", wanted, "an attention that this base has", f"leave it to auto: {lacks[wanted]}")
    if wanted == "varlen" and not _runs_varlen(precision):
        refuse(at("kernels"), "train.kernels.attention", wanted, "sdpa, flex or eager here", "leave it to auto; varlen needs bf16 and compute capability 8.0")
    if wanted == "flex" and device == "cpu":
        refuse(at("kernels"), "train.kernels.attention", wanted, "sdpa, eager or varlen on a CPU", "leave it to auto: flex has no backward pass on a CPU")
    if wanted in ("varlen", "flex") and can_pack is not None:
        refuse(at("kernels"), "train.kernels.attention", wanted, "sdpa or eager", f"leave it to auto: {can_pack}")
    if spec.kernels.liger == "on" and (device == "cpu" or find_spec("liger_kernel") is None):
        refuse(at("kernels"), "train.kernels.liger", "on", "off or auto here", "it needs a CUDA device and `pip install tuner-lora[gpu]`")
    if spec.kernels.offload == "on" and device == "cpu":
        refuse(at("kernels"), "train.kernels.offload", "on", "off or auto on a CPU", "activations are in the machine's memory already")


def _batching(spec: TrainSpec, device: str, can_pack: str | None, lacks: Mapping[str, str]) -> tuple[bool, str]:
    if spec.batching != "auto":
        return spec.batching == "packed", f"rows {spec.batching}: the recipe says so"
    if spec.kernels.attention in ("varlen", "flex"):
        return True, f"rows packed: attention {spec.kernels.attention} is for packed rows"
    if spec.kernels.attention == "eager" or {"sdpa", "varlen"} <= lacks.keys():
        return False, "rows padded: eager attention keeps packed rows apart by no means of its own"
    if can_pack is not None:
        return False, f"rows padded: {can_pack}"
    if device == "cpu":
        return False, "rows padded, near lengths together: on a CPU that is faster than packing (recipes/LOG.md)"
    return True, "rows packed: no padding, and no row attends to another"


def _attention(spec: TrainSpec, precision: Precision, packed: bool, lacks: Mapping[str, str]) -> tuple[str, str]:
    if spec.kernels.attention != "auto":
        return spec.kernels.attention, f"attention {spec.kernels.attention}: the recipe says so"
    if "sdpa" in lacks:
        return "eager", f"attention eager: {lacks['sdpa']}"
    if packed and precision.device != "cpu":
        if "varlen" not in lacks and _runs_varlen(precision):
            return "varlen", "attention varlen: PyTorch's flash attention over rows of any length"
        return "sdpa", f"attention sdpa under a block mask: {lacks.get('varlen', 'varlen needs bf16 and compute capability 8.0')}"
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
    dropout: float = 0.0, sliding_window: int | None = None, cu_seq_lens_q: torch.Tensor | None = None, max_length_q: int | None = None, **given: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention (B, T, H, D) of packed rows from query (B, H, T, D), key and value (B, Hkv, T, D), by PyTorch's own variable-length kernel.

    `cu_seq_lens_q` (rows + 1,) int32 are the rows' starts and the end, `max_length_q` the longest: the collator gives both, so that no layer
    asks the device. A causal window of W tokens is (W - 1, 0), an unbounded one (-1, 0).
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise RuntimeError("varlen attention was called without the starts of the packed rows")
    more = [name for name in ("softcap", "s_aux", "position_bias") if given.get(name) is not None]
    if more or dropout or given.get("is_causal") is False or (query.device.type == "cpu" and sliding_window is not None):
        refuse("base", "train.kernels.attention", f"varlen, for a base whose attention also has {', '.join(more) or 'dropout, a window or no causal mask'}",
               "plain causal attention", "write kernels.attention: sdpa")  # fmt: skip
    batch, heads, tokens, width = query.shape
    if query.device.type == "cpu":
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
    try:
        model.set_attn_implementation(IMPLEMENTATIONS[attention])
    except (ValueError, ImportError) as error:
        refuse(
            "base", "train.kernels.attention", f"{attention}: {quoted(str(error), 160)}", "an attention that this base has", "write kernels.attention: eager"
        )


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


def refuse_other_logits(before: torch.Tensor, after: torch.Tensor, attention: str) -> None:
    """Raises Refusal where a switched attention gives other logits than the base's own, beyond rounding."""
    share = 1e-3 if before.dtype == torch.float32 else 2e-2
    apart, span = float((before.float() - after.float()).abs().max()), float(before.float().max() - before.float().min())
    if not apart <= share * span:
        refuse("base", "train.kernels.attention", f"{attention} gives logits {apart:.3g} apart from the base's own", f"at most {share * span:.3g}",
               "write kernels.attention: sdpa or eager")  # fmt: skip


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
