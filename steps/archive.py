"""Ledger, registry and store of one model, opened from settings alone.  Called by lineage, predict and reproduce.

A stage is given its pipeline file; whoever asks about a version months later takes the file that was kept with its run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from contracts.errors import ConfigError
from contracts.names import ALIAS_PRODUCTION
from contracts.pipeline import load_pipeline
from contracts.prediction_id import PredictionId
from contracts.references import LedgerEntry
from contracts.settings import Settings
from steps.approvals import request_of
from steps.ledger import Ledger
from steps.registry import Registry
from steps.storage import Storage
from steps.tracking import PIPELINE
from steps.world import World

_SHORTEST = 7
"""Characters that a shortened hash has at least; fewer digits are a version's number."""
_HASHES = (
    "dataset_sha256", "code_commit", "user_commit", "user_code", "artifact_sha256", "pipeline_sha256", "lock_sha256",
)  # fmt: skip
"""Evidence by which a version can be named."""


@dataclass(frozen=True)
class Reference:
    """``[MODEL@]production``, ``staging``, a version's number, a prediction's id, or something of a version's making;
    see `Archive.version`.
    """

    model: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference; an empty `model` means the only one there is.  A prediction's id names its own."""
        model, _, name = text.rpartition("@")
        if not model and (prediction := PredictionId.parse(name)):
            model = prediction.model
        return cls(model, name or ALIAS_PRODUCTION)


def versions_made_of(entries: Sequence[LedgerEntry], what: str) -> list[int]:
    """Return the versions with this run, workflow, image, or hash of what made them in an entry; see `_HASHES`.

    A workflow is named by its whole name; all else may be shortened, to `_SHORTEST` characters.
    """
    found = {
        entry.version
        for entry in entries
        if what == entry.workflow
        or any(known.startswith(what) for known in (entry.run_id, entry.id))
        or any(str(entry.evidence.get(key, "")).startswith(what) for key in _HASHES)
        or what in str(entry.evidence.get("image", "")).partition("@")[2]
    }
    return sorted(found - {0})


def asked(settings: Settings, run: str, model: str = "") -> tuple[Archive, LedgerEntry]:
    """Return the archive of its model, and the request for a person's word that a run made.

    Parameters
    ----------
    run
        The run's name, or the version's number.
    model
        Needed when a version is named and there are several.

    Raises
    ------
    ConfigError
        The ledger knows no such run, or it asked for nothing.
    """
    if model or run.isdigit():
        archive = Archive.open(settings, model)
        return archive, request_of(archive.ledger.entries(archive.model), run)
    ledger = Ledger(settings.ledger.get_secret_value())
    for name in ledger.models():
        entries = ledger.entries(name)
        if any(entry.workflow == run for entry in entries):
            return Archive(settings, ledger, name), request_of(entries, run)
    raise ConfigError(f"the ledger knows no run {run}", remedy="`retrain approvals` lists those that ask")


