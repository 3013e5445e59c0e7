"""The Kubernetes objects that serve one version: pure.  Called by the Kubernetes and export targets.

All are named by the pipeline, whatever the version, so callers keep one address.  The pod's template holds only what is
the version's own: released again, the same version changes nothing and restarts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from contracts import names
from contracts.access import SERVING
from contracts.metrics import Task
from contracts.pipeline.operation import Release
from contracts.settings import DEFAULT_REGION, Settings, variable
from steps.rollout import analysis, gradual_objects
from steps.rollout.cluster import VERSIONS, Object

PORT = 8080
MODEL = "/model"
"""Where the package lies: in a built image, or fetched there before the server starts."""
RECORDS = "/records"
"""Where the server leaves prediction records, for the container beside it."""
ANNOTATION = "retrain/{}"
UNROUTE_SECONDS = 5
"""How long a pod that ends still takes connections: until every node has heard that it does."""
_MARGIN_SECONDS = 10
_READY_SECONDS = 3
_SCALE_IN_SECONDS = 120
_SHIPPING_MIB = 192
RESTRICTED_POD = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
RESTRICTED_CONTAINER = {
    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True,
}  # fmt: skip
"""What Pod Security `restricted` asks, and a root file system that stays as it was built."""


@dataclass(frozen=True)
class Version:
    """What is to serve.

    `package` is the URI of the model's package and `package_sha256` the hash of its manifest, where pods fetch it;
    both are empty where the image holds it.  `record_share` of the requests are kept,
    with their `record_inputs`, at `records_uri`.
    """

    model: str
    version: int
    run_id: str
    dataset_sha256: str
    commit: str
    image: str
    package: str = ""
    package_sha256: str = ""
    task: Task = Task.BINARY
    record_share: float = 0.0
    record_inputs: bool = False
    records_uri: str = ""

    @property
    def keeps_records(self) -> bool:
        """Whether any prediction is kept."""
        return self.record_share > 0

    @property
    def annotations(self) -> dict[str, str]:
        """What a pod says of itself."""
        facts = {
            "version": str(self.version), "run-id": self.run_id, "dataset-sha256": self.dataset_sha256,
            "commit": self.commit,
        }  # fmt: skip
        return {ANNOTATION.format(key): value for key, value in facts.items()}


def objects(
    version: Version, release: Release, settings: Settings, namespace: str, *, entry: str, workflow: str
) -> list[Object]:
    """Return all objects, in the order in which they are to be applied.

    Parameters
    ----------
    entry, workflow
        The ledger entry and the workflow of this release; on the Deployment only.
    """
    deployment = _named("Deployment", version.model, namespace, _deployment(version, release, settings))
    deployment["metadata"]["annotations"] = version.annotations | {
        ANNOTATION.format("ledger-entry"): entry, ANNOTATION.format("workflow"): workflow,
    }  # fmt: skip
    return [
        _account(version, settings, namespace),
        *(_confined(version, settings, namespace) if settings.network_policies else ()),
        _named("Service", version.model, namespace, _service(version)),
        _named("PodDisruptionBudget", version.model, namespace, _disruption(version)),
        *(_gradual(version, release, settings, namespace) if release.gradual else ()),
        deployment,
        _named("HorizontalPodAutoscaler", version.model, namespace, _scaling(version, release, settings)),
    ]


def route_to_service(model: str, namespace: str) -> Object:
    """Return the IngressRoute of a pipeline whose Service, and no weights, share requests out."""
    return _named("IngressRoute", model, namespace, gradual_objects.route(model, namespace, "rolling"))


def _gradual(version: Version, release: Release, settings: Settings, namespace: str) -> list[Object]:
    name, canary = version.model, release.strategy == "canary"
    measured = analysis.metrics(release, version.task, namespace, name)
    following = _named("Service", version.model, namespace, _service(version))
    following["metadata"]["name"] = gradual_objects.next_service(name)
    specs = {
        "AnalysisTemplate": analysis.template(measured, release.analysis, settings.prometheus_url),
        **({"TraefikService": gradual_objects.weights(name)} if canary else {}),
        "IngressRoute": gradual_objects.route(name, namespace, release.strategy),
        "Rollout": gradual_objects.rollout(name, release, selector(name), _READY_SECONDS),
    }
    return [following, *(_named(kind, version.model, namespace, spec) for kind, spec in specs.items())]


def selector(model: str) -> dict[str, str]:
    """Return the labels by which a pipeline's serving pods are found."""
    return {names.LABEL_PIPELINE: model, names.LABEL_STAGE: SERVING}


