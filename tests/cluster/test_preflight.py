"""What an environment lacks is told before the first row is read, and of which duty: by runs that may not start.

Each run has a wrong environment of its own, made by changing the platform's settings and Secrets for as long as its
preflight takes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from contracts import names
from contracts.settings import variable
from tests.cluster.conftest import Cluster, run_as
from tests.cluster.small_run import OF_PIPELINE, SmallRun

SECRET = names.STAGE_SECRET


@pytest.fixture
def small(platform: Cluster, tmp_path: Path) -> Iterator[SmallRun]:
    made = SmallRun.make(platform, tmp_path, "preflight")
    yield made
    made.remove()


@contextmanager
def changed(cluster: Cluster, kind: str, name: str, data: Mapping[str, str | None]) -> Iterator[None]:
    """Give an object other data while the block runs; None takes a key away."""
    before = cluster.get(kind, name)["data"]

    def patch(values: Mapping[str, str | None]) -> None:
        cluster.kubectl("patch", kind, name, "--type=merge", "-p", json.dumps({"data": values}))

    patch(data)
    try:
        yield
    finally:
        patch({key: before.get(key) for key in data})


def refused(run: SmallRun, code: int) -> list[dict[str, str]]:
    """Submit; the run must end in preflight with an exit code.  Return what was found."""
    said: dict[str, Any] = run.ends(code)
    assert said["outcome"] == "failed"
    [report] = said["errors"]
    assert report["stage"] == "preflight"
    assert said["dataset"] == ""
    return list(report["findings"])


def about(findings: list[dict[str, str]], *words: str) -> dict[str, str]:
    """Return the one finding that has all of these words."""
    [found] = [f for f in findings if all(word in f"{f['where']} {f['what']}" for word in words)]
    return found


def test_everything_that_is_wrong_for_one_duty_is_found_in_one_go(small: SmallRun) -> None:
    """A key that only train lacks, rights in MLflow that only register lacks, no room, and a quota that is used up."""
    space = small.cluster
    password, user = variable("mlflow_password"), variable("mlflow_username")
    evaluates = space.get("secret", SECRET.format(stage="evaluate"))["data"]
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": small.name}}
    space.apply(quota | {"spec": {"hard": {"count/horizontalpodautoscalers.autoscaling": "0"}}})
    try:
        with (
            changed(space, "secret", SECRET.format(stage="train"), {password: None}),
            changed(space, "secret", SECRET.format(stage="register"), {k: evaluates[k] for k in (user, password)}),
            changed(space, "configmap", names.SETTINGS_CONFIGMAP, {variable("min_free_mib"): str(10**9)}),
        ):
            found = refused(small, 78)
    finally:
        space.kubectl("delete", "resourcequota", small.name)

    print("\n".join(f"{f['where']}: {f['what']}" for f in found))
    assert about(found, "as train")
    assert about(found, "as register")
    assert about(found, "scratch", "MiB free")
    assert about(found, "HorizontalPodAutoscaler", "quota")
    assert len(found) == 4


def test_what_does_not_answer_is_named_after_its_retries(small: SmallRun) -> None:
    """A wrong name of MLflow's service, and a registry that nobody reaches."""
    wrong = {
        variable("tracking_uri"): "http://mlflow-nowhere:5000", variable("build"): "kaniko",
        variable("image_registry"): "registry-nowhere:5000/mlops",
    }  # fmt: skip
    with changed(small.cluster, "configmap", names.SETTINGS_CONFIGMAP, wrong):
        found = refused(small, 75)

    print("\n".join(f"{f['where']}: {f['what']}" for f in found))
    assert about(found, "mlflow-nowhere")
    assert about(found, "registry-nowhere")
    assert len(found) == 2


FULL = "full-store"
_PORT = 9000
_MAKE_BUCKET = f"""
import boto3
keys = {{"aws_access_key_id": "{FULL}", "aws_secret_access_key": "{FULL}"}}
s3 = boto3.client("s3", endpoint_url="http://127.0.0.1:{_PORT}", **keys)
s3.create_bucket(Bucket="full")
s3.put_object(Bucket="full", Key="before", Body=b"room")
"""
_FILL = """
with open("/data/filler", "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(2**16))
    except OSError as error:
        print(error)
"""
_WRITE = """
from contracts.errors import StageError
from contracts.settings import load_settings
from steps.storage import Storage
try:
    Storage(load_settings()).write("s3://full/datasets/probe", b"probe")
except StageError as error:
    print("TOLD", error.row.name, error.message, error.remedy)
"""