def entries_of(settings: Settings, what: str = "", at: datetime | None = None) -> list[LedgerEntry]:
    """Return the ledger's entries, model by model: all, of one model, or of the versions that a reference names.

    Raises
    ------
    ConfigError
        It names nothing; see `Archive.versions`.
    """
    ledger = Ledger(settings.ledger.get_secret_value())
    models = ledger.models()
    if what in ("", *models):
        return [entry for model in models if what in ("", model) for entry in ledger.entries(model, at)]
    archive, name = Archive.named(settings, what)
    versions = archive.versions(name, at)
    return [entry for entry in ledger.entries(archive.model, at) if entry.version in versions]


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
                raise ConfigError("there are several models", remedy=f"say which: {' or '.join(models)}")
            raise ConfigError("no version was registered yet", remedy="`retrain run FILE` makes one")
        return cls(settings, ledger, model or models[0])

    @classmethod
    def named(cls, settings: Settings, reference: str) -> tuple[Archive, str]:
        """Open the archive that a reference names, and return what it asks of it; a model alone asks for production.

        What only one of several models has, a commit or a dataset's hash say, needs no model before it.

        Raises
        ------
        ConfigError
            See `open`; or versions of several models have it.
        """
        asked = Reference.parse(reference)
        if asked.model:
            return cls.open(settings, asked.model), asked.name
        ledger = Ledger(settings.ledger.get_secret_value())
        models = ledger.models()
        if asked.name in models:
            return cls.open(settings, asked.name), ALIAS_PRODUCTION
        found: list[str] = []
        if len(models) > 1 and len(asked.name) >= _SHORTEST:
            found = [model for model in models if versions_made_of(ledger.entries(model), asked.name)]
        if len(found) > 1:
            raise ConfigError(
                f"versions of several models have {asked.name}",
                remedy=f"say which: {' or '.join(f'{model}@{asked.name}' for model in found)}",
            )
        return cls.open(settings, *found), asked.name

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
            gone = ConfigError(f"the run {run_id} has no pipeline file in MLflow any more", remedy="train again")
            raise self.removal(run_id) or gone
        return World(settings=self.settings, pipeline=load_pipeline(kept), pipeline_path=kept)

    def version(self, name: str, at: datetime | None = None) -> int:
        """Return the one version that a name stands for; see `versions`.

        Raises
        ------
        ConfigError
            It names none, or several.
        """
        found = self.versions(name, at)
        if len(found) > 1:
            raise ConfigError(
                f"{len(found)} versions of {self.model} have {name}",
                remedy=f"name one: {', '.join(map(str, found))}; `retrain audit log {name}` tells of all",
            )
        return found[0]

    def versions(self, name: str, at: datetime | None = None) -> list[int]:
        """Return what ``production``, another alias, a number or something of a version's making names: one or more.

        A prediction's id holds its version; no record of it is looked for.  `production` is what the ledger says, of
        now or of a moment, whatever the alias in MLflow does.  Of its making are the MLflow run, a workflow, an image's
        digest, a commit, and the hashes of dataset, package, pipeline file, lock file and the user's modules, which may
        be shortened; of those, several versions may be made, by a moment fewer.

        Raises
        ------
        ConfigError
            It names none.
        """
        if name == ALIAS_PRODUCTION:
            serving = self.ledger.serving_at(self.model, at) if at else self.ledger.serving(self.model)
            if serving is None:
                when = f"served at {at.isoformat()}" if at else "serves"
                raise ConfigError(f"no version of {self.model} {when}", remedy="name a version")
            return [serving.version]
        if prediction := PredictionId.parse(name):
            if prediction.model != self.model:
                raise ConfigError(f"{name} is a prediction of {prediction.model}, not of {self.model}")
            return [self._known(prediction.version)]
        if name.isdigit() and len(name) < _SHORTEST:
            return [self._known(int(name))]
        if len(name) >= _SHORTEST and (made := versions_made_of(self.ledger.entries(self.model, at), name)):
            return made
        if (version := self.registry.alias(name)) is None:
            raise ConfigError(
                f"{self.model} has no alias {name!r}, and nothing of a version's making is called so",
                remedy=f"a version, {ALIAS_PRODUCTION}, a prediction's id, a run, workflow, dataset's hash, commit or "
                "image's digest",
            )
        return [version]

    def removal(self, run_id: str) -> ConfigError | None:
        """Return what to say of a version whose material retention removed, None where it did not."""
        for version, entry in self.ledger.standing(self.model).removed.items():
            if version and entry.run_id == run_id:
                copy = str(entry.evidence.get("archive", ""))
                return ConfigError(
                    f"what version {version} of {self.model} was made of was removed on {entry.at:%F} by {entry.by}: "
                    f"{entry.reason}",
                    remedy=f"copy it back from {copy}; docs/retention.md says how" if copy else "no copy was kept",
                )
        return None

    def _known(self, version: int) -> int:
        there = sorted({entry.version for entry in self.ledger.entries(self.model) if entry.version})
        if version not in there:
            try:
                self.registry.run_of(version)  # it may have been registered by other means
            except ConfigError:
                raise ConfigError(
                    f"{self.model} has no version {version}", remedy=f"there are {', '.join(map(str, there))}"
                ) from None
        return version
