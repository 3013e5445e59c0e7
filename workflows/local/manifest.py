"""Reads the manifests of a run into a `Program`, and refuses what cannot run.  Called by `runner`.

What fields there are is `supported`'s; what must hold besides (names that are there, texts that can be read) is
`checks`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from workflows.local import parameters
from workflows.local.depends import Depends, compile_depends
from workflows.local.pratt import LanguageError, constant
from workflows.local.supported import Found, check

Images = Mapping[str, Sequence[str]]
"""Image to the local words that take the place of its command's first word; no words: the command runs as it stands."""
Manifest = Mapping[str, Any]
# what a template holds, to the type of the node it makes
KINDS = {"container": "Pod", "script": "Pod", "dag": "DAG", "steps": "Steps", "suspend": "Suspend"}
_RESULT = r"(?:tasks|steps)(?:\.([\w-]+)|\[['\"]([\w-]+)['\"]\])\.outputs\.result"


class Task:
    """One task of a DAG, or one step; `path` is its place in the file, `template` a key of the program's templates."""

    def __init__(self, raw: Manifest, owner: str, path: str, found: Found) -> None:
        reference = raw.get("templateRef") or {}
        self.name: str = raw.get("name", "")
        self.path = path
        self.template = _key(reference.get("name", owner), reference.get("template", raw.get("template")))
        self.body = {key: raw[key] for key in ("arguments", "when", "withItems", "withParam") if key in raw}
        self.fans_out = "withItems" in raw or "withParam" in raw
        self.depends = Depends((), constant(True))
        if raw.get("depends") and raw.get("dependencies"):
            found.refuse(path, "has both depends and dependencies")
        try:
            if condition := raw.get("depends") or " && ".join(raw.get("dependencies") or ()):
                self.depends = compile_depends(condition)
        except LanguageError as error:
            found.refuse(f"{path}.depends", str(error))


class Template:
    """One template.  `kind` is the type of the node it makes, attempts apart; `groups` are steps that run together."""

    def __init__(self, body: Manifest, owner: str, found: Found) -> None:
        self.name = _key(owner, body.get("name"))
        self.path = f"{root(owner)}{'.' if owner else ''}spec.templates[{body.get('name')}]"
        self.body = body
        self.kind = next((kind for key, kind in KINDS.items() if key in body), "")
        self.container: Manifest = body.get("container") or body.get("script") or {}
        self.retry_strategy: Manifest = body.get("retryStrategy") or {}
        self.inputs: Sequence[Manifest] = (body.get("inputs") or {}).get("parameters") or ()
        self.outputs: Sequence[Manifest] = (body.get("outputs") or {}).get("parameters") or ()
        self.mutexes = mutexes(body)
        self.parallelism = _whole(body, "parallelism", self.path, found)
        groups = body.get("steps") or [(body.get("dag") or {}).get("tasks") or ()]
        path = f"{self.path}.{'steps' if 'steps' in body else 'dag.tasks'}"
        self.groups = [[Task(raw, owner, f"{path}[{raw.get('name')}]", found) for raw in group] for group in groups]
        self.tasks: dict[str, Task] = {}
        for task in (task for group in self.groups for task in group):
            if self.tasks.setdefault(task.name, task) is not task:
                found.refuse(task.path, "stands twice")
        for task in self.tasks.values():
            for missing in (name for name in task.depends.tasks if name not in self.tasks):
                found.refuse(f"{task.path}.depends", f"there is no task {missing}")

    def told_to_all(self, outputs: Mapping[str, str]) -> dict[str, str]:
        """Return those outputs that have a global name, by it."""
        names = {p["name"]: p["globalName"] for p in self.outputs if p.get("globalName")}
        return {names[name]: value for name, value in outputs.items() if name in names}

    @cached_property
    def results(self) -> set[str]:
        """Tasks whose standard output is asked for."""
        found = re.finditer(_RESULT, json.dumps(self.body, default=str).replace('\\"', '"'))
        return {match[1] or match[2] for match in found}

    @cached_property
    def targets(self) -> list[str]:
        """Tasks that a DAG is judged by: those that no other one waits for."""
        return sorted(self.tasks.keys() - {name for task in self.tasks.values() for name in task.depends.tasks})

    @cached_property
    def order(self) -> list[str]:
        """The tasks of a DAG, each after all that it waits for: in the order in which its targets come to need them."""
        found: dict[str, None] = {}
        stack = self.targets[::-1]
        while stack:
            name = stack[-1]
            missing = [n for n in self.tasks[name].depends.tasks if n not in found]
            if missing and name not in found:
                stack.append(missing[0])
            else:
                found.setdefault(stack.pop())
        return list(found)

    @cached_property
    def ancestors(self) -> dict[str, set[str]]:
        """Of each task, all that must end before it."""
        before = {name: [o for o in task.depends.tasks if o in self.tasks] for name, task in self.tasks.items()}
        found: dict[str, set[str]] = {name: set() for name in before}
        for name, seen in found.items():
            queue = list(before[name])
            for needed in queue:
                if needed not in seen:
                    seen.add(needed)
                    queue += before[needed]
        return found


