"""A run: its nodes as Argo names them, and the one file they are kept in.

``<home>/runs/<name>/state.json`` is written after every transition, whole and atomically, by the process that holds the
run's lock (`write`); everybody else reads it.  Beside it lie ``manifest.json`` (frozen at the start, Secrets by name
only) and ``logs/<node id>.log``.  Parameters, outputs and ConfigMaps are kept as they are: all is for the owner alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

from workflows.local.locks import Lock

FORMAT = 1
"""Version of the state file; another one is refused, never guessed at."""

COMPLETED = ("Succeeded", "Failed", "Error")
FULFILLED = (*COMPLETED, "Skipped", "Omitted")
BAD = ("Failed", "Error")


@dataclass(frozen=True, slots=True)
class Node:
    """One node of Argo's tree: a pod, an attempt's parent, a DAG, or a task that was skipped or omitted."""

    id: str
    name: str
    display_name: str
    type: str
    phase: str
    message: str = ""
    template: str = ""
    boundary: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    exit_code: str | None = None
    children: tuple[str, ...] = ()
    outbound: tuple[str, ...] = ()
    """Where what follows a DAG is attached."""
    retried: bool = False
    """It is one attempt of a Retry node."""
    pid: int | None = None
    pid_started: str = ""
    """Identify the process of a running pod, so that a leftover can be ended and no stranger."""

    @property
    def fulfilled(self) -> bool:
        """It will not change any more."""
        return self.phase in FULFILLED

    @property
    def completed(self) -> bool:
        """It ran to an end."""
        return self.phase in COMPLETED


@dataclass(frozen=True, slots=True)
class RunState:
    """One run as a whole.  A new value after each transition."""

    name: str
    uid: str
    workflow_template: str
    """Name of the object that was run."""
    entrypoint: str
    parameters: Mapping[str, str]
    created: datetime
    phase: str = "Pending"
    message: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    nodes: Mapping[str, Node] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    """Outputs with a `globalName`."""
    not_applied: tuple[str, ...] = ()
    """Fields of the manifest that only a cluster can honour."""
    digest: str = ""
    """What the caller knows this run by; see `find_unfinished`."""
    interrupted: bool = False
    """The runner was asked to stop; `resume` goes on from here."""

    @property
    def pipeline(self) -> str:
        """The pipeline's name, which its template bears."""
        return self.workflow_template

    def node_id(self, name: str) -> str:
        """Return the id that Argo gives a node of this name."""
        return self.name if name == self.name else f"{self.name}-{_fnv32a(name)}"


def run_folder(home: Path, name: str) -> Path:
    """Return where a run is kept."""
    return home / "runs" / name


def log_path(home: Path, name: str, node: Node) -> Path:
    """Return the file that takes what a pod writes."""
    return run_folder(home, name) / "logs" / f"{node.id}.log"


def is_running(home: Path, name: str) -> bool:
    """Tell whether a runner is at work on a run now."""
    return Lock(run_folder(home, name) / "lock").is_held()


def load(home: Path, name: str) -> RunState:
    """Read a run.

    Raises
    ------
    ConfigError
        There is no such run, or its file is of another format.
    """
    path = run_folder(home, name) / "state.json"
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _config_error(f"no run {name} in {home}", remedy="`retrain status --all` lists them") from None
    except (KeyError, TypeError, ValueError) as error:
        raise _config_error(
            f"{path} cannot be read: {error}", remedy="it is of another version of retrain, or damaged"
        ) from None


def list_runs(home: Path) -> list[RunState]:
    """Return all runs that can be read, the newest first."""
    from contracts.errors import ConfigError

    runs = []
    for path in (home / "runs").glob("*/state.json"):
        try:
            runs.append(load(home, path.parent.name))
        except ConfigError:
            continue  # one damaged run must not hide the others; `load` by its name says what is wrong
    return sorted(runs, key=lambda run: run.created, reverse=True)


def find_unfinished(home: Path, digest: str) -> str | None:
    """Return the newest run known by `digest` that no runner is at work on and that has not ended."""
    for run in list_runs(home):
        if run.digest == digest:
            return run.name if run.finished is None and not is_running(home, run.name) else None
    return None


