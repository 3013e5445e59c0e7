"""Stream the rows of a SQL query as Arrow batches.  Called by `opening` for ``sql:`` sources (PostgreSQL, SQLite)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from contracts.errors import ConfigError, DataError, NetworkError, StageError, StorageError
from contracts.pipeline.source import Source

BATCH_ROWS = 10_000
_DRIVERS = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg", "sqlite": "sqlite"}
_COLON = re.compile(r"(?<![:\w\\]):(?=\w)")


class Query:
    """A query, opened when it is read.

    Raises
    ------
    ConfigError
        When the DSN is missing or of another database.
    """

    def __init__(self, source: Source, query: str, environment: Mapping[str, str] = os.environ) -> None:
        dsn = environment.get(source.dsn_secret, "")
        if not dsn:
            raise ConfigError(
                f"the variable {source.dsn_secret} is missing",
                remedy="set it to the DSN of the database, in the secrets",
            )
        self._url = _url(dsn, source.dsn_secret)
        self._query = query
        self.name = f"sql: on {self._url.get_backend_name()}"

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows; the first batch is there even when the query has none, so that columns are known."""
        with _connected(self._url, self.name) as connection:
            # a colon in a literal is no bind parameter
            result = connection.execution_options(stream_results=True, yield_per=BATCH_ROWS).execute(
                text(_COLON.sub(r"\\:", self._query))
            )
            names = list(result.keys())
            if double := sorted({n for n in names if names.count(n) > 1}):
                raise ConfigError(
                    f"the query names the column {double[0]} twice", remedy="give it another name with AS"
                )
            some = False
            for rows in result.partitions():
                some = True
                yield pa.RecordBatch.from_arrays([_array(cells) for cells in zip(*rows, strict=True)], names=names)
            if not some:
                yield pa.RecordBatch.from_arrays([pa.nulls(0) for _ in names], names=names)

    def probe(self) -> None:
        """Connect and ask for nothing; raises as `batches` does."""
        with _connected(self._url, self.name) as connection:
            connection.execute(text("SELECT 1"))


def _url(dsn: str, variable: str) -> URL:
    try:
        url = make_url(dsn)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise ConfigError(
            f"the DSN in {variable} is no URL", remedy="postgresql://user:password@host/database or sqlite:////path"
        ) from None
    backend = url.drivername.split("+")[0]
    if backend not in _DRIVERS:
        raise ConfigError(f"the DSN in {variable} is for {backend}", remedy="PostgreSQL and SQLite are known")
    if backend == "sqlite" and not Path(url.database or "").is_file():
        raise ConfigError(f"the DSN in {variable} names no SQLite file that is there")
    return url.set(drivername=_DRIVERS[backend])


@contextmanager
def _connected(url: URL, name: str) -> Iterator[Connection]:
    arguments = {"connect_timeout": 5} if url.get_backend_name() == "postgresql" else {}
    try:
        engine = create_engine(url, connect_args=arguments)
    except (NoSuchModuleError, ImportError) as error:
        raise ConfigError(f"{name}: the database driver is missing: {error}") from None
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        raise _problem(error, name) from None
    except SQLAlchemyError as error:
        raise ConfigError(
            f"{name}: the query cannot be run: {type(error).__name__}", remedy="check source.query"
        ) from None
    finally:
        engine.dispose()


def _problem(error: DBAPIError, name: str) -> StageError:
    """Choose the class by SQLSTATE; a connection that was refused and SQLite have none, so there the text must do."""
    first = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
    state = getattr(error.orig, "sqlstate", None) or ""
    if state.startswith(("40", "55")) or "database is locked" in first or "database table is locked" in first:
        return StorageError(f"{name}: the database is busy")
    if state.startswith(("08", "53", "57")):
        return NetworkError(f"{name}: the server ended the connection ({state})")
    if "authentication failed" in str(error.orig) or state.startswith("28"):
        return ConfigError(f"{name}: the database refuses user or password", remedy="check the DSN")
    if state.startswith("22"):  # the text may hold a cell
        return DataError(
            f"{name}: a value breaks the query (SQLSTATE {state})", remedy="cast or filter in source.query"
        )
    if state or "sqlite" in name or "does not exist" in str(error.orig):
        return ConfigError(f"{name}: {first}", remedy="check source.query and the DSN")
    return NetworkError(f"{name}: no connection to the database")


def _array(cells: Sequence[Any]) -> pa.Array:
    """Make an array of one column's cells, as text where they are of several types (SQLite's columns may be)."""
    try:
        return pa.array(cells)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if cell is None else str(cell) for cell in cells], pa.string())
