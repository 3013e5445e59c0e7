"""Pipelines and what they compile to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from workflows.compile import compile_pipeline

ROOT = Path(__file__).parents[2]
ADULT = ROOT / "adult.yaml"


@pytest.fixture(scope="session")
def compiled() -> dict[str, str]:
    """What the shipped pipeline file compiles to."""
    return compile_pipeline(ADULT)


@pytest.fixture(scope="session")
def manifests(compiled: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {name: yaml.safe_load(text) for name, text in compiled.items()}


@pytest.fixture(scope="session")
def spec(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return dict(manifests["2-workflowtemplate.yaml"]["spec"])


@pytest.fixture(scope="session")
def templates(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {template["name"]: template for template in spec["templates"]}


@pytest.fixture(scope="session")
def argo() -> str:
    """The argo command: on PATH, or named by the variable ARGO."""
    found = os.environ.get("ARGO") or shutil.which("argo")
    if not found:
        pytest.skip("no argo binary on PATH, and ARGO names none")
    return found
