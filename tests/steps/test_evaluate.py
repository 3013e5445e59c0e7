"""The evaluate stage: test rows alone against the policy of the environment, reported to the last number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from contracts.errors import DataError
from contracts.names import tag
from contracts.outcomes import Verdict
from contracts.reports import ValidationReport
from contracts.stages import Evaluate
from serving.model import PackagedModel
from steps.dataset import read_table
from steps.evaluate import evaluate
from steps.judging.assessment import assess, trained
from steps.mlflow_connection import mlflow_client
from steps.splitting import read_split
from steps.world import World
from tests.steps.judged_runs import PIPELINE, churn_world, train_run, write_rows

SLICES = """    validation:
      slices:
        - {column: region, metric: roc_auc, min: 0.6, min_rows: 100}
        - {column: faith, metric: accuracy, min: 0.5, min_rows: 200}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def world(home: Path) -> World:
    write_rows(home / "churn.csv")
    return churn_world(home, PIPELINE.replace("    validation:\n", SLICES))


@pytest.fixture(scope="module")
def run(world: World, home: Path) -> str:
    return train_run(world, home)


def judge(world: World, run: str) -> tuple[Evaluate.Outputs, ValidationReport]:
    outputs = evaluate(Evaluate.Inputs(run_id=run), world=world)
    return outputs, ValidationReport.model_validate_json(world.storage.read(outputs.report))


def test_a_good_model_passes_and_says_by_which_numbers(world: World, run: str):
    outputs, report = judge(world, run)
    assert outputs.verdict is Verdict.PASSED
    assert outputs.report.endswith(f"/reports/{run}/validation.json")
    assert outputs.summary.startswith("passed: roc_auc 0.8")
    assert ">= 0.75" in outputs.summary
    assert report.checks[0].interval is not None
    assert report.test_rows > 400


def test_the_numbers_are_those_of_the_test_rows_computed_apart(world: World, run: str):
    _, report = judge(world, run)
    tags = world.tracking.record(run).tags
    table = read_table(world, tags[tag("dataset")]).filter(read_split(world, tags[tag("split")]).mask("test"))
    chance = assess(world, trained(world, run)).model.predict(table).scores[:, 1]
    truth = np.array(table.column("churned").to_pylist()) == "yes"
    assert report.metrics["roc_auc"] == pytest.approx(roc_auc_score(truth, chance))
    assert report.test_rows == len(table)


def test_slices_are_judged_or_reported_and_sensitive_values_stay_hidden(world: World, run: str):
    _, report = judge(world, run)
    north, south, *faiths = report.checks[1:]
    assert (north.name, north.verdict) == ("roc_auc of region=north", Verdict.PASSED)
    assert (south.rows or 0) > 100
    assert [c.name for c in faiths] == ["accuracy of faith=(1 of 2, masked)", "accuracy of faith=(2 of 2, masked)"]
    assert faiths[1].verdict is None
    assert "hidden" not in report.model_dump_json()


def test_judged_again_it_says_the_same_byte_for_byte_and_logs_nothing_twice(world: World, run: str):
    outputs, _ = judge(world, run)
    first = world.storage.read(outputs.report)
    world.storage.write(outputs.report, b"somebody else's report")
    for forgotten in ((), world.storage.list(world.storage.uri("cache", "evaluate"))):
        for each in forgotten:
            world.storage.delete(each)
        again, _ = judge(world, run)
        assert again == outputs
        assert world.storage.read(again.report) == first
    assert len(mlflow_client(world.settings).get_metric_history(run, "test.roc_auc")) == 1
    assert world.tracking.record(run).tags[tag("validation")] == "passed"


def test_what_was_judged_before_is_not_scored_again_unless_model_or_policy_differ(
    world: World, home: Path, run: str, monkeypatch: pytest.MonkeyPatch
):
    def no_scoring(*_: object) -> None:
        raise AssertionError("rows were scored")

    outputs, _ = judge(world, run)
    monkeypatch.setattr(PackagedModel, "predict", no_scoring)
    assert judge(world, run)[0] == outputs
    with pytest.raises(AssertionError, match="scored"):
        judge(churn_world(home, PIPELINE.replace("min: 0.75", "min: 0.76")), run)
    estimator = next(world.tracking.package(run, home).glob("estimator.*"))
    whole = estimator.read_bytes()
    estimator.write_bytes(whole + b" ")
    with pytest.raises(DataError, match="is damaged"):
        judge(world, run)
    estimator.write_bytes(whole)


def test_the_report_is_kept_with_the_run(world: World, run: str):
    outputs, _ = judge(world, run)
    client = mlflow_client(world.settings)
    assert [a.path for a in client.list_artifacts(run, "gates")] == ["gates/validation.json"]
    assert (
        json.loads(world.storage.read(outputs.report))["metrics"]["roc_auc"]
        == world.tracking.record(run).metrics["test.roc_auc"]
    )


def test_the_environment_chooses_the_policy(world: World, home: Path, run: str):
    strict = PIPELINE + "  environments:\n    production: {validation: {thresholds: [{metric: roc_auc, min: 0.99}]}}\n"
    production = churn_world(home, strict)
    production.settings = production.settings.model_copy(update={"environment": "production"})
    outputs, report = judge(production, run)
    assert outputs.verdict is Verdict.REJECTED
    assert "< 0.99" in outputs.summary
    assert report.environment == "production"
    assert judge(churn_world(home, strict), run)[0].verdict is Verdict.PASSED


def test_a_bound_within_the_interval_is_inconclusive_unless_the_point_decides(world: World, home: Path, run: str):
    value = judge(world, run)[1].metrics["roc_auc"]
    at_value = PIPELINE.replace(
        "[{metric: roc_auc, min: 0.75}]\n      bootstrap",
        f"[{{metric: roc_auc, min: {value - 0.001}}}]\n      bootstrap",
    )
    assert judge(churn_world(home, at_value), run)[0].verdict is Verdict.INCONCLUSIVE
    by_point = at_value.replace(
        "bootstrap: {resamples: 200}\n    promotion", "bootstrap: {decide: point}\n    promotion"
    )
    assert judge(churn_world(home, by_point), run)[0].verdict is Verdict.PASSED
