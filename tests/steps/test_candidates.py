"""Candidates: each library learns every task, stops early by the file's metric, and refuses what it does not know."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import ConfigError, DataError, Finding
from contracts.metrics import METRICS, Task
from contracts.pipeline.learning import Candidate, Costs, Search, SearchSpace, ThresholdRule
from serving.estimators import FORMATS
from serving.user_code import UserCode
from steps.candidates import Problem, Rows, learner
from steps.candidates.choice import Trial, pick, try_candidate, without_lightgbm
from steps.candidates.lightgbm import missing_library
from steps.candidates.search import trials
from steps.candidates.threshold import choose_threshold

RANDOM = np.random.default_rng(1)
X = np.column_stack((RANDOM.normal(size=(600, 3)), RANDOM.integers(0, 4, 600)))
X[::9, 2] = np.nan
SIGNAL = X[:, 0] + (X[:, 3] == 2) + 0.3 * RANDOM.normal(size=600)
TARGETS: dict[Task, Any] = {
    Task.BINARY: (SIGNAL > 0.3).astype(np.int64),
    Task.MULTICLASS: np.digitize(SIGNAL, [-0.3, 0.6]).astype(np.int64),
    Task.REGRESSION: SIGNAL,
}
BUILT_IN = ("lightgbm", "xgboost", "hist_gradient_boosting", "random_forest", "linear", "dummy")
SMALL = {
    "lightgbm": {"n_estimators": 20},
    "xgboost": {"n_estimators": 20},
    "hist_gradient_boosting": {"max_iter": 20},
    "random_forest": {"n_estimators": 10},
}
OWN = UserCode(
    {
        "mine.py": b"""
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.neighbors import KNeighborsClassifier

def make(C=1.0):
    return make_pipeline(SimpleImputer(), LogisticRegression(C=C))

