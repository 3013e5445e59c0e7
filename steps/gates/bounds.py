"""Hold a measured number against a bound.  Pure; called by both gates for everything that has a `min` or `max`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from types import MappingProxyType
from typing import Literal

import numpy as np

from contracts.metrics import Task
from contracts.outcomes import Verdict
from contracts.pipeline.gates import Bootstrap, Threshold
from contracts.reports import Check, Interval
from steps.gates.statistics import MIN_GROUPS, Sample, Tails, interval, resample
from steps.metrics import Judged, score_judged

Decide = Literal["interval", "point"]


@dataclass(frozen=True)
class Measurement:
    """A number with its interval, on so many rows.  NaN: it has no value; `why_not` says why.

    `groups` is the number of groups that were resampled; None: rows were.
    """

    value: float
    interval: Interval | None
    rows: int
    why_not: str = ""
    groups: int | None = None


def measure(
    judged: Judged,
    thresholds: Sequence[Threshold],
    bootstrap: Bootstrap,
    tails: Tails | None = None,
    own: Mapping[str, float] = MappingProxyType({}),
) -> tuple[Measurement, ...]:
    """Compute each threshold's number on all rows, and its interval; all from the same draws.

    Parameters
    ----------
    tails
        Those of `steps.gates.statistics.interval`.
    own
        What the user's functions answered, by their reference.
    """
    ours = iter(_measure(judged, [threshold for threshold in thresholds if not threshold.function], bootstrap, tails))
    return tuple(
        Measurement(own[threshold.function], None, judged.rows, "the function gave none")
        if threshold.function
        else next(ours)
        for threshold in thresholds
    )


def check_threshold(threshold: Threshold, measured: Measurement, bootstrap: Bootstrap) -> Check:
    """Judge one threshold: a user's function by the point, everything else as `bootstrap` says."""
    how: Decide = "point" if threshold.function else bootstrap.decide
    return check(threshold.label, measured, minimum=threshold.min, maximum=threshold.max, decide=how)


def _measure(
    judged: Judged, thresholds: Sequence[Threshold], bootstrap: Bootstrap, tails: Tails | None
) -> tuple[Measurement, ...]:
    needed = [_weights(threshold) for threshold in thresholds]
    (drawn,) = resample([judged], [name for weights in needed for name in weights], bootstrap)
    points = {name: score_judged(judged, name) for name in drawn}
    groups = judged.group_count
    return tuple(
        Measurement(
            value=(value := math.fsum(weight * points[name] for name, weight in weights.items())),
            interval=interval(_weighted(drawn, weights), bootstrap, tails) if math.isfinite(value) else None,
            rows=judged.rows,
            why_not="" if math.isfinite(value) else why_no_value(judged),
            groups=groups,
        )
        for weights in needed
    )


def check(
    name: str, measured: Measurement, *, minimum: float | None = None, maximum: float | None = None, decide: Decide
) -> Check:
    """Judge one number.

    By interval: passed when the whole interval keeps the bound, rejected when the whole of it breaks it, else
    inconclusive.  By point: the number alone decides.  A number without a value is inconclusive either way.
    """
    verdict, reason = _judge(name, measured, minimum, maximum, decide)
    return Check(
        name=name,
        verdict=verdict,
        value=measured.value if math.isfinite(measured.value) else None,
        interval=measured.interval,
        min=minimum,
        max=maximum,
        rows=measured.rows,
        reason=reason,
    )


def overall(checks: Sequence[Check]) -> tuple[Verdict, str]:
    """Return what all checks say together, and why: one rejection rejects, else one doubt leaves it inconclusive."""
    for verdict in (Verdict.REJECTED, Verdict.INCONCLUSIVE):
        if reasons := [c.reason for c in checks if c.verdict is verdict]:
            return verdict, "; ".join(reasons)
    return Verdict.PASSED, "; ".join(c.reason for c in checks if c.verdict is Verdict.PASSED)


def number(value: float) -> str:
    """Write a number for people: three decimals, or four digits where that says more."""
    return f"{value:.3f}" if value == 0 or 0.01 <= abs(value) < 100 else f"{value:.4g}"


def why_no_value(judged: Judged) -> str:
    """Say why a metric has no value on these rows."""
    if judged.rows == 0:
        return "there are no rows"
    if judged.task is Task.REGRESSION:
        return "all rows have one value"
    missing = judged.classes - len(np.unique(judged.truth))
    return f"{missing} of {judged.classes} classes do not occur" if missing else "it is not defined on these rows"


def _weights(threshold: Threshold) -> dict[str, float]:
    return {threshold.metric: 1.0} if threshold.metric else dict(threshold.composite)


def _weighted(samples: Mapping[str, Sample], weights: Mapping[str, float]) -> Sample:
    first, *others = (weight * samples[name] for name, weight in weights.items())
    return reduce(add, others, first)


def _judge(
    name: str, measured: Measurement, minimum: float | None, maximum: float | None, decide: Decide
) -> tuple[Verdict, str]:
    if not math.isfinite(measured.value):
        why = measured.why_not or "it is not defined on these rows"
        return Verdict.INCONCLUSIVE, f"{name} has no value on {measured.rows} rows: {why}"
    found, said = measured.interval, f"{name} {number(measured.value)}"
    if found is not None:
        said += f" [{number(found.low)}, {number(found.high)}]"
        said += "" if measured.groups is None else f" ({measured.groups} groups resampled)"
    # A maximum is a minimum of the negated number.
    bound, sign = (minimum, 1.0) if minimum is not None else (maximum, -1.0)
    if bound is None:
        raise ValueError(f"{name} has no bound")
    keeps, breaks = (">=", "<") if sign > 0 else ("<=", ">")
    low = high = sign * measured.value
    if decide == "interval":
        if found is None:
            return Verdict.INCONCLUSIVE, f"{said} has no interval: {_why_no_interval(measured)}"
        low, high = sorted((sign * found.low, sign * found.high))
    if low >= sign * bound:
        return Verdict.PASSED, f"{said} {keeps} {bound:g}"
    if high < sign * bound:
        return Verdict.REJECTED, f"{said} {breaks} {bound:g}"
    return Verdict.INCONCLUSIVE, f"{said} straddles {'minimum' if sign > 0 else 'maximum'} {bound:g}"


def _why_no_interval(measured: Measurement) -> str:
    if measured.groups is not None and measured.groups < MIN_GROUPS:
        return f"its {measured.rows} rows are of {measured.groups} groups, fewer than {MIN_GROUPS}"
    return f"too few resamples of {measured.rows} rows have a value"
