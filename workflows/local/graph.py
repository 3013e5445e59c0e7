"""DAGs and steps: which of their tasks begin, are skipped, omitted or fanned out, and how the whole ends.

Called by `schedule`, whose `Walk` holds the nodes.  A `when` is evaluated in `_enter`, a `depends` in `_visit`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from typing import TYPE_CHECKING, Any

from workflows.local import parameters
from workflows.local.depends import results
from workflows.local.expr import compile_expression, go_text
from workflows.local.manifest import Task, Template
from workflows.local.pratt import LanguageError, Undefined
from workflows.local.state import BAD, Node
from workflows.local.templating import Scope, paste, substitute, tags
from workflows.local.when import holds

if TYPE_CHECKING:
    from workflows.local.schedule import Walk

EMPTY = "Skipped, empty params"
Body = Mapping[str, Any]


def run(walk: Walk, node: Node, template: Template, scope: Scope) -> Node:
    """Bring a DAG or steps as far as they go.

    Raises
    ------
    LanguageError
        Their outputs, or what is handed on within them, cannot be made out.
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
    if phase == "Succeeded":
        said: dict[str, str] = {}
        for name in template.tasks:
            said |= _said_of_task(walk, dag, name)
        outputs = _outputs(walk, template, scope.extended(said))
    ends = [node for target in template.targets if (node := walk.find(f"{dag.name}.{target}"))]
    outbound = tuple(out for node in ends for out in walk.outbound(node.id))
    return walk.end(dag, phase, outbound=outbound, outputs=outputs)


def _visit(walk: Walk, dag: Node, template: Template, scope: Scope, name: str, visited: set[str]) -> None:
    """Bring one task as far as it goes, after those it waits for."""
    if name in visited:
        return
    visited.add(name)
    task, full_name = template.tasks[name], f"{dag.name}.{name}"
    node = walk.find(full_name)
    if node is not None and node.fulfilled:
        return
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
        if node is None and not task.depends.holds({key: _results(walk, other) for key, other in ended.items()}):
            _never(walk, dag, task, full_name, "Omitted", "omitted: depends condition not met", parents)
            return
    try:
        known = scope.extended({"tasks.name": name, **_said_of_ancestors(walk, dag, template, name)})
        body = _resolved(task, known)
        expanded = _expanded(task, body, known)
    except LanguageError as error:
        _never(walk, dag, task, full_name, "Error", str(error), parents)
        return
    if not task.fans_out:
        _enter(walk, dag, task, full_name, body, parents)
    elif not expanded:
        _never(walk, dag, task, full_name, "Skipped", EMPTY, parents)
    else:
        group = node or walk.create(full_name, "TaskGroup", "Running", task.template, dag.id, parents=parents)
        _task_group(walk, dag, task, group, expanded)


def _task_group(walk: Walk, dag: Node, task: Task, group: Node, expanded: Mapping[str, Body]) -> None:
    nodes = []
    for name, body in expanded.items():
        node = _enter(walk, dag, task, f"{dag.name}.{name}", body, [group.id])
        if node is None:
            return
        nodes.append(node)
    if all(node.fulfilled for node in nodes):
        bad = [node.phase for node in nodes if node.phase in BAD]
        walk.end(group, bad[-1] if bad else "Succeeded")


def _results(walk: Walk, node: Node) -> frozenset[str]:
    children = [walk.nodes[child].phase for child in node.children] if node.type == "TaskGroup" else []
    return results(node.phase, children)


def _assess(walk: Walk, dag: Node, template: Template) -> str:
    """Return the phase of a DAG: that of its targets; a target that never ran takes the phase of its branch.

    Breadth first along the children, each node once for each phase that its branch may have had.
    """
    targets = {walk.run.node_id(f"{dag.name}.{name}"): template.tasks[name] for name in template.targets}
    phases = dict.fromkeys(targets, "")
    queue = [(child, "Succeeded") for child in dag.children]
    seen = set(queue)
    for key, branch in queue:
        node = walk.nodes[key]
        if not node.fulfilled:
            return "Running"
        phase = node.phase if node.completed else branch
        if key in phases and phases[key] not in BAD:
            phases[key] = phase
        following = node.children
        if node.type == "Retry":  # it stands for its last attempt: only what follows the attempts counts
            following = tuple(child for attempt in node.children for child in walk.nodes[attempt].children)
        for step in ((child, phase) for child in following):
            if step not in seen:
                seen.add(step)
                queue.append(step)
    fail_fast = template.body["dag"].get("failFast", True)
    found = "Succeeded"
    for key, phase in phases.items():
        if phase == "":
            found = "Running"
            if not fail_fast:
                break
        elif phase in BAD and phase not in targets[key].continues:
            found = phase
            if fail_fast:
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
    if node is None:
        return {}
    children = [walk.nodes[key] for key in node.children] if node.type == "TaskGroup" else []
    return _aggregated(f"tasks.{name}", children) | _said_of(walk, f"tasks.{name}", node)


