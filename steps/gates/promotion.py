"""The promotion gate: may this version serve, given what serves now?  Pure; called by `promote`.

Every check is made, whatever the ones before it say; docs/gates.md explains each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from contracts.base import format_duration
from contracts.metrics import METRICS
from contracts.outcomes import Promotion, Verdict
from contracts.pipeline.gates import Bootstrap, Comparison, PromotionGate
from contracts.reports import Check, Interval
from steps.gates.bounds import Measurement, check, check_threshold, number, overall
from steps.gates.statistics import MIN_GROUPS, interval, resample
from steps.metrics import Judged, score_judged


@dataclass(frozen=True)
class Difference:
    """Challenger less champion, signed so that more is better, on the same rows."""

    challenger: float
    champion: float
    gain: float
    interval: Interval | None
    groups: int | None = None
    """So many groups were resampled; None: rows were."""


@dataclass(frozen=True)
class Champion:
    """What serves now, as far as it could be measured."""

    version: int
    age: timedelta
    refusals: tuple[str, ...] | None = ()
    """How the challenger refuses requests that it accepts; None: its signature can't be read."""
    contract: int = 1
    rows: int = 0
    """Rows in neither model's train or validation side."""
    difference: Difference | None = None
    """None: too few rows, or not scored."""
    not_scored: str = ""
    """Why it could not be scored."""
    latency_ms: float | None = None


@dataclass(frozen=True)
class Evidence:
    """All that the gate decides on.  `thresholds` stand in the order of the policy's."""

    thresholds: tuple[Measurement, ...]
    calibration_error: Measurement | None
    size_mib: float
    latency_ms: float | None
    contract: int = 1
    champion: Champion | None = None
    """None: nothing serves, only the absolute checks apply."""
    non_finite: int = 0


@dataclass(frozen=True)
class Decision:
    """The answer, what was looked at in order, and why."""

    promotion: Promotion
    checks: tuple[Check, ...]
    reason: str


def decide(evidence: Evidence, gate: PromotionGate, bootstrap: Bootstrap) -> Decision:
    """Judge a challenger.

    `bootstrap` says how the absolute thresholds are decided; the comparison has its own.  One check that rejects is a
    rejection, else one in doubt leaves it inconclusive: in both cases the champion stays.
    """
    checks = tuple(_checks(evidence, gate, bootstrap))
    verdict, reason = overall(checks)
    if verdict is Verdict.PASSED:
        reason = reason or "the policy asks for nothing"
        if evidence.champion is None:
            reason = f"nothing serves yet; {reason}"
    promotion = {
        Verdict.PASSED: Promotion.APPROVED,
        Verdict.REJECTED: Promotion.REJECTED,
        Verdict.INCONCLUSIVE: Promotion.INCONCLUSIVE,
    }[verdict]
    return Decision(promotion, checks, reason)


def compare(challenger: Judged, champion: Judged, comparison: Comparison) -> Difference:
    """Measure both models on the same rows, with the same draws (paired bootstrap; of the challenger's groups)."""
    metric, bootstrap = comparison.metric, comparison.bootstrap
    sign = 1.0 if METRICS[metric].greater_is_better else -1.0
    mine, its = score_judged(challenger, metric), score_judged(champion, metric)
    drawn, against = resample([challenger, champion], [metric], bootstrap)
    found = interval(sign * drawn[metric] + -sign * against[metric], bootstrap)
    return Difference(mine, its, sign * (mine - its), found, challenger.group_count)


def _checks(evidence: Evidence, gate: PromotionGate, bootstrap: Bootstrap) -> Iterator[Check]:
    champion = evidence.champion
    if evidence.non_finite:
        said = f"the model answers no number for {evidence.non_finite} test rows"
        yield Check(name="finite answers", verdict=Verdict.REJECTED, value=evidence.non_finite, max=0, reason=said)
    else:
        for threshold, measured in zip(gate.thresholds, evidence.thresholds, strict=True):
            yield check_threshold(threshold, measured, bootstrap)
        if gate.max_calibration_error is not None and evidence.calibration_error is not None:
            # Resampling inflates this error (it is a sum of absolute values), so the point decides, not the interval.
            bound = gate.max_calibration_error
            yield check("calibration_error", evidence.calibration_error, maximum=bound, decide="point")
    if gate.max_size_mib is not None:
        yield _at_most("size", evidence.size_mib, gate.max_size_mib, "MiB")
    if gate.latency is not None and evidence.latency_ms is not None:
        if gate.latency.max_ms is not None:
            yield _at_most("latency", evidence.latency_ms, gate.latency.max_ms, "ms a row")
        if gate.latency.max_ratio is not None and champion is not None:
            yield _latency_ratio(evidence.latency_ms, champion, gate.latency.max_ratio)
    if champion is not None:
        yield _compatibility(evidence.contract, champion)
        if gate.comparison is not None and not evidence.non_finite:
            yield _comparison(champion, gate.comparison)


