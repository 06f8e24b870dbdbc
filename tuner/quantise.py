"""A frozen base in 4 or 8 bits: how it is loaded, and the fp8 linear layer that no library offers with a gradient.

It refuses fp8 where the hardware lacks it, and a merge into weights that are not held in 16 or 32 bits.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import ScalingType, scaled_mm

from tuner.errors import refuse
from tuner.safe_text import quoted

E4M3_LARGEST = 448.0  # largest number of float8_e4m3fn (Micikevicius et al. 2022, arXiv 2209.05433, table 1)
FP8_CAPABILITY = (8, 9)
FP8_MULTIPLE = 16  # torch's scaled_mm wants both sides of the weight to be multiples of it

logger = logging.getLogger("tuner")


def load_quantised(folder: Path, kind: str, compute: torch.dtype, device: str, *, sharded: bool, trust_remote_code: bool) -> torch.nn.Module:
    """The model of `folder` with every linear layer but the LM head held as `kind`; all other weights, and the products, in `compute`.

    `sharded`: 4-bit bytes lie in tensors of `compute`, since FSDP shards no integers; they are the same bytes.
    """
    if kind == "fp8":
        return _load_fp8(folder, compute, device, trust_remote_code)
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_8bit=kind == "int8", load_in_4bit=kind != "int8", bnb_4bit_quant_type=kind if kind != "int8" else "nf4",
        bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute, bnb_4bit_quant_storage=compute if sharded else torch.uint8,
    )  # fmt: skip
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=compute, quantization_config=config, device_map={"": device}, local_files_only=True, trust_remote_code=trust_remote_code
    )
    _train_as_served(model)
    return model


def _train_as_served(model: torch.nn.Module) -> None:
    """Undo what bitsandbytes 0.50 does differently in training and in answering. Measured on SmolLM2, CPU, 2026-11-20.

    4 bits, CPUs with AVX512-bf16: the first forward without gradients repacks the weights in place; from then on gradients are wrong without
    an error (norm 6.3 to 1.7) and dequantising gives garbage. 8 bits, CPU: training multiplies by the dequantised weights, answering
    rounds the activations to 8 bits too: other logits by up to 8.1, KL to fp32 0.109 instead of 0.012. Layers have no dropout,
    so `training` decides nothing else there.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
        elif isinstance(module, Linear8bitLt):
            module.register_forward_pre_hook(_dequantise_on_cpu)
            module.register_forward_hook(_keep_scales)