# steps


def _steps(walk: Walk, steps: Node, template: Template, scope: Scope) -> Node:
    known, parents = scope, [steps.id]
    for index, names in enumerate(template.groups):
        name = f"{steps.name}[{index}]"
        group = walk.find(name) or walk.create(name, "StepGroup", "Running", "", steps.id, parents=parents)
        if not group.fulfilled:
            group = _step_group(walk, steps, [template.tasks[step] for step in names], group, known)
        if not group.fulfilled:
            return walk.nodes[steps.id]
        parents = [out for child in group.children for out in walk.outbound(child)] or [group.id]
        if group.phase in BAD:
            return walk.end(steps, "Failed", group.message, outbound=_ends(walk, group))
        for step in names:
            known = known.extended(_said_of_step(walk, group, step))
    return walk.end(steps, "Succeeded", outputs=_outputs(walk, template, known), outbound=_ends(walk, group))


def _step_group(walk: Walk, steps: Node, tasks: Sequence[Task], group: Node, scope: Scope) -> Node:
    from workflows.local.schedule import Broken

    entered: list[tuple[Task, Node | None]] = []
    for task in tasks:
        full_name = f"{group.name}.{task.name}"
        known = scope.extended({"steps.name": task.name})
        try:
            body = _resolved(task, known)
        except LanguageError as error:
            return walk.end(group, "Error", f"failed to resolve references: {error}")
        try:
            expanded = _expanded(task, body, known)
        except LanguageError as error:
            return walk.end(group, "Error", str(error))
        if task.fans_out and not expanded and walk.find(full_name) is None:
            _never(walk, steps, task, full_name, "Skipped", EMPTY, [group.id])
        for name, one in expanded.items():
            full_name = f"{group.name}.{name}"
            try:
                node = _enter(walk, steps, task, full_name, one, [group.id])
            except Broken as error:
                message = f"step group deemed errored due to child {full_name} error: {error}"
                return walk.end(group, "Error", message)
            if node is not None and (node.type, node.phase) == ("Skipped", "Error"):
                return walk.end(group, "Error", node.message)
            entered.append((task, node))
    if any(node is None or not node.fulfilled for _, node in entered):
        return walk.nodes[group.id]
    failed = [node for task, node in entered if node and node.phase in BAD and node.phase not in task.continues]
    return walk.end(group, "Failed", f"child '{failed[0].id}' failed") if failed else walk.end(group, "Succeeded")


def _ends(walk: Walk, group: Node) -> tuple[str, ...]:
    return tuple(out for child in walk.nodes[group.id].children for out in walk.outbound(child))


def _said_of_step(walk: Walk, group: Node, step: str) -> dict[str, str]:
    node = walk.find(f"{group.name}.{step}")
    if node is not None:
        return _said_of(walk, f"steps.{step}", node)
    children = [walk.nodes[key] for key in walk.nodes[group.id].children]
    made = [child for child in children if child.name.startswith(f"{group.name}.{step}(") and child.type != "Skipped"]
    return _aggregated(f"steps.{step}", made) | _said_of(walk, f"steps.{step}", group)


# a task or a step


def _resolved(task: Task, scope: Scope) -> Body:
    """Replace the tags of a task; of one whose condition is false already, those of the condition only.

    Raises
    ------
    LanguageError
        The condition cannot be evaluated, or what another task says never comes.
    """
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
            raise LanguageError(
                f"{{{{{tag}}}}} never gets a value; on a cluster the workflow would wait for it for ever"
            )


def _expanded(task: Task, body: Body, scope: Scope) -> dict[str, Body]:
    """Return the tasks that a fan-out makes, by name; a task that is none stays itself."""
    if not task.fans_out:
        return {task.name: body}
    once = {key: value for key, value in body.items() if not key.startswith("with")}
    try:
        idle = not holds(body.get("when", ""))
    except LanguageError:
        idle = False
    try:
        items = _items(body)
    except LanguageError:
        if not idle:
            raise
        items = []
    made = {}
    for index, item in enumerate(items):
        values = {"item": item if isinstance(item, str) else _item_text(item)}
        described = f"[{' '.join(map(_item_text, item))}]" if isinstance(item, list) else _item_text(item)
        if isinstance(item, dict):
            values |= {f"item.{key}": _item_text(value) for key, value in item.items()}
            described = ",".join(sorted(f"{key}:{_item_text(value)}" for key, value in item.items()))
        one = substitute(once, scope.extended(values))
        for tag in () if idle else tags(one):
            raise LanguageError(f"failed to resolve {{{{{tag}}}}}")
        made[f"{task.name}({index}:{described.replace('(', '').replace(')', '')})"] = one
    return made


