"""Score predictions by the metrics of `contracts.metrics`.  Called by `train` (choice), `evaluate` and `promote`.

The numbers are scikit-learn's.  A metric that has no value on the given rows (one class only, say) is NaN, never an
exception: whether that matters is for the gates to say.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from contracts.metrics import Task

Floats = NDArray[np.float64]
Label = str | int | bool
BINS = 10
"""Equal-width bins of the expected calibration error."""


class Scored(Protocol):
    """What a model answers; `serving.model.Predictions` is one."""

    @property
    def labels(self) -> NDArray[Any]:
        """Predicted labels, or values for regression."""

    @property
    def scores(self) -> Floats | None:
        """Probabilities [rows, classes]; None for regression."""


@dataclass(frozen=True)
class Judged:
    """Truth beside prediction, classes as indices: what every metric reads.

    `truth` and `predicted` are class indices (int64) or values (float64), `scores` is [rows, classes] or None, and
    `positive` is the index of the positive class (binary).  `groups` holds a number for each row, equal for rows that
    belong together (of one customer, say); None where every row stands for itself.  No metric reads it.
    """

    task: Task
    truth: NDArray[Any]
    predicted: NDArray[Any]
    scores: Floats | None = None
    positive: int = 1
    groups: NDArray[np.int64] | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.truth)

    @property
    def classes(self) -> int:
        """Number of classes, 0 for regression."""
        return 0 if self.scores is None else self.scores.shape[1]

    @property
    def group_count(self) -> int | None:
        """Number of groups that these rows are of; None where every row stands for itself."""
        return None if self.groups is None else len(np.unique(self.groups))

    def take(self, rows: NDArray[Any]) -> Judged:
        """Return some of the rows, by mask or by index."""
        scores = None if self.scores is None else self.scores[rows]
        groups = None if self.groups is None else self.groups[rows]
        return Judged(self.task, self.truth[rows], self.predicted[rows], scores, self.positive, groups)

    def positive_scores(self) -> tuple[NDArray[np.bool_], Floats]:
        """Return which rows are positive, and the positive class's probability (binary)."""
        return self.truth == self.positive, self.probabilities[:, self.positive]

    @property
    def probabilities(self) -> Floats:
        """`scores`, for metrics that need them."""
        if self.scores is None:
            raise ValueError("this metric needs probabilities, the model gave none")
        return self.scores


def judge(
    task: Task, y_true: NDArray[Any], predictions: Scored, classes: Sequence[Label] = (), positive: Label | None = None
) -> Judged:
    """Bring labels and predictions of any type to one form.

    Parameters
    ----------
    y_true
        Labels (classification) or values (regression), [rows].
    predictions
        Labels or values [rows], and probabilities [rows, classes] in the order of `classes`.
    classes
        The class labels.  Labels are compared as text, so ``1`` and ``"1"`` are one class.
    positive
        The positive class (binary); default: the last one.

    Raises
    ------
    ValueError
        When a label is none of `classes`.
    """
    if task is Task.REGRESSION:
        return Judged(task, np.asarray(y_true, dtype=np.float64), np.asarray(predictions.labels, dtype=np.float64))
    index = {label_text(label): i for i, label in enumerate(classes)}
    scores = None if predictions.scores is None else np.asarray(predictions.scores, dtype=np.float64)
    at = len(index) - 1 if positive is None else index[label_text(positive)]
    return Judged(task, _indices(y_true, index), _indices(predictions.labels, index), scores, at)


def label_text(label: Any) -> str:
    """Return a label as the text under which classes are compared: true and false for booleans, 3 for 3.0."""
    if isinstance(label, (bool, np.bool_)):
        return "true" if label else "false"
    if isinstance(label, (float, np.floating)) and float(label).is_integer():
        return str(int(label))
    return str(label)


def score(
    task: Task,
    metric: str,
    y_true: NDArray[Any],
    predictions: Scored,
    classes: Sequence[Label] = (),
    positive: Label | None = None,
    sample_weight: Floats | None = None,
) -> float:
    """Return one metric; NaN where it has no value.  See `judge` for the parameters."""
    return score_judged(judge(task, y_true, predictions, classes, positive), metric, sample_weight)


def scores(
    task: Task,
    metrics: Iterable[str],
    y_true: NDArray[Any],
    predictions: Scored,
    classes: Sequence[Label] = (),
    positive: Label | None = None,
    sample_weight: Floats | None = None,
) -> dict[str, float]:
    """Return several metrics by name."""
    judged = judge(task, y_true, predictions, classes, positive)
    return {metric: score_judged(judged, metric, sample_weight) for metric in metrics}


