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

FORMAT = 2
"""Version of the state file; another one is refused, never guessed at."""

COMPLETED = ("Succeeded", "Failed", "Error")
FULFILLED = (*COMPLETED, "Skipped", "Omitted")
BAD = ("Failed", "Error")


@dataclass(frozen=True, slots=True)
class Node:
    """One node of Argo's tree: a pod, a suspension, what stands for several of them, or a task that never ran."""

    id: str
    name: str
    display_name: str
    type: str
    phase: str
    message: str = ""
    template: str = ""
    """Its name; ``object/name`` when it is another WorkflowTemplate's."""
    boundary: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    exit_code: str | None = None
    result: str | None = None
    """What it wrote to its standard output, if somebody asks for it."""
    children: tuple[str, ...] = ()
    outbound: tuple[str, ...] = ()
    """Where what follows a DAG or steps is attached."""
    flags: tuple[str, ...] = ()
    """``retried``: it is one attempt of a Retry node; ``hooked``: it belongs to an exit handler."""
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

    @property
    def suspended(self) -> tuple[str, ...]:
        """Display names of the nodes that wait for somebody's answer or for their time."""
        return tuple(n.display_name for n in self.nodes.values() if n.type == "Suspend" and n.phase == "Running")

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
    from contracts.errors import ConfigError  # with pydantic behind it, dearer than a step's start

    path = run_folder(home, name) / "state.json"
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no run {name} in {home}", remedy="`retrain status --all` lists them") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
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


def requeue(run: RunState) -> RunState:
    """Return the run with its running pods put back: they start again under the same names."""
    nodes = {
        key: replace(node, phase="Pending", started=None, message="", pid=None, pid_started="")
        if node.type == "Pod" and not node.fulfilled
        else node
        for key, node in run.nodes.items()
    }
    return replace(run, interrupted=False, message="", nodes=nodes)


def write(home: Path, run: RunState) -> None:
    """Replace the run's file; a reader sees the old one or the new one, whole."""
    folder = run_folder(home, run.name)
    part = folder / ".state.json.part"
    write_private(part, to_json(run))
    os.replace(part, folder / "state.json")  # noqa: PTH105  on every transition; a third of the time of Path.replace


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)


# as JSON: Argo's own names, and what resuming needs under "local"

_NODE = {
    "id": "id", "name": "name", "display_name": "displayName", "type": "type", "phase": "phase", "message": "message",
    "boundary": "boundaryID", "started": "startedAt", "finished": "finishedAt", "children": "children",
    "outbound": "outboundNodes",
}  # fmt: skip
_STATUS = {"phase": "phase", "message": "message", "started": "startedAt", "finished": "finishedAt"}
_LOCAL = {"not_applied": "notApplied", "digest": "digest", "interrupted": "interrupted"}
_PROCESS = {"pid": "pid", "pid_started": "pidStarted"}
_SCOPE = "namespaced/"
"""How Argo says that a template is a WorkflowTemplate's own."""


def to_json(run: RunState) -> str:
    """Write a run as Argo's workflow status, plus what resuming needs."""
    return json.dumps(
        {
            "format": FORMAT,
            "metadata": {"name": run.name, "uid": run.uid, "creationTimestamp": _plain(run.created)},
            "spec": {
                "workflowTemplateRef": {"name": run.workflow_template},
                "entrypoint": run.entrypoint,
                "arguments": _parameters(run.parameters),
            },
            "status": _fields(run, _STATUS)
            | _filled(outputs=_parameters(run.outputs))
            | {"nodes": {node.id: _node_json(node, run) for node in run.nodes.values()}},
            "local": _fields(run, _LOCAL),
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
    status, spec = data["status"], data["spec"]
    return RunState(
        name=data["metadata"]["name"],
        uid=data["metadata"]["uid"],
        workflow_template=spec["workflowTemplateRef"]["name"],
        entrypoint=spec["entrypoint"],
        parameters=_read_parameters(spec["arguments"]),
        created=datetime.fromisoformat(data["metadata"]["creationTimestamp"]),
        outputs=_read_parameters(status.get("outputs", {})),
        nodes={key: _read_node(node) for key, node in status["nodes"].items()},
        **_read_fields(status, _STATUS),
        **_read_fields(data["local"], _LOCAL),
    )


def _node_json(node: Node, run: RunState) -> dict[str, Any]:
    owner, _, name = node.template.rpartition("/")
    around = run.nodes[node.boundary].template.rpartition("/")[0] if node.boundary in run.nodes else ""
    return _fields(node, _NODE) | _filled(
        templateName=name if owner == around else None,
        templateRef={"name": owner, "template": name} if owner not in ("", around) else None,
        templateScope=f"{_SCOPE}{owner}" if owner and owner == around else None,
        inputs=_parameters(node.inputs),
        outputs=_parameters(node.outputs) | _filled(exitCode=node.exit_code) | _result(node.result),
        nodeFlag=dict.fromkeys(node.flags, True),
        local=_fields(node, _PROCESS),
    )


def _read_node(data: dict[str, Any]) -> Node:
    reference, outputs = data.get("templateRef"), data.get("outputs", {})
    owner = reference["name"] if reference else data.get("templateScope", "").removeprefix(_SCOPE)
    name = reference["template"] if reference else data.get("templateName", "")
    return Node(
        template=f"{owner}/{name}" if owner else name,
        inputs=_read_parameters(data.get("inputs", {})),
        outputs=_read_parameters(outputs),
        exit_code=outputs.get("exitCode"),
        result=outputs.get("result"),
        flags=tuple(data.get("nodeFlag", ())),
        **_read_fields(data, _NODE),
        **_read_fields(data.get("local", {}), _PROCESS),
    )


def _fields(owner: Node | RunState, names: Mapping[str, str]) -> dict[str, Any]:
    return _filled(**{key: _plain(getattr(owner, name)) for name, key in names.items()})


def _plain(value: Any) -> Any:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value


def _read_fields(data: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    found = {name: data[key] for name, key in names.items() if key in data}
    moments = {name: datetime.fromisoformat(found[name]) for name in ("started", "finished") if name in found}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()} | moments


def _filled(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value not in (None, "", (), {}, [], False)}


def _result(result: str | None) -> dict[str, str]:
    return {} if result is None else {"result": result}


def _parameters(values: Mapping[str, str]) -> dict[str, Any]:
    return {"parameters": [{"name": name, "value": value} for name, value in values.items()]} if values else {}


def _read_parameters(data: Mapping[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in data.get("parameters", ())}


@lru_cache(maxsize=8192)
def _fnv32a(text: str) -> int:
    """Hash as Go's ``hash/fnv`` New32a."""
    return reduce(lambda value, byte: (value ^ byte) * 0x01000193 & 0xFFFFFFFF, text.encode(), 0x811C9DC5)
