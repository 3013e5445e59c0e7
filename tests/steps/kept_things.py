"""An environment with everything that retention knows, made without training: on disk or on an S3 server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from contracts.names import tag
from contracts.outcomes import Note, State
from steps.ingest_report import IngestReport
from steps.mlflow_connection import mlflow_client
from steps.register import register
from steps.retention.runs import Runs
from steps.world import World
from tests.steps.registered import NOW, finished_run, put_package, to_register

MODEL = "adult-income"
SERVED = (State.APPROVED, State.RELEASING, State.SERVING)
LATER = datetime.now(UTC) + timedelta(days=200)
"""When all that a test has made is old."""


@dataclass(frozen=True)
class Made:
    """One version, or a run without any (0), and what it is made of."""

    version: int
    run_id: str
    dataset: str
    split: str
    code: str


def put_dataset(world: World, letter: str) -> str:
    uri = world.storage.uri("datasets", letter * 64)
    world.storage.write(f"{uri}/data.parquet", f"rows of {letter}".encode())
    world.storage.write(f"{uri}/dataset.json", b"{}")
    return uri


def make(world: World, letter: str, *, dataset: str = "", registered: bool = True) -> Made:
    """Put everything in its place that a run leaves."""
    storage = world.storage
    dataset = dataset or put_dataset(world, letter)
    split = storage.uri("splits", letter * 64)
    for name in ("rows.parquet", "recipe.json", "split.json"):
        storage.write(f"{split}/{name}", f"{name} of {letter}".encode())
    code = storage.write(storage.uri("code", f"{letter * 64}.zip"), b"modules")
    tags = {
        tag("dataset"): dataset, tag("split"): split, tag("code"): code, tag("pipeline"): MODEL,
        tag("dataset_sha256"): dataset.rpartition("/")[2], tag("split_sha256"): letter * 64,
    }  # fmt: skip
    run_id = finished_run(world, tags)
    put_package(world, run_id)
    for place, name in zip(Runs(world.settings).places(run_id), ("pipeline.yaml", "MLmodel"), strict=True):
        storage.write(f"{place}/{name}", f"{name} of {letter}".encode())
    inputs = to_register(world, run_id)
    version = register(inputs, world=world).version if registered else 0
    return Made(version, run_id, dataset, split, code)


def enter(world: World, made: Made, *states: State | Note, at: datetime = NOW, **evidence: Any) -> None:
    for state in states:
        world.ledger.append(
            MODEL, state, version=made.version, run_id=made.run_id, workflow="release-1", by="ann", reason="",
            evidence=evidence, after=world.ledger.head(MODEL), at=at,
        )  # fmt: skip


def put_the_rest(world: World) -> None:
    """Put what belongs to no version: records of an old and of a new day, a cache entry, a log, what is unknown."""
    storage, old, new = world.storage, "2020-01-01", f"{LATER - timedelta(days=3):%F}"
    for day in (old, new):
        storage.write(storage.uri("predictions", MODEL, day, "1-a.parquet"), b"records")
    storage.write(storage.uri("cache", "evaluate", "0.json"), b"{}")
    storage.write(storage.uri("fits", "retrain-1", "f", "fit.json"), b"{}")
    storage.write(storage.uri("builds", "b", "context.tar.gz"), b"context")
    storage.write(storage.uri("logs", "retrain-9", "pod", "main.log"), b"log")
    storage.write(storage.uri("export", "deployment.yaml"), b"another's")


def ingest_report(world: World, workflow: str, dataset: str) -> str:
    report = IngestReport(
        dataset=dataset,
        dataset_sha256=dataset.rpartition("/")[2],
        schema_sha256="e" * 64,
        rows=1,
        sources=(),
        as_of=NOW,
    )
    return world.storage.write(world.storage.uri("reports", workflow, "ingest.json"), report.model_dump_json().encode())


def contents(world: World) -> dict[str, bytes]:
    """All objects of store and artifacts."""
    roots = (f"{world.settings.store}/", f"{world.settings.artifacts}/")
    return {uri: world.storage.read(uri) for root in roots for uri in world.storage.list(root)}


def run_stages(world: World) -> Mapping[str, str]:
    """Run -> its lifecycle stage in MLflow."""
    from mlflow.entities import ViewType

    client = mlflow_client(world.settings)
    experiments = [e.experiment_id for e in client.search_experiments()]
    return {
        run.info.run_id: run.info.lifecycle_stage for run in client.search_runs(experiments, run_view_type=ViewType.ALL)
    }
