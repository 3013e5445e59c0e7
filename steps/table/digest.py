"""The dataset hash, computed as the table streams by.  docs/dataset-hash.md specifies the bytes.

The tests hold a second, independent implementation (reference_hash.py); a change here that changes any hash is a new
version of `MAGIC`.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts.pipeline.table import ColumnType, Schema
from steps.table.constants import EMPTY, ZERO, flags, numbers

MAGIC = b"retrain-dataset-1\n"


class TableDigest:
    """SHA-256 of a typed table, fed batch by batch; how the table is cut into batches does not show."""

    def __init__(self, schema: Schema) -> None:
        self._columns = [
            (c.name, c.type, _Text() if c.type is ColumnType.STRING else _Fixed(c.type)) for c in schema.columns
        ]
        self._rows = 0

    def update(self, batch: pa.RecordBatch) -> None:
        """Add a batch: canonical, its columns in the schema's order."""
        self._rows += batch.num_rows
        for (_, _, digest), values in zip(self._columns, batch.columns, strict=True):
            digest.update(values)

    def hexdigest(self) -> str:
        """Return the hash of what was added so far."""
        total = hashlib.sha256(MAGIC + struct.pack("<QI", self._rows, len(self._columns)))
        for name, kind, digest in self._columns:
            for text in (name, kind.value):
                raw = text.encode()
                total.update(struct.pack("<I", len(raw)) + raw)
            total.update(digest.digest())
        return total.hexdigest()


class _Digest(Protocol):
    def update(self, values: pa.Array) -> None: ...

    def digest(self) -> bytes: ...


class _Fixed:
    """Validity, then values of one width; a null's value is zero."""

    def __init__(self, kind: ColumnType) -> None:
        self._dtype = _DTYPES[kind]
        self._plain, self._zero = _PLAIN[self._dtype]
        self._valid, self._values = hashlib.sha256(), hashlib.sha256()

    def update(self, values: pa.Array) -> None:
        _update_validity(self._valid, values)
        if pa.types.is_boolean(values.type):
            values = values.cast(pa.uint8())
        if values.null_count:
            plain = values.view(self._plain)
            values = pc.if_else(plain.is_valid(), plain, self._zero)
        if len(values):
            raw = np.frombuffer(values.buffers()[1], dtype=self._dtype)
            self._values.update(raw[values.offset : values.offset + len(values)].data)

    def digest(self) -> bytes:
        return self._valid.digest() + self._values.digest()


class _Text:
    """Validity, then lengths in bytes, then the UTF-8 of all cells end to end; a null's length is zero."""

    def __init__(self) -> None:
        self._valid, self._lengths, self._bytes = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()

    def update(self, values: pa.Array) -> None:
        _update_validity(self._valid, values)
        if not len(values):
            return
        if values.null_count:
            values = pc.fill_null(values, EMPTY)
        _, offsets, data = values.buffers()
        ends = np.frombuffer(offsets, dtype="<i4")[values.offset : values.offset + len(values) + 1]
        self._lengths.update(np.diff(ends).astype("<u4").data)
        if data is not None:
            self._bytes.update(memoryview(data)[ends[0] : ends[-1]])

    def digest(self) -> bytes:
        return self._valid.digest() + self._lengths.digest() + self._bytes.digest()


_DTYPES = {
    ColumnType.INTEGER: "<i8",
    ColumnType.NUMBER: "<f8",
    ColumnType.BOOLEAN: "u1",
    ColumnType.DATE: "<i4",
    ColumnType.TIMESTAMP: "<i8",
}


_PLAIN = {
    "<i8": (pa.int64(), numbers([0], pa.int64())[0]),
    "<f8": (pa.float64(), ZERO),
    "<i4": (pa.int32(), numbers([0], pa.int32())[0]),
    "u1": (pa.uint8(), numbers([0], pa.int32())[0].cast(pa.uint8())),
}


def _update_validity(digest: Any, values: pa.Array) -> None:
    if values.null_count:
        digest.update(flags(values.is_valid()).data)
    else:
        digest.update(np.ones(len(values), dtype="u1"))
