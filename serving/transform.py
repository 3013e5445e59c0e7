"""The transform from raw rows to features: data fitted by `features`, one function that applies it.

`train` and the gates call `transform` on datasets, the server on requests; there is no second implementation.  A
`Recipe` is plain JSON, so that another language could apply it: see docs/split.md for the rules of every step.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from contracts.base import Contract
from contracts.errors import DataError, Finding
from contracts.pipeline.table import ColumnType
from contracts.references import ColumnSpec

Matrix = npt.NDArray[np.float64]
_FEW = 64
"""Below so many cells a look-up a cell is faster than Arrow's dictionary encoding of them."""
DatePart = Literal["year", "month", "day", "weekday", "hour", "epoch_days"]

ARROW_TYPES: dict[str, Any] = {
    ColumnType.INTEGER: pa.int64(),
    ColumnType.NUMBER: pa.float64(),
    ColumnType.BOOLEAN: pa.bool_(),
    ColumnType.STRING: pa.string(),
    ColumnType.DATE: pa.date32(),
    ColumnType.TIMESTAMP: pa.timestamp("us", "UTC"),
}


class Numeric(Contract):
    """An integer, number or boolean column as a number; a missing cell becomes `fill`, or stays NaN without one."""

    kind: Literal["numeric"] = "numeric"
    column: str
    type: ColumnType
    fill: float | None = None
    indicator: bool = Field(False, description="A second feature: 1 where the cell was missing, else 0.")

    @property
    def names(self) -> tuple[str, ...]:
        """The features it makes."""
        return (self.column, f"{self.column}__missing") if self.indicator else (self.column,)

    def apply(self, cells: Any, out: Matrix) -> None:
        """Write one Arrow array's features into `out` [rows, len(names)]."""
        # None becomes NaN: nullable integers arrive as floats, nullable booleans as objects
        values = np.asarray(cells.to_numpy(zero_copy_only=False), dtype=np.float64)
        missing = np.isnan(values)
        out[:, 0] = values if self.fill is None else np.where(missing, self.fill, values)
        if self.indicator:
            out[:, 1] = missing


class Categorical(Contract):
    """A column as codes: the position in `categories`, or one of two codes of their own.

    Integers are written in decimal, booleans as ``true`` and ``false``.
    """

    kind: Literal["categorical"] = "categorical"
    column: str
    type: ColumnType
    categories: tuple[str, ...]
    missing: int = Field(description="Code of a missing cell.")
    other: int = Field(description="Code of every category that is not in `categories`: rare in training, or unseen.")

    @property
    def names(self) -> tuple[str, ...]:
        """The features it makes."""
        return (self.column,)

    @property
    def cardinality(self) -> int:
        """The number of codes: they run from 0 to one less."""
        return max(len(self.categories), self.missing + 1, self.other + 1)

    @cached_property
    def _codes(self) -> dict[Any, int]:
        read = _FROM_TEXT.get(self.type, str)
        return {read(text): code for code, text in enumerate(self.categories)}

    def apply(self, cells: Any, out: Matrix) -> None:
        """Write one Arrow array's codes into `out` [rows, 1]."""
        if len(cells) < _FEW:
            out[:, 0] = [self._code(value) for value in cells.to_pylist()]
            return
        encoded = cells if pa.types.is_dictionary(cells.type) else cells.dictionary_encode()
        codes = [self._code(value) for value in encoded.dictionary.to_pylist()]
        indices = encoded.indices.fill_null(-1) if encoded.null_count else encoded.indices
        # the code of missing cells stands last, where index -1 finds it
        out[:, 0] = np.array([*codes, self.missing], dtype=np.float64)[indices.to_numpy()]

    def _code(self, value: Any) -> int:
        return self.missing if value is None else self._codes.get(value, self.other)


class DateParts(Contract):
    """A date or timestamp (UTC) as some of its parts; `fills` stand for missing cells, part by part."""

    kind: Literal["dates"] = "dates"
    column: str
    type: ColumnType
    parts: tuple[DatePart, ...]
    fills: tuple[float | None, ...]
    indicator: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The features it makes."""
        return (*(f"{self.column}__{p}" for p in self.parts), *((f"{self.column}__missing",) if self.indicator else ()))

    def apply(self, cells: Any, out: Matrix) -> None:
        """Write one Arrow array's parts into `out` [rows, len(names)]."""
        moments = cells.to_numpy(zero_copy_only=False)
        missing = np.isnat(moments)
        for position, (part, fill) in enumerate(zip(self.parts, self.fills, strict=True)):
            out[:, position] = np.where(missing, np.nan if fill is None else fill, date_part(moments, part))
        if self.indicator:
            out[:, -1] = missing


