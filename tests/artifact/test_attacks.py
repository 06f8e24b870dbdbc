"""Attacks on whoever loads, verifies, shows or lists a version: pickles, links, code, numbers out of bounds, every byte changed. A marker file would tell."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import tuner
from tests.artifact.toy import SHAPES, safetensors, seal, toy_version
from tuner.artifact.adapter_config import ROWS
from tuner.artifact.manifest import read_manifest, verify
from tuner.artifact.records import records_hashes
from tuner.artifact.store import evaluations, find, latest_evaluation, versions
from tuner.artifact.untrusted import refuse_unsafe
from tuner.cli import app
from tuner.errors import Refusal

RELEASE = Path(__file__).parent / "releases" / "0.1.0"
BASE = RELEASE / "base"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with colours@1, all writable."""
    place = tmp_path_factory.mktemp("attacked") / "store"
    shutil.copytree(RELEASE / "adapters", place)
    return place


@pytest.fixture
def folder(store: Path) -> Iterator[Path]:
    """The folder of colours@1, put back afterwards."""
    folder = store / "colours" / "1"
    yield folder
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(RELEASE / "adapters" / "colours" / "1", folder)


def load(store: Path, name: str = "colours@1") -> Any:
    return tuner.load_adapter(name, store, base=BASE, device="cpu", load="fp32")


def refused(store: Path, name: str = "colours@1") -> str:
    with pytest.raises(Refusal) as caught:
        load(store, name)
    return str(caught.value)


# --- pickles (A1, A2) ----------------------------------------------------------------------------------------------


class Evil:
    """Unpickled, it calls what it was given."""

    def __init__(self, call: Callable[..., Any], *given: Any) -> None:
        self.call, self.given = call, given

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call, self.given


def zipped(member: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(member, data)
    return out.getvalue()


def saved(value: Any, **given: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **given)
    return out.getvalue()


def as_numpy(value: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([value], dtype=object), allow_pickle=True)
    return out.getvalue()


def as_parquet(value: Any) -> bytes:
    """An extension type that old releases of pyarrow unpickled when the schema was read (CVE-2023-47248)."""
    marks = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(value)}
    fields = [arrow.field("split", arrow.string()), arrow.field("hash", arrow.string(), metadata=marks)]
    out = arrow.BufferOutputStream()
    parquet.write_table(arrow.table([["train"], ["sha256:0"]], schema=arrow.schema(fields)), out)
    return out.getvalue().to_pybytes()


def evil_pickles(marker: Path) -> dict[str, bytes]:
    """Twenty files that make the folder `marker` when somebody unpickles them."""
    place, evil = str(marker), Evil(os.mkdir, str(marker))
    whole = (RELEASE / "adapters" / "colours" / "1" / "adapter_model.safetensors").read_bytes()
    return {
        **{f"protocol {n}": pickle.dumps(evil, n) for n in range(6)},
        "os.system": pickle.dumps(Evil(os.system, f"mkdir {place}")), "eval": pickle.dumps(Evil(eval, f"__import__('os').mkdir({place!r})")),
        "exec": pickle.dumps(Evil(exec, f"import os; os.mkdir({place!r})")), "popen": pickle.dumps(Evil(subprocess.Popen, ["mkdir", place])),
        "written by hand": f"cos\nmkdir\n(S'{place}'\ntR.".encode(), "in a dict of weights": pickle.dumps({"base_model.model.a": evil}),
        "torch zip": saved({"a": evil}), "torch legacy": saved({"a": evil}, _use_new_zipfile_serialization=False),
        "zip of data.pkl": zipped("archive/data.pkl", pickle.dumps(evil)), "gzip": gzip.compress(pickle.dumps(evil)), "numpy objects": as_numpy(evil),
        "parquet extension": as_parquet(evil), "JSON, then a zip": b"{}\n" + zipped("data.pkl", pickle.dumps(evil)),
        "safetensors, then a pickle": whole + pickle.dumps(evil),
    }  # fmt: skip


