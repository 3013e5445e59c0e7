"""One container as a local process: folders for its volumes, environment, command, log, and how it ended.

A `Pod` is made from a container or script template; `Pods` starts, watches and ends their processes.  Called by
`runner`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from workflows.local.guard import Guard
from workflows.local.manifest import Images, Manifest, Program, Template
from workflows.local.retry import parse_duration
from workflows.local.schedule import NAMESPACE, Start
from workflows.local.state import write_private
from workflows.local.templating import paste, substitute

WATCH_SECONDS = 0.25  # how often memory is looked at, where there is a limit
NOT_FOUND = 127  # a shell's exit code for a command that is not there
RESULT_BYTES = 256 * 1024  # Argo cuts a result to its last so many bytes
_UNITS = {"": 1, "m": 0.001, "k": 1000} | {
    f"{unit}{binary}": (1024 if binary else 1000) ** power
    for power, unit in enumerate("KMGTPE", 1) for binary in ("", "i")
}  # fmt: skip


class CannotStart(ValueError):  # noqa: N818  named for what it tells
    """A container cannot become a process; the node ends in Error with this message."""


class Fate(NamedTuple):
    """How a pod ends whatever its process says: what its node gets."""

    message: str
    phase: str = "Failed"
    exit_code: str | None = ""  # empty: the process's own; None: nobody saw one


OOM_KILLED = Fate("main: OOMKilled (exit code 137)", exit_code="137")
OUT_OF_TIME = Fate("Pod was active on the node longer than the specified deadline", exit_code=None)


class Launch(NamedTuple):
    """What a step's process is made of; output is appended to `log`, standard output to `result` where there is one."""

    command: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    log: Path
    result: Path | None = None


class Process(Protocol):
    """A started step: the head of a process group of its own."""

    pid: int

    def wait(self) -> int:
        """Block until it has ended, from any thread; return its exit code, -n for signal n."""


Spawn = Callable[[Launch, int], Process]
"""Starts a step, which says ``+ pid`` into the guard before it runs; another one may fork it from a warm process."""


def spawn(step: Launch, guard: int) -> Process:
    """Start a step as a fresh process."""
    with step.log.open("ab") as errors, (step.result or step.log).open("ab") as out:
        words = Guard.wrap(step.command)
        return subprocess.Popen(
            words, stdin=guard, stdout=out, stderr=errors, cwd=step.cwd, env=step.env, process_group=0
        )


