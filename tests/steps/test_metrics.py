"""The metrics are scikit-learn's, and the bootstrap's fast ones equal them on every draw."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.metrics import METRICS, Task
from contracts.pipeline.gates import Bootstrap
from contracts.reports import Interval
from steps.gates import statistics
from steps.metrics import Judged, judge, score, score_judged, scores

ALL = [(task, name) for task in Task for name, info in METRICS.items() if task in info.tasks]


@dataclass(frozen=True)
class Answers:
    labels: np.ndarray
    scores: np.ndarray | None


def draw(task: Task, rows: int, seed: int, *, ties: bool = False) -> Judged:
    random = np.random.default_rng(seed)
    if task is Task.REGRESSION:
        truth = random.normal(100, 3, rows)
        return Judged(task, truth, truth + random.normal(0, 1, rows))
    classes = 2 if task is Task.BINARY else 4
    chances = random.dirichlet(np.ones(classes), rows)
    if ties:
        chances = np.round(chances * 5 + 0.2)
        chances /= chances.sum(axis=1, keepdims=True)
    truth = (chances.cumsum(axis=1) < random.random((rows, 1))).sum(axis=1).clip(max=classes - 1)
    return Judged(task, truth, chances.argmax(axis=1), chances)


def test_numbers_are_those_of_scikit_learn_for_text_labels():
    j = draw(Task.BINARY, 400, 1)
    names = np.array([">50K", "<=50K"])  # the positive class comes first
    answers, truth = Answers(names[j.predicted], j.scores), names[j.truth]
    got = scores(Task.BINARY, [n for t, n in ALL if t is Task.BINARY], truth, answers, list(names), ">50K")

    positive, chance = truth == ">50K", j.scores[:, 0]
    assert got["roc_auc"] == pytest.approx(reference.roc_auc_score(positive, chance))
    assert got["average_precision"] == pytest.approx(reference.average_precision_score(positive, chance))
    assert got["f1"] == pytest.approx(reference.f1_score(truth, answers.labels, pos_label=">50K"))
    assert got["recall"] == pytest.approx(reference.recall_score(truth, answers.labels, pos_label=">50K"))
    assert got["precision"] == pytest.approx(reference.precision_score(truth, answers.labels, pos_label=">50K"))
    assert got["accuracy"] == pytest.approx(reference.accuracy_score(truth, answers.labels))
    assert got["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(truth, answers.labels))
    assert got["log_loss"] == pytest.approx(reference.log_loss(positive, chance))
    assert got["brier"] == pytest.approx(np.mean((chance - positive) ** 2))


def test_several_classes_are_averaged_one_versus_rest():
    j = draw(Task.MULTICLASS, 500, 2)
    assert score_judged(j, "roc_auc") == pytest.approx(
        reference.roc_auc_score(j.truth, j.scores, multi_class="ovr", average="macro")
    )
    assert score_judged(j, "f1") == pytest.approx(reference.f1_score(j.truth, j.predicted, average="macro"))
    assert score_judged(j, "brier") == pytest.approx(np.mean(np.sum((j.scores - np.eye(4)[j.truth]) ** 2, axis=1)))


def test_sample_weights_count_rows_as_often_as_they_say():
    random = np.random.default_rng(3)
    for task, name in ALL:
        j, weight = draw(task, 120, 4), random.integers(1, 4, 120)
        repeated = j.take(np.repeat(np.arange(120), weight))
        assert score_judged(j, name, weight.astype(float)) == pytest.approx(score_judged(repeated, name)), (task, name)


def test_calibration_error_of_known_probabilities():
    scores_ = np.array([[0.75, 0.25]] * 4 + [[0.05, 0.95]] * 4)
    j = Judged(Task.BINARY, np.array([0, 0, 0, 1, 1, 1, 0, 0]), scores_.argmax(axis=1), scores_)
    assert score_judged(j, "calibration_error") == pytest.approx((4 * 0.0 + 4 * 0.45) / 8)


@pytest.mark.parametrize(("labels", "classes"), [([1, 0, 1], ["0", "1"]), ([True, False, True], ["false", "true"])])
def test_labels_of_any_type_are_compared_as_text(labels: list[Any], classes: list[str]):
    answers = Answers(np.array(labels), np.array([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6]]))
    assert score(Task.BINARY, "accuracy", np.array(labels), answers, classes, classes[1]) == 1.0


def test_a_label_the_model_does_not_know_is_refused():
    answers = Answers(np.array(["a", "b"]), np.eye(2))
    with pytest.raises(ValueError, match="none of the 2 classes"):
        judge(Task.MULTICLASS, np.array(["a", "c"]), answers, ["a", "b"])


def test_metrics_without_a_value_are_nan():
    one_class = draw(Task.BINARY, 50, 5)
    one_class = one_class.take(one_class.truth == 1)
    assert np.isnan(score_judged(one_class, "roc_auc"))
    assert np.isnan(score_judged(one_class, "average_precision"))
    assert np.isnan(score_judged(one_class.take(np.array([], dtype=int)), "accuracy"))
    several = draw(Task.MULTICLASS, 50, 6)
    assert np.isnan(score_judged(several.take(several.truth != 2), "roc_auc"))


@settings(deadline=None, max_examples=40)
@given(case=st.sampled_from(ALL), rows=st.integers(5, 80), seed=st.integers(0, 10**6), ties=st.booleans())
def test_bootstrap_kernels_equal_scikit_learn_on_the_drawn_rows(
    case: tuple[Task, str], rows: int, seed: int, ties: bool
):
    task, name = case
    j = draw(task, rows, seed, ties=ties)
    bootstrap = Bootstrap(resamples=100, seed=seed)
    (sample,) = statistics.resample([j], [name], bootstrap)
    counts = statistics._draw(np.random.default_rng(seed), 100, rows)
    for resample in range(0, 100, 25):
        drawn = j.take(np.repeat(np.arange(rows), counts[resample].astype(int)))
        assert sample[name].drawn[resample] == pytest.approx(score_judged(drawn, name), rel=1e-9, abs=1e-9, nan_ok=True)


def test_two_models_get_the_same_draws():
    j = draw(Task.BINARY, 300, 7)
    a, b = statistics.resample([j, j], ["roc_auc"], Bootstrap(resamples=100))
    np.testing.assert_array_equal(a["roc_auc"].drawn, b["roc_auc"].drawn)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random, hits = np.random.default_rng(8), 0
    bootstrap = Bootstrap(resamples=200, confidence=0.9)
    for _ in range(200):
        right = (random.random(300) < 0.8).astype(int)
        j = Judged(Task.BINARY, np.ones(300, dtype=int), right, np.full((300, 2), 0.5))
        found = statistics.interval(statistics.resample([j], ["accuracy"], bootstrap)[0]["accuracy"], bootstrap)
        hits += found is not None and found.low <= 0.8 <= found.high
    assert 169 <= hits <= 194  # 99 % binomial range of 200 draws at 0.9, one wider above: the farther of two ends


def test_no_interval_where_most_draws_have_no_value():
    bootstrap = Bootstrap(resamples=100)
    sample = statistics.Sample(0.5, np.full(20, 0.5), np.full(100, 0.5), 20)
    assert statistics.interval(sample, bootstrap) == Interval(low=0.5, high=0.5, confidence=0.95, resamples=100)
    sample.drawn[:20] = np.nan
    assert statistics.interval(sample, bootstrap) is None


@settings(deadline=None, max_examples=40)
@given(case=st.sampled_from(ALL), rows=st.integers(5, 80), seed=st.integers(0, 10**6))
def test_what_a_number_is_without_a_row_equals_scikit_learn(case: tuple[Task, str], rows: int, seed: int):
    task, name = case
    j = draw(task, rows, seed)
    (sample,) = statistics.resample([j], [name], Bootstrap(resamples=100))
    assert sample[name].whole == pytest.approx(score_judged(j, name), rel=1e-9, abs=1e-9, nan_ok=True)
    for row in range(0, rows, 7):
        rest = j.take(np.delete(np.arange(rows), row))
        assert sample[name].left_out[row] == pytest.approx(score_judged(rest, name), rel=1e-9, abs=1e-9, nan_ok=True)


def test_many_rows_are_left_out_in_parts_and_each_row_once():
    values = np.random.default_rng(3).normal(size=1234)
    j = Judged(Task.REGRESSION, np.zeros(1234), values)
    (sample,) = statistics.resample([j], ["mae"], Bootstrap(resamples=100))
    parts = len(sample["mae"].left_out)
    assert parts <= statistics.MOST_PARTS
    part = np.arange(1234) % parts
    expected = [np.abs(values[part != k]).mean() for k in range(parts)]
    np.testing.assert_allclose(sample["mae"].left_out, expected)


def test_a_thousand_resamples_of_three_thousand_rows_take_less_than_a_second():
    j = draw(Task.BINARY, 3000, 9)
    start = time.process_time()
    statistics.resample([j], ["roc_auc"], Bootstrap(resamples=1000))
    assert time.process_time() - start < 1.0
