"""Nothing secret leaves: every kind of secret in every text file of a version is found, masked, and stops a push and an upload."""

from __future__ import annotations

import html
import json
import random
import string
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.artifact.hub_server import Hub
from tests.artifact.test_hub import CARD, hub, online  # noqa: F401  # fixtures
from tests.artifact.test_remote import Machines, filed  # noqa: F401  # fixture
from tests.artifact.test_store import refusal
from tuner.artifact import hub as room
from tuner.artifact.leaks import HOME_PATH, refuse_leaking_texts, refuse_leaks, scan, scan_text
from tuner.artifact.manifest import write_manifest
from tuner.artifact.store import Version, add_evaluation, publish
from tuner.data import personal

_DRAWN = random.Random(7)


def drawn(count: int, letters: str = string.ascii_letters + string.digits) -> str:
    """So many characters as a generator of keys would give, a digit and a letter among them."""
    return "".join(_DRAWN.choice(letters) for _ in range(count - 2)) + "a1"


UPPER, HEX = string.ascii_uppercase + "234567", "0123456789abcdef"
# Made here, so that no secret of anybody stands in this file; the prefixes are their issuers' own.
SECRETS = {
    "private_key": "-----BEGIN " + f"RSA PRIVATE KEY-----\n{drawn(64)}\n{drawn(64)}\n-----END " + "RSA PRIVATE KEY-----",
    "url_credential": f"postgres://svc:{drawn(12)}@db.corp-internal.net/app",
    "jwt": f"eyJ{drawn(20)}.eyJ{drawn(40)}.{drawn(43)}",
    "aws_key": "AKIA" + "".join(_DRAWN.choice(UPPER) for _ in range(16)),
    "github_token": "ghp_" + drawn(36),
    "gitlab_token": "glpat-" + drawn(20),
    "slack_token": "xoxb-" + f"{drawn(12, string.digits)[:-2]}11-{drawn(24)}",
    "anthropic_key": "sk-ant-" + drawn(40),
    "openai_key": "sk-proj-" + drawn(48),
    "google_key": "AIza" + drawn(35),
    "stripe_key": "sk_live_" + drawn(24),
    "huggingface_token": "hf_" + "".join(_DRAWN.choice(string.ascii_letters) for _ in range(34)),
    "npm_token": "npm_" + drawn(36),
    "pypi_token": "pypi-AgE" + drawn(60),
    "sendgrid_key": f"SG.{drawn(22)}.{drawn(43)}",
    "azure_storage_key": f"AccountKey={drawn(86)}==",
    "assigned_secret": f"password: {drawn(14)}",
}


def _json(text: str) -> bytes:
    return json.dumps({"a": 1, "b": ["x", {"note": f"see {text} there"}]}, indent=2).encode()


def _lines(text: str) -> bytes:
    return (json.dumps({"n": 1}) + "\n" + json.dumps({"answer": f"it is {text}"}) + "\n").encode()


def _plain(text: str) -> bytes:
    return f"first: line\n\nnote: {text}\n".encode()


def _comment(text: str) -> bytes:
    return ("name: toy\n" + "".join(f"# {line}\n" for line in text.split("\n"))).encode()


def _page(text: str) -> bytes:
    return f"<html>\n<p>{html.escape(text)}</p>\n</html>".encode()


def _header(text: str) -> bytes:
    head = json.dumps({"__metadata__": {"format": "pt", "note": text}}).encode()
    return struct.pack("<Q", len(head)) + head


def _table(text: str) -> bytes:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    sink = arrow.BufferOutputStream()
    parquet.write_table(arrow.Table.from_pylist([{"hash": "x", "messages": [{"role": "user", "content": t}]} for t in ("harmless", text)]), sink)
    return bytes(sink.getvalue().to_pybytes())


