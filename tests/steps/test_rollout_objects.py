"""The objects that serve a version, and why a rollout goes no further: pure, from what a cluster shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contracts.pipeline.operation import Release
from contracts.settings import Settings
from steps.rollout.diagnosis import complete, current, diagnose, progress
from steps.rollout.objects import Version, objects
from tests.model_packages import TRUSTED
from tests.steps.registered import make_settings

FETCHED = Version(
    model="adult-income", version=3, run_id="r3", dataset_sha256="d" * 64, commit="abc",
    image="registry/serving@sha256:1", package="s3://models/r3/package", package_sha256="5" * 64,
)  # fmt: skip
BUILT = Version(
    model="adult-income", version=3, run_id="r3", dataset_sha256="d" * 64, commit="abc", image="registry/m@sha256:2"
)
KEPT = replace(FETCHED, record_share=0.5, records_uri="s3://store/predictions/adult-income")


def settings(tmp_path: Path, **changed: Any) -> Settings:
    return make_settings(tmp_path, **{"s3_endpoint": "http://minio.mlops:9000", **changed})


def rendered(tmp_path: Path, version: Version = FETCHED, **changed: Any) -> dict[str, Any]:
    release = Release(**{key: changed.pop(key) for key in ("strategy",) if key in changed})
    found = objects(version, release, settings(tmp_path, **changed), "serving", entry="e1", workflow="w1")
    return {each["kind"]: each for each in found}


def pod_of(found: dict[str, Any]) -> Any:
    return found["Deployment"]["spec"]["template"]["spec"]


def plain(container: Any) -> dict[str, str]:
    """Return a container's environment, which comes from nowhere else."""
    return {each["name"]: each["value"] for each in container["env"]}


