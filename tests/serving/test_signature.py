"""What is served was signed: the format is OpenSSF's, and a server takes nothing that is not its signer's word."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import ConfigError, DataError
from contracts.names import MODEL_KEYS
from contracts.settings import variable
from serving.model import checked_manifest, manifest_sha256
from serving.model_keys import fingerprint, public_text, trusted
from serving.signature import SIGNATURE_FILE, check, sign, verify
from tests.model_packages import KEY, TRUSTED, package, signed

OF = "tiny@r1"
OTHER = ec.generate_private_key(ec.SECP256R1())
HASH = st.text("0123456789abcdef", min_size=64, max_size=64)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return signed(package(tmp_path_factory.mktemp("package") / "package"), OF)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "package")


def test_a_signed_package_is_what_its_signer_says(folder: Path) -> None:
    found = check(folder, OF, trusted(f"{public_text(OTHER.public_key())} {TRUSTED}"))
    assert found.key == fingerprint(KEY.public_key())
    assert found.files.keys() == {"package.json", *checked_manifest(folder).files}


@settings(deadline=None)
@given(of=st.text(), other=st.text(), sha256=HASH)
def test_a_signature_holds_for_its_subject_and_its_package_alone(
    original: Path, of: str, other: str, sha256: str
) -> None:
    bundle, keys, own = sign(original, of, KEY), trusted(TRUSTED), manifest_sha256(original)
    assert verify(bundle, of, own, keys).subject == of
    if other != of:
        with pytest.raises(DataError, match="bears the signature of"):
            verify(bundle, other, own, keys)
    with pytest.raises(DataError, match="is not the one that was signed"):
        verify(bundle, of, sha256, keys)
    with pytest.raises(DataError, match="which is not trusted here"):
        verify(bundle, of, own, trusted(public_text(OTHER.public_key())))


@settings(deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_bit_of_what_is_signed_can_be_turned(original: Path, at: float, bit: int) -> None:
    """In payload and signature; the frame around them says only where they are."""
    bundle = json.loads((original / SIGNATURE_FILE).read_bytes())
    envelope, own = bundle["dsseEnvelope"], manifest_sha256(original)
    for holder, name in ((envelope, "payload"), (envelope["signatures"][0], "sig")):
        whole = holder[name]
        turned = bytearray(base64.b64decode(whole))
        turned[int(at * len(turned))] ^= 1 << bit
        holder[name] = base64.b64encode(turned).decode()
        with pytest.raises(DataError, match="does not hold"):
            verify(json.dumps(bundle).encode(), OF, own, trusted(TRUSTED))
        holder[name] = whole
    verify(json.dumps(bundle).encode(), OF, own, trusted(TRUSTED))


JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)
DEEP = b"[" * 100_000


@settings(deadline=None)
@given(junk=st.binary() | JSON.map(lambda value: json.dumps(value).encode()), value=JSON)
def test_whatever_stands_in_a_signature_is_refused_in_one_line(original: Path, junk: bytes, value: object) -> None:
    whole = json.loads((original / SIGNATURE_FILE).read_bytes())
    for bundle in (junk, DEEP, *(json.dumps(whole | {part: value}).encode() for part in whole)):
        with pytest.raises(DataError, match=r"damaged, or of another format|not trusted here") as refused:
            verify(bundle, OF, manifest_sha256(original), trusted(TRUSTED))
        assert "\n" not in refused.value.message


def test_what_a_trusted_key_signed_of_other_things_is_no_model(folder: Path) -> None:
    """Such as a statement of another type: the key's owner may sign more than models."""
    from serving import signature

    payload = json.dumps(
        {"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://slsa.dev/provenance/v1"}
    )
    bundle = json.loads((folder / SIGNATURE_FILE).read_bytes())
    sig = KEY.sign(signature._encoded(payload.encode()), ec.ECDSA(signature.algorithm(KEY.curve).algorithm))
    bundle["dsseEnvelope"] |= {
        "payload": base64.b64encode(payload.encode()).decode(),
        "signatures": [{"sig": base64.b64encode(sig).decode()}],
    }
    (folder / SIGNATURE_FILE).write_text(json.dumps(bundle))
    with pytest.raises(DataError, match="says nothing of a model's files"):
        check(folder, OF, trusted(TRUSTED))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no key is trusted"),
        ("  \n", "no key is trusted"),
        (f"{TRUSTED} bm9uZQ==", "trusted key 2 is no public key"),
        ("-----BEGIN", "trusted key 1 is no public key"),
        (public_text(ec.generate_private_key(ec.SECP256K1()).public_key()), "trusted key 1"),
    ],
)
def test_keys_that_are_none_are_refused(text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        trusted(text)


# ---- the library of OpenSSF reads what we write, and we read what it writes


@pytest.fixture(scope="module", params=[ec.SECP256R1, ec.SECP384R1, ec.SECP521R1], ids=lambda curve: curve.name)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """A key, and the files of both of its halves."""
    key, folder = ec.generate_private_key(request.param()), tmp_path_factory.mktemp("keys")
    private, public = folder / "key.pem", folder / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return key, private, public


def test_openssf_verifies_what_we_signed_and_finds_a_flipped_byte(folder: Path, pair: tuple[Any, Path, Path]) -> None:
    from model_signing.verifying import Config

    key, _, public = pair
    signed(folder, OF, key)
    library = Config().use_elliptic_key_verifier(public_key=public)
    library.verify(folder, folder / SIGNATURE_FILE)
    flip(folder / "estimator.txt")
    with pytest.raises(ValueError, match=r"Hash mismatch for 'estimator.txt'"):
        library.verify(folder, folder / SIGNATURE_FILE)


def test_we_verify_what_openssf_signed(original: Path, tmp_path: Path, pair: tuple[Any, Path, Path]) -> None:
    """It takes the folder's name for the subject."""
    from model_signing import hashing, signing

    key, private, _ = pair
    folder = shutil.copytree(original, tmp_path / OF, ignore=shutil.ignore_patterns(SIGNATURE_FILE))
    hashes = hashing.Config().use_file_serialization(ignore_paths=[Path(SIGNATURE_FILE)])
    config = signing.Config().use_elliptic_key_signer(private_key=private).set_hashing_config(hashes)
    config.sign(folder, folder / SIGNATURE_FILE)

    keys = trusted(public_text(key.public_key()))
    assert check(folder, OF, keys).key == fingerprint(key.public_key())
    flip(folder / "package.json")
    with pytest.raises(DataError, match="is not the one that was signed"):
        check(folder, OF, keys)


# ---- real servers


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def serve(folder: Path, keys: str = TRUSTED) -> tuple[int, list[str]]:
    """Start a server, end it once it answers; return exit code and log."""
    command = [sys.executable, "-m", "serving", "--package", str(folder), "--name", "tiny", "--version", "1"]
    command += ["--run-id", "r1", "--dataset-sha256", "d" * 64, "--port", "0", "--drain-seconds", "0"]
    environment = os.environ | {MODEL_KEYS: keys}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line.rstrip())
            if " answers" in line:
                process.terminate()
    return process.returncode, lines


