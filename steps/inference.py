"""Infer a schema from a data file: types, nulls, ranges, few values, missing markers.  Called by `retrain init` and
`retrain schema infer`; what it says is a proposal that a person edits.

The file is read once as text, in blocks; Parquet keeps the types it has, text included.  A text column whose cells are
nearly all numbers or dates is looked at a second time and takes their type, so that a run names the cells that are not.
Distinct values are counted exactly up to `MAX_DISTINCT`, and by duckdb's estimate above.
"""

from __future__ import annotations

import codecs
import csv
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts.errors import DataError
from contracts.pipeline.source import CsvOptions
from contracts.pipeline.table import Column, ColumnType, Schema
from steps.dominant_types import Tally, dominant_types, wider
from steps.table.arrow_reader import ParquetFile, is_parquet
from steps.table.cells import fit_text
from steps.table.csv_reader import CsvFile

MAX_DISTINCT = 1000
FEW_VALUES = 20
"""A column with at most so many values may get them as its allowed values."""
MARKERS = ("?", "NA", "N/A", "n/a", "NULL", "null", "NaN", "nan", "#N/A", "<NA>")
"""Cells that mean missing wherever they stand alone."""
UNSURE_MARKERS = ("-", "--", ".", "None", "none", "missing", "unknown", "Unknown", "-999", "na")
"""Cells that mean missing where all others of the column are numbers or dates."""

_CODE = r"\A\s*0[0-9xX]"
"""A code of digits, as 01234 is, would lose its zeros as a number."""
_BOOLEANS = frozenset({"true", "false"})
_ORDER = (ColumnType.INTEGER, ColumnType.NUMBER, ColumnType.DATE, ColumnType.TIMESTAMP)


@dataclass(frozen=True)
class InferredColumn:
    """One column.  `minimum` and `maximum` are ISO text for dates and timestamps, None for text and booleans."""

    name: str
    type: ColumnType
    nulls: int
    distinct: int
    minimum: float | int | str | None
    maximum: float | int | str | None
    values: tuple[Any, ...] = ()
    """All values, sorted, when they are few; else none."""
    identifier: bool = False
    """No value stands twice and it is text or consecutive: a key, not a fact to learn from."""
    misfits: int = 0
    """Cells that are not of `type`, where nearly all are; `nulls` and `distinct` leave them out."""
    named_misfits: tuple[tuple[int, str], ...] = ()
    """The first few of them: row, counted from 1, and cell."""


@dataclass(frozen=True)
class Inferred:
    """What a file looks like."""

    columns: tuple[InferredColumn, ...]
    rows: int
    missing_markers: tuple[str, ...] = ()
    """Proposed for source.csv.missing; the columns are described as if they were set."""


def infer(path: Path, options: CsvOptions | None = None) -> Inferred:
    """Look at a whole CSV or Parquet file.

    Raises
    ------
    DataError
        When it cannot be read as a table, or has no rows.
    ConfigError
        When it may not be read.
    """
    parquet = is_parquet(path)
    with tempfile.TemporaryDirectory(prefix="retrain-infer-") as folder:
        source = path if parquet else _as_text(path, options or CsvOptions(), Path(folder) / "text.parquet")
        names = ParquetFile(source, str(path)).columns()
        if doubles := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"{path}: the column {doubles[0]} stands twice in the header", remedy="rename one")
        looks = {name: _Look(read_types=not parquet) for name in names}
        rows = 0
        with pq.ParquetFile(source) as table:
            for batch in table.iter_batches(65_536):
                rows += batch.num_rows
                for name, values in zip(names, batch.columns, strict=True):
                    looks[name].add(values)
        if not rows:
            raise DataError(f"{path}: there is a header, and no rows", remedy="name a file that has some")
        if not parquet:
            mixed = {name: look.possible() for name, look in looks.items() if look.is_text()}
            for name, tally in dominant_types(source, mixed, (*MARKERS, *UNSURE_MARKERS), rows).items():
                looks[name].take(tally)
        many = {name: look.may_be_a_key() for name, look in looks.items() if look.values is None}
        estimates = _estimates(source, list(many), [name for name, key in many.items() if key])
    markers = dict.fromkeys(marker for look in looks.values() for marker in look.markers())
    columns = tuple(look.describe(name, rows, tuple(markers), estimates.get(name)) for name, look in looks.items())
    return Inferred(columns, rows, tuple(markers))


