"""The database under the ledger: connections, schema at first use, errors by class.  Called by `steps.ledger` only."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, exc, func, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateIndex, CreateTable

from contracts.errors import ConfigError, NetworkError, StageError, StorageError
from steps.ledger import guards

_REMEDY = "check the setting RETRAIN_LEDGER"
_WRITE = "ledger_write"
_CREATION_LOCK = 0x7265747261696E  # any number that all creators share


class UniqueViolationError(Exception):
    """A row with these unique values exists."""


class Database:
    """One table in SQLite or PostgreSQL, made when it is missing, by any number of processes at once."""

    def __init__(self, url: str, table: Table, *, busy_seconds: float) -> None:
        self._table = table
        self._busy_seconds = busy_seconds
        self._url = _parse(url)
        self._ready: Engine | None = None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction whose statements all read one state of the table, whatever is written meanwhile."""
        with _errors(), self._engine().connect() as connection:
            if self._url.get_backend_name() == "postgresql":
                # by default each of its statements would see what was committed before it; SQLite's see the first's
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def write(self, *, lock: str = "") -> Iterator[Connection]:
        """Open a transaction that writes, committed at its end; with `lock`, after all others of that name."""
        with _errors(), self._engine().connect() as connection:
            connection.execution_options(**{_WRITE: True})
            with connection.begin():
                if lock and self._url.get_backend_name() == "postgresql":
                    connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(lock))))
                yield connection

    def upgrade(self) -> None:
        """Make the table, or give one of an earlier version the triggers of this one: its owner's to do.

        In SQLite whoever uses it owns it, so there any use does so.
        """
        with _errors():
            engine = self._engine()
            if self._url.get_backend_name() == "postgresql":
                self._create_postgresql(engine, again=True)

    def _engine(self) -> Engine:
        if self._ready is None:
            # No pool: a step opens few connections, and none may be shared over a fork.
            if self._url.get_backend_name() == "sqlite":
                engine = create_engine(self._url, poolclass=NullPool, connect_args={"timeout": self._busy_seconds})
                self._open_sqlite(engine)
            else:
                engine = create_engine(self._url, poolclass=NullPool, connect_args={"connect_timeout": 5})
                self._create_postgresql(engine)
            self._ready = engine
        return self._ready

    def _open_sqlite(self, engine: Engine) -> None:
        if self._url.database and self._url.database != ":memory:":
            try:
                Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"the ledger's folder cannot be made: {error.strerror}", remedy=_REMEDY) from None

        @event.listens_for(engine, "connect")
        def _plain(connection: sqlite3.Connection, _: Any) -> None:
            # Python's own transaction handling begins too late; BEGIN is said below.
            connection.isolation_level = None

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            # IMMEDIATE takes the write lock before the first read, so that what was read is still true at the insert.
            connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(_WRITE) else "BEGIN")

        self._switch_to_wal(engine)
        with engine.connect() as connection:
            parts = "SELECT name, sql FROM sqlite_master WHERE tbl_name = ?"
            found: dict[str, str] = dict(connection.exec_driver_sql(parts, (self._table.name,)).tuples().all())
        triggers = guards.sqlite(self._table.name)
        named = {self._table.name, *(str(index.name) for index in self._table.indexes)}
        if named <= found.keys() and triggers.items() <= found.items():
            return
        with engine.connect().execution_options(**{_WRITE: True}) as connection, connection.begin():
            self._create(connection)
            for name, text in triggers.items():
                connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}")
                connection.exec_driver_sql(text)

    def _switch_to_wal(self, engine: Engine) -> None:
        # SQLite does not wait for a lock when it changes the journal mode, so this waits by itself.
        deadline = time.monotonic() + self._busy_seconds
        while True:
            raw = engine.raw_connection()
            try:
                cursor = raw.cursor()
                if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    cursor.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.Error as error:
                classified = _classify(error)
                if not isinstance(classified, StorageError) or time.monotonic() > deadline:
                    raise classified from None
                time.sleep(0.01)
            finally:
                raw.close()

    def _create_postgresql(self, engine: Engine, *, again: bool = False) -> None:
        with engine.connect() as connection, connection.begin():
            if not again and connection.dialect.has_table(connection, self._table.name):
                return
            # CREATE ... IF NOT EXISTS of two at once can still collide in PostgreSQL's catalogue.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_CREATION_LOCK})")
            self._create(connection)
            schema = connection.scalar(select(func.quote_ident(func.current_schema())))
            for statement in guards.postgresql(self._table.name, str(schema)):
                connection.exec_driver_sql(statement)

    def _create(self, connection: Connection) -> None:
        connection.execute(CreateTable(self._table, if_not_exists=True))
        for index in self._table.indexes:
            connection.execute(CreateIndex(index, if_not_exists=True))


def _parse(url: str) -> URL:
    if not url:
        raise ConfigError("no ledger is set", remedy="set RETRAIN_LEDGER, such as sqlite:////absolute/path/ledger.db")
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (exc.ArgumentError, ValueError):
        raise ConfigError("the ledger's URL cannot be read", remedy=_REMEDY) from None
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ConfigError("the ledger is neither on SQLite nor on PostgreSQL", remedy=_REMEDY)
    return parsed


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except exc.IntegrityError as error:
        if _is_unique(error.orig):
            raise UniqueViolationError from None
        raise _classify(error.orig) from None
    except exc.DBAPIError as error:
        raise _classify(error.orig) from None


def _is_unique(error: Any) -> bool:
    codes = (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
    return getattr(error, "sqlite_errorcode", None) in codes or getattr(error, "sqlstate", None) == "23505"


def _classify(error: Any) -> StageError:
    """Choose the error class.  Messages hold no part of the URL: PostgreSQL's own may name host, user and database."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StorageError("the ledger is locked by another process")
        name = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
        return ConfigError(
            f"the ledger's file cannot be used ({name}: {error})", remedy="check its path, permissions and free disk"
        )
    state = getattr(error, "sqlstate", None) or ""
    if state in ("40001", "40P01", "55P03"):
        return StorageError(f"the ledger's database is busy (SQLSTATE {state})")
    if state[:2] in ("08", "53", "57", "58") or (not state and "FATAL" not in str(error)):
        return NetworkError("the ledger's database does not answer" + (f" (SQLSTATE {state})" if state else ""))
    if not state and any(
        sign in str(error) for sign in ("starting up", "shutting down", "too many", "remaining connection")
    ):
        # libpq gives no SQLSTATE when connecting fails; FATAL with these words passes, with others it stays.
        return NetworkError("the ledger's database does not take connections right now")
    return ConfigError(
        f"the ledger's database refuses us (SQLSTATE {state or 'unknown'})",
        remedy=f"{_REMEDY}, user, password and grants",
    )
