"""Small manifests whose containers are shell scripts, and questions about a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workflows.local.state import Node, RunState

Manifest = dict[str, Any]
IMAGES: dict[str, list[str]] = {"sh": []}


def pod(name: str, script: str, **more: Any) -> Manifest:
    """Return a container template that runs a shell script; outputs lie in /out."""
    outputs = more.pop("outputs", [])
    container = {"image": "sh", "command": ["sh", "-c"], "args": [script.replace("/out/", "$OUT/")]}
    container["env"] = [{"name": "OUT", "value": "/out"}, *more.pop("env", [])]
    container["volumeMounts"] = [{"name": "out", "mountPath": "/out"}, *more.pop("mounts", [])]
    body: Manifest = {
        "name": name,
        "container": container,
        "volumes": [{"name": "out", "emptyDir": {}}, *more.pop("volumes", [])],
    }
    if outputs:
        body["outputs"] = {
            "parameters": [
                o if isinstance(o, dict) else {"name": o, "valueFrom": {"path": f"/out/{o}"}} for o in outputs
            ]
        }
    if "inputs" in more:
        body["inputs"] = {"parameters": [i if isinstance(i, dict) else {"name": i} for i in more.pop("inputs")]}
    return {**body, **more}


def counted(name: str, mark: Path, script: str = "true", **more: Any) -> Manifest:
    """Return a template that notes each of its starts in a file before its script."""
    return pod(name, f"echo x >>{mark}/{name}; {script}", **more)


def waits(mark: Path) -> str:
    """Return a script that leaves its process ids and goes on only once there is a file ``go``."""
    # Kubernetes reads $$ as an escaped $, so the shell's own $$ is written twice.
    return f"[ -e {mark}/go ] || {{ echo $$$$ >{mark}/pid; sleep 60 & echo $! >{mark}/child; wait; }}"


def task(name: str, template: str = "", **more: Any) -> Manifest:
    """Return a DAG task; its arguments as keywords of `given`."""
    given = more.pop("given", {})
    arguments = {"arguments": {"parameters": [{"name": k, "value": v} for k, v in given.items()]}} if given else {}
    return {"name": name, "template": template or name, **arguments, **more}


def workflow(*templates: Manifest, tasks: Sequence[Manifest] = (), **spec: Any) -> Manifest:
    """Return a WorkflowTemplate whose entrypoint `main` is a DAG of `tasks`, or the first template."""
    dag = [{"name": "main", "dag": {"tasks": list(tasks), **spec.pop("dag", {})}}] if tasks else []
    arguments = spec.pop("parameters", {})
    if arguments:
        spec["arguments"] = {
            "parameters": [v if isinstance(v, dict) else {"name": k, "value": v} for k, v in arguments.items()]
        }
    entrypoint = "main" if tasks else templates[0]["name"]
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "WorkflowTemplate",
        "metadata": {"name": "wf"},
        "spec": {"entrypoint": entrypoint, "templates": [*templates, *dag], **spec},
    }


def phases(run: RunState) -> dict[str, str]:
    """Return the phase of each node by its display name."""
    return {node.display_name: node.phase for node in run.nodes.values()}


def node(run: RunState, display_name: str) -> Node:
    return next(node for node in run.nodes.values() if node.display_name == display_name)


def starts(mark: Path, name: str) -> int:
    """Return how often a `counted` template began."""
    path = mark / name
    return path.read_text().count("x") if path.exists() else 0


def wait_for(condition: Callable[[], object], seconds: float = 15) -> None:
    """Ask until it is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
