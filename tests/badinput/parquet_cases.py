"""Parquet files that are none, are cut off, or hold what the schema's types cannot take."""

# ruff: noqa: E501  the tables read better unwrapped

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq

from tests.badinput.refusals import CELL, Case
from tests.badinput.text_cases import GOOD
from tests.badinput.value_cases import one


def parquet(table: Any, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), sink, **options)
    return bytes(sink.getvalue())


def values(cells: Any, kind: pa.DataType | None = None) -> bytes:
    return parquet({"k": pa.array([i % 2 for i in range(len(cells))]), "v": pa.array(cells, kind)})


def arrow_file() -> bytes:
    sink = pa.BufferOutputStream()
    feather.write_feather(pa.table({"k": [1], "a": ["x"]}), sink)
    return bytes(sink.getvalue())


def two_schemas(folder: Path) -> None:
    (folder / "1.parquet").write_bytes(parquet({"k": [1], "a": ["x"]}))
    (folder / "2.parquet").write_bytes(parquet({"k": [1], "b": ["x"]}))


def two_types(folder: Path) -> None:
    (folder / "1.parquet").write_bytes(parquet({"k": [1, 0], "a": ["x", "y"]}))
    (folder / "2.parquet").write_bytes(parquet({"k": ["1", "none"], "a": ["x", "y"]}))


def csv_beside(folder: Path) -> None:
    (folder / "1.parquet").write_bytes(parquet({"k": [1], "a": ["x"]}))
    (folder / "2.parquet").write_bytes(b"k;a\n1;x\n")


WHOLE = parquet({"k": list(range(1000)), "a": ["x"] * 1000})
DAMAGED = "is damaged, cut off or no Parquet file"
TWICE = pa.Table.from_arrays([pa.array([1]), pa.array(["x"]), pa.array(["y"])], names=["k", "a", "a"])

