"""Runs on a cluster, read from their Workflow objects into the same state as a run at the desk.

Called by `submit`, `status` and `logs`.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from contracts import names
from contracts.access import ASK
from contracts.errors import ConfigError, NetworkError
from contracts.settings import variable
from steps.waiting import Waited, waited_for
from workflows.cli.display import stage_pods
from workflows.cli.summary import Records
from workflows.cluster.connection import Namespace
from workflows.cluster.errand import answer
from workflows.local.state import Node, RunState

_LOOK_SECONDS = 1.0
"""The kubelet and Argo's executor look once a second too."""
_AWAY_SECONDS = 120
"""How long the API server may be away while a run is followed."""
_NODE = "workflows.argoproj.io/node-id"
_OF_WORKFLOW = "workflows.argoproj.io/workflow"

_EXECUTOR = re.compile(r"time=\S+ level=\w+ .*\bargo=true\b|Error: exit status \d+$")
"""What Argo's executor writes between the lines of the stage."""

_READ = """
import json
from contracts.settings import load_settings
from steps.storage import Storage
storage = Storage(load_settings())
read = lambda uri: storage.read(uri).decode(errors="replace") if storage.exists(uri) else None
print(json.dumps(patiently(lambda: {uri: read(uri) for uri in sys.argv[1:]})))
"""


def load(namespace: Namespace, name: str = "") -> dict[str, Any]:
    """Return a run's Workflow, by default the newest's.

    Raises
    ------
    ConfigError
        There is none.
    """
    if not name:
        runs = find(namespace)
        if not runs:
            raise ConfigError(f"no runs in {namespace.namespace}", remedy="`retrain submit FILE` makes one")
        return runs[0]
    found = namespace.get("Workflow", name)
    if found is None:
        raise ConfigError(
            f"no run {name} in {namespace.namespace}", remedy=f"`retrain status -n {namespace.namespace} --all`"
        )
    return found


def find(namespace: Namespace) -> list[dict[str, Any]]:
    """Return the Workflows of all pipelines, the newest first.

    Raises
    ------
    ConfigError
        There are none, and no platform either.
    """
    ours = [w for w in namespace.select("Workflow") if names.LABEL_PIPELINE in w["metadata"].get("labels", {})]
    if not ours:
        _ = namespace.settings  # which says where there is no platform
    return sorted(ours, key=lambda workflow: str(workflow["metadata"]["creationTimestamp"]), reverse=True)


def run_state(workflow: Mapping[str, Any]) -> RunState:
    """Read a Workflow object as the state of a run."""
    spec, status, metadata = workflow["spec"], workflow.get("status", {}), workflow["metadata"]
    return RunState(
        name=metadata["name"],
        uid=metadata["uid"],
        workflow_template=spec.get("workflowTemplateRef", {}).get("name", ""),
        entrypoint=spec.get("entrypoint") or status.get("storedWorkflowTemplateSpec", {}).get("entrypoint", ""),
        parameters=_values(spec.get("arguments")),
        created=datetime.fromisoformat(metadata["creationTimestamp"]),
        phase=status.get("phase") or "Pending",
        message=status.get("message") or "",
        started=_moment(status.get("startedAt")),
        finished=_moment(status.get("finishedAt")),
        nodes={key: _node(node) for key, node in _nodes(status).items()},
        outputs=_values(status.get("outputs")),
    )


def follow(namespace: Namespace, name: str, on_change: Callable[[RunState], None]) -> RunState:
    """Look at a run until it has ended, its exit handler too; an API server that is away for a while is waited for.

    Raises
    ------
    ConfigError
        It was removed.
    NetworkError
        The API server stays away.
    """
    seen, silent_since = "", None
    while True:
        asked = time.monotonic()
        try:
            workflow = load(namespace, name)
        except NetworkError:
            silent_since = silent_since or asked
            if time.monotonic() - silent_since > _AWAY_SECONDS:
                raise
        else:
            silent_since = None
            run = run_state(workflow)
            if workflow["metadata"]["resourceVersion"] != seen:
                seen = workflow["metadata"]["resourceVersion"]
                on_change(run)
            if run.finished is not None:
                return run
        time.sleep(_LOOK_SECONDS)


