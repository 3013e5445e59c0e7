"""Kaniko in the cluster: the compiled template builds a model's image, and the image serves.

The container is the compiled manifest's own, run by Argo in a namespace with a store of its own.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
import yaml

from contracts.access import EXECUTOR_RULES
from contracts.outcomes import Outcome
from contracts.settings import variable
from contracts.stages import Build
from steps.build import build
from steps.deploy import deploy
from steps.images import digest
from steps.world import World
from tests.cluster.conftest import ROOT, Cluster, until
from tests.cluster.test_rollout import KEY, SECRET, Place, bucket, minio, serving_image
from tests.steps.registered import make_settings, make_world
from workflows.platform import policy_rules

NAMESPACE = os.environ.get("BUILD_NAMESPACE", "build-test")
MANIFEST = ROOT / "argo" / "adult-income" / "2-workflowtemplate.yaml"


def accounts(settings: dict[str, str]) -> list[dict[str, Any]]:
    """What the chart gives the stage: its account and secret, and the executor's, with a token."""
    token = "retrain-executor-token"
    rbac = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "retrain-kaniko"}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {
            "name": "retrain-executor", "annotations": {"workflows.argoproj.io/service-account-token.name": token}}},
        {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token", "metadata": {
            "name": token, "annotations": {"kubernetes.io/service-account.name": "retrain-executor"}}},
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": "executor"},
         "rules": policy_rules(EXECUTOR_RULES)},
        {"apiVersion": f"{rbac}/v1", "kind": "RoleBinding", "metadata": {"name": "executor"},
         "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "executor"},
         "subjects": [{"kind": "ServiceAccount", "name": "retrain-executor", "namespace": NAMESPACE}]},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "retrain-kaniko-secrets"}, "stringData": {
            variable("aws_access_key_id"): KEY, variable("aws_secret_access_key"): SECRET}},
        {"apiVersion": "v1", "kind": "ConfigMap", "data": settings, "metadata": {
            "name": "retrain-settings", "labels": {"workflows.argoproj.io/configmap-type": "Parameter"}}},
    ]  # fmt: skip


@dataclass
class Builder:
    """A namespace where Kaniko runs as the compiled manifest says."""

    place: Place
    world: World

    def kaniko(self, asked: Build.Outputs) -> str:
        """Submit the compiled template with what `build` said and return the workflow's name."""
        compiled = yaml.safe_load(MANIFEST.read_text())
        [template] = [t for t in compiled["spec"]["templates"] if t["name"] == "kaniko"]
        wanted = {
            p["name"] for p in compiled["spec"]["arguments"]["parameters"] if f"'{p['name']}'" in json.dumps(template)
        }
        wanted.add("kaniko-image")
        given = {"context": asked.context, "destination": asked.destination, "plain-http": asked.plain_http}
        spec = {
            "entrypoint": "kaniko", "templates": [template],
            "arguments": {"parameters": [
                *(p for p in compiled["spec"]["arguments"]["parameters"] if p["name"] in wanted),
                *({"name": name, "value": value} for name, value in given.items()),
            ]},
        }  # fmt: skip
        manifest = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "spec": spec,
                    "metadata": {"generateName": "kaniko-"}}  # fmt: skip
        created = self.place.cluster.kubectl("create", "-f", "-", "-o", "name", stdin=json.dumps(manifest))
        return created.strip().rpartition("/")[2]

    def nodes(self, workflow: str) -> list[dict[str, Any]]:
        found = self.place.get("workflow", workflow).get("status", {}).get("nodes") or {}
        return list(found.values())

    def ended(self, workflow: str, seconds: float = 300) -> str:
        def ending() -> str:
            phase = self.place.get("workflow", workflow).get("status", {}).get("phase", "")
            return phase if phase in ("Succeeded", "Failed", "Error") else ""

        return str(until(ending, seconds))


