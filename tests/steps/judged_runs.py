"""Worlds with real datasets, splits and LightGBM runs for tests of both gates; made through the real stages' parts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pyarrow as pa
import pyarrow.csv

from contracts.metrics import Task
from contracts.names import tag
from contracts.pipeline import parse_pipeline
from contracts.references import ColumnSpec, ModelManifest
from contracts.stages import Features, Ingest
from serving.estimators import LightgbmEstimator
from serving.model import manifest_sha256, save
from serving.transform import transform
from serving.user_code import UserCode
from steps.dataset import read_table
from steps.features import features
from steps.ingest import ingest
from steps.register import register
from steps.splitting import read_recipe, read_split
from steps.world import World
from tests.steps.registered import NOW, make_world, to_register

PIPELINE = """
apiVersion: retrain/v1
name: churn
source: {uri: churn.csv}
schema:
  columns:
    - {name: id, type: integer, nullable: false}
    - {name: usage, type: number, nullable: false}
    - {name: age, type: number, nullable: true}
    - {name: region, type: string, nullable: false}
    - {name: faith, type: string, nullable: false, sensitive: true}
    - {name: churned, type: string, nullable: false}
target: {column: churned, task: binary, positive: "yes"}
features: {columns: [{column: id, drop: true}, {column: faith, drop: true}]}
split: {validation: 0.2, test: 0.3, seed: 1, key: [id]}
training: {metric: roc_auc, candidates: [{name: trees, estimator: lightgbm}]}
gates:
  default:
    validation:
      thresholds: [{metric: roc_auc, min: 0.75}]
      bootstrap: {resamples: 200}
    promotion:
      thresholds: [{metric: roc_auc, min: 0.75}]
      comparison: {metric: roc_auc, min_rows: 100, bootstrap: {resamples: 200}}
      latency: {max_ms: 1000, calls: 20}
      max_size_mib: 5
"""
ROWS = 1500


def write_rows(path: Path, rows: int = ROWS, first: int = 0) -> None:
    """Write customers `first` to `first + rows`: who they are depends on their number only."""
    random = np.random.default_rng(5)
    everyone = first + rows
    usage, age, luck = random.normal(size=everyone), random.normal(50, 10, everyone), random.random(everyone)
    chance = 1 / (1 + np.exp(-(2.2 * usage + (age - 50) / 12)))
    table = pa.table(
        {
            "id": np.arange(everyone),
            "usage": usage,
            "age": age,
            "region": np.where(np.arange(everyone) % 4 == 0, "south", "north"),
            "faith": np.where(np.arange(everyone) % 3 == 0, "hidden-one", "hidden-two"),
            "churned": np.where(luck < chance, "yes", "no"),
        }
    )
    pa.csv.write_csv(table.slice(first), path)


def churn_world(folder: Path, pipeline: str = PIPELINE, workflow: str = "retrain-1", now: datetime = NOW) -> World:
    base = make_world(folder, workflow)
    parsed = parse_pipeline(pipeline)
    return World(
        settings=base.settings, pipeline=parsed, pipeline_path=folder / "churn.yaml", workflow=workflow, now=lambda: now
    )


def data(world: World, folder: Path, rows: int = ROWS, first: int = 0) -> Features.Outputs:
    """Ingest customers and split them; returns what `features` answered, `dataset` and its hash beside it."""
    write_rows(folder / "churn.csv", rows, first)
    return features(dataset_inputs(world), world=world)


def dataset_inputs(world: World) -> Features.Inputs:
    found = ingest(Ingest.Inputs(as_of=NOW), world=world)
    return Features.Inputs(dataset=found.dataset, dataset_sha256=found.dataset_sha256)


def train_run(
    world: World,
    folder: Path,
    *,
    name: str = "trees",
    rounds: int = 30,
    noise: float = 0.0,
    manifest: Mapping[str, Any] | None = None,
) -> str:
    """Train on `folder`/churn.csv and return the run; `noise` is the share of training labels turned over."""
    inputs = dataset_inputs(world)
    found = features(inputs, world=world)
    split, recipe = read_split(world, found.split), read_recipe(world, found.split)
    table = read_table(world, inputs.dataset)
    matrix, target = transform(recipe, table), np.array(table.column("churned").to_pylist()) == "yes"
    training = split.mask("train")
    turned = np.random.default_rng(7).random(len(target)) < noise
    parameters = {
        "objective": "binary",
        "verbosity": -1,
        "num_leaves": 4,
        "num_threads": 1,
        "deterministic": True,
        "seed": 1,
    }
    booster = lightgbm.train(
        parameters, lightgbm.Dataset(matrix[training], (target ^ turned)[training]), num_boost_round=rounds
    )
    columns = [world.pipeline.table.column(c) for c in world.pipeline.feature_columns]
    described = {
        "pipeline": world.pipeline.name, "task": Task.BINARY, "classes": ("no", "yes"),
        "positive": "yes", "threshold": 0.5,
        "columns": tuple(ColumnSpec(name=c.name, type=c.type.value, nullable=c.nullable.value) for c in columns),
        "estimator": "lightgbm", "contract": world.pipeline.release.contract, "candidate": name,
        "dataset_sha256": inputs.dataset_sha256, "transform_sha256": recipe.sha256,
    }  # fmt: skip
    references = {
        "dataset": inputs.dataset, "dataset_sha256": inputs.dataset_sha256,
        "split": found.split, "split_sha256": found.split_sha256,
    }  # fmt: skip
    run = world.tracking.begin(
        f"{name}-{found.split_sha256}", world.workflow, {tag(k): v for k, v in references.items()}, NOW
    )
    package = folder / f"work-{run}" / "package"
    whole = ModelManifest.model_validate(described | dict(manifest or {}))
    row = {"id": 1, "usage": 0.0, "age": 50.0, "region": "north", "faith": "x"}
    example = [{c.name: row[c.name] for c in whole.columns if c.name in row}]
    saved = save(package, whole, recipe, LightgbmEstimator(booster), UserCode({}), example)
    world.tracking.log_package(run, package, saved, example, ["lightgbm"])
    world.tracking.set_tags(run, {tag("artifact_sha256"): manifest_sha256(package)})
    world.tracking.end(run)
    return run


def registered(world: World, run: str) -> int:
    return register(to_register(world, run), world=world).version


def serve(world: World, version: int, at: datetime = NOW) -> None:
    """Enter a version as serving, as deploy does after an approval."""
    from contracts.outcomes import State

    model, run = world.pipeline.name, world.registry.run_of(version)
    for state in (State.RELEASING, State.SERVING):
        world.ledger.append(
            model, state, version=version, run_id=run, workflow="deployed", by="test", reason="test", evidence={},
            after=world.ledger.head(model), at=at,
        )  # fmt: skip
