"""What made a version, who or what let it through, what serves it now.  Called by `retrain lineage`; changes nothing.

The ledger says what happened; MLflow and the store add what they still hold.  Where something was removed, the answer
comes from the ledger's evidence and a note says so.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import AwareDatetime, Field, ValidationError

from contracts.base import Contract
from contracts.errors import StageError
from contracts.names import ALIAS_PRODUCTION, TAG_PREFIX
from contracts.outcomes import Note, State
from contracts.references import DATASET_MANIFEST, DatasetManifest, LedgerEntry
from contracts.reports import Check, ValidationReport
from steps.approvals import ROLLBACK_FROM, given_by_person
from steps.archive import Archive
from steps.lifecycle import CLAIMED
from steps.own_packages import OwnPackage, lock_sha256, read_lock
from steps.registry import RunFacts
from steps.signing import EVIDENCE
from steps.tracking import PACKAGES

_DECIDED = (State.APPROVED, State.REJECTED, State.EXPIRED, State.SUPERSEDED)
R = TypeVar("R", ValidationReport, DatasetManifest)


class Dataset(Contract):
    """What it learned from."""

    uri: str
    sha256: str
    rows: int | None = None
    schema_sha256: str
    sources: tuple[str, ...] = ()
    as_of: AwareDatetime | None = None


class Code(Contract):
    """What ran: retrain itself and the user's own modules."""

    version: str
    commit: str
    user_code: str = Field(description="Content hash of the user's modules, empty without any.")
    user_commit: str = ""
    lock_sha256: str
    packages: tuple[OwnPackage, ...] = Field((), description="What the user's modules had beside retrain's libraries.")
    packages_sha256: str = Field("", description="Hash of the lock of those.")
    steps_image: str = Field("", description="Image that the stages ran in, by digest; empty at the desk.")
    pipeline_sha256: str
    architecture: str = ""


class GateAnswer(Contract):
    """What one gate decided, on which numbers."""

    decision: str
    reason: str
    checks: tuple[Check, ...] = ()
    report: str = Field(description="URI of the whole report.")


class Approval(Contract):
    """Who or what let it through."""

    word: Literal["gate", "person", "rollback"] = Field(
        description="Whose it was: the promotion gate's, a person's on a request, or a person's to go back."
    )
    by: str = Field(description="That person; with the gate's, the workflow that asked it.")
    claimed_requester: str = Field("", description="With the gate's: who asked for the run, as it says; not verified.")
    at: AwareDatetime
    reason: str
    workflow: str
    entry: str


class Signature(Contract):
    """By which key its package was signed."""

    key: str = Field(description="Fingerprint: SHA-256 of the public key's PEM.")
    sha256: str = Field(description="Of the signature, model.sig beside the package's manifest.")


class Removal(Contract):
    """That what it was made of is not kept any longer; where none of it is needed by another version, it is gone."""

    at: AwareDatetime
    by: str
    reason: str
    policy: dict[str, Any]
    archive: str = Field("", description="Where copies were put first; empty: nowhere.")
    entry: str


class Serving(Contract):
    """What serves it now."""

    since: AwareDatetime
    entry: str
    image: str = ""
    url: str = ""
    answers: bool | None = Field(None, description="Whether the server was seen with this version; None: not asked.")


class Lineage(Contract):
    """The answer to: what made this version, and who let it through?"""

    model: str
    version: int
    state: State | None
    run_id: str
    workflows: tuple[str, ...] = Field((), description="Workflows that registered, judged or released it, in order.")
    dataset: Dataset
    split_sha256: str
    transform_sha256: str
    code: Code
    candidate: str
    parameters: dict[str, str]
    metrics: dict[str, float]
    validation: GateAnswer | None = None
    promotion: GateAnswer | None = None
    approval: Approval | None = None
    signature: Signature | None = None
    serving: Serving | None = None
    removal: Removal | None = None
    history: tuple[LedgerEntry, ...] = ()
    notes: tuple[str, ...] = ()


