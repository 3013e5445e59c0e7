"""The state machine of a model version: which transition is legal, and when.  Pure; everyone who decides calls it.

`steps.ledger` checks every entry against it before it is written, so promote, deploy, approvals, rollbacks and the
command line obey one table.  docs/ledger.md shows the table as a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto
from functools import cached_property
from typing import TYPE_CHECKING

from contracts.errors import StageError
from contracts.outcomes import Note, State

if TYPE_CHECKING:
    from contracts.references import LedgerEntry


class IllegalTransition(StageError):  # noqa: N818  the name says what happened
    """The state machine has no such step from where the versions stand; never retried."""


@dataclass(frozen=True)
class Standing:
    """Where all versions of one model stand: the latest transition of each, and the latest note about the alias."""

    latest: Mapping[int, LedgerEntry]
    alias: LedgerEntry | None = None
    removed: Mapping[int, LedgerEntry] = field(default_factory=dict)
    """The note by which what a version was made of was removed."""

    def state(self, version: int) -> State | None:
        """Return the state of a version, None when the ledger does not know it."""
        entry = self.latest.get(version)
        return State(entry.state) if entry else None

    @cached_property
    def serving(self) -> LedgerEntry | None:
        """The entry of the version that serves."""
        return self._only(State.SERVING)

    @cached_property
    def releasing(self) -> LedgerEntry | None:
        """The entry of the release that is under way, or that crashed and waits for its takeover."""
        return self._only(State.RELEASING)

    @cached_property
    def awaiting(self) -> LedgerEntry | None:
        """The entry of the version that waits for a person's word."""
        return self._only(State.AWAITING)

    def _only(self, state: State) -> LedgerEntry | None:
        return next((entry for entry in self.latest.values() if entry.state is state), None)


def standing(entries: Iterable[LedgerEntry]) -> Standing:
    """Fold entries of one model, in order, into where its versions stand."""
    latest: dict[int, LedgerEntry] = {}
    removed: dict[int, LedgerEntry] = {}
    alias: LedgerEntry | None = None
    for entry in entries:
        if entry.state is Note.REMOVED:
            removed[entry.version] = entry
        elif isinstance(entry.state, Note):
            alias = entry
        else:
            latest[entry.version] = entry
    return Standing(latest, alias, removed)


def first_transition(history: Iterable[LedgerEntry]) -> LedgerEntry | None:
    """Return the entry by which a version came in, of its entries in order; a note may speak of it before that."""
    return next((entry for entry in history if isinstance(entry.state, State)), None)


ONE_AT_A_TIME = (State.SERVING, State.RELEASING, State.AWAITING)
"""States that at most one version of a model is in."""
TAKEOVER = "takeover_of"
"""Evidence of a *failed* that ended a crashed release of another workflow: the id of its *releasing*."""
APPROVAL = "approval"
"""Evidence of an *approved* or *rejected* that a person gave: who, how that is known, and what it is bound to."""
CLAIMED = "claimed_requester"
"""Evidence of what the promotion gate decided: who asked for the run, as its parameter says.  Nobody verified it."""
EXPIRES = "expires"
"""Evidence of *awaiting* and *approved*: the moment after which they hold no more (UTC, as entries write it)."""


