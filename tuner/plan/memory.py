"""How many bytes a training step holds, by running it on tensors without memory: shapes and kinds of numbers alone, no weights, no values.

The base is built from its config with one decoder layer and with two, the adapter is attached, and a forward and backward pass of the planned
micro-batch is followed allocation by allocation; every further layer adds the same. It refuses nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import AttentionMaskInterface

from tuner.base import Base, Precision

LEAN = "tuner_plan_lean"  # our name in transformers' table of attentions; one with "flash" in it would be looked for as a library


@dataclass(frozen=True, slots=True)
class Micro:
    """One forward pass of one rank: `rows` x `width` computed tokens, `labelled` of which carry loss. Packed rows are one row."""

    rows: int
    width: int
    labelled: int

    @property
    def tokens(self) -> int:
        return self.rows * self.width


@dataclass(frozen=True, slots=True)
class Way:
    """How a step is computed, as far as its memory goes.

    `attention`: flash keeps queries, keys, values and its output; math keeps the scores too (PyTorch's plain one, for short rows on a CPU);
    eager is transformers' own.
    """

    attention: str
    adapter_dtype: str
    liger: bool = False
    checkpointing: bool = False
    offload: bool = False
    loss_chunk: int = 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes read off the base and the adapter without weights. `linear` counts weights of every linear layer but the LM head."""

    parameters: int
    linear: int
    head: int
    trainable: int
    layers: int
    hidden: int
    heads: int
    head_width: int
    vocabulary: int

    def base_bytes(self, precision: Precision) -> int:
        """The frozen weights as they are held: linear layers by `base.load`, embeddings, LM head and norms never rounded."""
        return round(self.linear * precision.bytes_per_linear_weight) + (self.parameters - self.linear) * precision.bytes_per_other_weight


@dataclass(frozen=True, slots=True)
class Trace:
    """Bytes seen in one pass: held by the graph when the forward pass ends, and the most held above that in the forward and in the backward pass."""

    kept: int
    forward_workspace: int
    backward_workspace: int
    followed: bool = True  # False: by formula, for a base whose shapes depend on values (some mixtures of experts)


Adapt = Callable[[Any], Any]


def skeleton(base: Base, adapt: Adapt, layers: int | None = None, attention: str | None = None) -> tuple[Any, Any]:
    """(base, base with its adapter) on the meta device: no memory. With `layers`, only so many decoder layers."""
    config = deepcopy(AutoConfig.from_pretrained(base.folder, local_files_only=True, trust_remote_code=base.spec.trust_remote_code))
    text = config.get_text_config()
    if layers is not None:
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
    if attention is not None:
        config._attn_implementation = attention
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=base.spec.trust_remote_code)
        return model, adapt(model)


def model_shape(base: Base, adapt: Adapt) -> Shape:
    """Sizes of the base, and of the adapter that `adapt(model)` puts on it, at full depth."""
    model, adapted = skeleton(base, adapt)
    head, text = model.get_output_embeddings(), model.config.get_text_config()
    own = {id(p): p.numel() for p in adapted.parameters()}
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    heads = getattr(text, "num_attention_heads", 1)
    return Shape(
        parameters=sum(own.values()) - trainable,
        linear=sum(p.numel() for _, p in _frozen_linear(adapted, head)),
        head=head.weight.numel() if head is not None else 0,
        trainable=trainable,
        layers=getattr(text, "num_hidden_layers", 1),
        hidden=getattr(text, "hidden_size", 1),
        heads=heads,
        head_width=getattr(text, "head_dim", None) or getattr(text, "hidden_size", 1) // heads,
        vocabulary=head.weight.shape[0] if head is not None else 0,
    )


def depths(base: Base) -> tuple[int, ...]:
    """The numbers of layers to trace: 1 and 2, or the full depth where layers are of different kinds."""
    text = AutoConfig.from_pretrained(base.folder, local_files_only=True, trust_remote_code=base.spec.trust_remote_code).get_text_config()
    kinds = getattr(text, "layer_types", None) or ["layer"]
    full = getattr(text, "num_hidden_layers", 1)
    return (1, 2) if full > 2 and len(set(kinds)) == 1 else (full,)


