"""A conformance case: a small workflow, what is done to it while it runs, and what Argo made of it.

``cases/<area>/<name>.yaml`` is the case, ``<name>.argo.yaml`` beside it what `record` saw.  Both sides, the recorder
and the test, come here for the manifests of a case and for the comparable form of a workflow that has ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CASES = Path(__file__).parent / "cases"
RECORDING = ".argo.yaml"
_DETAIL = re.compile(
    r"(Invalid 'when' expression '.*?'|(?:unable|failed) to evaluate expression(?: '.*?')?|as a JSON list: .*?): .*",
    re.DOTALL,
)
"""What follows is a Go library's account of where its parser stood."""
_KILLED = re.compile(r"Step exceeded its deadline|Pod was active on the node longer|Usage of EmptyDir volume")
"""Messages of steps that the cluster has ended; whether Argo still learns their exit code is a race."""
_BY = re.compile(r"Resumed by: .*")
"""Who has resumed a node; at the desk nobody has a name."""
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@dataclass(frozen=True)
class Case:
    """One case, as its file says it."""

    path: Path
    shows: str
    """What it is a case of, in a sentence."""
    spec: Mapping[str, Any]
    """The Workflow's ``spec``, as Argo reads it."""
    objects: tuple[Mapping[str, Any], ...] = ()
    """ConfigMaps, Secrets and WorkflowTemplates that it names."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """What is given at submission."""
    entrypoint: str | None = None
    inject: Mapping[str, str] = field(default_factory=dict)
    """Display name of an attempt to what happens to it: ``oom``, ``evicted`` or ``deleted``.

    On the cluster the first two are the step's own doing: it allocates more than its limit, it fills a volume beyond
    its size; the recorder deletes pods.  At the desk the runner is told that they happened.
    """
    answers: Mapping[str, Mapping[str, str] | None] = field(default_factory=dict)
    """Display name of a suspended node to the outputs it is resumed with; none: resumed as it is."""

    @property
    def name(self) -> str:
        """Area and file, and the name of the workflow."""
        return f"{self.path.parent.name}-{self.path.stem}"

    @property
    def recording(self) -> Path:
        """Where the recording lies."""
        return self.path.with_name(self.path.stem + RECORDING)

    @property
    def workflow(self) -> dict[str, Any]:
        """The Workflow to submit."""
        return {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {"name": self.name},
            "spec": dict(self.spec),
        }


def read(path: Path) -> Any:
    """Read a YAML file, in C where that is built in."""
    return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@cache
def load(path: Path) -> Case:
    """Read a case; ``base`` is for the anchors that the rest of the file merges in."""
    content = read(path)
    content.pop("base", None)
    return Case(path=path, objects=tuple(content.pop("objects", ())), **content)


def all_cases() -> Iterator[Case]:
    """Return every case, by area and name."""
    for path in sorted(CASES.glob("*/*.yaml")):
        if not path.name.endswith(RECORDING):
            yield load(path)


def normalise(workflow: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a workflow came to, without what differs from run to run: ids, times, hosts, persons.

    Nodes go by their names.  Children are sorted: tasks that start together are entered in no fixed order.  Of a text
    that a parser refused, the message says which text, not in which library's words.
    """
    status = workflow["status"]
    nodes = status.get("nodes") or {}
    names = {key: node["name"] for key, node in nodes.items()}
    return _filled(
        phase=status["phase"],
        message=_plain(status.get("message", "")),
        outputs=_parameters(status.get("outputs")),
        attempts={
            node["name"]: sum("retried" in nodes[key].get("nodeFlag", {}) for key in node.get("children", ()))
            for node in _sorted(nodes)
            if node["type"] == "Retry"
        },
        nodes={node["name"]: _node(node, names, coded=not _killed(node, nodes)) for node in _sorted(nodes)},
    )


def _sorted(nodes: Mapping[str, Any]) -> list[Any]:
    """By name, with numbers as numbers: attempt 10 after attempt 9."""
    return sorted(nodes.values(), key=lambda node: re.sub(r"\d+", lambda digits: digits[0].zfill(9), node["name"]))


def _killed(node: Mapping[str, Any], nodes: Mapping[str, Any]) -> bool:
    """Tell whether a node, or the last attempt that a Retry node has its outputs from, was ended from outside."""
    if node["type"] == "Retry" and node.get("children"):
        return _killed(nodes[node["children"][-1]], nodes)
    return _KILLED.match(node.get("message", "")) is not None


def _node(node: Mapping[str, Any], names: Mapping[str, str], *, coded: bool) -> dict[str, Any]:
    outputs = node.get("outputs") or {}
    reference = node.get("templateRef") or {}
    return _filled(
        displayName=node["displayName"],
        type=node["type"],
        phase=node["phase"],
        message=_plain(node.get("message", "")),
        template="/".join(reference.values()) if reference else node.get("templateName", ""),
        boundary=names.get(node.get("boundaryID", ""), ""),
        nodeFlag=node.get("nodeFlag") or {},
        inputs=_parameters(node.get("inputs")),
        outputs=_parameters(outputs),
        result=outputs.get("result"),
        exitCode=outputs.get("exitCode") if coded else None,
        children=sorted(names[key] for key in node.get("children") or ()),
    )


def _parameters(block: Mapping[str, Any] | None) -> dict[str, str]:
    return {p["name"]: p["value"] for p in (block or {}).get("parameters") or () if "value" in p}


def _plain(message: str) -> str:
    return _DETAIL.sub(r"\1", _MOMENT.sub("<time>", _BY.sub("", message)))


def _filled(**fields: Any) -> dict[str, Any]:
    """Drop what is not there; an empty result is."""
    return {key: value for key, value in fields.items() if value or (key == "result" and value is not None)}
