"""adapter_config.json held against a schema of our own: what tuner's methods write, and the exact tensors that each config means.

It refuses unknown keys and values, patterns where names belong, code to import, sizes out of bounds, and weights that are more, fewer or other than
the config says. PEFT itself compiles names as patterns, drops what does not fit and allocates what it is told (faults A7-A9).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from tuner.artifact.safetensors_header import Tensor
from tuner.safe_text import quoted, visible
from tuner.section import Section

MOST_BYTES = 256 * 1024
MOST_RANK = 4096  # a recipe's rank goes up to 1024, and PiSSA and OLoRA are written with twice theirs
MOST_RANK_OF_LAYER = 16_384  # EVA: up to 16 times the rank
MOST_SCALE = 65_536.0  # alpha / rank of the widest recipe
PREFIX = "base_model.model."
ROWS = ".token_adapter.trainable_tokens_delta"

ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=256)]  # PEFT uses names as patterns: these mean themselves
Names = Annotated[list[ModuleName], Field(min_length=1, max_length=65_536)]
Whole = Annotated[int, Field(ge=0, le=2**32)]
Share = Annotated[float, Field(ge=0, lt=1)]
Alpha = Annotated[float, Field(gt=0, le=MOST_SCALE * MOST_RANK_OF_LAYER, allow_inf_nan=False)]
Flags = Annotated[list[bool], Field(max_length=MOST_RANK)]
Empty = Annotated[dict[str, None], Field(max_length=0)]
Layers = dict[str, dict[str, Tensor]]  # tensors by the layer's path and their last names


class Problem(NamedTuple):
    """One thing that is wrong with a file: the key or tensor, what was found, what would be accepted."""

    field: str
    found: str
    accepted: str


class AdapterConfig(Section):
    """What all kinds share. A base's name is a name: nothing is ever opened by it."""

    peft_type: str
    task_type: Literal["CAUSAL_LM"]
    auto_mapping: None = None
    base_model_name_or_path: Annotated[str, Field(max_length=512)] | None = None
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    inference_mode: Literal[True] = True
    peft_version: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+@-]{1,64}$")] | None = None

    @abstractmethod
    def tensor_problems(self, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
        """What of the file's tensors is not what this config means."""

    @abstractmethod
    def layers(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int | None, int | None]]:
        """(inputs, outputs) of every adapted layer by its path in the base, as far as the tensors tell them."""


