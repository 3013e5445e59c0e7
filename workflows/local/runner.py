"""Runs a workflow on this machine: `execute` from a manifest, `resume` after the runner was stopped or killed.

One loop: advance the state, write it, do what it asks for, wait for what happens next (a process ended, a lock came
free, a time was reached, Ctrl-C).  Called by the command line.  When nothing is left to wait for but somebody's answer
to a suspended node, the loop ends too: `RunState.suspended` names the nodes, and `resume` takes the `answers`.

Two seams.  `fate` is asked about each pod as it starts, by its Node, and may answer with the end that the pod comes to:
`pods.OOM_KILLED`, `pods.evicted(message)`, `pods.DELETED`, or None for none (conformance tests inject faults so).
`spawn` starts a step's process (`pods.Spawn`); another one may fork it from a warm parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict, Unpack

from workflows.local import manifest, parameters, pods, schedule, state
from workflows.local.guard import process_start
from workflows.local.locks import Lock
from workflows.local.manifest import Images, Program
from workflows.local.state import Node, RunState

GRACE_SECONDS = 10.0
FROZEN = "manifest.json"
INTERRUPTED = "interrupted; a resume goes on from here"
CUT_OFF = pods.Fate(INTERRUPTED)


class Options(TypedDict, total=False):
    """How a run is run."""

    environment: Mapping[str, str] | None
    """What steps inherit; this process's own environment when left out."""
    on_change: Callable[[RunState], None] | None
    """Called with the state after each transition."""
    grace: float
    """Seconds a step may take to end when asked to (SIGTERM); then it is killed."""
    answers: schedule.Answers
    """What suspended nodes go on with: display name to output parameters."""
    fate: Callable[[Node], pods.Fate | None] | None
    spawn: pods.Spawn