class Pod:
    """One container, from the folders that its volumes need to what its process left."""

    process: Process
    fate: Fate | None = None  # what the node gets in place of what the exit code says
    code = 0  # exit code of the process once it has ended: 128 + n for signal n
    until: datetime | None = None  # when it is to be ended, or, with its fate settled, killed

    def __init__(
        self, start: Start, program: Program, images: Images, folder: Path, volumes: Path, inherited: Mapping[str, str]
    ) -> None:
        """Make its folders; raises `CannotStart` where its values do not make a process."""
        template, scope, work = start.template, start.scope, folder / "work"
        self.node, self.volumes, log = start.node, volumes / start.node, folder / "logs" / f"{start.node}.log"
        for place in (self.volumes, work, log.parent):
            os.makedirs(place, mode=0o700, exist_ok=True)  # noqa: PTH103  on every step; half the time of Path.mkdir
        places = dict(_mount(program, template, self.volumes))
        container = substitute(_at(template.container, places), scope)
        patches = [_patch(paste(o.get("podSpecPatch") or "{}", scope)) for o in (template.body, program.spec)]
        memory = [((part.get("resources") or {}).get("limits") or {}).get("memory") for part in (*patches, container)]
        times = [substitute(template.body.get(key), scope) for key in ("activeDeadlineSeconds", "timeout")]
        try:
            self.memory = next((parse_quantity(text) for text in memory if text), None)  # bytes for all its processes
            self.seconds = min((parse_duration(text) for text in times if text not in (None, "")), default=None)
        except ValueError as error:
            raise CannotStart(str(error)) from None
        patched = [entry for patch in reversed(patches) for entry in patch.get("env") or ()]
        own = dict(_environment({**container, "env": [*container["env"], *patched]}, program, start.node))
        command = _command(container, images, own)
        if source := container.get("source"):
            write_private(self.volumes / ".source", source)  # no volume can be called so, nor as the result
            command.append(str(self.volumes / ".source"))
        cwd, result = Path(container.get("workingDir") or work), self.volumes / ".result" if start.result else None
        self.launch = Launch(command, {**inherited, **own}, cwd, log, result)
        paths = {p["name"]: _place(p["valueFrom"]["path"], places) for p in template.outputs}
        self.outputs = {name: Path(paste(path, scope)) for name, path in paths.items()}

    def failure(self) -> tuple[int, str]:
        """Return the exit code and Argo's words for a step that failed."""
        program = self.launch.command[0]
        if self.code == NOT_FOUND and shutil.which(program, path=self.launch.env.get("PATH")) is None:
            text = f'failed to find name in PATH: exec: "{program}": executable file not found in $PATH'
            return 64, f"main: Error (exit code 64): {text}"
        return self.code, f"main: Error (exit code {self.code})"

    def take_result(self) -> str | None:
        """Read what the step wrote to its standard output, and move it to the log; None if nobody asked."""
        if self.launch.result is None:
            return None
        data = self.launch.result.read_bytes()
        with self.launch.log.open("ab") as log:
            log.write(data)
        return data.removesuffix(b"\n")[-RESULT_BYTES:].decode(errors="replace")

    def discard(self) -> None:
        """Remove the volumes: outputs were read, scratch may be large, secrets must not stay."""
        shutil.rmtree(self.volumes, ignore_errors=True)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        kill_group(self.process.pid, number)


def kill_group(head: int, number: signal.Signals) -> None:
    """Send a signal to a process group, if there is one any more."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM of a group of zombies
        os.killpg(head, number)


def parse_quantity(text: str | int) -> int:
    """Read a Kubernetes quantity of bytes: ``256Mi``, ``1G``, ``1000``; raises ValueError for another text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mk]|[KMGTPE]i?)?", str(text))
    if match is None:
        raise ValueError(f"memory limit {text!r} is no quantity")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def _mount(program: Program, template: Template, folder: Path) -> Iterator[tuple[str, Path]]:
    """Fill the volumes of a container; return the folder of each mountPath."""
    volumes = program.volumes(template)
    for mount in template.container.get("volumeMounts") or ():
        what, reference, data = program.referred(volumes[mount["name"]])
        place = folder / mount["name"]
        inner = place / (mount.get("subPath") or "")
        (place if what else inner).mkdir(parents=True, exist_ok=True, mode=0o700)
        for item in reference.get("items") or [{"key": key, "path": key} for key in data or ()]:
            (place / item["path"]).parent.mkdir(parents=True, exist_ok=True)
            write_private(place / item["path"], (data or {}).get(item["key"], ""))
        yield mount["mountPath"].rstrip("/"), inner


def _at(container: Manifest, places: Mapping[str, Path]) -> dict[str, Any]:
    """Put local folders in the place of mount paths in the manifest's own texts, before values are pasted in."""
    words = {key: [_place(str(word), places) for word in container.get(key) or ()] for key in ("command", "args")}
    env = [
        {**entry, "value": _place(str(entry["value"]), places)} if "value" in entry else entry
        for entry in container.get("env") or ()
    ]
    return {**container, **words, "env": env, "workingDir": _place(container.get("workingDir") or "", places)}


def _place(text: str, places: Mapping[str, Path]) -> str:
    if not any(path in text for path in places):
        return text
    paths = "|".join(re.escape(path) for path in sorted(places, key=len, reverse=True))
    return re.sub(rf"(^|=)({paths})(?=/|$)", lambda match: f"{match[1]}{places[match[2]]}", text)


