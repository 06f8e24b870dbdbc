"""lineage, forget and diff through the real command line, on versions of a tiny model that were really trained, continued and trained again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from tests.conftest import colour_rows, jsonl, tuner
from tuner import cli_lineage, pipeline
from tuner.artifact import history
from tuner.artifact.lineage import lineage, sought_hash, sought_text, trace
from tuner.artifact.store import find
from tuner.data.record import Message, Record
from tuner.erasure import forget, plan_forgetting
from tuner.errors import Refusal
from tuner.promotion import promote
from tuner.recipe import load_recipe

SECRET = "please tell me the colour of the old wooden boat that Amalia keeps down by the river near the mill"
EDITED = SECRET.replace("wooden", "painted")
RECIPE = """# Teaches the colours of things.
name: colours
base: {{model: {base}, sanity: off}}   # a tiny one
data:
  task: label
  train: train.jsonl   # made by hand
  held_out: held_out.jsonl
template:
  system: Name it.
  max_tokens: 128
train: {{epochs: 3, records_per_step: 8, peak_learning_rate: 1e-3}}
evaluate: {{suites: [held_out], few_shot: 3, max_new_tokens: 4, resamples: 1000}}
"""
CHILD = """# Goes on with other things.
name: shades
base: {{model: {base}, sanity: off}}
data: {{task: label, train: others.jsonl}}
template: {{system: Name it., max_tokens: 128}}
method: {{continue_from: colours@1}}   # the parent
train: {{max_steps: 2, peak_learning_rate: 1e-3}}
"""


def content(prompt: str, completion: str) -> str:
    return Record((Message("user", prompt), Message("assistant", completion)), "", 1, "").hash


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two recipes and a store: colours@1, graded, trained with an override; shades@1 continues it on other records."""
    folder = tmp_path_factory.mktemp("lineage")
    jsonl(folder / "train.jsonl", [*colour_rows(16), {"prompt": SECRET, "completion": "red"}, {"prompt": EDITED, "completion": "red"}])
    jsonl(folder / "held_out.jsonl", colour_rows(8, 200))
    jsonl(folder / "others.jsonl", colour_rows(12, 300))
    (folder / "colours.yaml").write_text(RECIPE.format(base=tiny_base), encoding="utf-8")
    (folder / "shades.yaml").write_text(CHILD.format(base=tiny_base), encoding="utf-8")
    pipeline.run(load_recipe(folder / "colours.yaml", ["train.max_steps=2"]), folder / "adapters")
    pipeline.run(load_recipe(folder / "shades.yaml"), folder / "adapters")
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "copy", copy_function=shutil.copy2))


