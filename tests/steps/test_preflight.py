"""Preflight reports all that is wrong at once, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr, ValidationError

import steps.candidates.lightgbm
from contracts.errors import (
    CONFIG,
    DATA,
    NETWORK,
    STORAGE,
    ConfigError,
    ErrorClass,
    Finding,
    InfrastructureError,
    NetworkError,
    StageError,
    StorageError,
)
from contracts.pipeline import Pipeline
from contracts.probes import DUTIES, Examined, Found
from contracts.settings import Settings
from contracts.stages import Preflight, Probe, contract
from serving.user_code import pack
from steps.preflight import _raise, joined
from steps.preflight import preflight as join
from steps.probe import as_line, examine_all
from steps.world import World
from tests.loopback import Handler, free_port, serving
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
        settings=Settings.model_validate(world.settings.model_dump(round_trip=True) | settings),
        pipeline=Pipeline.model_validate(merged),
    )


def preflight(inputs: Preflight.Inputs, *, world: World) -> Preflight.Outputs:
    """Every duty's probe, and what joins them, in this process."""
    looked_at = Probe.Inputs(**inputs.model_dump(include=set(Probe.Inputs.model_fields)))
    lines = [as_line(examined) for examined in examine_all(looked_at, world)]
    return join(inputs.model_copy(update={"found": "\n".join(lines)}), world=world)


def wrong(world: World, exit_code: int = 78, **inputs: str) -> dict[str, Finding]:
    with pytest.raises(StageError) as refused:
        preflight(Preflight.Inputs(**inputs), world=world)
    assert refused.value.row.exit_code == exit_code
    assert PASSWORD not in str(refused.value.report("preflight"))
    return {finding.where: finding for finding in refused.value.findings}


@contextmanager
def answering(status: int) -> Iterator[str]:
    """An HTTP server that gives every request the same answer."""

    class Same(Handler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"{}")

        def do_GET(self) -> None:
            self.do_POST()

        def do_DELETE(self) -> None:
            self.do_POST()

    with serving(Same) as port:
        yield f"http://127.0.0.1:{port}"


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
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "xgboost" else known(name))
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


def step(home: Path, *words: str, **more: str) -> tuple[int, str, dict[str, str]]:
    """Run one step as the process that a container is; return its exit code, its log, and what it hands on."""
    outputs = home / "out"
    environment = os.environ | {
        "RETRAIN_STORE": (home / "store").as_uri(), "RETRAIN_SOURCE_BASE": str(Path.cwd()), "RETRAIN_WORKFLOW": "w-1",
        "RETRAIN_TRACKING_URI": f"sqlite:///{home}/mlflow.db", "RETRAIN_PIPELINE": "adult.yaml",
        "RETRAIN_LEDGER": f"postgresql://u:{PASSWORD}@127.0.0.1:1/d", "RETRAIN_OUTPUTS": str(outputs),
    } | more  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "steps", *words], env=environment, capture_output=True, text=True, check=False
    )
    assert PASSWORD not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr, {path.name: path.read_text() for path in outputs.glob("*")}


def left_by(home: Path) -> list[str]:
    return [path.name for path in (home / "store").rglob("*") if path.is_file()]


def test_a_probe_that_may_pass_fails_with_its_class_and_yet_hands_on_what_it_found(tmp_path: Path) -> None:
    code, log, outputs = step(tmp_path, "preflight-register")

    assert code == 75
    assert "ledger" in log
    examined = Examined.model_validate_json(outputs["found"])
    assert [(found.error_class, found.own) for found in examined.found] == [("network", True)]
    assert outputs["summary"] == "4 checks, 1 finding"
    assert left_by(tmp_path) == ["preflight-register.error.json"]


def test_a_probe_with_anything_else_succeeds_and_leaves_it_to_the_report(tmp_path: Path) -> None:
    code, _, outputs = step(tmp_path, "preflight-register", RETRAIN_TRACKING_URI="nowhere")

    assert code == 0
    assert {found.error_class for found in Examined.model_validate_json(outputs["found"]).found} == {
        "config", "network",
    }  # fmt: skip
    assert left_by(tmp_path) == []