def _environment(container: Manifest, program: Program, node: str) -> dict[str, str]:
    """Return what the manifest gives a container: all that ``$(NAME)`` reads, whatever the process inherits besides."""
    env: dict[str, str] = {}
    fields = {"metadata.name": node, "metadata.namespace": NAMESPACE}
    for entry in container.get("envFrom") or ():
        _, _, data = program.referred(entry)
        env |= {f"{entry.get('prefix', '')}{key}": value for key, value in (data or {}).items()}
    for entry in container["env"]:
        source = entry.get("valueFrom") or {}
        what, reference, data = program.referred(source)
        if what:
            value = (data or {}).get(reference["key"])
        elif "fieldRef" in source:
            value = fields[source["fieldRef"]["fieldPath"]]
        else:
            value = _expand(entry.get("value", ""), env)
        env |= {} if value is None else {entry["name"]: value}
    return env


def _command(container: Manifest, images: Images, env: Mapping[str, str]) -> list[str]:
    image = container.get("image", "")
    if image not in images:
        raise CannotStart(f"no local command stands for the image {image!r}")
    words = [_expand(word, env) for word in (*container["command"], *container["args"])]
    return [*images[image], *words[1:]] if images[image] else words


def _expand(text: str, env: Mapping[str, str]) -> str:
    """Replace Kubernetes' ``$(NAME)``; ``$$`` is a dollar, an unknown name stays."""
    pattern = r"\$(\$|\(([A-Za-z_][\w.-]*)\))"
    return re.sub(pattern, lambda m: "$" if m[1] == "$" else env.get(m[2], m[0]), text) if "$" in text else text


def _patch(text: str) -> dict[str, Any]:
    """Return what a podSpecPatch, which is JSON or YAML, says of the main container."""
    if text == "{}":
        return {}
    import yaml

    try:
        parts = yaml.safe_load(text).get("containers") or ()
        return next((dict(part) for part in parts if part.get("name") == "main"), {})
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise CannotStart(f"Error applying PodSpecPatch: {error}") from None


class Pods:
    """The processes of one runner, each the head of a process group of its own; `running` goes by their nodes."""

    def __init__(self, ended: Callable[[str], None], start: Spawn, volumes: Path) -> None:
        self._ended, self._spawn, self._guard = ended, start, Guard(str(volumes))
        self.running: dict[str, Pod] = {}

    def start(self, pod: Pod) -> None:
        """Start a process; `ended` is called with its node, from another thread, once it has ended.

        Raises `CannotStart` where the machine refuses.
        """
        self._guard.revive([other.process.pid for other in self.running.values()])
        try:
            pod.process = self._spawn(pod.launch, self._guard.stdin)
        except (OSError, ValueError) as error:
            raise CannotStart(str(error)) from None
        self.running[pod.node] = pod
        threading.Thread(target=self._wait, args=(pod,), daemon=True, name=pod.node).start()

    def reap(self, node: str) -> Pod:
        """Take out a process that has ended."""
        pod = self.running.pop(node)
        self._guard.ended(pod.process.pid)
        return pod

    def watch_memory(self) -> bool:
        """Kill what holds more memory than it may; tell whether there is anything to watch."""
        limited = [pod for pod in self.running.values() if pod.memory is not None and pod.fate is None]
        for pod in limited:
            if _resident(pod.process.pid) > (pod.memory or 0):
                pod.fate = OOM_KILLED
                pod.signal(signal.SIGKILL)
        return bool(limited)

    def close(self) -> None:
        """Kill what still runs, end the guard and remove the volumes."""
        for pod in self.running.values():
            pod.signal(signal.SIGKILL)
        self._guard.close()

    def _wait(self, pod: Pod) -> None:
        code = pod.process.wait()
        pod.signal(signal.SIGKILL)  # what it left running: a group keeps its id while anybody is in it
        pod.code = code if code >= 0 else 128 - code
        self._ended(pod.node)


def _resident(group: int) -> int:
    """Return the resident bytes of a process group's head and of those of its descendants that stayed in the group."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        head = psutil.Process(group)
        for process in (head, *head.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
                total += process.memory_info().rss if os.getpgid(process.pid) == group else 0
    return total
