"""The objects by which Argo Rollouts and Traefik replace a version step by step: pure.

Called by `steps.rollout.objects` for the strategies canary and blue-green.  The Deployment holds the pods' template and
has no pods of its own; the Rollout makes them from it.  Callers who ask Traefik for the host ``<pipeline>.<namespace>``
are shared out by weight; who asks the Service gets the version that serves.
"""

from __future__ import annotations

from typing import Any

from contracts.pipeline.operation import Release
from steps.rollout.analysis import COUNT, GOOD, NEW, OLD, measurements

HASH = "rollouts-pod-template-hash"
"""Label by which Argo Rollouts tells pods of one template from those of another."""
_ROLLBACKS = 3
"""Template revisions that are gone back to at once: they served before."""
_ABORTED_SECONDS = 5
"""How long pods of a version that was taken back stay: until Traefik knows that they have no share.  Left longer, its
kept connections lead a share of the next canary to them.
"""


def next_service(name: str) -> str:
    """Return the name of the Service of a version that is to follow."""
    return f"{name}-next"


def rollout(name: str, release: Release, labels: dict[str, str], ready_seconds: int) -> dict[str, Any]:
    """Return the Rollout's spec.  No `replicas`: they are the autoscaler's.

    Parameters
    ----------
    labels
        Those by which the pipeline's serving pods are found.
    ready_seconds
        How long a pod must be ready before it counts.
    """
    return {
        "selector": {"matchLabels": labels},
        "workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name, "scaleDown": "never"},
        "minReadySeconds": ready_seconds,
        "progressDeadlineSeconds": int(release.ready_timeout.total_seconds()) + ready_seconds,
        "progressDeadlineAbort": True,
        "revisionHistoryLimit": 5,
        "rollbackWindow": {"revisions": _ROLLBACKS},
        "strategy": {"canary": _canary(name, release)}
        if release.strategy == "canary"
        else {"blueGreen": _blue_green(name, release)},
    }


def weights(name: str) -> dict[str, Any]:
    """Return the TraefikService's spec as it begins; from then on Argo Rollouts sets the weights."""
    shared = ((name, 100), (next_service(name), 0))
    return {"weighted": {"services": [{**service(each), "weight": weight} for each, weight in shared]}}


def service(name: str) -> dict[str, Any]:
    """Return a Service as Traefik is to ask it: by its own address.

    Traefik would else look up pods, drop the whole route while a canary that crashed has none, and ask pods that went.
    """
    return {"name": name, "port": 80, "nativeLB": True}


def route(name: str, namespace: str, strategy: str) -> dict[str, Any]:
    """Return the IngressRoute's spec: to the TraefikService that shares requests out, or to the Service.

    With blue-green Traefik looks up pods: connections that it keeps to the Service's address would lead to those of
    before, and nothing be measured of the new ones.
    """
    hosts = (f"{name}.{namespace}", f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.cluster.local")
    by_pods = {"name": name, "port": 80}
    to = {"canary": {"kind": "TraefikService", "name": name}, "blue-green": by_pods}.get(strategy, service(name))
    return {"routes": [{"kind": "Rule", "match": " || ".join(f"Host(`{host}`)" for host in hosts), "services": [to]}]}


def _canary(name: str, release: Release) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    for step in release.canary_steps:
        steps += [{"setWeight": step.weight}, {"analysis": _analysis(name, *measurements(release.analysis, step.hold))}]
    return {
        "stableService": name,
        "canaryService": next_service(name),
        "trafficRouting": {"traefik": {"weightedTraefikServiceName": name}},
        "abortScaleDownDelaySeconds": _ABORTED_SECONDS,
        "maxUnavailable": 0,
        "steps": steps,
    }


def _blue_green(name: str, release: Release) -> dict[str, Any]:
    return {
        "activeService": name,
        "previewService": next_service(name),
        "autoPromotionEnabled": True,
        "postPromotionAnalysis": _analysis(name, *measurements(release.analysis, release.analysis.hold)),
    }


def _analysis(name: str, good: int, count: int) -> dict[str, Any]:
    return {
        "templates": [{"templateName": name}],
        "args": [
            {"name": NEW, "valueFrom": {"podTemplateHashValue": "Latest"}},
            {"name": OLD, "valueFrom": {"podTemplateHashValue": "Stable"}},
            {"name": GOOD, "value": str(good)},
            {"name": COUNT, "value": str(count)},
        ],
    }