@pytest.fixture(scope="module")
def builder(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    base = os.environ.get("ROLLOUT_IMAGE") or serving_image(cluster)
    here = Cluster(cluster.kubeconfig, NAMESPACE)
    if here.run("kubectl", "get", "crd", "workflows.argoproj.io").returncode:
        pytest.skip("the cluster has no Argo Workflows")
    here.run("kubectl", "create", "namespace", NAMESPACE)
    here.run("kubectl", "label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=baseline")
    endpoint = f"http://minio.{NAMESPACE}:9000"
    try:
        settings = {
            variable("s3_endpoint"): endpoint, variable("kaniko_image"): "gcr.io/kaniko-project/executor:v1.24.0",
            variable("build_memory"): "1024", variable("build_cpu"): "200",
        }  # fmt: skip
        here.apply(*minio(), *accounts(settings))
        here.kubectl("rollout", "status", "deployment/minio", "--timeout=170s", timeout=180)
        s3 = bucket(endpoint)
        folder = tmp_path_factory.mktemp("build")
        changed = make_settings(
            folder, deploy_target="kubernetes", serving_namespace=NAMESPACE, artifacts="s3://models/runs",
            store="s3://models/store", s3_endpoint=endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET,
            serving_image=base, serving_min_replicas=1, serving_max_replicas=1, serving_cpu=100, serving_memory=384,
            build="kaniko", image_registry=f"{base.partition('/')[0]}/build-test", insecure_registry=True,
        )  # fmt: skip
        place = Place(here, replace(make_world(folder), settings=changed), s3, base)
        yield Builder(place, place.world())
    finally:
        if not os.environ.get("ROLLOUT_KEEP"):
            here.run("kubectl", "delete", "namespace", NAMESPACE, "--wait=false")


def test_kaniko_builds_a_models_image_once_and_it_serves(builder: Builder) -> None:
    world, approved = builder.world, builder.place.approve(builder.world)
    asked = build(Build.Inputs(version=approved.version), world=world)
    assert asked.context, asked.summary

    began = time.monotonic()
    workflow = builder.kaniko(asked)
    assert builder.ended(workflow) == "Succeeded", builder.nodes(workflow)
    took = time.monotonic() - began
    [image] = {
        p["value"] for node in builder.nodes(workflow) for p in (node.get("outputs") or {}).get("parameters", ())
    }
    repository, _, tag = asked.destination.rpartition(":")
    print(f"Kaniko: {image} in {took:.1f} s")
    assert image.partition("@")[2] == digest(repository, tag, world.settings)

    again = build(Build.Inputs(version=approved.version), world=world)
    assert (again.image, again.context) == (f"{repository}@{image.partition('@')[2]}", "")

    done = deploy(approved.model_copy(update={"image": image}), world=world)
    assert done.outcome is Outcome.PROMOTED
    answer = httpx.get(f"{done.url}/v1/model", timeout=30, trust_env=False).json()
    assert (answer["version"], answer["run_id"]) == (approved.version, world.registry.run_of(approved.version))
    deployment = builder.place.get("deployment", world.pipeline.name)["spec"]["template"]["spec"]
    assert deployment["containers"][0]["image"] == image
    assert "fetch" not in [container["name"] for container in deployment.get("initContainers", ())]
    assert world.registry.tags(approved.version)["retrain.image"] == image
    serving = world.ledger.serving(world.pipeline.name)
    assert serving is not None
    assert serving.evidence["image"] == image


def test_a_push_that_fails_is_tried_again_as_class_network(builder: Builder) -> None:
    world, approved = builder.world, builder.place.approve(builder.world)
    asked = build(Build.Inputs(version=approved.version), world=world)
    nowhere = "minio:9000"  # answers, and is no registry
    asked = asked.model_copy(update={"destination": f"{nowhere}/none:1", "plain_http": nowhere})
    workflow = builder.kaniko(asked)
    try:

        def attempts() -> list[dict[str, Any]]:
            pods = [node for node in builder.nodes(workflow) if node["type"] == "Pod"]
            return sorted(pods, key=lambda node: str(node["displayName"]))

        assert until(lambda: len(attempts()) >= 2, 180), builder.nodes(workflow)
        assert "exit code 1" in attempts()[0]["message"]
    finally:
        builder.place.cluster.kubectl("delete", "workflow", workflow, "--wait=false")