def _named(kind: str, model: str, namespace: str, spec: dict[str, Any] | None) -> Object:
    """Return an object of a pipeline, with its name and labels."""
    labels = selector(model) | {
        "app.kubernetes.io/name": model, "app.kubernetes.io/component": SERVING,
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
    }  # fmt: skip
    metadata = {"name": model, "namespace": namespace, "labels": labels}
    found: Object = {"apiVersion": VERSIONS[kind], "kind": kind, "metadata": metadata}
    return found | ({"spec": spec} if spec is not None else {})


def _account(version: Version, settings: Settings, namespace: str) -> Object:
    """Return the account of the pods, which says how their images are pulled: so do templates that are put back."""
    account = _named("ServiceAccount", version.model, namespace, None) | {"automountServiceAccountToken": False}
    return account | ({"imagePullSecrets": settings.pull_secrets} if settings.pull_secrets else {})


def _deployment(version: Version, release: Release, settings: Settings) -> dict[str, Any]:
    # No `replicas`: they are the autoscaler's.
    return {
        "selector": {"matchLabels": selector(version.model)},
        "strategy": _strategy(release),
        "minReadySeconds": _READY_SECONDS,
        "progressDeadlineSeconds": int(release.ready_timeout.total_seconds()) + _READY_SECONDS,
        "revisionHistoryLimit": 5,
        "template": {
            "metadata": {"labels": selector(version.model), "annotations": version.annotations},
            "spec": _pod(version, release, settings),
        },
    }


def _strategy(release: Release) -> dict[str, Any]:
    if release.strategy == "recreate":
        return {"type": "Recreate"}
    return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def _pod(version: Version, release: Release, settings: Settings) -> dict[str, Any]:
    drain = int(release.drain_timeout.total_seconds())
    mounts = _mounts(version)
    beside = [
        *([_fetch(version, settings)] if version.package else []),
        *([_shipping(version, settings)] if version.keeps_records else []),
    ]
    server = {
        "name": "server",
        "image": version.image,
        "command": [
            "python", "-m", "serving", f"--package={MODEL}", f"--name={version.model}", f"--version={version.version}",
            f"--run-id={version.run_id}", f"--dataset-sha256={version.dataset_sha256}",
            "--host=0.0.0.0", f"--port={PORT}", f"--drain-seconds={drain}", *_recording(version),
        ],
        # one core answers one request; more servers answer more
        "env": [
            {"name": "OMP_NUM_THREADS", "value": "1"}, {"name": names.MODEL_KEYS, "value": settings.model_keys},
        ],
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "resources": _resources(settings),
        # It starts for as long as the release waits: what ends it is the release's own verdict, not the kubelet's.
        "startupProbe": _probe("/readyz", 1, failures=2 * int(release.ready_timeout.total_seconds())),
        "readinessProbe": _probe("/readyz", 2, failures=3),
        "livenessProbe": _probe("/healthz", 10, failures=6),
        "lifecycle": {"preStop": {"sleep": {"seconds": UNROUTE_SECONDS}}},
        "securityContext": RESTRICTED_CONTAINER,
        "volumeMounts": mounts,
    }  # fmt: skip
    return {
        "serviceAccountName": version.model,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": UNROUTE_SECONDS + drain + _MARGIN_SECONDS,
        "securityContext": RESTRICTED_POD,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(version.model)},
                "matchLabelKeys": ["pod-template-hash"],
            }
        ],
        **({"initContainers": beside} if beside else {}),
        "containers": [server],
        "volumes": [{"name": mount["name"], "emptyDir": {}} for mount in mounts],
    }


def _fetch(version: Version, settings: Settings) -> dict[str, Any]:
    """Fetch the package before the server starts: the server has no credentials, and a restart needs no store."""
    return {
        "name": "fetch",
        "image": version.image,
        "command": ["python", "-m", "serving.fetch", version.package, MODEL, f"--sha256={version.package_sha256}"],
        "env": _credentials(settings),
        "resources": _resources(settings),
        "securityContext": RESTRICTED_CONTAINER,
        "volumeMounts": _mounts(version),
    }


