"""The truth about versions: one append-only, hash-chained table.  Written by register, promote and deploy; read by all.

Each entry names the one before it, and (model, previous) is unique: of two that decide at once, the second insert
fails.  SQLite at the desk, PostgreSQL on a cluster; the URL comes from the setting `ledger`.  See docs/ledger.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from typing import Any, TypeVar

from contracts.errors import Finding, StageError
from contracts.outcomes import Note, State
from contracts.references import LedgerEntry
from steps import lifecycle
from steps.ledger.chain import GENESIS, chained, check_chain
from steps.ledger.rows import Rows, SqlRows, UniqueViolationError, View

_ENDED_BY: Mapping[State | Note, tuple[str, str]] = {
    State.RETIRED: ("serves now", "replaced_by"),
    State.SUPERSEDED: ("waits for a person now", "superseded_by"),
}
"""What is said of a version whose state ended by another's transition, and the evidence that names that other."""


class LostRace(StageError):  # noqa: N818  the name says what happened
    """Someone else wrote to the ledger after the entry that this decision rests on.

    Of class code, so never retried blindly: what was decided may be wrong by now.  A new run decides anew.
    """

    def __init__(self, model: str, winner: LedgerEntry | None = None) -> None:
        first = (
            f": entry {winner.number}, version {winner.version} {winner.state.value} by {winner.by} "
            f"(workflow {winner.workflow}), came first"
            if winner
            else ""
        )
        super().__init__(
            f"the ledger of {model} moved on while this was decided{first}; nothing was written",
            remedy="look at `retrain lineage`, then start the run again if it is still wanted",
        )


RACES = 20
"""How often one writer may lose before it gives up."""
T = TypeVar("T")


