"""The validation gate: test metrics and slices against the file's bounds.  Pure; called by `evaluate`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.outcomes import Verdict
from contracts.pipeline.gates import Bootstrap, SliceRule, Threshold, ValidationGate
from contracts.reports import Check
from steps.gates.bounds import Measurement, check, check_threshold, measure, overall
from steps.metrics import Judged, label_text

MAX_SMALL_GROUPS = 20
"""So many groups below `min_rows` are listed one by one, the largest first; the rest in one line."""


BEYOND = 2
"""So many resamples, on average, lie beyond the end of a slice's interval."""


@dataclass(frozen=True)
class Group:
    """The rows of one value of a slice column, under a name that may be shown."""

    name: str
    rows: NDArray[np.bool_]


@dataclass(frozen=True)
class SliceMeasurement:
    """One group's number, or none when it has fewer than `min_rows` rows."""

    rule: SliceRule
    group: str
    rows: int
    measured: Measurement | None


@dataclass(frozen=True)
class Evidence:
    """All that the gate decides on.  `thresholds` stand in the order of the policy's."""

    thresholds: tuple[Measurement, ...]
    slices: tuple[SliceMeasurement, ...] = ()
    non_finite: int = 0
    """Rows for which the model answered NaN or infinity."""


@dataclass(frozen=True)
class Decision:
    """The verdict, what was looked at in order, and why."""

    verdict: Verdict
    checks: tuple[Check, ...]
    reason: str


def decide(evidence: Evidence, gate: ValidationGate) -> Decision:
    """Judge a model: rejected when one check rejects it, inconclusive when one is in doubt, else passed."""
    if evidence.non_finite:
        said = f"the model answers no number for {evidence.non_finite} test rows"
        bad = Check(name="finite answers", verdict=Verdict.REJECTED, value=evidence.non_finite, max=0, reason=said)
        return Decision(Verdict.REJECTED, (bad,), said)
    checks = [
        check_threshold(threshold, measured, gate.bootstrap)
        for threshold, measured in zip(gate.thresholds, evidence.thresholds, strict=True)
    ]
    for rule in gate.slices:
        checks += _slice_checks([s for s in evidence.slices if s.rule == rule], rule, gate)
    verdict, reason = overall(checks)
    return Decision(verdict, tuple(checks), reason)


def collect(
    judged: Judged,
    gate: ValidationGate,
    groups: Sequence[Sequence[Group]],
    own: Mapping[str, float] = MappingProxyType({}),
) -> Evidence:
    """Measure what the gate decides on.

    Parameters
    ----------
    judged
        The test rows.
    groups
        For each of `gate.slices` the groups of its column; see `grouped`.
    own
        What the user's functions answered, by their reference.
    """
    if bad := non_finite(judged):
        return Evidence((), (), bad)
    found = [(rule, group) for rule, of_rule in zip(gate.slices, groups, strict=True) for group in of_rule]
    large = sum(int(group.rows.sum()) >= rule.min_rows for rule, group in found)
    slices = [_measure_slice(judged, group, rule, gate.bootstrap, large) for rule, group in found]
    return Evidence(measure(judged, gate.thresholds, gate.bootstrap, own=own), tuple(slices))


def grouped(values: Sequence[Any], rule: SliceRule, *, sensitive: bool) -> tuple[Group, ...]:
    """Return the groups of a column's values, the largest first; only the rule's values where it lists some.

    Values of a sensitive column are not named but numbered.
    """
    texts = np.array(["null" if value is None else label_text(value) for value in values], dtype=object)
    found, codes, counts = np.unique(texts.astype(str), return_inverse=True, return_counts=True)
    order = sorted(range(len(found)), key=lambda i: (-counts[i], found[i]))
    wanted = None if rule.values is None else [label_text(value) for value in rule.values]
    named = [(str(found[i]), codes == i) for i in order if wanted is None or found[i] in wanted]
    named += [(text, np.zeros(len(texts), dtype=np.bool_)) for text in wanted or () if text not in found]
    return tuple(
        Group(f"{rule.column}=({n} of {len(named)}, masked)" if sensitive else f"{rule.column}={text}", rows)
        for n, (text, rows) in enumerate(named, 1)
    )


def non_finite(judged: Judged) -> int:
    """Return how many rows the model answered with NaN or infinity."""
    answers = judged.predicted if judged.scores is None else judged.scores
    return int((~np.isfinite(answers.reshape(judged.rows, -1)).all(axis=1)).sum()) if judged.rows else 0


def _measure_slice(
    judged: Judged, group: Group, rule: SliceRule, bootstrap: Bootstrap, slices: int
) -> SliceMeasurement:
    """Measure one of so many slices.

    To pass, every one has to keep its bound, so passing all by chance is no likelier than passing one (Berger,
    Multiparameter Hypothesis Testing and Acceptance Sampling, 1982).  To be rejected, one that breaks it is enough, so
    the end that decides on that is Bonferroni's, of all slices together.
    """
    rows = int(group.rows.sum())
    if rows < rule.min_rows:
        return SliceMeasurement(rule, group.name, rows, None)
    threshold = Threshold(metric=rule.metric, min=rule.min, max=rule.max)
    tail = (1 - bootstrap.confidence) / 2
    tails = (tail, tail / slices) if rule.min is not None else (tail / slices, tail)
    enough = bootstrap.model_copy(update={"resamples": max(bootstrap.resamples, math.ceil(BEYOND * slices / tail))})
    (measured,) = measure(judged.take(group.rows), [threshold], enough, tails)
    return SliceMeasurement(rule, group.name, rows, measured)


def _slice_checks(slices: Sequence[SliceMeasurement], rule: SliceRule, gate: ValidationGate) -> Iterator[Check]:
    for s in slices:
        if s.measured is not None:
            name = f"{rule.metric} of {s.group}"
            yield check(name, s.measured, minimum=rule.min, maximum=rule.max, decide=gate.bootstrap.decide)
    small = [s for s in slices if s.measured is None]
    for s in small[:MAX_SMALL_GROUPS]:
        said = f"{s.group} has {s.rows} test rows, fewer than {rule.min_rows}: not judged"
        yield Check(name=f"{rule.metric} of {s.group}", verdict=None, rows=s.rows, reason=said)
    if further := small[MAX_SMALL_GROUPS:]:
        said = f"{len(further)} further groups of {rule.column} have fewer than {rule.min_rows} test rows: not judged"
        yield Check(
            name=f"{rule.metric} of {rule.column}", verdict=None, rows=sum(s.rows for s in further), reason=said
        )