def activations(base: Base, adapt: Adapt, micro: Micro, precision: Precision, way: Way, layers: int) -> Trace:
    """What all `layers` keep for the backward pass and need besides, at this micro-batch."""
    try:
        seen = [trace(base, adapt, micro, precision, way, depth) for depth in depths(base)]
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException, RuntimeError):  # what tensors without memory cannot do
        return _by_formula(base, micro, precision, way, layers)
    last = seen[-1]
    if len(seen) == 1:
        return last
    return replace(last, kept=seen[0].kept + (layers - 1) * (last.kept - seen[0].kept))


def _by_formula(base: Base, micro: Micro, precision: Precision, way: Way, layers: int) -> Trace:
    """34 bytes a token, hidden unit and layer in half precision, and 5 a head and pair of tokens where scores are kept; checkpointing keeps
    the input of each layer and one whole layer (Korthikanti et al. 2022, arXiv 2205.05198, equations 1 and 2)."""
    text = AutoConfig.from_pretrained(base.folder, local_files_only=True, trust_remote_code=base.spec.trust_remote_code).get_text_config()
    hidden, heads = getattr(text, "hidden_size", 1), getattr(text, "num_attention_heads", 1)
    wide = 1 if "bfloat16" in (precision.autocast, precision.weights) else 2
    scores = 0 if way.attention == "flash" else 5 * heads * micro.rows * micro.width**2
    layer = wide * (34 * micro.tokens * hidden + scores)
    kept = layer * layers if not way.checkpointing else 2 * wide * micro.tokens * hidden * layers + layer
    return Trace(kept, layer, layer, followed=False)


def trace(base: Base, adapt: Adapt, micro: Micro, precision: Precision, way: Way, layers: int) -> Trace:
    """One forward and backward pass over so many layers, up to the hidden states that go into the LM head (whose part is `head_bytes`)."""
    AttentionInterface.register(LEAN, _lean_attention)
    AttentionMaskInterface.register(LEAN, lambda *_args, **_given: None)
    real_kernels = precision.device == "cpu"  # only there the attention that will run is the one that can be followed
    name = "eager" if way.attention == "eager" else "sdpa" if real_kernels or way.attention == "math" else LEAN
    model, adapted = skeleton(base, adapt, layers, name)
    learnt_prompt = getattr(getattr(adapted, "active_peft_config", None), "is_prompt_learning", False)
    whole = model if learnt_prompt else adapted
    if way.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if way.checkpointing or learnt_prompt:
        model.enable_input_require_grads()
    plain = sdpa_kernel(SDPBackend.MATH) if way.attention == "math" else nullcontext()
    with FakeTensorMode(), plain:
        _without_memory(whole, model.get_output_embeddings(), precision, way)
        whole.train()
        return _followed(whole, model.get_output_embeddings(), micro, precision)


def head_bytes(shape: Shape, micro: Micro, precision: Precision, way: Way) -> int:
    """The loss at its peak: hidden states of labelled positions with their gradient, one chunk's logits in fp32 and their exponentials, the head as cast."""
    narrow = 2 if "bfloat16" in (precision.autocast, precision.weights) else 4
    chunk = min(micro.labelled, way.loss_chunk)
    cast = shape.head * narrow if narrow < precision.bytes_per_other_weight else 0
    return 2 * micro.labelled * shape.hidden * narrow + chunk * shape.vocabulary * 8 + cast


# --- following allocations -----------------------------------------------------------------------------------------


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts bytes of tensors made while it is open, and takes them off when their storage goes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor)
        return made

    def note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.known:
            size = storage.nbytes()
            self.known[storage] = size
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.gone, size)

    def gone(self, size: int) -> None:
        self.live -= size


