"""One container as a local process: folders for its volumes, environment, command, log, and how it ended.

`prepare` turns a container template into a `Launch`; `Pods` starts, watches and ends processes.  Called by `runner`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from workflows.local.guard import Guard
from workflows.local.manifest import Images, Program
from workflows.local.retry import parse_duration
from workflows.local.schedule import NAMESPACE, Start
from workflows.local.state import RunState, run_folder, write_private
from workflows.local.templating import Scope, replace, substitute


@dataclass(frozen=True)
class Fate:
    """How a pod ends whatever its process says: what its node gets."""

    message: str
    phase: str = "Failed"
    exit_code: str | None = ""
    """Empty: the process's own; None: nobody saw one."""


OOM_KILLED = Fate("main: OOMKilled (exit code 137)", exit_code="137")
OUT_OF_TIME = Fate("Pod was active on the node longer than the specified deadline")
DELETED = Fate("pod deleted", "Error", None)


def evicted(message: str = "The node was low on resource: memory.") -> Fate:
    """Return the end of a pod that the kubelet evicted, with its message."""
    return Fate(message, exit_code=None)


_WATCH_SECONDS = 0.25
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|[KMGTPE]i?)?")
_UNITS = {"k": 1000, **{f"{unit}": 1000 ** (n + 1) for n, unit in enumerate("KMGTPE")}, "m": 0.001} | {
    f"{unit}i": 1024 ** (n + 1) for n, unit in enumerate("KMGTPE")
}
_REFERENCE = re.compile(r"\$(\$|\(([A-Za-z_][\w.-]*)\))")


class CannotStart(ValueError):  # noqa: N818  named for what it tells
    """A container cannot become a process; the node ends in Error with this message."""


@dataclass(frozen=True)
class Launch:
    """A process about to start."""

    node: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    """Working directory."""
    volumes: Path
    """Gone when the process has ended."""
    log: Path
    outputs: Mapping[str, Path]
    memory: int | None
    """Bytes its processes may hold together."""
    seconds: float | None
    """How long it may run."""


def prepare(
    start: Start, program: Program, run: RunState, home: Path, images: Images, environment: Mapping[str, str]
) -> Launch:
    """Make the folders of a pod's volumes and return its process.

    Raises
    ------
    CannotStart
        Its values do not make a process.
    """
    folder = run_folder(home, run.name)
    body = start.template.body
    volumes = folder / "volumes" / start.node
    shutil.rmtree(volumes, ignore_errors=True)  # what a killed attempt left must not pass for output
    places = dict(_mount(program, body, volumes))
    container = substitute(_at(body["container"], places), start.scope)
    own = _environment(container, program, start.node)
    command = _command(container, images, own)
    outputs = {
        p["name"]: Path(replace(_place(p["valueFrom"]["path"], places), start.scope)) for p in start.template.outputs
    }
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    log = folder / "logs" / f"{start.node}.log"
    log.parent.mkdir(exist_ok=True)
    limits = [text for patch in (program.spec, body) if (text := _patched_memory(patch, start.scope))]
    unpatched = ((container.get("resources") or {}).get("limits") or {}).get("memory")
    memory = next((parse_quantity(text) for text in (*reversed(limits), unpatched) if text), None)
    working = container.get("workingDir")
    return Launch(
        start.node, command, {**environment, **own}, Path(working) if working else work, volumes, log, outputs, memory,
        _seconds(substitute({k: body[k] for k in ("activeDeadlineSeconds", "timeout") if k in body}, start.scope)),
    )  # fmt: skip


def parse_quantity(text: str | int) -> int:
    """Read a Kubernetes quantity of bytes: ``256Mi``, ``1G``, ``1000``.

    Raises
    ------
    CannotStart
        It is none.
    """
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise CannotStart(f"memory limit {text!r} is no quantity")
    return int(float(match[1]) * _UNITS.get(match[2] or "", 1))


