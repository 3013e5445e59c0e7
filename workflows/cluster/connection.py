"""The namespace that a person's kubeconfig names, and the platform in it.  Called by `submit`, and by `status`, `logs`
and `lineage` when they are asked about a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from contracts import names
from contracts.errors import ConfigError
from steps.rollout.cluster import Cluster, patient, reading_kubeconfig

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient


@dataclass(frozen=True)
class Namespace(Cluster):
    """A namespace with the platform in it; raises as `Cluster` does."""

    context: str = ""

    @classmethod
    def connect(cls, namespace: str = "", context: str = "") -> Namespace:
        """Find context and namespace as kubectl does: KUBECONFIG, its current context, that context's namespace.

        Raises
        ------
        ConfigError
            No kubeconfig, no such context.
        """
        from kubernetes import config

        with reading_kubeconfig("set KUBECONFIG"):
            contexts, active = config.list_kube_config_contexts()
        chosen = next((c for c in contexts if c["name"] == context), None) if context else active
        if chosen is None:
            known = ", ".join(c["name"] for c in contexts)
            raise ConfigError(f"the kubeconfig has no context {context!r}", remedy=f"one of {known}")
        return cls(namespace or chosen["context"].get("namespace") or "default", chosen["name"])

    @cached_property
    def settings(self) -> dict[str, str]:
        """What the platform's ConfigMap says to every stage.

        Raises
        ------
        ConfigError
            There is none.
        """
        found = self.get("ConfigMap", names.SETTINGS_CONFIGMAP)
        if found is None:
            raise ConfigError(
                f"namespace {self.namespace} of {self.context} has no platform ({names.SETTINGS_CONFIGMAP} is missing)",
                remedy="name its namespace with --namespace, or `make platform`",
            )
        return dict(found.get("data", {}))

    def user(self) -> str:
        """Return as whom the API server knows this person."""
        from kubernetes.client import AuthenticationV1Api

        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        with self._errors("create", "SelfSubjectReview", ""):
            answer = AuthenticationV1Api(self._client.client).create_self_subject_review(review)
        return str(answer.status.user_info.username)

    def service(self, url: str) -> str:
        """Return the path at which the API server passes requests on to a service, from its URL in the cluster."""
        place = urlsplit(url)
        name, namespace = [*(place.hostname or "").split("."), self.namespace][:2]
        return f"/api/v1/namespaces/{namespace}/services/{name}:{place.port or 80}/proxy"

    def fetch(self, path: str) -> bytes:
        """Return what the API server answers to a GET."""
        with self._errors("get", path, ""):
            answer = self._client.request("get", path, serialize=False)
            return bytes(answer.data)

    def send(self, path: str, body: Any) -> bytes:
        """Return what the API server, or what is behind it, answers to a POST of JSON."""
        with self._errors("post to", path, ""):
            answer = self._client.request("post", path, body=body, serialize=False)
            return bytes(answer.data)

    def feed(self, pod: str, chunks: Iterable[bytes]) -> None:
        """Write bytes to the standard input of a running pod's container."""
        from kubernetes.stream import stream
        from websocket import WebSocketException

        with self._errors("attach to", "pod", pod):
            pipe = stream(
                self._pods.connect_get_namespaced_pod_attach, pod, self.namespace,
                stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False,
            )  # fmt: skip
            try:
                for chunk in chunks:
                    pipe.write_stdin(chunk)
                    pipe.update(timeout=0)
            except WebSocketException as error:
                raise OSError(str(error)) from None
            finally:
                pipe.close()

    @cached_property
    def _client(self) -> DynamicClient:
        from kubernetes import config

        with reading_kubeconfig(f"mend what it says of {self.context}, or name another with --context"):
            found = config.new_client_from_config(context=self.context).configuration
        return patient(found)
