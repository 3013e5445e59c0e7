"""One namespace of a Kubernetes cluster, in plain dictionaries.  Called by the Kubernetes and export targets, and by
`workflows.cluster`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.errors import ConfigError, NetworkError, StageError

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api
    from kubernetes.dynamic import DynamicClient

Object = dict[str, Any]

FIELD_MANAGER = "retrain"
"""Owner of what we apply: fields of others (replicas, an admin's annotations) stay as they are."""
VERSIONS = {
    "Deployment": "apps/v1", "ReplicaSet": "apps/v1", "HorizontalPodAutoscaler": "autoscaling/v2",
    "PodDisruptionBudget": "policy/v1", "NetworkPolicy": "networking.k8s.io/v1", "Lease": "coordination.k8s.io/v1",
    "Service": "v1", "ServiceAccount": "v1", "Pod": "v1", "Event": "v1", "ConfigMap": "v1", "Secret": "v1",
    "ResourceQuota": "v1",
    "ValidatingAdmissionPolicy": "admissionregistration.k8s.io/v1",
    "ValidatingAdmissionPolicyBinding": "admissionregistration.k8s.io/v1",
    "Workflow": "argoproj.io/v1alpha1", "WorkflowTemplate": "argoproj.io/v1alpha1",
    "Rollout": "argoproj.io/v1alpha1", "AnalysisTemplate": "argoproj.io/v1alpha1",
    "AnalysisRun": "argoproj.io/v1alpha1",
    "TraefikService": "traefik.io/v1alpha1", "IngressRoute": "traefik.io/v1alpha1",
}  # fmt: skip
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_TIMEOUT_SECONDS = 30
_RETRIES = 1
"""By urllib3, of what may be said twice: a connection that lay idle may have been closed at the other end."""


class Conflict(StageError):  # noqa: N818  it says what happened
    """The object was changed by someone else since it was read."""


class UnknownKind(ConfigError):  # noqa: N818  it says what was found
    """The cluster has no such kind of object."""


class NotThere(ConfigError):  # noqa: N818  it says what was found
    """There is no such object, or no such namespace."""


@dataclass(frozen=True)
class Cluster:
    """Objects of one namespace.

    Before each change `before_change` is called, which may refuse it by what it raises.

    Raises
    ------
    NetworkError
        By every method: the API server does not answer, or not now.
    ConfigError
        It refuses: no permission, or an object that it does not take.
    """

    namespace: str
    before_change: Callable[[], None] | None = field(default=None, kw_only=True)

    @classmethod
    def of(cls, namespace: str) -> Cluster:
        """Return a namespace, by default the one this process runs in, or the kubeconfig's."""
        return cls(namespace or _own_namespace())

    @classmethod
    def inside(cls) -> Cluster | None:
        """Return the namespace of the pod that this process runs in, None outside of a pod."""
        return cls(_own_namespace()) if _OWN_NAMESPACE.exists() else None

    def apply(self, wanted: Object, *, only_ask: bool = False) -> Object:
        """Make an object as wanted, by server-side apply, and return it as it is now; or only ask whether it could be.

        Asked, the API server goes the whole way, admission too, but keeps nothing.
        """
        asked = {"dry_run": "All"} if only_ask else {}
        return self._call(
            "patch", wanted["kind"], wanted["metadata"]["name"],
            lambda api: self._client.server_side_apply(
                api, body=wanted, namespace=self.namespace, field_manager=FIELD_MANAGER, force_conflicts=True,
                **asked,
            ),
        )  # fmt: skip

    def may(self, verb: str, group: str, resource: str) -> bool:
        """Ask whether this process's account has a right in the namespace; a subresource is ``pods/log``."""
        from kubernetes.client import AuthorizationV1Api

        kind, _, subresource = resource.partition("/")
        attributes = {
            "namespace": self.namespace, "verb": verb, "group": group, "resource": kind, "subresource": subresource,
        }  # fmt: skip
        review = {
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }  # fmt: skip
        with self._errors("create", "SelfSubjectAccessReview", ""):
            answer = AuthorizationV1Api(self._client.client).create_self_subject_access_review(review)
        return bool(answer.status.allowed)

    def serves(self, group: str) -> bool:
        """Say whether the API server knows a group of objects, and whoever serves it answers."""
        from kubernetes.client import ApisApi

        with self._errors("get", "API groups", ""):
            found = ApisApi(self._client.client).get_api_versions()
        return group in {each.name for each in found.groups}

    def knows(self, kind: str) -> bool:
        """Say whether the API server has a kind of object."""
        try:
            with self._errors("get", kind, ""):
                self._client.resources.get(api_version=VERSIONS[kind], kind=kind)
        except UnknownKind:
            return False
        return True

    def get(self, kind: str, name: str) -> Object | None:
        """Return an object, None when there is none."""
        try:
            return self._call("get", kind, name, lambda api: api.get(name=name, namespace=self.namespace))
        except NotThere:
            return None

    def select(self, kind: str, labels: Mapping[str, str] | None = None) -> list[Object]:
        """Return the objects of a kind, those with certain labels only where some are given."""
        selector = ",".join(f"{key}={value}" for key, value in (labels or {}).items())
        found = self._call("list", kind, "", lambda api: api.get(namespace=self.namespace, label_selector=selector))
        items: list[Object] = found["items"]
        return items

    def create(self, wanted: Object) -> Object:
        """Make a new object.

        Raises
        ------
        Conflict
            There is one already.
        """
        name = wanted["metadata"]["name"]
        return self._call("create", wanted["kind"], name, lambda api: api.create(body=wanted, namespace=self.namespace))

    def replace(self, changed: Object) -> Object:
        """Write an object that was read.

        Raises
        ------
        Conflict
            Someone else wrote it since.
        """
        name = changed["metadata"]["name"]
        return self._call(
            "update", changed["kind"], name, lambda api: api.replace(body=changed, namespace=self.namespace)
        )

    def scale(self, kind: str, name: str, replicas: int) -> None:
        """Set how many pods an object has, as one who does not own that field: the next `apply` leaves it alone."""
        self._call(
            "patch", kind, name,
            lambda api: api.patch(
                body={"spec": {"replicas": replicas}}, name=name, namespace=self.namespace,
                content_type="application/merge-patch+json", field_manager=f"{FIELD_MANAGER}-scale",
            ),
        )  # fmt: skip

    def delete(self, kind: str, name: str) -> None:
        """Remove an object and what belongs to it; one that is not there is no error."""
        with contextlib.suppress(NotThere):
            self._call("delete", kind, name, lambda api: api.delete(name=name, namespace=self.namespace))

    def log(self, pod: str, container: str, *, previous: bool, lines: int = 12) -> list[str]:
        """Return the last lines of a container, or of the one before it in the same pod; none when gone."""
        from kubernetes.client.exceptions import ApiException

        with self._errors("get", "the log of pod", pod):
            try:
                text = self._pods.read_namespaced_pod_log(
                    pod, self.namespace, container=container, previous=previous, tail_lines=lines,
                )  # fmt: skip
            except ApiException as error:
                if error.status in (400, 404):  # not started yet, or removed meanwhile
                    return []
                raise
        return (text or "").splitlines()  # None for a pod that has no node yet

    def _call(self, verb: str, kind: str, name: str, call: Any) -> Object:
        if self.before_change is not None and verb not in ("get", "list"):
            self.before_change()
        with self._errors(verb, kind, name):
            answer: Object = call(self._client.resources.get(api_version=VERSIONS[kind], kind=kind)).to_dict()
            return answer

    @contextlib.contextmanager
    def _errors(self, verb: str, kind: str, name: str) -> Iterator[None]:
        from kubernetes.client.exceptions import ApiException
        from kubernetes.dynamic.exceptions import NotFoundError, ResourceNotFoundError
        from urllib3.exceptions import HTTPError

        what = f"{kind} {name}".strip()
        try:
            yield
        except NotFoundError as error:
            raise NotThere(
                f"{what} in namespace {self.namespace}: {_message(error)}", remedy="is the namespace's name right?"
            ) from None
        except ResourceNotFoundError:
            raise UnknownKind(f"the cluster has no {kind} of {VERSIONS[kind]}") from None
        except ApiException as error:
            said = _message(error)
            if error.status in (401, 403):
                raise ConfigError(
                    f"the cluster refused to {verb} {what} in {self.namespace}: {said}",
                    remedy="docs/rights.md lists what each stage needs",
                ) from None
            if error.status == 409:
                raise Conflict(f"{what} was changed meanwhile: {said}") from None
            if error.status == 429 or not error.status or error.status >= 500:
                raise NetworkError(f"the API server answered {error.status} for {what}") from None
            raise ConfigError(f"the cluster does not take {what}: {said}") from None
        except (HTTPError, OSError) as error:
            why = getattr(error, "reason", None) or error  # of the last try
            raise NetworkError(f"the API server did not answer for {what}: {type(why).__name__}") from None

    @cached_property
    def _pods(self) -> CoreV1Api:
        from kubernetes.client import CoreV1Api

        return CoreV1Api(self._client.client)

    @cached_property
    def _client(self) -> DynamicClient:
        from kubernetes import client, config

        with reading_kubeconfig("run in a pod with a service account, or set KUBECONFIG"):
            if Path(config.KUBE_CONFIG_DEFAULT_LOCATION).expanduser().exists():
                config.load_kube_config()
            else:  # as `config.load_config` does, which says so on standard output, where a stage's answer stands
                config.load_incluster_config()
        return patient(client.Configuration.get_default_copy())


@contextlib.contextmanager
def reading_kubeconfig(remedy: str) -> Iterator[None]:
    """Tell what is wrong with a kubeconfig, or with a file that it names, as a `ConfigError` with a remedy."""
    from kubernetes.config import ConfigException
    from yaml import YAMLError

    try:
        yield
    except (ConfigException, YAMLError, OSError, ValueError, TypeError) as error:  # the last two: no base64, no mapping
        raise ConfigError(f"no kubeconfig that can be read: {' '.join(str(error).split())}", remedy=remedy) from None


def patient(configuration: Any) -> DynamicClient:
    """Return a client whose every call ends, those too by which it learns the kinds of objects that there are.

    Parameters
    ----------
    configuration
        A `kubernetes.client.Configuration`.
    """
    from kubernetes.client import ApiClient
    from kubernetes.dynamic import DynamicClient

    configuration.retries = _RETRIES
    api = ApiClient(configuration)
    endless = api.call_api
    api.call_api = lambda *words, **more: endless(*words, **{**more, "_request_timeout": _TIMEOUT_SECONDS})
    return DynamicClient(api)


def _own_namespace() -> str:
    if _OWN_NAMESPACE.exists():
        return _OWN_NAMESPACE.read_text(encoding="utf-8").strip()
    from kubernetes import config
    from kubernetes.config import ConfigException

    with reading_kubeconfig("mend it, or set KUBECONFIG"):
        try:
            _, active = config.list_kube_config_contexts()
        except ConfigException:
            return "default"
    return str(active["context"].get("namespace", "default"))


def _message(error: Any) -> str:
    """Return what the API server says, which is for people and holds no secret."""
    try:
        return str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
