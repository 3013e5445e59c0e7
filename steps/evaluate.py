"""Judge a run's model on its test rows by the validation gate.  Called as the `evaluate` stage; changes no version.

A rejection is an outcome, not an error: the verdict goes on, and the workflow ends without registering.
"""

from __future__ import annotations

import hashlib
import math

from contracts.metrics import metrics_of
from contracts.names import tag
from contracts.reports import ValidationReport
from contracts.stages import Evaluate
from serving.model import checked_manifest
from steps import own_packages
from steps.gates import validation
from steps.judging.assessment import Assessment, Trained, assess, policy_sha256, report_bytes, trained
from steps.judging.own_gates import own_columns, own_numbers
from steps.metrics import score_judged
from steps.reuse import keep, recall, reuse_key
from steps.tracking import RunRecord
from steps.world import World

METRIC_PREFIX = "test."
REPORT = "validation.json"
SECTIONS = ("name", "table", "target", "split", "gates")
MODULES = (
    "contracts.metrics", "contracts.reports", "serving.estimators", "serving.model", "serving.transform",
    "serving.user_code", "steps.judging.assessment", "steps.evaluate", "steps.gates.bounds", "steps.gates.statistics",
    "steps.gates.validation", "steps.metrics", "steps.judging.own_gates", "steps.splitting",
)  # fmt: skip


def evaluate(inputs: Evaluate.Inputs, *, world: World) -> Evaluate.Outputs:
    """Return the verdict, after writing the report to the store and the numbers to the MLflow run.

    The same run under the same policy gives the same report, byte for byte: one that was kept is taken as it is, once
    the model has been found whole.

    Raises
    ------
    ConfigError, DataError
        See `steps.judging.assessment.assess`.
    """
    subject = trained(world, inputs.run_id)
    key = _key(inputs, subject, world)
    report = recall(world, Evaluate.name, key, ValidationReport)
    if report is None:
        report = _judged(inputs, subject, world)
        keep(world, Evaluate.name, key, report)
    written = report_bytes(report)
    uri = world.storage.write(report_uri(world, inputs.run_id), written)
    _record(world, subject.run, report)
    return Evaluate.Outputs(
        verdict=report.verdict, report=uri, report_sha256=hashlib.sha256(written).hexdigest(),
        summary=f"{report.verdict.value}: {report.reason}",
    )  # fmt: skip


def _key(inputs: Evaluate.Inputs, subject: Trained, world: World) -> str:
    checked_manifest(subject.folder)
    read = {
        "run": inputs.run_id,
        "package": subject.package_sha256,
        "dataset": subject.references.dataset_sha256,
        "split": subject.references.split_sha256,
        "code": world.user_code(inputs.code).sha256,
        "packages": own_packages.lock_sha256(own_packages.current(world.settings)),
        "environment": world.settings.environment,
    }
    return reuse_key(world, Evaluate.name, SECTIONS, MODULES, read)


def _judged(inputs: Evaluate.Inputs, found: Trained, world: World) -> ValidationReport:
    policy = world.pipeline.gates.policy(world.settings.environment)
    gate = policy.validation
    columns = [*(rule.column for rule in gate.slices), *own_columns(gate.thresholds)]
    subject = assess(world, found, columns)
    groups = [
        validation.grouped(
            subject.rows.column(rule.column).to_pylist(),
            rule,
            sensitive=world.pipeline.table.column(rule.column).sensitive,
        )
        for rule in gate.slices
    ]
    own = {} if validation.non_finite(subject.judged) else own_numbers(world, inputs.code, gate.thresholds, subject)
    decision = validation.decide(validation.collect(subject.judged, gate, groups, own), gate)
    return ValidationReport(
        run_id=inputs.run_id,
        pipeline=world.pipeline.name,
        environment=world.settings.environment,
        verdict=decision.verdict,
        reason=decision.reason,
        checks=decision.checks,
        metrics={name: value if math.isfinite(value) else None for name, value in _test_metrics(subject).items()},
        test_rows=subject.judged.rows,
        dataset_sha256=subject.references.dataset_sha256,
        split_sha256=subject.references.split_sha256,
        policy_sha256=policy_sha256(policy),
    )


def report_uri(world: World, run_id: str) -> str:
    """Return where the validation report of a run lies."""
    return world.storage.uri("reports", run_id, REPORT)


def _test_metrics(subject: Assessment) -> dict[str, float]:
    rows = subject.judged
    if validation.non_finite(rows):
        return {}
    return {name: score_judged(rows, name) for name in metrics_of(rows.task)}


def _record(world: World, run: RunRecord, report: ValidationReport) -> None:
    named = {METRIC_PREFIX + name: value for name, value in report.metrics.items() if value is not None}
    # MLflow keeps every value that is ever logged; a stage that is run again adds none.
    if new := {name: value for name, value in named.items() if run.metrics.get(name) != value}:
        world.tracking.log(run.run_id, {}, new)
    world.tracking.log_json(run.run_id, f"gates/{REPORT}", report_bytes(report))
    world.tracking.set_tags(run.run_id, {tag("validation"): report.verdict.value})