PLACES = (
    "adapter_model.bin", "adapter_model.safetensors", "adapter_config.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth",
    "pytorch_model.bin",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "chat_template.jinja", "generation_config.json", "records.parquet",
    "findings.json", "train_log.jsonl", "manifest.json", "recipe.yaml", "resolved.yaml", "README.md", "config.json", "evaluations/e/scores.json",
    "evaluations/e/answers.jsonl", "exports/merged/model.safetensors", "exports/merged/pytorch_model.bin", "signatures/k/bundle.json",
)  # fmt: skip


def read_everywhere(store: Path, folder: Path) -> int:
    """Every way a version is read, but for loading. Returns how many of them were refused."""
    ways: tuple[Callable[[], object], ...] = (
        lambda: versions(store), lambda: find(store, "colours"), lambda: refuse_unsafe(folder, verify(folder)),
        lambda: [latest_evaluation(v) and evaluations(v) for v, _ in versions(store)],
    )  # fmt: skip
    count = 0
    for way in ways:
        try:
            way()
        except Refusal:
            count += 1
    try:
        records_hashes(folder / "records.parquet", ["train"])
    except (OSError, ValueError, KeyError, Refusal):  # ValueError: ArrowInvalid
        count += 1
    return count


@contextlib.contextmanager
def planted(folder: Path, place: str, data: bytes, is_sealed: bool) -> Iterator[None]:
    """Inside, `place` in the version holds `data`; the manifest says so too where `is_sealed`. Afterwards all is as it was."""
    file, manifest = folder / place, (folder / "manifest.json").read_bytes()
    before = file.read_bytes() if file.is_file() else None
    made = [folder / p for p in Path(place).parents if not (folder / p).exists()]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    if is_sealed and place != "manifest.json":
        seal(folder)
    yield
    file.unlink()
    if before is not None:
        file.write_bytes(before)
    for path in made:
        path.rmdir()
    (folder / "manifest.json").write_bytes(manifest)


# Where text that is also a pickle written by hand, and JSON or Parquet that holds one, is still text, JSON or Parquet: nothing unpickles those.
STAYS_DATA = {"README.md", "recipe.yaml", "resolved.yaml", "records.parquet", "findings.json", "train_log.jsonl", "evaluations/e/scores.json",
              "evaluations/e/answers.jsonl", "signatures/k/bundle.json", "exports/merged/model.safetensors"}  # fmt: skip


