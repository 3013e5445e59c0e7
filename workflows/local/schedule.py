"""The next state of a run: which nodes come to be, start, wait or are tried again, and how the workflow ends.

Pure: a `Walk` takes a program, a state, the locks held and the time, and `advance` answers with the next state and what
is to be done about it; `runner` does the doing.  What DAGs and steps make of their tasks is in `graph` (there `when` is
evaluated), whether an attempt is repeated in `retry`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from workflows.local import graph, parameters, retry
from workflows.local.expr import go_json
from workflows.local.graph import Broken, moment
from workflows.local.manifest import Program, Template
from workflows.local.pratt import LanguageError
from workflows.local.state import BAD, COMPLETED, Node, RunState
from workflows.local.templating import Scope, paste, substitute

NAMESPACE = "default"
DEADLINE = "Step exceeded its deadline"
Answers = Mapping[str, Mapping[str, str]]
"""Id of a suspended node to its output parameters."""


class Start(NamedTuple):
    """A pod that is to start now: its node, all that its container may name, whether standard output is an output."""

    node: str
    template: Template
    scope: Scope
    result: bool


class Advance(NamedTuple):
    """What follows from a state."""

    run: RunState
    starts: list[Start]
    wanted: Mapping[str, list[str]]  # names of the locks that a node waits for; the workflow itself is ``""``
    stop: list[str]  # running pods whose time is up with the workflow's
    wake: datetime | None  # when to look again although nothing happened


def global_values(program: Program, run: RunState) -> dict[str, str]:
    """Return what every template may name, the exit handler's own facts apart."""
    created, metadata, labels = run.created.astimezone(UTC), program.metadata, ("labels", "annotations")
    base = {
        "workflow.name": run.name,
        "workflow.uid": run.uid,
        "workflow.namespace": NAMESPACE,
        "workflow.serviceAccountName": str(program.spec.get("serviceAccountName", "default")),
        "workflow.mainEntrypoint": run.entrypoint,
        **dict.fromkeys(("workflow.creationTimestamp", "workflow.creationTimestamp.RFC3339"), moment(created) or ""),
        "workflow.creationTimestamp.s": str(int(created.timestamp())),
        **{f"workflow.creationTimestamp.{sign}": created.strftime(f"%{sign}") for sign in "YmdHMS"},
        **{f"workflow.{what}.{key}": str(text) for what in labels for key, text in (metadata.get(what) or {}).items()},
    }
    given = {name: paste(value, Scope(base)) for name, value in run.parameters.items()}
    return {
        **base,
        "workflow.parameters": go_json([{"name": name, "value": value} for name, value in given.items()]),
        **{f"workflow.parameters.{name}": value for name, value in given.items()},
    }


