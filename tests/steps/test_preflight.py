"""Preflight reports all that is wrong at once, and leaves nothing behind."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

import steps.candidates.lightgbm
import steps.preflight
from contracts.errors import (
    CONFIG,
    DATA,
    NETWORK,
    STORAGE,
    ConfigError,
    Finding,
    NetworkError,
    StageError,
    StorageError,
)
from contracts.pipeline import Pipeline
from contracts.settings import Settings
from contracts.stages import Preflight
from serving.user_code import pack
from steps.preflight import _raise, preflight
from steps.world import World
from tests.steps.ingesting import AS_OF, column, world_for

PASSWORD = "correct-horse-battery"


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "rows.csv").write_text("y,x\n1,2\n0,3\n")
    (tmp_path / "home").mkdir()
    return world_for(tmp_path, [column("y", "integer"), column("x", "number")], "rows.csv", min_free_mib=0)


def changed(world: World, pipeline: dict[str, Any] | None = None, **settings: Any) -> World:
    """The same world under other settings or another pipeline file."""
    merged = world.pipeline.model_dump(mode="json", by_alias=True) | (pipeline or {})
    merged["gates"] = world.pipeline.gates.model_dump(mode="json", by_alias=True)
    return replace(
        world,
        settings=Settings.model_validate(world.settings.model_dump() | settings),
        pipeline=Pipeline.model_validate(merged),
    )


def wrong(world: World, exit_code: int = 78, **inputs: str) -> dict[str, Finding]:
    with pytest.raises(StageError) as refused:
        preflight(Preflight.Inputs(**inputs), world=world)
    assert refused.value.row.exit_code == exit_code
    assert PASSWORD not in str(refused.value.report("preflight"))
    return {finding.where: finding for finding in refused.value.findings}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def answering(status: int) -> Iterator[str]:
    """An HTTP server that gives every request the same answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_world_in_order_passes_and_leaves_no_object_behind(world: World, tmp_path: Path) -> None:
    answer = preflight(Preflight.Inputs(), world=world)

    assert answer.as_of == AS_OF  # the clock, frozen for all later stages
    assert "checks passed" in answer.summary
    assert [p for p in (tmp_path / "home" / "store").rglob("*") if p.is_file()] == []


def test_as_of_is_taken_as_given_and_keeps_its_moment(world: World) -> None:
    given = preflight(Preflight.Inputs(as_of="2026-01-31T06:00:00+02:00"), world=world)

    assert given.as_of == datetime(2026, 1, 31, 4, tzinfo=UTC)


