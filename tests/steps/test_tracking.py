"""Tracking on a real SQLite MLflow and real sockets: runs found again, and MLflow's failures by their class."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from contracts.errors import ConfigError, NetworkError, StageError, StorageError
from contracts.settings import variable
from steps.mlflow_connection import mlflow_client, mlflow_errors, place
from steps.tracking import Tracking
from tests.loopback import Handler, serving
from tests.steps.registered import NOW, make_settings, make_world

PROGRAM = """
from contracts.settings import load_settings
from contracts.pipeline import load_pipeline
from pathlib import Path
from datetime import UTC, datetime
from steps.tracking import Tracking
tracking = Tracking(load_settings(), load_pipeline(Path("adult.yaml")))
print(tracking.begin("key", "w", {}, datetime.now(UTC)))
"""


def test_only_a_finished_run_is_found(tmp_path: Path) -> None:
    tracking = make_world(tmp_path).tracking
    run_id = tracking.begin("key", "w1", {"retrain.dataset": "d"}, NOW)
    assert tracking.find_run("key") is None
    tracking.end(run_id)
    assert tracking.find_run("key") == run_id
    assert tracking.find_run("key", workflow="w2") is None
    assert tracking.find_run("other") is None
    assert tracking.record(run_id).tags["retrain.dataset"] == "d"


def test_beginning_again_ends_what_the_same_workflow_or_a_dead_one_left(tmp_path: Path) -> None:
    tracking = make_world(tmp_path).tracking
    mine = tracking.begin("key", "w1", {}, NOW)
    tracking.begin("key", "w1", {}, NOW)
    assert tracking.record(mine).status == "KILLED"
    others = tracking.begin("key", "w2", {}, NOW)
    tracking.begin("key", "w3", {}, NOW + timedelta(hours=1))
    assert tracking.record(others).status == "RUNNING"
    tracking.begin("another", "w4", {}, NOW + timedelta(hours=9))
    assert tracking.record(others).status == "KILLED"


def test_two_processes_that_make_database_and_experiment_at_once_both_succeed(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    environment = {
        variable(f): str(v) for f, v in settings.model_dump().items() if isinstance(v, (str, int)) and v != ""
    }
    command = [sys.executable, "-c", PROGRAM]
    both = [
        subprocess.Popen(
            command, env=environment | {"PATH": "/usr/bin:/bin"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err.decode()
        assert len(out.strip()) == 32


def test_a_metric_without_a_value_is_left_out(tmp_path: Path) -> None:
    tracking = make_world(tmp_path).tracking
    run_id = tracking.begin("key", "w1", {}, NOW)
    tracking.log(run_id, {"a": "x" * 9000}, {"good": 1.0, "none": float("nan")})
    record = tracking.record(run_id)
    assert record.metrics == {"good": 1.0}
    assert len(record.params["a"]) == 6000


def test_a_run_that_is_not_there_and_one_without_a_model_are_config_errors(tmp_path: Path) -> None:
    tracking = make_world(tmp_path).tracking
    with pytest.raises(ConfigError):
        tracking.record("0" * 32)
    with pytest.raises(ConfigError, match="has no model"):
        tracking.package(tracking.begin("key", "w1", {}, NOW), tmp_path)


def test_a_deleted_experiment_is_a_config_error(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.tracking.begin("key", "w1", {}, NOW)
    client = mlflow_client(world.settings)
    client.delete_experiment(client.get_experiment_by_name(world.pipeline.name).experiment_id)
    with pytest.raises(ConfigError, match="was deleted"):
        Tracking(world.settings, world.pipeline).begin("key", "w1", {}, NOW)


@pytest.mark.parametrize(("code", "expected"), [("SQLITE_BUSY", StorageError), ("SQLITE_FULL", ConfigError)])
def test_a_busy_database_is_storage_and_a_full_disk_is_not_retried(
    tmp_path: Path, code: str, expected: type[StageError]
) -> None:
    from mlflow.exceptions import MlflowException

    cause = sqlite3.OperationalError("database is locked")
    cause.sqlite_errorcode = getattr(sqlite3, code)
    with pytest.raises(expected), mlflow_errors(make_settings(tmp_path)):
        raise MlflowException("boom") from cause


def test_a_database_that_can_not_be_opened_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError):
        mlflow_client(make_settings(tmp_path, tracking_uri=f"sqlite:///{tmp_path}/file/mlflow.db"))
    (tmp_path / "text.db").write_text("this is no database, whatever its name says" * 100)
    with pytest.raises(ConfigError):
        mlflow_client(make_settings(tmp_path, tracking_uri=f"sqlite:///{tmp_path}/text.db"))


@pytest.fixture(params=[401, 403, 429, 500, 503])
def broken_server(request: pytest.FixtureRequest) -> Iterator[tuple[int, str]]:
    class Answer(Handler):
        def do_GET(self) -> None:
            self.send_response(request.param)
            self.end_headers()

    with serving(Answer) as port:
        yield request.param, f"http://127.0.0.1:{port}"


def test_a_server_that_refuses_is_config_and_one_that_fails_is_network(
    broken_server: tuple[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, uri = broken_server
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = make_settings(tmp_path, tracking_uri=uri, mlflow_username="user", mlflow_password="hunter2")
    tracking = Tracking(settings, make_world(tmp_path).pipeline)
    with pytest.raises(StageError) as error:
        tracking.record("0" * 32)
    assert type(error.value) is (ConfigError if status in (401, 403) else NetworkError)
    assert "hunter2" not in error.value.message


def test_a_server_that_is_not_there_is_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = make_settings(tmp_path, tracking_uri="http://127.0.0.1:9")
    with pytest.raises(NetworkError, match=r"http://127\.0\.0\.1:9"):
        Tracking(settings, make_world(tmp_path).pipeline).find_run("key")


def test_messages_name_the_place_without_credentials() -> None:
    assert place("https://user:secret@mlflow.example:5000/x?token=1") == "https://mlflow.example:5000/x"
