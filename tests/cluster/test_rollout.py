"""Releases on a real cluster, in a namespace of their own, under load: what the callers see, and why one was refused.

One history through all tests, in order: each goes on from what the one before left serving.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from contracts.errors import DataError
from contracts.names import ALIAS_PRODUCTION, tag
from contracts.outcomes import Outcome, State
from contracts.pipeline.operation import Release
from contracts.settings import Settings
from contracts.stages import Deploy
from steps.deploy import deploy
from steps.rollout import lease, objects
from steps.rollout.cluster import FIELD_MANAGER
from steps.rollout.cluster import Cluster as ReleaseCluster
from steps.world import World
from tests.cluster.conftest import Cluster, until
from tests.cluster.load import Load
from tests.model_packages import ROW, break_estimator, package, signed
from tests.steps.registered import NOW, finished_run, make_settings, make_world

NAMESPACE = os.environ.get("ROLLOUT_NAMESPACE", "rollout-test")
KEY, SECRET = "test-models", "test-models-secret"
GONE = "{registry}/none@sha256:" + "0" * 64
HELD: dict[str, Any] = {
    "allowPrivilegeEscalation": False, "runAsNonRoot": True, "runAsUser": 65532,
    "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip


def minio() -> list[dict[str, Any]]:
    env = [{"name": "MINIO_ROOT_USER", "value": KEY}, {"name": "MINIO_ROOT_PASSWORD", "value": SECRET}]
    server = {
        "name": "minio", "image": "quay.io/minio/minio:latest", "args": ["server", "/data", "--address", ":9000"],
        "env": [*env, {"name": "HOME", "value": "/data"}], "securityContext": HELD,
        "readinessProbe": {"httpGet": {"path": "/minio/health/ready", "port": 9000}, "periodSeconds": 1},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }  # fmt: skip
    pod = {"metadata": {"labels": {"app": "minio"}}, "spec": {
        "containers": [server], "volumes": [{"name": "data", "emptyDir": {}}], "automountServiceAccountToken": False,
    }}  # fmt: skip
    selected = {"matchLabels": {"app": "minio"}}
    secret = {"RETRAIN_AWS_ACCESS_KEY_ID": KEY, "RETRAIN_AWS_SECRET_ACCESS_KEY": SECRET}
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "retrain-serving-secrets"}, "stringData": secret},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "minio"},
         "spec": {"selector": {"app": "minio"}, "ports": [{"port": 9000}]}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "minio"},
         "spec": {"selector": selected, "template": pod}},
    ]  # fmt: skip


def bucket(endpoint: str) -> Any:
    """Make the bucket `models` and return the client; skip where the cluster's Services have no names for us."""
    s3 = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET)
    deadline = time.monotonic() + 60
    while True:
        try:
            s3.create_bucket(Bucket="models")
            return s3
        except s3.exceptions.BucketAlreadyOwnedByYou:
            return s3  # kept from a run before
        except (
            BotoCoreError,
            ClientError,
        ) as error:  # a name that is new may be unknown, a store not ready, for a while
            if time.monotonic() > deadline:
                pytest.skip(f"the cluster's Services cannot be reached from here: {type(error).__name__}")
        time.sleep(2)


