"""One container as a local process: folders for its volumes, environment, command, log, and how it ended.

`prepare` turns a container or script template into a `Launch`; `Pods` starts, watches and ends processes.  Called by
`runner`.
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
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from workflows.local.guard import Guard
from workflows.local.manifest import Images, Manifest, Program, Template
from workflows.local.retry import parse_duration
from workflows.local.schedule import NAMESPACE, Start
from workflows.local.state import RunState, run_folder, write_private
from workflows.local.templating import Scope, paste, substitute

WATCH_SECONDS = 0.25
"""How often memory is looked at, where there is a limit."""
NOT_FOUND = 127
"""A shell's exit code for a command that is not there."""
_SOURCE = ".source"
"""Name of a script's file; no volume can be called so."""
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|[KMGTPE]i?)?")
_UNITS = {"k": 1000, **{f"{unit}": 1000 ** (n + 1) for n, unit in enumerate("KMGTPE")}, "m": 0.001} | {
    f"{unit}i": 1024 ** (n + 1) for n, unit in enumerate("KMGTPE")
}
_REFERENCE = re.compile(r"\$(\$|\(([A-Za-z_][\w.-]*)\))")


class CannotStart(ValueError):  # noqa: N818  named for what it tells
    """A container cannot become a process; the node ends in Error with this message."""


@dataclass(frozen=True)
class Fate:
    """How a pod ends whatever its process says: what its node gets."""

    message: str
    phase: str = "Failed"
    exit_code: str | None = ""
    """Empty: the process's own; None: nobody saw one."""


OOM_KILLED = Fate("main: OOMKilled (exit code 137)", exit_code="137")
OUT_OF_TIME = Fate("Pod was active on the node longer than the specified deadline", exit_code=None)
DELETED = Fate("pod deleted", "Error", None)


def evicted(message: str = "The node was low on resource: memory.") -> Fate:
    """Return the end of a pod that the kubelet evicted, with its message."""
    return Fate(message, exit_code=None)


def no_output(path: str) -> str:
    """Return Argo's words for a step that ended well and left no file for an output."""
    return f"wait: Error (exit code 64): open /mainctrfs{path}: no such file or directory"


