"""Where training starts, for methods that do not start from a random A and a zero B: from the base's weights, its inputs or its words.

It refuses a rank above what a layer has, weights that are not there to be decomposed, and inputs too few to tell directions from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from tuner.base import head_on
from tuner.errors import refuse
from tuner.quantise import dequantised
from tuner.safe_text import quoted
from tuner.train.spec import MethodSpec

ADAPTER = "default"  # PEFT's name for the one adapter of a model
OVERSAMPLED, ITERATIONS = 8, 4  # of the randomised SVD: its error is far below that of the rank (Halko et al. 2011, arXiv 0909.4061, section 1.6)
EVA_BATCHES = 64  # PEFT goes round them until the directions stand still

Factors = tuple[torch.Tensor, torch.Tensor]
Batches = Callable[[], Iterable[Mapping[str, torch.Tensor]]]

# A and B at the start, on the CPU, of models whose base gave up what they hold: saving needs them.
_STARTS: WeakKeyDictionary[Any, dict[str, Factors]] = WeakKeyDictionary()


def starting_factors(model: Any) -> dict[str, Factors]:
    """A (r, in) and B (out, r) at the start by layer, where the base was changed by them; else empty."""
    return _STARTS.get(model, {})


def lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The LoRA layers of a PEFT model with the path that PEFT's files use."""
    from peft.tuners.lora import LoraLayer

    return ((name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer) and ADAPTER in m.lora_A)


# --- from the base's weights ---------------------------------------------------------------------------------------


def principal(weight: torch.Tensor, rank: int) -> Factors:
    """A and B of the `rank` largest singular values of weight (out, in): B A is its best approximation (Eckart-Young)."""
    if 4 * (rank + OVERSAMPLED) < min(weight.shape):
        u, s, v = torch.svd_lowrank(weight, q=rank + OVERSAMPLED, niter=ITERATIONS)
    else:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        v = vh.T
    root = s[:rank].sqrt()
    return root[:, None] * v[:, :rank].T, u[:, :rank] * root


def orthonormal(weight: torch.Tensor, rank: int) -> Factors:
    """A and B from the QR decomposition: B the first columns of Q, A the first rows of R (OLoRA, arXiv 2406.01775, section 3)."""
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


@torch.no_grad()
def start_inside(model: Any, factors: Callable[[torch.Tensor, int], Factors], scaled: bool) -> None:
    """A and B from each layer's own weight, which then holds the rest: W - s·B·A, so that the model starts as the base.

    `scaled`: the factors' product is a part of W, so they are divided by the scale s (PiSSA); else they are taken as they are (OLoRA).
    The rest is computed with A and B as rounded to the adapter's precision, or the start would not be the base.
    """
    starts: dict[str, Factors] = {}
    for path, layer in lora_layers(model):
        base, (down, up), scale = layer.get_base_layer(), _factors_of(layer), layer.scaling[ADAPTER]
        whole = _upright(base.weight, layer).float()
        a, b = factors(whole, down.shape[0])
        root = scale**-0.5 if scaled else 1.0
        down.copy_(a * root)
        up.copy_(b * root)
        base.weight.copy_(_upright(whole - scale * (up.float() @ down.float()), layer))
        starts[path] = (down.detach().cpu().clone(), up.detach().cpu().clone())
    _STARTS[model] = starts


@torch.no_grad()
def start_from_quantisation_error(model: Any) -> None:
    """A and B from the error of the 4-bit weights: s·B·A is the best rank-r part of W - Q (LoftQ, arXiv 2310.08659, algorithm 1, T = 1).

    With one alternating step Q is the 4-bit base itself, so the saved adapter loads on that base as it is.
    """
    with _weights_at_rest(model) as read:
        for path, layer in lora_layers(model):
            base, (down, up), scale = layer.get_base_layer(), _factors_of(layer), layer.scaling[ADAPTER]
            exact = read(f"{path.removeprefix('base_model.model.')}.weight").to(base.weight.device).float()
            a, b = principal(exact - dequantised(base), down.shape[0])
            down.copy_(a * scale**-0.5)
            up.copy_(b * scale**-0.5)


@contextmanager
def _weights_at_rest(model: Any) -> Iterator[Callable[[str], torch.Tensor]]:
    """While open, reads one tensor of the base's own safetensors files by name, so that the 16-bit weights are never whole in memory."""
    from safetensors import safe_open

    folder = Path(model.get_base_model().name_or_path)
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(f, framework="pt")) for f in sorted(folder.glob("*.safetensors"))]
        homes = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping

        def read(name: str) -> torch.Tensor:
            if name not in homes:
                refuse(folder.name, "method.kind", f"no tensor {quoted(name)} in the base's files", "loftq on a base whose files hold its layers by name",
                       "use kind: lora")  # fmt: skip
            tensor: torch.Tensor = homes[name].get_tensor(name)
            return tensor

        yield read