@dataclass
class Place:
    """A namespace with a store of models, and a world whose `deploy` releases there."""

    cluster: Cluster
    base: World
    s3: Any
    image: str
    runs: int = 0

    @property
    def host(self) -> str:
        return f"{self.base.pipeline.name}.{self.cluster.namespace}"

    def world(self, *, ready: int = 120, strategy: str = "rolling", how: Any = None, **settings: Any) -> World:
        self.runs += 1
        said = {"ready_timeout": f"{ready}s", "strategy": strategy, **(how or {})}
        release = Release.model_validate(said)
        pipeline = self.base.pipeline.model_copy(update={"release": release})
        changed = self.base.settings.model_copy(update={"serving_image": self.image, **settings})
        return replace(self.base, settings=changed, pipeline=pipeline, workflow=f"release-{self.runs}")

    def approve(self, world: World, *, broken: bool = False) -> Deploy.Inputs:
        folder = package(world.scratch / "package", seed=self.runs)
        if broken:
            break_estimator(folder)
        return self.approve_package(world, folder)

    def approve_package(self, world: World, folder: Path) -> Deploy.Inputs:
        run_id = finished_run(world)
        signed(folder, f"{world.pipeline.name}@{run_id}")
        bucket, _, prefix = world.tracking.package_uri(run_id).removeprefix("s3://").partition("/")
        for file in folder.rglob("*"):
            if file.is_file():
                self.s3.upload_file(str(file), bucket, f"{prefix}/{file.relative_to(folder).as_posix()}")
        model, version = world.pipeline.name, world.registry.register(run_id, folder.as_uri(), {})
        entry = world.ledger.head(model)
        for state in (State.REGISTERED, State.APPROVED):
            entry = world.ledger.append(
                model, state, version=version, run_id=run_id, workflow=world.workflow, by="test", reason="for the test",
                evidence={}, after=entry, at=NOW,
            )  # fmt: skip
        assert entry is not None
        return Deploy.Inputs(version=version, entry=entry.id, image="reference")

    def release(self, world: World, *, broken: bool = False) -> Deploy.Outputs:
        return deploy(self.approve(world, broken=broken), world=world)

    def serves(self) -> int:
        return int(httpx.get(f"http://{self.host}/v1/model", timeout=30, trust_env=False).json()["version"])

    def get(self, *arguments: str) -> Any:
        return self.cluster.get(*arguments)

    def revision(self) -> str:
        """Return the number of the pods' template, which counts up whenever it changes."""
        deployment = self.get("deployment", self.base.pipeline.name)
        return str(deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"])


@pytest.fixture(scope="module")
def place(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with prepared(cluster, NAMESPACE, tmp_path_factory.mktemp("rollout")) as made:
        yield made


@contextmanager
def prepared(cluster: Cluster, namespace: str, folder: Path, **more: Any) -> Iterator[Place]:
    """Make a namespace with a store, for the time of the block; `more` are settings."""
    image = os.environ.get("ROLLOUT_IMAGE") or serving_image(cluster)
    here = Cluster(cluster.kubeconfig, namespace)
    here.run("kubectl", "create", "namespace", namespace)
    here.run("kubectl", "label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    try:
        here.apply(*minio())
        here.kubectl("rollout", "status", "deployment/minio", "--timeout=170s", timeout=180)
        endpoint = f"http://minio.{namespace}:9000"
        s3 = bucket(endpoint)
        values: dict[str, Any] = {
            "deploy_target": "kubernetes", "serving_namespace": namespace, "artifacts": "s3://models/runs",
            "s3_endpoint": endpoint, "aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "serving_image": image,
            "serving_min_replicas": 1, "serving_max_replicas": 3, "serving_cpu": 100, "serving_memory": 384, **more,
        }  # fmt: skip
        settings: Settings = make_settings(folder, **values)
        yield Place(here, replace(make_world(folder), settings=settings), s3, image)
    finally:
        if not os.environ.get("ROLLOUT_KEEP"):
            here.run("kubectl", "delete", "namespace", namespace, "--wait=false")


def serving_image(cluster: Cluster) -> str:
    done = cluster.run(
        "kubectl", "-n", cluster.namespace, "get", "configmap", "retrain-settings",
        "-o", "jsonpath={.data.RETRAIN_SERVING_IMAGE}",
    )  # fmt: skip
    if done.returncode != 0 or not done.stdout:
        pytest.skip("no serving image: run `make platform`, or set ROLLOUT_IMAGE")
    return done.stdout


def test_the_first_release_serves_and_owns_only_what_it_means_to(place: Place) -> None:
    world = place.world()
    done = place.release(world)

    assert (done.outcome, done.url) == (Outcome.PROMOTED, f"http://{place.host}")
    assert place.serves() == 1
    assert world.registry.alias(ALIAS_PRODUCTION) == 1
    assert world.registry.tags(1)[tag("image")] == place.image
    deployment = place.get("deployment", world.pipeline.name, "--show-managed-fields")
    said = deployment["metadata"]["annotations"]
    run_id = world.registry.run_of(1)
    assert (said["retrain/version"], said["retrain/run-id"]) == ("1", run_id)
    assert (said["retrain/dataset-sha256"], said["retrain/commit"]) == ("d" * 64, "abc123")
    ours = [m for m in deployment["metadata"]["managedFields"] if m["manager"] == FIELD_MANAGER]
    assert [m["operation"] for m in ours] == ["Apply"]
    assert "f:replicas" not in ours[0]["fieldsV1"]["f:spec"], "the replicas are the autoscaler's"
    for kind in ("service", "hpa", "pdb", "serviceaccount", "networkpolicy"):
        assert place.get(kind, world.pipeline.name)["metadata"]["labels"]["retrain/pipeline"] == world.pipeline.name


def test_released_again_the_same_version_restarts_nothing(place: Place) -> None:
    revision = place.revision()
    world = place.world()
    entry = world.ledger.serving(world.pipeline.name)
    assert entry is not None

    done = deploy(Deploy.Inputs(version=1, entry=entry.id, image="reference"), world=world)

    assert done.outcome is Outcome.UNCHANGED
    assert place.revision() == revision


def test_a_turn_is_waited_for_and_that_of_a_dead_release_is_taken(place: Place) -> None:
    cluster, name = ReleaseCluster(NAMESPACE), "retrain-turns"
    with lease.turn(cluster, name, "first", lost=threading.Event()):
        began, waited = time.monotonic(), threading.Event()

        def second() -> None:
            with lease.turn(cluster, name, "second", lost=threading.Event()):
                waited.set()

        waiting = threading.Thread(target=second)
        waiting.start()
        assert not waited.wait(lease.SECONDS + 5), "a holder that lives keeps it, however long it takes"
    waiting.join(30)
    assert waited.is_set()

    found = cluster.get("Lease", name)
    assert found is not None
    found["spec"]["holderIdentity"] = "killed"
    cluster.replace(found)
    began = time.monotonic()
    with lease.turn(cluster, name, "third", lost=threading.Event()):
        took = time.monotonic() - began
    print(f"the turn of a dead release: taken after {took:.1f} s")
    assert took >= lease.SECONDS


def test_a_rolling_release_loses_no_request(place: Place) -> None:
    with Load(place.host) as load:
        time.sleep(3)
        done = place.release(place.world())
        time.sleep(3)

    print(f"rolling release: {dict(load.seen)}, {load.rate:.0f} requests a second")
    assert done.outcome is Outcome.PROMOTED
    assert not load.failed
    assert set(load.seen) == {"200 version 1", "200 version 2"}
    assert load.rate >= 50


def test_a_broken_image_is_rolled_back_and_loses_no_request(place: Place) -> None:
    broken = GONE.format(registry=place.image.split("/")[0])
    world = place.world(ready=25, serving_image=broken)
    with Load(place.host) as load:
        done = place.release(world)
        time.sleep(2)

    print(f"broken image: {done.summary}\n{dict(load.seen)}, {load.rate:.0f} requests a second")
    assert done.outcome is Outcome.ROLLED_BACK
    assert f"image pull failed: {broken}" in done.summary
    assert "version 2 stays" in done.summary
    assert not load.failed
    assert set(load.seen) == {"200 version 2"}
    assert load.rate >= 50
    assert world.registry.alias(ALIAS_PRODUCTION) == 2
    assert world.ledger.state(world.pipeline.name, 3) is State.ROLLED_BACK


def test_a_crash_loop_is_rolled_back_with_its_last_log_line(place: Place) -> None:
    done = place.release(place.world(ready=60), broken=True)

    print(f"crash loop: {done.summary}")
    assert done.outcome is Outcome.ROLLED_BACK
    assert "container server crashed" in done.summary
    assert "does not load" in done.summary or "damaged" in done.summary or "LightGBM" in done.summary
    assert place.serves() == 2


def test_a_failing_probe_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = objects._probe
    monkeypatch.setattr(
        objects, "_probe", lambda path, period, *, failures: probe("/nowhere", period, failures=failures)
    )
    done = place.release(place.world(ready=40))

    print(f"failing probe: {done.summary}")
    assert done.outcome is Outcome.ROLLED_BACK
    assert "its probe fails: Startup probe failed: HTTP probe failed with statuscode: 404" in done.summary
    assert place.serves() == 2


def test_a_quota_in_the_way_is_named(place: Place) -> None:
    place.cluster.kubectl("create", "quota", "narrow", "--hard=requests.memory=400Mi")
    try:
        done = place.release(place.world(ready=15))
    finally:
        place.cluster.kubectl("delete", "quota", "narrow")

    print(f"quota: {done.summary}")
    assert done.outcome is Outcome.ROLLED_BACK
    assert "quota does not allow its pods" in done.summary
    assert "exceeded quota: narrow" in done.summary
    assert place.serves() == 2


def test_pods_that_no_node_takes_are_named(place: Place) -> None:
    done = place.release(place.world(ready=15, serving_memory=10**7))

    print(f"unschedulable: {done.summary}")
    assert done.outcome is Outcome.ROLLED_BACK
    assert "no node takes its pod: 0/" in done.summary
    assert place.serves() == 2


def test_recreate_replaces_all_and_the_address_stays(place: Place) -> None:
    done = place.release(place.world(strategy="recreate"))

    assert (done.outcome, done.url) == (Outcome.PROMOTED, f"http://{place.host}")
    assert place.get("deployment", place.base.pipeline.name)["spec"]["strategy"] == {"type": "Recreate"}
    assert place.serves() == 8


def test_exported_objects_are_watched_until_someone_applies_them(place: Place, tmp_path: Path) -> None:
    world = place.world(deploy_target="export", export_uri=tmp_path.as_uri())
    folder = tmp_path / world.pipeline.name
    approved = place.approve(world)
    done: list[Deploy.Outputs] = []
    releasing = threading.Thread(target=lambda: done.append(deploy(approved, world=world)))
    releasing.start()
    assert until(lambda: (folder / "horizontalpodautoscaler.yaml").exists(), 60)
    time.sleep(2)
    assert place.serves() == 8, "nobody applied it yet"
    place.cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(folder))
    releasing.join(180)

    assert done[0].outcome is Outcome.PROMOTED
    assert place.serves() == 9
    kinds = {
        "deployment",
        "horizontalpodautoscaler",
        "networkpolicy",
        "poddisruptionbudget",
        "service",
        "serviceaccount",
    }
    assert {file.stem for file in folder.iterdir()} == kinds


def test_a_model_altered_in_the_bucket_is_never_served(place: Place) -> None:
    """One flipped byte: of a version that waits for its release, and of the one that serves, when a pod comes anew."""
    model, serves = place.base.pipeline.name, place.serves()
    world = place.world()
    approved = place.approve(world)
    flip(place, world.registry.run_of(approved.version), "estimator.txt")
    with pytest.raises(DataError, match=r"estimator\.txt differs"):
        deploy(approved, world=world)
    assert world.ledger.state(model, approved.version) is State.APPROVED, "no release began"
    assert place.serves() == serves

    run_id = world.registry.run_of(serves)
    flip(place, run_id, "estimator.txt")
    place.cluster.kubectl("delete", "pods", "-l", f"retrain/pipeline={model}")
    said = until(partial(crashed, place), 120)
    print(said)
    assert "estimator.txt is not what its hash says" in said
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{place.host}/v1/model", timeout=10, trust_env=False).raise_for_status()

    flip(place, run_id, "estimator.txt")  # back
    place.cluster.kubectl("delete", "pods", "-l", f"retrain/pipeline={model}")
    assert until(partial(answers, place, serves), 120)


def flip(place: Place, run_id: str, name: str) -> None:
    """Flip the last bit of a file of a run's package."""
    bucket, _, prefix = place.base.tracking.package_uri(run_id).removeprefix("s3://").partition("/")
    key = f"{prefix}/{name}"
    content = place.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    place.s3.put_object(Bucket=bucket, Key=key, Body=content[:-1] + bytes([content[-1] ^ 1]))


def crashed(place: Place) -> str:
    """Return what a server said that ended, empty where none has."""
    for pod in place.get("pods", "-l", f"retrain/pipeline={place.base.pipeline.name}"):
        status = pod["status"]  # the package is fetched by an init container, and checked there first
        for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
            if container["restartCount"]:
                name = pod["metadata"]["name"]
                return place.cluster.kubectl("logs", name, "-c", container["name"], "--previous")
    return ""


def answers(place: Place, version: int) -> bool:
    try:
        return place.serves() == version
    except (httpx.HTTPError, KeyError, ValueError):
        return False


def test_load_adds_servers_and_its_end_takes_them_away(place: Place) -> None:
    name = place.base.pipeline.name

    def replicas() -> int:
        return int(place.get("deployment", name)["status"].get("readyReplicas", 0))

    with Load(place.host, rate=400, instances=[ROW] * 30) as load:
        grew = until(lambda: replicas() > 1, 180)
    print(f"scaled out to {replicas()} under {load.rate:.0f} requests a second: {dict(load.seen)}")
    assert grew
    assert not load.failed
    assert until(lambda: replicas() == 1, 300), "in again, after the window of 120 s"
