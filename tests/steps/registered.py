"""A world on disk with finished runs that hold a small packaged model: what register needs, without training."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from contracts.names import tag
from contracts.outcomes import Verdict
from contracts.pipeline import load_pipeline
from contracts.reports import Check, Interval, ValidationReport
from contracts.settings import Settings, desk, variable
from contracts.stages import Register
from serving.model import manifest_sha256
from steps.evaluate import report_uri
from steps.mlflow_connection import mlflow_client
from steps.storage import local_path
from steps.world import World
from tests.model_packages import KEY, TRUSTED, package

ADULT = Path("adult.yaml").resolve()
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
TAGS = {
    tag("dataset_sha256"): "d" * 64, tag("split_sha256"): "5" * 64, tag("transform_sha256"): "7" * 64,
    tag("code_commit"): "abc123", tag("train_key"): "k" * 64, tag("validation"): "passed",
}  # fmt: skip
CHECK = Check(
    name="roc_auc", verdict=Verdict.PASSED, value=0.91, min=0.88, reason="roc_auc 0.91 is at least 0.88",
    interval=Interval(low=0.9, high=0.92, confidence=0.95, resamples=1000),
)  # fmt: skip


def make_settings(folder: Path, **changed: Any) -> Settings:
    values = desk(folder, folder) | {variable("signing_key"): PEM, variable("model_keys"): TRUSTED}
    return Settings.model_validate(
        {f: values[variable(f)] for f in Settings.model_fields if variable(f) in values} | changed
    )


@cache
def _empty_mlflow() -> bytes:
    """Return a fresh MLflow database; making one takes seconds."""
    folder = Path(tempfile.mkdtemp(prefix="retrain-test-"))
    mlflow_client(make_settings(folder))
    data = (folder / "mlflow.db").read_bytes()
    shutil.rmtree(folder)
    return data


def make_world(folder: Path, workflow: str = "retrain-1") -> World:
    if not (folder / "mlflow.db").exists():
        (folder / "mlflow.db").write_bytes(_empty_mlflow())
    return World(
        settings=make_settings(folder),
        pipeline=load_pipeline(ADULT),
        pipeline_path=ADULT,
        workflow=workflow,
        now=lambda: NOW,
    )


def validated(world: World, run: str) -> str:
    """Return the URI of the report by which a run passed the validation gate, written here where `evaluate` did not."""
    uri = report_uri(world, run)
    if world.storage.exists(uri):
        return uri
    report = ValidationReport(
        run_id=run, pipeline=world.pipeline.name, environment="desk", verdict=Verdict.PASSED, reason=CHECK.reason,
        checks=(CHECK,), metrics={"roc_auc": 0.91}, test_rows=2000, dataset_sha256="d" * 64, split_sha256="5" * 64,
        policy_sha256="a" * 64,
    )  # fmt: skip
    return world.storage.write(uri, report.model_dump_json().encode())


def to_register(world: World, run: str) -> Register.Inputs:
    """Return what `evaluate` hands on of a run that passed."""
    uri = validated(world, run)
    return Register.Inputs(run_id=run, report=uri, report_sha256=hashlib.sha256(world.storage.read(uri)).hexdigest())


def finished_run(world: World, tags: dict[str, str] | None = None) -> str:
    from mlflow.entities import LoggedModelOutput

    client = mlflow_client(world.settings)
    name = world.pipeline.name
    experiment = client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(name, world.settings.artifacts)
    run = client.create_run(experiment_id, tags=TAGS | (tags or {}))
    model = client.create_logged_model(experiment_id, "model", run.info.run_id)
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, 0)])
    client.set_terminated(run.info.run_id)
    run_id = str(run.info.run_id)
    if local_path(world.tracking.package_uri(run_id)):
        put_package(world, run_id)
    return run_id


def put_package(world: World, run_id: str) -> None:
    """Put what was trained where MLflow has it."""
    folder, package = world.tracking.package_uri(run_id), _package()
    for file in package.rglob("*"):
        if file.is_file():
            world.storage.write(f"{folder}/{file.relative_to(package).as_posix()}", file.read_bytes())
    mlflow_client(world.settings).set_tag(run_id, tag("artifact_sha256"), manifest_sha256(package))


@cache
def _package() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="retrain-test-"))
    atexit.register(shutil.rmtree, folder)
    return package(folder / "package")