def test_a_failed_preflight_leaves_its_report_and_nothing_else(tmp_path: Path) -> None:
    found = "\n".join(as_line(Examined(duty=duty, checks=1)) for duty in DUTIES)

    code, log, outputs = step(tmp_path, "preflight", "--cache", "perhaps", "--found", found)

    assert code == 78
    assert "1 finding before the start" in log
    assert "parameter cache" in log
    assert outputs == {}
    assert left_by(tmp_path) == ["preflight.error.json"]
    [report] = (tmp_path / "store").rglob("*.json")
    assert json.loads(report.read_text())["error_class"] == "config"


def said(duty: str, finding: Finding, row: ErrorClass = CONFIG, *, own: bool = True) -> Examined:
    return Examined(duty=duty, checks=1, found=(Found(finding=finding, error_class=row.name, own=own),))


def test_what_several_duties_found_is_told_once_with_their_names() -> None:
    refused = Finding(where="RETRAIN_MLFLOW_USERNAME", what="MLflow answers 401", remedy="check it")
    absent = Finding(where="module m", what="is not there")

    told = joined([said("train", refused), said("evaluate", refused), said("train", absent, own=False)])

    assert told == [
        (CONFIG, refused.model_copy(update={"what": "MLflow answers 401, as train, evaluate"})), (CONFIG, absent),
    ]  # fmt: skip


def test_a_probe_without_an_answer_is_a_failure_of_infrastructure(world: World) -> None:
    answered = "\n".join(as_line(Examined(duty=duty, checks=1)) for duty in DUTIES if duty != "train")

    with pytest.raises(InfrastructureError) as refused:
        join(Preflight.Inputs(found=answered), world=world)

    assert [finding.where for finding in refused.value.findings] == ["preflight-train"]


def test_what_a_probe_says_holds_no_tag_that_argo_would_read() -> None:
    finding = Finding(where="parameter cache", what="got '{{workflow.name}} {{{=1}}}'")

    line = as_line(said("ingest", finding))

    assert "{{" not in line
    assert Examined.model_validate_json(line) == said("ingest", finding)


def test_a_folder_that_one_duty_alone_writes_is_found_by_that_duty(world: World, tmp_path: Path) -> None:
    store = tmp_path / "home" / "store"
    store.mkdir(exist_ok=True)
    (store / "datasets").write_text("a file in the folder's place")

    finding = wrong(world)["store"]

    assert "/datasets" in finding.what
    assert finding.what.endswith(", as ingest")


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


def candidates_of(world: World, *candidates: dict[str, Any], **more: Any) -> World:
    return changed(world, {"training": {"metric": "accuracy", "candidates": list(candidates)}} | more)


@pytest.mark.parametrize(
    ("estimator", "typo", "meant"),
    [
        ("lightgbm", "num_leavs", "num_leaves"),
        ("xgboost", "max_dept", "max_depth"),
        ("hist_gradient_boosting", "max_iters", "max_iter"),
        ("random_forest", "n_estimator", "n_estimators"),
        ("linear", "c", "C"),
        ("dummy", "constnt", "constant"),
    ],
)
def test_a_typo_in_a_parameter_is_found_without_an_import(world: World, estimator: str, typo: str, meant: str) -> None:
    finding = wrong(candidates_of(world, {"name": "a", "estimator": estimator, "parameters": {typo: 1, meant: 2}}))[
        f"training.candidates[0].parameters.{typo}"
    ]

    assert finding.what == f"{estimator} knows no such parameter"
    assert (meant in finding.remedy) or estimator == "linear"


def test_a_typo_in_a_search_is_found_as_well(world: World) -> None:
    space = {"learning_rat": {"low": 0.1, "high": 0.2}, "num_leaves": {"choices": [3, 4]}}
    searched = {"name": "a", "estimator": "lightgbm", "search": {"trials": 2, "space": space}}

    assert set(wrong(candidates_of(world, searched))) == {"training.candidates[0].search.space.learning_rat"}


