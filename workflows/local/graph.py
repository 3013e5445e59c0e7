"""DAGs and steps: which of their tasks begin, are skipped, omitted or fanned out, and how the whole ends.

Called by `schedule`, whose `Walk` holds the nodes.  A `when` is evaluated in `_enter`, a `depends` in `_visit`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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


def run(walk: Walk, node: Node, template: Template, scope: Scope) -> Node:
    """Bring a DAG or steps as far as they go.

    Raises `LanguageError` where their outputs, or what is handed on within them, cannot be made out.
    """
    return (_dag if template.kind == "DAG" else _steps)(walk, node, template, scope)


# a DAG


def _dag(walk: Walk, dag: Node, template: Template, scope: Scope) -> Node:
    visited: set[str] = set()
    for target in template.targets:
        _visit(walk, dag, template, scope, target, visited)
        if walk.find(f"{dag.name}.{target}") is not None:
            _said_of_ancestors(walk, dag, template, target)  # raises where the DAG has failed by it
    phase = _assess(walk, walk.nodes[dag.id], template)
    if phase == "Running":
        return walk.nodes[dag.id]
    outputs = {}
    if phase == "Succeeded" and template.outputs:
        said = {key: text for name in template.tasks for key, text in _said_of_task(walk, dag, name).items()}
        outputs = _outputs(walk, template, scope.extended(said))
    ends = [node for target in template.targets if (node := walk.find(f"{dag.name}.{target}"))]
    outbound = tuple(out for node in ends for out in walk.outbound(node.id))
    return walk.end(dag, phase, outbound=outbound, outputs=outputs)


def _visit(walk: Walk, dag: Node, template: Template, scope: Scope, name: str, visited: set[str]) -> None:
    """Bring one task as far as it goes, after those it waits for."""
    task, full_name = template.tasks[name], f"{dag.name}.{name}"
    node = walk.find(full_name)
    if name in visited or (node is not None and node.fulfilled):
        return
    visited.add(name)
    if node is not None and node.type != "TaskGroup":
        _enter(walk, dag, task, full_name, {}, ())
        return
    parents = [dag.id]
    if task.depends.tasks:
        for needed in task.depends.tasks:
            _visit(walk, dag, template, scope, needed, visited)
        before = {needed: walk.find(f"{dag.name}.{needed}") for needed in task.depends.tasks}
        ended = {needed: other for needed, other in before.items() if other is not None and other.fulfilled}
        if len(ended) < len(before):
            return
        parents = [out for other in ended.values() for out in walk.outbound(other.id)]
        found = {key: results(other.phase, [n.phase for n in _items_of(walk, other)]) for key, other in ended.items()}
        if node is None and not task.depends.holds(found):
            _never(walk, dag, task, full_name, "Omitted", "omitted: depends condition not met", parents)
            return
    try:
        known = scope.extended({"tasks.name": name, **_said_of_ancestors(walk, dag, template, name)})
        _begin(walk, dag, task, full_name, known, parents)
    except LanguageError as error:
        _never(walk, dag, task, full_name, "Error", str(error), parents)


def _assess(walk: Walk, dag: Node, template: Template) -> str:
    """Return the phase of a DAG: that of its targets; a target that never ran takes the phase of its branch.

    Breadth first along the children, each node once for each phase that its branch may have had.
    """
    phases = {walk.run.node_id(f"{dag.name}.{name}"): "" for name in template.targets}
    queue = [(child, "Succeeded") for child in dag.children]
    seen = set(queue)
    for key, branch in queue:
        node = walk.nodes[key]
        if not node.fulfilled:
            return "Running"
        phase = node.phase if node.phase in COMPLETED else branch
        if key in phases and phases[key] not in BAD:
            phases[key] = phase
        following = node.children
        if node.type == "Retry":  # it stands for its last attempt: only what follows the attempts counts
            following = tuple(child for attempt in node.children for child in walk.nodes[attempt].children)
        more = [(child, phase) for child in following if (child, phase) not in seen]
        seen.update(more)
        queue += dict.fromkeys(more)
    found, fail_fast = "Succeeded", template.body["dag"].get("failFast", True)
    for phase in phases.values():
        if phase == "" or phase in BAD:
            found = phase or "Running"
            if (phase in BAD) == fail_fast:
                break
    return found


def _said_of_ancestors(walk: Walk, dag: Node, template: Template, name: str) -> dict[str, str]:
    """Return what a task may say of those before it; declared outputs of one that never ran are empty."""
    said: dict[str, str] = {}
    for ancestor in template.ancestors[name]:
        node = walk.find(f"{dag.name}.{ancestor}")
        if node is not None and node.phase in ("Skipped", "Omitted"):
            declared = walk.program.templates[template.tasks[ancestor].template].outputs
            said |= {f"tasks.{ancestor}.outputs.parameters.{output['name']}": "" for output in declared}
        said |= _said_of_task(walk, dag, ancestor)
    return said


def _said_of_task(walk: Walk, dag: Node, name: str) -> dict[str, str]:
    node = walk.find(f"{dag.name}.{name}")
    return {} if node is None else _said_of(walk, f"tasks.{name}", node, _items_of(walk, node))


def _items_of(walk: Walk, node: Node) -> list[Node]:
    return [walk.nodes[key] for key in node.children] if node.type == "TaskGroup" else []


# steps


def _steps(walk: Walk, steps: Node, template: Template, scope: Scope) -> Node:
    known, parents, ends = scope, [steps.id], tuple[str, ...]()
    for index, names in enumerate(template.groups):
        name = f"{steps.name}[{index}]"
        group = walk.find(name) or walk.create(name, "StepGroup", "Running", "", steps.id, parents)
        if not group.fulfilled:
            group = _step_group(walk, steps, [template.tasks[step] for step in names], group, known)
        if not group.fulfilled:
            return walk.nodes[steps.id]
        ends = tuple(out for child in group.children for out in walk.outbound(child))
        parents = list(ends) or [group.id]
        if group.phase in BAD:
            return walk.end(steps, "Failed", group.message, outbound=ends)
        for step in names:
            known = known.extended(_said_of_step(walk, group, step))
    return walk.end(steps, "Succeeded", outputs=_outputs(walk, template, known), outbound=ends)


def _step_group(walk: Walk, steps: Node, tasks: Sequence[Task], group: Node, scope: Scope) -> Node:
    entered: list[Node | None] = []
    for task in tasks:
        full_name = f"{group.name}.{task.name}"
        try:
            entered += _begin(walk, steps, task, full_name, scope.extended({"steps.name": task.name}), [group.id])
        except LanguageError as error:
            return walk.end(group, "Error", str(error))
        except Broken as error:
            message = f"step group deemed errored due to child {full_name} error: {error}"
            return walk.end(group, "Error", message)
        for node in entered:
            if node is not None and (node.type, node.phase) == ("Skipped", "Error"):
                return walk.end(group, "Error", node.message)
    if any(node is None or not node.fulfilled for node in entered):
        return walk.nodes[group.id]
    failed = [node for node in entered if node and node.phase in BAD]
    return walk.end(group, "Failed", f"child '{failed[0].id}' failed") if failed else walk.end(group, "Succeeded")


def _said_of_step(walk: Walk, group: Node, step: str) -> dict[str, str]:
    node = walk.find(f"{group.name}.{step}")
    if node is not None:
        return _said_of(walk, f"steps.{step}", node, [])
    children = [walk.nodes[key] for key in walk.nodes[group.id].children]
    made = [child for child in children if child.name.startswith(f"{group.name}.{step}(") and child.type != "Skipped"]
    return _said_of(walk, f"steps.{step}", group, made)


# a task or a step


def _begin(walk: Walk, owner: Node, task: Task, name: str, scope: Scope, parents: list[str]) -> list[Node | None]:
    """Bring all that a task stands for as far as it goes: itself, or one task for each item.

    Raises `LanguageError` where what it is given, or its items, cannot be made out.
    """
    body = _resolved(task, scope, "failed to resolve references: " if owner.type == "Steps" else "")
    if not task.fans_out:
        return [_enter(walk, owner, task, name, body, parents)]
    expanded = _expanded(walk, name, body, scope)
    group = walk.find(name)
    if not expanded:
        return [group or _never(walk, owner, task, name, "Skipped", "Skipped, empty params", parents)]
    if owner.type == "DAG":
        group = group or walk.create(name, "TaskGroup", "Running", task.template, owner.id, parents)
        parents = [group.id]
    nodes = [_enter(walk, owner, task, item, one, parents) for item, one in expanded.items()]
    if group is not None and all(node is not None and node.fulfilled for node in nodes):
        bad = [node.phase for node in nodes if node and node.phase in BAD]
        walk.end(group, bad[-1] if bad else "Succeeded")
    return nodes


def _resolved(task: Task, scope: Scope, problem: str) -> Body:
    """Replace the tags of a task; of one whose condition is false already, those of the condition only."""
    try:
        when = paste(task.body.get("when", ""), scope)
        _expect_all(when, scope)
        try:
            if not holds(when):
                return {**task.body, "when": when}
        except LanguageError:
            if not task.fans_out:  # else it may speak of the item
                raise
        body = substitute(task.body, scope)
        _expect_all(body, scope)
    except LanguageError as error:
        raise LanguageError(f"{problem}{error}") from None
    return dict(body)


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


def _expanded(walk: Walk, name: str, body: Body, scope: Scope) -> dict[str, Body]:
    """Return the tasks that a fan-out makes, by the names of their nodes; what has begun needs no body any more."""
    once = {key: value for key, value in body.items() if not key.startswith("with")}
    try:
        idle = not holds(body.get("when", ""))
    except LanguageError:
        idle = False
    try:
        items = list(body["withItems"]) if "withItems" in body else _listed(str(body["withParam"]))
    except LanguageError:
        if not idle:
            raise
        items = []
    made: dict[str, Body] = {}
    for index, item in enumerate(items):
        described = f"[{' '.join(map(_item_text, item))}]" if isinstance(item, list) else _item_text(item)
        if isinstance(item, dict):
            described = ",".join(sorted(f"{key}:{_item_text(value)}" for key, value in item.items()))
        full_name = f"{name}({index}:{described.replace('(', '').replace(')', '')})"
        made[full_name] = {}
        if walk.find(full_name) is None:
            made[full_name] = substitute(once, scope.extended(_said_of_item(item)))
            for tag in () if idle else tags(made[full_name]):
                raise LanguageError(f"failed to resolve {{{{{tag}}}}}")
    return made


def _said_of_item(item: Any) -> dict[str, str]:
    inner = item.items() if isinstance(item, dict) else ()
    return {
        "item": item if isinstance(item, str) else _item_text(item),
        **{f"item.{key}": _item_text(value) for key, value in inner},
    }


def _listed(text: str) -> list[Any]:
    try:
        if isinstance(found := _decoded(text), list | None):
            return found or []
        kind = {dict: "object", str: "string", bool: "bool"}.get(type(found), "number")
        raise LanguageError(f"json: cannot unmarshal {kind} into Go value of type []v1alpha1.Item")
    except LanguageError as error:
        message = f"withParam value could not be parsed as a JSON list: {text.strip()}: {error}"
        raise LanguageError(message) from None


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:  # in Go's words
        odd = f"invalid character '{text[error.pos : error.pos + 1]}' looking for beginning of value"
        raise LanguageError(odd if error.pos < len(text) else "unexpected end of JSON input") from None


def _item_text(value: Any) -> str:
    """Write an item as Go's String does: JSON, without the quotes of a text."""
    text = go_json(value, sort_keys=True)
    return text[1:-1] if isinstance(value, str) else text


