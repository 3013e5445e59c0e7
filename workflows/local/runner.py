"""Runs a workflow on this machine: `execute` from a manifest, `resume` after the runner was stopped or killed.

One loop: advance the state, write it, do what it asks for, wait for what happens next (a process ended, a time was
reached, Ctrl-C).  Called by the command line.  When nothing is left to wait for but somebody's answer to a suspended
node, the loop ends too: `RunState.suspended` names the nodes, and `resume` takes the `answers`.  A run's lock is held
from before its state is read until after it was last written.

Two seams.  `fate` is asked about each pod as it starts, by its Node, and may answer with the `pods.Fate` that the pod
comes to (conformance tests inject faults so).  `spawn` starts a step's process; another one may fork it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypedDict, Unpack

from workflows.local import manifest, parameters, pods, schedule, state
from workflows.local.guard import process_start
from workflows.local.locks import Lock
from workflows.local.manifest import Images, Program
from workflows.local.state import Node, RunState

GRACE_SECONDS = 10.0
LOCK_SECONDS = 0.1  # how often a lock that another run holds is asked for
FROZEN = "manifest.json"
CUT_OFF = pods.Fate("interrupted; a resume goes on from here")


class Options(TypedDict, total=False):
    """How a run is run.

    `environment` is what steps inherit (this process's own when left out); `on_change` is called with the state after
    each transition; `grace` are the seconds a step may take to end when asked to (SIGTERM) before it is killed;
    `at_once` says how much of a DAG or steps may run at once here, by its template, where the manifest allows more.
    """

    environment: Mapping[str, str]
    on_change: Callable[[RunState], None] | None
    grace: float
    fate: Callable[[Node], pods.Fate | None] | None
    spawn: pods.Spawn
    at_once: Mapping[str, int]


def execute(
    manifests: Sequence[Mapping[str, Any]], *, home: Path, images: Images, entrypoint: str | None = None,
    parameters: Mapping[str, str] | None = None, name: str | None = None, digest: str = "",
    **options: Unpack[Options],
) -> RunState:  # fmt: skip
    """Run one Workflow or WorkflowTemplate until it has ended, waits for an answer, or is interrupted.

    `manifests` are the object to run and those that it names, as read from YAML; `home` is the folder of runs and
    locks; `digest` is what `state.find_unfinished` may find the run by.  Raises `ConfigError`, before anything starts,
    where the manifest holds what is not supported or cannot work.
    """
    program, not_applied = manifest.load(manifests, entrypoint=entrypoint, given=parameters or {}, images=images)
    now = datetime.now(UTC)
    run = RunState(
        name=name or f"{program.name}-{now:%Y%m%d-%H%M%S}-{os.urandom(2).hex()}", uid=os.urandom(16).hex(),
        workflow_template=program.name, entrypoint=program.entrypoint, parameters=program.arguments, created=now,
        phase="Pending", not_applied=tuple(not_applied), digest=digest,
    )  # fmt: skip
    folder = state.run_folder(home, run.name)
    try:
        folder.mkdir(parents=True, mode=0o700)
    except FileExistsError:
        raise _refusal(f"there is a run {run.name} already", "resume it, or take another name") from None
    # Kept beside the state, so that a resume runs what was started.  Of a Secret its name only; a credential in a
    # ConfigMap or a parameter would be kept, hence the file's mode.
    named = ("apiVersion", "kind")
    kept = [
        {**{key: m[key] for key in named if key in m}, "metadata": {"name": m["metadata"]["name"]}}
        if m.get("kind") == "Secret" else m
        for m in manifests
    ]  # fmt: skip
    state.write_private(folder / FROZEN, json.dumps(kept, indent=1, default=str))
    with _held(home, run.name):
        return _run(program, run, home, images, options)


def resume(
    home: Path, name: str, *, images: Images, secrets: Sequence[Mapping[str, Any]] = (),
    answers: schedule.Answers | None = None, **options: Unpack[Options],
) -> RunState:  # fmt: skip
    """Go on with a run that was cut off: finished nodes stay, leftovers are ended, what was running starts again.

    `secrets` are the Secrets of the run once more: their data is not kept with it.  `answers` are what suspended nodes
    go on with: its display name, or its name where several are called so, to output parameters.  Raises `ConfigError`
    where there is no such run, its runner is still at work, a Secret is missing, or an answer's node is not suspended.
    """
    state.load(home, name)  # of a run that is not there it says so, before a lock would make its folder
    with _held(home, name):
        run = state.load(home, name)
        if run.finished is not None:
            return run
        kept = json.loads((state.run_folder(home, name) / FROZEN).read_text(encoding="utf-8"))
        needed = {m["metadata"]["name"] for m in kept if m["kind"] == "Secret"}
        for missing in sorted(needed - {secret["metadata"]["name"] for secret in secrets}):
            raise _refusal(f"{name} needs its Secret {missing} again", "secrets are not kept with a run")
        manifests = [*(m for m in kept if m["kind"] != "Secret"), *secrets]
        program, _ = manifest.load(manifests, entrypoint=run.entrypoint, given=run.parameters, images=images)
        return _run(program, run, home, images, options, _answered(program, run, answers or {}))


def _answered(program: Program, run: RunState, answers: schedule.Answers) -> schedule.Answers:
    """Return the answers by the ids of the nodes that they are for, one each."""
    waiting, found = run.suspended, {}
    for given, outputs in answers.items():
        if given not in waiting:
            raise _refusal(f"{run.name} has no suspended node {given}", f"suspended: {', '.join(waiting) or 'none'}")
        known = [output["name"] for output in program.templates[run.nodes[waiting[given]].template].outputs]
        for name in outputs.keys() - set(known):
            raise _refusal(f"{given} has no output {name}", f"it has {', '.join(known) or 'none'}")
        found[waiting[given]] = outputs
    return found


def _refusal(message: str, remedy: str) -> Exception:
    from contracts.errors import ConfigError  # with pydantic behind it, dearer than a step's start

    return ConfigError(message, remedy=remedy)


@contextlib.contextmanager
def _held(home: Path, name: str) -> Iterator[None]:
    own = Lock(state.run_folder(home, name) / "lock")
    if not own.take(patience=0.2):  # who looks whether it is held holds it for a moment
        raise _refusal(f"{name} is running already", "`retrain status` shows it")
    try:
        yield
    finally:
        own.free()


def _run(
    program: Program, run: RunState, home: Path, images: Images, options: Options,
    answers: schedule.Answers = MappingProxyType({}),
) -> RunState:  # fmt: skip
    for name in options.get("at_once", {}).keys() & program.templates.keys():
        here, there = options["at_once"][name], program.templates[name].parallelism
        program.templates[name].parallelism = min(here, there or here)
    nodes = {key: _set_back(node) for key, node in run.nodes.items()}
    run = run._replace(interrupted=False, message="", nodes=nodes)
    return _Runner(program, run, home, images, options, answers).loop()


def _set_back(node: Node) -> Node:
    """End what a killed runner left of a pod, which starts again; any other node stays as it is."""
    if node.type != "Pod" or node.fulfilled:
        return node
    if node.pid is not None and node.pid_started and process_start(node.pid) == node.pid_started:
        pods.kill_group(node.pid, signal.SIGKILL)
    return node._replace(phase="Pending", started=None, message="", pid=None, pid_started="")


class _Runner:
    """What one call of `execute` or `resume` holds: processes, locks, and the queue of what happened."""

    def __init__(
        self, program: Program, run: RunState, home: Path, images: Images, options: Options, answers: schedule.Answers
    ) -> None:
        self.program, self.run, self.home, self.images, self.options = program, run, home, images, options
        self.answers = answers
        self.known = schedule.global_values(program, run)
        # nodes whose process has ended; empty for Ctrl-C (it may be put to in a signal handler)
        self.happened: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.folder = state.run_folder(home, run.name)
        for left in self.folder.glob("volumes-*"):  # of a runner and a guard that were both killed
            shutil.rmtree(left, ignore_errors=True)
        self.volumes = self.folder / f"volumes-{os.urandom(4).hex()}"  # no other runner's guard removes these
        self.pods = pods.Pods(self.happened.put, options.get("spawn", pods.spawn), self.volumes)
        self.locks: dict[str, list[Lock]] = {}
        self.interrupts = 0
        self.file = state.StateFile(home, run.name)
        self.written: RunState | None = None

    def loop(self) -> RunState:
        """Go on until the workflow has ended, waits for an answer, or was asked to stop."""
        try:
            with self._signals():
                self.file.write(self.run)  # a resume finds it whatever comes
                while True:
                    wake = None if self.interrupts else self._advance()
                    self._write()
                    waits = bool(self.run.suspended) and wake in (None, self.program.deadline(self.run.started))
                    if self.run.finished is not None or (not self.pods.running and (waits or self.interrupts)):
                        return self.run
                    self._wait(wake)
        finally:
            with contextlib.suppress(OSError):  # what raised says more
                self._write()
            self.pods.close()
            for node in list(self.locks):
                self._unlock(node)

    def _write(self) -> None:
        """Put the state on disk, and tell who asked, if it changed."""
        if self.run is not self.written:
            self.file.write(self.run)
            self.written = self.run
            if (tell := self.options.get("on_change")) is not None:
                tell(self.run)

    def _advance(self) -> datetime | None:
        """Take the state as far as it goes now; return when to look again."""
        while True:
            now = datetime.now(UTC)
            step = schedule.Walk(
                self.program, self.run, self.known, held=self.locks, now=now, answers=self.answers
            ).advance()
            if step.run != self.run:
                self.run = step.run
            for node in [key for key in self.locks if key and self.run.nodes[key].fulfilled]:
                self._unlock(node)
            if step.starts:
                self._write()  # what ended is on disk before what follows begins
            taken = [self._lock(node, names) for node, names in step.wanted.items()]
            started = [self._start(start) for start in step.starts]
            for node in step.stop:
                self._stop(self.pods.running[node], pods.Fate(schedule.DEADLINE))
            if not any(taken) and all(started):
                soon = now + timedelta(seconds=LOCK_SECONDS) if taken else None
                return min((time for time in (soon, step.wake) if time is not None), default=None)

    def _start(self, start: schedule.Start) -> bool:
        """Start a pod; False when it could not and its node has ended in Error."""
        node, now = self.run.nodes[start.node], datetime.now(UTC)
        environment = self.options.get("environment", os.environ)
        try:
            pod = pods.Pod(start, self.program, self.images, self.folder, self.volumes, environment)
            self.pods.start(pod)
        except (pods.CannotStart, OSError) as error:
            self.run = self.run.with_node(node._replace(phase="Error", message=str(error), started=now, finished=now))
            return False
        pod.until = now + pod.seconds if pod.seconds is not None else None
        pid = pod.process.pid
        node = node._replace(phase="Running", started=now, pid=pid, pid_started=process_start(pid))
        self.run = self.run.with_node(node)
        if (ask := self.options.get("fate")) is not None and (fate := ask(node)) is not None:
            pod.fate = fate
            pod.signal(signal.SIGKILL)
        return True

    def _wait(self, wake: datetime | None) -> None:
        """Wait for the next thing to happen and enter it."""
        times = [time for time in (wake, *(pod.until for pod in self.pods.running.values())) if time is not None]
        seconds = max(0.0, (min(times) - datetime.now(UTC)).total_seconds()) if times else None
        if self.pods.watch_memory():
            seconds = min(pods.WATCH_SECONDS, pods.WATCH_SECONDS if seconds is None else seconds)
        with contextlib.suppress(queue.Empty):
            if node := self.happened.get(timeout=seconds):
                self._ended(self.pods.reap(node))
            else:
                self._interrupt()
        now = datetime.now(UTC)
        for pod in self.pods.running.values():
            if pod.until is not None and pod.until <= now and not self._stop(pod, pods.OUT_OF_TIME):
                pod.until = None
                pod.signal(signal.SIGKILL)

    def _ended(self, pod: pods.Pod) -> None:
        """Enter how a pod ended."""
        fate, code, node = pod.fate, str(pod.code), self.run.nodes[pod.node]._replace(pid=None, pid_started="")
        if fate == CUT_OFF and pod.code != 0:
            pod.discard()
            self.run = self.run.with_node(node._replace(phase="Pending", message=CUT_OFF.message))
            return
        template = self.program.templates[node.template]
        outputs, missing = parameters.outputs(template.outputs, pod.outputs)
        node = node._replace(finished=datetime.now(UTC), outputs=outputs, result=pod.take_result(), exit_code=code)
        if fate is not None and fate != CUT_OFF:
            seen = code if fate.exit_code == "" else fate.exit_code
            node = node._replace(phase=fate.phase, message=fate.message, exit_code=seen, outputs={}, result=None)
        elif pod.code != 0:
            failed, message = pod.failure()
            node = node._replace(phase="Failed", message=message, exit_code=str(failed))
        elif missing:
            message = f"wait: Error (exit code 64): open /mainctrfs{missing[0]}: no such file or directory"
            node = node._replace(phase="Error", message=message)
        else:
            node = node._replace(phase="Succeeded")
        pod.discard()
        told = {**self.run.outputs, **template.told_to_all(node.outputs)}
        self.run = self.run.with_node(node)._replace(outputs=told)

    def _stop(self, pod: pods.Pod, fate: pods.Fate) -> bool:
        """Ask a pod to end, to be killed after the grace period; False if it was asked already."""
        if pod.fate is not None:
            return False
        pod.fate = fate
        pod.until = datetime.now(UTC) + timedelta(seconds=self.options.get("grace", GRACE_SECONDS))
        pod.signal(signal.SIGTERM)
        return True

    def _interrupt(self) -> None:
        """End all steps and leave a state that resumes; the second time, at once."""
        self.interrupts += 1
        for pod in self.pods.running.values():
            self._stop(pod, CUT_OFF)
            if self.interrupts > 1:
                pod.signal(signal.SIGKILL)
        self.run = self.run._replace(interrupted=True, message=CUT_OFF.message)

    def _lock(self, node: str, names: Sequence[str]) -> bool:
        """Take a node's locks, all or none, so that no two runs hold each other up."""
        import hashlib

        digests = [hashlib.sha256(name.encode()).hexdigest() for name in sorted(set(names))]
        self.locks[node] = [Lock(self.home / "locks" / digest) for digest in digests]
        if all(lock.take() for lock in self.locks[node]):
            return True
        self._unlock(node)
        return False

    def _unlock(self, node: str) -> None:
        for lock in self.locks.pop(node):
            lock.free()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn Ctrl-C and SIGTERM into an event.  Only the main thread may; elsewhere its owner decides."""
        main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if main else ()
        before = {number: signal.signal(number, lambda *_: self.happened.put("")) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
