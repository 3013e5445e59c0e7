"""The next state of a run: which nodes come to be, start, wait or are tried again, and how the workflow ends.

Pure: `advance` takes a program, a state, the locks held and the time, and answers with the next state and what is to be
done about it; `finish` enters how a pod ended.  `runner` does the doing.  What DAGs and steps make of their tasks is in
`graph` (there `when` is evaluated), whether an attempt is repeated in `retry`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from workflows.local import graph, parameters, retry
from workflows.local.manifest import Program, Template
from workflows.local.pratt import LanguageError
from workflows.local.state import BAD, Node, RunState
from workflows.local.templating import Scope, paste, substitute

NAMESPACE = "default"
DEADLINE = "Step exceeded its deadline"
GIVEN_UP = "template has failed or errored children and failFast enabled"
Answers = Mapping[str, Mapping[str, str]]
"""Display name of a suspended node to its output parameters."""


class Broken(Exception):  # noqa: N818  named for what it tells
    """A template cannot be executed; who used it says so with this text."""


@dataclass(frozen=True)
class Start:
    """A pod that is to start now."""

    node: str
    template: Template
    scope: Scope
    """All that its container may name."""
    result: bool
    """Whether its standard output is an output."""


@dataclass(frozen=True)
class Advance:
    """What follows from a state."""

    run: RunState
    starts: tuple[Start, ...]
    wanted: Mapping[str, tuple[str, ...]]
    """Locks that are needed to go on: names by the node that waits for them."""
    stop: tuple[str, ...]
    """Running pods whose time is up with the workflow's."""
    wake: datetime | None
    """When to look again although nothing happened."""


def advance(
    program: Program, run: RunState, *, held: frozenset[str], now: datetime, answers: Answers | None = None
) -> Advance:
    """Return the state that follows, and what is to start, to lock, to stop.

    Parameters
    ----------
    held
        Ids of the nodes whose locks are held; the empty text stands for the workflow itself.
    answers
        What suspended nodes go on with.
    """
    return Walk(program, run, held, now, answers or {}).advance()


def finish(program: Program, run: RunState, node: Node) -> RunState:
    """Enter how a pod ended, and its outputs that have a global name."""
    told = program.templates[node.template].told_to_all(node.outputs)
    return replace(run, nodes={**run.nodes, node.id: node}, outputs={**run.outputs, **told})


def global_values(program: Program, run: RunState) -> dict[str, str]:
    """Return what every template may name, the exit handler's own facts apart."""
    created = run.created.astimezone(UTC)
    base = {
        "workflow.name": run.name,
        "workflow.uid": run.uid,
        "workflow.namespace": NAMESPACE,
        "workflow.serviceAccountName": str(program.spec.get("serviceAccountName", "default")),
        "workflow.mainEntrypoint": run.entrypoint,
        "workflow.creationTimestamp": f"{created:%Y-%m-%dT%H:%M:%SZ}",
        "workflow.creationTimestamp.RFC3339": f"{created:%Y-%m-%dT%H:%M:%SZ}",
        "workflow.creationTimestamp.s": str(int(created.timestamp())),
        **{f"workflow.creationTimestamp.{sign}": created.strftime(f"%{sign}") for sign in "YmdHMS"},
        **{f"workflow.labels.{key}": str(value) for key, value in (program.metadata.get("labels") or {}).items()},
        **{
            f"workflow.annotations.{key}": str(value)
            for key, value in (program.metadata.get("annotations") or {}).items()
        },
    }
    scope = Scope(base)
    given = {name: paste(value, scope) for name, value in run.parameters.items()}
    listed = [{"name": name, "value": value} for name, value in given.items()]
    return {
        **base,
        "workflow.parameters": json.dumps(listed, separators=(",", ":"), ensure_ascii=False),
        **{f"workflow.parameters.{name}": value for name, value in given.items()},
        **{f"workflow.outputs.parameters.{name}": value for name, value in run.outputs.items()},
    }


