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
from tests.faults.endpoints import Fault, FaultyEndpoint, faulty
from tests.faults.rehearsal import exit_codes, rehearse
from tests.faults.small_desk import SmallDesk
from tests.loopback import free_port
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

    def run(self, monkeypatch: pytest.MonkeyPatch, on_change: OnChange | None = None, *, source: str = "") -> RunState:
        self.endpoint.turn(Fault.NONE)
        given = {"source": source}
        return rehearse(self.desk, monkeypatch, on_change=on_change, variables=self.variables, parameters=given)

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
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder, port = tmp_path_factory.mktemp("s3"), free_port()
    url = f"http://127.0.0.1:{port}"
    with listening([sys.executable, "-m", "moto.server", "-p", str(port)], url, folder):
        boto3.client("s3", endpoint_url=url, region_name="us-east-1", **KEYS).create_bucket(Bucket="kept")
        yield port


@pytest.fixture
def with_s3(s3: int, tmp_path: Path) -> Iterator[Remote]:
    """Each time with nothing to reuse: what is reused asks the store for little."""
    desk, store = SmallDesk.make(tmp_path), f"s3://kept/{tmp_path.name}"
    with faulty(s3) as endpoint:
        variables = {
            "RETRAIN_STORE": store, "RETRAIN_ARTIFACTS": f"{store}/models", "RETRAIN_S3_ENDPOINT": endpoint.url,
            "RETRAIN_AWS_ACCESS_KEY_ID": "key", "RETRAIN_AWS_SECRET_ACCESS_KEY": "secret",
            "RETRAIN_TIMEOUT_SECONDS": "2",
        }  # fmt: skip
        yield Remote(desk, endpoint, variables)
        desk.clear()


def test_mlflow_that_stays_away_ends_the_run_after_the_tables_retries_and_the_next_run_goes_through(
    with_mlflow: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = with_mlflow.run(monkeypatch, with_mlflow.breaking("evaluate", Fault.REFUSES, attempts=None))

    assert failed.phase == "Failed"
    assert exit_codes(failed, "evaluate") == [str(NETWORK.exit_code)] * (NETWORK.retries + 1)
    assert exit_codes(failed, "notify") == ["0"]
    assert exit_codes(failed, "register") == []

    done = with_mlflow.run(monkeypatch)

    assert done.phase == "Succeeded"
    assert done.outputs["outcome"] == "promoted"
    assert done.outputs["version"] == "1"


@pytest.mark.parametrize(
    ("stage", "fault", "source"),
    [
        ("evaluate", Fault.BUSY, ""), ("register", Fault.HANGS, ""),
        ("promote", Fault.CUTS, "later.csv"),  # something new to judge: else it asks the ledger only
        ("deploy", Fault.REFUSES, "later.csv"),
    ],
)  # fmt: skip
def test_mlflow_that_comes_back_costs_the_attempts_it_was_away(
    with_mlflow: Remote, monkeypatch: pytest.MonkeyPatch, stage: str, fault: Fault, source: str
) -> None:
    run = with_mlflow.run(monkeypatch, with_mlflow.breaking(stage, fault, attempts=2), source=source)

    assert run.phase == "Succeeded"
    assert run.outputs["outcome"] in ("promoted", "unchanged")
    assert exit_codes(run, stage) == [*[str(NETWORK.exit_code)] * 2, "0"]
    assert with_mlflow.desk.answering() == int(run.outputs["version"])
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

    done = with_s3.run(monkeypatch, with_s3.breaking("train", fault, attempts=2))

    assert done.phase == "Succeeded"
    assert done.outputs["outcome"] == "promoted"
    assert done.outputs["version"] == "1"
    assert exit_codes(done, "train") == [*[str(row.exit_code)] * 2, "0"]
    assert with_s3.desk.answering() == 1
    assert with_s3.desk.leftovers() == []