def _recording(version: Version) -> list[str]:
    if not version.keeps_records:
        return []
    inputs = ["--record-inputs"] if version.record_inputs else []
    return [f"--records={RECORDS}", f"--record-share={version.record_share}", *inputs]


def _shipping(version: Version, settings: Settings) -> dict[str, Any]:
    """Bring records to the store, beside the server and after it: the kubelet ends a container of this kind last."""
    memory = f"{_SHIPPING_MIB}Mi"
    return {
        "name": "records",
        "image": version.image,
        "command": ["python", "-m", "serving.shipping", RECORDS, version.records_uri],
        "restartPolicy": "Always",
        "env": _credentials(settings),
        "resources": {"requests": {"cpu": "10m", "memory": memory}, "limits": {"memory": memory}},
        "securityContext": RESTRICTED_CONTAINER,
        "volumeMounts": _mounts(version),
    }


def _credentials(settings: Settings) -> list[dict[str, Any]]:
    secret = names.STAGE_SECRET.format(stage=SERVING)
    env: list[dict[str, Any]] = [
        {
            "name": name,
            "valueFrom": {"secretKeyRef": {"name": secret, "key": variable(name.lower()), "optional": True}},
        }
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    ]
    env.append({"name": "AWS_DEFAULT_REGION", "value": settings.s3_region or DEFAULT_REGION})
    if settings.s3_endpoint:
        env.append({"name": "AWS_ENDPOINT_URL_S3", "value": settings.s3_endpoint})
    return env


def _mounts(version: Version) -> list[dict[str, Any]]:
    scratch = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108  the container's own
    model = {"name": "model", "mountPath": MODEL}
    records = {"name": "records", "mountPath": RECORDS}
    return [scratch, *([model] if version.package else []), *([records] if version.keeps_records else [])]


def _resources(settings: Settings) -> dict[str, Any]:
    # no limit of CPU: it would slow the start, and answers, while the node has time to spare
    memory = f"{settings.serving_memory}Mi"
    return {"requests": {"cpu": f"{settings.serving_cpu}m", "memory": memory}, "limits": {"memory": memory}}


def _probe(path: str, period: int, *, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "http"}, "periodSeconds": period, "timeoutSeconds": 5,
        "failureThreshold": failures,
    }  # fmt: skip


def _service(version: Version) -> dict[str, Any]:
    return {
        "selector": selector(version.model),
        "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
    }


def _disruption(version: Version) -> dict[str, Any]:
    # at most one at a time, and so also where there is only one: a node can always be drained
    return {"maxUnavailable": 1, "selector": {"matchLabels": selector(version.model)}}


def _scaling(version: Version, release: Release, settings: Settings) -> dict[str, Any]:
    kind = "Rollout" if release.gradual else "Deployment"
    utilization = {"type": "Utilization", "averageUtilization": settings.serving_cpu_percent}
    return {
        "scaleTargetRef": {"apiVersion": VERSIONS[kind], "kind": kind, "name": version.model},
        "minReplicas": settings.serving_min_replicas,
        "maxReplicas": max(settings.serving_min_replicas, settings.serving_max_replicas),
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": utilization}}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": _SCALE_IN_SECONDS}},
    }


def _confined(version: Version, settings: Settings, namespace: str) -> list[Object]:
    """Let anyone ask, and let the pod fetch its model and keep records; it reaches nothing else, least of all the API
    server.
    """
    egress: list[dict[str, Any]] = []
    if version.package or version.keeps_records:
        names_of_hosts = [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
        egress = [{"ports": names_of_hosts}, *(settings.store_egress or [{"ports": [_store_port(settings)]}])]
    spec = {
        "podSelector": {"matchLabels": selector(version.model)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"ports": [{"port": PORT, "protocol": "TCP"}]}],
        "egress": egress,
    }
    return [_named("NetworkPolicy", version.model, namespace, spec)]


def _store_port(settings: Settings) -> dict[str, Any]:
    parts = urlsplit(settings.s3_endpoint or "https://s3.amazonaws.com")
    return {"port": parts.port or (80 if parts.scheme == "http" else 443), "protocol": "TCP"}
