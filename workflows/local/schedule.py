"""The next state of a run: which nodes come to be, start, are skipped or omitted, and how DAG and workflow end.

Pure: `advance` takes a program, a state, the locks held and the time, and answers with the next state and what is to be
done about it; `finish` enters how a pod ended.  `runner` does the doing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from workflows.local import parameters, retry
from workflows.local.depends import results
from workflows.local.expr import compile_expression, go_text
from workflows.local.manifest import Program, Task, Template
from workflows.local.pratt import LanguageError
from workflows.local.state import BAD, Node, RunState
from workflows.local.templating import Scope, substitute
from workflows.local.templating import replace as replace_tags
from workflows.local.when import holds

NAMESPACE = "default"
DEADLINE = "Step exceeded its deadline"


@dataclass(frozen=True)
class Start:
    """A pod that is to start now."""

    node: str
    template: Template
    scope: Scope
    """All that its container may name."""


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


def global_values(program: Program, run: RunState) -> dict[str, str]:
    """Return what every template may name, the exit handler's own facts apart."""
    created = run.created.astimezone(UTC)
    base = {
        "workflow.name": run.name,
        "workflow.uid": run.uid,
        "workflow.namespace": NAMESPACE,
        "workflow.serviceAccountName": str(program.spec.get("serviceAccountName", "default")),
        "workflow.mainEntrypoint": run.entrypoint,
        "workflow.creationTimestamp": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "workflow.creationTimestamp.RFC3339": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "workflow.creationTimestamp.s": str(int(created.timestamp())),
        **{f"workflow.creationTimestamp.{sign}": created.strftime(f"%{sign}") for sign in "YmdHMS"},
        **{f"workflow.labels.{key}": str(value) for key, value in program.labels.items()},
        **{f"workflow.annotations.{key}": str(value) for key, value in program.annotations.items()},
    }
    scope = Scope(base)
    given = {name: replace_tags(value, scope) for name, value in run.parameters.items()}
    listed = json.dumps([{"name": n, "value": v} for n, v in given.items()], separators=(",", ":"), ensure_ascii=False)
    return {
        **base,
        "workflow.parameters": listed,
        **{f"workflow.parameters.{name}": value for name, value in given.items()},
        **{f"workflow.outputs.parameters.{name}": value for name, value in run.outputs.items()},
    }


def advance(program: Program, run: RunState, *, held: frozenset[str], now: datetime) -> Advance:
    """Return the state that follows, and what is to start, to lock, to stop.

    Parameters
    ----------
    held
        Ids of the nodes whose locks are held; the empty text stands for the workflow itself.
    """
    return _Pass(program, run, held, now).advance()


def finish(program: Program, run: RunState, node: Node) -> RunState:
    """Enter how a pod ended, and its outputs that have a global name."""
    names = {p["name"]: p["globalName"] for p in program.templates[node.template].outputs if p.get("globalName")}
    told = {names[name]: value for name, value in node.outputs.items() if name in names}
    return replace(run, nodes={**run.nodes, node.id: node}, outputs={**run.outputs, **told})


def deadline(program: Program, run: RunState) -> datetime | None:
    """Return when the workflow must have ended, its exit handler apart."""
    seconds = program.spec.get("activeDeadlineSeconds")
    return None if seconds is None or run.started is None else run.started + timedelta(seconds=int(seconds))


