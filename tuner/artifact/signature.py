"""Signatures beside a version: who vouches for its bytes, by a key that they hold. Made and checked offline, by the `cryptography` library.

A signature is a Sigstore bundle of a DSSE envelope of an in-toto statement over the digest of every file, as model-transparency writes it, so that
`model_signing verify key` checks those of EC keys too. It refuses a changed signature, another version's, and keys it does not know.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tuner.artifact.manifest import LATER, MANIFEST
from tuner.artifact.strict_json import Malformed, parse
from tuner.durable import json_text
from tuner.errors import Collector, refuse
from tuner.fingerprint import digest_file
from tuner.safe_text import quoted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from tuner.artifact.store import Version

    PublicKey = Ed25519PublicKey | EllipticCurvePublicKey
    PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey

FOLDER, BUNDLE = "signatures", "bundle.json"
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
MOST_BYTES = 8 * 2**20
CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}  # model-transparency's, with their hashes
ACCEPTED = "a PEM file of an Ed25519 key, or of an EC key on P-256, P-384 or P-521"


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature whose bytes, statement and key belong together. `named`: by a key that the caller named; without that it proves nothing of who."""

    key: str
    named: bool


# --- keys ----------------------------------------------------------------------------------------------------------


def make_key(path: Path) -> tuple[Path, str]:
    """Write a new Ed25519 key to `path`, which its owner alone can read, and its public half beside it. Returns the public file and the key's id.

    Raises Refusal where either is there already.
    """
    _require_library()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = path.with_name(f"{path.name.removesuffix('.pem')}.public.pem")
    for file in (path, public):
        if file.exists() or file.is_symlink():
            refuse(file, "--new-key", "a file that is there", "a place where nothing is: keys are never written over", "choose another name")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write_new(path, secret, 0o600)
    _write_new(public, _pem(key.public_key()), 0o644)
    return public, key_id(key.public_key())


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except OSError as error:
        refuse(path, "--new-key", f"cannot be made: {error.strerror}", "a place this user may write", "choose another place")
    with os.fdopen(handle, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def key_id(key: PublicKey) -> str:
    """SHA-256 (hex) of the public key's PEM: model-transparency's own way to name a key (sign_ec_key.py@v1.1.1, `_get_verification_material`)."""
    return hashlib.sha256(_pem(key)).hexdigest()


def read_public(path: Path) -> PublicKey:
    """The public key in a PEM file. Raises Refusal, also for a private key: those are not handed around."""
    _require_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    data = _read(path)
    if b"PRIVATE KEY" in data:
        refuse(path, "--key", "a private key", "the public key that belongs to it", "give the .public.pem file; keep the private one to yourself")
    try:
        return _supported(path, serialization.load_pem_public_key(data))
    except (ValueError, UnsupportedAlgorithm) as error:
        refuse(path, "--key", f"no public key: {quoted(error, 80)}", ACCEPTED, "give a public key's PEM file")


def read_private(path: Path) -> PrivateKey:
    """The private key in a PEM file, which must not be readable by others. Raises Refusal."""
    _require_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    data = _read(path)
    try:
        found = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it is encrypted
        refuse(path, "--key", f"no private key: {quoted(error, 80)}", f"{ACCEPTED}, without a password", "make one with `tuner sign --new-key PATH`")
    if path.stat().st_mode & 0o077:
        refuse(path, "--key", f"mode {path.stat().st_mode & 0o777:o}: others can read or write it", "a private key for its owner alone", f"chmod 600 {path}")
    _supported(path, found.public_key())
    return found  # type: ignore[return-value]  # by its public half


def _supported(path: Path, key: Any) -> PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if isinstance(key, Ed25519PublicKey) or (isinstance(key, EllipticCurvePublicKey) and key.curve.name in CURVES):
        return key
    refuse(path, "--key", f"a key of the kind {type(key).__name__}", ACCEPTED, "make one with `tuner sign --new-key PATH`")


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(64 * 1024)
    except OSError as error:
        refuse(path, "--key", f"unreadable: {error.strerror}", ACCEPTED, "check the path; `tuner sign --new-key PATH` makes a key")


def _pem(key: PublicKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _require_library() -> None:
    try:
        import cryptography  # noqa: F401 - only whether it is there
    except ImportError:
        refuse("tuner sign", "cryptography", "the library is not installed", "the extra `sign`", "pip install 'tuner-lora[sign]'")


# --- signing -------------------------------------------------------------------------------------------------------


def sign(version: Version, manifest: dict[str, Any], key: PrivateKey) -> Path:
    """Add a signature of a version whose digests were checked. Returns its folder; the same key's valid one is left as it is."""
    from tuner.artifact.store import add_later

    name = key_id(key.public_key())
    for folder in _folders(version.folder):
        if folder.name == name:
            _checked(folder, version.folder, manifest)
            return folder
    payload = json_text(_statement(version.folder, manifest, LATER)).encode("utf-8")
    bundle = _bundle(payload, _signature(key, _pae(payload)), _pem(key.public_key()), name)

    def fill(stage: Path) -> None:
        (stage / BUNDLE).write_bytes(bundle)

    return add_later(version, FOLDER, name, fill)


def _bundle(payload: bytes, signature: bytes, public: bytes, name: str) -> bytes:
    """The Sigstore bundle as a file. `rawBytes`, the key itself, is what lets a change be seen without the key at hand; model-transparency skips it."""
    material = {"publicKey": {"hint": name, "rawBytes": _base64(public)}, "tlogEntries": []}
    envelope = {"payload": _base64(payload), "payloadType": PAYLOAD_TYPE, "signatures": [{"sig": _base64(signature), "keyid": ""}]}
    return json_text({"mediaType": MEDIA_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}).encode("utf-8")


def _statement(folder: Path, manifest: dict[str, Any], ignored: Sequence[str]) -> dict[str, Any]:
    """The in-toto statement: every file of the version with its digest, the manifest's own among them; `ignored` are folders that are added to later."""
    digests = {name: str(facts["digest"]) for name, facts in manifest["files"].items()} | {MANIFEST: digest_file(folder / MANIFEST)}
    resources = [{"name": name, "algorithm": "sha256", "digest": digests[name].removeprefix("sha256:")} for name in sorted(digests)]
    whole = hashlib.sha256(b"".join(bytes.fromhex(r["digest"]) for r in resources)).hexdigest()
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": f"{manifest['name']}@{manifest['version']}", "digest": {"sha256": whole}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": sorted(ignored)},
            "resources": resources,
        },
    }


