"""Methods that scale or rotate activations: (IA)³, VeRA, OFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tuner.errors import refuse
from tuner.train.method_kind import NOT_LORA, Limits, Method, placed
from tuner.train.method_targets import adapted_layers, is_transposed, refuse_uneven_blocks, target_modules
from tuner.train.spec import MethodSpec

if TYPE_CHECKING:
    from peft import PeftConfig


_NO_ROWS = {"new_tokens": "PEFT trains single embedding rows beside LoRA and AdaLoRA only"}


class Ia3(Method):
    """(IA)³: one trained factor for each output of the layers, or each input of those that lead out of the feed-forward (arXiv 2205.05638, section 3.3)."""

    what = "one trained factor for each activation: the fewest weights of all that merge"
    limits = Limits(vllm=False, gguf=False, new_tokens=False,
                    reasons=_NO_ROWS | NOT_LORA)  # fmt: skip

    def config(self, spec: MethodSpec, model: Any, new_ids: Sequence[int] = ()) -> PeftConfig:
        from peft import IA3Config

        names = target_modules(spec, model)
        return IA3Config(**placed(spec, model, names), feedforward_modules=self._leading_out(model, names))

    def _leading_out(self, model: Any, names: Sequence[str]) -> list[str]:
        """Names whose layers take more than the model's width and give its width, as down_proj does: their inputs are scaled."""
        width = model.get_input_embeddings().weight.shape[1]
        outward = {name: [_shape(m) for m in adapted_layers(model, [name]).values()] for name in names}
        return [name for name, shapes in outward.items() if all(given > width and made == width for given, made in shapes)]

    def _config_class(self) -> type:
        from peft import IA3Config

        return IA3Config  # type: ignore[no-any-return]


class Vera(Method):
    """VeRA: random projections shared by all layers, a trained vector on each side (arXiv 2310.11454, eq. 2). The projections are saved too."""

    what = "two trained vectors a layer around random projections that all layers share: a tenth of LoRA's weights"
    limits = Limits(vllm=False, gguf=False, new_tokens=False,
                    reasons=_NO_ROWS | NOT_LORA)  # fmt: skip

    def config(self, spec: MethodSpec, model: Any, new_ids: Sequence[int] = ()) -> PeftConfig:
        import torch
        from peft import VeraConfig

        names = target_modules(spec, model)
        return VeraConfig(**placed(spec, model, names), r=spec.rank, vera_dropout=spec.dropout, save_projection=True,
                          projection_prng_key=torch.initial_seed() % 2**32)  # fmt: skip

    def _config_class(self) -> type:
        from peft import VeraConfig

        return VeraConfig  # type: ignore[no-any-return]


class Oft(Method):
    """OFT: blocks of each layer's input are rotated, which keeps the angles between neurons (arXiv 2306.07280, 2506.19847)."""

    what = "trained rotations of blocks of each layer's input; nothing is added"
    limits = Limits(vllm=False, gguf=False, new_tokens=False,
                    reasons=_NO_ROWS | NOT_LORA)  # fmt: skip

    def config(self, spec: MethodSpec, model: Any, new_ids: Sequence[int] = ()) -> PeftConfig:
        from peft import OFTConfig

        names = target_modules(spec, model)
        if is_transposed(model, names):
            refuse("recipe", "method.kind", "oft on a base of transposed layers (Conv1D)", "a base of linear layers", "use kind: lora")
        refuse_uneven_blocks(spec, model, names)
        return OFTConfig(**placed(spec, model, names), r=0, oft_block_size=spec.block_size, module_dropout=spec.dropout)

    def _config_class(self) -> type:
        from peft import OFTConfig

        return OFTConfig  # type: ignore[no-any-return]


def _shape(layer: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer, quantised or transposed."""
    return (layer.in_features, layer.out_features) if hasattr(layer, "in_features") else tuple(layer.weight.shape)
