"""LoRA and its kin: what PEFT writes as LoRA, and AdaLoRA, whose ranks are cut while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tuner.errors import refuse
from tuner.train.method_kind import BITSANDBYTES, FOUR_BIT, Limits, Method, placed, scaled_rank
from tuner.train.method_targets import ranks, target_modules
from tuner.train.spec import MethodSpec

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig

    from tuner.train.method_start import Batches


class Lora(Method):
    """LoRA: W + (alpha / r) B A, with B zero at the start (Hu et al. 2021, arXiv 2106.09685, section 4.1)."""

    what = "low-rank update B·A of the chosen linear layers"
    limits = Limits()
    options: Mapping[str, Any] = {}

    def config(self, spec: MethodSpec, model: Any, new_ids: Sequence[int] = ()) -> PeftConfig:
        from peft import LoraConfig

        names = target_modules(spec, model)
        other = ranks(spec, model, names)
        scaled = {} if self.options.get("use_rslora") else {path: (spec.alpha or 1.0) * rank / (spec.rank or 1) for path, rank in other.items()}
        return LoraConfig(**self.options, **scaled_rank(spec, model, names), **placed(spec, model, names, new_ids), rank_pattern=other, alpha_pattern=scaled)

    def continues(self, config: Any) -> bool:
        flags = ("use_dora", "use_rslora")
        return super().continues(config) and all(getattr(config, flag) == self.options.get(flag, False) for flag in flags)

    def _config_class(self) -> type:
        from peft import LoraConfig

        return LoraConfig  # type: ignore[no-any-return]


class RsLora(Lora):
    """rsLoRA: the update is scaled by alpha / sqrt(r), so that its size does not fall with the rank (arXiv 2312.03732, eq. 2)."""

    what = "LoRA scaled by alpha / sqrt(rank): for high ranks"
    options: Mapping[str, Any] = {"use_rslora": True}


class Dora(Lora):
    """DoRA: direction by LoRA, magnitude of every output trained apart (arXiv 2402.09353, eq. 5)."""

    what = "LoRA for the direction, a trained magnitude for each output: slower, closer to full training"
    options: Mapping[str, Any] = {"use_dora": True}
    limits = Limits(
        quantized=BITSANDBYTES, vllm=False, gguf=False,
        reasons={"quantized": "it needs the norm of the base's weights, which PEFT cannot read from fp8",
                 "vllm": "vLLM has no DoRA", "gguf": "a LoRA file of llama.cpp holds two matrices a layer, no magnitude"},
    )  # fmt: skip


class LoraPlus(Lora):
    """LoRA+: B learns faster than A (arXiv 2402.12354)."""

    what = "LoRA whose B learns faster than its A, by learning_rate_ratio"

    def rate(self, spec: MethodSpec, parameter: str) -> float:
        return (spec.learning_rate_ratio or 1.0) if ".lora_B." in parameter else 1.0


_INSIDE = {"quantized": "the part taken out of the base cannot be put back into rounded weights, so the saved adapter would not fit the untouched base"}


class Pissa(Lora):
    """PiSSA: A and B start as the largest singular directions of W, which keeps the rest (arXiv 2404.02948, eq. 2-4)."""

    what = "LoRA that starts as the principal part of the weights; saved as LoRA of twice the rank"
    limits = Limits(quantized=frozenset(), reasons=_INSIDE)

    def start(self, spec: MethodSpec, model: Any, batches: Batches | None) -> None:
        from tuner.train.method_start import principal, refuse_rank_above, start_inside

        refuse_rank_above(spec, model)
        start_inside(model, principal, scaled=True)


class Olora(Lora):
    """OLoRA: B and A start as the first columns of Q and rows of R of W (arXiv 2406.01775)."""

    what = "LoRA that starts orthonormal, from the QR decomposition of the weights; saved as LoRA of twice the rank"
    limits = Limits(quantized=frozenset(), reasons=_INSIDE)

    def start(self, spec: MethodSpec, model: Any, batches: Batches | None) -> None:
        from tuner.train.method_start import orthonormal, refuse_rank_above, start_inside

        refuse_rank_above(spec, model)
        start_inside(model, orthonormal, scaled=False)


class Loftq(Lora):
    """LoftQ: A and B start as the best correction of the 4-bit base's rounding error (arXiv 2310.08659, algorithm 1 with T = 1)."""

    what = "LoRA that starts by correcting the error of a 4-bit base; needs base.load nf4 or fp4"
    limits = Limits(
        quantized=FOUR_BIT, merges=False, vllm=False, gguf=False,
        reasons={"quantized": "it corrects the error of a 4-bit base", "merges": "it corrects the error of the 4-bit base, which the exact weights do not have",
                 "vllm": "it belongs to the 4-bit base it was trained on, whose exact bytes vLLM does not hold",
                 "gguf": "it corrects the error of the 4-bit base; a GGUF base has another"},
    )  # fmt: skip

    def start(self, spec: MethodSpec, model: Any, batches: Batches | None) -> None:
        from tuner.train.method_start import refuse_rank_above, start_from_quantisation_error

        refuse_rank_above(spec, model)
        start_from_quantisation_error(model)


