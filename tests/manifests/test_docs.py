"""The generated pages of docs/ say what the code declares."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from contracts import names
from contracts.access import GRADUAL_RULES, RELEASE_RULES
from contracts.errors import ERROR_CLASSES
from contracts.stages import STAGES
from workflows import retention
from workflows.docs import pages

ROOT = Path(__file__).parents[2]
PAGES = pages()
AWAY = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8").split("## Taking it away")[1].split("\n## ")[0]


@pytest.mark.parametrize("name", PAGES)
def test_the_committed_page_is_what_is_generated(name: str) -> None:
    committed = (ROOT / "docs" / name).read_text(encoding="utf-8")

    assert committed == PAGES[name], "run `python -m workflows.docs`"


def test_every_stage_and_every_error_class_has_its_place() -> None:
    assert all(f"\n## {stage.name}\n" in PAGES["stages.md"] for stage in STAGES)
    assert all(f"| {row.name} | {row.exit_code} |" in PAGES["errors.md"] for row in ERROR_CLASSES)


def test_the_shipped_file_fits_the_published_schema() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(PAGES["pipeline.schema.json"]))

    assert [e.message for e in validator.iter_errors(yaml.safe_load((ROOT / "adult.yaml").read_text()))] == []


def test_the_schema_refuses_a_key_it_does_not_know() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(PAGES["pipeline.schema.json"]))
    file = yaml.safe_load((ROOT / "adult.yaml").read_text())
    file["target"]["tusk"] = 1

    [error] = validator.iter_errors(file)

    assert "'tusk' was unexpected" in error.message


def test_taking_it_away_removes_all_that_releases_make_and_files_compile_to() -> None:
    commands = "".join(line for line in AWAY.splitlines(keepends=True) if line.startswith("    ")).replace("\\\n", "")

    def removed(selector: str) -> set[str]:
        lines = [line.split("#")[0] for line in commands.splitlines() if " delete " in line and selector in line]
        return {kind for line in lines for word in line.split() if "," in word for kind in word.split(",")}

    rules = (*RELEASE_RULES, *GRADUAL_RULES)
    assert removed("managed-by=retrain") == {
        kind for rule in rules if "create" in rule.verbs for kind in rule.resources
    }
    compiled = [yaml.safe_load(file.read_text()) for file in (ROOT / "argo" / "adult-income").iterdir()]
    labelled = [each["kind"].lower() for each in compiled if names.LABEL_PIPELINE in each["metadata"].get("labels", {})]
    assert removed(names.LABEL_PIPELINE) == {"workflows", *(f"{kind}s" for kind in labelled)}
    assert f"eventbus {names.EVENT_BUS} " in commands
    assert f"cronworkflow {retention.NAME} " in commands


def test_taking_it_away_names_all_that_outlives_the_release() -> None:
    chart = list(yaml.safe_load_all((Path(__file__).parent / "chart-local.yaml").read_text(encoding="utf-8")))
    kept = {x["kind"] for x in chart if "helm.sh/resource-policy" in (x["metadata"].get("annotations") or {})}
    claims = [
        f"{claim['metadata']['name']}-{x['metadata']['name']}-0"
        for x in chart
        if x["kind"] == "StatefulSet"
        for claim in x["spec"].get("volumeClaimTemplates", [])
    ]

    assert kept == {"Secret", "ResourceQuota", "LimitRange"}
    assert "secrets -l app.kubernetes.io/part-of=retrain" in AWAY
    assert "resourcequota/platform limitrange/platform" in AWAY
    assert claims
    assert f"pvc {' '.join(sorted(claims, reverse=True))}`" in AWAY
