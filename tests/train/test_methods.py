"""Every PEFT method: trains to a lower loss, is saved as PEFT's own files, and plain PEFT loads those on the untouched base with equal logits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from tests.conftest import SAMPLES
from tuner.artifact.decode import Decoder
from tuner.artifact.gguf import write_lora_gguf
from tuner.artifact.host import check_weights
from tuner.artifact.store import Version
from tuner.base import Precision, head_on, load_model, widen
from tuner.data.record import Message
from tuner.errors import Refusal
from tuner.quantise import in_fp8, load_quantised
from tuner.template.tokens import IGNORED
from tuner.train import methods
from tuner.train.method_files import load_training_state, training_state
from tuner.train.method_start import lora_layers
from tuner.train.method_targets import linear_layers, ranks
from tuner.train.methods import METHODS, attach, target_modules
from tuner.train.spec import CONTINUES, FIELDS, Kind, MethodSpec

KINDS = sorted(METHODS)
PROMPTS = ("prefix", "prompt", "p_tuning")
SMALL: dict[str, dict[str, Any]] = {
    "vera": {"rank": 32}, "oft": {"block_size": 16}, "adalora": {"rank": 4, "final_rank": 2}, "eva": {"rank": 4, "rho": 2.0},
    "olora": {"rank": 4, "alpha": 8.0}, **{kind: {"virtual_tokens": 5} for kind in PROMPTS},
}  # fmt: skip
RATES = {"ia3": 5e-2, "vera": 5e-2, "prefix": 5e-2, "prompt": 2e-1, "lora_plus": 2e-3}
Batch = dict[str, torch.Tensor]


def small(kind: str, **changes: Any) -> MethodSpec:
    """A spec small enough for a base that is 64 wide."""
    sizes = SMALL.get(kind, {"rank": 4} if "rank" in FIELDS[kind] else {})
    return MethodSpec(**{"kind": kind, **({} if changes.get("continue_from") else sizes), **changes})


@pytest.fixture(scope="module")
def batch(encoder: Any) -> Batch:
    """Four real rows of clinc150, padded on the right: labels on the completions only."""
    return real_batch(encoder, 4)


def real_batch(encoder: Any, count: int) -> Batch:
    lines = (SAMPLES / "clinc150" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    rows = []
    for record in map(json.loads, lines):
        question = [Message("user", record["prompt"])]
        rows.append((encoder.prompt_ids(question), encoder.completion_ids(question, record["completion"])))
    longest = max(len(p) + len(c) for p, c in rows)
    ids, labels, mask = (torch.full((count, longest), filler) for filler in (encoder.pad_id, IGNORED, 0))
    for i, (prompt, completion) in enumerate(rows):
        ids[i, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
        labels[i, len(prompt) : len(prompt) + len(completion)] = torch.tensor(completion)
        mask[i, : len(prompt) + len(completion)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def base_of(folder: Path, dtype: torch.dtype = torch.float32, load: str | None = None) -> Any:
    """The base as tuner loads it. fp8 on a CPU is imitated by torch, and refused for users: slow, the same numbers."""
    if load is not None and load != "fp8":
        return load_quantised(folder, load, dtype, "cpu", sharded=False, trust_remote_code=False).eval()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return in_fp8(model, "cpu") if load == "fp8" else model


def needs(kind: str) -> str | None:
    return "nf4" if kind == "loftq" else None


def put_on(spec: MethodSpec, model: Any, batch: Batch, **given: Any) -> Any:
    return attach(spec, model, seed=given.pop("seed", 7), batches=lambda: [batch, batch], **given)


def answers_of(model: Any, batch: Batch, narrow: bool = False) -> torch.Tensor:
    """Logits (N, V) where the batch has labels to predict; the LM head sees no other position. `narrow`: under bf16 autocast."""
    wanted = torch.zeros_like(batch["labels"], dtype=torch.bool)
    wanted[:, :-1] = batch["labels"][:, 1:] != IGNORED
    at = torch.nn.functional.pad(wanted, (methods.virtual_tokens(model) if isinstance(model, PeftModel) else 0, 0))
    with head_on(model, at), torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        out: torch.Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return out.squeeze(0).float()


def logits_of(model: Any, batch: Batch, narrow: bool = False) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return answers_of(model, batch, narrow)


def loss_of(model: Any, batch: Batch, narrow: bool = False) -> torch.Tensor:
    """Mean cross-entropy (nats) of the labels."""
    labels = batch["labels"][:, 1:]
    return torch.nn.functional.cross_entropy(answers_of(model, batch, narrow), labels[labels != IGNORED])


def optimiser(spec: MethodSpec, model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(methods.parameter_groups(spec, model, RATES.get(spec.kind, 1e-2), 0.0))


def train(
    spec: MethodSpec, model: Any, batch: Batch, steps: int = 10, first: int = 1, last: int | None = None, using: Any = None, narrow: bool = False
) -> list[float]:
    """Losses of steps `first`..`last` of a run of `steps`."""
    adamw, losses = using or optimiser(spec, model), []
    model.train()
    for step in range(first, (last or steps) + 1):
        loss = loss_of(model, batch, narrow)
        extra = methods.extra_loss(spec, model)
        (loss if extra is None else loss + extra).backward()
        adamw.step()
        methods.after_step(spec, model, step, steps)
        adamw.zero_grad()
        losses.append(float(loss))
    return losses


def reloaded(folder: Path, base: Any) -> Any:
    return PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False)


def trained_weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


# --- the table -----------------------------------------------------------------------------------------------------


def test_the_kinds_of_the_recipe_are_the_rows_of_the_table_and_a_closed_limit_has_a_reason() -> None:
    assert set(get_args(Kind)) == set(METHODS) == set(FIELDS) and len(METHODS) == 15
    closed = 0
    for method in METHODS.values():
        assert method.what
        for name in ("packs", "checkpoints", "merges", "vllm", "gguf", "new_tokens", "modules_to_save"):
            if not getattr(method.limits, name):
                assert method.limits.reasons[name]
                closed += 1
        assert len(method.limits.quantized) == 4 or method.limits.reasons["quantized"]
    assert closed == 36


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_lowers_the_loss_and_plain_peft_loads_it_on_the_untouched_base_with_equal_logits(
    kind: str, tiny_base: Path, batch: Batch, tmp_path: Path
) -> None:
    spec, load = small(kind), needs(kind)
    before = logits_of(base_of(tiny_base, load=load), batch)
    model = put_on(spec, base_of(tiny_base, load=load), batch)
    if kind not in (*PROMPTS, "loftq"):
        assert worst(logits_of(model, batch), before) < 1e-5, "the start is not the base"
    losses = train(spec, model, batch)
    assert losses[-1] < losses[0] - 0.02
    after = logits_of(model, batch)
    assert worst(after, before) > 0.05
    methods.save(spec, model, tmp_path / "adapter", "some/base", "a" * 40)
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert str(tiny_base) not in (tmp_path / "adapter" / "adapter_config.json").read_text()
    methods.save(spec, model, tmp_path / "gathered", "some/base", "a" * 40, state_dict=model.state_dict())
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "gathered" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()
    plain = reloaded(tmp_path / "adapter", base_of(tiny_base, load=load))
    assert worst(logits_of(plain, batch), after) < 2e-5
    check_weights(Version("x", 1, tmp_path / "adapter"), plain)
    if METHODS[kind].limits.merges:
        assert worst(logits_of(plain.merge_and_unload(), batch), after) < 1e-4
    else:
        assert METHODS[kind].limits.reasons["merges"]


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_weights_train_and_reload(kind: str, tiny_base: Path, batch: Batch, tmp_path: Path) -> None:
    """Tolerance: bf16 holds 8 bits, logits here reach about 2; PiSSA and OLoRA add the rounding of what is left in the base."""
    spec, load = small(kind), needs(kind)
    model = put_on(spec, base_of(tiny_base, torch.bfloat16, load), batch, adapter_dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.bfloat16}
    losses = train(spec, model, batch)
    assert losses[-1] < losses[0] - 0.02
    after = logits_of(model, batch)
    methods.save(spec, model, tmp_path, "b", None)
    assert {t.dtype for t in load_file(tmp_path / "adapter_model.safetensors").values()} <= {torch.bfloat16, torch.float32}
    assert worst(logits_of(reloaded(tmp_path, base_of(tiny_base, torch.bfloat16, load)), batch), after) < 0.06


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_precision_what_is_trained_on_a_narrow_base_is_fp32(kind: str, tiny_base: Path, batch: Batch) -> None:
    model = put_on(small(kind), base_of(tiny_base, torch.bfloat16, needs(kind)), batch)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("load", ["nf4", "fp4", "int8", "fp8"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_base_is_trained_on_or_refused_with_the_reason(kind: str, load: str, tiny_base: Path, batch: Batch, tmp_path: Path) -> None:
    spec, limits = small(kind), METHODS[kind].limits
    if load not in limits.quantized:
        with pytest.raises(Refusal) as refused:
            methods.refuse_impossible(spec, lambda key: f"r.yaml:3 {key}", load=load, packed=None, checkpointing=None, new_tokens=False)
        assert limits.reasons["quantized"] in str(refused.value) or kind == "loftq"
        return
    methods.refuse_impossible(spec, str, load=load, packed=None, checkpointing=None, new_tokens=False)
    base = base_of(tiny_base, torch.bfloat16, load)
    logits_of(base, batch)  # a base is asked before it is adapted (tuner.base.guard_loss)
    model = put_on(spec, base, batch)
    losses = train(spec, model, batch, narrow=True)
    assert losses[-1] < losses[0] - 0.02
    after = logits_of(model, batch, narrow=True)
    methods.save(spec, model, tmp_path, "b", None)
    assert worst(logits_of(reloaded(tmp_path, base_of(tiny_base, torch.bfloat16, load)), batch, narrow=True), after) < 0.06


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kind_cannot_do_is_refused_at_once_with_every_reason(kind: str) -> None:
    spec, limits = small(kind), METHODS[kind].limits
    load = needs(kind) or "bf16"
    methods.refuse_impossible(spec, str, load=load, packed=None, checkpointing=None, new_tokens=False)
    closed = [name for name in ("packs", "checkpoints", "new_tokens") if not getattr(limits, name)]
    if not closed:
        methods.refuse_impossible(spec, str, load=load, packed=True, checkpointing=True, new_tokens=True)
        return
    with pytest.raises(Refusal) as refused:
        methods.refuse_impossible(spec, lambda key: f"r.yaml {key}", load=load, packed=True, checkpointing=True, new_tokens=True)
    assert len(refused.value.problems) == len(closed)
    assert all(any(limits.reasons[name] in p.accepted for p in refused.value.problems) for name in closed)


@pytest.mark.parametrize("load", ["auto", "bf16", "fp32", "int8"])
def test_loftq_without_a_four_bit_base_is_refused(load: str) -> None:
    with pytest.raises(Refusal, match="nf4 or fp4"):
        methods.refuse_impossible(small("loftq"), str, load=load, packed=None, checkpointing=None, new_tokens=False)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if METHODS[kind].limits.checkpoints])
def test_gradients_are_the_same_with_checkpointing(kind: str, tiny_base: Path, batch: Batch) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = put_on(small(kind), base_of(tiny_base, load=needs(kind)), batch)
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        loss_of(model, batch).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert worst(*gradients) < 1e-6 and float(gradients[0].abs().max()) > 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "loftq"])
def test_the_gguf_writer_takes_what_the_limits_say_it_takes(kind: str, tiny_base: Path, batch: Batch, tmp_path: Path) -> None:
    """loftq is left out: its files are plain LoRA, and only the recipe says which base they correct."""
    spec = small(kind, **({"rho": 1.0} if kind == "eva" else {}))
    methods.save(spec, put_on(spec, base_of(tiny_base), batch), tmp_path, "b", None)
    if methods.limits_of(spec).gguf:
        write_lora_gguf(tmp_path, tiny_base, tmp_path / "adapter.gguf")
        assert (tmp_path / "adapter.gguf").stat().st_size > 1000
    else:
        with pytest.raises(Refusal):
            write_lora_gguf(tmp_path, tiny_base, tmp_path / "adapter.gguf")


# --- starts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(kind: str, tiny_base: Path, batch: Batch) -> None:
    one, same, other = (trained_weights(put_on(small(kind), base_of(tiny_base, load=needs(kind)), batch, seed=seed)) for seed in (1, 1, 2))
    assert one.keys() == same.keys() and all(torch.equal(one[n], same[n]) for n in one)
    by_chance = kind not in ("olora", "eva", "ia3", "oft", "vera")  # these start from the base, the data, or ones and zeros
    assert all(torch.equal(one[n], other[n]) for n in one) != by_chance


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_a_start_inside_the_weights_leaves_the_rest_in_the_base_and_is_saved_as_a_difference(kind: str, tiny_base: Path, batch: Batch, tmp_path: Path) -> None:
    spec = small(kind, rank_per_layer={"0": 2})
    untouched = base_of(tiny_base)
    model = put_on(spec, base_of(tiny_base), batch)
    path, layer = next(lora_layers(model))
    weight = untouched.get_submodule(path.removeprefix("base_model.model.")).weight.detach()
    rest = layer.get_base_layer().weight.detach()
    update = layer.scaling["default"] * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
    assert worst(rest + update, weight) < 1e-6 and worst(rest, weight) > 1e-3
    left = torch.linalg.svdvals(weight)[2:]
    assert (float(torch.linalg.norm(rest)) < 1.005 * float((left**2).sum().sqrt())) == (kind == "pissa")
    train(spec, model, batch)
    methods.save(spec, model, tmp_path, "b", None)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == 8 and config["init_lora_weights"] is True and set(config["rank_pattern"].values()) == {4}
    assert worst(logits_of(reloaded(tmp_path, untouched), batch), logits_of(model, batch)) < 2e-5


def test_a_randomised_decomposition_of_a_wide_layer_is_as_good_as_the_whole_one() -> None:
    from tuner.train.method_start import principal

    torch.manual_seed(0)
    weight = torch.randn(256, 512) @ torch.diag(torch.linspace(2, 0.1, 512))
    a, b = principal(weight, 8)
    singular = torch.linalg.svdvals(weight)
    best = float((singular[8:] ** 2).sum().sqrt())
    assert float(torch.linalg.norm(weight - b @ a)) < 1.005 * best


def test_loftq_starts_at_the_best_correction_of_the_four_bit_error(tiny_base: Path, batch: Batch) -> None:
    from bitsandbytes.functional import dequantize_4bit

    exact = base_of(tiny_base)
    model = put_on(small("loftq"), base_of(tiny_base, load="nf4"), batch)
    swept = 0
    for path, layer in lora_layers(model):
        weight = exact.get_submodule(path.removeprefix("base_model.model.")).weight.detach()
        held = layer.get_base_layer().weight
        error = weight - dequantize_4bit(held.data, held.quant_state)
        update = layer.scaling["default"] * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
        left = torch.linalg.svdvals(error)[4:]
        assert float(torch.linalg.norm(error - update)) == pytest.approx(float((left**2).sum().sqrt()), rel=5e-3)
        swept += 1
    assert swept == 14
    nearer = worst(logits_of(model, batch), logits_of(exact, batch)) < worst(logits_of(base_of(tiny_base, load="nf4"), batch), logits_of(exact, batch))
    assert nearer


def test_eva_starts_along_the_principal_directions_of_the_inputs_and_lora_does_not(tiny_base: Path, batch: Batch) -> None:
    base = base_of(tiny_base)
    seen: list[torch.Tensor] = []
    real = batch["attention_mask"].bool()
    hook = base.model.layers[1].mlp.down_proj.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].detach()[real]))
    logits_of(base, batch)
    hook.remove()
    inputs = seen[0] - seen[0].mean(0)
    directions = torch.linalg.svd(inputs, full_matrices=False)[2][:4]

    def overlap(kind: str, **changes: Any) -> float:
        model = put_on(small(kind, **changes), base_of(tiny_base), batch)
        a = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj").lora_A["default"].weight.detach()
        return float(torch.linalg.norm(torch.linalg.qr(a.T)[0].T @ directions.T) ** 2 / 4)

    assert overlap("eva", rho=1.0) > 0.95
    assert overlap("lora") < 0.5


def test_eva_moves_ranks_and_keeps_their_sum(tiny_base: Path, batch: Batch) -> None:
    model = put_on(small("eva"), base_of(tiny_base), batch)
    found = [layer.r["default"] for _, layer in lora_layers(model)]
    assert len(set(found)) > 1 and max(found) <= 8 and sum(found) <= 14 * 4
    assert not methods.limits_of(small("eva")).gguf and methods.limits_of(small("eva", rho=1.0)).gguf


def test_eva_refuses_more_directions_than_tokens_or_widths(tiny_base: Path, batch: Batch) -> None:
    few = {k: v[:1, :6] for k, v in batch.items()}
    with pytest.raises(Refusal, match="more tokens in a batch"):
        put_on(small("eva"), base_of(tiny_base), few)
    with pytest.raises(Refusal, match="narrowest input"):
        put_on(small("eva", rank=40), base_of(tiny_base), batch)


def test_a_rank_above_a_layers_width_is_refused_where_it_is_decomposed(tiny_base: Path, batch: Batch) -> None:
    with pytest.raises(Refusal, match="set it to 32 or lower"):
        put_on(small("pissa", rank=33), base_of(tiny_base), batch)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_virtual_tokens_start_as_the_words_they_are_told(kind: str, tiny_base: Path, batch: Batch, encoder: Any) -> None:
    """As many virtual tokens as the text has: the model then answers as the base does after that text."""
    text = "Sort this bank request:"
    ids = encoder.tokenizer.encode(text, add_special_tokens=False).ids
    model = put_on(small(kind, virtual_tokens=len(ids), init_text=text), base_of(tiny_base), batch).eval()
    prompt = batch["input_ids"][:1, :9]
    with torch.no_grad():
        after_words = base_of(tiny_base)(input_ids=torch.cat([torch.tensor([ids]), prompt], dim=1)).logits[:, -9:]
        found = model(input_ids=prompt).logits[:, -9:]
    assert worst(found, after_words) < 1e-5
    with pytest.raises(Refusal, match="shorten the text"):
        put_on(small(kind, virtual_tokens=2, init_text=text), base_of(tiny_base), batch)


def test_vera_saves_its_projections_and_draws_them_from_the_seed(tiny_base: Path, batch: Batch, tmp_path: Path) -> None:
    for seed in (1, 2):
        methods.save(small("vera"), put_on(small("vera"), base_of(tiny_base), batch, seed=seed), tmp_path / str(seed), "b", None)
    one, two = (load_file(tmp_path / str(seed) / "adapter_model.safetensors") for seed in (1, 2))
    shared = [name for name in one if name.endswith(("vera_A", "vera_B"))]
    assert len(shared) == 2 and not any(torch.equal(one[name], two[name]) for name in shared)


# --- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_taken_up_again_ends_bit_for_bit_as_if_it_had_never_stopped(kind: str, tiny_base: Path, batch: Batch) -> None:
    spec = small(kind)

    def fresh() -> Any:
        return put_on(spec, base_of(tiny_base, load=needs(kind)), batch)

    whole = fresh()
    train(spec, whole, batch, steps=8)
    first = fresh()
    adamw = optimiser(spec, first)
    train(spec, first, batch, steps=8, last=5, using=adamw)
    state, moments = {k: v.clone() for k, v in training_state(first).items()}, adamw.state_dict()
    second = fresh()
    load_training_state(second, state)
    adamw = optimiser(spec, second)
    adamw.load_state_dict(moments)
    train(spec, second, batch, steps=8, first=6, using=adamw)
    expected, found = trained_weights(whole), trained_weights(second)
    assert expected.keys() == found.keys() and all(torch.equal(expected[n], found[n]) for n in expected)


def test_a_checkpoint_of_another_adapter_is_refused(tiny_base: Path, batch: Batch) -> None:
    state = training_state(put_on(small("lora"), base_of(tiny_base), batch))
    with pytest.raises(Refusal, match="do not match the model"):
        load_training_state(put_on(small("ia3"), base_of(tiny_base), batch), state)


def test_lora_plus_gives_b_its_own_rate_and_biases_and_norms_do_not_decay(tiny_base: Path, batch: Batch) -> None:
    spec = small("lora_plus", modules_to_save=["input_layernorm"], learning_rate_ratio=8.0)
    model = put_on(spec, base_of(tiny_base), batch)
    groups = methods.parameter_groups(spec, model, 1e-3, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    found = {(g["lr"], g["weight_decay"]): {names[id(p)] for p in g["params"]} for g in groups}
    assert set(found) == {(1e-3, 0.1), (8e-3, 0.1), (1e-3, 0.0)}
    assert all("lora_A" in n for n in found[(1e-3, 0.1)]) and all("lora_B" in n for n in found[(8e-3, 0.1)])
    assert len(found[(1e-3, 0.0)]) == 2 and all("input_layernorm" in n for n in found[(1e-3, 0.0)])
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in model.parameters())


def test_adalora_adds_pefts_own_regularisation_and_cuts_ranks_to_the_mean_asked_for(tiny_base: Path, batch: Batch, tmp_path: Path) -> None:
    spec = small("adalora")
    model = put_on(spec, base_of(tiny_base), batch)
    with_labels = model(**batch).loss
    plain = loss_of(model, batch)
    extra = methods.extra_loss(spec, model)
    assert extra is not None and float(with_labels - plain) == pytest.approx(float(extra), rel=1e-4) and extra.requires_grad
    train(spec, model, batch, steps=20)
    methods.save(spec, model, tmp_path, "b", None)
    kept = [t.shape[0] for n, t in load_file(tmp_path / "adapter_model.safetensors").items() if "lora_A" in n]
    assert len(kept) == 14 and sum(kept) <= 14 * 2 and min(kept) < max(kept)
    assert all(methods.extra_loss(small(kind), model) is None for kind in KINDS if kind != "adalora")


def test_adalora_refuses_a_run_too_short_to_cut_ranks_in(tiny_base: Path, batch: Batch) -> None:
    spec = small("adalora")
    with pytest.raises(Refusal, match="at least 4 steps"):
        train(spec, put_on(spec, base_of(tiny_base), batch), batch, steps=3)


# --- where it sits -------------------------------------------------------------------------------------------------


def test_targets_are_all_linear_layers_attention_or_exact_names(tiny_base: Path) -> None:
    base = base_of(tiny_base)
    everything = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert target_modules(MethodSpec(), base) == everything
    assert target_modules(MethodSpec(targets="attention"), base) == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert target_modules(MethodSpec(targets=["layers.1.mlp.up_proj", "q_proj"]), base) == ["layers.1.mlp.up_proj", "q_proj"]
    with pytest.raises(Refusal, match="write q_proj"):
        target_modules(MethodSpec(targets=["q_porj"]), base)
    with pytest.raises(Refusal, match="at least one"):
        target_modules(MethodSpec(targets=[]), base)


def test_ranks_by_layer_by_range_and_by_name_are_those_of_the_saved_tensors(tiny_base: Path, batch: Batch, tmp_path: Path) -> None:
    spec = small("lora", alpha=8.0, rank_per_layer={"0-0": 2, "down_proj": 6, "layers.1.self_attn.q_proj": 1})
    model = put_on(spec, base_of(tiny_base), batch)
    assert {layer.scaling["default"] for _, layer in lora_layers(model)} == {2.0}
    train(spec, model, batch)
    methods.save(spec, model, tmp_path, "b", None)
    found = {n.removesuffix(".lora_A.weight")[len("base_model.model.model.layers.") :]: t.shape[0]
             for n, t in load_file(tmp_path / "adapter_model.safetensors").items() if "lora_A" in n}  # fmt: skip
    assert found["0.self_attn.q_proj"] == 2 and found["0.mlp.down_proj"] == 6 and found["1.mlp.down_proj"] == 6
    assert found["1.self_attn.q_proj"] == 1 and found["1.self_attn.k_proj"] == 4 and len(found) == 14
    assert worst(logits_of(reloaded(tmp_path, base_of(tiny_base)), batch), logits_of(model, batch)) < 1e-5


def test_rslora_keeps_alpha_over_the_root_of_each_rank(tiny_base: Path, batch: Batch) -> None:
    model = put_on(small("rslora", alpha=8.0, rank_per_layer={"0": 16}), base_of(tiny_base), batch)
    assert {layer.scaling["default"] for _, layer in lora_layers(model)} == {4.0, 2.0}


@pytest.mark.parametrize(("wrong", "said"), [({"down_porj": 2}, "write down_proj"), ({"9": 2}, "layer number"), ({"0-1": 2, "1": 3}, "let the ranges not")])
def test_rank_keys_that_reach_nothing_or_contradict_are_refused(wrong: dict[str, int], said: str, tiny_base: Path) -> None:
    base = base_of(tiny_base)
    spec = small("lora", rank_per_layer=wrong)
    with pytest.raises(Refusal, match=said):
        ranks(spec, base, target_modules(spec, base))


def untied(tiny_base: Path, folder: Path) -> Path:
    base = base_of(tiny_base)
    base.config.tie_word_embeddings = False
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    base.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("kind", ["lora", "dora", "pissa", "eva", "adalora"])
def test_modules_saved_whole_are_trained_and_reload(kind: str, is_tied: bool, tiny_base: Path, batch: Batch, tmp_path: Path) -> None:
    folder = tiny_base if is_tied else untied(tiny_base, tmp_path / "base")
    spec = small(kind, modules_to_save=["lm_head", "embed_tokens"])
    model = put_on(spec, base_of(folder), batch)
    losses = train(spec, model, batch)
    assert losses[-1] < losses[0] - 0.5
    methods.save(spec, model, tmp_path / "adapter", "b", None)
    plain, after = reloaded(tmp_path / "adapter", base_of(folder)), logits_of(model, batch)
    assert worst(logits_of(plain, batch), after) < 2e-5
    assert worst(logits_of(plain.merge_and_unload(), batch), after) < 1e-4
    limits = methods.limits_of(spec)
    assert not limits.vllm and not limits.gguf and ("saved whole" in limits.reasons["vllm"] or not METHODS[kind].limits.vllm)
    if is_tied:
        inward, outward = model.get_input_embeddings(), model.get_output_embeddings()
        assert torch.equal(inward.modules_to_save["default"].weight, outward.modules_to_save["default"].weight)


@pytest.mark.parametrize("kind", ["ia3", "vera", "oft"])
def test_tied_embeddings_are_refused_where_they_would_come_apart(kind: str, tiny_base: Path, batch: Batch, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="tied"):
        put_on(small(kind, modules_to_save=["lm_head"]), base_of(tiny_base), batch)
    with pytest.raises(Refusal, match="write embed_tokens"):
        put_on(small(kind, modules_to_save=["embed_tokns"]), base_of(tiny_base), batch)
    spec, folder = small(kind, modules_to_save=["lm_head"]), untied(tiny_base, tmp_path / "base")
    model = put_on(spec, base_of(folder), batch)
    losses = train(spec, model, batch)
    assert losses[-1] < losses[0] - 0.1
    methods.save(spec, model, tmp_path / "adapter", "b", None)
    assert worst(logits_of(reloaded(tmp_path / "adapter", base_of(folder)), batch), logits_of(model, batch)) < 2e-5


def test_modules_saved_whole_that_are_adapted_or_quantised_are_refused(tiny_base: Path, batch: Batch) -> None:
    for twice in ("down_proj", "mlp"):
        with pytest.raises(Refusal, match="not adapted too"):
            put_on(small("lora", modules_to_save=[twice]), base_of(tiny_base), batch)
    with pytest.raises(Refusal, match="16 or 32 bits"):
        put_on(small("lora", targets="attention", modules_to_save=["down_proj"]), base_of(tiny_base, load="nf4"), batch)
    beside = put_on(small("lora", targets="attention", modules_to_save=["down_proj"]), base_of(tiny_base), batch)
    assert sum("modules_to_save" in name for name in trained_weights(beside)) == 2


@pytest.mark.parametrize("kind", [kind for kind in KINDS if METHODS[kind].limits.new_tokens])
def test_rows_of_new_tokens_train_beside_it(kind: str, tiny_base: Path, batch: Batch, tmp_path: Path) -> None:
    def grown() -> Any:
        base = base_of(tiny_base, load=needs(kind))
        widen(base, 49154)
        return base

    new = {**batch, "input_ids": batch["input_ids"].clone()}
    new["input_ids"][:, 3] = 49153
    spec = small(kind)
    model = put_on(spec, grown(), new, new_ids=(49152, 49153))
    train(spec, model, new)
    methods.save(spec, model, tmp_path, "b", None)
    assert worst(logits_of(reloaded(tmp_path, grown()), new), logits_of(model, new)) < 2e-5
    assert any("trainable_tokens" in name for name in load_file(tmp_path / "adapter_model.safetensors"))


def test_new_tokens_with_one_of_two_untied_embeddings_saved_whole_are_refused(tiny_base: Path, batch: Batch, tmp_path: Path) -> None:
    folder = untied(tiny_base, tmp_path / "base")
    with pytest.raises(Refusal, match="add lm_head"):
        put_on(small("lora", modules_to_save=["embed_tokens"]), base_of(folder), batch, new_ids=(49100,))
    both = put_on(small("lora", modules_to_save=["embed_tokens", "lm_head"]), base_of(folder), batch, new_ids=(49100,))
    assert both.peft_config["default"].trainable_token_indices is None


def test_blocks_that_do_not_divide_a_layer_are_refused_with_the_next_that_do(tiny_base: Path, batch: Batch) -> None:
    with pytest.raises(Refusal, match="set it to 32"):
        put_on(small("oft", block_size=48), base_of(tiny_base), batch)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer GPT-2, whose layers hold their weights transposed, and whose attention and MLP both have a c_proj."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(GPT2Config(vocab_size=49152, n_embd=64, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("oft", "loftq")])
def test_transposed_layers_are_adapted_too(kind: str, gpt2: Path, batch: Batch, tmp_path: Path) -> None:
    spec = small(kind)
    before = logits_of(base_of(gpt2), batch)
    model = put_on(spec, base_of(gpt2), batch)
    if kind not in PROMPTS:
        assert worst(logits_of(model, batch), before) < 1e-5
    losses = train(spec, model, batch)
    assert losses[-1] < losses[0]
    methods.save(spec, model, tmp_path, "b", None)
    plain = reloaded(tmp_path, base_of(gpt2))
    assert worst(logits_of(plain, batch), logits_of(model, batch)) < 2e-5
    if METHODS[kind].limits.merges:
        assert worst(logits_of(plain.merge_and_unload(), batch), logits_of(model, batch)) < 1e-4


def test_attention_of_gpt2_is_told_from_its_mlp_and_oft_is_refused(gpt2: Path, batch: Batch) -> None:
    base = base_of(gpt2)
    assert target_modules(MethodSpec(targets="attention"), base) == ["attn.c_proj", "c_attn"]
    model = put_on(small("lora", targets="attention"), base, batch)
    assert sorted({path.split(".h.")[1][2:] for path, _ in lora_layers(model)}) == ["attn.c_attn", "attn.c_proj"]
    with pytest.raises(Refusal, match="Conv1D"):
        put_on(small("oft"), base_of(gpt2), batch)


def test_ia3_scales_the_inputs_of_the_layers_that_lead_out_of_the_mlp(tiny_base: Path, gpt2: Path, batch: Batch) -> None:
    assert put_on(small("ia3"), base_of(tiny_base), batch).peft_config["default"].feedforward_modules == {"down_proj"}
    assert put_on(small("ia3", targets=["mlp.c_proj"]), base_of(gpt2), batch).peft_config["default"].feedforward_modules == {"mlp.c_proj"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "eva"])
def test_the_size_on_the_meta_device_is_the_size_that_is_trained(kind: str, tiny_base: Path, batch: Batch) -> None:
    spec = small(kind)
    config = base_of(tiny_base).config
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(config)
        shape = attach(spec, shape, seed=0)
    real = put_on(spec, base_of(tiny_base, load=needs(kind)), batch)
    assert sum(p.numel() for p in shape.parameters() if p.requires_grad) == sum(p.numel() for p in real.parameters() if p.requires_grad)


# --- a parent ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(CONTINUES))
def test_a_parent_goes_on_from_where_it_ended(kind: str, tiny_base: Path, batch: Batch, tmp_path: Path) -> None:
    spec = small(kind)
    parent = put_on(spec, base_of(tiny_base), batch)
    before = train(spec, parent, batch)
    methods.save(spec, parent, tmp_path / "parent", "b", None)
    child_spec = small(kind, continue_from="x@1")
    child = put_on(child_spec, base_of(tiny_base), batch, parent=tmp_path / "parent")
    assert worst(logits_of(child, batch), logits_of(parent, batch)) < 1e-5
    assert trained_weights(child).keys() == trained_weights(parent).keys()
    after = train(child_spec, child, batch)
    assert after[-1] < before[-1]
    methods.save(child_spec, child, tmp_path / "child", "b", None)
    assert worst(logits_of(reloaded(tmp_path / "child", base_of(tiny_base)), batch), logits_of(child, batch)) < 2e-5


@pytest.mark.parametrize("start", ["pissa", "olora", "eva"])
def test_what_a_start_gave_is_continued_as_lora_with_its_ranks(start: str, tiny_base: Path, batch: Batch, tmp_path: Path) -> None:
    spec = small(start)
    parent = put_on(spec, base_of(tiny_base), batch)
    train(spec, parent, batch)
    methods.save(spec, parent, tmp_path, "b", None)
    child = put_on(small("lora", continue_from="x@1"), base_of(tiny_base), batch, parent=tmp_path)
    assert worst(logits_of(child, batch), logits_of(parent, batch)) < 2e-5


def test_a_parent_of_another_kind_base_or_vocabulary_is_refused(tiny_base: Path, gpt2: Path, batch: Batch, tmp_path: Path) -> None:
    methods.save(small("dora"), put_on(small("dora"), base_of(tiny_base), batch), tmp_path, "b", None)
    with pytest.raises(Refusal, match="kind: dora"):
        put_on(small("lora", continue_from="x@1"), base_of(tiny_base), batch, parent=tmp_path)
    with pytest.raises(Refusal, match="an adapter of this base"):
        put_on(small("dora", continue_from="x@1"), base_of(gpt2), batch, parent=tmp_path)
    with pytest.raises(Refusal, match="new_tokens"):
        put_on(small("dora", continue_from="x@1"), base_of(tiny_base), batch, parent=tmp_path, new_ids=(49151,))


# --- the recipe's words --------------------------------------------------------------------------------------------


def test_every_field_a_kind_does_not_use_is_refused_when_it_is_set() -> None:
    values = {
        "rank": 16, "alpha": 32.0, "dropout": 0.0, "targets": "all-linear", "rank_per_layer": {}, "modules_to_save": [], "learning_rate_ratio": 16.0,
        "rho": 2.0, "final_rank": 8, "orthogonality": 0.5, "block_size": 32, "virtual_tokens": 20, "init_text": "x", "encoder_width": 8,
    }  # fmt: skip
    assert set(values) == set(MethodSpec.model_fields) - {"kind", "continue_from"}
    refused = 0
    for kind in KINDS:
        for name, value in values.items():
            if name in FIELDS[kind]:
                assert getattr(MethodSpec(**{"kind": kind, name: value}), name) == value
                continue
            with pytest.raises(ValidationError, match=f"does not use {name}"):
                MethodSpec(**{"kind": kind, name: value})
            refused += 1
    assert refused == sum(len(values) - len(fields) for fields in FIELDS.values()) == 141


def test_defaults_are_the_kinds_own_and_a_written_out_spec_reads_back() -> None:
    assert MethodSpec(kind="vera").rank == 256 and MethodSpec(kind="ia3").rank is None and MethodSpec().rank == 16
    for kind in KINDS:
        spec = MethodSpec(kind=kind)
        assert MethodSpec.model_validate(spec.model_dump()) == spec and MethodSpec.model_validate(json.loads(spec.model_dump_json())) == spec
    with pytest.raises(ValidationError, match="needs rank"):
        MethodSpec(rank=None)
    with pytest.raises(ValidationError, match="below rank"):
        MethodSpec(kind="adalora", rank=8, final_rank=8)


def test_with_a_parent_the_shape_is_the_parents_and_kinds_that_only_start_are_refused() -> None:
    assert MethodSpec(continue_from="a@1").rank is None and MethodSpec(continue_from="a@1", dropout=0.1).dropout == 0.1
    with pytest.raises(ValidationError, match="rank, targets: with continue_from"):
        MethodSpec(continue_from="a@1", rank=8, targets="attention")
    swept = 0
    for kind in set(KINDS) - set(CONTINUES):
        with pytest.raises(ValidationError, match="cannot continue"):
            MethodSpec(kind=kind, continue_from="a@1")
        swept += 1
    assert swept == 6


# --- answers -------------------------------------------------------------------------------------------------------


def asked(batch: Batch) -> list[list[int]]:
    """Prompts of different lengths with a shared beginning of 10 tokens."""
    beginning = batch["input_ids"][0, :10].tolist()
    return [beginning + batch["input_ids"][i % 4, 20 : 21 + 3 * i].tolist() for i in range(5)]


def shaken(kind: str, base: Any, batch: Batch, folder: Path) -> Any:
    """An adapter far from its start, as plain PEFT loads it."""
    model = put_on(small(kind), base, batch)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.5)
    methods.save(small(kind), model, folder, "b", None)
    return model


def judge(model: Any, batch: Batch) -> int:
    """How many prompts were asked: greedy answers, likelihoods and losses of the decoder are those of plain PEFT on one prompt at a time."""
    prompts, candidates = asked(batch), [[5, 6, 7], [8, 9], [400]]
    decoder = Decoder(model, 2, frozenset({2}), batch=3)
    answers = decoder.greedy(prompts, 8)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=2)[0].tolist()[len(prompt) :]
        assert answer == whole[: whole.index(2) if 2 in whole else 8]
    assert any(answers)
    expected = naive_scores(model, prompts, candidates)
    assert worst(decoder.likelihoods(prompts, candidates), expected) < 2e-3
    losses = torch.tensor(decoder.losses([(p, c) for p in prompts for c in candidates])).view(expected.shape)
    assert worst(-losses, expected) < 2e-3
    with model.disable_adapter():
        bare = decoder.likelihoods(prompts, candidates)
    assert worst(bare, naive_scores(model.get_base_model(), prompts, candidates)) < 2e-3 and worst(bare, expected) > 0.02
    return len(prompts)


def naive_scores(model: Any, prompts: Sequence[list[int]], candidates: Sequence[list[int]]) -> torch.Tensor:
    scores = torch.empty(len(prompts), len(candidates))
    for i, prompt in enumerate(prompts):
        for j, candidate in enumerate(candidates):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + candidate])).logits[0, -len(prompt + candidate) :].log_softmax(-1)
            scores[i, j] = sum(logits[len(prompt) + k - 1, token] for k, token in enumerate(candidate))
    return scores


@pytest.mark.parametrize("kind", PROMPTS)
def test_answers_after_virtual_tokens_equal_plain_peft_on_one_prompt_at_a_time(kind: str, tiny_base: Path, batch: Batch, tmp_path: Path) -> None:
    model = shaken(kind, base_of(tiny_base), batch, tmp_path).eval()
    assert methods.virtual_tokens(model) == (0 if kind == "prefix" else 5)
    assert judge(model, batch) > 2
    assert judge(reloaded(tmp_path, base_of(tiny_base)).eval(), batch) > 2


@pytest.mark.parametrize("kind", PROMPTS)
def test_virtual_tokens_before_a_sliding_window_leave_answers_right(kind: str, batch: Batch, tmp_path: Path) -> None:
    torch.manual_seed(1)
    small_config = MistralConfig(
        vocab_size=49152, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, sliding_window=16
    )
    base: Callable[[], Any] = lambda: MistralForCausalLM(small_config).eval()  # noqa: E731 - the same random weights are not needed twice
    model = shaken(kind, base(), batch, tmp_path).eval()
    assert judge(model, batch) > 2


# --- the real thing ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_on_smollm2_and_real_rows_the_loss_falls_and_the_files_give_the_same_logits(kind: str, smollm2: Any, encoder: Any, tmp_path: Path) -> None:
    batch = real_batch(encoder, 4)
    spec = MethodSpec(kind=kind, **({"rank": 8, "rho": 1.5} if kind == "eva" else {}))

    def base() -> Any:
        return base_of(smollm2.folder, torch.float32, needs(kind)) if needs(kind) else load_model(smollm2, Precision("cpu", "float32", None))

    model = put_on(spec, base(), batch)
    rates = {"ia3": 1e-2, "vera": 1e-2, "prefix": 1e-2, "prompt": 3e-2, "p_tuning": 1e-3, "oft": 1e-3, "adalora": 1e-2}
    adamw = torch.optim.AdamW(methods.parameter_groups(spec, model, rates.get(kind, 5e-4), 0.0))
    losses = train(spec, model, batch, steps=6, using=adamw)
    assert losses[-1] < losses[0] - 0.3
    methods.save(spec, model, tmp_path, smollm2.name, None)
    after = logits_of(model, batch)
    assert worst(logits_of(reloaded(tmp_path, base()), batch), after) < 5e-3 and float(after.abs().max()) > 5
    assert len(linear_layers(base())) == 210