def write(home: Path, run: RunState) -> None:
    """Replace the run's file; a reader sees the old one or the new one, whole."""
    folder = run_folder(home, run.name)
    part = folder / ".state.json.part"
    write_private(part, to_json(run))
    os.replace(part, folder / "state.json")  # noqa: PTH105  on every transition; a third of the time of Path.replace


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    with open(path, "w", encoding="utf-8", opener=_private) as file:
        file.write(text)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def to_json(run: RunState) -> str:
    """Write a run as Argo's workflow status, plus what resuming needs."""
    return json.dumps(
        {
            "format": FORMAT,
            "metadata": {"name": run.name, "uid": run.uid, "creationTimestamp": _moment(run.created)},
            "spec": {
                "workflowTemplateRef": {"name": run.workflow_template},
                "entrypoint": run.entrypoint,
                "arguments": _parameters(run.parameters),
            },
            "status": _filled(
                phase=run.phase,
                message=run.message,
                startedAt=_moment(run.started),
                finishedAt=_moment(run.finished),
                outputs=_parameters(run.outputs),
                nodes={node.id: _node_json(node) for node in run.nodes.values()},
            ),
            "local": {"notApplied": run.not_applied, "digest": run.digest, "interrupted": run.interrupted},
        },
        ensure_ascii=False,
    )


def from_json(text: str) -> RunState:
    """Read what `to_json` wrote.

    Raises
    ------
    ValueError, KeyError
        The text is something else.
    """
    data = json.loads(text)
    if data.get("format") != FORMAT:
        raise ValueError(f"format {data.get('format')!r}, this version reads {FORMAT}")
    status, spec, local = data["status"], data["spec"], data["local"]
    created = _read_moment(data["metadata"]["creationTimestamp"])
    if created is None:
        raise ValueError("no creationTimestamp")
    return RunState(
        name=data["metadata"]["name"],
        uid=data["metadata"]["uid"],
        workflow_template=spec["workflowTemplateRef"]["name"],
        entrypoint=spec["entrypoint"],
        parameters=_read_parameters(spec["arguments"]),
        created=created,
        phase=status["phase"],
        message=status.get("message", ""),
        started=_read_moment(status.get("startedAt")),
        finished=_read_moment(status.get("finishedAt")),
        nodes={key: _read_node(node) for key, node in status.get("nodes", {}).items()},
        outputs=_read_parameters(status.get("outputs", {})),
        not_applied=tuple(local["notApplied"]),
        digest=local["digest"],
        interrupted=local["interrupted"],
    )


def _node_json(node: Node) -> dict[str, Any]:
    return _filled(
        id=node.id,
        name=node.name,
        displayName=node.display_name,
        type=node.type,
        phase=node.phase,
        message=node.message,
        templateName=node.template,
        boundaryID=node.boundary,
        startedAt=_moment(node.started),
        finishedAt=_moment(node.finished),
        inputs=_parameters(node.inputs),
        outputs=_parameters(node.outputs) | _filled(exitCode=node.exit_code),
        children=node.children,
        outboundNodes=node.outbound,
        nodeFlag={"retried": True} if node.retried else None,
        local=_filled(pid=node.pid, pidStarted=node.pid_started),
    )


def _read_node(data: dict[str, Any]) -> Node:
    local = data.get("local", {})
    return Node(
        id=data["id"],
        name=data["name"],
        display_name=data["displayName"],
        type=data["type"],
        phase=data["phase"],
        message=data.get("message", ""),
        template=data.get("templateName", ""),
        boundary=data.get("boundaryID", ""),
        started=_read_moment(data.get("startedAt")),
        finished=_read_moment(data.get("finishedAt")),
        inputs=_read_parameters(data.get("inputs", {})),
        outputs=_read_parameters(data.get("outputs", {})),
        exit_code=data.get("outputs", {}).get("exitCode"),
        children=tuple(data.get("children", ())),
        outbound=tuple(data.get("outboundNodes", ())),
        retried="nodeFlag" in data,
        pid=local.get("pid"),
        pid_started=local.get("pidStarted", ""),
    )


def requeue(run: RunState) -> RunState:
    """Return the run with its running pods put back: they start again under the same names."""
    return replace(
        run,
        interrupted=False,
        message="",
        nodes={
            key: replace(node, phase="Pending", started=None, message="", pid=None, pid_started="")
            if node.type == "Pod" and not node.fulfilled
            else node
            for key, node in run.nodes.items()
        },
    )


def _filled(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value not in (None, "", (), {}, [])}


def _parameters(values: Mapping[str, str]) -> dict[str, Any]:
    return {"parameters": [{"name": name, "value": value} for name, value in values.items()]} if values else {}


def _read_parameters(data: Mapping[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in data.get("parameters", ())}


def _moment(value: datetime | None) -> str | None:
    return None if value is None else value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _read_moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


@lru_cache(maxsize=8192)
def _fnv32a(text: str) -> int:
    """Hash as Go's ``hash/fnv`` New32a."""
    return reduce(lambda value, byte: (value ^ byte) * 0x01000193 & 0xFFFFFFFF, text.encode(), 0x811C9DC5)


def _config_error(message: str, remedy: str) -> Exception:
    from contracts.errors import ConfigError  # with pydantic behind it, dearer than a step's start

    return ConfigError(message, remedy=remedy)
