"""The ledger of a cluster, looked at from outside: its heads, whether its chains hold, what a version was made of.

Called by `audit` with a namespace.  Signatures are checked where the answer arrives, by a key that was pinned there.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from contracts import names
from contracts.access import ASK, AUDIT
from contracts.errors import ConfigError, Finding
from contracts.references import LedgerEntry
from contracts.settings import variable
from workflows.cluster.connection import Namespace
from workflows.cluster.errand import answer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from steps.audit.heads import Kept

_HEADS = """
import json
from contracts.settings import load_settings
from steps.ledger import Ledger

ledger = Ledger(load_settings().ledger.get_secret_value())
print(json.dumps(patiently(ledger.heads)))
"""
_VERIFY = """
import json
from contracts.settings import load_settings
from steps.ledger import Ledger

ledger = Ledger(load_settings().ledger.get_secret_value())
heads = {int(number): id for number, id in json.loads(sys.argv[2]).items()}
found = patiently(lambda: ledger.verify(sys.argv[1], heads=heads))
print(json.dumps([finding.model_dump(mode="json") for finding in found]))
"""
_KEPT = """
from contracts.settings import load_settings
from steps.audit.heads import kept
from steps.storage import Storage

settings = load_settings()
print(patiently(lambda: kept(Storage(settings), settings.audit_heads)).model_dump_json())
"""
_EXPORT = """
import json
from datetime import datetime
from contracts.settings import load_settings
from steps.archive import Archive
from steps.audit.attestation import provenance

moment = [*map(datetime.fromisoformat, sys.argv[2:])]
print(json.dumps(patiently(lambda: provenance(*Archive.named(load_settings(), sys.argv[1]), *moment))))
"""
_ENTRIES = """
import json
from datetime import datetime
from contracts.settings import load_settings
from steps.archive import entries_of

moment = [*map(datetime.fromisoformat, sys.argv[2:])]
found = patiently(lambda: entries_of(load_settings(), sys.argv[1], *moment))
print(json.dumps([entry.model_dump(mode="json") for entry in found]))
"""


def heads(namespace: Namespace) -> dict[str, tuple[int, str]]:
    """Return the number and id of each model's newest entry; raises as `errand`."""
    found = answer(namespace, ASK, _HEADS)
    return {model: (int(number), str(key)) for model, (number, key) in found.items()}


def verify(namespace: Namespace, model: str, signed: Mapping[int, str]) -> list[Finding]:
    """Return what is wrong with a model's chain, held against ids that were signed; raises as `errand`."""
    found = answer(namespace, ASK, _VERIFY, model, json.dumps(signed))
    return [Finding.model_validate(finding) for finding in found]


def kept(namespace: Namespace) -> Kept:
    """Return the signed heads that the platform keeps; raises as `errand`.  Whose they are is the caller's to check."""
    from steps.audit.heads import Kept

    return Kept.model_validate(answer(namespace, ASK, _KEPT))


def key(namespace: Namespace) -> Ed25519PrivateKey:
    """Return the key of the platform's signer, which an administrator of its namespace may read.

    Raises
    ------
    ConfigError
        There is none, or it may not be read.
    """
    from steps.audit.key import read_private

    name, field = names.STAGE_SECRET.format(stage=AUDIT), variable("audit_key")
    data = (namespace.get("Secret", name) or {}).get("data") or {}
    if field not in data:
        raise ConfigError(
            f"namespace {namespace.namespace} has no key in {name}", remedy="name the namespace of the platform's pods"
        )
    return read_private(base64.b64decode(data[field]), f"{field} of {name}")


def entries(namespace: Namespace, what: str, at: datetime | None = None) -> list[LedgerEntry]:
    """Return the ledger's entries, as `steps.archive.entries_of` does; raises as `errand`."""
    found = answer(namespace, ASK, _ENTRIES, what, *_moment(at))
    return [LedgerEntry.model_validate(entry) for entry in found]


def export(namespace: Namespace, reference: str, at: datetime | None = None) -> dict[str, Any]:
    """Return the statement of how a version was made; raises as `errand`."""
    found: dict[str, Any] = answer(namespace, ASK, _EXPORT, reference, *_moment(at))
    return found


def _moment(at: datetime | None) -> list[str]:
    return [at.isoformat()] if at else []