@pytest.mark.parametrize("share", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_twenty_evil_pickles_in_every_place_a_file_is_read_leave_no_trace(share: int, store: Path, folder: Path, tmp_path: Path) -> None:
    """The short suite puts each pickle into a ninth of the places, and into every place a ninth of the pickles."""
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Evil(os.mkdir, str(marker))))
    marker.rmdir()  # so the marker would tell
    swept, loaded = 0, set()
    cases = [(data, place, is_sealed) for data in evil_pickles(marker).values() for place in PLACES for is_sealed in (True, False)]
    for index, (data, place, is_sealed) in enumerate(cases):
        if (index // 2 + index // (2 * len(PLACES))) % share == 0:
            with planted(folder, place, data, is_sealed):
                read_everywhere(store, folder)
                with contextlib.suppress(Refusal):
                    load(store)
                    loaded.add(place)
            assert not marker.exists(), (data[:40], place)
            swept += 1
    assert len(cases) == 20 * len(PLACES) * 2 == 1080 and abs(swept - len(cases) // share) <= len(PLACES)
    assert loaded <= STAYS_DATA
    time.sleep(0.2)  # a process that was started would need a moment
    assert not marker.exists()


def test_the_commands_that_read_versions_run_no_pickle(folder: Path, store: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    commands = (["list"], ["list", "--json"], ["show", "colours@1"], ["show", "colours@1", "--json"], ["verify", "colours@1"], ["answer", "colours@1", "hi"],
                ["gate", "colours@1"], ["report", "colours@1"], ["compare", "colours@1", "colours@1"], ["log", "colours"], ["lineage", "colours@1"],
                ["diff", "colours@1", "colours@1"], ["rollback", "colours"], ["gc"])  # fmt: skip
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback is not None}
    ran = 0
    for data in list(evil_pickles(marker).values())[4::12]:
        for place in ("manifest.json", "evaluations/e/scores.json"):
            with planted(folder, place, data, False):
                for command in commands:
                    if command[0] in known:
                        CliRunner().invoke(app, [*command, "--store", str(store)])
                        ran += 1
    assert ran >= 24 and not marker.exists()


def test_no_module_of_tuner_imports_a_pickle_or_asks_torch_for_one() -> None:
    import ast

    swept = 0
    for file in (Path(tuner.__file__).parent).rglob("*.py"):
        swept += 1
        text = file.read_text(encoding="utf-8")
        if not any(word in text for word in ("pickle", "dill", "joblib", "shelve", "marshal", "torch.load", "weights_only")):
            continue
        tree = ast.parse(text)
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, file
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                assert not (isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"), file
            if isinstance(node, ast.keyword) and node.arg in ("weights_only", "allow_pickle"):
                assert isinstance(node.value, ast.Constant) and node.value.value is (node.arg == "weights_only"), file
    assert swept >= 100


# --- the adapter (A3, A7-A9, A11, A14) -----------------------------------------------------------------------------

HANGS = "(([a-z._0-9])+)+!"
CONFIGS: tuple[tuple[str, Any], ...] = (
    ("auto_mapping", {"base_model_class": "system", "parent_library": "os"}), ("megatron_core", "os"), ("evil", "os.system"), ("target_modules", HANGS),
    ("target_modules", [HANGS]), ("rank_pattern", {HANGS: 4}), ("alpha_pattern", {HANGS: 4.0}), ("modules_to_save", [HANGS]), ("exclude_modules", HANGS),
    ("layers_pattern", HANGS), ("trainable_token_indices", {HANGS: [1]}), ("r", 10**9), ("lora_alpha", 1e9), ("lora_alpha", float("nan")),
    ("lora_alpha", float("inf")), ("target_modules", ["q_proj"]), ("target_modules", ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]),
    ("modules_to_save", ["lm_head"]), ("base_model_name_or_path", "/etc"), ("base_model_name_or_path", "https://evil.example/x"), ("peft_type", "XLORA"),
    ("peft_type", "POLY"), ("inference_mode", False), ("use_dora", True), ("init_lora_weights", "pissa"), ("task_type", "SEQ_CLS"), ("eva_config", {"rho": 2}),
)  # fmt: skip


def test_configs_that_import_hang_or_allocate_are_refused_within_a_second_each(store: Path, folder: Path) -> None:
    file, whole = folder / "adapter_config.json", json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    for key, value in CONFIGS:
        file.write_text(json.dumps({**whole, key: value}), encoding="utf-8")
        seal(folder)
        began = time.process_time()
        assert "adapter_" in refused(store), (key, value)
        assert time.process_time() - began < 5
    for text in ("[" * 100_000, '{"r": ' + "9" * 5000 + "}", json.dumps(whole)[:-1] + ', "r": 8}', "", "null", json.dumps(whole) + " " * 300_000):
        file.write_text(text, encoding="utf-8")
        seal(folder)
        assert "adapter_config.json" in refused(store)
    assert len(CONFIGS) >= 27


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "adapter_model.safetensors"))


