"""Fit all candidates and choose the best on validation rows.  Called by `train`; reads nothing, writes nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from contracts.errors import ConfigError, DataError, Finding
from contracts.metrics import METRICS, Task, is_better
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
class Choice:
    """What `choose` found."""

    best: Trial
    finalists: tuple[Trial, ...]
    """The best trial of each candidate, in the file's order."""
    history: tuple[dict[str, Any], ...]
    """Candidate, number, parameters and value of every trial."""


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


def choose(
    problem: Problem,
    candidates: Sequence[Candidate],
    rule: ThresholdRule,
    train: Rows,
    validation: Rows,
    say: Callable[[str], None] = lambda _: None,
) -> Choice:
    """Fit every trial of every candidate and keep the best; of equals the first in the file, then the first trial.

    Raises
    ------
    ConfigError
        When a candidate's parameters do not fit.
    DataError
        When the metric has no value on the validation rows, for any trial.
    """
    finalists, history = [], []
    for candidate in candidates:
        best: Trial | None = None
        started = time.monotonic()
        for number, parameters in enumerate(trials(candidate)):
            if number and candidate.search and time.monotonic() - started > (candidate.search.max_seconds or math.inf):
                say(f"{candidate.name}: search ended after {number} trials, max_seconds is over")
                break
            trial = _try(problem, candidate, number, parameters, rule, train, validation)
            history.append(
                {"candidate": candidate.name, "trial": number, "parameters": parameters, "value": trial.value}
            )
            best = trial if best is None or _beats(problem.metric, trial, best) else best
        if best is not None:
            say(f"{candidate.name}: {problem.metric} {best.value:.6g} on validation rows")
            finalists.append(best)
    chosen = finalists[0]
    for finalist in finalists[1:]:
        chosen = finalist if _beats(problem.metric, finalist, chosen) else chosen
    if math.isnan(chosen.value):
        raise DataError(
            f"{problem.metric} has no value on the validation rows",
            remedy="they hold one class only, or one value: use more rows, another split, or another training.metric",
        )
    return Choice(chosen, tuple(finalists), tuple(history))


def all_metrics(problem: Problem, rows: Rows, trial: Trial, scores: Floats | None = None) -> dict[str, float]:
    """Return every metric of the task for some rows, which are scored unless they have been."""
    if scores is None:
        scores = trial.fitted.estimator.score(rows.features, problem.classes)
    answers = judged(problem, rows, scores, trial.threshold)
    fitting = [m.name for m in METRICS.values() if problem.task in m.tasks]
    return {metric: score_judged(answers, metric, rows.weight) for metric in fitting}


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


def _beats(metric: str, a: Trial, b: Trial) -> bool:
    return is_better(metric, a.value, b.value) or (math.isnan(b.value) and not math.isnan(a.value))
