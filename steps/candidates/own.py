"""The user's own estimator or Pipeline, by ``module:attribute``: a class, an instance, or a function that makes one."""

from __future__ import annotations

import inspect
from typing import Any

from contracts.errors import ConfigError, Finding
from contracts.metrics import Task
from contracts.pipeline.learning import Candidate
from serving.estimators import SkopsEstimator
from steps.candidates import Fitted, Problem, Rows, bad_parameter, blamed, one_thread


def fit(problem: Problem, candidate: Candidate, parameters: dict[str, Any], train: Rows, validation: Rows) -> Fitted:  # noqa: ARG001
    """Fit the user's estimator; see `steps.candidates.Learner`.

    Every `random_state` that is still unset gets the seed.  Row and class weights arrive as `sample_weight`.
    """
    estimator = _make(problem, candidate, parameters)
    if candidate.early_stopping:
        raise bad_parameter(
            candidate, "", "early_stopping is for boosting that retrain knows; stop inside your estimator"
        )
    wanted = "predict" if problem.task is Task.REGRESSION else "predict_proba"
    if not hasattr(estimator, "fit") and not hasattr(estimator, "predict"):
        raise _wrong(candidate, f"gives {type(estimator).__name__}, which is no estimator", "return the estimator")
    if not hasattr(estimator, "fit") or not hasattr(estimator, wanted):
        remedy = "give it fit and predict_proba (CalibratedClassifierCV adds one)" if wanted == "predict_proba" else ""
        raise _wrong(
            candidate, f"{type(estimator).__name__} has no {'fit' if not hasattr(estimator, 'fit') else wanted}", remedy
        )
    settings = estimator.get_params() if hasattr(estimator, "get_params") else {}
    unset = [name for name, value in settings.items() if value is None and name.split("__")[-1] == "random_state"]
    if unset:
        estimator.set_params(**dict.fromkeys(unset, problem.seed))
    arguments = {} if train.weight is None else {_weight_argument(candidate, estimator): train.weight}
    with one_thread():
        estimator.fit(train.features, train.target, **arguments)
    return Fitted(SkopsEstimator(estimator))


def _make(problem: Problem, candidate: Candidate, parameters: dict[str, Any]) -> Any:
    found = problem.code.resolve(candidate.estimator)
    if not callable(found):
        return _with_parameters(candidate, found, parameters)
    try:
        inspect.signature(found).bind(**parameters)
    except TypeError as error:
        what = f"{candidate.estimator} takes other parameters: {error}"
        raise bad_parameter(candidate, blamed(str(error), parameters), what) from None
    except ValueError:
        pass  # a callable written in C shows no signature; calling it will tell
    return found(**parameters)


def _with_parameters(candidate: Candidate, instance: Any, parameters: dict[str, Any]) -> Any:
    from sklearn.base import clone

    try:
        copy = clone(instance)  # the module's own instance stays as it is, for the next trial
    except TypeError as error:
        raise _wrong(candidate, f"it is no scikit-learn estimator: {error}") from None
    known = copy.get_params()
    for name in parameters:
        if name not in known:
            raise bad_parameter(candidate, name, f"{type(copy).__name__} knows no such parameter")
    return copy.set_params(**parameters)


def _weight_argument(candidate: Candidate, estimator: Any) -> str:
    from sklearn.pipeline import Pipeline
    from sklearn.utils.validation import has_fit_parameter

    prefix, target = "", estimator
    while isinstance(target, Pipeline):
        name, target = target.steps[-1]
        prefix += f"{name}__"
    if not has_fit_parameter(target, "sample_weight"):
        raise _wrong(
            candidate, f"{type(target).__name__}.fit takes no sample_weight", "remove sample_weight and class_weight"
        )
    return f"{prefix}sample_weight"


def _wrong(candidate: Candidate, what: str, remedy: str = "") -> ConfigError:
    finding = Finding(where=f"training.candidates[{candidate.name}].estimator", what=what, remedy=remedy)
    return ConfigError(f"candidate {candidate.name} ({candidate.estimator}): {what}", findings=[finding], remedy=remedy)
