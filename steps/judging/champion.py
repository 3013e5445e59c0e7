"""What serves now, measured beside a challenger on rows that neither has seen.  Called by `promote`.

A champion that can't be read, loaded or scored is no error: the gate hears why, and it stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.errors import ConfigError, DataError, InfrastructureError, NetworkError, ResourcesError, StorageError
from contracts.metrics import Task
from contracts.pipeline.gates import PromotionGate
from contracts.references import LedgerEntry, ModelManifest
from serving.model import PackagedModel, Predictions, read_manifest
from steps import own_environment
from steps.dataset import arrow_schema, read_table
from steps.gates import promotion
from steps.gates.compatibility import refusals
from steps.gates.validation import non_finite
from steps.judging.assessment import Assessment, judged, references
from steps.metrics import Judged
from steps.signing import proof
from steps.splitting import Keys, key_scheme, read_split, row_keys
from steps.world import World

PASSING = (NetworkError, StorageError, ResourcesError, InfrastructureError)
"""What a retry may mend: not taken for a property of the champion."""


@dataclass(frozen=True)
class Package:
    """The champion's packaged model, as far as it could be read; `trouble` says what stood in the way."""

    folder: Path | None = None
    manifest: ModelManifest | None = None
    model: PackagedModel | None = None
    trouble: str = ""


@dataclass(frozen=True)
class Unseen:
    """Which of the challenger's test rows the champion has not seen either, and how that was found."""

    mask: NDArray[np.bool_]
    """Of the test rows."""
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """The gate's evidence about the champion, and the model for timing; None when it does not load here."""

    evidence: promotion.Champion
    model: PackagedModel | None
    notes: tuple[str, ...]
    folder: Path | None = None
    """Of its package, where it could be read."""
    compared: tuple[Judged, Judged] | None = None
    """The challenger's answers and its own on the rows that neither has seen, where it was scored."""


def measure_champion(
    world: World, challenger: Assessment, serving: LedgerEntry, gate: PromotionGate, now: datetime
) -> Measured:
    """Compare what serves with a challenger as far as the policy asks.

    Raises
    ------
    NetworkError, StorageError
        When something did not answer that may answer later.
    """
    package = load_package(world, serving)
    unseen = unseen_rows(world, challenger, serving)
    rows = int(unseen.mask.sum())
    difference = compared = None
    trouble, notes = package.trouble if package.manifest is None else "", [unseen.note]
    comparison = gate.comparison
    if comparison is not None and package.manifest is not None and rows >= comparison.min_rows:
        mine = challenger.judged.take(unseen.mask)
        try:
            table = challenger.rows.filter(unseen.mask)
            answers, note = _answers(world, serving, package, package.manifest, table)
            notes.append(note)
            its = judged(
                challenger.model.manifest.classes,
                challenger.model,
                table,
                challenger.target,
                _aligned(answers, package.manifest, challenger.model.manifest),
            )
            if bad := non_finite(its):
                raise DataError(f"it answers no number for {bad} rows")
            difference, compared = promotion.compare(mine, its, comparison), (mine, its)
        except (ConfigError, DataError) as error:
            trouble = f"version {serving.version} can't be scored: {error.message}"
    evidence = promotion.Champion(
        version=serving.version,
        age=now - serving.at,
        refusals=(
            None if package.manifest is None else refusals(challenger.model.manifest.columns, package.manifest.columns)
        ),
        contract=package.manifest.contract if package.manifest else 1,
        rows=rows,
        difference=difference,
        not_scored=trouble,
    )
    said = tuple(note for note in notes if note)
    return Measured(evidence, package.model, said, package.folder, compared)