class LayerConfig(AdapterConfig):
    """Kinds that sit on layers. `parts` are the last names of one layer's tensors."""

    parts: ClassVar[tuple[str, ...]] = ()
    target_modules: Names
    modules_to_save: Annotated[list[ModuleName], Field(min_length=1, max_length=256)] | None = None
    fan_in_fan_out: bool = False
    exclude_modules: None = None
    layers_to_transform: None = None
    layers_pattern: None = None
    bias: Literal["none"] = "none"

    def tensor_problems(self, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
        layers, others = self._parted(tensors)
        yield from self._layer_problems(layers)
        yield from self._other_problems({name: tensor for name, tensor in others.items() if name not in self._shared()})
        yield from self._shared_problems(tensors)

    def layers(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int | None, int | None]]:
        return {path: self._sides(of) for path, of in self._parted(tensors)[0].items()}

    def saved_whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of modules that are saved whole, by their names in the base."""
        others = self._parted(tensors)[1]
        return {name.removeprefix(PREFIX): tensor for name, tensor in others.items() if name not in self._shared() and not name.endswith(ROWS)}

    def rank_of(self, path: str) -> int | None:
        """The rank of the layer at `path`; None for kinds without one."""
        return None

    @abstractmethod
    def _shapes(self, path: str, of: Mapping[str, Tensor]) -> bool:
        """Have the tensors of one layer, which are all there, shapes that belong together?"""

    @abstractmethod
    def _sides(self, of: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
        """(inputs, outputs) of one layer, as far as its tensors tell them."""

    def _wanted_parts(self) -> tuple[str, ...]:
        return self.parts

    def _shared(self) -> tuple[str, ...]:
        """Names of tensors that all layers share."""
        return ()

    def _shared_problems(self, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
        yield from (Problem(name, "no such tensor", "every tensor that adapter_config.json means") for name in self._shared() if name not in tensors)

    def _parted(self, tensors: Mapping[str, Tensor]) -> tuple[Layers, dict[str, Tensor]]:
        """The tensors of adapted layers, and the others by their whole names."""
        layers: Layers = {}
        others, targets = dict(tensors), frozenset(self.target_modules)
        for name in tensors:
            part = next((p for p in self._wanted_parts() if name.endswith(f".{p}")), None)
            path = name.removeprefix(PREFIX)[: -len(part) - 1] if part and name.startswith(PREFIX) else ""
            if path and not targets.isdisjoint(ends(path)):  # as PEFT finds targets by a list: whole paths, and the ends of paths
                layers.setdefault(path, {})[str(part)] = others.pop(name)
        return layers, others

    def _layer_problems(self, layers: Layers) -> Iterator[Problem]:
        met: set[str] = set()
        for path, of in layers.items():
            met.update(ends(path))
            if missing := set(self._wanted_parts()) - set(of):
                yield Problem(f"{path}.{min(missing)}", "no such tensor", "every tensor of every adapted layer")
            elif not all(t.shape and len(t.shape) <= 2 for t in of.values()) or not self._shapes(path, of):
                shapes = ", ".join(f"{part} {list(of[part].shape)}" for part in sorted(of))
                rank = "" if self.rank_of(path) is None else f" of rank {self.rank_of(path)}"
                yield Problem(path, shapes, f"shapes that fit each other and adapter_config.json{rank}")
        yield from (Problem("target_modules", f"{name}, which no tensor belongs to", "names of layers that were trained")
                    for name in self.target_modules if name not in met)  # fmt: skip

    def _other_problems(self, others: Mapping[str, Tensor]) -> Iterator[Problem]:
        """Modules saved whole are there, and nothing besides. PEFT takes a saved module's name as the end of a path, in the middle of a word too."""
        saved = tuple(self.modules_to_save or ())
        unmet = set(saved)
        for name in others:
            path = name.removeprefix(PREFIX)
            beginnings = [".".join(path.split(".")[:n]) for n in range(1, path.count(".") + 1)] if name.startswith(PREFIX) else []
            of = {module for module in saved if any(b.endswith(module) for b in beginnings)}
            if not of and not self._is_tied(beginnings):
                yield Problem(name, "a tensor that adapter_config.json does not mean", "the adapter's tensors, and no others")
            unmet -= of
        yield from (Problem("modules_to_save", f"{name}, which no tensor belongs to", "names of modules that were trained") for name in sorted(unmet))

    def _is_tied(self, beginnings: list[str]) -> bool:
        """Is it the LM head or the embedding that is saved because the other one is?"""
        return False


