"""Decide whether a registered version may serve.  Called as the `promote` stage; writes the ledger, trains nothing.

The decision rests on one reading of the ledger and is written after it; when someone else wrote meanwhile, the ledger
is read and the decision made once more.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from threadpoolctl import threadpool_limits

from contracts.metrics import Task
from contracts.outcomes import Promotion, State
from contracts.pipeline.gates import GatePolicy, PromotionGate, Threshold
from contracts.references import LedgerEntry
from contracts.reports import PromotionReport
from contracts.settings import variable
from contracts.stages import Promote
from serving.model import PackagedModel
from steps import lifecycle
from steps.aliases import follow
from steps.assessment import Assessment, assess, policy_sha256, report_bytes
from steps.champion import Measured, measure_champion
from steps.gates import promotion
from steps.gates.bounds import measure
from steps.gates.latency import interleaved
from steps.gates.validation import non_finite
from steps.ledger import LostRace
from steps.world import World

LATENCY_ROWS = 100
"""Test rows that take turns in the latency check."""
_MIB = 2**20


def promote(inputs: Promote.Inputs, *, world: World) -> Promote.Outputs:
    """Return the decision and the ledger entry that holds it.

    Decided once a workflow: run again, it returns what it entered.  A version that serves already is `unchanged`.

    Raises
    ------
    LostRace
        When the ledger moved on twice while this was decided.
    ConfigError, DataError
        When the version, its run, model, dataset or split is not there or not whole.
    """
    try:
        return _decide_once(inputs, world)
    except LostRace:
        world.log.info("the ledger moved on while this was decided; deciding again")
        return _decide_once(inputs, world)


def report_uri(world: World, run_id: str, version: int) -> str:
    """Return where the promotion report of a version lies."""
    return world.storage.uri("reports", run_id, f"promotion-{version}.json")


def _decide_once(inputs: Promote.Inputs, world: World) -> Promote.Outputs:
    model, version = world.pipeline.name, inputs.version
    entries = world.ledger.entries(model)
    serving = lifecycle.standing(entries).serving
    known = next((entry.run_id for entry in entries if entry.version == version and entry.run_id), None)
    run_id = known or world.registry.run_of(version)  # the ledger tells sooner than MLflow opens
    uri = report_uri(world, run_id, version)
    if decided := _decided_here(entries, version, world.workflow):
        return _outputs(Promotion(decided.evidence["decision"]), decided, uri, decided.reason)
    if serving is not None and serving.version == version:
        return _outputs(Promotion.UNCHANGED, serving, uri, f"version {version} serves already")
    if under_way := _released_elsewhere(entries, version):
        return _outputs(Promotion.APPROVED, under_way, uri, f"version {version} was approved and is being released")

    for line in follow(
        world.ledger, world.registry, by=world.workflow, workflow=world.workflow, at=world.now(), may_set=False
    ):
        world.log.warning("%s", line)
        entries = world.ledger.entries(model)
    policy = world.pipeline.gates.policy(world.settings.environment)
    challenger = assess(world, run_id)
    champion = measure_champion(world, challenger, serving, policy.promotion, world.now()) if serving else None
    evidence = collect(challenger, champion, policy)
    decision = promotion.decide(evidence, policy.promotion, policy.validation.bootstrap)
    report = PromotionReport(
        model=model,
        version=version,
        run_id=run_id,
        environment=world.settings.environment,
        workflow=world.workflow,
        champion=serving.version if serving else None,
        champion_run_id=serving.run_id if serving else "",
        decision=decision.promotion,
        reason=decision.reason,
        checks=decision.checks,
        notes=champion.notes if champion else (),
        test_rows=challenger.judged.rows,
        compared_rows=champion.evidence.rows if champion else None,
        dataset_sha256=challenger.references.dataset_sha256,
        split_sha256=challenger.references.split_sha256,
        policy_sha256=policy_sha256(policy),
        requested_by=inputs.requested_by or os.environ.get(variable("user"), "") or "pipeline",
    )
    # The report first: whoever finds the entry finds the report.
    world.storage.write(uri, report_bytes(report))
    entry = world.ledger.append(
        model,
        State.APPROVED if decision.promotion is Promotion.APPROVED else State.REJECTED,
        version=version,
        run_id=run_id,
        workflow=world.workflow,
        by=report.requested_by,
        reason=decision.reason,
        evidence=_evidence(report, uri),
        after=entries[-1] if entries else None,
        at=world.now(),
    )
    world.tracking.log_json(run_id, f"gates/promotion-{version}.json", report_bytes(report))
    return _outputs(decision.promotion, entry, uri, decision.reason)


def collect(challenger: Assessment, champion: Measured | None, policy: GatePolicy) -> promotion.Evidence:
    """Measure what the gate decides on, as far as the policy asks."""
    gate, rows = policy.promotion, challenger.judged
    bad = non_finite(rows)
    calibration = None
    if gate.max_calibration_error is not None and rows.task is not Task.REGRESSION and not bad:
        wanted = [Threshold(metric="calibration_error", max=gate.max_calibration_error)]
        (calibration,) = measure(rows, wanted, policy.validation.bootstrap)
    timed = _latencies(challenger, champion, gate)
    return promotion.Evidence(
        thresholds=() if bad else measure(rows, gate.thresholds, policy.validation.bootstrap),
        calibration_error=calibration,
        size_mib=_size_mib(challenger.folder),
        latency_ms=timed.challenger,
        contract=challenger.model.manifest.contract,
        champion=_with_latency(champion, timed.champion),
        non_finite=bad,
    )


@dataclass(frozen=True)
class _Latencies:
    challenger: float | None = None
    champion: float | None = None


def _latencies(challenger: Assessment, champion: Measured | None, gate: PromotionGate) -> _Latencies:
    if gate.latency is None or challenger.rows.num_rows == 0:
        return _Latencies()
    rows = [challenger.rows.slice(i, 1).combine_chunks() for i in range(min(LATENCY_ROWS, challenger.rows.num_rows))]
    models = {"challenger": _Turns(challenger.model, rows)}
    if champion is not None and champion.model is not None and _reads(champion.model, challenger.rows):
        models["champion"] = _Turns(champion.model, rows)
    # On one thread: OpenMP's barriers would time how busy this machine is, not the model.
    with threadpool_limits(limits=1):
        return _Latencies(**interleaved(models, gate.latency.calls))


class _Turns:
    """Answers the next row at every call."""

    def __init__(self, model: PackagedModel, rows: Sequence[pa.Table]) -> None:
        names = [column.name for column in model.manifest.columns]
        self._model = model
        self._rows: Iterator[pa.Table] = itertools.cycle([row.select(names) for row in rows])

    def __call__(self) -> object:
        return self._model.predict(next(self._rows))


def _reads(model: PackagedModel, rows: pa.Table) -> bool:
    names = [column.name for column in model.manifest.columns]
    if not set(names) <= set(rows.column_names):
        return False
    try:
        model.predict(rows.slice(0, 1).select(names))
    except Exception:  # noqa: BLE001  a champion that does not answer here is not timed; the comparison says why
        return False
    return True


def _with_latency(champion: Measured | None, milliseconds: float | None) -> promotion.Champion | None:
    return None if champion is None else replace(champion.evidence, latency_ms=milliseconds)


def _size_mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / _MIB


def _decided_here(entries: Sequence[LedgerEntry], version: int, workflow: str) -> LedgerEntry | None:
    """Return this workflow's decision on the version, when it was made already."""
    for entry in reversed(entries):
        if entry.version == version and entry.workflow == workflow and "decision" in entry.evidence:
            return entry
    return None


def _released_elsewhere(entries: Sequence[LedgerEntry], version: int) -> LedgerEntry | None:
    """Return the approval of a version whose release is under way or broke off: deploy's to end, not ours to judge."""
    if lifecycle.standing(entries).state(version) is not State.RELEASING:
        return None
    return next(e for e in reversed(entries) if e.version == version and e.state is State.APPROVED)


def _evidence(report: PromotionReport, uri: str) -> dict[str, Any]:
    said = report.model_dump(mode="json", exclude={"model", "version", "run_id", "reason", "requested_by", "workflow"})
    return {**said, "from": report.champion, "to": report.version, "report": uri}


def _outputs(decision: Promotion, entry: LedgerEntry, uri: str, reason: str) -> Promote.Outputs:
    return Promote.Outputs(
        decision=decision, entry=entry.id, report=uri, summary=f"version {entry.version} {decision.value}: {reason}"
    )
