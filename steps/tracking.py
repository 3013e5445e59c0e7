"""MLflow runs: what `train` writes and everyone after it reads.

A run is found by its `train_key` (what the training reads, by hash), so a step that is tried again finds what it has
already finished.  Only a FINISHED run counts; docs/mlflow.md lists the parameters, metrics, tags and artifacts.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import serving.model
from contracts.errors import ConfigError
from contracts.names import tag
from contracts.pipeline import Pipeline
from contracts.references import PACKAGES_FILE, ModelManifest
from contracts.settings import Settings
from contracts.stages import Train
from serving.signature import SIGNATURE_FILE
from serving.transform import rows_to_table
from steps.mlflow_connection import mlflow_client, mlflow_errors
from steps.storage import local_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.models import ModelSignature

PACKAGE = "package"
"""Name of the packaged model's folder among the artifacts of MLflow's model."""
PIPELINE, MACHINE = "pipeline.yaml", "environment.json"
USER_CODE, DIFF, LOCK = "code/user", "code/retrain.diff", "code/requirements.lock"
PACKAGES = f"code/{PACKAGES_FILE}"
"""Artifacts of a run from which its version can be built again."""
TRAIN_KEY = tag("train_key")
WORKFLOW = tag("workflow")
_DIGEST = 36
"""MLflow keeps so many characters of a dataset's digest; the whole hash is a tag."""
_PARAMETER = 6000
_RESULTS = 100
MLFLOW_MODEL = Path(serving.model.__file__).with_name("mlflow_model.py")
"""Run by MLflow, never imported by us."""
_TYPES = {
    "integer": "long",
    "number": "double",
    "boolean": "boolean",
    "string": "string",
    "date": "datetime",
    "timestamp": "datetime",
}


@dataclass(frozen=True)
class RunRecord:
    """A run as MLflow keeps it."""

    run_id: str
    status: str
    start_time: datetime
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    model_uri: str
    """``models:/m-...``; empty when the run has no model."""


