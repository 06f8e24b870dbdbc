"""Backends of remote stores: how files are listed, read, uploaded and, above all, created exclusively on each kind of storage.

It refuses every protocol without exclusive creation (two writers could take one number), URLs that carry a password, and storage that accepts the
same file twice although it promised not to.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import secrets
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from tuner.catalog import suggestion
from tuner.durable import STAGE_PREFIX, ensure_folder, write_new
from tuner.errors import Refusal, refuse
from tuner.safe_text import quoted

CHUNK = 32 << 20  # bytes of a file that are asked for at a time
ATTEMPTS = 8  # at an answer that says only that another writer is busy
PROBES = ".probes"  # where a store is asked whether exclusive creation holds
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
_COLLAPSED = re.compile(r"([a-z][a-z0-9+.-]*):/(?!/)(.*)", re.DOTALL)  # a URL that went through Path
_PART = re.compile(r"(?!\.{1,2}$)[^\x00-\x1f\x7f/\\:]{1,255}")


class Backend(Protocol):
    """One store on one kind of storage. Paths are relative to its root, with forward slashes."""

    def files(self, under: str) -> dict[str, int]:
        """Bytes of every file below `under`, by path. Keys that could leave the root are left out."""
        ...

    def read(self, path: str, most: int) -> bytes:
        """A small file whole. Raises FileNotFoundError, or Refusal where it has more than `most` bytes."""
        ...

    def download(self, path: str, to: Path, size: int) -> None:
        """Write the first `size` bytes of a file to `to`: never more."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Make a file where none is. Of several writers exactly one gets True."""
        ...

    def upload(self, files: Mapping[str, Path], last: str, data: bytes, what: str) -> bool:
        """Bring `files` there, and only then create `last` exclusively. False where `last` is taken. `what` is said where the storage keeps a history."""
        ...

    def children(self, under: str) -> set[str]:
        """Names of what lies directly in a folder, also of folders that hold nothing yet."""
        ...

    def remove(self, folder: str, first: str, what: str) -> None:
        """Remove a folder with all that is in it, its file `first` before the rest."""
        ...


# --- fsspec --------------------------------------------------------------------------------------------------------


class ObjectStore:
    """A store below `root` of an fsspec file system."""

    def __init__(self, url: str, kind: Kind, root: str, fs: Any):
        self.url, self.kind, self.root, self.fs = url, kind, root, fs
        self._is_probed = False

    def files(self, under: str) -> dict[str, int]:
        self.fs.invalidate_cache()
        try:
            found = self.fs.find(self._at(under), detail=True)
        except FileNotFoundError:
            return {}
        base = self.fs._strip_protocol(self._at(""))
        paths = {name.removeprefix(base).lstrip("/"): int(facts["size"] or 0) for name, facts in found.items() if facts["type"] == "file"}
        return {path: size for path, size in paths.items() if is_safe(path) and not path.startswith(f"{PROBES}/") and STAGE_PREFIX not in path}

    def read(self, path: str, most: int) -> bytes:
        data: bytes = self.fs.cat_file(self._at(path), start=0, end=most + 1)
        if len(data) > most:
            refuse(f"{self.url}/{path}", "", f"more than {most:,} bytes", f"at most {most:,}", "look who wrote it: tuner never writes one so large")
        return data

    def download(self, path: str, to: Path, size: int) -> None:
        with open(to, "xb") as out:
            for start in range(0, size, CHUNK):
                out.write(self.fs.cat_file(self._at(path), start=start, end=min(start + CHUNK, size)))
            out.flush()
            os.fsync(out.fileno())

    def create(self, path: str, data: bytes) -> bool:
        if not self._is_probed:
            self._probe()
        return self.kind.create(self.fs, self._at(path), data)

    def _probe(self) -> None:
        """Make one file twice. Raises Refusal where the second is accepted: storage that ignores the condition looks well until two writers meet."""
        probe = self._at(f"{PROBES}/{secrets.token_hex(8)}")
        if not self.kind.create(self.fs, probe, b"1") or self.kind.create(self.fs, probe, b"2"):
            self.fs.rm_file(probe)
            refuse(self.url, "", "storage that accepts the same new file twice", self.kind.promise, "use storage with conditional writes, or a local folder")
        self.fs.rm_file(probe)
        self._is_probed = True

    def upload(self, files: Mapping[str, Path], last: str, data: bytes, what: str) -> bool:
        for path, file in files.items():
            self.kind.put(self.fs, file, self._at(path))
        there = self.files(str(PurePosixPath(last).parent))
        for path, file in files.items():
            if there.get(path) != file.stat().st_size:
                refuse(
                    f"{self.url}/{path}",
                    "",
                    f"{there.get(path, 'no')} bytes after the upload",
                    f"{file.stat().st_size} bytes",
                    "try again; look who else writes there",
                )
        return self.create(last, data)

    def children(self, under: str) -> set[str]:
        self.fs.invalidate_cache()
        try:
            return {str(name).rstrip("/").rpartition("/")[2] for name in self.fs.ls(self._at(under), detail=False)}
        except FileNotFoundError:
            return set()

    def remove(self, folder: str, first: str, what: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._at(f"{folder}/{first}"))
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self._at(folder), recursive=True)

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")