def test_everything_has_one_name_so_callers_keep_one_address(tmp_path: Path) -> None:
    found = rendered(tmp_path)
    assert {each["metadata"]["name"] for each in found.values()} == {"adult-income"}
    assert {each["metadata"]["namespace"] for each in found.values()} == {"serving"}
    template = found["Deployment"]["spec"]["template"]
    for selecting in (
        found["Service"]["spec"]["selector"],
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selecting == template["metadata"]["labels"]


def test_the_template_does_not_know_of_its_release_so_the_same_version_restarts_nothing(tmp_path: Path) -> None:
    one, other = (
        objects(FETCHED, Release(), settings(tmp_path), "serving", entry=entry, workflow=workflow)
        for entry, workflow in (("e1", "w1"), ("e2", "w2"))
    )
    deployments = [next(o for o in found if o["kind"] == "Deployment") for found in (one, other)]
    assert deployments[0]["spec"] == deployments[1]["spec"]
    assert deployments[0]["metadata"] != deployments[1]["metadata"]
    assert "replicas" not in deployments[0]["spec"]


def test_only_what_fetches_the_model_has_credentials_and_the_server_none(tmp_path: Path) -> None:
    pod = pod_of(rendered(tmp_path))
    [fetch], [server] = pod["initContainers"], pod["containers"]
    assert {e["name"] for e in fetch["env"] if "valueFrom" in e} == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert fetch["command"][-3:] == ["s3://models/r3/package", "/model", f"--sha256={'5' * 64}"]
    assert plain(server) == {"OMP_NUM_THREADS": "1", "RETRAIN_MODEL_KEYS": TRUSTED}
    assert pod["automountServiceAccountToken"] is False


def test_an_image_with_its_model_fetches_nothing_and_reaches_nothing(tmp_path: Path) -> None:
    found = rendered(tmp_path, BUILT)
    pod = pod_of(found)
    assert "initContainers" not in pod
    assert [volume["name"] for volume in pod["volumes"]] == ["tmp"]
    assert found["NetworkPolicy"]["spec"]["egress"] == []


def test_records_are_brought_by_a_container_beside_the_server_which_has_no_credentials(tmp_path: Path) -> None:
    kept = replace(BUILT, record_share=0.1, record_inputs=True, records_uri="s3://store/predictions/adult-income")
    found = rendered(tmp_path, kept)
    pod = pod_of(found)
    [shipping], [server] = pod["initContainers"], pod["containers"]
    assert server["command"][-3:] == ["--records=/records", "--record-share=0.1", "--record-inputs"]
    assert shipping["command"][-2:] == ["/records", "s3://store/predictions/adult-income"]
    assert shipping["restartPolicy"] == "Always", "it runs beside the server and ends after it"
    assert {e["name"] for e in shipping["env"] if "valueFrom" in e} == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert plain(server) == {"OMP_NUM_THREADS": "1", "RETRAIN_MODEL_KEYS": TRUSTED}
    for container in (server, shipping):
        assert {"name": "records", "mountPath": "/records"} in container["volumeMounts"]
    assert {port["port"] for rule in found["NetworkPolicy"]["spec"]["egress"] for port in rule["ports"]} == {53, 9000}


@pytest.mark.parametrize("version", [FETCHED, BUILT, KEPT])
def test_every_container_is_admitted_under_restricted(tmp_path: Path, version: Version) -> None:
    pod = pod_of(rendered(tmp_path, version))
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        held = container["securityContext"]
        assert held["allowPrivilegeEscalation"] is False
        assert held["capabilities"] == {"drop": ["ALL"]}
        assert held["readOnlyRootFilesystem"] is True


def test_the_store_is_all_that_a_server_reaches_by_the_rules_of_the_settings(tmp_path: Path) -> None:
    peer = {"ipBlock": {"cidr": "10.1.2.0/24"}}  # an endpoint inside of the network, whatever its name looks like
    rule = {"to": [peer], "ports": [{"port": 443, "protocol": "TCP"}]}
    changed = {"s3_endpoint": "https://s3.corp", "store_egress": json.dumps([rule])}
    names, *store = rendered(tmp_path, **changed)["NetworkPolicy"]["spec"]["egress"]

    assert {each["port"] for each in names["ports"]} == {53}
    assert store == [rule]


@pytest.mark.parametrize(("endpoint", "port"), [("http://minio:9000", 9000), ("http://minio.mlops", 80), ("", 443)])
def test_without_such_rules_a_server_reaches_any_address_at_the_stores_port(
    tmp_path: Path, endpoint: str, port: int
) -> None:
    _, store = rendered(tmp_path, s3_endpoint=endpoint)["NetworkPolicy"]["spec"]["egress"]
    assert store == {"ports": [{"port": port, "protocol": "TCP"}]}


def test_where_there_are_no_network_policies_a_server_gets_none(tmp_path: Path) -> None:
    assert "NetworkPolicy" not in rendered(tmp_path, network_policies=False)


def test_images_of_a_registry_with_a_login_are_pulled_by_the_secrets_of_the_settings(tmp_path: Path) -> None:
    found = rendered(tmp_path, pull_secrets='[{"name": "registry"}]')
    assert pod_of(found)["serviceAccountName"] == found["ServiceAccount"]["metadata"]["name"]
    assert found["ServiceAccount"]["imagePullSecrets"] == [{"name": "registry"}]
    assert "imagePullSecrets" not in rendered(tmp_path)["ServiceAccount"], "an administrator's own stay"


def test_a_rolling_release_never_has_fewer_servers_and_recreate_says_so(tmp_path: Path) -> None:
    rolling = rendered(tmp_path)["Deployment"]["spec"]["strategy"]
    assert rolling == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert rendered(tmp_path, strategy="recreate")["Deployment"]["spec"]["strategy"] == {"type": "Recreate"}


def test_a_pod_that_ends_has_time_to_drain(tmp_path: Path) -> None:
    pod = pod_of(rendered(tmp_path))
    unroute = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = int(next(a for a in pod["containers"][0]["command"] if a.startswith("--drain")).partition("=")[2])
    assert pod["terminationGracePeriodSeconds"] > unroute + drain


# why it goes no further


def a_pod(*containers: dict[str, Any], init: dict[str, Any] | None = None, conditions: Any = ()) -> dict[str, Any]:
    status = {"containerStatuses": list(containers), "initContainerStatuses": [init] if init else []}
    return {"metadata": {"name": "p", "uid": "p1"}, "status": {**status, "conditions": list(conditions)}}


def a_container(state: dict[str, Any], *, name: str = "server", restarts: int = 0, **more: Any) -> dict[str, Any]:
    return {"name": name, "image": "r/x@sha256:1", "state": state, "restartCount": restarts, "ready": False, **more}


def an_event(reason: str, message: str) -> dict[str, Any]:
    return {"reason": reason, "message": message, "involvedObject": {"uid": "p1", "kind": "Pod", "name": "p"}}


CRASHED = {"terminated": {"exitCode": 78, "reason": "Error"}}
WAITS = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
STARTING = an_event("Unhealthy", "Startup probe failed: connection refused")


@pytest.mark.parametrize(
    ("pod", "events", "reason"),
    [
        (
            a_pod(
                a_container({"waiting": {"reason": "ImagePullBackOff", "message": 'pulling "r/x@sha256:1": not found'}})
            ),
            [],
            "image pull failed: r/x@sha256:1: not found",
        ),
        (
            a_pod(
                a_container({"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s" not found'}})
            ),
            [],
            'container server cannot be made: secret "s" not found',
        ),
        (
            a_pod(a_container(WAITS, restarts=3, lastState=CRASHED)),
            [STARTING],
            "container server crashed (exit code 78, 3 times)",
        ),
        (
            a_pod(a_container({"waiting": {"reason": "PodInitializing"}}), init=a_container(CRASHED, name="fetch")),
            [],
            "container fetch crashed (exit code 78)",
        ),
        (
            a_pod(a_container(WAITS, restarts=1, lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}})),
            [],
            "container server crashed (OOMKilled, exit code 137)",
        ),
        (
            a_pod(a_container({"running": {}})),
            [an_event("Unhealthy", "Startup probe failed: statuscode: 503")],
            "its probe fails: Startup probe failed: statuscode: 503",
        ),
        (
            a_pod(
                a_container(
                    {"running": {}}, restarts=2, lastState={"terminated": {"exitCode": 0, "reason": "Completed"}}
                )
            ),
            [
                an_event("Unhealthy", "Liveness probe failed: timeout"),
                an_event("Killing", "Container server failed liveness probe"),
            ],
            "its probe fails, and it was ended for it: Liveness probe failed: timeout",
        ),
        (
            a_pod(
                conditions=[{"type": "PodScheduled", "status": "False", "message": "0/1 nodes: Insufficient memory."}]
            ),
            [],
            "no node takes its pod: 0/1 nodes: Insufficient memory.",
        ),
    ],
)
def test_a_pod_shows_why_it_is_not_ready(pod: dict[str, Any], events: list[dict[str, Any]], reason: str) -> None:
    assert diagnose(None, [pod], events).reason == reason


def test_the_log_is_that_of_the_crash_not_of_the_attempt_after_it() -> None:
    again = diagnose(None, [a_pod(a_container({"running": {}}, restarts=1, lastState=CRASHED))], [])
    assert again.log is not None
    assert again.log.previous
    ended = diagnose(None, [a_pod(a_container(CRASHED))], [])
    assert ended.log is not None
    assert not ended.log.previous


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('pods "x" is forbidden: exceeded quota: narrow', "quota does not allow its pods"),
        ('pods "x" is forbidden: violates PodSecurity "restricted"', "its pods are refused"),
    ],
)
def test_pods_that_are_never_made_show_it_at_their_replicaset(message: str, reason: str) -> None:
    condition = {"type": "ReplicaFailure", "status": "True", "message": message}
    why = diagnose({"metadata": {}, "status": {"conditions": [condition]}}, [], [])
    assert reason in why.reason
    assert message in why.reason