class _Pass:
    """One walk from the root.  Works on copies; the state it was given stays as it was."""

    def __init__(self, program: Program, run: RunState, held: frozenset[str], now: datetime) -> None:
        self.program = program
        self.run = run
        self.held = held
        self.now = now
        self.nodes = dict(run.nodes)
        self.outputs = dict(run.outputs)
        self.globals = global_values(program, run)
        self.deadline = deadline(program, run)
        self.in_exit = False
        self.starts: list[Start] = []
        self.wanted: dict[str, tuple[str, ...]] = {}
        self.wakes: list[datetime] = []

    def advance(self) -> Advance:
        run = self.run
        mutexes = (self.program.spec.get("synchronization") or {}).get("mutexes") or ()
        if mutexes and "" not in self.held:
            self.wanted[""] = tuple(replace_tags(mutex["name"], Scope(self.globals)) for mutex in mutexes)
            return self._answer(replace(run, message=waiting(self.wanted[""][0])))
        if run.phase == "Pending":
            run = self.run = replace(run, phase="Running", message="", started=self.now)
            self.deadline = deadline(self.program, run)
        root = self._execute(run.name, run.entrypoint, self._arguments(), boundary="")
        message = next((node.message for key, node in self.nodes.items() if key in self.wanted), "")
        run = replace(run, message=message)
        if root.fulfilled:
            run = self._conclude(run, root)
        elif self.deadline is not None:
            self.wakes.append(self.deadline)
        return self._answer(run)

    def _answer(self, run: RunState) -> Advance:
        late = self._late() and not self.in_exit
        stop = [n.id for n in self.nodes.values() if n.phase == "Running" and n.type == "Pod"] if late else []
        return Advance(
            run=replace(run, nodes=self.nodes, outputs=self.outputs),
            starts=tuple(self.starts),
            wanted=self.wanted,
            stop=tuple(stop),
            wake=min((w for w in self.wakes if w > self.now), default=None),
        )

    def _conclude(self, run: RunState, root: Node) -> RunState:
        """Run the exit handler, then end the workflow as its root ended, or as a failed exit handler did."""
        phase, message = root.phase if root.completed else "Succeeded", root.message
        if handler := self.program.spec.get("onExit"):
            self.in_exit = True
            self.globals |= {
                "workflow.status": phase,
                "workflow.failures": _go_quoted(json.dumps(self._failures() or None, separators=(",", ":"))),
                "workflow.duration": f"{(self.now - (run.started or self.now)).total_seconds():.6f}",
                **{f"workflow.outputs.parameters.{name}": value for name, value in self.outputs.items()},
            }
            left = self._execute(f"{run.name}.onExit", handler, self._arguments(), boundary="")
            if not left.fulfilled:
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
                "finishedAt": (node.finished or self.now).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
            for node in self.nodes.values()
            if node.phase in BAD
        ]

    # one template

    def _execute(
        self, name: str, template_name: str, arguments: Mapping[str, str], boundary: str, parents: Sequence[str] = ()
    ) -> Node:
        """Bring the node of one use of a template as far as it goes."""
        node = self.nodes.get(self.run.node_id(name))
        if node is not None and node.fulfilled:
            return node
        template = self.program.templates[template_name]
        kind = "Retry" if "retryStrategy" in template.body else template.kind
        if node is None:
            try:
                given = parameters.inputs(template.inputs, arguments, self.program.config_maps)
            except parameters.Unsupplied as error:
                return self._create(name, kind, "Error", template, boundary, message=str(error), parents=parents)
            given = {key: replace_tags(value, Scope(self.globals)) for key, value in given.items()}
            node = self._create(name, kind, "Pending", template, boundary, inputs=given, parents=parents)
        scope = Scope({**self.globals, **{f"inputs.parameters.{key}": value for key, value in node.inputs.items()}})
        if template.mutexes and node.id not in self.held:
            self.wanted[node.id] = tuple(replace_tags(mutex, scope) for mutex in template.mutexes)
            return self._set(node, message=waiting(self.wanted[node.id][0]))
        if kind == "Retry":
            return self._retry(node, template, scope)
        return self._attempt(node, template, scope)

    def _attempt(self, node: Node, template: Template, scope: Scope) -> Node:
        if template.kind == "DAG":
            if node.phase == "Pending":
                node = self._set(node, phase="Running", message="", started=node.started or self.now)
            return self._dag(node, template, scope)
        if node.phase == "Pending":
            if self._late():
                return self._set(node, phase="Failed", message=DEADLINE, started=self.now, finished=self.now)
            node = self._set(node, message="")
            self.starts.append(Start(node.id, template, scope.extended({"pod.name": node.id})))
        return node

    def _retry(self, node: Node, template: Template, scope: Scope) -> Node:
        if node.phase == "Pending":
            node = self._set(node, phase="Running", message="", started=self.now)
        while not node.fulfilled:
            attempts = [self.nodes[child] for child in node.children if self.nodes[child].retried]
            last = attempts[-1] if attempts else None
            if last is not None and last.fulfilled:
                if last.phase not in BAD:
                    return self._end(node, "Succeeded", "", last)
                strategy = substitute(template.body["retryStrategy"], scope)
                decision = retry.decide(
                    strategy, attempts, now=self.now, deadline=None if self.in_exit else self.deadline
                )
                if isinstance(decision, retry.End):
                    return self._end(node, decision.phase, decision.message, last)
                if isinstance(decision, retry.Wait):
                    self.wakes.append(decision.until)
                    return self._set(node, message=decision.message)
            if last is None or last.fulfilled:
                node = self._set(node, message="")
                child = self._create(
                    f"{node.name}({len(attempts)})", template.kind, "Pending", template, node.boundary,
                    inputs=node.inputs, parents=[node.id], retried=True,
                )  # fmt: skip
                earlier = attempts
            else:
                child, earlier = last, attempts[:-1]
            known = scope.extended(retry.variables(len(earlier), earlier[-1] if earlier else None))
            self._attempt(child, template, known)
            node = self.nodes[node.id]
            if not self.nodes[child.id].fulfilled:
                return node
        return node

    def _end(self, node: Node, phase: str, message: str, last: Node) -> Node:
        return self._set(
            node, phase=phase, message=message, finished=self.now, outputs=last.outputs, exit_code=last.exit_code
        )

    # a DAG

    def _dag(self, node: Node, template: Template, scope: Scope) -> Node:
        visited: set[str] = set()
        for leaf in template.leaves:
            self._task(node, template, scope, leaf, visited)
        phase = self._assess(self.nodes[node.id], template)
        if phase == "Running":
            return self.nodes[node.id]
        outbound = tuple(
            out for leaf in template.leaves for out in self._outbound(self.run.node_id(f"{node.name}.{leaf}"))
        )
        outputs, message = {}, ""
        if phase == "Succeeded":
            try:
                outputs = self._dag_outputs(node, template, scope)
            except LanguageError as error:
                phase, message = "Error", str(error)
        return self._set(
            self.nodes[node.id], phase=phase, message=message, finished=self.now, outbound=outbound, outputs=outputs
        )

    def _task(self, dag: Node, template: Template, scope: Scope, name: str, visited: set[str]) -> None:
        """Bring one task as far as it goes, after those it waits for."""
        if name in visited:
            return
        visited.add(name)
        task = template.tasks[name]
        full_name = f"{dag.name}.{name}"
        for needed in task.depends.tasks:
            self._task(dag, template, scope, needed, visited)
        node = self.nodes.get(self.run.node_id(full_name))
        if node is not None:
            self._execute(full_name, task.template, node.inputs, dag.id)
            return
        parents = [dag.id]
        if task.depends.tasks:
            before = [self.nodes.get(self.run.node_id(f"{dag.name}.{needed}")) for needed in task.depends.tasks]
            if any(other is None or not other.fulfilled for other in before):
                return
            ended = [other for other in before if other is not None]
            parents = [out for other in ended for out in self._outbound(other.id)]
            met = dict(zip(task.depends.tasks, (results(other.phase) for other in ended), strict=True))
            if not task.depends.holds(met):
                self._never(full_name, task, dag, parents, "Omitted", "omitted: depends condition not met")
                return
        body = substitute(task.body, scope.extended(dict(self._task_values(dag, template, name))))
        try:
            if not holds(body.get("when", "")):
                self._never(full_name, task, dag, parents, "Skipped", f"when '{body['when']}' evaluated false")
                return
        except LanguageError as error:
            self._never(full_name, task, dag, parents, "Error", str(error))
            return
        given = {
            item["name"]: parameters.text_of(item["value"])
            for item in (body.get("arguments") or {}).get("parameters") or ()
            if item.get("value") is not None
        }
        self._execute(full_name, task.template, given, dag.id, parents)

    def _task_values(self, dag: Node, template: Template, name: str) -> Iterator[tuple[str, str]]:
        """Return what a task may say of those before it."""
        for ancestor in template.ancestors[name]:
            node = self.nodes.get(self.run.node_id(f"{dag.name}.{ancestor}"))
            if node is not None:
                yield from self._said_of(template.tasks[ancestor], node)

    def _said_of(self, task: Task, node: Node) -> Iterator[tuple[str, str]]:
        head = f"tasks.{task.name}"
        yield f"{head}.id", node.id
        yield f"{head}.status", node.phase
        for key, moment in (("startedAt", node.started), ("finishedAt", node.finished)):
            if moment is not None:
                yield f"{head}.{key}", moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if node.exit_code is not None:
            yield f"{head}.exitCode", node.exit_code
            yield f"{head}.outputs.exitCode", node.exit_code
        if node.phase in ("Skipped", "Omitted"):  # declared outputs of a task that never ran are empty for others
            for output in self.program.templates[task.template].outputs:
                yield f"{head}.outputs.parameters.{output['name']}", ""
        for key, value in node.outputs.items():
            yield f"{head}.outputs.parameters.{key}", value

    def _assess(self, dag: Node, template: Template) -> str:
        """Return the phase of a DAG: that of its leaves; a leaf that never ran takes the phase of its branch.

        Breadth first along the children, each node once for each phase that its branch may have had.
        """
        ids = {self.run.node_id(f"{dag.name}.{leaf}"): "" for leaf in template.leaves}
        queue = [(child, "Succeeded") for child in dag.children]
        seen = set(queue)
        while queue:
            key, phase = queue.pop(0)
            node = self.nodes[key]
            if not node.fulfilled:
                return "Running"
            phase = node.phase if node.completed else phase
            if key in ids and ids[key] not in BAD:
                ids[key] = phase
            following = [child for out in self._outbound(key) for child in self.nodes[out].children]
            for step in ((child, phase) for child in following):
                if step not in seen:
                    seen.add(step)
                    queue.append(step)
        fail_fast = template.body["dag"].get("failFast", True)
        result = "Succeeded"
        for phase in ids.values():
            if phase == "":
                result = "Running"
                if not fail_fast:
                    break
            elif phase in BAD:
                result = phase
                if fail_fast:
                    break
        return result

    def _dag_outputs(self, dag: Node, template: Template, scope: Scope) -> dict[str, str]:
        values: dict[str, str] = {}
        for name, task in template.tasks.items():
            if (node := self.nodes.get(self.run.node_id(f"{dag.name}.{name}"))) is not None:
                values |= self._said_of(task, node)
        known, found = scope.extended(values), {}
        for output in template.outputs:
            source = output.get("valueFrom") or {}
            value = _output_value(source, known)
            if value is None and "default" in source:
                value = parameters.text_of(source["default"])
            if value is None:
                raise LanguageError(f"unable to resolve outputs.parameters.{output['name']}")
            found[output["name"]] = value
            if output.get("globalName"):
                self.outputs[output["globalName"]] = value
        return found

    def _outbound(self, key: str) -> list[str]:
        """Return the nodes that what follows is attached to."""
        node = self.nodes.get(key)
        if node is None:
            return []
        if node.type == "Retry" and node.children:
            tried = [child for child in node.children if self.nodes[child].retried]
            return self._outbound(tried[-1]) if tried else [key]
        if node.type == "DAG":
            return list(node.outbound)
        return [key]

    # nodes

    def _late(self) -> bool:
        return self.deadline is not None and self.now >= self.deadline and not self.in_exit

    def _never(self, name: str, task: Task, dag: Node, parents: Sequence[str], phase: str, message: str) -> None:
        template = self.program.templates[task.template]
        self._create(name, "Skipped", phase, template, dag.id, message=message, parents=parents)

    def _create(
        self, name: str, kind: str, phase: str, template: Template, boundary: str, *, message: str = "",
        inputs: Mapping[str, str] | None = None, parents: Sequence[str] = (), retried: bool = False,
    ) -> Node:  # fmt: skip
        key = self.run.node_id(name)
        over = phase != "Pending"
        head = f"{self.nodes[boundary].name}." if boundary else ""
        node = Node(
            id=key, name=name, display_name=name.removeprefix(head), type=kind, phase=phase, message=message,
            template=template.name, boundary=boundary, started=self.now if over else None,
            finished=self.now if over else None, inputs=inputs or {}, retried=retried,
        )  # fmt: skip
        self.nodes[key] = node
        for parent in parents:
            above = self.nodes[parent]
            if key not in above.children:
                self.nodes[parent] = replace(above, children=(*above.children, key))
        return node

    def _set(self, node: Node, **changes: Any) -> Node:
        self.nodes[node.id] = changed = replace(self.nodes[node.id], **changes)
        return changed


def waiting(mutex: str) -> str:
    """Return Argo's words for a lock that somebody else holds."""
    return f"Waiting for {NAMESPACE}/Mutex/{mutex} lock. Lock status: 0/1"


def _output_value(source: Mapping[str, Any], scope: Scope) -> str | None:
    if "expression" in source:
        try:
            value = compile_expression(source["expression"])(scope.names)
        except LanguageError:
            return None
        return None if value is None else go_text(value)
    text = replace_tags(parameters.text_of(source.get("parameter")), scope)
    return None if "{{" in text else text


def _go_quoted(text: str) -> str:
    """Quote a text as Go's strconv.Quote does: Argo hands ``workflow.failures`` over so."""
    return json.dumps(text, ensure_ascii=False)