@pytest.fixture
def full(platform: Cluster) -> Iterator[str]:
    """Name of a Secret that leads a stage to a MinIO whose volume has no room left."""
    steps = platform.get("configmap", names.SETTINGS_CONFIGMAP)["data"][variable("steps_image")]
    held = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    keys = [{"name": name, "value": FULL} for name in ("MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD")]
    shared = {"volumeMounts": [{"name": "data", "mountPath": "/data"}], "securityContext": held}
    labels, metadata = {"app": FULL}, {"name": FULL}
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {**metadata, "labels": labels}, "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {"name": "minio", "image": "quay.io/minio/minio:latest", "env": keys,
                 "args": ["server", "/data/store", "--address", f":{_PORT}"], **shared,
                 "readinessProbe": {"httpGet": {"path": "/minio/health/ready", "port": _PORT}, "periodSeconds": 1}},
                {"name": "filler", "image": steps, "command": ["sleep", "3600"], **shared},
            ],
            "volumes": [{"name": "data", "emptyDir": {"medium": "Memory", "sizeLimit": "128Mi"}}],
        }},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata,
         "spec": {"selector": labels, "ports": [{"port": _PORT}]}},
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata,
         "spec": {"podSelector": {}, "policyTypes": ["Egress"],
                  "egress": [{"to": [{"podSelector": {"matchLabels": labels}}]}]}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {
            variable("s3_endpoint"): f"http://{FULL}:{_PORT}",
            variable("aws_access_key_id"): FULL, variable("aws_secret_access_key"): FULL,
        }},
    ]  # fmt: skip
    try:
        platform.apply(*objects)
        platform.kubectl("wait", f"pod/{FULL}", "--for=condition=Ready", "--timeout=110s")
        for program in (_MAKE_BUCKET, _FILL):
            platform.kubectl("exec", FULL, "-c", "filler", "--", "python", "-c", program)
        yield FULL
    finally:
        platform.kubectl("delete", "pod,service,networkpolicy,secret", FULL, "--ignore-not-found", "--wait=false")


def test_a_store_without_room_is_told_as_such_and_not_tried_again(platform: Cluster, full: str) -> None:
    said = run_as(platform, "ingest", _WRITE, secrets=True, besides=[full])

    [told] = [line for line in said.splitlines() if line.startswith("TOLD ")]
    print(told)
    assert told.startswith("TOLD config no room is left ")
    assert "make room in the store" in told


def hurried(run: SmallRun, stage: str, seconds: int, given: Mapping[str, str]) -> str:
    """Start a run in which a stage has so little time; return its name."""
    first = run.cluster.get("workflow", run.submit())  # brings data, file and template to the cluster
    name, template = first["metadata"]["name"], run.cluster.get("workflowtemplate", run.name)
    run.cluster.kubectl("delete", "workflow", name)
    [place] = [n for n, each in enumerate(template["spec"]["templates"]) if each["name"] == stage]
    patch = [{"op": "replace", "path": f"/spec/templates/{place}/activeDeadlineSeconds", "value": seconds}]
    run.cluster.kubectl("patch", "workflowtemplate", run.name, "--type=json", "-p", json.dumps(patch))
    time.sleep(10)  # Argo's copy follows
    first["metadata"] = {"name": f"{name}-hurried", "labels": {OF_PIPELINE: run.name}}
    first["spec"]["arguments"]["parameters"] += [{"name": key, "value": value} for key, value in given.items()]
    run.cluster.kubectl("create", "-f", "-", stdin=json.dumps({k: v for k, v in first.items() if k != "status"}))
    return f"{name}-hurried"


def test_an_image_that_is_nowhere_ends_the_run_in_its_time_and_its_reason_is_told(small: SmallRun) -> None:
    """Kaniko's, by a digest that nobody pushed: the stages before it run, and its pod never begins."""
    nowhere = f"gcr.io/kaniko-project/executor@sha256:{'0' * 64}"
    with changed(small.cluster, "configmap", names.SETTINGS_CONFIGMAP, {variable("build"): "kaniko"}):
        workflow = small.ended(hurried(small, "kaniko", 60, {"kaniko-image": nowhere}))

    assert workflow["status"]["phase"] == "Failed"
    said = small.cluster.run(
        sys.executable, "-m", "workflows.cli.main", "logs", workflow["metadata"]["name"], "notify",
        "-n", small.cluster.namespace,
    ).stdout  # fmt: skip
    [told] = [line for line in said.splitlines() if "kaniko failed" in line]
    print(told)
    assert "(config): its pod never began" in told
    assert nowhere in told
    status = small.cluster.run(
        sys.executable, "-m", "workflows.cli.main", "status", workflow["metadata"]["name"],
        "-n", small.cluster.namespace,
    ).stdout  # fmt: skip
    assert nowhere in status
