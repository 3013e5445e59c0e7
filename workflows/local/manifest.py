"""Reads the manifests of a run into a `Program`, and refuses what cannot run.  Called by `runner`.

What fields there are is `supported`'s; here is what must hold besides: names that are there, texts that can be read.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from workflows.local import parameters
from workflows.local.depends import BARE, Depends, compile_depends
from workflows.local.expr import compile_expression
from workflows.local.pratt import LanguageError, constant
from workflows.local.retry import POLICIES, parse_duration
from workflows.local.supported import FIELDS, Found, check
from workflows.local.templating import Scope, paste, substitute, tags
from workflows.local.when import holds

Images = Mapping[str, Sequence[str]]
"""Image to the local words that take the place of its command's first word; no words: the command runs as it stands."""
Manifest = Mapping[str, Any]
KINDS = {"container": "Pod", "script": "Pod", "dag": "DAG", "steps": "Steps", "suspend": "Suspend"}
"""What a template holds, to the type of the node it makes."""
_RESULT = re.compile(r"(?:tasks|steps)(?:\.([\w-]+)|\[['\"]([\w-]+)['\"]\])\.outputs\.result")


@dataclass(frozen=True)
class Task:
    """One task of a DAG, or one step."""

    name: str
    template: str
    """Key in the program's templates."""
    body: Manifest
    """Arguments, condition and items, tags and all."""
    depends: Depends
    continues: frozenset[str]
    """Bad phases that what follows takes for good."""

    @property
    def fans_out(self) -> bool:
        """It stands for one task for each item of a list."""
        return any(key in self.body for key in ("withItems", "withParam", "withSequence"))


@dataclass(frozen=True)
class Template:
    """One template."""

    name: str
    path: str
    """Where it stands in the file."""
    body: Manifest
    tasks: Mapping[str, Task] = field(default_factory=dict)
    groups: tuple[tuple[str, ...], ...] = ()
    """Names of steps that run together, group after group."""

    @property
    def kind(self) -> str:
        """The type of the node it makes, attempts apart."""
        return next((kind for key, kind in KINDS.items() if key in self.body), "")

    @property
    def container(self) -> Manifest:
        """What a pod runs."""
        return self.body.get("container") or self.body.get("script") or {}

    @property
    def retry_strategy(self) -> Manifest:
        """When a failed attempt is repeated; empty for never."""
        return self.body.get("retryStrategy") or {}

    @property
    def mutexes(self) -> tuple[str, ...]:
        """Names of the locks it holds while it runs."""
        return _mutexes(self.body)

    @property
    def inputs(self) -> Sequence[Manifest]:
        """Its input parameters."""
        return (self.body.get("inputs") or {}).get("parameters") or ()

    @property
    def outputs(self) -> Sequence[Manifest]:
        """Its output parameters."""
        return (self.body.get("outputs") or {}).get("parameters") or ()

    def input_default(self, name: str) -> Any:
        """Return the default of an input."""
        return next((parameter.get("default") for parameter in self.inputs if parameter["name"] == name), None)

    def told_to_all(self, outputs: Mapping[str, str]) -> dict[str, str]:
        """Return those outputs that have a global name, by it."""
        names = {p["name"]: p["globalName"] for p in self.outputs if p.get("globalName")}
        return {names[name]: value for name, value in outputs.items() if name in names}

    @cached_property
    def results(self) -> frozenset[str]:
        """Tasks whose standard output is asked for."""
        found = _RESULT.finditer(json.dumps(self.body, default=str).replace('\\"', '"'))
        return frozenset(match[1] or match[2] for match in found)

    @cached_property
    def targets(self) -> list[str]:
        """Tasks that a DAG is judged by: those that no other one waits for, unless it says otherwise."""
        if target := (self.body.get("dag") or {}).get("target"):
            return str(target).split()
        needed = {name for task in self.tasks.values() for name in task.depends.tasks}
        return sorted(name for name in self.tasks if name not in needed)

    @cached_property
    def ancestors(self) -> dict[str, list[str]]:
        """Of each task, all that must end before it."""
        found: dict[str, list[str]] = {}
        for name in self.tasks:
            seen: dict[str, None] = {}
            queue = list(self.tasks[name].depends.tasks)
            for task in queue:
                if task not in seen and task in self.tasks:
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
    spec: Manifest
    templates: Mapping[str, Template]
    """By name; those of WorkflowTemplates beside it as ``object/name``."""
    entrypoint: str
    config_maps: Mapping[str, Mapping[str, str]]
    secrets: Mapping[str, Mapping[str, str]]
    arguments: Mapping[str, str]
    """The workflow's parameters; tags in them are not replaced yet."""
    not_applied: tuple[str, ...]

    @property
    def mutexes(self) -> tuple[str, ...]:
        """Names of the locks that the workflow holds while it runs."""
        return _mutexes(self.spec)

    def deadline(self, started: datetime | None) -> datetime | None:
        """Return when the workflow must have ended, its exit handler apart."""
        seconds = self.spec.get("activeDeadlineSeconds")
        return None if seconds is None or started is None else started + timedelta(seconds=int(seconds))

    def volumes(self, template: Template) -> dict[str, Manifest]:
        """Return the volumes that a template may mount, by name."""
        both = (*(self.spec.get("volumes") or ()), *(template.body.get("volumes") or ()))
        return {volume.get("name", ""): volume for volume in both}