def sniff_csv(path: Path) -> CsvOptions:
    """Guess a file's encoding, and from its first 64 KiB the delimiter."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    else:
        encoding = "utf-8" if _is_utf8(path) else "latin-1"
    lines = [line for line in head.decode(encoding, errors="replace").splitlines()[:-1][:20] if line.strip()]

    def regularity(delimiter: str) -> tuple[float, int]:
        widths = Counter(len(row) for row in csv.reader(lines, delimiter=delimiter))
        width, count = widths.most_common(1)[0] if widths else (1, 0)
        return (count / max(len(lines), 1) if width > 1 else 0.0, width)

    return CsvOptions.model_validate({"delimiter": max(",;\t|", key=regularity), "encoding": encoding})


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        try:
            while block := file.read(1 << 20):
                decoder.decode(block)
        except UnicodeDecodeError:
            return False
    return True


@dataclass
class _Look:
    """What the values of one column have shown so far."""

    read_types: bool
    """Whether text may stand for values of other types, as in CSV."""
    seen: int = 0
    nulls: int = 0
    values: set[Any] | None = field(default_factory=set)
    """Distinct values while they are at most `MAX_DISTINCT`."""
    typed: ColumnType | None = None
    """Set by Parquet, whose types are kept."""
    fits: dict[ColumnType, bool] = field(default_factory=lambda: dict.fromkeys(_ORDER, True))
    boolean: bool = True
    extremes: dict[ColumnType, tuple[Any, Any]] = field(default_factory=dict)
    odd: Counter[str] = field(default_factory=Counter)
    """Marker-like cells."""
    coded: bool = False
    """Whether a cell was a code of digits."""
    misfits: int = 0
    named_misfits: tuple[tuple[int, str], ...] = ()

    def add(self, values: pa.Array) -> None:
        """Look at more of the column."""
        self.seen += len(values)
        self.nulls += values.null_count
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        self.typed = _column_type(values.type)
        unique = pc.drop_null(pc.unique(values))
        if self.typed is ColumnType.STRING:
            text = unique.cast(pa.string())
            odd = pc.is_in(text, value_set=pa.array([*MARKERS, *UNSURE_MARKERS]))
            if pc.any(odd).as_py():
                for each in pc.value_counts(
                    values.cast(pa.string()).filter(pc.is_in(values.cast(pa.string()), value_set=text.filter(odd)))
                ):
                    self.odd[each["values"].as_py()] += each["counts"].as_py()
                text = text.filter(pc.invert(odd))
            if self.read_types:
                self._try_types(text)
            unique = text
        elif len(unique):
            self._extend(self.typed, unique)
        if self.values is not None:
            self.values.update(unique.to_pylist() if len(unique) <= MAX_DISTINCT else ())
            if len(unique) > MAX_DISTINCT or len(self.values) > MAX_DISTINCT:
                self.values = None

    def markers(self) -> Iterator[str]:
        """Yield the marker-like cells that mean missing here."""
        typed = self.typed is ColumnType.STRING and self._type() is not ColumnType.STRING
        yield from (cell for cell in self.odd if cell in MARKERS or (typed and not _fits(cell, self._type())))

    def describe(self, name: str, rows: int, markers: tuple[str, ...], estimate: int | None) -> InferredColumn:
        """Say what the column is, once all of it was seen."""
        kind = self._type()
        kept = {cell: count for cell, count in self.odd.items() if cell not in markers}
        if kept and not all(_fits(cell, kind) for cell in kept):
            kind = ColumnType.STRING
        nulls = self.nulls + sum(count for cell, count in self.odd.items() if cell in markers)
        different = (len(self.values) + len(kept)) if self.values is not None else (estimate or 0)
        distinct = different
        if self.misfits and self.values:
            distinct = len(_typed_values([*self.values, *kept], kind))
        low, high = self.extremes.get(kind, (None, None))
        values: tuple[Any, ...] = ()
        if (
            self.values is not None
            and distinct <= FEW_VALUES
            and kind in (ColumnType.STRING, ColumnType.INTEGER, ColumnType.BOOLEAN)
        ):
            values = tuple(sorted(_typed_values([*self.values, *kept], kind)))
        single = nulls == 0 and rows > FEW_VALUES and different >= rows
        consecutive = kind is ColumnType.INTEGER and low is not None and high - low < 2 * rows
        return InferredColumn(
            name=name,
            type=kind,
            nulls=nulls,
            distinct=distinct,
            minimum=_plain(low),
            maximum=_plain(high),
            values=values,
            identifier=single and (kind is ColumnType.STRING or consecutive),
            misfits=self.misfits,
            named_misfits=self.named_misfits,
        )

    def take(self, dominant: Tally) -> None:
        """Become a column of the type that nearly all cells have."""
        self.fits[dominant.kind] = True
        self.extremes = {dominant.kind: dominant.extremes} if dominant.extremes else {}
        self.misfits, self.named_misfits = dominant.misfits, tuple(dominant.named)

    def is_text(self) -> bool:
        """Whether no other type fits all cells."""
        return self._type() is ColumnType.STRING

    def may_be_a_key(self) -> bool:
        """Whether a column without doubles would be an identifier."""
        return self.nulls == 0 and self._type() in (ColumnType.STRING, ColumnType.INTEGER)

    def possible(self) -> Sequence[ColumnType]:
        """Return the types that most cells may have; codes of digits are neither whole numbers nor others."""
        return [kind for kind in _ORDER if not (self.coded and kind in (ColumnType.INTEGER, ColumnType.NUMBER))]

    def _try_types(self, text: pa.Array) -> None:
        if not len(text):
            return
        self.boolean = self.boolean and set(pc.unique(pc.utf8_lower(text)).to_pylist()) <= _BOOLEANS
        if pc.any(pc.match_substring_regex(text, _CODE)).as_py():
            self.fits[ColumnType.INTEGER] = self.fits[ColumnType.NUMBER] = False
            self.coded = True
        for kind in _ORDER:
            if self.fits[kind]:
                fitted = fit_text(text, kind)
                self.fits[kind] = not len(fitted.misfits)
                if self.fits[kind] and fitted.values.null_count < len(fitted.values):
                    self._extend(kind, fitted.values)

    def _extend(self, kind: ColumnType, values: pa.Array) -> None:
        if kind in (ColumnType.STRING, ColumnType.BOOLEAN):
            return
        self.extremes[kind] = wider(self.extremes.get(kind), values)

    def _type(self) -> ColumnType:
        if self.typed is not ColumnType.STRING:
            return self.typed or ColumnType.STRING
        if self.nulls + sum(self.odd.values()) == self.seen:
            return ColumnType.STRING
        if self.boolean and self.read_types:
            return ColumnType.BOOLEAN
        return next((kind for kind in _ORDER if self.fits[kind] and kind in self.extremes), ColumnType.STRING)


def _as_text(path: Path, options: CsvOptions, target: Path) -> Path:
    file = CsvFile(path, str(path), options)
    names = file.columns()
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: the column {doubles[0]} stands twice in the header", remedy="rename one")
    schema = Schema(columns=tuple(Column(name=name or "unnamed", type=ColumnType.STRING) for name in names))
    if "" in names:
        raise DataError(f"{path}: column {names.index('') + 1} has no name", remedy="name it in the header")
    rows = 0
    # read once and thrown away: dictionaries would cost more than they save
    with pq.ParquetWriter(target, pa.schema([(name, pa.string()) for name in names]), use_dictionary=False) as writer:
        for task in file.tasks(schema):
            chunk = task()
            if chunk.ragged:
                row, cells = chunk.ragged[0]
                raise DataError(f"{path}, row {rows + row + 1}: {cells} cells, the header names {len(names)}")
            if chunk.flaw is not None:
                raise DataError(
                    f"{path}, row {rows + (chunk.flaw.row or 0) + 1}: {chunk.flaw.what}", remedy=chunk.flaw.remedy
                )
            rows += chunk.source_rows
            writer.write_batch(chunk.batch)
    return target


def _estimates(parquet: Path, names: list[str], keys: list[str]) -> dict[str, int]:
    """Count distinct values: an estimate, made exact for `keys` where it says that nearly every row has its own."""
    if not names:
        return {}
    import duckdb

    quoted = {name: '"' + name.replace('"', '""') + '"' for name in names}
    with duckdb.connect() as connection:
        connection.execute("SET memory_limit='512MiB'")
        connection.execute("SET enable_progress_bar=false")  # it would stand among what `init` says
        connection.execute(
            "SET temp_directory=?", [str(parquet.parent / "spill") if parquet.name == "text.parquet" else ""]
        )

        def count(how: str, columns: list[str]) -> list[int]:
            wanted = ", ".join(how.format(quoted[name]) for name in columns)
            found = connection.execute(f"SELECT {wanted}, count(*) FROM read_parquet(?)", [str(parquet)]).fetchone()  # noqa: S608
            return [int(n) for n in found or ()]

        *numbers, rows = count("approx_count_distinct({})", names)
        estimates = dict(zip(names, numbers, strict=True))
        for name in keys:
            if estimates[name] > 0.8 * rows:
                estimates[name] = count("count(DISTINCT {})", [name])[0]
    return estimates


def _column_type(kind: pa.DataType) -> ColumnType:
    if pa.types.is_boolean(kind):
        return ColumnType.BOOLEAN
    if pa.types.is_integer(kind):
        return ColumnType.INTEGER
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return ColumnType.NUMBER
    if pa.types.is_date(kind):
        return ColumnType.DATE
    if pa.types.is_timestamp(kind):
        return ColumnType.TIMESTAMP
    return ColumnType.STRING


def _fits(cell: str, kind: ColumnType) -> bool:
    return not len(fit_text(pa.array([cell]), kind).misfits)


def _typed_values(values: list[Any], kind: ColumnType) -> list[Any]:
    if kind is ColumnType.STRING or not values or not isinstance(values[0], str):
        return list(set(values))
    return list(set(fit_text(pa.array(values), kind).values.drop_null().to_pylist()))


def _plain(value: Any) -> float | int | str | None:
    if value is None or isinstance(value, (int, float, str)):
        return value
    return str(value.isoformat()) if hasattr(value, "isoformat") else float(value)