def _items(body: Body) -> list[Any]:
    if "withItems" in body:
        return list(body["withItems"])
    if "withSequence" in body:
        return _sequence(body["withSequence"])
    text = str(body["withParam"])
    problem = ""
    try:
        found = json.loads(text)
        if found is None or isinstance(found, list):
            return found or []
        kind = {dict: "object", str: "string", bool: "bool"}.get(type(found), "number")
        problem = f"json: cannot unmarshal {kind} into Go value of type []v1alpha1.Item"
    except ValueError as error:
        problem = _go_json_error(text, error)
    raise LanguageError(f"withParam value could not be parsed as a JSON list: {text.strip()}: {problem}")


def _sequence(sequence: Mapping[str, Any]) -> list[str]:
    try:
        start = int(sequence.get("start") or 0)
        if "end" not in sequence and int(sequence["count"]) == 0:
            return []
        end = int(sequence["end"]) if "end" in sequence else start + int(sequence["count"]) - 1
        numbers = range(start, end + 1) if start <= end else range(start, end - 1, -1)
        return [(sequence.get("format") or "%d") % number for number in numbers]
    except (KeyError, ValueError, TypeError):
        raise LanguageError(f"withSequence has no numbers: {go_text(dict(sequence))}") from None


def _item_text(value: Any) -> str:
    """Write an item as Go's String does: JSON, without the quotes of a text."""
    text = json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    return text[1:-1] if isinstance(value, str) else text


def _enter(walk: Walk, owner: Node, task: Task, name: str, body: Body, parents: Sequence[str]) -> Node | None:
    """Begin a task or step if its condition holds, or go on with it; None while it may not begin."""
    from workflows.local.schedule import Broken

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
    return walk.create(name, "Skipped", phase, task.template, owner.id, message=message, parents=parents)


# what nodes say


def _said_of(walk: Walk, head: str, node: Node) -> dict[str, str]:
    """Return what may be said of one node; of a Retry node, what its last attempt says."""
    attempts = [child for child in node.children if "retried" in walk.nodes[child].flags]
    if node.type == "Retry" and attempts:
        node = walk.nodes[attempts[-1]]
    facts: dict[str, Any] = {
        "id": node.id,
        "status": node.phase,
        "startedAt": node.started and f"{node.started.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "finishedAt": node.finished and f"{node.finished.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "exitCode": node.exit_code,
        "outputs.result": node.result,
        **{f"outputs.parameters.{key}": value for key, value in node.outputs.items()},
    }
    return {f"{head}.{key}": value for key, value in facts.items() if value is not None}


def _aggregated(head: str, nodes: Iterable[Node]) -> dict[str, str]:
    """Return the outputs of a fan-out: lists in JSON of what those that succeeded left, in their order."""
    done = [node for node in nodes if node.phase == "Succeeded"]
    if not done:
        return {f"{head}.outputs.result": "[]", f"{head}.outputs.parameters": "[]"} if list(nodes) else {}
    decoded = []
    for text in (node.result for node in done if node.result is not None):
        try:
            decoded.append(json.loads(text))
        except ValueError as error:
            raise LanguageError(_go_json_error(text, error)) from None
    said = {
        f"{head}.outputs.result": go_text(decoded),
        f"{head}.outputs.parameters": go_text([dict(sorted(node.outputs.items())) for node in done if node.outputs]),
    }
    for name in dict.fromkeys(key for node in done for key in node.outputs):
        said[f"{head}.outputs.parameters.{name}"] = _listed([n.outputs[name] for n in done if name in n.outputs])
    return said


def _listed(values: list[str]) -> str:
    """Write texts as a JSON list; when all of them are JSON lists or maps, as a list of those."""
    try:
        decoded = [json.loads(value) for value in values]
    except ValueError:
        return go_text(values)
    return go_text(decoded if all(isinstance(value, list | dict) for value in decoded) else values)


def _outputs(walk: Walk, template: Template, scope: Scope) -> dict[str, str]:
    """Return the outputs of a DAG or steps; those with a global name are told to all."""
    found = {}
    for output in template.outputs:
        source = output.get("valueFrom") or {}
        try:
            found[output["name"]] = _output(source, scope)
        except LanguageError:
            if "default" not in source:
                raise
            found[output["name"]] = parameters.text_of(source["default"])
    walk.outputs |= template.told_to_all(found)
    return found


def _output(source: Mapping[str, Any], scope: Scope) -> str:
    if "expression" in source:
        return go_text(compile_expression(source["expression"])(scope.names))
    text = paste(parameters.text_of(source.get("parameter")), scope)
    for tag in tags(text):
        raise LanguageError(f'Unable to resolve: "{tag}"')
    return text


def _go_json_error(text: str, error: ValueError) -> str:
    """Return Go's words for text that is no JSON."""
    at = getattr(error, "pos", 0)
    word = next((word for word in ("null", "true", "false") if text[at : at + 1] == word[0]), "")
    for index, sign in enumerate(word):
        if text[at + index : at + index + 1] not in (sign, ""):
            return f"invalid character '{text[at + index]}' in literal {word} (expecting '{sign}')"
    return (
        f"invalid character '{text[at]}' looking for beginning of value"
        if at < len(text)
        else "unexpected end of JSON input"
    )