def unsigned(folder: Path) -> None:
    (folder / SIGNATURE_FILE).unlink()


def changed_and_hashed_anew(folder: Path) -> None:
    """As somebody who can write to the bucket, and knows the format, would do it."""
    (folder / "example.json").write_text("[]")
    manifest = json.loads((folder / "package.json").read_bytes())
    manifest["files"]["example.json"] = hashlib.sha256(b"[]").hexdigest()
    (folder / "package.json").write_text(json.dumps(manifest))


DEEDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte of the model": (lambda f: flip(f / "estimator.txt"), "estimator.txt differs from its hash"),
    "a flipped byte of the manifest": (lambda f: flip(f / "package.json"), "is not the one that was signed"),
    "another file, hashed anew": (
        changed_and_hashed_anew,
        "is not the one that was signed",
    ),
    "a lock file more": (lambda f: (f / "packages.lock").write_text("evil==1"), "packages.lock, which its manifest"),
    "unsigned": (unsigned, "is not signed: it has no model.sig"),
    "signed by another key": (lambda f: signed(f, OF, OTHER), "which is not trusted here"),
    "signature of another model": (lambda f: signed(f, "tiny@r2"), "bears the signature of tiny@r2"),
    "an empty signature": (lambda f: (f / SIGNATURE_FILE).write_bytes(b""), "is damaged, or of another format"),
    "a folder for a signature": (lambda f: (unsigned(f), (f / SIGNATURE_FILE).mkdir()), "is not signed"),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_a_server_refuses_in_one_line_what_was_not_signed_as_it_is(folder: Path, deed: str) -> None:
    act, says = DEEDS[deed]
    act(folder)
    code, [line] = serve(folder)
    assert code == DataError.row.exit_code
    assert "version 1 does not load: " in line
    assert says in line


def test_the_setting_is_what_a_server_reads() -> None:
    assert variable("model_keys") == MODEL_KEYS


def test_a_server_that_trusts_no_key_serves_nothing(folder: Path) -> None:
    code, [line] = serve(folder, keys="")
    assert code == ConfigError.row.exit_code
    assert "no key is trusted" in line


def test_a_server_takes_what_is_signed(folder: Path) -> None:
    code, lines = serve(folder)
    assert code == 0
    assert any("version 1 of tiny answers" in line for line in lines)
