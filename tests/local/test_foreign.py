"""`retrain run` with a manifest that is not retrain's, as a person types it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from workflows.cli.main import app

MANIFEST = """
apiVersion: argoproj.io/v1alpha1
kind: Workflow
metadata: {name: other}
spec:
  entrypoint: main
  arguments: {parameters: [{name: word, value: plain}]}
  templates:
  - name: main
    steps:
    - - {name: say, templateRef: {name: lib, template: say}}
    - - {name: approve, template: approve}
    - - name: after
        template: after
        arguments: {parameters: [{name: v, value: "{{steps.approve.outputs.parameters.v}}"}]}
  - {name: approve, suspend: {}, outputs: {parameters: [{name: v, valueFrom: {supplied: {}, default: none}}]}}
  - name: after
    inputs: {parameters: [{name: v}]}
    script: {image: alpine, command: [sh], source: "echo after {{inputs.parameters.v}}; exit 75"}
---
apiVersion: argoproj.io/v1alpha1
kind: WorkflowTemplate
metadata: {name: lib}
spec:
  templates:
  - name: say
    container: {image: alpine, command: [sh, -c], args: ["echo said {{workflow.parameters.word}}"]}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RETRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RETRAIN_IMAGES", '{"alpine": []}')
    path = tmp_path / "other.yaml"
    path.write_text(MANIFEST)
    return path


def retrain(*words: str | os.PathLike[str]) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_manifest_runs_suspends_and_goes_on_with_an_answer(file: Path) -> None:
    suspended = retrain("run", file, "-p", "word=given")
    assert suspended.exit_code == 4
    assert "approve is suspended; the same command with --answer approve" in suspended.output

    assert "waits for approve" in retrain("status").output
    assert "waits for approve" in retrain("doctor").output

    ended = retrain("run", file, "-p", "word=given", "--answer", "approve:v=yes")

    assert ended.exit_code == 75  # what the step left with
    assert "after" in retrain("status").output
    nodes = json.loads(retrain("status", "--json").output)["status"]["nodes"].values()
    assert {node["displayName"] for node in nodes} > {"say", "approve", "after"}
    logs = retrain("logs").output
    assert "say: said given" in logs
    assert "after: after yes" in logs
    assert "no run waits" in str(
        retrain("run", file, "-p", "word=given", "--answer", "approve").exception
    )  # that one ended


def test_images_that_nothing_stands_for_and_unknown_fields_are_refused_by_path(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETRAIN_IMAGES", '{"alpine": "sh"}')
    assert "RETRAIN_IMAGES" in str(retrain("run", file).exception)
    monkeypatch.setenv("RETRAIN_IMAGES", "")
    found = [finding.where for finding in getattr(retrain("run", file).exception, "findings", ())]
    assert "WorkflowTemplate[lib].spec.templates[say].container.image" in found
    file.write_text(MANIFEST.replace("suspend: {}", "http: {url: x}"))
    found = [finding.where for finding in getattr(retrain("run", file).exception, "findings", ())]
    assert "spec.templates[approve].http" in found


def test_options_of_pipelines_and_of_manifests_are_not_mixed(file: Path) -> None:
    assert retrain("run", file, "--source", "x.csv").exit_code != 0
    assert retrain("run", "churn.yaml", "-p", "a=b").exit_code != 0
    assert retrain("run", file, "-p", "word").exit_code != 0
