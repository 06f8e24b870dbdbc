"""push and pull against a hub on this machine, with the hub's own client: what arrives, what is private, and what is never let in."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.artifact.hub_server import Hub, serving
from tests.artifact.test_remote import signed
from tests.artifact.test_store import refusal
from tests.artifact.toy import CONFIG, FACTS, SHAPES, safetensors
from tests.conftest import ROOT
from tuner.artifact import history
from tuner.artifact import hub as room
from tuner.artifact.manifest import MANIFEST, read_manifest, verify, write_manifest
from tuner.artifact.opening import verified
from tuner.artifact.store import Version, add_evaluation, find, latest_evaluation, publish, versions
from tuner.artifact.untrusted import refuse_unsafe

TOKEN = "a-token-of-a-test"
CARD = '---\n{"library_name": "peft", "base_model": "some/base", "tags": ["lora"]}\n---\n\n# toy\n'


def fill(stage: Path, number: int) -> None:
    (stage / "README.md").write_text(CARD, encoding="utf-8")
    (stage / "adapter_model.safetensors").write_bytes(safetensors(SHAPES, float(number)))
    (stage / "adapter_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (stage / "recipe.yaml").write_text(f"# run {number}\n", encoding="utf-8")
    write_manifest(stage, {**FACTS, "version": number})


def evaluated(stage: Path) -> None:
    for name, text in {
        "scores.json": '{"n": 1}',
        "report.md": "# good\n",
        "report.html": "<p>good</p>",
        "report.json": "{}",
        "answers.jsonl": '{"a": "x"}\n',
    }.items():
        (stage / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def online() -> Iterator[Callable[..., Any]]:
    """Calls a function in a process whose hub library may go online: the tests' own process told it not to."""
    settings = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            pool.submit(os.getpid).result()  # started with these settings
        yield lambda call, *given, **named: pool.submit(call, *given, **named).result(timeout=60)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as found:
        yield found


@pytest.fixture
def toy(tmp_path: Path) -> Version:
    version = publish(tmp_path / "here", "toy", fill)
    add_evaluation(version, "2026-01-01-a", evaluated)
    return version


SENT = {"README.md", "adapter_model.safetensors", "adapter_config.json", "recipe.yaml", MANIFEST}
BESIDE = {f"evaluations/2026-01-01-a/{name}" for name in ("scores.json", "report.json", "report.md", "report.html")}


# --- push ----------------------------------------------------------------------------------------------------------


def test_a_push_is_one_commit_of_the_whole_version_to_a_private_repository(online: Callable[..., Any], hub: Hub, toy: Version) -> None:
    done = online(room.push, toy, "hub:team/toys", endpoint=hub.endpoint)
    repo = hub.repos["team/toys"]
    digest = read_manifest(toy.folder)["digest"]
    assert repo.private and done.private
    assert [c.summary for c in repo.commits] == ["initial commit", f"toy@1 {digest}"]
    assert repo.tags == {"toy-1": repo.branches["main"]} and done.commit == repo.branches["main"]
    arrived = repo.commits[-1].files
    assert set(arrived) == SENT | BESIDE | {".gitattributes"}
    assert all(arrived[name] == (toy.folder / name).read_bytes() for name in SENT | BESIDE)
    assert {token for _, path, token in hub.asked if not path.startswith("/lfs/")} == {TOKEN}
    assert hub.objects == {hashlib.sha256(data).hexdigest(): data for data in [arrived["adapter_model.safetensors"]]}


def test_answers_are_sent_only_when_asked_for(online: Callable[..., Any], hub: Hub, toy: Version) -> None:
    online(room.push, toy, "hub:team/toys", endpoint=hub.endpoint, answers=True)
    assert hub.repos["team/toys"].commits[-1].files["evaluations/2026-01-01-a/answers.jsonl"] == b'{"a": "x"}\n'


def test_a_repository_is_public_only_when_that_is_said(online: Callable[..., Any], hub: Hub, toy: Version) -> None:
    online(room.push, toy, "hub:team/open", endpoint=hub.endpoint, public=True)
    assert not hub.repos["team/open"].private
    hub.new("team/was-open", private=False)
    assert "a public repository" in refusal(lambda: online(room.push, toy, "hub:team/was-open", endpoint=hub.endpoint))
    assert len(hub.repos["team/was-open"].commits) == 1


