"""Rows of one group resemble each other: with a split by group, groups are resampled, and intervals stay honest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import ConfigError
from contracts.metrics import METRICS, Task
from contracts.outcomes import Verdict
from contracts.pipeline.gates import Bootstrap, Comparison, SliceRule, Threshold, ValidationGate
from contracts.reports import ValidationReport
from contracts.stages import Evaluate
from steps.evaluate import evaluate
from steps.gates import promotion, statistics, validation
from steps.gates.bounds import check, measure
from steps.judging.assessment import assess, trained
from steps.metrics import Judged, score_judged
from steps.world import World
from tests.steps.judged_runs import PIPELINE, churn_world, train_run, write_rows

GROUPS, ROWS = 60, 20
MAE = Comparison(metric="mae", bootstrap=Bootstrap(resamples=200))


def regression(random: np.random.Generator, groups: int = GROUPS, rows: int = ROWS) -> Judged:
    """A model whose errors are mostly the group's and a little the row's."""
    codes = np.repeat(np.arange(groups), rows)
    error = random.normal(0, 1, groups)[codes] + random.normal(0, 0.3, groups * rows)
    return Judged(Task.REGRESSION, np.zeros(groups * rows), error, groups=codes)


@dataclass(frozen=True)
class Shares:
    covered: float
    superior: float


def simulate(repetitions: int, *, by_group: bool) -> Shares:
    """How often the interval of two equally good models' difference holds zero, and how often it calls one superior."""
    random, covered, superior = np.random.default_rng(11), 0, 0
    for _ in range(repetitions):
        one, other = regression(random), regression(random)
        if not by_group:
            one = replace(one, groups=None)
        found = promotion.compare(one, other, MAE).interval
        assert found is not None
        covered += found.low <= 0 <= found.high
        superior += found.low > 0
    return Shares(covered / repetitions, superior / repetitions)


def test_two_equally_good_models_are_seldom_told_apart_by_group_and_often_by_row():
    by_group = simulate(200, by_group=True)
    # the 99 % binomial bounds of 200 repetitions at 0.95 and 0.025
    assert by_group.covered >= 0.91
    assert by_group.superior <= 0.055
    assert simulate(100, by_group=False).covered < 0.6


def test_the_interval_of_one_models_number_holds_the_truth_as_often_as_it_says():
    random, hits, truth = np.random.default_rng(12), 0, np.sqrt((1 + 0.3**2) * 2 / np.pi)
    for _ in range(200):
        (found,) = measure(regression(random), [Threshold(metric="mae", max=1)], MAE.bootstrap)
        hits += found.interval is not None and found.interval.low <= truth <= found.interval.high
    assert hits >= 176


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(statistics.MIN_GROUPS, 60), seed=st.integers(0, 10**6), name=st.sampled_from(["mae", "r2", "rmse"])
)
def test_groups_of_one_row_each_are_rows(rows: int, seed: int, name: str):
    random = np.random.default_rng(seed)
    alone = Judged(Task.REGRESSION, random.normal(size=rows), random.normal(size=rows))
    bootstrap = Bootstrap(resamples=100, seed=seed)
    (by_row,) = statistics.resample([alone], [name], bootstrap)
    # numbers with holes, as a part of a dataset's groups has them
    (by_group,) = statistics.resample([replace(alone, groups=np.arange(rows) * 7)], [name], bootstrap)
    np.testing.assert_array_equal(by_group[name].drawn, by_row[name].drawn)
    np.testing.assert_array_equal(by_group[name].left_out, by_row[name].left_out)


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if Task.BINARY in metric.tasks])
def test_every_metric_is_that_of_the_drawn_groups_rows(name: str):
    random = np.random.default_rng(13)
    codes = random.integers(0, 18, 90)
    chance = np.round(random.random(90), 1)
    j = Judged(
        Task.BINARY,
        (random.random(90) < chance).astype(int),
        (chance > 0.5).astype(int),
        np.column_stack([1 - chance, chance]),
        groups=codes,
    )
    (sample,) = statistics.resample([j], [name], Bootstrap(resamples=100, seed=3))
    drawn = np.random.default_rng(3).integers(18, size=(100, 18))
    for resample in range(0, 100, 20):
        rows = np.concatenate([np.flatnonzero(codes == group) for group in drawn[resample]])
        assert sample[name].drawn[resample] == pytest.approx(score_judged(j.take(rows), name), nan_ok=True)


