"""LightGBM: fit a Booster, deterministic whatever the number of threads."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np

from contracts.errors import Finding
from contracts.metrics import METRICS, Task
from contracts.pipeline.learning import Candidate
from serving.estimators import LightgbmEstimator, as_table
from steps.candidates import Fitted, Problem, Rows, bad_parameter, blamed
from steps.candidates.rounds import round_metric

_OBJECTIVES = {Task.BINARY: "binary", Task.MULTICLASS: "multiclass", Task.REGRESSION: "regression"}
_NATIVE = {
    ("roc_auc", Task.BINARY): "auc",
    ("average_precision", Task.BINARY): "average_precision",
    ("log_loss", Task.BINARY): "binary_logloss",
    ("log_loss", Task.MULTICLASS): "multi_logloss",
    ("rmse", Task.REGRESSION): "rmse",
    ("r2", Task.REGRESSION): "rmse",  # the round of least squared error is the round of the best r2
    ("mae", Task.REGRESSION): "l1",
}
"""LightGBM's own name of a metric that orders rounds alike; others are computed by `steps.metrics` after each round."""
_RESERVED = {
    "objective",
    "num_class",
    "metric",
    "deterministic",
    "force_col_wise",
    "force_row_wise",
    "seed",
    "num_threads",
}
_RESERVED |= {"early_stopping_round", "data", "valid", "input_model", "output_model", "config", "task", "device_type"}
_ROUNDS = 100
_SUMS_TREES = {"boosting": "gbdt", "linear_tree": False}
"""With these, what training keeps for its rows is the sum of the trees that `predict` gives."""


def lightgbm_problem() -> Finding | None:
    """Say why LightGBM can't be loaded here, and the command that mends it; None when it can."""
    try:
        _load()
    except OSError as error:
        return missing_library(str(error), platform.system())
    except ImportError as error:
        return Finding(
            where="LightGBM", what=f"is not installed: {error}", remedy="run `make setup`, or pip install lightgbm"
        )
    return None


def known_parameters() -> set[str] | None:
    """Return every name that LightGBM knows, asked of the library alone; None when it cannot be."""
    try:
        library = _load()
    except (OSError, ImportError):
        return None
    if library is None:
        return set(_main_names())
    size, buffer = ctypes.c_int64(0), ctypes.create_string_buffer(1 << 20)
    if library.LGBM_DumpParamAliases(ctypes.c_int64(len(buffer)), ctypes.byref(size), buffer) != 0:
        return None
    aliases: dict[str, list[str]] = json.loads(buffer.value)
    return {name for main, others in aliases.items() for name in (main, *others)}


def _load() -> ctypes.CDLL | None:
    """Load the library alone: importing the package takes a second or two, for scikit-learn comes with it."""
    found = importlib.util.find_spec("lightgbm")
    places = [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    names = ("lib/lib_lightgbm.so", "lib/lib_lightgbm.dylib")
    library = next((place / name for place in places for name in names if (place / name).is_file()), None)
    if library is not None:
        return ctypes.CDLL(str(library))
    importlib.import_module("lightgbm")
    return None


def missing_library(message: str, system: str) -> Finding:
    """Say which OpenMP library is missing on `system` (as `platform.system()` calls it) and how to get it."""
    if system == "Darwin":
        library, remedy = "libomp", "brew install libomp"
    else:
        library, remedy = "libgomp", "apt-get install libgomp1 (dnf install libgomp on Fedora and its like)"
    return Finding(
        where="LightGBM", what=f"its library can't be loaded, {library} is missing: {message}", remedy=remedy
    )


def fit(problem: Problem, candidate: Candidate, parameters: dict[str, Any], train: Rows, validation: Rows) -> Fitted:
    """Fit a Booster; see `steps.candidates.Learner`."""
    import lightgbm as lgb

    settings, rounds = _settings(problem, candidate, parameters)
    data = lgb.Dataset(
        train.features,
        train.target,
        weight=train.weight,
        categorical_feature=list(problem.categorical),
        params=settings,
    )
    sides, callbacks, own_metric = [], [], None
    if candidate.early_stopping:
        sides = [
            lgb.Dataset(
                validation.features, validation.target, weight=validation.weight, reference=data, params=settings
            )
        ]
        callbacks = [lgb.early_stopping(candidate.early_stopping, first_metric_only=True, verbose=False)]
        settings["metric"] = _NATIVE.get((problem.metric, problem.task), "None")
        if settings["metric"] == "None":
            own_metric = _own_metric(problem, validation)
    try:
        booster = lgb.train(
            settings, data, rounds, valid_sets=sides, feval=own_metric, callbacks=callbacks, keep_training_booster=True
        )
    except (lgb.basic.LightGBMError, TypeError, ValueError) as error:
        raise bad_parameter(candidate, blamed(str(error), parameters), str(error).splitlines()[0]) from error
    known = not candidate.early_stopping and all(settings.get(n, value) == value for n, value in _SUMS_TREES.items())
    scores = as_table(_train_scores(booster), problem.classes) if known else None
    booster.model_from_string(booster.model_to_string()).free_dataset()  # as `train` does unless it is to go on
    rounds = booster.best_iteration if candidate.early_stopping else booster.current_iteration()
    return Fitted(LightgbmEstimator(booster), rounds, scores)


def _train_scores(booster: Any) -> Any:
    """Return the answers for the training rows that boosting kept up to date: asking the trees again takes longer."""
    kept = []

    def keep(scores: Any, _: Any) -> list[Any]:
        kept.append(scores.copy())
        return []

    booster.eval_train(keep)
    return kept[0]


def _settings(problem: Problem, candidate: Candidate, parameters: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return LightGBM's parameters by their main names, and the number of rounds."""
    main_names = _main_names()
    given: dict[str, Any] = {}
    for name, value in parameters.items():
        main = main_names.get(name)
        if main is None:
            raise bad_parameter(candidate, name, "LightGBM knows no such parameter")
        if main in _RESERVED and not (main == "objective" and problem.task is Task.REGRESSION):
            raise bad_parameter(
                candidate, name, "is set by retrain (seed, threads, metric and early stopping stand in the file)"
            )
        given[main] = value
    rounds = given.pop("num_iterations", _ROUNDS)
    if not isinstance(rounds, int) or rounds < 1:
        raise bad_parameter(candidate, "n_estimators", "is a whole number above 0")
    settings = {
        "objective": _OBJECTIVES[problem.task],
        "verbosity": -1,
        **given,
        "deterministic": True,
        # each feature's histogram is summed by one thread, row by row, so the number of threads changes no sum
        "force_col_wise": True,
        "seed": problem.seed,
        "num_threads": problem.threads,
    }
    if problem.task is Task.MULTICLASS:
        settings["num_class"] = problem.classes
    return settings, rounds


def _main_names() -> dict[str, str]:
    """Return every name that LightGBM knows -> its main name."""
    from lightgbm.basic import _ConfigAliases

    aliases: dict[str, list[str]] = _ConfigAliases._get_all_param_aliases()
    return {name: main for main, others in aliases.items() for name in (main, *others)}


def _own_metric(problem: Problem, validation: Rows) -> Any:
    value_of = round_metric(problem, validation)

    def metric(raw: Any, _: Any) -> tuple[str, float, bool]:
        values = np.asarray(raw, dtype=np.float64)
        if problem.task is Task.BINARY:
            values = np.column_stack((1.0 - values, values))
        return problem.metric, value_of(values), METRICS[problem.metric].greater_is_better

    return metric
