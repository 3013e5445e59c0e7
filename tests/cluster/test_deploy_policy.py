"""What `deploy` may write where its policy is: all that a release is made of, and no way to a key but serving's.

Everything is asked for as its account, with its Role, and nothing is kept; namespace and policy are the test's own.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from contracts.access import ACCESS
from contracts.admission import binding_name, in_force
from contracts.confinement import SPEC, policy_objects
from contracts.names import STEP_SERVICE_ACCOUNT
from contracts.pipeline.operation import Release
from contracts.settings import Settings
from contracts.stages import Deploy
from steps.rollout import shadow
from steps.rollout.cluster import Object
from steps.rollout.objects import Version, objects
from tests.cluster.conftest import Cluster, remove_policy, until
from tests.steps.registered import make_settings
from workflows.platform import policy_rules

ACCOUNT = STEP_SERVICE_ACCOUNT.format(stage=Deploy.name)
NAME = "churn"
FETCHED = Version(
    model=NAME, version=3, run_id="r3", dataset_sha256="d" * 64, commit="abc", image="registry/serving@sha256:1",
    package="s3://models/r3/package", package_sha256="5" * 64, record_share=0.5, records_uri="s3://store/predictions",
)  # fmt: skip
BUILT = replace(FETCHED, package="", record_share=0.0)
KEYS = "platform-ledger-owner"
"""A Secret of the platform, as a default install has it in this namespace."""


def wanted(settings: Settings, namespace: str, strategy: str = "canary", version: Version = FETCHED) -> list[Object]:
    release = Release.model_validate({"strategy": strategy})
    return objects(version, release, settings, namespace, entry="e3", workflow="w3")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return make_settings(
        tmp_path_factory.mktemp("settings"), s3_endpoint="http://minio:9000", pull_secrets='[{"name": "registry"}]',
        prometheus_url="http://prometheus:9090",
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(cluster: Cluster) -> Iterator[Cluster]:
    """A namespace with the account and its Role, the policy, and a Service of the platform's."""
    name = f"deploys-{os.urandom(3).hex()}"
    made = Cluster(cluster.kubeconfig, name)
    assert made.run("kubectl", "create", "namespace", name).returncode == 0
    rbac = "rbac.authorization.k8s.io"
    access, called = ACCESS[Deploy.name], {"metadata": {"name": ACCOUNT}}
    role = {
        "apiVersion": f"{rbac}/v1", "kind": "Role", **called,
        "rules": policy_rules((*access.serving, *access.gradual)),
    }  # fmt: skip
    bound = {
        "apiVersion": f"{rbac}/v1", "kind": "RoleBinding", **called,
        "roleRef": {"apiGroup": rbac, "kind": "Role", "name": ACCOUNT},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": name}],
    }  # fmt: skip
    theirs = {
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "postgres", "labels": {"app.kubernetes.io/managed-by": "Helm"}},
        "spec": {"selector": {"app.kubernetes.io/name": "postgres"}, "ports": [{"port": 5432}]},
    }  # fmt: skip
    try:
        made.apply(
            {"apiVersion": "v1", "kind": "ServiceAccount", **called}, role, bound, theirs, *policy_objects(name, name)
        )
        # a policy takes hold a moment after it was made
        assert until(lambda: "removes only what has the label" in ask(made, "delete", "service", "postgres"), 60)
        yield made
    finally:
        remove_policy(made, name)
        made.run("kubectl", "delete", "namespace", name, "--wait=false")


def ask(place: Cluster, *command: str, as_deploy: bool = True, stdin: str | None = None) -> str:
    """Ask for something as deploy's account; return what the API server refused with, empty when it did not."""
    by = [f"--as=system:serviceaccount:{place.namespace}:{ACCOUNT}"] if as_deploy else []
    by += (
        [f"--as-group=system:serviceaccounts:{place.namespace}", "--as-group=system:authenticated"] if as_deploy else []
    )
    done = place.run("kubectl", "-n", place.namespace, *command, "--dry-run=server", *by, stdin=stdin)
    return "" if done.returncode == 0 else done.stderr


def apply(place: Cluster, *objects: Mapping[str, Any], as_deploy: bool = True) -> str:
    whole = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    how = ("apply", "--server-side", "--force-conflicts", "--field-manager=retrain", "-f", "-")
    return ask(place, *how, as_deploy=as_deploy, stdin=json.dumps(whole))


