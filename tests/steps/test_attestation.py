"""What is exported is what in-toto and SLSA say a statement is, by their own schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement

from contracts.errors import ConfigError
from contracts.outcomes import Note, State
from contracts.references import LedgerEntry
from steps.audit.attestation import statement
from steps.ledger.chain import chained
from tests.steps.registered import NOW

MADE = {
    "dataset": "file:///store/datasets/d", "dataset_sha256": "d" * 64, "split": "file:///s", "split_sha256": "5" * 64,
    "transform_sha256": "7" * 64, "user_code": "", "lock_sha256": "1" * 64, "code_commit": "c" * 40,
    "code_version": "0.1.0", "pipeline_sha256": "e" * 64, "candidate": "trees", "parameters": {"seed": "7"},
}  # fmt: skip
JUDGED = {"artifact_sha256": "a" * 64, "report": "file:///r.json", "report_sha256": "b" * 64}


def history(*more: tuple[State | Note, dict[str, object]]) -> Iterator[LedgerEntry]:
    last: LedgerEntry | None = None
    for k, (state, evidence) in enumerate([(State.REGISTERED, MADE), *more]):
        last = chained(
            last, model="m", state=state, version=3, run_id="run-3", workflow="w-1", by="ann", reason="why",
            evidence=evidence, at=NOW + timedelta(hours=k),
        )  # fmt: skip
        yield last


def test_a_statement_is_one_by_the_schema_of_in_toto_and_slsa() -> None:
    entries = list(history((State.APPROVED, JUDGED), (State.RELEASING, {}), (Note.ALIAS_MOVED, {"to": 1})))
    said = json.loads(json.dumps(statement("m", entries)))

    # fields that the schemas do not know are refused, and their own checks pass
    whole = json_format.ParseDict(said, statement_pb2.Statement())
    Statement.copy_from_pb(whole).validate()
    provenance = json_format.ParseDict(said["predicate"], provenance_pb2.Provenance())
    for descriptor in (*provenance.build_definition.resolved_dependencies, *provenance.run_details.byproducts):
        ResourceDescriptor.copy_from_pb(descriptor).validate()

    assert [(s.name, dict(s.digest)) for s in whole.subject] == [("m@3", {"sha256": "a" * 64})]
    made_of = {d.name: dict(d.digest) for d in provenance.build_definition.resolved_dependencies}
    assert made_of["dataset"] == {"sha256": "d" * 64}
    assert made_of["retrain"] == {"gitCommit": "c" * 40}
    assert "modules of the user" not in made_of
    decided = [(b.name, b.digest["sha256"]) for b in provenance.run_details.byproducts]
    assert decided == [
        ("ledger entry 1: registered", entries[0].id), ("ledger entry 2: approved", entries[1].id),
        ("gate report", "b" * 64), ("ledger entry 3: releasing", entries[2].id),
    ]  # fmt: skip
    assert provenance.run_details.metadata.invocation_id == "w-1"
    assert provenance.run_details.metadata.finished_on.ToDatetime().isoformat() == "2026-03-01T12:00:00"


def test_what_a_note_said_of_a_version_before_it_was_registered_is_not_how_it_was_made() -> None:
    registered, approved = history((State.APPROVED, JUDGED))
    note = chained(
        None, model="m", state=Note.ALIAS_MOVED, version=3, run_id="", workflow="w-0", by="w-0", reason="moved",
        evidence={"to": 3}, at=NOW,
    )  # fmt: skip
    whole = statement("m", [registered, approved])
    assert statement("m", [note, registered, approved]) == whole
    with pytest.raises(ConfigError, match="no entry registered that version"):
        statement("m", [note])


def test_a_version_that_nobody_judged_has_no_subject() -> None:
    with pytest.raises(ConfigError, match="no hash of the package of version 3"):
        statement("m", list(history()))
