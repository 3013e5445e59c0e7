"""What a new version must show on real requests: an AnalysisTemplate on Prometheus, and what its runs came to.  Pure.

Called by `steps.rollout.gradual_objects` and `steps.rollout.gradual`.  Every query compares the pods of the new version
with those of the one that serves, by the names that Argo Rollouts gives them, and has no result while either had fewer
requests in the window than the pipeline file wants: that measurement is neither good nor bad.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from contracts.metrics import Task
from contracts.pipeline.operation import Analysis, Release
from serving.metrics import PREDICT, SLOWEST_SECONDS
from steps.rollout.cluster import Object

NEW, OLD = "new-hash", "old-hash"
"""Arguments: the hashes of the pods' templates."""
GOOD, COUNT = "good", "count"
"""Arguments: measurements that must be good one after the other, and how many there are at most."""
_ROUTE = f'route="{PREDICT}"'
_LATENCY = 0.95
_STEP = "step-index"
"""Label by which Argo Rollouts says which of its steps an AnalysisRun is of."""


@dataclass(frozen=True)
class Metric:
    """One thing that is measured: its query, what it may be at most, and what that means to people."""

    name: str
    query: str
    at_most: float
    meaning: str


@dataclass(frozen=True)
class Failed:
    """A metric that ended a release: `value` is what was measured last, None where nothing could be.

    `step` counts the Rollout's steps from 0, None where the run was of none.
    """

    metric: str
    value: float | None
    at_most: float | None
    reason: str
    measurements: tuple[str, ...] = ()
    step: int | None = None


def metrics(release: Release, task: Task, namespace: str, name: str) -> list[Metric]:
    """Return what is measured of a pipeline's new version, in the order in which it is told of."""
    return list(_metrics(release.analysis, task, _Queries(release, namespace, name)))


def template(measured: Sequence[Metric], analysis: Analysis, address: str) -> dict[str, Any]:
    """Return the spec of an AnalysisTemplate.

    A metric ends well after so many good measurements in a row, badly after one bad one more than it may have, and
    undecided after one more without enough requests than it may have.
    """
    arguments = [{"name": NEW}, {"name": OLD}, {"name": GOOD, "value": "1"}, {"name": COUNT, "value": "1"}]
    return {
        "args": arguments,
        "metrics": [
            {
                "name": metric.name,
                "interval": _seconds(analysis.interval),
                "count": _argument(COUNT),
                "consecutiveSuccessLimit": _argument(GOOD),
                "failureLimit": analysis.failures,
                "inconclusiveLimit": analysis.lacking,
                "successCondition": f"len(result) > 0 && result[0] <= {metric.at_most}",
                "failureCondition": f"len(result) > 0 && result[0] > {metric.at_most}",
                "provider": {"prometheus": {"address": address, "query": metric.query}},
            }
            for metric in measured
        ],
    }


def measurements(analysis: Analysis, hold: timedelta) -> tuple[int, int]:
    """Return how many measurements must be good one after the other for a time, and how many there are at most.

    So many that they never run out before patience does: any that is not good may be the last but one of its row.
    """
    good = max(1, math.ceil(hold / analysis.interval))
    return good, good * (1 + analysis.lacking + analysis.failures)


def failed(runs: Sequence[Object], measured: Sequence[Metric]) -> Failed | None:
    """Return the metric that ended a release, from the AnalysisRuns of its pods' hash; None when none did."""
    limits = {metric.name: metric for metric in measured}
    for run, result in _results(runs):
        if (phase := result.get("phase")) in ("Failed", "Error", "Inconclusive"):
            step = (run["metadata"].get("labels") or {}).get(_STEP, "")
            found = _failed(result, phase, limits.get(result["name"]))
            return replace(found, step=int(step)) if step.isdigit() else found
    return None


def last_values(runs: Sequence[Object]) -> dict[str, float]:
    """Return what each metric was measured as last: evidence of a release that came through."""
    ordered = sorted(runs, key=lambda run: str(run["metadata"].get("creationTimestamp", "")))
    found = {}
    for _, result in _results(ordered):
        if values := [v for m in result.get("measurements") or () if (v := _value(m)) is not None]:
            found[str(result["name"])] = round(values[-1], 6)
    return found


def _results(runs: Sequence[Object]) -> Iterator[tuple[Object, Mapping[str, Any]]]:
    for run in runs:
        for result in (run.get("status") or {}).get("metricResults") or ():
            yield run, result


