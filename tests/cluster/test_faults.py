"""A run through which something breaks ends like one through which nothing does.

`make test-cluster` leaves these out; they break parts that others in the cluster use too:

    NAMESPACE=faults RETRAIN_NODE_CONTROL='node-control {action} {name}' pytest -m faults tests/cluster/test_faults.py

RETRAIN_NODE_CONTROL is a command that does `stop` and `restart` to a daemon of the node (kubelet, kube-apiserver,
coredns, registry).
"""

from __future__ import annotations

import base64
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import httpx
import pytest

from contracts import names
from tests.cluster.conftest import Cluster, until
from tests.cluster.small_run import RELEASED, SmallRun
from tests.cluster.test_triggers import body, forwarded, ready
from workflows.compile import compile_pipeline
from workflows.documents import documents
from workflows.triggers import event_bus

pytestmark = pytest.mark.faults

CONTROL = os.environ.get("RETRAIN_NODE_CONTROL", "")
OUTAGE_SECONDS = 20


@dataclass(frozen=True)
class Fault:
    """What breaks, while which stage runs."""

    name: str
    stage: str
    inject: Callable[[SmallRun, str], None]
    """Called with the run and the name of the stage's pod."""
    daemon: bool = False


def kill(run: SmallRun, pod: str) -> None:
    run.cluster.kubectl("delete", "pod", pod, "--grace-period=0", "--force")


def kill_component(selector: str, run: SmallRun, _pod: str) -> None:
    run.cluster.kubectl("delete", "pod", "-l", selector, "--grace-period=0", "--force")


def kill_controller(run: SmallRun, _pod: str) -> None:
    controllers = run.cluster.get("pods", "-A", "-l", "app=workflow-controller")
    if not controllers:
        pytest.skip("the controller is no pod with the label app=workflow-controller")
    for controller in controllers:
        where = replace(run.cluster, namespace=controller["metadata"]["namespace"])
        where.kubectl("delete", "pod", controller["metadata"]["name"], "--grace-period=0", "--force")


def control(action: str, daemon: str) -> None:
    words = [word.format(action=action, name=daemon) for word in shlex.split(CONTROL)]
    # its output goes nowhere: a daemon that it starts keeps what it was given
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)


def restart(daemon: str, _run: SmallRun, _pod: str) -> None:
    control("restart", daemon)


def stop(daemon: str, _run: SmallRun, _pod: str) -> None:
    control("stop", daemon)
    try:
        time.sleep(OUTAGE_SECONDS)
    finally:
        control("restart", daemon)


FAULTS = (
    Fault("minio", "ingest", partial(kill_component, "app.kubernetes.io/name=minio")),
    Fault("controller", "features", kill_controller),
    Fault("dns", "fit", partial(stop, "coredns"), daemon=True),
    Fault("stage", "train", kill),
    Fault("mlflow", "evaluate", partial(kill_component, "app.kubernetes.io/name=mlflow")),
    Fault("postgres", "register", partial(kill_component, "app.kubernetes.io/name=postgres")),
    Fault("apiserver", "promote", partial(restart, "kube-apiserver"), daemon=True),
    Fault("registry", "build", partial(stop, "registry"), daemon=True),
    Fault("kubelet", "deploy", partial(restart, "kubelet"), daemon=True),
)
"""In the order of their stages."""


@pytest.fixture
def small(platform: Cluster, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SmallRun]:
    made = SmallRun.make(platform, tmp_path, getattr(request, "param", "run"))
    yield made
    made.remove()


@pytest.mark.parametrize(
    ("small", "fault"), [(fault.name, fault) for fault in FAULTS], ids=[f.name for f in FAULTS], indirect=["small"]
)
def test_a_run_ends_as_if_nothing_had_broken(small: SmallRun, fault: Fault) -> None:
    if fault.daemon and not CONTROL:
        pytest.skip("RETRAIN_NODE_CONTROL names no command that stops a daemon of the node")

    with small.followed():
        fault.inject(small, small.pod(fault.stage))

    ended_as_ever(small)


@pytest.mark.parametrize("small", ["all"], indirect=True)
def test_a_run_in_which_a_stage_after_the_other_is_hit_ends_like_any(small: SmallRun) -> None:
    with small.followed():
        for fault in FAULTS:
            if CONTROL or not fault.daemon:
                fault.inject(small, small.pod(fault.stage))

    ended_as_ever(small)


def ended_as_ever(run: SmallRun) -> None:
    assert run.said["outcome"] == "promoted"
    [workflow] = run.workflows()
    assert workflow["status"]["phase"] == "Succeeded"
    assert run.left() == RELEASED


@contextmanager
def doors(run: SmallRun) -> Iterator[tuple[str, str]]:
    """The pipeline's own event source and sensor; yields the URL of the webhook and its token."""
    space, bus = run.cluster, event_bus()
    del bus["spec"]["jetstream"]["persistence"]  # a volume outlives the test
    was_there = not space.run("kubectl", "-n", space.namespace, "get", "eventbus", names.EVENT_BUS).returncode
    compiled = compile_pipeline(run.folder / "churn.yaml")
    made = [documents(compiled[name])[0] for name in ("3-eventsource.yaml", "3-sensor.yaml")]
    space.apply(*made if was_there else (bus, *made))
    token = base64.b64decode(space.get("secret", names.WEBHOOK_SECRET)["data"]["token"]).decode()
    try:
        for selector in ("eventbus-name=retrain", f"eventsource-name={run.name}", f"sensor-name={run.name}"):
            assert until(partial(ready, space, selector), 600, 2), selector
        with forwarded(space, f"service/{run.name}-eventsource-svc", 12000) as port:
            yield f"http://127.0.0.1:{port}/{run.name}", token
    finally:
        if not was_there:
            space.kubectl("delete", "eventbus", names.EVENT_BUS, "--wait=false")


@pytest.mark.parametrize("small", ["sensor"], indirect=True)
def test_an_event_that_comes_while_the_sensor_is_killed_makes_one_run(small: SmallRun) -> None:
    """The sensor is killed when the event comes, and once more while its run is under way."""
    first = small.submit()  # brings data, file and template to the cluster
    given = small.cluster.get("workflow", first)["spec"]["arguments"]["parameters"]
    data = next(p["value"] for p in given if p["name"] == "source")
    small.cluster.kubectl("delete", "workflow", first)
    sensor = f"sensor-name={small.name}"

    with doors(small) as (url, token):
        asked = body(source=data)
        kill_component(sensor, small, "")
        answer = httpx.post(url, json=asked, headers={"Authorization": f"Bearer {token}"}, timeout=30)
        assert answer.status_code == 200
        [started] = until(small.workflows, 600)
        small.pod("train")
        kill_component(sensor, small, "")
        workflow = small.ended(started["metadata"]["name"])

    assert workflow["status"]["phase"] == "Succeeded", workflow["status"].get("message")
    assert len(small.workflows()) == 1
    assert small.left() == RELEASED
