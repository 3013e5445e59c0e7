"""The schema's rules.  `check` looks at one chunk on any thread; `Tally` adds the looks up in order; `judge` decides.

Every rule is counted to the end of the table, so that one answer names all violations.  Cells of sensitive columns
leave this module as ``***`` only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts.base import format_duration
from contracts.errors import ConfigError, Finding
from contracts.pipeline.table import Column, ColumnType, Level, Rule, Schema
from contracts.references import Violation
from serving.transform import ARROW_TYPES
from steps.table.chunk import EXAMPLES, Chunk
from steps.table.constants import FALSE, booleans, flags, numbers, texts

MASK = "***"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WRITTEN = (ColumnType.STRING, ColumnType.DATE, ColumnType.TIMESTAMP)
"""Types whose values are strings in the pipeline file."""
Time = TypeVar("Time", date, datetime)
Key = tuple[str, str]
"""Column and rule."""


@dataclass(frozen=True)
class Breach:
    """Rows that break one rule: how many, and the first ones (row from 0, value)."""

    count: int
    examples: tuple[tuple[int, Any], ...]


@dataclass(frozen=True)
class ChunkCheck:
    """What one chunk shows."""

    breaches: Mapping[Key, Breach]
    newest: Any = None
    """Largest value of the freshness column."""


class RowRules:
    """The rules that one row can break, made ready once: bounds and allowed values under their column's type.

    Raises
    ------
    ConfigError
        When a value does not fit its column's type, or a pattern is not RE2.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        findings: list[Finding] = []
        self._bounds: dict[Key, pa.Scalar] = {}
        self._allowed: dict[str, pa.Array] = {}
        for column in schema.columns:
            try:
                for rule, bound in (("min", column.min), ("max", column.max)):
                    if bound is not None:
                        self._bounds[column.name, rule] = _bound(bound.value, column.type)
                if column.allowed is not None:
                    self._allowed[column.name] = _array(column.allowed.value, column.type)
                if column.pattern is not None:
                    pc.match_substring_regex(texts(["x"]), _whole_cell(column.pattern.value))
            except (ValueError, TypeError, pa.ArrowException) as error:
                findings.append(Finding(where=f"schema.columns {column.name}", what=str(error).splitlines()[0]))
        if findings:
            raise ConfigError("the schema's rules do not fit its types", findings=findings)

    def check(self, chunk: Chunk) -> ChunkCheck:
        """Count what breaks a rule in one chunk."""
        breaches: dict[Key, Breach] = {}
        if chunk.ragged:
            breaches["", "cells"] = Breach(
                len(chunk.ragged), tuple((row, f"{cells} cells") for row, cells in chunk.ragged[:EXAMPLES])
            )
        for column, values in zip(self._schema.columns, chunk.batch.columns, strict=True):
            for rule, count, positions, written in self._column(column, values, chunk):
                shown = written if written is not None else tuple(values[int(p)].as_py() for p in positions)
                rows = (chunk.row(int(p)) for p in positions)
                examples = tuple(
                    (row, MASK if column.sensitive else value) for row, value in zip(rows, shown, strict=False)
                )
                breaches[column.name, rule] = Breach(count, examples)
        newest = None
        if self._schema.freshness and chunk.batch.num_rows:
            newest = pc.max(chunk.batch.column(self._schema.freshness.column)).as_py()
        return ChunkCheck(breaches, newest)

    def _column(
        self, column: Column, values: pa.Array, chunk: Chunk
    ) -> Iterable[tuple[str, int, Any, tuple[Any, ...] | None]]:
        misfits = chunk.misfits.get(column.name)
        if misfits is not None:
            yield "type", len(misfits.positions), misfits.positions[:EXAMPLES], misfits.texts
        if values.null_count:
            nulls = np.flatnonzero(flags(values.is_null()))
            if misfits is not None:
                nulls = np.setdiff1d(nulls, misfits.positions, assume_unique=True)
            if len(nulls):
                yield "missing", len(nulls), nulls[:EXAMPLES], None
        for rule, broken in self._masks(column, values):
            count = pc.sum(broken).as_py() or 0
            if count:
                mask = flags(pc.fill_null(broken, FALSE))
                yield rule, count, np.flatnonzero(mask)[:EXAMPLES], None

    def _masks(self, column: Column, values: pa.Array) -> Iterable[tuple[str, pa.Array]]:
        least, most = self._bounds.get((column.name, "min")), self._bounds.get((column.name, "max"))
        finite = column.type is ColumnType.NUMBER and not column.infinity
        if least is not None or most is not None or finite:
            extremes = pc.min_max(values)  # one pass tells, in nearly every chunk, that nothing breaks the rules
            low, high = extremes["min"], extremes["max"]
            if least is not None and pc.less(low, least).as_py():
                yield "min", pc.less(values, least)
            if most is not None and pc.greater(high, most).as_py():
                yield "max", pc.greater(values, most)
            if finite and (low.as_py() == -math.inf or high.as_py() == math.inf):
                yield "infinity", pc.is_inf(values)
        if column.name in self._allowed:
            yield (
                "allowed",
                pc.and_(pc.invert(pc.is_in(values, value_set=self._allowed[column.name])), values.is_valid()),
            )
        if column.pattern is not None:
            yield "pattern", pc.invert(pc.match_substring_regex(values, _whole_cell(column.pattern.value)))