def _mutexes(owner: Manifest) -> tuple[str, ...]:
    return tuple(mutex["name"] for mutex in (owner.get("synchronization") or {}).get("mutexes") or ())


def load(manifests: Sequence[Manifest], *, entrypoint: str | None, given: Mapping[str, str], images: Images) -> Program:
    """Read one Workflow, or one WorkflowTemplate, and the WorkflowTemplates, ConfigMaps and Secrets that it names.

    Raises
    ------
    ConfigError
        With one finding, by its path in the file, for everything that the runner does not know or that cannot work.
    """
    found = Found()
    by_kind: dict[str, dict[str, Manifest]] = {"Workflow": {}, "WorkflowTemplate": {}, "ConfigMap": {}, "Secret": {}}
    for manifest in manifests:
        kind, metadata = str(manifest.get("kind")), manifest.get("metadata") or {}
        if kind in by_kind:
            by_kind[kind][str(metadata.get("name") or metadata.get("generateName", "workflow-"))] = manifest
        else:
            found.refuse(kind, "is no object that the local runner knows")
    runnable = list((by_kind["Workflow"] or by_kind["WorkflowTemplate"]).values())
    main: Manifest = runnable[0] if len(runnable) == 1 else {}
    if not main:
        found.refuse("", f"one Workflow or WorkflowTemplate is needed, {len(runnable)} were given")
    beside = {name: other for name, other in by_kind["WorkflowTemplate"].items() if other is not main}
    for name, other in {"": main, **beside}.items():
        check(other, "WorkflowTemplate", _root(name), found)
    if not found.refused:
        program = _program(main, beside, by_kind["ConfigMap"], by_kind["Secret"], entrypoint, given, found)
        found.refused += _problems(program, images)
    if found.refused:
        from contracts.errors import ConfigError, Finding  # with pydantic behind it, dearer than a step's start

        name = str((main.get("metadata") or {}).get("name", "the manifest"))
        raise ConfigError(
            f"{name} cannot run here: {len(found.refused)} findings",
            findings=[Finding(where=where or name, what=what) for where, what in found.refused],
            remedy="docs/local-runner.md lists what is supported",
        )
    return program


def _root(name: str) -> str:
    return f"WorkflowTemplate[{name}]" if name else ""


def _program(
    main: Manifest, beside: Mapping[str, Manifest], maps: Mapping[str, Manifest], secrets: Mapping[str, Manifest],
    entrypoint: str | None, given: Mapping[str, str], found: Found,
) -> Program:  # fmt: skip
    metadata, spec = main.get("metadata") or {}, main.get("spec") or {}
    if reference := spec.get("workflowTemplateRef"):
        if reference.get("name") not in beside:
            found.refuse("spec.workflowTemplateRef", f"there is no WorkflowTemplate {reference.get('name')!r}")
        spec = _merged((beside.get(reference.get("name")) or {}).get("spec") or {}, spec)
    templates = {}
    for owner, body in {"": spec, **{name: other.get("spec") or {} for name, other in beside.items()}}.items():
        for raw in body.get("templates") or ():
            template = _template(raw, owner, found)
            templates[template.name] = template
    return Program(
        name=metadata.get("name") or str(metadata.get("generateName", "workflow-")).rstrip("-"),
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
        spec=spec,
        templates=templates,
        entrypoint=entrypoint or spec.get("entrypoint", ""),
        config_maps={name: {k: str(v) for k, v in (m.get("data") or {}).items()} for name, m in maps.items()},
        secrets={name: _secret(name, manifest, found) for name, manifest in secrets.items()},
        arguments=parameters.arguments(spec, given, maps, found),
        not_applied=tuple(found.not_applied),
    )


def _merged(base: Manifest, spec: Manifest) -> dict[str, Any]:
    """Return the spec of a Workflow over that of the WorkflowTemplate which it refers to."""
    listed = {p["name"]: p for source in (base, spec) for p in (source.get("arguments") or {}).get("parameters") or ()}
    return {**base, **spec, "arguments": {"parameters": list(listed.values())}}


