"""Reads the manifests of a run into a `Program`, and refuses what it does not know.  Called by `runner`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from workflows.local import parameters
from workflows.local.depends import Depends, compile_depends
from workflows.local.expr import compile_expression
from workflows.local.pratt import LanguageError, constant
from workflows.local.retry import POLICIES, parse_duration
from workflows.local.supported import FIELDS, Found, check
from workflows.local.templating import Scope, replace, substitute, tags
from workflows.local.when import holds

Images = Mapping[str, Sequence[str]]
"""Image to the local words that take the place of its command's first word; no words: the command runs as it stands."""


@dataclass(frozen=True)
class Task:
    """One task of a DAG."""

    name: str
    template: str
    body: Mapping[str, Any]
    """Arguments and condition, tags and all."""
    depends: Depends


@dataclass(frozen=True)
class Template:
    """One template."""

    name: str
    body: Mapping[str, Any]
    tasks: Mapping[str, Task] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The type of the node it makes, attempts apart."""
        return "DAG" if "dag" in self.body else "Pod"

    @property
    def mutexes(self) -> tuple[str, ...]:
        """Names of the locks it holds while it runs."""
        return tuple(mutex["name"] for mutex in (self.body.get("synchronization") or {}).get("mutexes", ()))

    @property
    def inputs(self) -> Sequence[Mapping[str, Any]]:
        """Its input parameters."""
        return (self.body.get("inputs") or {}).get("parameters") or ()

    @property
    def outputs(self) -> Sequence[Mapping[str, Any]]:
        """Its output parameters."""
        return (self.body.get("outputs") or {}).get("parameters") or ()

    @cached_property
    def leaves(self) -> list[str]:
        """Tasks that no other one waits for: what a DAG is judged by."""
        needed = {name for task in self.tasks.values() for name in task.depends.tasks}
        return sorted(name for name in self.tasks if name not in needed)

    @cached_property
    def ancestors(self) -> dict[str, list[str]]:
        """Of each task, all that must end before it."""
        found: dict[str, list[str]] = {}
        for name in self.tasks:
            seen: dict[str, None] = {}
            queue = list(self.tasks[name].depends.tasks)
            while queue:
                if (task := queue.pop(0)) not in seen and task in self.tasks:
                    seen[task] = None
                    queue += self.tasks[task].depends.tasks
            found[name] = list(seen)
        return found


@dataclass(frozen=True)
class Program:
    """All that a run is made of."""

    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    spec: Mapping[str, Any]
    templates: Mapping[str, Template]
    entrypoint: str
    config_maps: Mapping[str, Mapping[str, str]]
    secrets: Mapping[str, Mapping[str, str]]
    arguments: Mapping[str, str]
    """The workflow's parameters; tags in them are not replaced yet."""
    not_applied: tuple[str, ...]


def load(
    manifests: Sequence[Mapping[str, Any]], *, entrypoint: str | None, given: Mapping[str, str], images: Images
) -> Program:
    """Read one Workflow or WorkflowTemplate and the ConfigMaps and Secrets beside it.

    Raises
    ------
    ConfigError
        With one finding, by its path in the file, for everything that the runner does not know or that cannot work.
    """
    found = Found()
    runnable = [m for m in manifests if m.get("kind") in ("Workflow", "WorkflowTemplate")]
    manifest = runnable[0] if runnable else {}
    if len(runnable) == 1:
        check(manifest, manifest["kind"], "", found)
    else:
        found.refused.append(("", f"one Workflow or WorkflowTemplate is needed, {len(runnable)} were given"))
    for other in manifests:
        if other.get("kind") not in ("Workflow", "WorkflowTemplate", "ConfigMap", "Secret"):
            found.refused.append((f"{other.get('kind')}", "is no object that the local runner knows"))
    if not found.refused:
        program = _program(manifest, manifests, entrypoint, given, found)
        found.refused += _problems(program, images)
    if found.refused:
        from contracts.errors import ConfigError, Finding  # with pydantic behind it, dearer than a step's start

        name = str((manifest.get("metadata") or {}).get("name", "the manifest"))
        raise ConfigError(
            f"{name} cannot run here: {len(found.refused)} findings",
            findings=[Finding(where=where or name, what=what) for where, what in found.refused],
            remedy="docs/local-runner.md lists what is supported",
        )
    return program


def _program(
    manifest: Mapping[str, Any],
    manifests: Sequence[Mapping[str, Any]],
    entrypoint: str | None,
    given: Mapping[str, str],
    found: Found,
) -> Program:
    metadata, spec = manifest.get("metadata") or {}, manifest.get("spec") or {}
    maps = {m["metadata"]["name"]: m for m in manifests if m.get("kind") == "ConfigMap"}
    secrets = {m["metadata"]["name"]: _secret(m, found) for m in manifests if m.get("kind") == "Secret"}
    templates = {t.get("name", ""): _template(t, found) for t in spec.get("templates") or ()}
    return Program(
        name=metadata.get("name") or str(metadata.get("generateName", "workflow-")).rstrip("-"),
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
        spec=spec,
        templates=templates,
        entrypoint=entrypoint or spec.get("entrypoint", ""),
        config_maps={name: {k: str(v) for k, v in (m.get("data") or {}).items()} for name, m in maps.items()},
        secrets=secrets,
        arguments=parameters.arguments(spec, given, maps, found),
        not_applied=tuple(found.not_applied),
    )


