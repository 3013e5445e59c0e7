"""Signed models in the store: `register` signs, `build` and `deploy` look whether what lies there is what was signed.

The form of a signature and how it is verified stand in `serving.signature`, since the server does it too.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.errors import ConfigError, DataError
from contracts.names import tag
from contracts.settings import Settings, variable
from serving.model import checked_manifest, manifest_sha256
from serving.model_keys import fingerprint, trusted
from serving.signature import SIGNATURE_FILE, check, sign, subject, verify
from steps.keys import read_private
from steps.world import World

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    from steps.tracking import RunRecord

EVIDENCE = "signature"
"""Of ledger entries: the fingerprint of the key and the SHA-256 of the signature file."""


def signing_key(settings: Settings) -> EllipticCurvePrivateKey:
    """Return the key that models are signed by.

    Raises
    ------
    ConfigError
        It is missing, is none, or is not among those that are trusted.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    pem = settings.signing_key.get_secret_value()
    if not pem:
        raise ConfigError(f"{variable('signing_key')} is missing", remedy="docs/serving.md says where it is from")
    key: EllipticCurvePrivateKey = read_private(pem.encode(), variable("signing_key"), EllipticCurvePrivateKey)
    if fingerprint(key.public_key()) not in trusted(settings.model_keys):
        raise ConfigError(
            f"what {variable('signing_key')} signs would not be trusted: its public key is not in "
            f"{variable('model_keys')}",
            remedy="add it there",
        )
    return key


def signed(run: RunRecord, *, world: World) -> dict[str, Any]:
    """See that a run's package bears a signature, made where there is none that holds; return it as evidence.

    Only what was trained is signed: the package whose hash the ledger has, or before its first entry the run.

    Raises
    ------
    DataError
        The package was altered since.
    ConfigError
        See `signing_key`; or nobody knows what was trained.
    """
    of, key = subject(world.pipeline.name, run.run_id), signing_key(world.settings)
    folder = world.tracking.package(run.run_id, world.scratch)
    sha256 = manifest_sha256(folder)
    if sha256 != _trained(run, world):
        raise DataError(f"the model package of {of} is not the one that was trained", remedy="train again")
    kept = folder / SIGNATURE_FILE
    bundle = kept.read_bytes() if kept.is_file() else b""
    try:
        found = verify(bundle, of, sha256, trusted(world.settings.model_keys)).key
    except DataError:
        found, bundle = fingerprint(key.public_key()), sign(folder, of, key)
        world.tracking.log_signature(run.model_uri, bundle)
    return _evidence(found, bundle)


def proof(package: Path, run_id: str, *, world: World) -> dict[str, Any]:
    """Return the signature of a run's package as evidence, once the package, as it was fetched, is what was signed.

    Raises
    ------
    DataError
        It is not signed, by no key that is trusted, or was altered since.
    """
    found = check(package, subject(world.pipeline.name, run_id), trusted(world.settings.model_keys))
    checked_manifest(package)
    return _evidence(found.key, (package / SIGNATURE_FILE).read_bytes())


def _evidence(key: str, bundle: bytes) -> dict[str, Any]:
    return {EVIDENCE: {"key": key, "sha256": hashlib.sha256(bundle).hexdigest()}}


def _trained(run: RunRecord, world: World) -> str:
    """Return the hash of the package that a run trained."""
    model = world.pipeline.name
    entered = [e for e in world.ledger.standing(model).latest.values() if e.run_id == run.run_id]
    for entry in (e for each in entered for e in world.ledger.history(model, each.version)):
        if known := entry.evidence.get("artifact_sha256"):
            return str(known)
    if known := run.tags.get(tag("artifact_sha256")):
        return known
    raise ConfigError(
        f"run {run.run_id} is older than signatures, and nobody knows what it trained", remedy="train again: --no-cache"
    )