def failure(launch: Launch, code: int) -> tuple[int, str]:
    """Return the exit code and Argo's words for a step that failed."""
    program = launch.command[0]
    if code == NOT_FOUND and shutil.which(program, path=launch.environment.get("PATH")) is None:
        text = f'failed to find name in PATH: exec: "{program}": executable file not found in $PATH'
        return 64, f"main: Error (exit code 64): {text}"
    return code, f"main: Error (exit code {code})"


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
    result: Path | None
    """Takes standard output in place of the log, where it is a result."""
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
    folder, template, scope = run_folder(home, run.name), start.template, start.scope
    volumes, work, logs = folder / "volumes" / start.node, folder / "work", folder / "logs"
    shutil.rmtree(volumes, ignore_errors=True)  # what a killed attempt left must not pass for output
    for place in (volumes, work, logs):
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    places = dict(_mount(program, template, volumes))
    container = substitute(_at(template.container, places), scope)
    patches = [_patch(owner, scope) for owner in (program.spec, template.body)]
    container["env"] += [entry for patch in patches for entry in patch.get("env", ())]
    own = _environment(container, program, start.node)
    command = _command(container, images, own)
    if source := container.get("source"):
        write_private(volumes / _SOURCE, source)
        command.append(str(volumes / _SOURCE))
    memory = [_memory(patch) for patch in (*reversed(patches), container)]
    times = substitute({key: template.body.get(key) for key in ("activeDeadlineSeconds", "timeout")}, scope)
    log = logs / f"{start.node}.log"
    return Launch(
        start.node, command, {**environment, **own}, Path(container.get("workingDir") or work), volumes, log,
        result=volumes / ".result" if start.result else None,
        outputs={p["name"]: Path(paste(_place(p["valueFrom"]["path"], places), scope)) for p in template.outputs},
        memory=next((parse_quantity(text) for text in memory if text), None),
        seconds=_seconds(times),
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


def _mount(program: Program, template: Template, folder: Path) -> Iterator[tuple[str, Path]]:
    """Fill the volumes of a container; return the folder of each mountPath."""
    volumes = program.volumes(template)
    for mount in template.container.get("volumeMounts") or ():
        volume = volumes[mount["name"]]
        place = folder / mount["name"]
        place.mkdir(exist_ok=True, mode=0o700)
        source = volume.get("configMap") or volume.get("secret")
        if source is not None:
            objects = program.config_maps if "configMap" in volume else program.secrets
            data = objects.get(source.get("name") or source.get("secretName"), {})
            wanted = {item["key"]: item["path"] for item in source.get("items") or ()} or {key: key for key in data}
            for key, path in wanted.items():
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                write_private(place / path, data.get(key, ""))
        if mount.get("subPath"):
            place = place / mount["subPath"]
            if source is None:
                place.mkdir(parents=True, exist_ok=True)
        yield mount["mountPath"].rstrip("/"), place


def _at(container: Manifest, places: Mapping[str, Path]) -> dict[str, Any]:
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


def _environment(container: Manifest, program: Program, node: str) -> dict[str, str]:
    """Return what the manifest gives a container: all that ``$(NAME)`` reads, whatever the process inherits besides."""
    env: dict[str, str] = {}
    for entry in container.get("envFrom") or ():
        objects = program.config_maps if "configMapRef" in entry else program.secrets
        data = objects.get((entry.get("configMapRef") or entry["secretRef"])["name"], {})
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


def _command(container: Manifest, images: Images, env: Mapping[str, str]) -> list[str]:
    image = container.get("image", "")
    if image not in images:
        raise CannotStart(f"no local command stands for the image {image!r}")
    words = [_expand(word, env) for word in (*container["command"], *container["args"])]
    return [*images[image], *words[1:]] if images[image] else words


def _expand(text: str, env: Mapping[str, str]) -> str:
    """Replace Kubernetes' ``$(NAME)``; ``$$`` is a dollar, an unknown name stays."""
    return _REFERENCE.sub(lambda m: "$" if m[1] == "$" else env.get(m[2], m[0]), text)


def _patch(owner: Manifest, scope: Scope) -> dict[str, Any]:
    """Return what a podSpecPatch says of the main container."""
    text = paste(owner.get("podSpecPatch") or "{}", scope)
    try:
        patch = json.loads(text) if text.lstrip().startswith("{") else _yaml(text)
        return next((dict(c) for c in patch.get("containers", ()) if c.get("name") == "main"), {})
    except (ValueError, AttributeError) as error:
        raise CannotStart(f"Error applying PodSpecPatch: {error}") from None


def _memory(container: Manifest) -> str:
    return str(((container.get("resources") or {}).get("limits") or {}).get("memory") or "")


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _seconds(limits: Manifest) -> float | None:
    try:
        found = [parse_duration(value).total_seconds() for value in limits.values() if value not in (None, "")]
    except ValueError as error:
        raise CannotStart(str(error)) from None
    return min(found, default=None)


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


def spawn(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path, guard: int, result: Path | None = None
) -> Process:
    """Start a step as a fresh process; `result` takes its standard output where that is asked for."""
    with log.open("ab") as errors, (result or log).open("ab") as out:
        return subprocess.Popen(
            Guard.wrap(command), stdin=guard, stdout=out, stderr=errors, cwd=cwd, env=dict(env), process_group=0
        )


@dataclass
class Pod:
    """A running process and how it is to end, if that is settled."""

    launch: Launch
    process: Process
    fate: Fate | None = None
    """What the node gets in place of what the exit code says."""
    code: int = 0
    """Its exit code once it has ended: 128 + n for signal n."""


class Pods:
    """The processes of one runner, each the head of a process group of its own."""

    def __init__(self, ended: Callable[[str], None], start: Spawn, volumes: Path) -> None:
        self._ended = ended
        self._spawn = start
        self._guard = Guard(volumes)
        self.running: dict[str, Pod] = {}

    def start(self, launch: Launch) -> Pod:
        """Start a process; `ended` is called with its node, from another thread, once it has ended.

        Raises
        ------
        CannotStart
            The machine refuses.
        """
        self._guard.revive([pod.process.pid for pod in self.running.values()])
        try:
            start = self._spawn if launch.result is None else partial(spawn, result=launch.result)
            process = start(
                launch.command, env=launch.environment, cwd=launch.folder, log=launch.log, guard=self._guard.stdin
            )
        except (OSError, ValueError) as error:
            raise CannotStart(str(error)) from None
        pod = self.running[launch.node] = Pod(launch, process)
        threading.Thread(target=self._wait, args=(pod,), daemon=True, name=launch.node).start()
        return pod

    def signal(self, pod: Pod, number: signal.Signals) -> None:
        """Send a signal to all processes of a pod."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM of a group of zombies
            os.killpg(pod.process.pid, number)

    def reap(self, node: str) -> Pod:
        """Take out a process that has ended."""
        pod = self.running.pop(node)
        self._guard.ended(pod.process.pid)
        return pod

    def watch_memory(self) -> bool:
        """Kill what holds more memory than it may; tell whether there is anything to watch."""
        limited = [pod for pod in self.running.values() if pod.launch.memory is not None and pod.fate is None]
        for pod in limited:
            if _resident(pod.process.pid) > (pod.launch.memory or 0):
                pod.fate = OOM_KILLED
                self.signal(pod, signal.SIGKILL)
        return bool(limited)

    def close(self) -> None:
        """Kill what still runs, end the guard and remove the volumes."""
        for pod in self.running.values():
            self.signal(pod, signal.SIGKILL)
        self._guard.close()

    def _wait(self, pod: Pod) -> None:
        code = pod.process.wait()
        self.signal(pod, signal.SIGKILL)  # what it left running, before its id can be another's
        pod.code = code if code >= 0 else 128 - code
        self._ended(pod.launch.node)


def _resident(group: int) -> int:
    """Return the resident bytes of a process group's head and of those of its descendants that stayed in the group."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        head = psutil.Process(group)
        for process in (head, *head.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
                if os.getpgid(process.pid) == group:
                    total += process.memory_info().rss
    return total


def take_result(launch: Launch, limit: int = 256 * 1024) -> str | None:
    """Read what a step wrote to its standard output, as Argo cuts it, and move it to the log; None if nobody asked."""
    if launch.result is None:
        return None
    data = launch.result.read_bytes()
    with launch.log.open("ab") as log:
        log.write(data)
    return data.removesuffix(b"\n")[-limit:].decode(errors="replace")


def discard(launch: Launch) -> None:
    """Remove a pod's volumes: outputs were read, scratch may be large, secrets must not stay."""
    shutil.rmtree(launch.volumes, ignore_errors=True)
