"""What cannot work although every field is known: found before the first node starts.  Called by `manifest`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from workflows.local.expr import compile_expression
from workflows.local.manifest import KINDS, Images, Manifest, Program, Task, Template
from workflows.local.pratt import LanguageError
from workflows.local.retry import POLICIES, parse_duration
from workflows.local.supported import FIELDS
from workflows.local.templating import Scope, paste, tags
from workflows.local.when import holds

Problems = Iterator[tuple[str, str]]
"""Path in the file and what is wrong there."""


def problems(program: Program, images: Images) -> Problems:
    """Check all templates; images, volumes and environments of those only that may run."""
    for where, name in (("entrypoint", program.entrypoint), ("onExit", program.spec.get("onExit"))):
        if (name or where == "entrypoint") and name not in program.templates:
            yield f"spec.{where}", f"there is no template {name!r}"
    for template in program.templates.values():
        yield from _of_template(template)
        for task in template.tasks.values():
            yield from _of_task(program, task)
        yield from _of_tags(program, template, template.body, template.path)
    static = Scope({f"workflow.parameters.{name}": value for name, value in program.arguments.items()})
    for template in _reachable(program, static):
        if template.kind == "Pod":
            yield from _of_container(program, template, images, static)


def _of_template(template: Template) -> Problems:
    path, strategy = template.path, template.retry_strategy
    if sum(key in template.body for key in KINDS) != 1:
        yield path, f"should have one of {', '.join(KINDS)}"
    if any(name in ancestors for name, ancestors in template.ancestors.items()):
        yield f"{path}.dag", "its tasks wait for each other in a circle"
    for missing in (name for name in template.targets if name not in template.tasks):
        yield f"{path}.dag.target", f"there is no task {missing}"
    if strategy.get("retryPolicy", "Always") not in POLICIES:
        yield f"{path}.retryStrategy.retryPolicy", f"is none of {', '.join(POLICIES)}"
    if problem := _problem(compile_expression, strategy.get("expression")):
        yield f"{path}.retryStrategy.expression", problem
    backoff = strategy.get("backoff") or {"duration": 0}
    if "duration" not in backoff:
        yield f"{path}.retryStrategy.backoff", "needs a duration"
    for key in ("duration", "cap", "maxDuration"):
        if problem := _problem(parse_duration, backoff.get(key)):
            yield f"{path}.retryStrategy.backoff.{key}", problem


def _of_task(program: Program, task: Task) -> Problems:
    template = program.templates.get(task.template)
    given = {p.get("name") for p in (task.body.get("arguments") or {}).get("parameters") or ()}
    if template is None:
        yield f"{task.path}.template", f"there is no template {task.template!r}"
    for asked in template.inputs if template else ():
        if asked["name"] not in given and not {"value", "default", "valueFrom"} & asked.keys():
            yield task.path, f"inputs.parameters.{asked['name']} was not supplied"
    problem = _problem(holds, re.sub(r"\{\{.*?\}\}", "word", task.body.get("when", "")))
    if problem and not any(sign in problem for sign in ("cannot be used", "Expected boolean")):  # what no value mends
        yield f"{task.path}.when", problem


def _of_tags(program: Program, template: Template, value: Any, path: str) -> Problems:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            named = item.get("name", key) if isinstance(item, dict) else key
            yield from _of_tags(
                program, template, item, f"{path}.{key}" if isinstance(value, dict) else f"{path}[{named}]"
            )
        return
    for tag in tags(value):
        if tag.startswith("="):
            if problem := _problem(compile_expression, tag[1:].strip()):
                yield path, problem
        elif not _known(program, template, tag):
            yield path, f"{{{{{tag}}}}} names nothing that the local runner knows"


def _known(program: Program, template: Template, tag: str) -> bool:
    """Tell whether a tag may ever have a value."""
    head, _, rest = tag.partition(".")
    if head == "inputs":
        return tag in {f"inputs.parameters.{p['name']}" for p in template.inputs}
    if tag.startswith("workflow.parameters."):
        return tag.removeprefix("workflow.parameters.") in program.arguments
    if head in ("tasks", "steps") and rest != "name":
        name, _, what = rest.partition(".")
        if (task := template.tasks.get(name)) is None:
            return False
        target, own = program.templates.get(task.template), "outputs.parameters"
        facts = ("status", "id", "startedAt", "finishedAt", "exitCode", "outputs.result")
        declared = {f"{own}.{p['name']}" for p in (target.outputs if target else ())}
        return what in facts or what in declared or (task.fans_out and what == own)
    if head == "item":
        return any(task.fans_out for task in template.tasks.values())
    return head not in ("outputs", "pod", "node") or tag in ("pod.name", "node.name")


def _reachable(program: Program, static: Scope) -> list[Template]:
    """Return the templates that may run; a condition that is false whatever happens cuts a branch off."""
    queue = [str(name) for name in (program.entrypoint, program.spec.get("onExit")) if name in program.templates]
    for name in queue:
        for task in program.templates[name].tasks.values():
            if task.template in program.templates and task.template not in queue and not _never(task, static):
                queue.append(task.template)
    return [program.templates[name] for name in queue]


def _never(task: Task, static: Scope) -> bool:
    condition = paste(task.body.get("when", ""), static)
    try:
        return "{{" not in condition and not holds(condition)
    except LanguageError:
        return False


def _of_container(program: Program, template: Template, images: Images, static: Scope) -> Problems:
    container, path = template.container, f"{template.path}.{'container' if 'container' in template.body else 'script'}"
    image = paste(container.get("image", ""), static)
    if image and image not in images:  # an environment that has no such image leaves it empty; only its use is an error
        yield f"{path}.image", f"no local command stands for the image {image!r}"
    if not container.get("command"):
        yield f"{path}.command", "must be written out: a local run knows no image's own entrypoint"
    volumes, mounts = program.volumes(template), container.get("volumeMounts") or []
    for mount in mounts:
        where, volume = f"{path}.volumeMounts[{mount.get('name')}]", volumes.get(mount.get("name"))
        if volume is None:
            yield where, "there is no volume of this name"
        elif not {"configMap", "secret", "emptyDir"} & volume.keys():
            yield where, "its volume is neither configMap, secret nor emptyDir"
        elif problem := _missing(program, volume.get("configMap"), volume.get("secret")):
            yield where, problem
    for output in template.outputs:
        target = (output.get("valueFrom") or {}).get("path")
        where = f"{template.path}.outputs.parameters[{output.get('name')}]"
        if target is None:
            yield where, "a container's output needs valueFrom.path"
        elif not any(str(target).startswith(mount["mountPath"].rstrip("/") + "/") for mount in mounts):
            yield f"{where}.valueFrom.path", "lies below no volumeMount, the only places a local run maps"
    for entry in (*(container.get("env") or ()), *(container.get("envFrom") or ())):
        source, where = entry.get("valueFrom") or entry, f"{path}.env[{entry.get('name', 'envFrom')}]"
        if "fieldRef" in source and source["fieldRef"].get("fieldPath") not in FIELDS:
            yield where, f"fieldRef knows {', '.join(FIELDS)}"
        config_map = source.get("configMapKeyRef") or source.get("configMapRef")
        if problem := _missing(program, config_map, source.get("secretKeyRef") or source.get("secretRef")):
            yield where, problem


def _missing(program: Program, config_map: Manifest | None, secret: Manifest | None) -> str:
    """Return which object, or which key of it, a reference names that is not there."""
    for kind, reference, objects in (
        ("ConfigMap", config_map or {}, program.config_maps), ("Secret", secret or {}, program.secrets),
    ):  # fmt: skip
        name = reference.get("name") or reference.get("secretName")
        if not name or reference.get("optional"):
            continue
        if name not in objects:
            return f"there is no {kind} {name!r}"
        if reference.get("key", "") not in {"", *objects[name]}:
            return f"{kind} {name!r} has no key {reference['key']!r}"
    return ""


def _problem(read: Callable[[str], Any], text: str | None) -> str:
    try:
        if text:
            read(text)
    except ValueError as error:
        return str(error)
    return ""