def lineage(archive: Archive, name: str, at: datetime | None = None) -> Lineage:
    """Answer for the version that `name` names; see `Archive.version`.

    With a moment, as the ledger would have answered then: its state, what served, who had let it through.

    Raises
    ------
    ConfigError
        There is no such version.
    """
    version = archive.version(name, at)
    about = archive.ledger.history(archive.model, version, at)
    history = [entry for entry in about if isinstance(entry.state, State)]
    run_id = history[0].run_id if history else archive.registry.run_of(version)
    notes = [] if history else ["not in the ledger" + (" then" if at else ": registered by other means")]
    run = archive.registry.run(run_id)
    if run is None:
        notes.append(f"MLflow has not the run {run_id} any more; references are from the ledger")
        run = RunFacts({}, {}, {})
    known = _references(history, run)
    parameters = dict(run.params) or (history[0].evidence.get("parameters", {}) if history else {})
    dataset = _dataset(archive, known, notes)
    if name == ALIAS_PRODUCTION and at is None and (alias := archive.registry.alias(ALIAS_PRODUCTION)) != version:
        notes.append(
            f"MLflow's alias production names {alias or 'no version'}: moved by other means, or not yet mended"
        )
    return Lineage(
        model=archive.model,
        version=version,
        state=State(history[-1].state) if history else None,
        run_id=run_id,
        workflows=tuple(dict.fromkeys(entry.workflow for entry in history)),
        dataset=dataset,
        split_sha256=known.get("split_sha256", ""),
        transform_sha256=known.get("transform_sha256", ""),
        code=Code(
            version=known.get("code_version", ""),
            commit=known.get("code_commit", ""),
            user_code=known.get("user_code", ""),
            user_commit=known.get("user_commit", ""),
            lock_sha256=known.get("lock_sha256", ""),
            packages=_packages(archive, run_id, known, notes),
            packages_sha256=known.get("packages_sha256", ""),
            steps_image=known.get("steps_image", ""),
            pipeline_sha256=known.get("pipeline_sha256", ""),
            architecture=parameters.get("architecture", ""),
        ),
        candidate=known.get("candidate", ""),
        parameters=dict(sorted(parameters.items())),
        metrics=dict(sorted(run.metrics.items())),
        validation=_validation(archive, history, known, notes),
        promotion=_promotion(history),
        approval=_approval(history),
        signature=_signature(history),
        serving=_serving(archive, history, notes, at),
        removal=_removal(about),
        history=tuple(about),
        notes=tuple(notes),
    )


def _references(history: Sequence[LedgerEntry], run: RunFacts) -> dict[str, str]:
    tags = {key.removeprefix(TAG_PREFIX): value for key, value in run.tags.items() if key.startswith(TAG_PREFIX)}
    evidence = history[0].evidence if history else {}
    # What was entered when it was registered is chained; a tag can be edited on MLflow's page.
    return tags | {key: value for key, value in evidence.items() if isinstance(value, str)}


def _dataset(archive: Archive, known: Mapping[str, str], notes: list[str]) -> Dataset:
    uri = known.get("dataset", "")
    manifest = _read(archive, f"{uri}/{DATASET_MANIFEST}", DatasetManifest, notes) if uri else None
    rows = known.get("rows", "")
    return Dataset(
        uri=uri,
        sha256=known.get("dataset_sha256", ""),
        rows=manifest.rows if manifest else int(rows) if rows.isdigit() else None,
        schema_sha256=known.get("schema_sha256", "") or (manifest.schema_sha256 if manifest else ""),
        sources=manifest.sources if manifest else (),
        as_of=manifest.as_of if manifest else None,
    )


def _packages(archive: Archive, run_id: str, known: Mapping[str, str], notes: list[str]) -> tuple[OwnPackage, ...]:
    if not (wanted := known.get("packages_sha256", "")):
        return ()
    with tempfile.TemporaryDirectory(prefix="retrain-") as folder:
        kept = archive.registry.fetch(run_id, PACKAGES, Path(folder))
        lock = kept.read_text(encoding="utf-8") if kept else ""
    if lock_sha256(lock) != wanted:
        notes.append(f"MLflow's copy of the packages' lock {'is not the one of the run' if lock else 'is gone'}")
        return ()
    return read_lock(lock)


def _validation(
    archive: Archive, history: Sequence[LedgerEntry], known: Mapping[str, str], notes: list[str]
) -> GateAnswer | None:
    uri = known.get("report", "")
    if not uri:
        return None
    expected, kept = known.get("report_sha256", ""), _bytes(archive, uri, notes)
    if kept is not None and expected and hashlib.sha256(kept).hexdigest() != expected:
        notes.append(f"{uri} is not the report that the ledger has the hash of; the numbers are from the ledger")
    said = history[0].evidence.get("validation") if history else None
    if isinstance(said, dict):  # entries of before had the verdict alone
        return GateAnswer(
            decision=said["verdict"], reason=said["reason"], report=uri,
            checks=tuple(Check.model_validate(check) for check in said["checks"]),
        )  # fmt: skip
    report = _parsed(uri, kept, ValidationReport, notes)
    if report is None:
        return GateAnswer(decision="passed", reason=history[0].reason, report=uri)
    return GateAnswer(decision=report.verdict.value, reason=report.reason, checks=report.checks, report=uri)