def _secret(manifest: Mapping[str, Any], found: Found) -> dict[str, str]:
    values = {}
    for key, text in (manifest.get("data") or {}).items():
        try:
            values[key] = base64.b64decode(text, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, TypeError):
            found.refused.append((f"Secret {manifest['metadata']['name']}.data.{key}", "is not base64 of a text"))
    return values | {key: str(text) for key, text in (manifest.get("stringData") or {}).items()}


def _template(body: Mapping[str, Any], found: Found) -> Template:
    path = f"spec.templates[{body.get('name')}]"
    tasks = {}
    for raw in (body.get("dag") or {}).get("tasks") or ():
        name, where = raw.get("name", ""), f"{path}.dag.tasks[{raw.get('name')}]"
        if name in tasks:
            found.refused.append((where, "stands twice"))
        if raw.get("depends") and raw.get("dependencies"):
            found.refused.append((where, "has both depends and dependencies"))
        condition = raw.get("depends") or " && ".join(raw.get("dependencies") or ())
        depends = Depends((), constant(True))
        try:
            depends = compile_depends(condition) if condition else depends
        except LanguageError as error:
            found.refused.append((f"{where}.depends", str(error)))
        tasks[name] = Task(
            name, raw.get("template", ""), {k: raw[k] for k in ("arguments", "when") if k in raw}, depends
        )
    for task in tasks.values():
        for missing in (name for name in task.depends.tasks if name not in tasks):
            found.refused.append((f"{path}.dag.tasks[{task.name}].depends", f"there is no task {missing}"))
    return Template(body.get("name", ""), body, tasks)


def _problems(program: Program, images: Images) -> Iterator[tuple[str, str]]:
    """Return what cannot work although every field is known."""
    for where, name in (("entrypoint", program.entrypoint), ("onExit", program.spec.get("onExit"))):
        if (name or where == "entrypoint") and name not in program.templates:
            yield f"spec.{where}", f"there is no template {name!r}"
    patch = program.spec.get("podSpecPatch")
    if patch is not None and not isinstance(patch, str):
        yield "spec.podSpecPatch", "should be a text"
    for template in program.templates.values():
        yield from _template_problems(program, template)
    static = Scope({f"workflow.parameters.{name}": value for name, value in program.arguments.items()})
    for name in _reachable(program, static):
        yield from _container_problems(program, program.templates[name], images, static)


def _template_problems(program: Program, template: Template) -> Iterator[tuple[str, str]]:
    path = f"spec.templates[{template.name}]"
    if ("container" in template.body) == ("dag" in template.body):
        yield path, "should have either container or dag"
    if _cyclic(template):
        yield f"{path}.dag", "its tasks wait for each other in a circle"
    for task in template.tasks.values():
        where = f"{path}.dag.tasks[{task.name}]"
        if task.template not in program.templates:
            yield f"{where}.template", f"there is no template {task.template!r}"
        if problem := _problem(holds, _with_words(task.body.get("when", "")), runtime=False):
            yield f"{where}.when", problem
    strategy = template.body.get("retryStrategy") or {}
    if strategy.get("retryPolicy", "Always") not in POLICIES:
        yield f"{path}.retryStrategy.retryPolicy", f"is none of {', '.join(POLICIES)}"
    if strategy.get("expression") and (problem := _problem(compile_expression, strategy["expression"])):
        yield f"{path}.retryStrategy.expression", problem
    backoff = strategy.get("backoff") or {}
    if backoff and "duration" not in backoff:
        yield f"{path}.retryStrategy.backoff", "needs a duration"
    for key in ("duration", "cap", "maxDuration"):
        if key in backoff and (problem := _problem(parse_duration, backoff[key])):
            yield f"{path}.retryStrategy.backoff.{key}", problem
    yield from _tag_problems(program, template, template.body, path)


