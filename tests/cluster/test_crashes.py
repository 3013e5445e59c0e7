"""The pods of `promote` and `deploy`, killed after every one of their effects: a run and a rollback end as ever.

    pytest -m faults tests/cluster/test_crashes.py

The pipeline's own template is changed for it: a stage stops after as many effects as it has had attempts, and says so;
its pod is then killed, and Argo starts the next.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests import churn_table
from tests.cluster.conftest import Cluster, until
from tests.cluster.small_run import OF_WORKFLOW, RELEASED, SmallRun

pytestmark = pytest.mark.faults

HELD = """
import os, sys, threading, time
from steps.__main__ import main
from steps.ledger import Ledger
from steps.registry import Registry
from steps.rollout.cluster import Cluster
from steps.storage import Storage
from steps.tracking import Tracking

EFFECTS = {
    Ledger: ["append"], Registry: ["set_alias", "set_tags"], Storage: ["write", "delete"], Tracking: ["log_files"],
    Cluster: ["apply", "create", "replace", "scale", "delete"],
}
left = int(os.environ["HELD_AFTER"])

def held(owner, name):
    real = getattr(owner, name)

    def call(self, *given, **named):
        global left
        done = real(self, *given, **named)
        what = given[0] if owner is Cluster else ""
        kind = what["kind"] if isinstance(what, dict) else what
        if kind == "Lease" or named.get("only_ask"):
            return done
        left -= 1
        if left == 0:
            print("HELD after", owner.__name__, name, kind, flush=True)
            time.sleep(3600)
        return done

    setattr(owner, name, call)

for owner, names in EFFECTS.items():
    for name in names:
        held(owner, name)
sys.exit(main(sys.argv[1:]))
"""
KILLED = ("promote", "deploy")
MINUTES = 30


def hold(run: SmallRun) -> None:
    """Change the template in the cluster: its stages stop after an effect, and are tried as often as it takes."""
    template = run.cluster.get("workflowtemplate", run.name)
    for each in template["spec"]["templates"]:
        if each["name"] in KILLED:
            each["container"]["command"] = ["python", "-c", HELD]
            each["container"]["env"].append({"name": "HELD_AFTER", "value": "{{=asInt(retries) + 1}}"})
            each["retryStrategy"] = {"limit": 60, "retryPolicy": "Always"}
    run.cluster.kubectl("replace", "-f", "-", stdin=json.dumps(template))


def killed_to_the_end(run: SmallRun, workflow: str) -> list[str]:
    """Kill each pod that stopped after an effect until the run has ended; return after which effects."""
    effects: list[str] = []
    gone: set[str] = set()
    deadline = time.monotonic() + MINUTES * 60
    while time.monotonic() < deadline:
        for pod in run.cluster.get("pods", "-l", f"{OF_WORKFLOW}={workflow}"):
            name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]  # Argo may make a pod again by the same name
            if uid in gone or pod["metadata"]["labels"].get("retrain/stage") not in KILLED:
                continue
            said = run.cluster.run("kubectl", "-n", run.cluster.namespace, "logs", name, "-c", "main").stdout
            if found := re.search("HELD after (.*)", said):
                stage = pod["metadata"]["labels"]["retrain/stage"]
                effects.append(f"{stage}: {found[1].strip()}")
                run.cluster.kubectl("delete", "pod", name, "--grace-period=0", "--force")
                gone.add(uid)
        found_run: dict[str, Any] = run.cluster.get("workflow", workflow)
        if found_run.get("status", {}).get("finishedAt"):
            assert found_run["status"]["phase"] == "Succeeded", found_run["status"].get("message")
            return effects
        time.sleep(1)
    raise AssertionError(f"{workflow} did not end within {MINUTES} minutes; killed {effects}")


def started_again(run: SmallRun, first: str) -> str:
    """Start a run with the template as it is now, on what another was given, in place of it."""
    workflow = run.cluster.get("workflow", first)
    run.cluster.kubectl("delete", "workflow", first)
    made = {
        "apiVersion": workflow["apiVersion"], "kind": "Workflow",
        "metadata": {"generateName": f"{run.name}-", "labels": {"retrain/pipeline": run.name}},
        "spec": {key: workflow["spec"][key] for key in ("workflowTemplateRef", "entrypoint", "arguments")},
    }  # fmt: skip
    said = run.cluster.kubectl("create", "-f", "-", "-o", "name", stdin=json.dumps(made))
    return said.strip().rpartition("/")[2]


@pytest.fixture(scope="module")
def small(platform: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallRun]:
    made = SmallRun.make(platform, tmp_path_factory.mktemp("crashes"), "crash")
    yield made
    made.remove()


def test_a_first_release_whose_pods_are_killed_after_every_effect_ends_as_ever(small: SmallRun) -> None:
    first = small.submit()
    hold(small)
    effects = killed_to_the_end(small, started_again(small, first))

    print(len(effects), effects)
    assert [e for e in effects if "Ledger append" in e] != []
    assert {"promote", "deploy"} == {e.partition(":")[0] for e in effects}
    assert any("Registry set_alias" in e for e in effects)
    assert any("Cluster apply Deployment" in e for e in effects)
    assert small.left() == RELEASED


def test_a_rollback_whose_pods_are_killed_after_every_effect_ends_as_ever(small: SmallRun) -> None:
    churn_table.write_rows(small.folder / "churn.csv", seed=3, rows=400, plans=["basic", "plus"])
    with small.followed():
        pass
    assert small.said["outcome"] == "promoted"
    hold(small)
    before = {w["metadata"]["name"] for w in small.workflows()}
    words = ["rollback", small.name, "--reason", "to see it end", "-n", small.cluster.namespace]
    process = subprocess.Popen(
        [sys.executable, "-m", "workflows.cli.main", *words], cwd=small.folder, env=small.environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        started = until(lambda: sorted({w["metadata"]["name"] for w in small.workflows()} - before), 180)[0]
        effects = killed_to_the_end(small, started)
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()

    print(len(effects), effects, said)
    assert process.returncode == 0, said
    left = small.left()
    assert left["chain"][-1] == ["serving", 1]
    assert (left["broken"], left["serves"], left["deployments"], left["under way"]) == ([], 1, ["1"], [])
    assert left["aliases"]["production"] == 1
