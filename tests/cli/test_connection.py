"""A connection to a cluster's API server: what it answers becomes an error of ours, or none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from contracts.errors import ConfigError
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

    do_POST = do_DELETE = do_GET  # noqa: N815  the base class's names


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """A namespace of a cluster that has none."""
    path = tmp_path / "kubeconfig"
    # read once, when the client is imported
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    with serving(ApiServer) as port:
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "one",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "one", "context": {"cluster": "c", "user": "u"}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(config))
        yield Namespace.connect("mlops")


def test_what_is_not_there_is_none_and_its_removal_no_error(empty: Namespace) -> None:
    assert empty.get("ConfigMap", "x") is None
    empty.delete("ConfigMap", "x")


def test_what_cannot_be_made_or_read_because_it_is_not_there_is_said(empty: Namespace) -> None:
    with pytest.raises(ConfigError, match='ConfigMap x in namespace mlops: namespaces "mlops" not found'):
        empty.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}})
    with pytest.raises(ConfigError, match="in namespace mlops: namespaces"):
        empty.fetch("/api/v1/namespaces/mlops/services/x:80/proxy/openapi.json")