def score_judged(judged: Judged, metric: str, sample_weight: Floats | None = None) -> float:
    """Return one metric of rows that `judge` prepared; NaN where it has no value."""
    if judged.rows == 0:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of undefined metrics, which NaN says already
        return float(_METRICS[metric](judged, sample_weight))


def _indices(labels: NDArray[Any], index: dict[str, int]) -> NDArray[np.int64]:
    values, inverse = np.unique(np.asarray(labels), return_inverse=True)
    try:
        codes = np.array([index[label_text(v)] for v in values], dtype=np.int64)
    except KeyError as error:
        raise ValueError(f"a label is none of the {len(index)} classes the model knows") from error
    return codes[inverse]


def _every_class_occurs(j: Judged) -> bool:
    return len(np.unique(j.truth)) == max(j.classes, 2)


def _roc_auc(j: Judged, w: Floats | None) -> float:
    from sklearn.metrics import roc_auc_score

    if not _every_class_occurs(j):
        return float("nan")
    if j.task is Task.BINARY:
        return float(roc_auc_score(*j.positive_scores(), sample_weight=w))
    one_vs_rest = [roc_auc_score(j.truth == k, j.probabilities[:, k], sample_weight=w) for k in range(j.classes)]
    return float(np.mean(one_vs_rest))


def _average_precision(j: Judged, w: Floats | None) -> float:
    from sklearn.metrics import average_precision_score

    if not _every_class_occurs(j):
        return float("nan")
    return float(average_precision_score(*j.positive_scores(), sample_weight=w))


def _accuracy(j: Judged, w: Floats | None) -> float:
    return float(np.average(j.truth == j.predicted, weights=w))


def _balanced_accuracy(j: Judged, w: Floats | None) -> float:
    from sklearn.metrics import balanced_accuracy_score

    return float(balanced_accuracy_score(j.truth, j.predicted, sample_weight=w))


def _of_classes(name: str) -> Callable[[Judged, Floats | None], float]:
    def metric(j: Judged, w: Floats | None) -> float:
        import sklearn.metrics

        function = getattr(sklearn.metrics, name)
        if j.task is Task.BINARY:
            truth, predicted = j.truth == j.positive, j.predicted == j.positive
            return float(function(truth, predicted, pos_label=True, sample_weight=w, zero_division=0))
        return float(function(j.truth, j.predicted, average="macro", sample_weight=w, zero_division=0))

    return metric


def _log_loss(j: Judged, w: Floats | None) -> float:
    from sklearn.metrics import log_loss

    return float(log_loss(j.truth, j.probabilities, labels=list(range(j.classes)), sample_weight=w))


def _brier(j: Judged, w: Floats | None) -> float:
    from sklearn.metrics import brier_score_loss

    if j.task is Task.BINARY:
        return float(brier_score_loss(*j.positive_scores(), pos_label=True, sample_weight=w))
    return float(brier_score_loss(j.truth, j.probabilities, labels=list(range(j.classes)), sample_weight=w))


def confidence_and_hit(j: Judged) -> tuple[Floats, Floats]:
    """Return what the calibration error compares: a probability, and 1.0 where what it stands for came true."""
    if j.task is Task.BINARY:
        positive, probability = j.positive_scores()
        return probability, positive.astype(np.float64)
    return j.probabilities.max(axis=1), (j.probabilities.argmax(axis=1) == j.truth).astype(np.float64)


def calibration_bins(probability: Floats) -> NDArray[np.int64]:
    """Return the bin of each probability: ten of equal width, 1.0 in the last."""
    return np.minimum((probability * BINS).astype(np.int64), BINS - 1)


def _calibration_error(j: Judged, w: Floats | None) -> float:
    probability, hit = confidence_and_hit(j)
    weight = np.ones(j.rows) if w is None else np.asarray(w, dtype=np.float64)
    gaps = np.bincount(calibration_bins(probability), weights=weight * (probability - hit), minlength=BINS)
    return float(np.abs(gaps).sum() / weight.sum())


def _regression(name: str) -> Callable[[Judged, Floats | None], float]:
    def metric(j: Judged, w: Floats | None) -> float:
        import sklearn.metrics

        return float(getattr(sklearn.metrics, name)(j.truth, j.predicted, sample_weight=w))

    return metric


_METRICS: dict[str, Callable[[Judged, Floats | None], float]] = {
    "roc_auc": _roc_auc,
    "average_precision": _average_precision,
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "f1": _of_classes("f1_score"),
    "precision": _of_classes("precision_score"),
    "recall": _of_classes("recall_score"),
    "log_loss": _log_loss,
    "brier": _brier,
    "calibration_error": _calibration_error,
    "rmse": _regression("root_mean_squared_error"),
    "mae": _regression("mean_absolute_error"),
    "median_absolute_error": _regression("median_absolute_error"),
    "r2": _regression("r2_score"),
}
