"""Choosing among many candidates on validation rows does not help a worthless one through the gate on test rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from contracts.outcomes import Verdict
from contracts.pipeline.gates import Bootstrap, Threshold, ValidationGate
from steps.gates.bounds import Measurement
from steps.gates.validation import Evidence, decide
from steps.metrics import Floats

GATE = ValidationGate(thresholds=(Threshold(metric="roc_auc", min=0.58),), bootstrap=Bootstrap(decide="point"))
TRIALS, CANDIDATES, ROWS = 400, 200, 100


def random_aucs(generator: np.random.Generator) -> Floats:
    """AUC of candidates that answer at random, [trials, candidates]: the rank sum of half the rows' random ranks."""
    scores = generator.random((TRIALS, CANDIDATES, ROWS), dtype=np.float32)
    positives = ROWS // 2
    ranks = scores.argsort(axis=2).argsort(axis=2)[:, :, :positives].sum(axis=2)
    return (ranks - positives * (positives - 1) / 2) / (positives * (ROWS - positives))


def passes(auc: float) -> bool:
    return decide(Evidence((Measurement(auc, None, ROWS),)), GATE).verdict is Verdict.PASSED


@pytest.fixture(scope="module")
def trials() -> tuple[Floats, Floats]:
    generator = np.random.default_rng(20)
    return random_aucs(generator), random_aucs(generator)


def most_by_chance(test: Floats) -> float:
    """How many of the trials one random candidate passes at most, with 99 % probability."""
    return float(binom.ppf(0.99, TRIALS, np.mean(test >= 0.58)))


def test_the_best_of_200_on_validation_passes_no_more_often_than_one_random_candidate(trials: tuple[Floats, Floats]):
    validation, test = trials
    chosen = test[np.arange(TRIALS), validation.argmax(axis=1)]
    assert 0 < sum(map(passes, chosen)) <= most_by_chance(test)


def test_the_same_check_fails_when_the_choice_is_moved_to_test_rows(trials: tuple[Floats, Floats]):
    _, test = trials
    chosen = test[np.arange(TRIALS), test.argmax(axis=1)]
    assert sum(map(passes, chosen)) > 5 * most_by_chance(test)
