"""One artifact of every release, kept as that release wrote it: today's code verifies it, loads it and gets the same answers."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

import tuner
from tests.conftest import ROOT
from tuner.artifact.manifest import verify
from tuner.artifact.untrusted import refuse_unsafe
from tuner.fingerprint import digest_file

RELEASES = Path(__file__).parent / "releases"
KEPT = sorted(p.name for p in RELEASES.iterdir() if p.is_dir() and p.name[0].isdigit())
DIGESTS = {"0.1.0": "sha256:0291e188d83641f640ebbbf834bd79f011fad9067b0cdd8a30a8c973123b50e5"}  # of each manifest, which holds those of all files


def test_the_artifact_of_this_release_and_of_every_one_before_is_kept() -> None:
    """A new release runs scripts/make_release_sample, and adds its line to DIGESTS."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert version in KEPT, f"make it: scripts/make_release_sample (tests/artifact/releases/{version})"
    assert sorted(DIGESTS) == KEPT and len(KEPT) >= 1
    assert sum(p.stat().st_size for p in RELEASES.glob("[0-9]*/**/*") if p.is_file()) < 300_000 * len(KEPT)


@pytest.mark.parametrize("release", KEPT)
def test_every_file_of_a_kept_release_is_as_it_was_written(release: str) -> None:
    """Formatters and line ends included: .gitattributes keeps git from touching them."""
    folder = RELEASES / release / "adapters" / "colours" / "1"
    manifest = verify(folder)
    assert manifest["digest"] == DIGESTS[release] and manifest["versions"]["tuner"] == release
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert names == {*manifest["files"], "manifest.json"} and len(names) >= 12
    assert all(digest_file(folder / name) == facts["digest"] for name, facts in manifest["files"].items())
    payload = refuse_unsafe(folder, manifest)
    assert (payload.files, len(payload.tensors)) == (len(names), 28)


@pytest.mark.parametrize("release", KEPT)
def test_a_kept_release_loads_and_answers_as_it_did(release: str) -> None:
    kept = RELEASES / release
    expected = json.loads((kept / "expected.json").read_text(encoding="utf-8"))
    adapter = tuner.load_adapter("colours@1", kept / "adapters", base=kept / "base", device="cpu", load="fp32")
    assert [adapter.prompt_ids(q) for q in expected["questions"]] == expected["prompt_ids"]
    assert adapter.answer_many(expected["questions"], 8) == expected["answers"]
    with adapter.as_base():
        assert adapter.answer_many(expected["questions"], 8) == expected["base_answers"]
    for ids, wanted in zip(expected["prompt_ids"], expected["logits"], strict=False):
        assert adapter.next_logits(ids).tolist() == pytest.approx(wanted, abs=1e-3)
    assert len(expected["logits"]) == 2 and len(expected["questions"]) == 11 and expected["answers"] != expected["base_answers"]