def _secret(name: str, manifest: Manifest, found: Found) -> dict[str, str]:
    values = {}
    for key, text in (manifest.get("data") or {}).items():
        try:
            values[key] = base64.b64decode(text, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, TypeError):
            found.refuse(f"Secret {name}.data.{key}", "is not base64 of a text")
    return values | {key: str(text) for key, text in (manifest.get("stringData") or {}).items()}


def _template(body: Manifest, owner: str, found: Found) -> Template:
    path = f"{_root(owner)}{'.' if owner else ''}spec.templates[{body.get('name')}]"
    tasks: dict[str, Task] = {}
    bare: dict[str, frozenset[str]] = {}
    raw_tasks = (body.get("dag") or {}).get("tasks") or ()
    groups = [list(group) for group in body.get("steps") or ()]
    for raw in (*raw_tasks, *(step for group in groups for step in group)):
        where = f"{path}.{'dag.tasks' if raw_tasks else 'steps'}[{raw.get('name')}]"
        if raw.get("name", "") in tasks:
            found.refuse(where, "stands twice")
        task = _task(raw, owner, where, found)
        tasks[task.name] = task
        bare[task.name] = frozenset(BARE) | {{"Error": "Errored"}.get(p, p) for p in task.continues}
    for task in tasks.values():
        for missing in (name for name in task.depends.tasks if name not in tasks):
            found.refuse(f"{path}.dag.tasks[{task.name}].depends", f"there is no task {missing}")
        task.depends.bare.update(bare)
    name = f"{owner}/{body.get('name', '')}" if owner else str(body.get("name", ""))
    return Template(name, path, body, tasks, tuple(tuple(step.get("name", "") for step in group) for group in groups))


def _task(raw: Manifest, owner: str, path: str, found: Found) -> Task:
    reference = raw.get("templateRef")
    if raw.get("depends") and raw.get("dependencies"):
        found.refuse(path, "has both depends and dependencies")
    condition = raw.get("depends") or " && ".join(raw.get("dependencies") or ())
    depends = Depends((), constant(True))
    try:
        depends = compile_depends(condition) if condition else depends
    except LanguageError as error:
        found.refuse(f"{path}.depends", str(error))
    goes_on = raw.get("continueOn") or {}
    own = f"{owner}/{raw.get('template', '')}" if owner else str(raw.get("template", ""))
    return Task(
        name=raw.get("name", ""),
        template=f"{reference.get('name')}/{reference.get('template')}" if reference else own,
        body={key: raw[key] for key in ("arguments", "when", "withItems", "withParam", "withSequence") if key in raw},
        depends=depends,
        continues=frozenset(phase for key, phase in (("error", "Error"), ("failed", "Failed")) if goes_on.get(key)),
    )


# what cannot work although every field is known


def _problems(program: Program, images: Images) -> Iterator[tuple[str, str]]:
    for where, name in (("entrypoint", program.entrypoint), ("onExit", program.spec.get("onExit"))):
        if (name or where == "entrypoint") and name not in program.templates:
            yield f"spec.{where}", f"there is no template {name!r}"
    for template in program.templates.values():
        yield from _template_problems(program, template)
    static = Scope({f"workflow.parameters.{name}": value for name, value in program.arguments.items()})
    for name in _reachable(program, static):
        yield from _container_problems(program, program.templates[name], images, static)


def _template_problems(program: Program, template: Template) -> Iterator[tuple[str, str]]:
    path = template.path
    if sum(key in template.body for key in KINDS) != 1:
        yield path, f"should have one of {', '.join(KINDS)}"
    if any(name in ancestors for name, ancestors in template.ancestors.items()):
        yield f"{path}.dag", "its tasks wait for each other in a circle"
    for missing in (name for name in template.targets if name not in template.tasks):
        yield f"{path}.dag.target", f"there is no task {missing}"
    for task in template.tasks.values():
        where = f"{path}.{'dag.tasks' if template.kind == 'DAG' else 'steps'}[{task.name}]"
        if task.template not in program.templates:
            yield f"{where}.template", f"there is no template {task.template!r}"
        elif missing := _unsupplied(program.templates[task.template], task):
            yield where, f"{missing} was not supplied"
        words = re.sub(r"\{\{.*?\}\}", "word", task.body.get("when", ""))
        problem = _problem(holds, words)  # of what no value could mend
        if problem and not any(sign in problem for sign in ("cannot be used", "Expected boolean")):
            yield f"{where}.when", problem
    strategy, backoff = template.retry_strategy, template.retry_strategy.get("backoff") or {}
    if strategy.get("retryPolicy", "Always") not in POLICIES:
        yield f"{path}.retryStrategy.retryPolicy", f"is none of {', '.join(POLICIES)}"
    if strategy.get("expression") and (problem := _problem(compile_expression, strategy["expression"])):
        yield f"{path}.retryStrategy.expression", problem
    if backoff and "duration" not in backoff:
        yield f"{path}.retryStrategy.backoff", "needs a duration"
    for key in ("duration", "cap", "maxDuration"):
        if key in backoff and (problem := _problem(parse_duration, backoff[key])):
            yield f"{path}.retryStrategy.backoff.{key}", problem
    yield from _tag_problems(program, template, template.body, path)