def until_won(write: Callable[[], T]) -> T:
    """Return what `write` does: read the ledger, decide, append.  Whoever loses the race for it decides anew.

    Raises
    ------
    LostRace
        Others wrote to the ledger each time.
    """
    for _ in range(RACES - 1):
        with suppress(LostRace):
            return write()
    return write()


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
    DataError
        What is asked for holds an entry that cannot be read.
    """

    def __init__(self, url: str, *, busy_seconds: float = 10.0) -> None:
        self._rows: Rows = SqlRows(url, busy_seconds=busy_seconds)

    @classmethod
    def over(cls, rows: Rows) -> Ledger:
        """Return the ledger whose entries lie elsewhere."""
        ledger = cls.__new__(cls)
        ledger._rows = rows
        return ledger

    def models(self) -> list[str]:
        """Return the names of all models that have entries."""
        return self._rows.models()

    def heads(self) -> dict[str, tuple[int, str]]:
        """Return number and id of each model's newest entry, also of one that can't be read."""
        return self._rows.heads()

    def entries(self, model: str, at: datetime | None = None) -> list[LedgerEntry]:
        """Return the entries of a model, oldest first: all, or those up to a moment."""
        return self._until(model, self._rows.entries(model), at)

    def history(self, model: str, version: int, at: datetime | None = None) -> list[LedgerEntry]:
        """Return the entries of one version, oldest first: all, or those up to a moment."""
        return self._until(model, self._rows.about(model, version), at)

    def _until(self, model: str, entries: list[LedgerEntry], at: datetime | None) -> list[LedgerEntry]:
        if at is None:
            return entries
        until = self._rows.until(model, lifecycle.moment_text(at))
        return [entry for entry in entries if entry.number <= until]

    def serving_at(self, model: str, at: datetime) -> LedgerEntry | None:
        """Return the entry by which the version that served at a moment began to serve, None when none did.

        Order comes from the ledger, not from clocks: the moment is that of the last entry with this time or before.
        """
        until = self._rows.until(model, lifecycle.moment_text(at))
        serving = self._rows.last(model, State.SERVING, until)
        if serving is None:
            return None
        later = (e for e in self._rows.about(model, serving.version) if serving.number < e.number <= until)
        return None if any(entry.state is State.RETIRED for entry in later) else serving

    def try_append(self) -> None:
        """Write an entry that nobody sees, and take it back."""
        self._rows.try_insert()

    def head(self, model: str) -> LedgerEntry | None:
        """Return the newest entry of a model."""
        return self._rows.look(model)[0]

    def standing(self, model: str) -> lifecycle.Standing:
        """Return where all versions of a model stand."""
        return self._rows.look(model)[1]

    def look(self, model: str) -> View:
        """Return the newest entry and where all versions stand, at one moment."""
        return self._rows.look(model)

    def state(self, model: str, version: int) -> State | None:
        """Return the state of a version, None when the ledger does not know it."""
        return self.standing(model).state(version)

    def serving(self, model: str) -> LedgerEntry | None:
        """Return the entry by which the version that serves now began to serve."""
        return self.standing(model).serving

    def append(
        self,
        model: str,
        state: State | Note,
        *,
        version: int,
        run_id: str,
        workflow: str,
        by: str,
        reason: str,
        evidence: Mapping[str, Any],
        after: LedgerEntry | None,
        at: datetime,
        now: lifecycle.Standing | None = None,
    ) -> LedgerEntry:
        """Write one transition, if `after` is still the newest entry, and return its entry.

        When a version begins to serve or to wait, the entry that ends the one before it is written first, in the same
        transaction.  A note (`contracts.outcomes.Note`) is written as a transition is.

        Parameters
        ----------
        evidence : Mapping
            What the decision rests on; must be plain JSON (finite numbers).  Never cells of sensitive columns.
        after : LedgerEntry or None
            The newest entry when the decision was made; None for the first of a model.
        now : Standing, optional
            Where the versions stood then; looked up when left out.  The table sees to it that `after` is still newest.

        Raises
        ------
        LostRace
            `after` is not the newest entry any more.
        IllegalTransition
            The state machine has no such step; see `steps.lifecycle`.
        """
        head = after
        if now is None:
            head, now = self._rows.look(model, version)
            if (head.id if head else None) != (after.id if after else None):
                raise self._lost(model, after)
        common: dict[str, Any] = {"model": model, "workflow": workflow, "by": by, "at": at}
        written: list[LedgerEntry] = []
        for change, changed in lifecycle.changes(now, state, version, at):
            if changed == version:
                own: dict[str, Any] = {"run_id": run_id, "reason": reason, "evidence": evidence}
            else:
                said, key = _ENDED_BY[change]
                own = {
                    "run_id": now.latest[changed].run_id,
                    "reason": f"version {version} {said}",
                    "evidence": {key: version},
                }
            head = chained(head, state=change, version=changed, **common, **own)
            written.append(head)
        try:
            self._rows.insert(written)
        except UniqueViolationError:
            raise self._lost(model, after) from None
        return written[-1]

    def hold(self, entry: LedgerEntry) -> View:
        """Return the newest entry to append after, and where the versions stand, while `entry` is its version's latest.

        Deploy calls it before each effect and before it says *serving*: entries of other versions do not disturb a
        release, a takeover of its own does.

        Raises
        ------
        LostRace
            The version went on without us.
        """
        head, now = self._rows.look(entry.model, entry.version)
        latest = now.latest.get(entry.version)
        if head is None or latest is None or latest.id != entry.id:
            raise LostRace(entry.model, latest)
        return head, now

    def exclusively(self, model: str) -> AbstractContextManager[None]:
        """Hold the lock under which entries of a model are written: for an effect elsewhere that must not happen twice.

        Gone with the process that holds it.  Write to the ledger after it, not within.
        """
        return self._rows.alone(model)

    def take_over(self, releasing: LedgerEntry, *, workflow: str, by: str, reason: str, at: datetime) -> LedgerEntry:
        """End a crashed release by an explicit entry: its version becomes *failed*, and the next may release.

        The version itself may be released again on the approval that it had, while nothing else began to serve.

        Raises
        ------
        LostRace, IllegalTransition
            As `append`; also when that release ended by itself meanwhile.
        """
        after, now = self.hold(releasing)
        evidence = {lifecycle.TAKEOVER: releasing.id, "workflow": releasing.workflow}
        return self.append(
            releasing.model, State.FAILED, version=releasing.version, run_id=releasing.run_id, workflow=workflow, by=by,
            reason=reason, evidence=evidence, after=after, at=at, now=now,
        )  # fmt: skip

    def verify(self, model: str, *, head: str = "", heads: Mapping[int, str] | None = None) -> list[Finding]:
        """Check the chain of a model and return one finding for each entry that was changed, removed or moved.

        Entries cut off at the end leave a whole chain, and so does a history that was written anew; only a `head`, or
        the ids of several entries by number (`heads`), kept elsewhere show that.
        """
        return check_chain(self._rows.rows(model), head=head, heads=heads)

    def _lost(self, model: str, after: LedgerEntry | None) -> LostRace:
        return LostRace(model, self._rows.after(model, after.id if after else GENESIS))
