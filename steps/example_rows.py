"""A row that nobody lived: what documentation and MLflow show of a model's input.  Called by `train`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts.pipeline.table import ColumnType
from contracts.references import ColumnSpec

_NEUTRAL: dict[str, Any] = {
    ColumnType.INTEGER: 0,
    ColumnType.NUMBER: 0.0,
    ColumnType.BOOLEAN: False,
    ColumnType.STRING: "text",
    ColumnType.DATE: "2000-01-01",
    ColumnType.TIMESTAMP: "2000-01-01T00:00:00Z",
}
_FEW = 5
"""A text that fewer rows hold may name somebody."""


def synthetic_row(columns: Sequence[ColumnSpec], table: Any) -> dict[str, Any]:
    """Return a row of medians and most frequent values of `table`; sensitive columns get a value of no one."""
    return {c.name: _NEUTRAL[c.type] if c.sensitive else _typical(c, table.column(c.name)) for c in columns}


def real_rows(columns: Sequence[ColumnSpec], table: Any, count: int) -> list[dict[str, Any]]:
    """Return the first rows as JSON-like objects, sensitive columns replaced."""
    found = []
    for row in table.select([c.name for c in columns]).slice(0, count).to_pylist():
        found.append({c.name: _NEUTRAL[c.type] if c.sensitive else _json(row[c.name]) for c in columns})
    return found


def _typical(column: ColumnSpec, cells: Any) -> Any:
    cells = cells.drop_null()
    if not len(cells):
        return _NEUTRAL[column.type]
    if column.type in (ColumnType.STRING, ColumnType.BOOLEAN):
        counted = pc.value_counts(cells)
        most = int(np.argmax(counted.field("counts").to_numpy()))
        is_public = column.type == ColumnType.BOOLEAN or counted.field("counts")[most].as_py() >= _FEW
        return counted.field("values")[most].as_py() if is_public else _NEUTRAL[column.type]
    if column.type == ColumnType.NUMBER:
        return float(np.median(cells.to_numpy()))
    # the middle one of the values that occur: an integer, a day or a moment, never halfway between two
    beneath = pa.int32() if column.type == ColumnType.DATE else pa.int64()
    numbers = cells.cast(beneath).to_numpy()
    middle = int(np.partition(numbers, len(numbers) // 2)[len(numbers) // 2])
    return _json(pa.scalar(middle, type=beneath).cast(cells.type).as_py())


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, date) else value
