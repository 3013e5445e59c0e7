"""Fit a candidate's trials, and choose the best on validation rows.  Reads nothing, writes nothing.

Called by `steps.training.fitting` and `train`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from contracts.errors import ConfigError, DataError, Finding
from contracts.metrics import Task, is_better, metrics_of
from contracts.pipeline.learning import Candidate, ThresholdRule
from steps.candidates import Fitted, Floats, Problem, Rows, learner
from steps.candidates.rounds import judged
from steps.candidates.search import trials
from steps.candidates.threshold import choose_threshold
from steps.metrics import score_judged


@dataclass(frozen=True)
class Trial:
    """One candidate with one set of parameters, fitted and scored."""

    candidate: Candidate
    number: int
    parameters: dict[str, Any]
    fitted: Fitted
    threshold: float | None
    """Decision threshold (binary)."""
    value: float
    """The choosing metric on validation rows."""
    scores: Floats
    """Probabilities or values of the validation rows."""


@dataclass(frozen=True)
class Tried:
    """All trials of one candidate: the best, and the choosing metric of each."""

    best: Trial
    values: tuple[float, ...]


class Rated(Protocol):
    """Whatever has a value of the choosing metric."""

    @property
    def value(self) -> float:
        """The choosing metric on validation rows."""


R = TypeVar("R", bound=Rated)


def without_lightgbm(candidates: Sequence[Candidate], problem: Finding | None) -> tuple[Candidate, ...]:
    """Return the candidates that can be fitted where LightGBM's library may not load.

    Raises
    ------
    ConfigError
        When none is left.
    """
    if problem is None:
        return tuple(candidates)
    left = tuple(c for c in candidates if c.estimator != "lightgbm")
    if not left:
        raise ConfigError(f"{problem.where}: {problem.what}", findings=[problem], remedy=problem.remedy)
    return left


def try_candidate(
    problem: Problem,
    candidate: Candidate,
    rule: ThresholdRule,
    train: Rows,
    validation: Rows,
    say: Callable[[str], None] = lambda _: None,
) -> Tried:
    """Fit every trial of a candidate and keep the best, of equals the first.

    Raises
    ------
    ConfigError
        When the candidate's parameters do not fit.
    """
    best: Trial | None = None
    values: list[float] = []
    started = time.monotonic()
    for number, parameters in enumerate(trials(candidate)):
        if number and candidate.search and time.monotonic() - started > (candidate.search.max_seconds or math.inf):
            say(f"{candidate.name}: search ended after {number} trials, max_seconds is over")
            break
        trial = _try(problem, candidate, number, parameters, rule, train, validation)
        values.append(float(trial.value))
        best = trial if best is None or _beats(problem.metric, trial, best) else best
    if best is None:
        raise AssertionError("a candidate has a first trial")
    say(f"{candidate.name}: {problem.metric} {best.value:.6g} on validation rows")
    return Tried(best, tuple(values))


def pick(metric: str, rated: Sequence[R]) -> R:
    """Return the best, of equals the first in the file.

    Raises
    ------
    DataError
        When the metric has no value on the validation rows, for any.
    """
    chosen = rated[0]
    for other in rated[1:]:
        chosen = other if _beats(metric, other, chosen) else chosen
    if math.isnan(chosen.value):
        raise DataError(
            f"{metric} has no value on the validation rows",
            remedy="they hold one class only, or one value: use more rows, another split, or another training.metric",
        )
    return chosen


def all_metrics(problem: Problem, rows: Rows, trial: Trial, scores: Floats | None = None) -> dict[str, float]:
    """Return every metric of the task for some rows, which are scored unless they have been."""
    if scores is None:
        scores = trial.fitted.estimator.score(rows.features, problem.classes)
    answers = judged(problem, rows, scores, trial.threshold)
    return {metric: score_judged(answers, metric, rows.weight) for metric in metrics_of(problem.task)}


def _try(
    problem: Problem,
    candidate: Candidate,
    number: int,
    parameters: dict[str, Any],
    rule: ThresholdRule,
    train: Rows,
    validation: Rows,
) -> Trial:
    fitted = learner(candidate.estimator)(problem, candidate, parameters, train, validation)
    scores = fitted.estimator.score(validation.features, problem.classes)
    threshold = None
    if problem.task is Task.BINARY:
        threshold = choose_threshold(rule, validation.target == 1, scores[:, 1], validation.weight)
    value = score_judged(judged(problem, validation, scores, threshold), problem.metric, validation.weight)
    return Trial(candidate, number, parameters, fitted, threshold, value, scores)


def _beats(metric: str, a: Rated, b: Rated) -> bool:
    return is_better(metric, a.value, b.value) or (math.isnan(b.value) and not math.isnan(a.value))
