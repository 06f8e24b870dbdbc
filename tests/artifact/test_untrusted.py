"""A version's folder as somebody else's: what lies in it, how its weights' header is read, what its manifest and tokenizer may say."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import save

from tests.artifact.toy import CONFIG, FACTS, LAYER, SHAPES, safetensors, seal, toy_version
from tuner.artifact.safetensors_header import MOST_HEADER_BYTES, Tensor, names_not_finite, read_header, tensors_of
from tuner.artifact.strict_json import Malformed
from tuner.artifact.untrusted import refuse_elsewhere, refuse_unsafe
from tuner.errors import Refusal


def refused(folder: Path, manifest: dict[str, Any]) -> str:
    with pytest.raises(Refusal) as caught:
        refuse_unsafe(folder, manifest)
    return str(caught.value)


def test_a_whole_version_is_accepted_and_counted(tmp_path: Path) -> None:
    payload = refuse_unsafe(tmp_path / "v", toy_version(tmp_path / "v"))
    assert (payload.files, payload.values, len(payload.tensors)) == (4, 16, 2)
    assert payload.bytes == sum(p.stat().st_size for p in (tmp_path / "v").iterdir())


# --- files ---------------------------------------------------------------------------------------------------------

FILES: tuple[tuple[str, bytes], ...] = (
    ("adapter_model.bin", b"x"), ("training_args.bin", b"x"), ("optimizer.pt", b"x"), ("a.pth", b"x"), ("a.PKL", b"x"), ("a.pickle", b"x"), ("a.ckpt", b"x"),
    ("a.npy", b"\x93NUMPY"), ("modeling_evil.py", b"import os\n"), ("a.so", b"\x7fELF"), ("a.sh", b"#!/bin/sh\n"), ("noending", b"text"), ("a.txt",
    b"#!/bin/sh\n"),
    ("a.txt", b"a\0b"), ("a.md", b"\xff\xfe"), ("a.jinja", b"\x80\x04."), ("a.json", b"\x80\x04}."), ("a.json", b"PK\x03\x04"), ("a.json", b""), ("a.json",
    b"cos\nsystem\n"),
    ("a.jsonl", b"\x80\x02}."), ("a.parquet", b"\x80\x04."), ("a.parquet", b"PAR1"), ("a.parquet", b""), ("a.safetensors", b"\x80\x02}."),
    ("a.safetensors", b""), ("a.gguf", b"PK\x03\x04"), ("a.model", b"\x80\x04."),
    ("config.json", b'{"auto_map": {}}'), ("a.exe", b"MZ"), ("a.zip", b"PK\x03\x04"), ("sub/a.py", b""),
)  # fmt: skip
LATER_FILES: tuple[tuple[str, bytes], ...] = (
    ("evaluations/e/scores.json", b"\x80\x04}."), ("evaluations/e/answers.jsonl", b"PK\x03\x04"), ("evaluations/e/x", b"\x80\x05."), ("evaluations/e/x.pkl",
    b""),
    ("exports/merged/pytorch_model.bin", b""), ("exports/merged/model.safetensors", b"PK\x03\x04"), ("exports/merged/modeling.py", b""),
    ("exports/x/y", b"\x7fELF"), ("signatures/k/bundle.json", b"\x80\x04."), ("exports/a/x", b"\x1f\x8b"),
    ("evaluations/.stage-x/a.pkl", b""), ("evaluations/.x", b"\x80\x04."),
)  # fmt: skip


def test_files_that_may_hold_code_and_bytes_of_another_kind_than_their_name_are_refused(tmp_path: Path) -> None:
    for index, (name, data) in enumerate([*FILES, *LATER_FILES]):
        folder = tmp_path / str(index)
        toy_version(folder)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        said = refused(folder, seal(folder))
        assert name in said and "remove it" in said, name
    assert len(FILES) + len(LATER_FILES) >= 44


def test_what_is_added_later_and_what_is_being_written_is_accepted(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    manifest = toy_version(folder)
    for name, data in {
        "evaluations/e/scores.json": b"{}", "evaluations/e/answers.jsonl": b"", "evaluations/e/report.html": b"<html>", "exports/ollama/Modelfile": b"FROM x\n",
        "exports/gguf/a.gguf": b"GGUF", "exports/merged/config.json": b"{}", "evaluations/.stage-host-1-0/scores.json": b"",
        "exports/m/a.safetensors": safetensors({"a": [1]}), "evaluations/e/plot.svg": b"<svg/>",
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    assert refuse_unsafe(folder, manifest).files == 13


def test_links_pipes_and_files_that_are_not_listed_are_refused_and_never_opened(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("# toy\n", encoding="utf-8")
    makers: dict[str, Callable[[Path], None]] = {
        "README.md": lambda p: p.unlink() or p.symlink_to(victim),  # type: ignore[func-returns-value]
        "unlisted.md": lambda p: p.write_text("x", encoding="utf-8") and None,
        "evaluations": lambda p: p.symlink_to(tmp_path),
        "evaluations/e": lambda p: p.parent.mkdir() or p.symlink_to(tmp_path),  # type: ignore[func-returns-value]
        "exports/pipe": lambda p: p.parent.mkdir() or os.mkfifo(p),  # type: ignore[func-returns-value]
        "sub": lambda p: p.symlink_to(tmp_path),
    }
    for index, (name, make) in enumerate(makers.items()):
        folder = tmp_path / "s" / str(index)
        manifest = toy_version(folder)
        make(folder / name)
        assert name in refused(folder, manifest)
    link = tmp_path / "s" / "7"
    link.symlink_to(tmp_path / "s" / "8")
    manifest = toy_version(tmp_path / "s" / "8")
    assert "a symbolic link" in refused(link, manifest)
    assert victim.read_text(encoding="utf-8") == "# toy\n" and len(makers) == 6


# --- the manifest --------------------------------------------------------------------------------------------------


def test_a_manifest_that_no_tuner_wrote_is_refused_with_every_fault_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    whole = toy_version(folder)
    swept = 0
    for place in ("name", "version", "base", "template", "method", "files", "base.name", "base.origin", "base.load", "base.weight_digest", "base.spec",
                  "template.spec", "template.digest", "template.tokenizer_digest", "method.kind"):  # fmt: skip
        for value in (None, [], {}, 3.5, "x" * 600, {"a": [{}]}, -1):
            changed = json.loads(json.dumps(whole))
            inside = changed
            *way, last = place.split(".")
            for key in way:
                inside = inside[key]
            inside[last] = value
            if (place, value) != ("template.spec", {}):  # all defaults
                assert place.split(".")[0] in refused(folder, changed), (place, value)
                swept += 1
    assert swept == 104
    said = refused(folder, {**whole, "name": 3, "version": "1", "method": {"kind": "evil"}})
    assert said.count("found") == 3
    for name in ("../x", "/etc/passwd", "a//b", "a/../b", "a\\b", "a\0", "évil", ".hidden", "evaluations/e/scores.json", "x" * 200):
        assert "plain names" in refused(folder, {**whole, "files": {**whole["files"], name: {"bytes": 1, "digest": "sha256:" + "0" * 64}}}), name
    for spec in ({"model": "b", "load": "evil"}, {"model": 3}, {"model": "b", "more": 1}, {}):
        assert "base.spec" in refused(folder, {**whole, "base": {**whole["base"], "spec": spec}})


def test_a_version_under_another_name_or_number_is_refused(tmp_path: Path) -> None:
    manifest = toy_version(tmp_path / "toy" / "1")
    refuse_elsewhere("toy", 1, manifest, tmp_path)
    for name, number in (("toy", 2), ("other", 1)):
        with pytest.raises(Refusal, match="put another version in its place"):
            refuse_elsewhere(name, number, manifest, tmp_path)


def test_a_config_of_another_method_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    for index, kind in enumerate(("dora", "rslora", "adalora", "ia3", "prompt")):
        assert "is saved" in refused(tmp_path / str(index), toy_version(tmp_path / str(index), method={"kind": kind}))
    assert refuse_unsafe(tmp_path / "p", toy_version(tmp_path / "p", method={"kind": "pissa"})).values == 16


# --- tokenizer -----------------------------------------------------------------------------------------------------


def test_tokenizer_settings_that_name_code_or_read_as_nothing_are_refused(tmp_path: Path) -> None:
    bad = [
        ("tokenizer_config.json", text)
        for text in (
            '{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}}', '{"a": {"auto_map": "x"}}', '{"trust_remote_code": true}', '{"a": [{"custom_class": "x"}]}',
            '{"tokenizer_class": "os.system"}', '{"tokenizer_class": ["a"]}', "[]", '{"a": 1, "a": 2}', '{"a": NaN}', "{" * 10, "[" * 100_000,
        )
    ] + [("generation_config.json", text) for text in ("[]", '{"eos_token_id": "2"}', '{"eos_token_id": [1, "2"]}', '{"eos_token_id": {}}', "{")]  # fmt: skip
    for index, (name, text) in enumerate(bad):
        folder = tmp_path / str(index)
        toy_version(folder)
        (folder / name).write_text(text, encoding="utf-8")
        assert name in refused(folder, seal(folder)), text
    assert len(bad) >= 16
    toy_version(tmp_path / "good")
    (tmp_path / "good" / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizerFast", "auto_map": null}', encoding="utf-8")
    (tmp_path / "good" / "generation_config.json").write_text('{"eos_token_id": [1, 2]}', encoding="utf-8")
    assert refuse_unsafe(tmp_path / "good", seal(tmp_path / "good")).files == 6


# --- weights -------------------------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_found_in_every_type(tmp_path: Path) -> None:
    bits = {"F32": ("<u4", torch.float32), "F16": ("<u2", torch.float16), "BF16": ("<u2", torch.bfloat16)}
    swept = 0
    for name, (kind, dtype) in bits.items():
        every = np.arange(2**16, dtype=np.uint32)
        values = (every << 16 if kind == "<u4" else every).astype(kind)  # of float32 the upper halves: every exponent and sign
        finite = torch.isfinite(torch.frombuffer(bytearray(values.tobytes()), dtype=dtype))
        (tmp_path / name).write_bytes(values.tobytes())
        size = values.itemsize
        for index in [*range(0, 2**16, 97), *np.flatnonzero(np.diff(finite.numpy())).tolist()]:
            one = {"t": Tensor(name, (1,), index * size, (index + 1) * size)}
            assert list(names_not_finite(tmp_path / name, one)) == ([] if finite[index] else ["t"])
            swept += 1
        assert list(names_not_finite(tmp_path / name, {"t": Tensor(name, (2**16,), 0, 2**16 * size)})) == ["t"]
    assert swept > 2000
    for value in (float("nan"), float("inf"), -float("inf")):
        folder = tmp_path / f"v{value}"
        assert "not finite" in refused(folder, toy_version(folder, weights=safetensors(SHAPES, value)))


def entry(**changes: Any) -> dict[str, Any]:
    return {f"{LAYER}.lora_A.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32], **changes}}


HEADERS: tuple[bytes, ...] = (
    b"", b"1234567", (2**63).to_bytes(8, "little"), (MOST_HEADER_BYTES + 1).to_bytes(8, "little") + b"{" + b" " * (MOST_HEADER_BYTES + 1),
    (100).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]", (4).to_bytes(8, "little") + b"null",
    safetensors(SHAPES)[:-1], safetensors(SHAPES) + b"x", safetensors(SHAPES) + b"PK\x03\x04",
    *(safetensors(SHAPES, header=header) for header in (
        entry(dtype="I64"), entry(dtype="F8_E4M3"), entry(dtype="evil"), entry(dtype=3), entry(dtype="F16"), entry(shape=[2, 5]), entry(shape=[-2, -4]),
        entry(shape=[2.0, 4]), entry(shape="2"), entry(shape=[2**40, 2**40]), entry(shape=[1] * 9), entry(shape=[True, 8]), entry(data_offsets=[0, 31]),
        entry(data_offsets=[32, 0]), entry(data_offsets=[-32, 0]), entry(data_offsets=[4, 36]), entry(data_offsets=[32, 64]), entry(data_offsets=[0]),
        entry(data_offsets=[2**62, 2**62 + 32]), entry(more=1), {"__metadata__": {"format": "np"}}, {"__metadata__": {"evil": "x" * 1000}}, {"__metadata__": 3},
        {"../evil": {"dtype": "F32", "shape": [0], "data_offsets": [64, 64]}}, {"a b": {"dtype": "F32", "shape": [0], "data_offsets": [64, 64]}},
        {"x" * 600: {"dtype": "F32", "shape": [0], "data_offsets": [64, 64]}}, {"x": []}, {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
    )),
)  # fmt: skip


def test_headers_that_are_too_long_overlap_or_leave_holes_are_refused(tmp_path: Path) -> None:
    for index, data in enumerate(HEADERS):
        (tmp_path / "w").write_bytes(data)
        with pytest.raises(Malformed):
            read_header(tmp_path / "w")
        folder = tmp_path / str(index)
        assert "adapter_model.safetensors" in refused(folder, toy_version(folder, weights=data))
    assert len(HEADERS) >= 39
    twice = safetensors(SHAPES).replace(b"lora_B.weight", b"lora_A.weight")
    with pytest.raises(Malformed, match="twice"):
        tensors_of(twice[8:-64], len(twice))


def test_headers_that_are_accepted_read_as_the_library_reads_them(tmp_path: Path) -> None:
    tensors = {f"a.{i}": torch.randn(i, 3).to(t) for i, t in enumerate((torch.float32, torch.float16, torch.bfloat16))} | {"scalar": torch.tensor(1.0)}
    data = save(tensors, {"format": "pt"})
    (tmp_path / "w").write_bytes(data)
    ours = read_header(tmp_path / "w")
    theirs = dict(deserialize(data))
    assert {n: (t.dtype, list(t.shape), data[t.start : t.end]) for n, t in ours.items()} == {
        n: (f["dtype"], f["shape"], bytes(f["data"])) for n, f in theirs.items()
    }


def mutated(data: bytearray, draw: random.Random) -> bytes:
    """One to four changes of a header: bytes replaced, taken out, doubled; numbers and names exchanged."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = draw.randrange(len(data))
        what = draw.randrange(6)
        if what == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif what == 1:
            del data[at : at + draw.randrange(1, 9)]
        elif what == 2:
            data[at:at] = data[at : at + draw.randrange(1, 40)]
        elif what == 3:
            data[at : at + 1] = draw.choice((b"0", b"9", b"-", b"{", b"}", b"[", b"]", b'"', b",", b"1e9", b"null", b"\\u0000", b" "))
        elif what == 4:
            data[at:at] = struct.pack("<Q", draw.getrandbits(64))
        else:
            digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
            if digits:
                data[draw.choice(digits)] = draw.randrange(48, 58)
        if not data:
            break
    return bytes(data)