def test_the_next_version_replaces_the_files_of_the_last_and_both_keep_their_tags(online: Callable[..., Any], hub: Hub, toy: Version) -> None:
    def fewer(stage: Path, number: int) -> None:
        (stage / "README.md").write_text(CARD, encoding="utf-8")
        write_manifest(stage, {"name": "toy", "version": number})

    second = publish(toy.folder.parent.parent, "toy", fewer)
    online(room.push, toy, "hub:team/toys", endpoint=hub.endpoint)
    online(room.push, second, "hub:team/toys", endpoint=hub.endpoint)
    repo = hub.repos["team/toys"]
    assert set(repo.commits[-1].files) == {"README.md", MANIFEST, ".gitattributes"}
    assert set(repo.tags) == {"toy-1", "toy-2"} and set(repo.at("toy-1").files) == SENT | BESIDE | {".gitattributes"}  # type: ignore[union-attr]


def test_a_version_pushed_again_keeps_what_lies_beside_it(online: Callable[..., Any], hub: Hub, toy: Version) -> None:
    online(room.push, toy, "hub:team/toys", endpoint=hub.endpoint)
    add_evaluation(toy, "2026-01-02-b", evaluated)
    online(room.push, toy, "hub:team/toys", endpoint=hub.endpoint)
    files = hub.repos["team/toys"].commits[-1].files
    assert set(files) >= BESIDE | {"evaluations/2026-01-02-b/scores.json"}


def test_a_push_to_a_branch_leaves_main_alone(online: Callable[..., Any], hub: Hub, toy: Version) -> None:
    online(room.push, toy, "hub:team/toys", endpoint=hub.endpoint, revision="candidate")
    repo = hub.repos["team/toys"]
    assert set(repo.at("main").files) == {".gitattributes"} and MANIFEST in repo.at("candidate").files  # type: ignore[union-attr]


def test_a_push_onto_a_branch_that_moved_meanwhile_is_refused(online: Callable[..., Any], hub: Hub, toy: Version) -> None:
    repo = hub.new("team/toys")
    hub.meanwhile.append(lambda: repo.commit("main", {"theirs.txt": b""}, "somebody else"))
    assert "412" in refusal(lambda: online(room.push, toy, "hub:team/toys", endpoint=hub.endpoint))
    assert repo.commits[-1].summary == "somebody else" and repo.tags == {}


def test_a_repository_with_files_of_others_is_refused_and_left_alone(online: Callable[..., Any], hub: Hub, toy: Version) -> None:
    repo = hub.new("team/model", files={"model.safetensors": b"theirs"})
    assert "'model.safetensors'" in refusal(lambda: online(room.push, toy, "hub:team/model", endpoint=hub.endpoint))
    assert len(repo.commits) == 1


def test_a_number_that_the_repository_has_from_another_version_is_refused(online: Callable[..., Any], hub: Hub, toy: Version, tmp_path: Path) -> None:
    online(room.push, toy, "hub:team/toys", endpoint=hub.endpoint)
    other = publish(tmp_path / "there", "toy", lambda stage, number: fill(stage, number + 100))
    assert "toy-1\n  found     another version" in refusal(lambda: online(room.push, other, "hub:team/toys", endpoint=hub.endpoint))
    assert len(hub.repos["team/toys"].commits) == 2


def test_what_a_gitignore_of_the_repository_leaves_out_is_said(online: Callable[..., Any], hub: Hub, toy: Version) -> None:
    hub.ignores.add("recipe.yaml")
    assert "recipe.yaml\n  found     not there" in refusal(lambda: online(room.push, toy, "hub:team/toys", endpoint=hub.endpoint))


def test_a_changed_version_is_not_pushed(online: Callable[..., Any], hub: Hub, toy: Version) -> None:
    (toy.folder / "recipe.yaml").chmod(0o644)
    (toy.folder / "recipe.yaml").write_text("changed\n")
    assert "recipe.yaml" in refusal(lambda: online(room.push, toy, "hub:team/toys", endpoint=hub.endpoint))
    assert hub.asked == []