class Walk:
    """One walk from the root, on copies: the state it was given stays as it was.

    `known` is what `global_values` returned, `held` are the nodes whose locks are held.
    """

    def __init__(
        self, program: Program, run: RunState, known: Mapping[str, str], *, held: Mapping[str, Any], now: datetime,
        answers: Answers,
    ) -> None:  # fmt: skip
        self.program, self.run, self.held, self.now, self.answers = program, run, held, now, answers
        self.nodes = dict(run.nodes)
        self.outputs = dict(run.outputs)
        self.globals = {**known, **_told(run.outputs)}
        self.deadline: datetime | None = None
        self.in_exit = False
        self.starts: list[Start] = []
        self.wanted: dict[str, list[str]] = {}
        self.wakes: list[datetime] = []

    def advance(self) -> Advance:
        """Walk from the root, and over the exit handler once the root has ended."""
        run = self.run
        if self.program.mutexes and "" not in self.held:
            return self._answer(run._replace(message=self._want("", self.program.mutexes, Scope(self.globals))))
        if run.phase == "Pending":
            run = run._replace(phase="Running", message="", started=self.now)
        self.deadline = self.program.deadline(run.started)
        try:
            root = self.execute(run.name, run.entrypoint, self._arguments())
        except Broken as error:
            message = f"error in entry template execution: {error}"
            return self._answer(run._replace(phase="Error", message=message, finished=self.now))
        run = run._replace(message=next((node.message for key, node in self.nodes.items() if key in self.wanted), ""))
        if root is not None and root.fulfilled:
            run = self._conclude(run, root)
        elif self.deadline is not None:
            self.wakes.append(self.deadline)
        return self._answer(run)

    def _answer(self, run: RunState) -> Advance:
        running = [node.id for node in self.nodes.values() if node.phase == "Running" and node.type == "Pod"]
        wake = min((wake for wake in self.wakes if wake > self.now), default=None)
        run = run._replace(nodes=self.nodes, outputs=self.outputs)
        return Advance(run, self.starts, self.wanted, running if self._late() else [], wake)

    def _conclude(self, run: RunState, root: Node) -> RunState:
        """Run the exit handler, then end the workflow as its root ended, or as a failed exit handler did."""
        phase, message = root.phase if root.phase in COMPLETED else "Succeeded", root.message
        if handler := self.program.spec.get("onExit"):
            self.in_exit = True
            failures = [
                {"displayName": node.display_name, "message": node.message, "templateName": node.template,
                 "phase": node.phase, "podName": node.id, "finishedAt": moment(node.finished or self.now)}
                for node in self.nodes.values() if node.phase in BAD
            ]  # fmt: skip
            self.globals |= {
                "workflow.status": phase,
                "workflow.failures": go_json(go_json(failures or None)),  # quoted, as Go does
                "workflow.duration": f"{(self.now - (run.started or self.now)).total_seconds():.6f}",
                **_told(self.outputs),
            }
            try:
                left = self.execute(f"{run.name}.onExit", handler, self._arguments(), hooked=True)
            except Broken as error:
                message = f"error in exit template execution : {error}"
                return run._replace(phase="Error", message=message, finished=self.now)
            if left is None or not left.fulfilled:
                return run
            if phase == "Succeeded" and left.phase in BAD:
                phase, message = left.phase, left.message
        return run._replace(phase=phase, message=message, finished=self.now)

    def _arguments(self) -> dict[str, str]:
        head = "workflow.parameters."
        return {key.removeprefix(head): value for key, value in self.globals.items() if key.startswith(head)}

    def _want(self, key: str, mutexes: Sequence[str], scope: Scope) -> str:
        """Ask for a node's locks; return Argo's words for waiting."""
        self.wanted[key] = [paste(name, scope) for name in mutexes]
        return f"Waiting for {NAMESPACE}/Mutex/{self.wanted[key][0]} lock. Lock status: 0/1"

    # one template

    def execute(
        self, name: str, key: str, arguments: Mapping[str, str], *, boundary: str = "", parents: Sequence[str] = (),
        hooked: bool = False,
    ) -> Node | None:  # fmt: skip
        """Bring the node of one use of a template as far as it goes; None while it may not begin.

        Raises `Broken` where it cannot be executed; its node has then ended in Error.
        """
        node, template = self.find(name), self.program.templates[key]
        if node is None:
            if self._is_full(boundary):
                return None
            try:
                given = parameters.inputs(template.inputs, arguments, self.program.parameter_maps)
            except parameters.Unsupplied as error:
                self.create(name, "Skipped", "Error", key, boundary, parents, message=str(error))
                raise Broken(str(error)) from None
            inputs = {parameter: paste(value, Scope(self.globals)) for parameter, value in given.items()}
            kind = "Retry" if template.retry_strategy else template.kind
            node = self.create(name, kind, "Pending", key, boundary, parents, inputs=inputs, hooked=hooked)
        if node.fulfilled:
            return node
        own = {f"inputs.parameters.{parameter}": value for parameter, value in node.inputs.items()}
        scope = Scope({**self.globals, "node.name": name, **own})
        if template.mutexes and node.id not in self.held:
            if self._late():
                return self.end(node, "Failed", DEADLINE)
            return self.set(node, message=self._want(node.id, template.mutexes, scope))
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
        node = self._begun(node)
        try:
            return graph.Graph(self, node, template, scope).run()
        except LanguageError as error:
            raise self._broken(node, str(error)) from None

    def _retry(self, node: Node, template: Template, scope: Scope) -> Node:
        """Make attempts until one succeeds or `retry.decide` says that there will be no other."""
        node = self._begun(node)
        while True:
            attempts = [self.nodes[child] for child in node.children if self.nodes[child].retried]
            if attempts and attempts[-1].fulfilled:
                last = attempts[-1]
                if last.phase not in BAD:
                    return self.end(node, "Succeeded", like=last)
                strategy = substitute(template.retry_strategy, scope)
                deadline = None if self.in_exit else self.deadline
                try:
                    decision = retry.decide(strategy, attempts, now=self.now, deadline=deadline)
                except LanguageError as error:
                    raise self._broken(node, str(error)) from None
                if decision.phase:
                    return self.end(node, decision.phase, decision.message, like=last)
                if decision.until is not None:
                    self.wakes.append(decision.until)
                    return self.set(node, message=decision.message)
            if not attempts or attempts[-1].fulfilled:
                if self._is_full(""):
                    return node
                child = self.create(
                    f"{node.name}({len(attempts)})", template.kind, "Pending", node.template, node.boundary, [node.id],
                    inputs=node.inputs, retried=True, hooked=node.hooked,
                )  # fmt: skip
            else:
                child = attempts.pop()
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
        node = self._begun(node)
        duration = paste(str((template.body["suspend"] or {}).get("duration") or ""), scope)
        try:
            until = (node.started or self.now) + retry.parse_duration(duration) if duration else None
        except LanguageError as error:
            raise self._broken(node, str(error)) from None
        answer = self.answers.get(node.id)
        if answer is None and (until is None or self.now < until):
            self.wakes += [until] if until else []
            return node
        inherited = {parameter["name"]: parameter.get("default") for parameter in template.inputs}
        values = {}
        for output in template.outputs:
            name, source = output["name"], output.get("valueFrom") or {}
            value = (answer or {}).get(name, source.get("default", inherited.get(name)))
            if value is not None:
                values[name] = parameters.text_of(value)
            elif answer is None:
                missing = f"raw output parameter '{name}' has not been set and does not have a default value"
                raise self._broken(node, missing)
        self.outputs |= template.told_to_all(values)
        return self.end(node, "Succeeded", outputs=values)

    def _late(self) -> bool:
        return self.deadline is not None and self.now >= self.deadline and not self.in_exit

    def _is_full(self, boundary: str) -> bool:
        """Tell whether as much runs as the workflow, or the DAG or steps around, may run at once."""
        limit = self.program.parallelism
        own = self._template_of(boundary).parallelism if boundary else None
        if limit is None and own is None:
            return False
        active = [node for node in self.nodes.values() if node.phase in ("Pending", "Running")]
        pods = [node for node in active if node.type == "Pod" and node.id not in self.wanted]
        siblings = [node for node in active if node.boundary == boundary and node.type in ("Pod", "Steps", "DAG")]
        return (limit is not None and len(pods) >= limit) or (own is not None and len(siblings) >= own)

    def _template_of(self, key: str) -> Template:
        return self.program.templates[self.nodes[key].template]

    # nodes

    def find(self, name: str) -> Node | None:
        """Return a node by its name."""
        return self.nodes.get(self.run.node_id(name))

    def create(
        self, name: str, kind: str, phase: str, template: str, boundary: str, parents: Sequence[str], **more: Any
    ) -> Node:
        """Add a node below its parents."""
        key, started = self.run.node_id(name), None if phase == "Pending" else self.now
        inner = re.sub(r"^(\[\d+\])?\.", "", name.removeprefix(self.nodes[boundary].name)) if boundary else name
        node = self.nodes[key] = Node(
            id=key, name=name, display_name=inner, type=kind, phase=phase, template=template, boundary=boundary,
            started=started, finished=None if phase == "Running" else started, **more,
        )  # fmt: skip
        for parent in parents:
            above = self.nodes[parent]
            if key not in above.children:
                self.nodes[parent] = above._replace(children=(*above.children, key))
        return node

    def set(self, node: Node, **changes: Any) -> Node:
        """Change a node."""
        before = self.nodes[node.id]
        if any(getattr(before, field) != value for field, value in changes.items()):
            self.nodes[node.id] = before._replace(**changes)
        return self.nodes[node.id]

    def end(self, node: Node, phase: str, message: str = "", *, like: Node | None = None, **changes: Any) -> Node:
        """End a node; with the outputs of another one where `like` is given."""
        if like is not None:
            changes |= {"outputs": like.outputs, "exit_code": like.exit_code, "result": like.result}
        started = self.nodes[node.id].started or self.now
        return self.set(node, phase=phase, message=message, started=started, finished=self.now, **changes)

    def _begun(self, node: Node) -> Node:
        return self.set(node, phase="Running", message="", started=node.started or self.now)

    def _broken(self, node: Node, message: str) -> Broken:
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


def _told(outputs: Mapping[str, str]) -> dict[str, str]:
    return {f"workflow.outputs.parameters.{name}": value for name, value in outputs.items()}


def _task_name(node: str) -> str:
    """Return the task that a node's name ends with, attempt and item left out."""
    return re.sub(r"(\([^()]*\)|\[\d+\])+$", "", node).rpartition(".")[2]
