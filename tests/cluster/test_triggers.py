"""Each trigger seen firing: the schedule, the webhook, a new object in a bucket.

They start a template of the pipeline's name and parameters whose only step takes no pod, in a namespace of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
import yaml

from contracts.access import EXECUTOR_RULES, SENSOR_RULES
from contracts.pipeline import Pipeline, parse_pipeline
from contracts.pipeline.operation import Schedule
from tests.cluster.conftest import ROOT, Cluster, until
from tests.loopback import free_port
from workflows.graph import run_parameters
from workflows.platform import policy_rules
from workflows.triggers import cron_workflow, event_bus, triggers

NAME = "adult-income"
NAMESPACE = os.environ.get("TRIGGERS_NAMESPACE", "triggers-test")
TOKEN = "a-token-of-the-tests"
WEBHOOK = {"objects": {"bucket": "incoming", "prefix": "census/", "suffix": ".csv"}}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    content = yaml.safe_load((ROOT / "adult.yaml").read_text())
    return parse_pipeline(yaml.safe_dump(content | {"triggers": {"webhook": WEBHOOK}}), "adult.yaml")


@pytest.fixture(scope="module")
def space(cluster: Cluster) -> Iterator[Cluster]:
    """A namespace with the stub template; taken away afterwards unless it was there before."""
    there = cluster.run("kubectl", "get", "namespace", NAMESPACE).returncode == 0
    found = replace(cluster, namespace=NAMESPACE)
    if not there:
        found.kubectl("create", "namespace", NAMESPACE)
    found.apply(*accounts(), stub("0s"))
    yield found
    if not there:
        found.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def accounts() -> list[dict[str, Any]]:
    group = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "retrain-sensor"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "retrain-webhook"}, "stringData": {"token": TOKEN}},
        {
            "apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": "triggers"},
            "rules": policy_rules((*SENSOR_RULES, *EXECUTOR_RULES)),
        },
        {
            "apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": {"name": "triggers"},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "triggers"},
            "subjects": [
                {"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}
                for name in ("retrain-sensor", "default")
            ],
        },
    ]  # fmt: skip


def stub(lasts: str) -> dict[str, Any]:
    """The pipeline's parameters, and one node that shows what Argo made of them."""
    given = [{"name": p.name, "value": p.value} for p in run_parameters()]
    shown = [{"name": p["name"], "value": f"{{{{workflow.parameters.{p['name']}}}}}"} for p in given]
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "WorkflowTemplate",
        "metadata": {"name": NAME},
        "spec": {
            "entrypoint": "stub",
            "arguments": {"parameters": given},
            "templates": [{"name": "stub", "inputs": {"parameters": shown}, "suspend": {"duration": lasts}}],
        },
    }


def workflows(space: Cluster, label: str) -> list[dict[str, Any]]:
    return list(space.get("workflows", "-l", label))


def given(workflow: dict[str, Any]) -> dict[str, str]:
    return {p["name"]: p["value"] for p in workflow["spec"]["arguments"]["parameters"]}


def taken(space: Cluster, name: str) -> dict[str, str]:
    """What the step of a run was given, after all of Argo's substitutions."""

    def shown() -> dict[str, str] | None:
        nodes = space.get("workflow", name).get("status", {}).get("nodes", {})
        found = [n["inputs"]["parameters"] for n in nodes.values() if n["type"] == "Suspend"]
        return {p["name"]: p["value"] for p in found[0]} if found else None

    return dict(until(shown, 60))


# the schedule

SOMEWHERE_ELSE = "Asia/Kolkata"
"""Half an hour off every full hour, so that a schedule taken for UTC would not fire."""


def scheduled(pipeline: Pipeline, name: str, cron: tuple[str, ...], zone: str, *, suspended: bool) -> dict[str, Any]:
    manifest = cron_workflow(pipeline, Schedule(cron=cron, timezone=zone))
    manifest["metadata"]["name"] = name
    manifest["spec"]["suspend"] = suspended
    return manifest


@contextmanager
def cron(space: Cluster, manifest: dict[str, Any]) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    name = manifest["metadata"]["name"]
    space.apply(manifest)
    try:
        yield lambda: workflows(space, f"workflows.argoproj.io/cron-workflow={name}")
    finally:
        space.kubectl("delete", "cronworkflow", name)


