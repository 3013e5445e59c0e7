"""A run: its nodes as Argo names them, and the one file they are kept in.

``<home>/runs/<name>/state.json`` is written after every transition, whole and atomically, by the process that holds the
run's lock (`StateFile.write`); everybody else reads it.  Beside it lie ``manifest.json`` (frozen at the start, Secrets
by name only) and ``logs/<node id>.log``.  Parameters, outputs and ConfigMaps are kept as they are: all is for the owner
alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any, NamedTuple

from workflows.local.locks import Lock

FORMAT = 3  # of the state file; another one is refused, never guessed at
COMPLETED = ("Succeeded", "Failed", "Error")
FULFILLED = (*COMPLETED, "Skipped", "Omitted")
BAD = ("Failed", "Error")


class Node(NamedTuple):
    """One node of Argo's tree: a pod, a suspension, what stands for several of them, or a task that never ran."""

    id: str
    name: str
    display_name: str
    type: str
    phase: str
    message: str = ""
    template: str = ""  # its name; ``object/name`` when it is another WorkflowTemplate's
    boundary: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    inputs: Mapping[str, str] = {}
    outputs: Mapping[str, str] = {}
    exit_code: str | None = None
    result: str | None = None  # what it wrote to its standard output, if somebody asks for it
    children: tuple[str, ...] = ()
    outbound: tuple[str, ...] = ()  # where what follows a DAG or steps is attached
    retried: bool = False  # it is one attempt of a Retry node
    hooked: bool = False  # it belongs to an exit handler
    pid: int | None = None
    pid_started: str = ""  # with the id: the process of a running pod, so that a leftover can be ended and no stranger

    @property
    def fulfilled(self) -> bool:
        """It will not change any more."""
        return self.phase in FULFILLED


class RunState(NamedTuple):
    """One run as a whole.  A new value after each transition."""

    name: str
    uid: str
    workflow_template: str  # name of the object that was run
    entrypoint: str
    parameters: Mapping[str, str]
    created: datetime
    phase: str
    message: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    nodes: Mapping[str, Node] = {}
    outputs: Mapping[str, str] = {}  # those with a `globalName`
    not_applied: tuple[str, ...] = ()  # fields of the manifest that only a cluster can honour
    digest: str = ""  # what the caller knows this run by; see `find_unfinished`
    interrupted: bool = False  # the runner was asked to stop; `resume` goes on from here

    @property
    def pipeline(self) -> str:
        """The pipeline's name, which its template bears."""
        return self.workflow_template

    @property
    def suspended(self) -> dict[str, str]:
        """Nodes that wait for somebody's answer or for their time: display name, or name if several bear it, to id."""
        waiting = [node for node in self.nodes.values() if node.type == "Suspend" and node.phase == "Running"]
        shown = [node.display_name for node in waiting]
        return {n.display_name if shown.count(n.display_name) == 1 else n.name: n.id for n in waiting}

    def node_id(self, name: str) -> str:
        """Return the id that Argo gives a node of this name."""
        return self.name if name == self.name else f"{self.name}-{_fnv32a(name)}"

    def with_node(self, node: Node) -> RunState:
        """Return the run with this node in the place of the one of its id."""
        return self._replace(nodes={**self.nodes, node.id: node})


# on disk


def run_folder(home: Path, name: str) -> Path:
    """Return where a run is kept."""
    return home / "runs" / name


def log_path(home: Path, name: str, node: Node) -> Path:
    """Return the file that takes what a pod writes."""
    return run_folder(home, name) / "logs" / f"{node.id}.log"


def is_running(home: Path, name: str) -> bool:
    """Tell whether a runner is at work on a run now."""
    return Lock(run_folder(home, name) / "lock").is_held()


def standstill(home: Path, run: RunState) -> str:
    """Say why a run that has not ended goes no further; empty for one that has, or that a runner is at work on."""
    if run.finished is not None or is_running(home, run.name):
        return ""
    return f"waits for {', '.join(run.suspended)}" if run.suspended else "was cut off"


def load(home: Path, name: str) -> RunState:
    """Read a run.  Raises `ConfigError` where there is none, or its file is of another format."""
    from contracts.errors import ConfigError  # with pydantic behind it, dearer than a step's start

    path = run_folder(home, name) / "state.json"
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no run {name} in {home}", remedy="`retrain status --all` lists them") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
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


def find_unfinished(home: Path, digest: str, since: datetime | None = None) -> str | None:
    """Return the newest run known by `digest`, if it began `since`, has not ended and no runner is at work on it."""
    for run in list_runs(home):
        if run.digest == digest:
            over = run.finished is not None or (since is not None and run.created < since)
            return None if over or is_running(home, run.name) else run.name
    return None