def _at_most(name: str, value: float, bound: float, unit: str) -> Check:
    kept = value <= bound
    said = f"{name} {number(value)} {unit} {'<=' if kept else '>'} {bound:g}"
    return Check(name=name, verdict=Verdict.PASSED if kept else Verdict.REJECTED, value=value, max=bound, reason=said)


def _latency_ratio(latency_ms: float, champion: Champion, bound: float) -> Check:
    name = "latency ratio"
    if not champion.latency_ms:
        said = f"{name} not judged: version {champion.version} does not run in this process"
        return Check(name=name, verdict=None, max=bound, reason=said)
    return _at_most(name, latency_ms / champion.latency_ms, bound, f"x that of version {champion.version}")


def _compatibility(contract: int, champion: Champion) -> Check:
    name = "input compatibility"
    if champion.refusals is None:
        said = f"what version {champion.version} accepts can't be read, so it stays"
        return Check(name=name, verdict=Verdict.INCONCLUSIVE, reason=said)
    if not champion.refusals:
        said = f"accepts every request that version {champion.version} accepts"
        return Check(name=name, verdict=Verdict.PASSED, reason=said)
    what = f"what version {champion.version} accepts: {'; '.join(champion.refusals)}"
    if contract > champion.contract:
        said = f"contract is raised from {champion.contract} to {contract}, so it may refuse {what}"
        return Check(name=name, verdict=Verdict.PASSED, reason=said)
    said = f"refuses {what} (release.contract is {contract}; raise it when callers are ready)"
    return Check(name=name, verdict=Verdict.REJECTED, reason=said)


def _comparison(champion: Champion, comparison: Comparison) -> Check:
    metric, found, stays = comparison.metric, champion.difference, f"version {champion.version} stays"
    rule, why_rule = rule_for(comparison, champion.age)
    least = 0.0 if rule == "superior" else -comparison.margin
    verdict, value, said = Verdict.INCONCLUSIVE, None, ""
    if champion.not_scored:
        said = f"{champion.not_scored}: {stays}"
    elif champion.rows < comparison.min_rows:
        said = f"{champion.rows} rows are unseen by both, fewer than {comparison.min_rows}: {stays}"
    elif found is None or not math.isfinite(found.gain):
        said = f"{metric} has no value on the {champion.rows} rows unseen by both: {stays}"
    else:
        verdict, value = _weigh(found, least, comparison), found.gain
        tie = ", a tie" if found.gain == 0 else ""
        end = {Verdict.PASSED: "", Verdict.REJECTED: f"{tie}: {stays}", Verdict.INCONCLUSIVE: f", not shown: {stays}"}
        said = (
            f"{metric} {number(found.challenger)} against {number(found.champion)} of version {champion.version}, "
            f"better by {_signed(found)} on {champion.rows} rows{_groups(found)} unseen by both; "
            f"{why_rule} asks for more than {least:g}{end[verdict]}"
        )
    return Check(
        name="comparison",
        verdict=verdict,
        value=value,
        interval=found.interval if found else None,
        min=least,
        rows=champion.rows,
        reason=said,
    )


def _weigh(found: Difference, least: float, comparison: Comparison) -> Verdict:
    """Passed when the gain is more than `least`, by interval or point; what only equals it keeps the champion."""
    low = high = found.gain
    if comparison.bootstrap.decide == "interval":
        if found.interval is None:
            return Verdict.INCONCLUSIVE
        low, high = found.interval.low, found.interval.high
    if low > least:
        return Verdict.PASSED
    return Verdict.REJECTED if high <= least else Verdict.INCONCLUSIVE


def _signed(found: Difference) -> str:
    said = f"{found.gain:+.4f}"
    return said + f" [{found.interval.low:+.4f}, {found.interval.high:+.4f}]" if found.interval else said


def _groups(found: Difference) -> str:
    if found.groups is None:
        return ""
    if found.interval is None and found.groups < MIN_GROUPS:
        return f" of {found.groups} groups (without an interval: fewer than {MIN_GROUPS})"
    return f" of {found.groups} groups (resampled)"


def rule_for(comparison: Comparison, age: timedelta) -> tuple[Literal["superior", "non_inferior"], str]:
    """Return the rule that applies to a champion of that age, and how to call it."""
    after = comparison.non_inferior_after
    if comparison.rule == "superior" and after is not None and age > after:
        return "non_inferior", f"non_inferior (the champion is older than {format_duration(after)})"
    return comparison.rule, comparison.rule
