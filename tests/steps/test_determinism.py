"""Same inputs, same predictions to the bit, with 1, 2 and 4 threads: LightGBM and what is shipped of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from contracts.metrics import Task
from contracts.pipeline.learning import Candidate
from steps.candidates import Problem, Rows, learner

RANDOM = np.random.default_rng(0)
ROWS = 4000
FEATURES = np.column_stack((RANDOM.normal(size=(ROWS, 6)), RANDOM.integers(0, 9, ROWS)))
FEATURES[::7, 1] = np.nan
SIGNAL = (
    FEATURES[:, 0]
    + 0.5 * np.nan_to_num(FEATURES[:, 1]) * FEATURES[:, 2]
    + (FEATURES[:, 6] > 4)
    + RANDOM.normal(size=ROWS)
)
TARGETS = {
    Task.BINARY: (SIGNAL > 0.5).astype(np.int64),
    Task.MULTICLASS: np.digitize(SIGNAL, [0, 1]).astype(np.int64),
    Task.REGRESSION: SIGNAL,
}
METRICS = {Task.BINARY: "roc_auc", Task.MULTICLASS: "log_loss", Task.REGRESSION: "rmse"}
CANDIDATES = {
    "lightgbm": Candidate(
        name="a",
        estimator="lightgbm",
        parameters={"n_estimators": 30, "bagging_fraction": 0.8, "bagging_freq": 1},
        early_stopping=5,
    ),
    "hist_gradient_boosting": Candidate(
        name="b", estimator="hist_gradient_boosting", parameters={"max_iter": 6}, early_stopping=5
    ),
    "random_forest": Candidate(name="c", estimator="random_forest", parameters={"n_estimators": 10, "max_depth": 6}),
    "linear": Candidate(name="d", estimator="linear"),
}


def predictions(candidate: Candidate, task: Task, threads: int) -> np.ndarray:
    classes = {Task.BINARY: 2, Task.MULTICLASS: 3, Task.REGRESSION: 0}[task]
    names = tuple("abcdefg")
    problem = Problem(
        task, classes, METRICS[task], names, categorical=(6,), cardinalities=(9,), seed=3, threads=threads
    )
    train = Rows(FEATURES[:3000], TARGETS[task][:3000], np.linspace(0.5, 1.5, 3000))
    validation = Rows(FEATURES[3000:], TARGETS[task][3000:])
    fitted = learner(candidate.estimator)(problem, candidate, dict(candidate.parameters), train, validation)
    return fitted.estimator.score(FEATURES[:500], classes)


@pytest.mark.parametrize(
    "task", [Task.BINARY, *(pytest.param(t, marks=pytest.mark.faults) for t in (Task.MULTICLASS, Task.REGRESSION))]
)
@pytest.mark.parametrize("name", list(CANDIDATES))
def test_the_number_of_threads_changes_no_bit(name: str, task: Task) -> None:
    one, two, four = (predictions(CANDIDATES[name], task, threads) for threads in (1, 2, 4))
    assert one.tobytes() == two.tobytes() == four.tobytes()


def test_another_seed_changes_what_is_drawn() -> None:
    candidate = CANDIDATES["random_forest"]
    problem = Problem(Task.BINARY, 2, "roc_auc", tuple("abcdefg"), seed=1)
    rows = Rows(FEATURES[:2000], TARGETS[Task.BINARY][:2000])
    fit = learner("random_forest")
    one = fit(problem, candidate, dict(candidate.parameters), rows, rows).estimator.score(FEATURES, 2)
    other = fit(
        Problem(Task.BINARY, 2, "roc_auc", tuple("abcdefg"), seed=2), candidate, dict(candidate.parameters), rows, rows
    )
    assert not np.array_equal(one, other.estimator.score(FEATURES, 2))
