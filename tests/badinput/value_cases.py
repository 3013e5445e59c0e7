"""Tables whose cells break the schema: types, ranges, dates, nulls, keys, counts, freshness, classes."""

# ruff: noqa: E501  the tables read better unwrapped

from __future__ import annotations

from typing import Any

from tests.badinput.refusals import CELL, Case, Columns


def one(kind: str, **rules: Any) -> Columns:
    """A schema of a class and one column `v`."""
    return ({"name": "k", "type": "integer"}, {"name": "v", "type": kind, **rules})


def cells(*values: str) -> bytes:
    """A table of one good row and one row for each value."""
    return "\n".join(["k,v", *(f"{i % 2},{value}" for i, value in enumerate(values)), ""]).encode()


def bad(cause: str, name: str, kind: str, good: str, wrong: str, rule: str = "type", /, says: tuple[str, ...] = (), **rules: Any) -> Case:  # fmt: skip
    """The second row of two breaks a rule."""
    return Case(
        cause, name, cells(good, wrong), ("column v", rule, "1 row breaks it", "row 2", *says), columns=one(kind, **rules)
    )  # fmt: skip


HIDDEN = {"sensitive": True}
FRESH = {"freshness": {"column": "v", "max_age": "7d"}}
ROWS = "\n".join(["k,v", *(f"{i % 2},{i}" for i in range(40)), ""])
STAGES = ("ingest", "features")