def _dequantise_on_cpu(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    if inputs[0].device.type == "cpu":
        module.training = True


def _keep_scales(module: Any, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
    """The first forward moves the scales away from the weight; a copy of the weight made later (PEFT makes one for DoRA) would have none."""
    module.weight.SCB = module.state.SCB


def quantised_layers(model: torch.nn.Module) -> list[str]:
    """Full names of the layers whose weights are held in 4 or 8 bits."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    return [name for name, module in model.named_modules() if isinstance(module, (Linear4bit, Linear8bitLt, Fp8Linear))]


def dequantised(layer: torch.nn.Module) -> torch.Tensor:
    """Weights (out, in) in fp32 that a quantised layer multiplies by."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear8bitLt

    weight: Any = layer.weight
    if isinstance(layer, Fp8Linear):
        return weight.view(torch.float8_e4m3fn).float() * layer.scales  # type: ignore[no-any-return]
    if isinstance(layer, Linear8bitLt):
        scales = layer.state.SCB if layer.state.SCB is not None else weight.SCB  # moved there by the first forward
        return weight.float() * scales[:, None] / 127  # type: ignore[no-any-return]
    return dequantize_4bit(weight.data, weight.quant_state).float()  # type: ignore[no-any-return]


def in_full(model: Any) -> Any:
    """The model in fp32, its quantised layers as plain ones that hold the rounded weights: the same function, ready for a merge."""
    for name in quantised_layers(model):
        layer = model.get_submodule(name)
        with torch.device("meta"):
            plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight, plain.bias = torch.nn.Parameter(dequantised(layer), requires_grad=False), layer.bias
        model.set_submodule(name, plain)
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    return model.float()


def guard_merge(model: torch.nn.Module, where: object) -> None:
    """Refuse to merge an adapter into rounded weights: the sum is rounded again, and most of a small update with it."""
    held = quantised_layers(model)
    if held:
        refuse(where, "merge", f"{len(held)} layers in 4 or 8 bits, the first of them {quoted(held[0])}", "a base in 16 or 32 bits",
               "merge into the base as tuner.base.load_for_merge gives it")  # fmt: skip


# --- fp8 -----------------------------------------------------------------------------------------------------------


def guard_fp8(device: str) -> None:
    """Refuse a device that cannot multiply fp8 numbers with a scale for each row, by trying the smallest product there."""
    if not device.startswith("cuda"):
        refuse("recipe", "base.load", f"fp8 on {quoted(device)}", "an NVIDIA GPU of compute capability 8.9 or higher: others only imitate fp8",
               "use int8 or nf4, or bf16")  # fmt: skip
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        refuse("recipe", "base.load", f"fp8 on compute capability {capability[0]}.{capability[1]}", "8.9 or higher (Ada, Hopper, Blackwell)",
               "use int8 or nf4, or bf16")  # fmt: skip
    some = torch.ones(FP8_MULTIPLE, FP8_MULTIPLE, device=device, dtype=torch.bfloat16)
    try:
        _scaled_product(*rows_in_fp8(some), *rows_in_fp8(some), fast=True)
    except RuntimeError as error:  # sm_120 with torch 2.10: pytorch/pytorch#192707
        refuse("recipe", "base.load", f"fp8: {quoted(str(error).splitlines()[0], 160)}", "a device and a torch with row-wise scaled products",
               "use int8 or nf4, or bf16")  # fmt: skip


def rows_in_fp8(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(M, K) as float8_e4m3fn with the row's largest magnitude at 448, and the scales (M, 1) in fp32 that undo it."""
    wide = values.float()
    scales = wide.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / E4M3_LARGEST
    return (wide / scales).to(torch.float8_e4m3fn), scales


def _scaled_product(left: torch.Tensor, left_scales: torch.Tensor, right: torch.Tensor, right_scales: torch.Tensor, fast: bool) -> torch.Tensor:
    """left (M, K) · right (N, K)ᵀ in bf16, both in fp8 with a scale for each row. `fast` sums in fewer bits (Hopper)."""
    product: torch.Tensor = scaled_mm(
        left, right.t(), left_scales, ScalingType.RowWise, right_scales.t(), ScalingType.RowWise, output_dtype=torch.bfloat16, use_fast_accum=fast
    )
    return product


class _Fp8Product(torch.autograd.Function):
    """x (M, K) · Wᵀ, and the gradient for x; W (N, K) is frozen. Both are fp8 products with row-wise scales.

    As torchao's recipe "rowwise" has it (pytorch/ao, float8/config.py), less accurate sums in the forward product only. The gradient's sum runs
    over W's rows, so their scales move into the incoming gradient before it is rounded.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight, scales)
        return _scaled_product(*rows_in_fp8(x), weight, scales, fast=True).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        weight, scales = ctx.saved_tensors
        scaled = rows_in_fp8(gradients[0].float() * scales.t())
        turned = weight.t().contiguous()
        ones = torch.ones(len(turned), 1, device=weight.device)
        return _scaled_product(*scaled, turned, ones, fast=False).to(gradients[0].dtype), None, None


class Fp8Linear(torch.nn.Linear):
    """A frozen linear layer in fp8: one byte a weight, one fp32 scale a row, rounded activations; gradients reach its input only.

    `weight` holds the bits as uint8, so that no library takes them for numbers to cast, or to add an adapter to. Own code because the others
    give no gradient: transformers' FineGrainedFP8 (huggingface/transformers#46736) and torchao's configs (pytorch/ao#4376) only answer.
    """

    def __init__(self, linear: torch.nn.Linear, device: str):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        held, scales = rows_in_fp8(linear.weight.detach().to(device))
        self.weight = torch.nn.Parameter(held.view(torch.uint8), requires_grad=False)
        self.register_buffer("scales", scales)
        if linear.bias is not None:
            self.bias = torch.nn.Parameter(linear.bias.detach().to(device), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        out: torch.Tensor = _Fp8Product.apply(rows, self.weight.view(torch.float8_e4m3fn), self.scales)  # type: ignore[no-untyped-call]
        out = out if self.bias is None else out + self.bias.to(out.dtype)
        return out.reshape(*x.shape[:-1], self.out_features)


def _load_fp8(folder: Path, compute: torch.dtype, device: str, trust_remote_code: bool) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    guard_fp8(device)
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=compute, local_files_only=True, trust_remote_code=trust_remote_code)
    return in_fp8(model, device)


def in_fp8(model: torch.nn.Module, device: str) -> torch.nn.Module:
    """The model on `device`, every linear layer but the LM head in fp8. Layers reach the device one by one, already small."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    kept = []
    for name, module in list(model.named_modules()):
        if type(module) is not torch.nn.Linear or module is head:
            continue
        if module.in_features % FP8_MULTIPLE or module.out_features % FP8_MULTIPLE:
            kept.append(name)
            continue
        model.set_submodule(name, Fp8Linear(module, device))
    if kept:
        logger.warning("%d layers stay in 16 bits, their sides are no multiples of %d: %s", len(kept), FP8_MULTIPLE, ", ".join(kept[:5]))
    return model.to(device)
