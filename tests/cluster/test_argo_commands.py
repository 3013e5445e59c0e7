"""What people do to runs with `argo`: two at once, stop, terminate, retry, resubmit.  Whatever they do, one version
serves in the end, on a whole chain.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from contracts.names import STAGE_SECRET
from contracts.settings import variable
from tests.cluster.conftest import Cluster, until
from tests.cluster.small_run import RELEASED, STAGES, SmallRun
from tests.cluster.test_faults import kill_controller

pytestmark = pytest.mark.faults

FAILING = {"ingest": "ingest", "train": "fit", "register": "register", "promote": "promote", "deploy": "deploy"}
"""Whose password is wrong -> the stage that fails of it."""
_KEY = variable("aws_secret_access_key")


@pytest.fixture
def small(platform: Cluster, tmp_path: Path) -> Iterator[SmallRun]:
    if shutil.which("argo") is None:
        pytest.skip("no argo on the PATH")
    made = SmallRun.make(platform, tmp_path, "argo")
    yield made
    made.remove()


def argo(run: SmallRun, *words: str) -> str:
    done = run.cluster.run("argo", *words, "-n", run.cluster.namespace)
    assert done.returncode == 0, done.stderr
    return done.stdout


def phases(workflow: dict[str, Any]) -> dict[str, str]:
    """Return stage -> phase of its node."""
    nodes = workflow["status"].get("nodes", {}).values()
    return {n["templateName"]: n["phase"] for n in nodes if n["type"] == "Retry"}


def told(workflow: dict[str, Any]) -> str:
    """Return what notify said in a line."""
    pods = [n for n in workflow["status"]["nodes"].values() if n["type"] == "Pod" and n["templateName"] == "notify"]
    return str(next(p["value"] for p in pods[-1]["outputs"]["parameters"] if p["name"] == "summary"))


@contextmanager
def no_access(cluster: Cluster, account: str) -> Iterator[None]:
    """The store does not know the password of a stage's account meanwhile: class config, never retried."""
    secret = STAGE_SECRET.format(stage=account)
    right = cluster.get("secret", secret)["data"][_KEY]

    def give(password: str) -> None:
        cluster.kubectl("patch", "secret", secret, "--type=merge", "-p", json.dumps({"data": {_KEY: password}}))

    give(base64.b64encode(b"this-is-not-the-password").decode())
    try:
        yield
    finally:
        give(right)


def test_of_two_at_once_one_waits_also_over_a_restart_of_the_controller(small: SmallRun) -> None:
    names = [small.submit(), small.submit()]
    small.pod("features")
    [first] = {n for n in names if "ingest" in phases(small.cluster.get("workflow", n))}
    [second] = set(names) - {first}
    kill_controller(small, "")
    small.pod("evaluate", workflow=first)  # someone controls again

    waiting = small.cluster.get("workflow", second)
    assert phases(waiting) == {}  # not one stage
    assert small.ended(first)["status"]["phase"] == "Succeeded"
    assert small.ended(second)["status"]["phase"] == "Succeeded"
    assert small.left() == RELEASED


def test_runs_that_are_stopped_at_one_stage_after_the_other_tell_it_and_the_last_ends_as_ever(small: SmallRun) -> None:
    for stage in STAGES[:-1]:
        name = small.submit()
        small.pod(stage, workflow=name)
        argo(small, "stop", name)
        stopped = small.ended(name)
        assert (stopped["status"]["phase"], phases(stopped)["notify"]) == ("Failed", "Succeeded"), stage
        assert told(stopped).startswith(f"{small.name}: failed, stopped by a person"), stage
    with small.followed():
        pass
    ended_well(small)


def test_runs_that_are_terminated_at_one_stage_after_the_other_tell_nothing_and_the_last_ends_as_ever(
    small: SmallRun,
) -> None:
    for stage in STAGES[:-1]:
        name = small.submit()
        small.pod(stage, workflow=name)
        argo(small, "terminate", name)
        assert "notify" not in phases(small.ended(name)), stage
    cut_off = small.records()["chain"][-1][0] == "releasing"  # else `deploy` was faster
    assert small.doctor().get("release", "ok") == ("wrong" if cut_off else "ok")
    with small.followed():
        pass
    ended_well(small)


def ended_well(run: SmallRun) -> None:
    """As released at once, but for what a release that was cut off left in the chain."""
    left = run.left()
    states = [state for state, _ in left.pop("chain")]
    assert (states[0], states[-1], states.count("serving")) == ("registered", "serving", 1)
    assert left == {key: value for key, value in RELEASED.items() if key != "chain"}
    assert run.doctor() == {"ledger": "ok", "alias": "ok", "server": "ok"}


def test_argo_retry_takes_a_run_on_from_wherever_it_failed(small: SmallRun) -> None:
    """One run fails at one stage after the other, and is retried each time."""
    name = small.submit()
    small.pod("preflight")
    for number, (account, stage) in enumerate(FAILING.items()):
        with no_access(small.cluster, account):
            if number:
                argo(small, "retry", name)
                assert until(lambda: small.cluster.get("workflow", name)["status"].get("phase") == "Running", 60)
            failed = small.ended(name)
        found = phases(failed)
        assert (failed["status"]["phase"], found[stage], found["notify"]) == ("Failed", "Failed", "Succeeded"), stage
    argo(small, "retry", name)
    assert until(lambda: small.cluster.get("workflow", name)["status"].get("phase") == "Running", 60)

    assert small.ended(name)["status"]["phase"] == "Succeeded"
    ended_well(small)


@pytest.mark.parametrize(("account", "stage"), FAILING.items(), ids=FAILING)
def test_argo_resubmit_does_a_failed_run_again(small: SmallRun, account: str, stage: str) -> None:
    name = small.submit()
    small.pod("preflight")
    with no_access(small.cluster, account):
        assert phases(small.ended(name))[stage] == "Failed"
    again = json.loads(argo(small, "resubmit", name, "-o", "json"))["metadata"]["name"]

    assert small.ended(again)["status"]["phase"] == "Succeeded"
    ended_well(small)
