"""Argo's controllers in a cluster, and whether their settings are the chart's.  Called by `retrain doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from workflows.cluster.connection import Namespace

_NAME, _SETTINGS = "workflow-controller", "workflow-controller-configmap"


@dataclass(frozen=True)
class Controller:
    """One workflow controller."""

    namespace: str
    image: str
    ready: bool
    ours: bool
    """Its settings come from the chart (`argo.enabled`); those of another's are left alone."""


def controllers(place: Namespace) -> Iterator[Controller]:
    """Yield the controllers of the cluster, under their upstream name.

    Raises
    ------
    ConfigError
        The kubeconfig's user may not look beyond the namespace.
    """
    for found in _items(place, f"/apis/apps/v1/deployments?fieldSelector=metadata.name%3D{_NAME}"):
        namespace = found["metadata"]["namespace"]
        selector = f"fieldSelector=metadata.name%3D{_SETTINGS}"
        settings = _items(place, f"/api/v1/namespaces/{namespace}/configmaps?{selector}")
        labels = settings[0]["metadata"].get("labels", {}) if settings else {}
        yield Controller(
            namespace=namespace,
            image=found["spec"]["template"]["spec"]["containers"][0]["image"],
            ready=bool(found.get("status", {}).get("readyReplicas", 0)),
            ours=labels.get("app.kubernetes.io/part-of") == "retrain",
        )


def _items(place: Namespace, path: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(place.fetch(path))["items"]
    return items