VALUES = (
    bad("mixed types", "text among integers", "integer", "1", "many", says=("'many'",)),
    bad("mixed types", "a fraction among integers", "integer", "1", "1.5", says=("'1.5'",)),
    bad("mixed types", "text among numbers", "number", "1.5", "n/a", says=("'n/a'",)),
    bad("mixed types", "a unit behind a number", "number", "1.5", "3 kg", says=("'3 kg'",)),
    bad("mixed types", "thousands set off", "number", "1.5", '"1,234.5"', says=("'1,234.5'",)),
    bad("mixed types", "a percent sign", "number", "1.5", "12%", says=("'12%'",)),
    bad("mixed types", "a word among booleans", "boolean", "true", "maybe", says=("'maybe'",)),
    bad("mixed types", "two among booleans", "boolean", "1", "2", says=("'2'",)),
    bad("mixed types", "a sensitive cell", "integer", "1", CELL, says=("***",), **HIDDEN),
    bad("integers too large", "one above the largest", "integer", "1", "9223372036854775808", says=("9223372036854775808",)),
    bad("integers too large", "one below the least", "integer", "1", "-9223372036854775809"),
    bad("integers too large", "thirty digits", "integer", "1", "1" * 30),
    bad("infinities", "inf", "number", "1", "inf", "infinity"),
    bad("infinities", "-Infinity", "number", "1", "-Infinity", "infinity"),
    bad("infinities", "too large for a float", "number", "1", "1e999", "infinity"),
    bad("NaN text", "in a column without nulls", "number", "1", "NaN", "nullable (no nulls)", nullable=False),
    bad("NaN text", "among integers", "integer", "1", "NaN", says=("'NaN'",)),
    bad("NaN text", "among dates", "date", "2026-01-01", "NaT", says=("'NaT'",)),
    Case("all missing", "a column without a value", cells("", "", ""), ("column v", "max_missing", "3 rows break it, 100.00%"), columns=one("number", max_missing=0.5)),
    Case("all missing", "every cell of every row", b"k,a\n,\n,\n", ("column k", "nullable", "2 rows break it"), columns=({"name": "k", "type": "integer", "nullable": False}, {"name": "a", "type": "string"})),
    Case("nulls", "in a column without nulls", cells("x", ""), ("column v", "nullable (no nulls)", "1 row breaks it", "row 2"), columns=one("string", nullable=False)),
    Case("nulls", "more than their share", cells("1", "", "", "4"), ("column v", "share of nulls at most 0.25", "first row 2"), columns=one("number", max_missing=0.25)),
    Case("target missing", "no such column", b"y,v\n1,2\n", ("column k: is missing",), columns=one("number")),
    Case("target missing", "a row without it", b"k,v\n1,2\n,3\n0,4\n", ("target", "k", "1"), columns=one("number"), stages=STAGES),
    Case("target missing", "no row with it", b"k,v\n,2\n,3\n", ("target", "k"), columns=one("number"), stages=STAGES),
    Case("one class only", "all positive", ROWS.replace("\n0,", "\n1,").encode(), ("class",), columns=one("number"), stages=STAGES),
    Case("one class only", "the positive one is absent", ROWS.replace("\n1,", "\n2,").encode(), ("no row has the positive class", "target.positive"), columns=one("number"), stages=STAGES),
    Case("one class only", "three for two", ROWS.replace(",7\n", ",7\n2,70\n2,71\n2,72\n").encode(), ("class",), columns=one("number"), stages=STAGES),
    Case("too few rows", "below the schema's bound", cells("1", "2"), ("rows.min: 2 rows, the limit is 10",), columns=one("number"), schema={"rows": {"min": 10}}),
    Case("too few rows", "for three sides", cells("1", "2"), ("no row falls on the side",), columns=one("number"), stages=STAGES),
    Case("too many rows", "above the schema's bound", cells("1", "2", "3"), ("rows.max: 3 rows, the limit is 2",), columns=one("number"), schema={"rows": {"max": 2}}),
    Case("doubles", "a key twice", cells("7", "8", "7"), ("column v", "unique", "1 row breaks it", "row 3: 7"), columns=one("integer", unique=True)),
    Case("doubles", "a sensitive key twice", cells(CELL, "x", CELL), ("column v", "unique", "row 3: '***'"), columns=one("string", unique=True, **HIDDEN)),
    Case("doubles", "two columns together", b"k,v\n1,2\n0,2\n1,2\n", ("unique together", "row 3"), columns=one("integer"), schema={"unique": [["k", "v"]]}),
    bad("bad dates", "the 30th of February", "date", "2026-01-01", "2026-02-30", says=("'2026-02-30'",)),
    bad("bad dates", "a 29th that is none", "date", "2024-02-29", "2026-02-29"),
    bad("bad dates", "the day first", "date", "2026-01-01", "31.12.2025", says=("'31.12.2025'",)),
    bad("bad dates", "slashes", "date", "2026-01-01", "01/02/2026"),
    bad("bad dates", "a thirteenth month", "date", "2026-01-01", "2026-13-01"),
    bad("bad dates", "a database's zero", "date", "2026-01-01", "0000-00-00"),
    bad("bad dates", "digits only", "date", "2026-01-01", "20260101"),
    bad("bad dates", "a time with it", "date", "2026-01-01", "2026-01-01 10:30"),
    bad("bad times", "a zone by name", "timestamp", "2026-01-01 10:00", "2026-01-01 10:00 Europe/Berlin"),
    bad("bad times", "an offset of a day and more", "timestamp", "2026-01-01 10:00", "2026-01-01T10:00:00+25:00"),
    bad("bad times", "a leap second", "timestamp", "2026-01-01 10:00", "2026-06-30T23:59:60Z"),
    bad("bad times", "the 25th hour", "timestamp", "2026-01-01 10:00", "2026-01-01T25:00:00"),
    bad("bad times", "seconds since 1970", "timestamp", "2026-01-01 10:00", "1767225600"),
    bad("bad times", "morning and evening", "timestamp", "2026-01-01 10:00", "2026-01-01 10:00 PM"),
    bad("bad times", "no date", "timestamp", "2026-01-01 10:00", "10:00:00"),
    bad("out of range", "below", "integer", "1", "-1", "min (at least 0)", says=("row 2: -1",), min=0),
    bad("out of range", "above", "number", "1", "1e9", "max (at most 100)", max=100),
    bad("out of range", "a date too early", "date", "2026-01-01", "1899-12-31", "min (at least 1900-01-01)", min="1900-01-01"),
    bad("out of range", "a sensitive one", "integer", "1", "8154711", "max (at most 100)", says=("'***'",), max=100, **HIDDEN),
    bad("not allowed", "a new word", "string", "red", "blue", "allowed (one of red, green)", says=("'blue'",), allowed=["red", "green"]),
    bad("not allowed", "a blank behind it", "string", "red", '"red "', "allowed", says=("'red '",), allowed=["red", "green"]),
    bad("not allowed", "a sensitive one", "string", "red", CELL, "allowed", says=("***",), allowed=["red"], **HIDDEN),
    bad("not matched", "a pattern", "string", "AB-1", "AB1", "pattern (matches [A-Z]+-[0-9]+)", says=("'AB1'",), pattern="[A-Z]+-[0-9]+"),
    bad("not matched", "a line break behind it", "string", "AB-1", '"AB-1\n"', "pattern", pattern="[A-Z]+-[0-9]+"),
    Case("freshness", "too old", cells("2025-01-01", "2025-01-02"), ("column v", "freshness", "2025-01-02", "at most 1w before 2026-03-01"), columns=one("date"), schema=FRESH),
    Case("freshness", "no value", cells("", ""), ("column v", "freshness", "holds no value"), columns=one("date"), schema=FRESH),
    Case("freshness", "in the future", cells("2026-02-28", "2062-03-01"), ("column v", "freshness", "2062-03-01", "after"), columns=one("date"), schema=FRESH),
    Case("freshness", "a sensitive one", cells("2025-01-01", "2025-01-02"), ("column v", "freshness", "***"), columns=one("date", **HIDDEN), schema=FRESH),
    Case("several rules", "all of them in one answer", b"k,v\n1,x\n5,\n", ("breaks 3 rules", "column k: max", "column v: type", "column v: nullable"), columns=({"name": "k", "type": "integer", "max": 1}, {"name": "v", "type": "number", "nullable": False})),
    Case("rule does not fit", "a bound of another type", cells("2026-01-01"), ("schema.columns v", "'tomorrow' is no date"), exit_code=78, columns=one("date", min="tomorrow")),
    Case("rule does not fit", "an allowed value of another type", cells("1"), ("schema.columns v", "'one' is no integer"), exit_code=78, columns=one("integer", allowed=["one"])),
    Case("rule does not fit", "a pattern that is not RE2", cells("x"), ("schema.columns v",), exit_code=78, columns=one("string", pattern="(?=x)x")),
)  # fmt: skip