def test_a_checked_parameter_costs_no_import() -> None:
    program = (
        "import sys; from pathlib import Path; from contracts.pipeline import load_pipeline;"
        "from serving.user_code import UserCode; from steps.candidates.checks import candidate_findings;"
        "assert list(candidate_findings(load_pipeline(Path('adult.yaml')), UserCode({})) ) == [];"
        "assert not {'lightgbm', 'sklearn', 'xgboost'} & set(sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


OWN = """
from sklearn.dummy import DummyClassifier as dummy
if dummy:
    def make(*, deep=True): ...
else:
    made = None
class Mine:
    def __init__(self, size=1, **more): ...
first, (second, third) = 1, (2, 3)
"""


@pytest.mark.parametrize("name", ["dummy", "make", "made", "Mine", "Mine.build", "third"])
def test_what_an_own_module_defines_in_any_way_is_there(world: World, tmp_path: Path, name: str) -> None:
    inputs, fitting = own(world, tmp_path, OWN, f"own_model:{name}")

    assert preflight(inputs, world=fitting)


def own(world: World, folder: Path, text: str, reference: str, **parameters: Any) -> tuple[Preflight.Inputs, World]:
    (folder / "own_model.py").write_text(text)
    code = world.storage.write(world.storage.uri("code", "own.zip"), pack(folder, ["own_model"]))
    candidate = {"name": "a", "estimator": reference, "parameters": parameters}
    return Preflight.Inputs(code=code), candidates_of(world, candidate)


@pytest.mark.parametrize(
    ("text", "reference", "parameters", "where", "remedy"),
    [
        (OWN, "own_model:mkae", {}, "own_model:mkae", "did you mean 'make'?"),
        (OWN, "own_model:make", {"dep": 1}, "training.candidates[0].parameters.dep", "did you mean 'deep'?"),
        ("def make(:", "own_model:make", {}, "own_model.py, line 1", "mend it"),
    ],
)
def test_what_an_own_module_lacks_is_found_without_running_it(
    world: World, tmp_path: Path, text: str, reference: str, parameters: dict[str, Any], where: str, remedy: str
) -> None:
    inputs, broken = own(world, tmp_path, text, reference, **parameters)

    assert wrong(broken, **inputs.model_dump(exclude_defaults=True))[where].remedy == remedy


@pytest.mark.parametrize(
    ("text", "reference", "parameters"),
    [
        ("from other import *", "own_model:make", {}),
        ("def __getattr__(name): ...", "own_model:make", {}),
        ("globals()['make'] = int", "own_model:make", {}),
        (OWN, "own_model:Mine", {"depth": 3}),
        (OWN, "own_model:dummy", {"strategy": "prior"}),
        ("from functools import cache\n@cache\ndef make(): ...", "own_model:make", {"depth": 3}),
    ],
)
def test_what_parsing_cannot_tell_is_left_to_training(
    world: World, tmp_path: Path, text: str, reference: str, parameters: dict[str, Any]
) -> None:
    inputs, unsure = own(world, tmp_path, text, reference, **parameters)

    assert preflight(inputs, world=unsure)


def test_a_port_that_the_server_answered_at_and_another_process_has_is_a_finding(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.holder.REBIND_SECONDS", 0.1)
    home = tmp_path / "servers" / world.pipeline.name
    home.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        desk = changed(world, server_home=str(tmp_path / "servers"), server_port=port)
        assert preflight(Preflight.Inputs(), world=desk)  # at first any port will do

        record = {"pid": 2**22, "started": 0.0, "host": "127.0.0.1", "port": port, "wanted": port}
        (home / "holder.json").write_text(json.dumps(record))
        assert f"by process {os.getpid()}" in wrong(desk)["RETRAIN_SERVER_PORT"].what

        ours = {"pid": os.getpid(), "started": psutil.Process().create_time()}
        (home / "holder.json").write_text(json.dumps(record | ours))
        assert preflight(Preflight.Inputs(), world=desk)


def test_a_sensitive_feature_with_categories_is_noted(world: World, caplog: pytest.LogCaptureFixture) -> None:
    columns = [c.model_dump(mode="json") for c in world.pipeline.table.columns]
    columns += [{"name": name, "type": "string", "sensitive": True} for name in ("diagnosis", "dropped")]
    noted = changed(
        world, {"schema": {"columns": columns}, "features": {"columns": [{"column": "dropped", "drop": True}]}}
    )

    assert "1 notes" in preflight(Preflight.Inputs(), world=noted).summary
    assert "column diagnosis: is sensitive and a feature: its categories will lie in the model" in caplog.text


def test_a_template_that_was_compiled_for_other_stages_than_the_image_has_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETRAIN_CONTRACT", "0123456789ab")

    found = wrong(world)["RETRAIN_STEPS_IMAGE"]

    assert "the template was compiled for stages 0123456789ab" in found.what
    assert f"stages {contract()} " in found.what
    monkeypatch.setenv("RETRAIN_CONTRACT", contract())
    assert preflight(Preflight.Inputs(), world=world).summary
