"""Score probabilities on rows whose classes are codes: a trial, or one boosting round."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from contracts.metrics import Task
from steps.candidates import Floats, Problem, Rows
from steps.metrics import Judged, score_judged


def judged(problem: Problem, rows: Rows, scores: Floats, threshold: float | None = None) -> Judged:
    """Bring probabilities [rows, classes] or values [rows] beside the truth; binary decides at `threshold` or 0.5."""
    if problem.task is Task.REGRESSION:
        return Judged(problem.task, rows.target, scores)
    if problem.task is Task.BINARY:
        chosen = (scores[:, 1] >= (0.5 if threshold is None else threshold)).astype(np.int64)
    else:
        chosen = scores.argmax(axis=1)
    return Judged(problem.task, rows.target, chosen, scores)


def round_metric(problem: Problem, rows: Rows) -> Callable[[Floats], float]:
    """Return a function from probabilities [rows, classes], or values [rows], to the problem's metric."""
    return lambda scores: score_judged(judged(problem, rows, scores), problem.metric, rows.weight)