def test_the_reason_says_how_many_groups_were_resampled():
    j = regression(np.random.default_rng(14))
    (found,) = measure(j, [Threshold(metric="mae", max=2)], MAE.bootstrap)
    assert "] (60 groups resampled) <= 2" in check("mae", found, maximum=2, decide="interval").reason
    (alone,) = measure(replace(j, groups=None), [Threshold(metric="mae", max=2)], MAE.bootstrap)
    assert "group" not in check("mae", alone, maximum=2, decide="interval").reason


def test_few_groups_give_no_interval_however_many_rows_they_have():
    j = regression(np.random.default_rng(15), groups=14, rows=100)
    (found,) = measure(j, [Threshold(metric="mae", max=5)], MAE.bootstrap)
    result = check("mae", found, maximum=5, decide="interval")
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.reason.endswith("has no interval: its 1400 rows are of 14 groups, fewer than 15")
    assert check("mae", found, maximum=5, decide="point").verdict is Verdict.PASSED
    assert promotion.compare(j, j, MAE).interval is None


def test_a_slice_resamples_the_groups_that_have_rows_in_it():
    j = regression(np.random.default_rng(16))
    rule = SliceRule(column="region", metric="mae", max=5, min_rows=10)
    gate = ValidationGate(thresholds=(Threshold(metric="mae", max=5),), slices=(rule,), bootstrap=MAE.bootstrap)
    regions = np.where(np.arange(j.rows) < 15 * ROWS, "north", "south").tolist()
    decision = validation.decide(
        validation.collect(j, gate, [validation.grouped(regions, rule, sensitive=False)]), gate
    )
    whole, south, north = (check.reason for check in decision.checks)
    assert "(60 groups resampled)" in whole
    assert "(45 groups resampled)" in south
    assert "(15 groups resampled)" in north


# Through the stage


GROUPED = (
    PIPELINE.replace("key: [id]}", "key: [id], method: group, group: family}")
    .replace(
        "    - {name: churned",
        "    - {name: family, type: string, nullable: false, sensitive: true}\n    - {name: churned",
    )
    .replace("{column: faith, drop: true}", "{column: faith, drop: true}, {column: family, drop: true}")
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grouped")
    write_rows(folder / "churn.csv")
    table = pa.csv.read_csv(folder / "churn.csv")
    families = pa.array([f"secret-family-{number % 150}" for number in range(len(table))])
    pa.csv.write_csv(table.append_column("family", families), folder / "churn.csv")
    return folder


@pytest.fixture(scope="module")
def world(home: Path) -> World:
    return churn_world(home, GROUPED)


@pytest.fixture(scope="module")
def run(world: World, home: Path) -> str:
    return train_run(world, home)


def test_a_split_by_group_is_judged_by_group_and_no_cell_of_it_is_reported(world: World, run: str):
    outputs = evaluate(Evaluate.Inputs(run_id=run), world=world)
    written = world.storage.read(outputs.report)
    subject = assess(world, trained(world, run))
    groups = len(set(subject.rows.column("family").to_pylist()))
    assert 20 < groups < 80
    assert f"({groups} groups resampled)" in ValidationReport.model_validate_json(written).reason
    assert b"secret-family" not in written


def test_the_champion_is_compared_on_groups_of_the_rows_that_it_has_not_seen(world: World, run: str):
    subject = assess(world, trained(world, run))
    part = subject.judged.take(np.arange(subject.judged.rows) < 200)
    found = promotion.compare(part, replace(part, groups=None), Comparison(metric="roc_auc"))
    assert found.groups == len(set(subject.rows.column("family").to_pylist()[:200]))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (GROUPED.replace("method: group, group: family", "method: random"), "split.group is gone"),
        (GROUPED.replace("group: family", "group: region"), "were not split by split.group region"),
    ],
)
def test_a_file_whose_groups_are_not_those_of_the_split_is_refused(home: Path, run: str, changed: str, said: str):
    with pytest.raises(ConfigError, match=said):
        assess(other := churn_world(home, changed), trained(other, run))
