"""Signatures: made and checked offline; a changed one, another version's, another key's, and a version changed under one are refused."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from typer.testing import CliRunner

from tests.artifact.toy import FACTS, seal, sha256, toy_version
from tuner.artifact import signature
from tuner.artifact.history import append
from tuner.artifact.manifest import verify
from tuner.artifact.signature import BUNDLE, check_signatures, key_id, make_key, read_private, read_public, sign
from tuner.artifact.store import Version
from tuner.cli_trust import COMMANDS
from tuner.errors import Refusal


@pytest.fixture
def version(tmp_path: Path) -> Version:
    toy_version(tmp_path / "store" / "toy" / "1")
    return Version("toy", 1, tmp_path / "store" / "toy" / "1")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_key(tmp_path / "key.pem")
    return tmp_path / "key.pem"


def public_of(key: Path) -> Path:
    return key.with_name("key.public.pem")


def signed(version: Version, key: Path) -> Path:
    return sign(version, verify(version.folder), read_private(key)) / BUNDLE


def check(version: Version, *keys: Path) -> list[signature.Signed]:
    return check_signatures(version.folder, verify(version.folder), {path: read_public(path) for path in keys})


def refused(version: Version, *keys: Path) -> str:
    with pytest.raises(Refusal) as caught:
        check(version, *keys)
    return str(caught.value)


def pem(key: Any, path: Path, **changes: Any) -> Path:
    given = {
        "encoding": serialization.Encoding.PEM,
        "format": serialization.PrivateFormat.PKCS8,
        "encryption_algorithm": serialization.NoEncryption(),
    } | changes
    path.write_bytes(key.private_bytes(**given))
    path.chmod(0o600)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.with_name(f"{path.stem}.public.pem").write_bytes(public)
    return path


def test_a_new_key_can_be_read_by_its_owner_alone_and_is_never_written_over(key: Path) -> None:
    before = key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and b"PRIVATE" not in public_of(key).read_bytes()
    with pytest.raises(Refusal, match="never written over"):
        make_key(key)
    key.with_name("link.pem").symlink_to(key.with_name("nowhere"))
    with pytest.raises(Refusal, match="never written over"):
        make_key(key.with_name("link.pem"))
    with pytest.raises(Refusal, match="cannot be made"):
        make_key(key.with_name("no") / "folder.pem")
    assert key.read_bytes() == before and key_id(read_public(public_of(key))) == hashlib.sha256(public_of(key).read_bytes()).hexdigest()


def test_a_signature_is_found_by_the_key_that_made_it_and_signing_again_changes_nothing(version: Version, key: Path) -> None:
    assert check(version) == []
    file = signed(version, key)
    name = key_id(read_public(public_of(key)))
    assert file == version.folder / "signatures" / name / BUNDLE and stat.S_IMODE(file.stat().st_mode) & 0o222 == 0
    assert check(version, public_of(key)) == [signature.Signed(name, True)]
    assert check(version) == [signature.Signed(name, False)]
    before = file.read_bytes()
    assert signed(version, key) == file and file.read_bytes() == before and len(list(file.parent.parent.iterdir())) == 1


def test_what_is_signed_is_every_file_by_an_independent_reading_of_dsse_and_in_toto(version: Version, key: Path) -> None:
    bundle = json.loads(signed(version, key).read_text(encoding="utf-8"))
    envelope = bundle["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"]
    encoded = b" ".join([b"DSSEv1", str(len(kind)).encode(), kind.encode(), str(len(payload)).encode(), payload])
    public = serialization.load_pem_public_key(public_of(key).read_bytes())
    assert isinstance(public, ed25519.Ed25519PublicKey)
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), encoded)
    said = json.loads(payload)
    files = {p.relative_to(version.folder).as_posix(): sha256(p) for p in version.folder.iterdir() if p.is_file()}
    assert {r["name"]: r["digest"] for r in said["predicate"]["resources"]} == files and len(files) == 4
    whole = hashlib.sha256(b"".join(bytes.fromhex(files[name]) for name in sorted(files))).hexdigest()
    assert said["subject"] == [{"name": "toy@1", "digest": {"sha256": whole}}]
    assert [r["name"] for r in said["predicate"]["resources"]] == sorted(files)


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_every_byte_of_a_signature_changed_once_is_refused_with_and_without_its_key(stride: int, version: Version, key: Path) -> None:
    """The short suite takes every seventh byte."""
    file = signed(version, key)
    data, manifest, keys = file.read_bytes(), verify(version.folder), {public_of(key): read_public(public_of(key))}
    file.chmod(0o644)
    for index in range(0, len(data), stride):
        changed = bytearray(data)
        changed[index] ^= 1 << index % 8
        file.write_bytes(changed)
        with pytest.raises(Refusal):
            check_signatures(version.folder, manifest, keys if index % 2 else {})
    for length in range(0, len(data), 7 * stride):
        file.write_bytes(data[:length])
        with pytest.raises(Refusal):
            check_signatures(version.folder, manifest, {})
    file.write_bytes(data + b" ")
    with pytest.raises(Refusal):
        check_signatures(version.folder, manifest, {})
    file.write_bytes(data)
    assert len(check(version)) == 1 and len(data) > 1500


def test_a_signature_by_another_key_does_not_stand_for_the_one_that_was_named(version: Version, key: Path, tmp_path: Path) -> None:
    other = pem(ed25519.Ed25519PrivateKey.generate(), tmp_path / "other.pem")
    assert "signed by nobody" in refused(version, public_of(key))
    signed(version, other)
    assert "a signature by key" in refused(version, public_of(key))
    signed(version, key)
    assert len(check(version, public_of(key), tmp_path / "other.public.pem")) == 2
    mine = version.folder / "signatures" / key_id(read_public(public_of(key))) / BUNDLE
    theirs = version.folder / "signatures" / key_id(read_public(tmp_path / "other.public.pem")) / BUNDLE
    mine.chmod(0o644)
    mine.write_bytes(theirs.read_bytes())  # under the right key's name
    assert "a signature by key" in refused(version, public_of(key))
    forged = json.loads(theirs.read_text(encoding="utf-8"))
    forged["verificationMaterial"]["publicKey"]["hint"] = key_id(read_public(public_of(key)))
    mine.write_text(json.dumps(forged, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    assert "changed after it was written" in refused(version, public_of(key))
    forged["verificationMaterial"]["publicKey"]["rawBytes"] = base64.b64encode(public_of(key).read_bytes()).decode()
    mine.write_text(json.dumps(forged, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    assert "did not sign" in refused(version, public_of(key))


def test_another_versions_signature_is_refused(version: Version, key: Path) -> None:
    second = Version("toy", 2, version.folder.parent / "2")
    toy_version(second.folder, version=2)
    shutil.copytree(signed(version, key).parent.parent, second.folder / "signatures")
    for keys in ((), (public_of(key),)):
        assert "other files than this version's" in refused(second, *keys)


def test_a_version_sealed_anew_under_its_signature_is_refused(version: Version, key: Path) -> None:
    signed(version, key)
    (version.folder / "README.md").write_text("# evil\n", encoding="utf-8")
    with pytest.raises(Refusal, match="bytes that differ"):
        check(version, public_of(key))
    seal(version.folder)
    verify(version.folder)
    for keys in ((), (public_of(key),)):
        assert "other files than this version's" in refused(version, *keys)


def test_odd_things_in_the_folder_of_signatures_are_refused(version: Version, key: Path) -> None:
    signed(version, key)
    folder = version.folder / "signatures"
    for data in (b"", b"{}", b"[]", b"null", b"[" * 10_000, b'{"dsseEnvelope": {"payload": "x"}}', b"\x80\x04.", b'{"a": NaN}', b" " * (9 * 2**20)):
        (folder / "odd").mkdir()
        (folder / "odd" / BUNDLE).write_bytes(data)
        assert "signature" in refused(version)
        shutil.rmtree(folder / "odd")
    (folder / "file").write_bytes(b"x")
    assert "unreadable" in refused(version, public_of(key))
    (folder / "file").unlink()
    (folder / "empty").mkdir()
    assert "unreadable" in refused(version)
    (folder / "empty").rmdir()
    (folder / ".stage-host-1-0").mkdir()  # somebody is signing
    assert len(check(version)) == 1


def test_keys_that_are_none_weak_encrypted_or_open_to_others_are_refused(key: Path, tmp_path: Path) -> None:
    weak = pem(rsa.generate_private_key(public_exponent=65537, key_size=1024), tmp_path / "rsa.pem")
    odd = pem(ec.generate_private_key(ec.SECP256K1()), tmp_path / "k1.pem")
    locked = pem(ed25519.Ed25519PrivateKey.generate(), tmp_path / "locked.pem", encryption_algorithm=serialization.BestAvailableEncryption(b"x"))
    (tmp_path / "none.pem").write_bytes(b"\x80\x04.")
    swept = 0
    for path in (weak, odd, locked, tmp_path / "none.pem", tmp_path / "missing.pem", tmp_path, public_of(key)):
        with pytest.raises(Refusal):
            read_private(path)
        swept += 1
    for path in (tmp_path / "rsa.public.pem", tmp_path / "k1.public.pem", tmp_path / "none.pem", tmp_path / "missing.pem", tmp_path, key):
        with pytest.raises(Refusal):
            read_public(path)
        swept += 1
    key.chmod(0o640)
    with pytest.raises(Refusal, match="chmod 600"):
        read_private(key)
    assert swept == 13


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_ec_keys_sign_as_model_transparency_expects(curve: Any, version: Version, tmp_path: Path) -> None:
    key = pem(ec.generate_private_key(curve), tmp_path / "ec.pem")
    file = signed(version, key)
    assert [s.named for s in check(version, tmp_path / "ec.public.pem")] == [True]
    envelope = json.loads(file.read_text(encoding="utf-8"))["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    public = serialization.load_pem_public_key((tmp_path / "ec.public.pem").read_bytes())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    algorithm = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[curve.key_size]
    public.verify(
        base64.b64decode(envelope["signatures"][0]["sig"]), b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload), ec.ECDSA(algorithm)
    )


def test_model_transparency_itself_verifies_what_an_ec_key_signed(version: Version, tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="pip install model-signing pyopenssl")
    key = pem(ec.generate_private_key(ec.SECP256R1()), tmp_path / "ec.pem")
    file = signed(version, key)
    command = [sys.executable, "-m", "model_signing", "verify", "key", version.folder, "--signature", file, "--public_key", tmp_path / "ec.public.pem"]
    assert subprocess.run(list(map(str, command)), check=False, capture_output=True).returncode == 0
    (version.folder / "README.md").write_text("# evil\n", encoding="utf-8")
    assert subprocess.run(list(map(str, command)), check=False, capture_output=True).returncode != 0


# --- the commands --------------------------------------------------------------------------------------------------


def run(*words: str | Path) -> str:
    """What a command printed, on one line. Raises what it raised."""
    app = typer.Typer()
    for command in COMMANDS:
        app.command()(command)
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0
    return " ".join(done.output.split())


def test_the_commands_make_a_key_sign_and_verify_and_say_what_was_checked_in_numbers(version: Version, tmp_path: Path) -> None:
    store, key, public = version.folder.parent.parent, tmp_path / "team.pem", tmp_path / "team.public.pem"
    assert "signatures none" in run("verify", "toy@1", "--store", store)
    with pytest.raises(Refusal, match="signed by nobody"):
        run("sign", "--new-key", key)
        run("verify", "toy@1", "--store", store, "--key", public)
    assert "signed toy@1 by key" in run("sign", "toy@1", "--key", key, "--store", store)
    assert "1 by keys that you did not name, which proves nothing" in run("verify", "toy@1", "--store", store)
    said = run("verify", "toy@1", "--store", store, "--key", public)
    assert "4 of 4 files" in said and "2 tensors" in said and "16 numbers, all finite" in said and "valid, by 1 of the keys you named" in said
    facts = json.loads(run("verify", version.folder, "--key", public, "--json"))
    assert facts["signatures"] == [{"key": key_id(read_public(public)), "named": True}] and facts["files"] == 5 and facts["log_entries"] == 0
    for words in (
        ("sign",),
        ("sign", "toy@1", "--store", store),
        ("sign", "toy@1", "--new-key", tmp_path / "x.pem"),
        ("sign", "toy@1", "--key", public, "--store", store),
    ):
        with pytest.raises(Refusal):
            run(*words)


def test_nothing_broken_is_ever_signed(version: Version, key: Path) -> None:
    store = version.folder.parent.parent
    (version.folder / "README.md").write_text("# changed\n", encoding="utf-8")
    with pytest.raises(Refusal, match="bytes that differ"):
        run("sign", "toy@1", "--key", key, "--store", store)
    (version.folder / "evil.py").write_text("", encoding="utf-8")
    seal(version.folder)
    with pytest.raises(Refusal, match="may hold code"):
        run("sign", "toy@1", "--key", key, "--store", store)
    (version.folder / "evil.py").unlink()
    seal(version.folder, {**FACTS, "version": 2})
    with pytest.raises(Refusal, match="another version in its place"):
        run("sign", "toy@1", "--key", key, "--store", store)
    assert not (version.folder / "signatures").exists()


def test_a_log_that_does_not_hang_together_is_refused(version: Version) -> None:
    home = version.folder.parent
    append(home, 0, "promote", 1, "production", "me", "it is good")
    append(home, 1, "retire", 1, None, "me", "it is not")
    assert "log 2 entries" in run("verify", "toy@1", "--store", home.parent)
    entry = home / "log" / "000001.json"
    entry.chmod(0o644)
    entry.write_text(entry.read_text(encoding="utf-8").replace("it is good", "it was good"), encoding="utf-8")
    with pytest.raises(Refusal, match="restore the log"):
        run("verify", "toy@1", "--store", home.parent)