def test_a_schedule_fires_in_its_time_zone_and_the_run_stands_for_its_scheduled_time(
    space: Cluster, pipeline: Pipeline
) -> None:
    at = (datetime.now(UTC) + timedelta(seconds=75)).replace(second=0, microsecond=0)
    there = at.astimezone(ZoneInfo(SOMEWHERE_ELSE))
    manifest = scheduled(pipeline, "zoned", (f"{there.minute} {there.hour} * * *",), SOMEWHERE_ELSE, suspended=False)

    with cron(space, manifest) as runs:
        [run] = until(runs, 150)
        shown = taken(space, run["metadata"]["name"])

    assert shown["requested-by"] == "schedule"
    assert datetime.fromisoformat(shown["as-of"]) == at


def test_a_schedule_forbids_two_at_once_and_can_be_suspended_and_resumed(space: Cluster, pipeline: Pipeline) -> None:
    space.apply(stub("75s"))  # longer than from one firing to the next
    try:
        with cron(space, scheduled(pipeline, "minutely", ("* * * * *",), "UTC", suspended=True)) as runs:
            time.sleep(65)
            assert runs() == []  # as compiled: suspended

            space.kubectl("patch", "cronworkflow", "minutely", "--type=merge", "-p", '{"spec":{"suspend":false}}')
            assert len(until(runs, 90)) == 1
            time.sleep(65)
            assert len(runs()) == 1  # the next firing found it running

            space.kubectl("patch", "cronworkflow", "minutely", "--type=merge", "-p", '{"spec":{"suspend":true}}')
            [run] = runs()
            assert until(lambda: space.get("workflow", run["metadata"]["name"])["status"].get("finishedAt"), 60)
            time.sleep(65)
            assert len(runs()) == 1  # suspended again
    finally:
        space.apply(stub("0s"))


# the webhook


def sensor_log(space: Cluster) -> str:
    return space.kubectl("logs", "-l", f"sensor-name={NAME}", "--tail=-1")


@dataclass(frozen=True)
class Door:
    """The event source's HTTP server."""

    space: Cluster
    port: int

    def post(self, body: Any, *, token: str | None = TOKEN, path: str = "", kind: str = "application/json") -> int:
        headers = {"Content-Type": kind} | ({} if token is None else {"Authorization": f"Bearer {token}"})
        content = body if isinstance(body, str) else json.dumps(body)
        url = f"http://127.0.0.1:{self.port}/{NAME}{path}"
        return httpx.post(url, content=content, headers=headers, timeout=30).status_code

    def runs(self, trigger: str = "request") -> dict[str, dict[str, Any]]:
        """The runs that a trigger started: what asked for it -> Workflow."""
        found = workflows(self.space, f"events.argoproj.io/trigger={trigger}")
        return {given(run)["requested-by"]: run for run in found}

    def sensor_log(self) -> str:
        return sensor_log(self.space)


@contextmanager
def forwarded(space: Cluster, target: str, port: int) -> Iterator[int]:
    local = free_port()
    command = ["kubectl", "-n", space.namespace, "port-forward", target, f"{local}:{port}"]
    environment = {**os.environ, "KUBECONFIG": space.kubeconfig}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        assert process.stdout.readline()  # "Forwarding from ..."
        yield local
    finally:
        process.terminate()
        process.wait()


def ready(space: Cluster, selector: str) -> bool:
    pods = [p for p in space.get("pods", "-l", selector) if "deletionTimestamp" not in p["metadata"]]
    return bool(pods) and all(
        s["ready"] for p in pods for s in p["status"].get("containerStatuses", [{"ready": False}])
    )


@pytest.fixture(scope="module")
def door(space: Cluster, pipeline: Pipeline) -> Iterator[Door]:
    bus = event_bus()
    del bus["spec"]["jetstream"]["persistence"]  # a volume outlives the test
    found = triggers(pipeline)
    there = space.run("kubectl", "-n", space.namespace, "get", "eventbus", "retrain").returncode == 0
    space.apply(*([] if there else [bus]), found["3-eventsource.yaml"], found["3-sensor.yaml"])
    for selector in ("eventbus-name=retrain", f"eventsource-name={NAME}", f"sensor-name={NAME}"):
        assert until(partial(ready, space, selector), 180, 2), selector
    assert until(lambda: sensor_log(space).count("started subscribing") == 3, 60)
    with forwarded(space, f"service/{NAME}-eventsource-svc", 12000) as port:
        yield Door(space, port)


