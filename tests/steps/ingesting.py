"""Ingest files with a schema, in a world on disk."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contracts.pipeline import Pipeline
from contracts.settings import Settings, desk, variable
from contracts.stages import Ingest
from steps.ingest import ingest
from steps.world import World

AS_OF = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def world_for(
    folder: Path, columns: list[dict[str, Any]], uri: Any, *, schema: Any = None, source: Any = None, **settings: Any
) -> World:
    values = desk(folder / "home", folder)
    fields = {f: values[variable(f)] for f in Settings.model_fields if variable(f) in values} | settings
    pipeline = {
        "apiVersion": "retrain/v1",
        "name": "test",
        "source": {"uri": uri} | (source or {}),
        "schema": {"columns": columns} | (schema or {}),
        "target": {"column": columns[0]["name"], "task": "binary", "positive": "1"},
        "training": {"metric": "accuracy", "candidates": [{"name": "a", "estimator": "dummy"}]},
        "gates": {
            "default": {
                "validation": {"thresholds": [{"metric": "accuracy", "min": 0.5}]},
                "promotion": {"thresholds": []},
            }
        },
    }
    if columns[0]["type"] not in ("string", "integer", "boolean"):
        pipeline["target"] = {"column": columns[0]["name"], "task": "regression"}
        pipeline["training"]["metric"] = "rmse"
        pipeline["gates"]["default"]["validation"]["thresholds"][0]["metric"] = "rmse"
    return World(
        settings=Settings.model_validate(fields),
        pipeline=Pipeline.model_validate(pipeline),
        pipeline_path=folder / "pipeline.yaml",
        workflow="test-1",
        now=lambda: AS_OF,
    )


def run_ingest(world: World, **inputs: Any) -> Ingest.Outputs:
    return ingest(Ingest.Inputs(as_of=AS_OF, **inputs), world=world)


def column(name: str, kind: str, **rules: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, **rules}