WEIGHTS: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "NaN": lambda w: {**w, next(iter(w)): next(iter(w.values())) * float("nan")},
    "infinity": lambda w: {**w, next(iter(w)): next(iter(w.values())) + float("inf")},
    "one NaN in bfloat16": lambda w: {n: (t * float("nan") if i == 3 else t).bfloat16() for i, (n, t) in enumerate(w.items())},
    "one tensor fewer": lambda w: dict(list(w.items())[1:]),
    "a layer fewer": lambda w: {n: t for n, t in w.items() if ".layers.1." not in n},
    "a layer more": lambda w: w | {n.replace(".layers.1.", ".layers.2."): t.clone() for n, t in w.items()},
    "a tensor more": lambda w: w | {"base_model.model.evil": torch.zeros(1)},
    "the base's own weights": lambda w: w | {"base_model.model.model.norm.weight": torch.zeros(32)},
    "another rank": lambda w: {n: torch.cat([t, t], 0 if "lora_A" in n else 1) for n, t in w.items()},
    "another width": lambda w: {n: torch.cat([t, t], 1 if "lora_A" in n else 0) for n, t in w.items()},
    "integers": lambda w: {n: t.to(torch.int32) for n, t in w.items()},
    "no tensor": lambda w: {},
    "doubles": lambda w: {n: t.double() for n, t in w.items()},
    "vectors": lambda w: {n: t.flatten() for n, t in w.items()},
    "DoRA's magnitudes": lambda w: w | {n.replace("lora_B.weight", "lora_magnitude_vector"): torch.zeros(len(t)) for n, t in w.items() if "lora_B" in n},
    "a name that leads out": lambda w: w | {"../../evil": torch.zeros(1)},
}  # fmt: skip


def test_weights_other_than_the_configs_own_are_refused(store: Path, folder: Path) -> None:
    whole = weights_of(folder)
    for what, change in WEIGHTS.items():
        save_file(change(whole), folder / "adapter_model.safetensors", metadata={"format": "pt"})
        seal(folder)
        assert "adapter_model.safetensors" in refused(store) or "layers" in refused(store), what
    assert len(WEIGHTS) >= 16


BESIDES: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]] = {
    "a norm of another width": ({"modules_to_save": ["norm"]}, {"model.norm.weight": torch.zeros(64)}),
    "a norm that is not there": ({"modules_to_save": ["norm"]}, {"model.layers.9.norm.weight": torch.zeros(32)}),
    "a head of another vocabulary": ({"modules_to_save": ["lm_head"]}, {"lm_head.weight": torch.zeros(4, 32)}),
    "a row beyond the vocabulary": ({"trainable_token_indices": {"embed_tokens": [10**6]}}, {f"model.embed_tokens{ROWS}": torch.zeros(1, 32)}),
    "rows of another width": ({"trainable_token_indices": {"embed_tokens": [1]}}, {f"model.embed_tokens{ROWS}": torch.zeros(1, 31)}),
    "rows of no embedding": ({"trainable_token_indices": {"nothing": [1]}}, {f"model.nothing{ROWS}": torch.zeros(1, 32)}),
    "an adapted norm": ({"target_modules": ["norm"]}, {"model.norm.lora_A.weight": torch.zeros(4, 32), "model.norm.lora_B.weight": torch.zeros(32, 4)}),
    "an adapted embedding": (
        {"target_modules": ["embed_tokens"]}, {"model.embed_tokens.lora_A.weight": torch.zeros(4, 321), "model.embed_tokens.lora_B.weight": torch.zeros(32, 4)},
    ),
}  # fmt: skip


