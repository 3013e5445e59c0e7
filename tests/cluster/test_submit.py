"""A user's own pipeline, a module and a CSV beside it: the same result as at the desk, and the same answers."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import ROOT, Cluster

NAME = "submit-test"
PIPELINE = f"""
apiVersion: retrain/v1
name: {NAME}
source: {{uri: churn.csv}}
schema:
  columns:
    - {{name: age, type: integer, nullable: false, min: 0}}
    - {{name: plan, type: string}}
    - {{name: churned, type: string, nullable: false}}
target: {{column: churned, task: binary, positive: "yes"}}
training:
  metric: roc_auc
  candidates:
    - {{name: mine, estimator: "own_model:make"}}
gates:
  default:
    validation:
      thresholds: [{{metric: roc_auc, min: 0.999}}]  # out of reach, so that nothing is registered
      bootstrap: {{resamples: 100}}
"""
MODULE = """
from sklearn.linear_model import LogisticRegression


def make(**parameters):
    return LogisticRegression(**parameters)
"""


def retrain(cluster: Cluster, *words: str, cwd: Path = ROOT, code: int = 0) -> str:
    environment = {
        **os.environ, "KUBECONFIG": cluster.kubeconfig, "RETRAIN_HOME": str(cwd / "home"), "RETRAIN_SERVER_PORT": "0",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "workflows.cli.main", *words],
        cwd=cwd, env=environment, text=True, capture_output=True, check=False, timeout=1500,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout or done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("own")
    (made / "churn.yaml").write_text(PIPELINE)
    (made / "own_model.py").write_text(MODULE)
    draw = random.Random(1)
    rows = [(draw.randint(18, 80), draw.choice("abc"), draw.random()) for _ in range(2000)]
    lines = (f"{age},{plan},{'yes' if chance < (age - 10) / 75 else 'no'}\n" for age, plan, chance in rows)
    (made / "churn.csv").write_text("age,plan,churned\n" + "".join(lines))
    return made


@pytest.fixture(scope="module")
def submitted(platform: Cluster, folder: Path) -> dict[str, Any]:
    small = [word for stage in ("train", "ingest", "evaluate") for word in ("-p", f"{stage}-cpu=50")]
    return dict(
        json.loads(retrain(platform, "submit", "churn.yaml", "-n", platform.namespace, "--json", *small, cwd=folder))
    )


def test_an_own_module_and_a_local_csv_give_the_same_as_at_the_desk(
    platform: Cluster, folder: Path, submitted: dict[str, Any]
) -> None:
    desk = json.loads(retrain(platform, "run", "churn.yaml", "--json", cwd=folder))

    for key in ("outcome", "dataset_sha256", "rows", "candidate"):
        assert submitted[key] == desk[key], key
    checks = [
        [(c["name"], c["value"], c["interval"]) for c in found["validation"]["checks"]] for found in (submitted, desk)
    ]
    assert checks[0] == checks[1]


def test_data_and_code_are_named_by_their_hash_and_the_file_by_its_own(
    platform: Cluster, submitted: dict[str, Any]
) -> None:
    workflow = platform.get("workflow", submitted["workflow"])
    given = {p["name"]: p["value"] for p in workflow["spec"]["arguments"]["parameters"]}

    assert given["source"].startswith("s3://")
    assert given["source"].endswith(".csv")
    assert len(Path(given["source"]).stem) == len(Path(given["code"]).stem) == 64
    [mounted] = workflow["status"]["storedWorkflowTemplateSpec"]["volumes"][:1]
    assert platform.get("configmap", mounted["configMap"]["name"])["immutable"]


def test_status_and_logs_answer_as_at_the_desk(platform: Cluster, submitted: dict[str, Any]) -> None:
    here = ("-n", platform.namespace)

    said = retrain(platform, "status", submitted["workflow"], *here)
    assert f"(retrain status -n {platform.namespace} {submitted['workflow']})" in said
    assert "rejected" in said
    assert submitted["workflow"] in retrain(platform, "status", "--all", *here)
    nodes = json.loads(retrain(platform, "status", submitted["workflow"], "--json", *here))["status"]["nodes"]
    assert {n["templateName"] for n in nodes.values() if n["type"] == "Pod"} >= {"ingest", "train", "notify"}
    lines = retrain(platform, "logs", submitted["workflow"], "train", *here).splitlines()
    assert lines
    assert all(line.startswith("train(0): ") and "argo=true" not in line for line in lines)


def test_the_log_of_a_pod_that_is_gone_comes_from_the_store_or_is_said_to_be_gone(
    platform: Cluster, submitted: dict[str, Any]
) -> None:
    words = ("logs", submitted["workflow"], "features", "-n", platform.namespace)
    before = retrain(platform, *words)
    workflow = platform.get("workflow", submitted["workflow"])
    kept = workflow["status"]["artifactRepositoryRef"].get("artifactRepository", {}).get("archiveLogs", False)
    selector = f"workflows.argoproj.io/workflow={submitted['workflow']},retrain/stage=features"
    platform.kubectl("delete", "pod", "-l", selector)

    after = retrain(platform, *words)

    assert after == before if kept else "its pod is gone" in after


def test_wrong_parameters_start_nothing(platform: Cluster, folder: Path) -> None:
    before = len(platform.get("workflows"))

    said = retrain(
        platform, "submit", "churn.yaml", "-n", platform.namespace, "-p", "cache=maybe", "-p", "trian-cpu=1",
        cwd=folder, code=78,
    )  # fmt: skip

    assert "cache" in said
    assert "trian-cpu" in said
    assert len(platform.get("workflows")) == before


def test_a_namespace_without_the_platform_is_said_to_have_none(platform: Cluster, folder: Path) -> None:
    said = retrain(platform, "submit", "churn.yaml", "-n", "kube-public", cwd=folder, code=78)

    assert "namespace kube-public of" in said
    assert "has no platform" in said


def test_lineage_answers_from_the_cluster(platform: Cluster, run: str, pipeline: str) -> None:
    found = json.loads(retrain(platform, "lineage", f"{pipeline}@production", "--json", "-n", platform.namespace))

    assert found["model"] == pipeline
    assert found["dataset"]["sha256"]
    assert found["workflows"], run
