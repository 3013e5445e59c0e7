"""MLflow's alias `production` beside the ledger: set after it, and entered in it when somebody else moved it.

Called by promote, deploy and `retrain doctor`.  What is to be done is `steps.lifecycle.judge_alias`; here it is done.
A move between the look at the alias and its setting (two requests to MLflow) leaves no trace there, and none here.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Protocol

from contracts.names import ALIAS_PRODUCTION
from contracts.outcomes import Note
from contracts.references import LedgerEntry
from steps.ledger import RACES, Ledger, LostRace
from steps.lifecycle import AliasAct, Standing, alias_is_to_follow, judge_alias, known_alias


class Aliases(Protocol):
    """What is asked of MLflow's registry here."""

    name: str
    """The model's."""

    def alias(self, name: str) -> int | None:
        """Return the version that an alias names, None when it names none."""

    def set_alias(self, name: str, version: int) -> None:
        """Let an alias name a version."""


def follow(
    ledger: Ledger, aliases: Aliases, *, workflow: str, by: str, at: datetime, may_set: bool
) -> Iterator[str]:  # fmt: skip
    """Bring alias and ledger together, and yield a line for each move by other means that was entered.

    An alias that was moved by other means stays where it is, until a version begins to serve or a person recalls it.

    Parameters
    ----------
    may_set : bool
        Whether the caller holds the target's turn.  Without it, nothing is done while the alias is to follow: who sets
        it late may set it to what served before, and what is found then may be what is set the moment after.

    Raises
    ------
    LostRace
        Others wrote to the ledger each time.
    """
    for attempt in range(RACES):
        head, now = ledger.look(aliases.name)
        if alias_is_to_follow(now) and not may_set:
            return
        observed = aliases.alias(ALIAS_PRODUCTION)
        act = judge_alias(now, observed)
        if act is AliasAct.NOTHING:
            return
        if act is AliasAct.SET and now.serving is not None:
            aliases.set_alias(ALIAS_PRODUCTION, now.serving.version)
            continue
        note = Note.ALIAS_SET if act is AliasAct.CONFIRM else Note.ALIAS_MOVED
        reason = "follows the ledger" if note is Note.ALIAS_SET else _moved(now, observed)
        try:
            _enter(
                ledger, aliases.name, note, now, head, observed, workflow=workflow, by=by, reason=reason, at=at
            )  # fmt: skip
        except LostRace:
            if attempt + 1 == RACES:
                raise
            continue
        if note is Note.ALIAS_SET:
            return
        yield reason


def recall(ledger: Ledger, aliases: Aliases, *, workflow: str, by: str, reason: str, at: datetime) -> bool:
    """Enter that a person wants the alias to follow the ledger again; False when it does, or nothing serves.

    Raises
    ------
    LostRace
        Somebody else wrote to the ledger meanwhile.
    """
    head, now = ledger.look(aliases.name)
    observed = aliases.alias(ALIAS_PRODUCTION)
    if now.serving is None or observed == now.serving.version:
        return False
    _enter(
        ledger, aliases.name, Note.ALIAS_RECALLED, now, head, observed, workflow=workflow, by=by, reason=reason, at=at
    )  # fmt: skip
    return True


def _moved(now: Standing, observed: int | None) -> str:
    serving = f"version {now.serving.version} serves" if now.serving else "nothing serves"
    return (
        f"MLflow's alias {ALIAS_PRODUCTION} was moved by other means, from {_version(known_alias(now))} to "
        f"{_version(observed)}; {serving}, by the ledger"
    )


def _version(version: int | None) -> str:
    return "no version" if version is None else f"version {version}"


def _enter(
    ledger: Ledger, model: str, note: Note, now: Standing, head: LedgerEntry | None, observed: int | None, *,
    workflow: str, by: str, reason: str, at: datetime,
) -> LedgerEntry:  # fmt: skip
    serving = now.serving.version if now.serving else None
    evidence = {"alias": ALIAS_PRODUCTION, "from": known_alias(now), "to": observed, "serving": serving}
    return ledger.append(
        model, note, version=observed or known_alias(now) or serving or 0, run_id="", workflow=workflow, by=by,
        reason=reason, evidence=evidence, after=head, now=now, at=at,
    )  # fmt: skip