def _enter(walk: Walk, owner: Node, task: Task, name: str, body: Body, parents: Sequence[str]) -> Node | None:
    """Begin a task or step if its condition holds, or go on with it; None while it may not begin."""
    if walk.find(name) is None:
        condition = body.get("when", "")
        try:
            if not holds(condition):
                return _never(walk, owner, task, name, "Skipped", f"when '{condition}' evaluated false", parents)
        except LanguageError as error:
            return _never(walk, owner, task, name, "Error", str(error), parents)
    given = parameters.given(body.get("arguments") or {}, walk.program.config_maps)
    try:
        return walk.execute(name, task.template, given, boundary=owner.id, parents=parents)
    except Broken as error:
        if owner.type == "Steps":
            raise
        return walk.set(walk.nodes[walk.run.node_id(name)], message=f"task '{name}' errored: {error}")


def _never(walk: Walk, owner: Node, task: Task, name: str, phase: str, message: str, parents: Sequence[str]) -> Node:
    return walk.create(name, "Skipped", phase, task.template, owner.id, parents, message=message)


# what nodes say


def moment(time: datetime | None) -> str | None:
    """Write a time as Kubernetes does."""
    return None if time is None else f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _said_of(walk: Walk, head: str, node: Node, items: Sequence[Node]) -> dict[str, str]:
    """Return what may be said of one node; of a Retry node, what its last attempt says; of a fan-out, lists besides.

    The lists are JSON, of what those that succeeded left, in their order.
    """
    said: dict[str, str] = {}
    done = [item for item in items if item.phase == "Succeeded"]
    if items:
        said["outputs.result"] = go_json([_decoded(item.result) for item in done if item.result is not None])
        said["outputs.parameters"] = go_json([dict(sorted(item.outputs.items())) for item in done if item.outputs])
    for name in dict.fromkeys(key for item in done for key in item.outputs):
        values = [item.outputs[name] for item in done if name in item.outputs]
        try:
            decoded = [json.loads(value) for value in values]
        except ValueError:
            decoded = []
        nested = decoded and all(isinstance(value, list | dict) for value in decoded)
        said[f"outputs.parameters.{name}"] = go_json(decoded if nested else values)
    attempts = [child for child in node.children if walk.nodes[child].retried]
    if node.type == "Retry" and attempts:
        node = walk.nodes[attempts[-1]]
    facts = {
        "id": node.id, "status": node.phase, "startedAt": moment(node.started), "finishedAt": moment(node.finished),
        "exitCode": node.exit_code, "outputs.result": node.result,
        **{f"outputs.parameters.{key}": value for key, value in node.outputs.items()},
    }  # fmt: skip
    said |= {key: value for key, value in facts.items() if value is not None}
    return {f"{head}.{key}": value for key, value in said.items()}


def _outputs(walk: Walk, template: Template, scope: Scope) -> dict[str, str]:
    """Return the outputs of a DAG or steps; those with a global name are told to all."""
    found = {}
    for output in template.outputs:
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
    walk.outputs |= template.told_to_all(found)
    return found
