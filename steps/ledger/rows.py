"""Where the ledger's entries lie: a port, and the table of SQLite or PostgreSQL behind it.  Under `steps.ledger`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import cache
from typing import Any, Protocol
from uuid import uuid4

from sqlalchemy import (
    Column,
    ColumnElement,
    Index,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    false,
    func,
    insert,
    or_,
    select,
    tuple_,
)

from contracts.outcomes import Note, State
from contracts.references import LedgerEntry
from steps import lifecycle
from steps.ledger.chain import Row, chained, from_row, to_row
from steps.ledger.database import Database
from steps.ledger.database import UniqueViolationError as UniqueViolationError

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
    Index("ledger_moment", "model", "at", "number"),
)  # fmt: skip

View = tuple[LedgerEntry | None, lifecycle.Standing]
"""The newest entry of a model, and where its versions stand, read at one moment."""


class Rows(Protocol):
    """What the ledger asks of whatever keeps its entries.  Each call is one effect, or one reading at one moment."""

    def models(self) -> list[str]:
        """Return the names of all models that have entries."""

    def heads(self) -> dict[str, tuple[int, str]]:
        """Return number and id of each model's newest entry, also of one that can't be read."""

    def entries(self, model: str) -> list[LedgerEntry]:
        """Return all entries of a model, oldest first."""

    def rows(self, model: str) -> list[Row]:
        """Return all entries of a model as they are stored, oldest first: what was tampered with included."""

    def after(self, model: str, previous: str) -> LedgerEntry | None:
        """Return the entry that follows another, by that one's id; None while there is none."""

    def until(self, model: str, moment: str) -> int:
        """Return the number of the last entry of that moment or before, 0 when there is none."""

    def about(self, model: str, version: int) -> list[LedgerEntry]:
        """Return the entries of one version, oldest first."""

    def last(self, model: str, state: State, until: int) -> LedgerEntry | None:
        """Return the last entry of a state up to a number."""

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

    def upgrade(self) -> None:
        """Make the table, or bring one of an earlier version to this one, as its owner."""
        self._database.upgrade()

    def models(self) -> list[str]:
        """Return the names of all models that have entries."""
        with self._database.read() as connection:
            return list(connection.scalars(select(ENTRIES.c.model).distinct().order_by(ENTRIES.c.model)))

    def heads(self) -> dict[str, tuple[int, str]]:
        """Return number and id of each model's newest entry, also of one that can't be read."""
        c = ENTRIES.c
        newest = select(c.model, func.max(c.number)).group_by(c.model)
        query = select(c.model, c.number, c.id).where(tuple_(c.model, c.number).in_(newest))
        with self._database.read() as connection:
            return {model: (number, key) for model, number, key in connection.execute(query)}

    def entries(self, model: str) -> list[LedgerEntry]:
        """Return all entries of a model, oldest first."""
        return [from_row(row) for row in self.rows(model)]

    def rows(self, model: str) -> list[Row]:
        """Return all entries of a model as they are stored, oldest first."""
        with self._database.read() as connection:
            found = connection.execute(select(ENTRIES).where(ENTRIES.c.model == model).order_by(ENTRIES.c.number))
            return [dict(row) for row in found.mappings()]

    def after(self, model: str, previous: str) -> LedgerEntry | None:
        """Return the entry that follows another, by that one's id; None while there is none."""
        query = select(ENTRIES).where(ENTRIES.c.model == model, ENTRIES.c.previous == previous)
        with self._database.read() as connection:
            row = connection.execute(query).mappings().first()
        return from_row(dict(row)) if row else None

    def until(self, model: str, moment: str) -> int:
        """Return the number of the last entry of that moment or before, 0 when there is none."""
        c = ENTRIES.c
        # the greatest number, not the latest moment: clocks are set back, and order comes from the ledger
        query = select(func.max(c.number)).where(c.model == model, c.at <= moment)
        with self._database.read() as connection:
            return connection.scalar(query) or 0

    def about(self, model: str, version: int) -> list[LedgerEntry]:
        """Return the entries of one version, oldest first."""
        c = ENTRIES.c
        query = select(ENTRIES).where(c.model == model, c.version == version).order_by(c.number)
        with self._database.read() as connection:
            return [from_row(dict(row)) for row in connection.execute(query).mappings()]

    def last(self, model: str, state: State, until: int) -> LedgerEntry | None:
        """Return the last entry of a state up to a number."""
        c = ENTRIES.c
        query = select(ENTRIES).where(c.model == model, c.state == state.value, c.number <= until)
        with self._database.read() as connection:
            row = connection.execute(query.order_by(c.number.desc()).limit(1)).mappings().first()
        return from_row(dict(row)) if row else None

    def look(self, model: str, version: int | None = None) -> View:
        """Return the newest entry and where the versions stand, in one transaction."""
        with self._database.read() as connection:
            said = {"model": model} if version is None else {"model": model, "version": version}
            found = connection.execute(_newest(of_all=version is None), said).mappings()
            entries = [from_row(dict(row)) for row in found]
        return (entries[-1] if entries else None), lifecycle.standing(entries)

    def insert(self, entries: Sequence[LedgerEntry]) -> None:
        """Add entries in one transaction; the table refuses a second one after the same."""
        with self._database.write() as connection:
            connection.execute(insert(ENTRIES), [to_row(entry) for entry in entries])

    def try_insert(self) -> None:
        """Insert the first entry of a model of its own, and take it back before anybody sees it."""
        with self._database.write() as connection:
            tried = chained(
                None, model=uuid4().hex, state=Note.REMOVED, version=0, run_id="", workflow="", by="", reason="",
                evidence={}, at=datetime.now(UTC),
            )  # fmt: skip
            connection.execute(insert(ENTRIES), [to_row(tried)])
            connection.rollback()

    @contextmanager
    def alone(self, model: str) -> Iterator[None]:
        """Hold the database's own lock, as long as the connection lives."""
        with self._database.write(lock=model):
            yield


@cache
def _newest(*, of_all: bool) -> Select[Any]:
    """Select the newest entry of a `model`, its newest note of each kind, and each version's newest transition and
    removal, in order.

    Of the versions all, or only those that matter to a transition of `version`.  At most one is in each state of
    `ONE_AT_A_TIME`, so these are the ones that entered those states last; found by index, so that a decision costs the
    same however long the history is.
    """
    c = ENTRIES.c
    ours, number = c.model == bindparam("model"), func.max(c.number)
    transitions = select(number).where(ours, c.state.in_([state.value for state in State]))
    removals = select(number).where(ours, c.state == Note.REMOVED.value)
    wanted = [select(number).where(ours)]
    wanted += [select(number).where(ours, c.state == note.value) for note in Note if note is not Note.REMOVED]
    every: ColumnElement[bool] = false()
    if of_all:
        every = or_(c.number.in_(transitions.group_by(c.version)), c.number.in_(removals.group_by(c.version)))
    else:
        wanted.append(removals.where(c.version == bindparam("version")))
        last = select(c.version).where(ours).order_by(c.number.desc()).limit(1)
        active = [last.where(c.state == state.value).scalar_subquery() for state in lifecycle.ONE_AT_A_TIME]
        wanted += [transitions.where(c.version == which) for which in (bindparam("version"), *active)]
    one_of = or_(every, *(c.number == one.scalar_subquery() for one in wanted))
    return select(ENTRIES).where(ours, one_of).order_by(c.number)