class TokenRowsConfig(LayerConfig):
    """Kinds that can train embedding rows of new tokens besides."""

    trainable_token_indices: Annotated[dict[ModuleName, Annotated[list[Whole], Field(min_length=1, max_length=2**20)]], Field(max_length=8)] | None = None
    ensure_weight_tying: bool = False
    target_parameters: None = None

    def token_rows(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
        """(highest row, width) of each embedding that has trained rows, by its weight's name in the base."""
        found = {}
        for module, rows in (self.trainable_token_indices or {}).items():
            for name, tensor in tensors.items():
                if _ends_with(name, f"{module}{ROWS}"):
                    found[f"{name.removeprefix(PREFIX).removesuffix(ROWS)}.weight"] = (max(rows), tensor.shape[1])
        return found

    def _other_problems(self, others: Mapping[str, Tensor]) -> Iterator[Problem]:
        left = dict(others)
        for module, rows in (self.trainable_token_indices or {}).items():
            end = f"{module}{ROWS}"
            names = [name for name in others if name.startswith(PREFIX) and _ends_with(name, end)]
            if len(names) != 1 or len(others[names[0]].shape) != 2 or others[names[0]].shape[0] != len(set(rows)):
                yield Problem(end, f"{len(names)} tensors", f"one tensor of {len(set(rows))} rows")
            for name in names:
                left.pop(name, None)
        yield from super()._other_problems(left)

    def _is_tied(self, beginnings: list[str]) -> bool:
        return self.ensure_weight_tying and bool(self.modules_to_save) and any(b.rpartition(".")[2] in ("lm_head", "embed_tokens") for b in beginnings)


class LoraConfig(TokenRowsConfig):
    """LoRA and what is saved as LoRA: rsLoRA, DoRA, LoRA+, PiSSA, OLoRA, LoftQ, EVA."""

    parts: ClassVar[tuple[str, ...]] = ("lora_A.weight", "lora_B.weight")
    peft_type: Literal["LORA"]
    r: Annotated[int, Field(ge=1, le=MOST_RANK)]
    lora_alpha: Alpha
    lora_dropout: Share = 0.0
    rank_pattern: Annotated[dict[ModuleName, Annotated[int, Field(ge=1, le=MOST_RANK_OF_LAYER)]], Field(max_length=65_536)] = {}  # noqa: RUF012 (pydantic copies it)
    alpha_pattern: Annotated[dict[ModuleName, Alpha], Field(max_length=65_536)] = {}  # noqa: RUF012
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: Literal[True] = True
    loftq_config: Empty | None = None
    megatron_core: Literal["megatron.core"] | None = None  # PEFT's default, which it imports only with megatron_config
    megatron_config: None = None
    layer_replication: None = None
    lora_bias: Literal[False] = False
    use_qalora: Literal[False] = False
    qalora_group_size: Annotated[int, Field(ge=1, le=4096)] = 16  # not used without use_qalora
    alora_invocation_tokens: None = None
    arrow_config: None = None
    corda_config: None = None
    eva_config: None = None
    kasa_config: None = None
    lora_ga_config: None = None
    monteclora_config: None = None
    use_bdlora: None = None
    velora_config: None = None

    @model_validator(mode="after")
    def _scale_in_bounds(self) -> LoraConfig:
        for path in ("", *self.alpha_pattern, *self.rank_pattern):
            alpha, rank = self.alpha_pattern.get(path, self.lora_alpha), self.rank_pattern.get(path, self.r)
            if alpha / (rank**0.5 if self.use_rslora else rank) > MOST_SCALE:
                raise ValueError(f"the update of {path or 'a layer'} is scaled by more than {MOST_SCALE:,.0f}")
        return self

    def rank_of(self, path: str) -> int:
        return self.rank_pattern.get(path, self.r)

    def _wanted_parts(self) -> tuple[str, ...]:
        return (*self.parts, "lora_magnitude_vector") if self.use_dora else self.parts

    def _shapes(self, path: str, of: Mapping[str, Tensor]) -> bool:
        down, up = of["lora_A.weight"].shape, of["lora_B.weight"].shape
        fits = len(down) == len(up) == 2 and down[0] == up[1] == self.rank_of(path)
        return fits and (not self.use_dora or of["lora_magnitude_vector"].shape == (up[0],))

    def _sides(self, of: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
        return of["lora_A.weight"].shape[1], of["lora_B.weight"].shape[0]

    def _layer_problems(self, layers: Layers) -> Iterator[Problem]:
        yield from super()._layer_problems(layers)
        for key, pattern in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            yield from (Problem(key, f"{path}, which is no adapted layer", "whole paths of adapted layers") for path in pattern if path not in layers)


class AdaLoraConfig(LoraConfig):
    """AdaLoRA: `rank_pattern` says which of a layer's first `init_r` directions were kept."""

    parts: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B", "lora_E")
    peft_type: Literal["ADALORA"]  # type: ignore[assignment]
    r: Annotated[int, Field(ge=1, le=MOST_RANK)] = 8  # PEFT's default, which AdaLoRA does not use
    rank_pattern: Annotated[dict[ModuleName, Flags], Field(max_length=65_536)] | None = None  # type: ignore[assignment]
    use_dora: Literal[False] = False
    init_r: Annotated[int, Field(ge=1, le=MOST_RANK)]
    target_r: Annotated[int, Field(ge=1, le=MOST_RANK)] = 8
    tinit: Whole = 0
    tfinal: Whole = 0
    deltaT: Annotated[int, Field(ge=1, le=2**32)] = 1
    beta1: Share = 0.85
    beta2: Share = 0.85
    orth_reg_weight: Annotated[float, Field(ge=0, le=1e6)] = 0.5
    total_step: Whole | None = None

    @model_validator(mode="after")
    def _scale_in_bounds(self) -> AdaLoraConfig:
        if self.alpha_pattern or self.lora_alpha > MOST_SCALE:
            raise ValueError(f"alpha is one for all layers, and at most {MOST_SCALE:,.0f}")
        return self

    def rank_of(self, path: str) -> int:
        kept = (self.rank_pattern or {}).get(f"{path}.lora_E")
        return self.init_r if kept is None else sum(kept)

    def _shapes(self, path: str, of: Mapping[str, Tensor]) -> bool:
        down, up, middle, rank = of["lora_A"].shape, of["lora_B"].shape, of["lora_E"].shape, self.rank_of(path)
        return len(down) == len(up) == 2 and down[0] == up[1] == rank and middle == (rank, 1)

    def _sides(self, of: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
        return of["lora_A"].shape[1], of["lora_B"].shape[0]

    def _layer_problems(self, layers: Layers) -> Iterator[Problem]:
        yield from LayerConfig._layer_problems(self, layers)
        for name, kept in (self.rank_pattern or {}).items():
            path, _, end = name.rpartition(".")
            if end != "lora_E" or path not in layers or len(kept) != self.init_r:
                yield Problem("rank_pattern", f"{visible(name, 120)} of {len(kept)}", f"lora_E of adapted layers, {self.init_r} flags each")


class Ia3Config(LayerConfig):
    """(IA)³."""

    parts: ClassVar[tuple[str, ...]] = ("ia3_l",)
    peft_type: Literal["IA3"]
    feedforward_modules: Annotated[list[ModuleName], Field(max_length=65_536)] = []  # noqa: RUF012
    init_ia3_weights: Literal[True] = True

    def _shapes(self, path: str, of: Mapping[str, Tensor]) -> bool:
        shape = of["ia3_l"].shape
        return len(shape) == 2 and shape[0 if self._scales_inputs(path) else 1] == 1

    def _sides(self, of: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
        outputs, inputs = of["ia3_l"].shape
        return (inputs, None) if outputs == 1 else (None, outputs)

    def _scales_inputs(self, path: str) -> bool:
        return not self._forward.isdisjoint(ends(path))

    @cached_property
    def _forward(self) -> frozenset[str]:
        return frozenset(self.feedforward_modules)

    @model_validator(mode="after")
    def _feeds_forward_what_it_targets(self) -> Ia3Config:
        if odd := sorted(set(self.feedforward_modules) - set(self.target_modules)):
            raise ValueError(f"feedforward_modules names {odd[0]}, which target_modules does not")
        return self


class VeraConfig(LayerConfig):
    """VeRA, with its projections."""

    parts: ClassVar[tuple[str, ...]] = ("vera_lambda_b", "vera_lambda_d")
    peft_type: Literal["VERA"]
    r: Annotated[int, Field(ge=1, le=MOST_RANK)]
    projection_prng_key: Whole = 0
    save_projection: Literal[True] = True
    vera_dropout: Share = 0.0
    d_initial: Annotated[float, Field(ge=-1e3, le=1e3)] = 0.1
    init_weights: Literal[True] = True

    def rank_of(self, path: str) -> int:
        return self.r

    def _shapes(self, path: str, of: Mapping[str, Tensor]) -> bool:
        return len(of["vera_lambda_b"].shape) == 1 and of["vera_lambda_d"].shape == (self.r,)

    def _sides(self, of: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
        return None, of["vera_lambda_b"].shape[0]

    def _shared(self) -> tuple[str, ...]:
        return "base_model.vera_A", "base_model.vera_B"

    def _shared_problems(self, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
        yield from super()._shared_problems(tensors)
        widest = max((of["vera_lambda_b"].shape[0] for of in self._parted(tensors)[0].values() if "vera_lambda_b" in of), default=0)
        for name, place, wanted in (("base_model.vera_A", 0, self.r), ("base_model.vera_B", 1, self.r), ("base_model.vera_B", 0, widest)):
            shape = tensors[name].shape if name in tensors else None
            if shape is not None and (len(shape) != 2 or shape[place] != wanted):
                yield Problem(name, f"shape {list(shape)}", f"two sides, the {('first', 'second')[place]} of {wanted}")


class OftConfig(LayerConfig):
    """OFT."""

    parts: ClassVar[tuple[str, ...]] = ("oft_R.weight",)
    peft_type: Literal["OFT"]
    r: Literal[0] = 0
    oft_block_size: Annotated[int, Field(ge=2, le=1024)]
    module_dropout: Share = 0.0
    init_weights: Literal[True] = True
    coft: Literal[False] = False
    eps: Annotated[float, Field(ge=0, le=1)] = 6e-5
    block_share: Literal[False] = False
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: Annotated[int, Field(ge=1, le=100)] = 5

    def _shapes(self, path: str, of: Mapping[str, Tensor]) -> bool:
        shape, size = of["oft_R.weight"].shape, self.oft_block_size
        return len(shape) == 2 and shape[0] > 0 and shape[1] == size * (size - 1) // 2

    def _sides(self, of: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
        return of["oft_R.weight"].shape[0] * self.oft_block_size, None


class PromptConfig(AdapterConfig):
    """Prompt tuning, and what prefix and P-tuning share. No tokenizer is named: PEFT would fetch it."""

    peft_type: Literal["PROMPT_TUNING"]
    num_virtual_tokens: Annotated[int, Field(ge=1, le=4096)]
    token_dim: Annotated[int, Field(ge=1, le=2**17)]
    num_layers: Annotated[int, Field(ge=1, le=4096)]
    num_attention_heads: Annotated[int, Field(ge=1, le=4096)]
    num_transformer_submodules: Literal[1] = 1
    modules_to_save: None = None

    def tensor_problems(self, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
        wanted = (self.num_virtual_tokens, self._width())
        if set(tensors) != {"prompt_embeddings"} or tensors["prompt_embeddings"].shape != wanted:
            found = ", ".join(f"{visible(name, 80)} {list(t.shape)}" for name, t in list(tensors.items())[:3])
            yield Problem("prompt_embeddings", found, f"prompt_embeddings {list(wanted)}, and no others")

    def layers(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int | None, int | None]]:
        return {}

    def _width(self) -> int:
        return self.token_dim


class PromptTuningConfig(PromptConfig):
    prompt_tuning_init: Literal["RANDOM"] = "RANDOM"
    prompt_tuning_init_text: None = None
    tokenizer_name_or_path: None = None
    tokenizer_kwargs: None = None


class PTuningConfig(PromptConfig):
    """The network that made the tokens is not in the file, and not built for inference."""

    peft_type: Literal["P_TUNING"]  # type: ignore[assignment]
    encoder_reparameterization_type: Literal["MLP"] = "MLP"
    encoder_hidden_size: Annotated[int, Field(ge=1, le=16_384)] | None = None
    encoder_num_layers: Annotated[int, Field(ge=1, le=16)] = 2
    encoder_dropout: Share = 0.0


class PrefixConfig(PromptConfig):
    """Keys and values of every layer."""

    peft_type: Literal["PREFIX_TUNING"]  # type: ignore[assignment]
    encoder_hidden_size: Annotated[int, Field(ge=1, le=2**17)] | None = None
    prefix_projection: Literal[False] = False
    init_weights: bool | None = None

    def _width(self) -> int:
        return 2 * self.num_layers * self.token_dim


def ends(path: str) -> Iterator[str]:
    """The path, and every end of it that begins at a dot."""
    while path:
        yield path
        path = path.partition(".")[2]


def _ends_with(path: str, end: str) -> bool:
    return path == end or path.endswith(f".{end}")


def read_config(said: Any) -> AdapterConfig | list[Problem]:
    """The config that the JSON says, or everything that is wrong with it.

    A key we do not know is let through where it is null or false, which is how a later PEFT writes an option that is off.
    """
    if not isinstance(said, dict):
        return [Problem("", quoted(said), "a JSON object")]
    kind = CONFIGS.get(said["peft_type"]) if isinstance(said.get("peft_type"), str) else None
    if kind is None:
        return [Problem("peft_type", quoted(said.get("peft_type")), f"one of: {', '.join(CONFIGS)}")]
    known = {key: value for key, value in said.items() if key in kind.model_fields or not (value is None or value is False)}
    try:
        config = kind.model_validate(known)
    except ValidationError as error:
        return [_problem(kind, fault) for fault in error.errors(include_url=False)]
    return [Problem("base_model_name_or_path", quoted(config.base_model_name_or_path), "a plain name")] if _is_place(config) else config


def _problem(kind: type[AdapterConfig], fault: Any) -> Problem:
    field = visible(".".join(map(str, fault["loc"])), 120)
    if fault["type"] == "extra_forbidden":
        return Problem(field, "a key that tuner's adapters do not have", f"the keys of {kind.__name__.removesuffix('Config')}")
    return Problem(field, quoted(fault["input"]) if fault["type"] not in ("missing", "value_error") else fault["type"], visible(fault["msg"], 200))


def _is_place(config: AdapterConfig) -> bool:
    """Does the base's name lead somewhere, as a path or an address does?"""
    name = config.base_model_name_or_path or ""
    return name.startswith(("/", "~", "\\")) or ":" in name or ".." in name.split("/") or visible(name) != name


CONFIGS: dict[str, type[AdapterConfig]] = {
    "LORA": LoraConfig,
    "ADALORA": AdaLoraConfig,
    "IA3": Ia3Config,
    "VERA": VeraConfig,
    "OFT": OftConfig,
    "PROMPT_TUNING": PromptTuningConfig,
    "P_TUNING": PTuningConfig,
    "PREFIX_TUNING": PrefixConfig,
}

# What each kind of a recipe is saved as: PEFT's type, and the flags that tell it from others of that type.
SAVED_AS: dict[str, tuple[str, dict[str, bool]]] = {
    **{kind: ("LORA", {"use_dora": False, "use_rslora": False}) for kind in ("lora", "lora_plus", "pissa", "olora", "loftq", "eva")},
    "rslora": ("LORA", {"use_dora": False, "use_rslora": True}),
    "dora": ("LORA", {"use_dora": True, "use_rslora": False}),
    "adalora": ("ADALORA", {}),
    "ia3": ("IA3", {}),
    "vera": ("VERA", {}),
    "oft": ("OFT", {}),
    "prompt": ("PROMPT_TUNING", {}),
    "p_tuning": ("P_TUNING", {}),
    "prefix": ("PREFIX_TUNING", {}),
}
