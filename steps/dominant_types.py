"""Find the type that nearly all cells of a text column have, and the few cells that are in its way.

Called by `infer`: one mistyped cell should not turn a column of numbers into categories without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts.pipeline.table import ColumnType
from steps.table.cells import fit_text

MOSTLY = 0.95
"""A column takes the type of this share of its cells, and the rest are mistakes to be mended."""
MOSTLY_CELLS = 20
"""So many cells of a type, at least, make the others look like mistakes."""
NAMED_MISFITS = 3
_STRICTER = 0.01
"""The stricter of two types may miss so many more cells: in 3,000 whole numbers one 12.5 is a mistake, 100 are not."""


@dataclass
class Tally:
    """How many cells of one column are of one type."""

    kind: ColumnType
    cells: int = 0
    misfits: int = 0
    named: list[tuple[int, str]] = field(default_factory=list)
    """The first `NAMED_MISFITS` misfits: row, counted from 1, and cell."""
    extremes: tuple[Any, Any] | None = None

    def add(self, text: pa.Array, first_row: int) -> None:
        """Count more cells; `first_row` is the row of the first."""
        fitted = fit_text(text, self.kind)
        self.cells += len(text) - fitted.values.null_count
        self.misfits += len(fitted.misfits)
        for at in fitted.misfits[: NAMED_MISFITS - len(self.named)]:
            self.named.append((first_row + int(at), text[int(at)].as_py()))
        if fitted.values.null_count < len(text):
            self.extremes = wider(self.extremes, fitted.values)

    @property
    def dominates(self) -> bool:
        """Whether what does not fit looks like mistakes."""
        return self.cells >= max(MOSTLY_CELLS, MOSTLY * (self.cells + self.misfits))


def dominant_types(
    parquet: Path, columns: Mapping[str, Sequence[ColumnType]], missing: Sequence[str], rows: int
) -> dict[str, Tally]:
    """Return the tally of the dominant type, for those columns that have one.

    Parameters
    ----------
    parquet : Path
        A file of text columns.
    columns : Mapping
        The types to try, the strictest first.
    missing : Sequence of str
        Cells that may mean missing and count for no type.
    """
    if not columns:
        return {}
    tallies = {name: [Tally(kind) for kind in kinds] for name, kinds in columns.items()}
    markers = pa.array(missing, pa.string())
    row = 1
    with pq.ParquetFile(parquet) as table:
        for batch in table.iter_batches(65_536, columns=[name for name, left in tallies.items() if left]):
            for name, left in tallies.items():
                if left:
                    text = batch[name]
                    text = pc.if_else(pc.is_in(text, value_set=markers), pa.scalar(None, pa.string()), text)
                    for tally in left:
                        tally.add(text, row)
                    tallies[name] = [tally for tally in left if tally.misfits <= (1 - MOSTLY) * rows]
            row += batch.num_rows
    return {name: found for name, left in tallies.items() if (found := _dominant(left)) is not None}


def wider(extremes: tuple[Any, Any] | None, values: pa.Array) -> tuple[Any, Any]:
    """Return smallest and largest value of all seen so far and of `values`, of which one at least is not null."""
    found = pc.min_max(values).as_py()
    low, high = extremes or (found["min"], found["max"])
    return min(low, found["min"]), max(high, found["max"])


def _dominant(tallies: Sequence[Tally]) -> Tally | None:
    likely = [tally for tally in tallies if tally.dominates]
    fewest = min((tally.misfits for tally in likely), default=0)
    return next((tally for tally in likely if tally.misfits - fewest <= _STRICTER * tally.cells), None)
