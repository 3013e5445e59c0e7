"""Runs a workflow on this machine: `execute` from a manifest, `resume` after the runner was stopped or killed.

One loop: advance the state, write it, do what it asks for, wait for what happens next (a process ended, a lock came
free, a time was reached, Ctrl-C).  Called by the command line.

Two seams.  `fate` is asked about each pod as it starts, by its Node, and may answer with the end that the pod comes to:
`pods.OOM_KILLED`, `pods.evicted(message)`, `pods.DELETED`, or None for none (conformance tests inject faults so).
`spawn` starts a step's process (`pods.Spawn`); another one may fork it from a warm parent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from workflows.local import manifest, parameters, pods, schedule, state
from workflows.local.guard import process_start
from workflows.local.locks import Lock
from workflows.local.manifest import Images, Program
from workflows.local.state import Node, RunState

OnChange = Callable[[RunState], None]
GRACE_SECONDS = 10.0
"""How long a step may take to end after SIGTERM."""
FROZEN = "manifest.json"
INTERRUPTED = "interrupted; a resume goes on from here"
CUT_OFF = pods.Fate(INTERRUPTED)
FateOf = Callable[[Node], pods.Fate | None]


def execute(
    manifests: Sequence[Mapping[str, Any]],
    *,
    entrypoint: str | None = None,
    parameters: Mapping[str, str] | None = None,
    home: Path,
    name: str | None = None,
    images: Images,
    environment: Mapping[str, str] | None = None,
    on_change: OnChange | None = None,
    digest: str = "",
    grace: float = GRACE_SECONDS,
    fate: FateOf | None = None,
    spawn: pods.Spawn = pods.spawn,
) -> RunState:
    """Run one Workflow or WorkflowTemplate to its end.

    Parameters
    ----------
    manifests
        The object to run and the ConfigMaps and Secrets that it names, as read from YAML.
    entrypoint
        Another way in than the manifest's own.
    parameters
        Values for the workflow's parameters.
    home
        Folder that keeps runs and locks.
    name
        Name of the run; made from the manifest's when left out.
    images
        Image to the local words that take the place of its command's first word.
    environment
        What steps inherit; this process's own environment when left out.
    on_change
        Called with the state after each transition.
    digest
        What `state.find_unfinished` may find the run by.
    grace
        Seconds a step may take to end when asked to.

    Returns
    -------
    RunState
        Ended, or ``interrupted``.

    Raises
    ------
    ConfigError
        Before anything starts: what the manifest holds is not supported or cannot work.
    """
    given = dict(parameters or {})
    program = manifest.load(manifests, entrypoint=entrypoint, given=given, images=images)
    now = datetime.now(UTC)
    run = RunState(
        name=name or f"{program.name}-{now:%Y%m%d-%H%M%S}-{os.urandom(2).hex()}",
        uid=_uid(),
        workflow_template=program.name,
        entrypoint=program.entrypoint,
        parameters=program.arguments,
        created=now,
        not_applied=program.not_applied,
        digest=digest,
    )
    folder = state.run_folder(home, run.name)
    try:
        folder.mkdir(parents=True, mode=0o700)
    except FileExistsError:
        from contracts.errors import ConfigError

        raise ConfigError(f"there is a run {run.name} already", remedy="resume it, or take another name") from None
    _freeze(folder, manifests)
    return _run(program, run, home, images, environment, on_change, grace, fate, spawn)


def resume(
    home: Path,
    name: str,
    *,
    images: Images,
    secrets: Sequence[Mapping[str, Any]] = (),
    environment: Mapping[str, str] | None = None,
    on_change: OnChange | None = None,
    grace: float = GRACE_SECONDS,
    fate: FateOf | None = None,
    spawn: pods.Spawn = pods.spawn,
) -> RunState:
    """Go on with a run that was cut off: finished nodes stay, leftovers are ended, what was running starts again.

    Parameters
    ----------
    secrets
        The Secrets of the run once more: their data is not kept with it.

    Raises
    ------
    ConfigError
        There is no such run, its runner is still at work, or a Secret is missing.
    """
    from contracts.errors import ConfigError

    run = state.load(home, name)
    if run.finished is not None:
        return run
    kept = json.loads((state.run_folder(home, name) / FROZEN).read_text(encoding="utf-8"))
    known = {m["metadata"]["name"] for m in secrets}
    for missing in (
        m["metadata"]["name"] for m in kept if m["kind"] == "Secret" and m["metadata"]["name"] not in known
    ):
        raise ConfigError(f"{name} needs its Secret {missing} again", remedy="secrets are not kept with a run")
    manifests = [*(m for m in kept if m["kind"] != "Secret"), *secrets]
    program = manifest.load(manifests, entrypoint=run.entrypoint, given=run.parameters, images=images)
    return _run(program, run, home, images, environment, on_change, grace, fate, spawn)


def _run(
    program: Program, run: RunState, home: Path, images: Images, environment: Mapping[str, str] | None,
    on_change: OnChange | None, grace: float, fate: FateOf | None, spawn: pods.Spawn,
) -> RunState:  # fmt: skip
    own = Lock(state.run_folder(home, run.name) / "lock")
    if not own.take(patience=0.2):  # who looks whether it is held holds it for a moment
        from contracts.errors import ConfigError

        raise ConfigError(f"{run.name} is running already", remedy="`retrain status` shows it")
    try:
        _end_leftovers(run)
        runner = _Runner(
            program,
            state.requeue(run),
            home,
            images,
            os.environ if environment is None else environment,
            grace,
            fate,
            spawn,
        )
        return runner.loop(on_change or (lambda _: None))
    finally:
        own.free()


class _Runner:
    """What one call of `execute` or `resume` holds: processes, locks, and the queue of what happened."""

    def __init__(
        self,
        program: Program,
        run: RunState,
        home: Path,
        images: Images,
        environment: Mapping[str, str],
        grace: float,
        fate: FateOf | None,
        spawn: pods.Spawn,
    ) -> None:
        self.program = program
        self.run = run
        self.home = home
        self.images = images
        self.environment = environment
        self.grace = grace
        self.happened: queue.SimpleQueue[tuple[str, str]] = (
            queue.SimpleQueue()
        )  # its put may be called in a signal handler
        self.fate = fate
        self.pods = pods.Pods(lambda node: self.happened.put(("ended", node)), spawn)
        self.locks: dict[str, list[Lock]] = {}
        self.waiting: dict[str, list[Lock]] = {}
        self.timers: list[tuple[datetime, str, str]] = []
        self.interrupts = 0

    def loop(self, on_change: OnChange) -> RunState:
        """Go on until the workflow has ended, or until asked to stop."""

        written: RunState | None = None

        def changed() -> None:
            nonlocal written
            if self.run is not written:
                state.write(self.home, self.run)
                written = self.run
                on_change(self.run)

        try:
            with self._signals():
                while True:
                    wake = None if self.interrupts else self._advance(changed)
                    changed()
                    if self.run.finished is not None or (self.interrupts and not self.pods.running):
                        return self.run
                    self._wait(wake)
        finally:
            self.pods.close()
            for lock in (lock for held in (*self.locks.values(), *self.waiting.values()) for lock in held):
                lock.free()

    def _advance(self, changed: Callable[[], None]) -> datetime | None:
        """Take the state as far as it goes now; return when to look again."""
        while True:
            step = schedule.advance(self.program, self.run, held=frozenset(self.locks), now=datetime.now(UTC))
            if step.run != self.run:
                self.run = step.run
            self._free_locks()
            if step.starts:
                changed()  # what ended is on disk before what follows begins
            again = False
            for node, names in step.wanted.items():
                again |= self._lock(node, names)
            for start in step.starts:
                again |= not self._start(start)
            for node in step.stop:
                self._stop(node, pods.Fate(schedule.DEADLINE))
            if not again:
                return step.wake

    def _start(self, start: schedule.Start) -> bool:
        """Start a pod; False when it could not and its node has ended in Error."""
        node = self.run.nodes[start.node]
        now = datetime.now(UTC)
        try:
            launch = pods.prepare(start, self.program, self.run, self.home, self.images, self.environment)
            pod = self.pods.start(launch)
        except (pods.CannotStart, OSError) as error:
            self._set(replace(node, phase="Error", message=str(error), started=now, finished=now))
            return False
        if launch.seconds is not None:
            self.timers.append((now + timedelta(seconds=launch.seconds), "deadline", start.node))
        node = replace(node, phase="Running", started=now, pid=pod.pid, pid_started=process_start(pod.pid))
        self._set(node)
        if self.fate is not None and (fate := self.fate(node)) is not None:
            pod.fate = fate
            self.pods.signal(pod, signal.SIGKILL)
        return True

    def _wait(self, wake: datetime | None) -> None:
        """Wait for the next thing to happen and enter it."""
        times = [when for when, _, _ in self.timers] + ([wake] if wake is not None else [])
        seconds = max(0.0, (min(times) - datetime.now(UTC)).total_seconds()) if times else None
        try:
            what, about = self.happened.get(timeout=seconds)
        except queue.Empty:
            what, about = "time", ""
        if what == "ended":
            self._ended(about)
        elif what == "locked":
            self._locked(about)
        elif what == "interrupt":
            self._interrupt()
        now = datetime.now(UTC)
        due = [timer for timer in self.timers if timer[0] <= now]
        self.timers = [timer for timer in self.timers if timer[0] > now]
        for _, kind, node in due:
            if kind == "deadline":
                self._stop(node, pods.OUT_OF_TIME)
            elif node in self.pods.running:
                self.pods.signal(self.pods.running[node], signal.SIGKILL)

    def _ended(self, node_id: str) -> None:
        pod, code = self.pods.reap(node_id)
        self.timers = [timer for timer in self.timers if timer[2] != node_id]
        node = self.run.nodes[node_id]
        if pod.fate == CUT_OFF and code != 0:
            pods.discard(pod.launch)
            self._set(replace(node, phase="Pending", message=INTERRUPTED, pid=None, pid_started=""))
            return
        declared = self.program.templates[node.template].outputs
        outputs, missing = parameters.outputs(declared, pod.launch.outputs)
        phase, message = "Succeeded", ""
        exit_code: str | None = str(code)
        if pod.fate not in (None, CUT_OFF):
            phase, message = pod.fate.phase, pod.fate.message
            exit_code = exit_code if pod.fate.exit_code == "" else pod.fate.exit_code
            outputs = {}
        elif code != 0:
            phase, message = "Failed", f"main: Error (exit code {code})"
        elif missing:
            phase, message = "Error", "wait: Error (exit code 64)"
            with pod.launch.log.open("a", encoding="utf-8") as log:
                log.write(f"the step left no {', no '.join(missing)}\n")
        pods.discard(pod.launch)
        ended = replace(
            node, phase=phase, message=message, finished=datetime.now(UTC), outputs=outputs, exit_code=exit_code,
            pid=None, pid_started="",
        )  # fmt: skip
        self.run = schedule.finish(self.program, self.run, ended)

    def _stop(self, node: str, fate: pods.Fate) -> None:
        """Ask a pod to end, and see to it after the grace period."""
        pod = self.pods.running.get(node)
        if pod is not None and pod.fate is None:
            pod.fate = fate
            self.pods.signal(pod, signal.SIGTERM)
            self.timers.append((datetime.now(UTC) + timedelta(seconds=self.grace), "kill", node))

    def _interrupt(self) -> None:
        """End all steps and leave a state that resumes; the second time, at once."""
        self.interrupts += 1
        for node, pod in list(self.pods.running.items()):
            self._stop(node, CUT_OFF)
            if self.interrupts > 1:
                self.pods.signal(pod, signal.SIGKILL)
        self.run = replace(self.run, interrupted=True, message=INTERRUPTED)

    # locks

    def _lock(self, node: str, names: Sequence[str]) -> bool:
        """Take a node's locks, in the order of their names; False while one is another's."""
        if node in self.waiting:
            return False
        wanted = [
            Lock(self.home / "locks" / hashlib.sha256(name.encode()).hexdigest()[:32]) for name in sorted(set(names))
        ]
        for index, lock in enumerate(wanted):
            if not lock.take():
                for taken in wanted[:index]:
                    taken.free()
                self.waiting[node] = [lock]
                lock.wait(lambda: self.happened.put(("locked", node)))
                return False
        self.locks[node] = wanted
        return True

    def _locked(self, node: str) -> None:
        """The lock waited for came free: with others to take, start over, so that no two runs hold each other up."""
        mutexes = self.waiting.pop(node)
        step = schedule.advance(self.program, self.run, held=frozenset(self.locks), now=datetime.now(UTC))
        if len(set(step.wanted.get(node, ()))) == 1:
            self.locks[node] = mutexes
            return
        for lock in mutexes:
            lock.free()

    def _free_locks(self) -> None:
        for node in [key for key in self.locks if key and self.run.nodes[key].fulfilled]:
            for lock in self.locks.pop(node):
                lock.free()

    def _set(self, node: Node) -> None:
        self.run = replace(self.run, nodes={**self.run.nodes, node.id: node})

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn Ctrl-C and SIGTERM into an event.  Only the main thread may; elsewhere its owner decides."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:  # noqa: ARG002  the signature is Python's
        self.happened.put(("interrupt", ""))


def _uid() -> str:
    """Return a random id in the form of a UUID; the module of that name takes as long to import as a step to start."""
    digits = os.urandom(16).hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _end_leftovers(run: RunState) -> None:
    """Kill what a killed runner may have left: only a process that is known by id and start time."""
    for node in run.nodes.values():
        if node.pid is not None and node.pid_started and process_start(node.pid) == node.pid_started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)


def _freeze(folder: Path, manifests: Sequence[Mapping[str, Any]]) -> None:
    """Keep the manifests beside the state, so that a resume runs what was started.

    Of a Secret its name only; a credential in a ConfigMap or a parameter would be kept, hence the file's mode.
    """
    kept = [
        {k: v for k, v in m.items() if k not in ("data", "stringData")} if m.get("kind") == "Secret" else m
        for m in manifests
    ]
    state.write_private(folder / FROZEN, json.dumps(kept, indent=1, default=str))
