"""Reads the manifests of a run into a `Program`, and refuses what cannot run.  Called by `runner`.

What fields there are is `supported`'s; what must hold besides (names that are there, texts that can be read) is
`checks`'s.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from workflows.local import parameters
from workflows.local.depends import BARE, Depends, compile_depends
from workflows.local.pratt import LanguageError, constant
from workflows.local.supported import Found, check

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
    path: str
    """Where it stands in the file."""
    template: str
    """Key in the program's templates."""
    body: Manifest
    """Arguments, condition and items, tags and all."""
    depends: Depends
    continues: frozenset[str]
    """Bad phases that what follows takes for good."""
    fans_out: bool
    """It stands for one task for each item of a list."""


@dataclass(frozen=True)
class Template:
    """One template."""

    name: str
    path: str
    kind: str
    """The type of the node it makes, attempts apart."""
    body: Manifest
    container: Manifest
    """What a pod runs."""
    retry_strategy: Manifest
    """When a failed attempt is repeated; empty for never."""
    inputs: Sequence[Manifest]
    outputs: Sequence[Manifest]
    mutexes: tuple[str, ...]
    """Names of the locks it holds while it runs."""
    tasks: Mapping[str, Task]
    groups: tuple[tuple[str, ...], ...]
    """Names of steps that run together, group after group."""

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
        for name, task in self.tasks.items():
            queue = [needed for needed in task.depends.tasks if needed in self.tasks]
            for needed in queue:
                queue += [more for more in self.tasks[needed].depends.tasks if more in self.tasks and more not in queue]
            found[name] = list(dict.fromkeys(queue))
        return found


@dataclass(frozen=True)
class Program:
    """All that a run is made of."""

    name: str
    metadata: Manifest
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


def load(
    manifests: Sequence[Manifest], *, entrypoint: str | None, given: Mapping[str, str], images: Images
) -> Program:  # fmt: skip
    """Read one Workflow, or one WorkflowTemplate, and the WorkflowTemplates, ConfigMaps and Secrets that it names.

    Raises `ConfigError` with a finding, by its path in the file, for all that is not known or cannot work.
    """
    from workflows.local.checks import problems

    found = Found()
    objects: dict[str, dict[str, Manifest]] = {"Workflow": {}, "WorkflowTemplate": {}, "ConfigMap": {}, "Secret": {}}
    for manifest in manifests:
        kind, metadata = str(manifest.get("kind")), manifest.get("metadata") or {}
        if kind in objects:
            objects[kind][str(metadata.get("name") or metadata.get("generateName", "workflow-"))] = manifest
        else:
            found.refuse(kind, "is no object that the local runner knows")
    runnable = list((objects["Workflow"] or objects["WorkflowTemplate"]).values())
    main: Manifest = runnable[0] if len(runnable) == 1 else {}
    if not main:
        found.refuse("", f"one Workflow or WorkflowTemplate is needed, {len(runnable)} were given")
    beside = {name: other for name, other in objects["WorkflowTemplate"].items() if other is not main}
    for name, other in {"": main, **beside}.items():
        check(other, "WorkflowTemplate", _root(name), found)
    if not found.refused:
        program = _program(main, beside, objects, entrypoint, given, found)
        found.refused += problems(program, images)
    if found.refused:
        from contracts.errors import ConfigError, Finding  # with pydantic behind it, dearer than a step's start

        name = str((main.get("metadata") or {}).get("name", "the manifest"))
        raise ConfigError(
            f"{name} cannot run here: {len(found.refused)} findings",
            findings=[Finding(where=where or name, what=what) for where, what in found.refused],
            remedy="docs/local-runner.md lists what is supported",
        )
    return program


