"""The truth about versions: one append-only, hash-chained table.  Written by register, promote and deploy; read by all.

Each entry names the one before it, and (model, previous) is unique: of two that decide at once, the second insert
fails.  SQLite at the desk, PostgreSQL on a cluster; the URL comes from the setting `ledger`.  See docs/ledger.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    Column,
    Connection,
    Index,
    Integer,
    MetaData,
    RowMapping,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    insert,
    select,
)

from contracts.errors import Finding, StageError
from contracts.outcomes import State
from contracts.references import LedgerEntry
from steps import lifecycle
from steps.ledger_database import Database, UniqueViolationError

GENESIS = "0" * 64
"""What the first entry of a model names as the one before it."""

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
"""`evidence` is canonical JSON and `at` fixed-width UTC text: what is hashed is what is stored, on any database."""


class LostRace(StageError):  # noqa: N818  the name says what happened
    """Someone else wrote to the ledger after the entry that this decision rests on.

    Of class code, so never retried blindly: what was decided may be wrong by now.  A new run decides anew.
    """

    def __init__(self, model: str) -> None:
        super().__init__(
            f"the ledger of {model} moved on while this was decided; nothing was written",
            remedy="look at `retrain lineage`, then start the run again if it is still wanted",
        )


class Ledger:
    """The ledger behind one SQLAlchemy URL.  The schema is made at first use.

    Parameters
    ----------
    url : str
        ``sqlite:///path`` or ``postgresql://user:password@host/name``; it never appears in a message.
    busy_seconds : float
        How long to wait for a locked database.

    Raises
    ------
    ConfigError
        The URL is missing or wrong, or the account may not do what is asked.
    StorageError
        The database stayed locked.
    NetworkError
        The database does not answer.
    """

    def __init__(self, url: str, *, busy_seconds: float = 10.0) -> None:
        self._database = Database(url, ENTRIES, busy_seconds=busy_seconds)

    def models(self) -> list[str]:
        """Return the names of all models that have entries."""
        with self._database.read() as connection:
            return list(connection.scalars(select(ENTRIES.c.model).distinct().order_by(ENTRIES.c.model)))

    def entries(self, model: str) -> list[LedgerEntry]:
        """Return all entries of a model, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(ENTRIES).where(ENTRIES.c.model == model).order_by(ENTRIES.c.number))
            return [_entry(row) for row in rows.mappings()]

    def try_append(self) -> None:
        """Write an entry that nobody sees, and take it back."""
        with self._database.write() as connection:
            alone = uuid4().hex
            texts = {column.name: alone for column in ENTRIES.columns if not isinstance(column.type, Integer)}
            connection.execute(insert(ENTRIES).values({**texts, "state": "", "at": "", "number": 0, "version": 0}))
            connection.rollback()

    def head(self, model: str) -> LedgerEntry | None:
        """Return the newest entry of a model."""
        with self._database.read() as connection:
            return _head(connection, model)

    def standing(self, model: str) -> lifecycle.Standing:
        """Return where all versions of a model stand."""
        with self._database.read() as connection:
            return _standing(connection, model)

    def state(self, model: str, version: int) -> State | None:
        """Return the state of a version, None when the ledger does not know it."""
        return self.standing(model).state(version)

    def serving(self, model: str) -> LedgerEntry | None:
        """Return the entry by which the version that serves now began to serve."""
        return self.standing(model).serving

    def append(
        self,
        model: str,
        state: State,
        *,
        version: int,
        run_id: str,
        workflow: str,
        by: str,
        reason: str,
        evidence: Mapping[str, Any],
        after: LedgerEntry | None,
        at: datetime,
    ) -> LedgerEntry:
        """Write one transition, if `after` is still the newest entry, and return its entry.

        When a version begins to serve, the entry that retires the one before it is written first, in the same
        transaction.

        Parameters
        ----------
        evidence : Mapping
            What the decision rests on; must be plain JSON (finite numbers).  Never cells of sensitive columns.
        after : LedgerEntry or None
            The newest entry when the decision was made; None for the first of a model.

        Raises
        ------
        LostRace
            `after` is not the newest entry any more.
        IllegalTransition
            The state machine has no such step; see `steps.lifecycle`.
        """
        common: dict[str, Any] = {"workflow": workflow, "by": by, "at": at}
        with self._transaction(model) as connection:
            head = _head(connection, model)
            if (head.id if head else None) != (after.id if after else None):
                raise LostRace(model)
            now = _standing(connection, model, version)
            written: list[LedgerEntry] = []
            for change, changed in lifecycle.changes(now, state, version):
                if changed == version:
                    own: dict[str, Any] = {"run_id": run_id, "reason": reason, "evidence": dict(evidence)}
                else:
                    own = {
                        "run_id": now.latest[changed].run_id,
                        "reason": f"version {version} serves now",
                        "evidence": {"replaced_by": version},
                    }
                head = _chained(head, model=model, state=change, version=changed, **common, **own)
                written.append(head)
            connection.execute(insert(ENTRIES), [_row(entry) for entry in written])
        return written[-1]

    def hold(self, entry: LedgerEntry) -> LedgerEntry:
        """Return the newest entry to append after, while `entry` is still the latest of its version.

        Deploy calls it before each effect and before it says *serving*: entries of other versions do not disturb a
        release, a takeover of its own does.

        Raises
        ------
        LostRace
            The version went on without us.
        """
        with self._database.read() as connection:
            head = _head(connection, entry.model)
            latest = _standing(connection, entry.model, entry.version).latest.get(entry.version)
        if head is None or latest is None or latest.id != entry.id:
            raise LostRace(entry.model)
        return head

    @contextmanager
    def exclusively(self, model: str) -> Iterator[None]:
        """Hold the lock under which entries of a model are written: for an effect elsewhere that must not happen twice.

        Gone with the process that holds it.  Write to the ledger after it, not within.
        """
        with self._database.write(lock=model):
            yield

    def take_over(self, releasing: LedgerEntry, *, workflow: str, by: str, reason: str, at: datetime) -> LedgerEntry:
        """End a crashed release by an explicit entry: its version becomes *failed*, and the next may release.

        The version itself may be released again on the approval that it had, while nothing else began to serve.

        Raises
        ------
        LostRace, IllegalTransition
            As `append`; also when that release ended by itself meanwhile.
        """
        after = self.hold(releasing)
        evidence = {lifecycle.TAKEOVER: releasing.id, "workflow": releasing.workflow}
        return self.append(
            releasing.model, State.FAILED, version=releasing.version, run_id=releasing.run_id, workflow=workflow, by=by,
            reason=reason, evidence=evidence, after=after, at=at,
        )  # fmt: skip

    def verify(self, model: str, *, head: str = "") -> list[Finding]:
        """Check the chain of a model and return one finding for each entry that was changed, removed or moved.

        Entries cut off at the end leave a whole chain; only a `head` kept elsewhere shows that.
        """
        with self._database.read() as connection:
            rows = connection.execute(select(ENTRIES).where(ENTRIES.c.model == model).order_by(ENTRIES.c.number))
            return check_chain([dict(row) for row in rows.mappings()], head=head)

    @contextmanager
    def _transaction(self, model: str) -> Iterator[Connection]:
        try:
            with self._database.write() as connection:
                yield connection
        except UniqueViolationError:
            raise LostRace(model) from None