def _mount(program: Program, body: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, Path]]:
    """Fill the volumes of a container; return the folder of each mountPath."""
    volumes = {v["name"]: v for v in (*(program.spec.get("volumes") or ()), *(body.get("volumes") or ()))}
    for mount in body["container"].get("volumeMounts") or ():
        volume = volumes[mount["name"]]
        place = folder / mount["name"]
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        source = volume.get("configMap") or volume.get("secret")
        if source is not None:
            name = source.get("name") or source.get("secretName")
            data = (program.config_maps if "configMap" in volume else program.secrets).get(name, {})
            wanted = {item["key"]: item["path"] for item in source.get("items") or ()} or {key: key for key in data}
            for key, path in wanted.items():
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                write_private(place / path, data.get(key, ""))
        if mount.get("subPath"):
            place = place / mount["subPath"]
            if source is None:
                place.mkdir(parents=True, exist_ok=True)
        yield mount["mountPath"].rstrip("/"), place


def _at(container: Mapping[str, Any], places: Mapping[str, Path]) -> dict[str, Any]:
    """Put local folders in the place of mount paths in the manifest's own texts, before values are pasted in."""
    here = dict(container)
    for key in ("command", "args"):
        here[key] = [_place(str(word), places) for word in container.get(key) or ()]
    here["env"] = [
        {**entry, "value": _place(str(entry["value"]), places)} if "value" in entry else entry
        for entry in container.get("env") or ()
    ]
    if "workingDir" in container:
        here["workingDir"] = _place(container["workingDir"], places)
    return here


def _place(text: str, places: Mapping[str, Path]) -> str:
    if not places:
        return text
    paths = "|".join(re.escape(path) for path in sorted(places, key=len, reverse=True))
    return re.sub(rf"(^|=)({paths})(?=/|$)", lambda match: f"{match[1]}{places[match[2]]}", text)


def _environment(container: Mapping[str, Any], program: Program, node: str) -> dict[str, str]:
    """Return what the manifest gives a container: all that ``$(NAME)`` reads, whatever the process inherits besides."""
    env: dict[str, str] = {}
    for entry in container.get("envFrom") or ():
        config_map, secret = entry.get("configMapRef"), entry.get("secretRef")
        data = (
            program.config_maps.get(config_map["name"], {}) if config_map else program.secrets.get(secret["name"], {})
        )
        env |= {f"{entry.get('prefix', '')}{key}": value for key, value in data.items()}
    for entry in container["env"]:
        source = entry.get("valueFrom") or {}
        if "value" in entry or not source:
            env[entry["name"]] = _expand(entry.get("value", ""), env)
        elif "fieldRef" in source:
            fields = {"metadata.name": node, "metadata.namespace": NAMESPACE}
            env[entry["name"]] = fields[source["fieldRef"]["fieldPath"]]
        else:
            objects = program.config_maps if "configMapKeyRef" in source else program.secrets
            reference = source.get("configMapKeyRef") or source["secretKeyRef"]
            if (value := objects.get(reference["name"], {}).get(reference["key"])) is not None:
                env[entry["name"]] = value
    return env


def _command(container: Mapping[str, Any], images: Images, env: Mapping[str, str]) -> list[str]:
    image = container.get("image", "")
    if image not in images:
        raise CannotStart(f"no local command stands for the image {image!r}")
    words = [_expand(word, env) for word in (*container["command"], *container["args"])]
    return [*images[image], *words[1:]] if images[image] else words


def _expand(text: str, env: Mapping[str, str]) -> str:
    """Replace Kubernetes' ``$(NAME)``; ``$$`` is a dollar, an unknown name stays."""
    return _REFERENCE.sub(lambda m: "$" if m[1] == "$" else env.get(m[2], m[0]), text)


def _patched_memory(owner: Mapping[str, Any], scope: Scope) -> str:
    """Return the memory limit that a podSpecPatch sets for the main container, empty when it sets none."""
    text = replace(owner.get("podSpecPatch") or "", scope)
    if not text:
        return ""
    try:
        patch = json.loads(text) if text.lstrip().startswith("{") else _yaml(text)
        main: dict[str, Any] = next((c for c in patch.get("containers", ()) if c.get("name") == "main"), {})
        return str(main.get("resources", {}).get("limits", {}).get("memory", ""))
    except (ValueError, AttributeError) as error:
        raise CannotStart(f"Error applying PodSpecPatch: {error}") from None


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _seconds(limits: Mapping[str, Any]) -> float | None:
    try:
        found = [parse_duration(value).total_seconds() for value in limits.values() if value not in (None, "")]
    except ValueError as error:
        raise CannotStart(str(error)) from None
    return min(found, default=None)


