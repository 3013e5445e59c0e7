"""DAGs and steps: which of their tasks begin, are skipped, omitted or fanned out, and how the whole ends.

Called by `schedule`, whose `Walk` holds the nodes.  `_visit` evaluates a `depends`, `_enter` a `when`; `_resolved` and
`_expanded` look at the `when` before, for what a task names is left alone once that is false.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from workflows.local import parameters
from workflows.local.depends import results
from workflows.local.expr import compile_expression, go_json, go_text
from workflows.local.manifest import Task, Template
from workflows.local.pratt import LanguageError, Undefined
from workflows.local.state import BAD, COMPLETED, Node
from workflows.local.templating import Scope, paste, substitute, tags
from workflows.local.when import holds

if TYPE_CHECKING:
    from workflows.local.schedule import Walk

Body = Mapping[str, Any]


class Broken(Exception):  # noqa: N818  named for what it tells
    """A template cannot be executed; who used it says so with this text."""


class Graph:
    """One DAG or steps: the walk that it is part of, its node and template, and what its tasks may name."""

    def __init__(self, walk: Walk, node: Node, template: Template, scope: Scope) -> None:
        self.walk, self.node, self.template, self.scope = walk, node, template, scope

    def run(self) -> Node:
        """Bring all as far as it goes.

        Raises `LanguageError` where outputs, or what is handed on within, cannot be made out.
        """
        return self._dag() if self.template.kind == "DAG" else self._steps()

    # a DAG

    def _dag(self) -> Node:
        for name in self.template.order:
            self._visit(name)
            if name in self.template.targets and self._task(name) is not None:
                self._said_before(name)  # raises where the DAG has failed by it
        phase, outputs = self._assess(), dict[str, str]()
        if phase == "Running":
            return self.walk.nodes[self.node.id]
        if phase == "Succeeded" and self.template.outputs:
            said = {key: text for name in self.template.tasks for key, text in self._said_of(name).items()}
            outputs = self._outputs(self.scope.extended(said))
        ends = [node for target in self.template.targets if (node := self._task(target))]
        return self.walk.end(self.node, phase, outbound=self._outbound(ends), outputs=outputs)

    def _visit(self, name: str) -> None:
        """Bring one task as far as it goes; those it waits for have been."""
        task, node, full_name = self.template.tasks[name], self._task(name), f"{self.node.name}.{name}"
        if node is not None and node.fulfilled:
            return
        if node is not None and node.type != "TaskGroup":
            self._enter(task, full_name, {}, ())
            return
        before = {needed: self._task(needed) for needed in task.depends.tasks}
        ended = {needed: other for needed, other in before.items() if other is not None and other.fulfilled}
        if len(ended) < len(before):
            return
        parents = self._outbound(ended.values()) if before else (self.node.id,)
        found = {key: results(other.phase, [n.phase for n in self._children(other)]) for key, other in ended.items()}
        if node is None and not task.depends.holds(found):
            self._never(task, full_name, "Omitted", "omitted: depends condition not met", parents)
            return
        try:
            known = self.scope.extended({"tasks.name": name, **self._said_before(name)})
            self._begin(task, full_name, known, parents)
        except LanguageError as error:
            self._never(task, full_name, "Error", str(error), parents)

    def _assess(self) -> str:
        """Return the phase of a DAG: that of its targets; a target that never ran takes the phase of its branch.

        Breadth first along the children, each node once for each phase that its branch may have had.
        """
        nodes = self.walk.nodes
        phases = {self.walk.run.node_id(f"{self.node.name}.{name}"): "" for name in self.template.targets}
        queue = [(child, "Succeeded") for child in nodes[self.node.id].children]
        seen = set(queue)
        for key, branch in queue:
            node = nodes[key]
            if not node.fulfilled:
                return "Running"
            phase = node.phase if node.phase in COMPLETED else branch
            if key in phases and phases[key] not in BAD:
                phases[key] = phase
            following = node.children
            if node.type == "Retry":  # it stands for its last attempt: only what follows the attempts counts
                following = tuple(child for attempt in node.children for child in nodes[attempt].children)
            more = [(child, phase) for child in following if (child, phase) not in seen]
            seen.update(more)
            queue += dict.fromkeys(more)
        found, fail_fast = "Succeeded", self.template.body["dag"].get("failFast", True)
        for phase in phases.values():
            if phase == "" or phase in BAD:
                found = phase or "Running"
                if (phase in BAD) == fail_fast:
                    break
        return found

    # steps

    def _steps(self) -> Node:
        walk, known = self.walk, self.scope
        parents: tuple[str, ...] = (self.node.id,)
        for index, tasks in enumerate(self.template.groups):
            name = f"{self.node.name}[{index}]"
            group = walk.find(name) or walk.create(name, "StepGroup", "Running", "", self.node.id, parents)
            if not group.fulfilled:
                group = self._step_group(tasks, group, known)
            if not group.fulfilled:
                return walk.nodes[self.node.id]
            ends = self._outbound(self._children(group))
            parents = ends or (group.id,)
            if group.phase in BAD:
                return walk.end(self.node, "Failed", group.message, outbound=ends)
            for task in tasks:
                known = known.extended(self._said_of(task.name, group))
        return walk.end(self.node, "Succeeded", outputs=self._outputs(known), outbound=ends)

    def _step_group(self, tasks: Sequence[Task], group: Node, scope: Scope) -> Node:
        entered: list[Node | None] = []
        for task in tasks:
            name = f"{group.name}.{task.name}"
            try:
                entered += self._begin(task, name, scope.extended({"steps.name": task.name}), (group.id,))
            except LanguageError as error:
                return self.walk.end(group, "Error", str(error))
            except Broken as error:
                return self.walk.end(group, "Error", f"step group deemed errored due to child {name} error: {error}")
            for node in entered:
                if node is not None and (node.type, node.phase) == ("Skipped", "Error"):
                    return self.walk.end(group, "Error", node.message)
        if any(node is None or not node.fulfilled for node in entered):
            return self.walk.nodes[group.id]
        failed = [node.id for node in entered if node and node.phase in BAD]
        return self.walk.end(group, *(("Failed", f"child '{failed[0]}' failed") if failed else ("Succeeded",)))

    # a task or a step

    def _begin(self, task: Task, name: str, scope: Scope, parents: Sequence[str]) -> list[Node | None]:
        """Bring all that a task stands for as far as it goes: itself, or one task for each item.

        Raises `LanguageError` where what it is given, or its items, cannot be made out.
        """
        try:
            body = _resolved(task, scope)
        except LanguageError as error:
            problem = "failed to resolve references: " if self.template.kind == "Steps" else ""
            raise LanguageError(f"{problem}{error}") from None
        if not task.fans_out:
            return [self._enter(task, name, body, parents)]
        expanded = self._expanded(name, body, scope)
        group = self.walk.find(name)
        if not expanded:
            return [group or self._never(task, name, "Skipped", "Skipped, empty params", parents)]
        if self.template.kind == "DAG":
            group = group or self.walk.create(name, "TaskGroup", "Running", task.template, self.node.id, parents)
            parents = [group.id]
        nodes = [self._enter(task, item, one, parents) for item, one in expanded.items()]
        if group is not None and all(node is not None and node.fulfilled for node in nodes):
            bad = [node.phase for node in nodes if node and node.phase in BAD]
            self.walk.end(group, bad[-1] if bad else "Succeeded")
        return nodes

    def _expanded(self, name: str, body: Body, scope: Scope) -> dict[str, Body]:
        """Return the tasks that a fan-out makes, by the names of their nodes; what has begun needs no body any more."""
        once = {key: value for key, value in body.items() if not key.startswith("with")}
        try:
            idle = not holds(body.get("when", ""))
        except LanguageError:
            idle = False
        items = body["withItems"] if "withItems" in body else _listed(str(body["withParam"]), idle=idle)
        made: dict[str, Body] = {}
        for index, item in enumerate(items):
            described = f"[{' '.join(map(_item_text, item))}]" if isinstance(item, list) else _item_text(item)
            if isinstance(item, dict):
                described = ",".join(sorted(f"{key}:{_item_text(value)}" for key, value in item.items()))
            full_name = f"{name}({index}:{described.replace('(', '').replace(')', '')})"
            made[full_name] = {}
            if self.walk.find(full_name) is None:
                inner = item.items() if isinstance(item, dict) else ()
                said = {f"item.{key}": _item_text(value) for key, value in inner}
                said["item"] = item if isinstance(item, str) else _item_text(item)
                made[full_name] = substitute(once, scope.extended(said))
                for tag in () if idle else tags(made[full_name]):
                    raise LanguageError(f"failed to resolve {{{{{tag}}}}}")
        return made

    def _enter(self, task: Task, name: str, body: Body, parents: Sequence[str]) -> Node | None:
        """Begin a task or step if its condition holds, or go on with it; None while it may not begin."""
        if self.walk.find(name) is None:
            condition = body.get("when", "")
            try:
                if not holds(condition):
                    return self._never(task, name, "Skipped", f"when '{condition}' evaluated false", parents)
            except LanguageError as error:
                return self._never(task, name, "Error", str(error), parents)
        given = parameters.given(body.get("arguments") or {}, self.walk.program.parameter_maps)
        try:
            return self.walk.execute(name, task.template, given, boundary=self.node.id, parents=parents)
        except Broken as error:
            if self.template.kind == "Steps":
                raise
            node = self.walk.nodes[self.walk.run.node_id(name)]
            return self.walk.set(node, message=f"task '{name}' errored: {error}")

    def _never(self, task: Task, name: str, phase: str, message: str, parents: Sequence[str]) -> Node:
        return self.walk.create(name, "Skipped", phase, task.template, self.node.id, parents, message=message)

    # what nodes say

    def _task(self, name: str) -> Node | None:
        return self.walk.find(f"{self.node.name}.{name}")

    def _children(self, node: Node) -> list[Node]:
        """Return what a fan-out or a group of steps made; nothing of other nodes, whose children follow them."""
        grouped = node.type in ("TaskGroup", "StepGroup")
        return [self.walk.nodes[key] for key in self.walk.nodes[node.id].children] if grouped else []

    def _outbound(self, nodes: Iterable[Node]) -> tuple[str, ...]:
        return tuple(out for node in nodes for out in self.walk.outbound(node.id))

    def _said_before(self, name: str) -> dict[str, str]:
        """Return what a task may say of those before it; declared outputs of one that never ran are empty."""
        said: dict[str, str] = {}
        for ancestor in self.template.ancestors[name]:
            node = self._task(ancestor)
            if node is not None and node.phase in ("Skipped", "Omitted"):
                declared = self.walk.program.templates[node.template].outputs
                said |= {f"tasks.{ancestor}.outputs.parameters.{output['name']}": "" for output in declared}
            said |= self._said_of(ancestor)
        return said

    def _said_of(self, name: str, group: Node | None = None) -> dict[str, str]:
        """Return what may be said of a task, or of a step of a group, by its full name.

        Of a Retry node it is what its last attempt says; of a fan-out, lists in JSON besides: of what those of its
        tasks that succeeded left, in their order.
        """
        full_name = f"{(group or self.node).name}.{name}"
        node = self.walk.find(full_name) or group
        if node is None:
            return {}
        made = [n for n in self._children(node) if n.name.startswith(f"{full_name}(")]
        if node is group:
            made = [n for n in made if n.type != "Skipped"]
        attempts = [child for child in node.children if node.type == "Retry" and self.walk.nodes[child].retried]
        last = self.walk.nodes[attempts[-1]] if attempts else node
        facts = {
            **(_said_of_all([n for n in made if n.phase == "Succeeded"]) if made else {}),
            "id": last.id, "status": last.phase, "startedAt": moment(last.started),
            "finishedAt": moment(last.finished), "exitCode": last.exit_code,
            **({} if last.result is None else {"outputs.result": last.result}),
            **{f"outputs.parameters.{key}": value for key, value in last.outputs.items()},
        }  # fmt: skip
        head = "steps" if group else "tasks"
        return {f"{head}.{name}.{key}": value for key, value in facts.items() if value is not None}

    def _outputs(self, scope: Scope) -> dict[str, str]:
        """Return the outputs of a DAG or steps; those with a global name are told to all."""
        found = {}
        for output in self.template.outputs:
            source = output.get("valueFrom") or {}
            try:
                if "expression" in source:
                    value = go_text(compile_expression(source["expression"])(scope.names))
                else:
                    value = paste(parameters.text_of(source.get("parameter")), scope)
                    for tag in tags(value):
                        raise LanguageError(f'Unable to resolve: "{tag}"')
            except LanguageError:
                if "default" not in source:
                    raise
                value = parameters.text_of(source["default"])
            found[output["name"]] = value
        self.walk.outputs |= self.template.told_to_all(found)
        return found


def moment(time: datetime | None) -> str | None:
    """Write a time as Kubernetes does."""
    return None if time is None else f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _said_of_all(done: Sequence[Node]) -> dict[str, str]:
    """Return the results and outputs of a fan-out's tasks as lists."""
    try:
        said = {"outputs.result": go_json([json.loads(node.result) for node in done if node.result is not None])}
    except json.JSONDecodeError as error:
        odd = error.doc[error.pos : error.pos + 1]
        raise LanguageError(f"invalid character '{odd}' looking for beginning of value") from None
    said["outputs.parameters"] = go_json([dict(sorted(node.outputs.items())) for node in done if node.outputs])
    for name in dict.fromkeys(key for node in done for key in node.outputs):
        values = [node.outputs[name] for node in done if name in node.outputs]
        try:
            decoded = [json.loads(value) for value in values]
        except ValueError:
            decoded = []
        nested = decoded and all(isinstance(value, list | dict) for value in decoded)
        said[f"outputs.parameters.{name}"] = go_json(decoded if nested else values)
    return said


