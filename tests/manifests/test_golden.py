"""What lies in argo/ is what workflows/ compiles to, and Argo accepts it."""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from workflows.compile import compile_pipeline, load_manifests, write

ROOT = Path(__file__).parents[2]
ADULT = ROOT / "adult.yaml"
GOLDEN = ROOT / "argo" / "adult-income"


def lint(argo: str, *files: Path) -> str:
    done = subprocess.run(
        [argo, "lint", "--offline", "--no-color", *files], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_the_committed_manifests_are_what_the_file_compiles_to(compiled: dict[str, str]) -> None:
    committed = {file.name: file.read_text(encoding="utf-8") for file in GOLDEN.iterdir()}

    assert committed == compiled, "run `retrain compile adult.yaml`"


def test_compiling_twice_gives_the_same_bytes(compiled: dict[str, str]) -> None:
    assert compile_pipeline(ADULT) == compiled


def test_the_manifests_do_not_depend_on_the_environment(
    compiled: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RETRAIN_ENVIRONMENT", "production")
    monkeypatch.setenv("RETRAIN_STORE", "s3://elsewhere/x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adult.yaml").write_bytes(ADULT.read_bytes())

    assert compile_pipeline(Path("adult.yaml")) == compiled


def test_every_manifest_says_where_it_comes_from(compiled: dict[str, str]) -> None:
    assert {text.splitlines()[0] for text in compiled.values()} == {
        "# Compiled by retrain from adult.yaml; do not edit."
    }


def test_the_pipeline_file_travels_whole_in_a_configmap_named_by_its_hash(
    manifests: dict[str, dict[str, Any]], spec: dict[str, Any]
) -> None:
    configmap = manifests["1-configmap.yaml"]

    assert configmap["immutable"] is True
    assert configmap["data"]["pipeline.yaml"] == ADULT.read_text(encoding="utf-8")
    assert spec["volumes"] == [{"name": "pipeline", "configMap": {"name": configmap["metadata"]["name"]}}]


def test_another_file_has_another_configmap(manifests: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    changed = tmp_path / "adult.yaml"
    changed.write_text(ADULT.read_text(encoding="utf-8") + "# one comment more\n", encoding="utf-8")

    other = yaml.safe_load(compile_pipeline(changed)["1-configmap.yaml"])

    assert other["metadata"]["name"] != manifests["1-configmap.yaml"]["metadata"]["name"]


def test_only_the_triggers_that_the_file_names_are_compiled(tmp_path: Path) -> None:
    plain = tmp_path / "plain.yaml"
    text = ADULT.read_text(encoding="utf-8")
    plain.write_text(text[: text.index("schedule:")], encoding="utf-8")

    assert set(compile_pipeline(plain)) == {"2-workflowtemplate.yaml", "1-configmap.yaml"}


def test_files_sort_in_the_order_to_apply_them_each_after_those_that_it_names(
    manifests: dict[str, dict[str, Any]],
) -> None:
    kinds = [manifests[name]["kind"] for name in sorted(manifests)]

    assert list(manifests) == sorted(manifests)
    assert kinds == ["ConfigMap", "WorkflowTemplate", "CronWorkflow", "EventBus", "EventSource", "Sensor"]


def test_the_documented_overlay_keeps_that_order_and_switches_the_schedule_on(tmp_path: Path) -> None:
    if not (kubectl := shutil.which("kubectl")):
        pytest.skip("no kubectl on PATH")
    base = tmp_path / "argo" / "adult-income"
    write(ADULT, base)
    (base / "kustomization.yaml").write_text(yaml.safe_dump({"resources": sorted(f.name for f in base.iterdir())}))
    page = (ROOT / "docs" / "triggers.md").read_text(encoding="utf-8")
    documented = page.split("    # production/kustomization.yaml\n")[1].split("\n\n")[0]
    (tmp_path / "production").mkdir()
    (tmp_path / "production" / "kustomization.yaml").write_text(textwrap.dedent(documented))

    done = subprocess.run([kubectl, "kustomize", tmp_path / "production"], capture_output=True, text=True, check=True)

    found = list(yaml.safe_load_all(done.stdout))
    assert [each["kind"] for each in found[:3]] == ["ConfigMap", "WorkflowTemplate", "CronWorkflow"]
    assert found[2]["spec"]["suspend"] is False


def test_written_manifests_are_read_back(manifests: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    write(ADULT, tmp_path / "out")

    assert load_manifests(tmp_path / "out") == manifests


def test_argo_lints_template_and_schedule(argo: str) -> None:
    assert lint(argo, GOLDEN / "2-workflowtemplate.yaml", GOLDEN / "3-cronworkflow.yaml") == ""


@pytest.mark.parametrize("entrypoint", ["retrain", "release"])
def test_argo_lints_a_submission_of_each_entry_point(argo: str, entrypoint: str, tmp_path: Path) -> None:
    """Argo resolves tags along the chosen way: what only the other way sets must not be needed."""
    submission = tmp_path / "submission.yaml"
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "adult-income-"},
        "spec": {
            "entrypoint": entrypoint,
            "workflowTemplateRef": {"name": "adult-income"},
            "arguments": {"parameters": [{"name": "version", "value": "12"}]},
        },
    }
    submission.write_text(yaml.safe_dump(workflow), encoding="utf-8")

    assert lint(argo, GOLDEN / "2-workflowtemplate.yaml", submission) == ""
