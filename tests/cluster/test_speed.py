"""What Argo and Kubernetes add to the stages' own time.

Nine stages that do nothing, under our controller settings and under those that Argo comes with, in one run: each
controller is one of its own in a namespace of its own, and sees only the workflows that name it.  And a whole run, less
the time in which a stage's own container ran.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from contracts.access import EXECUTOR_RULES
from tests.cluster.conftest import ROOT, Cluster, until
from tests.cluster.small_run import OF_WORKFLOW, SmallRun
from tests.cluster.small_run import STAGES as STAGES_OF_A_RUN
from workflows.platform import policy_rules

pytestmark = pytest.mark.faults

NAMESPACE = os.environ.get("SPEED_NAMESPACE", "speed-test")
STAGES = 9
AT_MOST = 0.45
SECONDS_A_POD = 4.6
IMAGE = "python:3.11-slim"
ONE_AFTER_THE_OTHER = ("a probe", "fit", *STAGES_OF_A_RUN[:-1])
CONTROLLERS = {"theirs": {}, "ours": dict(re.findall(r"\b([A-Z][A-Z_]+)=(\S+)", "".join(
    line for line in (ROOT / "kind" / "operators").read_text().splitlines() if "set env" in line
)))}  # fmt: skip
"""Name -> environment of the controller."""


def rights() -> list[dict[str, Any]]:
    """A controller may do what Argo's own cluster role says, in this namespace; pods report to it."""
    group = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": "executor"},
            "rules": policy_rules(EXECUTOR_RULES)}  # fmt: skip
    leases = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create", "get", "update"]}
    leading = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": "leader"}, "rules": [leases]}
    bindings = {
        "executor": ("Role", "executor", "default"), "argo": ("ClusterRole", "argo-cluster-role", "argo"),
        "leader": ("Role", "leader", "argo"),
    }  # fmt: skip
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "argo"}},
        role,
        leading,
        *({"apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": {"name": name},
           "roleRef": {"apiGroup": group, "kind": kind, "name": of},
           "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}]}
          for name, (kind, of, account) in bindings.items()),
    ]  # fmt: skip


def controller(name: str, image: str, environment: dict[str, str]) -> list[dict[str, Any]]:
    identity = {"name": "LEADER_ELECTION_IDENTITY", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    container = {
        "name": "controller", "image": image, "command": ["workflow-controller"],
        "args": ["--namespaced", "--configmap", name],
        "env": [identity, *({"name": key, "value": value} for key, value in environment.items())],
        "resources": {"requests": {"cpu": "50m"}},
    }  # fmt: skip
    pod = {"metadata": {"labels": {"app": name}}, "spec": {"serviceAccountName": "argo", "containers": [container]}}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"instanceID": name}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
         "spec": {"selector": {"matchLabels": {"app": name}}, "template": pod}},
    ]  # fmt: skip


def chain(name: str, stages: int) -> dict[str, Any]:
    tasks = [
        {"name": f"s{n}", "template": "nothing"} | ({"depends": f"s{n - 1}.Succeeded"} if n else {})
        for n in range(stages)
    ]
    nothing = {"image": IMAGE, "command": ["true"], "resources": {"requests": {"cpu": "20m"}}}
    return {
        "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow",
        "metadata": {"generateName": f"{name}-", "labels": {"workflows.argoproj.io/controller-instanceid": name}},
        "spec": {
            "entrypoint": "chain",
            "templates": [{"name": "chain", "dag": {"tasks": tasks}}, {"name": "nothing", "container": nothing}],
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def space(cluster: Cluster) -> Iterator[Cluster]:
    found = cluster.get("pods", "-A", "-l", "app=workflow-controller")
    if not found or cluster.run("kubectl", "get", "clusterrole", "argo-cluster-role").returncode:
        pytest.skip("Argo is not installed as its own manifest does")
    image = found[0]["spec"]["containers"][0]["image"]
    cluster.kubectl("create", "namespace", NAMESPACE)
    here = replace(cluster, namespace=NAMESPACE)
    try:
        here.apply(*rights())
        for name, environment in CONTROLLERS.items():
            here.apply(*controller(name, image, environment))
        for name in CONTROLLERS:
            here.kubectl("rollout", "status", f"deployment/{name}", "--timeout=5m", timeout=310)
        yield here
    finally:
        cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def seconds(space: Cluster, name: str, stages: int) -> float:
    """Run a chain under a controller and return how long it took by its status."""
    made = space.kubectl("create", "-f", "-", "-o", "name", stdin=json.dumps(chain(name, stages))).strip()

    def status() -> dict[str, Any] | None:
        found = dict(space.get(made).get("status", {}))
        return found if found.get("finishedAt") else None

    ended = until(partial(status), 900)
    assert ended, f"{made} did not end"
    assert ended["phase"] == "Succeeded", ended
    started, finished = (datetime.fromisoformat(ended[key]) for key in ("startedAt", "finishedAt"))
    return (finished - started).total_seconds()


def test_nine_stages_that_do_nothing_take_less_than_half_as_long_as_by_default(space: Cluster) -> None:
    for name in CONTROLLERS:
        seconds(space, name, 1)  # the controller has its lease, the image is there
    took = {name: seconds(space, name, STAGES) for name in CONTROLLERS}

    print(f"{STAGES} stages: {took['ours']:.0f} s, by default {took['theirs']:.0f} s")
    assert took["ours"] <= AT_MOST * took["theirs"]


def running(pods: list[dict[str, Any]]) -> list[tuple[datetime, datetime]]:
    """Return from when to when each pod's main container ran, in whole seconds as the kubelet says, by its start."""
    states = [s["state"]["terminated"] for p in pods for s in p["status"]["containerStatuses"] if s["name"] == "main"]
    return sorted((datetime.fromisoformat(s["startedAt"]), datetime.fromisoformat(s["finishedAt"])) for s in states)


def covered(spans: list[tuple[datetime, datetime]]) -> float:
    """Return the seconds that lie in any of the spans, which are sorted by their start."""
    seconds, end = 0.0, spans[0][0]
    for start, finish in spans:
        seconds += max(0.0, (finish - max(start, end)).total_seconds())
        end = max(end, finish)
    return seconds


def test_a_run_takes_little_more_than_its_stages(platform: Cluster, tmp_path: Path) -> None:
    run = SmallRun.make(platform, tmp_path, "speed")
    try:
        began = time.time()
        with run.followed():
            pass
        [workflow] = run.workflows()
        pods = platform.get("pods", "-l", f"{OF_WORKFLOW}={workflow['metadata']['name']}")
    finally:
        run.remove()
    spans = running(pods)
    by_stage = {n["templateName"]: n for n in workflow["status"]["nodes"].values() if n["type"] == "Pod"}
    deployed = datetime.fromisoformat(by_stage["deploy"]["finishedAt"])
    before = datetime.fromisoformat(workflow["status"]["startedAt"]).timestamp() - began
    until_served = [span for span in spans if span[0] <= deployed]
    whole = (deployed - datetime.fromisoformat(workflow["status"]["startedAt"])).total_seconds()
    one_after_the_other = len(ONE_AFTER_THE_OTHER)
    added = whole - covered(until_served)

    print(
        f"{before:.0f} s until it was submitted; {whole:.0f} s to serving, stages ran in {covered(until_served):.0f} s "
        f"of them; {added:.0f} s for {one_after_the_other} pods one after the other, {len(until_served)} in all: "
        f"{added / one_after_the_other:.1f} s each"
    )
    assert added <= SECONDS_A_POD * one_after_the_other
