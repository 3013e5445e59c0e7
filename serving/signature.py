"""The signature of a packaged model: who says that these files are the model of that run.

`register` makes it, `build` and `deploy` look before they release, the server before it loads.  It is a signature by
an elliptic key as OpenSSF Model Signing v1.0 has it: ``model.sig`` beside the package's manifest, a Sigstore bundle
with an in-toto statement in a DSSE envelope, which ``model_signing verify key`` accepts too.  Written with
`cryptography` alone; docs/serving.md says why.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from contracts.errors import DataError
from serving.model import MANIFEST_FILE, checked_manifest, manifest_sha256
from serving.model_keys import Keys, algorithm, fingerprint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

SIGNATURE_FILE = "model.sig"
_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_IN_TOTO = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_HOW = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
_AGAIN = "fetch it again; if that is no help, train it again"


@dataclass(frozen=True)
class Signed:
    """What the owner of a key says: that the package of `subject` is these files.

    `subject` is ``model@run``, `files` name -> SHA-256, `key` the fingerprint of the key.
    """

    subject: str
    files: Mapping[str, str]
    key: str


def subject(model: str, run_id: str) -> str:
    """Return what a signature is of: one run's model, so that no other's package can stand in its place."""
    return f"{model}@{run_id}"


def check(folder: Path, of: str, keys: Keys) -> Signed:
    """Return what was signed of a package, once its manifest is found to be that one.

    The manifest holds the hash of every other file, which `serving.model.checked_manifest` compares: so nothing else is
    read here, and it is not parsed before it is known to be the signer's.

    Raises
    ------
    DataError
        It is not signed, or by no key of these, or another package was signed.
    ConfigError
        There is no package.
    """
    sha256 = manifest_sha256(folder)
    try:
        bundle = (folder / SIGNATURE_FILE).read_bytes()
    except OSError:
        raise DataError(f"the model package of {of} is not signed: it has no {SIGNATURE_FILE}", remedy=_AGAIN) from None
    return verify(bundle, of, sha256, keys)


def verify(bundle: bytes, of: str, sha256: str, keys: Keys) -> Signed:
    """Return what a signature says, once it is found to be of the package with this hash; see `check`."""
    signed = opened(bundle, of, keys)
    if signed.subject != of:
        raise DataError(f"the model package of {of} bears the signature of {signed.subject}", remedy=_AGAIN)
    if signed.files.get(MANIFEST_FILE) != sha256:
        raise DataError(f"the model package of {of} is not the one that was signed", remedy=_AGAIN)
    return signed


def opened(bundle: bytes, of: str, keys: Keys) -> Signed:
    """Return what a bundle says, once its signature holds; `of` is for messages alone.

    Raises
    ------
    DataError
        It is no such bundle, or no key of these made it.
    """
    from cryptography.exceptions import InvalidSignature

    refused = f"the signature of {of}"
    try:
        outer = json.loads(bundle)
        envelope, key = outer["dsseEnvelope"], str(outer["verificationMaterial"]["publicKey"]["hint"])
        payload = base64.b64decode(envelope["payload"], validate=True)
        (signature,) = (base64.b64decode(each["sig"], validate=True) for each in envelope["signatures"])
        if (outer["mediaType"], envelope["payloadType"]) != (_BUNDLE, _IN_TOTO):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{refused} is damaged, or of another format", remedy=_AGAIN) from None
    if key not in keys:
        raise DataError(
            f"{refused} is by key {key[:16]!r}, which is not trusted here",
            remedy="add its public key to the trusted ones (docs/serving.md), or train again",
        )
    try:
        keys[key].verify(signature, _encoded(payload), algorithm(keys[key].curve))
    except InvalidSignature:
        raise DataError(f"{refused} does not hold", remedy=_AGAIN) from None
    return _said(json.loads(payload), key, refused)


def sign(folder: Path, of: str, key: EllipticCurvePrivateKey) -> bytes:
    """Return the bundle by which a key's owner says that a package is that of `of`.

    Raises
    ------
    DataError
        A file of it is not what the manifest says.
    """
    files = {MANIFEST_FILE: manifest_sha256(folder), **checked_manifest(folder).files}
    names = sorted(files, key=PurePosixPath)
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": of, "digest": {"sha256": _root(files[name] for name in names)}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {**_HOW, "ignore_paths": [SIGNATURE_FILE]},
            "resources": [{"name": name, "algorithm": "sha256", "digest": files[name]} for name in names],
        },
    }
    payload = json.dumps(statement).encode()
    signature = key.sign(_encoded(payload), algorithm(key.curve))
    bundle = {
        "mediaType": _BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": fingerprint(key.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _IN_TOTO,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle).encode()


def _encoded(payload: bytes) -> bytes:
    """Return what is signed of a DSSE envelope (https://github.com/secure-systems-lab/dsse, protocol.md)."""
    return b"DSSEv1 %d %s %d %s" % (len(_IN_TOTO), _IN_TOTO.encode(), len(payload), payload)


def _said(statement: Any, key: str, refused: str) -> Signed:
    """Read a statement that a key of ours has signed; it may still be about other things."""
    try:
        said = statement["predicate"]
        how = {name: said["serialization"][name] for name in ("method", "hash_type", "allow_symlinks")}
        if (statement["_type"], statement["predicateType"]) != (_STATEMENT, _PREDICATE) or how != _HOW:
            raise ValueError
        files = {each["name"]: each["digest"] for each in said["resources"] if each["algorithm"] == "sha256"}
        (about,) = statement["subject"]
        if about["digest"]["sha256"] != _root(each["digest"] for each in said["resources"]):
            raise ValueError
        return Signed(str(about["name"]), files, key)
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{refused} says nothing of a model's files") from None


def _root(digests: Iterable[str]) -> str:
    """Return the hash of all hashes, which is what the statement's subject names."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()