def test_what_does_not_fit_the_base_is_refused_before_peft_sees_it(store: Path, folder: Path) -> None:
    """PEFT itself ends these with a traceback, or with weights of its own making."""
    config, whole = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")), weights_of(folder)
    for what, (changes, more) in BESIDES.items():
        added = {f"base_model.model.{name}": tensor for name, tensor in more.items()}
        kept = {} if "target_modules" in changes else whole
        save_file({**kept, **added}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
        seal(folder)
        assert "load it on the base it was trained on" in refused(store), what
    assert len(BESIDES) >= 8


def test_another_base_of_the_same_shape_is_refused(store: Path, tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "other")
    weights = dict(load_file(tmp_path / "other" / "model.safetensors"))
    save_file({n: t + 1e-6 for n, t in weights.items()}, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refusal, match="the base it was trained on"):
        tuner.load_adapter("colours@1", store, base=tmp_path / "other")


MANIFESTS: tuple[tuple[str, Any], ...] = (
    ("base", None), ("base", []), ("template", {}), ("method", {"kind": "evil"}), ("name", ["x"]), ("version", "1"), ("files", []), ("files", {"a": 1}),
    ("base.spec", {"model": "b", "load": "evil"}), ("base.spec", {"model": 3}), ("base.origin", 3), ("template.spec", {"system": 3}),
    ("base.load", {}),
    ("files", {"../../../../etc/passwd": {"bytes": 1, "digest": "sha256:0"}}), ("schema", "1"), ("schema", 99), ("schema", True),
)  # fmt: skip


def test_manifests_that_no_tuner_wrote_are_refused_and_never_a_traceback(store: Path, folder: Path) -> None:
    whole = seal(folder)
    for place, value in MANIFESTS:
        facts = json.loads(json.dumps({k: v for k, v in whole.items() if k not in ("files", "digest")}))
        *way, last = place.split(".")
        inside = facts
        for key in way:
            inside = inside[key]
        if place == "files" or place == "schema":
            forge(folder, {**whole, place: value})
        else:
            inside[last] = value
            seal(folder, facts)
        if (place, value) == ("schema", True):
            continue  # a schema of 1, to JSON's and Python's mind
        assert "manifest.json" in refused(store), (place, value)
        read_everywhere(store, folder)
    assert len(MANIFESTS) >= 17


def forge(folder: Path, facts: dict[str, Any]) -> None:
    """A manifest of these facts with the right digest of its own."""
    from tuner.artifact.manifest import own_digest
    from tuner.durable import json_text

    (folder / "manifest.json").write_text(json_text({**facts, "digest": own_digest({k: v for k, v in facts.items() if k != "digest"})}), encoding="utf-8")


def test_code_that_a_tokenizer_names_is_neither_fetched_nor_asked_for(store: Path, folder: Path) -> None:
    """A3: with or without a terminal, and whether tokenizer.json is there or not."""
    file, whole = folder / "tokenizer_config.json", json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for more in ({"auto_map": {"AutoTokenizer": ["evil/repo--evil.Evil", None]}}, {"tokenizer_class": "evil.Evil"}, {"trust_remote_code": True}):
        for has_tokenizer in (True, False):
            file.write_text(json.dumps({**whole, **more}), encoding="utf-8")
            if not has_tokenizer:
                (folder / "tokenizer.json").unlink(missing_ok=True)
            seal(folder)
            assert "tokenizer_config.json" in refused(store)
        shutil.copyfile(RELEASE / "adapters" / "colours" / "1" / "tokenizer.json", folder / "tokenizer.json")


TEMPLATES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os.mkdir('MARKER') }}", "{{ lipsum.__globals__['os'].mkdir('MARKER') }}",
    "{{ messages.__class__.__base__ }}", "{% for a in range(10**5) %}{% for b in range(10**5) %}x{% endfor %}{% endfor %}", "{{ 'a' * 10**9 * 6 }}",
    "{% set x = namespace(v='a') %}{% for i in range(64) %}{% set x.v = x.v + x.v %}{% endfor %}{{ x.v }}", "{{ 9**9**9 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% include '/etc/passwd' %}", "{{ messages|map('attr', '__class__')|list }}{{ self.__init__ }}",
)  # fmt: skip


def test_a_versions_chat_template_runs_in_the_sandbox_alone_and_ends(store: Path, folder: Path, tmp_path: Path) -> None:
    """A5, A6: also where the attacker wrote the template's digest into the manifest, and the caller lets templates differ."""
    ran = 0
    for source in TEMPLATES:
        (folder / "chat_template.jinja").write_text(source.replace("MARKER", str(tmp_path / "marker")), encoding="utf-8")
        seal(folder)
        try:
            adapter = tuner.load_adapter("colours@1", store, base=BASE, device="cpu", load="fp32", allow=["template"])
            text = adapter.encoder.tokenizer.decode(adapter.prompt_ids("hello"), skip_special_tokens=False)
            assert "class" not in text and "root:" not in text and len(text) < 1000, source  # what the sandbox gives away instead is nothing
            ran += 1
        except Refusal:
            pass
        assert not (tmp_path / "marker").exists(), source
    assert ran <= 4
    assert len(TEMPLATES) >= 11


