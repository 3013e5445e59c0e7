"""The ledger on a real PostgreSQL: append-only by triggers, one state a read, one winner of a race."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, exc, make_url, text

from contracts.errors import NetworkError
from contracts.outcomes import State
from contracts.references import LedgerEntry
from contracts.settings import variable
from steps.ledger import Ledger, LostRace, migration
from tests.steps.registered import NOW
from tests.steps.test_ledger import NO_ENTRY, second_row
from tests.steps.test_sources_postgresql import BIN, server  # noqa: F401  a fixture

pytestmark = pytest.mark.skipif(BIN is None, reason="PostgreSQL is not installed")


def write(ledger: Ledger, state: State, after: LedgerEntry | None, model: str = "churn") -> LedgerEntry:
    return ledger.append(
        model, state, version=1, run_id="r", workflow="w", by="ann", reason="", evidence={}, after=after, at=NOW
    )


def test_the_table_is_append_only_and_a_read_sees_one_state_of_it(server: str) -> None:  # noqa: F811
    ledger = Ledger(server)
    first = write(ledger, State.REGISTERED, None)
    with ledger._rows._database.read() as reading:
        count = text("SELECT count(*) FROM ledger")
        assert reading.scalar(count) == 1
        approved = write(Ledger(server), State.APPROVED, first)
        assert reading.scalar(count) == 1, "what was written meanwhile is not seen"
    with pytest.raises(LostRace):
        write(ledger, State.REJECTED, first)

    engine = create_engine(make_url(server).set(drivername="postgresql+psycopg"))
    for statement in ("UPDATE ledger SET reason = 'x'", "DELETE FROM ledger", "TRUNCATE ledger"):
        with engine.connect() as connection, pytest.raises(exc.DBAPIError, match="append-only"):
            connection.execute(text(statement))
    engine.dispose()
    assert ledger.head("churn") == approved
    assert ledger.verify("churn", head=approved.id) == []


@pytest.fixture
def writer(server: str) -> Iterator[Connection]:  # noqa: F811
    """A connection as a stage's own role has it: it reads and adds, and may make tables of its own for a while."""
    Ledger(server).models()
    engine = create_engine(make_url(server).set(drivername="postgresql+psycopg"))
    with engine.begin() as owner:
        for statement in (
            "DROP ROLE IF EXISTS writer",
            "CREATE ROLE writer",
            "GRANT SELECT, INSERT ON ledger TO writer",
        ):
            owner.execute(text(statement))
    with engine.connect() as connection:
        connection.execute(text("SET ROLE writer"))
        yield connection
        connection.rollback()
    with engine.begin() as owner:
        owner.execute(text("DROP OWNED BY writer"))
    engine.dispose()


def put(connection: Connection, row: dict[str, Any]) -> None:
    names = ", ".join(f'"{name}"' for name in row)
    connection.execute(
        text(f"INSERT INTO public.ledger ({names}) VALUES ({', '.join(f':{name}' for name in row)})"), row
    )


def test_a_role_that_adds_cannot_add_what_is_no_entry(server: str, writer: Connection) -> None:  # noqa: F811
    model = "refusing"
    first = Ledger(server).append(
        model, State.REGISTERED, version=1, run_id="r", workflow="w", by="ann", reason="", evidence={}, after=None,
        at=NOW,
    )  # fmt: skip
    for wrong, fields in NO_ENTRY.items():
        with pytest.raises(exc.DBAPIError) as caught, writer.begin_nested():
            put(writer, second_row(first, **fields))
        assert getattr(caught.value.orig, "sqlstate", "") in ("23514", "22P02", "22008"), wrong
    # a table of the same name that only this session sees is not what the check reads
    writer.execute(text("CREATE TEMP TABLE ledger AS SELECT * FROM public.ledger"))
    writer.execute(text(f"UPDATE pg_temp.ledger SET id = '{'f' * 64}' WHERE model = '{model}'"))
    with pytest.raises(exc.DBAPIError, match="no entry of the ledger"), writer.begin_nested():
        put(writer, second_row(first, previous="f" * 64))
    writer.execute(text("DROP TABLE pg_temp.ledger"))
    put(writer, second_row(first))


def test_a_table_of_an_earlier_version_gets_the_checks_by_the_migration(
    server: str,  # noqa: F811
    writer: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable("ledger"), server)
    first = Ledger(server).append(
        "upgraded", State.REGISTERED, version=1, run_id="r", workflow="w", by="ann", reason="", evidence={}, after=None,
        at=NOW,
    )  # fmt: skip
    engine = create_engine(make_url(server).set(drivername="postgresql+psycopg"))
    with engine.begin() as owner:
        owner.execute(text("DROP TRIGGER ledger_well_formed ON ledger"))
    engine.dispose()
    with writer.begin_nested() as believed:
        put(writer, second_row(first, evidence="not json"))
        believed.rollback()
    writer.commit()
    for _ in range(2):
        assert migration.main() == 0
    with pytest.raises(exc.DBAPIError) as caught:
        put(writer, second_row(first, evidence="not json"))
    assert getattr(caught.value.orig, "sqlstate", "") == "22P02"


def test_a_server_that_ends_in_the_middle_is_class_network_and_the_next_entry_goes_through(server: str) -> None:  # noqa: F811
    ledger = Ledger(server)
    database = ledger._rows._database

    def cut_off() -> None:
        with database.write() as ours, database.read() as another:
            pid = ours.scalar(text("SELECT pg_backend_pid()"))
            another.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            ours.execute(text("SELECT 1"))

    with pytest.raises(NetworkError, match="does not answer"):
        cut_off()
    assert write(ledger, State.REGISTERED, None, "restarted").number == 1
