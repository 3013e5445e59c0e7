"""What the runner takes from a manifest: the one table that the check, and the page of the docs, are made from.

`check` walks a manifest along the table.  A field is used, or accepted and listed as not applied (only a cluster can
honour it), or else refused with its path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from workflows.local import depends, expr, retry, when

USED = "used"
CLUSTER = "not applied"
Shape = dict[str, Any]
"""Field to: USED, CLUSTER, the name of a shape, or a list of one name (a list of such things)."""


def _shape(used: str = "", cluster: str = "", **inner: str | list[str]) -> Shape:
    return {**dict.fromkeys(used.split(), USED), **inner, **dict.fromkeys(cluster.split(), CLUSTER)}


SHAPES: dict[str, Shape] = {
    "WorkflowTemplate": _shape("apiVersion kind", "status", metadata="Metadata", spec="WorkflowSpec"),
    "Metadata": _shape("name generateName labels annotations", "namespace"),
    "WorkflowSpec": _shape(
        "entrypoint onExit activeDeadlineSeconds podSpecPatch",
        "affinity archiveLogs artifactGC artifactRepositoryRef automountServiceAccountToken dnsConfig dnsPolicy"
        " executor hostAliases hostNetwork imagePullSecrets metrics nodeSelector podDisruptionBudget podGC podMetadata"
        " podPriorityClassName priority schedulerName securityContext serviceAccountName tolerations ttlStrategy"
        " workflowMetadata",
        arguments="Arguments",
        templates=["Template"],
        volumes=["Volume"],
        synchronization="Synchronization",
    ),
    "Arguments": _shape(parameters=["Argument"]),
    "Argument": _shape("name value enum description", "default", valueFrom="ArgumentSource"),
    "ArgumentSource": _shape(configMapKeyRef="KeyRef"),
    "KeyRef": _shape("name key optional"),
    "Template": _shape(
        "name activeDeadlineSeconds timeout podSpecPatch",
        "affinity archiveLocation automountServiceAccountToken executor hostAliases metadata metrics nodeSelector"
        " priorityClassName schedulerName securityContext serviceAccountName tolerations",
        inputs="Inputs",
        outputs="Outputs",
        container="Container",
        dag="Dag",
        volumes=["Volume"],
        retryStrategy="RetryStrategy",
        synchronization="Synchronization",
    ),
    "Synchronization": _shape(mutexes=["Mutex"]),
    "Mutex": _shape("name", "namespace"),
    "Inputs": _shape(parameters=["Input"]),
    "Input": _shape("name value default description", "enum", valueFrom="ArgumentSource"),
    "Outputs": _shape(parameters=["Output"]),
    "Output": _shape("name globalName description", valueFrom="OutputSource"),
    "OutputSource": _shape("path parameter expression default"),
    "RetryStrategy": _shape("limit retryPolicy expression", "affinity", backoff="Backoff"),
    "Backoff": _shape("duration factor cap maxDuration"),
    "Dag": _shape("failFast", tasks=["Task"]),
    "Task": _shape("name template depends dependencies when", arguments="TaskArguments"),
    "TaskArguments": _shape(parameters=["TaskArgument"]),
    "TaskArgument": _shape("name value"),
    "Container": _shape(
        "name image command args workingDir",
        "imagePullPolicy ports securityContext terminationMessagePath terminationMessagePolicy",
        env=["Env"],
        envFrom=["EnvFrom"],
        volumeMounts=["VolumeMount"],
        resources="Resources",
    ),
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
}
SHAPES["Workflow"] = SHAPES["WorkflowTemplate"]

FIELDS = ("metadata.name", "metadata.namespace")
"""What a `fieldRef` may name."""


@dataclass
class Found:
    """What a walk along the table found: (path, what is wrong), and paths of fields that are not applied."""

    refused: list[tuple[str, str]] = field(default_factory=list)
    not_applied: list[str] = field(default_factory=list)


def check(value: Any, shape: str, path: str, found: Found) -> None:
    """Compare a piece of manifest with its shape."""
    if not isinstance(value, dict):
        found.refused.append((path, f"should be a map, not {type(value).__name__}"))
        return
    for key, item in value.items():
        where = f"{path}.{key}" if path else str(key)
        rule = SHAPES[shape].get(key)
        if rule is None:
            found.refused.append((where, "is not supported by the local runner"))
        elif rule == CLUSTER:
            found.not_applied.append(where)
        elif isinstance(rule, list):
            if not isinstance(item, list):
                found.refused.append((where, f"should be a list, not {type(item).__name__}"))
                continue
            for index, element in enumerate(item):
                named = element.get("name") if isinstance(element, dict) else None
                check(element, rule[0], f"{where}[{named or index}]", found)
        elif rule != USED:
            check(item, rule, where, found)


def supported_table() -> str:
    """Return the page of the docs, in Markdown."""
    return "\n".join(_lines()) + "\n"


_HEAD = """\
# What the local runner supports

Made from the runner's own tables by `workflows.local.supported.supported_table`; do not edit. Anything else in a
manifest is refused before the first node starts, with its path in the file.

## Fields

*Used* is honoured as Argo does. *Not applied* is what only a cluster can honour: it is accepted and listed.

| object | used | not applied |
|---|---|---|"""

_PLACES = """
## Places

A `mountPath` stands for a folder of this machine, one for each volume of each node. Where a text of the manifest in
`command`, `args`, `workingDir`, an `env` value or an output's `path` begins with a mountPath (or has it after `=`), the
folder takes its place. Texts that come from parameters, ConfigMaps and Secrets are left alone. Output paths must lie
below a mountPath. Without a `workingDir`, a step works in the run's own folder.

The environment of a step is that of the runner, then `envFrom`, then `env`; `$(NAME)` in `command`, `args` and `env`
reads the last two only. Memory limits (`resources.limits.memory`,
also through `podSpecPatch`) are watched: a step whose processes together hold more resident memory is ended as the
cluster would end it, `OOMKilled (exit code 137)`."""


def _lines() -> Iterator[str]:
    yield _HEAD
    for name, shape in SHAPES.items():
        used = ", ".join(f"`{key}`" for key, rule in shape.items() if rule != CLUSTER)
        ignored = ", ".join(f"`{key}`" for key, rule in shape.items() if rule == CLUSTER)
        yield f"| {name} | {used} | {ignored} |"
    yield f"\nA `fieldRef` names {_code(FIELDS)}; `retryPolicy` is one of {_code(retry.POLICIES)}."
    yield "\n## Languages\n\n| where | operators | functions |\n|---|---|---|"
    operators = [*expr.UNARY, *(sign for sign in expr.OPERATORS if sign not in expr.UNARY)]
    yield f"| `{{{{=...}}}}`, `retryStrategy.expression` | {_code(operators)} | {_code(expr.FUNCTIONS)} |"
    yield f"| `when` | {_code(('!', *when.OPERATORS))} | |"
    yield f"| `depends` | {_code(('!', '&&', '||', *('.' + result for result in depends.RESULTS)))} | |"
    yield _PLACES


def _code(words: Iterable[str]) -> str:
    return " ".join(f"`{word}`".replace("|", "\\|") for word in words)