ready = make()
no_probability = SGDClassifier()
no_weight = make_pipeline(SimpleImputer(), KNeighborsClassifier())
"""
    }
)


def problem(task: Task = Task.BINARY, metric: str = "") -> Problem:
    default = {Task.BINARY: "roc_auc", Task.MULTICLASS: "accuracy", Task.REGRESSION: "rmse"}[task]
    classes = {Task.BINARY: 2, Task.MULTICLASS: 3, Task.REGRESSION: 0}[task]
    return Problem(task, classes, metric or default, tuple("abcd"), (3,), (4,), seed=1, threads=1, code=OWN)


def sides(task: Task = Task.BINARY, weight: bool = False) -> tuple[Rows, Rows]:
    train = Rows(X[:400], TARGETS[task][:400], np.linspace(0.1, 2, 400) if weight else None)
    return train, Rows(X[400:], TARGETS[task][400:])


def candidate(estimator: str, **fields: Any) -> Candidate:
    return Candidate(name="c", estimator=estimator, **fields)


def fit(c: Candidate, p: Problem, weight: bool = False) -> Any:
    return learner(c.estimator)(p, c, dict(c.parameters), *sides(p.task, weight))


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_library_learns_every_task_and_survives_saving(name: str, task: Task, tmp_path: Path) -> None:
    p = problem(task)
    fitted = fit(candidate(name, parameters=SMALL.get(name, {})), p, weight=True)
    before = fitted.estimator.score(X, p.classes)
    assert before.shape == ((600, p.classes) if p.classes else (600,))
    fitted.estimator.save(tmp_path)
    after = FORMATS[fitted.estimator.kind].load(tmp_path).score(X, p.classes)
    assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"data_sample_strategy": "goss"},
        {"bagging_fraction": 0.5, "bagging_freq": 1, "extra_trees": True},
        {"max_bin": 7, "min_data_per_group": 30, "cat_smooth": 1.0},
        {"use_quantized_grad": True},
        {"zero_as_missing": True},
    ],
    ids=lambda more: "-".join(more) or "plain",
)
def test_what_boosting_kept_for_its_rows_is_what_the_estimator_answers(task: Task, more: dict[str, Any]) -> None:
    generator = np.random.default_rng(11)
    odd = np.column_stack([X[:400], generator.choice([0.0, -0.0, 1e-30, np.nan, 3.0], 400)])
    odd[:, 3] = np.minimum(generator.zipf(1.6, 400), 300)  # most categories are rare
    train = Rows(odd, TARGETS[task][:400], np.linspace(0.1, 2, 400))
    p = problem(task)
    fitted = learner("lightgbm")(
        p, candidate("lightgbm"), {"n_estimators": 30, "min_data_in_leaf": 3, **more}, train, train
    )
    assert fitted.train_scores is not None
    np.testing.assert_allclose(fitted.train_scores, fitted.estimator.score(odd, p.classes), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("more", "fields"),
    [({"boosting": "dart"}, {}), ({"boosting": "rf", "bagging_fraction": 0.5, "bagging_freq": 1}, {}),
     ({"linear_tree": True}, {}), ({}, {"early_stopping": 2})],
)  # fmt: skip
def test_where_boosting_keeps_something_else_the_estimator_is_asked(
    more: dict[str, Any], fields: dict[str, Any]
) -> None:
    assert fit(candidate("lightgbm", parameters=SMALL["lightgbm"] | more, **fields), problem()).train_scores is None


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("name", ["lightgbm", "xgboost", "hist_gradient_boosting"])
def test_boosting_stops_early_by_every_metric(name: str, task: Task, tmp_path: Path) -> None:
    rounds = {"lightgbm": "n_estimators", "xgboost": "n_estimators", "hist_gradient_boosting": "max_iter"}[name]
    rate = {"learning_rate": 0.5, rounds: 60}
    for metric in [m.name for m in METRICS.values() if task in m.tasks]:
        fitted = fit(candidate(name, parameters=rate, early_stopping=3), problem(task, metric))
        assert 0 < fitted.rounds <= 60, metric
    fitted.estimator.save(tmp_path)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_parameter_that_the_library_does_not_know_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match="c: parameter no_such_thing") as error:
        fit(candidate(name, parameters={"no_such_thing": 1}), problem())
    assert error.value.findings[0].where == "training.candidates[c].parameters.no_such_thing"


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("lightgbm", "num_leaves", -5),
        ("lightgbm", "learning_rate", "fast"),
        ("lightgbm", "seed", 3),
        ("xgboost", "max_depth", "deep"),
        ("xgboost", "nthread", 8),
        ("hist_gradient_boosting", "learning_rate", -1),
        ("random_forest", "max_depth", "deep"),
        ("linear", "C", -1.0),
        ("dummy", "strategy", "guess"),
    ],
)
def test_a_value_that_the_library_refuses_is_named(name: str, parameter: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=parameter) as error:
        fit(candidate(name, parameters={parameter: value}), problem())
    assert error.value.findings[0].where == f"training.candidates[c].parameters.{parameter}"


def test_a_missing_xgboost_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(ConfigError, match="not installed") as error:
        fit(candidate("xgboost"), problem())
    assert "xgboost" in error.value.remedy


@pytest.mark.parametrize("reference", ["mine:make", "mine:ready", "sklearn.dummy:DummyClassifier"])
def test_own_code_is_a_function_an_instance_or_a_class(reference: str) -> None:
    fitted = fit(candidate(reference), problem(), weight=True)
    assert fitted.estimator.score(X, 2).shape == (600, 2)


@pytest.mark.parametrize(
    ("reference", "parameters", "weight", "said"),
    [
        ("mine:make", {"D": 1}, False, "parameter D"),
        ("mine:ready", {"D": 1}, False, "parameter D"),
        ("mine:no_probability", {}, False, "has no predict_proba"),
        ("mine:no_weight", {}, True, "takes no sample_weight"),
        ("mine:absent", {}, False, "has no absent"),
    ],
)
def test_own_code_that_does_not_fit_says_what_is_missing(
    reference: str, parameters: Any, weight: bool, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        fit(candidate(reference, parameters=parameters), problem(), weight)


def test_the_first_trial_is_the_file_and_the_others_lie_in_the_space() -> None:
    space = {
        "rate": SearchSpace(low=0.001, high=0.1, log=True),
        "leaves": SearchSpace(low=4, high=64, integer=True),
        "kind": SearchSpace(choices=("a", "b")),
    }
    c = candidate("lightgbm", parameters={"rate": 0.5}, search=Search(trials=50, seed=3, space=space))
    drawn = list(trials(c))
    assert drawn[0] == {"rate": 0.5}
    assert len(drawn) == 50
    assert all(0.001 <= t["rate"] <= 0.1 and 4 <= t["leaves"] <= 64 and isinstance(t["leaves"], int) for t in drawn[1:])
    assert drawn == list(trials(c))
    fewer = candidate("lightgbm", search=Search(trials=9, seed=3, space={"rate": space["rate"]}))
    assert [t["rate"] for t in list(trials(fewer))[1:]] == [t["rate"] for t in drawn[1:9]]


def choose(metric: str, *candidates: Candidate, given: tuple[Rows, Rows] | None = None) -> Trial:
    train, validation = given or sides()
    tried = [try_candidate(problem(metric=metric), c, ThresholdRule(), train, validation) for c in candidates]
    return pick(metric, [each.best for each in tried])


def test_of_equal_candidates_the_first_in_the_file_is_chosen() -> None:
    twins = [Candidate(name=name, estimator="dummy") for name in ("first", "second")]

    assert choose("log_loss", *twins).candidate.name == "first"
    assert choose("log_loss", *twins, Candidate(name="third", estimator="linear")).candidate.name == "third"


def test_a_metric_without_a_value_is_a_data_error() -> None:
    train, validation = sides()
    one_class = replace(validation, target=np.zeros_like(validation.target))
    with pytest.raises(DataError, match="has no value"):
        choose(problem().metric, candidate("dummy"), given=(train, one_class))


def test_where_lightgbm_does_not_load_the_others_run() -> None:
    broken = Finding(where="LightGBM", what="libgomp is missing", remedy="apt-get install libgomp1")
    both = [candidate("lightgbm"), Candidate(name="l", estimator="linear")]
    assert [c.estimator for c in without_lightgbm(both, broken)] == ["linear"]
    with pytest.raises(ConfigError, match="libgomp") as error:
        without_lightgbm(both[:1], broken)
    assert error.value.remedy == "apt-get install libgomp1"


@pytest.mark.parametrize(
    ("system", "command"), [("Darwin", "brew install libomp"), ("Linux", "apt-get install libgomp1")]
)
def test_the_command_that_mends_lightgbm_fits_the_platform(system: str, command: str) -> None:
    assert command in missing_library("cannot open shared object file", system).remedy


SCORED = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 1.0])), min_size=2, max_size=30)


def f1(truth: Any, said: Any) -> float:
    return float(2 * (truth & said).sum() / max(truth.sum() + said.sum(), 1))


@given(SCORED)
@settings(max_examples=60, deadline=None)
def test_no_cut_beats_the_threshold_that_was_chosen(rows: list[tuple[bool, float]]) -> None:
    truth, scores = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    chosen = choose_threshold(ThresholdRule(rule="metric", metric="f1"), truth, scores)
    cuts = [0.0, 2.0, *scores]
    assert f1(truth, scores >= chosen) >= max(f1(truth, scores >= t) for t in cuts) - 1e-9
    costs = ThresholdRule(rule="cost", cost=Costs(false_positive=1, false_negative=5))
    by_cost = choose_threshold(costs, truth, scores)

    def cost(t: float) -> float:
        return float(((scores >= t) & ~truth).sum() + 5 * ((scores < t) & truth).sum())

    assert cost(by_cost) <= min(cost(t) for t in cuts)


def test_the_half_rule_is_one_half() -> None:
    assert choose_threshold(ThresholdRule(), np.array([True, False]), np.array([0.1, 0.2])) == 0.5