def entry_id(fields: Mapping[str, Any]) -> str:
    """Return the sha256 of the canonical JSON (sorted keys, no spaces, UTF-8) of all fields but `id`."""
    hashed = {name: fields[name] for name in LedgerEntry.model_fields if name != "id"}
    return hashlib.sha256(canonical(hashed).encode()).hexdigest()


def canonical(value: Any) -> str:
    """Write JSON in the one form that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def check_chain(rows: Sequence[Mapping[str, Any]], *, head: str = "") -> list[Finding]:
    """Say what is wrong with the stored rows of one model, in order of `number`; see `Ledger.verify`."""
    found: list[Finding] = []
    ids = {row["id"] for row in rows}
    before, latest = GENESIS, dict[int, LedgerEntry]()
    for position, row in enumerate(rows, start=1):
        where = f"entry {row['number']} ({str(row['id'])[:12]})"
        entry = _intact(row)
        if entry is None:
            found.append(Finding(where=where, what="was changed: its id is not the hash of its content"))
        if row["previous"] != before:
            what = (
                "was moved or inserted: it follows" if row["previous"] in ids else "follows an entry that was removed:"
            )
            found.append(Finding(where=where, what=f"{what} {str(row['previous'])[:12]}, not {before[:12]}"))
        elif row["number"] != position:
            found.append(Finding(where=where, what=f"was renumbered: it is entry {position} of the chain"))
        if entry is not None:
            try:
                lifecycle.permit(lifecycle.Standing(latest), entry.state, entry.version)
            except lifecycle.IllegalTransition as error:
                found.append(Finding(where=where, what=error.message))
            latest[entry.version] = entry
        before = row["id"]
    if head and before != head:
        found.append(Finding(where="the end", what=f"the newest entry is {before[:12]}, expected {head[:12]}"))
    return found


def _intact(row: Mapping[str, Any]) -> LedgerEntry | None:
    try:
        fields = {**row, "evidence": json.loads(row["evidence"])}
        return LedgerEntry.model_validate(fields) if entry_id(fields) == row["id"] else None
    except ValueError:
        return None


def _chained(
    previous: LedgerEntry | None, *, evidence: dict[str, Any], at: datetime, state: State, **fields: Any
) -> LedgerEntry:
    fields |= {
        "previous": previous.id if previous else GENESIS,
        "number": previous.number + 1 if previous else 1,
        "state": state.value,
        "evidence": json.loads(canonical(evidence)),
        "at": _text(at),
    }
    return LedgerEntry.model_validate({"id": entry_id(fields), **fields})


def _row(entry: LedgerEntry) -> dict[str, Any]:
    fields = entry.model_dump()
    return {**fields, "state": entry.state.value, "evidence": canonical(entry.evidence), "at": _text(entry.at)}


def _entry(row: RowMapping) -> LedgerEntry:
    return LedgerEntry.model_validate({**row, "evidence": json.loads(row["evidence"])})


def _text(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _head(connection: Connection, model: str) -> LedgerEntry | None:
    query = select(ENTRIES).where(ENTRIES.c.model == model).order_by(ENTRIES.c.number.desc()).limit(1)
    row = connection.execute(query).mappings().first()
    return _entry(row) if row else None


def _standing(connection: Connection, model: str, version: int | None = None) -> lifecycle.Standing:
    """Read where versions stand: all of them, or only those that matter to a transition of `version`.

    At most one version is serving and one releasing, so these are the ones that entered those states last; found by
    index, so that a decision costs the same however long the history is.
    """
    c = ENTRIES.c
    newest = select(func.max(c.number)).where(c.model == model).group_by(c.version)
    if version is not None:
        active = (
            connection.scalar(
                select(c.version).where(c.model == model, c.state == state).order_by(c.number.desc()).limit(1)
            )
            for state in (State.SERVING.value, State.RELEASING.value)
        )
        newest = newest.where(c.version.in_({version, *(v for v in active if v is not None)}))
    query = select(ENTRIES).where(c.model == model, c.number.in_(newest)).order_by(c.number)
    return lifecycle.standing(_entry(row) for row in connection.execute(query).mappings())
