"""What every reader makes: a piece of the typed table, with what did not fit.  Consumed in order by `assembly`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from contracts.pipeline.table import Column, Schema
from steps.table.canonical import canonical
from steps.table.cells import fit

EXAMPLES = 5
"""How many breaking rows a finding shows."""


@dataclass(frozen=True)
class Misfits:
    """Cells of one column that do not fit its type: their positions, and the text of the first ones."""

    positions: npt.NDArray[np.int64]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Flaw:
    """Why the rest of a file cannot be read, and in which row (from 0, within the chunk) that shows."""

    what: str
    row: int | None = None
    remedy: str = ""


@dataclass(frozen=True)
class Chunk:
    """Some rows of the typed table.

    `numbers` maps positions in `batch` to rows of the source, from 0 within the chunk, where the two differ.
    """

    batch: pa.RecordBatch
    source: str
    misfits: Mapping[str, Misfits] = field(default_factory=dict)
    ragged: tuple[tuple[int, int], ...] = ()
    """Rows with too few or too many cells: (row from 0 within the chunk, number of cells)."""
    flaw: Flaw | None = None
    numbers: npt.NDArray[np.int64] | None = None

    @property
    def source_rows(self) -> int:
        """Rows of the source that the chunk stands for."""
        return int(self.batch.num_rows) + len(self.ragged)

    def row(self, position: int) -> int:
        """Return the row of the source, from 0 within the chunk."""
        return int(self.numbers[position]) if self.numbers is not None else int(position)


Task = Callable[[], Chunk]
"""Makes one chunk; run on any thread."""


def fitted_chunk(schema: Schema, source: str, arrays: Mapping[str, pa.Array], **more: Any) -> Chunk:
    """Fit the arrays to the schema's types and bring them into canonical form."""
    out: list[pa.Array] = []
    misfits: dict[str, Misfits] = {}
    for column in schema.columns:
        values = arrays[column.name]
        fitted = fit(values, column.type)
        if len(fitted.misfits):
            misfits[column.name] = Misfits(fitted.misfits, _texts(values, fitted.misfits[:EXAMPLES]))
        out.append(canonical(fitted.values))
    return Chunk(pa.RecordBatch.from_arrays(out, names=list(schema.names)), source, misfits, **more)


def empty_batch(columns: Sequence[Column]) -> pa.RecordBatch:
    """Return a typed batch without rows."""
    from serving.transform import ARROW_TYPES

    return pa.RecordBatch.from_arrays(
        [pa.nulls(0, ARROW_TYPES[c.type]) for c in columns], names=[c.name for c in columns]
    )


def _texts(values: pa.Array, positions: npt.NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(_text(values[int(i)]) for i in positions)


def _text(cell: pa.Scalar) -> str:
    try:
        return str(cell.as_py())
    except (OverflowError, ValueError):  # a moment that Python does not know
        return str(cell.cast(pa.int32() if cell.type == pa.date32() else pa.int64()).as_py())
