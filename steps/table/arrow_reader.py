"""Read Parquet files, and Arrow data that a query or a function yields, as typed chunks.  Called by `ingest`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from contracts.errors import DataError
from contracts.pipeline.table import Schema
from steps.dataset import BUFFER_BYTES, batches
from steps.table.chunk import Chunk, Task, fitted_chunk

BATCH_ROWS = 32_768


def is_parquet(path: Path) -> bool:
    """Tell by its first bytes whether a file is Parquet."""
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


@dataclass(frozen=True)
class ParquetFile:
    """One Parquet file."""

    path: Path
    name: str
    batch_rows: int = BATCH_ROWS

    def columns(self) -> tuple[str, ...]:
        """Return its column names.

        Raises
        ------
        DataError
            When it is not a whole Parquet file.
        """
        try:
            with pq.ParquetFile(self.path) as file:
                return tuple(file.schema_arrow.names)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from None

    def tasks(self, schema: Schema) -> Iterator[Task]:
        """Yield one task a batch."""
        try:
            # pre_buffer would hold a whole row group in memory
            with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
                for batch in batches(file, self.batch_rows, schema.names, threads=False):
                    yield partial(batch_chunk, batch, self.name, schema)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> DataError:
        return DataError(
            f"{self.name} is damaged, cut off or no Parquet file ({type(error).__name__})",
            remedy="write or fetch the file again",
        )


@dataclass
class Stream:
    """Record batches that are made as they are read: a query's or a function's."""

    name: str
    batches: Iterator[pa.RecordBatch]
    _first: pa.RecordBatch | None = None

    def columns(self) -> tuple[str, ...]:
        """Return the column names of the first batch, which is kept for `tasks`.

        Raises
        ------
        DataError
            When there is none.
        """
        if self._first is None:
            self._first = next(self.batches, None)
        if self._first is None:
            raise DataError(f"{self.name} yields nothing")
        return tuple(self._first.schema.names)

    def tasks(self, schema: Schema) -> Iterator[Task]:
        """Yield one task a batch."""
        names = self.columns()
        for batch in chain([self._first], self.batches):
            if batch is None or tuple(batch.schema.names) != names:
                raise DataError(f"{self.name} yields batches of different columns")
            yield partial(batch_chunk, batch, self.name, schema)


def batch_chunk(batch: pa.RecordBatch, name: str, schema: Schema) -> Chunk:
    """Make a chunk of a batch that holds at least the schema's columns."""
    return fitted_chunk(schema, name, {column: batch.column(column) for column in schema.names})
