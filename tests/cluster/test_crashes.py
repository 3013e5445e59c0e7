"""`promote` and `deploy` in their pods, killed after every one of their effects: a run and a rollback end as ever.

    .venv/bin/pytest -m 'cluster and faults' tests/cluster/test_crashes.py

The pipeline's own template is changed for it: after as many effects as it has had attempts a stage says so and is
killed (SIGKILL), and Argo starts the next.  Deleted pods are test_faults.py's: for each Argo waits two minutes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests import churn_table
from tests.cluster.conftest import Cluster, until
from tests.cluster.small_run import OF_WORKFLOW, RELEASED, SmallRun

pytestmark = pytest.mark.faults

KILLED = """
import os, signal, sys
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
left = int(os.environ["KILLED_AFTER"])

def watch(owner, name):
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
            print("KILLED after", owner.__name__, name, kind, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(owner, name, call)

for owner, names in EFFECTS.items():
    for name in names:
        watch(owner, name)
sys.exit(main(sys.argv[1:]))
"""
STAGES = ("promote", "deploy")
SECONDS = 30 * 60


def kill(run: SmallRun) -> None:
    """Change the template in the cluster: its stages are killed after an effect, and tried as often as it takes."""
    template = run.cluster.get("workflowtemplate", run.name)
    for each in template["spec"]["templates"]:
        if each["name"] in STAGES:
            each["container"]["command"] = ["python", "-c", KILLED]
            each["container"]["env"].append({"name": "KILLED_AFTER", "value": "{{=asInt(retries) + 1}}"})
            each["retryStrategy"] = {"limit": 60, "retryPolicy": "Always"}
    run.cluster.kubectl("replace", "-f", "-", stdin=json.dumps(template))


def killed_to_the_end(run: SmallRun, workflow: str) -> list[str]:
    """Wait for a run's end, which must be a good one, and return after which effects its stages were killed."""
    ended = run.ended(workflow, SECONDS)
    assert ended["status"]["phase"] == "Succeeded", ended["status"].get("message")
    effects = []
    for pod in run.cluster.get("pods", "-l", f"{OF_WORKFLOW}={workflow}"):
        name, stage = pod["metadata"]["name"], pod["metadata"]["labels"]["retrain/stage"]
        said = run.cluster.run("kubectl", "-n", run.cluster.namespace, "logs", name, "-c", "main").stdout
        effects += [f"{stage}: {found.strip()}" for found in re.findall("KILLED after (.*)", said)]
    return sorted(effects)


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
    kill(small)
    effects = killed_to_the_end(small, started_again(small, first))

    print(len(effects), effects)
    assert [e for e in effects if "Ledger append" in e] != []
    assert {"promote", "deploy"} == {e.partition(":")[0] for e in effects}
    assert any("Cluster apply Deployment" in e for e in effects)
    assert small.left() == RELEASED


def test_a_rollback_whose_pods_are_killed_after_every_effect_ends_as_ever(small: SmallRun) -> None:
    churn_table.write_rows(small.folder / "churn.csv", seed=3, rows=400, plans=["basic", "plus"])
    with small.followed():
        pass
    assert small.said["outcome"] == "promoted"
    kill(small)
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
