"""The generated pages of docs/ say what the code declares."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from contracts.errors import ERROR_CLASSES
from contracts.stages import STAGES
from workflows.docs import pages

ROOT = Path(__file__).parents[2]
PAGES = pages()


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