def records(namespace: Namespace, options: str = "") -> Records:
    """Return where what the runs left can be read: the store through a pod, servers through the API server."""

    def read(uris: Sequence[str]) -> dict[str, bytes]:
        if not uris:
            return {}
        found = answer(namespace, ASK, _READ, *uris)
        return {uri: text.encode() for uri, text in found.items() if text is not None}

    def describe(url: str) -> Any:
        try:
            return json.loads(namespace.fetch(f"{namespace.service(url)}/openapi.json"))
        except (ConfigError, NetworkError) as error:
            raise ValueError(error.message) from error

    def waited(node: str) -> Waited | None:
        pods = [p for p in namespace.select("Pod") if p["metadata"].get("annotations", {}).get(_NODE) == node]
        return waited_for(namespace, pods[0]["metadata"]["name"]) if pods else None

    return Records(namespace.settings[variable("store")].rstrip("/"), read, describe, waited, options)


def log_lines(namespace: Namespace, workflow: Mapping[str, Any], stage: str = "") -> Iterator[str]:
    """Yield ``pod: line`` of what a run's stages wrote, stage by stage; of pods that are gone what the bucket keeps.

    Raises
    ------
    ConfigError
        No such stage ran.
    """
    run = run_state(workflow)
    wanted = stage_pods(run, stage)
    pods = {
        pod["metadata"].get("annotations", {}).get(_NODE): pod["metadata"]["name"]
        for pod in namespace.select("Pod", {_OF_WORKFLOW: run.name})
    }
    kept = {node.id: uri for node in wanted if node.id not in pods and (uri := archived_log(workflow, node.id))}
    texts = records(namespace).read(list(kept.values())) if kept else {}
    for node in sorted(wanted, key=lambda node: node.started or run.created):
        if node.phase == "Pending":
            lines = [f"has not started: {node.message or 'its pod is being made'}"]
        elif node.id in pods:
            lines = namespace.log(pods[node.id], "main", previous=False, lines=1_000_000)
        elif kept.get(node.id, "") in texts:
            lines = texts[kept[node.id]].decode(errors="replace").splitlines()
        else:
            lines = ["(its pod is gone, and its log was not kept: docs/cluster.md says how it is)"]
        yield from (f"{node.display_name}: {line}" for line in lines if not _EXECUTOR.match(line))


def archived_log(workflow: Mapping[str, Any], node: str) -> str:
    """Return the URI of a pod's log in the controller's artifact repository, empty when it keeps none."""
    repository = workflow["status"].get("artifactRepositoryRef", {}).get("artifactRepository", {}).get("s3", {})
    artifacts = _nodes(workflow["status"]).get(node, {}).get("outputs", {}).get("artifacts", [])
    for artifact in artifacts:
        place = artifact.get("s3", {})
        bucket = place.get("bucket") or repository.get("bucket")
        if artifact["name"] == "main-logs" and bucket and place.get("key"):
            return f"s3://{bucket}/{place['key']}"
    return ""


def _nodes(status: Mapping[str, Any]) -> dict[str, Any]:
    if packed := status.get("compressedNodes"):  # what would be too large for etcd
        return dict(json.loads(gzip.decompress(base64.b64decode(packed))))
    return dict(status.get("nodes") or {})


def _node(node: Mapping[str, Any]) -> Node:
    outputs = node.get("outputs") or {}
    return Node(
        id=node["id"],
        name=node["name"],
        display_name=node["displayName"],
        type=node["type"],
        phase=node.get("phase") or "Pending",
        message=node.get("message") or "",
        template=node.get("templateName") or "",
        boundary=node.get("boundaryID") or "",
        started=_moment(node.get("startedAt")),
        finished=_moment(node.get("finishedAt")),
        inputs=_values(node.get("inputs")),
        outputs=_values(outputs),
        exit_code=outputs.get("exitCode"),
        result=outputs.get("result"),
        children=tuple(node.get("children") or ()),
        outbound=tuple(node.get("outboundNodes") or ()),
    )


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _values(given: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the parameters that have a value: one that a stage was to write may have none."""
    return {p["name"]: str(p["value"]) for p in (given or {}).get("parameters", ()) if "value" in p}
