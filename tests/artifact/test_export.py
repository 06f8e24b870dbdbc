"""Every form of export is asked again as its users ask it, and answers as the artifact; what does not is refused, and leaves nothing."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.artifact.test_export_ollama import read_modelfile
from tests.artifact.test_gguf import random_lora
from tuner.artifact.equivalence import Tolerance
from tuner.artifact.export import EXPORTS, Check, Exported, Source, export, export_as
from tuner.artifact.gguf import write_lora_gguf
from tuner.artifact.manifest import verify, write_manifest
from tuner.artifact.store import Version, publish
from tuner.base import Base, BaseSpec
from tuner.data.record import Message
from tuner.errors import Refusal
from tuner.template.spec import TemplateSpec
from tuner.template.tokens import TOKENIZER_FILES, open_encoder, tokenizer_files

ASKED = [(Message("user", text),) for text in ("freeze my account", "  pay the bill\n", "Grüße 你好 12345", "two\n\nparagraphs")]
FEW = Check(ASKED, max_new_tokens=5)
SYSTEM = 'Say "one" word.\nThen stop.'


def needs(module: str | None) -> None:
    if module is not None and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


pytestmark = pytest.mark.usefixtures("one_thread")


def version_of(store: Path, base: Path, adapter: Callable[[Path], Any], load: Any = "fp32", kind: str = "lora", **template: Any) -> Version:
    """A version as tuner publishes one: what `adapter` saves, the base's tokenizer with the template's new tokens, and a manifest."""
    spec = TemplateSpec(system=SYSTEM, **template)
    encoder = open_encoder(base, spec, "tiny")

    def fill(stage: Path, number: int) -> None:
        adapter(stage)
        (stage / "README.md").unlink(missing_ok=True)
        config = json.loads((stage / "adapter_config.json").read_text(encoding="utf-8"))
        (stage / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "tiny-llama"}), encoding="utf-8")
        for name in TOKENIZER_FILES:
            if (base / name).is_file():
                (stage / name).write_bytes((base / name).read_bytes())
        encoder.tokenizer.save(str(stage / "tokenizer.json"))
        kept = open_encoder(stage, spec, "tiny")
        at = Base("tiny-llama", base, "local folder", None, BaseSpec(model="tiny", load=load))
        facts = {"name": at.name, "origin": at.origin, "revision": None, "weight_digest": at.weight_digest, "load": load, "spec": at.spec.model_dump()}
        told = {"digest": kept.template.digest, "tokenizer_digest": kept.tokenizer_digest, "files": tokenizer_files(stage), "spec": spec.model_dump()}
        write_manifest(stage, {"name": "colours", "version": number, "base": facts, "template": told, "method": {"kind": kind}})

    return publish(store, "colours", fill)


@pytest.fixture(scope="module")
def made(version: Version, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """A finished export of each form, made when it is first asked for."""
    home, done = tmp_path_factory.mktemp("exports"), dict[str, Exported]()

    def make(target: str) -> Exported:
        needs(EXPORTS[target].needs)
        if target not in done:
            done[target] = exported(version, target, tiny_base, home / target)
        return done[target]

    return make


@pytest.fixture(scope="module")
def version(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Version:
    return version_of(tmp_path_factory.mktemp("store"), tiny_base, lambda stage: random_lora(tiny_base, stage, std=0.05))


def exported(version: Version, target: str, base: Path, output: Path, **words: Any) -> Exported:
    return export(str(version.folder), target, base=base, output=output, **{"check": FEW, **words})


def texts(folder: Path) -> Iterator[tuple[str, str]]:
    for file in folder.rglob("*"):
        if file.suffix in {".json", ".jinja", ".sh", ".txt"} or file.name == "Modelfile":
            yield file.name, file.read_text(encoding="utf-8")


# --- every row


EXPECTED = {
    "peft": {"adapter_config.json", "adapter_model.safetensors"},
    "merged": {"model.safetensors", "config.json", "generation_config.json"},
    "gguf-lora": {"adapter.gguf"},
    "gguf": {"colours-1-f16.gguf"},
    "ollama": {"colours-1-f16.gguf", "Modelfile"},
    "vllm": {"adapter_config.json", "adapter_model.safetensors", "serve.sh"},
    "mlx": {"adapter_config.json", "adapters.safetensors"},
}
WITH_TOKENIZER = {"peft", "merged", "vllm", "mlx"}


def test_every_form_has_a_sample_of_its_files() -> None:
    assert set(EXPECTED) == set(EXPORTS) and len(EXPORTS) == 7
    assert all(row.what and row.tolerances for row in EXPORTS.values())


@pytest.mark.parametrize("target", sorted(EXPECTED))
def test_a_form_answers_as_the_artifact_and_says_so_beside_itself(target: str, version: Version, made: Callable[[str], Exported], tiny_base: Path) -> None:
    done = made(target)
    found = done.equivalence
    assert found is not None and found.prompts == found.prompts_equal == found.answers_identical == len(ASKED) and found.positions > len(ASKED)
    assert found.mean_kl <= done.tolerance.mean_kl and found.largest_kl <= done.tolerance.largest_kl
    names = {p.name for p in done.folder.rglob("*") if p.is_file()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} if target in WITH_TOKENIZER else set()
    assert names == EXPECTED[target] | tokenizer | {"export.json", "equivalence.json"}
    facts, told = (json.loads((done.folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("export", "equivalence"))
    assert (facts["version"], facts["target"], facts["system"]) == ("colours@1", target, SYSTEM)
    assert facts["manifest_digest"] == json.loads((version.folder / "manifest.json").read_text(encoding="utf-8"))["digest"]
    assert {n: f["digest"] for n, f in facts["files"].items()} == {
        n: "sha256:" + hashlib.sha256((done.folder / n).read_bytes()).hexdigest() for n in names - {"export.json"}
    }
    assert told["largest_kl"] == found.largest_kl and told["checked"] == "asked again" and told["tolerance"]["mean_kl"] == done.tolerance.mean_kl
    assert ("was not run" in told["note"]) == (target in {"ollama", "vllm"})
    for name, text in texts(done.folder):
        assert str(tiny_base) not in text and str(Path.home()) not in text and str(done.folder.parent) not in text, name


@pytest.mark.slow
def test_eight_and_fewer_bits_are_written_and_each_is_nearer_than_the_next(version: Version, tiny_base: Path, tmp_path: Path) -> None:
    needs("llama_cpp")
    far = replace(FEW, tolerance=Tolerance(1e9, 1e9))
    kl = [exported(version, "gguf", tiny_base, tmp_path / w, weights=w, check=far).equivalence for w in ("f32", "q8_0", "q4_k_m")]
    assert all(k is not None for k in kl) and kl[0].mean_kl < kl[1].mean_kl < kl[2].mean_kl  # type: ignore[union-attr]
    assert [len(list((tmp_path / w).glob(f"colours-1-{w}.gguf"))) for w in ("f32", "q8_0", "q4_k_m")] == [1, 1, 1]


# --- what is broken is refused


def one_weight(folder: Path) -> None:
    file = next(folder.glob("*model.safetensors"))
    tensors = load_file(file)
    name = next(n for n in sorted(tensors) if "q_proj" in n)
    tensors[name][1, 1] += 1.0
    save_file(tensors, file, {"format": "pt"})


def other_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8").replace("<|im_start|>assistant\n", "<|im_start|>assistant"), encoding="utf-8")


def other_alpha(folder: Path) -> None:
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] * 1.1}), encoding="utf-8")


def other_scale_in_mlx(folder: Path) -> None:
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["lora_parameters"]["scale"] *= 1.1
    file.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("target", "spoil", "says"),
    [
        ("merged", one_weight, "KL"), ("peft", other_alpha, "KL"), ("vllm", other_template, "token ids"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (
            ("merged", other_template, "token ids"), ("peft", one_weight, "KL"), ("peft", other_template, "token ids"), ("vllm", other_alpha, "KL"),
            ("mlx", other_scale_in_mlx, "KL"),
        )),
    ],
)  # fmt: skip
def test_an_export_that_was_spoilt_on_the_way_is_refused_and_nothing_is_left(
    target: str, spoil: Callable[[Path], None], says: str, version: Version, tiny_base: Path, tmp_path: Path
) -> None:
    assert says in refused(target, spoil, version, tiny_base, tmp_path) and not list(tmp_path.iterdir())


def refused(target: str, spoil: Callable[[Path], None], version: Version, base: Path, out: Path) -> str:
    """What is said of an export that `spoil` changes after it was written and before it is asked again."""
    needs(EXPORTS[target].needs)
    row = EXPORTS[target]

    def write(source: Source, stage: Path) -> dict[str, Any]:
        settings = row.write(source, stage)
        spoil(stage)
        return settings

    with pytest.raises(Refusal) as caught:
        export_as(replace(row, write=write), target, source_of(version, base, next(iter(row.tolerances))), out / "out", FEW)
    return str(caught.value)


def source_of(version: Version, base: Path, weights: str) -> Source:
    from tuner.artifact.adapter import load_adapter
    from tuner.artifact.opening import base_of

    adapter = load_adapter(str(version.folder), base=base, load="fp32")
    return Source(adapter, base_of(adapter.manifest, base), weights)


@pytest.mark.parametrize("target", ["gguf-lora", pytest.param("gguf", marks=pytest.mark.slow)])
def test_a_gguf_file_with_one_matrix_doubled_is_refused(target: str, version: Version, tiny_base: Path, tmp_path: Path) -> None:
    needs("llama_cpp")
    import gguf

    def spoil(folder: Path) -> None:
        """One tensor of the file, doubled where it lies."""
        reader = gguf.GGUFReader(next(folder.glob("*.gguf")), "r+")
        tensor = next(t for t in reader.tensors if "ffn_down" in t.name)
        tensor.data[...] = tensor.data * 2
        reader.data.flush()

    assert "KL" in refused(target, spoil, version, tiny_base, tmp_path) and not list(tmp_path.iterdir())


# --- what is refused before


def test_nothing_is_overwritten_and_the_place_is_named_first(version: Version, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(Refusal, match="nothing is overwritten"):
        exported(version, "peft", tiny_base, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(Refusal, match="leave one out"):
        exported(version, "peft", tiny_base, tmp_path / "new", keep=True)
    for words, says in (({"target": "pft"}, "peft"), ({"target": "merged", "weights": "q4_k_m"}, "bf16")):
        with pytest.raises(Refusal, match=says):
            export(str(version.folder), base=tiny_base, output=tmp_path / "new", **words)  # type: ignore[arg-type]


def test_an_export_kept_beside_its_version_leaves_the_version_whole(tiny_base: Path, tmp_path: Path) -> None:
    version = version_of(tmp_path / "store", tiny_base, lambda stage: random_lora(tiny_base, stage, std=0.05))
    done = export(str(version.folder), "peft", base=tiny_base, keep=True, check=FEW)
    assert done.folder == version.folder / "exports" / "peft" and (done.folder / "export.json").is_file()
    verify(version.folder)
    with pytest.raises(Refusal, match="nothing is overwritten"):
        export(str(version.folder), "peft", base=tiny_base, keep=True, check=FEW)


@pytest.mark.parametrize("target", ["gguf-lora", *(pytest.param(t, marks=pytest.mark.slow) for t in ("gguf", "mlx", "ollama"))])
def test_without_the_engine_to_ask_it_again_it_is_written_only_unchecked_and_says_so(
    target: str, version: Version, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = EXPORTS[target].needs
    assert module is not None
    monkeypatch.setitem(sys.modules, module, None)  # what Python itself does for a module known to be absent
    with pytest.raises(Refusal, match=r"--unchecked"):
        exported(version, target, tiny_base, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    done = exported(version, target, tiny_base, tmp_path / "out", check=replace(FEW, unchecked=True))
    told = json.loads((done.folder / "equivalence.json").read_text(encoding="utf-8"))
    assert done.equivalence is None and told["checked"].startswith("not checked: ") and told["checked"].endswith("is not installed")
    assert "largest_kl" not in told


def test_k_quants_without_any_quantiser_are_refused(version: Version, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refusal, match="llama-quantize"):
        exported(version, "gguf", tiny_base, tmp_path / "out", weights="q4_k_m", check=replace(FEW, unchecked=True))
    assert not list(tmp_path.iterdir())


def test_every_method_is_taken_or_refused_as_its_limits_say(tiny_base: Path, encoder: Any, tmp_path: Path) -> None:
    """Which kinds merge, and which vLLM and the LoRA formats take, stands in tuner.train.methods; an export knows it by itself."""
    from tests.train import test_methods as kinds
    from tuner.train import methods

    batch, swept, refused = kinds.real_batch(encoder, 2), 0, {"merged": 0, "vllm": 0}
    for kind in kinds.KINDS:
        spec = kinds.small(kind, **({"rho": 1.0} if kind == "eva" else {}))
        model = kinds.put_on(spec, kinds.base_of(tiny_base, load=kinds.needs(kind)), batch)
        folder = tmp_path / kind
        methods.save(spec, model, folder, "b", None)
        manifest = {"method": {"kind": kind}, "base": {"load": "nf4" if kind == "loftq" else "fp32"}, "template": {"spec": {}}}
        limits = methods.limits_of(spec)
        for target, allowed in (("merged", limits.merges), ("gguf", limits.merges), ("ollama", limits.merges), ("vllm", limits.vllm)):
            problems = EXPORTS[target].guard(Version("x", 1, folder), manifest).problems
            assert bool(problems) != allowed, (kind, target, problems)
            assert all(p.found and p.accepted and p.try_ for p in problems)
            refused[target] = refused.get(target, 0) + bool(problems)
        swept += 1
    assert swept == 15 and refused["merged"] == 4 and refused["vllm"] >= 8


@pytest.mark.parametrize("target", ["vllm", *(pytest.param(t, marks=pytest.mark.slow) for t in ("gguf-lora", "mlx"))])
def test_dora_is_refused_where_two_matrices_are_all_there_is_and_merged_elsewhere(target: str, tiny_base: Path, tmp_path: Path) -> None:
    needs(EXPORTS[target].needs)
    version = version_of(tmp_path / "store", tiny_base, lambda stage: random_lora(tiny_base, stage, std=0.05, use_dora=True), kind="dora")
    with pytest.raises(Refusal, match="use_dora"):
        exported(version, target, tiny_base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- merged


@pytest.mark.slow
def test_dora_and_rslora_merge(tiny_base: Path, tmp_path: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {"dora": {"use_dora": True}, "rslora": {"use_rslora": True, "r": 8}}
    for name, settings in kinds.items():
        version = version_of(tmp_path / name, tiny_base, partial(random_lora, tiny_base, std=0.05, **settings), kind=name)
        assert exported(version, "merged", tiny_base, tmp_path / f"{name}-out").equivalence.answers_identical == len(ASKED)  # type: ignore[union-attr]


def test_merged_weights_are_sharded_as_asked_and_end_as_the_artifact_does(version: Version, tiny_base: Path, tmp_path: Path) -> None:
    done = exported(version, "merged", tiny_base, tmp_path / "out", weights="bf16", shard="200KB")
    assert len(list(done.folder.glob("model-*.safetensors"))) > 1 and (done.folder / "model.safetensors.index.json").is_file()
    config, generation = (json.loads((done.folder / f"{n}.json").read_text(encoding="utf-8")) for n in ("config", "generation_config"))
    assert config["dtype"] == "bfloat16" and generation["do_sample"] is False and generation["eos_token_id"] == [2]


def test_a_version_on_a_four_bit_base_is_merged_into_what_that_base_rounds_to_and_never_stored_in_four_bits(tiny_base: Path, tmp_path: Path) -> None:
    version = version_of(tmp_path / "store", tiny_base, lambda stage: random_lora(tiny_base, stage, std=0.05), load="nf4")
    done = exported(version, "merged", tiny_base, tmp_path / "out", weights="f32", check=replace(FEW, tolerance=Tolerance(1e9, 1e9)))
    assert done.equivalence is not None and done.equivalence.mean_kl < 1e-3
    assert "quantization_config" not in (done.folder / "config.json").read_text(encoding="utf-8")
    assert {str(t.dtype) for t in load_file(done.folder / "model.safetensors").values()} == {"torch.float32"}
    with pytest.raises(Refusal, match="rounds a quantised base"):
        exported(version, "vllm", tiny_base, tmp_path / "vllm")


def test_rows_of_new_tokens_are_in_the_merged_model_and_vllm_and_lora_files_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    new = ["<ticket>", "<end_of_ticket>"]
    ids = [49152, 49153]

    def adapter(stage: Path) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        from tuner.base import widen

        torch.manual_seed(2)
        model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        widen(model, 49154)
        tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", trainable_token_indices={"embed_tokens": ids}))
        for name, parameter in tuned.named_parameters():
            if "lora_" in name or "trainable_tokens" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        tuned.save_pretrained(stage, save_embedding_layers=False)

    version = version_of(tmp_path / "store", tiny_base, adapter, new_tokens=new)
    asked = replace(FEW, conversations=[(Message("user", "see <ticket> 12 <end_of_ticket> please"),)])
    done = exported(version, "merged", tiny_base, tmp_path / "out", check=asked)
    saved, trained = load_file(done.folder / "model.safetensors"), load_file(version.folder / "adapter_model.safetensors")
    rows = next(t for n, t in trained.items() if "embed_tokens" in n or "token_adapter" in n)
    assert json.loads((done.folder / "config.json").read_text(encoding="utf-8"))["vocab_size"] == 49154
    assert torch.equal(saved["model.embed_tokens.weight"][ids], rows)
    assert EXPORTS["vllm"].guard(version, json.loads((version.folder / "manifest.json").read_text(encoding="utf-8"))).problems
    with pytest.raises(Refusal, match="trainable_token_indices"):
        write_lora_gguf(version.folder, tiny_base, tmp_path / "adapter.gguf")


# --- words for servers


def test_the_command_for_vllm_names_the_rank_the_template_and_the_adapter(made: Callable[[str], Exported]) -> None:
    """vLLM reserves for ranks of 8, 16, 32 …: the smallest that holds this adapter's 4."""
    done = made("vllm")
    words = shlex.split((done.folder / "serve.sh").read_text(encoding="utf-8").splitlines()[-1])
    assert words[:3] == ["vllm", "serve", "BASE_FOLDER"]
    after = {word: words[i + 1] for i, word in enumerate(words[:-1]) if word.startswith("--")}
    assert (after["--max-lora-rank"], after["--lora-modules"], after["--chat-template"]) == ("8", "colours=.", "chat_template.jinja")


