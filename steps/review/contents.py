"""What a person looks at before saying yes: challenger beside champion, and their data.  Called by `promote`.

Made where everything is loaded already; `steps.review.page` shows it.  Of a sensitive column only
counts go on: no cell, no category.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from contracts.errors import ConfigError, DataError
from contracts.metrics import Task, metrics_of
from contracts.pipeline.table import Column, ColumnType
from contracts.reports import PromotionReport, ValidationReport
from steps.dataset import opened
from steps.evaluate import report_uri
from steps.gates.validation import non_finite
from steps.judging.assessment import Assessment, references
from steps.judging.champion import Measured
from steps.metrics import BINS, Judged, calibration_bins, confidence_and_hit, score_judged
from steps.tracking import RunRecord
from steps.world import World

MOST_CATEGORIES = 8
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
_DECILES = tuple(np.arange(0.1, 1.0, 0.1))
_LEAST_SHARE = 1e-4
"""Stands in for a share of zero, whose logarithm is none."""
_MIB = 2**20
SOME, MUCH = 0.1, 0.25
"""Usual readings of a shift."""


@dataclass(frozen=True)
class Bin:
    """One bin of a calibration curve."""

    probability: float
    """Mean of what the model said."""
    share: float
    """What came true."""
    rows: int


@dataclass(frozen=True)
class Side:
    """One of the two models."""

    version: int
    run: RunRecord
    size_mib: float | None = None
    latency_ms: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """On the rows that neither has seen, or the challenger's test rows where nothing is compared."""
    calibration: tuple[Bin, ...] = ()
    validation: ValidationReport | None = None


@dataclass(frozen=True)
class Values:
    """How a column's cells are spread."""

    rows: int
    missing: float
    """Share of empty cells."""
    quantiles: tuple[float, ...] = ()
    """Least, quarter, middle, three quarters, most; of numbers."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Of the most frequent categories."""


@dataclass(frozen=True)
class Change:
    """A column in the challenger's dataset and in the champion's."""

    column: str
    now: Values | None
    """None: it is gone."""
    before: Values | None
    """None: it is new."""
    shift: float | None = None
    """Population stability index, sum (p - q) ln(p / q) over tenths or categories (Siddiqi, Credit Risk Scorecards,
    2006)."""


@dataclass(frozen=True)
class Review:
    """All that the page shows."""

    report: PromotionReport
    challenger: Side
    champion: Side | None = None
    rows: int = 0
    """So many rows are what both sides' metrics are of."""
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()


def collect(
    world: World, report: PromotionReport, challenger: Assessment, champion: Measured | None, latency_ms: float | None
) -> Review:
    """Put together what is known of both models; what can't be read is noted, not raised.

    Raises
    ------
    NetworkError, StorageError
        When something did not answer that may answer later.
    """
    compared = champion.compared if champion else None
    judged = compared[0] if compared else challenger.judged
    ours = _side(world, report.version, challenger.run, challenger.folder, latency_ms, judged)
    if champion is None or report.champion is None:
        return Review(report, ours, rows=judged.rows)
    try:
        run = world.tracking.record(report.champion_run_id)
        its = _side(
            world, report.champion, run, champion.folder, champion.evidence.latency_ms,
            compared[1] if compared else None,
        )  # fmt: skip
        before = references(run)
        if before.dataset_sha256 == challenger.references.dataset_sha256:
            return Review(report, ours, its, judged.rows, notes=("both learned from the same dataset",))
        found = tuple(changes(world, challenger.references.dataset, before.dataset))
    except (ConfigError, DataError) as error:
        return Review(report, ours, rows=judged.rows, notes=(f"not compared: {error.message}",))
    return Review(report, ours, its, judged.rows, found)


def changes(world: World, now: str, before: str) -> Iterator[Change]:
    """Compare two datasets column by column, the file's first; one column is read at a time."""
    with opened(world, now) as new, opened(world, before) as old:
        for column in world.pipeline.table.columns:
            ours, its = (_column(file, column.name) for file in (new, old))
            shift = _shift(column, ours, its) if ours is not None and its is not None else None
            yield Change(column.name, _values(column, ours), _values(column, its), shift)