PARQUET = (
    Case("truncated Parquet", "the end gone", WHOLE[:-50], ("t.parquet", DAMAGED), file="t.parquet"),
    Case("truncated Parquet", "half of it", WHOLE[: len(WHOLE) // 2], (DAMAGED,), file="t.parquet"),
    Case("truncated Parquet", "its first four bytes", b"PAR1", (DAMAGED,), file="t.parquet"),
    Case("truncated Parquet", "no byte", b"", ("t.parquet is empty",), file="t.parquet"),
    Case("damaged Parquet", "a hole in the data", WHOLE[:200] + b"\xff" * 200 + WHOLE[400:], (DAMAGED,), file="t.parquet"),
    Case("damaged Parquet", "a wrong footer length", WHOLE[:-8] + b"\xff\xff\xff\x7f" + b"PAR1", (DAMAGED,), file="t.parquet"),
    Case("damaged Parquet", "a footer of zeros", WHOLE[:-200] + bytes(192) + WHOLE[-8:], (DAMAGED,), file="t.parquet"),
    Case("damaged Parquet", "encrypted", b"PARE" + WHOLE[4:-4] + b"PARE", ("t.parquet",), file="t.parquet", source={"format": "parquet"}),
    Case("wrong format", "CSV as Parquet", GOOD, (DAMAGED,), source={"format": "parquet"}),
    Case("wrong format", "Parquet as CSV", WHOLE, ("is a Parquet file, read as CSV",), source={"format": "csv"}),
    Case("wrong format", "an Arrow file", arrow_file(), ("is an Arrow file, read as CSV",), file="t.arrow"),
    Case("wrong format", "a CSV among Parquet files", csv_beside, ("2.parquet", "delimiter"), file="*.parquet"),
    Case("no rows", "a Parquet file without rows", parquet(pa.schema([("k", pa.int64()), ("a", pa.string())]).empty_table()), ("there is a header, and no rows",), file="t.parquet"),
    Case("no rows", "a Parquet file without columns", parquet(pa.table({})), ("column k: is missing",), file="t.parquet"),
    Case("duplicate columns", "in Parquet", parquet(TWICE), ("column a: stands 2 times",), file="t.parquet"),
    Case("schemas differ", "a name in a glob's second file", two_schemas, ("2.parquet, column a: is missing", "2.parquet, column b: is not in the schema"), file="*.parquet"),
    Case("schemas differ", "a type in a glob's second file", two_types, ("column k", "type (integer)", "row 4"), file="*.parquet"),
    Case("Parquet types", "a list", values([[1], [2]]), ("column v", "type (number)", "row 1"), file="t.parquet", columns=one("number")),
    Case("Parquet types", "a struct", values([{"x": 1}, None]), ("column v", "type (string)", "row 1"), file="t.parquet", columns=one("string")),
    Case("Parquet types", "a sensitive struct", values([{"x": CELL}, None]), ("column v", "type (string)", "***"), file="t.parquet", columns=one("string", sensitive=True)),
    Case("Parquet types", "a map", values([[("x", 1)], None], pa.map_(pa.string(), pa.int64())), ("column v", "type (string)"), file="t.parquet", columns=one("string")),
    Case("Parquet types", "a time of day", values([1, 2], pa.time32("s")), ("column v", "type (timestamp)"), file="t.parquet", columns=one("timestamp")),
    Case("Parquet types", "a duration", values([1, 2], pa.duration("s")), ("column v", "type (integer)"), file="t.parquet", columns=one("integer")),
    Case("Parquet types", "a float as text", values([1.5, 2.5]), ("column v", "type (string)"), file="t.parquet", columns=one("string")),
    Case("Parquet types", "a word in a dictionary", values(pa.array(["1", "two"]).dictionary_encode()), ("column v", "type (integer)", "row 2: 'two'"), file="t.parquet", columns=one("integer")),
    Case("Parquet types", "a decimal with a fraction as integer", values([Decimal("1.00"), Decimal("1.25")]), ("column v", "type (integer)", "row 2: '1.25'"), file="t.parquet", columns=one("integer")),
    Case("Parquet types", "a decimal of forty digits as integer", values([Decimal(1), Decimal("1" * 40)], pa.decimal256(50, 0)), ("column v", "type (integer)", "row 2"), file="t.parquet", columns=one("integer")),
    Case("Parquet types", "an unsigned number too large", values([1, 2**64 - 1], pa.uint64()), ("column v", "type (integer)", "row 2"), file="t.parquet", columns=one("integer")),
    Case("Parquet types", "a float too large", values([1.0, 1e19]), ("column v", "type (integer)", "row 2"), file="t.parquet", columns=one("integer")),
    Case("Parquet types", "bytes that are no text", values([b"x", b"\xff\xfe"]), ("column v", "type (string)", "row 2"), file="t.parquet", columns=one("string")),
    Case("Parquet types", "a moment out of range", values([0, 2**62 // 1000], pa.timestamp("ms")), ("column v", "type (timestamp)", "row 2"), file="t.parquet", columns=one("timestamp")),
    Case("Parquet types", "a date out of range", values([0, 2**31 - 1], pa.date32()), ("column v", "type (date)", "row 2"), file="t.parquet", columns=one("date")),
    Case("Parquet types", "a moment before the year 1", values([0, -(2**62)], pa.timestamp("us", "UTC")), ("column v", "type (timestamp)", "row 2"), file="t.parquet", columns=one("timestamp")),
    Case("Parquet types", "a moment that is no date", values([0, 1], pa.timestamp("s")), ("column v", "type (date)", "row 2"), file="t.parquet", columns=one("date")),
    Case("infinities", "in Parquet", values([1.0, float("inf")]), ("column v", "infinity", "row 2"), file="t.parquet", columns=one("number")),
    Case("nulls", "NaN in Parquet", values([1.0, float("nan")]), ("column v", "nullable", "row 2"), file="t.parquet", columns=one("number", nullable=False)),
)  # fmt: skip
