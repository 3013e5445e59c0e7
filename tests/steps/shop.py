"""A small table with its pipeline file, and a desk on which the stage `features` reads it."""

from __future__ import annotations

import copy
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contracts.pipeline import Pipeline
from contracts.references import DATASET_FILE, DATASET_MANIFEST, DatasetManifest
from contracts.settings import Settings
from contracts.stages import Features
from steps.dataset import arrow_schema, dataset_uri
from steps.features import features
from steps.world import World

ROWS = 400
PIPELINE: dict[str, Any] = {
    "apiVersion": "retrain/v1",
    "name": "shop",
    "source": {"uri": "shop.csv"},
    "schema": {
        "columns": [
            {"name": "id", "type": "integer"},
            {"name": "age", "type": "integer"},
            {"name": "pay", "type": "number"},
            {"name": "member", "type": "boolean"},
            {"name": "city", "type": "string"},
            {"name": "since", "type": "date"},
            {"name": "seen", "type": "timestamp"},
            {"name": "weight", "type": "number"},
            {"name": "bought", "type": "string"},
        ]
    },
    "target": {"column": "bought", "task": "binary", "positive": "yes"},
    "split": {"method": "random", "validation": 0.2, "test": 0.2, "seed": 3, "key": ["id"]},
    "training": {
        "metric": "roc_auc",
        "sample_weight": "weight",
        "candidates": [{"name": "linear", "estimator": "linear"}],
    },
    "gates": {"default": {"validation": {"thresholds": [{"metric": "roc_auc", "min": 0.5}]}}},
}


def table(rows: int = ROWS) -> dict[str, list[Any]]:
    dice = np.random.default_rng(1)
    return {
        "id": list(range(rows)),
        "age": [None if n % 7 == 0 else n % 50 for n in range(rows)],
        "pay": [n / 2 for n in range(rows)],
        "member": [n % 3 == 0 for n in range(rows)],
        "city": [["Bonn", "Ulm", "Kiel", None][n % 4] for n in range(rows)],
        "since": [date(2020, 1, 1) + timedelta(days=n) for n in range(rows)],
        "seen": [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=n) for n in range(rows)],
        "weight": [1.0] * rows,
        "bought": dice.choice(["yes", "no"], rows).tolist(),
    }


def changed(path: str = "", value: Any = None) -> dict[str, Any]:
    """Return the pipeline file with one dotted key set."""
    data = copy.deepcopy(PIPELINE)
    *parents, last = path.split(".")
    at = data
    for key in parents:
        at = at.setdefault(key, {})
    if path:
        at[last] = value
    return data


class Desk:
    """A store in a folder, and the stage run on tables put into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def world(self, data: dict[str, Any]) -> World:
        settings = Settings(store=(self.folder / "store").as_uri(), tracking_uri="sqlite://")
        return World(settings=settings, pipeline=Pipeline.model_validate(data), pipeline_path=self.folder / "shop.yaml")

    def put(self, world: World, cells: dict[str, list[Any]], sha256: str = "a" * 64) -> Features.Inputs:
        typed = pa.table(cells, schema=arrow_schema(world.pipeline.table))
        uri = dataset_uri(world, sha256)
        pq.write_table(typed, world.scratch / DATASET_FILE, row_group_size=100)
        world.storage.upload(world.scratch / DATASET_FILE, f"{uri}/{DATASET_FILE}")
        manifest = DatasetManifest(
            sha256=sha256,
            schema_sha256="b" * 64,
            rows=typed.num_rows,
            columns=(),
            sources=(),
            as_of=datetime(2026, 1, 1, tzinfo=UTC),
        )
        world.storage.write(f"{uri}/{DATASET_MANIFEST}", manifest.model_dump_json().encode())
        return Features.Inputs(dataset=uri, dataset_sha256=sha256)

    def run(
        self, cells: dict[str, list[Any]], data: dict[str, Any] = PIPELINE, sha256: str = "a" * 64
    ) -> tuple[World, Features.Outputs]:
        world = self.world(data)
        return world, features(self.put(world, cells, sha256), world=world)