def _unsupplied(template: Template, task: Task) -> str:
    """Return an input that a task's template asks for and nobody gives."""
    given = {p.get("name") for p in (task.body.get("arguments") or {}).get("parameters") or ()}
    own = ("value", "default", "valueFrom")
    asked = (p["name"] for p in template.inputs if p["name"] not in given and not any(key in p for key in own))
    return next((f"inputs.parameters.{name}" for name in asked), "")


def _tag_problems(program: Program, template: Template, value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            named = item.get("name", key) if isinstance(item, dict) else key
            where = f"{path}[{named}]" if isinstance(value, list) else f"{path}.{key}"
            yield from _tag_problems(program, template, item, where)
    else:
        for tag in tags(value):
            if tag.startswith("="):
                if problem := _problem(compile_expression, tag[1:].strip()):
                    yield path, problem
            elif problem := _unknown(program, template, tag):
                yield path, problem


def _unknown(program: Program, template: Template, tag: str) -> str:
    """Return what is wrong with a tag that never can have a value."""
    head, _, rest = tag.partition(".")
    known = True
    if head == "inputs":
        known = tag in {f"inputs.parameters.{p['name']}" for p in template.inputs}
    elif tag.startswith("workflow.parameters."):
        known = tag.removeprefix("workflow.parameters.") in program.arguments
    elif head in ("tasks", "steps") and rest != "name":
        name, _, what = rest.partition(".")
        if name not in template.tasks:
            return f"{{{{{tag}}}}}: there is no {head[:-1]} {name}"
        target, own = program.templates.get(template.tasks[name].template), "outputs.parameters"
        known = what in (
            "status", "id", "startedAt", "finishedAt", "exitCode", "outputs.result",
            *([own] if template.tasks[name].fans_out else []),
            *(f"{own}.{p['name']}" for p in (target.outputs if target else ())),
        )  # fmt: skip
    elif head == "item":
        known = any(task.fans_out for task in template.tasks.values())
    elif head in ("outputs", "pod", "node"):
        known = tag in ("pod.name", "node.name")
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
    condition = paste(task.body.get("when", ""), static)
    try:
        return "{{" not in condition and not holds(condition)
    except LanguageError:
        return False


def _container_problems(
    program: Program, template: Template, images: Images, static: Scope
) -> Iterator[tuple[str, str]]:
    if template.kind != "Pod":
        return
    container, path = template.container, f"{template.path}.{'container' if 'container' in template.body else 'script'}"
    image = substitute(container.get("image", ""), static)
    if image not in images:
        yield f"{path}.image", f"no local command stands for the image {image!r}"
    if not container.get("command"):
        yield f"{path}.command", "must be written out: a local run knows no image's own entrypoint"
    volumes, mounts = program.volumes(template), container.get("volumeMounts") or []
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
        where = f"{template.path}.outputs.parameters[{output.get('name')}]"
        if target is None:
            yield where, "a container's output needs valueFrom.path"
        elif not any(str(target).startswith(mount["mountPath"].rstrip("/") + "/") for mount in mounts):
            yield f"{where}.valueFrom.path", "lies below no volumeMount, the only places a local run maps"
    for entry in (*(container.get("env") or ()), *(container.get("envFrom") or ())):
        source = entry.get("valueFrom") or entry
        where = f"{path}.env[{entry.get('name', 'envFrom')}]"
        if "fieldRef" in source and source["fieldRef"].get("fieldPath") not in FIELDS:
            yield where, f"fieldRef knows {', '.join(FIELDS)}"
        config_map = source.get("configMapKeyRef") or source.get("configMapRef")
        if problem := _missing(program, config_map, source.get("secretKeyRef") or source.get("secretRef")):
            yield where, problem


def _missing(program: Program, config_map: Manifest | None, secret: Manifest | None) -> str:
    for reference, objects, kind in (
        (config_map, program.config_maps, "ConfigMap"),
        (secret, program.secrets, "Secret"),
    ):
        if reference and not reference.get("optional"):
            name = str(reference.get("name") or reference.get("secretName"))
            if name not in objects:
                return f"there is no {kind} {name!r}"
            if "key" in reference and reference["key"] not in objects[name]:
                return f"{kind} {name!r} has no key {reference['key']!r}"
    return ""


def _problem(read: Callable[[str], Any], text: str) -> str:
    try:
        read(text)
    except ValueError as error:
        return str(error)
    return ""
