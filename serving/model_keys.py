"""The public keys by which models are trusted.  Used by `serving.signature`; whoever starts a server names them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from contracts.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurve, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

Keys = Mapping[str, "EllipticCurvePublicKey"]
"""Fingerprint -> key."""
_HASHES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
"""Curve -> hash, as OpenSSF's bundles have them."""


def trusted(text: str) -> Keys:
    """Read the setting `model_keys`: the base64 of public keys (DER, the body of a PEM), separated by spaces.

    Raises
    ------
    ConfigError
        There is none, or one of them is no key that models are signed by.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    keys = {}
    for number, word in enumerate(text.split(), 1):
        try:
            key = load_der_public_key(base64.b64decode(word, validate=True))
            if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in _HASHES:
                raise ValueError
        except (ValueError, UnsupportedAlgorithm):
            raise ConfigError(
                f"trusted key {number} is no public key of the curve P-256, P-384 or P-521",
                remedy="it is the body of a PEM, without first and last line and without line breaks",
            ) from None
        keys[fingerprint(key)] = key
    if not keys:
        raise ConfigError("no key is trusted, so no model is", remedy="docs/serving.md says where the keys are from")
    return keys


def public_text(key: EllipticCurvePublicKey) -> str:
    """Return a key as `trusted` reads it."""
    return body(pem(key))


def body(text: str) -> str:
    """Return what stands between first and last line of a PEM, in one."""
    return "".join(text.splitlines()[1:-1])


def fingerprint(key: EllipticCurvePublicKey) -> str:
    """Return the name of a key: the SHA-256 of its PEM, as OpenSSF's bundles have it."""
    return hashlib.sha256(pem(key).encode()).hexdigest()


def algorithm(curve: EllipticCurve) -> ECDSA:
    """Return how a key of a curve signs."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    return ECDSA(getattr(hashes, _HASHES[curve.name])())


def pem(key: EllipticCurvePublicKey | Ed25519PublicKey) -> str:
    """Return a public key as PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