def moment_text(at: datetime) -> str:
    """Write a moment as entries hold it: UTC, microseconds, fixed width, so that texts sort as the moments do."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def ended(now: Standing, version: int, at: datetime) -> tuple[State, str] | None:
    """Return how a request or an approval of this version lapsed, and why; None while it holds.

    Both say "better than what serves", which means nothing once something else serves; and both may have a deadline.
    """
    entry = now.latest.get(version)
    if entry is None or entry.state not in (State.AWAITING, State.APPROVED, State.FAILED):
        return None
    what = "request" if entry.state is State.AWAITING else "approval"
    if now.serving is not None and now.serving.number > entry.number:
        return State.SUPERSEDED, f"version {now.serving.version} began to serve after this {what}; promote it anew"
    expires = entry.evidence.get(EXPIRES)
    if expires is not None and moment_text(at) > str(expires):
        return State.EXPIRED, f"its {what} held until {expires}; promote it anew"
    return None


Guard = Callable[[Standing, int, datetime], str]
"""Looks at all versions and says what speaks against the transition of this one now, empty when nothing does."""


def _nobody_releases(now: Standing, _version: int, _at: datetime) -> str:
    if now.releasing is None:
        return ""
    busy = now.releasing
    return f"version {busy.version} is releasing (workflow {busy.workflow}); end or take over that release first"


def _still_holds(now: Standing, version: int, at: datetime) -> str:
    over = ended(now, version, at)
    return over[1] if over else ""


def _request_holds(now: Standing, version: int, at: datetime) -> str:
    return _still_holds(now, version, at) if now.state(version) is State.AWAITING else ""


def _time_is_up(now: Standing, version: int, at: datetime) -> str:
    over = ended(now, version, at)
    return "" if over and over[0] is State.EXPIRED else "its time is not up"


def _failed_by_takeover(now: Standing, version: int, _at: datetime) -> str:
    # A release that merely broke off keeps its approval.  Nothing began to serve while it was releasing, so what
    # `ended` asks of the entry that ended it, it asks of the approval.
    if now.state(version) is not State.FAILED or TAKEOVER in now.latest[version].evidence:
        return ""
    return "its release failed by itself; promote it anew"


@dataclass(frozen=True)
class Transition:
    """One row of the table: a state, the states it may follow (None: a version not seen before), and its guards."""

    to: State
    follows: frozenset[State | None]
    meaning: str
    guards: tuple[Guard, ...] = ()


_OPEN: frozenset[State | None] = frozenset({State.AWAITING, State.APPROVED})
_AT_REST: frozenset[State | None] = frozenset({
    State.REGISTERED, State.APPROVED, State.RETIRED, State.REJECTED, State.EXPIRED, State.SUPERSEDED, State.ROLLED_BACK,
    State.FAILED,
})  # fmt: skip
"""States from which promote may judge (again).  So version 12 can come back."""

TRANSITIONS: dict[State, Transition] = {
    row.to: row
    for row in (
        Transition(State.REGISTERED, frozenset({None}), "passed the validation gate and has a version number"),
        Transition(State.AWAITING, _AT_REST, "passed the promotion gate; a person is to decide"),
        Transition(
            State.APPROVED, _AT_REST | {State.AWAITING},
            "passed the promotion gate against what serves now; where the policy asks for it, a person said yes",
            (_request_holds,),
        ),
        Transition(
            State.REJECTED, _AT_REST | {State.AWAITING}, "did not pass the promotion gate, or a person said no"
        ),
        Transition(State.EXPIRED, _OPEN, "nobody decided, or released, in time", (_time_is_up,)),
        Transition(State.SUPERSEDED, _OPEN, "another version began to serve, or to wait, before it was released"),
        Transition(
            State.RELEASING, frozenset({State.APPROVED, State.FAILED}), "deploy is about to touch the server",
            (_nobody_releases, _failed_by_takeover, _still_holds),
        ),
        Transition(State.SERVING, frozenset({State.RELEASING}), "answers requests; what served before retires with it"),
        Transition(State.RETIRED, frozenset({State.SERVING}), "served, and was replaced or taken away"),
        Transition(State.ROLLED_BACK, frozenset({State.RELEASING}), "was not healthy; what served before still does"),
        Transition(State.FAILED, frozenset({State.RELEASING}), "its release broke off, or was taken over"),
    )
}  # fmt: skip


IN_USE = frozenset({State.AWAITING, State.APPROVED, State.RELEASING, State.SERVING})
"""States in which what a version is made of may not be removed."""


def permit(now: Standing, state: State | Note, version: int, at: datetime) -> None:
    """Return when `version` may enter `state` at a moment.

    A note changes nothing and is permitted, but for the removal of what a version in use is made of.  After such a
    removal nothing is permitted: the version stays as it is.

    Raises
    ------
    IllegalTransition
        Saying from where to where, and what is in the way.
    """
    current = now.state(version)
    if state is Note.REMOVED and current in IN_USE:
        raise IllegalTransition(f"version {version} is {current.value}; what it is made of cannot be removed")
    if isinstance(state, Note):
        return
    if removed := now.removed.get(version):
        raise IllegalTransition(
            f"version {version} cannot become {state.value}: what it is made of was removed on {removed.at:%F} by "
            f"{removed.by}",
            remedy="train again; `retrain lineage` says by which policy, and where a copy is",
        )
    row = TRANSITIONS[state]
    if current not in row.follows:
        allowed = ", ".join(sorted(s.value if s else "a new version" for s in row.follows))
        raise IllegalTransition(
            f"version {version} is {current.value if current else 'not in the ledger'} and cannot become {state.value}",
            remedy=f"{state.value} follows: {allowed}",
        )
    for guard in row.guards:
        if objection := guard(now, version, at):
            raise IllegalTransition(f"version {version} cannot become {state.value}: {objection}")


def changes(now: Standing, state: State | Note, version: int, at: datetime) -> tuple[tuple[State | Note, int], ...]:
    """Return the entries that one permitted transition consists of, in order.

    A version begins to serve and the one before it retires in one step; so does one begin to wait for a person and the
    one before it is superseded.  Both entries are written in one transaction, the ending first: no prefix of the ledger
    has two versions serving or waiting, and no reader sees none.

    Raises
    ------
    IllegalTransition
        As `permit`.
    """
    permit(now, state, version, at)
    if state is State.SERVING and now.serving is not None:
        return ((State.RETIRED, now.serving.version), (state, version))
    if state is State.AWAITING and now.awaiting is not None:
        return ((State.SUPERSEDED, now.awaiting.version), (state, version))
    return ((state, version),)


class AliasAct(Enum):
    """What is to be done about the alias `production`."""

    NOTHING = auto()
    SET = auto()
    CONFIRM = auto()
    """It is set as the ledger wants it, and the ledger does not say so yet."""
    ENTER_MOVE = auto()


def known_alias(now: Standing) -> int | None:
    """Return the version that the alias names by the ledger's latest note."""
    named = now.alias.evidence.get("to") if now.alias else None
    return int(named) if named is not None else None


def alias_is_to_follow(now: Standing) -> bool:
    """Whether a version began to serve, or a person recalled the alias, since it was last set or found moved."""
    if now.serving is None:
        return False
    return now.alias is None or now.alias.number < now.serving.number or now.alias.state is Note.ALIAS_RECALLED


def judge_alias(now: Standing, observed: int | None) -> AliasAct:
    """Say what is to be done about the alias, from the version that it names.

    While it is to follow, what it named before is a crash's doing and is mended; any other change is somebody else's:
    entered, and left alone.
    """
    follows = alias_is_to_follow(now)
    if now.serving is not None and follows and observed == now.serving.version:
        return AliasAct.CONFIRM
    if observed != known_alias(now):
        return AliasAct.ENTER_MOVE
    return AliasAct.SET if follows else AliasAct.NOTHING
