"""Somebody with the rights of one namespace installs the platform there, runs on it, removes what nothing needs any
more, copies all and brings it back.

The installer is a service account that is `admin` of that namespace and nothing else, as `kind/admin.yaml` grants it.
The platform is small and goes with the test; the images are those of the shared platform.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from contracts import names
from contracts.settings import variable
from tests.cluster.conftest import ROOT, Cluster, run_as, until
from tests.cluster.small_run import APPROVAL, SmallRun
from workflows import retention
from workflows.cluster.connection import Namespace
from workflows.cluster.errand import errand

NAMESPACE = os.environ.get("INSTALL_NAMESPACE", "install-test")
INSTALLER = "installer"
RBAC = "rbac.authorization.k8s.io"
SMALL = {
    "mlflow": {"resources": {"requests": {"cpu": "50m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}},
    "postgresql": {"storage": {"size": "1Gi"}},
    "minio": {"storage": {"size": "1Gi"}},
    "retention": {"enabled": True},
    "settings": {"RETRAIN_RETENTION_ARCHIVE": "s3://retrain-archive"},
}
"""Besides kind/values-local.yaml."""


def installer(cluster: Cluster, folder: Path) -> Cluster:
    """Return the cluster as somebody sees it who is `admin` of the namespace, and no more."""
    granted = list(yaml.safe_load_all((ROOT / "kind" / "admin.yaml").read_text()))
    namespace = next(each for each in granted if each["kind"] == "Namespace")
    binding = next(each for each in granted if each.get("roleRef", {}).get("name") == "admin")
    namespace["metadata"]["name"] = binding["metadata"]["namespace"] = NAMESPACE
    binding["subjects"] = [{"kind": "ServiceAccount", "name": INSTALLER, "namespace": NAMESPACE}]
    token = {
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
        "metadata": {"name": INSTALLER, "annotations": {"kubernetes.io/service-account.name": INSTALLER}},
    }  # fmt: skip
    cluster.apply(namespace)
    there = Cluster(cluster.kubeconfig, NAMESPACE)
    there.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": INSTALLER}}, token, binding)

    def made() -> dict[str, Any]:
        data = there.get("secret", INSTALLER).get("data") or {}
        return data if "token" in data else {}

    secret = until(made, 60)
    assert secret, "the cluster made no token"
    server = cluster.run("kubectl", "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}").stdout
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "installer",
        "clusters": [{"name": "c", "cluster": {
            "server": server, "certificate-authority-data": secret["ca.crt"]}}],
        "users": [{"name": "u", "user": {"token": base64.b64decode(secret["token"]).decode()}}],
        "contexts": [{"name": "installer", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}],
    }  # fmt: skip
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    path.chmod(0o600)
    return Cluster(str(path), NAMESPACE)


def made(cluster: Cluster, *command: str, timeout: float = 900) -> str:
    done = cluster.run(*command, timeout=timeout)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def own(platform: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, str]]:
    """The platform that the installer installed, as it is seen by the installer, and what the install said."""
    folder = tmp_path_factory.mktemp("install")
    settings = platform.get("configmap", names.SETTINGS_CONFIGMAP)["data"]
    image = platform.get("configmap", "platform-provision")["metadata"]["annotations"]["retrain/image"]
    images = {"steps": settings[variable("steps_image")], "serving": settings[variable("serving_image")]}
    values = {**SMALL, "images": {**images, "mlflow": image}, "volumes": {"takeOwnership": True}}
    # what an administrator of one namespace may not read, the values say
    values["networkPolicies"] = {
        "apiServer": {"cidrs": ["0.0.0.0/0"], "ports": [443, 6443]}, "dns": {"cidrs": ["0.0.0.0/0"]},
    }  # fmt: skip
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    try:
        here = installer(platform, folder)
        local = str(ROOT / "kind" / "values-local.yaml")
        said = made(here, "kind/install", "-n", NAMESPACE, "-f", local, "-f", str(folder / "values.yaml"), timeout=960)
        yield here, said
    finally:
        if not os.environ.get("INSTALL_KEEP"):
            remove(platform)


def remove(platform: Cluster) -> None:
    """Remove the namespace; where no provisioner takes its volumes back, empty them and hand them on."""
    there = Cluster(platform.kubeconfig, NAMESPACE)
    claims = {claim["metadata"]["name"]: claim["spec"].get("volumeName", "") for claim in there.get("pvc")}
    volumes = {name: platform.get("pv", volume) for name, volume in claims.items() if volume}
    kept = {n: v for n, v in volumes.items() if v["spec"]["persistentVolumeReclaimPolicy"] == "Retain"}
    emptied = bool(kept) and empty(there, list(kept))
    platform.run("kubectl", "delete", "namespace", NAMESPACE, "--timeout=600s", timeout=660)
    for volume in kept.values() if emptied else ():
        patch = '{"spec": {"claimRef": null}}'
        platform.run("kubectl", "patch", "pv", volume["metadata"]["name"], "--type=merge", "-p", patch)


def empty(there: Cluster, claims: list[str]) -> bool:
    """Remove all that lies on the volumes of claims, once nobody writes there any more."""
    image = there.get("configmap", "platform-provision")["metadata"]["annotations"]["retrain/image"]
    there.run("kubectl", "delete", "statefulset", "--all", "-n", NAMESPACE, "--timeout=120s", timeout=150)
    there.run("kubectl", "wait", "pod", "-n", NAMESPACE, "--for=delete", "--timeout=120s", "minio-0", "postgres-0")
    every = "pathlib.Path('/v').glob('*/*')"
    wiped = f"import pathlib, shutil; [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in {every}]"
    there.apply({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "emptying"},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "main", "image": image, "command": ["python", "-c", wiped],
                "securityContext": {"runAsUser": 0},
                "volumeMounts": [{"name": name, "mountPath": f"/v/{name}"} for name in claims],
            }],
            "volumes": [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in claims],
        },
    })  # fmt: skip
    return bool(until(lambda: there.get("pod", "emptying")["status"]["phase"] == "Succeeded", 180))


def test_the_installer_may_do_nothing_outside_of_the_namespace(own: tuple[Cluster, str], platform: Cluster) -> None:
    here, said = own

    for asked in (["create", "namespaces"], ["get", "secrets", "-n", platform.namespace], ["create", "clusterroles"]):
        assert here.run("kubectl", "auth", "can-i", *asked).stdout.strip() == "no", asked
    assert "you may not set the quota" in said
    assert "no canary, no blue-green" in said
    assert here.run("kubectl", "get", "resourcequota", "-o", "name").stdout == ""


def test_every_component_answers_that_was_installed_so(own: tuple[Cluster, str]) -> None:
    here, _ = own

    for kind in ("deployment", "statefulset"):
        found = here.get(kind, "-l", "app.kubernetes.io/part-of=retrain")
        assert found
        assert {f["metadata"]["name"]: f["status"].get("readyReplicas") for f in found} == {
            f["metadata"]["name"]: f["spec"]["replicas"] for f in found
        }
    assert [job["metadata"]["name"] for job in here.get("jobs") if not job["status"].get("succeeded")] == []
    assert connect(here).settings[variable("store")] == "s3://retrain-store"


def connect(cluster: Cluster) -> Namespace:
    """The namespace as our own commands see it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", cluster.kubeconfig)
        found = Namespace.connect(cluster.namespace)
        assert found.settings  # the connection is made while that holds
        return found


