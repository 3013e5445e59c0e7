"""A connection to a cluster's API server: what it answers becomes an error of ours, or none."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from contracts.errors import ConfigError, NetworkError
from steps.rollout.cluster import Cluster
from tests.loopback import Handler, serving
from workflows.cluster.connection import Namespace

ANSWERS = {
    "/version": {"major": "1", "minor": "34"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList", "groupVersion": "v1",
        "resources": [
            {"name": "configmaps", "kind": "ConfigMap", "namespaced": True, "verbs": ["get", "create", "delete"]}
        ],
    },
}  # fmt: skip
_SILENT_SECONDS = 3.0
NOT_FOUND = {"kind": "Status", "code": 404, "message": 'namespaces "mlops" not found'}


class ApiServer(Handler):
    """It describes itself and has nothing else."""

    def do_GET(self) -> None:
        answer = ANSWERS.get(self.path.partition("?")[0], NOT_FOUND)
        body = json.dumps(answer).encode()
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(404 if answer is NOT_FOUND else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_DELETE = do_PUT = do_PATCH = do_GET  # noqa: N815  the base class's names


class Silent(ApiServer):
    """It describes itself, and answers nothing else for far longer than anybody waits."""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] not in ANSWERS:
            time.sleep(_SILENT_SECONDS)
        with suppress(OSError):  # who asked has gone
            super().do_GET()

    do_POST = do_DELETE = do_PUT = do_PATCH = do_GET  # noqa: N815  the base class's names


class Unreachable(ApiServer):
    """Packets to it are lost, from the first."""

    def do_GET(self) -> None:
        time.sleep(_SILENT_SECONDS)
        with suppress(OSError):
            super().do_GET()


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kubeconfig"
    # read once, when the client is imported
    for where in ("kubernetes.config", "kubernetes.config.kube_config"):
        monkeypatch.setattr(f"{where}.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the client keeps there what kinds a server has, by its port
    monkeypatch.setattr("tempfile.tempdir", None)
    return path


@contextmanager
def connected(server: type[Handler], kubeconfig: Path) -> Iterator[Namespace]:
    with serving(server) as port:
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "one",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "one", "context": {"cluster": "c", "user": "u"}}],
        }  # fmt: skip
        kubeconfig.write_text(yaml.safe_dump(config))
        yield Namespace.connect("mlops")


@pytest.fixture
def empty(kubeconfig: Path) -> Iterator[Namespace]:
    """A namespace of a cluster that has none."""
    with connected(ApiServer, kubeconfig) as namespace:
        yield namespace


def test_what_is_not_there_is_none_and_its_removal_no_error(empty: Namespace) -> None:
    assert empty.get("ConfigMap", "x") is None
    empty.delete("ConfigMap", "x")


def test_what_cannot_be_made_or_read_because_it_is_not_there_is_said(empty: Namespace) -> None:
    with pytest.raises(ConfigError, match='ConfigMap x in namespace mlops: namespaces "mlops" not found'):
        empty.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}})
    with pytest.raises(ConfigError, match="in namespace mlops: namespaces"):
        empty.fetch("/api/v1/namespaces/mlops/services/x:80/proxy/openapi.json")


class Unscheduled(ApiServer):
    """It answers on the log of a pod that has no node as the API server does: no content."""

    def do_GET(self) -> None:
        if "/log?" not in self.path:
            super().do_GET()
            return
        self.send_response(204)
        self.end_headers()


def test_a_pod_that_has_no_node_yet_has_no_log(kubeconfig: Path) -> None:
    with connected(Unscheduled, kubeconfig) as namespace:
        assert namespace.log("x", "main", previous=False) == []


OBJECT = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}
CALLS: dict[str, Callable[[Namespace], Any]] = {
    "get": lambda namespace: namespace.get("ConfigMap", "x"),
    "select": lambda namespace: namespace.select("ConfigMap"),
    "apply": lambda namespace: namespace.apply(OBJECT),
    "create": lambda namespace: namespace.create(OBJECT),
    "replace": lambda namespace: namespace.replace(OBJECT),
    "scale": lambda namespace: namespace.scale("ConfigMap", "x", 1),
    "delete": lambda namespace: namespace.delete("ConfigMap", "x"),
    "log": lambda namespace: namespace.log("x", "main", previous=False),
    "may": lambda namespace: namespace.may("get", "", "pods"),
    "user": lambda namespace: namespace.user(),
    "fetch": lambda namespace: namespace.fetch("/healthz"),
    "send": lambda namespace: namespace.send("/healthz", {}),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_server_that_does_not_answer_is_not_waited_for_without_end(
    call: Callable[[Namespace], Any], kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steps.rollout.cluster._TIMEOUT_SECONDS", 0.2)
    with connected(Silent, kubeconfig) as namespace, pytest.raises(NetworkError, match="the API server did not answer"):
        call(namespace)


def test_a_server_that_does_not_say_what_kinds_it_has_is_not_waited_for_either(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steps.rollout.cluster._TIMEOUT_SECONDS", 0.2)
    with connected(Unreachable, kubeconfig) as namespace, pytest.raises(NetworkError, match="did not answer"):
        namespace.get("ConfigMap", "x")


CONTEXT = {"contexts": [{"name": "one", "context": {"cluster": "c", "user": "u"}}], "current-context": "one"}
CLUSTER = {"clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:9"}}]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("{{{", "line 1"),
        ("[]", "list indices"),
        (yaml.safe_dump({"contexts": [], "clusters": [], "users": [], "current-context": "one"}), "name one"),
        (yaml.safe_dump(CONTEXT | CLUSTER | {"users": [{"name": "u", "user": {"client-certificate": "gone.pem"}}]}),
         "File does not exist: .*gone.pem"),
        (yaml.safe_dump(CONTEXT | CLUSTER | {"users": [{"name": "u", "user": {"client-certificate-data": "x"}}]}),
         "(?i)base64"),
        (yaml.safe_dump(CONTEXT | {"clusters": [], "users": []}), "name c"),
    ],
    ids=["empty", "no YAML", "a list", "no context", "certificate gone", "certificate no base64", "no cluster"],
)  # fmt: skip
def test_a_kubeconfig_that_cannot_be_read_is_told_in_one_line(kubeconfig: Path, text: str, said: str) -> None:
    kubeconfig.write_text(text)

    for connect in (Namespace.connect, lambda: Cluster.of("x")):
        with pytest.raises(ConfigError, match=said) as refused:
            connect().get("Pod", "x")
        assert "\n" not in refused.value.message
        assert refused.value.remedy


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://churn", "/api/v1/namespaces/mlops/services/churn:80/proxy"),
        ("http://churn.serving:8080", "/api/v1/namespaces/serving/services/churn:8080/proxy"),
        ("http://churn.serving.svc.cluster.local", "/api/v1/namespaces/serving/services/churn:80/proxy"),
    ],
)
def test_a_service_is_reached_through_the_api_server(url: str, path: str) -> None:
    assert Namespace("mlops", "one").service(url) == path
