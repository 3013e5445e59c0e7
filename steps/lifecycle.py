"""The state machine of a model version: which transition is legal, and when.  Pure; everyone who decides calls it.

`steps.ledger` checks every entry against it before it is written, so promote, deploy, approvals and rollbacks obey one
table.  docs/ledger.md shows the table as a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from contracts.errors import StageError
from contracts.outcomes import State

if TYPE_CHECKING:
    from contracts.references import LedgerEntry


class IllegalTransition(StageError):  # noqa: N818  the name says what happened
    """The state machine has no such step from where the versions stand; never retried."""


@dataclass(frozen=True)
class Standing:
    """Where all versions of one model stand: the latest entry of each."""

    latest: Mapping[int, LedgerEntry]

    def state(self, version: int) -> State | None:
        """Return the state of a version, None when the ledger does not know it."""
        entry = self.latest.get(version)
        return entry.state if entry else None

    @cached_property
    def serving(self) -> LedgerEntry | None:
        """The entry of the version that serves."""
        return self._only(State.SERVING)

    @cached_property
    def releasing(self) -> LedgerEntry | None:
        """The entry of the release that is under way, or that crashed and waits for its takeover."""
        return self._only(State.RELEASING)

    def _only(self, state: State) -> LedgerEntry | None:
        return next((entry for entry in self.latest.values() if entry.state is state), None)


def standing(entries: Iterable[LedgerEntry]) -> Standing:
    """Fold entries of one model, in order, into where its versions stand."""
    return Standing({entry.version: entry for entry in entries})


TAKEOVER = "takeover_of"
"""Evidence of a *failed* that ended a crashed release of another workflow: the id of its *releasing*."""

Guard = Callable[[Standing, int], str]
"""Looks at all versions and says what speaks against the transition of this one, empty when nothing does."""


def _nobody_releases(now: Standing, _version: int) -> str:
    if now.releasing is None:
        return ""
    busy = now.releasing
    return f"version {busy.version} is releasing (workflow {busy.workflow}); end or take over that release first"


def _approval_is_fresh(now: Standing, version: int) -> str:
    # An approval says "better than what serves"; it means nothing once something else serves.
    if now.serving is None or now.serving.number < now.latest[version].number:
        return ""
    return f"version {now.serving.version} began to serve after this approval; promote it anew"


def _failed_by_takeover(now: Standing, version: int) -> str:
    # A release that merely broke off keeps its approval.  Nothing began to serve while it was releasing, so what
    # `_approval_is_fresh` asks of the entry that ended it, it asks of the approval.
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


_OPEN: frozenset[State | None] = frozenset({State.REGISTERED, State.APPROVED})
_AT_REST: frozenset[State | None] = _OPEN | {
    State.RETIRED, State.REJECTED, State.EXPIRED, State.SUPERSEDED, State.ROLLED_BACK, State.FAILED,
}  # fmt: skip
"""States from which promote may judge (again): all but releasing and serving.  So version 12 can come back."""

TRANSITIONS: dict[State, Transition] = {
    row.to: row
    for row in (
        Transition(State.REGISTERED, frozenset({None}), "passed the validation gate and has a version number"),
        Transition(State.APPROVED, _AT_REST, "passed the promotion gate against what serves now"),
        Transition(State.REJECTED, _AT_REST, "did not pass the promotion gate, or a person said no"),
        Transition(State.EXPIRED, _OPEN, "nobody decided, or released, in time"),
        Transition(State.SUPERSEDED, _OPEN, "another version began to serve before it was released"),
        Transition(
            State.RELEASING, frozenset({State.APPROVED, State.FAILED}), "deploy is about to touch the server",
            (_nobody_releases, _failed_by_takeover, _approval_is_fresh),
        ),
        Transition(State.SERVING, frozenset({State.RELEASING}), "answers requests; what served before retires with it"),
        Transition(State.RETIRED, frozenset({State.SERVING}), "served, and was replaced or taken away"),
        Transition(State.ROLLED_BACK, frozenset({State.RELEASING}), "was not healthy; what served before still does"),
        Transition(State.FAILED, frozenset({State.RELEASING}), "its release broke off, or was taken over"),
    )
}  # fmt: skip


def permit(now: Standing, state: State, version: int) -> None:
    """Return when `version` may enter `state`.

    Raises
    ------
    IllegalTransition
        Saying from where to where, and what is in the way.
    """
    row, current = TRANSITIONS[state], now.state(version)
    if current not in row.follows:
        allowed = ", ".join(sorted(s.value if s else "a new version" for s in row.follows))
        raise IllegalTransition(
            f"version {version} is {current.value if current else 'not in the ledger'} and cannot become {state.value}",
            remedy=f"{state.value} follows: {allowed}",
        )
    for guard in row.guards:
        if objection := guard(now, version):
            raise IllegalTransition(f"version {version} cannot become {state.value}: {objection}")


def changes(now: Standing, state: State, version: int) -> tuple[tuple[State, int], ...]:
    """Return the entries that one permitted transition consists of, in order.

    A version begins to serve and the one before it retires in one step: both are written in one transaction, the
    retirement first, so that no prefix of the ledger has two versions serving and no reader sees none.

    Raises
    ------
    IllegalTransition
        As `permit`.
    """
    permit(now, state, version)
    if state is State.SERVING and now.serving is not None:
        return ((State.RETIRED, now.serving.version), (state, version))
    return ((state, version),)
