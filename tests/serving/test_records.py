"""Prediction records: which requests are kept, what of them; predictions never wait for them or fail with them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from contracts.metrics import Task
from contracts.names import MODEL_KEYS
from contracts.prediction_id import PredictionId
from serving import records as module
from serving.app import create_app
from serving.model import PackagedModel
from serving.records import Recording, Records
from serving.sampling import is_sampled, request_key
from serving.schemas import ModelAnswer
from tests.model_packages import ROW, TRUSTED, package, signed

shares = st.floats(0, 1)


def identity(version: int) -> ModelAnswer:
    return ModelAnswer(name="tiny", version=version, run_id="r7", dataset_sha256="d" * 64, since=datetime.now(UTC))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PackagedModel:
    return PackagedModel.load(package(tmp_path_factory.mktemp("records") / "model"))


@contextmanager
def server(model: PackagedModel, folder: Path, share: float = 1, version: int = 7, **more: Any) -> Iterator[TestClient]:
    records = Records(Recording(folder, share, **more), model.manifest, identity(version))
    try:
        yield TestClient(create_app(model, identity(version), records))
    finally:
        records.close()


def ask(client: TestClient, *rows: Any, request_id: str = "") -> Any:
    headers = {"x-request-id": request_id} if request_id else {}
    return client.post("/v1/predict", json={"instances": list(rows)}, headers=headers).json()


def kept(folder: Path) -> pa.Table:
    files = sorted(folder.glob("*/*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files]) if files else pa.table({"id": []})


@given(st.text(max_size=40), st.binary(max_size=200), shares, shares)
def test_every_server_decides_alike_and_a_larger_share_holds_the_smaller(
    request_id: str, body: bytes, one: float, other: float
) -> None:
    key, again = request_key(request_id, body), request_key(request_id, body)
    assert key == again
    assert is_sampled(key, one) == is_sampled(again, one)
    small, large = sorted((one, other))
    assert is_sampled(key, small) <= is_sampled(key, large)
    assert is_sampled(key, 1)
    assert not is_sampled(key, 0)


@given(st.text(min_size=1, max_size=40), st.binary(max_size=50), st.binary(max_size=50))
def test_the_callers_id_is_the_request_and_without_one_its_body_is(request_id: str, one: bytes, other: bytes) -> None:
    assert request_key(request_id, one) == request_key(request_id, other)
    assert (request_key(None, one) == request_key(None, other)) == (one == other)


def test_a_share_of_requests_is_that_share() -> None:
    sampled = sum(is_sampled(request_key(f"request {n}", b""), 0.2) for n in range(20_000))
    assert 3_700 < sampled < 4_300, "five standard deviations about 4,000"


def test_a_record_says_who_answered_when_and_what(model: PackagedModel, tmp_path: Path) -> None:
    before = datetime.now(UTC)
    with server(model, tmp_path) as client:
        answer = ask(client, ROW, ROW | {"age": 20})
    table = kept(tmp_path)

    assert table.column_names == ["id", "time", "version", "key", "label", "scores"]
    assert table.column("id").to_pylist() == [p["id"] for p in answer["predictions"]]
    parsed = PredictionId.parse(table.column("id")[1].as_py())
    assert parsed is not None
    assert (parsed.version, parsed.row) == (table.column("version")[1].as_py(), 1)
    assert table.column("scores").to_pylist() == [list(p["probabilities"].values()) for p in answer["predictions"]]
    assert table.column("label").to_pylist() == [p["label"] for p in answer["predictions"]]
    assert all(before <= at <= datetime.now(UTC) for at in table.column("time").to_pylist())
    said = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert said == {"model": "tiny", "run_id": "r7", "classes": json.dumps(model.manifest.classes)}


@pytest.mark.parametrize(("task", "scores", "label"), [(Task.REGRESSION, 1, None), (Task.MULTICLASS, 3, "text")])
def test_every_task_has_the_same_columns(task: Task, scores: int, label: str | None, tmp_path: Path) -> None:
    model = PackagedModel.load(package(tmp_path / "model", task=task))
    with server(model, tmp_path / "records") as client:
        ask(client, ROW)
    row = kept(tmp_path / "records").to_pylist()[0]
    assert len(row["scores"]) == scores
    assert (row["label"] is None) == (label is None)


def test_inputs_are_kept_only_when_allowed_and_sensitive_cells_never(model: PackagedModel, tmp_path: Path) -> None:
    with server(model, tmp_path / "without") as client:
        ask(client, ROW)
    with server(model, tmp_path / "with", inputs=True) as client:
        ask(client, ROW | {"diagnosis": "planted-secret"})
    assert "inputs" not in kept(tmp_path / "without").column_names
    inputs = kept(tmp_path / "with").column("inputs")[0].as_py()
    assert set(inputs) == set(ROW) - {"diagnosis"}
    assert (inputs["age"], inputs["city"]) == (41, "Ulm")
    for file in tmp_path.glob("*/*/*.parquet"):
        assert b"planted-secret" not in file.read_bytes()


def test_two_versions_keep_the_same_requests_under_the_same_key(model: PackagedModel, tmp_path: Path) -> None:
    with (
        server(model, tmp_path / "3", 0.5, version=3) as champion,
        server(model, tmp_path / "4", 0.5, version=4) as challenger,
    ):
        for number in range(60):
            for client in (champion, challenger):
                ask(client, ROW, request_id=f"request {number}")
    one, other = (kept(tmp_path / version).column("key").to_pylist() for version in ("3", "4"))
    assert one == other
    assert 10 < len(one) < 50


def test_a_folder_that_takes_nothing_loses_records_and_no_answer(model: PackagedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    records = Records(Recording(tmp_path / "file", 1), model.manifest, identity(7))
    client = TestClient(create_app(model, identity(7), records))
    assert ask(client, ROW)["predictions"]
    records.close()
    assert records.lost == 1
    assert "retrain_records_lost_total 1.0" in client.get("/metrics").text


def test_more_than_can_wait_is_lost_and_counted(
    model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITING_ROWS", 3)
    with server(model, tmp_path) as client:
        for _ in range(5):
            ask(client, ROW)
        metrics = client.get("/metrics").text
    assert "retrain_records_lost_total 2.0" in metrics
    assert kept(tmp_path).num_rows == 3


def test_no_request_waits_while_a_file_is_written(
    model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on, write = threading.Event(), threading.Event(), Records._write

    def slow(self: Records, table: pa.Table) -> None:
        writing.set()
        assert go_on.wait(30)
        write(self, table)

    monkeypatch.setattr(Records, "_write", slow)
    monkeypatch.setattr(module, "FILE_ROWS", 1)
    with server(model, tmp_path) as client:
        ask(client, ROW)
        assert writing.wait(30)
        assert ask(client, ROW)["predictions"], "answered while the first record is still being written"
        go_on.set()
    assert kept(tmp_path).num_rows == 2


def test_a_server_that_is_told_to_end_writes_what_it_has(tmp_path: Path) -> None:
    signed(package(tmp_path / "model"), "tiny@r9")
    command = [
        sys.executable,
        "-m",
        "serving",
        "--package",
        str(tmp_path / "model"),
        "--name",
        "tiny",
        "--version",
        "9",
    ]
    command += ["--run-id", "r9", "--dataset-sha256", "d" * 64, "--port", "0", "--drain-seconds", "1"]
    command += ["--records", str(tmp_path / "records")]
    environment = os.environ | {MODEL_KEYS: TRUSTED}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert any("answers" in line for line in process.stderr)
        url = f"http://127.0.0.1:{_port(process.pid)}/v1/predict"
        answer = httpx.post(url, json={"instances": [ROW]}, timeout=30).json()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
    assert kept(tmp_path / "records").column("id").to_pylist() == [answer["predictions"][0]["id"]]


def _port(pid: int) -> int:
    return next(c.laddr.port for c in psutil.Process(pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN)
