"""One run of the shipped pipeline: every stage is a pod of its own, and what they left is where it belongs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.conftest import Cluster

IN_ORDER = ("preflight", "ingest", "features", "train", "evaluate", "register", "promote", "build", "deploy", "notify")


@pytest.fixture(scope="session")
def workflow(platform: Cluster, run: str) -> dict[str, Any]:
    return dict(platform.get("workflow", run))


def nodes(workflow: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """Return template -> node, of one type."""
    return {n["templateName"]: n for n in workflow["status"]["nodes"].values() if n["type"] == kind}


@pytest.mark.parametrize("stage", IN_ORDER)
def test_a_stage_succeeds_in_a_pod_of_its_own(stage: str, workflow: dict[str, Any]) -> None:
    node = nodes(workflow, "Pod")[stage]

    assert (node["phase"], node["outputs"]["exitCode"]) == ("Succeeded", "0")


def test_no_stage_was_tried_twice(workflow: dict[str, Any]) -> None:
    tried = {name: len(n.get("children", ())) for name, n in nodes(workflow, "Retry").items() if name in IN_ORDER}

    assert tried == dict.fromkeys(IN_ORDER, 1)


def test_main_containers_have_no_token_and_run_as_nobody(platform: Cluster, workflow: dict[str, Any]) -> None:
    pods = platform.get("pods", "-l", f"workflows.argoproj.io/workflow={workflow['metadata']['name']}")
    assert pods, "kept until the workflow's own clean-up"
    for pod in pods:
        stage = pod["metadata"]["labels"]["retrain/stage"]
        assert pod["spec"]["serviceAccountName"] == f"retrain-{stage}"
        for container in pod["spec"]["containers"]:
            if container["name"] == "main" and stage != "deploy":
                assert not [m for m in container["volumeMounts"] if "serviceaccount" in m["mountPath"]]
