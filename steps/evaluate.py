"""Judge a run's model on its test rows by the validation gate.  Called as the `evaluate` stage; changes no version.

A rejection is an outcome, not an error: the verdict goes on, and the workflow ends without registering.
"""

from __future__ import annotations

import math

from contracts.metrics import METRICS
from contracts.names import tag
from contracts.reports import ValidationReport
from contracts.stages import Evaluate
from steps.assessment import Assessment, assess, policy_sha256, report_bytes
from steps.gates import validation
from steps.metrics import score_judged
from steps.own_gates import own_columns, own_numbers
from steps.world import World

METRIC_PREFIX = "test."
REPORT = "validation.json"


def evaluate(inputs: Evaluate.Inputs, *, world: World) -> Evaluate.Outputs:
    """Return the verdict, after writing the report to the store and the numbers to the MLflow run.

    The same run under the same policy gives the same report, byte for byte.

    Raises
    ------
    ConfigError, DataError
        See `steps.assessment.assess`.
    """
    policy = world.pipeline.gates.policy(world.settings.environment)
    gate = policy.validation
    columns = [*(rule.column for rule in gate.slices), *own_columns(gate.thresholds)]
    subject = assess(world, inputs.run_id, columns)
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
    metrics = _test_metrics(subject)
    report = ValidationReport(
        run_id=inputs.run_id,
        pipeline=world.pipeline.name,
        environment=world.settings.environment,
        verdict=decision.verdict,
        reason=decision.reason,
        checks=decision.checks,
        metrics={name: value if math.isfinite(value) else None for name, value in metrics.items()},
        test_rows=subject.judged.rows,
        dataset_sha256=subject.references.dataset_sha256,
        split_sha256=subject.references.split_sha256,
        policy_sha256=policy_sha256(policy),
    )
    uri = world.storage.write(report_uri(world, inputs.run_id), report_bytes(report))
    _record(world, subject, report, metrics)
    return Evaluate.Outputs(
        verdict=decision.verdict, report=uri, summary=f"{decision.verdict.value}: {decision.reason}"
    )


def report_uri(world: World, run_id: str) -> str:
    """Return where the validation report of a run lies."""
    return world.storage.uri("reports", run_id, REPORT)


def _test_metrics(subject: Assessment) -> dict[str, float]:
    rows = subject.judged
    if validation.non_finite(rows):
        return {}
    fitting = [m for m in METRICS.values() if rows.task in m.tasks]
    return {m.name: score_judged(rows, m.name) for m in fitting}


def _record(world: World, subject: Assessment, report: ValidationReport, metrics: dict[str, float]) -> None:
    run = subject.run
    named = {METRIC_PREFIX + name: value for name, value in metrics.items() if math.isfinite(value)}
    # MLflow keeps every value that is ever logged; a stage that is run again adds none.
    if new := {name: value for name, value in named.items() if run.metrics.get(name) != value}:
        world.tracking.log(run.run_id, {}, new)
    world.tracking.log_json(run.run_id, f"gates/{REPORT}", report_bytes(report))
    world.tracking.set_tags(run.run_id, {tag("validation"): report.verdict.value})