class Eva(Lora):
    """EVA: A starts as the principal directions of each layer's inputs, ranks go where they explain most (arXiv 2410.07170)."""

    what = "LoRA that starts along the training data's own directions, with ranks where they explain most"
    limits = Limits(new_tokens=False, reasons={"new_tokens": "PEFT's EVA takes the trained embedding rows for a layer to start"})

    def start(self, spec: MethodSpec, model: Any, batches: Batches | None) -> None:
        from tuner.train.method_start import start_from_inputs

        start_from_inputs(spec, model, batches)


class AdaLora(Method):
    """AdaLoRA: P Λ Q whose least important singular values are cut while training (arXiv 2303.10512, algorithm 1)."""

    what = "low-rank update whose ranks are cut where they matter least, down to final_rank on average"
    limits = Limits(
        vllm=False, gguf=False,
        reasons={"vllm": "vLLM reads LoRA's two matrices, not AdaLoRA's three",
                 "gguf": "a LoRA file of llama.cpp holds two matrices a layer, not three"},
    )  # fmt: skip
    warmup, settled = 0.1, 0.3  # shares of the steps before ranks are cut and after: about those of the paper's GLUE runs (table 8)

    def config(self, spec: MethodSpec, model: Any, new_ids: Sequence[int] = ()) -> PeftConfig:
        from peft import AdaLoraConfig

        names = target_modules(spec, model)
        given = scaled_rank(spec, model, names) | placed(spec, model, names, new_ids)
        return AdaLoraConfig(**{k: v for k, v in given.items() if k != "r"}, init_r=spec.rank, target_r=spec.final_rank,
                             orth_reg_weight=spec.orthogonality, total_step=1)  # fmt: skip

    def extra_loss(self, spec: MethodSpec, model: Any) -> torch.Tensor | None:
        """orthogonality · mean of ||P'P - I|| over both factors of every layer (eq. 4; peft@0.21 tuners/adalora/model.py, `forward`)."""
        import torch

        factors = [(n, p.float()) for n, p in model.named_parameters() if ".lora_A." in n or ".lora_B." in n]
        products = [p @ p.T if ".lora_A." in n else p.T @ p for n, p in factors]
        norms = [torch.linalg.norm(product - torch.eye(len(product), device=product.device, dtype=product.dtype)) for product in products]
        return (spec.orthogonality or 0.0) * torch.stack(norms).mean()

    def after_step(self, spec: MethodSpec, model: Any, step: int, steps: int) -> None:
        """Cut ranks after step 1, 2, …, `steps`. Raises Refusal when the run is too short for a schedule."""
        config = model.peft_config["default"]
        config.total_step, config.tinit, config.tfinal = steps, round(self.warmup * steps), round(self.settled * steps)
        if steps < 4:
            refuse("recipe", "method.kind", f"adalora for {steps} steps", "at least 4 steps: ranks are cut between the first and the last",
                   "train longer, or use kind: lora")  # fmt: skip
        model.base_model.update_and_allocate(step)

    def _config_class(self) -> type:
        from peft import AdaLoraConfig

        return AdaLoraConfig  # type: ignore[no-any-return]