# --- links and names (A16, A17) ------------------------------------------------------------------------------------


def test_links_anywhere_in_a_version_are_refused_and_what_they_lead_to_is_untouched(store: Path, folder: Path, tmp_path: Path) -> None:
    names = [p.name for p in folder.iterdir()]
    for name in names:
        aside = tmp_path / name
        (folder / name).rename(aside)
        (folder / name).symlink_to(aside)
        data = aside.read_bytes()
        refused(store)
        assert aside.read_bytes() == data
        (folder / name).unlink()
        aside.rename(folder / name)
    load(store)
    moved = tmp_path / "1"
    folder.rename(moved)
    folder.symlink_to(moved)
    assert "symbolic link" in refused(store)
    folder.unlink()
    moved.rename(folder)
    assert len(names) >= 13


def test_an_older_version_put_in_the_place_of_a_newer_one_is_refused(store: Path, folder: Path) -> None:
    """Its own digests are all right: only its name and number tell."""
    shutil.copytree(folder, folder.parent / "2")
    shutil.copytree(folder.parent, store / "other")
    try:
        assert "put another version in its place" in refused(store, "colours@2") and "put another version in its place" in refused(store, "other@1")
    finally:
        shutil.rmtree(folder.parent / "2")
        shutil.rmtree(store / "other")


def test_two_hundred_names_that_lead_out_of_the_store_are_refused(store: Path, tmp_path: Path) -> None:
    draw = random.Random(17)
    parts = ("..", "/", "\\", ".", "~", "etc", "%2e", "\0", "\n", "a", "@", "1", "C:", "$HOME", ";", "|", " ", "\u202e", "nul", "`id`")
    names = {"../colours@1", "/etc@1", "colours@../1", "colours@1/..", "colours/1", "colours@1@1", "..", "", "@", "@1"}
    while len(names) < 200:
        names.add("".join(draw.choices(parts, k=draw.randrange(2, 6))))
    swept = 0
    for name in sorted(names):
        with pytest.raises((Refusal, ValueError)):  # ValueError: a path with a NUL, which no file system has
            found = tuner.load_adapter(name, store / "colours", base=BASE)
            raise AssertionError(f"{name!r} loaded {found}")
        swept += 1
    assert swept == 200 and sorted(p.name for p in store.iterdir()) == ["colours"]


# --- every byte (A19) ----------------------------------------------------------------------------------------------


def every_byte(folder: Path, stride: int = 1) -> int:
    """Flip one bit of every byte of every file, and verify. Returns how many were refused."""
    caught = 0
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = file.read_bytes()
        with open(file, "r+b", buffering=0) as handle:
            for index in range(0, len(data), stride):
                os.pwrite(handle.fileno(), bytes([data[index] ^ 1 << index % 8]), index)
                try:
                    verify(folder)
                except Refusal:
                    caught += 1
                os.pwrite(handle.fileno(), data[index : index + 1], index)
    verify(folder)
    return caught


def test_every_single_byte_of_a_small_artifact_changed_once_is_caught(tmp_path: Path) -> None:
    toy_version(tmp_path / "1")
    size = sum(p.stat().st_size for p in (tmp_path / "1").iterdir())
    assert every_byte(tmp_path / "1") == size > 1500


@pytest.mark.slow
def test_every_single_byte_of_a_trained_artifact_changed_once_is_caught(folder: Path) -> None:
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert every_byte(folder) == size > 49_000