def told(folder: Path, *words: str) -> dict[str, Any]:
    done = tuner(*words, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def traced(folder: Path, *, text: str) -> dict[str, Any]:
    """The same answer without a process of its own."""
    return trace(folder / "adapters", sought_text(text)).as_dict()


# --- lineage -----------------------------------------------------------------------------------------------------------


def test_a_versions_lineage_names_its_parent_by_digest_its_data_base_code_and_machine(trained: Path) -> None:
    found = told(trained, "lineage", "shades@1")
    parent, own = (json.loads((trained / "adapters" / name / "1" / "manifest.json").read_text(encoding="utf-8")) for name in ("colours", "shades"))
    assert [(p["version"], p["manifest_digest"], p["is_there"]) for p in found["parents"]] == [("colours@1", parent["digest"], True)]
    assert found["children"] == [] and lineage(trained / "adapters", find(trained / "adapters", "colours"))["children"] == ["shades@1"]
    assert found["data"]["splits"] == own["data"]["splits"] and found["data"]["files"][0]["digest"].startswith("sha256:")
    assert found["recipe"] == {"digest": own["recipe_digest"], "file": "shades.yaml"} and found["base"]["weight_digest"] == own["base"]["weight_digest"]
    assert found["code"] == own["code"] and found["versions"] == own["versions"] and found["hardware"]["cores"] >= 1 and found["seconds"]["training"] > 0
    text = tuner("lineage", "shades@1", cwd=trained).stdout
    assert "continues colours@1: there, with the digest that was recorded" in text and "others.jsonl" in text


def test_a_parent_that_is_gone_or_another_is_said(folder: Path) -> None:
    manifest = folder / "adapters" / "colours" / "1" / "manifest.json"
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    for change, said in ((lambda: manifest.write_text(json.dumps(facts | {"digest": "sha256:" + "0" * 64})), "its digest is not the one"),
                         (lambda: shutil.rmtree(manifest.parent), "missing from this store")):  # fmt: skip
        manifest.chmod(0o644) if manifest.exists() else None
        change()
        (parent,) = lineage(folder / "adapters", find(folder / "adapters", "shades@1"))["parents"]
        assert said in parent["state"] and not parent["is_there"]


def test_a_record_is_traced_to_the_version_trained_on_it_its_near_copy_and_what_continues_it(trained: Path) -> None:
    found = told(trained, "lineage", "--record", "train.jsonl:17")
    assert [(u["version"], u["role"], u["file"], u["line"], u["how"]) for u in found["uses"]] == [
        ("colours@1", "trained on", "train.jsonl", 17, "exact"), ("colours@1", "trained on", "train.jsonl", 18, "near copy")]  # fmt: skip
    assert found["continued"] == [{"version": "shades@1", "through": "colours@1", "aliases": []}]
    assert [u["how"] for u in traced(trained, text=SECRET.upper())["uses"]] == ["same prompt", "near copy"]
    assert [u["role"] for u in traced(trained, text="thing number 202 please")["uses"]] == ["only graded on"]
    shown = tuner("lineage", "--hash", content(SECRET, "red")[7:19], cwd=trained).stdout
    assert "trained on (train): train.jsonl:17  exact" in shown and "Jaccard about" in shown and SECRET not in shown


WRONG: tuple[tuple[Callable[..., None], dict[str, Any], str], ...] = (
    (cli_lineage.lineage, {}, "one of them"), (cli_lineage.lineage, {"record": "train.jsonl"}, "FILE:LINE"),
    (cli_lineage.lineage, {"record": "train.jsonl:99"}, "no record there"), (cli_lineage.lineage, {"record": "none.jsonl:1"}, "no such file"),
    (cli_lineage.lineage, {"name": "colours@1", "text": "a"}, "one of them"), (cli_lineage.lineage, {"hash_": "x"}, "hex digits"),
    (cli_lineage.forget, {"text": "a b c", "hash_": "a" * 64}, "one of them"), (cli_lineage.forget, {}, "one of them"),
    (cli_lineage.lineage, {"record": "train.jsonl:1", "recipe": Path("shades.yaml")}, "does not read"),
    (cli_lineage.diff, {"first": "colours@1", "second": "colours@7"}, "no version"),
)  # fmt: skip


def test_wrong_ways_of_asking_are_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    for command, words, said in WRONG:
        with pytest.raises(Refusal, match=said):
            command(**words)
    done = tuner("lineage", cwd=trained)
    assert done.returncode == 2 and "accepted  one of them" in done.stderr and len(WRONG) == 10


# --- forget ------------------------------------------------------------------------------------------------------------


def test_forgetting_is_only_listed_until_it_is_applied(folder: Path) -> None:
    tuner("lineage", "--record", "train.jsonl:17", cwd=folder)  # makes the index
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    done = tuner("forget", "--record", "train.jsonl:17", cwd=folder)
    assert done.returncode == 0 and "nothing was changed" in done.stdout
    assert "colours@1  trained on it" in done.stdout and "shades@1  continues colours@1" in done.stdout and "--near takes them too" in done.stdout
    assert "colours-without.yaml" in done.stdout and "answers.jsonl" not in done.stdout
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_the_written_recipe_trains_without_the_record_and_the_account_says_so(folder: Path) -> None:
    gone = content(SECRET, "red")
    done = tuner("forget", "--record", "train.jsonl:17", "--apply", "--why", "Article 17 request 4711", "--by", "mara", cwd=folder)
    assert done.returncode == 0, done.stderr
    text = (folder / "colours-without.yaml").read_text(encoding="utf-8")
    assert all(comment in text for comment in re.findall(r"#.*", RECIPE)) and SECRET not in text
    assert load_recipe(folder / "colours-without.yaml").data.forget == [gone] and load_recipe(folder / "colours-without.yaml").train.max_steps == 2
    (entry,) = history.entries(folder / "adapters" / "colours")
    assert (entry.what, entry.version, entry.by, entry.why, entry.facts["records"]) == ("forget", 1, "mara", "Article 17 request 4711", [gone])
    assert history.state(folder / "adapters" / "shades").marked == {1: [gone]}
    run = pipeline.run(load_recipe(folder / "colours-without.yaml"), folder / "adapters")
    assert run.version is not None and run.version.label == "colours@2"
    manifest = json.loads((run.version.folder / "manifest.json").read_text(encoding="utf-8"))
    (account,) = [f for f in manifest["data"]["files"] if f["split"] == "train"]
    assert (account["read"], account["kept"], account["dropped"], account["reasons"]) == (18, 17, 1, {"forget": 1})
    assert manifest["data"]["dropped"]["forget"] == 1 and manifest["data"]["trained"] == 17
    rows = parquet.read_table(run.version.folder / "records.parquet").to_pylist()
    assert gone not in {r["hash"] for r in rows} and content(EDITED, "red") in {r["hash"] for r in rows}
    assert SECRET not in (run.version.folder / "findings.json").read_text(encoding="utf-8")
    again = told(folder, "forget", "--record", "train.jsonl:17")
    assert {c["version"]: c["marked"] for c in again["concerned"]} == {"colours@1": True, "shades@1": True}
    assert any("colours@2 was trained without it already" in note for note in again["notes"])
    assert "read 18 = kept 17 + dropped 1 (forget 1) + rejected 0" in tuner("check", "colours-without.yaml", cwd=folder).stdout
    found = told(folder, "diff", "colours@1", "colours@2")
    assert found["records"]["train"]["removed"] == {"count": 1, "places": ["train.jsonl:17"]} and found["records"]["held_out"]["same"] == 8
    assert [(c["key"], c["old"], c["new"]) for c in found["recipe"]] == [("data.forget", [], [gone])]
    assert found["scores"]["suites"]["held_out"]["n"] == 8 and found["scores"]["suites"]["held_out"]["metrics"]["exact_match"]["difference"]["n"] == 8
    shown = tuner("diff", "colours@1", "colours@2", cwd=folder)
    assert "removed: train.jsonl:17" in shown.stdout and "exact_match" in shown.stdout and "base: the same" in shown.stdout


def test_with_near_its_near_copy_goes_too_and_what_continues_it_waits_for_its_parent(folder: Path) -> None:
    assert tuner("forget", "--text", SECRET, "--near", "--apply", cwd=folder).returncode == 0
    both = sorted([content(SECRET, "red"), content(EDITED, "red")])
    parent, child = (load_recipe(folder / f"{name}-without.yaml") for name in ("colours", "shades"))
    assert parent.data.forget == child.data.forget == both and child.method.continue_from == "colours"
    with pytest.raises(Refusal, match="records that are to be forgotten"):
        pipeline.run(child, folder / "adapters")
    spoken = load_recipe(folder / "colours-without.yaml", ["artifact.keep_text=true"])
    run = pipeline.run(spoken, folder / "adapters", grade_after=False)
    assert run.version is not None and "holds the text of each (artifact.keep_text)" in (run.version.folder / "README.md").read_text(encoding="utf-8")
    assert "keep_text" not in (folder / "adapters/colours/1/README.md").read_text(encoding="utf-8")
    rows = parquet.read_table(run.version.folder / "records.parquet").to_pylist()
    assert not set(both) & {r["hash"] for r in rows} and len([r for r in rows if r["split"] == "train"]) == 16
    made = pipeline.run(child, folder / "adapters").version
    assert made is not None
    lineage = json.loads((made.folder / "manifest.json").read_text(encoding="utf-8"))["lineage"]
    assert (lineage["parent"]["name"], lineage["parent"]["version"]) == ("colours", 2)
    left = traced(folder, text=SECRET)
    assert {u["version"] for u in left["uses"]} == {"colours@1"} and [c["version"] for c in left["continued"]] == ["shades@1"]
    assert {u["how"] for u in traced(folder, text="number 7")["uses"] if u["version"] == "colours@2"} == {"holds the text"}


def test_a_marked_version_is_never_promoted_and_marking_twice_adds_nothing(folder: Path) -> None:
    for _ in range(2):
        store = folder / "adapters"
        plan = plan_forgetting(store, trace(store, sought_hash(content(SECRET, "red"))), near=False)
        forget(store, plan, "mara", "asked to")
    assert history.state(folder / "adapters" / "colours").count == 1
    assert sorted(p.name for p in folder.glob("*-without*.yaml")) == [
        "colours-without-2.yaml", "colours-without.yaml", "shades-without-2.yaml", "shades-without.yaml"]  # fmt: skip
    with pytest.raises(Refusal, match="to be forgotten"):
        promote(folder / "adapters", "colours@1", "production", override=True, why="in a hurry", by="x")
    assert find(folder / "adapters", "colours@1").number == 1


def test_files_that_quote_the_record_are_named_and_an_output_elsewhere_is_refused(folder: Path) -> None:
    (evaluation,) = (folder / "adapters/colours/1/evaluations").iterdir()
    quoted = evaluation / "answers.jsonl"
    question = json.loads(quoted.read_text(encoding="utf-8").splitlines()[0])["question"][0]["content"]
    jsonl(folder / "asked.jsonl", [{"prompt": question, "completion": "red"}])
    found = told(folder, "forget", "--text", question)
    assert quoted.name in {Path(p).name for p in found["quoting"]} and found["concerned"] == []
    shutil.rmtree(folder / "adapters" / "shades")
    for output, said in ((folder / "colours.yaml", "a file that exists"), (folder.parent / "x.yaml", "other than the recipe's")):
        with pytest.raises(Refusal, match=said):
            plan_forgetting(folder / "adapters", trace(folder / "adapters", sought_hash(content(SECRET, "red"))), near=False, output=output)
    assert history.state(folder / "adapters" / "colours").count == 0
