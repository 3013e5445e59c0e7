"""MLflow and S3 fail in the middle of a run: as often tried again as the table says, then success or a clear end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import httpx
import pytest

from contracts.errors import NETWORK, STORAGE, ErrorClass
from tests.faults.endpoints import Fault, FaultyEndpoint, faulty, free_port
from tests.faults.rehearsal import exit_codes, rehearse
from tests.faults.small_desk import SmallDesk
from workflows.local.state import RunState

pytestmark = pytest.mark.faults

OnChange = Callable[[RunState], None]
KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}


@contextlib.contextmanager
def listening(command: list[str], url: str, folder: Path) -> Iterator[None]:
    """Run a server until the end of the block; enter once it answers."""
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=dict(os.environ))
    try:
        deadline = time.monotonic() + 180
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(url, trust_env=False).status_code < 500:
                    break
            assert process.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(30)


@dataclass(frozen=True)
class Remote:
    """A small desk whose MLflow, or whose store, lies behind an endpoint that can be broken."""

    desk: SmallDesk
    endpoint: FaultyEndpoint
    variables: dict[str, str]

    def run(self, monkeypatch: pytest.MonkeyPatch, on_change: OnChange | None = None) -> RunState:
        return rehearse(self.desk, monkeypatch, on_change=on_change, variables=self.variables)

    def breaking(self, stage: str, fault: Fault, *, attempts: int | None) -> OnChange:
        """Return what breaks the endpoint when a stage begins, and mends it once so many attempts have failed."""
        began = False

        def on_change(run: RunState) -> None:
            nonlocal began
            ended = exit_codes(run, stage)
            if ended and not began:
                began = True
                self.endpoint.turn(fault)
            if attempts is not None and len([code for code in ended if code is not None]) >= attempts:
                self.endpoint.turn(Fault.NONE)

        return on_change


@pytest.fixture(scope="module")
def with_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    with listening(command, f"http://127.0.0.1:{port}/health", folder), faulty(port) as endpoint:
        desk = SmallDesk.make(tmp_path_factory.mktemp("desk"))
        variables = {
            "RETRAIN_TRACKING_URI": endpoint.url, "RETRAIN_ARTIFACTS": "", "RETRAIN_TIMEOUT_SECONDS": "3",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        }  # fmt: skip
        yield Remote(desk, endpoint, variables)
        desk.clear()


@pytest.fixture(scope="module")
def with_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    folder, port = tmp_path_factory.mktemp("s3"), free_port()
    url = f"http://127.0.0.1:{port}"
    with listening([sys.executable, "-m", "moto.server", "-p", str(port)], url, folder), faulty(port) as endpoint:
        boto3.client("s3", endpoint_url=url, region_name="us-east-1", **KEYS).create_bucket(Bucket="kept")
        desk = SmallDesk.make(tmp_path_factory.mktemp("desk"))
        variables = {
            "RETRAIN_STORE": "s3://kept", "RETRAIN_ARTIFACTS": "s3://kept/models", "RETRAIN_S3_ENDPOINT": endpoint.url,
            "RETRAIN_AWS_ACCESS_KEY_ID": "key", "RETRAIN_AWS_SECRET_ACCESS_KEY": "secret",
            "RETRAIN_TIMEOUT_SECONDS": "2",
        }  # fmt: skip
        yield Remote(desk, endpoint, variables)
        endpoint.turn(Fault.NONE)
        desk.clear()


def test_mlflow_that_stays_away_ends_the_run_after_the_tables_retries_and_the_next_run_goes_through(
    with_mlflow: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = with_mlflow.run(monkeypatch, with_mlflow.breaking("evaluate", Fault.REFUSES, attempts=None))

    assert failed.phase == "Failed"
    assert exit_codes(failed, "evaluate") == [str(NETWORK.exit_code)] * (NETWORK.retries + 1)
    assert exit_codes(failed, "notify") == ["0"]
    assert exit_codes(failed, "register") == []

    with_mlflow.endpoint.turn(Fault.NONE)
    done = with_mlflow.run(monkeypatch)

    assert done.phase == "Succeeded"
    assert done.outputs["outcome"] == "promoted"
    assert done.outputs["version"] == "1"


@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        ("evaluate", Fault.BUSY), ("register", Fault.HANGS), ("promote", Fault.CUTS), ("deploy", Fault.REFUSES),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name.lower(),
)  # fmt: skip
def test_mlflow_that_comes_back_costs_the_attempts_it_was_away(
    with_mlflow: Remote, monkeypatch: pytest.MonkeyPatch, stage: str, fault: Fault
) -> None:
    run = with_mlflow.run(monkeypatch, with_mlflow.breaking(stage, fault, attempts=2))

    assert run.phase == "Succeeded"
    assert run.outputs["outcome"] in ("promoted", "unchanged")
    assert run.outputs["version"] == "1"
    assert exit_codes(run, stage) == [*[str(NETWORK.exit_code)] * 2, "0"]
    assert with_mlflow.desk.answering() == 1
    assert with_mlflow.desk.leftovers() == []


@pytest.mark.parametrize(
    ("fault", "row"),
    [(Fault.BUSY, STORAGE), (Fault.HANGS, NETWORK), (Fault.REFUSES, NETWORK), (Fault.CUTS, NETWORK)],
    ids=lambda value: value.name.lower(),
)
def test_a_store_that_stays_away_ends_the_run_with_its_class_and_the_next_run_goes_on(
    with_s3: Remote, monkeypatch: pytest.MonkeyPatch, fault: Fault, row: ErrorClass
) -> None:
    failed = with_s3.run(monkeypatch, with_s3.breaking("ingest", fault, attempts=None))

    assert failed.phase == "Failed"
    assert exit_codes(failed, "ingest") == [str(row.exit_code)] * (row.retries + 1)
    assert exit_codes(failed, "features") == []

    with_s3.endpoint.turn(Fault.NONE)
    done = with_s3.run(monkeypatch, with_s3.breaking("train", fault, attempts=2))

    assert done.phase == "Succeeded"
    assert done.outputs["outcome"] in ("promoted", "unchanged")
    assert done.outputs["version"] == "1"
    assert exit_codes(done, "train") == [*[str(row.exit_code)] * 2, "0"]
    assert with_s3.desk.answering() == 1
    assert with_s3.desk.leftovers() == []
