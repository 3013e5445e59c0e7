"""One run of the shipped pipeline: every stage is a pod of its own, and what they left is where it belongs."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from contracts.access import ACCESS, KANIKO, SERVING
from contracts.probes import DUTIES, probe_name
from contracts.stages import STAGES, Fit
from tests.cluster.conftest import Cluster

PROBES = {probe_name(duty): duty for duty in DUTIES}
IN_ORDER = tuple(stage.name for stage in STAGES)


@pytest.fixture(scope="session")
def workflow(platform: Cluster, run: str) -> dict[str, Any]:
    return dict(platform.get("workflow", run))


def nodes(workflow: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """Return template -> node, of one type."""
    return {n["templateName"]: n for n in workflow["status"]["nodes"].values() if n["type"] == kind}


def in_order(workflow: dict[str, Any]) -> list[str]:
    """Return the stages that the run had: where the training was there already, nothing is fitted."""
    trained = nodes(workflow, "Pod")["train"]["outputs"]["parameters"]
    reused = {"name": "reused", "value": "true"} in [{key: p[key] for key in ("name", "value")} for p in trained]
    return [stage for stage in IN_ORDER if not (reused and stage == Fit.name)]


@pytest.mark.parametrize("stage", [*PROBES, *IN_ORDER])
def test_a_stage_succeeds_in_a_pod_of_its_own(stage: str, workflow: dict[str, Any]) -> None:
    if stage not in (*PROBES, *in_order(workflow)):
        pytest.skip("the training was there already, from a run before")
    node = nodes(workflow, "Pod")[stage]

    assert (node["phase"], node["outputs"]["exitCode"]) == ("Succeeded", "0")


def test_no_stage_was_tried_twice(workflow: dict[str, Any]) -> None:
    tried = {name: len(n.get("children", ())) for name, n in nodes(workflow, "Retry").items() if name in IN_ORDER}

    assert tried == dict.fromkeys(in_order(workflow), 1)


def test_a_probe_has_the_account_of_the_duty_that_it_speaks_for(platform: Cluster, workflow: dict[str, Any]) -> None:
    pods = platform.get("pods", "-l", f"workflows.argoproj.io/workflow={workflow['metadata']['name']}")
    template = "workflows.argoproj.io/node-name"
    accounts = {
        pod["metadata"]["annotations"][template].split(".")[-1].split("(")[0]: pod["spec"]["serviceAccountName"]
        for pod in pods
    }

    assert {name: account for name, account in accounts.items() if name in PROBES} == {
        name: f"retrain-{duty}" for name, duty in PROBES.items()
    }


def test_main_containers_have_no_token_and_run_as_nobody(platform: Cluster, workflow: dict[str, Any]) -> None:
    pods = platform.get("pods", "-l", f"workflows.argoproj.io/workflow={workflow['metadata']['name']}")
    assert pods, "kept until the workflow's own clean-up"
    for pod in pods:
        stage = pod["metadata"]["labels"]["retrain/stage"]
        assert pod["spec"]["serviceAccountName"] == f"retrain-{stage}"
        for container in pod["spec"]["containers"]:
            if container["name"] == "main" and not ACCESS[stage].token:
                assert not [m for m in container["volumeMounts"] if "serviceaccount" in m["mountPath"]]


@pytest.fixture(scope="session")
def restricted(platform: Cluster) -> Iterator[Cluster]:
    """A namespace that enforces Pod Security `restricted`, where nothing runs: pods are only asked about."""
    name = f"restricted-{os.urandom(3).hex()}"
    level = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": level}}
    platform.kubectl("create", "-f", "-", stdin=json.dumps(namespace))
    # accounts come a moment after the namespace, and a pod needs one
    platform.run("kubectl", "wait", "-n", name, "serviceaccount/default", "--for=create", "--timeout=60s")
    yield Cluster(platform.kubeconfig, name)
    platform.kubectl("delete", "namespace", name, "--wait=false")


def refusal(cluster: Cluster, spec: dict[str, Any]) -> str:
    """Return why a pod would not be admitted, empty when it would."""
    asked = copy.deepcopy(spec)
    for field in ("serviceAccount", "serviceAccountName", "nodeName", "priority"):  # of where it ran
        asked.pop(field, None)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "asked-"}, "spec": asked}
    done = cluster.run(
        "kubectl", "create", "-n", cluster.namespace, "--dry-run=server", "-f", "-", stdin=json.dumps(pod)
    )
    return "" if done.returncode == 0 else done.stderr.strip()


def test_every_pod_of_a_run_would_be_admitted_under_restricted(
    platform: Cluster, workflow: dict[str, Any], restricted: Cluster
) -> None:
    pods = platform.get("pods", "-l", f"workflows.argoproj.io/workflow={workflow['metadata']['name']}")
    pods += platform.get("pods", "-l", "retrain/stage=serving")
    asked = [(pod["metadata"]["labels"]["retrain/stage"], pod["metadata"]["name"], pod["spec"]) for pod in pods]

    assert {stage.account for stage in STAGES} | {SERVING} <= {account for account, _, _ in asked}
    found = {name: refusal(restricted, spec) for account, name, spec in asked if account != KANIKO}
    assert found == dict.fromkeys(found, "")


def test_kaniko_alone_would_not(platform: Cluster, pipeline: str, restricted: Cluster) -> None:
    templates = platform.get("workflowtemplate", pipeline)["spec"]["templates"]
    kaniko = next(t for t in templates if t["name"] == "kaniko")
    main = {"name": "main", "image": "kaniko", "securityContext": kaniko["container"]["securityContext"]}
    why = refusal(restricted, {"containers": [main], "securityContext": kaniko["securityContext"]})

    assert "violates PodSecurity" in why
    assert "runAsNonRoot" in why