def _factors_of(layer: Any) -> Factors:
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def _upright(weight: torch.Tensor, layer: Any) -> torch.Tensor:
    """(out, in) from the layer's own order and back: GPT-2's Conv1D holds (in, out)."""
    return weight.T if layer.fan_in_fan_out else weight


def refuse_rank_above(spec: MethodSpec, model: Any) -> None:
    """A decomposition has no more directions than the layer's smaller side."""
    for path, layer in lora_layers(model):
        rank, side = layer.r[ADAPTER], min(layer.in_features, layer.out_features)
        if rank > side:
            refuse("recipe", "method.rank", rank, f"at most {side}, the smaller side of {path.removeprefix('base_model.model.')}: {spec.kind} decomposes it",
                   f"set it to {side} or lower")  # fmt: skip


# --- from the base's inputs ----------------------------------------------------------------------------------------


def start_from_inputs(spec: MethodSpec, model: Any, batches: Batches | None) -> None:
    """A from the principal directions of each layer's inputs, ranks where they explain most (EVA, arXiv 2410.07170, section 3), by PEFT."""
    from peft import initialize_lora_eva_weights
    from peft.tuners.lora.config import EvaConfig

    if batches is None:
        raise ValueError("kind: eva needs batches of training rows")
    needed = round((spec.rank or 1) * (spec.rho or 1.0))
    width = min(layer.in_features for _, layer in lora_layers(model))
    if needed > width:
        refuse("recipe", "method.rank", f"rank·rho = {needed}", f"at most {width}, the narrowest input of an adapted layer", "lower method.rank or method.rho")
    rows = [{k: b[k] for k in ("input_ids", "attention_mask")} for b in islice(batches(), EVA_BATCHES)]
    usable = [b for b in rows if int(b["attention_mask"].sum()) > needed]
    if not usable:
        most = max((int(b["attention_mask"].sum()) for b in rows), default=0)
        refuse("recipe", "method.rank", f"rank·rho = {needed} directions from batches of at most {most} tokens", "more tokens in a batch than directions",
               "lower method.rank or method.rho, or raise train.tokens_per_step")  # fmt: skip
    config = model.peft_config[ADAPTER]
    config.init_lora_weights, config.eva_config = "eva", EvaConfig(rho=spec.rho, use_label_mask=False)
    initialize_lora_eva_weights(model, usable, forward_fn=_forward, gather_distributed_inputs=False, show_progress_bar=False)
    config.init_lora_weights, config.eva_config = True, None


def _forward(model: Any, inputs: Mapping[str, torch.Tensor]) -> Any:
    """The model on a batch, its LM head on one position: only the inputs of inner layers are wanted."""
    one = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    one[0, 0] = True
    with head_on(model, one):
        return model(**inputs, use_cache=False)


# --- from the base's words -----------------------------------------------------------------------------------------


@torch.no_grad()
def start_from_words(spec: MethodSpec, model: Any) -> None:
    """Virtual tokens start as the embeddings of words (Lester et al. 2021, arXiv 2104.08691, section 3.2)."""
    ids = _words(spec, model)
    model.prompt_encoder[ADAPTER].embedding.weight.copy_(model.get_base_model().get_input_embeddings()(ids))


@torch.no_grad()
def start_from_keys_of_words(spec: MethodSpec, model: Any) -> None:
    """The prefix starts as the keys and values of words (Li and Liang 2021, arXiv 2101.00190, section 7.4: real words beat random)."""
    base, weight = model.get_base_model(), model.prompt_encoder[ADAPTER].embedding.weight
    cache = base(input_ids=_words(spec, model)[None], use_cache=True).past_key_values
    pairs = [half for layer in cache.layers for half in (layer.keys, layer.values)]  # each (1, heads, V, width)
    if len({p.shape for p in pairs}) != 1 or sum(p.numel() for p in pairs) != weight.numel():
        refuse("recipe", "method.kind", "prefix on a base whose layers keep keys of different shapes", "a base with equal layers", "use kind: prompt or lora")
    weight.copy_(torch.cat(pairs).permute(2, 0, 1, 3).reshape(weight.shape))


def _words(spec: MethodSpec, model: Any) -> torch.Tensor:
    """Token ids (V,) the virtual tokens start from: those of `init_text`, repeated, or random ones of the vocabulary."""
    count, embeddings = int(model.peft_config[ADAPTER].num_virtual_tokens), model.get_base_model().get_input_embeddings()
    if spec.init_text is None:
        return torch.randint(0, embeddings.num_embeddings, (count,)).to(embeddings.weight.device)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.get_base_model().name_or_path, local_files_only=True)
    ids = tokenizer(spec.init_text, add_special_tokens=False)["input_ids"]
    if not 0 < len(ids) <= count:
        refuse("recipe", "method.init_text", f"{len(ids)} tokens", f"1 to {count}, the virtual tokens", "shorten the text, or raise method.virtual_tokens")
    return torch.tensor((ids * (count // len(ids) + 1))[:count], device=embeddings.weight.device)
