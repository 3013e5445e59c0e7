"""What the runner takes from a manifest: the one table that the check, and the page of the docs, are made from.

`check` walks a manifest along the table.  A field is used, or accepted and listed as not applied (only a cluster can
honour it), or else refused with its path.  Called by `manifest`; `workflows.docs` writes the page.
"""

from __future__ import annotations

from typing import Any

USED = "used"
CLUSTER = "not applied"
FIELDS = ("metadata.name", "metadata.namespace")  # what a `fieldRef` may name
Shape = dict[str, str | list[str]]
"""Field to: USED, CLUSTER, the name of a shape, or a list of one name (a list of such things)."""


def _shape(used: str = "", cluster: str = "", **inner: str | list[str]) -> Shape:
    return {**dict.fromkeys(used.split(), USED), **inner, **dict.fromkeys(cluster.split(), CLUSTER)}


_STEP = _shape("name template when withItems withParam", templateRef="TemplateRef", arguments="TaskArguments")
_CONTAINER = _shape(
    "name image command args workingDir",
    "imagePullPolicy ports securityContext terminationMessagePath terminationMessagePolicy",
    env=["Env"], envFrom=["EnvFrom"], volumeMounts=["VolumeMount"], resources="Resources",
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
        "name activeDeadlineSeconds timeout podSpecPatch parallelism",
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
    "Dag": _shape("failFast", tasks=["Task"]),
    "Task": {**_STEP, **_shape("depends dependencies")},
    "Step": _STEP,
    "TemplateRef": _shape("name template", "clusterScope"),
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


class Found:
    """What was found: (path, what is wrong), and paths of fields that are not applied."""

    def __init__(self) -> None:
        self.refused: list[tuple[str, str]] = []
        self.not_applied: list[str] = []

    def refuse(self, path: str, what: str) -> None:
        """Enter a finding."""
        self.refused.append((path, what))


def check(value: Any, rule: str | list[str], path: str, found: Found) -> None:
    """Compare a piece of manifest with its rule in the table."""
    kind = list if isinstance(rule, list) else dict
    if rule == CLUSTER:
        found.not_applied.append(path)
    elif rule == USED or (value is None and rule in ("Suspend", "EmptyDir")):
        return
    elif not isinstance(value, kind):
        found.refuse(path, f"should be a {'map' if kind is dict else 'list'}, not {type(value).__name__}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            group = rule == ["Step"] and isinstance(item, list)  # steps are lists of lists
            named = item.get("name") if isinstance(item, dict) else None
            check(item, rule if group else rule[0], f"{path}[{named or index}]", found)
    else:
        for key, item in value.items():
            where = f"{path}.{key}" if path else str(key)
            if key in SHAPES[str(rule)]:
                check(item, SHAPES[str(rule)][key], where, found)
            else:
                found.refuse(where, "is not supported by the local runner")