class Dropped(Contract):
    """A column that the model does not use, and why."""

    kind: Literal["dropped"] = "dropped"
    column: str
    reason: str

    @property
    def names(self) -> tuple[str, ...]:
        """No features."""
        return ()


class Raw(Contract):
    """A column handed on as it is, to a user's own scikit-learn Pipeline."""

    kind: Literal["raw"] = "raw"
    column: str
    type: ColumnType

    @property
    def names(self) -> tuple[str, ...]:
        """The column itself."""
        return (self.column,)


Step = Annotated[Numeric | Categorical | DateParts | Dropped | Raw, Field(discriminator="kind")]


class Recipe(Contract):
    """The fitted transform: one step a column, in the schema's order."""

    format: Literal[1] = 1
    steps: tuple[Step, ...]

    @property
    def passthrough(self) -> bool:
        """Whether the columns are handed on as they are."""
        return any(isinstance(step, Raw) for step in self.steps)

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that are read."""
        return tuple(step.column for step in self.steps if step.names)

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        """The features, in the order of the matrix's columns."""
        return tuple(name for step in self.steps for name in step.names)

    @cached_property
    def categorical(self) -> tuple[int, ...]:
        """Indices of the features that hold category codes."""
        return tuple(index for index, _ in self._categorical)

    @cached_property
    def cardinalities(self) -> tuple[int, ...]:
        """The number of codes of each feature in `categorical`."""
        return tuple(step.cardinality for _, step in self._categorical)

    @cached_property
    def _categorical(self) -> tuple[tuple[int, Categorical], ...]:
        found, index = [], 0
        for step in self.steps:
            if isinstance(step, Categorical):
                found.append((index, step))
            index += len(step.names)
        return tuple(found)

    @property
    def dropped(self) -> dict[str, str]:
        """Column -> why the model does not use it."""
        return {step.column: step.reason for step in self.steps if isinstance(step, Dropped)}

    def json_bytes(self) -> bytes:
        """Return the canonical JSON: sorted keys, no spaces, UTF-8, shortest floats that read back the same."""
        data = self.model_dump(mode="json")
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()

    @cached_property
    def sha256(self) -> str:
        """The hash of the canonical JSON."""
        return hashlib.sha256(self.json_bytes()).hexdigest()


def transform(recipe: Recipe, table: Any) -> Matrix:
    """Return the features of a typed Arrow table, float64 [rows, features], C-ordered.

    Raises
    ------
    DataError
        When the table lacks a column that the recipe reads, or holds it in another type.
    """
    if recipe.passthrough:
        raise TypeError("a recipe that passes columns through makes no features: hand the table to the Pipeline")
    out = np.empty((table.num_rows, len(recipe.feature_names)), dtype=np.float64)
    first = 0
    for step in recipe.steps:
        if isinstance(step, (Dropped, Raw)):
            continue
        end = first + len(step.names)
        for start, cells in _chunks(table, step):
            step.apply(cells, out[start : start + len(cells), first:end])
        first = end
    return out


def unseen(recipe: Recipe, table: Any) -> dict[str, npt.NDArray[np.bool_]]:
    """Return, for every categorical column, which rows hold a category without a code of its own.

    It was not seen in training, or in too few rows to count (`min_category_rows`, `max_categories`).
    """
    found = {}
    for _, step in recipe._categorical:
        codes = np.empty((table.num_rows, 1), dtype=np.float64)
        for start, cells in _chunks(table, step):
            step.apply(cells, codes[start : start + len(cells)])
        found[step.column] = codes[:, 0] == step.other
    return found