def _put(fs: Any, file: Path, to: str) -> None:
    fs.put_file(str(file), to)


def _put_linked(fs: Any, file: Path, to: str) -> None:
    """A copy that is flushed to disk and appears whole; what an upload that died left there goes first."""
    target = Path(to)
    target.unlink(missing_ok=True)
    ensure_folder(target.parent)
    write_new(target, file.read_bytes())


def _create_linked(fs: Any, to: str, data: bytes) -> bool:
    """fsspec's own "create" looks first and writes then; a hard link is one step."""
    ensure_folder(Path(to).parent)
    return write_new(Path(to), data)


_IN_MEMORY = threading.Lock()


def _create_in_memory(fs: Any, to: str, data: bytes) -> bool:
    """fsspec's own "create" looks first and writes then; this storage lives in one process, so a lock makes it one step."""
    with _IN_MEMORY:
        try:
            fs.pipe_file(to, data, mode="create")
        except FileExistsError:
            return False
    return True


def _create_conditionally(fs: Any, to: str, data: bytes) -> bool:
    """One conditional request: s3fs sends If-None-Match: * (core.py, _pipe_file), gcsfs ifGenerationMatch=0 (core.py, simple_upload)."""
    for attempt in range(ATTEMPTS):
        try:
            fs.pipe_file(to, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            code = _s3_code(error)
            if code in ("PreconditionFailed", "412"):
                return False
            if code not in ("ConditionalRequestConflict", "409") or attempt == ATTEMPTS - 1:
                raise
        else:
            return True
    return False


def _s3_code(error: OSError) -> str:
    """The code S3 answered with: s3fs keeps its answer as the cause, and "FileExistsError" only for servers that name the condition."""
    answer = getattr(error.__cause__, "response", None)
    return str(answer["Error"].get("Code", "")) if isinstance(answer, dict) and "Error" in answer else ""


def _open_fsspec(url: str, kind: Kind, root: str) -> Backend:
    import fsspec

    return ObjectStore(url, kind, root, fsspec.filesystem(kind.protocol, **kind.options))


# --- the Hugging Face Hub ------------------------------------------------------------------------------------------


class HubStore(ObjectStore):
    """A store in a repository of models: every change is one commit on the commit that was read, refused by the hub when the branch has moved."""

    def __init__(self, url: str, kind: Kind, root: str, endpoint: str | None = None):
        from huggingface_hub import HfApi, HfFileSystem, constants
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        if constants.is_offline_mode():
            refuse(url, "", "the hub library is set to stay offline in this process", "HF_HUB_OFFLINE unset when it is first imported",
                   "unset HF_HUB_OFFLINE, and name the store before anything loads a model")  # fmt: skip
        owner, name, *below = root.split("/")
        name, _, branch = name.partition("@")
        self.repo, self.branch, self.below = f"{owner}/{name}", branch or "main", "/".join(below)
        self.api = HfApi(endpoint=endpoint)
        super().__init__(url, kind, "", HfFileSystem(endpoint=self.api.endpoint, use_listings_cache=False, skip_instance_cache=True))

    def files(self, under: str) -> dict[str, int]:
        self.root = self._pinned(self.head())
        return super().files(under)

    def read(self, path: str, most: int) -> bytes:
        self.root = self._pinned(self.head())
        return super().read(path, most)

    def create(self, path: str, data: bytes) -> bool:
        return self._commit({path: data}, path, f"{path}")

    def upload(self, files: Mapping[str, Path], last: str, data: bytes, what: str) -> bool:
        return self._commit({**files, last: data}, last, what)

    def _commit(self, files: Mapping[str, Path | bytes], new: str, what: str) -> bool:
        """One commit of all files, on a commit where `new` is not there. A branch that moved meanwhile is read again."""
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.errors import HfHubHTTPError

        for attempt in range(ATTEMPTS):
            head = self.head()
            if self.api.file_exists(self.repo, self._inside(new), revision=head):
                return False
            adding = [CommitOperationAdd(self._inside(path), file if isinstance(file, bytes) else str(file)) for path, file in files.items()]
            try:
                self.committed(adding, what, head)
            except HfHubHTTPError as error:
                if error.response.status_code not in (409, 412) or attempt == ATTEMPTS - 1:
                    raise
            else:
                return True
        return False

    def children(self, under: str) -> set[str]:
        self.root = self._pinned(self.head())
        return super().children(under)

    def remove(self, folder: str, first: str, what: str) -> None:
        from huggingface_hub import CommitOperationDelete

        if self.files(folder):
            self.committed([CommitOperationDelete(self._inside(folder), is_folder=True)], what, self.head())

    def committed(self, changes: list[Any], what: str, parent: str) -> str:
        """The commit that these changes make on `parent`. Raises HfHubHTTPError 412 where the branch is elsewhere by now."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*commit a data file.*")  # records.parquet is no data set: it has no texts
            return str(self.api.create_commit(self.repo, changes, commit_message=what, revision=self.branch, parent_commit=parent).oid)

    def head(self) -> str:
        return str(self.api.repo_info(self.repo, revision=self.branch).sha)

    def _pinned(self, commit: str) -> str:
        return f"{self.repo}@{commit}" + (f"/{self.below}" if self.below else "")

    def _inside(self, path: str) -> str:
        return f"{self.below}/{path}" if self.below else path


def _no_fsspec(fs: Any, to: Any, data: Any) -> bool:
    raise RuntimeError("a hub store commits; it neither creates nor puts through fsspec")


# --- one URL -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """What one protocol can promise. `promise` says by what two writers never take one number; `extra` is the package it needs."""

    protocol: str
    promise: str
    extra: str
    create: Callable[[Any, str, bytes], bool]
    put: Callable[[Any, Path, str], Any]
    root: re.Pattern[str]
    example: str
    opened: Callable[[str, Kind, str], Backend]
    options: Mapping[str, Any]


def url_of(place: str | Path) -> str | None:
    """The URL that `place` names, without a slash at its end; None for a folder. Raises Refusal for a URL that no store can lie at."""
    text = str(place)
    match = _URL.fullmatch(text) or (_COLLAPSED.fullmatch(text) if isinstance(place, Path) and text.partition(":/")[0] in BACKENDS else None)
    if match is None:
        return None
    protocol, rest = match[1], match[2].rstrip("/")
    shown = f"{protocol}://…"
    if protocol not in BACKENDS:
        refuse(shown, "store", f"storage {quoted(protocol)}, for which tuner knows no exclusive creation: two writers could take one number",
               "a folder, or one of: " + ", ".join(f"{name}://" for name in BACKENDS), suggestion(protocol, BACKENDS))  # fmt: skip
    kind = BACKENDS[protocol]
    head = rest.partition("/")[0]
    if protocol != "file" and ("@" in head or ":" in head):
        refuse(
            shown,
            "store",
            "a URL that carries a name or a password",
            kind.example,
            "leave it out: the storage's own library finds credentials in its usual places",
        )
    parts = PurePosixPath(rest.lstrip("/")).parts
    if not kind.root.fullmatch(rest) or any(not _PART.fullmatch(part) for part in parts) or re.search("[?#%]", rest):
        refuse(shown, "store", quoted(text), kind.example, "name the place alone: no query, no empty part, no ..")
    return f"{protocol}://{rest}"


def open_backend(url: str) -> Backend:
    """The backend of a URL that `url_of` gave. Raises Refusal where its package is missing. Nothing connects yet."""
    return _opened(url, os.getpid())  # neither connections nor event loops survive a fork


@functools.cache
def _opened(url: str, process: int) -> Backend:
    protocol, _, rest = url.partition("://")
    kind = BACKENDS[protocol]
    if kind.extra and find_spec(kind.extra) is None:
        refuse(url, "store", f"no package {kind.extra}", f"{kind.extra}, which speaks {protocol}://", f"pip install {kind.extra}")
    return kind.opened(url, kind, rest)


@contextlib.contextmanager
def reaching(url: str, doing: str) -> Iterator[None]:
    """Turns what the storage's libraries raise into a Refusal that names the URL and what was being done. A full local disk stays what it is."""
    try:
        yield
    except Refusal:
        raise
    except _errors() as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        refuse(url, doing, f"{type(error).__name__}: {quoted(said, 200)}", "storage that answers and lets this user in",
               "look at the network, the credentials in their usual place, and whether the place exists")  # fmt: skip


def _errors() -> tuple[type[Exception], ...]:
    """OSError, and what those storage libraries that are loaded raise besides."""
    import sys

    found: list[type[Exception]] = [OSError]
    for module, names in _OTHER_ERRORS.items():
        found += [getattr(sys.modules[module], name) for name in names if module in sys.modules and hasattr(sys.modules[module], name)]
    return tuple(found)


def is_safe(path: str) -> bool:
    """May a file of this relative path be written below a folder of ours?"""
    parts = path.split("/")
    return len(path) <= 1024 and all(_PART.fullmatch(part) for part in parts)


_OTHER_ERRORS = {
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "aiohttp": ("ClientError",),
    "gcsfs.retry": ("HttpError",),
    "google.auth.exceptions": ("GoogleAuthError",),
    "requests": ("RequestException",),
    "httpx": ("HTTPError",),
    "httpx2": ("HTTPError",),
    "huggingface_hub.errors": ("HfHubHTTPError", "EntryNotFoundError", "RevisionResolutionError", "HFValidationError"),
}

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,220}(?:/[^/]+)*")
_UNCACHED: Mapping[str, Any] = {"use_listings_cache": False}

