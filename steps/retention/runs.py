"""MLflow as retention sees it: all trainings of one store, where their files lie, and their removal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from contracts.names import tag
from contracts.settings import Settings
from steps.mlflow_connection import mlflow_client, mlflow_errors
from steps.tracking import TRAIN_KEY

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

REMOVED_TAG = tag("removed")
"""On a version in MLflow's registry: since when its files are gone."""
_PAGE = 1000
_REFERS = ("dataset", "split", "code")


@dataclass(frozen=True)
class TrainingRun:
    """One training that MLflow keeps."""

    run_id: str
    model: str
    ended: datetime
    """When it ended; of one that did not, when it began."""
    names: tuple[str, ...]
    """URIs of dataset, split and modules."""


@dataclass(frozen=True)
class Registered:
    """What MLflow's registry says."""

    versions: frozenset[tuple[str, str]]
    """(model, run) of every version."""
    aliases: dict[str, dict[int, str]]
    """Model -> version -> an alias that names it."""


class Runs:
    """The trainings in an environment's MLflow.

    Raises
    ------
    NetworkError, StorageError, ConfigError
        By every method; see `steps.mlflow_connection`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def trainings(self) -> Iterator[TrainingRun]:
        """Yield every training that was not deleted, of whatever pipeline."""
        with mlflow_errors(self._settings):
            experiments = [each.experiment_id for each in _pages(self._client.search_experiments)]
            if experiments:
                where = f"tags.`{TRAIN_KEY}` LIKE '%'"
                yield from map(
                    _training, _pages(self._client.search_runs, experiment_ids=experiments, filter_string=where)
                )

    def registered(self) -> Registered:
        """Return which runs have versions, and what aliases name."""
        with mlflow_errors(self._settings):
            versions = {(each.name, each.run_id) for each in _pages(self._client.search_model_versions)}
            aliases = {
                model.name: {int(version): alias for alias, version in sorted(model.aliases.items(), reverse=True)}
                for model in _pages(self._client.search_registered_models)
            }
        return Registered(frozenset(versions), aliases)

    def places(self, run_id: str) -> list[str]:
        """Return the URIs of the folders of a run's artifacts and models."""
        with mlflow_errors(self._settings):
            run = self._client.get_run(run_id)
            models = [model.artifact_location for model in self._models(run)]
        return [str(place) for place in (run.info.artifact_uri, *models)]

    def remove(self, run_id: str) -> None:
        """Let MLflow take a run and its models for deleted; `mlflow gc` ends them, `mlflow runs restore` undoes it."""
        with mlflow_errors(self._settings):
            for model in self._models(self._client.get_run(run_id)):
                self._client.delete_logged_model(model.model_id)
            self._client.delete_run(run_id)

    def mark(self, model: str, version: int, on: datetime) -> None:
        """Tag a version in the registry as one whose files are gone; one that is not there needs no tag."""
        with mlflow_errors(self._settings, absent=True):
            self._client.set_model_version_tag(model, str(version), REMOVED_TAG, f"{on:%F}")

    def _models(self, run: Run) -> list[LoggedModel]:
        return list(
            _pages(
                self._client.search_logged_models, experiment_ids=[run.info.experiment_id],
                filter_string=f"source_run_id = '{run.info.run_id}'",
            )
        )  # fmt: skip

    @cached_property
    def _client(self) -> MlflowClient:
        return mlflow_client(self._settings)


def _training(run: Run) -> TrainingRun:
    tags, at = run.data.tags, run.info.end_time or run.info.start_time
    return TrainingRun(
        run_id=run.info.run_id,
        model=tags.get(tag("pipeline"), ""),
        ended=datetime.fromtimestamp(at / 1000, UTC),
        names=tuple(tags[tag(name)] for name in _REFERS if tags.get(tag(name))),
    )


def _pages(search: Callable[..., Any], **said: Any) -> Iterator[Any]:
    """Yield what one of MLflow's searches finds, page by page."""
    token = None
    while True:
        page = search(page_token=token, **said)
        yield from page
        if not (token := page.token):
            return
