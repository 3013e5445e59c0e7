"""The metrics a pipeline file may name, for which task, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Task(StrEnum):
    """What is predicted."""

    BINARY = "binary"
    MULTICLASS = "multiclass"
    REGRESSION = "regression"


@dataclass(frozen=True)
class MetricInfo:
    """A metric by its scikit-learn name."""

    name: str
    tasks: frozenset[Task]
    greater_is_better: bool
    needs_probability: bool = False


_B, _M, _R = Task.BINARY, Task.MULTICLASS, Task.REGRESSION
METRICS: dict[str, MetricInfo] = {
    m.name: m
    for m in (
        MetricInfo("roc_auc", frozenset({_B, _M}), True, True),
        MetricInfo("average_precision", frozenset({_B}), True, True),
        MetricInfo("accuracy", frozenset({_B, _M}), True),
        MetricInfo("balanced_accuracy", frozenset({_B, _M}), True),
        MetricInfo("f1", frozenset({_B, _M}), True),
        MetricInfo("precision", frozenset({_B, _M}), True),
        MetricInfo("recall", frozenset({_B, _M}), True),
        MetricInfo("log_loss", frozenset({_B, _M}), False, True),
        MetricInfo("brier", frozenset({_B, _M}), False, True),
        MetricInfo("calibration_error", frozenset({_B, _M}), False, True),
        MetricInfo("rmse", frozenset({_R}), False),
        MetricInfo("mae", frozenset({_R}), False),
        MetricInfo("median_absolute_error", frozenset({_R}), False),
        MetricInfo("r2", frozenset({_R}), True),
    )
}
"""f1, precision and recall are of the positive class (binary) or macro averages (multiclass); roc_auc is one-vs-rest,
macro (multiclass); brier is the mean squared distance of the positive class's probability (binary) or of the
probability vector (multiclass), as scikit-learn scales it; calibration_error is the expected calibration error over
ten equal-width bins of the top probability (binary: of the positive class)."""


def metrics_of(task: Task) -> tuple[str, ...]:
    """Return the names of the metrics that a task has."""
    return tuple(metric.name for metric in METRICS.values() if task in metric.tasks)


def is_better(metric: str, a: float, b: float) -> bool:
    """Say whether `a` is strictly better than `b` under `metric`."""
    return a > b if METRICS[metric].greater_is_better else a < b
