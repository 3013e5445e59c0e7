"""`promote` and `deploy` in their pods, killed after every one of their effects: a release and a rollback end as ever.

    .venv/bin/pytest -m 'cluster and faults' tests/cluster/test_crashes.py

The pipeline's own template is changed for it: its stages say each effect that they have, which is how one run shows
what the next one's attempts are killed after (SIGKILL), one effect each; then Argo starts the next.  Deleted pods are
test_faults.py's: for each Argo waits two minutes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

import pytest

from tests.cluster.conftest import Cluster, until
from tests.cluster.small_run import OF_WORKFLOW, SmallRun

pytestmark = pytest.mark.faults

WATCHED = """
import json, os, re, signal, sys
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
LAST = "the end"
wanted, attempt = json.loads(os.environ["KILLED_AFTER"]), int(os.environ["ATTEMPT"])

def about(name, given):
    if name == "append":
        return str(given[1])
    if name == "set_tags":
        return given[1].get("retrain.state", "")
    what = given[1] if name == "log_files" else given[0]
    if isinstance(what, dict):
        what = what["kind"] if "kind" in what else " ".join(sorted(what))
    return re.sub("[0-9]+", "N", what.rpartition("/")[2])

def had(effect):
    print("HAD", effect, flush=True)
    if attempt < len(wanted) and wanted[attempt] == effect:
        print("KILLED after", effect, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

def watch(owner, name):
    real = getattr(owner, name)

    def call(self, *given, **named):
        done = real(self, *given, **named)
        what = about(name, given)
        if what != "Lease" and not named.get("only_ask"):
            had(f"{owner.__name__}.{name} {what}")
        return done

    setattr(owner, name, call)

for owner, names in EFFECTS.items():
    for name in names:
        watch(owner, name)
code = main(sys.argv[1:])
had(LAST)
if attempt < len(wanted):  # the effect did not come again
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(code)
"""
STAGES = ("promote", "deploy")
SECONDS = 30 * 60
Effects = Mapping[str, Sequence[str]]
"""By the stage that has them, in the order in which it has them."""


def watch(run: SmallRun, killed_after: Effects) -> None:
    """Change the template in the cluster: its stages say their effects, and each attempt is killed after the next."""
    template = run.cluster.get("workflowtemplate", run.name)
    for each in template["spec"]["templates"]:
        if (stage := each["name"]) in STAGES:
            after = json.dumps(killed_after.get(stage, []))
            each["container"]["command"] = ["python", "-c", WATCHED]
            kept = [e for e in each["container"]["env"] if e["name"] not in ("KILLED_AFTER", "ATTEMPT")]
            more = [{"name": "KILLED_AFTER", "value": after}, {"name": "ATTEMPT", "value": "{{=asInt(retries)}}"}]
            each["container"]["env"] = kept + more
            each["retryStrategy"] = {"limit": 60, "retryPolicy": "Always"}
    run.cluster.kubectl("replace", "-f", "-", stdin=json.dumps(template))


def ended_well(run: SmallRun, workflow: str) -> tuple[Effects, Effects]:
    """Wait for a run's end, which must be a good one; return its stages' effects, and after which they were killed."""
    ended = run.ended(workflow, SECONDS)
    assert ended["status"]["phase"] == "Succeeded", ended["status"].get("message")
    had: dict[str, list[str]] = {stage: [] for stage in STAGES}
    killed: dict[str, list[str]] = {stage: [] for stage in STAGES}
    pods = run.cluster.get("pods", "-l", f"{OF_WORKFLOW}={workflow}", "--sort-by=.metadata.creationTimestamp")
    for pod in pods:
        name, stage = pod["metadata"]["name"], pod["metadata"]["labels"]["retrain/stage"]
        if stage not in STAGES:
            continue
        said = run.cluster.run("kubectl", "-n", run.cluster.namespace, "logs", name, "-c", "main").stdout
        had[stage] += [e for e in re.findall("^HAD (.*)", said, re.M) if e not in had[stage]]
        killed[stage] += re.findall("^KILLED after (.*)", said, re.M)
    print(workflow, json.dumps({"had": had, "killed": killed}, indent=1))
    return had, killed


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


def released(run: SmallRun, seed: int, killed_after: Effects) -> tuple[Effects, Effects]:
    """Release what other data make, watched."""
    run.take_data(seed)
    first = run.submit()
    watch(run, killed_after)
    return ended_well(run, started_again(run, first))


def gone_back(run: SmallRun, killed_after: Effects) -> tuple[Effects, Effects]:
    """Go back to the version before, watched; the command must see the end as well."""
    watch(run, killed_after)
    before = {w["metadata"]["name"] for w in run.workflows()}
    words = ["rollback", run.name, "--reason", "to see it end", "-n", run.cluster.namespace]
    process = subprocess.Popen(
        [sys.executable, "-m", "workflows.cli.main", *words], cwd=run.folder, env=run.environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        started = until(lambda: sorted({w["metadata"]["name"] for w in run.workflows()} - before), 180)
        assert started, process.communicate(timeout=10)[0] if process.poll() is not None else "it starts no run"
        effects = ended_well(run, started[0])
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, said
    return effects


ONCE = ["approved", "releasing", "serving"]


def agree(run: SmallRun, version: int, states: Sequence[str]) -> None:
    """The ledger is whole, with these states of the version; it, alias, Deployment and what answers are of that one."""
    left = run.left()
    assert [state for state, of in left["chain"] if of == version] == list(states)
    assert left["chain"][-1] == ["serving", version]
    assert (left["broken"], left["serves"], left["deployments"]) == ([], version, [str(version)])
    assert (left["aliases"]["production"], left["under way"]) == (version, [])


@pytest.fixture(scope="module")
def small(platform: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallRun]:
    made = SmallRun.make(platform, tmp_path_factory.mktemp("crashes"), "crash")
    with made.followed():
        pass
    assert made.said["outcome"] == "promoted"
    yield made
    made.remove()


def test_a_release_whose_pods_are_killed_after_every_effect_ends_as_ever(small: SmallRun) -> None:
    effects, _ = released(small, 2, {})
    assert {"Ledger.append approved"} <= set(effects["promote"])
    wanted = {"Ledger.append releasing", "Ledger.append serving", "Registry.set_alias production"}
    assert wanted | {"Registry.set_tags serving", "Registry.set_tags retired"} <= set(effects["deploy"])
    agree(small, 2, ["registered", *ONCE])

    _, killed = released(small, 3, effects)
    assert killed == effects
    agree(small, 3, ["registered", *ONCE])


def test_a_rollback_whose_pods_are_killed_after_every_effect_ends_as_ever(small: SmallRun) -> None:
    effects, _ = gone_back(small, {})
    agree(small, 2, ["registered", *ONCE, "retired", *ONCE])

    _, killed = gone_back(small, effects)
    assert killed == effects
    agree(small, 1, ["registered", *ONCE, "retired", *ONCE])