def test_offline_the_hub_is_not_asked(hub: Hub, toy: Version) -> None:
    assert "stay offline" in refusal(lambda: room.push(toy, "hub:team/toys", endpoint=hub.endpoint))
    assert hub.asked == []


@pytest.mark.parametrize("to", ["team/toys", "hub:toys", "hub:../toys", "hub:a/b/c", "https://huggingface.co/a/b", "hub:a/b@c", "hub:a b/c"])
def test_a_place_that_is_no_repository_is_refused(hub: Hub, toy: Version, to: str) -> None:
    assert "hub:ORG/REPO" in refusal(lambda: room.push(toy, to, endpoint=hub.endpoint))


# --- pull ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pushed(online: Callable[..., Any], hub: Hub, toy: Version) -> Callable[..., Any]:
    """Pulls what was pushed; `files` first changes what the branch holds."""
    online(room.push, toy, "hub:team/toys", endpoint=hub.endpoint)

    def pull(store: Path, source: str = "hub:team/toys", change: Callable[[dict[str, bytes]], None] | None = None, **named: Any) -> tuple[Version, bool]:
        if change is not None:
            files = dict(hub.repos["team/toys"].commits[-1].files)
            change(files)
            hub.repos["team/toys"].commit("main", files, "changed")
        found: tuple[Version, bool] = online(room.pull, source, store, endpoint=hub.endpoint, **named)
        return found

    return pull


def test_a_pulled_version_is_the_pushed_one_file_for_file(pushed: Callable[..., Any], toy: Version, tmp_path: Path) -> None:
    store = tmp_path / "there"
    version, is_new = pushed(store)
    assert is_new and version.label == "toy@1" and verify(version.folder) == read_manifest(toy.folder)
    assert {p.name for p in version.folder.iterdir()} == SENT | {"evaluations"}
    assert all((version.folder / name).read_bytes() == (toy.folder / name).read_bytes() for name in SENT)
    assert not any(p.stat().st_mode & 0o222 for p in version.folder.rglob("*") if p.is_file())
    latest = latest_evaluation(find(store, "toy"))
    assert latest is not None
    assert {p.name for p in latest.iterdir()} == {"scores.json", "report.json", "report.md", "pulled.json"}  # a page is code: it stays there
    came = json.loads((latest / "pulled.json").read_text())
    assert re.fullmatch(r"hub:team/toys@[0-9a-f]{40}", came["from"])
    assert pushed(store) == (version, False)


def test_a_tag_a_branch_and_a_commit_can_be_named(pushed: Callable[..., Any], hub: Hub, tmp_path: Path) -> None:
    commit = hub.repos["team/toys"].branches["main"]
    hub.repos["team/toys"].commit("main", {"broken": b""}, "later")
    for revision in ("toy-1", commit):
        assert pushed(tmp_path / revision, f"hub:team/toys@{revision}")[0].label == "toy@1"
    assert "no manifest" in refusal(lambda: pushed(tmp_path / "main"))
    assert "no-such" in refusal(lambda: pushed(tmp_path / "none", "hub:team/toys@no-such"))
    assert "team/none" in refusal(lambda: pushed(tmp_path / "none", "hub:team/none"))


def test_a_number_that_another_version_has_is_refused_and_another_name_helps(pushed: Callable[..., Any], tmp_path: Path) -> None:
    store = tmp_path / "there"
    publish(store, "toy", lambda stage, number: fill(stage, 50))
    before = (store / "toy/1" / MANIFEST).read_bytes()
    assert "--as NAME" in refusal(lambda: pushed(store))
    assert (store / "toy/1" / MANIFEST).read_bytes() == before
    version, _ = pushed(store, as_name="theirs")
    assert version.label == "theirs@1" and verify(find(store, "theirs@1").folder)["name"] == "toy"
    assert "--as NAME" in refusal(lambda: pushed(store, as_name="../theirs"))