FILES: dict[str, Callable[[str], bytes]] = {
    "README.md": lambda text: CARD.encode() + _plain(text), "recipe.yaml": _comment, "resolved.yaml": _plain, "findings.json": _json, "train_log.jsonl": _lines,
    "adapter_config.json": _json, "generation_config.json": _json, "tokenizer_config.json": _json, "special_tokens_map.json": _json,
    "chat_template.jinja": _plain, "records.parquet": _table, "adapter_model.safetensors": _header, "below/notes.txt": _plain,
}  # fmt: skip
LATER: dict[str, Callable[[str], bytes]] = {
    "scores.json": _json, "report.json": _json, "report.md": _plain, "report.html": _page, "answers.jsonl": _lines,
}  # fmt: skip


def version_with(store: Path, name: str, text: str) -> Version:
    """A version with harmless files, and `text` in its file `name`, or in that of its evaluation, or in its manifest."""

    def fill(stage: Path, number: int) -> None:
        for file, written in FILES.items():
            (stage / file).parent.mkdir(exist_ok=True)
            (stage / file).write_bytes(written(text if file == name else "nothing"))
        write_manifest(stage, {"name": "toy", "version": number, "note": text if name == "manifest.json" else ""})

    def evaluated(stage: Path) -> None:
        for file, written in LATER.items():
            (stage / file).write_bytes(written(text if file == name.removeprefix("evaluations/") else "nothing"))

    version = publish(store, "toy", fill)
    add_evaluation(version, "2026-01-01-a", evaluated)
    return version


def test_the_planted_secrets_are_of_every_kind_there_is() -> None:
    kinds = {name for name, kind in personal.KINDS.items() if kind.group == "secret"}
    assert set(SECRETS) == kinds and len(kinds) >= 12
    for kind, text in SECRETS.items():
        assert kind in {hit.kind for hit in personal.find(text)}, kind


EVERYWHERE = [*FILES, "manifest.json", *(f"evaluations/2026-01-01-a/{file}" for file in LATER)]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_secret_of_any_kind_in_any_text_file_is_refused_and_not_shown(name: str, tmp_path: Path) -> None:
    file, written = tmp_path / name, {**FILES, **LATER, "manifest.json": _json}[name.rpartition("/")[2] if "/2026" in name else name]
    file.parent.mkdir(parents=True, exist_ok=True)
    for kind, secret in SECRETS.items():
        file.write_bytes(written(secret))
        said = refusal(lambda: refuse_leaks(tmp_path, [name], allow_personal=True))
        assert f"{name}:" in said and f"  {kind}\n" in said, (kind, said)
        assert secret not in said and secret.split("\n")[-1][-12:] not in said, kind


@pytest.mark.parametrize(("name", "kind"), zip(EVERYWHERE, [*SECRETS, *SECRETS], strict=False))
def test_a_push_with_a_secret_does_not_even_ask_the_hub(name: str, kind: str, tmp_path: Path, hub: Hub, online: Callable[..., Any]) -> None:  # noqa: F811
    version = version_with(tmp_path, name.replace("2026-01-01-a/", ""), SECRETS[kind])
    said = refusal(lambda: online(room.push, version, "hub:team/toys", endpoint=hub.endpoint, answers=True, allow_personal=True))
    assert f"{name}:" in said and f"  {kind}\n" in said and SECRETS[kind] not in said
    assert hub.asked == [] and hub.repos == {} and hub.objects == {}


def test_what_holds_no_secret_is_pushed(tmp_path: Path, hub: Hub, online: Callable[..., Any]) -> None:  # noqa: F811
    done = online(room.push, version_with(tmp_path, "none", "nothing"), "hub:team/toys", endpoint=hub.endpoint, answers=True)
    assert len(done.files) == len(FILES) + 1 + len(LATER)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_secret_stops_an_upload_to_a_remote_store_before_its_first_file(filed: Machines, name: str) -> None:  # noqa: F811
    secret = SECRETS["github_token"]
    assert "github_token" in refusal(lambda: version_with(filed.at("one"), name, secret))
    there = filed.backend.files("")
    assert not [path for path in there if not path.startswith("toy/numbers/") and path != ".tuner-store.json"]


def test_a_secret_in_an_evaluation_stops_its_upload(filed: Machines) -> None:  # noqa: F811
    assert "answers.jsonl:2  github_token" in refusal(lambda: version_with(filed.at("one"), "evaluations/answers.jsonl", SECRETS["github_token"]))
    assert not [path for path in filed.backend.files("toy") if "evaluations" in path]


