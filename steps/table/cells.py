"""Decide whether a cell fits its column's type, for text and for Arrow values alike.  Called for every chunk.

What fits is the same from every source, so that a CSV file and a Parquet file of one table make one typed table.
A cell that does not fit becomes null and is marked; the caller decides whether that is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from contracts.pipeline.table import ColumnType
from serving.transform import ARROW_TYPES
from steps.table.constants import EMPTY, flags, null, numbers, texts

TRUE = ("true", "t", "yes", "y", "1")
FALSE = ("false", "f", "no", "n", "0")

_PLAUSIBLE = {
    ColumnType.INTEGER: r"\A(-?[0-9]+|0[xX][0-9a-fA-F]+)\z",
    ColumnType.NUMBER: r"\A[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|(?i:nan(\(.*\))?|inf|infinity))\z",
    ColumnType.DATE: r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}\z",
    ColumnType.TIMESTAMP: r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}([ T].*)?\z",
}
_ZONE = r"([zZ]|[+-][0-9]{2}(:?[0-9]{2})?)\z"
_DAYS = (-719_162, 2_932_896)
_DAY = 86_400_000_000
_YEARS = {
    ColumnType.DATE: numbers(_DAYS, pa.date32()),
    ColumnType.TIMESTAMP: numbers((_DAYS[0] * _DAY, (_DAYS[1] + 1) * _DAY - 1), ARROW_TYPES[ColumnType.TIMESTAMP]),
}
"""First and last value of the years 1 to 9999, which are all that text holds, and Python and pandas know."""
_MICROSECONDS = pa.timestamp("us")
_UTC = ARROW_TYPES[ColumnType.TIMESTAMP]


@dataclass(frozen=True)
class Fitted:
    """A column of one chunk under its type; `misfits` are the positions of cells that did not fit (now null)."""

    values: pa.Array
    misfits: npt.NDArray[np.int64]


NONE: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)


def fit(values: pa.Array, to: ColumnType) -> Fitted:
    """Fit an Arrow array of any type to a column type."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if values.type == ARROW_TYPES[to]:
        return _in_years(values) if to in _YEARS else Fitted(values, NONE)
    if _is_text(values.type):
        return fit_text(values.cast(pa.string()), to)
    if pa.types.is_null(values.type):
        return Fitted(pa.nulls(len(values), ARROW_TYPES[to]), NONE)
    if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        text, misfits = _cast_each(values, pa.string(), lambda part: part.cast(pa.string()))
        fitted = fit_text(text, to)
        return Fitted(fitted.values, np.union1d(misfits, fitted.misfits))
    return _fit_typed(values, to)


def fit_text(text: pa.Array, to: ColumnType) -> Fitted:
    """Fit text cells to a column type.

    Blanks around a value do not count, and a blank cell is null, in every type but string.
    """
    if to is ColumnType.STRING:
        return Fitted(text, NONE)
    trimmed = pc.utf8_trim(text, characters=" \t")
    trimmed = pc.if_else(pc.equal(trimmed, EMPTY), null(pa.string()), trimmed)
    if to is ColumnType.BOOLEAN:
        lower = pc.utf8_lower(trimmed)
        yes, no = (pc.is_in(lower, value_set=texts(words)) for words in (TRUE, FALSE))
        known = pc.or_(yes, no)
        return _with_misfits(trimmed, pc.if_else(known, yes, null(pa.bool_())))
    cast = _TEXT_CASTS[to]
    try:
        return Fitted(cast(trimmed), NONE)
    except pa.ArrowInvalid:
        pass
    usual = _usual_spelling(trimmed, to)
    plausible = pc.match_substring_regex(usual, _PLAUSIBLE[to])
    values, _ = _cast_each(pc.if_else(plausible, usual, null(pa.string())), ARROW_TYPES[to], cast)
    return _with_misfits(trimmed, values)


def _usual_spelling(text: pa.Array, to: ColumnType) -> pa.Array:
    """Bring spellings that Arrow does not read, and that leave no doubt, into the one it reads."""
    if to is ColumnType.INTEGER:  # 3.0 is how a nullable integer leaves pandas
        return pc.replace_substring_regex(text, r"\A\+?(-?[0-9]+)(\.0*)?\z", r"\1")
    if to is ColumnType.DATE:
        return pc.replace_substring_regex(text, r"\A([0-9-]{10})[ T]00:00(:00(\.0*)?)?\z", r"\1")
    if to is ColumnType.TIMESTAMP:  # finer than a microsecond is cut off
        return pc.replace_substring_regex(text, r"\A([^.]*\.[0-9]{6})[0-9]+(.*)\z", r"\1\2")
    return text


def _cast_timestamps(text: pa.Array) -> pa.Array:
    zoned = pc.match_substring_regex(text, r"[ T].*" + _ZONE)
    if not pc.any(zoned).as_py():
        return text.cast(_MICROSECONDS).cast(_UTC)
    nothing = null(pa.string())
    with_zone = pc.if_else(zoned, text, nothing).cast(_UTC)
    return pc.coalesce(with_zone, pc.if_else(zoned, nothing, text).cast(_MICROSECONDS).cast(_UTC))


