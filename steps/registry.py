"""MLflow's model registry: versions, their tags and aliases.  Called by register, promote, deploy and lineage.

All of it is a projection of the ledger, written after it, never a second source; docs/ledger.md lists the tags.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.errors import ConfigError
from contracts.settings import Settings
from steps.mlflow_connection import mlflow_client, mlflow_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

_TAG = 5000
"""MLflow keeps so many characters of a version's tag."""


@dataclass(frozen=True)
class RunFacts:
    """What MLflow keeps of the run behind a version."""

    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


class Registry:
    """The versions of one registered model.

    Raises
    ------
    NetworkError, StorageError, ConfigError
        By every method; see `steps.mlflow_connection`.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self.name = name
        self._settings = settings

    def register(self, run_id: str, model_source: str, tags: Mapping[str, str]) -> int:
        """Return the version of a run's model, made when there is none.

        MLflow makes a second version when asked a second time, and its HTTP client may ask twice by itself.  So the
        run is looked up first and again after; of several versions the lowest stays and the others are deleted.  The
        `register` stage holds the ledger's lock around this call, so two processes never repair at once.

        Parameters
        ----------
        model_source : str
            URI of the run's logged model, ``models:/m-...``.
        tags : Mapping
            Written with a new version, and mended on one that exists.
        """
        if not self._versions_of(run_id):
            self._make_model()
            with mlflow_errors(self._settings):
                self._client.create_model_version(
                    self.name, model_source, run_id=run_id, tags=_short(tags), model_id=_model_id(model_source)
                )
        lowest, *doubles = self._versions_of(run_id)
        for version in doubles:
            with mlflow_errors(self._settings):
                self._client.delete_model_version(self.name, str(version))
        self.set_tags(lowest, tags)
        return lowest

    def run_of(self, version: int) -> str:
        """Return the run of a version.

        Raises
        ------
        ConfigError
            There is no such version.
        """
        return str(self._version(version).run_id)

    def source(self, version: int) -> str:
        """Return the URI of a version's package."""
        return str(self._version(version).source)

    def tags(self, version: int) -> dict[str, str]:
        """Return the tags of a version."""
        return dict(self._version(version).tags)

    def set_tags(self, version: int, tags: Mapping[str, str]) -> None:
        """Set those tags of a version that differ."""
        now = self.tags(version)
        for key, value in _short(tags).items():
            if now.get(key) != value:
                with mlflow_errors(self._settings):
                    self._client.set_model_version_tag(self.name, str(version), key, value)

    def alias(self, name: str) -> int | None:
        """Return the version that an alias names, None when it names none."""
        return self.aliases().get(name)

    def aliases(self) -> dict[str, int]:
        """Return all aliases and the versions that they name."""
        found: dict[str, str] = {}
        with mlflow_errors(self._settings, absent=True):
            found = self._client.get_registered_model(self.name).aliases
        return {alias: int(version) for alias, version in found.items()}

    def set_alias(self, name: str, version: int) -> None:
        """Let an alias name a version."""
        if self.alias(name) != version:
            with mlflow_errors(self._settings):
                self._client.set_registered_model_alias(self.name, name, str(version))

    def run(self, run_id: str) -> RunFacts | None:
        """Return what MLflow keeps of a version's run, None when it was deleted."""
        run: Run | None = None
        with mlflow_errors(self._settings, absent=True):
            run = self._client.get_run(run_id)
        if run is None:
            return None
        return RunFacts(dict(run.data.params), dict(run.data.metrics), dict(run.data.tags))

    def fetch(self, run_id: str, artifact: str, folder: Path) -> Path | None:
        """Return a local copy of an artifact of a run in `folder`, None when the run has none of that name."""
        from mlflow.exceptions import MlflowException

        with mlflow_errors(self._settings):
            try:
                folder_of_it = artifact.rpartition("/")[0] or None  # MinIO refuses a key with a dot for the root
                names = {file.path for file in self._client.list_artifacts(run_id, folder_of_it)}
                if artifact not in names:
                    return None
                return Path(self._client.download_artifacts(run_id, artifact, str(folder)))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None

    def _versions_of(self, run_id: str) -> list[int]:
        with mlflow_errors(self._settings):
            found = self._client.search_model_versions(f"name = '{self.name}' and run_id = '{run_id}'")
        return sorted(int(version.version) for version in found)

    def _version(self, version: int) -> ModelVersion:
        found: ModelVersion | None = None
        with mlflow_errors(self._settings, absent=True):
            found = self._client.get_model_version(self.name, str(version))
        if found is None:
            raise ConfigError(
                f"{self.name} has no version {version} in MLflow",
                remedy="`retrain lineage` shows the versions there are",
            )
        return found

    def _make_model(self) -> None:
        from mlflow.exceptions import MlflowException

        with mlflow_errors(self._settings):
            try:
                self._client.create_registered_model(self.name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise

    @cached_property
    def _client(self) -> MlflowClient:
        return mlflow_client(self._settings)


def _short(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value[:_TAG] for key, value in tags.items()}


def _model_id(source: str) -> str | None:
    return source.removeprefix("models:/") if source.startswith("models:/m-") else None
