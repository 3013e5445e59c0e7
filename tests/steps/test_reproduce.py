"""Building a version again: identical when nothing changed, and what differs when something did."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from contracts.errors import ConfigError, StageError
from contracts.names import tag
from contracts.settings import variable
from steps.evaluate import METRIC_PREFIX
from steps.lineage import Lineage, lineage
from steps.mlflow_connection import mlflow_client
from steps.reproduce import Answer, Reproduction, reproduce
from steps.storage import local_path
from tests.steps.trained import Trained, make_version
from workflows.cli.main import app


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return make_version(tmp_path_factory.mktemp("home"))


def content(trained: Trained) -> dict[str, bytes]:
    root = local_path(trained.world.settings.store)
    assert root is not None
    return {str(p): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def command(trained: Trained, *arguments: str) -> Result:
    home = str(Path(trained.world.settings.server_home).parent)
    return CliRunner().invoke(app, [*arguments], env={"RETRAIN_HOME": home})


def test_a_version_comes_out_identical_and_leaves_nothing_behind(trained: Trained, tmp_path: Path) -> None:
    client = mlflow_client(trained.world.settings)
    experiments = [e.experiment_id for e in client.search_experiments()]
    before = content(trained), len(client.search_runs(experiments)), trained.world.ledger.head("churn")
    found = reproduce(trained.archive(), "1", tmp_path)
    assert (found.answer, found.largest_difference, found.columns) == (Answer.IDENTICAL, 0.0, ())
    assert found.rows > 50
    assert (found.differences, found.run_id) == ((), trained.run_id)
    assert {lost.what for lost in found.not_restored} <= {"commit"}, "in a dirty tree new files are not kept"
    assert found.environment == "today's", "nothing is installed where the lock file is today's"
    assert not (tmp_path / "environment").exists()
    assert (content(trained), len(client.search_runs(experiments)), trained.world.ledger.head("churn")) == before


@pytest.mark.faults
def test_a_commit_that_is_gone_is_an_error_and_here_says_what_is_not_restored(trained: Trained) -> None:
    client, commit = mlflow_client(trained.world.settings), tag("code_commit")
    before = client.get_run(trained.run_id).data.tags.get(commit, "")
    client.set_tag(trained.run_id, commit, "0123456")
    try:
        gone = command(trained, "reproduce", "1")
        answer = command(trained, "reproduce", "1", "--here")
    finally:
        client.set_tag(trained.run_id, commit, before)
    assert isinstance(gone.exception, ConfigError)
    assert "repository" in gone.exception.message
    assert "--here" in gone.exception.remedy
    assert answer.exit_code == 0, answer.output
    assert "identical" in answer.output
    assert "not restored: commit: 0123456, rebuilt" in answer.output


@pytest.mark.faults
def test_modules_that_left_the_store_are_taken_from_mlflow(trained: Trained) -> None:
    path = local_path(trained.code)
    assert path is not None
    aside = path.rename(path.with_suffix(".aside"))
    try:
        answer = command(trained, "reproduce", "churn@1")
    finally:
        aside.rename(path)
    assert answer.exit_code == 0, answer.output
    assert "churn version 1: identical" in answer.output


@pytest.mark.faults
def test_a_changed_dataset_differs_and_is_named(trained: Trained, tmp_path: Path) -> None:
    dataset = local_path(trained.world.tracking.record(trained.run_id).tags[tag("dataset")])
    assert dataset is not None
    file, aside = dataset / "data.parquet", tmp_path / "data.parquet"
    shutil.copy(file, aside)
    table = pq.read_table(file)
    spend = [100 - v for v in table.column("spend").to_pylist()]
    changed = table.set_column(table.schema.get_field_index("spend"), "spend", pa.array(spend, pa.float64()))
    try:
        file.unlink()
        pq.write_table(changed, file)
        answer = command(trained, "reproduce", "1", "--json")
    finally:
        shutil.copy(aside, file)
    assert answer.exit_code == 1, answer.output
    found = Reproduction.model_validate_json(answer.stdout)
    assert found.answer is Answer.DIFFERS
    assert found.largest_difference is not None
    assert found.largest_difference > 0
    assert {"probability_no", "probability_yes"} <= {column.column for column in found.columns}
    assert "dataset sha256" in {difference.what for difference in found.differences}


def test_a_dataset_that_is_gone_is_an_error(trained: Trained, tmp_path: Path) -> None:
    dataset = local_path(trained.world.tracking.record(trained.run_id).tags[tag("dataset")])
    assert dataset is not None
    aside = dataset.rename(dataset.with_name("aside"))
    try:
        with pytest.raises(StageError, match="no such object"):
            reproduce(trained.archive(), "1", tmp_path)
    finally:
        aside.rename(dataset)


def test_lineage_of_a_real_version_holds_every_reference(trained: Trained) -> None:
    found = lineage(trained.archive(), "1")
    run = trained.world.tracking.record(trained.run_id)
    assert found.dataset.sha256 == run.tags[tag("dataset_sha256")]
    assert found.dataset.rows == 600
    for reference in (
        found.dataset.uri, found.dataset.schema_sha256, found.split_sha256, found.transform_sha256, found.code.version,
        found.code.user_code, found.code.lock_sha256, found.code.pipeline_sha256, found.code.architecture,
    ):  # fmt: skip
        assert reference
    assert found.candidate == "mine"
    assert found.parameters["estimator"] == "my_model:make"
    assert found.metrics[f"{METRIC_PREFIX}accuracy"] > 0.5
    assert found.validation is not None
    assert [check.name for check in found.validation.checks] == ["accuracy"]
    assert found.notes == ()


def test_the_command_prints_the_answer_as_json(trained: Trained) -> None:
    answer = command(trained, "lineage", "1", "--json")
    assert answer.exit_code == 0, answer.output
    assert Lineage.model_validate_json(answer.stdout) == lineage(trained.archive(), "1")


@pytest.mark.faults
def test_a_pods_main_process_leaves_the_answer_or_the_exit_code_of_the_class(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = trained.world.settings
    for field in ("store", "tracking_uri", "artifacts"):
        monkeypatch.setenv(variable(field), getattr(settings, field))
    monkeypatch.setenv(variable("ledger"), settings.ledger.get_secret_value())
    monkeypatch.setenv(variable("outputs"), str(tmp_path / "outputs"))

    done = subprocess.run([sys.executable, "-m", "steps.reproduce", "churn@1"], check=False)
    assert done.returncode == 0, capfd.readouterr().err
    found = Reproduction.model_validate_json((tmp_path / "outputs" / "answer").read_bytes())
    assert (found.answer, found.model, found.version) == (Answer.IDENTICAL, "churn", 1)

    assert subprocess.run([sys.executable, "-m", "steps.reproduce", "churn@99"], check=False).returncode == 78
    assert capfd.readouterr().err.splitlines()[-1].startswith("ERROR config: churn has no version 99")
