"""Keys in files: a private one for its owner alone, made at first need, and its public half beside it as .pub.

Called by `steps.audit.key`, whose key signs heads of the ledger, and for the desk's own key, which signs models.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from contracts.errors import ConfigError
from serving.model_keys import pem

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    Private = TypeVar("Private", Ed25519PrivateKey, EllipticCurvePrivateKey)


def private_key(path: Path, kind: type, make: Callable[[], Private]) -> Private:
    """Return the key of a file, made when there is none; all who make one at once get the same.

    Raises
    ------
    ConfigError
        The file can be read by others, cannot be read or made, or holds no such key.
    """
    from cryptography.hazmat.primitives import serialization as form

    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make(path, make().private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
        for_its_owner(path)
        found: Private = read_private(path.read_bytes(), str(path), kind)
        public, text = path.with_suffix(".pub"), public_text(found)
        if not public.exists() or public.read_text(encoding="ascii", errors="replace") != text:
            public.write_text(text, encoding="ascii")
    except OSError as error:
        raise ConfigError(f"cannot use the key {path}: {error.strerror}", remedy="check path and permissions") from None
    return found


def for_its_owner(path: Path) -> bool:
    """Say whether a file is there, if nobody else can read it.

    Raises
    ------
    ConfigError
        Others can, or nobody knows.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"{path} can be read by others", remedy=f"chmod 600 {path}")
    return True


def read_private(data: bytes, where: str, kind: type) -> Any:
    """Return the private key that PEM holds; `where` is what a message calls it.

    Raises
    ------
    ConfigError
        It holds no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        found = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # no PEM; one with a password; a curve that is not known
        found = None
    if not isinstance(found, kind):
        name = kind.__name__.removesuffix("PrivateKey").replace("EllipticCurve", "elliptic-curve")
        raise ConfigError(f"{where} holds no {name} key in PEM")
    return found


def public_text(key: Private) -> str:
    """Return the public half as PEM."""
    return pem(key.public_key())


def _make(path: Path, data: bytes) -> None:
    """Write a file whole and for its owner alone, unless somebody else was faster."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-") as part:  # made with mode 0600
        part.write(data)
        part.flush()
        os.fsync(part.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(part.name, path)