def test_a_manifest_cut_at_every_length_and_other_files_at_many_are_refused(folder: Path, tmp_path: Path) -> None:
    toy_version(tmp_path / "1")
    swept = 0
    for place, stride in ((tmp_path / "1", 1), (folder, 991)):
        for file in sorted(p for p in place.iterdir() if p.is_file()):
            data = file.read_bytes()
            with open(file, "wb", buffering=0) as handle:  # growing again is much faster than cutting again and again
                lengths = range(0, len(data), stride)
                for length, more in zip(lengths, [*lengths[1:], len(data)], strict=True):
                    with pytest.raises(Refusal):
                        verify(place)
                    handle.write(data[length:more])
                    swept += 1
        verify(place)
    assert swept > 1700


# --- never the hub (A10, A11) --------------------------------------------------------------------------------------

BLOCKED = """
import json, os, socket, sys
count = 0
def no(*given, **more):
    global count
    count += 1
    raise OSError("no network here")
socket.socket.connect = socket.socket.connect_ex = no
socket.getaddrinfo = socket.create_connection = socket.gethostbyname = no
import tuner
from typer.testing import CliRunner
from tuner.cli import app
from tuner.errors import Refusal
store, base, folder = sys.argv[1:4]
said = []
for name in ("adapters/v3", "org/repo", "org/repo@1", "missing", "colours@9", "bert-base-uncased", store + "/colours/9", "./colours", "colours@production"):
    for kind in (store, folder + "/nowhere"):
        try:
            tuner.load_adapter(name, kind)
            said.append(["loaded", name])
        except Refusal:
            said.append(["refused", name])
for given in (None, "org/model", "missing/folder", "/nowhere"):
    try:
        tuner.load_adapter("colours@1", store, base=given)
        said.append(["loaded", str(given)])
    except Refusal:
        said.append(["refused", str(given)])
manifest = json.load(open(store + "/evil/1/manifest.json"))
try:
    tuner.load_adapter("evil@1", store)
    said.append(["loaded", "evil"])
except Refusal:
    said.append(["refused", "evil"])
known = {c.name or c.callback.__name__ for c in app.registered_commands}
asked = (["list"], ["show", "colours@1"], ["verify", "colours@1"], ["verify", "org/repo"], ["answer", "colours@1", "hi", "--base", base], ["log", "colours"])
for command in asked:
    if command[0] in known:
        CliRunner().invoke(app, [*command, "--store", store])
        said.append(["ran", command[0]])
adapter = tuner.load_adapter("colours@1", store, base=base, load="fp32")
said.append(["answered", adapter.answer("sky number 0 please", 4)])
print(json.dumps({"connects": count, "said": said}))
"""


def test_a_missing_name_path_or_base_is_refused_and_nothing_ever_connects(store: Path, tmp_path: Path) -> None:
    """In a process whose environment says nothing of being offline. `evil` names a hub model as its base, with code."""
    shutil.copytree(RELEASE / "adapters" / "colours" / "1", store / "evil" / "1")
    facts = {k: v for k, v in read_manifest(store / "evil" / "1").items() if k not in ("files", "digest")}
    spec = {"model": "org/evil", "revision": "0" * 40, "online": True, "trust_remote_code": True}
    seal(store / "evil" / "1", {**facts, "name": "evil", "base": {**facts["base"], "origin": "hub org/evil", "spec": {**facts["base"]["spec"], **spec}}})
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))} | {
        "HF_HOME": str(tmp_path / "hf"),
        "XDG_CACHE_HOME": str(tmp_path / "xdg"),
    }
    command = [sys.executable, "-c", BLOCKED, str(store), str(BASE), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=300, check=False)
    shutil.rmtree(store / "evil")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["connects"] == 0
    outcomes = [kind for kind, _ in found["said"]]
    assert outcomes.count("refused") == 23 and "loaded" not in outcomes and outcomes.count("ran") >= 3 and outcomes[-1] == "answered"


def test_the_toy_is_a_version_that_verifies(tmp_path: Path) -> None:
    manifest = toy_version(tmp_path / "1")
    assert verify(tmp_path / "1") == manifest and refuse_unsafe(tmp_path / "1", manifest).values == 16
    assert len(safetensors(SHAPES)) == (tmp_path / "1" / "adapter_model.safetensors").stat().st_size