class Program:
    """All that a run is made of; templates go by name, those of WorkflowTemplates beside it by ``object/name``."""

    def __init__(
        self, main: Manifest, objects: Mapping[str, Mapping[str, Manifest]], entrypoint: str | None,
        given: Mapping[str, str], found: Found,
    ) -> None:  # fmt: skip
        beside = {name: o.get("spec") or {} for name, o in objects["WorkflowTemplate"].items() if o is not main}
        self.metadata, self.spec = main.get("metadata") or {}, main.get("spec") or {}
        self.name = self.metadata.get("name") or str(self.metadata.get("generateName", "workflow-")).rstrip("-")
        if name := (self.spec.get("workflowTemplateRef") or {}).get("name"):
            if name not in beside:
                found.refuse("spec.workflowTemplateRef", f"there is no WorkflowTemplate {name!r}")
            base = beside.get(name, {})
            both = [p for spec in (base, self.spec) for p in (spec.get("arguments") or {}).get("parameters") or ()]
            self.spec = {**base, **self.spec, "arguments": {"parameters": list({p["name"]: p for p in both}.values())}}
        self.entrypoint = entrypoint or self.spec.get("entrypoint", "")
        specs = {"": self.spec, **beside}
        templates = [Template(raw, name, found) for name, spec in specs.items() for raw in spec.get("templates") or ()]
        self.templates: dict[str, Template] = {}
        for template in templates:
            if self.templates.setdefault(template.name, template) is not template:
                found.refuse(template.path, "stands twice")
        self.config_maps = {
            name: {key: str(text) for key, text in (m.get("data") or {}).items()}
            for name, m in objects["ConfigMap"].items()
        }
        self.parameter_maps = {  # those that may be parameters
            name: self.config_maps[name]
            for name, m in objects["ConfigMap"].items()
            if ((m.get("metadata") or {}).get("labels") or {}).get(parameters.LABEL) == "Parameter"
        }
        self.secrets = {name: dict(_secret(name, m, found)) for name, m in objects["Secret"].items()}
        # the workflow's parameters; tags in them are not replaced yet
        self.arguments = parameters.arguments(self, given, found)
        self.mutexes = mutexes(self.spec)
        self.parallelism = _whole(self.spec, "parallelism", "spec", found)
        self._seconds = _whole(self.spec, "activeDeadlineSeconds", "spec", found)

    def deadline(self, started: datetime | None) -> datetime | None:
        """Return when the workflow must have ended, its exit handler apart."""
        return None if self._seconds is None or started is None else started + timedelta(seconds=self._seconds)

    def volumes(self, template: Template) -> dict[str, Manifest]:
        """Return the volumes that a template may mount, by name."""
        both = (*(self.spec.get("volumes") or ()), *(template.body.get("volumes") or ()))
        return {volume.get("name", ""): volume for volume in both}

    def referred(self, source: Manifest) -> tuple[str, Manifest, Mapping[str, str] | None]:
        """Return the object that a source names, if any, in words; the reference; the object's data if it is there."""
        for key, reference in source.items():
            if key.startswith(("configMap", "secret")) and isinstance(reference, dict):
                name = reference.get("name") or reference.get("secretName") or ""
                kind, objects = ("Secret", self.secrets) if key.startswith("s") else ("ConfigMap", self.config_maps)
                return f"{kind} {name!r}", reference, objects.get(name)
        return "", {}, None


