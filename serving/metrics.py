"""The server's Prometheus metrics.  Written by `serving.app`, read at ``/metrics``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from serving.schemas import ModelAnswer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """One registry a server, so that two of them in one process do not mix."""

    def __init__(self, model: ModelAnswer) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "retrain_requests", "Requests by route and status code.", ["route", "code"], registry=self._registry
        )
        self._seconds = Histogram(
            "retrain_request_seconds", "Seconds from request to answer.", ["route"],
            buckets=_BUCKETS, registry=self._registry,
        )  # fmt: skip
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

    def predicted(self, rows: int) -> None:
        """Count predicted rows."""
        self._predictions.inc(rows)

    def unseen(self, column: str, cells: int) -> None:
        """Count cells of a column whose category was not seen in training."""
        self._unseen.labels(column).inc(cells)

    def text(self) -> bytes:
        """Return the exposition that Prometheus reads."""
        return generate_latest(self._registry)