def _failed(result: Mapping[str, Any], phase: str, metric: Metric | None) -> Failed:
    taken = result.get("measurements") or []
    ends = {"Failed": "Failed", "Error": "Error"}.get(phase)
    value = next((v for m in reversed(taken) if m.get("phase") == ends and (v := _value(m)) is not None), None)
    name, at_most = str(result["name"]), metric.at_most if metric else None
    said = tuple(f"{name}: {m.get('value') or m.get('message') or ''} {m.get('phase')}" for m in taken[-12:])
    if phase == "Failed":
        measured = f"{value:.4g}" if value is not None else "more than can be measured"
        limit = f", at most {at_most:g} is allowed" if at_most is not None else ""
        what = f" ({metric.meaning})" if metric else ""
        reason = f"{name} is {measured}{limit}{what}"
    elif phase == "Error":
        error = next((m["message"] for m in reversed(taken) if m.get("message")), result.get("message", ""))
        reason = f"{name} could not be measured: {error}"
    else:
        reason = f"{name} could not be judged: too few requests"
    return Failed(name, value, at_most, reason, said)


def _value(measurement: Mapping[str, Any]) -> float | None:
    """Read a measurement's value, which is a list of samples as text; None when it holds none that is finite."""
    try:
        value = float(str(measurement.get("value", "")).strip("[]").split(",")[0])
    except ValueError:
        return None
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class _Queries:
    release: Release
    namespace: str
    name: str

    def pods(self, which: str, *labels: str) -> str:
        pods = f'namespace="{self.namespace}",pod=~"{self.name}-{_argument(which)}-.+"'
        return "{" + ",".join((pods, *labels)) + "}"

    def rise(self, series: str, which: str, *labels: str) -> str:
        return f"increase({series}{self.pods(which, *labels)}[{_seconds(self.window(which))}])"

    def window(self, which: str) -> timedelta:
        """Return over how long a version is measured.

        After blue-green has switched nobody asks the old one: its requests before that are in the window to the end.
        """
        analysis = self.release.analysis
        since_switch = self.release.strategy == "blue-green" and which == OLD
        return analysis.window + (analysis.hold + analysis.patience if since_switch else timedelta())

    def requests(self, which: str) -> str:
        return f"sum({self.rise('retrain_requests_total', which, _ROUTE)})"

    def enough(self, query: str, *which: str) -> str:
        """Let a query have no result where there were too few requests."""
        limits = "".join(f" and on() ({self.requests(each)} >= {self.release.analysis.min_requests})" for each in which)
        return f"({query}){limits}"

    def latency(self, which: str) -> str:
        buckets = self.rise("retrain_request_seconds_bucket", which, _ROUTE)
        return f"histogram_quantile({_LATENCY}, sum by (le) ({buckets}))"

    def measurable(self, latency: str) -> str:
        """Let a latency be infinite that is more than can be told: its quantile is then the last bound, and no more."""
        return f"({latency} / ({latency} < bool {SLOWEST_SECONDS}))"

    def shares(self, series: str, whole: str, by: str, which: str) -> str:
        return f"sum by ({by}) ({self.rise(series, which)}) / scalar(sum({self.rise(whole, which)}))"

    def score_distance(self) -> str:
        series = "retrain_score_bucket", "retrain_score_count", "le"
        return f"max(abs({self.shares(*series, NEW)} - {self.shares(*series, OLD)}))"

    def label_distance(self) -> str:
        """Return a query in which a label that only one of both ever gave is a share of 0 of the other's."""
        new, old = (self.shares("retrain_labels_total", "retrain_labels_total", "label", which) for which in (NEW, OLD))
        return f"sum(abs(({new} - {old}) or {new} or -({old}))) / 2"


def _metrics(analysis: Analysis, task: Task, ask: _Queries) -> Iterator[Metric]:
    restarts = f"sum(changes(process_start_time_seconds{ask.pods(NEW)}[{_seconds(analysis.window)}])) or vector(0)"
    yield Metric("restarts", restarts, 0, "its server ended and was started again")
    if (limit := analysis.max_error_rate) is not None:
        errors = ask.rise("retrain_requests_total", NEW, _ROUTE, 'code=~"5.."')
        query = ask.enough(f"(sum({errors}) or vector(0)) / {ask.requests(NEW)}", NEW)
        yield Metric("error-rate", query, limit, "share of its answers with status 5xx")
    if (limit := analysis.max_latency_ratio) is not None:
        usual = f"clamp_min({ask.latency(OLD)}, {analysis.latency_floor_ms / 1000})"
        query = ask.enough(f"{ask.measurable(ask.latency(NEW))} / {usual}", NEW, OLD)
        yield Metric("latency", query, limit, "95th percentile of its seconds to that of the version that serves")
    if (limit := analysis.max_score_distance) is not None:
        query = ask.enough(ask.score_distance(), NEW, OLD)
        yield Metric("score-distribution", query, limit, "distance of its scores to those of the version that serves")
    if (limit := analysis.max_label_distance) is not None and task is not Task.REGRESSION:
        query = ask.enough(ask.label_distance(), NEW, OLD)
        what = "its share of positives" if task is Task.BINARY else "its shares of labels"
        name = "positive-share" if task is Task.BINARY else "label-shares"
        yield Metric(name, query, limit, f"difference of {what} to that of the version that serves")


def _argument(name: str) -> str:
    return "{{args." + name + "}}"


def _seconds(value: timedelta) -> str:
    return f"{max(1, round(value.total_seconds()))}s"