def body(**more: str) -> dict[str, str]:
    return {"type": "retrain", "id": f"t-{os.urandom(6).hex()}"} | more


@pytest.mark.parametrize("token", [None, "wrong"])
def test_without_the_token_the_answer_is_401_and_nothing_starts(token: str | None, door: Door) -> None:
    asked = body()

    assert door.post(asked, token=token) == 401
    time.sleep(3)
    assert f"webhook {asked['id']}" not in door.runs()


def test_a_body_starts_a_run_with_its_values_and_the_same_event_again_starts_none(door: Door) -> None:
    asked = body(source="s3://retrain-data/dt=2026-11-23/*.csv", as_of="2026-11-24T02:00:00+01:00")

    assert door.post(asked) == 200
    run = until(lambda: door.runs().get(f"webhook {asked['id']}"), 60)
    assert door.post(asked) == 200

    assert (given(run)["source"], given(run)["as-of"]) == (asked["source"], asked["as_of"])
    assert until(lambda: asked["id"] in door.sensor_log(), 90)  # the second is said in the log, with its content
    assert "already exists" in door.sensor_log()
    assert [g for g in map(given, workflows(door.space, "retrain/pipeline")) if asked["id"] in g["requested-by"]] == [
        given(run)
    ]


def test_a_run_without_a_moment_stands_for_the_time_of_its_start(door: Door) -> None:
    asked = body()
    assert door.post(asked) == 200

    run = until(lambda: door.runs().get(f"webhook {asked['id']}"), 60)

    moment = datetime.fromisoformat(taken(door.space, run["metadata"]["name"])["as-of"])
    assert abs(moment - datetime.now(UTC)) < timedelta(minutes=2)


HOSTILE = [
    {"source": "s3://b/{{workflow.name}}"}, {"source": "s3://b/{{=1+1}}"}, {"source": "s3://b/$(RETRAIN_LEDGER)"},
    {"source": "s3://b/../../secret"}, {"source": "../../etc/passwd"}, {"source": "/etc/passwd"},
    {"source": "file:///etc/passwd"}, {"source": "python:os:system"}, {"source": "s3://b/'; rm -rf / #"},
    {"source": 's3://b/"x'}, {"source": "s3://b/`id`"}, {"source": "https://user:word@host/x.csv"},
    {"source": "s3://b/x\nsource: y"}, {"source": "s3://b/{{ .Input.body.id }}"}, {"source": ""},
    {"as_of": "{{workflow.name}}"}, {"as_of": "2026-11-24"}, {"as_of": "2026-11-24T00:00:00Z{{x}}"},
    {"id": "../x"}, {"id": "{{workflow.uid}}"}, {"id": "a b"}, {"id": ""}, {"id": "$(X)"},
    {"type": "delete"}, {"type": ""}, {"requested-by": "root"}, {"entrypoint": "release"}, {"version": "1"},
]  # fmt: skip


def test_what_is_no_request_starts_nothing_and_is_said_and_counted(door: Door) -> None:
    def said() -> int:
        return door.sensor_log().count('"triggeredBy":["refused"]')

    runs, said_before, counted_before = door.runs().keys(), said(), counted(door, "refused")
    wrong: list[Any] = [body() | more for more in HOSTILE]
    wrong += [[], "retrain", 7, None, {"type": "retrain"}, {**body(), "source": ["s3://b/x"]}, {**body(), "id": 7}]

    for one in wrong:
        assert door.post(json.dumps(one)) == 200
    assert door.post(body(), kind="text/plain") == 200
    assert door.post("a=b", kind="application/x-www-form-urlencoded") == 200
    assert door.post("{not json") == 400

    expected = len(wrong) + 2
    until(lambda: said() - said_before >= expected, 60)
    assert said() - said_before == expected
    assert counted(door, "refused") - counted_before == expected
    assert door.runs().keys() == runs
    assert TOKEN not in door.sensor_log()


