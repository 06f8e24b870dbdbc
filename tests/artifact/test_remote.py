"""Remote stores: numbers and log entries taken once, versions whole or absent, changed bytes refused, and nothing secret sent."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.artifact.test_store import refusal
from tests.conftest import ROOT, colours_in, graded_colours_in, tuner
from tests.faults import KILLED, OS_ERROR, REFUSED, swept
from tuner.artifact import history
from tuner.artifact.backends import BACKENDS, open_backend, reaching, url_of
from tuner.artifact.hub import _adopt as adopt
from tuner.artifact.manifest import MANIFEST, verify, write_manifest
from tuner.artifact.remote import MARK, Remote, place_of, remote_of, store_folder
from tuner.artifact.store import Version, add_evaluation, find, latest_evaluation, publish, versions
from tuner.artifact.untrusted import refuse_elsewhere

FILES = {
    "adapter_model.safetensors": b"\x02\0\0\0\0\0\0\0{}" + bytes(range(256)),
    "adapter_config.json": b"{}\n",
    "sub/note.txt": "é\r\n".encode(),
    "empty.txt": b"",
}


def fill(stage: Path, number: int) -> None:
    """A small version: weights without a tensor, text, a folder, an empty file."""
    for name, data in FILES.items():
        (stage / name).parent.mkdir(exist_ok=True)
        (stage / name).write_bytes(data)
    write_manifest(stage, {"name": "toy", "version": number})


def scores(value: int) -> Callable[[Path], None]:
    def write(stage: Path) -> None:
        (stage / "scores.json").write_text(json.dumps({"value": value}), encoding="utf-8")
        (stage / "answers.jsonl").write_text(f'{{"answer": {value}}}\n', encoding="utf-8")

    return write


class Machines:
    """Several users' caches for one URL: each call of `at` is another machine with its own mirror."""

    def __init__(self, url: str, folder: Path, patch: pytest.MonkeyPatch):
        self.url, self.folder, self.patch = url, folder, patch

    def at(self, name: str) -> Path:
        self.patch.setenv("XDG_CACHE_HOME", str(self.folder / name))
        return store_folder(self.url)

    def remote(self, name: str = "one") -> Remote:
        found = remote_of(self.at(name))
        assert found is not None
        return found

    @property
    def backend(self) -> Any:
        return open_backend(self.url)

    def overwrite(self, path: str, data: bytes) -> None:
        """What somebody with write access could do."""
        self.backend.fs.rm_file(self.backend._at(path))
        self.backend.fs.pipe_file(self.backend._at(path), data)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A real S3 server (moto, in this process, over HTTP) with a bucket; its endpoint."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed: no S3 server to speak to")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("adapters-of-a-team")
        yield settings["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.fixture(params=["memory", "file", "s3"])
def machines(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    if request.param == "s3":
        request.getfixturevalue("s3")
    place = {
        "memory": f"memory://team-{secrets.token_hex(4)}/a",
        "file": f"file://{tmp_path}/far/away",
        "s3": f"s3://adapters-of-a-team/{secrets.token_hex(4)}",
    }
    return Machines(place[request.param], tmp_path, monkeypatch)


@pytest.fixture
def filed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    return Machines(f"file://{tmp_path}/far", tmp_path, monkeypatch)


# --- every kind of storage -----------------------------------------------------------------------------------------


def test_a_version_published_on_one_machine_is_found_on_another_byte_for_byte(machines: Machines) -> None:
    assert publish(machines.at("one"), "toy", fill).number == 1
    assert publish(machines.at("one"), "toy", fill).number == 2
    found = find(machines.at("two"), "toy")
    assert found.number == 2 and found.folder.is_relative_to(machines.folder / "two")
    assert {p.relative_to(found.folder).as_posix(): p.read_bytes() for p in found.folder.rglob("*") if p.is_file() and p.name != MANIFEST} == FILES
    assert verify(found.folder)["version"] == 2
    assert not any(p.stat().st_mode & 0o222 for p in found.folder.rglob("*") if p.is_file())
    assert [(v.label, m and m["version"]) for v, m in versions(machines.at("three"))] == [("toy@1", 1), ("toy@2", 2)]


def test_an_evaluation_and_an_alias_reach_the_other_machine(machines: Machines) -> None:
    version = publish(machines.at("one"), "toy", fill)
    add_evaluation(version, "2026-01-01-a", scores(1))
    time.sleep(0.01)
    add_evaluation(version, "2026-01-01-0", scores(2))
    history.append(machines.at("one") / "toy", 0, "promote", 1, "production", "ann", "it is better")
    found = find(machines.at("two"), "toy@production")
    assert found.number == 1
    latest = latest_evaluation(found)
    assert latest is not None and latest.name == "2026-01-01-0"  # the one written last, not the last by name
    assert (latest / "answers.jsonl").read_bytes() == b'{"answer": 2}\n'
    assert [e.why for e in history.entries(machines.at("two") / "toy")] == ["it is better"]


def test_a_version_adopted_under_another_name_is_in_its_place_on_the_other_machine_too(machines: Machines, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    fill(made, 1)
    manifest = verify(made)
    store = machines.at("one")
    adopt(store, Version("theirs", 1, store / "theirs" / "1"), manifest, "hub:a/b@c", lambda stage: fill(stage, 1))
    found = find(machines.at("two"), "theirs")
    refuse_elsewhere(found.name, found.number, verify(found.folder), found.folder)
    for label, facts in (("theirs", {**manifest, "digest": "sha256:" + "0" * 64}), ("other", manifest)):
        assert "in its place" in refusal(lambda label=label, facts=facts: refuse_elsewhere(label, 1, facts, found.folder.parent.parent / label / "1"))  # type: ignore[misc]


def test_of_two_machines_that_move_an_alias_at_once_one_is_refused(machines: Machines) -> None:
    publish(machines.at("one"), "toy", fill)
    publish(machines.at("one"), "toy", fill)
    find(machines.at("two"), "toy")
    history.append(machines.at("one") / "toy", 0, "promote", 1, "production", "ann", "first")
    assert "somebody" in refusal(lambda: history.append(machines.at("two") / "toy", 0, "promote", 2, "production", "bob", "second"))
    assert find(machines.at("two"), "toy@production").number == 1
    history.append(machines.at("two") / "toy", 1, "promote", 2, "production", "bob", "second")
    assert find(machines.at("one"), "toy@production").number == 2


def test_of_eight_writers_of_one_log_entry_exactly_one_wins_and_all_then_see_it(machines: Machines) -> None:
    remotes = [machines.remote(f"writer-{i}") for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: remotes[i].append("toy", 1, f"entry of {i}\n".encode()), range(8)))
    assert sum(won) == 1
    assert {(remote.folder / "toy/log/000001.json").read_bytes() for remote in remotes} == {f"entry of {won.index(True)}\n".encode()}


def test_eight_writers_get_eight_numbers(machines: Machines) -> None:
    remotes = [machines.remote(f"writer-{i}") for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda remote: [remote.claim("toy"), remote.claim("toy")], remotes))
    assert sorted(n for pair in numbers for n in pair) == list(range(1, 17))


def test_a_number_is_not_given_again_when_its_version_was_removed(machines: Machines) -> None:
    publish(machines.at("one"), "toy", fill)
    publish(machines.at("one"), "toy", fill)
    machines.remote("two").refresh()
    machines.backend.remove("toy/2", MANIFEST, "somebody deleted it there")
    machines.remote("two").refresh()
    assert not (machines.at("two") / "toy/2").exists()
    assert machines.backend.files("toy/2") == {}
    assert publish(machines.at("two"), "toy", fill).number == 3


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_changed_file_is_refused_by_name_and_never_lies_in_the_mirror(machines: Machines, name: str) -> None:
    version = publish(machines.at("one"), "toy", fill)
    before = (version.folder / name).read_bytes()
    machines.overwrite(f"toy/1/{name}", bytes([before[0] ^ 1, *before[1:]]) if before else b"x")
    for machine in ("two", "one") if name == MANIFEST else ("two",):
        said = refusal(lambda machine=machine: find(machines.at(machine), "toy@1"))  # type: ignore[misc]
        assert f"toy/1/{name}" in said or name == MANIFEST
    mirrored = machines.at("two") / "toy/1"
    assert name == MANIFEST or {p.name for p in mirrored.rglob("*") if p.is_file()} == {MANIFEST}
    machines.overwrite(f"toy/1/{name}", before)
    if name == MANIFEST:
        shutil.rmtree(mirrored)
    assert verify(find(machines.at("two"), "toy@1").folder)["version"] == 1


def test_a_version_that_was_exchanged_as_a_whole_is_refused_where_it_was_seen_before(machines: Machines) -> None:
    version = publish(machines.at("one"), "toy", fill)
    other = json.loads((version.folder / MANIFEST).read_text())
    machines.overwrite(f"toy/1/{MANIFEST}", signed({**other, "note": "exchanged"}))
    assert "another manifest than was read here before" in refusal(lambda: find(machines.at("one"), "toy"))
    assert verify(find(machines.at("two"), "toy").folder)["note"] == "exchanged"  # who never saw it cannot know


def test_a_missing_file_is_refused_and_the_others_are_not_brought_again(machines: Machines) -> None:
    publish(machines.at("one"), "toy", fill)
    machines.backend.remove("toy/1/sub", "note.txt", "")
    assert "sub/note.txt\n  found     no such file" in refusal(lambda: find(machines.at("two"), "toy"))
    waiting = machines.at("two") / ".fetched/toy/1/adapter_model.safetensors"
    seen = waiting.stat().st_ino
    machines.backend.create("toy/1/sub/note.txt", FILES["sub/note.txt"])
    assert find(machines.at("two"), "toy").folder.joinpath("adapter_model.safetensors").stat().st_ino == seen
    assert not waiting.exists()


def test_a_mirror_of_another_store_at_the_same_url_is_emptied_first(machines: Machines) -> None:
    publish(machines.at("one"), "toy", fill)
    machines.backend.remove("", ".tuner-store.json", "")

    def other(stage: Path, number: int) -> None:
        write_manifest(stage, {"name": "toy", "version": number, "of": "another store"})

    assert publish(machines.at("two"), "toy", other).label == "toy@1"
    assert verify(find(machines.at("one"), "toy").folder)["of"] == "another store"


# --- faults --------------------------------------------------------------------------------------------------------

DIES = """
import os, sys
from pathlib import Path
from tests.artifact.test_remote import fill
from tuner.artifact.remote import store_folder
from tuner.artifact.store import publish

seen = 0

def count(event, args):
    global seen
    if event == "os.link" and "/far/" in str(args[1]):  # a file or a claim becomes visible at the URL by a link
        seen += 1
        if seen > int(sys.argv[2]):
            os._exit(9)

store = store_folder(sys.argv[1])
sys.addaudithook(count)
print(publish(store, "toy", fill).number)
"""


def _publishes(machines: Machines, links: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DIES, machines.url, str(links)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, check=False)


def test_an_upload_killed_after_every_number_of_files_leaves_no_version_and_its_number_is_not_used_again(filed: Machines) -> None:
    filed.at("one")
    whole = 2 + 1 + len(FILES) + 1 + 1  # two probes, the store's identity, its claim, files, manifest; measured below
    taken: list[int] = []
    for links in range(1, whole + 6):
        done = _publishes(filed, links)
        if done.returncode == 0:
            assert int(done.stdout) == max(taken) + 1
            break
        assert done.returncode == 9, done.stderr
        claims = sorted((filed.folder / "far/toy/numbers").glob("*.json")) if (filed.folder / "far/toy/numbers").is_dir() else []
        taken = [int(p.stem) for p in claims]
        assert versions(filed.at("one")) == [] and versions(filed.at("two")) == []
    else:
        pytest.fail("never published")
    assert len(taken) >= len(FILES)  # it died once before each file, and before the manifest
    number = max(taken) + 1
    assert verify(find(filed.at("two"), "toy").folder)["version"] == number
    left = {path.split("/")[1] for path in filed.backend.files("toy")}
    assert left == {"numbers", str(number)}  # what the dead uploads left was swept


def test_an_upload_that_is_refused_by_the_disk_leaves_no_version(filed: Machines) -> None:
    publish(filed.at("one"), "toy", fill)

    def blocked(stage: Path, number: int) -> None:
        fill(stage, number)
        (filed.folder / "far/toy/2").write_bytes(b"")  # where a folder should be made

    said = refusal(lambda: publish(filed.at("one"), "toy", blocked))
    assert "far/toy/2" in said
    assert [v.number for v, _ in versions(filed.at("one"))] == [1]
    assert publish(filed.at("one"), "toy", fill).number == 3


def test_a_slow_upload_of_a_living_process_is_not_swept(filed: Machines) -> None:
    remote = filed.remote("one")
    number = remote.claim("toy")
    filed.backend.create(f"toy/{number}/adapter_config.json", b"{}\n")
    assert filed.remote("two").claim("toy") == number + 1
    assert filed.backend.files(f"toy/{number}")


def test_a_manifest_is_never_sent_over_another(filed: Machines, tmp_path: Path) -> None:
    published = publish(filed.at("one"), "toy", fill)
    stage = tmp_path / "stage"
    stage.mkdir()
    fill(stage, 7)
    assert "a version of this number" in refusal(lambda: filed.remote("two").send("toy", 1, stage))
    assert filed.backend.read(f"toy/1/{MANIFEST}", 10_000) == (published.folder / MANIFEST).read_bytes()


RACER = """
import sys
from tests.artifact.test_remote import fill
from tuner.artifact.remote import store_folder
from tuner.artifact.store import publish
store = store_folder(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    print(publish(store, "busy", fill).number, flush=True)
"""


def test_four_processes_of_five_publishes_over_a_url_give_twenty_versions_each_whole(filed: Machines) -> None:
    def start(i: int) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(filed.folder / f"m{i // 2}")}  # two processes share a mirror
        return subprocess.Popen([sys.executable, "-c", RACER, filed.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env)

    racers = [start(i) for i in range(4)]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    said = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    for racer in racers:
        said += [int(n) for n in racer.communicate(timeout=120)[0].split()]
    assert sorted(said) == list(range(1, 21)) and [r.returncode for r in racers] == [0] * 4
    store = filed.at("reader")
    assert [verify(find(store, f"busy@{n}").folder)["version"] for n in range(1, 21)] == list(range(1, 21))


# --- every I/O call ------------------------------------------------------------------------------------------------
# tests/faults.py calls these three in a process with the fault shim preloaded.


def before(root: Path) -> None:
    """A store at a file:// URL with one version, published from this very mirror."""
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    publish(store_folder(f"file://{root}/far"), "toy", fill)


def work(root: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    publish(store_folder(f"file://{root}/far"), "toy", fill)


def after(root: Path, mode: str, status: int) -> None:
    """The second version is there whole or not at all, for this machine and for another; the next one is published and found by both."""
    assert status in {0, KILLED} if mode in ("kill", "torn", "power_loss") else status in {0, OS_ERROR, REFUSED}
    os.environ["XDG_CACHE_HOME"] = str(root / "other")
    other = store_folder(f"file://{root}/far")
    seen = [v.number for v, _ in versions(other)]
    assert seen in ([[1, 2]] if status == 0 else [[1], [1, 2]])
    assert all(verify(find(other, f"toy@{n}").folder)["version"] == n for n in seen)
    work(root)
    mine = store_folder(f"file://{root}/far")
    later = [v.number for v, _ in versions(mine)]
    assert later[: len(seen)] == seen and len(later) == len(seen) + 1
    assert all(verify(find(store, f"toy@{n}").folder)["version"] == n for store in (mine, other) for n in later)
    assert {p.name for p in (root / "far/toy").iterdir()} == {"numbers", *map(str, later)}  # what it left was swept


def test_a_fault_at_many_io_calls_of_a_publish_over_a_url_leaves_whole_versions_only() -> None:
    found = swept("tests.artifact.test_remote", modes=("kill", "full"), pick=9)
    assert found["failures"] == []
    assert found["statuses"]["kill"][str(KILLED)] > 10 and found["statuses"]["full"][str(OS_ERROR)] > 10


@pytest.mark.slow
def test_a_fault_at_every_io_call_of_a_publish_over_a_url_leaves_whole_versions_only() -> None:
    found = swept("tests.artifact.test_remote")
    assert found["failures"] == []
    assert found["statuses"]["kill"] == found["statuses"]["power_loss"] == {str(KILLED): len(found["calls"])} and len(found["calls"]) > 100


# --- S3 alone ------------------------------------------------------------------------------------------------------


def test_a_lost_race_on_s3_is_a_refused_conditional_write(s3: str) -> None:
    backend: Any = open_backend("s3://adapters-of-a-team/race")
    start = threading.Barrier(6)

    def write(i: int) -> bool:
        start.wait()
        return backend.create("entry", str(i).encode())  # type: ignore[no-any-return]

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(write, range(6)))
    assert sum(won) == 1 and backend.read("entry", 10) == str(won.index(True)).encode()


def test_storage_that_takes_one_new_file_twice_is_refused(tmp_path: Path) -> None:
    kind = BACKENDS["memory"]
    from dataclasses import replace

    from tuner.artifact.backends import ObjectStore

    careless = replace(kind, create=lambda fs, path, data: fs.pipe_file(path, data) is None)
    backend = ObjectStore("memory://careless", careless, "careless", fsspec.filesystem("memory"))
    assert "accepts the same new file twice" in refusal(lambda: backend.create("a", b""))
    assert backend.files("") == {}


def test_a_bucket_that_is_not_there_is_a_refusal_that_names_it(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Machines("s3://no-such-bucket-anywhere/x", tmp_path, monkeypatch).at("one")
    assert "s3://no-such-bucket-anywhere/x" in refusal(lambda: publish(store, "toy", fill))


# --- names ---------------------------------------------------------------------------------------------------------


def test_a_plain_folder_stays_itself(tmp_path: Path) -> None:
    assert store_folder(tmp_path / "adapters") == tmp_path / "adapters"
    assert store_folder("here/adapters") == Path("here/adapters")
    assert store_folder("") == Path("adapters")
    assert remote_of(tmp_path) is None and place_of(tmp_path) == str(tmp_path)
    assert url_of("C:/adapters") is None and url_of("a:b") is None


def test_a_url_that_went_through_a_path_is_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store_folder(Path("memory://team/a")) == store_folder("memory://team/a/") == tmp_path / "tuner/stores" / store_folder("memory://team/a").name
    assert place_of(store_folder("memory://team/a")) == "memory://team/a"


@pytest.mark.parametrize(
    "url",
    ["ftp://host/x", "http://host/x", "s4://bucket/x", "github://a/b", "abfs://a/b", "hf://buckets/a/b", "hf://datasets/a/b", "hf://a", "s3://", "memory://"],
)
def test_storage_without_exclusive_creation_is_refused(url: str) -> None:
    assert "store\n" in refusal(lambda: store_folder(url))


@pytest.mark.parametrize("url", ["s3://key:se-cret@bucket/x", "s3://se-cret@bucket/x", "gs://a:se-cret@b/c", "memory://u:se-cret@m/x"])
def test_a_url_with_a_password_is_refused_and_not_shown(url: str) -> None:
    said = refusal(lambda: store_folder(url))
    assert "password" in said and "se-cret" not in said


@pytest.mark.parametrize(
    "url", ["s3://bucket/../x", "s3://bucket/a//b", "s3://bucket/a?x=1", "s3://bucket/a#b", "file://host/x", "file:///a/../b", "memory://a/b\n"]
)
def test_a_url_that_is_no_plain_place_is_refused(url: str) -> None:
    assert "store\n" in refusal(lambda: store_folder(url))


def test_a_mirror_holds_the_url_and_no_more_and_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = store_folder("s3://bucket/prefix")
    assert json.loads((folder / MARK).read_text()) == {"schema": 1, "store": "", "url": "s3://bucket/prefix"}
    assert folder.stat().st_mode & 0o077 == 0


def test_every_protocol_says_what_it_promises() -> None:
    assert {name: kind.protocol for name, kind in BACKENDS.items()} == {name: name for name in ("s3", "gs", "hf", "file", "memory")}
    assert all(kind.promise and kind.example.startswith(f"{name}://") for name, kind in BACKENDS.items())


def test_a_key_that_would_leave_the_mirror_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = Machines(f"memory://team-{secrets.token_hex(4)}", tmp_path, monkeypatch)
    publish(machines.at("one"), "toy", fill)
    kept = machines.backend.fs.store
    root = machines.backend.fs._strip_protocol(machines.backend.root)
    for key in ("../7", "toy/../7", "toy\\x/7", "./7"):
        kept[f"{root}/{key}/{MANIFEST}"] = kept[f"{root}/toy/1/{MANIFEST}"]
    assert [v.label for v, _ in versions(machines.at("two"))] == ["toy@1"]
    assert [p for p in tmp_path.rglob("7") if p.is_dir()] == []


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\b", "evaluations/x/scores.json", "manifest.json", "a\nb", "C:x"])
def test_a_manifest_with_a_name_that_could_leave_its_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    machines = Machines(f"memory://team-{secrets.token_hex(4)}", tmp_path, monkeypatch)
    version = publish(machines.at("one"), "toy", fill)
    manifest = json.loads((version.folder / MANIFEST).read_text())
    machines.overwrite(f"toy/1/{MANIFEST}", signed({**manifest, "files": {name: next(iter(manifest["files"].values()))}}))
    assert "a relative path inside the version" in refusal(lambda: find(machines.at("two"), "toy@1"))


def signed(manifest: dict[str, Any]) -> bytes:
    """The bytes of a manifest with a digest of its own, as anybody can make them."""
    import hashlib

    def text(value: Any) -> str:
        return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    whole = {k: v for k, v in manifest.items() if k != "digest"}
    return text({**whole, "digest": "sha256:" + hashlib.sha256(text(whole).encode()).hexdigest()}).encode()


def test_a_secret_is_not_sent_and_the_number_stays_unused(filed: Machines) -> None:
    token = "hf_" + "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xY2z"

    def leaky(stage: Path, number: int) -> None:
        (stage / "recipe.yaml").write_text(f"# {token}\n", encoding="utf-8")
        write_manifest(stage, {"name": "toy", "version": number})

    said = refusal(lambda: publish(filed.at("one"), "toy", leaky))
    assert "recipe.yaml:1  huggingface_token" in said and token not in said
    assert not [p for p in (filed.folder / "far").rglob("*") if p.is_file() and token.encode() in p.read_bytes()]
    assert versions(filed.at("one")) == []


def test_an_error_of_the_storage_becomes_a_refusal_and_a_full_disk_stays_one() -> None:
    import errno

    def fails(error: Exception) -> None:
        with reaching("s3://b/c", "reading"):
            raise error

    assert re.match(r"s3://b/c  reading\n  found     TimeoutError: 'slow'", refusal(lambda: fails(TimeoutError("slow"))))
    with pytest.raises(OSError, match="No space"):
        fails(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(ValueError, match="a bug"):
        fails(ValueError("a bug"))


# --- from the recipe to another machine ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_recipe_trained_into_a_url_is_listed_graded_and_loaded_on_another_machine(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"file://{tmp_path}/far"
    recipe = graded_colours_in(tmp_path, tiny_base, 6, artifact={"store": url}, evaluate={"suites": ["ood"]})
    done = tuner("train", recipe, cwd=tmp_path, env={"XDG_CACHE_HOME": str(tmp_path / "one")})
    assert done.returncode == 0 and "published colours@1" in done.stdout, done.stderr
    assert (tmp_path / "far/colours/1" / MANIFEST).is_file() and not (tmp_path / "adapters").exists()
    two = {"XDG_CACHE_HOME": str(tmp_path / "two")}
    listed = tuner("list", "--store", url, cwd=tmp_path, env=two)
    assert "colours@1" in listed.stdout, listed.stderr
    graded = tuner("evaluate", "colours@1", recipe, cwd=tmp_path, env=two)
    assert graded.returncode in (0, 3), graded.stderr
    assert [p.name for p in (tmp_path / "far/colours/1/evaluations").iterdir()]
    shown = tuner("report", "colours", "--store", url, cwd=tmp_path, env={"XDG_CACHE_HOME": str(tmp_path / "three")})
    assert shown.returncode == 0 and "held_out" in shown.stdout, shown.stderr
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "four"))
    from tuner.artifact.adapter import load_adapter

    assert isinstance(load_adapter("colours@1", url, base=tiny_base).answer("thing number 1 please"), str)


def test_a_recipe_with_a_secret_is_refused_before_it_is_trained_into_a_url(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuner import pipeline
    from tuner.recipe import load_recipe

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = colours_in(
        tmp_path,
        tiny_base,
        artifact={"store": f"file://{tmp_path}/far"},
        template={"system": "The key is " + "ghp_" + "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xY2zC4", "max_tokens": 128},
    )
    assert "github_token in recipe.yaml:" in refusal(lambda: pipeline.run(load_recipe(recipe)))
    assert not (tmp_path / "runs").exists()