def calibration(judged: Judged) -> tuple[Bin, ...]:
    """Return the calibration curve over ten equal-width bins, without the empty ones; none for regression."""
    if judged.task is Task.REGRESSION or judged.rows == 0:
        return ()
    probability, hit = confidence_and_hit(judged)
    bins = calibration_bins(probability)
    rows = np.bincount(bins, minlength=BINS)
    said, came = (np.bincount(bins, weights=values, minlength=BINS) for values in (probability, hit))
    return tuple(
        Bin(float(said[b] / rows[b]), float(came[b] / rows[b]), int(rows[b])) for b in range(BINS) if rows[b]
    )  # fmt: skip


def size_mib(folder: Path) -> float:
    """Return the size of all files of a packaged model, in MiB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / _MIB


def _side(
    world: World, version: int, run: RunRecord, folder: Path | None, latency_ms: float | None, judged: Judged | None
) -> Side:
    validation = _validation(world, run.run_id)
    size = size_mib(folder) if folder else None
    if judged is None or non_finite(judged):
        return Side(version, run, size, latency_ms, validation=validation)
    found = {name: value for name in metrics_of(judged.task) if math.isfinite(value := score_judged(judged, name))}
    return Side(version, run, size, latency_ms, found, calibration(judged), validation)


def _validation(world: World, run_id: str) -> ValidationReport | None:
    uri = report_uri(world, run_id)
    try:
        return ValidationReport.model_validate_json(world.storage.read(uri)) if world.storage.exists(uri) else None
    except ValidationError:  # of another form than this retrain reads
        return None


def _column(file: pq.ParquetFile, name: str) -> pa.ChunkedArray | None:
    return file.read(columns=[name]).column(name) if name in file.schema_arrow.names else None


def _is_number(column: Column) -> bool:
    return column.type in (ColumnType.INTEGER, ColumnType.NUMBER)


def _numbers(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    return cells.drop_null().cast(pa.float64(), safe=False)


def _counts(cells: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(cells.drop_null().cast(pa.string()))
    found = dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _values(column: Column, cells: pa.ChunkedArray | None) -> Values | None:
    if cells is None:
        return None
    rows, missing = len(cells), cells.null_count / max(len(cells), 1)
    if column.sensitive or cells.null_count == rows:
        return Values(rows, missing)
    if _is_number(column):
        return Values(rows, missing, tuple(pc.quantile(_numbers(cells), list(QUANTILES)).to_pylist()))
    if column.type not in (ColumnType.STRING, ColumnType.BOOLEAN):
        return Values(rows, missing)
    counts = _counts(cells)
    if len(counts) > rows / 2:  # names or numbers of things, not categories
        return Values(rows, missing)
    return Values(rows, missing, (), {name: n / rows for name, n in list(counts.items())[:MOST_CATEGORIES]})


def _shift(column: Column, now: pa.ChunkedArray, before: pa.ChunkedArray) -> float | None:
    if now.null_count == len(now) or before.null_count == len(before):
        return None
    try:
        if _is_number(column):
            edges = np.unique(pc.quantile(_numbers(before), list(_DECILES)).to_numpy())
            both = [
                np.bincount(np.searchsorted(edges, _numbers(cells).to_numpy(), side="left"), minlength=len(edges) + 1)
                for cells in (now, before)
            ]
        elif column.type in (ColumnType.STRING, ColumnType.BOOLEAN):
            ours, its = _counts(now), _counts(before)
            if len(its) > len(before) / 2:
                return None
            both = [np.array([counts.get(name, 0) for name in {**its, **ours}]) for counts in (ours, its)]
        else:
            return None
    except pa.ArrowException:  # the type was another then
        return None
    p, q = (_shares(counts) for counts in both)
    return float(((p - q) * np.log(p / q)).sum())


def _shares(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.maximum(np.asarray(counts, dtype=np.float64) / max(1, int(np.sum(counts))), _LEAST_SHARE)