def _resolved(task: Task, scope: Scope) -> Body:
    """Replace the tags of a task; of one whose condition is false already, those of the condition only."""
    when = paste(task.body.get("when", ""), scope)
    _expect_all(when, scope)
    try:
        if not holds(when):
            return {**task.body, "when": when}
    except LanguageError:
        if not task.fans_out:  # else it may speak of the item
            raise
    body: Body = substitute(task.body, scope)
    _expect_all(body, scope)
    return body


def _expect_all(value: Any, scope: Scope) -> None:
    for tag in tags(value):
        if tag.startswith("="):
            try:
                compile_expression(tag[1:].strip())(scope.names)
            except Undefined:
                continue  # it may speak of an item
            except LanguageError as error:
                raise LanguageError(f"failed to evaluate expression: {error}") from None
        if tag.startswith(("tasks.", "steps.")):
            never = "never gets a value; on a cluster the workflow would wait for it for ever"
            raise LanguageError(f"{{{{{tag}}}}} {never}")


def _listed(text: str, *, idle: bool) -> list[Any]:
    """Read the items of a `withParam`; none where the condition is false whatever they are."""
    try:
        found = json.loads(text)
    except ValueError:
        found = text
    if isinstance(found, list):
        return found
    if found is None or idle:
        return []
    raise LanguageError(f"withParam value could not be parsed as a JSON list: {text.strip()}: it is none")


def _item_text(value: Any) -> str:
    """Write an item as Go's String does: JSON, without the quotes of a text."""
    text = go_json(value, sort_keys=True)
    return text[1:-1] if isinstance(value, str) else text