@pytest.mark.parametrize(
    ("text", "is_home"),
    [
        ("/home/anna/data/train.jsonl", True), ("file:///home/anna/x", True), ('"/Users/anna.b/x"', True), ("/root/data/x", True), ("a,/home/anna", True),
        (r"C:\Users\Anna\x", True), (r'"C:\\Users\\Anna\\x"', True), ("d:/users/anna/x", True),
        ("/home/user/x", False), ("/home/you", False), ("~/data", False), ("https://example.com/home/page", False), ("data/home/page", False),
        ("/Users/shared/x", False), ("/data/train.jsonl", False), ("../data/x", False), ("/rooted/x", False),
    ],
)  # fmt: skip
def test_an_absolute_path_below_a_home_folder_is_found(text: str, is_home: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nowhere/at/all")
    assert [leak.kind for leak in scan_text(f"file: {text}\n", "resolved.yaml")] == ([HOME_PATH] if is_home else [])


def test_this_users_home_is_found_wherever_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/data/people/k17")
    assert [leak.kind for leak in scan_text("a: /data/people/k17/set.jsonl", "resolved.yaml")] == [HOME_PATH]


def test_a_home_folder_is_refused_unless_allowed_and_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "resolved.yaml").write_text("a: 1\nfile: /home/annabel/data.jsonl\n")
    said = refusal(lambda: refuse_leaks(tmp_path, ["resolved.yaml"]))
    assert "resolved.yaml:2  home_path" in said and "annabel" not in said
    refuse_leaks(tmp_path, ["resolved.yaml"], allow_personal=True)


def test_personal_data_in_texts_of_the_data_is_refused_unless_allowed(tmp_path: Path) -> None:
    (tmp_path / "evaluations/a").mkdir(parents=True)
    for name in ("findings.json", "evaluations/a/answers.jsonl", "recipe.yaml"):
        (tmp_path / name).write_text('{"text": "write to anna.lindqvist@posteo.se"}\n', encoding="utf-8")
    names = ["findings.json", "evaluations/a/answers.jsonl", "recipe.yaml"]
    assert [(leak.file, leak.kind) for leak in scan(tmp_path, names)] == [("evaluations/a/answers.jsonl", "email"), ("findings.json", "email")]
    assert "lindqvist" not in refusal(lambda: refuse_leaks(tmp_path, names))
    refuse_leaks(tmp_path, names, allow_personal=True)


def test_the_line_of_a_find_is_its_own(tmp_path: Path) -> None:
    lines = [f'{{"n": {i}}}' for i in range(40)]
    lines[17] = json.dumps({"key": SECRETS["npm_token"]})
    lines[30] = '{"note": "pass' + "\\u0077ord: " + f'{drawn(14)}"}}'  # spelt so that only the decoded string shows it
    (tmp_path / "train_log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert [(leak.line, leak.kind) for leak in scan(tmp_path, ["train_log.jsonl"])] == [(18, "npm_token"), (31, "assigned_secret")]


def test_a_secret_spelt_in_html_is_found() -> None:
    written = html.escape(f'password = "{drawn(14)}"')
    assert [(leak.line, leak.kind) for leak in scan_text(f"<p>\n<code>{written}</code>", "evaluations/a/report.html")] == [(2, "assigned_secret")]


def test_a_vocabulary_and_weights_are_not_searched(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "merges.txt", "model.gguf"):
        (tmp_path / name).write_text(SECRETS["npm_token"])
    assert scan(tmp_path, ["tokenizer.json", "merges.txt", "model.gguf"]) == []


def test_weights_without_a_header_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 40)
    assert "no safetensors header" in refusal(lambda: scan(tmp_path, ["a.safetensors"]))


def test_a_recipe_with_a_secret_is_refused_before_training_for_a_remote_store() -> None:
    said = refusal(lambda: refuse_leaking_texts({"recipe.yaml": f"a: 1\n# {SECRETS['gitlab_token']}\n", "resolved.yaml": "a: 1\n"}, "quickstart.yaml"))
    assert said.startswith("quickstart.yaml  gitlab_token in recipe.yaml:2")
