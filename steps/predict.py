"""Score a file of raw rows with a registered version.  Called by `retrain predict`; changes nothing in store or MLflow.

The file is read by ingest's own readers, under the columns that the model wants: a cell means here what it meant in
training.  Memory is bounded, whatever the file's size.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from contracts.base import Contract
from contracts.errors import ConfigError, DataError
from contracts.pipeline import Pipeline
from contracts.pipeline.source import Source
from contracts.pipeline.table import Column, ColumnType, Rows, Schema
from contracts.references import ColumnSpec
from serving.model import PackagedModel, read_packages
from serving.transform import unseen_in
from steps.archive import Archive
from steps.own_packages import activate, bring
from steps.sources import open_source, other_delimiter
from steps.sources.uris import has_glob
from steps.table.arrow_reader import is_parquet
from steps.table.assembly import assemble
from steps.table.rules import judge, violation_findings
from steps.world import World

BATCH_ROWS = 1 << 16


class Scored(Contract):
    """What was scored, and what a person should know about it."""

    model: str
    version: int
    rows: int
    unseen: dict[str, int]
    """Column -> rows that hold a category which training did not see."""


class Sink(Protocol):
    """Takes scored rows."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows."""


def predict(archive: Archive, name: str, source: str, out: Path | None, folder: Path) -> Scored:
    """Score the rows of `source` (a path or URI, CSV or Parquet) and write them to `out`, else to standard output.

    One row out for each row in, in order: ``row`` (from 1), ``prediction``, ``probability_<class>`` and ``version``.
    A file ends in .parquet, .csv or .csv.gz, and appears whole or not at all.

    Raises
    ------
    DataError
        With a finding for each column that is missing or does not fit.
    ConfigError
        There is no such version, file or format.
    """
    version = archive.version(name)
    run_id = archive.registry.run_of(version)
    world = archive.world(run_id, folder)
    package = world.tracking.package(run_id, folder)
    activate(bring(archive.settings, read_packages(package)))
    model = PackagedModel.load(package)
    rows = _read(source, model, world)
    unseen: dict[str, int] = {}
    done = 0
    with pq.ParquetFile(rows, memory_map=True) as file, _sink(out, _out_schema(model)) as sink:
        for batch in file.iter_batches(BATCH_ROWS):
            table = pa.Table.from_batches([batch])
            sink.write(_score(model, table, done, version, unseen))
            done += table.num_rows
    return Scored(model=archive.model, version=version, rows=done, unseen=unseen)


def request_schema(pipeline: Pipeline, columns: tuple[ColumnSpec, ...]) -> Schema:
    """Return the model's columns as a schema to read by: types as in training, no rules, other columns left out."""
    known = set(pipeline.table.names)
    read = [
        Column(
            name=spec.name,
            type=ColumnType(spec.type),
            sensitive=spec.sensitive,
            infinity=spec.name in known and pipeline.table.column(spec.name).infinity,
        )
        for spec in columns
    ]
    return Schema(columns=tuple(read), rows=Rows(), extra_columns="drop")


def _read(source: str, model: PackagedModel, world: World) -> Path:
    """Read the rows with the model's columns into a Parquet file.

    They mean what they meant in training; the delimiter alone is the file's own, as `retrain init` finds it.
    """
    if "://" not in source and not has_glob(source) and not os.path.lexists(source):
        raise ConfigError(f"there is no file {source}", remedy="name a CSV, CSV.gz or Parquet file, by a path or a URI")
    if Path(source).suffix == ".parquet" and Path(source).is_file() and not is_parquet(Path(source)):
        raise DataError(
            f"{source} is not a Parquet file", remedy="name another file, or give it the ending of its format"
        )
    schema = request_schema(world.pipeline, model.manifest.columns)
    uri = source if "://" in source else Path(source).absolute().as_uri()
    csv = world.pipeline.source.csv
    opened = open_source(Source(uri=uri, csv=csv), "", world.now(), "", world=world)
    if others := [other for each in opened.sources if (other := other_delimiter(each.columns(), schema))]:
        csv = csv.model_copy(update={"delimiter": others[0]})
        opened = open_source(Source(uri=uri, csv=csv), "", world.now(), "", world=world)
    assembled = assemble(opened.tasks(schema), schema, world.scratch / "rows.parquet")
    broken = [v for v in judge(assembled.tally, schema, world.now()) if v.level == "error"]
    if broken:
        raise DataError(f"{source} does not fit the model's columns", findings=violation_findings(broken))
    if not assembled.tally.rows:
        raise DataError(f"{source}: there is a header, and no rows", remedy="name a file that has some")
    return assembled.parquet


def _score(model: PackagedModel, table: pa.Table, done: int, version: int, unseen: dict[str, int]) -> pa.RecordBatch:
    features = model.features(table)
    for column, count in _count_unseen(model, features, table).items():
        if count:
            unseen[column] = unseen.get(column, 0) + count
    answers = model.answer(features)
    schema = _out_schema(model)
    arrays = [pa.array(range(done + 1, done + table.num_rows + 1)), pa.array(answers.labels.tolist())]
    arrays += [] if answers.scores is None else [pa.array(column) for column in answers.scores.T]
    arrays.append(pa.array([version] * table.num_rows))
    return pa.RecordBatch.from_arrays([a.cast(f.type) for a, f in zip(arrays, schema, strict=True)], schema=schema)


def _out_schema(model: PackagedModel) -> pa.Schema:
    manifest = model.manifest
    label = {"integer": pa.int64(), "boolean": pa.bool_(), "string": pa.string()}
    return pa.schema(
        [
            ("row", pa.int64()),
            ("prediction", label[manifest.class_type] if manifest.classes else pa.float64()),
            *((f"probability_{text}", pa.float64()) for text in manifest.classes),
            ("version", pa.int64()),
        ]
    )


def _count_unseen(model: PackagedModel, features: Any, table: pa.Table) -> dict[str, int]:
    if not model.manifest.passthrough:
        return {name: int(mask.sum()) for name, mask in unseen_in(model.recipe, features).items()}
    counts = {}
    for spec in model.manifest.columns:
        if spec.categories is not None:
            cells = table.column(spec.name).drop_null().cast(pa.string())
            seen = pc.sum(pc.is_in(cells, value_set=pa.array(spec.categories, pa.string()))).as_py() or 0
            counts[spec.name] = len(cells) - seen
    return counts


@contextlib.contextmanager
def _sink(out: Path | None, schema: pa.Schema) -> Iterator[Sink]:
    if out is None:
        with pyarrow.csv.CSVWriter(sys.stdout.buffer, schema) as writer:
            yield writer
        return
    name = out.name.lower()
    if not name.endswith((".csv", ".csv.gz", ".parquet")):
        raise ConfigError(f"cannot tell the format of {out}", remedy="end its name in .csv, .csv.gz or .parquet")
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with contextlib.ExitStack() as stack:
            file: BinaryIO = stack.enter_context(part.open("wb"))
            if name.endswith(".parquet"):
                yield stack.enter_context(pq.ParquetWriter(file, schema))
            else:
                target = stack.enter_context(pa.CompressedOutputStream(file, "gzip")) if name.endswith(".gz") else file
                yield stack.enter_context(pyarrow.csv.CSVWriter(target, schema))
        part.replace(out)
    except OSError as error:
        raise ConfigError(
            f"cannot write {out}: {error.strerror}", remedy="check folder, permissions and disk"
        ) from None
    finally:
        with contextlib.suppress(OSError):  # what went wrong before says more
            part.unlink(missing_ok=True)
