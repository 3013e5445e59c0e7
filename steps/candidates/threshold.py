"""The decision threshold of a binary model: a pure function of validation scores and the file's rule."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from contracts.pipeline.learning import ThresholdRule

Floats = NDArray[np.float64]
HALF = 0.5


def choose_threshold(
    rule: ThresholdRule, positive: NDArray[np.bool_], scores: Floats, weight: Floats | None = None
) -> float:
    """Return the threshold: a row is positive when its score is at or above it.

    Every cut between two neighbouring scores is tried, and all and none positive; of cuts that are as good, the one
    nearest to 0.5 is taken.

    Parameters
    ----------
    positive
        Which validation rows are positive, [rows].
    scores
        Their probability of being positive, [rows].
    """
    if rule.rule == "half" or len(scores) == 0:
        return HALF
    weight = np.ones(len(scores)) if weight is None else weight
    order = np.argsort(scores, kind="stable")[::-1]
    ranked = scores[order]
    hits = np.concatenate(([0.0], np.cumsum(np.where(positive[order], weight[order], 0.0))))
    alarms = np.concatenate(([0.0], np.cumsum(np.where(positive[order], 0.0, weight[order]))))
    # cut k calls the first k rows positive; only a cut between different scores can be made
    cuts = np.flatnonzero(np.concatenate(([True], ranked[1:] < ranked[:-1], [True])))
    bounds = np.concatenate(([np.nextafter(ranked[0], np.inf)], (ranked[1:] + ranked[:-1]) / 2, [0.0]))
    # halfway between neighbours can round down to the lower one, which would let it in
    bounds[1:-1] = np.where(bounds[1:-1] > ranked[1:], bounds[1:-1], ranked[:-1])
    true_positives, false_positives = hits[cuts], alarms[cuts]
    false_negatives, true_negatives = hits[-1] - true_positives, alarms[-1] - false_positives
    goodness = _goodness(rule)(true_positives, false_positives, false_negatives, true_negatives)
    best = cuts[goodness >= goodness.max() - 1e-12 * max(1.0, abs(float(goodness.max())))]
    return float(bounds[best][np.argmin(np.abs(bounds[best] - HALF))])


def _goodness(rule: ThresholdRule) -> Callable[[Floats, Floats, Floats, Floats], Floats]:
    if rule.rule == "cost":
        cost = rule.cost
        return lambda _tp, fp, fn, _tn: -(cost.false_positive * fp + cost.false_negative * fn)
    return {"f1": _f1, "accuracy": _accuracy, "balanced_accuracy": _balanced_accuracy}[rule.metric]


def _f1(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> Floats:  # noqa: ARG001
    return _ratio(2 * tp, 2 * tp + fp + fn)


def _accuracy(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> Floats:
    return _ratio(tp + tn, tp + fp + fn + tn)


def _balanced_accuracy(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> Floats:
    return (_ratio(tp, tp + fn) + _ratio(tn, tn + fp)) / 2


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
