"""The ledger on a real PostgreSQL: append-only by triggers, one state a read, one winner of a race."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, exc, make_url, text

from contracts.outcomes import State
from contracts.references import LedgerEntry
from steps.ledger import Ledger, LostRace
from tests.steps.registered import NOW
from tests.steps.test_sources_postgresql import BIN, server  # noqa: F401  a fixture

pytestmark = pytest.mark.skipif(BIN is None, reason="PostgreSQL is not installed")


def write(ledger: Ledger, state: State, after: LedgerEntry | None) -> LedgerEntry:
    return ledger.append(
        "churn", state, version=1, run_id="r", workflow="w", by="ann", reason="", evidence={}, after=after, at=NOW
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
