"""How each library learns: one module a library, all behind `Learner`.  Called by the `train` stage.

Classes arrive as codes 0, 1, ... in the order of the model's classes (binary: negative 0, positive 1), so an estimator
needs not know what the labels are.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from contracts.errors import ConfigError, Finding
from contracts.metrics import Task
from contracts.pipeline.learning import Candidate
from serving.estimators import FittedEstimator
from serving.user_code import UserCode

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """What is to be learned, whoever learns it."""

    task: Task
    classes: int
    """Number of classes, 0 for regression."""
    metric: str
    """Chooses candidate, trial and round."""
    feature_names: tuple[str, ...]
    categorical: tuple[int, ...] = ()
    """Features that hold category codes."""
    cardinalities: tuple[int, ...] = ()
    """Number of codes of each of them."""
    seed: int = 0
    threads: int = 1
    code: UserCode = field(default_factory=lambda: UserCode({}))


@dataclass(frozen=True)
class Rows:
    """One side of the split, ready to learn from."""

    features: Any
    """Matrix [rows, features], float64; a DataFrame of raw columns for passthrough."""
    target: NDArray[Any]
    """Class codes (int64) or values (float64)."""
    weight: Floats | None = None
    """Weight of each row; classes are weighted in training rows only."""


@dataclass(frozen=True)
class Fitted:
    """What a learner made of one set of parameters."""

    estimator: FittedEstimator
    rounds: int | None = None
    """Boosting rounds that the estimator keeps."""
    train_scores: Floats | None = None
    """What the estimator answers for the training rows, where fitting left it behind."""


class Learner(Protocol):
    """Fits one candidate with one set of parameters; the candidate's own are the first of a search."""

    def __call__(
        self, problem: Problem, candidate: Candidate, parameters: dict[str, Any], train: Rows, validation: Rows
    ) -> Fitted:
        """Fit, and stop early on validation rows where the candidate asks for it.

        Raises
        ------
        ConfigError
            For a parameter that the library does not know or does not take; names candidate and parameter.
        """


def learner(estimator: str) -> Learner:
    """Return who learns `estimator`, as the pipeline file calls it."""
    match estimator:
        case "lightgbm":
            from steps.candidates.lightgbm import fit
        case "xgboost":
            from steps.candidates.xgboost import fit
        case "hist_gradient_boosting" | "random_forest" | "linear" | "dummy":
            from steps.candidates.sklearn import fit
        case _:
            from steps.candidates.own import fit
    return fit


def bad_parameter(candidate: Candidate, parameter: str, what: str) -> ConfigError:
    """Return the error for a parameter that does not fit."""
    where = f"training.candidates[{candidate.name}].parameters" + (f".{parameter}" if parameter else "")
    message = f"candidate {candidate.name}: " + (f"parameter {parameter}: {what}" if parameter else what)
    return ConfigError(message, findings=[Finding(where=where, what=what, remedy="mend or remove it")])


def blamed(text: str, parameters: dict[str, Any]) -> str:
    """Return the parameter that a library's message speaks of, by name or by value; empty when it speaks of none."""
    by_length = sorted(parameters, key=len, reverse=True)
    named = [name for name in by_length if name in text]
    return next(
        iter(named + [name for name in by_length if isinstance(parameters[name], str) and parameters[name] in text]), ""
    )


def one_thread() -> AbstractContextManager[Any]:
    """Keep BLAS and OpenMP on one thread, so that sums have one order: same inputs, same bits."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(limits=1)
    return limits