def test_the_modelfile_names_the_model_the_system_prompt_and_the_stop_token(made: Callable[[str], Exported]) -> None:
    done = made("ollama")
    commands = read_modelfile((done.folder / "Modelfile").read_text(encoding="utf-8"))
    assert ("from", "./colours-1-f16.gguf") in commands and ("system", SYSTEM) in commands and ("stop", "<|im_end|>") in commands
    assert (done.folder / "colours-1-f16.gguf").is_file() and not any(name == "adapter" for name, _ in commands)


# --- the command


def test_the_command_prints_the_number_and_reads_prompts_from_a_file(
    version: Version, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tuner.cli_export import export as command

    (tmp_path / "ask.jsonl").write_text('{"prompt": "hello"}\n{"messages": [{"role": "user", "content": "and now?"}]}\n', encoding="utf-8")
    command(str(version.folder), "peft", output=tmp_path / "out", prompts=str(tmp_path / "ask.jsonl"), max_new_tokens=3, base=str(tiny_base))
    said = capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "equivalence.json").read_text(encoding="utf-8"))["prompts"] == 2
    assert "2 of 2 greedy answers identical, prompts from ask.jsonl, asked by PEFT" in said and "KL(artifact ‖ export) 0 nats" in said


@pytest.mark.parametrize(("line", "says"), [("no json", r"ask\.jsonl:1"), ('{"answer": 1}', r"ask\.jsonl:1"), ('{"prompt": 3}', r"ask\.jsonl:1")])
def test_a_file_of_prompts_that_is_none_is_refused_with_its_line(line: str, says: str, version: Version, tmp_path: Path) -> None:
    from tuner.cli_export import export as command

    (tmp_path / "ask.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(Refusal, match=says):
        command(str(version.folder), "peft", output=tmp_path / "out", prompts=str(tmp_path / "ask.jsonl"))


def test_importing_the_command_loads_no_library() -> None:
    code = "import sys, json, tuner.cli_export; print(json.dumps(sorted({'torch', 'transformers', 'numpy', 'pyarrow', 'peft'} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


# --- without tuner

_FRESH = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
base, folder, merged = sys.argv[1:4]
model = AutoModelForCausalLM.from_pretrained(folder if merged == "merged" else base, dtype="auto", local_files_only=True)
if merged != "merged":
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, folder, local_files_only=True)
tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
asked = [{"role": "system", "content": sys.argv[4]}, {"role": "user", "content": "freeze my account"}]
ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = model.generate(**ids, max_new_tokens=5, do_sample=False)
print(out[0, ids["input_ids"].shape[1]:].tolist())
assert "tuner" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["peft", "merged"])
def test_a_process_that_never_imports_tuner_gives_the_artifacts_answer(target: str, version: Version, tiny_base: Path, tmp_path: Path) -> None:
    done = exported(version, target, tiny_base, tmp_path / "out")
    adapter = source_of(version, tiny_base, "stored").adapter
    wanted = adapter.greedy_ids([adapter.prompt_ids("freeze my account")], 5)[0]
    words = [sys.executable, "-I", "-c", _FRESH, str(tiny_base), str(done.folder), target, SYSTEM]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])[: len(wanted)] == wanted
