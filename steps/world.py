"""The outside world as a stage sees it: made once per step from the settings, opened only as far as it is used."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.pipeline import Pipeline
from contracts.settings import Settings
from contracts.stages import Need

if TYPE_CHECKING:
    from serving.user_code import UserCode
    from steps.ledger import Ledger
    from steps.registry import Registry
    from steps.rollout.target import Target
    from steps.storage import Storage
    from steps.tracking import Tracking
    from steps.words import Words


@dataclass
class World:
    """Settings, the pipeline file, the clock, and the parts of the world behind them."""

    settings: Settings
    pipeline: Pipeline
    pipeline_path: Path
    """The pipeline file; relative source paths are relative to its folder only at the desk, where it is the user's."""
    workflow: str = "local"
    """Name of the workflow that runs this step."""
    needs: frozenset[Need] = frozenset(Need)
    """What the stage declares that it reaches; on a cluster it has no credentials for anything else."""
    duty: str = ""
    """Whose rights the step has, by its name in `contracts.access`."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("retrain"))

    @cached_property
    def storage(self) -> Storage:
        """Datasets, splits, reports, code."""
        self._require(Need.STORE)
        from steps.storage import Storage

        return Storage(self.settings)

    def user_code(self, uri: str) -> UserCode:
        """Return the user's own modules that were packed for this run; none where it has no `uri` of them."""
        from serving.user_code import UserCode, unpack

        return unpack(self.storage.read(uri)) if uri else UserCode({})

    @cached_property
    def tracking(self) -> Tracking:
        """MLflow runs."""
        self._require(Need.TRACKING)
        from steps.tracking import Tracking

        return Tracking(self.settings, self.pipeline)

    @cached_property
    def registry(self) -> Registry:
        """MLflow's model registry."""
        self._require(Need.TRACKING)
        from steps.registry import Registry

        return Registry(self.settings, self.pipeline.name)

    @cached_property
    def ledger(self) -> Ledger:
        """The truth about versions."""
        self._require(Need.LEDGER)
        from steps.ledger import Ledger

        return Ledger(self.settings.ledger.get_secret_value())

    @cached_property
    def words(self) -> Words:
        """What persons said on a cluster."""
        self._require(Need.LEDGER)
        from steps.words import words

        return words()

    @cached_property
    def target(self) -> Target:
        """Where versions serve."""
        self._require(Need.SERVER)
        from steps.rollout.choice import target

        return target(self)

    @cached_property
    def scratch(self) -> Path:
        """A folder for work in progress, on the same machine only, gone with the step."""
        self._scratch = tempfile.TemporaryDirectory(prefix="retrain-")
        return Path(self._scratch.name)

    def _require(self, need: Need) -> None:
        """Refuse here what would only fail on a cluster, where the credentials follow the declaration."""
        if need not in self.needs:
            raise RuntimeError(f"this stage does not declare that it reaches the {need.value}: see `needs`")
