"""The ledger of a cluster, looked at from outside: its heads, whether its chains hold, what a version was made of.

Called by `audit` with a namespace.  Keys and signed heads stay with whoever asks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from contracts.access import ASK
from contracts.errors import Finding
from workflows.cluster.connection import Namespace
from workflows.cluster.errand import answer

_HEADS = """
import json
from contracts.settings import load_settings
from steps.ledger import Ledger

ledger = Ledger(load_settings().ledger.get_secret_value())
look = lambda: {model: [entry.number, entry.id] for model in ledger.models() if (entry := ledger.head(model))}
print(json.dumps(patiently(look)))
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
_EXPORT = """
import json
from contracts.errors import ConfigError
from contracts.settings import load_settings
from steps.archive import Archive
from steps.attestation import statement

def look():
    archive, name = Archive.named(load_settings(), sys.argv[1])
    history = archive.ledger.history(archive.model, archive.version(name))
    if not history:
        raise ConfigError(f"the ledger does not know {sys.argv[1]}", remedy="it was registered by other means")
    return statement(archive.model, history)

print(json.dumps(patiently(look)))
"""


def heads(namespace: Namespace) -> dict[str, tuple[int, str]]:
    """Return the number and id of each model's newest entry; raises as `errand`."""
    found = answer(namespace, ASK, _HEADS)
    return {model: (int(number), str(key)) for model, (number, key) in found.items()}


def verify(namespace: Namespace, model: str, signed: Mapping[int, str]) -> list[Finding]:
    """Return what is wrong with a model's chain, held against ids that were signed; raises as `errand`."""
    found = answer(namespace, ASK, _VERIFY, model, json.dumps(signed))
    return [Finding.model_validate(finding) for finding in found]


def export(namespace: Namespace, reference: str) -> dict[str, Any]:
    """Return the statement of how a version was made; raises as `errand`."""
    found: dict[str, Any] = answer(namespace, ASK, _EXPORT, reference)
    return found
