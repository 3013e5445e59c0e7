"""Read delimited text as typed chunks.  Called by `ingest`, one `CsvFile` a file.

Each block is first read straight into its types.  Where a cell does not fit, the block is read again as text and
`cells` decides; a column that needed that is read as text from then on.  Both ways give the same values.
"""

from __future__ import annotations

import csv
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from contracts.errors import ConfigError, DataError
from contracts.pipeline.source import CsvOptions
from contracts.pipeline.table import ColumnType, Schema
from serving.transform import ARROW_TYPES
from steps.table.cells import FALSE, TRUE
from steps.table.chunk import Chunk, Flaw, Task, empty_batch, fitted_chunk
from steps.table.constants import texts
from steps.table.csv_blocks import BLOCK_BYTES, Block, cut, quoting_flaw, record_at, split_header

_SPELLINGS = [[spell(word) for word in words for spell in (str.lower, str.title, str.upper)] for words in (TRUE, FALSE)]
_OTHERS = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"PK\x03\x04": "a zip archive or spreadsheet",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"\x1f\x8b": "a gzip file within the other",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"<": "a web page or XML",
    b'{"': "JSON",
    b"[{": "JSON",
}
"""How files begin that are taken for CSV."""
_CELL = re.compile(rb"[^\r\n]")
_DIRECT = {ColumnType.INTEGER, ColumnType.NUMBER, ColumnType.BOOLEAN, ColumnType.DATE}
"""Types that Arrow's CSV reader reads as `cells` would; the others are read as text and fitted."""


@dataclass
class CsvFile:
    """One file of delimited text."""

    path: Path
    name: str
    options: CsvOptions
    block_bytes: int = BLOCK_BYTES
    _as_text: set[str] = field(default_factory=set)
    """Columns in which some cell did not fit; shared by the threads, and right whatever it holds."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for key, value in (("delimiter", self.options.delimiter), ("quote", self.options.quote)):
            if not value.isascii():
                raise ConfigError(f"source.csv.{key}: {value!r} is not an ASCII character")

    def columns(self) -> tuple[str, ...]:
        """Return the names in the header.

        Raises
        ------
        DataError
            When the file is empty, or its header is not text.
        """
        for block in cut(self.path, self.name, self.options, min(self.block_bytes, 1 << 16)):
            header, _ = split_header(block.data, self.options.quote.encode())
            if block.flaw:
                raise DataError(
                    f"{self.name}: {block.flaw.what}, in the header or soon after it", remedy=block.flaw.remedy
                )
            if header.strip():
                return self._names(header)
        raise DataError(f"{self.name} is empty", remedy="its first line must name the columns")

    def tasks(self, schema: Schema) -> Iterator[Task]:
        """Yield one task a block; `columns` must hold all of the schema's."""
        names: tuple[str, ...] = ()
        for block in cut(self.path, self.name, self.options, self.block_bytes):
            if not names:
                header, data = split_header(block.data, self.options.quote.encode())
                if not header.strip():
                    continue
                names, block = self._names(header), Block(data, block.flaw)
            if _CELL.search(block.data) or (block.data and len(names) == 1):
                yield partial(self._chunk, block, names, schema)

    def _names(self, header: bytes) -> tuple[str, ...]:
        if other := next((what for start, what in _OTHERS.items() if header.lstrip().startswith(start)), ""):
            raise DataError(f"{self.name} is {other}, read as CSV", remedy="name another file, or write it as CSV")
        try:
            text = header.decode()
        except UnicodeDecodeError:
            raise DataError(
                f"{self.name}: the header is not {self.options.encoding}",
                remedy="write it as utf-8, or name the right csv.encoding",
            ) from None
        if "\0" in text:
            raise DataError(
                f"{self.name} is not text", remedy="write it as utf-8, or name the right format or csv.encoding"
            )
        reader = csv.reader([text], delimiter=self.options.delimiter, quotechar=self.options.quote)
        return tuple(next(reader))

    def _chunk(self, block: Block, names: tuple[str, ...], schema: Schema) -> Chunk:
        if flaw := block.flaw or self._flaw(block.data):
            return Chunk(empty_batch(schema.columns), self.name, flaw=flaw)
        text = {c.name for c in schema.columns if c.type not in _DIRECT} | self._as_text
        try:
            table, ragged = self._read(block.data, names, schema, text)
        except pa.ArrowInvalid:
            table, ragged = self._read(block.data, names, schema, set(schema.names))
            with self._lock:
                self._as_text |= {
                    c.name for c in schema.columns if c.type in _DIRECT and not _reads_directly(table[c.name], c.type)
                }
        numbers = None
        if ragged:
            numbers = np.delete(np.arange(table.num_rows + len(ragged)), [row for row, _ in ragged])
        arrays = {name: _whole(table[name]) for name in schema.names}
        return fitted_chunk(schema, self.name, arrays, ragged=tuple(ragged), numbers=numbers)

    def _flaw(self, data: bytes) -> Flaw | None:
        if not data.isascii():
            try:
                data.decode()
            except UnicodeDecodeError as error:
                return Flaw(
                    "is not utf-8",
                    record_at(data, error.start, self.options),
                    "write it as utf-8, or name the right csv.encoding, often latin-1",
                )
        if b"\0" in data:
            return Flaw(
                "holds a NUL byte",
                record_at(data, data.index(b"\0"), self.options),
                "write it as utf-8, or name the right csv.encoding or format",
            )
        return quoting_flaw(data, self.options, at_end=False)

    def _read(
        self, data: bytes, names: tuple[str, ...], schema: Schema, text: set[str]
    ) -> tuple[pa.Table, list[tuple[int, int]]]:
        ragged: list[tuple[int, int]] = []

        def skip(row: Any) -> str:
            ragged.append((row.number - 1, row.actual_columns))
            return "skip"

        types = {c.name: pa.string() if c.name in text else ARROW_TYPES[c.type] for c in schema.columns}
        table = pa_csv.read_csv(
            pa.BufferReader(data),
            read_options=pa_csv.ReadOptions(column_names=list(names), use_threads=False, block_size=len(data) + 1),
            parse_options=pa_csv.ParseOptions(
                delimiter=self.options.delimiter,
                quote_char=self.options.quote,
                newlines_in_values=True,
                ignore_empty_lines=len(names) > 1,
                invalid_row_handler=skip,
            ),
            convert_options=pa_csv.ConvertOptions(
                check_utf8=False,  # the whole block was checked
                column_types=types,
                include_columns=list(schema.names),
                null_values=["", *self.options.missing],
                true_values=_SPELLINGS[0],
                false_values=_SPELLINGS[1],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        return table, ragged


def _reads_directly(text: pa.ChunkedArray, to: ColumnType) -> bool:
    if to is ColumnType.BOOLEAN:
        known = pc.is_in(text.drop_null(), value_set=texts([*_SPELLINGS[0], *_SPELLINGS[1]]))
        return pc.all(known).as_py() is not False
    try:
        text.cast(ARROW_TYPES[to])
    except pa.ArrowInvalid:
        return False
    return True


def _whole(values: pa.ChunkedArray) -> pa.Array:
    return (
        values.chunk(0)
        if values.num_chunks == 1
        else pa.concat_arrays(values.chunks)
        if values.num_chunks
        else pa.nulls(0, values.type)
    )
