"""No secret and no cell of a sensitive column gets out of where it belongs: planted, run with, and searched for."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from contracts.settings import PREFIX
from serving.user_code import pack
from steps.rollout.process import Server
from tests.badinput.planted import SECRET, clinic, lay_out, leaks, leaks_in, secrets
from tests.badinput.refusals import CELL
from tests.datasets.desk_stages import run_stage, run_stages, said_in

DATA_AND_MODELS = (
    "*.csv",
    "store/datasets/*/*.parquet",
    "store/splits/*/*.parquet",
    "store/splits/*/recipe.json",  # the transform, which is part of the model: it holds the categories
    "package/*",
)


@pytest.fixture
def port() -> Iterator[int]:
    with clinic() as number:
        yield number


def test_stages_that_pass_fail_and_refuse_say_no_secret_and_no_sensitive_cell(
    port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)
    lay_out(tmp_path, port)
    home = tmp_path / "home"
    home.mkdir()
    for name, value in secrets(port).items():
        monkeypatch.setenv(name, value)
    try:
        said = run_stages(tmp_path / "clinic.yaml", home, monkeypatch)
        assert said["outcome"] == "promoted"
        for urls, code in ((None, 0), (f"json://{SECRET}x@127.0.0.1:9/{SECRET}x", 75), (f"jsom://{SECRET}x", 78)):
            with monkeypatch.context() as other:
                if urls:
                    other.setenv("RETRAIN_NOTIFY_URLS", urls)
                assert told("Succeeded", "[]", said) == code
        assert refused(said["url"]) == {422}
    finally:
        Server(home / "server" / "clinic", "127.0.0.1", 0).stop()

    monkeypatch.setenv("RETRAIN_WORKFLOW", "broken")
    assert run_stage("ingest", {"as-of": said["as-of"], "source": str(tmp_path / "broken.csv")}) == 65
    assert told("Failed", failure("ingest", 65), {}) == 0

    monkeypatch.setenv("RETRAIN_PIPELINE", str(tmp_path / "own.yaml"))
    monkeypatch.setenv("RETRAIN_WORKFLOW", "own")
    monkeypatch.setenv("RETRAIN_OUTPUTS", str(tmp_path / "own-outputs"))
    (home / "code.zip").write_bytes(pack(tmp_path, ["own_model"]))
    assert run_stage("features", said) == 0
    split = said_in(tmp_path / "own-outputs")
    assert run_stage("train", said | split | {"code": (home / "code.zip").as_uri()}) == 70
    assert told("Failed", failure("train", 70), {}) == 0

    out, error = capfd.readouterr()
    for where, text in (("log", caplog.text), ("stdout", out), ("stderr", error)):
        assert list(leaks_in(where, text)) == []
    assert "\n".join(map(str, leaks(tmp_path, excepted=DATA_AND_MODELS))) == ""
    # the search finds what lies where it belongs, so it would have found the rest
    assert any(CELL in leak.around for leak in leaks(home, excepted=()))


def told(status: str, failures: str, said: dict[str, str]) -> int:
    return run_stage("notify", said | {"status": status, "failures": failures})


def failure(stage: str, code: int) -> str:
    node = {
        "displayName": f"{stage}(0)",
        "templateName": stage,
        "phase": "Failed",
        "message": f"Error (exit code {code})",
    }
    return json.dumps([node])


def refused(url: str) -> set[int]:
    """Ask what is refused, with cells in fields and keys and secrets in what goes along."""
    row = {"patient": f"{CELL}-1", "age": 50, "pay": 5000, "diagnosis": f"{CELL}-a"}
    wrong = ({"age": CELL}, {"pay": f"{CELL}-pay"}, {"diagnosis": [CELL]}, {CELL: 1}, {"age": 10**400})
    bodies = [json.dumps({"instances": [row | each]}) for each in wrong] + [f'{{"instances": [{CELL}'[:-1]]
    headers = {"Authorization": f"Bearer {SECRET}x", "Content-Type": "application/json", "Cookie": f"s={SECRET}x"}
    answers = [httpx.post(f"{url}/v1/predict?token={SECRET}x", content=body, headers=headers) for body in bodies]
    found = [leak for answer in answers for leak in leaks_in("answer", answer.text)]
    assert [leak for leak in found if "is no column of this model" not in leak.around] == []  # a name, to who sent it
    return {answer.status_code for answer in answers}


@pytest.mark.faults
def test_whole_runs_say_no_secret_and_no_sensitive_cell(port: int, tmp_path: Path) -> None:
    lay_out(tmp_path, port)
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir(mode=0o700)
    temporary.mkdir()
    (home / "secrets.env").write_text("".join(f"{name}='{value}'\n" for name, value in secrets(port).items()))
    (home / "secrets.env").chmod(0o600)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
    own = {"RETRAIN_HOME": str(home), "RETRAIN_SERVER_PORT": "0", "TMPDIR": str(temporary)}

    def retrain(*words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "workflows.cli.main", *words]
        done = subprocess.run(command, cwd=tmp_path, env=kept | own, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert list(leaks_in(" ".join(words), done.stdout + done.stderr)) == []
        return done.stdout

    try:
        summary = json.loads(retrain("run", "clinic.yaml", "--json"))
        assert summary["outcome"] == "promoted"
        assert refused(summary["url"]) == {422}
        retrain("run", "clinic.yaml", "--source", "broken.csv", code=65)
        retrain("run", "own.yaml", code=70)
        retrain("status", "--json")
        retrain("doctor")
        retrain("run", "clinic.yaml", "--source", f"http://ann:{SECRET}x@127.0.0.1:{port}/rows.csv", code=78)
    finally:
        retrain("stop")

    assert "\n".join(map(str, leaks(tmp_path, excepted=(*DATA_AND_MODELS, "secrets.env")))) == ""
