"""Heads of the ledger, signed and kept where the database's owner can't reach: what shows a history written anew.

Called by `retrain audit` with a key that no stage is given.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, ValidationError

from contracts.base import Contract, Sha256
from contracts.errors import ConfigError, Finding
from steps.ledger_chain import canonical
from steps.storage import Storage

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


class Head(Contract):
    """The newest entry of a model at some moment."""

    model: str
    number: int
    id: Sha256
    signed_at: AwareDatetime


class SignedHead(Contract):
    """A head and the Ed25519 signature of its canonical JSON."""

    head: Head
    signature: str
    key: str
    """The first 16 characters of the public key's SHA-256."""

    def holds(self, key: Ed25519PublicKey) -> bool:
        """Whether the key's owner signed this head."""
        from cryptography.exceptions import InvalidSignature

        try:
            key.verify(base64.b64decode(self.signature), _payload(self.head))
        except (InvalidSignature, ValueError):
            return False
        return True


def private_key(path: Path) -> Ed25519PrivateKey:
    """Return the key of a file, made when there is none, for its owner alone; its public half lies beside it as .pub.

    Raises
    ------
    ConfigError
        The file can be read by others, or holds no such key.
    """
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not path.exists():
        key = Ed25519PrivateKey.generate()
        text = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(path, "wb", opener=lambda name, flags: os.open(name, flags | os.O_EXCL, 0o600)) as file:
            file.write(text)
        public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
        path.with_suffix(".pub").write_bytes(public)
        return key
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} can be read by others", remedy=f"chmod 600 {path}")
    try:
        found = form.load_pem_private_key(path.read_bytes(), password=None)
    except ValueError:
        found = None
    if not isinstance(found, Ed25519PrivateKey):
        raise ConfigError(f"{path} holds no Ed25519 key in PEM")
    return found


def public_key(path: Path) -> Ed25519PublicKey:
    """Return the public key of a file.

    Raises
    ------
    ConfigError
        There is none.
    """
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        found = form.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, Ed25519PublicKey):
        raise ConfigError(f"{path} holds no Ed25519 public key in PEM", remedy="`retrain audit sign` makes one")
    return found


def sign(head: Head, key: Ed25519PrivateKey) -> SignedHead:
    """Return a head with its signature."""
    signature = base64.b64encode(key.sign(_payload(head))).decode()
    return SignedHead(head=head, signature=signature, key=fingerprint(key.public_key()))


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return a short name of a public key."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def keep(storage: Storage, folder: str, signed: SignedHead) -> str:
    """Write a signed head beside those before it and return its URI; a name is written once."""
    uri = f"{folder.rstrip('/')}/{signed.head.model}/{signed.head.number:09d}-{signed.head.id[:12]}.json"
    if not storage.exists(uri):
        storage.write(uri, signed.model_dump_json(indent=1).encode())
    return uri


def signed_heads(
    model: str, kept: Mapping[str, bytes], key: Ed25519PublicKey | None
) -> tuple[dict[int, str], list[Finding]]:
    """Return the ids that were signed of a model's entries, by number, and what proves nothing.

    Parameters
    ----------
    kept
        Name -> content of each signed head; one whose signature does not hold proves nothing and is named.
    key
        Whose signatures hold; None: there are no heads.
    """
    found: list[Finding] = []
    heads: dict[int, str] = {}
    for name, data in sorted(kept.items()):
        try:
            signed = SignedHead.model_validate(json.loads(data))
        except (ValidationError, ValueError):
            found.append(Finding(where=name, what="is no signed head"))
            continue
        if key is None or not signed.holds(key):
            found.append(Finding(where=name, what="its signature does not hold"))
        elif signed.head.model == model:
            heads[signed.head.number] = signed.head.id
    return heads, found


def _payload(head: Head) -> bytes:
    return canonical(head.model_dump(mode="json")).encode()