# how far it is


def a_deployment(generation: int, **status: int) -> dict[str, Any]:
    metadata = {"uid": "d", "generation": generation, "annotations": {"deployment.kubernetes.io/revision": "2"}}
    return {"metadata": metadata, "spec": {"replicas": 2}, "status": status}


def test_a_rollout_is_complete_when_all_are_new_available_and_nothing_else_is_left() -> None:
    done = {"observedGeneration": 2, "updatedReplicas": 2, "replicas": 2, "availableReplicas": 2}
    assert complete(a_deployment(2, **done))
    assert not complete(a_deployment(3, **done)), "the controller has not looked yet"
    for key in ("updatedReplicas", "replicas", "availableReplicas"):
        assert not complete(a_deployment(2, **{**done, key: 1}))
    assert not complete(a_deployment(2, **{**done, "replicas": 3})), "an old one is left"


def test_progress_grows_with_new_pods_and_with_old_ones_that_are_gone() -> None:
    def new(available: int, replicas: int) -> dict[str, Any]:
        return {"status": {"availableReplicas": available, "replicas": replicas}}

    steps = [
        progress(a_deployment(2, replicas=2), None),
        progress(a_deployment(2, replicas=3), new(1, 1)),
        progress(a_deployment(2, replicas=2), new(1, 1)),
        progress(a_deployment(2, replicas=2), new(2, 2)),
    ]
    assert steps == sorted(steps)
    assert len(set(steps)) == 4


def test_the_current_replicaset_is_the_one_of_the_deployments_revision() -> None:
    def replicaset(revision: str, owner: str = "d") -> dict[str, Any]:
        annotations = {"deployment.kubernetes.io/revision": revision}
        return {"metadata": {"uid": revision, "annotations": annotations, "ownerReferences": [{"uid": owner}]}}

    newest = replicaset("2")
    assert current(a_deployment(2), [replicaset("1"), replicaset("2", "other"), newest]) is newest
    assert current(a_deployment(2), [replicaset("1")]) is None