def load(
    manifests: Sequence[Manifest], *, entrypoint: str | None, given: Mapping[str, str], images: Images
) -> tuple[Program, list[str]]:
    """Read one Workflow, or one WorkflowTemplate, and the objects that it names; return it and what is not applied.

    Raises `ConfigError` with a finding, by its path in the file, for all that is not known or cannot work.
    """
    from workflows.local.checks import problems

    found = Found()
    objects: dict[str, dict[str, Manifest]] = {"Workflow": {}, "WorkflowTemplate": {}, "ConfigMap": {}, "Secret": {}}
    for manifest in manifests:
        kind, metadata = str(manifest.get("kind")), manifest.get("metadata") or {}
        name = str(metadata.get("name") or metadata.get("generateName", "workflow-"))
        if kind in objects:
            if objects[kind].setdefault(name, manifest) is not manifest:
                found.refuse(f"{kind} {name}", "stands twice")
        else:
            found.refuse(kind, "is no object that the local runner knows")
    runnable = list((objects["Workflow"] or objects["WorkflowTemplate"]).values())
    main: Manifest = runnable[0] if len(runnable) == 1 else {}
    if not main:
        found.refuse("", f"one Workflow or WorkflowTemplate is needed, {len(runnable)} were given")
    check(main, "WorkflowTemplate", "", found)
    for name, other in objects["WorkflowTemplate"].items():
        if other is not main:
            check(other, "WorkflowTemplate", root(name), found)
    if not found.refused:
        program = Program(main, objects, entrypoint, given, found)
        found.refused += problems(program, images)
    if found.refused:
        from contracts.errors import ConfigError, Finding  # with pydantic behind it, dearer than a step's start

        name = str((main.get("metadata") or {}).get("name", "the manifest"))
        raise ConfigError(
            f"{name} cannot run here: {len(found.refused)} findings",
            findings=[Finding(where=where or name, what=what) for where, what in found.refused],
            remedy="docs/local-runner.md lists what is supported",
        )
    return program, found.not_applied


def root(owner: str) -> str:
    """Return how paths in an object beside the main one begin."""
    return f"WorkflowTemplate[{owner}]" if owner else ""


def mutexes(owner: Manifest) -> list[str]:
    """Return the names of the locks that a workflow or a template holds while it runs."""
    return [mutex["name"] for mutex in (owner.get("synchronization") or {}).get("mutexes") or ()]


def _whole(body: Manifest, field: str, path: str, found: Found) -> int | None:
    value = body.get(field)
    if value is not None and not isinstance(value, int):
        found.refuse(f"{path}.{field}", "should be a whole number")
        return None
    return value


def _key(owner: str, name: str | None) -> str:
    return f"{owner}/{name or ''}" if owner else name or ""


def _secret(name: str, manifest: Manifest, found: Found) -> Iterator[tuple[str, str]]:
    import base64
    import binascii

    for key, text in (manifest.get("data") or {}).items():
        try:
            yield key, base64.b64decode(text, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, TypeError):
            found.refuse(f"Secret {name}.data.{key}", "is not base64 of a text")
    yield from ((key, str(text)) for key, text in (manifest.get("stringData") or {}).items())
