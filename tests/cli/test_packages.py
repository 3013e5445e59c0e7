"""A pipeline whose module imports a package that retrain does not have: from the run to the served answer."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.wheels import only_from, stand_ins, wheel

pytestmark = pytest.mark.slow

PIPELINE = """
apiVersion: retrain/v1
name: churn
source: {uri: churn.csv}
packages: ["shift-rows==1.0"]
schema:
  columns:
    - {name: age, type: integer, nullable: false, min: 0}
    - {name: churned, type: string, nullable: false}
target: {column: churned, task: binary, positive: "yes"}
training:
  metric: roc_auc
  trusted_types: [shift_rows.Shift]
  candidates: [{name: mine, estimator: "own_model:make"}]
gates: {default: {validation: {thresholds: [{metric: roc_auc, min: 0.6}], bootstrap: {resamples: 100}}}}
"""
MODULE = """
import shift_rows
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


def make():
    return make_pipeline(shift_rows.Shift(), LogisticRegression())
"""
PACKAGE = """
from sklearn.base import BaseEstimator, TransformerMixin
from steps_of_rows import STEP


class Shift(TransformerMixin, BaseEstimator):
    def fit(self, rows, y=None):
        self.fitted_ = True
        return self

    def transform(self, rows):
        return rows - STEP
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "shift_rows", "1.0", {"shift_rows.py": PACKAGE}, ["steps-of-rows", "scikit-learn"])
    wheel(wheels, "steps_of_rows", "0.3", {"steps_of_rows.py": "STEP = 40\n"})
    stand_ins(wheels, "scikit-learn")
    only_from(wheels, monkeypatch)
    (tmp_path / "churn.yaml").write_text(PIPELINE)
    (tmp_path / "own_model.py").write_text(MODULE)
    draw = random.Random(1)
    ages = [draw.randint(18, 80) for _ in range(2000)]
    lines = (f"{age},{'yes' if draw.random() < (age - 10) / 75 else 'no'}\n" for age in ages)
    (tmp_path / "churn.csv").write_text("age,churned\n" + "".join(lines))
    return tmp_path


def retrain(folder: Path, *words: str, code: int = 0) -> str:
    environment = {**os.environ, "RETRAIN_HOME": str(folder / "home"), "RETRAIN_SERVER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "workflows.cli.main", *words],
        cwd=folder, env=environment, text=True, capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout or done.stderr


@pytest.mark.faults
def test_a_package_of_its_own_serves_predicts_and_is_named_by_lineage(folder: Path) -> None:
    try:
        done = json.loads(retrain(folder, "run", "churn.yaml", "--json"))
        assert done["outcome"] == "promoted"

        answer = httpx.post(f"{done['url']}/v1/predict", json={"instances": [{"age": 47}]}, trust_env=False).json()
        (folder / "one.csv").write_text("age\n47\n")
        scored = retrain(folder, "predict", "one.csv").splitlines()[1].split(",")
        assert f"{answer['predictions'][0]['probabilities']['yes']:.9f}" == f"{float(scored[3]):.9f}"

        code = json.loads(retrain(folder, "lineage", "--json"))["code"]
        assert [p["name"] for p in code["packages"]] == ["shift-rows", "steps-of-rows"]
        assert all(p["hashes"] for p in code["packages"])
        assert json.loads(retrain(folder, "reproduce", "1", "--here", "--json"))["answer"] == "identical"
        assert json.loads(retrain(folder, "run", "churn.yaml", "--json"))["outcome"] == "unchanged"
    finally:
        retrain(folder, "stop")


def test_a_package_that_there_is_not_stops_before_anything_is_written(folder: Path) -> None:
    (folder / "churn.yaml").write_text(PIPELINE.replace("==1.0", "==2.0"))

    assert "no version of shift-rows==2.0" in retrain(folder, "run", "churn.yaml", code=78)
    assert not (folder / "home" / "runs").exists()