def test_everything_that_is_wrong_stands_in_one_report(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broken = changed(
        world,
        {
            "features": {"columns": [{"column": "x", "categorical": True}]},
            "training": {"metric": "accuracy", "candidates": [{"name": "mine", "estimator": "no_such_module:make"}]},
        },
        store=(tmp_path / "file" / "store").as_uri(),
        tracking_uri=f"http://127.0.0.1:{free_port()}",
        ledger=SecretStr(f"postgresql://retrain:{PASSWORD}@127.0.0.1:{free_port()}/ledger"),
        min_free_mib=2**40,
    )

    findings = wrong(broken, source="missing.csv", as_of="yesterday", cache="perhaps", version="first")

    assert {"parameter as-of", "parameter cache", "parameter version"} <= set(findings)
    assert {"store", "disk", "scratch"} & set(findings)
    assert {"tracking", "ledger", "module no_such_module", "features.columns[0] (x)"} <= set(findings)
    assert "'use' or 'refuse'" in findings["parameter cache"].what
    assert findings["module no_such_module"].remedy == "put no_such_module.py beside the file"


def test_a_source_that_is_not_there_is_named(world: World) -> None:
    assert any("missing.csv" in where for where in wrong(world, source="missing.csv"))


@pytest.mark.parametrize(
    ("parameter", "value"), [("as_of", "2026-01-01T00:00:00"), ("version", "0"), ("version", "1.5"), ("cache", "USE")]
)
def test_a_parameter_of_the_wrong_type_is_refused(world: World, parameter: str, value: str) -> None:
    findings = wrong(world, **{parameter: value})

    assert list(findings) == [f"parameter {parameter.replace('_', '-')}"]
    assert repr(value) in str(findings.popitem()[1])


def test_a_store_that_takes_nothing_is_a_finding(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    assert "store" in wrong(changed(world, store=(tmp_path / "file" / "store").as_uri()))


def test_low_disk_is_told_with_the_numbers(world: World) -> None:
    findings = wrong(changed(world, min_free_mib=2**40))

    assert set(findings) == {"scratch", "store"}
    assert f"{2**40} needed" in findings["store"].what


def test_an_mlflow_that_does_not_answer_is_named_without_its_credentials(world: World) -> None:
    port = free_port()

    silent = changed(world, tracking_uri=f"http://127.0.0.1:{port}", mlflow_password=SecretStr(PASSWORD))

    finding = wrong(silent, exit_code=75)["tracking"]

    assert f"127.0.0.1:{port} does not answer" in finding.what


def test_a_tracking_uri_with_a_password_is_refused_before_it_reaches_a_manifest() -> None:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate({"store": "file:///s", "tracking_uri": f"http://ann:{PASSWORD}@mlflow"})

    assert "RETRAIN_MLFLOW_PASSWORD" in refused.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    ("status", "where"),
    [(401, "RETRAIN_MLFLOW_USERNAME"), (403, "RETRAIN_MLFLOW_USERNAME"), (404, "RETRAIN_TRACKING_URI")],
)
def test_an_mlflow_that_refuses_is_told_by_its_answer(world: World, status: int, where: str) -> None:
    with answering(status) as url:
        broken = changed(world, tracking_uri=url, mlflow_username=SecretStr("ann"), mlflow_password=SecretStr(PASSWORD))
        assert f"MLflow answers {status}" in wrong(broken)[where].what


def test_an_mlflow_that_answers_passes(world: World) -> None:
    with answering(200) as url:
        assert preflight(Preflight.Inputs(), world=changed(world, tracking_uri=url))


@pytest.mark.parametrize("uri", ["file:///somewhere/mlruns", "mlruns", "sqlite:////no/such/folder/mlflow.db"])
def test_a_tracking_uri_that_cannot_work_is_refused(world: World, uri: str) -> None:
    assert set(wrong(changed(world, tracking_uri=uri))) == {"RETRAIN_TRACKING_URI"}


@pytest.mark.parametrize(
    ("ledger", "exit_code"),
    [
        ("", 78),
        ("no url", 78),
        (f"mysql://u:{PASSWORD}@h/d", 78),
        (f"postgresql://u:{PASSWORD}@127.0.0.1:1/d", 75),
    ],
)
def test_a_wrong_ledger_is_found_and_its_password_kept(world: World, ledger: str, exit_code: int) -> None:
    assert len(wrong(changed(world, ledger=SecretStr(ledger)), exit_code)) == 1


def test_a_packed_module_counts_as_there(world: World, tmp_path: Path) -> None:
    (tmp_path / "own_model.py").write_text("def make(): ...\n")
    code = world.storage.write(world.storage.uri("code", "own.zip"), pack(tmp_path, ["own_model"]))
    own = changed(
        world, {"training": {"metric": "accuracy", "candidates": [{"name": "a", "estimator": "own_model:make"}]}}
    )

    assert set(wrong(own)) == {"module own_model"}
    assert preflight(Preflight.Inputs(code=code), world=own)


def test_a_damaged_code_package_is_a_finding(world: World) -> None:
    code = world.storage.write(world.storage.uri("code", "own.zip"), b"no zip")

    assert "code" in wrong(world, code=code)


def test_a_library_is_asked_for_only_by_a_candidate_that_cannot_do_without(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    missing = Finding(where="LightGBM", what="libgomp is missing", remedy="apt-get install libgomp1")
    monkeypatch.setattr(steps.candidates.lightgbm, "lightgbm_problem", lambda: missing)
    known = steps.preflight.importlib.util.find_spec
    monkeypatch.setattr(
        steps.preflight.importlib.util, "find_spec", lambda name: None if name == "xgboost" else known(name)
    )
    boosters = [{"name": "a", "estimator": "lightgbm"}, {"name": "b", "estimator": "xgboost"}]

    def candidates(*given: dict[str, str]) -> World:
        return changed(world, {"training": {"metric": "accuracy", "candidates": list(given)}})

    assert wrong(candidates(*boosters)) == {
        "LightGBM": missing,
        "candidate b": Finding(
            where="candidate b", what="XGBoost is not installed", remedy="pip install 'retrain[xgboost]'"
        ),
    }
    assert set(wrong(candidates(boosters[1]))) == {"candidate b"}
    with caplog.at_level(logging.WARNING):
        answer = preflight(Preflight.Inputs(), world=candidates(*boosters, {"name": "c", "estimator": "linear"}))
    assert "2 notes" in answer.summary
    assert "apt-get install libgomp1" in caplog.text


def test_lightgbm_is_checked_without_importing_it() -> None:
    program = (
        "import sys; from steps.candidates.lightgbm import lightgbm_problem;"
        "assert lightgbm_problem() is None; assert not {'lightgbm', 'sklearn'} & set(sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_library_that_does_not_load_is_told_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "lightgbm" / "lib" / "lib_lightgbm.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"no library")
    (tmp_path / "lightgbm" / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "lightgbm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    problem = steps.candidates.lightgbm.lightgbm_problem()

    assert problem is not None
    assert "can't be loaded" in problem.what


def test_a_failed_preflight_leaves_its_report_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(Path("adult.yaml").read_text())
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {
        "RETRAIN_STORE": (home / "store").as_uri(), "RETRAIN_SOURCE_BASE": str(tmp_path),
        "RETRAIN_TRACKING_URI": f"sqlite:///{home}/mlflow.db", "RETRAIN_WORKFLOW": "w-1",
        "RETRAIN_LEDGER": f"postgresql://u:{PASSWORD}@127.0.0.1:1/d", "RETRAIN_PIPELINE": str(tmp_path / "bad.yaml"),
        "RETRAIN_OUTPUTS": str(home / "out"),
    }  # fmt: skip

    done = subprocess.run(
        [sys.executable, "-m", "steps", "preflight", "--cache", "perhaps"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 78
    assert "parameter cache" in done.stderr
    assert "ledger" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    [left] = [p for p in home.rglob("*") if p.is_file()]
    assert left == home / "store" / "reports" / "w-1" / "preflight.error.json"
    assert json.loads(left.read_text())["error_class"] == "config"


def test_a_passing_fault_alone_keeps_its_class_so_that_it_is_retried() -> None:
    absent = Finding(where="RETRAIN_TRACKING_URI", what="does not answer")
    wrong = Finding(where="parameter cache", what="is neither use nor refuse")
    for found, kind in (
        ([(NETWORK, absent)], NetworkError),
        ([(STORAGE, absent)], StorageError),
        ([(STORAGE, absent), (NETWORK, absent)], NetworkError),
        ([(NETWORK, absent), (CONFIG, wrong)], ConfigError),
        ([(NETWORK, absent), (DATA, wrong)], ConfigError),
    ):
        with pytest.raises(StageError) as caught:
            _raise(found)
        assert type(caught.value) is kind
        assert len(caught.value.findings) == len(found)