@pytest.mark.parametrize("strategy", ["rolling", "recreate", "canary", "blue-green"])
@pytest.mark.parametrize("version", [FETCHED, BUILT], ids=["fetched", "built"])
def test_all_that_a_release_is_made_of_is_admitted(
    place: Cluster, settings: Settings, strategy: str, version: Version
) -> None:
    made = wanted(settings, place.namespace, strategy, version)
    assert apply(place, *made) == ""
    if strategy == "canary":
        beside = shadow.objects(made, 1, 50)
        assert apply(place, *beside, shadow.route(next(o for o in made if o["kind"] == "IngressRoute"))) == ""


def test_what_it_made_it_changes_and_removes(place: Cluster, settings: Settings) -> None:
    [account] = [each for each in wanted(settings, place.namespace) if each["kind"] == "ServiceAccount"]
    [service] = [each for each in wanted(settings, place.namespace, "rolling") if each["kind"] == "Service"]
    account = {**account, "metadata": {**account["metadata"], "annotations": {"cloud/identity": "the administrator's"}}}
    place.apply(account, service)
    del account["metadata"]["annotations"]
    assert apply(place, account, service) == "", "what an administrator added stays"
    assert ask(place, "delete", "service", NAME) == ""


POD = ("spec", "template", "spec")
SERVER = (*POD, "containers", 0)
SECRET = {"secretKeyRef": {"name": KEYS, "key": "password"}}
ENVIRONMENT = "environment values, and keys of the Secret retrain-serving-secrets, and nothing else"
VOLUMES = "empty volumes only"
ITS_ACCOUNT = "an account of its own name, without a token"
NODE = "nothing of its node, and no privileges"
LABELS = "nothing that another Service or network policy chooses"
TEMPLATE = "pods of its own Deployment's template, unchanged"
HOSTS = "only the hosts of its pipeline"
MEASURES = "reads no Secret for it"
JOB = {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "b"}]}}}}


def volume(**source: Any) -> list[dict[str, Any]]:
    return [{"name": "tmp", "emptyDir": {}}, {"name": "model", "emptyDir": {}}, {"name": "records", **source}]


@pytest.mark.parametrize(
    ("kind", "path", "value", "says"),
    [
        ("Deployment", (*SERVER, "env"), [{"name": "A", "valueFrom": SECRET}], ENVIRONMENT),
        ("Deployment", (*POD, "initContainers", 0, "env"), [{"name": "A", "valueFrom": SECRET}], ENVIRONMENT),
        ("Deployment", (*SERVER, "env"), [
            {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "any", "key": "any"}}},
        ], ENVIRONMENT),
        ("Deployment", (*SERVER, "envFrom"), [{"secretRef": {"name": KEYS}}], ENVIRONMENT),
        ("Deployment", (*POD, "initContainers", 1, "envFrom"), [{"configMapRef": {"name": "any"}}], ENVIRONMENT),
        ("Deployment", (*POD, "volumes"), volume(secret={"secretName": KEYS}), VOLUMES),
        ("Deployment", (*POD, "volumes"), volume(projected={"sources": [{"secret": {"name": KEYS}}]}), VOLUMES),
        ("Deployment", (*POD, "volumes"), volume(projected={"sources": [
            {"serviceAccountToken": {"path": "token"}},
        ]}), VOLUMES),
        ("Deployment", (*POD, "volumes"), volume(csi={
            "driver": "secrets-store.csi.k8s.io", "nodePublishSecretRef": {"name": KEYS},
        }), VOLUMES),
        ("Deployment", (*POD, "volumes"), volume(hostPath={"path": "/"}), VOLUMES),
        ("Deployment", (*POD, "volumes"), volume(persistentVolumeClaim={"claimName": "data-postgres-0"}), VOLUMES),
        ("Deployment", (*POD, "volumes"), volume(configMap={"name": "any"}), VOLUMES),
        ("Deployment", (*POD, "serviceAccountName"), "retrain-promote", ITS_ACCOUNT),
        ("Deployment", (*POD, "serviceAccountName"), "prometheus", ITS_ACCOUNT),
        ("Deployment", (*POD, "serviceAccountName"), None, ITS_ACCOUNT),
        ("Deployment", (*POD, "automountServiceAccountToken"), True, ITS_ACCOUNT),
        ("Deployment", (*POD, "automountServiceAccountToken"), None, ITS_ACCOUNT),
        ("Deployment", (*POD, "hostNetwork"), True, NODE),
        ("Deployment", (*POD, "hostPID"), True, NODE),
        ("Deployment", (*POD, "hostIPC"), True, NODE),
        ("Deployment", (*SERVER, "securityContext"), {"privileged": True}, NODE),
        ("Deployment", (*SERVER, "securityContext"), None, NODE),
        ("Deployment", (*SERVER, "ports"), [{"containerPort": 8080, "hostPort": 8080}], NODE),
        ("Deployment", ("spec", "template", "metadata", "labels", "app.kubernetes.io/name"), "postgres", LABELS),
        ("Deployment", ("metadata", "labels"), {}, "only what has the label"),
        ("Rollout", ("spec", "workloadRef", "name"), "mlflow", TEMPLATE),
        ("Rollout", ("spec", "template"), {"spec": {"containers": [{"name": "a", "image": "b"}]}}, TEMPLATE),
        ("Rollout", ("spec", "strategy", "canary", "canaryMetadata"), {"labels": {"a": "b"}}, TEMPLATE),
        ("AnalysisTemplate", ("spec", "metrics", 0, "provider"), {"job": JOB}, MEASURES),
        ("AnalysisTemplate", ("spec", "args"), [{"name": "a", "valueFrom": SECRET}], MEASURES),
        ("NetworkPolicy", ("spec", "podSelector"), {}, "the network of servers alone"),
        ("NetworkPolicy", ("spec", "podSelector", "matchLabels", "retrain/stage"), "promote", "of servers alone"),
        ("Service", ("spec", "externalIPs"), ["10.96.0.10"], "takes no addresses"),
        ("IngressRoute", ("spec", "routes", 0, "match"), "Host(`mlflow.example.com`)", HOSTS),
        ("IngressRoute", ("spec", "routes", 0, "match"), "PathPrefix(`/`)", HOSTS),
        ("ServiceAccount", ("metadata", "annotations"), {"cloud/identity": "theirs"}, "an account no annotations"),
    ],
)  # fmt: skip
def test_no_way_to_what_is_not_servings(
    place: Cluster, settings: Settings, kind: str, path: tuple[Any, ...], value: Any, says: str
) -> None:
    whole = copy.deepcopy(next(each for each in wanted(settings, place.namespace) if each["kind"] == kind))
    target: Any = whole
    *there, last = path
    for key in there:
        target = target[key]
    if value is None:
        del target[last]
    else:
        target[last] = value
    refused = apply(place, whole)
    assert says in refused, refused
    assert apply(place, whole, as_deploy=False) == "", "who is not deploy is none of its business"