def execute(
    manifests: Sequence[Mapping[str, Any]], *, home: Path, images: Images, entrypoint: str | None = None,
    parameters: Mapping[str, str] | None = None, name: str | None = None, digest: str = "",
    **options: Unpack[Options],
) -> RunState:  # fmt: skip
    """Run one Workflow or WorkflowTemplate to its end.

    Parameters
    ----------
    manifests
        The object to run and the WorkflowTemplates, ConfigMaps and Secrets that it names, as read from YAML.
    home
        Folder that keeps runs and locks.
    images
        Image to the local words that take the place of its command's first word.
    entrypoint, parameters
        Another way in than the manifest's own, and values for the workflow's parameters.
    name, digest
        Name of the run, made from the manifest's when left out, and what `state.find_unfinished` may find it by.

    Returns
    -------
    RunState
        Ended, ``interrupted`` or ``suspended``.

    Raises
    ------
    ConfigError
        Before anything starts: what the manifest holds is not supported or cannot work.
    """
    program = manifest.load(manifests, entrypoint=entrypoint, given=dict(parameters or {}), images=images)
    now = datetime.now(UTC)
    run = RunState(
        name=name or f"{program.name}-{now:%Y%m%d-%H%M%S}-{os.urandom(2).hex()}",
        uid=str(uuid.uuid4()),
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
    return _run(program, run, home, images, options)


def resume(
    home: Path, name: str, *, images: Images, secrets: Sequence[Mapping[str, Any]] = (), **options: Unpack[Options]
) -> RunState:
    """Go on with a run that was cut off: finished nodes stay, leftovers are ended, what was running starts again.

    Parameters
    ----------
    secrets
        The Secrets of the run once more: their data is not kept with it.

    Raises
    ------
    ConfigError
        There is no such run, its runner is still at work, a Secret is missing, or an answer's node is not suspended.
    """
    from contracts.errors import ConfigError

    run = state.load(home, name)
    if run.finished is not None:
        return run
    for node in options.get("answers", {}).keys() - set(run.suspended):
        waiting = ", ".join(run.suspended) or "none"
        raise ConfigError(f"{name} has no suspended node {node}", remedy=f"suspended: {waiting}")
    kept = json.loads((state.run_folder(home, name) / FROZEN).read_text(encoding="utf-8"))
    known = {secret["metadata"]["name"] for secret in secrets}
    for missing in (m["metadata"]["name"] for m in kept if m["kind"] == "Secret"):
        if missing not in known:
            raise ConfigError(f"{name} needs its Secret {missing} again", remedy="secrets are not kept with a run")
    manifests = [*(m for m in kept if m["kind"] != "Secret"), *secrets]
    program = manifest.load(manifests, entrypoint=run.entrypoint, given=run.parameters, images=images)
    return _run(program, run, home, images, options)


def _run(program: Program, run: RunState, home: Path, images: Images, options: Options) -> RunState:
    own = Lock(state.run_folder(home, run.name) / "lock")
    if not own.take(patience=0.2):  # who looks whether it is held holds it for a moment
        from contracts.errors import ConfigError

        raise ConfigError(f"{run.name} is running already", remedy="`retrain status` shows it")
    try:
        _end_leftovers(run)
        return _Runner(program, state.requeue(run), home, images, options).loop()
    finally:
        own.free()


class _Runner:
    """What one call of `execute` or `resume` holds: processes, locks, and the queue of what happened."""

    def __init__(self, program: Program, run: RunState, home: Path, images: Images, options: Options) -> None:
        self.program = program
        self.run = run
        self.home = home
        self.images = images
        self.options = options
        self.happened: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()  # may be put to in a signal handler
        volumes = state.run_folder(home, run.name) / "volumes"
        self.pods = pods.Pods(
            lambda node: self.happened.put(("ended", node)), options.get("spawn", pods.spawn), volumes
        )
        self.locks: dict[str, list[Lock]] = {}
        self.waiting: dict[str, list[Lock]] = {}
        self.timers: list[tuple[datetime, str, str]] = []
        self.interrupts = 0
        self.written: RunState | None = None

    def loop(self) -> RunState:
        """Go on until the workflow has ended, waits for an answer, or was asked to stop."""
        try:
            with self._signals():
                while True:
                    wake = None if self.interrupts else self._advance()
                    self._write()
                    idle = not self.pods.running
                    if self.run.finished is not None or (self.interrupts and idle):
                        return self.run
                    if self.run.suspended and idle and wake is None and not self.waiting:
                        return self.run
                    self._wait(wake)
        finally:
            self.pods.close()
            for lock in (lock for held in (*self.locks.values(), *self.waiting.values()) for lock in held):
                lock.free()

    def _write(self) -> None:
        """Put the state on disk, and tell who asked, if it changed."""
        if self.run is not self.written:
            state.write(self.home, self.run)
            self.written = self.run
            if (tell := self.options.get("on_change")) is not None:
                tell(self.run)

    def _step(self) -> schedule.Advance:
        answers = self.options.get("answers")
        now = datetime.now(UTC)
        return schedule.advance(self.program, self.run, held=frozenset(self.locks), now=now, answers=answers)

    def _advance(self) -> datetime | None:
        """Take the state as far as it goes now; return when to look again."""
        while True:
            step = self._step()
            if step.run != self.run:
                self.run = step.run
            self._free_locks()
            if step.starts:
                self._write()  # what ended is on disk before what follows begins
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
        inherited = self.options.get("environment")
        try:
            launch = pods.prepare(
                start, self.program, self.run, self.home, self.images, os.environ if inherited is None else inherited
            )
            pod = self.pods.start(launch)
        except (pods.CannotStart, OSError) as error:
            self._set(replace(node, phase="Error", message=str(error), started=now, finished=now))
            return False
        if launch.seconds is not None:
            self.timers.append((now + timedelta(seconds=launch.seconds), "deadline", start.node))
        pid = pod.process.pid
        node = replace(node, phase="Running", started=now, pid=pid, pid_started=process_start(pid))
        self._set(node)
        if (ask := self.options.get("fate")) is not None and (fate := ask(node)) is not None:
            pod.fate = fate
            self.pods.signal(pod, signal.SIGKILL)
        return True

    def _wait(self, wake: datetime | None) -> None:
        """Wait for the next thing to happen and enter it."""
        times = [when for when, _, _ in self.timers] + ([wake] if wake is not None else [])
        seconds = max(0.0, (min(times) - datetime.now(UTC)).total_seconds()) if times else None
        if self.pods.watch_memory():
            seconds = min(pods.WATCH_SECONDS, seconds or pods.WATCH_SECONDS)
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
        """Enter how a pod ended."""
        pod = self.pods.reap(node_id)
        launch, fate, code = pod.launch, pod.fate, pod.code
        self.timers = [timer for timer in self.timers if timer[2] != node_id]
        node = replace(self.run.nodes[node_id], pid=None, pid_started="")
        if fate == CUT_OFF and code != 0:
            pods.discard(launch)
            self._set(replace(node, phase="Pending", message=INTERRUPTED))
            return
        outputs, missing = parameters.outputs(self.program.templates[node.template].outputs, launch.outputs)
        node = replace(
            node, phase="Succeeded", finished=datetime.now(UTC), outputs=outputs, exit_code=str(code),
            result=pods.take_result(launch),
        )  # fmt: skip
        if fate is not None and fate != CUT_OFF:
            exit_code = str(code) if fate.exit_code == "" else fate.exit_code
            node = replace(node, phase=fate.phase, message=fate.message, exit_code=exit_code, outputs={}, result=None)
        elif code != 0:
            code, message = pods.failure(launch, code)
            node = replace(node, phase="Failed", message=message, exit_code=str(code))
        elif missing:
            node = replace(node, phase="Error", message=pods.no_output(missing[0]))
        pods.discard(launch)
        self.run = schedule.finish(self.program, self.run, node)

    def _stop(self, node: str, fate: pods.Fate) -> None:
        """Ask a pod to end, and see to it after the grace period."""
        pod = self.pods.running.get(node)
        if pod is not None and pod.fate is None:
            pod.fate = fate
            self.pods.signal(pod, signal.SIGTERM)
            until = datetime.now(UTC) + timedelta(seconds=self.options.get("grace", GRACE_SECONDS))
            self.timers.append((until, "kill", node))

    def _interrupt(self) -> None:
        """End all steps and leave a state that resumes; the second time, at once."""
        self.interrupts += 1
        for node, pod in list(self.pods.running.items()):
            self._stop(node, CUT_OFF)
            if self.interrupts > 1:
                self.pods.signal(pod, signal.SIGKILL)
        self.run = replace(self.run, interrupted=True, message=INTERRUPTED)

    def _set(self, node: Node) -> None:
        self.run = replace(self.run, nodes={**self.run.nodes, node.id: node})

    # locks

    def _lock(self, node: str, names: Sequence[str]) -> bool:
        """Take a node's locks, in the order of their names; False while one is another's."""
        if node in self.waiting:
            return False
        wanted = [Lock(self.home / "locks" / uuid.uuid5(uuid.NAMESPACE_OID, name).hex) for name in sorted(set(names))]
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
        if len(set(self._step().wanted.get(node, ()))) == 1:
            self.locks[node] = mutexes
            return
        for lock in mutexes:
            lock.free()

    def _free_locks(self) -> None:
        for node in [key for key in self.locks if key and self.run.nodes[key].fulfilled]:
            for lock in self.locks.pop(node):
                lock.free()

    # signals

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