_IN_200_DAYS = """
from datetime import UTC, datetime, timedelta
from contracts.settings import load_settings
from steps.retention.sweep import apply, look
settings, now = load_settings(), datetime.now(UTC) + timedelta(days=200)
before = look(settings, now)
apply(settings, now, workflow="retention-test", by="test")
print("LOOK", before.model_dump_json())
"""


def test_retention_removes_what_no_version_that_served_needs(own: tuple[Cluster, str], tmp_path: Path) -> None:
    here, _ = own
    small = SmallRun.make(here, tmp_path, "retention", gates=APPROVAL)
    for version, word in ((1, "approve"), (2, "reject"), (3, "reject")):
        small.take_data(version)
        assert small.ends(0)["outcome"] == "awaiting-approval"
        small.retrain(word, f"{small.name}@{version}", "--reason", "for the test")
    hashes = {
        version: json.loads(small.retrain("lineage", f"{small.name}@{version}", "--json"))["dataset"]["sha256"]
        for version in (1, 2, 3)
    }
    assert small.retention("plan")["total"]["things"] == 0, "nothing is old yet"

    said = run_as(here, "retention", _IN_200_DAYS, secrets=True)
    [line] = [line for line in said.splitlines() if line.startswith("LOOK ")]
    decided = {d["key"]: d["keep"] for d in json.loads(line.removeprefix("LOOK "))["decisions"]}
    print(json.dumps(decided, indent=1))
    for version, stays in ((1, True), (2, False), (3, True)):  # the alias staging names the last one
        assert [keep for key, keep in decided.items() if hashes[version] in key] != []
        assert {keep for key, keep in decided.items() if hashes[version] in key} == {stays}
    kept = json.loads(small.retrain("lineage", f"{small.name}@1", "--json"))
    gone = json.loads(small.retrain("lineage", f"{small.name}@2", "--json"))
    assert (kept["removal"], kept["state"]) == (None, "serving")
    assert gone["removal"] is not None
    assert gone["dataset"]["sha256"] == hashes[2]
    made(here, "kind/backup", "-n", NAMESPACE, str(tmp_path / "copy"))
    with tarfile.open(tmp_path / "copy" / "buckets.tar") as buckets:
        objects = "\n".join(buckets.getnames())
    for folder, versions in (("retrain-store/datasets", {1, 3}), ("retrain-archive/store/datasets", {2})):
        assert {version for version, sha256 in hashes.items() if f"{folder}/{sha256}/" in objects} == versions
    assert small.retention("apply")["total"]["things"] == 0, "by today's clock nothing more is to go"
    left = small.left()
    assert (left["serves"], left["broken"], left["aliases"]["production"]) == (1, [], 1)


