"""The server's Prometheus metrics.  Written by `serving.app`, read at ``/metrics``."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from contracts.metrics import Task
from contracts.references import class_text
from serving.schemas import ModelAnswer

if TYPE_CHECKING:
    from contracts.references import ModelManifest
    from serving.records import Records

PREDICT = "/v1/predict"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SLOWEST_SECONDS = 60.0
"""How slow a request can be told to be: of what took longer, no more than that is known."""
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, SLOWEST_SECONDS)
_SHARES = tuple(step / 20 for step in range(1, 20))
_MAGNITUDES = tuple(digit * 10.0**power for power in range(-3, 10) for digit in (1, 2, 5))
_VALUES = (*(-value for value in reversed(_MAGNITUDES)), 0.0, *_MAGNITUDES)


class Metrics:
    """One registry a server, so that two of them in one process do not mix."""

    def __init__(self, model: ModelAnswer, manifest: ModelManifest, records: Records | None = None) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._scores = Scores(manifest)
        self._registry.register(self._scores)
        if records is not None:
            self._registry.register(_Lost(records))
        self._requests = Counter(
            "retrain_requests", "Requests by route and status code.", ["route", "code"], registry=self._registry
        )
        self._seconds = Histogram(
            "retrain_request_seconds", "Seconds from request to answer.", ["route"],
            buckets=_BUCKETS, registry=self._registry,
        )  # fmt: skip
        # from 0 on: what a series that is new begins with, Prometheus does not count as an increase
        for code in ("200", "422", "500"):
            self._requests.labels(PREDICT, code)
        self._seconds.labels(PREDICT)
        predictions = Counter(
            "retrain_predictions", "Rows predicted, by model version.", ["model", "version"], registry=self._registry
        )
        self._predictions = predictions.labels(model.name, str(model.version))
        self._unseen = Counter(
            "retrain_unseen_categories", "Cells whose category was not seen in training.", ["column"],
            registry=self._registry,
        )  # fmt: skip
        info = Gauge(
            "retrain_model_info", "1 for the model that answers.", ["model", "version", "run_id"],
            registry=self._registry,
        )  # fmt: skip
        info.labels(model.name, str(model.version), model.run_id).set(1)

    def request(self, route: str, code: int, seconds: float) -> None:
        """Count one answered request.  `route` is the route's path, never the raw one: labels must stay few."""
        self._requests.labels(route, str(code)).inc()
        self._seconds.labels(route).observe(seconds)

    def predicted(self, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Count predicted rows, their labels and scores."""
        self._predictions.inc(len(predictions))
        self._scores.observe(predictions)

    def unseen(self, column: str, cells: int) -> None:
        """Count cells of a column whose category was not seen in training."""
        self._unseen.labels(column).inc(cells)

    def text(self) -> bytes:
        """Return the exposition that Prometheus reads."""
        return generate_latest(self._registry)


class Scores(Collector):
    """How scores and labels are distributed: what a new version is compared by with the one that serves.

    The score is the positive class's probability (binary), the largest (multiclass) or the value (regression).  All
    versions have the same buckets: twentieths, or 1, 2 and 5 of each power of ten.
    """

    def __init__(self, manifest: ModelManifest) -> None:
        self._positive = manifest.positive if manifest.task is Task.BINARY else None
        self._edges = _VALUES if manifest.task is Task.REGRESSION else _SHARES
        self._counts, self._sum = [0] * (len(self._edges) + 1), 0.0
        self._labels = dict.fromkeys(manifest.classes, 0)
        self._lock = threading.Lock()

    def observe(self, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Count predictions as `serving.answer` makes them; those without a finite score only by their label."""
        with self._lock:
            for prediction in predictions:
                score = self._score(prediction)
                if score is not None:
                    self._counts[bisect_left(self._edges, score)] += 1
                    self._sum += score
                if "label" in prediction:
                    self._labels[class_text(prediction["label"])] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield both as Prometheus reads them."""
        with self._lock:
            counts, total, labels = list(self._counts), self._sum, dict(self._labels)
        buckets, seen = [], 0
        for edge, count in zip((*map(str, self._edges), "+Inf"), counts, strict=True):
            seen += count
            buckets.append((edge, seen))
        scores = HistogramMetricFamily("retrain_score", "Scores of predicted rows.")
        scores.add_metric([], buckets=buckets, sum_value=total)
        yield scores
        if labels:
            found = CounterMetricFamily("retrain_labels", "Predicted rows by label.", labels=["label"])
            for label, count in labels.items():
                found.add_metric([label], count)
            yield found

    def _score(self, prediction: Mapping[str, Any]) -> float | None:
        if "value" in prediction:
            value: float | None = prediction["value"]
            return value
        probabilities: Mapping[str, float | None] = prediction["probabilities"]
        if self._positive is not None:
            return probabilities[self._positive]
        return max((p for p in probabilities.values() if p is not None), default=None)


class _Lost(Collector):
    def __init__(self, records: Records) -> None:
        self._records = records

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily("retrain_records_lost", "Predicted rows without a record.", value=self._records.lost)