def test_a_version_under_another_name_is_whole_and_another_one_in_its_place_is_not(pushed: Callable[..., Any], toy: Version, tmp_path: Path) -> None:
    store = tmp_path / "there"
    pushed(store, as_name="theirs")
    note = store / "theirs/adopted/1.json"
    assert json.loads(note.read_text())["manifest_digest"] == read_manifest(toy.folder)["digest"] and not note.stat().st_mode & 0o222
    version, manifest = verified("theirs", store)
    assert version.label == "theirs@1" and refuse_unsafe(version.folder, manifest).values == 16
    assert [v.label for v, _ in versions(store)] == ["theirs@1"]
    publish(store, "other", lambda stage, number: fill(stage, 50))
    version.folder.rename(tmp_path / "aside")
    shutil.copytree(store / "other/1", store / "theirs/1")
    assert "put another version in its place" in refusal(lambda: verified("theirs", store))
    shutil.rmtree(store / "theirs/1")
    (tmp_path / "aside").rename(store / "theirs/1")
    for said in (None, b"{", b"[]", b"{}", b'{"manifest_digest": null}', b"[" * 1000):
        note.unlink()
        if said is not None:
            note.write_bytes(said)
        else:
            note.mkdir()
        assert "put another version in its place" in refusal(lambda: verified("theirs", store)), said
        if said is None:
            note.rmdir()
            note.write_bytes(b"")


def test_a_note_left_by_a_pull_that_ended_before_its_version_is_written_over(pushed: Callable[..., Any], tmp_path: Path) -> None:
    note = tmp_path / "there/theirs/adopted/1.json"
    note.parent.mkdir(parents=True)
    note.write_text("{}")
    pushed(tmp_path / "there", as_name="theirs")
    assert verified("theirs@1", tmp_path / "there")[0].label == "theirs@1"


def test_a_second_pull_brings_evaluations_that_are_new_and_leaves_those_that_are_there(
    online: Callable[..., Any], hub: Hub, pushed: Callable[..., Any], toy: Version, tmp_path: Path
) -> None:
    version, _ = pushed(tmp_path / "there")
    shutil.rmtree(version.folder / "evaluations/2026-01-01-a")  # as where a pull ended too early
    add_evaluation(toy, "2026-01-02-b", evaluated)
    online(room.push, toy, "hub:team/toys", endpoint=hub.endpoint)
    assert pushed(tmp_path / "there") == (version, False) == pushed(tmp_path / "there")
    assert {p.name for p in (version.folder / "evaluations").iterdir()} == {"2026-01-01-a", "2026-01-02-b"}
    assert (version.folder / "evaluations/2026-01-02-b/pulled.json").is_file()


def test_the_number_of_a_removed_version_is_not_filled_again(pushed: Callable[..., Any], tmp_path: Path) -> None:
    store = tmp_path / "there"
    publish(store, "toy", fill)
    history.append(store / "toy", 0, "remove", 1, None, "ann", "old")
    shutil.rmtree(store / "toy/1")
    assert "a version that was removed" in refusal(lambda: pushed(store))


def test_the_next_training_gets_the_number_after_a_pulled_one(pushed: Callable[..., Any], tmp_path: Path) -> None:
    pushed(tmp_path / "there")
    assert publish(tmp_path / "there", "toy", fill).number == 2


def _with(files: dict[str, bytes], **changes: Any) -> None:
    """A repository whose manifest is signed again over `changes` of its list."""
    manifest = json.loads(files[MANIFEST])
    files[MANIFEST] = signed({**manifest, "files": {**manifest["files"], **changes}})


def _listed(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "digest": "sha256:" + hashlib.sha256(data).hexdigest()}


PICKLE = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x05touch\x85R."


def _pickle(files: dict[str, bytes]) -> None:
    files["adapter_model.bin"] = PICKLE
    _with(files, **{"adapter_model.bin": _listed(PICKLE)})


def _code(files: dict[str, bytes]) -> None:
    files["modeling.py"] = b"import os\n"
    _with(files, **{"modeling.py": _listed(b"import os\n")})


def _poisoned(files: dict[str, bytes]) -> None:
    config = json.dumps({**CONFIG, "auto_mapping": {"parent_library": "evil"}}).encode()
    files["adapter_config.json"] = config
    _with(files, **{"adapter_config.json": _listed(config)})


