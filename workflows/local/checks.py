"""What cannot work although every field is known: found before the first node starts.  Called by `manifest`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from workflows.local.expr import compile_expression
from workflows.local.manifest import KINDS, Images, Manifest, Program, Task, Template
from workflows.local.parameters import missing
from workflows.local.pratt import LanguageError
from workflows.local.retry import POLICIES, parse_duration, whole_number
from workflows.local.supported import FIELDS
from workflows.local.templating import Scope, paste, tags
from workflows.local.when import holds

Problems = Iterator[tuple[str, str]]
"""Path in the file and what is wrong there."""
# what any task may be asked for besides its declared outputs
FACTS = ("status", "id", "startedAt", "finishedAt", "exitCode", "outputs.result")

# what a workflow may be asked for
WORKFLOW = (
    "name", "uid", "namespace", "serviceAccountName", "mainEntrypoint", "creationTimestamp", "labels", "annotations",
    "parameters", "outputs", "status", "failures", "duration",
)  # fmt: skip


def problems(program: Program, images: Images) -> Problems:
    """Check all templates; images, volumes and environments of those only that may run."""
    for where, name in (("entrypoint", program.entrypoint), ("onExit", program.spec.get("onExit"))):
        if (name or where == "entrypoint") and name not in program.templates:
            yield f"spec.{where}", f"there is no template {name!r}"
    for template in program.templates.values():
        yield from _of_template(program, template)
        for task in template.tasks.values():
            yield from _of_task(program, task)
        yield from _of_tags(program, template, template.body, template.path)
    static = Scope({f"workflow.parameters.{name}": value for name, value in program.arguments.items()})
    for template in _reachable(program, static):
        if template.kind == "Pod":
            yield from _of_container(program, template, images, static)


def _of_template(program: Program, template: Template) -> Problems:
    path, strategy = f"{template.path}.retryStrategy", template.retry_strategy
    if sum(key in template.body for key in KINDS) != 1:
        yield template.path, f"should have one of {', '.join(KINDS)}"
    if any(name in ancestors for name, ancestors in template.ancestors.items()):
        yield f"{template.path}.dag", "its tasks wait for each other in a circle"
    if strategy.get("retryPolicy", "Always") not in POLICIES:
        yield f"{path}.retryPolicy", f"is none of {', '.join(POLICIES)}"
    yield from _unreadable(f"{path}.expression", compile_expression, strategy.get("expression"))
    backoff = strategy.get("backoff") or {"duration": 0}
    if "duration" not in backoff:
        yield f"{path}.backoff", "needs a duration"
    numbers = [(f"{path}.limit", strategy.get("limit")), (f"{path}.backoff.factor", backoff.get("factor"))]
    for where, text in numbers:
        yield from _unreadable(where, whole_number, text)
    durations = [(f"{path}.backoff.{key}", backoff.get(key)) for key in ("duration", "cap", "maxDuration")]
    own = [(f"{template.path}.{key}", template.body.get(key)) for key in ("timeout", "activeDeadlineSeconds")]
    suspension = (template.body.get("suspend") or {}).get("duration")
    for where, text in (*durations, *own, (f"{template.path}.suspend.duration", suspension)):
        yield from _unreadable(where, parse_duration, text)
    for where, text in own:
        if text is not None and template.kind != "Pod":
            yield where, "is a container's or a script's"
    for parameter in template.inputs:
        if not {"value", "default"} & parameter.keys() and (problem := missing(parameter, program)):
            yield f"{template.path}.inputs.parameters[{parameter['name']}]", problem


def _of_task(program: Program, task: Task) -> Problems:
    template = program.templates.get(task.template)
    arguments = (task.body.get("arguments") or {}).get("parameters") or ()
    given = {p.get("name") for p in arguments}
    for parameter in arguments:
        if "value" not in parameter and (problem := missing(parameter, program)):
            yield f"{task.path}.arguments.parameters[{parameter.get('name')}]", problem
    if template is None:
        yield f"{task.path}.template", f"there is no template {task.template!r}"
    if not isinstance(task.body.get("withItems", []), list):
        yield f"{task.path}.withItems", "should be a list"
    for asked in template.inputs if template else ():
        if asked["name"] not in given and not {"value", "default", "valueFrom"} & asked.keys():
            yield task.path, f"inputs.parameters.{asked['name']} was not supplied"
    condition = re.sub(r"\{\{.*?\}\}", "word", task.body.get("when", ""))
    for path, problem in _unreadable(f"{task.path}.when", holds, condition):
        if "cannot be used" not in problem and "Expected boolean" not in problem:  # what no value mends
            yield path, problem


def _of_tags(program: Program, template: Template, value: Any, path: str) -> Problems:
    for key, item in value.items() if isinstance(value, dict) else ():
        yield from _of_tags(program, template, item, f"{path}.{key}")
    for index, item in enumerate(value) if isinstance(value, list) else ():
        named = item.get("name", index) if isinstance(item, dict) else index
        yield from _of_tags(program, template, item, f"{path}[{named}]")
    for tag in tags(value) if isinstance(value, str) else ():
        if tag.startswith("="):
            yield from _unreadable(path, compile_expression, tag[1:].strip())
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
        task = template.tasks.get(name)
        target = program.templates.get(task.template) if task else None
        declared = {f"outputs.parameters.{p['name']}" for p in (target.outputs if target else ())}
        listed = task is not None and task.fans_out and what == "outputs.parameters"
        return task is not None and (what in {*FACTS, *declared} or listed)
    if head == "item":
        return any(task.fans_out for task in template.tasks.values())
    if head == "workflow":
        return rest.partition(".")[0] in WORKFLOW
    return head in ("retries", "lastRetry") or tag in ("pod.name", "node.name", "tasks.name", "steps.name")


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
        yield f"{path}.image", f"no local command stands for the image {image!r} (RETRAIN_IMAGES says which)"
    if not container.get("command"):
        yield f"{path}.command", "must be written out: a local run knows no image's own entrypoint"
    volumes, mounts = program.volumes(template), container.get("volumeMounts") or []
    for mount in mounts:
        where, volume = f"{path}.volumeMounts[{mount.get('name')}]", volumes.get(mount.get("name"))
        if volume is None:
            yield where, "there is no volume of this name"
        elif not {"configMap", "secret", "emptyDir"} & volume.keys():
            yield where, "its volume is neither configMap, secret nor emptyDir"
        else:
            yield from _missing(program, where, volume)
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
        yield from _missing(program, where, source)


def _missing(program: Program, path: str, source: Manifest) -> Problems:
    """Find the object, or the key of it, that a source refers to and that is not there."""
    what, reference, data = program.referred(source)
    if what and not reference.get("optional"):
        if data is None:
            yield path, f"there is no {what}"
        elif reference.get("key", "") not in {"", *data}:
            yield path, f"{what} has no key {reference['key']!r}"


def _unreadable(path: str, read: Callable[[Any], Any], text: str | int | None) -> Problems:
    """Find a text that cannot be read; one whose tags are replaced later is read then."""
    try:
        if text and "{{" not in str(text):
            read(text)
    except ValueError as error:
        yield path, str(error)