def _followed(model: Any, head: Any, micro: Micro, precision: Precision) -> Trace:
    hidden: list[torch.Tensor] = []
    before_head: list[int] = []

    def keep(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden.append(inputs[0])
        before_head.append(ledger.peak)
        return (inputs[0][:, :1], *inputs[1:])

    ids = torch.zeros(micro.rows, micro.width, dtype=torch.long)
    mask = torch.ones(micro.rows, 1, micro.width, micro.width, dtype=torch.bool)
    narrow = getattr(torch, precision.autocast) if precision.autocast else torch.bfloat16
    handle, ledger = head.register_forward_pre_hook(keep), _Ledger()
    for given in (ids, mask, *model.parameters(), *model.buffers()):
        ledger.known[given.untyped_storage()] = 0  # there before the step
    with ledger, torch.autocast("cpu", narrow, enabled=precision.autocast is not None):
        model(input_ids=ids, attention_mask=mask, use_cache=False)
        handle.remove()
        kept = ledger.live
        ledger.peak = ledger.live
        top = hidden.pop()
        above = torch.ones_like(top)
        torch.autograd.backward(top, above)
    return Trace(kept + mask.numel(), before_head[0] - kept, ledger.peak - kept)


def _without_memory(model: Any, head: Any, precision: Precision, way: Way) -> None:
    """Turn every weight into one without memory, of the kind it will be held in; give rounded layers and lean kernels their way to compute."""
    rest, trained = getattr(torch, precision.weights), getattr(torch, way.adapter_dtype)
    rounded = {id(module): module for module, _ in _frozen_linear(model, head)} if precision.quantised else {}
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is None:
                continue
            held = (trained if weight.requires_grad else rest, tuple(weight.shape))
            if id(module) in rounded and name == "weight":
                held = torch.uint8, (round(weight.numel() * precision.bytes_per_linear_weight),)
            if id(weight) not in made:
                made[id(weight)] = torch.nn.Parameter(torch.empty(held[1], dtype=held[0]), requires_grad=weight.requires_grad)
            module._parameters[name] = made[id(weight)]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)
    for module in rounded.values():
        module.forward = partial(_rounded_linear, module, rest, precision.quantised == "int8")
    for module in list(model.modules()) if way.liger else ():
        _make_lean(module)


def _frozen_linear(model: Any, head: Any) -> Iterator[tuple[Any, torch.nn.Parameter]]:
    """Linear layers of the base but the LM head, each with its weight: what `base.load` may round."""
    for name, module in model.named_modules():
        frozen = isinstance(module, torch.nn.Linear) and module is not head and "lora_" not in name
        if frozen and not module.weight.requires_grad:
            yield module, module.weight


# --- kernels that cannot be followed here, by what they keep -----------------------------------------------------------


class _RoundedProduct(torch.autograd.Function):
    """x W^T with W made whole for the moment (bitsandbytes@0.50.2 autograd/_functions.py MatMul4Bit, MatMul8bitFp): int8 keeps x, 4 bits nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype, keep: bool) -> torch.Tensor:
        ctx.shape = shape
        ctx.save_for_backward(*([x] if keep else []))
        return x.to(dtype) @ torch.empty(shape, dtype=dtype).t()

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[torch.Tensor | None, ...]:
        return outer[0] @ torch.empty(ctx.shape, dtype=outer[0].dtype), None, None, None


def _rounded_linear(module: torch.nn.Linear, dtype: torch.dtype, keep: bool, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = _RoundedProduct.apply(x, (module.out_features, module.in_features), dtype, keep)  # type: ignore[no-untyped-call]
    return y if module.bias is None else y + module.bias


class _LeanAttention(torch.autograd.Function):
    """What flash attention keeps: queries, keys, values, output, and one fp32 number a head and token (Dao 2023, arXiv 2307.08691, algorithm 2)."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, torch.empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors[:3])


def _lean_attention(_module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
    out: torch.Tensor = _LeanAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


class _LeanNorm(torch.autograd.Function):
    """Liger's norm keeps its input and one number a token (linkedin/Liger-Kernel@v0.8.5, ops/rms_norm.py)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, torch.empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> torch.Tensor:
        return torch.empty_like(outer[0])


class _LeanGate(torch.autograd.Function):
    """Liger's gated activation keeps its two inputs (ops/swiglu.py)."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return torch.empty_like(gate)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[torch.Tensor, ...]:
        return ctx.saved_tensors  # type: ignore[no-any-return]


def _gated(module: Any, x: torch.Tensor) -> Any:
    return module.down_proj(_LeanGate.apply(module.gate_proj(x), module.up_proj(x)))  # type: ignore[no-untyped-call]


def _make_lean(module: Any) -> None:
    if type(module).__name__.endswith("RMSNorm"):
        module.forward = _LeanNorm.apply
    elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        module.forward = partial(_gated, module)