def _program(
    main: Manifest, beside: Mapping[str, Manifest], objects: Mapping[str, Mapping[str, Manifest]],
    entrypoint: str | None, given: Mapping[str, str], found: Found,
) -> Program:  # fmt: skip
    metadata, spec, maps = main.get("metadata") or {}, main.get("spec") or {}, objects["ConfigMap"]
    if name := (spec.get("workflowTemplateRef") or {}).get("name"):
        if name not in beside:
            found.refuse("spec.workflowTemplateRef", f"there is no WorkflowTemplate {name!r}")
        spec = _merged((beside.get(name) or {}).get("spec") or {}, spec)
    owners = {"": spec, **{name: other.get("spec") or {} for name, other in beside.items()}}
    templates = [_template(raw, owner, found) for owner, body in owners.items() for raw in body.get("templates") or ()]
    return Program(
        name=metadata.get("name") or str(metadata.get("generateName", "workflow-")).rstrip("-"),
        metadata=metadata,
        spec=spec,
        templates={template.name: template for template in templates},
        entrypoint=entrypoint or spec.get("entrypoint", ""),
        config_maps={name: {k: str(v) for k, v in (m.get("data") or {}).items()} for name, m in maps.items()},
        secrets={name: _secret(name, manifest, found) for name, manifest in objects["Secret"].items()},
        arguments=parameters.arguments(spec, given, maps, found),
        not_applied=tuple(found.not_applied),
    )


def _merged(base: Manifest, spec: Manifest) -> dict[str, Any]:
    """Return the spec of a Workflow over that of the WorkflowTemplate which it refers to."""
    both = [p for source in (base, spec) for p in (source.get("arguments") or {}).get("parameters") or ()]
    return {**base, **spec, "arguments": {"parameters": list({p["name"]: p for p in both}.values())}}


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
    groups = [list(group) for group in body.get("steps") or ()]
    place = "steps" if groups else "dag.tasks"
    tasks: dict[str, Task] = {}
    for raw in (*((body.get("dag") or {}).get("tasks") or ()), *(step for group in groups for step in group)):
        task = _task(raw, owner, f"{path}.{place}[{raw.get('name')}]", found)
        if task.name in tasks:
            found.refuse(task.path, "stands twice")
        tasks[task.name] = task
    bare = {
        name: frozenset(BARE) | {p.replace("Error", "Errored") for p in task.continues} for name, task in tasks.items()
    }
    for task in tasks.values():
        task.depends.bare.update(bare)
        for missing in (name for name in task.depends.tasks if name not in tasks):
            found.refuse(f"{task.path}.depends", f"there is no task {missing}")
    return Template(
        name=_key(owner, body.get("name")),
        path=path,
        kind=next((kind for key, kind in KINDS.items() if key in body), ""),
        body=body,
        container=body.get("container") or body.get("script") or {},
        retry_strategy=body.get("retryStrategy") or {},
        inputs=(body.get("inputs") or {}).get("parameters") or (),
        outputs=(body.get("outputs") or {}).get("parameters") or (),
        mutexes=_mutexes(body),
        tasks=tasks,
        groups=tuple(tuple(step.get("name", "") for step in group) for group in groups),
    )


def _task(raw: Manifest, owner: str, path: str, found: Found) -> Task:
    if raw.get("depends") and raw.get("dependencies"):
        found.refuse(path, "has both depends and dependencies")
    condition = raw.get("depends") or " && ".join(raw.get("dependencies") or ())
    depends = Depends((), constant(True))
    try:
        depends = compile_depends(condition) if condition else depends
    except LanguageError as error:
        found.refuse(f"{path}.depends", str(error))
    reference, goes_on = raw.get("templateRef") or {}, raw.get("continueOn") or {}
    body = {key: raw[key] for key in ("arguments", "when", "withItems", "withParam", "withSequence") if key in raw}
    return Task(
        name=raw.get("name", ""),
        path=path,
        template=_key(reference.get("name", owner), reference.get("template", raw.get("template"))),
        body=body,
        depends=depends,
        continues=frozenset(phase for key, phase in (("error", "Error"), ("failed", "Failed")) if goes_on.get(key)),
        fans_out=any(key.startswith("with") for key in body),
    )


def _root(owner: str) -> str:
    return f"WorkflowTemplate[{owner}]" if owner else ""


def _key(owner: str, name: str | None) -> str:
    return f"{owner}/{name or ''}" if owner else name or ""


def _mutexes(owner: Manifest) -> tuple[str, ...]:
    return tuple(mutex["name"] for mutex in (owner.get("synchronization") or {}).get("mutexes") or ())
