"""Compile a pipeline file to a folder of Kubernetes manifests, the same bytes each time and for every environment.

Called by `retrain compile`, `retrain run` and the test that compares ``argo/`` with what is compiled now.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from contracts import names
from contracts.pipeline import Pipeline, parse_pipeline
from contracts.pipeline.reading import read_pipeline_text
from workflows.documents import documents
from workflows.graph import workflow_template
from workflows.triggers import triggers

CONFIGMAP = "1-configmap.yaml"
WORKFLOW_TEMPLATE = "2-workflowtemplate.yaml"
"""`kubectl apply -f FOLDER` goes by name; Argo passes over a CronWorkflow before its template, for up to 20 minutes."""
MARK = "# Compiled by retrain"
"""How the first line of every compiled file begins."""


def compile_pipeline(path: Path) -> dict[str, str]:
    """Return file name -> YAML text of everything that the pipeline file at `path` becomes, in the order to apply it.

    Raises
    ------
    ConfigError
        When the file has mistakes.
    """
    text = read_pipeline_text(path)
    pipeline = parse_pipeline(text, str(path))
    configmap = names.pipeline_configmap(pipeline.name, hashlib.sha256(text.encode()).hexdigest())
    manifests = {
        CONFIGMAP: _configmap(pipeline, configmap, text),
        WORKFLOW_TEMPLATE: workflow_template(pipeline, configmap).to_dict(),
        **triggers(pipeline),
    }
    return {name: manifest_text(manifest, path.name) for name, manifest in manifests.items()}


def write(path: Path, folder: Path) -> None:
    """Compile the pipeline file at `path` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in compile_pipeline(path).items():
        (folder / name).write_text(text, encoding="utf-8")


def load_manifests(folder: Path) -> dict[str, dict[str, Any]]:
    """Read a folder of compiled manifests: file name -> document."""
    return {file.name: documents(file.read_text(encoding="utf-8"))[0] for file in sorted(folder.glob("*.yaml"))}


def manifest_text(manifest: dict[str, Any], source: str) -> str:
    """Return a manifest as YAML, with a line that says what it was compiled from."""
    body = yaml.dump(_names_first(manifest), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    return f"{MARK} from {source}; do not edit.\n{body}"


def compiled(file: Path) -> bool:
    """Say whether a file is one that was compiled, and may be written anew or removed."""
    return file.read_text(encoding="utf-8", errors="replace").startswith(MARK)


def _names_first(value: Any) -> Any:
    """Order keys so that a reader meets an object's name before its content: Hera writes them by the alphabet."""
    if isinstance(value, dict):
        first = [key for key in ("apiVersion", "kind", "metadata", "name") if key in value]
        return {key: _names_first(value[key]) for key in (*first, *(k for k in value if k not in first))}
    return [_names_first(item) for item in value] if isinstance(value, list) else value


def _configmap(pipeline: Pipeline, name: str, text: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {names.LABEL_PIPELINE: pipeline.name}},
        "immutable": True,
        "data": {Path(names.PIPELINE_FILE).name: text},
    }


class _Dumper(yaml.SafeDumper):
    """Block style for texts of several lines, no anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Write an object each time it occurs, never as an alias."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        """Indent list items under their key."""
        super().increase_indent(flow, False)


def _represent_str(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _represent_str)