def counted(door: Door, trigger: str) -> float:
    """How often a trigger acted, by the sensor's metrics."""
    with forwarded(door.space, f"deployment/{sensor_deployment(door)}", 7777) as port:
        lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    found = [line for line in lines if "action_triggered_total{" in line and f'"{trigger}"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def sensor_deployment(door: Door) -> str:
    [found] = door.space.get("deployments", "-l", f"sensor-name={NAME}")
    return str(found["metadata"]["name"])


def test_events_wait_on_the_bus_while_the_sensor_is_away_and_runs_start_at_a_bounded_rate(door: Door) -> None:
    deployment = f"deployment/{sensor_deployment(door)}"
    door.space.kubectl("scale", deployment, "--replicas=0")
    assert until(lambda: not door.space.get("pods", "-l", f"sensor-name={NAME}"), 90)
    asked = [body() for _ in range(3)]
    assert [door.post(one) for one in asked] == [200, 200, 200]
    assert not {f"webhook {one['id']}" for one in asked} & door.runs().keys()

    door.space.kubectl("scale", deployment, "--replicas=1")
    wanted = {f"webhook {one['id']}" for one in asked}
    until(lambda: wanted <= door.runs().keys(), 120)

    started = sorted(int(door.runs()[by]["metadata"]["labels"]["events.argoproj.io/action-timestamp"]) for by in wanted)
    assert all(later - earlier > 9_500 for earlier, later in pairwise(started))  # 6 a minute


# a new object

MINIO = "quay.io/minio/minio:latest"


@pytest.fixture(scope="module")
def bucket(door: Door) -> Iterator[Any]:
    """A MinIO that tells the event source of new objects, as docs/triggers.md says."""
    import boto3

    url = f"http://{NAME}-eventsource-svc.{NAMESPACE}:12000/{NAME}/objects"
    environment = {
        "MINIO_ROOT_USER": "tests", "MINIO_ROOT_PASSWORD": "only-for-tests",
        "MINIO_NOTIFY_WEBHOOK_ENABLE_RETRAIN": "on", "MINIO_NOTIFY_WEBHOOK_ENDPOINT_RETRAIN": url,
        "MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_RETRAIN": TOKEN,
    }  # fmt: skip
    container = {
        "name": "minio", "image": MINIO, "command": ["minio"], "args": ["server", "/data"],
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "readinessProbe": {"httpGet": {"path": "/minio/health/ready", "port": 9000}, "periodSeconds": 2},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }  # fmt: skip
    spec = {"containers": [container], "volumes": [{"name": "data", "emptyDir": {}}]}
    door.space.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "minio"}, "spec": spec})
    try:
        door.space.kubectl("wait", "pod/minio", "--for=condition=Ready", "--timeout=120s", timeout=130)
        with forwarded(door.space, "pod/minio", 9000) as port:
            s3 = boto3.client(
                "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1",
                aws_access_key_id="tests", aws_secret_access_key="only-for-tests",
            )  # fmt: skip
            s3.create_bucket(Bucket="incoming")
            told = {"QueueArn": "arn:minio:sqs::RETRAIN:webhook", "Events": ["s3:ObjectCreated:*"]}
            s3.put_bucket_notification_configuration(
                Bucket="incoming", NotificationConfiguration={"QueueConfigurations": [told]}
            )
            yield s3
    finally:
        door.space.kubectl("delete", "pod", "minio", "--grace-period=1")


def test_a_new_object_starts_a_run_on_it_and_others_start_none(bucket: Any, door: Door) -> None:
    for key in ("census/2026-11.csv", "census/readme.txt", "elsewhere/x.csv", "census/{{workflow.name}}.csv"):
        bucket.put_object(Bucket="incoming", Key=key, Body=b"age,income\n")

    until(lambda: door.runs("object"), 60)
    time.sleep(12)

    [(by, run)] = door.runs("object").items()
    assert by == "object incoming/census/2026-11.csv"
    assert taken(door.space, run["metadata"]["name"])["source"] == "s3://incoming/census/2026-11.csv"