def test_an_account_of_a_stage_serves_nothing_though_the_deployment_has_its_name(
    place: Cluster, settings: Settings
) -> None:
    """A cloud may know a pod by its account alone, and a token is none of the pod's then."""
    version = replace(FETCHED, model="retrain-promote")
    [deployment] = [o for o in wanted(settings, place.namespace, version=version) if o["kind"] == "Deployment"]
    assert ITS_ACCOUNT in apply(place, deployment)


def test_what_others_made_it_leaves_alone(place: Cluster) -> None:
    own = {"metadata": {"labels": {"app.kubernetes.io/managed-by": "retrain"}}}
    away = {**own, "spec": {"selector": {"retrain/stage": "serving"}}}
    for patch in (own, away):
        assert "changes and removes only" in ask(place, "patch", "service", "postgres", "-p", json.dumps(patch))
    assert "changes and removes only" in ask(place, "delete", "service", "postgres")


def test_a_deploy_of_another_namespace_is_held_too(place: Cluster, settings: Settings) -> None:
    """The workflows may run elsewhere; another account of the same namespace is not deploy."""
    [deployment] = [o for o in wanted(settings, place.namespace) if o["kind"] == "Deployment"]
    deployment["spec"]["template"]["spec"]["volumes"][2] = {"name": "records", "secret": {"secretName": KEYS}}
    how = ["kubectl", "-n", place.namespace, "create", "--dry-run=server", "-f", "-", "--as-group=system:masters"]
    for account, held in ((f"workflows:{ACCOUNT}", True), (f"{place.namespace}:other", False)):
        done = place.run(*how, f"--as=system:serviceaccount:{account}", stdin=json.dumps(deployment))
        assert (VOLUMES in done.stderr, done.returncode == 0) == (held, not held), done.stderr


def test_the_api_server_keeps_the_policy_as_it_is_looked_for(place: Cluster) -> None:
    policy = place.get("validatingadmissionpolicy", place.namespace)
    binding = place.get("validatingadmissionpolicybinding", binding_name(place.namespace, place.namespace))
    assert in_force(policy, binding, SPEC, place.namespace)
    assert not in_force(policy, binding, SPEC, "elsewhere")
