"""Ledger, registry and store of one model, opened from settings alone.  Called by lineage, predict and reproduce.

A stage is given its pipeline file; whoever asks about a version months later takes the file that was kept with its run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from contracts.errors import ConfigError
from contracts.names import ALIAS_PRODUCTION
from contracts.pipeline import load_pipeline
from contracts.settings import Settings
from steps.ledger import Ledger
from steps.registry import Registry
from steps.storage import Storage
from steps.tracking import PIPELINE
from steps.world import World


@dataclass(frozen=True)
class Reference:
    """``[MODEL@]production``, ``[MODEL@]staging`` or ``[MODEL@]VERSION``."""

    model: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference; an empty `model` means the only one there is."""
        model, _, name = text.rpartition("@")
        return cls(model, name or ALIAS_PRODUCTION)


class Archive:
    """Ledger, registry and store of one model: all that lineage is read from."""

    def __init__(self, settings: Settings, ledger: Ledger, model: str) -> None:
        self.settings = settings
        self.ledger = ledger
        self.model = model

    @classmethod
    def open(cls, settings: Settings, model: str = "") -> Archive:
        """Open the archive of `model`, or of the only model that the ledger has.

        Raises
        ------
        ConfigError
            There is none, or the name is needed to choose.
        """
        ledger = Ledger(settings.ledger.get_secret_value())
        models = ledger.models()
        if model and model not in models:
            known = f"it knows {', '.join(models)}" if models else "it is empty"
            raise ConfigError(f"the ledger does not know a model {model!r}", remedy=known)
        if not model and len(models) != 1:
            if models:
                raise ConfigError(
                    "there are several models", remedy=f"say which: {', '.join(f'{m}@...' for m in models)}"
                )
            raise ConfigError("no version was registered yet", remedy="`retrain run FILE` makes one")
        return cls(settings, ledger, model or models[0])

    @cached_property
    def registry(self) -> Registry:
        """MLflow's registry."""
        return Registry(self.settings, self.model)

    @cached_property
    def storage(self) -> Storage:
        """Datasets and reports."""
        return Storage(self.settings)

    def world(self, run_id: str, folder: Path) -> World:
        """Return the world that a stage would see, under the pipeline file that was kept with a run.

        Raises
        ------
        ConfigError
            The run has none any more, or this retrain does not read its version.
        """
        kept = self.registry.fetch(run_id, PIPELINE, folder)
        if kept is None:
            raise ConfigError(f"the run {run_id} has no pipeline file in MLflow any more", remedy="train again")
        return World(settings=self.settings, pipeline=load_pipeline(kept), pipeline_path=kept)

    def version(self, name: str) -> int:
        """Return the version that ``production``, another alias or a number names.

        `production` is what the ledger says, whatever the alias in MLflow does.

        Raises
        ------
        ConfigError
            It names none.
        """
        if name == ALIAS_PRODUCTION:
            serving = self.ledger.serving(self.model)
            if serving is None:
                raise ConfigError(f"no version of {self.model} serves", remedy="name a version")
            return serving.version
        if name.isdigit():
            return self._known(int(name))
        if (version := self.registry.alias(name)) is None:
            raise ConfigError(f"{self.model} has no alias {name!r}", remedy=f"a version or {ALIAS_PRODUCTION}")
        return version

    def _known(self, version: int) -> int:
        there = sorted({entry.version for entry in self.ledger.entries(self.model)})
        if version not in there:
            try:
                self.registry.run_of(version)  # it may have been registered by other means
            except ConfigError:
                raise ConfigError(
                    f"{self.model} has no version {version}", remedy=f"there are {', '.join(map(str, there))}"
                ) from None
        return version