class Walk:
    """One walk from the root.  Works on copies; the state it was given stays as it was."""

    def __init__(self, program: Program, run: RunState, held: frozenset[str], now: datetime, answers: Answers) -> None:
        self.program = program
        self.run = run
        self.held = held
        self.now = now
        self.answers = answers
        self.nodes = dict(run.nodes)
        self.outputs = dict(run.outputs)
        self.globals = global_values(program, run)
        self.deadline: datetime | None = None
        self.in_exit = False
        self.starts: list[Start] = []
        self.wanted: dict[str, tuple[str, ...]] = {}
        self.wakes: list[datetime] = []

    def advance(self) -> Advance:
        """Walk from the root, and over the exit handler once the root has ended."""
        run = self.run
        if (mutexes := self.program.mutexes) and "" not in self.held:
            self.wanted[""] = tuple(paste(name, Scope(self.globals)) for name in mutexes)
            return self._answer(replace(run, message=waiting(self.wanted[""][0])))
        if run.phase == "Pending":
            run = replace(run, phase="Running", message="", started=self.now)
        self.deadline = self.program.deadline(run.started)
        try:
            root = self.execute(run.name, run.entrypoint, self._arguments())
        except Broken as error:
            message = f"error in entry template execution: {error}"
            return self._answer(replace(run, phase="Error", message=message, finished=self.now))
        run = replace(run, message=next((node.message for key, node in self.nodes.items() if key in self.wanted), ""))
        if root is not None and root.fulfilled:
            run = self._conclude(run, root)
        elif self.deadline is not None:
            self.wakes.append(self.deadline)
        return self._answer(run)

    def _answer(self, run: RunState) -> Advance:
        running = [node.id for node in self.nodes.values() if node.phase == "Running" and node.type == "Pod"]
        return Advance(
            run=replace(run, nodes=self.nodes, outputs=self.outputs),
            starts=tuple(self.starts),
            wanted=self.wanted,
            stop=tuple(running if self._late() else ()),
            wake=min((wake for wake in self.wakes if wake > self.now), default=None),
        )

    def _conclude(self, run: RunState, root: Node) -> RunState:
        """Run the exit handler, then end the workflow as its root ended, or as a failed exit handler did."""
        phase, message = root.phase if root.completed else "Succeeded", root.message
        if handler := self.program.spec.get("onExit"):
            self.in_exit = True
            failures = json.dumps(self._failures() or None, separators=(",", ":"))
            self.globals |= {
                "workflow.status": phase,
                "workflow.failures": json.dumps(failures, ensure_ascii=False),  # quoted as Go's strconv.Quote does
                "workflow.duration": f"{(self.now - (run.started or self.now)).total_seconds():.6f}",
                **{f"workflow.outputs.parameters.{name}": value for name, value in self.outputs.items()},
            }
            try:
                left = self.execute(f"{run.name}.onExit", handler, self._arguments(), flags=("hooked",))
            except Broken as error:
                message = f"error in exit template execution : {error}"
                return replace(run, phase="Error", message=message, finished=self.now)
            if left is None or not left.fulfilled:
                return run
            if phase == "Succeeded" and left.phase in BAD:
                phase, message = left.phase, left.message
        return replace(run, phase=phase, message=message, finished=self.now)

    def _arguments(self) -> dict[str, str]:
        head = "workflow.parameters."
        return {key.removeprefix(head): value for key, value in self.globals.items() if key.startswith(head)}

    def _failures(self) -> list[dict[str, str]]:
        return [
            {
                "displayName": node.display_name,
                "message": node.message,
                "templateName": node.template,
                "phase": node.phase,
                "podName": node.id,
                "finishedAt": f"{(node.finished or self.now).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
            }
            for node in self.nodes.values()
            if node.phase in BAD
        ]

    # one template

    def execute(
        self, name: str, key: str, arguments: Mapping[str, str], *, boundary: str = "", parents: Sequence[str] = (),
        flags: tuple[str, ...] = (),
    ) -> Node | None:  # fmt: skip
        """Bring the node of one use of a template as far as it goes; None while it may not begin.

        Raises
        ------
        Broken
            It cannot be executed; its node has ended in Error.
        """
        node, template = self.find(name), self.program.templates[key]
        if node is None:
            if self._is_full(boundary) or (boundary and self._gives_up(self.nodes[boundary])):
                return None
            try:
                given = parameters.inputs(template.inputs, arguments, self.program.config_maps)
            except parameters.Unsupplied as error:
                self.create(name, "Skipped", "Error", key, boundary, message=str(error), parents=parents)
                raise Broken(str(error)) from None
            inputs = {parameter: paste(value, Scope(self.globals)) for parameter, value in given.items()}
            kind = "Retry" if template.retry_strategy else template.kind
            node = self.create(name, kind, "Pending", key, boundary, inputs=inputs, parents=parents, flags=flags)
        if node.fulfilled:
            return node
        scope = Scope(
            {**self.globals, "node.name": name, **{f"inputs.parameters.{key}": v for key, v in node.inputs.items()}}
        )
        if template.mutexes and node.id not in self.held:
            self.wanted[node.id] = tuple(paste(mutex, scope) for mutex in template.mutexes)
            return self.set(node, message=waiting(self.wanted[node.id][0]))
        return self._retry(node, template, scope) if node.type == "Retry" else self._attempt(node, template, scope)

    def _attempt(self, node: Node, template: Template, scope: Scope) -> Node:
        waits = template.kind == "Suspend" or (template.kind == "Pod" and node.phase == "Pending")
        if waits and self._late():
            return self.end(node, "Failed", DEADLINE)
        if template.kind == "Suspend":
            return self._suspend(node, template, scope)
        if template.kind == "Pod":
            if node.phase == "Pending":
                node = self.set(node, message="")
                result = bool(node.boundary) and _task_name(node.name) in self._template_of(node.boundary).results
                self.starts.append(Start(node.id, template, scope.extended({"pod.name": node.id}), result))
            return node
        if node.phase == "Pending":
            node = self.set(node, phase="Running", message="", started=node.started or self.now)
        if self._gives_up(node):
            return self.nodes[node.id]
        try:
            return graph.run(self, node, template, scope)
        except LanguageError as error:
            raise self.broken(node, str(error)) from None

    def _retry(self, node: Node, template: Template, scope: Scope) -> Node:
        """Make attempts until one succeeds or `retry.decide` says that there will be no other."""
        node = self.set(node, phase="Running", message="", started=node.started or self.now)
        while True:
            attempts = [self.nodes[child] for child in node.children if "retried" in self.nodes[child].flags]
            last = attempts[-1] if attempts else None
            if last is not None and last.fulfilled:
                if last.phase not in BAD:
                    return self.end(node, "Succeeded", like=last)
                strategy = substitute(template.retry_strategy, scope)
                deadline = None if self.in_exit else self.deadline
                try:
                    decision = retry.decide(strategy, attempts, now=self.now, deadline=deadline)
                except LanguageError as error:
                    raise self.broken(node, str(error)) from None
                if isinstance(decision, retry.End):
                    return self.end(node, decision.phase, decision.message, like=last)
                if isinstance(decision, retry.Wait):
                    self.wakes.append(decision.until)
                    return self.set(node, message=decision.message)
            if last is None or last.fulfilled:
                if self._is_full(""):
                    return node
                child = self.create(
                    f"{node.name}({len(attempts)})", template.kind, "Pending", node.template, node.boundary,
                    inputs=node.inputs, parents=[node.id], flags=(*node.flags, "retried"),
                )  # fmt: skip
            else:
                child = last
                attempts.pop()
            known = retry.variables(len(attempts), attempts[-1] if attempts else None)
            try:
                child = self._attempt(child, template, scope.extended({**known, "node.name": child.name}))
            except Broken:
                child = self.nodes[child.id]
            node = self.nodes[node.id]
            if not child.fulfilled:
                return node

    def _suspend(self, node: Node, template: Template, scope: Scope) -> Node:
        """Wait for the duration, or for an answer; then outputs have the values supplied, else their defaults."""
        if node.phase == "Pending":
            node = self.set(node, phase="Running", message="", started=self.now)
        duration = paste(str((template.body["suspend"] or {}).get("duration") or ""), scope)
        until = (node.started or self.now) + retry.parse_duration(duration) if duration else None
        answer = self.answers.get(node.display_name)
        if answer is None and (until is None or self.now < until):
            self.wakes += [until] if until else []
            return node
        inherited = {parameter["name"]: parameter.get("default") for parameter in template.inputs}
        values = {}
        for output in template.outputs:
            name, source = output["name"], output.get("valueFrom") or {}
            default = source.get("default", inherited.get(name))
            if (value := (answer or {}).get(name, default)) is not None:
                values[name] = parameters.text_of(value)
            elif answer is None:
                missing = f"raw output parameter '{name}' has not been set and does not have a default value"
                raise self.broken(node, missing)
        self.outputs |= template.told_to_all(values)
        return self.end(node, "Succeeded", outputs=values)

    def _late(self) -> bool:
        return self.deadline is not None and self.now >= self.deadline and not self.in_exit

    def _is_full(self, boundary: str) -> bool:
        """Tell whether as much runs as the workflow, or the DAG or steps around, may run at once."""
        active = [node for node in self.nodes.values() if node.phase in ("Pending", "Running")]
        limit = self.program.spec.get("parallelism")
        if limit is not None and sum(n.type == "Pod" and n.id not in self.wanted for n in active) >= int(limit):
            return True
        own = self._template_of(boundary).body.get("parallelism") if boundary else None
        siblings = [n for n in active if n.boundary == boundary and n.type in ("Pod", "Steps", "DAG")]
        return own is not None and len(siblings) >= int(own)

    def _gives_up(self, owner: Node) -> bool:
        """Tell whether a DAG or steps of the template's own `failFast` begin nothing more; end it once all is quiet."""
        inner = [n for n in self.nodes.values() if n.boundary == owner.id and n.type in ("Pod", "Steps", "DAG")]
        if not self._template_of(owner.id).body.get("failFast") or not any(n.phase in BAD for n in inner):
            return False
        if not any(n.type == "Pod" and n.phase in ("Pending", "Running") for n in inner):
            groups = [n for n in self.nodes.values() if n.boundary == owner.id and n.type == "StepGroup"]
            for node in (*groups[-1:], self.nodes[owner.id]):
                self.end(node, "Failed", GIVEN_UP)
        return True

    def _template_of(self, key: str) -> Template:
        return self.program.templates[self.nodes[key].template]

    # nodes

    def find(self, name: str) -> Node | None:
        """Return a node by its name."""
        return self.nodes.get(self.run.node_id(name))

    def create(
        self, name: str, kind: str, phase: str, template: str, boundary: str, *, message: str = "",
        inputs: Mapping[str, str] | None = None, parents: Sequence[str] = (), flags: tuple[str, ...] = (),
    ) -> Node:  # fmt: skip
        """Add a node below its parents."""
        key = self.run.node_id(name)
        started = None if phase == "Pending" else self.now
        inner = name.removeprefix(self.nodes[boundary].name) if boundary else name
        self.nodes[key] = node = Node(
            id=key, name=name, display_name=re.sub(r"^(\[\d+\])?\.", "", inner) if boundary else name, type=kind,
            phase=phase, message=message, template=template, boundary=boundary, started=started,
            finished=None if phase == "Running" else started, inputs=inputs or {}, flags=flags,
        )  # fmt: skip
        for parent in parents:
            above = self.nodes[parent]
            if key not in above.children:
                self.nodes[parent] = replace(above, children=(*above.children, key))
        return node

    def set(self, node: Node, **changes: Any) -> Node:
        """Change a node."""
        self.nodes[node.id] = changed = replace(self.nodes[node.id], **changes)
        return changed

    def end(self, node: Node, phase: str, message: str = "", *, like: Node | None = None, **changes: Any) -> Node:
        """End a node; with the outputs of another one where `like` is given."""
        if like is not None:
            changes |= {"outputs": like.outputs, "exit_code": like.exit_code, "result": like.result}
        started = self.nodes[node.id].started or self.now
        return self.set(node, phase=phase, message=message, started=started, finished=self.now, **changes)

    def broken(self, node: Node, message: str) -> Broken:
        """End a node that cannot be executed; return what to raise."""
        self.end(node, "Error", message)
        return Broken(message)

    def outbound(self, key: str) -> list[str]:
        """Return the nodes that what follows is attached to."""
        node = self.nodes[key]
        if node.type == "Retry" and node.children:
            return [node.children[-1]]
        if node.type in ("DAG", "Steps", "StepGroup", "TaskGroup"):
            inner = node.children if node.type == "TaskGroup" else node.outbound
            return [out for child in inner for out in self.outbound(child)]
        return [key]


def waiting(mutex: str) -> str:
    """Return Argo's words for a lock that somebody else holds."""
    return f"Waiting for {NAMESPACE}/Mutex/{mutex} lock. Lock status: 0/1"


def _task_name(node: str) -> str:
    """Return the task that a node's name ends with, attempt and item left out."""
    return re.sub(r"(\([^()]*\)|\[\d+\])+$", "", node).rpartition(".")[2]
