"""How entries are hashed and chained, and what is wrong with a chain.  Pure; called by `steps.ledger`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from contracts.errors import DataError, Finding
from contracts.outcomes import Note, State
from contracts.references import LedgerEntry
from steps import lifecycle
from steps.lifecycle import moment_text

GENESIS = "0" * 64
"""What the first entry of a model names as the one before it."""

Row = Mapping[str, Any]
"""An entry as it is stored: `evidence` is canonical JSON and `at` fixed-width UTC text, so what is hashed is stored."""


def entry_id(fields: Row) -> str:
    """Return the sha256 of the canonical JSON (sorted keys, no spaces, UTF-8) of all fields but `id`."""
    hashed = {name: fields[name] for name in LedgerEntry.model_fields if name != "id"}
    return hashlib.sha256(canonical(hashed).encode()).hexdigest()


def canonical(value: Any) -> str:
    """Write JSON in the one form that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def chained(
    previous: LedgerEntry | None, *, evidence: Mapping[str, Any], at: datetime, state: State | Note, **fields: Any
) -> LedgerEntry:
    """Return the entry after `previous`, with its number and id."""
    fields |= {
        "previous": previous.id if previous else GENESIS,
        "number": previous.number + 1 if previous else 1,
        "state": state.value,
        "evidence": json.loads(canonical(dict(evidence))),
        "at": moment_text(at),
    }
    return LedgerEntry.model_validate({"id": entry_id(fields), **fields})


def to_row(entry: LedgerEntry) -> dict[str, Any]:
    """Return an entry as it is stored."""
    fields = {name: getattr(entry, name) for name in LedgerEntry.model_fields}
    return {
        **fields, "state": entry.state.value, "evidence": canonical(entry.evidence), "at": moment_text(entry.at)
    }  # fmt: skip


def from_row(row: Row) -> LedgerEntry:
    """Return a stored entry, whatever its id says of its content.

    Raises
    ------
    DataError
        It is none.  `steps.ledger.guards` lets nobody add such a one; the table's owner can.
    """
    try:
        return LedgerEntry.model_validate({**row, "evidence": json.loads(row["evidence"])})
    except (ValueError, RecursionError):
        raise DataError(
            f"entry {row['number']} ({str(row['id'])[:12]}) of {row['model']} in the ledger cannot be read",
            remedy="`retrain audit verify` says what is wrong; the database's owner can mend it, from a backup",
        ) from None


def check_chain(rows: Sequence[Row], *, head: str = "", heads: Mapping[int, str] | None = None) -> list[Finding]:
    """Say what is wrong with the stored rows of one model, in order of `number`; see `steps.ledger.Ledger.verify`."""
    found: list[Finding] = []
    ids = {row["id"] for row in rows}
    before, replay = GENESIS, _Replay()
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
        if entry is not None and (objection := replay.take(entry)):
            found.append(Finding(where=where, what=objection))
        before = row["id"]
    by_number = {row["number"]: row["id"] for row in rows}
    for number, expected in sorted((heads or {}).items()):
        if (there := by_number.get(number)) != expected:
            what = f"is {there[:12]}, and was signed as {expected[:12]}" if there else "was signed, and is gone"
            found.append(Finding(where=f"entry {number}", what=what))
    if head and before != head:
        found.append(Finding(where="the end", what=f"the newest entry is {before[:12]}, expected {head[:12]}"))
    return found


class _Replay:
    """Takes entries in order and says what the state machine has against each, as fast at the end as at the start."""

    def __init__(self) -> None:
        self._latest: dict[int, LedgerEntry] = {}
        self._active: dict[State, int] = {}
        self._removed: dict[int, LedgerEntry] = {}

    def take(self, entry: LedgerEntry) -> str:
        matter = {entry.version, *self._active.values()}
        latest = {version: self._latest[version] for version in matter if version in self._latest}
        objection = ""
        try:
            lifecycle.permit(
                lifecycle.Standing(latest, removed=self._removed), entry.state, entry.version, entry.at
            )  # fmt: skip
        except lifecycle.IllegalTransition as error:
            objection = error.message
        if entry.state is Note.REMOVED:
            self._removed[entry.version] = entry
        if isinstance(entry.state, Note):
            return objection
        self._active = {state: version for state, version in self._active.items() if version != entry.version}
        if entry.state in lifecycle.ONE_AT_A_TIME:
            self._active[entry.state] = entry.version
        self._latest[entry.version] = entry
        return objection


def _intact(row: Row) -> LedgerEntry | None:
    try:
        fields = {**row, "evidence": json.loads(row["evidence"])}
        return LedgerEntry.model_validate(fields) if entry_id(fields) == row["id"] else None
    except (ValueError, RecursionError):
        return None