class StateFile:
    """A run's file.  Each node's text is kept, so that writing costs what has changed and not all that there is."""

    def __init__(self, home: Path, name: str) -> None:
        self._path = str(run_folder(home, name) / "state.json")
        self._texts: dict[str, tuple[Node, str]] = {}

    def write(self, run: RunState) -> None:
        """Replace the file; a reader sees the old one or the new one, whole."""
        write_private(f"{self._path}.part", to_json(run, self._texts))
        os.replace(f"{self._path}.part", self._path)  # noqa: PTH105  on every transition; a third of Path.replace


def write_private(path: str | Path, text: str) -> None:
    """Write a file that only its owner may read."""
    with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)


# as JSON: attribute to its place, which is Argo's own, or below "local" where only resuming needs it

_NODE = {
    "id": "id", "name": "name", "display_name": "displayName", "type": "type", "phase": "phase", "message": "message",
    "boundary": "boundaryID", "started": "startedAt", "finished": "finishedAt", "inputs": "inputs.parameters",
    "outputs": "outputs.parameters", "exit_code": "outputs.exitCode", "result": "outputs.result",
    "children": "children", "outbound": "outboundNodes", "retried": "nodeFlag.retried", "hooked": "nodeFlag.hooked",
    "template": "local.template", "pid": "local.pid", "pid_started": "local.pidStarted",
}  # fmt: skip
_RUN = {
    "name": "metadata.name", "uid": "metadata.uid", "created": "metadata.creationTimestamp",
    "workflow_template": "spec.workflowTemplateRef.name", "entrypoint": "spec.entrypoint",
    "parameters": "spec.arguments.parameters", "phase": "status.phase", "message": "status.message",
    "started": "status.startedAt", "finished": "status.finishedAt", "outputs": "status.outputs.parameters",
    "not_applied": "local.notApplied", "digest": "local.digest", "interrupted": "local.interrupted",
}  # fmt: skip


def to_json(run: RunState, texts: dict[str, tuple[Node, str]] | None = None) -> str:
    """Write a run as Argo's workflow status, plus what resuming needs; `texts` keeps nodes for the next time."""
    texts = {} if texts is None else texts
    for key, node in run.nodes.items():
        if key not in texts or texts[key][0] is not node:
            texts[key] = node, json.dumps(_put(node, _NODE) | _template(node, run), ensure_ascii=False)
    data = {"format": FORMAT, **_put(run, _RUN)}
    head, status = (json.dumps(part, ensure_ascii=False)[:-1] for part in (data, data.pop("status")))
    nodes = ", ".join(f'"{key}": {texts[key][1]}' for key in run.nodes)
    return f'{head}, "status": {status}, "nodes": {{{nodes}}}}}}}'


def from_json(text: str) -> RunState:
    """Read what `to_json` wrote; raises one of the usual errors where the text is something else."""
    data = json.loads(text)
    if data.get("format") != FORMAT:
        raise ValueError(f"format {data.get('format')!r}, this version reads {FORMAT}")
    nodes = {key: Node(**_take(node, _NODE)) for key, node in data["status"]["nodes"].items()}
    return RunState(nodes=nodes, **_take(data, _RUN))


def _put(record: Node | RunState, places: Mapping[str, str]) -> dict[str, Any]:
    """Return a record as maps in maps; what has its default is left out."""
    data: dict[str, Any] = {}
    for field, place in places.items():
        value = getattr(record, field)
        if field in record._field_defaults and value == record._field_defaults[field]:
            continue
        *above, last = place.split(".")
        inner = reduce(lambda outer, key: outer.setdefault(key, {}), above, data)
        if isinstance(value, datetime):
            value = value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        inner[last] = [{"name": k, "value": v} for k, v in value.items()] if isinstance(value, Mapping) else value
    return data


def _take(data: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a record that are there."""
    found: dict[str, Any] = {}
    for field, place in places.items():
        value: Any = data
        for key in place.split("."):
            value = (value or {}).get(key)
        if value is not None and field in ("created", "started", "finished"):
            found[field] = datetime.fromisoformat(value)
        elif value is not None and place.endswith(".parameters"):
            found[field] = {item["name"]: item["value"] for item in value}
        elif value is not None:
            found[field] = tuple(value) if isinstance(value, list) else value
    return found


def _template(node: Node, run: RunState) -> dict[str, Any]:
    """Return Argo's way to name a node's template: a reference where it is another object's than that around it."""
    owner, _, name = node.template.rpartition("/")
    around = run.nodes[node.boundary].template.rpartition("/")[0] if node.boundary in run.nodes else ""
    if owner and owner != around:
        return {"templateRef": {"name": owner, "template": name}}
    return {"templateName": name} | ({"templateScope": f"namespaced/{owner}"} if owner else {}) if name else {}


@lru_cache(maxsize=8192)
def _fnv32a(text: str) -> int:
    """Hash as Go's ``hash/fnv`` New32a."""
    return reduce(lambda value, byte: (value ^ byte) * 0x01000193 & 0xFFFFFFFF, text.encode(), 0x811C9DC5)