def unseen_in(recipe: Recipe, features: Matrix) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the same as `unseen`, from features already made: what the server uses, as it costs next to nothing."""
    return {step.column: features[:, index] == step.other for index, step in recipe._categorical}


def rows_to_table(columns: Sequence[ColumnSpec], rows: Sequence[Mapping[str, Any]]) -> Any:
    """Make a typed Arrow table of JSON-like rows; dates and timestamps are ISO 8601 text, without an offset UTC.

    Raises
    ------
    DataError
        With one finding a key that is absent or unknown, or a value of another type.  It never repeats the value.
    """
    readers = {column.name: (_READ[column.type], column.type) for column in columns}
    typed: list[dict[str, Any]] = []
    findings = []
    for number, row in enumerate(rows, start=1):
        cells: dict[str, Any] = {}
        for name, (read, kind) in readers.items():
            try:
                value = row[name]
                cells[name] = None if value is None else read(value)
            except KeyError:
                findings.append(
                    Finding(where=f"row {number}, {name}", what="is absent", remedy="null says that it is missing")
                )
            except (TypeError, ValueError, OverflowError):
                findings.append(Finding(where=f"row {number}, {name}", what=f"is no {kind}"))
        if len(row) > len(cells):
            unknown = sorted(row.keys() - readers.keys())
            findings += [Finding(where=f"row {number}, {key}", what="is no column of this model") for key in unknown]
        typed.append(cells)
    if findings:
        raise DataError("the rows do not fit the model's columns", findings=findings)
    # one conversion of all columns: as many as there are columns would cost most of a single-row answer
    struct = pa.struct([(column.name, ARROW_TYPES[column.type]) for column in columns])
    return pa.Table.from_struct_array(pa.array(typed, type=struct))


def date_part(moments: npt.NDArray[np.datetime64], part: DatePart) -> npt.NDArray[np.int64]:
    """Return one part of each date or UTC timestamp; without meaning where it is missing (NaT).

    ``weekday`` counts from Monday as 0; ``epoch_days`` are whole days since 1970-01-01.
    """
    match part:
        case "year":
            return _count(moments, "Y") + 1970
        case "month":
            return _count(moments, "M") % 12 + 1
        case "day":
            return _count(moments, "D") - _count(moments.astype("datetime64[M]"), "D") + 1
        case "weekday":
            return (_count(moments, "D") + 3) % 7  # 1970-01-01 was a Thursday
        case "hour":
            return _count(moments, "h") % 24
        case "epoch_days":
            return _count(moments, "D")


def _count(moments: npt.NDArray[np.datetime64], unit: str) -> npt.NDArray[np.int64]:
    count: npt.NDArray[np.int64] = moments.astype(f"datetime64[{unit}]").astype(np.int64)
    return count


def _chunks(table: Any, step: Numeric | Categorical | DateParts) -> Iterator[tuple[int, Any]]:
    """Yield a column's chunks with the row where each begins: never a copy of a whole column."""
    try:
        column = table.column(step.column)
    except KeyError:
        raise DataError(f"column {step.column} is absent", remedy="give the table the columns of the schema") from None
    if not _IS[step.type](column.type):
        raise DataError(f"column {step.column} is {column.type}, the model wants {step.type}")
    start = 0
    for cells in getattr(column, "chunks", (column,)):
        if len(cells):
            yield start, cells
            start += len(cells)


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind.value_type if pa.types.is_dictionary(kind) else kind))


_IS: dict[str, Callable[[Any], bool]] = {
    ColumnType.INTEGER: pa.types.is_integer,
    ColumnType.NUMBER: pa.types.is_floating,
    ColumnType.BOOLEAN: pa.types.is_boolean,
    ColumnType.STRING: _is_text,
    ColumnType.DATE: pa.types.is_date32,
    ColumnType.TIMESTAMP: pa.types.is_timestamp,
}
_FROM_TEXT: dict[str, Callable[[str], Any]] = {ColumnType.INTEGER: int, ColumnType.BOOLEAN: "true".__eq__}


def _integer(value: Any) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or value != int(value)
        or not -(2**63) <= value < 2**63
    ):
        raise TypeError
    return int(value)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    return None if math.isnan(value) else float(value)


def _exactly(kind: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return read


def _date(value: Any) -> date:
    if isinstance(value, str):
        return date.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    raise TypeError


def _timestamp(value: Any) -> datetime:
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(moment, datetime):
        raise TypeError
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


_READ: dict[str, Callable[[Any], Any]] = {
    ColumnType.INTEGER: _integer,
    ColumnType.NUMBER: _number,
    ColumnType.BOOLEAN: _exactly(bool),
    ColumnType.STRING: _exactly(str),
    ColumnType.DATE: _date,
    ColumnType.TIMESTAMP: _timestamp,
}
