"""Where the ledger's entries lie: a port, and the table of SQLite or PostgreSQL behind it.  Under `steps.ledger`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol
from uuid import uuid4

from sqlalchemy import (
    Column,
    Connection,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    insert,
    select,
)

from contracts.outcomes import Note, State
from contracts.references import LedgerEntry
from steps import lifecycle
from steps.ledger_chain import Row, from_row, to_row
from steps.ledger_database import Database
from steps.ledger_database import UniqueViolationError as UniqueViolationError

ENTRIES = Table(
    "ledger", MetaData(),
    Column("id", String(64), primary_key=True),
    Column("model", String(63), nullable=False),
    Column("number", Integer, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("version", Integer, nullable=False),
    Column("run_id", String(64), nullable=False),
    Column("workflow", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("at", String(27), nullable=False),
    UniqueConstraint("model", "previous"),
    UniqueConstraint("model", "number"),
    Index("ledger_version", "model", "version", "number"),
    Index("ledger_state", "model", "state", "number"),
)  # fmt: skip

View = tuple[LedgerEntry | None, lifecycle.Standing]
"""The newest entry of a model, and where its versions stand, read at one moment."""


class Rows(Protocol):
    """What the ledger asks of whatever keeps its entries.  Each call is one effect, or one reading at one moment."""

    def models(self) -> list[str]:
        """Return the names of all models that have entries."""

    def entries(self, model: str) -> list[LedgerEntry]:
        """Return all entries of a model, oldest first."""

    def rows(self, model: str) -> list[Row]:
        """Return all entries of a model as they are stored, oldest first: what was tampered with included."""

    def look(self, model: str, version: int | None = None) -> View:
        """Return the newest entry and where the versions stand: all, or those that matter to `version`."""

    def insert(self, entries: Sequence[LedgerEntry]) -> None:
        """Add entries of one model, all or none.

        Raises
        ------
        UniqueViolationError
            There is an entry after the same one already.
        """

    def try_insert(self) -> None:
        """Find out whether entries can be added, and add none."""

    def alone(self, model: str) -> AbstractContextManager[None]:
        """Hold a lock of the model's name; gone with the process that holds it."""


class SqlRows:
    """The table behind one SQLAlchemy URL, made at first use; errors as `steps.ledger.Ledger` says."""

    def __init__(self, url: str, *, busy_seconds: float) -> None:
        self._database = Database(url, ENTRIES, busy_seconds=busy_seconds)

    def models(self) -> list[str]:
        """Return the names of all models that have entries."""
        with self._database.read() as connection:
            return list(connection.scalars(select(ENTRIES.c.model).distinct().order_by(ENTRIES.c.model)))

    def entries(self, model: str) -> list[LedgerEntry]:
        """Return all entries of a model, oldest first."""
        return [from_row(row) for row in self.rows(model)]

    def rows(self, model: str) -> list[Row]:
        """Return all entries of a model as they are stored, oldest first."""
        with self._database.read() as connection:
            found = connection.execute(select(ENTRIES).where(ENTRIES.c.model == model).order_by(ENTRIES.c.number))
            return [dict(row) for row in found.mappings()]

    def look(self, model: str, version: int | None = None) -> View:
        """Return the newest entry and where the versions stand, in one transaction."""
        with self._database.read() as connection:
            return _head(connection, model), _standing(connection, model, version)

    def insert(self, entries: Sequence[LedgerEntry]) -> None:
        """Add entries in one transaction; the table refuses a second one after the same."""
        with self._database.write() as connection:
            connection.execute(insert(ENTRIES), [to_row(entry) for entry in entries])

    def try_insert(self) -> None:
        """Insert an entry that breaks no constraint, and take it back before anybody sees it."""
        with self._database.write() as connection:
            alone = uuid4().hex
            texts = {column.name: alone for column in ENTRIES.columns if not isinstance(column.type, Integer)}
            connection.execute(insert(ENTRIES).values({**texts, "state": "", "at": "", "number": 0, "version": 0}))
            connection.rollback()

    @contextmanager
    def alone(self, model: str) -> Iterator[None]:
        """Hold the database's own lock, as long as the connection lives."""
        with self._database.write(lock=model):
            yield


def _head(connection: Connection, model: str) -> LedgerEntry | None:
    query = select(ENTRIES).where(ENTRIES.c.model == model).order_by(ENTRIES.c.number.desc()).limit(1)
    row = connection.execute(query).mappings().first()
    return from_row(dict(row)) if row else None


def _standing(connection: Connection, model: str, version: int | None = None) -> lifecycle.Standing:
    """Read where versions stand: all of them, or only those that matter to a transition of `version`.

    At most one version is in each state of `ONE_AT_A_TIME`, so these are the ones that entered those states last; found
    by index, so that a decision costs the same however long the history is.
    """
    c = ENTRIES.c
    states = c.state.in_([state.value for state in State])
    newest = select(func.max(c.number)).where(c.model == model, states).group_by(c.version)
    if version is not None:
        active = (
            connection.scalar(
                select(c.version).where(c.model == model, c.state == state.value).order_by(c.number.desc()).limit(1)
            )
            for state in lifecycle.ONE_AT_A_TIME
        )
        newest = newest.where(c.version.in_({version, *(v for v in active if v is not None)}))
    notes = [
        connection.scalar(select(func.max(c.number)).where(c.model == model, c.state == note.value)) for note in Note
    ]
    note = max((number for number in notes if number is not None), default=0)
    query = select(ENTRIES).where(c.model == model, c.number.in_(newest) | (c.number == note)).order_by(c.number)
    return lifecycle.standing(from_row(dict(row)) for row in connection.execute(query).mappings())
