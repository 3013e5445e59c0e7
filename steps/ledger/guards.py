"""What the ledger's database refuses by itself, whoever asks: triggers of SQLite and PostgreSQL.

Nothing is changed or removed, and what is added can be read as an entry and follows the one before it.  Whether it is
true and legal no trigger knows: `steps.ledger.Ledger.verify` does.  Triggers, not constraints of the table, since a
table of an earlier version gets them too.
"""

from __future__ import annotations

from contracts.outcomes import Note, State
from steps.ledger.chain import GENESIS

_HEX, _NAME = "0123456789abcdef", "abcdefghijklmnopqrstuvwxyz0123456789-"
_STATES = ", ".join(f"'{kind.value}'" for kinds in (State, Note) for kind in kinds)
_BEFORE = (
    "(SELECT 1 FROM {table} AS before "
    "WHERE before.model = NEW.model AND before.number = NEW.number - 1 AND before.id = NEW.previous)"
)
_WELL_FORMED = (
    f"length(NEW.model) > 0 AND ltrim(NEW.model, '{_NAME}') = ''",
    *(f"length(NEW.{name}) = 64 AND ltrim(NEW.{name}, '{_HEX}') = ''" for name in ("id", "previous")),
    f"NEW.state IN ({_STATES})",
    "NEW.version >= 0",
    f"(NEW.number = 1 AND NEW.previous = '{GENESIS}' OR EXISTS {_BEFORE})",
)
"""What both databases say in the same words; of `ltrim` is left what begins with another character."""
_WELL_FORMED_SQLITE = (
    "typeof(NEW.number) = 'integer' AND typeof(NEW.version) = 'integer'",
    "json_valid(NEW.evidence) AND json_type(NEW.evidence) = 'object'",
    "NEW.at GLOB '????-??-??T??:??:??.??????Z' AND NEW.at >= '0001'",
    "ltrim(substr(NEW.at, 21, 6), '0123456789') = ''",
    # '+0 days' lets 30 February become another day
    "date(substr(NEW.at, 1, 10), '+0 days') = substr(NEW.at, 1, 10)",
    "time(substr(NEW.at, 12, 8), '+0 days') = substr(NEW.at, 12, 8)",
)
_WELL_FORMED_POSTGRESQL = (
    "json_typeof(NEW.evidence::json) = 'object'",
    "to_char(NEW.at::timestamptz AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') = NEW.at",
)


def sqlite(table: str) -> dict[str, str]:
    """Return name and statement of each trigger, word for word as SQLite keeps it."""
    condition = _all((*_WELL_FORMED, *_WELL_FORMED_SQLITE), table)
    events = {f"no_{verb}": (verb, "", "the ledger is append-only") for verb in ("UPDATE", "DELETE")}
    events["well_formed"] = ("INSERT", f"WHEN {condition} IS NOT TRUE ", "this is no entry of the ledger")
    return {
        f"{table}_{name}": f"CREATE TRIGGER {table}_{name} BEFORE {verb} ON {table} {when}"
        f"BEGIN SELECT RAISE(ABORT, '{what}'); END"
        for name, (verb, when, what) in events.items()
    }


def postgresql(table: str, schema: str) -> tuple[str, ...]:
    """Return statements that make functions and triggers, or bring them to this version.

    The check runs as whoever inserts, so it looks only where they can't put another table or function: at this schema
    by name, and at PostgreSQL's own.
    """
    condition = _all((*_WELL_FORMED, *_WELL_FORMED_POSTGRESQL), f"{schema}.{table}")
    return (
        f"CREATE OR REPLACE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql "
        "AS $$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$",
        f"CREATE OR REPLACE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()",
        f"CREATE OR REPLACE FUNCTION {table}_well_formed() RETURNS trigger LANGUAGE plpgsql "
        f"SET search_path = pg_catalog, pg_temp AS $$ BEGIN IF {condition} IS NOT TRUE THEN "
        "RAISE check_violation USING MESSAGE = 'this is no entry of the ledger'; END IF; RETURN NEW; END $$",
        f"CREATE OR REPLACE TRIGGER {table}_well_formed BEFORE INSERT ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION {table}_well_formed()",
    )


def _all(conditions: tuple[str, ...], table: str) -> str:
    return "(" + " AND ".join(conditions).format(table=table) + ")"
