"""Datasets in the store: where they lie, how they are read.  Called by every stage after `ingest`, which writes them.

A dataset is the folder ``<store>/datasets/<sha256>/`` with data.parquet (typed and canonical, see docs/dataset-hash.md)
and dataset.json.  It is written once and never changed; dataset.json is written last, so what has one is whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from contracts.errors import ConfigError, DataError
from contracts.pipeline.table import Schema
from contracts.references import DATASET_FILE, DATASET_MANIFEST, DatasetManifest
from serving.transform import ARROW_TYPES
from steps.world import World

BUFFER_BYTES = 1 << 20
"""Of one column chunk that is read unmapped."""


def arrow_schema(schema: Schema) -> pa.Schema:
    """Return the Arrow types of the typed table, in the schema's order."""
    return pa.schema([pa.field(column.name, ARROW_TYPES[column.type]) for column in schema.columns])


def dataset_uri(world: World, sha256: str) -> str:
    """Return the URI of a dataset's folder."""
    return world.storage.uri("datasets", sha256)


def has_dataset(world: World, uri: str) -> bool:
    """Say whether a whole dataset lies at `uri`."""
    return world.storage.exists(f"{uri}/{DATASET_MANIFEST}") and world.storage.exists(f"{uri}/{DATASET_FILE}")


def read_manifest(world: World, uri: str) -> DatasetManifest:
    """Read a dataset's manifest.

    Raises
    ------
    ConfigError
        When there is none, or it is not one of ours.
    """
    where = f"{uri}/{DATASET_MANIFEST}"
    try:
        return DatasetManifest.model_validate_json(world.storage.read(where))
    except ValidationError as error:
        raise ConfigError(f"{where} is not a dataset's manifest: {error.errors()[0]['msg']}") from None


def read_table(world: World, uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a dataset, or some of its columns in the order asked for, typed as the schema says.

    Raises
    ------
    DataError
        When data.parquet is damaged or lacks a column.
    """
    with opened(world, uri) as file:
        names = file.schema_arrow.names
        wanted = names if columns is None else list(columns)
        if absent := [name for name in wanted if name not in names]:
            raise DataError(f"the dataset {uri} has no column {', '.join(absent)}")
        return file.read(columns=wanted).select(wanted)


def batches(
    file: pq.ParquetFile, rows: int, columns: Sequence[str], *, threads: bool = True
) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows group by group: a buffered reader keeps the buffers of all groups that it has come to."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(rows, [group], list(columns), use_threads=threads)


@contextmanager
def opened(world: World, uri: str, *, mapped: bool = True) -> Iterator[pq.ParquetFile]:
    """Open a dataset's file, fetched once, for who reads it in parts.

    Parameters
    ----------
    mapped
        Map it, which copies nothing; else read it by buffers, since mapped pages count as memory of ours.

    Raises
    ------
    DataError
        When it is damaged, also while it is read.
    """
    path = world.storage.fetch(f"{uri}/{DATASET_FILE}", world.scratch)
    try:
        with pq.ParquetFile(path, memory_map=mapped, buffer_size=0 if mapped else BUFFER_BYTES) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        what = f"{uri}/{DATASET_FILE} is damaged: {type(error).__name__}"
        raise DataError(what, remedy="run again from ingest") from None
