"""The Ed25519 keys of signed heads: a private one that no stage is given, public ones that a verifier pinned.

Called by `retrain audit` and `steps.audit_signing`.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_PUBLIC = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


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
        path.with_suffix(".pub").write_text(public_text(key), encoding="ascii")
        return key
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} can be read by others", remedy=f"chmod 600 {path}")
    return read_private(path.read_bytes(), str(path))


def read_private(data: bytes, where: str) -> Ed25519PrivateKey:
    """Return the key that PEM holds; `where` is what a message calls it.

    Raises
    ------
    ConfigError
        It holds no such key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        found = load_pem_private_key(data, password=None)
    except (ValueError, TypeError):
        found = None
    if not isinstance(found, Ed25519PrivateKey):
        raise ConfigError(f"{where} holds no Ed25519 key in PEM")
    return found


def public_keys(path: Path) -> list[Ed25519PublicKey]:
    """Return the public keys of a file, one PEM block after the other: whoever changed keys keeps the earlier ones.

    Raises
    ------
    ConfigError
        There is none.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        found = [load_pem_public_key(block) for block in _PUBLIC.findall(path.read_bytes())]
    except (OSError, ValueError):
        found = []
    keys = [key for key in found if isinstance(key, Ed25519PublicKey)]
    if not keys or len(keys) < len(found):
        raise ConfigError(
            f"{path} holds no Ed25519 public key in PEM", remedy="`retrain audit key` prints it, of a cluster with -n"
        )
    return keys


def public_text(key: Ed25519PrivateKey) -> str:
    """Return the public half as PEM."""
    from cryptography.hazmat.primitives import serialization as form

    data = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    return data.decode("ascii")


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return a short name of a public key: the first 16 characters of its SHA-256."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]