@dataclass
class Pod:
    """A running process and why it is being ended, if it is."""

    launch: Launch
    process: Process
    fate: Fate | None = None
    """What the node gets in place of what the exit code says."""

    @property
    def pid(self) -> int:
        """The id of the process, and of its group."""
        return self.process.pid


class Process(Protocol):
    """A started step: the head of a process group of its own."""

    @property
    def pid(self) -> int:
        """Id of the process and of its group."""

    def wait(self) -> int:
        """Block until it has ended, from any thread; return its exit code, -n for signal n."""


class Spawn(Protocol):
    """Starts a step.  Another one may fork it from a process that is warm already."""

    def __call__(self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path, guard: int) -> Process:
        """Start `command`, its output appended to `log`; say ``+ pid`` into `guard` before it runs (see `guard`)."""


def spawn(command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path, guard: int) -> Process:
    """Start a step as a fresh process."""
    with log.open("ab") as file:
        return subprocess.Popen(
            Guard.wrap(command), stdin=guard, stdout=file, stderr=file, cwd=cwd, env=dict(env), process_group=0
        )


class Pods:
    """The processes of one runner, each the head of a process group of its own."""

    def __init__(self, ended: Callable[[str], None], start: Spawn = spawn) -> None:
        self._ended = ended
        self._spawn = start
        self._guard = Guard()
        self._stop_watching = threading.Event()
        self._watcher: threading.Thread | None = None
        self.running: dict[str, Pod] = {}

    def start(self, launch: Launch) -> Pod:
        """Start a process; `ended` is called with its node, from another thread, once it has ended.

        Raises
        ------
        CannotStart
            The machine refuses.
        """
        self._guard.revive([pod.pid for pod in self.running.values()])
        try:
            process = self._spawn(
                launch.command, env=launch.environment, cwd=launch.folder, log=launch.log, guard=self._guard.stdin
            )
        except (OSError, ValueError) as error:
            raise CannotStart(str(error)) from None
        pod = self.running[launch.node] = Pod(launch, process)
        threading.Thread(target=self._wait, args=(pod,), daemon=True, name=launch.node).start()
        if launch.memory is not None and self._watcher is None:
            self._watcher = threading.Thread(target=self._watch_memory, daemon=True, name="memory")
            self._watcher.start()
        return pod

    def signal(self, pod: Pod, number: signal.Signals) -> None:
        """Send a signal to all processes of a pod."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM of a group of zombies
            os.killpg(pod.pid, number)

    def reap(self, node: str) -> tuple[Pod, int]:
        """Kill what an ended process left running; return it with its exit code, which is 128 + n for signal n."""
        pod = self.running.pop(node)
        self.signal(pod, signal.SIGKILL)
        self._guard.ended(pod.pid)
        code = pod.process.wait()
        return pod, code if code >= 0 else 128 - code

    def close(self) -> None:
        """Kill what still runs and end the helpers."""
        self._stop_watching.set()
        for pod in self.running.values():
            self.signal(pod, signal.SIGKILL)
        self._guard.close()

    def _wait(self, pod: Pod) -> None:
        pod.process.wait()
        self._ended(pod.launch.node)

    def _watch_memory(self) -> None:
        import psutil

        while not self._stop_watching.wait(_WATCH_SECONDS):
            for pod in list(self.running.values()):
                limit = pod.launch.memory
                if limit is not None and pod.fate is None and _resident(psutil, pod.pid) > limit:
                    pod.fate = OOM_KILLED
                    self.signal(pod, signal.SIGKILL)


def _resident(psutil: Any, group: int) -> int:
    """Return the resident bytes of a process group's head and of those of its descendants that stayed in the group."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        head = psutil.Process(group)
        for process in (head, *head.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
                if os.getpgid(process.pid) == group:
                    total += process.memory_info().rss
    return total


def discard(launch: Launch) -> None:
    """Remove a pod's volumes: outputs were read, scratch may be large, secrets must not stay.

    After a killed runner they do, readable by their owner only, until the node starts again.
    """
    shutil.rmtree(launch.volumes, ignore_errors=True)
