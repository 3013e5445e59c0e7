"""Anybody's data: `init` and all stages bring four real tables to a version that answers, without a change of code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.pipeline import load_pipeline
from contracts.reports import ValidationReport
from steps.rollout.process import Server
from tests.datasets.desk_stages import run_stages
from tests.datasets.make import DATA_SETS
from workflows.cli.init import init

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "metric", "at_least"),
    [
        ("breast-cancer", "roc_auc", 0.95),
        pytest.param("penguins", "balanced_accuracy", 0.9, marks=pytest.mark.faults),
        pytest.param("diabetes", "r2", 0.2, marks=pytest.mark.faults),
        pytest.param("weather", "balanced_accuracy", 0.35, marks=pytest.mark.faults),
    ],
)
def test_a_real_table_becomes_a_version_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, metric: str, at_least: float
) -> None:
    make, target = DATA_SETS[name]
    make().to_csv(tmp_path / f"{name}.csv", index=False)
    file = tmp_path / f"{name}.yaml"
    init(tmp_path / f"{name}.csv", target, out=file)
    pipeline = load_pipeline(file)
    home = tmp_path / "home"
    home.mkdir()

    try:
        said = run_stages(file, home, monkeypatch)
        served = httpx.get(f"{said['url']}/v1/model").json()
        answer = httpx.post(f"{said['url']}/v1/predict", json=example(said["url"]))
    finally:
        Server(home / "server" / pipeline.name, "127.0.0.1", 0).stop()

    assert (said["verdict"], said["decision"], said["outcome"]) == ("passed", "approved", "promoted")
    report = (home / "store" / "reports" / said["run-id"] / "validation.json").read_text()
    assert (ValidationReport.model_validate_json(report).metrics[metric] or 0) > at_least
    assert (served["version"], served["dataset_sha256"]) == (1, said["dataset-sha256"])
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["predictions"]) == 1


def example(url: str) -> Any:
    """Return the request that the server's own documentation shows."""
    described = httpx.get(f"{url}/openapi.json").json()
    body = described["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return described["components"]["schemas"][body["$ref"].rsplit("/", 1)[-1]]["examples"][0]