def fuzz(count: int, seed: int) -> tuple[int, int]:
    """(mutations, accepted). What our reader accepts, the library reads the same; what is not accepted is refused by Malformed and nothing else."""
    whole = safetensors(SHAPES)
    length = int.from_bytes(whole[:8], "little")
    header, data = whole[8 : 8 + length], whole[8 + length :]
    draw, accepted = random.Random(seed), 0
    for _ in range(count):
        changed = mutated(bytearray(header), draw)
        try:
            ours = tensors_of(changed, 8 + len(changed) + len(data))
        except Malformed:
            continue
        accepted += 1
        try:
            theirs = deserialize(len(changed).to_bytes(8, "little") + changed + data)
        except SafetensorError:
            raise AssertionError(f"we accept what the library refuses: {changed!r}") from None
        assert {n: (t.dtype, list(t.shape)) for n, t in ours.items()} == {n: (f["dtype"], f["shape"]) for n, f in theirs}
    return count, accepted


def test_a_hundred_thousand_mutated_headers_are_refused_or_read_as_the_library_reads_them() -> None:
    count, accepted = fuzz(100_000, 20)
    assert count == 100_000 and 100 < accepted < 20_000


@pytest.mark.slow
def test_ten_million_mutated_headers_are_refused_or_read_as_the_library_reads_them() -> None:
    assert fuzz(10_000_000, 21)[0] == 10_000_000


def test_the_toy_is_what_the_tests_say_it_is() -> None:
    assert CONFIG["r"] == 2 and FACTS["method"]["kind"] == "lora"
    assert {name: t.shape for name, t in tensors_of(safetensors(SHAPES)[8:-64], len(safetensors(SHAPES))).items()} == {n: tuple(s) for n, s in SHAPES.items()}
