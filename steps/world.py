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

if TYPE_CHECKING:
    from steps.ledger import Ledger
    from steps.registry import Registry
    from steps.storage import Storage
    from steps.tracking import Tracking


@dataclass
class World:
    """Settings, the pipeline file, the clock, and the parts of the world behind them."""

    settings: Settings
    pipeline: Pipeline
    pipeline_path: Path
    """The pipeline file; relative source paths are relative to its folder only at the desk, where it is the user's."""
    workflow: str = "local"
    """Name of the workflow that runs this step."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("retrain"))

    @cached_property
    def storage(self) -> Storage:
        """Datasets, splits, reports, code."""
        from steps.storage import Storage

        return Storage(self.settings)

    @cached_property
    def tracking(self) -> Tracking:
        """MLflow runs."""
        from steps.tracking import Tracking

        return Tracking(self.settings, self.pipeline)

    @cached_property
    def registry(self) -> Registry:
        """MLflow's model registry."""
        from steps.registry import Registry

        return Registry(self.settings, self.pipeline.name)

    @cached_property
    def ledger(self) -> Ledger:
        """The truth about versions."""
        from steps.ledger import Ledger

        return Ledger(self.settings.ledger.get_secret_value())

    @cached_property
    def scratch(self) -> Path:
        """A folder for work in progress, on the same machine only, gone with the step."""
        self._scratch = tempfile.TemporaryDirectory(prefix="retrain-")
        return Path(self._scratch.name)