def _pae(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding (https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md)."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _signature(key: PrivateKey, data: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey

    return key.sign(data, ECDSA(_hash_of(key.curve.name))) if isinstance(key, EllipticCurvePrivateKey) else key.sign(data)


def _hash_of(curve: str) -> Any:
    from cryptography.hazmat.primitives import hashes

    return getattr(hashes, CURVES[curve])()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


# --- checking ------------------------------------------------------------------------------------------------------


def check_signatures(folder: Path, manifest: dict[str, Any], keys: Mapping[Path, PublicKey]) -> list[Signed]:
    """Every signature beside a version whose digests were checked. Raises Refusal for one that is not valid, and for a named key without one.

    A key that the caller did not name is the one that the signature carries: that it is valid then says only that nobody changed it since.
    """
    folders = _folders(folder)
    if not folders and not keys:
        return []
    _require_library()
    problems, named = Collector(), {key_id(key): path for path, key in keys.items()}
    found = [_checked(signature, folder, manifest) for signature in folders]
    for name, path in named.items():
        if name not in found:
            signers = ", ".join(f"{key[:16]}…" for key in found) or "nobody"
            problems.add(folder, FOLDER, f"signed by {signers}", f"a signature by key {name[:16]}…, {path}", "do not use it, or sign it with that key")
    problems.raise_if_any()
    return [Signed(key, key in named) for key in sorted(set(found))]


def _folders(folder: Path) -> Sequence[Path]:
    home = folder / FOLDER
    return sorted(p for p in home.iterdir() if not p.name.startswith(".")) if home.is_dir() else []


def _checked(signature: Path, folder: Path, manifest: dict[str, Any]) -> str:
    """The id of the key that made a valid signature of this very version. Raises Refusal: one that is not valid is worse than none."""
    file = signature / BUNDLE
    data = _bounded(file)
    payload, sent, pem, name = _opened(file, data)
    key = _carried(file, pem)
    if name != key_id(key) or data != _bundle(payload, sent, _pem(key), name):
        _refuse_invalid(file, "a bundle that was changed after it was written")
    if not _verifies(key, sent, _pae(payload)):
        _refuse_invalid(file, "bytes that this key did not sign")
    if not _is_of(_parsed(file, payload), folder, manifest):
        _refuse_invalid(file, "a statement about other files than this version's", "remove it: it is another version's, or the version is not the one signed")
    return name


def _is_of(statement: Any, folder: Path, manifest: dict[str, Any]) -> bool:
    """Is it the statement about this version? One made before a release knew another folder to be added to later ignores fewer of them."""
    try:
        ignored = statement["predicate"]["serialization"]["ignore_paths"]
        return set(ignored) <= set(LATER) and bool(statement == _statement(folder, manifest, ignored))
    except (KeyError, TypeError):
        return False


def _opened(file: Path, data: bytes) -> tuple[bytes, bytes, bytes, str]:
    """(payload, signature, public key as PEM, key id) of a bundle. Raises Refusal where they are not there."""
    said = _parsed(file, data)
    try:
        key, envelope = said["verificationMaterial"]["publicKey"], said["dsseEnvelope"]
        payload, sent, pem = (base64.b64decode(text, validate=True) for text in (envelope["payload"], envelope["signatures"][0]["sig"], key["rawBytes"]))
        return payload, sent, pem, str(key["hint"])
    except (LookupError, TypeError, ValueError):
        _refuse_invalid(file, "no Sigstore bundle of one signature and its key")


def _bounded(file: Path) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read(MOST_BYTES + 1)
    except OSError as error:
        _refuse_invalid(file, f"unreadable: {error.strerror}")


def _parsed(file: Path, data: bytes) -> Any:
    try:
        return parse(data, MOST_BYTES)
    except Malformed as error:
        _refuse_invalid(file, quoted(error, 200))


def _carried(file: Path, pem: bytes) -> PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        return _supported(file, serialization.load_pem_public_key(pem))
    except (ValueError, UnsupportedAlgorithm):
        _refuse_invalid(file, "no public key that can be read")


def _verifies(key: PublicKey, sent: bytes, data: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey

    try:
        if isinstance(key, EllipticCurvePublicKey):
            key.verify(sent, data, ECDSA(_hash_of(key.curve.name)))
        else:
            key.verify(sent, data)
    except InvalidSignature:
        return False
    return True


def _refuse_invalid(file: Path, found: str, try_: str = "remove it, and find out who changed it") -> NoReturn:
    refuse(file, "signature", found, "a signature of this version as it was made", try_)
