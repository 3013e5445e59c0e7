"""The cluster that these tests use: the one of KUBECONFIG when it answers, else pytest-kind's where Docker is.

Every test below tests/cluster has the marker `cluster` and is skipped with a reason where there is none.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from contracts.admission import binding_name

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAMESPACE = os.environ.get("NAMESPACE", "mlops")


@dataclass(frozen=True)
class Cluster:
    """kubectl and its kin against one cluster and namespace."""

    kubeconfig: str
    namespace: str = NAMESPACE

    def run(self, *command: str, stdin: str | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command with this KUBECONFIG and return how it ended."""
        environment = {**os.environ, "KUBECONFIG": self.kubeconfig}
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=environment,
            cwd=ROOT,
        )

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Run kubectl in the namespace and return its output; it must succeed."""
        done = self.run("kubectl", "-n", self.namespace, *arguments, stdin=stdin, timeout=timeout)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        """Make objects, or change them to what is given."""
        whole = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(whole))

    def get(self, *arguments: str) -> Any:
        """Return an object, or a list's items, as kubectl gives it."""
        found = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found["items"] if found["kind"] == "List" else found


def until(found: Callable[[], Any], seconds: float, pause: float = 1) -> Any:
    """Ask until the answer is true, and return it; what it was in the end when it never is."""
    deadline = time.monotonic() + seconds
    while not (answer := found()) and time.monotonic() < deadline:
        time.sleep(pause)
    return answer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)


def answering(kubeconfig: str) -> bool:
    if shutil.which("kubectl") is None:
        return False
    done = subprocess.run(
        ["kubectl", "version", "--request-timeout=10s"],
        capture_output=True, check=False, env={**os.environ, "KUBECONFIG": kubeconfig},
    )  # fmt: skip
    return done.returncode == 0


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Cluster:
    kubeconfig = os.environ.get("KUBECONFIG", "")
    if kubeconfig and answering(kubeconfig):
        return Cluster(kubeconfig)
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        kind = request.getfixturevalue("kind_cluster")  # pytest-kind creates it, with --cluster-name to keep it
        return Cluster(str(kind.kubeconfig_path))
    pytest.skip("no cluster: KUBECONFIG names none that answers, and there is no Docker for kind")


@pytest.fixture(scope="session")
def platform(cluster: Cluster) -> Cluster:
    """The cluster with the platform in it, as `make platform` leaves it."""
    done = cluster.run("kubectl", "-n", cluster.namespace, "get", "configmap", "retrain-settings")
    if done.returncode != 0:
        pytest.skip(f"namespace {cluster.namespace} has no platform: run `make platform`")
    return cluster


@pytest.fixture(scope="session")
def run(platform: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of a finished run of the shipped pipeline, on its own data, under a name of which nothing serves yet."""
    name, file = f"adult-{os.urandom(3).hex()}", tmp_path_factory.mktemp("run") / "adult.yaml"
    file.write_text(re.sub("^name: .*", f"name: {name}", (ROOT / "adult.yaml").read_text(), flags=re.M))
    submitted = platform.run(
        sys.executable, "-m", "workflows.cli.main", "submit", str(file), "--source", "data/adult.csv",
        "-n", platform.namespace, "--json", timeout=960,
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr
    yield str(json.loads(submitted.stdout)["workflow"])
    take_away(platform, name)


@pytest.fixture(scope="session")
def pipeline(platform: Cluster, run: str) -> str:
    """Name of the pipeline of that run."""
    return str(platform.get("workflow", run)["metadata"]["labels"]["retrain/pipeline"])


def take_away(cluster: Cluster, pipeline: str) -> None:
    """Remove what serves and what ran of a pipeline; ledger and MLflow keep what they have."""
    kinds = (
        "workflows,workflowtemplates,sensors,eventsources,deployments,horizontalpodautoscalers,services,"
        "poddisruptionbudgets,networkpolicies,serviceaccounts"
    )
    cluster.kubectl("delete", kinds, "-l", f"retrain/pipeline={pipeline}", "--ignore-not-found", "--wait=false")


def remove_policy(cluster: Cluster, name: str) -> None:
    """Remove an admission policy of ours that bears the name of its namespace, and what is cluster-wide beside it."""
    kinds = "validatingadmissionpolicybinding,validatingadmissionpolicy,clusterrolebinding,clusterrole"
    cluster.run("kubectl", "delete", kinds, name, binding_name(name, name), "--ignore-not-found")


# A network policy takes hold a moment after a pod has its address; the store is what every stage may reach.
_SETTLE = """
import os, socket, time
from urllib.parse import urlsplit

store = urlsplit(os.environ["RETRAIN_S3_ENDPOINT"])
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    try:
        socket.create_connection((store.hostname, store.port or 443), timeout=5).close()
        break
    except OSError:
        time.sleep(0.5)
time.sleep(2)
"""


def run_as(
    cluster: Cluster, stage: str, program: str, *, secrets: bool = False, besides: Sequence[str] = ()
) -> str:  # fmt: skip
    """Run Python in a pod with a stage's label and account, as the network policies see it; return its output.

    With `secrets` it has what the stage is given; `besides` names Secrets that it is not.
    """
    settings = cluster.get("configmap", "retrain-settings")["data"]
    name = f"probe-{stage}-{os.urandom(3).hex()}"
    sources = [{"configMapRef": {"name": "retrain-settings"}}]
    if secrets:
        sources.append({"secretRef": {"name": f"retrain-{stage}-secrets"}})
    sources += [{"secretRef": {"name": name}} for name in besides]
    manifest = {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"retrain/stage": stage}},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": f"retrain-{stage}",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "main", "image": settings["RETRAIN_STEPS_IMAGE"],
                "command": ["python", "-c", _SETTLE + program], "envFrom": sources,
                "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            }],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }  # fmt: skip
    cluster.apply(manifest)
    try:
        cluster.kubectl(
            "wait", f"pod/{name}", "--timeout=170s",
            "--for=jsonpath={.status.containerStatuses[0].state.terminated.reason}", timeout=180,
        )  # fmt: skip
        return cluster.kubectl("logs", name)
    finally:
        cluster.kubectl("delete", "pod", name, "--wait=false", "--ignore-not-found")
