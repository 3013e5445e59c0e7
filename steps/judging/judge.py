"""Measure a version and what serves for the promotion gate, and ask it.  Called by `promote`; writes nothing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from threadpoolctl import threadpool_limits

from contracts.metrics import Task
from contracts.outcomes import Promotion
from contracts.pipeline.gates import GatePolicy, PromotionGate, Threshold
from contracts.references import LedgerEntry
from contracts.reports import PromotionReport
from contracts.settings import variable
from contracts.stages import Promote
from serving.model import PackagedModel
from steps.gates import promotion
from steps.gates.bounds import measure
from steps.gates.latency import interleaved
from steps.gates.validation import non_finite
from steps.judging.assessment import Assessment, assess, policy_sha256, report_bytes, trained
from steps.judging.champion import Measured, measure_champion
from steps.judging.own_gates import own_columns, own_numbers
from steps.lifecycle import CLAIMED
from steps.review import contents
from steps.review.page import render
from steps.signing import proof
from steps.world import World

LATENCY_ROWS = 100
"""Test rows that take turns in the latency check."""


@dataclass(frozen=True)
class Judged:
    """What the gate decided, why, and on which evidence for the ledger."""

    decision: Promotion
    reason: str
    report: bytes
    evidence: Mapping[str, Any]
    page: bytes = b""
    """What a person looks at, HTML."""


def judge(world: World, inputs: Promote.Inputs, run_id: str, serving: LedgerEntry | None) -> Judged:
    """Measure a version and what serves, ask the gate, and return what it says.

    Raises
    ------
    ConfigError, DataError
        See `promote`; the version's package is not what was signed.
    """
    policy = world.pipeline.gates.policy(world.settings.environment)
    subject = trained(world, run_id)
    proof(subject.folder, run_id, world=world)  # loading runs what the package holds, with promote's own rights
    challenger = assess(world, subject, own_columns(policy.promotion.thresholds))
    champion = measure_champion(world, challenger, serving, policy.promotion, world.now()) if serving else None
    bad = non_finite(challenger.judged)
    own = {} if bad else own_numbers(world, inputs.code, policy.promotion.thresholds, challenger)
    measured = collect(challenger, champion, policy, own)
    decision = promotion.decide(measured, policy.promotion, policy.validation.bootstrap)
    report = PromotionReport(
        model=world.pipeline.name,
        version=inputs.version,
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
        requested_by=requester(inputs),
    )
    evidence = {**_evidence(report), "artifact_sha256": challenger.package_sha256}
    timed = replace(champion, evidence=measured.champion) if champion and measured.champion else None
    page = render(contents.collect(world, report, challenger, timed, measured.latency_ms))
    return Judged(decision.promotion, decision.reason, report_bytes(report), evidence, page)


def collect(
    challenger: Assessment, champion: Measured | None, policy: GatePolicy, own: Mapping[str, float]
) -> promotion.Evidence:
    """Measure what the gate decides on, as far as the policy asks; `own` is what the user's functions answered."""
    gate, rows = policy.promotion, challenger.judged
    bad = non_finite(rows)
    calibration = None
    if gate.max_calibration_error is not None and rows.task is not Task.REGRESSION and not bad:
        wanted = [Threshold(metric="calibration_error", max=gate.max_calibration_error)]
        (calibration,) = measure(rows, wanted, policy.validation.bootstrap)
    timed = _latencies(challenger, champion, gate)
    return promotion.Evidence(
        thresholds=() if bad else measure(rows, gate.thresholds, policy.validation.bootstrap, own=own),
        calibration_error=calibration,
        size_mib=contents.size_mib(challenger.folder),
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


def requester(inputs: Promote.Inputs) -> str:
    """Return who or what asked for the release, as the run says: whoever submits it may say any name."""
    return inputs.requested_by or os.environ.get(variable("user"), "") or "pipeline"


def _evidence(report: PromotionReport) -> dict[str, Any]:
    said = report.model_dump(mode="json", exclude={"model", "version", "run_id", "reason", "requested_by", "workflow"})
    return {**said, "from": report.champion, "to": report.version, CLAIMED: report.requested_by}