def _promotion(history: Sequence[LedgerEntry]) -> GateAnswer | None:
    entry = _last(history, *_DECIDED)
    if entry is None:
        return None
    # What ended an approval (superseded, expired) has no checks of its own: those of the gate still hold.
    judged = next((e for e in reversed(history) if "checks" in e.evidence), entry)
    # From the entry, which is chained; the report in the store is written anew when the version is judged again.
    return GateAnswer(
        decision=str(entry.evidence.get("decision", entry.state.value)),
        reason=entry.reason,
        checks=tuple(Check.model_validate(check) for check in judged.evidence.get("checks", ())),
        report=str(judged.evidence.get("report", "")),
    )


def _approval(history: Sequence[LedgerEntry]) -> Approval | None:
    entry = _last(history, State.APPROVED)
    if entry is None:
        return None
    word: Literal["gate", "person", "rollback"] = "gate"
    if given_by_person(entry):
        word = "rollback" if ROLLBACK_FROM in entry.evidence else "person"
    # before the evidence said so, such an entry was by whoever the run named
    claimed = str(entry.evidence.get(CLAIMED, entry.by)) if word == "gate" else ""
    return Approval(
        word=word, by=entry.by, claimed_requester=claimed, at=entry.at, reason=entry.reason, workflow=entry.workflow,
        entry=entry.id,
    )  # fmt: skip


def _signature(history: Sequence[LedgerEntry]) -> Signature | None:
    """Return the latest that was looked at: by register, or by deploy, which a later one may have made good."""
    found = next((e.evidence[EVIDENCE] for e in reversed(history) if EVIDENCE in e.evidence), None)
    return Signature.model_validate(found) if found else None


def _removal(about: Sequence[LedgerEntry]) -> Removal | None:
    entry = next((entry for entry in about if entry.state is Note.REMOVED), None)
    if entry is None:
        return None
    said = entry.evidence
    return Removal(
        at=entry.at, by=entry.by, reason=entry.reason, policy=said.get("policy", {}), archive=said.get("archive", ""),
        entry=entry.id,
    )  # fmt: skip


def _serving(
    archive: Archive, history: Sequence[LedgerEntry], notes: list[str], at: datetime | None
) -> Serving | None:  # fmt: skip
    entry, releasing = _last(history, State.SERVING), _last(history, State.RELEASING)
    if entry is None or entry != history[-1]:
        return None
    version, url = entry.version, str(entry.evidence.get("url", ""))
    image = str(releasing.evidence.get("image", "")) if releasing else ""
    serving = Serving(since=entry.at, entry=entry.id, image=image, url=url)
    if at is not None:
        return serving  # what answers now says nothing of then
    if archive.settings.deploy_target != "process":
        return _deployed(archive, serving, version, notes)
    if not archive.settings.server_home:
        return serving
    from steps.rollout.process import Server

    try:
        status = Server.of(archive.settings, archive.model).status()
    except StageError as error:
        notes.append(error.message)
        return serving
    if status is None or status.spec is None or status.server_pid is None:
        notes.append("no server of it runs here; `retrain run` brings it back")
        return serving.model_copy(update={"answers": False})
    if status.spec.version != version:
        notes.append(f"the server here answers with version {status.spec.version}")
    return serving.model_copy(update={"url": status.url, "answers": status.spec.version == version})


def _deployed(archive: Archive, serving: Serving, version: int, notes: list[str]) -> Serving:
    """Say what the cluster's Deployment has servers of, where this process may ask."""
    from steps.rollout.kubernetes import serving_version

    try:
        answers = serving_version(archive.settings, archive.model)
    except StageError as error:
        notes.append(f"its Deployment was not looked at: {error.message}")
        return serving
    if answers != version:
        notes.append(f"the Deployment has {f'servers of version {answers}' if answers else 'no server that is ready'}")
    return serving.model_copy(update={"answers": answers == version})


def _last(history: Sequence[LedgerEntry], *states: State) -> LedgerEntry | None:
    return next((entry for entry in reversed(history) if entry.state in states), None)


def _read(archive: Archive, uri: str, kind: type[R], notes: list[str]) -> R | None:
    return _parsed(uri, _bytes(archive, uri, notes), kind, notes)


def _bytes(archive: Archive, uri: str, notes: list[str]) -> bytes | None:
    if archive.storage.exists(uri):
        return archive.storage.read(uri)
    notes.append(f"{uri} is not in the store any more")
    return None


def _parsed(uri: str, data: bytes | None, kind: type[R], notes: list[str]) -> R | None:
    try:
        return None if data is None else kind.model_validate_json(data)
    except ValidationError:
        notes.append(f"{uri} has another form than this retrain reads")
        return None
