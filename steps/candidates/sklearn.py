"""scikit-learn's own: gradient boosting on histograms, random forest, linear models, and a dummy to compare with."""

from __future__ import annotations

import warnings
from typing import Any

from contracts.metrics import Task
from contracts.pipeline.learning import Candidate
from serving.estimators import SkopsEstimator
from steps.candidates import Fitted, Problem, Rows, bad_parameter, blamed, one_thread

_SCORING = {
    "brier": "neg_brier_score",
    "calibration_error": "loss",  # scikit-learn has no such scorer
    "log_loss": "neg_log_loss",
    "mae": "neg_mean_absolute_error",
    "median_absolute_error": "neg_median_absolute_error",
    "rmse": "neg_root_mean_squared_error",
}
_OF_CLASSES = {"f1": "f1_macro", "precision": "precision_macro", "recall": "recall_macro", "roc_auc": "roc_auc_ovr"}
_RESERVED = {
    "random_state",
    "n_jobs",
    "verbose",
    "early_stopping",
    "n_iter_no_change",
    "scoring",
    "categorical_features",
}
_RESERVED |= {"validation_fraction", "class_weight", "warm_start"}
_LINEAR_ITERATIONS = 1000
_MOST_CATEGORIES = 255


def fit(problem: Problem, candidate: Candidate, parameters: dict[str, Any], train: Rows, validation: Rows) -> Fitted:
    """Fit a built-in scikit-learn estimator; see `steps.candidates.Learner`.

    With early stopping, histogram boosting keeps the rounds up to where it stopped.
    """
    from sklearn.exceptions import UndefinedMetricWarning

    if reserved := sorted(_RESERVED & parameters.keys()):
        raise bad_parameter(
            candidate, reserved[0], "is set by retrain (seed, weights, metric and early stopping stand in the file)"
        )
    estimator = _make(problem, candidate.estimator)
    last = estimator.steps[-1][1] if candidate.estimator == "linear" else estimator
    known = last.get_params()
    for name in parameters:
        if name not in known:
            raise bad_parameter(candidate, name, f"{type(last).__name__} knows no such parameter")
    last.set_params(**parameters)
    fit_arguments: dict[str, Any] = {}
    if candidate.early_stopping:
        if candidate.estimator != "hist_gradient_boosting":
            raise bad_parameter(candidate, "", f"early_stopping is for boosting, {candidate.estimator} has no rounds")
        last.set_params(early_stopping=True, n_iter_no_change=candidate.early_stopping, scoring=_scoring(problem))
        fit_arguments = {"X_val": validation.features, "y_val": validation.target}
        fit_arguments |= {"sample_weight_val": validation.weight} if validation.weight is not None else {}
    if train.weight is not None:
        prefix = f"{estimator.steps[-1][0]}__" if candidate.estimator == "linear" else ""
        fit_arguments[f"{prefix}sample_weight"] = train.weight
    try:
        with one_thread(), warnings.catch_warnings():
            # a round that predicts one class only has no precision; the metric says so by its value
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            estimator.fit(train.features, train.target, **fit_arguments)
    except (TypeError, ValueError) as error:
        text = str(error).splitlines()[0]
        if name := blamed(text, parameters):
            raise bad_parameter(candidate, name, text) from error
        raise
    rounds = last.n_iter_ if candidate.estimator == "hist_gradient_boosting" else None
    return Fitted(SkopsEstimator(_at_rest(estimator, candidate.estimator)), rounds)


def _make(problem: Problem, name: str) -> Any:
    is_classes = problem.task is not Task.REGRESSION
    if name == "dummy":
        from sklearn.dummy import DummyClassifier, DummyRegressor

        return DummyClassifier(strategy="prior") if is_classes else DummyRegressor()
    if name == "random_forest":
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        # each tree has its own seed, so threads change nothing
        forest = RandomForestClassifier if is_classes else RandomForestRegressor
        return forest(random_state=problem.seed, n_jobs=problem.threads)
    if name == "hist_gradient_boosting":
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        boosting = HistGradientBoostingClassifier if is_classes else HistGradientBoostingRegressor
        # it takes at most 255 categories a feature; codes of wider ones are read as numbers
        narrow = [i for i, n in zip(problem.categorical, problem.cardinalities, strict=True) if n <= _MOST_CATEGORIES]
        return boosting(random_state=problem.seed, categorical_features=narrow or None, early_stopping=False)
    return _linear(problem, is_classes)


def _linear(problem: Problem, is_classes: bool) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numeric = [i for i in range(len(problem.feature_names)) if i not in set(problem.categorical)]
    scaled = Pipeline(
        [("impute", SimpleImputer(strategy="median", keep_empty_features=True)), ("scale", StandardScaler())]
    )
    one_hot = OneHotEncoder(handle_unknown="ignore")
    prepare = ColumnTransformer([("numeric", scaled, numeric), ("categories", one_hot, list(problem.categorical))])
    model = LogisticRegression(max_iter=_LINEAR_ITERATIONS) if is_classes else Ridge()
    model.set_params(random_state=problem.seed)
    return Pipeline([("prepare", prepare), ("model", model)])


def _scoring(problem: Problem) -> str:
    """Return scikit-learn's name of the metric; names are scored round by round, functions would see all trees anew."""
    if problem.task is Task.MULTICLASS and problem.metric in _OF_CLASSES:
        return _OF_CLASSES[problem.metric]
    return _SCORING.get(problem.metric, problem.metric)


def _at_rest(estimator: Any, name: str) -> Any:
    """Drop what a fitted estimator needs no more: the scorer that stopped it, and the wish for threads."""
    if name == "random_forest":
        estimator.set_params(n_jobs=None)  # summing trees in the order that threads end would change the last bits
    if name == "hist_gradient_boosting":
        estimator.set_params(scoring="loss")
        for leftover in ("_scorer", "_raw_predict"):
            vars(estimator).pop(leftover, None)
    return estimator
