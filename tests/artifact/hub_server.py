"""A hub on this machine: the HTTP endpoints that huggingface_hub's client uses for repositories of models, over commits kept in memory.

It is real to the client (its own requests, LFS uploads, NDJSON commits, ranges), and keeps what arrived for a test to look at.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".parquet", ".bin")


@dataclass
class Commit:
    id: str
    parent: str | None
    files: dict[str, bytes]
    summary: str


@dataclass
class Repo:
    private: bool
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], summary: str) -> Commit:
        parent = self.branches.get(branch)
        made = Commit(hashlib.sha1(f"{len(self.commits)} {parent} {summary}".encode()).hexdigest(), parent, files, summary)
        self.commits.append(made)
        self.branches[branch] = made.id
        return made

    def at(self, revision: str) -> Commit | None:
        wanted = self.branches.get(revision) or self.tags.get(revision) or revision
        return next((c for c in self.commits if c.id == wanted), None)


class Hub:
    """`repos` by ORG/NAME; `objects` are LFS uploads by sha256; `asked` is every request's method, path and bearer token."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.lock = threading.RLock()
        self.ignores: set[str] = set()  # what a .gitignore of the repository would name
        self.meanwhile: list[Any] = []  # called once each before a commit is taken: another writer
        self.endpoint = ""

    def new(self, name: str, private: bool = True, files: dict[str, bytes] | None = None) -> Repo:
        repo = self.repos[name] = Repo(private)
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})}, "initial commit")
        return repo


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if self.headers.get("Transfer-Encoding") != "chunked" else self._chunked()
        url = urlsplit(self.path)
        with self.hub.lock:
            self.hub.asked.append((self.command, url.path, (self.headers.get("Authorization") or "").removeprefix("Bearer ")))
            for method, pattern, answer in ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and self.command in method:
                    answer(self, body, parse_qs(url.query), *(unquote(g or "") for g in match.groups()))
                    return
        self._json(404, {"error": f"no route {self.command} {url.path}"})

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _handle

    def _chunked(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _json(self, status: int, value: Any, **headers: str) -> None:
        self._bytes(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    def _bytes(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None:
            self._json(404, {"error": "Repository not found"}, **{"X-Error-Code": "RepoNotFound"})
        return repo

    def _commit(self, name: str, revision: str) -> Commit | None:
        repo = self._repo(name)
        commit = repo.at(revision or "main") if repo else None
        if repo and commit is None:
            self._json(404, {"error": "Invalid rev id"}, **{"X-Error-Code": "RevisionNotFound"})
        return commit

    # --- answers ---------------------------------------------------------------------------------------------------

    def create(self, body: bytes, query: Any) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            self._json(409, {"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{name}"})
            return
        self.hub.new(name, asked.get("visibility", "public") == "private")
        self._json(200, {"url": f"{self.hub.endpoint}/{name}", "name": name})

    def info(self, body: bytes, query: Any, name: str, revision: str) -> None:
        commit = self._commit(name, revision)
        if commit:
            siblings = [{"rfilename": path} for path in sorted(commit.files)]
            facts = {"id": name, "modelId": name, "sha": commit.id, "private": self.hub.repos[name].private, "siblings": siblings, "tags": []}
            self._json(200, facts)

    def tree(self, body: bytes, query: Any, name: str, revision: str, below: str) -> None:
        commit = self._commit(name, revision)
        if commit:
            found = [_entry(path, data) for path, data in sorted(commit.files.items()) if not below or path.startswith(f"{below}/")]
            if below and not found:
                self._json(404, {"error": "no such folder"}, **{"X-Error-Code": "EntryNotFound"})
            else:
                self._json(200, found)

    def paths_info(self, body: bytes, query: Any, name: str, revision: str) -> None:
        commit = self._commit(name, revision)
        if commit:
            asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            self._json(200, [_entry(path, commit.files[path]) for path in asked if path in commit.files])

    def preupload(self, body: bytes, query: Any, name: str, revision: str) -> None:
        commit = self._commit(name, revision)
        if commit:
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(LFS_SUFFIXES) else "regular",
                    "shouldIgnore": f["path"] in self.hub.ignores,
                    "oid": None,
                }
                for f in json.loads(body)["files"]
            ]
            self._json(200, {"files": modes})

    def batch(self, body: bytes, query: Any, name: str) -> None:
        objects = [
            {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{o['oid']}", "header": {}}}}
            for o in json.loads(body)["objects"]
        ]
        self._json(200, {"transfer": "basic", "objects": objects})

    def lfs(self, body: bytes, query: Any, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self._json(200, {})

    def commit(self, body: bytes, query: Any, name: str, branch: str) -> None:
        while self.hub.meanwhile:
            self.hub.meanwhile.pop()()
        repo = self._repo(name)
        if repo is None:
            return
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        header, files = lines[0]["value"], dict(repo.at(branch).files)  # type: ignore[union-attr]
        if header.get("parentCommit") not in (None, repo.branches[branch]):
            self._json(412, {"error": "The branch has moved: A commit has happened since. Please refresh and try again."})
            return
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
            elif line["key"] == "deletedFolder":
                files = {path: data for path, data in files.items() if not path.startswith(value["path"].rstrip("/") + "/")}
        made = repo.commit(branch, files, header["summary"])
        self._json(200, {"success": True, "commitOid": made.id, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{made.id}", "hookOutput": ""})

    def resolve(self, body: bytes, query: Any, name: str, revision: str, path: str) -> None:
        commit = self._commit(name, revision)
        if commit is None:
            return
        if path not in commit.files:
            self._json(404, {"error": "Entry not found"}, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.id})
            return
        data = commit.files[path]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            self._bytes(206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})
        else:
            self._bytes(200, data, headers)

    def refs(self, body: bytes, query: Any, name: str) -> None:
        repo = self._repo(name)
        if repo:
            named = {
                kind: [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c} for n, c in of.items()]
                for kind, of in (("heads", repo.branches), ("tags", repo.tags))
            }
            self._json(200, {"branches": named["heads"], "converts": [], "tags": named["tags"]})

    def tag(self, body: bytes, query: Any, name: str, revision: str) -> None:
        repo, wanted = self._repo(name), json.loads(body)["tag"]
        if repo and wanted in repo.tags:
            self._json(409, {"error": "Tag reference exists already"})
        elif repo:
            repo.tags[wanted] = repo.at(revision).id  # type: ignore[union-attr]
            self._json(200, {})

    def branch(self, body: bytes, query: Any, name: str, wanted: str) -> None:
        repo = self._repo(name)
        if repo and wanted in repo.branches:
            self._json(409, {"error": "Reference already exists"})
        elif repo:
            repo.branches[wanted] = repo.branches["main"]
            self._json(200, {})

    def validate(self, body: bytes, query: Any) -> None:
        self._json(200, {"errors": [], "warnings": []})


def _entry(path: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    lfs = {"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}} if path.endswith(LFS_SUFFIXES) else {}
    return {"type": "file", "path": path, "size": len(data), "oid": blob, **lfs}


_MODEL = r"/api/models/([^/]+/[^/]+)"
ROUTES: tuple[tuple[tuple[str, ...], str, Any], ...] = (
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate),
    (("GET",), rf"{_MODEL}/refs", _Handler.refs),
    (("GET",), rf"{_MODEL}(?:/revision/([^/]+))?", _Handler.info),
    (("GET",), rf"{_MODEL}/tree/([^/]+)/?(.*)", _Handler.tree),
    (("POST",), rf"{_MODEL}/paths-info/([^/]+)", _Handler.paths_info),
    (("POST",), rf"{_MODEL}/preupload/([^/]+)", _Handler.preupload),
    (("POST",), rf"{_MODEL}/commit/([^/]+)", _Handler.commit),
    (("POST",), rf"{_MODEL}/tag/([^/]+)", _Handler.tag),
    (("POST",), rf"{_MODEL}/branch/([^/]+)", _Handler.branch),
    (("POST",), r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), r"/lfs/([0-9a-f]{64})", _Handler.lfs),
    (("GET", "HEAD"), r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", _Handler.resolve),
)