@dataclass
class Tally:
    """What all chunks so far show, rows counted from 1 over all files."""

    rows: int = 0
    newest: Any = None
    breaches: dict[Key, Breach] = field(default_factory=dict)

    def add(self, check: ChunkCheck, source_rows: int) -> None:
        """Add the next chunk."""
        for key, breach in check.breaches.items():
            before = self.breaches.get(key, Breach(0, ()))
            more = tuple(
                (self.rows + row + 1, value) for row, value in breach.examples[: EXAMPLES - len(before.examples)]
            )
            self.breaches[key] = Breach(before.count + breach.count, before.examples + more)
        if check.newest is not None:
            self.newest = check.newest if self.newest is None else max(self.newest, check.newest)
        self.rows += source_rows


def judge(tally: Tally, schema: Schema, as_of: datetime) -> tuple[Violation, ...]:
    """Turn counts into violations, in the schema's order; those that a rule tolerates have the level ``tolerated``."""
    out: list[Violation] = []

    def found(column: str, rule: str, level: Level, breach: Breach, tolerate: float = 0.0, limit: str = "") -> None:
        if breach.count:
            share = breach.count / max(tally.rows, 1)
            verdict = level if share > tolerate else "tolerated"
            examples = tuple({"row": row, "value": _plain(value)} for row, value in breach.examples)
            out.append(
                Violation(
                    column=column,
                    rule=rule,
                    level=verdict,
                    count=breach.count,
                    share=share,
                    limit=limit,
                    examples=examples,
                )
            )

    nothing = Breach(0, ())
    found("", "cells", "error", tally.breaches.get(("", "cells"), nothing), limit="as many cells as the header names")
    for bound, limit, wrong in (("rows.min", schema.rows.min, int.__lt__), ("rows.max", schema.rows.max, int.__gt__)):
        if limit is not None and wrong(tally.rows, limit.value):
            out.append(
                Violation(column="", rule=bound, level=limit.level, count=tally.rows, share=1.0, limit=str(limit.value))
            )
    for column in schema.columns:
        breaches = {rule: breach for (name, rule), breach in tally.breaches.items() if name == column.name}
        misfit, missing = breaches.get("type", nothing), breaches.get("missing", nothing)
        found(column.name, "type", column.type_level, misfit, column.type_tolerate, column.type.value)
        refused = misfit.count / max(tally.rows, 1) > column.type_tolerate and column.type_level == "error"
        # a cell that became null because it did not fit is missing too, unless it is an error already
        nulls = missing if refused or not misfit.count else _together(missing, misfit)
        if not column.nullable.value:
            found(column.name, "nullable", column.nullable.level, nulls, column.nullable.tolerate, "no nulls")
        if column.max_missing is not None and nulls.count > column.max_missing.value * tally.rows:
            found(
                column.name,
                "max_missing",
                column.max_missing.level,
                nulls,
                column.max_missing.tolerate,
                f"share of nulls at most {column.max_missing.value:g}",
            )
        found(column.name, "infinity", "error", breaches.get("infinity", nothing), limit="finite (or infinity: true)")
        limited: dict[str, Rule[Any] | None] = {
            "min": column.min,
            "max": column.max,
            "allowed": column.allowed,
            "pattern": column.pattern,
            "unique": column.unique,
        }
        for name, rule in limited.items():
            if rule is not None:
                breach = breaches.get(name, nothing)
                found(column.name, name, rule.level, breach, rule.tolerate, _limit(name, rule.value))
    for group in schema.unique:
        found(
            ", ".join(group),
            "unique",
            "error",
            tally.breaches.get((", ".join(group), "unique together"), nothing),
            limit="unique together",
        )
    out += _freshness(tally.newest, schema, as_of, tally.rows)
    return tuple(out)


