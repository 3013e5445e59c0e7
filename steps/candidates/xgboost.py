"""XGBoost: fit a Booster.  The library is an extra of the project."""

from __future__ import annotations

import warnings
from typing import Any

from contracts.errors import ConfigError
from contracts.metrics import METRICS, Task
from contracts.pipeline.learning import Candidate
from serving.estimators import XgboostEstimator
from steps.candidates import Fitted, Problem, Rows, bad_parameter, blamed
from steps.candidates.rounds import round_metric

_OBJECTIVES = {Task.BINARY: "binary:logistic", Task.MULTICLASS: "multi:softprob", Task.REGRESSION: "reg:squarederror"}
_RESERVED = {"seed", "random_state", "nthread", "n_jobs", "num_class", "eval_metric", "disable_default_eval_metric"}
_RESERVED |= {"early_stopping_rounds", "device", "verbosity"}
_ROUNDS = ("num_boost_round", "n_estimators")
_DEFAULT_ROUNDS = 100


def fit(problem: Problem, candidate: Candidate, parameters: dict[str, Any], train: Rows, validation: Rows) -> Fitted:
    """Fit a Booster; see `steps.candidates.Learner`.  Category codes are read as numbers."""
    try:
        import xgboost
    except ImportError:
        message = f"candidate {candidate.name}: XGBoost is not installed"
        raise ConfigError(message, remedy="uv sync --extra xgboost, or pip install 'retrain[xgboost]'") from None
    given = dict(parameters)
    rounds = next((given.pop(name) for name in _ROUNDS if name in given), _DEFAULT_ROUNDS)
    if not isinstance(rounds, int) or rounds < 1:
        raise bad_parameter(candidate, "n_estimators", "is a whole number above 0")
    reserved = sorted(
        _RESERVED & given.keys() | ({"objective"} & given.keys() if problem.task is not Task.REGRESSION else set())
    )
    if reserved:
        raise bad_parameter(
            candidate, reserved[0], "is set by retrain (seed, threads, metric and early stopping stand in the file)"
        )
    settings = {
        "objective": _OBJECTIVES[problem.task],
        "tree_method": "hist",
        **given,
        "seed": problem.seed,
        "nthread": problem.threads,
        "disable_default_eval_metric": 1,
        "validate_parameters": True,
    }
    if problem.task is Task.MULTICLASS:
        settings["num_class"] = problem.classes
    data = xgboost.DMatrix(train.features, train.target, weight=train.weight, nthread=problem.threads)
    stopping, sides, own_metric = [], [], None
    if candidate.early_stopping:
        sides = [(xgboost.DMatrix(validation.features, validation.target, weight=validation.weight), "validation")]
        own_metric = _own_metric(problem, validation)
        stopping = [
            xgboost.callback.EarlyStopping(
                candidate.early_stopping,
                metric_name=problem.metric,
                maximize=METRICS[problem.metric].greater_is_better,
                save_best=True,
            )
        ]
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            booster = xgboost.train(
                settings, data, rounds, evals=sides, custom_metric=own_metric, callbacks=stopping, verbose_eval=False
            )
    except (xgboost.core.XGBoostError, TypeError, ValueError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise bad_parameter(candidate, blamed(str(error), parameters), lines[0] if lines else "was refused") from error
    unused = [str(w.message) for w in said if "are not used" in str(w.message)]
    if unused:
        raise bad_parameter(candidate, blamed(unused[0], parameters), "XGBoost knows no such parameter")
    return Fitted(XgboostEstimator(booster), booster.num_boosted_rounds())


def _own_metric(problem: Problem, validation: Rows) -> Any:
    import numpy as np

    value_of = round_metric(problem, validation)

    def metric(raw: Any, _: Any) -> tuple[str, float]:
        values = np.asarray(raw, dtype=np.float64)
        if problem.task is Task.BINARY:
            values = np.column_stack((1.0 - values, values))
        return problem.metric, value_of(values)

    return metric