class Tracking:
    """The MLflow experiment of one pipeline.

    Raises
    ------
    NetworkError, StorageError, ConfigError
        By every method; see `mlflow_errors`.
    """

    def __init__(self, settings: Settings, pipeline: Pipeline) -> None:
        self._settings = settings
        self._pipeline = pipeline

    def find_run(self, train_key: str, workflow: str = "") -> str | None:
        """Return the id of the finished run of that key, None when there is none; of several, the first to start.

        With `workflow`, only a run that this workflow made counts.
        """
        for run in self._search(f"tags.`{TRAIN_KEY}` = '{train_key}'"):
            if run.info.status == "FINISHED" and workflow in ("", run.data.tags.get(WORKFLOW)):
                return str(run.info.run_id)
        return None

    def begin(self, train_key: str, workflow: str, tags: Mapping[str, str], now: datetime) -> str:
        """Start a run and return its id.

        Trainings that an earlier attempt of this workflow left unfinished are marked KILLED, and so are those of other
        workflows that are older than a training may last, whatever they trained.
        """
        for run in self._search(f"attributes.status = 'RUNNING' AND tags.`{TRAIN_KEY}` LIKE '%'"):
            if run.data.tags.get(WORKFLOW) == workflow or _is_dead(run, now):
                self.end(run.info.run_id, "KILLED")
        with mlflow_errors(self._settings):
            run = self._client.create_run(
                self._experiment_id,
                start_time=int(now.timestamp() * 1000),
                tags={**tags, TRAIN_KEY: train_key, WORKFLOW: workflow},
                run_name=f"{self._pipeline.name} {now:%Y-%m-%d %H:%M:%S}",
            )
        return str(run.info.run_id)

    def end(self, run_id: str, status: str = "FINISHED") -> None:
        """Set a run's final status: FINISHED, FAILED or KILLED."""
        with mlflow_errors(self._settings):
            self._client.set_terminated(run_id, status)

    def log(self, run_id: str, params: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Log parameters, and those metrics that have a value."""
        from mlflow.entities import Metric, Param

        at = int(datetime.now(UTC).timestamp() * 1000)
        with mlflow_errors(self._settings):
            self._client.log_batch(
                run_id,
                metrics=[Metric(key, value, at, 0) for key, value in metrics.items() if not math.isnan(value)],
                params=[Param(key, str(value)[:_PARAMETER]) for key, value in params.items()],
            )

    def log_dataset(self, run_id: str, uri: str, sha256: str, rows: int) -> None:
        """Name the dataset of a run by our own hash; MLflow's would look at the first 10,000 rows."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=self._pipeline.name,
            digest=sha256[:_DIGEST],
            source_type="s3" if uri.startswith("s3:") else "local",
            source=json.dumps({"uri": uri}),
            profile=json.dumps({"num_rows": rows, "sha256": sha256}),
        )
        with mlflow_errors(self._settings):
            self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def log_json(self, run_id: str, name: str, payload: bytes) -> None:
        """Keep bytes as an artifact of the run, under the path `name`."""
        self.log_files(run_id, {name: payload})

    def log_files(self, run_id: str, files: Mapping[str, bytes]) -> None:
        """Keep several artifacts of the run: path -> bytes."""
        with tempfile.TemporaryDirectory(prefix="retrain-") as folder:
            for name, payload in files.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(payload)
            with mlflow_errors(self._settings):
                self._client.log_artifacts(run_id, folder)

    def log_package(
        self,
        run_id: str,
        folder: Path,
        manifest: ModelManifest,
        example: Sequence[Mapping[str, Any]],
        requirements: Sequence[str],
    ) -> str:
        """Log a packaged model and return its URI, ``models:/m-...``.

        Everything that MLflow would infer (by loading the model in another process) is given.

        Parameters
        ----------
        folder
            The package; its last part must be `PACKAGE`.
        example
            JSON-like rows for MLflow's input example.
        requirements
            What loading the package needs, for pip.
        """
        import mlflow
        from mlflow.models import Model

        with mlflow_errors(self._settings):
            mlflow.set_experiment(experiment_id=self._experiment_id)  # else the model goes to the default experiment
            info = Model.log(
                None,
                mlflow.pyfunc,
                name="model",
                run_id=run_id,
                python_model=str(MLFLOW_MODEL),
                artifacts={PACKAGE: str(folder)},
                signature=_signature(manifest),
                input_example=_frame(manifest, example),
                pip_requirements=list(requirements),
            )
        return str(info.model_uri)

    def log_signature(self, model_uri: str, bundle: bytes) -> None:
        """Put the signature of a packaged model beside its manifest."""
        with tempfile.TemporaryDirectory(prefix="retrain-") as folder:
            Path(folder, SIGNATURE_FILE).write_bytes(bundle)
            with mlflow_errors(self._settings):
                self._client.log_model_artifacts(model_uri.removeprefix("models:/"), folder, f"artifacts/{PACKAGE}")

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        from mlflow.entities import RunTag

        with mlflow_errors(self._settings):
            self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def record(self, run_id: str) -> RunRecord:
        """Return everything about a run."""
        with mlflow_errors(self._settings):
            run = self._client.get_run(run_id)
        outputs = run.outputs.model_outputs if run.outputs else []
        return RunRecord(
            run_id=run_id,
            status=run.info.status,
            start_time=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
            params=dict(run.data.params),
            metrics=dict(run.data.metrics),
            tags=dict(run.data.tags),
            model_uri=f"models:/{outputs[-1].model_id}" if outputs else "",
        )

    def package(self, run_id: str, folder: Path) -> Path:
        """Return the local folder of a run's packaged model, fetched into `folder` unless it is local already."""
        from mlflow.artifacts import download_artifacts

        uri = self.package_uri(run_id)
        if here := local_path(uri):
            return here
        target = folder / run_id
        target.mkdir(parents=True, exist_ok=True)
        with mlflow_errors(self._settings):
            return Path(download_artifacts(uri, dst_path=str(target)))

    def package_uri(self, run_id: str) -> str:
        """Return where the packaged model of a run lies."""
        return f"{self._model_location(run_id)}/artifacts/{PACKAGE}"

    def environment(self, run_id: str, folder: Path) -> tuple[Path, str]:
        """Return the requirements file kept with a run's model, fetched into `folder`, and its Python version."""
        import yaml
        from mlflow.artifacts import download_artifacts

        location, target = self._model_location(run_id), folder / f"{run_id}-environment"
        target.mkdir(parents=True, exist_ok=True)
        with mlflow_errors(self._settings):
            requirements = Path(download_artifacts(f"{location}/requirements.txt", dst_path=str(target)))
            described = Path(download_artifacts(f"{location}/python_env.yaml", dst_path=str(target)))
        return requirements, str(yaml.safe_load(described.read_bytes())["python"])

    def _model_location(self, run_id: str) -> str:
        model_uri = self.record(run_id).model_uri
        if not model_uri:
            raise ConfigError(f"run {run_id} has no model", remedy="train again")
        place = ""
        with mlflow_errors(self._settings, absent=True):
            place = self._client.get_logged_model(model_uri.removeprefix("models:/")).artifact_location
        if not place:  # deleted, by retention perhaps, and copied back since: its version still says where it lay
            with mlflow_errors(self._settings):
                found = self._client.search_model_versions(f"run_id = '{run_id}'")
                place = self._client.get_model_version_download_uri(found[0].name, found[0].version) if found else ""
        if not place:
            raise ConfigError(f"the model of run {run_id} was deleted in MLflow", remedy="train again")
        return str(place)

    def _search(self, condition: str) -> list[Run]:
        with mlflow_errors(self._settings):
            found: list[Run] = self._client.search_runs(
                [self._experiment_id],
                condition,
                max_results=_RESULTS,
                order_by=["attributes.start_time ASC"],
            )
        return found

    @cached_property
    def _client(self) -> MlflowClient:
        return mlflow_client(self._settings)

    @cached_property
    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self._pipeline.name
        location = f"{self._settings.artifacts.rstrip('/')}/{name}" if self._settings.artifacts else None
        with mlflow_errors(self._settings):
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                try:
                    return str(self._client.create_experiment(name, artifact_location=location))
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                    experiment = self._client.get_experiment_by_name(name)  # another process was faster
        if experiment is None or experiment.lifecycle_stage != "active":
            raise ConfigError(
                f"MLflow's experiment {name} was deleted", remedy="restore it there, or rename the pipeline"
            )
        return str(experiment.experiment_id)


def _is_dead(run: Run, now: datetime) -> bool:
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    return now - started > timedelta(seconds=Train.deadline_seconds)


def _signature(manifest: ModelManifest) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    inputs = []
    for column in manifest.columns:
        # a DataFrame holds integers with nulls as floats
        kind = "double" if column.type == "integer" and column.nullable else _TYPES[column.type]
        inputs.append(ColSpec(kind, column.name, required=not column.nullable))
    answer = (
        {"integer": "long", "boolean": "boolean"}.get(manifest.class_type, "string") if manifest.classes else "double"
    )
    outputs = [ColSpec(answer, "prediction"), *(ColSpec("double", f"probability_{c}") for c in manifest.classes)]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def _frame(manifest: ModelManifest, rows: Sequence[Mapping[str, Any]]) -> Any:
    frame = rows_to_table(manifest.columns, rows).to_pandas(date_as_object=False)
    for column in manifest.columns:
        if column.type == "timestamp":
            frame[column.name] = frame[column.name].dt.tz_localize(None)
        elif column.type == "integer" and column.nullable:
            frame[column.name] = frame[column.name].astype("float64")  # as the signature says, also without a null
    return frame