_TEXT_CASTS: dict[ColumnType, Callable[[pa.Array], pa.Array]] = {
    ColumnType.INTEGER: lambda text: text.cast(pa.int64()),
    ColumnType.NUMBER: lambda text: text.cast(pa.float64()),
    ColumnType.DATE: lambda text: text.cast(pa.date32()),
    ColumnType.TIMESTAMP: _cast_timestamps,
}


def _fit_typed(values: pa.Array, to: ColumnType) -> Fitted:
    kind, target = values.type, ARROW_TYPES[to]
    if pa.types.is_decimal(kind) and to in (ColumnType.INTEGER, ColumnType.NUMBER):
        return fit_text(values.cast(pa.string()), to)  # by way of text, which rounds to the nearest float
    if to is ColumnType.INTEGER and pa.types.is_floating(kind):
        wide = values.cast(pa.float64())
        wide = pc.if_else(pc.is_nan(wide), null(pa.float64()), wide)
        whole = pc.and_(pc.equal(pc.floor(wide), wide), pc.less(pc.abs(wide), numbers([2.0**63], pa.float64())[0]))
        return _with_misfits(wide, pc.if_else(whole, wide, null(pa.float64())).cast(target))
    if to is ColumnType.INTEGER and pa.types.is_integer(kind):
        out, misfits = _cast_each(values, target, lambda part: part.cast(target))
        return Fitted(out, misfits)
    if to is ColumnType.NUMBER and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return Fitted(values.cast(target, safe=False), NONE)
    if to is ColumnType.BOOLEAN and pa.types.is_integer(kind):
        wide = values.cast(pa.int64(), safe=False)
        bit = pc.is_in(wide, value_set=numbers([0, 1], pa.int64()))
        return _with_misfits(values, pc.if_else(bit, pc.equal(wide, numbers([1], pa.int64())[0]), null(pa.bool_())))
    if to is ColumnType.STRING and (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_date32(kind)):
        return Fitted(values.cast(target), NONE)
    if to in (ColumnType.DATE, ColumnType.TIMESTAMP) and pa.types.is_temporal(kind) and not _is_span(kind):
        return _fit_times(values, to)
    return Fitted(pa.nulls(len(values), target), np.flatnonzero(flags(values.is_valid())))


def _fit_times(values: pa.Array, to: ColumnType) -> Fitted:
    kind = values.type
    if pa.types.is_date(kind):
        days = _in_years(values.cast(pa.date32()))
        return days if to is ColumnType.DATE else Fitted(days.values.cast(_MICROSECONDS).cast(_UTC), days.misfits)
    in_utc = values.cast(pa.timestamp(kind.unit, "UTC"))  # a time without zone is taken as UTC
    if kind.unit == "ns":
        in_utc = pc.floor_temporal(in_utc, unit="microsecond")
    times, _ = _cast_each(in_utc, _UTC, lambda part: part.cast(_UTC))
    times = _in_years(times).values
    if to is ColumnType.TIMESTAMP:
        return _with_misfits(values, times)
    midnight = pc.equal(pc.floor_temporal(times, unit="day"), times)
    days = pc.if_else(midnight, times, null(_UTC)).cast(pa.timestamp("us")).cast(pa.date32())
    return _with_misfits(values, days)


def _in_years(times: pa.Array) -> Fitted:
    """Make misfits of what lies outside of the years 1 to 9999."""
    first, last = _YEARS[ColumnType.DATE if pa.types.is_date(times.type) else ColumnType.TIMESTAMP]
    within = pc.and_(pc.greater_equal(times, first), pc.less_equal(times, last))
    if pc.all(within).as_py() is not False:
        return Fitted(times, NONE)
    return _with_misfits(times, pc.if_else(within, times, null(times.type)))


def _cast_each(
    values: pa.Array, to: pa.DataType, cast: Callable[[pa.Array], pa.Array]
) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Cast what can be cast: halve until the failing cells stand alone, which is quick as long as they are few."""
    parts: list[pa.Array] = []
    misfits: list[int] = []
    waiting = [(0, len(values))]
    while waiting:
        start, stop = waiting.pop()
        try:
            parts.append(cast(values.slice(start, stop - start)))
        except pa.ArrowInvalid:
            if stop - start == 1:
                parts.append(pa.nulls(1, to))
                misfits.append(start)
            else:
                middle = (start + stop) // 2
                waiting += [(middle, stop), (start, middle)]
    return pa.concat_arrays(parts) if parts else pa.nulls(0, to), np.array(misfits, dtype=np.int64)


def _with_misfits(before: pa.Array, after: pa.Array) -> Fitted:
    """Mark the cells that held something before and hold nothing now."""
    if after.null_count == before.null_count:
        return Fitted(after, NONE)
    return Fitted(after, np.flatnonzero(flags(pc.and_(before.is_valid(), after.is_null()))))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_span(kind: pa.DataType) -> bool:
    return bool(pa.types.is_time(kind) or pa.types.is_duration(kind) or pa.types.is_interval(kind))