def test_retention_runs_on_its_own_schedule_once_it_is_switched_on(own: tuple[Cluster, str]) -> None:
    here, _ = own
    here.kubectl("apply", "-f", str(ROOT / "argo" / "retention"))
    assert here.get("cronworkflow", retention.NAME)["spec"]["suspend"] is True

    def of_schedule() -> list[dict[str, Any]]:
        return list(here.get("workflows", "-l", f"workflows.argoproj.io/cron-workflow={retention.NAME}"))

    def patch(**spec: Any) -> None:
        here.kubectl("patch", "cronworkflow", retention.NAME, "--type=merge", "-p", json.dumps({"spec": spec}))

    patch(suspend=False, schedules=["* * * * *"])  # in place of Sundays
    assert until(of_schedule, 130), "the schedule fired nothing"
    patch(suspend=True)
    until(lambda: all(w.get("status", {}).get("finishedAt") for w in of_schedule()), 300)
    assert {w["status"]["phase"] for w in of_schedule()} == {"Succeeded"}


_WRITE = """
from contracts.settings import load_settings
from steps.storage import Storage
storage = Storage(load_settings())
patiently(lambda: storage.write("s3://retrain-store/code/kept", sys.argv[1].encode()))
"""
_READ = """
from contracts.settings import load_settings
from steps.storage import Storage
storage = Storage(load_settings())
print(patiently(lambda: storage.read("s3://retrain-store/code/kept")).decode())
"""


def sql(cluster: Cluster, statement: str, database: str = "retrain_ledger") -> str:
    command = ["exec", "statefulset/postgres", "-c", "postgres", "--", "psql", "-U", "postgres", "-d", database, "-Atc"]
    return cluster.kubectl(*command, statement).strip()


def test_what_was_copied_comes_back_and_what_came_later_goes(own: tuple[Cluster, str], tmp_path: Path) -> None:
    here, _ = own
    place = connect(here)
    errand(place, "submit", _WRITE, "before")
    sql(here, "CREATE TABLE kept (word text); INSERT INTO kept VALUES ('before')")
    users = sql(here, "SELECT count(*) FROM users", "mlflow_auth")
    said = made(here, "kind/backup", "-n", NAMESPACE, str(tmp_path / "copy"))
    assert {line.split(":")[0] for line in said.splitlines() if line.startswith("database ")} == {
        "database mlflow", "database mlflow_auth", "database retrain_ledger",
    }  # fmt: skip

    errand(place, "submit", _WRITE, "after")
    sql(here, "UPDATE kept SET word = 'after'; CREATE TABLE later (word text)")
    made(here, "kind/restore", "-n", NAMESPACE, str(tmp_path / "copy"))

    assert errand(place, "submit", _READ).strip() == "before"
    assert sql(here, "SELECT word FROM kept") == "before"
    assert sql(here, "SELECT to_regclass('later') IS NULL") == "t"
    assert sql(here, "SELECT count(*) FROM users", "mlflow_auth") == users
    assert here.get("deployment", "mlflow")["status"]["readyReplicas"] == 1
    made(here, "kind/restore", "-n", NAMESPACE, str(tmp_path / "copy"))  # once more changes nothing
    assert sql(here, "SELECT word FROM kept") == "before"


def test_a_copy_that_was_changed_or_is_there_already_is_refused(own: tuple[Cluster, str], tmp_path: Path) -> None:
    here, _ = own
    copy = tmp_path / "copy"
    made(here, "kind/backup", "-n", NAMESPACE, str(copy))

    again = here.run("kind/backup", "-n", NAMESPACE, str(copy))
    assert (again.returncode, "holds a backup already" in again.stderr) == (78, True)
    with (copy / "databases" / "retrain_ledger.dump").open("ab") as dump:
        dump.write(b"x")
    damaged: subprocess.CompletedProcess[str] = here.run("kind/restore", "-n", NAMESPACE, str(copy))
    assert (damaged.returncode, "nothing was changed" in damaged.stderr) == (65, True)
    assert json.dumps(sorted(file.name for file in copy.iterdir())) == '["SHA256SUMS", "buckets.tar", "databases"]'