def load_package(world: World, serving: LedgerEntry) -> Package:
    """Read the champion's package, if it is what was signed; say what stands in the way rather than fail."""
    who = f"version {serving.version}"
    try:
        folder = world.tracking.package(serving.run_id, world.scratch)
        proof(folder, serving.run_id, world=world)
        manifest = read_manifest(folder)
    except (ConfigError, DataError) as error:
        return Package(trouble=f"{who} can't be read: {error.message}")
    try:
        return Package(folder, manifest, PackagedModel.load(folder))
    except (*PASSING, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001  whatever another version of a library raises on reading its model
        return Package(folder, manifest, trouble=f"{who} does not load in today's environment: {_said(error)}")


def unseen_rows(world: World, challenger: Assessment, serving: LedgerEntry) -> Unseen:
    """Find the challenger's test rows that are on the champion's train or validation side nowhere.

    Keys of both splits compare only when they were made alike.  Where not, the champion's rows are keyed anew from its
    dataset in the challenger's way; where that is impossible no row counts as unseen.
    """
    nothing = np.zeros(challenger.rows.num_rows, dtype=np.bool_)
    test = challenger.split.mask("test")
    try:
        its = references(world.tracking.record(serving.run_id))
        split = read_split(world, its.split)
        if split.manifest.key_scheme == challenger.split.manifest.key_scheme:
            return Unseen(challenger.split.unseen_by(split)[test])
        keys = _keyed_anew(world, challenger, its.dataset)
    except (ConfigError, DataError) as error:
        return Unseen(nothing, f"which rows version {serving.version} has seen is not known: {error.message}")
    if len(keys) != len(split.sides):
        return Unseen(nothing, f"the dataset of version {serving.version} is not the one of its split")
    note = f"row keys of version {serving.version} were made in another way; its rows were keyed anew"
    return Unseen(~np.isin(challenger.split.keys, keys[~split.mask("test")])[test], note)


def _keyed_anew(world: World, challenger: Assessment, dataset: str) -> Keys:
    pipeline, scheme = world.pipeline, challenger.split.manifest.key_scheme
    columns = [pipeline.table.column(name) for name in pipeline.split.key or pipeline.table.names]
    if key_scheme(pipeline.name, columns) != scheme:
        raise ConfigError("the challenger's row keys were made by another pipeline file")
    names = [column.name for column in columns]
    table = read_table(world, dataset, names)
    types = arrow_schema(pipeline.table)
    if changed := [name for name in names if table.schema.field(name).type != types.field(name).type]:
        raise DataError(f"its dataset has another type of column {', '.join(changed)}")
    return row_keys(table.to_batches(), columns, scheme)


def _answers(
    world: World, serving: LedgerEntry, package: Package, manifest: ModelManifest, table: Any
) -> tuple[Predictions, str]:
    """Score rows with the champion, here or in its own environment; the second value says which, when not here."""
    names = [column.name for column in manifest.columns]
    if absent := [name for name in names if name not in table.column_names]:
        raise DataError(f"today's dataset has no column {', '.join(absent)}")
    if package.model is not None:
        try:
            return package.model.predict(table.select(names)), ""
        except (*PASSING, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001  loading may succeed where answering does not
            trouble = f"version {serving.version} does not answer in today's environment: {_said(error)}"
    else:
        trouble = package.trouble
    if package.folder is None:
        raise ConfigError(trouble)
    try:
        requirements, python = world.tracking.environment(serving.run_id, world.scratch)
        answers = own_environment.score_in_own_environment(
            requirements, package.folder, table.select(names), world.scratch / "champion", python
        )
    except (ConfigError, NetworkError) as error:  # without an index the champion stays, as it does without uv
        raise ConfigError(f"{trouble}; nor in its own: {error.message}") from error
    return answers, f"{trouble}; it was scored in its own"


def _aligned(answers: Predictions, champion: ModelManifest, challenger: ModelManifest) -> Predictions:
    """Return the champion's answers in the challenger's order of classes; classes it never knew get probability 0."""
    if champion.task is not challenger.task:
        raise DataError(f"it predicts another thing ({champion.task})")
    if champion.task is Task.REGRESSION or champion.classes == challenger.classes:
        return answers
    if gone := [name for name in champion.classes if name not in challenger.classes]:
        raise DataError(f"it predicts classes that the challenger does not know ({len(gone)})")
    if answers.scores is None:
        raise DataError("it gives no probabilities")
    scores = np.zeros((len(answers.labels), len(challenger.classes)))
    for index, name in enumerate(champion.classes):
        scores[:, challenger.classes.index(name)] = answers.scores[:, index]
    return Predictions(answers.labels, scores)


def _said(error: Exception) -> str:
    message = getattr(error, "message", "") or str(error)
    return f"{type(error).__name__}: {message.splitlines()[0] if message else 'no message'}"[:300]