def _not_numbers(files: dict[str, bytes]) -> None:
    files["adapter_model.safetensors"] = safetensors(SHAPES, float("nan"))
    _with(files, **{"adapter_model.safetensors": _listed(files["adapter_model.safetensors"])})


def _dressed(files: dict[str, bytes]) -> None:
    files["notes.md"] = PICKLE
    _with(files, **{"notes.md": _listed(PICKLE)})


def _link(files: dict[str, bytes]) -> None:
    files["recipe.yaml"] = b"../../../../etc/passwd"  # what git keeps of a symbolic link


def _many(files: dict[str, bytes]) -> None:
    _with(files, **{f"{i}.txt": _listed(b"") for i in range(1001)})


def _negative(files: dict[str, bytes]) -> None:
    _with(files, **{"recipe.yaml": {"bytes": -1, "digest": "sha256:" + "0" * 64}})


HOSTILE: dict[str, tuple[Callable[[dict[str, bytes]], Any], str]] = {
    "a changed byte": (lambda f: f.update({"adapter_model.safetensors": f["adapter_model.safetensors"][:-1] + b"\xff"}), "bytes that differ"),
    "a longer file": (lambda f: f.update({"recipe.yaml": f["recipe.yaml"] + b"more"}), "recipe.yaml"),
    "a missing file": (lambda f: f.pop("recipe.yaml"), "no such file"),
    "a file nobody listed": (lambda f: f.update({"extra.json": b"{}"}), "does not list"),
    "a pickle nobody listed": (lambda f: f.update({"adapter_model.bin": PICKLE}), "does not list"),
    "a listed pickle": (_pickle, "no pickle"),
    "listed code": (_code, "no pickle, archive or code"),
    "a config that imports": (_poisoned, "auto_mapping"),
    "weights that are no numbers": (_not_numbers, "adapter_model.safetensors"),
    "a pickle dressed as text": (_dressed, "hub:team/toys/notes.md"),
    "a symbolic link": (_link, "recipe.yaml"),
    "a name that climbs": (lambda f: _with(f, **{"../x.json": _listed(b"{}")}), "inside the version"),
    "an absolute name": (lambda f: _with(f, **{"/tmp/x.json": _listed(b"{}")}), "inside the version"),
    "a name of the log": (lambda f: _with(f, **{"evaluations/a/scores.json": _listed(b"{}")}), "inside the version"),
    "a size below nothing": (_negative, "bytes and a sha256 digest"),
    "a terabyte": (lambda f: _with(f, **{"recipe.yaml": {"bytes": 1 << 40, "digest": "sha256:" + "0" * 64}}), "1,099,511,627,776 bytes"),
    "too many files": (_many, "at most 1,000"),
    "a changed manifest": (lambda f: f.update({MANIFEST: f[MANIFEST].replace(b'"version": 1', b'"version": 7')}), "changed after it was written"),
    "a manifest that is no JSON": (lambda f: f.update({MANIFEST: b"{"}), "unreadable"),
    "a manifest of depth": (lambda f: f.update({MANIFEST: b"[" * 100_000}), "unreadable"),
    "a manifest that is a list": (lambda f: f.update({MANIFEST: b"[]\n"}), "changed after it was written"),
    "a name that leaves the store": (lambda f: f.update({MANIFEST: signed({**json.loads(f[MANIFEST]), "name": "../../up"})}), "--as NAME"),
    "a number that is none": (lambda f: f.update({MANIFEST: signed({**json.loads(f[MANIFEST]), "version": "1/../.."})}), "toy@1/../.."),
    "a newer schema": (lambda f: f.update({MANIFEST: signed({**json.loads(f[MANIFEST]), "schema": 99})}), "newer tuner"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_repository_is_refused_and_nothing_of_it_is_in_the_store(pushed: Callable[..., Any], tmp_path: Path, what: str) -> None:
    change, said = HOSTILE[what]
    store = tmp_path / "there"
    assert said in refusal(lambda: pushed(store, change=change))
    assert versions(store) == []
    assert [p for p in tmp_path.joinpath("there").rglob("*") if p.is_file() and p.name != ".lock"] == []
    assert not (tmp_path / "x.json").exists() and not Path("/tmp/x.json").exists()


def test_hostile_evaluations_are_left_out(pushed: Callable[..., Any], tmp_path: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        files["evaluations/evil/scores.json"] = b"{}"
        files["evaluations/evil/run.py"] = b"import os\n"
        files["evaluations/evil/report.html"] = b"<script>"
        files["evaluations/.hidden/scores.json"] = b"{}"
        files["exports/gguf/model.gguf"] = b"GGUF"

    version, _ = pushed(tmp_path / "there", change=change)
    kept = {p.relative_to(version.folder).as_posix() for p in version.folder.rglob("*") if p.is_file()}
    made = {f"evaluations/2026-01-01-a/{n}" for n in ("scores.json", "report.json", "report.md", "pulled.json")}
    assert kept == SENT | made | {"evaluations/evil/scores.json", "evaluations/evil/pulled.json"}


# --- as a store ----------------------------------------------------------------------------------------------------

STORE = """
import json, os, sys
from pathlib import Path
from tests.artifact.test_hub import fill, evaluated
from tuner.artifact.remote import remote_of, store_folder
from tuner.artifact.store import publish, find, add_evaluation, latest_evaluation
from tuner.artifact import history
from tuner.artifact.manifest import MANIFEST, verify

os.environ["XDG_CACHE_HOME"] = sys.argv[1] + "/one"
store = store_folder("hf://team/store/below")
first, second = publish(store, "toy", fill), publish(store, "toy", fill)
add_evaluation(second, "2026-01-01-a", evaluated)
history.append(store / "toy", 0, "promote", 2, "production", "ann", "better")
os.environ["XDG_CACHE_HOME"] = sys.argv[1] + "/two"
there = store_folder("hf://team/store/below")
found = find(there, "toy@production")
remote_of(there).backend.remove("toy/1", MANIFEST, "remove toy@1")  # somebody deletes it there
print(json.dumps([first.number, second.number, found.number, verify(found.folder)["version"], latest_evaluation(found).name]))
"""


def test_a_repository_can_be_a_store_one_commit_a_version_and_none_on_a_moved_branch(hub: Hub, tmp_path: Path) -> None:
    repo = hub.new("team/store")
    hub.meanwhile = [lambda: repo.commit("main", {**repo.commits[-1].files, "theirs.txt": b""}, "somebody else")]  # the first claim loses its race
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    done = subprocess.run([sys.executable, "-c", STORE, str(tmp_path)], capture_output=True, text=True, env=env, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == [1, 2, 2, 2, "2026-01-01-a"]
    summaries = [c.summary for c in repo.commits]
    assert summaries[:3] == ["initial commit", "somebody else", ".tuner-store.json"]
    assert sum(s.startswith("toy@2 sha256:") for s in summaries) == 1
    version = next(c for c in repo.commits if c.summary.startswith("toy@2 "))
    assert version.parent is not None
    new = set(version.files) - set(repo.at(version.parent).files)  # type: ignore[union-attr]
    assert new == {f"below/toy/2/{name}" for name in SENT}
    last = repo.commits[-1]
    assert last.summary == "remove toy@1" and "theirs.txt" in last.files and not [path for path in last.files if path.startswith("below/toy/1/")]


# --- the command line ----------------------------------------------------------------------------------------------

CLI = """
import sys, typer
from tuner.cli_share import COMMANDS
from tuner.errors import Refusal
app = typer.Typer(add_completion=False)
for command in COMMANDS:
    app.command()(command)
try:
    app()
except Refusal as refusal:
    sys.exit(str(refusal))
"""


def test_the_commands_push_and_pull(hub: Hub, toy: Version, tmp_path: Path) -> None:
    def tuner(*words: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
        done = subprocess.run([sys.executable, "-c", CLI, *words], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=60, check=False)
        return done.stdout + done.stderr

    assert "pushed toy@1 to hub:team/toys (private), 9 files in commit" in tuner("push", "toy@1", "hub:team/toys", "--store", "here")
    assert "pulled mine@1  " in tuner("pull", "hub:team/toys@toy-1", "--store", "there", "--as", "mine")
    assert "already there" in tuner("pull", "hub:team/toys", "--store", "there", "--as", "mine")
    assert verify(find(tmp_path / "there", "mine").folder)["name"] == "toy"