def violation_findings(violations: Iterable[Violation]) -> list[Finding]:
    """Turn violations into findings for people: column, rule, count and the first rows that break it."""
    return [Finding(where=f"column {v.column}" if v.column else "table", what=_sentence(v)) for v in violations]


def _sentence(violation: Violation) -> str:
    if violation.rule.startswith("rows."):
        return f"{violation.rule}: {violation.count} rows, the limit is {violation.limit}"
    if violation.rule == "freshness":
        return f"freshness: {violation.limit}"
    first = "; ".join(
        f"row {e['row']}" + (f": {e['value']!r}" if e["value"] is not None else "") for e in violation.examples
    )
    limit = f" ({violation.limit})" if violation.limit else ""
    rows = "row breaks" if violation.count == 1 else "rows break"
    return f"{violation.rule}{limit}: {violation.count} {rows} it, {violation.share:.2%} of all" + (
        f"; first {first}" if first else ""
    )


def _freshness(newest: Any, schema: Schema, as_of: datetime, rows: int) -> list[Violation]:
    if schema.freshness is None:
        return []
    fresh = schema.freshness
    allowed = f"at most {format_duration(fresh.max_age)} before {as_of.astimezone(UTC).isoformat()}"
    if newest is None:
        limit = f"the column holds no value; its newest must be {allowed}"
    else:
        moment = newest if isinstance(newest, datetime) else datetime.combine(newest, time.max, UTC)
        if abs(as_of - moment) <= fresh.max_age:
            return []
        shown = MASK if schema.column(fresh.column).sensitive else newest.isoformat()
        # one mistyped year would hide for ever that no new rows arrive
        limit = f"the newest value is {shown}, it must be {allowed}" + (
            ", and not as much after" if moment > as_of else ""
        )
    return [Violation(column=fresh.column, rule="freshness", level=fresh.level, count=rows, share=1.0, limit=limit)]


def _together(one: Breach, other: Breach) -> Breach:
    examples = sorted((*one.examples, *other.examples), key=lambda example: example[0])
    return Breach(one.count + other.count, tuple(examples[:EXAMPLES]))


def _limit(rule: str, value: Any) -> str:
    if rule == "allowed":
        shown = ", ".join(str(v) for v in value[:10])
        return f"one of {shown}" + (f" and {len(value) - 10} more" if len(value) > 10 else "")
    if rule == "unique":
        return ""
    return {"min": "at least {}", "max": "at most {}", "pattern": "matches {}"}[rule].format(value)


def _plain(value: Any) -> Any:
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value if not isinstance(value, str) or len(value) <= 80 else value[:77] + "..."


def _whole_cell(pattern: str) -> str:
    return rf"\A(?:{pattern})\z"


def _bound(value: Any, kind: ColumnType) -> pa.Scalar:
    if kind is ColumnType.INTEGER and isinstance(value, float):
        kind = ColumnType.NUMBER  # a bound of 0.5 on integers stays 0.5
    return _array([value], kind)[0]


def _array(values: Sequence[Any], kind: ColumnType) -> pa.Array:
    """Return values of the pipeline file under a column's type; ValueError when one is of another."""
    for value in values:
        if isinstance(value, bool) != (kind is ColumnType.BOOLEAN) or isinstance(value, str) != (kind in _WRITTEN):
            raise ValueError(f"{value!r} is no {kind.value}" + ("; put it in quotes" if kind in _WRITTEN else ""))
        if kind is ColumnType.INTEGER and value != int(value):
            raise ValueError(f"{value!r} is no integer")
    match kind:
        case ColumnType.STRING:
            return texts(values)
        case ColumnType.BOOLEAN:
            return booleans(values)
        case ColumnType.DATE:
            values = [(_iso(date, value) - _EPOCH.date()).days for value in values]
        case ColumnType.TIMESTAMP:
            values = [_microseconds(_iso(datetime, value)) for value in values]
    return numbers(values, ARROW_TYPES[kind])


def _iso(kind: type[Time], value: str) -> Time:
    try:
        return kind.fromisoformat(value)
    except ValueError:
        raise ValueError(f"{value!r} is no {'date' if kind is date else 'moment'} like 2026-01-31") from None


def _microseconds(moment: datetime) -> int:
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)