_IF_NONE = "conditional writes (If-None-Match: *)"
_IF_NO_GENERATION = "generation preconditions (ifGenerationMatch=0)"
_HUB_PLACE = re.compile(r"(?!(?:datasets|spaces|buckets|kernels)/)[\w.-]+/[\w.-]+(?:@[\w.-]+)?(?:/[^/]+)*", re.ASCII)
_HUB_EXAMPLE = "hf://ORG/REPO[@BRANCH][/PREFIX], a repository of models"

# protocol, what makes creation exclusive, package, exclusive creation, upload, form of what follows ://, example, how it is opened, options
BACKENDS: dict[str, Kind] = {
    "s3": Kind("s3", _IF_NONE, "s3fs", _create_conditionally, _put, _BUCKET, "s3://BUCKET/PREFIX", _open_fsspec, _UNCACHED),
    "gs": Kind("gs", _IF_NO_GENERATION, "gcsfs", _create_conditionally, _put, _BUCKET, "gs://BUCKET/PREFIX", _open_fsspec, _UNCACHED),
    "hf": Kind("hf", "commits on a named parent", "", _no_fsspec, _no_fsspec, _HUB_PLACE, _HUB_EXAMPLE, HubStore, {}),
    "file": Kind("file", "hard links", "", _create_linked, _put_linked, re.compile(r"(?:/[^/]+)+"), "file:///FOLDER", _open_fsspec, {}),
    "memory": Kind("memory", "a lock of this process", "", _create_in_memory, _put, _BUCKET, "memory://NAME/PREFIX", _open_fsspec, {}),
}
