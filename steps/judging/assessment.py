"""A run's model and its answers on the test rows: what both gates look at.  Called by `evaluate` and `promote`.

Here alone the gates touch data; train and validation rows are dropped before anything is scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from contracts.base import Contract
from contracts.errors import ConfigError, DataError
from contracts.metrics import Task
from contracts.names import tag
from contracts.pipeline.gates import GatePolicy
from serving.model import PackagedModel, Predictions, manifest_sha256
from steps.dataset import read_table
from steps.metrics import Judged, judge
from steps.splitting import SplitRows, read_split
from steps.tracking import RunRecord
from steps.world import World


@dataclass(frozen=True)
class References:
    """The dataset and the split that a run trained on, as its tags name them."""

    dataset: str
    dataset_sha256: str
    split: str
    split_sha256: str


@dataclass(frozen=True)
class Trained:
    """What a run left: its record, what it read, and the folder of its packaged model."""

    run: RunRecord
    references: References
    folder: Path

    @property
    def package_sha256(self) -> str:
        """Of the manifest of the model's package, which holds the hashes of its files."""
        return manifest_sha256(self.folder)


@dataclass(frozen=True)
class Assessment(Trained):
    """A model beside its test rows."""

    model: PackagedModel
    split: SplitRows
    rows: Any
    """The test rows, an Arrow table with the columns of the model, the target and whatever was asked for."""
    target: str
    groups: NDArray[np.int64] | None = None
    """Of each test row the number of its group, where the split is by group."""

    @cached_property
    def answers(self) -> Predictions:
        """The model's."""
        return self.model.predict(self.rows)

    @cached_property
    def judged(self) -> Judged:
        """Truth beside the model's answers."""
        rows = judged(self.model.manifest.classes, self.model, self.rows, self.target, self.answers)
        return replace(rows, groups=self.groups)


def references(run: RunRecord) -> References:
    """Read a run's references from its tags.

    Raises
    ------
    ConfigError
        When the run is none of ours.
    """
    names = ("dataset", "dataset_sha256", "split", "split_sha256")
    if missing := [tag(name) for name in names if not run.tags.get(tag(name))]:
        raise ConfigError(f"run {run.run_id} lacks the tags {', '.join(missing)}", remedy="train again")
    return References(*(run.tags[tag(name)] for name in names))


def trained(world: World, run_id: str) -> Trained:
    """Return what a run left.

    Raises
    ------
    ConfigError
        When the run or its model is not there, or the run is none of ours.
    """
    run = world.tracking.record(run_id)
    return Trained(run, references(run), world.tracking.package(run_id, world.scratch))


def assess(world: World, subject: Trained, columns: Sequence[str] = ()) -> Assessment:
    """Load a run's model and the test rows of its split.

    Parameters
    ----------
    columns
        Columns to read besides the model's and the target.

    Raises
    ------
    ConfigError, DataError
        When the model, dataset or split is not there or not whole.
    """
    found, model = subject.references, PackagedModel.load(subject.folder)
    split = read_split(world, found.split)
    target = world.pipeline.target.column
    group = _group_column(world, split)
    wanted = dict.fromkeys([*(c.name for c in model.manifest.columns), target, *columns, *([group] if group else [])])
    table = read_table(world, found.dataset, list(wanted))
    if len(table) != len(split.sides):
        raise DataError(f"the split {found.split} has {len(split.sides)} rows, its dataset {len(table)}")
    groups = _test_groups(group, table.column(group), split) if group else None
    test = table.filter(split.mask("test"))
    return Assessment(subject.run, found, subject.folder, model, split, test, target, groups)


def _group_column(world: World, split: SplitRows) -> str | None:
    if split.manifest.method != "group":
        return None
    group = world.pipeline.split.group
    if group is None:
        raise ConfigError(
            "the model's rows were split by group, but split.group is gone from the pipeline file",
            remedy="train again, or judge by the file that it was trained by",
        )
    return group


def _test_groups(name: str, cells: Any, split: SplitRows) -> NDArray[np.int64]:
    """Number the groups of the test rows; the numbers say nothing of the cells."""
    numbers: NDArray[np.int64] = pc.index_in(cells, pc.unique(cells)).to_numpy().astype(np.int64)
    test = split.mask("test")
    if np.isin(numbers[~test], numbers[test]).any():
        raise ConfigError(
            f"the model's rows were not split by split.group {name}: groups have rows on two sides",
            remedy="train again, or judge by the file that it was trained by",
        )
    return numbers[test]


def judged(classes: Sequence[str], model: PackagedModel, rows: Any, target: str, answers: Predictions) -> Judged:
    """Bring rows and answers to the form that metrics read, classes in the order of `classes`.

    Raises
    ------
    DataError
        When the target holds a class that is none of `classes`.
    """
    manifest = model.manifest
    truth = rows.column(target).to_numpy()
    if manifest.task is Task.REGRESSION:
        return judge(manifest.task, truth, answers)
    try:
        return judge(manifest.task, truth, answers, classes, manifest.positive)
    except ValueError:
        raise DataError(f"the test rows' {target} holds a class that was not in the training rows") from None


def policy_sha256(policy: GatePolicy) -> str:
    """Return the hash of a policy, under which reports and ledger entries say what they were judged by."""
    return hashlib.sha256(policy.model_dump_json().encode()).hexdigest()


def report_bytes(report: Contract) -> bytes:
    """Write a report as it is stored: indented JSON, the same bytes for the same report."""
    return report.model_dump_json(indent=2).encode() + b"\n"
