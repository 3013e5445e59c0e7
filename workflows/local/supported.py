"""What the runner takes from a manifest: the one table that the check, and the page of the docs, are made from.

`check` walks a manifest along the table.  A field is used, or accepted and listed as not applied (only a cluster can
honour it), or else refused with its path.  Called by `manifest`; `workflows.docs` writes the page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

USED = "used"
CLUSTER = "not applied"
FIELDS = ("metadata.name", "metadata.namespace")
"""What a `fieldRef` may name."""
Shape = dict[str, str | list[str]]
"""Field to: USED, CLUSTER, the name of a shape, or a list of one name (a list of such things)."""


def _shape(used: str = "", cluster: str = "", **inner: str | list[str]) -> Shape:
    return {**dict.fromkeys(used.split(), USED), **inner, **dict.fromkeys(cluster.split(), CLUSTER)}


_CONTAINER = _shape(
    "name image command args workingDir",
    "imagePullPolicy ports securityContext terminationMessagePath terminationMessagePolicy",
    env=["Env"], envFrom=["EnvFrom"], volumeMounts=["VolumeMount"], resources="Resources",
)  # fmt: skip
_TASK = _shape(
    "name template when withItems withParam",
    templateRef="TemplateRef", arguments="TaskArguments", continueOn="ContinueOn", withSequence="Sequence",
)  # fmt: skip

SHAPES: dict[str, Shape] = {
    "WorkflowTemplate": _shape("apiVersion kind", "status", metadata="Metadata", spec="WorkflowSpec"),
    "Metadata": _shape("name generateName labels annotations", "namespace"),
    "WorkflowSpec": _shape(
        "entrypoint onExit activeDeadlineSeconds podSpecPatch parallelism",
        "affinity archiveLogs artifactGC artifactRepositoryRef automountServiceAccountToken dnsConfig dnsPolicy"
        " executor hostAliases hostNetwork imagePullSecrets metrics nodeSelector podDisruptionBudget podGC podMetadata"
        " podPriorityClassName priority schedulerName securityContext serviceAccountName tolerations ttlStrategy"
        " workflowMetadata",
        arguments="Arguments", templates=["Template"], volumes=["Volume"], synchronization="Synchronization",
        workflowTemplateRef="WorkflowTemplateRef",
    ),
    "WorkflowTemplateRef": _shape("name", "clusterScope"),
    "Arguments": _shape(parameters=["Argument"]),
    "Argument": _shape("name value enum description", "default", valueFrom="ArgumentSource"),
    "ArgumentSource": _shape(configMapKeyRef="KeyRef"),
    "KeyRef": _shape("name key optional"),
    "Template": _shape(
        "name activeDeadlineSeconds timeout podSpecPatch parallelism failFast",
        "affinity archiveLocation automountServiceAccountToken executor hostAliases metadata metrics nodeSelector"
        " priorityClassName schedulerName securityContext serviceAccountName tolerations",
        inputs="Inputs", outputs="Outputs", container="Container", script="Script", dag="Dag", steps=["Step"],
        suspend="Suspend", volumes=["Volume"], retryStrategy="RetryStrategy", synchronization="Synchronization",
    ),
    "Synchronization": _shape(mutexes=["Mutex"]),
    "Mutex": _shape("name", "namespace"),
    "Inputs": _shape(parameters=["Input"]),
    "Input": _shape("name value default description", "enum", valueFrom="InputSource"),
    "InputSource": _shape("default", configMapKeyRef="KeyRef"),
    "Outputs": _shape(parameters=["Output"]),
    "Output": _shape("name globalName description", valueFrom="OutputSource"),
    "OutputSource": _shape("path parameter expression default supplied"),
    "RetryStrategy": _shape("limit retryPolicy expression", "affinity", backoff="Backoff"),
    "Backoff": _shape("duration factor cap maxDuration"),
    "Dag": _shape("failFast target", tasks=["Task"]),
    "Task": {**_TASK, **_shape("depends dependencies")},
    "Step": _TASK,
    "TemplateRef": _shape("name template", "clusterScope"),
    "ContinueOn": _shape("error failed"),
    "Sequence": _shape("count start end format"),
    "TaskArguments": _shape(parameters=["TaskArgument"]),
    "TaskArgument": _shape("name value", valueFrom="ArgumentSource"),
    "Suspend": _shape("duration"),
    "Container": _CONTAINER,
    "Script": {**_CONTAINER, **_shape("source")},
    "Env": _shape("name value", valueFrom="EnvSource"),
    "EnvSource": _shape(configMapKeyRef="KeyRef", secretKeyRef="KeyRef", fieldRef="FieldRef"),
    "FieldRef": _shape("fieldPath apiVersion"),
    "EnvFrom": _shape("prefix", configMapRef="ObjectRef", secretRef="ObjectRef"),
    "ObjectRef": _shape("name optional"),
    "VolumeMount": _shape("name mountPath subPath", "readOnly"),
    "Volume": _shape("name", configMap="ConfigMapVolume", secret="SecretVolume", emptyDir="EmptyDir"),  # noqa: S106
    "ConfigMapVolume": _shape("name optional", "defaultMode", items=["KeyPath"]),
    "SecretVolume": _shape("secretName optional", "defaultMode", items=["KeyPath"]),
    "EmptyDir": _shape("", "medium sizeLimit"),
    "KeyPath": _shape("key path", "mode"),
    "Resources": _shape("", "requests", limits="Quantities"),
    "Quantities": _shape("memory", "cpu ephemeral-storage"),
}  # fmt: skip


@dataclass
class Found:
    """What a walk along the table found: (path, what is wrong), and paths of fields that are not applied."""

    refused: list[tuple[str, str]] = field(default_factory=list)
    not_applied: list[str] = field(default_factory=list)

    def refuse(self, path: str, what: str) -> None:
        """Enter a finding."""
        self.refused.append((path, what))


def check(value: Any, shape: str, path: str, found: Found) -> None:
    """Compare a piece of manifest with its shape."""
    if shape == "Step" and isinstance(value, list):  # steps are lists of lists
        _check_list(value, [shape], path, found)
        return
    if value is None and shape in ("Suspend", "EmptyDir"):
        return
    if not isinstance(value, dict):
        found.refuse(path, f"should be a map, not {type(value).__name__}")
        return
    for key, item in value.items():
        where = f"{path}.{key}" if path else str(key)
        rule = SHAPES[shape].get(key)
        if rule is None:
            found.refuse(where, "is not supported by the local runner")
        elif rule == CLUSTER:
            found.not_applied.append(where)
        elif isinstance(rule, list):
            _check_list(item, rule, where, found)
        elif rule != USED:
            check(item, rule, where, found)


def _check_list(items: Any, shape: list[str], path: str, found: Found) -> None:
    if not isinstance(items, list):
        found.refuse(path, f"should be a list, not {type(items).__name__}")
        return
    for index, element in enumerate(items):
        named = element.get("name") if isinstance(element, dict) else None
        check(element, shape[0], f"{path}[{named or index}]", found)
