"""Run a source's tasks in parallel, and put the typed table together in order: file, hash, tally.  Called by `ingest`.

Memory is bounded: at most `workers` + 2 chunks and two row groups are held, whatever the table's size.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from contracts.errors import DataError
from contracts.pipeline.table import ColumnType, Schema
from steps.dataset import arrow_schema
from steps.table.chunk import Chunk, Task
from steps.table.digest import TableDigest
from steps.table.rules import ChunkCheck, RowRules, Tally

_GROUP_CELLS = 1 << 22


@dataclass(frozen=True)
class Assembled:
    """The typed table on disk, its hash, and what the rows showed."""

    parquet: Path
    sha256: str
    tally: Tally


def assemble(tasks: Iterable[Task], schema: Schema, parquet: Path, workers: int = 0) -> Assembled:
    """Read everything that the tasks make into one Parquet file.

    Raises
    ------
    DataError
        When a file cannot be read on.
    """
    rules = RowRules(schema)
    digest, tally = TableDigest(schema), Tally()
    with _RowGroups(parquet, schema) as groups:
        for chunk, check in _in_order(tasks, rules, workers or max(2, os.cpu_count() or 1)):
            if chunk.flaw is not None:
                where = f", row {tally.rows + chunk.flaw.row + 1}" if chunk.flaw.row is not None else ""
                raise DataError(f"{chunk.source}{where}: {chunk.flaw.what}", remedy=chunk.flaw.remedy)
            tally.add(check, chunk.source_rows)
            digest.update(chunk.batch)
            groups.write(chunk.batch)
    return Assembled(parquet, digest.hexdigest(), tally)


def _in_order(tasks: Iterable[Task], rules: RowRules, workers: int) -> Iterable[tuple[Chunk, ChunkCheck]]:
    def work(task: Task) -> tuple[Chunk, ChunkCheck]:
        chunk = task()
        return chunk, rules.check(chunk)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="ingest")
    waiting: deque[Future[tuple[Chunk, ChunkCheck]]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(work, task))
            if len(waiting) > workers + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _RowGroups:
    """Writes row groups of one size, so that equal tables make equal files however they arrive.

    A thread writes one group while the next comes together.
    """

    def __init__(self, path: Path, schema: Schema) -> None:
        self._schema = arrow_schema(schema)
        self._size = max(1 << 10, min(1 << 17, _GROUP_CELLS // len(schema.columns)))
        self._batches: list[pa.RecordBatch] = []
        self._held = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="parquet")
        self._writing: Future[None] | None = None
        # dictionaries shrink text; on numbers they cost a third of ingest's time and gain little
        texts = [c.name for c in schema.columns if c.type is ColumnType.STRING]
        self._writer = pq.ParquetWriter(path, self._schema, compression="snappy", use_dictionary=texts or False)

    def __enter__(self) -> _RowGroups:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._flush()
            self._written()
        finally:
            self._pool.shutdown()
            self._writer.close()

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows."""
        while self._held + batch.num_rows >= self._size:
            take = self._size - self._held
            self._batches.append(batch.slice(0, take))
            self._flush()
            batch = batch.slice(take)
        if batch.num_rows:
            self._batches.append(batch)
            self._held += batch.num_rows

    def _flush(self) -> None:
        if self._batches:
            self._written()
            self._writing = self._pool.submit(self._write, self._batches)
        self._batches, self._held = [], 0

    def _write(self, batches: list[pa.RecordBatch]) -> None:
        table = pa.Table.from_batches(batches, self._schema).combine_chunks()
        self._writer.write_table(table, row_group_size=self._size)

    def _written(self) -> None:
        if self._writing is not None:
            self._writing.result()
