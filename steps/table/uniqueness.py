"""Uniqueness of columns and of sets of columns, over the finished Parquet, in bounded memory.  Called by `ingest`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from contracts.pipeline.table import Schema
from steps.table.chunk import EXAMPLES
from steps.table.rules import MASK, Breach, Key

_MEMORY = "256MiB"


def repeated(parquet: Path, schema: Schema, scratch: Path) -> Iterator[tuple[Key, Breach]]:
    """Yield each uniqueness rule that is broken.

    A row breaks it when an earlier row has the same values; rows with a null in them break none, as in SQL.
    """
    wanted: dict[Key, tuple[str, ...]] = {
        (c.name, "unique"): (c.name,) for c in schema.columns if c.unique is not None and c.unique.value
    }
    wanted |= {(", ".join(group), "unique together"): group for group in schema.unique}
    if not wanted:
        return
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(f"SET memory_limit='{_MEMORY}'")
        connection.execute("SET preserve_insertion_order=false")
        connection.execute("SET temp_directory=?", [str(scratch / "spill")])
        for key, columns in wanted.items():
            names = ", ".join(_quoted(c) for c in columns)
            full = " AND ".join(f"{_quoted(c)} IS NOT NULL" for c in columns)
            groups = (
                f"SELECT {names}, count(*) AS _rows, min(file_row_number) AS _first "  # noqa: S608  names are quoted
                f"FROM read_parquet(?, file_row_number=true) WHERE {full} GROUP BY {names} HAVING count(*) > 1"
            )
            found = connection.execute(f"SELECT coalesce(sum(_rows - 1), 0) FROM ({groups})", [str(parquet)]).fetchone()  # noqa: S608
            if not found or not found[0]:
                continue
            rows = connection.execute(
                f"SELECT t.file_row_number, {', '.join('t.' + _quoted(c) for c in columns)} "  # noqa: S608
                f"FROM read_parquet(?, file_row_number=true) t JOIN ({groups}) d USING ({names}) "
                f"WHERE t.file_row_number > d._first ORDER BY t.file_row_number LIMIT {EXAMPLES}",
                [str(parquet), str(parquet)],
            ).fetchall()
            masked = [schema.column(c).sensitive for c in columns]
            examples = []
            for number, *values in rows:
                shown = [MASK if hide else value for value, hide in zip(values, masked, strict=True)]
                examples.append((number + 1, shown[0] if len(shown) == 1 else ", ".join(str(v) for v in shown)))
            yield key, Breach(int(found[0]), tuple(examples))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
