"""A version's making in others' words: an in-toto Statement v1 with SLSA Provenance v1.  For `retrain audit export`.

From the ledger alone, so that what MLflow or the store lost is still told; unsigned, for whoever signs it in their way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from contracts.errors import ConfigError
from contracts.outcomes import State
from contracts.references import LedgerEntry
from steps.archive import Archive
from steps.lifecycle import first_transition, moment_text

STATEMENT = "https://in-toto.io/Statement/v1"
PROVENANCE = "https://slsa.dev/provenance/v1"
BUILD = "tag:retrain,2026:training/v1"
BUILDER = "tag:retrain,2026:pipeline"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Json = dict[str, Any]


def statement(model: str, history: Sequence[LedgerEntry]) -> Json:
    """Return what the ledger says of how a version was made, by its entries, oldest first.

    Its subject is the package, by the hash of its manifest, which holds the hash of every file.

    Raises
    ------
    ConfigError
        The version was never registered or never judged, so no entry has that hash.
    """
    registered = first_transition(history)
    if registered is None:
        raise ConfigError(f"{model}: no entry registered that version", remedy="name a version that a run registered")
    package = next((str(e.evidence["artifact_sha256"]) for e in history if "artifact_sha256" in e.evidence), "")
    if not package:
        raise ConfigError(
            f"the ledger has no hash of the package of version {registered.version}",
            remedy="versions that promote judged have one",
        )
    known = registered.evidence
    return {
        "_type": STATEMENT,
        "subject": [{"name": f"{model}@{registered.version}", "digest": {"sha256": package}}],
        "predicateType": PROVENANCE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD,
                "externalParameters": {
                    "pipeline": model,
                    "pipeline_sha256": known.get("pipeline_sha256", ""),
                    "candidate": known.get("candidate", ""),
                    "parameters": known.get("parameters", {}),
                },
                "resolvedDependencies": list(_dependencies(known)),
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"retrain": str(known.get("code_version", ""))}},
                "metadata": {"invocationId": registered.workflow, "finishedOn": moment_text(registered.at)},
                "byproducts": list(_byproducts(history)),
            },
        },
    }


def provenance(archive: Archive, name: str, at: datetime | None = None) -> Json:
    """Return the statement of the version that `name` names, as the ledger would have made it at a moment.

    Raises
    ------
    ConfigError
        The ledger does not know it, or knew too little of it then.
    """
    history = archive.ledger.history(archive.model, archive.version(name, at), at)
    if not history:
        when = "did not know it then" if at else "does not know it"
        raise ConfigError(f"{archive.model}@{name}: the ledger {when}", remedy="name a version that a run registered")
    return statement(archive.model, history)


def _dependencies(known: Json) -> Iterator[Json]:
    """What it was made from: data, split, transform, code, libraries."""
    for name, uri, sha256 in (
        ("dataset", known.get("dataset", ""), known.get("dataset_sha256", "")),
        ("split", known.get("split", ""), known.get("split_sha256", "")),
        ("transform", "", known.get("transform_sha256", "")),
        ("modules of the user", "", known.get("user_code", "")),
        ("lock file", "", known.get("lock_sha256", "")),
    ):
        if _SHA256.fullmatch(str(sha256)):
            yield {"name": name, **({"uri": uri} if uri else {}), "digest": {"sha256": sha256}}
    if _COMMIT.fullmatch(str(known.get("code_commit", ""))):
        yield {"name": "retrain", "digest": {"gitCommit": known["code_commit"]}}


def _byproducts(history: Sequence[LedgerEntry]) -> Iterator[Json]:
    """What was decided on it since: each entry by its id, with who, when and why; a gate's report by its hash."""
    for entry in history:
        if isinstance(entry.state, State):
            yield {
                "name": f"ledger entry {entry.number}: {entry.state.value}",
                "digest": {"sha256": entry.id},
                "annotations": {"by": entry.by, "at": moment_text(entry.at), "reason": entry.reason},
            }
            if (sha256 := entry.evidence.get("report_sha256")) and entry.evidence.get("report"):
                yield {"name": "gate report", "uri": entry.evidence["report"], "digest": {"sha256": sha256}}
