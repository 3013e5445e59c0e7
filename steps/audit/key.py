"""The Ed25519 keys of signed heads: a private one that no stage is given, public ones that a verifier pinned.

Called by `retrain audit` and `steps.audit.sign`.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.errors import ConfigError
from steps import keys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_PUBLIC = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


def private_key(path: Path) -> Ed25519PrivateKey:
    """Return the key of a file; see `steps.keys.private_key`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return keys.private_key(path, Ed25519PrivateKey, Ed25519PrivateKey.generate)


def read_private(data: bytes, where: str) -> Ed25519PrivateKey:
    """Return the key that PEM holds; see `steps.keys.read_private`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    found: Ed25519PrivateKey = keys.read_private(data, where, Ed25519PrivateKey)
    return found


def public_keys(path: Path) -> list[Ed25519PublicKey]:
    """Return the public keys of a file, one PEM block after the other: whoever changed keys keeps the earlier ones.

    Raises
    ------
    ConfigError
        There is none.
    """
    try:
        found = read_public(path.read_bytes(), str(path))
    except OSError:
        found = []
    if not found:
        raise ConfigError(
            f"{path} holds no Ed25519 public key in PEM", remedy="`retrain audit key` prints it, of a cluster with -n"
        )
    return found


def read_public(data: bytes, where: str) -> list[Ed25519PublicKey]:
    """Return the public keys in PEM: beside a private key, those of the keys before it.

    Raises
    ------
    ConfigError
        One of them is no Ed25519 key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    blocks, own = _PUBLIC.findall(data), []
    with suppress(ValueError):
        own = [key for block in blocks if isinstance(key := load_pem_public_key(block), Ed25519PublicKey)]
    if len(own) < len(blocks):
        raise ConfigError(f"{where} holds a public key in PEM that is no Ed25519 key")
    return own


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return a short name of a public key: the first 16 characters of its SHA-256."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]