def _tag_problems(program: Program, template: Template, value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            named = item.get("name", key) if isinstance(item, dict) else key
            yield from _tag_problems(
                program, template, item, f"{path}[{named}]" if isinstance(value, list) else f"{path}.{key}"
            )
    elif isinstance(value, str):
        for tag in tags(value):
            if tag.startswith("="):
                if problem := _problem(compile_expression, tag[1:].strip()):
                    yield path, problem
            elif problem := _unknown(program, template, tag):
                yield path, problem


_KNOWN = ("retries", "pod.name")


def _unknown(program: Program, template: Template, tag: str) -> str:
    head, _, rest = tag.partition(".")
    known = True
    if head == "inputs":
        known = tag in {f"inputs.parameters.{p['name']}" for p in template.inputs}
    elif tag.startswith("workflow.parameters."):
        known = tag.removeprefix("workflow.parameters.") in program.arguments
    elif head == "tasks":
        task, _, what = rest.partition(".")
        if task not in template.tasks:
            return f"{{{{{tag}}}}}: there is no task {task}"
        if what.startswith("outputs."):
            target = program.templates.get(template.tasks[task].template)
            outputs = {f"outputs.parameters.{p['name']}" for p in target.outputs} if target else set()
            known = what in outputs or what == "outputs.exitCode"
        else:
            known = what in ("status", "id", "startedAt", "finishedAt", "exitCode")
    elif head in ("steps", "item", "inputs", "outputs", "pod", "node"):
        known = tag in _KNOWN
    return "" if known else f"{{{{{tag}}}}} names nothing that the local runner knows"


def _reachable(program: Program, static: Scope) -> list[str]:
    """Return the templates that may run; a condition that is false whatever happens cuts a branch off."""
    found: dict[str, None] = {}
    queue = [program.entrypoint, program.spec.get("onExit")]
    while queue:
        name = queue.pop()
        if name and name not in found and name in program.templates:
            found[name] = None
            queue += [t.template for t in program.templates[name].tasks.values() if not _never(t, static)]
    return list(found)


def _never(task: Task, static: Scope) -> bool:
    condition = replace(task.body.get("when", ""), static)
    if "{{" in condition:
        return False
    try:
        return not holds(condition)
    except LanguageError:
        return False


def _container_problems(
    program: Program, template: Template, images: Images, static: Scope
) -> Iterator[tuple[str, str]]:
    container = template.body.get("container")
    if container is None:
        return
    path = f"spec.templates[{template.name}].container"
    image = substitute(container.get("image", ""), static)
    if image not in images:
        yield f"{path}.image", f"no local command stands for the image {image!r}"
    if not container.get("command"):
        yield f"{path}.command", "must be written out: a local run knows no image's own entrypoint"
    volumes = {v.get("name"): v for v in (*(program.spec.get("volumes") or ()), *(template.body.get("volumes") or ()))}
    mounts = container.get("volumeMounts") or []
    for mount in mounts:
        volume = volumes.get(mount.get("name"))
        where = f"{path}.volumeMounts[{mount.get('name')}]"
        if volume is None:
            yield where, "there is no volume of this name"
        elif not {"configMap", "secret", "emptyDir"} & volume.keys():
            yield where, "its volume is neither configMap, secret nor emptyDir"
        elif problem := _missing(program, volume.get("configMap"), volume.get("secret")):
            yield where, problem
    for output in template.outputs:
        target = (output.get("valueFrom") or {}).get("path")
        where = f"spec.templates[{template.name}].outputs.parameters[{output.get('name')}]"
        if target is None:
            yield where, "a container's output needs valueFrom.path"
        elif not any(str(target).startswith(mount["mountPath"].rstrip("/") + "/") for mount in mounts):
            yield f"{where}.valueFrom.path", "lies below no volumeMount, the only places a local run maps"
    for entry in (*(container.get("env") or ()), *(container.get("envFrom") or ())):
        source = entry.get("valueFrom") or entry
        where = f"{path}.env[{entry.get('name', 'envFrom')}]"
        if "fieldRef" in source and source["fieldRef"].get("fieldPath") not in FIELDS:
            yield where, f"fieldRef knows {', '.join(FIELDS)}"
        reference = source.get("configMapKeyRef") or source.get("configMapRef")
        secret = source.get("secretKeyRef") or source.get("secretRef")
        if problem := _missing(program, reference, secret and {**secret, "secretName": secret.get("name")}):
            yield where, problem


def _missing(program: Program, config_map: Mapping[str, Any] | None, secret: Mapping[str, Any] | None) -> str:
    for reference, objects, kind, key in (
        (config_map, program.config_maps, "ConfigMap", "name"),
        (secret, program.secrets, "Secret", "secretName"),
    ):
        if reference and not reference.get("optional"):
            if reference.get(key) not in objects:
                return f"there is no {kind} {reference.get(key)!r}"
            if "key" in reference and reference["key"] not in objects[reference[key]]:
                return f"{kind} {reference[key]!r} has no key {reference['key']!r}"
    return ""


def _cyclic(template: Template) -> bool:
    return any(name in ancestors for name, ancestors in template.ancestors.items())


def _with_words(condition: str) -> str:
    """Put a word in the place of each tag, so that the syntax can be judged before the values are known."""
    for tag in tags(condition):
        condition = condition.replace(f"{{{{{tag}}}}}", "word")
    return condition


def _problem(read: Callable[[str], Any], text: str, *, runtime: bool = True) -> str:
    """Return what is wrong with a text; with ``runtime=False`` only what no value could mend."""
    try:
        read(text)
    except ValueError as error:
        return (
            str(error)
            if runtime or not any(sign in str(error) for sign in ("cannot be used", "Expected boolean"))
            else ""
        )
    return ""
